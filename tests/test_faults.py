"""Law 3 under real faults: whatever breaks, a recipe ends in the uninterrupted run's bytes, or in one message with all
finished work kept. Run with ``./run.sh test -m faults``; it takes minutes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import processes
import pytest
import small_training as small
from processes import Command, Ended

from pipeline import learner

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("FAULTS_KILLS", "50"))
RECIPE = (
    "stage=all", "average=ema()", "augment=light()", "train.checkpoint_seconds=0", "pseudo.threshold=0.34",
    "stack.methods=single(),mean(),ridge(),lightgbm()",
)  # fmt: skip
EXACT = (  # files without seconds in them; all are written by the recipe
    "folds/*.csv", "submissions/*/stack.*", "runs/**/labels-*.csv", "runs/**/*.npz", "runs/**/config.yaml",
    "runs/**/best.ckpt", "runs/**/level2.json", "runs/**/status.json",
)  # fmt: skip


def draw(root: Path) -> Path:
    """A project with a drawn competition of 41 rows, whose solution lies beside it."""
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    folder = small.write(root, rows=41)
    sample = (folder / "sample_submission.csv").read_text()
    (folder / "solution.csv").write_text(sample)
    return root


def outcome(root: Path) -> dict[str, bytes]:
    """The bytes of all that a recipe leaves and that must not depend on what happened on the way."""
    return {str(path.relative_to(root)): path.read_bytes() for kind in EXACT for path in sorted(root.glob(kind))}


def wipe(root: Path) -> None:
    """Back to before the recipe."""
    for name in ("runs", "submissions", "folds", "cache"):
        shutil.rmtree(root / name, ignore_errors=True)


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The files that differ: readable where a comparison of bytes is not."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def message(ended: Ended) -> str:
    """The one message that a command ended with: exit code 2, one line on stderr, no traceback."""
    assert ended.code == 2, ended.err
    lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, bytes], float]:
    """A project whose recipe ran undisturbed, what came of it, and the seconds that it took."""
    root = draw(tmp_path_factory.mktemp("whole") / "project")
    processes.run(root, "help", "stages")  # starts what the others are forked from
    began = time.perf_counter()
    ended = processes.run(root, *RECIPE)
    assert ended.code == 0, ended.err
    found = outcome(root)
    assert len(found) > 25
    return root, found, time.perf_counter() - began


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of that project, to be spoilt."""
    return Path(shutil.copytree(whole[0], tmp_path / "spoilt"))


@pytest.fixture
def fresh(whole, finished) -> Path:
    """The same before its recipe ran."""
    wipe(finished)
    return finished


# --- processes ----------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(whole, fresh):
    """SIGKILL, again and again, while the recipe gets on; whenever it gets to its end, it begins anew."""
    _, wanted, seconds = whole
    generator, left, hit = np.random.default_rng(7), KILLS, set()
    while left:
        command = Command(fresh, *RECIPE)
        ended = command.ended(generator.uniform(0, seconds / 3))
        if ended is None:
            left -= 1
            hit.add(command.kill().out.rpartition("\n[")[2].partition("]")[0])
            continue
        assert ended.code == 0, ended.err
        assert differing(outcome(fresh), wanted) == []
        wipe(fresh)
    ended = processes.run(fresh, *RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), wanted) == []
    assert len(hit) >= min(5, KILLS // 4), f"the kills must hit many steps, not only {hit}"


def test_two_at_once_both_end_right(whole, fresh):
    one, other = Command(fresh, *RECIPE), Command(fresh, *RECIPE)
    both = one.ended(300), other.ended(300)
    assert [ended.code for ended in both] == [0, 0], "".join(ended.err for ended in both)
    assert any("is being worked on by another process" in ended.out for ended in both)
    assert differing(outcome(fresh), whole[1]) == []


def test_one_of_two_at_once_is_killed(whole, fresh):
    one, other = Command(fresh, *RECIPE), Command(fresh, *RECIPE)
    if one.ended(whole[2] / 2) is None:
        one.kill()
    ended = other.ended(300)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole[1]) == []


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
    ended = processes.run(fresh, *RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole[1]) == []


def members_of(command: Command) -> list[int]:
    """The processes that train members for a command."""
    own = command.process.pid
    found = [int(pid) for path in Path(f"/proc/{own}/task").glob("*/children") for pid in path.read_text().split()]
    return [pid for pid in found if b"pipeline.member" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# --- disks --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    """Something mounted; the last word is where. Skips the test where that is not allowed."""
    if subprocess.run(["mount", *words], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True)


@contextlib.contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """A disk on which so many bytes are free."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    with ballast.open("wb") as handle:
        handle.write(b"\0" * max(0, free - left))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.parametrize("left", [0, 4096, 20480])
def test_full_disk(whole, finished, tmp_path, left):
    """Each step in turn meets a disk with so much room left; the same step then goes on where there is room."""
    disk, stopped = tmp_path / "disk", []
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs", disk):
        root = Path(shutil.copytree(finished, disk / "project"))
        wipe(root)
        for stage in ("split", "train", "predict", "pseudo", "distill", "stack", "submit"):
            words = (f"stage={stage}", *RECIPE[1:])
            with filled(disk, left):
                ended = processes.run(root, *words)
            if ended.code:
                assert "No space left on device" in message(ended)
                stopped.append(stage)
            ended = processes.run(root, *words)
            assert ended.code == 0, ended.err
        assert set(stopped) >= {"train", "pseudo", "distill"} | ({"predict", "stack"} if not left else set())
        ended = processes.run(root, *RECIPE)
        assert ended.code == 0, ended.err
        assert differing(outcome(root), whole[1]) == []


def test_read_only_data(whole, fresh):
    data = fresh / "data"
    with mounted("--bind", data, data):
        subprocess.run(["mount", "-o", "remount,ro,bind", data], check=True)
        with pytest.raises(OSError):
            (data / "new").touch()
        ended = processes.run(fresh, *RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole[1]) == []


@pytest.mark.parametrize("name", ["folds", "cache", "runs", "submissions"])
def test_a_folder_that_cannot_be_written(whole, fresh, name):
    place = fresh / name
    place.mkdir()
    with mounted("--bind", place, place):
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        assert f"{name}/" in message(processes.run(fresh, *RECIPE))
    ended = processes.run(fresh, *RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole[1]) == []


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
    """It is made anew, or one message names it; what the message says then leads to the same end."""
    for other in UNFINISHED.get(name, []):
        (finished / other).unlink()
    for path in finished.glob(name):
        os.truncate(path, int(path.stat().st_size * share))
    ended = processes.run(finished, *RECIPE)
    if ended.code:
        text = message(ended)
        assert name in text
        assert "delete" in text or "overwrite=true" in text
        (finished / name).unlink()
        ended = processes.run(finished, *RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(finished), whole[1]) == []


# --- clocks and numbers -------------------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards(whole, fresh, project, monkeypatch):
    monkeypatch.setenv("PIPELINE_ROOT", str(fresh))
    for path in fresh.rglob("*"):
        os.utime(path, (4e9, 4e9))  # files of the year 2096
    hours = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    ended = project.run(*RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole[1]) == []


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
    assert differing(outcome(fresh), whole[1]) == []


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
    ended = processes.run(fresh, *RECIPE)
    assert ended.code == 0, ended.err
    assert differing(outcome(fresh), whole[1]) == []
