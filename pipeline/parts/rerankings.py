"""Re-rankings: a search becomes a better one, by what the neighbours of queries and gallery have in common.

Form: ``f(search, *, …) -> Search`` (``pipeline/ranking.py``), torch-free. What moves embeddings gives new queries or a
new gallery, and any other may follow it. What computes distances gives ``scores``, a function of a block of queries
that ``Search.nearest`` calls: nothing (Q, G) is ever held. A pool that searches itself moves as one.

Nothing here reads a label, so there is nothing to leak; but the embeddings of a fold's rows must be those of the member
that did not learn from them, and its gallery must be as large as the test's for numbers of neighbours to carry over.

Facts: ``gives``, "points" or "scores"; nothing may follow the latter (``ranking.check_rerankings``). ``distances``:
scores are one minus a distance of 0 to 1, so that a threshold has a meaning (``pipeline/clusters.py``). ``search``: the
arguments that a nested search may choose, in its order, and the values that it tries; those that a call-string names
stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from pipeline.errors import UserError
from pipeline.forms import unit
from pipeline.ranking import Search, best, blocks
from pipeline.registry import part

TINY = 1e-12
SHORT = 1e-6  # lengths that rounding alone explains
MEETINGS = 1 << 21  # pairs of codes' entries compared at a time: some 80 MB


@part(source="cosine similarity", gives="points", search={})
def none(search: Search) -> Search:
    """The search as it is, by the cosine."""
    return search


# --- the space itself ---------------------------------------------------------------------------------------------


@part(
    source="Jégou & Chum 2012, section 3 (PCA whitening), of the points that are searched",
    gives="points",
    allowed={"widths": (0, None), "shrink": (0, None)},
    search={"shrink": (0.01, 0.03, 0.1, 0.3, 1)},
)
def whitening(search: Search, *, widths: tuple[int, ...] = (0,), shrink: float = 0.3) -> Search:
    """Directions in which all points differ count less, those in which few do more: principal components of length 1.

    Mean and components are those of queries and gallery together, without a label. widths: of the embeddings of runs
    that lie side by side, of each run all its members'; each of them is whitened alone and keeps its share of the
    cosine; (0,): all columns as one. shrink: added to each variance, as a share of their mean.
    """
    wide = search.queries.shape[1]
    widths = (wide,) if tuple(widths) == (0,) else widths
    if not all(widths) or wide % sum(widths):
        raise UserError(
            f"whitening(widths={list(widths)}) shares columns out, but {wide} are no multiple of {sum(widths)}; give "
            "the widths of single members of the runs that lie side by side"
        )
    members = [width for width in widths for _ in range(wide // sum(widths))]
    sides = [slice(int(end) - width, int(end)) for width, end in zip(members, np.cumsum(members), strict=True)]
    known = search.gallery if search.alone else search.points
    fitted = [_components(known[:, side], shrink) for side in sides]

    def moved(points: np.ndarray) -> np.ndarray:
        return unit(
            np.concatenate([_whitened(points[:, s], *own) for s, own in zip(sides, fitted, strict=True)], axis=1)
        )

    gallery = moved(search.gallery)
    return replace(
        search, queries=gallery if search.queries is search.gallery else moved(search.queries), gallery=gallery
    )


def _components(points: np.ndarray, shrink: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and components (D, D) over the root of their variance, shrunk; float32 of points (N, D)."""
    mean = points.mean(axis=0, dtype=np.float64)
    centred = points - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(points))
    variances = np.maximum(variances, 0)
    scale = 1 / np.sqrt(np.maximum(variances + shrink * variances.mean(), TINY))
    return mean.astype(np.float32), (vectors * scale).astype(np.float32)


