"""Level 2: one model over the out-of-fold predictions of several runs, scored by nested cross-validation.

Every method is fitted on the OOF rows of all folds but one and predicts that one; the pooled predictions give its
nested score. Chosen is the simplest method within one paired standard error of the best nested score. Choosing among
scores and then reporting one of them is slightly optimistic; the rule keeps that small, since complexity must be
earned. In the same way a decision (thresholds, class weights, cut points, a temperature) is fitted on the chosen
method's nested values of all folds but one, and kept if it gains more than one paired standard error. Method and
decision are fitted again on all rows, applied to each member's test predictions, and averaged over the folds.

A second-order leak stays: the OOF predictions of other folds come from members that trained on the held-out fold.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artefacts, blended, console, evaluate, features, fused, nested, registry, tasks
from pipeline.artefacts import Predictions, shown
from pipeline.competition import Competition
from pipeline.config import Config, replace
from pipeline.console import Outcome
from pipeline.errors import UserError
from pipeline.features import Features
from pipeline.forms import EMBEDDINGS, FORMS, MAPS
from pipeline.lists import TABLES
from pipeline.members import FOLDER, begin
from pipeline.nested import Candidate, Table
from pipeline.runs import Run
from pipeline.stages import submit
from pipeline.tasks import Task

OUTPUTS = ("level2.json", "stacker.npz", "decision.npz", "nested.npz", "test.npz")


def run(config: Config) -> list[Outcome]:
    """Fit, score and choose a level 2; writes ``runs/<competition>/level2/<stack.name>/`` and its submission."""
    name = artefacts.safe_name(config.stack.name, "stack.name")
    with artefacts.locked(artefacts.runs_folder(config) / FOLDER / name, step=True):
        outcome = STACKS.get(tasks.facts(config.task)["form"], stack)(config, name)
    submit.run(replace(config, source=name))
    return [outcome]


def stack(config: Config, name: str) -> Outcome:
    """A level 2 over tables of values."""
    methods(config, 0)  # wrong names fail before any data is read
    nested.check_decisions(config.stack.decisions)
    work = begin(config, name)
    members, task = work.members, work.task
    calls = methods(config, int((work.folds >= 0).sum()) * len(members) * len(task.columns) ** 2)
    calls, side = with_features(config, work.competition, calls)
    print_ = work.fingerprint(calls, side)
    if known := work.reused(print_, OUTPUTS):
        return known
    made = build(config, read_table(config, members, task, side), calls)
    show(made, members[0])
    work.forget()
    write(work.folder, made, members, task, side)
    facts = {"method": made.chosen.call, "decision": made.decision and made.decided.call, "gain": made.chosen.gain}
    return work.finish(print_, made.decided.score, made.name, **facts)


STACKS: dict[str, Callable[[Config, str], Outcome]] = {  # by the form of values, where these are no tables
    **dict.fromkeys(MAPS, blended.stack),
    EMBEDDINGS.name: fused.stack,
}


@dataclass(frozen=True)
class Level2:
    """A chosen and fitted level 2: the methods and decisions that were tried, those taken, and why."""

    table: Table
    candidates: list[Candidate]
    chosen: Candidate
    reason: str
    tried: list[Candidate]
    decided: Candidate
    stacker: Any
    decision: Any  # None: the task's own

    @property
    def name(self) -> str:
        """Method and decision, as the tables show them."""
        return f"{self.chosen.call} + {self.decided.call}" if self.decision else self.chosen.call


def build(config: Config, table: Table, calls: list[str]) -> Level2:
    """Score the methods, choose one, score the decisions on its nested values, choose one; fit both on all rows."""
    changes = nested.decisions(config.stack.decisions, table.values[:, table.best], table)  # fails before the long work
    candidates = [nested.score_method(call, table) for call in console.each("level 2", calls)]
    chosen, reason = choose(config.stack.choose, candidates, table)
    tried = nested.score_decisions(changes, chosen.values, table)
    decided = nested.choose(tried, table)[0]
    decision = None if decided is tried[0] else nested.fit_decision(decided.call, chosen.values, table)
    return Level2(table, candidates, chosen, reason, tried, decided, table.fit(chosen.call), decision)


def read_table(config: Config, members: list[Run], task: Task, side: Features | None) -> Table:
    """The OOF values of the members with the truth of their rows, dealt for nested cross-validation."""
    first = members[0]
    oof = np.stack(task.form.aligned([read(member.name, [member.oof()], task)[0] for member in members]), axis=1)
    return Table(
        [member.name for member in members],
        oof,
        first.truth(task),
        nested.parts(first.scored_folds, config.folds.seed),
        evaluate.metric(config.metric, task),
        None if side is None else side.train[first.scored],
    )


def answers(members: list[Run], task: Task, made: Level2, side: Features | None) -> np.ndarray:
    """(M, C) float64, what is submitted: each fold's members stacked and decided alone, then averaged."""
    each = [read(member.name, member.tests(), task) for member in members]
    return applied(each, task, made.stacker, made.decision, None if side is None else side.test)


