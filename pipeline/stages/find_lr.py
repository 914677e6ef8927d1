"""Find a learning rate: a range test in seconds to minutes, drawn as a curve; the config is left as it is."""

from __future__ import annotations

import shlex
import time
from typing import Any

from pipeline import artefacts
from pipeline.artefacts import shown
from pipeline.competition import load
from pipeline.config import Config, scoped
from pipeline.console import Outcome, say, warn
from pipeline.folds import ensure_folds
from pipeline.runs import Run

WITHOUT = ("lr", "epochs", "schedule", "average", "select", "metric", "train.patience")  # the curve is the same


def run(config: Config) -> list[Outcome]:
    """Write find_lr.png and find_lr.json into the run's folder, and print what the curve suggests."""
    began = time.perf_counter()
    ensure_folds(config, load(config))
    run = Run(config, artefacts.run_name(config))
    record, picture = run.folder / "find_lr.json", run.folder / "find_lr.png"
    settings = {key: value for key, value in scoped(config, "run").items() if key not in WITHOUT}
    print_ = artefacts.fingerprint(settings, run.inputs(), config.device)
    facts = None if config.overwrite else artefacts.finished(record, print_, picture)
    reused = facts is not None
    if facts is None:
        from pipeline import plots

        say(f"find_lr {run.name}")
        facts = search(run)
        marks = {name: facts["suggested"][key] for key, name in MARKS.items() if key in facts["suggested"]}
        plots.range_test(title(config), facts["rates"], facts["losses"], facts["smooth"], marks, picture)
        artefacts.finish(record, print_, **facts)
    for line in report(facts):
        say(line)
    say(f"  {shown(picture)}: look at it")
    chosen = choice(facts["suggested"])
    if chosen:
        say(f"  to use it: {command(config, f'lr={chosen}')}")
    else:
        warn("the loss fell nowhere on the way, so nothing is suggested; ./run.sh stage=sanity looks for the cause")
    note = f"lr={chosen}" if chosen else "no suggestion"
    return [Outcome("find_lr", run.name, seconds=time.perf_counter() - began, note=note, reused=reused)]


MARKS = {"safe": "a tenth of the lowest", "steepest": "steepest", "lowest": "lowest loss"}


def search(run: Run) -> dict[str, Any]:
    """The range test and its reading, as plain values."""
    from pipeline import ranges

    curve = ranges.lr_range(run)
    return {
        "suggested": ranges.suggestion(curve),
        "diverged": curve.diverged,
        "rates": curve.rates.tolist(),
        "losses": curve.losses.tolist(),
        "smooth": curve.smooth.tolist(),
    }


def title(config: Config) -> str:
    """What was tested."""
    return f"{config.backbone} · {config.optim} · {config.loss} · batch {config.batch_size}"


def report(facts: dict[str, Any]) -> list[str]:
    """The short table: each point's learning rate, and the smoothed loss there."""
    rates, smooth = facts["rates"], facts["smooth"]
    end = "until the loss ran away" if facts["diverged"] else "and the loss did not run away"
    lines = [f"  {len(rates)} steps, lr {rates[0]:.0e} to {rates[-1]:.0e}, {end}", f"  {'lr':<9}{'loss':<9}point"]
    for key, name in MARKS.items():
        if key in facts["suggested"]:
            rate = facts["suggested"][key]
            nearest = min(range(len(rates)), key=lambda step: abs(rates[step] / rate - 1))
            lines.append(f"  {rate:<9.1e}{smooth[nearest]:<9.4f}{name}")
    return lines if len(lines) > 2 else lines[:1]


def choice(suggested: dict[str, float]) -> str:
    """The lower of the two suggestions, rounded to one digit; empty if there is none."""
    return f"{min(suggested['steepest'], suggested['safe']):.0e}".replace("e-0", "e-") if suggested else ""


def command(config: Config, *words: str) -> str:
    """The training command with the arguments as they were typed, and these."""
    given = {key: text for key, text in config.arguments.items() if key not in ("stage", "overwrite", "debug")}
    changed = {word.partition("=")[0] for word in words}
    kept = [f"{key}={text}" for key, text in given.items() if key not in changed]
    return shlex.join(["./run.sh", "stage=train", *kept, *words])
