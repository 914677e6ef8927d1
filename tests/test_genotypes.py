"""Genotypes as texts, and the networks that are built of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import backbone_names, config, encoders, genotypes, network, registry, surgery
from pipeline.errors import UserError
from pipeline.genotypes import Genotype, Stage

WIDTHS, DEPTHS = st.integers(1, 99), st.integers(1, 5)


@st.composite
def stages(draw) -> Stage:
    kind = draw(st.sampled_from(list(genotypes.KINDS.values())))
    expansion = draw(st.integers(1, 6)) if kind in genotypes.EXPANDED else 0
    groups = draw(st.integers(1, 9)) if kind in genotypes.GROUPED else 1
    return Stage(kind, draw(st.sampled_from(genotypes.KERNELS)), draw(WIDTHS), draw(DEPTHS), expansion, groups)


def genotype(*, most: int) -> st.SearchStrategy[Genotype]:
    each = st.lists(stages(), min_size=1, max_size=most).map(tuple)
    return st.builds(Genotype, each, st.sampled_from(genotypes.NORMS), st.sampled_from(genotypes.POOLS))


@given(genotype(most=6))
@settings(max_examples=60, deadline=None)
def test_a_genotype_is_read_as_it_was_written(made: Genotype) -> None:
    assert genotypes.stages(made.text) == made.stages
    assert genotypes.read(str(made)) == made
    backbone_names.check(str(made))


WRONG = {
    "r3w16": "no stage",
    "": "no stage",
    "r3w16x2,,r3w16x2": "no stage",
    "x3w16x2": "no block 'x'",
    "r4w16x2": "3, 5 or 7",
    "r3w0x2": "at least 1",
    "r3w16x0": "at least 1",
    "i3w16x1": "expansion",
    "r3w16e4x1": "expansion",
    "s3w16g4x1": "groups",
    "p3w16g1x1": "groups",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_genotype_is_refused_before_any_data(project, text: str) -> None:
    with pytest.raises(UserError, match=WRONG[text]) as caught:
        config.compose({"backbone": f"searched(stages='{text}')"})
    assert "stages" in str(caught.value)


def build(stages: str, channels: int = 3, **more: str) -> nn.Module:
    torch.manual_seed(0)
    return registry.build("backbones", str(Genotype(genotypes.stages(stages), **more)))(channels)


def slow_count(made: Genotype, channels: int) -> int:
    """Weights by hand, for widths that are multiples of 8 and groups that divide them."""

    def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
        return kernel * kernel * inputs * outputs // groups + 2 * outputs

    total, inputs = conv(channels, made.stages[0].width, 3), made.stages[0].width
    for place, one in enumerate(made.stages):
        if place and made.pool == "conv":
            total += conv(inputs, inputs, 3)
        for _ in range(one.depth):
            outputs, kernel = one.width, one.kernel
            match one.kind:
                case "p":
                    total += conv(inputs, outputs, kernel, one.groups)
                case "r":
                    total += conv(inputs, outputs, kernel) + conv(outputs, outputs, kernel, one.groups)
                    total += conv(inputs, outputs, 1) if inputs != outputs else 0
                case "d":
                    half = outputs // 2
                    total += conv(inputs, half, kernel) + conv(inputs + half, half, kernel)
                    total += conv(inputs + 2 * half, outputs, 1)
                case "i":
                    middle = inputs * one.expansion
                    total += conv(inputs, middle, 1) + conv(middle, middle, kernel, middle) + conv(middle, outputs, 1)
                case "s":
                    total += conv(inputs, inputs, kernel, inputs) + conv(inputs, outputs, 1)
            inputs = outputs
    return total


EVERY = ["p5w8x2,p3w16g4x1", "r3w8x1,r5w16g4x2", "d3w8x2,d7w16x1", "i3w8e2x1,i5w16e4x2", "s3w8x2,s7w16x1"]


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("pool", genotypes.POOLS)
def test_a_network_is_what_its_text_says(text: str, pool: str) -> None:
    made = Genotype(genotypes.stages(text), pool=pool)
    net = registry.build("backbones", str(made))(3)
    assert sum(weight.numel() for weight in net.parameters()) == slow_count(made, 3)
    images = torch.randn(2, 3, 12, 12)
    outputs = net(images)
    assert outputs.shape == (2, 16, 6, 6)
    outputs.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    assert {one.momentum for one in net.modules() if isinstance(one, nn.BatchNorm2d)} == {0.2}
    folded = network.fold_batchnorm(net.eval())
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    torch.testing.assert_close(folded(images), net(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_another_norm_leaves_no_batchnorm(norm: str) -> None:
    net = build("r3w8x1,d3w16x1", norm=norm)
    assert {type(one) for one in net.modules() if "Norm" in type(one).__name__ and "Act" not in type(one).__name__} == {
        surgery.GroupNorm
    }
    assert net(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_a_decoder_a_second_head_and_surgery_take_it() -> None:
    call = "searched(stages='r3w8x1,i3w16e2x1,s3w24x1')"
    made = encoders.encoder(call, 3, create=network._create).eval()
    assert (made.widths, made.reductions) == ([3, 8, 16, 24], [1, 1, 2, 4])
    assert [tuple(one.shape[1:]) for one in made(torch.zeros(1, 3, 16, 16))] == [
        (3, 16, 16), (8, 16, 16), (16, 8, 8), (24, 4, 4)
    ]  # fmt: skip
    made.prune(2)
    assert len(made(torch.zeros(1, 3, 16, 16))) == 3
    net = registry.build("backbones", call)(3)
    second = registry.build("auxiliaries", "middle(at=0.5)")(net, 4, "linear()")
    with second.watching(net) as seen:
        net(torch.zeros(2, 3, 16, 16))
    assert second(seen.pop()).shape == (2, 4)
    surgery.swap_activation(net, "gelu")
    assert not any(isinstance(one, nn.ReLU) for one in net.modules())
