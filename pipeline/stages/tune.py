"""Tune: a search for settings with Optuna, short trainings first and the best again for longer; writes a model YAML.

Trials are scored on the own rows of ``tune.folds``, so the OOF of what comes out is optimistic there: the YAML says so
(``tuned:``), and the tables of every run that is made with it. Several processes may run the same command at once.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from pipeline import artefacts, evaluate, spaces
from pipeline.artefacts import shown
from pipeline.competition import load
from pipeline.config import Config, root
from pipeline.console import Outcome, say
from pipeline.errors import UserError, some
from pipeline.folds import ensure_folds
from pipeline.runs import Run
from pipeline.spaces import Space
from pipeline.study import Study, optuna
from pipeline.tuned import PICTURES, Found, ranked

FOLDER = "tune"
WITHOUT = ("epochs", "select", "train.patience")  # a trial has its own
FILES = ("trials.csv", *PICTURES)


def run(config: Config) -> list[Outcome]:
    """Search, and write configs/model/<name>.yaml with the best settings; goes on where it was killed."""
    began = time.perf_counter()
    space = spaces.read(config)
    fixed = space.grid(config.tune.trials) if config.tune.method == "grid" else []
    optuna()
    ensure_folds(config, load(config))
    run = Run(config, artefacts.run_name(config))
    check_folds(run)
    name = artefacts.safe_name(config.tune.name or f"{run.name}-tuned", "tune.name")
    folder = artefacts.runs_folder(config) / FOLDER / name
    written, record = root() / "configs/model" / f"{name}.yaml", folder / "tune.json"
    print_ = settle(run, folder, space, fixed)
    outputs = [written, *(folder / file for file in FILES)]
    facts = None if config.overwrite else artefacts.finished(record, print_, *outputs)
    reused = facts is not None
    if facts is None:
        check_free(config, written, record)
        coarse, fine = search(run, folder, space, fixed)
        with artefacts.locked(folder):
            facts = artefacts.finished(record, print_, *outputs)  # another process may have been first
            facts = facts or finish(run, folder, written, record, print_, coarse, fine)
    for line in facts["lines"]:
        say(line)
    say(f"  to use it: ./run.sh stage=train competition={config.competition} model={name}")
    return [Outcome("tune", name, seconds=time.perf_counter() - began, note=facts["note"], reused=reused)]


def check_folds(run: Run) -> None:
    """The folds asked for are there."""
    wrong = [fold for fold in run.config.tune.folds if fold >= run.count]
    if wrong or len(set(run.config.tune.folds)) < len(run.config.tune.folds):
        raise UserError(f"tune.folds={some(run.config.tune.folds)}, but the folds are 0–{run.count - 1}, each once")


def check_free(config: Config, written: Path, record: Path) -> None:
    """Never write over a model YAML that this search did not write."""
    if config.overwrite or not written.exists():
        return
    mine = artefacts.read_json(record).get("digest") if record.exists() else None
    if mine != artefacts.file_digest(written):
        raise UserError(
            f"{shown(written)} exists and this search did not write it as it is; choose tune.name=NAME, or replace it "
            "with overwrite=true"
        )


def settle(run: Run, folder: Path, space: Space, fixed: list[dict[str, Any]]) -> str:
    """Write what defines the search, or make sure that it has not changed; returns the result's fingerprint."""
    config, tune = run.config, run.config.tune
    settings = {key: value for key, value in run.settings().items() if key not in WITHOUT}
    content = {
        "settings": settings, "inputs": run.inputs(), "metric": config.metric, "space": space.texts,
        "tune": {"method": tune.method, "prune": tune.prune, "coarse_epochs": tune.coarse_epochs, "folds": tune.folds,
                 "grid": len(fixed)},
    }  # fmt: skip
    search_file = folder / "search.json"
    with artefacts.locked(folder):
        if config.overwrite:
            for old in (path for path in folder.iterdir() if path.name != ".lock"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        before = artefacts.read_json(search_file) if search_file.exists() else content
        if before != content:
            raise UserError(
                f"the search {folder.name} was begun with other settings ({some(differences(before, content), 8)}); "
                f"name a new one, tune.name={folder.name}-2, or replace this one, overwrite=true"
            )
        artefacts.write_json(search_file, content)
    return artefacts.fingerprint(content, tune.trials, tune.fine_trials, tune.fine_epochs)


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What changed between two nested mappings, by dotted key."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, "" if key == "settings" else f"{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} → {new}")
    return found


# --- searching ------------------------------------------------------------------------------------------------------


def search(run: Run, folder: Path, space: Space, fixed: list[dict[str, Any]]) -> tuple[Study, Study | None]:
    """The short trainings of all slots, then the longer ones of the best and of the config as it stands."""
    from pipeline import tuning

    config, tune = run.config, run.config.tune
    sign = evaluate.direction(config.metric)
    slots = len(fixed) or tune.trials
    coarse = Study(folder, "coarse", space, sign, slots, config.seed, tune.method, tune.prune, fixed)
    done = ranked(tuning.work(coarse, run, tune.coarse_epochs), sign)
    if not done:
        raise UserError(f"all {slots} trials ended without a score; try a range of lower lr in tune.space")
    if not tune.fine_trials:
        return coarse, None
    candidates = [None, *(slot.picked for slot in done[: tune.fine_trials])]
    name = f"fine-{artefacts.fingerprint(tune.fine_epochs, candidates)[:6]}"
    fine = Study(folder, name, space, sign, len(candidates), config.seed, fixed=candidates)
    tuning.work(fine, run, tune.fine_epochs, keep=True)
    return coarse, fine


def finish(
    run: Run, folder: Path, written: Path, record: Path, print_: str, coarse: Study, fine: Study | None
) -> dict[str, Any]:  # fmt: skip
    """Write the trials, the pictures, the model YAML and the record."""
    found = Found(run, coarse, fine)
    artefacts.write_text(folder / "trials.csv", found.csv())
    found.draw(folder)
    artefacts.write_text(written, found.yaml())
    lines = [*found.table(), *found.verdict(), f"  {shown(written)}: {found.mark}"]
    return artefacts.finish(
        record, print_, best=found.winner.settings, score=found.winner.score, trials=len(found.slots),
        folds=run.config.tune.folds, mark=found.mark, digest=artefacts.file_digest(written),
        lines=[*lines, f"  {', '.join(shown(folder / file) for file in FILES)}"],
        note=f"{found.winner.score:.4f}, the best of {len(found.slots)} trials; {found.mark}",
    )  # fmt: skip
