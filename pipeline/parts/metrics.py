"""Metrics: how good predictions are.

Form: ``f(truth (N,) int64, values (N, C) probabilities, *, …) -> float``. Facts: ``greater`` (is more better?),
``wants`` ("decision" or "probability") and ``rowwise``: such a metric is a mean over rows and returns their (N,)
values, so that its standard errors cost nothing. ``truth`` may lack classes. To add a metric, write one function here;
``pipeline/evaluate.py`` makes it whole.
"""

from __future__ import annotations

import numpy as np

from pipeline.errors import UserError
from pipeline.registry import part


@part(source="share of right decisions", greater=True, wants="decision", rowwise=True)
def accuracy(truth: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Share of rows whose most likely class is the true one, 0 to 1; a tie decides for the first class."""
    return (values.argmax(axis=1) == truth).astype(np.float64)


@part(source="Brodersen et al. 2010, eq. 3, for many classes: mean recall", greater=True, wants="decision")
def balanced_accuracy(truth: np.ndarray, values: np.ndarray) -> float:
    """Mean over the classes in truth of the share of their rows that is found, 0 to 1."""
    rows = np.bincount(truth)
    hits = np.bincount(truth, weights=values.argmax(axis=1) == truth)
    return float((hits[rows > 0] / rows[rows > 0]).mean())


@part(source="Kaggle's multi-class log loss", greater=False, wants="probability", rowwise=True)
def log_loss(truth: np.ndarray, values: np.ndarray, *, clip: float = 1e-15) -> np.ndarray:
    """Minus the log of the true class's probability in nats, ≥ 0; rows are scaled to sum one, then clipped."""
    wide = values.astype(np.float64)
    chance = wide[np.arange(len(truth)), truth] / np.maximum(wide.sum(axis=1), 1e-300)
    return -np.log(np.clip(chance, clip, 1.0))


@part(source="van Rijsbergen 1979, harmonic mean of precision and recall", greater=True, wants="decision")
def f1_macro(truth: np.ndarray, values: np.ndarray) -> float:
    """Mean of F1 over the classes that stand in truth or among the decisions, 0 to 1."""
    decided, classes = values.argmax(axis=1), values.shape[1]
    hits = np.bincount(truth[decided == truth], minlength=classes)
    either = np.bincount(truth, minlength=classes) + np.bincount(decided, minlength=classes)
    return float((2 * hits[either > 0] / either[either > 0]).mean())


@part(source="Russakovsky et al. 2015, section 4.1", greater=True, wants="probability", rowwise=True)
def top_k_accuracy(truth: np.ndarray, values: np.ndarray, *, k: int = 5) -> np.ndarray:
    """Share of rows whose true class is among the k most likely, 0 to 1; a tie goes to the first class."""
    if k < 1:
        raise UserError(f"top_k_accuracy(k={k}), but k must be ≥ 1")
    own = values[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(values.shape[1]) < truth[:, None]
    return (((values > own) | ((values == own) & earlier)).sum(axis=1) < k).astype(np.float64)
