"""Splits deal the training rows to folds: ``f(target, group, count, seed, *, …) -> (N,) int64``.

target (N,) text: what a stratified split balances. group (N,) text or None: rows of one group share a fold. Each is
deterministic from the seed, and leaves no fold empty.
"""

from __future__ import annotations

import numpy as np

from pipeline.errors import UserError
from pipeline.registry import part


@part(source="plain k-fold")
def kfold(target: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Deal shuffled rows: fold sizes differ by one at most."""
    return _deal(np.zeros(len(target), dtype=np.int64), count, seed)


@part(source="Kohavi 1995, stratified cross-validation")
def stratified_kfold(target: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Deal each class like cards: its counts, and the folds' sizes, differ by one at most.

    A class with fewer rows than folds is spread over distinct folds, where scikit-learn's refuses or lumps it.
    """
    return _deal(np.unique(target, return_inverse=True)[1], count, seed)


@part(source="k-fold over groups, largest first", groups=True)
def group_kfold(target: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Keep each group in one fold; fold sizes are as equal as dealing the largest group first makes them."""
    return _deal_groups(np.zeros(len(target), dtype=np.int64), group, count, seed)


@part(source="greedy as scikit-learn's StratifiedGroupKFold, with the least overlap of classes", groups=True)
def stratified_group_kfold(target: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Keep each group in one fold and the classes as balanced as the groups allow.

    Unlike scikit-learn's it leaves no fold empty and takes classes with fewer rows than folds.
    """
    return _deal_groups(np.unique(target, return_inverse=True)[1], group, count, seed)


@part(source="the folds that a team shares", given=True)
def given(target: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Take folds/<competition>.csv as it stands, whoever made it; other settings of the split are then not compared."""
    raise UserError("folds.method=given() takes folds/<competition>.csv as it stands, but there is none; put it there")


def _deal(stratum: np.ndarray, count: int, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(stratum))
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    folds = np.empty(len(stratum), dtype=np.int64)
    # one round of dealing runs on through all classes, so that the remainders do not pile up in the first folds
    folds[order] = np.arange(len(stratum)) % count
    return folds


def _deal_groups(stratum: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    if group is None:
        raise UserError("this split keeps groups together: name their column with data.group=COLUMN")
    names, of_row = np.unique(group, return_inverse=True)
    if len(names) < count:
        raise UserError(f"folds.count={count}, but there are {len(names)} groups; folds.count={len(names)} at most")
    sizes = np.bincount(of_row)
    members = np.split(np.argsort(of_row, kind="stable"), np.cumsum(sizes)[:-1])
    shuffled = np.random.default_rng(seed).permutation(len(names))
    share = 1 / np.bincount(stratum)
    held = np.zeros((count, len(share)))  # rows of each class in each fold
    filled = np.zeros(count)
    folds = np.empty(len(stratum), dtype=np.int64)
    for place in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        rows = members[place]
        classes = stratum[rows]
        # what this group would meet in each fold: its own classes, and rows at all. The fold that minimises it adds
        # least to the squared counts; an empty fold meets nothing, so the first groups fill all folds
        meets = (held[:, classes] * share[classes]).sum(axis=1) + filled * len(rows) / len(stratum)
        fold = np.lexsort((filled, meets))[0]
        np.add.at(held[fold], classes, 1)
        filled[fold] += len(rows)
        folds[rows] = fold
    return folds
