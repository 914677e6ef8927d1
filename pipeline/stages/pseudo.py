"""Recursive pseudo-labels: confident test predictions join the table, the next round trains and labels again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, evaluate, masked
from pipeline.artefacts import shown
from pipeline.config import Config, replace, root, same, scoped
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError, some
from pipeline.maps import joined
from pipeline.runs import Run, test_parts
from pipeline.stages import predict, train
from pipeline.tasks import Task, lacks, task_for

SHIFTS = ("identity()", "shift(x=2,y=0)", "shift(x=-2,y=0)", "shift(x=0,y=2)", "shift(x=0,y=-2)")


def run(config: Config) -> list[Outcome]:
    """Train the rounds R-r1, R-r2, … of run R; a round that does not gain beyond one paired se ends them."""
    if why := lacks(config, "pseudo"):
        return [Outcome("pseudo", note=why)]
    teacher, other = Run(config, artefacts.run_name(config)), given(config)
    teacher = Run(teacher.as_trained(), teacher.name)
    if teacher.competition.absorbed and teacher.made_by == "train":
        check_rows(teacher)
    if config.fold == ["full"]:
        raise UserError("stage=pseudo compares rounds by OOF, which fold=full has not; use fold=all")
    first, outcomes = teacher.name, []
    for number in range(1, config.pseudo.rounds + 1):
        outcome, student = run_round(teacher, f"{first}-r{number}", number, other)
        outcomes.append(outcome)
        if student is None or student.rejected:
            break
        teacher = student
    return outcomes


def check_rows(teacher: Run) -> None:
    """UserError where rows were absorbed since the teacher was trained: a gain would be theirs, not the round's."""
    if teacher.stored()["inputs"].get("competition") != teacher.competition.fingerprint:
        raise UserError(
            f"the run {teacher.name} was trained before rows were absorbed, and a round would learn from these, too; "
            f"train a run with them, ./run.sh stage=train competition={teacher.config.competition} "
            f"run={teacher.name}-2, or leave them out with data.absorbed=false"
        )


def given(config: Config) -> dict[str, Any]:
    """The settings of trainings that the command line or the recipe's step names, which hold for the rounds alone."""
    return {key.replace(".", "__"): value for key, value in scoped(config, "run").items() if key in config.asked}


def check_settings(student: Run) -> None:
    """UserError where a round is there that other settings trained: of a round, another name would be another run's."""
    settings, before = student.settings(), student.stored().get("settings", {})
    other = [f"{key}={before[key]}" for key, value in settings.items() if not same(key, before.get(key, value), value)]
    if other and student.begun() and not student.config.overwrite:
        raise UserError(
            f"the round {student.name} was trained with {some(other, 8)}; give that again to go on with it, or "
            "overwrite=true to train it anew"
        )


def run_round(teacher: Run, name: str, number: int, other: dict[str, Any]) -> tuple[Outcome, Run | None]:
    """One round: label the test rows, train and predict with them, compare OOF with the teacher's.

    other: settings that are not as the teacher's. No run comes of it where no test row is sure enough; that is a
    warning, since a recipe must go on.
    """
    with artefacts.locked(artefacts.run_folder(teacher.config, name), step=True):
        return _round(teacher, name, number, other)


def _round(teacher: Run, name: str, number: int, other: dict[str, Any]) -> tuple[Outcome, Run | None]:
    began = time.perf_counter()
    thresholds = teacher.config.pseudo.threshold
    threshold = thresholds[min(number, len(thresholds)) - 1]
    student = Run(replace(teacher.config, **other), name)
    path = student.folder / f"labels-r{number}.csv"
    frame = LABELS[task_for(teacher.config, teacher.competition).form.spatial](teacher, student, path, threshold)
    if frame.empty:
        note = f"no test row of {teacher.name} is as sure as pseudo.threshold={threshold:g}"
        warn(f"{note}: there is no round {number}; lower it")
        return Outcome("pseudo", name, seconds=time.perf_counter() - began, note=note), None
    say(
        f"pseudo {name}: {_counts(frame, teacher.count)} of {len(teacher.competition.test)} test rows a member, "
        f"confidence ≥ {threshold}"
    )

    labels = str(path.relative_to(root()))
    config = replace(student.config, run=name, fold=["all"], overwrite=False, train__labels=labels)
    student = Run(config, name)
    check_settings(student)
    trained, predicted = train.run(config)[0], predict.run(config)[0]
    gain, error = compare(teacher, student)
    better = gain > error
    verdict = f"OOF {gain:+.4f} ± {error:.4f} against {teacher.name}"
    if better:
        (student.folder / "status.json").unlink(missing_ok=True)
    else:
        student.reject(f"no gain beyond one paired se: {verdict}")
    note = f"{verdict}: {'used further' if better else 'kept on disk, not used further'}"
    say(f"  {note}")
    reused = trained.reused and predicted.reused
    seconds = time.perf_counter() - began
    return Outcome("pseudo", name, predicted.score, seconds=seconds, reused=reused, note=note), student


def write_labels(teacher: Run, student: Run, path: Path, threshold: float) -> pd.DataFrame:
    """The table of labels, once it lies at path; an empty one is not written."""
    frame = make_labels(teacher, threshold)
    if not frame.empty:
        student.clear()
        _write(student, path, frame)
    return frame


