"""Search: a network for these images, from short trainings of many; writes a model YAML that train uses.

Trials learn and are scored inside the rows that leave ``search.fold`` unread, so that this fold's OOF of what comes out
is honest; that of ``search.inner``, whose rows score the trials, is optimistic, and marked so (``tuned:``).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from pipeline import artefacts, backbone_names, registry, searched
from pipeline.artefacts import shown
from pipeline.competition import load
from pipeline.config import Config, keys, root
from pipeline.console import Outcome, say
from pipeline.errors import OutOfTime, UserError
from pipeline.folds import ensure_folds
from pipeline.searched import PICTURE, Found, Inner
from pipeline.stages.tune import differences

FOLDER = "search"
WITHOUT = ("epochs", "select", "train.patience", "train.seconds", "train.seeds")  # a trial has its own
FILES = ("trials.csv", PICTURE)


def run(config: Config) -> list[Outcome]:
    """Search, and write configs/model/<name>.yaml with the best network; goes on where it was killed."""
    began = time.perf_counter()
    check(config)
    ensure_folds(config, load(config))
    own = Inner(config, artefacts.run_name(config))
    own.check()
    name = artefacts.safe_name(config.search.name or f"{own.name}-searched", "search.name")
    folder = artefacts.runs_folder(config) / FOLDER / name
    written, record = root() / "configs/model" / f"{name}.yaml", folder / "search.json"
    folder.mkdir(parents=True, exist_ok=True)
    with artefacts.locked(folder):
        content = settle(own, folder, written, record)
        print_ = artefacts.fingerprint(content, config.search.trials, config.search.choose)
        facts = artefacts.finished(record, print_, written, *(folder / file for file in FILES))
        reused = facts is not None
        if facts is None:
            check_free(config, written, record)
            facts = search(own, folder, content, written, record, print_)
    for line in facts["lines"]:
        say(line)
    say(f"  to use it: ./run.sh stage=train competition={config.competition} model={name}")
    return [Outcome("search", name, seconds=time.perf_counter() - began, note=facts["note"], reused=reused)]


def check(config: Config) -> None:
    """What does not go together is refused before any data are read."""
    searched.check(config)
    search = config.search
    space = registry.build("architectures", search.space)(config.image_size)
    blocks = registry.facts("architectures", search.space).get("blocks")
    if registry.facts("searchers", search.strategy).get("blocks") and not blocks:
        raise UserError(
            f"search.strategy={search.strategy} learns to choose blocks, but search.space={search.space} has whole "
            "nets; take evolution() or random_search(), or search.space=small()"
        )
    registry.build("searchers", search.strategy)(space)
    if blocks and (config.pretrained or config.weights):
        key = "weights=" if config.weights else "pretrained=false"
        raise UserError(
            f"search.space={search.space} builds networks that have no weights to start from; add {key}, or take "
            "search.space=timm(names=[…])"
        )
    if blocks and registry.parse(config.stem).name != "own":
        raise UserError(f"stem={config.stem} is not for the networks of search.space={search.space}; leave it out")
    backbone_names.check(config.backbone)


def settle(run: Inner, folder: Path, written: Path, record: Path) -> dict[str, Any]:
    """What defines the search: written, or compared with what was begun.

    overwrite=true clears the folder, and allows the model YAML that stands there now to be replaced, kills included.
    """
    config, search = run.config, run.config.search
    content = {
        "settings": {key: value for key, value in run.settings().items() if key not in WITHOUT},
        "inputs": run.inputs(), "metric": config.metric,
        "search": {"space": search.space, "strategy": search.strategy, "epochs": search.epochs, "cost": search.cost,
                   "limit": search.limit, "fold": search.fold, "inner": search.inner},
    }  # fmt: skip
    begun = folder / "begun.json"
    if config.overwrite:
        for old in (path for path in folder.iterdir() if path.name != ".lock"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        if written.exists():
            artefacts.finish(record, "", digest=artefacts.file_digest(written))
    before = artefacts.read_json(begun) if begun.exists() else content
    default = {key: keys()[key].default for key in content["settings"]}  # of a key that an older version did not know
    known = {**before, "settings": default | before["settings"]}
    if known != content:
        changed = "; ".join(differences(known, content)[:8])
        raise UserError(
            f"the search {folder.name} was begun with other settings ({changed}); name a new one, "
            f"search.name={folder.name}-2, or replace this one, overwrite=true"
        )
    if not begun.exists():
        artefacts.write_json(begun, content)
    return before


def check_free(config: Config, written: Path, record: Path) -> None:
    """Never write over a model YAML that this search did not write."""
    if not written.exists():
        return
    mine = (artefacts.recorded(record) or {}).get("digest")
    if mine != artefacts.file_digest(written):
        raise UserError(
            f"{shown(written)} exists and this search did not write it as it is; choose search.name=NAME, or replace "
            "it with overwrite=true"
        )


def search(
    run: Inner, folder: Path, content: dict[str, Any], written: Path, record: Path, print_: str
) -> dict[str, Any]:  # fmt: skip
    """Train the trials; when the budget is used up, the best so far is written, and the search stays unfinished."""
    from pipeline.searching import Hunt

    hunt = Hunt(run, folder, content)
    try:
        hunt.work()
    except OutOfTime as end:
        done = hunt.finished()
        if any(trial.ended == "done" for trial in done):
            facts = finish(hunt, written, record, "")
            for line in facts["lines"]:
                say(line)
        raise OutOfTime(f"{folder.name}: {len(done)} of {run.config.search.trials} trials are finished") from end
    return finish(hunt, written, record, print_)


def finish(hunt: Any, written: Path, record: Path, print_: str) -> dict[str, Any]:
    """Write the trials, the picture, the model YAML and the record."""
    search, reference = hunt.run.config.search, hunt.read(searched.REFERENCE)
    found = Found(hunt.run, hunt.folder, hunt.finished()[: search.trials], reference)
    if not found.ranked:
        raise UserError(f"all {len(found.trials)} trials ended without a score; lower lr, or search a smaller space")
    artefacts.write_text(hunt.folder / FILES[0], found.csv())
    found.draw(hunt.folder / PICTURE)
    artefacts.write_text(written, found.yaml())
    chosen = found.trials[found.winner]
    files = ", ".join(shown(hunt.folder / file) for file in FILES)
    return artefacts.finish(
        record, print_, best=chosen.backbone, score=chosen.score, trials=len(found.trials), mark=found.mark,
        digest=artefacts.file_digest(written),
        lines=[*found.table(), *found.verdict(), f"  {shown(written)}: {found.mark}", f"  {files}"],
        note=f"{chosen.score:.4f}, {chosen.weights:,} weights, the best of {len(found.trials)} trials; {found.mark}",
    )  # fmt: skip
