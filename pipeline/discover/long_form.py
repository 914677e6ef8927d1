"""Whether the sample has a row for each column of an image, as ``ID_1_epidural``; the tables with one row an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from pipeline.discover.draft import Draft
from pipeline.discover.folder import Folder
from pipeline.discover.matching import Files, column_share
from pipeline.discover.roles import FEW, SAMPLES, find_sample, said
from pipeline.longform import COLUMN, ID, Long
from pipeline.patterns import COVERED

MARKS = ("__", "_", "-", "|", ":", "/", " ", ".")  # that may stand between an image's name and a column's
DEPTH = 4  # of them in a name, from either end
MOST_COLUMNS = 500


def turned(folder: Folder, draft: Draft) -> Folder:
    """The folder with one row an image in each table, where its sample has several; settles data.long."""
    files = Files(folder.images)
    name = str(draft.given.get("data.sample", find_sample(folder.tables, files)))
    sample = folder.tables.get(name)
    if sample is None or sample.shape[1] != 2 or draft.given.get("data.long") == "":
        return folder
    if files.share(sample.iloc[:, 0].tolist()) > FEW:  # ids are images, as mostly
        return folder
    found = next((long for long in _forms(sample, files, draft) if _fits(long, folder, name, files)), None)
    if found is None:
        return folder
    why = f"{name} has a row for each of {len(found.columns)} columns of an image, such as {found.asked.iloc[0, 0]!s}"
    draft.set("data.long", found.pattern, why)
    return replace(folder, tables={**_one_row_an_image(found, folder, name), name: found.sample()})


def _forms(sample: pd.DataFrame, files: Files, draft: Draft) -> Iterator[Long]:
    """Each way to take the ids apart into images and columns so that every image has every column, once."""
    ids = sample.iloc[:, 0]
    if not ids.is_unique or len(ids) < 2:
        return
    for mark in MARKS:
        words = [name.split(mark) for name in ids]
        if min(map(len, words)) < 2:
            continue
        for pattern, parts in _parts(words, mark, files):
            names = tuple(dict.fromkeys(column for _, column in parts))
            whole = 2 <= len(names) <= MOST_COLUMNS and len(names) * len({image for image, _ in parts}) == len(ids)
            if whole and draft.given.get("data.long", pattern) == pattern:
                yield Long(pattern, names, str(sample.columns[1]), sample)


def _parts(words: list[list[str]], mark: str, files: Files) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Patterns, and what they make of each id, (image, column): split where images end, or after so many words."""

    def joined(one: list[str], place: int) -> tuple[str, str]:
        return mark.join(one[:place]), mark.join(one[place:])

    first, last = f"{ID}{mark}{COLUMN}", f"{COLUMN}{mark}{ID}"
    ends = [next((k for k in range(1, len(one)) if files.of(joined(one, k)[0])), 0) for one in words]
    starts = [next((k for k in range(1, len(one)) if files.of(joined(one, k)[1])), 0) for one in words]
    if all(ends):
        yield first, [joined(one, place) for one, place in zip(words, ends, strict=True)]
    if all(starts):
        yield last, [joined(one, place)[::-1] for one, place in zip(words, starts, strict=True)]
    for place in range(1, min(DEPTH, min(map(len, words)) - 1) + 1):
        yield first, [joined(one, -place) for one in words]
        yield last, [joined(one, place)[::-1] for one in words]


def _fits(long: Long, folder: Folder, sample: str, files: Files) -> bool:
    """Whether the images are there, and another table knows the columns: in its names, or as its own rows' names."""
    others = [table for name, table in folder.tables.items() if name != sample and not said(name) & SAMPLES]
    known = any(set(long.columns) <= set(table.columns) or _cells(long, table) for table in others)
    id_ = str(long.asked.columns[0])
    if not known:
        return False
    if files.share(long.sample()[id_].tolist()) >= COVERED:
        return True
    wide = [long.rows(table, id_) for table in others if id_ in table.columns and long.fits(table[id_])]
    return any(column_share(table, str(name), files) >= COVERED for table in wide for name in table.columns)


def _cells(long: Long, table: pd.DataFrame) -> bool:
    """Whether a table has a cell for each column of an image, as the sample has."""
    id_ = str(long.asked.columns[0])
    return {id_, long.value} <= set(table.columns) and long.fits(table[id_])


def _one_row_an_image(long: Long, folder: Folder, sample: str) -> dict[str, pd.DataFrame]:
    id_, found = str(long.asked.columns[0]), {}
    for name, table in folder.tables.items():
        if name != sample and id_ in table.columns and long.fits(table[id_]):
            cells = _cells(long, table) and not said(name) & SAMPLES
            found[name] = long.wide(table, id_, name) if cells else long.rows(table, id_)
        else:
            found[name] = table
    return found
