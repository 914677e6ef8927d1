"""Rows that people labelled by hand: ``labels/<competition>.csv``, which stage=absorb writes and a team shares.

They stand behind the rows of the training table, in the order in which they were absorbed. Columns: the id, the
targets, what else a training row must tell (its group, its time), ``fold`` (−1: always learned from, never predicted;
else empty, and a fold is dealt), ``origin`` and ``digest``, the file they came from and the hash of its bytes. An image
of the test set stays there, too, and is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline import artefacts
from pipeline.artefacts import safe_name, shown
from pipeline.config import Config, Data, root
from pipeline.errors import UserError, some
from pipeline.tables import check_ids, read_table

FOLD, ORIGIN, DIGEST = "fold", "origin", "digest"
ALWAYS = "-1"  # in the column fold


def path_of(competition: str) -> Path:
    """``labels/<competition>.csv``."""
    return root() / "labels" / f"{safe_name(competition, 'competition')}.csv"


def read(path: Path, data: Data, train: pd.Series, pool: Mapping[str, str]) -> pd.DataFrame:
    """The absorbed rows, text cells, their images under ``file``.

    train: the ids of the training table. pool: file of each image without a label, by id. UserError where the csv is
    damaged, names a row of the training table or an image that is not there.
    """
    needed = {data.id: "data.id", **dict.fromkeys(data.target, "data.target"), ORIGIN: "", DIGEST: "", FOLD: ""}
    table = read_table(path, needed)
    check_ids(table[data.id], shown(path))
    both = sorted(set(table[data.id]) & set(train))
    if both:
        raise UserError(
            f"{shown(path)} and {data.train_csv} both hold the ids {some(both)}; remove these rows from one of them"
        )
    lost = [name for name in table[data.id] if name not in pool]
    if lost:
        raise UserError(
            f"{shown(path)}: {len(lost)} ids are neither test images nor in data.unlabelled={data.unlabelled}: "
            f"{some(lost)}; put the images back, set data.unlabelled, or leave all out with data.absorbed=false"
        )
    return table.assign(file=[pool[name] for name in table[data.id]])


def known(config: Config) -> set[str]:
    """The ids of all absorbed rows, whether or not they join the training rows."""
    path = path_of(config.competition)
    return set(read_table(path, {config.data.id: "data.id"})[config.data.id]) if path.is_file() else set()


def marked(config: Config, ids: pd.Series) -> list[bool]:
    """Of absorbed rows, by id, whether every member is to learn from them and none to predict them."""
    table = read_table(path_of(config.competition), {config.data.id: "data.id", FOLD: ""})
    folds = dict(zip(table[config.data.id], table[FOLD], strict=True))
    return [folds[name].strip() == ALWAYS for name in ids]


def write(path: Path, table: pd.DataFrame) -> None:
    """Write the rows, whole or not at all."""
    artefacts.write_text(path, table.to_csv(index=False, lineterminator="\n"))
