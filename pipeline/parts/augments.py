"""Augments: random changes of single training images, by albumentations, and the runner that seeds them.

Form: ``f(image_size, *, …) -> list`` of albumentations transforms, or ``policies.Seeded`` ones, that keep an (S, S, C)
uint8 image's size and dtype; an empty list does nothing. The fact ``symmetry`` is what the competition must declare for
the label to stay true; ``calls`` names the argument that holds call-strings of others, whose strongest then counts;
``takes`` leaves out masks where a part moves pixels without them; ``stays`` says that no pixel moves at all.

The fact ``batched`` says that the same can be done to a whole batch, for loader=device: the function beside the part,
``NAME_batched`` of the same signature, gives a list of changes of ``pipeline/batched.py`` with the same distribution.
albumentations imports torch and takes 1.7 s, so it is imported only where there is something to do.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline import policies, registry
from pipeline.errors import UserError
from pipeline.registry import part

BORDERS = {"replicate": 1, "reflect": 4, "constant": 0}  # OpenCV's border modes; constant is black


@part(source="the baseline", symmetry="none", batched=True, stays=True)
def none(image_size: int) -> list[Any]:
    """The image as it is."""
    return []


def none_batched(image_size: int) -> list[Any]:
    """See ``none``."""
    return []


@part(source="Krizhevsky et al. 2012, sec. 4.1", symmetry="hflip", batched=True, allowed={"chance": (0, 1)})
def flips(image_size: int, *, chance: float = 0.5) -> list[Any]:
    """Left and right swapped.

    chance: how often, 0–1.
    """
    with _albumentations() as A:
        return [A.HorizontalFlip(p=chance)]


def flips_batched(image_size: int, *, chance: float = 0.5) -> list[Any]:
    """See ``flips``."""
    return [_batches().Mirror(chance)]


@part(source="Dieleman et al. 2015, sec. 5", symmetry="d4", batched=True)
def d4(image_size: int) -> list[Any]:
    """One of the eight flips and rotations of a square, each equally likely."""
    with _albumentations() as A:
        return [A.D4(p=1)]


def d4_batched(image_size: int) -> list[Any]:
    """See ``d4``."""
    return [_batches().Turn()]


@part(
    source="Simard et al. 2003, sec. 2",
    symmetry="none",
    batched=True,
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


def light_batched(
    image_size: int, *, shift: float = 0.08, rotate: float = 10, scale: float = 0.1, border: str = "replicate"
) -> list[Any]:
    """See ``light``."""
    return [_batches().Affine(shift, rotate, (1 - scale, 1 + scale), border)]


@part(
    source="Szegedy et al. 2015, sec. 6",
    symmetry="none",
    batched=True,
    allowed={"scale": (0.01, 1), "ratio": (0.1, 10)},
)
def crop(
    image_size: int, *, scale: tuple[float, float] = (0.8, 1.0), ratio: tuple[float, float] = (0.75, 1.3333)
) -> list[Any]:
    """A random part of the image, enlarged to the whole (bilinear).

    scale: least and largest share of the area. ratio: least and largest width over height.
    """
    with _albumentations() as A:
        return [A.RandomResizedCrop(size=(image_size, image_size), scale=tuple(scale), ratio=tuple(ratio), p=1)]


def crop_batched(
    image_size: int, *, scale: tuple[float, float] = (0.8, 1.0), ratio: tuple[float, float] = (0.75, 1.3333)
) -> list[Any]:
    """See ``crop``."""
    return [_batches().Crop(tuple(scale), tuple(ratio))]


@part(
    source="DeVries & Taylor 2017",
    symmetry="none",
    batched=True,
    stays=True,
    allowed={"size": (0.01, 1), "chance": (0, 1)},
)
def cutout(image_size: int, *, size: float = 0.25, chance: float = 0.5) -> list[Any]:
    """A square of the image made black.

    size: its side as a share of the image's. chance: how often, 0–1.
    """
    side = size if size < 1 else image_size  # the library takes numbers from 1 on for pixels
    with _albumentations() as A:
        return [A.CoarseDropout((1, 1), hole_height_range=(side, side), hole_width_range=(side, side), p=chance)]


def cutout_batched(image_size: int, *, size: float = 0.25, chance: float = 0.5) -> list[Any]:
    """See ``cutout``."""
    return [_batches().Hole(size, chance)]


@part(source="He et al. 2016, sec. 4.2", symmetry="none", batched=True, allowed={"pad": (0, 1000)})
def pad_crop(image_size: int, *, pad: int = 4) -> list[Any]:
    """A random shift by whole pixels, reflected at the edge: pad all sides, then crop to the old size.

    pad: most pixels each way; the usual choice for 32 × 32 is 4.
    """
    with _albumentations() as A:
        padding = A.Pad(padding=pad, border_mode=BORDERS["reflect"], p=1)
        return [padding, A.RandomCrop(image_size, image_size, p=1)]


def pad_crop_batched(image_size: int, *, pad: int = 4) -> list[Any]:
    """See ``pad_crop``."""
    return [_batches().Shift(pad)]


@part(source="He et al. 2016, sec. 4.2", symmetry="hflip", batched=True, allowed={"pad": (0, 1000)})
def pad_crop_flips(image_size: int, *, pad: int = 4) -> list[Any]:
    """pad_crop and flips: the usual augmentation of small photographs.

    pad: most pixels each way.
    """
    return [*pad_crop(image_size, pad=pad), *flips(image_size)]


def pad_crop_flips_batched(image_size: int, *, pad: int = 4) -> list[Any]:
    """See ``pad_crop_flips``."""
    return [*pad_crop_batched(image_size, pad=pad), *flips_batched(image_size)]


@part(
    source="Krizhevsky et al. 2012, sec. 4.1; DeVries & Taylor 2017",
    symmetry="hflip",
    batched=True,
    allowed={"scale": (0.01, 1), "colour": (0, 1)},
)
def medium(image_size: int, *, scale: float = 0.6, colour: float = 0.2) -> list[Any]:
    """crop, flips, brightness and contrast, cutout: a start for photographs of a few hundred pixels.

    scale: least share of the area that a crop keeps. colour: largest change of brightness and contrast, as a share.
    """
    with _albumentations() as A:
        light_change = A.RandomBrightnessContrast((-colour, colour), (-colour, colour), p=0.5)
    return [*crop(image_size, scale=(scale, 1.0)), *flips(image_size), light_change, *cutout(image_size)]


def medium_batched(image_size: int, *, scale: float = 0.6, colour: float = 0.2) -> list[Any]:
    """See ``medium``."""
    moved = [*crop_batched(image_size, scale=(scale, 1.0)), *flips_batched(image_size)]
    return [*moved, _batches().Tone(colour, colour, 0.5), *cutout_batched(image_size)]


@part(
    source="Chen et al. 2020 (SimCLR), appendix A",
    symmetry="none",
    stays=True,
    allowed={"strength": (0, 1), "chance": (0, 1)},
)
def colour(image_size: int, *, strength: float = 0.5, chance: float = 0.8) -> list[Any]:
    """Brightness, contrast, saturation and hue changed, in random order; without colours the first two alone.

    strength: 1 changes the first three by up to 80 % and the hue by up to 20 % of the circle. chance: how often, 0–1.
    """
    tone, hue = 0.8 * strength, 0.2 * strength
    band = (1 - tone, 1 + tone)
    with _albumentations() as A:
        three = A.ColorJitter(brightness=band, contrast=band, saturation=band, hue=(-hue, hue), p=chance)
        return [ByChannels(three, A.RandomBrightnessContrast((-tone, tone), (-tone, tone), p=chance))]


@part(
    source="Chen et al. 2020 (SimCLR), appendix A",
    symmetry="none",
    stays=True,
    allowed={"sigma": (0.1, 100), "chance": (0, 1)},
)
def blur(image_size: int, *, sigma: float = 1.0, chance: float = 0.5) -> list[Any]:
    """A Gaussian blur.

    sigma: of the strongest, in pixels; the weakest has 0.1. chance: how often, 0–1.
    """
    with _albumentations() as A:
        return [A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, sigma), p=chance)]


@part(
    source="Bishop 1995 (Training with noise)",
    symmetry="none",
    stays=True,
    allowed={"deviation": (0, 1), "chance": (0, 1)},
)
def noise(image_size: int, *, deviation: float = 0.05, chance: float = 0.5) -> list[Any]:
    """Gaussian noise, of each pixel and channel its own.

    deviation: of the strongest, as a share of the range of values. chance: how often, 0–1.
    """
    with _albumentations() as A:
        return [A.GaussNoise(std_range=(0, deviation), p=chance)]


@part(
    source="Zhong et al. 2020, algorithm 1",
    symmetry="none",
    batched=True,
    stays=True,
    allowed={"area": (0.001, 1), "ratio": (0.01, 100), "chance": (0, 1)},
)
def erasing(
    image_size: int,
    *,
    area: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    chance: float = 0.5,
) -> list[Any]:
    """A rectangle of the image filled with random values.

    area: least and largest share of the image. ratio: least and largest width over height. chance: how often, 0–1.
    """
    with _albumentations() as A:
        return [A.Erasing(scale=tuple(area), ratio=tuple(ratio), fill="random", p=chance)]


def erasing_batched(
    image_size: int,
    *,
    area: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    chance: float = 0.5,
) -> list[Any]:
    """See ``erasing``."""
    return [_batches().Erase(tuple(area), tuple(ratio), chance)]


@part(
    source="Krizhevsky et al. 2012, sec. 4.1",
    symmetry="none",
    batched=True,
    allowed={"share": (0.05, 1), "chance": (0, 1)},
)
def centre_crop(image_size: int, *, share: float = 0.875, chance: float = 0.5) -> list[Any]:
    """The middle of the image, enlarged to the whole (bilinear).

    share: of the side, that is kept. chance: how often, 0–1; prediction shows the whole image, so that with 1 no
    training image looks like those that are predicted.
    """
    with _albumentations() as A:
        return [A.Affine(scale=(1 / share, 1 / share), border_mode=BORDERS["replicate"], p=chance)]


def centre_crop_batched(image_size: int, *, share: float = 0.875, chance: float = 0.5) -> list[Any]:
    """See ``centre_crop``."""
    return [_batches().Affine(0.0, 0.0, (1 / share, 1 / share), "replicate", chance)]


@part(
    source="Buslaev et al. 2020 (albumentations); Zhong et al. 2020",
    symmetry="hflip",
    allowed={"scale": (0.01, 1), "strength": (0, 1)},
)
def heavy(image_size: int, *, scale: float = 0.35, strength: float = 0.5) -> list[Any]:
    """crop, flips, light, colour, blur or noise, erasing: for photographs and long trainings.

    scale: least share of the area that a crop keeps. strength: of the change of colours, see colour.
    """
    moved = [*crop(image_size, scale=(scale, 1.0)), *flips(image_size), *light(image_size, rotate=15)]
    with _albumentations() as A:
        spoilt = A.OneOf([*blur(image_size, chance=1), *noise(image_size, chance=1)], p=0.3)
    return [*moved, *colour(image_size, strength=strength), spoilt, *erasing(image_size, chance=0.25)]


@part(source="Cubuk et al. 2019 (AutoAugment), tables 7 and 9", symmetry="none", takes=("classes", "labels", "numbers"),
      allowed={"policy": ("imagenet", "cifar10"), "fill": (0, 255)})  # fmt: skip
def auto_augment(image_size: int, *, policy: str = "imagenet", fill: int = 128) -> list[Any]:
    """One of 25 pairs of operations that a search found: shifts, shears, rotations up to 30°, changes of tone.

    No mirror among them: flips() goes before, as in compose(). policy: the data it was searched on: imagenet or
    cifar10. fill: the grey of free corners, 0–255.
    """
    return [policies.auto_augment(policy, image_size, fill)]


@part(
    source="Cubuk et al. 2020 (RandAugment), algorithm 1",
    symmetry="none",
    takes=("classes", "labels", "numbers"),
    allowed={"number": (1, 14), "magnitude": (0, 30), "fill": (0, 255)},
)
def rand_augment(image_size: int, *, number: int = 2, magnitude: int = 9, fill: int = 128) -> list[Any]:
    """So many random operations of one strength: shifts, shears, rotations, changes of tone; no mirror among them.

    number: of operations. magnitude: their strength, 0–30; 30 rotates by 30° and shifts by 45 % of the side. fill: the
    grey of free corners, 0–255.
    """
    return [policies.rand_augment(number, magnitude, image_size, fill)]


@part(
    source="Müller & Hutter 2021 (TrivialAugment), sec. 3 and table 6",
    symmetry="none",
    takes=("classes", "labels", "numbers"),
    allowed={"rotate": (0, 180), "fill": (0, 255)},
)
def trivial_augment(image_size: int, *, rotate: float = 30, fill: int = 128) -> list[Any]:
    """One random operation of a random strength in the paper's wide ranges; no mirror among them.

    Shifts end at 32 pixels and at half the side. rotate: at most so many degrees; the paper's 135 turns images upside
    down. fill: the grey of free corners, 0–255.
    """
    return [policies.trivial_augment(rotate, image_size, fill)]


@part(
    source="Hendrycks et al. 2020 (AugMix), algorithm 1",
    symmetry="none",
    takes=("classes", "labels", "numbers"),
    allowed={"severity": (1, 10), "width": (1, 10), "depth": (0, 10), "fill": (0, 255)},
)
def aug_mix(image_size: int, *, severity: int = 3, width: int = 3, depth: int = 0, fill: int = 128) -> list[Any]:
    """The image averaged with a few chains of random operations on it; no mirror among them.

    severity: strength of the operations, 1–10. width: number of chains. depth: operations in each; 0: one to three.
    fill: the grey of free corners, 0–255.
    """
    return [policies.aug_mix(severity, width, depth, image_size, fill)]


@part(
    source="Buslaev et al. 2020 (albumentations), Compose",
    symmetry="none",
    calls={"parts": "augments"},
    batched=True,
    stays=True,
)
def compose(image_size: int, *, parts: tuple[str, ...] = ("flips()", "light()")) -> list[Any]:
    """Several augments in turn; it needs the symmetry of the most demanding of them.

    parts: their call-strings, such as ['flips()', 'colour(strength=0.3)'].
    """
    return [transform for text in parts for transform in registry.build("augments", text)(image_size)]


def compose_batched(image_size: int, *, parts: tuple[str, ...] = ("flips()", "light()")) -> list[Any]:
    """See ``compose``."""
    return [change for text in parts for change in batched(text, image_size)]


@part(
    source="Hendrycks et al. 2020 (AugMix), sec. 3; other losses: Hoffer et al. 2020 (Augment your batch)",
    symmetry="none",
    allowed={"count": (2, 16)},
    takes=("classes", "labels", "numbers"),
    calls={"base": "augments", "change": "augments"},
    several=True,
    batched=True,
)
def several(
    image_size: int, *, base: str = "none()", change: str = "aug_mix()", count: int = 3, alike: bool = False
) -> list[Any]:
    """Several views of each image in one batch: the first as base leaves it, each other changed further.

    For loss=jsd(), which compares them; any other loss learns from the mean over the views. base: the call-string of
    what is done alike to all views, such as 'pad_crop_flips()'. change: of what is done to all but the first, drawn
    for each. count: of views; a step takes so many times longer. alike: change the first view, too, in its own way.
    """
    first, then = (registry.build("augments", text)(image_size) for text in (base, change))
    return [*first, Further(then, count, alike)]


def several_batched(
    image_size: int, *, base: str = "none()", change: str = "aug_mix()", count: int = 3, alike: bool = False
) -> list[Any]:
    """See ``several``."""
    return [*batched(base, image_size), Further(batched(change, image_size), count, alike)]


class Further(policies.Seeded):
    """Ends the transforms of ``several``: what makes a further view of an image that the others have changed."""

    def __init__(self, transforms: list[Any], count: int, alike: bool) -> None:
        self.transforms, self.count, self.alike = transforms, count, alike

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:
        """The generators to draw from, handed on."""
        for transform in self.transforms:
            transform.set_random_state(generator, python)

    def change(self, image: np.ndarray) -> np.ndarray:
        """A further view."""
        for transform in self.transforms:
            image = transform(image=image)["image"]
        return image


def batched(text: str, image_size: int) -> list[Any]:
    """What an augment with the fact ``batched`` does, as changes of whole batches; they need torch alone."""
    chosen, call = registry.bind("augments", text)
    function = getattr(importlib.import_module(chosen.module), f"{chosen.name}_batched")
    found: list[Any] = function(image_size, **call.arguments)
    return found


def parted(transforms: list[Any]) -> tuple[list[Any], list[Any], range]:
    """What is done alike to all views of an image, what further to some, and which views these are.

    Views are counted from 0; one that is not among them is as all are, and there is one at least.
    """
    if transforms and isinstance(transforms[-1], Further):
        last = transforms[-1]
        return transforms[:-1], last.transforms, range(0 if last.alike else 1, last.count)
    return transforms, [], range(1, 1)


class ByChannels(policies.Seeded):
    """One albumentations transform for RGB images, another for all others."""

    def __init__(self, three: Any, others: Any) -> None:
        self.three, self.others = three, others

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:
        """The generators to draw from, handed on."""
        for transform in (self.three, self.others):
            transform.set_random_state(generator, python)

    def change(self, image: np.ndarray) -> np.ndarray:
        """The transform that fits."""
        transform = self.three if image.shape[2] == 3 else self.others
        return transform(image=image)["image"]

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The changed image, and the mask as it is: such changes move no pixel."""
        return {"image": self.change(image)} | ({} if mask is None else {"mask": mask})


