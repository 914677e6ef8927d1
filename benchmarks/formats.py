"""Number formats of training, side by side: images per second of the model alone, and bf16's ratio to fp32.

    .venv/bin/python benchmarks/formats.py

What pipeline/hardware.py's rule rests on: casting to bf16 costs a CPU time, which only large maps earn back. The sides
take turns; each ratio is the median over the rounds.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pipeline.hardware import physical_cores
from pipeline.network import Blueprint, build

CASES = (
    ("resnet18", 16, 64),
    ("resnet18", 32, 64),
    ("resnet18", 64, 64),
    ("resnet18", 96, 32),
    ("efficientnet_b0", 32, 64),
    ("efficientnet_b0", 64, 64),
    ("convnext_atto", 64, 64),
    ("vit_tiny_patch16_224", 64, 64),
    ("small_image(width=32)", 16, 64),
    ("small_image(width=32)", 32, 64),
)
ROUNDS, SECONDS = 3, 3.0


def main() -> None:
    """Print a line a case."""
    torch.set_num_threads(physical_cores())
    print(f"{platform.processor() or platform.machine()}, {physical_cores()} cores, torch {torch.__version__}")
    print(f"{'backbone':<22} side  batch   fp32   bf16  bf16/fp32")
    for backbone, side, batch in CASES:
        speeds: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(ROUNDS):
            for name, found in speeds.items():
                found.append(speed(backbone, side, batch, name == "bf16"))
        ratio = statistics.median(b / a for a, b in zip(speeds["fp32"], speeds["bf16"], strict=True))
        middle = {name: statistics.median(found) for name, found in speeds.items()}
        print(
            f"{backbone:<22} {side:>4} {batch:>6} {middle['fp32']:>6.0f} {middle['bf16']:>6.0f} {ratio:>10.2f}",
            flush=True,
        )


def speed(backbone: str, side: int, batch: int, half: bool) -> float:
    """Images per second of training steps with fused Adam in channels_last."""
    plan = Blueprint(
        backbone, "avg()", "linear()", 3, side, "stretch", [0.5] * 3, [0.25] * 3, [str(k) for k in range(10)]
    )
    network = build(plan).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)
    target = torch.arange(batch) % 10

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(2):
        step()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    return batch * steps / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
