"""Deal the training rows to folds, once: folds/<competition>.csv, which team mates share."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from pipeline.artefacts import folds_file, shown
from pipeline.competition import load
from pipeline.config import Config
from pipeline.console import Outcome, say
from pipeline.folds import NEVER, ensure_folds, learns_from
from pipeline.tasks import task_for


def run(config: Config) -> list[Outcome]:
    """Write the folds, or say that those there are the ones asked for; else a UserError offers overwrite=true."""
    began = time.perf_counter()
    competition = load(config)
    path = folds_file(config)
    before = path.read_bytes() if path.is_file() else None
    folds = ensure_folds(config, competition, config.overwrite)
    reused = path.read_bytes() == before
    if reused:
        say(f"{shown(path)}: stands as asked for, nothing to do")
    task: Any = task_for(config, competition)
    if competition.masks:
        say(_table_of_masks(folds, task.covered(competition.targets)))
    else:
        learned = functools.partial(learns_from, config, folds)
        truth = task.form.apart(task.targets(competition.targets), folds, learned)
        say(_table(folds, task.strata(competition.targets), task.form.unseen(truth)))
    facts = {"folds": int(folds.max()) + 1, "rows": len(folds)}
    note = f"{facts['folds']} folds of {facts['rows']} rows"
    return [Outcome("split", seconds=time.perf_counter() - began, note=note, reused=reused, facts=facts)]


def _table(folds: np.ndarray, strata: np.ndarray, new: np.ndarray | None) -> str:
    """A line a fold: its rows, the classes in it or the mean of its numbers, and the share new to its member."""
    numbers = strata.dtype.kind == "f"
    lines = [f"fold   rows  {'mean' if numbers else 'classes':>7}{'' if new is None else '    new'}"]
    for fold in np.unique(folds):
        inside = strata[folds == fold]
        seen = (inside.sum(axis=0) > 0).sum() if inside.ndim == 2 else len(set(inside.tolist()))
        name = "all" if fold == NEVER else fold  # every member learns from these rows
        share = "" if new is None or fold == NEVER else f"  {new[folds == fold].mean():>5.1%}"
        lines.append(f"{name:>4}  {len(inside):>5}  {f'{inside.mean():.4g}' if numbers else seen:>7}{share}")
    return "\n".join(lines)


def _table_of_masks(folds: np.ndarray, covered: np.ndarray) -> str:
    """A line a fold: its images, those without anything, and the mean share that is covered in the others."""
    lines = ["fold   rows  empty  covered"]
    for fold in np.unique(folds):
        inside = covered[folds == fold]
        name = "all" if fold == NEVER else fold  # every member learns from these rows
        filled = inside[inside > 0]
        share = f"{filled.mean():.2%}" if len(filled) else "–"
        lines.append(f"{name:>4}  {len(inside):>5}  {len(inside) - len(filled):>5}  {share:>7}")
    return "\n".join(lines)
