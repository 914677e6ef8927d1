"""budget=8h30m: how long a command may take, as in a notebook with a time limit.

Time decides only where a training stops; what comes of it, when the same command goes on later, is the same to the
byte. Whoever trains asks ``over()`` between its steps and ends with ``OutOfTime`` once its state is saved.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.console import say
from pipeline.errors import UserError

FORM = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
SAVING = 0.02  # of the budget is kept for the last checkpoint, …
LEAST, MOST = 3.0, 60.0  # … within these seconds
LOOK, LOOK_LEAST = 0.01, 5.0  # of the budget, and s: after so long the reserve is estimated anew

clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Reserve:
    """The seconds that are kept for what follows the training, what they are for, and how they are known."""

    seconds: float
    purpose: str
    basis: str


@dataclass
class Limit:
    """The time of one command; begun: when, by ``clock``. reserve: what must be kept, estimated anew now and then."""

    text: str
    seconds: float
    begun: float
    reserve: Callable[[], Reserve] = field(init=False)
    kept: Reserve | None = None
    looked: float = 0.0
    used: bool = False  # a training has begun
    what: str = "training"  # that stops

    def __post_init__(self) -> None:
        self.reserve = self.saving

    def left(self) -> float:
        """Seconds until the limit."""
        return self.begun + self.seconds - clock()

    def trainable(self) -> float:
        """Seconds until a training must stop."""
        now = clock()
        if self.kept is None or now - self.looked >= max(LOOK_LEAST, LOOK * self.seconds):
            before, self.kept, self.looked = self.kept, self.reserve(), now
            if before is None or before.basis != self.kept.basis:
                self._say(self.kept)
        return self.left() - self.kept.seconds

    def saving(self) -> Reserve:
        """What saving the state of a training takes."""
        return Reserve(min(MOST, max(LEAST, SAVING * self.seconds)), "its last state", "experience")

    def _say(self, kept: Reserve) -> None:
        stop = max(0.0, self.seconds - kept.seconds)
        say(
            f"  budget={self.text}: {self.what} stops at {spell(stop)}; {spell(kept.seconds)} are kept for "
            f"{kept.purpose}, by {kept.basis}"
        )


_limits: list[Limit] = []  # that of the command at hand, if it has one


def seconds_of(text: str) -> int:
    """``8h30m`` → 30600; UserError for what is no time."""
    found = FORM.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if not found or not (total := 3600 * hours + 60 * minutes + seconds):
        raise UserError(f"budget={text}, but a budget is a time such as 8h30m, 90m, 1h or 30s")
    return total


def spell(seconds: float) -> str:
    """30600 → ``8h30m``; below ten minutes with seconds, ``2m05s``, below one minute these alone."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m"


def begin(text: str, since_start: bool = True) -> None:
    """Count the command's time from the beginning of its process, or from now; an empty text is no limit."""
    spent = age() if since_start else 0.0
    _limits[:] = [Limit(text, seconds_of(text), clock() - spent)] if text else []


def limit() -> Limit | None:
    """The limit of the command at hand."""
    return _limits[-1] if _limits else None


def over() -> bool:
    """Whether a training must stop now."""
    return bool(_limits) and _limits[-1].trainable() <= 0


def age() -> float:
    """The seconds since this process began, those in which run.sh made the environment among them; 0 where not told."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
