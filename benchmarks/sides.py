"""The sides that ``throughput.py`` compares: a plain PyTorch loop, this pipeline, and the model alone, for each work.

A side is a function that does one round and returns images per second. Where several views, scales and members look at
an image, each look counts as one. All sides compute on the GPU if there is one, and the clock is read when it is idle.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from torch import nn

from pipeline import compiling, engine, forms, hardware, images, infer, masked, network, registry, resident
from pipeline.config import Config, Data
from pipeline.data import Joined, Table
from pipeline.learner import Learner
from pipeline.parts import views
from pipeline.tasks.multiclass import Multiclass
from pipeline.torchvision_fix import fix_torchvision

CLASSES, LR = 10, 3e-4
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
OLD = GPU and torch.cuda.get_device_capability() < (8, 0)  # a T4, say: half a number is fp16 there, and needs a scaler
HALF, SHORT = (torch.float16, "fp16") if OLD else (torch.bfloat16, "bf16")
AUTOCAST = {"device_type": DEVICE.type, "dtype": HALF}
WORKERS = min(16, hardware.physical_cores()) if GPU else 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN, TUNED, OURS = "plain", f"plain, {SHORT} channels_last", "pipeline"
MISSING = [name for name in ("albumentations", "segmentation_models_pytorch") if not importlib.util.find_spec(name)]


@dataclass(frozen=True)
class Case:
    """Files of one kind, what is done with them, and how many images a round takes.

    count: images that pass through the loop in a round; pure: images of a round of each variant of the model alone.
    augment: of training. views, scales, members: of prediction. masks: planes are learned instead of classes. compiled:
    compiled models are measured too.
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
    compiled: bool = not GPU

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


