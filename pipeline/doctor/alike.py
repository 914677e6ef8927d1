"""What duplicates mean for a competition: within train, across train and test, with other labels; and fold groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.doctor.duplicates import Pairs, families
from pipeline.doctor.findings import EXAMPLES, Example, Finding, counted
from pipeline.doctor.survey import Survey

LARGEST_SHARE, LARGEST = 0.01, 20  # a family above both, of the training rows, is refused as a group
SAME_NUMBER = 0.05  # numbers of duplicates differ if they do by more than this share of their standard deviation

PLACES = {  # severity of copies, and what to do about them
    "within train": (
        "warning", "copies in two folds flatter CV; keep them together: set folds: {groups: near_duplicates} in the "
        "competition's YAML, then stage=split overwrite=true, before any training",
    ),
    "across train and test": (
        "warning", "the leaderboard rewards remembering these; CV does not show it. Look whether the rules let you use "
        "known labels, and do not read a high public score as skill",
    ),
    "within test": (
        "note", "their predictions should agree; a large difference between copies is noise (more views, more folds)",
    ),
}  # fmt: skip
OPEN_SET = {  # the same where copies are what is asked for
    **PLACES,
    "within train": (
        "note", "copies of one identity lie in its fold and are easy finds: right where the test has such, else leave "
        "one of them in the table",
    ),
    "within test": ("note", "easy finds, if the copy of a query is in what it searches"),
}  # fmt: skip
WRONG = (
    "one of each pair is wrong, or both: correct or remove the rows in the table; label smoothing "
    "(loss=cross_entropy(smoothing=0.1)) bears what is left. If only mirrored copies differ, symmetry must be none"
)
TWO_NAMES = (
    "one thing under two names, or two that look alike: a right find counts as wrong, copies are pushed apart. Give "
    "them one name in the table, or keep them in one fold: folds: {groups: near_duplicates}"
)

Caption = Callable[[int], str]  # row → its part, id and label


def all_pairs(first: np.ndarray, near: Pairs) -> Pairs:
    """Exact duplicates, each paired with the first of its kind, then the near ones."""
    b = np.flatnonzero(first != np.arange(len(first)))
    none = np.zeros(len(b))
    return Pairs(
        np.concatenate([first[b], near.a]), np.concatenate([b, near.b]),
        np.concatenate([none, near.distance]), np.concatenate([none.astype(bool), near.turned]),
    )  # fmt: skip


def report(
    survey: Survey, first: np.ndarray, near: Pairs, strata: np.ndarray | None, caption: Caption, open_set: bool = False
) -> tuple[list[Finding], np.ndarray]:
    """The findings, and the family of each training row, (n,) int64, refused families dissolved.

    open_set: strata are identities, which lie in one fold whole, and the test asks for such copies.
    """
    pairs = all_pairs(first, near)
    family = families(len(survey), pairs.a, pairs.b)
    findings = []
    for kind, some in (("exact duplicates", _all_exact(first, survey.train)), ("near-duplicates", near)):
        findings += _within_and_across(survey, kind, some, caption, OPEN_SET if open_set else PLACES)
    if strata is not None:
        findings += _contradictions(survey, first, near, strata, caption, TWO_NAMES if open_set else WRONG)
    groups, refused = grouped(family[: survey.train])
    return findings + _refusal(survey, refused, caption), groups


def _all_exact(first: np.ndarray, train: int) -> Pairs:
    """Each exact duplicate beside the first of its kind; a test row that has one, beside a training row."""
    b = np.flatnonzero(first != np.arange(len(first)))
    return Pairs(first[b], b, np.zeros(len(b)), np.zeros(len(b), dtype=bool))


def _within_and_across(
    survey: Survey, kind: str, pairs: Pairs, caption: Caption, said: dict[str, tuple[str, str]]
) -> list[Finding]:
    train = survey.train
    masks = (pairs.b < train, (pairs.a < train) & (pairs.b >= train), pairs.a >= train)
    found = []
    for (place, (severity, advice)), mask in zip(said.items(), masks, strict=True):
        if not mask.any():
            continue
        some = pairs.where(mask)
        rows = len(np.unique(some.b if place == "across train and test" else np.concatenate([some.a, some.b])))
        turned = f", {some.turned.sum():,} of them mirrored or turned" if some.turned.any() else ""
        title = f"{kind} {place}: {counted(len(some), 'pair')} of {counted(rows, 'image')}{turned}"
        if place == "across train and test":
            pairs_turned = (
                f" ({counted(int(some.turned.sum()), 'pair')} mirrored or turned)" if some.turned.any() else ""
            )
            title = (
                f"{kind} {place}: {counted(rows, 'test image has', 'test images have')} a copy in train{pairs_turned}"
            )
        found.append(Finding(f"{kind} {place}", severity, len(some), title, advice, examples(some, caption)))
    return found


def examples(pairs: Pairs, caption: Caption, nearest_first: bool = False) -> list[Example]:
    """A few pairs; the farthest apart first, since these are the ones to doubt."""
    order = np.argsort(pairs.distance if nearest_first else -pairs.distance, kind="stable")[:EXAMPLES]
    shown = []
    for place in order:
        a, b = int(pairs.a[place]), int(pairs.b[place])
        how = "same pixels" if pairs.distance[place] == 0 else f"distance {pairs.distance[place]:.2f}"
        how += ", mirrored or turned" if pairs.turned[place] else ""
        shown.append(Example([a, b], [caption(a), caption(b)], how))
    return shown


# --- labels -------------------------------------------------------------------------------------------------------


def _contradictions(
    survey: Survey, first: np.ndarray, near: Pairs, strata: np.ndarray, caption: Caption, advice: str
) -> list[Finding]:
    pairs = all_pairs(first, near)
    pairs = pairs.where(pairs.b < survey.train)
    pairs = pairs.where(differ(strata, pairs.a, pairs.b))
    if not len(pairs):
        return []
    same = int((pairs.distance == 0).sum())
    turned = f", {pairs.turned.sum():,} mirrored or turned" if pairs.turned.any() else ""
    return [Finding(
        "contradictory labels", "warning", len(pairs),
        f"{counted(len(pairs), 'pair')} of copies with different targets ({same:,} with the same pixels{turned})",
        advice,
        examples(pairs, caption, nearest_first=True),
    )]  # fmt: skip


def differ(strata: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) bool: whether the targets of rows a and b differ; strata as a task gives them."""
    if strata.ndim == 1:
        return np.asarray(strata[a] != strata[b])
    slack = SAME_NUMBER * strata.std(axis=0) if np.issubdtype(strata.dtype, np.floating) else 0
    return np.asarray((np.abs(strata[a] - strata[b]) > slack).any(axis=1))


