"""Report: one HTML file with all that is known of a competition's runs; it needs nothing from outside.

The leaderboard of runs and level 2, learning curves, folds, answers beside the truth, calibration, the worst mistakes
as pictures, suspicious labels, gains of views, weights and likeness of members, pseudo-labels, CV against leaderboard,
looks at the solution. Nothing is trained or predicted. ``run=`` names the run that is looked at closely.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from pipeline import artefacts
from pipeline.artefacts import shown
from pipeline.config import Config, flatten
from pipeline.console import Outcome, say
from pipeline.errors import UserError, nearest
from pipeline.report.facts import Facts, run_names
from pipeline.report.sections import document

VERSION = 1  # raise it when the same files must give another page
PAGE, RECORD = "report.html", "report.json"
READ = (
    "*/config.yaml", "*/status.json", "*/labels-r*.csv", "*/f*/log.csv", "*/f*/train.json", "*/f*/predict.json",
    "*/fold*/oof.npz", "*/fold*/oof_views.npz", "level2/*/level2.json", "level2/*/stack.json", "level2/*/nested.npz",
)  # fmt: skip


def run(config: Config) -> list[Outcome]:
    """Write runs/<competition>/report.html."""
    began = time.perf_counter()
    names = run_names(config)
    if not names:
        raise UserError(
            f"{shown(artefacts.runs_folder(config))} has no run yet; make one: ./run.sh recipe=quick "
            f"competition={config.competition}"
        )
    if config.run and config.run not in names:
        raise UserError(f"run={config.run}, but the runs are {', '.join(names)}{nearest(config.run, names)}")
    facts, folder = Facts(config), artefacts.runs_folder(config)
    path, record, print_ = folder / PAGE, folder / RECORD, fingerprint(facts)
    known = None if config.overwrite else artefacts.finished(record, print_, path)
    if known is None:
        record.unlink(missing_ok=True)
        text = document(facts)
        artefacts.write_text(path, text)
        known = artefacts.finish(record, print_, size=len(text.encode()), problems=facts.problems)
        reused = False
    else:
        reused = True
    return [outcome(names, path, known, time.perf_counter() - began, reused)]


def outcome(names: list[str], path: Any, known: dict[str, Any], seconds: float, reused: bool) -> Outcome:
    """What is said of the page."""
    for name, why in known["problems"].items():
        say(f"  {name} has no score: {why}")
    size = f"{known['size'] / 1e6:.1f} MB"
    say(f"{shown(path)}: {len(names)} runs, {size}; open it in a browser, it needs nothing else")
    return Outcome("report", seconds=seconds, note=f"{shown(path)}, {len(names)} runs, {size}", reused=reused)


def fingerprint(facts: Facts) -> str:
    """What the page depends on: all files that it reads, and the settings that it asks."""
    config, folder = facts.config, artefacts.runs_folder(facts.config)
    files = sorted(
        path
        for pattern in READ
        for path in folder.glob(pattern)
        if not path.relative_to(folder).parts[0].startswith(".")
    )
    outside = artefacts.submissions_folder(config)
    files += sorted([*outside.glob("*.json"), *outside.glob("looks.csv")])
    digests = {shown(path): artefacts.file_digest(path) for path in files}
    weights = sorted(shown(path) for path in folder.glob("*/f*/best.ckpt"))  # whose content train.json speaks for
    settings = {key: value for key, value in flatten(config).items() if key.startswith(("report.", "mine."))}
    asked = (config.run, config.stack.name, config.task, config.metric, config.models, settings)
    cleaning = importlib.util.find_spec("cleanlab") is not None
    data = (facts.competition.fingerprint, facts.folds.tolist())
    return artefacts.fingerprint("report", VERSION, digests, weights, asked, cleaning, data)
