"""Rows to learn from, and the loader that turns them into batches: in order, augmented and prefetched by threads.

Everything drawn at random is drawn from (seed, epoch, row), never from a stream, so that a run that is killed and goes
on in mid-epoch sees exactly the batches it would have seen.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from pipeline import ranks, registry
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.hardware import physical_cores
from pipeline.images import Images
from pipeline.parts import augments
from pipeline.rules import consistent

SIZE, POOL = 1, 3  # tell the draws of a batch's size and of a pool's order from the other draws of a step
CPU = torch.device("cpu")


@dataclass
class Table:
    """The rows that a member learns from.

    rows: (N,) int64, places in the joined images (train, then test). targets: (N,) int64 or (N, C) float32, as the
    task makes them. weights: (N,) float32. soft: (N, C) float32 soft labels of a teacher, or None; share: (N,) float32,
    the part of the loss that is distilled from them. Where images come with planes, targets and soft are rows too.
    pool: (M,) int64, places in the joined images of those of which two views are to agree, whoever labelled them; None
    where no consistency asks for them. It stays behind where rows are taken.
    """

    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    soft: np.ndarray | None = None
    share: np.ndarray | None = None
    pool: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: np.ndarray) -> Table:
        """The rows at these places."""
        return Table(*(None if part is None else part[places] for part in self._parts()))

    def join(self, other: Table) -> Table:
        """This table with another below it."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        return Table(*(None if a is None or b is None else np.concatenate([a, b]) for a, b in pairs))

    def _parts(self) -> tuple[Any, ...]:
        return self.rows, self.targets, self.weights, self.soft, self.share


@dataclass
class Batch:
    """A batch on the device: images (B, C, H, W) uint8 in channels_last; the rest as in ``Table``.

    With augment=several() images are (V·B, C, H, W), one view of all rows after the other. targets and soft may be
    planes (B, P, H, W) uint8, see ``forms.levels``.
    size: side in pixels at which the network is to see it; 0: as it is. total: what the weights of a whole batch come
    to for each of the processes that share it; 0: this is the whole. pool: (2U, C, H, W) uint8, the weak views of U
    more images, then their strong views; done: the share of the training that lies before this batch, 0–1.
    """

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    soft: torch.Tensor | None = None
    share: torch.Tensor | None = None
    size: int = 0
    total: float = 0.0
    pool: torch.Tensor | None = None
    done: float = 0.0

    def to(self, device: torch.device) -> Batch:
        """The batch on another device, without waiting for the copy where it is pinned."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pinned(self, device: torch.device) -> Batch:
        """The batch in memory that a GPU fetches by itself, if that is where it goes; see ``pinned``."""
        return self._each(lambda part: pinned(part, device)) if device.type == "cuda" else self

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        names = ("images", "targets", "weights", "soft", "share", "pool")
        parts = {name: part for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **{name: function(part) for name, part in parts.items()})


class Joined:
    """Several image stores behind each other, addressed by one row number."""

    def __init__(self, stores: Sequence[Images]) -> None:
        self.stores = stores
        self.starts = np.cumsum([0, *(len(store) for store in stores)])

    def samples(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(n,) rows → (n, H, W, C) uint8, and no planes: the table knows the targets."""
        return self.take(rows), None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, H, W, C) uint8."""
        if len(self.stores) == 1 or (len(rows) and rows.max() < self.starts[1]):
            return self.stores[0].take(rows)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        parts = {int(w): self.stores[w].take(rows[which == w] - self.starts[w]) for w in np.unique(which)}
        images = np.empty((len(rows), *next(iter(parts.values())).shape[1:]), dtype=np.uint8)
        for store, part in parts.items():
            images[which == store] = part
        return images


class Source(Protocol):
    """What a loader takes images from, and planes where the targets are such: ``Joined``, or those of ``masked``.

    Where the table has soft labels, there are twice as many planes: the teacher's lie behind the targets.
    """

    def samples(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(n,) rows, (n,) seeds of what is drawn → (n, H, W, C) uint8 and (n, H, W, P) uint8 or None, fresh arrays."""


def draw(*numbers: int) -> np.random.Generator:
    """A generator that depends on these numbers alone."""
    return np.random.default_rng([int(number) for number in numbers])


