"""Windows cover every pixel, and what they say is joined as over the whole image at once; crops find what is rare."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import windows as tiles

SIDES, SIZES, OVERLAPS = st.integers(1, 90), st.integers(1, 40), st.floats(0, 0.95)


def joined(
    height: int, width: int, shape: tuple[int, int], overlap: float, values: np.ndarray, batch: int = 3, **how: str
) -> np.ndarray:
    """The map (C, height, width) that Strips writes, of values (n, C, *shape)."""
    written: list[np.ndarray] = []

    def write(top: int, rows: np.ndarray) -> None:
        assert top == sum(one.shape[1] for one in written)
        written.append(rows)

    strips = tiles.Strips(height, width, shape, overlap, write, **how)
    for begin in range(0, len(values), batch):
        strips.add(values[begin : begin + batch])
    strips.close()
    return np.concatenate(written, axis=1)


def slow(
    height: int, width: int, shape: tuple[int, int], overlap: float, values: np.ndarray, border: str
) -> np.ndarray:
    """The same by sums over the whole image, in 0…255, float64."""
    rows, columns = max(height, shape[0]), max(width, shape[1])
    weight = np.outer(*(tiles.weights(own, border).astype(np.float64) for own in shape))
    total, weights = np.zeros((values.shape[1], rows, columns)), np.zeros((rows, columns))
    for (top, left), one in zip(tiles.windows(height, width, shape, overlap), values, strict=True):
        total[:, top : top + shape[0], left : left + shape[1]] += one * weight
        weights[top : top + shape[0], left : left + shape[1]] += weight
    return (255 * total / weights)[:, :height, :width]


# --- where they lie -------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, SIZES, OVERLAPS)
def test_windows_cover_all_and_lie_inside(height: int, width: int, size: int, overlap: float) -> None:
    shape = tiles.window_shape(height, width, size)
    corners = tiles.windows(height, width, shape, overlap)
    assert corners.dtype == np.int64
    assert corners.shape[1] == 2
    seen = np.zeros((height, width), dtype=int)
    for top, left in corners:
        assert 0 <= top <= height - shape[0]
        assert 0 <= left <= width - shape[1]
        seen[top : top + shape[0], left : left + shape[1]] += 1
    assert seen.min() >= 1
    assert [tuple(one) for one in corners] == sorted({tuple(one) for one in corners}), "by rows, each once"


@given(st.integers(1, 300), SIZES, OVERLAPS)
def test_neighbours_overlap_by_the_share_and_none_is_needless(side: int, size: int, overlap: float) -> None:
    begins = tiles.starts(side, min(side, size), overlap)
    window = min(side, size)
    steps = np.diff(begins)
    assert (begins[0], begins[-1]) == (0, side - window)
    if len(steps):
        assert steps.min() >= 1
        assert steps.max() <= max(1, window * (1 - overlap))
        assert begins[-2] < side - window


def test_windows_of_a_known_image() -> None:
    assert tiles.windows(10, 7, (4, 4), 0.5).tolist() == [
        [top, left] for top, left in itertools.product((0, 2, 4, 6), (0, 2, 3))
    ]
    assert tiles.windows(3, 9, (8, 8), 0.25).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"overlap=1.0; allowed: 0 to below 1"):
        tiles.windows(9, 9, (4, 4), 1.0)


def test_small_images_get_a_small_window_that_is_a_multiple() -> None:
    assert tiles.window_shape(500, 70, 128, 32) == (128, 96)
    assert tiles.window_shape(1, 128, 128, 32) == (32, 128)
    with pytest.raises(ValueError, match="windows of 100 px, but the network takes multiples of 32"):
        tiles.window_shape(500, 70, 100, 32)


def test_padding_mirrors_and_keeps_large_images() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert tiles.pad(image, 3, 5).tolist() == [[0, 1, 2, 1, 0], [3, 4, 5, 4, 3], [0, 1, 2, 1, 0]]
    colours = np.stack([image, image + 10], axis=2)
    assert np.array_equal(tiles.pad(colours, 3, 5)[:, :, 1], tiles.pad(image, 3, 5) + 10)
    assert tiles.pad(image[:1, :1], 4, 4).tolist() == [[0] * 4] * 4
    assert tiles.pad(image, 2, 2) is image
    assert tiles.cut(image, (0, 1), (2, 2)).tolist() == [[1, 2], [4, 5]]


# --- joined ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", tiles.BORDERS)
@pytest.mark.parametrize("length", [1, 2, 7, 512])
def test_weights_are_positive_and_symmetric(border: str, length: int) -> None:
    weight = tiles.weights(length, border)
    assert (weight.dtype, weight.shape) == (np.float32, (length,))
    assert 0 < weight.min() <= weight.max() <= 1
    np.testing.assert_allclose(weight, weight[::-1], rtol=1e-6)
    rises = np.diff(weight[: (length + 1) // 2])
    assert (rises == 0).all() if border == "flat" else (rises >= 0).all()
    with pytest.raises(ValueError, match="border=round; allowed: hann, pyramid, flat"):
        tiles.weights(4, "round")


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIZES, OVERLAPS, st.sampled_from(tiles.BORDERS), st.integers(1, 7), st.integers(0, 99))
def test_strips_are_the_sums_over_the_whole_image(
    height: int, width: int, size: int, overlap: float, border: str, batch: int, seed: int
) -> None:
    shape = tiles.window_shape(height, width, size * 4, 4)
    count = len(tiles.windows(height, width, shape, overlap))
    values = np.random.default_rng(seed).random((count, 2, *shape), dtype=np.float32)
    found = joined(height, width, shape, overlap, values, batch, border=border)
    assert (found.dtype, found.shape) == (np.uint8, (2, height, width))
    assert np.abs(found - slow(height, width, shape, overlap, values, border)).max() <= 0.5 + 1e-3


@given(SIDES, SIDES, SIZES, OVERLAPS, st.sampled_from(tiles.BORDERS), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_constant_predictions_give_a_constant_map(
    height: int, width: int, size: int, overlap: float, border: str, level: int
) -> None:
    shape = tiles.window_shape(height, width, size)
    count = len(tiles.windows(height, width, shape, overlap))
    values = np.full((count, 1, *shape), level / 255, dtype=np.float32)
    assert (joined(height, width, shape, overlap, values, border=border) == level).all()


def test_joints_are_smooth() -> None:
    """Two windows that disagree: the map goes from one to the other in small steps, and jumps where all count alike."""
    values = np.stack([np.zeros((1, 32, 32)), np.ones((1, 32, 32))]).astype(np.float32)
    jumps = {
        border: np.abs(np.diff(joined(32, 48, (32, 32), 0.5, values, border=border)[0, 0].astype(int))).max()
        for border in tiles.BORDERS
    }
    assert max(jumps["hann"], jumps["pyramid"]) < 30
    assert jumps["flat"] > 100


def test_wrong_counts_and_shapes_are_refused() -> None:
    strips = tiles.Strips(20, 20, (8, 8), 0.5, lambda top, rows: None)
    with pytest.raises(ValueError, match=r"values of shape \(2, 1, 8, 4\) for 16 windows that are left, each 8 × 8"):
        strips.add(np.zeros((2, 1, 8, 4), dtype=np.float32))
    strips.add(np.zeros((15, 1, 8, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="15 of 16 windows were given"):
        strips.close()
    with pytest.raises(ValueError, match="for 1 windows that are left"):
        strips.add(np.zeros((2, 1, 8, 8), dtype=np.float32))


def test_memory_does_not_grow_with_the_height() -> None:
    def peak(height: int) -> int:
        strips = tiles.Strips(height, 256, (64, 64), 0.25, lambda top, rows: None)
        values = np.zeros((4, 1, 64, 64), dtype=np.float32)
        left = len(strips.corners)
        tracemalloc.start()
        while left:
            strips.add(values[: min(4, left)])
            left -= min(4, left)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    low, high = peak(512), peak(8192)
    assert high < 1.2 * low
    assert low < 6 * 4 * 64 * 256


# --- crops ----------------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, SIZES, st.floats(0, 1), st.integers(0, 999))
def test_crops_lie_inside_and_are_repeatable(height: int, width: int, size: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random((2, height, width)) < 0.05).astype(np.uint8)
    runs = tiles.foreground_runs(truth)
    for draw in (
        lambda generator: tiles.random_crop(generator, height, width, (size, size)),
        lambda generator: tiles.balanced_crop(generator, height, width, (size, size), runs, share),
    ):
        top, left = draw(np.random.default_rng(seed))
        assert 0 <= top <= max(0, height - size)
        assert 0 <= left <= max(0, width - size)
        assert draw(np.random.default_rng(seed)) == (top, left)


def test_every_place_of_a_random_crop_is_as_likely() -> None:
    generator = np.random.default_rng(0)
    found = np.array([tiles.random_crop(generator, 12, 10, (8, 8)) for _ in range(6000)])
    counts = np.bincount(found[:, 0] * 3 + found[:, 1], minlength=15)
    assert len(counts) == 15
    assert (np.abs(counts - 400) < 100).all()


def test_balanced_crops_are_centred_on_each_class_as_often() -> None:
    truth = np.zeros((80, 100), dtype=np.uint8)
    truth[40:70, 20:80] = 1
    truth[30, 50] = 2  # one pixel
    truth[0, 0] = 255
    runs = tiles.foreground_runs(truth)
    assert [int(one[:, 1].sum()) for one in runs] == [1800, 1]
    generator = np.random.default_rng(0)
    middles = [tiles.balanced_crop(generator, 80, 100, (11, 11), runs, share=1.0) for _ in range(2000)]
    classes = np.array([truth[top + 5, left + 5] for top, left in middles])
    assert set(classes.tolist()) == {1, 2}
    assert 0.45 < (classes == 2).mean() < 0.55
    ones = np.array([(top + 5, left + 5) for (top, left), one in zip(middles, classes, strict=True) if one == 1])
    np.testing.assert_allclose(ones.mean(axis=0), [54.5, 49.5], atol=1.5)
    assert (ones.min(axis=0) <= [41, 22]).all()


def test_the_share_decides_how_often_a_rare_pixel_is_seen() -> None:
    truth = np.zeros((3, 200, 200), dtype=np.uint8)
    truth[1, 199, 0] = 1
    runs = tiles.foreground_runs(truth)
    assert len(runs) == 1
    generator = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        corners = [tiles.balanced_crop(generator, 200, 200, (32, 32), runs, share) for _ in range(1000)]
        seen = np.mean([corner == (168, 0) for corner in corners])
        assert abs(seen - share) < 0.06
    assert tiles.balanced_crop(generator, 20, 20, (32, 32), [], 1.0) == (0, 0)


def test_foreground_of_each_kind_of_truth() -> None:
    labels = np.array([[0, 3, 3], [-1, 0, 7]], dtype=np.int32)
    assert [one.tolist() for one in tiles.foreground_runs(labels)] == [[[1, 2]], [[5, 1]]]
    indices = np.array([[255, 1, 0], [1, 2, 2]], dtype=np.uint8)
    assert [one.tolist() for one in tiles.foreground_runs(indices)] == [[[1, 1], [3, 1]], [[4, 2]]]
    bits = np.array([[[0, 1]], [[255, 0]]], dtype=np.uint8)
    assert [one.tolist() for one in tiles.foreground_runs(bits)] == [[[1, 1]]]
