"""Metrics against scikit-learn, scores over folds, and the paired gain."""

import math

import numpy as np
import pytest
import sklearn.metrics as reference

from pipeline import registry
from pipeline.errors import UserError
from pipeline.evaluate import Metric, Score, metric, paired_gain, score_folds

CLASSES = 7
REFERENCES = {
    "accuracy()": lambda t, v: reference.accuracy_score(t, v.argmax(1)),
    "balanced_accuracy()": lambda t, v: reference.balanced_accuracy_score(t, v.argmax(1)),
    "log_loss()": lambda t, v: reference.log_loss(t, v.astype(np.float64), labels=range(CLASSES)),
    "f1_macro()": lambda t, v: reference.f1_score(t, v.argmax(1), average="macro", zero_division=0),
    "top_k_accuracy(k=3)": lambda t, v: reference.top_k_accuracy_score(t, v, k=3, labels=range(CLASSES)),
    "top_k_accuracy()": lambda t, v: reference.top_k_accuracy_score(t, v, k=5, labels=range(CLASSES)),
}


def draw(seed: int, rows: int = 300, truth_classes: int = CLASSES, sharp: float = 2.0):
    """Truth and probabilities that know something of it."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(truth_classes, size=rows)
    logits = generator.normal(size=(rows, CLASSES)) + sharp * np.eye(CLASSES)[truth]
    powers = np.exp(logits)
    return truth, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def test_every_metric_has_a_reference():
    assert {registry.parse(call).name for call in REFERENCES} == set(registry.parts("metrics"))


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")  # float32 rounding
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("call", REFERENCES)
@pytest.mark.parametrize("truth_classes", [CLASSES, 4, 1])
def test_metrics_agree_with_scikit_learn(call, truth_classes):
    for seed in range(3):
        truth, values = draw(seed, truth_classes=truth_classes)
        assert metric(call)(truth, values) == pytest.approx(REFERENCES[call](truth, values), abs=1e-6)


@pytest.mark.parametrize("call", REFERENCES)
def test_metrics_prefer_the_truth(call):
    truth, values = draw(0, sharp=0.0)
    right = np.eye(CLASSES, dtype=np.float32)[truth]
    score = metric(call)
    gain, se = paired_gain(score, truth, values, right, samples=50)
    assert gain > 0
    assert gain > 3 * se
    assert paired_gain(score, truth, right, values, samples=50)[0] == pytest.approx(-gain)


def test_log_loss_is_finite_and_clipped():
    truth, wrong = np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert metric("log_loss()")(truth, wrong) == pytest.approx(-math.log(1e-15))
    assert metric("log_loss(clip=0.01)")(truth, wrong) == pytest.approx(-math.log(0.01))
    assert metric("log_loss()")(truth, np.full((2, 2), 7.0)) == pytest.approx(math.log(2))


def test_ties_go_to_the_first_class():
    truth, flat = np.arange(4), np.full((4, 4), 0.25)
    assert metric("accuracy()")(truth, flat) == 0.25
    assert metric("top_k_accuracy(k=2)")(truth, flat) == 0.5
    assert metric("top_k_accuracy(k=9)")(truth, flat) == 1.0
    with pytest.raises(UserError, match="k must be ≥ 1"):
        metric("top_k_accuracy(k=0)")(truth, flat)


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
    slow = Metric(fast.name, lambda t, v: float(np.mean(fast.function(t, v))), fast.greater, fast.wants)
    assert paired_gain(fast, truth, base, other)[0] == pytest.approx(paired_gain(slow, truth, base, other)[0])
    assert paired_gain(fast, truth, base, other)[1] == pytest.approx(paired_gain(slow, truth, base, other)[1], rel=0.1)
    assert paired_gain(fast, truth, base, base) == (0.0, 0.0)
    assert paired_gain(slow, truth, base, other, seed=3) == paired_gain(slow, truth, base, other, seed=3)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match="did you mean accuracy"):
        metric("acuracy()")
