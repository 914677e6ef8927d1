"""Losses against slow references that are written row by row in plain Python."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from sklearn.metrics import fbeta_score

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import heads, losses
from pipeline.torchvision_fix import fix_torchvision


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


def slow_weighted(scores: list[float], truth: list[float], weights: list[float], smoothing: float = 0.0) -> float:
    smooth = [(1 - smoothing) * t + smoothing / len(scores) for t in truth]
    return -sum(w * t * math.log(p) for w, t, p in zip(weights, smooth, softmax(scores), strict=True))


def slow_poly1(scores: list[float], truth: list[float], epsilon: float = 1.0) -> float:
    return sum(t * (-math.log(p) + epsilon * (1 - p)) for t, p in zip(truth, softmax(scores), strict=True))


def slow_symmetric(
    scores: list[float], truth: list[float], alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> float:
    """Each class in turn is the truth, whose one-hot label has log 1 = 0 and log 0 = log_zero."""
    value, chances = 0.0, softmax(scores)
    for y, weight in enumerate(truth):
        reverse = -sum(p * (0.0 if k == y else log_zero) for k, p in enumerate(chances))
        value += weight * (-alpha * math.log(chances[y]) + beta * reverse)
    return value


def log_t(value: float, t: float) -> float:
    return math.log(value) if t == 1 else (value ** (1 - t) - 1) / (1 - t)


def exp_t(value: float, t: float) -> float:
    return math.exp(value) if t == 1 else max(0.0, 1 + (1 - t) * value) ** (1 / (1 - t))


def slow_bi_tempered(scores: list[float], truth: list[float], t1: float = 0.8, t2: float = 1.2) -> float:
    """The norm by bisection; the Bregman divergence from each class in turn, whose one-hot label has log_t(1) = 0."""
    low, high = max(scores), max(scores) + 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(exp_t(s - middle, t2) for s in scores) > 1 else (low, middle)
    chances = [exp_t(score - low, t2) for score in scores]
    value = 0.0
    for y, weight in enumerate(truth):
        bregman = -log_t(chances[y], t1) - (1 - sum(p ** (2 - t1) for p in chances)) / (2 - t1)
        value += weight * bregman
    return value


def slow_margin(scores: list[float], truth: list[float], s: float, shift) -> float:
    """Softmax over s · cosines, in which each class in turn is the truth and has its angle or cosine shifted."""
    value = 0.0
    for y, weight in enumerate(truth):
        moved = [s * shift(score / s) if k == y else score for k, score in enumerate(scores)]
        value -= weight * math.log(softmax(moved)[y])
    return value


def slow_normface(scores: list[float], truth: list[float], s: float) -> float:
    return slow_cross_entropy(scores, truth)


def slow_cosface(scores: list[float], truth: list[float], s: float, m: float = 0.35) -> float:
    return slow_margin(scores, truth, s, lambda cosine: cosine - m)


def slow_arcface(scores: list[float], truth: list[float], s: float, m: float = 0.5) -> float:
    def shift(cosine: float) -> float:
        angle = math.acos(cosine)
        return math.cos(angle + m) if angle + m < math.pi else cosine - math.sin(math.pi - m) * m

    return slow_margin(scores, truth, s, shift)


def slow_sphereface(scores: list[float], truth: list[float], s: float, m: float = 1.35) -> float:
    def shift(cosine: float) -> float:
        angle = m * math.acos(cosine)
        k = next(k for k in range(20) if k * math.pi <= angle <= (k + 1) * math.pi)
        return (-1) ** k * math.cos(angle) - 2 * k

    return slow_margin(scores, truth, s, shift)


def slow_focal_labels(scores: list[float], truth: list[float], gamma: float = 2.0, alpha: float = 0.25) -> float:
    value = 0.0
    for score, there in zip(scores, truth, strict=True):
        chance = 1 / (1 + math.exp(-score))
        right = chance * there + (1 - chance) * (1 - there)
        cross = -there * math.log(chance) - (1 - there) * math.log(1 - chance)
        value += (alpha * there + (1 - alpha) * (1 - there)) * (1 - right) ** gamma * cross
    return value / len(scores)


def slow_asymmetric(
    scores: list[float], truth: list[float], gamma_negative=4.0, gamma_positive=1.0, clip: float = 0.05
) -> float:
    value = 0.0
    for score, there in zip(scores, truth, strict=True):
        chance = 1 / (1 + math.exp(-score))
        shifted = max(chance - clip, 0)
        value -= there * (1 - chance) ** gamma_positive * math.log(chance)
        value -= (1 - there) * shifted**gamma_negative * math.log(1 - shifted)
    return value / len(scores)


def slow_soft_f_beta(scores: list[float], truth: list[float], beta: float = 1.0, smooth: float = 1.0) -> float:
    chances = [1 / (1 + math.exp(-score)) for score in scores]
    hits = sum(p * t for p, t in zip(chances, truth, strict=True))
    extra = sum(p * (1 - t) for p, t in zip(chances, truth, strict=True))
    missed = sum((1 - p) * t for p, t in zip(chances, truth, strict=True))
    above = (1 + beta**2) * hits + smooth
    return 1 - above / (above + extra + beta**2 * missed)


def slow_log_cosh(numbers: list[float], truth: list[float]) -> float:
    return sum(math.log(math.cosh(a - b)) for a, b in zip(numbers, truth, strict=True)) / len(truth)


def slow_quantile(numbers: list[float], truth: list[float], q: float = 0.5) -> float:
    errors = [b - a for a, b in zip(numbers, truth, strict=True)]
    return sum(q * e if e > 0 else (q - 1) * e for e in errors) / len(truth)


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
        (losses.weighted_cross_entropy, slow_weighted, {"weights": [1.0, 0.0, 3.0, 0.5, 2.0]}),
        (losses.weighted_cross_entropy, slow_weighted, {"weights": [1.0, 0.2, 3.0, 0.5, 2.0], "smoothing": 0.2}),
        (losses.poly1, slow_poly1, {}),
        (losses.poly1, slow_poly1, {"epsilon": 2.0}),
        (losses.symmetric_cross_entropy, slow_symmetric, {}),
        (losses.symmetric_cross_entropy, slow_symmetric, {"alpha": 2.0, "beta": 0.3, "log_zero": -6.0}),
        (losses.bi_tempered, slow_bi_tempered, {}),
        (losses.bi_tempered, slow_bi_tempered, {"t1": 0.2, "t2": 4.0}),
        (losses.bi_tempered, slow_bi_tempered, {"t1": 1.0, "t2": 1.5}),
        (losses.bi_tempered, slow_bi_tempered, {"t1": 0.5, "t2": 1.0}),
        (losses.focal_labels, slow_focal_labels, {}),
        (losses.focal_labels, slow_focal_labels, {"gamma": 0.5, "alpha": 0.7}),
        (losses.asymmetric, slow_asymmetric, {}),
        (losses.asymmetric, slow_asymmetric, {"gamma_negative": 0.5, "gamma_positive": 0.0, "clip": 0.3}),
        (losses.asymmetric, slow_asymmetric, {"gamma_negative": 2.0, "clip": 0.0}),
        (losses.soft_f_beta, slow_soft_f_beta, {}),
        (losses.soft_f_beta, slow_soft_f_beta, {"beta": 2.0, "smooth": 0.0}),
        (losses.log_cosh, slow_log_cosh, {}),
        (losses.quantile, slow_quantile, {}),
        (losses.quantile, slow_quantile, {"q": 0.9}),
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
        ("poly1", {"epsilon": 2.0}, math.log(10) + 1.8),
        ("symmetric_cross_entropy", {"alpha": 2.0, "beta": 3.0, "log_zero": -5.0}, 2 * math.log(10) + 13.5),
        ("bi_tempered", {"t1": 1.0, "t2": 1.0}, math.log(10)),
        ("bi_tempered", {"t1": 0.5, "t2": 2.0}, 2 * (1 - 0.1**0.5) + (10 * 0.1**1.5 - 1) / 1.5),
        ("normface", {"s": 16.0}, math.log(10)),
        ("cosface", {"s": 16.0, "m": 0.2}, math.log(1 + 9 * math.exp(16 * 0.2))),
        ("arcface", {"s": 16.0, "m": 0.3}, math.log(1 + 9 * math.exp(16 * math.sin(0.3)))),
        ("sphereface", {"s": 2.0, "m": 3.0}, math.log(1 + 9 * math.exp(2 * 2))),
    ],
)
def test_declared_loss_of_a_new_model(name: str, keywords: dict, expected: float) -> None:
    loss = getattr(losses, name)
    assert loss.facts["initial"](10, **keywords) == pytest.approx(expected)
    assert float(loss(torch.zeros(1, 10), torch.tensor([3]), **keywords)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "slow", "keywords"),
    [
        (losses.normface, slow_normface, {}),
        (losses.cosface, slow_cosface, {}),
        (losses.cosface, slow_cosface, {"m": 0.1}),
        (losses.arcface, slow_arcface, {}),
        (losses.arcface, slow_arcface, {"m": 1.2}),
        (losses.sphereface, slow_sphereface, {}),
        (losses.sphereface, slow_sphereface, {"m": 4.0}),
    ],
)
@pytest.mark.parametrize("s", [4.0, 30.0])
def test_margin_loss_is_the_slow_one(loss, slow, keywords, s: float) -> None:
    torch.manual_seed(0)
    cosines = torch.rand(60, 5) * 1.998 - 0.999
    for target in (torch.rand(60, 5).softmax(dim=1), torch.eye(5)[torch.arange(60) % 5]):
        rows = zip((s * cosines).tolist(), target.tolist(), strict=True)
        expected = torch.tensor([slow(scores, truth, s=s, **keywords) for scores, truth in rows])
        torch.testing.assert_close(loss(s * cosines, target, s=s, **keywords), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("m", "plain"), [(1.0, 0.0), (2.0, 0.0), (3.0, 0.5), (4.0, 5.0)])
def test_l_softmax_is_the_slow_one(m: float, plain: float) -> None:
    """Eq. 4 to 6 of the paper, with the plain logit that its code adds, row by row."""
    torch.manual_seed(0)
    vectors, head = torch.randn(40, 6), heads.inner_product(6, 5)
    weights = head[1].weight.detach()
    expected = torch.zeros(40, 5)
    for row, x in enumerate(vectors):
        logits = [float(w @ x) for w in weights]
        for y, w in enumerate(weights):
            size = float(w.norm() * x.norm())
            angle = math.acos(logits[y] / size)
            k = int(m * angle / math.pi)
            turned = (-1) ** k * math.cos(m * angle) - 2 * k
            right = size * (turned + plain * math.cos(angle)) / (1 + plain)
            others = sum(math.exp(logit) for place, logit in enumerate(logits) if place != y)
            expected[row, y] = math.log(math.exp(right) + others) - right
    loss = functools.partial(losses.l_softmax, m=m, plain=plain)
    outputs, lengths, classes = head(vectors), head.lengths(vectors), torch.arange(40) % 5
    soft = torch.rand(40, 5).softmax(dim=1)
    torch.testing.assert_close(
        loss(outputs, classes, lengths), expected[torch.arange(40), classes], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(loss(outputs, soft, lengths), (soft * expected).sum(dim=1), rtol=1e-4, atol=1e-4)
    if m == 1:
        torch.testing.assert_close(
            loss(outputs, classes, lengths), losses.cross_entropy(outputs, classes), rtol=1e-4, atol=1e-4
        )


def test_margin_losses_fall_as_the_right_cosine_rises_and_cost_more_than_none() -> None:
    cosines = torch.zeros(201, 3)
    cosines[:, 0] = torch.linspace(-1, 1, 201)
    right, without = torch.zeros(201, dtype=torch.int64), losses.normface(8 * cosines, torch.zeros(201).long(), s=8.0)
    for loss in (losses.cosface, losses.arcface, losses.sphereface):
        values = loss(8 * cosines, right, s=8.0)
        assert (values.diff() < 1e-6).all(), loss
        assert (values[1:-1] > without[1:-1]).all(), loss


@pytest.mark.parametrize(("form", "slow"), [("arcface", slow_arcface), ("cosface", slow_cosface)])
def test_margin_by_count_gives_each_class_its_own(form: str, slow) -> None:
    """a · n^-b + c of Ha et al. 2020; the last class has no rows, and is as one with a single row."""
    torch.manual_seed(0)
    cosines, counts = torch.rand(60, 4) * 1.998 - 0.999, [10_000, 100, 1, 0]
    margins = [0.4 / max(count, 1) ** 0.5 + 0.1 for count in counts]
    expected = torch.zeros(60, 4)
    for row, scores in enumerate((9 * cosines).tolist()):
        for y, margin in enumerate(margins):
            expected[row, y] = slow(scores, [float(k == y) for k in range(4)], s=9.0, m=margin)
    loss = functools.partial(losses.margin_by_count, s=9.0, a=0.4, b=0.5, c=0.1, form=form)
    classes, soft = torch.arange(60) % 4, torch.rand(60, 4).softmax(dim=1)
    given = torch.tensor(counts)
    torch.testing.assert_close(
        loss(9 * cosines, classes, given), expected[torch.arange(60), classes], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(loss(9 * cosines, soft, given), (soft * expected).sum(dim=1), rtol=1e-4, atol=1e-4)
    alike = losses.margin_by_count(9 * cosines, classes, given, s=9.0, a=0.0, c=0.3, form=form)
    torch.testing.assert_close(alike, getattr(losses, form)(9 * cosines, classes, s=9.0, m=0.3))


def test_margin_losses_start_from_the_number_of_classes_as_the_head_does() -> None:
    torch.manual_seed(0)
    vectors, classes = torch.randn(8, 6), torch.arange(8) % 4
    scale = math.sqrt(2) * math.log(3)
    outputs = heads.cosine(6, 4)(vectors)
    for loss in (losses.arcface, losses.cosface, losses.sphereface, losses.normface):
        torch.testing.assert_close(loss(outputs, classes), loss(outputs, classes, s=scale))
    torch.testing.assert_close(losses.adacos(outputs, classes), losses.cross_entropy(outputs, classes))
    assert losses.starting_scale(0, 2) == losses.starting_scale(0, 3) == 1.0
    assert losses.starting_scale(30, 2) == 30


def test_margin_loss_keeps_its_digits_where_one_class_is_certain() -> None:
    """The sum over the other classes, far below the right one's term, must not drown in rounding."""
    expected = math.log1p(math.exp(-9 - 29) + math.exp(-6 - 29))
    found = losses.normface(torch.tensor([[29.0, -9.0, -6.0]]), torch.tensor([0]), s=30.0)
    assert float(found) == pytest.approx(expected, rel=1e-3, abs=0)


