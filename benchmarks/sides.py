"""The sides that ``throughput.py`` compares: a plain PyTorch loop, this pipeline, and the model alone, for each work.

A side is a function that does one round and returns images per second. Where several views, scales and members look at
an image, each look counts as one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from torch import nn

from pipeline import engine, forms, hardware, images, infer, masked, network, registry
from pipeline.config import Config, Data
from pipeline.data import Joined, Loader, Table
from pipeline.learner import Learner
from pipeline.parts import views
from pipeline.tasks.multiclass import Multiclass
from pipeline.torchvision_fix import fix_torchvision

CLASSES, WORKERS, LR = 10, 2, 3e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}
PLAIN, TUNED = "plain", "plain, bf16 channels_last"


@dataclass(frozen=True)
class Case:
    """Files of one kind, what is done with them, and how many images a round takes.

    count: images that pass through the loop in a round; pure: images of a round of each variant of the model alone.
    augment: of training. views, scales, members: of prediction. masks: planes are learned instead of classes.
    """

    name: str
    folder: Path
    files: list[str]
    image_size: int
    count: int
    pure: int
    batch: int = 64
    augment: str = "flips()"
    views: tuple[str, ...] = ("identity()",)
    scales: tuple[float, ...] = (1.0,)
    members: int = 1
    masks: bool = False

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 classes, of no meaning."""
        return np.arange(len(self.files)) % CLASSES

    @cached_property
    def planes(self) -> np.ndarray:
        """(N, S, S, 1) uint8: a disc in each image, 0…254."""
        rows, columns = np.mgrid[: self.image_size, : self.image_size]
        centre, radius = self.image_size / 2, self.image_size / (3 + self.labels[:, None, None] / 4)
        disc = (rows - centre) ** 2 + (columns - centre) ** 2 < radius**2
        return forms.levels(disc[..., None].astype(np.float32))

    @property
    def sizes(self) -> list[int]:
        """Sides in pixels, one a scale."""
        return [round(self.image_size * scale) for scale in self.scales]

    @property
    def looks(self) -> int:
        """How often each image is looked at."""
        return len(views.expand(self.views)) * len(self.scales) * self.members


Side = Callable[[], float]
"""Does one round; returns images per second."""

Sides = dict[str, Side]
"""By name of the variant."""


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

    def __init__(self, case: Case, size: int, length: int, training: bool) -> None:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        first = [] if case.files[0].endswith(".png") and size == case.image_size else [A.Resize(size, size)]
        changes = registry.build("augments", case.augment)(size) if training else []
        self.transform = A.Compose([*first, *changes, A.Normalize(MEAN, STD), ToTensorV2()])
        self.paths, self.labels = [f"{case.folder}/{name}" for name in case.files], case.labels
        self.masks = case.planes[..., 0] // 254 if case.masks else None
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> tuple[torch.Tensor, Any]:
        place = item % len(self.paths)
        image = cv2.cvtColor(cv2.imread(self.paths[place]), cv2.COLOR_BGR2RGB)
        if self.masks is None:
            return self.transform(image=image)["image"], int(self.labels[place])
        height, width = image.shape[:2]
        mask = cv2.resize(self.masks[place], (width, height), interpolation=cv2.INTER_NEAREST)
        found = self.transform(image=image, mask=mask)
        return found["image"], found["mask"].float()[None]


def resnet18() -> nn.Module:
    """The classifier of all sides."""
    fix_torchvision()
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=CLASSES)


def unet() -> nn.Module:
    """The segmenter of all sides."""
    fix_torchvision()
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    return smp.Unet("resnet18", encoder_weights=None, classes=1)


def model_of(case: Case) -> tuple[nn.Module, nn.Module]:
    """Model and loss of a plain loop."""
    return (unet(), nn.BCEWithLogitsLoss()) if case.masks else (resnet18(), nn.CrossEntropyLoss())


