"""Schedules: the factor on the learning rate at each optimizer step.

Form: ``f(step, total, *, …) -> float`` ≥ 0 for step 0 … total - 1; a later step gets the last one's factor or less.

``warmup`` is a share of all steps, rounded to w steps: they get the factors 1/w, 2/w, … 1. ``hold`` is a share too,
rounded to h steps, which get 1. The schedule itself runs over the total - w - h steps that follow. ``_after`` does this
for all of them.

One with the fact ``epochs`` gets one value more, ``f(step, total, epochs, *, …)``: how many there are in all.

One with the fact ``own_fold`` gets two values more, ``f(step, total, scores, direction, *, …)``: the scores of the
epochs so far on the member's own fold, in the metric's unit, and 1 where more of it is better, else -1. It stays a
function of them alone. The scores it follows were selected by (law 2), and a training on everything has none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from pipeline import registry
from pipeline.errors import UserError
from pipeline.registry import part

Curve = Callable[[int, int], float]
"""(steps done, all steps) behind warm-up and hold → the factor, which begins at 1."""


@part(source="Goyal et al. 2017, sec. 2.2, for the warm-up", allowed={"warmup": (0, 1)})
def constant(step: int, total: int, *, warmup: float = 0.0) -> float:
    """The same learning rate throughout.

    warmup: share of the steps with a linear warm-up.
    """
    return _after(step, total, warmup, 0.0, lambda done, steps: 1.0)


@part(
    source="Loshchilov & Hutter 2017, eq. 5, one cycle",
    allowed={"warmup": (0, 1), "hold": (0, 1), "floor": (0, 1)},
)
def cosine(step: int, total: int, *, warmup: float = 0.05, hold: float = 0.0, floor: float = 0.0) -> float:
    """Half a cosine from 1 down to the floor.

    warmup: share of the steps with a linear warm-up. hold: share at 1 behind it. floor: the factor that would be
    reached at step total; the last step still stands a little above it, so that it is not wasted.
    """
    return _after(step, total, warmup, hold, lambda done, steps: floor + (1 - floor) * _fall(done / steps))


@part(
    source="He et al. 2016, sec. 3.4",
    epochs=True,
    allowed={"at": (0, None), "factor": (0, 1), "warmup": (0, 1), "hold": (0, 1)},
)
def steps(
    step: int,
    total: int,
    epochs: int = 0,
    *,
    at: tuple[float, ...] = (0.5, 0.8),
    factor: float = 0.1,
    warmup: float = 0.0,
    hold: float = 0.0,
) -> float:
    """The learning rate cut at given points.

    at: shares of all steps, warm-up included, or, as whole numbers, epochs: steps(at=(30,60)) cuts behind the 30th and
    the 60th. factor: what each cut multiplies by. warmup: share of the steps with a linear warm-up. hold: share behind
    it in which no cut is made yet. Raises UserError for an epoch that is not before the last.
    """
    return _after(step, total, warmup, hold, lambda done, steps: float(factor ** _passed(step, total, at, epochs)))


@part(
    source="step decay, as ResNets are trained: He et al. 2016, sec. 3.4; its rates by hand",
    epochs=True,
    allowed={"rates": (0, None), "at": (0, None), "warmup": (0, 1), "hold": (0, 1)},
)
def ladder(
    step: int,
    total: int,
    epochs: int = 0,
    *,
    rates: tuple[float, ...] = (3e-4, 1e-4, 1e-5, 1e-6),
    at: tuple[float, ...] = (0.5, 0.75, 0.9),
    warmup: float = 0.0,
    hold: float = 0.0,
) -> float:
    """One given rate after the other; the highest stands for lr.

    rates: only their proportions count: with lr=3e-4, the default's are themselves. at: where the second, third, …
    begins: shares of all steps, warm-up included, or, as whole numbers, the epochs behind which they do. warmup: share
    of the steps with a linear warm-up. hold: share behind it in which the rate stays at its highest. Raises UserError
    unless there is one rate more than in at, and for an epoch that is not before the last.
    """
    if len(rates) != len(at) + 1 or max(rates) <= 0:
        raise UserError(f"{len(rates)} rates need {len(rates) - 1} points to change at, not {len(at)}: at={at}")
    return _after(step, total, warmup, hold, lambda done, steps: rates[_passed(step, total, at, epochs)] / max(rates))


@part(
    source="TensorFlow's ExponentialDecay",
    allowed={"floor": (1e-9, 1), "warmup": (0, 1), "hold": (0, 1)},
)
def exponential(step: int, total: int, *, floor: float = 0.01, warmup: float = 0.05, hold: float = 0.0) -> float:
    """A fall by the same proportion at each step: quick at first, fine at the end.

    floor: the factor that would be reached at step total. warmup: share of the steps with a linear warm-up. hold: share
    at 1 behind it.
    """
    return _after(step, total, warmup, hold, lambda done, steps: floor ** (done / steps))


@part(
    source="Chen et al. 2018 (DeepLab), sec. 4.1; TensorFlow's PolynomialDecay",
    allowed={"power": (0, None), "floor": (0, 1), "warmup": (0, 1), "hold": (0, 1)},
)
def polynomial(
    step: int, total: int, *, power: float = 0.9, floor: float = 0.0, warmup: float = 0.05, hold: float = 0.0
) -> float:
    """A power of the share of steps that is left.

    power: 1 is linear, 2 falls quickly at first. floor: the factor that would be reached at step total. warmup: share
    of the steps with a linear warm-up. hold: share at 1 behind it.
    """
    return _after(step, total, warmup, hold, lambda done, steps: floor + (1 - floor) * (1 - done / steps) ** power)


@part(
    source="Devlin et al. 2019, sec. A.2; TensorFlow's PolynomialDecay of power 1",
    allowed={"floor": (0, 1), "warmup": (0, 1), "hold": (0, 1)},
)
def linear(step: int, total: int, *, floor: float = 0.0, warmup: float = 0.05, hold: float = 0.0) -> float:
    """A straight line from 1 down to the floor.

    floor: the factor that would be reached at step total. warmup: share of the steps with a linear warm-up. hold: share
    at 1 behind it.
    """
    return _after(step, total, warmup, hold, lambda done, steps: 1 - (1 - floor) * done / steps)


@part(
    source="TensorFlow's InverseTimeDecay",
    allowed={"rate": (0, None), "warmup": (0, 1), "hold": (0, 1)},
)
def inverse_time(step: int, total: int, *, rate: float = 10.0, warmup: float = 0.05, hold: float = 0.0) -> float:
    """One over one plus the time.

    rate: the last factor is 1 / (1 + rate). warmup: share of the steps with a linear warm-up. hold: share at 1 behind
    it.
    """
    return _after(step, total, warmup, hold, lambda done, steps: 1 / (1 + rate * done / steps))


@part(
    source="Vaswani et al. 2017, eq. 3; timescale: Zhai et al. 2022, sec. 3.5",
    allowed={"timescale": (1e-9, None), "warmup": (0, 1), "hold": (0, 1)},
)
def inverse_sqrt(step: int, total: int, *, timescale: float = 0.05, warmup: float = 0.05, hold: float = 0.0) -> float:
    """One over the root of the time: it never ends, so that a training can be prolonged.

    timescale: share of all steps after which the factor is 1/√2; equal to warmup it is the Transformer's curve. warmup:
    share of the steps with a linear warm-up. hold: share at 1 behind it.
    """
    scale = timescale * total
    return _after(step, total, warmup, hold, lambda done, steps: math.sqrt(scale / (scale + done)))


@part(
    source="Loshchilov & Hutter 2017, sec. 3; TensorFlow's CosineDecayRestarts",
    allowed={
        "cycles": (1, 100), "growth": (0.1, 10), "decay": (0, 1), "floor": (0, 1), "warmup": (0, 1), "hold": (0, 1)
    },
)  # fmt: skip
def cosine_restarts(
    step: int,
    total: int,
    *,
    cycles: int = 3,
    growth: float = 2.0,
    decay: float = 1.0,
    floor: float = 0.0,
    warmup: float = 0.05,
    hold: float = 0.0,
) -> float:
    """Half cosines down to the floor, each begun anew at the top.

    cycles: their number. growth: length of each cycle over that of the one before. decay: its top over the one
    before's, above the floor. floor: the factor that would be reached at the end of each cycle. warmup: share of the
    steps with a linear warm-up. hold: share at 1 behind it.
    """

    def curve(done: int, steps: int) -> float:
        cycle, place = _cycle(done, steps, cycles, growth)
        return floor + (1 - floor) * decay**cycle * _fall(place)

    return _after(step, total, warmup, hold, curve)


@part(
    source="Huang et al. 2017 (snapshot ensembles), eq. 2",
    allowed={"cycles": (1, 100), "floor": (0, 1), "warmup": (0, 1), "hold": (0, 1)},
)
def multicycle_cosine(
    step: int, total: int, *, cycles: int = 3, floor: float = 0.003, warmup: float = 0.0, hold: float = 0.0
) -> float:
    """Half cosines of the same length, each from 1 down to the floor.

    cycles: their number. floor: the factor that would be reached at the end of each cycle; for an end of 1e-6 it is
    1e-6 / lr, which the default is at lr=3e-4. warmup: share of the steps with a linear warm-up. hold: share at 1
    behind it.
    """

    def curve(done: int, steps: int) -> float:
        return floor + (1 - floor) * _fall(_cycle(done, steps, cycles)[1])

    return _after(step, total, warmup, hold, curve)


@part(
    source="Bello et al. 2017, sec. 4.3; TensorFlow 1's linear_cosine_decay",
    allowed={"periods": (0, None), "alpha": (0, None), "beta": (0, None), "warmup": (0, 1), "hold": (0, 1)},
)
def linear_cosine(
    step: int,
    total: int,
    *,
    periods: float = 0.5,
    alpha: float = 0.0,
    beta: float = 0.001,
    warmup: float = 0.05,
    hold: float = 0.0,
) -> float:
    """A straight line times a cosine.

    The factor is (alpha + 1 - done) · (1 + cos(2π · periods · done)) / 2 + beta over its first value. periods: of the
    cosine, 0.5 is one fall. alpha: added to the line. beta: added to the product. warmup: share of the steps with a
    linear warm-up. hold: share at 1 behind it.
    """

    def curve(done: int, steps: int) -> float:
        return _linear_cosine(done / steps, 0.0, periods, alpha, beta)

    return _after(step, total, warmup, hold, curve)


@part(
    source="Bello et al. 2017, sec. 4.3; TensorFlow 1's noisy_linear_cosine_decay",
    allowed={
        "variance": (0, None), "variance_decay": (0, None), "periods": (0, None), "alpha": (0, None),
        "beta": (0, None), "seed": (0, None), "warmup": (0, 1), "hold": (0, 1),
    },
)  # fmt: skip
def noisy_linear_cosine(
    step: int,
    total: int,
    *,
    variance: float = 0.1,
    variance_decay: float = 0.55,
    periods: float = 0.5,
    alpha: float = 0.0,
    beta: float = 0.001,
    seed: int = 0,
    warmup: float = 0.05,
    hold: float = 0.0,
) -> float:
    """linear_cosine with noise on its line, which fades; kept within 0 to 1.

    variance and variance_decay: behind warm-up and hold, step k has noise of the variance variance / (1 + k) to the
    power variance_decay (TensorFlow begins at 1). It is drawn from seed and k alone, so that a training that goes on
    meets the same. periods, alpha and beta as in linear_cosine. warmup: share of the steps with a linear warm-up. hold:
    share at 1 behind it.
    """

    def curve(done: int, steps: int) -> float:
        deviation = math.sqrt(variance / (1 + done) ** variance_decay)
        noise = random.Random(f"{seed} {done}").gauss(0, deviation)
        return min(max(_linear_cosine(done / steps, noise, periods, alpha, beta), 0.0), 1.0)

    return _after(step, total, warmup, hold, curve)


@part(
    source="Smith & Topin 2018; the curve of torch.optim.lr_scheduler.OneCycleLR",
    allowed={"peak": (0, 1), "hold": (0, 1), "start": (0, 1), "end": (0, 1)},
)
def one_cycle(
    step: int, total: int, *, peak: float = 0.3, hold: float = 0.0, start: float = 0.04, end: float = 1e-4
) -> float:
    """Half a cosine up to 1 and half a cosine down; the way up is its warm-up.

    peak: share of the steps before the top. hold: share at 1 behind it. start and end: the factors of the first and the
    last step.
    """
    top, last = peak * total - 1, total - 1
    if top > 0 and step <= top:
        return start + (1 - start) * (1 - _fall(step / top))
    held = min(round(hold * total), max(last - top, 0))
    if held and step <= top + held:
        return 1.0
    top += held
    return end + (1 - end) * _fall((step - top) / (last - top) if last > top else 1.0)


@part(
    source="torch.optim.lr_scheduler.ReduceLROnPlateau, with an absolute threshold",
    own_fold=True,
    allowed={
        "patience": (0, None), "factor": (0, 1), "gain": (0, None), "cooldown": (0, None), "floor": (0, 1),
        "warmup": (0, 1), "hold": (0, 1),
    },
)  # fmt: skip
def reduce_on_plateau(
    step: int,
    total: int,
    scores: Sequence[float] = (),
    direction: int = 1,
    *,
    patience: int = 4,
    factor: float = 0.1,
    gain: float = 0.0,
    cooldown: int = 0,
    floor: float = 0.0,
    warmup: float = 0.0,
    hold: float = 0.0,
) -> float:
    """The learning rate cut where the score of the own fold stops gaining.

    patience: epochs without a gain that are borne; the next one cuts. factor: what each cut multiplies by. gain: the
    least that counts as one, in the metric's unit. cooldown: epochs behind a cut that are not counted. floor: the
    factor below which no cut goes. warmup: share of the steps with a linear warm-up. hold: share behind it in which no
    cut is made yet; its epochs count.
    """
    reached, best, bad, resting = 1.0, -math.inf, 0, 0
    for score in scores:
        gained = direction * score > best + gain
        best, bad = (direction * score, 0) if gained else (best, bad + 1)
        if resting:
            resting, bad = resting - 1, 0
        if bad > patience:
            reached, bad, resting = max(reached * factor, floor), 0, cooldown
    return _after(step, total, warmup, hold, lambda done, steps: reached)


@part(
    source="a common rule of thumb: the rate halved once the accuracy passes a level",
    own_fold=True,
    allowed={"factor": (0, 1), "warmup": (0, 1), "hold": (0, 1)},
)
def halve_at(
    step: int,
    total: int,
    scores: Sequence[float] = (),
    direction: int = 1,
    *,
    levels: tuple[float, ...] = (0.9,),
    factor: float = 0.5,
    warmup: float = 0.0,
    hold: float = 0.0,
) -> float:
    """The learning rate halved each time the score of the own fold first passes a level.

    levels: in the metric's unit; an error passes them on its way down. factor: what each multiplies by. warmup: share
    of the steps with a linear warm-up. hold: share behind it in which no cut is made yet.
    """
    passed = sum(any(direction * score >= direction * level for score in scores) for level in levels)
    return _after(step, total, warmup, hold, lambda done, steps: float(factor**passed))


def cycle_ends(call: str, total: int) -> list[int]:
    """The last step of each cycle of a schedule, counted from 0: where its factor turns up again, and the very last.

    call: a call-string, such as 'multicycle_cosine(cycles=3)'. total: all steps.
    """
    curve = registry.build("schedules", call)
    factors = [curve(step, total) for step in range(total)]
    bounds = zip(factors, factors[1:], factors[2:], strict=False)
    return [step for step, (before, here, after) in enumerate(bounds, 1) if before > here < after] + [total - 1]


def _after(step: int, total: int, warmup: float, hold: float, curve: Curve) -> float:
    """The warm-up's factor, 1 while it is held, or the curve's behind them."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    held = min(round(hold * total), total - rising)
    if step < rising + held:
        return 1.0
    left = total - rising - held
    return curve(min(step - rising - held, left), left) if left else curve(1, 1)


