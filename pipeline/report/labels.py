"""Labels that OOF disagrees with for sure, and the pseudo-labels of each round."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from pipeline.mining import PAIR
from pipeline.report.facts import Entry, Facts
from pipeline.report.markup import Markup, tag
from pipeline.report.mistakes import mined_of, shown
from pipeline.report.page import Cell, Section, joined, note, table
from pipeline.tables import read_table

LISTED = 100  # suspicious rows
NEAR = 1e-6  # of a threshold: at least as sure as that, but for rounding
FAR = 5.0  # robust deviations beyond which a number looks wrong; 1.4826 · MAD is one
DEVIATION = 1.4826


# --- suspicious labels --------------------------------------------------------------------------------------------


def suspicious(facts: Facts) -> Section | None:
    """Rows whose label looks wrong, by the best run's OOF: each was judged by a member that did not learn it."""
    entry = facts.best
    if entry is None or entry.task.form.name not in FINDERS:
        return None
    rows, how = FINDERS[entry.task.form.name](entry)
    counted = f"{len(rows):,} of {len(entry.rows):,} labels look wrong, the least likely first: {how}."
    warning = note(
        "A suspicion, no proof: OOF is wrong, too. Correct what you have looked at; never drop the rows of a fold "
        "because its own member disagrees, and compare runs by the same labels."
    )
    said = [tag("p", counted), warning]
    if not len(rows):
        return Section("labels", "Suspicious labels", said, [entry.made_by], entry.name)
    told = [key for key in ("score", "rival_score") if key in mined_of(entry).rows]
    head = [
        "image",
        "id",
        "fold",
        "label",
        "seen as",
        *["probability of the label", "of its rival"][: len(told)],
        "loss",
    ]
    cells = [_suspect(entry, row, told) for row in rows[:LISTED].tolist()]
    return Section("labels", "Suspicious labels", [*said, table(head, cells)], [entry.made_by], entry.name)


def _suspect(entry: Entry, row: int, told: list[str]) -> list[Any]:
    """The cells of a row whose label looks wrong."""
    mined = mined_of(entry)
    image, known = Cell(tag("div", shown(entry, row, ""), class_="thumbs")), mined.rows.iloc[row]
    label, taken = (known[key] or "nothing" for key in PAIR)
    chances = [float(known[key]) for key in told]
    return [image, str(entry.ids[row]), int(entry.folds[row]), label, taken, *chances, float(mined.losses[row])]


def of_classes(entry: Entry) -> tuple[np.ndarray, str]:
    """The off-diagonal of the confident joint (Northcutt et al. 2021), by cleanlab where it is installed."""
    values, truth = np.asarray(entry.values, dtype=np.float64), np.asarray(entry.truth)
    if importlib.util.find_spec("cleanlab") is not None and len(np.unique(truth)) == values.shape[1]:
        return by_cleanlab(truth, values), "confident learning on OOF (Northcutt et al. 2021), by cleanlab"
    why = "confident learning on OOF (Northcutt et al. 2021), without cleanlab: pip install cleanlab for its own"
    return confident(truth, values), why


