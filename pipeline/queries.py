"""Which test rows ask and which are searched, where a competition asks to find the same thing again.

The ids of the sample submission ask: queries. They search the test rows that it does not ask for and what
``data.gallery`` names; where there is neither, the test rows search themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import files
from pipeline.artefacts import shown
from pipeline.config import Data
from pipeline.errors import UserError, nearest, some
from pipeline.patterns import is_image, without_suffix
from pipeline.tables import check_ids, read_table
from pipeline.texts import TABLES

QUERIES = {"query", "queries", "probe", "probes"}
GALLERY = {"gallery", "galleries", "index", "database", "reference", "references", "distractor", "distractors"}


def asks(cells: pd.Series) -> np.ndarray:
    """(N,) bool: the cells of a role that say query, blanks around and case aside."""
    return cells.str.strip().str.lower().isin(QUERIES).to_numpy()


def tells_roles(cells: pd.Series) -> bool:
    """Whether a column tells queries from what they search: it has words of both."""
    said = set(cells.str.strip().str.lower().unique())
    return bool(said & QUERIES and said & GALLERY)


def is_table(name: str) -> bool:
    """Whether data.gallery names a csv, not a folder."""
    return name.lower().endswith(TABLES)


def asked(data: Data, test: pd.DataFrame, where: str) -> pd.Series:
    """The ids of the test rows that ask, by data.role; UserError for another word than those that are known."""
    if data.role not in test.columns:
        there = [str(name) for name in test.columns]
        held = f"{where} has no such column; its columns: {some(there, 20)}{nearest(data.role, there)}"
        raise UserError(f"data.role={data.role}, but {held if data.test_csv else 'data.test_csv is empty; set it'}")
    cells = test[data.role].str.strip()
    odd = (~cells.str.lower().isin(QUERIES | GALLERY)).to_numpy()
    if odd.any():
        raise UserError(
            f"{where}: {data.role} (data.role) is {some(map(repr, cells[odd].unique()))} for ids "
            f"{some(test[data.id][odd])}; a row that asks is one of {', '.join(sorted(QUERIES))}, one that is searched "
            f"one of {', '.join(sorted(GALLERY))}: correct the table, or leave data.role out: then the sample's ids ask"
        )
    found = asks(cells)
    if not found.any():
        raise UserError(f"{where}: {data.role} (data.role) names no row that asks; correct the table")
    if found.all() and not data.gallery:
        raise UserError(
            f"{where}: {data.role} (data.role) names no row to search; correct the table, or name the images that "
            "queries search with data.gallery=FOLDER"
        )
    return test[data.id][found]


def check_sample(data: Data, sample: pd.DataFrame, test: pd.DataFrame, where: str) -> None:
    """Raise UserError unless the sample asks for test rows, each once, and for those alone that ask by data.role."""
    ids = sample.iloc[:, 0]
    check_ids(ids, where)
    known = set(test[data.id])
    lost = [name for name in ids if name not in known]
    if lost:
        raise UserError(
            f"{where}: {len(lost)} of {len(ids)} ids are no test rows: {some(lost)}; correct data.sample or "
            "data.test_csv"
        )
    if not data.role:
        return
    asking = set(asked(data, test, data.test_csv))
    more, less = [name for name in ids if name not in asking], sorted(asking - set(ids))
    if more or less:
        says = f"asks for {some(more)}, which are searched" if more else f"lacks {some(less)}, which ask"
        raise UserError(
            f"{where} {says} by {data.role} of {data.test_csv} (data.role); correct a table, or leave data.role out: "
            "then the sample's ids ask, and all other test rows are searched"
        )


def gallery(folder: Path, data: Data, ids: Sequence[str]) -> tuple[pd.DataFrame, str, list[str]]:
    """The rows that data.gallery adds to the test rows, the folder of their images, and what these are called there.

    ids: of the test rows. Images of a folder are called by their names, with the suffix where the test ids have one.
    UserError where there is nothing of that name, and where an id stands twice, or in both.
    """
    name = data.gallery
    where = shown(folder / name)
    if is_table(name):
        table = read_table(folder / name, {data.id: "data.id"}, key="data.gallery")
        own = name.partition(".")[0]
        place = own if (folder / own).is_dir() or (folder / f"{own}.zip").is_file() else data.test_images
        called = table[data.image if data.image in table.columns else data.id].tolist()
    else:
        place, called = name, _images_of(folder, data)
        bare = [file.rpartition("/")[2] for file in called]
        kept = all(map(is_image, ids))
        table = pd.DataFrame({data.id: bare if kept else list(map(without_suffix, bare))}, dtype=str)
    check_ids(table[data.id], where)
    tests = set(ids)
    both = [one for one in table[data.id] if one in tests]
    if both:
        raise UserError(
            f"{len(both)} images of {where} (data.gallery) are called like test rows: {some(both)}; answers could mean "
            "either: rename them, or give data.gallery=FILE, a csv with ids of their own"
        )
    return table, place, called


def _images_of(folder: Path, data: Data) -> list[str]:
    """The images below the folder data.gallery, as paths in it."""
    if not any((folder / name).exists() for name in (data.gallery, f"{data.gallery}.zip")):
        raise UserError(
            f"data.gallery={data.gallery}, but {shown(folder)} has no such folder, zip or csv; name the folder of the "
            "images that queries search, or leave it empty where test.csv has them"
        )
    if data.files:
        raise UserError(
            f"data.gallery={data.gallery} is a folder, but data.files says what an id's files are called, so that the "
            "ids are unknown; give a csv of them: data.gallery=FILE"
        )
    place = files.find(folder, data.gallery)
    found = [file for file in [*place.files, *place.members] if is_image(file)]
    if not found:
        raise UserError(f"data.gallery={data.gallery}, but {shown(folder / data.gallery)} holds no images")
    return found
