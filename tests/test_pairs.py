"""Pair losses against slow references that are written pair by pair in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pipeline import registry
from pipeline.parts import pairs

ROWS, FEATURES = 12, 5
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 4, 3, 3])  # 4 has no positive
LEARNED = [name for name, part in registry.parts("pairs").items() if part.facts.get("learned")]
PLAIN = [name for name in registry.parts("pairs") if name not in LEARNED]
every = pytest.mark.parametrize("name", [*PLAIN, *LEARNED])
each_plain = pytest.mark.parametrize("name", PLAIN)
Rows = list[list[float]]


def drawn(rows: int = ROWS) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, FEATURES)


def loss_of(name: str):
    built = registry.build("pairs", name)
    torch.manual_seed(1)
    return built(FEATURES, 5) if name in LEARNED else built


def distance(left: list[float], right: list[float]) -> float:
    return math.dist(left, right)


def cosine(left: list[float], right: list[float]) -> float:
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.hypot(*left) / math.hypot(*right)


def unit(rows: Rows) -> Rows:
    return [[value / math.hypot(*row) for value in row] for row in rows]


def around(row: int, rows: Rows, labels: list[int], measure) -> tuple[list[float], list[float]]:
    """How far or near a row's positives and its negatives are."""
    others = [other for other in range(len(rows)) if other != row]
    near = [measure(rows[row], rows[other]) for other in others if labels[other] == labels[row]]
    far = [measure(rows[row], rows[other]) for other in others if labels[other] != labels[row]]
    return near, far


def excess(difference: float, margin: float, soft: bool) -> float:
    return math.log1p(math.exp(difference)) if soft else max(0.0, difference + margin)


def slow_triplet(row, rows, labels, margin=0.3, mining="hard", soft=False, normed=False) -> float:
    near, far = around(row, unit(rows) if normed else rows, labels, distance)
    if not near or not far:
        return 0.0
    if mining == "hard":
        return excess(max(near) - min(far), margin, soft)
    chosen = [min([other for other in far if other > one], default=max(far)) for one in near]
    return sum(excess(one - other, margin, soft) for one, other in zip(near, chosen, strict=True)) / len(near)


def slow_contrastive(row, rows, labels, margin=1.0, normed=True) -> float:
    near, far = around(row, unit(rows) if normed else rows, labels, distance)
    if not near or not far:
        return 0.0
    short = [(margin - one) ** 2 for one in far if one < margin]
    return sum(one**2 for one in near) / len(near) / 2 + (sum(short) / len(short) / 2 if short else 0.0)


def slow_circle(row, rows, labels, m=0.25, gamma=128.0) -> float:
    near, far = around(row, rows, labels, cosine)
    if not near or not far:
        return 0.0
    powers = [
        gamma * (max(0.0, n + m) * (n - m) - max(0.0, 1 + m - p) * (p - (1 - m)))
        for p in near for n in far
    ]  # fmt: skip
    top = max(0.0, *powers)
    return top + math.log(math.exp(-top) + sum(math.exp(power - top) for power in powers))


def slow_multi_similarity(row, rows, labels, alpha=2.0, beta=50.0, threshold=0.5, epsilon=0.1) -> float:
    near, far = around(row, rows, labels, cosine)
    if not near or not far:
        return 0.0
    positives = [one for one in near if one < max(far) + epsilon]
    negatives = [one for one in far if one > min(near) - epsilon]
    pulled = math.log(1 + sum(math.exp(-alpha * (one - threshold)) for one in positives)) / alpha
    return pulled + math.log(1 + sum(math.exp(beta * (one - threshold)) for one in negatives)) / beta


def slow_sup_con(row, rows, labels, temperature=0.1) -> float:
    near, far = around(row, rows, labels, cosine)
    if not near or not far:
        return 0.0
    whole = sum(math.exp(one / temperature) for one in near + far)
    return -sum(math.log(math.exp(one / temperature) / whole) for one in near) / len(near)


