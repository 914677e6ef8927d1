"""Tables with a row for each column of an image, ``ID_1_epidural,0``: read as one row an image, and written back so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.artefacts import shown
from pipeline.errors import UserError, some
from pipeline.tables import read_table

if TYPE_CHECKING:
    from pipeline.config import Data

ID, COLUMN = "{id}", "{column}"


@dataclass(frozen=True)
class Long:
    """How the rows of such tables are called. pattern: ``{id}_{column}``; columns: what {column} stands for.

    value: the column of the cells. asked: the sample submission as it stands, ids first.
    """

    pattern: str
    columns: tuple[str, ...]
    value: str
    asked: pd.DataFrame

    def fits(self, names: pd.Series) -> bool:
        """Whether all names are such names."""
        return len(names) > 0 and bool(split(names, self.pattern, self.columns).notna().all(axis=None))

    def wide(self, table: pd.DataFrame, id_: str, where: str) -> pd.DataFrame:
        """One row an image, in the order of their first rows: its id, what its rows share, and a cell a column.

        An absent row leaves an empty cell. UserError for names that are not such, and for rows that contradict.
        """
        if self.value not in table.columns:
            raise UserError(
                f"{where} has neither a column for each of {some(self.columns)} nor {self.value}, the sample's; "
                "correct data.target or data.long"
            )
        parts = self._parts(table[id_], where)
        cells = table.assign(**parts).drop_duplicates([*parts, self.value])
        twice = cells[cells.duplicated(list(parts))]
        if len(twice):
            raise UserError(f"{where} contradicts itself on {some(twice[id_])}; leave one row of each")
        spread = cells.pivot(index=ID, columns=COLUMN, values=self.value).reindex(columns=list(self.columns)).fillna("")
        told = _shared(table.drop(columns=self.value), id_, parts[ID])
        return told.join(spread, on=id_)

    def rows(self, table: pd.DataFrame, id_: str) -> pd.DataFrame:
        """A table whose names fit → one row an image: its id, and what its rows share."""
        return _shared(table, id_, split(table[id_], self.pattern, self.columns)[ID])

    def sample(self) -> pd.DataFrame:
        """The sample submission, one row an image."""
        return self.wide(self.asked, str(self.asked.columns[0]), "the sample submission")

    def answers(self, frame: pd.DataFrame) -> pd.DataFrame:
        """One row an image, ids first → the rows that the sample asks for, in its order."""
        id_, value = map(str, self.asked.columns)
        parts = split(self.asked[id_], self.pattern, self.columns)
        cells = frame.set_index(frame.columns[0]).stack()
        found = cells.reindex(pd.MultiIndex.from_frame(parts)).to_numpy()
        return pd.DataFrame({id_: self.asked[id_].to_numpy(), value: found})

    def _parts(self, names: pd.Series, where: str) -> dict[str, pd.Series]:
        parts = split(names, self.pattern, self.columns)
        odd = names[parts[ID].isna()]
        if len(odd):
            raise UserError(
                f"{where}: {len(odd)} rows are not called {self.pattern} with one of {some(self.columns)}: "
                f"{some(odd)}; correct data.long or data.target"
            )
        return {name: parts[name] for name in (ID, COLUMN)}


def split(names: pd.Series, pattern: str, columns: Sequence[str]) -> pd.DataFrame:
    """(N, 2) the columns {id} and {column} of each name; missing where a name does not fit."""
    listed = "|".join(map(re.escape, sorted(columns, key=len, reverse=True)))
    before, between, after = _checked(pattern)
    first_id = pattern.index(ID) < pattern.index(COLUMN)
    id_, column = "(?P<id>.+?)" if first_id else "(?P<id>.+)", f"(?P<column>{listed})"
    one, other = (id_, column) if first_id else (column, id_)
    found = names.str.extract(f"^{re.escape(before)}{one}{re.escape(between)}{other}{re.escape(after)}$")
    return found.rename(columns={"id": ID, "column": COLUMN})[[ID, COLUMN]]


def _checked(pattern: str) -> tuple[str, str, str]:
    """What stands before, between and behind the two fields."""
    parts = re.split(r"\{id\}|\{column\}", pattern)
    if pattern.count(ID) != 1 or pattern.count(COLUMN) != 1 or not parts[1]:
        raise UserError(
            f"data.long={pattern}, but it needs {ID} and {COLUMN}, with something between, as {ID}_{COLUMN}"
        )
    return parts[0], parts[1], parts[2]


def form(folder: Path, data: Data) -> Long | None:
    """How a competition's tables are long; None where data.long is empty. UserError for a sample that is not so."""
    if not data.long:
        return None
    _checked(data.long)
    if not data.sample:
        raise UserError(f"data.long={data.long} needs data.sample, whose rows it names; set it")
    asked = read_table(folder / data.sample, key="data.sample")
    if asked.shape[1] != 2:
        raise UserError(
            f"{shown(folder / data.sample)} has the columns {some(asked.columns)}; with data.long={data.long} it has "
            "ids and one column of cells"
        )
    return Long(data.long, tuple(data.target), str(asked.columns[1]), asked)


def train_table(long: Long | None, table: pd.DataFrame, id_: str, where: str) -> pd.DataFrame:
    """The training table with one row an image: as it stands where it has the columns of the target."""
    if long is None or set(long.columns) <= set(table.columns):
        return table
    return long.wide(table, id_, where)


def test_table(long: Long | None, table: pd.DataFrame, id_: str) -> pd.DataFrame:
    """The test table with one row an image: as it stands where its ids are images'."""
    return long.rows(table, id_) if long and long.fits(table[id_]) else table


def _shared(table: pd.DataFrame, id_: str, images: pd.Series) -> pd.DataFrame:
    """The columns that say the same in all rows of an image, behind its id."""
    told = table.assign(**{id_: images})
    counts = told.groupby(id_, sort=False).nunique()
    same = [name for name in counts.columns if (counts[name] == 1).all()]
    return told[[id_, *same]].drop_duplicates(id_).reset_index(drop=True)