def applied(
    each: list[list[np.ndarray]], task: Task, stacker: Any, decision: Any, side: np.ndarray | None
) -> np.ndarray:
    """(M, C) float64 of each run's values by fold: every fold is stacked and decided alone, then they are averaged.

    side: (M, F) side features of the rows, where the stacker reads such.
    """
    every = task.form.aligned([values for folds in zip(*each, strict=True) for values in folds])
    test = [np.stack(every[place : place + len(each)], axis=1) for place in range(0, len(every), len(each))]
    values = [stacker.predict(fold, side) for fold in test]
    return np.stack([decision.apply(v) if decision else v for v in values]).mean(axis=0, dtype=np.float64)


# --- what is stacked ----------------------------------------------------------------------------------------------


def methods(config: Config, work: float) -> list[str]:
    """The level-2 methods to try, as checked call-strings.

    work: N·M·C² of the table; ``all`` leaves out what does not take the task's form, what is not installed and what
    such a table would keep busy for long, and tries what can read side features with and without them.
    """
    form, calls = tasks.facts(config.task)["form"], []
    simplest_first = sorted(registry.parts("level2").values(), key=lambda part: part.facts["order"])
    for text in config.stack.methods:
        if text != "all":
            calls.append(_named(config, text, form, "stack.methods"))
            continue
        feasible = [part for part in simplest_first if _feasible(part.facts, form, work)]
        calls += [f"{part.name}()" for part in feasible]
        calls += [f"{part.name}(features=True)" for part in feasible if config.stack.features and _reads(part.name)]
    if config.stack.choose != "auto":
        calls.append(_named(config, config.stack.choose, form, "stack.choose"))
    return list(dict.fromkeys(calls))


def _named(config: Config, text: str, form: str, key: str) -> str:
    part, call = registry.bind("level2", text)
    if not _takes(part.facts, form):
        fits = [name for name, other in registry.parts("level2").items() if _takes(other.facts, form)]
        raise UserError(f"{key}={text}, but task={config.task} has {form}; methods that take them: {', '.join(fits)}")
    if reads_features(text) and not config.stack.features:
        raise UserError(
            f"{key}={text} reads side features, but stack.features=false; set it to true, or leave them out"
        )
    return str(call)


def _feasible(facts: dict[str, Any], form: str, work: float) -> bool:
    installed = "needs" not in facts or importlib.util.find_spec(facts["needs"]) is not None
    return _takes(facts, form) and installed and work <= facts.get("most_work", float("inf"))


def _takes(facts: dict[str, Any], form: str) -> bool:
    return form in facts.get("takes", FORMS) or form in facts.get("also", ())


def _reads(name: str) -> bool:
    return "features" in registry.find("level2", name).arguments


def reads_features(call: str) -> bool:
    """Whether a method of that call-string reads side features."""
    part, known = registry.bind("level2", call)
    return bool({**part.arguments, **known.arguments}.get("features"))


def with_features(config: Config, competition: Competition, calls: list[str]) -> tuple[list[str], Features | None]:
    """The methods that can be tried, and the side features if any of them reads such; None if there are none.

    Raises UserError where a named method reads side features and there are none.
    """
    reading = [call for call in calls if reads_features(call)]
    side = features.table(config, competition) if reading else None
    if side is None or side.names:
        return calls, side
    for text in [*config.stack.methods, config.stack.choose]:
        if text not in ("all", "auto") and reads_features(text):
            raise UserError(
                f"{text} reads side features, but there are none that vary: data.features and data.tables give none, "
                "and all images are alike in size and colour; leave it out, or name columns in data.features"
            )
    return [call for call in calls if call not in reading], None


def read(name: str, members: list[Predictions], task: Task) -> list[np.ndarray]:
    """K of (N, C) float32: the values of a run's K predictions, which must have the task's columns."""
    for member in members:
        if not task.form.searched and member.values.shape[1] != len(task.columns):
            raise UserError(
                f"the run {name} predicts {member.values.shape[1]} columns, but the task has {len(task.columns)}; "
                f"train and predict it again, or leave it out: stack.members=…"
            )
    return [member.values for member in members]


def choose(name: str, candidates: list[Candidate], table: Table) -> tuple[Candidate, str]:
    """The method by name, or for auto the simplest within one paired standard error of the best; and why."""
    if name == "auto":
        return nested.choose(candidates, table)
    call = str(registry.bind("level2", name)[1])
    return next(c for c in candidates if c.call == call), f"as stack.choose={name} asks"


# --- what is written and shown ------------------------------------------------------------------------------------


