"""The arguments of a cut chosen by nested cross-validation: levels, sizes, gates, seeds.

A coordinate search goes through what the cut declares (its fact ``search``), one argument after the other, then through
single classes. Every setting is tried once on each image, whose maps are read once an argument; what an image adds to
the metric is kept, so that choosing without a fold's images is arithmetic. An image's answer is scored as cut by what
the other folds chose. The search must be worth it: its cut is taken only where its nested score gains more than one
paired standard error over the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import registry
from pipeline.evaluate import Score, direction
from pipeline.nested import parts as parts_of
from pipeline.registry import Call, Part

Images = Callable[[int], tuple[np.ndarray, np.ndarray]]  # the place of an image → its values (C, H, W), its truth
Coordinate = tuple[str, int, int]  # an argument; if it is to be a list, a place in it and how long it is, else 0 and 0

MOST = 500  # images that a search looks at
MOST_CLASSES = 12  # up to which each class is gone through alone
DRAWS = 1000
EQUAL = 1e-12  # gains that differ by less are equal


@dataclass(frozen=True)
class Choice:
    """A cut for a run, and how it was found.

    call: the one to use, either of the next two. default: as it was asked for. searched: chosen on all images.
    of_folds: what was chosen without each fold. score: of ``call`` on the images looked at, nested where it was
    searched. default_score: the default's. gain, se: of the nested search over the default, paired. rows: the places of
    the images looked at, among so many. contributions: (rows, 2, m), what each adds to the score, numerator and
    denominator.
    """

    call: str
    default: str
    searched: str
    of_folds: dict[int, str]
    score: Score
    default_score: Score
    gain: float
    se: float
    rows: np.ndarray = field(repr=False)
    among: int
    contributions: np.ndarray = field(repr=False)

    def __str__(self) -> str:
        seen = "all" if len(self.rows) == self.among else f"{len(self.rows)} drawn of {self.among:,}"
        by = f"gains {self.gain:+.4f} ± {self.se:.4f} over {self.default}, nested, on {seen} images"
        if self.searched == self.default:
            return f"{self.call}: nothing else was better, on {seen} images"
        if self.call == self.default:
            return f"{self.call}: {self.searched} {by}: not beyond one paired standard error"
        return f"{self.call}: {by}: beyond one paired standard error"

    def facts(self) -> dict[str, Any]:
        """What a json holds of it."""
        return {
            "cut": self.call, "default": self.default, "searched": self.searched,
            "of_folds": {str(fold): call for fold, call in self.of_folds.items()},
            "score": self.score.value, "se": self.score.se, "folds": self.score.folds, "kind": self.score.kind,
            "default_score": self.default_score.value, "gain": self.gain, "gain_se": self.se,
            "images": len(self.rows), "among": self.among,
        }  # fmt: skip


def choose(
    images: Images, folds: np.ndarray, metric: str, cut: str, classes: int, *,
    most: int | None = None, seed: int = 0, threads: int = 1,
) -> Choice:  # fmt: skip
    """The cut to use, from OOF maps and truth.

    images: called with places below N, by several threads if asked; it is called once a searched argument for each
    image, and nothing of it is kept. folds: (N,) int64. metric, cut: call-strings; what the cut's names is not
    searched. classes: of the metric. most: above that many images a drawn sample is looked at; the cut's own number, or
    MOST.
    """
    part, asked = registry.bind("cuts", cut)
    most = most or part.facts.get("most", MOST)
    rows = np.sort(np.random.default_rng([seed, len(folds)]).permutation(len(folds))[:most])
    table = Table(images, rows, metric, classes, threads)
    fold_of = parts_of(folds[rows], seed)
    known = np.unique(fold_of).tolist()
    start = Call(part.name, {**part.arguments, **asked.arguments})
    table.fill([start])
    learns = [np.ones(len(rows), dtype=bool), *(fold_of != fold for fold in known)]
    whole, *chosen = climb(table, start, learns, coordinates(part, asked, classes))
    answered = np.empty_like(table.known[str(start)])
    for fold, call in zip(known, chosen, strict=True):
        answered[fold_of == fold] = table.known[str(call)][fold_of == fold]
    plain = table.known[str(start)]
    gain, se = paired(plain, answered)
    gain *= table.sign
    worth = gain > se and whole != start  # a NaN of either is no gain
    default = _score(plain, fold_of, "OOF")
    return Choice(
        str(whole if worth else start), str(start), str(whole),
        dict(zip(known, map(str, chosen), strict=True)),
        _score(answered, fold_of, "nested") if worth else default, default,
        gain, se, rows, len(folds), answered if worth else plain,
    )  # fmt: skip


# --- what images add, by setting ----------------------------------------------------------------------------------


class Table:
    """What each image adds to the metric under each setting that was tried.

    known: by call-string (n, 2, m) float64, numerators and denominators; the score is the mean over m of their sums'
    ratios. An image's own mean is a numerator over one, over zero where it has none.
    """

    def __init__(self, images: Images, rows: np.ndarray, metric: str, classes: int, threads: int = 1) -> None:
        self.images, self.rows, self.classes, self.threads = images, rows, classes, threads
        self.function, self.sign = registry.build("metrics", metric), direction(metric)
        self.pooled = bool(registry.facts("metrics", metric).get("pooled"))
        self.known: dict[str, np.ndarray] = {}

    def fill(self, calls: Sequence[Call]) -> None:
        """Try these settings, in one pass over the images."""
        missing = [text for text in dict.fromkeys(map(str, calls)) if text not in self.known]
        if not missing:
            return
        cuts = [registry.build("cuts", text)() for text in missing]

        def of_image(row: int) -> np.ndarray:
            values, truth = self.images(row)
            return np.stack([self.adds(truth, cut(values)) for cut in cuts])

        if self.threads > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                found = np.stack(list(pool.map(of_image, self.rows.tolist())))
        else:
            found = np.stack([of_image(row) for row in self.rows.tolist()])
        self.known.update(zip(missing, found.swapaxes(0, 1), strict=True))

    def adds(self, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """(2, m) of one image."""
        found = np.asarray(self.function(truth, answer, self.classes), dtype=np.float64)
        if self.pooled:
            return found
        counted = found[~np.isnan(found)]
        return np.array([[counted.mean()], [1.0]]) if len(counted) else np.zeros((2, 1))

    def gain(self, call: Call, rows: np.ndarray) -> float:
        """The score on these rows, more being better; NaN where none counts."""
        return self.sign * float(ratio(self.known[str(call)][rows].sum(axis=0)))


def ratio(sums: np.ndarray) -> np.ndarray:
    """(…, 2, m) sums of numerators and denominators → (…) the mean of their ratios, without those over zero."""
    above, below = sums[..., 0, :], sums[..., 1, :]
    there = below > 0
    shares = np.where(there, above / np.where(there, below, 1), 0).sum(axis=-1)
    count = there.sum(axis=-1)
    return np.where(count > 0, shares / np.maximum(count, 1), np.nan)


def paired(base: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """How much larger other's score is than base's on the same images, and the standard error of that.

    base, other: (n, 2, m). The error is the bootstrap's over images, in closed form where the score is a mean over
    them, infinite where that says nothing.
    """
    gain = float(ratio(other.sum(axis=0)) - ratio(base.sum(axis=0)))
    if len(base) < 2:
        return gain, math.inf
    if base.shape[-1] == 1 and (base[:, 1] == 1).all() and (other[:, 1] == 1).all():
        return gain, float(np.std(other[:, 0, 0] - base[:, 0, 0], ddof=1) / math.sqrt(len(base)))
    times = np.random.default_rng(seed).multinomial(len(base), np.full(len(base), 1 / len(base)), size=DRAWS)
    drawn = [ratio(np.tensordot(times.astype(np.float64), table, axes=1)) for table in (base, other)]
    differences = drawn[1] - drawn[0]
    differences = differences[~np.isnan(differences)]
    return gain, float(np.std(differences, ddof=1)) if len(differences) > 1 else math.inf


def _score(contributions: np.ndarray, parts: np.ndarray, kind: str) -> Score:
    """The score of all images together, with its standard error over folds."""
    folds = [float(ratio(contributions[parts == part].sum(axis=0))) for part in np.unique(parts)]
    se = float(np.std(folds, ddof=1) / math.sqrt(len(folds))) if len(folds) > 1 else math.nan
    return Score(float(ratio(contributions.sum(axis=0))), se, kind, folds)


# --- the search ---------------------------------------------------------------------------------------------------


def climb(table: Table, start: Call, learns: Sequence[np.ndarray], order: Sequence[Coordinate]) -> list[Call]:
    """For each set of rows (n,) bool the setting that a coordinate search from start ends at."""
    ends = [start] * len(learns)
    for coordinate in order:
        tried = [_moves(end, *coordinate) for end in ends]
        table.fill([call for calls in tried for call in calls])
        ends = [_best(table, calls, rows) for calls, rows in zip(tried, learns, strict=True)]
    return ends


def coordinates(part: Part, asked: Call, classes: int) -> list[Coordinate]:
    """What is searched, in order: the arguments that the call does not name, then those of single classes."""
    free = [key for key in part.facts["search"] if key not in asked.arguments]
    found: list[Coordinate] = [(key, 0, 0) for key in free]
    for key, first in part.facts.get("each", {}).items():
        count = classes - first
        if key in free and 1 < count <= MOST_CLASSES:
            found += [(key, place, count) for place in range(count)]
    return found


def _moves(call: Call, key: str, place: int, count: int) -> list[Call]:
    """The setting itself, then those with another value of an argument (or of a place in it), the nearest first."""
    candidates = list(registry.facts("cuts", call.name)["search"][key])
    value = call.arguments[key]
    values = value if isinstance(value, list) else [value] * count
    at = candidates.index(values[place] if count else value)
    others = sorted(set(range(len(candidates))) - {at}, key=lambda other: (abs(other - at), other))
    moved = [candidates[other] for other in others]
    if count:
        moved = [[*values[:place], one, *values[place + 1 :]] for one in moved]
    return [call, *(Call(call.name, {**call.arguments, key: one}) for one in moved)]


def _best(table: Table, calls: Sequence[Call], rows: np.ndarray) -> Call:
    """The first of the best, so that of equal settings the one that moves least is taken."""
    best, highest = calls[0], table.gain(calls[0], rows)
    for call in calls[1:]:
        if (gain := table.gain(call, rows)) > highest + EQUAL:
            best, highest = call, gain
    return best
