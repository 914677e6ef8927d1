"""Images that stand in tables, a row of pixels each: which columns they are, and how their rows become files.

Two forms are known: a column for each pixel (``label,pixel0,…,pixel783``) and one column with all of them, blanks
between (``emotion,pixels``).
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline import texts
from pipeline.errors import UserError, some

FEWEST = 64  # pixels of an image: fewer numbers are something else
LOOKED = 200  # rows of a table
WHOLE = 0.9  # of these that must be numbers; what is wrong with the others is said when they are written
NUMBER = re.compile(r"\d+")
ONE = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
CELL = re.compile(rf"\s*\[?\s*{ONE}(?:[\s,;]+{ONE}){{{FEWEST - 1},}}\s*\]?\s*")
COLOURS = (("r", "g", "b"), ("red", "green", "blue"))
SPEAKING = ("pix", "px", "img", "image", "intensity", "grey", "gray")  # in the names of columns of fractions
BARE = ("", "x", "p")  # what is left of 0, 1x1 and p0 without their numbers
CELLS = 2**22  # pixels that are written at a time
IDS = {"id", "imageid", "image_id", "image id", "image", "img_id", "index"}
SAMPLES = ("sample", "submission")
IMAGES = "_images.zip"  # behind a table's name
RECORD = ".made.json"  # beside the files: how they were made, and of what
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

    @property
    def says_test(self) -> bool:
        """Whether the table's name says that it is the test set."""
        return "test" in self.path.name.lower()


# --- finding them -------------------------------------------------------------------------------------------------


def find(folder: Path) -> dict[str, Pixels]:
    """The tables with pixels at the top of a folder, by the names of their files; none where there are none."""
    found = {path.name: look(path) for path in _tables(folder) if not _is_sample(path.name)}
    return {name: pixels for name, pixels in found.items() if pixels}


def _tables(folder: Path) -> list[Path]:
    """The csv files at the top of a folder, without the solution, and packed ones where they were not unpacked."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(texts.SUFFIXES)]
    names = {path.name for path in found}
    unpacked = [path for path in found if path.suffix.lower() in (".zip", ".gz") and path.stem in names]
    return [path for path in found if path not in unpacked and not texts.is_secret(path.name)]


def _is_sample(name: str) -> bool:
    return any(word in name.lower() for word in SAMPLES)


def look(path: Path) -> Pixels | None:
    """The pixels of a table, by its header and its first rows; None if it holds none, or cannot be read."""
    try:
        text = texts.read(path, path.name)
        head = pd.read_csv(
            io.StringIO(text), sep=texts.separator(text), nrows=LOOKED, dtype=str, keep_default_na=False,
            index_col=False, on_bad_lines="skip",
        )  # fmt: skip
    except (UserError, ValueError):
        return None
    for columns in (_numbered(list(head.columns)), _written_out(head)):
        values = _most(head, columns) if columns else None
        if values is not None and values.shape[1] >= FEWEST and _are_pixels(values, columns):
            return Pixels(path, columns, [name for name in head.columns if name not in set(columns)], values)
    return None


def _most(head: pd.DataFrame, columns: list[str]) -> np.ndarray | None:
    """(N, pixels) float64 of the rows that are whole and of the usual length, if these are most of them."""
    if len(columns) > 1:
        values = head[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        found = values[np.isfinite(values).all(axis=1)]
    else:
        rows = [_split(cell) for cell in head[columns[0]] if CELL.fullmatch(cell)]
        usual = Counter(map(len, rows)).most_common(1)
        found = np.array([row for row in rows if usual and len(row) == usual[0][0]], dtype=np.float64)
    return found if len(found) and len(found) >= WHOLE * len(head) else None


def _numbered(names: Sequence[str]) -> list[str]:
    """The largest group of columns that differ in their numbers alone, in the order of these: pixel0, 1x1.

    Three groups of one size are colours, where their names say so: r0 …, g0 …, b0 …. Else none can be told from others.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(NUMBER.sub("#", name), []).append(name)
    groups.pop("#.#", None)  # what pandas makes of repeated numbers, so of a table without a header
    sizes = {form: len(found) for form, found in groups.items() if "#" in form}
    largest = [form for form in sizes if sizes[form] == max(sizes.values())]
    if len(largest) == 3:
        stems = {_stem(form): form for form in largest}
        largest = next(([stems[one] for one in colours] for colours in COLOURS if {*colours} == {*stems}), [])
    elif len(largest) != 1:
        return []
    return [name for form in largest for name in sorted(groups[form], key=_places)]


