"""Networks: built from any backbone, folded and cast for prediction, and carried whole by their checkpoint."""

from __future__ import annotations

import re

import numpy as np
import pytest
import small_training as small
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import cpu_convolutions, network, registry
from pipeline.errors import UserError
from pipeline.network import Blueprint, Network

SIZE = 32
VIT = "vit_tiny_patch16_224"
NETS = ["small_image(width=4)", "resnet10t", "efficientnet_b0", "convnext_atto", VIT]


def plan(backbone: str, **changes: object) -> Blueprint:
    facts = {
        "backbone": backbone, "pool": "avg()", "head": "linear()", "channels": 3, "image_size": SIZE,
        "resize": "stretch", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "columns": ["a", "b", "c"],
    }  # fmt: skip
    return Blueprint(**{**facts, **changes})


def trained(blueprint: Blueprint, seed: int = 0) -> Network:
    """A network in eval mode whose BatchNorms have seen something, as if trained."""
    torch.manual_seed(seed)
    model = network.build(blueprint)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def pictures(count: int = 4, channels: int = 3, size: int = SIZE) -> torch.Tensor:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return torch.from_numpy(images).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("backbone", NETS)
def test_prediction_keeps_the_outputs(backbone):
    model = trained(plan(backbone))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.inference_mode():
        expected = model(pictures())
        fast = network.for_prediction(model, torch.float32)
        torch.testing.assert_close(fast(pictures()), expected, rtol=1e-3, atol=1e-4)
        half = network.for_prediction(model, torch.bfloat16)
        near = half(pictures())
    assert near.dtype == torch.float32
    assert float((near - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert not torch.equal(near, expected), "bf16 must not be fp32 in disguise"
    behind_pools = 3 if backbone.startswith("small_image") else 0  # a pool of maxima does not commute with a norm
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fast.modules()) == min(norms, behind_pools)
    assert small.same(before, model.state_dict()), "the network itself stays as it was"


def test_batchnorm_that_follows_no_convolution_stays():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.other = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = self.first(x)  # used twice: the norm must not change what the second user sees
            return self.norm(kept) + kept + self.other(x)[:, :1, 1:-1, 1:-1]

    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 3, 6, 6))
    model.eval()
    folded = network.fold_batchnorm(model)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(folded(x), model(x))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 2


@pytest.mark.parametrize("kind", ["StdConv2d", "Conv2dSame"])
def test_a_convolution_that_changes_its_weights_or_images_keeps_its_norm(kind):
    network._timm()
    from timm import layers

    torch.manual_seed(0)
    model = nn.Sequential(getattr(layers, kind)(3, 8, 3, stride=2), nn.BatchNorm2d(8))
    model(torch.randn(8, 3, 9, 9) + 1)
    cpu_convolutions.watch(model.eval())
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(network.fold_batchnorm(model)(x), model(x))


def test_an_untraceable_model_predicts_unfolded():
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    model = Net().eval()
    assert network.fold_batchnorm(model) is model


@pytest.mark.parametrize("backbone", NETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_backbone_gives_a_map_that_is_pooled(backbone, channels):
    mean, std = network.normalisation(backbone, channels)
    assert len(mean) == len(std) == channels
    model = network.build(plan(backbone, channels=channels, mean=mean, std=std)).eval()
    with torch.inference_mode():
        features = model.backbone(model.prepare(pictures(channels=channels)))
        outputs = model(pictures(channels=channels))
    assert features.shape[:2] == (4, model.backbone.num_features)
    assert features.ndim == 4
    assert outputs.shape == (4, 3)
    assert torch.isfinite(outputs).all()


def test_normalisation_is_the_backbones_own():
    mean, std = network.normalisation("vit_base_patch16_224.augreg_in21k", 3)
    assert (mean, std) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert network.normalisation("resnet18", 3)[0] == [0.485, 0.456, 0.406]
    assert network.normalisation("resnet18", 1)[0] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]
    images = pictures()
    expected = (images / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.25]).view(
        3, 1, 1
    )
    torch.testing.assert_close(network.Normalise([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])(images), expected)


def test_a_checkpoint_carries_all_that_predicts():
    model = trained(plan("small_image(width=4)", pool="gem()", head="linear(dropout=0.5)"))
    content = {"network": model.state_dict(), "blueprint": model.blueprint.facts()}
    again = network.from_checkpoint(content)
    with torch.inference_mode():
        assert torch.equal(model(pictures()), again(pictures()))
    assert again.blueprint == model.blueprint


