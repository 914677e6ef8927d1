"""What a finished training's curve says to change next: one line each, with the key to try. No torch.

A log holds little: an epoch's mean training loss, the score on the member's own fold, the learning rate. So each rule
asks for clear evidence and stays silent otherwise; where one cause explains the others, it speaks alone. The readings
are those of the CS231n notes on loss curves and of the tuning playbook (Godbole et al. 2023) on the number of steps.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import backbone_names, evaluate, registry
from pipeline.artefacts import shown
from pipeline.config import Config
from pipeline.errors import UserError

Rows = Sequence[Mapping[str, float]]

EARLY, LATE = 0.1, 0.75  # the best epoch in the first tenth, or in the last quarter (the playbook's rule)
CLEAR = 3.0  # deviations of the noise between epochs that a change of the score must exceed


@dataclass(frozen=True)
class Facts:
    """What a log is read against.

    greater: is more of the score better? initial: the loss declared of a model that knows nothing, or None. clean: the
    training loss is that of true labels, neither mixed nor a teacher's. augmented: the images are.
    """

    lr: float
    epochs: int
    greater: bool = True
    initial: float | None = None
    clean: bool = True
    augmented: bool = False
    image_size: int = 224


def facts(config: Config, initial: float | None = None) -> Facts:
    """The facts of a config; initial: what ``learner.initial_loss`` says."""
    mixed = registry.parse(config.mix).name != "none"
    return Facts(
        lr=config.lr,
        epochs=config.epochs,
        greater=evaluate.direction(config.metric) > 0,
        initial=initial,
        clean=not (mixed or config.train.soft or config.train.labels),
        augmented=registry.parse(config.augment).name != "none",
        image_size=config.image_size,
    )


def log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.csv as numbers; cells that are empty are left out."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(handle)]
    except (OSError, ValueError, TypeError, UnicodeDecodeError) as fault:
        raise UserError(f"{shown(path)} cannot be read as a log: {fault}") from fault


def read(rows: Rows, facts: Facts) -> list[str]:
    """The advice on one member's training, an epoch a row; empty where the curve shows nothing clear."""
    return list(findings(rows, facts).values())


def read_folds(logs: Sequence[Rows], facts: Facts) -> list[str]:
    """The advice on a run from the logs of its members: what at least half of them show, in the words of the first."""
    found = [findings(rows, facts) for rows in logs]
    kinds = dict.fromkeys(kind for one in found for kind in one)
    said = []
    for kind in kinds:
        texts = [one[kind] for one in found if kind in one]
        if 2 * len(texts) >= len(found):
            said.append(texts[0] + (f" (so {len(texts)} of {len(found)} members)" if len(found) > 1 else ""))
    return said


def findings(rows: Rows, facts: Facts) -> dict[str, str]:
    """Advice by its kind, in the order of its weight."""
    if not rows:
        return {}
    losses = [row["loss"] for row in rows]
    if bad := next((epoch for epoch, loss in enumerate(losses, 1) if not math.isfinite(loss)), 0):
        return {"not finite": f"the loss is not finite in epoch {bad}: try lr={facts.lr / 10:g}, or train.clip_norm=1"}
    for kind, rule in (("diverged", diverged), ("slow", slow), ("unmoved", unmoved)):
        if text := rule(rows, facts):
            return {kind: text}
    found = {"start": bad_start(losses, facts)}
    for kind, rule in (("over-fit", over_fit), ("steps", steps), ("under-fit", under_fit)):
        if text := rule(rows, facts):
            found[kind] = text
            break
    return {kind: text for kind, text in found.items() if text}


# --- the training loss ----------------------------------------------------------------------------------------------


def diverged(rows: Rows, facts: Facts) -> str:
    """The loss rose again by half while the learning rate did not, or never came below that of knowing nothing."""
    losses = [row["loss"] for row in rows]
    if len(rows) < 3:
        return ""
    low = losses.index(min(losses))
    start, end = losses[low], losses[-1]
    fell = start < losses[0]
    if fell and end > 1.5 * start > 0 and end > (losses[0] + start) / 2 and rows[-1]["lr"] <= rows[low]["lr"]:
        return f"the loss rose again, from {start:.3f} in epoch {low + 1} to {end:.3f}: try lr={facts.lr / 10:g}"
    moved = max(losses) - min(losses) > 0.1 * max(losses)  # else the rate may as well be far too low
    if facts.initial and min(losses) > 1.2 * facts.initial and moved:
        why = f"the loss stayed above {facts.initial:.3f}, what knowing nothing costs"
        return f"{why}: try lr={facts.lr / 10:g}, and stage=sanity if that changes nothing"
    return ""


