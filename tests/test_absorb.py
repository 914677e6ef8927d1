"""stage=absorb: what joins the training rows and what is refused; folds that stay; runs from before and after."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import small_tasks
import small_training as small

from pipeline import folds as dealing
from pipeline.competition import load
from pipeline.config import compose
from pipeline.folds import ensure_folds, read_folds
from pipeline.runs import Run
from pipeline.stages import check


def labels(root, text: str, name: str = "new.csv") -> str:
    (root / name).write_text(text)
    return f"labels={name}"


@pytest.fixture
def noise(project):
    """32 training rows of a, b, c in 2 folds, test rows b000 … b007, and four images nobody labelled."""
    small.write(project.root)
    path = project.root / "configs/competition/noise.yaml"
    path.write_text(path.read_text().replace("channels: 1", "channels: 1, unlabelled: more"))
    for row in range(4):
        small._picture(project.root / f"data/noise/more/u{row}.png", np.random.default_rng(row), row % 3)
    assert project.run("stage=split").code == 0
    return project


def test_rows_join_behind_the_others_whose_folds_stay(noise):
    folds = noise.root / "folds/noise.csv"
    before = folds.read_bytes()
    text = "id,label,note\nb001,c,x\nmore/u0.png, a ,\nb002,,\nmore/u1.png,b,\nb001,c,again\n"
    answer = noise.run("stage=absorb", labels(noise.root, text))
    assert answer.code == 0, answer.err
    assert "1 rows without a label were skipped" in answer.out
    assert "many competitions forbid" in answer.err
    assert "1 of them are test images" in answer.err
    table = pd.read_csv(noise.root / "labels/noise.csv", dtype=str, keep_default_na=False)
    assert list(table) == ["id", "label", "fold", "origin", "digest"]
    assert table[["id", "label", "origin"]].to_numpy().tolist() == [
        ["b001", "c", "new.csv"], ["more/u0.png", "a", "new.csv"], ["more/u1.png", "b", "new.csv"],
    ]  # fmt: skip
    assert table["digest"].nunique() == 1
    assert folds.read_bytes().startswith(before), "the folds file is extended, nothing else"
    competition = load(small.config())
    assert competition.absorbed == 3
    assert competition.train["id"].tolist()[-3:] == ["b001", "more/u0.png", "more/u1.png"]
    assert competition.targets["label"].tolist()[-3:] == ["c", "a", "b"]
    assert "b001" in set(competition.test["id"]), "it is still predicted"
    looked = check.apart(competition)
    assert looked.test["id"].tolist() == [name for name in competition.test["id"] if name != "b001"], "it is no copy"
    assert len(looked.test_table) == 7
    assert competition.unlabelled["id"].tolist() == ["more/u2.png", "more/u3.png"]
    after = folds.read_bytes()
    again = noise.run("stage=absorb", "labels=new.csv")
    assert again.code == 0
    assert "nothing to do" in again.out
    assert folds.read_bytes() == after
    more = noise.run("stage=absorb", labels(noise.root, "id,label\nmore/u2.png,a\n", "more.csv"), "absorb.scored=false",
                     "absorb.origin=anna, second evening")  # fmt: skip
    assert more.code == 0, more.err
    assert folds.read_bytes().startswith(after)
    run = Run(small.config(), "tiny")
    assert run.folds[-1] == -1
    for row in range(32, 35):
        assert [bool(run.learned((fold,))[row]) for fold in range(2)] == [fold != run.folds[row] for fold in range(2)]
    assert all(run.learned((fold,))[35] for fold in range(2)), "it is learned by all, and predicted by none"
    assert pd.read_csv(noise.root / "labels/noise.csv")["origin"].tolist()[-1] == "anna, second evening"
    whole = folds.read_bytes()
    folds.unlink()
    assert noise.run("stage=split").code == 0
    assert folds.read_bytes() == whole, "dealt again all at once they are the same"


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("id,label\nb001,q\n", [], "unknown classes 'q'"),
        ("id,label\nzzz,a\n", [], "neither test images nor in data.unlabelled=more: zzz"),
        ("id,label\nb001,a\nb001,b\n", [], "b001 have two labels"),
        ("id,class\nb001,a\n", [], "has no column 'label'"),
        ("id,label\nb001,\n", [], "has no label: all 1 rows are blank"),
        ("id,label\na000,q\n", [], "unknown classes"),
        ("id,label\nb001,a\n", ["labels=none.csv"], "none.csv does not exist"),
        ("id,label\nb001,a\n", ["labels="], "stage=absorb needs labels=FILE"),
    ],
)
def test_what_is_refused_changes_nothing(noise, text, words, says):
    answer = noise.run("stage=absorb", labels(noise.root, text), *words)
    assert answer.code == 2, answer.out
    assert says in answer.err
    assert not (noise.root / "labels/noise.csv").exists()


def test_another_label_for_a_row_that_has_one(noise):
    first = load(small.config())
    own, label = first.train["id"][0], first.targets["label"][0]
    other = next(name for name in "abc" if name != label)
    wrong = noise.run("stage=absorb", labels(noise.root, f"id,label\n{own},{other}\n"))
    assert wrong.code == 2
    assert f"{own} are rows of train.csv with another label" in wrong.err
    same = noise.run("stage=absorb", labels(noise.root, f"id,label\n{own},{label}\nb001,a\n"))
    assert same.code == 0, same.err
    assert "with the same label" in same.out
    late = noise.run("stage=absorb", labels(noise.root, "id,label\nb001,b\n"))
    assert late.code == 2
    assert "b001 (a → b)" in late.err
    before = (noise.root / "folds/noise.csv").read_text()
    taken = noise.run("stage=absorb", "labels=new.csv", "overwrite=true")
    assert taken.code == 0, taken.err
    competition = load(small.config())
    assert competition.targets["label"].tolist()[-1] == "b"
    assert (noise.root / "folds/noise.csv").read_text() == before, "its fold stays, whatever it is"


def test_copies_of_training_images_join_their_fold(noise):
    """Law 1: dealt by their class alone they would part, and tell the label of a row to the member that predicts it."""
    competition, folder = load(small.config()), noise.root / "data/noise"
    rows = np.flatnonzero(read_folds(small.config(), competition) == 1)[:4]
    for place, file in enumerate(competition.train["file"].iloc[rows]):
        shutil.copy(folder / file, folder / f"more/u{place}.png")
    text = "id,label\n" + "".join(f"more/u{place}.png,a\n" for place in range(4))
    assert noise.run("stage=absorb", labels(noise.root, text)).code == 0
    assert read_folds(small.config(), load(small.config()))[-4:].tolist() == [1, 1, 1, 1]


def test_runs_from_before_are_predicted_again_to_be_compared(noise):
    def run(*words):
        return noise.run("epochs=1", "competition=noise", *words)

    for stage in ("train", "predict"):
        assert run(f"stage={stage}").code == 0
    assert noise.run("stage=absorb", labels(noise.root, "id,label\nb000,a\nmore/u1.png,b\n")).code == 0
    refused = run("stage=train")
    assert refused.code == 2
    assert "was made from other data (competition, folds changed)" in refused.err
    assert run("stage=train", "run=after").code == 0
    assert run("stage=predict", "run=after").code == 0
    stale = run("stage=compare", "runs=tiny,after")
    assert stale.code == 2, stale.out
    assert "lacks rows that stage=absorb joined since; predict them" in stale.err
    assert "trained before rows were absorbed" in run("stage=pseudo", "run=tiny").err
    tests = [Run(small.config(), "tiny").member((fold,)) / "test.npz" for fold in range(2)]
    before = [path.read_bytes() for path in tests]
    assert run("stage=predict", "run=tiny").code == 0
    assert len(Run(small.config(), "tiny").oof().ids) == 34
    assert [path.read_bytes() for path in tests] == before
    compared = run("stage=compare", "runs=tiny,after")
    assert compared.code == 0, compared.err
    assert "done before" not in compared.out
    plain = noise.run("epochs=1", "stage=train", "data.absorbed=false", "competition=noise")
    assert plain.code == 0, "without the absorbed rows it is the run that it was: " + plain.err
    train = Run(small.config(), "after").competition.train
    assert len(Run(small.config(), "after").oof().ids) == len(train) == 34


def test_late_rows_go_where_few_are_like_them_and_groups_stay_whole(project):
    folder = small_tasks.write(project.root, "multiclass()")
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table["patient"] = [f"p{row // 4}" for row in range(len(table))]
    table.to_csv(folder / "train.csv", index=False)
    asked = compose({"competition": "drawn", "data.group": "patient", "folds.count": "3"})
    old = ensure_folds(asked, load(asked))
    new = [("test000", "low", "p2"), ("test001", "low", "p99"), ("test002", "mid", "p99"), ("test003", "high", "p7")]
    text = "id,target,patient\n" + "".join(",".join(row) + "\n" for row in new)
    words = ["competition=drawn", "data.group=patient", "folds.count=3"]
    lacking = project.run("stage=absorb", labels(project.root, "id,target\ntest000,low\n"), *words)
    assert lacking.code == 2
    assert "no patient (data.group)" in lacking.err
    assert not (project.root / "labels/drawn.csv").exists(), "all is as it was"
    answer = project.run("stage=absorb", labels(project.root, text), *words)
    assert answer.code == 0, answer.err
    folds = read_folds(asked, load(asked))
    assert folds[: len(old)].tolist() == old.tolist()
    assert folds[-4] == old[8], "p2 has a fold"
    assert folds[-3] == folds[-2], "a new patient stays whole"
    assert folds[-1] == old[28]


def test_late_strata_of_numbers_and_labels():
    numbers = dealing._late_strata(np.arange(40, dtype=np.float64)[:, None] % 37, 30)
    assert numbers.shape == (40, 10)
    assert (numbers.sum(axis=1) == 1).all()
    marked = np.array([[1, 0], [1, 1], [1, 0], [0, 1]])
    np.testing.assert_allclose(dealing._late_strata(marked, 3), marked / [3, 1])


def test_numbers_leave_no_bounds_and_order_of_time_is_refused(project):
    small_tasks.write(project.root, "regression(low=0, high=200)")
    wrong = project.run("stage=absorb", "competition=drawn", labels(project.root, "id,target\ntest000,900\n"))
    assert wrong.code == 2
    assert "leave the bounds" in wrong.err
    right = project.run("stage=absorb", "competition=drawn", labels(project.root, "id,target\ntest000,100\n"))
    assert right.code == 0, right.err
    assert "order of time" not in right.out
