"""A drawn competition of masks that trains in a second: bright squares on images of several sizes, some empty."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline import config as settings
from pipeline import rle
from pipeline.config import Config

MODEL = {
    "backbone": "small_image(width=4)", "decoder": "unet(widths=[8,8,8,8])", "pretrained": "false", "image_size": "16",
    "batch_size": "4", "epochs": "1", "lr": "3e-3", "precision": "fp32", "train.threads": "1",
}  # fmt: skip


def write(root: Path, rows: int = 12, tests: int = 2, folds: int = 2, task: str = "segmentation()") -> Path:
    """configs and data/squares: images of 16 to 32 px a side, every fourth without a square."""
    generator, folder = np.random.default_rng(0), root / "data/squares"
    lines = ["id,rle"]
    for row in range(rows + tests):
        part, name = ("train", f"a{row:02d}") if row < rows else ("test", f"b{row:02d}")
        height, width = (int(side) for side in generator.choice([16, 20, 32], 2))
        image, mask = generator.integers(0, 60, (height, width, 3)), np.zeros((height, width), dtype=np.uint8)
        if row % 4:
            top, left = (int(place) for place in generator.integers(0, 8, 2))
            mask[top : top + 8, left : left + 7] = 1
            image[mask > 0] = 200
        path = folder / f"{part}_images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image.astype(np.uint8))[1].tobytes())
        lines += [f"{name},{rle.encode(mask)}"] if part == "train" else []
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    ids = [f"b{row:02d}," for row in range(rows, rows + tests)]
    (folder / "sample_submission.csv").write_text("\n".join(["id,rle", *ids]) + "\n")
    _yaml(root / "configs/default.yaml", {"competition": "squares", "recipe": "default"})
    known = {"data": "{folder: data/squares}", "mask": "{rle: rle}", "folds": f"{{count: {folds}}}"}
    _yaml(root / "configs/competition/squares.yaml", {"task": f'"{task}"', **known, "models": "[tiny]"})
    _yaml(root / "configs/model/tiny.yaml", MODEL)
    return folder


def config(**changes: str) -> Config:
    """The config of that competition; keys with ``__`` for the dot."""
    return settings.compose({key.replace("__", "."): value for key, value in changes.items()})


def _yaml(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}: {value}\n" for key, value in content.items()))
