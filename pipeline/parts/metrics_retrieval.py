"""Metrics of ranked lists: how soon a query's list shows its identity.

Form: ``f(truth, answer, *, …) -> (Q,) float64``, of the form ``ranks`` (``ranking.judge``). truth (Q,) int64: how many
images (or labels) the query could find. answer (Q, n) int8, best first: 1 right, 0 wrong or behind the end of the list,
-1 junk, which is left out before ranks are counted; so a list needs k answers and the query's junk.

A query that can find nothing counts nowhere, NaN; ``score`` leaves it out. Labels are judged like images: a query has
one to find, and mAP@k is then 1 / its rank, as in Kaggle's MAP@5 of whales.
"""

from __future__ import annotations

import numpy as np

from pipeline.ranking import HIT, JUNK
from pipeline.registry import part


@part(
    source="Kaggle's mAP@k of retrieval; Philbin et al. 2007, without interpolation; junk as Zheng et al. 2015",
    greater=True, wants="decision", takes=("ranks",), rowwise=True, allowed={"k": (1, None)},
)  # fmt: skip
def mean_average_precision(truth: np.ndarray, answer: np.ndarray, *, k: int = 20) -> np.ndarray:
    """Mean over queries of the precisions at their first k answers that are right, over min(k, all there are), 0 to 1.

    k: answers that count, junk left out; as many as the gallery has for the average precision of whole lists.
    """
    hits, ranks = _ranked(answer, k)
    precision = hits.cumsum(axis=1) / np.maximum(ranks, 1)
    return _known(truth, (precision * hits).sum(axis=1) / np.clip(truth, 1, k))


@part(
    source="cumulative matching characteristic, Gray et al. 2007; junk as Zheng et al. 2015",
    greater=True, wants="decision", takes=("ranks",), rowwise=True, allowed={"k": (1, None)},
)  # fmt: skip
def rank_k(truth: np.ndarray, answer: np.ndarray, *, k: int = 1) -> np.ndarray:
    """Share of queries with a right one among their first k answers, 0 to 1: rank-1, rank-5, … of re-identification.

    k: answers that count, junk left out.
    """
    return _known(truth, _ranked(answer, k)[0].any(axis=1).astype(np.float64))


@part(
    source="Manning et al. 2008, section 8.4; precision at 1 of Musgrave et al. 2020",
    greater=True, wants="decision", takes=("ranks",), rowwise=True, allowed={"k": (1, None)},
)  # fmt: skip
def precision_at_k(truth: np.ndarray, answer: np.ndarray, *, k: int = 1) -> np.ndarray:
    """Mean share of right ones among a query's first k answers, 0 to 1; also where it could find fewer.

    k: answers that count, junk left out.
    """
    return _known(truth, _ranked(answer, k)[0].sum(axis=1) / k)


def score(rows: np.ndarray) -> float:
    """The mean of what a metric gave (Q,), without queries that can find nothing; NaN if none can."""
    known = rows[~np.isnan(rows)]
    return float(known.mean()) if len(known) else float("nan")


def _ranked(answer: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, n) bool which answers are right and among the first k; (Q, n) their ranks from 1, with junk left out."""
    ranks = (answer != JUNK).cumsum(axis=1)
    return (answer == HIT) & (ranks <= k), ranks


def _known(truth: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(truth > 0, rows, np.nan)
