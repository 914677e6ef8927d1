"""Descriptors: the contract of each, and slow references: scikit-image's HOG, counting pixel by pixel, word by word."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.feature import hog as slow_hog

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import descriptors

HAND_MADE = [name for name in registry.parts("descriptors") if name != "backbone"]


def pictures(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    """Blurred noise, so that edges run all ways."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (count, size, size, channels)).astype(np.float32)
    smooth = [cv2.GaussianBlur(image, (0, 0), 1.5).reshape(size, size, channels) for image in noise]
    wide = np.stack(smooth) - 128
    return np.clip(128 + 4 * wide, 0, 255).astype(np.uint8)


class Store:
    """Images in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.asked = images, []

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.asked += rows.tolist()
        return self.images[rows]


def nothing(store, rows):
    raise AssertionError("only backbone() asks the network")


def build(call: str):
    return registry.build("descriptors", call)(nothing)


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_each_image_has_its_own_numbers(name, channels, monkeypatch):
    part = build(name)
    assert part.size > 0
    store = Store(pictures(9, part.size, channels))
    part.fit(store, np.arange(6), np.random.default_rng(0))
    monkeypatch.setattr(descriptors, "BLOCK", 4)
    found = part.rows(store, np.array([8, 0, 3, 1, 2]))
    assert found.dtype == np.float32
    assert found.ndim == 2
    assert np.isfinite(found).all()
    assert found.std(axis=0).max() > 0
    alone = [part.describe(store.images[row : row + 1])[0] for row in (8, 0, 3, 1, 2)]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert len(part.rows(store, np.arange(0))) == 0
    black = part.describe(np.zeros((1, part.size, part.size, channels), dtype=np.uint8))
    assert np.isfinite(black).all()


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (64, {"orientations": 9, "cell": 8, "block": 2}),
        (32, {"orientations": 9, "cell": 4, "block": 2}),
        (30, {"orientations": 6, "cell": 4, "block": 3}),
        (24, {"orientations": 7, "cell": 5, "block": 1}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_hog_is_that_of_scikit_image(size, settings, channels):
    images = pictures(4, size, channels)
    arguments = ", ".join(f"{key}={value}" for key, value in settings.items())
    found = build(f"hog({arguments}, size={size})").describe(images)
    side = {"pixels_per_cell": [settings["cell"]] * 2, "cells_per_block": [settings["block"]] * 2}
    slow = [slow_hog(one, settings["orientations"], block_norm="L2-Hys", channel_axis=2, **side) for one in images]
    np.testing.assert_allclose(found, slow, atol=2e-5)


def test_the_default_hog_is_that_of_scikit_image_too():
    images = pictures(2, 64, 3, seed=1)
    slow = [slow_hog(one, channel_axis=2, cells_per_block=(2, 2)) for one in images]
    np.testing.assert_allclose(build("hog").describe(images), slow, atol=2e-5)


@pytest.mark.parametrize(("channels", "each"), [(1, 8), (3, 2), (5, 8)])
def test_colour_histogram_counts_pixels(channels, each):
    images = pictures(3, 6, channels)
    found = build("colour_histogram(bins=8, regions=2, size=6)").describe(images)
    for image, row in zip(images, found, strict=True):
        slow = []
        for top in (0, 3):
            for left in (0, 3):
                part = image[top : top + 3, left : left + 3].reshape(9, channels).tolist()
                if channels <= 3:
                    count = [0] * each**channels
                    for pixel in part:
                        count[sum((value * each // 256) * each**place for place, value in enumerate(pixel))] += 1
                    slow += count
                else:
                    for channel in range(channels):
                        slow += [sum(pixel[channel] * 8 // 256 == cell for pixel in part) for cell in range(8)]
        np.testing.assert_allclose(row, np.sqrt(np.array(slow) / 9), atol=1e-6)


def test_raw_pixels_are_the_pixels():
    images = pictures(2, 4, 3)
    np.testing.assert_allclose(build("raw_pixels(size=4)").describe(images), images.reshape(2, -1) / 255, atol=1e-6)


def test_visual_words_of_one_image_patch_by_patch():
    part = build("visual_words(words=5, patch=4, stride=2, regions=2, size=10)")
    store = Store(pictures(8, 10, 2))
    part.fit(store, np.arange(6), np.random.default_rng(0))
    assert part.book.shape == (5, 32)
    slow = np.zeros((2, 2, 5))
    for row in range(4):
        for column in range(4):
            patch = store.images[7, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4].astype(float)
            flat = patch.transpose(2, 0, 1).reshape(-1)
            flat = (flat - flat.mean()) / np.sqrt(flat.var() + 10)
            far = [float(np.linalg.norm((flat - part.centre) @ part.whitening - word)) for word in part.book]
            slow[row // 2, column // 2] += [max(0.0, np.mean(far) - one) for one in far]
    np.testing.assert_allclose(part.describe(store.images[7:8])[0], slow.reshape(-1) / 16, atol=1e-3)


def test_the_codebook_comes_from_the_rows_given_and_is_the_same_again():
    store = Store(pictures(20, 16, 1))
    books = []
    for _ in range(2):
        part = build("visual_words(words=6, size=16)")
        part.fit(store, np.array([3, 5, 7, 11]), np.random.default_rng(1))
        books.append(part.book)
    assert set(store.asked) == {3, 5, 7, 11}
    assert (books[0] == books[1]).all()
    few = build("visual_words(words=500, size=8, patch=4)")
    few.fit(Store(pictures(2, 8, 1)), np.arange(2), np.random.default_rng(0))
    assert len(few.book) == 18, "no more words than patches"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("hog(cell=20, block=4)", "must fit into the image"),
        ("colour_histogram(regions=9, size=8)", "must hold a pixel"),
        ("visual_words(patch=40)", "too few patches"),
        ("visual_words(size=8, regions=3)", "too few patches"),
    ],
)
def test_arguments_that_do_not_go_together(call, says):
    with pytest.raises(UserError, match=says):
        build(call)