def _places(name: str) -> list[int]:
    return [int(number) for number in NUMBER.findall(name)]


def _stem(name: str) -> str:
    """A column's name without its numbers and what stands around them."""
    return re.sub(r"[\d#_\-. ]", "", name).lower()


def _written_out(head: pd.DataFrame) -> list[str]:
    """The column whose cells are lists of numbers, if there is one."""
    shares = {name: head[name].map(lambda cell: bool(CELL.fullmatch(cell))).mean() for name in head.columns}
    return [name for name, share in shares.items() if share >= WHOLE][:1]


def _split(cell: str) -> list[str]:
    return re.split(r"[\s,;]+", cell.strip("[] \t\n"))


def _numbers(frame: pd.DataFrame, columns: list[str]) -> np.ndarray | None:
    """(N, pixels) float64 of a frame's columns; None where a cell is no number, or rows differ in their number."""
    try:
        if len(columns) > 1:
            values = frame[columns].to_numpy(dtype=np.float64)
        else:
            values = np.array([_split(cell) for cell in frame[columns[0]]], dtype=np.float64)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _are_pixels(values: np.ndarray, columns: list[str]) -> bool:
    """Whether numbers may be pixels: none is negative, and fractions have names that say so."""
    if values.min() < 0:
        return False
    stem = _stem(columns[0])
    speaks = len(columns) == 1 or stem in (*BARE, "r", "red") or any(word in stem for word in SPEAKING)
    return speaks or bool((values == np.rint(values)).all())


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

    A table without ids gets some: the test table those of the sample submission, others ``NAME_000001`` with the row's
    number. Other tables at the top of source are copied. Raises UserError for a source without pixels, for pixels of
    another number, outside of 0 … white or missing, and for ids that stand twice or are no file's name.
    """
    tables = find(source)
    if not tables:
        raise UserError(f"{source} holds no table of pixels; unzip the competition's download there")
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.lower().endswith(texts.TABLES) and path.name not in tables:
            shutil.copy(path, folder / path.name)
    sample = _sample(source)
    asked = _asking(tables, sample)
    for name, pixels in tables.items():
        _write_table(pixels, folder, layout, sample, name == asked)


def state(source: Path) -> dict[str, str]:
    """Digests of the tables at the top of a folder by their names."""
    return {path.name: hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in _tables(source)}


def made_of(file: str) -> str:
    """The table whose pixels became a file of ``write``; other names stay."""
    return f"{file.removesuffix(IMAGES)}.csv" if file.endswith(IMAGES) else file


def _sample(source: Path) -> pd.DataFrame | None:
    """The sample submission, if there is one; of several the one that is called so."""
    named = [path for path in _tables(source) if _is_sample(path.name)]
    best = max(named, key=lambda path: ("sample" in path.name.lower(), path.name), default=None)
    return texts.frame(texts.read(best, best.name), best.name) if best else None


def _asking(tables: dict[str, Pixels], sample: pd.DataFrame | None) -> str:
    """The one table without ids whose rows are those that the sample asks for; "" if there is none.

    It is called a test table, or it lacks columns that another one has; a training table is none.
    """
    if sample is None or any(pixels.says_test and _id_column(pixels, sample) for pixels in tables.values()):
        return ""
    bare = {name: pixels for name, pixels in tables.items() if not _id_column(pixels, sample)}
    tests = [name for name, pixels in bare.items() if pixels.says_test]
    others = [name for name in bare if "train" not in name.lower()]
    lacking = [name for name in others if any({*one.rest} > {*bare[name].rest} for one in tables.values())]
    return (tests or lacking or [""])[0]


def _write_table(pixels: Pixels, folder: Path, layout: Layout, sample: pd.DataFrame | None, is_asked: bool) -> None:
    name = pixels.path.name
    stem, column = name[: name.lower().rindex(".csv" if ".csv" in name.lower() else ".tsv")], _id_column(pixels, sample)
    asked = sample.iloc[:, 0].tolist() if is_asked and sample is not None else []
    called = column or ("id" if sample is None else str(sample.columns[0]))
    tables, ids = [], list[str]()
    with zipfile.ZipFile(folder / f"{stem}{IMAGES}", "w") as archive:
        for frame in _chunks(pixels):
            own = frame[column].tolist() if column else _made_ids(stem, asked, len(ids), len(frame), name)
            _write_images(archive, own, _checked(pixels, frame, layout, len(ids)), layout, f"{name}, {called}")
            tables.append(frame[pixels.rest].assign(**{called: own})[[called, *_others(pixels, column)]])
            ids += own
    if asked and len(ids) != len(asked):
        raise UserError(f"{name} has {len(ids)} rows without ids, the sample submission {len(asked)}; {AGAIN}")
    if _others(pixels, column):
        pd.concat(tables).to_csv(folder / f"{stem}.csv", index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")


def _others(pixels: Pixels, column: str) -> list[str]:
    return [name for name in pixels.rest if name != column]


def _id_column(pixels: Pixels, sample: pd.DataFrame | None) -> str:
    """The column that holds a table's ids; "" if none does. A sample of one column has no ids, but answers."""
    named = {str(sample.columns[0]).casefold()} if sample is not None and sample.shape[1] > 1 else set()
    return next((name for name in pixels.rest if name.casefold() in named | IDS), "")


