"""Search, votes and judgements against sorting in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import forms, ranking
from pipeline.errors import UserError
from pipeline.ranking import HIT, JUNK, MISS, Search

SHORT = settings(max_examples=40, deadline=None)


def coarse(seed: int, rows: int) -> np.ndarray:
    """(rows, 16) of ±1/4: rows of length 1 whose cosines are exact in float32, and often equal."""
    return np.random.default_rng(seed).choice(np.float32([-0.25, 0.25]), size=(rows, 16))


@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 9), rows=st.integers(1, 40), k=st.integers(1, 45))
@SHORT
def test_the_nearest_are_those_of_a_sort_and_equal_ones_come_in_order(seed, queries, rows, k):
    asked, gallery = coarse(seed, queries), coarse(seed + 1, rows)
    found, places = Search(asked, gallery).nearest(k)
    assert (found.dtype, places.dtype, places.shape) == (np.float32, np.int64, (queries, min(k, rows)))
    for query, one, order in zip(asked.tolist(), found, places, strict=True):
        cosines = [sum(a * b for a, b in zip(query, other, strict=True)) for other in gallery.tolist()]
        expected = sorted(range(rows), key=lambda place: (-cosines[place], place))[:k]
        assert order.tolist() == expected
        assert one.tolist() == [cosines[place] for place in expected]


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_a_pool_never_answers_a_query_by_itself_but_by_its_copies(rows):
    pool = coarse(0, rows)
    pool[rows // 2 :] = pool[: rows - rows // 2]
    found, places = Search(pool, pool, alone=True).nearest(rows)
    assert places.shape == (rows, rows - 1)
    for row in range(rows):
        assert sorted([*places[row].tolist(), row]) == list(range(rows))
        assert np.isfinite(found[row]).all()


def test_blocks_change_nothing_and_hold_their_bound(monkeypatch):
    asked, gallery = coarse(1, 50), coarse(2, 30)
    whole = Search(asked, gallery).nearest(7)
    sizes = []

    def scores(start: int, stop: int) -> np.ndarray:
        sizes.append((stop - start) * len(gallery))
        return asked[start:stop] @ gallery.T

    monkeypatch.setattr(ranking, "BLOCK", 100)
    for parts in zip(whole, Search(asked, gallery, scores=scores).nearest(7), strict=True):
        assert np.array_equal(*parts)
    assert len(sizes) > 10
    assert max(sizes) <= 100


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("first", [None, 20])
def test_large_searches_by_faiss_are_the_same(monkeypatch, alone, first):
    pytest.importorskip("faiss")
    gallery = forms.unit(np.random.default_rng(0).normal(size=(300, 16)))
    asked = gallery if alone else forms.unit(np.random.default_rng(1).normal(size=(50, 16)))
    search = Search(asked, gallery, alone=alone)
    found, places = search.nearest(9, first)
    monkeypatch.setattr(ranking, "LARGE", 0)
    monkeypatch.setattr(ranking, "best", lambda *_: pytest.fail("NumPy searched"))
    by_faiss = search.nearest(9, first)
    assert np.array_equal(by_faiss[1], places)
    np.testing.assert_allclose(by_faiss[0], found, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 30])
def test_a_pool_finds_copies_by_faiss_but_never_the_image_itself(monkeypatch, rows):
    pytest.importorskip("faiss")
    monkeypatch.setattr(ranking, "LARGE", 0)
    pool = coarse(0, rows)
    pool[rows // 2 :] = pool[: rows - rows // 2]
    for k in (1, rows):
        found, places = Search(pool, pool, alone=True).nearest(k)
        assert places.shape == (rows, min(k, rows - 1))
        assert not (places == np.arange(rows)[:, None]).any()
        np.testing.assert_allclose(found[:, 0], 1, atol=1e-6)


def test_embeddings_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="queries have 3 numbers each, but the gallery 4"):
        Search(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(UserError, match="not finite, as in rows"):
        Search(np.float32([[1, 0], [np.nan, 0]]), np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match="as many queries as rows: 3"):
        Search(np.ones((2, 2), np.float32), np.ones((3, 2), np.float32), alone=True)


def test_unit_rows_have_length_one_and_zeros_stay():
    rows = forms.unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_nothing_follows_what_leaves_no_embeddings():
    ranking.check_rerankings(["database_augmentation()", "query_expansion(k=3)", "k_reciprocal()"])
    with pytest.raises(UserError, match="k_reciprocal.* nothing can follow it, but query_expansion"):
        ranking.check_rerankings(["k_reciprocal()", "query_expansion()"])
    with pytest.raises(UserError, match="did you mean diffusion"):
        ranking.check_rerankings(["difusion()"])


# --- labels -------------------------------------------------------------------------------------------------------


def slow_labels(cosines: list[float], labels: list[int], n: int, nearest: int) -> list[tuple[int, float]]:
    """The n labels with the largest mean of their nearest images' cosines, image by image; of equals the smaller."""
    images: dict[int, list[float]] = {}
    for cosine, label in zip(cosines, labels, strict=True):
        images.setdefault(label, []).append(cosine)
    best = {label: sorted(own, reverse=True)[:nearest] for label, own in images.items()}
    near = {label: sum(own) / len(own) for label, own in best.items()}
    return sorted(near.items(), key=lambda one: (-one[1], one[0]))[:n]


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), nearest=st.integers(1, 4))
@SHORT
def test_labels_are_ranked_by_their_nearest_images(seed, n, nearest):
    generator = np.random.default_rng(seed)
    labels, queries, gallery = generator.integers(10, 15, size=20), coarse(seed, 5), coarse(seed + 1, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "BLOCK", 50)
        codes, found = ranking.nearest_labels(queries, gallery, labels, n, nearest)
    assert (codes.dtype, found.dtype) == (np.int64, np.float32)
    for row, cosines in enumerate((queries @ gallery.T).tolist()):
        slow = slow_labels(cosines, labels.tolist(), n, nearest)
        np.testing.assert_allclose(found[row], [near for _, near in slow], atol=1e-6)
        own = dict(slow_labels(cosines, labels.tolist(), 99, nearest))
        np.testing.assert_allclose([own[code] for code in codes[row].tolist()], found[row], atol=1e-6)
        if nearest == 1:
            assert codes[row].tolist() == [code for code, _ in slow]


