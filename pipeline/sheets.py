"""Pages of pictures with their names beside them, and masks drawn on images: what people judge by eye."""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.forms import VOID
from pipeline.pictures import opencv, pillow

TILE = 112  # smallest side of a picture on the page; smaller ones are enlarged by whole numbers
LARGEST = 160
GAP, TEXT, LABEL = 6, 13, 150  # pixels: between tiles, of the letters, of the column at the left
LETTERS = 20  # on a line of that column, or below a tile
TINT, VEIL = 0.3, 0.6  # how much of a mask's colour lies on what it covers, of grey on what is void
FIRST = 0.9  # hue of the first colour: photographs hold little magenta
GOLDEN = 0.618034  # of the circle of hues, from one colour to the next: any few that follow each other differ

# --- pages --------------------------------------------------------------------------------------------------------


def page(
    heading: str, names: Sequence[str], labels: Sequence[str], tiles: np.ndarray,
    captions: Sequence[Sequence[str]] = (), legend: Sequence[str] = (), side: int = 0,
) -> Any:  # fmt: skip
    """A Pillow image: the heading, and for each of (n, m, S, S, C) tiles' rows its label, its images, their captions.

    names: of the m columns. legend: names of the colours that ``drawn`` gives to the numbers from 1 on. side: of a tile
    on the page; 0: see ``tile_side``.
    """
    from PIL import ImageDraw

    side = side or tile_side(tiles.shape[2])
    high = side + GAP + (TEXT + GAP if any(map(any, captions)) else 0)
    top = (3 if legend else 2) * (TEXT + 2 * GAP)
    width = LABEL + tiles.shape[1] * (side + GAP) + GAP
    sheet = pillow().new("RGB", (width, top + len(tiles) * high), "white")
    pen, letters = ImageDraw.Draw(sheet), font()
    pen.text((GAP, GAP), textwrap.shorten(heading, width // 8, placeholder=" …"), fill="black", font=letters)
    if legend:
        _explain(pen, legend, width)
    for place, name in enumerate(names):
        pen.text((LABEL + place * (side + GAP), top - TEXT - GAP), name, fill="dimgrey", font=letters)
    for row, images in enumerate(tiles):
        y = top + row * high
        pen.multiline_text((GAP, y), labels[row], fill="black", font=letters)
        for place, image in enumerate(images):
            x = LABEL + place * (side + GAP)
            sheet.paste(tile(image, side), (x, y))
            if captions:
                pen.text((x, y + side + 1), captions[row][place], fill="dimgrey", font=letters)
    return sheet


def _explain(pen: Any, legend: Sequence[str], width: int) -> None:
    """The names of colours in a line below the heading, as many as there is room for."""
    x, y, letters = GAP, 2 * TEXT + GAP, font()
    for number, name in enumerate(legend, 1):
        needed = 2 * TEXT + GAP + int(pen.textlength(name, font=letters))
        if x + needed > width:
            pen.text((x, y), "…", fill="dimgrey", font=letters)
            return
        pen.rectangle((x, y + 2, x + TEXT - 2, y + TEXT), fill=colour(number))
        pen.text((x + TEXT + 2, y), name, fill="dimgrey", font=letters)
        x += needed


def grid(pages: Sequence[Any], columns: int = 2) -> Any:
    """Pages as one, so many beside each other."""
    wide, high = max(one.width for one in pages), max(one.height for one in pages)
    count = min(columns, len(pages))
    size = count * (wide + GAP), -(-len(pages) // count) * (high + 2 * GAP)
    sheet = pillow().new("RGB", size, "white")
    for place, one in enumerate(pages):
        sheet.paste(one, (place % count * (wide + GAP), place // count * (high + 2 * GAP)))
    return sheet


def png(sheet: Any) -> bytes:
    """The bytes of a Pillow image."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def short(text: str) -> str:
    """As much of a text as a line beside or below a tile holds."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def tile_side(size: int) -> int:
    """The side of a tile for images of this side: enlarged by a whole number, or shrunk to what fits a page."""
    return min(size, LARGEST) if size >= TILE else size * -(-TILE // size)


def tile(image: np.ndarray, side: int) -> Any:
    """(S, S, C) uint8 → a Pillow image of this side; of other channels than RGB the first three, or the first."""
    drawn, Image = pillow().fromarray(np.ascontiguousarray(_rgb(image))), pillow()
    method = Image.Resampling.NEAREST if side >= image.shape[0] else Image.Resampling.BOX
    return drawn.resize((side, side), method)


def _rgb(image: np.ndarray) -> np.ndarray:
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def font() -> Any:
    """The letters: those that matplotlib brings, which know more alphabets than Pillow's."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", TEXT - 1)


# --- masks --------------------------------------------------------------------------------------------------------


def drawn(image: np.ndarray, answer: np.ndarray | None, side: int) -> np.ndarray:
    """(side, side, 3) uint8: an image with its mask as coloured outlines and a tint, the rest of the square white.

    image: (H, W, C) uint8. answer: of the same size, bits (C, H, W) or indices (H, W) uint8, or labels (H, W) int32,
    void (see ``pipeline/forms.py``) under a grey veil; None: the image alone. Number n has ``colour(n)``, and so has
    plane n − 1.
    """
    pixels = _within(_rgb(image), side)
    if answer is not None:
        layers = answer.astype(np.int32) if answer.ndim == 3 else answer.astype(np.int32)[None]
        void = np.zeros(pixels.shape[:2], dtype=bool)
        for number, layer in enumerate(layers, 1):
            seen = _nearest(layer, *pixels.shape[:2])
            unknown = seen < 0 if answer.dtype == np.int32 else seen == VOID
            void |= unknown
            seen[unknown] = 0
            pixels = painted(pixels, seen * number if answer.ndim == 3 else seen)
        pixels[void] = np.rint((1 - VEIL) * pixels[void] + VEIL * 128).astype(np.uint8)
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    top, left = (side - pixels.shape[0]) // 2, (side - pixels.shape[1]) // 2
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return square


def painted(pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the regions of (H, W) int32 numbers tinted and outlined; 0 is none."""
    known = np.unique(numbers[numbers > 0])
    if not len(known):
        return pixels
    colours = np.array([colour(int(number)) for number in known], dtype=np.float32)
    inside = numbers > 0
    own = colours[np.searchsorted(known, numbers[inside])]
    result = pixels.copy()
    result[inside] = np.rint((1 - TINT) * pixels[inside] + TINT * own).astype(np.uint8)
    edge = _edge(numbers)[inside]
    result[inside] = np.where(edge[:, None], own.astype(np.uint8), result[inside])
    return result


def colour(number: int) -> tuple[int, int, int]:
    """A bright colour of a number, unlike that of the numbers near it."""
    red, green, blue = colorsys.hsv_to_rgb((FIRST + GOLDEN * (number - 1)) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _edge(numbers: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels beside another number."""
    found = np.zeros(numbers.shape, dtype=bool)
    down, right = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= right
    found[:, :-1] |= right
    return found


def _within(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels with a longer side of this: smooth where they shrink, else in squares."""
    height, width = (max(1, round(length * side / max(pixels.shape[:2]))) for length in pixels.shape[:2])
    mode = opencv().INTER_AREA if max(pixels.shape[:2]) > side else opencv().INTER_NEAREST
    return np.ascontiguousarray(opencv().resize(np.ascontiguousarray(pixels), (width, height), interpolation=mode))


def _nearest(numbers: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) int32 at another size, each pixel from the nearest."""
    rows = (np.arange(height) * numbers.shape[0] + numbers.shape[0] // 2) // height
    columns = (np.arange(width) * numbers.shape[1] + numbers.shape[1] // 2) // width
    return numbers[np.minimum(rows, numbers.shape[0] - 1)[:, None], np.minimum(columns, numbers.shape[1] - 1)]
