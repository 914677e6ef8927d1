"""Auxiliary classifiers: a second head on a middle stage of the backbone, in training alone.

Form: ``f(backbone, outputs, head, *, …) -> Auxiliary | None``. backbone: the network's. outputs: numbers that the head
gives. head: the call-string of the network's head; the auxiliary's last layer is another of its kind, so that every
loss fits both. Nothing of it is needed for prediction: it belongs to the learner, not to the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pipeline import registry
from pipeline.errors import UserError
from pipeline.registry import part


class Auxiliary(nn.Module):
    """A map or tokens of F features → outputs (B, C); ``share`` of its loss is added to the network's."""

    def __init__(self, stage: str, features: int, hidden: int, dropout: float, last: nn.Module, share: float) -> None:
        super().__init__()
        self.stage, self.features, self.share = stage, features, share
        self.reduce = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), last)

    def forward(self, stage: Tensor) -> Tensor:
        """(B, F, h, w), (B, h, w, F) or (B, N, F) → (B, C) float32."""
        return self.head(self.reduce(self._places(stage)).mean(dim=1)).float()

    def _places(self, stage: Tensor) -> Tensor:
        """(B, places, F): a linear layer on it is a 1×1 convolution."""
        if stage.ndim == 4 and stage.shape[1] == self.features:
            return stage.flatten(2).transpose(1, 2)
        if stage.ndim in (3, 4) and stage.shape[-1] == self.features:
            return stage.flatten(1, -2)
        raise UserError(
            f"auxiliary: {self.stage} of the backbone gives {tuple(stage.shape)}, no map of {self.features} features; "
            "set another at=, or auxiliary=none()"
        )

    @contextlib.contextmanager
    def watching(self, backbone: nn.Module) -> Iterator[list[Tensor]]:
        """Within it, what the stage gives is added to the list: a copy, since later layers may write into it."""
        seen: list[Tensor] = []
        stage = _model(backbone).get_submodule(self.stage)
        handle = stage.register_forward_hook(lambda *given: seen.append(given[2].clone()))
        try:
            yield seen
        finally:
            handle.remove()


@part(source="the baseline")
def none(backbone: nn.Module, outputs: int, head: str) -> None:
    """No auxiliary classifier."""


@part(
    source="Szegedy et al. 2015 (GoogLeNet), sec. 5; share: Zhao et al. 2017 (PSPNet), sec. 3.3",
    takes=("classes", "labels", "numbers"),
    allowed={"share": (0, None), "at": (0, 1), "hidden": (1, 65536), "dropout": (0, 0.99)},
)
def middle(
    backbone: nn.Module,
    outputs: int,
    head: str,
    *,
    share: float = 0.4,
    at: float = 0.75,
    hidden: int = 256,
    dropout: float = 0.1,
) -> Auxiliary:
    """A classifier on a middle stage of the backbone, whose loss is added: gradients reach the lower half directly.

    A 1×1 convolution, ReLU, the mean over places, dropout and a second head. share: weight of its loss. at: which of
    the backbone's stages, 0 the first, 1 the last; 0.75 is layer3 of a ResNet. hidden: width of the convolution.
    dropout: before the head, below 1.
    """
    stages: Any = getattr(_model(backbone), "feature_info", None)
    if not stages:
        raise UserError("auxiliary=middle(): this backbone names no stages; choose another, or auxiliary=none()")
    known = list(stages) if isinstance(stages, list) else stages.get_dicts()
    stage = known[round(at * (len(known) - 1))]
    last = registry.build("heads", head)(hidden, outputs)
    return Auxiliary(stage["module"], stage["num_chs"], hidden, dropout, last, share)


def _model(backbone: nn.Module) -> nn.Module:
    """What names the stages: timm's model, or an own backbone itself."""
    model = getattr(backbone, "model", backbone)
    assert isinstance(model, nn.Module)
    return model