def by_cleanlab(truth: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows, the least likely label first."""
    from cleanlab.filter import find_label_issues  # type: ignore[import-untyped,unused-ignore]

    chances = values / values.sum(axis=1, keepdims=True)
    found = find_label_issues(
        truth, chances, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return np.asarray(found, dtype=np.int64)


def confident(truth: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The same in a few lines: rows that are as sure of another class as its own rows are on average.

    truth (N,) int64, values (N, C). Of several such classes the likeliest counts; where that is the label, all is well.
    """
    classes = np.arange(values.shape[1])
    sure = np.array([values[truth == one, one].mean() if (truth == one).any() else np.inf for one in classes])
    beyond = values >= sure - NEAR
    taken = np.where(beyond, values, -np.inf).argmax(axis=1)
    rows = np.flatnonzero(beyond.any(axis=1) & (taken != truth))
    return rows[np.argsort(values[rows, truth[rows]], kind="stable")]


def of_labels(entry: Entry) -> tuple[np.ndarray, str]:
    """Rows with a label that is so suspicious, there or not there, each label as two classes."""
    values, truth = np.asarray(entry.values, dtype=np.float64), np.asarray(entry.truth) > 0.5
    worst = np.full(len(values), np.inf)
    for place in range(values.shape[1]):
        chance = np.stack([1 - values[:, place], values[:, place]], axis=1)
        own = truth[:, place].astype(np.int64)
        rows = confident(own, chance) if len(np.unique(own)) == 2 else np.zeros(0, dtype=np.int64)
        worst[rows] = np.minimum(worst[rows], chance[rows, own[rows]])
    rows = np.flatnonzero(np.isfinite(worst))
    return rows[
        np.argsort(worst[rows], kind="stable")
    ], "confident learning on OOF, label by label (Northcutt et al. 2021)"


def of_numbers(entry: Entry) -> tuple[np.ndarray, str]:
    """Rows whose error lies far outside the others'."""
    error = np.sqrt(mined_of(entry).losses)
    middle = float(np.median(error))
    spread = DEVIATION * float(np.median(np.abs(error - middle)))
    rows = np.flatnonzero(error > middle + FAR * spread) if spread > 0 else np.zeros(0, dtype=np.int64)
    return rows[
        np.argsort(-error[rows], kind="stable")
    ], f"an error more than {FAR:g} robust deviations above the median"


FINDERS: dict[str, Callable[[Entry], tuple[np.ndarray, str]]] = {  # by the form's name
    "classes": of_classes, "labels": of_labels, "numbers": of_numbers,
}  # fmt: skip


# --- pseudo-labels ------------------------------------------------------------------------------------------------


def pseudo(facts: Facts) -> Section | None:
    """How many test rows each round labelled, member by member, and as what."""
    body: list[Any] = []
    for run in facts.runs:
        for path in sorted(run.folder.glob("labels-r*.csv")):
            body += [tag("h3", f"{run.name} ", tag("span", path.stem, class_="faint")), _round(facts, path)]
            if run.rejected:
                body.append(note(f"Left out: {run.rejected}"))
    if not body:
        return None
    said = note(
        "Member k learns labels that member k of the teacher gave alone, so that no label of fold k reaches what "
        "predicts fold k. Shares far from those in training mean drift, or a threshold that favours easy classes: see "
        "pseudo.cap."
    )
    body.append(said)
    return Section("pseudo", "Pseudo-labels", body, ["test rows, no CV"])


def _round(facts: Facts, path: Any) -> Markup:
    try:
        frame = read_table(path, {"id": "", "for_fold": ""})
        members = sorted(frame["for_fold"].unique(), key=int)
        counts = COUNTED.get(facts.task.form.name, of_rows)(facts, frame)
    except (UserError, KeyError, ValueError) as fault:
        return note(f"{path.name} cannot be read: {fault}")
    own = frame["for_fold"].to_numpy()
    train = counts.pop("", None)
    total = sum(float(marked.sum()) for marked in counts.values()) or 1.0
    rows = []
    for name, marked in counts.items():
        each = [float(marked[own == member].sum()) for member in members]
        share = float(marked.sum()) / total
        trained = [] if train is None else [Cell(f"{train[name]:.1%}", float(train[name]))]
        rows.append([name, *[Cell(f"{value:,.0f}", value) for value in each], Cell(f"{share:.1%}", share), *trained])
    head = [
        "class",
        *[f"member {member}" for member in members],
        "share",
        *([] if train is None else ["share in training"]),
    ]
    sums = ", ".join(f"{int((own == member).sum()):,}" for member in members)
    return joined(tag("p", f"Rows a member: {sums}, of {len(facts.competition.test):,} test rows."), table(head, rows))


def of_known(facts: Facts, frame: pd.DataFrame) -> dict[str, Any]:
    """Class or label → (n,) how much each row is it; "" → the shares in training."""
    task = facts.task
    given = task.form.dense(task.read_labels(frame), len(task.columns))
    truth = task.targets(facts.competition.targets)
    train = truth.sum(axis=0) if truth.ndim == 2 else np.bincount(truth, minlength=len(task.columns))
    shares = train / max(1.0, float(train.sum()))
    return {
        **{name: given[:, place] for place, name in enumerate(task.columns)},
        "": dict(zip(task.columns, shares, strict=True)),
    }


def of_rows(facts: Facts, frame: pd.DataFrame) -> dict[str, Any]:
    """Rows alone, where what they are labelled as has no few names."""
    return {"all": np.ones(len(frame))}


COUNTED: dict[str, Callable[[Facts, pd.DataFrame], dict[str, Any]]] = {"classes": of_known, "labels": of_known}
