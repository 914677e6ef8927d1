"""Every level-2 method with every form: contract, determinism, stored state; simple ones against slow references."""

import numpy as np
import pytest

from pipeline import evaluate, registry
from pipeline.errors import UserError
from pipeline.evaluate import Metric
from pipeline.forms import CLASSES, FORMS, LABELS, NUMBERS
from pipeline.tasks.multiclass import Multiclass
from pipeline.tasks.multilabel import Multilabel
from pipeline.tasks.regression import Regression

METHODS = list(registry.parts("level2"))
LEARNED = ["ridge", "logistic", "mlp", "cnn", "lightgbm", "xgboost"]
COUNT = 5
NAMES = list("abcde")
TASK = Multiclass(NAMES)


def metric(call: str) -> Metric:
    """The metric for five classes."""
    return evaluate.metric(call, TASK)


ACCURACY, LOG_LOSS = metric("accuracy()"), metric("log_loss()")
METRICS = {
    "classes": ACCURACY,
    "labels": evaluate.metric("f1_macro()", Multilabel(NAMES, NAMES)),
    "numbers": evaluate.metric("rmse()", Regression(NAMES)),
}


def takes(name: str) -> tuple[str, ...]:
    return registry.parts("level2")[name].facts.get("takes", tuple(FORMS))


PAIRS = [(name, form) for name in METHODS for form in takes(name)]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def draw(seed: int, strengths=(0.5, 2.0, 1.0), rows: int = 240, truth=None):
    """Truth, and members (N, M, C) that know more of it the larger their strength."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(COUNT, size=rows) if truth is None else truth
    noise = generator.normal(size=(len(truth), len(strengths), COUNT))
    return truth, softmax(noise + np.array(strengths)[:, None] * np.eye(COUNT)[truth][:, None])


def draw_labels(seed: int, strengths=(0.5, 2.0, 1.0), rows: int = 240):
    """The same of labels, 30 % of them positive."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((rows, COUNT)) < 0.3).astype(np.float32)
    noise = generator.normal(size=(rows, len(strengths), COUNT))
    odds = noise + np.array(strengths)[:, None] * 2 * (truth - 0.5)[:, None]
    return truth, (1 / (1 + np.exp(-odds))).astype(np.float32)


