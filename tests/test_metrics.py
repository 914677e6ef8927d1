"""Metrics against scikit-learn, scipy or a slow reference, on random rows and on the odd ones of small folds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy.stats import spearmanr

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import metrics

SEEDS = range(4)
CLASSES = 6
Pair = tuple[np.ndarray, np.ndarray]


def score(call: str, truth: np.ndarray, answer: np.ndarray) -> float:
    """The metric of a call-string, as ``evaluate`` takes it."""
    return float(np.mean(registry.build("metrics", call)(truth, answer)))


def classes(seed: int, rows: int = 200, there: int = CLASSES) -> Pair:
    """Truth of the first ``there`` classes, and float32 probabilities that know something of it."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(there, size=rows)
    powers = np.exp(generator.normal(size=(rows, CLASSES)) + 1.5 * np.eye(CLASSES)[truth])
    return truth, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def labels(seed: int, rows: int = 200, columns: int = CLASSES) -> Pair:
    """Truth of 0 and 1, each column of another frequency, and values with many ties that know something of it."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((rows, columns)) < np.linspace(0.1, 0.6, columns)).astype(np.float32)
    values = np.clip(0.3 * truth + 0.7 * generator.random((rows, columns)), 0, 1)
    return truth, values.round(1).astype(np.float32)


def numbers(seed: int, rows: int = 200, columns: int = 3) -> Pair:
    """Truth ≥ 0 and answers near it, some below 0, of columns of other sizes."""
    generator = np.random.default_rng(seed)
    truth = generator.gamma(2.0, size=(rows, columns)) * np.array([1, 10, 100])[:columns]
    return truth.astype(np.float32), (truth + generator.normal(size=truth.shape) * truth.std(axis=0)).astype(np.float32)


def decided(truth: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values.argmax(axis=1) if truth.ndim == 1 else (values > 0.5).astype(np.float32)


def columnwise(function: Callable[..., float]) -> Callable[..., float]:
    """A reference of one column, as the mean over columns."""
    return lambda truth, answer: float(np.mean([function(t, a) for t, a in zip(truth.T, answer.T, strict=True)]))


def f_of(average: str, beta: float = 1.0) -> Callable[..., float]:
    # scikit-learn leaves what has neither truth nor answer out of the mean over classes if asked to
    empty = {"macro": np.nan}.get(average, 1.0)
    return lambda t, a: reference.fbeta_score(t, a, beta=beta, average=average, zero_division=empty)


# --- decisions ----------------------------------------------------------------------------------------------------

DECISIONS = {
    "accuracy()": reference.accuracy_score,
    "f1_micro()": f_of("micro"),
    "f1_macro()": f_of("macro"),
    "f_beta(average='macro')": f_of("macro", 2.0),
    "f_beta(average='micro', beta=0.5)": f_of("micro", 0.5),
    "f_beta(average='weighted', beta=3.0)": f_of("weighted", 3.0),
}


@pytest.mark.parametrize("call", DECISIONS)
@pytest.mark.parametrize("there", [CLASSES, 3, 1])
def test_decisions_on_classes_agree_with_scikit_learn(call: str, there: int) -> None:
    for seed in SEEDS:
        truth, values = classes(seed, there=there)
        answer = decided(truth, values)
        assert score(call, truth, answer) == pytest.approx(DECISIONS[call](truth, answer))


@pytest.mark.parametrize("call", DECISIONS)
def test_decisions_on_labels_agree_with_scikit_learn(call: str) -> None:
    for seed in SEEDS:
        truth, values = labels(seed)
        truth[:, 0] *= seed % 2  # a column without a positive row
        answer = decided(truth, values)
        answer[:, 0] *= seed // 2
        assert score(call, truth, answer) == pytest.approx(DECISIONS[call](truth, answer))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_f_of_rows_agrees_with_scikit_learn_and_a_row_rightly_left_empty_counts_one(beta: float) -> None:
    for seed in SEEDS:
        truth, values = labels(seed, columns=4)
        answer = decided(truth, values)
        answer[: len(answer) // 2] = 0
        assert (truth.sum(axis=1) + answer.sum(axis=1) == 0).any()
        expected = reference.fbeta_score(truth, answer, beta=beta, average="samples", zero_division=1.0)
        assert score(f"f_beta(beta={beta})", truth, answer) == pytest.approx(expected)
        if beta == 1:
            assert score("f1_samples()", truth, answer) == pytest.approx(expected)


def test_f_of_one_class() -> None:
    for seed in SEEDS:
        truth, values = classes(seed, there=2)
        answer = values[:, :2].argmax(axis=1)
        expected = reference.fbeta_score(truth, answer, beta=2.0)
        assert score("f_beta(average='binary')", truth, answer) == pytest.approx(expected)
        assert score("f_beta(average='binary')", truth[:, None], answer[:, None]) == pytest.approx(expected)
    with pytest.raises(UserError, match="average='binary'.* 6; take macro, micro, samples, weighted"):
        score("f_beta(average='binary')", *labels(0))


@pytest.mark.parametrize("average", metrics.F_AVERAGES)
def test_f_of_nothing_found_and_nothing_to_find_is_one(average: str) -> None:
    nothing, one = np.zeros((3, 1)), np.array([[0.0], [1.0], [0.0]])
    call = f"f_beta(average='{average}')"
    assert score(call, nothing, nothing) == 1
    assert score(call, one, one) == 1
    assert score(call, nothing, one) == pytest.approx(2 / 3 if average == "samples" else 0)
    assert score(call, one, nothing) == pytest.approx(2 / 3 if average == "samples" else 0)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("there", [CLASSES, 3, 1])
def test_balanced_accuracy_and_mcc_agree_with_scikit_learn(there: int) -> None:
    for seed in SEEDS:
        truth, values = classes(seed, there=there)
        answer = decided(truth, values)
        balanced = reference.balanced_accuracy_score(truth, answer)
        assert score("balanced_accuracy()", truth, answer) == pytest.approx(balanced)
        assert score("mcc()", truth, answer) == pytest.approx(reference.matthews_corrcoef(truth, answer))


def test_mcc_of_labels_is_the_mean_over_columns_that_hold_both() -> None:
    truth, values = labels(0)
    answer = decided(truth, values)
    expected = columnwise(reference.matthews_corrcoef)
    assert score("mcc()", truth, answer) == pytest.approx(expected(truth, answer))
    truth[:, 2] = 1
    kept = [0, 1, 3, 4, 5]
    assert score("mcc()", truth, answer) == pytest.approx(expected(truth[:, kept], answer[:, kept]))
    assert score("mcc()", np.zeros((4, 2)), np.ones((4, 2))) == 0
    assert score("mcc()", truth[:, :2], np.zeros((200, 2))) == 0


# --- probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")  # float32 rounding
def test_log_loss_agrees_with_scikit_learn() -> None:
    for seed in SEEDS:
        truth, values = classes(seed, there=4)
        expected = reference.log_loss(truth, values.astype(np.float64), labels=range(CLASSES))
        assert score("log_loss()", truth, values) == pytest.approx(expected, abs=1e-6)
        truth, values = labels(seed)
        wide = values.clip(0.05, 0.95).astype(np.float64)
        expected = columnwise(lambda t, v: reference.log_loss(t, v, labels=[0, 1]))(truth, wide)
        assert score("log_loss()", truth, wide) == pytest.approx(expected)


def test_log_loss_is_finite_and_clipped() -> None:
    sure, wrong = np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert score("log_loss()", sure, wrong) == pytest.approx(-math.log(1e-15))
    assert score("log_loss(clip=0.01)", sure, wrong) == pytest.approx(-math.log(0.01))
    assert score("log_loss()", sure, np.full((2, 2), 7.0)) == pytest.approx(math.log(2))
    assert score("log_loss(clip=0.01)", wrong[:, ::-1], wrong) == pytest.approx(-math.log(0.01))
    assert np.isfinite(score("log_loss()", wrong[:, ::-1], wrong.astype(np.float32)))


AREAS = {"roc_auc": reference.roc_auc_score, "average_precision": reference.average_precision_score}


@pytest.mark.parametrize("name", AREAS)
@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
def test_areas_agree_with_scikit_learn(name: str, average: str) -> None:
    for seed in SEEDS:
        truth, values = labels(seed)
        expected = AREAS[name](truth, values, average=average)
        assert score(f"{name}(average='{average}')", truth, values) == pytest.approx(expected)
        truth, values = classes(seed)
        values = values.round(1)
        expected = AREAS[name](np.eye(CLASSES)[truth], values, average=average)
        assert score(f"{name}(average='{average}')", truth, values) == pytest.approx(expected)


@pytest.mark.parametrize("name", AREAS)
def test_areas_over_rows(name: str) -> None:
    truth, values = labels(0)
    partly = (truth.sum(axis=1) > 0) & (truth.sum(axis=1) < CLASSES)
    expected = AREAS[name](truth[partly], values[partly], average="samples")
    assert score(f"{name}(average='samples')", truth[partly], values[partly]) == pytest.approx(expected)


@pytest.mark.parametrize("name", AREAS)
def test_areas_of_two_classes_are_the_seconds(name: str) -> None:
    for seed in SEEDS:
        truth, values = classes(seed, there=2)
        chance = (values[:, 1] / values[:, :2].sum(axis=1)).round(1)
        two = np.stack([1 - chance, chance], axis=1)
        expected = AREAS[name](truth, chance)
        for average in ("macro", "weighted", "micro"):
            assert score(f"{name}(average='{average}')", truth, two) == pytest.approx(expected)
        assert score(f"{name}()", truth[:, None].astype(np.float32), chance[:, None]) == pytest.approx(expected)


@pytest.mark.parametrize("name", AREAS)
def test_areas_leave_out_what_the_truth_leaves_undefined(name: str) -> None:
    truth, values = labels(0)
    truth[:, 1] = 0
    kept = [0, 2, 3, 4, 5]
    for average in ("macro", "weighted"):
        expected = AREAS[name](truth[:, kept], values[:, kept], average=average)
        assert score(f"{name}(average='{average}')", truth, values) == pytest.approx(expected)
    truth, values = classes(0, there=3)
    expected = AREAS[name](np.eye(CLASSES)[truth][:, :3], values[:, :3], average="macro")
    assert score(f"{name}()", truth, values) == pytest.approx(expected)
    none = {"roc_auc": 0.5, "average_precision": 0.0}[name]
    for average in ("macro", "weighted", "micro", "samples"):
        assert score(f"{name}(average='{average}')", np.zeros((4, 3)), values[:4, :3]) == none
    one_class = np.zeros(5, dtype=np.int64)
    assert score(f"{name}()", one_class, values[:5, :2]) == none


def test_areas_of_each_column() -> None:
    truth, values = labels(1)
    truth[:, 0] = 1
    areas = metrics.roc_auc_columns(truth, values)
    assert np.isnan(areas[0])
    assert areas[1:] == pytest.approx(reference.roc_auc_score(truth[:, 1:], values[:, 1:], average=None))
    truth, values = classes(1)
    expected = reference.roc_auc_score(truth, values.astype(np.float64), multi_class="ovr", average=None)
    assert metrics.roc_auc_columns(truth, values) == pytest.approx(expected)
    assert score("roc_auc()", truth, values) == pytest.approx(np.mean(expected))


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    for seed in SEEDS:
        truth, values = labels(seed, rows=31, columns=1)
        high, low = values[truth == 1][:, None], values[truth == 0][None, :]
        pairs = (high > low).mean() + (high == low).mean() / 2
        assert score("roc_auc()", truth, values) == pytest.approx(pairs)
    assert score("roc_auc()", truth, np.full_like(truth, 0.3)) == 0.5
    assert score("average_precision()", truth, np.full_like(truth, 0.3)) == pytest.approx(truth.mean())


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_top_k_accuracy_agrees_with_scikit_learn(k: int) -> None:
    for seed in SEEDS:
        truth, values = classes(seed, there=4)
        expected = reference.top_k_accuracy_score(truth, values, k=min(k, CLASSES - 1), labels=range(CLASSES))
        assert score(f"top_k_accuracy(k={k})", truth, values) == pytest.approx(expected if k < CLASSES else 1)


def slow_average_precision(true: set[int], ranked: list[int], k: int) -> float:
    """Kaggle's: ``ml_metrics.apk`` by Ben Hamner, retold."""
    found, total = 0, 0.0
    for place, column in enumerate(ranked[:k], start=1):
        if column in true:
            found += 1
            total += found / place
    return total / min(len(true), k) if true else 0.0


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_map_at_k_is_the_slow_one(k: int) -> None:
    for seed in SEEDS:
        truth, values = labels(seed, rows=60)
        slow = [
            slow_average_precision(set(np.flatnonzero(true).tolist()), sorted(range(CLASSES), key=lambda c: -row[c]), k)
            for true, row in zip(truth, values.tolist(), strict=True)
        ]
        assert registry.build("metrics", f"map_at_k(k={k})")(truth, values) == pytest.approx(slow)
        truth, values = classes(seed, rows=60)
        one_hot = np.eye(CLASSES)[truth]
        of_classes = registry.build("metrics", f"map_at_k(k={k})")(truth, values.round(1))
        assert of_classes == pytest.approx(metrics.map_at_k(one_hot, values.round(1), k=k))


