"""Losses: outputs and targets → one value a row; the learner takes the weighted mean.

Form: ``f(outputs (B, C) float, target, *, …) -> (B,) float32``. The fact ``takes`` says of what form the targets are
(``pipeline/forms.py``): classes, (B,) int64 or (B, C) float probabilities (soft labels, mixup), for which a loss is the
expectation over classes; labels, (B, C) float in 0…1; numbers, (B, C) float of mean 0 and deviation 1; and maps. All
work in float32 under any autocast, since log and exp do not keep their digits in half precision.

Of maps, outputs and targets are (B, C, H, W): masks, each channel its own, in 0…1; class_masks, channels sum to one. A
target below 0 is void: such a pixel counts nowhere, and a row of nothing else is 0. A ``pixelwise`` loss is the one
of rows for each pixel, and its mean over a row's known pixels. ``parts/losses_masks.py`` has the losses of maps alone.

The fact ``initial(classes, **keywords)`` is the loss expected of a new model, whose logits are all near zero; it takes
the user's keywords of the loss. ``stage=sanity`` compares it with the first loss; a loss without one declares none.

Other facts. ``batch=True``: the loss looks at the rows of a batch together; what it gives a row is a share, of which
the mean alone has a meaning. ``counts=True``: a third positional argument says how many of the member's own training
rows are of each class, (C,), or is None where targets are no classes. ``cosines=True``: outputs are s · cosines of the
head ``cosine``, and loss and head must be given the same s. ``memory=True``: a last positional argument is a tensor (),
0 at first, that the loss changes from batch to batch; it lies in the checkpoint. ``views=True``: the loss compares
several views of each row, and gets them one after the other. ``lengths=True``: a third positional argument (B, C) has
the lengths of features and weights multiplied, as a head with the same fact measures them. ``calls``: the arguments
that hold call-strings, and of what kind. ``pixelwise=True``: see above.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import registry
from pipeline.console import warn
from pipeline.errors import UserError
from pipeline.registry import part

Loss = Callable[..., Tensor]

# --- maps ---------------------------------------------------------------------------------------------------------


def pixelwise(loss: Loss) -> Loss:
    """A loss of (B, C) whose reductions are all over dim=1, for maps (B, C, H, W) too: the mean over known pixels.

    Losses of pixels are had by ``pixels``; they are what ``loss`` itself gives, (B, H, W).
    """

    @functools.wraps(loss)
    def of_rows_or_pixels(outputs: Tensor, target: Tensor, **keywords: Any) -> Tensor:
        if outputs.ndim < 4:
            return loss(outputs, target, **keywords)
        return mean_of(loss(outputs, target.clamp(min=0), **keywords), known(target))

    return of_rows_or_pixels


def pixels(call: str, outputs: Tensor, target: Tensor) -> Tensor:
    """The value (B, H, W) of each pixel by a pixelwise loss of this call-string, whatever it is at void ones."""
    built = registry.build("losses", call)
    assert isinstance(built, functools.partial)
    each: Tensor = built.func.__wrapped__(outputs, target.clamp(min=0), **built.keywords)  # type: ignore[attr-defined]
    return each


def known(target: Tensor) -> Tensor:
    """(B, H, W) bool: where a target (B, C, H, W) is not void."""
    return (target >= 0).all(dim=1)


def mean_of(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean (B,) of pixels (B, H, W); 0 for a row without any weight."""
    return (values * weights).flatten(1).sum(dim=1) / weights.float().flatten(1).sum(dim=1).clamp(min=1e-12)


# --- classes ------------------------------------------------------------------------------------------------------


