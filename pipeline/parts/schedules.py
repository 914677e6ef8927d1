"""Schedules: the factor on the learning rate at each optimizer step.

Form: ``f(step, total, *, …) -> float`` ≥ 0 for step 0 … total - 1; a later step gets the last one's factor or less.
``warmup`` is a share of all steps, rounded to w steps: they get the factors 1/w, 2/w, … 1, and the schedule itself
runs over the total - w steps that follow.
"""

from __future__ import annotations

import math

from pipeline.registry import part


@part(source="Goyal et al. 2017, sec. 2.2, for the warm-up", allowed={"warmup": (0, 1)})
def constant(step: int, total: int, *, warmup: float = 0.0) -> float:
    """The same learning rate throughout.

    warmup: share of the steps with a linear warm-up.
    """
    return _warm(step, total, warmup) or 1.0


@part(source="Loshchilov & Hutter 2017, eq. 5, one cycle", allowed={"warmup": (0, 1), "floor": (0, 1)})
def cosine(step: int, total: int, *, warmup: float = 0.05, floor: float = 0.0) -> float:
    """Half a cosine from 1 down to the floor.

    warmup: share of the steps with a linear warm-up. floor: the factor that would be reached at step total; the last
    step still stands a little above it, so that it is not wasted.
    """
    done = _done(step, total, warmup)
    return _warm(step, total, warmup) or floor + (1 - floor) * _fall(done)


@part(source="He et al. 2016, sec. 3.4", allowed={"at": (0, 1), "factor": (0, 1), "warmup": (0, 1)})
def steps(
    step: int, total: int, *, at: tuple[float, ...] = (0.5, 0.8), factor: float = 0.1, warmup: float = 0.0
) -> float:
    """The learning rate cut at given points.

    at: shares of all steps, warm-up included. factor: what each cut multiplies by. warmup: share of the steps with a
    linear warm-up.
    """
    cuts = sum(step >= round(share * total) for share in at)
    return _warm(step, total, warmup) or float(factor**cuts)


@part(
    source="Smith & Topin 2018; the curve of torch.optim.lr_scheduler.OneCycleLR",
    allowed={"peak": (0, 1), "start": (0, 1), "end": (0, 1)},
)
def one_cycle(step: int, total: int, *, peak: float = 0.3, start: float = 0.04, end: float = 1e-4) -> float:
    """Half a cosine up to 1 and half a cosine down.

    peak: share of the steps before the top. start and end: the factors of the first and the last step.
    """
    top, last = peak * total - 1, total - 1
    if top > 0 and step <= top:
        return start + (1 - start) * (1 - _fall(step / top))
    return end + (1 - end) * _fall((step - top) / (last - top) if last > top else 1.0)


def _warm(step: int, total: int, warmup: float) -> float:
    """The warm-up's factor, or 0 once it is over."""
    length = round(warmup * total)
    return (step + 1) / length if step < length else 0.0


def _done(step: int, total: int, warmup: float) -> float:
    """The share 0–1 of the steps behind the warm-up that is done before this step."""
    length = round(warmup * total)
    return min((step - length) / (total - length), 1.0) if length < total else 1.0


def _fall(share: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1 and beyond."""
    return (1 + math.cos(math.pi * min(share, 1.0))) / 2
