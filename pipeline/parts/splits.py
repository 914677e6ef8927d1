"""Splits deal the training rows to folds: ``f(target, column, count, seed, *, …) -> (N,) int64``.

target: what is balanced, classes (N,) text, labels (N, C) of 0 and 1, or numbers (N, T) floats. column (N,) text, of
the csv column that the split needs, or None. Folds are 0 … K-1, none of them empty; -1 is a row that is only ever
learned from. Each split is deterministic from the seed. Facts, all plain literals:

- ``takes``: the forms of target that it understands.
- ``column``: which column it needs, "group", "order" or "holdout": the key below ``data`` that names it.
- ``own_count=True``: the column says how many folds there are; ``folds.count`` is not used.
- ``past_only=True``: the member of fold k may learn from rows of folds below k alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import numpy as np

from pipeline.errors import UserError, some
from pipeline.registry import part

LEAST_NEW = 0.1  # share of rows that are new to the member of their fold
MOST_GROUPS = 100  # members of one run; a model of each


@part(source="plain k-fold", takes=("classes", "labels", "numbers"))
def kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Deal shuffled rows: fold sizes differ by one at most."""
    return _deal(np.zeros(len(target), dtype=np.int64), count, seed)


@part(source="Kohavi 1995, stratified cross-validation", takes=("classes",))
def stratified_kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Deal each class like cards: its counts, and the folds' sizes, differ by one at most.

    A class with fewer rows than folds is spread over distinct folds, where scikit-learn's refuses or lumps it.
    """
    return _deal(np.unique(target, return_inverse=True)[1], count, seed)


@part(source="Sechidis et al. 2011, by iterative-stratification", takes=("labels",))
def multilabel_stratified_kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Deal rows of several labels, those of the rarest label first, so that each label is balanced over the folds.

    Rows without a label fill up the smaller folds.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    _check_enough(len(target), count)
    # it takes no table of one column; a column of zeros beside it is never balanced
    labels = np.hstack([target, np.zeros((len(target), 1), dtype=np.int64)])
    dealer = MultilabelStratifiedKFold(n_splits=count, shuffle=True, random_state=seed % 2**32)
    folds = np.empty(len(target), dtype=np.int64)
    for fold, (_, held_out) in enumerate(dealer.split(labels, labels)):
        folds[held_out] = fold
    return _fill_empty(folds, labels.sum(axis=1), count)


@part(
    source="stratified over quantile bins of the target",
    takes=("numbers",),
    allowed={"bins": (2, None)},
)
def binned_kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int, *, bins: int = 10) -> np.ndarray:
    """Deal numbers bin by bin, so that each fold holds low, middle and high ones alike.

    bins: how many quantile bins; equal numbers share one. Several targets are standardised and their mean is binned.
    """
    return _deal(_bins(target, bins), count, seed)


@part(source="k-fold over groups, largest first", takes=("classes", "labels", "numbers"), column="group")
def group_kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Keep each group in one fold; fold sizes are as equal as dealing the largest group first makes them."""
    return _deal_groups(np.zeros(len(target), dtype=np.int64), column, count, seed)


