"""Find a batch size: the speed of training at powers of two up to memory; the config is left as it is."""

from __future__ import annotations

import math
import os
import platform
import time
from typing import Any

from pipeline import advice, artefacts
from pipeline.artefacts import shown
from pipeline.competition import load
from pipeline.config import Config, scoped
from pipeline.console import Outcome, say
from pipeline.folds import ensure_folds
from pipeline.runs import Run
from pipeline.stages.find_lr import command

FEW_STEPS = 500  # optimizer steps of a whole training; with fewer a fast batch learns too little
WITHOUT = ("lr", "batch_size", "epochs", "schedule", "average", "select", "metric", "seed", "train.patience")


def run(config: Config) -> list[Outcome]:
    """Write find_batch.json into the run's folder, and print the speeds and the smallest batch that is fast."""
    began = time.perf_counter()
    ensure_folds(config, load(config))
    run = Run(config, artefacts.run_name(config))
    record = run.folder / "find_batch.json"
    settings = {key: value for key, value in scoped(config, "run").items() if key not in WITHOUT}
    machine = (config.device, platform.node(), os.cpu_count())  # a speed is a machine's own
    print_ = artefacts.fingerprint(settings, run.inputs(), machine)
    facts = None if config.overwrite else artefacts.finished(record, print_)
    reused = facts is not None
    if facts is None:
        say(f"find_batch {run.name}")
        facts = artefacts.finish(record, print_, **search(run))
    for line in report(facts, config):
        say(line)
    chosen = facts["chosen"]
    say(f"  {shown(record)}; to use it: {command(config, f'batch_size={chosen}')}")
    if hint := advice.small_images(config):
        say(f"  {hint}")
    note = f"batch_size={chosen}"
    return [Outcome("find_batch", run.name, seconds=time.perf_counter() - began, note=note, reused=reused)]


def search(run: Run) -> dict[str, Any]:
    """The speeds and the choice, as plain values."""
    from pipeline import ranges

    speeds, rows, ended = ranges.batch_range(run)
    facts = {"chosen": ranges.knee(speeds).batch, "rows": rows, "ended": ended}
    return {**facts, "speeds": [vars(speed) for speed in speeds]}


def report(facts: dict[str, Any], config: Config) -> list[str]:
    """The table: a line a batch size, with the lr that the config's would become by two rules of thumb."""
    lines = [f"  {'batch':>6}  {'images/s':>9}  {'ms a step':>9}  {'lr, linear':>10}  {'lr, sqrt':>9}"]
    for speed in facts["speeds"]:
        ratio = speed["batch"] / config.batch_size
        mark = "  ← the smallest within a tenth of the fastest" if speed["batch"] == facts["chosen"] else ""
        lines.append(
            f"  {speed['batch']:>6}  {speed['images_per_second']:>9.0f}  {speed['milliseconds']:>9.1f}"
            f"  {config.lr * ratio:>10.1e}  {config.lr * math.sqrt(ratio):>9.1e}{mark}"
        )
    return [
        *lines,
        f"  ended: {facts['ended']}",
        *few_steps(facts, config),
        f"  lr={config.lr:g} is for batch_size={config.batch_size}; another batch wants another lr: linear suits SGD "
        "(Goyal et al. 2017), sqrt Adam and its kin (Malladi et al. 2022); stage=find_lr looks for it",
    ]


def few_steps(facts: dict[str, Any], config: Config) -> list[str]:
    """A word of caution where the fast batch leaves few optimizer steps, since epochs do not grow with it."""
    steps = config.epochs * max(1, facts["rows"] // facts["chosen"])
    if steps >= FEW_STEPS or facts["chosen"] <= config.batch_size:
        return []
    return [
        f"  but batch {facts['chosen']} leaves {steps} steps in {config.epochs} epochs of {facts['rows']} rows: fast "
        "is not good; take a smaller one, or more epochs"
    ]
