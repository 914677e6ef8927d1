"""Heads: vectors (B, F) → outputs (B, C).

Form: ``f(features, outputs, *, …) -> nn.Module``.
"""

from __future__ import annotations

from torch import nn

from pipeline.registry import part


@part(source="torch.nn.Linear; dropout: Srivastava et al. 2014", allowed={"dropout": (0, 0.99)})
def linear(features: int, outputs: int, *, dropout: float = 0.0) -> nn.Module:
    """One linear layer behind dropout.

    dropout: share of the features set to zero in training, below 1; the weights' names are the same with and without.
    """
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, outputs))
