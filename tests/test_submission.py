"""Submissions: what fits the sample, what stage=submit makes of a stack, a run and a blend, and when it says no."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_competition
from small_competition import TEST_IDS, asked_folder, config

from pipeline import submission
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.stages import submit
from pipeline.tasks.answers import Names

NAMES = pd.DataFrame({"id": ["007", "010", "003"], "label": ["cat", "cat", "cat"]})
ALLOWED = {"label": Names(frozenset(["cat", "dog"]))}
SHARES = pd.DataFrame({"id": ["007", "010", "003"], "cat": ["0.5"] * 3, "dog": ["0.5"] * 3})


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A competition with folds and the predictions of the run tiny: dog, owl, cat, dog on the test rows."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    folder = small_competition.write(tmp_path)
    ensure_folds(config(), load(config()))
    small_competition.predict(config(), "tiny", np.eye(3, dtype=np.float32)[[1, 2, 0, 1]])
    return folder


def csv_of(whales: Path, name: str) -> Path:
    return whales.parent.parent / "submissions" / "whales" / f"{name}.csv"


# --- what fits ----------------------------------------------------------------------------------------------------


def test_what_fits_passes() -> None:
    good = SHARES.assign(cat=[0.1, 1.0, 1 / 3], dog=[0.9, 0.0, 2 / 3])
    submission.validate(good, SHARES, "mine")
    submission.validate(NAMES.assign(label=["dog", "cat", "dog"]), NAMES, "mine", ALLOWED)
    with pytest.raises(UserError, match="mine"):  # the same rows against the other sample
        submission.validate(good, NAMES, "mine", ALLOWED)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (NAMES.iloc[:2], "1 missing ids: 003"),
        (pd.concat([NAMES, NAMES.iloc[:1].assign(id="9")]), "1 extra ids: 9"),
        (pd.concat([NAMES, NAMES.iloc[:1]]), "1 duplicate ids: 007"),
        (NAMES.iloc[[1, 0, 2]], "the order of ids differs, from 007, 010"),
        (NAMES.rename(columns={"label": "class"}), "has the columns id, class; the sample has id, label"),
        (NAMES.assign(more="1"), "has the columns id, label, more"),
        (NAMES.assign(label=["dog", "cow", ""]), "column label holds no known class for ids 010, 003"),
        (NAMES.assign(label=["dog", None, "dog"]), "column label holds no known class for ids 010"),
    ],
)
def test_names_that_do_not_fit(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(UserError) as caught:
        submission.validate(frame, NAMES, "mine", ALLOWED)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("cat", "words"),
    [
        ([0.5, np.nan, 0.5], "column cat is no finite number for ids 010"),
        ([0.5, 0.5, np.inf], "column cat is no finite number for ids 003"),
        (["0.5", "", "many"], "column cat is no finite number for ids 010, 003"),
        ([0.5, 0.5, 0.6], "do not sum to one for ids 003"),
        ([0.5, -0.5, 0.5], "outside 0…1 for ids 010"),
    ],
)
def test_numbers_that_do_not_fit(cat: list[object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        submission.validate(SHARES.assign(cat=cat), SHARES, "mine")
    assert words in str(caught.value)


def test_columns_of_free_numbers_need_not_sum_to_one_and_free_texts_must_not_be_empty() -> None:
    free = SHARES.assign(cat=["0", "0", "0"], dog=["0", "0", "0"])
    submission.validate(free.assign(cat=["7", "-3", "0"]), free, "mine")
    texts = NAMES.assign(label=["1 2", "3 4", "5 6"])
    with pytest.raises(UserError, match="column label is empty for ids 010"):
        submission.validate(texts.assign(label=["1 2", " ", "5 6"]), texts, "mine")


def test_several_faults_come_in_one_message_with_five_ids_each() -> None:
    sample = pd.DataFrame({"id": [str(n) for n in range(20)], "label": "cat"})
    frame = sample.iloc[8:].assign(label="cow")
    with pytest.raises(UserError) as caught:
        submission.validate(frame, sample, "mine", ALLOWED)
    assert "8 missing ids: 0, 1, 2, 3, 4 … (8 in all)" in str(caught.value)
    assert "no known class for ids 8, 9, 10, 11, 12 … (12 in all)" in str(caught.value)


# --- from a run, a stack, a blend ---------------------------------------------------------------------------------


def test_a_run_is_submitted_with_its_cv(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_competition.predict(config(), "tiny", np.eye(3, dtype=np.float32)[[1, 2, 0, 1]], right=0.5)
    (outcome,) = submit.run(config(source="tiny"))
    assert csv_of(whales, "tiny").read_bytes() == b"id,label\n007,dog\n010,owl\n003,cat\n001,dog\n"
    facts = json.loads(csv_of(whales, "tiny").with_suffix(".json").read_text())
    assert facts["cv"] == {"value": 0.5, "se": 0.0, "kind": "OOF", "folds": [0.5, 0.5]}
    assert facts["members"] == ["tiny/fold0", "tiny/fold1"]
    assert outcome.score == "0.5000 ± 0.0000 OOF"
    assert "submissions/whales/tiny.csv: 4 rows from tiny, 0.5000 ± 0.0000 OOF" in capsys.readouterr().out


def test_members_are_averaged(whales: Path) -> None:
    for fold, first in enumerate([[0.4, 0.6, 0], [0.7, 0, 0.3]]):
        values = np.array([first, [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=np.float32)
        path = asked_folder(config(), "tiny") / f"fold{fold}" / "test.npz"
        Predictions(np.array(TEST_IDS), values, "probability").save(path)
    sample = [(name, 0.5, 0.5, 0) for name in TEST_IDS]
    small_competition.table(whales / "sample_submission.csv", "id,dog,cat,owl", sample)
    submit.run(config(source="tiny"))
    assert csv_of(whales, "tiny").read_text().splitlines()[1] == "007,0.3,0.55,0.15"


def test_the_same_again_is_reused_and_other_predictions_are_not(whales: Path) -> None:
    (first,) = submit.run(config(source="tiny"))
    json_path = csv_of(whales, "tiny").with_suffix(".json")
    facts = {**json.loads(json_path.read_text()), "leaderboard": 0.97}
    json_path.write_text(json.dumps(facts))
    (second,) = submit.run(config(source="tiny"))
    assert (first.reused, second.reused) == (False, True)
    assert json.loads(json_path.read_text())["leaderboard"] == 0.97
    small_competition.predict(config(), "tiny", np.eye(3, dtype=np.float32)[[0, 0, 0, 0]])
    (third,) = submit.run(config(source="tiny"))
    assert not third.reused
    assert csv_of(whales, "tiny").read_text().count("cat") == 4
    csv_of(whales, "tiny").write_text("id,label\n")
    assert not submit.run(config(source="tiny"))[0].reused
    assert csv_of(whales, "tiny").read_text().count("cat") == 4


def test_a_run_trained_on_everything_has_no_cv(whales: Path) -> None:
    values = np.eye(3, dtype=np.float32)[[2, 2, 2, 2]]
    for run in ("tiny", "whole"):
        Predictions(np.array(TEST_IDS), values, "probability").save(asked_folder(config(), run) / "full/test.npz")
    (outcome,) = submit.run(config(source="whole"))
    assert outcome.score == "no CV"
    assert json.loads(csv_of(whales, "whole").with_suffix(".json").read_text())["cv"] is None
    assert submit.run(config(source="tiny"))[0].score == "1.0000 ± 0.0000 OOF"
    assert submit.run(config(source="tiny", fold=["full"]))[0].score == "no CV"
    assert csv_of(whales, "tiny").read_text().count("owl") == 4


def test_the_stack_is_submitted_with_its_nested_score(whales: Path) -> None:
    folder = asked_folder(config(), "level2") / "stack"
    Predictions(np.array(TEST_IDS), np.eye(3, dtype=np.float32)[[1, 1, 1, 0]], "probability").save(folder / "test.npz")
    candidates = [
        {"method": "mean()", "score": 0.91, "se": 0.01, "folds": [0.9, 0.92]},
        {"method": "ridge()", "score": 0.92, "se": 0.02, "folds": [0.9, 0.94]},
    ]
    made = {
        "method": "mean()", "decision": None, "members": ["tiny"], "nested": candidates, "leak": "second order",
        "score": {"score": 0.91, "se": 0.01, "folds": [0.9, 0.92]},
    }  # fmt: skip
    (folder / "level2.json").write_text(json.dumps(made))
    (outcome,) = submit.run(config())
    assert outcome.nested == "0.9100 ± 0.0100 nested"
    facts = json.loads(csv_of(whales, "stack").with_suffix(".json").read_text())
    assert facts["nested"]["score"] == 0.91
    assert facts["method"] == "mean()"
    assert facts["members"] == ["tiny"]
    assert csv_of(whales, "stack").read_text().count("dog") == 3


def test_submission_names_the_path(whales: Path) -> None:
    submit.run(config(source="tiny", submission="mine/best.csv"))
    assert (whales.parent.parent / "mine/best.csv").is_file()
    assert (whales.parent.parent / "mine/best.json").is_file()
    assert not csv_of(whales, "tiny").exists()
    with pytest.raises(UserError, match=r"submission=best, but the name of a submission ends in \.csv"):
        submit.run(config(source="tiny", submission="best"))


def test_a_blend_of_names_is_a_vote_and_ties_go_to_the_first(whales: Path) -> None:
    for name, labels in {"a": "cat dog owl cat", "b": "dog dog cat owl", "c": "dog cat dog owl"}.items():
        csv_of(whales, name).parent.mkdir(parents=True, exist_ok=True)
        small_competition.table(csv_of(whales, name), "id,label", zip(TEST_IDS, labels.split(), strict=True))
    (outcome,) = submit.run(config(blend=["submissions/whales/a.csv", "b.csv", "c"]))
    assert csv_of(whales, "blend").read_bytes() == b"id,label\n007,dog\n010,dog\n003,owl\n001,owl\n"
    facts = json.loads(csv_of(whales, "blend").with_suffix(".json").read_text())
    assert facts["note"] == outcome.score == "not CV"
    assert list(facts["members"]) == [f"submissions/whales/{name}.csv" for name in "abc"]


def test_a_blend_of_numbers_is_their_mean() -> None:
    frames = [SHARES.assign(cat=["0.2", "1", "0"], dog=["0.8", "0", "1"]), SHARES]
    mixed = submit.blend(frames, set())
    assert mixed["cat"].tolist() == [0.35, 0.75, 0.25]
    assert mixed["dog"].tolist() == [0.65, 0.25, 0.75]
    digits = [NAMES.assign(label=["3", "5", "7"]), NAMES.assign(label=["3", "9", "1"])]
    assert submit.blend(digits, {"label"})["label"].tolist() == ["3", "5", "7"]  # names, though they look like numbers


# --- what is not there --------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_the_command_that_makes_it(whales: Path) -> None:
    with pytest.raises(UserError, match="level2/stack/test.npz does not exist.*stage=stack.*source=tiny"):
        submit.run(config())
    with pytest.raises(UserError, match="source=tinny.*there are: tiny; did you mean tiny"):
        submit.run(config(source="tinny"))
    with pytest.raises(UserError, match=r"source='\.\./tiny'"):
        submit.run(config(source="../tiny"))
    (asked_folder(config(), "tiny") / "fold1/test.npz").unlink()
    with pytest.raises(UserError, match="fold1/test.npz.*stage=predict"):
        submit.run(config(source="tiny"))
    assert not csv_of(whales, "tiny").exists()


def test_a_rejected_run_may_be_submitted_with_a_warning(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (asked_folder(config(), "tiny") / "status.json").write_text('{"rejected": "no gain"}')
    submit.run(config(source="tiny"))
    assert "no gain" in capsys.readouterr().err


def test_predictions_of_other_classes_or_rows_are_refused(whales: Path) -> None:
    small_competition.predict(config(), "wide", np.ones((4, 4), dtype=np.float32))
    with pytest.raises(UserError, match="4 columns, but the task has 3"):
        submit.run(config(source="wide"))
    path = asked_folder(config(), "tiny") / "fold0/test.npz"
    Predictions(np.array(TEST_IDS[1:]), np.ones((3, 3)), "probability").save(path)
    with pytest.raises(UserError, match="1 ids have no prediction: 007"):
        submit.run(config(source="tiny"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        submit.run(config(source="tiny"))
    assert not csv_of(whales, "tiny").exists()


def test_a_blend_needs_two_files_that_fit(whales: Path) -> None:
    with pytest.raises(UserError, match="two csvs or more"):
        submit.run(config(blend=["a.csv"]))
    submit.run(config(source="tiny"))
    with pytest.raises(UserError, match=r"blend=tinny.csv.*there are: tiny.csv; did you mean tiny.csv"):
        submit.run(config(blend=["tiny.csv", "tinny.csv"]))
    small_competition.table(csv_of(whales, "short"), "id,label", [("007", "cat")])
    with pytest.raises(UserError, match="short.csv does not fit the sample submission: 3 missing ids"):
        submit.run(config(blend=["tiny.csv", "short.csv"]))
    assert not csv_of(whales, "blend").exists()
