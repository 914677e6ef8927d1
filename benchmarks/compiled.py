"""What compiled prediction costs and gains, and from how much work on it pays: what predict_compile=auto rests on.

    .venv/bin/python benchmarks/compiled.py [--rounds 5]      5 minutes on 2 idle cores, with a C++ compiler

Networks as stage=predict makes them ready (bf16 where the CPU has it, BatchNorm folded) look at drawn images, as they
are and compiled with frozen weights, turn by turn; the rates are medians. The cost is the first batch less a later one,
with an empty cache of compiled code, and again for a second network of the same kind, whose code is known by then.
Pays from: GFLOP for each thread after which the gain has made up for that first cost; pipeline/compiling.py begins
later.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pipeline import compiling, hardware, infer, network
from pipeline.config import Config

CASES = (
    ("resnet18", 32),
    ("resnet18", 128),
    ("resnet18", 224),
    ("resnet50", 224),
    ("small_image(width=32)", 32),
    ("regnety_004", 224),
    ("efficientnet_b0", 224),
    ("mobilenetv3_large_100", 224),
    ("convnext_atto", 224),
    ("vit_tiny_patch16_224", 224),
)
NAMES = [str(number) for number in range(10)]
LINE = "{:<22}{:>5}{:>8}{:>10}{:>7}{:>8}{:>9}{:>11}"


def ready(backbone: str, side: int, machine: hardware.Hardware, seed: int) -> network.Network:
    """A network from random weights, in the format of prediction."""
    torch.manual_seed(seed)
    plan = network.Blueprint(backbone, "avg()", "linear()", 3, side, "stretch", [0.5] * 3, [0.2] * 3, NAMES)
    return infer.ready(network.new(plan, False, "").eval(), machine)


def seconds(step: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if not compiling.has_compiler():
        raise SystemExit("there is no C++ compiler here; install g++ or clang++")
    machine = hardware.choose(Config())
    hardware.start(machine)
    print(f"torch {torch.__version__}, {machine.threads} threads, {machine.predict}, rates in images/s")
    print(LINE.format("backbone", "side", "plain", "compiled", "ratio", "cost s", "again s", "pays from"))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for backbone, side in CASES:
            print(LINE.format(backbone, side, *measured(backbone, side, machine, rounds)), flush=True)


def measured(backbone: str, side: int, machine: hardware.Hardware, rounds: int) -> list[str]:
    """One network at one size: the cells of its line."""
    plain, first, second = (ready(backbone, side, machine, seed) for seed in (0, 1, 2))
    images = torch.randint(0, 256, (infer.batch_size(256, side), 3, side, side), dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    costs, times = [], {False: list[float](), True: list[float]()}
    with torch.no_grad():
        for one in (first, second):
            compiling.make(one)
            costs.append(seconds(lambda one=one: one.predicted(one.prepare(images))))
        for turn in range(2 * rounds + 2):  # the first two do not count
            one = first if turn % 2 else plain
            times[bool(turn % 2)].append(seconds(lambda one=one: one.predicted(one.prepare(images))))
    before, after = (statistics.median(times[kind][1:]) / len(images) for kind in (False, True))
    saved, look = before - after, compiling.gigaflops(plain, side)
    costs = [cost - after * len(images) for cost in costs]
    pays = f"{costs[0] / saved * look / machine.threads:,.0f}" if saved > 0 else "never"
    rates = f"{1 / before:.0f}", f"{1 / after:.0f}", f"{before / after:.2f}"
    return [*rates, *(f"{cost:.1f}" for cost in costs), pays]


if __name__ == "__main__":
    main()
