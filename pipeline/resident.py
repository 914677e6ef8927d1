"""A loader whose images lie on the device: batches are gathered there and augmented there, each as a whole.

What is drawn for a row comes from (seed, epoch, row), as in ``data``, by other generators: the augmentations have the
same distribution as in the loader with threads, and other outcomes. So the loader is a part of what defines a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline import batched
from pipeline.config import Config
from pipeline.data import Batch, Loader, Source, Table, row_seeds
from pipeline.hardware import Hardware
from pipeline.parts import augments

CHUNK_BYTES = 2**26  # of images that are read at a time on their way to the device


def loader(
    images: Source, table: Table, config: Config, machine: Hardware, device: torch.device, most: int = 0
) -> Loader:
    """The loader that the run's hardware says, for batches that go to this device."""
    kind = DeviceLoader if machine.loader == "device" else Loader
    return kind(images, table, config, most, device)


class DeviceLoader(Loader):
    """See ``data.Loader``. The source gives a row the same pixels each time, so that it is read once.

    pixels: (M, H, W, C) uint8, of the table's different rows; planes: (M, H, W, P) uint8 or None; both on the device,
    as is all that the table holds. An epoch sends its order there, then nothing goes to the device or comes from it.
    """

    def __init__(self, images: Source, table: Table, config: Config, most: int, device: torch.device) -> None:
        super().__init__(images, table, config, most, device)
        rows = self.table.rows if self.pool is None else np.concatenate([self.table.rows, self.pool.rows])
        self.rows = np.unique(rows)
        self.pixels, self.planes = self._read(self.rows)
        self.where = self._sent(np.searchsorted(self.rows, self.table.rows))
        self.parts = [self._sent(part) for part in self.table._parts()[1:]]

    def changes(self, config: Config, augment: str) -> list[Any]:
        """What an augment does to batches."""
        return augments.batched(augment, config.image_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on; ``waited`` is the time it takes to ask for them."""
        order = self.order(epoch)
        seeds = self._sent(row_seeds(self.seed, epoch, order))
        places = self._sent(np.ascontiguousarray(order, dtype=np.int64))
        self.waited = 0.0
        for step in range(start, self.steps):
            began = time.perf_counter()
            batch = self._gathered(self.places(places, step), self.places(seeds, step))
            batch = replace(batch, pool=self._paired(epoch * self.steps + step), **self.facts(order, epoch, step))
            self.waited += time.perf_counter() - began
            yield batch

    def _gathered(self, places: torch.Tensor, seeds: torch.Tensor) -> Batch:
        where = self.where[places]
        images, planes = self.pixels[where], None if self.planes is None else self.planes[where]
        images, planes = batched.changed(self.transforms, images, planes, seeds)
        if self.views > 1:
            each = [images] * self.views
            for view in self.changed:
                each[view] = batched.changed(self.further, images, None, self.further_seeds(seeds, view))[0]
            images = torch.cat(each)
        targets, weights, soft, share = (None if part is None else part[places] for part in self.parts)
        if planes is not None:
            targets = planes.permute(0, 3, 1, 2)
        if planes is not None and soft is not None:  # the teacher's lie behind those of the truth
            targets, soft = targets.chunk(2, dim=1)
        return Batch(images.permute(0, 3, 1, 2), targets, weights, soft, share)  # type: ignore[arg-type]

    def _paired(self, step: int) -> torch.Tensor | None:
        """As ``Loader._pooled``, from the images that lie here."""
        if self.pool is None:
            return None
        rows, numbers = self.pool.beside(step)
        images, seeds = self.pixels[self._sent(np.searchsorted(self.rows, rows))], self._sent(numbers)
        others = seeds if self.planes is not None else seeds + (1 << 32)
        weak, strong = (batched.changed(self.transforms, images, None, own)[0] for own in (seeds, others))
        strong, _ = batched.changed(self.strong, strong, None, seeds + (2 << 32))
        return torch.cat([weak, strong]).permute(0, 3, 1, 2)

    def _read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images of rows, and their planes if there are any, on the device, sent as they are read."""
        nothing = np.zeros(len(rows), dtype=np.int64)  # is drawn of where a whole image lies
        first = self.images.samples(rows[:1], nothing[:1])
        count = max(1, CHUNK_BYTES // first[0].nbytes)
        pixels, planes = (None if one is None else self._room(len(rows), one) for one in first)
        assert pixels is not None
        for start in range(0, len(rows), count):
            part = slice(start, start + count)
            for whole, read in zip((pixels, planes), self.images.samples(rows[part], nothing[part]), strict=True):
                if whole is not None and read is not None:
                    whole[part] = torch.from_numpy(read)
        return pixels, planes

    def _room(self, count: int, like: np.ndarray) -> torch.Tensor:
        return torch.empty((count, *like.shape[1:]), dtype=torch.uint8, device=self.device)

    def _sent(self, part: np.ndarray | None) -> torch.Tensor | None:
        return None if part is None else torch.from_numpy(part).to(self.device)
