"""Deal the training rows to folds, once: folds/<competition>.csv, which team mates share."""

from __future__ import annotations

import time

import numpy as np

from pipeline.artefacts import folds_file, shown
from pipeline.competition import ensure_folds, load
from pipeline.config import Config
from pipeline.console import Outcome, say


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
    say(_table(folds, competition.train["target"].to_numpy()))
    facts = {"folds": int(folds.max()) + 1, "rows": len(folds)}
    note = f"{facts['folds']} folds of {facts['rows']} rows"
    return [Outcome("split", seconds=time.perf_counter() - began, note=note, reused=reused, facts=facts)]


def _table(folds: np.ndarray, target: np.ndarray) -> str:
    lines = ["fold   rows  classes"]
    for fold in np.unique(folds):
        inside = target[folds == fold]
        lines.append(f"{fold:>4}  {len(inside):>5}  {len(set(inside)):>7}")
    return "\n".join(lines)