def _made_ids(stem: str, asked: list[str], start: int, count: int, name: str) -> list[str]:
    if not asked:
        return [f"{stem}_{row + 1:06d}" for row in range(start, start + count)]
    if start + count > len(asked):
        raise UserError(f"{name} has more rows, without ids, than the {len(asked)} of the sample submission; {AGAIN}")
    return asked[start : start + count]


def _chunks(pixels: Pixels) -> Iterator[pd.DataFrame]:
    """The table some rows at a time: pixels as numbers where they have columns of their own, the rest as text."""
    text = texts.read(pixels.path, pixels.path.name)
    cells = pixels.rest if len(pixels.columns) > 1 else [*pixels.rest, *pixels.columns]
    try:
        yield from pd.read_csv(
            io.StringIO(text), sep=texts.separator(text), dtype=dict.fromkeys(cells, str), keep_default_na=False,
            index_col=False, chunksize=max(1, CELLS // pixels.count),
        )  # fmt: skip
    except ValueError as fault:
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


def _write_images(archive: zipfile.ZipFile, ids: list[str], values: np.ndarray, layout: Layout, where: str) -> None:
    odd = [name for name in ids if not name or "/" in name or "\\" in name or name.startswith(".")]
    if odd:
        raise UserError(f"{where}: ids that cannot be a file's name: {some(odd)}; rename them in the table")
    there = {*archive.namelist()}
    twice = [name for name, count in Counter(ids).items() if count > 1 or f"{name}.png" in there]
    if twice:
        raise UserError(f"{where}: ids that stand twice: {some(twice)}; leave one row of each")
    for name, image in zip(ids, layout.images(values), strict=True):
        pixels = image[..., ::-1] if image.ndim == 3 else image  # OpenCV writes blue first
        archive.writestr(zipfile.ZipInfo(f"{name}.png"), cv2.imencode(".png", pixels)[1].tobytes())
