"""Consistencies: what two views of the same image, whoever labelled it, add to the loss of the labelled rows.

Form: ``f(learns, outputs, *, …) -> Consistency | None``. learns: the form of what the network learns; outputs: how many
numbers it says of an image, or of a pixel. Beside each batch the loader makes two views of other images, those of
``Table.pool``: a weak one, by ``augment``, and a strong one, by ``augment`` and then by ``strong``. Arguments that the
loader reads: ``ratio``, how many there are for each labelled row, and ``strong``, the call-string of an augment. One
with the fact ``teacher`` has a teacher, a moving average of the student that the training loop keeps like any other
average, and that predicts; its ``decay`` is an argument. What a part gathers while it trains are buffers, so that a
checkpoint has them, gathered over all processes that train together.

No label is looked at here, so that nothing here can leak one (law 1).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pipeline import ranks
from pipeline.forms import Form
from pipeline.registry import part

TINY = 1e-12  # what a share or a variance counts at least: where all is sure for long they come to nothing


class Consistency(nn.Module):
    """What the learner asks. A pool's first half are weak views, its second half strong ones of the same images."""

    def __init__(self, learns: Form) -> None:
        super().__init__()
        self.learns = learns
        self.average: Any = None

    def follow(self, average: Any) -> None:
        """The average of the student that the training loop keeps; without one the student itself is the teacher."""
        self.average = average

    def shown(self, pool: Tensor) -> Tensor:
        """(2U, C, H, W) prepared images → those that the student sees, behind the labelled rows of its batch.

        Both views, unless a part says otherwise: the norms see labelled, weak and strong rows as one batch.
        """
        return pool

    def loss(self, student: nn.Module, pool: Tensor, outputs: Tensor, done: float) -> Tensor:
        """What is added to the batch's loss, a scalar.

        student: called with prepared images, gives raw outputs of the last level. outputs: what it said of ``shown``,
        float32. done: the share of the training that lies behind, 0–1.
        """
        raise NotImplementedError


@part(source="the baseline")
def none(learns: Form, outputs: int) -> None:
    """The labelled rows alone."""


