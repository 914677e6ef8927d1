"""What a level 2 is made of, where it lies, and whether it is there already: the same for every form of values."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artefacts, console
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config
from pipeline.console import Outcome
from pipeline.errors import UserError
from pipeline.evaluate import Score
from pipeline.features import Features
from pipeline.folds import read_folds
from pipeline.maps import SUFFIX
from pipeline.runs import Run
from pipeline.tasks import Task, task_for

FOLDER = "level2"  # stands among the runs, and is none


@dataclass(frozen=True)
class Work:
    """A level 2 in the making: its runs, the folds (N,) of all training rows, and the folder that it goes to."""

    config: Config
    name: str
    started: float
    competition: Competition
    folds: np.ndarray
    task: Task
    members: list[Run]

    @property
    def folder(self) -> Path:
        """``runs/<competition>/level2/<name>``."""
        return artefacts.runs_folder(self.config) / FOLDER / self.name

    @property
    def names(self) -> list[str]:
        """The runs' names."""
        return [member.name for member in self.members]

    def fingerprint(self, calls: list[str], side: Features | None = None) -> str:
        """Changes with anything that the result depends on."""
        return fingerprint(self.config, self.competition.fingerprint, self.folds, self.members, calls, side)

    def reused(self, print_: str, outputs: tuple[str, ...]) -> Outcome | None:
        """What was recorded, if the work was finished with this fingerprint and its outputs still stand."""
        known = artefacts.finished(self.folder / "stack.json", print_, *(self.folder / file for file in outputs))
        if not known or known.get("outputs") != self._digests():
            return None
        return Outcome(
            "stack", self.name, nested=known["nested"], note=known["note"], reused=True, facts=known["facts"]
        )

    def forget(self) -> None:
        """Remove the record: it never stands beside outputs that it does not describe."""
        (self.folder / "stack.json").unlink(missing_ok=True)

    def finish(self, print_: str, score: Score, made: str, **facts: Any) -> Outcome:
        """Record the score and how it was made, last of all."""
        nested, note = str(score), f"{made} over {', '.join(self.names)}"
        found = {**facts, "nested": score.value, "nested_se": score.se}
        seconds = time.perf_counter() - self.started
        record = {"nested": nested, "note": note, "seconds": seconds, "facts": found}
        artefacts.finish(self.folder / "stack.json", print_, **record, outputs=self._digests())
        return Outcome("stack", self.name, **record)

    def _digests(self) -> dict[str, str]:
        """What tells whether the folder's files are still those that were written; of pixels only their size."""
        files = sorted(path for path in self.folder.glob("*.*") if path.suffix in (".json", ".npz"))
        found = {path.name: artefacts.file_digest(path) for path in files if path.name != "stack.json"}
        return found | {path.name: str(path.stat().st_size) for path in sorted(self.folder.glob(f"*{SUFFIX}"))}


def begin(config: Config, name: str) -> Work:
    """The runs to stack, and what they belong to."""
    started = time.perf_counter()
    competition = load(config)
    folds, task = read_folds(config, competition), task_for(config, competition)
    return Work(config, name, started, competition, folds, task, find_members(config, int(folds.max()) + 1))


def find_members(config: Config, count: int) -> list[Run]:
    """The runs to stack: those named, or all that have predictions of every fold and were not rejected.

    Raises UserError where a named run lacks predictions, with the command that makes them, or where none is left.
    """
    if config.stack.members != ["all"]:
        named = [Run(config, name) for name in dict.fromkeys(config.stack.members)]
        for run in named:
            if missing := missing_files(run, count):
                raise UserError(
                    f"stack.members={run.name}, but {shown(missing[0])} does not exist; make it: ./run.sh "
                    f"stage=predict competition={config.competition} run={run.name} fold={missing[0].parent.name[4:]}"
                )
        return named
    folder = artefacts.runs_folder(config)
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir() and path.name != FOLDER)
    found = [Run(config, name) for name in names]
    reasons = {run.name: why_not(run, count) for run in found}
    for name, why in reasons.items():
        if why:
            console.say(f"stack: {name} is left out: {why}")
    if all(reasons.values()):
        raise UserError(
            f"{shown(folder)} has no run with predictions of all {count} folds; make one: ./run.sh stage=train "
            f"competition={config.competition}, then the same with stage=predict"
        )
    return [run for run in found if not reasons[run.name]]


def missing_files(run: Run, count: int) -> list[Path]:
    """The predictions of every fold that a level 2 needs and that are not there."""
    files = [run.member((fold,)) / name for fold in range(count) for name in ("oof.npz", "test.npz")]
    return [file for file in files if not file.is_file()]


def why_not(run: Run, count: int) -> str:
    """Why a run is no member when all are asked for; empty if it is one."""
    if run.rejected:
        return f"rejected ({run.rejected})"
    missing = missing_files(run, count)
    if len(missing) == 2 * count and (run.member(()) / "test.npz").is_file():
        return "trained on everything (fold=full), so it has no OOF predictions"
    if missing:
        return f"{missing[0].parent.name}/{missing[0].name} is missing"
    if run.fits_folds():
        return ""
    lacking = run.has_networks and run.competition.absorbed
    again = f"if only absorbed rows are missing, predict it again ({run.command('predict')}); else " if lacking else ""
    return f"it was made on other folds; {again}train it again with overwrite=true, or delete it"


def fingerprint(
    config: Config, data: str, folds: np.ndarray, members: list[Run], calls: list[str], side: Features | None
) -> str:
    """Changes with anything that the result depends on; data is the competition's fingerprint."""
    digests = {
        run.name: [
            artefacts.file_digest(run.member((fold,)) / name)
            for fold in range(int(folds.max()) + 1)
            for name in ("oof.npz", "test.npz")
        ]
        for run in members
    }
    settings = [config.task, config.metric, config.stack.choose, config.stack.decisions, calls, config.folds.seed]
    print_ = None if side is None else side.fingerprint
    return artefacts.fingerprint("stack", data, folds.tolist(), settings, list(digests), digests, print_)