def _whitened(points: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """(N, D) float32 of the lengths of points, which stay where all are alike."""
    found = (points - mean) @ components
    length, own = (np.linalg.norm(each, axis=1, keepdims=True) for each in (found, points))
    return np.where(length > SHORT, found / np.maximum(length, SHORT) * own, points)


# --- embeddings moved towards their neighbours --------------------------------------------------------------------


@part(
    source="Radenović et al. 2019 (αQE); alpha 0 is average query expansion, Chum et al. 2007",
    gives="points",
    allowed={"k": (1, None), "alpha": (0, 20)},
    search={"k": (1, 2, 3, 5, 10, 20, 50), "alpha": (0, 1, 3, 5, 10)},
)
def query_expansion(search: Search, *, k: int = 10, alpha: float = 3.0) -> Search:
    """Each query becomes the mean of itself and its k nearest in the gallery, weighted by cosine ^ alpha.

    k: neighbours taken in; about the images that an identity has, or fewer. alpha: how much nearer ones count for more;
    0 counts all alike. Neighbours of a negative cosine count 0 (with alpha 0 as all others).
    """
    cosines, places = search.nearest(k)
    weights = np.maximum(cosines, 0) ** np.float32(alpha)
    moved = unit(search.queries + _rows(places, weights, len(search.gallery)) @ search.gallery)
    return replace(search, queries=moved)


@part(
    source="Turcot & Lowe 2009; Arandjelović & Zisserman 2012; weights by rank as Gordo et al. 2017",
    gives="points",
    allowed={"k": (1, None)},
    search={"k": (1, 2, 3, 5, 10, 20)},
)
def database_augmentation(search: Search, *, k: int = 5) -> Search:
    """Each image of the gallery becomes the mean of itself and its k nearest there, with weights that fall by rank.

    k: neighbours taken in; the one of rank r counts (k + 1 - r) / (k + 1), the image itself 1. Queries stay as they
    are; those of a pool that searches itself are the gallery and move along, unless they were expanded before.
    """
    places = Search(search.gallery, search.gallery, alone=True).nearest(k)[1]
    falling = 1 - np.arange(1, places.shape[1] + 1, dtype=np.float32) / (k + 1)
    weights = np.broadcast_to(falling, places.shape)
    moved = unit(search.gallery + _rows(places, weights, len(search.gallery)) @ search.gallery)
    return replace(search, gallery=moved, queries=moved if search.queries is search.gallery else search.queries)


# --- k-reciprocal neighbours --------------------------------------------------------------------------------------


@part(
    source="Zhong et al. 2017, sections 3.2 to 3.4, as the published code computes it",
    gives="scores",
    distances=True,
    allowed={"k1": (1, None), "k2": (1, None), "weight": (0, 1)},
    search={
        "k1": (3, 5, 7, 10, 15, 20, 30, 50),
        "k2": (1, 2, 3, 4, 6, 10, 15),
        "weight": (0, 0.1, 0.2, 0.3, 0.5, 0.7, 1),
    },
)
def k_reciprocal(search: Search, *, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Search:
    """Nearer are those whose k-reciprocal neighbours overlap: a Jaccard distance, mixed with the distance itself.

    k1: neighbours that must hold each other, somewhat more than the images an identity has. k2: neighbours whose sets
    are averaged, fewer than that; 1 averages none. weight: the share of the first distance, 0 to 1. That is 1 - cosine
    over the largest of the query's, to queries and gallery. Exact, in sparse matrices: each of Q + G images against all
    others once, then work that grows with k1 alone. A score is one minus the final distance.
    """
    points = search.points
    near, furthest = _neighbours(points, max(k1 + 1, k2))
    codes = _codes(points, _reciprocal_sets(near, k1), furthest)
    first = near[:, :k2]
    codes = (_rows(first, np.full(first.shape, 1 / first.shape[1], np.float32), len(points)) @ codes).tocsr()
    gallery = points if search.alone else search.gallery
    by_member = codes[len(points) - len(gallery) :].tocsc()

    def scores(start: int, stop: int) -> np.ndarray:
        shared = _shared(codes[start:stop], by_member)
        near_by = 1 - (1 - search.queries[start:stop] @ gallery.T) / furthest[start:stop, None]
        return np.float32(1 - weight) * (shared / (2 - shared)) + np.float32(weight) * near_by

    return Search(search.queries, gallery, search.alone, scores)


def _neighbours(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, k) places of each point's nearest, itself first even among copies; (N,) float32 its largest distance."""
    near = np.empty((len(points), min(k, len(points))), dtype=np.int64)
    furthest = np.empty(len(points), dtype=np.float32)
    for start, stop in blocks(len(points), len(points)):
        cosines = points[start:stop] @ points.T
        furthest[start:stop] = np.maximum(1 - cosines.min(axis=1), TINY)
        cosines[np.arange(stop - start), np.arange(start, stop)] = np.inf
        near[start:stop] = best(cosines, near.shape[1])
    return near, furthest


def _reciprocal_sets(near: np.ndarray, k1: int) -> sparse.csr_array:
    """(N, N) with the members of each point's set R*: what holds it and is held, and their own such sets.

    The set of half as many neighbours of each member joins where more than two thirds of it are there already (the
    paper says two thirds or more, the published code more).
    """
    held, half = _mutual(near[:, : k1 + 1]), _mutual(near[:, : round(k1 / 2) + 1])
    common = held.multiply(held @ half).tocsr()  # half is its own transpose
    common.data = (3 * common.data > 2 * np.diff(half.indptr)[common.indices]).astype(np.int32)
    common.eliminate_zeros()
    return (held + common @ half).tocsr()


def _mutual(near: np.ndarray) -> sparse.csr_array:
    """(N, N) int32, 1 where each of two points is among the other's neighbours (N, k)."""
    holds = _rows(near, np.ones(near.shape, dtype=np.int32), len(near))
    return holds.multiply(holds.T).tocsr()


def _codes(points: np.ndarray, sets: sparse.csr_array, furthest: np.ndarray) -> sparse.csr_array:
    """The sets as vectors: exp(-distance) of each member; rows sum to 1, as in the published code."""
    count = np.diff(sets.indptr)
    rows, members = np.repeat(np.arange(len(points)), count), sets.indices
    weights = np.empty(len(rows), dtype=np.float32)
    for start, stop in blocks(len(rows), 2 * points.shape[1]):
        pairs = rows[start:stop], members[start:stop]
        cosines = np.einsum("nd,nd->n", points[pairs[0]], points[pairs[1]])
        weights[start:stop] = np.exp(-np.where(pairs[0] == pairs[1], 0, 1 - cosines) / furthest[pairs[0]])
    weights /= np.repeat(np.add.reduceat(weights, sets.indptr[:-1]), count)  # no set is empty: each holds its point
    return sparse.csr_array((weights, members, sets.indptr), shape=sets.shape)


def _shared(asked: sparse.csr_array, by_member: sparse.csc_array) -> np.ndarray:
    """(b, G) float32, the sum over members of the smaller of two codes: asked (b, N) and the gallery's (G, N)."""
    gallery = by_member.shape[0]
    owners = np.diff(by_member.indptr)[asked.indices]  # how many of the gallery each entry meets
    met = np.concatenate([[0], owners.cumsum()])[asked.indptr]
    found = np.empty((asked.shape[0], gallery), dtype=np.float32)
    start = 0
    while start < len(found):
        most = min(int(np.searchsorted(met, met[start] + MEETINGS)) - 1, start + max(1, MEETINGS // gallery))
        stop = min(max(most, start + 1), len(found))
        found[start:stop] = _least(asked[start:stop], by_member)
        start = stop
    return found


def _least(asked: sparse.csr_array, by_member: sparse.csc_array) -> np.ndarray:
    """(b, G) of ``_shared``: every pair of an entry and one that it meets, all at once."""
    shape = asked.shape[0], by_member.shape[0]
    starts, owners = by_member.indptr[asked.indices].astype(np.int64), np.diff(by_member.indptr)[asked.indices]
    ends = owners.cumsum(dtype=np.int64)
    meets = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + owners, owners)
    row = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(asked.indptr)) * shape[1]
    least = np.minimum(np.repeat(asked.data, owners), by_member.data[meets])
    places = np.repeat(row, owners) + by_member.indices[meets]
    return np.bincount(places, least, minlength=shape[0] * shape[1]).reshape(shape)


# --- diffusion ----------------------------------------------------------------------------------------------------


@part(
    source="Iscen et al. 2017, after Zhou et al. 2003 and Donoser & Bischof 2013; conjugate gradients cut short",
    gives="scores",
    allowed={"k": (1, None), "start": (1, None), "alpha": (0, 0.9999), "gamma": (0, 20), "steps": (1, 1000)},
    search={
        "k": (5, 10, 20, 50, 100),
        "start": (1, 3, 5, 10, 20),
        "alpha": (0.5, 0.8, 0.9, 0.95, 0.99),
        "gamma": (1, 3, 5),
    },
)
def diffusion(
    search: Search, *, k: int = 50, alpha: float = 0.99, start: int = 10, gamma: float = 3.0, steps: int = 20
) -> Search:
    """Similarity flows from a query through the graph of images that are each other's neighbours.

    k: neighbours in the graph of the gallery. alpha: the share that flows on at each step, below 1. start: the
    query's nearest, where its flow begins. gamma: edges weigh cosine ^ gamma, 0 where it is negative. steps: of
    conjugate gradients at most; they end earlier where all of a block's errors are below one in a million. What no
    flow reaches follows behind, by the cosine.
    """
    gallery = search.queries if search.alone else search.gallery
    graph = _graph(gallery, k, gamma)
    sources = Search(search.queries, gallery)

    def scores(begin: int, end: int) -> np.ndarray:
        cosines = sources.similarities(begin, end)
        places = best(cosines, min(start, len(gallery)))
        weights = np.maximum(np.take_along_axis(cosines, places, axis=1), 0) ** np.float32(gamma)
        found = np.minimum(cosines - 1, 0)
        for low, high in blocks(end - begin, 8 * len(gallery)):  # conjugate gradients hold several such tables
            flow = _rows(places[low:high], weights[low:high], len(gallery)).toarray().T
            flow = _solved(graph, np.float32(1 - alpha) * flow, alpha, steps).T
            np.copyto(found[low:high], flow, where=flow > 0)
        return found

    return Search(search.queries, gallery, search.alone, scores)


def _graph(points: np.ndarray, k: int, gamma: float) -> sparse.csr_array:
    """(N, N) float32, D^-1/2 A D^-1/2 of mutual neighbours' cosine ^ gamma; no point is its own neighbour."""
    cosines, places = Search(points, points, alone=True).nearest(k)
    weights = np.maximum(cosines, 0) ** np.float32(gamma)
    one_way = _rows(places, weights, len(points))
    mutual = one_way.minimum(one_way.T).tocsr()
    degree = np.asarray(mutual.sum(axis=1)).ravel()
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, TINY)), 0).astype(np.float32)
    return (sparse.diags_array(scale) @ mutual @ sparse.diags_array(scale)).tocsr().astype(np.float32)


