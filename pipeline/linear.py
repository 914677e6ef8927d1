"""Linear models with an L2 penalty for any form of target, and the strength of the penalty by inner cross-validation.

All columns are found at once, by L-BFGS on the mean loss, in the number format of the rows; soft targets are allowed.
The products are single precision where the rows are, which is why 8,000 rows of 2,000 numbers take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.stacking import sigmoid, softmax

INNER_ROWS = 2000  # so many rows, predicted by models without them, tell one penalty from another well enough
PRECISION = 1e-5  # relative fall of the loss, in a step, at which it counts as found
SMALLEST = 1e-30

Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


def classes(raw: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Cross-entropy of a softmax: raw and targets (N, C) → the mean over rows, and its gradient by raw, (N, C)."""
    chances = softmax(raw)
    value = -(targets * np.log(np.maximum(chances, SMALLEST))).sum(dtype=np.float64) / len(raw)
    return float(value), (chances - targets) / len(raw)


def labels(raw: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Binary cross-entropy of a sigmoid a column, summed over columns; as ``classes``."""
    value = (np.maximum(raw, 0) - raw * targets + np.log1p(np.exp(-np.abs(raw)))).sum(dtype=np.float64) / len(raw)
    return float(value), (sigmoid(raw) - targets) / len(raw)


def hinge(raw: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The squared hinge of one column against the rest, summed over columns; as ``classes``."""
    side = 2 * targets - 1
    lack = np.maximum(1 - side * raw, 0)
    return float((lack**2).sum(dtype=np.float64) / len(raw)), -2 * side * lack / len(raw)


def squares(raw: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Half the squared error, summed over columns; as ``classes``."""
    error = raw - targets
    return float(0.5 * (error**2).sum(dtype=np.float64) / len(raw)), error / len(raw)


def fit(
    rows: np.ndarray, targets: np.ndarray, loss: Loss, penalty: float, start: np.ndarray | None = None,
    steps: int = 500,
) -> np.ndarray:  # fmt: skip
    """(F + 1, C) float64 weights, the last row the intercepts: least loss + penalty / (2 N) · Σ w², of weights alone.

    rows (N, F), targets (N, C), both of one float type. start: weights to begin at. steps: the most of L-BFGS.
    """
    from scipy.optimize import minimize

    shape = (rows.shape[1] + 1, targets.shape[1])
    shrink = penalty / len(rows)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        wide = flat.reshape(shape)
        weight = wide.astype(rows.dtype)
        value, slope = loss(rows @ weight[:-1] + weight[-1], targets)
        gradient = np.empty(shape)
        gradient[:-1] = rows.T @ slope + shrink * wide[:-1]
        gradient[-1] = slope.sum(axis=0)
        return value + 0.5 * shrink * float((wide[:-1] ** 2).sum()), gradient.ravel()

    first = np.zeros(shape) if start is None else start
    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": PRECISION, "gtol": PRECISION}
    found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64).reshape(shape)


def outputs(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, F) → (N, C) float64."""
    weights = weights.astype(rows.dtype)
    return (rows @ weights[:-1] + weights[-1]).astype(np.float64)


def inner_splits(groups: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Rows (n,) int64 to hold out in turn: whole groups (N,), until ``INNER_ROWS`` have been held out or all have.

    The groups are the folds that the rows lie in, so that what belongs together stays together here too. Where there is
    one alone, it is cut into four at random.
    """
    names = np.unique(groups)
    if len(names) < 2:
        groups = np.random.default_rng([seed, len(groups)]).permutation(len(groups)) % 4
        names = np.unique(groups)
    parts: list[np.ndarray] = []
    for name in names.tolist():
        if sum(map(len, parts)) < INNER_ROWS:
            parts.append(np.flatnonzero(groups == name))
    return parts


def choose(
    rows: np.ndarray, targets: np.ndarray, loss: Loss, penalties: Sequence[float], splits: Sequence[np.ndarray]
) -> tuple[float, np.ndarray]:
    """The penalty with the least loss on rows held out, and the (n, C) outputs there, splits one after the other.

    Tried from the strongest on, each beginning where the one before ended, until the loss rises.
    """
    others = [np.setdiff1d(np.arange(len(rows)), out) for out in splits]
    weights: list[np.ndarray | None] = [None] * len(splits)
    best, chosen, kept = np.inf, max(penalties), np.zeros((0, targets.shape[1]))
    truth = np.concatenate([targets[out] for out in splits])
    for penalty in sorted(penalties, reverse=True):
        weights = [
            fit(rows[own], targets[own], loss, penalty, start) for own, start in zip(others, weights, strict=True)
        ]
        found = np.concatenate([outputs(rows[out], w) for out, w in zip(splits, weights, strict=True) if w is not None])
        value = loss(found, truth)[0]
        if value >= best:
            break
        best, chosen, kept = value, penalty, found
    return chosen, kept


def calibrate(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(2, C) slope and shift a column by which scores (N, C) become log-odds, Platt 1999: sec. 2.2, soft counts too."""
    found = np.empty((2, scores.shape[1]))
    for column, (score, target) in enumerate(zip(scores.T, targets.T.astype(np.float64), strict=True)):
        positive = target.sum()
        high, low = (positive + 1) / (positive + 2), 1 / (len(target) - positive + 2)
        smooth = low + (high - low) * target
        found[:, column] = fit(score[:, None], smooth[:, None], labels, 1e-3)[:, 0]
    return found
