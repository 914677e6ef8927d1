"""A competition's images at one size, from the decoded cache: the training images and the test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import images
from pipeline.competition import Competition
from pipeline.config import Config, root
from pipeline.images import Images
from pipeline.whitening import kernel, moments

if TYPE_CHECKING:
    from pipeline.extra import Extra


@dataclass(frozen=True)
class Pair:
    """Training and test images at one size; broken: rows of training images that do not decode."""

    train: Images
    test: Images

    @property
    def broken(self) -> np.ndarray:
        """Rows of training images that do not decode (with data.skip_broken; else they stop the stage)."""
        return self.train.broken


def training_images(config: Config, competition: Competition) -> Pair:
    """Both stores at the training size."""
    size = config.image_size
    return Pair(train_store(config, competition, size), test_store(config, competition, size))


def train_store(config: Config, competition: Competition, size: int) -> Images:
    """The training images at size × size; those that do not decode stop the stage unless data.skip_broken."""
    broken = "skip" if config.data.skip_broken else "stop"
    return _open(config, competition, competition.train["file"].tolist(), size, broken, "train images")


def test_store(config: Config, competition: Competition, size: int) -> Images:
    """The test images at size × size; those that do not decode are grey, with a warning: see ``Member.tests``."""
    return _open(config, competition, competition.test["file"].tolist(), size, "fill", "test images")


def unlabelled_store(config: Config, competition: Competition, size: int) -> Images:
    """The images of data.unlabelled at size × size; those that do not decode are its ``broken``, with a warning."""
    return _open(config, competition, competition.unlabelled["file"].tolist(), size, "skip", "unlabelled images")


def extra_store(config: Config, outside: Extra) -> Images:
    """The outside images at the training size; those that do not decode stop the stage."""
    return open_files(config, outside.folder, outside.files, config.image_size, "stop", "outside images")


def statistics(config: Config, competition: Competition) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel, in 0…1, of all training images (no label is read)."""
    store = train_store(config, competition, config.image_size)
    mean, std = images.mean_std(store, np.setdiff1d(np.arange(len(store)), store.broken))
    return [float(value) for value in mean], [max(float(value), 1e-3) for value in std]


def whitening(
    config: Config, competition: Competition, *, patch: int, epsilon: float, turned_back: bool
) -> tuple[list[float], list[Any]]:
    """Mean per channel and whitening kernel of the training images' patches (no label is read)."""
    store, channels = train_store(config, competition, config.image_size), config.data.channels
    mean, covariance = moments(store, np.setdiff1d(np.arange(len(store)), store.broken), patch)
    means = mean.reshape(channels, -1).mean(axis=1).tolist()
    return means, kernel(covariance, channels, epsilon, turned_back).tolist()


def _open(config: Config, competition: Competition, files: list[str], size: int, broken: str, label: str) -> Images:
    return open_files(config, competition.folder, files, size, broken, f"{competition.name} {label}")


def open_files(config: Config, folder: Path, files: list[str], size: int, broken: str, label: str) -> Images:
    """Files, relative to folder, at size × size; broken as for ``images.open_cache``."""
    return images.open_cache(
        folder,
        files,
        channels=config.data.channels,
        size=size,
        resize=config.data.resize,
        cache_root=root() / "cache",
        limit_gb=config.data.cache_gb,
        broken=broken,
        label=label,
        reader=config.data.reader,
        limit_pixels=round(config.data.megapixels * 1e6),
        preprocess=config.data.preprocess,
    )
