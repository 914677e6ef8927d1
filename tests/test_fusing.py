"""Level 2 of retrieval: fusion is the mean of cosines, choices see no query of their own part, what helps is found."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline import evaluate, fusing, ranking, registry, reranking
from pipeline.errors import UserError
from pipeline.forms import unit
from pipeline.parts import rerankings
from pipeline.ranking import Search
from pipeline.tasks.retrieval import Retrieval

CALL = "mean_average_precision(k=5)"
METRIC = evaluate.Metric(
    CALL, registry.build("metrics", CALL), greater=True, wants="decision", task=None, rowwise=True  # type: ignore[arg-type]
)  # fmt: skip
FOLDS, EACH, IMAGES = 3, 20, 4  # identities a fold, images of each


def truth_of(folds: int = FOLDS, each: int = EACH, images: int = IMAGES) -> np.ndarray:
    """(N, 3): identities by fold, no cameras; rows in no order."""
    identity = np.repeat(np.arange(folds * each), images)
    rows = np.random.default_rng(0).permutation(len(identity))
    return np.stack([identity, identity // each, np.full_like(identity, -1)], axis=1)[rows]


TRUTH = truth_of()


def embedded(seed: int, noise: float, width: int = 16, truth: np.ndarray = TRUTH) -> np.ndarray:
    """(N, width): each identity around a direction of its own; much noise knows nothing."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(truth[:, 0].max() + 1, width))
    return unit(centres[truth[:, 0]] + noise * generator.normal(size=(len(truth), width)))


def oof(*members: np.ndarray, truth: np.ndarray = TRUTH, parts: np.ndarray | None = None) -> fusing.Oof:
    names = [f"run{place}" for place in range(len(members))]
    return fusing.Oof(names, members, truth, METRIC, truth[:, 1] if parts is None else parts, 0)


# --- fusion -------------------------------------------------------------------------------------------------------


def test_the_cosine_of_fused_runs_is_the_weighted_mean_of_their_own():
    members, weights = [embedded(0, 1.0, 8), embedded(1, 1.0, 24)], np.array([3.0, 1.0])
    joined = fusing.fused(members, weights)
    assert (joined.dtype, joined.shape) == (np.float32, (len(TRUTH), 32))
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    expected = 0.75 * members[0] @ members[0].T + 0.25 * members[1] @ members[1].T
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-6)


def slow_ranks(lists: list[np.ndarray], k: float, alone: bool) -> list[list[float]]:
    """Cormack et al. 2009: each list (Q, G) of cosines is sorted, and 1 / (k + rank) added up."""
    found = [[0.0] * lists[0].shape[1] for _ in lists[0]]
    for cosines in lists:
        for query, row in enumerate(cosines.tolist()):
            order = sorted((p for p in range(len(row)) if not (alone and p == query)), key=lambda p, r=row: (-r[p], p))
            for rank, place in enumerate(order, start=1):
                found[query][place] += 1 / (k + rank)
    return found


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("k", [0.0, 60.0])
def test_fused_ranks_are_the_slow_ones(alone, k):
    few = [one[:30] for one in (embedded(0, 1.0, 8), embedded(1, 1.0, 24), embedded(2, 1.0, 16))]
    gallery, asked = fusing.fused(few, [1, 1, 1]), fusing.fused([one[:9] for one in few], [1, 1, 1])
    search = Search(gallery, gallery, True) if alone else Search(asked, gallery)
    found = rerankings.reciprocal_ranks(search, widths=(1, 3, 2), k=k).similarities(0, len(search.queries))
    lists = [one[: len(search.queries)] @ one.T for one in few]
    expected = np.array(slow_ranks(lists, k, alone))
    outside = ~np.eye(*expected.shape, dtype=bool) | (not alone)
    np.testing.assert_allclose(found[outside], expected[outside], atol=1e-6)


def test_fused_ranks_stay_the_same_when_members_lie_side_by_side_and_widths_must_fit():
    one = fusing.fused([embedded(0, 1.0, 8), embedded(1, 1.0, 24)], [1, 1])
    twice = np.concatenate([np.tile(one[:, :8], 2), np.tile(one[:, 8:], 2)], axis=1) / np.float32(math.sqrt(2))
    places = [rerankings.reciprocal_ranks(Search(p, p, True), widths=(1, 3)).nearest(9)[1] for p in (one, twice)]
    assert (places[0] == places[1]).mean() > 0.99
    with pytest.raises(UserError, match="32 are no multiple of 3"):
        rerankings.reciprocal_ranks(Search(one, one, True), widths=(1, 2))


# --- ways ---------------------------------------------------------------------------------------------------------


