"""Our own backbones, and changes to built networks: what they change, and that they change nothing else."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import backbone_names, encoders, network, registry, surgery
from pipeline.errors import UserError
from pipeline.parts import pools
from pipeline.torchvision_fix import fix_torchvision


@pytest.fixture(scope="module")
def timm():
    fix_torchvision()
    import timm

    return timm


def create(timm, name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, global_pool="", **arguments)
    for norm in model.modules():  # as if it had been trained
        if isinstance(norm, nn.BatchNorm2d):
            lows = ((norm.weight, 0.5), (norm.bias, -0.2), (norm.running_mean, -0.3), (norm.running_var, 0.5))
            for tensor, low in lows:
                nn.init.uniform_(tensor, low, low + 0.5)
    return model


def pictures(count: int = 4, size: int = 32) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, size, size)


def learns(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The outputs in training mode; every weight that learns has a finite gradient."""
    model.train()
    outputs = model(images)
    outputs.square().mean().backward()
    named = dict(model.named_parameters())
    assert named
    assert [name for name, p in named.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    return outputs


def classes_of(model: nn.Module) -> set[str]:
    return {type(one).__name__ for one in model.modules()}


# --- small_image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(registry.parts("backbones")))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_backbone_gives_a_map_of_its_features(name: str, channels: int) -> None:
    torch.manual_seed(0)
    backbone = registry.build("backbones", name)(channels)
    images = torch.randn(2, channels, 32, 32)
    features = learns(backbone, images)
    assert features.ndim == 4
    assert features.shape[:2] == (2, backbone.num_features)
    backbone.eval()
    torch.testing.assert_close(
        backbone(images.contiguous(memory_format=torch.channels_last)), backbone(images), rtol=1e-4, atol=1e-4
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(backbone(images)).all()


@pytest.mark.parametrize(("width", "depth"), [(64, 1), (8, 0), (8, 2)])
def test_small_image_has_its_width_and_depth(width: int, depth: int) -> None:
    backbone = registry.build("backbones", f"small_image(width={width},depth={depth})")(3).eval()
    assert backbone(torch.zeros(1, 3, 40, 40)).shape == (1, 8 * width, 5, 5)
    stages = [3, width, 2 * width, 4 * width, 8 * width]
    pairs = [*itertools.pairwise(stages), *[(2 * width,) * 2, (8 * width,) * 2] * (2 * depth)]
    assert sum(p.numel() for p in backbone.parameters()) == sum(9 * a * b + 2 * b for a, b in pairs)


def test_a_last_stride_of_one_keeps_the_last_stage_as_large_as_the_one_before() -> None:
    plain = registry.build("backbones", "small_image(width=4)")(1).eval()
    finer = registry.build("backbones", "small_image(width=4,last_stride=1)")(1).eval()
    finer.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert finer(images).shape == (2, 32, 8, 8)
    torch.testing.assert_close(nn.functional.max_pool2d(finer.layers[:5](images), 2), plain.layers[:5](images))
    with pytest.raises(UserError, match="leave it out"):
        encoders.encoder("small_image(width=4,last_stride=1)", 1, create=network._create)


# --- norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnetx_002"])
@pytest.mark.parametrize("kind", surgery.NORMS)
def test_swapped_norms_learn_and_leave_no_batchnorm(timm, name: str, kind: str) -> None:
    before = create(timm, name)
    after = surgery.swap_norm(copy.deepcopy(before), kind)
    assert not [one for one in after.modules() if isinstance(one, nn.BatchNorm2d)]
    images = pictures(size=64)
    assert learns(after, images).shape == before(images).shape
    if kind != "none":  # scales and shifts stay under their names, so that pretrained weights still find them
        own, given = after.state_dict(), before.state_dict()
        assert own.keys() == {key for key in given if "running" not in key and "tracked" not in key}
        assert all(torch.equal(own[key], given[key]) for key in own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(after(images)).all()


def test_no_norm_starts_as_batchnorm_in_eval_mode(timm) -> None:
    for name in ("resnet18", "mobilenetv3_small_050"):
        model = create(timm, name).eval()
        expected = model(pictures())
        torch.testing.assert_close(surgery.swap_norm(model, "none").eval()(pictures()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "groups"), [("group", 4), ("layer", 1), ("instance", 12)])
def test_swapped_norm_is_the_definition(kind: str, groups: int) -> None:
    norm = nn.BatchNorm2d(12)
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    images = torch.randn(3, 12, 5, 7)
    result = surgery.swap_norm(nn.Sequential(norm), kind, groups=5)[0](images)
    for row in range(3):
        for first in range(0, 12, 12 // groups):
            channels = slice(first, first + 12 // groups)
            part = images[row, channels].numpy()
            plain = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
            weight, bias = (p.detach().numpy()[channels, None, None] for p in (norm.weight, norm.bias))
            np.testing.assert_allclose(result[row, channels].detach().numpy(), plain * weight + bias, atol=1e-5)


def test_instance_norms_refuse_maps_of_one_pixel(timm) -> None:
    for change in (surgery.ibn, lambda model: surgery.swap_norm(model, "instance")):
        model = change(create(timm, "resnet18")).train()
        with pytest.raises(UserError, match="larger image_size"):
            model(pictures(2, 16))
        assert torch.isfinite(model(pictures(2, 64))).all()


def test_a_norm_that_is_used_twice_stays_one() -> None:
    norm = nn.BatchNorm2d(4)
    twice = surgery.swap_norm(nn.Sequential(norm, nn.ReLU(), norm), "group")
    assert twice[0] is twice[2]


def test_swap_norm_refuses_what_it_cannot_do(timm) -> None:
    with pytest.raises(UserError, match="no BatchNorm2d"):
        surgery.swap_norm(create(timm, "convnext_atto"), "group")
    with pytest.raises(UserError, match="did you mean group"):
        surgery.swap_norm(nn.Sequential(nn.BatchNorm2d(3)), "grup")


def test_frozen_batchnorm_trains_as_it_predicts(timm) -> None:
    for name in ("resnet18", "mobilenetv3_small_050"):
        model = create(timm, name)
        expected = model.eval()(pictures())
        frozen = surgery.freeze_batchnorm(copy.deepcopy(model))
        before = {key: value.clone() for key, value in frozen.state_dict().items()}
        for drop in frozen.modules():
            assert not isinstance(drop, nn.BatchNorm2d)
        torch.testing.assert_close(learns(frozen, pictures()), expected, rtol=1e-3, atol=1e-4)
        norms = {key.removesuffix("running_mean") for key in before if key.endswith("running_mean")}
        assert not [key for key, _ in frozen.named_parameters() if any(key.startswith(norm) for norm in norms)]
        assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
        again = surgery.freeze_batchnorm(create(timm, name))
        again.load_state_dict(before)
    with pytest.raises(UserError, match="no BatchNorm2d"):
        surgery.freeze_batchnorm(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_ghost_batchnorm_of_a_whole_batch_is_batchnorm(timm, name: str) -> None:
    plain, ghost = create(timm, name), surgery.ghost_batchnorm(create(timm, name), size=6)
    assert ghost.state_dict().keys() == plain.state_dict().keys()
    images = pictures(6)
    torch.testing.assert_close(learns(ghost, images), learns(plain, images))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[key], value)
    torch.testing.assert_close(ghost.eval()(pictures(9)), plain.eval()(pictures(9)))
    folded = network.fold_batchnorm(copy.deepcopy(ghost))
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-3, atol=1e-3)


def test_ghost_batchnorm_normalises_each_part_for_itself() -> None:
    images = torch.randn(10, 3, 4, 4) * torch.arange(1, 11).view(-1, 1, 1, 1)
    ghost, plain = surgery.ghost_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), size=4), nn.BatchNorm2d(3)
    result = ghost(images)
    expected = torch.cat([plain(images[rows]) for rows in (slice(0, 4), slice(4, 7), slice(7, 10))])
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(ghost[0].running_var, plain.running_var)
    assert not torch.allclose(result, nn.BatchNorm2d(3)(images), atol=0.1)
    assert isinstance(copy.deepcopy(ghost)[0], surgery.GhostBatchNorm)


# --- activations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", list(surgery.ACTIVATIONS))
def test_every_activation_learns(timm, activation: str) -> None:
    model = surgery.swap_activation(create(timm, "resnet18"), activation)
    assert classes_of(model) & {"ReLU"} == ({"ReLU"} if activation == "relu" else set())
    learns(model, pictures())


def test_swapped_activation_changes_only_that(timm) -> None:
    for name in ("resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "efficientnet_b0", "convnext_atto"):
        before, after = create(timm, name), surgery.swap_activation(create(timm, name), "elu")
        changed = {"ReLU", "SiLU", "GELU", "Hardswish"}
        assert not classes_of(after) & changed
        assert classes_of(before) - changed == classes_of(after) - {"ELU"}, "the gates' sigmoids stay"
        own, given = after.state_dict(), before.state_dict()
        assert own.keys() == given.keys()
        assert all(torch.equal(own[key], given[key]) for key in own)
    back = surgery.swap_activation(surgery.swap_activation(create(timm, "resnet18"), "gelu"), "relu").eval()
    torch.testing.assert_close(back(pictures()), create(timm, "resnet18").eval()(pictures()))


def test_swap_activation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="did you mean leaky_relu"):
        surgery.swap_activation(nn.Sequential(nn.ReLU()), "leaky_rleu")
    with pytest.raises(UserError, match="no activation"):
        surgery.swap_activation(nn.Sequential(nn.Sigmoid()), "relu")


# --- ResNets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("kind", ["a", "b"])
def test_ibn_learns_and_keeps_the_weights(timm, name: str, kind: str) -> None:
    before = create(timm, name)
    after = surgery.ibn(copy.deepcopy(before), kind)
    assert learns(after, pictures()).shape == before(pictures()).shape
    own, given = after.state_dict(), before.state_dict()
    shared = [key for key in given if key in own]
    assert all(torch.equal(own[key], given[key]) for key in shared if not key.endswith(("mean", "var", "tracked")))
    count = sum(isinstance(one, nn.InstanceNorm2d) for one in after.modules())
    blocks = {"resnet18": 6, "resnet50": 13}[name]
    assert count == (blocks if kind == "a" else 3)
    folded = network.fold_batchnorm(copy.deepcopy(after).eval())
    left = {"a": blocks, "b": 0}[kind]
    assert sum(isinstance(one, nn.BatchNorm2d) for one in folded.modules()) == left, "all others are folded"
    torch.testing.assert_close(folded(pictures()), after.eval()(pictures()), rtol=1e-3, atol=1e-3)


def test_ibn_a_normalises_half_by_instance_and_half_as_before(timm) -> None:
    model = create(timm, "resnet18")
    norm = copy.deepcopy(model.layer2[0].bn1).eval()
    mixed = surgery.ibn(model).eval().layer2[0].bn1
    images = torch.randn(3, 128, 6, 6)
    result = mixed(images)
    torch.testing.assert_close(result[:, 64:], norm(images)[:, 64:])
    half = images[:, :64]
    spread = half.var(dim=(2, 3), correction=0, keepdim=True)
    plain = (half - half.mean(dim=(2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
    torch.testing.assert_close(result[:, :64], plain * norm.weight[:64, None, None] + norm.bias[:64, None, None])


def test_ibn_b_normalises_the_sum_that_ends_a_stage(timm) -> None:
    model = surgery.ibn(create(timm, "resnet50"), "b").eval()
    plain, seen = create(timm, "resnet50").layer2[-1].eval(), {}
    block = model.layer2[-1]
    block.register_forward_pre_hook(lambda _, given: seen.update(given=given[0].clone()))
    block.register_forward_hook(lambda _, given, answer: seen.update(answer=answer.clone()))
    model(pictures(2, 64))
    plain.act3 = nn.Identity()
    total = plain(seen["given"])
    spread = total.var(dim=(2, 3), correction=0, keepdim=True)
    expected = ((total - total.mean(dim=(2, 3), keepdim=True)) / (spread + 1e-5).sqrt()).relu()
    torch.testing.assert_close(seen["answer"], expected, rtol=1e-3, atol=1e-4)


def test_small_stem_keeps_the_resolution(timm) -> None:
    for name in ("resnet18", "resnet50d", "seresnet18"):
        before, after = create(timm, name), surgery.small_stem(create(timm, name))
        shape = learns(after, pictures(2, 32)).shape
        assert shape[2:] == (4, 4)
        assert before(pictures(2, 128)).shape == (*shape[:2], 4, 4), "as 128 px with the usual stem"
        assert [stage["reduction"] for stage in after.feature_info] == [1, 1, 2, 4, 8]
        own, given = after.state_dict(), before.state_dict()
        assert own.keys() == given.keys()
        other = [key for key in own if "running" not in key and "tracked" not in key and key != "conv1.weight"]
        assert all(torch.equal(own[key], given[key]) for key in other)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_stem_is_the_middle_of_the_large_one(timm, channels: int) -> None:
    before = create(timm, "resnet18", in_chans=channels)
    after = surgery.small_stem(copy.deepcopy(before))
    torch.testing.assert_close(after.conv1.weight, before.conv1.weight[:, :, 2:5, 2:5] * 7 / 3)
    images = torch.randn(8, channels, 32, 32)
    with torch.no_grad():
        assert float(after.conv1(images).std() / before.conv1(images).std()) == pytest.approx(1, abs=0.1)


def test_surgery_for_resnets_refuses_others_and_finds_them_inside(timm) -> None:
    for change in (surgery.ibn, surgery.small_stem, surgery.branch_last_stage):
        with pytest.raises(UserError, match="timm's ResNets"):
            change(create(timm, "mobilenetv3_small_050"))
    wrapped = network.TimmBackbone("resnet18", {}, 3, 32, pretrained=False)
    surgery.small_stem(surgery.ibn(wrapped))
    assert learns(wrapped, pictures(2, 32)).shape == (2, wrapped.num_features, 4, 4)
    with pytest.raises(UserError, match="a or b"):
        surgery.ibn(wrapped, "c")
    with pytest.raises(UserError, match="other norms after it"):
        surgery.ibn(surgery.swap_norm(create(timm, "resnet18")))


def test_all_changes_together_make_a_network_that_can_be_restored(timm) -> None:
    def build() -> nn.Module:
        model = surgery.ibn(surgery.small_stem(create(timm, "resnet18")))
        return surgery.swap_activation(surgery.swap_norm(model, "group"), "silu")

    model, other = build(), build()
    learns(model, pictures(2, 16))
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 0.1 * weight.grad
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(pictures(2, 16)), model.eval()(pictures(2, 16)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])
def test_branches_of_the_last_stage_start_alike_and_learn_their_own(timm, name: str) -> None:
    plain = network.TimmBackbone(name, {"output_stride": 16}, 3, 64, pretrained=False).eval()
    branched = surgery.branch_last_stage(copy.deepcopy(plain), count=3)
    images = pictures(2, 64)
    expected = plain(images)
    torch.testing.assert_close(branched(images), torch.cat([expected] * 3, dim=1))
    assert branched.num_features == 3 * plain.num_features
    torch.testing.assert_close(network.fold_batchnorm(branched)(images), branched(images), rtol=1e-3, atol=1e-3)
    maps = learns(branched, images)
    vectors = pools.granularities(branched.num_features, reduce=4, branched=True)(maps.detach())
    assert vectors.shape == (2, 32)
    branched.zero_grad()
    branched(images)[:, : plain.num_features].square().sum().backward()
    moved = [
        any(one.grad is not None and one.grad.any() for one in copied.parameters()) for copied in branched.model.layer4
    ]
    assert moved == [True, False, False], "each has weights of its own"


def test_output_stride_keeps_the_last_stage_as_large_as_the_one_before_and_the_weights_names(timm) -> None:
    plain = network.TimmBackbone("resnet50", {}, 3, 64, pretrained=False)
    name, arguments = backbone_names.split("resnet50(output_stride=16)")
    finer = network.TimmBackbone(name, arguments, 3, 64, pretrained=False)
    assert plain(pictures(2, 64)).shape == (2, 2048, 2, 2)
    assert finer(pictures(2, 64)).shape == (2, 2048, 4, 4)
    assert {key: one.shape for key, one in finer.state_dict().items()} == {
        key: one.shape for key, one in plain.state_dict().items()
    }


# --- as parts -------------------------------------------------------------------------------------------------------

CHANGES = [(kind, name) for kind in ("norms", "activations", "stems") for name in registry.parts(kind)]


@pytest.mark.parametrize(("kind", "name"), CHANGES, ids=[f"{kind}.{name}" for kind, name in CHANGES])
def test_change_by_name_gives_a_module_that_learns(timm, kind: str, name: str) -> None:
    model = create(timm, "resnet18").eval()
    images = pictures(2, 64)
    with torch.no_grad():
        before = model(images)
        changed = registry.build(kind, name)(model).eval()
        close = changed(images).shape == before.shape and torch.allclose(changed(images), before, atol=1e-3)
    assert changed is model
    assert close == (name in ("own", "relu", "none", "frozen", "ghost")), "these predict as before until they learn"
    assert learns(changed, images).shape[:2] == (2, 512)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(changed(images)).all()


@pytest.mark.parametrize("call", ["group(groups=8)", "ghost(size=3)", "ibn(kind='b')"])
def test_change_takes_its_arguments(timm, call: str) -> None:
    model = registry.build("norms", call)(create(timm, "resnet18"))
    found = {
        "group": lambda: {one.num_groups for one in model.modules() if isinstance(one, nn.GroupNorm)} == {8},
        "ghost": lambda: model.bn1.ghost == 3,
        "ibn": lambda: isinstance(model.bn1, nn.InstanceNorm2d),
    }
    assert found[registry.parse(call).name]()


def test_activations_as_parts_are_those_of_surgery() -> None:
    assert list(registry.parts("activations")) == ["own", *surgery.ACTIVATIONS]
