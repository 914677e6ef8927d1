"""budget=: trainings stop in time, what is there is submitted, and the same command ends as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_training as small

from pipeline import budget, learner, limited
from pipeline.budget import seconds_of, spell
from pipeline.limited import Speed

QUICK = ("stage=all", "recipe=quick", "stack.methods=single(),mean()")
PASS = 10  # seconds of the invented clock for each batch; a member learns six
KEPT = 49  # of them, for predict, stack and submit, as the fixture has them


@pytest.fixture
def root(project, monkeypatch) -> Path:
    """The drawn competition, with a clock that only batches move, and epochs of known length."""
    small.write(project.root, rows=41)
    now = [0.0]
    forward = learner.Learner.forward

    def timed(self, batch, generator):
        now[0] += PASS
        return forward(self, batch, generator)

    def speed(run):
        return Speed(epoch=20.0, images=10.0, member=60.0) if any(run.folder.rglob("log.csv")) else None

    monkeypatch.setattr(learner.Learner, "forward", timed)
    monkeypatch.setattr(budget, "clock", lambda: now[0])
    monkeypatch.setattr(budget, "age", lambda: 0.0)
    for name, value in {"STARTING": 0.0, "STACKING": (20.0, 0.0), "speed": speed}.items():
        monkeypatch.setattr(limited, name, value)
    return project.root


def results(root: Path) -> dict[str, bytes]:
    """What must not depend on a budget."""
    kinds = ("submissions/*/stack.*", "runs/**/*.npz", "runs/**/best.ckpt", "runs/**/level2.json")
    return {str(path.relative_to(root)): path.read_bytes() for kind in kinds for path in root.glob(kind)}


def submitted(root: Path, name: str) -> dict:
    return json.loads((root / f"submissions/noise/{name}.json").read_text())


def test_stopped_in_a_fold_then_continued_it_ends_as_without_a_budget(root, project):
    ended = project.run(*QUICK, f"budget={KEPT + 80}s")
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert "training stops at 1m" in ended.out
    assert "stopped for the budget: fold 0 is finished, fold 1 stopped in epoch 2 of 3" in ended.out
    assert "left out for the budget: no run has all its folds" in ended.out
    assert f"Go on with: ./run.sh {QUICK[0]}" in ended.out
    facts = submitted(root, "tiny")
    assert facts["partial"] == "fold 0 of 2 (budget)"
    assert facts["members"] == ["tiny/fold0"]
    assert facts["score"].endswith("OOF, partial: fold 0 of 2 (budget)")
    assert len(facts["cv"]["folds"]) == 1
    for words in ([f"budget={KEPT + 1}s"], []):  # a batch, and then the rest
        ended = project.run(*QUICK, *words)
        assert ended.code == 0, ended.err
    assert "partial" not in submitted(root, "stack")
    stopped = results(root)
    for name in ("runs", "submissions", "cache"):
        (root / name).rename(root / f"{name}.before")
    assert project.run(*QUICK).code == 0
    assert stopped == results(root)


def test_whole_runs_go_on_without_those_that_are_not(root, project):
    steps = [
        "split",
        "{stage: train, model: all}",
        "{stage: predict, model: all}",
        "pseudo",
        "distill",
        "stack",
        "submit",
    ]
    (root / "configs/recipe/two.yaml").write_text("steps:\n" + "".join(f"  - {step}\n" for step in steps))
    words = ("stage=all", "recipe=two", "models=tiny,wide", "stack.methods=single(),mean()")
    text = (root / "configs/model/tiny.yaml").read_text()
    (root / "configs/model/wide.yaml").write_text(text.replace("width=4", "width=5"))
    ended = project.run(*words, f"budget={KEPT + 160}s")
    assert ended.code == 0, ended.err
    rows = {line.split("  ")[0]: line for line in ended.out.partition("OOF ± se")[2].splitlines() if line}
    assert "wide: stopped for the budget: fold 0 stopped in epoch 2 of 3" in ended.out
    assert "left out for the budget" in rows["pseudo"]
    assert "left out for the budget" in rows["distill"]
    facts = submitted(root, "stack")
    assert facts["members"] == ["tiny"]
    assert not (root / "runs/noise/wide/fold0/test.npz").exists()


def test_without_a_member_the_least_budget_is_told(root, project):
    ended = project.run(*QUICK, "budget=30s")
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert "no member is trained to the end; a first submission takes about" in ended.out
    assert not (root / "submissions").exists()
    assert (root / "runs/noise/tiny/fold0/last.ckpt").exists()


def test_training_alone_keeps_only_the_time_to_save(root, project):
    ended = project.run("stage=train", "budget=30s")
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert "training stops at 27s; 3s are kept for its last state" in ended.out
    assert "fold 0 stopped in epoch 2 of 3; all finished work is kept. Go on with: ./run.sh stage=train" in ended.out
    again = project.run("stage=train")
    assert "going on from runs/noise/tiny/fold0/last.ckpt: epoch 2, step 1" in again.out


TIMES = {"8h30m": 30600, "90m": 5400, "30s": 30, "1h": 3600, "1h5m": 3900}


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_times(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(spell(seconds)) == seconds


@pytest.mark.parametrize("text", ["8x", "0s", "h", "30", "-1h", "30m8h", "1 h"])
def test_what_is_no_time_is_refused(root, project, text):
    ended = project.run("stage=train", f"budget={text}")
    assert ended.code == 2
    assert "a time such as 8h30m, 90m, 1h or 30s" in ended.err


def test_a_budget_is_of_what_trains(root, project):
    ended = project.run("stage=predict", "budget=1h")
    assert (ended.code, "stage=all, stage=auto, stage=train" in ended.err) == (2, True)
