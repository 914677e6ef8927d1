"""Losses of maps against slow references in plain Python, pixel by pixel, and against segmentation_models_pytorch."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import losses, losses_masks
from pipeline.torchvision_fix import fix_torchvision

B, C, H, W = 3, 3, 6, 5
Planes = list[list[float]]  # of one image: planes, each its pixels in a row


def drawn(form: str, soft: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and a target with some void; the last row is void as a whole."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(B, C, H, W)
    if form == "class_masks":
        classes = torch.randint(C, (B, H, W))
        target = torch.nn.functional.one_hot(classes, C).movedim(-1, 1).float()
        target = 0.8 * target + 0.2 / C if soft else target
    else:
        target = torch.rand(B, C, H, W) if soft else (torch.rand(B, C, H, W) > 0.6).float()
    target[0, :, 2, 1:4] = target[-1] = -1
    return logits, target


def pixel(table: torch.Tensor, row: int, y: int, x: int) -> list[float]:
    return table[row, :, y, x].tolist()


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


# --- losses of rows, a pixel a row --------------------------------------------------------------------------------

PIXELWISE = [
    (name, form)
    for name, part in registry.parts("losses").items()
    for form in part.facts["takes"]
    if form in ("masks", "class_masks") and part.facts.get("pixelwise")
]


def call_of(name: str) -> str:
    return f"{name}(weights=[1.0, 0.5, 2.0])" if name == "weighted_cross_entropy" else f"{name}()"


def test_the_losses_of_rows_that_serve_pixels() -> None:
    decorated = {name for name, part in registry.parts("losses").items() if hasattr(part.load(), "__wrapped__")}
    assert decorated == {name for name, _ in PIXELWISE}
    assert {name for name, form in PIXELWISE if form == "masks"} == {"bce", "focal_labels", "asymmetric"}
    assert {name for name, form in PIXELWISE if form == "class_masks"} == {
        "cross_entropy", "focal", "weighted_cross_entropy", "poly1", "symmetric_cross_entropy", "bi_tempered",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "form"), PIXELWISE)
@pytest.mark.parametrize("soft", [False, True])
def test_a_pixelwise_loss_is_the_mean_of_that_of_its_known_pixels(name: str, form: str, soft: bool) -> None:
    logits, target = drawn(form, soft)
    loss = registry.build("losses", call_of(name))
    expected = torch.zeros(B)
    for row in range(B):
        places = [(y, x) for y in range(H) for x in range(W) if min(pixel(target, row, y, x)) >= 0]
        each = [loss(logits[row, :, y, x][None], target[row, :, y, x][None]).item() for y, x in places]
        expected[row] = sum(each) / len(each) if each else 0.0
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["masks", "class_masks"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_of_maps_is_the_mean_of_that_of_its_known_pixels(form: str, temperature: float) -> None:
    logits, teacher = drawn(form, soft=True)
    distil = losses.DISTILLATIONS[form]
    expected = torch.zeros(B)
    for row in range(B):
        places = [(y, x) for y in range(H) for x in range(W) if min(pixel(teacher, row, y, x)) >= 0]
        rows = [(logits[row, :, y, x][None], teacher[row, :, y, x][None]) for y, x in places]
        expected[row] = sum(distil(*pair, temperature=temperature).item() for pair in rows) / max(len(rows), 1)
    logits.requires_grad_()
    found = distil(logits, teacher, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[teacher < 0] == 0).all()


# --- overlaps -----------------------------------------------------------------------------------------------------


def slow_overlaps(
    logits: torch.Tensor, target: torch.Tensor, form: str, rows: list[int], alpha: float, beta: float, smooth: float
) -> list[tuple[float, bool]]:
    """Of each plane over the pixels of these rows: one minus the index, and whether anything is true in it."""
    planes = [[0.0, 0.0, 0.0, 0.0] for _ in range(C)]
    for row in rows:
        for y in range(H):
            for x in range(W):
                scores, truth = pixel(logits, row, y, x), pixel(target, row, y, x)
                chances = softmax(scores) if form == "class_masks" else [sigmoid(score) for score in scores]
                for counts, p, t in zip(planes, chances, truth, strict=True):
                    if t >= 0:
                        counts[0] += p * t
                        counts[1] += p * (1 - t)
                        counts[2] += (1 - p) * t
                        counts[3] += t
    return [
        (1 - (both + smooth) / (both + alpha * over + beta * under + smooth), true > 0)
        for both, over, under, true in planes
    ]


OVERLAPS = [
    ("dice", {}, 0.5, 0.5, 1.0, 1.0),
    ("dice", {"smooth": 4.0}, 0.5, 0.5, 4.0, 1.0),
    ("jaccard", {}, 1.0, 1.0, 1.0, 1.0),
    ("tversky", {}, 0.3, 0.7, 1.0, 1.0),
    ("tversky", {"alpha": 0.9, "beta": 0.2, "smooth": 3.0}, 0.9, 0.2, 3.0, 1.0),
    ("focal_tversky", {}, 0.3, 0.7, 1.0, 0.75),
    ("focal_tversky", {"gamma": 2.0}, 0.3, 0.7, 1.0, 2.0),
]


@pytest.mark.parametrize(("name", "keywords", "alpha", "beta", "smooth", "gamma"), OVERLAPS)
@pytest.mark.parametrize("form", ["masks", "class_masks"])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("skip_empty", [False, True])
def test_overlap_is_the_slow_one(name, keywords, alpha, beta, smooth, gamma, form, batch, skip_empty) -> None:
    logits, target = drawn(form, soft=name == "dice")
    target[1, 0] = 0  # nothing of plane 0 in an image
    if form == "class_masks":
        target[1] = target[1] / target[1].sum(dim=0).clamp(min=1e-6)
    loss = getattr(losses_masks, name + "_softmax" * (form == "class_masks"))
    found = loss(logits, target, batch=batch, skip_empty=skip_empty, **keywords)
    expected = []
    for rows in [list(range(B))] * B if batch else [[row] for row in range(B)]:
        planes = slow_overlaps(logits, target, form, rows, alpha, beta, smooth)
        counted = [max(value, 0) ** gamma for value, true in planes if true or not skip_empty]
        expected.append(sum(counted) / len(counted) if counted else 0.0)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def smp_losses():
    fix_torchvision()
    return pytest.importorskip("segmentation_models_pytorch").losses


@pytest.mark.parametrize(
    ("name", "theirs", "keywords"),
    [
        ("dice", "DiceLoss", {}),
        ("jaccard", "JaccardLoss", {}),
        ("tversky", "TverskyLoss", {"alpha": 0.3, "beta": 0.7}),
    ],
)
@pytest.mark.parametrize(("form", "mode"), [("masks", "multilabel"), ("class_masks", "multiclass")])
def test_overlap_over_the_batch_is_that_of_smp(name: str, theirs: str, keywords: dict, form: str, mode: str) -> None:
    logits, target = drawn(form)
    logits, target = logits[1:2], target[1:2]  # without void
    other = target.argmax(dim=1) if form == "class_masks" else target
    loss = getattr(losses_masks, name + "_softmax" * (form == "class_masks"))
    expected = getattr(smp_losses(), theirs)(mode, smooth=1.0, **keywords)(logits, other)
    found = loss(logits, target, batch=True, skip_empty=True, **keywords)
    torch.testing.assert_close(found.mean(), expected)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal_tversky"])
def test_overlap_of_an_empty_mask_falls_with_what_is_answered(name: str) -> None:
    loss, empty = getattr(losses_masks, name), torch.zeros(1, 1, 4, 4)
    values = [float(loss(torch.full((1, 1, 4, 4), height), empty)) for height in (4.0, 0.0, -4.0, -30.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 1e-6
    assert float(loss(torch.zeros(1, 1, 4, 4), empty, skip_empty=True)) == 0


# --- Lovász -------------------------------------------------------------------------------------------------------


def slow_lovasz(errors: list[float], truth: list[bool]) -> float:
    """Berman et al. 2018, eq. 8: over errors in falling order, each times the growth of the Jaccard loss."""
    order = sorted(range(len(errors)), key=lambda place: -errors[place])
    value, before, wrong = 0.0, 0.0, []
    for place in order:
        wrong.append(place)
        found = sum(truth) - sum(truth[k] for k in wrong)
        union = sum(truth) + sum(not truth[k] for k in wrong)
        now = 1 - found / union
        value += errors[place] * (now - before)
        before = now
    return value


def test_lovasz_hinge_of_maps_is_the_slow_one_of_each_plane() -> None:
    logits, target = drawn("masks")
    expected = []
    for row in range(B):
        planes = []
        for plane in range(C):
            pairs = list(zip(logits[row, plane].flatten().tolist(), target[row, plane].flatten().tolist(), strict=True))
            known = [(score, truth > 0) for score, truth in pairs if truth >= 0]
            errors = [max(0.0, 1 - score if truth else 1 + score) for score, truth in known]
            planes.append(slow_lovasz(errors, [truth for _, truth in known]) if known else 0.0)
        expected.append(sum(planes) / C)
    torch.testing.assert_close(losses.lovasz_hinge(logits, target), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_lovasz_softmax_of_maps_is_the_slow_one_over_all_known_pixels() -> None:
    logits, target = drawn("class_masks")
    places = [(r, y, x) for r in range(B) for y in range(H) for x in range(W) if min(pixel(target, r, y, x)) >= 0]
    classes = []
    for c in range(C):
        truth = [pixel(target, *place)[c] > 0 for place in places]
        chances = [softmax(pixel(logits, *place))[c] for place in places]
        errors = [1 - p if t else p for p, t in zip(chances, truth, strict=True)]
        classes.append(slow_lovasz(errors, truth))
    found = losses.lovasz_softmax(logits, target)
    assert float(found.mean()) == pytest.approx(sum(classes) / C, rel=1e-4)
    assert found[-1] == 0, "the row is void"


@pytest.mark.parametrize(("form", "mode"), [("masks", "binary"), ("class_masks", "multiclass")])
def test_lovasz_is_that_of_smp(form: str, mode: str) -> None:
    logits, target = drawn(form)
    if form == "masks":
        logits, target = logits[:2, :1], target[:2, :1]
        other, loss, keywords = torch.where(target < 0, 255, target), losses.lovasz_hinge, {"per_image": True}
    else:
        other, loss, keywords = target.argmax(dim=1), losses.lovasz_softmax, {"per_image": False}
        other = torch.where((target < 0).any(dim=1), 255, other)
    expected = smp_losses().LovaszLoss(mode, ignore_index=255, **keywords)(logits, other)
    torch.testing.assert_close(loss(logits, target).mean(), expected, rtol=1e-4, atol=1e-5)


# --- borders and hard pixels --------------------------------------------------------------------------------------


def slow_near(target: torch.Tensor, row: int, y: int, x: int, width: int) -> float:
    """Whether, of any plane, 0 and 1 both lie within so many pixels."""
    most = 0.0
    for plane in range(C):
        around = [
            float(target[row, plane, v, u])
            for v in range(max(0, y - width), min(H, y + width + 1))
            for u in range(max(0, x - width), min(W, x + width + 1))
            if target[row, plane, v, u] >= 0
        ]
        most = max(most, max(around) - min(around) if around else 0.0)
    return most


@pytest.mark.parametrize("form", ["masks", "class_masks"])
@pytest.mark.parametrize(("width", "weight"), [(1, 4.0), (2, 9.0)])
def test_boundary_weighs_pixels_by_their_distance_from_a_border(form: str, width: int, weight: float) -> None:
    logits, _ = drawn(form)
    target = torch.zeros(B, C, H, W)
    target[:, 0] = 1
    target[1, :2, 3:, 3:] = torch.tensor([0.0, 1.0])[:, None, None]
    target[2, :, :2, :2] = -1
    call = "bce()" if form == "masks" else "cross_entropy()"
    loss = registry.build("losses", call)
    expected = []
    for row in range(B):
        above = below = 0.0
        for y in range(H):
            for x in range(W):
                if min(pixel(target, row, y, x)) >= 0:
                    share = 1 + weight * slow_near(target, row, y, x, width)
                    above += share * loss(logits[row, :, y, x][None], target[row, :, y, x][None]).item()
                    below += share
        expected.append(above / below)
    found = losses_masks.boundary(logits, target, width=width, weight=weight, loss=call)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert losses_masks.borders(target, width)[[0, 2]].sum() == 0, "void and the image's edge are no borders"
    torch.testing.assert_close(losses_masks.boundary(logits, target, weight=0.0, loss=call), loss(logits, target))


@pytest.mark.parametrize("k", [0.0, 0.25, 1.0])
def test_hard_pixels_are_the_largest_of_each_image(k: float) -> None:
    logits, target = drawn("masks")
    expected = []
    for row in range(B):
        places = [(y, x) for y in range(H) for x in range(W) if min(pixel(target, row, y, x)) >= 0]
        each = [losses.bce(logits[row, :, y, x][None], target[row, :, y, x][None]).item() for y, x in places]
        kept = max(1, round(k * len(each)))
        expected.append(sum(sorted(each, reverse=True)[:kept]) / kept)
    torch.testing.assert_close(losses_masks.hard_pixels(logits, target, k=k), torch.tensor(expected))


@pytest.mark.parametrize("name", ["boundary", "hard_pixels"])
def test_a_loss_without_a_value_a_pixel_is_refused_before_any_work(name: str) -> None:
    with pytest.raises(UserError, match=r"loss='dice\(\)', but loss must be pixelwise; those that are: .*bce"):
        registry.bind("losses", f"{name}(loss='dice()')")


def test_a_sum_of_losses_of_maps_is_their_sum() -> None:
    logits, target = drawn("masks")
    found = losses.total(logits, target, losses=("bce()", "dice(batch=true)", "lovasz_hinge()"), weights=(1, 0.5, 2))
    expected = losses.bce(logits, target) + 0.5 * losses_masks.dice(logits, target, batch=True)
    torch.testing.assert_close(found, expected + 2 * losses.lovasz_hinge(logits, target))
