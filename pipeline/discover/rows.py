"""The rows of a competition: its tables, and the image that each row means."""

from __future__ import annotations

import functools
import os
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from pipeline.artefacts import shown
from pipeline.discover.columns import find_parts, words
from pipeline.discover.draft import Draft
from pipeline.discover.folder import Folder, is_json, top
from pipeline.discover.matching import (
    Files,
    Match,
    column_share,
    hint,
    leaving,
    match,
    missing,
    nothing_fits,
)
from pipeline.discover.roles import (
    FEW,
    SAMPLES,
    class_folders,
    find_id,
    find_image,
    find_sample,
    find_train,
    named_classes,
    said,
)
from pipeline.errors import UserError, some
from pipeline.files import resolve
from pipeline.patterns import COVERED, classes_of
from pipeline.queries import QUERIES
from pipeline.tables import chosen


@dataclass
class Rows:
    """The rows of a competition. table: the training table, its ids in the column id; files: an image a row."""

    folder: Folder
    files: Files
    table: pd.DataFrame
    id: str
    train: str = ""
    test: str = ""
    sample: str = ""
    test_table: pd.DataFrame | None = None
    sample_table: pd.DataFrame | None = None
    matched: Match = field(default_factory=lambda: Match("", [], []))
    tested: Match = field(default_factory=lambda: Match("", [], []))
    extras: dict[str, str] = field(default_factory=dict)
    by_folder: bool = False
    image: str = ""
    parts: str = ""  # the column that tells training rows from test rows, of one table for both

    @property
    def named(self) -> str:
        """The column that names images, in the tables of training and test."""
        return self.image or self.id

    @property
    def answers(self) -> list[str]:
        """The columns of the sample submission beside the ids."""
        return [] if self.sample_table is None else [str(name) for name in self.sample_table.columns[1:]]

    @functools.cached_property
    def specs(self) -> list[str]:
        """The image of each training row, as the loader will find it; UserError where it would not."""
        if self.by_folder:
            return self.matched.files
        ids = self.table[self.named].tolist()
        return list(resolve(self.folder.path, self.matched.folder, ids, self.matched.patterns))

    @property
    def test_ids(self) -> list[str]:
        """The ids of the test rows, each once."""
        if self.test_table is not None:
            return self.test_table[self.id].drop_duplicates().tolist()
        return [] if self.sample_table is None else self.sample_table.iloc[:, 0].drop_duplicates().tolist()

    @property
    def test_names(self) -> list[str]:
        """What names the images of the test rows, each id's once."""
        if self.image and self.test_table is not None:
            return self.test_table.drop_duplicates(self.id)[self.image].tolist()
        return self.test_ids


def find_rows(folder: Folder, draft: Draft, listed: str | None = None) -> Rows:
    """Settle the tables, the ids and the images of a folder; UserError where rows and images do not fit.

    listed: a folder each of whose images is a training row, where no table lists them.
    """
    files = Files(folder.images)
    tables = folder.tables
    for key in ("data.train_csv", "data.test_csv", "data.sample"):
        _there(folder, draft, key)
    given = draft.given
    sample = given["data.sample"] if "data.sample" in given else find_sample(tables, files)
    sample_table = tables.get(sample)
    if sample_table is not None and sample_table.empty and not given.get("data.hidden"):
        sample, sample_table = "", None  # a header: the images of the folder are the test rows
    parted = None
    if listed is not None:
        train = ""
    else:
        train = given["data.train_csv"] if "data.train_csv" in given else find_train(folder, files, sample, draft)
    if listed is not None:
        rows = _listed(folder, files, listed, draft)
    elif not train:
        rows = _by_folder(folder, files, draft)
    else:
        table, parted = _parted(tables[train], train, draft)
        id_, image = find_image(train, tables, files, sample, draft, parted)
        rows = Rows(folder, files, table, id_ or find_id(train, table, files, sample_table, draft), train, image=image)
        _match_train(rows, draft)
    rows.sample, rows.sample_table = sample, sample_table
    rows.test = given["data.test_csv"] if "data.test_csv" in given else _test(rows, draft)
    rows.test_table = tables.get(rows.test)
    if parted is not None and "data.test_csv" not in given:
        rows.test, rows.test_table, rows.parts = train, parted, find_parts(tables[train])[0]
    elif rows.test_table is not None and "data.test_rows" in given:
        rows.test_table = chosen(rows.test_table, draft.set("data.test_rows", "", ""), "data.test_rows", rows.test)
    _match_test(rows, draft)
    rows.extras = _extras(rows)
    _settle(rows, draft)
    return rows


