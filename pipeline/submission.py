"""A submission csv: checked against the sample submission before anything is written, and written whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts
from pipeline.artefacts import shown
from pipeline.config import Config, root
from pipeline.errors import UserError, nearest, some
from pipeline.longform import Long
from pipeline.tables import check_ids, duplicates, read_table
from pipeline.tasks.answers import Cells

SUM_TOLERANCE = 1e-3  # rows of probabilities, as rounded in a csv


def path_of(config: Config, name: str) -> Path:
    """Where the submission lies: ``submission=`` if given, else submissions/<competition>/<name>.csv."""
    if not config.submission:
        return artefacts.submissions_folder(config) / f"{artefacts.safe_name(name, 'source')}.csv"
    if not config.submission.endswith(".csv"):
        raise UserError(f"submission={config.submission}, but the name of a submission ends in .csv")
    return root() / config.submission


def locate(config: Config, text: str, key: str) -> Path:
    """An existing submission: a path from the project folder, or a name in submissions/<competition>."""
    folder = artefacts.submissions_folder(config)
    places = [root() / text, folder / text, folder / f"{text}.csv"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        there = [path.name for path in made(config)]
        listed = f"; there are: {some(there, 10)}{nearest(text, there)}" if there else "; run stage=submit first"
        raise UserError(f"{key}={text}, but there is no such file, nor one in {shown(folder)}{listed}")
    return found


def made(config: Config) -> list[Path]:
    """The submissions that the pipeline made (each has its json beside it), the newest last."""
    there = artefacts.submissions_folder(config).glob("*.csv")
    return sorted((p for p in there if p.with_suffix(".json").is_file()), key=lambda p: (p.stat().st_mtime_ns, p.name))


def read(path: Path, sample: pd.DataFrame, allowed: Mapping[str, Cells], long: Long | None = None) -> pd.DataFrame:
    """A submission's cells as text, one row an image, checked with ``validate``."""
    frame = read_table(path)
    if long:
        check_ids(frame.iloc[:, 0], shown(path))  # rows twice would count once below, and are refused by Kaggle
        frame = long.wide(frame, str(frame.columns[0]), shown(path))
    validate(frame, sample, shown(path), allowed)
    return frame


def validate(frame: pd.DataFrame, sample: pd.DataFrame, name: str, allowed: Mapping[str, Cells] | None = None) -> None:
    """Raise one UserError that says all that does not fit the sample submission, with five offending ids each.

    Checks columns, ids (missing, extra, duplicate, order), empty cells, numbers where the sample has numbers, rows
    that must sum to one because the sample's do, and what the task allows a column to hold. Where a task has a row for
    each object, ids may repeat, and each must be there.
    """
    if list(frame.columns) != list(sample.columns):
        raise UserError(
            f"{name} has the columns {some(frame.columns, 12)}; the sample has "
            f"{some(sample.columns, 12)}, in this order"
        )
    ids, allowed = frame.iloc[:, 0], allowed or {}
    repeats = any(getattr(cells, "repeats", False) for cells in allowed.values())
    firsts = (column.astype(str).drop_duplicates() if repeats else column for column in (ids, sample.iloc[:, 0]))
    problems = _id_problems(*(column.astype(str).reset_index(drop=True) for column in firsts))
    for column in frame.columns[1:]:
        if column in allowed:
            faults = {allowed[column].what: allowed[column].wrong(frame[column])}
        elif _numbers(sample[column]).notna().all():
            faults = {"is no finite number": ~np.isfinite(_numbers(frame[column]))}
        else:
            faults = {"is empty": frame[column].isna() | (frame[column].astype(str).str.strip() == "")}
        problems += [f"column {column} {what} for ids {some(ids[bad])}" for what, bad in faults.items() if bad.any()]
    shares = not allowed or any(getattr(cells, "share", False) for cells in allowed.values())
    problems += _sum_problems(frame, sample) if shares and not problems else []
    if problems:
        raise UserError(f"{name} does not fit the sample submission: {'; '.join(problems)}")


def _id_problems(ids: pd.Series, wanted: pd.Series) -> list[str]:
    missing = wanted[~wanted.isin(ids)]
    extra = ids[~ids.isin(wanted)]
    twice = duplicates(ids) if wanted.is_unique else []
    problems = [
        f"{len(names)} {what} ids: {some(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("duplicate", twice))
        if len(names)
    ]
    if problems or list(ids) == list(wanted):
        return problems
    if len(ids) != len(wanted):
        return [f"{len(ids)} rows instead of {len(wanted)}"]
    moved = wanted.to_numpy()[ids.to_numpy() != wanted.to_numpy()]
    return [f"the order of ids differs, from {some(moved)}"]


def _sum_problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[str]:
    expected = sample.iloc[:, 1:].apply(_numbers)
    if expected.shape[1] < 2 or expected.isna().any(axis=None) or not _sums_to_one(expected, tolerance=1e-2).all():
        return []
    ids, values = frame.iloc[:, 0], frame.iloc[:, 1:].apply(_numbers)
    outside = ((values < 0) | (values > 1)).any(axis=1)
    if outside.any():
        return [f"probabilities outside 0…1 for ids {some(ids[outside])}"]
    odd = ~_sums_to_one(values, SUM_TOLERANCE)
    return [f"probabilities do not sum to one for ids {some(ids[odd])}"] if odd.any() else []


def _sums_to_one(values: pd.DataFrame, tolerance: float) -> pd.Series:
    return (values.sum(axis=1) - 1).abs() <= tolerance


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(np.float64)


def write(frame: pd.DataFrame, path: Path, facts: dict[str, Any]) -> None:
    """Write the csv and, beside it, the json of facts (what made it, its CV); the same rows give the same bytes.

    The json goes last and holds the csv's digest, so that a csv without its own json counts as unfinished.
    """
    text = frame.to_csv(index=False, lineterminator="\n", float_format="%.7g")
    artefacts.write_text(path, text)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    artefacts.write_json(path.with_suffix(".json"), {**facts, "csv": digest})


def written(path: Path, print_: str) -> dict[str, Any] | None:
    """The facts beside a submission that was made with this fingerprint and has not changed since; else None."""
    facts = artefacts.finished(path.with_suffix(".json"), print_, path)
    return facts if facts and facts.get("csv") == artefacts.file_digest(path) else None