def draw_numbers(seed: int, strengths=(0.5, 2.0, 1.0), rows: int = 240):
    """The same of numbers around 1000 with a deviation of 100."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(rows, COUNT))
    share = (np.array(strengths) ** 2 / (1 + np.array(strengths) ** 2))[:, None]
    noise = generator.normal(size=(rows, len(strengths), COUNT))
    values = share * truth[:, None] + np.sqrt(share * (1 - share)) * noise  # regressed, as a trained member's are
    return (1000 + 100 * truth).astype(np.float32), (1000 + 100 * values).astype(np.float32)


DRAWS = {"classes": draw, "labels": draw_labels, "numbers": draw_numbers}


def floored_logs(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values.astype(np.float64), 0.01 / COUNT))


def make(call: str, form=CLASSES):
    if registry.parse(call).name == "xgboost":
        pytest.importorskip("xgboost")
    return registry.build("level2", call)(form)


def check(answer: np.ndarray, form: str, rows: int) -> None:
    """Shape, type and the form's own bounds."""
    assert answer.shape == (rows, COUNT)
    assert answer.dtype == np.float32
    assert np.isfinite(answer).all()
    if FORMS[form].bounded:
        assert (answer >= 0).all()
        assert (answer <= 1).all()
    if FORMS[form].simplex:
        np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_contract(name, form):
    truth, values = DRAWS[form](0)
    fresh = DRAWS[form](1)[1]
    copies = values.copy(), fresh.copy(), truth.copy()
    stacker = make(name, FORMS[form]).fit(values, truth, METRICS[form])
    answer = stacker.predict(fresh)
    check(answer, form, len(fresh))
    assert (values == copies[0]).all()
    assert (fresh == copies[1]).all()
    assert (truth == copies[2]).all()
    np.testing.assert_allclose(stacker.predict(fresh[:1]), answer[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_same_bytes_again_and_from_the_stored_state(name, form, tmp_path):
    truth, values = DRAWS[form](0)
    fresh = DRAWS[form](1)[1]
    stacker = make(name, FORMS[form]).fit(values, truth, METRICS[form])
    answer = stacker.predict(fresh)
    assert make(name, FORMS[form]).fit(values, truth, METRICS[form]).predict(fresh).tobytes() == answer.tobytes()
    state = stacker.state()
    assert state["form"] == form
    assert all(isinstance(entry, (np.ndarray, str)) for entry in state.values())
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as content:
        stored = {key: str(content[key]) if content[key].dtype.kind == "U" else content[key] for key in content}
    other = next(iter(set(FORMS.values()) - {FORMS[form]}))  # the state knows better
    assert make(name, other).load_state(stored).predict(fresh).tobytes() == answer.tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_facts_are_declared(name):
    facts = registry.parts("level2")[name].facts
    assert facts["order"] >= 0
    assert set(facts.get("takes", FORMS)) <= set(FORMS)


def test_what_numbers_cannot_be_put_into():
    assert {name for name in METHODS if "numbers" not in takes(name)} == {"rank_mean", "logistic", "cnn"}


@pytest.mark.parametrize(("name", "form"), [(n, f) for n, f in PAIRS if n in LEARNED or n in ("single", "hill_climb")])
def test_no_worse_than_the_best_member_of_which_others_are_noise(name, form):
    strengths = (0.0, 0.0, 2.0, 0.0)
    truth, values = DRAWS[form](2, strengths, 400)
    unseen, fresh = DRAWS[form](3, strengths, 400)
    answer = make(name, FORMS[form]).fit(values, truth, METRICS[form]).predict(fresh)
    gain = METRICS[form].gain
    slack = {"classes": 0.05, "labels": 0.05, "numbers": 5.0}[form]  # numbers: of a deviation of 100
    assert gain(unseen, answer) > gain(unseen, fresh[:, 2]) - slack
    assert gain(unseen, answer) > gain(unseen, fresh.mean(axis=1)) + slack


@pytest.mark.parametrize("name", ["single", "hill_climb", *LEARNED])
def test_finds_the_one_good_member_among_noise(name):
    truth, values = draw(2, strengths=(0.0, 0.0, 4.0, 0.0), rows=400)
    unseen, fresh = draw(3, strengths=(0.0, 0.0, 4.0, 0.0), rows=400)
    answer = make(name).fit(values, truth, ACCURACY).predict(fresh)
    assert ACCURACY(unseen, answer) > ACCURACY(unseen, fresh[:, 2]) - 0.04
    assert ACCURACY(unseen, answer) > ACCURACY(unseen, fresh.mean(axis=1)) + 0.1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("present", [(0, 2, 3), (1, 4), (2,)])
def test_classes_that_the_fit_lacks(name, present):
    truth, values = draw(4, truth=np.random.default_rng(4).choice(present, size=60))
    unseen, fresh = draw(5)
    answer = make(name).fit(values, truth, LOG_LOSS).predict(fresh)
    assert answer.shape == (len(fresh), COUNT)
    assert np.isfinite(answer).all()
    assert (answer >= 0).all()
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    if name in ("logistic", "lightgbm", "xgboost"):
        absent = [label for label in range(COUNT) if label not in present]
        np.testing.assert_allclose(answer[:, absent], fresh.mean(axis=1)[:, absent], atol=1e-5)
        rows = np.isin(unseen, absent)
        assert ACCURACY(unseen[rows], answer[rows]) > 0.2


@pytest.mark.parametrize("name", METHODS)
def test_few_rows_one_member_and_hard_decisions(name):
    truth = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    values = np.eye(COUNT, dtype=np.float32)[truth][:, None]
    answer = make(name).fit(values, truth, ACCURACY).predict(values)
    assert np.isfinite(answer).all()
    assert ACCURACY(truth, answer) == 1.0


def test_single_takes_the_best_by_the_metric():
    truth, values = draw(6, strengths=(1.0, 3.0, 2.0))
    assert make("single").fit(values, truth, ACCURACY).state()["weights"].tolist() == [0, 1, 0]
    twins = values[:, [0, 1, 1]]
    assert make("single").fit(twins, truth, LOG_LOSS).state()["weights"].tolist() == [0, 1, 0]


def test_mean():
    truth, values = draw(7)
    answer = make("mean").fit(values, truth, ACCURACY).predict(values)
    np.testing.assert_allclose(answer, (values[:, 0] + values[:, 1] + values[:, 2]) / 3, atol=1e-6)


def test_rank_mean_is_the_share_of_smaller_values():
    truth, values = draw(8, rows=40)
    values = values.round(1)  # so that there are ties
    slow = np.zeros((40, COUNT))
    for row in range(40):
        for label in range(COUNT):
            shares = []
            for member in range(3):
                own, column = values[row, member, label], values[:, member, label]
                shares.append((np.sum(column < own) + 0.5 * np.sum(column == own)) / 40)
            slow[row, label] = np.mean(shares)
    slow /= slow.sum(axis=1, keepdims=True)
    stacker = make("rank_mean").fit(values, truth, ACCURACY)
    np.testing.assert_allclose(stacker.predict(values), slow, atol=1e-6)
    assert stacker.predict(values[:1]).tobytes() == stacker.predict(values)[:1].tobytes()  # a row needs no others
    between = (np.sort(values[:, 0, 0])[19:21]).mean()
    assert np.isfinite(stacker.predict(np.full((1, 3, COUNT), between, np.float32))).all()


def test_rank_mean_with_few_points_is_close():
    truth, values = draw(8, rows=2000)
    exact, coarse = (make(f"rank_mean(points={n})").fit(values, truth, ACCURACY).predict(values) for n in (2000, 100))
    np.testing.assert_allclose(exact, coarse, atol=0.02)


def slow_hill_climb(values, truth, score, rounds):
    """Caruana et al. 2004 as it is told: a bag of indices, scored anew from its members each time."""

    def key(bag):
        mixed = np.mean([values[:, index].astype(np.float64) for index in bag], axis=0)
        return round(score.gain(truth, mixed), 9), -round(float(LOG_LOSS(truth, mixed)), 9)

    bag = [max(range(values.shape[1]), key=lambda index: (key([index]), -index))]
    best = bag
    for _ in range(rounds):
        bag = [*bag, max(range(values.shape[1]), key=lambda index: (key([*bag, index]), -index))]
        if key(bag) > key(best):
            best = bag
    return np.bincount(best, minlength=values.shape[1]) / len(best)


@pytest.mark.parametrize("score", [ACCURACY, LOG_LOSS, metric("f1_macro()")], ids=lambda score: score.name)
@pytest.mark.parametrize("seed", range(4))
def test_hill_climb_against_brute_force(score, seed):
    truth, values = draw(seed, strengths=(0.8, 1.5, 1.2, 1.4), rows=80)
    weights = make("hill_climb(rounds=12)").fit(values, truth, score).state()["weights"]
    np.testing.assert_allclose(weights, slow_hill_climb(values, truth, score, 12))
    assert weights.sum() == pytest.approx(1)


def test_ridge_against_scikit_learn():
    from sklearn.linear_model import Ridge

    truth, values = draw(9)
    rows = values.reshape(len(values), -1).astype(np.float64)
    slow = Ridge(alpha=2.0).fit(rows, np.eye(COUNT)[truth]).predict(rows).clip(0.01, 1)
    fast = make("ridge(penalty=2.0, floor=0.01)").fit(values, truth, ACCURACY).predict(values)
    np.testing.assert_allclose(fast, slow / slow.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("present", [range(COUNT), (0, 3)])
def test_logistic_against_scikit_learn(present):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    truth, values = draw(10, truth=np.random.default_rng(0).choice(list(present), size=200))
    rows = StandardScaler().fit_transform(floored_logs(values).reshape(200, -1))
    slow = LogisticRegression(C=0.5, max_iter=1000).fit(rows, truth).predict_proba(rows)
    fast = make("logistic(penalty=2.0)").fit(values, truth, ACCURACY).predict(values)[:, list(present)]
    np.testing.assert_allclose(fast / fast.sum(axis=1, keepdims=True), slow, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_networks_start_as_the_geometric_mean(name):
    truth, values = draw(11)
    geometric = softmax(floored_logs(values).mean(axis=1))
    np.testing.assert_allclose(
        make(f"{name}(steps=0)").fit(values, truth, ACCURACY).predict(values), geometric, atol=1e-5
    )
    trained = make(name).fit(values, truth, ACCURACY).predict(values)
    assert LOG_LOSS(truth, trained) < LOG_LOSS(truth, geometric)


def test_training_leaves_torch_random_numbers_alone():
    torch = pytest.importorskip("torch")
    truth, values = draw(12)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make("mlp(steps=3)").fit(values, truth, ACCURACY)
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_xgboost_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xgboost", None)
    truth, values = draw(13)
    with pytest.raises(UserError, match="extra boosting"):
        registry.build("level2", "xgboost()")(CLASSES).fit(values, truth, ACCURACY)


# --- labels and numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if "labels" in takes(name)])
def test_columns_of_labels_that_the_fit_lacks(name):
    truth, values = draw_labels(4)
    truth[:, 1], truth[:, 3] = 0, 1
    fresh = draw_labels(5)[1]
    answer = make(name, LABELS).fit(values, truth, METRICS["labels"]).predict(fresh)
    check(answer, "labels", len(fresh))
    if name in ("logistic", "lightgbm", "xgboost"):
        np.testing.assert_allclose(answer[:, [1, 3]], fresh.mean(axis=1)[:, [1, 3]], atol=1e-6)
        assert not np.allclose(answer[:, 0], fresh.mean(axis=1)[:, 0], atol=1e-3)


@pytest.mark.parametrize("name", [name for name in METHODS if "numbers" in takes(name)])
def test_numbers_that_do_not_vary(name):
    truth, values = draw_numbers(4)
    truth[:, 1], values[:, :, 1] = 7, 7
    fresh = draw_numbers(5)[1]
    fresh[:, :, 1] = 7
    answer = make(name, NUMBERS).fit(values, truth, METRICS["numbers"]).predict(fresh)
    check(answer, "numbers", len(fresh))
    np.testing.assert_allclose(answer[:, 1], 7, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in METHODS if "numbers" in takes(name)])
@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1e6, -3e6)])
def test_numbers_in_any_unit(name, scale, shift):
    """What is learned in another unit is the same thing: nothing depends on the size of numbers."""
    (truth, values), fresh = draw_numbers(6), draw_numbers(7)[1]

    def fitted(unit, zero):
        moved = [((part.astype(np.float64) - 1000) / 100 * unit + zero).astype(np.float32) for part in (values, truth)]
        asked = ((fresh.astype(np.float64) - 1000) / 100 * unit + zero).astype(np.float32)
        return (make(name, NUMBERS).fit(*moved, METRICS["numbers"]).predict(asked).astype(np.float64) - zero) / unit

    assert np.abs(fitted(scale, shift) - fitted(1.0, 0.0)).mean() < 0.03  # rounding moves a split of a tree


