"""What a stage says: plain lines, a progress bar where a person watches, and the table at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_live: list[Any] = []  # the console of the bar that is on the screen, if any


def say(text: str = "") -> None:
    """One line on stdout, at once; above the bar where there is one."""
    if _live and sys.stdout.isatty():
        _live[-1].print(text, soft_wrap=True, markup=False, highlight=False)
    else:
        print(text, flush=True)


def warn(text: str) -> None:
    """One line on stderr that does not stop the work."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with ETA on a terminal, nothing elsewhere or inside another; yields ``advance(steps=1, note="")``."""
    if _live or not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, note="")
        _live.append(console)
        try:
            yield lambda steps=1, note="": bar.update(task, advance=steps, **({"note": note} if note else {}))
        finally:
            _live.pop()


@dataclass
class Outcome:
    """One row of the closing table: what a step made and how good it is.

    score: a text that says what made it, such as "0.9910 ± 0.0021 OOF"; facts: numbers for programs.
    """

    step: str
    run: str = ""
    score: str = ""
    nested: str = ""
    private: str = ""
    seconds: float = 0.0
    note: str = ""
    reused: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def table(outcomes: list[Outcome]) -> str:
    """The closing table as text; columns that stay empty are left out."""
    head = {"score": "OOF ± se", "nested": "nested CV"}
    head = {key: head.get(key, key) for key in ("step", "run", "score", "nested", "private", "seconds", "note")}
    rows = [
        {**{k: getattr(o, k) for k in head}, "seconds": "done before" if o.reused else f"{o.seconds:.1f}"}
        for o in outcomes
    ]
    kept = [key for key in head if any(row[key] for row in rows)]
    width = {key: max(len(head[key]), *(len(row[key]) for row in rows)) for key in kept}

    def line(cells: dict[str, str]) -> str:
        return "  ".join(cells[key].ljust(width[key]) for key in kept).rstrip()

    return "\n".join([line(head), "  ".join("─" * width[key] for key in kept), *(line(row) for row in rows)])
