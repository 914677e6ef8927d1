"""Odd images: those that an auto-encoder of stage=pretrain reconstructs far worse than the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artefacts
from pipeline.config import Config
from pipeline.doctor.findings import EXAMPLES, Example, Finding, counted
from pipeline.errors import UserError
from pipeline.tables import read_table

RECORD, ERRORS = "pretrain.json", "features.csv"  # of a run: what it recorded, and a row for each image
COLUMN, CODES = "error", "code"  # end the names of its columns
FAR = 4.0  # robust deviations of the logarithm of errors from their median
LEAST = 20  # images, below which nothing is far from anything


def files(config: Config) -> list[Path]:
    """The errors there are, of one run each."""
    return sorted(record.with_name(ERRORS) for record in artefacts.runs_folder(config).glob(f"*/{RECORD}")
                  if record.with_name(ERRORS).is_file())  # fmt: skip


def digest(config: Config) -> list[str]:
    """Changes with the errors; empty where there are none."""
    return [f"{path.parent.name} {artefacts.file_digest(path)}" for path in files(config)]


def anomalies(config: Config, ids: Sequence[str], caption: Callable[[int], str]) -> list[Finding]:
    """A finding for each run that reconstructs some images far worse than the others.

    ids: of the N training and test images. caption: of an image.
    """
    return [found for path in files(config) for found in _of(path, config, ids, caption)]


def _of(path: Path, config: Config, ids: Sequence[str], caption: Callable[[int], str]) -> list[Finding]:
    run = path.parent.name
    try:
        table = read_table(path, {config.data.id: "data.id", f"{run} {COLUMN}": "data.tables"}, key="data.tables")
    except UserError:  # damaged, or of another time: stage=pretrain makes it anew
        return []
    if table[config.data.id].tolist() != list(ids):
        return []  # of other tables than today's
    errors = pd.to_numeric(table[f"{run} {COLUMN}"], errors="coerce").to_numpy(np.float64)
    odd = far(errors)
    if not len(odd):
        return []
    middle = np.nanmedian(errors)
    examples = [
        Example([int(row)], [caption(int(row))], f"error {errors[row]:.3g}, {errors[row] / middle:.1f} × the median")
        for row in odd[:EXAMPLES]
    ]
    title = f"{counted(len(odd), 'image')} unlike the others: {run} reconstructs them far worse than the rest"
    advice = (
        "look at them: wrong files, broken pictures, rare kinds; a wrong one costs less out of the table than in it"
    )
    return [Finding("anomalies", "note", len(odd), title, advice, examples)]


def far(errors: np.ndarray) -> np.ndarray:
    """(n,) int64: rows whose error is FAR above the median, worst first; NaN is no error."""
    known = np.flatnonzero(errors > 0)
    if len(known) < LEAST:
        return known[:0]
    logs = np.log(errors[known])
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    odd = known[logs > middle + FAR * spread] if spread > 0 else known[:0]
    return odd[np.argsort(-errors[odd], kind="stable")]
