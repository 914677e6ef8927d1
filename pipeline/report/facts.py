"""What report.html is made of, read once from runs/, folds/ and submissions/; nothing is trained, torch is not needed.

What is missing or damaged is told as a problem of its run: a report never fails for one of them.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artefacts, evaluate, mining
from pipeline.artefacts import Predictions
from pipeline.competition import Competition, load
from pipeline.config import Config, keys, replace
from pipeline.errors import UserError
from pipeline.evaluate import Metric, Score
from pipeline.folds import read_folds
from pipeline.members import FOLDER
from pipeline.mining import Mined
from pipeline.runs import Run, listed_folds
from pipeline.tasks import Task, task_for

DRAWS = 2e7  # values that one bootstrap may look at; with fewer draws its error is a little less exact
UNEQUAL = ("tuned",)  # settings that say where others come from


@dataclass(frozen=True)
class Kept(Run):
    """A run whose config.yaml is read once: a report asks for it often, and changes nothing."""

    @cached_property
    def _read(self) -> dict[str, Any]:
        return super().stored()

    def stored(self) -> dict[str, Any]:
        """See ``Run``."""
        return self._read


@dataclass(frozen=True)
class Entry:
    """A run, or a level 2, with what it says of training rows that it did not learn from.

    rows: (n,) int64, places of these rows in the training table. folds: (n,) their folds. made_by: what made its
    scores, such as "OOF", "OOF, partial: fold 0 of 5" or "nested". run: None of a level 2. told: the score that a level
    2 was recorded with: where it chose numbers for each part of nested CV alone, only that one is nested.
    """

    name: str
    task: Task
    metric: Metric
    rows: np.ndarray
    folds: np.ndarray
    truth: Any
    values: Any
    ids: np.ndarray
    made_by: str
    settings: Any
    run: Run | None = None
    told: Score | None = None

    @cached_property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """What the metric looks at."""
        return self.metric.seen(self.truth, self.values)

    @property
    def score(self) -> Score:
        """Of all rows, with the folds' own."""
        return self.told or self.scored

    @cached_property
    def scored(self) -> Score:
        """The score of what is here, row by row: of a level 2 with the numbers that its submission has."""
        return evaluate.score_seen(self.metric, *self.seen, self.folds, self.made_by)

    @property
    def exact(self) -> bool:
        """Whether rows and score are of the same answers."""
        return bool(np.isclose(self.score.value, self.scored.value, equal_nan=True))

    @property
    def rows_by(self) -> str:
        """What made the answers that are here, row by row."""
        return self.made_by if self.exact else "not nested: the numbers of its submission"

    @property
    def competition(self) -> Competition:
        """The tables."""
        return load(self.settings)

    @cached_property
    def mined(self) -> Mined | None:
        """What it confuses; None of forms that stage=mine knows nothing of."""
        if self.task.form.name not in mining.MINERS:
            return None
        return mining.mine(self.task, self.truth, self.values, self.ids, self.settings.mine)

    @property
    def gains(self) -> np.ndarray:
        """(n,) float64, more is better: each row's own score, or less its loss where the metric has none of a row."""
        if self.metric.rowwise or self.task.form.spatial:
            return self.metric.sign * self.metric.rows(*self.seen)
        return -self.task.form.distance(self.truth, self.values)

    def over(self, other: Entry) -> tuple[float, float]:
        """Its gain over another's predictions of the same rows, and the paired standard error of that."""
        if not (np.array_equal(self.rows, other.rows) and self.exact and other.exact):
            return math.nan, math.nan
        samples = int(np.clip(DRAWS / max(1, np.size(self.seen[1])), 100, 1000))
        return evaluate.paired(self.metric, other.seen[1], self.seen[1], self.seen[0], samples=samples)


