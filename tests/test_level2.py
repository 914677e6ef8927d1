"""Every level-2 method: contract, determinism and stored state; the simple ones against slow references."""

import numpy as np
import pytest

from pipeline import registry
from pipeline.errors import UserError
from pipeline.evaluate import metric

METHODS = list(registry.parts("level2"))
LEARNED = ["ridge", "logistic", "mlp", "cnn", "lightgbm", "xgboost"]
ACCURACY, LOG_LOSS = metric("accuracy()"), metric("log_loss()")
CLASSES = 5


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def draw(seed: int, strengths=(0.5, 2.0, 1.0), rows: int = 240, truth=None):
    """Truth, and members (N, M, C) that know more of it the larger their strength."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(CLASSES, size=rows) if truth is None else truth
    noise = generator.normal(size=(len(truth), len(strengths), CLASSES))
    return truth, softmax(noise + np.array(strengths)[:, None] * np.eye(CLASSES)[truth][:, None])


def floored_logs(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values.astype(np.float64), 0.01 / CLASSES))


def make(call: str):
    if registry.parse(call).name == "xgboost":
        pytest.importorskip("xgboost")
    return registry.build("level2", call)()


@pytest.mark.parametrize("name", METHODS)
def test_contract(name):
    truth, values = draw(0)
    _, fresh = draw(1)
    copies = values.copy(), fresh.copy()
    answer = make(name).fit(values, truth, ACCURACY).predict(fresh)
    assert answer.shape == (len(fresh), CLASSES)
    assert answer.dtype == np.float32
    assert np.isfinite(answer).all()
    assert (answer >= 0).all()
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    assert (values == copies[0]).all()
    assert (fresh == copies[1]).all()
    single_row = make(name).fit(values, truth, ACCURACY).predict(fresh[:1])
    np.testing.assert_allclose(single_row, answer[:1], atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_same_bytes_again_and_from_the_stored_state(name, tmp_path):
    truth, values = draw(0)
    _, fresh = draw(1)
    stacker = make(name).fit(values, truth, ACCURACY)
    answer = stacker.predict(fresh)
    assert make(name).fit(values, truth, ACCURACY).predict(fresh).tobytes() == answer.tobytes()
    state = stacker.state()
    assert all(isinstance(entry, (np.ndarray, str)) for entry in state.values())
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as content:
        stored = {key: str(content[key]) if content[key].dtype.kind == "U" else content[key] for key in content}
    assert make(name).load_state(stored).predict(fresh).tobytes() == answer.tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_orders_are_declared(name):
    assert registry.parts("level2")[name].facts["order"] >= 0


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
    assert answer.shape == (len(fresh), CLASSES)
    assert np.isfinite(answer).all()
    assert (answer >= 0).all()
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    if name in ("logistic", "lightgbm", "xgboost"):
        absent = [label for label in range(CLASSES) if label not in present]
        np.testing.assert_allclose(answer[:, absent], fresh.mean(axis=1)[:, absent], atol=1e-5)
        rows = np.isin(unseen, absent)
        assert ACCURACY(unseen[rows], answer[rows]) > 0.2


@pytest.mark.parametrize("name", METHODS)
def test_few_rows_one_member_and_hard_decisions(name):
    truth = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    values = np.eye(CLASSES, dtype=np.float32)[truth][:, None]
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
    slow = np.zeros((40, CLASSES))
    for row in range(40):
        for label in range(CLASSES):
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
    assert np.isfinite(stacker.predict(np.full((1, 3, CLASSES), between, np.float32))).all()


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
    slow = Ridge(alpha=2.0).fit(rows, np.eye(CLASSES)[truth]).predict(rows).clip(0.01, 1)
    fast = make("ridge(penalty=2.0, floor=0.01)").fit(values, truth, ACCURACY).predict(values)
    np.testing.assert_allclose(fast, slow / slow.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("present", [range(CLASSES), (0, 3)])
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
        registry.build("level2", "xgboost()")().fit(values, truth, ACCURACY)
