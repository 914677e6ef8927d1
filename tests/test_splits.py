"""Splits: no fold is empty, groups stay whole, what can be balanced is, the past never learns from the future."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import splits

SPLITS = {name: part for name, part in registry.parts("splits").items() if not part.facts.get("given")}
TAKEN = [(name, form) for name, part in SPLITS.items() for form in part.facts["takes"]]
SEEDLESS = {"leave_one_group_out", "time_ordered", "holdout"}
COUNTED = [name for name, part in SPLITS.items() if not part.facts.get("own_count")]


def target_of(form: str, seed: int, rows: int) -> np.ndarray:
    """A long tail of classes or labels, some of a single row; numbers with many ties."""
    generator = np.random.default_rng(seed)
    if form == "classes":
        return np.minimum(generator.geometric(0.25, rows), 12).astype(np.str_)
    if form == "labels":
        return (generator.random((rows, 6)) < 0.5 ** np.arange(1, 7)).astype(np.int64)
    return np.stack([generator.gamma(2.0, size=rows).round(), generator.normal(size=rows) * 100], axis=1)


def column_of(name: str, seed: int, rows: int) -> np.ndarray | None:
    """Text of the column that a split needs, of many different values."""
    generator = np.random.default_rng(seed + 1000)
    match SPLITS[name].facts.get("column"):
        case "group" | "order":
            return generator.integers(0, max(9, rows // 4), rows).astype(np.str_)
        case "holdout":
            return np.append(["0", "1"], generator.choice(["0", "1"], rows - 2))
    return None


def deal(name: str, form: str, count: int = 5, seed: int = 0, rows: int = 200) -> np.ndarray:
    return registry.build("splits", name)(target_of(form, 1, rows), column_of(name, 1, rows), count, seed)


def shares(target: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(L, K): how the positive rows of each column of a table of 0 and 1 are shared among the folds."""
    counts = np.stack([target[folds == fold].sum(axis=0) for fold in range(folds.max() + 1)], axis=1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


# --- every split --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), TAKEN)
@pytest.mark.parametrize("count", [2, 5, 9])
def test_a_split_is_deterministic_and_leaves_no_fold_empty(name: str, form: str, count: int) -> None:
    folds = deal(name, form, count, seed=3)
    there = set(folds.tolist()) - {-1}
    assert (folds.shape, folds.dtype) == ((200,), np.int64)
    assert there == set(range(len(there)))
    if name in COUNTED:
        assert len(there) == count
    assert np.array_equal(folds, deal(name, form, count, seed=3))
    assert np.array_equal(folds, deal(name, form, count, seed=4)) == (name in SEEDLESS)


@pytest.mark.parametrize(("name", "form"), TAKEN)
def test_a_split_does_not_change_what_it_is_given(name: str, form: str) -> None:
    target, column = target_of(form, 1, 60), column_of(name, 1, 60)
    for table in (target, column):
        if table is not None:
            table.setflags(write=False)
    registry.build("splits", name)(target, column, 3, 0)


@pytest.mark.parametrize(("name", "form"), TAKEN)
def test_only_rows_to_learn_from_are_in_no_fold(name: str, form: str) -> None:
    assert (-1 in deal(name, form)) == (name in {"time_ordered", "holdout"})


@pytest.mark.parametrize(("name", "form"), [(n, f) for n, f in TAKEN if SPLITS[n].facts.get("column") == "group"])
def test_groups_stay_together(name: str, form: str) -> None:
    group = column_of(name, 1, 200)
    folds = deal(name, form)
    assert all(len(set(folds[group == one])) == 1 for one in set(group))
    if name in COUNTED:
        assert np.ptp(np.bincount(folds)) <= 2 * np.unique(group, return_counts=True)[1].max()


OF_ROWS = [pair for pair in TAKEN if "identity" not in pair[0]]  # the others need so many identities


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 10_000), some.integers(2, 6), some.integers(0, 8), some.sampled_from(OF_ROWS))
def test_as_few_rows_as_there_are_folds_leave_none_empty(seed: int, count: int, more: int, taken) -> None:
    name, form = taken
    rows = count + more
    column = column_of(name, seed, rows)
    if SPLITS[name].facts.get("column") in ("group", "order"):
        column = np.random.default_rng(seed).permutation(np.arange(rows) % (count + min(more, 1))).astype(np.str_)
    split = registry.build("splits", name)
    if name == "time_ordered" and not more:
        with pytest.raises(UserError, match="different times"):
            split(target_of(form, seed, rows), column, count, seed)
        return
    folds = split(target_of(form, seed, rows), column, count, seed)
    there = set(folds.tolist()) - {-1}
    assert there == set(range(len(there)))
    assert len(there) == count or name not in COUNTED