@dataclass(frozen=True)
class Facts:
    """All that the sections draw. config: of this command; the rest is read when it is asked for."""

    config: Config
    problems: dict[str, str] = field(default_factory=dict)  # run → why it has no score

    @cached_property
    def competition(self) -> Competition:
        """The tables."""
        return load(self.config)

    @cached_property
    def folds(self) -> np.ndarray:
        """(N,) int64."""
        return read_folds(self.config, self.competition)

    @cached_property
    def task(self) -> Task:
        """The competition's task."""
        return task_for(self.config, self.competition)

    @property
    def count(self) -> int:
        """The number of folds."""
        return int(self.folds.max()) + 1

    @cached_property
    def runs(self) -> list[Run]:
        """Every run of which there is anything, by name."""
        return [Kept(self.config, name) for name in run_names(self.config)]

    @cached_property
    def entries(self) -> list[Entry]:
        """Those with OOF predictions of some folds at least; ``problems`` says why others are none."""
        return [entry for run in self.runs if (entry := self._tried(of_run, run.name))]

    @cached_property
    def stacks(self) -> list[Entry]:
        """Every level 2, by name."""
        names = sorted(path.parent.name for path in self.level2.glob("*/nested.npz"))
        return [entry for name in names if (entry := self._tried(of_level2, name))]

    def _tried(self, read: Callable[[Facts, str], Entry | None], name: str) -> Entry | None:
        try:
            entry = read(self, name)
            return entry if entry is None or entry.score else None  # its score is what may fail
        except (UserError, KeyError, ValueError) as fault:
            self.problems[name] = str(fault)
            return None

    @property
    def level2(self) -> Path:
        """The folder of all level 2."""
        return artefacts.runs_folder(self.config) / FOLDER

    def described(self, name: str) -> dict[str, Any]:
        """What a level 2 says of itself."""
        found: dict[str, Any] = artefacts.read_json(self.level2 / name / "level2.json")
        return found

    @cached_property
    def whole(self) -> list[Entry]:
        """Runs with predictions of every fold."""
        every = int((self.folds >= 0).sum())
        return [entry for entry in self.entries if len(entry.rows) == every]

    @cached_property
    def best(self) -> Entry | None:
        """The run that is looked at closely: run=, else that of the best OOF score, of all folds if there is any."""
        named = [entry for entry in self.entries if entry.name == self.config.run]
        kept = [entry for entry in self.whole if not (entry.run and entry.run.rejected)]
        chosen = named or kept or self.whole or self.entries
        return max(chosen, key=lambda one: one.metric.sign * one.score.value) if chosen else None

    @cached_property
    def stack(self) -> Entry | None:
        """The level 2 that is looked at closely: stack.name, else the best."""
        named = [entry for entry in self.stacks if entry.name == self.config.stack.name]
        chosen = named or self.stacks
        return max(chosen, key=lambda one: one.metric.sign * one.score.value) if chosen else None

    @property
    def shown(self) -> list[Entry]:
        """Whose answers are drawn: the best run and the level 2."""
        return [entry for entry in (self.best, self.stack) if entry is not None]

    def parent(self, run: Run) -> Run | None:
        """The run that another came from: of a round the one before, of a student the plain run; else the baseline."""
        names = {one.name: one for one in self.runs}
        stem, dash, end = run.name.rpartition("-")
        if dash and end == "distilled" and stem in names:
            return names[stem]
        if dash and end[:1] == "r" and end[1:].isdigit():
            before = f"{stem}-r{int(end[1:]) - 1}"
            chosen = before if before in names else stem
            if chosen in names:
                return names[chosen]
        first = next((name for name in [*self.config.models, *names] if name in names), "")
        return names[first] if first != run.name else None

    @cached_property
    def submissions(self) -> list[dict[str, Any]]:
        """What lies beside each submission, by name, with ``name`` and its scores as ``public`` and ``private``."""
        folder = artefacts.submissions_folder(self.config)
        found = []
        for path in sorted(folder.glob("*.json")):
            facts = artefacts.recorded(path)
            if facts is not None and path.with_suffix(".csv").exists():
                found.append({**facts, "name": path.stem, **scores_of(facts)})
        return found

    @cached_property
    def looks(self) -> list[dict[str, str]]:
        """The looks at a solution, the first first."""
        path = artefacts.submissions_folder(self.config) / "looks.csv"
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as handle:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(handle)]


# --- runs and level 2 ---------------------------------------------------------------------------------------------


def run_names(config: Config) -> list[str]:
    """The runs of a competition that hold a member's log or predictions."""
    folder = artefacts.runs_folder(config)
    found = {path.parent.parent.name for name in ("log.csv", "oof.npz", "test.npz")
             for member in ("fold*", "full") for path in folder.glob(f"[!.]*/{member}/{name}")}  # fmt: skip
    return sorted(found)


