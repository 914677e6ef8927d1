"""What the answers look like beside the truth, and whether probabilities can be believed: one function a form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.lists import LISTS
from pipeline.report import charts
from pipeline.report.charts import Series
from pipeline.report.facts import Entry, Facts
from pipeline.report.markup import Markup, tag
from pipeline.report.page import Section, badge, folded, note, table

CLASSES = 30  # of a confusion matrix; with more the pairs are listed
CURVES = 6  # labels whose curves are drawn, the hardest first
KNOWN = 5  # rows of a part of confidence that is drawn
BINS = 15  # of confidence; Guo et al. 2017
POINTS = 200  # of a curve
MOST = 5_000_000  # rows and labels of which a curve is made
PAIRS = 60  # confused pairs that are listed
RIGHT = 1  # of a ranked answer


def answers(facts: Facts) -> Section | None:
    """The answers of the best run and the level 2 beside the truth, in the way of the task's form."""
    drawn = [(entry, DRAWN[entry.task.form.name](entry)) for entry in facts.shown if entry.task.form.name in DRAWN]
    if not drawn:
        return None
    body: list[Any] = [[tag("h3", entry.name, " ", badge(entry.rows_by)), parts] for entry, parts in drawn]
    if all(entry.task.form.name in NARROW and len(entry.task.columns) > 2 for entry, _ in drawn):
        body = [tag("div", [tag("div", part) for part in body], class_="sides")]
    return Section("answers", "Answers and truth", body, sorted({entry.rows_by for entry, _ in drawn}, reverse=True))


NARROW = ("classes",)  # forms of which two stand side by side

# --- classes ------------------------------------------------------------------------------------------------------


def of_classes(entry: Entry) -> list[Any]:
    """The confusion matrix, or its pairs; of two classes the curves of the second; a table of all classes."""
    names, said = entry.task.columns, entry.task.decide(entry.values)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (entry.truth, said), 1)
    body: list[Any] = [confusion(names, counts)] if len(names) <= CLASSES else []
    if len(names) == 2:
        body += curves_of(entry.truth == 1, entry.values[:, 1], names[1])
    pairs = entry.mined.pairs if entry.mined is not None else None
    listed = [] if pairs is None or not len(pairs) else [_pairs(pairs)]
    each = folded("each class", _each_class(entry, names, counts))
    return [tag("div", body, class_="grid" if len(names) == 2 else "sides"), each, *listed]


