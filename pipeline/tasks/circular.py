"""Circular regression: an angle, an hour, a direction, where the end of the period is its beginning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import registry
from pipeline.errors import UserError
from pipeline.registry import part
from pipeline.tasks.answers import Numbers
from pipeline.tasks.regression import Numeric

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


@part(
    source="cosine and sine of the angle as targets, Beyer et al. 2015 (Biternion nets), sec. 3",
    form="numbers",
    learns="numbers",
    loss="mse()",
    metric="circular_mae(period={period})",
    split="binned_kfold()",
    group_split="binned_group_kfold()",
)
def circular(config: Config, competition: Competition, *, period: float = 360.0) -> Circular:
    """A number that comes round after a period: learned as a point of the unit circle.

    period: length of the round, in the target's unit; the metric's, if it has one, must be the same.
    """
    if period <= 0:
        raise UserError(f"task=circular(period={period}), but period must be > 0")
    known, call = registry.bind("metrics", config.metric)
    own = {**known.arguments, **call.arguments}.get("period", period)
    if own != period:
        raise UserError(f"task=circular(period={period:g}), but metric={config.metric}; give both the same period")
    if len(config.data.target) != 1:
        raise UserError(f"task=circular takes one target, but data.target={','.join(config.data.target)}")
    return Circular(config.data.target, period)


class Circular(Numeric):
    """An angle an image; values (N, 2) are cosine and sine, decided (N, 1) in 0…period."""

    space = "vector"
    outputs = 2

    def __init__(self, target: Sequence[str], period: float) -> None:
        self.target, self.period = list(target), period
        self.columns = ["cos", "sin"]
        self.bounds = (0.0, period)

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, 1) float32 in 0…period."""
        return np.mod(self.strata(raw), self.period).astype(np.float32)

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Numbers (N, 1) → points of the unit circle (N, 2) float32; what is (N, 2) stays."""
        if targets.shape[1] == 2:
            return np.asarray(targets, dtype=np.float32)
        angle = targets[:, 0].astype(np.float64) * (2 * math.pi / self.period)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """The deviation of a point on the circle, for the agreement of views."""
        return {"spread": [math.sqrt(0.5)] * 2}

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Numbers or points → points (N, 2) float32."""
        return self.soft(taught)

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """The outputs (B, 2), float32: shorter than 1 where the network is unsure."""
        return outputs.float()

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Points (N, 2) → numbers (N, 1) float32 in 0…period, by their direction."""
        angle = np.arctan2(values[:, 1].astype(np.float64), values[:, 0]) * (self.period / (2 * math.pi))
        return np.mod(angle, self.period).astype(np.float32)[:, None]

    def read_labels(self, frame: pd.DataFrame) -> np.ndarray:
        """The inverse of ``pseudo_labels``, which writes the decided number: points (n, 2)."""
        return self.soft(frame[self.target].to_numpy(dtype=np.float32))

    def allowed(self, sample: pd.DataFrame) -> dict[str, Any]:
        """Finite numbers in 0…period."""
        return {name: Numbers(0.0, self.period) for name in self._matched(sample)}

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(N, 2) float32, the submission's numbers as points."""
        return self.soft(super().values(frame, sample))

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(N, 1) float32 in 0…period, of a solution's rows."""
        return np.mod(super().truth(solution, sample), self.period).astype(np.float32)
