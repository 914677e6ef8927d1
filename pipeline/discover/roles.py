"""Which table is which, and which of its columns holds the ids of images."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from pipeline.artefacts import shown
from pipeline.discover.columns import column, words
from pipeline.discover.draft import Draft
from pipeline.discover.folder import Folder, is_json, listed
from pipeline.discover.matching import Files, column_share, hint, leaving, match, nothing_fits
from pipeline.errors import UserError, some
from pipeline.patterns import COVERED, classes_of, is_image
from pipeline.queries import QUERIES

SAMPLES = {"submission", "submissions", "submit", "sub", "samplesubmission"}
LABELS = {"label", "labels", "target", "targets", "annotation", "annotations", "class", "classes"}
NAMES = {"id", "image", "img", "file", "filename", "filepath", "path", "name", "picture", "photo", "fname"}
LABELLESS = {"test", "train", "img", "image", "pic", "file", "frame"}
NAME_MARKS = (".", "_", "-", " ", "")  # between a class and a number in a file's name
FEW = 0.05  # a column that names fewer images than this share of its cells holds no ids


def said(name: str) -> set[str]:
    """The words of a table's own name, as ``trainLabels.csv`` and ``train_labels.csv`` have them."""
    base = name.rpartition("/")[2].lower().partition(".csv")[0]
    return set(words(name.rpartition("/")[2].partition(".")[0])) | set(words(base))


def find_sample(tables: dict[str, pd.DataFrame], files: Files) -> str:
    """The sample submission: by its name; of several the one that names most images."""
    speaking = [name for name, table in tables.items() if "train" not in said(name) and table.shape[1] > 1]
    found = [name for name in speaking if said(name) & SAMPLES or said(name) & {"sample", "example"}]
    best = {name: column_share(tables[name], str(tables[name].columns[0]), files) for name in found}
    return max(
        found, key=lambda name: (best[name], "sample" in said(name), not is_json(name), len(tables[name])), default=""
    )


def find_train(folder: Folder, files: Files, sample: str, draft: Draft) -> str:
    """The table of the training rows; "" where folders stand for classes; UserError where a table names no image."""
    tables = {name: table for name, table in folder.tables.items() if name != sample}
    known = folder.tables.get(sample)
    others = {"test", "testing", "gallery", *QUERIES, *SAMPLES}
    labelled = {name: table for name, table in tables.items() if not said(name) & others}
    ranked = []
    for name, table in labelled.items():
        column_ = draft.given.get("data.id") or _best(table, files, known)[0]
        share = _fit(table, column_, files, draft) if column_ in table.columns else 0.0
        speaks = said(name)
        called = ("train" in speaks, "training" in speaks, bool(speaks & LABELS))
        order = (share > FEW, holds(table, known), not is_json(name), *called)
        ranked.append((order, share, len(table), name, column_))
    given = draft.given.get("data.id")
    if given and not any(given in table.columns for table in labelled.values()):
        seen = [f"{name} has {some(table.columns, 20)}" for name, table in labelled.items()]
        raise UserError(f"data.id={given}, but no table has that column: {'; '.join(seen)}")
    ranked.sort(reverse=True)
    if ranked and ranked[0][1] > FEW:
        _has_header(folder, str(ranked[0][3]), str(ranked[0][4]), files)
        return str(ranked[0][3])
    lost = next(
        (entry for entry in ranked if "train" in said(entry[3]) and _are_files(tables[entry[3]], entry[4])), None
    )
    if class_folders(files) and lost:  # to take folders for classes in its stead would be a guess
        raise nothing_fits(folder.path, lost[3], lost[4], tables[lost[3]][lost[4]].tolist(), files)
    if class_folders(files) or (not ranked and named_classes(files, draft)):
        return ""
    if not ranked:
        raise _no_table(folder, files)
    named = [entry for entry in ranked if said(entry[3]) & {"train", "training"} or said(entry[3]) & LABELS] or ranked
    name = str(named[0][3])
    column_ = _likely(tables[name], known)
    leaving(tables[name][column_], shown(folder.path / name))
    raise nothing_fits(folder.path, name, column_, tables[name][column_].tolist(), files)