@part(
    source="Tarvainen & Valpola 2017, eq. 2; ramp-up: Laine & Aila 2017, sec. 2.1",
    teacher=True,
    allowed={
        "weight": (0, None),
        "ramp": (0, 1),
        "decay": (0, 1),
        "distance": ("mse", "kl"),
        "ratio": (0.01, 64),
    },
)
class mean_teacher(Consistency):
    """The student's answer to the strong view comes near to the answer of its own moving average to the weak one.

    The average, the teacher, is what predicts. weight: of the distance beside the loss; None: 10 for mse of
    probabilities, else 1. ramp: the share of the training over which the weight rises, like exp(-5 (1 - t)²). decay: of
    the teacher, which begins with less, as average=ema() does. distance: mse, the squared distance between
    probabilities, or between the numbers that are learned; or kl, which numbers do not have. ratio: images of the pool
    for each labelled one of a batch. strong: what makes the student's view, after augment; empty: as fixmatch's, where
    the paper has noise().
    """

    def __init__(
        self,
        learns: Form,
        outputs: int,
        *,
        weight: float | None = None,
        ramp: float = 0.3,
        decay: float = 0.999,
        distance: str = "mse",
        ratio: float = 1.0,
        strong: str = "",
    ) -> None:
        super().__init__(learns)
        usual = 10.0 if learns.bounded and distance == "mse" else 1.0
        self.weight, self.ramp = usual if weight is None else weight, ramp
        self.distance = {"mse": squared, "kl": divergence}[distance]

    def shown(self, pool: Tensor) -> Tensor:
        """The strong views."""
        return pool[len(pool) // 2 :]

    def loss(self, student: nn.Module, pool: Tensor, outputs: Tensor, done: float) -> Tensor:
        """The mean distance from the teacher's answers to the weak views, by the weight of the moment."""
        weak = pool[: len(pool) // 2]
        with torch.no_grad(), uncounted(student):
            taught = functional_call(student, self._weights(), (weak,)).float()
        return self.weight * ramped(done, self.ramp) * self.distance(self.learns, outputs, taught).mean()

    def _weights(self) -> dict[str, Tensor]:
        """The teacher's parameters and buffers under the names that the student has for them."""
        weights = {} if self.average is None else self.average.weights
        return {f"network.{name}": tensor for name, tensor in weights.items()}


@part(
    source="Sohn et al. 2020, eqs. 3 and 4; labels: of each side its own, as Rizve et al. 2021 (UPS), eq. 3",
    takes=("classes", "labels", "masks", "class_masks", "objects"),
    allowed={"threshold": (0.5, 1), "weight": (0, None), "ratio": (0.01, 64)},
)
class fixmatch(Consistency):
    """What the network is sure of in the weak view is the label of the strong view.

    Of labels each counts by itself, sure of yes or of no, and so does each pixel of masks. threshold: the least
    probability of what is sure. weight: of this loss beside that of the labelled rows; what is not sure counts as 0 in
    its mean. ratio: images of the pool for each labelled one of a batch, 7 in the paper. strong: what makes the strong
    view, after augment; empty: rand_augment() and a cutout, of masks colours, blur and a cutout, which move no pixel.
    """

    def __init__(
        self,
        learns: Form,
        outputs: int,
        *,
        threshold: float = 0.95,
        weight: float = 1.0,
        ratio: float = 3.0,
        strong: str = "",
    ) -> None:
        super().__init__(learns)
        self.threshold, self.weight = threshold, weight

    def loss(self, student: nn.Module, pool: Tensor, outputs: Tensor, done: float) -> Tensor:
        """The mean cross-entropy of what is sure."""
        weak, strong = outputs.detach().chunk(2)[0], outputs.chunk(2)[1]
        rows = (sure_class if self.learns.simplex else sure_labels)(weak, strong, self.threshold)
        return self.weight * rows.mean()


@part(
    source="Chen et al. 2023 (SoftMatch): truncated Gaussian, uniform alignment; sigmas, decay: their code",
    takes=("classes", "labels"),
    allowed={"weight": (0, None), "ratio": (0.01, 64), "decay": (0, 1), "sigmas": (0.01, None)},
)
class softmatch(Consistency):
    """Every image of the pool teaches its strong view, the more the surer the weak view is beside the others.

    No threshold to choose: the weight is 1 from the mean confidence up, and below it falls like a Gaussian of the
    confidences' standard deviation over sigmas. Mean and deviation are moving averages of all batches with this decay,
    which begins with less, as average=ema() does. align: what is said too often weighs less, as if all classes were
    equally frequent; it changes weights alone, never what is taught. Of labels each counts by itself, sure of yes or of
    no, and has a mean and deviation of its own; none is aligned. weight: of this loss beside that of the labelled rows.
    ratio: images of the pool for each labelled one of a batch, 7 in the paper. strong: as fixmatch's.
    """

    steps: Tensor
    mean: Tensor
    variance: Tensor
    said: Tensor

    def __init__(
        self,
        learns: Form,
        outputs: int,
        *,
        weight: float = 1.0,
        ratio: float = 7.0,
        sigmas: float = 2.0,
        align: bool = True,
        decay: float = 0.999,
        strong: str = "",
    ) -> None:
        super().__init__(learns)
        self.weight, self.sigmas, self.align, self.decay = weight, sigmas, align and learns.simplex, decay
        kinds, least = (1, 1 / outputs) if learns.simplex else (outputs, 0.5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.full((kinds,), least))
        self.register_buffer("variance", torch.ones(kinds))
        self.register_buffer("said", torch.full((outputs,), 1 / outputs))

    def loss(self, student: nn.Module, pool: Tensor, outputs: Tensor, done: float) -> Tensor:
        """The mean cross-entropy with what the weak views say, by its weights."""
        weak, strong = outputs.detach().chunk(2)[0], outputs.chunk(2)[1]
        weights = self._weights(weak)
        if self.learns.simplex:
            rows = functional.cross_entropy(strong, weak.argmax(dim=1), reduction="none")[:, None]
        else:
            rows = functional.binary_cross_entropy_with_logits(strong, (weak > 0).to(strong), reduction="none")
        return self.weight * (weights * rows).mean()

    @torch.no_grad()
    def _weights(self, weak: Tensor) -> Tensor:
        """Raw outputs (U, C) of the weak views → (U, 1) weights of rows, (U, C) of labels; counts this batch in."""
        decay = (1 + self.steps) / (10 + self.steps)
        share = 1 - decay.clamp(max=self.decay)
        self.steps += 1
        if self.learns.simplex:
            chances = weak.softmax(dim=1)
            self.said.lerp_(ranks.mean(chances.mean(dim=0)), share)
            if self.align:
                chances = functional.normalize(chances / self.said.clamp(min=TINY), p=1, dim=1)
            sure = chances.amax(dim=1, keepdim=True)
        else:
            sure = torch.maximum(weak.sigmoid(), (-weak).sigmoid())
        count = len(sure) * ranks.size()
        mean, square = ranks.mean(torch.stack([sure.mean(dim=0), sure.square().mean(dim=0)]))
        self.mean.lerp_(mean, share)
        self.variance.lerp_((square - mean.square()).clamp(min=0) * count / max(1, count - 1), share)
        below = (sure - self.mean).clamp(max=0)
        return torch.exp(-below.square() * self.sigmas**2 / (2 * self.variance.clamp(min=TINY)))


# --- what they add ----------------------------------------------------------------------------------------------------


def ramped(done: float, ramp: float) -> float:
    """exp(-5 (1 - t)²), t the share of the ramp that lies behind; 1 after it. Laine & Aila 2017, sec. 2.1."""
    return math.exp(-5 * (1 - done / ramp) ** 2) if done < ramp else 1.0


def squared(learns: Form, said: Tensor, taught: Tensor) -> Tensor:
    """Raw outputs (B, C, …) of both → (B, …): of classes the sum of squares over C, so that their number is no factor.

    Of labels the mean, each as a choice of two: twice the square. Of numbers the mean square, of standardised ones.
    """
    if not learns.bounded:
        return (said - taught).square().mean(dim=1)
    if learns.simplex:
        return (said.softmax(dim=1) - taught.softmax(dim=1)).square().sum(dim=1)
    return 2 * (said.sigmoid() - taught.sigmoid()).square().mean(dim=1)


def divergence(learns: Form, said: Tensor, taught: Tensor) -> Tensor:
    """The same as KL(taught ‖ said) in nats; of labels the mean over them."""
    if learns.simplex:
        return (taught.softmax(dim=1) * (taught.log_softmax(dim=1) - said.log_softmax(dim=1))).sum(dim=1)
    sides = (
        (sign * taught).sigmoid() * (functional.logsigmoid(sign * taught) - functional.logsigmoid(sign * said))
        for sign in (1, -1)
    )
    return torch.stack(list(sides)).sum(dim=0).mean(dim=1)


def sure_class(weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    """Logits (B, C, …) of both views → (B, …): the cross-entropy with the weak view's class, 0 where that is unsure."""
    chance, label = weak.softmax(dim=1).max(dim=1)
    return functional.cross_entropy(strong, label, reduction="none") * (chance >= threshold)


def sure_labels(weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    """The same of labels, each sure of yes or of no: (B, …), the mean over C."""
    chance = weak.sigmoid()
    sure = torch.maximum(chance, 1 - chance) >= threshold
    losses = functional.binary_cross_entropy_with_logits(strong, (chance > 0.5).to(strong), reduction="none")
    return (losses * sure).mean(dim=1)


@contextlib.contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """Within, no BatchNorm of the module takes a batch into its statistics: they are those of another's batches."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = norm.track_running_stats and not norm.training
        yield
    finally:
        for norm, tracks in zip(norms, before, strict=True):
            norm.track_running_stats = tracks
