"""Images with the planes that are learned from them: whole ones made square, or squares out of large ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline import artefacts, files, images, ragged, registry, stores, windows
from pipeline.artefacts import Predictions, save_maps, shown
from pipeline.competition import Competition
from pipeline.config import Config, root
from pipeline.console import warn
from pipeline.errors import UserError, some
from pipeline.forms import VOID, levels
from pipeline.images import BrokenImage, opencv
from pipeline.maps import SUFFIX, Geometry, joined
from pipeline.masks import HeaderSizes

if TYPE_CHECKING:
    from pipeline.tasks import Task

TILES = "tiles"
TRAIN, TEST, MORE = "train images", "test images", "unlabelled images"  # as bars call them, and what a broken one means
PLANES = "planes"  # what a file holds that has no predictions but what is to be learned
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


class Given:
    """Planes that a file has of some rows; there are no others. places: (N,) int64, where a row's planes lie, or −1."""

    def __init__(self, planes: Planes, places: np.ndarray) -> None:
        self.planes, self.places = planes, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, P) uint8; IndexError where the file has none."""
        place = int(self.places[row])
        if place < 0:
            raise IndexError(row)
        return self.planes[place]


@dataclass(frozen=True)
class Nothing:
    """Void planes, for images that nobody labelled. images: squares, or of any size by row; planes: how many."""

    images: Any
    planes: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, P) uint8, void."""
        square = isinstance(self.images, images.Images)
        height, width = self.images.shape[1:3] if square else self.images[row].shape[:2]
        return np.full((height, width, self.planes), VOID, dtype=np.uint8)