def confusion(names: list[str], counts: np.ndarray) -> Markup:
    """Counts, shaded by the share of the row's class: the diagonal in blue, mistakes in orange."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = ~np.eye(len(names), dtype=bool)
    shades = np.where(wrong, np.sqrt(shares), shares * 0.85)
    return charts.matrix(
        "confusion matrix", names, names, np.where(counts > 0, np.maximum(shades, 0.14), 0.0),
        lambda r, c: str(counts[r, c]) if counts[r, c] else "",
        lambda r, c: f"{names[r]} seen as {names[c]}: {counts[r, c]} ({shares[r, c]:.1%})",
        wrong=lambda r, c: r != c, axes=("truth", "answer"),
        small="rows; shaded by their share of the class, mistakes by its root",
    )  # fmt: skip


def _each_class(entry: Entry, names: list[str], counts: np.ndarray) -> Markup:
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = (counts.diagonal() / counts.sum(axis=axis) for axis in (1, 0))
        score = 2 * recall * precision / (recall + precision)
    own = [float(entry.values[entry.truth == place, place].mean()) if (entry.truth == place).any() else np.nan
           for place in range(len(names))]  # fmt: skip
    rows = [[names[n], int(counts[n].sum()), recall[n], precision[n], score[n], own[n]] for n in range(len(names))]
    return table(["class", "rows", "recall", "precision", "F1", "probability"], rows)


def _pairs(pairs: Any) -> Markup:
    rows = [
        [one.label or "nothing", one.taken_for or "nothing", int(one.rows), float(one.share), float(one.score), one.id]
        for one in pairs.head(PAIRS).rename(columns={"count": "rows"}).itertuples(index=False)
    ]
    head = ["is", "seen as", "rows", "share of its class", "probability", "such as"]
    return folded("each confusion", table(head, rows))


# --- labels -------------------------------------------------------------------------------------------------------


def of_labels(entry: Entry) -> list[Any]:
    """Curves of all labels together and of the hardest, and a table of them."""
    names, truth, values = entry.task.columns, np.asarray(entry.truth) > 0.5, np.asarray(entry.values)
    rows = [_label(name, truth[:, place], values[:, place]) for place, name in enumerate(names)]
    known = [place for place in range(len(names)) if truth[:, place].any()]
    series = []
    for place in sorted(known, key=lambda place: rows[place][2])[:CURVES]:
        _, precision, recall = precision_recall(truth[:, place], values[:, place])
        series.append(_curve(names[place], recall, precision))
    each = charts.plot(
        "precision and recall of the hardest labels", series, "recall", "precision", ends=((0, 1), (0, 1))
    )
    head = ["label", "rows", "average precision", "F1 at 0.5", "best F1", "at threshold"]
    said = note(
        "The best threshold of a label is chosen on the rows that it is scored on, and so is optimistic; level 2 "
        "chooses thresholds by nested CV."
    )
    together = curves_of(truth.ravel(), values.ravel(), "all labels together")
    return [tag("div", [*together, each], class_="grid"), table(head, rows), said, *_confused(entry)]


def _label(name: str, truth: np.ndarray, score: np.ndarray) -> list[Any]:
    """The cells of a label."""
    cut, precision, recall = precision_recall(truth, score)
    each, half = f1(precision, recall), f1(*at(truth, score, 0.5))
    best = [float(each.max()), float(cut[each.argmax()])] if len(each) else [np.nan, np.nan]
    return [name, int(truth.sum()), average_precision(precision, recall), float(half), *best]


def _confused(entry: Entry) -> list[Markup]:
    pairs = entry.mined.pairs if entry.mined is not None else None
    return [] if pairs is None or not len(pairs) else [_pairs(pairs)]


def curves_of(truth: np.ndarray, score: np.ndarray, name: str) -> list[Markup]:
    """Precision against recall, and what each threshold gives. truth (n,) bool, score (n,) 0…1; of many every k-th."""
    step = max(1, len(truth) // MOST)
    truth, score = truth[::step], score[::step]
    cut, precision, recall = precision_recall(truth, score)
    both = charts.plot(
        f"precision and recall of {name}", [_curve(name, recall, precision)], "recall", "precision",
        ends=((0, 1), (0, 1)), small=f"average precision {average_precision(precision, recall):.4f}",
    )  # fmt: skip
    kept = thinned(cut, precision, recall, f1(precision, recall))
    each = [Series(word, kept[0], y) for word, y in zip(("precision", "recall", "F1"), kept[1:], strict=True)]
    return [both, charts.plot(f"thresholds of {name}", each, "threshold", "", ends=((0, 1), (0, 1)))]


def _curve(name: str, recall: np.ndarray, precision: np.ndarray) -> Series:
    x, y = thinned(recall, precision)
    return Series(name, x, y)


def precision_recall(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, falling, and precision and recall of what is at least each of them; empty without a true row."""
    order = np.argsort(-score, kind="stable")
    ranked, right = score[order], np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, len(ranked) > 0))
    if not truth.any():
        return np.zeros(0), np.zeros(0), np.zeros(0)
    return ranked[last], right[last] / (last + 1), right[last] / right[-1]


def average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area below precision as steps over recall, as scikit-learn has it; NaN without a true row."""
    return float((np.diff(recall, prepend=0) * precision).sum()) if len(recall) else float("nan")


def at(truth: np.ndarray, score: np.ndarray, cut: float) -> tuple[Any, Any]:
    """Precision and recall of what is above a threshold."""
    said = score > cut
    right = float((said & truth).sum())
    return np.float64(right / max(1, said.sum())), np.float64(right / max(1, truth.sum()))


def f1(precision: Any, recall: Any) -> Any:
    """Their harmonic mean, 0 where both are."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def thinned(*columns: np.ndarray) -> list[np.ndarray]:
    """Columns of one length at POINTS places at most, the first and the last among them."""
    count = len(columns[0])
    places = np.unique(np.linspace(0, max(0, count - 1), min(count, POINTS)).round().astype(np.int64))
    return [column[places] if count else column for column in columns]