def slow_lovasz(errors: list[float], inside: list[bool]) -> float:
    """Berman et al. 2018, eq. 8–9: errors in falling order, each times what its member adds to the Jaccard loss."""

    def jaccard_loss(mistaken: list[int]) -> float:
        """1 - |truth ∩ answer| / |truth ∪ answer| of the answer that errs in these members."""
        truth = {member for member, there in enumerate(inside) if there}
        answer = truth ^ set(mistaken)
        return 1 - len(truth & answer) / len(truth | answer) if truth | answer else 0.0

    order = sorted(range(len(errors)), key=lambda member: -errors[member])
    steps = [jaccard_loss(order[: place + 1]) - jaccard_loss(order[:place]) for place in range(len(order))]
    return sum(errors[member] * step for member, step in zip(order, steps, strict=True))


def library_lovasz(mode: str, **keywords: bool) -> torch.nn.Module:
    fix_torchvision()
    from segmentation_models_pytorch.losses import LovaszLoss

    return LovaszLoss(mode, **keywords)


def test_lovasz_softmax_is_the_slow_one_and_the_library_s() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(12, 6) * 2, torch.arange(12) % 5  # class 5 is not in the batch
    chances = logits.softmax(dim=1)
    slow = []
    for k in range(5):
        inside = [y == k for y in classes.tolist()]
        errors = [1 - p if there else p for p, there in zip(chances[:, k].tolist(), inside, strict=True)]
        slow.append(slow_lovasz(errors, inside))
    found = losses.lovasz_softmax(logits, classes).mean()
    assert float(found) == pytest.approx(sum(slow) / 5, rel=1e-5)
    theirs = library_lovasz("multiclass")(logits[:, :, None, None], classes[:, None, None])
    torch.testing.assert_close(found, theirs)


