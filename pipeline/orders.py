"""One member's work as a process of its own: how it is started on any machine, told what to do, and stopped.

It reads its order from its standard input and goes on until that ends early: then it saves its state and stops. So it
stops in the same way when it is asked to, and when whoever started it has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

PROJECT = Path(__file__).resolve().parent.parent
LOOK_SECONDS = 0.2  # between two looks at a process
NOT_KEPT = ("SLURM_NTASKS",)  # by which lightning takes a process for one of several that Slurm has started


@dataclass(frozen=True)
class Job:
    """One member's work.

    name: such as "train small_image fold0". order: what the process is told, one line of JSON. log: the file that
    takes all it prints. device: of the run; "auto" if the machine that begins it decides. gpus: that it computes with
    where the device is one. threads: of the CPU.
    """

    name: str
    order: str
    log: Path
    device: str
    gpus: int
    threads: int

    @property
    def shares_gpus(self) -> bool:
        """Whether it takes any GPU that it is given."""
        return self.device == "cuda"


class Running(Protocol):
    """A job that was handed to a launcher."""

    def ended(self) -> int | None:
        """The exit code; None while it waits or works. Raises UserError if it was lost."""

    def stop(self) -> None:
        """Ask it to save its state and end; one that waits does not start any more."""

    def kill(self) -> None:
        """End it at once."""


def start(job: Job, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a job here, with these variables more; it stops when its standard input is closed."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in NOT_KEPT}
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.member", job.name],
            cwd=PROJECT, env={**kept, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches the one who started it, who then stops it
        )  # fmt: skip
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code tells
        process.stdin.write(job.order.encode() + b"\n")
        process.stdin.flush()
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a started process to save its state and end."""
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def perform(job: Job) -> int:
    """Start a job here and wait for it; returns its exit code. Whatever interrupts the waiting stops it first."""
    process = start(job)
    try:
        while (code := process.poll()) is None:
            time.sleep(LOOK_SECONDS)  # no wait(): what interrupts a thread alone, as Ray does, would not end it
        return code
    except BaseException:
        stop(process)
        process.wait()
        raise


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt like Ctrl-C, so that what was started is stopped."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
