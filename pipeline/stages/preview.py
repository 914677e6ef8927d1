"""Preview: training images beside what preprocess, augment and mix make of them, since people judge these by eye."""

from __future__ import annotations

import io
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artefacts, registry, stores
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError
from pipeline.pictures import pillow

ROWS, VERSIONS = 8, 7  # images, and what is made of each
TILE = 112  # smallest side of a picture on the page; smaller ones are enlarged by whole numbers
LARGEST = 160
GAP, TEXT, LABEL = 6, 13, 150  # pixels: between tiles, of the letters, of the column at the left
LETTERS = 20  # on a line of the column at the left


def run(config: Config) -> list[Outcome]:
    """Write augmented.png into the run's folder: each row an image, what is cached of it, and seven versions of that.

    Nothing is trained.
    """
    began = time.perf_counter()
    competition = load(config)
    store = stores.train_store(config, competition, config.image_size)
    rows = choose(competition, store.broken, config.seed)
    originals = np.array(store.take(rows))
    preprocessed = bool(config.data.preprocess)
    tiles, shares = [store.unprocessed().take(rows), originals] if preprocessed else [originals], []
    for version in range(1, VERSIONS + 1):
        made, share = change(config, originals, rows, version)
        tiles.append(made)
        shares.append(share)
    captions = [[""] * (1 + preprocessed) + [own(share[place]) for share in shares] for place in range(len(rows))]
    path = artefacts.run_folder(config) / "augmented.png"
    with artefacts.atomic(path) as handle:
        handle.write(page(title(config), labels(competition, rows), np.stack(tiles, axis=1), captions, preprocessed))
    if plain(config):
        warn("augment=none() and mix=none(): each version is the image itself; try augment=light()")
    say(f"{shown(path)}: {len(rows)} images of {competition.name}, each with {VERSIONS} versions; look at it")
    return [Outcome("preview", artefacts.run_name(config), seconds=time.perf_counter() - began, note=shown(path))]


def plain(config: Config) -> bool:
    """Whether the config changes no image at all."""
    return all(registry.parse(text).name == "none" for text in (config.augment, config.mix))


def title(config: Config) -> str:
    """What made the versions."""
    steps = f" · preprocess={', '.join(config.data.preprocess)}" if config.data.preprocess else ""
    return f"{config.image_size} × {config.image_size} pixels{steps} · augment={config.augment} · mix={config.mix}"


def choose(competition: Competition, broken: np.ndarray, seed: int) -> np.ndarray:
    """(n,) rows to show, drawn by the seed; different answers before more of the same."""
    rows = np.setdiff1d(np.arange(len(competition.train)), broken)
    if not len(rows):
        raise UserError(f"{competition.name} has no training image that decodes")
    rows = np.random.default_rng(seed).permutation(rows)
    seen: Counter[str] = Counter()
    turns = []
    for answer in map(repr, competition.targets.iloc[rows].to_numpy().tolist()):
        turns.append(seen[answer])
        seen[answer] += 1
    return rows[np.argsort(turns, kind="stable")][:ROWS]


def change(config: Config, images: np.ndarray, rows: np.ndarray, version: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, C) uint8 images augmented and mixed as one batch, and (n,) the share of each that is its own."""
    from pipeline.data import draw, row_seeds
    from pipeline.parts.augments import augmenter

    augment = augmenter(registry.build("augments", config.augment)(config.image_size))
    seeds = row_seeds(config.seed, version, rows).tolist()
    made = np.stack([augment(image, seed) for image, seed in zip(images, seeds, strict=True)])
    if registry.parse(config.mix).name == "none":
        return made, np.ones(len(made))
    import torch

    batch = torch.from_numpy(made).permute(0, 3, 1, 2).float()
    mixed, own = registry.build("mixes", config.mix)(batch, torch.eye(len(made)), draw(config.seed, version))
    pixels = mixed.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels, own.diagonal().numpy()


def own(share: float) -> str:
    """How much of a mixed image is its own; nothing where all of it is."""
    return f"{share:.0%} its own" if share < 1 else ""


def labels(competition: Competition, rows: np.ndarray) -> list[str]:
    """The id of each row, and its answer below, in lines that fit."""
    texts = []
    for row in rows:
        cells = competition.targets.iloc[row]
        answer = str(cells.iloc[0]) if len(cells) == 1 else " ".join(f"{name}={cell}" for name, cell in cells.items())
        lines = [str(competition.train["id"].iloc[row]), *textwrap.wrap(answer, LETTERS)]
        texts.append("\n".join(line if len(line) <= LETTERS else line[: LETTERS - 1] + "…" for line in lines[:5]))
    return texts


# --- drawing --------------------------------------------------------------------------------------------------------


def page(
    heading: str, labels: list[str], tiles: np.ndarray, captions: list[list[str]], preprocessed: bool = False
) -> bytes:
    """A PNG: the heading, and for each of (n, m, S, S, C) tiles' rows its label, its images and their captions.

    preprocessed: the second image of each row is what data.preprocess makes of the first.
    """
    from PIL import ImageDraw

    side = tile_side(tiles.shape[2])
    high = side + GAP + (TEXT + GAP if any(map(any, captions)) else 0)
    top = 2 * (TEXT + 2 * GAP)
    width = LABEL + tiles.shape[1] * (side + GAP) + GAP
    sheet = pillow().new("RGB", (width, top + len(tiles) * high), "white")
    pen, letters = ImageDraw.Draw(sheet), font()
    pen.text((GAP, GAP), textwrap.shorten(heading, width // 8, placeholder=" …"), fill="black", font=letters)
    names = ["original", *["preprocessed"] * preprocessed]
    names += [f"version {version}" for version in range(1, tiles.shape[1] - len(names) + 1)]
    for place in range(tiles.shape[1]):
        pen.text((LABEL + place * (side + GAP), top - TEXT - GAP), names[place], fill="dimgrey", font=letters)
    for row, images in enumerate(tiles):
        y = top + row * high
        pen.multiline_text((GAP, y), labels[row], fill="black", font=letters)
        for place, image in enumerate(images):
            x = LABEL + place * (side + GAP)
            sheet.paste(tile(image, side), (x, y))
            pen.text((x, y + side + 1), captions[row][place], fill="dimgrey", font=letters)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def tile_side(size: int) -> int:
    """The side of a tile for images of this side: enlarged by a whole number, or shrunk to what fits a page."""
    return min(size, LARGEST) if size >= TILE else size * -(-TILE // size)


def tile(image: np.ndarray, side: int) -> Any:
    """(S, S, C) uint8 → a Pillow image of this side; of other channels than RGB the first three, or the first."""
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    drawn, Image = pillow().fromarray(np.ascontiguousarray(shown)), pillow()
    method = Image.Resampling.NEAREST if side >= image.shape[0] else Image.Resampling.BOX
    return drawn.resize((side, side), method)


def font() -> Any:
    """The letters: those that matplotlib brings, which know more alphabets than Pillow's."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", TEXT - 1)
