"""Preview: training images beside what preprocess, augment and mix make of them, since people judge these by eye."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from typing import Any

import numpy as np

from pipeline import artefacts, masked, registry, stores
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError
from pipeline.forms import VOID
from pipeline.sheets import LETTERS, drawn, page, png, short, tile_side
from pipeline.tasks import task_for

ROWS, VERSIONS = 8, 7  # images, and what is made of each
MASKED = 152  # smallest side of a tile with masks


def run(config: Config) -> list[Outcome]:
    """Write augmented.png into the run's folder: each row an image, what is cached of it, and seven versions of that.

    Masks are drawn on the images that they belong to. Nothing is trained.
    """
    began = time.perf_counter()
    competition = load(config)
    sheet, count = (_pictures if competition.masks is None else _pairs)(config, competition)
    path = artefacts.run_folder(config) / "augmented.png"
    with artefacts.atomic(path) as handle:
        handle.write(png(sheet))
    if plain(config):
        warn("augment=none() and mix=none(): each version is the image itself; try augment=light()")
    say(f"{shown(path)}: {count} images of {competition.name}, each with {VERSIONS} versions; look at it")
    return [Outcome("preview", artefacts.run_name(config), seconds=time.perf_counter() - began, note=shown(path))]


def _pictures(config: Config, competition: Competition) -> tuple[Any, int]:
    """The page of a competition without masks, and how many images it shows."""
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
    names = ["original", *["preprocessed"] * preprocessed, *versions()]
    return page(title(config), names, labels(competition, rows), np.stack(tiles, axis=1), captions), len(rows)


def _pairs(config: Config, competition: Competition) -> tuple[Any, int]:
    """The page of a competition with masks: each is drawn on its image, and moved as the image is."""
    from pipeline.data import row_seeds
    from pipeline.parts.augments import augmenter

    task: Any = task_for(config, competition)
    rows = choose(competition, np.zeros(0, dtype=np.int64), config.seed)
    truth = task.targets(competition.targets)
    made_of = masked.learned_from(config, competition, task)
    augment = augmenter(registry.build("augments", config.augment)(config.image_size))
    side, skip = max(MASKED, tile_side(config.image_size)), int(task.learns.simplex)  # the ground is not drawn
    files = competition.train["file"]
    columns = [[drawn(masked.read(config, competition, files.iloc[row]), truth.one(row), side) for row in rows]]
    for version in range(1, VERSIONS + 1):
        seeds = row_seeds(config.seed, version, rows)
        both = [augment(*one) for one in zip(*_samples(made_of, rows, seeds), strict=True)]
        columns.append([drawn(image, _bits(planes)[skip:], side) for image, planes in both])
    legend = task.columns[skip:] if len(task.columns) > 1 + skip else ()
    sheet = page(
        title(config), ["original", *versions()], _covered(task, competition, rows), np.stack(columns, axis=1),
        legend=legend, side=side,
    )  # fmt: skip
    return sheet, len(rows)


def _samples(made_of: Any, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """What ``augmenter`` takes, image by image: pixels, seed and planes."""
    pixels, planes = made_of.samples(rows, seeds)
    return pixels, seeds.tolist(), planes


def _bits(planes: np.ndarray) -> np.ndarray:
    """(H, W, P) uint8 planes that are learned → (P, H, W) uint8 of 0, 1 and void."""
    return np.where(planes == VOID, VOID, planes > VOID // 2).astype(np.uint8).transpose(2, 0, 1)


def _covered(task: Any, competition: Competition, rows: np.ndarray) -> list[str]:
    """The id of each row, and which share of it is covered."""
    shares = task.covered(competition.targets.iloc[rows])
    return [
        f"{short(str(name))}\n{f'{share:.1%} covered' if share else 'empty'}"
        for name, share in zip(competition.train["id"].iloc[rows], shares, strict=True)
    ]


def versions() -> list[str]:
    """The names of what is made of each image."""
    return [f"version {version}" for version in range(1, VERSIONS + 1)]


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
        texts.append("\n".join(map(short, lines[:5])))
    return texts
