"""A competition as its folder holds it: the rows to train on, the rows to predict, the sample submission, the folds.

Nothing here reads the solution file; only ``stage=score`` may.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline import artefacts, images, registry
from pipeline.artefacts import shown
from pipeline.config import Config, Data, root
from pipeline.console import say, warn
from pipeline.errors import UserError, some
from pipeline.tables import check_ids, read_table
from pipeline.tasks import task_for


@dataclass(frozen=True)
class Competition:
    """The tables of one competition; every cell is text as it stands in the csv. Shared: do not change in place.

    train: columns id, file, target, and group where data.group names one. test: columns id, file. file is a path
    relative to folder. sample: the sample submission, its first column the ids. fingerprint: changes when a table or
    an image (its name or size) does.
    """

    name: str
    folder: Path
    train: pd.DataFrame
    test: pd.DataFrame
    sample: pd.DataFrame
    fingerprint: str


# --- tables and images --------------------------------------------------------------------------------------------


def load(config: Config) -> Competition:
    """Read and check the competition that the config names; made first where data.make says how.

    Raises UserError for a missing folder, csv, column or image, an empty csv and duplicate ids.
    """
    folder = _folder(config)
    data = config.data
    names = (data.train_csv, data.test_csv, data.sample, data.train_images, data.test_images)
    changed = tuple(os.stat(folder / name).st_mtime_ns if (folder / name).exists() else 0 for name in names)
    return _load(config.competition, folder, dataclasses.astuple(data), changed)


@functools.lru_cache(maxsize=4)  # stage=all asks for it in every step
def _load(name: str, folder: Path, fields: tuple[Any, ...], changed: tuple[int, ...]) -> Competition:
    data = Data(*fields)
    train = _train_rows(folder, data)
    sample = read_table(folder / data.sample, key="data.sample")
    test = _test_rows(folder, data, sample)
    both = train.merge(test, on=["id", "file"])["id"]
    if len(both):
        raise UserError(
            f"{name}: {len(both)} images are training and test rows at once: {some(both)}; "
            "remove them from one table, or correct data.test_csv, data.sample or data.test_images"
        )
    tables = [data.train_csv, data.sample, *([data.test_csv] if data.test_csv else [])]
    print_ = artefacts.fingerprint(
        [artefacts.file_digest(folder / table) for table in tables],
        images.listing(folder, [*train["file"], *test["file"]]),
    )
    return Competition(name, folder, train, test, sample, print_)


def _train_rows(folder: Path, data: Data) -> pd.DataFrame:
    path = folder / data.train_csv
    columns = {data.id: "data.id", data.target: "data.target"} | ({data.group: "data.group"} if data.group else {})
    table = read_table(path, columns, key="data.train_csv")
    check_ids(table[data.id], shown(path))
    files = images.resolve(folder, data.train_images, table[data.id].tolist())
    train = pd.DataFrame({"id": table[data.id], "file": files, "target": table[data.target]})
    if not data.group:
        return train
    empty = table[data.id][table[data.group].str.strip() == ""]
    if len(empty):
        raise UserError(f"{shown(path)}: no {data.group} (data.group) for ids {some(empty)}; fill them in")
    return train.assign(group=table[data.group])


def _test_rows(folder: Path, data: Data, sample: pd.DataFrame) -> pd.DataFrame:
    if data.test_csv:
        path = folder / data.test_csv
        ids = read_table(path, {data.id: "data.id"}, key="data.test_csv")[data.id].tolist()
        check_ids(ids, shown(path))
    else:
        ids = sample.iloc[:, 0].unique().tolist()  # some tasks have several rows an image
    return pd.DataFrame({"id": ids, "file": images.resolve(folder, data.test_images, ids)}, dtype=str)


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


# --- folds --------------------------------------------------------------------------------------------------------


def read_folds(config: Config, competition: Competition) -> np.ndarray:
    """The fold of each training row, (N,) int64 in the order of competition.train, from folds/<competition>.csv.

    Raises UserError if the file is missing, damaged or belongs to other training rows.
    """
    path = artefacts.folds_file(config)
    if not path.is_file():
        command = f"./run.sh stage=split competition={config.competition}"
        raise UserError(f"{shown(path)} does not exist; run {command} first")
    table = read_table(path, {"id": "", "fold": ""})
    check_ids(table["id"], shown(path))
    fold_of = dict(zip(table["id"], table["fold"], strict=True))
    ids = competition.train["id"].tolist()
    missing = [name for name in ids if name not in fold_of]
    extra = sorted(fold_of.keys() - set(ids))
    if missing or extra:
        lacks = f" lacks {len(missing)} ids of {config.data.train_csv}: {some(missing)}" if missing else ""
        holds = f" holds {len(extra)} ids that {config.data.train_csv} has not: {some(extra)}" if extra else ""
        raise UserError(f"{shown(path)}{' and'.join(filter(None, [lacks, holds]))}; {_anew(config)}")
    try:
        folds = np.array([int(fold_of[name]) for name in ids], dtype=np.int64)
    except ValueError as fault:
        raise UserError(f"{shown(path)}: folds must be whole numbers ({fault}); {_anew(config)}") from fault
    there = np.unique(folds).tolist()
    if there != list(range(len(there))) or len(there) < 2:
        raise UserError(f"{shown(path)} has the folds {some(there, 20)}, not 0, 1, … without a gap; {_anew(config)}")
    return folds


def ensure_folds(config: Config, competition: Competition, overwrite: bool = False) -> np.ndarray:
    """The folds as ``read_folds``, dealt and written first if there are none; never silently rewritten.

    overwrite: write them anew if they differ from what the config asks for, which is else a UserError.
    """
    path = artefacts.folds_file(config)
    if path.is_file() and registry.facts("splits", config.folds.method).get("given"):
        return read_folds(config, competition)
    fresh = _deal(config, competition)
    if path.is_file():
        difference = _difference(config, competition, fresh)
        if not difference:
            return fresh
        if not overwrite:
            raise UserError(difference)
        _warn_of_runs(config)
    table = pd.DataFrame({"id": competition.train["id"], "fold": fresh, "group": competition.train.get("group", "")})
    table.insert(3, config.data.target, competition.train["target"], allow_duplicates=True)
    artefacts.write_text(path, table.to_csv(index=False, lineterminator="\n"))
    say(f"{shown(path)}: written, {config.folds.count} folds of {len(fresh)} rows, {config.folds.method}")
    return fresh


def asked_folds(config: Config, count: int) -> list[int] | Literal["full"]:
    """The folds that ``fold=`` asks for, of the count there are, ascending; or "full" for training on everything."""
    asked = config.fold
    if asked in (["all"], ["full"]):
        return list(range(count)) if asked == ["all"] else "full"
    if not all(re.fullmatch(r"-?\d+", name) for name in asked):
        raise UserError(f"fold={','.join(asked)}, but fold is a number, several such as 0,2, or all or full alone")
    numbers = sorted({int(name) for name in asked})
    outside = [number for number in numbers if not 0 <= number < count]
    if outside:
        where = f"fold={outside[-1]}, but {shown(artefacts.folds_file(config))} has 0–{count - 1}"
        more = f"rerun stage=split folds.count={outside[-1] + 1} overwrite=true, or " if outside[-1] > 0 else ""
        raise UserError(f"{where}; {more}choose one of these")
    return numbers


def _deal(config: Config, competition: Competition) -> np.ndarray:
    settings, data = config.folds, config.data
    if len(competition.train) < settings.count:
        raise UserError(
            f"folds.count={settings.count}, but {data.train_csv} has {len(competition.train)} rows; "
            f"folds.count={len(competition.train)} at most"
        )
    keeps_groups = registry.facts("splits", settings.method).get("groups", False)
    if bool(data.group) != keeps_groups:
        way = "needs a group column; set data.group" if keeps_groups else "parts groups; take stratified_group_kfold()"
        raise UserError(f"data.group={data.group}, but folds.method={settings.method} {way}")
    strata = task_for(config, competition).strata(competition.train["target"].to_numpy())
    _check_rare(config, strata)
    group = np.asarray(competition.train["group"], dtype=np.str_) if data.group else None
    return np.asarray(registry.build("splits", settings.method)(strata, group, settings.count, settings.seed))


def _check_rare(config: Config, strata: np.ndarray) -> None:
    names, rows = np.unique(strata, return_counts=True)
    rare = [f"{name} ({n})" for name, n in zip(names, rows, strict=True) if n < config.folds.count]
    text = f"classes with fewer rows than the {config.folds.count} folds, so that some folds hold none: {some(rare)}"
    if rare and config.folds.strict:
        raise UserError(f"{text}; lower folds.count, or folds.strict=false to spread them over distinct folds")
    if rare:
        _warn_once(f"{text}; each is spread over distinct folds as far as it goes")


@functools.cache
def _warn_once(text: str) -> None:
    warn(text)


def _difference(config: Config, competition: Competition, fresh: np.ndarray) -> str:
    try:
        there = read_folds(config, competition)
    except UserError as fault:
        return str(fault)
    if np.array_equal(there, fresh):
        return ""
    name, settings = shown(artefacts.folds_file(config)), config.folds
    if there.max() + 1 != settings.count:
        what = f"{name} has {there.max() + 1} folds, but folds.count={settings.count}"
    else:
        asked = f"folds.method={settings.method} folds.seed={settings.seed}"
        what = f"{name} puts {int((there != fresh).sum())} of {len(fresh)} rows in other folds than {asked} does"
    return f"{what}; keep the file with folds.method=given(), or {_anew(config)}"


def _anew(config: Config) -> str:
    command = f"./run.sh stage=split competition={config.competition} folds.count={config.folds.count} overwrite=true"
    return f"deal them anew with {command} (runs on the old folds are then no longer comparable)"


def _warn_of_runs(config: Config) -> None:
    folder = artefacts.runs_folder(config)
    runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    if runs:
        warn(f"these runs were trained on the old folds and compare with no new one: {some(runs)}; train them again")
