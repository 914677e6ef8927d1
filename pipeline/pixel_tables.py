"""Images that stand in tables, a row of pixels each: which columns they are, and how their rows become files.

Two forms are known: a column for each pixel (``label,pixel0,…,pixel783``) and one column with all of them, blanks
between (``emotion,pixels``).
"""

from __future__ import annotations

import csv
import math
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.errors import UserError, some

SUFFIXES = (".csv", ".csv.zip", ".csv.gz")
FEWEST = 64  # pixels of an image: fewer numbers are something else
NUMBER = re.compile(r"\d+")
CELL = re.compile(r"\s*[\d.]+(?:[\s,]+[\d.]+){63,}\s*")  # FEWEST numbers or more
CELLS = 2**22  # pixels that are read at a time
SECRET = "solution"  # which only stage=score may read
IDS = {"id", "imageid", "image_id", "image id", "image", "img_id", "index"}
SAMPLES = ("sample", "submission")
IMAGES = "_images.zip"  # behind a table's name
RECORD = "made.json"  # beside the files: how they were made
AGAIN = "download it again"

Shape = tuple[int, ...]  # height, width; and 3 for colours


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of a table stand. columns: one for each pixel in the order of their numbers, or a single one.

    rest: the other columns, in their order. head: (rows, count) float64, the pixels of the first rows.
    """

    path: Path
    columns: list[str]
    rest: list[str]
    head: np.ndarray

    @property
    def count(self) -> int:
        """Numbers an image."""
        return int(self.head.shape[1])


# --- finding them -------------------------------------------------------------------------------------------------


def find(folder: Path) -> dict[str, Pixels]:
    """The tables with pixels at the top of a folder, by the names of their files; none where there are none."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.lower().endswith(SUFFIXES) and SECRET not in path.name.lower():
            pixels = look(path)
            if pixels:
                found[path.name] = pixels
    return found


def look(path: Path, rows: int = 200) -> Pixels | None:
    """The pixels of a table, by its header and its first rows; None if it holds none, or cannot be read."""
    try:
        head = pd.read_csv(path, nrows=rows, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, OSError, zipfile.BadZipFile):
        return None
    if head.empty:
        return None
    for columns in (_numbered(head), _written_out(head)):
        values = _numbers(head, columns) if columns else None
        if values is not None and values.shape[1] >= FEWEST and values.min() >= 0:
            return Pixels(path, columns, [name for name in head.columns if name not in set(columns)], values)
    return None


def _numbered(head: pd.DataFrame) -> list[str]:
    """The largest group of columns that differ in their numbers alone, in the order of these: pixel0, 1x1."""
    groups: dict[str, list[str]] = {}
    for name in head.columns:
        groups.setdefault(NUMBER.sub("#", name), []).append(name)
    groups.pop("#.#", None)  # what pandas makes of repeated numbers, so of a table without a header
    largest = max((names for form, names in groups.items() if "#" in form), key=len, default=[])
    return sorted(largest, key=lambda name: [int(number) for number in NUMBER.findall(name)])


def _written_out(head: pd.DataFrame) -> list[str]:
    """The column whose cells are lists of numbers, if there is one."""
    return [name for name in head.columns if head[name].map(lambda cell: bool(CELL.fullmatch(cell))).all()][:1]


def _numbers(frame: pd.DataFrame, columns: list[str]) -> np.ndarray | None:
    """(N, pixels) float64 of a frame's columns; None where a cell is no number, or rows differ in their number."""
    try:
        if len(columns) > 1:
            values = frame[columns].to_numpy(dtype=np.float64)
        else:
            values = np.array([cell.replace(",", " ").split() for cell in frame[columns[0]]], dtype=np.float64)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


