"""Samplers, by the frequencies of what they show and the make-up of their batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.parts import samplers

RARE = np.array([0] * 900 + [2] * 90 + [5] * 10)


def shown(sampler, targets: np.ndarray, seeds: int = 60, **arguments: float) -> np.ndarray:
    """(N,) how often each row is shown, as a share of all, over many epochs."""
    counts = np.zeros(len(targets))
    for seed in range(seeds):
        rows = sampler(targets, np.random.default_rng(seed), **arguments)
        assert len(rows) >= len(targets)
        counts += np.bincount(rows, minlength=len(targets))
    return counts / counts.sum()


def test_shuffle_shows_every_row_once() -> None:
    rows = samplers.shuffle(np.zeros(50, dtype=np.int64), np.random.default_rng(0))
    assert sorted(rows.tolist()) == list(range(50))


def test_balanced_shows_each_class_and_each_of_its_rows_equally_often() -> None:
    share = shown(samplers.balanced, RARE)
    np.testing.assert_allclose([share[k == RARE].sum() for k in (0, 2, 5)], 1 / 3, atol=0.01)
    np.testing.assert_allclose(share[RARE == 5], 1 / 30, atol=0.004)


def test_square_root_shows_classes_by_the_root_of_their_size() -> None:
    share = shown(samplers.square_root, RARE)
    roots = np.sqrt([900, 90, 10])
    np.testing.assert_allclose([share[k == RARE].sum() for k in (0, 2, 5)], roots / roots.sum(), atol=0.01)
    np.testing.assert_allclose(share[RARE == 5], roots[2] / roots.sum() / 10, atol=0.003)


@pytest.mark.parametrize("least", [0.0, 0.25, 0.5, 1.0])
def test_over_sample_repeats_rare_classes_evenly(least: float) -> None:
    rows = samplers.over_sample(RARE, np.random.default_rng(0), least=least)
    counts = np.bincount(rows, minlength=len(RARE))
    assert counts.min() >= 1
    for name, size in Counter(RARE.tolist()).items():
        of_class = counts[name == RARE]
        assert of_class.sum() == max(size, int(np.ceil(least * 900)))
        assert np.ptp(of_class) <= 1
    half = np.bincount(RARE[rows[: len(rows) // 2]], minlength=6)[[0, 2, 5]] / (len(rows) // 2)
    whole = np.bincount(RARE[rows], minlength=6)[[0, 2, 5]] / len(rows)
    np.testing.assert_allclose(half, whole, atol=0.05, err_msg="the order is random: any part has the same shares")


def test_identities_deal_batches_of_p_classes_with_k_rows() -> None:
    classes = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 8, 8, 20, 40, 109])
    rows = samplers.identities(classes, np.random.default_rng(0), p=4, k=3)
    assert len(rows) == -(-200 // 12) * 12
    for batch in rows.reshape(-1, 12):
        counts = Counter(classes[batch].tolist())
        assert set(counts.values()) == {3}
        assert len(counts) == 4
        for name in counts:
            of_class = batch[classes[batch] == name]
            if (classes == name).sum() >= 6:  # two decks can meet in one batch, each at most once over
                assert Counter(of_class.tolist()).most_common(1)[0][1] <= 2
    share = shown(samplers.identities, classes, p=4, k=3)
    np.testing.assert_allclose([share[classes == k].sum() for k in range(10)], 0.1, atol=0.01)
    np.testing.assert_allclose(share[classes == 8], 0.1 / 40, atol=0.001)


def test_identities_take_turns_among_the_rows_of_a_class() -> None:
    classes = np.repeat([0, 1], 12)
    rows = samplers.identities(classes, np.random.default_rng(0), p=2, k=3)
    assert sorted(rows.tolist()) == list(range(24)), "each row once before any comes again"


def test_identities_of_few_classes_hold_them_more_than_once() -> None:
    classes = np.array([0, 1, 2] * 10)
    rows = samplers.identities(classes, np.random.default_rng(0), p=5, k=2)
    for batch in rows.reshape(-1, 10):
        assert sorted(Counter(classes[batch].tolist()).values()) in ([2, 4, 4],)


@pytest.mark.parametrize("dense", [False, True])
def test_identities_show_rows_of_no_known_class_together(dense: bool) -> None:
    targets = np.concatenate([np.repeat(np.arange(6), 4), np.full(12, -1)])
    given = np.concatenate([np.eye(6), np.zeros((1, 6))])[targets].astype(np.float32) if dense else targets
    rows = samplers.identities(given, np.random.default_rng(0), p=3, k=4)
    assert sorted(rows.tolist()) == list(range(36)), "each row once, as if the unknown were three classes"
    groups = [set(targets[group].tolist()) for group in rows.reshape(-1, 4)]
    assert all(len(group) == 1 for group in groups)
    mates = {frozenset(group.tolist()) for group in rows.reshape(-1, 4) if targets[group[0]] == -1}
    others = samplers.identities(given, np.random.default_rng(1), p=3, k=4).reshape(-1, 4)
    assert mates != {frozenset(group.tolist()) for group in others if targets[group[0]] == -1}, "others each epoch"


def labels() -> np.ndarray:
    """60 rows have label 0, of which 6 have label 1 too; 30 have none; 10 have label 2."""
    table = np.zeros((100, 3), dtype=np.float32)
    table[:60, 0], table[:6, 1], table[90:, 2] = 1, 1, 1
    return table


def slow_weights(table: np.ndarray) -> np.ndarray:
    """1 / how often a row's rarest label occurs; none is a label as well."""
    names = [tuple(np.flatnonzero(row)) or ("none",) for row in table]
    counts = Counter(name for row in names for name in row)
    return np.array([1 / min(counts[name] for name in row) for row in names])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rare_labels_weigh_a_row_by_its_rarest(power: float) -> None:
    weights = slow_weights(labels()) ** power
    share = shown(samplers.rare_labels, labels(), seeds=1500, power=power)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.0025)
    if power == 1:
        parts = [share[:6].sum(), share[6:60].sum(), share[60:90].sum(), share[90:].sum()]
        np.testing.assert_allclose(parts, np.array([1, 0.9, 1, 1]) / 3.9, atol=0.01)