@part(source="k-fold over identities, as zero-shot retrieval is tested, Oh Song et al. 2016", takes=("classes",))
def identity_kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Keep each class in one fold, which no member that predicts it has seen; fold sizes as equal as that allows."""
    return _deal_groups(np.zeros(len(target), dtype=np.int64), target, count, seed)


@part(
    source="classes held out whole beside stratified_kfold; how many by Good 1953 (Good-Turing)",
    takes=("classes",),
    allowed={"share": (0, 0.9)},
)
def new_identity_kfold(
    target: np.ndarray, column: np.ndarray | None, count: int, seed: int, *, share: float | None = None
) -> np.ndarray:
    """Keep some classes in one fold each, whose member they are new to; deal the rows of the others like cards.

    share: of a fold's rows those that are new to its member. Classes of one row are new by nature, and so are rows
    without a class (""); more classes are drawn at random until there are enough. null: as many as the table promises
    of the next image, which is the share of rows that are new by nature (Good 1953), but a tenth at least, since
    without any no threshold can be fitted.
    """
    _check_enough(len(target), count)
    names, of_row, sizes = np.unique(target, return_inverse=True, return_counts=True)
    nameless, whole = names == "", (sizes == 1) & (names != "")
    if (whole | nameless).all():
        raise UserError(
            "folds.method=new_identity_kfold() needs identities of two rows, which two folds can share, but each has "
            "one; correct data.target"
        )
    new = int(sizes[whole | nameless].sum())
    wanted = (max(LEAST_NEW, new / len(target)) if share is None else share) * len(target)
    for place in np.random.default_rng([seed, 1]).permutation(len(names)):
        left = np.count_nonzero(~(whole | nameless))
        if left > 2 and not (whole | nameless)[place] and new + sizes[place] / 2 <= wanted:
            whole[place], new = True, new + int(sizes[place])
    folds, rest = np.empty(len(target), dtype=np.int64), np.flatnonzero(~whole[of_row])
    folds[rest] = _deal(of_row[rest], count, seed)
    filled = np.zeros(count, dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(whole))
    for place in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        folds[of_row == place] = filled.argmin()
        filled[filled.argmin()] += sizes[place]
    return folds


@part(
    source="greedy as scikit-learn's StratifiedGroupKFold, with the least overlap of classes",
    takes=("classes",),
    column="group",
)
def stratified_group_kfold(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Keep each group in one fold and the classes as balanced as the groups allow.

    Unlike scikit-learn's it leaves no fold empty and takes classes with fewer rows than folds.
    """
    return _deal_groups(np.unique(target, return_inverse=True)[1], column, count, seed)


@part(source="stratified_group_kfold, counting every label of a row", takes=("labels",), column="group")
def multilabel_stratified_group_kfold(
    target: np.ndarray, column: np.ndarray | None, count: int, seed: int
) -> np.ndarray:
    """Keep each group in one fold and every label as balanced as the groups allow."""
    return _deal_groups(target, column, count, seed)


@part(
    source="stratified_group_kfold over quantile bins of the target",
    takes=("numbers",),
    column="group",
    allowed={"bins": (2, None)},
)
def binned_group_kfold(
    target: np.ndarray, column: np.ndarray | None, count: int, seed: int, *, bins: int = 10
) -> np.ndarray:
    """Keep each group in one fold and low, middle and high numbers as balanced as the groups allow.

    bins: how many quantile bins; equal numbers share one. Several targets are standardised and their mean is binned.
    """
    return _deal_groups(_bins(target, bins), column, count, seed)


