"""What training wraps around a learner: penalties, sharpness-aware minimisation, and how the backbone computes.

Each wrapper is a module with the learner's own call, (batch, generator) → loss, so that ``fit`` knows none of them. The
learner inside stays what it is: checkpoints hold its state alone, under the same names.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from pipeline import ranks, registry
from pipeline.config import Config, Train
from pipeline.data import Batch
from pipeline.errors import UserError
from pipeline.learner import Learning
from pipeline.torchvision_fix import fix_torchvision

FIRST_SCALE = 1024.0  # keeps the small gradients of the first pass in fp16's range; their size does not matter
ETA = 0.01  # of Kwon et al. 2021, sec. 5: the least reach of a weight


def prepare(learner: Learning, config: Config, devices: int = 1) -> nn.Module:
    """The module that trains: the learner, its backbone set up as ``train`` says, in the wrappers that are asked for.

    devices: processes that train together; BatchNorms of more than one share their statistics. The parameters stay the
    same objects, so that an optimizer may be made before or after.
    """
    if devices > 1:
        synchronise(learner)
        check_compiles(learner, config)
    if config.train.checkpointing:
        checkpoint(learner.network.backbone, config.backbone)
    if config.train.compile:
        # code compiled before, for the same net without an auxiliary classifier, must not serve one that is watched
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        learner.network.backbone.compile()  # in place: the names of its weights and its copies stay plain
    module: nn.Module = learner
    for text in registry.unfold("optims", config.optim):
        part, call = registry.bind("optims", text)
        if part.facts.get("sharpness"):
            asked = {**part.arguments, **call.arguments}
            module = SharpnessAware(module, asked["rho"], asked["adaptive"])
    return Penalised(module, config.train) if config.train.l1 or config.train.l2 else module


# --- losses around the learner's ------------------------------------------------------------------------------------


class Penalised(nn.Module):
    """The loss with the gradients of train.l1 · Σ|w| + train.l2 · ½ Σw² over all weights that learn.

    Biases and norms (all of fewer than two dimensions) are spared. The value stays the loss alone, so that runs with
    other penalties can be compared. Unlike decoupled decay (optim=adamw), the penalties' gradients go through the
    optimizer, and Adam divides them by the size of the loss's.
    """

    def __init__(self, inner: nn.Module, train: Train) -> None:
        super().__init__()
        self.inner, self.l1, self.l2 = inner, train.l1, train.l2

    def forward(self, batch: Batch, generator: np.random.Generator) -> torch.Tensor:
        """The loss of a batch."""
        loss: torch.Tensor = self.inner(batch, generator)
        cost = torch.zeros_like(loss)
        for weight in self.inner.parameters():
            if weight.requires_grad and weight.ndim > 1:
                if self.l1:
                    cost = cost + self.l1 * weight.abs().sum()
                if self.l2:
                    cost = cost + self.l2 / 2 * weight.square().sum()
        return loss + (cost - cost.detach())


class SharpnessAware(nn.Module):
    """The gradient at the place near the weights where the loss is highest, to first order; see optims.sam.

    The first pass draws, and moves BatchNorm's statistics, as a plain step does; the second draws the same and leaves
    no trace. The value is the loss at the weights themselves. Without a second backward pass of its own it suits
    accumulation, gradient scaling and any optimizer. Each accumulated batch and each device climbs on its own rows, as
    the paper's devices do.
    """

    def __init__(self, inner: nn.Module, rho: float, adaptive: bool) -> None:
        super().__init__()
        self.inner, self.rho, self.adaptive = inner, rho, adaptive

    def forward(self, batch: Batch, generator: np.random.Generator) -> torch.Tensor:
        """The loss of a batch, with the gradient of the second pass."""
        again, device = copy.deepcopy(generator), batch.images.device
        if not torch.is_grad_enabled():
            return self.inner(batch, generator)
        with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=_kind(device)):
            loss: torch.Tensor = self.inner(batch, generator)
        weights = {name: weight for name, weight in self.inner.named_parameters() if weight.requires_grad}
        with torch.autocast(device.type, enabled=False):
            moves = self.climb(weights, torch.autograd.grad(loss * FIRST_SCALE, weights.values(), allow_unused=True))
            place: dict[str, torch.Tensor] = {name: weight + moves[name] for name, weight in weights.items()}
        buffers = {name: buffer.clone() for name, buffer in self.inner.named_buffers()}
        above: torch.Tensor = functional_call(self.inner, {**place, **buffers}, (batch, again))
        return above + (loss - above).detach()

    @torch.no_grad()
    def climb(self, weights: dict[str, torch.Tensor], gradients: Any) -> dict[str, torch.Tensor]:
        """The move of each weight: rho along the gradient, each by its own reach if adaptive; 0 if it is not finite."""
        pairs = zip(weights.items(), gradients, strict=True)
        slopes = {name: torch.zeros_like(w) if g is None else g.float() for (name, w), g in pairs}
        reach = {name: w.abs() + ETA if self._by_size(name) else torch.ones_like(w) for name, w in weights.items()}
        steep = torch.stack([(reach[name] * slope).norm() for name, slope in slopes.items()]).norm()
        factor = self.rho / (steep + 1e-12)
        moves = {name: reach[name] ** 2 * slope * factor for name, slope in slopes.items()}
        return {name: torch.where(steep.isfinite(), move, 0.0) for name, move in moves.items()}

    def _by_size(self, name: str) -> bool:
        return self.adaptive and "weight" in name.rpartition(".")[2]


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type  # fork_rng keeps the CPU's state anyway


# --- how the backbone computes --------------------------------------------------------------------------------------


def synchronise(module: nn.Module) -> nn.Module:
    """Let every BatchNorm take its statistics over all devices, in place, by timm's converter.

    torch's own would lose the activation of timm's fused norms. Norms that are to look at a part of the batch (ghost)
    or keep their statistics (frozen) stay.
    """
    fix_torchvision()
    from timm.layers import convert_sync_batchnorm

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not hasattr(child, "ghost"):
                norm = convert_sync_batchnorm(child)
                norm.__class__ = SharedNorm if ranks.on_cpus() else norm.__class__
                setattr(parent, name, norm)
    return module


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """What torch's SyncBatchNorm, or timm's, becomes on CPUs, which they refuse: the same, computed step by step.

    The mean over all processes' rows, then the mean square of the distances from it; shares are equally large. Ioffe &
    Szegedy 2015, algorithm 1.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, …) → the same, of any float format; behind it what timm adds, if it does."""
        found = self._shared(input) if self.training else super().forward(input)
        for name in ("drop", "act"):
            found = getattr(self, name)(found) if hasattr(self, name) else found
        return found

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """All shapes are welcome, as to SyncBatchNorm."""

    def _shared(self, input: torch.Tensor) -> torch.Tensor:
        values, shape = input.float(), (1, -1, *[1] * (input.ndim - 2))
        others = [place for place in range(input.ndim) if place != 1]
        count = ranks.size() * values.numel() // values.shape[1]
        mean = ranks.Sum.apply(values.sum(others)) / count
        apart = values - mean.view(shape)
        variance = ranks.Sum.apply(apart.square().sum(others)) / count
        self._remember(mean.detach(), variance.detach() * count / max(count - 1, 1))
        found = apart * (variance + self.eps).rsqrt().view(shape)
        found = found if self.weight is None else found * self.weight.view(shape)
        return (found if self.bias is None else found + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics, as BatchNorm does."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def check_compiles(learner: Learning, config: Config) -> None:
    """UserError where synchronised norms stand in what is to be compiled: they talk to others in the middle of it."""
    norms = (nn.SyncBatchNorm, SharedNorm)
    if config.train.compile and any(isinstance(one, norms) for one in learner.network.backbone.modules()):
        raise UserError(
            f"train.compile=true and devices={config.devices} do not go together with the BatchNorms of "
            f"{config.backbone}; leave one of them out, or take another norm, such as norm=group()"
        )


def checkpoint(backbone: nn.Module, name: str) -> None:
    """Let a backbone forget what its blocks computed and compute it again for the gradients: less memory, more time.

    Raises UserError where it cannot. BatchNorm's statistics move once alone, so that the results stay the same.
    """
    model = getattr(backbone, "model", backbone)
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError) as fault:
        raise UserError(
            f"train.checkpointing=true, but {name} cannot compute its blocks again; choose another backbone, or save "
            "memory with a smaller batch_size and train.accumulate"
        ) from fault
    for norm in backbone.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.register_forward_pre_hook(_hold)
            norm.register_forward_hook(_release)


def _hold(norm: nn.Module, _: Any) -> None:
    if torch._C._current_graph_task_id() != -1 and norm.training:  # within a backward pass: computed again
        norm.kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)  # type: ignore[assignment]
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            value = getattr(norm, key)
            norm._buffers[key] = None if value is None else value.clone()


def _release(norm: nn.Module, *_: Any) -> None:
    kept = norm.__dict__.pop("kept", None)
    if kept is not None:
        norm._buffers.update(zip(("running_mean", "running_var", "num_batches_tracked"), kept, strict=True))
