"""Ranked labels as values: alignment and means against dictionaries, the answer for new identities, blends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import evaluate, lists, nested, registry
from pipeline.artefacts import Predictions
from pipeline.config import Lists as Settings
from pipeline.lists import LISTS, NEW, NOBODY, NOWHERE, SIMILARITY
from pipeline.tasks.recognition import Recognition

SHORT = settings(max_examples=25, deadline=None)
LABELS = 9


def task(new: str = "new_whale", depth: int = 3) -> Recognition:
    return Recognition([f"w{number}" for number in range(LABELS)], depth, new, Settings())


def drawn(seed: int, rows: int, length: int, most: int = LABELS, threshold: float = 0.3) -> np.ndarray:
    """Lists of at most so many different labels a row, in no order."""
    generator = np.random.default_rng(seed)
    codes = np.stack([generator.permutation(LABELS)[:most] for _ in range(rows)])
    return lists.packed(codes, generator.uniform(0, 1, codes.shape).astype(np.float32), length, threshold)


def told(row: np.ndarray) -> dict[int, float]:
    """Label → similarity of one list, slowly."""
    half = len(row) // 2
    pairs = zip(row[:half].tolist(), row[half:].tolist(), strict=True)
    return {round(code): near for code, near in pairs if near > NOWHERE}


def slow_mean(rows: list[dict[int, float]]) -> dict[int, float]:
    """Label by label; what a list lacks is as near as its farthest label."""
    least = [min(near for code, near in row.items() if code != NEW) for row in rows]
    labels = {code for row in rows for code in row}
    return {code: float(np.mean([row.get(code, far) for row, far in zip(rows, least, strict=True)])) for code in labels}


@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(1, 6), min_size=2, max_size=4))
@SHORT
def test_a_mean_of_lists_is_the_mean_label_by_label(seed, counts):
    values = [drawn(seed + place, 5, length=6, most=count) for place, count in enumerate(counts)]
    ids = np.array(list("abcde"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "ROWS", 2)
        mean = Predictions.mean([Predictions(ids, one, SIMILARITY) for one in values]).values
    for row in range(5):
        slow = slow_mean([told(one[row]) for one in values])
        found = told(mean[row])
        assert found.keys() == slow.keys()
        assert found == pytest.approx(slow, abs=1e-6)
        best = lists.best_first(mean, 20)[row].tolist()
        assert sorted(best[: len(slow)]) == sorted(slow)
        assert [slow[code] for code in best[: len(slow)]] == pytest.approx(
            sorted(slow.values(), reverse=True), abs=1e-6
        )
        assert set(best[len(slow) :]) == {NOBODY}


def test_lists_that_agree_are_not_copied():
    values = drawn(0, 4, length=LABELS)
    moved = lists.with_threshold(values, 0.9)
    assert [one is other for one, other in zip(lists.aligned([values, moved]), [values, moved], strict=True)] == [1, 1]


def test_the_new_stand_behind_what_is_as_near():
    values = lists.packed(np.array([[4, 2, 7]]), np.array([[0.5, 0.9, 0.1]]), 3, threshold=0.5)
    assert lists.best_first(values, 4).tolist() == [[2, 4, NEW, 7]]
    assert lists.best_first(lists.with_threshold(values, 0.51), 2).tolist() == [[2, NEW]]


def test_without_an_answer_for_the_new_there_is_none():
    values = lists.packed(np.array([[4, 2]]), np.array([[0.5, 0.9]]), 3, NOWHERE)
    for same in (values, lists.with_threshold(values, 0.7)):
        assert lists.best_first(same, 4).tolist() == [[2, 4, NOBODY, NOBODY]]


def test_what_no_member_of_a_fold_learned_is_new_to_it():
    truth, folds = np.array([0, 0, 1, 1, 2, 3, NEW, 4]), np.array([0, 1, 0, 0, 1, -1, 0, 1])
    found = LISTS.apart(truth, folds, lambda held_out: ~np.isin(folds, held_out))
    assert found.tolist() == [0, 0, NEW, NEW, NEW, 3, NEW, NEW]
    assert truth.tolist() == [0, 0, 1, 1, 2, 3, NEW, 4]


@pytest.mark.parametrize(("new", "score"), [("new_whale", (1 + 1 / 2 + 1 / 3) / 3), ("", (1 + 1 / 2) / 2)])
def test_each_row_has_one_label_to_find(new, score):
    near = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1]], dtype=np.float32)
    values = lists.packed(np.tile([0, 1, 2], (3, 1)), near, 5, 0.5 if new else NOWHERE)
    metric = evaluate.metric("mean_average_precision(k=3)", task(new))
    assert metric(np.array([0, 1, NEW]), values) == pytest.approx(score)


# --- level 2 ------------------------------------------------------------------------------------------------------


def competition(seed: int, rows: int = 400, new: float = 0.3, noise: float = 0.1, height: float = 0.9) -> tuple:
    """Truth and full lists of a run that knows a label at a height, and everything else well below."""
    generator = np.random.default_rng(seed)
    truth = np.where(generator.random(rows) < new, NEW, generator.integers(LABELS, size=rows))
    near = generator.normal(height - 0.25, noise, (rows, LABELS)).astype(np.float32)
    near[np.arange(rows), truth] += np.where(truth >= 0, 0.25, 0).astype(np.float32)
    return truth, lists.packed(np.tile(np.arange(LABELS), (rows, 1)), near, LABELS, 0.5)


def table(truth: np.ndarray, runs: list[np.ndarray]) -> nested.Table:
    names = [f"run{place}" for place in range(len(runs))]
    metric = evaluate.metric("mean_average_precision(k=3)", task())
    return nested.Table(names, np.stack(lists.aligned(runs), axis=1), truth, np.arange(len(truth)) % 5, metric)


def test_a_nested_threshold_beats_none_and_is_where_the_best_is():
    truth, values = competition(0)
    made = table(truth, [values])
    default, fitted = nested.score_decisions(["new_threshold()"], values, made)
    assert nested.decisions(["all"], values, made) == ["new_threshold()"]
    assert fitted.gain > 3 * fitted.gain_se > 0
    assert nested.choose([default, fitted], made)[0] is fitted
    decision = nested.fit_decision("new_threshold(shrink=0)", values, made)
    grid = {cut: made.metric(truth, lists.with_threshold(values, cut)) for cut in np.linspace(0.3, 1.2, 181).tolist()}
    assert made.metric(truth, decision.apply(values)) >= max(grid.values()) - 0.005
    assert decision.readable([])["new"] == pytest.approx(float(lists.thresholds(decision.apply(values))[0]), abs=1e-6)


def test_a_threshold_of_lists_that_say_nothing_gains_nothing():
    gains = []
    for seed in range(6):
        truth, values = competition(seed, new=0.0)
        decided = nested.score_decisions(["new_threshold()"], lists.with_threshold(values, 0.0), table(truth, [values]))
        gains.append(decided[1].gain)
    assert max(gains) <= 0.005


def test_weights_prefer_the_run_that_knows():
    truth, good = competition(1)
    bad = np.random.default_rng(0).permutation(good)
    made = table(truth, [bad, good])
    alone = made.metric(truth, good)
    for call in ("single()", "hill_climb(rounds=5)"):
        stacker = made.fit(call)
        assert stacker.state()["weights"][1] > 0.7
        assert made.metric(truth, stacker.predict(made.values)) >= alone - 0.01
    mean = made.fit("mean()").predict(made.values)
    codes, _ = lists.unpacked(mean)
    assert set(codes.ravel().tolist()) <= {*range(LABELS), NEW, NOBODY}
    slow = [slow_mean([told(bad[row]), told(good[row])]) for row in range(5)]
    assert [told(row) for row in mean[:5]] == [pytest.approx(one, abs=1e-5) for one in slow]


def test_a_stacker_is_the_same_from_its_state():
    truth, good = competition(1, rows=60)
    made = table(truth, [good, competition(3, rows=60)[1]])
    stacker = made.fit("hill_climb(rounds=3)")
    again = registry.build("level2", "hill_climb()")(LISTS).load_state(stacker.state())
    assert again.predict(made.values).tobytes() == stacker.predict(made.values).tobytes()
