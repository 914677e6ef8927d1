"""The stages of small networks, out of timm's blocks: what a genotype's letters stand for.

Plain: a convolution. Residual: two with a shortcut (He et al. 2016). Dense: two, each of which sees all before it, then
a 1×1 back to the width (Huang et al. 2017). Inverted bottleneck: Sandler et al. 2018. Separable: Howard et al. 2017.
A norm and a ReLU follow each convolution. Grouped ones (Xie et al. 2017) have as many groups as divide their widths.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipeline.genotypes import Piece, Stage
from pipeline.torchvision_fix import fix_torchvision

MOMENTUM = 0.2  # of the running statistics: at torch's 0.1 they trail behind in trainings of a hundred steps


def whole(piece: Piece) -> nn.Sequential:
    """A stage: what makes its input, then its blocks; (B, inputs, H, W) → (B, width, H, W), or at half the size."""
    stage = piece.stage
    first = piece.inputs if piece.place else stage.width  # the stem's
    blocks = [block(stage, stage.width if number else first) for number in range(stage.depth)]
    return settled(nn.Sequential(enter(piece), *blocks), piece.norm)


def enter(piece: Piece) -> nn.Module:
    """The stem of the first stage, or what halves the size before the others."""
    timm = _layers()
    if not piece.place:
        return timm.ConvNormAct(piece.inputs, piece.stage.width, 3)
    if piece.pool == "conv":
        return timm.ConvNormAct(piece.inputs, piece.inputs, 3, stride=2)
    return nn.MaxPool2d(2) if piece.pool == "max" else nn.AvgPool2d(2)


def settled(module: nn.Module, norm: str) -> nn.Module:
    """The module with that norm in the place of BatchNorm."""
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.momentum = MOMENTUM
    if norm == "batch" or not any(isinstance(one, nn.BatchNorm2d) for one in module.modules()):
        return module
    from pipeline.surgery import swap_norm

    return swap_norm(module, norm)


def block(stage: Stage, inputs: int) -> nn.Module:
    """One block, (B, inputs, H, W) → (B, width, H, W)."""
    fix_torchvision()
    from timm.layers import make_divisible
    from timm.models import _efficientnet_blocks as mobile
    from timm.models import byobnet

    width, kernel = stage.width, stage.kernel
    match stage.kind:
        case "p":
            return _layers().ConvNormAct(inputs, width, kernel, groups=math.gcd(stage.groups, inputs, width))
        case "r":
            middle = make_divisible(width)  # as timm does
            size = middle // math.gcd(stage.groups, middle, width) if stage.groups > 1 else None
            return byobnet.BasicBlock(inputs, width, kernel, group_size=size, downsample="conv1x1")
        case "d":
            return Dense(inputs, width, kernel)
        case "i":
            return mobile.InvertedResidual(inputs, width, kernel, exp_ratio=stage.expansion)
        case "s":
            return mobile.DepthwiseSeparableConv(inputs, width, kernel, pw_act=True)
    raise ValueError(stage.kind)


class Dense(nn.Module):
    """Two convolutions of half the width each, both on all that came before, and a 1×1 to the width."""

    def __init__(self, inputs: int, width: int, kernel: int) -> None:
        super().__init__()
        growth, made = max(1, width // 2), _layers().ConvNormAct
        self.first = made(inputs, growth, kernel)
        self.second = made(inputs + growth, growth, kernel)
        self.last = made(inputs + 2 * growth, width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) → (B, width, H, W)."""
        both = torch.cat([images, self.first(images)], dim=1)
        return self.last(torch.cat([both, self.second(both)], dim=1))


def _layers() -> Any:
    fix_torchvision()
    import timm.layers

    return timm.layers
