"""Whether two predictions of the same rows differ by more than chance: a permutation test, an interval, McNemar's.

Rows of one group (patients, scenes) are no independent witnesses: they are swapped and drawn together, as units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate import Metric

BLOCK = 4_000_000  # signs that are drawn at once
ROUNDING = 1e-12  # sums that differ by less are equal
LEVEL = 0.95  # of the interval
SURE = 0.05  # a smaller p is more than noise


@dataclass(frozen=True)
class Both:
    """Two answers to the same rows as ``Metric.seen`` gives them; units (n,) int64, the group of each row, 0, 1, …"""

    metric: Metric
    seen: np.ndarray
    first: np.ndarray
    second: np.ndarray
    units: np.ndarray

    @property
    def count(self) -> int:
        """The number of units."""
        return int(self.units.max()) + 1

    def gain(self, rows: np.ndarray | slice = slice(None), swap: np.ndarray | None = None) -> float:
        """How much better the second is on these rows; swap: (n,) bool, rows whose answers are exchanged before."""
        first, second = self.first, self.second
        if swap is not None:
            where = swap.reshape(-1, *[1] * (first.ndim - 1))
            first, second = np.where(where, second, first), np.where(where, first, second)
        seen = self.seen[rows]
        return self.metric.sign * (self.metric.of(seen, second[rows]) - self.metric.of(seen, first[rows]))

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each unit the sum of its rows' gains, and how many rows count; of metrics that are means over rows."""
        rows = self.metric.sign * (self.metric.rows(self.seen, self.second) - self.metric.rows(self.seen, self.first))
        known = ~np.isnan(rows)
        total = np.bincount(self.units, weights=np.where(known, rows, 0.0), minlength=self.count)
        return total, np.bincount(self.units, weights=known, minlength=self.count)


def permutation(both: Both, draws: int, seed: int = 0) -> float:
    """The chance of a difference at least as large, were it the same which of both gave an answer (Noreen 1989).

    Each unit's answers are exchanged or not, at random: of a mean over rows that is the sign-flip test. Two-sided; the
    difference that was seen counts as one of the draws, so that p is never 0.
    """
    found = np.abs(np.fromiter(_exchanged(both, draws, seed), dtype=np.float64, count=draws))
    seen = abs(both.sums()[0].sum()) if both.metric.rowwise else abs(both.gain())
    return float((1 + (found >= seen - ROUNDING * max(1.0, seen)).sum()) / (1 + draws))


def _exchanged(both: Both, draws: int, seed: int) -> Iterator[float]:
    generator = np.random.default_rng([seed, 1])
    if not both.metric.rowwise:
        for _ in range(draws):
            yield both.gain(swap=generator.integers(2, size=both.count).astype(bool)[both.units])
        return
    total = both.sums()[0]
    total = total[total != 0]  # a sign of nothing is nothing
    step = max(1, BLOCK // max(1, len(total)))
    for start in range(0, draws, step):
        signs = generator.integers(2, size=(min(step, draws - start), len(total)), dtype=np.int8) * 2 - 1
        yield from (signs @ total).tolist()


def interval(both: Both, draws: int, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the gain when units are drawn anew (Efron 1979, percentiles)."""
    generator, count = np.random.default_rng([seed, 2]), both.count
    pick: Callable[[], np.ndarray] = lambda: generator.integers(count, size=count)  # noqa: E731
    if both.metric.rowwise:
        total, rows = both.sums()
        drawn = (pick() for _ in range(draws))
        found = [total[units].sum() / max(1.0, rows[units].sum()) for units in drawn]
    else:
        order = np.argsort(both.units, kind="stable")
        own = np.split(order, np.cumsum(np.bincount(both.units, minlength=count))[:-1])
        found = [both.gain(np.concatenate([own[unit] for unit in pick()])) for _ in range(draws)]
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact test of rows that one alone has right (1947): two-sided binomial p. first, second: (n,) bool."""
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(one, one + other).pvalue) if one + other else 1.0


def verdict(p: float, low: float, high: float) -> str:
    """In words, of the second; more than noise where the test and the interval say so."""
    if math.isnan(p) or math.isnan(low):
        return "nothing can be said: too few rows"
    if p < SURE and (low > 0 or high < 0):
        return f"{'better' if low > 0 else 'worse'} by more than noise: p = {p:.2g}, and the interval holds no 0"
    return f"no more than noise: p = {p:.2g}" + ("" if low > 0 or high < 0 else ", and the interval holds 0")
