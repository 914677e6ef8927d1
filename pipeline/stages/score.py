"""Score a submission against a solution file, public and private; every look at a solution is logged."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artefacts, evaluate, longform, registry, submission
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config, root
from pipeline.console import Outcome, say
from pipeline.errors import UserError, some
from pipeline.tables import check_ids, read_table
from pipeline.tasks import Task, task_for

PARTS = ("all", "public", "private")
LOOK = ("time", "look", "submission", "submission_digest", "solution", "solution_digest", "metric", *PARTS)


def run(config: Config) -> list[Outcome]:
    """Score ``submission=`` (else the stack's, else the newest) against ``solution=`` (else data.folder/solution.csv).

    A recipe goes on without a solution, and scores the same submission only once; alone, each is a UserError or a look.
    """
    began = time.perf_counter()
    competition = load(config)
    alone = config.arguments.get("stage") == "score"  # as typed; a recipe's steps have none
    solution = root() / config.solution if config.solution else competition.folder / "solution.csv"
    if not solution.is_file() and not alone and not config.solution:
        return [Outcome("score", note=f"no solution file {shown(solution)}")]
    if not solution.is_file():
        raise UserError(f"{shown(solution)} does not exist; give solution=FILE, a csv with the test rows' answers")
    with artefacts.locked(artefacts.submissions_folder(config)):
        return [_look(config, competition, solution, alone, began)]


def _look(config: Config, competition: Competition, solution: Path, alone: bool, began: float) -> Outcome:
    """Score the submission and log the look, unless a recipe has looked before."""
    path = _submission(config)
    looks = _looks(config)
    key = {
        "submission_digest": artefacts.file_digest(path),
        "solution_digest": artefacts.file_digest(solution),
        "metric": str(registry.parse(config.metric)),
    }
    before = [look for look in looks if all(look[name] == value for name, value in key.items())]
    if before and not alone:
        return _outcome(before[-1], reused=True, seconds=0.0)
    scores = _score(config, competition, path, solution)
    number = 1 + sum(look["solution_digest"] == key["solution_digest"] for look in looks)
    look = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "look": str(number), "submission": shown(path), "solution": shown(solution),
        **key, **{part: repr(scores[part]) if part in scores else "" for part in PARTS},
    }  # fmt: skip
    _log(config, [*looks, look])  # before the score is shown, so that no look is unlogged
    return _outcome(look, reused=False, seconds=time.perf_counter() - began)


def _submission(config: Config) -> Path:
    if config.submission:
        return submission.locate(config, config.submission, "submission")
    path = submission.path_of(config, config.stack.name)
    made = submission.made(config)
    if not path.is_file() and not made:
        raise UserError(f"{shown(path)} does not exist; make it with stage=submit, or give submission=FILE")
    return path if path.is_file() else made[-1]


def _score(config: Config, competition: Competition, path: Path, solution: Path) -> dict[str, float]:
    task, sample = task_for(config, competition), competition.sample
    frame = submission.read(path, sample, task.allowed(sample), competition.long)
    answers, usage = _answers(competition, solution, repeats=task.form.spatial)
    row_of, asked = {name: row for row, name in enumerate(task.answered(frame))}, task.answered(answers)
    missing = [name for name in asked if name not in row_of]
    if missing:
        raise UserError(
            f"{shown(solution)} has {len(missing)} ids that {shown(path)} has not: {some(missing)}; "
            "is it the solution of this competition?"
        )
    values = task.values(frame, sample)[np.array([row_of[name] for name in asked], dtype=np.int64)]
    try:
        truth = task.truth(answers, sample)
    except UserError as fault:
        raise UserError(f"{shown(solution)}: {fault}") from fault
    metric = evaluate.metric(config.metric, task)
    usage = _usage_of(task, answers, usage, asked)
    rows = {"all": np.ones(len(truth), dtype=bool), "public": usage == "public", "private": usage == "private"}
    return {part: metric(truth[chosen], values[chosen]) for part, chosen in rows.items() if chosen.any()}


def _usage_of(task: Task, answers: pd.DataFrame, usage: pd.Series, asked: list[str]) -> np.ndarray:
    """(n,) the usage of each asked id; an id of a solution may name a part of it, such as an image's class."""
    if not usage.index.isin(asked).all():
        first = [task.answered(answers.iloc[[row]])[0] for row in range(len(answers))]
        cells = answers.iloc[:, 0].astype(str).map(usage)
        usage = pd.Series(cells.to_numpy(), index=first)
        usage = usage[~usage.index.duplicated()]
    return usage.reindex(asked).to_numpy()


def _answers(competition: Competition, solution: Path, repeats: bool) -> tuple[pd.DataFrame, pd.Series]:
    """The solution's rows that count, ids first, without Usage; and the usage of each id, in lower case.

    repeats: whether there may be several rows of an id.
    """
    table = read_table(solution)
    ids = str(competition.sample.columns[0])
    if ids not in table.columns:
        raise UserError(f"{shown(solution)} has no column {ids!r}; its columns: {some(table.columns, 20)}")
    table = longform.train_table(competition.long, table, ids, shown(solution))
    if not repeats:
        check_ids(table[ids], shown(solution))
    column = next((name for name in table.columns if str(name).lower() == "usage"), None)
    usage = table[column].str.strip().str.lower() if column else pd.Series("", index=table.index)
    odd = sorted(set(usage) - {"public", "private", "ignored"}) if column else []
    if odd:
        raise UserError(f"{shown(solution)}: {column} is Public, Private or Ignored, but also {some(map(repr, odd))}")
    counts = usage != "ignored"
    answers = table[[ids, *(name for name in table.columns if name not in (ids, column))]]
    if answers.shape[1] < 2 or not counts.any():
        raise UserError(f"{shown(solution)} has no answers: it needs the ids and a column with the truth")
    kept = pd.Series(usage[counts].to_numpy(), index=table[ids][counts].astype(str))
    return answers[counts], kept[~kept.index.duplicated()]


def _outcome(look: dict[str, str], reused: bool, seconds: float) -> Outcome:
    scores = {part: float(look[part]) for part in PARTS if look[part]}
    shown_scores = " · ".join(f"{part} {value:.4f}" for part, value in scores.items())
    seen = f"look {look['look']} at this solution" + (", scored before" if reused else "")
    say(f"{look['submission']}: {look['metric']} {shown_scores}; {seen}")
    private = f"{scores['private']:.4f}" if "private" in scores else f"{scores['all']:.4f} (all rows)"
    name = Path(look["submission"]).stem
    return Outcome("score", name, private=private, seconds=seconds, note=seen, reused=reused, facts=scores)


# --- the log of looks ---------------------------------------------------------------------------------------------


def _looks(config: Config) -> list[dict[str, str]]:
    path = artefacts.submissions_folder(config) / "looks.csv"
    if not path.is_file():
        return []
    try:
        table = read_table(path, dict.fromkeys(LOOK, ""))[list(LOOK)]
        if (table["all"] == "").any():
            raise UserError("a row is cut short")
    except UserError as fault:
        why = str(fault).removeprefix(shown(path)).partition(";")[0].strip()
        raise UserError(
            f"{shown(path)} is damaged ({why}); restore it, or delete it: the looks that it tells are then forgotten"
        ) from fault
    return [dict(zip(LOOK, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _log(config: Config, looks: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, LOOK, lineterminator="\n")
    writer.writeheader()
    writer.writerows(looks)
    artefacts.write_text(artefacts.submissions_folder(config) / "looks.csv", text.getvalue())
