"""Law 3 for masks, whose maps, planes and caches are files of their own: the faults of test_faults.py that meet them.

Run with ``./run.sh test -m faults``; it takes minutes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import small_masks
import small_training as small
from faults import (
    Whole,
    check_same,
    cut_short,
    differing,
    fill_at_each_step,
    kill_at_random,
    outcome,
    undisturbed,
    wipe,
)  # fmt: skip
from processes import Command

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("FAULTS_KILLS", "50")) // 2
RECIPE = (
    "stage=all", "average=ema()", "train.checkpoint_seconds=0", "pseudo.threshold=0.5",
    "stack.methods=mean,greedy",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    root = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    small_masks.write(root, rows=16, tests=4)
    found = undisturbed(root, RECIPE)
    assert len([name for name in found.found if name.endswith(".maps")]) > 10
    return found


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of that project, to be spoilt."""
    return Path(shutil.copytree(whole.root, tmp_path / "spoilt"))


@pytest.fixture
def fresh(whole, finished) -> Path:
    """The same before its recipe ran."""
    wipe(finished)
    return finished


def test_killed_at_random_moments(whole, fresh):
    kill_at_random(whole, fresh, KILLS)


def test_two_at_once_both_end_right(whole, fresh):
    one, other = Command(fresh, *RECIPE), Command(fresh, *RECIPE)
    both = one.ended(600), other.ended(600)
    assert [ended.code for ended in both] == [0, 0], "".join(ended.err for ended in both)
    assert differing(outcome(fresh), whole.found) == []


@pytest.mark.parametrize("left", [0, 4096, 20480])
def test_full_disk(whole, finished, tmp_path, left):
    stages = ("split", "train", "predict", "pseudo", "distill", "stack", "submit")
    stopped = fill_at_each_step(whole, finished, tmp_path / "disk", left, stages)
    assert set(stopped) >= {"train", "pseudo", "distill"}


RUN = "runs/squares/tiny"
CUT = {  # each kind of file that masks alone have → what makes a step run again that reads it
    f"{RUN}/fold0/oof.maps": ["runs/squares/level2/stack/stack.json"],
    f"{RUN}/fold1/test.maps": ["runs/squares/level2/stack/stack.json"],
    f"{RUN}/fold0/test.npz": ["runs/squares/level2/stack/stack.json"],
    f"{RUN}-r1/labels-r1-fold0.maps": [f"{RUN}-r1/fold0/train.json", f"{RUN}-r1/fold0/last.ckpt"],
    f"{RUN}-r1/labels-r1-fold1.npz": [f"{RUN}-r1/fold1/train.json", f"{RUN}-r1/fold1/last.ckpt"],
    f"{RUN}-r1/labels-r1.json": [f"{RUN}-r1/fold0/train.json"],
    f"{RUN}-distilled/soft/fold0.maps": [f"{RUN}-distilled/fold0/train.json", f"{RUN}-distilled/fold0/last.ckpt"],
    "runs/squares/level2/stack/nested.maps": [],
    "runs/squares/level2/stack/test.maps": ["submissions/squares/stack.csv"],
    "cache/planes-*/pixels.bin": [f"{RUN}/fold0/train.json", f"{RUN}/fold0/last.ckpt"],
    "cache/planes-*/shapes.npy": [f"{RUN}/fold0/train.json", f"{RUN}/fold0/last.ckpt"],
    "cache/coverage-masks-*.npy": ["folds/squares.csv"],
}


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short(whole, finished, name, share):
    cut_short(whole, finished, name, share, CUT[name])


def test_planes_that_are_gone_are_made_again(whole, finished):
    """The cache may go at any time, and with it what a member was learning from."""
    shutil.rmtree(finished / "cache")
    for name in ("train.json", "last.ckpt"):
        (finished / f"{RUN}-distilled/fold1" / name).unlink()
    check_same(finished, whole)
