"""The automatic augmentation policies: their operations on uint8 images, their tables, and what draws from them.

AutoAugment, RandAugment, TrivialAugment and AugMix share fifteen operations. Here they work on (H, W, C) arrays of any
number of channels, by lookup tables and OpenCV, with Pillow's arithmetic and torchvision's magnitudes. Nothing here
imports torch or albumentations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.pictures import opencv

LEVELS = np.arange(256)

# --- operations: (image, magnitude, fill) → image ------------------------------------------------------------------


def _point(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """values: (256,) numbers that the levels become, cut off to whole numbers in 0…255."""
    return np.clip(values, 0, 255).astype(np.uint8)[image]


def _each_channel(image: np.ndarray, values: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
    """Each channel by a table made from its own histogram; None leaves it as it is."""
    result = image.copy()
    for channel in range(image.shape[2]):
        table = values(np.bincount(image[..., channel].ravel(), minlength=256))
        if table is not None:
            result[..., channel] = _point(image[..., channel], table)
    return result


def auto_contrast(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Each channel stretched to 0…255."""

    def values(histogram: np.ndarray) -> np.ndarray | None:
        there = np.flatnonzero(histogram)
        low, high = there[0], there[-1]
        return None if low == high else LEVELS * (255 / (high - low)) - low * (255 / (high - low))

    return _each_channel(image, values)


