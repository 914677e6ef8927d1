"""Losses of maps alone, overlaps and borders; those of rows that serve each pixel too are in ``parts/losses.py``.

Form: as there, ``f(outputs (B, C, H, W), target (B, C, H, W), *, …) -> (B,) float32``; void is where target is below 0.
An overlap is counted for each plane of each image or, with ``batch=true``, for each plane of the whole batch, and every
row is given that one value. A name that ends in ``_softmax`` takes class_masks, one without it masks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.parts.losses import known, mean_of, pixels
from pipeline.registry import part

# --- overlaps -----------------------------------------------------------------------------------------------------


@part(
    source="Milletari et al. 2016 (V-Net), with |p| + |t| below; smp.losses.DiceLoss",
    takes=("masks",),
    allowed={"smooth": (0, None)},
)
def dice(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, batch: bool = False, skip_empty: bool = False
) -> Tensor:
    """One minus Dice of chances, overlap over the mean of both areas; the mean over planes.

    smooth: pixels added to both sides of the fraction; with 0 an empty plane has no gradient. batch: one overlap over
    the whole batch, steadier where masks are small or often empty. skip_empty: planes without anything true count not.
    """
    return _tversky(torch.sigmoid(logits.float()), target, 0.5, 0.5, smooth, batch, skip_empty)


@part(
    source="Milletari et al. 2016 (V-Net), over the softmax; smp.losses.DiceLoss",
    takes=("class_masks",),
    allowed={"smooth": (0, None)},
)
def dice_softmax(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, batch: bool = False, skip_empty: bool = True
) -> Tensor:
    """One minus Dice of each class's chances, the mean over classes.

    smooth, batch: as dice. skip_empty: classes that are not in the image (or batch) count not.
    """
    return _tversky(functional.softmax(logits.float(), dim=1), target, 0.5, 0.5, smooth, batch, skip_empty)


@part(
    source="Rahman & Wang 2016 (Optimizing intersection-over-union); smp.losses.JaccardLoss",
    takes=("masks",),
    allowed={"smooth": (0, None)},
)
def jaccard(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, batch: bool = False, skip_empty: bool = False
) -> Tensor:
    """One minus the Jaccard index (IoU) of chances, overlap over union; the mean over planes.

    smooth, batch, skip_empty: as dice.
    """
    return _tversky(torch.sigmoid(logits.float()), target, 1.0, 1.0, smooth, batch, skip_empty)


@part(
    source="Rahman & Wang 2016 (Optimizing intersection-over-union), over the softmax; smp.losses.JaccardLoss",
    takes=("class_masks",),
    allowed={"smooth": (0, None)},
)
def jaccard_softmax(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, batch: bool = False, skip_empty: bool = True
) -> Tensor:
    """One minus the Jaccard index (IoU) of each class's chances, the mean over classes.

    smooth, batch, skip_empty: as dice_softmax.
    """
    return _tversky(functional.softmax(logits.float(), dim=1), target, 1.0, 1.0, smooth, batch, skip_empty)


@part(
    source="Salehi et al. 2017 (Tversky loss)",
    takes=("masks",),
    allowed={"alpha": (0, None), "beta": (0, None), "smooth": (0, None)},
)
def tversky(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7,
    smooth: float = 1.0, batch: bool = False, skip_empty: bool = False,
) -> Tensor:  # fmt: skip
    """One minus overlap / (overlap + alpha · what is too much + beta · what is missing); the mean over planes.

    alpha: what a false positive pixel weighs. beta: a false negative one; ½ and ½ is dice, 1 and 1 jaccard. smooth:
    pixels added to both sides of the fraction. batch, skip_empty: as dice.
    """
    return _tversky(torch.sigmoid(logits.float()), target, alpha, beta, smooth, batch, skip_empty)


@part(
    source="Salehi et al. 2017 (Tversky loss), over the softmax",
    takes=("class_masks",),
    allowed={"alpha": (0, None), "beta": (0, None), "smooth": (0, None)},
)
def tversky_softmax(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7,
    smooth: float = 1.0, batch: bool = False, skip_empty: bool = True,
) -> Tensor:  # fmt: skip
    """One minus the Tversky index of each class's chances, the mean over classes.

    alpha, beta, smooth: as tversky. batch, skip_empty: as dice_softmax.
    """
    return _tversky(functional.softmax(logits.float(), dim=1), target, alpha, beta, smooth, batch, skip_empty)


@part(
    source="Abraham & Khan 2019 (Focal Tversky), whose exponent is 1 / gamma; smp.losses.TverskyLoss",
    takes=("masks",),
    allowed={"alpha": (0, None), "beta": (0, None), "gamma": (0.1, 10), "smooth": (0, None)},
)
def focal_tversky(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75,
    smooth: float = 1.0, batch: bool = False, skip_empty: bool = False,
) -> Tensor:  # fmt: skip
    """The Tversky loss of each plane to a power below one, which keeps its pull on planes that are nearly right.

    gamma: the power; above one it looks at the worst planes instead. alpha, beta, smooth, batch, skip_empty: as
    tversky.
    """
    return _tversky(torch.sigmoid(logits.float()), target, alpha, beta, smooth, batch, skip_empty, gamma)


@part(
    source="Abraham & Khan 2019 (Focal Tversky), over the softmax; its exponent is 1 / gamma",
    takes=("class_masks",),
    allowed={"alpha": (0, None), "beta": (0, None), "gamma": (0.1, 10), "smooth": (0, None)},
)
def focal_tversky_softmax(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75,
    smooth: float = 1.0, batch: bool = False, skip_empty: bool = True,
) -> Tensor:  # fmt: skip
    """The Tversky loss of each class to a power below one, which keeps its pull on classes that are nearly right.

    gamma: the power; above one it looks at the worst classes instead. alpha, beta, smooth, batch, skip_empty: as
    tversky_softmax.
    """
    return _tversky(functional.softmax(logits.float(), dim=1), target, alpha, beta, smooth, batch, skip_empty, gamma)


# --- of the losses of pixels --------------------------------------------------------------------------------------


@part(
    source="border weights: Ronneberger et al. 2015 (U-Net), eq. 2, as a flat band: a morphological gradient",
    takes=("masks", "class_masks"),
    calls={"loss": "losses"},
    inner={"loss": "pixelwise"},
    allowed={"weight": (0, None), "width": (1, 100)},
)
def boundary(outputs: Tensor, target: Tensor, *, weight: float = 4.0, width: int = 2, loss: str = "bce()") -> Tensor:
    """Any loss of pixels with more weight near borders; by default boundary-weighted BCE.

    weight: what a pixel at a border weighs beyond 1. width: so many pixels on both sides of a border are near it. loss:
    the call-string of a pixelwise loss; of class_masks such as cross_entropy(). It is the mean by weight, so that the
    lr keeps its meaning.
    """
    near = 1 + weight * borders(target, width)
    return mean_of(pixels(loss, outputs, target), near * known(target))


@part(
    source="Shrivastava et al. 2016 for pixels; Wu et al. 2016 (Bridging category-level and instance-level), sec. 3.2",
    takes=("masks", "class_masks"),
    calls={"loss": "losses"},
    inner={"loss": "pixelwise"},
    allowed={"k": (0, 1)},
)
def hard_pixels(outputs: Tensor, target: Tensor, *, k: float = 0.25, loss: str = "bce()") -> Tensor:
    """Any loss of pixels over the k share of each image's known pixels that it is largest for: OHEM, top-k.

    k: the share kept, 0–1, at least one pixel. loss: the call-string of a pixelwise loss; of class_masks such as
    cross_entropy().
    """
    there = known(target)
    values = pixels(loss, outputs, target).masked_fill(~there, 0).flatten(1)  # losses of pixels are never below 0
    kept = (k * there.flatten(1).sum(dim=1)).round().clamp(min=1)
    largest = values.topk(max(1, int(kept.max())), dim=1).values
    among = torch.arange(largest.shape[1], device=largest.device) < kept[:, None]
    return (largest * among).sum(dim=1) / kept


def borders(target: Tensor, width: int) -> Tensor:
    """(B, H, W) in 0…1: how much any plane of a target (B, C, H, W) changes within so many pixels of each one.

    The morphological gradient, dilation minus erosion, in a square; void is no border.
    """
    void = target < 0
    window = {"kernel_size": 2 * width + 1, "stride": 1, "padding": width}
    most = functional.max_pool2d(target.float().clamp(min=0), **window)
    least = -functional.max_pool2d(-target.float().masked_fill(void, 1), **window)
    return (most - least).clamp(min=0).amax(dim=1)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _tversky(
    chances: Tensor, target: Tensor, alpha: float, beta: float, smooth: float, batch: bool, skip_empty: bool,
    gamma: float = 1.0,
) -> Tensor:  # fmt: skip
    """(B,) the mean over planes of (1 - Tversky index)^gamma, of each image's pixels or of the batch's together."""
    dims = (0, 2, 3) if batch else (2, 3)
    inside, truth = (target >= 0).float(), target.float().clamp(min=0)
    overlap = (chances * truth).sum(dims)
    wrong = alpha * (chances * (inside - truth)).sum(dims) + beta * ((1 - chances) * truth).sum(dims)
    # one minus the index, written so that no digits cancel
    losses = wrong / (overlap + wrong + smooth).clamp(min=1e-12)
    if gamma != 1:  # at 0 a power below one has no finite gradient
        losses = torch.where(losses > 0, losses.clamp(min=1e-12) ** gamma, 0.0)
    counted = truth.sum(dims) > 0 if skip_empty else torch.ones_like(losses, dtype=torch.bool)
    rows = (losses * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
    return rows.expand(len(chances)) if batch else rows
