"""Multi-class: each image is of exactly one class, named by a text in the target column, or by one column a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import forms
from pipeline.errors import UserError, nearest, some
from pipeline.registry import part
from pipeline.tasks import answers
from pipeline.tasks.answers import Cells, Names

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


@part(
    source="one softmax over the classes, Bridle 1990",
    form="classes",
    learns="classes",
    loss="cross_entropy()",
    metric="accuracy()",
    split="stratified_kfold()",
    group_split="stratified_group_kfold()",
)
def multiclass(config: Config, competition: Competition) -> Multiclass:
    """One of C classes an image, from a column of names or from one column a class (one-hot, or shares of votes)."""
    return Multiclass(classes_of(config, competition), *style(config))


def classes_of(config: Config, competition: Competition) -> list[str]:
    """The classes of the training rows; UserError for rows without a class or fewer than two classes."""
    targets, table = competition.targets, f"{config.data.folder}/{config.data.train_csv or config.data.train_images}"
    if targets.shape[1] > 1:
        return [str(name) for name in targets.columns]
    cells = targets.iloc[:, 0]
    empty = competition.train["id"][(cells.str.strip() == "").to_numpy()]
    if len(empty):
        raise UserError(f"{table}: no {targets.columns[0]} for ids {some(empty)}; fill in the class or remove the rows")
    classes = cells.unique()
    if len(classes) < 2:
        raise UserError(f"{table}: column {targets.columns[0]} has one class, {classes[0]!r}; set data.target")
    return [str(name) for name in classes]


def style(config: Config) -> tuple[list[str], str, str, int]:
    """What a task of classes must know of the config: target columns, answers, what the metric wants, and its k."""
    return config.data.target, config.data.answers, answers.wants(config), answers.ranks(config)


class Multiclass:
    """One of C classes an image; values are probabilities (N, C), columns in the sorted order of the class names."""

    space = "probability"
    form = forms.CLASSES
    learns = forms.CLASSES
    agreement = False

    def __init__(
        self, classes: Iterable[str], target: Sequence[str] = ("label",), style: str = "auto", wants: str = "decision",
        ranks: int = 0,
    ) -> None:  # fmt: skip
        self.columns = self.in_order([str(name) for name in classes])
        self.outputs = len(self.columns)
        self.target, self.style, self.wants, self.ranks = list(target), style, wants, ranks
        self._place = {name: place for place, name in enumerate(self.columns)}

    @staticmethod
    def in_order(classes: list[str]) -> list[str]:
        """The classes in the order of the columns."""
        return sorted(classes)

    @property
    def grades(self) -> np.ndarray | None:
        """(C,) float64, the classes as numbers where all are; else None."""
        found = pd.to_numeric(pd.Series(self.columns), errors="coerce").to_numpy(dtype=np.float64)
        return found if np.isfinite(found).all() else None

    # --- truth ---

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """The classes themselves, as text."""
        if raw.shape[1] > 1:
            return np.array(self.columns, dtype=np.str_)[self.targets(raw)]
        return raw.iloc[:, 0].to_numpy(dtype=np.str_)

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """Class indices (N,) int64; of several columns the largest. UserError for names that are no class."""
        if raw.shape[1] > 1:
            return self._shares(raw).argmax(axis=1).astype(np.int64)
        return self._indices(raw.iloc[:, 0])

    def taught(self, raw: pd.DataFrame) -> np.ndarray:
        """Class indices (N,) int64, or the shares (N, C) float32 where several columns hold more than a one."""
        if raw.shape[1] == 1:
            return self.targets(raw)
        shares = self._shares(raw)
        return self.targets(raw) if bool((shares.max(axis=1) == 1).all()) else shares

    def _indices(self, cells: Iterable[Any]) -> np.ndarray:
        names = [str(name).strip() for name in cells]
        unknown = list(dict.fromkeys(name for name in names if name not in self._place))
        if unknown:
            hint = nearest(unknown[0], self.columns)
            raise UserError(f"unknown classes {some(map(repr, unknown))}; the classes: {some(self.columns, 10)}{hint}")
        return np.array([self._place[name] for name in names], dtype=np.int64)

    def _shares(self, raw: pd.DataFrame) -> np.ndarray:
        found = answers.numbers(raw[self.columns], f"the columns {some(self.columns)}")
        if (found < 0).any() or (found.sum(axis=1) <= 0).any():
            raise UserError(
                f"the columns {some(self.columns)} must hold shares of the classes, but have negative cells or rows of "
                "zeros only; set task=multilabel or task=regression, or correct data.target"
            )
        return forms.normalised(found)

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Class indices (N,) → one-hot (N, C) float32; what is (N, C) stays."""
        return self.form.dense(targets, len(self.columns))

    # --- what is learned ---

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """Nothing."""
        return {}

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Classes are learned as they are."""
        return taught

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Logits (B, C) tensor → probabilities (B, C) float32."""
        return outputs.float().softmax(dim=1)

    # --- pseudo-labels ---

    def confident(
        self, values: np.ndarray, threshold: float, cap: int = 0, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose largest probability reaches the threshold, at most cap of a class (0: no cap), surest first.

        values (N, C) → rows (n,) int64 ascending, confidence (n,) float32. Of equally sure rows the earlier wins.
        """
        confidence = values.max(axis=1).astype(np.float32)
        decided = values.argmax(axis=1)
        surest_first = np.argsort(-confidence, kind="stable")
        kept = surest_first[confidence[surest_first] >= np.float32(threshold)]
        if cap:
            rank = pd.Series(decided[kept]).groupby(decided[kept]).cumcount().to_numpy()
            kept = kept[rank < cap]
        rows = np.sort(kept).astype(np.int64)
        return rows, confidence[rows]

    def pseudo_labels(
        self, values: np.ndarray, threshold: float, cap: int = 0, soft: bool = False,
        agreement: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
        """The likely class under the target's name, and with soft each class's probability."""
        rows, _ = self.confident(values, threshold, cap, agreement)
        sure = values[rows]
        columns: dict[str, Any] = {self.target[0] if len(self.target) == 1 else "label": self.names(sure)}
        if soft:
            columns |= {f"p:{name}": sure[:, place] for place, name in enumerate(self.columns)}
        return rows, columns

    def read_labels(self, frame: pd.DataFrame) -> np.ndarray:
        """Rows of a labels file (text cells) → (n, C) float32, one-hot or soft: the inverse of ``pseudo_labels``."""
        soft = [f"p:{name}" for name in self.columns]
        if set(soft) <= set(frame.columns):
            return frame[soft].to_numpy(dtype=np.float32)
        return self.soft(self._indices(frame[self.target[0] if len(self.target) == 1 else "label"]))

    # --- answers ---

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) → the most likely class (N,) int64; of equals the first."""
        return values.argmax(axis=1).astype(np.int64)

    def names(self, values: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) → names (N,) of the decided classes."""
        return np.array(self.columns, dtype=np.str_)[self.decide(values)]

    def cells(self, sample: pd.DataFrame) -> str:
        """What the one column of answers holds: "names", "indices", "ranked" or "probabilities" (of the last class)."""
        if self.style != "auto":
            return self.style
        shown = sample.iloc[:, 1].astype(str)
        tokens = shown.str.split()
        several = any(len(names) > 1 for names in tokens) and all(set(names) <= self._place.keys() for names in tokens)
        if self.ranks or (several and not shown.isin(self.columns).all()):
            return "ranked"
        return "indices" if answers.is_whole(shown) and self.grades is None else "names"

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """One column of names, indices or ranks, or one column of probabilities a class, as the sample has it."""
        key, *columns = (str(name) for name in sample.columns)
        rows = answers.rows_of(ids, values, sample)
        if len(columns) == 1:
            return pd.DataFrame({key: sample[key], columns[0]: self._written(rows, sample)})
        matched = self._matched(sample)
        wide = rows.astype(np.float64) if self._are_chances(sample) else self.soft(self.decide(rows)).astype(np.int64)
        frame = pd.DataFrame(wide, columns=self.columns)[[matched[name] for name in columns]]
        frame.columns = pd.Index(columns)
        frame.insert(0, key, sample[key])
        return frame

    def _written(self, rows: np.ndarray, sample: pd.DataFrame) -> np.ndarray:
        style = self.cells(sample)
        if style == "indices":
            return self.decide(rows)
        if style == "probabilities":
            return rows[:, -1].astype(np.float64)
        if style == "ranked":
            names = np.array(self.columns, dtype=object)
            best = np.argsort(-rows, axis=1, kind="stable")[:, : self._depth(sample)]
            return np.array([" ".join(names[row]) for row in best], dtype=object)
        return self.names(rows)

    def _depth(self, sample: pd.DataFrame) -> int:
        shown = max(len(cell.split()) for cell in sample.iloc[:, 1].astype(str))
        return min(max(shown if shown > 1 else 0, self.ranks) or 5, len(self.columns))

    def _are_chances(self, sample: pd.DataFrame) -> bool:
        """Several columns hold chances, unless the sample's are zeros and a one and the metric wants decisions."""
        cells = sample.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
        decisions = bool(cells.isin((0, 1)).all(axis=None)) and self.wants == "decision"
        return self.style == "probabilities" or not decisions

    def _matched(self, sample: pd.DataFrame) -> dict[str, str]:
        found = answers.match([str(name) for name in sample.columns[1:]], self.columns)
        if found is None:
            raise answers.mismatch(
                sample, self.columns, "a multi-class submission has one column beside the ids, or one for each class"
            )
        return found

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """Names, indices or ranked names of the one column; 0…1 where there is one a class."""
        columns = [str(name) for name in sample.columns[1:]]
        if len(columns) != 1:
            return {name: answers.Numbers(0, 1, share=True) for name in self._matched(sample)}
        rules: dict[str, Cells] = {
            "names": Names(frozenset(self.columns)),
            "indices": Names(frozenset(map(str, range(len(self.columns))))),
            "ranked": Names(frozenset(self.columns), " "),
            "probabilities": answers.Numbers(0, 1),
        }
        return {columns[0]: rules[self.cells(sample)]}

    def answered(self, frame: pd.DataFrame) -> list[str]:
        """The first column."""
        return frame.iloc[:, 0].astype(str).tolist()

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """Names become one-hot, ranks 1, 1/2, 1/3, …, columns of probabilities stay: (N, C) float32."""
        matched = answers.match([str(name) for name in frame.columns[1:]], self.columns)
        if matched is not None:
            found = frame.iloc[:, 1:].rename(columns=matched)[self.columns]
            return answers.numbers(found, "probabilities").astype(np.float32)
        answer = str(sample.columns[1])  # a solution may call it otherwise
        cells = frame[answer if answer in frame.columns else frame.columns[1]].astype(str)
        style = self.cells(sample)
        if style == "probabilities" and not cells.isin(self.columns).all():
            chance = answers.numbers(cells.to_frame(), answer).astype(np.float32)
            return np.hstack([1 - chance, chance])
        if style == "ranked" and not cells.isin(self.columns).all():
            return np.stack([self._ranked(cell.split()) for cell in cells])
        if style == "indices" and answers.is_whole(cells):
            return self.soft(cells.to_numpy(dtype=np.int64).clip(0, len(self.columns) - 1))
        return self.soft(self._indices(cells))

    def _ranked(self, names: list[str]) -> np.ndarray:
        row = np.zeros(len(self.columns), dtype=np.float32)
        for rank, place in enumerate(self._indices(names)):
            row[place] = max(row[place], 1 / (1 + rank))
        return row

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """The classes of a solution's rows, from its class column or from one column for each class."""
        return self.decide(self.values(solution, sample))
