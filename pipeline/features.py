"""Side features for level 2: what is known of an image besides its pixels' meaning, as a table of numbers.

They are the columns ``data.features`` of the train and test tables, the columns of the csv files ``data.tables`` that
are joined by the id, and facts of the images: size, bytes, colour. No label is read but to leave out what repeats it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, files, images
from pipeline.artefacts import shown
from pipeline.competition import Competition
from pipeline.config import Config, root
from pipeline.console import progress, say
from pipeline.errors import UserError, nearest, some
from pipeline.hardware import physical_cores
from pipeline.tables import duplicates, read_table

BLANK = ("", "na", "n/a", "nan", "none", "null", "?")  # cells that say nothing, in any case
DISTINCT = 0.5  # a text column with more distinct cells than this share of the rows names rows, and describes none
AT_LEAST = 64  # pixels of the shorter side to which a JPEG may be shrunk before its colours are averaged
COLOURS = {1: ["grey"], 3: ["red", "green", "blue"]}


@dataclass(frozen=True)
class Features:
    """Side features in the order of the competition's rows.

    names: F texts. train: (N, F), test: (M, F) float64, NaN where a cell is blank. categorical: (F,) bool, whether a
    column's numbers are codes of categories, 0 for the most frequent one. fingerprint: changes with any of it.
    """

    names: list[str]
    train: np.ndarray
    test: np.ndarray
    categorical: np.ndarray

    @property
    def fingerprint(self) -> str:
        """A short hash of names and numbers."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (self.train, self.test):
            digest.update(np.ascontiguousarray(part).tobytes())
        return artefacts.fingerprint(self.names, digest.hexdigest())


Column = tuple[str, np.ndarray, np.ndarray, bool]  # name, (N,) and (M,) float64, categorical
Cells = tuple[str, str, np.ndarray, np.ndarray]  # csv of data.tables or "", name, (N,) and (M,) text


def table(config: Config, competition: Competition) -> Features:
    """All side features that vary; kept in ``runs/<competition>/features.npz`` until the data or the keys change.

    Raises UserError for a column or csv that is not there, and for a column that repeats the target or the id.
    """
    path, data = artefacts.runs_folder(config) / "features.npz", config.data
    places = [_place(competition, name) for name in data.tables]
    tables = [artefacts.file_digest(place) for place in places if place.is_file()]
    reading = [data.reader, data.channels, data.megapixels, data.id, data.target]
    print_ = artefacts.fingerprint("features", competition.fingerprint, data.features, data.tables, tables, reading)
    known = _read(path, print_)
    if known is not None:
        return known
    found = [*_columns(config, competition), *_image_facts(config, competition)]
    kept = [column for column in _renamed(found) if _varies(column[1]) and not np.isnan(column[2]).all()]
    count, tests = len(competition.train), len(competition.test)
    features = Features(
        [name for name, *_ in kept],
        np.stack([train for _, train, _, _ in kept], axis=1) if kept else np.zeros((count, 0)),
        np.stack([test for _, _, test, _ in kept], axis=1) if kept else np.zeros((tests, 0)),
        np.array([codes for *_, codes in kept], dtype=bool),
    )
    with artefacts.atomic(path) as handle:
        np.savez_compressed(
            handle, names=np.array(features.names, dtype=np.str_), train=features.train, test=features.test,
            categorical=features.categorical, fingerprint=print_,
        )  # fmt: skip
    say(f"{shown(path)}: {len(kept)} side features: {some(features.names, 12) or 'none varies'}")
    return features


def is_made(name: str) -> bool:
    """Whether a csv of data.tables is one that a stage wrote: it speaks of no test rows but those it knew."""
    return Path(name).parts[:1] == ("runs",) and ".." not in Path(name).parts


def _place(competition: Competition, name: str) -> Path:
    """Where a csv of data.tables lies: in the competition's folder, or below runs/ where a stage wrote it."""
    if is_made(name) and (root() / name).is_file():
        return root() / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"data.tables={name}, but a table lies in data.folder; give a path below it, without ..")
    return competition.folder / name