def slow(rows: Rows, facts: Facts) -> str:
    """The loss falls clearly, as fast at the end of the high learning rates as at first, but by little in all."""
    if not facts.initial or not facts.clean:
        return ""
    losses, high = [row["loss"] for row in rows], _high(rows)
    half = len(high) // 2
    if len(high) < 5 or losses[0] < 0.85 * facts.initial or losses[-1] < 0.75 * max(losses[0], facts.initial):
        return ""
    first, last = (high[0] - high[half]) / half, (high[half] - high[-1]) / (len(high) - 1 - half)
    if high[0] - high[-1] > CLEAR * _noise(high) and last > 0.5 * first > 0:
        return (
            f"the loss falls slowly and steadily, from {losses[0]:.3f} to {losses[-1]:.3f}: "
            f"try lr={5 * facts.lr:g}, or stage=find_lr"
        )
    return ""


def unmoved(rows: Rows, facts: Facts) -> str:
    """The loss stayed where it began, and that is no better than knowing nothing."""
    losses = [row["loss"] for row in rows]
    if not facts.initial or not facts.clean or len(rows) < 4 or min(losses) < 0.9 * facts.initial:
        return ""
    if max(losses) - min(losses) > 0.05 * max(losses):
        return ""
    return (
        f"the loss hardly moved from {losses[0]:.3f}: the learning rate, or images that say nothing of the target; "
        "try stage=find_lr, then stage=sanity"
    )


def bad_start(losses: Sequence[float], facts: Facts) -> str:
    """The first epoch lost far more than knowing nothing costs, and the next ones did not."""
    if not facts.initial or len(losses) < 2 or losses[0] < 2 * facts.initial + 0.5 or losses[1] > facts.initial:
        return ""
    return (
        f"the first epoch lost {losses[0]:.3f}, though knowing nothing costs {facts.initial:.3f}: a bad "
        "initialisation, or a start too fast; stage=sanity looks, head='linear(init=zero)' or a longer warm-up mends"
    )


# --- loss and score -------------------------------------------------------------------------------------------------