# --- what they mean -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a row is an image. shape: (height, width), or (height, width, 3).

    planes: colours stand one plane behind the other, not pixel by pixel. white: the value that is white.
    """

    shape: Shape
    planes: bool = False
    white: float = 255.0

    def images(self, values: np.ndarray) -> np.ndarray:
        """(N, pixels) numbers → (N, *shape) uint8, 255 for white."""
        scaled = np.rint(np.asarray(values, dtype=np.float64) * (255 / self.white)).astype(np.uint8)
        if not self.planes:
            return scaled.reshape(-1, *self.shape)
        height, width, colours = self.shape
        return scaled.reshape(-1, colours, height, width).transpose(0, 2, 3, 1)


def layout(tables: list[Pixels]) -> Layout | None:
    """The layout of tables with as many pixels a row; None where no shape fits.

    Squares are taken as such. Of other shapes, and of planes against pixels, that one is taken under which
    neighbours are most alike. White is 255, or the power of two over the first rows' largest number, up to 128.
    """
    head = np.concatenate([table.head for table in tables])
    high, shapes = float(head.max()), _shapes(tables[0].count)
    if high > 255 or not shapes:
        return None
    white = 255.0 if high > 128 else 2.0 ** max(0, math.ceil(math.log2(max(high, 1))))
    return min((Layout(*shape, white) for shape in shapes), key=lambda one: _roughness(head, one))


def _shapes(count: int) -> list[tuple[Shape, bool]]:
    """Shapes that so many numbers may have, each with whether colours stand in planes."""
    side = round(count**0.5)
    if side * side == count:
        return [((side, side), False)]
    side = round((count / 3) ** 0.5)
    if 3 * side * side == count:
        return [((side, side, 3), False), ((side, side, 3), True)]
    heights = [height for height in range(8, count // 8 + 1) if count % height == 0]
    return [((height, count // height), False) for height in heights if 1 / 3 <= count / height**2 <= 3]


def _roughness(values: np.ndarray, layout: Layout) -> float:
    """How much pixels differ from their neighbours, to the right and below."""
    images = layout.images(values).astype(np.float64)
    return float(np.abs(np.diff(images, axis=1)).mean() + np.abs(np.diff(images, axis=2)).mean())


# --- making them files --------------------------------------------------------------------------------------------


def write(source: Path, folder: Path, layout: Layout) -> None:
    """Write a folder as most competitions are shipped: ``NAME_images.zip`` with PNGs, and NAME.csv without pixels.

    A table without ids gets some: those of the sample submission where it has as many rows and no column that the
    sample asks for, else ``NAME_0001`` with the row's number. Other files at the top of source are copied. Raises
    UserError for a source without pixels, for pixels of another number, outside of 0 … white or missing.
    """
    tables = find(source)
    if not tables:
        raise UserError(f"{source} holds no table of pixels; unzip the competition's download there")
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in tables and not path.name.startswith("."):
            shutil.copy(path, folder / path.name)
    sample = _sample(source, set(tables))
    for pixels in tables.values():
        _write_table(pixels, folder, layout, sample)


def made_of(file: str) -> str:
    """The table whose pixels became a file of ``write``; other names stay."""
    return f"{file.removesuffix(IMAGES)}.csv" if file.endswith(IMAGES) else file


def _sample(source: Path, taken: set[str]) -> pd.DataFrame | None:
    """The sample submission, if there is one."""
    names = sorted(path.name for path in source.iterdir() if path.name.lower().endswith(SUFFIXES))
    named = [name for name in names if name not in taken and any(word in name.lower() for word in SAMPLES)]
    return pd.read_csv(source / named[0], dtype=str, keep_default_na=False, index_col=False) if named else None


def _write_table(pixels: Pixels, folder: Path, layout: Layout, sample: pd.DataFrame | None) -> None:
    stem = pixels.path.name[: pixels.path.name.lower().index(".csv")]
    column = _id_column(pixels, sample)
    asked = [] if column else _asked_ids(pixels, sample)
    called = column or ("id" if sample is None else str(sample.columns[0]))
    tables, ids, place = [], list[str](), pixels.path.name
    with zipfile.ZipFile(folder / f"{stem}{IMAGES}", "w") as archive:
        for frame in _chunks(pixels):
            own = frame[column].tolist() if column else _made_ids(stem, asked, len(ids), len(frame), place)
            _write_images(archive, own, _checked(pixels, frame, layout, len(ids)), layout)
            tables.append(frame[pixels.rest].assign(**{called: own})[[called, *_others(pixels, column)]])
            ids += own
    if asked and len(ids) != len(asked):
        raise UserError(f"{place} has {len(ids)} rows without ids, the sample submission {len(asked)}; {AGAIN}")
    if _others(pixels, column):
        pd.concat(tables).to_csv(folder / f"{stem}.csv", index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")


def _others(pixels: Pixels, column: str) -> list[str]:
    return [name for name in pixels.rest if name != column]


def _id_column(pixels: Pixels, sample: pd.DataFrame | None) -> str:
    """The column that holds a table's ids; "" if none does."""
    named = {str(sample.columns[0]).casefold()} if sample is not None else set()
    return next((name for name in pixels.rest if name.casefold() in named | IDS), "")