def clock() -> float:
    """Seconds, read when the GPU has done all that it was asked for."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


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
        data, case.batch, shuffle=training, drop_last=training, num_workers=WORKERS, persistent_workers=True,
        pin_memory=GPU,
    )  # fmt: skip


def plain_training(case: Case) -> Sides:
    """An epoch of the usual loop, and one whose author knows bf16, channels_last and the fused Adam."""
    if "albumentations" in MISSING:
        return {}
    loader = plain_loader(case, case.image_size, case.count, training=True)

    def epoch_of(tuned: bool) -> Side:
        model, criterion = model_of(case)
        layout = torch.channels_last if tuned else torch.contiguous_format
        model = model.to(DEVICE, memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=tuned)
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=OLD and tuned)

        def epoch() -> float:
            began, done = clock(), 0
            model.train()
            for batch, targets in loader:
                optimizer.zero_grad()
                batch = batch.to(DEVICE, memory_format=layout, non_blocking=True)
                with torch.autocast(**AUTOCAST, enabled=tuned):
                    loss = criterion(model(batch), targets.to(DEVICE, non_blocking=True))
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                done += len(batch)
            return done / (clock() - began)

        return epoch

    return {PLAIN: epoch_of(tuned=False), TUNED: epoch_of(tuned=True)}


def plain_inference(case: Case) -> Sides:
    """Predictions of all images by the usual loop: a pass over the files for each member and scale, views inside."""
    if "albumentations" in MISSING:
        return {}
    loaders = [plain_loader(case, size, case.count, training=False) for size in case.sizes]
    looked = views.expand(case.views)

    def everything_of(tuned: bool) -> Side:
        layout = torch.channels_last if tuned else torch.contiguous_format
        models = [resnet18().eval().to(DEVICE, memory_format=layout) for _ in range(case.members)]

        def everything() -> float:
            began, done = clock(), 0
            with torch.no_grad(), torch.autocast(**AUTOCAST, enabled=tuned):
                for model, loader in itertools.product(models, loaders):
                    for batch, _ in loader:
                        batch = batch.to(DEVICE, non_blocking=True)
                        for view in looked:
                            done += len(model(view.apply(batch).to(memory_format=layout)).softmax(1))
            return done / (clock() - began)

        return everything

    return {PLAIN: everything_of(tuned=False), TUNED: everything_of(tuned=True)}


# --- this pipeline ------------------------------------------------------------------------------------------------


def pipeline_config(case: Case) -> Config:
    """The settings of a run that does what the plain loop does."""
    masks = {"decoder": "unet()", "loss": "bce()", "metric": "dice()"}
    learned = masks if case.masks else {"loss": "cross_entropy()", "metric": "accuracy()"}
    return Config(
        backbone="resnet18", pretrained=False, image_size=case.image_size, batch_size=case.batch, epochs=1, lr=LR,
        augment=case.augment, symmetry="d4", data=Data(channels=3), views=list(case.views), scales=list(case.scales),
        **learned,
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
        outputs=len(names), decoder=config.decoder if case.masks else "",
    )  # fmt: skip
    return network.new(plan, pretrained=False, weights="")


def pipeline_training(case: Case) -> Sides:
    """An epoch by engine.fit; its images per second are those that log.csv tells.

    On a GPU the loader that the hardware does not choose is a variant, and so is train.compile=true. Without
    albumentations images can be augmented on the device alone.
    """
    config = pipeline_config(case)
    depth = 3 + (case.planes.shape[-1] if case.masks else 0)
    machine = hardware.choose(config, len(case.files) * case.image_size**2 * depth)
    if "albumentations" in MISSING:
        machine = replace(machine, loader="device")
    found = {OURS: one_training(case, config, machine)}
    if machine.loader == "device" and not MISSING:
        found[f"{OURS}, loader=threads"] = one_training(case, config, replace(machine, loader="threads"))
    if GPU and case.compiled:
        compiled = replace(config, train=replace(config.train, compile=True))
        found[f"{OURS}, train.compile=true"] = one_training(case, compiled, machine)
    return found


def one_training(case: Case, config: Config, machine: hardware.Hardware) -> Side:
    """An epoch on this hardware."""
    hardware.start(machine)
    learns = forms.MASKS if case.masks else forms.CLASSES
    fabric, learner = engine.make_fabric(machine), Learner(new_network(case, config), config, learns)
    rows = np.arange(case.count) % len(case.files)
    targets = rows if case.masks else case.labels[rows]
    table = Table(rows, targets, np.ones(len(rows), dtype=np.float32))
    pixels = store(case, config, case.image_size)
    source = masked.Whole([pixels], [case.planes]) if case.masks else Joined([pixels])
    loader, number = resident.loader(source, table, config, machine, fabric.device), itertools.count()

    def epoch() -> float:
        folder = case.folder.parent / f"{case.name}-{next(number)}"
        folder.mkdir()
        progress = engine.fit(fabric, learner, loader, config, folder, None)
        shutil.rmtree(folder)
        return progress.history[-1]["images_per_second"]

    return epoch


def pipeline_inference(case: Case) -> Sides:
    """Predictions of all images by infer.predict, member after member, as stage=predict does it.

    They are compiled where a long prediction would be, before the clock runs.
    """
    config = pipeline_config(case)
    machine = hardware.choose(config)
    hardware.start(machine)
    models = [infer.ready(new_network(case, config).eval(), machine) for _ in range(case.members)]
    task, looked = Multiclass(map(str, range(CLASSES))), views.expand(config.views)
    rows = np.arange(case.count) % len(case.files)
    stores = [(store(case, config, size), infer.batch_size(config.predict_batch, size)) for size in case.sizes]
    if compiling.wanted("auto", models[0], case.sizes, looks=10**9, threads=machine.threads):
        for model in models:
            compiling.make(model)
        for model, (pixels, batch) in itertools.product(models, stores):
            infer.predict(model, task, pixels, rows[:1], looked, batch)

    def everything() -> float:
        began = clock()
        for model, (pixels, batch) in itertools.product(models, stores):
            infer.predict(model, task, pixels, rows, looked, batch)
        return len(rows) * case.looks / (clock() - began)

    return {OURS: everything}


# --- the model alone ----------------------------------------------------------------------------------------------


def steady(step: Callable[[], Any], size: int, total: int) -> Side:
    """Repeats a step of ``size`` images until ``total`` are done."""

    def repeat() -> float:
        count = max(2, total // size)
        began = clock()
        for _ in range(count):
            step()
        return count * size / (clock() - began)

    return repeat


def pure_training(case: Case) -> Sides:
    """Training steps on one batch in memory; threads and memory are set as the pipeline sets them.

    timed: cuDNN chooses its kernels by timing, and not for being deterministic, which the pipeline does without.
    """
    hardware.start(hardware.choose(pipeline_config(case)))

    def variant(
        layout: torch.memory_format, half: bool, fused: bool, timed: bool = False, compiled: bool = False
    ) -> Side:
        model, criterion = model_of(case)
        model = model.train().to(DEVICE, memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=fused)
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=OLD and half)
        batch = torch.randn(case.batch, 3, case.image_size, case.image_size).to(DEVICE, memory_format=layout)
        if compiled:
            model.compile()
        targets = torch.from_numpy(case.planes[:1]).permute(0, 3, 1, 2).float() / 254 if case.masks else None
        aim = torch.arange(case.batch) % CLASSES if targets is None else targets.expand(case.batch, -1, -1, -1)
        aim = aim.to(DEVICE)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(**AUTOCAST, enabled=half), _kernels(timed):
                loss = criterion(model(batch), aim)
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return steady(step, case.batch, case.pure)

    last, first = torch.channels_last, torch.contiguous_format
    best = f"{SHORT} channels_last, fused Adam"
    found = {
        "fp32": variant(first, False, False),
        "fp32, fused Adam": variant(first, False, True),
        "fp32 channels_last, fused Adam": variant(last, False, True),
        best: variant(last, True, True),
    }
    if GPU:
        found[f"{best}, timed"] = variant(last, True, True, timed=True)
    if GPU and case.compiled:
        found[f"{best}, timed, compiled"] = variant(last, True, True, timed=True, compiled=True)
    return found


def _kernels(timed: bool) -> Any:
    """How cuDNN chooses its kernels, within."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=timed, deterministic=not timed)


