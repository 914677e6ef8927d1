"""Mixes: one batch → a batch of mixed images with the labels mixed alike.

Form: ``f(images (B, C, H, W) float, targets (B, C) float, generator, *, …) -> (images, targets)``; the inputs are left
as they were. generator: ``np.random.Generator``, so that a batch's mix depends on the run's seed alone, on every
device. The fact ``soft=True`` says that targets may come back between 0 and 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.registry import part


@part(source="the baseline")
def none(images: Tensor, targets: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The batch as it is."""
    return images, targets


@part(source="Zhang et al. 2018, eq. 1", soft=True, allowed={"alpha": (1e-3, None)})
def mixup(
    images: Tensor, targets: Tensor, generator: np.random.Generator, *, alpha: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Each image and label averaged with another's of the batch, with one share for the batch.

    alpha: the share is drawn from Beta(alpha, alpha); small values mix little, 1 mixes evenly over all shares.
    """
    share = float(generator.beta(alpha, alpha))
    other = _partners(images, generator)
    return torch.lerp(images, images[other], 1 - share), torch.lerp(targets, targets[other], 1 - share)


@part(source="Yun et al. 2019, eq. 1–2", soft=True, allowed={"alpha": (1e-3, None)})
def cutmix(
    images: Tensor, targets: Tensor, generator: np.random.Generator, *, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A rectangle of each image taken from another of the batch, the labels mixed by its area.

    alpha: the area left is drawn from Beta(alpha, alpha); the centre is uniform, and what lies outside is cut off.
    """
    height, width = images.shape[-2:]
    side = math.sqrt(1 - float(generator.beta(alpha, alpha)))
    top, bottom = _span(height, side, generator)
    left, right = _span(width, side, generator)
    other = _partners(images, generator)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    pasted = (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets, targets[other], pasted)


def _partners(images: Tensor, generator: np.random.Generator) -> Tensor:
    return torch.from_numpy(generator.permutation(len(images))).to(images.device)


def _span(length: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """A stretch of about share · length around a uniform centre, cut off at both ends."""
    size, centre = round(length * share), int(generator.integers(length))
    start = centre - size // 2
    return max(start, 0), min(start + size, length)
