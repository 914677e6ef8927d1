"""Find what a run's OOF confuses most: tables, a picture sheet, and weights of the rows for the next training.

``mined.csv`` lists the rows, the hardest first, with what each was taken for; ``mined_pairs.csv`` what is confused with
what, and how often; ``mined.png`` draws the hardest beside what they were confused with. A next run learns harder from
hard rows with ``train.hard=runs/…/mined.csv``: their losses weigh more, or they come more often with
``sampler=weighted()``, for losses of pairs ``weighted_identities()``. What is hard and what is only labelled wrongly
looks alike here: look at the sheet first.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, mining
from pipeline.artefacts import shown
from pipeline.config import Config, flatten
from pipeline.console import Outcome, say
from pipeline.errors import UserError, some
from pipeline.mining import MINERS, PAIR, Mined
from pipeline.runs import Run
from pipeline.sheets import page, png, short
from pipeline.tasks import Task, facts, task_for

TABLE, PAIRS, SHEET, RECORD = "mined.csv", "mined_pairs.csv", "mined.png", "mine.json"


def run(config: Config) -> list[Outcome]:
    """Write mined.csv, mined.png and, where there are pairs, mined_pairs.csv into the folder of a predicted run."""
    check_form(config)
    began = time.perf_counter()
    run = Run(config, artefacts.run_name(config))
    run = Run(run.as_trained() if run.has_networks else config, run.name)
    task, print_ = task_for(run.config, run.competition), fingerprint(run)
    known = done(run, print_)
    found = known or make(run, task, print_)
    report(run, found)
    seconds, note = time.perf_counter() - began, f"{found['said']}; {shown(run.folder / SHEET)}"
    return [Outcome("mine", run.name, seconds=seconds, note=note, reused=bool(known))]


def check_form(config: Config) -> None:
    """UserError for answers of which this stage makes nothing."""
    form = facts(config.task)["form"]
    if form not in MINERS:
        raise UserError(f"stage=mine is not made for task={config.task}, which has {form}; it is for {some(MINERS)}")


def fingerprint(run: Run) -> str:
    """What the tables and the sheet depend on."""
    config = run.config
    digests = [artefacts.file_digest(run.need((fold,), "oof.npz")) for fold in range(run.count)]
    settings = {key: value for key, value in flatten(config).items() if key.startswith("mine.")}
    data = (run.competition.fingerprint, run.folds.tolist(), config.task, config.data.target, config.image_size)
    return artefacts.fingerprint("mine", digests, settings, data)


def done(run: Run, print_: str) -> dict[str, Any] | None:
    """What the record says, if all that it names still stands."""
    known = artefacts.finished(run.folder / RECORD, print_)
    return known if known and all((run.folder / name).exists() for name in known["files"]) else None


def make(run: Run, task: Task, print_: str) -> dict[str, Any]:
    """Mine the OOF, write what was found, and record it."""
    oof = run.oof()
    with artefacts.locked(run.folder):
        (run.folder / RECORD).unlink(missing_ok=True)
        mined = mining.mine(task, run.truth(task), oof.values, oof.ids, run.config.mine)
        files = write(run, oof.ids, mined)
        return artefacts.finish(run.folder / RECORD, print_, files=files, said=said(mined), told=list(mined.told))


def write(run: Run, ids: np.ndarray, mined: Mined) -> list[str]:
    """The tables, the hardest rows first, and the sheet; returns their names."""
    settings, folds = run.config.mine, run.scored_folds
    table = mined.rows.assign(
        loss=mined.losses, weight=mining.weights(mined.losses, folds, settings.power, settings.most)
    )
    table.insert(0, "id", ids)
    table.insert(1, "fold", folds)
    save(table.iloc[mined.hardest], run.folder / TABLE)
    with artefacts.atomic(run.folder / SHEET) as handle:
        handle.write(png(sheet(run, ids, mined)))
    if mined.pairs is None:
        return [TABLE, SHEET]
    save(mined.pairs, run.folder / PAIRS)
    return [TABLE, PAIRS, SHEET]


def save(table: pd.DataFrame, path: Path) -> None:
    """A csv, whole or not at all."""
    artefacts.write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def sheet(run: Run, ids: np.ndarray, mined: Mined) -> Any:
    """A Pillow image: the hardest rows, each beside what it was confused with."""
    from pipeline import stores

    config, rows = run.config, mined.hardest[: run.config.mine.pictures]
    store = stores.train_store(config, run.competition, config.image_size)
    blank = np.full_like(store.take(run.scored[:1])[0], 255)

    def picture(place: int) -> np.ndarray:
        return blank if place == mining.NONE else store.take(run.scored[[place]])[0]

    beside = [mined.beside(int(row)) for row in rows]
    tiles = np.array([[picture(place) for place, _ in line] for line in beside])
    captions = [[short(caption) for _, caption in line] for line in beside]
    heading = f"{run.name}: the hardest of {len(ids)} rows, by OOF"
    return page(heading, mined.columns, labels(ids, mined, rows), tiles, captions)


def labels(ids: np.ndarray, mined: Mined, rows: np.ndarray) -> list[str]:
    """What stands beside each row: its id, what it is, what it was taken for, and how wrong that is."""
    return [
        "\n".join(map(short, (str(ids[row]), f"is {label}", f"seen as {taken}", f"loss {mined.losses[row]:.3g}")))
        for row, label, taken in zip(rows, *(mined.rows[name].iloc[rows] for name in PAIR), strict=True)
    ]


def said(mined: Mined) -> str:
    """In a few words, what was found."""
    count = len(mined.losses)
    return f"{count} rows" if mined.wrong is None else f"{int(mined.wrong.sum())} of {count} rows wrong"


def report(run: Run, found: dict[str, Any]) -> None:
    """Say the worst confusions, and how to learn from them."""
    say(f"{shown(run.folder / TABLE)}: {found['said']}, the hardest first; look at {shown(run.folder / SHEET)}")
    for line in found["told"]:
        say(f"  {line}")
    words = f"run={run.name}-hard train.hard={shown(run.folder / TABLE)}"
    say(f"  to learn from them: ./run.sh stage=train competition={run.config.competition} {words}")
    say("  which weighs losses, or with sampler=weighted() shows hard rows more often; the weights come from OOF: a")
    say("  second-order leak, which the tables name")