def plain_loader(case: Case, size: int, length: int, training: bool) -> Any:
    """The workers stay alive between epochs, which a plain loop need not do, but which only makes it faster."""
    data = Files(case, size, length, training)
    return torch.utils.data.DataLoader(
        data, case.batch, shuffle=training, drop_last=training, num_workers=WORKERS, persistent_workers=True
    )


def plain_training(case: Case) -> Sides:
    """An epoch of the usual loop, and one whose author knows bf16, channels_last and the fused Adam."""
    loader = plain_loader(case, case.image_size, case.count, training=True)

    def epoch_of(tuned: bool) -> Side:
        model, criterion = model_of(case)
        layout = torch.channels_last if tuned else torch.contiguous_format
        model = model.to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=tuned)

        def epoch() -> float:
            began, done = time.perf_counter(), 0
            model.train()
            for batch, targets in loader:
                optimizer.zero_grad()
                with torch.autocast(**BF16, enabled=tuned):
                    loss = criterion(model(batch.to(memory_format=layout)), targets)
                loss.backward()
                optimizer.step()
                done += len(batch)
            return done / (time.perf_counter() - began)

        return epoch

    return {PLAIN: epoch_of(tuned=False), TUNED: epoch_of(tuned=True)}


def plain_inference(case: Case) -> Sides:
    """Predictions of all images by the usual loop: a pass over the files for each member and scale, views inside."""
    loaders = [plain_loader(case, size, case.count, training=False) for size in case.sizes]
    looked = views.expand(case.views)

    def everything_of(tuned: bool) -> Side:
        layout = torch.channels_last if tuned else torch.contiguous_format
        models = [resnet18().eval().to(memory_format=layout) for _ in range(case.members)]

        def everything() -> float:
            began, done = time.perf_counter(), 0
            with torch.no_grad(), torch.autocast(**BF16, enabled=tuned):
                for model, loader in itertools.product(models, loaders):
                    for batch, _ in loader:
                        for view in looked:
                            done += len(model(view.apply(batch).to(memory_format=layout)).softmax(1))
            return done / (time.perf_counter() - began)

        return everything

    return {PLAIN: everything_of(tuned=False), TUNED: everything_of(tuned=True)}


# --- this pipeline ------------------------------------------------------------------------------------------------


def pipeline_config(case: Case) -> Config:
    """The settings of a run that does what the plain loop does."""
    planes = {"decoder": "unet()", "loss": "bce()"} if case.masks else {}
    return Config(
        backbone="resnet18", pretrained=False, image_size=case.image_size, batch_size=case.batch, epochs=1, lr=LR,
        augment=case.augment, symmetry="d4", data=Data(channels=3), views=list(case.views), scales=list(case.scales),
        **planes,
    )  # fmt: skip


def store(case: Case, config: Config, size: int) -> images.Images:
    """The decoded cache of the case's files."""
    return images.open_cache(
        case.folder, case.files, channels=3, size=size, resize=config.data.resize,
        cache_root=case.folder.parent / "cache", limit_gb=config.data.cache_gb,
    )  # fmt: skip


def new_network(case: Case, config: Config) -> network.Network:
    """A resnet18, or a U-Net over it, as stage=train makes it."""
    names = ["disc"] if case.masks else [str(label) for label in range(CLASSES)]
    plan = network.Blueprint(
        config.backbone, config.pool, config.head, 3, case.image_size, config.data.resize, [*MEAN], [*STD], names,
        decoder=config.decoder if case.masks else "",
    )  # fmt: skip
    return network.new(plan, pretrained=False, weights="")


def pipeline_training(case: Case) -> Sides:
    """An epoch by engine.fit; its images per second are those that log.csv tells."""
    config = pipeline_config(case)
    machine = hardware.choose(config)
    hardware.start(machine)
    learns = forms.MASKS if case.masks else forms.CLASSES
    fabric, learner = engine.make_fabric(machine), Learner(new_network(case, config), config, learns)
    rows = np.arange(case.count) % len(case.files)
    targets = rows if case.masks else case.labels[rows]
    table = Table(rows, targets, np.ones(len(rows), dtype=np.float32))
    pixels = store(case, config, case.image_size)
    source = masked.Whole([pixels], [case.planes]) if case.masks else Joined([pixels])
    loader, number = Loader(source, table, config), itertools.count()

    def epoch() -> float:
        folder = case.folder.parent / f"{case.name}-{next(number)}"
        folder.mkdir()
        progress = engine.fit(fabric, learner, loader, config, folder, None)
        shutil.rmtree(folder)
        return progress.history[-1]["images_per_second"]

    return {"pipeline": epoch}


