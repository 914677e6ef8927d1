"""Losses: outputs and targets → one value a row; the learner takes the weighted mean.

Form: ``f(outputs (B, C) float, target, *, …) -> (B,) float32``. The fact ``takes`` says of what form the targets are
(``pipeline/forms.py``): classes, (B,) int64 or (B, C) float probabilities (soft labels, mixup), for which a loss is the
expectation over classes; labels, (B, C) float in 0…1; numbers, (B, C) float of mean 0 and deviation 1. All work in
float32 under any autocast, since log and exp do not keep their digits in half precision.

The fact ``initial(classes, **keywords)`` is the loss expected of a new model, whose logits are all near zero; it takes
the user's keywords of the loss. ``stage=sanity`` compares it with the first loss; a loss without one declares none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.registry import part


@part(
    source="torch.nn.functional.cross_entropy; smoothing: Szegedy et al. 2016, sec. 7",
    takes=("classes",),
    allowed={"smoothing": (0, 1)},
    initial=lambda classes, smoothing=0.0: math.log(classes),
)
def cross_entropy(logits: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the softmax, with label smoothing.

    smoothing: share of each label that is spread evenly over all classes, 0–1.
    """
    if target.is_floating_point():
        target = target.float()
    return functional.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)


@part(
    source="Lin et al. 2017, eq. 4, over the softmax",
    takes=("classes",),
    allowed={"gamma": (0, None)},
    initial=lambda classes, gamma=2.0: (1 - 1 / classes) ** gamma * math.log(classes),
)
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
    source="torch.nn.functional.binary_cross_entropy_with_logits; smoothing: Szegedy et al. 2016, sec. 7",
    takes=("labels",),
    allowed={"smoothing": (0, 1), "positive": (0, None)},
    initial=lambda labels, smoothing=0.0, positive=1.0: math.log(2) * (1 + positive) / 2,
)
def bce(logits: Tensor, target: Tensor, *, smoothing: float = 0.0, positive: float = 1.0) -> Tensor:
    """Binary cross-entropy of each label's sigmoid, the mean over the labels.

    smoothing: share of each label that is moved to one half, 0–1. positive: weight of what is there beside what is not.
    """
    soft = target.float() * (1 - smoothing) + smoothing / 2
    weight = torch.full((), positive, device=logits.device)
    losses = functional.binary_cross_entropy_with_logits(logits.float(), soft, reduction="none", pos_weight=weight)
    return losses.mean(dim=1)


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


def distillation(logits: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """The distance of a student from its teacher, both softened: T² · KL(teacher ‖ student).

    logits: (B, C) float of the student. teacher: (B, C) probabilities; p^(1/T), renormalised, is the softmax of its
    logits over T. temperature: T > 0; T² keeps the gradient's size the same for every T. Returns (B,) float32.
    Hinton et al. 2015, sec. 2.
    """
    softened = teacher.float() ** (1 / temperature)
    softened = softened / softened.sum(dim=1, keepdim=True)
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, softened, reduction="none").sum(dim=1)


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


DISTILLATIONS = {"classes": distillation, "labels": label_distillation, "numbers": number_distillation}


def _expect(values: Tensor, target: Tensor) -> Tensor:
    """The value (B, C) of the true class, or its expectation under (B, C) probabilities."""
    if target.is_floating_point():
        return (values * target.float()).sum(dim=1)
    return values.gather(1, target.unsqueeze(1)).squeeze(1)