def write(folder: Path, made: Level2, members: list[Run], task: Task, side: Features | None) -> None:
    """The fitted level 2, its nested and its test predictions, and ``level2.json``."""
    made_by = {"level2": made.name, "members": made.table.members, "commit": artefacts.commit()}
    write_state(folder / "stacker.npz", made.stacker.state())
    write_state(folder / "decision.npz", made.decision.state() if made.decision else {})
    competition, answer = members[0].competition, answers(members, task, made, side)
    ids = competition.train["id"].to_numpy()[members[0].scored]
    Predictions(ids, made.decided.values, task.space, made_by).save(folder / "nested.npz")
    Predictions(competition.test["id"].to_numpy(), answer, task.space, made_by).save(folder / "test.npz")
    artefacts.write_json(folder / "level2.json", describe(made, side))


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the arrays and texts of a stacker or decision as npz, without pickles."""
    with artefacts.atomic(path) as handle:
        np.savez_compressed(handle, **state)


def read_state(path: Path) -> dict[str, Any]:
    """What ``write_state`` wrote: arrays, and texts as texts. UserError where the file is damaged or not there."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: str(content[key]) if content[key].dtype.kind == "U" else content[key] for key in content}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as fault:
        raise UserError(
            f"{shown(path)} is missing or damaged ({fault}); delete it and run stage=stack again"
        ) from fault


def read_stacker(folder: Path) -> Any:
    """The fitted stacker of a level-2 folder, ready to predict."""
    state = read_state(folder / "stacker.npz")
    call = artefacts.read_json(folder / "level2.json")["method"]
    return registry.build("level2", call)(TABLES[state["form"]]).load_state(state)


def read_decision(folder: Path) -> Any:
    """The fitted decision of a level-2 folder, ready to apply, or None where the task's own was kept."""
    call = artefacts.read_json(folder / "level2.json")["decision"]
    if call is None:
        return None
    state = read_state(folder / "decision.npz")
    return registry.build("decisions", call)(TABLES[state["form"]]).load_state(state)


def describe(made: Level2, side: Features | None) -> dict[str, Any]:
    """What ``level2.json`` holds; decision: null for the task's own; score: of what is submitted, nested."""
    table, columns = made.table, list(made.table.metric.task.columns)
    weights = made.stacker.state().get("weights")
    return {
        "method": made.chosen.call,
        "reason": made.reason,
        "decision": made.decided.call if made.decision else None,
        "parameters": made.decision.readable(columns) if made.decision else None,
        "score": made.decided.facts(),
        "metric": table.metric.name,
        "members": table.members,
        "columns": columns,
        "weights": None if weights is None else dict(zip(table.members, weights.tolist(), strict=True)),
        "features": side.names if side is not None and reads_features(made.chosen.call) else None,
        "nested": [{"method": c.call, **c.facts()} for c in made.candidates],
        "decisions": [{"decision": c.call, **c.facts()} for c in made.tried],
        "leak": "second order: level 2 is fitted on OOF predictions",
    }


def show(made: Level2, member: Run) -> None:
    """Print the runs, every method with its paired gain over the best run, the choice, and then the decisions."""
    table, calls = made.table, [c.call for c in (*made.candidates, *made.tried)]
    width = max(len(text) for text in [*table.members, *calls])
    console.say(f"stack: {table.metric.name} on {len(table.truth)} rows; runs, each row by one member")
    for index, name in enumerate(table.members):
        score = evaluate.score_folds(table.metric, table.truth, table.values[:, index], member.scored_folds)
        selected = Run(member.config, name).selected
        console.say(f"    {name:<{width}}  {score}{f'  ({selected})' if selected else ''}")
    dealt = "the same folds" if member.count > 1 else f"{len(np.unique(table.folds))} random parts of the only fold"
    console.say(f"  level 2, nested CV on {dealt}; paired gain over {table.members[table.best]}")
    show_candidates(made.candidates, made.chosen, width)
    console.say(f"  chosen: {made.chosen.call}, {made.reason}")
    if made.tried[1:]:
        console.say(f"  decisions on {made.chosen.call}, nested in the same way; paired gain over the default")
        show_candidates(made.tried, made.decided, width)
        kept = "kept: default decision, since no other gains more than one paired standard error"
        console.say(f"  {f'applied: {made.decided.call}' if made.decision else kept}")
    tried = len(made.candidates) + len(made.tried[1:])
    averaged = (
        f"test predictions average {member.count} members" if member.count > 1 else "test predictions are its own"
    )
    console.say(
        f"  the best of {tried} candidates on the same rows: optimistic by up to about one standard error\n"
        f"  each score is of one member a row; {averaged}"
    )
    if member.count > 1:
        console.say("  second-order leak: level 2 is fitted on OOF, whose members saw the held-out fold's labels")


def show_candidates(candidates: list[Candidate], taken: Candidate, width: int) -> None:
    """A line for each candidate, the one taken with an arrow."""
    for c in candidates:
        console.say(f"  {'→' if c is taken else ' '} {c.call:<{width}}  {c.score}  {c.gain:+.4f} ± {c.gain_se:.4f}")
