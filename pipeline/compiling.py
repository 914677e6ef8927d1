"""Compiled prediction: inductor with frozen weights, where one prediction is long enough to pay for the compiler.

Decided from the hardware and from how much there is to compute, never by a clock, so that two runs give the same bytes.
The measurements behind the rule are in docs/performance.md.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence

import torch

from pipeline.network import Network, PlaneNetwork

LEAST_AMX = 20_000.0  # GFLOP for each thread: several times what makes up for the compiler
LEAST_BF16 = 100_000.0  # the same without AMX tiles, where less is gained
MOST_SIZES = 6  # inductor gives up a module that it has compiled for eight shapes
SLOW = ("SiLU", "Swish", "GELU", "GELUTanh", "LayerNorm", "LayerNorm2d")  # layers of nets that gain nothing, or lose


def wanted(asked: str, network: Network, sizes: Sequence[int], looks: int, threads: int) -> bool:
    """Whether a network is compiled for a prediction of so many looks (images × views) at each of these sizes.

    asked: ``true``, ``false``, or ``auto``: where it was measured to gain, on a CPU with native bf16, for nets without
    SLOW layers, from ``least`` on. Networks of planes see images of too many shapes.
    """
    if asked == "false" or isinstance(network, PlaneNetwork) or len(sizes) > MOST_SIZES or not has_compiler():
        return False
    if asked == "true":
        return True
    if network.normalise.scale.device.type != "cpu" or math.isinf(least()) or _is_slow(network):
        return False
    return looks * sum(gigaflops(network, size) for size in sizes) >= least() * threads


def least() -> float:
    """GFLOP for each thread from which on this CPU's predictions are compiled; infinite where it was not measured."""
    if torch.cpu._is_amx_tile_supported():
        return LEAST_AMX
    return LEAST_BF16 if torch.cpu._is_avx512_bf16_supported() else math.inf


def _is_slow(network: Network) -> bool:
    return any(type(layer).__name__ in SLOW for layer in network.modules())


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which inductor needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name)


def gigaflops(network: Network, size: int) -> float:
    """10⁹ operations of one look at an image of a size; a product and its sum are two."""
    from torch.utils.flop_counter import FlopCounterMode

    device = network.normalise.scale.device
    image = torch.zeros(1, network.blueprint.channels, size, size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.predicted(network.prepare(image))
    return counter.get_total_flops() / 1e9


def make(network: Network) -> None:
    """Compile a network's backbone, in place; the first batch of each shape takes seconds."""
    frozen = torch.compile(network.backbone, dynamic=False, options={"freezing": True})
    network.backbone = frozen  # type: ignore[assignment]
    network.compiled = True
