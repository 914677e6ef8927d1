"""Heads: vectors (B, F) → outputs (B, C).

Form: ``f(features, outputs, *, …) -> nn.Module``. ``init`` says how new layers start: default, torch's own; zero;
xavier (Glorot & Bengio 2010, eq. 16); msra (He et al. 2015, eq. 10); scaled, normal with variance 1 / inputs (LeCun et
al. 1998, eq. 16). All but the first set biases to zero.

The fact ``cosines=True`` says that outputs are s · cosines, as losses with the same fact want them; ``lengths=True``,
that the head has the method ``lengths``, vectors → (B, C), which divides its outputs to cosines.

A head with a neck has the method ``embed``, vectors (B, F) → (B, E) embeddings for retrieval, and E is its ``width``;
of the others the vectors themselves are the embeddings. Losses of pairs see the vectors, or what ``pairs`` makes of
them. A head of parts has the method ``levels``, each part's outputs, which have a loss each in training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.parts.losses import starting_scale
from pipeline.registry import part

ACTIVATIONS = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU, "gelu": nn.GELU, "silu": nn.SiLU}


@part(
    source="torch.nn.Linear; dropout: Srivastava et al. 2014",
    allowed={"dropout": (0, 0.99), "init": ("default", "zero", "xavier", "msra", "scaled")},
)
def linear(features: int, outputs: int, *, dropout: float = 0.0, init: str = "default") -> nn.Module:
    """One linear layer behind dropout.

    dropout: share of the features set to zero in training, below 1; the weights' names are the same with and without.
    init: how the weights start; zero, all classes alike, lets no gradient through in the first step.
    """
    return nn.Sequential(nn.Dropout(dropout), _started(nn.Linear(features, outputs), init))


@part(
    source="Liu et al. 2016 (Large-margin softmax), eq. 2",
    lengths=True,
    allowed={"dropout": (0, 0.99), "init": ("default", "xavier", "msra", "scaled")},
)
def inner_product(features: int, outputs: int, *, dropout: float = 0.0, init: str = "default") -> nn.Module:
    """One linear layer without a bias: the cosine times both lengths, as the loss l_softmax wants it.

    dropout: share of the features set to zero in training, below 1. init: how the weights start.
    """
    return InnerProduct(nn.Dropout(dropout), _started(nn.Linear(features, outputs, bias=False), init))


class InnerProduct(nn.Sequential):
    """(B, F) → (B, C), |w| |x| cos a; ``lengths`` are |w| |x|."""

    def lengths(self, vectors: Tensor) -> Tensor:
        """(B, F) → (B, C) float32."""
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors.float().norm(dim=1, keepdim=True) * self[1].weight.float().norm(dim=1)


@part(
    source="Rumelhart et al. 1986; dropout: Srivastava et al. 2014",
    allowed={
        "hidden": (1, 65536),
        "dropout": (0, 0.99),
        "activation": ("relu", "leaky", "elu", "selu", "gelu", "silu"),
        "init": ("default", "xavier", "msra", "scaled"),
    },
)
def mlp(
    features: int,
    outputs: int,
    *,
    hidden: int = 512,
    dropout: float = 0.0,
    activation: str = "relu",
    init: str = "default",
) -> nn.Module:
    """Two linear layers with an activation between them.

    hidden: width of the layer between. dropout: share of the hidden values set to zero in training, below 1.
    activation: relu, leaky, elu, selu, gelu or silu. init: how the weights start.
    """
    first, last = _started(nn.Linear(features, hidden), init), _started(nn.Linear(hidden, outputs), init)
    return nn.Sequential(first, ACTIVATIONS[activation](), nn.Dropout(dropout), last)


@part(
    source="Wang et al. 2017 (NormFace); sub-centres: Deng et al. 2020 (Sub-center ArcFace)",
    cosines=True,
    allowed={"s": (0, None), "centres": (1, 64), "size": (0, 65536), "dropout": (0, 0.99)},
)
def cosine(
    features: int, outputs: int, *, s: float = 0.0, centres: int = 1, size: int = 0, neck: bool = False,
    dropout: float = 0.0,
) -> nn.Module:  # fmt: skip
    """s times the cosine between the features and each class's weights, for the margin losses.

    s: the scale, the same as the loss's; 0: √2 · log(C - 1), from the number of classes. centres: directions a class
    has, of which the nearest counts; more than one leave room for noise within a class. size: numbers of an embedding,
    which a linear layer makes of the features; 0: the features themselves. neck: BatchNorm without a shift behind it,
    as in bnneck. dropout: share of the features set to zero in training, below 1.
    """
    classifier = Cosine(size or features, outputs, starting_scale(s, outputs), centres)
    return Embedder(features, size, neck, dropout, classifier) if size or neck or dropout else classifier


class Embedder(nn.Module):
    """(B, F) → dropout, a linear layer to the embedding, a neck → the classifier of embeddings."""

    def __init__(self, features: int, size: int, neck: bool, dropout: float, classifier: nn.Module) -> None:
        super().__init__()
        self.width = size or features
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(features, size, bias=not neck) if size else nn.Identity()
        self.norm = _neck(self.width) if neck else nn.Identity()
        self.classifier = classifier

    def pairs(self, vectors: Tensor) -> Tensor:
        """(B, F) → (B, E), what is compared in training: before the neck."""
        return self.project(self.dropout(vectors))

    def embed(self, vectors: Tensor) -> Tensor:
        """(B, F) → (B, E)."""
        return self.norm(self.pairs(vectors))

    def forward(self, vectors: Tensor) -> Tensor:
        return self.classifier(self.embed(vectors))


class Cosine(nn.Module):
    """(B, F) → s · cosines (B, C), float32 under any autocast: half precision would blur angles that a margin parts."""

    def __init__(self, features: int, outputs: int, scale: float, centres: int) -> None:
        super().__init__()
        self.scale, self.centres = scale, centres
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(outputs * centres, features)))

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            directions = functional.normalize(self.weight.float(), dim=1)
            cosines = functional.normalize(vectors.float(), dim=1) @ directions.T
            return self.scale * cosines.view(len(vectors), -1, self.centres).amax(dim=2)

    def extra_repr(self) -> str:
        return f"classes={len(self.weight) // self.centres}, scale={self.scale:.3g}, centres={self.centres}"


@part(source="Luo et al. 2019 (Bag of tricks for person re-identification), sec. 3.5", allowed={"dropout": (0, 0.99)})
def bnneck(features: int, outputs: int, *, dropout: float = 0.0) -> nn.Module:
    """BatchNorm without a shift and a linear layer without a bias: classes part by direction, features keep distances.

    dropout: share of the normed features set to zero in training, below 1. Needs batches of more than one row.
    """
    norm, classifier = _neck(features), nn.Linear(features, outputs, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return Necked(norm, nn.Dropout(dropout), classifier)


class Necked(nn.Sequential):
    """A norm, dropout and a classifier: embeddings are what the norm gives, pairs are compared before it."""

    @property
    def width(self) -> int:
        """The numbers of an embedding."""
        return int(self[0].num_features)

    def embed(self, vectors: Tensor) -> Tensor:
        """(B, F) → (B, F)."""
        return self[0](vectors)


def _neck(features: int) -> nn.BatchNorm1d:
    """BatchNorm whose shift stays 0."""
    norm = nn.BatchNorm1d(features)
    norm.bias.requires_grad_(False)
    return norm


@part(
    source="Sun et al. 2018 (PCB), sec. 3.1; the neck: Luo et al. 2019, sec. 3.5",
    allowed={"parts": (1, 512)},
)
def per_part(features: int, outputs: int, *, parts: int = 4, neck: bool = True) -> nn.Module:
    """A classifier for each part of the features, as the pools stripes and granularities give them; their mean output.

    parts: how many lie side by side in the features, all of one width. neck: BatchNorm without a shift before the
    classifiers, as in bnneck. In the papers each classifier has a loss of its own: see the method ``levels``.
    """
    if features % parts:
        raise UserError(
            f"head=per_part(parts={parts}): {features} features are no {parts} parts of one width; give it as many "
            "parts as the pool makes: stripes(count=6) 6, granularities() 8"
        )
    return PerPart(features, outputs, parts, neck)


class PerPart(nn.Module):
    """(B, parts · width) → the mean (B, C) of a linear layer without bias on each part."""

    def __init__(self, features: int, outputs: int, parts: int, neck: bool) -> None:
        super().__init__()
        self.norm = _neck(features) if neck else nn.Identity()
        self.width = features
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(parts, outputs, features // parts), std=0.001))

    def embed(self, vectors: Tensor) -> Tensor:
        """(B, F) → (B, F), the parts side by side."""
        return self.norm(vectors)

    def levels(self, vectors: Tensor) -> list[Tensor]:
        """What each part's classifier says, (B, C)."""
        parts = self.norm(vectors).unflatten(1, (len(self.weight), -1))
        return list(torch.einsum("bpf,pcf->pbc", parts, self.weight))

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.stack(self.levels(vectors)).mean(dim=0)

    def extra_repr(self) -> str:
        return f"parts={len(self.weight)}, classes={self.weight.shape[1]}"


