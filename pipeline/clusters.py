"""Clusters of embeddings: images of a test pool that are probably of one identity, which nobody has named.

Density clustering (DBSCAN, Ester et al. 1996) of re-ranked distances, as domain adaptation of re-identification does it
(Song et al. 2020; Ge et al. 2020). No label is read; but the embeddings of a pool must all come from one member.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from pipeline import ranking, registry
from pipeline.ranking import Search

NEAREST = 50  # of an image, that may be its neighbours; large clusters hang together by their members' neighbours
WHOLE = 0.5  # share of a pool above which a cluster is no identity: it holds whatever the embedding cannot tell apart
DISTANCE = "k_reciprocal(weight=0.0)"  # the Jaccard distance alone, 0 to 1 whatever the network
ALONE = -1


def clusters(
    points: np.ndarray, rerankings: Sequence[str], threshold: float, core: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each image, (N,) int64 from 0 in the order of their first images, or ``ALONE``; and how sure.

    points (N, D): float32, rows of length 1, of one member. rerankings: see ``measured``. threshold: 0 to 1, the least
    score (one minus distance) of neighbours. core: neighbours, itself counted, that make an image the core of a
    cluster; 2 joins whatever touches. Sure is (N,) float32, the score of the nearest of the same cluster; 0 where there
    is none. A cluster of more than half the pool is none.
    """
    near, places = ranking.reranked(Search(points, points, alone=True), measured(rerankings)).nearest(NEAREST)
    rows, columns = np.nonzero(near >= np.float32(threshold))
    found = _dense(len(points), rows, places[rows, columns], near[rows, columns], core)
    found[np.bincount(found + 1)[found + 1] > WHOLE * len(points)] = ALONE
    sure = np.zeros(len(points), dtype=np.float32)
    inside = (found[rows] != ALONE) & (found[rows] == found[places[rows, columns]])
    for one in (rows[inside], places[rows, columns][inside]):
        np.maximum.at(sure, one, near[rows, columns][inside])
    return _numbered(found), sure


def measured(rerankings: Sequence[str]) -> list[str]:
    """The re-rankings of embeddings among these, then the last that gives distances of 0 to 1, or ``DISTANCE``."""
    moves = [call for call in rerankings if registry.facts("rerankings", call)["gives"] == "points"]
    last = [call for call in rerankings if registry.facts("rerankings", call).get("distances")]
    return [*moves, *(last or [DISTANCE])]


def _dense(count: int, rows: np.ndarray, others: np.ndarray, scores: np.ndarray, core: int) -> np.ndarray:
    """(count,) int64 clusters by DBSCAN on the graph of neighbours, each way, or ``ALONE``."""
    from sklearn.cluster import DBSCAN  # a second to import

    if not len(rows):
        return np.full(count, ALONE, dtype=np.int64)
    near = sparse.csr_matrix((scores, (rows, others)), shape=(count, count))
    graph = near.maximum(near.T).tocsr()
    graph.data = (1 - graph.data).clip(min=0)
    labels = DBSCAN(eps=1.0, min_samples=core, metric="precomputed").fit(graph).labels_  # all that is stored is near
    return np.asarray(labels, dtype=np.int64)


def _numbered(found: np.ndarray) -> np.ndarray:
    """The same clusters, numbered in the order of their first rows."""
    numbers = found.copy()
    there = found != ALONE
    numbers[there] = pd.factorize(found[there])[0]
    return numbers
