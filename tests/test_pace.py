"""train.seconds: the length that a clock decides is recorded before the first step, and all else follows the record."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_training as small
import torch
import yaml

from pipeline import pace, ranges
from pipeline.artefacts import read_json
from pipeline.pace import SHARE, Speed, fitting

TRAIN = ("stage=train", "fold=0", "train.seconds=2", "train.checkpoint_seconds=0", "run=timed")
RUN = "runs/noise/timed"


@pytest.fixture
def root(project) -> Path:
    """32 rows: two batches an epoch of 16 in each fold."""
    small.write(project.root)
    return project.root


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch):
    """Say what will be measured; returns the list of measurements taken."""
    taken: list[Speed] = []

    def settle(said: Speed) -> list[Speed]:
        monkeypatch.setattr(pace, "measured", lambda run: taken.append(said) or said)
        return taken

    return settle


def stored(root: Path) -> dict:
    return yaml.safe_load((root / RUN / "config.yaml").read_text())


def trained(root: Path, fold: int) -> dict:
    return read_json(root / RUN / f"fold{fold}/train.json")


@pytest.mark.parametrize(
    ("seconds", "speed", "expected"),
    [
        (100 / SHARE, Speed(100, 0.1, 0.0), {"epochs": 10, "batches": 100}),  # exactly ten epochs
        (105 / SHARE, Speed(100, 0.1, 0.0), {"epochs": 11, "batches": 95}),  # 1,050 batches, dealt to eleven
        (5 / SHARE, Speed(100, 0.1, 0.0), {"epochs": 1, "batches": 50}),  # half an epoch
        (100 / SHARE, Speed(100, 0.08, 2.0), {"epochs": 10, "batches": 100}),  # validation is part of the time
        (1 / SHARE, Speed(100, 5.0, 60.0), {"epochs": 1, "batches": 1}),  # not even one batch
        (3600 / SHARE, Speed(1, 0.1, 0.0), {"epochs": 36000, "batches": 1}),
    ],
)
def test_the_length_that_fits(seconds, speed, expected):
    assert fitting(seconds, speed) == expected


@pytest.mark.parametrize("seconds", [7.0, 33.3, 90.0, 1234.5])
@pytest.mark.parametrize("speed", [Speed(100, 0.05, 1.0), Speed(7, 0.3, 0.5), Speed(999, 0.011, 3.0)])
def test_it_is_never_longer_and_hardly_shorter(seconds, speed):
    length = fitting(seconds, speed)
    planned = length["epochs"] * (length["batches"] * speed.batch + speed.validation)
    assert planned - 0.01 <= SHARE * seconds < planned + length["epochs"] * (speed.batch + speed.validation)


def test_it_is_recorded_and_the_other_fold_follows(root, project, speed):
    taken = speed(Speed(2, 0.25, 0.0))
    assert "recorded in" in project.run(*TRAIN).out
    assert stored(root)["length"] == {"epochs": 4, "batches": 1}
    speed(Speed(2, 0.01, 0.0))  # had it measured again
    assert project.run(*TRAIN, "fold=1").code == 0
    assert len(taken) == 1
    assert [trained(root, fold)["updates"] for fold in (0, 1)] == [4, 4]


def test_a_killed_training_goes_on_with_the_record(root, project, speed, monkeypatch):
    taken = speed(Speed(2, 0.25, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.train_member", _interrupted)
        assert project.run(*TRAIN).code == 130
    assert not list((root / RUN).glob("*/*.ckpt"))
    assert project.run(*TRAIN).code == 0
    assert len(taken) == 1
    assert trained(root, 0)["updates"] == 4


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_equal_records_give_equal_weights(root, project, speed):
    speed(Speed(2, 0.1, 0.0))
    assert project.run(*TRAIN).code == 0
    assert project.run(*TRAIN, "run=again").code == 0
    assert small.same(*(small.weights(root / f"runs/noise/{run}/fold0/best.ckpt") for run in ("timed", "again")))


def test_other_seconds_are_other_settings(root, project, speed):
    speed(Speed(2, 0.25, 0.0))
    assert project.run(*TRAIN).code == 0
    answer = project.run(*TRAIN, "train.seconds=3")
    assert answer.code == 2
    assert "train.seconds: 2.0 → 3.0" in answer.err


def test_more_steps_are_timed_where_there_are_more_seconds(root, project, monkeypatch):
    """The first dozen took 0.5 s each and the rest 0.25 s: two hundredths of 1,000 s are forty steps of 0.5 s."""
    now, taken = [0.0], []
    monkeypatch.setattr(ranges, "clock", lambda: now[0])

    def timed(self, batches):
        taken.append(1)
        now[0] += 0.5 if len(taken) <= ranges.WARM + ranges.TIMED else 0.25
        return torch.zeros(())

    monkeypatch.setattr(ranges.Trial, "step", timed)
    monkeypatch.setattr("pipeline.training.train_member", _interrupted)
    assert project.run(*TRAIN, "train.seconds=1000").code == 130
    assert len(taken) == 2 * ranges.WARM + ranges.TIMED + 40
    assert stored(root)["speed"]["batch"] == 0.25
    taken.clear()
    assert project.run(*TRAIN, "train.seconds=100000", "run=longest").code == 130
    assert len(taken) == 2 * ranges.WARM + ranges.TIMED + 40, "20 seconds at most"


def test_measured_by_real_steps(root, project, monkeypatch):
    now = [0.0]
    step = ranges.Trial.step
    monkeypatch.setattr(ranges, "clock", lambda: now[0])

    def timed(self, batches):
        now[0] += 0.125
        return step(self, batches)

    monkeypatch.setattr(ranges.Trial, "step", timed)
    assert project.run(*TRAIN, "train.accumulate=2").code == 0
    assert stored(root)["speed"] == {"batches": 2, "batch": 0.125, "validation": 0.0}
    assert stored(root)["length"] == {"epochs": 8, "batches": 1}