def _solved(graph: sparse.csr_array, wanted: np.ndarray, alpha: float, steps: int) -> np.ndarray:
    """(N, b) float32 x of (I - alpha graph) x = wanted, each column by conjugate gradients of so many steps."""
    solution = np.zeros_like(wanted)
    residual = wanted.copy()
    direction = residual.copy()
    size = (residual**2).sum(axis=0)
    enough = size * np.float32(1e-12)
    for _ in range(steps):
        if (size <= enough).all():
            break
        image = direction - np.float32(alpha) * (graph @ direction)
        along = (direction * image).sum(axis=0)
        stride = np.where(size > enough, size / np.maximum(along, np.finfo(np.float32).tiny), 0).astype(np.float32)
        solution += stride * direction
        residual -= stride * image
        before, size = size, np.where(size > enough, (residual**2).sum(axis=0), size)
        direction = residual + size / np.maximum(before, np.finfo(np.float32).tiny) * direction
    return solution


# --- several searches as one --------------------------------------------------------------------------------------


@part(
    source="Cormack et al. 2009 (reciprocal rank fusion)",
    gives="scores",
    allowed={"widths": (1, None), "k": (0, None)},
    search={},
)
def reciprocal_ranks(search: Search, *, widths: tuple[int, ...] = (1,), k: float = 60.0) -> Search:
    """Embeddings that lie side by side rank the gallery each for itself; a score is the sum of 1 / (k + rank).

    widths: how wide each embedding is against the others; all the columns are shared out in these proportions. k: how
    little the first ranks count for more than the later ones. Ranks count from 1, over the whole gallery.
    """
    wide = search.queries.shape[1]
    if not widths or wide % sum(widths):
        raise UserError(
            f"reciprocal_ranks(widths={list(widths)}) shares columns out, but {wide} are no multiple of {sum(widths)}; "
            "give the widths of the embeddings that lie side by side"
        )
    ends = np.cumsum(widths) * (wide // sum(widths))
    sides = [slice(int(end - own), int(end)) for own, end in zip(np.diff(ends, prepend=0), ends, strict=True)]
    lists = [Search(unit(search.queries[:, side]), unit(search.gallery[:, side])) for side in sides]

    def scores(start: int, stop: int) -> np.ndarray:
        found = np.zeros((stop - start, len(search.gallery)), dtype=np.float32)
        for one in lists:
            cosines = one.similarities(start, stop)
            if search.alone:
                cosines[np.arange(stop - start), np.arange(start, stop)] = -np.inf  # no query ranks itself
            places = np.argsort(-cosines, axis=1, kind="stable")
            ranks = np.broadcast_to(np.arange(1, found.shape[1] + 1, dtype=np.float32), found.shape)
            np.put_along_axis(cosines, places, 1 / (np.float32(k) + ranks), axis=1)
            found += cosines
        return found

    return Search(search.queries, search.gallery, search.alone, scores)


def _rows(places: np.ndarray, weights: np.ndarray, columns: int) -> sparse.csr_array:
    """(Q, columns) with weights (Q, k) at places (Q, k)."""
    starts = np.arange(len(places) + 1) * places.shape[1]
    return sparse.csr_array((weights.ravel(), places.ravel(), starts), shape=(len(places), columns))
