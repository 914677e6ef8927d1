"""Sizes, models and lengths of training for masks."""

from __future__ import annotations

import math

import numpy as np

from pipeline.discover.draft import Draft
from pipeline.discover.looks import LONG, Looks

STEP = 32  # sides of a network's input are multiples of it
SMALL = 160  # longest side of images that are learned whole, whatever their shapes
WHOLE = 512  # the same, of images about equal in size
ALIKE = 1.25  # largest side over the smallest that is about equal
TILE, LARGE_TILE, LARGE = 256, 512, 1500  # side of a square, and of one of images so large
STEPS = 300  # that a small net needs to get anywhere
MOST_REPEATS = 16
MODELS = ("unet_small", "unet_resnet34")


def settle_sizes(looks: Looks, draft: Draft) -> None:
    """Whether images are learned whole or in squares, and the size of either."""
    sizes = looks.sizes
    longest, alike = int(sizes.max()), bool((sizes.max(axis=0) <= ALIKE * sizes.min(axis=0)).all())
    given = draft.given.get("data.resize")
    if given in (None, "tiles") and (given or (longest > SMALL and not (alike and longest <= WHOLE))):
        sort = "differ" if not alike else "are large"
        draft.set("data.resize", "tiles", f"the images {sort}, {looks.text()}: learned and predicted in squares")
        size = LARGE_TILE if looks.side > LARGE else TILE
        draft.set("image_size", size, "the side of a square")
        repeat = min(MOST_REPEATS, max(1, round(looks.side**2 / draft.value("image_size") ** 2)))
        if repeat > 1 or "tiles.repeat" in draft.given:
            draft.set("tiles.repeat", repeat, "squares of an image an epoch: about its whole area")
        return
    side = float(np.median(sizes.max(axis=1)))
    draft.set("image_size", max(STEP, STEP * math.ceil(side / STEP)), f"about the images' own size: {looks.text()}")
    if looks.stretch >= LONG:
        draft.set("data.resize", "pad", f"images are {looks.stretch:.1f} times as long as short")
    else:
        draft.set("data.resize", "stretch", "small images, or about equal ones: learned whole")


def settle_models(draft: Draft) -> None:
    """A net from random weights, which needs no download, and one from pretrained ones."""
    draft.set(
        "models", list(MODELS),
        f"files of configs/model/; the quick recipe takes the first. {MODELS[0]} begins with random weights, "
        f"{MODELS[1]} with pretrained ones",
    )  # fmt: skip
    why = f"but for {MODELS[0]}: timm's, downloaded once; without a network false, or weights=FILE"
    draft.set("pretrained", True, why)
