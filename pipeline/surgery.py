"""Changes to a network that is already built: its norms, its activation, its stem.

Each function changes the module in place, and returns it. Weights stay under their names as far as they fit, so that
pretrained ones can be loaded before or after; what a checkpoint holds fits a network that was changed in the same way.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError, nearest
from pipeline.torchvision_fix import fix_torchvision

NORMS = ("group", "layer", "instance", "none")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": functools.partial(nn.ReLU, inplace=True),
    "leaky_relu": functools.partial(nn.LeakyReLU, inplace=True),
    "elu": functools.partial(nn.ELU, inplace=True),
    "selu": functools.partial(nn.SELU, inplace=True),
    "gelu": nn.GELU,
    "silu": functools.partial(nn.SiLU, inplace=True),
    "mish": functools.partial(nn.Mish, inplace=True),
    "hard_swish": functools.partial(nn.Hardswish, inplace=True),
    "prelu": nn.PReLU,
}


def _replace(module: nn.Module, kinds: tuple[type[nn.Module], ...], make: Callable[[Any], nn.Module]) -> int:
    """Put what ``make`` gives in the place of every child of these kinds; returns how many there were.

    A child that stands in several places stays one.
    """
    made: dict[int, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, kinds):
                parent._modules[name] = made.setdefault(id(child), make(child))
    return len(made)


# --- norms --------------------------------------------------------------------------------------------------------

SINGLE = (
    "an instance norm over a map of one pixel leaves nothing of it: the images are too small for this backbone with "
    "instance norms; use a larger image_size or, with a ResNet, stem=small()"
)


class GroupNorm(nn.GroupNorm):
    """GroupNorm in the place of a BatchNorm2d: its weights, and what timm's fused one does after it."""

    def __init__(self, norm: nn.BatchNorm2d, groups: int) -> None:
        super().__init__(groups, norm.num_features, norm.eps, norm.affine)
        if norm.affine:
            self.weight, self.bias = norm.weight, norm.bias
        self.drop, self.act = _after(norm)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; UserError in training where each group is a single number."""
        if self.training and input[0].numel() == self.num_groups:
            raise UserError(SINGLE)
        return self.act(self.drop(super().forward(input)))


class Affine(nn.Module):
    """A scale and a shift for each channel: what a BatchNorm2d does in eval mode, as weights that learn."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = torch.ones(norm.num_features), torch.zeros(norm.num_features)
        if norm.affine:
            scale, shift = norm.weight.detach().clone(), norm.bias.detach().clone()
        if norm.running_mean is not None and norm.running_var is not None:
            scale = scale * torch.rsqrt(norm.running_var + norm.eps)
            shift = shift - norm.running_mean * scale
        self.weight, self.bias = nn.Parameter(scale), nn.Parameter(shift)
        self.drop, self.act = _after(norm)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        scale, shift = (part.view(1, -1, 1, 1).to(images.dtype) for part in (self.weight, self.bias))
        return self.act(self.drop(torch.addcmul(shift, images, scale)))


def _after(norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What timm's norms with an activation in them do after the norm: drop, then activate."""
    return getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())


def swap_norm(module: nn.Module, kind: str = "group", groups: int = 32) -> nn.Module:
    """Replace every BatchNorm2d, keeping its scales and shifts.

    kind: group (Wu & He 2018); layer: one group over all channels, as in their sec. 3; instance: one group a channel;
    none: a learned scale and shift alone, which start as the BatchNorm is in eval mode. groups: of kind="group"; the
    largest number up to it that divides a layer's channels is taken. Raises UserError if there is no BatchNorm2d.
    """
    if kind not in NORMS:
        raise UserError(f"norm={kind}, but the norms are {', '.join(NORMS)}{nearest(kind, NORMS)}")

    def make(norm: nn.BatchNorm2d) -> nn.Module:
        count = norm.num_features
        if kind == "none":
            return Affine(norm)
        fitting = next(n for n in range(min(groups, count), 0, -1) if count % n == 0)
        return GroupNorm(norm, {"group": fitting, "layer": 1, "instance": count}[kind])

    return _some(module, _replace(module, (nn.BatchNorm2d,), make), "BatchNorm2d")


