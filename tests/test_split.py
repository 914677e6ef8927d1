"""Folds: how rows are dealt, and a file that is written once and never silently changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_competition
from small_competition import config

from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.folds import ensure_folds, read_folds
from pipeline.stages import split


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    return small_competition.write(tmp_path)


# --- the file -----------------------------------------------------------------------------------------------------


def folds_csv(whales: Path) -> Path:
    return whales.parent.parent / "folds" / "whales.csv"


def test_folds_are_written_once_and_stand(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = split.run(config())
    text = folds_csv(whales).read_text()
    assert text.startswith("id,fold,group,label\n000a,")
    assert text.splitlines()[1].endswith(",,cat")
    assert not outcome.reused
    assert outcome.facts == {"folds": 2, "rows": 12}
    assert "   0      6        3" in capsys.readouterr().out
    assert np.bincount(read_folds(config(), load(config()))).tolist() == [6, 6]
    (again,) = split.run(config(overwrite=True))
    assert again.reused
    assert "stands" in capsys.readouterr().out
    assert folds_csv(whales).read_text() == text


def test_folds_are_read_by_id_and_in_the_order_of_the_training_table(whales: Path) -> None:
    ensure_folds(config(), load(config()))
    before = dict(zip(load(config()).train["id"], read_folds(config(), load(config())), strict=True))
    header, *lines = folds_csv(whales).read_text().splitlines()
    folds_csv(whales).write_text("\r\n".join([header, *reversed(lines)]) + "\r\n")
    (outcome,) = split.run(config())
    assert outcome.reused
    assert read_folds(config(), load(config())).tolist() == [before[name] for name in load(config()).train["id"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds__count": 3}, "folds/whales.csv has 2 folds, but folds.count=3"),
        ({"folds__seed": 1}, "of 12 rows in other folds than folds.method=stratified_kfold() folds.seed=1 does"),
        ({"folds__method": "kfold()"}, "folds.method=kfold()"),
    ],
)
def test_other_settings_are_refused_until_overwrite(whales: Path, changes: dict[str, object], words: str) -> None:
    split.run(config())
    text = folds_csv(whales).read_text()
    with pytest.raises(UserError) as caught:
        ensure_folds(config(**changes), load(config()))
    assert words in str(caught.value)
    assert "overwrite=true" in str(caught.value)
    assert folds_csv(whales).read_text() == text
    (outcome,) = split.run(config(**changes, overwrite=True))
    assert not outcome.reused
    assert folds_csv(whales).read_text() != text


def test_overwriting_warns_of_the_runs_on_the_old_folds(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split.run(config())
    run = small_competition.asked_folder(config(), "tiny")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    split.run(config(folds__count=3, overwrite=True))
    assert "old folds" in (warning := capsys.readouterr().err)
    assert "tiny" in warning


def test_given_folds_are_taken_as_they_stand(whales: Path) -> None:
    with pytest.raises(UserError, match=r"folds/<competition>\.csv as it stands, but there is none"):
        split.run(config(folds__method="given()"))
    ids = load(config()).train["id"]
    folds_csv(whales).parent.mkdir()
    small_competition.table(folds_csv(whales), "id,fold", zip(ids, [0, 1, 2, 3] * 3, strict=True))
    (outcome,) = split.run(config(folds__method="given()"))
    assert outcome.reused
    assert outcome.facts["folds"] == 4
    with pytest.raises(UserError, match=r"folds.method=given\(\)"):
        split.run(config(folds__count=4))


def test_folds_of_other_rows_are_refused(whales: Path) -> None:
    split.run(config())
    small_competition.table(whales / "train.csv", "id,label", [("000a", "cat"), ("001a", "dog"), ("002a", "dog")])
    with pytest.raises(UserError, match="holds 9 ids that train.csv has not: 003a, .*overwrite=true"):
        read_folds(config(), load(config()))
    with pytest.raises(UserError, match="holds 9 ids"):
        split.run(config())
    split.run(config(overwrite=True))
    assert len(read_folds(config(), load(config()))) == 3


def test_a_damaged_or_missing_file_is_named(whales: Path) -> None:
    with pytest.raises(UserError, match="run ./run.sh stage=split competition=whales first"):
        read_folds(config(), load(config()))
    split.run(config())
    good = folds_csv(whales).read_text()
    for text, words in [
        (good.replace("000a,", "000b,"), "lacks 1 ids of train.csv: 000a and holds 1 ids"),
        (good.replace("000a,0", "000a,x").replace("000a,1", "000a,x"), "whole numbers"),
        (good.replace(",0,", ",2,"), "has the folds 1, 2, not 0, 1"),
        (good.replace("fold,", "part,"), "has no column 'fold'"),
        ("", "is empty"),
    ]:
        assert text != good
        folds_csv(whales).write_text(text)
        with pytest.raises(UserError, match=words):
            read_folds(config(), load(config()))


def test_rare_classes_warn_or_stop(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = whales / "train.csv"
    path.write_text(path.read_text().replace("000a,cat", "000a,yeti"))
    with pytest.raises(UserError, match=r"fewer rows than the 2 folds.*yeti \(1\).*folds.strict=false"):
        split.run(config(folds__strict=True))
    assert not folds_csv(whales).exists()
    split.run(config())
    assert "yeti (1)" in capsys.readouterr().err
    assert folds_csv(whales).exists()


def test_more_folds_than_rows_and_ungrouped_groups_are_refused(whales: Path) -> None:
    with pytest.raises(UserError, match="folds.count=13, but train.csv has 12 rows"):
        split.run(config(folds__count=13))
    ids = load(config()).train["id"]
    small_competition.table(
        whales / "train.csv", "id,label,pod", ((n, "cat" if i % 2 else "dog", i // 3) for i, n in enumerate(ids))
    )
    with pytest.raises(UserError, match=r"data.group=pod.*stratified_group_kfold\(\)"):
        split.run(config(data__group="pod"))
    with pytest.raises(UserError, match="needs a group column"):
        split.run(config(folds__method="group_kfold()"))
    split.run(config(data__group="pod", folds__method="stratified_group_kfold()"))
    lines = [line.split(",") for line in folds_csv(whales).read_text().splitlines()[1:]]
    assert len({(fold, pod) for _, fold, pod, _ in lines}) == 4
    assert not folds_csv(whales).with_name("whales.csv.tmp").exists()
