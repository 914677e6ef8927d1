"""A grid of training images with their labels, so that a person can see whether they belong together."""

from __future__ import annotations

import functools
import importlib.util
import io
import textwrap
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, images
from pipeline.competition import Competition
from pipeline.config import Config

COLUMNS, LINES = 8, 3
SIDE, GAP, MARGIN = 128, 12, 20
CAPTION = 34  # pixels below an image, for two lines of text
LETTERS = 19  # of a caption's line
PAPER, INK, FAINT, TILE = "#ffffff", "#1a1a1a", "#6e6e6e", "#f0f0f0"


def draw(config: Config, competition: Competition, title: str, path: Path) -> int:
    """Write the grid as a png; returns how many images are on it. Images that do not decode are said to be broken."""
    from PIL import Image, ImageDraw

    rows = balanced(competition.targets, COLUMNS * LINES)
    lines = -(-len(rows) // COLUMNS)
    columns = min(COLUMNS, len(rows))
    width = max(2 * MARGIN + columns * (SIDE + GAP) - GAP, 560)
    sheet = Image.new("RGB", (width, 2 * MARGIN + 28 + lines * (SIDE + CAPTION + GAP) - GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), title, INK, _font(15))
    for place, row in enumerate(rows):
        left = MARGIN + (place % COLUMNS) * (SIDE + GAP)
        top = MARGIN + 28 + (place // COLUMNS) * (SIDE + CAPTION + GAP)
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), TILE)
        tile = _tile(config, competition, row)
        if tile is None:
            pen.text((left + 36, top + 56), "broken", FAINT, _font(13))
        else:
            sheet.paste(tile, (left + (SIDE - tile.width) // 2, top + (SIDE - tile.height) // 2))
        pen.multiline_text((left, top + SIDE + 3), caption(competition.targets.iloc[row]), INK, _font(12), spacing=2)
    content = io.BytesIO()
    sheet.save(content, "png")
    with artefacts.atomic(path) as handle:
        handle.write(content.getvalue())
    return len(rows)


@functools.cache
def _font(size: int) -> Any:
    """DejaVu Sans as matplotlib ships it, which knows more letters than Pillow's own; found without its import."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin:
        path = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def balanced(targets: pd.DataFrame, count: int) -> list[int]:
    """Up to count rows: the labels in turn, their rows spread; of numbers, spread from the least to the greatest."""
    first = pd.to_numeric(targets.iloc[:, 0], errors="coerce")
    text = targets.astype(str).agg(" ".join, axis=1) if targets.shape[1] > 1 else targets.iloc[:, 0].astype(str)
    if first.notna().all() and text.nunique() > count:
        order = np.argsort(first.to_numpy(), kind="stable")
        return [int(order[place]) for place in _spread(len(order), count)]
    waiting = [deque(_stirred(rows)) for _, rows in sorted(text.groupby(text).groups.items())]
    waiting = [waiting[place] for place in _spread(len(waiting), count)]
    found: list[int] = []
    while len(found) < min(count, len(text)) and any(waiting):
        found += [rows.popleft() for rows in waiting if rows]
    return sorted(found[:count], key=lambda row: (text.iloc[row], row)) if len(waiting) < count else found[:count]


def _spread(length: int, count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, count))})


def _stirred(rows: Any) -> list[int]:
    """Rows from all over the table, the first few first."""
    listed = [int(row) for row in rows]
    order = sorted(range(len(listed)), key=lambda place: (place * 0.6180339887) % 1)
    return [listed[place] for place in order]


def caption(cells: pd.Series) -> str:
    """What the target columns say of a row, in two short lines: the marked columns of several, else the cell."""
    if len(cells) == 1:
        text = str(cells.iloc[0]) or "(none)"
    elif cells.isin(("0", "1", "0.0", "1.0", "")).all():
        text = ", ".join(str(name) for name in cells.index[cells.isin(("1", "1.0"))]) or "(none)"
    else:
        text = ", ".join(f"{name} {cell}" for name, cell in cells.items() if cell not in ("0", "0.0"))
    return "\n".join(textwrap.wrap(text, LETTERS, max_lines=2, placeholder="…"))


def _tile(config: Config, competition: Competition, row: int) -> Any:
    """The image of a row within a tile; small ones enlarged by whole factors, so that their pixels show."""
    from PIL import Image

    spec = competition.train["file"].iloc[row]
    limit = int(config.data.megapixels * 1e6)
    try:
        pixels = images.look(
            spec, competition.folder, reader=config.data.reader, limit_pixels=limit, at_least=SIDE
        ).pixels
    except images.BrokenImage:
        return None
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    tile = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    scale = SIDE / max(tile.size)
    if scale >= 2:
        return tile.resize((tile.width * int(scale), tile.height * int(scale)), Image.Resampling.NEAREST)
    shape = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    return tile.resize(shape, Image.Resampling.LANCZOS)