def test_lovasz_softmax_takes_a_soft_target_for_rows_by_their_shares() -> None:
    torch.manual_seed(0)
    logits, soft = torch.randn(3, 4), torch.tensor([[0.5, 0.25, 0.25, 0], [0, 0, 1, 0], [0.75, 0, 0, 0.25]])
    rows = [(row, k) for row in range(3) for k in range(4) for _ in range(int(4 * soft[row, k]))]
    repeated = losses.lovasz_softmax(logits[[row for row, _ in rows]], torch.tensor([k for _, k in rows]))
    torch.testing.assert_close(losses.lovasz_softmax(logits, soft).mean(), repeated.mean())


def test_lovasz_hinge_is_the_slow_one_and_the_library_s() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(9, 6) * 2, (torch.rand(9, 6) > 0.6).float()
    labels[0] = 0
    slow = []
    for row, there in zip(scores.tolist(), labels.tolist(), strict=True):
        errors = [max(0.0, 1 - score * (2 * t - 1)) for score, t in zip(row, there, strict=True)]
        slow.append(slow_lovasz(errors, [t == 1 for t in there]))
    found = losses.lovasz_hinge(scores, labels)
    torch.testing.assert_close(found, torch.tensor(slow))
    theirs = library_lovasz("multilabel", per_image=True)(scores[:, None], labels[:, None])
    torch.testing.assert_close(found.mean(), theirs)


