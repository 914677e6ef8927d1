"""Scoring against a solution: public, private and ignored rows, and every look in the log."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import small_competition
from small_competition import TEST_IDS, config

from pipeline.errors import UserError
from pipeline.stages import score


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A competition with the submission mine.csv: of the answers cat, dog, owl (and one ignored) it has cat and dog."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    folder = small_competition.write(tmp_path)
    answer(folder, "cat dog dog owl")
    return folder


def answer(whales: Path, labels: str, name: str = "mine") -> Path:
    path = whales.parent.parent / "submissions/whales" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    small_competition.table(path, "id,label", zip(TEST_IDS, labels.split(), strict=True))
    path.with_suffix(".json").write_text("{}")
    return path


def looks(whales: Path) -> list[dict[str, str]]:
    path = whales.parent.parent / "submissions/whales/looks.csv"
    if not path.is_file():
        return []
    with path.open() as handle:
        return list(csv.DictReader(handle))


def alone(**changes: object) -> score.Outcome:
    (outcome,) = score.run(config(stage="score", submission="mine.csv", **changes))
    return outcome


def test_public_and_private_are_scored_and_ignored_rows_are_not(
    whales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = alone()
    assert outcome.facts == {"all": 2 / 3, "public": 1.0, "private": 0.5}
    assert outcome.private == "0.5000"
    out = capsys.readouterr().out
    assert "accuracy() all 0.6667 · public 1.0000 · private 0.5000; look 1 at this solution" in out


def test_without_usage_all_rows_count(whales: Path) -> None:
    rows = zip(reversed(TEST_IDS), ("owl", "dog", "dog", "dog"), strict=True)  # in another order
    small_competition.table(whales / "solution.csv", "id,label", rows)
    outcome = alone()
    assert outcome.facts == {"all": 0.75}
    assert outcome.private == "0.7500 (all rows)"


def test_every_look_is_logged(whales: Path) -> None:
    alone()
    alone()
    answer(whales, "cat dog owl owl")
    assert alone().note == "look 3 at this solution"
    other = whales / "other.csv"
    other.write_text((whales / "solution.csv").read_text().replace("owl", "cat"))
    assert alone(solution="data/whales/other.csv").note == "look 1 at this solution"
    log = looks(whales)
    assert [row["look"] for row in log] == ["1", "2", "3", "1"]
    assert [row["private"] for row in log] == ["0.5", "0.5", "1.0", "0.5"]
    assert {row["submission"] for row in log} == {"submissions/whales/mine.csv"}
    assert log[3]["solution"] == "data/whales/other.csv"


def test_a_recipe_looks_once_at_the_same_submission(whales: Path) -> None:
    asked = config(stage="all", submission="mine.csv")
    (first,), (second,) = score.run(asked), score.run(asked)
    assert (first.reused, second.reused) == (False, True)
    assert second.facts == first.facts
    assert len(looks(whales)) == 1
    answer(whales, "cat dog owl owl")
    (third,) = score.run(asked)
    assert not third.reused
    assert len(looks(whales)) == 2
    (other,) = score.run(config(stage="all", submission="mine.csv", metric="log_loss()"))
    assert other.facts != third.facts
    assert len(looks(whales)) == 3


def test_the_stack_is_scored_unless_another_is_named(whales: Path) -> None:
    assert score.run(config(stage="score"))[0].run == "mine"  # the newest there is
    answer(whales, "cat dog owl owl", "stack")
    answer(whales, "owl owl owl owl", "zebra")
    assert score.run(config(stage="score"))[0].run == "stack"


def test_columns_of_probabilities_are_scored(whales: Path) -> None:
    rows = [(name, 0.25, 0.25, 0.5) for name in TEST_IDS]
    small_competition.table(whales / "sample_submission.csv", "id,owl,dog,cat", rows)
    path = whales.parent.parent / "submissions/whales/mine.csv"
    small_competition.table(path, "id,owl,dog,cat", rows)
    assert alone().facts == {"all": 1 / 3, "public": 1.0, "private": 0.0}
    small_competition.table(whales / "solution.csv", "id,cat,dog,owl", [(name, 0, 0, 1) for name in TEST_IDS])
    assert alone().facts == {"all": 0.0}


def test_no_solution_is_a_note_in_a_recipe_and_an_error_alone(whales: Path) -> None:
    (whales / "solution.csv").unlink()
    (outcome,) = score.run(config(stage="all", submission="mine.csv"))
    assert outcome.note == "no solution file data/whales/solution.csv"
    assert outcome.private == ""
    with pytest.raises(UserError, match="data/whales/solution.csv does not exist; give solution=FILE"):
        alone()
    with pytest.raises(UserError, match="answers.csv does not exist"):
        score.run(config(stage="all", submission="mine.csv", solution="answers.csv"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "solution.csv is empty"),
        ("image,label\n007,cat\n", "has no column 'id'; its columns: image, label"),
        ("id,label\n007,cat\n007,dog\n", "duplicate ids: 007"),
        ("id,label\n007,cat\n999,dog\n", "1 ids that submissions/whales/mine.csv has not: 999"),
        ("id,label\n007,cow\n", "solution.csv: unknown classes 'cow'"),
        ("id,label,Usage\n007,cat,Secret\n", "Usage is Public, Private or Ignored, but also 'secret'"),
        ("id,label,Usage\n007,cat,Ignored\n", "has no answers"),
        ("id,Usage\n007,Public\n", "has no answers"),
    ],
)
def test_a_solution_that_does_not_fit_is_named_and_no_look(whales: Path, text: str, words: str) -> None:
    (whales / "solution.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        alone()
    assert words in str(caught.value)
    assert looks(whales) == []


def test_a_submission_that_is_missing_or_does_not_fit_is_named(whales: Path) -> None:
    with pytest.raises(UserError, match="submission=mine2.csv.*there are: mine.csv"):
        score.run(config(stage="score", submission="mine2.csv"))
    path = answer(whales, "cat dog cow owl")
    with pytest.raises(UserError, match="no known class for ids 003"):
        alone()
    path.unlink()
    with pytest.raises(UserError, match="submissions/whales/stack.csv does not exist; make it with stage=submit"):
        score.run(config(stage="score"))
    assert looks(whales) == []
