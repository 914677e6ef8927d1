"""What a table's file says, as text: encodings, line ends, separators, zips, and JSON beside csv."""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import re
import warnings
import zipfile
import zlib
from pathlib import Path

import pandas as pd

from pipeline import json_tables
from pipeline.console import warn
from pipeline.errors import UserError, some

SUFFIXES = (".csv", ".tsv", ".csv.zip", ".csv.gz", ".tsv.zip")  # of tables that are no JSON
TABLES = (*SUFFIXES, *json_tables.SUFFIXES)
SECRET = "solution"  # in the name of what only stage=score may read
SEPARATORS = ";\t|"  # looked for where the header has no comma
SNIFFED_LINES = 50
DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?(e[+-]?\d+)?", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a table may hold the answers to the test rows; ``training_solutions.csv`` does not."""
    base = name.replace("\\", "/").rpartition("/")[2].lower()
    return SECRET in base and "train" not in base


def read(path: Path, name: str) -> str:
    """The text of a table, unpacked and decoded; UserError where it cannot be read or is empty. name: for messages.

    UTF-8 and UTF-16 with or without byte order mark, else Windows' western encoding, which a warning says.
    """
    text = _text(_content(path, name), name)
    if not text.strip():
        raise UserError(f"{name} is empty (0 bytes or blank); unpack or download it again")
    return text


def frame(text: str, name: str) -> pd.DataFrame:
    """A table's text as a frame of texts; missing cells of short rows are empty. UserError for what is none."""
    return _json(text, name) if name.lower().endswith(json_tables.SUFFIXES) else _parse(text, name)


def _content(path: Path, name: str) -> bytes:
    """The bytes of the csv, unpacked where it lies in a zip or gz."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return archive.read(_member(archive, path.stem, name))
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as fault:
        raise UserError(f"{name} cannot be read: {fault}; unpack or download it again") from fault
    return data


def _member(archive: zipfile.ZipFile, stem: str, name: str) -> str:
    """The csv in a zip: the only one, or the one of the zip's own name."""
    there = [member for member in archive.namelist() if member.lower().endswith((".csv", ".tsv", ".txt"))]
    there = [member for member in there if not member.rpartition("/")[2].startswith(".") and "__MACOSX" not in member]
    own = [member for member in there if member.rpartition("/")[2] in (stem, f"{stem}.csv")]
    if len(own or there) != 1:
        raise UserError(f"{name} holds {len(there)} csv files, not one: {some(there)}; unpack it")
    return (own or there)[0]


def _text(data: bytes, name: str) -> str:
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark) and (encoding == "utf-8-sig" or b"\0" in data[:200] or not data[2:]):
            return _decoded(data, encoding, name)
    if data[1:200:2].count(0) > 50 or data[:200:2].count(0) > 50:
        return _decoded(data, "utf-16-le" if data[1:200:2].count(0) > 50 else "utf-16-be", name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        warn_once(
            f"{name} is not UTF-8 (line {line}): read in Windows' western encoding; save it as UTF-8 if it is not"
        )
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _decoded(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as fault:
        raise UserError(f"{name} cannot be read as {encoding}: {fault}; save it as UTF-8") from fault


def _parse(text: str, name: str) -> pd.DataFrame:
    mark = separator(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(io.StringIO(text), sep=mark, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, ValueError) as fault:
        raise UserError(f"{name} cannot be read as a csv: {str(fault).strip()}; mend or download it again") from fault
    return _with_points(frame, name) if mark == ";" else frame


def _json(text: str, name: str) -> pd.DataFrame:
    try:
        return json_tables.parse(text, lines=name.lower().endswith(".jsonl"))
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{name} is no table: {fault}; write a csv with a row an image") from fault


def separator(text: str) -> str:
    """The comma, unless the header has none and another character stands equally often in each of the first lines."""
    lines = [line for line in text[: 2**20].splitlines() if line.strip()][:SNIFFED_LINES]
    if "," in lines[0]:
        return ","
    found = [mark for mark in SEPARATORS if mark in lines[0] and len({line.count(mark) for line in lines}) == 1]
    return max(found, key=lines[0].count, default=",")


def _with_points(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Numbers with decimal commas, as they stand in semicolon files, with points."""
    for column in frame.columns:
        cells = frame[column]
        filled = cells[cells.str.strip() != ""]
        if filled.str.contains(",", regex=False).any() and filled.str.fullmatch(DECIMAL_COMMA).all():
            warn_once(f"{name}: the decimal commas of column {column} are read as points")
            frame[column] = cells.str.replace(",", ".", regex=False)
    return frame


@functools.cache
def warn_once(text: str) -> None:
    """A warning that several stages of one process would repeat."""
    warn(text)
