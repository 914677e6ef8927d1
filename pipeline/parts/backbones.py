"""Backbones that timm does not have; every timm name works as well.

Form: ``f(channels, *, …) -> nn.Module`` from (B, channels, H, W) float to a map (B, F, h, w), with ``num_features`` F.
To serve decoders too, it tells its stages, each half the size of the one before and the first as large as the image:
``widths`` are their channels, ``stages()`` their modules, ``keep(count)`` drops all but the first.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from pipeline.registry import part

MOMENTUM = 0.2  # of the running statistics: at torch's 0.1 they trail behind in trainings of a hundred steps


def _convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    layers: dict[str, nn.Module] = {"convolution": nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)}
    if pool:  # before the norm, which then has a quarter of the work
        layers["pool"] = nn.MaxPool2d(2)
    layers |= {"norm": nn.BatchNorm2d(outputs, momentum=MOMENTUM), "activation": nn.ReLU(inplace=True)}
    return nn.Sequential(OrderedDict(layers))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """x + f(x), the same shape."""
        return images + self.body(images)


@part(
    source="Page 2018, How to train your ResNet (a ResNet-9)",
    weights=False,
    allowed={"width": (1, None), "depth": (0, None), "last_stride": (1, 2)},
)
class small_image(nn.Module):
    """A ResNet-9-like net with a stride-1 stem for images of at most 64 px, from random weights.

    channels: of the input. width: of the first stage; each of the three later stages doubles it. depth: residual
    blocks after the second and the last stage. last_stride: 1 keeps the last stage as large as the one before, for
    finer maps to pool (Luo et al. 2019, sec. 3.4), but not for decoders. Output (B, 8·width, H/8, W/8), or H/4, W/4.
    """

    def __init__(self, channels: int, *, width: int = 64, depth: int = 1, last_stride: int = 2) -> None:
        super().__init__()
        self.num_features, self.last_stride = width * 8, last_stride
        self.widths = [width * 2**stage for stage in range(4)]
        self.starts = [0, 1, 2 + depth, 3 + depth]
        ends = [*(start - 1 for start in self.starts[1:]), 3 + 2 * depth]  # as timm says where its stages end
        stages = zip(ends, self.widths, strict=True)
        self.feature_info = [{"module": f"layers.{end}", "num_chs": features} for end, features in stages]
        self.layers = nn.Sequential(
            _convolution(channels, width),
            _convolution(width, width * 2, pool=True),
            *(_Residual(width * 2) for _ in range(depth)),
            _convolution(width * 2, width * 4, pool=True),
            _convolution(width * 4, width * 8, pool=last_stride == 2),
            *(_Residual(width * 8) for _ in range(depth)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, 8·width, H/8, W/8), or H/4, W/4."""
        return self.layers(images)

    def stages(self) -> list[nn.Sequential]:
        """The layers by the size of what they give: as large as the image, a half, a quarter, an eighth."""
        return [self.layers[start:end] for start, end in zip(self.starts, [*self.starts[1:], None], strict=True)]

    def keep(self, count: int) -> None:
        """Drop all but the first stages."""
        self.layers = self.layers[: [*self.starts, None][count]]
        self.widths, self.starts = self.widths[:count], self.starts[:count]