def test_balanced_bins_show_each_bin_equally_often() -> None:
    values = np.concatenate([np.linspace(0, 0.99, 80), np.linspace(5, 5.9, 15), [9.5, 9.7, 9.8, 9.9, 10]])
    share = shown(samplers.balanced_bins, values[:, None].astype(np.float32), seeds=600)
    np.testing.assert_allclose([share[:80].sum(), share[80:95].sum(), share[95:].sum()], 1 / 3, atol=0.01)
    halves = shown(samplers.balanced_bins, values[:, None].astype(np.float32), seeds=600, bins=2)
    np.testing.assert_allclose([halves[:80].sum(), halves[80:].sum()], 1 / 2, atol=0.01)
    flat = shown(samplers.balanced_bins, values[:, None].astype(np.float32), seeds=600, power=0.0)
    np.testing.assert_allclose(flat, 0.01, atol=0.002)


def test_balanced_bins_of_several_targets_count_combinations() -> None:
    values = np.array([[0, 0]] * 6 + [[0, 1]] * 3 + [[1, 1]], dtype=np.float32)
    share = shown(samplers.balanced_bins, values, seeds=2000, bins=2)
    np.testing.assert_allclose([share[:6].sum(), share[6:9].sum(), share[9]], 1 / 3, atol=0.01)


def test_balanced_bins_of_one_value_draw_evenly() -> None:
    np.testing.assert_allclose(shown(samplers.balanced_bins, np.full((20, 1), 3.0), seeds=500), 0.05, atol=0.01)


def test_weighted_shows_each_row_as_often_as_its_share_give_or_take_one() -> None:
    weights = np.array([0.4, 0.4, 0.5, 1, 2.5, 1.2] * 20, dtype=np.float32)
    targets, wanted = np.zeros(120), weights / weights.mean()
    counts = [
        np.bincount(samplers.weighted(targets, weights, np.random.default_rng(seed)), minlength=120)
        for seed in range(800)
    ]
    assert all(((np.floor(wanted) <= count) & (count <= np.ceil(wanted))).all() for count in counts)
    np.testing.assert_allclose(np.mean(counts, axis=0), wanted, atol=0.08)
    rows = samplers.weighted(targets, np.ones(120, dtype=np.float32), np.random.default_rng(0))
    assert sorted(rows.tolist()) == list(range(120)), "alike rows come once each"
    assert rows.tolist() != sorted(rows.tolist())


def test_weighted_identities_deal_batches_in_which_hard_classes_and_rows_come_more_often() -> None:
    classes, generator = np.repeat(np.arange(6), [2, 4, 4, 5, 5, 20]), np.random.default_rng(0)
    weights = generator.uniform(0.5, 2, 40).astype(np.float32)
    weights[classes == 1] = 4
    batches = np.concatenate(
        [samplers.weighted_identities(classes, weights, np.random.default_rng(seed), p=3, k=2) for seed in range(400)]
    ).reshape(-1, 6)
    assert len(batches) == 400 * -(-40 // 6)
    assert all(sorted(Counter(classes[batch]).values()) == [2, 2, 2] for batch in batches), "p classes, k rows"
    assert all(len(set(batch.tolist())) == 6 for batch in batches), "each has enough rows"
    share = np.bincount(classes[batches].ravel()) / batches.size
    means = np.array([weights[classes == one].mean() for one in range(6)])
    assert share.argmax() == 1
    assert (np.diff(share[np.argsort(means)]) > -0.01).all(), "the harder a class, the more often it comes"
    rows = np.bincount(batches.ravel(), minlength=40)[classes == 5]
    assert np.corrcoef(rows, weights[classes == 5])[0, 1] > 0.95
    few = samplers.weighted_identities(classes[:6], weights[:6], generator, p=3, k=3)
    assert len(few) == 9, "with fewer classes than p, and a class of two rows"
