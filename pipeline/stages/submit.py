"""Make a submission from the stack, a run or a blend of csvs, checked against the sample submission.

``upload=true message=…`` then submits it to Kaggle, and records its score once that is there.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, budget, evaluate, kaggle_client, submission, uploads
from pipeline.artefacts import Predictions, shown
from pipeline.competition import Competition, load
from pipeline.config import Config, replace
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError, nearest
from pipeline.folds import asked_folds
from pipeline.runs import Run, listed_folds, predicted_runs
from pipeline.tasks import Task, task_for


@dataclass(frozen=True)
class Answer:
    """The rows to submit and what is known of them: texts for the table, facts for the json."""

    name: str
    frame: pd.DataFrame
    score: str = ""
    nested: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def run(config: Config) -> list[Outcome]:
    """Write submissions/<competition>/<name>.csv and .json; reused if the same rows stand there already."""
    began = time.perf_counter()
    if config.upload:  # before any work
        kaggle_client.slug_of(config)
        kaggle_client.check_installed()
    competition = load(config)
    task = task_for(config, competition)
    answer = _blend(config, competition, task) if config.blend else predicted(config, competition, task)
    path = submission.path_of(config, answer.name)
    submission.validate(answer.frame, competition.sample, answer.name, task.allowed(competition.sample))
    asked = competition.asked(answer.frame)
    print_ = artefacts.fingerprint(asked.to_csv(index=False), answer.facts)
    reused = submission.written(path, print_) is not None
    if not reused:
        facts = {"fingerprint": print_, "competition": config.competition, "metric": config.metric, **answer.facts}
        known = {"uploads": told} if (told := uploads.records(path)) else {}  # of the rows that stood there before
        submission.write(asked, path, {**facts, "commit": artefacts.commit(), **known})
    scores = answer.score or answer.nested
    say(f"{shown(path)}: {len(asked)} rows from {answer.name}, {scores}{', unchanged' if reused else ''}")
    if config.data.hidden:
        say("  data.hidden=true: no test image is here; stage=package makes what answers hidden ones on Kaggle")
    note, scored = shown(path), {}
    if config.upload:
        record = uploads.upload(config, kaggle_client.connect(), path)
        note, scored = f"{note}, {uploads.scores(record)}", {part: record.get(part) for part in ("public", "private")}
    seconds = time.perf_counter() - began
    return [Outcome("submit", answer.name, answer.score, answer.nested, "", seconds, note, reused, scored)]


def predicted(config: Config, competition: Competition, task: Task) -> Answer:
    """What ``source=`` answers, a level 2 or a run."""
    name = artefacts.safe_name(config.source or config.stack.name, "source")
    level2 = artefacts.runs_folder(config) / "level2" / name
    if (level2 / "test.npz").is_file():
        return _from_level2(config, competition, task, name)
    if config.source and artefacts.run_folder(config, name).is_dir():
        return _from_run(config, competition, task, name)
    raise UserError(_nothing(config, name))


def _nothing(config: Config, name: str) -> str:
    runs = [run.name for run in predicted_runs(config)]
    there = runs + [path.parent.name for path in sorted(artefacts.runs_folder(config).glob("level2/*/test.npz"))]
    if config.source:
        listed = f"; there are: {', '.join(there)}{nearest(name, there)}" if there else ""
        return f"source={name}, but no run or level 2 has that name{listed}; make one with stage=train or stage=stack"
    command = f"./run.sh stage=stack competition={config.competition}"
    single = f", or submit a single run: source={runs[0]}" if runs else " after stage=train and stage=predict"
    return f"runs/{config.competition}/level2/{name}/test.npz does not exist; make it with {command}{single}"


def _from_level2(config: Config, competition: Competition, task: Task, name: str) -> Answer:
    folder = artefacts.runs_folder(config) / "level2" / name
    made = artefacts.read_json(folder / "level2.json")
    predictions = Predictions.load(folder / "test.npz")
    if settings := made.get("settings"):
        task = task_for(replace(config, **settings), competition)
    frame = rows(competition, task, predictions)
    reached = made["score"]
    nested = str(evaluate.Score(reached["score"], reached["se"], "nested", reached["folds"]))
    known = {key: made[key] for key in ("method", "decision", "members", "leak")}
    facts = {"source": f"level2/{name}", **known, "nested": reached}
    return Answer(name, frame, nested=nested, facts=facts)


def _from_run(config: Config, competition: Competition, task: Task, name: str) -> Answer:
    run = Run(config, name)
    if run.rejected:
        warn(f"the run {name} was left out by an earlier step: {run.rejected}")
    full = run.full_test()
    if full is not None and (config.fold == ["full"] or not run.predicted()):
        none = {"source": name, "members": [f"{name}/full"], "cv": None}
        return Answer(name, rows(competition, task, full), "no CV", facts=none)
    metric = evaluate.metric(config.metric, task)
    folds = asked_folds(config, run.count)
    if folds != "full" and len(folds) < run.count:
        return _from_part(run, folds, competition, task, metric)
    tests = run.tests()
    score = evaluate.score_folds(metric, run.truth(task), run.oof().values, run.scored_folds)
    facts: dict[str, Any] = {
        "source": name,
        "members": [f"{name}/fold{fold}" for fold in range(run.count)],
        "cv": {k: _plain(v) for k, v in dataclasses.asdict(score).items()},
        "score": str(score),
    }
    return Answer(name, rows(competition, task, Predictions.mean(tests)), str(score), facts=facts)


def _from_part(run: Run, folds: list[int], competition: Competition, task: Task, metric: evaluate.Metric) -> Answer:
    """Of a run with some members only: their test predictions, and the score of their own rows."""
    part = f"{listed_folds(folds)} of {run.count}" + (" (budget)" if budget.limit() else "")
    tests = [Predictions.load(run.need((fold,), "test.npz")) for fold in folds]
    if tests[0].made_by.get("crossfit"):
        raise UserError(
            f"source={run.name} learned with pseudo.crossfit=true: each member speaks for a part of the test rows, "
            f"but fold={','.join(map(str, folds))}; leave fold out"
        )
    own = np.flatnonzero(np.isin(run.folds, folds))
    score = evaluate.score_folds(
        metric, run.truth_of(task, own), run.oof(folds).values, run.folds[own], f"OOF, partial: {part}"
    )
    facts = {
        "source": run.name, "partial": part, "members": [f"{run.name}/fold{fold}" for fold in folds],
        "cv": {k: _plain(v) for k, v in dataclasses.asdict(score).items()}, "score": str(score),
    }  # fmt: skip
    ids = competition.test["id"].to_numpy()
    mean = Predictions.mean([test.align(ids, f"test predictions of {run.name}") for test in tests])
    return Answer(run.name, rows(competition, task, mean), str(score), facts=facts)


def rows(competition: Competition, task: Task, predictions: Predictions) -> pd.DataFrame:
    """The rows of a submission."""
    if not task.form.searched and predictions.values.shape[1] != len(task.columns):
        raise UserError(
            f"the predictions have {predictions.values.shape[1]} columns, but the task has "
            f"{len(task.columns)}; the training table has changed: train and predict again"
        )
    return task.submission(predictions.ids, predictions.values, competition.sample)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# --- blends of csvs, whoever made them ----------------------------------------------------------------------------


def _blend(config: Config, competition: Competition, task: Task) -> Answer:
    if len(config.blend) < 2:
        raise UserError(f"blend={','.join(config.blend)}, but a blend needs two csvs or more: blend=a.csv,b.csv")
    if task.form.spatial:
        raise UserError("blend= averages numbers and lets names vote, which masks are neither; stack the runs instead")
    allowed = task.allowed(competition.sample)
    paths = [submission.locate(config, text, "blend") for text in config.blend]
    frames = [submission.read(path, competition.sample, allowed, competition.long) for path in paths]
    members = {shown(path): artefacts.file_digest(path) for path in paths}
    facts = {"source": "blend", "members": members, "cv": None, "note": "not CV"}
    names = {column for column, cells in allowed.items() if cells.text}
    return Answer("blend", blend(frames, names), "not CV", facts=facts)


def blend(frames: list[pd.DataFrame], names: set[str]) -> pd.DataFrame:
    """Submissions with the same ids in the same order → one: numbers are averaged, names decided by majority.

    names: the columns that hold names; so does any that is not all numbers. Of equal votes the first file's wins.
    """
    mixed = frames[0].copy()
    for column in mixed.columns[1:]:
        cells = pd.concat([frame[column] for frame in frames], axis=1)
        numbers = cells.apply(pd.to_numeric, errors="coerce")
        if column in names or numbers.isna().any(axis=None):
            mixed[column] = [Counter(row).most_common(1)[0][0] for row in cells.itertuples(index=False, name=None)]
        else:
            mixed[column] = numbers.mean(axis=1)
    return mixed
