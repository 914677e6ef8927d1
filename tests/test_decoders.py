"""Decoders over backbones: planes of the image's size, the same as smp's, levels that can be cut away."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from pipeline import encoders, network, registry
from pipeline.errors import UserError
from pipeline.segmenters import NestedDecoder, Segmenter

SMALL, LIGHT = "small_image(width=8)", "mobilenetv2_035"


def build(call: str, backbone: str = SMALL, outputs: int = 2, channels: int = 3) -> Segmenter:
    torch.manual_seed(0)
    encode = functools.partial(encoders.encoder, backbone, channels, create=network._create)
    return registry.build("decoders", call)(encode, outputs)


def pictures(count: int = 2, height: int = 32, width: int = 64, channels: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, channels, height, width)


def learns(model: Segmenter, images: torch.Tensor) -> list[torch.Tensor]:
    """The planes of all levels in training mode; every weight has a finite gradient."""
    model.train()
    found = model.answers(images)
    total = sum(planes.square().mean() for planes in found.planes)
    if found.labels is not None:
        total = total + found.labels.square().mean()
    total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert idle == []
    return found.planes


def as_trained(model: nn.Module) -> nn.Module:
    """In prediction mode, with norms as if they had been trained."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            lows = ((norm.weight, 0.5), (norm.bias, -0.2), (norm.running_mean, -0.3), (norm.running_var, 0.5))
            for tensor, low in lows:
                nn.init.uniform_(tensor, low, low + 0.5)
    return model.eval()


NARROW = {
    "unet": "widths=[24,16,16,8,8]", "unet_plus_plus": "widths=[24,16,16,8,8]", "manet": "widths=[24,16,16,8,8]",
    "fpn": "pyramid=16,width=32", "pspnet": "width=16", "deeplab_v3_plus": "width=16", "segformer": "width=16",
    "upernet": "width=16", "dpt": "width=16,widths=[8,16,16,24]",
}  # fmt: skip
SMPS = {
    "unet": "Unet", "unet_plus_plus": "UnetPlusPlus", "fpn": "FPN", "pspnet": "PSPNet", "segformer": "Segformer",
    "deeplab_v3_plus": "DeepLabV3Plus", "manet": "MAnet", "upernet": "UPerNet",
}  # fmt: skip


HALVED = ["unet", "unet_plus_plus", "manet", "segformer"]  # those that look at the map of half the image's size
CASES = [(name, backbone) for backbone in (SMALL, LIGHT) for name in registry.parts("decoders")]


@pytest.mark.parametrize(("name", "backbone"), [*CASES, *((name, "convnext_atto") for name in [*HALVED, "dpt"])])
def test_decoder_gives_planes_of_the_images_size(name: str, backbone: str) -> None:
    model = build(f"{name}({NARROW[name]}, aux=true)", backbone)
    images = pictures()
    assert model.multiple == {SMALL: 8}.get(backbone, {"pspnet": 8, "deeplab_v3_plus": 16}.get(name, 32))
    (planes,) = learns(model, images)
    assert planes.shape == (2, 2, 32, 64)
    model.eval()
    with torch.no_grad():
        planes, labels = model.with_labels(images)
        assert torch.equal(planes, model(images))
        assert labels.shape == (2, 2)
        layout = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(layout), planes, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.isfinite(model(images)).all()


@pytest.mark.parametrize(
    ("name", "backbone"), [*((name, LIGHT) for name in SMPS), *((name, "convnext_atto") for name in HALVED)]
)
def test_decoder_is_smps(name: str, backbone: str) -> None:
    backbone = "resnet18" if (name, backbone) == ("pspnet", LIGHT) else backbone  # smp keeps more of the other
    model = as_trained(build(name, backbone))
    import segmentation_models_pytorch as smp

    own = getattr(smp, SMPS[name])(f"tu-{backbone}", encoder_weights=None, classes=2).eval()
    state = own.state_dict()
    assert len(state) <= len(model.state_dict())
    theirs = {key: key for key in state}
    given = {flat(key): value for key, value in model.state_dict().items()}
    own.load_state_dict({key: given[called(name, theirs[key], len(model.encoder.widths) - 2)] for key in state})
    for up in own.modules():  # smp keeps the corners in place, so that a mirrored image has other planes
        if isinstance(up, nn.Upsample) and up.mode == "bilinear":
            up.align_corners = False
    with torch.no_grad():
        torch.testing.assert_close(model(pictures()), own(pictures()), rtol=1e-3, atol=1e-4)


def flat(key: str) -> str:
    """The name of a weight as timm's FeatureListNet has it: the first two steps of a path in one."""
    for group in ("stages", "stem"):
        key = key.replace(f"encoder.model.{group}.", f"encoder.model.{group}_")
    return key


