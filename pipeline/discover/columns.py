"""What a table's columns look like: numbers, names, boxes, groups that must not be split, features."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

PEOPLE = {  # one of these in a column's name: its rows belong together
    "case", "clip", "individual", "lesion", "participant", "patient", "person", "scan", "scene", "sequence", "series",
    "session", "slide", "study", "subject", "video", "volume", "seriesinstanceuid", "studyinstanceuid", "patientid",
}  # fmt: skip
PLACES = {  # these too, but a few values may also be a plain property of the image
    "batch", "camera", "center", "centre", "device", "experiment", "farm", "field", "group", "hospital", "location",
    "origin", "plate", "plot", "scanner", "site", "source", "station", "user", "well",
}  # fmt: skip
SPLITS = {"fold", "folds", "kfold", "split", "valid", "validation", "holdout", "partition", "subset", "usage"}
PARTS = SPLITS | {"phase", "set"}  # in the name of a column that tells training rows from test rows
TRAINS = {"database", "dev", "development", "gallery", "train", "training", "trainval", "val", "valid", "validation"}
TESTS = {"eval", "evaluation", "private", "privatetest", "public", "publictest", "query", "test", "testing"}
TIMES = {"date", "datetime", "day", "time", "timestamp", "year"}
TIME = re.compile(r"\d{4}([-/.]\d{1,2}){0,2}([ T][\d:.+Z]*)?")
INDEX = {"index", "unnamed", "row"}
BOXES = (
    ("xywh", ("x", "y", "w", "h")), ("xywh", ("x", "y", "width", "height")),
    ("xywh", ("left", "top", "width", "height")), ("xywh", ("xmin", "ymin", "width", "height")),
    ("xywh", ("xmin", "ymin", "w", "h")),
    ("xyxy", ("xmin", "ymin", "xmax", "ymax")), ("xyxy", ("x1", "y1", "x2", "y2")), ("xyxy", ("x0", "y0", "x1", "y1")),
    ("xyxy", ("left", "top", "right", "bottom")),
)  # fmt: skip
FLAGS = {"0", "1", "0.0", "1.0", "no", "yes", "false", "true", "False", "True"}
FEWEST_GROUPS = 5  # of a place: with fewer values it is only proposed


def words(name: str) -> list[str]:
    """``StudyInstanceUID``, ``patient_id``, ``bboxX1`` → their words in lower case."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^a-z0-9]+", parts.lower()) if word]


@dataclass(frozen=True)
class Column:
    """One column's cells, as text without blanks around."""

    name: str
    cells: pd.Series

    @functools.cached_property
    def filled(self) -> pd.Series:
        """The cells that are not empty."""
        return self.cells[self.cells != ""]

    @functools.cached_property
    def numbers(self) -> np.ndarray | None:
        """The filled cells as float64, if all are finite numbers."""
        values = pd.to_numeric(self.filled, errors="coerce").to_numpy(dtype=np.float64)
        return values if len(values) and bool(np.isfinite(values).all()) else None

    @functools.cached_property
    def whole(self) -> bool:
        """Whether all filled cells are whole numbers."""
        return self.numbers is not None and bool((self.numbers == np.round(self.numbers)).all())

    @functools.cached_property
    def distinct(self) -> list[str]:
        """The different filled cells, numbers in the order of their size, texts as sorted."""
        found = self.filled.unique().tolist()
        return sorted(found, key=float) if self.numbers is not None else sorted(found)

    @property
    def constant(self) -> bool:
        """Whether there is at most one value."""
        return len(self.distinct) < 2

    def about(self, *hints: Iterable[str]) -> bool:
        """Whether a word of the name is in one of the sets of hints."""
        return any(not set(words(self.name)).isdisjoint(one) for one in hints)


def column(table: pd.DataFrame, name: str) -> Column:
    """A column of a table of text cells."""
    return Column(name, table[name].str.strip())


def spread(found: Column, limit: int = 6) -> str:
    """The values of a column with their counts, the most frequent first."""
    counts = found.filled.value_counts()
    more = " …" if len(counts) > limit else ""
    if counts.nunique() == 1 and len(counts) > 1:
        return f"{', '.join(found.distinct[:limit])}{more} ({counts.iloc[0]} rows each)"
    return ", ".join(f"{value} ({count} rows)" for value, count in counts.head(limit).items()) + more


def find_box(table: pd.DataFrame) -> tuple[str, list[str]]:
    """The form and the four columns of a box around what the image shows; two blanks if there is none."""
    flat = {re.sub(r"^(bbox|box|roi|crop)|[^a-z0-9]", "", "".join(words(name))): name for name in table.columns}
    for form, names in BOXES:
        found = [flat[name] for name in names if name in flat]
        if len(found) == 4 and all(column(table, name).numbers is not None for name in found):
            return form, found
    return "", []


def find_parts(table: pd.DataFrame) -> tuple[str, list[str], list[str]]:
    """The column that tells training rows from test rows, and its values for each; blanks where none does."""
    for seen in (column(table, name) for name in table.columns if set(words(str(name))) & PARTS):
        said = {value: "".join(words(value)) for value in seen.distinct[:20]}
        train, test = ([value for value, word in said.items() if word in one] for one in (TRAINS, TESTS))
        if train and test and len(train) + len(test) == len(seen.distinct) and len(seen.filled) == len(table):
            return str(seen.name), train, test
    return "", [], []


def is_time(found: Column) -> bool:
    """Whether the name and the cells tell of a date or a year."""
    few = found.distinct[:50]
    return found.about(TIMES) and len(few) > 1 and all(TIME.fullmatch(cell) for cell in few)


def repeats(found: Column) -> bool:
    """Whether the values stand on two rows or more on average, and there are several."""
    return not found.constant and len(found.filled) >= 2 * len(found.distinct)


def find_group(table: pd.DataFrame, skip: Iterable[str]) -> tuple[str, bool]:
    """The column whose equal values must share a fold, and whether its name says so surely; blank if there is none."""
    candidates = [column(table, name) for name in table.columns if name not in set(skip)]
    candidates = [found for found in candidates if repeats(found) and len(found.filled) == len(table)]
    candidates = [found for found in candidates if not set(found.distinct) <= FLAGS]  # "Subject Focus": yes or no
    for hints, sure in ((PEOPLE, True), (PLACES, False)):
        fits = [found for found in candidates if found.about(hints)]
        if fits:
            finest = max(fits, key=lambda found: len(found.distinct) if not sure else -fits.index(found))
            return finest.name, sure or len(finest.distinct) >= FEWEST_GROUPS
    return "", False


def twins(one: Column, other: Column) -> bool:
    """Whether two columns say the same in other words, such as a class's number and its name."""
    count = len(one.distinct)
    if count != len(other.distinct) or 2 * count > len(one.cells):
        return False
    return len(pd.DataFrame({"a": one.cells, "b": other.cells}).drop_duplicates()) == count


def find_features(train: pd.DataFrame, test: pd.DataFrame, skip: Iterable[str], known: Iterable[str]) -> list[str]:
    """Columns of both tables that tell something of an image: numbers, or names that come back.

    known: columns, the id and the target, that none of them may repeat.
    """
    found = []
    told = [column(train, name) for name in known]
    for name in map(str, train.columns):
        if name in set(skip) or name not in test.columns:
            continue
        seen = column(train, name)
        if any(seen.cells.equals(other.cells.rename(name)) or twins(seen, other) for other in told):
            continue
        if not seen.constant and not seen.about(INDEX) and (seen.numbers is not None or repeats(seen)):
            found.append(name)
    return found