def write_map_labels(teacher: Run, student: Run, path: Path, threshold: float) -> pd.DataFrame:
    """The same of masks: the planes to learn lie beside the table, a file a member, which the table tells by digest."""
    pseudo, config, record = teacher.config.pseudo, teacher.config, path.with_suffix(".json")
    tests = [artefacts.file_digest(teacher.need((fold,), "test.npz")) for fold in range(teacher.count)]
    size = masked.work_size(student.config)
    resized = [] if size == masked.work_size(config) else [size]
    print_ = artefacts.fingerprint(tests, threshold, pseudo.cap, pseudo.soft, pseudo.weight, *resized)
    known = None if config.overwrite else artefacts.finished(record, print_, path)
    other = not artefacts.finished(record, print_) and artefacts.recorded(record)
    files = [path.parent / name for name in known["files"]] if known else []
    if known and all(file.exists() for file in files) and artefacts.file_digest(path) == known["table"]:
        return pd.read_csv(path, dtype={"id": str, "planes": str})
    frame = make_labels(teacher, threshold)
    if frame.empty:
        return frame
    student.clear()
    if other:  # else the same teacher gives the same planes again, where some were lost
        student.keep(shown(path))
    members = frame.groupby("for_fold")["id"]
    digests = {fold: _write_planes(teacher, student, path, fold, ids, threshold) for fold, ids in members}
    frame = frame.assign(planes=frame["for_fold"].map(digests))
    _write(student, path, frame)
    files = [masked.given_file(path, fold).name for fold in digests]
    artefacts.finish(record, print_, files=files, table=artefacts.file_digest(path))
    return frame


def _write_planes(teacher: Run, student: Run, path: Path, fold: int, ids: pd.Series, threshold: float) -> str:
    """Write the planes that a member's test maps give it to learn, as the student sizes them; returns their digest."""
    config, competition = teacher.config, teacher.competition
    task: Any = task_for(config, competition)
    maps = artefacts.Predictions.load(teacher.need((fold,), "test.npz")).align(ids.to_numpy()).values
    soft = config.pseudo.soft
    planes = (joined(task.pseudo_planes(b, threshold, soft) for b in maps.bands(row)) for row in range(len(maps)))
    places = masked.places_of(ids.to_numpy(), competition.test["id"].to_numpy())
    sizes = masked.sizes_of(student.config, competition, competition.test["file"].to_numpy()[places].tolist())
    file = masked.given_file(path, fold)
    masked.write_given(student.config, file, ids.to_numpy(), sizes, planes)
    return artefacts.file_digest(file)


LABELS: dict[bool, Callable[[Run, Run, Path, float], pd.DataFrame]] = {  # by whether the task's form is spatial
    False: write_labels, True: write_map_labels,
}  # fmt: skip


def _write(student: Run, path: Path, frame: pd.DataFrame) -> None:
    text = frame.to_csv(index=False, lineterminator="\n")
    digest = artefacts.digest(text.encode())
    if not path.exists() or artefacts.file_digest(path) != digest:
        student.keep(shown(path), "train.labels", digest)
        artefacts.write_text(path, text)


def make_labels(teacher: Run, threshold: float) -> pd.DataFrame:
    """The labels for each member, from that same member of the teacher run alone (law 1)."""
    config = teacher.config
    task = task_for(config, teacher.competition)
    ids = teacher.competition.test["id"].to_numpy()
    parts = test_parts(len(ids), teacher.count, config.folds.seed)
    frames = []
    for fold in range(teacher.count):
        own = artefacts.Predictions.load(teacher.need((fold,), "test.npz")).align(ids)
        agreement = agreement_of(teacher, task, fold) if task.agreement else None
        rows, labels = task.pseudo_labels(own.values, threshold, config.pseudo.cap, config.pseudo.soft, agreement)
        frame = pd.DataFrame({"id": ids[rows], **labels, "weight": config.pseudo.weight, "for_fold": fold})
        if config.pseudo.crossfit:  # its own part of the test rows stays unseen, so that it can predict it
            frame = frame[parts[rows] != fold]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def agreement_of(teacher: Run, task: Task, fold: int) -> np.ndarray:
    """(N,) in 0…1: how much a member's own views of each test row agree; 1 is the same number under all.

    One minus the views' deviation in units of the target's, of the row's worst column. Small shifts stand in where the
    run has one view. Other members are not asked: they have seen the labels of this member's fold (law 1).
    """
    from pipeline.hardware import Hardware
    from pipeline.prediction import Member

    if not teacher.stored():
        raise UserError(f"{teacher.name} has no models whose views could agree, since it was adopted; name another run")
    views = list(dict.fromkeys([*teacher.config.views, *SHIFTS]))
    machine = Hardware(**teacher.stored()["hardware"])
    config = replace(teacher.config, views=views)
    member = Member(teacher.member((fold,)), config, teacher.competition, task, machine)
    spread = member.test_rows().std(axis=0) / np.asarray(member.state["spread"])
    return (1 - spread.max(axis=1)).clip(0, 1)


def compare(teacher: Run, student: Run) -> tuple[float, float]:
    """The student's OOF gain over its teacher and its paired standard error."""
    task = task_for(teacher.config, teacher.competition)
    metric = evaluate.metric(teacher.config.metric, task)
    return evaluate.paired_gain(metric, teacher.truth(task), teacher.oof().values, student.oof().values)


def _counts(frame: pd.DataFrame, folds: int) -> str:
    counts = frame["for_fold"].value_counts().reindex(range(folds), fill_value=0)
    return f"{counts.min()}–{counts.max()}" if counts.min() != counts.max() else str(counts.min())
