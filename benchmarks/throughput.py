"""Images per second of this pipeline beside a plain PyTorch loop and beside the model alone, in one run.

    .venv/bin/python benchmarks/throughput.py            5–6 minutes on 2 idle cores
    .venv/bin/python benchmarks/throughput.py --quick    2 minutes, and noisier

Three sides with the same resnet18, batch 64, Adam, and horizontal flips in training:

- plain: torch's DataLoader with 2 workers that stay alive, cv2 reading each file anew, albumentations, fp32.
- pipeline: what stage=train and stage=predict run: Images (cache warm), Loader, engine.fit, infer.predict.
- pure: the model on one batch that lies in memory, in several formats; the fastest of them is the limit.

Machines drift and are shared, so the sides take turns, round after round: a figure is the median over the rounds, and
a ratio the median of the ratios within a round. Each side has a process of its own, so that none runs with another's
settings, and a first round that does not count: with it go the start of the workers, compilation and the build of the
cache.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import itertools
import logging
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from torch import nn

from pipeline import engine, hardware, images, infer, network
from pipeline.config import Config, Data
from pipeline.data import Joined, Loader, Table
from pipeline.learner import Learner
from pipeline.parts import views
from pipeline.tasks.multiclass import Multiclass
from pipeline.torchvision_fix import fix_torchvision

BATCH, CLASSES, WORKERS, LR = 64, 10, 2, 3e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Files of one kind and how many images a round takes: train, predict, and pure (each of its variants)."""

    name: str
    folder: Path
    files: list[str]
    image_size: int
    train: int
    predict: int
    pure: int

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 classes, of no meaning."""
        return np.arange(len(self.files)) % CLASSES


Side = Callable[[], float]
"""Does one round; returns images per second."""

Sides = dict[str, Side]
"""By name of the variant; plain and pipeline have one."""


# --- the images ---------------------------------------------------------------------------------------------------


def photograph(generator: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: cloudy colours, edges and grain, that compress about as a photograph does."""
    image = np.full((height, width, 3), 110, dtype=np.float32)
    for cells, strength in ((4, 60), (12, 30), (48, 14)):
        coarse = generator.normal(0, strength, (max(2, cells * height // width), cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        colour = [float(value) for value in generator.integers(0, 256, 3)]
        cv2.circle(image, centre, int(generator.integers(3, max(4, width // 8))), colour, -1)
    image += generator.normal(0, 5, (height, width, 1)).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw(folder: Path, count: int, width: int, height: int, suffix: str) -> list[str]:
    """Write that many files; returns their names."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = [f"{number:05d}{suffix}" for number in range(count)]
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == ".jpg" else []
    for name in names:
        cv2.imwrite(f"{folder}/{name}", photograph(generator, width, height), options)
    return names


# --- a plain loop -------------------------------------------------------------------------------------------------


class Files(torch.utils.data.Dataset):
    """One file an item, as most notebooks read them; wraps around to the asked length."""

    def __init__(self, case: Case, length: int, training: bool) -> None:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        size = case.image_size
        first = [] if case.files[0].endswith(".png") else [A.Resize(size, size)]
        flip = [A.HorizontalFlip(p=0.5)] if training else []
        self.transform = A.Compose([*first, *flip, A.Normalize(MEAN, STD), ToTensorV2()])
        self.paths, self.labels = [f"{case.folder}/{name}" for name in case.files], case.labels
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        place = item % len(self.paths)
        image = cv2.cvtColor(cv2.imread(self.paths[place]), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"], int(self.labels[place])


def resnet18() -> nn.Module:
    """The model of all sides."""
    fix_torchvision()
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=CLASSES)


def plain_loader(case: Case, length: int, training: bool) -> Any:
    """The workers stay alive between epochs, which a plain loop need not do, but which only makes it faster."""
    data = Files(case, length, training)
    return torch.utils.data.DataLoader(
        data, BATCH, shuffle=training, drop_last=training, num_workers=WORKERS, persistent_workers=True
    )


def plain_training(case: Case) -> Sides:
    """An epoch of the usual loop."""
    loader, model = plain_loader(case, case.train, training=True), resnet18()
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=LR)

    def epoch() -> float:
        began, done = time.perf_counter(), 0
        model.train()
        for batch, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(batch), targets)
            loss.backward()
            optimizer.step()
            done += len(batch)
        return done / (time.perf_counter() - began)

    return {"plain": epoch}


def plain_inference(case: Case) -> Sides:
    """Predictions of all images by the usual loop."""
    loader, model = plain_loader(case, case.predict, training=False), resnet18().eval()

    def everything() -> float:
        began, found = time.perf_counter(), []
        with torch.no_grad():
            for batch, _ in loader:
                found.append(model(batch).softmax(1))
        return len(torch.cat(found)) / (time.perf_counter() - began)

    return {"plain": everything}


# --- this pipeline ------------------------------------------------------------------------------------------------


def pipeline_config(case: Case) -> Config:
    """The settings of a run that does what the plain loop does."""
    return Config(
        backbone="resnet18", pretrained=False, image_size=case.image_size, batch_size=BATCH, epochs=1, lr=LR,
        augment="flips()", symmetry="hflip", data=Data(channels=3),
    )  # fmt: skip


def store(case: Case, config: Config) -> images.Images:
    """The decoded cache of the case's files."""
    return images.open_cache(
        case.folder, case.files, channels=3, size=case.image_size, resize=config.data.resize,
        cache_root=case.folder.parent / "cache", limit_gb=config.data.cache_gb,
    )  # fmt: skip


def new_network(case: Case, config: Config) -> network.Network:
    """A resnet18 as stage=train makes it."""
    names = [str(label) for label in range(CLASSES)]
    plan = network.Blueprint(
        config.backbone, config.pool, config.head, 3, case.image_size, config.data.resize, [*MEAN], [*STD], names
    )
    return network.new(plan, pretrained=False, weights="")


def pipeline_training(case: Case) -> Sides:
    """An epoch by engine.fit; its images per second are those that log.csv tells."""
    config = pipeline_config(case)
    machine = hardware.choose(config)
    hardware.start(machine)
    fabric, learner = engine.make_fabric(machine), Learner(new_network(case, config), config)
    rows = np.arange(case.train) % len(case.files)
    table = Table(rows, case.labels[rows], np.ones(len(rows), dtype=np.float32))
    loader, number = Loader(Joined([store(case, config)]), table, config), itertools.count()

    def epoch() -> float:
        folder = case.folder.parent / f"{case.name}-{next(number)}"
        folder.mkdir()
        progress = engine.fit(fabric, learner, loader, config, folder, None)
        shutil.rmtree(folder)
        return progress.history[-1]["images_per_second"]

    return {"pipeline": epoch}


def pipeline_inference(case: Case) -> Sides:
    """Predictions of all images by infer.predict."""
    config = pipeline_config(case)
    machine = hardware.choose(config)
    hardware.start(machine)
    model, task = infer.ready(new_network(case, config).eval(), machine), Multiclass(map(str, range(CLASSES)))
    view, rows = views.expand(["identity()"]), np.arange(case.predict) % len(case.files)
    batch = infer.batch_size(config.predict_batch, case.image_size)
    pixels = store(case, config)

    def everything() -> float:
        began = time.perf_counter()
        infer.predict(model, task, pixels, rows, view, batch)
        return len(rows) / (time.perf_counter() - began)

    return {"pipeline": everything}


# --- the model alone ----------------------------------------------------------------------------------------------


def steady(step: Callable[[], Any], size: int, total: int) -> Side:
    """Repeats a step of ``size`` images until ``total`` are done."""

    def repeat() -> float:
        count = max(2, total // size)
        began = time.perf_counter()
        for _ in range(count):
            step()
        return count * size / (time.perf_counter() - began)

    return repeat


def pure_training(case: Case) -> Sides:
    """Training steps on one batch in memory; threads and memory are set as the pipeline sets them."""
    hardware.start(hardware.choose(pipeline_config(case)))

    def variant(layout: torch.memory_format, bf16: bool, fused: bool) -> Side:
        model = resnet18().train().to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=fused)
        batch = torch.randn(BATCH, 3, case.image_size, case.image_size).to(memory_format=layout)
        targets = torch.arange(BATCH) % CLASSES

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(**BF16, enabled=bf16):
                loss = nn.functional.cross_entropy(model(batch), targets)
            loss.backward()
            optimizer.step()

        return steady(step, BATCH, case.pure)

    last, first = torch.channels_last, torch.contiguous_format
    return {
        "fp32": variant(first, False, False),
        "fp32, fused Adam": variant(first, False, True),
        "fp32 channels_last, fused Adam": variant(last, False, True),
        "bf16 channels_last, fused Adam": variant(last, True, True),
    }


def pure_inference(case: Case) -> Sides:
    """Forward passes on one batch in memory; threads and memory are set as the pipeline sets them."""
    hardware.start(hardware.choose(pipeline_config(case)))
    found = {}
    for size in (64, 256):
        batch = torch.randn(size, 3, case.image_size, case.image_size)
        total = max(case.pure * 3, 2 * size)
        fast = batch.to(torch.bfloat16, memory_format=torch.channels_last)
        cast = resnet18().eval().to(torch.bfloat16, memory_format=torch.channels_last)
        folded = network.fold_batchnorm(resnet18().eval()).to(torch.bfloat16, memory_format=torch.channels_last)
        found[f"fp32, batch {size}"] = steady(forward(resnet18().eval(), batch), size, total)
        found[f"bf16 channels_last, batch {size}"] = steady(forward(cast, fast), size, total)
        found[f"bf16 folded, batch {size}"] = steady(forward(folded, fast), size, total)
    compiled = compile_frozen(resnet18().eval().to(torch.bfloat16, memory_format=torch.channels_last))
    if compiled is not None:
        found["bf16 compiled and frozen, batch 256"] = steady(forward(compiled, fast), 256, total)
    return found


def forward(model: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> Callable[[], Any]:
    """A call of the model on this batch, without gradients."""

    def step() -> None:
        with torch.no_grad():  # not inference_mode, in which inductor does not freeze
            model(batch)

    return step


def compile_frozen(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The model through inductor with its weights frozen in; None without a C++ compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(model, dynamic=False)


# --- rounds -------------------------------------------------------------------------------------------------------


MAKERS: dict[str, dict[str, Callable[[Case], Sides]]] = {
    "train": {"plain": plain_training, "pipeline": pipeline_training, "pure": pure_training},
    "predict": {"plain": plain_inference, "pipeline": pipeline_inference, "pure": pure_inference},
}


class Player:
    """One side in a process of its own, which does rounds when it is asked to."""

    def __init__(self, side: str) -> None:
        if side != "pipeline":  # libgomp's own default, which importing this project's code would change
            os.environ["GOMP_SPINCOUNT"] = "300000"
        else:
            os.environ.pop("GOMP_SPINCOUNT", None)
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=play, args=(side, end))
        self.process.start()
        end.close()

    def ask(self, *question: Any) -> Any:
        """Send a question and wait for its answer."""
        self.pipe.send(question)
        return self.pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


def play(side: str, pipe: Any) -> None:
    """Answer ("make", work, case) with the names of the variants, and ("round", variant) with images per second."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    made: Sides = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(EOFError):  # the pipeline's own lines
        while True:
            match pipe.recv():
                case ("make", work, case):
                    made.clear()  # ends the workers of the loader before
                    made |= MAKERS[work][side](case)
                    pipe.send(list(made))
                case ("round", variant):
                    pipe.send(made[variant]())


@dataclass
class Row:
    """One line of the table: images per second of each round, and the targets for the two ratios."""

    name: str
    plain: list[float]
    pipeline: list[float]
    pure: dict[str, list[float]]
    over_plain: float
    of_pure: float

    @property
    def best(self) -> str:
        """The fastest variant of the model alone."""
        return max(self.pure, key=lambda name: statistics.median(self.pure[name]))

    def ratios(self) -> tuple[float, float]:
        """pipeline / plain and pipeline / pure: medians of the ratios within a round."""
        return ratio(self.pipeline, self.plain), ratio(self.pipeline, self.pure[self.best])


def ratio(ours: list[float], other: list[float]) -> float:
    """The median of the ratios of figures from the same round."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def measure(players: dict[str, Player], work: str, case: Case, rounds: int, targets: tuple[float, float]) -> Row:
    """One round to warm up, then as many as asked for: plain, pipeline, pure, plain, …"""
    began, name = time.perf_counter(), f"{work:<8}{case.name}"
    speeds: dict[tuple[str, str], list[float]] = {}
    for side, player in players.items():
        speeds |= {(side, variant): [] for variant in player.ask("make", work, case)}
    for number in range(rounds + 1):
        for (side, variant), found in speeds.items():
            found.append(players[side].ask("round", variant))
        seconds = time.perf_counter() - began
        print(f"  {name}: {f'round {number}' if number else 'warm'}, {seconds:.0f} s", file=sys.stderr, flush=True)
    kept = {variant: found[1:] for (_, variant), found in speeds.items()}
    return Row(name, kept.pop("plain"), kept.pop("pipeline"), kept, *targets)


# --- the table ----------------------------------------------------------------------------------------------------


def show(rows: list[Row]) -> None:
    """The table, the spread, then what each variant of the model alone reached."""
    median = statistics.median
    print(f"\n{'images/s':<32}{'plain':>7}{'pipeline':>10}{'pure':>7}   {'/plain':<20}{'/pure':<20}")
    for row in rows:
        over, of = row.ratios()
        speeds = f"{median(row.plain):>7.0f}{median(row.pipeline):>10.0f}{median(row.pure[row.best]):>7.0f}"
        verdicts = f"{verdict(over, row.over_plain):<20}{verdict(of, row.of_pure)}"
        print(f"{row.name:<32}{speeds}   {verdicts}")
    print("\nlowest–highest round")
    for row in rows:
        speeds = (row.plain, row.pipeline, row.pure[row.best])
        print(f"{row.name:<32}" + "".join(f"{f'{min(s):.0f}–{max(s):.0f}':>14}" for s in speeds))
    print("\nthe model alone, each variant (* the limit)")
    for row in rows:
        for variant, found in row.pure.items():
            mark = "*" if variant == row.best else ""
            print(f"{row.name:<32}{variant:<38}{median(found):>8.0f} {mark}")


def verdict(value: float, target: float) -> str:
    """The ratio, its target, and whether it is met."""
    return f"{value:.2f} (≥ {target:g}) {'pass' if value >= target else 'MISS'}"


def native_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers itself."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def header() -> str:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    packages = ("torch", "timm", "lightning-fabric", "albumentations", "opencv-python-headless", "numpy")
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.date.today()}  {model or platform.processor()}, {hardware.physical_cores()} cores, "
        f"native bf16: {'yes' if native_bf16() else 'no'}, torch threads: {torch.get_num_threads()}, "
        f"load before: {load}\n" + "  ".join(versions)
    )


def cases(folder: Path, images_a_round: int) -> list[Case]:
    """Small PNGs and camera JPEGs, a sixth as many, drawn into folder."""
    small = max(2, images_a_round // BATCH) * BATCH
    large = max(2, images_a_round // 6 // BATCH) * BATCH
    png = draw(folder / "png", small, 32, 32, ".png")
    jpeg = draw(folder / "jpeg", large, 512, 384, ".jpg")
    return [
        Case("32 px PNG", folder / "png", png, 32, small, 2 * small, small // 4),
        Case("128 px, 512×384 JPEG", folder / "jpeg", jpeg, 128, large, 2 * large, large // 4),
    ]


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3072, help="small images a round; a sixth as many JPEGs")
    parser.add_argument("--rounds", type=int, default=4, help="rounds that count")
    parser.add_argument("--quick", action="store_true", help="2 rounds of half as many images")
    asked = parser.parse_args()
    count, rounds = (asked.images // 2, 2) if asked.quick else (asked.images, asked.rounds)
    began = time.perf_counter()
    print(header(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        small, photos = cases(Path(folder), count)
        size = statistics.mean(path.stat().st_size for path in photos.folder.iterdir())
        print(f"{len(small.files)} PNGs of 32×32, {len(photos.files)} JPEGs of 512×384, {size / 1000:.0f} KB each")
        players = {side: Player(side) for side in ("plain", "pipeline", "pure")}
        try:
            rows = [
                measure(players, "train", small, rounds, (1.5, 0.75)),
                measure(players, "predict", small, rounds, (2.0, 0.5)),
                measure(players, "train", photos, rounds, (2.2 if native_bf16() else 1.3, 0.75)),
                measure(players, "predict", photos, rounds, (2.0, 0.5)),
            ]
        finally:
            for player in players.values():
                player.stop()
    show(rows)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{rounds} rounds, {time.perf_counter() - began:.0f} s; load after: {load}")


if __name__ == "__main__":
    main()