@pytest.mark.parametrize(
    "name", [name for name in COUNTED if not SPLITS[name].facts.get("column") and name != "identity_kfold"]
)
def test_fewer_rows_than_folds_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="folds.count=4, but there are 3 rows; folds.count=3 at most"):
        registry.build("splits", name)(target_of(SPLITS[name].facts["takes"][0], 0, 3), None, 4, 0)


def test_identities_lie_in_one_fold_each_and_are_at_least_as_many() -> None:
    target = np.array([f"i{row % 11}" for row in range(90)])
    folds = splits.identity_kfold(target, None, 4, 0)
    assert all(len(np.unique(folds[target == name])) == 1 for name in np.unique(target))
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 9  # the rows of one identity
    with pytest.raises(UserError, match="folds.count=12, but there are 11 groups; folds.count=11 at most"):
        splits.identity_kfold(target, None, 12, 0)


@pytest.mark.parametrize(("name", "form"), [(n, f) for n, f in TAKEN if SPLITS[n].facts.get("column")])
def test_a_missing_column_is_asked_for(name: str, form: str) -> None:
    key = SPLITS[name].facts["column"]
    with pytest.raises(UserError, match=f"data.{key}=COLUMN"):
        registry.build("splits", name)(target_of(form, 0, 9), None, 2, 0)


@pytest.mark.parametrize("name", [n for n in COUNTED if SPLITS[n].facts.get("column") == "group"])
def test_too_few_groups_are_refused(name: str) -> None:
    target, split = target_of(SPLITS[name].facts["takes"][0], 0, 4), registry.build("splits", name)
    with pytest.raises(UserError, match="folds.count=3, but there are 2 groups; folds.count=2 at most"):
        split(target, np.array(["x", "x", "y", "y"]), 3, 0)
    with pytest.raises(UserError, match="there are 1 groups; name another column"):
        split(target, np.array(["x"] * 4), 3, 0)


# --- classes ------------------------------------------------------------------------------------------------------


def test_the_folds_of_a_seed_stay_what_they_are() -> None:
    target, group = np.array(list("aabbbcaabbbc")), np.array(list("uvwxyzuvwxyz"))
    dealt = {
        name: "".join(map(str, registry.build("splits", name)(target, group, 3, 0)))
        for name in ("kfold", "stratified_kfold", "group_kfold", "stratified_group_kfold")
    }
    assert dealt == {
        "kfold": "021101221002",
        "stratified_kfold": "102101200122",
        "group_kfold": "121002121002",
        "stratified_group_kfold": "011022011022",
    }


@pytest.mark.parametrize("name", ["kfold", "stratified_kfold"])
def test_fold_sizes_differ_by_one_at_most(name: str) -> None:
    assert np.ptp(np.bincount(deal(name, "classes", rows=203))) == 1


def test_each_class_is_balanced_within_one_and_a_rare_one_lies_in_distinct_folds() -> None:
    target = np.append(target_of("classes", 2, 200), ["rare"] * 3)
    folds = splits.stratified_kfold(target, None, 5, 0)
    for name in set(target):
        assert np.ptp(np.bincount(folds[target == name], minlength=5)) <= 1
    assert len(set(folds[target == "rare"])) == 3