@part(
    source="scikit-learn's LeaveOneGroupOut",
    takes=("classes", "labels", "numbers"),
    column="group",
    own_count=True,
)
def leave_one_group_out(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Make each group a fold of its own, in the order of the groups' names; 2 to 100 groups."""
    names, folds = np.unique(_needed(column, "group"), return_inverse=True)
    if not 2 <= len(names) <= MOST_GROUPS:
        kind = "group_kfold()" if len(names) > 2 else "kfold() without data.group, or name another column"
        raise UserError(
            f"folds.method=leave_one_group_out() makes each group a fold, 2 to {MOST_GROUPS} of them, but data.group "
            f"has {len(names)}: {some(names)}; take folds.method={kind}"
        )
    return folds.astype(np.int64)


@part(
    source="forward chaining, as scikit-learn's TimeSeriesSplit",
    takes=("classes", "labels", "numbers"),
    column="order",
    past_only=True,
)
def time_ordered(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Cut the rows by time into count + 1 blocks, the first to learn from alone, each of the others a fold.

    A member learns from earlier rows than those it is validated on. Times are numbers, else dates (02/01 is February
    the first, unless another row such as 13/01 says otherwise), else texts in their natural order. Rows of one time
    stay together, so blocks are only about equally large.
    """
    of_row, rows_at = np.unique(_times(_needed(column, "order")), return_inverse=True, return_counts=True)[1:]
    if len(rows_at) <= count:
        most = f"folds.count={len(rows_at) - 1} at most" if len(rows_at) > 2 else "name another column"
        raise UserError(
            f"folds.count={count} needs {count + 1} different times, but data.order has {len(rows_at)}; {most}"
        )
    until = rows_at.cumsum()
    ends: list[int] = []  # how many times lie before the end of each block but the last
    for block in range(1, count + 1):
        first, last = block if not ends else ends[-1] + 1, len(until) - (count + 1 - block)
        wanted = np.abs(until[first - 1 : last] - block * len(target) / (count + 1))
        ends.append(first + int(wanted.argmin()))
    return (np.searchsorted(ends, of_row, side="right") - 1).astype(np.int64)


@part(
    source="a fixed validation set",
    takes=("classes", "labels", "numbers"),
    column="holdout",
    own_count=True,
)
def holdout(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Take the validation rows that a column marks as the one fold; all other rows are only learned from.

    1, true, yes, val, valid or validation marks a validation row; 0, false, no, train, training or nothing another.
    """
    words = np.char.lower(np.char.strip(_needed(column, "holdout").astype(np.str_)))
    inside = np.isin(words, VALIDATION)
    odd = np.unique(words[~inside & ~np.isin(words, TRAINING)])
    if len(odd):
        raise UserError(
            f"data.holdout holds {some(map(repr, odd.tolist()))}; a validation row is one of {', '.join(VALIDATION)}, "
            f"any other one of {', '.join(filter(None, TRAINING))} or empty"
        )
    if inside.all() or not inside.any():
        which = "all" if inside.any() else "none"
        raise UserError(f"data.holdout marks {which} of the {len(words)} rows for validation; mark some of them")
    return np.where(inside, 0, -1).astype(np.int64)


VALIDATION = ["1", "1.0", "true", "yes", "val", "valid", "validation"]
TRAINING = ["0", "0.0", "false", "no", "train", "training", ""]


@part(source="the folds that a team shares", takes=("classes", "labels", "numbers"), given=True, own_count=True)
def given(target: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Take folds/<competition>.csv as it stands, whoever made it; other settings of the split are then not compared."""
    raise UserError("folds.method=given() takes folds/<competition>.csv as it stands, but there is none; put it there")


# --- dealing ------------------------------------------------------------------------------------------------------


def _deal(stratum: np.ndarray, count: int, seed: int) -> np.ndarray:
    _check_enough(len(stratum), count)
    shuffled = np.random.default_rng(seed).permutation(len(stratum))
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    folds = np.empty(len(stratum), dtype=np.int64)
    # one round of dealing runs on through all classes, so that the remainders do not pile up in the first folds
    folds[order] = np.arange(len(stratum)) % count
    return folds


def _deal_groups(strata: np.ndarray, column: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """strata: classes (N,) int64, or labels (N, C) of 0 and 1."""
    names, of_row = np.unique(_needed(column, "group"), return_inverse=True)
    if len(names) < count:
        most = f"folds.count={len(names)} at most" if len(names) > 1 else "name another column"
        raise UserError(f"folds.count={count}, but there are {len(names)} groups; {most}")
    sizes = np.bincount(of_row)
    members = np.split(np.argsort(of_row, kind="stable"), np.cumsum(sizes)[:-1])
    shuffled = np.random.default_rng(seed).permutation(len(names))
    share = 1 / np.maximum(np.bincount(strata) if strata.ndim == 1 else strata.sum(axis=0), 1)
    held = np.zeros((count, len(share)))  # rows of each class in each fold
    filled = np.zeros(count)
    folds = np.empty(len(strata), dtype=np.int64)
    for place in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        rows = members[place]
        classes = strata[rows] if strata.ndim == 1 else np.nonzero(strata[rows])[1]
        # what this group would meet in each fold: its own classes, and rows at all. The fold that minimises it adds
        # least to the squared counts; an empty fold meets nothing, so the first groups fill all folds
        meets = (held[:, classes] * share[classes]).sum(axis=1) + filled * len(rows) / len(strata)
        fold = np.lexsort((filled, meets))[0]
        np.add.at(held[fold], classes, 1)
        filled[fold] += len(rows)
        folds[rows] = fold
    return folds


def _fill_empty(folds: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Move a row of the largest fold, one of the fewest labels (N,), into each empty one."""
    for fold in np.flatnonzero(np.bincount(folds, minlength=count) == 0):
        rows = np.flatnonzero(folds == np.bincount(folds, minlength=count).argmax())
        folds[rows[labels[rows].argmin()]] = fold
    return folds


def _bins(target: np.ndarray, bins: int) -> np.ndarray:
    """Numbers (N, T) → the quantile bin (N,) int64 of the mean of their standardised columns."""
    numbers = target.reshape(len(target), -1).astype(np.float64)
    spread = numbers.std(axis=0)
    score = ((numbers - numbers.mean(axis=0)) / np.where(spread > 0, spread, 1)).mean(axis=1)
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, score, side="right").astype(np.int64)


# --- columns ------------------------------------------------------------------------------------------------------


def _needed(column: np.ndarray | None, key: str) -> np.ndarray:
    if column is None:
        uses = {"group": "keeps groups together", "order": "goes by time", "holdout": "takes marked rows"}
        raise UserError(f"this split {uses[key]}: name their column with data.{key}=COLUMN")
    return np.asarray(column)


def _check_enough(rows: int, count: int) -> None:
    if rows < count:
        raise UserError(f"folds.count={count}, but there are {rows} rows; folds.count={rows} at most")


def _times(column: np.ndarray) -> np.ndarray:
    """Times as text (N,) → what sorts in their order; UserError where only most of them are numbers or dates."""
    text = np.char.strip(column.astype(np.str_))
    empty = int((text == "").sum())
    if empty:
        raise UserError(f"data.order is empty in {empty} of {len(text)} rows; fill it in, or drop these rows")
    best, missing = text, np.ones(len(text), dtype=bool)
    for read in TIMES:
        times, unread = read(text)
        if unread.sum() < missing.sum():
            best, missing = times, unread
    if missing.sum() > len(text) / 2:  # neither numbers nor dates
        return _natural(text)
    if missing.any():
        raise UserError(
            f"data.order: {missing.sum()} of {len(text)} values cannot be read as the others are: "
            f"{some(map(repr, np.unique(text[missing]).tolist()))}; mend them, or drop these rows"
        )
    return best


def _natural(text: np.ndarray) -> np.ndarray:
    """Texts (N,) → their places (N,) in order, the numbers in them by size: week 9 comes before week 10."""
    words = [re.split(r"(\d+)", name) for name in text.tolist()]  # texts and numbers in turn, so that keys compare
    keys = [tuple(int(word) if place % 2 else word for place, word in enumerate(name)) for name in words]
    place = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.array([place[key] for key in keys])


def _numbers(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(text, dtype=object), errors="coerce")  # whole ones keep all their digits
    unread = ~np.isfinite(numbers.to_numpy(np.float64))
    return numbers.to_numpy(), unread


def _dates(text: np.ndarray, form: str | None = None, dayfirst: bool = False) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # pandas would read each row in a form of its own
            cells = pd.Series(text, dtype=object)
            dates = pd.to_datetime(cells, errors="coerce", utc=True, format=form, dayfirst=dayfirst)
    except (ValueError, TypeError, OverflowError, UserWarning):
        return text, np.ones(len(text), dtype=bool)
    return dates.dt.tz_localize(None).to_numpy().astype(np.int64), dates.isna().to_numpy()


# one form for all rows: dates are never read by month first in one row and by day first in the next
TIMES: list[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = [
    _numbers,
    lambda text: _dates(text, form="ISO8601"),
    _dates,
    lambda text: _dates(text, dayfirst=True),
]