def row_seeds(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """One seed a row in 0…2³²−1 from (seed, epoch, row), by the SplitMix64 finaliser (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(1 + epoch + (seed << 20))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) & np.uint64(0xFFFFFFFF)).astype(np.int64)


class Pool:
    """The rows of a table's pool in an order without end: all of them, then all of them in another order.

    count: how many of them lie beside each batch of a process.
    """

    def __init__(self, rows: np.ndarray, seed: int, count: int) -> None:
        self.rows, self.seed, self.count = rows, seed, count
        self.rank, self.processes = ranks.rank(), ranks.size()
        self.orders: dict[int, np.ndarray] = {}

    def beside(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(count,) rows beside a step, counted over all epochs, and (count,) seeds of what is drawn for them."""
        numbers = (step * self.processes + self.rank) * self.count + np.arange(self.count)
        rounds, places = np.divmod(numbers, len(self.rows))
        found = [(self.rows[self._order(one)[places[rounds == one]]], one) for one in np.unique(rounds).tolist()]
        seeds = [row_seeds(self.seed + POOL, one, rows) for rows, one in found]
        return np.concatenate([rows for rows, _ in found]), np.concatenate(seeds)

    def _order(self, number: int) -> np.ndarray:
        """The order of a round; the last two are kept."""
        if number not in self.orders:
            kept = {one: order for one, order in self.orders.items() if one == number - 1}
            self.orders = {**kept, number: draw(self.seed, number, 0, POOL).permutation(len(self.rows))}
        return self.orders[number]


class Loader:
    """Batches of a table, epoch by epoch; any step of any epoch can be the first.

    most: batches of an epoch, where it may not see all rows; 0: no limit. device: where they go. Where several
    processes train together, each makes an equal share of each batch, neighbours in the order of the rows.
    """

    def __init__(self, images: Source, table: Table, config: Config, most: int = 0, device: torch.device = CPU) -> None:
        self.images, self.table, self.seed, self.most, self.device = images, table, config.seed, most, device
        self.chances: list[np.ndarray] = []
        if registry.facts("samplers", config.sampler).get("weighs"):  # rows come as often as their weight says instead
            self.table, self.chances = replace(table, weights=np.ones_like(table.weights)), [table.weights]
        self.batch_size = min(config.batch_size, len(table))
        self.rank, self.processes = ranks.rank(), ranks.size()
        if self.batch_size % self.processes:
            raise UserError(
                f"there are {len(table)} rows to learn from, which devices={self.processes} cannot share evenly in one "
                f"batch; set batch_size={max(1, self.batch_size // self.processes) * self.processes}"
            )
        self.sampler = registry.build("samplers", config.sampler)
        self.sizes = registry.build("sizes", config.sizes)(config.image_size, config.epochs)
        self.transforms, self.further, self.changed = augments.parted(self.changes(config, config.augment))
        self.views = self.changed.stop
        self.epochs, self.pool, self.strong = config.epochs, None, list[Any]()
        if table.pool is not None and (beside := consistent(config)):
            count = max(1, round(beside["ratio"] * self.batch_size / self.processes))
            self.pool = Pool(table.pool, self.seed, count)
            self.strong = self.changes(config, beside["strong"])
        self.waited = 0.0

    def changes(self, config: Config, augment: str) -> list[Any]:
        """What an augment does to images."""
        return registry.build("augments", augment)(config.image_size)

    @property
    def steps(self) -> int:
        """Batches an epoch; an incomplete last one is left out, since its rows would weigh more."""
        whole = max(1, len(self.table) // self.batch_size)
        return min(whole, self.most) if self.most else whole

    def order(self, epoch: int) -> np.ndarray:
        """The places of the table's rows in this epoch."""
        return self.sampler(self.table.targets, *self.chances, draw(self.seed, epoch))

    def size(self, epoch: int, step: int) -> int:
        """The side in pixels of a batch, drawn from (seed, epoch, step); beyond the last epoch as in it."""
        allowed = self.sizes[min(epoch, len(self.sizes) - 1)]
        return allowed[int(draw(self.seed, epoch, step, SIZE).integers(len(allowed)))]

    def places(self, order: Any, step: int) -> Any:
        """Those of this process's share of a batch, from an epoch's order (or whatever lies in that order)."""
        share = self.batch_size // self.processes
        start = step * self.batch_size + self.rank * share
        return order[start : start + share]

    def further_seeds(self, seeds: Any, view: int) -> Any:
        """What a view draws from by itself; the rows' own seeds are for what is done alike to all views."""
        return seeds + ((view or self.views) << 32)

    def total(self, order: np.ndarray, step: int) -> float:
        """What the weights of a batch's rows come to for each process; 0 for one alone, which sums them itself."""
        whole = self.table.weights[order[step * self.batch_size : (step + 1) * self.batch_size]]
        return float(whole.sum()) / self.processes if self.processes > 1 else 0.0

    def facts(self, order: np.ndarray, epoch: int, step: int) -> dict[str, Any]:
        """What a batch says besides its rows."""
        done = (epoch * self.steps + step) / (self.epochs * self.steps)
        return {"size": self.size(epoch, step), "total": self.total(order, step), "done": done}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on, prepared ahead by a thread."""
        order = self.order(epoch)

        def batches() -> Iterator[Batch]:
            threads = max(1, physical_cores() // self.processes)
            with (
                _Augmenter(self.transforms, threads) as augment,
                _Augmenter(self.further, threads) as change,
                _Augmenter(self.strong, threads) as strengthen,
            ):
                for step in range(start, self.steps):
                    batch = self._batch(self.places(order, step), epoch, augment, change)
                    pool = self._pooled(epoch * self.steps + step, augment, strengthen)
                    yield replace(batch, pool=pool, **self.facts(order, epoch, step)).pinned(self.device)

        self.waited = 0.0
        for batch, waited in prefetch(batches()):
            self.waited += waited
            yield batch

    def _batch(self, places: np.ndarray, epoch: int, augment: _Augmenter, change: _Augmenter) -> Batch:
        part, seeds = self.table.take(places), row_seeds(self.seed, epoch, places)
        images, planes = self.images.samples(part.rows, seeds)
        augment(images, planes, seeds)
        if self.views > 1:  # each that is changed draws from seeds of its own, above the 32 bits of the rows'
            images = np.concatenate([images] * self.views)
            for view in self.changed:
                change(images[view * len(seeds) : (view + 1) * len(seeds)], None, self.further_seeds(seeds, view))
        targets, weights, soft, share = (None if p is None else torch.from_numpy(p) for p in part._parts()[1:])
        if planes is not None:
            targets = channels_first(planes)
        if planes is not None and soft is not None:  # the teacher's lie behind those of the truth
            targets, soft = targets.chunk(2, dim=1)
        return Batch(channels_first(images), targets, weights, soft, share)  # type: ignore[arg-type]

    def _pooled(self, step: int, augment: _Augmenter, strengthen: _Augmenter) -> torch.Tensor | None:
        """The weak and then the strong views beside a step; of images with planes a pixel keeps its place in both."""
        if self.pool is None:
            return None
        rows, seeds = self.pool.beside(step)
        weak, planes = self.images.samples(rows, seeds)
        strong = weak.copy()
        augment(weak, None, seeds)
        augment(strong, None, seeds if planes is not None else seeds + (1 << 32))
        strengthen(strong, None, seeds + (2 << 32))
        return channels_first(np.concatenate([weak, strong]))


class _Augmenter:
    """Augments a batch by so many threads; a sample's outcome depends on its seed alone."""

    def __init__(self, transforms: list[Any], threads: int) -> None:
        self.transforms, self.threads = transforms, threads
        self.local = threading.local()
        self.pool = ThreadPoolExecutor(self.threads) if transforms else None

    def __call__(self, images: np.ndarray, planes: np.ndarray | None, seeds: np.ndarray) -> None:
        """(n, H, W, C) uint8 and its planes (n, H, W, P) uint8, if any, changed in place; (n,) seeds."""
        if self.pool is None:
            return
        places = np.array_split(np.arange(len(images)), self.threads)
        shares = [(images[p], None if planes is None else planes[p], seeds[p]) for p in _slices(places)]
        list(self.pool.map(self._share, *zip(*shares, strict=True)))  # shares: to hand over single images costs more

    def _share(self, images: np.ndarray, planes: np.ndarray | None, seeds: np.ndarray) -> None:
        if not hasattr(self.local, "run"):
            self.local.run = augments.augmenter(self.transforms)
        for place, seed in enumerate(seeds.tolist()):
            if planes is None:
                images[place] = self.local.run(images[place], seed)
            else:
                images[place], planes[place] = self.local.run(images[place], seed, planes[place])

    def __enter__(self) -> _Augmenter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _slices(places: list[np.ndarray]) -> list[slice]:
    """Neighbouring rows as slices, so that what is changed is a view."""
    return [slice(int(part[0]), int(part[-1]) + 1) for part in places if len(part)]


def channels_first(images: np.ndarray) -> torch.Tensor:
    """(n, H, W, C) array → (n, C, H, W) tensor over the same memory: channels_last for free."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def pinned(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy in page-locked memory where the device is a GPU, which fetches it while the model computes.

    From other memory the copy holds up the thread that feeds the GPU.
    """
    return part.pin_memory() if device.type == "cuda" else part


def prefetch(items: Iterator[Any], depth: int = 3) -> Iterator[tuple[Any, float]]:
    """The items, made ahead by a thread, each with the seconds that were spent waiting for it."""
    ahead: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop, end = threading.Event(), object()

    def put(entry: tuple[Any, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ahead.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as fault:
            put((end, fault))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            began = time.perf_counter()
            item, fault = ahead.get()
            if fault is not None:
                raise fault
            if item is end:
                return
            yield item, time.perf_counter() - began
    finally:
        stop.set()
        thread.join()
