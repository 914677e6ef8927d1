"""stage=compare: its tests against enumerations and slow loops, and the stage on whales, masks and lists."""

from __future__ import annotations

import itertools
import math
import shutil
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import small_competition as drawn
import small_tasks

from pipeline import config as configs
from pipeline import contrast
from pipeline.artefacts import Predictions
from pipeline.contrast import Both
from pipeline.evaluate import Metric
from pipeline.runs import Run

ANY: Any = SimpleNamespace()
ACCURACY = Metric("right()", lambda truth, answer: 1.0 * (truth == answer), True, "decision", ANY, rowwise=True)
WHOLE = Metric("whole()", lambda truth, answer: np.mean(truth == answer), True, "decision", ANY)


def both(metric, rows=9, seed=0, each=1) -> Both:
    """Answers to rows of three classes, of which the second is right more often; each row several times."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(3, size=rows)
    first, second = (np.where(generator.random(rows) < share, truth, 2 - truth) for share in (0.3, 0.8))
    one, other, third = (np.repeat(values, each) for values in (truth, first, second))
    return Both(metric, one, other, third, np.repeat(np.arange(rows), each))


def slow_permutation(pair: Both) -> float:
    """Every way to exchange the answers of the units."""
    seen, count = abs(pair.gain()), 0
    for signs in itertools.product((False, True), repeat=pair.count):
        count += abs(pair.gain(swap=np.array(signs)[pair.units])) >= seen - 1e-12
    return count / 2**pair.count


@pytest.mark.parametrize("seed", range(3))
def test_the_permutation_test_is_the_enumeration(seed):
    exact = slow_permutation(both(WHOLE, seed=seed))
    assert contrast.permutation(both(ACCURACY, seed=seed), 40_000) == pytest.approx(exact, abs=0.01)
    assert contrast.permutation(both(WHOLE, seed=seed), 4000) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("metric", [ACCURACY, WHOLE])
def test_rows_of_a_group_are_one_witness(metric):
    """Each row five times over is no more evidence, where the units say so, and is where they do not."""
    once, often = both(metric, 20, 1), both(metric, 20, 1, each=5)
    assert contrast.permutation(often, 3000) == pytest.approx(contrast.permutation(once, 3000), abs=0.02)
    low, high = contrast.interval(often, 2000)
    assert (low, high) == pytest.approx(contrast.interval(once, 2000), abs=1e-9)
    alone = Both(metric, often.seen, often.first, often.second, np.arange(100))
    assert contrast.permutation(alone, 3000) < contrast.permutation(often, 3000) / 5
    assert np.diff(contrast.interval(alone, 2000))[0] < 0.7 * (high - low)


def test_the_interval_holds_the_middle_of_slow_draws():
    pair = both(ACCURACY, 60, 2)
    generator, gains = np.random.default_rng(9), []
    for _ in range(4000):
        rows = generator.integers(60, size=60).tolist()
        gains.append(sum(int(pair.second[n] == pair.seen[n]) - int(pair.first[n] == pair.seen[n]) for n in rows) / 60)
    assert contrast.interval(pair, 4000) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (3, 9), (1, 0), (12, 12), (0, 8)])
def test_mcnemar_is_the_binomial_by_hand(one, other):
    first = np.array([True] * one + [False] * other + [True] * 5 + [False] * 5)
    second = np.array([False] * one + [True] * other + [True] * 5 + [False] * 5)
    count = one + other
    chance = [math.comb(count, n) / 2**count for n in range(count + 1)]
    expected = sum(p for p in chance if p <= chance[one] * (1 + 1e-9))
    assert contrast.mcnemar(first, second) == pytest.approx(expected)


def test_equal_answers_are_no_difference():
    pair = both(ACCURACY)
    same = Both(ACCURACY, pair.seen, pair.first, pair.first, pair.units)
    assert contrast.permutation(same, 500) == 1
    assert contrast.interval(same, 200) == (0, 0)
    assert contrast.verdict(1.0, 0.0, 0.0).startswith("no more than noise")
    assert contrast.verdict(0.01, 0.1, 0.2).startswith("better by more than noise")
    assert contrast.verdict(0.01, -0.2, -0.1).startswith("worse by more than noise")
    assert contrast.verdict(0.01, -0.1, 0.2).startswith("no more than noise")


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def whales(project):
    drawn.write(project.root)
    assert project.run("stage=split").code == 0
    for name, right in (("mate", 0.34), ("other", 0.84)):
        drawn.predict(drawn.config(), name, np.full((4, 3), 1 / 3, dtype=np.float32), right)
    return project


def test_two_runs_row_by_row(whales):
    ended = whales.run("stage=compare", "runs=mate,other", "compare.draws=2000")
    assert ended.code == 0, ended.err
    assert "other over mate: +0.5000 ± 0.1508 (paired, rows)" in ended.out
    assert "right: both 4, mate alone 0, other alone 6, neither 2; McNemar's exact p = 0.031" in ended.out
    assert "  better by more than noise: p = 0.0" in ended.out
    assert "fold by fold  0: +0.5000  1: +0.5000  (other is better in 2 of 2)" in ended.out
    folder = whales.root / "runs/whales"
    table = pd.read_csv(folder / "compare-mate-other.csv", dtype={"id": str})
    assert table.columns.tolist() == ["id", "fold", "label", "a_says", "b_says", "a_loss", "b_loss", "gain"]
    assert (table["gain"].iloc[:6] > 30).all(), "certain of another class against certain of its own"
    assert (table["b_says"].iloc[:6] == table["label"].iloc[:6]).all()
    assert (table["gain"].iloc[6:] == 0).all()
    assert cv2.imread(str(folder / "compare-mate-other.png")).std() > 10
    before = (folder / "compare-mate-other.json").read_bytes()
    again = whales.run("stage=compare", "runs=mate,other", "compare.draws=2000")
    assert "done before" in again.out or again.out == ended.out
    assert (folder / "compare-mate-other.json").read_bytes() == before
    turned = whales.run("stage=compare", "runs=other,mate", "compare.draws=2000")
    assert "mate over other: -0.5000 ± 0.1508" in turned.out
    assert "  worse by more than noise" in turned.out


def test_level2_and_the_rows_that_both_have(whales):
    assert whales.run("stage=stack", "stack.methods=mean", "stack.decisions=none").code == 0
    shutil.rmtree(whales.root / "runs/whales/mate/fold1")
    ended = whales.run("stage=compare", "runs=mate,stack")
    assert ended.code == 0, ended.err
    assert "on 6 rows that both have" in ended.out
    assert "a second-order leak beside a run's OOF" in ended.out
    assert len(pd.read_csv(whales.root / "runs/whales/compare-mate-stack.csv")) == 6
    shutil.rmtree(whales.root / "runs/whales/other/fold0")
    assert "have no fold in common" in whales.run("stage=compare", "runs=mate,other").err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("runs=mate", "runs=mate, but two are compared: runs=a,b"),
        ("runs=mate,mate", "two are compared"),
        (
            "runs=mate,othr",
            "runs=othr, but no run or level 2 has that name; there are: mate, other; did you mean other?",
        ),
        ("runs=mate,../x", "must be a plain name"),
        ("runs=mate,other compare.draws=1", "compare.draws must be ≥ 200"),
    ],
)
def test_what_cannot_be_compared(whales, words, says):
    ended = whales.run("stage=compare", *words.split())
    assert ended.code == 2
    assert says in ended.err


def test_groups_of_the_folds_are_the_units(whales):
    path = whales.root / "folds/whales.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["group"] = table["fold"]
    table.to_csv(path, index=False)
    ended = whales.run("stage=compare", "runs=mate,other")
    assert "(bootstrap of 2 groups)" in ended.out
    assert "no more than noise: p = 0.5" in ended.out, "two witnesses prove nothing"


@pytest.mark.parametrize("kind", ["masks", "retrieval", "labels", "regression"])
def test_other_forms_are_compared(project, kind):
    from test_report import GIVEN, WRITERS, of_table

    WRITERS.get(kind, lambda root: small_tasks.write(root, kind))(project.root)
    assert project.run("stage=split").code == 0
    asked = configs.compose({"competition": "drawn", "model": "tiny"})
    for name in ("one", "two"):
        run = Run(asked, name)
        from pipeline.tasks import task_for

        task = task_for(run.config, run.competition)
        for fold in range(run.count):
            rows = np.flatnonzero(run.folds == fold)
            values = GIVEN.get(task.form.name, of_table)(task, run.truth_of(task, rows))
            if name == "two" and kind != "masks":
                values = values[::-1].copy()
            Predictions(run.competition.train["id"].to_numpy()[rows], values, task.space).save(
                run.member((fold,)) / "oof.npz"
            )
    ended = project.run("stage=compare", "runs=one,two", "compare.draws=200")
    assert ended.code == 0, ended.err
    told = "no more than noise: p = 1" if kind == "masks" else "two over one: "
    assert told in ended.out
    assert (project.root / "runs/drawn/compare-one-two.png").stat().st_size > 1000
