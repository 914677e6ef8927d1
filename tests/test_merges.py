"""Merges against sums written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.forms import CLASSES, LABELS
from pipeline.parts import merges

VALUES = np.array([[[0.7, 0.2, 0.1]], [[0.5, 0.4, 0.1]], [[0.9, 0.05, 0.05]]], dtype=np.float32)
SLOW = {
    "mean": lambda column: sum(column) / len(column),
    "geometric_mean": lambda column: math.prod(column) ** (1 / len(column)),
    "logit_mean": lambda column: 1 / (1 + math.prod((1 - p) / p for p in column) ** (1 / len(column))),
}


@pytest.mark.parametrize("name", list(SLOW))
def test_merge_is_the_slow_one(name: str) -> None:
    merged = [SLOW[name](VALUES[:, 0, k].tolist()) for k in range(3)]
    np.testing.assert_allclose(getattr(merges, name)(VALUES, LABELS)[0], merged, rtol=1e-5)
    shares = [value / sum(merged) for value in merged]
    np.testing.assert_allclose(getattr(merges, name)(VALUES, CLASSES)[0], shares, rtol=1e-5)


def test_geometric_mean_is_the_softmax_of_the_mean_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 5, 3))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    mean = np.exp(logits.mean(axis=0))
    expected = mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(merges.geometric_mean(softmax.astype(np.float32), CLASSES), expected, rtol=1e-5)


def test_one_certain_view_does_not_silence_the_others() -> None:
    values = np.array([[[1.0, 0.0]], [[0.2, 0.8]], [[0.2, 0.8]]], dtype=np.float32)
    for name in SLOW:
        merged = getattr(merges, name)(values, CLASSES)
        assert np.isfinite(merged).all()
        assert 0 < merged[0, 1] < 1