@pytest.mark.parametrize(
    ("loss", "slow", "keywords"),
    [
        (pairs.triplet, slow_triplet, {}),
        (pairs.triplet, slow_triplet, {"margin": 1.5}),
        (pairs.triplet, slow_triplet, {"soft": True}),
        (pairs.triplet, slow_triplet, {"normed": True}),
        (pairs.triplet, slow_triplet, {"mining": "semi_hard"}),
        (pairs.triplet, slow_triplet, {"mining": "semi_hard", "margin": 1.0, "normed": True}),
        (pairs.triplet, slow_triplet, {"mining": "semi_hard", "soft": True}),
        (pairs.contrastive, slow_contrastive, {}),
        (pairs.contrastive, slow_contrastive, {"margin": 3.0, "normed": False}),
        (pairs.circle, slow_circle, {}),
        (pairs.circle, slow_circle, {"m": 0.4, "gamma": 8.0}),
        (pairs.multi_similarity, slow_multi_similarity, {}),
        (pairs.multi_similarity, slow_multi_similarity, {"alpha": 1.0, "beta": 9.0, "threshold": 0.1, "epsilon": 0.0}),
        (pairs.multi_similarity, slow_multi_similarity, {"epsilon": 2.0}),
        (pairs.sup_con, slow_sup_con, {}),
        (pairs.sup_con, slow_sup_con, {"temperature": 0.7}),
    ],
)
def test_loss_is_the_slow_one(loss, slow, keywords) -> None:
    embeddings = drawn()
    rows, labels = embeddings.tolist(), LABELS.tolist()
    expected = torch.tensor([slow(row, rows, labels, **keywords) for row in range(ROWS)])
    assert expected[9] == 0
    assert expected[:9].min() > 0 or loss is pairs.triplet
    torch.testing.assert_close(loss(embeddings, LABELS, **keywords), expected, rtol=1e-4, atol=1e-5)


def test_proxy_anchor_is_the_slow_one_over_proxies() -> None:
    """Kim et al. 2020, eq. 4: sums over proxies, not over rows; class 5 has a proxy and no rows."""
    torch.manual_seed(3)
    embeddings, loss = drawn(), pairs.proxy_anchor(FEATURES, 6, margin=0.2, alpha=8.0)
    rows, proxies, labels = embeddings.tolist(), loss.proxies.tolist(), LABELS.tolist()
    pulled, pushed = [], []
    for own, proxy in enumerate(proxies):
        near = [math.exp(-8 * (cosine(row, proxy) - 0.2)) for row, k in zip(rows, labels, strict=True) if k == own]
        far = [math.exp(8 * (cosine(row, proxy) + 0.2)) for row, k in zip(rows, labels, strict=True) if k != own]
        pulled += [math.log(1 + sum(near))] if near else []
        pushed.append(math.log(1 + sum(far)))
    found = loss(embeddings, LABELS)
    expected = sum(pulled) / len(pulled) + sum(pushed) / len(pushed)
    assert float(found.detach().mean()) == pytest.approx(expected, rel=1e-5)
    found.mean().backward()
    assert (loss.proxies.grad.abs().sum(dim=1) > 0).all()


def test_center_moves_its_centres_by_the_paper_s_rule_and_only_in_training() -> None:
    embeddings, loss = drawn(), pairs.center(FEATURES, 6, alpha=0.3)
    centres = [[0.0] * FEATURES for _ in range(6)]
    for _ in range(2):
        expected = [distance(row, centres[k]) ** 2 / 2 for row, k in zip(embeddings.tolist(), LABELS, strict=True)]
        torch.testing.assert_close(loss(embeddings, LABELS), torch.tensor(expected))
        moved = [list(centre) for centre in centres]
        for k in range(6):
            members = [row for row, own in zip(embeddings.tolist(), LABELS.tolist(), strict=True) if own == k]
            for feature in range(FEATURES):
                steps = sum(centres[k][feature] - row[feature] for row in members)
                moved[k][feature] -= 0.3 * steps / (1 + len(members))
        centres = moved
        torch.testing.assert_close(loss.centres, torch.tensor(centres))
    assert not loss.centres[5].any()
    loss.eval()(embeddings, LABELS)
    torch.testing.assert_close(loss.centres, torch.tensor(centres))
    assert list(loss.state_dict()) == ["centres"]
    assert not list(loss.parameters())


# --- the contract -------------------------------------------------------------------------------------------------


@every
def test_loss_gives_a_finite_value_a_row_with_a_gradient(name: str) -> None:
    embeddings = drawn().requires_grad_()
    values = loss_of(name)(embeddings, LABELS)
    assert (values.shape, values.dtype) == ((ROWS,), torch.float32)
    values.sum().backward()
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.abs().sum() > 0


