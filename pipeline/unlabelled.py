"""Images nobody labelled (``data.unlabelled``): a folder in data.folder, or a pattern of paths in it.

They are told from the rows of the tables by their files, so that ``data.unlabelled=train_images`` means those of the
training images that no table names. No label of any fold is known of them.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Sequence
from fnmatch import translate
from pathlib import Path

import pandas as pd

from pipeline import files
from pipeline.artefacts import shown
from pipeline.config import Data
from pipeline.errors import UserError, some
from pipeline.files import JOIN
from pipeline.patterns import checked, is_image


def base(data: Data) -> str:
    """The folder of data.unlabelled below data.folder: of a pattern, what stands before its first * ? or [."""
    plain = re.split(r"[*?[]", data.unlabelled, maxsplit=1)[0]
    return plain if plain == data.unlabelled else plain.rpartition("/")[0]


def rows(folder: Path, data: Data, train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """id and file of each image of data.unlabelled that neither table names, sorted; none where the key is empty.

    An id is the path from data.folder, or its part that means {id} where data.files joins several files to an image; a
    file is a spec as of ``files.resolve``. A pattern's * stands for folders, too. UserError where there is nothing of
    that name, no image, or none that is no row of a table, and where an id is also that of a row.
    """
    if not data.unlabelled:
        return pd.DataFrame({"id": [], "file": []}, dtype=str)
    images = _images(folder, data)
    named = {file for spec in [*train["file"], *test["file"]] for file in files.parts(spec)[0]}
    found = {name: spec for name, spec in images.items() if not named & set(spec.split(JOIN))}
    if images and not found:
        raise UserError(
            f"data.unlabelled={data.unlabelled}, but each of its {len(images)} images is a training or test row; name "
            "a folder that holds others, or leave it out"
        )
    both = sorted(found.keys() & {*train["id"], *test["id"]})
    if both:
        raise UserError(
            f"{len(both)} images of data.unlabelled={data.unlabelled} are called like rows of the tables: "
            f"{some(both)}; rename their folder"
        )
    return pd.DataFrame(sorted(found.items()), columns=["id", "file"], dtype=str)


def digest(folder: Path, table: pd.DataFrame) -> str:
    """A fingerprint of the names and sizes of these images, for what learns from them."""
    return files.listing(folder, table["file"].tolist())


def _images(folder: Path, data: Data) -> dict[str, str]:
    """The spec of each image by its id."""
    place = files.find(folder, base(data))
    paths = [place.prefix + file for file in [*place.files, *place.members]]
    if base(data) != data.unlabelled:
        fits = re.compile(translate(data.unlabelled)).match
        paths = [path for path in paths if fits(path)]
    found = _joined(paths, data.files) if len(data.files) > 1 else {path: path for path in paths if is_image(path)}
    if not found:
        called = f" whose files are called {some(data.files)} (data.files)" if len(data.files) > 1 else ""
        raise UserError(
            f"data.unlabelled={data.unlabelled} names no image{called} in {shown(folder)}: {shown(place.path)} holds "
            f"{len(place.files) + len(place.members):,} files; give a folder of images in data.folder, or a pattern "
            "such as more/*.png"
        )
    return found


def _joined(paths: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    """The spec of each image of several files by its id, as data.files calls them, unless one of them is missing."""
    columns = []
    for pattern in checked(patterns):
        fits = re.compile(_reversed(pattern)).fullmatch
        met = ((path, fits(path)) for path in paths)
        columns.append({(match["folder"] or "") + match["id"]: path for path, match in met if match})
    whole = [name for name in columns[0] if all(name in column for column in columns)]
    return {name: JOIN.join(column[name] for column in columns) for name in whole}


def _reversed(pattern: str) -> str:
    """A pattern of data.files as a regular expression of paths; its suffix may be left out there."""
    pieces = [(re.escape(text), name) for text, name, _, _ in string.Formatter().parse(pattern)]
    once = itertools.chain(["(?P<id>[^/]+)"], itertools.repeat("(?P=id)"))
    text = "".join(literal + (next(once) if name else "") for literal, name in pieces)
    return f"(?P<folder>(?:.*/)?){text}" + ("" if is_image(pattern) else r"(?:\.\w+)?")
