"""A drawn competition that trains in a second, and the pieces of a training in memory, for tests of what learns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline import config as settings
from pipeline.config import Config

SOURCE = Path(__file__).resolve().parent.parent
MODEL = {
    "backbone": "small_image(width=4)",
    "pretrained": "false",
    "image_size": "8",
    "batch_size": "8",
    "epochs": "3",
    "lr": "3e-3",
    "precision": "fp32",
    "train.threads": "1",
}


def write(
    root: Path,
    rows: int = 32,
    tests: int = 8,
    folds: int = 2,
    classes: str = "abc",
    learnable: bool = True,
    seed: int = 0,
) -> Path:
    """configs and data/noise: 8×8 grey noise, each class brighter than the one before if learnable.

    Else labels are drawn at random, balanced, and the test images are the training images under other ids.
    """
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(rows) % len(classes))
    folder = root / "data" / "noise"
    for row in range(rows):
        _picture(folder / "train_images" / f"a{row:03d}.png", generator, labels[row] if learnable else None)
    for row in range(tests if learnable else rows):
        place = folder / "test_images" / f"b{row:03d}.png"
        if learnable:
            _picture(place, generator, row % len(classes))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "train_images" / f"a{row:03d}.png", place)
    ids = [f"b{row:03d}" for row in range(tests if learnable else rows)]
    _csv(folder / "train.csv", "id,label", [f"a{row:03d},{classes[label]}" for row, label in enumerate(labels)])
    _csv(folder / "sample_submission.csv", "id,label", [f"{name},{classes[0]}" for name in ids])
    _yaml(root / "configs/default.yaml", "competition: noise\nrecipe: default\n")
    data = f"data: {{folder: data/noise, channels: 1}}\nfolds: {{count: {folds}}}\nmodels: [tiny]\n"
    _yaml(root / "configs/competition/noise.yaml", data)
    _yaml(root / "configs/model/tiny.yaml", "".join(f"{key}: {value}\n" for key, value in MODEL.items()))
    return folder


def _picture(path: Path, generator: np.random.Generator, label: int | None) -> None:
    low, high = (0, 256) if label is None else (60 * label, 60 * label + 80)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = generator.integers(low, high, (8, 8), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _csv(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


def _yaml(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def config(**changes: object) -> Config:
    """The config of the drawn competition; ``train__accumulate=2`` sets train.accumulate."""
    return settings.replace(settings.compose({"competition": "noise"}), **changes)


def command(*words: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "pipeline", *words]


def process(root: Path, *words: str) -> subprocess.Popen[str]:
    """A process that works on the project; its lines can be read as they come."""
    environment = {**os.environ, "PIPELINE_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(*words), cwd=SOURCE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    """What a best.ckpt predicts with."""
    return torch.load(path, weights_only=True)["network"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
