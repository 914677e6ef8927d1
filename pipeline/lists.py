"""Ranked labels as values that can be averaged: the labels nearest to each row, with their similarities.

lists: truth (N,) int64, the code of each row's label, ``NEW`` where its member learned from no row with that label.
values (N, 2n) float32: n codes, then n similarities, in no order; -2 stands for no label. The last code is always
``NEW``, and its similarity the threshold: what is nearer is known. A label that a list lacks is at most as near as its
farthest, and counts so. Lists that were ``aligned`` hold the same codes in the same places, so that a mean over members
or runs is the plain mean of their arrays. Memory grows with rows and the length of lists, never with labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.forms import FORMS, Form
from pipeline.ranking import nearest_labels

NEW, NOBODY = -1, -2
NOWHERE = -2.0  # the similarity of no label: below any cosine
SIMILARITY = "similarity"  # the space of such predictions
ROWS = 1 << 13  # that are aligned at a time


class Lists(Form):
    """The form of ranked labels."""

    @property
    def searched(self) -> bool:
        """Networks give embeddings."""
        return True

    @property
    def shelved(self) -> bool:
        """Rows search the training images."""
        return True

    def finish(self, raw: np.ndarray) -> np.ndarray:
        """Weighted means of aligned lists → lists: codes are whole numbers again."""
        found = np.asarray(raw, dtype=np.float32)
        found[:, : found.shape[1] // 2] = np.rint(found[:, : found.shape[1] // 2])
        return found

    def apart(
        self, truth: np.ndarray, folds: np.ndarray, learned: Callable[[tuple[int, ...]], np.ndarray]
    ) -> np.ndarray:
        """Labels that a fold's member learned from no row are new to it."""
        found = truth.copy()
        for fold in np.unique(folds[folds >= 0]).tolist():
            known = np.unique(truth[learned((fold,))])
            found[(folds == fold) & ~np.isin(truth, known)] = NEW
        return found

    def unseen(self, truth: np.ndarray) -> np.ndarray:
        """(N,) bool: the rows whose label is new to their member."""
        return truth == NEW

    def taught(self, targets: np.ndarray) -> np.ndarray:
        """(N,) bool: rows of no label teach nothing."""
        return targets >= 0

    def aligned(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Lists of the same rows, (N, 2n) each, → (N, 2u) each, with the same codes in the same places."""
        return aligned(values)

    def distance(self, truth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(N,) float64: one minus the similarity of the true label, at least that of the list's farthest."""
        codes, similarities = unpacked(values)
        own = np.where(codes == truth[:, None], similarities, NOWHERE).max(axis=1, initial=NOWHERE)
        return 1 - np.maximum(own, _farthest(codes, similarities)[:, 0]).astype(np.float64)


LISTS = Lists("lists", bounded=False, simplex=False)
TABLES = {**FORMS, LISTS.name: LISTS}  # the forms that methods of level 2 blend


def packed(codes: np.ndarray, similarities: np.ndarray, length: int, threshold: float) -> np.ndarray:
    """codes (N, m) and similarities (N, m) of known labels → lists (N, 2 · (length + 1)); m ≤ length.

    threshold: the similarity of ``NEW``; ``NOWHERE`` where there is no such answer.
    """
    rows, count = codes.shape
    found = np.full((rows, 2, length + 1), NOBODY, dtype=np.float32)
    found[:, 0, :count], found[:, 1, :count] = codes, similarities
    found[:, 0, length], found[:, 1, length] = NEW, threshold
    return found.reshape(rows, -1)


@dataclass(frozen=True)
class Shelf:
    """The training rows that are searched, and how lists come of it.

    rows (G,) int64. labels (G,) int64. nearest: images by which a label is as near as their mean. length: labels of a
    list. threshold: see ``packed``.
    """

    rows: np.ndarray
    labels: np.ndarray
    nearest: int
    length: int
    threshold: float

    def found(self, points: np.ndarray, shelf: np.ndarray) -> np.ndarray:
        """Embeddings (N, D), and those of the shelf's rows (G, D), of length 1 → lists (N, 2 · (length + 1))."""
        codes, similarities = nearest_labels(points, shelf, self.labels, self.length, self.nearest)
        return packed(codes, similarities, self.length, self.threshold)


def unpacked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists (N, 2n) → codes (N, n) int64 and similarities (N, n)."""
    half = values.shape[1] // 2
    return np.rint(values[:, :half]).astype(np.int64), values[:, half:]


def best_first(values: np.ndarray, k: int) -> np.ndarray:
    """(N, k) int64, the codes of the k nearest, best first; ``NOBODY`` behind the end.

    Of labels that are equally near the first of the list comes first, and ``NEW`` behind them.
    """
    codes, similarities = unpacked(values)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(similarities, order, axis=1) > NOWHERE
    found = np.full((len(values), k), NOBODY, dtype=np.int64)
    found[:, : order.shape[1]] = np.where(there, np.take_along_axis(codes, order, axis=1), NOBODY)
    return found


def with_threshold(values: np.ndarray, threshold: float) -> np.ndarray:
    """The same lists with ``NEW`` at another similarity; lists without that answer stay."""
    found = values.copy()
    found[values[:, -1] > NOWHERE, -1] = threshold
    return found


def thresholds(values: np.ndarray) -> np.ndarray:
    """(N,) the similarity of ``NEW`` in each list."""
    return values[:, -1]


# --- alignment ----------------------------------------------------------------------------------------------------


def aligned(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """See ``Lists.aligned``; lists that already agree come back as they are."""
    first = values[0]
    half = first.shape[1] // 2
    if all(other.shape == first.shape and np.array_equal(other[:, :half], first[:, :half]) for other in values[1:]):
        return list(values)
    blocks = [_aligned([own[start : start + ROWS] for own in values]) for start in range(0, len(first), ROWS)]
    length = max(block[0].shape[2] for block in blocks)
    return [np.concatenate([_wider(block[place], length) for block in blocks]).reshape(len(first), -1)
            for place in range(len(values))]  # fmt: skip


def _aligned(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A block of rows of each → (n, 2, u) each."""
    each = [unpacked(own) for own in values]
    union = _union(np.concatenate([codes[:, :-1] for codes, _ in each], axis=1))
    return [_looked_up(union, codes, similarities) for codes, similarities in each]


def _union(codes: np.ndarray) -> np.ndarray:
    """Codes (n, m) → the different ones of each row, ascending, behind them ``NOBODY``: (n, u)."""
    ordered = np.sort(codes, axis=1)
    fresh = ordered >= 0
    fresh[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    found = np.full((len(codes), int(fresh.sum(axis=1).max(initial=0))), NOBODY, dtype=np.int64)
    rows, columns = np.nonzero(fresh)
    found[rows, fresh.cumsum(axis=1)[rows, columns] - 1] = ordered[rows, columns]
    return found


def _looked_up(union: np.ndarray, codes: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """(n, 2, u + 1): the codes of a union and, behind them, ``NEW``, with a list's similarities."""
    known, order = np.sort(codes[:, :-1], axis=1), np.argsort(codes[:, :-1], axis=1)
    near = np.take_along_axis(similarities[:, :-1], order, axis=1)
    step = int(max(union.max(initial=0), known.max(initial=0))) + 3  # codes begin at -2
    rows = step * np.arange(len(codes))[:, None]
    keys, asked = (known + rows).ravel(), union + rows
    place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    farthest = np.broadcast_to(_farthest(codes, similarities), union.shape)
    found = np.where(keys[place] == asked, near.ravel()[place], farthest) if len(keys) else farthest
    found = np.where(union == NOBODY, NOWHERE, found)
    both = np.stack([union, found], axis=1)
    last = np.stack([np.full(len(codes), NEW), similarities[:, -1]], axis=1)[:, :, None]
    return np.concatenate([both, last], axis=2).astype(np.float32)


def _farthest(codes: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """(n, 1) the least similarity of a known label in each list; ``NOWHERE`` where there is none."""
    least = np.where(codes >= 0, similarities, np.inf).min(axis=1, initial=np.inf)
    return np.where(np.isfinite(least), least, NOWHERE)[:, None]


def _wider(block: np.ndarray, length: int) -> np.ndarray:
    """(n, 2, u) → (n, 2, length), filled before the last, which is ``NEW``."""
    filled = np.full((len(block), 2, length - block.shape[2]), NOBODY, dtype=np.float32)
    return np.concatenate([block[:, :, :-1], filled, block[:, :, -1:]], axis=2)
