"""A small drawn competition in a temporary project, for tests that need tables, images or predictions on disk."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline import config as settings
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import Config
from pipeline.folds import read_folds

CLASSES = ("cat", "dog", "owl")
TEST_IDS = ("007", "010", "003", "001")


def write(root: Path, rows: int = 12, classes: tuple[str, ...] = CLASSES) -> Path:
    """Project with configs and data/whales: ``rows`` training images of the classes in turn, four test images."""
    folder = root / "data" / "whales"
    ids = [f"{row:03d}a" for row in range(rows)]
    for name, names in (("train_images", ids), ("test_images", TEST_IDS)):
        (folder / name).mkdir(parents=True)
        for place, image_id in enumerate(names):
            image = np.full((8, 8, 3), 20 * place + 10, dtype=np.uint8)
            (folder / name / f"{image_id}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    labels = [classes[row % len(classes)] for row in range(rows)]
    table(folder / "train.csv", "id,label", zip(ids, labels, strict=True))
    table(folder / "sample_submission.csv", "id,label", ((name, classes[0]) for name in TEST_IDS))
    solution = zip(TEST_IDS, ("cat", "dog", "owl", "cat"), ("Public", "Private", "Private", "Ignored"), strict=True)
    table(folder / "solution.csv", "id,label,Usage", solution)
    yaml = "data:\n  folder: data/whales\nfolds:\n  count: 2\nimage_size: 8\n"
    for name, text in (
        ("default", "competition: whales\n"),
        ("competition/whales", yaml),
        ("model/tiny", "epochs: 1\n"),
    ):
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def table(path: Path, header: str, rows: object) -> None:
    """Write a csv of texts."""
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")  # type: ignore[attr-defined]


def config(**changes: object) -> Config:
    """The config of the small competition; ``folds__count=3`` sets folds.count, stage is as typed."""
    stage = {"stage": str(changes.pop("stage"))} if "stage" in changes else {}
    return settings.replace(settings.compose({"competition": "whales", "model": "tiny", **stage}), **changes)


def predict(asked: Config, run: str, test: np.ndarray, right: float = 1.0) -> None:
    """Predictions of a run on disk: OOF that is right for the first share of each fold's rows, the same test rows."""
    competition = load(asked)
    folds = read_folds(asked, competition)
    labels = competition.targets.iloc[:, 0]
    classes = sorted(set(labels))
    truth = np.array([classes.index(name) for name in labels])
    for fold in range(folds.max() + 1):
        rows = np.flatnonzero(folds == fold)
        answer = truth[rows]
        answer[int(right * len(rows)) :] = (answer[int(right * len(rows)) :] + 1) % len(classes)
        folder = asked_folder(asked, run) / f"fold{fold}"
        values = np.eye(len(classes), dtype=np.float32)[answer]
        Predictions(competition.train["id"].to_numpy()[rows], values, "probability").save(folder / "oof.npz")
        Predictions(competition.test["id"].to_numpy(), test, "probability").save(folder / "test.npz")


def asked_folder(asked: Config, run: str) -> Path:
    """``runs/whales/<run>``."""
    return settings.root() / "runs" / asked.competition / run
