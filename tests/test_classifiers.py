"""Classifiers of stage=features: linear models against scikit-learn's, and the contract of each with every form."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import linear, registry
from pipeline.forms import FORMS
from pipeline.stacking import sigmoid, softmax, unlink

PAIRS = [(name, form) for name, part in registry.parts("classifiers").items() for form in part.facts["takes"]]


def data(rows: int = 120, features: int = 6, classes: int = 3, noise: float = 1.0, seed: int = 0):
    """(N, F) rows of squared length about one, (N,) classes that they tell but for the noise, (N,) groups."""
    generator = np.random.default_rng(seed)
    centres = 3 * generator.normal(size=(classes, features))
    truth = np.arange(rows) % classes
    points = centres[truth] + noise * generator.normal(size=(rows, features))
    points = (points - points.mean(axis=0)) / points.std(axis=0) / np.sqrt(features)
    return points, truth, np.arange(rows) // classes % 4


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(linear, "PRECISION", 1e-13)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_logistic_is_that_of_scikit_learn(penalty, exact):
    from sklearn.linear_model import LogisticRegression

    points, truth, _ = data(noise=4)
    found = linear.outputs(points, linear.fit(points, np.eye(3)[truth], linear.classes, penalty))
    slow = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(points, truth).predict_proba(points)
    np.testing.assert_allclose(softmax(found), slow, atol=1e-4)
    one = linear.fit(points, (truth == 1)[:, None].astype(float), linear.labels, penalty)
    slow = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(points, truth == 1).predict_proba(points)
    np.testing.assert_allclose(sigmoid(linear.outputs(points, one)[:, 0]), slow[:, 1], atol=1e-4)


@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_svm_and_ridge_are_those_of_scikit_learn(penalty, exact):
    from sklearn.linear_model import Ridge
    from sklearn.svm import LinearSVC

    points, truth, _ = data(noise=4)
    found = linear.outputs(points, linear.fit(points, np.eye(3)[truth], linear.hinge, penalty))
    model = LinearSVC(C=1 / penalty, dual=False, tol=1e-8, intercept_scaling=1e3, max_iter=20000).fit(points, truth)
    np.testing.assert_allclose(found, model.decision_function(points), atol=1e-3)
    numbers = np.stack([truth, points[:, 0] ** 2], axis=1)
    found = linear.outputs(points, linear.fit(points, numbers, linear.squares, penalty))
    np.testing.assert_allclose(found, Ridge(penalty).fit(points, numbers).predict(points), atol=1e-5)


@pytest.mark.parametrize("loss", [linear.classes, linear.labels, linear.hinge, linear.squares])
def test_gradients_are_differences(loss):
    generator = np.random.default_rng(0)
    raw, targets = generator.normal(size=(5, 3)), generator.dirichlet(np.ones(3), 5)
    slope = loss(raw, targets)[1]
    for place in np.ndindex(raw.shape):
        moved = np.zeros_like(raw)
        moved[place] = 1e-6
        slow = (loss(raw + moved, targets)[0] - loss(raw - moved, targets)[0]) / 2e-6
        assert slope[place] == pytest.approx(slow, abs=1e-6)


def test_inner_splits_hold_out_whole_groups(monkeypatch):
    groups = np.array([3, 1, 1, 3, 0, 0, 0])
    assert [part.tolist() for part in linear.inner_splits(groups)] == [[4, 5, 6], [1, 2], [0, 3]]
    monkeypatch.setattr(linear, "INNER_ROWS", 4)
    assert [part.tolist() for part in linear.inner_splits(groups)] == [[4, 5, 6], [1, 2]]
    lone = linear.inner_splits(np.zeros(10))
    assert sorted(np.concatenate(lone).tolist())[:4] != []
    assert all(0 < len(part) < 10 for part in lone)


def test_the_penalty_follows_the_noise():
    points, truth, groups = data(noise=0.5)
    targets, splits = np.eye(3)[truth], linear.inner_splits(groups)
    clean, held = linear.choose(points, targets, linear.classes, (100, 1, 0.01), splits)
    assert clean == 0.01
    assert held.shape == (120, 3)
    assert (held.argmax(axis=1) == np.concatenate([truth[out] for out in splits])).mean() > 0.95
    shuffled = targets[np.random.default_rng(0).permutation(120)]
    assert linear.choose(points, shuffled, linear.classes, (100, 1, 0.01), splits)[0] == 100


def test_calibrated_scores_are_right_as_often_as_they_say():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(4000, 1))
    truth = (generator.random((4000, 1)) < sigmoid(3 * scores - 1)).astype(float)
    slope, shift = linear.calibrate(scores, truth)[:, 0]
    assert slope == pytest.approx(3, abs=0.3)
    assert shift == pytest.approx(-1, abs=0.2)
    never = linear.calibrate(scores[:50], np.zeros((50, 1)))
    assert (sigmoid(scores[:50, 0] * never[0] + never[1]) < 0.05).all(), "and yet it is not impossible"


def targets_of(form: str, truth: np.ndarray, points: np.ndarray) -> np.ndarray:
    if form == "numbers":
        return np.stack([points[:, 0] - points[:, 1], 3 * points[:, 2]], axis=1).astype(np.float32)
    dense = np.eye(3, dtype=np.float32)[truth]
    return dense if form == "classes" else np.stack([dense[:, 0], 1 - dense[:, 1], dense[:, 2]], axis=1)


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_it_learns_and_gives_the_same_again(name, form):
    points, truth, groups = data(rows=240)
    points = points.astype(np.float32)
    targets = targets_of(form, truth, points)
    answers = []
    for _ in range(2):
        model = registry.build("classifiers", name)(FORMS[form], targets.shape[1])
        model.fit(points[:160], targets[:160], groups[:160])
        answers.append(model.outputs(points[160:]))
    assert (answers[0] == answers[1]).all()
    assert (answers[0].shape, answers[0].dtype) == ((80, targets.shape[1]), np.float64)
    values = FORMS[form].finish(unlink(FORMS[form], answers[0]))
    plain = np.broadcast_to(targets[:160].mean(axis=0), values.shape)
    distance = FORMS[form].distance
    assert distance(targets[160:], values).mean() < 0.5 * distance(targets[160:], plain).mean()
    assert model.chosen()


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_columns_that_never_vary_and_few_rows_do_no_harm(name, form):
    points, truth, groups = data(rows=24)
    targets = targets_of(form, truth % 2, points)
    targets[:, -1] = 0
    model = registry.build("classifiers", name)(FORMS[form], targets.shape[1])
    model.fit(points.astype(np.float32), targets, groups)
    values = FORMS[form].finish(unlink(FORMS[form], model.outputs(points.astype(np.float32))))
    assert np.isfinite(values).all()
    assert np.abs(values[:, -1]).max() < 0.3
    if FORMS[form].bounded:
        assert values[:, -1].min() > 0, "no class is impossible"


@pytest.mark.parametrize("name", ["logistic", "svm"])
def test_soft_targets_count_by_their_shares(name):
    points, truth, groups = data(rows=240)
    soft = (0.7 * np.eye(3)[truth] + 0.1).astype(np.float32)
    model = registry.build("classifiers", f"{name}(penalty=0.01)")(FORMS["classes"], 3)
    values = softmax(model.fit(points.astype(np.float32), soft, groups).outputs(points.astype(np.float32)))
    assert values.max(axis=1).mean() == pytest.approx(0.8, abs=0.08)


def test_a_given_penalty_is_not_chosen_anew():
    points, truth, groups = data()
    model = registry.build("classifiers", "logistic(penalty=7)")(FORMS["classes"], 3)
    model.fit(points.astype(np.float32), np.eye(3, dtype=np.float32)[truth], groups)
    assert model.chosen() == {"penalty": 7}
