"""The shapes that truth and values come in; what differs between them, so that no stage asks for a task.

classes: truth (N,) int64, values (N, C) probabilities whose rows sum to one. labels: truth (N, C) float32 of 0 and 1,
values (N, C) probabilities, each its own. numbers: truth (N, T) float32, values (N, T) of any size.

Of the spatial forms truth and values are sequences of N images, each of its own size and read when it is asked for.
masks: truth *bits* (C, H, W) uint8, values (C, H, W) probabilities, each its own. class_masks: truth *indices* (H, W)
uint8, values (C, H, W) probabilities that sum to one over C. objects: truth *labels* (H, W) int32, values (C, H, W)
of the planes that tell objects apart. See ``pipeline/masks.py`` for bits, indices and labels.

embeddings: truth (N, 3) int64, of each row its identity, its pool and its camera (-1: none); values (N, D) float32,
rows of length 1, of which a cosine alone has a meaning. D is the run's own, and each member has its own space: rows are
compared within a pool, and the pool of a row is the fold whose member made its value.

lists, the labels nearest to each row: see ``pipeline/lists.py``.

ranks: what metrics of ranked lists see, truth (Q,) int64, how many right answers there are to each query, and its
answers (Q, k) int8, best first; see ``ranking.judge``. No network learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST = 1e-15


@dataclass(frozen=True)
class Form:
    """One shape. bounded: values lie in 0…1. simplex: they also sum to one. spatial: there is one for each pixel.

    directions: values are embeddings, whose columns have no names and are no member's but its own.
    """

    name: str
    bounded: bool
    simplex: bool
    spatial: bool = False
    directions: bool = False

    @property
    def searched(self) -> bool:
        """Whether networks give embeddings, and answers are ranked lists."""
        return self.directions

    @property
    def shelved(self) -> bool:
        """Whether it is the training images that rows search, so that values come of the search."""
        return False

    def dense(self, truth: np.ndarray, columns: int) -> np.ndarray:
        """truth → (N, columns) float32, as values would say it with certainty; what is dense stays."""
        if truth.ndim == 2:
            return np.asarray(truth, dtype=np.float32)
        return np.eye(columns, dtype=np.float32)[truth]

    def finish(self, raw: np.ndarray) -> np.ndarray:
        """raw (N, C) → values (N, C) float32 of this form: clipped to 0…1, rows scaled to sum one, or as they are."""
        if self.directions:
            return unit(raw)
        if not self.bounded:
            return raw.astype(np.float32)
        clipped = np.clip(raw, 0, 1) if not self.simplex else np.maximum(raw, 0)
        return normalised(clipped) if self.simplex else clipped.astype(np.float32)

    def apart(self, truth: Any, folds: np.ndarray, learned: Callable[[tuple[int, ...]], np.ndarray]) -> Any:
        """The truth of all rows as those members answer them that did not learn them.

        folds: (N,) int64. learned: (fold,) → (N,) bool, the rows that its member learned from. Of embeddings each fold
        is a pool of its own.
        """
        if not self.directions:
            return truth
        found = truth.copy()
        found[:, POOL] = folds
        return found

    def unseen(self, truth: Any) -> np.ndarray | None:
        """(N,) bool: rows whose answer is that they are new; None where there is no such answer."""
        return None

    def taught(self, targets: np.ndarray) -> np.ndarray:
        """(N,) bool: the rows that teach something; all of them, unless a label may be none."""
        return np.ones(len(targets), dtype=bool)

    def aligned(self, values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Values of several members or runs, of the same rows, with columns that mean the same: as they are."""
        return values

    def distance(self, truth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(N,) float64, how far values are from truth: log loss of probabilities in nats, else the squared error."""
        wide = values.astype(np.float64)
        target = self.dense(truth, values.shape[1]).astype(np.float64)
        if not self.bounded:
            return ((wide - target) ** 2).mean(axis=1)
        if self.simplex:
            return -(target * np.log(np.clip(normalised(wide).astype(np.float64), SMALLEST, 1))).sum(axis=1)
        chance = np.clip(wide, SMALLEST, 1 - SMALLEST)
        return -(target * np.log(chance) + (1 - target) * np.log1p(-chance)).mean(axis=1)

    def agreement(self, targets: np.ndarray, outputs: np.ndarray) -> float:
        """How well raw outputs (N, C) of a network say its training targets: the share right, or R² of numbers."""
        if self.spatial:
            return self._overlap(targets, outputs)
        if not self.bounded:
            error, spread = ((outputs - targets) ** 2).sum(), ((targets - targets.mean(axis=0)) ** 2).sum()
            return float(1 - error / max(spread, 1e-12))
        if self.simplex:
            classes = targets.argmax(axis=1) if targets.ndim == 2 else targets
            return float((outputs.argmax(axis=1) == classes).mean())
        return float(((outputs > 0) == (targets > 0.5)).mean())

    def _overlap(self, targets: np.ndarray, outputs: np.ndarray) -> float:
        """The Dice coefficient of planes (B, C, H, W), all pixels together; targets as ``levels`` gives them."""
        known = targets != VOID
        said = outputs == outputs.max(axis=1, keepdims=True) if self.simplex else outputs > 0
        true = (targets > VOID // 2) & known
        return float(2 * (said & true).sum() / max(1, (said & known).sum() + true.sum()))


VOID = 255  # of planes that a network learns: the pixel counts nowhere; 0…254 stand for probabilities 0…1
LEVELS = VOID - 1


def levels(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities 0…1, of any shape → planes uint8, 0…254, that a network learns; negative ones mean void."""
    found = np.rint(np.clip(probabilities, 0, 1) * LEVELS).astype(np.uint8)
    found[probabilities < 0] = VOID
    return found


def unit(points: np.ndarray) -> np.ndarray:
    """(N, D) float32 rows of length 1 in the same directions; rows of zeros stay."""
    wide = np.asarray(points, dtype=np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(length > 0, length, 1)


def normalised(values: np.ndarray) -> np.ndarray:
    """Rows scaled to sum one, float32; a row of zeros becomes uniform."""
    total = values.sum(axis=-1, keepdims=True)
    return np.where(total > 0, values / np.maximum(total, 1e-300), 1 / values.shape[-1]).astype(np.float32)


CLASSES = Form("classes", bounded=True, simplex=True)
LABELS = Form("labels", bounded=True, simplex=False)
NUMBERS = Form("numbers", bounded=False, simplex=False)
FORMS = {form.name: form for form in (CLASSES, LABELS, NUMBERS)}

MASKS = Form("masks", bounded=True, simplex=False, spatial=True)
CLASS_MASKS = Form("class_masks", bounded=True, simplex=True, spatial=True)
OBJECTS = Form("objects", bounded=True, simplex=False, spatial=True)
MAPS = {form.name: form for form in (MASKS, CLASS_MASKS, OBJECTS)}

EMBEDDINGS = Form("embeddings", bounded=False, simplex=False, directions=True)
IDENTITY, POOL, CAMERA = 0, 1, 2  # columns of the truth of embeddings
EMBEDDING = "embedding"  # the space of such predictions
UNKNOWN = -1  # among classes to learn: nobody knows it, a teacher alone speaks of the row
RANKS = "ranks"
