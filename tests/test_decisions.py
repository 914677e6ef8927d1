"""Every decision: contract, stored state, what the task decides from it; gains where they must come, not from noise."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import evaluate, fitting, lists, nested, registry
from pipeline.config import Lists as Settings
from pipeline.errors import UserError
from pipeline.evaluate import Metric
from pipeline.forms import NUMBERS
from pipeline.lists import TABLES
from pipeline.nested import Table
from pipeline.tasks.binary import Binary
from pipeline.tasks.circular import Circular
from pipeline.tasks.multiclass import Multiclass
from pipeline.tasks.multilabel import Multilabel
from pipeline.tasks.ordinal import Ordinal
from pipeline.tasks.recognition import Recognition
from pipeline.tasks.regression import Regression

COUNT, ROWS = 5, 600
NAMES = list("abcde")
GRADES = list("01234")
TASKS = {
    "classes": Multiclass(NAMES),
    "binary": Binary(["no", "yes"]),
    "grades": Ordinal(GRADES),
    "labels": Multilabel(NAMES, NAMES),
    "numbers": Regression(["grade"]),
    "lists": Recognition(NAMES, 3, "new", Settings()),
}
DECISION = {
    "classes": "balanced_accuracy()", "binary": "f_beta(beta=2.0, average='binary')", "grades": "quadratic_kappa()",
    "labels": "f1_macro()", "numbers": "quadratic_kappa()", "lists": "mean_average_precision(k=3)",
}  # fmt: skip


def judged(kind: str, call: str = "") -> Metric:
    return evaluate.metric(call or DECISION[kind], TASKS[kind])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def draw(kind: str, seed: int, rows: int = ROWS, known: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and calibrated values that know of it, by a rare class, rare labels or skewed grades."""
    generator = np.random.default_rng(seed)
    if kind == "lists":
        truth, near = generator.integers(-1, COUNT, rows), generator.uniform(0.2, 0.8, (rows, COUNT))
        near[truth >= 0, truth[truth >= 0]] += 0.3 * known
        return truth, lists.packed(np.tile(np.arange(COUNT), (rows, 1)), near, COUNT, 0.5)
    if kind == "labels":
        share = np.array([0.5, 0.3, 0.1, 0.05, 0.2])
        truth = (generator.random((rows, COUNT)) < share).astype(np.float32)
        odds = 2 * known**2 * (truth - 0.5) + np.sqrt(2) * known * generator.normal(size=truth.shape)
        return truth, (1 / (1 + np.exp(-odds - np.log(share / (1 - share))))).astype(np.float32)
    if kind == "numbers":
        truth = generator.choice(5, size=(rows, 1), p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.float32)
        return truth, (0.5 * known * truth + 0.2 + 0.3 * generator.normal(size=truth.shape)).astype(np.float32)
    share = np.array([0.9, 0.1] if kind == "binary" else [0.4, 0.3, 0.15, 0.1, 0.05])
    truth = generator.choice(len(share), size=rows, p=share)
    if kind == "grades":
        apart = -((0.6 * known * truth[:, None] + 0.3 - np.arange(COUNT) + 0.4 * generator.normal(size=(rows, 1))) ** 2)
        return truth, softmax(2 * apart)
    logits = known * generator.normal(size=(rows, len(share))) + known**2 * np.eye(len(share))[truth]
    return truth, softmax(logits + np.log(share))


def kinds(name: str) -> list[str]:
    """The kinds of values that a decision takes, by its facts."""
    facts = registry.parts("decisions")[name].facts
    found = []
    for kind, task in TASKS.items():
        truth, values = draw(kind, 0)
        for call in (DECISION[kind], "log_loss()"):
            if task.form.bounded or call != "log_loss()":
                table = Table(["a"], values[:, None], truth, np.arange(ROWS) % 5, judged(kind, call))
                if not nested.unfit(facts, values, table):
                    found.append(kind)
    return list(dict.fromkeys(found))


PAIRS = [(name, kind) for name in registry.parts("decisions") for kind in kinds(name)]


def make(call: str, kind: str):
    return registry.build("decisions", call)(TASKS[kind].form)


def table_of(kind: str, truth: np.ndarray, values: np.ndarray, call: str = "") -> Table:
    folds = np.random.default_rng(7).permutation(len(truth)) % 5
    return Table(["a"], values[:, None], truth, folds, judged(kind, call))


# --- contract -----------------------------------------------------------------------------------------------------


