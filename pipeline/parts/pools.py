"""Pools: feature maps (B, C, H, W) → vectors (B, C′).

Form: ``f(channels, *, …) -> nn.Module`` whose attribute ``features`` is C′.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.registry import part


class Pool(nn.Module):
    """A pool without parameters. function: (B, C, H, W) → (B, features)."""

    def __init__(self, features: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(maps)

    def extra_repr(self) -> str:
        return f"features={self.features}"


@part(source="Lin et al. 2013 (Network in network), sec. 3.2")
def avg(channels: int) -> nn.Module:
    """The mean of each map."""
    return Pool(channels, _mean)


@part(source="Oquab et al. 2015, sec. 3")
def max(channels: int) -> nn.Module:
    """The largest value of each map."""
    return Pool(channels, _max)


@part(source="Howard & Gugger 2020 (fastai's AdaptiveConcatPool2d)")
def dual(channels: int) -> nn.Module:
    """Mean and largest value of each map, side by side: twice as many features."""
    return Pool(2 * channels, _mean_and_max)


@part(source="Radenović et al. 2018, eq. 3", allowed={"p": (1, None)})
def gem(channels: int, *, p: float = 3.0) -> nn.Module:
    """Generalised mean with a learned power, between the mean (p = 1) and the largest value (p → ∞).

    p: starting power, one for all maps; values below 1e-6 count as 1e-6.
    """
    return GeneralisedMean(channels, p)


class GeneralisedMean(nn.Module):
    """(mean x^p)^(1/p) of each map; float32 under any autocast, since half precision overflows in x^p."""

    def __init__(self, features: int, p: float) -> None:
        super().__init__()
        self.features = features
        self.p = nn.Parameter(torch.tensor(float(p)))

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            power = self.p.float()
            return maps.float().clamp(min=1e-6).pow(power).mean(dim=(2, 3)).pow(1 / power)

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _max(maps: Tensor) -> Tensor:
    return maps.amax(dim=(2, 3))


def _mean_and_max(maps: Tensor) -> Tensor:
    return torch.cat([_mean(maps), _max(maps)], dim=1)
