"""Retrieval of labels: a drawn competition with new identities through the stages, fold safety, folds, bad input."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pandas as pd
import pytest
import small_tasks

from pipeline import artefacts, evaluate, lists, submission, training
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import Lists, compose, replace, root
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.forms import unit
from pipeline.lists import NEW
from pipeline.parts.splits import new_identity_kfold
from pipeline.prediction import ListMember
from pipeline.runs import Run
from pipeline.tasks import task_for
from pipeline.tasks.recognition import Recognition

DRAWN = {"competition": "drawn", "model": "tiny"}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The config of a drawn competition."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    shutil.copytree(small_tasks.SOURCE / "configs", tmp_path / "configs")
    small_tasks.write_labels(tmp_path, epochs="2")
    return compose(DRAWN)


def run(*words: str) -> None:
    assert main(list(words)) == 0


# --- the stages ---------------------------------------------------------------------------------------------------


def test_a_drawn_competition_goes_through_the_stages(drawn, capsys):
    for stage in ("split", "train", "predict"):
        run(f"stage={stage}", "views=identity(),shift(x=1)", "train.seeds=2")
    run("stage=train", "run=other", "epochs=1", "lists.nearest=2")
    run("stage=predict", "run=other", "lists.nearest=2", "lists.length=4")
    run("stage=stack", "stack.methods=all")
    run("stage=score")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "rows  classes    new" in printed.out
    assert "new_threshold()" in printed.out
    competition, task = load(drawn), task_for(drawn, load(drawn))
    allowed = task.allowed(competition.sample)
    frame = submission.read(root() / "submissions/drawn/stack.csv", competition.sample, allowed)
    assert frame["identity"].map(lambda cell: len(set(cell.split()))).eq(3).all()
    solution = pd.read_csv(root() / "data/drawn/solution.csv")
    first = frame["identity"].str.split().str[0]
    assert (first == solution["identity"]).mean() > 0.6  # untrained nets already tell the patterns apart
    for stage in ("train", "predict", "stack"):
        run(f"stage={stage}", "views=identity(),shift(x=1)", "train.seeds=2")
    assert "0 s" not in capsys.readouterr().err


def test_the_log_has_the_score_of_oof_and_what_is_submitted_is_the_mean_of_members(drawn):
    for stage in ("split", "train", "predict"):
        run(f"stage={stage}")
    run("stage=submit", "source=tiny")
    made, task = Run(drawn, "tiny"), task_for(drawn, load(drawn))
    metric, truth = evaluate.metric(drawn.metric, task), made.truth(task)
    scores = evaluate.score_folds(metric, truth, made.oof().values, made.scored_folds).folds
    logged = [pd.read_csv(made.member((fold,)) / "log.csv")["score"].iloc[-1] for fold in range(2)]
    assert logged == pytest.approx(scores, abs=0.03)  # the formats of training and prediction differ
    mean = Predictions.mean(made.tests())
    frame = pd.read_csv(root() / "submissions/drawn/tiny.csv")
    best = task.names[lists.best_first(mean.align(frame["id"].to_numpy()).values, 3)]
    assert frame["identity"].str.split().tolist() == best.tolist()


def test_rows_never_find_their_own_fold_and_nobody_finds_the_new(drawn, monkeypatch):
    """Each row's embedding is its own axis, so that a row finds itself, and then whom it is told to be near to."""
    competition, folds = load(drawn), ensure_folds(drawn, load(drawn))
    task, count = task_for(drawn, competition), len(folds)
    member = object.__new__(ListMember)
    member.config, member.competition, member.task, member.folder = drawn, competition, task, root()
    copies = np.eye(count, dtype=np.float32)
    monkeypatch.setattr(ListMember, "points", unit(copies))
    labels = task.targets(competition.targets)
    for fold in range(2):
        rows = np.flatnonzero(folds == fold)
        codes, near = lists.unpacked(member.own(rows))
        assert (near[:, :-1] <= 0).all()  # nobody found itself
        known = set(labels[(folds != fold) & (labels >= 0)].tolist())
        assert {code for code in codes[:, :-1].ravel().tolist() if code >= 0} == known
        truth = Run(drawn, "tiny").truth_of(task, rows)
        assert set(truth.tolist()) == known & set(labels[rows].tolist()) | {NEW}
    table = training.member_table(Run(drawn, "tiny"), task, (0,), np.array([], dtype=np.int64))
    assert table.targets.tolist() == labels[(folds != 0) & (labels >= 0)].tolist()


def test_labels_at_random_stay_at_chance(drawn):
    """Test images are copies of the training images: what they tell must reach no OOF."""
    folder, generator = root() / "data/drawn", np.random.default_rng(0)
    rows = pd.read_csv(folder / "train.csv")
    rows["identity"] = generator.permutation(np.arange(len(rows)) % 6).astype(str)
    rows.to_csv(folder / "train.csv", index=False)
    tests = pd.read_csv(folder / "sample_submission.csv")["id"]
    for name, copied in zip(tests, rows["id"], strict=False):
        shutil.copy(folder / f"train_images/{copied}.png", folder / f"test_images/{name}.png")
    for stage in ("split", "train", "predict", "stack"):
        run(f"stage={stage}", "epochs=6", "stack.methods=all")
    made = artefacts.read_json(root() / "runs/drawn/level2/stack/level2.json")
    chance = (1 + 1 / 2 + 1 / 3) / 6
    assert made["score"]["score"] < chance + 0.15
    found = Run(drawn, "tiny").tests()[0].values  # a copy finds its original, and so its label, in the test alone
    first = task_for(drawn, load(drawn)).names[lists.best_first(found, 1)[:, 0]]
    assert (first == rows["identity"].to_numpy()[: len(first)]).mean() > 0.9


