"""What the tests under faults share: what a recipe leaves; how to kill it, fill its disk and cut its files short."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import processes
import pytest
from processes import Command, Ended

EXACT = (  # files without seconds in them; all are written by a recipe
    "folds/*.csv", "submissions/*/stack.*", "runs/**/labels-*.csv", "runs/**/*.npz", "runs/**/*.maps",
    "runs/**/config.yaml", "runs/**/best.ckpt", "runs/**/level2.json", "runs/**/status.json",
)  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A project whose recipe ran undisturbed: the words of the recipe, what came of it, and its seconds."""

    root: Path
    words: tuple[str, ...]
    found: dict[str, bytes]
    seconds: float


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


def undisturbed(root: Path, words: tuple[str, ...]) -> Whole:
    """The recipe of these words, run once in a project."""
    processes.run(root, "help", "stages")  # starts what the others are forked from
    began = time.perf_counter()
    ended = processes.run(root, *words)
    assert ended.code == 0, ended.err
    return Whole(root, words, outcome(root), time.perf_counter() - began)


def check_same(root: Path, whole: Whole) -> None:
    """The recipe, started once more, ends with the undisturbed recipe's bytes."""
    ended = processes.run(root, *whole.words)
    assert ended.code == 0, ended.err
    assert differing(outcome(root), whole.found) == []


def kill_at_random(whole: Whole, root: Path, kills: int) -> None:
    """SIGKILL, again and again, while the recipe gets on; whenever it gets to its end, it begins anew.

    So often, and more often, where a busy machine does not get on, until the kills have hit several steps.
    """
    generator, left, hit, steps = np.random.default_rng(7), kills, set(), min(5, kills // 4)
    while left > 0 or (len(hit) < steps and left > -3 * kills):
        command = Command(root, *whole.words)
        ended = command.ended(generator.uniform(0, whole.seconds / 3))
        if ended is None:
            left -= 1
            hit.add(command.kill().out.rpartition("\n[")[2].partition("]")[0])
            continue
        assert ended.code == 0, ended.err
        assert differing(outcome(root), whole.found) == []
        wipe(root)
    check_same(root, whole)
    assert len(hit) >= steps, f"the kills must hit many steps, not only {hit}"


def fill_at_each_step(whole: Whole, finished: Path, disk: Path, left: int, stages: Sequence[str]) -> list[str]:
    """Each step in turn meets a disk with so much room left, then goes on where there is room; which were stopped."""
    stopped = []
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs", disk):
        root = Path(shutil.copytree(finished, disk / "project"))
        wipe(root)
        for stage in stages:
            words = (f"stage={stage}", *whole.words[1:])
            with filled(disk, left):
                ended = processes.run(root, *words)
            if ended.code:
                assert "No space left on device" in message(ended)
                stopped.append(stage)
            ended = processes.run(root, *words)
            assert ended.code == 0, ended.err
        check_same(root, whole)
    return stopped


def cut_short(whole: Whole, finished: Path, name: str, share: float, unfinished: Sequence[str]) -> None:
    """A file is made anew, or one message names it; what the message says then leads to the same end.

    unfinished: files without which a step runs again that reads the one cut short, so that somebody meets it.
    """
    for other in unfinished:
        (finished / other).unlink()
    spoilt = list(finished.glob(name))
    assert spoilt, f"the recipe writes no {name}"
    for path in spoilt:
        os.truncate(path, int(path.stat().st_size * share))
    ended = processes.run(finished, *whole.words)
    if ended.code:
        text = message(ended)
        assert "delete" in text or "overwrite=true" in text
        found = re.search(r"(?:folds|runs|submissions|cache)/[\w./-]*\w", text)
        assert found, text
        named = finished / found[0]
        assert named.parent in {path.parent for path in spoilt}, text
        named.unlink()
        ended = processes.run(finished, *whole.words)
    assert ended.code == 0, ended.err
    assert differing(outcome(finished), whole.found) == []
