"""Launchers: where members are trained and predicted side by side.

Form: ``f(jobs, at_once: int, folder: Path, *, …) -> list[Running]``, one for each job, see ``pipeline/orders.py``;
at_once: most jobs at the same time, 0: the launcher decides; folder: for files of its own. Each says in one line where
the jobs go. Facts: ``elsewhere``, that they go to other machines, which share this project's folder; ``library``, what
must be installed; ``at_once``, that it heeds ``jobs=``.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import orders
from pipeline.console import say, warn
from pipeline.errors import UserError
from pipeline.orders import Job, Running
from pipeline.registry import part

INTERRUPTED = 130  # the exit code of what was stopped before it began
GPUS = "CUDA_VISIBLE_DEVICES"
LOOK_SECONDS = 2.0  # between two looks at a Slurm job


# --- this machine -------------------------------------------------------------------------------------------------


@part(source="pipeline/orders.py", at_once=True)
def local(jobs: Sequence[Job], at_once: int, folder: Path) -> list[Running]:
    """Processes of this machine: one on each GPU, or as many as its cores have room for."""
    places = gpu_places(jobs, at_once) if all(job.shares_gpus for job in jobs) else core_places(jobs, at_once)
    return [Local(job, places) for job in jobs]


@dataclass
class Local:
    """A job that starts as soon as one of the places, which all jobs share, is free; a place: variables it sets."""

    job: Job
    places: list[dict[str, str]]
    place: dict[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False

    def ended(self) -> int | None:
        """Start it if it can, else look after it; its end frees the place."""
        if self.process is None:
            if not self.stopped and self.places:
                self.place = self.places.pop(0)
                self.process = orders.start(self.job, self.place)
            return INTERRUPTED if self.process is None and self.stopped else None
        code = self.process.poll()
        if code is not None and self.place is not None:
            self.places.append(self.place)
            self.place = None
        return code

    def stop(self) -> None:
        """Ask it to save its state and end."""
        self.stopped = True
        if self.process:
            orders.stop(self.process)

    def kill(self) -> None:
        """End it at once."""
        self.stopped = True
        if self.process:
            self.process.kill()


def gpu_places(jobs: Sequence[Job], at_once: int) -> list[dict[str, str]]:
    """A place a GPU, or for each group of as many as a job computes with; more jobs than groups share them in turn."""
    each = max(job.gpus for job in jobs)
    names = visible_gpus()
    groups = [",".join(names[first : first + each]) for first in range(0, len(names) - each + 1, each)]
    if not groups:
        raise UserError(f"each job needs {each} GPUs, but there are {len(names)}; set devices={max(len(names), 1)}")
    count = min(at_once or len(groups), len(jobs))
    say(f"  {len(jobs)} jobs, {count} at once, on GPU {' | '.join(groups[:count])}")
    return [{GPUS: groups[number % len(groups)]} for number in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    return named[:count] or [str(number) for number in range(count)]


def core_places(jobs: Sequence[Job], at_once: int) -> list[dict[str, str]]:
    """As many places as there are cores for the jobs' threads, or as were asked for, with a warning if too many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(job.threads for job in jobs)
    room = max(1, cores // threads)
    count = min(at_once or room, len(jobs))
    alike = "train.threads=1 shares the cores out, in a run of its own, for the number is part of the result"
    if count > room:
        warn(f"{count} jobs of {threads} threads each hold each other up on {cores} cores; {alike}")
    alone = f"; {alike}" if count == 1 < len(jobs) and threads > 1 else ""
    say(f"  {len(jobs)} jobs, {count} at once, {threads} thread{'s' * (threads > 1)} each, on {cores} cores{alone}")
    return [{} for _ in range(count)]


# --- Ray ----------------------------------------------------------------------------------------------------------


@part(
    source="Moritz et al. 2018, Ray: a distributed framework for emerging AI applications",
    elsewhere=True,
    library="ray",
    allowed={"retries": (0, None)},
)
def ray(jobs: Sequence[Job], at_once: int, folder: Path, *, retries: int = 3) -> list[Running]:
    """Tasks of the Ray cluster that RAY_ADDRESS or this machine names, or of one of this machine's own.

    A task asks for the run's GPUs, or on CPUs for its threads. retries: how often a job that lost its worker goes on
    from its checkpoint on another; nodes need this folder under the same path.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do from 2.61 on, unasked
    import ray as library

    if not library.is_initialized():
        library.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    there = library.cluster_resources()
    remote = library.remote(orders.perform)
    variables = {"PYTHONPATH": str(orders.PROJECT)}  # a worker starts anywhere
    running: list[Running] = []
    for job in jobs:
        gpus = 0 if job.device in ("cpu", "mps") else job.gpus if job.shares_gpus or there.get("GPU") else 0
        needs = {"num_gpus": gpus, "num_cpus": 1 if gpus else job.threads}
        if not any(_fits(node, needs) for node in library.nodes()):
            warn(f"{job.name} needs {needs}, which no node of the Ray cluster has; it waits for one")
        task = remote.options(name=job.name, max_retries=retries, runtime_env={"env_vars": variables}, **needs)
        running.append(RayTask(library, job.name, task.remote(job)))
    nodes = sum(bool(node["Alive"]) for node in library.nodes())
    say(f"  {len(jobs)} Ray tasks, on {nodes} node{'s' * (nodes > 1)} with {there.get('CPU', 0):g} CPUs and "
        f"{there.get('GPU', 0):g} GPUs")  # fmt: skip
    return running


def _fits(node: dict[str, Any], needs: dict[str, int]) -> bool:
    there = node.get("Resources", {})
    return there.get("CPU", 0) >= needs["num_cpus"] and there.get("GPU", 0) >= needs["num_gpus"]


@dataclass
class RayTask:
    """A task of Ray's."""

    ray: Any
    name: str
    task: Any

    def ended(self) -> int | None:
        """Its exit code, once it has one."""
        if not self.ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            return int(self.ray.get(self.task))
        except self.ray.exceptions.TaskCancelledError:
            return INTERRUPTED
        except self.ray.exceptions.RayError as fault:
            reason = str(fault).strip().splitlines()[0]
            raise UserError(f"{self.name} was lost by Ray ({type(fault).__name__}: {reason})") from fault

    def stop(self) -> None:
        """Interrupt the task, which stops its process."""
        self.ray.cancel(self.task, force=False)

    def kill(self) -> None:
        """End its worker; the process notices."""
        self.ray.cancel(self.task, force=True)


# --- Slurm --------------------------------------------------------------------------------------------------------


@part(
    source="Yoo et al. 2003, SLURM; submitit",
    elsewhere=True,
    library="submitit",
    at_once=True,
    allowed={"minutes": (1, None), "gpus": (0, None), "cpus": (1, None), "memory_gb": (0, None)},
)
def slurm(
    jobs: Sequence[Job], at_once: int, folder: Path, *, partition: str = "", account: str = "", minutes: int = 1440,
    gpus: int = 1, cpus: int = 4, memory_gb: int = 0, options: tuple[str, ...] = (),
) -> list[Running]:  # fmt: skip
    """An array of Slurm jobs, through submitit; out of time they are requeued and go on, three times at most.

    partition, account: of sbatch; empty: the cluster's defaults. minutes: of a job. gpus, cpus, memory_gb: of a job;
    memory 0 is the cluster's default. options: more of sbatch's, such as 'qos=low'.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
    except RuntimeError as fault:
        raise UserError("launcher=slurm needs a machine that can submit: there is no srun; log in to one") from fault
    more = {name: value for name, _, value in (option.lstrip("-").partition("=") for option in options)}
    asked = {
        "name": "pipeline", "timeout_min": minutes, "cpus_per_task": cpus, "stderr_to_stdout": True,
        "gpus_per_node": 0 if all(job.device == "cpu" for job in jobs) else max(gpus, *(job.gpus for job in jobs)),
        "mem_gb": memory_gb, "slurm_partition": partition, "slurm_account": account,
        "slurm_additional_parameters": more, "slurm_array_parallelism": at_once,
    }  # fmt: skip
    executor.update_parameters(**{key: value for key, value in asked.items() if value})
    try:
        with executor.batch():
            submitted = [executor.submit(Restartable(orders.perform), job) for job in jobs]
    except submitit.core.utils.FailedJobError as fault:
        raise UserError(f"sbatch refused the jobs: {str(fault).strip().splitlines()[-1]}") from fault
    say(f"  {len(jobs)} Slurm jobs, {submitted[0].job_id.partition('_')[0]}")
    return [SlurmJob(job.name, one) for job, one in zip(jobs, submitted, strict=True)]


@dataclass
class Restartable:
    """A call that submitit repeats with the same arguments when the job is requeued."""

    call: Callable[[Job], int]

    def __call__(self, job: Job) -> int:
        return self.call(job)

    def checkpoint(self, job: Job) -> Any:
        """What is submitted again: the same, since a member goes on from its own checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)


@dataclass
class SlurmJob:
    """A job of Slurm's, as submitit knows it."""

    name: str
    job: Any
    stopped: bool = False
    looked: float = -math.inf

    def ended(self) -> int | None:
        """Its exit code, once it has one; Slurm itself is asked rarely, but for a job that was cancelled."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return None
        self.looked = time.monotonic()
        if not self.job.done(force_check=self.stopped):
            return None
        if self.stopped:
            return INTERRUPTED
        try:
            return int(self.job.result())
        except Exception as fault:
            raise UserError(
                f"{self.name} left no result as Slurm job {self.job.job_id} ({self.job.state}); see "
                f"{self.job.paths.stdout}"
            ) from fault

    def stop(self) -> None:
        """Cancel it: Slurm lets it save its state first (KillWait, 30 s by default)."""
        self.stopped = True
        self.job.cancel(check=False)

    def kill(self) -> None:
        """It is cancelled already."""
