"""What is to be predicted: which columns hold it, and which task that makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.discover.choosing import choose
from pipeline.discover.columns import Column, column
from pipeline.discover.draft import Draft
from pipeline.discover.rows import Rows
from pipeline.discover.values import AMOUNTS, FEW_VALUES, of_column, of_columns, separator_of, tokens
from pipeline.errors import UserError, some
from pipeline.tasks import facts


@dataclass(frozen=True)
class Target:
    """columns: of the training table. task: a call-string. separator: between the labels of a cell, if there are any.

    chances: the sample submission has a column for each class.
    """

    columns: list[str]
    task: str
    why: str
    separator: str = ""
    chances: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the task."""
        return facts(self.task)


def find_target(rows: Rows, draft: Draft) -> Target | None:
    """The target and its task; None where the user must be asked, which the draft then does."""
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
