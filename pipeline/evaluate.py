"""Honest numbers: a metric with its standard error, and whether one prediction is better than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from pipeline import registry
from pipeline.errors import UserError, some

if TYPE_CHECKING:
    from pipeline.tasks import Task


@dataclass(frozen=True)
class Metric:
    """A competition's metric for a task, whatever its direction.

    name: its call-string. function: the part with the user's arguments bound. greater: is more better? wants:
    "decision" or "probability". rowwise: the function returns (N,) row values, and the metric is their mean.
    """

    name: str
    function: Callable[..., Any]
    greater: bool
    wants: str
    task: Task
    rowwise: bool = False
    numbers: bool = False

    def seen(self, truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Truth and values as the function takes them: decided where it wants that, classes as the grades they are."""
        answer = self.task.decide(values) if self.wants == "decision" or self.numbers else values
        if not self.numbers:
            return truth, answer
        grades = self.task.grades
        assert grades is not None
        return grades[truth][:, None], grades[answer][:, None]

    def __call__(self, truth: np.ndarray, values: np.ndarray) -> float:
        """Truth and values of the task's form → the score; NaN without rows."""
        return self.of(*self.seen(truth, values)) if len(truth) else math.nan

    def of(self, truth: np.ndarray, answer: np.ndarray) -> float:
        """The score of what ``seen`` gave."""
        return float(np.mean(self.function(truth, answer)))

    def rows(self, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """(N,) the score of each row of what ``seen`` gave; of rowwise metrics alone."""
        return np.asarray(self.function(truth, answer))

    @property
    def sign(self) -> int:
        """1 where more is better, else −1."""
        return 1 if self.greater else -1

    def gain(self, truth: np.ndarray, values: np.ndarray) -> float:
        """The score, with its sign turned where less is better: more is always better."""
        return self.sign * self(truth, values)


@dataclass(frozen=True)
class MapMetric(Metric):
    """A metric of masks: what each image adds is counted once, image by image; scores are sums over these counts.

    function: (truth, answer, classes) of one image → (m,) float64 whose mean, NaN left out, is the image's score; or,
    pooled, (2, C): numerators and denominators, to be summed over the images before they are divided.
    """

    pooled: bool = False

    def seen(self, truth: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers, and what each image adds: (N, m) or (N, 2, C) float64."""
        answers: Any = self.task.decide(values)
        classes = len(self.task.columns)
        added = [self.function(truth.one(row), answers.one(row), classes) for row in range(len(truth))]
        return np.arange(len(truth)), np.array(added, dtype=np.float64)

    def of(self, truth: np.ndarray, answer: np.ndarray) -> float:
        """The score of what ``seen`` gave."""
        if not self.pooled:
            return _mean(self.rows(truth, answer))
        above, below = answer.sum(axis=0)
        return float((above[below > 0] / below[below > 0]).mean()) if (below > 0).any() else math.nan

    def rows(self, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """(N,) the score of each image alone; NaN where nothing of it counts."""
        if self.pooled:
            above, below = answer[:, 0], answer[:, 1]
            answer = np.divide(above, below, out=np.full(above.shape, math.nan), where=below > 0)
        flat = answer.reshape(len(answer), -1)
        counted = ~np.isnan(flat)
        total, count = np.where(counted, flat, 0).sum(axis=1), counted.sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class RankMetric(Metric):
    """A metric of ranked lists, one a row, as the task's ``judged`` gives them: see ``tasks/retrieval.py``.

    function: (relevant (Q,) int64, answers (Q, n) int8) → (Q,) float64, NaN where a row has nothing to find.
    """

    def seen(self, truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many each row could find, and whether its answers are right."""
        judged: tuple[np.ndarray, np.ndarray] = self.task.judged(truth, values)  # type: ignore[attr-defined]
        return judged

    def of(self, truth: np.ndarray, answer: np.ndarray) -> float:
        """The mean over the rows that have something to find."""
        return _mean(self.rows(truth, answer))


def _mean(rows: np.ndarray) -> float:
    known = rows[~np.isnan(rows)]
    return float(known.mean()) if len(known) else math.nan


class Named(Protocol):
    """What is chosen among: ``call`` is its name."""

    @property
    def call(self) -> str:
        """As the tables show it."""


Choice = TypeVar("Choice", bound=Named)


def simplest(
    candidates: Sequence[Choice], best: Choice, lost: Callable[[Choice, Choice], tuple[float, float]]
) -> tuple[Choice, str]:
    """The simplest candidate within one paired standard error of the best; and why: complexity must be earned.

    candidates: the simplest first. best: of the best nested score. lost: (one, best) → how much better the best is than
    one, and the paired standard error of that.
    """
    for one in candidates:
        if one is best:
            break
        gain, error = lost(one, best)
        if gain <= error * (1 + 1e-9):  # equal but for rounding is not beyond
            return one, f"the simplest within one paired standard error of {best.call}, the best nested score"
    return best, "the best nested score, and nothing simpler is within one paired standard error of it"


def direction(call: str) -> int:
    """1 where more of the metric is better, else −1; UserError for an unknown name or argument."""
    facts = registry.facts("metrics", call)
    if "greater" not in facts:
        raise UserError(f"metric={call}, but its @part does not say whether more is better; add greater=True or False")
    return 1 if facts["greater"] else -1


def metric(call: str, task: Task) -> Metric:
    """The metric of a call-string such as ``log_loss()`` for a task; UserError where the two do not go together."""
    facts, name, greater = registry.facts("metrics", call), str(registry.parse(call)), direction(call) > 0
    classes = task.form.simplex and not task.form.spatial
    numbers = classes and "classes" not in facts.get("takes", ("classes",))
    if numbers and task.grades is None:
        raise UserError(
            f"metric={call} compares numbers, but the classes are names: {some(task.columns)}; choose another metric, "
            "or task=ordinal(order=[…])"
        )
    function = registry.build("metrics", call)
    wants, rowwise = facts.get("wants", "probability"), facts.get("rowwise", False)
    if task.form.searched:
        return RankMetric(name, function, greater, wants, task, rowwise=True)
    if task.form.spatial:
        pooled = bool(facts.get("pooled"))
        return MapMetric(name, function, greater, wants, task, not pooled, pooled=pooled)
    return Metric(name, function, greater, wants, task, rowwise, numbers)


@dataclass(frozen=True)
class Score:
    """A number with what made it: value on all rows, se over folds (NaN with one fold), kind such as "OOF"."""

    value: float
    se: float
    kind: str
    folds: list[float]

    def __str__(self) -> str:
        spread = "" if math.isnan(self.se) else f" ± {self.se:.4f}"
        return f"{self.value:.4f}{spread} {self.kind}"


def score_folds(metric: Metric, truth: np.ndarray, values: np.ndarray, folds: np.ndarray, kind: str = "OOF") -> Score:
    """Score all rows together, with the standard error over folds: std(ddof=1) / sqrt(K).

    truth, values: of the task's form, N rows. folds (N,) int64: the fold of each row.
    """
    return score_seen(metric, *metric.seen(truth, values), folds, kind)


def score_seen(metric: Metric, truth: np.ndarray, answer: np.ndarray, folds: np.ndarray, kind: str = "OOF") -> Score:
    """``score_folds`` of what ``Metric.seen`` gave."""
    scores = [metric.of(truth[folds == fold], answer[folds == fold]) for fold in np.unique(folds)]
    se = float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan
    return Score(metric.of(truth, answer), se, kind, scores)


def row_error(metric: Metric, truth: np.ndarray, values: np.ndarray, seed: int = 0, samples: int = 200) -> float:
    """The standard error of the score of N rows, truth and values of the task's form; NaN with a row.

    The row bootstrap's (Efron 1979): of a mean over rows in its closed form, else from ``samples`` draws.
    """
    seen, answer = metric.seen(truth, values)
    if metric.rowwise:
        scores = metric.rows(seen, answer)
        scores = scores[~np.isnan(scores)]
        return float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan
    generator = np.random.default_rng(seed)
    draws = [metric.of(seen[rows], answer[rows]) for rows in generator.integers(len(seen), size=(samples, len(seen)))]
    return float(np.std(draws, ddof=1))


def paired_gain(
    metric: Metric, truth: np.ndarray, base: np.ndarray, other: np.ndarray, seed: int = 0, samples: int = 1000
) -> tuple[float, float]:
    """How much better other is than base on the same rows, and the standard error of that.

    truth; base, other: values of the task's form, N rows. A gain > 0 means that other is better, whatever the metric's
    direction. The error is the row bootstrap's (Efron 1979) of the difference: for a mean over rows in its closed
    form (with N − 1, so that one row alone is never a gain beyond it), else from ``samples`` draws.
    """
    (seen, first), (_, second) = metric.seen(truth, base), metric.seen(truth, other)
    return paired(metric, first, second, seen, seed, samples)


def paired(
    metric: Metric, first: np.ndarray, second: np.ndarray, seen: np.ndarray | None = None, seed: int = 0,
    samples: int = 1000,
) -> tuple[float, float]:  # fmt: skip
    """``paired_gain`` of what ``Metric.seen`` gave: the truth and both answers; maps need no truth."""
    seen = np.arange(len(first)) if seen is None else seen
    gain = metric.sign * (metric.of(seen, second) - metric.of(seen, first))
    if metric.rowwise:
        difference = metric.rows(seen, second) - metric.rows(seen, first)
        difference = difference[~np.isnan(difference)]
        error = float(np.std(difference, ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.nan
        return gain, error
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(samples):
        rows = generator.integers(len(seen), size=len(seen))
        draws.append(metric.sign * (metric.of(seen[rows], second[rows]) - metric.of(seen[rows], first[rows])))
    return gain, float(np.std(draws, ddof=1))