def test_every_decision_takes_something():
    assert {name for name, _ in PAIRS} == set(registry.parts("decisions"))
    assert {kind for name, kind in PAIRS if name == "cut_points"} == {"grades", "numbers"}
    assert {kind for name, kind in PAIRS if name == "class_weights"} == {"classes"}
    assert {kind for name, kind in PAIRS if name == "threshold"} == {"binary", "labels"}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_contract(name, kind, tmp_path):
    truth, values = draw(kind, 1)
    fresh, form = draw(kind, 2)[1], TASKS[kind].form
    copies = values.copy(), fresh.copy()
    decision = make(name, kind).fit(values, truth, judged(kind))
    answer = decision.apply(fresh)
    assert answer.shape == fresh.shape
    assert answer.dtype == np.float32
    assert np.isfinite(answer).all()
    if form.bounded:
        assert answer.min() >= 0
        assert answer.max() <= 1
    if form.simplex:
        np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    assert (values == copies[0]).all()
    assert (fresh == copies[1]).all()
    assert make(name, kind).fit(values, truth, judged(kind)).apply(fresh).tobytes() == answer.tobytes()
    np.savez(tmp_path / "state.npz", **decision.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as content:
        stored = {key: str(content[key]) if content[key].dtype.kind == "U" else content[key] for key in content}
    assert make(name, kind).load_state(stored).apply(fresh).tobytes() == answer.tobytes()
    assert decision.readable(TASKS[kind].columns)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_rows_that_say_nothing(name, kind):
    """Few rows, one class only, constant values: a decision all the same."""
    truth, values = draw(kind, 3)
    for rows in (slice(0, 2), slice(0, 1), np.flatnonzero((truth == truth[:1]).reshape(ROWS, -1).all(axis=1))):
        answer = make(name, kind).fit(values[rows], truth[rows], judged(kind)).apply(values)
        assert np.isfinite(answer).all()
    flat = np.full_like(values, 1 / values.shape[1])
    assert np.isfinite(make(name, kind).fit(flat, truth, judged(kind)).apply(flat)).all()


@pytest.mark.parametrize("name", registry.parts("decisions"))
def test_facts_are_declared(name):
    facts = registry.parts("decisions")[name].facts
    assert facts["order"] > 0
    assert set(facts["takes"]) <= set(TABLES)
    assert facts["wants"] in ("decision", "probability", "either")


# --- the task's own rule gives the fitted decision ----------------------------------------------------------------


def test_thresholds_are_where_they_say():
    truth, values = draw("labels", 4)
    metric = judged("labels")
    decision = make("thresholds", "labels").fit(values, truth, metric)
    cuts = np.array(list(decision.readable(NAMES)["thresholds"].values()))
    fresh = draw("labels", 5)[1]
    assert ((decision.apply(fresh) > 0.5) == (fresh > cuts)).mean() > 0.9999
    one = make("threshold", "labels").fit(values, truth, metric)
    assert ((one.apply(fresh) > 0.5) == (fresh > one.readable(NAMES)["threshold"])).mean() > 0.9999
    order = np.argsort(fresh, axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(decision.apply(fresh), order, axis=0), axis=0) >= 0).all()


def test_rounding_never_moves_a_value_across_its_threshold():
    cut = np.float64(0.3)
    near = np.array([[np.nextafter(np.float32(0.3), np.float32(0)), np.nextafter(np.float32(0.3), np.float32(1))]])
    assert (fitting.straddled(near, cut) > 0.5).tolist() == [[False, True]]
    assert fitting.straddled(np.array([[0.0, 1.0]], np.float32), np.float64(0)).tolist() == [[0.0, 1.0]]


def test_threshold_of_two_classes():
    truth, values = draw("binary", 6)
    decision = make("threshold", "binary").fit(values, truth, judged("binary"))
    cut = decision.readable(["no", "yes"])["threshold"]
    assert (TASKS["binary"].decide(decision.apply(values)) == (values[:, 1] > cut)).all()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_marks_k_labels_of_each_row(k):
    truth, values = draw("labels", 7)
    values[:50] = 0.2  # ties
    marked = make(f"top_k(k={k})", "labels").fit(values, truth, judged("labels")).apply(values) > 0.5
    assert (marked.sum(axis=1) == k).all()
    assert (np.where(marked, values, 2).min(axis=1) >= np.where(marked, -1, values).max(axis=1)).all()


def test_cut_points_of_grades_and_numbers_against_a_slow_rule():
    for kind in ("grades", "numbers"):
        truth, values = draw(kind, 8)
        decision = make("cut_points", kind).fit(values, truth, judged(kind))
        found = decision.readable(["grade"])["cut_points"]
        cuts = found if kind == "grades" else found["grade"]
        fresh = draw(kind, 9)[1]
        number = fresh @ np.arange(COUNT) if kind == "grades" else fresh[:, 0]
        slow = np.array([sum(value > cut for cut in cuts) for value in number])
        answer = TASKS[kind].decide(decision.apply(fresh))
        fast = answer if kind == "grades" else np.floor(answer[:, 0] + 0.5)
        assert (fast == slow).mean() > 0.999
        assert np.all(np.diff(cuts) > 0)