def test_lovasz_gradients_are_those_of_the_definition() -> None:
    """A sort is flat but for its jumps: finite differences see the same slope."""
    torch.manual_seed(0)
    scores, labels = torch.randn(3, 5).double().requires_grad_(), torch.eye(5)[[0, 2, 4]].double()
    for dim in (0, 1):

        def whole(x: torch.Tensor, dim: int = dim) -> torch.Tensor:
            return losses._lovasz((1 - x).relu(), (1 + x).relu(), labels, dim).sum()

        assert torch.autograd.gradcheck(whole, scores)


@pytest.mark.parametrize("how", ["inverse", "effective"])
def test_balanced_cross_entropy_weighs_by_counts(how: str) -> None:
    torch.manual_seed(0)
    counts = [50, 30, 10, 0, 10]
    each = [1 / max(n, 1) if how == "inverse" else (1 - 0.9) / (1 - 0.9 ** max(n, 1)) for n in counts]
    mean = sum(n * w for n, w in zip(counts, each, strict=True)) / sum(counts)
    weights = [weight / mean for weight in each]
    if how == "inverse":
        assert weights[:3] == pytest.approx([100 / (4 * n) for n in counts[:3]]), "as scikit-learn's balanced"
    logits, target = torch.randn(7, 5), torch.rand(7, 5).softmax(dim=1)
    for given in (torch.tensor(counts), torch.tensor(counts, dtype=torch.float64)):
        found = losses.balanced_cross_entropy(logits, target, given, how=how, beta=0.9)
        torch.testing.assert_close(found, losses.weighted_cross_entropy(logits, target, weights=weights))