def freeze_batchnorm(module: nn.Module) -> nn.Module:
    """Fix the statistics, scales and shifts of every BatchNorm2d: training and prediction see the eval mode's (timm).

    Only after pretrained weights are loaded: a new BatchNorm's statistics are 0 and 1. Raises UserError if there is no
    BatchNorm2d.
    """
    fix_torchvision()
    from timm.layers import freeze_batch_norm_2d

    return _some(module, _replace(module, (nn.BatchNorm2d,), freeze_batch_norm_2d), "BatchNorm2d")


class GhostBatchNorm:
    """Mixed into a BatchNorm2d's class: in training, parts of the batch are normalised each for itself."""

    ghost: int

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; the running statistics take in one part after the other."""
        whole: Callable[[Tensor], Tensor] = super().forward  # type: ignore[misc]
        if not self.training or len(images) <= self.ghost:  # type: ignore[attr-defined]
            return whole(images)
        parts = images.tensor_split(math.ceil(len(images) / self.ghost))
        return torch.cat([whole(part) for part in parts])


@functools.cache
def _ghostly(norm: type[nn.BatchNorm2d]) -> type[nn.BatchNorm2d]:
    return type(f"Ghost{norm.__name__}", (GhostBatchNorm, norm), {})


def ghost_batchnorm(module: nn.Module, size: int = 32) -> nn.Module:
    """Let every BatchNorm2d take its training statistics from parts of the batch (Hoffer et al. 2017, algorithm 1).

    size: most images of a part; parts differ by one image at most. A batch of at most that size, and prediction, are as
    ever. Raises UserError if there is no BatchNorm2d.
    """
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms:
        norm.__class__, norm.ghost = _ghostly(type(norm)), size
    return _some(module, len(norms), "BatchNorm2d")


# --- activations --------------------------------------------------------------------------------------------------


def swap_activation(module: nn.Module, name: str) -> nn.Module:
    """Replace every activation module, but for the sigmoids of gates.

    name: one of ACTIVATIONS. Activations called as functions cannot be found; UserError if there is no other.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name}, but they are {', '.join(ACTIVATIONS)}{nearest(name, ACTIVATIONS)}")
    return _some(module, _replace(module, _activations(), lambda _: ACTIVATIONS[name]()), "activation")


@functools.cache
def _activations() -> tuple[type[nn.Module], ...]:
    """Torch's and timm's classes of activations; those that end in 0…1 or −1…1 are gates, and not among them."""
    fix_torchvision()
    from timm.layers import create_act

    gates = ("sigmoid", "tanh", "hard_sigmoid", "hardsigmoid", "identity")
    tables = [create_act._ACT_LAYER_DEFAULT, create_act._ACT_LAYER_ME]
    known = {kind for table in tables for name, kind in table.items() if name not in gates}
    return (*known, nn.PReLU, nn.GELU, nn.Softplus)


# --- ResNets --------------------------------------------------------------------------------------------------------


