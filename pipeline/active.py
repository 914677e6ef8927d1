"""Which images are worth a label: how much members doubt or dispute them, and how far they lie from what is labelled.

Each criterion is larger where a label should teach more. entropy: of the mean over members and views, in nats. margin:
1 − the lead of the likeliest class over the second (Scheffer et al. 2001); of labels how near the least sure one lies
to one half. disagreement: of probabilities the mutual information between answer and member, BALD (Houlsby et al. 2011,
eq. 2; Gal et al. 2017), in nats; of numbers the members' deviation in units of the predictions' own. diversity: the
distance to the nearest image that is labelled or chosen before, greedy k-centre (Sener & Savarese 2018, alg. 1). Of
masks the first three are means over an image's pixels and planes. NumPy and pandas alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline import label_lists
from pipeline.forms import Form

ENTROPY, MARGIN, DISAGREEMENT, DIVERSITY = "entropy", "margin", "disagreement", "diversity"
CRITERIA = (ENTROPY, MARGIN, DISAGREEMENT, DIVERSITY)
BLOCK = 4096  # rows that are compared at a time
TINY = 1e-12


def possible(form: Form) -> tuple[str, ...]:
    """The criteria that mean something for values of a form."""
    if form.searched or form.shelved:
        return (DIVERSITY,)
    return CRITERIA if form.bounded else (DISAGREEMENT, DIVERSITY)


# --- doubt of single images ---------------------------------------------------------------------------------------


def entropies(form: Form, values: np.ndarray) -> np.ndarray:
    """Probabilities (…, C) → (…) nats: of the classes together, or the mean over labels that stand for themselves."""
    chances = np.clip(values, TINY, 1)
    if form.simplex:
        return -(chances * np.log(chances)).sum(axis=-1)
    others = np.clip(1 - values, TINY, 1)
    return -(chances * np.log(chances) + others * np.log(others)).mean(axis=-1)


def margins(form: Form, values: np.ndarray) -> np.ndarray:
    """Probabilities (…, C) → (…) in 0…1: 1 where two classes are equally likely, or some label is one half."""
    if not form.simplex:
        return 1 - np.abs(2 * values - 1).min(axis=-1)
    best = np.partition(values, -2, axis=-1)
    return 1 - (best[..., -1] - best[..., -2])


class Opinions:
    """What members, each under several views, say of N images. Sums alone are kept: memory is that of one opinion."""

    def __init__(self, form: Form) -> None:
        self.form, self.count = form, 0
        self._total: Any = 0
        self._inner: Any = 0  # of probabilities the entropies of each opinion, else squares

    def add(self, values: np.ndarray) -> None:
        """One more opinion, (N, C)."""
        wide = values.astype(np.float64)
        self.count += 1
        self._total = self._total + wide
        self._inner = self._inner + (entropies(self.form, wide) if self.form.bounded else wide**2)

    @property
    def mean(self) -> np.ndarray:
        """(N, C) float64, the mean opinion."""
        return np.asarray(self._total / self.count)

    def criteria(self) -> dict[str, np.ndarray]:
        """(N,) float64 of each criterion that the values tell; disagreement needs two opinions."""
        mean = self.mean
        if not self.form.bounded:
            spread = np.sqrt(np.maximum(self._inner / self.count - mean**2, 0))
            unit = np.maximum(mean.std(axis=0), TINY)
            return {DISAGREEMENT: (spread / unit).mean(axis=1)} if self.count > 1 else {}
        whole = entropies(self.form, mean)
        found = {ENTROPY: whole, MARGIN: margins(self.form, mean)}
        if self.count > 1:
            found[DISAGREEMENT] = np.maximum(whole - self._inner / self.count, 0)
        return found


def of_maps(form: Form, members: Sequence[Any], rows: Iterable[int]) -> dict[str, np.ndarray]:
    """The same of some rows of members' maps, ``maps.Maps``: the mean over each image's pixels, read band by band."""
    found = pd.DataFrame([_of_image(form, [member.bands(row) for member in members]) for row in rows])
    return {str(name): found[name].to_numpy(dtype=np.float64) for name in found}


def _of_image(form: Form, members: Sequence[Iterator[np.ndarray]]) -> dict[str, float]:
    total: dict[str, float] = {}
    pixels = 0
    for bands in zip(*members, strict=True):
        opinions = Opinions(form)
        for band in bands:  # (C, h, W)
            opinions.add(np.moveaxis(band, 0, -1).reshape(-1, len(band)))
        pixels += bands[0][0].size
        for name, each in opinions.criteria().items():
            total[name] = total.get(name, 0.0) + float(each.sum())
    return {name: value / pixels for name, value in total.items()}


# --- mixing and choosing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Where candidates lie. points: (N, F) float32 of length 1. near: (N,) float32, to the nearest labelled image."""

    points: np.ndarray
    near: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """rows: (n,) int64, the best first. scores: (n,) of each when it was chosen. near: (n,) its diversity then."""

    rows: np.ndarray
    scores: np.ndarray
    near: np.ndarray


