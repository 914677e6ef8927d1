"""One small drawn competition for each task, learnable or not: the target follows an image's brightness and tint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import cv2
import numpy as np

from pipeline import rle

SOURCE = Path(__file__).resolve().parent.parent
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


# --- retrieval ----------------------------------------------------------------------------------------------------

ROLES = ("gallery", "pool")


def write_retrieval(root: Path, role: str = "gallery", identities: int = 6, each: int = 6, **model: str) -> Path:
    """configs and data/drawn of an open set: an identity is a pattern of 8×8 with noise; test identities are others.

    role: "gallery", each identity has two queries and the rest is the gallery; "pool", the test images search
    themselves. solution.csv lies beside the sample submission.
    """
    generator, folder = np.random.default_rng(0), root / "data/drawn"
    tables: dict[str, list[list[str]]] = {"train": [], "test": []}
    for name, count in (("train", identities), ("test", 3)):
        for identity in range(count):
            pattern = generator.integers(40, 216, (8, 8))
            for place in range(each):
                ident = f"{name}{identity}{place}"
                image = (pattern + generator.integers(-30, 31, (8, 8))).clip(0, 255).astype(np.uint8)
                _save(folder / f"{name}_images" / f"{ident}.png", image)
                part = "query" if place < 2 and role == "gallery" else "gallery"
                tables[name].append([ident, f"{name}{identity}", part])
    _retrieval_files(root, tables, role, model)
    return folder


def write_random_identities(root: Path, identities: int, each: int, seed: int = 0, **model: str) -> Path:
    """The same of noise images, whose identities are by chance; test images, a pool, copy the training's."""
    generator, folder = np.random.default_rng(seed), root / "data/drawn"
    chance = generator.permutation(np.arange(identities * each) % identities)
    tables: dict[str, list[list[str]]] = {"train": [], "test": []}
    for row, identity in enumerate(chance.tolist()):
        image = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        for name in tables:
            _save(folder / f"{name}_images" / f"{name}{row:03d}.png", image)
            tables[name].append([f"{name}{row:03d}", f"{identity:02d}", "gallery"])
    _retrieval_files(root, tables, "pool", model)
    return folder


def _retrieval_files(root: Path, tables: dict[str, list[list[str]]], role: str, model: dict[str, str]) -> None:
    folder = root / "data/drawn"
    asked = [row for row in tables["test"] if row[2] == "query" or role == "pool"]
    shelf = [row for row in tables["test"] if row[2] == "gallery"]
    answers = [[row[0], " ".join(other[0] for other in shelf if other[1] == row[1] and other != row)] for row in asked]
    _csv(folder / "train.csv", "id,identity", [row[:2] for row in tables["train"]])
    _csv(folder / "test.csv", "id,role", [[row[0], row[2]] for row in tables["test"]])
    _csv(folder / "sample_submission.csv", "id,matches", [[row[0], f"{shelf[0][0]} {shelf[1][0]}"] for row in asked])
    _csv(folder / "solution.csv", "id,matches", answers)
    _yaml(root / "configs/default.yaml", "competition: drawn\nrecipe: default\n")
    data = "data: {folder: data/drawn, target: identity, test_csv: test.csv, channels: 1}\nfolds: {count: 2}\n"
    keys = "head: bnneck()\npairs: triplet()\nsampler: identities(p=4,k=4)\nmodels: [tiny]\n"
    metric = "metric: mean_average_precision(k=2)\n"
    _yaml(root / "configs/competition/drawn.yaml", f"task: retrieval()\n{metric}{data}{keys}")
    _yaml(root / "configs/model/tiny.yaml", "".join(f"{key}: {value}\n" for key, value in {**MODEL, **model}.items()))


