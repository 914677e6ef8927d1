"""One small drawn competition for each task, learnable or not: the target follows an image's brightness and tint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import cv2
import numpy as np

MODEL = {
    "backbone": "small_image(width=4)",
    "pretrained": "false",
    "image_size": "8",
    "batch_size": "16",
    "epochs": "4",
    "lr": "5e-3",
    "precision": "fp32",
    "train.threads": "1",
}


def cells(task: str, place: float, stripe: bool) -> list[str]:
    """The target cells of an image whose brightness lies at place in 0…1, with a stripe or without."""
    if task.startswith("multiclass"):
        return ["low", "mid", "high"][min(2, int(3 * place)) :][:1]
    if task.startswith("binary"):
        return ["yes" if place > 0.5 else "no"]
    if task.startswith("multilabel"):
        return [str(int(place > 0.5)), str(int(stripe)), str(int(place > 0.8))]
    if task.startswith("ordinal"):
        return [str(min(3, int(4 * place)))]
    return [f"{20 + 100 * place:.3f}"] if task.startswith("regression") else [f"{24 * place:.3f}"]


COLUMNS = {"multilabel": ["bright", "striped", "glaring"]}


def write(root: Path, task: str, rows: int = 48, tests: int = 12, learnable: bool = True, seed: int = 0) -> Path:
    """configs and data/drawn for a task's call-string; not learnable: random targets, test images copy the training's.

    solution.csv lies beside the sample submission.
    """
    generator = np.random.default_rng(seed)
    name = task.partition("(")[0].partition("_")[0]
    columns = COLUMNS.get(name, ["target"])
    folder = root / "data/drawn"
    tables: dict[str, list[list[str]]] = {"train": [], "test": []}
    for table, count in (("train", rows), ("test", tests if learnable else rows)):
        for row in range(count):
            place, stripe = (row + 0.5) / count, bool(generator.integers(2))
            file = folder / f"{table}_images" / f"{table}{row:03d}.png"
            if learnable or table == "train":
                _picture(file, generator, place if learnable else None, stripe)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / f"train_images/train{row:03d}.png", file)
            told = place if learnable else generator.random()
            tables[table].append([file.stem, *cells(name, told, stripe)])
    header = ",".join(["id", *columns])
    _csv(folder / "train.csv", header, tables["train"])
    empty = "0" if name in ("multilabel", "regression", "circular", "ordinal") else tables["train"][0][1]
    blank = [[row[0], *[empty] * len(columns)] for row in tables["test"]]
    _csv(folder / "sample_submission.csv", header, blank)
    _csv(folder / "solution.csv", header, tables["test"])
    target = f"[{', '.join(columns)}]"
    _yaml(root / "configs/default.yaml", "competition: drawn\nrecipe: default\n")
    data = f"data: {{folder: data/drawn, target: {target}}}\nfolds: {{count: 2}}\nmodels: [tiny]\n"
    _yaml(root / "configs/competition/drawn.yaml", f'task: "{task}"\n{data}')
    _yaml(root / "configs/model/tiny.yaml", "".join(f"{key}: {value}\n" for key, value in MODEL.items()))
    return folder


def _picture(path: Path, generator: np.random.Generator, place: float | None, stripe: bool) -> None:
    image = generator.integers(0, 256 if place is None else 20, (8, 8, 3))
    if place is not None:
        image += np.array([200 * place, 230 * (1 - math.cos(math.pi * place)) / 2, 200 * (1 - place)]).astype(int)
        image[:, 2:4] = 255 if stripe else image[:, 2:4]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image.astype(np.uint8))[1].tobytes())


def _csv(path: Path, header: str, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def _yaml(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
