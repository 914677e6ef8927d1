"""stage=find_lr: the curve is training's own, the suggestion what the curve shows, and nothing else changes."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import test_house
from PIL import Image

from pipeline import advice, ranges, training
from pipeline.ranges import Curve
from pipeline.runs import Run
from pipeline.stages import find_lr


@pytest.fixture
def root(project) -> Path:
    small.write(project.root, rows=64)
    return project.root


def facts(root: Path, run: str = "tiny") -> dict:
    return json.loads((root / f"runs/noise/{run}/find_lr.json").read_text())


# --- reading a curve ------------------------------------------------------------------------------------------------


def drawn(noise: float = 0.0, seed: int = 0) -> Curve:
    """A curve like those of real nets: flat, steepest at 1e-3, lowest near 5e-2, then it runs away."""
    rates = np.geomspace(1e-6, 1, 100)
    place = np.log10(rates)
    losses = 2.3 - 1.6 / (1 + np.exp(-4 * (place + 3))) + np.exp(np.minimum(8 * (place + 0.6), 3))
    return Curve(rates, losses + np.random.default_rng(seed).normal(0, noise, 100), diverged=True)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_points_are_where_the_curve_has_them(noise, seed):
    found = ranges.suggestion(drawn(noise, seed))
    assert 3e-4 < found["steepest"] < 1e-2
    assert found["steepest"] == pytest.approx(1e-3, rel=0.1) or noise
    assert 5e-3 < found["lowest"] < 0.2
    assert found["safe"] == found["lowest"] / 10


def test_the_run_away_end_does_not_reach_back_into_the_curve():
    curve = drawn()
    wild = Curve(curve.rates, np.append(curve.losses[:-1], 1e9), diverged=True)
    assert ranges.suggestion(wild) == ranges.suggestion(curve)


@pytest.mark.parametrize(
    "losses",
    [
        np.full(60, 2.3),
        2.3 + np.random.default_rng(0).normal(0, 0.1, 60),
        np.linspace(2.3, 4, 60),
        np.linspace(2.3, 2.25, 60),
        np.array([2.3]),
        np.array([2.3, 1.0]),
    ],
    ids=["flat", "noise", "rises", "falls little", "one step", "two steps"],
)
def test_a_curve_that_falls_nowhere_suggests_nothing(losses):
    found = ranges.suggestion(Curve(np.geomspace(1e-6, 1, len(losses)), losses, diverged=False))
    assert found == {}
    assert find_lr.choice(found) == ""


def test_smoothing_is_the_slow_one():
    losses = np.random.default_rng(0).normal(0, 1, 23)
    for place, mean in enumerate(ranges.smoothed(losses, 1.7)):
        weights = [math.exp(-((place - other) ** 2) / (2 * 1.7**2)) for other in range(23)]
        slow = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        assert mean == pytest.approx(slow)


@pytest.mark.parametrize(
    ("smooth", "expected"),
    [([2.0, 1.0], 4.0), ([1.0, 0.0], 0.3), ([1.0, 0.01], 0.31), ([-0.1, -1.0], 2.0), ([2.0, 1.0, 3.0], 4.0)],
)
def test_the_limit_is_four_times_the_minimum_and_sane_near_zero(smooth, expected):
    assert ranges.limit(np.array(smooth)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("suggested", "text"),
    [
        ({"steepest": 2.5e-3, "safe": 1.7e-3}, "2e-3"),
        ({"steepest": 1.2e-2, "safe": 0.3}, "1e-2"),
        ({"steepest": 0.96, "safe": 1.4}, "1e+00"),
        ({"steepest": 3e-5, "safe": 9.7e-6}, "1e-5"),
    ],
)
def test_the_lower_suggestion_is_taken_with_one_digit(suggested, text):
    assert find_lr.choice(suggested) == text


# --- the steps are training's ---------------------------------------------------------------------------------------

ALIKE = {
    "plain": {},
    "augmented": {"augment": "light()"},
    "mixed": {"mix": "mixup()"},
    "clipped": {"train__clip_norm": 0.1},
    "accumulated": {"train__accumulate": 2},
    "dropout": {"head": "linear(dropout=0.5)"},
    "sampled": {"sampler": "balanced()"},
    "head faster": {"finetune": "head_faster()"},
}


@pytest.mark.parametrize("case", ALIKE)
def test_at_a_constant_rate_the_losses_are_those_of_training(root, project, monkeypatch, case):
    """A range from lr to lr is an ordinary training; its log holds the mean of the same losses."""
    config = small.config(schedule="constant()", epochs=1, **ALIKE[case])
    words = [f"{key.replace('__', '.')}={value}" for key, value in ALIKE[case].items()]
    assert project.run("stage=train", "fold=0", "schedule=constant()", "epochs=1", *words).code == 0
    logged = advice.log(root / "runs/noise/tiny/fold0/log.csv")[0]["loss"]
    updates = 4 // config.train.accumulate  # 32 rows in batches of 8
    monkeypatch.setattr(ranges, "STEPS", updates)
    losses = ranges.lr_range(Run(config, "tiny"), config.lr, config.lr).losses
    assert len(losses) == updates
    assert losses.mean() == pytest.approx(logged, rel=1e-6)


def test_the_rate_grows_geometrically_and_moves_the_weights(root, project, monkeypatch):
    seen = []
    step = ranges.Trial.step

    def watched(self, batches):
        seen.append([options["lr"] for options in self.bench.optimizer.param_groups])
        return step(self, batches)

    project.run("stage=split")
    monkeypatch.setattr(ranges.Trial, "step", watched)
    curve = ranges.lr_range(Run(small.config(), "tiny"))
    assert np.allclose([rates[0] for rates in seen[: len(curve.rates)]], curve.rates)
    ratios = curve.rates[1:] / curve.rates[:-1]
    assert np.allclose(ratios, ratios[0])
    assert curve.rates[0] == pytest.approx(ranges.LOW)
    assert np.ptp(curve.losses[:5]) > 0


@pytest.mark.parametrize(("rows", "batch", "steps"), [(24, 8, 30), (400, 8, 50), (1000, 8, 100)])
def test_two_epochs_but_enough_steps(project, monkeypatch, rows, batch, steps):
    """Half of the rows are in the table: 12, 200 and 500 rows."""
    small.write(project.root, rows=rows)
    project.run("stage=split")
    monkeypatch.setattr(ranges, "DIVERGED", math.inf)
    monkeypatch.setattr(ranges, "HIGH", 1e-4)
    monkeypatch.setattr(ranges.Trial, "step", lambda self, batches: training.torch.ones(()))
    curve = ranges.lr_range(Run(small.config(batch_size=batch), "tiny"), high=1e-4)
    assert len(curve.rates) == steps
    assert not curve.diverged


def test_it_ends_where_the_loss_runs_away(root, project):
    project.run("stage=split")
    curve = ranges.lr_range(Run(small.config(optim="sgd()"), "tiny"), 1e-3, 1e6)
    assert curve.diverged
    assert len(curve.rates) < 30
    assert curve.rates[-1] < 1e6
    assert np.isfinite(curve.losses).all()


# --- the stage ------------------------------------------------------------------------------------------------------


def test_it_draws_prints_and_changes_nothing_else(root, project):
    before = {path: path.read_bytes() for path in (root / "configs").rglob("*.yaml")}
    ended = project.run("stage=find_lr", "batch_size=4")
    assert ended.code == 0, ended.err
    assert {path: path.read_bytes() for path in (root / "configs").rglob("*.yaml")} == before
    assert {path.name for path in (root / "runs/noise/tiny").iterdir()} == {"find_lr.json", "find_lr.png"}
    assert Image.open(root / "runs/noise/tiny/find_lr.png").size == (800, 400)
    chosen = find_lr.choice(facts(root)["suggested"])
    command = next(line for line in ended.out.splitlines() if "to use it: " in line).partition("to use it: ")[2]
    assert command == f"./run.sh stage=train batch_size=4 lr={chosen}"
    for key in ("steepest", "safe", "lowest"):
        assert f"{facts(root)['suggested'][key]:.1e}" in ended.out
    trained = project.run(*shlex.split(command)[1:], "fold=0", "epochs=1")
    assert trained.code == 0, trained.err


def test_it_learns_where_it_says(root, project):
    """The suggested rate teaches what a rate far below it does not."""
    assert project.run("stage=find_lr").code == 0
    chosen = float(find_lr.choice(facts(root)["suggested"]))
    losses = {}
    for name, lr in (("low", chosen / 100), ("chosen", chosen)):
        assert project.run("stage=train", "fold=0", "epochs=8", f"lr={lr}", f"run={name}").code == 0
        losses[name] = advice.log(root / f"runs/noise/{name}/fold0/log.csv")[-1]["loss"]
    assert losses["chosen"] < 0.5 * losses["low"]


def test_a_second_run_repeats_the_words_without_the_work(root, project, monkeypatch):
    first = project.run("stage=find_lr")
    monkeypatch.setattr(ranges, "lr_range", lambda run: pytest.fail("it was done before"))
    again = project.run("stage=find_lr", "lr=0.5", "epochs=7", "schedule=constant()")
    assert again.code == 0, again.err
    for line in first.out.splitlines()[-5:-1]:
        assert line in again.out


def test_the_same_settings_give_the_same_curve_and_a_set_lr_plays_no_part(root, project):
    curves = []
    for name, words in (("a", []), ("b", ["lr=0.7"]), ("c", ["seed=1"])):
        assert project.run("stage=find_lr", f"run={name}", *words).code == 0
        curves.append({key: facts(root, name)[key] for key in ("rates", "losses", "suggested")})
    assert curves[0] == curves[1] != curves[2]
    pictures = [(root / f"runs/noise/{name}/find_lr.png").read_bytes() for name in "ab"]
    assert pictures[0] == pictures[1]


def test_other_settings_are_tested_anew(root, project):
    assert project.run("stage=find_lr").code == 0
    before = facts(root)
    assert project.run("stage=find_lr", "optim=sgd()").code == 0
    assert facts(root)["losses"] != before["losses"]


def test_where_nothing_falls_nothing_is_suggested(root, project, monkeypatch):
    flat = Curve(np.geomspace(1e-6, 10, 30), np.full(30, 1.1), diverged=False)
    monkeypatch.setattr(ranges, "lr_range", lambda run: flat)
    ended = project.run("stage=find_lr")
    assert ended.code == 0
    assert "to use it" not in ended.out
    assert "stage=sanity" in ended.err


def test_a_first_loss_that_is_not_finite_is_a_message(root, project, monkeypatch):
    monkeypatch.setattr(ranges.Trial, "step", lambda self, batches: training.torch.tensor(math.nan))
    ended = project.run("stage=find_lr")
    assert ended.code == 2
    assert "not finite before the first step" in ended.err


def test_groups_of_rates_keep_their_ratio(root, project):
    project.run("stage=split")
    trial = ranges.Trial(Run(small.config(finetune="head_faster(factor=4.0)", lr=0.8), "tiny"))
    trial.scale(0.5)
    assert [options["lr"] for options in trial.bench.optimizer.param_groups] == pytest.approx([0.1, 0.4])


def test_finished_work_loads_no_torch(root, project):
    assert project.run("stage=find_lr").code == 0
    assert test_house.loaded_after(test_house.RUN.format(["stage=find_lr"], [0]), root) == "[]"
