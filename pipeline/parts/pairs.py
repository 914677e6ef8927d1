"""Pair losses: embeddings of a batch → one value a row, by who lies near it and who lies far.

Form: ``f(embeddings (B, F) float, labels (B,) int64, *, …) -> (B,) float32``, what each row costs as an anchor. A
positive is another row of the same label, a negative a row of another. A row without any positive or without any
negative in its batch says nothing: it is 0, and moves nothing. So batches must hold several rows of several identities,
as ``sampler=identities()`` makes them.

The fact ``learned=True`` marks a class, ``f(features, classes, *, …) -> nn.Module`` with the same call: it compares
rows with points that it keeps for each class, and so needs no pairs. What these learn belongs to the training alone.
``weight``: the usual share of the loss beside others, if it is not 1.

Losses of cosines take embeddings of any length. All compute in float32 under any autocast, since cosines that half
precision rounds to one are no longer apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.registry import part

PairLoss = Callable[..., Tensor]


def _exact(loss: PairLoss) -> PairLoss:
    """The loss in float32, whatever autocast is on."""

    @wraps(loss)
    def computed(embeddings: Tensor, labels: Tensor, **keywords: Any) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return loss(embeddings.float(), labels, **keywords)

    return computed


# --- distances ----------------------------------------------------------------------------------------------------


@part(
    source="hard: Hermans et al. 2017, eq. 5 and sec. 2 (soft margin); semi_hard: Schroff et al. 2015, sec. 3.2",
    allowed={"margin": (0, None), "mining": ("hard", "semi_hard")},
)
@_exact
def triplet(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.3,
    mining: str = "hard",
    soft: bool = False,
    normed: bool = False,
) -> Tensor:
    """A positive must lie nearer than a negative by a margin, as Euclidean distances.

    margin: the lead that costs nothing. mining: hard takes a row's farthest positive and its nearest negative;
    semi_hard takes all its positives, each with the nearest negative that is farther still, or the farthest of all if
    none is, and their mean. soft: log(1 + e^x) of the excess in the margin's place, which never quite ends. normed: on
    the sphere, where distances are at most 2; the strong re-ID baseline leaves lengths free.
    """
    positive, negative, counts = _pairs(labels)
    apart = _distances(functional.normalize(embeddings, dim=1) if normed else embeddings)
    if mining == "hard":
        farthest = apart.masked_fill(~positive, 0).amax(dim=1)
        nearest = apart.masked_fill(~negative, math.inf).amin(dim=1)
        return _of_counted(_excess(farthest - nearest.where(counts, farthest), margin, soft), counts)
    order = apart.masked_fill(~negative, math.inf).sort(dim=1).values
    place = torch.searchsorted(order.detach(), apart.detach(), right=True)
    last = (negative.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    chosen = order.gather(1, place.minimum(last))
    excess = _excess(apart - chosen.where(counts[:, None], apart), margin, soft)
    return _of_counted(_mean(excess, positive), counts)


@part(source="Hadsell et al. 2006 (DrLIM), eq. 4", allowed={"margin": (0, None)})
@_exact
def contrastive(embeddings: Tensor, labels: Tensor, *, margin: float = 1.0, normed: bool = True) -> Tensor:
    """Positives are pulled together, negatives pushed apart until they are farther than the margin.

    Half the mean squared distance of a row's positives, plus half the mean of (margin - distance)² of those negatives
    that lie within the margin: the many that do not would thin it out. margin: as a Euclidean distance. normed: on the
    sphere, where distances are at most 2.
    """
    positive, negative, counts = _pairs(labels)
    apart = _distances(functional.normalize(embeddings, dim=1) if normed else embeddings)
    short = (margin - apart).clamp(min=0)
    pulled, pushed = _mean(apart.square(), positive), _mean(short.square(), negative & (short > 0))
    return _of_counted((pulled + pushed) / 2, counts)


# --- cosines ------------------------------------------------------------------------------------------------------


@part(source="Sun et al. 2020 (Circle loss), eq. 6–8", allowed={"m": (0, 1), "gamma": (0, None)})
@_exact
def circle(embeddings: Tensor, labels: Tensor, *, m: float = 0.25, gamma: float = 128.0) -> Tensor:
    """Each cosine is pulled by as much as it is still off: positives to 1 + m, negatives to -m.

    log(1 + Σ over negatives and positives exp(gamma (a_n (s_n - m) - a_p (s_p - 1 + m)))), with the weights
    a_p = max(0, 1 + m - s_p) and a_n = max(0, s_n + m), which have no gradient. m: how far from perfect is enough, in
    cosines; small is strict. gamma: the scale; the paper takes 128 for re-identification, 256 for faces, and 80 with
    m = 0.4 for fine-grained retrieval.
    """
    positive, negative, counts = _pairs(labels)
    cosines = _cosines(embeddings)
    fixed = cosines.detach()
    near = -gamma * (1 + m - fixed).clamp(min=0) * (cosines - (1 - m))
    far = gamma * (fixed + m).clamp(min=0) * (cosines - m)
    values = functional.softplus(_log_sum(near, positive, counts) + _log_sum(far, negative, counts))
    return _of_counted(values, counts)


@part(
    source="Wang et al. 2019 (Multi-similarity loss), eq. 11, 12 and 15",
    allowed={"alpha": (0.001, None), "beta": (0.001, None), "threshold": (-1, 1), "epsilon": (0, 2)},
)
@_exact
def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    threshold: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """Pairs weigh by their cosine and by how it stands among the row's others; easy pairs are left out.

    1/alpha log(1 + Σ e^(-alpha (s_p - threshold))) + 1/beta log(1 + Σ e^(beta (s_n - threshold))), over the positives
    less like than the likest negative, and the negatives more like than the least like positive, each by epsilon.
    alpha, beta: how much the hardest positives and negatives stand out. threshold: the cosine that parts both; 0.5 is
    the authors' code, the paper says 1. epsilon: of the choice; 2 leaves out none.
    """
    positive, negative, counts = _pairs(labels)
    cosines = _cosines(embeddings)
    fixed = cosines.detach()
    likest = fixed.masked_fill(~negative, -math.inf).amax(dim=1, keepdim=True)
    least = fixed.masked_fill(~positive, math.inf).amin(dim=1, keepdim=True)
    pulled = _log_one_plus(-alpha * (cosines - threshold), positive & (fixed - epsilon < likest)) / alpha
    pushed = _log_one_plus(beta * (cosines - threshold), negative & (fixed + epsilon > least)) / beta
    return _of_counted(pulled + pushed, counts)


@part(source="Khosla et al. 2020 (Supervised contrastive learning), eq. 2", allowed={"temperature": (0.001, None)})
@_exact
def sup_con(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """The mean cross-entropy of finding each positive among all other rows of the batch.

    temperature: divides the cosines; small looks at the hardest rows. Large batches make it strong.
    """
    positive, negative, counts = _pairs(labels)
    scores = _cosines(embeddings) / temperature
    log_chances = scores - _log_sum(scores, positive | negative, counts)[:, None]
    return _of_counted(-_mean(log_chances, positive), counts)


# --- classes ------------------------------------------------------------------------------------------------------


@part(
    source="Kim et al. 2020 (Proxy anchor loss), eq. 4",
    learned=True,
    allowed={"margin": (0, 1), "alpha": (0.001, None)},
)
class proxy_anchor(nn.Module):
    """Each class has a learned proxy, which pulls its own rows and pushes the others, the harder ones more.

    The mean over the classes in the batch of log(1 + Σ e^(-alpha (s - margin))) over their rows, plus the mean over all
    classes of log(1 + Σ e^(alpha (s + margin))) over the rows of others; s: cosines with the proxy. Each value is
    shared out evenly among its rows, so that the mean over the batch is the loss. margin: in cosines. alpha: the scale.
    Proxies want a learning rate far above the backbone's: the paper's is a hundred times as high.
    """

    def __init__(self, features: int, classes: int, *, margin: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__()
        self.margin, self.alpha = margin, alpha
        self.proxies = nn.Parameter(nn.init.kaiming_normal_(torch.empty(classes, features), mode="fan_out"))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, F) and (B,) → (B,) float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = functional.normalize(self.proxies.float(), dim=1)
            cosines = directions @ functional.normalize(embeddings.float(), dim=1).T  # (C, B)
            own = labels == torch.arange(len(cosines), device=labels.device)[:, None]
            pulled = _shared_out(_log_one_plus(-self.alpha * (cosines - self.margin), own), own)
            pushed = _shared_out(_log_one_plus(self.alpha * (cosines + self.margin), ~own), ~own)
            return len(labels) * (pulled / own.any(dim=1).sum().clamp(min=1) + pushed / len(cosines))


@part(source="Wen et al. 2016 (Center loss), eq. 2–4", learned=True, weight=0.0005, allowed={"alpha": (0, 1)})
class center(nn.Module):
    """Half the squared distance between a row and the centre of its class; it draws classes together, parting none.

    Add a small share of it to a loss that parts classes: the strong re-ID baseline takes 0.0005. The centres are moved
    by each training batch, after it was measured, and by no optimizer: so neither their pace nor the share of the loss
    depends on the other. alpha: how far each moves towards the mean of its rows; 0 leaves all at the origin.
    """

    centres: Tensor

    def __init__(self, features: int, classes: int, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("centres", torch.zeros(classes, features))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, F) and (B,) → (B,) float32."""
        apart = embeddings.float() - self.centres[labels]
        if self.training:
            with torch.no_grad():
                sums = torch.zeros_like(self.centres).index_add_(0, labels, apart)
                counts = torch.bincount(labels, minlength=len(sums))[:, None]
                self.centres.add_(self.alpha * sums / (1 + counts))
        return apart.square().sum(dim=1) / 2


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows (B, B) are positives and which negatives of each row, and which rows (B,) have both."""
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return positive, ~same, positive.any(dim=1) & ~same.all(dim=1)


def _distances(vectors: Tensor) -> Tensor:
    """Euclidean, (B, B), without the sum of squares that cancels where rows are near; equal rows have gradient 0."""
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def _cosines(embeddings: Tensor) -> Tensor:
    directions = functional.normalize(embeddings, dim=1)
    return directions @ directions.T


def _excess(difference: Tensor, margin: float, soft: bool) -> Tensor:
    return functional.softplus(difference) if soft else (difference + margin).clamp(min=0)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean (B,) over the chosen of each row (B, N), 0 where there is none."""
    return values.masked_fill(~chosen, 0).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)


def _log_sum(scores: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    """log Σ e^score over the chosen of each row; over all where the row does not count, which keeps it finite."""
    return scores.masked_fill(~chosen & counts[:, None], -math.inf).logsumexp(dim=1)


def _log_one_plus(scores: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + Σ e^score) over the chosen of each row."""
    masked = scores.masked_fill(~chosen, -math.inf)
    return functional.pad(masked, (1, 0)).logsumexp(dim=1)


def _shared_out(values: Tensor, members: Tensor) -> Tensor:
    """Each value (C,) in equal parts to its members (C, B), and what each member then has, (B,)."""
    return (values / members.sum(dim=1).clamp(min=1)) @ members.float()


def _of_counted(values: Tensor, counts: Tensor) -> Tensor:
    return values.where(counts, 0)
