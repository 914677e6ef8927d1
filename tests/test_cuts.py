"""Cuts against slow references: flood fills in plain Python, pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from pipeline import registry
from pipeline.errors import UserError

CORNERS = [(y, x) for y, x in itertools.product((-1, 0, 1), repeat=2) if (y, x) != (0, 0)]
SIDES = [(0, 1), (1, 0), (0, -1), (-1, 0)]
SEEDS = range(5)
Place = tuple[int, int]


def cut(call: str, values: np.ndarray) -> np.ndarray:
    return registry.build("cuts", call)()(values)


def smooth(seed: int, planes: int = 2, size: tuple[int, int] = (24, 31), sigma: float = 1.5) -> np.ndarray:
    """Blobs of probabilities (planes, H, W) float32 that fill 0…1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((planes, *size)), (0, sigma, sigma))
    low, high = noise.min(axis=(1, 2), keepdims=True), noise.max(axis=(1, 2), keepdims=True)
    return ((noise - low) / (high - low)).astype(np.float32)


def slow_components(mask: np.ndarray, steps: list[Place]) -> list[set[Place]]:
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        edge = [left.pop()]
        one = set(edge)
        while edge:
            y, x = edge.pop()
            for v, u in ((y + dy, x + dx) for dy, dx in steps):
                if (v, u) in left:
                    left.remove((v, u))
                    one.add((v, u))
                    edge.append((v, u))
        found.append(one)
    return found


def slow_cleaned(mask: np.ndarray, least: float, most: float) -> np.ndarray:
    mask = mask.copy()
    height, width = mask.shape
    for hole in slow_components(~mask, SIDES):
        inner = all(0 < y < height - 1 and 0 < x < width - 1 for y, x in hole)
        if inner and len(hole) <= most:
            mask[tuple(zip(*hole, strict=True))] = True
    for one in slow_components(mask, CORNERS):
        if len(one) < least:
            mask[tuple(zip(*one, strict=True))] = False
    return mask


def sets(labels: np.ndarray) -> set[frozenset[Place]]:
    return {
        frozenset(map(tuple, np.argwhere(labels == number).tolist())) for number in range(1, labels.max(initial=0) + 1)
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("least", "most"), [(0, 0), (12, 0), (0, 9), (20, 6), (1, 1000)])
def test_threshold_is_the_slow_one(seed: int, least: int, most: int) -> None:
    values = smooth(seed)
    found = cut(f"threshold(level=[0.4, 0.6], min_size={least}, holes={most})", values)
    for plane, level, one in zip(values, (0.4, 0.6), found, strict=True):
        np.testing.assert_array_equal(one, slow_cleaned(plane >= np.float32(level), least, most))


def test_a_size_below_one_is_a_share_of_the_area() -> None:
    values = smooth(1, size=(20, 30))
    share = cut("threshold(min_size=0.03, holes=0.01)", values)
    np.testing.assert_array_equal(share, cut("threshold(min_size=18, holes=6)", values))
    assert (share != cut("threshold()", values)).any()


def test_gate_empties_the_planes_that_never_reach_it() -> None:
    values = smooth(0) * np.array([0.7, 0.9], np.float32)[:, None, None]
    found = cut("threshold(gate=0.8, level=0.3)", values)
    assert not found[0].any()
    np.testing.assert_array_equal(found[1], values[1] >= np.float32(0.3))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("least", [0, 10])
def test_argmax_is_the_slow_one(seed: int, least: int) -> None:
    values = smooth(seed, planes=3)
    values /= values.sum(axis=0)
    weighted = values.astype(np.float64) * np.exp([0.0, -0.5, 0.3])[:, None, None]
    expected = weighted.argmax(axis=0)
    ranks = (-weighted).argsort(axis=0)
    dropped = np.zeros(expected.shape, bool)
    for number in range(3):
        dropped |= (expected == number) & ~slow_cleaned(expected == number, least, 0)
    expected[dropped] = ranks[1][dropped]
    np.testing.assert_array_equal(cut(f"argmax(bias=[-0.5, 0.3], min_size={least})", values), expected)
    np.testing.assert_array_equal(cut("argmax(bias=0.2)", values), cut("argmax(bias=[0.2, 0.2])", values))


@pytest.mark.parametrize("seed", SEEDS)
def test_components_are_the_slow_ones(seed: int) -> None:
    values = smooth(seed)
    labels = cut("components(level=0.55, min_size=8, holes=5)", values)
    expected = slow_components(slow_cleaned(values[0] >= np.float32(0.55), 8, 5), CORNERS)
    assert sets(labels) == {frozenset(one) for one in expected}


def discs(middles: list[Place], radius: float, size: Place = (40, 60)) -> tuple[np.ndarray, np.ndarray]:
    """Labels of discs, the later before the earlier, and the probabilities of their insides and borders."""
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.int32)
    for number, (top, left) in enumerate(middles, 1):
        labels[(y - top) ** 2 + (x - left) ** 2 <= radius**2] = number
    border = (labels > 0) & (ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3))
    return labels, np.stack([labels > 0, border]).astype(np.float32)


@pytest.mark.parametrize("by", ["border", "distance", "shape"])
def test_watershed_parts_what_touches_and_components_does_not(by: str) -> None:
    labels, values = discs([(12, 12), (12, 28), (12, 44), (30, 12)], 8.6)
    if by == "distance":
        depth = ndimage.distance_transform_edt(labels > 0)
        values[1] = depth / depth.max()
    given = values[:1] if by == "shape" else values
    found = cut(f"watershed(by={by!r}, seed_level={0.5 if by == 'border' else 0.85})", given)
    assert found.dtype == np.int32
    assert found.max() == 4
    assert cut("components()", values).max() < 4
    np.testing.assert_array_equal(found > 0, labels > 0)
    for number in range(1, 5):
        other = np.bincount(found[labels == number]).argmax()
        both, either = ((found == other) & (labels == number)).sum(), ((found == other) | (labels == number)).sum()
        assert both / either > 0.9


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by", ["border", "distance", "shape"])
def test_watershed_parts_components_and_leaves_nothing_out(seed: int, by: str) -> None:
    values = smooth(seed, size=(40, 40))
    found, whole = cut(f"watershed(by={by!r}, seed_level=0.6)", values), cut("components()", values)
    np.testing.assert_array_equal(found > 0, whole > 0)
    for number in range(1, found.max() + 1):
        assert len(set(whole[found == number].tolist())) == 1, "an object lies in one component"
    few = cut(f"watershed(by={by!r}, seed_level=0.6, min_size=9)", values)
    assert sets(few) == {one for one in sets(found) if len(one) >= 9}
    none = cut(f"watershed(by={by!r}, seed_level=1, seed_size=1000)", values)
    assert sets(none) == sets(whole), "without seeds components stay whole"


def test_lists_of_a_wrong_length_and_a_missing_plane_are_refused() -> None:
    values = smooth(0)
    with pytest.raises(UserError, match=r"threshold\(level\) is a list of 3, but there are 2 classes"):
        cut("threshold(level=[0.1, 0.2, 0.3])", values)
    with pytest.raises(UserError, match=r"argmax\(bias\) is a list of 2, but there are 1 classes"):
        cut("argmax(bias=[0.1, 0.2])", values)
    with pytest.raises(UserError, match="by='shape'"):
        cut("watershed()", values[:1])