@every
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_loss_computes_in_float32_whatever_it_is_given(name: str, half: torch.dtype) -> None:
    embeddings = drawn().to(half)
    with torch.autocast("cpu", dtype=half):
        found = loss_of(name)(embeddings, LABELS)
    torch.testing.assert_close(found, loss_of(name)(embeddings.float(), LABELS))
    assert found.dtype == torch.float32


@every
@pytest.mark.parametrize("what", ["zero", "equal", "far"])
def test_loss_is_finite_where_embeddings_collapse_or_explode(name: str, what: str) -> None:
    made = {"zero": torch.zeros(ROWS, FEATURES), "equal": torch.ones(ROWS, FEATURES), "far": 1e4 * drawn()}
    embeddings = made[what].requires_grad_()
    values = loss_of(name)(embeddings, LABELS)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(embeddings.grad).all()


@each_plain
@pytest.mark.parametrize("labels", [[2] * 6, [0, 1, 2, 3, 4, 5], [3]])
def test_batch_without_positives_or_negatives_teaches_nothing(name: str, labels: list[int]) -> None:
    embeddings = drawn(len(labels)).requires_grad_()
    values = loss_of(name)(embeddings, torch.tensor(labels))
    assert values.tolist() == [0] * len(labels)
    values.sum().backward()
    assert embeddings.grad.tolist() == [[0] * FEATURES] * len(labels)


def test_semi_hard_batch_without_positives_or_negatives_teaches_nothing() -> None:
    for labels in ([2] * 6, [0, 1, 2, 3, 4, 5]):
        embeddings = drawn(6).requires_grad_()
        values = pairs.triplet(embeddings, torch.tensor(labels), mining="semi_hard")
        values.sum().backward()
        assert values.tolist() == [0] * 6
        assert not embeddings.grad.any()


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("labels", [[2] * 6, [0, 1, 2, 3, 4, 0][:5], [3]])
def test_classes_with_points_of_their_own_need_no_pairs(name: str, labels: list[int]) -> None:
    embeddings = drawn(len(labels)).requires_grad_()
    values = loss_of(name)(embeddings, torch.tensor(labels))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert embeddings.grad.abs().sum() > 0


@every
def test_loss_knows_neither_the_order_of_rows_nor_turns_of_the_space(name: str) -> None:
    embeddings = drawn()
    expected = loss_of(name)(embeddings, LABELS)
    order = torch.randperm(ROWS)
    torch.testing.assert_close(loss_of(name)(embeddings[order], LABELS[order]), expected[order])
    if name in PLAIN:
        turn = torch.linalg.qr(torch.randn(FEATURES, FEATURES)).Q
        torch.testing.assert_close(loss_of(name)(embeddings @ turn, LABELS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", [*PLAIN, "proxy_anchor", "triplet(mining='semi_hard')"])
def test_training_brings_identities_together_and_keeps_them_apart(call: str) -> None:
    """Embeddings that are free to move: afterwards each row's nearest is of its own identity."""
    torch.manual_seed(0)
    labels = torch.arange(24) % 6
    embeddings = torch.randn(24, 8, requires_grad=True)
    loss = registry.build("pairs", call)
    learned = [embeddings]
    if call in LEARNED:
        loss = loss(8, 6)
        learned += list(loss.parameters())
    optimizer = torch.optim.Adam(learned, lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(embeddings, labels).mean().backward()
        optimizer.step()
    directions = functional.normalize(embeddings.detach(), dim=1)
    nearest = (directions @ directions.T - 2 * torch.eye(24)).argmax(dim=1)
    assert (labels[nearest] == labels).all()


# --- the library, where it is installed ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["circle", "multi_similarity", "sup_con", "proxy_anchor"])
def test_loss_is_the_library_s(name: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning import miners

    embeddings, labels, mined = drawn(), torch.arange(ROWS) % 4, None
    loss = loss_of(name)
    match name:
        case "circle":
            other = losses.CircleLoss(m=0.25, gamma=128)
        case "multi_similarity":
            other = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
            mined = miners.MultiSimilarityMiner(epsilon=0.1)(embeddings, labels)
        case "sup_con":
            other = losses.SupConLoss(temperature=0.1)
        case "proxy_anchor":
            other = losses.ProxyAnchorLoss(5, FEATURES, margin=0.1, alpha=32)
            other.proxies.data.copy_(loss.proxies)
    torch.testing.assert_close(loss(embeddings, labels).mean(), other(embeddings, labels, mined), rtol=1e-4, atol=1e-5)
