"""Sizes, models and lengths of training that suit the images and their number."""

from __future__ import annotations

import math
from collections import Counter

from pipeline import registry
from pipeline.config import read_named
from pipeline.discover import mask_settings
from pipeline.discover.columns import column
from pipeline.discover.draft import Draft
from pipeline.discover.looks import Looks
from pipeline.discover.rows import Rows
from pipeline.discover.targets import Target

MODELS = "files of configs/model/; the quick recipe takes the first"
SMALL = 64  # images up to this side stay at their own size, and train from random weights
USUAL = 224
FOLDS = 5
FROM_RANDOM, FROM_PRETRAINED = 1000, 2000  # steps that a small net needs to get anywhere
STEPS = 20  # an epoch has at least so many where possible
LEAST_BATCH, MOST_BATCH, LARGE_BATCH = 8, 64, 32
EACH = 4  # images of an identity in a batch, or more


def settle_training(rows: Rows, target: Target, looks: Looks, draft: Draft) -> None:
    """Folds, models, size, batch, epochs, rate and augmentation."""
    folds = _settle_folds(rows, target, draft)
    spatial, open_set = bool(target.facts.get("spatial")), bool(target.facts.get("open_set"))
    small = _settle_size(looks, draft) <= SMALL if not spatial else True
    if spatial:
        mask_settings.settle_sizes(looks, draft)
        mask_settings.settle_models(draft)
    elif small:
        draft.set("models", ["small_image", "resnet18"], f"{MODELS}{'; reid_small: the strong baseline' * open_set}")
        draft.set("pretrained", False, "small images: from random weights, so nothing is downloaded")
    else:
        draft.set("models", ["resnet18", "effnet_b0"], f"{MODELS}{'; reid_resnet50: the strong baseline' * open_set}")
        draft.set(
            "pretrained", True, "timm's weights, downloaded once; without a network pretrained=false, or weights=FILE"
        )
    rows_learned = len(rows.table) * (1 - 1 / folds) * int(draft.value("tiles.repeat", 1))
    batch = batch_size(rows_learned, MOST_BATCH if draft.value("image_size") <= 128 else LARGE_BATCH)
    if open_set:
        batch = _settle_pairs(rows, target, draft.given.get("batch_size", batch), folds, draft)
    steps = max(1, int(rows_learned // draft.given.get("batch_size", batch)))
    draft.set("batch_size", batch, f"{steps} steps an epoch of {rows_learned:.0f} {'images' if spatial else 'rows'}")
    epochs = _epochs(steps, mask_settings.STEPS if spatial else FROM_RANDOM if small else FROM_PRETRAINED, small)
    draft.set("epochs", epochs, f"about {epochs * steps} steps in all")
    own = {name: read_named("model", name) for name in draft.value("models")}
    theirs = [name for name, layer in own.items() if "lr" in layer]
    small = small and not spatial
    why = "for random weights" if small else "for pretrained weights"
    draft.set("lr", 1e-3 if small else 3e-4, why + (f"; {', '.join(theirs)} has its own" if theirs else ""))
    _settle_augment(target, small, draft)
    for name, layer in own.items():
        shadowed = sorted(draft.given.keys() & layer.keys())
        if shadowed:
            draft.notes.append(
                f"{', '.join(shadowed)}: configs/model/{name}.yaml has its own, which wins; edit it, or say it "
                "with each command"
            )


def _settle_pairs(rows: Rows, target: Target, batch: int, folds: int, draft: Draft) -> int:
    """The strong baseline of re-identification but for its centre loss; returns the batch that the sampler fills."""
    identities = len(column(rows.table, target.columns[0]).distinct)
    p = max(2, min(batch // EACH, int(identities * (1 - 1 / folds))))
    k = max(2, batch // p)
    draft.set("head", "bnneck()", "losses of pairs see what lies before it, the search what lies behind it")
    draft.set("pairs", ["triplet()"], "beside the loss of classes: rows of a batch against each other")
    draft.set("sampler", f"identities(p={p},k={k})", f"{p} identities with {k} images each: a batch for pairs")
    return p * k


def batch_size(rows: float, most: int) -> int:
    """The largest power of two, 8 at least, that leaves 20 steps an epoch."""
    fits = 2 ** int(math.log2(max(1, rows / STEPS)))
    return int(min(most, max(LEAST_BATCH, fits)))


def _epochs(steps: int, wanted: int, small: bool) -> int:
    return min(30 if small else 20, max(10, math.ceil(wanted / steps / 5) * 5))


def _settle_size(looks: Looks, draft: Draft) -> int:
    side = looks.side
    if draft.value("data.box"):
        return int(draft.set("image_size", USUAL, "the box's content, at the size the models were made for"))
    if side <= SMALL:
        size = max(16, 8 * math.ceil(side / 8))
        return int(draft.set("image_size", size, f"near the images' own size: {looks.text()}"))
    if side <= 160:
        size = 32 * math.ceil(side / 32)
        return int(draft.set("image_size", size, f"near the images' own size: {looks.text()}"))
    return int(draft.set("image_size", USUAL, f"the usual size of the models; the images have {looks.text()}"))


def _settle_folds(rows: Rows, target: Target, draft: Draft) -> int:
    count, why = FOLDS, "the usual number"
    open_set = target.facts.get("open_set")
    counts = Counter() if open_set else _class_counts(rows, target)
    rare = {name: number for name, number in counts.items() if number < FOLDS}
    if rare and len(counts) == 2:  # without either class a fold has no score; of many classes more folds teach more
        count = max(2, min(rare.values()))
        why = f"class {min(rare, key=lambda name: rare[name])} has only {min(rare.values())} rows"
    elif rare:
        draft.notes.append(f"{len(rare)} classes have fewer rows than there are folds")
    group = draft.value("data.group")
    if group:
        groups = column(rows.table, group).cells.nunique()
        if groups < count:
            count, why = max(2, groups), f"{group} has only {groups} values"
    identities = column(rows.table, target.columns[0]).cells.nunique() if open_set else 2 * count
    if identities < 2 * count:
        count, why = max(2, identities // 2), f"{target.columns[0]} has only {identities} values, and a fold needs two"
    count = min(count, max(2, len(rows.table)))
    return int(draft.set("folds.count", count, why))


def _class_counts(rows: Rows, target: Target) -> Counter[str]:
    """Rows a class; empty for numbers and masks."""
    if target.facts["form"] == "numbers" or not target.columns:
        return Counter()
    if len(target.columns) > 1:
        marks = {name: column(rows.table, name).numbers for name in target.columns}
        return Counter({name: int((found > 0).sum()) for name, found in marks.items() if found is not None})
    cells = column(rows.table, target.columns[0]).filled
    if target.separator:
        mark = None if target.separator == " " else target.separator
        return Counter(label.strip() for cell in cells for label in cell.split(mark) if label.strip())
    return Counter(cells)


def _settle_augment(target: Target, small: bool, draft: Draft) -> None:
    if "period" in registry.find("tasks", registry.parse(target.task).name).arguments:
        draft.set("augment", "none()", "an angle does not bear the rotations of light()")
    elif draft.value("symmetry") == "none" or (small and not target.facts.get("spatial")):
        why = "small shifts, turns and scales" + ("" if small else "; with symmetry: hflip, medium() is stronger")
        draft.set("augment", "light()", why)
    else:
        draft.set("augment", "medium()", "crops, flips, brightness and cutout, as symmetry allows")
