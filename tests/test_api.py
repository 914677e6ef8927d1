"""The stages from Python: the same configs, checks and artefacts as on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_competition
from conftest import SOURCE, Project

from pipeline import Competition, budget, stages
from pipeline.errors import UserError

TINY = {"epochs": 1, "batch_size": 64, "backbone": "small_image(width=2)", "models": ["small_image"]}


def test_the_stages_of_a_competition_chain_and_leave_the_artefacts_of_the_command_line(project: Project) -> None:
    digits = Competition("digits", folds__count=2, train__threads=1, **TINY)
    done = digits.split().train(fold=[0, 1]).predict(views=["identity", "shift(x=1,y=0)"])
    assert [outcome.step for outcome in done.outcomes] == ["predict"]
    assert done.stack(stack__methods="mean").submit().outcomes[0].run == "stack"
    oof = digits.oof()
    assert len(oof.ids) == 1437
    assert np.allclose(oof.values.sum(axis=1), 1, atol=1e-3)
    assert len(digits.test("small_image").ids) == len(digits.submission()) == 360
    assert list(digits.curves()["member"]) == ["fold0", "fold1"]
    words = ("competition=digits", "models=small_image", "backbone=small_image(width=2)", "folds.count=2")
    again = project.run("stage=train", *words, "epochs=1", "batch_size=64", "train.threads=1")
    assert again.code == 0
    assert "done before" in again.out or "img/s" not in again.out  # the same run, found as it was left


def test_a_competition_is_made_from_its_folder(tmp_path: Path, project: Project) -> None:
    small_competition.write(project.root)
    whales = Competition.new("orcas", project.root / "data/whales", symmetry="hflip")
    assert whales.config().symmetry == "hflip"
    assert (project.root / "configs/competition/orcas.yaml").is_file()


def test_each_stage_is_a_method_with_its_help(project: Project) -> None:
    digits = Competition("digits")
    assert set(stages.names()) <= set(dir(digits))
    assert (digits.find_lr.__doc__ or "").startswith("Find a learning rate")
    with pytest.raises(AttributeError, match="did you mean predict"):
        digits.predct  # noqa: B018


def test_wrong_settings_are_told_at_once(project: Project) -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        Competition("digit")
    with pytest.raises(UserError, match="did you mean epochs"):
        Competition("digits", epoch=3)
    digits = Competition("digits")
    with pytest.raises(UserError, match="folds.count=many"):
        digits.split(folds__count="many")
    with pytest.raises(UserError, match="is a dict"):
        digits.train(loss={"focal": 2})
    with pytest.raises(UserError, match="make it with submit"):
        digits.submission()
    assert not (project.root / "folds/digits.csv").exists()


def test_values_are_written_as_the_command_line_writes_them(project: Project) -> None:
    made = Competition("digits", views=["identity()", "shift(x=1,y=2)"]).config(pretrained=False, lr=1e-4, fold=0)
    assert (made.views, made.pretrained, made.lr, made.fold) == (["identity()", "shift(x=1,y=2)"], False, 1e-4, ["0"])


def test_a_root_holds_for_its_competition_alone(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIPELINE_ROOT")
    here = Competition("digits", root=project.root)
    here.split(folds__count=3)
    assert (project.root / "folds/digits.csv").is_file()
    assert Competition("digits").root == SOURCE


def test_a_budget_is_of_one_call(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Competition("digits", folds__count=2, train__threads=1, **TINY)
    monkeypatch.setattr(budget, "age", lambda: 1e6)  # of a notebook that has been open for days
    assert digits.train(fold=0, budget="1h").outcomes[0].score
    assert budget.limit() is None


def test_it_shows_its_table(project: Project) -> None:
    done = Competition("digits").split(folds__count=3)
    assert "split" in repr(done)
    assert "<table" in done._repr_html_()
    assert "competition=digits" in repr(Competition("digits"))
