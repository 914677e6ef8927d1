"""A level 2 of embeddings, from the runs' files to its own: see ``pipeline/fusing.py`` for how it is chosen."""

from __future__ import annotations

import numpy as np

from pipeline import artefacts, console, evaluate, fusing
from pipeline.artefacts import Predictions
from pipeline.config import Config
from pipeline.console import Outcome
from pipeline.forms import IDENTITY
from pipeline.members import Work, begin
from pipeline.reranking import Candidate
from pipeline.runs import Run

OUTPUTS = ("level2.json", "nested.npz", "test.npz")


def stack(config: Config, name: str) -> Outcome:
    """Fuse the embeddings of runs and choose re-rankings."""
    asked = config.stack
    fusing.check(asked.methods, asked.decisions, config.rerankings, asked.choose)
    work = begin(config, name)
    print_ = artefacts.fingerprint(work.fingerprint(asked.methods), config.rerankings, config.data.camera, "embeddings")
    if known := work.reused(print_, OUTPUTS):
        return known
    first, metric, seed = work.members[0], evaluate.metric(config.metric, work.task), config.folds.seed
    truth, oof = first.truth(work.task), [member.oof().values for member in work.members]
    parts = fusing.parts(first.scored_folds, truth[:, IDENTITY], seed)
    learned = fusing.Oof(work.names, oof, truth, metric, parts, seed)
    made = fusing.build(learned, asked.methods, asked.decisions, config.rerankings, asked.choose)
    show(work, made, learned)
    work.forget()
    write(work, made)
    facts = {"method": made.chosen.call, "decision": made.facts()["decision"], "gain": made.chosen.gain}
    return work.finish(print_, made.decided.score, made.name, **facts)


def write(work: Work, made: fusing.Level2) -> None:
    """Nested and test embeddings, and ``level2.json``; of each run the test members lie side by side."""
    made_by = {"level2": made.name, "members": made.members, "commit": artefacts.commit()}
    competition, space = work.competition, work.task.space
    ids = competition.train["id"].to_numpy()[work.members[0].scored]
    Predictions(ids, made.chosen.nested, space, made_by).save(work.folder / "nested.npz")
    test = made.test([Predictions.mean(member.tests()).values for member in work.members])
    Predictions(competition.test["id"].to_numpy(), test, space, made_by).save(work.folder / "test.npz")
    artefacts.write_json(work.folder / "level2.json", {**made.facts(), "metric": work.config.metric})


def show(work: Work, made: fusing.Level2, oof: fusing.Oof) -> None:
    """Print every way to fuse and every chain of re-rankings with its paired gain, and what was chosen."""
    count = work.members[0].count
    marks = {member.name: Run(member.config, member.name).selected for member in work.members}
    width = max(len(one.call) for one in [*made.candidates, *made.tried])
    answered = int((~np.isnan(made.chosen.added)).sum())
    console.say(
        f"stack: {oof.metric.name} of {answered} queries among {len(oof.truth)} rows, each in its own fold by one "
        f"member; nested CV, paired gain over {made.candidates[0].call}"
    )
    for way in made.candidates:
        console.say(f"{_line(way, made.chosen, width)}{f'  ({marks[way.call]})' if marks.get(way.call) else ''}")
    console.say(f"  chosen: {made.chosen.call}, {made.reason}")
    if len(made.tried) > 1:
        plain = made.tried[0].call
        console.say(f"  re-rankings on {made.chosen.call}, nested in the same way; paired gain over {plain}")
        for one in made.tried:
            console.say(_line(one, made.decided, width))
        kept = "kept: no re-ranking, since none gains more than one paired standard error"
        console.say(f"  {f'applied: {made.decided.call}' if made.decided is not made.tried[0] else kept}")
    for note in made.notes:
        console.say(f"  {note}")
    console.say(
        f"  the best of {len(made.candidates) + len(made.tried[1:])} candidates on the same rows, {made.looked_at} "
        "settings looked at: optimistic by up to about one standard error"
    )
    if count > 1:
        console.say(f"  each score is of one member a query; test embeddings are of {count} members side by side")
        console.say("  second-order leak: level 2 is fitted on OOF, whose members saw the held-out fold's labels")


def _line(one: Candidate, taken: Candidate, width: int) -> str:
    mark = "→" if one is taken else " "
    return f"  {mark} {one.call:<{width}}  {one.score}  {one.gain:+.4f} ± {one.gain_se:.4f}"