class Taught:
    """Planes of rows with a teacher's behind them: (H, W, 2P); what one of both has not is void.

    own, teacher: planes of N rows, or of some.
    """

    def __init__(self, own: Planes | None, teacher: Given) -> None:
        self.own, self.teacher = own, teacher

    def __len__(self) -> int:
        return len(self.teacher)

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, 2P) uint8."""
        own = None if self.own is None else self.own[row]
        said = self.teacher[row] if self.teacher.places[row] >= 0 else None
        known = said if own is None else own
        assert known is not None
        nothing = np.full_like(known, VOID)
        found = np.concatenate([nothing if own is None else own, nothing if said is None else said], axis=2)
        if own is not None:
            found[(own == VOID).any(axis=2)] = VOID  # what counts nowhere is not learned from a teacher either
        return found


def _place(stores: Sequence[Planes], row: int) -> tuple[int, int]:
    """A row of all stores together → which store, and its row there."""
    for which, store in enumerate(stores):
        if row < len(store):
            return which, row
        row -= len(store)
    raise IndexError(row)


class Source:
    """The images of some files, in each of the ways that members look at them.

    files: specs, relative to the competition's folder. what: TRAIN, TEST or MORE; an image that does not decode counts
    as a grey one, where a training image stops the work. sizes: (N, 2) int64, height and width of each image.
    """

    def __init__(self, config: Config, competition: Competition, files_: Sequence[str], what: str) -> None:
        self.config, self.competition, self.files = config, competition, list(files_)
        self.label, self.broken = f"{competition.name} {what}", "stop" if what == TRAIN else "fill"
        self.sizes = sizes_of(config, competition, self.files)

    def square(self, size: int) -> Any:
        """Images made square, of size × size."""
        return stores.open_files(self.config, self.competition.folder, self.files, size, self.broken, self.label)

    def own_size(self, scale: float = 1.0) -> Any:
        """Images at tiles.scale · scale of their own size."""
        return own_size(self.config, self.competition, self.files, self.label, self.broken, scale)


def read(config: Config, competition: Competition, spec: str) -> np.ndarray:
    """(H, W, C) uint8: an image at its own size, as its file has it."""
    limit = round(config.data.megapixels * 1e6)
    return images.read(
        spec, competition.folder, reader=config.data.reader, limit_pixels=limit, channels=config.data.channels
    )


def learned_from(
    config: Config, competition: Competition, task: Task, planes: Sequence[Planes] = ()
) -> Whole | Squares:
    """The training images with their planes, as members learn from them.

    planes: of the training images, if not the truth's alone, and then of the test images.
    """
    planes = planes or [planes_of(config, competition, task)]
    tables = zip((competition.train, competition.test), (TRAIN, TEST), planes, strict=False)
    sources = [Source(config, competition, table["file"].tolist(), what) for table, what, _ in tables]
    if config.data.resize != TILES:
        return Whole([source.square(config.image_size) for source in sources], planes)
    skip, stores_ = int(task.learns.simplex), [source.own_size() for source in sources]  # the ground is skipped
    return Squares(stores_, planes, config.image_size, config.tiles.foreground, skip)


def with_pool(
    config: Config, competition: Competition, task: Task, source: Whole | Squares
) -> tuple[Whole | Squares, np.ndarray]:
    """The source with the test images and those of data.unlabelled behind, whose planes are void, and their rows."""
    tables = {TEST: competition.test, MORE: competition.unlabelled}
    stores_, planes, rows = list(source.stores), list(source.planes), [np.zeros(0, dtype=np.int64)]
    count = task.outputs * (1 + any(isinstance(one, Taught) for one in planes))
    for what, files_ in ((what, table["file"].tolist()) for what, table in tables.items() if len(table)):
        images_, tiles = Source(config, competition, files_, what), config.data.resize == TILES
        more = images_.own_size() if tiles else images_.square(config.image_size)
        rows.append(sum(map(len, planes)) + np.setdiff1d(np.arange(len(files_)), [] if tiles else more.broken))
        stores_.append(more)
        planes.append(Nothing(more, count))
    return replace(source, stores=stores_, planes=planes), np.concatenate(rows)


# --- what is kept in the cache ------------------------------------------------------------------------------------


def sizes_of(config: Config, competition: Competition, files_: Sequence[str]) -> np.ndarray:
    """(N, 2) int64: the height and width of each image."""
    header = HeaderSizes(competition.folder, files_, config.data.reader, round(config.data.megapixels * 1e6))
    return np.array([header[row] for row in range(len(files_))], dtype=np.int64).reshape(-1, 2)


def own_size(
    config: Config, competition: Competition, files_: Sequence[str], label: str, broken: str, scale: float = 1.0
) -> Any:  # fmt: skip
    """(H, W, C) images by row, at tiles.scale · scale of their own size; broken: what becomes of those that do not
    decode, "fill" or "stop"."""
    data, factor = config.data, config.tiles.scale * scale
    steps = tuple(registry.complete("preprocesses", call) for call in data.preprocess)
    sizes_ = sizes_of(config, competition, files_)

    def make(row: int) -> np.ndarray:
        limit = round(data.megapixels * 1e6)
        try:
            found = images.read(
                files_[row], competition.folder, reader=data.reader, limit_pixels=limit, channels=data.channels
            )
        except BrokenImage as fault:
            if broken == "stop":
                raise UserError(f"{fault}; replace it, or leave it out of the table") from fault
            warn(f"{fault}; it is predicted as a grey image")
            found = np.full((*sizes_[row], data.channels), images.FILL, dtype=np.uint8)
        for step in images.preprocesses(steps):
            found = step(found, config.image_size)
        return scaled(found, factor)

    sizes = (sizes_.prod(axis=1) * factor**2 * data.channels).astype(np.int64)
    key = artefacts.fingerprint(
        "own size", list(files_), files.listing(competition.folder, files_), data.reader, data.channels, factor,
        data.megapixels, steps, config.image_size if steps else 0,
    )  # fmt: skip
    return ragged.build(cache(f"images-{key}"), make, sizes, label, data.cache_gb)


def planes_of(config: Config, competition: Competition, task: Task) -> Any:
    """(H, W, P) planes of each training row, as they are learned from."""
    truth: Any = task.targets(competition.targets)
    learned: Any = task
    sizes = sizes_of(config, competition, competition.train["file"].tolist())

    def make(row: int) -> np.ndarray:
        return worked(config, learned.planes(truth.one(row)))

    key = artefacts.fingerprint("planes", competition.fingerprint, config.task, *work_size(config))
    return _build(config, f"planes-{key}", make, f"{competition.name} masks", sizes, task)


def taught_by(config: Config, competition: Competition, task: Task, path: Path, sizes: np.ndarray) -> Any:
    """The same of the maps that a teacher predicted, in a file of predictions; sizes: (N, 2) of their images."""
    maps = Predictions.load(path).values
    key = artefacts.fingerprint("taught", artefacts.file_digest(path), *work_size(config))

    def make(row: int) -> np.ndarray:
        return worked(config, joined(levels(band) for band in maps.bands(row)))

    return _build(config, f"planes-{key}", make, f"{competition.name} maps of {path.stem}", sizes, task)


def _build(config: Config, name: str, make: Any, label: str, sizes: np.ndarray, task: Task) -> Any:
    tiles, size = config.data.resize == TILES, config.image_size
    pixels = sizes.prod(axis=1) * config.tiles.scale**2 if tiles else np.full(len(sizes), size * size)
    return ragged.build(cache(name), make, (pixels * task.outputs).astype(np.int64), label, config.data.cache_gb)


def given_file(labels: Path, key: object) -> Path:
    """Where the planes lie that a labels file has for a member: ``labels-r1-fold0.npz``."""
    return labels.with_name(f"{labels.stem}-fold{key}.npz")


def write_given(config: Config, path: Path, ids: np.ndarray, sizes: np.ndarray, planes: Iterable[np.ndarray]) -> None:
    """Write planes (P, H, W) of images, each at its own size, as they are learned from; path itself comes last.

    sizes: (N, 2) int64 of the images.
    """
    path.unlink(missing_ok=True)  # never beside pixels that it does not describe
    with ragged.writer(path.with_suffix(SUFFIX)) as out:
        for one in planes:
            out.add(worked(config, one))
    save_maps(path, ids, out.shapes, sizes, "", PLANES, {"size": list(work_size(config))})


def read_given(config: Config, path: Path, ids: np.ndarray) -> Given:
    """What ``write_given`` wrote, by the rows that have these ids."""
    found = Predictions.load(path)
    if found.space != PLANES or found.made_by.get("size") != list(work_size(config)):
        raise UserError(
            f"{shown(path)} has planes made for {some(found.made_by.get('size', ['nothing']))}, but this run works at "
            f"{some(work_size(config))} (data.resize, and image_size or tiles.scale); make the labels anew for this run"
        )
    return Given(found.values.pixels, places_of(ids, found.ids))


def places_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) int64: where each id lies among those known, or −1."""
    place = {name: row for row, name in enumerate(known.tolist())}
    return np.array([place.get(str(name), -1) for name in ids], dtype=np.int64)


def worked(config: Config, planes: np.ndarray) -> np.ndarray:
    """Planes (P, H, W) of an image at its own size → (h, w, P) at the size that is learned from."""
    last = np.ascontiguousarray(planes.transpose(1, 2, 0))
    if config.data.resize == TILES:
        return scaled_planes(last, config.tiles.scale)
    return square_planes(last, config.image_size, config.data.resize)


def work_size(config: Config) -> tuple[str, float]:
    """What the size depends on at which masks are learned: data.resize, and a scale or a side."""
    return config.data.resize, config.tiles.scale if config.data.resize == TILES else config.image_size


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
