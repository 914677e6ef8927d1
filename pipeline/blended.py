"""A level 2 of maps, from the runs' files to its own: see ``pipeline/blending.py`` for how it is chosen."""

from __future__ import annotations

from typing import Any

from pipeline import artefacts, blending, console, evaluate, nested
from pipeline.artefacts import Predictions
from pipeline.config import Config
from pipeline.console import Outcome
from pipeline.members import Work, begin
from pipeline.runs import Run

OUTPUTS = ("level2.json", "nested.npz", "test.npz")


def stack(config: Config, name: str) -> Outcome:
    """Blend the maps of runs and choose the cut's numbers."""
    blending.check(config.stack.methods)
    work = begin(config, name)
    print_ = artefacts.fingerprint(work.fingerprint(config.stack.methods), config.cut, "maps")
    if known := work.reused(print_, OUTPUTS):
        return known
    first, metric = work.members[0], evaluate.metric(config.metric, work.task)
    oof = [member.oof().values for member in work.members]
    parts, seed = nested.parts(first.scored_folds, config.folds.seed), config.folds.seed
    learned = blending.Oof(work.names, oof, first.truth(work.task), work.task, metric, parts, seed)
    made = blending.build(learned, first.scored_folds, config.stack.methods)
    show(made, metric, first)
    work.forget()
    write(work, made)
    call = f"{made.chosen.call} + {made.cut.call}"
    facts = {"method": made.chosen.call, "decision": made.cut.call, "gain": made.cut.gain}
    return work.finish(print_, made.cut.score, call, **facts)


def write(work: Work, made: blending.Level2) -> None:
    """Nested and test maps as they are submitted, and ``level2.json``; each fold's maps are blended and cut alone."""
    made_by = {"level2": made.chosen.call, "members": made.members, "commit": artefacts.commit()}
    folder, competition, first = work.folder, work.competition, work.members[0]
    ids = competition.train["id"].to_numpy()[first.scored]
    weights = made.chosen.weights
    made.chosen.nested.cut = made.cut.call
    Predictions(ids, made.chosen.nested, work.task.space, made_by).save(folder / "nested.npz")
    tests = [member.tests() for member in work.members]
    each = [[own[fold].values for own in tests] for fold in range(first.count)]
    answer = applied(each, work.task, made.chosen.fitted, made.cut.call)
    Predictions(competition.test["id"].to_numpy(), answer, work.task.space, made_by).save(folder / "test.npz")
    score = made.cut.score
    described = {
        "method": made.chosen.call, "reason": made.reason, "decision": made.cut.call, "parameters": made.cut.facts(),
        "score": {"score": score.value, "se": score.se, "folds": score.folds}, "metric": work.config.metric,
        "members": made.members, "columns": list(work.task.columns),
        "weights": None if weights is None else dict(zip(made.members, weights.tolist(), strict=True)),
        "nested": [{"method": way.call, "score": way.score.value, "gain": way.gain} for way in made.candidates],
        "leak": "second order: level 2 is fitted on OOF predictions",
    }  # fmt: skip
    artefacts.write_json(folder / "level2.json", described)


def applied(each: list[list[Any]], task: Any, fitted: blending.Fitted, cut: str) -> Any:
    """Maps as they are submitted, of the runs' maps by fold: each fold's are blended and cut alone."""
    return task.together([fitted(maps) for maps in each], cut)


def show(made: blending.Level2, metric: evaluate.Metric, first: Run) -> None:
    """Print every blend with its paired gain over the best run, the choice, and the cut."""
    width = max(len(way.call) for way in made.candidates)
    console.say(f"stack: {metric.name} on {len(first.scored)} images, cut as {metric.task.cut}; gain over the best run")
    for way in made.candidates:
        mark = "→" if way is made.chosen else " "
        console.say(f"  {mark} {way.call:<{width}}  {way.score}  {way.gain:+.4f} ± {way.gain_se:.4f}")
    console.say(f"  chosen: {made.chosen.call}, {made.reason}")
    console.say(f"  cut: {made.cut}")
    console.say(
        f"  {made.cut.score} with this cut; each image by one member, of test images {first.count} members vote"
    )
    if first.count > 1:
        console.say("  second-order leak: level 2 is fitted on OOF, whose members saw the held-out fold's labels")
