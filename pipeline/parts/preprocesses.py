"""Preprocesses change every image in the same way, once, before it is cached: in training and at prediction alike.

Form: ``f(image, size, *, …) -> image``: (H, W, C) uint8 of 1 (grey), 3 (RGB) or other channels, contiguous, at its own
size and shape → the same of any height and width; what comes out is then made square. size: side of that square. The
fact ``channels`` names the numbers of channels that the part can read, all if it is not there; ``moves=True`` says that
pixels change their places, so that masks and boxes would have to follow.
"""

from __future__ import annotations

import numpy as np

from pipeline.pictures import opencv
from pipeline.registry import part

LEVELS = 256
LEAST_RADIUS = 0.25  # of the shorter side; a middle row that shows less of a disc shows none
GREY = 128


@part(source="Zuiderveld 1994 (Graphics Gems IV), contrast limited adaptive histogram equalization; OpenCV", allowed={
    "clip": (0.1, 100), "tiles": (1, 64), "least": (1, 1024)})  # fmt: skip
def clahe(image: np.ndarray, size: int, *, clip: float = 2.0, tiles: int = 8, least: int = 8) -> np.ndarray:
    """Local contrast made alike: of RGB the lightness L of L*a*b*, of other images each channel for itself.

    clip: most pixels of one grey level, as a multiple of their mean number; more is more contrast, and more noise.
    tiles: the image is equalised in so many by so many tiles, and interpolated between them. least: pixels a side of a
    tile, below which there are fewer tiles, since a histogram of a few pixels says nothing.
    """
    cv2 = opencv()
    across, down = (min(tiles, max(1, side // least)) for side in (image.shape[1], image.shape[0]))
    equalise = cv2.createCLAHE(clipLimit=clip, tileGridSize=(across, down)).apply
    if image.shape[2] != 3:
        return np.stack([equalise(channel) for channel in np.moveaxis(image, 2, 0).copy()], axis=2)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = equalise(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


@part(source="usual for scans and fundus photographs, as in the diabetic retinopathy competitions of 2015 and 2019",
      moves=True, allowed={"tolerance": (0, 127), "stray": (0, 0.5), "least": (0.01, 1)})  # fmt: skip
def trim_borders(
    image: np.ndarray, size: int, *, tolerance: int = 12, stray: float = 0.01, least: float = 0.1
) -> np.ndarray:
    """Rows and columns at the edges cut off that are nearly all dark, or nearly all bright.

    tolerance: how far from 0, or from 255, in every channel. stray: share of a row's pixels that may lie elsewhere,
    such as dust. least: an image that would keep less than this share of a side is left as it is.
    """
    wide = image.max(axis=2), image.min(axis=2)
    plain = [wide[0] <= tolerance, wide[1] >= LEVELS - 1 - tolerance]
    top, bottom = _inside(plain, 1, stray)
    left, right = _inside([one[top:bottom] for one in plain], 0, stray) if bottom else (0, 0)
    height, width = image.shape[:2]
    if bottom - top < least * height or right - left < least * width:
        return image
    return np.ascontiguousarray(image[top:bottom, left:right])


@part(source="Graham 2015 (Kaggle diabetic retinopathy detection competition report), sec. 2", moves=True,
      channels=(1, 2, 3, 4), allowed={"strength": (0.1, 100), "blur": (0.001, 1), "share": (0.1, 1)})  # fmt: skip
def ben_graham(
    image: np.ndarray, size: int, *, strength: float = 4.0, blur: float = 0.0333, share: float = 0.9, disc: bool = True
) -> np.ndarray:
    """Fundus photographs alike: the disc scaled to one radius, the local mean colour subtracted, its rim cut off.

    The radius is measured on the middle row, and the disc's middle is taken for the image's: trim_borders() before it
    helps where the disc stands aside, or the black around it is noisy. strength: factor of what is left, around grey.
    blur: deviation of the local mean's Gaussian, as a share of the radius. share: of the radius that is kept; it fills
    the square. disc: whether all beyond it becomes grey; false keeps the corners.
    """
    cv2 = opencv()
    factor = size / (2 * share * _radius(image))
    width, height = (max(1, round(side * factor)) for side in (image.shape[1], image.shape[0]))
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    local = cv2.GaussianBlur(scaled, (0, 0), max(0.1, blur * size / (2 * share)))
    level = cv2.addWeighted(scaled, strength, local, -strength, GREY).reshape(height, width, -1)
    square = _middle(level, size)
    if disc:
        inside = np.zeros((size, size), dtype=np.uint8)
        cv2.circle(inside, (size // 2, size // 2), size // 2, 1, -1)
        square[inside == 0] = GREY
    return square


@part(source="ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B", channels=(1, 3))
def grey(image: np.ndarray, size: int) -> np.ndarray:
    """No colours: the brightness in all three channels, where a pretrained network expects three."""
    if image.shape[2] == 1:
        return image
    cv2 = opencv()
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _inside(plain: list[np.ndarray], axis: int, stray: float) -> tuple[int, int]:
    """The first line, and one past the last, that is neither nearly all dark nor nearly all bright; else (0, 0)."""
    border = np.any([one.mean(axis=axis) >= 1 - stray for one in plain], axis=0)
    lines = np.flatnonzero(~border)
    return (int(lines[0]), int(lines[-1]) + 1) if len(lines) else (0, 0)


def _radius(image: np.ndarray) -> float:
    """Half the number of pixels of the middle row that are brighter than a tenth of its mean, as Graham measured."""
    row = image[image.shape[0] // 2].sum(axis=1, dtype=np.int64)
    radius = float((row > row.mean() / 10).sum()) / 2
    half = min(image.shape[:2]) / 2
    return radius if radius >= 2 * LEAST_RADIUS * half else half


def _middle(image: np.ndarray, size: int) -> np.ndarray:
    """The middle size × size pixels; grey where the image ends before."""
    square = np.full((size, size, image.shape[2]), GREY, dtype=np.uint8)
    (to_y, from_y), (to_x, from_x) = (_overlap(length, size) for length in image.shape[:2])
    square[to_y, to_x] = image[from_y, from_x]
    return square


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """Where the common middle of two lengths lies in the one of the size, and in the other."""
    common = min(length, size)
    return tuple(slice((whole - common) // 2, (whole - common) // 2 + common) for whole in (size, length))  # type: ignore[return-value]
