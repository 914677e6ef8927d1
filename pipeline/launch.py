"""Members of one stage, one after the other or side by side: the one place where a launcher is asked.

``parallel=folds`` and ``launcher=`` change where and when members are trained and predicted, never what comes of them:
each is the work of one process with the run's recorded threads and number format, locked, resumed and skipped as ever.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import artefacts, budget, console, hardware, orders, registry
from pipeline.artefacts import shown
from pipeline.config import Config, flatten, root
from pipeline.console import Board
from pipeline.errors import Elsewhere, OutOfTime, UserError
from pipeline.orders import Job, Running
from pipeline.runs import Run

PAUSE = 0.1  # s between two looks at what runs

Member = tuple[Run, tuple[int, ...]]
"""A run, and the folds that the member does not learn from."""


@dataclass(frozen=True)
class Work:
    """What a stage does for a member, apart from all others.

    done: whether it is finished already; quick. do: does it, if it is not; also in another process, and on another
    machine, that finds it as ``pipeline.stages.<stage>.WORK``. prepare: makes what members share, such as the decoded
    cache, before several processes of this machine begin. timed: ``budget=`` ends it wherever it is, so it is always
    done in a process of its own.
    """

    stage: str
    done: Callable[[Run, tuple[int, ...]], bool]
    do: Callable[[Run, tuple[int, ...]], Any]
    prepare: Callable[[Run, tuple[int, ...]], Any] | None = None
    timed: bool = False


def each(work: Work, members: Sequence[Member]) -> list[float | None]:
    """Do the work of all members as the config says; for each the seconds after which it was done, None: before.

    Raises what the first failed one met; the others are stopped then, with their state saved.
    """
    began = time.perf_counter()
    done: list[float | None] = [None] * len(members)
    todo = [place for place, member in enumerate(members) if not work.done(*member)]
    if todo:
        asked = members[0][0].config
        alone = not side_by_side(asked) or (len(todo) == 1 and not elsewhere(asked) and not work.timed)
        for place in (_in_turn if alone else _together)(work, [members[place] for place in todo]):
            done[todo[place]] = time.perf_counter() - began
    return done


def spans(members: Sequence[Member], done: Sequence[float | None]) -> list[float]:
    """What ``each`` took for every run, in seconds beyond the runs before it: together, the time of all."""
    ends: dict[str, float] = {}
    for (run, _), at in zip(members, done, strict=True):
        ends[run.name] = max(ends.get(run.name, 0.0), at or 0.0)
    latest = list(itertools.accumulate(ends.values(), max))
    return [end - before for before, end in itertools.pairwise([0.0, *latest])]


def side_by_side(config: Config) -> bool:
    """Whether members are worked on at the same time."""
    return config.parallel == "folds" or elsewhere(config)


def check_library(config: Config) -> None:
    """UserError, with the command that installs it, where the library of the launcher or the tracker is missing."""
    for key, call in (("launcher", config.launcher), ("tracker", config.tracker)):
        library = registry.facts(f"{key}s", call).get("library")
        if library and not importlib.util.find_spec(library):
            install = f".venv/bin/pip install -c constraints.txt {library}"
            raise UserError(f"{key}={call} needs {library}; install it: {install}")


def elsewhere(config: Config) -> bool:
    """Whether members are worked on by other machines, which decide a new run's number format and threads."""
    return bool(registry.facts("launchers", config.launcher).get("elsewhere"))


def _in_turn(work: Work, members: Sequence[Member]) -> Iterator[int]:
    for place, member in enumerate(members):
        work.do(*member)
        yield place


# --- side by side -------------------------------------------------------------------------------------------------


def _together(work: Work, members: Sequence[Member]) -> Iterator[int]:
    """Hand all to the launcher, show what they print, and yield the place of each that ends."""
    asked = members[0][0].config
    several = len({run.name for run, _ in members}) > 1
    views = [View(job_of(work.stage, *member), member[0].name if several else "") for member in members]
    for view in views:
        view.clear()
    if work.prepare and not elsewhere(asked):
        for first in {run.name: (run, held_out) for run, held_out in members}.values():
            work.prepare(*first)
    with console.board(work.stage, len(views)) as board:
        launcher = registry.build("launchers", asked.launcher)
        running = launcher([view.job for view in views], asked.jobs, artefacts.runs_folder(asked) / ".jobs")
        waiting = dict(enumerate(running))
        try:
            with orders.interruptible():  # only now: the launcher's library may have a handler of its own
                while waiting:
                    for place in list(waiting):
                        code = waiting[place].ended()
                        views[place].show(board, code is not None)
                        if code is None:
                            continue
                        del waiting[place]
                        if code:
                            raise views[place].failure(code, asked, len(waiting))
                        yield place
                    if (work.timed or work.stage == "train") and waiting and budget.over():
                        raise OutOfTime
                    time.sleep(PAUSE)
        except BaseException:
            halt(list(waiting.values()))
            raise