def called(name: str, key: str, joints: int) -> str:
    """Our name of smp's weight."""
    if key.startswith("segmentation_head.0"):
        last = {"unet_plus_plus": f"heads.{joints}.{6 - joints - 1}"}.get(name, "heads.1")
        return key.replace("segmentation_head.0", last)
    if name == "unet_plus_plus" and key.startswith("decoder.blocks.x_"):
        _, first, second = key.split(".")[2].split("_")
        diagonal, row = int(first), joints - 1 - int(second)
        column = int(second) - diagonal + 1
        node = f"decoder.nodes.{row}_{column}" if row >= 0 else f"heads.{joints}.{-row - 1}"
        return ".".join([node, *key.split(".")[3:]])
    return key.replace("decoder.", "decoder.decoder.", 1) if key.startswith("decoder.") else key


# --- backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "widths", "reductions"),
    [
        ("resnet18", [64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
        ("dla46_c", [16, 32, 64, 64, 128, 256], [1, 2, 4, 8, 16, 32]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768], [4, 8, 16, 32]),
        ("mobilenetv3_small_050", [16, 8, 16, 24, 288], [2, 4, 8, 16, 32]),
        (SMALL, [8, 16, 32, 64], [1, 2, 4, 8]),
    ],
)
def test_encoder_tells_the_maps_that_it_gives(backbone: str, widths: list[int], reductions: list[int]) -> None:
    torch.manual_seed(0)
    made = encoders.encoder(backbone, 3, create=network._create).eval()
    assert (made.widths, made.reductions) == ([3, *widths], [1, *reductions])
    with torch.no_grad():
        image, *maps = made(pictures(1, 64, 96))
        first = made.forward(pictures(1, 64, 96))[2]
    assert [tuple(one.shape) for one in maps] == [
        (1, width, 64 // less, 96 // less) for width, less in zip(widths, reductions, strict=True)
    ]
    assert torch.equal(image, pictures(1, 64, 96))
    weights = sum(p.numel() for p in made.parameters())
    made.prune(2)
    assert (made.widths, made.reductions) == ([3, *widths[:2]], [1, *reductions[:2]])
    assert sum(p.numel() for p in made.parameters()) < weights / 2
    with torch.no_grad():
        assert torch.equal(made(pictures(1, 64, 96))[2], first)
    assert len(made(pictures(1, 64, 96))) == 3


def test_a_small_stem_makes_larger_maps() -> None:
    def encode(**wanted: int) -> nn.Module:
        made = encoders.encoder("resnet18", 3, create=network._create, **wanted)
        return registry.build("stems", "small()")(made)

    made = encode()
    assert (made.widths, made.reductions) == ([3, 64, 128, 256, 512], [1, 1, 2, 4, 8])
    model = registry.build("decoders", "unet_plus_plus(deep=true)")(encode, 1)
    assert (model.levels, model.multiple) == ([1, 2, 3], 8)
    planes = learns(model, pictures())
    assert {tuple(one.shape) for one in planes} == {(2, 1, 32, 64)}


@pytest.mark.parametrize(("backbone", "multiple"), [("vit_tiny_patch16_224", 32), ("eva02_tiny_patch14_224", 28)])
def test_a_plain_transformer_serves_dpt_alone_and_takes_any_size(backbone: str, multiple: int) -> None:
    model = build(f"dpt({NARROW['dpt']})", backbone, channels=1).eval()
    assert model.multiple == multiple
    for height, width in ((multiple, 3 * multiple), (2 * multiple, multiple)):
        with torch.no_grad():
            assert model(pictures(1, height, width, channels=1)).shape == (1, 2, height, width)
    with pytest.raises(UserError, match=r"one size.*decoder=dpt\(\)"):
        build("unet", backbone)


def test_pretrained_is_asked_of_timm_once_and_only_if_wanted() -> None:
    asked = []

    def create(name: str, pretrained: bool, arguments: dict[str, object]) -> nn.Module:
        asked.append((name, pretrained))
        return network._create(name, False, arguments)

    for pretrained in (False, True):
        encoders.encoder("resnet18.a1_in1k(drop_path_rate=0.1)", 3, create=create, pretrained=pretrained)
    assert asked == [("resnet18.a1_in1k", False), ("resnet18.a1_in1k", True)]
    with pytest.raises(UserError, match="small_image has no pretrained weights"):
        encoders.encoder(SMALL, 3, create=create, pretrained=True)


@pytest.mark.parametrize("backbone", [LIGHT, "convnext_atto", SMALL])
def test_an_encoder_takes_the_weights_of_its_backbone(backbone: str, tmp_path) -> None:
    torch.manual_seed(5)
    name = backbone.partition("(")[0]
    own = name in registry.parts("backbones")
    plain = registry.build("backbones", backbone)(3) if own else network._create(name, False, {"num_classes": 7})
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    model = build("unet", backbone)
    network.load_weights(model.encoder, tmp_path / "weights.pth")
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.encoder.model.state_dict().items())


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(UserError, match=r"widths=\[8, 8\], but this backbone needs 5"):
        build("unet(widths=[8,8])", "resnet18")
    with pytest.raises(UserError, match="stride is 8 or 16"):
        build("deeplab_v3_plus(stride=12)", "resnet18")
    with pytest.raises(UserError, match="swin_tiny_patch4_window7_224.*output_stride"):
        build("deeplab_v3_plus", "swin_tiny_patch4_window7_224")
    with pytest.raises(UserError, match="levit_128s takes images of one size alone"):
        build("unet", "levit_128s")
    with pytest.raises(UserError, match="level=3, but the decoder has 1"):
        build("unet").prune(3)


