"""Absorb: labels that people gave join the training rows, with their origin recorded: ``labels/<competition>.csv``.

``labels=FILE`` (or several) has the id and target columns of the training table, as the page of stage=select saves it.
The rows stand behind the training table's; folds are dealt to them without moving any other row's, and the folds file
is extended. A test image with a label stays in the test set and is predicted. Commit both files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import absorbed, artefacts
from pipeline.absorbed import ALWAYS, DIGEST, FOLD, ORIGIN
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config, replace, root
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError, some
from pipeline.folds import ensure_folds
from pipeline.tables import duplicates, read_table
from pipeline.tasks import Task, refuse_spatial, task_for


@dataclass(frozen=True)
class Given:
    """Labels of files. rows: the columns of labels/<competition>.csv, of each id one. blank: rows without a label."""

    rows: pd.DataFrame
    blank: int


def run(config: Config) -> list[Outcome]:
    """Write labels/<competition>.csv and extend the folds, or say that there is nothing to do."""
    refuse_spatial(config)
    began = time.perf_counter()
    files = paths(config)
    config = replace(config, data__absorbed=True)  # what joined before stays
    competition = load(config)
    task = task_for(config, competition)
    old_folds = ensure_folds(config, competition)  # they stand before new rows come
    given = read(config, competition, task, files)
    path = absorbed.path_of(config.competition)
    with artefacts.locked(artefacts.runs_folder(config)):
        old = read_table(path) if path.is_file() else given.rows.iloc[:0]
        table, new, changed = joined(config, task, old, given.rows)
        competition, folds = settled(config, path, table) if new or changed else (competition, old_folds)
    report(config, competition, given, path, new, changed)
    note = f"{new} new of {competition.absorbed} absorbed rows" + (f", {changed} changed" if changed else "")
    facts = {"new": new, "changed": changed, "absorbed": competition.absorbed, "folds": int(folds.max()) + 1}
    seconds = time.perf_counter() - began
    return [Outcome("absorb", seconds=seconds, note=note, reused=not (new or changed), facts=facts)]


def settled(config: Config, path: Path, table: pd.DataFrame) -> tuple[Competition, np.ndarray]:
    """Write the rows and deal their folds; where that cannot be, such as without their group, all is as it was."""
    before = path.read_bytes() if path.is_file() else None
    absorbed.write(path, table)
    try:
        competition = load(config)
        return competition, ensure_folds(config, competition)
    except UserError:
        if before is None:
            path.unlink()
        else:
            artefacts.write_text(path, before.decode())
        raise


def paths(config: Config) -> list[Path]:
    """The files of labels=."""
    if not config.labels:
        raise UserError("stage=absorb needs labels=FILE, a csv with the id and target columns of the training table")
    return [root() / Path(name).expanduser() for name in config.labels]


# --- what is given ------------------------------------------------------------------------------------------------


def read(config: Config, competition: Competition, task: Task, files: list[Path]) -> Given:
    """The labels of all files, checked: columns, blank cells, classes, ids, and that no two contradict each other."""
    tables, blank = [], 0
    for path in files:
        table, empty = labelled(config, path)
        check_labels(config, task, table, path)
        told = config.absorb.origin or path.name
        tables.append(table.assign(**{ORIGIN: told, DIGEST: artefacts.file_digest(path)}))
        blank += empty
    whole = pd.concat(tables, ignore_index=True).fillna("")
    if whole.empty:
        raise UserError(f"labels={','.join(config.labels)} has no label: all {blank} rows are blank; fill some in")
    rows = once(config, task, known(config, competition, task, whole))
    rows[FOLD] = "" if config.absorb.scored else ALWAYS
    return Given(rows, blank)


def labelled(config: Config, path: Path) -> tuple[pd.DataFrame, int]:
    """The rows of a file that have a label, with the columns that a training row needs; and how many have none."""
    data = config.data
    needed = {data.id: "data.id", **dict.fromkeys(data.target, "data.target")}
    table = read_table(path, needed, key="labels")
    cells = table[data.target].apply(lambda column: column.str.strip())
    blank = (cells == "").all(axis=1) if not config.absorb.blank else pd.Series(False, index=table.index)
    gaps = table[data.id][(cells == "").any(axis=1) & ~blank] if len(data.target) > 1 else table[data.id].iloc[:0]
    if len(gaps):
        raise UserError(f"{shown(path)}: some of the columns {some(data.target)} are blank for ids {some(gaps)}; fill "
                        "them in, or leave all of a row blank")  # fmt: skip
    more = [name for name in (data.group, data.camera, data.holdout) if name and name in table.columns]
    kept = table.assign(**{name: cells[name] for name in data.target})[[data.id, *data.target, *more]]
    return kept[~blank].reset_index(drop=True), int(blank.sum())


def check_labels(config: Config, task: Task, table: pd.DataFrame, path: Path) -> None:
    """UserError unless the labels are such as the training table knows."""
    if table.empty:
        return
    try:
        truth = task.targets(table[config.data.target])
    except UserError as fault:
        raise UserError(f"{shown(path)}: {fault}; only labels that the training table knows are absorbed") from fault
    low, high = getattr(task, "bounds", (None, None))
    if task.form.bounded or (low is None and high is None):
        return
    numbers = truth.astype(np.float64)
    out = (numbers < (-np.inf if low is None else low)) | (numbers > (np.inf if high is None else high))
    if out.any():
        wrong = some(table[config.data.id][out.any(axis=1)])
        raise UserError(f"{shown(path)}: numbers leave the bounds of task={config.task}, of ids {wrong}; correct them")


def known(config: Config, competition: Competition, task: Task, table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose image has no label in the training table; UserError for ids of no image, and for other labels."""
    key, own = config.data.id, len(competition.train) - competition.absorbed
    train = competition.targets.iloc[:own].set_axis(competition.train["id"].iloc[:own])
    pool = {*competition.test["id"], *competition.unlabelled["id"], *competition.train["id"].iloc[own:]}
    strange = [name for name in table[key] if name not in pool and name not in train.index]
    if strange:
        raise UserError(
            f"labels={','.join(config.labels)}: {len(strange)} ids are neither test images nor in data.unlabelled="
            f"{config.data.unlabelled}: {some(strange)}; correct them, or set data.unlabelled"
        )
    there = table[key].isin(train.index)
    if there.any():
        rows = table[there]
        other = differ(task, rows[config.data.target], train.loc[rows[key]])
        if other.any():
            raise UserError(
                f"labels={','.join(config.labels)}: {some(rows[key][other])} are rows of {config.data.train_csv} with "
                "another label; correct them there"
            )
        say(f"  {len(rows)} ids are rows of {config.data.train_csv} with the same label: nothing to do for them")
    return table[~there].reset_index(drop=True)


