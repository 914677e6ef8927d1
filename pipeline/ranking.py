"""Exact search among embeddings, and what its neighbours answer: ranked ids, nearest labels, right or wrong.

Embeddings are float32 rows of length 1, so that a dot product is a cosine. NumPy, in blocks: memory grows with the
answers (Q, k), never with queries × gallery. Very large searches by cosine are faiss's where it is installed, as exact.
Re-rankings (``parts/rerankings.py``) make one search of another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import registry
from pipeline.errors import UserError

LARGE = 10**9  # similarities of a search from which faiss is asked, which never writes them down
BLOCK = 1 << 24  # similarities at a time: 64 MB, and as much again while the best are sought
HIT, MISS, JUNK = 1, 0, -1  # what an answer is; junk counts as if it were not there
Scores = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Search:
    """Queries and the gallery that they search.

    queries (Q, D), gallery (G, D): float32, rows of length 1. alone: a pool that searches itself; query i is row i of
    the gallery and no answer to itself, and both are one array until queries alone are moved. scores: (start, stop) → a
    new (stop - start, G) float32 array of how near the gallery is to these queries, more is nearer; None: by cosine.
    """

    queries: np.ndarray
    gallery: np.ndarray
    alone: bool = False
    scores: Scores | None = None

    def __post_init__(self) -> None:
        if self.queries.shape[1] != self.gallery.shape[1]:
            raise UserError(
                f"queries have {self.queries.shape[1]} numbers each, but the gallery {self.gallery.shape[1]}; "
                "embed both with the same members"
            )
        if self.alone and len(self.queries) != len(self.gallery):
            raise UserError(f"a pool that searches itself has as many queries as rows: {len(self.gallery)}")
        for points, name in ((self.queries, "queries"), (self.gallery, "gallery")):
            if not np.isfinite(points).all():
                rows = np.flatnonzero(~np.isfinite(points).all(axis=1))[:5].tolist()
                raise UserError(f"embeddings of the {name} are not finite, as in rows {rows}; train with a smaller lr")

    @property
    def points(self) -> np.ndarray:
        """(N, D) all there are, queries first; of a pool that searches itself the queries, which are all of it."""
        return self.queries if self.alone else np.concatenate([self.queries, self.gallery])

    def similarities(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, G) float32 of the queries from start on; more is nearer."""
        if self.scores is not None:
            return self.scores(start, stop)
        return self.queries[start:stop] @ self.gallery.T

    def nearest(self, k: int, first: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query: similarities (Q, k) float32 and places in the gallery (Q, k) int64, best first.

        Equal ones come in the gallery's order. k is cut to what there is: G, or G - 1 where a pool searches itself.
        first: so many of the first queries are asked alone. By faiss the last bit of a similarity may be another, and
        of those equal to the last one others may stay out.
        """
        count = len(self.queries) if first is None else min(first, len(self.queries))
        k = min(k, len(self.gallery) - self.alone)
        if self.scores is None and k and count * len(self.gallery) >= LARGE and importlib.util.find_spec("faiss"):
            return self._by_faiss(k, count)
        found = np.empty((count, k), dtype=np.float32)
        places = np.empty((count, k), dtype=np.int64)
        for start, stop in blocks(count, len(self.gallery)):
            table = self.similarities(start, stop)
            if self.alone:
                table[np.arange(stop - start), np.arange(start, stop)] = -np.inf
            places[start:stop] = best(table, k)
            found[start:stop] = np.take_along_axis(table, places[start:stop], axis=1)
        return found, places

    def _by_faiss(self, k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``nearest`` by cosine, by Johnson et al. 2019 (Billion-scale similarity search with GPUs), exact."""
        import faiss

        index = faiss.IndexFlatIP(self.gallery.shape[1])
        index.add(np.ascontiguousarray(self.gallery))
        found, places = index.search(np.ascontiguousarray(self.queries[:count]), k + self.alone)
        if self.alone:  # the image itself goes, or, among copies of it that came before, the last
            own = places == np.arange(count)[:, None]
            own[~own.any(axis=1), -1] = True
            found, places = (one[~own].reshape(count, k) for one in (found, places))
        order = np.lexsort((places, -found), axis=1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1)


def blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of as many rows as ``BLOCK`` similarities are; at least one."""
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def best(table: np.ndarray, k: int) -> np.ndarray:
    """(b, k) places of the largest of each row of table (b, G), best first; of equal ones the first. k ≤ G."""
    count = table.shape[1]
    if not 0 < k < count:
        return np.argsort(-table, axis=1, kind="stable")[:, :k]
    least = np.partition(table, count - k, axis=1)[:, count - k]
    chosen = table >= least[:, None]
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > k):  # more are equal to the last than there is room
        equal = np.flatnonzero(table[row] == least[row])
        chosen[row, equal[k - np.count_nonzero(table[row] > least[row]) :]] = False
    places = np.flatnonzero(chosen).reshape(len(table), k) % count
    order = np.argsort(-np.take_along_axis(table, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


# --- re-ranking ---------------------------------------------------------------------------------------------------


def check_rerankings(calls: Sequence[str]) -> None:
    """Raise UserError for an unknown re-ranking or argument, and for one behind another that leaves no points."""
    for place, call in enumerate(calls):
        if registry.facts("rerankings", call).get("gives") == "scores" and place < len(calls) - 1:
            raise UserError(
                f"{call} gives distances and no embeddings, so nothing can follow it, but {calls[place + 1]} does; "
                "put it last"
            )


def reranked(search: Search, calls: Sequence[str]) -> Search:
    """The search after re-rankings, one after the other; their call-strings are checked first."""
    check_rerankings(calls)
    for call in calls:
        search = registry.build("rerankings", call)(search)
    return search


# --- answers ------------------------------------------------------------------------------------------------------


def ranked_ids(places: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """places (Q, k) in the gallery and its ids (G,) → the ids (Q, k) as text, best first."""
    return ids.astype(np.str_)[places]


def nearest_labels(
    queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray, n: int, nearest: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The n labels nearest to each query: codes (Q, n) int64 and similarities (Q, n) float32, best first.

    labels (G,) int64, of the gallery. A label is as near as the mean of its ``nearest`` nearest images, of all that it
    has where those are fewer. Of equal ones the smaller code comes first. n is cut to the labels that there are.
    """
    names, first, counts = np.unique(np.sort(labels), return_index=True, return_counts=True)
    search, n = Search(queries, gallery[np.argsort(labels, kind="stable")]), min(n, len(names))
    codes, found = np.empty((len(queries), n), dtype=np.int64), np.empty((len(queries), n), dtype=np.float32)
    for start, stop in blocks(len(queries), len(gallery)):
        table = search.similarities(start, stop)
        each = np.maximum.reduceat(table, first, axis=1) if nearest == 1 else _means(table, first, counts, nearest)
        places = best(each, n)
        codes[start:stop], found[start:stop] = names[places], np.take_along_axis(each, places, axis=1)
    return codes, found


def _means(table: np.ndarray, first: np.ndarray, counts: np.ndarray, nearest: int) -> np.ndarray:
    """table (b, G) whose columns come label by label, from ``first`` on → (b, L) means of each label's nearest ones."""
    found = np.empty((len(table), len(first)), dtype=np.float32)
    for count in np.unique(counts).tolist():
        own, taken = np.flatnonzero(counts == count), min(nearest, count)
        images = table[:, first[own][:, None] + np.arange(count)]
        found[:, own] = np.partition(images, count - taken, axis=2)[:, :, count - taken :].mean(axis=2)
    return found


# --- right or wrong -----------------------------------------------------------------------------------------------


def judge(
    places: np.ndarray, queries: np.ndarray, gallery: np.ndarray, cameras: tuple[np.ndarray, np.ndarray] | None = None,
    alone: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What metrics of the form ``ranks`` see: how many each query could find (Q,) int64, and its answers (Q, k) int8.

    places (Q, k) in the gallery, best first. queries (Q,), gallery (G,): their identities. cameras: (Q,) and (G,);
    with them an image of the same identity by the same camera is ``JUNK``, which neither helps nor harms (Zheng et al.
    2015, Market-1501). alone: a pool that searches itself; a query does not count among those that it could find.
    An answer is a ``HIT``, a ``MISS`` or ``JUNK``.
    """
    answers = np.where(gallery[places] == queries[:, None], HIT, MISS).astype(np.int8)
    relevant = _counts(queries, gallery)
    if cameras is None:
        return relevant - alone, answers
    asked, taken = cameras
    answers[(answers == HIT) & (taken[places] == asked[:, None])] = JUNK
    return relevant - _counts(*_pairs(queries, gallery, asked, taken)), answers


def judge_pool(
    search: Search, identity: np.ndarray, camera: np.ndarray, k: int, first: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same of a pool that searches itself: k answers of each of its first rows (None: of all), and what junk adds.

    identity (G,); camera (G,) int64, negative: none, which is like no other.
    """
    apart = np.where(camera < 0, -1 - np.arange(len(camera)), camera)
    junk = int(np.unique(np.stack([identity, apart]), axis=1, return_counts=True)[1].max()) - 1
    places = search.nearest(k + junk, first)[1]
    return judge(places, identity[:first], identity, (apart[:first], apart), alone=True)


def judge_labels(answers: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of ranked labels (Q, k), by name or code: each query has one to find, its own (Q,)."""
    return np.ones(len(truth), dtype=np.int64), np.where(answers == truth[:, None], HIT, MISS).astype(np.int8)


def _counts(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q,) int64 how many of the gallery (G,) are the same as each query (Q,)."""
    names, codes = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    return np.bincount(codes[len(queries) :], minlength=len(names))[codes[: len(queries)]]


def _pairs(
    queries: np.ndarray, gallery: np.ndarray, asked: np.ndarray, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """One number for each pair of identity and camera, of queries and of the gallery."""
    _, identity = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    cameras, camera = np.unique(np.concatenate([asked, taken]), return_inverse=True)
    both = identity * len(cameras) + camera
    return both[: len(queries)], both[len(queries) :]