def test_means_of_labels_and_numbers():
    for form in (LABELS, NUMBERS):
        truth, values = DRAWS[form.name](8)
        answer = make("mean", form).fit(values, truth, METRICS[form.name]).predict(values)
        np.testing.assert_allclose(answer, values.mean(axis=1), rtol=1e-6)


def test_ties_go_to_the_least_distance():
    truth = np.array([[1.0], [0.0]], dtype=np.float32)
    values = np.stack([np.array([[0.6], [0.4]]), np.array([[0.9], [0.1]])], axis=1).astype(np.float32)
    f1 = evaluate.metric("f1_macro()", Multilabel(["a"], ["a"]))
    assert make("single", LABELS).fit(values, truth, f1).state()["weights"].tolist() == [0, 1]
    constant = evaluate.metric("spearman()", Regression(["a"]))
    ranked = np.stack([10 * truth, truth], axis=1)
    assert make("single", NUMBERS).fit(ranked, truth, constant).state()["weights"].tolist() == [0, 1]


@pytest.mark.parametrize("form", ["labels", "numbers"])
def test_ridge_of_other_forms_against_scikit_learn(form):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    truth, values = DRAWS[form](9)
    rows = values.reshape(len(values), -1).astype(np.float64)
    rows = StandardScaler().fit_transform(rows) if form == "numbers" else rows
    slow = Ridge(alpha=2.0).fit(rows, truth).predict(rows)
    slow = slow.clip(0.01, 0.99) if form == "labels" else slow
    fast = make("ridge(penalty=2.0, floor=0.01)", FORMS[form]).fit(values, truth, METRICS[form]).predict(values)
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)


