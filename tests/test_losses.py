"""Losses against slow references that are written row by row in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.parts import losses


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def slow_cross_entropy(scores: list[float], truth: list[float], smoothing: float = 0.0) -> float:
    classes = len(scores)
    smooth = [(1 - smoothing) * t + smoothing / classes for t in truth]
    return -sum(t * math.log(p) for t, p in zip(smooth, softmax(scores), strict=True))


def slow_focal(scores: list[float], truth: list[float], gamma: float = 2.0) -> float:
    return -sum(t * (1 - p) ** gamma * math.log(p) for t, p in zip(truth, softmax(scores), strict=True))


def slow_hinge(scores: list[float], truth: list[float], margin: float = 1.0) -> float:
    value = 0.0
    for y, weight in enumerate(truth):
        value += weight * sum(max(0.0, margin + s - scores[y]) for j, s in enumerate(scores) if j != y)
    return value


def slow_distillation(scores: list[float], teacher: list[float], temperature: float) -> float:
    softened = softmax([math.log(p) / temperature for p in teacher])
    student = softmax([score / temperature for score in scores])
    return temperature**2 * sum(q * math.log(q / p) for q, p in zip(softened, student, strict=True))


def slow_bce(scores: list[float], truth: list[float], smoothing: float = 0.0, positive: float = 1.0) -> float:
    value = 0.0
    for score, there in zip(scores, truth, strict=True):
        chance, soft = 1 / (1 + math.exp(-score)), there * (1 - smoothing) + smoothing / 2
        value -= positive * soft * math.log(chance) + (1 - soft) * math.log(1 - chance)
    return value / len(scores)


def slow_label_distillation(scores: list[float], teacher: list[float], temperature: float) -> float:
    value = 0.0
    for score, chance in zip(scores, teacher, strict=True):
        q = 1 / (1 + math.exp(-math.log(chance / (1 - chance)) / temperature))
        p = 1 / (1 + math.exp(-score / temperature))
        value += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    return temperature**2 * value / len(scores)


def slow_mse(numbers: list[float], truth: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(numbers, truth, strict=True)) / len(truth)


def slow_mae(numbers: list[float], truth: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(numbers, truth, strict=True)) / len(truth)


def slow_huber(numbers: list[float], truth: list[float], delta: float = 1.0) -> float:
    errors = [abs(a - b) for a, b in zip(numbers, truth, strict=True)]
    return sum(e * e / 2 if e <= delta else delta * (e - delta / 2) for e in errors) / len(truth)


@pytest.mark.parametrize(
    ("loss", "slow", "keywords"),
    [
        (losses.bce, slow_bce, {}),
        (losses.bce, slow_bce, {"smoothing": 0.2, "positive": 3.0}),
        (losses.mse, slow_mse, {}),
        (losses.mae, slow_mae, {}),
        (losses.huber, slow_huber, {}),
        (losses.huber, slow_huber, {"delta": 0.3}),
        (losses.label_distillation, slow_label_distillation, {"temperature": 1.0}),
        (losses.label_distillation, slow_label_distillation, {"temperature": 4.0}),
        (losses.cross_entropy, slow_cross_entropy, {}),
        (losses.cross_entropy, slow_cross_entropy, {"smoothing": 0.1}),
        (losses.focal, slow_focal, {}),
        (losses.focal, slow_focal, {"gamma": 0.5}),
        (losses.hinge, slow_hinge, {}),
        (losses.hinge, slow_hinge, {"margin": 0.3}),
        (losses.distillation, slow_distillation, {"temperature": 1.0}),
        (losses.distillation, slow_distillation, {"temperature": 4.0}),
    ],
)
def test_loss_is_the_slow_one(loss, slow, keywords) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(7, 5) * 2, torch.rand(7, 5).softmax(dim=1)
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    expected = torch.tensor([slow(scores, truth, **keywords) for scores, truth in rows])
    torch.testing.assert_close(loss(logits, target, **keywords), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keywords", "expected"),
    [
        ("cross_entropy", {"smoothing": 0.1}, math.log(10)),
        ("focal", {"gamma": 1.0}, 0.9 * math.log(10)),
        ("hinge", {}, 9.0),
        ("hinge", {"margin": 2.0}, 18.0),
    ],
)
def test_declared_loss_of_a_new_model(name: str, keywords: dict, expected: float) -> None:
    loss = getattr(losses, name)
    assert loss.facts["initial"](10, **keywords) == pytest.approx(expected)
    assert float(loss(torch.zeros(1, 10), torch.tensor([3]), **keywords)) == pytest.approx(expected, rel=1e-5)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(losses.focal(logits, classes, gamma=0.0), losses.cross_entropy(logits, classes))


def test_distillation_is_zero_for_the_teacher_itself_and_its_gradient_keeps_its_size() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4)
    for temperature in (0.5, 1.0, 3.0):
        same = losses.distillation(logits, logits.softmax(dim=1), temperature=temperature)
        torch.testing.assert_close(same, torch.zeros(6), atol=1e-5, rtol=0)
    # Hinton et al. 2015, eq. 4: for a high T the gradient is that of half the squared distance of centred logits, / C
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    losses.distillation(student, teacher.softmax(dim=1), temperature=200.0).sum().backward()
    distance = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, distance.detach() / 4, rtol=0.05, atol=0.02)


def test_distillation_takes_certain_teachers() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    values = losses.distillation(logits, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), temperature=2.0)
    values.sum().backward()
    torch.testing.assert_close(values, torch.full((2,), 4 * math.log(3)))
    assert torch.isfinite(logits.grad).all()
