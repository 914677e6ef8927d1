"""Submissions side by side: CV beside Kaggle's scores, and the two that a competitor would choose for the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, registry, submission, uploads
from pipeline.config import Config
from pipeline.kaggle_client import Submitted
from pipeline.tables import read_table

LEAST = 3  # pairs of CV and public score that a correlation needs


@dataclass(frozen=True)
class Entry:
    """A submission, or one of its uploads.

    path: its csv, None where its rows are not here (any more). cv: see ``uploads.cv_of``. comparable: it is of this
    competition's metric and of all folds. status: empty where it was not uploaded, else as in ``uploads``.
    source: what stage=submit makes it of.
    """

    name: str
    path: Path | None
    cv: dict[str, Any] | None
    comparable: bool
    source: str = ""
    status: str = ""
    public: float | None = None
    private: float | None = None
    date: str = ""
    message: str = ""

    @property
    def gap(self) -> float | None:
        """public − CV, in the metric's own sign; None where one of them is missing."""
        return self.public - self.cv["value"] if self.cv and self.comparable and self.public is not None else None


@dataclass(frozen=True)
class Finals:
    """Two submissions for the end of a competition. good: how many others are within one standard error of the best.

    second: None where there is no other; difference: of its rows from the first's, see ``difference``.
    """

    first: Entry
    second: Entry | None
    good: int
    difference: float


def entries(config: Config, listed: list[Submitted] | None = None) -> list[Entry]:
    """All submissions of the competition, the best CV first; listed: what Kaggle lists, some of it made elsewhere."""
    found, known = [], set()
    for path in submission.made(config):
        facts = artefacts.recorded(path.with_suffix(".json")) or {}
        told, digest = uploads.records(path), artefacts.file_digest(path)
        known |= {record.get("ref") for record in told}
        sent = [record for record in told if record.get("status") != "sending"]
        found += [_uploaded(config, path, facts, record, digest) for record in sent]
        if digest not in {record.get("csv") for record in sent}:
            cv = uploads.cv_of(facts)
            found.append(Entry(path.stem, path, cv, _comparable(config, cv), _source(facts)))
    for one in listed or []:
        if one.ref not in known:
            scores = (one.status, one.public, one.private, one.date, one.message)
            found.append(Entry(f"{one.file} (made elsewhere)", None, None, False, "", *scores))
    sign = 1 if greater(config) else -1
    return sorted(found, key=lambda entry: -sign * entry.cv["value"] if entry.cv and entry.comparable else np.inf)


def _uploaded(config: Config, path: Path, facts: dict[str, Any], record: dict[str, Any], digest: str) -> Entry:
    here, cv = record.get("csv") == digest, record.get("cv")
    name = path.stem if here else f"{path.stem} (other rows)"
    told = [record.get(key) for key in ("status", "public", "private", "date", "message")]
    return Entry(name, path if here else None, cv, _comparable(config, cv), _source(facts), *told)  # type: ignore[arg-type]


def _source(facts: dict[str, Any]) -> str:
    return str(facts.get("source", "")).removeprefix("level2/")


def _comparable(config: Config, cv: dict[str, Any] | None) -> bool:
    return bool(cv) and cv["kind"] in ("OOF", "nested") and cv["metric"] == config.metric  # type: ignore[index]


def greater(config: Config) -> bool:
    """Whether more of the competition's metric is better."""
    return bool(registry.facts("metrics", config.metric)["greater"])


def correlation(found: list[Entry]) -> tuple[float, float, int]:
    """Pearson's and Spearman's correlation of CV and public score, and of how many; NaN where there are too few."""
    pairs = np.array([[e.cv["value"], e.public] for e in found if e.cv and e.gap is not None]).reshape(-1, 2)
    if len(pairs) < LEAST or (np.ptp(pairs, axis=0) == 0).any():
        return np.nan, np.nan, len(pairs)
    ranks = pd.DataFrame(pairs).rank().to_numpy()
    return float(np.corrcoef(pairs.T)[0, 1]), float(np.corrcoef(ranks.T)[0, 1]), len(pairs)


# --- the two for the end ------------------------------------------------------------------------------------------


def finals(config: Config, found: list[Entry]) -> Finals | None:
    """The best CV, and of those within one standard error of it the one whose rows differ most; None without any CV.

    Where none is that good, the second is the next by CV. Public scores have no say: they are of few rows, and would be
    chosen on.
    """
    unlike: dict[str, Entry] = {}
    for entry in found:  # of uploads of the same rows one
        if entry.path and entry.comparable and entry.status != "error":
            unlike.setdefault(artefacts.file_digest(entry.path), entry)
    if not unlike:
        return None
    first, *others = unlike.values()  # the best CV is first
    assert first.cv
    reach = first.cv["se"] or 0.0
    good = [entry for entry in others if abs(entry.cv["value"] - first.cv["value"]) <= reach]  # type: ignore[index]
    if not others:
        return Finals(first, None, 0, np.nan)
    rows = read_table(first.path)  # type: ignore[arg-type]
    apart = [(difference(rows, read_table(entry.path)), entry) for entry in good or others[:1]]  # type: ignore[arg-type]
    far, second = max(apart, key=lambda pair: pair[0])
    return Finals(first, second, len(good), far)


def difference(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """How unlike two submissions are, 0 for the same: the mean over columns of 1 − correlation, or the share of cells
    that differ where these are texts or whole numbers. Ids that differ, or repeat, are compared row by row of each."""
    ids = one.columns[0]
    if list(one.columns) != list(other.columns) or list(one[ids]) != list(other[ids]):
        told = [{key: rows.to_csv() for key, rows in frame.set_index(ids).groupby(ids)} for frame in (one, other)]
        names = told[0].keys() | told[1].keys()
        return sum(told[0].get(name) != told[1].get(name) for name in names) / max(len(names), 1)
    return float(np.mean([_apart(one[name], other[name]) for name in one.columns[1:]]))


def _apart(one: pd.Series, other: pd.Series) -> float:
    numbers = [pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64) for cells in (one, other)]
    both = np.stack(numbers)
    if not np.isfinite(both).all() or (both == np.rint(both)).all():
        return float((one.astype(str).to_numpy() != other.astype(str).to_numpy()).mean())
    if (np.ptp(both, axis=1) == 0).any():
        return float(not np.array_equal(*both))
    return float(1 - np.corrcoef(both)[0, 1])
