"""Cuts: how the probability maps of an image become its answer, a mask or objects.

Form: a class with ``__init__(*, …)``, whose instances are called with values (C, H, W) float32 in 0…1 and give the
answer of one image, without void: of masks (C, H, W) uint8 of 0 and 1, of class_masks (H, W) uint8, of objects (H, W)
int32, 0 the ground and 1, 2, … the objects. A run's decision is the call-string of a cut with its arguments. A cut
whose class has ``banded`` as well takes images too large for a map of floats: ``bands()`` gives the same values again
and again as (C, h, W), rows from the top, and the answer is the same.

Facts: ``takes``, the form of the answer. ``search``: the arguments that a nested search may choose, in its order, and
the values that it tries (``pipeline/cutting.py``); those that a call-string names stay as they are. ``each``: the
arguments that may be a list, a number a class, and the class that the list begins with. ``most``: how many images a
search looks at, if the cut is slow.

Sizes are in pixels of the answer; one below 1 is a share of the image's area. Pixels are fit for objects of one scale,
shares for images of many resolutions of the same scene. Components and objects hold together at corners (of 8
neighbours), holes do not (of 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from pipeline.errors import UserError
from pipeline.registry import part

Numbers = float | tuple[float, ...]
Bands = Callable[[], Iterable[np.ndarray]]
Wanted = Callable[[np.ndarray, np.ndarray], np.ndarray]  # areas, whether inside: (n,) of components → (n,) bool
SMALLEST = 1e-6
BAND = 2**24  # pixels of a mask whose components are found at once

# --- masks --------------------------------------------------------------------------------------------------------


@part(
    source="thresholds of each class, Yang 2001 (SCut); sizes, holes and gates as in Kaggle's mask competitions",
    takes=("masks",),
    allowed={"level": (0, 1), "min_size": (0, None), "holes": (0, None), "gate": (0, 1)},
    search={
        "level": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9),
        "gate": (0, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
        "min_size": (0, 4, 16, 64, 256, 1024, 0.0001, 0.0005, 0.002, 0.01),
        "holes": (0, 16, 128, 1024),
    },
    each={"level": 0},
)
class threshold:
    """Each plane's pixels of at least a level, less small components, with small holes filled.

    level: a number, or a list of one a class. min_size: components of less are dropped. holes: those of at most this
    size are filled, before that. gate: a plane whose highest value is below it is empty.
    """

    def __init__(
        self, *, level: float | tuple[float, ...] = 0.5, min_size: float = 0, holes: float = 0, gate: float = 0.0
    ) -> None:
        self.level, self.min_size, self.holes, self.gate = level, min_size, holes, gate

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """values (C, H, W) float32 → (C, H, W) uint8 of 0 and 1."""
        return self.banded(lambda: [values])

    def banded(self, bands: Bands) -> np.ndarray:
        """See the head of this file."""
        above, highest = [], []
        for band in bands():
            levels = np.array(_each("threshold(level)", self.level, len(band)), dtype=np.float32)
            above.append(band >= levels[:, None, None])
            highest.append(band.max(axis=(1, 2), initial=0))
        answer = above[0] if len(above) == 1 else np.concatenate(above, axis=1)
        del above
        for plane, most in zip(answer, np.max(highest, axis=0), strict=True):
            plane[:] = cleaned(plane, self.min_size, self.holes) if plane.size and most >= self.gate else False
        return answer.view(np.uint8)


@part(
    source="argmax of probabilities with a bias a class, Elkan 2001, section 3",
    takes=("class_masks",),
    allowed={"bias": (-20, 20), "min_size": (0, None)},
    search={
        "bias": (-1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5),
        "min_size": (0, 4, 16, 64, 256, 1024, 0.0001, 0.0005, 0.002, 0.01),
    },
    each={"bias": 1},
)
class argmax:
    """The likeliest class of each pixel, after a bias; pixels of small components go to their next likeliest class.

    bias: added to the log-probability of every class but the first (the ground); a number, or a list of one a class
    from the second on. min_size: components of less, of whatever class, are given away.
    """

    def __init__(self, *, bias: float | tuple[float, ...] = 0.0, min_size: float = 0) -> None:
        self.bias, self.min_size = bias, min_size

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """values (C, H, W) float32 → (H, W) uint8."""
        return self.banded(lambda: [values])

    def banded(self, bands: Bands) -> np.ndarray:
        """See the head of this file."""
        answer = np.concatenate([self._scores(band).argmax(axis=0).astype(np.uint8) for band in bands()])
        least = pixels_of(self.min_size, answer.shape)
        if least <= 1:
            return answer
        small, top = np.zeros(answer.shape, dtype=bool), 0
        for number in range(answer.max(initial=0) + 1):
            _mark(answer == number, lambda area, inner: area < least, small)
        for band in bands():
            rows = slice(top, top + band.shape[1])
            self._give_away(band, answer[rows], small[rows])
            top = rows.stop
        return answer

    def _scores(self, values: np.ndarray) -> np.ndarray:
        weights = np.exp(np.concatenate([[0], _each("argmax(bias)", self.bias, len(values) - 1)])).astype(np.float32)
        return values * weights[:, None, None] if weights.min() < 1 or weights.max() > 1 else values

    def _give_away(self, values: np.ndarray, answer: np.ndarray, small: np.ndarray) -> None:
        """Change the answer of the pixels that are marked to their next likeliest class."""
        if len(values) > 1 and small.any():
            left = self._scores(values)[:, small].copy()
            left[answer[small], np.arange(left.shape[1])] = -1
            answer[small] = left.argmax(axis=0)


# --- objects ------------------------------------------------------------------------------------------------------


@part(
    source="connected components; cv2.connectedComponentsWithStats",
    takes=("objects",),
    allowed={"level": (0, 1), "min_size": (0, None), "holes": (0, None)},
    search={
        "level": (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9),
        "min_size": (0, 4, 16, 32, 64, 128, 256, 0.0001, 0.0005, 0.002),
        "holes": (0, 16, 128, 1024),
    },
)
class components:
    """Every connected component of the first plane is an object.

    level: from which a pixel is inside. min_size: objects of less are dropped. holes: those of at most this size are
    filled, before that.
    """

    def __init__(self, *, level: float = 0.5, min_size: float = 0, holes: float = 0) -> None:
        self.level, self.min_size, self.holes = level, min_size, holes

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """values (C, H, W) float32, the first plane the inside of objects → labels (H, W) int32."""
        inside = cleaned(values[0] >= np.float32(self.level), 0, self.holes)
        return _numbered(_labels(inside), pixels_of(self.min_size, inside.shape))


@part(
    source="Beucher & Lantuéjoul 1979; skimage.segmentation.watershed; border channels: the first place of DSB 2018",
    takes=("objects",),
    allowed={
        "level": (0, 1), "seed_level": (0, 1), "seed_size": (0, None), "min_size": (0, None), "holes": (0, None),
        "by": ("border", "distance", "shape"),
    },
    search={
        "level": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        "seed_level": (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9),
        "min_size": (0, 4, 16, 32, 64, 128, 256, 0.0001, 0.0005, 0.002),
        "seed_size": (0, 4, 16),
        "holes": (0, 16, 128, 1024),
    },
    most=150,
)  # fmt: skip
class watershed:
    """Objects that touch are parted: seeds grow over the inside, downhill, until they meet.

    level: from which a pixel of the first plane is inside. seed_level: from which it is a seed, of a map that ``by``
    names: border, the first plane less the second, which are borders; distance, the second plane, high in the middle of
    objects; shape, the distance to the outside over the highest one within the component, without a second plane.
    seed_size: seeds of less are dropped. min_size: objects of less are dropped. holes: those of at most this size are
    filled, first. A component without a seed stays one object.
    """

    def __init__(
        self, *, level: float = 0.5, seed_level: float = 0.5, seed_size: float = 0, min_size: float = 0,
        holes: float = 0, by: str = "border",
    ) -> None:  # fmt: skip
        self.level, self.seed_level, self.seed_size = level, seed_level, seed_size
        self.min_size, self.holes, self.by = min_size, holes, by

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """values (C, H, W) float32, the inside of objects, and by border and distance that plane → labels, int32."""
        inside = cleaned(values[0] >= np.float32(self.level), 0, self.holes)
        labels = _labels(inside)
        height = self._height(values, inside, labels)
        seeds = _labels(cleaned(inside & (height >= np.float32(self.seed_level)), self.seed_size, 0))
        around = np.zeros(seeds.max(initial=0) + 1, dtype=np.int32)
        around[seeds.ravel()] = labels.ravel()  # the component of each seed
        crowded = np.bincount(around[1:], minlength=labels.max(initial=0) + 1) > 1
        if crowded.any():
            from skimage.segmentation import watershed as grown  # takes half a second to import

            there = crowded[labels]  # flooding is slow: only where there is something to part
            parted = grown(-height, seeds * there, mask=there, connectivity=2)
            labels = np.where(there, parted + labels.max(), labels)
        return _numbered(labels, pixels_of(self.min_size, inside.shape))

    def _height(self, values: np.ndarray, inside: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(H, W) float32, at most 1, the higher the nearer to the middle of an object."""
        if self.by == "shape":
            # the frame is outside, too, so that an image without ground has distances
            depth = cv2.distanceTransform(np.pad(inside.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            depth = depth[1:-1, 1:-1]
            highest = np.zeros(labels.max(initial=0) + 1, dtype=np.float32)
            np.maximum.at(highest, labels.ravel(), depth.ravel())
            relative: np.ndarray = depth / np.maximum(highest, np.float32(SMALLEST))[labels]
            return relative
        if len(values) < 2:
            raise UserError(f"watershed(by={self.by!r}) reads a second plane, and there is one; take by='shape'")
        return values[0] - values[1] if self.by == "border" else values[1]


# --- arithmetic ---------------------------------------------------------------------------------------------------


def pixels_of(size: float, shape: tuple[int, ...]) -> float:
    """A size in pixels of an image of this shape; one below 1 is a share of its area."""
    return size if size >= 1 else size * shape[0] * shape[1]


def cleaned(mask: np.ndarray, min_size: float, holes: float) -> np.ndarray:
    """A mask (H, W) bool with its holes of at most ``holes`` filled, less its components below ``min_size``."""
    most, least = pixels_of(holes, mask.shape), pixels_of(min_size, mask.shape)
    if most >= 1 and mask.any():
        mask = mask | _holes(mask, most)
    return _large(mask, least) if least > 1 and mask.any() else mask


def _large(mask: np.ndarray, least: float) -> np.ndarray:
    """The components of at least so many pixels."""
    return _mark(mask, lambda area, inner: area >= least, np.zeros_like(mask))


def _holes(mask: np.ndarray, most: float) -> np.ndarray:
    """The parts of the ground of at most so many pixels that touch no edge of the image."""
    return _mark(~mask, lambda area, inner: inner & (area <= most), np.zeros_like(mask), 4)


def _mark(mask: np.ndarray, wanted: Wanted, found: np.ndarray, connectivity: int = 8) -> np.ndarray:
    """Set in found, (H, W) bool, the pixels of a mask that lie in components which are wanted."""
    for band, marked in zip(_bands(mask), _components(mask, wanted, connectivity), strict=True):
        found[band] |= marked
    return found


def _components(mask: np.ndarray, wanted: Wanted, connectivity: int) -> Iterator[np.ndarray]:
    """The pixels of a mask (H, W) bool that lie in components which are wanted, in bands of rows from the top.

    Labels are four times as large as a mask, so those of more than one band are made twice: what touches across a seam
    is one component.
    """
    bands = _bands(mask)
    if len(bands) == 1:
        labels, areas, edges = _pieces(mask, connectivity)
        yield np.append(False, wanted(areas, ~edges.any(axis=0))).take(labels)
        return
    areas, edges, seams, starts, above = [], [], [], [0], np.full(mask.shape[1], -1)
    for band in bands:
        labels, area, (top, bottom, side) = _pieces(mask[band], connectivity)
        areas.append(area)
        edges.append(side | (top & (band is bands[0])) | (bottom & (band is bands[-1])))
        seams.append(_seam(above, _numbers(labels[0], starts[-1]), connectivity))
        above = _numbers(labels[-1], starts[-1])
        starts.append(starts[-1] + len(area))
    whole = _joined(np.concatenate(seams), starts[-1])
    inner = np.bincount(whole, np.concatenate(edges)) == 0
    kept = wanted(np.bincount(whole, np.concatenate(areas)), inner)[whole]
    for band, first, end in zip(bands, starts, starts[1:], strict=False):
        yield np.append(False, kept[first:end]).take(_pieces(mask[band], connectivity)[0])


def _bands(mask: np.ndarray) -> list[slice]:
    """The rows whose components are found at once; at least one."""
    rows = max(1, BAND // max(1, mask.shape[1]))
    return [slice(top, min(top + rows, len(mask))) for top in range(0, max(1, len(mask)), rows)]


def _pieces(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (H, W) int32 of n components, their areas (n,), and (3, n) whether they touch top, bottom or a side."""
    _, labels, facts, _ = cv2.connectedComponentsWithStats(_bytes(mask), connectivity=connectivity)
    left, top, width, height, area = facts[1:].T  # the first is the ground
    sides = (left == 0) | (left + width == mask.shape[1])
    return labels, area, np.stack([top == 0, top + height == mask.shape[0], sides])


def _numbers(labels: np.ndarray, start: int) -> np.ndarray:
    """(W,) labels of one band → the places of their components among those of all, or −1."""
    return np.where(labels > 0, labels.astype(np.int64) + start - 1, -1)


def _seam(above: np.ndarray, below: np.ndarray, connectivity: int) -> np.ndarray:
    """The pairs of components that touch between two rows (W,), each once, (n, 2) int64."""
    wide, shifts = np.pad(below, 1, constant_values=-1), (-1, 0, 1) if connectivity == 8 else (0,)
    pairs = np.concatenate([np.stack([above, wide[1 + by : len(above) + 1 + by]], axis=1) for by in shifts])
    return np.unique(pairs[(pairs >= 0).all(axis=1)], axis=0)


def _joined(pairs: np.ndarray, count: int) -> np.ndarray:
    """(count,) which component each of so many pieces belongs to, by the pairs (n, 2) that touch."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), dtype=bool), tuple(pairs.T)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1])


def _labels(mask: np.ndarray) -> np.ndarray:
    """(H, W) int32, the number of each component, 0 outside."""
    return np.asarray(cv2.connectedComponents(_bytes(mask), connectivity=8)[1], dtype=np.int32)


def _bytes(mask: np.ndarray) -> np.ndarray:
    """A mask as OpenCV reads it."""
    return np.ascontiguousarray(mask).view(np.uint8)


def _numbered(labels: np.ndarray, least: float) -> np.ndarray:
    """Labels of the objects of at least so many pixels, numbered anew from 1 without gaps, int32."""
    areas = np.bincount(labels.ravel(), minlength=1)
    keep = (areas >= least) & (areas > 0)
    keep[0] = False
    numbers: np.ndarray = (np.cumsum(keep) * keep).astype(np.int32)
    return numbers.take(labels)


def _each(name: str, value: Numbers, count: int) -> list[float]:
    """A number for each of so many classes, from one number or a list of as many."""
    if isinstance(value, (int, float)):
        return [float(value)] * count
    if len(value) != count:
        raise UserError(f"{name} is a list of {len(value)}, but there are {count} classes for it; give one for each")
    return [float(one) for one in value]