def equalize(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Each channel with an even histogram."""

    def values(histogram: np.ndarray) -> np.ndarray | None:
        there = histogram[histogram > 0]
        step = int(there.sum() - there[-1]) // 255
        return None if not step else (step // 2 + np.cumsum(histogram) - histogram) // step

    return _each_channel(image, values)


def invert(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """The negative."""
    return 255 - image


def solarize(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """The negative of all levels from magnitude on."""
    return _point(image, np.where(magnitude > LEVELS, LEVELS, 255 - LEVELS))


def posterize(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """The upper bits alone, so many of them, and at least one."""
    return image & np.uint8(256 - 2 ** (8 - max(int(magnitude), 1)))


def brightness(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Brighter, or darker where magnitude is negative: −1 is black."""
    return _point(image, LEVELS.astype(np.float32) * np.float32(1 + magnitude))


def contrast(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """More contrast, or less where magnitude is negative: −1 is the mean grey."""
    mean = int(_grey(image).mean() + 0.5)
    return _point(image, mean + np.float32(1 + magnitude) * (LEVELS - mean).astype(np.float32))


def color(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Stronger colours, or weaker where magnitude is negative: −1 is grey; what is not RGB stays as it is."""
    return _blend(_grey(image)[..., None], image, magnitude) if image.shape[2] == 3 else image


def sharpness(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Sharper, or smoother where magnitude is negative; the outermost pixels stay."""
    if min(image.shape[:2]) < 3:
        return image
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
    smooth = image.copy()
    smooth[1:-1, 1:-1] = opencv().filter2D(image, -1, kernel).reshape(image.shape)[1:-1, 1:-1]
    return _blend(smooth, image, magnitude)


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) brightness: ITU-R 601 of RGB, as Pillow rounds it; else the mean of the channels."""
    if image.shape[2] == 3:
        weighted = image.astype(np.int32) @ np.array([19595, 38470, 7471], dtype=np.int32)
        return (weighted + 0x8000) >> 16
    return image[..., 0] if image.shape[2] == 1 else image.mean(axis=2).astype(np.uint8)


def _blend(weak: np.ndarray, image: np.ndarray, magnitude: float) -> np.ndarray:
    start = weak.astype(np.float32)
    return np.clip(start + np.float32(1 + magnitude) * (image - start), 0, 255).astype(np.uint8)


def shear_x(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Rows shifted by magnitude times their height."""
    return _warp(image, [[1, magnitude, 0], [0, 1, 0]], fill)


def shear_y(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Columns shifted by magnitude times their distance from the left."""
    return _warp(image, [[1, 0, 0], [magnitude, 1, 0]], fill)


def translate_x(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Shifted sideways by whole pixels."""
    return _warp(image, [[1, 0, -int(magnitude)], [0, 1, 0]], fill)


def translate_y(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Shifted down or up by whole pixels."""
    return _warp(image, [[1, 0, 0], [0, 1, -int(magnitude)]], fill)


def rotate(image: np.ndarray, magnitude: float, fill: int) -> np.ndarray:
    """Turned about the centre, counter-clockwise by degrees."""
    height, width = image.shape[:2]
    turn, centre = np.deg2rad(magnitude), np.array([width, height]) / 2
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return _warp(image, np.column_stack([matrix, centre - matrix @ centre]), fill)


def _warp(image: np.ndarray, matrix: Any, fill: int) -> np.ndarray:
    """Bilinear; matrix (2, 3) takes places of the result to places of the image, pixel centres at one half."""
    cv2, given = opencv(), np.asarray(matrix, dtype=np.float64)
    given = given + np.column_stack([np.zeros((2, 2)), given[:, :2] @ [0.5, 0.5] - 0.5])
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, image.shape[1::-1]
    groups = [  # OpenCV warps at most four channels at once
        cv2.warpAffine(image[..., first : first + 4], given, size, flags=flags, borderValue=(fill,) * 4)
        for first in range(0, image.shape[2], 4)
    ]
    return np.dstack(groups) if len(groups) > 1 else groups[0].reshape(image.shape)


OPERATIONS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "ShearX": shear_x, "ShearY": shear_y, "TranslateX": translate_x, "TranslateY": translate_y, "Rotate": rotate,
    "Brightness": brightness, "Color": color, "Contrast": contrast, "Sharpness": sharpness, "Posterize": posterize,
    "Solarize": solarize, "AutoContrast": auto_contrast, "Equalize": equalize, "Invert": invert,
}  # fmt: skip
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
LEVELLESS = ("AutoContrast", "Equalize", "Invert")

# --- how strong: operation → (bins,) magnitudes --------------------------------------------------------------------


def magnitudes(
    bins: int,
    *,
    shift: float,
    shear: float = 0.3,
    turn: float = 30,
    tone: float = 0.9,
    bits: tuple[int, int] = (8, 4),
) -> dict[str, np.ndarray]:
    """Magnitudes from nothing to the most, evenly.

    shift: most pixels. shear, tone: most of these. turn: most degrees. bits: kept by posterize at first and last.
    """
    most = {
        "ShearX": shear, "ShearY": shear, "TranslateX": shift, "TranslateY": shift, "Rotate": turn,
        "Brightness": tone, "Color": tone, "Contrast": tone, "Sharpness": tone,
    }  # fmt: skip
    found = {name: np.linspace(0, end, bins) for name, end in most.items()}
    lost = np.round(np.arange(bins) / (bins - 1) * (bits[0] - bits[1]))
    found |= {"Posterize": bits[0] - lost, "Solarize": np.linspace(255, 0, bins)}
    return found | {name: np.zeros(bins) for name in LEVELLESS}


# --- what draws ----------------------------------------------------------------------------------------------------


class Seeded:
    """A change of an image that draws from generators set from outside, called as albumentations' transforms are."""

    python: random.Random
    generator: np.random.Generator

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:
        """The generators to draw from."""
        self.generator, self.python = generator, python

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        """{"image": the changed image}."""
        return {"image": self.change(image)}

    def change(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8, left as it is → the same shape, uint8."""
        raise NotImplementedError


class Policy(Seeded):
    """What the policies share: an operation by name with a magnitude, of random sign where it has two directions."""

    def __init__(self, space: dict[str, np.ndarray], fill: int) -> None:
        self.space = {name: levels.tolist() for name, levels in space.items()}
        self.names, self.fill = list(space), fill

    def apply(self, image: np.ndarray, name: str, level: int) -> np.ndarray:
        """The operation of that name, as strong as its bin ``level`` says; "Identity" does nothing."""
        if name == "Identity":
            return image
        magnitude = self.space[name][level]
        if name in SIGNED and self.python.random() < 0.5:
            magnitude = -magnitude
        return OPERATIONS[name](image, magnitude, self.fill)


class AutoAugment(Policy):
    """One of a searched policy's sub-policies, each of its two operations by its own chance."""

    def __init__(self, table: Sequence[str], space: dict[str, np.ndarray], fill: int) -> None:
        super().__init__(space, fill)
        words = [line.split() for line in table]
        steps = [[word[i : i + 3] for i in (0, 3)] for word in words]
        self.table = [[(name, float(chance), int(level)) for name, chance, level in line] for line in steps]

    def change(self, image: np.ndarray) -> np.ndarray:
        """See the class."""
        for name, chance, level in self.table[self.python.randrange(len(self.table))]:
            if self.python.random() < chance:
                image = self.apply(image, name, level)
        return image


class Uniform(Policy):
    """RandAugment and TrivialAugment: so many operations in turn, each equally likely, "Identity" among them.

    level: the bin of every operation, or None: a random one.
    """

    def __init__(self, space: dict[str, np.ndarray], fill: int, number: int, level: int | None) -> None:
        super().__init__(space, fill)
        self.names = ["Identity", *(name for name in self.names if name != "Invert")]
        self.bins, self.number, self.level = len(next(iter(space.values()))), number, level

    def change(self, image: np.ndarray) -> np.ndarray:
        """See the class."""
        for _ in range(self.number):
            name = self.python.choice(self.names)
            image = self.apply(image, name, self.python.randrange(self.bins) if self.level is None else self.level)
        return image


class AugMix(Policy):
    """The image averaged with chains of operations on it, all shares random."""

    def __init__(self, space: dict[str, np.ndarray], fill: int, severity: int, width: int, depth: int) -> None:
        super().__init__(space, fill)
        self.severity, self.width, self.depth = severity, width, depth

    def change(self, image: np.ndarray) -> np.ndarray:
        """See the class."""
        share = self.generator.beta(1, 1)  # alpha 1, as in the paper
        mixed = np.float32(1 - share) * image
        for weight in self.generator.dirichlet([1] * self.width):
            mixed += np.float32(share * weight) * self.chain(image)
        return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)

    def chain(self, image: np.ndarray) -> np.ndarray:
        """So many operations in turn; depth 0: one to three."""
        for _ in range(self.depth or self.python.randint(1, 3)):
            image = self.apply(image, self.python.choice(self.names), self.python.randrange(self.severity))
        return image


# --- the searched policies: two operations a line, each with its chance and its bin of ten --------------------------

TABLES = {
    "imagenet": """
        Posterize 0.4 8 Rotate 0.6 9
        Solarize 0.6 5 AutoContrast 0.6 0
        Equalize 0.8 0 Equalize 0.6 0
        Posterize 0.6 7 Posterize 0.6 6
        Equalize 0.4 0 Solarize 0.2 4
        Equalize 0.4 0 Rotate 0.8 8
        Solarize 0.6 3 Equalize 0.6 0
        Posterize 0.8 5 Equalize 1.0 0
        Rotate 0.2 3 Solarize 0.6 8
        Equalize 0.6 0 Posterize 0.4 6
        Rotate 0.8 8 Color 0.4 0
        Rotate 0.4 9 Equalize 0.6 0
        Equalize 0.0 0 Equalize 0.8 0
        Invert 0.6 0 Equalize 1.0 0
        Color 0.6 4 Contrast 1.0 8
        Rotate 0.8 8 Color 1.0 2
        Color 0.8 8 Solarize 0.8 7
        Sharpness 0.4 7 Invert 0.6 0
        ShearX 0.6 5 Equalize 1.0 0
        Color 0.4 0 Equalize 0.6 0
        Equalize 0.4 0 Solarize 0.2 4
        Solarize 0.6 5 AutoContrast 0.6 0
        Invert 0.6 0 Equalize 1.0 0
        Color 0.6 4 Contrast 1.0 8
        Equalize 0.8 0 Equalize 0.6 0
    """,
    "cifar10": """
        Invert 0.1 0 Contrast 0.2 6
        Rotate 0.7 2 TranslateX 0.3 9
        Sharpness 0.8 1 Sharpness 0.9 3
        ShearY 0.5 8 TranslateY 0.7 9
        AutoContrast 0.5 0 Equalize 0.9 0
        ShearY 0.2 7 Posterize 0.3 7
        Color 0.4 3 Brightness 0.6 7
        Sharpness 0.3 9 Brightness 0.7 9
        Equalize 0.6 0 Equalize 0.5 0
        Contrast 0.6 7 Sharpness 0.6 5
        Color 0.7 7 TranslateX 0.5 8
        Equalize 0.3 0 AutoContrast 0.4 0
        TranslateY 0.4 3 Sharpness 0.2 6
        Brightness 0.9 6 Color 0.2 8
        Solarize 0.5 2 Invert 0.0 0
        Equalize 0.2 0 AutoContrast 0.6 0
        Equalize 0.2 0 Equalize 0.6 0
        Color 0.9 9 Equalize 0.6 0
        AutoContrast 0.8 0 Solarize 0.2 8
        Brightness 0.1 3 Color 0.7 0
        Solarize 0.4 5 AutoContrast 0.9 0
        TranslateY 0.9 9 TranslateY 0.7 9
        AutoContrast 0.9 0 Solarize 0.8 3
        Equalize 0.8 0 Invert 0.1 0
        TranslateY 0.7 9 AutoContrast 0.9 0
    """,
}


def auto_augment(policy: str, size: int, fill: int) -> AutoAugment:
    """Cubuk et al. 2019, tables 7 and 9, for images of size × size pixels."""
    return AutoAugment(TABLES[policy].strip().splitlines(), magnitudes(10, shift=150 / 331 * size), fill)


def rand_augment(number: int, magnitude: int, size: int, fill: int) -> Uniform:
    """Cubuk et al. 2020: so many of fourteen operations, all of magnitude 0–30."""
    return Uniform(magnitudes(31, shift=150 / 331 * size), fill, number, magnitude)


def trivial_augment(turn: float, size: int, fill: int) -> Uniform:
    """Müller & Hutter 2021: one operation of a random magnitude in the wide space."""
    wide = magnitudes(31, shift=min(32, size / 2), shear=0.99, turn=turn, tone=0.99, bits=(8, 2))
    return Uniform(wide, fill, 1, None)


def aug_mix(severity: int, width: int, depth: int, size: int, fill: int) -> AugMix:
    """Hendrycks et al. 2020, with the nine operations of the paper that none of its test corruptions resembles."""
    space = magnitudes(10, shift=size / 3, bits=(4, 0))
    kept = {
        name: levels
        for name, levels in space.items()
        if name not in ("Brightness", "Color", "Contrast", "Sharpness", "Invert")
    }
    return AugMix(kept, fill, severity, width, depth)
