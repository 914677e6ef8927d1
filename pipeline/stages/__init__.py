"""One file a stage: ``run(config)`` reads top to bottom as the step it is; its first docstring line is its help."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pipeline import artefacts, budget, console, events, launch
from pipeline.config import Config, compose
from pipeline.console import Outcome
from pipeline.errors import UserError, nearest


def names() -> list[str]:
    """The stages there are: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def check_name(name: str) -> None:
    """Raise UserError, with the nearest right name, unless there is such a stage."""
    if name not in names():
        raise UserError(f"stage={name}, but the stages are {', '.join(names())}{nearest(name, names())}")


def perform(arguments: dict[str, str], alone: bool = True) -> list[Outcome]:
    """Do what a command's arguments ask for: settle the config, run the stage, and log what it says.

    alone: the process is for this command, whose budget begins with it, and whose closing table is printed; else a
    notebook calls, which may be hours old, and shows what is returned.
    """
    check_name(arguments.get("stage", "all"))
    config = compose(arguments)
    budget.begin(config.budget, since_start=alone)
    log = None if config.name else artefacts.runs_folder(config) / events.NAME  # name: of one that is not there yet
    try:
        with console.command(config.quiet, log, config.arguments, tables=alone):
            outcomes = run_stage(config)
            if config.quiet:
                console.close(outcomes)
    finally:
        budget.begin("")  # another command of this process has its own
    return outcomes


def run_stage(config: Config) -> list[Outcome]:
    """Run the config's stage; only its module is imported."""
    launch.check_library(config)
    with events.about(config.stage):
        outcomes: list[Outcome] = _module(config.stage).run(config)
        console.note(outcomes)
    return outcomes


def go_together(first: Config, second: Config) -> bool:
    """Whether two steps are of one stage that can work on the members of several runs side by side, and should."""
    alike = first.stage == second.stage and launch.side_by_side(first)
    return alike and hasattr(_module(first.stage), "together")


def run_together(configs: list[Config]) -> list[Outcome]:
    """Run one stage for several runs at once."""
    with events.about(configs[0].stage):
        outcomes: list[Outcome] = _module(configs[0].stage).together(configs)
        console.note(outcomes)
    return outcomes


def _module(name: str) -> Any:
    check_name(name)
    return importlib.import_module(f"pipeline.stages.{name}")