def opened(run: Run) -> Run:
    """The run with the settings that it was made with."""
    return Kept(run.as_trained(), run.name) if run.has_networks else run


def of_run(facts: Facts, name: str) -> Entry | None:
    """A run's OOF, of the folds that it has; None where it has none."""
    run = next(one for one in facts.runs if one.name == name)
    there = [fold for fold in range(run.count) if (run.member((fold,)) / "oof.npz").is_file()]
    if not there:
        return None
    run = opened(run)
    task, rows = task_for(run.config, run.competition), np.flatnonzero(np.isin(run.folds, there))
    oof = run.oof(there)
    check_columns(task, oof)
    part = "" if len(there) == run.count else f", partial: {listed_folds(there)} of {run.count}"
    return entry_of(facts, task, rows, oof, f"OOF{part}", run.name, run)


def of_level2(facts: Facts, name: str) -> Entry:
    """A level 2's nested predictions."""
    nested = Predictions.load(facts.level2 / name / "nested.npz")
    made = facts.described(name)
    settings, told = made.get("settings"), made.get("score")
    task = task_for(replace(facts.config, **settings), facts.competition) if settings else facts.task
    ids = facts.competition.train["id"].to_numpy()
    rows = np.flatnonzero(facts.folds >= 0)
    check_columns(task, nested)
    aligned = nested.align(ids[rows], f"nested predictions of {name}")
    recorded = Score(told["score"], told["se"], "nested", told["folds"]) if isinstance(told, dict) else None
    return dataclasses.replace(entry_of(facts, task, rows, aligned, "nested", name), told=recorded)


def entry_of(
    facts: Facts, task: Task, rows: np.ndarray, said: Predictions, made_by: str, name: str, run: Run | None = None
) -> Entry:
    """Predictions of training rows with their truth; the metric is the competition's own."""
    run_ = run or Run(facts.config, name)
    metric, truth = evaluate.metric(facts.config.metric, task), run_.truth_of(task, rows)
    return Entry(name, task, metric, rows, facts.folds[rows], truth, said.values, said.ids, made_by, facts.config, run)


def check_columns(task: Task, said: Predictions) -> None:
    """UserError where predictions are of another task's columns."""
    if not task.form.searched and said.values.shape[1] != len(task.columns):
        raise UserError(
            f"it predicts {said.values.shape[1]} columns, but the task has {len(task.columns)}: train and predict again"
        )


def differences(run: Run, parent: Run) -> list[str]:
    """The settings in which a run differs from another, as ``key: theirs → its``."""
    default = {name: key.default for name, key in keys().items() if key.rules["scope"] == "run"}
    own, theirs = ({**default, **one.stored().get("settings", {})} for one in (run, parent))
    changed = [key for key in own if own[key] != theirs.get(key) and key not in UNEQUAL]
    return [f"{key}: {plain(theirs.get(key))} → {plain(own[key])}" for key in changed]


def plain(value: Any) -> str:
    """A setting as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value) if value != "" else "none"


def seconds(run: Run) -> float:
    """How long the members trained and predicted, together; NaN where nothing tells."""
    records = [artefacts.recorded(path) for name in ("train.json", "predict.json")
               for path in sorted(run.folder.glob(f"f*/{name}"))]  # fmt: skip
    known = [record["seconds"] for record in records if record and "seconds" in record]
    return float(sum(known)) if known else math.nan


def log(folder: Path) -> dict[str, np.ndarray]:
    """Columns of a member's log.csv, (epochs,) float64 each; empty without one, or where it is damaged."""
    path = folder / "log.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    try:
        return {key: np.array([float(row[key]) for row in rows]) for key in (rows[0] if rows else {})}
    except (TypeError, ValueError):
        return {}


def scores_of(facts: dict[str, Any]) -> dict[str, float]:
    """Public and private scores that a leaderboard gave a submission, NaN where none is known.

    They stand in the last upload of the same csv that was scored, or where somebody wrote them by hand, at the top.
    """
    uploads = [one for one in facts.get("uploads", []) if one.get("csv") == facts.get("csv")]
    told = next((one for one in reversed(uploads) if one.get("public") is not None), facts)
    return {part: _number(told.get(part)) for part in ("public", "private")}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