# --- numbers ------------------------------------------------------------------------------------------------------


def of_numbers(entry: Entry) -> list[Any]:
    """Answers against truth, target by target, and where the errors are large."""
    said, truth = np.asarray(entry.task.decide(entry.values)), np.asarray(entry.truth)
    names = getattr(entry.task, "target", entry.task.columns)
    drawn = [
        charts.plot(f"{name}: answer against truth", [Series(name, truth[:, n], said[:, n], "dots")], "truth", "answer",
                    diagonal=True, small=_correlated(truth[:, n], said[:, n]))
        for n, name in enumerate(names[:CURVES])
    ]  # fmt: skip
    if entry.mined is not None:
        error = np.sqrt(entry.mined.losses)
        both = [Series("error", truth[:, 0], error, "dots"), _trend(truth[:, 0], error)]
        small = "in deviations of the target; the line is the median"
        drawn.append(
            charts.plot("error against truth", both, f"truth of {names[0]}", "error", legend=False, small=small)
        )
        drawn.append(charts.histogram("errors", [("rows", error)], "error, in deviations of the target"))
    return [tag("div", drawn, class_="grid")]


def _correlated(truth: np.ndarray, said: np.ndarray) -> str:
    with np.errstate(invalid="ignore", divide="ignore"):
        return f"correlation {np.corrcoef(truth, said)[0, 1]:.4f}" if len(truth) > 1 else ""


