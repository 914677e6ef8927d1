"""Regression: one number an image, or several; learned with mean 0 and deviation 1, each member by its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import forms
from pipeline.errors import UserError, some
from pipeline.registry import part
from pipeline.tasks import answers
from pipeline.tasks.answers import Cells, Numbers

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


@part(
    source="least squares, Legendre 1805; standardised targets: LeCun et al. 1998, sec. 4.5",
    form="numbers",
    learns="numbers",
    loss="mse()",
    metric="rmse()",
    split="binned_kfold()",
    group_split="binned_group_kfold()",
)
def regression(
    config: Config, competition: Competition, *, low: float | None = None, high: float | None = None, log: bool = False
) -> Regression:
    """A number an image, or several: data.target is one column or more.

    low, high: bounds to which predictions are clipped. log: learn log(1 + y), for targets ≥ 0 with a long tail.
    """
    if low is not None and high is not None and low >= high:
        raise UserError(f"task=regression(low={low}, high={high}), but low must be below high")
    task = Regression(config.data.target, low, high, log)
    found = task.targets(competition.targets)
    if log and found.min() < 0:
        raise UserError(
            f"task=regression(log=true), but {some(config.data.target)} goes down to {found.min():g}; log=false"
        )
    for name, values in zip(config.data.target, found.T, strict=True):
        if np.ptp(values) == 0:
            raise UserError(f"{name} is {values[0]:g} in every training row; set data.target")
    return task


class Numeric:
    """What tasks of numbers share: one column of a submission for each target, and confidence from agreement."""

    form = forms.NUMBERS
    learns = forms.NUMBERS
    grades = None
    agreement = True
    target: list[str]
    bounds: tuple[float | None, float | None]

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, T) float64, the numbers."""
        return answers.numbers(raw, f"the target {some(self.target)}")

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, T) float32; UserError names the cells that are no finite number."""
        return self.strata(raw).astype(np.float32)

    def taught(self, raw: pd.DataFrame) -> np.ndarray:
        """The numbers."""
        return self.targets(raw)

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Numbers are values already."""
        return np.asarray(targets, dtype=np.float32)

    def decide(self, values: np.ndarray) -> np.ndarray:
        """The values."""
        return values

    def confident(
        self, values: np.ndarray, threshold: float, cap: int = 0, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose views agree at least as much as the threshold; of more than cap (0: no cap) the surest.

        agreement: (N,) in 0…1; without it every row counts as sure.
        """
        confidence = np.ones(len(values), dtype=np.float32) if agreement is None else agreement.astype(np.float32)
        surest_first = np.argsort(-confidence, kind="stable")
        kept = surest_first[confidence[surest_first] >= np.float32(threshold)]
        rows = np.sort(kept[:cap] if cap else kept).astype(np.int64)
        return rows, confidence[rows]

    def pseudo_labels(
        self, values: np.ndarray, threshold: float, cap: int = 0, soft: bool = False,
        agreement: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
        """The predicted numbers, each under its target's name; numbers are neither hard nor soft."""
        rows, _ = self.confident(values, threshold, cap, agreement)
        numbers = self.decide(values[rows])
        return rows, {name: numbers[:, place] for place, name in enumerate(self.target)}

    def read_labels(self, frame: pd.DataFrame) -> np.ndarray:
        """The inverse of ``pseudo_labels``."""
        return frame[self.target].to_numpy(dtype=np.float32)

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """One column of numbers a target, under the sample's names."""
        matched = self._matched(sample)
        rows = self.decide(answers.rows_of(ids, values, sample)).astype(np.float64)
        frame = pd.DataFrame({name: rows[:, place] for name, place in matched.items()})
        frame.insert(0, str(sample.columns[0]), sample.iloc[:, 0])
        return frame

    def _matched(self, sample: pd.DataFrame) -> dict[str, int]:
        """The sample's columns, each with the place of its target."""
        columns = [str(name) for name in sample.columns[1:]]
        if len(columns) == len(self.target) == 1:
            return {columns[0]: 0}
        found = answers.match(columns, self.target)
        if found is None:
            raise answers.mismatch(sample, self.target, "a submission of numbers has one column for each target")
        return {name: self.target.index(own) for name, own in found.items()}

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """Finite numbers within the bounds."""
        return {name: Numbers(*self.bounds) for name in self._matched(sample)}

    def answered(self, frame: pd.DataFrame) -> list[str]:
        """The first column."""
        return frame.iloc[:, 0].astype(str).tolist()

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(N, T) float32, the submission's numbers in the order of the targets."""
        columns = [str(name) for name in frame.columns[1:]]
        names = list(sample.columns[1:]) if set(sample.columns[1:]) <= set(columns) else columns[: len(self.target)]
        places = self._matched(frame[[frame.columns[0], *names]])
        ordered = sorted(places, key=places.__getitem__)
        return answers.numbers(frame[ordered], some(ordered)).astype(np.float32)

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(N, T) float32 of a solution's rows."""
        return Numeric.values(self, solution, sample)


class Regression(Numeric):
    """T numbers an image; values (N, T) in the targets' own unit, columns in their order in data.target."""

    space = "number"

    def __init__(
        self, target: Sequence[str], low: float | None = None, high: float | None = None, log: bool = False
    ) -> None:
        self.target = list(target)
        self.columns = list(target)
        self.outputs = len(self.target)
        self.bounds, self.log = (low, high), log

    def _scaled(self, numbers: np.ndarray) -> np.ndarray:
        return np.log1p(np.maximum(numbers, 0)) if self.log else numbers

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """Mean and deviation of each target (after the log) over the member's own rows."""
        scaled = self._scaled(taught.astype(np.float64))
        spread = scaled.std(axis=0)
        return {"centre": scaled.mean(axis=0).tolist(), "spread": np.where(spread > 1e-9, spread, 1.0).tolist()}

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """(N, T) numbers → float32 of mean 0 and deviation 1."""
        scaled = self._scaled(taught.astype(np.float64))
        return ((scaled - state["centre"]) / state["spread"]).astype(np.float32)

    def decide(self, values: np.ndarray) -> np.ndarray:
        """The values within the bounds: a level 2 may leave them."""
        low, high = self.bounds
        return np.clip(values, -np.inf if low is None else low, np.inf if high is None else high)

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Standardised outputs (B, T) tensor → numbers (B, T) float32 within the bounds."""
        import torch

        centre, spread = (torch.tensor(state[key], device=outputs.device) for key in ("centre", "spread"))
        numbers = outputs.float() * spread.float() + centre.float()
        numbers = torch.expm1(numbers.clamp(-20, 80)) if self.log else numbers
        return numbers.clamp(*self.bounds) if self.bounds != (None, None) else numbers
