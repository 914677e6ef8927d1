"""Averages of a model's weights over the optimizer steps.

Form: a class with ``__init__(model, *, …)``, ``update(model, step)`` after each optimizer step (counted from 0),
``apply_to(model)`` that copies the averaged weights into a model, and ``state_dict``/``load_state_dict`` for exact
resume, which hold tensors and plain Python only. ``active`` says whether the average differs from the model at all.
The model is the bare one, not a wrapper's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.registry import part


@part(source="the baseline")
class none:
    """No average: the model predicts with its last weights."""

    active = False

    def __init__(self, model: nn.Module) -> None:
        pass

    def update(self, model: nn.Module, step: int) -> None:
        """Nothing to do."""

    def apply_to(self, model: nn.Module) -> None:
        """Leaves the model as it is."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


@part(source="Polyak & Juditsky 1992; warm-up: TensorFlow's ExponentialMovingAverage", allowed={"decay": (0, 1)})
class ema:
    """Exponential moving average of the parameters; buffers, such as BatchNorm's statistics, are copied.

    decay: share of the average kept at each step. warmup: begin with min(decay, (1 + step) / (10 + step)), so that the
    random weights of the start are soon forgotten.
    """

    active = True

    def __init__(self, model: nn.Module, *, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        now = model.state_dict()
        torch._foreach_lerp_(*self._pairs(now, learned=True), 1 - decay)
        if len(now) > len(self.learned):
            torch._foreach_copy_(*self._pairs(now, learned=False))

    def _pairs(self, now: dict[str, Tensor], learned: bool) -> tuple[list[Tensor], list[Tensor]]:
        names = [name for name in self.weights if (name in self.learned) == learned]
        return [self.weights[name] for name in names], [now[name] for name in names]

    def apply_to(self, model: nn.Module) -> None:
        """Copy the averaged parameters and the buffers into the model."""
        model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights by name."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average; ValueError where it belongs to another model."""
        saved = state["weights"]
        if saved.keys() != self.weights.keys():
            raise ValueError(f"the saved average has other weights: {sorted(saved.keys() ^ self.weights.keys())[:5]}")
        for name, tensor in self.weights.items():
            tensor.copy_(saved[name])
