"""One pass over all images, which keeps a small record of each: sizes, a digest, statistics and a tiny picture.

Memory: about 200 bytes an image; the tiny pictures (1.2 KB each) lie in a temporary file that the system may page out.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline import images
from pipeline.console import progress
from pipeline.hardware import physical_cores

SIDE = 32  # side of the tiny grey picture
COLOUR_SIDE = 8  # side of the tiny picture in colour
LOOK_SIDE = 64  # shorter side at which statistics are taken; a JPEG decodes quickly at such sizes
BLOCK = 64  # images a thread reads at a time
STATISTICS = ("red", "green", "blue", "contrast", "saturation", "sharpness", "dark", "bright")


@dataclass
class Survey:
    """What was seen of N images, the training rows first.

    size: (N, 2) width and height; channels: (N,); statistics: (N, 8) float32 as named in STATISTICS, grey levels
    0–255 but for the shares dark and bright; constant: (N,) bool; digest: (N,) of size and pixels; grey, colour: tiny
    pictures, uint8; broken: row → reason. moments: (3, C) sums over the training images: of ones, of each channel's
    mean and of its mean square, in 0…1.
    """

    ids: list[str]
    files: list[str]
    train: int
    size: np.ndarray
    channels: np.ndarray
    statistics: np.ndarray
    constant: np.ndarray
    digest: np.ndarray
    grey: np.ndarray
    colour: np.ndarray
    broken: dict[int, str] = field(default_factory=dict)
    moments: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def good(self) -> np.ndarray:
        """(N,) bool: the images that decode."""
        good = np.ones(len(self), dtype=bool)
        good[list(self.broken)] = False
        return good

    @property
    def is_train(self) -> np.ndarray:
        """(N,) bool."""
        mask: np.ndarray = np.arange(len(self)) < self.train
        return mask

    @property
    def contrast(self) -> np.ndarray:
        """(N,) float32: standard deviation of the grey levels."""
        contrast: np.ndarray = self.statistics[:, STATISTICS.index("contrast")]
        return contrast

    def name(self, row: int) -> str:
        """The id of a row."""
        return self.ids[row]


Look = Callable[[str], images.Look]  # spec → width, height, channels and (h, w, C) uint8 pixels, or BrokenImage


def read(look: Look, train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], channels: int = 3) -> Survey:
    """Look at every image once, in threads; train, test: (id, spec) pairs; channels: those that training reads."""
    pairs = [*train, *test]
    count = len(pairs)
    survey = Survey(
        [pair[0] for pair in pairs], [pair[1] for pair in pairs], len(train),
        np.zeros((count, 2), dtype=np.int32), np.zeros(count, dtype=np.int16),
        np.zeros((count, len(STATISTICS)), dtype=np.float32), np.zeros(count, dtype=bool),
        np.zeros(count, dtype=np.uint64),
        _paged(count, SIDE, SIDE), _paged(count, COLOUR_SIDE, COLOUR_SIDE, 3), moments=np.zeros((3, channels)),
    )  # fmt: skip
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    with progress("reading images", count) as advance, ThreadPoolExecutor(physical_cores()) as pool:
        try:
            work = pool.map(lambda block: _block(survey, look, block, channels), blocks)
            for block, added in zip(blocks, work, strict=True):  # added in the order of the rows: the same in every run
                survey.moments += added
                advance(len(block))
        finally:
            pool.shutdown(cancel_futures=True)
    survey.broken = dict(sorted(survey.broken.items()))
    return survey


def _paged(*shape: int) -> np.ndarray:
    """Zeros in a file without a name, which goes when the array does; in memory where the disk has no room."""
    size = math.prod(shape)
    with contextlib.suppress(OSError), tempfile.TemporaryFile() as handle:
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(handle.fileno(), 0, size)  # a page that finds no room later would end the process
            return np.memmap(handle, np.uint8, "r+", shape=shape)
    return np.zeros(shape, dtype=np.uint8)


def _block(survey: Survey, look: Look, block: range, channels: int) -> np.ndarray:
    """Look at some rows and fill in their records; (3, channels) sums over the training images, as in Survey."""
    moments = np.zeros((3, channels))
    for row in block:
        file = survey.files[row]
        try:
            seen = look(file)
        except images.BrokenImage as fault:
            survey.broken[row] = fault.reason
            continue
        cropped = images.BOX in file  # then the picture is what the box shows
        survey.size[row] = seen.pixels.shape[1::-1] if cropped else (seen.width, seen.height)
        survey.channels[row] = seen.channels
        survey.digest[row] = _digest(seen)
        mean, square = _describe(survey, row, seen.pixels, channels)
        if row < survey.train and len(mean) == channels:
            moments += np.stack([np.ones(channels), mean, square])
    return moments


def _digest(seen: images.Look) -> int:
    hasher = hashlib.blake2b(f"{seen.width}×{seen.height}×{seen.channels}".encode(), digest_size=8)
    hasher.update(np.ascontiguousarray(seen.pixels).data)
    return int.from_bytes(hasher.digest())


def _describe(survey: Survey, row: int, pixels: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill in statistics and tiny pictures of (h, w, C) pixels; mean and mean square of the channels, in 0…1."""
    cv2 = images.opencv()
    small = _shrunk(pixels)
    coloured = small.shape[2] >= 3
    colour = np.ascontiguousarray(small[..., :3]) if coloured else small[..., 0]
    mean, deviation = _moments(small)
    grey = _grey(colour, deviation) if coloured else colour
    survey.grey[row] = _resized(grey, SIDE)
    tint = _resized(colour, COLOUR_SIDE)
    survey.colour[row] = tint if coloured else tint[..., None]
    saturation = float((tint.max(axis=2) - tint.min(axis=2)).mean()) if coloured else 0.0
    sharpness = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1].item()
    counts = cv2.calcHist([grey], [0], None, [8], [0, 256]).ravel() / grey.size
    survey.constant[row] = (pixels == pixels[:1, :1]).all()
    contrast = cv2.meanStdDev(grey)[1].item()
    survey.statistics[row] = *mean[[0, len(mean) // 2, -1]][:3], contrast, saturation, sharpness, counts[0], counts[7]
    if channels == 1 and coloured:
        mean, deviation = _moments(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)[..., None])
    elif channels == 3 and not coloured:
        mean, deviation = mean[[0, 0, 0]], deviation[[0, 0, 0]]
    return mean / 255, (deviation**2 + mean**2) / 255**2


def _grey(colour: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Brightness; the most varied channel where only colours vary."""
    grey: np.ndarray = images.opencv().cvtColor(colour, images.opencv().COLOR_RGB2GRAY)
    varied = int(deviation[:3].argmax())
    return grey if grey.std() > deviation[varied] / 8 else np.ascontiguousarray(colour[..., varied])


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (h, w, C), float64."""
    parts = [images.opencv().meanStdDev(pixels[..., k]) for k in range(pixels.shape[2])]
    return np.array([mean.item() for mean, _ in parts]), np.array([deviation.item() for _, deviation in parts])


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """The pixels at a shorter side of LOOK_SIDE, or as they are where they are smaller; (h, w, C)."""
    height, width = pixels.shape[:2]
    factor = LOOK_SIDE / min(height, width)
    if factor >= 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    cv2 = images.opencv()
    if pixels.shape[2] <= 4:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    planes = [cv2.resize(pixels[..., k], size, interpolation=cv2.INTER_AREA) for k in range(pixels.shape[2])]
    return np.stack(planes, axis=2)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side, …): averaged along a side that shrinks, interpolated along one that grows."""
    cv2 = images.opencv()
    height, width = image.shape[:2]
    if max(height, width) > side:
        image = cv2.resize(image, (min(width, side), min(height, side)), interpolation=cv2.INTER_AREA)
    return image if image.shape[:2] == (side, side) else cv2.resize(image, (side, side))
