"""Convolutions made for a CPU say what nn.Conv2d says, and learn what it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline import cpu_convolutions, network

SHAPES = [  # kernel, stride, padding, dilation, groups, sides
    (3, 1, 1, 1, 1, (1, 1)),
    (3, 1, 1, 1, 1, (2, 2)),
    (3, 1, 1, 1, 1, (1, 3)),
    (3, 2, 1, 1, 1, (2, 2)),
    (3, 2, 1, 1, 1, (1, 1)),
    (3, 2, 1, 1, 1, (3, 2)),
    (3, 1, 1, 1, 6, (1, 1)),
    (3, 1, 2, 2, 1, (2, 2)),
    (3, 1, 2, 2, 2, (3, 1)),
    (3, 1, 0, 1, 1, (3, 3)),
    (3, 2, 2, 1, 1, (1, 2)),
    (5, 1, 2, 1, 1, (2, 2)),
    (5, 2, 2, 1, 3, (2, 3)),
    (5, 3, 2, 2, 1, (5, 5)),
    (7, 1, 3, 1, 6, (2, 2)),
    (7, 4, 3, 1, 1, (1, 4)),
    ((1, 3), 1, (0, 1), 1, 1, (4, 1)),
    ((3, 1), 1, (1, 0), 1, 2, (1, 4)),
    ((3, 5), (1, 2), (1, 2), 1, 1, (9, 2)),
    (3, 1, 1, 1, 1, (8, 8)),
]


def pair(shape, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A plain convolution, and one of the same weights that looks at its maps."""
    kernel, stride, padding, dilation, groups, _ = shape
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 12, kernel, stride, padding, dilation, groups, bias).double()
    watched = nn.Sequential(copy.deepcopy(plain))
    cpu_convolutions.watch(watched)
    assert type(watched[0]) is cpu_convolutions.CpuConv2d
    return plain, watched[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_says_and_learns_the_same(shape, bias):
    plain, watched = pair(shape, bias)
    images = torch.randn(4, 6, *shape[-1], dtype=torch.float64).to(memory_format=torch.channels_last)
    results = []
    for layer in (plain, watched):
        given = images.clone().requires_grad_()
        found = layer(given)
        (found * torch.arange(found.numel()).view_as(found)).sum().backward()
        results.append([found, given.grad, *(weight.grad for weight in layer.parameters())])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_settled_it_says_the_same(shape, bias):
    plain, watched = pair(shape, bias)
    cpu_convolutions.settle(watched)
    images = torch.randn(4, 6, *shape[-1], dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(watched(images), plain(images))
    given = images.clone().requires_grad_()  # as a map of what it looked at asks for
    watched(given).sum().backward()
    other = images.clone().requires_grad_()
    plain(other).sum().backward()
    torch.testing.assert_close(given.grad, other.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(3, 2, 9), (5, 1, 8), (5, 2, 4), (3, 1, 2), (7, 1, 3), (3, 1, 9)]
)
def test_depthwise_ones_in_bf16_learn_as_in_fp32(kernel, stride, side, bias):
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8, bias=bias)
    watched = nn.Sequential(copy.deepcopy(plain))
    cpu_convolutions.watch(watched)
    images = torch.randn(4, 8, side, side).to(memory_format=torch.channels_last)
    results = []
    for layer, half in ((plain, False), (watched, True)):
        given = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = layer(given)
        assert found.dtype == (torch.bfloat16 if half else torch.float32)
        found.float().square().mean().backward()
        results.append([found.detach().float(), given.grad, *(weight.grad for weight in layer.parameters())])
    for ours, exact in zip(results[1], results[0], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact, rtol=0.03, atol=0.03 * float(exact.abs().max()))


def test_a_depthwise_one_that_stays_gets_no_gradient():
    layer = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8)).requires_grad_(False)
    cpu_convolutions.watch(layer)
    given = torch.randn(2, 8, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(given).float().sum().backward()
    assert given.grad is not None
    assert layer[0].weight.grad is None


def test_weights_that_meet_padding_alone_are_left_out(monkeypatch):
    seen = []
    real = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda x, w, *rest: seen.append(tuple(w.shape[2:])) or real(x, w, *rest))
    _, watched = pair((3, 1, 1, 1, 1, (1, 1)), bias=True)
    watched(torch.zeros(2, 6, 1, 1, dtype=torch.float64))
    _, strided = pair((3, 2, 1, 1, 1, (2, 2)), bias=True)
    strided(torch.zeros(2, 6, 2, 2, dtype=torch.float64))
    assert seen == [(1, 1), (2, 2)]


def test_a_gradient_has_the_layout_of_its_weights():
    _, watched = pair((3, 1, 1, 1, 1, (1, 1)), bias=False)
    watched.to(memory_format=torch.channels_last)
    watched(torch.randn(2, 6, 1, 1, dtype=torch.float64)).sum().backward()
    assert watched.weight.grad.stride() == watched.weight.stride()


def test_padding_by_values_or_by_name_is_left_to_torch():
    layers = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate"), nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 1)
    )
    cpu_convolutions.watch(layers)
    assert {type(layer) for layer in layers} == {nn.Conv2d}


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("side", [32, 40])
def test_a_network_predicts_what_it_would_without(backbone, side):
    plan = network.Blueprint(backbone, "avg()", "linear()", 3, side, "stretch", [0.5] * 3, [0.25] * 3, ["a", "b"])
    torch.manual_seed(0)
    made = network.build(plan).eval()
    for layer in made.modules():  # as if it had learned: timm lets some norms begin at 0
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    assert any(isinstance(layer, cpu_convolutions.CpuConv2d) for layer in made.modules())
    plain = copy.deepcopy(made)
    for layer in plain.modules():
        if isinstance(layer, cpu_convolutions.CpuConv2d):
            layer.__class__ = nn.Conv2d
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        expected = plain(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(made(images), expected)
        fast = network.for_prediction(made, torch.float32)
        torch.testing.assert_close(fast(images), expected, rtol=1e-3, atol=1e-4)
        assert any(isinstance(layer, nn.Conv2d) and layer.bias is not None for layer in fast.modules()), "not folded"
