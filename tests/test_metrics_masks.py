"""Metrics of masks and objects against slow references, pixel by pixel and pair by pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from pipeline import registry
from pipeline.parts import metrics_masks
from pipeline.parts.metrics_masks import VOID, VOID_LABEL, score

C, H, W = 3, 7, 9
STEPS = [0.5 + 0.05 * k for k in range(10)]
SEEDS = range(6)


def drawn(form: str, seed: int, void: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Truth with some void and an answer that knows something of it; one class or the other is nowhere."""
    generator = np.random.default_rng(seed)
    if form == "class_masks":
        truth = generator.integers(C - seed % 2, size=(H, W)).astype(np.uint8)
        answer = np.where(generator.random((H, W)) < 0.6, truth, generator.integers(C, size=(H, W))).astype(np.uint8)
    else:
        truth = (generator.random((C, H, W)) < np.array([0.5, 0.2, 0.0])[:, None, None]).astype(np.uint8)
        answer = np.where(generator.random((C, H, W)) < 0.7, truth, 1 - truth).astype(np.uint8)
        answer[2] *= seed % 2
    if void:
        truth[..., 2:4, 3:6] = VOID
    return truth, answer


def planes(table: np.ndarray) -> list[list[int]]:
    """The pixels of each class as 0, 1 or VOID, in plain Python."""
    if table.ndim == 3:
        return [plane.ravel().tolist() for plane in table]
    flat = table.ravel().tolist()
    return [[VOID if p == VOID else int(p == c) for p in flat] for c in range(C)]


def sets(truth: np.ndarray, answer: np.ndarray, ground: bool) -> list[tuple[set[int], set[int]]]:
    """Of each class the known places that are true and those that are answered."""
    found = []
    for true, given in zip(planes(truth), planes(answer), strict=True):
        known = {place for place, p in enumerate(true) if p != VOID}
        found.append(({p for p in known if true[p] == 1}, {p for p in known if given[p] == 1}))
    return found if truth.ndim == 3 or ground else found[1:]


def metric(call: str, *given: np.ndarray) -> np.ndarray:
    return registry.build("metrics", call)(*given, C)