def test_two_noisy_runs_are_better_together():
    made = fusing.build(oof(embedded(1, 1.2), embedded(2, 1.2)), ["all"], ["none"])
    scores = {way.call: way.score.value for way in made.candidates}
    assert set(scores) == {"run0", "run1", "mean", "weights", "ranks"}
    assert scores["mean"] > max(scores["run0"], scores["run1"]) + 0.05
    assert made.chosen.call == "mean", made.reason
    assert made.facts()["weights"] == {"run0": 0.5, "run1": 0.5}
    assert made.facts()["settings"] == {"rerankings": []}


def test_a_run_that_knows_nothing_gets_no_weight_and_the_better_run_is_found():
    made = fusing.build(oof(embedded(1, 50.0), embedded(2, 1.0)), ["single", "mean", "weights"], ["none"])
    weighted = next(way for way in made.candidates if way.call == "weights")
    assert weighted.weights[0] <= 0.2
    assert made.chosen.call == "run1"
    assert made.chosen.runs == (1,)
    assert weighted.runs == (0, 1), "a run without weight keeps its columns, as in some part it may have some"
    again = fusing.build(oof(embedded(1, 50.0), embedded(2, 1.0)), ["weights"], ["whitening"])
    assert again.tried[1].calls[0].startswith("whitening(widths=[16, 16]")
    test = [embedded(5, 1.0, 40), embedded(6, 1.0, 60)]
    np.testing.assert_allclose(made.test(test), test[1], atol=1e-6)


def test_weights_are_as_good_as_those_of_a_grid():
    learned = oof(embedded(1, 1.6), embedded(2, 1.2))
    table, rows = fusing.Weights(learned), np.ones(len(TRUTH), dtype=bool)
    weights = fusing.greedy(table, rows)
    best = max(table.gain(np.array([share, 10 - share]), rows) for share in range(11))
    assert weights.sum() == pytest.approx(1)
    assert weights[1] > weights[0]
    reached = fusing.fused(learned.members, weights)
    assert reranking.mean(learned.pools.added(reached, [], range(FOLDS))) >= best - 0.01


def test_what_a_weighting_adds_is_what_the_fused_embeddings_add():
    learned = oof(embedded(1, 1.6), embedded(2, 1.2, 24))
    table = fusing.Weights(learned)
    table.gain(np.array([6, 2]), np.ones(len(TRUTH), dtype=bool))
    by_hand = learned.pools.added(fusing.fused(learned.members, [0.75, 0.25]), [], range(FOLDS))
    np.testing.assert_allclose(table.known[3, 1], by_hand, atol=1e-6)


def test_one_fold_has_parts_of_whole_identities_and_no_weights():
    one = truth_of(folds=1)
    dealt = fusing.parts(one[:, 1], one[:, 0], 0)
    assert all(len(np.unique(dealt[one[:, 0] == identity])) == 1 for identity in np.unique(one[:, 0]))
    assert len(np.unique(dealt)) == 5
    assert np.array_equal(fusing.parts(TRUTH[:, 1], TRUTH[:, 0], 0), TRUTH[:, 1])
    members = embedded(1, 1.0, truth=one), embedded(2, 1.0, truth=one)
    made = fusing.build(oof(*members, truth=one, parts=dealt), ["weights"], ["query_expansion"])
    assert [way.call for way in made.candidates] == ["mean"]
    assert made.notes == ["weights are left out: a single fold is a single pool, whose rows have one embedding"]
    assert len(made.tried) == 2


# --- re-rankings --------------------------------------------------------------------------------------------------


WIDE = 5


