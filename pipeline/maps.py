"""Predicted maps: a probability for each pixel of each image, read one image at a time.

Values of the spatial forms (``pipeline/forms.py``) are such sequences. On the disk a map is uint8, at the size that the
network worked at; whoever reads it gets it at its image's own size. A map of floats is four times as large as its
image is in grey, so what may meet an image of gigapixels reads ``bands``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.pictures import opencv

SUFFIX = ".maps"  # of the pixels beside a file of predictions
BAND = 2**22  # values of a band of rows


def bands_of(columns: int, height: int, width: int) -> list[slice]:
    """The rows of each band of a map (columns, height, width), from the top; one band where the map is small."""
    step = max(1, BAND // max(1, columns * width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def joined(bands: Iterable[np.ndarray]) -> np.ndarray:
    """Bands (C, h, W) → the map (C, H, W)."""
    parts = list(bands)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class Ragged:
    """(H, W, C) uint8 arrays of many sizes behind each other in a file, by row; shapes: (N, 3) int64.

    Read by memory map. ValueError where the file is missing or has another size than its shapes say.
    """

    def __init__(self, path: Path, shapes: np.ndarray) -> None:
        self.path, self.shapes = path, np.asarray(shapes, dtype=np.int64).reshape(-1, 3)
        self.ends = np.cumsum(self.shapes.prod(axis=1))
        size = path.stat().st_size if path.is_file() else -1
        if size != (self.ends[-1] if len(self.ends) else 0):
            raise ValueError(f"{path.name} is missing or cut short")

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, C) uint8, a view of the file."""
        shape, end = self.shapes[row], int(self.ends[row])
        return self._map[end - int(shape.prod()) : end].reshape(tuple(shape.tolist()))

    def rows(self, row: int, part: slice) -> np.ndarray:
        """(h, W, C) uint8, some rows of an array, read from the file: pages of a memory map would stay in memory."""
        height, width, channels = self.shapes[row].tolist()
        start = int(self.ends[row]) - (height - part.start) * width * channels
        count = (part.stop - part.start) * width * channels
        return np.fromfile(self.path, np.uint8, count, offset=start).reshape(-1, width, channels)

    @cached_property
    def _map(self) -> np.ndarray:
        if not len(self.ends) or not self.ends[-1]:
            return np.zeros(0, dtype=np.uint8)
        return np.memmap(self.path, np.uint8, "r").view(np.ndarray)


class Maps(ABC):
    """Maps of N images by row. columns: C. cut: how they become answers, where a level 2 has decided; else empty."""

    columns: int
    cut: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def one(self, row: int) -> np.ndarray:
        """(C, H, W) float32 in 0…1, at the image's own size."""

    def bands(self, row: int) -> Iterator[np.ndarray]:
        """The same as (C, h, W), rows from the top; one band where the map is small."""
        whole = self.one(row)
        yield from (whole[:, part] for part in bands_of(*whole.shape))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return len(self), self.columns

    def __getitem__(self, rows: np.ndarray) -> Maps:
        """The maps of these rows, or of those marked True."""
        rows = np.asarray(rows)
        return Taken(self, np.flatnonzero(rows) if rows.dtype == bool else rows)


