"""Honest numbers: a metric with its standard error, and whether one prediction is better than another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import registry
from pipeline.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A competition's metric, whatever its direction.

    name: its call-string. function: the part with the user's arguments bound. greater: is more better? wants:
    "decision" or "probability". rowwise: the function returns (N,) row values, and the metric is their mean.
    """

    name: str
    function: Callable[..., Any]
    greater: bool
    wants: str
    rowwise: bool = False

    def __call__(self, truth: np.ndarray, values: np.ndarray) -> float:
        """truth (N,) int64, values (N, C) probabilities → the score; NaN without rows."""
        if not len(truth):
            return math.nan
        return float(np.mean(self.function(truth, values)))

    def gain(self, truth: np.ndarray, values: np.ndarray) -> float:
        """The score, with its sign turned where less is better: more is always better."""
        return self(truth, values) if self.greater else -self(truth, values)


def metric(call: str) -> Metric:
    """The metric of a call-string such as ``log_loss()``; raises UserError for an unknown name or argument."""
    facts, name = registry.facts("metrics", call), str(registry.parse(call))
    if "greater" not in facts:
        raise UserError(f"metric={call}, but its @part does not say whether more is better; add greater=True or False")
    function = registry.build("metrics", call)
    return Metric(name, function, facts["greater"], facts.get("wants", "probability"), facts.get("rowwise", False))


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

    truth (N,) int64, values (N, C) probabilities, folds (N,) int64: the fold of each row.
    """
    scores = [metric(truth[folds == fold], values[folds == fold]) for fold in np.unique(folds)]
    se = float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan
    return Score(metric(truth, values), se, kind, scores)


def paired_gain(
    metric: Metric, truth: np.ndarray, base: np.ndarray, other: np.ndarray, seed: int = 0, samples: int = 1000
) -> tuple[float, float]:
    """How much better other is than base on the same rows, and the standard error of that.

    truth (N,) int64; base, other (N, C) probabilities. A gain > 0 means that other is better, whatever the metric's
    direction. The error is the row bootstrap's (Efron 1979) of the difference: for a mean over rows in its closed
    form (with N − 1, so that one row alone is never a gain beyond it), else from ``samples`` draws.
    """
    gain = metric.gain(truth, other) - metric.gain(truth, base)
    if metric.rowwise:
        difference = metric.function(truth, other) - metric.function(truth, base)
        return gain, float(np.std(difference, ddof=1) / math.sqrt(len(truth)))
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(samples):
        rows = generator.integers(len(truth), size=len(truth))
        draws.append(metric.gain(truth[rows], other[rows]) - metric.gain(truth[rows], base[rows]))
    return gain, float(np.std(draws, ddof=1))
