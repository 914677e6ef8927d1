"""Members side by side: what each is told, where it goes, what is shown, and how all end when one does not."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import small_training as small

from pipeline import config as settings
from pipeline import console, hardware, launch, member, orders
from pipeline.errors import UserError
from pipeline.orders import Job
from pipeline.parts import launchers
from pipeline.runs import Run

WORKING = 1000  # no exit code: a job goes on


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


def job(log: Path, number: int = 0, device: str = "cpu", gpus: int = 1, threads: int = 1) -> Job:
    return Job(f"train tiny fold{number}", "{}", log / f"fold{number}" / "train.log", device, gpus, threads)


@dataclass
class Fake:
    """A job in hand: says its lines and ends with a code, or does its work in this process where it has none."""

    job: Job
    code: int | None = None
    lines: str = ""
    stopped: int = 0
    meanwhile: signal.Signals | None = None
    looks: int = 0

    def ended(self) -> int | None:
        if self.stopped:
            return launchers.INTERRUPTED
        self.looks += 1
        assert self.looks < 50, "nobody stops it"
        if self.meanwhile:
            signal.raise_signal(self.meanwhile)
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        if self.code is not None:
            self.job.log.write_text(self.lines)
            return None if self.code == WORKING else self.code
        with self.job.log.open("w") as log, contextlib.redirect_stdout(log):
            member.perform(json.loads(self.job.order))
        return 0

    def stop(self) -> None:
        self.stopped += 1

    kill = stop


def put(monkeypatch: pytest.MonkeyPatch, *fates: tuple) -> list[Fake]:
    """Let launcher=local() do the work in this process, or let the jobs end as the fates say."""
    handed: list[Fake] = []

    def fake(jobs, at_once, folder):
        handed.extend(Fake(one, *fate) for one, fate in zip(jobs, fates or [()] * len(jobs), strict=True))
        return handed[-len(jobs) :]

    monkeypatch.setattr(launchers, "local", fake)
    return handed


def made(root: Path, *names: str) -> dict[str, bytes]:
    """The files of these names below runs/, as bytes."""
    found = [path for name in names for path in sorted((root / "runs").rglob(name))]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


# --- the same, side by side ---------------------------------------------------------------------------------------


def test_two_processes_give_the_bytes_of_one(root, project):
    """The real thing, once: two children train at the same time."""
    assert project.run("stage=train").code == 0
    alone = made(root, "best.ckpt")
    (root / "runs").rename(root / "before")
    ended = project.run("stage=train", "parallel=folds", "jobs=2")
    assert ended.code == 0, ended.err
    assert made(root, "best.ckpt") == alone
    assert len(alone) == 2
    assert "  2 jobs, 2 at once, 1 thread each, on" in ended.out
    for line in ("train tiny fold0", "train tiny fold1", "  fold0 epoch  3  loss", "  fold1 epoch  3  loss"):
        assert ended.out.count(line) == 1, ended.out
    assert "all folds" in ended.out.splitlines()[-1]


def test_the_recipe_side_by_side_gives_the_same_and_trains_its_models_together(root, project, monkeypatch):
    small.write(root, folds=3)
    (root / "configs/model/other.yaml").write_text((root / "configs/model/tiny.yaml").read_text() + "seed: 1\n")
    path = root / "configs/competition/noise.yaml"
    path.write_text(path.read_text().replace("[tiny]", "[tiny, other]"))
    steps = ("{stage: train, model: all}", "{stage: predict, model: all}", "{stage: distill, distill.source: pair}")
    recipe = "".join(["steps:\n", *(f"  - {step}\n" for step in steps)])
    (root / "configs/recipe/small.yaml").write_text(recipe)
    words = ("stage=all", "recipe=small", "epochs=1")
    assert project.run(*words).code == 0
    alone = made(root, "best.ckpt", "*.npz")
    (root / "runs").rename(root / "before")
    handed = put(monkeypatch)
    ended = project.run(*words, "parallel=folds")
    assert ended.code == 0, ended.err
    assert made(root, "best.ckpt", "*.npz") == alone
    names = [one.job.name for one in handed]
    assert names[:6] == [f"train {name} fold{fold}" for name in ("tiny", "other") for fold in range(3)]
    assert [name.rpartition(" ")[2] for name in names[12:15]] == ["fold0_1", "fold0_2", "fold1_2"], "pair teachers"
    assert names[15:] == [f"{stage} tiny-distilled fold{fold}" for stage in ("train", "predict") for fold in range(3)]
    assert "  tiny fold0 epoch  1  loss" in ended.out
    assert project.run(*words, "parallel=folds").code == 0
    assert len(handed) == len(names), "finished members are no jobs"


def test_one_member_needs_no_other_process(root, project, monkeypatch):
    handed = put(monkeypatch)
    assert project.run("stage=train", "fold=0", "parallel=folds", "epochs=1").code == 0
    assert handed == []


def test_an_order_tells_the_whole_config(root):
    odd = {"data__files": ["{id}_a,b.png", "[x]"], "train__labels": "a 'b' \"c\" ü.csv", "lr": 0.1 + 0.2}
    asked = small.config(**odd, parallel="folds", overwrite=True)
    told = json.loads(launch.job_of("train", Run(asked, "tiny"), (0, 2)).order)
    plain = settings.replace(asked, parallel="none", overwrite=False)
    assert settings.flatten(settings.restore(told["config"])) == settings.flatten(plain)
    assert (told["stage"], told["run"], told["held_out"]) == ("train", "tiny", [0, 2])


# --- a job that does not end well ---------------------------------------------------------------------------------

ENDS = {
    2: ("warning: odd\nerror: the loss is nan. Try lr=1e-5\n", 2, "train tiny fold1: the loss is nan. Try lr=1e-5;"),
    1: ("Traceback\n  ValueError\n", 1, "train tiny fold1 failed, see above and runs/noise/tiny/fold1/train.log;"),
    -9: ("", 2, "train tiny fold1: was killed (signal 9)"),
}


@pytest.mark.parametrize("code", ENDS)
def test_a_failed_job_stops_the_others_and_is_one_message(root, project, monkeypatch, code):
    lines, exit_code, message = ENDS[code]
    handed = put(monkeypatch, (WORKING, "train tiny fold0\n"), (code, lines))
    ended = project.run("stage=train", "parallel=folds", "lr=1e-2")
    assert ended.code == exit_code
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {message}")
    again = "Go on with: ./run.sh stage=train parallel=folds lr=1e-2"
    assert errors[0].endswith(f"; what ran beside it is stopped, with its state saved. {again}")
    assert "Traceback" not in ended.err
    assert [one.stopped for one in handed] == [1, 0]
    assert ("warning: odd" in ended.err) == ("odd" in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all(root, project, monkeypatch, number):
    handed = put(monkeypatch, (WORKING, "", 0), (WORKING, "", 0, number))
    before = signal.getsignal(signal.SIGTERM)
    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background may ignore it
    try:
        ended = project.run("stage=train", "parallel=folds")
    finally:
        signal.signal(signal.SIGINT, own)
    assert ended.code == 130
    assert [one.stopped for one in handed] == [1, 1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines_are_shown_once_and_whole(tmp_path, capsys):
    view = launch.View(job(tmp_path), "tiny")
    view.job.log.parent.mkdir()
    board = console.Board("train", 1, None)
    for text, ended in (("train tiny fold0\n  fold0 ep", False), ("och 1\n  fold0 epoch 2", False), ("", True)):
        with view.job.log.open("a") as log:
            log.write(text)
        view.show(board, ended)
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["train tiny fold0", "  tiny fold0 epoch 1", "  tiny fold0 epoch 2"]


def test_progress_is_noted_for_the_process_that_watches(tmp_path, monkeypatch):
    path = tmp_path / "train.progress"
    monkeypatch.setattr(console, "_notes", [path])
    monkeypatch.setattr(console, "NOTE_SECONDS", 0)
    with console.progress("fold0", 7) as advance:
        advance(3)
        advance(1, "loss 0.5")
        with console.progress("validate", 2) as inner:
            inner(1)
        assert console.noted_progress(path) == ("fold0", 4, 7, "loss 0.5")
    assert console.noted_progress(path) is None


def test_the_board_draws_a_bar_a_job(monkeypatch, tmp_path):
    drawn = io.StringIO()
    monkeypatch.setattr(sys, "stderr", drawn)
    drawn.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with console.board("train", 2) as board:
        board.draw("tiny fold0", "fold0", 3, 12, "loss 0.5")
        board.draw("tiny fold1", "noise train images", 1, 32, "")
        board.bars.refresh()
        board.drop("tiny fold0")
        board.bars.refresh()
    for text in ("tiny fold0", "3/12", "loss 0.5", "noise train images", "1/2"):
        assert text in drawn.getvalue()


# --- this machine -------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A process that ends when it is told to."""

    code: int | None = None
    stdin: io.BytesIO = field(default_factory=io.BytesIO)

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9