def once(config: Config, task: Task, table: pd.DataFrame) -> pd.DataFrame:
    """Each id once; UserError where its rows contradict each other."""
    key = config.data.id
    first = table.drop_duplicates(key)
    again = table[table[key].duplicated()]
    if len(again):
        other = differ(task, again[config.data.target], first.set_index(key).loc[again[key], config.data.target])
        if other.any():
            raise UserError(
                f"labels={','.join(config.labels)}: {some(dict.fromkeys(again[key][other]))} have two labels; keep one"
            )
    return first.reset_index(drop=True)


def differ(task: Task, one: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """(N,) bool: rows whose labels mean something else, however they are written."""
    first, second = (np.asarray(task.soft(task.targets(cells.reset_index(drop=True)))) for cells in (one, other))
    return np.asarray((first != second).any(axis=1))


# --- what is written ----------------------------------------------------------------------------------------------


def joined(
    config: Config, task: Task, old: pd.DataFrame, given: pd.DataFrame
) -> tuple[pd.DataFrame, int, int]:  # fmt: skip
    """The rows there are with the new ones behind them, how many are new, and how many have another label now.

    UserError for another label of an absorbed image, unless overwrite=true takes it; it keeps its place and fold.
    """
    key, targets = config.data.id, config.data.target
    names = [key, *targets, *[name for name in given if name not in (key, *targets, FOLD, ORIGIN, DIGEST)]]
    names += [name for name in old.columns if name not in (*names, FOLD, ORIGIN, DIGEST)]
    names += [FOLD, ORIGIN, DIGEST]
    old, given = (frame.reindex(columns=names, fill_value="") for frame in (old, given))
    again = given[given[key].isin(old[key])]
    changed = again.iloc[:0]
    if len(again):
        before = old.set_index(key).loc[again[key]]
        changed = again[differ(task, again[targets], before[targets])]
    if len(changed) and not config.overwrite:
        before = old.set_index(key).loc[changed[key], targets[0]]
        shown_ = (
            f"{name} ({was} → {now})" for (name, was), now in zip(before.items(), changed[targets[0]], strict=True)
        )
        raise UserError(
            f"labels={','.join(config.labels)}: {len(changed)} images were absorbed with another label: "
            f"{some(shown_)}; correct the csv, or take the new labels with overwrite=true"
        )
    table = old.set_index(key)
    fresh = changed.set_index(key)[[*targets, ORIGIN, DIGEST]]
    table.loc[fresh.index, fresh.columns] = fresh
    new = given[~given[key].isin(old[key])]
    whole = pd.concat([table.reset_index(), new], ignore_index=True)[names]
    twice = duplicates(whole[key])
    assert not twice, f"ids {some(twice)} stand twice"
    return whole, len(new), len(changed)


def report(config: Config, competition: Competition, given: Given, path: Path, new: int, changed: int) -> None:
    """Say what joined, which of it the test set holds, and how to go on."""
    if given.blank:
        say(f"  {given.blank} rows without a label were skipped")
    same = len(given.rows) - new - changed
    if same:
        say(f"  {same} images were absorbed before, with the same label: nothing to do for them")
    if not new and not changed:
        say(f"{shown(path)}: nothing to do, {competition.absorbed} rows as before")
        return
    own = len(competition.train) - competition.absorbed
    all_ = f"{competition.absorbed} in all, behind the {own} of {config.data.train_csv}"
    say(f"{shown(path)}: {new} rows joined, {changed} changed; {all_}; commit it and the folds")
    tests = int(given.rows[config.data.id].isin(competition.test["id"]).sum())
    if tests:
        warn(
            f"{tests} of them are test images, which stay in the test set and are predicted: many competitions forbid "
            "to label the test set by hand; read the rules before you submit"
        )
    say("  runs that were trained before are of other data: train under a new name, run=NAME; to compare, predict the")
    say(
        "  old run again (stage=predict run=OLD): its members never saw the new rows, so both have OOF of the same rows"
    )