@part(
    source="torch.nn.functional.cross_entropy; smoothing: Szegedy et al. 2016, sec. 7",
    takes=("classes", "class_masks"),
    pixelwise=True,
    allowed={"smoothing": (0, 1)},
    initial=lambda classes, smoothing=0.0: math.log(classes),
)
@pixelwise
def cross_entropy(logits: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the softmax, with label smoothing.

    smoothing: share of each label that is spread evenly over all classes, 0–1.
    """
    if target.is_floating_point():
        target = target.float()
    return functional.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)


@part(
    source="Lin et al. 2017, eq. 4, over the softmax",
    takes=("classes", "class_masks"),
    pixelwise=True,
    allowed={"gamma": (0, None)},
    initial=lambda classes, gamma=2.0: (1 - 1 / classes) ** gamma * math.log(classes),
)
@pixelwise
def focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that turns away from rows already right: (1 - p)^gamma · -log p.

    gamma: 0 is cross-entropy; higher looks more at hard rows.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    # expm1 keeps 1 - p exact near p = 1; the clamp keeps its power's gradient finite for gamma < 1
    wrong = (-torch.expm1(log_p)).clamp(min=1e-12)
    return _expect(-(wrong**gamma) * log_p, target)


@part(
    source="Weston & Watkins 1999",
    takes=("classes",),
    allowed={"margin": (0, None)},
    initial=lambda classes, margin=1.0: margin * (classes - 1),
)
def hinge(logits: Tensor, target: Tensor, *, margin: float = 1.0) -> Tensor:
    """Multi-class hinge: how far each wrong score comes within the margin of the right one, summed over classes.

    margin: distance in logits that the right class must lead by. Soft targets need (B, C, C) memory.
    """
    scores = logits.float()
    if target.is_floating_point():
        # [b, y, j]: what class j costs if y is the truth; j = y itself always gives margin, which is taken off
        costs = (margin + scores.unsqueeze(1) - scores.unsqueeze(2)).clamp(min=0).sum(dim=2) - margin
        return _expect(costs, target)
    right = scores.gather(1, target.unsqueeze(1))
    return (margin + scores - right).clamp(min=0).sum(dim=1) - margin


@part(
    source="torch.nn.functional.cross_entropy; King & Zeng 2001, eq. 8",
    takes=("classes", "class_masks"),
    pixelwise=True,
    allowed={"smoothing": (0, 1)},
)
@pixelwise
def weighted_cross_entropy(
    logits: Tensor, target: Tensor, *, weights: tuple[float, ...], smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in which each class has a weight of its own.

    weights: one a class, in the sorted order of their names. smoothing: share of each label that is spread evenly over
    all classes, 0–1.
    """
    if len(weights) != logits.shape[1] or min(weights) < 0:
        raise UserError(
            f"weighted_cross_entropy(weights={list(weights)}), but there are {logits.shape[1]} classes; "
            "give each a weight ≥ 0, in the sorted order of their names"
        )
    return _weighted(logits, target, logits.new_tensor(weights, dtype=torch.float32), smoothing)


@part(
    source="effective number: Cui et al. 2019, eq. 2; inverse: King & Zeng 2001, sec. 4.2",
    takes=("classes",),
    counts=True,
    allowed={"how": ("inverse", "effective"), "beta": (0, 0.999999)},
    initial=lambda classes, how="inverse", beta=0.999: math.log(classes),
)
def balanced_cross_entropy(
    logits: Tensor, target: Tensor, counts: Tensor, *, how: str = "inverse", beta: float = 0.999
) -> Tensor:
    """Cross-entropy whose class weights fall with the number of training rows of the class.

    counts: (C,) of the member's own training rows. how: inverse gives 1 / n; effective (1 - beta) / (1 - beta^n), n's
    weight once rows near to each other count as one. beta: 0 weighs all alike, near 1 is the inverse. The weights are
    scaled so that their mean over the training rows is one, and the lr keeps its meaning.
    """
    rows = counts.to(logits.device, torch.float32)
    present = rows.clamp(min=1)
    weights = 1 / present if how == "inverse" else -1 / torch.expm1(present * math.log(max(beta, 1e-9)))
    return _weighted(logits, target, weights * rows.sum() / (weights * rows).sum(), 0.0)


@part(
    source="Leng et al. 2022, PolyLoss, Poly-1",
    takes=("classes", "class_masks"),
    pixelwise=True,
    allowed={"epsilon": (-1, None)},
    initial=lambda classes, epsilon=1.0: math.log(classes) + epsilon * (1 - 1 / classes),
)
@pixelwise
def poly1(logits: Tensor, target: Tensor, *, epsilon: float = 1.0) -> Tensor:
    """Cross-entropy with its first polynomial term reweighted: -log p + epsilon · (1 - p).

    epsilon: 0 is cross-entropy; higher pulls harder on rows that are not yet right.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    return _expect(-log_p - epsilon * torch.expm1(log_p), target)


@part(
    source="Wang et al. 2019 (Symmetric cross entropy for robust learning with noisy labels)",
    takes=("classes", "class_masks"),
    pixelwise=True,
    allowed={"alpha": (0, None), "beta": (0, None), "log_zero": (None, 0)},
    initial=lambda classes, alpha=0.1, beta=1.0, log_zero=-4.0: (
        alpha * math.log(classes) - beta * log_zero * (1 - 1 / classes)
    ),
)
@pixelwise
def symmetric_cross_entropy(
    logits: Tensor, target: Tensor, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> Tensor:
    """Cross-entropy plus its reverse, which is bounded and so forgives wrong labels.

    alpha: weight of cross-entropy, small against noise. beta: weight of the reverse, -log_zero · (1 - p). log_zero:
    stands for the logarithm of a label's zero.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    return _expect(-alpha * log_p + beta * log_zero * torch.expm1(log_p), target)


def _first_bi_tempered(classes: int, t1: float = 0.8, t2: float = 1.2, iterations: int = 20) -> float:
    power = -math.log(classes) if t1 == 1 else math.expm1((t1 - 1) * math.log(classes)) / (1 - t1)
    return -power + (classes ** (t1 - 1) - 1) / (2 - t1)


@part(
    source="Amid et al. 2019 (Robust bi-tempered logistic loss), algorithm 1",
    takes=("classes", "class_masks"),
    pixelwise=True,
    allowed={"t1": (0, 1), "t2": (1, 10), "iterations": (1, 1000)},
    initial=_first_bi_tempered,
)
@pixelwise
def bi_tempered(logits: Tensor, target: Tensor, *, t1: float = 0.8, t2: float = 1.2, iterations: int = 20) -> Tensor:
    """Logistic loss with a bounded logarithm and a heavy-tailed softmax, for noisy labels; t1 = t2 = 1: cross-entropy.

    t1: below 1 bounds the loss of a row by 1 / (1 - t1), against gross errors. t2: above 1 gives the softmax heavier
    tails, against errors near the border; predictions stay the usual softmax, of the same order. iterations: of the
    fixed point that norms it. Soft targets differ from the paper's loss by a term without gradient.
    """
    log_p = _tempered_log_softmax(logits.float(), t2, iterations)
    power = log_p if t1 == 1 else torch.expm1((1 - t1) * log_p) / (1 - t1)
    spread = ((2 - t1) * log_p).exp().sum(dim=1) - 1
    return _expect(-power, target) + spread / (2 - t1)


@part(
    source="Berman et al. 2018 (Lovász-Softmax), sec. 3.2, algorithm 1",
    takes=("classes", "class_masks"),
    batch=True,
    initial=lambda classes: 1 - 1 / classes,
)
def lovasz_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """The Lovász extension of 1 - Jaccard index of each class over the batch, the mean over the classes in it.

    Needs batches with several rows a class. A soft target stands for as many rows as it has classes, each by its share.
    Of maps it is the index over all pixels of the batch.
    """
    if logits.ndim == 4:
        return _lovasz_of_pixels(logits, target)
    chances = functional.softmax(logits.float(), dim=1)
    truth = target.float() if target.is_floating_point() else functional.one_hot(target, logits.shape[1]).float()
    shares = _lovasz(1 - chances, chances, truth, dim=0)
    there = truth.sum(dim=0) > 0
    return len(logits) * (shares * there).sum(dim=1) / there.sum().clamp(min=1)


@part(
    source="Hendrycks et al. 2020 (AugMix), eq. 2; timm.loss.JsdCrossEntropy",
    takes=("classes",),
    views=True,
    allowed={"alpha": (0, None), "smoothing": (0, 1)},
    initial=lambda classes, alpha=12.0, smoothing=0.0: math.log(classes),
)
def jsd(logits: Tensor, target: Tensor, *, alpha: float = 12.0, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of an image's first view, plus how far the answers to all its views are from each other.

    logits: (V·B, C), one view of all rows after the other, as augment=several() makes them; of one view alone it is
    cross-entropy. alpha: weight of the Jensen-Shannon divergence, the mean KL of each view's answer from their mean.
    smoothing: share of each label that is spread evenly over all classes, 0–1.
    """
    log_p = functional.log_softmax(logits.float(), dim=1).view(-1, len(target), logits.shape[1])
    mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
    apart = (log_p.exp() * (log_p - mean)).sum(dim=2).mean(dim=0)
    return cross_entropy(logits[: len(target)], target, smoothing=smoothing) + alpha * apart


# --- classes, by margins of the angle -----------------------------------------------------------------------------


def starting_scale(s: float, classes: int) -> float:
    """The scale of cosines: s itself or, for s = 0, √2 · log(C - 1), at least 1. Zhang et al. 2019 (AdaCos)."""
    return s or max(1.0, math.sqrt(2) * math.log(max(classes - 1, 1)))


def _first_of_margin(right: Callable[..., float], **defaults: float) -> Callable[..., float]:
    """The loss of a new model, whose cosines are near 0; right: of its margins → the shifted cosine there."""

    def initial(classes: int, s: float = 0.0, **margins: float) -> float:
        behind = math.log(classes - 1) - starting_scale(s, classes) * right(**{**defaults, **margins})
        return max(behind, 0.0) + math.log1p(math.exp(-abs(behind)))  # log(1 + e^behind), which e^behind may overflow

    return initial


@part(
    source="Wang et al. 2017 (NormFace)",
    takes=("classes",),
    cosines=True,
    allowed={"s": (0, None)},
    initial=_first_of_margin(lambda: 0.0),
)
def normface(outputs: Tensor, target: Tensor, *, s: float = 0.0) -> Tensor:
    """Cross-entropy of s · cosines, without a margin.

    s: the scale of the head cosine; 0: from the number of classes.
    """
    return _margin_loss(outputs, target, s, lambda cosines: cosines)


@part(
    source="Zhang et al. 2019 (AdaCos), the fixed scale",
    takes=("classes",),
    cosines=True,
    initial=_first_of_margin(lambda: 0.0),
)
def adacos(outputs: Tensor, target: Tensor) -> Tensor:
    """NormFace with the one scale that follows from the number of classes: √2 · log(C - 1).

    Wants the head cosine(s=0). adacos_moving is the variant whose scale moves during training.
    """
    return _margin_loss(outputs, target, 0.0, lambda cosines: cosines)


@part(
    source="Zhang et al. 2019 (AdaCos), the dynamically adaptive scale",
    takes=("classes",),
    cosines=True,
    batch=True,
    memory=True,
    initial=_first_of_margin(lambda: 0.0),
)
def adacos_moving(outputs: Tensor, target: Tensor, memory: Tensor) -> Tensor:
    """NormFace with a scale that follows the training: it falls as the angles to the right classes do.

    Wants the head cosine(s=0), whose own scale is kept for predictions: their order is the same. memory: () float, the
    scale; 0 before the first batch; moved by each, to log(mean over rows of Σ exp(s · cosine) over the wrong classes) /
    cos(min(π/4, median angle to the right one)), at least 1. A soft target's right class is its largest.
    """
    start = starting_scale(0, outputs.shape[1])
    cosines = (outputs.float() / start).clamp(-1, 1)
    with torch.no_grad():
        right = (target.argmax(dim=1) if target.is_floating_point() else target).unsqueeze(1)
        scores = torch.where(memory > 0, memory, start) * cosines
        others = scores.scatter(1, right, -math.inf).logsumexp(dim=(0, 1)) - math.log(len(scores))
        angle = cosines.gather(1, right).acos().median()
        memory.copy_((others / angle.clamp(max=math.pi / 4).cos()).clamp(min=1))
    return cross_entropy(memory.clone() * cosines, target)


@part(
    source="Wang et al. 2018 (CosFace), eq. 4; Wang et al. 2018 (Additive margin softmax)",
    takes=("classes",),
    cosines=True,
    allowed={"s": (0, None), "m": (0, 1)},
    initial=_first_of_margin(lambda m: -m, m=0.35),
)
def cosface(outputs: Tensor, target: Tensor, *, s: float = 0.0, m: float = 0.35) -> Tensor:
    """AM-softmax: the cosine of the right class must lead by m.

    s: the scale of the head cosine; 0: from the number of classes. m: the margin, in cosines.
    """
    return _margin_loss(outputs, target, s, lambda cosines: cosines - m)


@part(
    source="Deng et al. 2019 (ArcFace), eq. 3; sub-centres: Deng et al. 2020",
    takes=("classes",),
    cosines=True,
    allowed={"s": (0, None), "m": (0, 1.5)},
    initial=_first_of_margin(lambda m: -math.sin(m), m=0.5),
)
def arcface(outputs: Tensor, target: Tensor, *, s: float = 0.0, m: float = 0.5) -> Tensor:
    """The angle to the right class must be smaller by m; sub-centre ArcFace with the head cosine(centres=3).

    s: the scale of the head cosine; 0: from the number of classes. m: the margin, in radians.
    """
    return _margin_loss(outputs, target, s, lambda cosines: _turned(cosines, m))


@part(
    source="Ha et al. 2020 (Google Landmark Recognition 2020, third place), dynamic margins: a · n^-λ + b",
    takes=("classes",),
    cosines=True,
    counts=True,
    allowed={"s": (0, None), "a": (0, 1.5), "b": (0, 4), "c": (0, 1.5), "form": ("arcface", "cosface")},
)
def margin_by_count(
    outputs: Tensor,
    target: Tensor,
    counts: Tensor,
    *,
    s: float = 0.0,
    a: float = 0.5,
    b: float = 0.25,
    c: float = 0.05,
    form: str = "arcface",
) -> Tensor:
    """ArcFace or CosFace whose margin is wider for rare classes: a · n^-b + c, n the training rows of the class.

    counts: (C,) of the member's own training rows; one without any is as one with a single row. s: the scale of the
    head cosine; 0: from the number of classes. a: what a class of one row has more than one of very many. b: how fast
    that falls; 0: one margin for all. c: the least margin. form: arcface, of radians, or cosface, of cosines.
    """
    margins = a * counts.to(outputs.device, torch.float32).clamp(min=1) ** -b + c
    if form == "cosface":
        return _margin_loss(outputs, target, s, lambda cosines: cosines - margins)
    return _margin_loss(outputs, target, s, lambda cosines: _turned(cosines, margins.clamp(max=math.pi / 2)))


@part(
    source="Liu et al. 2017 (SphereFace), the angle of A-Softmax at a fixed scale; m = 1.35: Deng et al. 2019",
    takes=("classes",),
    cosines=True,
    allowed={"s": (0, None), "m": (1, 8)},
    initial=_first_of_margin(lambda m: (-1) ** int(m / 2) * math.cos(m * math.pi / 2) - 2 * int(m / 2), m=1.35),
)
def sphereface(outputs: Tensor, target: Tensor, *, s: float = 0.0, m: float = 1.35) -> Tensor:
    """The angle to the right class must be smaller by the factor m; at fixed lengths L-Softmax is the same.

    s: the scale of the head cosine, in the place of the papers' lengths of features (and weights, in Liu et al. 2016,
    L-Softmax); 0: from the number of classes. m: the factor, any number ≥ 1; above 2 it is hard to start with.
    """

    return _margin_loss(outputs, target, s, lambda cosines: _multiplied(cosines, m))


@part(
    source="Liu et al. 2016 (Large-margin softmax), eq. 4–6; the weight of the plain logit: their published code",
    takes=("classes",),
    lengths=True,
    allowed={"m": (1, 8), "plain": (0, None)},
)
def l_softmax(outputs: Tensor, target: Tensor, lengths: Tensor, *, m: float = 2.0, plain: float = 10.0) -> Tensor:
    """L-Softmax: cross-entropy in which the angle to the right class counts m times, and lengths as they are.

    The right class's logit |w| |x| cos a becomes |w| |x| (psi(a) + plain cos a) / (1 + plain), with
    psi(a) = (-1)^k cos(m a) - 2 k for a from k pi / m on. Soft targets take the expectation over classes.

    m: the factor, any number >= 1; 1 is cross-entropy. plain: weight of the plain logit beside the turned one: the
    paper starts with 1000 and lowers it; near 1 the loss hardly starts from random weights, above m = 2 with 0 not at
    all.
    """
    logits, lengths = outputs.float(), lengths.float()
    cosines = (logits / lengths.clamp(min=1e-12)).clamp(-1 + 1e-6, 1 - 1e-6)
    right = (lengths * _multiplied(cosines, m) + plain * logits) / (1 + plain)
    return _expect(functional.softplus(_others(logits) - right), target)


# --- labels -------------------------------------------------------------------------------------------------------


@part(
    source="torch.nn.functional.binary_cross_entropy_with_logits; smoothing: Szegedy et al. 2016, sec. 7",
    takes=("labels", "masks"),
    pixelwise=True,
    allowed={"smoothing": (0, 1), "positive": (0, None)},
    initial=lambda labels, smoothing=0.0, positive=1.0: math.log(2) * (1 + positive) / 2,
)
@pixelwise
def bce(logits: Tensor, target: Tensor, *, smoothing: float = 0.0, positive: float = 1.0) -> Tensor:
    """Binary cross-entropy of each label's sigmoid, the mean over the labels.

    smoothing: share of each label that is moved to one half, 0–1. positive: weight of what is there beside what is not.
    """
    soft = target.float() * (1 - smoothing) + smoothing / 2
    weight = torch.full((), positive, device=logits.device)
    losses = functional.binary_cross_entropy_with_logits(logits.float(), soft, reduction="none", pos_weight=weight)
    return losses.mean(dim=1)


@part(
    source="Lin et al. 2017, eq. 5; torchvision.ops.sigmoid_focal_loss",
    takes=("labels", "masks"),
    pixelwise=True,
    allowed={"gamma": (0, None), "alpha": (0, 1)},
)
@pixelwise
def focal_labels(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Binary cross-entropy that turns away from labels already right, the mean over the labels.

    gamma: 0 is binary cross-entropy; higher looks more at hard labels. alpha: weight of what is there, 1 - alpha of
    what is not; 0.5 weighs both alike.
    """
    scores, truth = logits.float(), target.float()
    wrong = truth * torch.sigmoid(-scores) + (1 - truth) * torch.sigmoid(scores)
    losses = functional.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    return (weight * wrong.clamp(min=1e-12) ** gamma * losses).mean(dim=1)  # the clamp: see focal


@part(
    source="Ridnik et al. 2021 (Asymmetric loss), eq. 7; timm.loss.AsymmetricLossMultiLabel",
    takes=("labels", "masks"),
    pixelwise=True,
    allowed={"gamma_negative": (0, None), "gamma_positive": (0, None), "clip": (0, 0.99)},
)
@pixelwise
def asymmetric(
    logits: Tensor, target: Tensor, *, gamma_negative: float = 4.0, gamma_positive: float = 1.0, clip: float = 0.05
) -> Tensor:
    """Focal loss with a stronger focus for what is not there, easy negatives left out; the mean over the labels.

    gamma_negative: focus for labels that are not there. gamma_positive: for those that are. clip: chances up to this of
    a label that is not there cost nothing.
    """
    scores, truth = logits.float(), target.float()
    chance, shifted = torch.sigmoid(scores), (torch.sigmoid(scores) - clip).clamp(0, 1 - 1e-7)
    # as focal: timm's powers have no finite gradient at a base of 0, which clip makes common
    there = -functional.logsigmoid(scores) * (1 - chance).clamp(min=1e-12) ** gamma_positive
    # with clip the logarithm's argument stays above 0; without, logsigmoid keeps the digits
    absent = -functional.logsigmoid(-scores) if clip == 0 else -torch.log1p(-shifted)
    return (truth * there + (1 - truth) * absent * shifted.clamp(min=1e-12) ** gamma_negative).mean(dim=1)


@part(
    source="van Rijsbergen 1979, ch. 7, with chances for decisions; Bénédict et al. 2021 (sigmoidF1)",
    takes=("labels",),
    allowed={"beta": (0.01, 100), "average": ("row", "batch"), "smooth": (0, None)},
)
def soft_f_beta(
    logits: Tensor, target: Tensor, *, beta: float = 1.0, average: str = "row", smooth: float = 1.0
) -> Tensor:
    """One minus F-beta of chances in the place of decisions: a loss in the shape of the metric.

    beta: how much more recall counts than precision. average: row, F over the labels of each row; batch, F of each
    label over the batch, whose mean over the labels is given to every row. smooth: added to both sides of the fraction;
    with 0 a row without labels has no gradient.
    """
    chance, truth, dim = torch.sigmoid(logits.float()), target.float(), 1 if average == "row" else 0
    hits = (1 + beta**2) * (chance * truth).sum(dim)
    false = (chance * (1 - truth)).sum(dim) + beta**2 * ((1 - chance) * truth).sum(dim)
    losses = false / (hits + false + smooth).clamp(min=1e-12)
    return losses if average == "row" else losses.mean().expand(len(logits))


@part(
    source="Berman et al. 2018 (Lovász-Softmax), sec. 3.1, algorithm 1; Yu & Blaschko 2015",
    takes=("labels", "masks"),
)
def lovasz_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """The Lovász extension of 1 - Jaccard index of each row's set of labels, over hinge errors.

    Of maps it is the index of each plane's set of pixels, the mean over the planes of the image.
    """
    scores = logits.float()
    if logits.ndim == 4:
        missed, added = functional.relu(1 - scores).flatten(2), functional.relu(1 + scores).flatten(2)
        inside = (target >= 0).flatten(2).float()
        return _lovasz(missed, added, target.float().clamp(min=0).flatten(2), 2, inside).sum(dim=2).mean(dim=1)
    return _lovasz(functional.relu(1 - scores), functional.relu(1 + scores), target.float(), dim=1).sum(dim=1)


# --- numbers ------------------------------------------------------------------------------------------------------


@part(source="Legendre 1805, least squares", takes=("numbers",), initial=lambda targets: 1.0)
def mse(outputs: Tensor, target: Tensor) -> Tensor:
    """The squared error, the mean over the targets."""
    return (outputs.float() - target.float()).square().mean(dim=1)


@part(source="Laplace 1774, least absolute deviations", takes=("numbers",), initial=lambda targets: 0.8)
def mae(outputs: Tensor, target: Tensor) -> Tensor:
    """The absolute error, the mean over the targets; learns the median."""
    return (outputs.float() - target.float()).abs().mean(dim=1)


@part(source="Huber 1964, eq. 1", takes=("numbers",), allowed={"delta": (1e-3, None)})
def huber(outputs: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """The squared error near the truth and the absolute error far from it, the mean over the targets.

    delta: where the one becomes the other, in standard deviations of the target.
    """
    return functional.huber_loss(outputs.float(), target.float(), reduction="none", delta=delta).mean(dim=1)


@part(source="Chen et al. 2018 (Log hyperbolic cosine loss)", takes=("numbers",), initial=lambda targets: 0.3746)
def log_cosh(outputs: Tensor, target: Tensor) -> Tensor:
    """The logarithm of the error's hyperbolic cosine, the mean over the targets; a Huber loss without a corner."""
    errors = (outputs.float() - target.float()).abs()
    return (errors + functional.softplus(-2 * errors) - math.log(2)).mean(dim=1)


@part(
    source="Koenker & Bassett 1978 (Regression quantiles)",
    takes=("numbers",),
    allowed={"q": (0.001, 0.999)},
    initial=lambda targets, q=0.5: 1 / math.sqrt(2 * math.pi),
)
def quantile(outputs: Tensor, target: Tensor, *, q: float = 0.5) -> Tensor:
    """The pinball loss, the mean over the targets; learns the q-quantile.

    q: the share of truths that are to lie below the output, within 0–1; 0.5 is half the absolute error.
    """
    errors = target.float() - outputs.float()
    return torch.maximum(q * errors, (q - 1) * errors).mean(dim=1)


# --- of other losses ----------------------------------------------------------------------------------------------


@part(
    source="Shrivastava et al. 2016 (Online hard example mining)",
    takes=("classes", "labels", "numbers", "masks", "class_masks"),
    batch=True,
    counts=True,
    calls={"loss": "losses"},
    allowed={"k": (0, 1)},
)
def ohem(
    outputs: Tensor, target: Tensor, counts: Tensor | None = None, *, k: float = 0.7, loss: str = "cross_entropy()"
) -> Tensor:
    """Any loss over the k share of a batch's rows that it is largest for; the others teach nothing.

    k: share of rows kept, 0–1, at least one row. loss: the call-string of a loss for the task's targets. counts: for a
    loss that asks for them. The rows kept are scaled so that the mean over the batch is the mean over them.
    """
    losses = _call(loss, outputs, target, counts)
    kept = max(1, round(k * len(losses)))
    hardest = losses.detach().topk(kept).indices
    return losses * torch.zeros_like(losses).index_fill(0, hardest, len(losses) / kept)


@part(
    source="weighted sum of losses; 100: two orders of magnitude",
    takes=("labels", "classes", "numbers", "masks", "class_masks"),
    batch=True,
    counts=True,
    calls={"losses": "losses"},
)
def total(
    outputs: Tensor,
    target: Tensor,
    counts: Tensor | None = None,
    *,
    losses: tuple[str, ...] = ("bce()", "soft_f_beta()"),
    weights: tuple[float, ...] = (),
) -> Tensor:
    """A weighted sum of losses; warns once if two terms of the first batch differ by more than a factor of 100.

    losses: call-strings of losses for the task's targets; jsd, l_softmax and adacos_moving, which need more than
    outputs and targets, stand alone. weights: one a loss; empty: all 1. counts: for losses that ask for them.
    """
    factors = tuple(weights) or (1.0,) * len(losses)
    if len(factors) != len(losses):
        raise UserError(f"total(…): {len(losses)} losses and {len(factors)} weights; give each loss a weight, or none")
    terms = [factor * _call(loss, outputs, target, counts) for factor, loss in zip(factors, losses, strict=True)]
    warn_of_sizes(losses, factors, terms, "weights")
    return torch.stack(terms).sum(dim=0)


# --- distillation -------------------------------------------------------------------------------------------------


@pixelwise
def distillation(logits: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """The distance of a student from its teacher, both softened: T² · KL(teacher ‖ student).

    logits: (B, C) float of the student. teacher: (B, C) probabilities; p^(1/T), renormalised, is the softmax of its
    logits over T. temperature: T > 0; T² keeps the gradient's size the same for every T. Returns (B,) float32.
    Hinton et al. 2015, sec. 2.
    """
    softened = teacher.float() ** (1 / temperature)
    softened = softened / softened.sum(dim=1, keepdim=True).clamp(min=1e-12)  # 0 where a map's teacher is void
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, softened, reduction="none").sum(dim=1)


@pixelwise
def label_distillation(logits: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """The same of C separate labels: T² · KL of two-sided coins, the mean over the labels.

    logits: (B, C) of the student. teacher: (B, C) probabilities, softened by their logits over T. Returns (B,) float32.
    """
    softened = torch.sigmoid(torch.logit(teacher.float(), eps=1e-6) / temperature)
    student = logits.float() / temperature
    cross = functional.binary_cross_entropy_with_logits(student, softened, reduction="none")
    own = functional.binary_cross_entropy(softened, softened, reduction="none")
    return temperature**2 * (cross - own).mean(dim=1)


def number_distillation(outputs: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """The squared distance of a student's numbers from its teacher's, the mean over the targets; T plays no part.

    outputs, teacher: (B, T). Returns (B,) float32. Chen et al. 2017 (Learning efficient object detection), eq. 5.
    """
    return mse(outputs, teacher)


def relational_distillation(points: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """How far the distances and angles between a batch's embeddings are from those of its teacher's; T plays no part.

    points: (B, E) of the student. teacher: (B, D) of one space, E and D of any size; a row of zeros has no teacher, and
    no relation to others. Both count by direction alone, since a cosine compares them. Returns (B,) float32: of each
    row 25 times the mean Huber loss of its distances, in units of the batch's mean distance, and 50 times that of the
    cosines of its angles between two others, within 64 rows at a time. Park et al. 2019 (RKD), eq. 4–8; the weights
    beside a cross-entropy as in sec. 4.2.
    """
    with torch.autocast(points.device.type, enabled=False):
        known = (teacher != 0).any(dim=1)
        sides = [functional.normalize(side.float(), dim=1) for side in (points, teacher)]
        apart = _huber(*(_relative_distances(side, known) for side in sides))
        distances = _mean_of_chosen(apart, _others_known(known))
        parts = zip(*(side.split(ANGLE_ROWS) for side in (*sides, known)), strict=True)
        return 25 * distances + 50 * torch.cat([_angle_errors(*part) for part in parts])


class CosineDistillation(nn.Module):
    """How far embeddings point away from those of a teacher, seen through a linear map that is learned beside them.

    points: (B, E) of the student. teacher: (B, D), a row of zeros has no teacher; of any length. Returns (B,) float32,
    1 minus the cosine, 0 to 2, and 0 where there is no teacher; T plays no part. The map, (D, E), lets widths differ
    and the student turn its space. Romero et al. 2015 (FitNets), eq. 3, with the cosine in the place of the squared
    distance, since a cosine compares embeddings.
    """

    def __init__(self, width: int, taught: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, taught, bias=False)
        nn.init.orthogonal_(self.map.weight)

    def forward(self, points: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """The loss of each row."""
        with torch.autocast(points.device.type, enabled=False):
            known = (teacher != 0).any(dim=1)
            apart = 1 - functional.cosine_similarity(self.map(points.float()), teacher.float(), dim=1)
            return torch.where(known, apart, 0.0)


DISTILLATIONS = {
    "embeddings": relational_distillation,
    "classes": distillation, "labels": label_distillation, "numbers": number_distillation,
    "class_masks": distillation, "masks": label_distillation,
}  # fmt: skip


# --- arithmetic ---------------------------------------------------------------------------------------------------

ANGLE_ROWS = 64  # their angles are 64³ numbers


def _others_known(known: Tensor) -> Tensor:
    """(B, B) bool: two different rows, both known."""
    return known[:, None] & known & ~torch.eye(len(known), dtype=torch.bool, device=known.device)


def _relative_distances(points: Tensor, known: Tensor) -> Tensor:
    """(B, B) Euclidean, over the mean of those between known rows."""
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = _others_known(known)
    mean = apart.masked_fill(~pairs, 0).sum() / pairs.sum().clamp(min=1)
    return apart / mean.clamp(min=1e-6)


def _angle_errors(points: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """(B,) the mean Huber loss of the cosine of the angles at each row, where it and two others are known."""
    pairs = _others_known(known)
    wide = pairs[:, :, None] & pairs[:, None, :] & pairs
    return _mean_of_chosen(_huber(_angles(points), _angles(teacher)).flatten(1), wide.flatten(1))


def _angles(points: Tensor) -> Tensor:
    """(B, B, B): at row i, the cosine of the angle between rows j and k; 0 where one of them lies on i."""
    ways = functional.normalize(points[None, :, :] - points[:, None, :], dim=2)
    return ways @ ways.mT


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.smooth_l1_loss(student, teacher, reduction="none")


def _mean_of_chosen(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean (B,) over the chosen of each row (B, N), 0 where there is none."""
    return values.masked_fill(~chosen, 0).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)


_compared: set[tuple[tuple[str, ...], tuple[float, ...]]] = set()  # the sums whose first batch has been looked at


def _expect(values: Tensor, target: Tensor) -> Tensor:
    """The value (B, C) of the true class, or its expectation under (B, C) probabilities."""
    if target.is_floating_point():
        return (values * target.float()).sum(dim=1)
    return values.gather(1, target.unsqueeze(1)).squeeze(1)


def _weighted(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    truth = target.float() if target.is_floating_point() else target
    return functional.cross_entropy(logits.float(), truth, weights, reduction="none", label_smoothing=smoothing)


def _tempered_log_softmax(scores: Tensor, t: float, iterations: int) -> Tensor:
    """log exp_t(scores - λ), (B, C), with λ such that each row's exp_t sum to one; t ≥ 1, where 1 is log_softmax.

    λ is found without a graph. Its gradient is that of the implicit function: exp_t^t, scaled to sum one.
    """
    if t == 1:
        return functional.log_softmax(scores, dim=1)
    with torch.no_grad():
        top = scores.amax(dim=1, keepdim=True)
        total = torch.ones_like(top)
        for _ in range(iterations):
            shrunk = (scores - top) * total ** (1 - t)
            total = (1 - (t - 1) * shrunk).pow(-1 / (t - 1)).sum(dim=1, keepdim=True)
        norm = top + (total ** (t - 1) - 1) / (t - 1)
        escort = functional.softmax(-t / (t - 1) * torch.log1p((t - 1) * (norm - scores)), dim=1)
    moved = norm + (escort * (scores - scores.detach())).sum(dim=1, keepdim=True)
    return -torch.log1p((t - 1) * (moved - scores)) / (t - 1)


def _lovasz_of_pixels(logits: Tensor, target: Tensor) -> Tensor:
    """``lovasz_softmax`` over the known pixels of maps (B, C, H, W): each row's share, (B,)."""
    chances, truth = (table.movedim(1, -1).flatten(0, 2) for table in (functional.softmax(logits.float(), 1), target))
    inside = (truth >= 0).float()
    truth = truth.float().clamp(min=0)
    shares = _lovasz(1 - chances, chances, truth, 0, inside)
    there = truth.sum(dim=0) > 0
    rows = (shares * there).unflatten(0, (len(logits), -1)).sum(dim=(1, 2))
    return len(logits) * rows / there.sum().clamp(min=1)


def _lovasz(missed: Tensor, added: Tensor, truth: Tensor, dim: int, inside: Tensor | float = 1.0) -> Tensor:
    """Each member's share of the Lovász extension of the Jaccard loss of sets along dim; shares sum to the loss.

    truth: 0…1, how far a member belongs to the set. missed: its error if it does. added: its error if it does not.
    inside: 0 for members that count nowhere, whose truth is 0. A member that half belongs counts as two, each of half
    the weight.
    """
    errors, weights = torch.cat([missed, added], dim), torch.cat([truth, inside - truth], dim)
    outside = torch.cat([torch.zeros_like(truth), inside - truth], dim)
    order = errors.detach().argsort(dim=dim, descending=True, stable=True)
    wrong = weights.gather(dim, order).cumsum(dim)
    union = truth.sum(dim, keepdim=True) + outside.gather(dim, order).cumsum(dim)
    jaccard = wrong / union.clamp(min=1e-12)
    steps = jaccard.diff(dim=dim, prepend=torch.zeros_like(jaccard.narrow(dim, 0, 1)))
    shares = errors * torch.zeros_like(errors).scatter(dim, order, steps)
    return shares.narrow(dim, 0, truth.shape[dim]) + shares.narrow(dim, truth.shape[dim], truth.shape[dim])


def _margin_loss(outputs: Tensor, target: Tensor, s: float, shifted: Callable[[Tensor], Tensor]) -> Tensor:
    """Cross-entropy of s · cosines (B, C) in which the true class has s · shifted(its cosine)."""
    scale = starting_scale(s, outputs.shape[1])
    cosines = (outputs.float() / scale).clamp(-1 + 1e-6, 1 - 1e-6)  # an angle has no finite gradient at its ends
    return _expect(functional.softplus(_others(scale * cosines) - scale * shifted(cosines)), target)


def _multiplied(cosines: Tensor, m: float) -> Tensor:
    """The cosine (B, C) of an angle m times as large, going on downwards where that would rise again."""
    angles = m * cosines.acos()
    turns = (angles / math.pi).floor()
    return (1 - 2 * (turns % 2)) * angles.cos() - 2 * turns


def _turned(cosines: Tensor, m: float | Tensor) -> Tensor:
    """The cosine (B, C) of an angle larger by m radians, one for all or (C,).

    Past π it would rise again; the authors' code goes on in a straight line.
    """
    along, across = (m.cos(), m.sin()) if isinstance(m, Tensor) else (math.cos(m), math.sin(m))
    turned = cosines * along - (1 - cosines.square()).sqrt() * across
    return torch.where(cosines > -along, turned, cosines - m * across)


def _others(scores: Tensor) -> Tensor:
    """(B, C) → (B, C), the logarithm of the sum of the exponentials of all other columns.

    From the whole sum without the own term where that is at most half of it; the largest column's is summed anew.
    """
    top = scores.argmax(dim=1, keepdim=True)
    rest = scores.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)
    chances = functional.softmax(scores, dim=1).clamp(max=0.75)
    whole = scores.logsumexp(dim=1, keepdim=True) + torch.log1p(-chances)
    return whole.scatter(1, top, rest)


@functools.cache
def _built(loss: str) -> tuple[Callable[..., Tensor], bool]:
    """A loss by its call-string, and whether it wants the counts of classes."""
    return registry.build("losses", loss), bool(registry.facts("losses", loss).get("counts"))


def _call(loss: str, *given: Any) -> Tensor:
    """What a nested loss gives for outputs, targets and counts, which it gets if it wants them."""
    function, wants_counts = _built(loss)
    return function(*given) if wants_counts else function(*given[:2])


def warn_of_sizes(losses: Sequence[str], weights: Sequence[float], terms: Sequence[Tensor], key: str) -> None:
    """Warn, once a process, where two terms of a sum differ by more than two orders of magnitude in the first batch.

    losses, weights: of the terms, which have their weights already. key: the setting that mends it.
    """
    asked = (tuple(losses), tuple(weights))
    if asked in _compared:
        return
    _compared.add(asked)
    sizes = [float(term.detach().mean().abs()) for term in terms]
    low, high = min(sizes), max(sizes)
    if high > 100 * low > 0:  # a term of 0, such as triplets without a hard one, says nothing of its size
        small, large = losses[sizes.index(low)], losses[sizes.index(high)]
        warn(f"in the sum of losses {large} is {high:.3g} and {small} {low:.3g}, which will hardly matter; set {key}")
