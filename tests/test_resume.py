"""Law 3: a training that is killed, at any moment, goes on and ends with the very same weights."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import small_training as small
import torch

from pipeline import engine
from pipeline.checkpoint import State

# all that draws at random or remembers, at once; 3 epochs of 5 batches: groups of 2, 2 and 1
EVERYTHING = (
    "stage=train", "fold=0", "average=ema()", "mix=mixup(alpha=0.4)", "head=linear(dropout=0.3)", "train.accumulate=2",
    "augment=light()", "train.clip_norm=1", "optim=adamw()", "batch_size=4", "select=best",
)  # fmt: skip
ROWS = 41


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture
def root(project) -> Path:
    """The drawn competition, with 20 training rows and 21 for validation in fold 0."""
    small.write(project.root, rows=ROWS)
    return project.root


def kill_after(monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    """Let the process die in the forward pass after this many."""
    forward, left = engine.Learner.forward, [passes]

    def mortal(self, batch, generator):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return forward(self, batch, generator)

    monkeypatch.setattr(engine.Learner, "forward", mortal)


def best(root: Path, run: str, fold: str = "fold0") -> dict[str, torch.Tensor]:
    return small.weights(root / "runs/noise" / run / fold / "best.ckpt")


def epochs(root: Path, run: str) -> list[str]:
    lines = (root / f"runs/noise/{run}/fold0/log.csv").read_text().splitlines()
    return [line.split(",")[0] for line in lines]


def test_killed_again_and_again_ends_with_the_same_weights(root, project):
    assert project.run(*EVERYTHING, "run=whole").code == 0
    assert project.run(*EVERYTHING, "run=again").code == 0
    assert small.same(best(root, "whole"), best(root, "again"))
    for passes in (1, 5, 2, 4):  # the first leaves nothing; then at the end of an epoch, twice within a group
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, passes)
            project.run(*EVERYTHING, "run=killed", "train.checkpoint_seconds=0")
    assert project.run(*EVERYTHING, "run=killed", "train.checkpoint_seconds=0").code == 0
    assert small.same(best(root, "whole"), best(root, "killed"))
    assert epochs(root, "killed") == ["epoch", "1.0", "2.0", "3.0"] or epochs(root, "killed") == ["epoch", "1", "2", "3"]
