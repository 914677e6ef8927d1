"""Metrics of masks and objects: how good one image's answer is, and how images make a score.

Form: ``f(truth, answer, classes, *, …) -> float64``, of ONE image of its own size. masks: truth (C, H, W) uint8 of 0
and 1, 255 void; answer the same without void. class_masks: truth (H, W) uint8 of class numbers, 255 void; answer the
same without void. objects: truth (H, W) int32, 0 ground, 1 … objects, -1 void; answer the same without void. classes:
how many there are, C. Void pixels count nowhere.

Facts as in ``parts/metrics.py``, and ``pooled``. Without it the function returns contributions (m,), NaN where there is
none: an image's score is their mean, the data set's the mean over images. ``pooled=True``: it returns (2, C), what the
image adds to numerator and denominator of each class; the data set's score is the mean over classes whose denominator
is above 0. ``score`` puts images together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from pipeline.forms import VOID
from pipeline.registry import part

VOID_LABEL = -1  # in labels: the pixel counts nowhere
MOST_PAIRS = 1 << 22  # (truth, answer) pairs of objects up to which overlaps are counted in a whole table

# --- masks: the mean over images ----------------------------------------------------------------------------------


@part(
    source="Dice 1945; Kaggle's mean Dice over images (and classes)",
    greater=True, wants="decision", takes=("masks", "class_masks"), allowed={"empty": (0, 1)},
)  # fmt: skip
def dice(
    truth: np.ndarray, answer: np.ndarray, classes: int, *, empty: float | None = 1.0, ground: bool = False
) -> np.ndarray:
    """Mean over images and classes of 2·overlap over the sum of both areas, 0 to 1.

    empty: what a class counts that is neither in truth nor in the answer; null leaves it out. ground: whether class 0
    of class masks counts.
    """
    both, there, given = _areas(truth, answer, classes, ground)
    return _shares(2 * both, there + given, empty, truth)


@part(
    source="Jaccard 1912, intersection over union of each image (and class)",
    greater=True, wants="decision", takes=("masks", "class_masks"), allowed={"empty": (0, 1)},
)  # fmt: skip
def iou(
    truth: np.ndarray, answer: np.ndarray, classes: int, *, empty: float | None = 1.0, ground: bool = False
) -> np.ndarray:
    """Mean over images and classes of overlap over union, 0 to 1.

    empty: what a class counts that is neither in truth nor in the answer; null leaves it out. ground: whether class 0
    of class masks counts.
    """
    both, there, given = _areas(truth, answer, classes, ground)
    return _shares(both, there + given - both, empty, truth)


@part(
    source="Kaggle, TGS Salt Identification: precision at IoU thresholds 0.5 to 0.95 of a mask as one object",
    greater=True, wants="decision", takes=("masks", "class_masks"), allowed={"thresholds": (0, 0.9999)},
)  # fmt: skip
def precision_over_iou(
    truth: np.ndarray, answer: np.ndarray, classes: int, *,
    thresholds: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95), ground: bool = False,
) -> np.ndarray:  # fmt: skip
    """Mean over images and classes of the share of thresholds that the mask's IoU is above, 0 to 1.

    thresholds: of IoU, to be exceeded. ground: whether class 0 of class masks counts. A class that is neither in truth
    nor in the answer counts 1, one that is in either alone 0.
    """
    shares = iou(truth, answer, classes, ground=ground)
    above = (shares[:, None] > np.asarray(thresholds)).mean(axis=1)
    return np.where(np.isnan(shares), np.nan, above)


# --- masks: pooled over the data set ------------------------------------------------------------------------------


@part(
    source="Everingham et al. 2010 (PASCAL VOC), section 4.3: intersection over union of each class over all images",
    greater=True, wants="decision", takes=("masks", "class_masks"), pooled=True,
)  # fmt: skip
def iou_mean(truth: np.ndarray, answer: np.ndarray, classes: int, *, ground: bool = True) -> np.ndarray:
    """Mean over classes of overlap over union of all images' pixels together, 0 to 1.

    ground: whether class 0 of class masks counts. A class that is nowhere in truth nor answers is left out.
    """
    both, there, given = _areas(truth, answer, classes, ground=True)
    counts = np.stack([both, there + given - both]).astype(np.float64)
    if truth.ndim == 2 and not ground:
        counts[:, 0] = 0
    return counts


@part(
    source="Long et al. 2015 (FCN), section 5: share of right pixels over all images",
    greater=True, wants="decision", takes=("masks", "class_masks"), pooled=True,
)  # fmt: skip
def pixel_accuracy(truth: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """Share of all images' known pixels (of masks: of their planes' bits) that are right, 0 to 1."""
    counts = np.zeros((2, classes))  # all in the first class: the mean over classes is then the share of all
    known = truth != VOID
    counts[:, 0] = np.count_nonzero((truth == answer) & known), np.count_nonzero(known)
    return counts


# --- objects ------------------------------------------------------------------------------------------------------


@part(
    source="Kaggle, Data Science Bowl 2018: mean over IoU thresholds of TP / (TP + FP + FN), the mean over images",
    greater=True, wants="decision", takes=("objects",), allowed={"thresholds": (0.5, 0.9999), "empty": (0, 1)},
)  # fmt: skip
def object_precision_over_iou(
    truth: np.ndarray, answer: np.ndarray, classes: int, *,
    thresholds: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    empty: float | None = 1.0,
) -> np.ndarray:  # fmt: skip
    """Mean over images and thresholds of found objects over found, missed and wrongly answered ones, 0 to 1.

    thresholds: of IoU, to be exceeded; from 0.5 on no object can match two. empty: what an image without objects in
    truth and answer counts; null leaves it out. An answer's pixels on void are cut off, and what is left is compared.
    """
    true, given, both = overlaps(truth, answer)
    if not len(true) + len(given):
        nothing = np.nan if empty is None or not (truth != VOID_LABEL).any() else empty
        return np.array([nothing])
    rows, columns, pixels = both
    shares = pixels / (true[rows] + given[columns] - pixels)
    hits = (shares[:, None] > np.asarray(thresholds)).sum(axis=0)
    return np.array([(hits / (len(true) + len(given) - hits)).mean()])


def overlaps(
    truth: np.ndarray, answer: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Labels (H, W) → the areas of the objects in truth and answer, and what each two that meet share.

    The pixels of truth's void are left out. The last are the places of the one and of the other, and their pixels.
    """
    known = truth != VOID_LABEL
    if not known.all():
        truth, answer = truth[known], answer[known]
    most = int(answer.max(initial=0)) + 1
    pairs = truth.ravel().astype(np.int64) * most + answer.ravel()
    if (int(truth.max(initial=0)) + 1) * most <= MOST_PAIRS:
        counts = np.bincount(pairs, minlength=1)
        codes = np.flatnonzero(counts)
        counts = counts[codes]
    else:
        codes, counts = np.unique(pairs, return_counts=True)
    rows, columns = np.divmod(codes, most)
    true_labels, row_places = np.unique(rows, return_inverse=True)
    given_labels, column_places = np.unique(columns, return_inverse=True)
    true = np.bincount(row_places, counts, len(true_labels))
    given = np.bincount(column_places, counts, len(given_labels))
    skip = int(0 in true_labels), int(0 in given_labels)  # the ground is no object
    meet = (rows > 0) & (columns > 0)
    both = row_places[meet] - skip[0], column_places[meet] - skip[1], counts[meet]
    return true[skip[0] :], given[skip[1] :], both


