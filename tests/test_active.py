"""The arithmetic of benchmarks/active.py: equal budgets, and the labels that an accuracy takes."""

from __future__ import annotations

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
from conftest import SOURCE


@pytest.fixture(scope="module")
def active():
    spec = importlib.util.spec_from_file_location("active_benchmark", SOURCE / "benchmarks/active.py")
    module = sys.modules["active_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["active_benchmark"]


def test_every_round_has_about_as_many_steps(active):
    plan = active.Plan(start=20, more=100, rounds=10, steps=400)
    assert [plan.labels(number) for number in (0, 1, 10)] == [200, 300, 1200]
    for number in range(11):
        steps = plan.epochs(number) * math.ceil(plan.labels(number) * 2 // 3 / active.BATCH)
        assert steps == pytest.approx(400, rel=0.05)


def test_where_a_curve_comes_to_an_accuracy(active):
    labels, scores = np.array([200, 300, 400]), np.array([0.5, 0.7, 0.6])
    assert active.reached(labels, scores, 0.4) == 200
    assert active.reached(labels, scores, 0.6) == pytest.approx(250)
    assert math.isnan(active.reached(labels, scores, 0.71))


def test_the_page_says_what_was_measured_and_nothing_else(active, tmp_path):
    (tmp_path / "fashion_mnist").mkdir()
    (tmp_path / "fashion_mnist/train.csv").write_text("id,label\na,0\nb,1\n")
    bench = active.Bench(tmp_path, tmp_path, active.Plan(20, 100, 2, 400), ["lr=0.01"])
    for arm, scores in (("random", (0.5, 0.6, 0.7)), ("mixed", (0.5, 0.7, 0.8)), ("margin", (0.5, 0.55))):
        for seed in range(2):
            for number, score in enumerate(scores):
                path = bench.path(arm, seed, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"accuracy": score + 0.02 * seed}))
    text = active.page(bench, 2, "active.svg")
    assert "| 300 | 0.6100 ± 0.0100 | 0.7100, +0.1000 ± 0.0000 |" in text
    assert "| 400 | 0.7100 | 300 (75%) |" in text
    assert "mixed needs 75% of the labels for what random choice has with 400 labels (0.7100): more than" in text
    assert "margin" not in text.split("mixed: margin, disagreement, diversity")[1], "it is not finished"
    assert text.count("lr=") == 1
    active.draw(bench, 2, tmp_path / "active.svg")
    first = (tmp_path / "active.svg").read_bytes()
    active.draw(bench, 2, tmp_path / "active.svg")
    assert (tmp_path / "active.svg").read_bytes() == first
