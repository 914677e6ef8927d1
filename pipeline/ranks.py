"""What the processes that train one network together tell each other; alone, a process hears itself.

Gradients and norms go through the devices' own backend: nccl, or gloo of CPUs. What processes must agree on goes
through a second group, of their CPUs, so that nobody waits for a device. All of them make the same calls in the same
order, or they would wait for each other for ever.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn

Value = TypeVar("Value")

FOREVER = timedelta(days=7)  # one may decode images for hours; a process that dies is ended by who started it
LOOPBACK = ("lo", "lo0")
_talk: list[Any] = []  # the group of CPUs, where there is one


def join(rank: int, size: int, port: int, kind: str) -> None:
    """Make this process the rank-th of size, on its own device of this kind; who started them listens at the port.

    Nothing is heard from outside this machine: traffic goes over the loopback interface, unless the environment says
    otherwise.
    """
    for name in (name for _, name in socket.if_nameindex() if name in LOOPBACK):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    # what lightning's environment of processes that somebody else started reads, and the threads that it leaves alone
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    device = torch.device(kind, rank) if kind == "cuda" else None
    if device is not None:
        torch.cuda.set_device(device)
    store = distributed.TCPStore("127.0.0.1", port, timeout=FOREVER)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=FOREVER, device_id=device
    )
    _talk.append(distributed.new_group(backend="gloo", timeout=FOREVER))


def leave() -> None:
    """Be alone again."""
    _talk.clear()
    distributed.destroy_process_group()


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _talk else 1


def rank() -> int:
    """Which of them this is; the first, 0, writes and speaks."""
    return distributed.get_rank() if _talk else 0


def on_cpus() -> bool:
    """Whether they train on CPUs."""
    return bool(_talk) and distributed.get_backend() == "gloo"


# --- numbers on the devices -----------------------------------------------------------------------------------------


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes, on its device, without waiting for it."""
    if not _talk:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / size()


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, for each of them has a loss of its own."""

    @staticmethod
    def forward(context: Any, own: torch.Tensor) -> torch.Tensor:
        """(…) own → (…) of all."""
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """(…) gradient of the own loss → (…) of the sum of all losses."""
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


@torch.no_grad()
def aligned(module: nn.Module) -> nn.Module:
    """The module with the first process's buffers, such as statistics that each has of its own rows alone."""
    for buffer in module.buffers() if _talk else ():
        same = buffer.contiguous()
        distributed.broadcast(same, 0)
        buffer.copy_(same)
    return module


# --- what the processes agree on ------------------------------------------------------------------------------------


def part(rows: np.ndarray) -> np.ndarray:
    """This process's part of some rows: neighbours, as many as the others have, give or take one."""
    return np.array_split(rows, size())[rank()]


def gathered(own: Value) -> Sequence[Value]:
    """What each process has, by rank; of the first process alone, others get nothing."""
    if not _talk:
        return [own]
    parts: list[Any] | None = [None] * size() if rank() == 0 else None
    distributed.gather_object(own, parts, dst=0, group=_talk[0])
    return parts or []


def told(find: Callable[[], Value]) -> Value:
    """What the first process finds, which looks alone."""
    if not _talk:
        return find()
    found: list[Any] = [find() if rank() == 0 else None]
    distributed.broadcast_object_list(found, src=0, group=_talk[0])
    value: Value = found[0]
    return value


class Agreement:
    """Whether to stop and whether to save, asked after each step; all processes get the same answer at the same step.

    Any may ask to stop; when to save, the first one's clock decides. The answer of several is one call old: they talk
    while the next step computes, and nobody waits.
    """

    def __init__(self) -> None:
        self.saving = False
        self.said: tuple[Any, torch.Tensor] | None = None

    def __call__(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """What this process asks for → what is to be done."""
        if not _talk:
            return stop, save
        self.saving = save and rank() == 0 and not self.saving  # once: the clock runs on until it is done
        flags = torch.tensor([stop, self.saving], dtype=torch.uint8)
        work = distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=_talk[0], async_op=True)
        before, self.said = self.said, (work, flags)
        if before is None:
            return False, False
        before[0].wait()
        return bool(before[1][0]), bool(before[1][1])
