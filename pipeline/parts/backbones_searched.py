"""The backbone that ``stage=search`` finds: a small network written as one text. The form is that of backbones.py."""

from __future__ import annotations

import torch
from torch import nn

from pipeline import blocks, genotypes
from pipeline.registry import part


@part(
    source="blocks of timm; stages as in He et al. 2016, the letters of MnasNet (Tan et al. 2019, sec. 4.1)",
    weights=False,
    genotype=True,
    allowed={"norm": ("batch", "group", "layer"), "pool": ("max", "avg", "conv")},
)
class searched(nn.Module):
    """A small network from random weights, stage by stage as its text says; each stage is half as large as before.

    channels: of the input. stages: such as 'r3w16x2,i5w32e4x2,d3w64x1': a letter (p plain, r residual, d dense, i
    inverted bottleneck, s depthwise-separable), its kernel (3, 5, 7), w and the width, e and the expansion (of i
    alone), g and the groups (of p and r), x and the number of blocks. norm: of all stages. pool: what halves the size
    between stages; conv: a 3×3 convolution of stride 2. Output (B, last width, H/2ⁿ⁻¹, W/2ⁿ⁻¹) of n stages.
    """

    def __init__(
        self, channels: int, *, stages: str = "r3w16x1,r3w32x1,r3w64x1", norm: str = "batch", pool: str = "max"
    ) -> None:
        super().__init__()
        genotype = genotypes.Genotype(genotypes.stages(stages), norm, pool)
        self.widths = [stage.width for stage in genotype.stages]
        self.num_features = self.widths[-1]
        self.layers = nn.Sequential(*map(blocks.whole, genotype.pieces(channels)))
        self.feature_info = [{"module": f"layers.{k}", "num_chs": width} for k, width in enumerate(self.widths)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, last width, H/2ⁿ⁻¹, W/2ⁿ⁻¹)."""
        return self.layers(images)

    def stages(self) -> list[nn.Module]:
        """The stages by the size of what they give: as large as the image, a half, a quarter, …"""
        return list(self.layers)

    def keep(self, count: int) -> None:
        """Drop all but the first stages."""
        self.layers, self.widths = self.layers[:count], self.widths[:count]