def test_balanced_cross_entropy_goes_from_no_weights_to_the_inverse() -> None:
    logits, classes, counts = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([400, 40, 4])
    balanced = functools.partial(losses.balanced_cross_entropy, logits, classes, counts)
    torch.testing.assert_close(balanced(how="effective", beta=0.0), losses.cross_entropy(logits, classes))
    near = balanced(how="effective", beta=0.999999)
    torch.testing.assert_close(near, balanced(how="inverse"), rtol=1e-3, atol=0)


def test_weights_that_do_not_fit_the_classes_are_a_message() -> None:
    for weights in ([1.0, 2.0], [1.0, 2.0, -1.0]):
        with pytest.raises(UserError, match="3 classes"):
            losses.weighted_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), weights=weights)


def test_bi_tempered_with_both_at_one_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        losses.bi_tempered(logits, classes, t1=1.0, t2=1.0), losses.cross_entropy(logits, classes)
    )


def test_bi_tempered_has_the_gradient_of_its_values_and_a_bound() -> None:
    torch.manual_seed(0)
    scores = (3 * torch.randn(4, 5)).double().requires_grad_()
    for t in (1.2, 2.0):
        assert torch.autograd.gradcheck(lambda x, t=t: losses._tempered_log_softmax(x, t, 200), scores)
    sure = torch.eye(4) * 1e4
    wrong = losses.bi_tempered(sure, (torch.arange(4) + 1) % 4, t1=0.5, t2=1.5)
    assert (wrong < 2 + 1 / 1.5).all(), "one class said with certainty costs 1 / (1 - t1) and a little"