def test_only_rare_classes_can_be_dealt() -> None:
    target = np.repeat([str(n) for n in range(10)], 2)  # scikit-learn's refuse five folds of these
    folds = splits.stratified_kfold(target, None, 5, 0)
    assert np.bincount(folds).tolist() == [4] * 5
    assert all(len(set(folds[target == name])) == 2 for name in set(target))


def test_stratified_groups_are_nearly_as_balanced_as_scikit_learns() -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    ours, theirs = [], []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        target, group = generator.integers(0, 3, 300), generator.integers(0, 60, 300).astype(np.str_)
        other = np.empty(300, dtype=np.int64)
        for fold, (_, held_out) in enumerate(StratifiedGroupKFold(4).split(target, target, group)):
            other[held_out] = fold
        table = np.eye(3)[target]
        ours.append(shares(table, splits.stratified_group_kfold(target.astype(np.str_), group, 4, 0)).std(axis=1))
        theirs.append(shares(table, other).std(axis=1))
    assert np.mean(ours) < np.mean(theirs) + 0.02


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_are_balanced_better_than_by_chance() -> None:
    stratified, grouped, chance, chance_of_groups = [], [], [], []
    for seed in range(5):
        target = target_of("labels", seed, 400)[:, :5]
        group = np.random.default_rng(seed).integers(0, 80, 400).astype(np.str_)
        stratified.append(shares(target, splits.multilabel_stratified_kfold(target, None, 4, 0)).std())
        grouped.append(shares(target, splits.multilabel_stratified_group_kfold(target, group, 4, 0)).std())
        chance.append(shares(target, splits.kfold(target, None, 4, 0)).std())
        chance_of_groups.append(shares(target, splits.group_kfold(target, group, 4, 0)).std())
    assert np.mean(stratified) < np.mean(chance) / 3
    assert np.mean(grouped) < np.mean(chance_of_groups) * 0.7


def test_labels_of_one_column_rare_ones_and_rows_without_any() -> None:
    target = np.zeros((50, 4), dtype=np.int64)
    target[:20, 0], target[20:23, 1], target[23, 2] = 1, 1, 1  # the last column is empty, as are 26 rows
    folds = splits.multilabel_stratified_kfold(target, None, 5, 0)
    assert np.bincount(folds[:20]).tolist() == [4] * 5
    assert len(set(folds[20:23].tolist())) == 3
    assert np.ptp(np.bincount(folds)) <= 2
    one = splits.multilabel_stratified_kfold(target[:, :1], None, 5, 0)
    assert np.bincount(one[:20]).tolist() == [4] * 5
    assert np.ptp(np.bincount(splits.multilabel_stratified_kfold(target[:, 3:], None, 5, 0))) == 0


def test_a_label_with_a_row_for_each_fold_is_nearly_always_in_each() -> None:
    lacking = 0
    for seed in range(30):
        target = target_of("labels", seed, 300)
        folds = splits.multilabel_stratified_kfold(target, None, 5, seed)
        lacking += int((shares(target[:, target.sum(axis=0) >= 5], folds) == 0).sum())
    assert lacking <= 2


def test_one_hot_labels_are_dealt_as_classes_are() -> None:
    target = target_of("classes", 0, 200)
    group = column_of("group_kfold", 0, 200)
    one_hot = (target[:, None] == np.unique(target)).astype(np.int64)
    expected = splits.stratified_group_kfold(target, group, 4, 0)
    assert np.array_equal(splits.multilabel_stratified_group_kfold(one_hot, group, 4, 0), expected)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_each_fold_holds_low_and_high_numbers() -> None:
    target = np.random.default_rng(0).gamma(1.0, size=(203, 1))
    folds = splits.binned_kfold(target, None, 5, 0)
    tenth = np.searchsorted(np.quantile(target, np.linspace(0, 1, 11)[1:-1]), target[:, 0], side="right")
    for one in range(10):
        assert np.ptp(np.bincount(folds[tenth == one], minlength=5)) <= 1
    assert np.ptp(np.bincount(folds)) == 1
    means = [[target[dealt == fold].mean() for fold in range(5)] for dealt in (folds, splits.kfold(target, None, 5, 0))]
    assert np.std(means[0]) < np.std(means[1])