@dataclass(frozen=True)
class Geometry:
    """How a stored map lies in its image: resize "stretch", "pad" or "crop" of ``images.decode``; "" is the whole."""

    resize: str = ""

    def own_size(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        """(h, w, C) at the network's size → (height, width, C), bilinear; what a crop left out is 0."""
        if self.resize == "pad":
            rows, columns, top, left = self.inner(len(pixels), height, width)
            pixels = pixels[top : top + rows, left : left + columns]
        if self.resize == "crop":
            side = min(height, width)
            whole = np.zeros((height, width, pixels.shape[2]), dtype=pixels.dtype)
            top, left = (height - side) // 2, (width - side) // 2
            whole[top : top + side, left : left + side] = _scaled(pixels, side, side)
            return whole
        return _scaled(pixels, height, width)

    @staticmethod
    def inner(size: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Rows, columns, top and left of the part of a padded square that holds the image."""
        long = max(height, width)
        rows, columns = max(1, round(height * size / long)), max(1, round(width * size / long))
        return rows, columns, (size - rows) // 2, (size - columns) // 2


def _scaled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    scaled = opencv().resize(np.ascontiguousarray(pixels), (width, height), interpolation=opencv().INTER_LINEAR)
    return scaled.reshape(height, width, pixels.shape[2])


class Stored(Maps):
    """Maps in a file. sizes: (N, 2) int64, the (height, width) of each image."""

    def __init__(self, pixels: Any, sizes: np.ndarray, geometry: Geometry, columns: int, cut: str = "") -> None:
        self.pixels, self.sizes, self.geometry, self.columns, self.cut = pixels, sizes, geometry, columns, cut

    def __len__(self) -> int:
        return len(self.sizes)

    def one(self, row: int) -> np.ndarray:
        return joined(self.bands(row))

    def bands(self, row: int) -> Iterator[np.ndarray]:
        height, width = (int(side) for side in self.sizes[row])
        parts, pixels = bands_of(self.columns, height, width), self.pixels
        if len(parts) > 1 and isinstance(pixels, Ragged) and pixels.shapes[row, :2].tolist() == [height, width]:
            yield from (_floats(pixels.rows(row, part)) for part in parts)
            return
        found = self.geometry.own_size(np.asarray(pixels[row]), height, width)
        yield from (_floats(found[part]) for part in parts)


def _floats(pixels: np.ndarray) -> np.ndarray:
    """(h, W, C) uint8 → (C, h, W) float32 in 0…1."""
    found: np.ndarray = np.divide(pixels.transpose(2, 0, 1), np.float32(255), order="C", dtype=np.float32)
    return found


class Taken(Maps):
    """Some rows of other maps."""

    def __init__(self, maps: Maps, rows: np.ndarray) -> None:
        self.maps, self.rows, self.columns, self.cut = maps, rows, maps.columns, maps.cut

    def __len__(self) -> int:
        return len(self.rows)

    def one(self, row: int) -> np.ndarray:
        return self.maps.one(int(self.rows[row]))

    def bands(self, row: int) -> Iterator[np.ndarray]:
        return self.maps.bands(int(self.rows[row]))


class Chained(Maps):
    """Maps of several files, one behind the other."""

    def __init__(self, parts: Sequence[Maps]) -> None:
        self.parts, self.columns = list(parts), parts[0].columns
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def one(self, row: int) -> np.ndarray:
        which, place = self._place(row)
        return self.parts[which].one(place)

    def bands(self, row: int) -> Iterator[np.ndarray]:
        which, place = self._place(row)
        return self.parts[which].bands(place)

    def _place(self, row: int) -> tuple[int, int]:
        which = int(np.searchsorted(self.starts, row, side="right")) - 1
        return which, row - int(self.starts[which])


class Voted(Maps):
    """Answers of several members, cut alone and then averaged: the share of members that see each class in each pixel.

    cut_of: maps, a row → its answer as planes (C, H, W) of 0 and 1, fresh, bool or uint8. cut: how the shares become
    one answer.
    """

    def __init__(self, members: Sequence[Maps], cut_of: Callable[[Maps, int], np.ndarray], cut: str) -> None:
        self.members, self.cut_of, self.cut, self.columns = list(members), cut_of, cut, members[0].columns

    def __len__(self) -> int:
        return len(self.members[0])

    def one(self, row: int) -> np.ndarray:
        return joined(self.bands(row))

    def bands(self, row: int) -> Iterator[np.ndarray]:
        votes = self.cut_of(self.members[0], row).view(np.uint8)
        for member in self.members[1:]:
            votes += self.cut_of(member, row).view(np.uint8)
        share = np.float32(len(self.members))
        yield from (np.divide(votes[:, part], share, dtype=np.float32) for part in bands_of(*votes.shape))


class Mean(Maps):
    """The weighted mean of several maps of the same images, pixel by pixel."""

    def __init__(self, members: Sequence[Maps], weights: Sequence[float] | None = None, cut: str = "") -> None:
        self.members, self.columns, self.cut = list(members), members[0].columns, cut
        given = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=np.float64)
        self.weights = (given / given.sum()).astype(np.float32)

    def __len__(self) -> int:
        return len(self.members[0])

    def one(self, row: int) -> np.ndarray:
        return joined(self.bands(row))

    def bands(self, row: int) -> Iterator[np.ndarray]:
        counted = np.flatnonzero(self.weights).tolist()
        weights = self.weights[counted].tolist()
        for parts in zip(*(self.members[place].bands(row) for place in counted), strict=True):
            yield _sum(parts, weights)


def _sum(parts: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    found = weights[0] * parts[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        found += weight * part
    return found