def test_a_place_is_taken_by_the_next_job_as_soon_as_it_is_free(tmp_path, monkeypatch):
    started: list[tuple[str, dict, Child]] = []

    def start(one, environment):
        started.append((one.name[-5:], environment, Child()))
        return started[-1][-1]

    monkeypatch.setattr(orders, "start", start)
    monkeypatch.setattr(launchers, "visible_gpus", lambda: ["3", "5"])
    running = launchers.local([job(tmp_path, number, "cuda") for number in range(4)], 0, tmp_path)
    assert [one.ended() for one in running] == [None] * 4
    assert [(name, place[launchers.GPUS]) for name, place, _ in started] == [("fold0", "3"), ("fold1", "5")]
    started[1][-1].code = 0
    assert [one.ended() for one in running] == [None, 0, None, None]
    assert (started[2][0], started[2][1][launchers.GPUS]) == ("fold2", "5")
    for one in running:
        one.stop()
    assert [child.stdin.closed for _, _, child in started] == [True, True, True]
    assert running[3].ended() == launchers.INTERRUPTED, "it never began"
    assert len(started) == 3
    running[0].kill()
    assert running[0].ended() == -9


@pytest.mark.parametrize(
    ("gpus", "each", "at_once", "expected"),
    [("0 1", 1, 0, "0 1"), ("0 1", 1, 4, "0 1 0 1"), ("0 1", 2, 0, "0,1"), ("a b c", 2, 0, "a,b"), ("0 1", 1, 1, "0")],
)
def test_gpus_are_dealt_to_places(tmp_path, monkeypatch, gpus, each, at_once, expected):
    monkeypatch.setattr(launchers, "visible_gpus", gpus.split)
    places = launchers.gpu_places([job(tmp_path, number, "cuda", each) for number in range(5)], at_once)
    assert [place[launchers.GPUS] for place in places] == expected.split()