# --- images together ----------------------------------------------------------------------------------------------


def score(contributions: Sequence[np.ndarray] | np.ndarray, pooled: bool) -> float:
    """The data set's score from the contributions of its images; NaN where none counts.

    contributions: (N, m) or N of (m,); pooled: (N, 2, C). Images may stand in it several times.
    """
    if pooled:
        above, below = np.asarray(contributions, dtype=np.float64).sum(axis=0)
        there = below > 0
        return float((above[there] / below[there]).mean()) if there.any() else float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean over nothing
        return float(np.nanmean([np.nanmean(one) for one in contributions]))


# --- areas --------------------------------------------------------------------------------------------------------


def _areas(
    truth: np.ndarray, answer: np.ndarray, classes: int, ground: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class (C,) the known pixels in both, in truth, in the answer; of class masks C - 1 without the ground."""
    if truth.ndim == 3:
        true, given = truth == 1, (answer != 0) & (truth != VOID)
        both, there, answered = (_counts(one) for one in (true & given, true, given))
        return both, there, answered
    pairs = truth.astype(np.intp) * classes + answer
    if (truth == VOID).any():
        pairs = pairs[truth != VOID]
    table = np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)
    first = 0 if ground else 1
    return table.diagonal()[first:], table.sum(axis=1)[first:], table.sum(axis=0)[first:]


def _counts(planes: np.ndarray) -> np.ndarray:
    """(C,) how many are true in each plane; NumPy counts a whole array twenty times as fast as along axes."""
    return np.array([np.count_nonzero(plane) for plane in planes])


def _shares(above: np.ndarray, below: np.ndarray, empty: float | None, truth: np.ndarray) -> np.ndarray:
    """above / below (m,), ``empty`` where below is 0, NaN where that is None or all of truth is void."""
    known = (truth != VOID).reshape(len(truth) if truth.ndim == 3 else 1, -1).any(axis=1)
    nothing = np.where(known, np.nan if empty is None else empty, np.nan)
    return np.where(below > 0, above / np.maximum(below, 1), nothing)
