"""Cuts chosen by nested cross-validation: known best settings, folds that are not seen, and noise."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy import ndimage

from pipeline import cutting, registry
from pipeline.cutting import Table, choose, paired
from pipeline.parts.metrics_masks import score
from pipeline.registry import parse

FOLDS = np.arange(40) % 5
Pairs = list[tuple[np.ndarray, np.ndarray]]


def blobs(seed: int, planes: int = 1, size: tuple[int, int] = (24, 24)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((planes, *size)), (0, 2, 2))
    low, high = noise.min(axis=(1, 2), keepdims=True), noise.max(axis=(1, 2), keepdims=True)
    return ((noise - low) / (high - low)).astype(np.float32)


def shifted(levels: tuple[float, ...] = (0.7,), count: int = 40) -> Pairs:
    """Maps whose truth is what lies above a level of each class."""
    pairs = []
    for seed in range(count):
        values = blobs(seed, len(levels))
        pairs.append((values, (values >= np.array(levels, np.float32)[:, None, None]).astype(np.uint8)))
    return pairs


def arguments(call: str) -> dict:
    return parse(call).arguments


def test_the_level_that_truth_was_drawn_with_is_found() -> None:
    pairs = shifted()
    found = choose(pairs.__getitem__, FOLDS, "dice()", "threshold()", 1)
    assert found.call == found.searched
    assert arguments(found.call) == {"level": 0.7, "min_size": 0, "holes": 0, "gate": 0.0}
    assert set(found.of_folds) == set(range(5))
    assert set(found.of_folds.values()) == {found.call}
    assert found.score.value == 1
    assert found.score.kind == "nested"
    assert found.gain == pytest.approx(1 - found.default_score.value)
    assert found.gain > 2 * found.se > 0
    cut = registry.build("cuts", found.default)()
    plain = [registry.build("metrics", "dice()")(truth, cut(values), 1) for values, truth in pairs]
    assert found.default_score.value == pytest.approx(score(plain, pooled=False))
    assert "beyond one paired standard error" in str(found)
    assert found.facts()["cut"] == found.call


def test_each_class_has_its_own_level() -> None:
    pairs = shifted((0.7, 0.4, 0.55))
    found = choose(pairs.__getitem__, FOLDS, "iou_mean()", "threshold(min_size=0,holes=0,gate=0)", 3)
    assert arguments(found.call)["level"] == [0.7, 0.4, 0.55]
    assert found.score.value == 1


def test_specks_are_dropped_where_that_helps() -> None:
    pairs = []
    for values, truth in shifted((0.5,)):
        dotted = values.copy()
        dotted[0, ::8, ::8] = 0.95
        pairs.append((dotted, truth))
    found = choose(pairs.__getitem__, FOLDS, "dice()", "threshold(level=0.5)", 1)
    assert arguments(found.call)["min_size"] > 0
    assert found.score.value > found.default_score.value


def test_what_the_call_names_is_not_searched() -> None:
    pairs = shifted()
    found = choose(pairs.__getitem__, FOLDS, "dice()", "threshold(level=0.3, min_size=0, holes=0, gate=0)", 1)
    assert found.call == found.searched == found.default
    assert arguments(found.call)["level"] == 0.3
    assert found.gain == 0


@pytest.mark.parametrize(
    ("cut", "metric", "form"),
    [("argmax()", "iou_mean()", "class_masks"), ("watershed(by='shape')", "object_precision_over_iou()", "objects"),
     ("components()", "object_precision_over_iou()", "objects")],
)  # fmt: skip
def test_every_form_is_searched(cut: str, metric: str, form: str) -> None:
    pairs = []
    for seed in range(10):
        values = blobs(seed, 3)
        if form == "class_masks":
            values /= values.sum(axis=0)
            weighted = values * np.exp([0, 0.5, 0.5]).astype(np.float32)[:, None, None]
            pairs.append((values, weighted.argmax(axis=0).astype(np.uint8)))
        else:
            pairs.append((values, ndimage.label(values[0] >= 0.6, np.ones((3, 3)))[0].astype(np.int32)))
    found = choose(pairs.__getitem__, FOLDS[:10], metric, cut, 3)
    assert found.score.value > found.default_score.value + 0.02
    assert found.score.value > 0.85


def test_a_fold_is_cut_by_what_the_others_chose() -> None:
    """Fold 0 wants another level than all the others: its nested answers do not get it."""
    low, high = shifted((0.3,), 40), shifted((0.8,), 40)
    pairs = [low[row] if FOLDS[row] == 0 else high[row] for row in range(40)]
    found = choose(pairs.__getitem__, FOLDS, "dice()", "threshold(min_size=0,holes=0,gate=0)", 1)
    assert {arguments(call)["level"] for call in found.of_folds.values()} == {0.8}
    alone = np.mean([registry.build("metrics", "dice()")(low[r][1], high[r][1], 1) for r in np.flatnonzero(FOLDS == 0)])
    assert found.score.folds == pytest.approx([alone, 1, 1, 1, 1])
    changed = [(values, 1 - truth) if FOLDS[row] == 0 else (values, truth) for row, (values, truth) in enumerate(pairs)]
    again = choose(changed.__getitem__, FOLDS, "dice()", "threshold(min_size=0,holes=0,gate=0)", 1)
    assert again.of_folds[0] == found.of_folds[0], "the labels of a fold have no say in its own cut"


def test_on_noise_the_search_wins_nothing() -> None:
    """No level is better than another where truth is drawn like a coin; the search on all rows believes one is."""
    gains, inside = [], []
    for trial in range(12):
        generator = np.random.default_rng(trial)
        pairs = [
            (generator.random((1, 8, 8), dtype=np.float32), generator.integers(2, size=(1, 8, 8)).astype(np.uint8))
            for _ in range(30)
        ]
        found = choose(pairs.__getitem__, FOLDS[:30], "pixel_accuracy()", "threshold(min_size=0,holes=0,gate=0)", 1)
        gains.append(found.gain)
        table = Table(pairs.__getitem__, np.arange(30), "pixel_accuracy()", 1)
        table.fill([parse(found.searched), parse(found.default)])
        everywhere = np.ones(30, bool)
        inside.append(table.gain(parse(found.searched), everywhere) - table.gain(parse(found.default), everywhere))
        assert abs(found.score.value - 0.5) < 0.05
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert np.mean(inside) > 2 * error, "chosen and scored on the same rows it looks better"
    assert np.mean(gains) < 2 * error


def test_maps_are_read_once_an_argument_and_by_threads_with_the_same_result() -> None:
    pairs, reads, lock = shifted((0.6, 0.4)), [], threading.Lock()

    def images(row: int) -> tuple[np.ndarray, np.ndarray]:
        with lock:
            reads.append(row)
        return pairs[row]

    one = choose(images, FOLDS, "dice()", "threshold(holes=0)", 2)
    assert len(reads) <= 40 * (1 + 3 + 2), "the default, three arguments and the levels of two classes"
    two = choose(images, FOLDS, "dice()", "threshold(holes=0)", 2, threads=2)
    assert (one.call, one.of_folds, one.gain, one.se) == (two.call, two.of_folds, two.gain, two.se)


def test_a_large_set_is_searched_on_a_drawn_sample() -> None:
    pairs = shifted(count=40)
    found = choose(pairs.__getitem__, FOLDS, "dice()", "threshold(min_size=0,holes=0,gate=0)", 1, most=12)
    assert len(set(found.rows.tolist())) == len(found.rows) == 12
    assert found.among == 40
    assert "12 drawn of 40" in str(found)
    again = choose(pairs.__getitem__, FOLDS, "dice()", "threshold(min_size=0,holes=0,gate=0)", 1, most=12)
    assert np.array_equal(found.rows, again.rows)
    tiny = (np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.int32))
    slow = choose(lambda row: tiny, np.arange(999) % 5, "object_precision_over_iou()", "watershed(by='shape')", 1)
    assert len(slow.rows) == registry.facts("cuts", "watershed()")["most"] < 999


@pytest.mark.parametrize("missing", [False, True])
def test_paired_gain_is_that_of_a_slow_bootstrap(missing: bool) -> None:
    generator = np.random.default_rng(0)
    base = np.stack([generator.random((60, 2)), 1 + generator.random((60, 2))], axis=1)
    other = base + np.stack([0.1 * generator.random((60, 2)), np.zeros((60, 2))], axis=1)
    if missing:
        base[::3, :, 0] = other[::3, :, 0] = 0
    gain, se = paired(base, other)

    def slow(table: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([table[rows, 0, c].sum() / table[rows, 1, c].sum() for c in range(2)]))

    assert gain == pytest.approx(slow(other, np.arange(60)) - slow(base, np.arange(60)))
    draws = [generator.integers(60, size=60) for _ in range(1000)]
    assert se == pytest.approx(np.std([slow(other, rows) - slow(base, rows) for rows in draws], ddof=1), rel=0.12)
    means = [np.stack([table[:, :1, 0], np.ones((60, 1))], axis=1) for table in (base, other)]
    difference = (means[1] - means[0])[:, 0, 0]
    assert paired(*means)[1] == pytest.approx(difference.std(ddof=1) / np.sqrt(60))


def test_one_image_and_images_of_void_alone_keep_the_default() -> None:
    pairs = shifted(count=1)
    found = choose(pairs.__getitem__, FOLDS[:1], "dice()", "threshold()", 1)
    assert found.call == found.default
    void = [(values, np.full_like(truth, 255)) for values, truth in shifted(count=6)]
    for metric in ("dice()", "iou_mean()"):
        found = choose(void.__getitem__, FOLDS[:6], metric, "threshold()", 1)
        assert found.call == found.default
        assert np.isnan(found.score.value)


def test_classes_are_gone_through_alone_only_where_they_are_few() -> None:
    part, asked = registry.bind("cuts", "threshold()")
    common = len(part.facts["search"])
    assert len(cutting.coordinates(part, asked, 1)) == common
    assert len(cutting.coordinates(part, asked, 4)) == common + 4
    assert len(cutting.coordinates(part, asked, cutting.MOST_CLASSES + 1)) == common
    assert len(cutting.coordinates(*registry.bind("cuts", "argmax()"), 3)) == 2 + 2
