"""Answer: in a package, predict the hidden test rows and write their submission, with the members done in time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, blended, budget, features, fusing, hardware, launch, packing, submission
from pipeline.artefacts import Predictions, shown
from pipeline.budget import Reserve
from pipeline.competition import Competition, load
from pipeline.config import Config, convert, replace, restore, scoped
from pipeline.console import Outcome, say, warn
from pipeline.errors import OutOfTime, UserError
from pipeline.forms import EMBEDDINGS
from pipeline.maps import Mean
from pipeline.members import FOLDER
from pipeline.packing import Chosen
from pipeline.runs import Run, versions
from pipeline.stages import stack, submit
from pipeline.tasks import Task, task_for

REST = 0.05  # of the budget is kept for level 2 and the submission


def run(asked: Config) -> list[Outcome]:
    """Predict with every member, apply level 2, write ``submission=``."""
    began = time.perf_counter()
    manifest = packing.manifest()
    config = settings(asked, manifest)
    competition = load(config)
    task = task_for(config, competition)
    chosen = reopened(config, manifest)
    say(
        f"answer {packing.spoken(chosen)}; {len(competition.test)} test images, {len(competition.sample)} rows of the "
        f"sample, on {config.device}"
    )
    say_versions(chosen)
    keep_time()
    members = [(one, held_out) for held_out in chosen.held_out for one in chosen.runs.values()]
    try:
        if len(competition.test):
            launch.each(WORK, members)
    except OutOfTime:
        pass
    done = [member for member in members if is_answered(*member)]
    answered, predictions, how = combined(config, competition, task, chosen, done)
    frame = rows(competition, answered, predictions)
    path = submission.path_of(config, manifest["package"])
    submission.validate(frame, competition.sample, manifest["package"], task.allowed(competition.sample))
    facts = {**chosen.facts, "package": manifest["package"], "members done": len(done), "how": how}
    asked_rows = competition.asked(frame)
    submission.write(asked_rows, path, {**facts, "commit": manifest["commit"]})
    say(f"{shown(path)}: {len(asked_rows)} rows, {how}")
    return [Outcome("answer", manifest["package"], seconds=time.perf_counter() - began, note=how)]


def settings(asked: Config, manifest: dict[str, Any]) -> Config:
    """The package's config, with what was typed; members are predicted side by side, one on each GPU."""
    typed = {key: convert(key, text) for key, text in asked.arguments.items() if key != "stage"}
    config = restore({**manifest["config"], **typed})
    config.arguments = dict(asked.arguments)
    return replace(config, device=hardware.choose(config).device)


def reopened(config: Config, manifest: dict[str, Any]) -> Chosen:
    """What was packaged."""
    runs = {name: _run(config, name, known) for name, known in manifest["runs"].items()}
    held_out = list(dict.fromkeys(tuple(member["held_out"]) for member in manifest["members"]))
    level2 = manifest["level2"]
    content = artefacts.read_json(_level2(config, level2["name"]) / "level2.json") if level2 else None
    key = "nested" if level2 else "cv"
    facts = {"source": manifest["source"], key: manifest["cv"], "score": manifest["score"]}
    return Chosen(level2["name"] if level2 else next(iter(runs)), runs, held_out, content, facts)


def _run(config: Config, name: str, known: dict[str, Any]) -> Run:
    """A run as it was predicted; threads as many as this machine has at most."""
    found = Run(config, name).as_trained()
    threads = min(found.train.threads, hardware.physical_cores())
    changes = {key.replace(".", "__"): value for key, value in known.items()}
    return Run(replace(found, **{**changes, "train__threads": threads}), name)


def _level2(config: Config, name: str) -> Any:
    return artefacts.runs_folder(config) / FOLDER / name


def say_versions(chosen: Chosen) -> None:
    """Say which libraries are others than those that trained: predictions may then differ a little."""
    here, trained = versions(), next(iter(chosen.runs.values())).stored()["versions"]
    other = [
        f"{name} {trained[name]} → {here[name]}" for name in trained if here.get(name, "") not in ("", trained[name])
    ]
    if other:
        say(f"  libraries since training: {', '.join(other)}")


def keep_time() -> None:
    """Keep a part of the budget, if there is one, for what follows the members."""
    if limit := budget.limit():
        seconds = max(limit.saving().seconds, REST * limit.seconds)
        limit.what = "prediction"
        limit.reserve = lambda: Reserve(seconds, "level 2 and the submission", "experience")


# --- one member ---------------------------------------------------------------------------------------------------


def made_in(run: Run) -> str:
    """The fingerprint of a member's answers: the test rows and how they are seen."""
    return artefacts.fingerprint(run.competition.fingerprint, scoped(run.config, "predict"))


def is_answered(run: Run, held_out: tuple[int, ...]) -> bool:
    """Whether the member's predictions of the test rows are there."""
    folder = run.member(held_out)
    return artefacts.finished(folder / "answer.json", made_in(run), folder / "test.npz") is not None