def _parted(table: pd.DataFrame, name: str, draft: Draft) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The training rows of a table, and the test rows where a column of it tells them apart."""
    if "data.rows" in draft.given:
        return chosen(table, draft.set("data.rows", "", ""), "data.rows", name), None
    where, train, test = find_parts(table)
    if not where:
        return table, None
    rule = draft.set("data.rows", f"{where}={'|'.join(train)}", f"{where} tells training rows from test rows")
    other = draft.set("data.test_rows", f"{where}={'|'.join(test)}", "the others")
    return chosen(table, rule, "data.rows", name), chosen(table, other, "data.test_rows", name)


def _there(folder: Folder, draft: Draft, key: str) -> None:
    name = draft.given.get(key, "")
    if name and name not in folder.tables:
        there = some(sorted(folder.tables), 20) or "none"
        raise UserError(f"{key}={name}, but {shown(folder.path)} has no such table; there are: {there}")


# --- the other tables -------------------------------------------------------------------------------------------------


def _test(rows: Rows, draft: Draft) -> str:
    """The table of the test rows: by its name, or because it has the sample's ids; it must have the column of ids."""
    others = {n: t for n, t in rows.folder.tables.items() if n not in (rows.train, rows.sample)}
    wanted = set() if rows.sample_table is None else set(rows.sample_table.iloc[:, 0])
    fits = []
    for name, table in others.items():
        named = bool(said(name) & {"test", "testing", *QUERIES}) and not said(name) & SAMPLES
        lacks = next((one for one in (rows.id, rows.named) if one not in table.columns), "")
        if lacks:
            draft.notes += [f"{name} has no column {lacks}: not used"] * named
            continue
        if not wanted <= set(table[rows.id]):
            draft.notes += [f"{name} lacks ids of {rows.sample}: not used, the sample's ids are the test rows"] * named
            continue
        same = bool(wanted) and set(table[rows.id]) == wanted
        told = column_share(table, rows.named, rows.files) > FEW
        known = draft.given.get("data.hidden") or rows.matched.patterns or _naming_both(rows, table)
        if ((named or same) and told) or (named and known):
            fits.append((same, named, not is_json(name), len(table), name))
    return max(fits)[-1] if fits else ""


def _extras(rows: Rows) -> dict[str, str]:
    """The other tables that can be joined: name → how many of the training rows they know."""
    found = {}
    ids = set(rows.table[rows.id])
    for name, table in rows.folder.tables.items():
        if name in (rows.train, rows.test, rows.sample) or said(name) & SAMPLES or rows.id not in table.columns:
            continue
        known, tests = len(ids & set(table[rows.id])), len(set(rows.test_ids) & set(table[rows.id]))
        if known > FEW * len(ids) and tests and table.shape[1] > 1:
            found[name] = f"{known} of {len(ids)} training rows"
    return found


# --- which image each row means -----------------------------------------------------------------------------------


def _match_train(rows: Rows, draft: Draft) -> None:
    where = shown(rows.folder.path / rows.train)
    ids = rows.table[rows.named].tolist()
    empty = [place + 2 for place, name in enumerate(ids) if not name.strip()]
    if empty:
        raise UserError(f"{where}: no {rows.named} in lines {some(empty)}; fill in the ids or remove the rows")
    leaving(ids, where)
    found = match(ids, rows.files, "train", draft.given.get("data.train_images"), draft.given.get("data.files", ()))
    if found.found <= FEW * len(ids):
        raise nothing_fits(rows.folder.path, rows.train, rows.named, ids, rows.files)
    if found.found < len(ids):
        raise missing(rows.folder.path, rows.train, ids, found)
    rows.matched = found


