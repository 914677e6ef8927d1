"""Distil: a student learns from a teacher run's soft labels and the truth; fold-safe, any backbones."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline import artefacts, evaluate, launch
from pipeline.artefacts import Predictions, shown
from pipeline.config import Config, replace, root, scoped
from pipeline.console import Outcome, say
from pipeline.errors import UserError
from pipeline.rules import followers
from pipeline.runs import Run, folder_digest, predicted_runs
from pipeline.stages import predict, train
from pipeline.tasks import facts, lacks, task_for

RECORD = "soft.json"
LEAK = {
    "member": "",
    "oof": "second-order leak: soft labels from OOF",
    "pair": "",
}


def run(config: Config) -> list[Outcome]:
    """Train and predict the run ``<student>-distilled`` from the teachers' soft labels."""
    if why := lacks(config, "distill"):
        return [Outcome("distill", note=why)]
    if config.fold == ["full"]:
        raise UserError("stage=distill teaches the members of folds; fold=full has none: use fold=all")
    name = config.run or f"{config.model}-distilled"
    with artefacts.locked(artefacts.run_folder(config, name), step=True):
        return [distill(config, name)]


def distill(config: Config, name: str) -> Outcome:
    """Teach, train and predict the student of that name."""
    began = time.perf_counter()
    teachers = find_teachers(config, name)
    student = Run(config, name)
    if name in [teacher.name for teacher in teachers] or (
        student.stored() and not _learned_from(student, "train.soft")
    ):
        raise UserError(
            f"run={name} is no student but a run trained without a teacher; name another, run={name}-distilled"
        )
    _check_crops(config, teachers)
    student.clear()
    folder = student.folder / "soft"
    names = "+".join(teacher.name for teacher in teachers)
    say(f"distill {name}: teacher {names}, source={config.distill.source}")
    write_soft_labels(student, teachers, folder)

    settings = replace(
        config,
        run=name,
        overwrite=False,
        fold=["all"],
        train__soft=str(folder.relative_to(root())),
        train__temperature=config.distill.temperature,
        train__alpha=config.distill.alpha,
        train__embeddings=config.distill.embeddings,
    )
    trained, predicted = train.run(settings)[0], predict.run(settings)[0]
    note = "; ".join(filter(None, [f"teacher {names}", LEAK[config.distill.source]]))
    reused = trained.reused and predicted.reused
    return Outcome("distill", name, predicted.score, "", "", time.perf_counter() - began, note, reused)


def find_teachers(config: Config, student: str) -> list[Run]:
    """The named runs, else those that taught the student before, else the predicted run with the best OOF score.

    A student is none of them. A recipe that comes again keeps its teacher, though better runs were made meanwhile.
    """
    if config.distill.teacher:
        return [Run(config, name) for name in config.distill.teacher]
    record = artefacts.run_folder(config, student) / RECORD
    if not config.overwrite and (taught_by := (artefacts.recorded(record) or {}).get("teachers")):
        return [Run(config, name) for name in taught_by]
    runs = [r for r in predicted_runs(config) if r.name != student and not _learned_from(r, "train.soft")]
    if config.distill.source != "oof":
        runs = [r for r in runs if r.has_networks]  # else no models to label rows with: adopted, neighbours, features
    if config.distill.source == "pair":
        runs = [r for r in runs if not (_learned_from(r, "train.labels") or _learned_from(r, "train.hard"))]
    if not runs:
        raise UserError(
            "there is no predicted run to learn from; run stage=train and stage=predict, or distill.teacher=RUN"
        )
    task = task_for(config, runs[0].competition)
    truth, metric = runs[0].truth(task), evaluate.metric(config.metric, task)
    scores = [metric.gain(truth, teacher.oof().values) for teacher in runs]
    return [runs[int(np.argmax(scores))]]


def _learned_from(run: Run, key: str) -> str:
    return str(run.stored().get("settings", {}).get(key, ""))


