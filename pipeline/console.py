"""What a stage says: plain lines, a progress bar where a person watches, and the table at the end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline import events
from pipeline.errors import NobodyReads

Item = TypeVar("Item")
NOTE_SECONDS = 0.3  # between two notes of progress for another process

_live: list[Any] = []  # the console of the bar that is on the screen, if any; None: its progress is noted
_notes: list[Path] = []  # where progress is noted instead of drawn


@dataclass
class Command:
    """What holds while a command runs.

    quiet: it says warnings and its table alone. tables: it prints its table. told: rows that the log has. closed:
    tables that were printed.
    """

    quiet: bool = False
    tables: bool = True
    told: list[Outcome] = field(default_factory=list)
    closed: list[list[Outcome]] = field(default_factory=list)


_commands = [Command()]  # the last one is under way; the first holds where there is none


@contextlib.contextmanager
def command(quiet: bool, log: Path | None, arguments: dict[str, str], tables: bool = True) -> Iterator[None]:
    """While a command runs: what it says goes to its log too, and only there if it is to be quiet."""
    _commands.append(Command(quiet, tables))
    try:
        with events.logged(log, arguments):
            yield
    finally:
        _commands.pop()


def is_quiet() -> bool:
    """Whether lines and bars are not shown."""
    return _commands[-1].quiet


def say(text: str = "", **facts: Any) -> None:
    """One line on stdout, at once; above the bar where there is one. facts: its figures, for the log."""
    events.tell("line", text=text.strip(), **facts)
    if not is_quiet():
        show(text)


def show(text: str) -> None:
    """One line on stdout, whether the command is quiet or not; the log has it already."""
    if _live and _live[-1] and sys.stdout.isatty():
        _live[-1].print(text, soft_wrap=True, markup=False, highlight=False)
    else:
        _print(text)


def _print(text: str) -> None:
    """One line on stdout; where nobody reads it any more, as behind ``| head``, the command ends without a word."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        raise NobodyReads from None


def warn(text: str) -> None:
    """One line on stderr that does not stop the work."""
    events.tell("warning", text=text)
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with ETA on a terminal, nothing elsewhere or inside another; yields ``advance(steps=1, note="")``."""
    if _notes and not _live:
        with _noting(_notes[-1], label, total) as advance:
            yield advance
        return
    if _live or is_quiet() or not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return
    with _bars() as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda steps=1, note="": bar.update(task, advance=steps, **({"note": note} if note else {}))


def each(label: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items, one after the other, under a bar that tells how many are done."""
    with progress(label, len(items)) as advance:
        for item in items:
            yield item
            advance()


@contextlib.contextmanager
def _bars() -> Iterator[Any]:
    """Bars on the terminal, which vanish at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bars:
        _live.append(console)
        try:
            yield bars
        finally:
            _live.pop()


# --- progress of other processes ----------------------------------------------------------------------------------


def note_progress(path: Path) -> None:
    """From now on, note progress in this file instead of drawing it: another process draws it."""
    _notes.append(path)


@contextlib.contextmanager
def _noting(path: Path, label: str, total: int) -> Iterator[Callable[..., None]]:
    done, said, last = 0, "", 0.0

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, said, last
        done, said = done + steps, note or said
        if time.monotonic() - last >= NOTE_SECONDS:
            last = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk shows where something is lost by it
                fresh = path.with_suffix(".fresh")
                fresh.write_text(json.dumps([label, done, total, said]), encoding="utf-8")
                os.replace(fresh, path)

    _live.append(None)
    try:
        yield advance
    finally:
        _live.pop()
        path.unlink(missing_ok=True)


def noted_progress(path: Path) -> tuple[str, int, int, str] | None:
    """What another process noted: label, steps done, of how many, and its remark; None where there is nothing."""
    try:
        label, done, total, note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(label), int(done), int(total), str(note)


class Board:
    """A bar for each of several jobs, below one for all of them; bars: rich's, or None where nobody watches."""

    def __init__(self, label: str, total: int, bars: Any) -> None:
        self.bars, self.tasks = bars, {}
        self.all = bars.add_task(label, total=total, note="") if bars else None

    tasks: dict[str, Any]

    def draw(self, name: str, label: str, done: int, total: int, note: str) -> None:
        """How far a job is; label: of what it does just now."""
        if self.bars:
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(f"  {name}", total=total, note="")
            shown = note if name.endswith(label) else f"{label} {note}"
            self.bars.update(self.tasks[name], completed=done, total=total, note=shown)

    def drop(self, name: str) -> None:
        """A job has ended."""
        if self.bars:
            self.bars.advance(self.all)
            if name in self.tasks:
                self.bars.remove_task(self.tasks.pop(name))


@contextlib.contextmanager
def board(label: str, total: int) -> Iterator[Board]:
    """The board of so many jobs, drawn on a terminal only."""
    if _live or is_quiet() or not sys.stderr.isatty():
        yield Board(label, total, None)
        return
    with _bars() as bars:
        yield Board(label, total, bars)


# --- the closing table --------------------------------------------------------------------------------------------


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


def note(outcomes: list[Outcome]) -> None:
    """Log rows of the closing table, each once."""
    told = _commands[-1].told
    for outcome in outcomes:
        if not any(outcome is other for other in told):
            told.append(outcome)
            events.tell("outcome", **vars(outcome))


def close(outcomes: list[Outcome]) -> None:
    """Print the closing table of a recipe, or of a command that was quiet; once."""
    note(outcomes)
    under_way = _commands[-1]
    if outcomes and under_way.tables and not any(outcomes is other for other in under_way.closed):
        under_way.closed.append(outcomes)
        show(f"\n{table(outcomes)}\n")


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
