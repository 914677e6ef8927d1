"""Commands in processes of their own, which can be killed: forked from one that has imported everything before."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PRELOADED = (
    "pytest", "small_training", "pipeline.training", "pipeline.checks", "pipeline.stages.all", "pipeline.stages.train",
    "pipeline.stages.predict", "pipeline.stages.pseudo", "pipeline.stages.distill", "pipeline.stages.stack",
    "torch.utils.tensorboard", "pipeline.parts.decoders", "albumentations", "lightgbm", "sklearn.model_selection",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What a process ended with; code: its exit code, or minus the signal that killed it."""

    code: int
    out: str
    err: str


class Command:
    """One command line on a project, begun at once; its group is its own, so that a kill takes all that it started."""

    def __init__(self, root: Path, *words: str) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the first: it is what the others are forked from
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.log = Path(tempfile.mkdtemp(prefix="command-")) / "log"  # the project's disk may be full
        self.process = context.Process(target=_run, args=(str(root), words, str(self.log)))
        self.process.start()

    def ended(self, seconds: float | None = None) -> Ended | None:
        """What it ended with; None if it runs for longer than so many seconds."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            return None
        texts = [path.read_text() if (path := Path(f"{self.log}.{name}")).exists() else "" for name in ("out", "err")]
        return Ended(self.process.exitcode, *texts)

    def kill(self) -> Ended:
        """SIGKILL to it and to all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or is not yet a group of its own
            self.process.kill()
        ended = self.ended()
        assert ended is not None
        return ended

    def printed(self) -> str:
        """What it has printed so far."""
        path = Path(f"{self.log}.out")
        return path.read_text() if path.exists() else ""


def run(root: Path, *words: str) -> Ended:
    """Run one command line to its end."""
    ended = Command(root, *words).ended(300)
    assert ended is not None, "it takes longer than five minutes"
    return ended


def _run(root: str, words: tuple[str, ...], log: str) -> None:
    os.setsid()
    os.environ["PIPELINE_ROOT"] = root
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    from pipeline.__main__ import main

    code = main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