# --- where weights come from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "module.pth", "best.ckpt"])
@pytest.mark.parametrize("backbone", ["resnet10t", "small_image(width=4)", VIT])
def test_weights_of_a_file(tmp_path, backbone, suffix):
    """timm's own state dict, with its classifier, comes back in a network without one; so do DDP's and our own."""
    model = trained(plan(backbone), seed=1)
    state = {name.removeprefix("model."): tensor for name, tensor in model.backbone.state_dict().items()}
    state |= {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    elif suffix == "best.ckpt":
        torch.save({"network": model.state_dict(), "blueprint": model.blueprint.facts()}, path)
    elif suffix == "module.pth":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state, path)
    torch.manual_seed(2)
    loaded = network.new(plan(backbone), pretrained=True, weights=str(path)).backbone
    assert small.same(loaded.state_dict(), model.backbone.state_dict())


def test_a_training_starts_from_the_weights_and_is_bound_to_them(project):
    small.write(project.root)
    source = trained(plan("small_image(width=4)", channels=1, mean=[0.5], std=[0.5]), seed=1).backbone
    torch.save(source.state_dict(), project.root / "start.pth")
    words = ("stage=train", "fold=0", "epochs=1", "optim=sgd(momentum=0.0)", "lr=1e-12", "weights=start.pth")
    assert project.run(*words).code == 0
    ended = small.weights(project.root / "runs/noise/tiny/fold0/best.ckpt")
    for name, tensor in source.named_parameters():
        torch.testing.assert_close(ended[f"backbone.{name}"], tensor.detach(), rtol=0, atol=1e-6)
    torch.save({name: tensor + 1 for name, tensor in source.state_dict().items()}, project.root / "start.pth")
    refused = project.run(*words)
    assert refused.code == 2
    assert "made from other data (weights changed)" in refused.err


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(trained(plan("small_image(width=4)")).backbone.state_dict(), path)
    with pytest.raises(UserError, match=r"fits \d+ of the backbone's \d+ tensors.*the same backbone"):
        network.new(plan("resnet10t"), pretrained=False, weights=str(path))
    (tmp_path / "no.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="no state dict that loads safely"):
        network.new(plan("resnet10t"), pretrained=False, weights=str(tmp_path / "no.pth"))
    with pytest.raises(UserError, match="does not exist"):
        network.new(plan("resnet10t"), pretrained=False, weights=str(tmp_path / "nowhere.safetensors"))


class Trap:
    """What a hostile pickle would do."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_is_never_run(tmp_path):
    torch.save({"weight": torch.zeros(1), "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="no state dict that loads safely"):
        network.new(plan("resnet10t"), pretrained=False, weights=str(tmp_path / "trap.pth"))


def test_pretrained_without_a_network_names_both_ways_out(project, monkeypatch, tmp_path):
    small.write(project.root)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    words = ("stage=train", "fold=0", "backbone=resnet10t", "image_size=32", "epochs=1")
    stopped = project.run(*words, "pretrained=true")
    assert stopped.code == 2
    assert all(text in stopped.err for text in ("resnet10t", "weights=FILE", "pretrained=false"))
    assert stopped.err.count("\n") == 1
    assert not list((project.root / "runs").rglob("*.ckpt"))
    assert project.run(*words, "pretrained=false").code == 0, "the failure must leave no run behind"


def test_an_own_backbone_has_no_pretrained_weights():
    with pytest.raises(UserError, match="small_image has no pretrained weights; add pretrained=false"):
        network.new(plan("small_image(width=4)"), pretrained=True, weights="")


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ("resnet81", r"did you mean resnet\d+"),
        ("smal_image(width=4)", "did you mean small_image"),
        ("small_image(widht=4)", "widht"),
        ("no backbone", "is not a name"),
    ],
)
def test_an_unknown_backbone_fails_before_any_work(project, backbone, says):
    small.write(project.root)
    stopped = project.run("stage=train", f"backbone={backbone}")
    assert stopped.code == 2
    assert stopped.err.startswith("error: ")
    assert stopped.err.count("\n") == 1
    assert re.search(says, stopped.err), stopped.err
    assert not (project.root / "folds").exists()


def test_an_argument_that_timm_does_not_take_is_one_message(project):
    small.write(project.root)
    stopped = project.run("stage=train", "fold=0", "backbone=resnet10t(widht=4)", "image_size=32")
    assert stopped.code == 2
    assert "backbone=resnet10t" in stopped.err
    assert "widht" in stopped.err


@pytest.mark.parametrize("pool", sorted(registry.parts("pools")))
def test_every_pool_joins_every_kind_of_backbone(pool):
    for backbone in ("small_image(width=4)", VIT):
        model = network.build(plan(backbone, pool=f"{pool}()")).eval()
        with torch.inference_mode():
            assert model(pictures(2)).shape == (2, 3)