class InstanceNorm(nn.InstanceNorm2d):
    """InstanceNorm2d with a scale and a shift."""

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__(features, eps, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; UserError in training for maps of a single pixel."""
        if self.training and input[0, 0].numel() == 1:
            raise UserError(SINGLE)
        return functional.instance_norm(input, weight=self.weight, bias=self.bias, eps=self.eps)  # torch.fx follows it


class InstanceBatchNorm(nn.Module):
    """Half of the channels by instance, the others by batch, with the weights of a BatchNorm2d over all of them."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.half = norm.num_features // 2
        self.instance = InstanceNorm(self.half, norm.eps)
        self.batch = nn.BatchNorm2d(norm.num_features - self.half, norm.eps, norm.momentum)
        with torch.no_grad():
            for name, own in self.batch.state_dict().items():
                own.copy_(getattr(norm, name)[self.half :] if own.ndim else getattr(norm, name))
            for name in ("weight", "bias"):
                getattr(self.instance, name).copy_(getattr(norm, name)[: self.half])

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        first, second = images.split([self.half, images.shape[1] - self.half], dim=1)
        return torch.cat([self.instance(first), self.batch(second)], dim=1)


def ibn(module: nn.Module, kind: str = "a") -> nn.Module:
    """Put instance norms into a timm ResNet, for looks that change between data sets (Pan et al. 2018, fig. 3).

    kind: a: half of the channels of the first norm in each block of stages 1–3. b: an instance norm on the sum that
    ends stages 1 and 2, and in place of the stem's norm. Scales and shifts stay where shapes allow. Raises UserError
    for what is no timm ResNet.
    """
    if kind not in ("a", "b"):
        raise UserError(f"ibn={kind}, but it is a or b")
    resnet = _resnet(module)
    if kind == "a":
        for block in (*resnet.layer1, *resnet.layer2, *resnet.layer3):
            if not isinstance(getattr(block, "bn1", None), nn.BatchNorm2d):
                raise UserError("ibn=a needs a BatchNorm2d in each block; change other norms after it")
            block.bn1 = InstanceBatchNorm(block.bn1)
        return module
    resnet.bn1 = _instance(resnet.bn1.num_features, resnet.bn1)
    for stage in (resnet.layer1, resnet.layer2):
        block = stage[-1]
        last, norm = ("act3", block.bn3) if hasattr(block, "act3") else ("act2", block.bn2)
        setattr(block, last, nn.Sequential(_instance(norm.num_features), getattr(block, last)))
    return module


def _instance(features: int, source: nn.BatchNorm2d | None = None) -> InstanceNorm:
    norm = InstanceNorm(features)
    if source is not None:
        norm.weight, norm.bias = source.weight, source.bias
    return norm


def small_stem(module: nn.Module) -> nn.Module:
    """Let a timm ResNet begin at full resolution, without pooling, for images of at most 64 px (He et al. 2016, 4.2).

    A 7×7 stem becomes the middle 3×3 of it, scaled by 7/3 so that its outputs keep their spread; a deep stem keeps its
    weights. Raises UserError for what is no timm ResNet.
    """
    resnet = _resnet(module)
    if isinstance(resnet.conv1, nn.Sequential):
        resnet.conv1[0].stride = (1, 1)
    else:
        resnet.conv1 = _middle(resnet.conv1)
    resnet.maxpool = nn.Identity()
    for stage in resnet.feature_info:
        stage["reduction"] = max(1, stage["reduction"] // (2 if stage["module"] == "act1" else 4))
    return module


def branch_last_stage(module: nn.Module, count: int = 3) -> nn.Module:
    """Let a timm ResNet end in several copies of its last stage, whose maps lie side by side (Wang et al. 2018, MGN).

    All start from the same weights, and learn their own; ``num_features`` is ``count`` times as large. The pool
    granularities(branched=true) gives each a granularity. Raises UserError for what is no timm ResNet.
    """
    resnet = _resnet(module)
    resnet.layer4 = Branches([copy.deepcopy(resnet.layer4) for _ in range(count)])
    resnet.feature_info[-1]["num_chs"] *= count
    for one in {resnet, module}:
        one.num_features *= count
    return module


class Branches(nn.ModuleList):
    """Modules on the same map, (B, C, H, W) → (B, the sum of their channels, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self], dim=1)


def _middle(wide: nn.Conv2d) -> nn.Conv2d:
    side = wide.kernel_size[0]
    convolution = nn.Conv2d(wide.in_channels, wide.out_channels, 3, padding=1, bias=wide.bias is not None)
    rim = (side - 3) // 2
    with torch.no_grad():
        convolution.weight.copy_(functional.pad(wide.weight, (-rim,) * 4) * (side / 3))
        if wide.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(wide.bias)
    return convolution


def _resnet(module: nn.Module) -> Any:
    fix_torchvision()
    from timm.models.resnet import ResNet

    for one in module.modules():
        if isinstance(one, ResNet):
            return one
    raise UserError(
        "ibn, small stem and branches are for timm's ResNets, such as resnet18, resnet50d or resnext50_32x4d"
    )


def _some(module: nn.Module, count: int, what: str) -> nn.Module:
    if not count:
        raise UserError(f"this backbone has no {what} to change; leave the setting out, or choose another backbone")
    return module
