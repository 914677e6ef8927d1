"""Members side by side, for real: killed, interrupted or lost by a cluster, they end with the bytes of one process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_training as small

pytestmark = pytest.mark.faults

LONG = ("stage=train", "run=long", "epochs=60", "train.checkpoint_seconds=0", "average=ema()")
RECIPE = (
    "stage=all", "recipe=quick", "run=long", "epochs=60", "train.checkpoint_seconds=0", "device=cpu",
)  # fmt: skip
WAIT = 300  # s, until a test gives up


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


def made(root: Path, *patterns: str) -> dict[str, bytes]:
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def alone(project, words: tuple[str, ...], *patterns: str) -> dict[str, bytes]:
    """What the command makes in one process; it is removed again."""
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    found = made(project.root, *patterns)
    assert found
    for name in ("runs", "submissions"):
        if (project.root / name).exists():
            (project.root / name).rename(project.root / f"{name}-alone")
    return found


def members() -> dict[str, int]:
    """The members' processes that work on this machine: name → process id."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    words = [line.split(maxsplit=1) for line in listed.splitlines() if " -m pipeline.member " in line]
    return {line.partition(" -m pipeline.member ")[2]: int(pid) for pid, line in words}


def until(true: Callable[[], object], what: str) -> None:
    """Wait for something that happens soon, or fail."""
    for _ in range(10 * WAIT):
        if true():
            return
        time.sleep(0.1)
    pytest.fail(f"never {what}")


def read_until(process: subprocess.Popen[str], *texts: str) -> None:
    """Read its lines until each of these has come."""
    left = set(texts)
    for line in process.stdout:
        left -= {text for text in left if text in line}
        if not left:
            return
    pytest.fail(f"{left} never came; {process.stderr.read()}")


# --- this machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_mid_training_all_go_on_to_the_same_bytes(root, project, number):
    whole = alone(project, LONG, "runs/**/best.ckpt")
    with small.process(root, *LONG, "parallel=folds", "jobs=2") as process:
        read_until(process, "fold0 epoch  2", "fold1 epoch  2")
        process.send_signal(number)
        _, errors = process.communicate()
    until(lambda: not any("long" in name for name in members()), "did the members stop")
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    if number != signal.SIGKILL:
        assert errors.count("Go on with: ./run.sh stage=train run=long") == 1
        assert "Traceback" not in errors
    ended = project.run(*LONG, "parallel=folds", "jobs=2")
    assert ended.code == 0, ended.err
    for fold in (0, 1):
        assert f"going on from runs/noise/long/fold{fold}/last.ckpt" in ended.out
    assert made(root, "runs/**/best.ckpt") == whole


def test_one_that_fails_stops_the_other_which_goes_on_later(root, project):
    whole = alone(project, LONG, "runs/**/best.ckpt")
    with small.process(root, *LONG, "parallel=folds", "jobs=2") as process:
        read_until(process, "fold0 epoch  2", "fold1 epoch  2")
        process.send_signal(signal.SIGINT)
        process.communicate()
    damaged = root / "runs/noise/long/fold1/last.ckpt"
    damaged.write_bytes(b"cut short")
    ended = project.run(*LONG, "parallel=folds", "jobs=2")
    assert ended.code == 2
    assert ended.err.startswith("error: train long fold1: runs/noise/long/fold1/last.ckpt is damaged")
    assert ended.err.count("\n") == 1
    assert "what ran beside it is stopped, with its state saved. Go on with: ./run.sh stage=train run=long" in ended.err
    assert not (root / "runs/noise/long/fold0/train.json").exists()
    damaged.unlink()
    ended = project.run(*LONG, "parallel=folds", "jobs=2")
    assert ended.code == 0, ended.err
    assert "going on from runs/noise/long/fold0/last.ckpt" in ended.out
    assert made(root, "runs/**/best.ckpt") == whole