def test_cut_points_leave_many_grades_alone():
    truth = np.arange(100, dtype=np.float32)[:, None]
    decision = make("cut_points", "numbers").fit(truth + 0.3, truth, judged("numbers"))
    assert (decision.apply(truth) == truth).all()


def test_class_weights_against_a_slow_argmax():
    truth, values = draw("classes", 10)
    decision = make("class_weights", "classes").fit(values, truth, judged("classes"))
    weights = np.array(list(decision.readable(NAMES)["weights"].values()))
    slow = [max(range(COUNT), key=lambda c, row=row: row[c] * weights[c]) for row in values.astype(np.float64)]
    assert (TASKS["classes"].decide(decision.apply(values)) == slow).mean() > 0.999


def test_temperature_finds_the_temperature():
    truth, values = draw("classes", 11, rows=20_000)
    sharp = softmax(2.5 * np.log(values))
    decision = make("temperature(shrink=0)", "classes").fit(sharp, truth, judged("classes", "log_loss()"))
    assert decision.readable(NAMES)["temperature"] == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(decision.apply(sharp), values, atol=0.02)
    truth, values = draw("labels", 11, rows=20_000)
    odds = np.log(values) - np.log1p(-values)
    sharp = (1 / (1 + np.exp(-2.5 * odds))).astype(np.float32)
    decision = make("temperature(shrink=0)", "labels").fit(sharp, truth, judged("labels", "log_loss()"))
    assert decision.readable(NAMES)["temperature"] == pytest.approx(2.5, rel=0.05)


def test_clip_bounds_the_cost_of_sure_mistakes():
    truth, values = draw("classes", 12)
    sure = values.copy()
    sure[:30] = np.eye(COUNT)[(truth[:30] + 1) % COUNT]
    metric = judged("classes", "log_loss()")
    decision = make("clip", "classes").fit(sure, truth, metric)
    assert metric(truth, decision.apply(sure)) < metric(truth, sure) - 1
    fixed = make("clip(low=0.01)", "labels").fit(*draw("labels", 0)[::-1], judged("labels")).apply(draw("labels", 1)[1])
    assert fixed.min() >= np.float32(0.01)
    assert fixed.max() <= np.float32(0.99)


def test_prior_shift_finds_the_shares_of_unlabelled_rows():
    truth, values = draw("classes", 13, rows=8000, known=1.5)
    rare = np.flatnonzero((truth > 1) | (np.arange(8000) % 6 == 0))  # of classes 0 and 1 a sixth is left
    decision = make("prior_shift", "classes").fit(values, truth, judged("classes"))
    unchanged = decision.apply(values)
    assert np.abs(unchanged - values).mean() < 0.01
    shifted, metric = decision.apply(values[rare]), judged("classes", "log_loss()")
    shares = np.bincount(truth[rare]) / len(rare)
    np.testing.assert_allclose(shifted.mean(axis=0), shares, atol=0.03)
    assert metric(truth[rare], shifted) < metric(truth[rare], values[rare]) - 0.05


# --- shrinkage and search -----------------------------------------------------------------------------------------


def test_shrinkage():
    assert fitting.shrunk(0.5, 0.1, 20, 20.0) == pytest.approx(0.3)
    assert fitting.shrunk(0.5, 0.1, np.array([0, 80]), 20.0).tolist() == pytest.approx([0.5, 0.18])
    assert fitting.shrunk(0.0, 2.0, 0, 0.0) == 0
    truth, values = draw("labels", 14)
    mild, strong = (make(f"thresholds(shrink={n})", "labels").fit(values, truth, judged("labels")) for n in (1, 1e9))
    np.testing.assert_allclose(list(strong.readable(NAMES)["thresholds"].values()), 0.5, atol=1e-4)
    assert mild.readable(NAMES)["thresholds"]["d"] < 0.4


