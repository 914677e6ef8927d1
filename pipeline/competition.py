"""A competition as its folder holds it: the rows to train on, the rows to predict, the sample submission.

Nothing here reads the solution file; only ``stage=score`` may.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, files, registry
from pipeline.artefacts import shown
from pipeline.config import Config, Data, root
from pipeline.console import say, warn
from pipeline.errors import UserError, nearest, some
from pipeline.patterns import is_image
from pipeline.tables import check_ids, read_table


@dataclass(frozen=True)
class Competition:
    """The tables of one competition; every cell is text as it stands in the csv. Shared: do not change in place.

    train, test: columns id, file; file is what ``files.resolve`` gave. targets: the target columns of the training
    rows under their own names. table, test_table: all columns of the train and test csv, row by row. sample: the sample
    submission, its first column the ids. fingerprint: changes when a table or an image (its name or size) does.
    """

    name: str
    folder: Path
    train: pd.DataFrame
    targets: pd.DataFrame
    test: pd.DataFrame
    sample: pd.DataFrame
    table: pd.DataFrame
    test_table: pd.DataFrame
    fingerprint: str

    def column(self, name: str, key: str) -> np.ndarray:
        """(N,) text: a column of the training table; UserError, naming the key, where it is absent or has gaps."""
        if name not in self.table.columns:
            raise UserError(
                f"{key}={name}, but the training table has no such column; its columns: {some(self.table.columns, 20)}"
                f"{nearest(name, map(str, self.table.columns))}"
            )
        cells = self.table[name]
        empty = self.train["id"][(cells.str.strip() == "").to_numpy()]
        if len(empty):
            raise UserError(f"the training table has no {name} ({key}) for ids {some(empty)}; fill them in")
        return cells.to_numpy(dtype=np.str_)


# --- tables and images --------------------------------------------------------------------------------------------


def load(config: Config) -> Competition:
    """Read and check the competition that the config names; made first where data.make says how.

    Raises UserError for a missing folder, csv, column or image, an empty csv and duplicate ids.
    """
    folder = _folder(config)
    data = config.data
    names = (data.train_csv, data.test_csv, data.sample, data.train_images, data.test_images)
    changed = tuple(os.stat(folder / name).st_mtime_ns if (folder / name).exists() else 0 for name in names)
    fields = tuple(tuple(value) if isinstance(value, list) else value for value in dataclasses.astuple(data))
    return _load(config.competition, folder, fields, changed)


@functools.lru_cache(maxsize=4)  # stage=all asks for it in every step
def _load(name: str, folder: Path, fields: tuple[Any, ...], changed: tuple[int, ...]) -> Competition:
    values: dict[str, Any] = dict(zip(Data.__dataclass_fields__, fields, strict=True))
    values |= {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
    data = Data(**values)
    table = _train_table(folder, data)
    found = _images(folder, data, data.train_images, table, data.train_csv)
    train = pd.DataFrame({"id": table[data.id], "file": found}, dtype=str)
    sample, test_table = _test_tables(folder, data)
    ids = test_table[data.id]
    found = _images(folder, data, data.test_images, test_table, data.test_csv)
    test = pd.DataFrame({"id": ids, "file": found}, dtype=str)
    both = train.merge(test, on=["id", "file"])["id"]
    if len(both):
        raise UserError(
            f"{name}: {len(both)} images are training and test rows at once: {some(both)}; "
            "remove them from one table, or correct data.test_csv, data.sample or data.test_images"
        )
    tables = [table for table in (data.train_csv, data.sample, data.test_csv) if table]
    print_ = artefacts.fingerprint(
        [artefacts.file_digest(folder / table) for table in tables],
        files.listing(folder, [*train["file"], *test["file"]]),
    )
    targets = table[data.target].apply(lambda cells: cells.str.strip())  # "cat " is no other class than "cat"
    return Competition(name, folder, train, targets, test, sample, table, test_table, print_)


def _train_table(folder: Path, data: Data) -> pd.DataFrame:
    if not data.train_csv:
        return _class_folders(folder, data)
    path = folder / data.train_csv
    needed = {data.id: "data.id", **dict.fromkeys(data.target, "data.target"), **dict.fromkeys(data.box, "data.box")}
    needed |= {data.group: "data.group"} if data.group else {}
    table = read_table(path, needed, key="data.train_csv")
    again = table.duplicated()
    if again.any():
        warn(f"{shown(path)}: {int(again.sum())} rows repeat another word for word; each counts once")
        table = table[~again].reset_index(drop=True)
    check_ids(table[data.id], shown(path))
    return table


def _class_folders(folder: Path, data: Data) -> pd.DataFrame:
    """One row a file of data.train_images: its id is the path, its class the first folder on the way."""
    tests = os.path.relpath(data.test_images or ".", data.train_images or ".") + "/"  # they may lie beside the classes
    found = [file for file in _images_of(folder, data.train_images) if "/" in file and not file.startswith(tests)]
    if not found:
        raise UserError(
            f"data.train_csv is empty, so that {shown(folder / data.train_images)} must hold a folder of images for "
            "each class, but it holds none; set data.train_csv or data.train_images"
        )
    classes = [file.partition("/")[0].removesuffix(".zip") for file in found]  # a class may be a zip
    return pd.DataFrame({data.id: found, data.target[0]: classes}, dtype=str)


def _images_of(folder: Path, place: str) -> list[str]:
    """The images of folder/place, as paths below it."""
    found = files.find(folder, place)
    return [file for file in [*found.files, *found.members] if is_image(file)]


def _images(folder: Path, data: Data, place: str, table: pd.DataFrame, csv: str) -> list[str]:
    """The image of each row of a table, with its box where data.box names one."""
    found = files.resolve(folder, place, table[data.id].tolist(), data.files)
    if not data.box:
        return found
    if len(data.box) != 4:
        raise UserError(f"data.box={','.join(data.box)}, but a box has four columns, as data.box_form={data.box_form}")
    for name in data.box:
        if name not in table.columns:
            raise UserError(f"{csv or 'the sample submission'} has no column {name!r} (data.box); set data.test_csv")
    corners = table[data.box].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    bad = ~np.isfinite(corners).all(axis=1)
    if bad.any():
        raise UserError(f"{csv}: the box is no number for ids {some(table[data.id][bad])}; fill it in")
    if data.box_form == "xywh":
        corners[:, 2:] += corners[:, :2]
    return files.with_boxes(found, corners, data.margin)


def _test_tables(folder: Path, data: Data) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The sample submission, and the test table with the ids under data.id; each stands in for the other."""
    test = None
    if data.test_csv:
        path = folder / data.test_csv
        test = read_table(path, {data.id: "data.id"}, key="data.test_csv")
        check_ids(test[data.id], shown(path))
    if data.sample:
        sample = read_table(folder / data.sample, key="data.sample")
        if test is None:
            ids = sample.iloc[:, 0].unique().tolist()  # some tasks have several rows an image
            test = pd.DataFrame({data.id: ids}, dtype=str)
        return sample, test
    if test is None:
        test = pd.DataFrame({data.id: _images_of(folder, data.test_images)}, dtype=str)
    return pd.DataFrame({data.id: test[data.id], **dict.fromkeys(data.target, "")}, dtype=str), test


def _folder(config: Config) -> Path:
    data = config.data
    if not data.folder:
        raise UserError(
            f"configs/competition/{config.competition}.yaml names no data.folder; "
            "give data=DIR, the unzipped Kaggle folder"
        )
    folder = root() / Path(data.folder).expanduser()
    if not folder.is_dir():
        if not data.make or "data.folder" in config.arguments:  # a mistyped folder is not to be filled
            raise UserError(
                f"data.folder={data.folder}, but there is no such folder; unzip the competition there, or give data=DIR"
            )
        _make(folder, data.make)
    return folder


def _make(folder: Path, maker: str) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        temporary.chmod(0o755)
        try:
            registry.build("makers", maker)(temporary)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as fault:
        if not folder.is_dir():  # else another process was faster, with the same files
            raise UserError(f"{shown(folder)} cannot be written: {fault.strerror}; free space there") from fault
    say(f"{shown(folder)}: written by {maker}")
