"""What a submission's cells hold, and how its columns are matched with the task's; shared by the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from pipeline import label_lists, registry
from pipeline.errors import UserError, some

if TYPE_CHECKING:
    from pipeline.config import Config


class Cells(Protocol):
    """What a column of a submission may hold."""

    @property
    def what(self) -> str:
        """The fault."""

    @property
    def text(self) -> bool:
        """Names, then a vote decides between two submissions; numbers are averaged."""

    def wrong(self, cells: pd.Series) -> pd.Series:
        """(N,) cells → (N,) bool, true where a cell is not allowed."""


@dataclass(frozen=True)
class Names:
    """Names of a known set: one a cell, or several with a separator between them; empty says whether none will do."""

    names: frozenset[str]
    separator: str = ""
    empty: bool = False
    what: str = "holds no known class"
    text: bool = True

    def wrong(self, cells: pd.Series) -> pd.Series:
        """True where a cell holds a name outside the set, or none where one is needed."""
        if not self.separator:
            return ~cells.astype(str).isin(self.names)
        listed = cells.fillna("").astype(str).map(lambda cell: label_lists.split(cell, self.separator))
        return listed.map(lambda names: not (names or self.empty) or not self.names.issuperset(names)).astype(bool)


@dataclass(frozen=True)
class Numbers:
    """Finite numbers between two bounds, inclusive; None is open. share: those of a row sum to one in the sample."""

    low: float | None = None
    high: float | None = None
    share: bool = False
    text: bool = False

    @property
    def what(self) -> str:
        """The fault, with the bounds."""
        if self.low is None and self.high is None:
            return "is no finite number"
        low, high = ("∞" if bound is None else f"{bound:g}" for bound in (self.low, self.high))
        return f"is no number in {'−' if self.low is None else ''}{low}…{high}"

    def wrong(self, cells: pd.Series) -> pd.Series:
        """True where a cell is no finite number within the bounds."""
        numbers = pd.to_numeric(cells, errors="coerce").astype(np.float64)
        slack = 1e-6
        below = numbers < self.low - slack if self.low is not None else False
        beyond = numbers > self.high + slack if self.high is not None else False
        return pd.Series(~np.isfinite(numbers) | below | beyond, index=cells.index)


def wants(config: Config) -> str:
    """Whether the config's metric is of a "decision" or of a "probability"."""
    return str(registry.facts("metrics", config.metric).get("wants", "probability"))


def ranks(config: Config) -> int:
    """How many names, best first, the config's metric looks at; 0 if it does not rank."""
    part, call = registry.bind("metrics", config.metric)
    return int({**part.arguments, **call.arguments}["k"]) if part.facts.get("ranked") else 0


def match(answers: Sequence[str], columns: Sequence[str]) -> dict[str, str] | None:
    """The sample's columns → the task's: by name, else by what follows their common beginning, else without case."""
    if sorted(answers) == sorted(columns):
        return {name: name for name in answers}
    for beginning in {answers[0].removesuffix(name) for name in columns if answers[0].endswith(name)}:
        if sorted(name.removeprefix(beginning) for name in answers) == sorted(columns):  # class_1, class_2 are 1, 2
            return {name: name.removeprefix(beginning) for name in answers}
    folded = {name.strip().casefold(): name for name in columns}
    found = {name: folded.get(name.strip().casefold(), "") for name in answers}
    one_to_one = len(folded) == len(columns) == len(answers) and sorted(found.values()) == sorted(columns)
    return found if one_to_one else None


def mismatch(sample: pd.DataFrame, columns: Sequence[str], what: str) -> UserError:
    """The error for a sample submission whose columns are not the task's."""
    answers = [str(name) for name in sample.columns[1:]]
    odd = sorted(set(answers) ^ set(columns))
    return UserError(
        f"the sample submission has the columns {some(sample.columns)}; {what}; at odds: {some(odd)}; correct "
        "data.target, data.sample or task"
    )


def rows_of(ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> np.ndarray:
    """values (N, C) of ids (N,) → those of the sample's rows, in its order; UserError names ids without any."""
    row_of = {str(name): row for row, name in enumerate(ids)}
    wanted = sample.iloc[:, 0]
    missing = [name for name in wanted if name not in row_of]
    if missing:
        raise UserError(f"no prediction for {len(missing)} ids of the sample: {some(missing)}; predict again")
    return values[[row_of[name] for name in wanted]]


def numbers(frame: pd.DataFrame, where: str) -> np.ndarray:
    """Text cells → (N, T) float64; UserError names the cells that are no finite number."""
    found = frame.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(found)
    if bad.any():
        cells = [repr(cell) for cell in frame.to_numpy()[bad]]
        raise UserError(f"{where}: {int(bad.sum())} cells are no finite number: {some(cells)}; correct or fill them in")
    return found


def is_whole(cells: pd.Series) -> bool:
    """Whether every cell is a whole number without sign."""
    return bool(len(cells)) and bool(cells.astype(str).str.fullmatch(r"\d+").all())
