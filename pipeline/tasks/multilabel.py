"""Multi-label: any number of labels an image, from one cell of names or from one 0/1 column a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import forms, label_lists
from pipeline.errors import UserError, nearest, some
from pipeline.registry import part
from pipeline.tasks import answers
from pipeline.tasks.answers import Cells, Names, Numbers

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


@part(
    source="one sigmoid a label (binary relevance, Tsoumakas & Katakis 2007)",
    form="labels",
    learns="labels",
    loss="bce()",
    metric="f1_samples()",
    split="multilabel_stratified_kfold()",
    group_split="multilabel_stratified_group_kfold()",
)
def multilabel(config: Config, competition: Competition) -> Multilabel:
    """Any number of labels an image: data.target is one column of names, or several of 0 and 1."""
    targets, separator = competition.targets, config.data.separator
    if targets.shape[1] > 1:
        labels, empty = [str(name) for name in targets.columns], True
    else:
        cells = targets.iloc[:, 0].map(lambda cell: label_lists.split(cell, separator))
        labels, empty = sorted({name for cell in cells for name in cell}), bool((cells.str.len() == 0).any())
    if len(labels) < 2:
        raise UserError(
            f"task=multilabel, but {some(config.data.target)} holds one label, {some(labels)}; set data.separator (now "
            f"{separator!r}), data.target or task"
        )
    return Multilabel(
        labels, config.data.target, separator, empty, config.data.answers, answers.wants(config), answers.ranks(config)
    )


class Multilabel:
    """Any of C labels an image; values are probabilities (N, C), columns in the sorted order of the labels."""

    space = "probability"
    form = forms.LABELS
    learns = forms.LABELS
    agreement = False
    grades = None

    def __init__(
        self, labels: Sequence[str], target: Sequence[str], separator: str = " ", empty: bool = True,
        style: str = "auto", wants: str = "decision", ranks: int = 0,
    ) -> None:  # fmt: skip
        self.columns = sorted(str(name) for name in labels)
        self.outputs = len(self.columns)
        self.target, self.separator, self.empty = list(target), separator, empty
        self.style, self.wants, self.ranks = style, wants, ranks
        self._place = {name: place for place, name in enumerate(self.columns)}

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, C) int64, the labels as 0 and 1."""
        return self.targets(raw).astype(np.int64)

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, C) float32 of 0 and 1; UserError for unknown labels and cells that are neither."""
        if raw.shape[1] == 1:
            return self._marked(raw.iloc[:, 0])
        found = answers.numbers(raw[self.columns], f"the columns {some(self.columns)}")
        odd = np.unique(found[(found != 0) & (found != 1)])
        if len(odd):
            raise UserError(
                f"the columns {some(self.columns)} must hold 0 and 1, but also hold {some(odd)}; set task=multiclass "
                "(shares) or task=regression, or correct data.target"
            )
        return found.astype(np.float32)

    def taught(self, raw: pd.DataFrame) -> np.ndarray:
        """The labels."""
        return self.targets(raw)

    def _marked(self, cells: pd.Series) -> np.ndarray:
        listed = [label_lists.split(str(cell), self.separator) for cell in cells]
        unknown = list(dict.fromkeys(name for names in listed for name in names if name not in self._place))
        if unknown:
            hint = nearest(unknown[0], self.columns)
            raise UserError(f"unknown labels {some(map(repr, unknown))}; the labels: {some(self.columns, 10)}{hint}")
        marked = np.zeros((len(listed), len(self.columns)), dtype=np.float32)
        for row, names in enumerate(listed):
            marked[row, [self._place[name] for name in names]] = 1
        return marked

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Labels are values already."""
        return np.asarray(targets, dtype=np.float32)

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """Nothing."""
        return {}

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Labels are learned as they are."""
        return taught

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Logits (B, C) tensor → probabilities (B, C) float32, each its own."""
        return outputs.float().sigmoid()

    def confident(
        self, values: np.ndarray, threshold: float, cap: int = 0, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows all of whose labels are sure, in or out; at most cap a set of labels (0: no cap), surest first.

        The confidence of a row is that of its least sure label, max(p, 1 − p).
        """
        confidence = np.maximum(values, 1 - values).min(axis=1).astype(np.float32)
        surest_first = np.argsort(-confidence, kind="stable")
        kept = surest_first[confidence[surest_first] >= np.float32(threshold)]
        if cap:
            sets = pd.Series([row.tobytes() for row in values[kept] > 0.5])
            kept = kept[sets.groupby(sets).cumcount().to_numpy() < cap]
        rows = np.sort(kept).astype(np.int64)
        return rows, confidence[rows]

    def pseudo_labels(
        self, values: np.ndarray, threshold: float, cap: int = 0, soft: bool = False,
        agreement: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
        """One column a label, ``p:NAME``: its probability, or 0 and 1."""
        rows, _ = self.confident(values, threshold, cap, agreement)
        kept = values[rows] if soft else self.decide(values[rows]).astype(np.int64)
        return rows, {f"p:{name}": kept[:, place] for place, name in enumerate(self.columns)}

    def read_labels(self, frame: pd.DataFrame) -> np.ndarray:
        """The inverse of ``pseudo_labels``."""
        return frame[[f"p:{name}" for name in self.columns]].to_numpy(dtype=np.float32)

    def decide(self, values: np.ndarray) -> np.ndarray:
        """(N, C) float32 of 0 and 1: above one half; the likeliest alone where no training row is without a label."""
        decided = (values > 0.5).astype(np.float32)
        if not self.empty:
            bare = decided.sum(axis=1) == 0
            decided[bare, values[bare].argmax(axis=1)] = 1
        return decided

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """One cell of labels, or one column a label: probabilities, or 0 and 1 where the metric wants decisions."""
        key, *columns = (str(name) for name in sample.columns)
        rows = answers.rows_of(ids, values, sample)
        if len(columns) == 1:
            return pd.DataFrame({key: sample[key], columns[0]: self._written(rows, sample)})
        matched = self._matched(sample)
        wide = self.decide(rows).astype(np.int64) if self._are_decisions(sample) else rows.astype(np.float64)
        frame = pd.DataFrame(wide, columns=self.columns)[[matched[name] for name in columns]]
        frame.columns = pd.Index(columns)
        frame.insert(0, key, sample[key])
        return frame

    def _are_decisions(self, sample: pd.DataFrame) -> bool:
        cells = sample.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
        return self.style != "probabilities" and self.wants == "decision" and bool(cells.isin((0, 1)).all(axis=None))

    def _written(self, rows: np.ndarray, sample: pd.DataFrame) -> list[str]:
        names = np.array(self.columns, dtype=object)
        if self._ranked(sample):
            shown = int(sample.iloc[:, 1].astype(str).map(lambda c: len(label_lists.split(c, self.separator))).max())
            depth = min(max(shown if shown > 1 else 0, self.ranks) or 5, len(names))
            best = np.argsort(-rows, axis=1, kind="stable")[:, :depth]
            return [label_lists.join(names[row], self.separator) for row in best]
        return [label_lists.join(names[row > 0], self.separator) for row in self.decide(rows)]

    def _ranked(self, sample: pd.DataFrame) -> bool:
        return self.style == "ranked" or (self.style == "auto" and bool(self.ranks))

    def _matched(self, sample: pd.DataFrame) -> dict[str, str]:
        found = answers.match([str(name) for name in sample.columns[1:]], self.columns)
        if found is None:
            raise answers.mismatch(
                sample, self.columns, "a multi-label submission has one column beside the ids, or one for each label"
            )
        return found

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """Known labels in the one cell; 0…1 where there is a column for each label."""
        columns = [str(name) for name in sample.columns[1:]]
        if len(columns) == 1:
            return {
                columns[0]: Names(frozenset(self.columns), self.separator, self.empty, "holds unknown labels or none")
            }
        return {name: Numbers(0, 1) for name in self._matched(sample)}

    def answered(self, frame: pd.DataFrame) -> list[str]:
        """The first column."""
        return frame.iloc[:, 0].astype(str).tolist()

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """Labels in one cell become 1 (ranked ones 1, 1/2, …), columns stay: (N, C) float32."""
        matched = answers.match([str(name) for name in frame.columns[1:]], self.columns)
        if matched is not None:
            found = frame.iloc[:, 1:].rename(columns=matched)[self.columns]
            return answers.numbers(found, "probabilities").astype(np.float32)
        answer = str(sample.columns[1])
        cells = frame[answer if answer in frame.columns else frame.columns[1]].fillna("").astype(str)
        marked = self._marked(cells)
        if self._ranked(sample):
            for row, cell in enumerate(cells):
                for rank, name in reversed(list(enumerate(label_lists.split(cell, self.separator)))):
                    marked[row, self._place[name]] = 1 / (1 + rank)
        return marked

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(N, C) float32 of 0 and 1, from a cell of labels or from one column a label."""
        return (self.values(solution, sample) > 0).astype(np.float32)
