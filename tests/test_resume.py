"""Law 3: a training that is killed, at any moment, goes on and ends with the very same weights."""

from __future__ import annotations

import csv
import errno
import os
import signal
from pathlib import Path

import pytest
import small_training as small
import torch

from pipeline import engine, learner

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
    forward, left = learner.Learner.forward, [passes]

    def mortal(self, batch, generator):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return forward(self, batch, generator)

    monkeypatch.setattr(learner.Learner, "forward", mortal)


def best(root: Path, run: str, fold: str = "fold0") -> dict[str, torch.Tensor]:
    return small.weights(root / "runs/noise" / run / fold / "best.ckpt")


def log(root: Path, run: str, column: str) -> list[float]:
    with (root / f"runs/noise/{run}/fold0/log.csv").open() as lines:
        return [float(row[column]) for row in csv.DictReader(lines)]


def test_two_fresh_runs_are_equal_and_another_seed_is_not(root, project):
    for run, seed in (("one", 0), ("other", 0), ("third", 1)):
        assert project.run(*EVERYTHING, f"run={run}", f"seed={seed}").code == 0
    assert small.same(best(root, "one"), best(root, "other"))
    assert not small.same(best(root, "one"), best(root, "third"))


def test_killed_again_and_again_ends_with_the_same_weights(root, project):
    assert project.run(*EVERYTHING, "run=whole").code == 0
    for passes in (1, 5, 2, 4):  # the first leaves nothing; then at the end of an epoch, twice within a group
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, passes)
            project.run(*EVERYTHING, "run=killed", "train.checkpoint_seconds=0")
    ended = project.run(*EVERYTHING, "run=killed", "train.checkpoint_seconds=0")
    assert "going on from runs/noise/killed/fold0/last.ckpt" in ended.out
    assert small.same(best(root, "whole"), best(root, "killed"))
    assert log(root, "killed", "epoch") == [1, 2, 3]
    for column in ("loss", "score", "lr"):
        assert log(root, "killed", column) == log(root, "whole", column)


FOLLOWING = {  # what has a course of its own over the epochs
    "scores": ("schedule=reduce_on_plateau(patience=0,factor=0.5)", "finetune=head_until_still(most=2)"),
    "cycles": ("schedule=multicycle_cosine(cycles=3)", "average=snapshots()"),
    "soup": ("average=greedy_soup(candidates=3)",),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLLOWING)
def test_killed_on_its_course_ends_with_the_same_weights(root, project, kind):
    words = ("stage=train", "fold=0", "batch_size=4", "epochs=4", "train.checkpoint_seconds=0", *FOLLOWING[kind])
    assert project.run(*words, "run=whole").code == 0
    for passes in (7, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, passes)
            project.run(*words, "run=killed")
    assert "going on from" in project.run(*words, "run=killed").out
    paths = (root / f"runs/noise/{run}/fold0/best.ckpt" for run in ("whole", "killed"))
    one, other = (torch.load(path, weights_only=True) for path in paths)
    assert small.same(one["network"], other["network"])
    assert len(one.get("others", [])) == len(other.get("others", [])) == (2 if kind == "cycles" else 0)
    assert all(map(small.same, one.get("others", []), other.get("others", [])))
    assert log(root, "killed", "lr") == log(root, "whole", "lr")


def test_killed_while_the_soup_is_made(root, project, monkeypatch):
    words = ("stage=train", "fold=0", "average=greedy_soup()", "train.checkpoint_seconds=0")
    assert project.run(*words, "run=whole").code == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipeline.parts.averages.greedy_soup.conclude", dies)
        project.run(*words, "run=killed")
    assert project.run(*words, "run=killed").code == 0
    assert small.same(best(root, "whole"), best(root, "killed"))


def test_killed_after_the_last_step_only_finishes(root, project, monkeypatch):
    assert project.run(*EVERYTHING, "run=whole").code == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipeline.artefacts.finish", dies)
        project.run(*EVERYTHING, "run=killed")
    kill_after(monkeypatch, 0)  # not one more step
    assert project.run(*EVERYTHING, "run=killed").code == 0
    assert small.same(best(root, "whole"), best(root, "killed"))


