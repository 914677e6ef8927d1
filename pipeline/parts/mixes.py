"""Mixes: one batch → a batch of mixed images with the labels mixed alike.

Form: ``f(images (B, C, H, W) float, targets (B, C) float, generator, *, …) -> (images, targets)``; the inputs are left
as they were. generator: ``np.random.Generator``, so that a batch's mix depends on the run's seed alone, on every
device. The fact ``soft=True`` says that targets may come back between 0 and 1; ``calls`` names the argument that
holds call-strings of other mixes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline import registry
from pipeline.errors import UserError
from pipeline.registry import part


@part(source="the baseline")
def none(images: Tensor, targets: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The batch as it is."""
    return images, targets


@part(source="Zhang et al. 2018, eq. 1", soft=True, allowed={"alpha": (1e-3, None), "chance": (0, 1)})
def mixup(
    images: Tensor, targets: Tensor, generator: np.random.Generator, *, alpha: float = 0.2, chance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Each image and label averaged with another's of the batch, with one share for the batch.

    alpha: the share is drawn from Beta(alpha, alpha); small values mix little, 1 mixes evenly over all shares. chance:
    share of the batches that are mixed at all.
    """
    if _spared(chance, generator):
        return images, targets
    share = float(generator.beta(alpha, alpha))
    other = _partners(images, generator)
    return torch.lerp(images, images[other], 1 - share), torch.lerp(targets, targets[other], 1 - share)


@part(source="Yun et al. 2019, eq. 1–2", soft=True, allowed={"alpha": (1e-3, None), "chance": (0, 1)})
def cutmix(
    images: Tensor, targets: Tensor, generator: np.random.Generator, *, alpha: float = 1.0, chance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A rectangle of each image taken from another of the batch, the labels mixed by its area.

    alpha: the area left is drawn from Beta(alpha, alpha); the centre is uniform, and what lies outside is cut off.
    chance: share of the batches that are mixed at all.
    """
    if _spared(chance, generator):
        return images, targets
    height, width = images.shape[-2:]
    side = math.sqrt(1 - float(generator.beta(alpha, alpha)))
    top, bottom = _span(height, side, generator)
    left, right = _span(width, side, generator)
    other = _partners(images, generator)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    pasted = (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets, targets[other], pasted)


@part(
    source="Harris et al. 2020 (FMix), eq. 2–3",
    soft=True,
    allowed={"alpha": (1e-3, None), "decay": (0, 10), "chance": (0, 1)},
)
def fmix(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    alpha: float = 1.0,
    decay: float = 3.0,
    chance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """A random shape of each image taken from another of the batch, the labels mixed by its area.

    alpha: the area left is drawn from Beta(alpha, alpha). decay: the shape is cut from noise whose amplitudes fall with
    this power of the frequency; higher makes it smoother. chance: share of the batches that are mixed at all.
    """
    if _spared(chance, generator):
        return images, targets
    height, width = images.shape[-2:]
    noise = _coloured_noise(height, width, decay, generator)
    pasted = round((1 - float(generator.beta(alpha, alpha))) * height * width)
    mask = np.zeros(height * width, dtype=bool)
    mask[np.argsort(noise, axis=None, kind="stable")[:pasted]] = True
    other = _partners(images, generator)
    shape = torch.from_numpy(mask.reshape(height, width)).to(images.device, non_blocking=True)
    return torch.where(shape, images[other], images), torch.lerp(targets, targets[other], pasted / (height * width))


@part(source="timm's Mixup, switch_prob", soft=True, calls={"mixes": "mixes"})
def mix_of(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    mixes: tuple[str, ...] = ("mixup(alpha=0.2)", "cutmix()"),
    chances: tuple[float, ...] = (),
) -> tuple[Tensor, Tensor]:
    """One of several mixes for each batch, chosen at random.

    mixes: their call-strings; none() leaves a batch as it is. chances: how likely each is, in any scale; empty: all
    alike.
    """
    weights = np.array(chances or [1] * len(mixes), dtype=np.float64)
    if len(weights) != len(mixes) or weights.min() < 0 or not weights.sum():
        raise UserError(
            f"mix_of: chances={list(chances)}, but {len(mixes)} mixes need a number each, ≥ 0 and not all 0"
        )
    chosen = mixes[int(generator.choice(len(mixes), p=weights / weights.sum()))]
    mixed: tuple[Tensor, Tensor] = registry.build("mixes", chosen)(images, targets, generator)
    return mixed


def _spared(chance: float, generator: np.random.Generator) -> bool:
    """Whether this batch stays as it is; nothing is drawn where every batch is mixed."""
    return chance < 1 and float(generator.random()) >= chance


def _coloured_noise(height: int, width: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """(height, width) real noise with amplitudes of 1 / frequency^decay."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.sqrt(rows**2 + columns**2), 1 / max(height, width))
    real, imaginary = generator.normal(size=(2, *frequency.shape))
    noise: np.ndarray = np.fft.irfft2((real + 1j * imaginary) / frequency**decay, s=(height, width))
    return noise


def _partners(images: Tensor, generator: np.random.Generator) -> Tensor:
    return torch.from_numpy(generator.permutation(len(images))).to(images.device, non_blocking=True)


def _span(length: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """A stretch of about share · length around a uniform centre, cut off at both ends."""
    size, centre = round(length * share), int(generator.integers(length))
    start = centre - size // 2
    return max(start, 0), min(start + size, length)
