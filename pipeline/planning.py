"""What to train within a budget, from measured speeds: the choices of ``stage=auto``. No torch, no clock.

Rules of thumb, in this order: the dearest net of which every fold gets the epochs that the config asks for; then up to
twice as many epochs; then a second net for level 2; then a round of pseudo-labels. What is dearer is larger, or sees
larger images. OOF tells what came of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline import backbone_names, tasks
from pipeline.config import Config, read_named

TRAINING = 0.9  # of the time for trainings and predictions is planned with; epochs vary
LONGER = 2.0  # times the epochs that were asked for, from which a second net gains more
LONG = 15  # epochs from which small nets want what keeps them from learning the rows by heart
SCRATCH = ("small_image(width=16)", "small_image(width=32)", "small_image(width=64)")
USUAL = ("resnet18", "resnet34", "efficientnet_b0", "resnet50")
SIZES = (0.5, 1.0, 1.5)  # of the competition's image size
LEAST_SIZE = 64  # px, below which half the size is not tried


@dataclass(frozen=True)
class Candidate:
    """A net and the side of its images in pixels; model: the model file whose other settings it takes."""

    backbone: str
    image_size: int
    model: str

    def __str__(self) -> str:
        return f"{self.backbone} at {self.image_size} px"


@dataclass(frozen=True)
class Pace:
    """A candidate with its measured seconds: of an epoch of a member with its validation, and of its predictions."""

    candidate: Candidate
    epoch: float
    predicting: float

    def cost(self, epochs: int, folds: int) -> float:
        """Seconds of all members."""
        return folds * (epochs * self.epoch + self.predicting)

    def epochs(self, seconds: float, folds: int) -> int:
        """The epochs of each member that fit into these seconds; none: 0."""
        return max(0, math.floor((seconds / folds - self.predicting) / self.epoch))


@dataclass(frozen=True)
class Choice:
    """A net that is trained for so many epochs on every fold."""

    pace: Pace
    epochs: int


@dataclass(frozen=True)
class Plan:
    """What is trained, dearest first, whether a round of pseudo-labels follows, and the seconds that it should take."""

    choices: list[Choice]
    pseudo: bool
    seconds: float
    reasons: list[str]


def candidates(config: Config) -> list[Candidate]:
    """The nets and sizes to measure, roughly from cheap to dear; ``auto.backbones`` and ``auto.sizes`` override."""
    scratch = small_from_scratch(config)
    small = "small_image_long" if tasks.facts(config.task)["learns"] == "classes" else "small_image"
    model = small if scratch else config.models[0]
    backbones = config.auto.backbones or list(SCRATCH if scratch else USUAL)
    asked = [share for share in SIZES if share >= 1 or share * config.image_size >= LEAST_SIZE]
    sizes = config.auto.sizes or ([config.image_size] if scratch else [_round(s * config.image_size) for s in asked])
    return [Candidate(backbone, size, model) for size in sizes for backbone in backbones]


def small_from_scratch(config: Config) -> bool:
    """Whether images are small and nothing pretrained is at hand, and a mask needs no decoder of its own."""
    nothing = not config.pretrained and not config.weights
    return nothing and config.image_size <= backbone_names.SMALL_SIDE and not config.decoder


def _round(size: float) -> int:
    """A multiple of 32, by which most nets shrink their images."""
    return max(32, 32 * round(size / 32))


def plan(paces: list[Pace], seconds: float, folds: int, epochs: int, test_share: float) -> Plan:
    """Choose from what was measured; at least one.

    epochs: that a training should have. test_share: test rows over training rows, which a round of pseudo-labels adds
    at most.
    """
    dearest = sorted(paces, key=lambda pace: -pace.epoch)
    first = next((pace for pace in dearest if pace.cost(epochs, folds) <= seconds), None)
    if first is None:
        cheapest = dearest[-1]
        length = max(1, cheapest.epochs(seconds, folds))
        why = f"nothing has time for {epochs} epochs: the fastest, {length} epochs"
        return Plan([Choice(cheapest, length)], False, cheapest.cost(length, folds), [why])
    longest = round(LONGER * epochs)
    chosen = [Choice(first, min(longest, first.epochs(seconds, folds)))]
    left = seconds - first.cost(chosen[0].epochs, folds)
    reasons = [f"{first.candidate}: the dearest with time for {epochs} epochs on {folds} folds; {_length(chosen[0])}"]
    others = [pace for pace in dearest if pace.candidate != first.candidate and pace.cost(epochs, folds) <= left]
    if others:
        chosen.append(Choice(others[0], min(longest, others[0].epochs(left, folds))))
        left -= others[0].cost(chosen[1].epochs, folds)
        reasons.append(f"{others[0].candidate}: a second opinion for level 2; {_length(chosen[1])}")
    again = (1 + test_share) * first.cost(chosen[0].epochs, folds)
    pseudo = again <= left
    if pseudo:
        left -= again
        reasons.append(f"a round of pseudo-labels for {first.candidate}")
    return Plan(chosen, pseudo, seconds - left, reasons)


def _length(choice: Choice) -> str:
    return f"{choice.epochs} epochs"


def layer(choice: Choice) -> dict[str, object]:
    """The settings of a chosen net, as a model file."""
    candidate = choice.pace.candidate
    own = read_named("model", candidate.model)
    if candidate.model == "small_image_long" and choice.epochs < LONG:
        own = read_named("model", "small_image")
    return {**own, "backbone": candidate.backbone, "image_size": candidate.image_size, "epochs": choice.epochs}


def hopeless(pace: Pace, seconds: float, folds: int, epochs: int) -> bool:
    """Whether not even half the epochs fit, so that what is dearer need not be measured."""
    return pace.epochs(seconds, folds) < epochs / 2
