"""What the values of target columns mean: classes, labels, grades, amounts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline import label_lists, registry
from pipeline.discover.columns import Column, column, spread, words
from pipeline.discover.draft import Draft
from pipeline.discover.rows import Rows
from pipeline.errors import UserError, some

LABELS = {"label", "labels", "target", "targets", "class", "classes", "category", "y"}
GRADES = {"level", "grade", "severity", "stage", "score", "rating", "diagnosis", "degree", "isup", "gleason", "kl"}
ANGLES = {"angle", "angles", "orientation", "direction", "hue", "heading", "rotation", "azimuth", "yaw", "bearing"}
AMOUNTS = {
    "age", "amount", "area", "biomass", "bmi", "count", "counts", "days", "depth", "distance", "height", "length",
    "months", "number", "num", "price", "size", "temperature", "value", "volume", "weight", "width", "years", "yield",
}  # fmt: skip
SEPARATORS = ("|", ";", ",", " ")
MOST_GRADES = 11
FEW_VALUES = 30  # whole numbers with more values than that may be an amount
SUM_TOLERANCE = 0.02


def separator_of(seen: Column, rows: Rows) -> str:
    """What stands between several labels of a cell; "" where a cell is one class."""
    if seen.numbers is not None or not len(seen.filled):
        return ""
    sample = rows.sample_table
    if found := label_lists.listed(seen.distinct):
        return found
    for mark in SEPARATORS:
        listed = seen.filled.map(lambda cell, mark=mark: label_lists.split(cell, mark))
        counts = listed.map(len)
        if counts.max() < 2:
            continue
        every = pd.Series([token for tokens in listed for token in tokens])
        labels = set(every)
        asked = set(rows.answers) == labels or (
            sample is not None and len(rows.answers) == 1 and _asks_several(sample.iloc[:, 1], mark, labels, seen)
        )
        alone = sum(label in set(seen.distinct) for label in labels) / len(labels)
        combined = len(labels) < len(seen.distinct) and counts.nunique() > 1
        numeric = all(label.isdigit() for label in labels) and counts.nunique() > 1
        repeated = len(every) >= 2 * len(labels)
        mixed = combined or (_recombined(seen, mark) if mark != " " else alone >= 0.5 and len(labels) > 1)
        if repeated and (asked or mixed or numeric):
            return mark
    return ""


def _recombined(seen: Column, mark: str) -> bool:
    """Whether labels of lists stand in other cells, too: "tench, Tinca tinca" is one name, whatever stands in it."""
    company: dict[str, int] = {}
    listed = [label_lists.split(cell, mark) for cell in seen.distinct]
    for label in (label for labels in listed for label in labels):
        company[label] = company.get(label, 0) + 1
    several = {label for labels in listed if len(labels) > 1 for label in labels}
    return 2 * sum(company[label] > 1 for label in several) >= len(several)


def _asks_several(cells: pd.Series, mark: str, labels: set[str], seen: Column) -> bool:
    listed = [label_lists.split(cell, mark) for cell in cells.unique()[:500]]
    whole = {mark.join(label_lists.split(cell, mark)) for cell in seen.distinct}
    return any(len(names) > 1 for names in listed) and all(
        set(names) <= labels and mark.join(names) not in whole - labels for names in listed
    )


def tokens(seen: Column, mark: str) -> list[str]:
    return sorted({token for cell in seen.distinct for token in label_lists.split(cell, mark)})


def of_columns(found: Sequence[Column]) -> tuple[str, str]:
    """The task of several target columns, and why."""
    values = [seen.numbers for seen in found]
    if any(value is None or len(value) != len(found[0].cells) for value in values):
        odd = [seen.name for seen in found if seen.numbers is None or len(seen.numbers) != len(seen.cells)]
        raise UserError(
            f"data.target={','.join(seen.name for seen in found)}, but {some(odd)} "
            f"{'is' if len(odd) == 1 else 'are'} not "
            "numbers in every row; several targets are 0/1, shares or numbers: choose one with data.target=COLUMN"
        )
    table = np.column_stack([value for value in values if value is not None])
    total = table.sum(axis=1)
    count = len(found)
    marks = bool(np.isin(table, (0, 1)).all())
    if marks and bool((total == 1).all()):
        return "multiclass", f"{count} columns of 0 and 1, one 1 in each row"
    if marks:
        return "multilabel", f"{count} columns of 0 and 1, {total.mean():.1f} ones a row"
    if bool((table >= 0).all()) and bool((np.abs(total - 1) <= SUM_TOLERANCE).all()):
        return "multiclass", f"{count} columns that sum to one in each row: shares of classes"
    names = [seen.name.lower() for seen in found]
    if bool((table >= 0).all()) and bool((total > 0).all()) and all("vote" in name for name in names):
        return "multiclass", f"{count} columns of votes, learned as shares of classes"
    return "regression", f"{count} columns of numbers, {table.min():g}…{table.max():g}"


def of_column(seen: Column, rows: Rows, draft: Draft) -> tuple[str, str]:
    """The task of one target column, and why; none where the user must say, which the draft then asks."""
    count, by_metric = len(seen.distinct), _by_metric(draft)
    if seen.numbers is None:
        if by_metric:
            order = ",".join(f'"{name}"' for name in seen.distinct[:12])
            why = f"holds names, but {draft.given['metric']} compares numbers: give their order, the lowest first"
            draft.ask("task", f"{seen.name} {why}", f"'task=ordinal(order=[{order}])'")
            return "", ""
        return _of_names(seen, rows)
    low, high = float(seen.numbers.min()), float(seen.numbers.max())
    if by_metric:
        return by_metric, f"{seen.name} holds numbers, {low:g}…{high:g}, and metric={draft.given['metric']}"
    if set(words(seen.name)) & ANGLES and count > 2:
        _ask_task(draft, seen, "an angle comes round after a period", ("circular(period=360)", "regression"))
        return "", ""
    if not seen.whole:
        return "regression", f"{seen.name} holds numbers, {low:g}…{high:g}"
    if count == 2 and (low, high) == (0, 1):
        return "binary", f"{seen.name} is 0 or 1: {spread(seen)}"
    return _of_whole_numbers(seen, rows, draft, low, high)


def _of_names(seen: Column, rows: Rows) -> tuple[str, str]:
    count = len(seen.distinct)
    if count == 2 and rows.sample_table is not None and len(rows.answers) == 1:
        asked = column(rows.sample_table, rows.answers[0])
        if asked.numbers is not None and not (asked.whole and len(asked.distinct) > 1):
            return (
                "binary",
                f"{seen.name} is one of two names, {spread(seen)}; the number asked for is of {seen.distinct[1]}",
            )
    return "multiclass", f"{seen.name} is one of {count} names: {spread(seen)}"


def _of_whole_numbers(seen: Column, rows: Rows, draft: Draft, low: float, high: float) -> tuple[str, str]:
    count, said = len(seen.distinct), set(words(seen.name))
    dense = low in (0, 1) and count == high - low + 1
    held = f"{seen.name} holds whole numbers, {low:g}…{high:g}"
    if dense and 2 < count <= MOST_GRADES and said & GRADES:
        return "ordinal", f"{held}, and its name says that they are grades: {spread(seen)}"
    if said & AMOUNTS and not (dense and said & LABELS):
        return "regression", f"{held}, and its name says that they are an amount"
    if asks_fractions(rows) and len(rows.answers) == 1 and count > 2:
        return "regression", f"{held}, and {rows.sample} shows fractions"
    if count > FEW_VALUES and 2 * count > len(seen.filled):
        return "regression", f"{held}, {count} different in {len(seen.filled)} rows"
    if count > FEW_VALUES and not dense and not said & (LABELS | {"id"}) and len(rows.answers) < 2:
        _ask_task(
            draft, seen, f"{count} different whole numbers are classes or an amount", ("multiclass", "regression")
        )
        return "", ""
    return "multiclass", f"{seen.name} is one of {count} whole numbers: {spread(seen)}"


def asks_fractions(rows: Rows) -> bool:
    """Whether the sample shows numbers that are not whole; 0.0 is whole."""
    seen = [] if rows.sample_table is None else [column(rows.sample_table, name) for name in rows.answers]
    return any(one.numbers is not None and not one.whole for one in seen)


def _by_metric(draft: Draft) -> str:
    """The task that only the given metric can mean."""
    if not draft.given.get("metric"):
        return ""
    part, call = registry.bind("metrics", draft.given["metric"])
    if "period" in part.arguments:
        period = {**part.arguments, **call.arguments}["period"]
        return f"circular(period={period:g})"
    if part.name == "quadratic_kappa":
        return "ordinal"
    return "regression" if tuple(part.facts.get("takes", ())) == ("numbers",) else ""


def _ask_task(draft: Draft, seen: Column, why: str, choices: tuple[str, ...]) -> None:
    low, high = seen.distinct[0], seen.distinct[-1]
    listed = " or ".join(f"task={choice}" for choice in choices)
    example = f"'task={choices[0]}'" if "(" in choices[0] else f"task={choices[0]}"
    draft.ask("task", f"{seen.name} goes from {low} to {high}: {why}; {listed}", example)