def write_labels(root: Path, new: str = "new_whale", identities: int = 8, each: int = 6, **model: str) -> Path:
    """configs and data/drawn of labels that are searched for: identities are patterns of 8×8 with noise.

    Two identities have one image alone, four training rows are new (each a pattern of its own). Of the test images two
    are of each identity, and four are of none. new: their name; "": there are none. solution.csv lies beside it all.
    """
    generator, folder = np.random.default_rng(0), root / "data/drawn"
    tables: dict[str, list[list[str]]] = {"train": [], "test": []}
    counts = {f"w{number}": (each if number < identities - 2 else 1, 2) for number in range(identities)}
    nobody = {f"nobody{number}": (4 if number else 0, 4 - 4 * number) for number in range(2)} if new else {}
    for name, shown in {**counts, **nobody}.items():
        pattern = generator.integers(40, 216, (8, 8))
        for table, count in zip(tables, shown, strict=True):
            for place in range(count):
                pattern = generator.integers(40, 216, (8, 8)) if name in nobody else pattern
                image = (pattern + generator.integers(-30, 31, (8, 8))).clip(0, 255).astype(np.uint8)
                _save(folder / f"{table}_images" / f"{table}{name}{place}.png", image)
                tables[table].append([f"{table}{name}{place}", new if name in nobody else name])
    _csv(folder / "train.csv", "id,identity", tables["train"])
    _csv(folder / "sample_submission.csv", "id,identity", [[row[0], f"{new} w0 w1".strip()] for row in tables["test"]])
    _csv(folder / "solution.csv", "id,identity", tables["test"])
    _yaml(root / "configs/default.yaml", "competition: drawn\nrecipe: default\n")
    data = "data: {folder: data/drawn, target: identity, channels: 1}\nfolds: {count: 2}\n"
    keys = "head: bnneck()\npairs: triplet()\nsampler: identities(p=4,k=4)\nmodels: [tiny]\n"
    call = f"task: \"retrieval(kind='labels', new='{new}')\"\nmetric: mean_average_precision(k=3)\n"
    _yaml(root / "configs/competition/drawn.yaml", f"{call}{data}{keys}")
    _yaml(root / "configs/model/tiny.yaml", "".join(f"{key}: {value}\n" for key, value in {**MODEL, **model}.items()))
    return folder


# --- masks --------------------------------------------------------------------------------------------------------

SIDE = 16
ROWS = {"masks": "image", "class_masks": "class", "objects": "object"}  # what a row of the csv is, for each kind
SHADES = (110, 220)  # of what is drawn, on a dark ground


def write_masks(root: Path, kind: str, rows: int = 18, tests: int = 6, seed: int = 0, **model: str) -> Path:
    """configs and data/drawn of a segmentation: one or two bright rectangles on a dark ground, each fifth image empty.

    Images are grey, 12 to 16 px a side. masks: their union; class_masks: dim and bright ones; objects: each alone.
    solution.csv has a Usage.
    """
    generator, folder = np.random.default_rng(seed), root / "data/drawn"
    tables: dict[str, list[list[str]]] = {"train": [], "test": []}
    for table, count in (("train", rows), ("test", tests)):
        for row in range(count):
            file = folder / f"{table}_images" / f"{table}{row:03d}.png"
            image, shapes = _rectangles(generator, 0 if row % 5 == 4 else 1 + row % 2)
            _save(file, image)
            usage = [] if table == "train" else [("Public", "Private")[row % 2]]
            tables[table] += [[*cells, *usage] for cells in _mask_rows(kind, file.stem, shapes)]
    _mask_tables(folder, kind, tables)
    _mask_configs(root, kind, model)
    return folder