def test_ids_are_those_of_the_places():
    ids = np.array([7, 8, 9])
    assert ranking.ranked_ids(np.array([[2, 0], [1, 1]]), ids).tolist() == [["9", "7"], ["8", "8"]]


# --- right or wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("with_cameras", [False, True])
def test_answers_are_judged_one_by_one(alone, with_cameras):
    generator = np.random.default_rng(0)
    gallery, taken = generator.integers(5, size=40), generator.integers(2, size=40)
    queries, asked = (gallery, taken) if alone else (generator.integers(6, size=9), generator.integers(3, size=9))
    points = coarse(3, 40)
    places = Search(points if alone else coarse(4, 9), points, alone).nearest(12)[1]
    found = ranking.judge(places, queries, gallery, (asked, taken) if with_cameras else None, alone)
    assert [part.dtype for part in found] == [np.int64, np.int8]

    def slow(query: int, other: int) -> int:
        if queries[query] != gallery[other]:
            return MISS
        return JUNK if with_cameras and asked[query] == taken[other] else HIT

    for query, (relevant, answers) in enumerate(zip(*found, strict=True)):
        assert answers.tolist() == [slow(query, other) for other in places[query]]
        assert relevant == sum(slow(query, other) == HIT for other in range(40) if not (alone and other == query))


def test_labels_are_judged_as_one_to_find():
    answers = np.array([["a", "new", ""], ["b", "", ""]])
    relevant, judged = ranking.judge_labels(answers, np.array(["new", "a"]))
    assert relevant.tolist() == [1, 1]
    assert judged.tolist() == [[MISS, HIT, MISS], [MISS] * 3]