def dies(*_: object, **__: object) -> None:
    raise Killed


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(root, project):
    assert project.run(*EVERYTHING, "run=whole").code == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        saved, left = torch.save, [5]

        def cut_short(content, handle):
            left[0] -= 1
            saved(content, handle)
            if not left[0]:
                handle.truncate(handle.tell() // 2)
                raise Killed

        patch.setattr(torch, "save", cut_short)
        project.run(*EVERYTHING, "run=killed", "train.checkpoint_seconds=0")
    assert project.run(*EVERYTHING, "run=killed").code == 0
    assert small.same(best(root, "whole"), best(root, "killed"))


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_one_message(root, project, monkeypatch):
    """torch.save closes its archive then, which fails in its own way and hides what the disk said."""
    saved = torch.save

    class Full:
        def __init__(self, handle):
            self.handle = handle

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", lambda content, handle: saved(content, Full(handle)))
    stopped = project.run(*EVERYTHING, "run=full", "train.checkpoint_seconds=0")
    assert stopped.code == 2
    assert "runs/noise/full/fold0/last.ckpt cannot be written: No space left on device" in stopped.err
    assert not list((root / "runs/noise/full").rglob("*.tmp"))


SLOW = pytest.mark.slow  # Ctrl-C is tested within the process, too


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=SLOW), signal.SIGTERM])
def test_a_signal_to_a_process(root, project, number):
    words = [*EVERYTHING, "run=killed", "epochs=40", "train.checkpoint_seconds=0"]
    with small.process(root, *words) as process:
        for line in process.stdout:
            if "epoch  2" in line:
                process.send_signal(number)
                break
        _, errors = process.communicate()
    left = torch.load(root / "runs/noise/killed/fold0/last.ckpt", weights_only=True)
    assert 1 <= left["progress"]["epoch"] < 40
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert f"Go on with: ./run.sh {EVERYTHING[0]}" in errors
    for run in ("killed", "whole"):
        assert project.run(*EVERYTHING, f"run={run}", "epochs=40").code == 0
    assert small.same(best(root, "whole"), best(root, "killed"))
    assert log(root, "killed", "epoch") == list(range(1, 41))


def test_ctrl_c_in_the_last_validation_stops_before_the_next_fold(root, project, monkeypatch):
    monkeypatch.setattr(engine, "_end_epoch", interrupting(engine._end_epoch, epoch=2))
    stopped = project.run("stage=train", "run=tiny")
    assert stopped.code == 130
    assert not (root / "runs/noise/tiny/fold1").exists()
    monkeypatch.undo()


def interrupting(end_epoch, epoch: int):
    """_end_epoch, in which a Ctrl-C comes once."""

    def interrupted(progress, *rest):
        if progress.epoch == epoch:
            signal.raise_signal(signal.SIGINT)
        return end_epoch(progress, *rest)

    return interrupted


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_damaged_checkpoint_is_one_message(root, project, name, select):
    words = ("stage=train", "fold=0", "average=ema()", f"select={select}")
    assert project.run(*words).code == 0
    before, path = best(root, "tiny"), root / "runs/noise/tiny/fold0" / name
    path.write_bytes(path.read_bytes()[:5000])
    if name == "last.ckpt":  # as if killed before the end
        (path.parent / "train.json").unlink()
        stopped = project.run(*words)
    else:
        stopped = project.run("stage=predict", "fold=0")
    assert stopped.code == 2
    assert stopped.err.startswith(f"error: runs/noise/tiny/fold0/{name} is damaged")
    assert stopped.err.count("\n") == 1
    assert "delete it" in stopped.err
    path.unlink()  # what the message says
    assert project.run(*words).code == 0
    assert project.run("stage=predict", "fold=0").code == 0
    assert small.same(before, best(root, "tiny"))


def test_a_checkpoint_of_another_network_is_one_message(root, project):
    assert project.run("stage=train", "fold=0", "run=wide", "backbone=small_image(width=8)").code == 0
    assert project.run("stage=train", "fold=1").code == 0
    place = root / "runs/noise/tiny/fold0/last.ckpt"
    place.parent.mkdir(parents=True)
    place.write_bytes((root / "runs/noise/wide/fold0/last.ckpt").read_bytes())
    stopped = project.run("stage=train", "fold=0")
    assert stopped.code == 2
    assert "last.ckpt does not fit this run" in stopped.err


def test_without_its_config_a_run_is_kept_only_for_the_same_settings(root, project):
    """Finished members are known by their record; what tells nothing of its settings begins anew."""
    assert project.run("stage=train", "select=best").code == 0
    folder = root / "runs/noise/tiny"
    before = best(root, "tiny")
    (folder / "config.yaml").unlink()
    (folder / "fold1/train.json").unlink()
    stopped = project.run("stage=train")
    assert stopped.code == 2
    assert "fold0 was trained with other settings than these, and there is no config.yaml" in stopped.err
    assert not (folder / "config.yaml").exists()
    again = project.run("stage=train", "select=best")
    assert again.code == 0, again.err
    assert "going on" not in again.out
    assert "train tiny fold0" not in again.out
    assert small.same(before, best(root, "tiny"))


def test_weights_that_are_no_numbers_are_not_saved(root, project, monkeypatch):
    """Here the very last gradient spoils them: no loss would ever show it."""
    forward, passes = learner.Learner.forward, []

    def poisoned(self, batch, generator):
        passes.append(forward(self, batch, generator))
        if len(passes) == 6:
            passes[-1].register_hook(lambda gradient: gradient * float("nan"))
        return passes[-1]

    monkeypatch.setattr(learner.Learner, "forward", poisoned)
    stopped = project.run("stage=train", "fold=0", "train.checkpoint_seconds=0")
    assert stopped.code == 2
    assert "runs/noise/tiny/fold0 has weights that are no finite numbers in epoch 3, step 2" in stopped.err
