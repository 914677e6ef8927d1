"""The trainings of ``stage=tune``: each slot of a study a short training, scored on the held-out folds' own rows."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import checkpoint, console, training
from pipeline.artefacts import Predictions
from pipeline.config import replace
from pipeline.errors import Diverged
from pipeline.hardware import Hardware
from pipeline.parts.schedules import in_shares
from pipeline.prediction import open_member
from pipeline.runs import Run
from pipeline.study import Slot, Study, optuna
from pipeline.tasks import task_for
from pipeline.tuned import shown_settings


def work(study: Study, run: Run, epochs: int, keep: bool = False) -> list[Slot]:
    """Train the slots that are open, beside whoever else does; returns all of them once the last has finished.

    keep: each finished slot also keeps the predictions of its held-out rows.
    """
    first_pass = True
    while open_ := sorted(set(range(study.slots)) - {slot.number for slot in study.finished()}):
        for number in open_:
            with study.claimed(number, wait=not first_pass) as mine:
                if mine and number not in {slot.number for slot in study.finished()}:
                    train(study, run, number, epochs, keep)
        first_pass = False  # what is open now is held by others; once one lets go, its trial is finished or anybody's
    return [slot for slot in study.finished() if slot.number < study.slots]


def train(study: Study, run: Run, number: int, epochs: int, keep: bool) -> None:
    """Train one slot's member a fold, from the start or from where a killed process left it, and finish its trial."""
    trial, folder = study.begin(number), study.place(number)
    settings = study.settings(number, trial)
    console.say(f"{study.name.partition('-')[0]} {number + 1}/{study.slots}: {shown_settings(settings)}")
    if same := next((slot for slot in study.finished() if slot.settings == settings), None):
        console.say(f"  as trial {same.number + 1}, whose score it shares")  # the same settings train the same weights
        study.end(trial, same.score, same.epochs, settings, same.ended)
        return
    done = 0

    def watch(score: float) -> None:
        nonlocal done
        if done < (place + 1) * epochs:  # what a soup tries at the end is no epoch
            study.report(trial, done, score)
            done += 1

    scores, ended, place = [], "done", 0
    try:
        for place, fold in enumerate(run.config.tune.folds):
            own = folder / f"fold{fold}"
            done = place * epochs + _epochs_done(own)
            scores.append(_score(trial_run(run, settings, epochs), fold, own, watch, keep))
    except optuna().TrialPruned:
        ended = "pruned"
        done += 1
    except Diverged as fault:
        console.say(f"  {fault}".split(";")[0])
        ended = "diverged"
    study.end(trial, float(np.mean(scores)) if ended == "done" else math.nan, done, settings, ended)
    tidy(folder)


def trial_run(run: Run, settings: dict[str, Any], epochs: int) -> Run:
    """The run with a trial's settings; its schedule spans the trial's epochs, and its last epoch counts."""
    changes = {key.replace(".", "__"): value for key, value in settings.items()}
    changes["schedule"] = in_shares(changes.get("schedule", run.config.schedule), run.config.epochs)
    return Run(replace(run.config, **changes, epochs=epochs, select="last", train__patience=0), run.name)


def _score(run: Run, fold: int, folder: Path, watch: Any, keep: bool) -> float:
    machine = Hardware(**run.machine())
    progress, _, _ = training.fit_member(run, (fold,), machine, folder, watch)
    task = task_for(run.config, run.competition)
    if keep and not task.form.spatial:
        member = open_member(folder, run.config, run.competition, task, machine)
        rows = np.flatnonzero(run.folds == fold)
        ids = run.competition.train["id"].to_numpy()[rows]
        Predictions(ids, member.own(rows), task.space).save(folder / "values.npz")
    return progress.history[-1]["score"] if progress.final is None else progress.final


def _epochs_done(folder: Path) -> int:
    """The epochs that a killed process finished here."""
    path = folder / "last.ckpt"
    return int(checkpoint.load_checkpoint(path)["progress"]["epoch"]) if path.exists() else 0


def tidy(folder: Path) -> None:
    """Keep a finished trial's logs and predictions, and nothing large."""
    for path in folder.glob("*/*.ckpt"):
        path.unlink()
    for path in folder.glob("*/tensorboard"):
        shutil.rmtree(path, ignore_errors=True)