def _asked_ids(pixels: Pixels, sample: pd.DataFrame | None) -> list[str]:
    """The sample's ids, where a table without ids should be the rows that it asks for: it does not hold the answers."""
    if sample is None:
        return []
    answers = {str(name).casefold() for name in sample.columns[1:]}
    return [] if answers & {name.casefold() for name in pixels.rest} else sample.iloc[:, 0].tolist()


def _made_ids(stem: str, asked: list[str], start: int, count: int, place: str) -> list[str]:
    if not asked:
        return [f"{stem}_{row + 1:06d}" for row in range(start, start + count)]
    if start + count > len(asked):
        raise UserError(f"{place} has more rows, without ids, than the {len(asked)} of the sample submission; {AGAIN}")
    return asked[start : start + count]


def _chunks(pixels: Pixels) -> Iterator[pd.DataFrame]:
    """The table some rows at a time: pixels as numbers where they have columns of their own, the rest as text."""
    text = pixels.rest if len(pixels.columns) > 1 else [*pixels.rest, *pixels.columns]
    try:
        yield from pd.read_csv(
            pixels.path, dtype=dict.fromkeys(text, str), keep_default_na=False, index_col=False,
            chunksize=max(1, CELLS // pixels.count),
        )  # fmt: skip
    except (ValueError, OSError, zipfile.BadZipFile) as fault:
        raise UserError(f"{pixels.path.name} cannot be read as a csv: {str(fault).strip()}; {AGAIN}") from fault


def _checked(pixels: Pixels, frame: pd.DataFrame, layout: Layout, before: int) -> np.ndarray:
    """(N, pixels) of some rows; UserError where they are not as the layout says."""
    where = f"{pixels.path.name}, rows {before + 1} to {before + len(frame)}"
    values = _numbers(frame, pixels.columns)
    if values is None:
        raise UserError(f"{where}: cells without a number, or rows of other lengths; {AGAIN}")
    if values.shape[1] != int(np.prod(layout.shape)):
        shape = "×".join(map(str, layout.shape))
        raise UserError(f"{where}: {values.shape[1]} pixels, but shape={shape} has {np.prod(layout.shape)}; correct it")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > layout.white:
        raise UserError(
            f"{where}: pixels from {low:g} to {high:g}, but 0 to white={layout.white:g}; set white={high:g}"
        )
    return values


def _write_images(archive: zipfile.ZipFile, ids: list[str], values: np.ndarray, layout: Layout) -> None:
    odd = [name for name in ids if not name or "/" in name or "\\" in name or name.startswith(".")]
    if odd:
        raise UserError(f"ids that cannot be a file's name: {some(odd)}; rename them in the tables")
    there = {*archive.namelist()}
    twice = [name for name, count in Counter(ids).items() if count > 1 or f"{name}.png" in there]
    if twice:
        raise UserError(f"ids that stand twice: {some(twice)}; leave one row of each")
    for name, image in zip(ids, layout.images(values), strict=True):
        pixels = image[..., ::-1] if image.ndim == 3 else image  # OpenCV writes blue first
        archive.writestr(zipfile.ZipInfo(f"{name}.png"), cv2.imencode(".png", pixels)[1].tobytes())
