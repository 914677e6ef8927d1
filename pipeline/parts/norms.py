"""Norms: what stands in the place of a built backbone's BatchNorm.

Form: ``f(backbone: nn.Module, *, …) -> nn.Module``, the same module, changed. It is done after weights are loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.registry import part

if TYPE_CHECKING:
    from torch import nn


@part(source="the baseline")
def own(backbone: nn.Module) -> nn.Module:
    """The backbone's own norms."""
    return backbone


@part(source="Wu & He 2018, eq. 1–2", allowed={"groups": (1, None)})
def group(backbone: nn.Module, *, groups: int = 32) -> nn.Module:
    """GroupNorm, with the scales and shifts of the BatchNorm: for batches of a few images.

    groups: of channels; the largest number up to it that divides a layer's channels is taken.
    """
    from pipeline.surgery import swap_norm

    return swap_norm(backbone, "group", groups)


@part(source="Ba et al. 2016; for convolutions Wu & He 2018, sec. 3")
def layer(backbone: nn.Module) -> nn.Module:
    """LayerNorm over all channels and pixels of an image, with the scales and shifts of the BatchNorm."""
    from pipeline.surgery import swap_norm

    return swap_norm(backbone, "layer")


@part(source="Ulyanov et al. 2016")
def instance(backbone: nn.Module) -> nn.Module:
    """InstanceNorm: each channel of each image for itself, with the scales and shifts of the BatchNorm."""
    from pipeline.surgery import swap_norm

    return swap_norm(backbone, "instance")


@part(source="Zhang et al. 2019 (Fixup), without its initialisation")
def none(backbone: nn.Module) -> nn.Module:
    """No norm: a learned scale and shift for each channel, which start as the BatchNorm is in eval mode."""
    from pipeline.surgery import swap_norm

    return swap_norm(backbone, "none")


@part(source="timm.layers.freeze_batch_norm_2d")
def frozen(backbone: nn.Module) -> nn.Module:
    """BatchNorm with the statistics, scales and shifts of the pretrained weights, which never change."""
    from pipeline.surgery import freeze_batchnorm

    return freeze_batchnorm(backbone)


@part(source="Hoffer et al. 2017, algorithm 1", allowed={"size": (2, None)})
def ghost(backbone: nn.Module, *, size: int = 32) -> nn.Module:
    """BatchNorm whose training statistics come from parts of the batch: what a large batch loses in noise.

    size: most images of a part.
    """
    from pipeline.surgery import ghost_batchnorm

    return ghost_batchnorm(backbone, size)


@part(source="Pan et al. 2018 (IBN-Net), fig. 3", resnets=True, allowed={"kind": ("a", "b")})
def ibn(backbone: nn.Module, *, kind: str = "a") -> nn.Module:
    """Instance norms within a timm ResNet, where the look of images changes between training and test.

    kind: a: half of the channels of each block's first norm, stages 1–3. b: on the sums that end stages 1 and 2, and
    in the stem.
    """
    from pipeline import surgery

    return surgery.ibn(backbone, kind)
