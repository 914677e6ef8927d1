"""Tables with a row for each column of an image: read as one row an image, and written back as the sample has them."""

from __future__ import annotations

import drawn
import numpy as np
import pandas as pd
import pytest

from pipeline import config as settings
from pipeline import longform
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.longform import COLUMN, ID, Long

NAMES = ("b", "a_b", "c")


def form(pattern="{id}_{column}", ids=("x_1", "y"), columns=NAMES):
    """The long form of a sample of two images, in an order of its own."""
    rows = [pattern.format(id=one, column=name) for name in columns for one in ids]
    return Long(pattern, columns, "value", pd.DataFrame({"key": rows, "value": "0"}))


def numbers(long, count=2):
    """A table that answers the sample: 10 * image + column."""
    ids = list(dict.fromkeys(longform.split(long.asked["key"], long.pattern, long.columns)[ID]))
    cells = {name: [f"{10 * row + place}" for row in range(count)] for place, name in enumerate(long.columns)}
    return pd.DataFrame({"key": ids, **cells})


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("{id}_{column}", "ID_1_b", ("ID_1", "b")),
        ("{id}_{column}", "ID_1_a_b", ("ID_1", "a_b")),
        ("{id}__{column}", "ID_1__c", ("ID_1", "c")),
        ("{column}:{id}", "a_b:7:8", ("a_b", "7:8")[::-1]),
        ("row {id}/{column}.", "row 7/c.", ("7", "c")),
        ("{id}.{column}", "1xb", None),
        ("{id}_{column}", "ID_1_d", None),
        ("{id}_{column}", "_b", None),
    ],
)
def test_a_name_is_an_image_and_a_column(pattern, name, expected):
    found = longform.split(pd.Series([name]), pattern, NAMES)
    assert found.isna().all(axis=None) if expected is None else (found[ID][0], found[COLUMN][0]) == expected


@pytest.mark.parametrize("pattern", ["{id}", "{id}{column}", "{id}_{id}_{column}", "{column}"])
def test_a_pattern_that_says_too_little_is_refused(pattern):
    with pytest.raises(UserError, match=r"data.long=.*it needs \{id\} and \{column\}"):
        longform.split(pd.Series(["a"]), pattern, NAMES)


@pytest.mark.parametrize("pattern", ["{id}_{column}", "{column}|{id}"])
def test_there_and_back_gives_every_cell_its_own_row(pattern):
    long = form(pattern)
    answer = long.answers(numbers(long))
    assert answer["key"].tolist() == long.asked["key"].tolist()
    assert answer["value"].tolist() == ["0", "10", "1", "11", "2", "12"]
    shuffled = answer.iloc[[3, 0, 5, 1, 4, 2]].reset_index(drop=True)
    back = long.wide(shuffled, "key", "here").sort_values("key", ignore_index=True)
    pd.testing.assert_frame_equal(back, numbers(long), check_names=False)


def test_numbers_stay_numbers_and_the_sample_may_ask_for_some_rows_only():
    long = form()
    part = Long(long.pattern, long.columns, long.value, long.asked.iloc[[4, 1]].reset_index(drop=True))
    frame = numbers(long).astype(dict.fromkeys(NAMES, np.float64))
    assert part.answers(frame)["value"].tolist() == [2.0, 10.0]


def test_what_the_rows_of_an_image_share_stays_and_what_differs_goes():
    long = form()
    table = long.answers(numbers(long)).assign(site=["s", "t"] * 3, name=list("ppqqrr"))
    assert list(long.wide(table, "key", "here").columns) == ["key", "site", *NAMES]
    assert list(long.rows(table.drop(columns="value"), "key").columns) == ["key", "site"]
    assert long.rows(table, "key")["key"].tolist() == ["x_1", "y"]


def test_rows_that_repeat_count_once_absent_ones_are_blank_and_contradictions_end_it():
    long = form()
    table = long.answers(numbers(long))
    assert long.wide(pd.concat([table, table[:2]], ignore_index=True), "key", "here").equals(
        long.wide(table, "key", "here")
    )
    assert long.wide(table[:5], "key", "here").iloc[1]["c"] == ""
    with pytest.raises(UserError, match="here contradicts itself on x_1_b"):
        long.wide(pd.concat([table, table[:1].assign(value="7")], ignore_index=True), "key", "here")