def _has_header(folder: Folder, name: str, column_: str, files: Files) -> None:
    """UserError where the name of the column of ids is itself an image: the first line is a row."""
    if is_image(column_) and files.of(column_):
        first = ",".join(map(str, folder.tables[name].columns[:4]))
        raise UserError(
            f"{shown(folder.path / name)} has no header: its first line, {first}, is a row; put a line above it, such "
            "as id,label"
        )


def _are_files(table: pd.DataFrame, name: str) -> bool:
    """Whether most of a column's cells are called as images are."""
    return bool(name in table.columns and table[name].map(is_image).mean() > 0.5)


def _no_table(folder: Folder, files: Files) -> UserError:
    """The error for images without a table of training rows, with what else could stand for one."""
    there = f"its tables: {some(sorted(folder.tables))}" if folder.tables else "there is no csv"
    packed = sorted(
        {name[: name.lower().index(".zip/") + 4] for name in folder.members if name.lower().endswith(".csv")}
    )
    places = [name for name in files.folders("train") if "/" not in name]
    heads = Counter(re.split(r"[.\-_ ]?\d", image.rpartition("/")[2])[0] for image in files.images)
    spoken = [head for head, count in heads.most_common(6) if head and count > 1 and not set(words(head)) & LABELLESS]
    if packed:
        move = f"there is a csv in {packed[0]}: unpack it"
    elif len(places) > 2 and {hint(name, "test") for name in places} == {0, 1}:
        classes = [name for name in places if hint(name, "test") == 0]
        move = f"if the folders {some(classes)} are the classes, move them into a folder train/"
    elif len(spoken) > 1 and len(heads) * 2 < len(files.images):
        move = (
            f"if the files' names tell the class ({some(spoken)}), give data.named={{label}}_{{number}} or the like, "
            "or write a train.csv with a column id and one label"
        )
    else:
        rest = [f"{count} {suffix}" for suffix, count in folder.others.most_common() if suffix not in ("", ".csv")]
        read = f" ({some(rest)} are not read)" if rest else ""
        move = f"give data.train_csv=FILE, with a column of ids and one of labels{read}"
    return UserError(
        f"{shown(folder.path)} has {len(files.images)} images, such as {listed(files.images, 4)}, but no table of "
        f"training rows ({there}) and no folder of training images with a folder for each class; {move}"
    )


def _fit(table: pd.DataFrame, name: str, files: Files, draft: Draft) -> float:
    """The share of ids that mean an image, by name or by a pattern."""
    ids = table[name].drop_duplicates().tolist()
    share = files.share(ids)
    if share >= COVERED or len(ids) < 2:
        return share
    found = match(ids, files, "train", draft.given.get("data.train_images"), draft.given.get("data.files", ()))
    return max(share, found.found / len(ids))


def holds(table: pd.DataFrame, sample: pd.DataFrame | None) -> bool:
    """Whether the table has the columns that the sample answers, or one whose values they are."""
    if sample is None:
        return False
    answers = {str(name).casefold() for name in sample.columns[1:]}
    if answers <= {str(name).casefold() for name in table.columns}:
        return True
    return len(answers) > 1 and any(answers == set(table[name].str.casefold()) for name in table.columns)


def _best(table: pd.DataFrame, files: Files, sample: pd.DataFrame | None) -> tuple[str, float]:
    """The column whose cells mean most images; of equals the one without repeats, then by its name, then the first."""
    first = "" if sample is None else str(sample.columns[0]).casefold()
    ranked = []
    for place, name in enumerate(map(str, table.columns)):
        share = column_share(table, name, files)
        unique = table[name].nunique() / len(table)
        same = name.casefold() == first
        ranked.append((share >= COVERED, round(unique, 3) == 1, share, same, _speaks(name), -place, name))
    best = max(ranked)
    if best[2] > FEW:
        return best[-1], best[2]
    return _likely(table, sample), best[2]


