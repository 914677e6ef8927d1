"""Images with the planes that are learned from them: whole ones made square, or squares out of large ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline import artefacts, files, images, ragged, registry, stores, windows
from pipeline.competition import Competition
from pipeline.config import Config, root
from pipeline.errors import UserError
from pipeline.forms import VOID
from pipeline.images import BrokenImage, opencv
from pipeline.maps import Geometry
from pipeline.masks import HeaderSizes

if TYPE_CHECKING:
    from pipeline.tasks import Task

TILES = "tiles"
PLACE = 1_000_003  # keeps the draws of a square's place apart from those of its augmentation


class Planes(Protocol):
    """(H, W, P) uint8 by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, P) uint8 as ``forms.levels`` gives them."""


@dataclass(frozen=True)
class Whole:
    """Images made square, with their planes.

    stores: image stores behind each other, of size × size. planes: the planes of each store, of the same size.
    """

    stores: Sequence[Any]
    planes: Sequence[Planes]

    def samples(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """rows: (n,) of all stores together → (n, S, S, C) and (n, S, S, P) uint8, fresh arrays."""
        found = [_place(self.planes, int(row)) for row in rows]
        pixels = np.concatenate([self.stores[which].take(np.array([row])) for which, row in found])
        return pixels, np.stack([self.planes[which][row] for which, row in found])


@dataclass
class Squares:
    """A square of size out of each image, at its own size, with its planes; where it lies depends on the seed alone.

    stores: (H, W, C) images by row. foreground: share of squares that lie around a pixel of some class. skip: planes
    that are no foreground, such as the ground.
    """

    stores: Sequence[Any]
    planes: Sequence[Planes]
    size: int
    foreground: float
    skip: int = 0
    runs: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)

    def samples(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """rows: (n,) of all stores together, seeds: (n,) → (n, S, S, C) and (n, S, S, P) uint8, fresh arrays."""
        pairs = [self._one(*_place(self.planes, int(row)), int(seed)) for row, seed in zip(rows, seeds, strict=True)]
        return np.stack([image for image, _ in pairs]), np.stack([planes for _, planes in pairs])

    def _one(self, which: int, row: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        image, planes = self.stores[which][row], self.planes[which][row]
        shape, generator = (self.size, self.size), np.random.default_rng([seed, PLACE])
        runs = self._runs(which, row, planes) if self.foreground else []
        corner = windows.balanced_crop(generator, *image.shape[:2], shape, runs, self.foreground)
        pixels = windows.pad(windows.cut(image, corner, shape), *shape)
        return pixels, _with_void(windows.cut(planes, corner, shape), *shape)

    def _runs(self, which: int, row: int, planes: np.ndarray) -> list[np.ndarray]:
        if (which, row) not in self.runs:
            bits = ((planes > VOID // 2) & (planes != VOID)).transpose(2, 0, 1)[self.skip :].astype(np.uint8)
            self.runs[which, row] = windows.foreground_runs(bits)
        return self.runs[which, row]


def _with_void(planes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Planes with at least so many rows and columns; what is added is void, since it is no image."""
    more = max(0, rows - planes.shape[0]), max(0, columns - planes.shape[1])
    return np.pad(planes, [(0, more[0]), (0, more[1]), (0, 0)], constant_values=VOID) if any(more) else planes


def _place(stores: Sequence[Planes], row: int) -> tuple[int, int]:
    """A row of all stores together → which store, and its row there."""
    for which, store in enumerate(stores):
        if row < len(store):
            return which, row
        row -= len(store)
    raise IndexError(row)


class Source:
    """The images of some files, in each of the ways that members look at them.

    files: specs, relative to the competition's folder. sizes: (N, 2) int64, height and width of each image.
    """

    def __init__(self, config: Config, competition: Competition, files_: Sequence[str], what: str) -> None:
        self.config, self.competition, self.files = config, competition, list(files_)
        self.label = f"{competition.name} {what}"
        self.sizes = sizes_of(config, competition, self.files)

    def square(self, size: int) -> Any:
        """Images made square, of size × size."""
        broken = "fill" if "test" in self.label else "stop"
        return stores.open_files(self.config, self.competition.folder, self.files, size, broken, self.label)

    def own_size(self, scale: float = 1.0) -> Any:
        """Images at tiles.scale · scale of their own size."""
        return own_size(self.config, self.competition, self.files, self.label, scale)


def learned_from(config: Config, competition: Competition, task: Task) -> Whole | Squares:
    """The training images with their planes, as members learn from them."""
    train = Source(config, competition, competition.train["file"].tolist(), "train images")
    planes = [planes_of(config, competition, task)]
    if config.data.resize != TILES:
        return Whole([train.square(config.image_size)], planes)
    skip = int(task.learns.simplex)  # the ground
    return Squares([train.own_size()], planes, config.image_size, config.tiles.foreground, skip)


