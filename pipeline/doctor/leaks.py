"""Can the target be read from what is no picture: names, sizes, bytes, dates, the order of the rows?

Each fact alone predicts each row from the other rows with a like value. What that explains is compared with what the
same fact explains of shuffled targets; only what lies far beyond that noise is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.doctor.findings import Finding, Sheet

MOST_ROWS = 20_000
MOST_CLASSES = 64  # the rarer ones count as one
LEAST_ROWS = 30
SHUFFLES = 20
FAR = 4.0  # standard deviations of the shuffled scores
EFFECT, STRONG = 0.02, 0.2  # explained share of the target from which a fact is worth a note, and a warning
OF_CONTENT = 0.1  # the same for facts that the picture's content explains as well
BINS = (16, 64)  # rows in a fine bin; number of coarse bins
PRIOR = 4.0  # rows that the average over all bins weighs in a bin
PIECE = re.compile(r"\d+|[^\W\d_]+")


@dataclass(frozen=True)
class Fact:
    """A fact of every training row, (N,) float64. ordered: whether like values mean anything, or only equal ones.

    severity: the worst that it can be. least: share of the target from which it is worth a word.
    """

    name: str
    values: np.ndarray
    ordered: bool
    advice: str
    severity: str = "warning"
    least: float = EFFECT


def leaks(facts: Sequence[Fact], strata: np.ndarray, rows: np.ndarray) -> tuple[Sheet | None, list[Finding]]:
    """facts and strata hold all training rows, of which rows (sorted) are asked; strata as a task gives them."""
    rows = np.sort(np.random.default_rng(2).permutation(rows)[:MOST_ROWS])
    target = dense(strata[rows])
    if len(rows) < LEAST_ROWS or not target.shape[1]:
        return None, []
    generator = np.random.default_rng(3)
    orders = [generator.permutation(len(target)) for _ in range(SHUFFLES)]
    lines: list[list[str]] = []
    told: dict[str, tuple[float, Finding]] = {}
    for fact in facts:
        values = fact.values[rows]
        if values.min() == values.max():
            continue
        bins = _bins(values, fact.ordered)
        share = max(explained(one, target) for one in bins)
        chance = np.array([max(explained(one, target[order]) for one in bins) for order in orders])
        deviations = (share - chance.mean()) / max(chance.std(), 1e-4)
        lines.append([fact.name, f"{share:+.1%}", f"{chance.mean():+.1%} ± {chance.std():.1%}", f"{deviations:+.1f}"])
        if deviations > FAR and share > fact.least:
            severity = fact.severity if share > STRONG else "note"
            title = f"{fact.name} alone explains {share:.0%} of the target ({_sigmas(deviations)} beyond chance)"
            if share > told.get(fact.advice, (0.0, None))[0]:  # of facts of one kind the most telling
                told[fact.advice] = share, Finding("leak", severity, len(rows), title, fact.advice)
    head = ["fact alone", "explains", "shuffled targets", "z"]
    remark = "share of the target's variance (of classes: Gini impurity) that the other rows of a like value explain"
    sheet = Sheet("Leaks: what is readable without the picture", head, lines, remark) if lines else None
    return sheet, [finding for _, finding in told.values()]


def dense(strata: np.ndarray) -> np.ndarray:
    """(N,) classes or (N, C) labels or numbers → (N, K) float64: one-hot classes, or standardised columns."""
    if strata.ndim == 1:
        names, code, counts = np.unique(strata, return_inverse=True, return_counts=True)
        rank = np.empty(len(names), dtype=np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(names))
        return np.eye(min(len(names), MOST_CLASSES))[np.minimum(rank[code], MOST_CLASSES - 1)]
    columns = strata.astype(np.float64)
    columns = columns[:, columns.std(axis=0) > 0]
    columns = columns[:, np.argsort(-columns.std(axis=0), kind="stable")[:MOST_CLASSES]]
    return (columns - columns.mean(axis=0)) / np.maximum(columns.std(axis=0), 1e-12)


def explained(bins: np.ndarray, target: np.ndarray) -> float:
    """Share of the target's variance that the mean of the other rows of the same bin explains; below 0: misleads.

    bins (N,) int64, target (N, K) float64. For one-hot classes this is the share of the Gini impurity.
    """
    mean = target.mean(axis=0)
    rows = np.bincount(bins)[bins] - 1.0
    sums = np.stack([np.bincount(bins, target[:, k])[bins] for k in range(target.shape[1])], axis=1)
    guess = (sums - target + PRIOR * mean) / (rows + PRIOR)[:, None]
    left, whole = ((target - guess) ** 2).sum(), ((target - mean) ** 2).sum()
    return float(1 - left / max(whole, 1e-12))


def _sigmas(deviations: float) -> str:
    """How far beyond chance; few shuffles of few rows make no exact figure of a large one."""
    return f"{deviations:.0f} σ" if deviations < 50 else "over 50 σ"


def _bins(values: np.ndarray, ordered: bool) -> list[np.ndarray]:
    """Each value by itself where few have many rows, or it is a code; else quantile bins, fine and coarse."""
    unique, code = np.unique(values, return_inverse=True)
    if not ordered or len(unique) <= min(BINS[1], len(values) // 4):
        return [code]
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    return [
        rank[np.searchsorted(values[order], values)] // step
        for step in (min(BINS[0], len(values) // 4), max(4, len(values) // BINS[1]))
    ]


# --- facts --------------------------------------------------------------------------------------------------------


def name_facts(names: Sequence[str], tests: Sequence[str]) -> list[Fact]:
    """What file names say: their pieces (words and numbers), their length, their place in the sorted list.

    names, tests: ids of the training and test rows. Folders count only where test rows have them too, since folders
    that only training rows have can tell nothing of the test.
    """
    if not any("/" in name for name in tests):
        names = [name.rpartition("/")[2] for name in names]
    codes = np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.float64)
    found = [Fact("place of the name in the sorted names", codes, True, NAME_ADVICE)]
    found.append(
        Fact("length of the name", np.array([len(name) for name in names], dtype=np.float64), True, NAME_ADVICE)
    )
    pieces = [PIECE.findall(name.rpartition(".")[0] if "." in name else name) for name in names]
    shapes = [tuple(piece.isdigit() for piece in some) for some in pieces]
    usual, times = Counter(shapes).most_common(1)[0]
    if times < 0.9 * len(shapes) or len(usual) > 8:  # random names, such as digests
        starts = np.unique([name[:1] for name in names], return_inverse=True)[1]
        return [*found, Fact("first letter of the name", starts.astype(np.float64), False, NAME_ADVICE)]
    for place, number in enumerate(usual):
        texts = [some[place] if shape == usual else "" for some, shape in zip(pieces, shapes, strict=True)]
        found += _piece(place, number, texts)
    return found


def _piece(place: int, number: bool, texts: list[str]) -> list[Fact]:
    what = f"{'number' if number else 'word'} {place + 1} of the name"
    unique, code = np.unique(texts, return_inverse=True)
    if len(unique) == 1:
        return []
    if not number:
        return [Fact(what, code.astype(np.float64), False, NAME_ADVICE)] if len(unique) < len(texts) / 2 else []
    found = [Fact(what, np.array([float(text[:15] or -1) for text in texts]), True, NAME_ADVICE)]
    last = np.array([float(text[-1:] or -1) for text in texts])
    return [*found, Fact(f"last digit of {what}", last, False, NAME_ADVICE)] if len(unique) > 10 else found


def row_order(strata: np.ndarray) -> tuple[Fact, Finding | None]:
    """The place of the row in the table; and whether neighbouring rows have like targets."""
    target = dense(strata)
    order = Fact("place of the row in the table", np.arange(len(strata), dtype=np.float64), True, ORDER_ADVICE, "note")
    if len(target) < LEAST_ROWS or not target.shape[1]:
        return order, None
    centred = target - target.mean(axis=0)
    likeness = float((centred[1:] * centred[:-1]).sum() / max((centred**2).sum(), 1e-12))
    generator = np.random.default_rng(4)
    chance = []
    for _ in range(SHUFFLES):
        mixed = centred[generator.permutation(len(centred))]
        chance.append(float((mixed[1:] * mixed[:-1]).sum() / max((centred**2).sum(), 1e-12)))
    deviations = (likeness - float(np.mean(chance))) / max(float(np.std(chance)), 1e-4)
    if deviations <= FAR or likeness < EFFECT:
        return order, None
    return order, Finding(
        "sorted rows", "note", len(target),
        f"neighbouring rows of the training table have like targets: correlation {likeness:.2f} "
        f"({_sigmas(deviations)} beyond chance)",
        ORDER_ADVICE,
    )  # fmt: skip


NAME_ADVICE = (
    "the target can be read from the file's name: if test names follow the same rule, that is a leak to report, or to "
    "use where the rules allow it (put the piece into a column and name it in data.features)"
)
ORDER_ADVICE = (
    "harmless for training, which shuffles, and for shuffled folds; but the order of the test rows may leak too, and "
    "rows that were collected together may belong into one fold: see data.group"
)
SIZE_ADVICE = (
    "the size of the picture tells of the target: level 2 may use it (stack.features=true reads image facts); if test "
    "pictures come from elsewhere, make it invisible: data.resize=stretch"
)
BYTES_ADVICE = (
    "plain pictures take fewer bytes than busy ones, so this may be honest; level 2 may use it (stack.features=true)"
)
SOURCE_ADVICE = (
    "what masks cover goes with the images' sizes: they come from different sources, which show different things; fair "
    "where test images have these sizes too, see the table of images; a source that the test adds is a new one: then "
    "put the source into a column and deal folds by it, data.group"
)
DATE_ADVICE = (
    "the files' dates follow the target: they say how the data were made; test files' dates may tell as much, but only "
    "if the download kept them"
)
