"""A temporary project, so that no test sees the runs and configs of the tree it lies in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import pipeline  # noqa: F401  (sets the environment before any test imports torch)

SOURCE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Result:
    """What a command ended with."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A project folder of its own: ``root`` holds a copy of ``configs/``, and what the stages write."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str) -> Result:
        """Run one command line in this process, such as ``run("stage=split", "folds.count=3")``."""
        from pipeline.__main__ import main

        self.capsys.readouterr()
        code = main(list(words))
        return Result(code, *self.capsys.readouterr())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """An empty project with this tree's configs; PIPELINE_ROOT points to it."""
    root = tmp_path / "project"
    shutil.copytree(SOURCE / "configs", root / "configs")
    monkeypatch.setenv("PIPELINE_ROOT", str(root))
    return Project(root, capsys)
