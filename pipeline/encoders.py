"""Encoders: backbones as maps of several sizes, for the decoders of segmentation.

``encoder("resnet18", 3, create=…)`` turns (B, channels, H, W) into a list of maps, the image itself first, then finer
to coarser. ``widths`` are their channels, ``reductions`` by how much each is smaller than the image: 1, 2, 4, 8, 16, 32
for most, 1, 4, 8, 16, 32 for Swin or ConvNeXt, 1, 1, 2, 4, 8 for ``small_image`` and ResNets with a small stem.
Sides of the image must be multiples of ``multiple``. Both are read when they are asked for, so that surgery on a stem
counts. ``prune(count)`` drops what is coarser than the image and the first count maps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline import backbone_names, registry
from pipeline.errors import UserError
from pipeline.torchvision_fix import fix_torchvision

Create = Callable[[str, bool, dict[str, Any]], nn.Module]  # a timm name, whether pretrained, arguments → its model
COARSEST = 32  # the usual stride of a whole backbone
OTHERS = "choose another, such as resnet18, convnext_tiny or swin_tiny_patch4_window7_224"
BLOCKS = 4  # of a transformer whose maps are all of one size, taken evenly over its depth


def encoder(
    backbone: str,
    channels: int,
    depth: int = 5,
    stride: int = COARSEST,
    tokens: bool = False,
    *,
    create: Create,
    pretrained: bool = False,
) -> nn.Module:
    """The encoder of a backbone's call-string: a part of parts/backbones.py or any timm name.

    depth: how often the image is halved at most. stride: 8 or 16 keeps the coarsest maps larger, by dilation. tokens:
    whether maps of one size will do, as plain transformers give them. create, pretrained: who makes timm's models, and
    whether with their weights. UserError for backbones that cannot give such maps.
    """
    name, arguments = backbone_names.split(backbone)
    if name in registry.parts("backbones"):
        if pretrained:
            raise UserError(f"pretrained=true, but {name} has no pretrained weights; add pretrained=false")
        return OwnEncoder(registry.build("backbones", backbone)(channels), name, channels)
    arguments = {**_any_size(name), **({"output_stride": stride} if stride != COARSEST else {}), **arguments}
    model = create(name, pretrained, {**arguments, "in_chans": channels, "num_classes": 0})
    reductions = [info["reduction"] for info in model.feature_info]
    if len(set(reductions)) == 1 and len(reductions) > 1:
        if not tokens:
            raise UserError(
                f"backbone={name} gives maps of one size, 1/{reductions[0]} of the image's, and no pyramid; use "
                "decoder=dpt(), or a backbone with stages, such as resnet18 or convnext_tiny"
            )
        return _taking_any_size(TokenEncoder(model, channels), name)
    return _taking_any_size(TimmEncoder(model, channels, depth), name)


def _any_size(name: str) -> dict[str, Any]:
    """What lets a timm model take images of any size, where it is not so by itself."""
    fix_torchvision()
    import timm

    if not timm.is_model(name):
        return {}
    with torch.device("meta"):  # no memory, no weights
        known = inspect.signature(type(timm.create_model(name)).__init__).parameters
    return {"dynamic_img_size": True} if "dynamic_img_size" in known else {}


def _taking_any_size(made: Any, name: str) -> nn.Module:
    """The encoder; UserError if its maps of a small, oblong image are not those that it tells of."""
    sides = 2 * made.multiple, 3 * made.multiple
    expected = [
        (width, sides[0] // less, sides[1] // less)
        for width, less in zip(made.widths[1:], made.reductions[1:], strict=True)
    ]
    training = made.training
    try:
        with torch.no_grad():
            maps = made.eval()(torch.zeros(1, made.channels, *sides))[-len(expected) :]
    except (RuntimeError, AssertionError) as fault:
        raise UserError(f"backbone={name} takes images of one size alone, but a decoder any; {OTHERS}") from fault
    if [tuple(one.shape[1:]) for one in maps] != expected:
        raise UserError(f"backbone={name} gives maps of other sizes than timm tells of it; {OTHERS}")
    return made.train(training)


class TimmEncoder(nn.Module):
    """A timm model's maps by ``forward_intermediates``; of maps of one size the last. Layers after them are dropped."""

    def __init__(self, model: nn.Module, channels: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.model = model
        usual = sum(info["reduction"] <= 2**depth for info in model.feature_info)
        self.last = 0
        self.prune(usual, of_all=True)

    @property
    def taken(self) -> list[int]:
        """The places in timm's feature_info of the maps that are given."""
        reductions = [info["reduction"] for info in self.model.feature_info][: self.last]
        return [k for k, own in enumerate(reductions) if own not in reductions[k + 1 :]]

    @property
    def widths(self) -> list[int]:
        """Channels of each map, the image's first."""
        return [self.channels, *(self.model.feature_info[k]["num_chs"] for k in self.taken)]

    @property
    def reductions(self) -> list[int]:
        """By how much each map is smaller than the image."""
        return [1, *(self.model.feature_info[k]["reduction"] for k in self.taken)]

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return max(self.reductions)

    def prune(self, count: int, of_all: bool = False) -> None:
        """Keep the image and count maps; of_all: count those of one size apart, too."""
        self.last = count if of_all else self.taken[count - 1] + 1
        self.model.prune_intermediate_layers(list(range(self.last)), prune_norm=True, prune_head=True)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, channels, H, W) → maps (B, widths[k], H / reductions[k], W / reductions[k])."""
        maps = self.model.forward_intermediates(
            images, indices=self.taken, output_fmt="NCHW", stop_early=True, intermediates_only=True
        )
        return [images, *maps]


class TokenEncoder(nn.Module):
    """A plain transformer: four maps of one size from blocks taken evenly over its depth, their class tokens before.

    Gives [tokens (B, P, F), …, map (B, F, h, w), …], as many of the one as of the other, or maps alone where there are
    no tokens.
    """

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.channels = channels
        count = len(model.feature_info)
        self.taken = [count * block // BLOCKS - 1 for block in range(1, BLOCKS + 1)]
        self.tokens = bool(getattr(model, "num_prefix_tokens", 0))
        self.widths = [channels, *(model.feature_info[k]["num_chs"] for k in self.taken)]
        self.reductions = [1, *(model.feature_info[k]["reduction"] for k in self.taken)]
        self.multiple = 2 * max(self.reductions)  # since dpt halves its last map
        model.prune_intermediate_layers(self.taken, prune_norm=True, prune_head=True)
        self.model = model

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, channels, H, W) → tokens, if there are any, then maps."""
        asked = {"return_prefix_tokens": True} if self.tokens else {}
        found = self.model.forward_intermediates(images, indices=self.taken, intermediates_only=True, **asked)
        return [tokens for _, tokens in found] + [kept for kept, _ in found] if self.tokens else found


class OwnEncoder(nn.Module):
    """A backbone of parts/backbones.py with ``widths`` and ``stages()``, each stage half the size of the one before."""

    def __init__(self, model: nn.Module, name: str, channels: int) -> None:
        super().__init__()
        if not hasattr(model, "stages"):
            raise UserError(f"backbone={name} tells no stages, which a decoder needs; give it the method stages()")
        if getattr(model, "last_stride", 2) != 2:
            raise UserError(f"backbone={name}(last_stride=1) is for pools, but a decoder halves its maps; leave it out")
        self.channels = channels
        self.model = model

    @property
    def widths(self) -> list[int]:
        """Channels of each map, the image's first."""
        return [self.channels, *self.model.widths]

    @property
    def reductions(self) -> list[int]:
        """By how much each map is smaller than the image."""
        return [1, *(2**k for k in range(len(self.model.widths)))]

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return max(self.reductions)

    def prune(self, count: int) -> None:
        """Keep the image and count maps."""
        self.model.keep(count)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, channels, H, W) → maps (B, widths[k], H / reductions[k], W / reductions[k])."""
        maps = [images]
        for stage in self.model.stages():
            maps.append(stage(maps[-1]))
        return maps