def test_groups_of_numbers_are_balanced_better_than_by_chance() -> None:
    binned, chance = [], []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        of_row = generator.integers(0, 60, 300)
        target = (generator.normal(size=60)[of_row] * 3 + generator.normal(size=300))[:, None]
        for kept, name in ((binned, "binned_group_kfold"), (chance, "group_kfold")):
            folds = registry.build("splits", name)(target, of_row.astype(np.str_), 4, seed)
            kept.append(np.std([target[folds == fold].mean() for fold in range(4)]))
    assert np.mean(binned) < np.mean(chance)


def test_several_targets_are_binned_by_the_mean_of_their_standard_scores() -> None:
    generator = np.random.default_rng(0)
    wide = generator.normal(size=(100, 1))
    same = np.hstack([wide * 1000, wide + 5, np.full((100, 1), 7.0)])
    assert np.array_equal(splits.binned_kfold(same, None, 4, 0), splits.binned_kfold(wide, None, 4, 0))


def test_equal_numbers_share_a_bin() -> None:
    zeros = np.append(np.zeros(70), np.arange(1.0, 31.0))[:, None]
    folds = splits.binned_kfold(zeros, None, 5, 0)
    assert np.bincount(folds[:70]).tolist() == [14] * 5
    assert np.bincount(splits.binned_kfold(np.ones((20, 2)), None, 4, 0)).tolist() == [5] * 4
    assert np.bincount(registry.build("splits", "binned_kfold(bins=50)")(zeros[:20], None, 4, 0)).tolist() == [5] * 4


# --- groups as folds ----------------------------------------------------------------------------------------------


def test_each_group_is_a_fold_in_the_order_of_names() -> None:
    group = np.array(["paris", "lima", "oslo", "lima"])
    assert splits.leave_one_group_out(np.zeros(4), group, 9, 0).tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(("groups", "advice"), [(101, r"group_kfold\(\)"), (1, "name another column")])
def test_too_many_or_too_few_groups_for_a_fold_each(groups: int, advice: str) -> None:
    column = (np.arange(202) % groups).astype(np.str_)
    with pytest.raises(UserError, match=f"2 to 100 of them, but data.group has {groups}: .*{advice}"):
        splits.leave_one_group_out(np.zeros(202), column, 5, 0)


# --- time ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 10_000), some.integers(1, 6), some.integers(0, 60))
def test_folds_follow_each_other_in_time(seed: int, count: int, more: int) -> None:
    generator = np.random.default_rng(seed)
    rows = count + 1 + more
    times = generator.permutation(np.append(np.arange(count + 1), generator.integers(0, 20, more))) * 10
    folds = splits.time_ordered(np.zeros(rows), times.astype(np.str_), count, seed)
    assert set(folds.tolist()) == set(range(-1, count))
    assert all(times[folds < fold].max() < times[folds == fold].min() for fold in range(count))


def test_members_learn_from_the_past_alone() -> None:
    generator = np.random.default_rng(0)
    times = generator.integers(0, 200, 500)
    folds = splits.time_ordered(np.zeros(500), times.astype(np.str_), 4, 0)
    for fold in range(4):
        assert times[folds < fold].max() < times[folds == fold].min()
    assert np.bincount(folds + 1).tolist() == pytest.approx([100] * 5, abs=5)


