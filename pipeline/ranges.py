"""Trials over a range, on a fresh member of fold 0: learning rates (stage=find_lr), batch sizes (stage=find_batch).

Both take the steps of ``engine.fit``: its table, augmentation, mix, loss, optimizer, gradients and number format. The
range test is the same for the same settings; the batch sizes are timed, and so belong to the machine.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import console, engine, hardware, resident, training
from pipeline.checks import Bench
from pipeline.config import replace
from pipeline.data import Batch, Loader
from pipeline.errors import UserError
from pipeline.hardware import Hardware
from pipeline.runs import Run
from pipeline.tasks import task_for

LOW, HIGH = 1e-6, 10.0  # learning rates; every optimizer's useful ones lie between
STEPS, FEWEST = 100, 30  # of the range test; two epochs if these are fewer steps, but never below FEWEST
WIDTH = 0.2  # of the smoothing, in powers of ten
DIVERGED = 4.0  # the test ends where the loss is so many times its minimum
LEAST_FALL = 0.05  # of the loss at the start; a curve that falls less suggests nothing

SMALLEST, LARGEST = 8, 512  # batch sizes; on a GPU up to its memory
WARM, TIMED = 3, 10  # steps of each batch size
SLOWER = 0.95  # two sizes in a row below this share of the best speed: the larger ones are not tried
NEAR = 0.9  # the knee is the smallest batch with this share of the best speed

clock: Callable[[], float] = time.perf_counter


class Trial:
    """Member 0 as training starts it, and the batches that it would see."""

    def __init__(self, run: Run) -> None:
        config = self.config = run.config
        self.machine = machine = Hardware(**run.machine())
        hardware.start(machine)
        task = task_for(config, run.competition)
        self.table, self.images, _ = training.materials(run, task, (0,))
        self.bench = Bench(run, task, machine, training.counts_of(self.table, task))
        self.bench.start()
        self.initial = [options["lr"] for options in self.bench.optimizer.param_groups]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.bench.fabric.device

    def loader(self, batch_size: int) -> Loader:
        """The training loader with another batch size."""
        config = replace(self.config, batch_size=batch_size)
        return resident.loader(self.images, self.table, config, self.machine, self.device)

    def scale(self, factor: float) -> None:
        """The learning rates as they were at the start, times a factor."""
        for options, lr in zip(self.bench.optimizer.param_groups, self.initial, strict=True):
            options["lr"] = lr * factor

    def step(self, batches: Iterator[tuple[Batch, Any]]) -> torch.Tensor:
        """One optimizer step over as many batches as training takes; returns the mean loss before it."""
        bench, size = self.bench, self.config.train.accumulate
        scaler = getattr(bench.fabric.strategy.precision, "scaler", None)
        bench.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for batch, generator in itertools.islice(batches, size):
            loss = bench.module(batch.to(self.device), generator)
            bench.fabric.backward(loss / size)
            total += loss.detach()
        engine.clip(bench.fabric, bench.module, bench.optimizer, self.config.train)
        engine._optimizer_step(bench.optimizer, scaler)
        return total / size


def walk(loader: Loader, seed: int) -> Generator[tuple[Batch, Any], None, None]:
    """The batches of epoch after epoch, each with the generator that training would give it."""
    for epoch in itertools.count():
        for step, batch in enumerate(loader.epoch(epoch)):
            yield batch, engine._seed(seed, epoch, step)


# --- learning rates -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A range test: (n,) learning rates, the (n,) losses before each step, and whether the loss ran away."""

    rates: np.ndarray
    losses: np.ndarray
    diverged: bool

    @property
    def width(self) -> float:
        """Of the smoothing, in steps."""
        return width(self.rates)

    @property
    def smooth(self) -> np.ndarray:
        """(n,) smoothed losses; what ran away at the end counts only as far as the limit, lest it reach backwards."""
        return smoothed(np.minimum(self.losses, limit(smoothed(self.losses, self.width))), self.width)


def lr_range(run: Run, low: float = LOW, high: float = HIGH) -> Curve:
    """Smith 2017, sec. 3.3: training steps while the learning rate grows geometrically, until the loss runs away."""
    run = Run(replace(run.config, lr=1.0), run.name)  # so that the curve is the same whatever lr is set now
    trial = Trial(run)
    loader = trial.loader(run.config.batch_size)
    two_epochs = 2 * loader.steps // run.config.train.accumulate
    rates = np.geomspace(low, high, min(STEPS, max(FEWEST, two_epochs)))
    losses: list[float] = []
    with (
        contextlib.closing(walk(loader, run.config.seed)) as batches,
        console.progress("find_lr", len(rates)) as advance,
    ):
        for rate in rates:
            trial.scale(rate)
            loss = float(trial.step(batches))
            if not math.isfinite(loss):
                break
            losses.append(loss)
            advance(1, f"loss {loss:.4f}")
            path = smoothed(np.array(losses), width(rates))
            if path[-1] > limit(path):
                break
    if not losses:
        raise UserError("the loss is not finite before the first step; ./run.sh stage=sanity says more")
    diverged = len(losses) < len(rates) or bool(path[-1] > limit(path))
    return Curve(rates[: len(losses)], np.array(losses), diverged)


def width(rates: np.ndarray) -> float:
    """WIDTH in steps between these learning rates, at least one step."""
    step = math.log10(rates[1] / rates[0]) if len(rates) > 1 else WIDTH
    return WIDTH / min(step, WIDTH) if step > 0 else 1.0


def smoothed(losses: np.ndarray, width: float) -> np.ndarray:
    """(n,) losses → their means under a Gaussian of this deviation in steps, cut at the ends of the curve."""
    steps = np.arange(len(losses))
    kernel = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    return kernel @ losses / kernel.sum(axis=1)


