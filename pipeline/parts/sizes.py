"""Sizes of training batches: a whole batch is resized on the device, after loading, augmentation and normalisation.

Form: ``f(image_size, epochs, *, …) -> list`` with a list for each epoch: the sides in pixels of which each of its
batches gets one, drawn from (seed, epoch, step). Pixels come at image_size from the cache: a larger side shows no more
of them, only larger. Prediction is at image_size, and at ``scales`` of it; the last epochs should see that size.
"""

from __future__ import annotations

from pipeline.registry import part

LEAST = 4  # pixels, as for image_size


@part(source="the baseline")
def fixed(image_size: int, epochs: int) -> list[list[int]]:
    """Every batch at image_size."""
    return [[image_size]] * epochs


@part(source="Redmon & Farhadi 2017 (YOLO9000), sec. 2, multi-scale training; a size for each batch", allowed={
    "scales": (0.1, 4)})  # fmt: skip
def multi_scale(
    image_size: int, epochs: int, *, scales: tuple[float, ...] = (0.75, 0.875, 1.0, 1.125, 1.25)
) -> list[list[int]]:
    """Each batch at one of several sizes, equally likely: objects come large and small.

    scales: the sizes as shares of image_size; the memory of a step goes with the largest, squared.
    """
    return [sorted({_side(image_size, scale) for scale in scales})] * epochs


@part(source="Howard 2018 (fastai, DAWNBench); Tan & Le 2021 (EfficientNetV2), algorithm 1", allowed={
    "start": (0.1, 1), "until": (0, 1)})  # fmt: skip
def progressive(image_size: int, epochs: int, *, start: float = 0.5, until: float = 0.75) -> list[list[int]]:
    """Small images first, which train fast, and larger ones epoch by epoch, up to image_size.

    start: the first epoch's size as a share of image_size. until: share of the epochs after which all are at
    image_size; the last one always is.
    """
    growing = min(round(until * epochs), epochs - 1)
    steps = [min(1.0, epoch / growing) if growing else 1.0 for epoch in range(epochs)]
    return [[_side(image_size, start + (1 - start) * step)] for step in steps]


def _side(image_size: int, share: float) -> int:
    return max(min(LEAST, image_size), round(image_size * share))