def _trend(truth: np.ndarray, error: np.ndarray) -> Series:
    """The median error of ten parts of the rows, by their truth."""
    parts = np.array_split(np.argsort(truth, kind="stable"), min(10, max(1, len(truth) // 5)))
    x, y = ([float(np.median(values[part])) for part in parts] for values in (truth, error))
    return Series("median", x, y, colour=3)


# --- masks and searches -------------------------------------------------------------------------------------------


def of_maps(entry: Entry) -> list[Any]:
    """How many images have which score, and whether small or large masks are the hard ones."""
    scores = entry.metric.rows(*entry.seen)
    drawn = [charts.histogram("images by score", [("images", scores)], entry.metric.name, log=True,
                              small="drawn by the root of counts")]  # fmt: skip
    covered = covered_of(entry)
    if covered is not None:
        inside = covered > 0
        drawn.append(charts.plot("score and coverage", [Series("images", covered[inside], scores[inside], "dots")],
                                 "share of the image that has a mask", entry.metric.name))  # fmt: skip
    return [tag("div", drawn, class_="grid")]


def covered_of(entry: Entry) -> np.ndarray | None:
    """(n,) the share of each image that has a mask, where the task tells it."""
    task: Any = entry.task
    return np.asarray(task.covered(entry.competition.targets.iloc[entry.rows])) if hasattr(task, "covered") else None


def of_searches(entry: Entry) -> list[Any]:
    """Where in its list a row finds its first right answer; of embeddings also how near right and wrong ones are."""
    relevant, found = entry.seen
    asked = relevant > 0
    hits = found[asked] == RIGHT
    place = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, found.shape[1] + 1.0)
    most = min(found.shape[1], 20)
    shown = np.minimum(place, most + 1)
    small = f"first for {np.mean(place == 1):.1%} of {len(place)}; drawn by the root of counts"
    first = charts.histogram(
        "place of the first right answer", [("rows", shown)], f"place; {most + 1}: later or never",
        ends=(1, most + 1), whole=True, log=True, small=small,
    )  # fmt: skip
    drawn = [first]
    mined = entry.mined
    if mined is not None and "own_cosine" in mined.rows:
        groups = [
            ("nearest of its own", mined.rows["own_cosine"].to_numpy()),
            ("nearest of another", mined.rows["cosine"].to_numpy()),
        ]
        bins = np.linspace(min(np.nanmin(values) for _, values in groups), 1, 41)
        lines = [Series(name, (bins[1:] + bins[:-1]) / 2, np.histogram(values[np.isfinite(values)], bins)[0])
                 for name, values in groups]  # fmt: skip
        drawn.append(charts.plot("cosines", lines, "cosine", "rows", small="the less both overlap, the better"))
    return [tag("div", drawn, class_="grid")]


DRAWN: dict[str, Callable[[Entry], list[Any]]] = {  # by the form's name
    "classes": of_classes, "labels": of_labels, "numbers": of_numbers, "masks": of_maps, "class_masks": of_maps,
    "objects": of_maps, "embeddings": of_searches, LISTS.name: of_searches,
}  # fmt: skip


# --- calibration --------------------------------------------------------------------------------------------------


def calibration(facts: Facts) -> Section | None:
    """Whether what is said with 80 % is right in 80 %: a line each, and the expected calibration error."""
    entries = [*facts.shown, *(entry for entry in facts.whole if entry not in facts.shown)]
    told = [(entry, *SURE[entry.task.form.name](entry)) for entry in entries if entry.task.form.name in SURE]
    if not told:
        return None
    drawn = [(entry, *reliability(sure, right)) for entry, sure, right in told[:CURVES]]
    lines = [Series(entry.name, x[n >= KNOWN], y[n >= KNOWN]) for entry, x, y, n in drawn]
    chart = charts.plot(
        "reliability", lines, "said", "came true", diagonal=True, ends=((0, 1), (0, 1)),
        small=f"above the dashed line: too modest; parts of {KNOWN} rows and more",
    )  # fmt: skip
    entry, sure, right = told[0]
    yes, no = SAID[entry.task.form.name]
    both = [(yes, sure[right]), (no, sure[~right])]
    share = charts.histogram(
        f"how sure {entry.name} is", both, "said", ends=(0, 1), log=True, small="drawn by the root of counts"
    )
    head = ["run", "made by", "mean confidence", "came true", f"ECE, {BINS} bins", "log loss"]
    said = note(
        f"Expected calibration error: the mean distance of both over {BINS} equal parts of 0…1, weighed by rows (Guo "
        "et al. 2017). Of single members; an average of members, as on test, is more modest."
    )
    body = [tag("div", [chart, share], class_="grid"), table(head, [_believed(*one) for one in told]), said]
    return Section("calibration", "Calibration", body, sorted({entry.rows_by for entry, _, _ in told}, reverse=True))


def _believed(entry: Entry, sure: np.ndarray, right: np.ndarray) -> list[Any]:
    """The cells of a run."""
    loss = entry.task.form.distance(entry.truth, entry.values).mean()
    error = calibration_error(sure, right)
    return [entry.name, badge(entry.rows_by), float(sure.mean()), float(right.mean()), error, float(loss)]


def sure_of_classes(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the likeliest class, and whether that is the truth."""
    values = np.asarray(entry.values)
    return values.max(axis=1).astype(np.float64), values.argmax(axis=1) == entry.truth


def sure_of_labels(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each label of each row, and whether it is there."""
    return np.asarray(entry.values, dtype=np.float64).ravel(), np.asarray(entry.truth).ravel() > 0.5


SURE: dict[str, Callable[[Entry], tuple[np.ndarray, np.ndarray]]] = {
    "classes": sure_of_classes, "labels": sure_of_labels,
}  # fmt: skip


SAID = {"classes": ("right", "wrong"), "labels": ("there", "not there")}  # what came of it


def bins_of(sure: np.ndarray) -> np.ndarray:
    """(n,) the part, 0…BINS − 1, of each probability: (0, 1/15], (1/15, 2/15], …"""
    return np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)


def reliability(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each part that has rows: the mean of what is said, the share that is right, and how many there are."""
    part = bins_of(sure)
    counts = np.bincount(part, minlength=BINS)
    kept = counts > 0
    said, true = (np.bincount(part, weights=one, minlength=BINS)[kept] / counts[kept] for one in (sure, right))
    return said, true, counts[kept]


def calibration_error(sure: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error."""
    said, true, counts = reliability(sure, right)
    return float((np.abs(said - true) * counts).sum() / max(1, counts.sum()))
