"""Every task: the contract of the protocol, its forms of submissions, and the whole recipe on drawn images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_tasks
import torch

from pipeline import config as settings
from pipeline import evaluate, registry, tasks
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import Config, compose
from pipeline.errors import UserError
from pipeline.forms import FORMS, Form
from pipeline.runs import Run
from pipeline.tasks import Task, task_for
from pipeline.tasks.binary import Binary
from pipeline.tasks.circular import Circular
from pipeline.tasks.multiclass import Multiclass
from pipeline.tasks.multilabel import Multilabel
from pipeline.tasks.ordinal import Ordinal, OrdinalRegression
from pipeline.tasks.regression import Regression

OTHERS = {  # test_segmentation.py and test_retrieval.py
    name for name, part in registry.parts("tasks").items() if part.facts.get("spatial") or part.facts.get("open_set")
}
CALLS = {name: f"{name}(period=24.0)" if name == "circular" else f"{name}()" for name in tasks.names()}
CALLS = {name: call for name, call in CALLS.items() if name not in OTHERS}
EACH = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def drawn(project, call: str) -> Config:
    """The config of the drawn competition of a task."""
    small_tasks.write(project.root, call)
    return compose({"competition": "drawn"})


def values_of(task: Task, rows: int = 12, seed: int = 0) -> np.ndarray:
    """Random values of the task's form."""
    raw = np.random.default_rng(seed).random((rows, len(task.columns)))
    return task.form.finish(raw * 100 if task.space == "number" else raw)


# --- the contract -------------------------------------------------------------------------------------------------


@EACH
def test_defaults_exist_and_fit(drawn: Config, call: str) -> None:
    assert drawn.loss
    assert drawn.metric
    assert drawn.folds.method
    competition = load(drawn)
    task = task_for(drawn, competition)
    metric = evaluate.metric(drawn.metric, task)
    truth = task.targets(competition.targets)
    perfect = metric(truth, task.soft(truth))
    assert perfect == pytest.approx(1.0 if metric.greater else 0.0, abs=1e-3)


