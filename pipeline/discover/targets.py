"""What is to be predicted: which columns hold it, and which task that makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.discover.choosing import choose
from pipeline.discover.columns import Column, column, words
from pipeline.discover.draft import Draft
from pipeline.discover.rows import Rows
from pipeline.discover.values import AMOUNTS, FEW_VALUES, LABELS, of_column, of_columns, separator_of, tokens
from pipeline.errors import UserError, some
from pipeline.tasks import facts
from pipeline.tasks import names as task_names

MATCHES = {"matches", "match", "neighbours", "neighbors", "retrieved"}
OPEN_SET = {"new_whale", "new_individual", "new_class", "unknown_individual"}


@dataclass(frozen=True)
class Target:
    """columns: of the training table. task: a call-string. separator: between the labels of a cell, if there are any.

    chances: the sample submission has a column for each class. later: this version has no such task.
    """

    columns: list[str]
    task: str
    why: str
    separator: str = ""
    chances: bool = False
    later: bool = False


def find_target(rows: Rows, draft: Draft) -> Target | None:
    """The target and its task; None where the user must be asked, which the draft then does."""
    other = None if "task" in draft.given else another_task(rows)
    if other:
        return other
    names, why = choose(rows, draft)
    if not names:
        return None
    chances = len(rows.answers) > 1
    found = [column(rows.table, name) for name in names]
    empty = [seen.name for seen in found if not seen.distinct]
    if empty:
        raise UserError(f"{rows.train}: {some(empty)} is empty in every row; set data.target, or download it again")
    if len(names) > 1:
        task, reason = of_columns(found)
        if "task" not in draft.given and _may_be_classes(found, task):
            seen = f"{some(names)} hold a few whole numbers each; several columns of classes are no task here"
            draft.ask(
                "data.target",
                f"{seen}: name one of them, or take them as numbers with task=regression",
                f"data.target={names[0]}",
            )
            return None
        return Target(names, draft.given.get("task", task), f"{reason}; {why}", chances=chances)
    separator = draft.given.get("data.separator", separator_of(found[0], rows))
    if "task" in draft.given:
        separator = separator if _form(draft.given["task"]) == "labels" else ""
        return Target(names, draft.given["task"], why, separator, chances)
    if separator:
        labels = tokens(found[0], separator)
        return Target(
            names, "multilabel", f"cells hold several of {len(labels)} labels: {some(labels)}", separator, chances
        )
    task, reason = of_column(found[0], rows, draft)
    return Target(names, task, f"{reason}; {why}" if why else reason, "", chances) if task else None


def _may_be_classes(found: Sequence[Column], task: str) -> bool:
    """Whether columns that would be numbers to regress hold so few whole ones that they may be classes."""
    few = all(seen.whole and len(seen.distinct) <= FEW_VALUES and not seen.about(AMOUNTS) for seen in found)
    return few and _form(task) == "numbers"


def _form(task: str) -> str:
    return str(facts(task)["form"])


# --- matches: named, and left to a task of their own --------------------------------------------------------------


def another_task(rows: Rows) -> Target | None:
    """Retrieval, where names or cells say so."""
    seen = _matches(rows)
    if not seen:
        return None
    held = [name for name in rows.table.columns if name in rows.answers or set(words(name)) & (LABELS | {"individual"})]
    return _other([str(name) for name in held[:1]], "retrieval", seen)


def _other(columns: list[str], task: str, why: str) -> Target:
    return Target(columns, task, why, later=task not in task_names())


def _matches(rows: Rows) -> str:
    """Why the competition is one of finding the same thing again, or ""."""
    for name in rows.answers:
        if set(words(name)) & MATCHES:
            return f"the sample asks for {name}"
    places = {word for place in rows.files.folders("test") for word in words(place)}
    if {"query", "gallery"} <= places:
        return "there are folders of queries and of a gallery"
    for name in [] if rows.test_table is None else rows.test_table.columns:
        if {"query", "gallery"} <= set(rows.test_table[name].str.lower().unique()):  # type: ignore[index]
            return f"column {name} of {rows.test} tells queries from gallery"
    if rows.sample_table is not None and len(rows.answers) == 1:
        cells = rows.sample_table.iloc[:, 1].head(200).str.split()
        tokens = list(dict.fromkeys(token for cell in cells for token in cell))
        new = OPEN_SET & set(tokens)
        if new:
            return f"the sample answers {new.pop()}"
        known = {value for name in rows.table.columns if name != rows.id for value in rows.table[name].unique()[:5000]}
        if tokens and not set(tokens) & known and cells.map(len).max() > 1 and rows.files.share(tokens) > 0.9:
            return f"the sample's cells in {rows.answers[0]} are images"
    return ""
