"""The exponential moving average against its formula, and what it does to BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.parts.averages import ema, none


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def wander(network: nn.Module, step: int) -> None:
    """Other weights and other statistics, as after an optimizer step."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network.train()(torch.randn(8, 3) * (step + 1))


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_formula_and_copies_buffers(warmup: bool) -> None:
    network = model()
    average = ema(network, decay=0.6, warmup=warmup)
    slow = {name: parameter.detach().double().clone() for name, parameter in network.named_parameters()}
    for step in range(12):
        wander(network, step)
        average.update(network, step)
        decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
        for name, parameter in network.named_parameters():
            slow[name] = decay * slow[name] + (1 - decay) * parameter.detach().double()
    target = model()
    average.apply_to(target)
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), slow[name], rtol=1e-5, atol=1e-5)
    for name, buffer in network.named_buffers():
        assert torch.equal(dict(target.named_buffers())[name], buffer)


def test_ema_leaves_the_model_alone_and_its_own_weights_apart() -> None:
    network = model()
    average = ema(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    average.update(network, 0)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    kept = {name: value.clone() for name, value in average.weights.items()}
    target = model()
    average.apply_to(target)
    wander(target, 1)
    wander(network, 2)
    assert all(torch.equal(average.weights[name], value) for name, value in kept.items())


def test_ema_forgets_the_random_start() -> None:
    network = model()
    average = ema(network, decay=0.999)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    for step in range(20):
        average.update(network, step)
    assert (average.weights["0.weight"] - 1).abs().max() < 1e-3


def test_ema_refuses_another_models_state() -> None:
    average = ema(model())
    with pytest.raises(ValueError, match=r"other weights.*0\.bias"):
        average.load_state_dict({"weights": {"0.weight": torch.zeros(4, 3)}})


def test_none_keeps_nothing() -> None:
    network = model()
    average = none(network)
    wander(network, 0)
    before = network[0].weight.clone()
    average.update(network, 0)
    average.apply_to(network)
    assert average.state_dict() == {}
    assert torch.equal(network[0].weight, before)