def test_logistic_of_labels_against_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    truth, values = draw_labels(10)
    odds = np.log(values.astype(np.float64)) - np.log1p(-values.astype(np.float64))
    fast = make("logistic(penalty=2.0)", LABELS).fit(values, truth, METRICS["labels"]).predict(values)
    for column in range(COUNT):
        rows = StandardScaler().fit_transform(odds[:, :, column])
        slow = LogisticRegression(C=0.5, max_iter=1000).fit(rows, truth[:, column]).predict_proba(rows)[:, 1]
        np.testing.assert_allclose(fast[:, column], slow, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), [("mlp", "labels"), ("cnn", "labels"), ("mlp", "numbers")])
def test_networks_of_other_forms_start_as_the_mean(name, form):
    truth, values = DRAWS[form](11)
    wide = values.astype(np.float64)
    middle = wide.mean(axis=1) if form == "numbers" else 1 / (1 + np.exp(-np.log(wide / (1 - wide)).mean(axis=1)))
    start = make(f"{name}(steps=0)", FORMS[form]).fit(values, truth, METRICS[form]).predict(values)
    np.testing.assert_allclose(start, middle, rtol=1e-5)
    trained = make(name, FORMS[form]).fit(values, truth, METRICS[form]).predict(values)
    distance = FORMS[form].distance
    assert distance(truth, trained).mean() < distance(truth, start).mean()


# --- side features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("form", list(FORMS))
def test_side_features_are_read_where_asked_for(name, form):
    truth, values = DRAWS[form](14, (0.5, 0.5), 400)
    unseen, fresh = DRAWS[form](15, (0.5, 0.5), 400)
    dense = [np.eye(COUNT)[t] if t.ndim == 1 else t for t in (truth, unseen)]
    sides = [d + 0.3 * d.std() * np.random.default_rng(0).normal(size=d.shape) for d in dense]
    sides[0][::7, 0] = np.nan
    gain, plain = METRICS[form].gain, make(name, FORMS[form]).fit(values, truth, METRICS[form], sides[0])
    assert plain.predict(fresh, sides[1]).tobytes() == plain.predict(fresh).tobytes()
    knowing = make(f"{name}(features=true)", FORMS[form]).fit(values, truth, METRICS[form], sides[0])
    assert gain(unseen, knowing.predict(fresh, sides[1])) > gain(unseen, plain.predict(fresh)) + 0.05
    with pytest.raises(UserError, match="needs side features"):
        knowing.predict(fresh)
