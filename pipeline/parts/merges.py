"""Merges: the predictions of several views and scales → one.

Form: ``f(values (V, N, C) float32, simplex) -> (N, C) float32``. simplex: the C values of a row are probabilities of
exclusive classes, so that the result's rows must sum to one. Logs see values of at least 1e-7.
"""

from __future__ import annotations

import numpy as np

from pipeline.registry import part

SMALLEST = 1e-7


@part(source="Krizhevsky et al. 2012, sec. 4.1")
def mean(values: np.ndarray, simplex: bool) -> np.ndarray:
    """The mean of the probabilities."""
    return _finish(values.mean(axis=0, dtype=np.float64), simplex)


@part(source="Hinton 2002 (products of experts), eq. 1")
def geometric_mean(values: np.ndarray, simplex: bool) -> np.ndarray:
    """The geometric mean; for exclusive classes the same as the softmax of the mean logits."""
    logs = np.log(np.clip(values.astype(np.float64), SMALLEST, 1))
    return _finish(np.exp(logs.mean(axis=0)), simplex)


@part(source="Satopää et al. 2014 (Combining multiple probability predictions)")
def logit_mean(values: np.ndarray, simplex: bool) -> np.ndarray:
    """The mean of each class's log-odds against all others."""
    chance = np.clip(values.astype(np.float64), SMALLEST, 1 - SMALLEST)
    odds = np.log(chance / (1 - chance)).mean(axis=0)
    return _finish(1 / (1 + np.exp(-odds)), simplex)


def _finish(merged: np.ndarray, simplex: bool) -> np.ndarray:
    if simplex:
        merged = merged / merged.sum(axis=1, keepdims=True)
    return merged.astype(np.float32)