def halt(running: Sequence[Running]) -> None:
    """Ask all to save their state and end, and wait until they have; another Ctrl-C kills them."""
    for one in running:
        one.stop()
    try:
        while not all(_is_over(one) for one in running):
            time.sleep(PAUSE)
    except BaseException:
        for one in running:
            one.kill()
        raise


def _is_over(one: Running) -> bool:
    try:
        return one.ended() is not None
    except UserError:  # it was lost, too; what failed first is what is told
        return True


def job_of(stage: str, run: Run, held_out: tuple[int, ...]) -> Job:
    """The member's work as an order for another process, with needs by the run's hardware, where that is settled."""
    folder, asked = run.member(held_out), run.config
    machine = run.stored().get("hardware", {})
    log = folder / f"{stage}.log"
    order = {
        "stage": stage, "run": run.name, "held_out": held_out, "root": str(root()),
        "progress": str(log.with_suffix(".progress")),
        "config": {**flatten(asked), "overwrite": False, "parallel": "none", "jobs": 0, "launcher": "local()"},
    }  # fmt: skip
    return Job(
        name=f"{stage} {run.name} {folder.name}",
        order=json.dumps(order),
        log=log,
        device=machine.get("device", asked.device),
        gpus=run.config.devices if stage == "train" else 1,
        threads=machine.get("threads", asked.train.threads or hardware.physical_cores()),
    )


@dataclass
class View:
    """What a job prints, as far as it has been shown; run: stands before its lines, where several runs have jobs."""

    job: Job
    run: str
    read: int = 0
    last: list[str] = field(default_factory=list)

    @property
    def progress(self) -> Path:
        """Where the job notes how far it is."""
        return self.job.log.with_suffix(".progress")

    def clear(self) -> None:
        """Forget what an earlier job left."""
        for path in (self.job.log, self.progress):
            path.unlink(missing_ok=True)

    def show(self, board: Board, ended: bool) -> None:
        """Print the new lines, and draw how far the job is."""
        for line in self._new_lines(ended):
            self.last = [*self.last[-50:], line]
            if line.startswith("warning: "):
                console.warn(line.removeprefix("warning: "))
            elif not line.startswith("error: "):
                console.say(f"  {self.run} {line.lstrip()}" if self.run and line.startswith("  ") else line)
        noted = console.noted_progress(self.progress)
        title = self.job.name.partition(" ")[2]
        if ended:
            board.drop(title)
        elif noted:
            board.draw(title, *noted)

    def _new_lines(self, ended: bool) -> list[str]:
        if not self.job.log.exists():
            return []
        with self.job.log.open("rb") as file:
            file.seek(self.read)
            new = file.read()
        whole = len(new) if ended else new.rfind(b"\n") + 1
        self.read += whole
        return new[:whole].decode(errors="replace").splitlines()

    def failure(self, code: int, config: Config, others: int) -> Exception:
        """What is raised when the job ended with this exit code, so many others being left."""
        again = shlex.join(["./run.sh", *(f"{k}={v}" for k, v in config.arguments.items() if k != "overwrite")])
        more = "; what ran beside it is stopped, with its state saved" if others else ""
        more = f"{more}. Go on with: {again}"
        if code == 1:
            return Elsewhere(f"{self.job.name} failed, see above and {shown(self.job.log)}{more}")
        errors = [line.removeprefix("error: ") for line in self.last if line.startswith("error: ")]
        killed = f"was killed (signal {-code}); the machine may be short of memory: fewer jobs= at once, or batch_size="
        why = errors[-1] if errors else killed if code < 0 else f"ended with the exit code {code}"
        return UserError(f"{self.job.name}: {why}{more}")
