"""Level 2 scored by nested cross-validation: its methods, then the decisions on the chosen one's values; and choices.

What predicts or decides a row was fitted without its fold. Complexity must be earned: chosen is the simplest candidate
within one paired standard error of the best nested score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline import evaluate, registry
from pipeline.errors import UserError, nearest
from pipeline.evaluate import Metric

PARTS = 5  # into which the rows of a single validation fold are dealt
DRAWS = 1e8  # values that one bootstrap may look at; with fewer draws its error is a little less exact
DEFAULT = "default"  # stands for the task's own decision


@dataclass(frozen=True)
class Table:
    """What a level 2 learns from, and what it is scored by.

    values: (N, M, C) float32, the runs' OOF predictions. truth: of the task's form. folds: (N,) int64, the parts of
    nested cross-validation. features: (N, F) float64, or None.
    """

    members: list[str]
    values: np.ndarray
    truth: np.ndarray
    folds: np.ndarray
    metric: Metric
    features: np.ndarray | None = None

    @cached_property
    def best(self) -> int:
        """The index of the run with the best OOF score; the first of equals."""
        gains = [self.metric.gain(self.truth, self.values[:, member]) for member in range(len(self.members))]
        return int(np.argmax(gains))

    @cached_property
    def taught(self) -> np.ndarray:
        """The truth as level 2 learns it: in the shape of values where it differs, such as points for angles."""
        certain = self.truth if self.truth.ndim == 1 else self.metric.task.soft(self.truth)
        return certain if certain.shape != self.truth.shape else self.truth

    @property
    def judge(self) -> Any:
        """The metric, for truth as ``taught``."""
        return self.metric if self.taught is self.truth else Judge(self.metric)

    def fit(self, call: str, rows: np.ndarray | slice = slice(None)) -> Any:
        """A level-2 method fitted on these rows."""
        stacker = registry.build("level2", call)(self.metric.task.form)
        return stacker.fit(self.values[rows], self.taught[rows], self.judge, self.side(rows))

    def side(self, rows: np.ndarray | slice) -> np.ndarray | None:
        """The side features of these rows."""
        return None if self.features is None else self.features[rows]


@dataclass(frozen=True)
class Judge:
    """A metric whose truth is told as certain values, such as the points of a circle, and decided like them."""

    metric: Metric

    def gain(self, truth: np.ndarray, values: np.ndarray) -> float:
        """As ``Metric.gain``."""
        return self.metric.gain(self.metric.task.decide(truth), values)


@dataclass(frozen=True)
class Candidate:
    """A method or decision with its nested values (N, C), their score, and its paired gain over the plain choice."""

    call: str
    order: float
    values: np.ndarray
    score: evaluate.Score
    gain: float
    gain_se: float

    def facts(self) -> dict[str, Any]:
        """What ``level2.json`` holds of it."""
        return {
            "order": self.order, "score": self.score.value, "se": self.score.se, "folds": self.score.folds,
            "gain": self.gain, "gain_se": self.gain_se,
        }  # fmt: skip


def parts(folds: np.ndarray, seed: int) -> np.ndarray:
    """(N,) the part of each row in nested cross-validation: its fold, or one at random where there is but one fold."""
    if len(np.unique(folds)) > 1:
        return folds
    return np.random.default_rng([seed, len(folds)]).permutation(len(folds)) % min(PARTS, len(folds))


# --- methods ------------------------------------------------------------------------------------------------------


def score_method(call: str, table: Table) -> Candidate:
    """A method's nested predictions, their score and its paired gain over the best single run."""
    part, known = registry.bind("level2", call)
    order = part.facts["order"] + (0.5 if known.arguments.get("features") else 0)
    return _candidate(call, order, nested_values(call, table), table.values[:, table.best], table)


def nested_values(call: str, table: Table) -> np.ndarray:
    """(N, C) float32: each fold's rows as predicted by the method fitted on the other folds' OOF rows."""
    nested = np.empty_like(table.values[:, 0])
    for fold in np.unique(table.folds):
        held_out = table.folds == fold
        nested[held_out] = table.fit(call, ~held_out).predict(table.values[held_out], table.side(held_out))
    return nested


def _candidate(call: str, order: float, values: np.ndarray, base: np.ndarray, table: Table) -> Candidate:
    score = evaluate.score_folds(table.metric, table.truth, values, table.folds, "nested")
    return Candidate(call, order, values, score, *paired(base, values, table))


def paired(base: np.ndarray, other: np.ndarray, table: Table) -> tuple[float, float]:
    """``evaluate.paired_gain`` with 1000 draws, or for large tables as few as 100."""
    if base is other:
        return 0.0, 0.0
    samples = int(np.clip(DRAWS / base.size, 100, 1000))
    return evaluate.paired_gain(table.metric, table.truth, base, other, samples=samples)


