"""Writing pixels of many sizes into one file: images at their own size, planes to learn, predicted maps.

A file holds (H, W, C) uint8 arrays behind each other; their shapes stand beside it, written last, so that a file with
shapes is complete. ``maps.Ragged`` reads it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.artefacts import atomic, locked, shown
from pipeline.console import progress, say
from pipeline.hardware import physical_cores, return_memory
from pipeline.maps import Ragged

AHEAD = 8  # arrays that a build makes ahead of the one that is written, for each thread …
AHEAD_BYTES = 2**28  # … as long as they are no larger together
FREE_BYTES = 2**30  # disk space that a cache leaves for checkpoints and predictions


class Made:
    """(H, W, C) uint8 arrays by row, made at each call: what a set too large for the cache is read through."""

    def __init__(self, count: int, make: Callable[[int], np.ndarray]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, C) uint8, a fresh array."""
        return self.make(row)


class Writer:
    """Writes arrays behind each other; one may come in strips of rows."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.shapes: list[list[int]] = []

    def add(self, array: np.ndarray) -> None:
        """A whole (H, W, C) uint8 array."""
        self.strip(array, new=True)

    def strip(self, rows: np.ndarray, new: bool = False) -> None:
        """The next rows (h, W, C) uint8 of the array at hand; new: the first ones of the next array."""
        if new:
            self.shapes.append([0, *rows.shape[1:]])
        self.shapes[-1][0] += len(rows)
        self.handle.write(np.ascontiguousarray(rows).data)


@contextlib.contextmanager
def writer(path: Path) -> Iterator[Writer]:
    """A ``Writer`` whose file appears under its name only when it is complete."""
    with atomic(path) as handle:
        yield Writer(handle)


def build(
    place: Path, make: Callable[[int], np.ndarray], sizes: np.ndarray, label: str, limit_gb: float
) -> Ragged | Made:
    """The arrays that make(row) gives, kept in the folder place; made at each call where the disk has no room.

    make: from several threads at once. sizes: (N,) int64, the bytes of each. A killed build begins again.
    """
    count, expected = len(sizes), int(sizes.sum())
    known = _finished(place)
    if known is not None:
        return known
    if not 0 < expected <= limit_gb * 1e9 or not _has_room(place, expected):
        return Made(count, make)
    with locked(place):
        known = _finished(place)  # another process may have made it meanwhile
        if known is None:
            say(f"{label}: {count:,} into {shown(place)} ({expected / 1e6:.1f} MB)")
            with writer(place / "pixels.bin") as out, progress(label, count) as advance:
                for array in _in_order(make, sizes):
                    out.add(array)
                    large = array.nbytes > AHEAD_BYTES
                    del array  # before the next one is made
                    if large:
                        return_memory()
                    advance(1)
            with atomic(place / "shapes.npy") as handle:
                np.save(handle, np.array(out.shapes, dtype=np.int64).reshape(-1, 3))
            known = _finished(place)
    assert known is not None
    return known


def _finished(place: Path) -> Ragged | None:
    try:
        return Ragged(place / "pixels.bin", np.load(place / "shapes.npy", allow_pickle=False))
    except (OSError, ValueError, EOFError):  # not there, or damaged: made anew
        return None


def _has_room(place: Path, needed: int) -> bool:
    existing = next(parent for parent in (place, *place.parents) if parent.is_dir())
    return needed + FREE_BYTES <= shutil.disk_usage(existing).free


def _in_order(make: Callable[[int], np.ndarray], sizes: np.ndarray) -> Iterator[np.ndarray]:
    """make(0), make(1), …, a few of them ahead on all cores, as long as they are small together."""
    largest = int(sizes.max(initial=1))
    threads = max(1, min(physical_cores(), os.cpu_count() or 1, AHEAD_BYTES // largest))
    ahead = min(AHEAD * threads, AHEAD_BYTES // largest)
    if not ahead:
        yield from map(make, range(len(sizes)))
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[np.ndarray]] = []
        try:
            for row in range(len(sizes)):
                waiting.append(pool.submit(make, row))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)
