"""A member's process: ``python -m pipeline.member NAME`` reads an order of ``launch`` and does one member's work.

Exit codes are those of the door; its one message is the last line, and the process that ordered it says the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline import console, startup
from pipeline.errors import UserError


def main() -> int:
    """Do what standard input says, and stop early when it ends."""
    order = json.loads(sys.stdin.readline())
    os.environ["PIPELINE_ROOT"] = order["root"]
    console.note_progress(Path(order["progress"]))
    heed()
    try:
        perform(order)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def perform(order: dict[str, Any]) -> None:
    """Do the work of one member; a finished one is left as it is."""
    from pipeline.config import restore
    from pipeline.runs import Run

    run = Run(restore(order["config"]), order["run"])
    importlib.import_module(f"pipeline.stages.{order['stage']}").WORK.do(run, tuple(order["held_out"]))


def heed() -> None:
    """Take the end of standard input for SIGTERM, and SIGUSR2 too, by which Slurm says that the time is over.

    It is raised once: a second one would stop a training before its state is saved.
    """
    told = threading.Lock()

    def once(*_: int | FrameType | None) -> None:
        if told.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGTERM)

    def listen() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held at the end of the process
            pass
        once()

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT may have been inherited as ignored
        signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, once)
    threading.Thread(target=listen, daemon=True).start()


if __name__ == "__main__":
    startup.importing()
    sys.exit(main())
