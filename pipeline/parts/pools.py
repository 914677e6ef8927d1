"""Pools: feature maps (B, C, H, W) → vectors (B, C′).

Form: ``f(channels, *, …) -> nn.Module`` whose attribute ``features`` is C′.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError
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


@part(source="Howard & Gugger 2020 (fastai's AdaptiveConcatPool2d)", allowed={"reduce": (0, 65536)})
def dual(channels: int, *, reduce: int = 0) -> nn.Module:
    """Mean and largest value of each map, side by side: twice as many features.

    reduce: features that a 1×1 convolution makes of them; 0: none does.
    """
    both = Pool(2 * channels, _mean_and_max)
    return Reduced(both, reduce) if reduce else both


class Reduced(nn.Module):
    """A pool and a 1×1 convolution, which on pooled maps is a linear layer."""

    def __init__(self, pool: Pool, features: int) -> None:
        super().__init__()
        self.features = features
        self.pool = pool
        self.reduce = nn.Linear(pool.features, features)

    def forward(self, maps: Tensor) -> Tensor:
        return self.reduce(self.pool(maps))


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


@part(
    source="Ilse et al. 2018 (Attention-based deep multiple instance learning), eq. 8", allowed={"hidden": (1, 65536)}
)
def attention(channels: int, *, hidden: int = 128) -> nn.Module:
    """The mean over the places of a map, each weighed by what a small network thinks of its features.

    hidden: width of that network.
    """
    return Attention(channels, hidden)


class Attention(nn.Module):
    """Σ a x with a = softmax over the places of w · tanh(V x); float32 under any autocast, as a sum of many places.

    w starts at zero, so that training begins with the plain mean.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # a bias would be the same for every place
        nn.init.zeros_(self.score.weight)

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            places = maps.float().flatten(2).transpose(1, 2)
            weights = self.score(torch.tanh(self.hidden(places))).softmax(dim=1)
            return (weights * places).sum(dim=1)


@part(source="Graham 2014 (Fractional max-pooling); torch.nn.FractionalMaxPool2d", allowed={"ratio": (0.01, 0.99)})
def fractional_max(channels: int, *, ratio: float = 0.7) -> nn.Module:
    """The mean over the largest values of regions, 2×2 and overlapping, whose places are drawn anew in each step.

    ratio: regions along a side for each place along it, within 0–1. Prediction puts them evenly.
    """
    return FractionalMax(channels, ratio)


class FractionalMax(nn.Module):
    """Fractional max-pooling to ratio × the size, then the mean; a side of one place is left as it is."""

    def __init__(self, features: int, ratio: float) -> None:
        super().__init__()
        self.features = features
        self.ratio = ratio

    def forward(self, maps: Tensor) -> Tensor:
        sides = maps.shape[2:]
        kernel = [min(2, side) for side in sides]
        most = [side - reach + 1 for side, reach in zip(sides, kernel, strict=True)]
        regions = [min(full, int(self.ratio * side) or 1) for side, full in zip(sides, most, strict=True)]
        shape = (*maps.shape[:2], 2)
        draws = torch.rand(shape, device=maps.device) if self.training else torch.full(shape, 0.5, device=maps.device)
        pooled = functional.fractional_max_pool2d(maps.float(), kernel, regions, _random_samples=draws)
        return _mean(pooled)

    def extra_repr(self) -> str:
        return f"features={self.features}, ratio={self.ratio}"


@part(
    source="Sun et al. 2018 (PCB), sec. 3.1; mean and maximum: Fu et al. 2019 (Horizontal pyramid matching)",
    allowed={"count": (1, 64), "reduce": (0, 65536), "how": ("avg", "max", "both")},
)
def stripes(channels: int, *, count: int = 4, reduce: int = 256, how: str = "avg") -> nn.Module:
    """One vector for each horizontal stripe of the map, side by side, for the head per_part.

    count: stripes of equal height; the paper's 6 are for people, who are taller than wide. reduce: features that a 1×1
    convolution of its own makes of each stripe; 0: none does. how: avg, max, or both added up.
    """
    return Stripes(channels, [[count]], reduce, how)


@part(
    source="Wang et al. 2018 (MGN), sec. 3.1",
    allowed={"counts": (1, 64), "reduce": (0, 65536), "how": ("avg", "max", "both")},
)
def granularities(
    channels: int, *, counts: tuple[int, ...] = (1, 2, 3), reduce: int = 256, how: str = "max", branched: bool = False
) -> nn.Module:
    """The whole map and its stripes, anew at several granularities, side by side, for the head per_part.

    counts: stripes of each granularity, which gives one vector of the whole and, if there are several stripes, one of
    each: 8 by default. reduce: features that a 1×1 convolution of its own makes of each vector; 0: none does. how: avg,
    max, or both added up. branched: the map's channels are those of as many branches, one a granularity, as in the
    paper, where each has a last stage of its own; else all look at the same map.
    """
    if branched and channels % len(counts):
        raise UserError(
            f"pool=granularities(branched=true): {channels} channels are no {len(counts)} branches, one for each of "
            f"counts={list(counts)}; branch the backbone alike, or leave branched out"
        )
    return Stripes(channels, [[1, count] if count > 1 else [1] for count in counts], reduce, how, branched)


class Stripes(nn.Module):
    """Vectors of parts of a map, side by side: (B, channels, H, W) → (B, parts · features of each).

    heights: of each branch the numbers of stripes into which the map is cut in turn.
    """

    def __init__(self, channels: int, heights: list[list[int]], reduce: int, how: str, branched: bool = False) -> None:
        super().__init__()
        self.heights, self.how, self.branched = heights, how, branched
        width = channels // len(heights) if branched else channels
        self.parts = sum(count for counts in heights for count in counts)
        self.features = self.parts * (reduce or width)
        self.reduce = nn.Parameter(torch.empty(self.parts, reduce, width)) if reduce else None
        if self.reduce is not None:
            nn.init.uniform_(self.reduce, -(width**-0.5), width**-0.5)  # as torch's own layers start

    def forward(self, maps: Tensor) -> Tensor:
        whole = maps.float()
        branches = whole.chunk(len(self.heights), dim=1) if self.branched else [whole] * len(self.heights)
        cut = [
            self._pooled(one, count)
            for one, counts in zip(branches, self.heights, strict=True)
            for count in counts
        ]  # fmt: skip
        vectors = torch.cat(cut, dim=2).transpose(1, 2)  # (B, parts, width)
        if self.reduce is not None:
            vectors = torch.einsum("bpc,prc->bpr", vectors, self.reduce)
        return vectors.flatten(1)

    def _pooled(self, maps: Tensor, count: int) -> Tensor:
        """(B, C, H, W) → (B, C, count); neighbours share rows where these do not part evenly."""
        pools = {"avg": [functional.adaptive_avg_pool2d], "max": [functional.adaptive_max_pool2d]}
        chosen = pools["avg"] + pools["max"] if self.how == "both" else pools[self.how]
        return torch.stack([pool(maps, (count, 1)) for pool in chosen]).sum(dim=0)[:, :, :, 0]

    def extra_repr(self) -> str:
        return f"features={self.features}, parts={self.parts}, how={self.how}"


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _max(maps: Tensor) -> Tensor:
    return maps.amax(dim=(2, 3))


def _mean_and_max(maps: Tensor) -> Tensor:
    return torch.cat([_mean(maps), _max(maps)], dim=1)
