"""Masks drawn on images: what is covered changes its colour, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import sheets


def picture(height: int = 40, width: int = 20, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


SQUARE = np.zeros((40, 20), dtype=np.uint8)
SQUARE[10:20, 5:15] = 1


@pytest.mark.parametrize("answer", [SQUARE[None], SQUARE, SQUARE.astype(np.int32)], ids=["bits", "indices", "labels"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_mask_is_tinted_and_outlined_and_the_rest_stays(answer: np.ndarray, channels: int) -> None:
    image = picture(channels=channels)
    alone, drawn = sheets.drawn(image, None, 40), sheets.drawn(image, answer, 40)
    assert drawn.shape == (40, 40, 3)
    assert drawn.dtype == np.uint8
    own = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=2)
    assert np.array_equal(alone[:, 10:30], own), "the image lies in the middle"
    assert (alone[:, :10] == 255).all()
    inside = np.zeros((40, 40), dtype=bool)
    inside[10:20, 15:25] = True
    assert np.array_equal(drawn[~inside], alone[~inside])
    outline = inside.copy()
    outline[11:19, 16:24] = False
    assert (drawn[outline] == sheets.colour(1)).all()
    middle = inside & ~outline
    wanted = (1 - sheets.TINT) * alone[middle] + sheets.TINT * np.array(sheets.colour(1))
    np.testing.assert_allclose(drawn[middle], wanted, atol=0.51)


def test_objects_that_touch_have_colours_of_their_own_and_void_is_veiled() -> None:
    labels = np.zeros((20, 20), dtype=np.int32)
    labels[:10, :10], labels[:10, 10:], labels[15:] = 1, 2, -1
    drawn = sheets.drawn(np.full((20, 20, 3), 200, dtype=np.uint8), labels, 20)
    assert tuple(drawn[5, 9]) == sheets.colour(1)
    assert tuple(drawn[5, 10]) == sheets.colour(2)
    assert (drawn[11:15] == 200).all()
    assert (drawn[15:] == round((1 - sheets.VEIL) * 200 + sheets.VEIL * 128)).all()


def test_planes_that_overlap_are_all_seen() -> None:
    bits = np.zeros((2, 20, 20), dtype=np.uint8)
    bits[0, :12, :12], bits[1, 6:, 6:] = 1, 1
    drawn = sheets.drawn(np.zeros((20, 20, 3), dtype=np.uint8), bits, 20)
    assert tuple(drawn[3, 11]) == sheets.colour(1)
    assert tuple(drawn[6, 15]) == sheets.colour(2)
    assert (drawn[8, 8] > drawn[8, 15]).any(), "both tints"


@pytest.mark.parametrize("size", [(7, 30), (300, 100), (64, 64)])
def test_a_mask_keeps_to_its_place_at_any_size(size: tuple[int, int]) -> None:
    image, answer = np.zeros((*size, 3), dtype=np.uint8), np.ones(size, dtype=np.uint8)
    drawn = sheets.drawn(image, answer, 60)
    assert drawn.shape == (60, 60, 3)
    covered = (drawn != 255).any(axis=2)
    assert (drawn[covered].max(axis=1) > 0).all(), "no pixel of the image is left out"


def test_colours_that_follow_each_other_differ() -> None:
    colours = np.array([sheets.colour(number) for number in range(1, 7)])
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2) + 999 * np.eye(6)
    assert apart.min() > 60


def test_a_page_has_a_row_an_image_and_names_its_colours() -> None:
    tiles = np.zeros((2, 3, 120, 120, 3), dtype=np.uint8)
    plain = sheets.page("heading", ["a", "b", "c"], ["x", "y"], tiles)
    named = sheets.page("heading", ["a", "b", "c"], ["x", "y"], tiles, legend=["cat", "dog"])
    assert plain.width == named.width == sheets.LABEL + 3 * (120 + sheets.GAP) + sheets.GAP
    assert named.height == plain.height + sheets.TEXT + 2 * sheets.GAP
    for number in (1, 2, 3):
        there = (np.asarray(named) == sheets.colour(number)).all(axis=2).any()
        assert there == (number < 3)
    sheets.page("heading", ["a"], ["x"], tiles[:1, :1], legend=["a name that is long"] * 9)  # ends in …
    three = sheets.grid([plain, named, plain])
    assert three.size == (2 * (plain.width + sheets.GAP), 2 * (named.height + 2 * sheets.GAP))
    assert np.array_equal(np.asarray(three)[: plain.height, : plain.width], np.asarray(plain))
    assert sheets.png(three).startswith(b"\x89PNG")