def _speaks(name: str) -> bool:
    return bool(set(words(name)) & NAMES)


def _likely(table: pd.DataFrame, sample: pd.DataFrame | None) -> str:
    """The column that should hold the ids, going by names alone."""
    names = [str(name) for name in table.columns]
    if sample is not None and str(sample.columns[0]) in names:
        return str(sample.columns[0])
    found = [name for name in names if _speaks(name) and not column(table, name).constant]
    return max(found, key=lambda name: table[name].nunique(), default=names[0])


def find_id(name: str, table: pd.DataFrame, files: Files, sample: pd.DataFrame | None, draft: Draft) -> str:
    """The column of a table that holds the ids; UserError where the user named one that is not there."""
    given = draft.given.get("data.id")
    if given and given not in table.columns:
        raise UserError(f"data.id={given}, but {name} has the columns {some(table.columns, 20)}")
    return str(given or _best(table, files, sample)[0])


def find_image(
    name: str, tables: dict[str, pd.DataFrame], files: Files, sample: str, draft: Draft, parted: pd.DataFrame | None
) -> tuple[str, str]:
    """The columns of the ids and of the images' names of the training table, where these are two; else two blanks.

    The sample's ids are then no images, and another table with both columns says which images they are, or the other
    rows of the same one, parted.
    """
    table, asked = tables[name], tables.get(sample)
    first = str(draft.given.get("data.id") or ("" if asked is None else asked.columns[0]))
    given = draft.given.get("data.image", "")
    if given and given not in table.columns:
        raise UserError(f"data.image={given}, but {name} has the columns {some(table.columns, 20)}")
    image, share = (given, 1.0) if given else _best(table, files, None)
    if given and first in table.columns:
        return first, given
    if first in ("", image) or first not in table.columns or share < COVERED or not table[first].is_unique:
        return "", ""
    wanted = set() if asked is None else set(asked.iloc[:, 0])
    others = [
        other for key, other in tables.items() if key not in (name, sample) and {first, image} <= {*other.columns}
    ]
    told = any(wanted <= set(other[first]) for other in [*others, *([] if parted is None else [parted])])
    return (first, image) if told and files.share(table[first].tolist()) <= FEW else ("", "")


def class_folders(files: Files) -> str | None:
    """The folder whose folders are the classes: the training one, or the competition's own; None if there is none."""
    folders = files.folders("train")
    named = [name for name in folders if hint(name, "train") == 1]
    plain = [name for name in folders if hint(name, "train") == 0 and "/" not in name]
    for place in named + [""] + plain * (len(plain) == 1):
        inside = files.inside(place)
        classes = {name.partition("/")[0] for name in inside}
        deep = len(classes) > 1 and all("/" in name for name in inside)
        if deep and (place in named or {hint(name, "train") for name in classes} == {0}):
            return place or "."
    return None


def named_classes(files: Files, draft: Draft) -> tuple[str, str] | None:
    """The folder of training images whose names tell their class, ``cat.12.jpg``, and data.named; None if none is."""
    folders = [name for name in files.folders("train") if hint(name, "train") >= 0]
    given = draft.given.get("data.named")
    if given:
        classes_of([], given)  # a pattern that is none ends here
    for place in [draft.given["data.train_images"]] if "data.train_images" in draft.given else [*folders, ""]:
        inside = files.inside(place)
        for pattern in [given] if given else [f"{{label}}{mark}{{number}}" for mark in NAME_MARKS]:
            try:
                counts = Counter(classes_of(inside, pattern))
            except UserError:
                continue
            spoken = not any(set(words(label)) & LABELLESS for label in counts)
            if given or (len(counts) > 1 and min(counts.values()) > 1 and spoken):
                return place, pattern
    return None
