"""Lets torchvision be imported beside a torch that its native library was not built for.

The torchvision that PyPI ships is built for CUDA. Beside a CPU-only torch its native library does not load, and the
import fails, because torchvision gives two operators their shape functions that only that library would have
registered. Neither timm nor segmentation-models-pytorch calls them. So their schemas, without any implementation, are
registered here, and only where the library does not load. Call ``fix_torchvision()`` before importing either.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # as torchvision 0.28 registers both


def fix_torchvision() -> None:
    """Define the operators ``torchvision::nms`` and ``torchvision::qnms`` where the native library cannot."""
    import torch

    if _library_loads():
        return
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):  # defined before: by an earlier call
            torch.library.define(f"torchvision::{name}", SCHEMA)  # torch keeps it alive


def _library_loads() -> bool:
    """Whether torchvision is absent, or its native library loads as torchvision itself loads it."""
    import torch

    package = importlib.util.find_spec("torchvision")
    if package is None:
        return True
    library = PathFinder.find_spec("_C", package.submodule_search_locations)
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except OSError:
        return False
    return True
