"""Whitening: the principal components of a competition's colours or small patches, as one kernel; no label is read."""

from __future__ import annotations

import numpy as np

from pipeline.errors import UserError
from pipeline.images import Images

MOST_IMAGES = 4096  # that are looked at, evenly over all rows
MOST_PATCHES = 2**22  # that are counted, on an even grid in each image
BLOCK_PIXELS = 2**22  # of images that are read at a time


def moments(images: Images, rows: np.ndarray, patch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of the patches of some rows, float64 of pixels in 0…1; D = C · patch².

    A patch is laid out as (C, patch, patch). Sums of products of whole numbers are exact in float64 up to 2⁵³, so
    that neither blocks nor threads change a bit of them.
    """
    if not len(rows):
        raise UserError("whitening needs at least one image that decodes")
    _, height, width, channels = images.shape
    if patch > min(height, width):
        raise UserError(f"data.normalise has patch={patch}, but images are {width} px; take a smaller one")
    rows = rows[:: -(-len(rows) // MOST_IMAGES)]
    step = max(1, int(np.ceil(np.sqrt(len(rows) * height * width / MOST_PATCHES))))
    size = channels * patch**2
    count, total, products = 0, np.zeros(size), np.zeros((size, size))
    block = max(1, BLOCK_PIXELS // (height * width))
    for start in range(0, len(rows), block):
        pixels = images.take(rows[start : start + block])
        views = np.lib.stride_tricks.sliding_window_view(pixels, (patch, patch), axis=(1, 2))
        patches = views[:, ::step, ::step].reshape(-1, size).astype(np.float64)
        count += len(patches)
        total += patches.sum(axis=0)
        products += patches.T @ patches
    mean = total / count
    return mean / 255, (products / count - np.outer(mean, mean)) / 255**2


def kernel(covariance: np.ndarray, channels: int, epsilon: float, turned_back: bool) -> np.ndarray:
    """The kernel (C, C, k, k) float64 that whitens pixels without their mean.

    covariance: of patches, see ``moments``. epsilon: added to each variance, as a share of their mean. turned_back:
    ZCA, whose channels are those of the image, in the middle of the patch; else the components of colours, the one of
    the most variance first, its largest weight positive.
    """
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if not values.mean():
        raise UserError("all training images are of one and the same colour: there is nothing to whiten")
    whitened = (vectors / np.sqrt(values + epsilon * values.mean())).T
    side = round((len(covariance) / channels) ** 0.5)
    if turned_back:
        middle = [channel * side**2 + side**2 // 2 for channel in range(channels)]
        rows = (vectors @ whitened)[middle]
    else:
        largest = np.abs(vectors).argmax(axis=0)
        rows = whitened * np.sign(vectors[largest, np.arange(len(values))])[:, None]
    return rows.reshape(channels, channels, side, side)
