"""Fine-tunings: which weights learn, and how fast beside each other.

Form: ``f(network, lr, *, …) -> list`` of parameter groups, dicts with "params" and "lr", over the parameters that
learn; others are frozen in place. network: has ``backbone``, ``pool`` and ``head``. lr: the peak rate of the head's
group or, where all learn alike, of every weight. A BatchNorm that is frozen keeps its running statistics, too
(``Network.train``); ``norm=frozen()`` holds them where its neighbours learn.

The fact ``thaws=f(epochs, scores, direction, …) -> bool`` holds the backbone's weights back until it says so; it gets
the epochs that have ended, their scores on the member's own fold in the metric's unit, and 1 where more is better, else
-1. One that looks at the scores has the fact ``own_fold``, as a schedule has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from pipeline.errors import UserError
from pipeline.registry import part

Groups = list[dict[str, Any]]


@part(source="the baseline")
def all_alike(network: nn.Module, lr: float) -> Groups:
    """Every weight learns at the same rate."""
    return _groups([(network.parameters(), lr)])


@part(source="Donahue et al. 2014 (DeCAF): a classifier on frozen features")
def head_only(network: nn.Module, lr: float) -> Groups:
    """The backbone is frozen; pool and head learn."""
    _freeze(network.backbone)
    return _groups([(network.parameters(), lr)])


@part(source="Girshick et al. 2014, sec. 2.3", allowed={"factor": (1, None)})
def head_faster(network: nn.Module, lr: float, *, factor: float = 10.0) -> Groups:
    """The head learns at the peak rate, the pretrained backbone more slowly.

    factor: how many times more slowly.
    """
    own = {id(parameter) for parameter in network.backbone.parameters()}
    new = [parameter for parameter in network.parameters() if id(parameter) not in own]
    return _groups([(network.backbone.parameters(), lr / factor), (new, lr)])


@part(source="Clark et al. 2020 (ELECTRA), appendix A; Howard & Ruder 2018, sec. 3.2", allowed={"decay": (0.01, 1)})
def layer_decay(network: nn.Module, lr: float, *, decay: float = 0.75) -> Groups:
    """The head learns at the peak rate, each block below it at ``decay`` times the rate of the block above.

    decay: the factor from block to block, 1 for the same rate.
    """
    blocks = blocks_of(network.backbone)
    rates = [lr * decay ** (len(blocks) - place) for place in range(len(blocks))]
    own = {id(parameter) for block in blocks for parameter in block}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in own]
    return _groups([*zip(blocks, rates, strict=True), (rest, lr)])


@part(source="Yosinski et al. 2014, sec. 3: the first layers frozen", allowed={"share": (0, 1)})
def top(network: nn.Module, lr: float, *, share: float = 0.5) -> Groups:
    """The shallow blocks are frozen, the top of the backbone, pool and head learn.

    share: how many of the backbone's blocks learn, from the top.
    """
    blocks = blocks_of(network.backbone)
    for block in blocks[: len(blocks) - round(share * len(blocks))]:
        for parameter in block:
            parameter.requires_grad_(False)
    return _groups([(network.parameters(), lr)])


def _thaws_after(ended: int, scores: Sequence[float], direction: int, epochs: int = 1, factor: float = 1.0) -> bool:
    return ended >= epochs


@part(
    source="Kumar et al. 2022 (LP-FT)",
    allowed={"epochs": (0, None), "factor": (1, None)},
    thaws=_thaws_after,
)
def head_first(network: nn.Module, lr: float, *, epochs: int = 1, factor: float = 1.0) -> Groups:
    """The backbone is frozen for some epochs, until the new head knows its features; then all learn.

    epochs: so many. factor: how many times more slowly than the head the backbone learns then.
    """
    return head_faster(network, lr, factor=factor)


def _thaws_when_still(
    ended: int,
    scores: Sequence[float],
    direction: int,
    patience: int = 1,
    gain: float = 0.0,
    most: int = 5,
    factor: float = 1.0,
) -> bool:
    best, waited = -math.inf, 0
    for score in scores[:most]:
        gained = direction * score > best + gain
        best, waited = (direction * score, 0) if gained else (best, waited + 1)
        if waited >= patience:
            return True
    return ended >= most


@part(
    source="Kumar et al. 2022 (LP-FT), the first step to its end",
    own_fold=True,
    allowed={"patience": (1, None), "gain": (0, None), "most": (1, None), "factor": (1, None)},
    thaws=_thaws_when_still,
)
def head_until_still(
    network: nn.Module, lr: float, *, patience: int = 1, gain: float = 0.0, most: int = 5, factor: float = 1.0
) -> Groups:
    """The backbone is frozen until the score of the own fold stops gaining; then all learn.

    patience: epochs without a gain. gain: the least that counts as one, in the metric's unit. most: epochs after which
    all learn in any case. factor: how many times more slowly than the head the backbone learns then.
    """
    return head_faster(network, lr, factor=factor)


def blocks_of(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """The backbone's parameters in blocks from the image to the features.

    A block is a child of the first module that has several, or of the sequences and lists among these children:
    the stages' blocks of a ResNet, the layers of a transformer.
    """
    module = backbone
    while len(children := list(module.children())) == 1:
        module = children[0]
    found: list[list[nn.Parameter]] = []
    for child in children or [module]:
        inner = list(child.children()) if isinstance(child, (nn.Sequential, nn.ModuleList)) else [child]
        found += [list(one.parameters()) for one in inner]
    known = {id(parameter) for block in found for parameter in block}
    first = [parameter for parameter in backbone.parameters() if id(parameter) not in known]  # position embeddings
    return [block for block in [first, *found] if block]


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _groups(pairs: Any) -> Groups:
    """Groups of what still learns, the empty ones left out."""
    groups = [{"params": [p for p in parameters if p.requires_grad], "lr": rate} for parameters, rate in pairs]
    kept = [group for group in groups if group["params"]]
    if not kept:
        raise UserError("no weight is left to learn; choose another finetune")
    return kept
