"""Law 3 under real faults: whatever breaks, a recipe ends in the uninterrupted run's bytes, or in one message with all
finished work kept. Run with ``./run.sh test -m faults``; it takes minutes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import processes
import pytest
import small_training as small
from faults import (
    Whole,
    check_same,
    cut_short,
    differing,
    fill_at_each_step,
    kill_at_random,
    message,
    mounted,
    outcome,
    undisturbed,
    wipe,
)  # fmt: skip
from processes import Command

from pipeline import learner

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("FAULTS_KILLS", "50"))
RECIPE = (
    "stage=all", "average=ema()", "augment=light()", "train.checkpoint_seconds=0", "pseudo.threshold=0.34",
    "stack.methods=single(),mean(),ridge(),lightgbm(features=true)",
)  # fmt: skip


def draw(root: Path) -> Path:
    """A project with a drawn competition of 41 rows, whose solution lies beside it."""
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    folder = small.write(root, rows=41)
    sample = (folder / "sample_submission.csv").read_text()
    (folder / "solution.csv").write_text(sample)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    found = undisturbed(draw(tmp_path_factory.mktemp("whole") / "project"), RECIPE)
    assert len(found.found) > 25
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


# --- processes ----------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(whole, fresh):
    kill_at_random(whole, fresh, KILLS)


def test_two_at_once_both_end_right(whole, fresh):
    one, other = Command(fresh, *RECIPE), Command(fresh, *RECIPE)
    both = one.ended(300), other.ended(300)
    assert [ended.code for ended in both] == [0, 0], "".join(ended.err for ended in both)
    assert any("is being worked on by another process" in ended.out for ended in both)
    assert differing(outcome(fresh), whole.found) == []


def test_one_of_two_at_once_is_killed(whole, fresh):
    one, other = Command(fresh, *RECIPE), Command(fresh, *RECIPE)
    if one.ended(whole.seconds / 2) is None:
        one.kill()
    ended = other.ended(300)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole.found) == []


def test_the_process_of_a_member_is_killed(whole, fresh):
    command = Command(fresh, "stage=train", *RECIPE[1:], "parallel=folds", "jobs=2")
    while (ended := command.ended(0.05)) is None and not list(fresh.glob("runs/noise/tiny/fold*/last.ckpt")):
        pass
    killed = members_of(command)
    for member in killed[:1]:
        os.kill(member, signal.SIGKILL)
    ended = command.ended(300)
    assert killed, ended
    assert "was killed (signal 9)" in message(ended)
    check_same(fresh, whole)


def members_of(command: Command) -> list[int]:
    """The processes that train members for a command."""
    own = command.process.pid
    found = [int(pid) for path in Path(f"/proc/{own}/task").glob("*/children") for pid in path.read_text().split()]
    return [pid for pid in found if b"pipeline.member" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 4096, 20480])
def test_full_disk(whole, finished, tmp_path, left):
    stages = ("split", "train", "predict", "pseudo", "distill", "stack", "submit")
    stopped = fill_at_each_step(whole, finished, tmp_path / "disk", left, stages)
    assert set(stopped) >= {"train", "pseudo", "distill"} | ({"predict", "stack"} if not left else set())


def test_read_only_data(whole, fresh):
    data = fresh / "data"
    with mounted("--bind", data, data):
        subprocess.run(["mount", "-o", "remount,ro,bind", data], check=True)
        with pytest.raises(OSError):
            (data / "new").touch()
        check_same(fresh, whole)


@pytest.mark.parametrize("name", ["folds", "cache", "runs", "submissions"])
def test_a_folder_that_cannot_be_written(whole, fresh, name):
    place = fresh / name
    place.mkdir()
    with mounted("--bind", place, place):
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        assert f"{name}/" in message(processes.run(fresh, *RECIPE))
    check_same(fresh, whole)


# --- files that are cut short -------------------------------------------------------------------------------------

RUN = "runs/noise/tiny"
CUT = [  # each kind of file that the recipe writes
    "folds/noise.csv", f"{RUN}/config.yaml", f"{RUN}/sanity.json", f"{RUN}/fold0/last.ckpt", f"{RUN}/fold0/best.ckpt",
    f"{RUN}/fold0/log.csv", f"{RUN}/fold0/train.json", f"{RUN}/fold0/oof.npz", f"{RUN}/fold1/test.npz",
    f"{RUN}/fold0/predict.json", f"{RUN}-r1/config.yaml", f"{RUN}-r1/labels-r1.csv", f"{RUN}-r1/fold1/best.ckpt",
    f"{RUN}-distilled/soft/fold0.npz", f"{RUN}-distilled/soft.json", "runs/noise/features.npz",
    "runs/noise/level2/stack/level2.json", "runs/noise/level2/stack/stack.json", "runs/noise/level2/stack/test.npz",
    "runs/noise/level2/stack/nested.npz", "runs/noise/recipe-default.json", "submissions/noise/stack.csv",
    "submissions/noise/stack.json", "submissions/noise/looks.csv", "cache/*/pixels.bin", "cache/*/pixels.json",
]  # fmt: skip
UNFINISHED = {  # what makes a step run again that read the file, so that somebody meets it
    f"{RUN}/fold0/last.ckpt": [f"{RUN}/fold0/train.json", f"{RUN}/fold0/best.ckpt"],
    f"{RUN}/fold0/best.ckpt": [f"{RUN}/fold0/predict.json"],
    f"{RUN}-r1/fold1/best.ckpt": [f"{RUN}-r1/fold1/predict.json"],
    f"{RUN}/fold0/oof.npz": ["runs/noise/level2/stack/stack.json"],
    f"{RUN}-r1/labels-r1.csv": [f"{RUN}-r1/fold0/train.json"],
    f"{RUN}-distilled/soft/fold0.npz": [f"{RUN}-distilled/fold0/train.json", f"{RUN}-distilled/fold0/last.ckpt"],
    "cache/*/pixels.bin": [f"{RUN}/fold0/train.json", f"{RUN}/fold0/last.ckpt"],
    "cache/*/pixels.json": [f"{RUN}/fold0/train.json", f"{RUN}/fold0/last.ckpt"],
}  # fmt: skip


SHARES = [(name, share) for name in CUT for share in (0, 0.5, 0.9) if share < 0.9 or name.endswith(("csv", "yaml"))]


@pytest.mark.parametrize(("name", "share"), SHARES)
def test_a_file_cut_short(whole, finished, name, share):
    cut_short(whole, finished, name, share, UNFINISHED.get(name, []))


# --- clocks and numbers -------------------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards(whole, fresh, project, monkeypatch):
    monkeypatch.setenv("PIPELINE_ROOT", str(fresh))
    for path in fresh.rglob("*"):
        os.utime(path, (4e9, 4e9))  # files of the year 2096
    hours = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    ended = project.run(*RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole.found) == []


def test_a_learning_rate_without_sense(whole, fresh):
    """What was finished before stays, and the recipe ends right once the rate is mended."""
    words = [word for word in RECIPE if not word.startswith("lr=")]
    assert processes.run(fresh, "stage=train", "fold=0", *words[1:]).code == 0
    before = outcome(fresh)
    text = message(processes.run(fresh, "stage=train", "fold=0", "run=wild", "lr=1e30", *words[1:]))
    assert "runs/noise/wild/fold0" in text
    assert "Try lr=" in text
    assert set(differing(outcome(fresh), before)) <= {"runs/noise/wild/config.yaml"}
    shutil.rmtree(fresh / "runs/noise/wild")
    ended = processes.run(fresh, *words)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole.found) == []


@pytest.mark.parametrize("step", [0, 3, 5])  # of six in the fold
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_poisoned_batch(whole, fresh, project, monkeypatch, where, step):
    """The loss, or a gradient alone, is no number: at the last step of all, too, after which no loss would show it."""
    monkeypatch.setenv("PIPELINE_ROOT", str(fresh))
    forward, passes = learner.Learner.forward, []

    def poisoned(self, batch, generator):
        loss = forward(self, batch, generator)
        passes.append(loss)
        if len(passes) != step + 1:
            return loss
        if where == "gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss
        return loss * float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "forward", poisoned)
        stopped = project.run("stage=train", *RECIPE[1:])
    assert (stopped.code, stopped.err.count("\n")) == (2, 1), stopped.err
    assert f"{RUN}/fold0" in stopped.err
    assert not (fresh / RUN / "fold0/train.json").exists()
    check_same(fresh, whole)