def test_more_gpus_a_job_than_there_are_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "visible_gpus", lambda: ["0"])
    with pytest.raises(UserError, match="2 GPUs, but there are 1"):
        launchers.gpu_places([job(tmp_path, 0, "cuda", 2)], 0)


@pytest.mark.parametrize(
    ("threads", "at_once", "places", "said", "warned"),
    [(1, 0, 4, "1 thread each, on 4 cores", False), (2, 0, 2, "2 threads each", False), (4, 0, 1, "shares", False),
     (4, 2, 2, "4 threads each", True), (1, 3, 3, "3 at once", False)],
)  # fmt: skip
def test_cores_are_shared_out(tmp_path, monkeypatch, capsys, threads, at_once, places, said, warned):
    monkeypatch.setattr(launchers.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    jobs = [job(tmp_path, number, threads=threads) for number in range(5)]
    assert launchers.core_places(jobs, at_once) == [{}] * places
    told = capsys.readouterr()
    assert said in told.out
    assert ("hold each other up" in told.err) == warned


# --- clusters, faked ----------------------------------------------------------------------------------------------


class Lost(Exception):
    """What the fake Ray raises."""


def fake_ray(answers: dict[str, object]) -> types.ModuleType:
    """A Ray of one node with two GPUs, whose tasks answer by their name; what they asked for is kept in ``asked``."""
    module = types.ModuleType("ray")
    module.asked, module.cancelled = {}, []

    class Remote:
        def options(self, **options):
            self.of = options
            return self

        def remote(self, one):
            module.asked[one.name] = self.of
            return one.name

    def get(name):
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]

    module.exceptions = types.SimpleNamespace(TaskCancelledError=KeyError, RayError=Lost)
    module.is_initialized = lambda: True
    module.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}]
    module.cluster_resources = lambda: {"CPU": 4.0, "GPU": 2.0}
    module.remote = lambda function: Remote()
    module.wait = lambda tasks, timeout: (tasks, []) if answers[tasks[0]] is not None else ([], tasks)
    module.get = get
    module.cancel = lambda task, force: module.cancelled.append((task, force))
    return module


def test_ray_tasks_ask_for_what_a_member_needs(tmp_path, monkeypatch, capsys):
    library = fake_ray({"train tiny fold0": 0, "train tiny fold1": None, "train tiny fold2": Lost("worker died\nx")})
    monkeypatch.setitem(sys.modules, "ray", library)
    jobs = [job(tmp_path, 0, "cuda"), job(tmp_path, 1, "cpu", threads=8), job(tmp_path, 2, "auto")]
    running = launchers.ray(jobs, 0, tmp_path, retries=5)
    needs = [(one["num_gpus"], one["num_cpus"], one["max_retries"]) for one in library.asked.values()]
    assert needs == [(1, 1, 5), (0, 8, 5), (1, 1, 5)]
    told = capsys.readouterr()
    assert "3 Ray tasks, on 1 node with 4 CPUs and 2 GPUs" in told.out
    assert "train tiny fold1 needs" in told.err, "no node has eight cores"
    assert [running[0].ended(), running[1].ended()] == [0, None]
    with pytest.raises(UserError, match=r"train tiny fold2 was lost by Ray \(Lost: worker died\)"):
        running[2].ended()
    running[1].stop()
    assert library.cancelled == [("train tiny fold1", False)]


