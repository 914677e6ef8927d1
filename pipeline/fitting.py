"""The arithmetic of decisions: how a parameter is searched for, shrunk to its default, and built into values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.stacking import sigmoid

LEAST = 1e-6  # how near to 0 and 1 a threshold may come, and to each other two cuts
SMALLEST = 1e-15
CELLS = 3e7  # how many values one fit should look at, over all its candidates

# --- search -------------------------------------------------------------------------------------------------------


def shrunk(default: Any, fitted: Any, rows: Any, weight: float) -> np.ndarray:
    """default + rows / (rows + weight) · (fitted - default), float64."""
    share = np.asarray(rows, dtype=np.float64)
    return default + share / np.maximum(share + weight, SMALLEST) * (np.asarray(fitted, dtype=np.float64) - default)


def cuts(values: np.ndarray, count: int) -> np.ndarray:
    """At most count places between neighbouring distinct values, spread evenly over the rows."""
    distinct = np.unique(values).astype(np.float64)
    if len(distinct) < 2:
        return np.zeros(0)
    rows = np.sort(values, axis=None)[np.linspace(0, values.size - 1, count).round().astype(np.int64)]
    place = np.minimum(np.searchsorted(distinct, np.unique(rows)), len(distinct) - 2)
    return np.unique((distinct[place] + distinct[place + 1]) / 2)


def between(values: np.ndarray) -> np.ndarray:
    """(n + 1,) places in ascending order: the p-th has p of the values (n,) below it, half way to the next."""
    rows = np.sort(values).astype(np.float64)
    return np.concatenate([rows[:1] - LEAST, (rows[:-1] + rows[1:]) / 2, rows[-1:] + LEAST])


def affordable(cells: int, least: int, most: int) -> int:
    """How many candidates to try where each costs a look at so many cells."""
    return int(np.clip(CELLS / cells, least, most))


def climb(
    start: np.ndarray,
    candidates: Callable[[int, np.ndarray], np.ndarray],
    gain: Callable[[np.ndarray], float],
    default: np.ndarray | None = None,
    sweeps: int = 2,
) -> np.ndarray:
    """Coordinate ascent: each parameter in turn to its best candidate; of equal ones that nearest to the default.

    start (P,). candidates: (place, parameters) → values to try. A sweep without gain is the last.
    """
    best, centre = start.astype(np.float64), start if default is None else default
    reached = gain(best)
    for _ in range(sweeps if len(start) > 1 else 1):
        before = reached
        for place in range(len(start)):
            found = candidates(place, best)
            for value in found[np.argsort(np.abs(found - centre[place]), kind="stable")].tolist():
                trial = best.copy()
                trial[place] = value
                score = gain(trial)
                if score > reached + 1e-12:
                    best, reached = trial, score
        if reached == before:
            break
    return best


def least(loss: Callable[[float], float], low: float, high: float, points: int = 25, rounds: int = 30) -> float:
    """Where a loss is least: the best of evenly spread points, then golden sections around it."""
    grid = np.linspace(low, high, points)
    best = int(np.argmin([loss(point) for point in grid.tolist()]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(rounds):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return (low + high) / 2


# --- values -------------------------------------------------------------------------------------------------------


def straddled(values: np.ndarray, cut: np.ndarray, above: np.ndarray | None = None) -> np.ndarray:
    """Values in 0…1, moved so that the cut lies at ½, float32: straight lines from 0 and 1 to it.

    above: which are to come out above ½; else those above the cut. Rounding never moves a value across.
    """
    wide, cut = values.astype(np.float64), np.clip(cut, LEAST, 1 - LEAST)
    above = wide > cut if above is None else above
    moved = np.where(above, 0.5 + 0.5 * (wide - cut) / (1 - cut), 0.5 * wide / cut).astype(np.float32)
    half = np.float32(0.5)
    return np.where(above, np.maximum(moved, np.nextafter(half, np.float32(1))), np.minimum(moved, half))


def spread(grades: np.ndarray, classes: int) -> np.ndarray:
    """Grades (N,) in 0…C - 1 → (N, C) float32 probabilities of the two grades beside each, of that mean."""
    below = np.clip(np.floor(grades), 0, classes - 2).astype(np.int64)
    share = np.clip(grades - below, 0, 1)
    values = np.zeros((len(grades), classes), dtype=np.float32)
    rows = np.arange(len(grades))
    values[rows, below], values[rows, below + 1] = 1 - share, share
    return values


def rising(cut: np.ndarray) -> np.ndarray:
    """Cuts along the last axis, each at least a little above the one before."""
    step = LEAST * np.arange(cut.shape[-1])
    return np.maximum.accumulate(cut - step, axis=-1) + step


def odds(chance: np.ndarray) -> np.ndarray:
    """Probabilities → log-odds."""
    bounded = np.clip(chance, LEAST, 1 - LEAST)
    return np.log(bounded) - np.log1p(-bounded)


def chance_of(log_odds: np.ndarray) -> np.ndarray:
    """Log-odds → probabilities."""
    return sigmoid(np.asarray(log_odds, dtype=np.float64))


def by_name(columns: Sequence[str], numbers: np.ndarray) -> dict[str, float]:
    """Parameters by the columns' names, rounded for the eye."""
    return {name: round(float(number), 6) for name, number in zip(columns, numbers, strict=True)}
