"""Number format, memory layout and threads: a fixed rule from the hardware and the input size (never a timing).

The rule and its measurements are in docs/performance.md. ``precision=``, ``device=`` and ``train.threads=`` override
it; what was chosen is written to the run's config, and later folds of the same run read it there.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.rules import unbatched

SMALL_SIDE = 16  # below this side, casting to bf16 costs a CPU more in training than the products gain
RESIDENT = 0.25  # of a GPU's memory that images may take by themselves; where they are asked to lie there, …
MOST_RESIDENT = 0.75  # … this much
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Hardware:
    """Where and in which format a run computes.

    device: "cpu", "cuda", "cuda:1" or "mps". precision: "fp32", "bf16" or "fp16", for training; predict: the same for
    prediction. threads: CPU threads, which are part of the result on a CPU, since sums depend on their order. loader:
    "threads" or "device", whose augmentations draw otherwise.
    """

    device: str
    precision: str
    predict: str
    threads: int
    loader: str = "threads"

    @property
    def kind(self) -> str:
        """The accelerator without its number."""
        return self.device.partition(":")[0]

    def facts(self) -> dict[str, Any]:
        """Plain values for the run's config."""
        return dataclasses.asdict(self)


def choose(config: Config, pixels: int = 0) -> Hardware:
    """The hardware format of a new run. pixels: bytes of the images that a member may learn from; 0: not known."""
    device = _device(config.device)
    check_devices(device, config.devices)
    train, predict = _formats(device, config.image_size >= SMALL_SIDE)
    if config.precision != "auto":
        train = predict = config.precision
    if train == "fp16" and device == "cpu":
        raise UserError("precision=fp16, but a CPU trains in fp32 or bf16; choose one of these or precision=auto")
    return Hardware(device, train, predict, config.train.threads or physical_cores(), _loader(config, device, pixels))


def physical_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_devices(device: str, count: int) -> None:
    """UserError where this machine has fewer devices of a kind; a CPU has room for any number of processes."""
    import torch

    kind, _, number = device.partition(":")
    if count == 1 or kind == "cpu":
        return
    if number:
        raise UserError(f"device={device} is one device, but devices={count}; device={kind} takes the first {count}")
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if there < count:
        raise UserError(
            f"devices={count}, but this machine has {there} of device={kind}; set devices={there}, under another name "
            "(run=NAME) if the run has begun"
        )


def start(hardware: Hardware, processes: int = 1) -> None:
    """Fix the thread count and the deterministic kernels for this process, of so many that share the threads.

    UserError where this machine lacks the device that the run computes on, as one that only submits jobs may.
    """
    import torch

    if not _is_there(hardware.device):
        raise UserError(
            f"the run computes on device={hardware.device}, as its config.yaml says, which this machine has not; start "
            "the command on one that has, or train a new run here, run=NAME"
        )
    torch.set_num_threads(max(1, hardware.threads // processes))
    torch.backends.cudnn.benchmark = False  # it picks kernels by timing: two runs would differ
    torch.backends.cudnn.deterministic = True
    if hardware.kind == "cuda":
        torch.set_float32_matmul_precision("high")
    if hardware.kind == "cpu":
        _keep_memory()


def _keep_memory() -> None:
    """Let glibc keep what is freed: returning a batch's activations and getting them anew, page by page, costs a CPU
    up to a third of a training step. Other C libraries are left as they are."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap too, …
        mallopt(M_TRIM_THRESHOLD, -1)  # … whose top is never given back


def peak_memory() -> int:
    """Bytes that this process held at most: on the GPU if it computes on one, else in main memory (0: not known)."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux kilobytes


def return_memory() -> None:
    """Let glibc give back what is free, after a block far larger than those of a step; see ``_keep_memory``."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise UserError(f"device={asked}, but device is auto, cpu, cuda, cuda:N or mps")
    if not _is_there(asked):
        raise UserError(f"device={asked}, but this machine has no such device; device=auto takes what is there")
    return asked


def _is_there(device: str) -> bool:
    """Whether this machine has a device of this name."""
    import torch

    kind, _, number = device.partition(":")
    if kind == "cuda":
        return torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
    return kind == "cpu" or torch.backends.mps.is_available()


def _loader(config: Config, device: str, pixels: int) -> str:
    """Where batches are made. A GPU's whole memory counts, not what is free of it now: that would be chance."""
    import torch

    memory = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else 0
    if config.loader == "device" and memory and pixels > MOST_RESIDENT * memory:
        raise UserError(
            f"loader=device, but the images take {pixels / 1e9:.1f} GB of the {memory / 1e9:.1f} GB that {device} has; "
            "set loader=threads, or a smaller image_size"
        )
    fits = 0 < pixels <= RESIDENT * memory and not unbatched(config)
    return config.loader if config.loader != "auto" else "device" if fits else "threads"


def _formats(device: str, large: bool) -> tuple[str, str]:
    """(training, prediction) format of a device; the products of prediction gain from bf16 at every size."""
    import torch

    if device.startswith("cuda"):
        major = torch.cuda.get_device_capability(torch.device(device))[0]
        both = "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
        return both, both
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return ("bf16" if large else "fp32"), "bf16"
    return "fp32", "fp32"