def test_focal_labels_and_asymmetric_are_the_libraries() -> None:
    fix_torchvision()
    from timm.loss import AsymmetricLossMultiLabel
    from torchvision.ops import sigmoid_focal_loss

    torch.manual_seed(0)
    logits, labels = torch.randn(7, 5) * 3, (torch.rand(7, 5) > 0.5).float()
    theirs = sigmoid_focal_loss(logits, labels, alpha=0.3, gamma=1.5).mean(dim=1)
    torch.testing.assert_close(losses.focal_labels(logits, labels, gamma=1.5, alpha=0.3), theirs)
    theirs = AsymmetricLossMultiLabel(gamma_neg=3, gamma_pos=1, clip=0.1, reduction="none")(logits, labels).mean(dim=1)
    found = losses.asymmetric(logits, labels, gamma_negative=3.0, gamma_positive=1.0, clip=0.1)
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_label_losses_have_finite_gradients_at_certain_labels_for_any_power(power: float) -> None:
    logits = torch.tensor([[300.0, -300.0, 300.0, -300.0, -4.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    values = losses.focal_labels(logits, labels, gamma=power)
    values = values + losses.asymmetric(logits, labels, gamma_negative=power, gamma_positive=power)
    (values + losses.asymmetric(logits, labels, gamma_negative=power, clip=0.0)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_soft_f_beta_of_certain_answers_is_the_metric_s() -> None:
    labels, answers = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 1]]), torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 1]])
    logits = (answers * 2 - 1) * 50
    theirs = [fbeta_score(truth, answer, beta=2) for truth, answer in zip(labels, answers, strict=True)]
    torch.testing.assert_close(
        losses.soft_f_beta(logits, labels, beta=2.0, smooth=0.0), 1 - torch.tensor(theirs, dtype=torch.float32)
    )
    macro = fbeta_score(labels, answers, beta=2, average="macro")
    found = losses.soft_f_beta(logits, labels, beta=2.0, smooth=0.0, average="batch")
    torch.testing.assert_close(found, torch.full((2,), 1 - float(macro)))


def test_soft_f_beta_teaches_rows_without_labels() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    losses.soft_f_beta(logits, torch.zeros(2, 3)).sum().backward()
    assert (logits.grad > 0).all()


def test_ohem_keeps_the_rows_with_the_largest_losses() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(10, 4, requires_grad=True), torch.arange(10) % 4
    plain = losses.focal(logits, classes, gamma=1.0).detach()
    for k, kept in ((0.3, 3), (0.0, 1), (1.0, 10)):
        found = losses.ohem(logits, classes, k=k, loss="focal(gamma=1.0)").detach()
        hardest = sorted(plain.tolist(), reverse=True)[:kept]
        assert int((found > 0).sum()) == kept
        assert float(found.mean()) == pytest.approx(sum(hardest) / kept)
        threshold = hardest[-1]
        assert ((plain >= threshold) == (found > 0)).all()
    losses.ohem(logits, classes, k=0.3).sum().backward()
    assert int((logits.grad.abs().sum(dim=1) > 0).sum()) == 3


def test_ohem_and_total_hand_counts_to_the_losses_that_ask_for_them() -> None:
    torch.manual_seed(0)
    logits, classes, counts = torch.randn(6, 3), torch.arange(6) % 3, torch.tensor([8, 2, 2])
    balanced = losses.balanced_cross_entropy(logits, classes, counts)
    found = losses.ohem(logits, classes, counts, k=1.0, loss="balanced_cross_entropy()")
    torch.testing.assert_close(found, balanced)
    both = losses.total(logits, classes, counts, losses=["balanced_cross_entropy()", "poly1()"], weights=[2, 0.5])
    torch.testing.assert_close(both, 2 * balanced + 0.5 * losses.poly1(logits, classes))
    whole = losses.total(logits, classes, counts, losses=["ohem(k=1.0, loss='balanced_cross_entropy()')"])
    torch.testing.assert_close(whole, balanced)


def test_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    numbers, truth = torch.randn(5, 2), torch.randn(5, 2)
    build = registry.build("losses", "total(losses=['mse()', 'quantile(q=0.9)'], weights=[1, 3])")
    expected = losses.mse(numbers, truth) + 3 * losses.quantile(numbers, truth, q=0.9)
    torch.testing.assert_close(build(numbers, truth), expected)
    with pytest.raises(UserError, match="2 losses and 1 weights"):
        losses.total(numbers, truth, losses=("mse()", "mae()"), weights=(1.0,))


