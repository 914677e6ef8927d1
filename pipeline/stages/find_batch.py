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
    """Write find_batch.json into the run's folder, and print the speeds and the batch to use."""
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
    chosen = sensible(facts, config)
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


def steps(facts: dict[str, Any], config: Config, batch: int) -> int:
    """Optimizer steps of a whole training with this batch size."""
    return config.epochs * max(1, math.ceil(facts["rows"] // batch / config.train.accumulate))


def sensible(facts: dict[str, Any], config: Config) -> int:
    """The chosen batch size, or the largest measured below it that leaves FEW_STEPS steps; if none, the config's."""
    chosen = int(facts["chosen"])
    if config.train.seconds:  # the steps are up to the clock
        return chosen
    sizes = [speed["batch"] for speed in facts["speeds"] if speed["batch"] <= chosen]
    enough = [size for size in sizes if steps(facts, config, size) >= FEW_STEPS]
    return max(enough, default=min(chosen, config.batch_size))


def few_steps(facts: dict[str, Any], config: Config) -> list[str]:
    """A word of caution where the fast batch leaves few optimizer steps, since epochs do not grow with it."""
    left, taken = steps(facts, config, facts["chosen"]), sensible(facts, config)
    if config.train.seconds or left >= FEW_STEPS:
        return []
    told = (
        f"  but batch {facts['chosen']} leaves {left} steps in {config.epochs} epochs of {facts['rows']} rows: fast is "
    )
    if steps(facts, config, taken) >= FEW_STEPS:
        return [told + f"not good; take {taken}, or more epochs"]
    return [told + f"not good, and no batch leaves {FEW_STEPS}: take more epochs"]
