"""Several labels in one cell: what is read of any form, and that what is written is read again."""

from __future__ import annotations

import ast
import json

import pytest
import small_tasks
from hypothesis import given
from hypothesis import strategies as some

from pipeline import label_lists

FORMS = [" ", "|", ",", "; ", "['a', 'b']", '["a","b"]', "[a, b]", "('a' 'b')", "{a|b}", "a / b"]


@pytest.mark.parametrize(
    ("cell", "separator", "names"),
    [
        ("rust  scab ", " ", ["rust", "scab"]),
        ("dead leaf| scab||", "|", ["dead leaf", "scab"]),
        ("['rust', 'dead leaf']", "['a', 'b']", ["rust", "dead leaf"]),
        (""" ["cat's", 'dog'] """, "['a', 'b']", ["cat's", "dog"]),
        ("['a, b', 'c']", "['a', 'b']", ["a, b", "c"]),
        ("['a' 'b'\n 'c']", "['a', 'b']", ["a", "b", "c"]),
        ("[rust, scab]", "['a', 'b']", ["rust", "scab"]),
        ("rust", "['a', 'b']", ["rust"]),
        ("[]", "['a', 'b']", []),
        ("", "['a', 'b']", []),
        ("dead leaf\tscab", "\t", ["dead leaf", "scab"]),
        ("a|b | c", " | ", ["a|b", "c"]),
        ("[rust,scab , mould]", "[a, b]", ["rust", "scab", "mould"]),
        ("{3|14}", "{a|b}", ["3", "14"]),
        ("", " ", []),
    ],
)
def test_a_cell_is_read(cell: str, separator: str, names: list[str]) -> None:
    assert label_lists.split(cell, separator) == names


@pytest.mark.parametrize("separator", FORMS)
@given(some.lists(some.text("xyzß0_", min_size=1), max_size=4))
def test_what_is_written_is_read_again(separator: str, names: list[str]) -> None:
    assert label_lists.split(label_lists.join(names, separator), separator) == names


@given(some.lists(some.text("ab c,'", min_size=1).map(str.strip).filter(bool), max_size=4))
def test_a_list_is_written_as_python_and_json_write_it(names: list[str]) -> None:
    assert ast.literal_eval(label_lists.join(names, "['a', 'b']")) == names
    assert label_lists.join(names, '["a", "b"]') == json.dumps(names)
    assert label_lists.split(repr(names), "['a', 'b']") == names


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["['rust']", "['rust', 'scab']", "[]", ""], "['a', 'b']"),
        (["['rust' 'scab']", "['rust']"], "['a' 'b']"),
        (['["rust","scab"]'], '["a","b"]'),
        (["[rust, scab]", "[rust]"], "[a, b]"),
        (["{rust}", "{rust; scab}"], "{a; b}"),
        (["['rust']", "['scab']"], ""),
        (["[834.0, 222.0, 56.0, 36.0]", "[3, 4]"], ""),
        (["['rust', 'scab']", "healthy"], ""),
        (["['rust', 'scab']", "{rust}"], ""),
        (["rust scab", "rust"], ""),
        ([], ""),
    ],
)
def test_lists_are_told_from_names(cells: list[str], separator: str) -> None:
    assert label_lists.listed(cells) == separator
    names = [label_lists.split(cell, separator) for cell in cells if separator]
    assert {name for one in names for name in one} <= {"rust", "scab"}


def test_lists_train_and_are_submitted_as_the_sample_has_them(project) -> None:
    """From a table of Python's lists to the same in the submission, and back into scores and OOF."""
    small_tasks.write(project.root, "multilabel()", rows=24)
    folder = project.root / "data/drawn"
    for name in ("train.csv", "sample_submission.csv"):
        header, *lines = (folder / name).read_text().splitlines()
        names = header.split(",")[1:]
        rows = [line.split(",") for line in lines]
        told = [f'{one},"{[n for n, mark in zip(names, marks, strict=True) if mark == "1"]}"' for one, *marks in rows]
        (folder / name).write_text("\n".join(["id,label", *told]) + "\n")
    words = ("data.target=label", "data.separator=['a', 'b']", "epochs=1")
    for stage in ("split", "train", "predict", "submit"):
        ended = project.run(f"stage={stage}", *words, *(("source=tiny",) if stage == "submit" else ()))
        assert ended.code == 0, ended.err
    [csv] = (project.root / "submissions/drawn").glob("*.csv")
    cells = [line.split(",", 1)[1].strip('"') for line in csv.read_text().splitlines()[1:]]
    assert all(isinstance(ast.literal_eval(cell), list) for cell in cells)
    assert {name for cell in cells for name in ast.literal_eval(cell)} <= set(names)
