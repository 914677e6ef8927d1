"""Several processes that do one work together, such as a training on several devices: started, watched and ended here.

The process that starts them keeps the run's lock, takes the signals and says what went wrong, once. It needs no device
itself.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from torch import distributed

from pipeline import ranks
from pipeline.engine import stop_signals
from pipeline.errors import OutOfTime, UserError

POLL = 0.2  # seconds between two looks for a signal
GRACE = 2.0  # seconds for the others to speak, when one has failed: what breaks first is not always heard first

DONE, STOPPED, PROBLEM, FAULT = "done", "stopped", "problem", "fault"  # what a process may say at its end


@dataclass
class Worker:
    """A process of the group, and what it said at its end: how it ended, what came of it, when; None if killed."""

    process: Any
    listen: Any
    said: tuple[str, Any, float] | None = None

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to hear from it."""
        dead = not self.process.is_alive()  # asked first: what it said before is in the pipe
        with contextlib.suppress(EOFError, OSError):
            if self.said is None and self.listen.poll():
                self.said = self.listen.recv()
        return self.said is not None or dead

    @property
    def done(self) -> bool:
        """Whether it has brought its work to the end."""
        return self.said is not None and self.said[0] == DONE

    @property
    def failed(self) -> bool:
        """Whether it has ended, but not as it should."""
        return self.ended and (self.said is None or self.said[0] in (PROBLEM, FAULT))


# --- the process that starts them -----------------------------------------------------------------------------------


def together(count: int, kind: str, target: Callable[..., Any], *arguments: Any) -> Any:
    """Call target(*arguments) in so many processes, one a device of this kind; returns what the first one's call does.

    Raises the UserError of one that fails, a RuntimeError with its traceback, or, once they have stopped, what a signal
    or the end of the budget asks for: each of them is told. None outlives this call.
    """
    workers: list[Worker] = []
    with stop_signals() as stopping, listening() as port:
        try:
            for rank in range(count):
                workers.append(start(rank, count, port, kind, functools.partial(target, *arguments)))
            watch(workers, stopping)
            why = stopping()
            if why and not (why is OutOfTime and all(worker.done for worker in workers)):
                raise why
            return result(workers)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """The port at which the processes find each other; nobody outside this machine can reach it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        handle = os.dup(server.fileno())  # the store closes it
        store = distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=handle)
        yield port
        del store


def start(rank: int, count: int, port: int, kind: str, call: Callable[[], Any]) -> Worker:
    """Start one process. Ctrl-C, which a terminal sends to all of them, reaches only the one that starts them."""
    context = multiprocessing.get_context("spawn")  # a fork could not use a GPU that its parent has used
    listen, speak = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(rank, count, port, kind, speak, call))
    resource_tracker.ensure_running()  # its own start would let the signal through
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else DDP warns where no weight is without a gradient
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    speak.close()
    return Worker(process, listen)


def watch(workers: list[Worker], stopping: Callable[[], type[BaseException] | None]) -> None:
    """Return when all have ended, or soon after one has failed; a signal to stop is passed on once."""
    told = False
    while not all(worker.ended for worker in workers):
        connection.wait([worker.process.sentinel for worker in workers if not worker.ended], timeout=POLL)
        if stopping() and not told:
            told = True
            for worker in workers:
                worker.process.terminate()
        if any(worker.failed for worker in workers):
            last = time.monotonic() + GRACE
            while time.monotonic() < last and not all(worker.ended for worker in workers):
                time.sleep(POLL / 10)
            return


def result(workers: list[Worker]) -> Any:
    """What the first process brought; else the exception that tells best why there is nothing."""
    said = sorted((worker.said for worker in workers if worker.said is not None), key=lambda one: one[2])
    faults = [value for how, value, _ in said if how == FAULT]  # the first is the cause; the others miss who is gone
    for problem, lines in (value for how, value, _ in said if how == PROBLEM):
        raise problem from RuntimeError(lines)
    for number, worker in enumerate(workers, 1):
        if worker.failed and worker.said is None:
            code = worker.process.exitcode
            by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise UserError(
                f"process {number} of {len(workers)} that train together was ended by {by}, and the others with it; "
                "finished work and the last checkpoint are kept. Run the same command again to go on; if memory ran "
                "out, name a new run with a smaller batch_size"
            ) from (RuntimeError(faults[0]) if faults else None)
    if faults:
        raise RuntimeError(f"a process of {len(workers)} that train together failed:\n{faults[0]}")
    if workers[0].said is None or workers[0].said[0] == STOPPED:  # somebody has told them to stop, not us
        raise KeyboardInterrupt
    return workers[0].said[1]


# --- a process that is started --------------------------------------------------------------------------------------


def work(rank: int, count: int, port: int, kind: str, speak: Any, call: Callable[[], Any]) -> None:
    """Join the others, do the work and say how it ended; the first process alone is heard while it lasts."""
    threading.Thread(target=follow, daemon=True).start()
    if rank:
        sys.stdout = sys.stderr = io.StringIO()
    said: tuple[str, Any] = DONE, None
    try:
        ranks.join(rank, count, port, kind)
        found = call()
        said = DONE, None if rank else found
    except KeyboardInterrupt:
        said = STOPPED, None
    except UserError as problem:
        said = PROBLEM, (problem, traceback.format_exc())
    except BaseException:
        said = FAULT, traceback.format_exc()
    speak.send((*said, time.monotonic()))  # one clock for all processes of a machine
    sys.stdout.flush()
    os._exit(0)  # at once: to take the group down in good order, each would wait for others that may be gone


def follow() -> None:
    """End with the process that started this one, however it ends: who starts the work anew must find nobody at it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
