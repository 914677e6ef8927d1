"""Level 2: one model over the out-of-fold predictions of several runs, scored by nested cross-validation.

Every method is fitted on the OOF rows of all folds but one and predicts that one; the pooled predictions give its
nested score. Chosen is the simplest method within one paired standard error of the best nested score. Choosing among
scores and then reporting one of them is slightly optimistic; the rule keeps that small, since complexity must be
earned. The chosen one is fitted again on all OOF rows, applied to each member's test predictions, and averaged over
the folds.

A second-order leak stays: the OOF predictions of other folds come from members that trained on the held-out fold.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artefacts, console, evaluate, registry
from pipeline.artefacts import Predictions, shown
from pipeline.competition import load, read_folds
from pipeline.config import Config, replace
from pipeline.console import Outcome
from pipeline.errors import UserError
from pipeline.runs import Run
from pipeline.stages import submit
from pipeline.tasks import task_for

FOLDER = "level2"  # stands among the runs, and is none


@dataclass(frozen=True)
class Table:
    """What a level 2 learns from: OOF values (N, M, C) float32, truth (N,) int64 and folds (N,) int64 of its rows."""

    members: list[str]
    values: np.ndarray
    truth: np.ndarray
    folds: np.ndarray
    metric: evaluate.Metric

    @property
    def best(self) -> int:
        """The index of the run with the best OOF score; the first of equals."""
        gains = [self.metric.gain(self.truth, self.values[:, member]) for member in range(len(self.members))]
        return int(np.argmax(gains))


@dataclass(frozen=True)
class Candidate:
    """A level-2 method with its nested predictions (N, C), their score, and its paired gain over the best run."""

    call: str
    order: int
    values: np.ndarray
    score: evaluate.Score
    gain: float
    gain_se: float


def run(config: Config) -> list[Outcome]:
    """Fit, score and choose a level 2; writes ``runs/<competition>/level2/<stack.name>/`` and its submission."""
    started = time.perf_counter()
    name = artefacts.safe_name(config.stack.name, "stack.name")
    methods(config, 0)  # wrong names fail before any data is read
    competition = load(config)
    folds, task = read_folds(config, competition), task_for(config, competition)
    members = find_members(config, int(folds.max()) + 1)
    calls = methods(config, len(folds) * len(members) * len(task.columns) ** 2)
    folder = artefacts.runs_folder(config) / FOLDER / name
    outputs = [folder / file for file in ("level2.json", "stacker.npz", "nested.npz", "test.npz")]
    print_ = fingerprint(config, competition.fingerprint, folds, members, calls)
    if known := artefacts.finished(folder / "stack.json", print_, *outputs):
        submit.run(replace(config, source=name))
        return [Outcome("stack", name, nested=known["nested"], note=known["note"], reused=True, facts=known["facts"])]

    oof = np.stack([read(member.name, [member.oof()], task.columns)[0] for member in members], axis=1)
    test = np.stack([read(member.name, member.tests(), task.columns) for member in members], axis=2)
    truth = task.targets(competition.train["target"].to_numpy())
    table = Table([member.name for member in members], oof, truth, folds, evaluate.metric(config.metric))
    candidates = [score_method(call, table) for call in calls]
    chosen, reason = choose(config.stack.choose, candidates, table)
    show(table, candidates, chosen, reason)
    stacker = registry.build("level2", chosen.call)().fit(oof, truth, table.metric)
    answer = np.stack([stacker.predict(values) for values in test]).mean(axis=0, dtype=np.float64)

    (folder / "stack.json").unlink(missing_ok=True)  # never beside outputs that it does not describe
    made_by = {"level2": chosen.call, "members": table.members, "commit": artefacts.commit()}
    write_state(folder / "stacker.npz", stacker.state())
    Predictions(competition.train["id"].to_numpy(), chosen.values, task.space, made_by).save(folder / "nested.npz")
    Predictions(competition.test["id"].to_numpy(), answer, task.space, made_by).save(folder / "test.npz")
    artefacts.write_json(folder / "level2.json", describe(table, candidates, chosen, reason, stacker, task.columns))
    facts = {"method": chosen.call, "nested": chosen.score.value, "nested_se": chosen.score.se, "gain": chosen.gain}
    note = f"{chosen.call} over {', '.join(table.members)}"
    seconds = time.perf_counter() - started
    artefacts.finish(folder / "stack.json", print_, nested=str(chosen.score), note=note, seconds=seconds, facts=facts)
    submit.run(replace(config, source=name))
    return [Outcome("stack", name, nested=str(chosen.score), note=note, seconds=seconds, facts=facts)]


# --- what is stacked ----------------------------------------------------------------------------------------------


def methods(config: Config, work: float) -> list[str]:
    """The level-2 methods to try, as checked call-strings.

    work: N·M·C² of the table; ``all`` leaves out what is not installed and what such a table would keep busy for long.
    """
    calls = []
    simplest_first = sorted(registry.parts("level2").values(), key=lambda part: part.facts["order"])
    for text in config.stack.methods:
        if text == "all":
            calls += [f"{part.name}()" for part in simplest_first if _feasible(part.facts, work)]
        else:
            calls.append(str(registry.bind("level2", text)[1]))
    if config.stack.choose != "auto":
        calls.append(str(registry.bind("level2", config.stack.choose)[1]))
    return list(dict.fromkeys(calls))


def _feasible(facts: dict[str, Any], work: float) -> bool:
    installed = "needs" not in facts or importlib.util.find_spec(facts["needs"]) is not None
    return installed and work <= facts.get("most_work", float("inf"))


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
    return f"{missing[0].parent.name}/{missing[0].name} is missing" if missing else ""


def fingerprint(config: Config, data: str, folds: np.ndarray, members: list[Run], calls: list[str]) -> str:
    """Changes with anything that the result depends on; data is the competition's fingerprint."""
    digests = {
        run.name: [
            artefacts.file_digest(run.member((fold,)) / name)
            for fold in range(int(folds.max()) + 1)
            for name in ("oof.npz", "test.npz")
        ]
        for run in members
    }
    settings = [config.task, config.metric, config.stack.choose, calls]
    return artefacts.fingerprint("stack", data, folds.tolist(), settings, list(digests), digests)