def _batches() -> Any:
    """``pipeline.batched``, which imports torch."""
    return importlib.import_module("pipeline.batched")


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


def augmenter(transforms: list[Any]) -> Callable[..., Any]:
    """A callable ``(image, seed) -> image`` that runs the transforms in turn; ``(image, seed, planes)`` gives both.

    image: (H, W, C) uint8, left as it is. planes: (H, W, P) uint8, moved as the image is, by the nearest pixel. seed:
    0 … 2^64 - 1, made by the caller from (seed, epoch, index); it alone decides the result, in any process and after
    any other calls. One augmenter serves one thread: make one for each, from the same transforms if you like, since it
    works on a copy.
    """
    return Augmenter(transforms) if transforms else _unchanged


def _unchanged(image: np.ndarray, seed: int, planes: np.ndarray | None = None) -> Any:
    return image if planes is None else (image, planes)


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

    def __call__(self, image: np.ndarray, seed: int, planes: np.ndarray | None = None) -> Any:
        self.python.seed(seed)
        self.fresh["state"]["key"][0] = seed
        self.philox.state = self.fresh
        if planes is None:
            for transform in self.transforms:
                image = transform(image=image)["image"]
            return image
        for transform in self.transforms:
            both = transform(image=image, mask=planes)
            image, planes = both["image"], both["mask"]
        return image, planes
