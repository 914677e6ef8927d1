"""CSV files as people ship them: read as text, so that ``007`` stays, with one clear message for each fault."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline import texts
from pipeline.artefacts import shown
from pipeline.errors import UserError, nearest, some


def read_table(
    path: Path, columns: dict[str, str] | None = None, key: str = "", *, empty: bool = False
) -> pd.DataFrame:
    """Read a csv, every cell as text (missing cells of short rows are empty).

    Reads UTF-8 and UTF-16 with or without byte order mark, else Windows' western encoding, which it says; any line
    ends; semicolons, tabs or bars where the header has no comma; a csv inside a zip or gz; JSON that is a table
    (``json_tables.parse``). columns: the columns that must be there, each with the key that named it. key: the key that
    named the file. empty: a header alone will do. Raises UserError for a missing, empty or damaged file, and for
    missing columns.
    """
    name = shown(path)
    if not path.is_file():
        there = sorted({one.name for form in ("*.csv*", "*.json*") for one in path.parent.glob(form)})
        listed = f"; there are: {some(there, 20)}{nearest(path.name, there)}" if there else ""
        raise UserError(f"{name} does not exist{f' (set by {key})' if key else ''}{listed}")
    frame = texts.frame(texts.read(path, name), name)
    for column, setter in (columns or {}).items():
        _require(frame, column, setter, name)
    if frame.empty and not empty:
        raise UserError(f"{name} has a header but no rows; unpack or download it again")
    return frame


def chosen(table: pd.DataFrame, rule: str, key: str, name: str) -> pd.DataFrame:
    """The rows with these values, rule: COLUMN=VALUE or COLUMN=VALUE|VALUE, of data.rows or data.test_rows; empty: all.

    UserError for a rule that is none, and for a column or a value that the table, called name, does not have.
    """
    if not rule:
        return table
    column, equals, values = rule.partition("=")
    if not equals:
        raise UserError(f"{key}={rule}, but it is COLUMN=VALUE, or COLUMN=VALUE|VALUE")
    _require(table, column, key, name)
    cells, wanted = table[column].str.strip(), [value.strip() for value in values.split("|")]
    missing = sorted({*wanted} - {*cells})
    if missing:
        raise UserError(
            f"{key}={rule}, but {name} has no row of {some(missing)}; {column} is {some(sorted({*cells}), 12)}"
        )
    return table[cells.isin(wanted)].reset_index(drop=True)


def _require(frame: pd.DataFrame, column: str, key: str, name: str) -> None:
    if column not in frame.columns:
        there = [str(other) for other in frame.columns]
        setter = f" ({key}={column})" if key else ""
        raise UserError(
            f"{name} has no column {column!r}{setter}; its columns: {some(there, 20)}{nearest(column, there)}"
        )


def duplicates(ids: Iterable[str]) -> list[str]:
    """The ids that stand more than once, each once, in the order of their second appearance."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in ids:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)


def check_ids(ids: Iterable[str], where: str) -> None:
    """Raise UserError if an id is empty or stands twice; where names the table."""
    ids = list(ids)
    empty = [row + 2 for row, name in enumerate(ids) if not name.strip()]
    if empty:
        raise UserError(f"{where}: rows without an id, in lines {some(empty)}; fill or remove them")
    twice = duplicates(ids)
    if twice:
        raise UserError(f"{where}: {len(twice)} duplicate ids: {some(twice)}; leave one row for each id")
