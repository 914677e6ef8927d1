"""Answer each image by its nearest neighbours in a run's embedding, as a run of its own: ``<run>-knn``.

Member k looks in its own embedding, the pooled features before the head, and only among the rows that it may learn
from; so the run stacks like any other. A neighbour counts by exp(cosine / knn.temperature).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipeline import artefacts, evaluate
from pipeline.artefacts import Predictions, shown
from pipeline.config import Config
from pipeline.console import Outcome, say
from pipeline.errors import UserError
from pipeline.forms import Form
from pipeline.runs import Run
from pipeline.stages.predict import crossfit
from pipeline.tasks import Task, refuse_spatial, task_for

SUFFIX = "-knn"


def run(config: Config) -> list[Outcome]:
    """Write oof.npz and test.npz of ``<run>-knn`` for the members that ``fold=`` asks for, and score them."""
    refuse_spatial(config)
    began = time.perf_counter()
    source = Run(config, artefacts.run_name(config))
    if source.name.endswith(SUFFIX):
        raise UserError(f"run={source.name} has no embedding of its own; give run={source.name.removesuffix(SUFFIX)}")
    source = Run(source.as_trained(), source.name)
    task, target = task_for(config, source.competition), Run(source.config, source.name + SUFFIX)
    reused = [look_up(source, target, task, held_out) for held_out in source.asked()]
    seconds, note = time.perf_counter() - began, f"{config.knn.k} neighbours in {source.name}"
    if not target.predicted():
        unscored = "no CV" if source.asked() == [()] else "OOF is scored once all folds are answered"
        return [Outcome("knn", target.name, seconds=seconds, reused=all(reused), note=f"{note}; {unscored}")]
    metric = evaluate.metric(config.metric, task)
    score = evaluate.score_folds(metric, target.truth(task), target.oof().values, target.scored_folds)
    say(f"{shown(target.folder)}: {metric.name} {score}")
    return [Outcome("knn", target.name, str(score), seconds=seconds, reused=all(reused), note=note)]


def look_up(source: Run, target: Run, task: Task, held_out: tuple[int, ...]) -> bool:
    """Answer with one member's embedding unless that is done; returns whether it was."""
    own, folder, settings = source.member(held_out), target.member(held_out), source.config.knn
    print_ = artefacts.fingerprint(
        "knn", source.trained(held_out), settings.k, settings.temperature, *source.joined(held_out)
    )
    outputs = [folder / "test.npz", *([folder / "oof.npz"] if held_out else [])]
    if artefacts.finished(folder / "knn.json", print_, *outputs):
        return True
    say(f"knn {source.name} {own.name}")
    with artefacts.locked(folder):
        (folder / "knn.json").unlink(missing_ok=True)
        made_by: dict[str, Any] = {
            "run": target.name, "member": own.name, "neighbours": settings.k, "temperature": settings.temperature,
            "commit": artefacts.commit(), **({"crossfit": True} if crossfit(source.config) else {}),
        }  # fmt: skip
        ids, rows = source.competition.train["id"].to_numpy(), np.flatnonzero(np.isin(source.folds, held_out))
        oof, test = answers(source, task, held_out, rows)
        if held_out:
            Predictions(ids[rows], oof, task.space, made_by).save(folder / "oof.npz")
        Predictions(source.competition.test["id"].to_numpy(), test, task.space, made_by).save(folder / "test.npz")
        artefacts.finish(folder / "knn.json", print_)
    return False


def answers(
    run: Run, task: Task, held_out: tuple[int, ...], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Values of the training rows held out and of all test rows, by neighbours among the rows the member learns from.

    Fold safety: the embedding is this member's, and no row of its fold is among the neighbours.
    """
    from pipeline import infer, stores
    from pipeline.embed import embed, nearest
    from pipeline.hardware import Hardware
    from pipeline.prediction import Member

    machine, settings = Hardware(**run.stored()["hardware"]), run.config.knn
    member = Member(run.member(held_out), run.config, run.competition, task, machine)
    size = member.config.image_size
    train = stores.train_store(member.config, run.competition, size)
    test = stores.test_store(member.config, run.competition, size)
    batch = infer.batch_size(run.config.predict_batch, size)
    learned = run.learned(held_out)
    learned[train.broken] = False
    known = np.flatnonzero(learned)
    points = embed(member.networks[0], train, known, batch)
    labels = task.soft(task.taught(run.competition.targets)[known])
    found = []
    for store, wanted in ((train, rows), (test, np.arange(len(test)))):
        near = nearest(points, embed(member.networks[0], store, wanted, batch), settings.k, machine.device)
        found.append(shares(task.form, *near, labels, settings.temperature))
    return found[0], found[1]


def shares(
    form: Form, cosines: np.ndarray, places: np.ndarray, labels: np.ndarray, temperature: float
) -> np.ndarray:  # fmt: skip
    """The neighbours' weighted mean, (Q, C) float32 of the form.

    cosines, places: (Q, k), best first. labels: (B, C) values of the points. Of probabilities one more neighbour, as
    far as the last, stands for the mean of all points, so that no class is impossible.
    """
    weights = np.exp((cosines.astype(np.float64) - cosines[:, :1]) / temperature)
    total = np.einsum("qk,qkc->qc", weights, labels[places].astype(np.float64))
    if form.bounded:
        return form.finish(
            (total + weights[:, -1:] * labels.mean(axis=0)) / (weights.sum(axis=1) + weights[:, -1])[:, None]
        )
    return form.finish(total / weights.sum(axis=1, keepdims=True))