@pytest.mark.parametrize("stage", ["pseudo", "distill"])
def test_nothing_learns_from_what_test_images_find(stage, drawn, capsys):
    assert main([f"stage={stage}"]) == 2
    assert "search the training images of all folds: nothing may learn" in capsys.readouterr().err
    assert "is not made for" in importlib.import_module(f"pipeline.stages.{stage}").run(drawn)[0].note  # of a recipe


# --- solutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "score"), [("new_whale", (1 + 1 / 2 + 1 / 3 + 1 / 2) / 4), ("", (1 + 1 / 2) / 4)])
def test_a_solution_holds_one_label_or_several_and_unknown_ones_are_new(new, score):
    names = [*"abcd"]
    task = Recognition(names, 3, new, Lists())
    sample = pd.DataFrame({"id": [*"pqrst"], "label": ["a b c"] * 5})
    solution = pd.DataFrame({"id": [*"pqrst"], "label": ["a", "b", "stranger", "new_whale", ""]})
    last = new or "d"
    frame = pd.DataFrame({"id": [*"pqrst"], "label": ["a b c", "a b c", f"a b {last}", f"a {last}", "a"]})
    truth, values = task.truth(solution, sample), task.values(frame, sample)
    assert evaluate.metric("mean_average_precision(k=3)", task)(truth, values) == pytest.approx(score)
    both = task.truth(pd.DataFrame({"id": ["p"], "label": ["a c"]}), sample)
    precision = evaluate.metric("mean_average_precision(k=3)", task)(both, values[:1])
    assert precision == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("cell", "fits"),
    [("a b", True), ("new_whale", True), ("a a", False), ("", False), ("stranger", False), ("a b c d", False)],
)
def test_lists_hold_different_known_labels(cell, fits):
    task = Recognition([*"abcd"], 3, "new_whale", Lists())
    sample = pd.DataFrame({"id": ["p"], "label": ["a b c"]})
    wrong = task.allowed(sample)["label"].wrong(pd.Series([cell]))
    assert wrong.any() != fits


# --- folds --------------------------------------------------------------------------------------------------------


def new_share(target: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The share of each fold's rows whose class stands in no other fold, or that have none; row by row."""
    found = []
    for fold in np.unique(folds):
        others = set(target[folds != fold].tolist()) - {""}
        found.append(np.mean([name not in others for name in target[folds == fold].tolist()]))
    return np.array(found)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_of_each_fold_is_new_and_the_rest_is_not(share):
    generator = np.random.default_rng(0)
    target = np.array([f"w{min(59, number)}" for number in generator.geometric(0.05, 800)])
    folds = new_identity_kfold(target, None, 5, 0, share=share)
    assert new_share(target, folds) == pytest.approx(np.full(5, share), abs=0.05)
    assert np.ptp(np.bincount(folds)) <= 0.1 * 800 / 5
    names, counts = np.unique(target, return_counts=True)
    spread = [len(np.unique(folds[target == name])) for name in names]
    assert all(folded in (1, min(5, count)) for folded, count in zip(spread, counts, strict=True))
    assert not np.array_equal(folds, new_identity_kfold(target, None, 5, 1, share=share))


@pytest.mark.parametrize(
    ("target", "share"),
    [
        ([f"w{row // 4}" for row in range(400)], 0.1),  # none is new by nature: a tenth is held out
        ([*[f"w{row // 4}" for row in range(240)], *[f"one{row}" for row in range(160)]], 0.4),  # images of their own
        ([*[f"w{row // 4}" for row in range(240)], *[""] * 160], 0.4),  # rows without an identity
    ],
)
def test_the_table_tells_how_many_are_new(target, share):
    folds = new_identity_kfold(np.array(target), None, 4, 0)
    assert new_share(np.array(target), folds) == pytest.approx(np.full(4, share), abs=0.03)
    assert np.ptp(np.bincount(folds)) <= 8


def test_identities_of_one_image_alone_cannot_be_found():
    with pytest.raises(UserError, match="needs identities of two rows"):
        new_identity_kfold(np.array([f"w{row}" for row in range(20)]), None, 4, 0)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metric=accuracy()"], "has ranks; those that fit:"),
        (["rerankings=k_reciprocal()"], "rerankings=k_reciprocal() has no meaning for task=retrieval(kind='labels'"),
        (["data.camera=lens"], "data.camera=lens has no meaning"),
        (["task=retrieval(kind='labels',itself=True)"], "itself=True has no meaning"),
        (["task=retrieval(new='x')"], "new=x has no meaning"),
        (["task=retrieval(kind='tags')"], "kind='tags'"),
        (["task=retrieval(kind='labels',new='new whale')"], "'new whale' have blanks"),
        (["folds.method=new_identity_kfold(share=1.5)"], "share=1.5"),
        (["merge=geometric_mean()"], "has embeddings; those that fit: mean"),
        (["lists.length=0"], "lists.length=0"),
    ],
)
def test_bad_input_is_one_message(words, message, drawn, capsys):
    assert main(["stage=split", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (root() / "folds/drawn.csv").exists()


def test_settings_of_lists_make_other_predictions_of_the_same_run(drawn):
    run("stage=split")
    run("stage=train")
    run("stage=predict")
    before = Run(drawn, "tiny").oof().values
    run("stage=predict", "lists.new_at=0.9")
    after = Run(replace(drawn, lists__new_at=0.9), "tiny").oof().values
    assert lists.with_threshold(before, 0.9).tobytes() == after.tobytes()