def _read(path: Path, print_: str) -> Features | None:
    """The stored features if they are of that fingerprint; a damaged file is made anew."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["fingerprint"]) != print_:
                return None
            return Features(content["names"].tolist(), *(content[key] for key in ("train", "test", "categorical")))
    except Exception:  # missing, cut short or foreign
        return None


def _renamed(columns: list[Column]) -> Iterator[Column]:
    """The columns under distinct names."""
    seen: dict[str, int] = {}
    for name, *rest in columns:
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name} ({seen[name]})", *rest)  # type: ignore[misc]


def _varies(train: np.ndarray) -> bool:
    """Whether a column tells training rows apart: by its numbers, or by where it is blank."""
    there = train[~np.isnan(train)]
    return bool(len(there)) and (len(there) < len(train) or bool(there.min() < there.max()))


# --- other test rows ----------------------------------------------------------------------------------------------


def coding(config: Config, competition: Competition) -> list[dict[str, Any]]:
    """What tells the same features of other test rows, for each of ``table``: plain values, in its order.

    name: of the feature. file, column: of its cells; of an image's fact the column is its name, and file is None.
    codes: the cells that are categories, in the order of their numbers; None where cells are numbers.
    """
    wanted, found = table(config, competition).names, []
    for file, name, train, test in _cells(config, competition):
        known = _order(name, train, test)
        if known is not None:
            found.append({"name": name, "file": file, "column": name, "codes": known or None})
    found += [{"name": fact, "file": None, "column": fact, "codes": None} for fact in _facts(config)]
    names = [name for name, *_ in _renamed([(one["name"], None, None, False) for one in found])]  # type: ignore[misc]
    by_name = {name: {**one, "name": name} for name, one in zip(names, found, strict=True)}
    return [by_name[name] for name in wanted]


def of_tests(config: Config, competition: Competition, coded: Sequence[dict[str, Any]]) -> np.ndarray:
    """(M, F) float64: the features of ``coding`` of the test rows; NaN where a cell is blank or no known category."""
    facts: dict[str, np.ndarray] = {}
    if any(one["file"] is None for one in coded):
        measured = _measured(config, competition, competition.test["file"].tolist())
        facts = dict(zip(_facts(config), measured.T, strict=True))
    return np.stack([_of_tests(config, competition, one, facts) for one in coded], axis=1)


def _of_tests(
    config: Config, competition: Competition, one: dict[str, Any], facts: dict[str, np.ndarray]
) -> np.ndarray:
    if one["file"] is None:
        return facts[one["column"]]
    frame: pd.DataFrame | None = competition.test_table
    if one["file"]:
        frame = _rows_of(_joinable(config, competition, one["file"]), competition.test["id"].tolist())
    if frame is None or one["column"] not in frame.columns:
        return np.full(len(competition.test), np.nan)
    cells = frame[one["column"]].astype(str).str.strip()
    if one["codes"] is None:
        numbers = pd.to_numeric(cells.where(~cells.str.lower().isin(BLANK)), errors="coerce").astype(np.float64)
        return numbers.where(np.isfinite(numbers)).to_numpy(np.float64)
    return cells.map({cell: float(place) for place, cell in enumerate(one["codes"])}).to_numpy(np.float64)


# --- columns of the tables ----------------------------------------------------------------------------------------


def _columns(config: Config, competition: Competition) -> Iterator[Column]:
    """The columns of data.features and data.tables as numbers, but for those that name rows."""
    for file, name, train, test in _cells(config, competition):
        column = encode(name, train, test)
        if column is None:
            of = f" of {file}" if file else ""
            say(f"side features: {name}{of} is left out: nearly every row has its own text")
        else:
            yield column


def _cells(config: Config, competition: Competition) -> Iterator[Cells]:
    """The cells of data.features and data.tables; what describes no test row, or repeats the target, is left out."""
    for name, train, test in _named(config, competition):
        yield "", name, train, test
    yield from _joined(config, competition)


def _named(config: Config, competition: Competition) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The columns that data.features names, of both tables."""
    for name in config.data.features:
        for frame, which in ((competition.table, "training"), (competition.test_table, "test")):
            if name not in frame.columns:
                there = [str(column) for column in frame.columns]
                raise UserError(
                    f"data.features={name}, but the {which} table has no such column; its columns: {some(there, 20)}"
                    f"{nearest(name, there)}; set data.test_csv if another table describes the test rows"
                )
        train, test = competition.table[name].to_numpy(str), competition.test_table[name].to_numpy(str)
        if reason := _repeats(name, train, config, competition):
            raise UserError(f"data.features={name}, but that column {reason}; leave it out")
        yield name, train, test


def _joined(config: Config, competition: Competition) -> Iterator[Cells]:
    """The columns of data.tables, joined by the id; what describes no test row, or repeats the target, is left out."""
    for file in config.data.tables:
        frame = _joinable(config, competition, file)
        found = [_rows_of(frame, part["id"].tolist()) for part in (competition.train, competition.test)]
        if found[0] is None or found[1] is None:
            which = "training" if found[0] is None else "test"
            say(f"side features: {shown(_place(competition, file))} is left out: it has none of the {which} ids")
            continue
        for name in map(str, frame.columns):
            train, test = (part[name].to_numpy(str) for part in found if part is not None)
            if reason := _repeats(name, train, config, competition):
                say(f"side features: {name} of {file} is left out: it {reason}")
            else:
                yield file, name, train, test


def _joinable(config: Config, competition: Competition, file: str) -> pd.DataFrame:
    """A csv of data.tables by its ids."""
    path = _place(competition, file)
    frame = read_table(path, {config.data.id: "data.id"}, key="data.tables")
    twice = duplicates(frame[config.data.id])
    if twice:
        say(f"{shown(path)}: {len(twice)} ids stand more than once ({some(twice)}); the first row of each counts")
    return frame.drop_duplicates(config.data.id).set_index(config.data.id)


