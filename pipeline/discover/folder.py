"""What lies in a competition's folder: its images, its tables, and what is neither."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pipeline import json_tables
from pipeline.artefacts import shown
from pipeline.errors import UserError, some
from pipeline.files import find
from pipeline.patterns import is_image, without_suffix
from pipeline.tables import read_table
from pipeline.texts import TABLES, is_secret

PLAIN = {
    "", ".csv", ".db", ".doc", ".docx", ".gz", ".h5", ".hdf5", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log",
    ".md", ".npz", ".parquet", ".pdf", ".pkl", ".py", ".rst", ".rtf", ".tar", ".tfrec", ".tfrecord", ".tgz", ".tsv",
    ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip", ".7z", ".feather", ".mp4", ".avi", ".wav",
}  # fmt: skip
CONTAINERS = {".npz", ".parquet", ".h5", ".hdf5", ".tfrec", ".tfrecord", ".bson", ".pkl", ".json", ".feather"}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\x93NUMPY", b"P5", b"P6")
MOST_TABLES = 40
LARGEST_TABLE, LARGEST_JSON = 2**29, 2**28  # bytes; JSON takes several times its size in memory
NEEDED = re.compile("train|test|label|target|sample|sub", re.IGNORECASE)  # names of tables that must be sound
DEPTH = 4


@dataclass(frozen=True)
class Folder:
    """One folder: images and tables by their names relative to path, ``train.zip/a.png`` for what lies in a zip.

    others: how many files of each other suffix. members: all that zips hold. notes: what was left aside, and why.
    """

    path: Path
    images: list[str]
    tables: dict[str, pd.DataFrame]
    others: Counter[str] = field(default_factory=Counter)
    members: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan(path: Path) -> Folder:
    """List the images and read the tables; UserError for a folder without images and for a table that is unreadable."""
    path = descend(path)
    place = find(path, "")
    names = [*place.files, *place.members]
    images = sorted(name for name in names if _is_picture(path, name))
    others = Counter(os.path.splitext(name)[1].lower() for name in set(names) - set(images))
    if not images:
        raise UserError(_no_images(path, names, others))
    notes = list(place.notes)
    return Folder(path, images, _read_tables(path, _tables(names, images), notes), others, place.members, notes)


def descend(path: Path) -> Path:
    """The folder that holds the tables or the images, where the given one holds nothing but a folder with them."""
    for _ in range(DEPTH):
        if not path.is_dir():
            raise UserError(f"{shown(path)} is no folder; unzip the competition's download there and give data=DIR")
        inside = [entry for entry in os.scandir(path) if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        folders = [entry for entry in inside if entry.is_dir()]
        telling = [entry for entry in inside if entry.is_file() and not _says_nothing(entry.name)]
        if len(folders) != 1 or telling or _holds_pictures(Path(folders[0].path)):
            return path
        path = path / folders[0].name
    return path


def top(name: str) -> str:
    """The folder a file lies in, "" for none; a zip counts as a folder."""
    return name.rpartition("/")[0]


# --- images -------------------------------------------------------------------------------------------------------


def _is_picture(path: Path, name: str) -> bool:
    if is_image(name):
        return True
    suffix = os.path.splitext(name)[1].lower()
    if suffix in PLAIN - {""} or "/" not in name:  # a file without suffix beside the tables is a note or a licence
        return False
    try:
        with open(path / name, "rb") as handle:
            return handle.read(8).startswith(MAGIC)
    except OSError:
        return False


def _holds_pictures(path: Path) -> bool:
    return any(is_image(entry.name) for entry in os.scandir(path))


def _says_nothing(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in {".md", ".txt", ".pdf", ".html", ""}


def _no_images(path: Path, files: list[str], others: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(6))
    holds = f"{len(files)} files ({kinds})" if files else "nothing"
    zips = [name for name in files if name.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz", ".7z"))]
    packed = [suffix for suffix, _ in others.most_common() if suffix in CONTAINERS]
    first = "give data=DIR, the folder into which the download was unzipped"
    if zips:
        first = f"unpack {zips[0]} first"
    elif packed:
        first = f"images inside of {some(packed)} files are not read: write each as a file, such as a png"
    return f"{shown(path)} holds no images, but {holds}; {first}"


# --- tables -------------------------------------------------------------------------------------------------------


def is_json(name: str) -> bool:
    """Whether a table is JSON, which stands behind csv where both say the same."""
    return name.lower().endswith(json_tables.SUFFIXES)


def _tables(names: list[str], images: list[str]) -> list[str]:
    """The tables among the files; a zip named like a csv is one, JSON with an image's own name is none."""
    heads = [name[: name.lower().index(".csv.zip/") + len(".csv.zip")] for name in names if ".csv.zip/" in name.lower()]
    found = {name for name in names if name.lower().endswith(TABLES) and ".zip/" not in name.lower()} | set(heads)
    stems = {without_suffix(image.rpartition("/")[2]) for image in images}
    own = {name for name in found if is_json(name) and name.rpartition("/")[2].rpartition(".")[0] in stems}
    return sorted(name for name in found - own if not is_secret(name))


def _read_tables(path: Path, names: list[str], notes: list[str]) -> dict[str, pd.DataFrame]:
    tables: dict[str, pd.DataFrame] = {}
    odd: list[str] = []  # what is said of JSON that is no table
    for name in _few(names, notes):
        if name.lower().endswith((".zip", ".gz")) and name.rpartition(".")[0] in names:
            continue  # the table was unpacked beside itself
        limit = LARGEST_JSON if is_json(name) else LARGEST_TABLE
        if (path / name).stat().st_size > limit:
            notes.append(f"{name} is not read: over {limit / 1e6:.0f} MB")
            continue
        try:
            table = read_table(path / name, empty=True)
        except UserError as fault:
            if is_json(name):
                odd.append(str(fault))
            elif NEEDED.search(name.rpartition("/")[2]):
                raise
            else:
                notes.append(f"not read: {fault}")
            continue
        if table.empty:
            notes.append(f"{name} has a header and no rows")
        if not table.empty or "sub" in name.lower():
            tables[name] = table
    if odd:
        notes.append(f"not read: {odd[0]}" + (f"; {len(odd) - 1} more .json neither" if len(odd) > 1 else ""))
    return tables


def _few(names: list[str], notes: list[str]) -> list[str]:
    """The tables without those of folders that hold too many of one kind: they are no tables of rows."""
    places = Counter((top(name), is_json(name)) for name in names)
    for (place, json), count in places.items():
        if count > MOST_TABLES:
            kind = "json" if json else "csv"
            notes.append(f"{count} {kind} files in {place or '.'} are not read: too many to be tables of rows")
    return [name for name in names if places[top(name), is_json(name)] <= MOST_TABLES]


def listed(names: list[str], limit: int = 5) -> str:
    """A few names spread over a long list, the first and the last among them."""
    if len(names) <= limit:
        return ", ".join(names)
    places = [round(step * (len(names) - 1) / (limit - 1)) for step in range(limit)]
    return some([names[place] for place in places])