class Array:
    """submitit's executor, which keeps what it was asked for."""

    last: Array

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.jobs = folder, cluster, []
        Array.last = self

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def batch(self):
        return contextlib.nullcontext()

    def submit(self, call, one):
        self.jobs.append(
            types.SimpleNamespace(
                job_id=f"7_{len(self.jobs)}", done=lambda force_check: True, result=lambda: 0, cancelled=0
            )
        )
        self.jobs[-1].cancel = lambda check, own=self.jobs[-1]: setattr(own, "cancelled", own.cancelled + 1)
        return self.jobs[-1]


def test_slurm_submits_an_array(tmp_path, monkeypatch, capsys):
    failed = types.SimpleNamespace(FailedJobError=Lost)
    library = types.SimpleNamespace(AutoExecutor=Array, core=types.SimpleNamespace(utils=failed))
    monkeypatch.setitem(sys.modules, "submitit", library)
    call = "slurm(partition='gpu', minutes=90, memory_gb=16, options=['qos=low', '--nice=5'])"
    running = settings.registry.build("launchers", call)([job(tmp_path, k, "auto") for k in range(3)], 2, tmp_path)
    assert Array.last.parameters == {
        "name": "pipeline", "timeout_min": 90, "cpus_per_task": 4, "stderr_to_stdout": True, "gpus_per_node": 1,
        "mem_gb": 16, "slurm_partition": "gpu", "slurm_additional_parameters": {"qos": "low", "nice": "5"},
        "slurm_array_parallelism": 2,
    }  # fmt: skip
    monkeypatch.setattr(launchers, "LOOK_SECONDS", 0)
    assert "3 Slurm jobs, 7" in capsys.readouterr().out
    assert running[0].ended() == 0
    running[1].stop()
    assert (running[1].ended(), Array.last.jobs[1].cancelled) == (launchers.INTERRUPTED, 1)
    launchers.slurm([job(tmp_path)], 0, tmp_path)
    assert "gpus_per_node" not in Array.last.parameters, "device=cpu"


def test_on_a_cluster_the_machine_that_begins_a_run_decides_its_format(root, project, monkeypatch):
    """The one that submits has, perhaps, no GPU."""
    seen = []

    def cluster(jobs, at_once, folder, *, retries=3):
        seen.append((root / "runs/noise/tiny/config.yaml").exists())
        return [Fake(one) for one in jobs]

    monkeypatch.setattr(launchers, "ray", cluster)
    monkeypatch.setattr(launch, "check_library", lambda _: None)
    assert project.run("stage=train", "launcher=ray", "epochs=1").code == 0
    assert seen == [False]
    threads = "stage=train", "launcher=ray", "epochs=1", "fold=0"
    (root / "runs/noise/tiny/fold0/train.json").unlink()
    assert project.run(*threads).code == 0
    assert seen == [False, True]


def test_what_predicts_where_the_command_runs_says_that_the_device_is_missing(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"device=cuda, .* which this machine has not"):
        hardware.start(hardware.Hardware("cuda", "fp16", "fp16", 1))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("jobs=2",), "jobs=2 members side by side need parallel=folds"),
        (("launcher=slurm", "device=cuda:1"), "set device=cuda"),
        (("launcher=ray", "jobs=2"), "the cluster decides"),
        (("launcher=slrm",), "did you mean slurm?"),
        (("parallel=models",), "parallel is one of none, folds"),
        (("launcher=slurm(hours=3)",), "no argument 'hours'"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_work(project, words, message):
    ended = project.run("stage=train", *words)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize("launcher", ["ray", "slurm"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(project, monkeypatch, launcher):
    library = {"ray": "ray", "slurm": "submitit"}[launcher]
    monkeypatch.setitem(sys.modules, library, None)
    ended = project.run("stage=train", f"launcher={launcher}")
    assert ended.code == 2
    assert f"pip install -c constraints.txt {library}" in ended.err


def test_a_process_that_loses_its_starter_stops(tmp_path):
    """Closing its standard input is how it is asked to stop, and what happens when its starter dies."""
    code = (
        "import time; from pipeline import member\n"
        "try: member.heed(); print('up', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, cwd=small.SOURCE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.stdin.close()
        assert process.stdout.read() == "stopped\n"
