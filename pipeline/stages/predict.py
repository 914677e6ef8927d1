"""Predict: out-of-fold and test rows by each fold's member, under views and scales, with the gain of each."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from pipeline import artefacts, evaluate, gains, launch, limited
from pipeline.artefacts import Predictions, shown
from pipeline.config import Config, replace, scoped
from pipeline.console import Outcome, say, warn
from pipeline.rules import check_levels
from pipeline.runs import Run, beside
from pipeline.tasks import Task, task_for

APART = 0.1  # mean confidence on test this far below that on OOF is worth a warning

PREPROCESS = "data.preprocess"
MASKS = "oof_masks.png"


def run(config: Config) -> list[Outcome]:
    """Write oof.npz and test.npz of the members that ``fold=`` asks for; print what views and scales gained."""
    return together([config])


def together(configs: list[Config]) -> list[Outcome]:
    """Predict with the members of several runs, side by side where the config says so."""
    opened = [open_run(config) for config in configs]
    members = [(run, held_out) for run, _, _ in opened for held_out in run.asked()]
    done = launch.each(WORK, members)
    outcomes = []
    for (run, task, how), span in zip(opened, launch.spans(members, done), strict=True):
        began = time.perf_counter() - span
        reused = all(at is None for (other, _), at in zip(members, done, strict=True) if other is run)
        ended = report(run, task, time.perf_counter() - began, reused)
        if how:
            say(f"  {how}")
        outcomes.append(dataclasses.replace(ended, note="; ".join(filter(None, [ended.note, how]))))
    return outcomes


def open_run(config: Config) -> tuple[Run, Task, str]:
    """The run as it was trained, its task, and how its level was chosen, if it was."""
    run = Run(config, artefacts.run_name(config))
    run = Run(run.as_trained(), run.name)
    task = task_for(run.config, run.competition)  # with the clusters that it learned
    check_levels(run.config)
    if run.config.level != "auto":
        return run, task, ""
    from pipeline import levels

    level, honest = levels.choose(run, task)
    run = Run(replace(run.config, level=str(level)), run.name)
    how = f"level {level}, chosen by OOF score against operations; {honest}, each fold at the others' choice"
    return run, task, how


def is_predicted(run: Run, held_out: tuple[int, ...]) -> bool:
    """Whether the member's predictions are there, made in this way."""
    folder = run.member(held_out)
    outputs = [folder / "test.npz", *([folder / "oof.npz"] if held_out else [])]
    return artefacts.finished(folder / "predict.json", made_in(run, held_out), *outputs) is not None


def made_in(run: Run, held_out: tuple[int, ...]) -> str:
    """The fingerprint of a trained member's predictions."""
    return artefacts.fingerprint(
        run.trained(held_out), scoped(run.config, "predict"), crossfit(run.config), *run.joined(held_out)
    )


def predict(run: Run, held_out: tuple[int, ...]) -> None:
    """Predict with one member unless that is done."""
    folder, print_ = run.member(held_out), made_in(run, held_out)
    with artefacts.locked(folder):
        if is_predicted(run, held_out):  # perhaps while this process waited
            return
        from pipeline.hardware import Hardware
        from pipeline.prediction import open_member

        began = time.perf_counter()
        say(f"predict {run.name} {folder.name}")
        task = task_for(run.config, run.competition)
        (folder / "predict.json").unlink(missing_ok=True)  # it never stands beside predictions of other views
        member = open_member(folder, run.config, run.competition, task, Hardware(**run.stored()["hardware"]))
        made_by = {
            "run": run.name, "member": folder.name, "views": run.config.views, "scales": run.config.scales,
            "merge": run.config.merge, "epoch": member.epoch, "commit": artefacts.commit(),
            **({"crossfit": True} if crossfit(run.config) else {}),
            **({"level": run.config.level} if run.config.level != "last" else {}),
        }  # fmt: skip
        if held_out:
            member.write_own(np.flatnonzero(np.isin(run.folds, held_out)), folder, made_by)
        member.write_test(folder, made_by)
        looks = limited.looked_at(run, run.config, int(np.isin(run.folds, held_out).sum()))
        artefacts.finish(folder / "predict.json", print_, seconds=time.perf_counter() - began, looks=looks)


WORK = launch.Work("predict", is_predicted, predict)


def crossfit(config: Config) -> bool:
    """Whether each part of the test rows must be predicted by the member that did not learn from it."""
    return bool(config.train.labels) and config.pseudo.crossfit


