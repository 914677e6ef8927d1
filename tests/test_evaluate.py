"""Scores over folds and the paired gain, whatever the metric; each metric has its own tests in test_metrics.py."""

import math

import numpy as np
import pytest

from pipeline import evaluate, registry
from pipeline.errors import UserError
from pipeline.evaluate import Metric, Score, paired_gain, score_folds
from pipeline.tasks.multiclass import Multiclass

CLASSES = 7
TASK = Multiclass(map(str, range(CLASSES)))
CALLS = [name for name, part in registry.parts("metrics").items() if {"classes", "numbers"} & set(part.facts["takes"])]


def metric(call: str) -> Metric:
    """The metric for classes that are grades, 0 to 6."""
    return evaluate.metric(call, TASK)


def draw(seed: int, rows: int = 300, truth_classes: int = CLASSES, sharp: float = 2.0):
    """Truth and probabilities that know something of it."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(truth_classes, size=rows)
    logits = generator.normal(size=(rows, CLASSES)) + sharp * np.eye(CLASSES)[truth]
    powers = np.exp(logits)
    return truth, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("call", CALLS)
def test_metrics_prefer_the_truth(call):
    truth, values = draw(0, sharp=0.0)
    right = np.eye(CLASSES, dtype=np.float32)[truth]
    score = metric(call)
    gain, se = paired_gain(score, truth, values, right, samples=50)
    assert gain > 0
    assert gain > 3 * se
    assert paired_gain(score, truth, right, values, samples=50)[0] == pytest.approx(-gain)


def test_metrics_on_decisions_are_given_what_the_task_decides():
    truth, values = draw(3)
    assert metric("accuracy()")(truth, values) == (values.argmax(axis=1) == truth).mean()
    assert metric("mae()")(truth, values) == np.abs(values.argmax(axis=1) - truth).mean()
    assert math.isnan(metric("accuracy()")(truth[:0], values[:0]))
    assert metric("mae()").gain(truth, values) == -metric("mae()")(truth, values)


def test_numbers_are_no_metric_of_classes_that_are_names():
    with pytest.raises(UserError, match="compares numbers, but the classes are names: cat, dog"):
        evaluate.metric("rmse()", Multiclass(["dog", "cat"]))


def test_score_over_folds():
    truth, values = draw(1, rows=100)
    folds = np.arange(100) % 4
    score = score_folds(metric("accuracy()"), truth, values, folds)
    right = values.argmax(1) == truth
    parts = [right[folds == fold].mean() for fold in range(4)]
    assert score.folds == pytest.approx(parts)
    assert score.value == pytest.approx(right.mean())
    assert score.se == pytest.approx(np.std(parts, ddof=1) / 2)
    assert str(Score(0.991, 0.0021, "OOF", [])) == "0.9910 ± 0.0021 OOF"
    assert str(score_folds(metric("accuracy()"), truth, values, np.zeros(100, int), "nested")).endswith("0 nested")


@pytest.mark.parametrize("call", ["accuracy()", "log_loss()"])
def test_closed_form_of_the_bootstrap(call):
    truth, base = draw(2)
    other = draw(2, sharp=2.5)[1]
    fast = metric(call)
    slow = Metric(fast.name, lambda t, v: float(np.mean(fast.function(t, v))), fast.greater, fast.wants, TASK)
    assert paired_gain(fast, truth, base, other)[0] == pytest.approx(paired_gain(slow, truth, base, other)[0])
    assert paired_gain(fast, truth, base, other)[1] == pytest.approx(paired_gain(slow, truth, base, other)[1], rel=0.1)
    assert paired_gain(fast, truth, base, base) == (0.0, 0.0)
    assert paired_gain(slow, truth, base, other, seed=3) == paired_gain(slow, truth, base, other, seed=3)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match="did you mean accuracy"):
        metric("acuracy()")


def test_images_have_a_score_alone_where_a_metric_of_masks_pools_them():
    nan = np.nan
    pooled = evaluate.MapMetric("iou_mean()", lambda: None, True, "decision", None, pooled=True)
    added = np.array([[[1.0, 3.0], [2.0, 4.0]], [[0.0, 1.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(pooled.rows(np.arange(3), added), [0.625, 0.25, nan])
    assert pooled.of(np.arange(3), added) == pytest.approx((1 / 2 + 4 / 8) / 2)
    single = evaluate.MapMetric("dice()", lambda: None, True, "decision", None, True)
    np.testing.assert_allclose(single.rows(np.arange(2), np.array([[1.0, nan], [0.5, 1.0]])), [1, 0.75])