def _match_test(rows: Rows, draft: Draft) -> None:
    given = draft.given.get("data.test_images")
    ids = rows.test_names
    if draft.given.get("data.hidden"):
        return
    if not ids:
        rows.tested = _unlabelled(rows, given)
        if rows.matched.patterns:
            raise UserError(
                f"no table lists the test images, and files are called {some(rows.matched.patterns)}, so that their "
                "ids are unknown; give data.test_csv=FILE or data.sample=FILE"
            )
        return
    table = rows.test or rows.sample
    leaving(ids, shown(rows.folder.path / table))
    found = match(ids, rows.files, "test", given, rows.matched.patterns or draft.given.get("data.files", ()))
    both = None
    if found.patterns != rows.matched.patterns:
        both = match(rows.table[rows.named].tolist(), rows.files, "train", rows.matched.folder, found.patterns)
    unlike = both is not None and both.patterns != found.patterns
    if (unlike or found.found <= FEW * len(ids)) and (other := _naming_both(rows, rows.test_table)):
        rows.image = other
        _match_train(rows, draft)
        _match_test(rows, draft)
        return
    if found.found <= FEW * len(ids) and not any(hint(place, "test") == 1 for place in rows.files.folders("test")):
        what = f"no image of the {len(ids)} ids of {table} is here, and no folder of test images"
        draft.ask("data.hidden", f"{what}; are they not shipped?", "data.hidden=true")
        return
    if found.found <= FEW * len(ids):
        _several_rows_an_image(rows, ids)
        _several_images_an_answer(rows, ids)
        id_ = rows.named if rows.test else str(rows.sample_table.columns[0])  # type: ignore[union-attr]
        raise nothing_fits(rows.folder.path, table, id_, ids, rows.files)
    if found.found < len(ids):
        raise missing(rows.folder.path, table, ids, found)
    if unlike:
        raise UserError(
            f"the files of {rows.train or 'the training images'} are called {some(rows.matched.patterns or ['{id}'])}, "
            f"those of {table} {some(found.patterns or ['{id}'])}: one data.files must do for both; put the files' "
            "names into the tables"
        )
    rows.matched = both or rows.matched
    rows.tested = found


def _naming_both(rows: Rows, test: pd.DataFrame | None) -> str:
    """A column of both tables whose cells name the images, where the ids do not; "" if there is none."""
    if test is None or rows.image:
        return ""
    shared = [str(name) for name in rows.table.columns if name in test.columns and name != rows.id]
    named = [
        one for one in shared if all(column_share(each, one, rows.files) >= COVERED for each in (rows.table, test))
    ]
    return next(iter(named), "")


def _several_rows_an_image(rows: Rows, ids: list[str]) -> None:
    """Raise UserError if the sample's ids are an image's id with something behind it, as in one row a class."""
    heads = [name.rpartition("_")[0] for name in ids]
    if rows.files.share(heads) >= COVERED:
        tails = sorted({name.rpartition("_")[2] for name in ids})
        raise UserError(
            f"{shown(rows.folder.path / rows.sample)} has several rows an image: {some(ids)} are images with one of "
            f"{some(tails)} behind them; this form of submission is not supported: give a sample with one row an "
            "image, data.sample=FILE, and turn the submission round afterwards"
        )


def _several_images_an_answer(rows: Rows, ids: list[str]) -> None:
    """Raise UserError if the sample's ids stand for several images each, as those of patients."""
    for name, table in rows.folder.tables.items():
        told = [
            str(one) for one in table.columns
            if name != rows.sample and not table[one].is_unique and set(ids) <= set(table[one])
        ]  # fmt: skip
        if told and rows.named in table.columns:
            raise UserError(
                f"{shown(rows.folder.path / rows.sample)} asks once for several images: {some(ids, 2)} stand for "
                f"{len(table)} images in {name} ({told[0]}). Answers of several images are not joined here: leave the "
                f"sample out, data.sample=, and take the mean or the maximum by {told[0]} of the submission afterwards"
            )


def _unlabelled(rows: Rows, given: str | None) -> Match:
    """The images of the folder for testing, where no table lists them."""
    if given:
        return Match(given, [], rows.files.inside(given))
    used = set(rows.matched.files)
    asking = [folder for folder in rows.files.folders("test") if set(words(folder)) & QUERIES]
    for folder in asking or rows.files.folders("test"):
        inside = rows.files.inside(folder)
        if hint(folder, "test") == 1 and not used & {f"{folder}/{name}" for name in inside}:
            return Match(folder, [], inside)
    return Match("", [], [])


# --- a folder for each class --------------------------------------------------------------------------------------


