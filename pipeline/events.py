"""What commands say as data: ``log.jsonl`` beside a competition's runs, one JSON object a line, only ever appended to.

Each has ``time`` (UTC), ``process`` and ``event``: ``start`` with the command's arguments, ``line`` and ``warning``
with their text (an epoch's also with its figures), ``outcome`` with a row of the closing table, ``end`` with the exit
code. ``stage`` is there where a step is under way. Nothing is written before there is something to tell, and a log that
cannot be written stops no work.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "log.jsonl"


@dataclass
class Log:
    """The log of one command; held: its first lines, until there is more to tell."""

    path: Path
    held: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    def add(self, event: str, facts: dict[str, Any], hold: bool = False) -> None:
        """One line; hold: it is written with the next one, or never."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = {"stage": self.stages[-1]} if self.stages else {}
        line = {"time": now, "process": os.getpid(), "event": event, **about, **facts}
        self.held.append(json.dumps(line, ensure_ascii=False, default=str))
        if not hold:
            self.write()

    def write(self) -> None:
        """Append what is held, in one piece, so that commands that run at once do not mix their lines."""
        text = "".join(f"{line}\n" for line in self.held)
        self.held = []
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(text.encode(errors="replace"))


_log: list[Log] = []  # of the command that is under way, if it has one


@contextlib.contextmanager
def logged(path: Path | None, arguments: dict[str, str]) -> Iterator[None]:
    """Log to this file while a command runs; None: log nothing."""
    if path is None:
        yield
        return
    log = Log(path)
    log.add("start", {"arguments": arguments}, hold=True)
    _log.append(log)
    try:
        yield
    except BaseException as fault:
        log.add("end", {"fault": f"{type(fault).__name__}: {fault}"}, hold=bool(log.held) and not path.exists())
        raise
    else:
        log.add("end", {"fault": ""})
    finally:
        _log.remove(log)


@contextlib.contextmanager
def about(stage: str) -> Iterator[None]:
    """What is told from here on is of this stage."""
    if not _log:
        yield
        return
    log = _log[-1]
    log.stages.append(stage)
    try:
        yield
    finally:
        log.stages.pop()


def tell(event: str, **facts: Any) -> None:
    """One line, if a command is logged."""
    if _log:
        _log[-1].add(event, facts)