def test_search():
    assert fitting.cuts(np.array([1.0, 1.0, 3.0]), 10).tolist() == [2.0]
    assert len(fitting.cuts(np.ones(5), 10)) == 0
    assert len(fitting.cuts(np.arange(1000.0), 50)) <= 50
    goal = np.array([3.0, -1.0])
    found = fitting.climb(
        np.zeros(2), lambda place, now: np.arange(-5.0, 6), lambda point: -float(((point - goal) ** 2).sum())
    )
    assert found.tolist() == [3.0, -1.0]
    first = fitting.climb(np.zeros(1), lambda *_: np.array([5.0, -1.0, 3.0]), lambda point: float(point[0] != 0))
    assert first.tolist() == [-1.0]
    assert fitting.least(lambda x: (x - 0.123) ** 2, -3, 3) == pytest.approx(0.123, abs=1e-4)
    assert fitting.rising(np.array([2.0, 1.0, 3.0])).tolist() == pytest.approx([2.0, 2.0, 3.0], abs=1e-5)


# --- gains, nested ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "metric"),
    [
        ("threshold()", "binary", "f_beta(beta=2.0, average='binary')"),
        ("threshold()", "labels", "f1_micro()"),
        ("thresholds()", "labels", "f1_macro()"),
        ("thresholds()", "labels", "f_beta(beta=2.0, average='samples')"),
        ("class_weights()", "classes", "balanced_accuracy()"),
        ("cut_points()", "grades", "quadratic_kappa()"),
        ("cut_points()", "numbers", "quadratic_kappa()"),
    ],
)
def test_nested_gain_where_the_default_is_wrong(call, kind, metric):
    """Calibrated values are decided at ½, and regressed grades rounded: not what these metrics want."""
    truth, values = draw(kind, 15, rows=2000)
    table = table_of(kind, truth, values, metric)
    default, decided = nested.score_decisions([call], values, table)
    assert decided.gain > 2 * decided.gain_se > 0
    assert nested.choose([default, decided], table)[0] is decided
    fitted = registry.build("decisions", call)(TASKS[kind].form).fit(values, truth, table.metric).apply(values)
    assert table.metric.gain(truth, fitted) >= table.metric.gain(truth, decided.values) - 0.03


def test_top_k_gains_where_the_number_of_labels_is_known():
    generator = np.random.default_rng(17)
    truth = np.zeros((800, COUNT), dtype=np.float32)
    np.put_along_axis(truth, np.argsort(generator.random(truth.shape), axis=1)[:, :2], 1, axis=1)
    odds = 2 * truth - 1 + generator.normal(size=truth.shape) + 2 * generator.normal(size=(800, 1))  # rows differ
    table = table_of("labels", truth, (1 / (1 + np.exp(-odds))).astype(np.float32), "f1_samples()")
    values = table.values[:, 0]
    tried = nested.score_decisions(nested.decisions(["all"], values, table), values, table)
    chosen, _ = nested.choose(tried, table)
    assert chosen.call == "top_k()"
    assert chosen.gain > 2 * chosen.gain_se > 0
    assert nested.fit_decision("top_k()", values, table).readable(NAMES) == {"k": 2}


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_temperature_gains_on_values_that_are_too_sharp(kind):
    truth, values = draw(kind, 16)
    sharp = softmax(3 * np.log(values)) if kind == "classes" else values**3 / (values**3 + (1 - values) ** 3)
    table = table_of(kind, truth, sharp.astype(np.float32), "log_loss()")
    _, *tried = nested.score_decisions(nested.decisions(["all"], table.values[:, 0], table), table.values[:, 0], table)
    assert {c.call for c in tried} == {"temperature()", "clip()"}
    best = max(tried, key=lambda c: c.gain)
    assert best.call == "temperature()"
    assert best.gain > 2 * best.gain_se > 0


@pytest.mark.parametrize("kind", TASKS)
def test_noise_keeps_the_default(kind):
    """Truth at random, all of it equally often: few of eight draws are decided anew, at one in six a decision tried."""
    applied = []
    for seed in range(8):
        generator, values = np.random.default_rng(seed), draw(kind, 20 + seed, rows=300)[1]
        truth = {
            "labels": generator.integers(2, size=values.shape).astype(np.float32),
            "numbers": generator.integers(5, size=values.shape).astype(np.float32),
            "lists": generator.integers(-1, COUNT, size=300),
        }.get(kind, generator.integers(values.shape[1], size=300))
        table = table_of(kind, truth, values, "accuracy()" if TASKS[kind].form.bounded else "")
        tried = nested.score_decisions(nested.decisions(["all"], values, table), values, table)
        assert len(tried) > 1
        applied.append(nested.choose(tried, table)[0] is not tried[0])
    assert sum(applied) <= 4