@part(
    source="Inoue 2019 (Multi-sample dropout), with the mean of outputs for that of losses",
    allowed={"samples": (1, 64), "dropout": (0, 0.99), "init": ("default", "xavier", "msra", "scaled")},
)
def multi_sample_dropout(
    features: int, outputs: int, *, samples: int = 5, dropout: float = 0.5, init: str = "default"
) -> nn.Module:
    """One linear layer whose outputs in training are the mean over several dropouts of the features.

    samples: dropouts drawn. dropout: share of the features that each sets to zero, below 1. init: how the weights
    start.
    """
    return MultiSampleDropout(_started(nn.Linear(features, outputs), init), samples, dropout)


class MultiSampleDropout(nn.Module):
    """The mean of the samples' features goes through the layer once, which, being linear, gives the mean outputs."""

    def __init__(self, classifier: nn.Linear, samples: int, dropout: float) -> None:
        super().__init__()
        self.samples, self.dropout = samples, nn.Dropout(dropout)
        self.classifier = classifier

    def forward(self, vectors: Tensor) -> Tensor:
        if self.training:
            vectors = self.dropout(vectors.expand(self.samples, -1, -1)).mean(dim=0)
        return self.classifier(vectors)

    def extra_repr(self) -> str:
        return f"samples={self.samples}"


@part(
    source="Wan et al. 2013 (DropConnect); at prediction the mean weights",
    allowed={"dropout": (0, 0.99), "init": ("default", "xavier", "msra", "scaled")},
)
def drop_connect(features: int, outputs: int, *, dropout: float = 0.5, init: str = "default") -> nn.Module:
    """One linear layer whose weights, not its inputs, are set to zero at random in training.

    dropout: share of the weights set to zero in a step, the same for all rows of the batch, below 1. init: how the
    weights start.
    """
    return _started(DropConnect(features, outputs, dropout), init)


class DropConnect(nn.Linear):
    """A linear layer with dropout of its weights."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__(features, outputs)
        self.dropout = dropout

    def forward(self, vectors: Tensor) -> Tensor:
        return functional.linear(vectors, functional.dropout(self.weight, self.dropout, self.training), self.bias)


def _started(layer: nn.Linear, init: str) -> nn.Linear:
    """The layer with its weights drawn anew as ``init`` says; default leaves them as torch drew them."""
    if init == "default":
        return layer
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    match init:
        case "zero":
            nn.init.zeros_(layer.weight)
        case "xavier":
            nn.init.xavier_uniform_(layer.weight)
        case "msra":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        case "scaled":
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
    return layer
