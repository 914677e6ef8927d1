"""Windows over an image that is larger than a network's input, joined smoothly strip by strip; and crops to train on.

The whole way of an image (H, W): ``shape = window_shape(H, W, size, multiple)``; ``whole = pad(image, *shape)``; the
tiles ``cut(whole, corner, shape)`` of each of ``windows(H, W, shape, overlap)`` go through the network in that order,
their probabilities (n, C, *shape) into ``Strips.add``, and its writer gets finished rows as uint8, from the top down.
Memory does not grow with the height: sums of one row of windows are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline import rle

Shape = tuple[int, int]
Write = Callable[[int, np.ndarray], None]  # (the first row, (C, rows, W) uint8)
BORDERS = ("hann", "pyramid", "flat")
LEAST = 1e-3  # of a window's weight along a side, so that no pixel is lost in rounding


# --- where the windows lie ----------------------------------------------------------------------------------------


def window_shape(height: int, width: int, size: int, multiple: int = 1) -> Shape:
    """The window for an image: size × size, or where a side of it is shorter, that side up to the next multiple.

    size: a multiple of multiple, what a network's sides must be multiples of. ValueError if it is not.
    """
    if size < 1 or size % multiple:
        raise ValueError(f"windows of {size} px, but the network takes multiples of {multiple}")
    return min(size, _up(height, multiple)), min(size, _up(width, multiple))


def pad(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """An image (H, W) or (H, W, C) with at least so many rows and columns, mirrored beyond its lower right."""
    more = max(0, rows - image.shape[0]), max(0, columns - image.shape[1])
    if not any(more):
        return image
    return np.pad(image, [(0, more[0]), (0, more[1]), (0, 0)][: image.ndim], mode="reflect")


def windows(height: int, width: int, shape: Shape, overlap: float) -> np.ndarray:
    """The corners (top, left) of windows that cover an image, (n, 2) int64, row by row.

    shape: (rows, columns) of a window; a side longer than the image's gives one window, which is for a padded image.
    overlap: the least share of a window's side that it has in common with the next, 0 to below 1. The last ones are
    shifted inside.
    """
    tops, lefts = (starts(side, own, overlap) for side, own in zip((height, width), shape, strict=True))
    return np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)


def starts(side: int, window: int, overlap: float) -> np.ndarray:
    """Where windows begin along a side, ascending, (n,) int64; see ``windows``."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}; allowed: 0 to below 1")
    step = max(1, int(window * (1 - overlap)))
    last = max(0, side - window)
    return np.minimum(np.arange(0, last + step, step, dtype=np.int64), last)


def cut(image: np.ndarray, corner: Sequence[int] | np.ndarray, shape: Shape) -> np.ndarray:
    """The window of an image (H, W) or (H, W, C), a view of it."""
    top, left = (int(place) for place in corner)
    return image[top : top + shape[0], left : left + shape[1]]


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


# --- what the windows say, joined ---------------------------------------------------------------------------------


def weights(length: int, border: str = "hann") -> np.ndarray:
    """How much each place along a window's side counts, (length,) float32, above 0 and at most 1, symmetric.

    border: "hann", a cosine; "pyramid", a straight slope from the middle; "flat", all alike.
    """
    if border not in BORDERS:
        raise ValueError(f"border={border}; allowed: {', '.join(BORDERS)}")
    places = (np.arange(length) + 0.5) / length
    shapes = {"hann": np.sin(np.pi * places) ** 2, "pyramid": 1 - np.abs(2 * places - 1), "flat": np.ones(length)}
    return np.maximum(shapes[border], LEAST).astype(np.float32)