# --- what is kept in the cache ------------------------------------------------------------------------------------


def sizes_of(config: Config, competition: Competition, files_: Sequence[str]) -> np.ndarray:
    """(N, 2) int64: the height and width of each image."""
    header = HeaderSizes(competition.folder, files_, config.data.reader, round(config.data.megapixels * 1e6))
    return np.array([header[row] for row in range(len(files_))], dtype=np.int64).reshape(-1, 2)


def own_size(config: Config, competition: Competition, files_: Sequence[str], label: str, scale: float = 1.0) -> Any:
    """(H, W, C) images by row, at tiles.scale · scale of their own size."""
    data, factor = config.data, config.tiles.scale * scale
    steps = tuple(registry.complete("preprocesses", call) for call in data.preprocess)

    def make(row: int) -> np.ndarray:
        limit = round(data.megapixels * 1e6)
        try:
            found = images.read(
                files_[row], competition.folder, reader=data.reader, limit_pixels=limit, channels=data.channels
            )
        except BrokenImage as fault:
            raise UserError(f"{fault}; replace it, or leave it out of the table") from fault
        for step in images.preprocesses(steps):
            found = step(found, config.image_size)
        return scaled(found, factor)

    sizes = (sizes_of(config, competition, files_).prod(axis=1) * factor**2 * data.channels).astype(np.int64)
    key = artefacts.fingerprint(
        "own size", list(files_), files.listing(competition.folder, files_), data.reader, data.channels, factor,
        data.megapixels, steps, config.image_size if steps else 0,
    )  # fmt: skip
    return ragged.build(cache(f"images-{key}"), make, sizes, label, data.cache_gb)


def planes_of(config: Config, competition: Competition, task: Task) -> Any:
    """(H, W, P) planes of each training row: of image_size, or at tiles.scale of the image's own size."""
    truth: Any = task.targets(competition.targets)
    learned: Any = task
    data, tiles = config.data, config.data.resize == TILES
    size, factor = config.image_size, config.tiles.scale

    def make(row: int) -> np.ndarray:
        planes = np.ascontiguousarray(learned.planes(truth.one(row)).transpose(1, 2, 0))
        return scaled_planes(planes, factor) if tiles else square_planes(planes, size, data.resize)

    if tiles:
        own = sizes_of(config, competition, competition.train["file"].tolist()).prod(axis=1)
        sizes = (own * factor**2 * task.outputs).astype(np.int64)
    else:
        sizes = np.full(len(truth), size * size * task.outputs, dtype=np.int64)
    key = artefacts.fingerprint("planes", competition.fingerprint, config.task, data.resize, factor if tiles else size)
    label = f"{competition.name} masks"
    return ragged.build(cache(f"planes-{key}"), make, sizes, label, data.cache_gb)


def cache(name: str) -> Path:
    """A folder of the cache."""
    return root() / "cache" / name


# --- sizes --------------------------------------------------------------------------------------------------------


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """(H, W, C) at factor times its size."""
    if factor == 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    mode = opencv().INTER_AREA if factor < 1 else opencv().INTER_LINEAR
    return opencv().resize(image, (width, height), interpolation=mode).reshape(height, width, image.shape[2])


def scaled_planes(planes: np.ndarray, factor: float) -> np.ndarray:
    """Planes at factor times their size; a pixel is void where its nearest one was."""
    if factor == 1:
        return planes
    height, width = (max(1, round(side * factor)) for side in planes.shape[:2])
    return _resized(planes, height, width)


def square_planes(planes: np.ndarray, size: int, resize: str) -> np.ndarray:
    """Planes (H, W, P) made square as ``images.decode`` makes their image; what a border adds is void."""
    height, width = planes.shape[:2]
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resized(planes[top : top + side, left : left + side], size, size)
    if resize == "pad":
        found = np.full((size, size, planes.shape[2]), VOID, dtype=np.uint8)
        rows, columns, top, left = Geometry.inner(size, height, width)
        found[top : top + rows, left : left + columns] = _resized(planes, rows, columns)
        return found
    return _resized(planes, size, size)


def _resized(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    if planes.shape[:2] == (height, width):
        return planes
    cv2, void = opencv(), (planes == VOID).any(axis=2)
    shrinks = height <= planes.shape[0] and width <= planes.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    clean = np.where(planes == VOID, 0, planes) if void.any() else np.ascontiguousarray(planes)
    found = cv2.resize(clean, (width, height), interpolation=mode).reshape(height, width, planes.shape[2])
    if void.any():
        found[cv2.resize(void.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0] = VOID
    return found