def test_nested_scores_of_decisions_stay_at_chance_on_shuffled_labels():
    """Thresholds of 15 labels fitted on the rows they are scored on would show a gain; nested they show none."""
    generator = np.random.default_rng(0)
    names = [f"label{n:02d}" for n in range(15)]
    truth = (generator.random((200, 15)) < 0.5).astype(np.float32)
    values = generator.random((200, 15)).astype(np.float32)
    metric = evaluate.metric("mcc()", Multilabel(names, names))
    table, se = Table(["a"], values[:, None], truth, np.arange(200) % 5, metric), 1 / np.sqrt(truth.size)
    assert abs(metric(truth, nested.nested_decision("thresholds(shrink=0)", values, table))) < 3 * se
    naive = nested.fit_decision("thresholds(shrink=0)", values, table).apply(values)
    assert metric(truth, naive) > 4 * se


# --- which are tried ----------------------------------------------------------------------------------------------


def tried(kind: str, metric: str, asked=("all",)) -> list[str]:
    truth, values = draw(kind, 0)
    return nested.decisions(asked, values, table_of(kind, truth, values, metric))


@pytest.mark.parametrize(
    ("kind", "metric", "calls"),
    [
        ("classes", "accuracy()", ["class_weights()"]),
        ("classes", "log_loss()", ["temperature()", "clip()"]),
        ("classes", "roc_auc()", []),
        ("binary", "f1_macro()", ["threshold()"]),
        ("binary", "roc_auc()", []),
        ("grades", "quadratic_kappa()", ["cut_points()"]),
        ("grades", "mae()", ["cut_points()"]),
        ("labels", "f1_samples()", ["threshold()", "top_k()", "thresholds()"]),
        ("labels", "average_precision()", []),
        ("numbers", "quadratic_kappa()", ["cut_points()"]),
        ("numbers", "rmse()", []),
    ],
)
def test_all_tries_what_fits(kind, metric, calls):
    assert tried(kind, metric) == calls
    assert tried(kind, metric, ["none"]) == []


def test_named_ones_are_checked():
    assert tried("classes", "accuracy()", ["prior_shift", "class_weights(shrink=5.0)"]) == [
        "prior_shift()",
        "class_weights(shrink=5.0)",
    ]
    with pytest.raises(UserError, match=r"decisions=thresholds, but it takes labels.*fit here: class_weights, pri"):
        tried("classes", "accuracy()", ["thresholds"])
    with pytest.raises(UserError, match="for metrics of a probability, and accuracy.. is of a decision"):
        tried("classes", "accuracy()", ["temperature"])
    with pytest.raises(UserError, match="looks at their ranks"):
        tried("binary", "roc_auc()", ["clip"])
    with pytest.raises(UserError, match="it takes 2 classes, and there are 5"):
        tried("classes", "f1_macro()", ["threshold"])
    with pytest.raises(UserError, match="it takes classes without an order"):
        tried("grades", "quadratic_kappa()", ["class_weights"])
    with pytest.raises(UserError, match="it takes grades"):
        tried("classes", "f1_macro()", ["cut_points"])
    with pytest.raises(UserError, match="metrics that round, and rmse.. does not"):
        tried("numbers", "rmse()", ["cut_points"])
    with pytest.raises(UserError, match="did you mean thresholds"):
        nested.check_decisions(["tresholds"])
    with pytest.raises(UserError, match="none stands alone"):
        nested.check_decisions(["none", "clip"])


def test_large_tables_are_not_searched_for_long():
    task = Multiclass([f"{n:03d}" for n in range(200)])
    values = np.full((1000, 200), 1 / 200, dtype=np.float32)
    truth = np.arange(1000) % 200
    table = Table(["a"], values[:, None], truth, truth % 5, evaluate.metric("accuracy()", task))
    assert nested.decisions(["all"], values, table) == []
    assert nested.decisions(["class_weights"], values, table) == ["class_weights()"]


def test_angles_are_taught_as_points():
    """The truth of a circle has one column and its values two: level 2 learns points, the metric hears numbers."""
    generator = np.random.default_rng(0)
    task = Circular(["hour"], 24.0)
    truth = generator.uniform(0, 24, (300, 1)).astype(np.float32)
    values = np.stack([task.soft(truth) * 0.5 + 0.3 * generator.normal(size=(300, 2)) for _ in range(3)], axis=1)
    metric = evaluate.metric("circular_mae(period=24.0)", task)
    table = Table(list("abc"), values.astype(np.float32), truth, np.arange(300) % 5, metric)
    assert task.form is NUMBERS
    for call in ("single()", "mean()", "hill_climb(rounds=5)", "ridge()", "mlp(steps=20)", "lightgbm()"):
        candidate = nested.score_method(call, table)
        assert candidate.values.shape == (300, 2)
        assert candidate.score.value < 3
    assert nested.score_method("mean()", table).gain > 0