def read(name: str, members: list[Predictions], columns: list[str]) -> np.ndarray:
    """(K, N, C) float32: the values of a run's K predictions, which must have the competition's classes."""
    for member in members:
        if member.values.shape[1] != len(columns):
            raise UserError(
                f"the run {name} predicts {member.values.shape[1]} columns, but the competition has {len(columns)} "
                f"classes; train and predict it again, or leave it out: stack.members=…"
            )
    return np.stack([member.values for member in members])


# --- nested cross-validation and choice ---------------------------------------------------------------------------


def score_method(call: str, table: Table) -> Candidate:
    """A method's nested predictions, their score and its paired gain over the best single run."""
    values = nested_values(call, table)
    score = evaluate.score_folds(table.metric, table.truth, values, table.folds, "nested")
    gain, gain_se = evaluate.paired_gain(table.metric, table.truth, table.values[:, table.best], values)
    return Candidate(call, registry.facts("level2", call)["order"], values, score, gain, gain_se)


def nested_values(call: str, table: Table) -> np.ndarray:
    """(N, C) float32: each fold's rows as predicted by the method fitted on the other folds' OOF rows."""
    nested = np.empty_like(table.values[:, 0])
    for fold in np.unique(table.folds):
        held_out = table.folds == fold
        stacker = registry.build("level2", call)()
        stacker.fit(table.values[~held_out], table.truth[~held_out], table.metric)
        nested[held_out] = stacker.predict(table.values[held_out])
    return nested


def choose(name: str, candidates: list[Candidate], table: Table) -> tuple[Candidate, str]:
    """The method by name, or for auto the simplest within one paired standard error of the best; and why."""
    if name != "auto":
        call = str(registry.bind("level2", name)[1])
        return next(c for c in candidates if c.call == call), f"as stack.choose={name} asks"
    gains = {c.call: table.metric.gain(table.truth, c.values) for c in candidates}
    simplest_first = sorted(candidates, key=lambda c: (c.order, -gains[c.call]))
    best = max(simplest_first, key=lambda c: gains[c.call])
    for candidate in simplest_first:
        lost, se = evaluate.paired_gain(table.metric, table.truth, candidate.values, best.values)
        if candidate is not best and lost <= se * (1 + 1e-9):  # equal but for rounding is not beyond
            return candidate, f"the simplest within one paired standard error of {best.call}, the best nested score"
        if candidate is best:
            break
    return best, "the best nested score, and nothing simpler is within one paired standard error of it"


# --- what is written and shown ------------------------------------------------------------------------------------


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a stacker's arrays and texts as npz, without pickles."""
    with artefacts.atomic(path) as handle:
        np.savez_compressed(handle, **state)


def read_stacker(folder: Path) -> Any:
    """The fitted stacker of a level-2 folder, ready to predict."""
    call = artefacts.read_json(folder / "level2.json")["method"]
    with np.load(folder / "stacker.npz", allow_pickle=False) as content:
        state = {key: str(content[key]) if content[key].dtype.kind == "U" else content[key] for key in content}
    return registry.build("level2", call)().load_state(state)


def describe(
    table: Table, candidates: list[Candidate], chosen: Candidate, reason: str, stacker: Any, columns: list[str]
) -> dict[str, Any]:
    """What ``level2.json`` holds."""
    weights = stacker.state().get("weights")
    return {
        "method": chosen.call,
        "reason": reason,
        "metric": table.metric.name,
        "members": table.members,
        "columns": list(columns),
        "weights": None if weights is None else dict(zip(table.members, weights.tolist(), strict=True)),
        "nested": [
            {
                "method": c.call, "order": c.order, "score": c.score.value, "se": c.score.se, "folds": c.score.folds,
                "gain": c.gain, "gain_se": c.gain_se,
            }
            for c in candidates
        ],
        "leak": "second order: level 2 is fitted on OOF predictions",
    }  # fmt: skip


def show(table: Table, candidates: list[Candidate], chosen: Candidate, reason: str) -> None:
    """Print the runs, every candidate with its paired gain over the best run, and the choice."""
    width = max(len(text) for text in [*table.members, *(c.call for c in candidates)])
    console.say(f"stack: {table.metric.name} on {len(table.truth)} rows; runs, each row by one member")
    for index, name in enumerate(table.members):
        score = evaluate.score_folds(table.metric, table.truth, table.values[:, index], table.folds)
        console.say(f"    {name:<{width}}  {score}")
    console.say(f"  level 2, nested CV on the same folds; paired gain over {table.members[table.best]}")
    for c in candidates:
        mark = "→" if c is chosen else " "
        console.say(f"  {mark} {c.call:<{width}}  {c.score}  {c.gain:+.4f} ± {c.gain_se:.4f}")
    console.say(f"  chosen: {chosen.call}, {reason}")
    console.say(
        f"  each score is of one member a row; test predictions average {len(np.unique(table.folds))} members\n"
        "  second-order leak: level 2 is fitted on OOF, whose members saw the held-out fold's labels"
    )