def pure_inference(case: Case) -> Sides:
    """Forward passes on batches in memory, one a scale; threads and memory are set as the pipeline sets them."""
    hardware.start(hardware.choose(pipeline_config(case)))
    found, layout = {}, {"dtype": HALF, "memory_format": torch.channels_last}
    for size in (256, 1024) if GPU else (64, 256):
        plain = [torch.randn(size, 3, side, side).to(DEVICE) for side in case.sizes]
        fast = [batch.to(**layout) for batch in plain]
        cast = resnet18().eval().to(DEVICE, **layout)
        folded = network.fold_batchnorm(resnet18().eval()).to(DEVICE, **layout)
        for name, model, batches in (
            ("fp32", resnet18().eval().to(DEVICE), plain), (f"{SHORT} channels_last", cast, fast),
            (f"{SHORT} folded", folded, fast),
        ):  # fmt: skip
            step, count = forward(model, batches), size * len(batches)
            found[f"{name}, batch {size}"] = steady(step, count, max(case.pure, 2 * count))
    compiled = compile_frozen(resnet18().eval().to(DEVICE, **layout)) if case.compiled else None
    if compiled is not None:
        name = f"{SHORT} compiled and frozen, batch {size}"
        found[name] = steady(forward(compiled, fast), count, max(case.pure, 2 * count))
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
    return torch.compile(model, dynamic=False, mode="max-autotune-no-cudagraphs" if GPU else None)


MAKERS: dict[str, dict[str, Callable[[Case], Sides]]] = {
    "train": {"plain": plain_training, "pipeline": pipeline_training, "pure": pure_training},
    "predict": {"plain": plain_inference, "pipeline": pipeline_inference, "pure": pure_inference},
}
