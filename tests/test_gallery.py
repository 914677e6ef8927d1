"""The sheet of the best, median and worst masks: which images it shows, and that their masks are seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline import gallery, sheets


def test_groups_are_the_ends_and_the_middle_and_empty_images_stand_apart() -> None:
    gains = np.array([0.1, np.nan, 0.9, 0.5, 1.0, 0.0, 0.3, 0.7, 0.6])
    covered = np.array([0.2, 0.2, 0.1, 0.3, 0.0, 0.0, 0.2, 0.1, 0.1])
    groups = {name: rows.tolist() for name, rows in gallery.picks(gains, covered, each=2).items()}
    assert groups == {"best": [2, 7], "median": [8, 3], "worst": [6, 0], "worst of 2 empty images": [4, 5]}


def test_few_images_fill_what_they_can() -> None:
    assert gallery.picks(np.array([np.nan]), np.ones(1)) == {}
    one = gallery.picks(np.array([0.5]), np.ones(1))
    assert {name: rows.tolist() for name, rows in one.items()} == {"best": [0], "median": [0], "worst": [0]}
    assert list(gallery.picks(np.array([0.5]), np.zeros(1))) == ["worst of 1 empty images"]


@dataclass
class Masks:
    number: int

    def one(self, row: int) -> np.ndarray:
        found = np.zeros((1, 20, 30), dtype=np.uint8)
        found[0, 5:15, 5:15] = self.number
        return found


def test_masks_are_drawn_beside_their_image() -> None:
    groups = {"best": np.array([0]), "worst": np.array([1])}
    made = gallery.sheet(
        "dice()", ["a" * 40, "b"], np.array([1.0, 0.25]), groups, lambda row: np.full((20, 30, 3), 99, dtype=np.uint8),
        Masks(1), Masks(0),
    )  # fmt: skip
    pixels = np.asarray(made)
    wide = sheets.LABEL + 3 * (gallery.SIDE + sheets.GAP) + sheets.GAP
    assert pixels.shape[1] == 2 * (wide + sheets.GAP)
    step = gallery.SIDE + sheets.GAP
    for page in range(2):
        for place, masked in enumerate((False, True, False)):
            left = page * (wide + sheets.GAP) + sheets.LABEL + place * step
            tile = pixels[2 * (sheets.TEXT + 2 * sheets.GAP) :, left : left + gallery.SIDE][: gallery.SIDE]
            assert (tile == 99).all(axis=2).any()
            assert (tile == sheets.colour(1)).all(axis=2).any() == masked
    assert isinstance(made, Image.Image)