def in_shares(call: str, epochs: int) -> str:
    """A schedule whose points are epochs, with their shares of so many: it keeps its shape in a shorter training."""
    part, parsed = registry.bind("schedules", call)
    if not part.facts.get("epochs") or "at" not in parsed.arguments:
        return call
    at = [point / epochs if _is_epoch(point) else point for point in parsed.arguments["at"]]
    return str(registry.Call(parsed.name, {**parsed.arguments, "at": at}))


def _passed(step: int, total: int, at: tuple[float, ...], epochs: int) -> int:
    """How many of the given points are reached: shares of all steps, or whole numbers of epochs; 0 epochs: unknown."""
    text = f"at={','.join(f'{point:g}' for point in at)}"
    if late := [point for point in at if _is_epoch(point) and point >= max(1, epochs)]:
        there = f"there are {epochs}" if epochs else "how many there are is up to train.seconds"
        raise UserError(
            f"{text} changes the learning rate behind epoch {late[0]}, but {there}; give earlier ones, or shares of "
            "the training, such as 0.5"
        )
    if beyond := [point for point in at if not _is_epoch(point) and point > 1]:
        raise UserError(
            f"{text}: {beyond[0]:g} is neither a share of the training, 0 to 1, nor a whole number of epochs"
        )
    return sum(step >= round((point / epochs if _is_epoch(point) else point) * total) for point in at)


def _is_epoch(point: float) -> bool:
    return isinstance(point, int) and point > 0


def _cycle(done: int, steps: int, cycles: int, growth: float = 1.0) -> tuple[int, float]:
    """Which cycle, from 0, of so many that make up all steps, each so many times the last; and the share of it done."""
    if done >= steps:
        return cycles - 1, 1.0
    if growth == 1:  # in whole numbers, so that no cycle begins a step late
        return done * cycles // steps, done * cycles % steps / steps
    ends = [steps * (growth ** (number + 1) - 1) / (growth**cycles - 1) for number in range(cycles)]
    cycle = sum(done >= end - 1e-9 * steps for end in ends[:-1])
    begin = ends[cycle - 1] if cycle else 0.0
    return cycle, max(done - begin, 0.0) / (ends[cycle] - begin)


def _linear_cosine(done: float, noise: float, periods: float, alpha: float, beta: float) -> float:
    wave = (1 + math.cos(2 * math.pi * periods * done)) / 2
    return ((alpha + 1 - done + noise) * wave + beta) / (alpha + 1 + beta)


def _fall(share: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1 and beyond."""
    return (1 + math.cos(math.pi * min(share, 1.0))) / 2