def write_random_masks(root: Path, rows: int, folds: int, seed: int = 0, **model: str) -> Path:
    """The same of noise images, whose left or right half is the mask by chance; test images copy the training's."""
    generator, folder = np.random.default_rng(seed), root / "data/drawn"
    sides = generator.permutation(np.arange(rows) % 2)
    tables: dict[str, list[list[str]]] = {"train": [], "test": []}
    for row in range(rows):
        image = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        bits = np.zeros((8, 8), dtype=np.uint8)
        bits[:, 4 * sides[row] : 4 * sides[row] + 4] = 1
        for table in tables:
            _save(folder / f"{table}_images" / f"{table}{row:03d}.png", image)
            tables[table].append([f"{table}{row:03d}", rle.encode(bits)])
    _mask_tables(folder, "masks", tables)
    _mask_configs(root, "masks", {"image_size": "8", **model}, folds)
    return folder


def _rectangles(generator: np.random.Generator, count: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (H, W) uint8, and what is on it: (class, bits (H, W)) of rectangles that do not touch."""
    height, width = (int(side) for side in generator.integers(12, SIDE + 1, 2))
    image = generator.integers(0, 40, (height, width))
    shapes = []
    for place in range(count):  # one in the left half, one in the right
        top, left = int(generator.integers(0, 4)), int(generator.integers(0, 2)) + place * width // 2
        bits, which = np.zeros((height, width), dtype=np.uint8), int(generator.integers(2))
        bits[top : top + int(generator.integers(5, 9)), left : left + 4] = 1
        image[bits == 1] = SHADES[which] + generator.integers(-20, 20, int(bits.sum()))
        shapes.append((which, bits))
    return image.astype(np.uint8), shapes


def _mask_rows(kind: str, name: str, shapes: list[tuple[int, np.ndarray]]) -> list[list[str]]:
    if kind == "objects":
        return [[name, rle.encode(bits)] for _, bits in shapes] or [[name, ""]]
    empty = np.zeros((1, 1), dtype=np.uint8)
    if kind == "masks":
        return [[name, rle.encode(sum((bits for _, bits in shapes), empty))]]
    planes = [sum((bits for which, bits in shapes if which == wanted), empty) for wanted in range(2)]
    return [[f"{name}_{word}", rle.encode(plane)] for word, plane in zip(("dim", "bright"), planes, strict=True)]


def _mask_tables(folder: Path, kind: str, tables: dict[str, list[list[str]]]) -> None:
    _csv(folder / "train.csv", "id,rle", tables["train"])
    _csv(folder / "solution.csv", "id,rle,Usage" if len(tables["test"][0]) > 2 else "id,rle", tables["test"])
    asked = dict.fromkeys(row[0] for row in tables["test"])
    _csv(folder / "sample_submission.csv", "id,rle", [[name, ""] for name in asked])


def _mask_configs(root: Path, kind: str, model: dict[str, str], folds: int = 2) -> None:
    classes = ", classes: [dim, bright], exclusive: true" if kind == "class_masks" else ""
    _yaml(root / "configs/default.yaml", "competition: drawn\nrecipe: default\n")
    data = f"data: {{folder: data/drawn, channels: 1}}\nfolds: {{count: {folds}}}\nmodels: [tiny]\n"
    told = f"mask: {{rle: rle, rows: {ROWS[kind]}{classes}}}\n"
    _yaml(root / "configs/competition/drawn.yaml", f"task: segmentation(kind='{kind}')\n{told}{data}")
    own = {**MODEL, "image_size": str(SIDE), "decoder": "unet(widths=(8,8,4,4))", **model}
    _yaml(root / "configs/model/tiny.yaml", "".join(f"{key}: {value}\n" for key, value in own.items()))


# --- files --------------------------------------------------------------------------------------------------------


def _picture(path: Path, generator: np.random.Generator, place: float | None, stripe: bool) -> None:
    image = generator.integers(0, 256 if place is None else 20, (8, 8, 3))
    if place is not None:
        image += np.array([200 * place, 230 * (1 - math.cos(math.pi * place)) / 2, 200 * (1 - place)]).astype(int)
        image[:, 2:4] = 255 if stripe else image[:, 2:4]
    _save(path, image.astype(np.uint8))


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _csv(path: Path, header: str, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def _yaml(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
