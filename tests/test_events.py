"""What a command says: lines, a table at the end, and the same as data in log.jsonl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

from pipeline import console, events
from pipeline.console import Outcome
from pipeline.errors import UserError


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log_of(project: Project) -> list[dict[str, Any]]:
    return read(project.root / "runs/digits/log.jsonl")


def test_a_command_is_logged_from_start_to_end(project: Project) -> None:
    answer = project.run("stage=split", "folds.count=3")
    lines = log_of(project)
    assert next(line["event"] for line in lines) == "start"
    assert lines[-1]["event"] == "end"
    assert lines[0]["arguments"] == {"stage": "split", "folds.count": "3"}
    assert lines[-1]["fault"] == ""
    told = [line["text"] for line in lines if line["event"] == "line"]
    assert told
    assert all(text in answer.out for text in told)
    assert {line["stage"] for line in lines[1:-1]} == {"split"}
    assert [line["step"] for line in lines if line["event"] == "outcome"] == ["split"]
    project.run("stage=split", "folds.count=3")
    assert log_of(project)[: len(lines)] == lines  # only ever appended to
    assert sum(line["event"] == "start" for line in log_of(project)) == 2


def test_quiet_leaves_the_table_and_the_log(project: Project) -> None:
    project.run("stage=split")
    said = [line["text"] for line in log_of(project) if line["event"] == "line"]
    (project.root / "folds/digits.csv").unlink()
    answer = project.run("stage=split", "quiet=true")
    assert answer.code == 0
    assert answer.out.split("\n")[1].startswith("step")
    assert "split" in answer.out
    assert answer.out.count("step ") == 1
    assert not any(text in answer.out for text in said)
    assert [line["text"] for line in log_of(project) if line["event"] == "line"][len(said) :] == said[1:]


def test_a_fault_before_anything_was_said_leaves_no_log(project: Project) -> None:
    assert project.run("stage=submit", "quiet=maybe").code == 2
    assert project.run("stage=nothing").code == 2
    assert not (project.root / "runs").exists()


def test_a_fault_is_the_end_of_the_log(project: Project) -> None:
    project.run("stage=split")
    assert project.run("stage=submit", "source=none").code == 2
    assert "UserError: source=none" in log_of(project)[-1]["fault"]


def test_warnings_are_logged_and_shown_though_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    with console.command(True, path, {}), events.about("train"):
        console.say("  fold0 epoch 1", figures={"loss": 0.5})
        console.warn("näher an der Grenze")
        rows = [Outcome("train", "one")]
        console.close(rows)
        console.close(rows)
    shown = capsys.readouterr()
    assert shown.err == "warning: näher an der Grenze\n"
    assert shown.out.count("one") == 1
    assert "epoch" not in shown.out
    lines = read(path)
    assert [line["event"] for line in lines] == ["start", "line", "warning", "outcome", "end"]
    assert lines[1]["figures"] == {"loss": 0.5}
    assert lines[1]["stage"] == "train"
    assert lines[2]["text"][0] == "n"


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with console.command(False, tmp_path / "runs/log.jsonl", {}):
        console.say("still there")
    with pytest.raises(UserError), console.command(False, tmp_path / "new/log.jsonl", {}):
        raise UserError("nothing was said")
    assert not (tmp_path / "new").exists()


def test_a_command_whose_reader_leaves_ends_without_a_word(project: Project) -> None:
    command = [sys.executable, "-m", "pipeline", "help", "config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate()
    assert (process.returncode, said) == (141, b"")
