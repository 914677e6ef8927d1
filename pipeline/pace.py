"""train.seconds: how many epochs, of how many batches, fit into a member's time; measured once for a run.

The one length that a clock decides. It is written to the run's config.yaml before the first step, so that every other
member, and every resume, trains for exactly as long: two runs with the same recorded length are equal bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from pipeline import artefacts, infer, ranges, stores
from pipeline.artefacts import shown
from pipeline.config import replace
from pipeline.console import say
from pipeline.parts import views
from pipeline.runs import Run, write_yaml

SHARE = 0.95  # of the seconds is planned with; averages, checkpoints and a slower hour take the rest
MEASURING, LONGEST = 0.02, 20.0  # share of the seconds, beside them, and s: ten steps do not tell a shared machine
SAMPLE = 512  # rows of the fold on which a validation is timed, once it is warm


@dataclass(frozen=True)
class Speed:
    """What was measured: batches in an epoch over all rows, seconds of one batch, seconds of one validation."""

    batches: int
    batch: float
    validation: float


def settle(run: Run) -> None:
    """Measure and record the run's length unless it is recorded; does nothing without train.seconds."""
    if not run.config.train.seconds or run.stored().get("length"):
        return
    with artefacts.locked(run.folder):
        stored = run.stored()
        if stored.get("length"):  # while this process waited
            return
        speed = measured(run)
        length = fitting(run.config.train.seconds, speed)
        write_yaml(run.file, {**stored, "length": length, "speed": asdict(speed)})
    say(
        f"  train.seconds={run.config.train.seconds:g}: {length['epochs']} epochs of {length['batches']} batches, of "
        f"{speed.batches} that all rows make ({1000 * speed.batch:.3g} ms each); recorded in {shown(run.file)}"
    )


def fitting(seconds: float, speed: Speed) -> dict[str, int]:
    """The epochs and the batches of each that take about SHARE of these seconds, validations too; at least one each.

    As few epochs as can hold the batches, all of the same length: instead of a last epoch that is cut off, each leaves
    out a few rows, others each time.
    """
    planned = SHARE * seconds
    epochs = max(1, math.ceil(round(planned / (speed.batches * speed.batch + speed.validation), 6)))
    batches = math.floor(round((planned / epochs - speed.validation) / speed.batch, 6))
    return {"epochs": epochs, "batches": min(max(batches, 1), speed.batches)}


def measured(run: Run) -> Speed:
    """Real training steps and a part of a validation, on a fresh member of fold 0 that is then thrown away."""
    trial = ranges.Trial(Run(replace(run.config, train__accumulate=1), run.name))
    loader = trial.loader(run.config.batch_size)
    return Speed(loader.steps, _batch_seconds(run, trial, loader.batch_size), _validation_seconds(run, trial))


def _batch_seconds(run: Run, trial: ranges.Trial, size: int) -> float:
    """Of a training step, over as many as MEASURING and LONGEST allow; the first few say how many these are."""
    seconds = ranges.measure(trial, size).milliseconds / 1000
    steps = int(min(MEASURING * run.config.train.seconds, LONGEST) / seconds)
    return ranges.measure(trial, size, steps).milliseconds / 1000 if steps > ranges.TIMED else seconds


def _validation_seconds(run: Run, trial: ranges.Trial) -> float:
    """Of predicting fold 0, from a sample of its rows."""
    config = run.config
    rows = np.flatnonzero(run.folds == 0)
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    images = stores.training_images(config, run.competition).train
    batch = infer.batch_size(config.predict_batch, config.image_size)
    network, view = trial.bench.learner.network.eval(), views.expand(["identity()"])
    infer.predict(network, trial.bench.task, images, sample[:batch], view, batch)
    began = ranges.clock()
    infer.predict(network, trial.bench.task, images, sample, view, batch)
    return (ranges.clock() - began) * len(rows) / len(sample)