def shares(values: np.ndarray) -> np.ndarray:
    """(N,) → (N,) in 0…1: the rank of each, so that criteria of different units mix; equals share their mean rank."""
    if len(values) < 2:
        return np.zeros(len(values))
    ranks = pd.Series(values).rank().to_numpy(dtype=np.float64)
    return np.asarray((ranks - 1) / (len(values) - 1))


def doubt(found: Mapping[str, np.ndarray], weights: Mapping[str, float], count: int) -> np.ndarray:
    """(count,) float64: the weighted sum of the ranks of all criteria of single images; weights sum to one."""
    total = np.zeros(count)
    for name, weight in weights.items():
        if name != DIVERSITY:
            total += weight * shares(found[name])
    return total


def choose(doubts: np.ndarray, count: int, space: Space | None = None, weight: float = 0.0) -> Chosen:
    """The best images one after the other: doubt, plus weight × the distance to all labelled and chosen before.

    doubts: (N,). Distances are shares of the largest that is left, so that they weigh alike from first to last; with
    doubts of 0 this is greedy k-centre. Memory: the points and a few numbers an image; each step looks at all once.
    """
    count = min(count, len(doubts))
    if space is None or not weight:
        rows = np.argsort(-doubts, kind="stable")[:count]
        near = np.full(count, np.nan) if space is None else space.near[rows].astype(np.float64)
        return Chosen(rows, doubts[rows], near)
    near, free = space.near.astype(np.float64), np.ones(len(doubts), dtype=bool)
    found: list[tuple[int, float, float]] = []
    for _ in range(count):
        scale = near[free].max() or 1.0
        mixed = np.where(free, doubts + weight * near / scale, -np.inf)
        best = int(mixed.argmax())
        found.append((best, float(mixed[best]), float(near[best])))
        free[best] = False
        near = np.minimum(near, distances(space.points @ space.points[best]))
    rows, scores, alone = zip(*found, strict=True)
    return Chosen(np.array(rows, dtype=np.int64), np.array(scores), np.array(alone))


def distances(cosines: np.ndarray) -> np.ndarray:
    """Cosines → Euclidean distances of points of length 1, 0…2."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * cosines, 0)))


def nearest(points: np.ndarray, labelled: Iterable[np.ndarray]) -> np.ndarray:
    """(N,) float32, the distance of each point (N, F) to the nearest of the labelled, which come in blocks (B, F).

    Cosines are made in blocks of both: memory does not grow with N times the labelled.
    """
    best = np.full(len(points), -1.0, dtype=np.float32)
    for block in labelled:
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            best[part] = np.maximum(best[part], (points[part] @ block.T).max(axis=1))
    return distances(best).astype(np.float32)


# --- what is said of an image -------------------------------------------------------------------------------------


def guesses(task: Any, values: np.ndarray, separator: str) -> tuple[list[str], np.ndarray]:
    """What the mean opinion (N, C) answers, a text an image, and its probability (N,), NaN where there is none.

    Of labels those that are decided, with the probability of the least sure. Embeddings and maps give no text.
    """
    form, none = task.form, np.full(len(values), np.nan)
    if form.searched or form.shelved or form.spatial:
        return [""] * len(values), none
    answers = task.decide(values.astype(np.float32))
    if not form.bounded:
        return [separator.join(f"{number:.6g}" for number in row) for row in answers], none
    if form.simplex:
        chances = np.take_along_axis(values, answers[:, None], axis=1)[:, 0]
        return [str(task.columns[place]) for place in answers], chances
    names = np.array(task.columns, dtype=object)
    return [label_lists.join(names[row > 0], separator) for row in answers], np.maximum(values, 1 - values).min(axis=1)