def over_fit(rows: Rows, facts: Facts) -> str:
    """The score fell clearly from its best while the training loss went on falling."""
    scores, noise = _scores(rows, facts)
    if noise is None:
        return ""
    best = scores.index(max(scores))
    end = statistics.mean(scores[-max(2, len(scores) // 4) :])
    if best + 1 > LATE * len(scores) or best + 1 <= max(1, EARLY * len(scores)):
        return ""
    worse = _smooth_peak(scores, best) - end > CLEAR * noise
    if worse and rows[-1]["loss"] < 0.9 * rows[best]["loss"]:
        mends = "more of it (augment=medium() or heavy())" if facts.augmented else "augment=light()"
        return (
            f"over-fitting: since epoch {best + 1} the score falls while the training loss goes on falling: try "
            f"{mends}, {'mix=mixup(), ' if facts.clean else ''}weight_decay in optim, or epochs={best + 1}"
        )
    return ""


def steps(rows: Rows, facts: Facts) -> str:
    """The best epoch in the first tenth, or the score still rising clearly in the last quarter."""
    scores, noise = _scores(rows, facts)
    if noise is None or len(scores) < facts.epochs:  # it was stopped early
        return ""
    count, best = len(scores), scores.index(max(scores))
    quarter = max(2, count // 4)
    last, before = scores[-quarter:], scores[-2 * quarter : -quarter]
    if count >= 10 and best + 1 <= EARLY * count and scores[best] - statistics.mean(last) > CLEAR * noise:
        fewer = max(2, 3 * (best + 1))
        why = f"the best epoch is {best + 1} of {count}, and the rest only harms"
        return f"{why}: try epochs={fewer}, or lr={facts.lr / 3:.2g}"
    rise = statistics.mean(last) - statistics.mean(before)
    whole = max(scores) - min(scores)
    if count >= 8 and best + 1 > LATE * count and rise > CLEAR * noise and rise > 0.05 * whole:
        return f"the best epoch is {best + 1} of {count} and the score was still rising: try epochs={2 * facts.epochs}"
    return ""


def under_fit(rows: Rows, facts: Facts) -> str:
    """Loss and score stand still, at high learning rates, and the loss is still most of what knowing nothing costs."""
    scores, noise = _scores(rows, facts)
    if noise is None or not facts.initial or not facts.clean:
        return ""
    high, half = _high(rows), len(scores) // 2
    still = statistics.mean(scores[half:]) - statistics.mean(scores[half // 2 : half]) < CLEAR * noise
    if len(high) < 5 or high[-1] < 0.5 * facts.initial or not still:
        return ""
    if high[-3] - high[-1] > 0.02 * abs(high[-3]):
        return ""
    side = math.ceil(1.5 * facts.image_size / 32) * 32 if facts.image_size >= 32 else round(1.5 * facts.image_size)
    mends = f"a larger backbone, image_size={side}" + (", less augment" if facts.augmented else "")
    return f"under-fitting, or the images say no more: the loss stands still at {rows[-1]['loss']:.3f}; try {mends}"


def _high(rows: Rows) -> list[float]:
    """The losses of the epochs whose learning rate is at least half of the highest: later ones stand still anyway."""
    top = max(row["lr"] for row in rows)
    return [row["loss"] for row in rows if row["lr"] >= top / 2]


def _scores(rows: Rows, facts: Facts) -> tuple[list[float], float | None]:
    """The scores, higher is better, and their noise from epoch to epoch; None where too few of them tell it."""
    if len(rows) < 6 or any(not math.isfinite(row.get("score", math.nan)) for row in rows):
        return [], None
    scores = [row["score"] if facts.greater else -row["score"] for row in rows]
    return scores, max(_noise(scores), 1e-3 * max(abs(score) for score in scores))


def _noise(values: Sequence[float]) -> float:
    """The deviation from epoch to epoch that second differences show, which a steady rise or fall does not touch.

    Their median size over 0.6745 · √6: the median of |normal|, and the deviation of x − 2y + z.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(bends) / (0.6745 * math.sqrt(6))


def _smooth_peak(scores: Sequence[float], best: int) -> float:
    """The mean of the best score and its neighbours, since a lone best epoch is luck."""
    return statistics.mean(scores[max(0, best - 1) : best + 2])


# --- small images ---------------------------------------------------------------------------------------------------


def small_images(config: Config) -> str:
    """A line that points to model=small_image where a net made for large images learns small ones from scratch."""
    from_scratch = not (config.pretrained or config.weights)
    if not backbone_names.is_coarse_from_scratch(config.backbone, config.stem, config.image_size, from_scratch):
        return ""
    name = backbone_names.split(config.backbone)[0]
    stem = ", and stem=small() keeps their size" if "resnet" in name or "resnext" in name else ""
    return (
        f"{name} shrinks {config.image_size} px at once and starts from nothing; model=small_image is made for images "
        f"of at most {backbone_names.SMALL_SIDE} px{stem}"
    )


# --- fine-tuning ----------------------------------------------------------------------------------------------------

FEW_ROWS = 5000  # below it a network's weights outnumber what the rows say by far; a rule of thumb
GREY_SHARE = 0.5  # of images without colour from which they are no photographs
PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's mean and deviation of each channel

FINETUNES = {  # (few rows, like photographs) → what to try; the CS231n notes on transfer learning
    (True, True): "finetune=head_only(), then finetune=head_first(epochs=2): learning every weight over-fits soonest",
    (True, False): "finetune=top(share=0.5): deep features are of other things, shallow ones of any image",
    (False, True): "finetune=head_faster(factor=10), or a lower lr: there is enough to move every weight a little",
    (False, False): "finetune=all_alike(), from pretrained weights all the same; pretrained=false where OOF says so",
}  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """What the training images look like: channels, median side in pixels, share with colour, and the levels.

    mean, std: of each channel in 0…1, or empty where they were not measured.
    """

    channels: int
    side: float
    coloured: float
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    def unlike(self) -> list[str]:
        """Why they are unlike the photographs that backbones were pretrained on; empty if nothing says so."""
        found = [f"{self.channels} channels"] if self.channels not in (1, 3) else []
        found += ["grey"] if self.channels == 1 or self.coloured < GREY_SHARE else []
        found += [f"{self.side:.0f} px"] if self.side < backbone_names.SMALL_SIDE else []
        usual = list(zip(self.mean, self.std, *PHOTOGRAPHS, strict=False)) if len(self.mean) == 3 else []
        if any(abs(mean - theirs) > spread for mean, _, theirs, spread in usual):
            found.append("darker or brighter")
        if any(not spread / 2 < std < spread * 2 for _, std, _, spread in usual):
            found.append("of another contrast")
        return found


def finetuning(rows: int, pictures: Pictures, finetune: str, pretrained: bool) -> str:
    """Which fine-tuning to try first, by the number of rows and what the images look like; empty from random weights.

    It is a prior, not a measurement: nothing is set by it.
    """
    if not pretrained:
        return ""
    few, unlike = rows < FEW_ROWS, pictures.unlike()
    size = f"{rows} training rows are {'few' if few else 'many'} (the line is drawn at {FEW_ROWS})"
    looks = f"the images are unlike photographs ({', '.join(unlike)})" if unlike else "the images look like photographs"
    return f"fine-tuning: {size} and {looks}: try {FINETUNES[few, not unlike]}. OOF decides; {finetune} is set."
