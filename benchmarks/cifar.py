"""CIFAR-10 to 94 % against the clock: a resnet18 with a small stem, by this pipeline's own engine.fit.

    .venv/bin/python benchmarks/cifar.py --data FOLDER         the race, on a GPU
    .venv/bin/python benchmarks/cifar.py                       drawn images: the speed alone, no accuracy
    .venv/bin/python benchmarks/cifar.py --images 512 epochs=1 batch_size=64     to see that it works, on any CPU

FOLDER holds the binary version of the data (``data_batch_1.bin`` … ``test_batch.bin``, or the folder
``cifar-10-batches-bin`` with them), or PNGs as ``train/<class>/*.png`` and ``test/<class>/*.png``. Nothing is
downloaded. Other settings are given by their keys: ``epochs=30 optim=muon() lr=0.02``.

The clock runs from the call of engine.fit, the warm-up of the GPU included, with the images where the loader has them,
and stands still while the test set is predicted after each epoch. The first epoch with 94 % is read off the test set
itself, as in such races: that epoch's accuracy is selected, the last one's is not. Predicted are the image and its
mirror image, and the image alone.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from pipeline import config as settings
from pipeline import engine, forms, hardware, images, infer, network, resident
from pipeline.config import Config
from pipeline.data import Joined, Table
from pipeline.learner import Learner
from pipeline.parts import views
from pipeline.tasks.multiclass import Multiclass

AIM, SIDE, CLASSES = 0.94, 32, 10
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]  # of the 50,000 training images
BASE = Config(
    backbone="resnet18", stem="small()", pretrained=False, image_size=SIDE, batch_size=512, epochs=20, lr=0.4,
    optim="sgd(weight_decay=5e-4)", schedule="one_cycle()", loss="cross_entropy(smoothing=0.1)", metric="accuracy()",
    augment="compose(parts=['pad_crop_flips()','cutout()'])", symmetry="hflip", predict_batch=1000,
)  # fmt: skip


@dataclass
class Memory:
    """Images that lie in memory, as a store. pixels: (N, 32, 32, 3) uint8; labels: (N,) int64."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, 32, 32, 3) uint8."""
        return self.pixels[rows]


# --- the data -----------------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[Memory, Memory]:
    """Training and test images of a folder in one of the two forms."""
    folder = next((place for place in (folder / "cifar-10-batches-bin", folder) if place.is_dir()), folder)
    if (folder / "test_batch.bin").is_file():
        files = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
        return records(files), records([folder / "test_batch.bin"])
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return pictures(folder / "train"), pictures(folder / "test")
    raise SystemExit(f"--data {folder} holds neither test_batch.bin nor train/ and test/; see the head of this file")


def records(files: list[Path]) -> Memory:
    """Records of a label and 3 × 32 × 32 bytes, red, green, blue."""
    found = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 1 + 3 * SIDE * SIDE) for file in files])
    pixels = found[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Memory(np.ascontiguousarray(pixels), found[:, 0].astype(np.int64))


def pictures(folder: Path) -> Memory:
    """PNGs in a folder for each class, in the order of their names."""
    names = sorted(place.name for place in folder.iterdir() if place.is_dir())
    files = [(file, label) for label, name in enumerate(names) for file in sorted((folder / name).glob("*.png"))]
    pixels = [images.decode(file, 3, SIDE, "stretch") for file, _ in files]
    return Memory(np.stack(pixels), np.array([label for _, label in files], dtype=np.int64))


def drawn(count: int) -> Memory:
    """Noise, whose labels mean nothing."""
    generator = np.random.default_rng(0)
    return Memory(generator.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8), np.arange(count) % CLASSES)


# --- the race -----------------------------------------------------------------------------------------------------