def limit(smooth: np.ndarray) -> float:
    """The loss at which a test has diverged: DIVERGED times its minimum.

    A minimum near zero counts as a tenth of the first loss, or noise would end the test; below zero, where some losses
    go, the distance from the minimum counts.
    """
    low = float(smooth.min())
    return low + (DIVERGED - 1) * max(abs(low), 0.1 * abs(float(smooth[0])))


def suggestion(curve: Curve) -> dict[str, float]:
    """The learning rates of the steepest descent, of the minimum, and a tenth of that; empty if nothing fell.

    The steepest point is that of the smoothed loss over log lr, between the minimum and the last step before it that
    had not lost a quarter of the fall: further left a steep step is noise.
    """
    smooth, rates = curve.smooth, curve.rates
    lowest = int(smooth.argmin())
    if lowest < 2:
        return {}
    noise = float(np.std((curve.losses - smooth)[: lowest + 1]))
    start = float(np.median(smooth[: lowest // 2 + 1]))
    fall = start - float(smooth[lowest])
    if fall < max(LEAST_FALL * abs(start), 2 * noise):
        return {}
    begin = int(np.flatnonzero(smooth[:lowest] >= start - fall / 4)[-1])
    steepest = begin + int(np.gradient(smooth, np.log(rates))[begin:lowest].argmin())
    return {"steepest": float(rates[steepest]), "safe": float(rates[lowest]) / 10, "lowest": float(rates[lowest])}


# --- batch sizes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """How fast training is at a batch size; milliseconds: of a step of one batch."""

    batch: int
    images_per_second: float
    milliseconds: float


def batch_range(run: Run) -> tuple[list[Speed], int, str]:
    """Training steps at 8, 16, … images; returns the speeds, the table's rows, and why it ended."""
    run = Run(replace(run.config, train__accumulate=1), run.name)
    trial = Trial(run)
    speeds: list[Speed] = []
    wanted = sizes(len(trial.table), trial.device.type)
    with console.progress("find_batch", len(wanted)) as advance:
        ended = try_sizes(trial, wanted, speeds, advance)
    return speeds, len(trial.table), ended


def try_sizes(trial: Trial, wanted: list[int], speeds: list[Speed], advance: Callable[..., None]) -> str:
    """Measure the wanted batch sizes into speeds, as far as memory goes; returns why it ended."""
    before, guarded = free_memory(), trial.device.type == "cpu"  # without memory a GPU says so, a CPU's process dies
    for size in wanted:
        if guarded and before and speeds and _next_needs(before) > free_memory():
            return f"batch {size} might not fit into memory"
        try:
            speeds.append(measure(trial, size))
        except RuntimeError as fault:
            if not _out_of_memory(fault):
                raise
            _forget(trial)
            if not speeds:
                raise UserError(f"even a batch of {size} does not fit into memory; lower image_size") from fault
            return f"batch {size} does not fit into memory"
        advance(1, f"batch {size}: {speeds[-1].images_per_second:.0f} images/s")
        if fading(speeds):
            return "larger ones are slower"
    return f"batch {wanted[-1]} is the largest that is tried on {len(trial.table)} rows"


def sizes(rows: int, kind: str) -> list[int]:
    """The batch sizes to try on a device of this kind: powers of two up to the table's rows, on a CPU up to LARGEST."""
    most = min(rows, LARGEST) if kind == "cpu" else rows
    found = [SMALLEST * 2**power for power in range(20) if SMALLEST * 2**power <= most]
    return found or [rows]


def measure(trial: Trial, size: int, timed: int = TIMED) -> Speed:
    """The speed of so many training steps with batches of this size, once they are warm; loading is part of it."""
    with contextlib.closing(walk(trial.loader(size), trial.config.seed)) as batches:
        for _ in range(WARM):
            trial.step(batches)
        _wait(trial.device)
        began = clock()
        for _ in range(timed):
            trial.step(batches)
        _wait(trial.device)
        seconds = max(clock() - began, 1e-9)
    return Speed(size, timed * size / seconds, 1000 * seconds / timed)


def fading(speeds: list[Speed]) -> bool:
    """Whether the last two sizes were slower than the best one before: larger ones gain nothing."""
    best = max(speed.images_per_second for speed in speeds)
    return len(speeds) > 2 and all(speed.images_per_second < SLOWER * best for speed in speeds[-2:])


def knee(speeds: list[Speed]) -> Speed:
    """The smallest batch within a tenth of the best speed."""
    best = max(speed.images_per_second for speed in speeds)
    return next(speed for speed in speeds if speed.images_per_second >= NEAR * best)


def free_memory() -> int:
    """Bytes that this process may still take, by Linux and by its container; 0 where neither says."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(1024 * int(text.split("MemAvailable:")[1].split()[0]))
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup")
        most, now = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = (group / "memory.stat").read_text().split("\ninactive_file ")[1].split()[0]  # given back when asked
        found.append(most - now + int(cached))
    return max(min(found), 1) if found else 0


def _next_needs(before: int) -> int:
    """Bytes that a batch of twice the size takes beyond what is taken now: as much again, and a fifth to be sure."""
    return int(1.2 * max(before - free_memory(), 0))


def _out_of_memory(fault: RuntimeError) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(fault, torch.OutOfMemoryError) or any(word in str(fault).lower() for word in words)


def _forget(trial: Trial) -> None:
    """Give back what a failed step held."""
    trial.bench.optimizer.zero_grad(set_to_none=True)
    if trial.device.type == "cuda":
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
