"""One file a stage: ``run(config)`` reads top to bottom as the step it is; its first docstring line is its help."""

from __future__ import annotations

import importlib
from pathlib import Path

from pipeline.config import Config
from pipeline.console import Outcome
from pipeline.errors import UserError, nearest


def names() -> list[str]:
    """The stages there are: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def check_name(name: str) -> None:
    """Raise UserError, with the nearest right name, unless there is such a stage."""
    if name not in names():
        raise UserError(f"stage={name}, but the stages are {', '.join(names())}{nearest(name, names())}")


def run_stage(config: Config) -> list[Outcome]:
    """Run the config's stage; only its module is imported."""
    check_name(config.stage)
    outcomes: list[Outcome] = importlib.import_module(f"pipeline.stages.{config.stage}").run(config)
    return outcomes