@EACH
def test_truth_survives_encoding_and_activation(drawn: Config, call: str) -> None:
    """A network that answers exactly what it was taught gives values that decide for the truth."""
    competition = load(drawn)
    task = task_for(drawn, competition)
    truth, taught = task.targets(competition.targets), task.taught(competition.targets)
    state = task.fit(taught)
    target = task.encode(task.soft(taught), state)
    assert target.dtype == np.float32
    assert target.shape == (48, task.outputs)
    outputs = torch.from_numpy(target if task.learns.name == "numbers" else 40 * target - 20)
    values = task.activate(outputs.to(torch.float32), state).numpy()
    assert values.shape == (48, len(task.columns))
    assert values.dtype == np.float32
    np.testing.assert_allclose(task.decide(values), truth, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(task.form.finish(values), values, atol=1e-5)
    hard = task.encode(taught, state)
    if hard.ndim == 2:
        np.testing.assert_allclose(hard, target, atol=1e-6)


@EACH
def test_states_are_plain_and_come_from_the_rows_given(drawn: Config, call: str) -> None:
    import json

    task = task_for(drawn, load(drawn))
    taught = task.taught(load(drawn).targets)
    assert json.loads(json.dumps(task.fit(taught))) == task.fit(taught)


@EACH
def test_submissions_read_back_and_pass_validation(drawn: Config, call: str) -> None:
    from pipeline import submission

    competition = load(drawn)
    task, sample = task_for(drawn, competition), competition.sample
    values = values_of(task)
    frame = task.submission(competition.test["id"].to_numpy(), values, sample)
    submission.validate(frame, sample, "mine", task.allowed(sample))
    text = frame.astype(str)
    read = task.values(text, sample)
    assert read.shape == values.shape
    np.testing.assert_allclose(task.decide(read), task.decide(values), rtol=1e-4, atol=1e-3)
    solution = pd.read_csv(competition.folder / "solution.csv", dtype=str)
    assert len(task.truth(solution, sample)) == len(solution)


@EACH
@pytest.mark.parametrize("soft", [False, True])
def test_pseudo_labels_read_back(drawn: Config, call: str, soft: bool) -> None:
    task = task_for(drawn, load(drawn))
    values = values_of(task)
    rows, confidence = task.confident(values, 0.0, 0, np.linspace(0, 1, 12))
    assert rows.tolist() == list(range(12))
    assert ((confidence >= 0) & (confidence <= 1)).all()
    chosen, columns = task.pseudo_labels(values, 0.0, 0, soft, np.linspace(0, 1, 12))
    assert chosen.tolist() == rows.tolist()
    written = pd.DataFrame(columns).astype(str)
    np.testing.assert_allclose(task.decide(task.read_labels(written)), task.decide(values), rtol=1e-4, atol=1e-3)


@EACH
def test_confidence_has_a_threshold_and_a_cap(drawn: Config, call: str) -> None:
    task = task_for(drawn, load(drawn))
    values, agreement = values_of(task), np.linspace(0, 1, 12)
    _, all_ = task.confident(values, 0.0, 0, agreement)
    middle = float(np.median(all_))
    rows, confidence = task.confident(values, middle, 0, agreement)
    assert 0 < len(rows) < 12
    assert (confidence >= np.float32(middle)).all()
    assert len(task.confident(values, 0.0, 1, agreement)[0]) < 12


@EACH
def test_a_task_knows_its_form(drawn: Config, call: str) -> None:
    task, facts = task_for(drawn, load(drawn)), tasks.facts(call)
    assert task.form is FORMS[facts["form"]]
    assert task.learns is FORMS[facts["learns"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"task": "multilabel", "metric": "", "loss": "cross_entropy"},
            "loss=cross_entropy, but task=multilabel has labels; .* bce",
        ),
        ({"task": "regression", "metric": "accuracy"}, "metric=accuracy, but task=regression has numbers; .* rmse"),
        ({"task": "regression", "metric": "", "folds.method": "stratified_kfold()"}, "that fit: kfold, .*binned_kfold"),
        (
            {"task": "regression", "metric": "", "sampler": "balanced"},
            "sampler=balanced, but task=regression has numbers",
        ),
        ({"loss": "ohem(loss='bce()')"}, "loss=ohem.* has classes; .* focal"),
        ({"loss": "arcface(s=20)"}, "scale s=20, but head=linear.*; set head=cosine"),
        ({"loss": "adacos", "head": "cosine(s=10)"}, "scale s=0, but head=cosine.s=10.*; set head=cosine"),
        ({"task": "circular(round=3)"}, "has no argument 'round'"),
        ({"task": "regresion"}, "did you mean regression"),
    ],
)
def test_what_does_not_fit_the_task_fails_before_any_data(project, words: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose({"competition": "digits", **words})


def test_defaults_follow_task_and_groups(project) -> None:
    one = compose({"competition": "digits", "metric": "", "task": "circular(period=12)"})
    assert (one.metric, one.loss, one.folds.method) == ("circular_mae(period=12)", "mse()", "binned_kfold()")
    assert compose({"data.group": "patient"}).folds.method == "stratified_group_kfold()"
    assert compose({"task": "multilabel", "metric": ""}).folds.method == "multilabel_stratified_kfold()"


# --- classes ------------------------------------------------------------------------------------------------------


def sample(cells: list[str], *columns: str) -> pd.DataFrame:
    """A sample submission of rows 1, 2, …; each of cells goes into every column."""
    ids = [str(row + 1) for row in range(len(cells))]
    return pd.DataFrame({"id": ids, **dict.fromkeys(columns or ("label",), cells)})


VALUES = np.array([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]], dtype=np.float32)
IDS = np.array(["1", "2"])


@pytest.mark.parametrize(
    ("task", "cells", "expected"),
    [
        (Multiclass(["a", "b", "c"]), ["a", "a"], ["b", "a"]),
        (Multiclass(["cat", "dog", "owl"]), ["0", "0"], [1, 0]),
        (Multiclass(["0", "1", "2"]), ["0", "0"], ["1", "0"]),
        (Multiclass(["a", "b", "c"], style="indices"), ["", ""], [1, 0]),
        (Multiclass(["a", "b", "c"]), ["a b", "c a"], ["b a", "a c"]),
        (Multiclass(["a", "b", "c"], ranks=3), ["a", "a"], ["b a c", "a c b"]),
        (Multiclass(["a b", "b", "c"]), ["a b", "c"], ["b", "a b"]),
    ],
)
def test_cells_of_classes(task: Multiclass, cells: list[str], expected: list[object]) -> None:
    like = sample(cells)
    made = task.submission(IDS, VALUES, like)
    assert made["label"].tolist() == expected
    assert not task.allowed(like)["label"].wrong(made["label"].astype(str)).any()
    assert task.allowed(like)["label"].wrong(pd.Series(["nothing like it"])).all()
    assert task.decide(task.values(made.astype(str), like)).tolist() == task.decide(VALUES).tolist()