def answer(run: Run, held_out: tuple[int, ...]) -> None:
    """Predict the test rows with one member unless that is done."""
    folder = run.member(held_out)
    with artefacts.locked(folder):
        if is_answered(run, held_out):
            return
        from pipeline.prediction import open_member

        began = time.perf_counter()
        say(f"answer {run.name} {folder.name}")
        task = task_for(run.config, run.competition)
        member = open_member(folder, run.config, run.competition, task, hardware.choose(run.config))
        member.write_test(folder, {"run": run.name, "member": folder.name, "epoch": member.epoch})
        artefacts.finish(folder / "answer.json", made_in(run), seconds=time.perf_counter() - began)


WORK = launch.Work("answer", is_answered, answer, timed=True)


# --- all together -------------------------------------------------------------------------------------------------


def combined(
    config: Config, competition: Competition, task: Task, chosen: Chosen, done: list[tuple[Run, tuple[int, ...]]]
) -> tuple[Task, Predictions, str]:
    """What is submitted, the task that makes rows of it, and how it came about.

    A level 2 needs all its runs of a fold, so folds that lack one are left out; without any whole fold the members that
    are done are averaged, without any member the training rows' mean is the answer.
    """
    if not len(competition.test):
        return task, Predictions(np.zeros(0, np.str_), np.zeros((0, len(task.columns))), task.space), "no test image"
    whole = [held_out for held_out in chosen.held_out if all((one, held_out) in done for one in chosen.runs.values())]
    count = len(chosen.runs) * len(chosen.held_out)
    late = f"; budget={config.budget} ended before the other {count - len(done)}" if len(done) < count else ""
    how = f"{len(done)} of {count} members{late}"
    if late:
        warn(how)
    if chosen.level2 is not None and whole:
        folds = f", level 2 on {len(whole)} of {len(chosen.held_out)} folds" if late else ""
        told = replace(config, **chosen.level2.get("settings", {}))
        return task_for(told, competition), stacked(config, competition, task, chosen, whole), f"{how}{folds}"
    if done:
        means = f"{how}; their plain mean stands for level 2" if chosen.level2 is not None else how
        return task, Predictions.mean([read(competition, *member) for member in done]), means
    if task.form.searched or task.form.spatial:
        raise UserError(f"{how}: nothing is predicted; give a longer budget=, or fewer members: source=RUN fold=0")
    certain = task.soft(task.targets(competition.targets))
    values = np.tile(certain.mean(axis=0, keepdims=True, dtype=np.float64), (len(competition.test), 1))
    return task, Predictions(competition.test["id"].to_numpy(), values, task.space), f"{how}; the training rows' mean"


def read(competition: Competition, run: Run, held_out: tuple[int, ...]) -> Predictions:
    """A member's predictions of the test rows, in their order."""
    path = run.member(held_out) / "test.npz"
    return Predictions.load(path).align(competition.test["id"].to_numpy(), shown(path))


def stacked(
    config: Config, competition: Competition, task: Task, chosen: Chosen, folds: list[tuple[int, ...]]
) -> Predictions:
    """The level 2 of some folds, through its file, as ``stage=stack`` leaves it to ``stage=submit``."""
    made, folder = chosen.level2, _level2(config, chosen.name)
    assert made is not None
    own = {name: [read(competition, run, fold) for fold in folds] for name, run in chosen.runs.items()}
    some = next(iter(own.values()))
    each = [own.get(name, some) for name in made["members"]]  # a run without weight says nothing, whatever it holds
    if task.form is EMBEDDINGS:
        given = [name for name in own if made["weights"][name] > 0]
        values: Any = fusing.fused(
            [Predictions.mean(own[name]).values for name in given], [made["weights"][name] for name in given]
        )
    elif task.form.spatial:
        weights = np.array([made["weights"][name] for name in made["members"]])
        by_fold = [[one[place].values for one in each] for place in range(len(folds))]
        values = blended.applied(by_fold, task, lambda maps: Mean(maps, weights), made["decision"])
    else:
        tables = [[one.values for one in members] for members in each]
        coded = folder / packing.FEATURES
        side = features.of_tests(config, competition, artefacts.read_json(coded)) if coded.is_file() else None
        values = stack.applied(tables, task, stack.read_stacker(folder), stack.read_decision(folder), side)
    made_by = {"level2": made["method"], "members": made["members"]}
    Predictions(competition.test["id"].to_numpy(), values, task.space, made_by).save(folder / "test.npz")
    return Predictions.load(folder / "test.npz")


def rows(competition: Competition, task: Task, predictions: Predictions) -> pd.DataFrame:
    """The rows of the submission; images that cannot be read are answered with no mask."""
    sample = competition.sample
    if not task.form.spatial:
        return submit.rows(competition, task, predictions)
    spatial: Any = task
    known, blank = spatial.parted(sample, competition.test["id"])
    found = [spatial.submission(predictions.ids, predictions.values, known)] if len(known) else []
    frame = pd.concat([*found, blank.astype(str)], ignore_index=True)
    order = {name: row for row, name in enumerate(dict.fromkeys(sample.iloc[:, 0].astype(str)))}
    places = frame.iloc[:, 0].astype(str).map(order).to_numpy()
    return frame.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)
