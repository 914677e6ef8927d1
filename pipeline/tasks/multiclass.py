"""Multi-class: each image is of exactly one class, named by a text in the target column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.errors import UserError, nearest, some

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


def build(config: Config, competition: Competition) -> Multiclass:
    """The task with the classes of the training rows; UserError for rows without a class or fewer than two classes."""
    train = competition.train
    empty = train["id"][train["target"].str.strip() == ""]
    table = f"{config.data.folder}/{config.data.train_csv}"
    if len(empty):
        raise UserError(f"{table}: no {config.data.target} for ids {some(empty)}; fill in the class or remove the rows")
    classes = train["target"].unique()
    if len(classes) < 2:
        raise UserError(f"{table}: column {config.data.target} has one class, {classes[0]!r}; set data.target")
    return Multiclass(classes)


class Multiclass:
    """One of C classes an image; values are probabilities (N, C), columns in the sorted order of the class names."""

    space = "probability"
    simplex = True
    default_metric = "accuracy()"

    def __init__(self, classes: Iterable[str]) -> None:
        self.columns = sorted(str(name) for name in classes)
        self.outputs = len(self.columns)
        self._place = {name: place for place, name in enumerate(self.columns)}

    def strata(self, raw: np.ndarray) -> np.ndarray:
        """The classes themselves."""
        return np.asarray(raw, dtype=np.str_)

    def targets(self, raw: np.ndarray) -> np.ndarray:
        """Class names (N,) → class indices (N,) int64; raises UserError for names that are no class."""
        names = [str(name) for name in raw]
        unknown = list(dict.fromkeys(name for name in names if name not in self._place))
        if unknown:
            hint = nearest(unknown[0], self.columns)
            raise UserError(f"unknown classes {some(map(repr, unknown))}; the classes: {some(self.columns, 10)}{hint}")
        return np.array([self._place[name] for name in names], dtype=np.int64)

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Class indices (N,) → one-hot (N, C) float32; what is (N, C) stays."""
        if targets.ndim == 2:
            return np.asarray(targets, dtype=np.float32)
        return np.eye(self.outputs, dtype=np.float32)[targets]

    def activate(self, outputs: Any) -> Any:
        """Logits (B, C) tensor → probabilities (B, C) float32."""
        return outputs.float().softmax(dim=1)

    def confident(self, values: np.ndarray, threshold: float, cap: int = 0) -> tuple[np.ndarray, np.ndarray]:
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

    def pseudo_labels(self, values: np.ndarray, target: str, soft: bool) -> dict[str, Any]:
        """Values (n, C) → the columns of a labels file: the likely class, and with soft each class's probability."""
        columns: dict[str, Any] = {target: self.names(values)}
        if soft:
            columns |= {f"p:{name}": values[:, place] for place, name in enumerate(self.columns)}
        return columns

    def read_labels(self, frame: pd.DataFrame, target: str) -> np.ndarray:
        """Rows of a labels file (text cells) → (n, C) float32, one-hot or soft: the inverse of ``pseudo_labels``."""
        soft = [f"p:{name}" for name in self.columns]
        if set(soft) <= set(frame.columns):
            return frame[soft].to_numpy(dtype=np.float32)
        return self.soft(self.targets(frame[target].to_numpy()))

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) → the most likely class (N,) int64; of equals the first."""
        return values.argmax(axis=1).astype(np.int64)

    def names(self, values: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) → names (N,) of the most likely classes."""
        return np.array(self.columns, dtype=np.str_)[self.decide(values)]

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """Class names if the sample has one column beside the ids, probabilities if it has one for each class."""
        key, *answers = sample.columns
        row_of = {str(name): row for row, name in enumerate(ids)}
        missing = [name for name in sample[key] if name not in row_of]
        if missing:
            raise UserError(f"no prediction for {len(missing)} ids of the sample: {some(missing)}; predict again")
        rows = values[[row_of[name] for name in sample[key]]]
        if self.allowed(sample):
            return pd.DataFrame({key: sample[key], answers[0]: self.names(rows)})
        probabilities = pd.DataFrame(rows.astype(np.float64), columns=self.columns)[answers]
        probabilities.insert(0, key, sample[key])
        return probabilities

    def allowed(self, sample: pd.DataFrame) -> dict[str, list[str]]:
        """The class column with the class names; nothing where the sample has a column for each class."""
        answers = [str(name) for name in sample.columns[1:]]
        if len(answers) == 1:
            return {answers[0]: self.columns}
        if sorted(answers) == self.columns:
            return {}
        odd = sorted(set(answers) ^ set(self.columns))
        raise UserError(
            f"the sample submission has the columns {some(sample.columns)}; a multi-class submission has one column "
            f"beside the ids, or one for each class; at odds: {some(odd)}"
        )

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """Class names become one-hot, columns of probabilities stay: (N, C) float32."""
        if set(self.columns) <= set(frame.columns):
            return frame[self.columns].to_numpy(dtype=np.float32)
        answer = str(sample.columns[1])  # a solution may call it otherwise
        return self.soft(self.targets(frame[answer if answer in frame.columns else frame.columns[1]].to_numpy()))

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """The classes of a solution's rows, from its class column or from one column for each class."""
        return self.decide(self.values(solution, sample))
