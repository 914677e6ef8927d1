"""Normalisation → backbone → pool → head as one module, rebuilt for prediction from what its checkpoint carries."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import backbone_names, cpu_convolutions, registry
from pipeline.artefacts import atomic, shown
from pipeline.errors import UserError, some
from pipeline.parts.normalises import Normalise
from pipeline.segmenters import Answers
from pipeline.torchvision_fix import fix_torchvision


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a network again; it travels inside the checkpoint (law 4).

    mean, std: per channel, of pixels in 0…1. columns: what the predicted values mean, in order. outputs: numbers the
    head gives; 0: one a column. state: what the task learned from the member's own rows, such as their mean. decoder:
    what makes planes of the backbone's maps, in the place of pool and head. tile_scale: with resize="tiles", the share
    of an image's own size at which it is seen. preprocess: what changes every image before it becomes square, with all
    arguments. whitening: (C, C, k, k) kernel. embeds: it predicts embeddings; the head is for training.
    """

    backbone: str
    pool: str
    head: str
    channels: int
    image_size: int
    resize: str
    mean: list[float]
    std: list[float]
    columns: list[str]
    outputs: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    norm: str = "own()"
    activation: str = "own()"
    stem: str = "own()"
    preprocess: list[str] = field(default_factory=list)
    normalise: str = "backbone()"
    whitening: list[Any] = field(default_factory=list)
    decoder: str = ""
    tile_scale: float = 1.0
    embeds: bool = False

    def facts(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


class Network(nn.Module):
    """(B, C, H, W) uint8 images → (B, outputs) raw outputs, float32.

    compiled: whether its backbone is code for batches of one shape; see ``pipeline/compiling.py``.
    """

    compiled = False

    def __init__(self, blueprint: Blueprint, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.normalise = normaliser(blueprint)
        self.backbone = backbone
        self.pool = registry.build("pools", blueprint.pool)(features)
        self.head = registry.build("heads", blueprint.head)(
            self.pool.features, blueprint.outputs or len(blueprint.columns)
        )

    def train(self, mode: bool = True) -> Network:
        """As torch's, but a BatchNorm whose weights are frozen keeps its statistics, which belong to them."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
                layer.train(mode and layer.weight.requires_grad)
        return self

    @property
    def levels(self) -> list[int]:
        """The levels that it learned to predict at, the last is what it gives."""
        return []

    def prune(self, level: int) -> None:
        """Drop for good what the answer of a level does not need."""
        raise UserError(f"level={level}, but the network has no levels; leave it out")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised floats, where mixes of a batch act."""
        return self.normalise(images)

    def vectors(self, prepared: torch.Tensor) -> torch.Tensor:
        """(B, F) pooled features of normalised images."""
        features = self.backbone(prepared)
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(next(self.head.parameters()).dtype)  # prediction keeps pool and head in fp32
        return self.pool(features)

    def answers(self, vectors: torch.Tensor) -> Any:
        """Vectors → raw outputs; while it trains those of each part of a head that has ``levels``, as Answers."""
        if self.training and hasattr(self.head, "levels"):
            return Answers([level.float() for level in self.head.levels(vectors)], None)
        return self.head(vectors).float()

    def outputs(self, prepared: torch.Tensor) -> Any:
        """Raw outputs of normalised images."""
        return self.answers(self.vectors(prepared))

    def embeddings(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors → (B, E) float32, what stands for an image: behind the head's neck, where it has one."""
        return (self.head.embed(vectors) if hasattr(self.head, "embed") else vectors).float()

    def compared(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors → (B, E), what losses of pairs compare: before the head's neck."""
        return self.head.pairs(vectors) if hasattr(self.head, "pairs") else vectors

    @property
    def compared_width(self) -> int:
        """The E of ``compared``."""
        return self.embedding_width if hasattr(self.head, "pairs") else int(self.pool.features)

    @property
    def embedding_width(self) -> int:
        """The E of ``embeddings``."""
        return int(getattr(self.head, "width", self.pool.features))

    def predicted(self, prepared: torch.Tensor) -> torch.Tensor:
        """What predictions are made of: raw outputs of normalised images, or their embeddings."""
        if self.blueprint.embeds:
            return self.embeddings(self.vectors(prepared))
        return self.outputs(prepared)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images → raw outputs."""
        return self.outputs(self.prepare(images))

    def quicken(self, dtype: torch.dtype) -> None:
        """Fold BatchNorm into the convolutions, and put the backbone in a fast format; pool and head stay fp32.

        The head's products are few, and outputs rounded to bf16 would tie ranks.
        """
        self.backbone = fold_batchnorm(self.backbone)
        self.normalise.to(dtype)
        self.backbone.to(dtype)


def normaliser(blueprint: Blueprint) -> Normalise:
    """What makes pixels the input of a blueprint's network."""
    plan = blueprint.mean, blueprint.std, blueprint.whitening
    made: Normalise = registry.build("normalises", blueprint.normalise)(*plan)
    return made


class PlaneNetwork(Network):
    """(B, C, H, W) uint8 images → (B, outputs, H, W) raw planes, float32; sides of any size.

    While it is trained with deep supervision or a head of labels, ``outputs`` are ``segmenters.Answers``. Then, where
    there is that head, the odds of a plane's pixels are such that their probability is multiplied by the probability
    that the plane is anywhere in the image: what lies below a cut's gate is empty.
    """

    def __init__(self, blueprint: Blueprint, segmenter: nn.Module) -> None:
        nn.Module.__init__(self)
        self.blueprint = blueprint
        self.normalise = normaliser(blueprint)
        self.segmenter = segmenter
        self.multiple: int = segmenter.multiple  # a folded encoder no longer tells

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The encoder: what is pretrained."""
        return self.segmenter.encoder

    @property
    def levels(self) -> list[int]:
        """See ``Network``."""
        return list(self.segmenter.levels)

    def prune(self, level: int) -> None:
        """See ``Network``."""
        self.segmenter.prune(level)
        self.multiple = self.segmenter.multiple

    def vectors(self, prepared: torch.Tensor) -> torch.Tensor:
        """(B, F) mean of the encoder's deepest features of normalised images."""
        return self.backbone(self._padded(prepared))[-1].mean(dim=(2, 3))

    def _padded(self, prepared: torch.Tensor) -> torch.Tensor:
        """Images that are padded at the edge to what the decoder needs."""
        height, width = prepared.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        return nn.functional.pad(prepared, (0, right, 0, down), mode="replicate") if down or right else prepared

    def outputs(self, prepared: torch.Tensor) -> Any:
        """Raw planes of normalised images of any size."""
        height, width = prepared.shape[-2:]
        padded = self._padded(prepared)
        if self.training and (len(self.segmenter.levels) > 1 or self.segmenter.labels is not None):
            answers = self.segmenter.answers(padded)
            planes = [one[..., :height, :width].float() for one in answers.planes]
            return answers._replace(planes=planes, labels=None if answers.labels is None else answers.labels.float())
        found, labels = self.segmenter.with_labels(padded)
        found = found[..., :height, :width].float()
        return found if labels is None else _both(found, labels.float()[..., None, None])

    def quicken(self, dtype: torch.dtype) -> None:
        """Fold BatchNorm of encoder and decoder into the convolutions, and put all in a fast format."""
        for name in ("encoder", "decoder"):
            setattr(self.segmenter, name, fold_batchnorm(getattr(self.segmenter, name)))
        self.to(dtype)


def _both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The logit of the product of two logits' probabilities: −log(exp(−a) + exp(−b) + exp(−a − b))."""
    first, second = torch.broadcast_tensors(first, second)
    return -torch.logsumexp(torch.stack([-first, -second, -first - second]), dim=0)


class TimmBackbone(nn.Module):
    """A timm model as a map (B, F, h, w); models without such a map are pooled by their own means to (B, F, 1, 1)."""

    def __init__(self, name: str, arguments: dict[str, Any], channels: int, image_size: int, pretrained: bool) -> None:
        super().__init__()
        common = {**_size_argument(name, image_size), **arguments, "in_chans": channels, "num_classes": 0}
        self.model = _create(name, pretrained, {**common, "global_pool": ""})
        try:
            shape = _output_shape(self.model, channels, image_size)
        except (AssertionError, RuntimeError, ValueError) as fault:
            reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise UserError(
                f"backbone={name} takes no images of {image_size} px ({reason}); set a larger image_size, such as "
                f"{max(32, 2 * image_size)}, or take a net for small images: model=small_image"
            ) from fault
        self.pooled = len(shape) != 4 or shape[1] < shape[3]  # tokens (B, N, F), or a map with channels last
        if self.pooled:
            state = self.model.state_dict()
            self.model = _create(name, False, common)
            self.model.load_state_dict(state)
            shape = _output_shape(self.model, channels, image_size)
        self.num_features = shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float → (B, F, h, w)."""
        features = self.model(images)
        return features[:, :, None, None] if self.pooled else features

    def places(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float → (B, F, h, w), of transformers their patches; as ``forward`` if they fill no square."""
        if not self.pooled:
            return self.forward(images)
        found = self.model.forward_features(images)  # type: ignore[operator]
        if found.ndim == 4:  # channels last
            return found.permute(0, 3, 1, 2)
        patches = found[:, getattr(self.model, "num_prefix_tokens", 0) :] if found.ndim == 3 else found[:, :0]
        side = math.isqrt(patches.shape[1])
        if not side or side**2 != patches.shape[1]:
            return self.forward(images)
        return patches.transpose(1, 2).unflatten(2, (side, side))


def new(blueprint: Blueprint, pretrained: bool, weights: str) -> Network:
    """A network to train: with timm's weights, those of a file, or random ones (from torch's current seed)."""
    return build(blueprint, pretrained and not weights, weights)


def build(blueprint: Blueprint, pretrained: bool = False, weights: str = "") -> Network:
    """The network of a blueprint; weights are loaded before stem, norm and activation change."""
    made = (_build_planes if blueprint.decoder else _build)(blueprint, pretrained, weights)
    cpu_convolutions.watch(made)
    return made


def _build(blueprint: Blueprint, pretrained: bool, weights: str) -> Network:
    name, arguments = backbone_names.split(blueprint.backbone)
    if name in registry.parts("backbones"):
        backbone = registry.build("backbones", blueprint.backbone)(blueprint.channels)
        if pretrained:
            raise UserError(f"pretrained=true, but {name} has no pretrained weights; add pretrained=false")
    else:
        backbone = TimmBackbone(name, arguments, blueprint.channels, blueprint.image_size, pretrained)
    backbone = _changed(backbone, blueprint, weights)
    return Network(blueprint, backbone, backbone.num_features)


def _changed(backbone: Any, blueprint: Blueprint, weights: str) -> Any:
    """The backbone with its stem, norm and activation; weights come before that, unless they were learned behind it."""
    path = Path(weights) if weights else None
    plan = learned(path) if path else None
    behind = plan is not None and any(registry.parse(plan[key]).name != "own" for key in CHANGES)
    if path and not behind:
        _load(backbone, blueprint, path, plan)
    for key, kind in CHANGES.items():
        backbone = registry.build(kind, getattr(blueprint, key))(backbone)
    if path and behind:
        _load(backbone, blueprint, path, plan)
    return backbone


def _load(backbone: nn.Module, blueprint: Blueprint, path: Path, plan: dict[str, Any] | None) -> None:
    """plan: of ``learned``; None for any other file."""
    if plan is None:
        load_weights(backbone, path)
    else:
        load_learned(backbone, blueprint, path, plan)


def check_sizes(network: Network, sizes: list[int], text: str) -> None:
    """UserError unless the network takes each of these sizes beside its own; text: the config's ``sizes``."""
    plan, was_training = network.blueprint, network.training
    for size in [size for size in sizes if size != plan.image_size]:
        try:
            with torch.no_grad():
                network.eval().outputs(torch.zeros(2, plan.channels, size, size))
        except (AssertionError, RuntimeError, ValueError) as fault:
            reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise UserError(
                f"sizes={text}, but {plan.backbone} takes no {size} px ({reason}): it is made for one size, or that is "
                "too small; use sizes=fixed(), or other shares of image_size"
            ) from fault
    network.train(was_training)


def _build_planes(blueprint: Blueprint, pretrained: bool, weights: str) -> Network:
    """Encoder and decoder; the encoder is changed before the decoder looks at its maps."""
    from pipeline.encoders import encoder

    def encode(**wanted: Any) -> nn.Module:
        made = encoder(blueprint.backbone, blueprint.channels, **wanted, create=_create, pretrained=pretrained)
        changed: nn.Module = _changed(made, blueprint, weights)
        return changed

    return PlaneNetwork(blueprint, registry.build("decoders", blueprint.decoder)(encode, blueprint.outputs))


def from_checkpoint(content: dict[str, Any], level: int = 0) -> Network:
    """The network of a ``best.ckpt``, with its weights, ready to predict; level: of its decoder, or 0, the last."""
    network = build(Blueprint(**content["blueprint"]))
    network.load_state_dict(content["network"])
    if level:
        network.prune(level)
    return network.eval()


def for_prediction(network: Network, dtype: torch.dtype) -> Network:
    """A copy that is ready to predict, in a fast format: see ``quicken``."""
    fast = copy.deepcopy(network).eval().requires_grad_(False)
    fast.quicken(dtype)
    cpu_convolutions.settle(fast)
    return fast.to(memory_format=torch.channels_last)


def normalisation(backbone: str, channels: int) -> tuple[list[float], list[float]]:
    """The mean and deviation, per channel, that a backbone's pretrained weights expect; ImageNet's if it names none."""
    name, _ = backbone_names.split(backbone)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if name not in registry.parts("backbones"):
        timm = _timm()
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        mean, std = (config.mean, config.std) if config else (mean, std)
    if channels != 3:
        return [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
    return list(mean), list(std)


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a local state dict (.safetensors, .pth) into a backbone; classifier entries are left out.

    Raises UserError if the file is missing, is no plain state dict, or fits less than half of the backbone.
    """
    state = _read_state(path)
    own = backbone.state_dict()
    prefix = "model." if all(key.startswith("model.") for key in own) else ""
    found = {}
    for key, value in state.items():
        plain = key.removeprefix("module.").removeprefix("backbone.").removeprefix("model.")  # DDP's, and our own
        for name in (key, plain, prefix + plain):
            if name in own and own[name].shape == value.shape:
                found[name] = value
    if len(found) < len(own) / 2:
        raise UserError(
            f"weights={path} fits {len(found)} of the backbone's {len(own)} tensors; it holds {some(state)}; "
            "give the state dict of the same backbone"
        )
    backbone.load_state_dict({**own, **found})


# --- what stage=pretrain learned ------------------------------------------------------------------------------------

HEADER = "pipeline"  # the entry of a safetensors file's header that tells what its weights were learned with
STEM = "model."  # begins the names of timm's weights in a network of ours; a file has timm's own names
ALIKE = 0.05  # how far two means or deviations of pixels in 0…1 may be apart: measured ones differ by a little
CHANGES = {"stem": "stems", "norm": "norms", "activation": "activations"}  # in the order in which they are made


def save_learned(path: Path, backbone: nn.Module, blueprint: Blueprint, **facts: Any) -> None:
    """Write a backbone's weights as safetensors, under timm's own names, with what they were learned with."""
    from safetensors.torch import save

    state = {
        name.removeprefix(STEM): value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()
    }
    with atomic(path) as handle:
        handle.write(save(state, {HEADER: json.dumps({**blueprint.facts(), **facts}, sort_keys=True)}))


def learned(path: Path) -> dict[str, Any] | None:
    """What the weights of stage=pretrain were learned with; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            told = json.loads((handle.metadata() or {}).get(HEADER, "null"))
    except (OSError, SafetensorError, ValueError):  # who reads its weights says what is wrong with it
        return None
    return told if isinstance(told, dict) and "method" in told else None


def load_learned(backbone: nn.Module, blueprint: Blueprint, path: Path, plan: dict[str, Any]) -> None:
    """Load the weights of stage=pretrain into the backbone that learned them; UserError where it is another.

    plan: of ``learned``. The file may have more, such as the layers that a decoder does not need.
    """
    now = blueprint.facts()
    for key, name, before, own in _alike(plan, now):
        if before != own:
            raise UserError(
                f"weights={shown(path)} were learned with {name}={plan[key]}, but this run has {name}={now[key]}; set "
                f"{name}={plan[key]}, or pretrain this one: stage=pretrain"
            )
    pairs = [pair for part in ("mean", "std") for pair in zip(plan[part], now[part], strict=True)]
    if max(abs(before - own) for before, own in pairs) > ALIKE:
        raise UserError(
            f"weights={shown(path)} were learned from pixels of mean {_rounded(plan['mean'])} and deviation "
            f"{_rounded(plan['std'])}, but here they are {_rounded(now['mean'])} and {_rounded(now['std'])}; pretrain "
            "on these images, or set data.normalise=backbone() in both"
        )
    state, there = _read_state(path), backbone.state_dict()
    wrong = [name for name in there if getattr(state.get(name.removeprefix(STEM)), "shape", None) != there[name].shape]
    if wrong:
        raise UserError(
            f"weights={shown(path)} were learned by {plan['backbone']} at image_size={plan['image_size']}, and do not "
            f"fit {now['backbone']} at image_size={now['image_size']}: {some(wrong)} are missing or of another shape; "
            "pretrain with this run's settings: stage=pretrain"
        )
    backbone.load_state_dict({name: state[name.removeprefix(STEM)] for name in there})


def _alike(plan: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """What must be equal: its name in the header and in the config, and both values, spelt alike."""
    yield "backbone", "backbone", *(backbone_names.split(one["backbone"])[0].partition(".")[0] for one in (plan, now))
    yield "channels", "data.channels", plan["channels"], now["channels"]
    yield "normalise", "data.normalise", *(registry.complete("normalises", one["normalise"]) for one in (plan, now))
    if any(registry.parse(plan[key]).name != "own" for key in CHANGES):
        for key, kind in CHANGES.items():
            yield key, key, *(registry.complete(kind, one[key]) for one in (plan, now))


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as fault:
        raise UserError(f"weights={path} does not exist") from fault
    except Exception as fault:
        raise UserError(f"weights={path} is no state dict that loads safely: {fault}") from fault
    for key in ("state_dict", "model", "network"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _timm() -> Any:
    fix_torchvision()
    import timm

    return timm


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    timm = _timm()
    if pretrained:
        _fail_fast_offline()
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as fault:
        raise UserError(f"backbone={name}: {fault}") from fault
    except Exception as fault:
        if not pretrained:
            raise UserError(f"backbone={name} cannot be built: {fault}") from fault
        raise UserError(
            f"the pretrained weights of {name} cannot be had ({type(fault).__name__}: {str(fault).splitlines()[0]}); "
            "without a network give a local file, weights=FILE.safetensors, or start from random weights, "
            "pretrained=false, on images of at most 64 px with model=small_image"
        ) from fault


def _fail_fast_offline() -> None:
    """Where the hub's host has no address, let its client look into its cache only: it would retry for a minute."""
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    host = urllib.parse.urlparse(constants.ENDPOINT).hostname
    if urllib.request.getproxies():  # the proxy knows the address
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _size_argument(name: str, image_size: int) -> dict[str, Any]:
    """Models with a fixed input size (ViT, Swin) are built for ours."""
    timm = _timm()
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def _output_shape(model: nn.Module, channels: int, image_size: int) -> tuple[int, ...]:
    state = model.training
    with torch.no_grad():
        shape = tuple(model.eval()(torch.zeros(2, channels, image_size, image_size)).shape)
    model.train(state)
    return shape


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """The module in eval mode with each BatchNorm that follows a convolution folded into it; itself if there is none
    or the model is untraceable.

    torch.fx finds the pairs, timm's BatchNormAct2d (norm and activation in one) among them, since neighbours in the
    code need not be neighbours in the computation.
    """
    from torch import fx
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            whole = isinstance(m, (nn.BatchNorm2d, cpu_convolutions.CpuConv2d))
            return whole or super().is_leaf_module(m, module_qualified_name)

    try:
        traced = fx.GraphModule(module, Tracer().trace(module))
    except Exception:  # a model that branches on its data is not traceable, and predicts unfolded
        return module
    modules, folded = dict(traced.named_modules()), 0
    for node in traced.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution, norm = modules[str(source.target)], modules[str(node.target)]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            traced.set_submodule(str(source.target), fuse_conv_bn_eval(convolution, norm))
            traced.set_submodule(str(node.target), _after_norm(norm))
            folded += 1
    return traced if folded else module


def _after_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a folded norm: timm's fused ones still drop and activate."""
    return nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