# --- Ray ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[object]:
    """A Ray cluster of two nodes on this machine, of one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
    two = Cluster(initialize_head=True, head_node_args=node)
    two.add_node(num_cpus=1, object_store_memory=10**8)
    yield two
    two.shutdown()


def test_ray_survives_a_killed_worker_and_ends_in_the_same_submission(root, project, cluster, monkeypatch):
    whole = alone(project, RECIPE, "submissions/noise/*.csv", "runs/**/best.ckpt")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with small.process(root, *RECIPE, "launcher=ray") as process:
        read_until(process, "Ray tasks, on 2 nodes", "fold0 epoch  2", "fold1 epoch  2")
        child = members()["train long fold1"]
        worker = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(child)], text=True))
        os.kill(worker, signal.SIGKILL)
        read_until(process, "going on from runs/noise/long/fold1/last.ckpt")
        out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on from runs/noise/long/fold0" not in out
    assert made(root, "submissions/noise/*.csv", "runs/**/best.ckpt") == whole
    log = (root / "runs/noise/long/fold1/train.log").read_text()
    assert log.count("train long fold1\n") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ray_tasks_stop_with_the_command_that_waits_for_them(root, project, cluster, monkeypatch, number):
    words = (*LONG, "device=cpu")
    whole = alone(project, words, "runs/**/best.ckpt")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with small.process(root, *words, "launcher=ray") as process:
        read_until(process, "fold0 epoch  2", "fold1 epoch  2")
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert not list(root.glob("runs/**/train.json")), "they did not go on"
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert "going on from runs/noise/long/fold0/last.ckpt" in ended.out
    assert made(root, "runs/**/best.ckpt") == whole


# --- Slurm, of which there is none here: a stand-in for its commands ----------------------------------------------

SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys
number = os.getpid()
script = pathlib.Path(sys.argv[1])
text = script.read_text()
count = int(re.search(r"--array=0-(\\d+)", text)[1]) + 1
for task in range(count):
    ids = {"SLURM_JOB_ID": str(task), "SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    variables = {**os.environ, **ids, "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
                 "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"}
    log = open(script.parent / f"{number}_{task}.log", "w")
    job = subprocess.Popen(["bash", str(script)], env=variables, stdout=log, stderr=log, start_new_session=True)
    (script.parent / f"{number}_{task}.pid").write_text(str(job.pid))
print("Submitted batch job", number)
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do if [[ $1 == --output || $1 == --error ]]; then shift; fi; shift; done
exec "$@"
"""
SACCT = """#!{python}
import pathlib
print("JobID|State|NodeList")
for path in pathlib.Path("{folder}").glob("*.pid"):
    print(path.stem, "CANCELLED" if path.with_suffix(".cancelled").exists() else "RUNNING", "here", sep="|")
"""
SCANCEL = """#!{python}
import os, pathlib, signal, subprocess, sys
job = pathlib.Path("{folder}", sys.argv[1])
job.with_suffix(".cancelled").touch()
left, found = [int(job.with_suffix(".pid").read_text())], []
listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.split()[2:]
pairs = list(zip(map(int, listed[::2]), map(int, listed[1::2])))
while left:
    found.append(left.pop())
    left += [pid for pid, parent in pairs if parent == found[-1]]
for pid in found:  # the whole tree, as Slurm's cgroup does
    try: os.kill(pid, signal.SIGTERM)
    except ProcessLookupError: pass
"""


@pytest.fixture
def slurm(root, tmp_path, monkeypatch) -> Path:
    """A folder on PATH with sbatch and its kin, which start the tasks of an array on this machine at once."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    jobs = root / "runs/noise/.jobs/slurm"
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (folder / name).write_text(text.replace("{python}", sys.executable).replace("{folder}", str(jobs)))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return jobs


CALL = "launcher=slurm(partition='gpu',options=['qos=low'])"


def test_slurm_trains_and_predicts_by_arrays_to_the_same_submission(root, project, slurm):
    whole = alone(project, RECIPE, "submissions/noise/*.csv", "runs/**/best.ckpt")
    ended = project.run(*RECIPE, CALL)
    assert ended.code == 0, ended.err
    assert ended.out.count("  2 Slurm jobs, ") == 2, "to train and to predict"
    assert made(root, "submissions/noise/*.csv", "runs/**/best.ckpt") == whole
    script = max(slurm.glob("*.sh"), key=lambda path: path.stat().st_mtime).read_text()
    for line in ("--partition=gpu", "--qos=low", "--array=0-1", "--cpus-per-task=4", "--time=1440"):
        assert f"#SBATCH {line}" in script
    assert "gpus" not in script, "device=cpu"


def test_slurm_jobs_are_cancelled_with_their_state_saved(root, project, slurm):
    words = (*LONG, "device=cpu")
    whole = alone(project, words, "runs/**/best.ckpt")
    with small.process(root, *words, CALL) as process:
        read_until(process, "fold0 epoch  2", "fold1 epoch  2")
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    until(lambda: not any("long" in name for name in members()), "did the members stop")
    ended = project.run(*words, CALL)
    assert ended.code == 0, ended.err
    assert "going on from runs/noise/long/fold1/last.ckpt" in ended.out
    assert made(root, "runs/**/best.ckpt") == whole