def test_columns_of_classes_match_without_case_only_one_to_one() -> None:
    task = Multiclass(["Cat", "dog"])
    like = sample(["0.5"], "DOG", "cat")
    made = task.submission(np.array(["1"]), np.array([[0.2, 0.8]]), like)
    assert made.to_dict("list") == {"id": ["1"], "DOG": [0.8], "cat": [0.2]}
    np.testing.assert_allclose(task.values(made.astype(str), like), [[0.2, 0.8]], rtol=1e-6)
    with pytest.raises(UserError, match="at odds"):
        Multiclass(["cat", "Cat"]).allowed(sample(["0.5"], "CAT", "cat"))


def test_columns_of_zeros_and_a_one_are_decided_where_the_metric_decides() -> None:
    like = pd.DataFrame({"id": ["1", "2"], "a": ["1", "0"], "b": ["0", "1"], "c": ["0", "0"]})
    made = Multiclass(["a", "b", "c"], wants="decision").submission(IDS, VALUES, like)
    assert made[["a", "b", "c"]].to_numpy().tolist() == [[0, 1, 0], [1, 0, 0]]
    made = Multiclass(["a", "b", "c"], wants="probability").submission(IDS, VALUES, like)
    np.testing.assert_allclose(made[["a", "b", "c"]].to_numpy(dtype=float), VALUES)


def test_one_hot_columns_are_classes_and_shares_are_taught_softly() -> None:
    task = Multiclass(["b", "a"], ["b", "a"])
    hot = pd.DataFrame({"b": ["1", "0"], "a": ["0", "1.0"]})
    assert task.targets(hot).tolist() == [1, 0]
    assert task.taught(hot).tolist() == [1, 0]
    shares = pd.DataFrame({"b": ["3", "1"], "a": ["1", "1"]})
    assert task.taught(shares).tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert task.strata(shares).tolist() == ["b", "a"]
    with pytest.raises(UserError, match="must hold shares"):
        task.taught(pd.DataFrame({"b": ["-1"], "a": ["0"]}))


@pytest.mark.parametrize(
    ("wants", "cells", "expected"),
    [
        ("probability", ["0", "0"], [0.75, 0.5]),
        ("decision", ["0", "0"], ["1", "0"]),
        ("decision", ["0.5", "0.5"], [0.75, 0.5]),
        ("probability", ["", ""], [0.75, 0.5]),
    ],
)
def test_a_binary_cell_is_a_chance_where_the_metric_or_the_sample_asks(wants, cells, expected) -> None:
    task = Binary(["0", "1"], wants=wants)
    values = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    made = task.submission(IDS, values, sample(cells))
    assert made["label"].tolist() == expected


def test_a_binary_task_knows_which_class_is_asked_for() -> None:
    task = Binary(["cat", "dog"]).asked_for("cat")
    assert task.columns == ["dog", "cat"]
    assert task.targets(pd.DataFrame({"label": ["cat", "dog"]})).tolist() == [1, 0]


def test_the_binary_solution_may_hold_names_where_the_answer_is_a_chance() -> None:
    task = Binary(["no", "yes"], wants="probability")
    assert task.truth(pd.DataFrame({"id": ["1", "2"], "label": ["yes", "no"]}), sample(["0.5"] * 2)).tolist() == [1, 0]


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_in_one_cell() -> None:
    task = Multilabel(["a", "b", "c"], ["tags"], " ", empty=True)
    truth = task.targets(pd.DataFrame({"tags": ["b a", "", " c "]}))
    assert truth.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    like = sample(["a", "b"], "tags")
    made = task.submission(IDS, np.array([[0.9, 0.2, 0.8], [0.1, 0.4, 0.2]]), like)
    assert made["tags"].tolist() == ["a c", ""]
    assert not task.allowed(like)["tags"].wrong(made["tags"]).any()
    assert task.allowed(like)["tags"].wrong(pd.Series(["a x"])).all()
    with pytest.raises(UserError, match="unknown labels 'd'"):
        task.targets(pd.DataFrame({"tags": ["d"]}))


def test_a_row_is_never_empty_where_no_training_row_is() -> None:
    task = Multilabel(["a", "b"], ["tags"], "|", empty=False)
    made = task.submission(IDS, np.array([[0.1, 0.3], [0.6, 0.9]]), sample(["a|b", "a"], "tags"))
    assert made["tags"].tolist() == ["b", "a|b"]
    assert task.allowed(sample(["a", "a"], "tags"))["tags"].wrong(pd.Series([""])).all()