def report(run: Run, task: Task, seconds: float, reused: bool) -> Outcome:
    """Say the OOF score, the gain of each view and scale, and whether test looks as sure as OOF."""
    if not run.predicted():
        note = "no CV" if run.asked() == [()] else "OOF is scored once all folds are predicted"
        return Outcome("predict", run.name, seconds=seconds, reused=reused, note=note)
    metric = evaluate.metric(run.config.metric, task)
    truth, oof = run.truth(task), run.oof()
    seen, answered = metric.seen(truth, oof.values)
    score = evaluate.score_seen(metric, seen, answered, run.scored_folds)
    say(f"{shown(run.folder)}: {run.config.metric} {score}" + (f" ({run.selected})" if run.selected else ""))
    if not reused:
        _say_gains(run, task, metric, truth, oof)
        _say_preprocessing(run, metric, truth, oof)
        if task.form.bounded:  # else values alone tell no confidence
            _say_confidence(run, task, oof)
    if task.form.spatial and not (reused and (run.folder / MASKS).exists()):
        _draw_masks(run, task, truth, oof, metric, metric.rows(seen, answered))
    views = len(run.config.views) * len(run.config.scales) > 1
    seen = f"{'+'.join(run.config.views)} × {run.config.scales}" if views else ""
    note = "; ".join(filter(None, [seen, run.selected]))
    return Outcome("predict", run.name, str(score), seconds=seconds, reused=reused, note=note)


def _say_gains(run: Run, task: Task, metric: evaluate.Metric, truth: np.ndarray, oof: Predictions) -> None:
    """The OOF gain of every view and scale, each joined to the plain one, and of all together."""
    found = gains.of_views(run, task, metric, truth, oof)
    if found is None:
        return
    say(f"  gain in OOF {run.config.metric} over {found.plain} alone (paired, ± 1 se):")
    for label, gain, error in found.each:
        say(f"    + {label:<24} {gain:+.4f} ± {error:.4f}")
    gain, error = found.together
    verdict = "keep them" if found.helps else "no gain beyond noise: views=identity scales=1 is as good and faster"
    say(f"    all {len(found.each) + 1} together{'':<15} {gain:+.4f} ± {error:.4f}  {verdict}")


def _say_preprocessing(run: Run, metric: evaluate.Metric, truth: np.ndarray, oof: Predictions) -> None:
    """What data.preprocess gained over none: the runs that differ in nothing else, of which one has none."""
    own = run.config.data.preprocess
    others = [(other, other.stored()["settings"].get(PREPROCESS, [])) for other in beside(run, PREPROCESS)]
    compared = [(other, calls) for other, calls in others if bool(calls) != bool(own)]
    for other, calls in compared:
        none, some = (other.oof(), oof) if own else (oof, other.oof())
        gain, error = evaluate.paired_gain(metric, truth, none.values, some.values)
        what = f"{run.name} over {other.name}" if own else f"{other.name} over {run.name}"
        verdict = "" if abs(gain) > error else "  within its error"
        say(f"  {PREPROCESS}={','.join(own or calls)} over none, {what}: {gain:+.4f} ± {error:.4f} (paired){verdict}")
    if own and not compared:
        say(f"  its gain over none shows beside a run that differs in {PREPROCESS}= alone; train and predict that too")


def _draw_masks(run: Run, task: Any, truth: Any, oof: Predictions, metric: evaluate.Metric, scores: np.ndarray) -> None:
    """The best, the median and the worst OOF masks beside the truth, as a picture in the run's folder."""
    from pipeline import gallery, masked, sheets

    competition = run.competition
    files, covered = competition.train["file"].iloc[run.scored], task.covered(competition.targets.iloc[run.scored])

    def image(row: int) -> np.ndarray:
        return masked.read(run.config, competition, files.iloc[row])

    groups = gallery.picks(metric.sign * scores, covered)
    legend = task.named if len(task.named) > 1 else ()
    heading = f"OOF {run.config.metric} of {run.name}, image by image, cut by {task.cut}"
    picture = gallery.sheet(heading, oof.ids.tolist(), scores, groups, image, truth, task.decide(oof.values), legend)
    with artefacts.atomic(run.folder / MASKS) as handle:
        handle.write(sheets.png(picture))
    say(f"  {shown(run.folder / MASKS)}: the best, median and worst masks beside the truth; look at it")


def _say_confidence(run: Run, task: Task, oof: Predictions) -> None:
    """Mean confidence on OOF and on test: where they part, the test rows look unlike the training rows."""
    if not len(run.competition.test):
        return
    own = task.confident(oof.values, 0.0)[1].mean()
    test = np.mean([task.confident(p.values, 0.0)[1].mean() for p in run.tests()])
    say(f"  mean confidence: OOF {own:.3f}, test {test:.3f} (single members)")
    if own - test > APART:
        warn(
            f"{run.name} is surer of its OOF rows ({own:.3f}) than of the test rows ({test:.3f}): the test images may "
            "differ from the training images; trust the OOF score and pseudo-labels less"
        )
