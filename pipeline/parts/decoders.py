"""Decoders make planes of a backbone's maps: segmentation-models-pytorch's by name, and U-Net++ with deep supervision.

Form: ``f(encode, outputs, *, …) -> Segmenter`` (pipeline/segmenters.py), which turns (B, channels, H, W) into raw
planes (B, outputs, H, W). ``encode(depth=5, stride=32, tokens=False)`` gives the encoder, as
``pipeline.encoders.encoder`` does once it knows the backbone: the decoder alone knows which maps it wants of it.

widths of decoders are per step, coarse to fine, for backbones that begin at half the image's size; those that have a
map as large as the image need no last step, and those with fewer steps take the last of the list. All take aux: a head
of labels on the coarsest map, which learns whether a plane is anywhere in the image (train.presence weighs its loss);
for prediction the probability of a plane's pixels is multiplied by that of the plane, so that a cut's gate sees both.
The fact ``several`` says that a batch of one image cannot train it.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.registry import part
from pipeline.segmenters import NestedDecoder, Segmenter
from pipeline.torchvision_fix import fix_torchvision

Encode = Callable[..., Any]


@part(source="Ronneberger et al. 2015; smp", allowed={"widths": (1, None), "attention": ("", "scse")})
def unet(
    encode: Encode,
    outputs: int,
    *,
    widths: tuple[int, ...] = (256, 128, 64, 32, 16),
    attention: str = "",
    aux: bool = False,
) -> Segmenter:
    """Maps are enlarged step by step, each joined with the encoder's map of its size.

    widths: channels after each step. attention: scse weighs channels and places in each step (Roy et al. 2018). aux:
    with a head of labels.
    """
    encoder = encode()
    steps = _steps(encoder, widths)
    build = _smp("decoders.unet.decoder", "UnetDecoder")
    decoder = build(_channels(encoder), steps, n_blocks=len(steps), attention_type=attention or None)
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(steps[-1], outputs, 3, padding=1)], outputs, aux)


@part(source="Zhou et al. 2018, U-Net++; its nodes are smp's", allowed={"widths": (1, None), "attention": ("", "scse")})
def unet_plus_plus(
    encode: Encode,
    outputs: int,
    *,
    widths: tuple[int, ...] = (256, 128, 64, 32, 16),
    attention: str = "",
    deep: bool = False,
    aux: bool = False,
) -> Segmenter:
    """A U-Net whose joints are a dense grid of nodes, so that U-Nets of every depth lie in it.

    widths: channels after each step of the deepest of them. attention: scse weighs channels and places in each node.
    deep: planes of each depth learn (levels 1 to 4), and ``prune`` leaves the network of one of them. aux: with a head
    of labels.
    """
    encoder = encode()
    steps = _steps(encoder, widths)
    block = _smp("decoders.unetplusplus.decoder", "DecoderBlock")
    joints = len(encoder.widths) - 2

    def node(below: int, across: int, out: int) -> nn.Module:
        return block(below, across, out, attention_type=attention or None)

    def head(width: int) -> nn.Module:
        rest = [width, *steps[joints:]]
        return nn.Sequential(
            *(block(below, 0, out) for below, out in itertools.pairwise(rest)),
            nn.Conv2d(rest[-1], outputs, 3, padding=1),
        )

    decoder = NestedDecoder(encoder.widths[1:], steps[:joints], node)
    return _segmenter(
        encoder, decoder, [head(width) for width in decoder.outputs[None if deep else -1 :]], outputs, aux
    )


@part(source="Kirillov et al. 2019, Panoptic FPN; smp", allowed={"pyramid": (1, None), "dropout": (0, 0.99)})
def fpn(
    encode: Encode,
    outputs: int,
    *,
    pyramid: int = 256,
    width: int = 128,
    merge: str = "add",
    dropout: float = 0.2,
    aux: bool = False,
) -> Segmenter:
    """Maps of four sizes get one width, are enlarged to the largest of them and merged.

    pyramid: channels of each map. width: channels of what they become, a multiple of 32. merge: add or cat. dropout:
    share of the merged channels set to zero in training. aux: with a head of labels.
    """
    encoder = encode()
    decoder = _smp("decoders.fpn.decoder", "FPNDecoder")(
        _channels(encoder), len(_channels(encoder)) - 1, pyramid, width, dropout, merge
    )
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(decoder.out_channels, outputs, 1)], outputs, aux)


@part(source="Zhao et al. 2017; smp", allowed={"width": (1, None), "depth": (2, 5), "dropout": (0, 0.99)})
def pspnet(
    encode: Encode,
    outputs: int,
    *,
    width: int = 512,
    depth: int = 3,
    dropout: float = 0.2,
    aux: bool = False,
) -> Segmenter:
    """The coarsest map beside its means over 1, 4, 9 and 36 parts of the image; quick, with rough edges.

    width: channels after they are joined. depth: how often the image is halved. dropout: share of the channels set to
    zero in training. aux: with a head of labels.
    """
    encoder = encode(depth=depth)
    decoder = _smp("decoders.pspnet.decoder", "PSPDecoder")(encoder.widths, out_channels=width, dropout=dropout)
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(width, outputs, 3, padding=1)], outputs, aux)


@part(
    source="Chen et al. 2018, DeepLabV3+; smp",
    several=True,
    allowed={"width": (1, None), "rates": (1, None), "stride": (8, 16), "dropout": (0, 0.99)},
)
def deeplab_v3_plus(
    encode: Encode,
    outputs: int,
    *,
    width: int = 256,
    rates: tuple[int, int, int] = (12, 24, 36),
    stride: int = 16,
    dropout: float = 0.5,
    aux: bool = False,
) -> Segmenter:
    """The coarsest map seen through holes of several widths, joined with a fine one.

    Its backbone must be one that can dilate, as ResNets can. Batches of one image cannot train it, since it normalises
    means over whole images. width: channels of the decoder. rates: of the holes, in pixels of the coarsest map. stride:
    8 or 16, how much smaller that is than the image. dropout: before the maps are joined. aux: with a head of labels.
    """
    if stride not in (8, 16):
        raise UserError(f"deeplab_v3_plus(stride={stride}), but stride is 8 or 16")
    encoder = encode(stride=stride)
    channels = _channels(encoder)
    decoder = _smp("decoders.deeplabv3.decoder", "DeepLabV3PlusDecoder")(
        channels, len(channels) - 1, width, rates, stride, aspp_separable=True, aspp_dropout=dropout
    )
    reductions = _reductions(encoder)
    decoder.up = nn.Upsample(scale_factor=reductions[-1] // reductions[2], mode="bilinear", align_corners=False)
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(width, outputs, 1)], outputs, aux)


@part(source="Fan et al. 2020, MA-Net; smp", allowed={"widths": (1, None), "attention": (1, None)})
def manet(
    encode: Encode,
    outputs: int,
    *,
    widths: tuple[int, ...] = (256, 128, 64, 32, 16),
    attention: int = 64,
    aux: bool = False,
) -> Segmenter:
    """A U-Net with attention between the places of the coarsest map, and between channels in each step.

    Memory grows with the square of the coarsest map's places. widths: channels after each step. attention: channels of
    the attention between places. aux: with a head of labels.
    """
    encoder = encode()
    steps = _steps(encoder, widths)
    build = _smp("decoders.manet.decoder", "MAnetDecoder")
    decoder = build(_channels(encoder), steps, n_blocks=len(steps), pab_channels=attention)
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(steps[-1], outputs, 3, padding=1)], outputs, aux)


@part(source="Xie et al. 2021; smp", allowed={"width": (1, None)})
def segformer(encode: Encode, outputs: int, *, width: int = 256, aux: bool = False) -> Segmenter:
    """All maps get one width, one size, a quarter of the image's, and are joined by one linear layer.

    width: channels of each. aux: with a head of labels.
    """
    encoder = encode()
    channels = _channels(encoder)
    decoder = _smp("decoders.segformer.decoder", "SegformerDecoder")(channels, len(channels) - 1, width)
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(width, outputs, 1)], outputs, aux)


@part(source="Xiao et al. 2018; smp", several=True, allowed={"width": (1, None)})
def upernet(encode: Encode, outputs: int, *, width: int = 256, aux: bool = False) -> Segmenter:
    """A pyramid of the backbone's maps under PSPNet's means over parts of the image, all joined at the end.

    Batches of one image cannot train it, since it normalises means over whole images. width: channels of each map. aux:
    with a head of labels.
    """
    encoder = encode()
    channels = _channels(encoder)
    decoder = _smp("decoders.upernet.decoder", "UPerNetDecoder")(channels, len(channels) - 1, width)
    return _segmenter(encoder, _Decoder(decoder, encoder), [nn.Conv2d(width, outputs, 1)], outputs, aux)


@part(
    source="Ranftl et al. 2021; smp",
    allowed={"width": (1, None), "widths": (1, None), "readout": ("cat", "add", "ignore")},
)
def dpt(
    encode: Encode,
    outputs: int,
    *,
    width: int = 256,
    widths: tuple[int, int, int, int] = (256, 512, 1024, 1024),
    readout: str = "cat",
    aux: bool = False,
) -> Segmenter:
    """Maps of a plain transformer (ViT, DINOv2) or of a pyramid, brought to four sizes and fused from coarse to fine.

    width: channels of the fused maps. widths: of each map before, fine to coarse. readout: whether the class token is
    joined to each place, added to it, or not used. aux: with a head of labels.
    """
    encoder = encode(tokens=True)
    tokens, one_size = getattr(encoder, "tokens", False), len(set(encoder.reductions[-4:])) == 1
    reductions = [16] * 4 if one_size else [4, 8, 16, 32]  # as it must seem to smp, that takes no others
    decoder = _smp("decoders.dpt.decoder", "DPTDecoder")(
        encoder.widths[-4:], reductions, tokens, readout if tokens else "ignore", widths, width
    )
    head = _smp("decoders.dpt.decoder", "DPTSegmentationHead")(width, outputs).head
    return _segmenter(encoder, _TokenDecoder(decoder), [head], outputs, aux)


class _Decoder(nn.Module):
    """A decoder of smp, given the maps as smp counts them: one for each halving, an empty one where there is none.

    Where the finest map is as large as the image, smp must think that the image is twice as large.
    """

    def __init__(self, decoder: nn.Module, encoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self.count = len(encoder.reductions)
        self.finest = encoder.reductions[1]

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """The image and maps, finest first → one map."""
        image, maps = features[0], [features[k] for k in range(1, self.count)]
        rows, _, height, width = image.shape
        if self.finest == 1:
            image = image.new_empty(rows, 0, 2 * height, 2 * width)
        if self.finest == 4:
            maps = [image.new_empty(rows, 0, height // 2, width // 2), *maps]
        return self.decoder([image, *maps])


class _TokenDecoder(nn.Module):
    """DPT's decoder: the last four entries are maps, those before them tokens, or the image and finer maps."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Tokens and maps → one map."""
        maps, before = features[-4:], features[-8:-4]
        tokens = before if len(before) == 4 and before[0].ndim == 3 else [None] * 4
        return self.decoder(maps, tokens)


