"""A recipe under a budget: when its trainings must stop, what still fits, and what is submitted of an unfinished run.

Every estimate comes from what this recipe measured: the epochs in log.csv, earlier predictions and stacks. None of them
enters a result. Runs whose folds are all trained take part as ever; only where there is none does the run with the most
trained members go on alone, with these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline import advice, artefacts, budget, evaluate, tasks
from pipeline.budget import Limit, Reserve, spell
from pipeline.config import Config, replace
from pipeline.errors import OutOfTime, UserError
from pipeline.members import FOLDER
from pipeline.runs import Run, listed_folds, predicted_runs

MARGIN = 1.5  # times what is estimated is kept
UNKNOWN = 0.1  # of the budget is kept as long as nothing is measured
STARTING = 20.0  # s: libraries, checkpoints, tables, of all steps that follow together
STACKING = 30.0, 1e-4  # s, and s for each OOF value: on the digits ten times what it takes
STACKING_MAPS = 0.5  # s for each image and run
ALWAYS = ("predict", "stack", "submit", "score", "report", "package")  # the steps that no budget leaves out
LEFT_OUT = "left out for the budget"


def begin_member(run: Run) -> None:
    """Raise OutOfTime where not even an epoch fits before the training must stop.

    The first training of a command begins nevertheless: its state is saved in mid-epoch, so that small budgets add up.
    """
    limit = budget.limit()
    if limit is None:
        return
    if limit.reserve == limit.saving:  # no recipe has set it
        limit.reserve = lambda: _alone(run, limit)
    room = limit.trainable()
    if room <= 0 or (limit.used and room < (speed(run) or Speed()).epoch):
        raise OutOfTime
    limit.used = True


def _alone(run: Run, limit: Limit) -> Reserve:
    """What a training keeps that nothing follows: a validation, which nothing interrupts, and its last state."""
    saving, measured = limit.saving(), speed(run)
    if measured is None:
        return saving
    validating = MARGIN * len(run.scored) / run.count / measured.images
    return Reserve(saving.seconds + validating, "a validation and its last state", "the time of its epochs")


def stopped(run: Run) -> str:
    """How far a run is whose training stopped: ``fold 0 is finished, fold 1 stopped in epoch 3 of 10``."""
    done = trained(run)
    states = [f"{listed_folds(done)} {'are' if len(done) > 1 else 'is'} finished"] if done else []
    for fold in range(run.count):
        folder = run.member((fold,))
        if fold not in done and any(folder.rglob("last.ckpt")):
            epochs = sum(len(rows) for rows in _logs(folder))
            whole = run.paced()[0].epochs * run.config.train.seeds
            states.append(f"fold {fold} stopped in epoch {min(epochs + 1, whole)} of {whole}")
    return f"stopped for the budget: {', '.join(states) or 'no fold has begun'}"


def trained(run: Run) -> list[int]:
    """The folds whose members are trained to the end."""
    return [fold for fold in range(run.count) if run.is_trained((fold,))] if run.stored() else []


# --- how long things take -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Of a run's training: seconds of an epoch, images in a second, seconds of one member so far; the slowest each."""

    epoch: float = 0.0
    images: float = math.inf
    member: float = 0.0


def speed(run: Run) -> Speed | None:
    """What the logs of a run's members say; None before its first epoch."""
    logs = [rows for rows in _logs(run.folder) if rows]
    if not logs:
        return None
    last = [rows[-1] for rows in logs]
    return Speed(
        max(row["seconds"] for row in last),
        min(row["images_per_second"] for row in last),
        max(sum(row["seconds"] for row in rows) for rows in logs),
    )


def _logs(folder: Path) -> list[list[dict[str, float]]]:
    found = []
    for path in sorted(folder.rglob("log.csv")):
        try:
            found.append([row for row in advice.log(path) if {"seconds", "images_per_second"} <= row.keys()])
        except UserError:  # a damaged log is written anew with the next epoch
            continue
    return found


def predicting(run: Run, config: Config) -> float:
    """Seconds in which one member predicts its fold and the test rows: as one did before, or as it learns."""
    records = [artefacts.recorded(path) or {} for path in run.folder.glob("fold*/predict.json")]
    known = [record["seconds"] / record["looks"] for record in records if record.get("looks")]
    looks = looked_at(run, config, len(run.scored) / run.count)
    measured = speed(run)
    return looks * max(known) if known else looks / measured.images if measured else 0.0


