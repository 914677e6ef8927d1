"""Level 2 of maps: runs blended pixel by pixel, and the numbers of the cut, both scored by nested cross-validation.

The weights of a blend are found on drawn pixels of the OOF maps of all folds but one, by greedy selection (Caruana et
al. 2004), and score that one's images. Then ``pipeline/cutting.py`` chooses the cut's numbers in the same way. Single
runs, their plain mean, the greedy blend and a small net (``pipeline/convolution.py``) compete: the simplest within one
paired standard error of the best is taken.

A second-order leak stays: the OOF maps of other folds come from members that trained on the held-out fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import cutting, evaluate
from pipeline.errors import UserError
from pipeline.evaluate import Metric, Score
from pipeline.forms import VOID
from pipeline.maps import Maps, Mean

WAYS = ("single", "mean", "greedy", "convolution")  # the simplest first
PIXELS = 400_000  # that the weights are found on, of all images together
ROUNDS = 20  # of the greedy selection; a weight is a multiple of one over this
SMALLEST = 1e-4


class Weighted(Maps):
    """Maps of several runs, blended by weights that depend on the image. weights: (N, M) float64, rows sum to one."""

    def __init__(self, members: Sequence[Maps], weights: np.ndarray) -> None:
        self.members, self.weights, self.columns = list(members), weights, members[0].columns

    def __len__(self) -> int:
        return len(self.weights)

    def one(self, row: int) -> np.ndarray:
        return Mean(self.members, self.weights[row]).one(row)

    def bands(self, row: int) -> Iterator[np.ndarray]:
        return Mean(self.members, self.weights[row]).bands(row)


Fitted = Callable[[Sequence[Maps]], Maps]


@dataclass(frozen=True)
class Blend:
    """One way to make one map of several runs'. call: its name. nested: the OOF maps, each row's without its fold.

    fitted: on all rows, for maps of other images. weights: (M,) where it has such. score: nested; gain, gain_se:
    paired, over the best single run. added: what each image adds to the score.
    """

    call: str
    nested: Maps
    fitted: Fitted
    weights: np.ndarray | None
    score: Score
    gain: float
    gain_se: float
    added: np.ndarray


@dataclass(frozen=True)
class Level2:
    """A chosen blend with a chosen cut."""

    members: list[str]
    candidates: list[Blend]
    chosen: Blend
    reason: str
    cut: cutting.Choice


@dataclass(frozen=True)
class Oof:
    """What level 2 learns from: names and OOF maps of the runs, truth of the same N images, and their (N,) parts."""

    names: list[str]
    members: Sequence[Maps]
    truth: Any
    task: Any
    metric: Metric
    parts: np.ndarray
    seed: int


def check(methods: Sequence[str]) -> None:
    """Raise UserError unless these are ways to blend, or all."""
    wrong = [name for name in methods if name not in ("all", *WAYS)]
    if wrong:
        raise UserError(f"stack.methods={wrong[0]}, but maps are blended by {', '.join(WAYS)}, or all")


def build(oof: Oof, folds: np.ndarray, methods: Sequence[str]) -> Level2:
    """The best blend and cut. folds: (N,) int64. methods: of ``WAYS``, or all."""
    wanted = WAYS if "all" in methods else tuple(methods)
    ways = list(candidates(oof, wanted))
    singles = [way for way in ways if way.call in oof.names]
    plain = max(singles or ways, key=lambda way: oof.metric.sign * way.score.value)
    ways = [_against(way, plain, oof.metric) for way in ways]
    chosen, reason = choose(ways, oof)

    def image(row: int) -> tuple[np.ndarray, np.ndarray]:
        return chosen.nested.one(row), oof.truth.one(row)

    cut = cutting.choose(image, folds, oof.metric.name, oof.task.cut, len(oof.task.columns), seed=oof.seed)
    return Level2(oof.names, ways, chosen, reason, cut)


def candidates(oof: Oof, wanted: Sequence[str]) -> Iterator[Blend]:
    """The ways that are wanted, the simplest first, each with its nested score; one run alone has nothing to blend."""
    count, alone = len(oof.names), len(oof.names) == 1
    for place, name in enumerate(oof.names if "single" in wanted or alone else []):
        yield _weighted(oof, name, np.eye(count)[place])
    if alone:
        return
    if "mean" in wanted:
        yield _weighted(oof, "mean", np.full(count, 1 / count))
    if "greedy" in wanted:
        values, target, image = draw(oof.members, oof.truth, oof.task, oof.seed)
        own = {k: greedy(values[oof.parts[image] != k], target[oof.parts[image] != k]) for k in np.unique(oof.parts)}
        yield _weighted(oof, "greedy", greedy(values, target), np.stack([own[part] for part in oof.parts]))
    if "convolution" in wanted:
        yield _convolution(oof)


def _weighted(oof: Oof, call: str, weights: np.ndarray, each: np.ndarray | None = None) -> Blend:
    nested_maps = Weighted(oof.members, np.tile(weights, (len(oof.parts), 1)) if each is None else each)
    return _scored(oof, call, nested_maps, lambda maps: Mean(maps, weights), weights)


def _convolution(oof: Oof) -> Blend:
    from pipeline import convolution

    known, which = np.unique(oof.parts, return_inverse=True)
    learned = [np.flatnonzero(oof.parts != part) for part in known]
    nets = [convolution.fit(oof.members, oof.truth, oof.task, rows, oof.seed) for rows in learned]
    whole = convolution.fit(oof.members, oof.truth, oof.task, np.arange(len(oof.parts)), oof.seed)
    simplex = oof.task.learns.simplex

    def fitted(maps: Sequence[Maps]) -> Maps:
        return convolution.Convolved(maps, [whole], np.zeros(len(maps[0]), dtype=np.int64), simplex)

    return _scored(oof, "convolution", convolution.Convolved(oof.members, nets, which, simplex), fitted, None)


def _scored(oof: Oof, call: str, maps: Maps, fitted: Fitted, weights: np.ndarray | None) -> Blend:
    metric = oof.metric
    seen, added = metric.seen(oof.truth, maps)
    scores = [metric.of(seen[oof.parts == part], added[oof.parts == part]) for part in np.unique(oof.parts)]
    se = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan")
    score = Score(metric.of(seen, added), se, "nested", scores)
    return Blend(call, maps, fitted, weights, score, 0.0, 0.0, added)


def _against(way: Blend, plain: Blend, metric: Metric) -> Blend:
    gain, error = evaluate.paired(metric, plain.added, way.added)
    return replace(way, gain=gain, gain_se=error)


def choose(ways: list[Blend], oof: Oof) -> tuple[Blend, str]:
    """The simplest within one paired standard error of the best; the best single run is the simplest."""
    metric = oof.metric
    best = max(ways, key=lambda way: metric.sign * way.score.value)
    if len(ways) == 1:
        return best, "the only one"
    singles = sorted((w for w in ways if w.call in oof.names), key=lambda way: -metric.sign * way.score.value)[:1]
    simplest_first = [*singles, *(way for way in ways if way.call not in oof.names)]
    return evaluate.simplest(simplest_first, best, lambda one, best: evaluate.paired(metric, one.added, best.added))


# --- the weights of a blend ---------------------------------------------------------------------------------------


def draw(members: Sequence[Maps], truth: Any, task: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drawn pixels: values (n, M, P) float32, targets (n, P) float32 and each's image (n,) int64, without void."""
    each = max(16, PIXELS // max(1, len(truth)))
    values, targets, rows = [], [], []
    for row in range(len(truth)):
        planes = task.planes(truth.one(row))
        flat = planes.reshape(len(planes), -1)
        known = np.flatnonzero((flat != VOID).all(axis=0))
        if not len(known):
            continue
        places = known[np.random.default_rng([seed, row]).integers(len(known), size=each)]
        values.append(np.stack([m.one(row).reshape(len(planes), -1)[:, places] for m in members]).transpose(2, 0, 1))
        targets.append((flat[:, places] > VOID // 2).T)
        rows.append(np.full(each, row, dtype=np.int64))
    return np.concatenate(values), np.concatenate(targets).astype(np.float32), np.concatenate(rows)


def greedy(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(M,) weights by greedy selection with replacement on the log loss of pixels; Caruana et al. 2004, sec. 2.

    values: (n, M, P) float32. target: (n, P).
    """
    count = values.shape[1]
    chosen, total = np.zeros(count), np.zeros(target.shape, dtype=np.float32)
    best, kept = float("inf"), np.zeros(count)
    for number in range(1, ROUNDS + 1):
        losses = [_log_loss((total + values[:, member]) / number, target) for member in range(count)]
        member = int(np.argmin(losses))
        chosen[member] += 1
        total += values[:, member]
        if losses[member] < best:
            best, kept = losses[member], chosen / number
    return kept


def _log_loss(chance: np.ndarray, target: np.ndarray) -> float:
    clipped = chance.clip(SMALLEST, 1 - SMALLEST)
    return float(-np.log(np.where(target > 0, clipped, 1 - clipped)).mean())