def _smp(module: str, name: str) -> Any:
    """A class of segmentation-models-pytorch, which imports torchvision and timm."""
    fix_torchvision()
    return getattr(importlib.import_module(f"segmentation_models_pytorch.{module}"), name)


def _channels(encoder: Any) -> list[int]:
    """Channels of the image and of maps as smp counts them, see ``_Decoder``."""
    image, *maps = encoder.widths
    return [image, 0, *maps] if encoder.reductions[1] == 4 else [image, *maps]


def _reductions(encoder: Any) -> list[int]:
    image, *maps = encoder.reductions
    return [image, 2, *maps] if maps[0] == 4 else [image, *maps]


def _steps(encoder: Any, widths: Sequence[int]) -> list[int]:
    """The widths of as many steps as lead from the encoder's coarsest map to the image's size."""
    count = round(math.log2(encoder.multiple))
    if count > len(widths):
        raise UserError(f"widths={list(widths)}, but this backbone needs {count} of them")
    return list(widths[-count:])


def _segmenter(encoder: Any, decoder: nn.Module, heads: list[nn.Module], outputs: int, aux: bool) -> Segmenter:
    """All together, with new weights as smp starts them; heads: of the last levels."""
    labels = _smp("base", "ClassificationHead")(encoder.widths[-1], outputs) if aux else None
    start = importlib.import_module("segmentation_models_pytorch.base.initialization")
    start.initialize_decoder(decoder)
    for head in [*heads, labels] if labels else heads:
        start.initialize_decoder(head)
        start.initialize_head([one for one in head.modules() if isinstance(one, (nn.Conv2d, nn.Linear))][-1])
    last = getattr(decoder, "depth", 1)
    levels = range(last - len(heads) + 1, last + 1)
    named = nn.ModuleDict({str(level): head for level, head in zip(levels, heads, strict=True)})
    return Segmenter(encoder, decoder, named, labels)