def test_ties_go_to_the_first_class() -> None:
    truth, flat = np.arange(4), np.full((4, 4), 0.25)
    assert score("top_k_accuracy(k=2)", truth, flat) == 0.5
    assert score("top_k_accuracy(k=9)", truth, flat) == 1.0
    assert score("map_at_k(k=2)", truth, flat) == pytest.approx((1 + 1 / 2) / 4)
    assert score("map_at_k(k=2)", np.eye(4), flat) == pytest.approx((1 + 1 / 2) / 4)
    for name in ("top_k_accuracy", "map_at_k"):
        with pytest.raises(UserError, match="k must be ≥ 1"):
            score(f"{name}(k=0)", truth, flat)


# --- numbers ------------------------------------------------------------------------------------------------------

NUMBERS = {
    "rmse()": columnwise(reference.root_mean_squared_error),
    "mae()": reference.mean_absolute_error,
    "rmsle()": columnwise(lambda t, a: reference.root_mean_squared_log_error(t, a.clip(0))),
    "r2()": reference.r2_score,
    "spearman()": columnwise(lambda t, a: spearmanr(t, a).statistic),
}


@pytest.mark.parametrize("call", NUMBERS)
@pytest.mark.parametrize("columns", [1, 3])
def test_numbers_agree_with_scikit_learn(call: str, columns: int) -> None:
    for seed in SEEDS:
        for digits in (5, 0):  # whole numbers have ties
            truth, answer = (table.astype(np.float64).round(digits) for table in numbers(seed, columns=columns))
            expected = NUMBERS[call](truth, answer)
            assert score(call, truth, answer) == pytest.approx(expected)
            assert score(call, truth.astype(np.float32), answer.astype(np.float32)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("columns", [1, 2])
def test_quadratic_kappa_agrees_with_scikit_learn(columns: int) -> None:
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        truth = generator.integers(5, size=(150, columns))
        answer = truth + generator.normal(size=truth.shape)
        rounded = np.floor(answer + 0.5).astype(int)
        expected = columnwise(lambda t, a: reference.cohen_kappa_score(t, a, weights="quadratic", labels=range(-9, 15)))
        assert score("quadratic_kappa()", truth.astype(np.float32), answer) == pytest.approx(expected(truth, rounded))


def test_quadratic_kappa_of_constant_grades() -> None:
    same, other = np.full((6, 1), 2.0), np.array([[0.0], [1.0], [2.0], [2.0], [3.0], [4.0]])
    assert score("quadratic_kappa()", same, same + 0.4) == 1
    assert score("quadratic_kappa()", same, other) == pytest.approx(0)
    assert score("quadratic_kappa()", other, same) == pytest.approx(0)
    assert score("quadratic_kappa()", same, same + 1) == pytest.approx(0)
    assert score("quadratic_kappa()", other, other) == 1


def test_circular_mae_is_the_shorter_way_round() -> None:
    truth, answer = np.array([[350.0], [10.0], [0.0], [90.0]]), np.array([[10.0], [350.0], [180.0], [810.0]])
    assert metrics.circular_mae(truth, answer).tolist() == [20, 20, 180, 0]
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        truth, answer = generator.uniform(-30, 30, (50, 2)), generator.uniform(-30, 30, (50, 2))
        turns = np.abs(truth - answer + 10.0 * np.arange(-9, 10)[:, None, None]).min(axis=0)
        assert score("circular_mae(period=10.0)", truth, answer) == pytest.approx(turns.mean())


def test_constant_numbers_are_finite() -> None:
    constant, ramp = np.full((5, 2), 0.1), np.arange(10.0).reshape(5, 2)
    for truth, answer in [(constant, ramp), (ramp, constant), (constant, constant)]:
        assert score("spearman()", truth, answer) == 0
    assert score("r2()", constant, ramp) == 0
    assert score("r2()", constant, constant) == 1
    assert score("r2()", ramp, np.tile(ramp.mean(axis=0), (5, 1))) == 0


def test_rmsle_takes_answers_but_no_truth_below_zero() -> None:
    truth = np.array([[0.0], [3.0]])
    assert score("rmsle()", truth, np.array([[-5.0], [3.0]])) == 0
    with pytest.raises(UserError, match=r"targets ≥ 0, but one is -5; take metric=rmse\(\)"):
        score("rmsle()", np.array([[-5.0], [3.0]]), truth)


# --- all ----------------------------------------------------------------------------------------------------------

NAMES = {
    "accuracy", "balanced_accuracy", "log_loss", "roc_auc", "average_precision", "f1_micro", "f1_macro", "f1_samples",
    "f_beta", "quadratic_kappa", "mcc", "top_k_accuracy", "map_at_k", "rmse", "mae", "rmsle", "r2", "circular_mae",
    "spearman",
}  # fmt: skip
FORMS = {"classes": classes, "labels": labels, "numbers": numbers}
TAKEN = [  # those of masks are tested in test_metrics_masks.py
    (name, form) for name, part in registry.parts("metrics").items() for form in part.facts["takes"] if form in FORMS
]


def test_the_metrics_of_real_competitions_are_there() -> None:
    assert set(registry.parts("metrics")) >= NAMES
    assert registry.bind("metrics", "f_beta(beta=2.0,average='samples')")
    assert registry.bind("metrics", "circular_mae(period=10.0)")


def asked(name: str, form: str, seed: int, rows: int) -> Pair:
    truth, values = FORMS[form](seed, rows)
    decides = registry.facts("metrics", name)["wants"] == "decision" and form != "numbers"
    return truth, decided(truth, values) if decides else values


@pytest.mark.parametrize(("name", "form"), TAKEN)
def test_few_rows_are_finite(name: str, form: str) -> None:
    for rows in (1, 2, 3):
        for seed in range(20):
            assert np.isfinite(score(name, *asked(name, form, seed, rows)))


@pytest.mark.parametrize(("name", "form"), TAKEN)
def test_the_order_of_rows_does_not_matter(name: str, form: str) -> None:
    truth, answer = asked(name, form, 0, 100)
    rows = np.random.default_rng(1).permutation(100)
    assert score(name, truth, answer) == pytest.approx(score(name, truth[rows], answer[rows]))


@pytest.mark.parametrize(("name", "form"), TAKEN)
def test_rowwise_metrics_give_a_value_a_row_and_all_others_one(name: str, form: str) -> None:
    truth, answer = asked(name, form, 0, 50)
    result = registry.build("metrics", name)(truth, answer)
    if registry.facts("metrics", name).get("rowwise"):
        assert (result.shape, result.dtype) == ((50,), np.float64)
        assert np.allclose(registry.build("metrics", name)(truth[:7], answer[:7]), result[:7])
    else:
        assert type(result) is float