class Strips:
    """Joins what a network says of the windows of one image, and writes each row as soon as no window can change it.

    height, width: of the image. shape, overlap: of its windows, as given to ``windows``. write: called with the first
    row and (C, rows, width) uint8, 255 for certain, rows from the top down without a gap. border: see ``weights``.
    A pixel's value is the mean of its windows', weighed by its place in each.
    """

    def __init__(
        self, height: int, width: int, shape: Shape, overlap: float, write: Write, border: str = "hann"
    ) -> None:
        self.height, self.width, self.shape, self.write = height, width, shape, write
        self.corners = windows(height, width, shape, overlap).tolist()
        along = [weights(own, border) for own in shape]
        self.weight = along[0][:, None] * along[1]
        self.totals = [
            _total(starts(side, own, overlap), one)
            for side, own, one in zip((height, width), shape, along, strict=True)
        ]
        self.sums = np.zeros((0, 0, 0), dtype=np.float32)  # (C, rows of a window, columns), of the rows from top on
        self.top = self.done = 0

    def add(self, values: np.ndarray) -> None:
        """values: (n, C, *shape) in 0…1 of the next n windows; ValueError for other shapes and more than there are."""
        if values.ndim != 4 or values.shape[2:] != self.shape or self.done + len(values) > len(self.corners):
            raise ValueError(
                f"values of shape {values.shape} for {len(self.corners) - self.done} windows that are left, each "
                f"{self.shape[0]} × {self.shape[1]}"
            )
        if not self.done:
            self.sums = np.zeros((values.shape[1], self.shape[0], len(self.totals[1])), dtype=np.float32)
        for one, (top, left) in zip(values, self.corners[self.done :], strict=False):
            self._finish(top)
            self.sums[:, :, left : left + self.shape[1]] += one * self.weight
        self.done += len(values)
        if self.done == len(self.corners):
            self._finish(self.height)

    def close(self) -> None:
        """ValueError if windows are missing."""
        if self.done < len(self.corners):
            raise ValueError(f"{self.done} of {len(self.corners)} windows were given")

    def _finish(self, top: int) -> None:
        """Write the rows above top, and make room for as many below."""
        count = min(top, self.height) - self.top
        if count <= 0:
            return
        total = self.totals[0][self.top : top, None] * self.totals[1][: self.width]
        mean = self.sums[:, :count, : self.width] / total[:count]
        self.write(self.top, np.rint(mean.clip(0, 1) * 255).astype(np.uint8))
        self.sums[:, :-count] = self.sums[:, count:]
        self.sums[:, -count:] = 0
        self.top = top


def _total(begins: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sum of the windows' weights at each place along a side, float32."""
    total = np.zeros(int(begins[-1]) + len(weight))
    for begin in begins.tolist():
        total[begin : begin + len(weight)] += weight
    return total.astype(np.float32)


# --- crops to train on --------------------------------------------------------------------------------------------


def random_crop(generator: np.random.Generator, height: int, width: int, shape: Shape) -> tuple[int, int]:
    """The corner (top, left) of a crop, every place alike; 0 along a side that is no longer than the crop's."""
    spare = (max(0, height - shape[0]), max(0, width - shape[1]))
    return int(generator.integers(spare[0] + 1)), int(generator.integers(spare[1] + 1))


def balanced_crop(
    generator: np.random.Generator,
    height: int,
    width: int,
    shape: Shape,
    foreground: Sequence[np.ndarray],
    share: float = 0.5,
) -> tuple[int, int]:
    """The corner of a crop which has, with the chance share, a random pixel of a random class in its middle.

    foreground: of each class or object its runs by rows, as ``foreground_runs`` gives them. Near the image's border
    the pixel is not in the middle, but inside. As ``random_crop`` where there is no foreground.
    """
    classes = [runs for runs in foreground if len(runs)]
    if not classes or generator.random() >= share:
        return random_crop(generator, height, width, shape)
    runs = classes[int(generator.integers(len(classes)))]
    ends = np.cumsum(runs[:, 1])
    place = int(generator.integers(ends[-1]))
    run = int(np.searchsorted(ends, place, side="right"))
    row, column = divmod(int(runs[run].sum() - (ends[run] - place)), width)
    return _around(row, height, shape[0]), _around(column, width, shape[1])


def foreground_runs(truth: np.ndarray) -> list[np.ndarray]:
    """The runs, by rows, of each class or object of one image's truth that is there.

    truth: bits (C, H, W) or indices (H, W), uint8, or labels (H, W), int32, as pipeline/masks.py has them; the ground
    and void are not foreground.
    """
    if truth.ndim == 3:
        found = [rle.runs(plane == 1, "row") for plane in truth]
        return [runs for runs in found if len(runs)]
    void = 255 if truth.dtype == np.uint8 else -1
    return [rle.runs(truth == value, "row") for value in np.unique(truth).tolist() if value not in (0, void)]


def _around(middle: int, side: int, window: int) -> int:
    """Where a window along a side begins that has a place in its middle, as far as it fits."""
    return min(max(0, middle - window // 2), max(0, side - window))
