"""Folds beyond plain k-fold: a fixed holdout, time, groups found or given, a team mate's file; through all stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_tasks

from pipeline import training
from pipeline.competition import load
from pipeline.config import Config, compose
from pipeline.errors import UserError
from pipeline.folds import ensure_folds, learns_from, read_folds
from pipeline.runs import Run


@pytest.fixture
def folder(project) -> Path:
    """The drawn competition of classes, with columns of time, marks and patients."""
    folder = small_tasks.write(project.root, "multiclass()")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["day"] = [str(2020 + (7 * row) % 48) for row in range(len(rows))]
    rows["valid"] = ["1" if row % 4 == 0 else "" for row in range(len(rows))]
    rows["patient"] = [f"p{row // 3}" for row in range(len(rows))]
    rows.to_csv(folder / "train.csv", index=False)
    return folder


def config(**words: str) -> Config:
    return compose({"competition": "drawn", **{key.replace("__", "."): value for key, value in words.items()}})


def dealt(asked: Config) -> np.ndarray:
    return ensure_folds(asked, load(asked))


HOLDOUT = ("data.holdout=valid", "folds.method=holdout()")
TIME = ("data.order=day", "folds.method=time_ordered()", "folds.count=3")


def test_a_fixed_holdout_is_one_fold_and_the_rest_is_always_learned_from(folder, project):
    asked = config(data__holdout="valid", folds__method="holdout()")
    folds = dealt(asked)
    assert np.flatnonzero(folds == 0).tolist() == list(range(0, 48, 4))
    assert (folds == -1).sum() == 36
    assert np.array_equal(read_folds(asked, load(asked)), folds)
    ended = project.run("stage=all", "epochs=3", "stack.methods=single,mean,ridge", *HOLDOUT)
    assert ended.code == 0, ended.err
    run = Run(asked, "tiny")
    assert run.count == 1
    assert run.oof().ids.tolist() == load(asked).train["id"][::4].tolist()
    assert len(pd.read_csv(project.root / "submissions/drawn/stack.csv")) == 12


def test_members_of_time_learn_from_the_past_alone(folder, project, monkeypatch):
    seen = {}
    made = training.member_table

    def spy(run, task, held_out, broken):
        table = seen[held_out] = made(run, task, held_out, broken)
        return table

    monkeypatch.setattr(training, "member_table", spy)
    ended = project.run("stage=all", "recipe=quick", "epochs=2", "stack.methods=single,mean", *TIME)
    assert ended.code == 0, ended.err
    asked = config(data__order="day", folds__method="time_ordered()", folds__count="3")
    folds, day = dealt(asked), load(asked).table["day"].astype(int).to_numpy()
    assert np.bincount(folds + 1).tolist() == [12, 12, 12, 12]
    for fold in range(3):
        rows = seen[fold,].rows
        assert day[rows].max() < day[folds == fold].min()
        assert np.array_equal(np.flatnonzero(learns_from(asked, folds, (fold,))), rows)
    assert len(Run(asked, "tiny").oof().ids) == 36


def test_a_training_on_everything_leaves_no_row_out(folder):
    folds = np.array([-1, 0, 1])
    assert learns_from(config(data__order="day", folds__method="time_ordered()"), folds, ()).all()


def test_columns_that_a_split_needs(folder):
    for words, said in (
        ({"folds__method": "holdout()"}, "needs a column; set data.holdout=COLUMN"),
        ({"folds__method": "time_ordered()", "data__order": "date"}, "no such column; .*did you mean"),
        ({"folds__method": "kfold()", "data__group": "patient"}, "parts groups"),
        ({"folds__method": "group_kfold()"}, "needs a group column"),
    ):
        with pytest.raises(UserError, match=said):
            dealt(config(**words))


def test_near_duplicates_share_a_fold_and_join_the_groups(folder, project):
    asked = config(folds__groups="near_duplicates")
    with pytest.raises(UserError, match="stage=check competition=drawn"):
        dealt(asked)
    ids = load(asked).train["id"]
    alike = [image if row not in (0, 47) else "twins" for row, image in enumerate(ids)]
    path = project.root / "runs/drawn/near_duplicates.csv"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"id": ids, "group": alike}).to_csv(path, index=False)
    folds = dealt(asked)
    assert folds[0] == folds[47]
    (project.root / "folds/drawn.csv").unlink()
    both = dealt(config(folds__groups="near_duplicates", data__group="patient"))
    assert len(set(both[[0, 1, 2, 45, 46, 47]])) == 1, "patients 0 and 15 are joined by the twins"
    assert all(len(set(both[start : start + 3])) == 1 for start in range(0, 48, 3))


def test_a_team_mates_folds_are_taken_over(folder, project):
    ids = load(config()).train["id"]
    path = project.root / "mate.csv"
    pd.DataFrame({"id": ids, "fold": [1 + row % 3 for row in range(48)]}).sample(frac=1).to_csv(path, index=False)
    folds = dealt(config(folds__file="mate.csv"))
    assert folds.tolist() == [row % 3 for row in range(48)]
    header = (project.root / "folds/drawn.csv").read_text().splitlines()[0]
    assert header == "id,fold,group,target"
    pd.DataFrame({"id": ids[1:], "fold": 0}).to_csv(path, index=False)
    with pytest.raises(UserError, match="mate.csv lacks 1 ids of train.csv: train000; correct folds.file"):
        dealt(config(folds__file="mate.csv"))
    pd.DataFrame({"id": ids, "fold": "a"}).to_csv(path, index=False)
    with pytest.raises(UserError, match="folds must be whole numbers, not a"):
        dealt(config(folds__file="mate.csv"))


def test_a_class_that_lies_in_one_group_is_said(folder, project):
    asked = config(data__group="target", folds__method="group_kfold()")
    ensure_folds(asked, load(asked))
    assert "never saw them: high, low, mid" in project.capsys.readouterr().err


def test_leave_one_group_out_makes_a_fold_for_each(folder):
    asked = config(data__group="patient", folds__method="leave_one_group_out()")
    folds = dealt(asked)
    assert folds.max() == 15
    assert all(len(set(folds[start : start + 3])) == 1 for start in range(0, 48, 3))


def test_rare_labels_are_named(project):
    folder = small_tasks.write(project.root, "multilabel()")
    rows = pd.read_csv(folder / "train.csv", dtype=str).assign(glaring=["1"] + ["0"] * 47)
    rows.to_csv(folder / "train.csv", index=False)
    asked = config()
    ensure_folds(asked, load(asked))
    assert "so that some folds hold none: glaring (1)" in project.capsys.readouterr().err
