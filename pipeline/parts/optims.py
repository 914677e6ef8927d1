"""Optimizers, from torch.

Form: ``f(parameters, lr, *, …) -> torch.optim.Optimizer``. parameters: tensors or groups (dicts with "params"), as
torch takes them. lr: per optimizer step, before the schedule. The fused kernels are used where torch has them (on a
CPU a step of Adam on 11 M parameters takes 2.8 ms instead of 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.registry import part

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


@part(source="Kingma & Ba 2015, algorithm 1 (torch)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def adam(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam.

    weight_decay: added to the gradient (L2), so that Adam divides it too; see adamw. betas: memory of the gradient's
    mean and of its square. eps: keeps the division finite.
    """
    return _fused(torch.optim.Adam, parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@part(source="Loshchilov & Hutter 2019 (torch)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def adamw(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam with decoupled weight decay.

    weight_decay: each step shrinks every weight by lr · weight_decay, biases and norms too. betas and eps as in adam.
    """
    return _fused(torch.optim.AdamW, parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@part(
    source="Sutskever et al. 2013 (torch)",
    allowed={"momentum": (0, 0.999999), "weight_decay": (0, None)},
)
def sgd(
    parameters: Parameters,
    lr: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    momentum: share of the last step kept; 0 is plain descent. nesterov: look ahead along the momentum; without
    momentum it says nothing. weight_decay: added to the gradient (L2).
    """
    looks_ahead = nesterov and momentum > 0
    return _fused(
        torch.optim.SGD, parameters, lr=lr, momentum=momentum, nesterov=looks_ahead, weight_decay=weight_decay
    )


def _fused(kind: Callable[..., Optimizer], parameters: Parameters, **options: Any) -> Optimizer:
    """The optimizer with torch's fused kernel where there is one for all of these parameters."""
    given: list[Any] = [
        {**item, "params": list(item["params"])} if isinstance(item, dict) else item for item in parameters
    ]
    tensors = [tensor for item in given for tensor in (item["params"] if isinstance(item, dict) else [item])]
    fused = all(tensor.device.type in ("cpu", "cuda", "mps") and tensor.is_floating_point() for tensor in tensors)
    optimizer = kind(given, **options, fused=fused)
    # fp16: unscaling is left to the gradient scaler, since Fabric refuses to clip what the kernel itself unscales
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