def test_a_time_of_most_rows_leaves_the_others_a_block() -> None:
    times = np.array(["5"] * 95 + ["1", "2", "3", "6", "7"])
    folds = splits.time_ordered(np.zeros(100), times, 3, 0)
    assert set(folds.tolist()) == {-1, 0, 1, 2}
    assert len(set(folds[:95].tolist())) == 1


@pytest.mark.parametrize(
    "times",
    [
        ["-2", "9", "10", "10.5", "1e3"],
        ["9007199254740992", "9007199254740993", "9007199254740994", "9007199254740995", "9007199254740996"],
        ["2019-12-31", "2020-01-02", "2020-01-10", "2020-01-10 08:00:00", "2020-02-01T00:00:00"],
        ["2020-01-01T00:30:00+01:00", "2020-01-01T00:00:00+00:00", "2020-01-01T00:30:00Z", "2021", "2022"],
        ["30/12/2019", "02/01/2020", "10/01/2020", "01/02/2020", "02/02/2020"],
        ["12/30/2019", "01/02/2020", "01/10/2020", "02/01/2020", "02/02/2020"],
        ["Dec 30, 2019", "Jan 2, 2020", "Jan 10, 2020", "Feb 1, 2020", "Feb 10, 2020"],
        ["08:30:00", " 09:15:00", "12:00:00", "21:07:00", "23:59:00"],
        ["8:30", " 9:15", "12:00", "21:07", "23:59"],
        ["week 2", "week 9", "week 10", "week 10b", "year 1"],
        ["a", "b", "c1", "c2", "d"],
    ],
)
def test_times_are_numbers_or_dates_or_texts(times: list[str]) -> None:
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(5)
        folds = splits.time_ordered(np.zeros(5), np.array(times)[order], 4, 0)
        assert folds.tolist() == (order - 1).tolist()


def test_odd_times_are_named() -> None:
    with pytest.raises(UserError, match="data.order is empty in 2 of 4 rows"):
        splits.time_ordered(np.zeros(4), np.array(["1", "", " ", "2"]), 2, 0)
    with pytest.raises(UserError, match="1 of 4 values cannot be read as the others are: 'soon'"):
        splits.time_ordered(np.zeros(4), np.array(["1", "2", "soon", "3"]), 2, 0)
    with pytest.raises(UserError, match="1 of 4 values cannot be read as the others are: '2020-02-31'"):
        splits.time_ordered(np.zeros(4), np.array(["2020-02-01", "2020-02-31", "2020-03-01", "2020-04-01"]), 2, 0)
    with pytest.raises(UserError, match="folds.count=5 needs 6 different times, but data.order has 3; folds.count=2"):
        splits.time_ordered(np.zeros(9), np.array(["1", "2", "3"] * 3), 5, 0)
    with pytest.raises(UserError, match="data.order has 1; name another column"):
        splits.time_ordered(np.zeros(9), np.array(["1"] * 9), 5, 0)


# --- a fixed holdout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["1", "0", "0"],
        ["1.0", "0.0", "0.0"],
        ["True", "False", "FALSE"],
        ["valid", "train", "train"],
        ["Validation ", "training", ""],
        ["val", "", ""],
        ["yes", "no", "no"],
    ],
)
def test_marked_rows_are_the_one_fold(words: list[str]) -> None:
    assert splits.holdout(np.zeros(3), np.array(words), 5, 0).tolist() == [0, -1, -1]


def test_odd_marks_are_named() -> None:
    with pytest.raises(UserError, match="data.holdout holds 'fold 1', 'test'; a validation row is one of 1, "):
        splits.holdout(np.zeros(4), np.array(["1", "test", "fold 1", "test"]), 5, 0)
    with pytest.raises(UserError, match="marks all of the 2 rows"):
        splits.holdout(np.zeros(2), np.array(["1", "1"]), 5, 0)
    with pytest.raises(UserError, match="marks none of the 2 rows"):
        splits.holdout(np.zeros(2), np.array(["0", "train"]), 5, 0)