def write_soft_labels(student: Run, teachers: list[Run], folder: Path) -> None:
    """``soft/fold<k>.npz`` for each student member k: the teachers' mean, from what may label member k's rows."""
    config = student.config
    teach = SOURCES[config.distill.source]
    parents = [t.need((fold,), "test.npz").parent for t in teachers for fold in range(t.count)]
    digests = [artefacts.file_digest(p / n) for p in parents for n in ("test.npz", "oof.npz")]
    asked = (config.distill.source, config.distill.unlabelled, scoped(config, "predict"))
    print_ = artefacts.fingerprint(*asked, [t.name for t in teachers], digests)
    record, draft = folder.parent / RECORD, folder.parent / "soft.draft"
    known = artefacts.finished(record, print_, folder)
    if known and known.get("digest") == folder_digest(folder):
        return
    if not known and artefacts.recorded(record):
        student.keep(shown(folder))  # other teachers: said before the work, not after it
    shutil.rmtree(draft, ignore_errors=True)
    scratch = folder.parent / "soft-scratch"  # for maps of single teachers
    for fold in range(teachers[0].count):
        _mean([teach(teacher, fold, scratch / teacher.name) for teacher in teachers]).save(draft / f"fold{fold}.npz")
        shutil.rmtree(scratch, ignore_errors=True)
        if config.distill.unlabelled:
            tests = [Predictions.load(teacher.need((fold,), "test.npz")) for teacher in teachers]
            _mean(tests).save(draft / f"fold{fold}-test.npz")
    digest = folder_digest(draft)
    student.keep(shown(folder), "train.soft", digest)
    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    artefacts.finish(record, print_, digest=digest, teachers=[teacher.name for teacher in teachers])


def _mean(taught: list[Predictions]) -> Predictions:
    return Predictions.mean([own.align(taught[0].ids) for own in taught])


# --- who labels the training rows of student k --------------------------------------------------------------------


def from_member(teacher: Run, fold: int, scratch: Path) -> Predictions:
    """The teacher's member k labels the rows it learned from: strict, but in-sample and so rather sure."""
    return _by_member(teacher, (fold,), np.flatnonzero(teacher.learned((fold,))), scratch)


def from_oof(teacher: Run, fold: int, scratch: Path) -> Predictions:
    """The teacher's OOF: softer, but made by members that learned from fold k (a second-order leak)."""
    oof, rows = teacher.oof(), np.flatnonzero(teacher.scored_folds != fold)
    return Predictions(oof.ids[rows], oof.values[rows], oof.space)


def from_pairs(teacher: Run, fold: int, scratch: Path) -> Predictions:
    """Teachers without folds j and k label fold j for student k: strict and out-of-sample, K(K−1)/2 trainings."""
    _check_models(teacher)
    labels = next(filter(None, (_learned_from(teacher, f"train.{key}") for key in ("soft", "labels", "hard"))), "")
    if labels:
        raise UserError(
            f"distill.source=pair trains the teacher {teacher.name} anew without folds j and k, but it learned from "
            f"{labels}, made by members that saw one of them; name a run without such labels, distill.teacher=RUN"
        )
    if following := followers(teacher.as_trained()):
        raise UserError(
            f"distill.source=pair trains the teacher {teacher.name} anew without folds j and k, but "
            f"{' '.join(following)} would follow the scores of a fold that it labels; name a run without "
            "such, distill.teacher=RUN"
        )
    if teacher.count < 3:
        raise UserError("distill.source=pair leaves out two folds, but there are 2; deal folds.count=3 or more")
    models = Run(teacher.as_trained(), teacher.name)
    launch.each(train.WORK, [(models, pair) for pair in itertools.combinations(range(teacher.count), 2)])
    others = {other: (min(fold, other), max(fold, other)) for other in range(teacher.count) if other != fold}
    return Predictions.concat(
        [_by_member(teacher, pair, np.flatnonzero(teacher.folds == other), scratch) for other, pair in others.items()]
    )


SOURCES: dict[str, Callable[[Run, int, Path], Predictions]] = {
    "member": from_member, "oof": from_oof, "pair": from_pairs,
}  # fmt: skip


def _by_member(teacher: Run, held_out: tuple[int, ...], rows: np.ndarray, scratch: Path) -> Predictions:
    from pipeline.hardware import Hardware
    from pipeline.prediction import open_member

    _check_models(teacher)
    config, machine = teacher.as_trained(), Hardware(**teacher.stored()["hardware"])
    folder, task = teacher.member(held_out), task_for(config, teacher.competition)
    member = open_member(folder, config, teacher.competition, task, machine)
    return member.label(rows, scratch / f"{folder.name}.npz")


def _check_crops(config: Config, teachers: list[Run]) -> None:
    """A teacher of maps that saw the middle of an image says nothing of the rest."""
    blind = [t.name for t in teachers if t.stored().get("settings", {}).get("data.resize") == "crop"]
    if blind and config.data.resize != "crop" and facts(config.task).get("spatial"):
        raise UserError(
            f"the teacher {blind[0]} learned with data.resize=crop and says nothing of what lies outside, which "
            f"data.resize={config.data.resize} shows to the student; set data.resize=crop, or name another teacher"
        )


def _check_models(teacher: Run) -> None:
    if not teacher.has_networks:
        made = f"stage={teacher.made_by} keeps none" if teacher.made_by else "an adopted run has none"
        raise UserError(
            f"distill.teacher={teacher.name}, but it cannot label rows anew, for want of networks: {made}; use "
            "distill.source=oof, or another distill.teacher=RUN"
        )
