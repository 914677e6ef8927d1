"""Make a team mate's or another tool's predictions a run like any other.

``run=NAME oof=FILE test=FILE``: npz as this project writes them, or csv with the id column and one column a class, by
name and in any order. The OOF file must come from the folds of ``folds/<competition>.csv``: that cannot be checked
here, so share that file. Everything is validated before anything is written.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artefacts, console, evaluate
from pipeline.artefacts import Predictions, shown
from pipeline.competition import load
from pipeline.config import Config, root
from pipeline.console import Outcome
from pipeline.errors import UserError, some
from pipeline.folds import read_folds
from pipeline.tables import check_ids, read_table
from pipeline.tasks import Task, refuse_spatial, task_for

RANGE_SLACK = 1e-6  # what float32 rounding does to 0 and 1
SUM_SILENT, SUM_LIMIT = 1e-3, 1e-2  # a row's sum is off by less: as it is, scaled with a warning; more: refused


def run(config: Config) -> list[Outcome]:
    """Write ``runs/<competition>/<run>/fold<k>/{oof,test}.npz`` from two files and print the OOF score."""
    refuse_spatial(config)
    started = time.perf_counter()
    name, sources = check_arguments(config)
    competition = load(config)
    folds, task = read_folds(config, competition), task_for(config, competition)
    digests = [artefacts.file_digest(path) for path in sources]
    print_ = artefacts.fingerprint("adopt", digests, folds.tolist(), competition.fingerprint, config.metric)
    folder = artefacts.run_folder(config, name)
    names = [f"fold{fold}/{file}.npz" for fold in range(int(folds.max()) + 1) for file in ("oof", "test")]
    if known := artefacts.finished(folder / "adopt.json", print_, *(folder / file for file in names)):
        return [Outcome("adopt", name, score=known["score"], note="adopted", reused=True, facts=known["facts"])]
    if folder.exists() and not config.overwrite:
        raise UserError(f"{shown(folder)} exists and was made otherwise; choose another run=NAME or set overwrite=true")

    made_by = {"adopted": True, "digests": digests}
    rows = (competition.train["id"].to_numpy()[folds >= 0], competition.test["id"].to_numpy())
    oof, test = (
        Predictions(ids, read(path, ids, config.data.id, task), task.space, made_by)
        for path, ids in zip(sources, rows, strict=True)
    )
    truth, metric = task.targets(competition.targets)[folds >= 0], evaluate.metric(config.metric, task)
    score = evaluate.score_folds(metric, truth, oof.values, folds[folds >= 0])
    facts, seconds = {"oof": score.value, "oof_se": score.se}, time.perf_counter() - started
    draft = folder.with_name(f".{name}.adopt")  # takes the run's name when it is complete
    shutil.rmtree(draft, ignore_errors=True)
    write(draft, oof, test, folds[folds >= 0])
    artefacts.finish(draft / "adopt.json", print_, score=str(score), seconds=seconds, facts=facts)
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
    console.say(f"adopt: {name}, {metric.name} {score}")
    return [Outcome("adopt", name, score=str(score), note="adopted", seconds=seconds, facts=facts)]


def check_arguments(config: Config) -> tuple[str, list[Path]]:
    """The run's name and the two files, found from the project's folder."""
    example = "write ./run.sh stage=adopt run=NAME oof=FILE test=FILE"
    for key, value in (("run", config.run), ("oof", config.oof), ("test", config.test)):
        if not value:
            raise UserError(f"stage=adopt needs {key}=; {example}")
    name = artefacts.safe_name(config.run, "run")
    if name == "level2":
        raise UserError("run=level2, but that folder holds the stacks; choose another run=NAME")
    sources = [root() / Path(text).expanduser() for text in (config.oof, config.test)]
    for key, path in zip(("oof", "test"), sources, strict=True):
        if not path.is_file():
            raise UserError(f"{key}={path}, but there is no such file; {example}")
    return name, sources


def write(folder: Path, oof: Predictions, test: Predictions, folds: np.ndarray) -> None:
    """The predictions as files of every fold; one test file stands for each member's."""
    for fold in range(int(folds.max()) + 1):
        rows, member = folds == fold, artefacts.member_folder(folder, [fold])
        Predictions(oof.ids[rows], oof.values[rows], oof.space, oof.made_by).save(member / "oof.npz")
        test.save(member / "test.npz")


def read(path: Path, ids: np.ndarray, id_column: str, task: Task) -> np.ndarray:
    """(N, C) float32 values of exactly these ids, from npz or csv; UserError names what does not fit."""
    columns = task.columns
    found = Predictions.load(path) if path.suffix == ".npz" else read_csv(path, id_column, task)
    if found.values.shape[1] != len(columns):
        raise UserError(
            f"{shown(path)} has {found.values.shape[1]} columns for {len(columns)} classes; it needs one a class, in "
            f"the order {some(columns, 12)}"
        )
    if extra := sorted(set(found.ids.tolist()) - set(ids.tolist())):
        raise UserError(f"{shown(path)} has {len(extra)} ids that the competition's table has not: {some(extra)}")
    return check_values(path, found.align(ids, shown(path)), task)


def read_csv(path: Path, id_column: str, task: Task) -> Predictions:
    """A table with ids (``data.id``, else the first column) and one column a class, by name and in any order."""
    frame, columns = read_table(path), task.columns
    key = id_column if id_column in frame.columns else str(frame.columns[0])
    odd = sorted(set(frame.columns.drop(key)) ^ set(columns))
    if odd:
        raise UserError(f"{shown(path)} needs {key} and one column a class, {some(columns, 12)}; at odds: {some(odd)}")
    check_ids(frame[key], shown(path))
    values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    if len(bad := frame[key][~np.isfinite(values).all(axis=1)]):
        raise UserError(f"{shown(path)} holds cells that are no finite number for ids {some(bad)}; fill them in")
    return Predictions(frame[key].to_numpy(), values, task.space)


def check_values(path: Path, found: Predictions, task: Task) -> np.ndarray:
    """The values if they are of the task's form; probabilities scaled to sum one where they are off by a little."""
    if found.space != task.space:
        raise UserError(f"{shown(path)} holds values of the space {found.space!r}; give {task.space!r}")
    if not task.form.bounded:
        return found.values
    values, total = np.clip(found.values, 0, 1), found.values.sum(axis=1, dtype=np.float64)
    outside = (np.abs(values - found.values) > RANGE_SLACK).any(axis=1)
    off = np.abs(total - 1)
    if outside.any():
        raise UserError(f"{shown(path)} holds values outside 0…1 for ids {some(found.ids[outside])}")
    if not task.form.simplex:
        return values
    if (off > SUM_LIMIT).any():
        raise UserError(f"{shown(path)}: rows do not sum to one for ids {some(found.ids[off > SUM_LIMIT])}")
    if (off <= SUM_SILENT).all():
        return values
    console.warn(f"{shown(path)}: {int((off > SUM_SILENT).sum())} rows do not quite sum to one; all are scaled")
    return values / values.sum(axis=1, keepdims=True)