def pipeline_inference(case: Case) -> Sides:
    """Predictions of all images by infer.predict, member after member, as stage=predict does it."""
    config = pipeline_config(case)
    machine = hardware.choose(config)
    hardware.start(machine)
    models = [infer.ready(new_network(case, config).eval(), machine) for _ in range(case.members)]
    task, looked = Multiclass(map(str, range(CLASSES))), views.expand(config.views)
    rows = np.arange(case.count) % len(case.files)
    stores = [(store(case, config, size), infer.batch_size(config.predict_batch, size)) for size in case.sizes]

    def everything() -> float:
        began = time.perf_counter()
        for model, (pixels, batch) in itertools.product(models, stores):
            infer.predict(model, task, pixels, rows, looked, batch)
        return len(rows) * case.looks / (time.perf_counter() - began)

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
        model, criterion = model_of(case)
        model = model.train().to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=fused)
        batch = torch.randn(case.batch, 3, case.image_size, case.image_size).to(memory_format=layout)
        targets = torch.from_numpy(case.planes[:1]).permute(0, 3, 1, 2).float() / 254 if case.masks else None
        aim = torch.arange(case.batch) % CLASSES if targets is None else targets.expand(case.batch, -1, -1, -1)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(**BF16, enabled=bf16):
                loss = criterion(model(batch), aim)
            loss.backward()
            optimizer.step()

        return steady(step, case.batch, case.pure)

    last, first = torch.channels_last, torch.contiguous_format
    return {
        "fp32": variant(first, False, False),
        "fp32, fused Adam": variant(first, False, True),
        "fp32 channels_last, fused Adam": variant(last, False, True),
        "bf16 channels_last, fused Adam": variant(last, True, True),
    }


def pure_inference(case: Case) -> Sides:
    """Forward passes on batches in memory, one a scale; threads and memory are set as the pipeline sets them."""
    hardware.start(hardware.choose(pipeline_config(case)))
    found = {}
    for size in (64, 256):
        plain = [torch.randn(size, 3, side, side) for side in case.sizes]
        fast = [batch.to(torch.bfloat16, memory_format=torch.channels_last) for batch in plain]
        cast = resnet18().eval().to(torch.bfloat16, memory_format=torch.channels_last)
        folded = network.fold_batchnorm(resnet18().eval()).to(torch.bfloat16, memory_format=torch.channels_last)
        for name, model, batches in (
            ("fp32", resnet18().eval(), plain), ("bf16 channels_last", cast, fast), ("bf16 folded", folded, fast),
        ):  # fmt: skip
            step, count = forward(model, batches), size * len(batches)
            found[f"{name}, batch {size}"] = steady(step, count, max(case.pure, 2 * count))
    compiled = compile_frozen(resnet18().eval().to(torch.bfloat16, memory_format=torch.channels_last))
    if compiled is not None:
        found["bf16 compiled and frozen, batch 256"] = steady(forward(compiled, fast), count, max(case.pure, 2 * count))
    return found


def forward(model: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor]) -> Callable[[], Any]:
    """A call of the model on each of these batches, without gradients."""

    def step() -> None:
        with torch.no_grad():  # not inference_mode, in which inductor does not freeze
            for batch in batches:
                model(batch)

    return step


def compile_frozen(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The model through inductor with its weights frozen in; None without a C++ compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(model, dynamic=False)


MAKERS: dict[str, dict[str, Callable[[Case], Sides]]] = {
    "train": {"plain": plain_training, "pipeline": pipeline_training, "pure": pure_training},
    "predict": {"plain": plain_inference, "pipeline": pipeline_inference, "pure": pure_inference},
}
