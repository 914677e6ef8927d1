"""Ordinal: classes with an order, such as grades; values are probabilities, so that every model of them stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import forms
from pipeline.errors import UserError, some
from pipeline.registry import part
from pipeline.tasks.multiclass import Multiclass, classes_of, style

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


@part(
    source="cumulative logits: Frank & Hall 2001; Cheng et al. 2008",
    form="classes",
    learns="labels",
    loss="bce()",
    metric="quadratic_kappa()",
    split="stratified_kfold()",
    group_split="stratified_group_kfold()",
)
def ordinal(config: Config, competition: Competition, *, order: list[str] | None = None) -> Ordinal:
    """One of C ordered classes an image, by C − 1 logits, each for "higher than class k".

    order: the classes from the lowest to the highest, where they are no numbers.
    """
    classes, known = graded(config, competition, order)
    return Ordinal(classes, *known)


@part(
    source="one number for the grade, its cut points learned by level 2: Kaggle's diabetic retinopathy, 2015",
    form="classes",
    learns="numbers",
    loss="mse()",
    metric="quadratic_kappa()",
    split="stratified_kfold()",
    group_split="stratified_group_kfold()",
)
def ordinal_regression(
    config: Config, competition: Competition, *, order: list[str] | None = None
) -> OrdinalRegression:
    """One of C ordered classes an image, by one number; what lies between two grades is shared out between them.

    order: the classes from the lowest to the highest, where they are no numbers.
    """
    classes, known = graded(config, competition, order)
    return OrdinalRegression(classes, *known)


def graded(config: Config, competition: Competition, order: list[str] | None) -> tuple[list[str], tuple[Any, ...]]:
    """The classes in their order, and what a task of classes must know; UserError where the order is unknown."""
    classes = classes_of(config, competition)
    if order is None:
        try:
            return sorted(classes, key=float), style(config)
        except ValueError as fault:
            raise UserError(
                f"task={config.task}, but {some(config.data.target)} holds no numbers: {some(sorted(classes), 10)}; "
                f"give their order from the lowest to the highest, task=\"ordinal(order=['{classes[0]}', …])\""
            ) from fault
    order = [str(name) for name in order]
    odd = sorted(set(order) ^ set(classes))
    if odd or len(set(order)) < len(order):
        raise UserError(
            f"task={config.task}: order must name each class once; at odds: {some(odd)}; the classes: {classes}"
        )
    return order, style(config)


class Ordinal(Multiclass):
    """One of C grades; values are probabilities (N, C), columns from the lowest to the highest grade."""

    learns = forms.LABELS
    ordered = True

    def __init__(self, classes: list[str], *known: Any) -> None:
        super().__init__(classes, *known)
        self.outputs = len(self.columns) - 1

    @staticmethod
    def in_order(classes: list[str]) -> list[str]:
        """As given: from the lowest to the highest."""
        return list(classes)

    @property
    def grades(self) -> np.ndarray:
        """(C,) float64: the classes as numbers, or their ranks where they are none."""
        found = super().grades
        return np.arange(len(self.columns), dtype=np.float64) if found is None else found

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Classes or probabilities → (N, C − 1) float32: the chance of each higher step, P(y > k)."""
        dense = self.soft(taught)
        return (dense.sum(axis=1, keepdims=True) - dense.cumsum(axis=1))[:, :-1].clip(0, 1).astype(np.float32)

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Cumulative logits (B, C − 1) tensor → probabilities (B, C) float32; steps that rise again are levelled."""
        import torch

        higher = outputs.float().sigmoid().cummin(dim=1).values
        one = torch.ones_like(higher[:, :1])
        return torch.cat([one, higher], dim=1) - torch.cat([higher, 0 * one], dim=1)

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) → the grade (N,) int64 nearest to the expected one; halves go up."""
        expected = values.astype(np.float64) @ np.arange(values.shape[1])
        return np.floor(expected + 0.5).clip(0, values.shape[1] - 1).astype(np.int64)


class OrdinalRegression(Ordinal):
    """The same values from one number: a grade of 2.3 is 0.7 of the third class and 0.3 of the fourth."""

    learns = forms.NUMBERS

    def __init__(self, classes: list[str], *known: Any) -> None:
        super().__init__(classes, *known)
        self.outputs = 1

    def _ranks(self, taught: np.ndarray) -> np.ndarray:
        return self.soft(taught).astype(np.float64) @ np.arange(len(self.columns), dtype=np.float64)[:, None]

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """Mean and deviation of the ranks over the member's own rows."""
        ranks = self._ranks(taught)
        return {"centre": float(ranks.mean()), "spread": float(ranks.std()) or 1.0}

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Classes or probabilities → (N, 1) float32, the expected rank with mean 0 and deviation 1."""
        return ((self._ranks(taught) - state["centre"]) / state["spread"]).astype(np.float32)

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Standardised rank (B, 1) tensor → probabilities (B, C) float32 of its two neighbours."""
        import torch

        steps = torch.arange(len(self.columns), device=outputs.device)
        rank = (outputs.float() * state["spread"] + state["centre"]).clamp(0, len(self.columns) - 1)
        return (1 - (rank - steps).abs()).clamp(min=0)
