"""Outside images (``data.extra``): they join the training rows of every member, and no fold validates or predicts them.

Before that, copies of the competition's own images are left out: an outside twin of a validation row would tell its
label to the member that predicts it (law 1), and a twin of a test row would flatter nobody but the leaderboard.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artefacts, files, images, longform
from pipeline.artefacts import shown
from pipeline.competition import Competition
from pipeline.config import Config, root
from pipeline.console import say
from pipeline.doctor import alike, duplicates, survey
from pipeline.errors import UserError
from pipeline.tables import check_ids, read_table


@dataclass(frozen=True)
class Extra:
    """Outside rows that may be learned from: their images, specs relative to folder, and their targets as text."""

    folder: Path
    files: list[str]
    targets: pd.DataFrame


def load(config: Config, competition: Competition) -> Extra | None:
    """The rows of data.extra that copy no image of the competition; None where the key is empty.

    The csv has the columns of the training table; its images lie below its own folder. What is left out is looked for
    once and kept in ``runs/<competition>/extra.json``.
    """
    if not config.data.extra:
        return None
    path = find(config, competition)
    data = config.data
    needed = {data.id: "data.id", **({data.image: "data.image"} if data.image else {})}
    needed |= {} if competition.long else dict.fromkeys(data.target, "data.target")
    table = longform.train_table(competition.long, read_table(path, needed, key="data.extra"), data.id, shown(path))
    check_ids(table[data.id], shown(path))
    found = files.resolve(path.parent, "", table[data.image or data.id].tolist(), data.files)
    copies = np.array(_copies(config, competition, path.parent, found), dtype=bool)
    if copies.all():
        raise UserError(f"data.extra={data.extra}: every image is a copy of one of the competition's own; leave it out")
    kept = np.flatnonzero(~copies)
    return Extra(
        path.parent,
        [found[row] for row in kept],
        table[data.target].iloc[kept].apply(lambda cells: cells.str.strip()).reset_index(drop=True),
    )


def find(config: Config, competition: Competition) -> Path:
    """The csv: from the project's folder, or from the competition's."""
    for place in (root() / Path(config.data.extra).expanduser(), competition.folder / config.data.extra):
        if place.is_file():
            return place
    raise UserError(
        f"data.extra={config.data.extra}, but there is no such csv in {shown(root())} or {shown(competition.folder)}"
    )


def digest(config: Config, competition: Competition) -> str:
    """A fingerprint of the csv and of the names and sizes of the images beside it."""
    path = find(config, competition)
    return artefacts.fingerprint(
        artefacts.file_digest(path), files.listing(path.parent, files.find_images(path.parent))
    )


def _copies(config: Config, competition: Competition, folder: Path, found: list[str]) -> list[bool]:
    """Which outside images show what a training or test image shows: the same pixels, or nearly, flips too."""
    record = artefacts.runs_folder(config) / "extra.json"
    print_ = artefacts.fingerprint(competition.fingerprint, files.listing(folder, found), found)
    if before := artefacts.finished(record, print_):
        return list(before["copies"])
    own = [*competition.train["file"], *competition.test["file"]]
    home = [(spec, f"{competition.folder}\n{spec}") for spec in own]
    away = [(spec, f"{folder}\n{spec}") for spec in found]
    seen = survey.read(functools.partial(_look, config), home, away, config.data.channels)
    first = duplicates.exact(seen)
    pairs = alike.all_pairs(first, duplicates.near(seen, first))
    family = duplicates.families(len(seen), pairs.a, pairs.b)
    copies = np.isin(family[len(own) :], family[: len(own)]).tolist()
    say(f"data.extra: {len(found)} outside images, {sum(copies)} left out as copies of the competition's own")
    artefacts.finish(record, print_, copies=copies)
    return copies


def _look(config: Config, place: str) -> images.Look:
    """The image of "folder, line end, spec"."""
    folder, _, spec = place.partition("\n")
    limit = round(config.data.megapixels * 1e6)
    return images.look(spec, folder, reader=config.data.reader, limit_pixels=limit, at_least=survey.LOOK_SIDE)