def choose(candidates: Sequence[Candidate], table: Table) -> tuple[Candidate, str]:
    """The simplest candidate within one paired standard error of the best; and why."""
    gains = {c.call: table.metric.gain(table.truth, c.values) for c in candidates}
    simplest_first = sorted(candidates, key=lambda c: (c.order, -gains[c.call]))
    best = max(simplest_first, key=lambda c: gains[c.call])
    return evaluate.simplest(simplest_first, best, lambda one, best: paired(one.values, best.values, table))


# --- decisions ----------------------------------------------------------------------------------------------------


def decisions(asked: Sequence[str], values: np.ndarray, table: Table) -> list[str]:
    """The decisions to try on values (N, C) such as these, as checked call-strings, simplest first.

    ``all``: those that fit form and metric and would not keep such a table busy for long; ``none``: none. Raises
    UserError for a named one that does not fit.
    """
    check_decisions(asked)
    known, calls = registry.parts("decisions"), []
    work = values.shape[0] * values.shape[1] ** 2
    fitting = [part for part in known.values() if not unfit(part.facts, values, table)]
    for text in asked:
        if text == "all":
            wanted = [p for p in fitting if not p.facts.get("named") and work <= p.facts.get("most_work", float("inf"))]
            calls += [f"{part.name}()" for part in sorted(wanted, key=lambda part: part.facts["order"])]
        elif text != "none":
            part, call = registry.bind("decisions", text)
            if reason := unfit(part.facts, values, table):
                others = ", ".join(part.name for part in fitting) or "none"
                raise UserError(f"stack.decisions={text}, but {reason}; those that fit here: {others}")
            calls.append(str(call))
    return list(dict.fromkeys(calls))


def check_decisions(asked: Sequence[str]) -> None:
    """Raise UserError for an unknown name or argument, or for ``none`` beside others; reads no data."""
    if "none" in asked and len(asked) > 1:
        raise UserError(f"stack.decisions={','.join(asked)}, but none stands alone")
    for text in asked:
        if text not in ("all", "none"):
            try:
                registry.bind("decisions", text)
            except UserError as fault:
                hint = nearest(text, ["all", "none"])
                raise UserError(f"stack.decisions={text}: {fault}{hint}; or all, or none") from fault


def unfit(facts: dict[str, Any], values: np.ndarray, table: Table) -> str:
    """Why a decision does not serve such values, or an empty text."""
    task, metric, columns = table.metric.task, table.metric, values.shape[1]
    if task.form.name not in facts["takes"]:
        return f"it takes {' or '.join(facts['takes'])}, and the task has {task.form.name}"
    serves = "decision" if metric.wants == "decision" or metric.numbers else "probability"
    if facts["wants"] not in (serves, "either"):
        return f"it is for metrics of a {facts['wants']}, and {metric.name} is of a {serves}"
    if facts["wants"] == "probability" and metric.greater:
        return f"it is for losses of probabilities, and {metric.name} looks at their ranks"
    if task.form.simplex:
        least, most = facts.get("classes", (2, None))
        if columns < least or (most and columns > most):
            return f"it takes {least}{f'–{most}' if most != least else ''} classes, and there are {columns}"
        if facts.get("ordered") not in (None, getattr(task, "ordered", False)):
            return f"it takes {'grades' if facts['ordered'] else 'classes without an order'}"
    elif facts.get("rounds") and not task.form.bounded and not rounds(values, table):
        return f"it is for metrics that round, and {metric.name} does not"
    return ""


def rounds(values: np.ndarray, table: Table) -> bool:
    """Whether the metric sees whole numbers alone: rounded values have the same score."""
    whole = np.floor(values + 0.5)
    there = bool((whole != values).any())
    return there and table.metric.gain(table.truth, whole) == table.metric.gain(table.truth, values)


def score_decisions(calls: Sequence[str], values: np.ndarray, table: Table) -> list[Candidate]:
    """The default and each decision on a method's nested values (N, C), with its paired gain over the default."""
    default = _candidate(DEFAULT, 0, values, values, table)
    orders = {call: registry.facts("decisions", call)["order"] for call in calls}
    return [default, *(_candidate(c, orders[c], nested_decision(c, values, table), values, table) for c in calls)]


def nested_decision(call: str, values: np.ndarray, table: Table) -> np.ndarray:
    """(N, C) float32: each fold's values, changed by the decision fitted on the other folds' nested values."""
    nested = np.empty_like(values)
    for fold in np.unique(table.folds):
        held_out = table.folds == fold
        nested[held_out] = fit_decision(call, values, table, ~held_out).apply(values[held_out])
    return nested


def fit_decision(call: str, values: np.ndarray, table: Table, rows: np.ndarray | slice = slice(None)) -> Any:
    """A decision fitted on these rows of a method's nested values."""
    decision = registry.build("decisions", call)(table.metric.task.form)
    return decision.fit(values[rows], table.taught[rows], table.judge)
