"""Re-rankings against slow references that follow the papers point by point, in plain Python and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from pipeline import ranking, registry
from pipeline.errors import UserError
from pipeline.forms import unit
from pipeline.parts import rerankings
from pipeline.ranking import Search

EQUAL = 2e-6  # scores that differ by less may stand in either order


def points(seed: int, rows: int, identities: int = 6, noise: float = 0.8) -> np.ndarray:
    """(rows, 12) of length 1, around so many directions; the same ones for every number of rows."""
    centres = np.random.default_rng(seed % 1000).normal(size=(identities, 12))
    generator = np.random.default_rng([seed, rows])
    return unit(centres[generator.integers(identities, size=rows)] + noise * generator.normal(size=(rows, 12)))


def drawn(seed: int, queries: int, rows: int, alone: bool) -> Search:
    gallery = points(seed, rows)
    return Search(gallery, gallery, True) if alone else Search(points(seed, queries), gallery)


def distances(one: np.ndarray, other: np.ndarray) -> list[list[float]]:
    """One minus the cosines, of pairs; 0 of a point to itself, by its place."""
    wide = other.astype(np.float64).tolist()
    return [[1 - math.fsum(a * b for a, b in zip(row, to, strict=True)) for to in wide] for row in one.tolist()]


def slow_k_reciprocal(search: Search, k1: int, k2: int, weight: float) -> list[list[float]]:
    """Distances (Q, G) of Zhong et al. 2017, set by set, as their published code computes them.

    It begins with the cosines that the fast one sees: rounded otherwise, two neighbours might change places.
    """
    everything = search.points
    first = [[1 - cosine for cosine in row] for row in (everything @ everything.T).tolist()]
    for place, row in enumerate(first):
        row[place] = 0.0
        largest = max(row)
        row[:] = [distance / largest for distance in row]
    order = [sorted(range(len(row)), key=lambda other, row=row: (row[other], other)) for row in first]
    order = [[place, *(other for other in row if other != place)] for place, row in enumerate(order)]

    def mutual(place: int, k: int) -> set[int]:
        return {other for other in order[place][: k + 1] if place in order[other][: k + 1]}

    codes = []
    for place, row in enumerate(first):
        members = expanded = mutual(place, k1)
        for other in members:
            own = mutual(other, int(np.around(k1 / 2)))
            if len(own & members) > 2 / 3 * len(own):
                expanded = expanded | own
        total = sum(math.exp(-row[other]) for other in expanded)
        codes.append({other: math.exp(-row[other]) / total for other in expanded})
    averaged = []
    for row in order:
        near = [codes[other] for other in row[:k2]]
        averaged.append({key: sum(code.get(key, 0) for code in near) / len(near) for code in near for key in code})
    offset = 0 if search.alone else len(search.queries)
    final = []
    for query in range(len(search.queries)):
        final.append([])
        for other in range(offset, len(everything)):
            one, two = averaged[query], averaged[other]
            shared = sum(min(one[key], two[key]) for key in one if key in two)
            final[-1].append((1 - weight) * (1 - shared / (2 - shared)) + weight * first[query][other])
    return final


def agree(search: Search, slow: list[list[float]]) -> None:
    """The scores are the slow ones, and so are the ranks wherever the slow scores differ at all."""
    expected = np.array(slow)
    found = search.similarities(0, len(search.queries))
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    if search.alone:
        np.fill_diagonal(expected, -np.inf)
        np.fill_diagonal(found, -np.inf)
    np.testing.assert_allclose(found, expected, atol=EQUAL, rtol=0)
    places = search.nearest(len(search.gallery))[1]
    for row, order in zip(expected, places, strict=True):
        best = np.sort(row)[::-1][: len(order)]
        assert (np.abs(row[order] - best) < 2 * EQUAL).all()
        gaps = np.diff(best, prepend=np.inf, append=-np.inf)
        clear = (np.abs(gaps[:-1]) > 4 * EQUAL) & (np.abs(gaps[1:]) > 4 * EQUAL)
        assert np.array_equal(order[clear], np.argsort(-row, kind="stable")[: len(order)][clear])


@given(
    seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 8), rows=st.integers(2, 30), alone=st.booleans(),
    k1=st.integers(1, 12), k2=st.integers(1, 8), weight=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_k_reciprocal_ranks_as_the_slow_one(seed, queries, rows, alone, k1, k2, weight):
    search = drawn(seed, queries, rows, alone)
    fast = rerankings.k_reciprocal(search, k1=k1, k2=k2, weight=weight)
    slow = slow_k_reciprocal(search, k1, k2, weight)
    agree(fast, [[1 - distance for distance in row] for row in slow])


def test_k_reciprocal_of_the_papers_numbers_is_the_slow_one_and_blocks_change_nothing(monkeypatch):
    search = drawn(0, 30, 90, alone=False)
    fast = rerankings.k_reciprocal(search)
    agree(fast, [[1 - distance for distance in row] for row in slow_k_reciprocal(search, 20, 6, 0.3)])
    whole = fast.nearest(10)
    for bound in (1, 500, 20_000):
        monkeypatch.setattr(rerankings, "MEETINGS", bound)
        monkeypatch.setattr(ranking, "BLOCK", bound)
        similarities, places = rerankings.k_reciprocal(search).nearest(10)
        np.testing.assert_allclose(similarities, whole[0], atol=1e-6)
        assert (places == whole[1]).mean() > 0.99


def on_a_circle(angles: np.ndarray) -> Search:
    pool = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return Search(pool, pool, True)


def test_k_reciprocal_trusts_no_neighbour_that_has_nearer_ones():
    """Four of a kind far apart, beside a dozen of another close together, three of which are nearest to the first."""
    search = on_a_circle(np.concatenate([[0.0, -0.3, -0.6, -0.9], np.linspace(0.25, 0.47, 12)]))
    assert search.nearest(1)[1][0] == 4
    assert rerankings.k_reciprocal(search, k1=4, k2=1).nearest(1)[1][0] == 1


def test_diffusion_follows_an_identity_whose_ends_are_far_apart():
    search = on_a_circle(np.concatenate([np.linspace(0, 1.2, 12), np.linspace(1.9, 2.2, 12)]))
    identity = np.repeat([0, 1], 12)
    right = [(identity[one.nearest(11)[1]] == identity[:, None]).mean()
             for one in (search, rerankings.diffusion(search, k=3, start=2))]  # fmt: skip
    assert right[0] < 1 == right[1]


# --- the space itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
def test_whitening_is_that_of_scikit_learn(alone):
    search = drawn(6, 20, 60, alone)
    found = rerankings.whitening(search, shrink=0.0)
    fitted = PCA(whiten=True).fit(search.points.astype(np.float64))
    np.testing.assert_allclose(found.queries @ found.gallery.T, cosines_of(fitted, search), atol=1e-3)
    assert (found.queries is found.gallery) == alone


def cosines_of(fitted: PCA, search: Search) -> np.ndarray:
    queries, gallery = (unit(fitted.transform(side)) for side in (search.queries, search.gallery))
    return queries @ gallery.T


def test_whitening_shrinks_towards_centred_points_and_keeps_copies():
    search = drawn(7, 5, 40, alone=False)
    mean = search.points.mean(axis=0)
    found = rerankings.whitening(search, shrink=1e6)
    np.testing.assert_allclose(found.queries, unit(found.queries), atol=1e-6)
    centred = unit(search.queries - mean) @ unit(search.gallery - mean).T
    np.testing.assert_allclose(found.queries @ found.gallery.T, centred, atol=1e-3)
    alike = np.tile(search.gallery[:1], (4, 1))
    np.testing.assert_allclose(rerankings.whitening(Search(alike, alike, True)).gallery, alike, atol=1e-6)


def test_each_member_is_whitened_alone_and_keeps_its_share():
    """Two runs of 12 and 24 columns, two members each, of weights 1 and 3."""
    sides = [np.tile(points(seed, 50), (1, times)) for seed, times in ((8, 1), (9, 1), (10, 2), (11, 2))]
    sides = [unit(side * np.random.default_rng(n).random(side.shape[1])) for n, side in enumerate(sides)]
    shares = np.sqrt([1 / 8, 1 / 8, 3 / 8, 3 / 8])
    joined = unit(np.concatenate([share * side for share, side in zip(shares, sides, strict=True)], axis=1))
    found = rerankings.whitening(Search(joined, joined, True), widths=(12, 24))
    alone = [rerankings.whitening(Search(side, side, True)).gallery for side in sides]
    expected = sum(share**2 * side @ side.T for share, side in zip(shares, alone, strict=True))
    np.testing.assert_allclose(found.gallery @ found.gallery.T, expected, atol=1e-4)
    with pytest.raises(UserError, match="72 are no multiple of 25"):
        rerankings.whitening(Search(joined, joined, True), widths=(1, 24))


# --- embeddings moved ---------------------------------------------------------------------------------------------


def slow_moved(asked: np.ndarray, gallery: np.ndarray, weights: list[dict[int, float]]) -> np.ndarray:
    """Each of asked with weighted neighbours added, at length 1."""
    found = []
    for point, near in zip(asked.astype(np.float64).tolist(), weights, strict=True):
        total = [x + sum(w * float(gallery[place][d]) for place, w in near.items()) for d, x in enumerate(point)]
        found.append([x / math.hypot(*total) for x in total])
    return np.array(found)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("k", "alpha"), [(1, 3.0), (4, 3.0), (3, 0.0), (99, 1.5)])
def test_query_expansion_is_the_slow_one(alone, k, alpha):
    search = drawn(1, 7, 15, alone)
    weights = []
    for query, row in enumerate(distances(search.queries, search.gallery)):
        order = sorted((d, place) for place, d in enumerate(row) if not (alone and place == query))
        weights.append({place: max(1 - d, 0) ** alpha for d, place in order[:k]})
    found = rerankings.query_expansion(search, k=k, alpha=alpha)
    np.testing.assert_allclose(found.queries, slow_moved(search.queries, search.gallery, weights), atol=1e-5)
    assert found.gallery is search.gallery


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("k", [1, 4, 99])
def test_database_augmentation_is_the_slow_one(alone, k):
    search = drawn(2, 7, 15, alone)
    weights = []
    for place, row in enumerate(distances(search.gallery, search.gallery)):
        order = sorted((d, other) for other, d in enumerate(row) if other != place)[:k]
        weights.append({other: (k + 1 - rank) / (k + 1) for rank, (_, other) in enumerate(order, start=1)})
    found = rerankings.database_augmentation(search, k=k)
    np.testing.assert_allclose(found.gallery, slow_moved(search.gallery, search.gallery, weights), atol=1e-5)
    assert found.queries is (found.gallery if alone else search.queries)


# --- diffusion ----------------------------------------------------------------------------------------------------


def slow_diffusion(search: Search, k: int, alpha: float, start: int, gamma: float) -> list[list[float]]:
    """The closed form, by a dense inverse."""
    gallery, cosines = search.gallery, 1 - np.array(distances(search.gallery, search.gallery))
    others = [[p for p in range(len(cosines)) if p != i] for i in range(len(cosines))]
    order = [sorted(near, key=lambda p, r=row: -r[p])[:k] for near, row in zip(others, cosines, strict=True)]
    edges = np.zeros_like(cosines)
    for i, near in enumerate(order):
        for j in near:
            edges[i, j] = max(cosines[i, j], 0) ** gamma if i in order[j] else 0
    degree = edges.sum(axis=1)
    scale = np.diag([1 / math.sqrt(d) if d > 0 else 0 for d in degree])
    inverse = np.linalg.inv(np.eye(len(gallery)) - alpha * scale @ edges @ scale)
    found = []
    for row in distances(search.queries, gallery):
        near = sorted(range(len(row)), key=lambda p, r=row: r[p])[:start]
        flow = (1 - alpha) * inverse @ [max(1 - row[p], 0) ** gamma if p in near else 0.0 for p in range(len(row))]
        found.append([x if x > 1e-9 else min(-row[p], 0) for p, x in enumerate(flow)])
    return found


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("k", "alpha", "start", "gamma"), [(4, 0.9, 3, 3.0), (2, 0.5, 1, 1.0), (60, 0.95, 60, 3.0)])
def test_diffusion_converges_to_the_closed_form(alone, k, alpha, start, gamma):
    search = drawn(3, 6, 30, alone)
    fast = rerankings.diffusion(search, k=k, alpha=alpha, start=start, gamma=gamma, steps=200)
    agree(fast, slow_diffusion(search, k, alpha, start, gamma))


def test_diffusion_cut_short_is_conjugate_gradients_of_so_many_steps():
    generator = np.random.default_rng(0)
    half = generator.random((9, 9)) * (generator.random((9, 9)) < 0.4)
    table = (half + half.T) / (half + half.T).sum(axis=0).max()
    wanted = generator.random((9, 2))
    solver = np.eye(9) - 0.9 * table
    for column in wanted.T:
        x, r = np.zeros(9), column.copy()
        p = r.copy()
        for _ in range(3):
            step = (r @ r) / (p @ solver @ p)
            x, after = x + step * p, r - step * (solver @ p)
            p, r = after + (after @ after) / (r @ r) * p, after
        graph = rerankings.sparse.csr_array(table.astype(np.float32))
        found = rerankings._solved(graph, wanted.astype(np.float32), 0.9, 3)
        np.testing.assert_allclose(found[:, (wanted == column[:, None]).all(axis=0).argmax()], x, atol=1e-5)


# --- together -----------------------------------------------------------------------------------------------------


def test_a_chain_is_one_after_the_other():
    search = drawn(4, 5, 20, alone=False)
    chain = ranking.reranked(search, ["database_augmentation(k=2)", "query_expansion(k=3)", "k_reciprocal(k1=4)"])
    moved = rerankings.query_expansion(rerankings.database_augmentation(search, k=2), k=3)
    by_hand = rerankings.k_reciprocal(moved, k1=4)
    assert np.array_equal(chain.nearest(20)[1], by_hand.nearest(20)[1])
    assert ranking.reranked(search, []) is search is ranking.reranked(search, ["none()"])


def test_a_pool_with_expanded_queries_keeps_them():
    expanded = rerankings.query_expansion(drawn(5, 0, 20, alone=True), k=2)
    later = rerankings.database_augmentation(expanded, k=2)
    assert later.queries is expanded.queries
    for name in ("k_reciprocal", "diffusion"):
        assert registry.build("rerankings", name)(later).nearest(3)[1].shape == (20, 3)