def test_ranked_labels() -> None:
    task = Multilabel(["a", "b", "c"], ["tags"], " ", ranks=2)
    like = sample(["a b", "a b"], "tags")
    made = task.submission(IDS, VALUES, like)
    assert made["tags"].tolist() == ["b a", "a c"]
    assert task.values(made, like).tolist() == [[0.5, 1, 0], [1, 0, 0.5]]


def test_labels_that_are_not_0_and_1() -> None:
    with pytest.raises(UserError, match="must hold 0 and 1, but also hold 2"):
        Multilabel(["a", "b"], ["a", "b"]).targets(pd.DataFrame({"a": ["0", "2.0"], "b": ["1", "1"]}))


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [False, True])
def test_numbers_are_standardised_by_the_members_own_rows(log: bool) -> None:
    task = Regression(["a", "b"], log=log)
    numbers = np.random.default_rng(0).lognormal(2, 1, (50, 2)).astype(np.float32)
    state = task.fit(numbers)
    encoded = task.encode(numbers, state)
    np.testing.assert_allclose(encoded.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(encoded.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(task.activate(torch.from_numpy(encoded), state), numbers, rtol=1e-4)
    assert task.fit(numbers[:10]) != state


def test_bounds_clip() -> None:
    task = Regression(["a"], low=0, high=10)
    found = task.activate(torch.tensor([[-99.0], [0.0], [99.0]]), {"centre": [5.0], "spread": [2.0]})
    assert found[:, 0].tolist() == [0, 5, 10]
    assert task.allowed(sample(["0"], "a"))["a"].wrong(pd.Series(["11", "3", "x"])).tolist() == [True, False, True]


def test_a_constant_target_is_refused(project) -> None:
    folder = small_tasks.write(project.root, "regression()")
    rows = pd.read_csv(folder / "train.csv", dtype=str).assign(target="3")
    rows.to_csv(folder / "train.csv", index=False)
    asked = compose({"competition": "drawn"})
    with pytest.raises(UserError, match="target is 3 in every training row"):
        task_for(asked, load(asked))


def test_cells_that_are_no_numbers_are_named() -> None:
    with pytest.raises(UserError, match="1 cells are no finite number: 'x'"):
        Regression(["a"]).targets(pd.DataFrame({"a": ["1", "x"]}))


def test_the_circle_closes() -> None:
    task = Circular(["hour"], 24.0)
    near = task.soft(np.array([[23.9], [0.1]], dtype=np.float32))
    assert np.abs(near[0] - near[1]).max() < 0.06
    middle = task.decide(near.mean(axis=0, keepdims=True))[0, 0]
    assert min(middle, 24 - middle) < 1e-3
    assert task.targets(pd.DataFrame({"hour": ["25", "-1"]})).ravel().tolist() == [1, 23]


def test_period_of_metric_and_task_must_agree(project) -> None:
    small_tasks.write(project.root, "circular(period=24.0)")
    asked = compose({"competition": "drawn", "metric": "circular_mae(period=12)"})
    with pytest.raises(UserError, match="give both the same period"):
        task_for(asked, load(asked))


# --- grades -------------------------------------------------------------------------------------------------------


def test_grades_stand_in_the_order_of_their_numbers_and_are_decided_by_their_mean() -> None:
    task = Ordinal(sorted(["10", "9", "2"], key=float))
    assert task.columns == ["2", "9", "10"]
    assert task.grades.tolist() == [2, 9, 10]
    assert task.decide(np.array([[0.5, 0, 0.5], [0.9, 0.1, 0]])).tolist() == [1, 0]


def test_a_number_between_two_grades_is_shared_out() -> None:
    task = OrdinalRegression(["0", "1", "2", "3"])
    state = {"centre": 1.0, "spread": 2.0}
    values = task.activate(torch.tensor([[0.65], [-9.0], [9.0]]), state).numpy()
    np.testing.assert_allclose(values, [[0, 0, 0.7, 0.3], [1, 0, 0, 0], [0, 0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(task.encode(values, state)[0], 0.65, atol=1e-6)


def test_cumulative_steps_that_rise_again_are_levelled() -> None:
    values = Ordinal(["0", "1", "2"]).activate(torch.tensor([[-1.0, 2.0]]), {}).numpy()
    assert (values >= 0).all()
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-6)


def test_words_need_an_order(project) -> None:
    folder = small_tasks.write(project.root, "ordinal()")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["target"] = rows["target"].map({"0": "none", "1": "mild", "2": "bad", "3": "worse"})
    rows.to_csv(folder / "train.csv", index=False)
    asked = compose({"competition": "drawn"})
    with pytest.raises(UserError, match="holds no numbers: bad, mild, none, worse; give their order"):
        task_for(asked, load(asked))
    ordered = settings.replace(asked, task="ordinal(order=['none','mild','bad','worse'])")
    task = task_for(ordered, load(ordered))
    assert task.columns == ["none", "mild", "bad", "worse"]
    assert evaluate.metric("quadratic_kappa", task)(np.arange(4), np.eye(4)) == 1
    with pytest.raises(UserError, match="at odds: worse"):
        task_for(settings.replace(asked, task="ordinal(order=['none','mild','bad'])"), load(asked))


# --- end to end ---------------------------------------------------------------------------------------------------


@EACH
def test_the_whole_recipe_learns_and_submits(project, drawn: Config, call: str) -> None:
    ended = project.run("stage=all", "epochs=12", "pseudo.threshold=0.6", "stack.methods=single,mean,ridge,lightgbm")
    assert ended.code == 0, ended.err
    assert "pseudo" in ended.out
    assert "distill" in ended.out
    path = project.root / "submissions/drawn/stack.csv"
    sample_ = pd.read_csv(project.root / "data/drawn/sample_submission.csv", dtype=str)
    assert pd.read_csv(path, dtype=str)["id"].tolist() == sample_["id"].tolist()
    run = Run(drawn, "tiny")
    task = task_for(drawn, run.competition)
    metric = evaluate.metric(drawn.metric, task)
    guess = task.soft(run.truth(task)).mean(axis=0, keepdims=True).repeat(48, axis=0)
    assert metric.gain(run.truth(task), run.oof().values) > metric.gain(run.truth(task), guess)
    again = project.run("stage=all", "epochs=12", "pseudo.threshold=0.6", "stack.methods=single,mean,ridge,lightgbm")
    assert again.code == 0
    assert "train tiny fold0" not in again.out


@pytest.mark.parametrize(
    "call", ["multilabel()", "regression()", pytest.param("ordinal_regression()", marks=pytest.mark.slow)]
)
def test_random_targets_stay_at_chance(project, call: str) -> None:
    """The canary of law 1 for the other forms: duplicates in the test set carry no label into OOF."""
    small_tasks.write(project.root, call, rows=80, learnable=False)
    words = ("epochs=25", "lr=1e-2", "pseudo.threshold=0.5")
    for stage in ("train", "predict", "pseudo", "distill"):
        ended = project.run(f"stage={stage}", *words)
        assert ended.code == 0, ended.err
    asked = compose({"competition": "drawn"})
    task = task_for(asked, load(asked))
    for name in ("tiny", "tiny-r1", "tiny-distilled"):
        run = Run(asked, name)
        if run.predicted():
            truth, oof = task.soft(run.truth(task)), run.oof().values
            assert abs(_correlation(truth, oof)) < 3 / np.sqrt(80), name
    members = [Predictions.load(Run(asked, "tiny").member((fold,)) / "test.npz").values for fold in (0, 1)]
    assert _correlation(task.soft(task.targets(load(asked).targets)), np.mean(members, axis=0)) > 0.5, (
        "learned by heart"
    )


def _correlation(truth: np.ndarray, values: np.ndarray) -> float:
    spread = truth - truth.mean(axis=0), values - values.mean(axis=0)
    return float((spread[0] * spread[1]).sum() / np.sqrt((spread[0] ** 2).sum() * (spread[1] ** 2).sum()))


def test_forms_are_the_three(project) -> None:
    assert {name: (form.bounded, form.simplex) for name, form in FORMS.items()} == {
        "classes": (True, True), "labels": (True, False), "numbers": (False, False),
    }  # fmt: skip
    assert all(isinstance(form, Form) for form in FORMS.values())
    assert registry.parts("tasks").keys() == CALLS.keys() | OTHERS


def test_folders_of_classes_need_no_table(project) -> None:
    folder = small_tasks.write(project.root, "multiclass()")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    for image_id, label in rows.itertuples(index=False, name=None):
        place = folder / "sorted" / label / f"{image_id}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        (folder / "train_images" / f"{image_id}.png").rename(place)
    for name in ("train.csv", "sample_submission.csv"):
        (folder / name).unlink()
    words = ("data.train_csv=", "data.sample=", "data.train_images=sorted", "recipe=quick", "epochs=2")
    ended = project.run("stage=all", *words)
    assert ended.code == 0, ended.err
    made = pd.read_csv(project.root / "submissions/drawn/stack.csv", dtype=str)
    assert list(made.columns) == ["id", "target"]
    assert set(made["target"]) <= {"low", "mid", "high"}
    assert Path(made["id"][0]).suffix == ".png"
