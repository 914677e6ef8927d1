"""Trackers: the numbers of log.csv beside it, one run a member through kills, and no training that stops for one."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import small_training
from conftest import Project

TRAIN = ("stage=train", "fold=0", "train.checkpoint_seconds=0")


class Told:
    """What the stand-ins of both libraries were told: runs by id; breaks: raised at the epoch of that number."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.begun: list[str] = []
        self.breaks: dict[int, BaseException] = {}

    def begin(self, id: str, settings: dict[str, Any], name: str) -> str:
        self.begun.append(id)
        id = id or f"run{len(self.runs)}"
        self.runs.setdefault(id, {"name": name, "settings": settings, "rows": {}, "facts": {}, "ended": 0})
        return id

    def log(self, id: str, row: dict[str, float], step: int) -> None:
        if step in self.breaks:
            raise self.breaks.pop(step)
        self.runs[id]["rows"].setdefault(step, {}).update(row)

    def end(self, id: str) -> None:
        self.runs[id]["ended"] += 1


def fake_wandb(told: Told) -> types.ModuleType:
    def init(**given: Any) -> Any:
        id = told.begin(given["id"] or "", given["config"], given["name"])
        assert given["resume"] == "allow"
        return types.SimpleNamespace(
            id=id, log=lambda row, step: told.log(id, row, step), finish=lambda: told.end(id),
            summary=types.SimpleNamespace(update=told.runs[id]["facts"].update),
        )  # fmt: skip

    module = types.ModuleType("wandb")
    vars(module).update(init=init, login=lambda prompt: True, Settings=dict)
    return module


def fake_mlflow(told: Told) -> types.ModuleType:
    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            assert tracking_uri.endswith("/runs/mlflow"), tracking_uri

        def get_experiment_by_name(self, name: str) -> None:
            assert name == "noise"

        def create_experiment(self, name: str) -> str:
            return name

        def create_run(self, experiment: str, run_name: str) -> Any:
            id = told.begin("", {}, run_name)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=id))

        def log_param(self, id: str, key: str, value: str) -> None:
            told.runs[id]["settings"][key] = value

        def log_metric(self, id: str, key: str, value: float, step: int | None = None) -> None:
            if step is None:
                told.runs[id]["facts"][key] = value
            else:
                told.log(id, {key: value}, step)

        def set_terminated(self, id: str, status: str = "FINISHED") -> None:
            told.begun.append(id) if status == "RUNNING" else told.end(id)

    module = types.ModuleType("mlflow.tracking")
    vars(module).update(MlflowClient=MlflowClient)
    return module


@pytest.fixture(params=["wandb", "mlflow"])
def tracked(request: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Told]:
    """The name of a tracker whose library is a stand-in, and what that is told."""
    told, name = Told(), request.param
    modules = {"wandb": {"wandb": fake_wandb}, "mlflow": {"mlflow": fake_mlflow, "mlflow.tracking": fake_mlflow}}
    for place, make in modules[name].items():
        module = make(told)
        module.__spec__ = ModuleSpec(place, None)
        monkeypatch.setitem(sys.modules, place, module)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return name, told


@pytest.fixture
def noise(project: Project) -> Project:
    small_training.write(project.root, rows=16)
    return project


def logged(project: Project) -> dict[int, dict[str, float]]:
    """log.csv of fold 0, by epoch."""
    with (project.root / "runs/noise/tiny/fold0/log.csv").open() as file:
        return {int(row["epoch"]): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}


def test_a_tracker_has_the_numbers_of_the_log_the_settings_and_the_final_score(noise: Project, tracked) -> None:
    name, told = tracked
    result = noise.run(*TRAIN, f"tracker={name}")
    assert result.code == 0, result.err
    (run,) = told.runs.values()
    assert run["name"] == "noise/tiny/fold0"
    assert run["rows"] == logged(noise)
    assert float(run["settings"]["lr"]) == 3e-3
    record = json.loads((noise.root / "runs/noise/tiny/fold0/train.json").read_text())
    assert run["facts"]["final"] == record["scores"][-1]
    assert run["ended"] == len(told.begun) == 2, "the training, and what came of it"
    assert list((noise.root / "runs/noise/tiny/fold0/tensorboard").iterdir())


def test_a_training_that_goes_on_goes_on_with_its_trackers_run(noise: Project, tracked) -> None:
    name, told = tracked
    told.breaks[2] = KeyboardInterrupt()
    assert noise.run(*TRAIN, f"tracker={name}").code == 130
    assert noise.run(*TRAIN, f"tracker={name}").code == 0
    assert [run["rows"].keys() for run in told.runs.values()] == [{1, 2, 3}]
    assert told.begun == ["", "run0", "run0"]


def test_a_tracker_named_later_is_told_what_it_missed(noise: Project, tracked) -> None:
    name, told = tracked
    told.breaks[2] = KeyboardInterrupt()
    noise.run(*TRAIN, f"tracker={name}")
    (noise.root / "runs/noise/tiny/fold0/tracker.json").unlink()
    noise.run(*TRAIN, f"tracker={name}")
    assert told.runs["run1"]["rows"] == logged(noise)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_tracker_that_fails_warns_once_and_stops_nothing(noise: Project, tracked, epoch: int) -> None:
    name, told = tracked
    told.breaks[epoch] = ConnectionError("no route to https://me:password@host/x")
    result = noise.run(*TRAIN, f"tracker={name}")
    assert result.code == 0
    assert result.err.count("warning: ") == 1
    assert f"tracker={name} failed (ConnectionError: no route to https://host/x); fold0 goes on" in result.err
    assert list(logged(noise)) == [1, 2, 3]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_told_before_any_work(noise: Project, monkeypatch, name: str) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked, *more: None if asked == name else there(asked, *more)
    )
    result = noise.run(*TRAIN, f"tracker={name}()")
    assert result.code == 2
    assert f"tracker={name}() needs {name}; install it: .venv/bin/pip install -c constraints.txt {name}" in result.err
    assert not (noise.root / "runs/noise/tiny").exists()


def test_the_library_itself_takes_it_without_a_network_wandb(noise: Project, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "SECRET" * 7)
    result = noise.run(*TRAIN, "tracker=wandb(project_name='p')")
    assert (result.code, result.err) == (0, "")
    folder = noise.root / "runs/noise/tiny/fold0"
    id = json.loads((folder / "tracker.json").read_text())["id"]
    files = b"".join(path.read_bytes() for path in folder.glob(f"wandb/offline-run-*-{id}/*.wandb"))
    assert b"score" in files
    assert b"final" in files
    held = [path for path in noise.root.rglob("*") if path.is_file() and b"SECRETSECRET" in path.read_bytes()]
    assert held == [], "credentials stay where they are"


def test_the_library_itself_takes_it_in_a_folder_mlflow(noise: Project, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = noise.run(*TRAIN, "tracker=mlflow()")
    assert (result.code, "failed" in result.err) == (0, False), result.err
    id = json.loads((noise.root / "runs/noise/tiny/fold0/tracker.json").read_text())["id"]
    (place,) = (noise.root / "runs/mlflow").glob(f"*/{id}/metrics")
    rows = [line.split() for line in (place / "score").read_text().splitlines()]
    assert {int(step): float(value) for _, value, step in rows} == pytest.approx(
        {epoch: row["score"] for epoch, row in logged(noise).items()}
    )
    assert (place / "final").exists()
    assert Path(place.parent / "params/lr").read_text() == "0.003"