class Race:
    """Looks at the test set after each epoch and keeps the time that training took, without those looks."""

    def __init__(self, test: Memory, config: Config) -> None:
        self.test, self.config = test, config
        self.task = Multiclass([str(label) for label in range(CLASSES)])
        self.looks = views.expand(["identity()", "hflip()"])
        self.epochs: list[tuple[float, float, float]] = []  # seconds of training so far; accuracy with mirror, alone
        self.began, self.away = clock(), 0.0

    def validate(self, models: Iterable[Any]) -> tuple[float, dict[str, float]]:
        """What engine.fit asks for after each epoch."""
        began = clock()
        batch = infer.batch_size(self.config.predict_batch, SIDE)
        rows = np.arange(len(self.test))
        each = [infer.predict(model, self.task, self.test, rows, self.looks, batch) for model in models]
        values = infer.mean(each)
        both, alone = (
            float((one.argmax(axis=1) == self.test.labels).mean()) for one in (values.mean(axis=0), values[0])
        )
        self.epochs.append((began - self.began - self.away, both, alone))
        self.away += clock() - began
        print(f"  epoch {len(self.epochs):>2}  {self.epochs[-1][0]:7.1f} s  {both:.4f}  alone {alone:.4f}", flush=True)
        return both, {"score": both}


def clock() -> float:
    """Seconds, read when the GPU has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run(train: Memory, test: Memory, config: Config, folder: Path) -> tuple[Race, list[float], hardware.Hardware]:
    """Train; returns the race, the images per second of each epoch and what it ran on."""
    machine = hardware.choose(config, train.pixels.nbytes)
    hardware.start(machine)
    torch.manual_seed(config.seed)
    names = [str(label) for label in range(CLASSES)]
    plan = network.Blueprint(
        config.backbone, config.pool, config.head, 3, SIDE, "stretch", MEAN, STD, names, stem=config.stem
    )
    learner = Learner(network.new(plan, pretrained=False, weights=""), config, forms.CLASSES)
    fabric = engine.make_fabric(machine)
    table = Table(np.arange(len(train)), train.labels, np.ones(len(train), dtype=np.float32))
    loader = resident.loader(Joined([train]), table, config, machine, fabric.device)  # type: ignore[list-item]
    race = Race(test, config)
    engine.fit(fabric, learner, loader, config, folder, race.validate)
    marks = [0.0, *(seconds for seconds, _, _ in race.epochs)]
    seen = loader.steps * loader.batch_size
    return race, [seen / (after - before) for before, after in itertools.pairwise(marks)], machine


def header(machine: hardware.Hardware, config: Config) -> str:
    """What the figures depend on."""
    chip = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        chip = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, beside {chip}"
    else:
        chip = f"no GPU was seen; {chip}"
    changed = {
        key: value for key, value in settings.flatten(config).items() if settings.flatten(Config())[key] != value
    }
    said = " ".join(f"{key}={value}" for key, value in changed.items())
    return (
        f"{datetime.date.today()}  {chip}, {hardware.physical_cores()} cores, load {os.getloadavg()[0]:.1f}\n"
        f"python {platform.python_version()}  torch {torch.__version__}  "
        f"{' '.join(f'{key}={value}' for key, value in machine.facts().items())}\n{said}"
    )


def main() -> None:
    """Read or draw, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real images")
    parser.add_argument(
        "--images", type=int, default=50_000, help="that are drawn without --data; a fifth more to test"
    )
    parser.add_argument("settings", nargs="*", help="key=value")
    asked = parser.parse_intermixed_args()
    given = {key: settings.convert(key, text) for key, text in settings.parse_arguments(asked.settings).items()}
    config = settings.replace(BASE, **{key.replace(".", "__"): value for key, value in given.items()})
    train, test = read(asked.data) if asked.data else (drawn(asked.images), drawn(max(CLASSES, asked.images // 5)))
    with tempfile.TemporaryDirectory() as folder:
        race, speeds, machine = run(train, test, config, Path(folder))
    print(f"\n{header(machine, config)}")
    total, both, alone = race.epochs[-1]
    rest = speeds[1:] or speeds
    print(f"{len(train):,} training images of {SIDE} px, {len(race.epochs)} epochs in {total:.1f} s of training")
    print(f"images/s: {speeds[0]:,.0f} in the first epoch, {statistics.median(rest):,.0f} in the others (median)")
    if not asked.data:
        print("the images were drawn: no accuracy is claimed")
        return
    hits = [(number, row) for number, row in enumerate(race.epochs, 1) if row[1] >= AIM]
    first = f"after {hits[0][1][0]:.1f} s, epoch {hits[0][0]}" if hits else "never"
    print(f"first ≥ {AIM:.0%} on the {len(test):,} test images: {first} (read off the test set)")
    best = max(row[1] for row in race.epochs)
    print(f"last epoch: {both:.4f} with its mirror image, {alone:.4f} alone; the best epoch {best:.4f}")


if __name__ == "__main__":
    main()