@pytest.mark.parametrize("call", ["unet", "unet_plus_plus(deep=true)", "fpn"])
@pytest.mark.parametrize("backbone", [SMALL, LIGHT])
def test_encoder_and_decoder_fold_their_norms_apart(call: str, backbone: str) -> None:
    model = as_trained(build(call, backbone))
    with torch.no_grad():
        expected = model(pictures())
        model.encoder.forward, before = network.fold_batchnorm(model.encoder).forward, model.encoder
        model.decoder = network.fold_batchnorm(model.decoder)
        torch.testing.assert_close(model(pictures()), expected, rtol=1e-3, atol=1e-3)
    assert before is model.encoder
    assert not [one for one in model.decoder.modules() if isinstance(one, nn.BatchNorm2d)]


# --- levels ---------------------------------------------------------------------------------------------------------


def effort(model: Segmenter) -> tuple[int, int]:
    """Parameters, and operations for one batch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pictures())
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


@pytest.mark.parametrize(("backbone", "levels"), [(LIGHT, 4), ("convnext_atto", 3), (SMALL, 3)])
def test_a_level_cut_out_says_the_same_with_less(backbone: str, levels: int) -> None:
    model = as_trained(build("unet_plus_plus(deep=true, aux=true)", backbone))
    assert model.levels == list(range(1, levels + 1))
    with torch.no_grad():
        planes, labels = model.answers(pictures())
    assert (len(planes), labels.shape) == (levels, (2, 2))
    whole, before = model, effort(model)
    for level in range(levels, 0, -1):
        model = copy.deepcopy(whole)
        model.prune(level)
        assert model.levels == [level]
        with torch.no_grad():
            torch.testing.assert_close(model(pictures()), planes[level - 1])
        assert (model.answers(pictures()).labels is None) == (level < levels)
        after = effort(model)
        assert after[0] < before[0] * (0.8 if level < levels else 1)
        assert after[1] < before[1] * (0.9 if level < levels else 1.001)
        before = after
    assert model.multiple == model.encoder.reductions[-1] == model.encoder.reductions[2]


def test_all_levels_learn_and_a_call_gives_the_last() -> None:
    model = build("unet_plus_plus(deep=true)", LIGHT)
    planes = learns(model, pictures())
    assert [one.shape for one in planes] == [(2, 2, 32, 64)] * 4
    model.eval()
    assert torch.equal(model(pictures()), model.answers(pictures()).planes[-1])
    plain = build("unet_plus_plus", LIGHT)
    assert plain.levels == [4]
    assert len(learns(plain, pictures())) == 1
    assert set(plain.state_dict()) < set(model.state_dict())


def test_a_pruned_network_is_built_again_from_its_weights() -> None:
    model, other = (build("unet_plus_plus(deep=true)", LIGHT) for _ in range(2))
    model.prune(2)
    other.prune(2)
    other.load_state_dict(as_trained(model).state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(pictures()), model(pictures()))


def test_nodes_see_their_row_and_the_one_below() -> None:
    """Zhou et al. 2018, eq. 1, spelt out for three rows with blocks that add up what they see."""

    class Sum(nn.Module):
        def __init__(self, below: int, across: int, out: int) -> None:
            super().__init__()
            self.shape = below, across, out

        def forward(self, below: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
            rows, _, height, width = across.shape
            total = 10 * below.mean(dim=1).repeat_interleave(2, 1).repeat_interleave(2, 2) + across.sum(dim=1)
            assert (below.shape[1], across.shape[1]) == self.shape[:2]
            return total[:, None].expand(rows, self.shape[2], height, width) / self.shape[2]

    maps = [torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 4, 4), 2.0), torch.full((1, 1, 2, 2), 3.0)]
    found = NestedDecoder([1, 1, 1], [1, 1], Sum)([torch.zeros(1, 3, 8, 8), *maps])
    x01 = 10 * 2 + 1
    x11 = 10 * 3 + 2
    x02 = 10 * x11 + 1 + x01
    assert [float(one.max()) for one in found] == [x01, x02]
    assert [one.shape for one in found] == [(1, 1, 8, 8)] * 2