def test_total_warns_once_of_terms_that_hardly_matter(capsys, monkeypatch) -> None:
    monkeypatch.setattr(losses, "_compared", set())
    numbers, truth = torch.zeros(4, 1), torch.ones(4, 1)
    for _ in range(2):
        losses.total(numbers, truth, losses=("mse()", "mae()"), weights=(1.0, 1000.0))
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "mae() is 1e+03 and mse() 1" in said
    losses.total(numbers, truth, losses=("mse()", "mae()"), weights=(1.0, 90.0))
    assert capsys.readouterr().err == ""


def test_quantile_and_log_cosh_learn_what_they_say() -> None:
    truth = torch.arange(101.0)[:, None]
    at = [float(losses.quantile(torch.full_like(truth, float(x)), truth, q=0.9).mean()) for x in range(101)]
    assert at.index(min(at)) == 90
    far = losses.log_cosh(torch.tensor([[1e4]]), torch.zeros(1, 1))
    assert float(far) == pytest.approx(1e4 - math.log(2))


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


@pytest.mark.parametrize(("alpha", "smoothing"), [(12.0, 0.0), (3.0, 0.1)])
@pytest.mark.parametrize("views", [2, 3, 4])
def test_jsd_is_timms_and_by_rows_the_definition(views: int, alpha: float, smoothing: float) -> None:
    fix_torchvision()
    from timm.loss import JsdCrossEntropy

    torch.manual_seed(0)
    logits, classes = torch.randn(5 * views, 4), torch.arange(5) % 4
    found = losses.jsd(logits, classes, alpha=alpha, smoothing=smoothing)
    theirs = JsdCrossEntropy(num_splits=views, alpha=alpha, smoothing=smoothing)(logits, classes)
    torch.testing.assert_close(found.mean(), theirs)
    for row in range(5):
        answers = [softmax(logits[view * 5 + row].tolist()) for view in range(views)]
        middle = [sum(answer[k] for answer in answers) / views for k in range(4)]
        apart = [sum(p * math.log(p / m) for p, m in zip(answer, middle, strict=True)) for answer in answers]
        truth = [float(k == classes[row]) for k in range(4)]
        expected = slow_cross_entropy(logits[row].tolist(), truth, smoothing) + alpha * sum(apart) / views
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)


def test_jsd_of_equal_views_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, soft = torch.randn(5, 4), torch.rand(5, 4).softmax(dim=1)
    torch.testing.assert_close(losses.jsd(logits.repeat(3, 1), soft), losses.cross_entropy(logits, soft))


@pytest.mark.parametrize("soft", [False, True])
def test_adacos_moving_follows_the_slow_scale(soft: bool) -> None:
    """Batch after batch, from the fixed scale; cosines to the right class grow, as in a training."""
    torch.manual_seed(0)
    start = scale = math.sqrt(2) * math.log(9)
    memory, scales = torch.zeros(()), []
    for batch in range(4):
        classes = torch.randint(10, (7,))
        cosines = torch.rand(7, 10) * 0.6 - 0.3
        cosines[torch.arange(7), classes] = 0.3 * batch * torch.rand(7) + 0.05
        target = 0.7 * torch.eye(10)[classes] + 0.03 if soft else classes
        wrong, angles = 0.0, []
        for row in range(7):
            wrong += sum(math.exp(scale * float(cosines[row, k])) for k in range(10) if k != classes[row]) / 7
            angles.append(math.acos(float(cosines[row, classes[row]])))
        scale = math.log(wrong) / math.cos(min(math.pi / 4, sorted(angles)[3]))
        found = losses.adacos_moving(start * cosines, target, memory)
        assert float(memory) == pytest.approx(scale, rel=1e-4)
        torch.testing.assert_close(found, losses.cross_entropy(scale * cosines, target), rtol=1e-4, atol=1e-4)
        scales.append(scale)
    assert len({round(one, 3) for one in scales}) == 4


def test_adacos_moving_keeps_its_graph_while_the_scale_moves_on() -> None:
    """Batches whose gradients are accumulated share the scale's tensor."""
    outputs, memory = torch.zeros(3, 5, requires_grad=True), torch.zeros(())
    first = losses.adacos_moving(outputs, torch.tensor([0, 1, 2]), memory)
    losses.adacos_moving(outputs + 1, torch.tensor([0, 1, 2]), memory)
    first.sum().backward()
    assert torch.isfinite(outputs.grad).all()
