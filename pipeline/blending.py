"""Level 2 of maps: runs blended pixel by pixel, and the numbers of the cut, both scored by nested cross-validation.

The weights of a blend are found on drawn pixels of the OOF maps of all folds but one, by greedy selection (Caruana et
al. 2004), and score that one's images. Then ``pipeline/cutting.py`` chooses the cut's numbers in the same way. Single
runs, their plain mean and the greedy blend compete: the simplest within one paired standard error of the best is taken.

A second-order leak stays: the OOF maps of other folds come from members that trained on the held-out fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import cutting, evaluate, nested
from pipeline.evaluate import Metric, Score
from pipeline.forms import VOID
from pipeline.maps import Maps, Mean

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


@dataclass(frozen=True)
class Blend:
    """One way to blend. call: its name. weights: (M,), found on all rows; nested: (N, M), each row's without its fold.

    score: nested; gain, gain_se: paired, over the best single run. order: the simplest first.
    """

    call: str
    weights: np.ndarray
    nested: np.ndarray
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


def build(
    names: list[str], members: Sequence[Maps], truth: Any, task: Any, metric: Metric, folds: np.ndarray, seed: int
) -> Level2:
    """names, members: the runs and their OOF maps, N images each. truth: of the same images. folds: (N,) int64."""
    parts = nested.parts(folds, seed)
    pixels = draw(members, truth, task, seed) if len(members) > 1 else None
    ways = list(candidates(names, pixels, parts, members, metric, truth))
    plain = max(ways[: len(names)], key=lambda way: metric.sign * way.score.value)
    ways = [_against(way, plain, metric) for way in ways]
    chosen, reason = choose(ways, metric)
    blended = Weighted(members, chosen.nested)

    def image(row: int) -> tuple[np.ndarray, np.ndarray]:
        return blended.one(row), truth.one(row)

    cut = cutting.choose(image, folds, metric.name, task.cut, len(task.columns), seed=seed)
    return Level2(names, ways, chosen, reason, cut)


def candidates(
    names: list[str], pixels: tuple[np.ndarray, ...] | None, parts: np.ndarray, members: Sequence[Maps],
    metric: Metric, truth: Any,
) -> Any:  # fmt: skip
    """Single runs, their mean, and the greedy blend, each with its nested score."""
    count = len(names)
    for place, name in enumerate(names):
        yield _scored(name, np.eye(count)[place], None, parts, members, metric, truth)
    if pixels is None:
        return
    yield _scored("mean", np.full(count, 1 / count), None, parts, members, metric, truth)
    values, target, image = pixels
    own = {part: greedy(values[parts[image] != part], target[parts[image] != part]) for part in np.unique(parts)}
    weights = greedy(values, target)
    yield _scored("greedy", weights, np.stack([own[part] for part in parts]), parts, members, metric, truth)


def _scored(
    call: str, weights: np.ndarray, each: np.ndarray | None, parts: np.ndarray, members: Sequence[Maps],
    metric: Metric, truth: Any,
) -> Blend:  # fmt: skip
    each = np.tile(weights, (len(parts), 1)) if each is None else each
    seen, added = metric.seen(truth, Weighted(members, each))
    scores = [metric.of(seen[parts == part], added[parts == part]) for part in np.unique(parts)]
    se = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan")
    return Blend(call, weights, each, Score(metric.of(seen, added), se, "nested", scores), 0.0, 0.0, added)


def _against(way: Blend, plain: Blend, metric: Metric) -> Blend:
    gain, error = evaluate.paired(metric, plain.added, way.added)
    return Blend(way.call, way.weights, way.nested, way.score, gain, error, way.added)


def choose(ways: list[Blend], metric: Metric) -> tuple[Blend, str]:
    """The simplest within one paired standard error of the best: a single run before the mean before the greedy one."""
    best = max(ways, key=lambda way: metric.sign * way.score.value)
    singles = [way for way in ways if way.call not in ("mean", "greedy")]
    simplest = max(singles, key=lambda way: metric.sign * way.score.value)
    for way in [simplest, *(way for way in ways if way.call in ("mean", "greedy"))]:
        gain, error = evaluate.paired(metric, way.added, best.added)
        if way is best:
            return way, "the best nested score" if len(ways) > 1 else "the only one"
        if gain <= error:
            return way, f"the simplest within one paired standard error of {best.call}"
    return best, "the best nested score"


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
