"""How the images look: their sizes, whether they are grey, and which box cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline import images
from pipeline.discover.columns import find_box
from pipeline.discover.draft import Draft
from pipeline.discover.rows import Rows
from pipeline.errors import UserError, some
from pipeline.patterns import COVERED

MOST = 500  # images that are looked at
LEAST = 40  # of them even if they are large
PIXELS = 300e6  # pixels after which no more are looked at
LONG = 1.8  # the longer side over the shorter one from which a square changes much
GREY = 3  # levels by which the colours of a grey picture may differ, after a JPEG's rounding
CLOSE = 64  # shorter side to which a JPEG may shrink for a look at its colours


@dataclass
class Looks:
    """What a sample of the images showed.

    sizes: (n, 2) width and height. channels: the usual number. coloured: images that are not grey in content.
    bits: the most a channel. count: images that were looked at. broken: those that do not decode, with the reason.
    """

    sizes: np.ndarray
    channels: int
    coloured: int
    bits: int
    count: int
    broken: list[str] = field(default_factory=list)

    @property
    def side(self) -> float:
        """The median of the geometric mean of width and height, in pixels."""
        return float(np.median(np.sqrt(self.sizes.prod(axis=1))))

    @property
    def stretch(self) -> float:
        """The median of the longer side over the shorter one."""
        return float(np.median(self.sizes.max(axis=1) / self.sizes.min(axis=1)))

    def text(self) -> str:
        """Sizes as people say them."""
        low, high = self.sizes.min(axis=0), self.sizes.max(axis=0)
        if (low == high).all():
            return f"{low[0]}×{low[1]} px"
        middle = np.median(self.sizes, axis=0).astype(int)
        return f"{low[0]}×{low[1]} to {high[0]}×{high[1]} px, the median {middle[0]}×{middle[1]}"


def look(rows: Rows, draft: Draft) -> Looks:
    """Look at up to 500 images, spread over all training rows; UserError if none of them decodes."""
    specs = list(dict.fromkeys(rows.specs))
    sample = specs[:: max(1, len(specs) // MOST)][:MOST]
    reader = draft.given.get("data.reader", "auto()")
    limit = int(draft.given.get("data.megapixels", 268.0) * 1e6)
    found, broken = _seen(rows.folder.path, sample, reader, limit)
    if not found:
        raise UserError(
            f"none of {len(broken)} images decodes: {some(broken, 3)}; download them again, or set data.reader"
        )
    sizes = np.array([(seen.width, seen.height) for seen in found])
    usual = sorted(seen.channels for seen in found)[len(found) // 2]
    return Looks(sizes, usual, sum(seen.colour for seen in found), max(seen.bits for seen in found), len(found), broken)


class _Seen(NamedTuple):
    """What is kept of one image: no pixels, since they may be many."""

    width: int
    height: int
    channels: int
    bits: int
    colour: bool


def _seen(folder: Path, specs: Sequence[str], reader: str, limit: int) -> tuple[list[_Seen], list[str]]:
    found: list[_Seen] = []
    broken: list[str] = []
    pixels = 0.0
    for spec in specs:
        try:
            view = images.look(spec, folder, reader=reader, limit_pixels=limit, at_least=CLOSE)
        except images.BrokenImage as fault:
            broken.append(str(fault))
            continue
        found.append(_Seen(*view[:4], view.channels > 4 or not is_grey(view.pixels)))
        pixels += view.width * view.height
        if pixels > PIXELS and len(found) >= LEAST:
            break
    return found, broken


def is_grey(pixels: np.ndarray) -> bool:
    """Whether (H, W, C) uint8 pixels show no colour."""
    colours = pixels[:: max(1, pixels.shape[0] // 256), :: max(1, pixels.shape[1] // 256), :3].astype(np.int16)
    return colours.shape[2] < 3 or bool(np.quantile(np.ptp(colours, axis=2), 0.995) <= GREY)


def settle_images(rows: Rows, looks: Looks, draft: Draft, boxes: bool = True) -> None:
    """Channels and box. boxes: whether images may be cropped to boxes."""
    if len(rows.matched.patterns) > 1:
        draft.set("data.channels", len(rows.matched.patterns), "one for each of data.files")
    elif looks.channels not in (1, 3, 4):
        draft.set("data.channels", looks.channels, f"so many in the files; {looks.text()}")
    elif not looks.coloured:
        draft.set("data.channels", 1, f"the {looks.count} images looked at are grey; {looks.text()}")
    else:
        why = f"{looks.coloured} of {looks.count} images looked at have colour; {looks.text()}"
        draft.set("data.channels", 3, why)
    if looks.stretch >= LONG:
        why = f"images are {looks.stretch:.1f} times as long as short: pad keeps their shape, at a black border"
        draft.propose("data.resize", "pad", why)
    if looks.bits == 16:
        draft.notes.append("some images have 16 bits a channel; they become 8")
    if looks.broken:
        draft.notes.append(
            f"{len(looks.broken)} of {looks.count + len(looks.broken)} images looked at do not decode: "
            f"{some(looks.broken, 2)}; stage=check finds all, data.skip_broken=true leaves them out"
        )
    if boxes:
        _settle_box(rows, draft)


def _settle_box(rows: Rows, draft: Draft) -> None:
    form, names = find_box(rows.table)
    if not names or "data.box" in draft.given:
        return
    corners = rows.table[names].apply(pd.to_numeric, errors="coerce")
    if corners.max(axis=None) <= 1:
        draft.notes.append(f"{some(names)} look like a box in shares of the image, not in pixels: not used")
        return
    if rows.test_table is None or not set(names) <= set(rows.test_table.columns):
        draft.notes.append(f"{some(names)} look like a box, but the test rows have none: not used")
        return
    if rows.table[rows.id].nunique() < COVERED * len(rows.table):
        draft.notes.append(f"{some(names)} look like a box, but there are several rows an image: not used")
        return
    draft.set("data.box", names, "a box in both tables: images are cropped to it; [] leaves them whole")
    draft.set(
        "data.box_form", form, "by the columns' names: " + ("two corners" if form == "xyxy" else "a corner and sizes")
    )
    draft.set("data.margin", 0.1, "rim around the box, as a share of its longer side")