def on_arcs(truth: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 5): the images of an identity along an arc, whose ends are nearer to others than to each other."""
    generator = np.random.default_rng(seed)
    found = np.empty((len(truth), WIDE))
    for identity in np.unique(truth[:, 0]):
        rows, frame = np.flatnonzero(truth[:, 0] == identity), np.linalg.qr(generator.normal(size=(WIDE, 2)))[0].T
        angles = np.linspace(0, 2.2, len(rows))
        found[rows] = np.cos(angles)[:, None] * frame[0] + np.sin(angles)[:, None] * frame[1]
    return unit(found + 0.02 * generator.normal(size=found.shape))


def test_what_follows_neighbours_of_neighbours_is_found_and_kept():
    truth = truth_of(each=6, images=14)
    points = on_arcs(truth)
    made = fusing.build(oof(points, truth=truth), ["all"], ["all"])
    calls = [one.call for one in made.tried]
    assert [call.partition("(")[0] for call in calls] == [chain[0] for chain in reranking.CHAINS]
    assert made.tried[0].calls == ()
    assert made.decided.calls
    assert made.decided.gain > 3 * made.decided.gain_se > 0
    assert made.decided.score.value > made.tried[0].score.value + 0.03
    facts = made.facts()
    assert facts["settings"]["rerankings"] == list(made.decided.calls)
    assert facts["decision"] == made.decided.call
    assert facts["looked_at"] > 30
    again = fusing.build(oof(points, truth=truth), ["all"], ["all"])
    assert again.facts() == facts
    for calls_ in (*made.decided.of_parts.values(), made.decided.calls):
        ranking.check_rerankings(calls_)


def test_whitening_of_each_member_is_found_where_all_images_share_a_direction():
    def glaring(seed: int, width: int) -> np.ndarray:
        shared = np.random.default_rng(seed).normal(size=(len(TRUTH), 2)) * 8
        return unit(np.concatenate([shared, embedded(seed, 0.8, width)], axis=1))

    members = [glaring(1, 6), glaring(2, 10)]
    made = fusing.build(oof(*members), ["mean"], ["whitening"])
    assert made.decided.gain > 5 * made.decided.gain_se > 0
    assert made.decided.calls[0].startswith("whitening(widths=[8, 12], shrink=")
    twice = made.test([np.tile(own, (1, 2)) / np.float32(math.sqrt(2)) for own in members])
    [there, here] = [
        ranking.reranked(Search(points, points, True), made.decided.calls).nearest(5)[1]
        for points in (twice, made.chosen.nested)
    ]
    assert (there == here).mean() > 0.99, "two members that say the same answer as one"


def test_the_nested_score_is_what_the_settings_of_the_other_parts_reach():
    truth = truth_of(each=6, images=14)
    learned = oof(on_arcs(truth), truth=truth)
    [_, expanded], _ = reranking.candidates(
        learned.pools, learned.members[0], learned.parts, reranking.asked(["query_expansion(alpha=1)"])
    )
    for part, calls in expanded.of_parts.items():
        assert "alpha=1" in calls[0], "what a call-string names stays as it is"
        rows = truth[:, 1] == part
        points = learned.members[0][rows]
        answers = ranking.reranked(Search(points, points, True), calls).nearest(5)[1]
        judged = ranking.judge(answers, truth[rows, 0], truth[rows, 0], alone=True)
        np.testing.assert_allclose(expanded.added[rows], METRIC.rows(*judged))


@pytest.mark.parametrize("folds", [FOLDS, 1])
def test_the_choices_of_a_part_do_not_see_its_identities(folds):
    truth = truth_of(folds=folds, each=24 // folds, images=6)
    parts = fusing.parts(truth[:, 1], truth[:, 0], 0)
    held_out = np.flatnonzero(parts == 0)
    shuffled = truth.copy()
    shuffled[held_out, 0] = np.random.default_rng(1).permutation(truth[held_out, 0])
    members = embedded(1, 1.5, truth=truth), embedded(2, 0.8, truth=truth)
    found = [
        fusing.build(oof(*members, truth=t, parts=parts), ["all"], ["all"], choose="mean") for t in (truth, shuffled)
    ]
    for one, other in zip(found[0].tried, found[1].tried, strict=True):
        assert one.of_parts[0] == other.of_parts[0]
    assert any(a.of_parts[1] != b.of_parts[1] for a, b in zip(found[0].tried, found[1].tried, strict=True))
    assert found[0].tried[0].score.value > found[1].tried[0].score.value + 0.1, "the shuffle was seen where it may be"
    if folds > 1:
        own = [next(way for way in made.candidates if way.call == "weights").nested for made in found]
        assert np.array_equal(own[0][held_out], own[1][held_out])


SOME = ["query_expansion", "k_reciprocal(k2=1)"]


def test_on_embeddings_that_know_nothing_no_choice_seems_to_gain():
    gains = []
    truth = truth_of(each=6)
    for seed in range(8):
        members = [np.random.default_rng([seed, run]).normal(size=(len(truth), 6)) for run in range(2)]
        made = fusing.build(oof(*map(unit, members), truth=truth), ["mean", "weights"], SOME, choose="mean")
        ways = {way.call: way.score.value for way in made.candidates}
        gains.append([ways["weights"] - ways["mean"], *(one.gain for one in made.tried[1:])])
    table = np.array(gains)
    error = table.std(axis=0, ddof=1) / math.sqrt(len(table))
    assert (table.mean(axis=0) < 2.5 * error).all(), "a search that sees its own queries gains here each time"


def test_what_the_user_set_is_applied_as_it_is():
    learned = oof(embedded(1, 1.0), embedded(2, 1.0))
    made = fusing.build(learned, ["all"], ["all"], ["query_expansion(k=2)", "k_reciprocal(k1=4)"])
    assert made.decided.calls == ("query_expansion(k=2, alpha=3.0)", "k_reciprocal(k1=4, k2=6, weight=0.3)")
    assert len(made.tried) == 1
    assert "ranks" not in [way.call for way in made.candidates]


def test_fused_ranks_stand_last():
    made = fusing.build(oof(embedded(1, 1.2), embedded(2, 1.2, 24)), ["all"], ["all"], choose="ranks")
    assert made.chosen.call == "ranks"
    assert made.reason == "as stack.choose=ranks asks"
    assert [one.call.partition("(")[0] for one in made.tried] == [
        "none", "whitening", "query_expansion", "database_augmentation", "database_augmentation"
    ]  # fmt: skip
    for one in made.tried:
        assert one.calls[-1] == "reciprocal_ranks(widths=[2, 3])"
        ranking.check_rerankings(one.calls)


def test_cameras_are_junk_and_queries_without_an_answer_count_nowhere():
    truth = truth_of()
    truth[:, 2] = np.random.default_rng(0).integers(2, size=len(truth))
    truth[0, 0] = 10_000
    points = embedded(1, 0.5)
    learned = oof(points, truth=truth)
    found = learned.pools.added(points, [], range(FOLDS))
    assert np.isnan(found[0])
    for row in range(5, 15):
        others = [p for p in np.flatnonzero(truth[:, 1] == truth[row, 1]) if p != row]
        others.sort(key=lambda p, r=row: -float(points[r] @ points[p]))
        counted = [p for p in others if not (truth[p, 0] == truth[row, 0] and truth[p, 2] == truth[row, 2])]
        hits = [truth[p, 0] == truth[row, 0] for p in counted]
        there = sum(hits)
        expected = sum(np.mean(hits[: i + 1]) for i in range(5) if hits[i]) / min(5, there) if there else math.nan
        np.testing.assert_allclose(found[row], expected)


@pytest.mark.parametrize("cameras", [False, True])
@pytest.mark.parametrize("calls", [(), ("k_reciprocal(k1=4)",)])
def test_what_queries_add_is_what_the_task_judges(cameras, calls):
    tables = SimpleNamespace(targets=pd.DataFrame({"whale": ["a"]}), test=pd.DataFrame({"id": ["b"]}))
    task = Retrieval(["a", "b"], tables, None, 5, [], itself=False)  # type: ignore[arg-type]
    truth, points = truth_of(), embedded(1, 1.0)
    truth[:, 2] = np.random.default_rng(0).integers(2, size=len(truth)) if cameras else -1
    learned, metric = oof(points, truth=truth), evaluate.metric(CALL, task)
    found = learned.pools.added(points, calls, range(FOLDS))
    expected = metric.rows(*task.judged(truth, points, calls))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert reranking.mean(found) == pytest.approx(metric.of(*task.judged(truth, points, calls)))


def test_large_pools_are_not_re_ranked_again_and_again(monkeypatch):
    learned = oof(embedded(1, 1.0))
    monkeypatch.setattr(reranking, "PAIRS", 2 * (len(TRUTH) // FOLDS) ** 2)
    made = fusing.build(learned, ["all"], ["query_expansion"])
    assert made.notes == ["arguments of re-rankings are sought in the 2 smallest of 3 folds"]
    assert not np.isnan(made.tried[1].added).any()
    monkeypatch.setattr(reranking, "LARGEST", 10)
    made = fusing.build(learned, ["all"], ["query_expansion"])
    assert [one.call for one in made.tried] == ["none()"]
    assert "re-rankings are left out: a fold has 80 rows, more than 10" in made.notes[0]


def test_a_search_asks_few_queries(monkeypatch):
    monkeypatch.setattr(reranking, "QUERIES", 7 * FOLDS)
    learned = oof(embedded(1, 1.0))
    table = reranking.Table(learned.pools, learned.members[0])
    table.gain((), np.ones(len(TRUTH), dtype=bool))
    [added] = table.known.values()
    assert np.count_nonzero(~np.isnan(added)) == 7 * FOLDS
    whole = learned.pools.added(learned.members[0], [], range(FOLDS))
    np.testing.assert_allclose(added[~np.isnan(added)], whole[~np.isnan(added)])


@pytest.mark.parametrize(
    ("methods", "decisions", "choose", "message"),
    [
        (["ridge"], ["all"], "auto", "stack.methods=ridge, but searches are fused by single, mean, weights, ranks"),
        (["all"], ["threshold"], "auto", "stack.decisions=threshold: there is no 'threshold' among the rerankings"),
        (["all"], ["none", "diffusion"], "auto", "none stands alone"),
        (["all"], ["all"], "ridge", "stack.choose=ridge, but searches are fused by"),
    ],
)
def test_wrong_names_are_told(methods, decisions, choose, message):
    with pytest.raises(UserError, match=message):
        fusing.check(methods, decisions, [], choose)
