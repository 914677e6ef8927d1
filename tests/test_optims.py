"""Optimizers against the formulas of their papers, step by step."""

from __future__ import annotations

import pytest
import torch

from pipeline.parts import optims

GRADIENTS = [0.5, -1.0, 0.25, 2.0]


def walk(build) -> float:
    """The weight after steps with given gradients, from 1."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build([weight])
    for gradient in GRADIENTS:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    return float(weight.detach())


def slow_adam(lr: float, decay: float, decoupled: bool) -> float:
    weight, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        if decoupled:
            weight -= lr * decay * weight
        else:
            gradient += decay * weight
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weight -= lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return weight


def slow_sgd(lr: float, momentum: float, nesterov: bool, decay: float) -> float:
    weight, speed = 1.0, 0.0
    for gradient in GRADIENTS:
        gradient += decay * weight
        speed = momentum * speed + gradient
        weight -= lr * (gradient + momentum * speed if nesterov else speed)
    return weight


def test_adam_and_adamw() -> None:
    assert walk(lambda p: optims.adam(p, 0.1)) == pytest.approx(slow_adam(0.1, 0.0, False), rel=1e-5)
    assert walk(lambda p: optims.adam(p, 0.1, weight_decay=0.2)) == pytest.approx(slow_adam(0.1, 0.2, False), rel=1e-5)
    assert walk(lambda p: optims.adamw(p, 0.1)) == pytest.approx(slow_adam(0.1, 0.01, True), rel=1e-5)


def test_sgd() -> None:
    assert walk(lambda p: optims.sgd(p, 0.1)) == pytest.approx(slow_sgd(0.1, 0.9, True, 0.0), rel=1e-5)
    plain = walk(lambda p: optims.sgd(p, 0.1, nesterov=False, weight_decay=0.3))
    assert plain == pytest.approx(slow_sgd(0.1, 0.9, False, 0.3), rel=1e-5)
    assert walk(lambda p: optims.sgd(p, 0.1, momentum=0.0)) == pytest.approx(slow_sgd(0.1, 0.0, False, 0.0), rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_kernels_are_used_and_fp16_gradients_can_be_clipped(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = getattr(optims, name)([weight], 0.1)
    assert optimizer.param_groups[0]["fused"] is True
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(weight * 3.0).sum().backward()
    scaler.unscale_(optimizer)
    assert float(weight.grad) == pytest.approx(3.0)
    torch.nn.utils.clip_grad_norm_([weight], 0.5)
    scaler.step(optimizer)
    plain = torch.nn.Parameter(torch.tensor([1.0]))
    plain.grad = torch.tensor([0.5])
    getattr(optims, name)([plain], 0.1).step()
    assert float(weight.detach()) == pytest.approx(float(plain.detach()))
    from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling

    assert not _optimizer_handles_unscaling(optimizer)
