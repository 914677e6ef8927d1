"""Augments: random changes of single training images, by albumentations, and the runner that seeds them.

Form: ``f(image_size, *, …) -> list`` of albumentations transforms that keep an (S, S, C) uint8 image's size and dtype;
an empty list does nothing. The fact ``symmetry`` is what the competition must declare for the label to stay true.
albumentations imports torch and takes 1.7 s, so it is imported only where there is something to do.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.registry import part

BORDERS = {"replicate": 1, "reflect": 4, "constant": 0}  # OpenCV's border modes; constant is black


@part(source="the baseline", symmetry="none")
def none(image_size: int) -> list[Any]:
    """The image as it is."""
    return []


@part(source="Krizhevsky et al. 2012, sec. 4.1", symmetry="hflip", allowed={"chance": (0, 1)})
def flips(image_size: int, *, chance: float = 0.5) -> list[Any]:
    """Left and right swapped.

    chance: how often, 0–1.
    """
    with _albumentations() as A:
        return [A.HorizontalFlip(p=chance)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4")
def d4(image_size: int) -> list[Any]:
    """One of the eight flips and rotations of a square, each equally likely."""
    with _albumentations() as A:
        return [A.D4(p=1)]


@part(
    source="Simard et al. 2003, sec. 2",
    symmetry="none",
    allowed={"shift": (0, 1), "rotate": (0, 180), "scale": (0, 0.9), "border": ("replicate", "reflect", "constant")},
)
def light(
    image_size: int, *, shift: float = 0.08, rotate: float = 10, scale: float = 0.1, border: str = "replicate"
) -> list[Any]:
    """A small random shift, rotation and change of scale, in one bilinear step.

    shift: at most this share of the side, each way. rotate: at most so many degrees. scale: size between 1 - scale and
    1 + scale. border: what fills the free corners: replicate (edge pixels), reflect or constant (black).
    """
    with _albumentations() as A:
        return [
            A.Affine(
                translate_percent=(-shift, shift),
                rotate=(-rotate, rotate),
                scale=(1 - scale, 1 + scale),
                border_mode=BORDERS[border],
                p=1,
            )
        ]


@part(source="Szegedy et al. 2015, sec. 6", symmetry="none", allowed={"scale": (0.01, 1), "ratio": (0.1, 10)})
def crop(
    image_size: int, *, scale: tuple[float, float] = (0.8, 1.0), ratio: tuple[float, float] = (0.75, 1.3333)
) -> list[Any]:
    """A random part of the image, enlarged to the whole (bilinear).

    scale: least and largest share of the area. ratio: least and largest width over height.
    """
    with _albumentations() as A:
        return [A.RandomResizedCrop(size=(image_size, image_size), scale=tuple(scale), ratio=tuple(ratio), p=1)]


@part(source="DeVries & Taylor 2017", symmetry="none", allowed={"size": (0.01, 1), "chance": (0, 1)})
def cutout(image_size: int, *, size: float = 0.25, chance: float = 0.5) -> list[Any]:
    """A square of the image made black.

    size: its side as a share of the image's. chance: how often, 0–1.
    """
    with _albumentations() as A:
        return [A.CoarseDropout((1, 1), hole_height_range=(size, size), hole_width_range=(size, size), p=chance)]


@part(source="He et al. 2016, sec. 4.2", symmetry="none", allowed={"pad": (0, 1000)})
def pad_crop(image_size: int, *, pad: int = 4) -> list[Any]:
    """A random shift by whole pixels, reflected at the edge: pad all sides, then crop to the old size.

    pad: most pixels each way; the usual choice for 32 × 32 is 4.
    """
    with _albumentations() as A:
        padding = A.Pad(padding=pad, border_mode=BORDERS["reflect"], p=1)
        return [padding, A.RandomCrop(image_size, image_size, p=1)]


@part(source="He et al. 2016, sec. 4.2", symmetry="hflip", allowed={"pad": (0, 1000)})
def pad_crop_flips(image_size: int, *, pad: int = 4) -> list[Any]:
    """pad_crop and flips: the usual augmentation of small photographs.

    pad: most pixels each way.
    """
    return [*pad_crop(image_size, pad=pad), *flips(image_size)]


@part(
    source="Krizhevsky et al. 2012, sec. 4.1; DeVries & Taylor 2017",
    symmetry="hflip",
    allowed={"scale": (0.01, 1), "colour": (0, 1)},
)
def medium(image_size: int, *, scale: float = 0.6, colour: float = 0.2) -> list[Any]:
    """crop, flips, brightness and contrast, cutout: a start for photographs of a few hundred pixels.

    scale: least share of the area that a crop keeps. colour: largest change of brightness and contrast, as a share.
    """
    with _albumentations() as A:
        light_change = A.RandomBrightnessContrast((-colour, colour), (-colour, colour), p=0.5)
    return [*crop(image_size, scale=(scale, 1.0)), *flips(image_size), light_change, *cutout(image_size)]


@contextlib.contextmanager
def _albumentations() -> Iterator[Any]:
    """The library, with its warnings made errors: in 2.0.8 a renamed argument only warns, and is then ignored."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
    import albumentations

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            yield albumentations
        except (ValueError, UserWarning) as fault:
            raise UserError(f"albumentations refuses these arguments: {fault}") from fault


def augmenter(transforms: list[Any]) -> Callable[[np.ndarray, int], np.ndarray]:
    """A callable ``(image, seed) -> image`` that runs the transforms in turn.

    image: (H, W, C) uint8, left as it is. seed: 0 … 2^64 - 1, made by the caller from (seed, epoch, index); it alone
    decides the result, in any process and after any other calls. One augmenter serves one thread: make one for each,
    from the same transforms if you like, since it works on a copy.
    """
    return Augmenter(transforms) if transforms else _unchanged


def _unchanged(image: np.ndarray, seed: int) -> np.ndarray:
    return image


class Augmenter:
    """See ``augmenter``.

    All transforms draw from one pair of generators, which is set anew for each image: 5 µs, where albumentations' own
    ``set_random_seed`` builds a new pair for each transform (20–60 µs). Philox is counter-based, so that its key can be
    set to any number and neighbouring seeds still give independent draws.
    """

    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = copy.deepcopy(transforms)
        self.python = random.Random(0)
        self.philox = np.random.Philox(key=0)
        self.fresh = self.philox.state
        generator = np.random.Generator(self.philox)
        for transform in self.transforms:
            transform.set_random_state(generator, self.python)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        self.python.seed(seed)
        self.fresh["state"]["key"][0] = seed
        self.philox.state = self.fresh
        for transform in self.transforms:
            image = transform(image=image)["image"]
        return image
