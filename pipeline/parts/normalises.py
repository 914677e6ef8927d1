"""Normalisations: uint8 pixels → the floats that a backbone sees, as the first layer of the network.

Form: ``f(mean, std, kernel, *, …) -> Normalise``: a module (B, C, H, W) uint8, or float in 0…255 → the same shape,
float, in channels_last. What it needs to know is measured once, before training, and travels in the checkpoint. The
fact ``measures`` says what that is: ``backbone``, mean and std of the pretrained weights; ``moments``, mean and std of
all training images; ``colours`` or ``patches``, the mean and a whitening kernel of them, by the part's own ``epsilon``
and ``patch``; ``nothing``. No label is read. mean, std: per channel, of pixels in 0…1. kernel: (C, C, k, k).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.registry import part


class Normalise(nn.Module):
    """uint8 pixels → floats of mean 0 and deviation 1, in the number format of the network that follows."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("scale", (1 / (255 * torch.tensor(std))).view(shape), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float in 0…255 → the same shape, float, in channels_last."""
        return scaled(images, self.scale.flatten(1), self.shift.flatten(1))


def scaled(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """images · scale + shift, in their format; scale, shift: (1 or B, C).

    They are repeated along a row of pixels: over channels alone, that lie side by side, a CPU cannot use its vector
    units and takes ten times as long.
    """
    count, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(scale.dtype)
    scale, shift = (values.repeat(1, width)[:, None] for values in (scale, shift))
    return torch.addcmul(shift, rows, scale).view(count, height, width, channels).permute(0, 3, 1, 2)


@part(source="the backbone's own (timm's pretrained_cfg); else ImageNet's", measures="backbone")
def backbone(mean: list[float], std: list[float], kernel: list[Any]) -> nn.Module:
    """Mean and deviation of each channel as the pretrained weights expect them."""
    return Normalise(mean, std)


@part(source="LeCun et al. 1998 (Efficient backprop), sec. 4.3", measures="moments")
def dataset(mean: list[float], std: list[float], kernel: list[Any]) -> nn.Module:
    """Mean and deviation of each channel as measured on all training images."""
    return Normalise(mean, std)


@part(source="tf.image.per_image_standardization; Krizhevsky 2009, sec. 3.1", measures="nothing", allowed={
    "channels": ("together", "each")})  # fmt: skip
def per_image(mean: list[float], std: list[float], kernel: list[Any], *, channels: str = "together") -> nn.Module:
    """Each image by its own mean and deviation, whatever its light; as augmented, in training.

    channels: one mean and deviation for all channels together, or for each its own, which also takes away a tint.
    """
    return PerImage(len(mean), channels == "each")


@part(source="Krizhevsky 2009 (Learning multiple layers of features), appendix A; Pearson 1901", measures="colours",
      allowed={"epsilon": (1e-9, 1)})  # fmt: skip
def pca(mean: list[float], std: list[float], kernel: list[Any], *, epsilon: float = 0.001) -> nn.Module:
    """PCA whitening: each pixel's colour as its principal components over the training images, each of deviation 1.

    The first is mostly the brightness, so that pretrained weights, which expect red, green and blue, fit less.
    epsilon: added to each component's variance, as a share of their mean, since the last ones are mostly noise.
    """
    return Whiten(mean, kernel)


@part(source="Bell & Sejnowski 1997; of patches Coates et al. 2011, sec. 3.1.2", measures="patches", allowed={
    "patch": (1, 9), "epsilon": (1e-9, 1)})  # fmt: skip
def zca(mean: list[float], std: list[float], kernel: list[Any], *, patch: int = 1, epsilon: float = 0.01) -> nn.Module:
    """ZCA whitening: PCA whitening turned back, so that each channel stays what it was, as far as it is its own.

    patch: side of the patches of the training images whose principal components are whitened, an odd number; 1:
    colours. Each pixel becomes the whitened middle of the patch around it: edges remain, and even areas vanish.
    epsilon: added to each component's variance, as a share of their mean; more keeps more of what is smooth.
    """
    return Whiten(mean, kernel)


@part(source="tanh(x / C), the usual map of unbounded values to a bounded range", measures="nothing", allowed={
    "c": (1, 255)})  # fmt: skip
def tanh(mean: list[float], std: list[float], kernel: list[Any], *, c: float = 128.0) -> nn.Module:
    """tanh(x / C) of pixels x in 0…255, which makes room for the dark ones.

    Pixels have 8 bits here: for unbounded values and files of 16 bits, data.reader=tanh(c=…) does it to the raw values
    as they are read. c: where the curve bends.
    """
    return Squash([0.0] * len(mean), [c / 255] * len(mean))


class PerImage(Normalise):
    """(x − mean) / deviation, of the image or of each of its channels; the deviation is at least that of one level."""

    def __init__(self, channels: int, each: bool) -> None:
        super().__init__([0.0] * channels, [1.0] * channels)
        self.each = each

    def forward(self, images: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        mean = self._mean(images.float())
        centred = scaled(images, torch.ones_like(mean), -mean)
        least = height * width * (1 if self.each else channels)  # TensorFlow's: 1 / √pixels
        variance = self._mean(centred.square()).clamp_min(1 / least)
        return scaled(centred, variance.rsqrt(), torch.zeros_like(mean)).to(self.scale.dtype)

    def _mean(self, images: Tensor) -> Tensor:
        """(B, C): of each channel, or of all; rows are added first, whole, as in ``scaled``."""
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).sum(dim=1)
        mean = rows.view(count, width, channels).mean(dim=1) / height
        return mean if self.each else mean.mean(dim=1, keepdim=True).expand(count, channels)


class Squash(Normalise):
    """tanh of the scaled pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(super().forward(images))


class Whiten(Normalise):
    """The kernel over pixels without their mean, the edge repeated; always in fp32, since it takes like from like."""

    def __init__(self, mean: list[float], kernel: list[Any]) -> None:
        super().__init__(mean, [1.0] * len(mean))
        self.kernel = torch.tensor(kernel)  # no buffer, which would be rounded with the others for prediction
        self.mean = torch.tensor(mean)

    def forward(self, images: Tensor) -> Tensor:
        if self.kernel.device != images.device:
            self.kernel, self.mean = self.kernel.to(images.device), self.mean.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            ones = torch.full_like(self.mean, 1 / 255)
            pixels = scaled(images, ones[None], -self.mean[None])
            reach = self.kernel.shape[-1] // 2
            if reach:
                pixels = functional.pad(pixels, [reach] * 4, mode="replicate")
            made = functional.conv2d(pixels, self.kernel)
        return made.to(self.scale.dtype).contiguous(memory_format=torch.channels_last)
