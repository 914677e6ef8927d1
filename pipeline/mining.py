"""What OOF confuses most: the rows it gets most wrong, what they are taken for, and how much each should weigh.

One function a form of truth and values (``pipeline/forms.py``), which gives a ``Mined``; ``weights`` makes of its
losses what ``train.hard`` takes. NumPy and pandas alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.forms import CAMERA, IDENTITY, POOL
from pipeline.ranking import best, blocks

if TYPE_CHECKING:
    from pipeline.tasks import Task

NONE = -1  # no row
PAIR = ["label", "taken_for"]
OTHER, SAME = "other", "same"  # identities of a pair
TOLD = 5  # confusions that are put into words


@dataclass(frozen=True)
class Mined:
    """What OOF says of N rows.

    rows: of each what it is, under ``label``, what it was ``taken_for``, and what else its form tells. losses: (N,)
    float64, how wrong; NaN where nothing tells. wrong: (N,) bool, or None where there is only more and less. pairs:
    what is taken for what, or who for whom, the worst first; None of numbers. told: the worst in words, a line each.
    columns: of the sheet. beside: row → for each of these the row whose image stands there, ``NONE`` for none, and a
    line about it; the first is the row itself.
    """

    rows: pd.DataFrame
    losses: np.ndarray
    wrong: np.ndarray | None
    pairs: pd.DataFrame | None
    told: Sequence[str]
    columns: Sequence[str]
    beside: Callable[[int], list[tuple[int, str]]]

    @property
    def hardest(self) -> np.ndarray:
        """(N,) int64 the rows, the worst first; of equals the first, and last those of which nothing tells."""
        return np.argsort(-np.nan_to_num(self.losses, nan=-np.inf), kind="stable")


def weights(losses: np.ndarray, folds: np.ndarray, power: float, most: float) -> np.ndarray:
    """(N,) float64 with a mean of 1 in each fold: 1 + (loss / mean loss)^power, at most ``most``, scaled.

    losses: (N,) ≥ 0; a row of NaN weighs 1. Losses of different members do not compare, and no fold's labels shall
    move another's weights (law 1): so each fold by itself.
    """
    found = np.ones(len(losses))
    for fold in np.unique(folds):
        rows = np.flatnonzero((folds == fold) & ~np.isnan(losses))
        mean = losses[rows].mean() if len(rows) else 0.0
        if mean > 0:
            raised = np.minimum(1 + (losses[rows] / mean) ** power, most)
            found[rows] = raised / raised.mean()
    return found


# --- probabilities ------------------------------------------------------------------------------------------------


def of_chances(task: Task, truth: np.ndarray, values: np.ndarray, ids: np.ndarray, settings: Any) -> Mined:
    """Classes and labels: the log loss of each row, and its rival, the likeliest of what it is not.

    Where a row is wrong, the rival is its false positive; ``score`` is that of the least likely of what it is.
    """
    width = values.shape[1]
    there, said = (task.form.dense(one, width) > 0.5 for one in (truth, task.decide(values)))
    losses, names = task.form.distance(truth, values), np.array([*task.columns, ""])
    own = np.where(there.any(axis=1), np.where(there, values, np.inf).argmin(axis=1), width)
    rival = np.where(there.all(axis=1), width, np.where(there, -np.inf, values).argmax(axis=1))
    wrong = (there != said).any(axis=1)
    rows = pd.DataFrame(
        {
            "label": _listed(there, names), "taken_for": _listed(said, names), "score": _at(values, own),
            "rival": names[rival], "rival_score": _at(values, rival), "wrong": wrong.astype(np.int64),
        }
    )  # fmt: skip

    def beside(row: int) -> list[tuple[int, str]]:
        both = [f"{names[place]}: {values[row, place]:.2f}" for place in (own[row], rival[row]) if place < width]
        examples = [_surest(there, values, int(place), row, names) for place in (rival[row], own[row])]
        return [(row, ", ".join(both)), *examples]

    pairs = _confusions(there, said, values, losses, ids, names)
    return Mined(rows, losses, wrong, pairs, _told(pairs), ["image", "a sure rival", "a sure one of its own"], beside)


def _listed(marked: np.ndarray, names: np.ndarray) -> list[str]:
    """(N, C) bool → the names of each row's columns."""
    return [", ".join(names[np.flatnonzero(row)]) for row in marked]


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N,) float64, of each row of values (N, C) the one at its place; NaN at place C."""
    last = values.shape[1] - 1
    found = np.take_along_axis(values, places.clip(max=last)[:, None], axis=1)[:, 0]
    return np.where(places > last, np.nan, found.astype(np.float64))


def _surest(
    there: np.ndarray, values: np.ndarray, place: int, row: int, names: np.ndarray
) -> tuple[int, str]:  # fmt: skip
    """The surest row, but for this one, of a class or label that it really has; place C: of none."""
    if place == there.shape[1]:
        return NONE, ""
    others = np.flatnonzero(there[:, place])
    others = others[others != row]
    if not len(others):
        return NONE, f"{names[place]}: no other"
    best = int(others[values[others, place].argmax()])
    return best, f"{names[place]}: {values[best, place]:.2f}"


def _confusions(
    there: np.ndarray, said: np.ndarray, values: np.ndarray, losses: np.ndarray, ids: np.ndarray, names: np.ndarray
) -> pd.DataFrame:
    """A row each pair of what is missed and what is said in its place, either of which may be nothing (labels).

    count: rows so confused. share: of all that are what is missed; where that is nothing, of all that are not what is
    said. score: their mean probability of what is said, else of what is missed. id: of the hardest of them.
    """
    missed, extra = there & ~said, said & ~there
    nothing = [extra.any(axis=1) & ~missed.any(axis=1), missed.any(axis=1) & ~extra.any(axis=1)]
    sides = [
        pd.DataFrame(dict(zip(("row", name), np.nonzero(np.column_stack([marked, none])), strict=True)))
        for name, marked, none in zip(PAIR, (missed, extra), nothing, strict=True)
    ]
    found = sides[0].merge(sides[1], on="row")
    told = np.where(found["taken_for"] < there.shape[1], found["taken_for"], found["label"])
    found["score"], found["loss"] = values[found["row"], told].astype(np.float64), losses[found["row"]]
    found = found.sort_values("loss", ascending=False, kind="stable")
    pairs = found.groupby(PAIR, sort=False).agg(count=("row", "size"), score=("score", "mean"), row=("row", "first"))
    pairs = pairs.reset_index()
    have = np.append(there.sum(axis=0), 0)
    pairs["share"] = pairs["count"] / np.where(
        pairs["label"] < there.shape[1], have[pairs["label"]], len(there) - have[pairs["taken_for"]]
    )
    pairs["id"] = ids[pairs["row"]]
    pairs = pairs.sort_values(["count", "score", *PAIR], ascending=[False, False, True, True], kind="stable")
    for name in PAIR:
        pairs[name] = names[pairs[name]]
    return pairs[[*PAIR, "count", "share", "score", "id"]].reset_index(drop=True)


def _told(pairs: pd.DataFrame) -> list[str]:
    worst = pairs.head(TOLD)
    shares = [f"{count} ({share:.1%})" for count, share in zip(worst["count"], worst["share"], strict=True)]
    return [
        f"{label or 'nothing'} taken for {taken or 'nothing'}: {share}, such as {name}"
        for label, taken, share, name in zip(*(worst[key] for key in PAIR), shares, worst["id"], strict=True)
    ]


# --- numbers ------------------------------------------------------------------------------------------------------


def of_numbers(task: Task, truth: np.ndarray, values: np.ndarray, ids: np.ndarray, settings: Any) -> Mined:
    """Numbers: the squared error of each row in the unit that is learned, so that targets count alike."""
    state, answers = task.fit(truth), task.decide(values)
    learned, said = (task.encode(one, state).astype(np.float64) for one in (truth, answers))
    losses = ((learned - said) ** 2).mean(axis=1)
    rows = pd.DataFrame({"label": _written(truth), "taken_for": _written(answers)})
    good = losses <= np.median(losses)

    def nearest(point: np.ndarray, row: int) -> tuple[int, str]:
        others = np.flatnonzero(good & (np.arange(len(good)) != row))
        if not len(others):
            return NONE, ""
        best = int(others[((learned[others] - point) ** 2).sum(axis=1).argmin()])
        return best, rows["label"][best]

    def beside(row: int) -> list[tuple[int, str]]:
        return [(row, ""), nearest(said[row], row), nearest(learned[row], row)]

    worst = np.argsort(-losses, kind="stable")[:TOLD]
    told = [f"{ids[row]} is {rows['label'][row]}, seen as {rows['taken_for'][row]}" for row in worst]
    return Mined(rows, losses, None, None, told, ["image", "what it was taken for", "its like"], beside)


def _written(numbers: np.ndarray) -> list[str]:
    return [", ".join(f"{number:.6g}" for number in row) for row in numbers]


# --- embeddings ---------------------------------------------------------------------------------------------------


def of_embeddings(task: Task, truth: np.ndarray, values: np.ndarray, ids: np.ndarray, settings: Any) -> Mined:
    """Embeddings: how much nearer the nearest row of another identity is than the nearest of its own, in its pool.

    The loss is max(0, margin + cosine to another − cosine to its own), NaN where the pool holds none of its own but
    junk. ``rank`` is that of its nearest own in its list, junk left out; ``farthest`` the least alike of its own.
    """
    near = _nearest_of_each(truth, values, settings.neighbours)
    names = np.array(task.columns)[truth[:, IDENTITY]]
    other, alone = near.others[:, 0], near.own == NONE
    losses = np.where(alone, np.nan, np.maximum(0, settings.margin + near.cosines[:, 0] - near.own_cosine))
    losses[~alone & (other == NONE)] = 0  # nothing is there to be taken for it
    rows = pd.DataFrame(
        {
            "label": names, "taken_for": _named(names, other), "neighbour": _named(ids, other),
            "cosine": near.cosines[:, 0], "own": _named(ids, near.own), "own_cosine": near.own_cosine,
            "rank": pd.arrays.IntegerArray(near.rank, alone), "farthest": _named(ids, near.farthest),
            "farthest_cosine": near.farthest_cosine, "wrong": (near.rank > 1).astype(np.int64),
        }
    )  # fmt: skip

    def beside(row: int) -> list[tuple[int, str]]:
        found = [(other[row], near.cosines[row, 0]), (near.own[row], near.own_cosine[row])]
        found.append((near.farthest[row], near.farthest_cosine[row]))
        pictures = [(int(place), f"{names[place]}: {cosine:.2f}" if place != NONE else "") for place, cosine in found]
        return [(row, "" if alone[row] else f"first right at {near.rank[row]}"), *pictures]

    pairs = _neighbours(near, ids, names)
    apart = pairs[pairs["kind"] == OTHER].head(TOLD)
    told = [
        f"{one} ({label}) is as near to {two} ({taken}) as {cosine:.2f}"
        for one, label, two, taken, cosine in apart[["id", "label", "neighbour", "taken_for", "cosine"]].to_numpy()
    ]
    columns = ["image", "nearest of another", "nearest of its own", "farthest of its own"]
    return Mined(rows, losses, near.rank > 1, pairs, told, columns, beside)


@dataclass
class Near:
    """Who is near to each of N rows in its pool: places of rows, ``NONE`` for none, and their cosines.

    others, cosines: (N, k) of other identities, best first. own, farthest: (N,) the nearest and the farthest of its
    identity, junk left out. rank: (N,) int64 from 1 on, of the nearest own among all but junk; 0 without any.
    """

    others: np.ndarray
    cosines: np.ndarray
    own: np.ndarray
    own_cosine: np.ndarray
    farthest: np.ndarray
    farthest_cosine: np.ndarray
    rank: np.ndarray


def _nearest_of_each(truth: np.ndarray, values: np.ndarray, k: int) -> Near:
    count = len(truth)
    none, nan = np.full(count, NONE, dtype=np.int64), np.full(count, np.nan)
    near = Near(
        np.full((count, k), NONE, dtype=np.int64), np.full((count, k), np.nan), none, nan, none.copy(), nan.copy(),
        np.zeros(count, dtype=np.int64),
    )  # fmt: skip
    for pool in np.unique(truth[:, POOL]):
        rows = np.flatnonzero(truth[:, POOL] == pool)
        for start, stop in blocks(len(rows), len(rows)):
            _search(near, truth, values, rows, np.arange(start, stop))
    return near


def _search(near: Near, truth: np.ndarray, values: np.ndarray, rows: np.ndarray, asked: np.ndarray) -> None:
    """Fill in what the rows of a pool say to those of them that are asked."""
    wanted, cosines = rows[asked], values[rows[asked]] @ values[rows].T
    same = truth[wanted, IDENTITY][:, None] == truth[rows, IDENTITY]
    seen = truth[wanted, CAMERA][:, None]
    own = same & ~((seen == truth[rows, CAMERA]) & (seen >= 0))  # of the same camera it is junk
    own[np.arange(len(asked)), asked] = False
    apart = np.where(same, -np.inf, cosines)
    places = best(apart, min(near.others.shape[1], len(rows)))
    found = np.take_along_axis(apart, places, axis=1)
    there = np.isfinite(found)
    near.others[wanted, : places.shape[1]] = np.where(there, rows[places], NONE)
    near.cosines[wanted, : places.shape[1]] = np.where(there, found, np.nan)
    some = own.any(axis=1)
    first, last = np.where(own, cosines, -np.inf).argmax(axis=1), np.where(own, cosines, np.inf).argmin(axis=1)
    for place, one, cosine in ((first, near.own, near.own_cosine), (last, near.farthest, near.farthest_cosine)):
        one[wanted] = np.where(some, rows[place], NONE)
        cosine[wanted] = np.where(some, np.take_along_axis(cosines, place[:, None], axis=1)[:, 0], np.nan)
    reached = np.take_along_axis(cosines, first[:, None], axis=1)
    before = (apart > reached) | ((apart == reached) & (np.arange(len(rows)) < first[:, None]))
    near.rank[wanted] = np.where(some, 1 + before.sum(axis=1), 0)


def _neighbours(near: Near, ids: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Pairs of rows, each once: those of other identities, the nearest first; then of the same, the farthest first."""
    every = np.arange(len(ids))
    sides = {
        OTHER: (np.repeat(every, near.others.shape[1]), near.others.ravel(), near.cosines.ravel(), -1),
        SAME: (every, near.farthest, near.farthest_cosine, 1),
    }
    found = []
    for kind, (one, two, cosine, sign) in sides.items():
        pair = pd.DataFrame({"one": np.minimum(one, two), "two": np.maximum(one, two), "cosine": cosine, "kind": kind})
        pair = pair[pair["one"] != NONE].drop_duplicates(["one", "two"])
        found.append(pair.iloc[np.argsort(sign * pair["cosine"].to_numpy(), kind="stable")])
    pairs = pd.concat(found, ignore_index=True)
    one, two = pairs["one"].to_numpy(), pairs["two"].to_numpy()
    return pd.DataFrame(
        {
            "kind": pairs["kind"], "id": ids[one], "label": names[one], "neighbour": ids[two], "taken_for": names[two],
            "cosine": pairs["cosine"],
        }
    )  # fmt: skip


def _named(names: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The names at these places, empty where there is none."""
    return np.where(places == NONE, "", names[places])


MINERS: dict[str, Callable[[Any, np.ndarray, np.ndarray, np.ndarray, Any], Mined]] = {  # by the form's name
    "classes": of_chances, "labels": of_chances, "numbers": of_numbers, "embeddings": of_embeddings,
}  # fmt: skip


def mine(task: Task, truth: np.ndarray, values: np.ndarray, ids: np.ndarray, settings: Any) -> Mined:
    """What OOF confuses: truth and values of the task's form, of N rows; settings: ``config.mine``."""
    return MINERS[task.form.name](task, truth, values, ids, settings)
