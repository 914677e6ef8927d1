"""Images per second of networks with ``pipeline/cpu_convolutions.py`` and with nn.Conv2d, side by side on a CPU.

    .venv/bin/python benchmarks/convolutions.py

Training steps of the model alone with fused Adam, in fp32 and in bf16, and prediction in bf16 with BatchNorm folded, in
batches of 256; the sides take turns, and a ratio is the median over the rounds. docs/performance.md tells the outcome.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from pipeline.config import Config
from pipeline.cpu_convolutions import CpuConv2d
from pipeline.hardware import choose, physical_cores, start
from pipeline.network import Blueprint, Network, build, for_prediction

TRAINED = (
    ("resnet18", 32, 64),
    ("resnet18", 64, 64),
    ("resnet50", 32, 64),
    ("regnety_004", 32, 64),
    ("efficientnet_b0", 64, 64),
    ("efficientnet_b0", 224, 16),
    ("mobilenetv3_large_100", 128, 32),
    ("convnext_atto", 128, 32),
)
PREDICTED = (("resnet18", 32), ("resnet18", 40), ("resnet18", 64), ("resnet50", 64), ("efficientnet_b0", 64))
ROUNDS, SECONDS = 5, 2.0


def main() -> None:
    """Print a line a case."""
    start(choose(Config()))
    print(f"{platform.processor() or platform.machine()}, {physical_cores()} cores, torch {torch.__version__}")
    print(f"{'training':<24} side  batch  format  nn.Conv2d    ours  ratio")
    for backbone, side, batch in TRAINED:
        for half in (False, True):
            steps = [training(new(backbone, side, ours), batch, half) for ours in (False, True)]
            tell(f"{backbone:<24} {side:>4} {batch:>6}    {'bf16' if half else 'fp32'}", steps, batch)
    print(f"{'prediction':<24} side  batch  format  nn.Conv2d    ours  ratio")
    for backbone, side in PREDICTED:
        steps = [prediction(new(backbone, side, ours)) for ours in (False, True)]
        tell(f"{backbone:<24} {side:>4} {256:>6}    bf16", steps, 256)


def new(backbone: str, side: int, ours: bool) -> Network:
    """A network with our convolutions, or with torch's."""
    plan = Blueprint(
        backbone, "avg()", "linear()", 3, side, "stretch", [0.5] * 3, [0.25] * 3, [str(k) for k in range(10)]
    )
    network = build(plan).to(memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, CpuConv2d) and not ours:
            layer.__class__ = nn.Conv2d
    return network


def training(network: Network, batch: int, half: bool) -> Callable[[], None]:
    """A step of training."""
    side = network.blueprint.image_size
    optimizer = torch.optim.Adam(network.train().parameters(), fused=True)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)
    target = torch.arange(batch) % 10

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def prediction(network: Network) -> Callable[[], None]:
    """A batch of prediction."""
    side, fast = network.blueprint.image_size, for_prediction(network, torch.bfloat16)
    images = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.inference_mode():
            fast(images)

    return step


def tell(name: str, steps: list[Callable[[], None]], batch: int) -> None:
    """Time both in turns, and print the line."""
    for step in steps:
        step()
        step()
    speeds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for step, found in zip(steps, speeds, strict=True):
            found.append(speed(step, batch))
    ratio = statistics.median(ours / plain for plain, ours in zip(*speeds, strict=True))
    plain, ours = (statistics.median(found) for found in speeds)
    print(f"{name}  {plain:>9.0f} {ours:>7.0f} {ratio:>6.2f}", flush=True)


def speed(step: Callable[[], None], batch: int) -> float:
    """Images per second."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        count += 1
    return batch * count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
