"""Fine-tunings: which weights learn, and how fast beside each other.

Form: ``f(network, lr, *, …) -> list`` of parameter groups, dicts with "params" and "lr", over the parameters that
learn; others are frozen in place. network: has ``backbone``, ``pool`` and ``head``. lr: the peak rate of the head's
group or, where all learn alike, of every weight. BatchNorm's running statistics follow the images whatever is frozen;
``norm=frozen()`` holds them too.
"""

from __future__ import annotations

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