def looked_at(run: Run, config: Config, own: float) -> float:
    """Images that one member predicts, each as often as there are views and scales; own: those of its fold."""
    return (own + len(run.competition.test)) * len(config.views) * len(config.scales)


def stacking(config: Config, runs: Sequence[Run]) -> float:
    """Seconds that level 2 takes: as it did before, or a generous guess from the size of its table."""
    records = artefacts.runs_folder(config).glob(f"{FOLDER}/*/stack.json")
    known = [(artefacts.recorded(path) or {}).get("seconds", 0.0) for path in records]
    if any(known):
        return float(max(known))
    rows = sum(len(run.scored) for run in runs)
    if tasks.facts(config.task).get("spatial"):
        return STACKING[0] + STACKING_MAPS * rows
    columns = len(tasks.task_for(config, runs[0].competition).columns)
    return STACKING[0] + STACKING[1] * rows * columns


def afterwards(config: Config, run: Run, limit: Limit) -> float:
    """Seconds that a recipe keeps for its steps behind the trainings and predictions of a run like this."""
    return limit.saving().seconds + MARGIN * (STARTING + stacking(config, [run]))


# --- the recipe ---------------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """The steps of a recipe and the limit that they share; without a limit each goes as it is.

    over: no training begins any more. left_out: the steps that are, or that stopped. source, fold: what is submitted
    instead of the level 2; nothing at all where no member is trained.
    """

    config: Config
    steps: Sequence[Config]
    over: bool = False
    left_out: list[str] = field(default_factory=list)
    source: str = ""
    fold: list[str] = field(default_factory=lambda: ["all"])

    def __post_init__(self) -> None:
        if limit := budget.limit():
            limit.reserve = lambda: self.reserve(limit)

    @cached_property
    def runs(self) -> list[tuple[Run, Config]]:
        """The runs that the recipe trains, with the steps that do."""
        steps = {artefacts.run_name(step): step for step in self.steps if step.stage == "train"}
        return [(Run(step, name), step) for name, step in steps.items()]

    def fitting(self, step: Config) -> tuple[Config, str]:
        """The step as it can be done in the time that is left; or why it is left out."""
        limit = budget.limit()
        if limit is None or step.stage == "split":  # what is estimated reads the folds
            return step, ""
        self.over = self.over or budget.over()
        if step.stage in ALWAYS:
            step, why = CHANGED[step.stage](self, step) if self.over and step.stage in CHANGED else (step, "")
        elif step.stage in ("train", "pseudo", "distill"):
            why = self._too_long(step, limit)
        else:
            why = LEFT_OUT if self.over else ""
        if why:
            self.left_out.append(step.stage)
        return step, why

    def stop(self, step: Config, end: OutOfTime) -> str:
        """A training ended for the budget: none begins any more. Returns how far the step is."""
        self.over = True
        self.left_out.append(step.stage)
        return stopped(Run(step, artefacts.run_name(step))) if step.stage == "train" else str(end)

    def reserve(self, limit: Limit) -> Reserve:
        """What predict, stack and submit take: of trained members that are not predicted, and of the one at hand."""
        saving, purpose = limit.saving().seconds, "predict, stack and submit"
        known = [(run, step, measured) for run, step in self.runs if (measured := speed(run))]
        if not known:
            return Reserve(max(saving, UNKNOWN * limit.seconds), purpose, "a guess, until an epoch is timed")
        waiting, at_hand = 0.0, 0.0
        for run, step, measured in known:
            one, own = predicting(run, step), len(run.scored) / run.count
            waiting += one * sum(not (run.member((fold,)) / "predict.json").exists() for fold in trained(run))
            at_hand = max(at_hand, one + own / measured.images)  # and a validation, which nothing interrupts
        whole = STARTING + waiting + at_hand + stacking(self.config, [run for run, _, _ in known])
        return Reserve(saving + MARGIN * whole, purpose, "the time of its epochs")

    def least(self) -> str:
        """What a budget must be for a first submission, as far as it can be said."""
        known = [(run, measured) for run, _ in self.runs if (measured := speed(run))]
        limit = budget.limit()
        if not known or limit is None:
            return "no epoch was finished, so that nobody knows how long a member takes"
        run, measured = known[0]
        seconds = measured.epoch * run.paced()[0].epochs * run.config.train.seeds + self.reserve(limit).seconds
        return f"a first submission takes about {spell(seconds)} from the start"

    def _too_long(self, step: Config, limit: Limit) -> str:
        """Why a step that trains is left out; of students, too, where the time left is shorter than they take."""
        base, student = _names(step)
        made = Run(step, student)
        missing = made.count - len(trained(made))
        if not missing:
            return ""
        if self.over:
            return LEFT_OUT
        source = Run(step, base)
        measured = speed(source)
        if step.stage == "train" or measured is None:
            return ""
        learns_test = step.stage == "pseudo" or step.distill.unlabelled
        growth = 1 + learns_test * len(source.competition.test) / len(source.scored)
        needed = MARGIN * missing * (measured.member * growth + predicting(source, step))
        room = limit.trainable()
        return f"{LEFT_OUT}: it takes about {spell(needed)}, and {spell(room)} are left" if needed > room else ""

    # --- what goes on with what is there ---

    def _whole(self) -> list[Run]:
        """The recipe's runs whose folds are all trained."""
        return [run for run, _ in self.runs if len(trained(run)) == run.count]

    def _part(self) -> tuple[Run, list[int]] | None:
        """The run with the most trained members, and their folds, where no run is whole."""
        known = [(run, folds) for run, _ in self.runs if (folds := trained(run))]
        return max(known, key=lambda pair: len(pair[1]), default=None)

    def _predict(self, step: Config) -> tuple[Config, str]:
        name, whole, part = artefacts.run_name(step), self._whole(), self._part()
        if name in [run.name for run in whole] or name not in [run.name for run, _ in self.runs]:
            return step, ""
        if whole or part is None or part[0].name != name:
            return step, f"{LEFT_OUT}: its folds are not all trained"
        return replace(step, fold=[str(fold) for fold in part[1]]), ""

    def _stack(self, step: Config) -> tuple[Config, str]:
        there, asked = predicted_runs(self.config), step.stack.members
        runs = [run for run in there if asked == ["all"] or run.name in asked]
        if runs and stacking(self.config, runs) <= self._left():
            return (step if asked == ["all"] else replace(step, stack__members=[run.name for run in runs])), ""
        if runs:
            self.source = best(runs).name
            return step, f"{LEFT_OUT}: {self.source} is the best single run"
        if part := self._part():
            self.source, self.fold = part[0].name, [str(fold) for fold in part[1]]
        return step, f"{LEFT_OUT}: no run has all its folds"

    def _submit(self, step: Config) -> tuple[Config, str]:
        if "stack" not in self.left_out:
            return step, ""
        if not self.source:
            return step, f"{LEFT_OUT}: no member is trained to the end; {self.least()}"
        return replace(step, source=self.source, fold=self.fold), ""

    def _score(self, step: Config) -> tuple[Config, str]:
        if "submit" in self.left_out:
            return step, f"{LEFT_OUT}: there is no submission"
        return (replace(step, submission=step.submission or self.source), "") if self.source else (step, "")

    def _left(self) -> float:
        limit = budget.limit()
        return limit.left() if limit else math.inf


CHANGED = {"predict": Recipe._predict, "stack": Recipe._stack, "submit": Recipe._submit, "score": Recipe._score}


def _names(step: Config) -> tuple[str, str]:
    """The run whose speed tells that of the step's own, and the run that the step trains."""
    name = artefacts.run_name(step)
    if step.stage == "distill":
        student = step.run or f"{step.model}-distilled"
        return student.removesuffix("-distilled"), student
    return name, f"{name}-r1" if step.stage == "pseudo" else name


def best(runs: Iterable[Run]) -> Run:
    """The run with the best OOF score."""

    def gain(run: Run) -> float:
        task = tasks.task_for(run.config, run.competition)
        return evaluate.metric(run.config.metric, task).gain(run.truth(task), run.oof().values)

    return max(runs, key=gain)