# --- groups -------------------------------------------------------------------------------------------------------


def grouped(family: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """family (n,) of the training rows → the same with too large families dissolved, and these as lists of rows."""
    _, code, counts = np.unique(family, return_inverse=True, return_counts=True)
    refused = np.flatnonzero(counts > max(LARGEST, LARGEST_SHARE * len(family)))
    _, leader = np.unique(code, return_index=True)  # the first training row of a family
    groups = leader[code].astype(np.int64)
    loose = np.isin(code, refused)
    groups[loose] = np.flatnonzero(loose)
    return groups, [np.flatnonzero(code == place) for place in refused]


def _refusal(survey: Survey, refused: Sequence[np.ndarray], caption: Caption) -> list[Finding]:
    return [
        Finding(
            "group too large", "warning", len(rows),
            f"{counted(len(rows), 'image')} of train ({len(rows) / survey.train:.1%}) form one chain of "
            "near-duplicates; refused as a fold group, its rows stay ungrouped",
            "pictures of one template, or of a film: give their source as data.group, and look at the examples",
            [Example([int(row)], [caption(int(row))]) for row in rows[:EXAMPLES]],
        )
        for rows in refused
    ]  # fmt: skip


def groups_csv(ids: Sequence[str], groups: np.ndarray) -> str:
    """The text of near_duplicates.csv: id,group; a row without copies is its own group."""
    import pandas as pd

    table = pd.DataFrame({"id": list(ids), "group": [ids[row] for row in groups]})
    return table.to_csv(index=False, lineterminator="\n")