def _by_folder(folder: Folder, files: Files, draft: Draft) -> Rows:
    named = None if class_folders(files) else named_classes(files, draft)
    place = named[0] if named else draft.given.get("data.train_images", class_folders(files))
    if place is None:
        raise UserError(f"{shown(folder.path)} has no folder for each class, and data.train_csv is empty")
    inside = files.inside(place)
    target = next(iter(draft.given.get("data.target", [])), "label")
    id_ = draft.given.get("data.id", "id")
    classes = classes_of(inside, named[1]) if named else [name.partition("/")[0] for name in inside]
    table = pd.DataFrame({id_: inside, target: classes}, dtype=str)
    prefix = "" if place == "." else place + "/"
    found = Match(place, [], [prefix + name for name in inside])
    if named:
        draft.set("data.named", named[1], f"the names tell the class: {inside[0]} is {classes[0]}")
    return Rows(folder, files, table, id_, "", matched=found, by_folder=True)


def _listed(folder: Folder, files: Files, place: str, draft: Draft) -> Rows:
    """Each image of a folder is a row; one column, the path below it."""
    inside, prefix = files.inside(place), "" if place in ("", ".") else place.rstrip("/") + "/"
    if not inside:
        raise UserError(f"{shown(folder.path / place)} holds no images beside masks; set data.train_images")
    id_ = draft.given.get("data.id", "id")
    found = Match(place, [], [prefix + name for name in inside])
    return Rows(folder, files, pd.DataFrame({id_: inside}, dtype=str), id_, "", matched=found, by_folder=True)


# --- into the draft -----------------------------------------------------------------------------------------------


def _settle(rows: Rows, draft: Draft) -> None:
    train, tests = len(rows.table), len(rows.tested.files)
    if rows.by_folder:
        what = "folder in {} is a class" if rows.table.shape[1] > 1 else "image in {} is a row"
        if draft.value("data.named"):
            what = "file of {} names its class"
        draft.set("data.train_csv", "", f"no table: each {what.format(rows.matched.folder)}")
    else:
        draft.set("data.train_csv", rows.train, f"{train} rows, and the columns {some(rows.table.columns, 8)}")
    if rows.test_table is not None:
        draft.set("data.test_csv", rows.test, f"{tests} rows, and the columns {some(rows.test_table.columns, 8)}")
    asks = "none in the folder: one is made of the ids and the target"
    if rows.sample_table is not None:
        asks = f"{len(rows.sample_table)} rows: {some(rows.sample_table.columns, 6)}"
    draft.set("data.sample", rows.sample, asks)
    kinds = _kinds(rows.matched.files)
    draft.set("data.train_images", rows.matched.folder or ".", f"an image for each of the {train} rows: {kinds}")
    if tests:
        draft.set("data.test_images", rows.tested.folder or ".", f"{tests} images: {_kinds(rows.tested.files)}")
    elif draft.given.get("data.hidden"):
        likely = rows.matched.folder.replace("train", "test").replace("Train", "Test") or "test_images"
        draft.set("data.test_images", likely, "none are here; of a hidden set correct it, for stage=package")
        draft.set("data.hidden", True, "")
    else:
        draft.set("data.test_images", "", "no test images seen")
    _settle_ids(rows, draft)


def _settle_ids(rows: Rows, draft: Draft) -> None:
    ids = rows.table[rows.named]
    example = "" if len(ids.iloc[0]) > 30 else f"{ids.iloc[0]} is {rows.matched.files[0]}"
    if rows.by_folder:
        draft.set("data.id", rows.id, f"a path below {rows.matched.folder}, such as {ids.iloc[0]}")
        return
    sure = "" if ids.is_unique else f"; {int(ids.duplicated().sum())} rows repeat an id"
    patterns = rows.matched.patterns
    how = "its cells are in the files' names" if patterns else "its cells are the images' names"
    if rows.image:
        draft.set("data.id", rows.id, "what the sample asks for; another column names the images")
    draft.set("data.image" if rows.image else "data.id", rows.named, f"{how}{': ' if example else ''}{example}{sure}")
    if patterns or "data.files" in draft.given:
        one = f"how the files are called: {example}"
        draft.set("data.files", patterns, one if len(patterns) < 2 else "an image is all of these, as its channels")


def _kinds(files: list[str]) -> str:
    counts = Counter(os.path.splitext(name)[1] or "without suffix" for name in files)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(4))
    return f"{kinds}, in folders" if len({top(name) for name in files}) > 1 else kinds
