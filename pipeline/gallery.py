"""The best, median and worst of the predicted masks beside the truth, since a score does not say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.sheets import drawn, grid, page, short

EACH = 4  # images of each group
SIDE = 168  # of a tile


def picks(gains: np.ndarray, covered: np.ndarray, each: int = EACH) -> dict[str, np.ndarray]:
    """The rows of each group, the best first: best, median and worst of the images with a mask, worst of the empty.

    gains: (N,) float64, more is better; rows of NaN are in none. covered: (N,) the share of an image that has a mask.
    Empty images are apart, since they are right or wrong as a whole, and would fill both ends.
    """
    known = ~np.isnan(gains)
    full, empty = (np.flatnonzero(known & one) for one in (covered > 0, covered <= 0))
    order, others = (rows[np.argsort(-gains[rows], kind="stable")] for rows in (full, empty))
    each = min(each, max(1, len(order) // 3))
    middle, last = max(0, (len(order) - each) // 2), max(0, len(order) - each)
    groups = {"best": order[:each], "median": order[middle : middle + each], "worst": order[last:]}
    groups |= {f"worst of {len(others)} empty images": others[max(0, len(others) - each) :]}
    return {name: rows for name, rows in groups.items() if len(rows)}


def sheet(
    heading: str, ids: Sequence[str], scores: np.ndarray, groups: dict[str, np.ndarray],
    image: Callable[[int], np.ndarray], truth: Any, answers: Any, legend: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A Pillow image: the groups, of each row its image, the truth and the prediction.

    ids, scores: of the N images. image: row → (H, W, C) uint8 at its own size. truth, answers: give the mask of that
    size by ``one(row)``. legend: names of the classes.
    """
    pages = []
    for name, rows in groups.items():
        tiles = [_row(image(int(row)), truth.one(int(row)), answers.one(int(row))) for row in rows]
        labels = [f"{short(str(ids[row]))}\n{scores[row]:.4f}" for row in rows]
        title = name if pages else f"{name} · {heading}"
        pages.append(page(title, ["image", "truth", "prediction"], labels, np.array(tiles), legend=legend, side=SIDE))
    return grid(pages)


def _row(image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(3, SIDE, SIDE, 3) uint8."""
    return np.stack([drawn(image, None, SIDE), drawn(image, truth, SIDE), drawn(image, answer, SIDE)])