def test_what_does_not_fit_is_named():
    long = form()
    table = long.answers(numbers(long))
    with pytest.raises(UserError, match=r"here: 1 rows are not called .* with one of b, a_b, c: x_1_d"):
        long.wide(pd.concat([table, table[:1].assign(key="x_1_d")], ignore_index=True), "key", "here")
    with pytest.raises(UserError, match="here has neither a column for each of b, a_b, c nor value, the sample's"):
        long.wide(table.rename(columns={"value": "other"}), "key", "here")


# --- a competition ------------------------------------------------------------------------------------------------


@pytest.fixture
def labels(project):
    """The drawn competition with a row for each label, as stage=new takes it."""
    folder = drawn.write("row_a_label", project.root / "data")
    assert project.run("stage=new", "name=row_a_label", "data=data/row_a_label").code == 0
    return folder


def submitted(project, folder, right=6):
    """A submission that is right for the first images, in the sample's form, and the solution beside the sample."""
    sample = pd.read_csv(folder / "stage_2_sample_submission.csv", dtype=str)
    truth = [int(mark) for row in range(6) for mark in (row % 2, row % 4 // 2, row % 4 > 0)]
    usage = ["Private" if row < 4 else "Public" for row in range(6) for _ in range(3)]
    sample.assign(Label=truth, Usage=usage).to_csv(folder / "solution.csv", index=False)
    answer = [abs(mark - 0.1 - (place // 3 >= right) * 0.8) for place, mark in enumerate(truth)]
    path = project.root / "mine.csv"
    sample.assign(Label=answer).to_csv(path, index=False)
    return path


def test_a_row_for_each_label_of_an_image_is_one_row_here(labels):
    competition = load(settings.compose({"competition": "row_a_label"}))
    assert competition.train["id"].is_unique
    assert len(competition.train) == 32
    assert competition.targets.iloc[3].tolist() == ["1", "1", "1"]
    assert competition.sample.shape == (6, 4)
    assert len(competition.asked(competition.sample)) == 18


def test_a_submission_with_a_row_for_each_label_is_scored_by_image(project, labels):
    path = submitted(project, labels)
    ended = project.run("stage=score", f"submission={path}", "solution=data/row_a_label/solution.csv")
    assert ended.code == 0, ended.err
    assert "private 1.0000" in ended.out


def test_submissions_with_a_row_for_each_label_are_blended_in_that_form(project, labels):
    path = submitted(project, labels)
    other = submitted(project, labels, right=2).rename(project.root / "other.csv")
    submitted(project, labels)
    ended = project.run("stage=submit", f"blend=[{path},{other}]", "submission=both.csv")
    assert ended.code == 0, ended.err
    mixed, one, two = (pd.read_csv(name) for name in (project.root / "both.csv", path, other))
    assert mixed["ID"].equals(one["ID"])
    assert np.allclose(mixed["Label"], (one["Label"] + two["Label"]) / 2)


def test_a_submission_that_lacks_a_row_is_refused(project, labels):
    path = submitted(project, labels)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    ended = project.run("stage=score", f"submission={path}", "solution=data/row_a_label/solution.csv")
    assert ended.code == 2
    assert "column any is no number in 0…1 for ids ID_15729x" in ended.err


def test_a_submission_with_a_row_twice_is_refused(project, labels):
    path = submitted(project, labels)
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    ended = project.run("stage=score", f"submission={path}", "solution=data/row_a_label/solution.csv")
    assert ended.code == 2
    assert "duplicate ids: ID_15729x_any" in ended.err


def test_a_sample_with_other_columns_is_refused(project, labels):
    ended = project.run("stage=split", "data.long={id}-{column}")
    assert ended.code == 2
    assert "are not called {id}-{column}" in ended.err
    ended = project.run("stage=split", "data.sample=")
    assert ended.code == 2
    assert "needs data.sample" in ended.err