@pytest.mark.parametrize("form", ["masks", "class_masks"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ground", [False, True])
@pytest.mark.parametrize("empty", [1.0, 0.0, None])
def test_dice_and_iou_are_the_slow_ones(form: str, seed: int, ground: bool, empty: float | None) -> None:
    truth, answer = drawn(form, seed)
    pairs = sets(truth, answer, ground)
    nothing = math.nan if empty is None else empty
    dice = [2 * len(t & a) / (len(t) + len(a)) if t or a else nothing for t, a in pairs]
    iou = [len(t & a) / len(t | a) if t or a else nothing for t, a in pairs]
    keys = f"ground={ground}, empty={empty}"
    np.testing.assert_allclose(metric(f"dice({keys})", truth, answer), dice)
    np.testing.assert_allclose(metric(f"iou({keys})", truth, answer), iou)
    either = [bool(t or a) for t, a in pairs]
    above = [sum(one > s + 1e-12 for s in STEPS) / 10 if any_ else 1.0 for one, any_ in zip(iou, either, strict=True)]
    np.testing.assert_allclose(metric(f"precision_over_iou(ground={ground})", truth, answer), above)


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_agree_with_scikit_learn(seed: int) -> None:
    truth, answer = drawn("class_masks", seed, void=False)
    flat, labels = (truth.ravel(), answer.ravel()), list(range(C))
    there = np.isin(labels, np.concatenate(flat))
    dice, iou = metric("dice(ground=true)", truth, answer), metric("iou(ground=true)", truth, answer)
    np.testing.assert_allclose(dice[there], f1_score(*flat, average=None, labels=labels, zero_division=1)[there])
    np.testing.assert_allclose(iou[there], jaccard_score(*flat, average=None, labels=labels, zero_division=1)[there])
    above, below = metric("pixel_accuracy()", truth, answer)
    assert above.sum() / below.sum() == accuracy_score(*flat)


@pytest.mark.parametrize("form", ["masks", "class_masks"])
@pytest.mark.parametrize("ground", [False, True])
def test_pooled_metrics_are_those_of_all_pixels_together(form: str, ground: bool) -> None:
    images = [drawn(form, seed) for seed in SEEDS]
    counts = [[0, 0] for _ in range(C)]
    right = known = 0
    for truth, answer in images:
        for c, (true, given) in enumerate(sets(truth, answer, ground=True)):
            counts[c][0] += len(true & given)
            counts[c][1] += len(true | given)
        for t, a in zip(truth.ravel().tolist(), answer.ravel().tolist(), strict=True):
            right, known = right + (t == a), known + (t != VOID)
    if form == "class_masks" and not ground:
        counts = counts[1:]
    expected = [above / below for above, below in counts if below]
    call = f"iou_mean(ground={ground})"
    assert score([metric(call, *pair) for pair in images], True) == pytest.approx(sum(expected) / len(expected))
    assert score([metric("pixel_accuracy()", *pair) for pair in images], True) == pytest.approx(right / known)


def test_an_image_of_void_alone_counts_nowhere() -> None:
    for form in ("masks", "class_masks"):
        truth, answer = drawn(form, 1)
        void = np.full_like(truth, VOID)
        for call in ("dice()", "iou()", "precision_over_iou()"):
            assert np.isnan(metric(call, void, answer)).all()
            one = metric(call, truth, answer)
            assert score([one, metric(call, void, answer)], False) == score([one], False)
        for call in ("iou_mean()", "pixel_accuracy()"):
            assert (metric(call, void, answer) == 0).all()
    void, answer = np.full((4, 4), VOID_LABEL), np.eye(4, dtype=np.int32)
    assert np.isnan(metric("object_precision_over_iou()", void, answer)).all()
    assert math.isnan(score([metric("object_precision_over_iou()", void, answer)], False))


def test_precision_over_iou_wants_more_than_the_threshold_and_has_the_competitions_empty_conventions() -> None:
    def of(true: int, both: int, given: int) -> float:
        truth, answer = np.zeros((1, 1, 200), np.uint8), np.zeros((1, 1, 200), np.uint8)
        truth[..., :true] = 1
        answer[..., true - both : true - both + given] = 1
        return float(registry.build("metrics", "precision_over_iou()")(truth, answer, 1)[0])

    assert of(0, 0, 0) == 1
    assert of(5, 0, 0) == of(0, 0, 5) == 0
    for k in range(10):
        assert of(20, 10 + k, 10 + k) == k / 10, "an IoU of just the threshold is none above it"
        assert of(100, 51 + 5 * k, 51 + 5 * k) == (k + 1) / 10


# --- objects ------------------------------------------------------------------------------------------------------


def objects(seed: int, void: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles on a small ground, with numbers that have gaps; the answer has them moved, lost and added."""
    generator = np.random.default_rng(seed)
    truth, answer = np.zeros((30, 40), np.int32), np.zeros((30, 40), np.int32)
    for number in range(seed % 4 * 3):
        top, left, height, width = generator.integers([0, 0, 3, 3], [24, 34, 7, 9])
        truth[top : top + height, left : left + width] = 3 * number + 2
        if generator.random() < 0.8:
            down, right = generator.integers(0, 2, size=2)
            answer[top + down : top + height, left + right : left + width] = 50 - number
    answer[:2, :2] = 90 if seed % 3 else 0
    if void:
        truth[10:13, 5:25] = VOID_LABEL
    return truth, answer


def slow_object_precision(truth: np.ndarray, answer: np.ndarray) -> float:
    known = {place for place, label in np.ndenumerate(truth) if label != VOID_LABEL}
    true = [{p for p in known if truth[p] == label} for label in sorted(set(truth.ravel().tolist()) - {0, VOID_LABEL})]
    given = [{p for p in known if answer[p] == label} for label in sorted(set(answer.ravel().tolist()) - {0})]
    given = [one for one in given if one]
    values = []
    for step in STEPS:
        hits = sum(len(t & g) / len(t | g) > step + 1e-12 for t, g in itertools.product(true, given))
        total = len(true) + len(given) - hits
        values.append(hits / total if total else 1.0)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("void", [False, True])
def test_object_precision_is_the_slow_one(seed: int, void: bool, monkeypatch) -> None:
    truth, answer = objects(seed, void)
    expected = [slow_object_precision(truth, answer)]
    np.testing.assert_allclose(metric("object_precision_over_iou()", truth, answer), expected)
    monkeypatch.setattr(metrics_masks, "MOST_PAIRS", 0)
    np.testing.assert_allclose(metric("object_precision_over_iou()", truth, answer), expected)


def test_object_precision_of_nothing_is_by_key() -> None:
    ground = np.zeros((4, 4), np.int32)
    assert metric("object_precision_over_iou()", ground, ground).tolist() == [1.0]
    assert metric("object_precision_over_iou(empty=0)", ground, ground).tolist() == [0.0]
    assert np.isnan(metric("object_precision_over_iou(empty=null)", ground, ground)).all()
    assert metric("object_precision_over_iou()", ground, ground + 1).tolist() == [0.0]
    assert metric("object_precision_over_iou()", ground + 7, ground).tolist() == [0.0]


def test_object_precision_takes_labels_that_would_make_a_table_too_large() -> None:
    truth = np.array([[1, 1, 2_000_000_000, 0]], np.int32)
    answer = np.array([[5, 5, 1_999_999_999, 0]], np.int32)
    assert metric("object_precision_over_iou()", truth, answer).tolist() == [1.0]
