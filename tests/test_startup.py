"""Python looks rarely for garbage while a command imports, and as ever once its work begins."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import small_training as small

from pipeline import startup


def test_thresholds_come_back_once():
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        startup.imported()  # nothing to end: as in a notebook, whose thresholds are its own
        assert gc.get_freeze_count() == frozen
        startup.importing()
        assert gc.get_threshold() == (startup.OBJECTS, *before[1:])
        startup.imported()
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() > frozen
        startup.imported()
        assert gc.get_threshold() == before
    finally:
        gc.unfreeze()


SPY = """
import gc, runpy, sys
from pipeline import engine
class Stop(SystemExit): ...
def first(*_):
    print(gc.get_threshold(), gc.get_freeze_count() > 100_000)
    raise Stop
engine._optimizer_step = first
sys.argv = ["pipeline", *sys.argv[1:]]
runpy.run_module("pipeline", run_name="__main__")
"""


def test_the_first_step_is_behind_it(project):
    small.write(project.root)
    command = [sys.executable, "-c", SPY, "stage=train", "fold=0", "run=first"]
    environment = {**os.environ, "PIPELINE_ROOT": str(project.root)}
    ended = subprocess.run(command, cwd=small.SOURCE, env=environment, text=True, capture_output=True, check=False)
    assert f"{gc.get_threshold()} True" in ended.stdout, ended.stderr