def _rows_of(frame: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame | None:
    """The rows of these ids, blank where there is none; with or without suffixes; None if there is no row at all."""
    bare = pd.Index([splitext(name)[0] for name in frame.index])
    for index, wanted in ((frame.index, ids), (bare, [splitext(name)[0] for name in ids])):
        if index.is_unique and index.isin(wanted).any():
            return frame.set_axis(index).reindex(list(wanted), fill_value="").fillna("")
    return None


def _repeats(name: str, cells: np.ndarray, config: Config, competition: Competition) -> str:
    """Why a column of training cells (N,) must not be used: it is the target or the id, or only renames one."""
    if name in config.data.target:
        return "is the target"
    if name == config.data.id:
        return "is the id"
    if (cells == competition.train["id"].to_numpy(str)).all():
        return "repeats the id"
    for target in competition.targets:
        if _same(cells, competition.targets[target].to_numpy(str)):
            return f"repeats the target {target}"
    return ""


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two columns of texts are equal, or the same categories under other names."""
    if (one == other).all():
        return True
    first, second = (np.unique(cells, return_inverse=True)[1] for cells in (one, other))
    pairs = len(np.unique(np.stack([first, second]), axis=1).T)
    return 1 < pairs <= DISTINCT * len(one) and pairs == first.max() + 1 == second.max() + 1


def encode(name: str, train: np.ndarray, test: np.ndarray) -> Column | None:
    """Text cells (N,), (M,) → numbers where all that is not blank is one, else codes by frequency; None if they name
    rows."""
    cells, blank, numbers = _numbers(train, test)
    ordered = _order(name, train, test)
    if ordered is None:
        return None
    if ordered:
        numbers = cells.where(~blank).map({cell: float(place) for place, cell in enumerate(ordered)})
    values = numbers.to_numpy(np.float64)
    return name, values[: len(train)], values[len(train) :], bool(ordered)


def _numbers(train: np.ndarray, test: np.ndarray) -> tuple[pd.Series, pd.Series, pd.Series]:
    """The cells of both, which of them are blank, and their numbers; NaN where there is none."""
    cells = pd.Series(np.concatenate([train, test])).astype(str).str.strip()
    blank = cells.str.lower().isin(BLANK)
    numbers = pd.to_numeric(cells.where(~blank), errors="coerce").astype(np.float64)
    return cells, blank, numbers.where(np.isfinite(numbers))


def _order(name: str, train: np.ndarray, test: np.ndarray) -> list[str] | None:
    """The categories by frequency, none where all that is not blank is a number; None where cells name rows."""
    cells, blank, numbers = _numbers(train, test)
    if not (numbers.isna() & ~blank).any():
        return []
    counts = cells[~blank].value_counts()
    if len(counts) > DISTINCT * (~blank).sum():
        return None
    return sorted(counts.index, key=lambda cell: (-counts[cell], cell))


# --- facts of the images ------------------------------------------------------------------------------------------


def _image_facts(config: Config, competition: Competition) -> Iterator[Column]:
    """Width, height, aspect, bytes, and the mean of each channel and spread of all pixels; blank for a broken image."""
    every = _measured(config, competition, [*competition.train["file"], *competition.test["file"]])
    count = len(competition.train)
    for place, name in enumerate(_facts(config)):
        yield name, every[:count, place], every[count:, place], False


def _facts(config: Config) -> list[str]:
    """The names of the facts."""
    colours = COLOURS.get(config.data.channels, [str(channel) for channel in range(config.data.channels)])
    return ["width", "height", "aspect", "bytes", *(f"mean {colour}" for colour in colours), "spread"]


def _measured(config: Config, competition: Competition, specs: list[str]) -> np.ndarray:
    """(n, F) float64, the facts of images."""
    names = _facts(config)
    sizes = [facts[0] if facts else np.nan for facts in files.stats(competition.folder, specs)]
    reading: dict[str, Any] = {
        "reader": config.data.reader,
        "limit_pixels": round(config.data.megapixels * 1e6),
        "channels": config.data.channels,
        "at_least": AT_LEAST,
    }

    def facts(spec: str) -> list[float]:
        try:
            seen = images.look(spec, competition.folder, **reading)
        except images.BrokenImage:
            return [np.nan] * (len(names) - 1)
        pixels = seen.pixels.reshape(-1, seen.pixels.shape[-1]).astype(np.float32)
        means = pixels.mean(axis=0, dtype=np.float64).tolist()
        return [seen.width, seen.height, seen.width / seen.height, *means, float(pixels.std(dtype=np.float64))]

    found = []
    with progress("image facts", len(specs)) as advance, ThreadPoolExecutor(physical_cores()) as pool:
        for row in pool.map(facts, specs):
            found.append(row)
            advance()
    every = np.array(found, dtype=np.float64).reshape(-1, len(names) - 1)
    return np.insert(every, 3, sizes, axis=1)
