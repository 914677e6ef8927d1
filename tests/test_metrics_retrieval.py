"""Metrics of ranked lists against lists in plain Python, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from pipeline import ranking, registry
from pipeline.parts import metrics
from pipeline.parts.metrics_retrieval import score
from pipeline.ranking import HIT, JUNK, MISS


def slow(name: str, truth: int, answers: list[int], k: int) -> float:
    """The metric of one query."""
    kept = [answer for answer in answers if answer != JUNK][:k]
    if not truth:
        return math.nan
    if name == "rank_k":
        return float(HIT in kept)
    if name == "precision_at_k":
        return kept.count(HIT) / k
    precisions = [kept[: place + 1].count(HIT) / (place + 1) for place, answer in enumerate(kept) if answer == HIT]
    return sum(precisions) / min(truth, k)


@pytest.mark.parametrize("name", ["mean_average_precision", "rank_k", "precision_at_k"])
@given(rows=st.lists(st.lists(st.sampled_from([HIT, MISS, JUNK]), min_size=9, max_size=9), min_size=1, max_size=5),
       k=st.integers(1, 12), more=st.integers(0, 3))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_metric_is_the_slow_one(name, rows, k, more):
    truth = np.array([row.count(HIT) + more for row in rows])
    found = registry.build("metrics", f"{name}(k={k})")(truth, np.array(rows, dtype=np.int8))
    assert (found.shape, found.dtype) == ((len(rows),), np.float64)
    np.testing.assert_allclose(found, [slow(name, n, row, k) for n, row in zip(truth.tolist(), rows, strict=True)])
    known = [one for one in found.tolist() if not math.isnan(one)]
    assert score(found) == pytest.approx(sum(known) / len(known)) if known else math.isnan(score(found))


def test_whole_lists_have_scikit_learns_average_precision():
    generator = np.random.default_rng(0)
    hits = generator.random((20, 30)) < 0.3
    hits[:, 0] |= ~hits.any(axis=1)
    found = registry.build("metrics", "mean_average_precision(k=30)")(hits.sum(axis=1), hits.astype(np.int8))
    slow = [average_precision_score(row, -np.arange(30)) for row in hits]
    np.testing.assert_allclose(found, slow)


def test_labels_score_as_map_at_k_of_classes():
    generator = np.random.default_rng(0)
    truth, values = generator.integers(8, size=50), generator.random((50, 8))
    answers = np.argsort(-values, axis=1)[:, :5].astype(np.str_)
    judged = ranking.judge_labels(answers, truth.astype(np.str_))
    found = registry.build("metrics", "mean_average_precision(k=5)")(*judged)
    np.testing.assert_allclose(found, metrics.map_at_k(truth, values, k=5))
