"""Heads against loops over rows and classes, and what each of them promises."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.parts import heads, losses, pools


@pytest.fixture
def vectors() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 6)


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def slow_cosine(vectors: torch.Tensor, weight: torch.Tensor, scale: float, centres: int) -> torch.Tensor:
    """Each class has its centres one after the other in the weight."""
    rows = []
    for vector in vectors.tolist():
        angles = [dot(vector, one) / math.sqrt(dot(vector, vector) * dot(one, one)) for one in weight.detach().tolist()]
        rows.append([scale * max(angles[k : k + centres]) for k in range(0, len(angles), centres)])
    return torch.tensor(rows)


@pytest.mark.parametrize(("s", "centres"), [(0.0, 1), (30.0, 1), (16.0, 3)])
def test_cosine_is_the_slow_one(vectors: torch.Tensor, s: float, centres: int) -> None:
    head = heads.cosine(6, 4, s=s, centres=centres)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    expected = slow_cosine(vectors, head.weight, s or math.sqrt(2) * math.log(3), centres)
    torch.testing.assert_close(head(vectors), expected)
    torch.testing.assert_close(head(5 * vectors), expected, msg="the length of the features says nothing")


def test_cosine_is_exact_under_autocast_and_finite_for_features_of_zero(vectors: torch.Tensor) -> None:
    head = heads.cosine(6, 4, s=64.0)
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=half):
            found = head(vectors)
        assert found.dtype == torch.float32
        assert torch.equal(found, head(vectors))
    nothing = torch.zeros(2, 6, requires_grad=True)
    outputs = head(nothing)
    outputs.sum().backward()
    assert torch.equal(outputs, torch.zeros(2, 4))
    assert torch.isfinite(nothing.grad).all()


@pytest.mark.parametrize("loss", [losses.normface, losses.cosface, losses.arcface, losses.sphereface])
@pytest.mark.parametrize("centres", [1, 3])
def test_cosine_learns_classes_with_a_margin_loss(loss, centres: int) -> None:
    """The s of both comes from the number of classes."""
    torch.manual_seed(0)
    classes = torch.arange(60) % 5
    vectors = torch.randn(5, 6)[classes] + 0.1 * torch.randn(60, 6)
    head = heads.cosine(6, 5, centres=centres)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(head(vectors), classes).mean().backward()
        optimizer.step()
    assert float((head(vectors).argmax(dim=1) == classes).float().mean()) == 1


def test_linear_without_init_is_torch_s_to_the_last_bit() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(6, 4)
    torch.manual_seed(3)
    head = heads.linear(6, 4, dropout=0.2)
    assert list(head.state_dict()) == ["1.weight", "1.bias"]
    assert torch.equal(head[1].weight, plain.weight)
    assert torch.equal(head[1].bias, plain.bias)


@pytest.mark.parametrize(
    ("init", "deviation", "bound"),
    [
        ("zero", 0.0, 0.0),
        ("xavier", math.sqrt(2 / (400 + 100)), math.sqrt(6 / (400 + 100))),
        ("msra", math.sqrt(2 / 400), math.inf),
        ("scaled", math.sqrt(1 / 400), math.inf),
    ],
)
def test_new_layers_start_as_the_papers_say(init: str, deviation: float, bound: float) -> None:
    torch.manual_seed(0)
    layers = [heads.linear(400, 100, init=init)[1]]
    if init != "zero":
        layers += [heads.mlp(400, 7, hidden=100, init=init)[0], heads.inner_product(400, 100, init=init)[1]]
        layers += [heads.multi_sample_dropout(400, 100, init=init).classifier, heads.drop_connect(400, 100, init=init)]
    for layer in layers:
        weights = layer.weight.detach().flatten().tolist()
        assert statistics.pstdev(weights) == pytest.approx(deviation, rel=0.03)
        assert statistics.fmean(weights) == pytest.approx(0, abs=0.002)
        assert max(map(abs, weights)) <= bound
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("activation", sorted(heads.ACTIVATIONS))
def test_mlp_is_two_layers_with_the_activation_between(vectors: torch.Tensor, activation: str) -> None:
    head = heads.mlp(6, 3, hidden=5, dropout=0.5, activation=activation).eval()
    (first, offset), (second, shift) = ((layer.weight.detach(), layer.bias.detach()) for layer in (head[0], head[3]))
    between = heads.ACTIVATIONS[activation]()
    for vector, outputs in zip(vectors, head(vectors).detach(), strict=True):
        hidden = [float(between(dot(vector.tolist(), w.tolist()) + b)) for w, b in zip(first, offset, strict=True)]
        expected = [dot(hidden, w.tolist()) + float(b) for w, b in zip(second, shift, strict=True)]
        assert outputs.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert set(heads.mlp.facts["allowed"]["activation"]) == set(heads.ACTIVATIONS)


def test_bnneck_norms_by_the_batch_without_shift_or_bias(vectors: torch.Tensor) -> None:
    head = heads.bnneck(6, 4)
    columns = list(zip(*vectors.tolist(), strict=True))
    means = [statistics.fmean(column) for column in columns]
    deviations = [math.sqrt(statistics.pvariance(column) + 1e-5) for column in columns]
    weight = head[2].weight.detach().tolist()
    for row, outputs in zip(vectors.tolist(), head(vectors), strict=True):
        normed = [(x - m) / d for x, m, d in zip(row, means, deviations, strict=True)]
        assert outputs.tolist() == pytest.approx([dot(normed, one) for one in weight], rel=1e-3, abs=1e-6)
    learned = [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    assert learned == ["0.weight", "2.weight"]
    assert head[2].weight.std() < 0.002


@pytest.mark.parametrize("neck", [False, True])
def test_per_part_gives_each_part_a_classifier_and_their_mean(vectors: torch.Tensor, neck: bool) -> None:
    torch.manual_seed(0)
    head = heads.per_part(6, 4, parts=3, neck=neck)
    torch.nn.init.normal_(head.weight)
    normed = (vectors - vectors.mean(dim=0)) / (vectors.var(dim=0, correction=0) + 1e-5).sqrt() if neck else vectors
    expected = [
        [
            [dot(row[2 * part : 2 * part + 2], head.weight[part, k].tolist()) for k in range(4)]
            for row in normed.tolist()
        ]
        for part in range(3)
    ]
    levels = head.levels(vectors)
    torch.testing.assert_close(torch.stack(levels), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(vectors), torch.tensor(expected).mean(dim=0), rtol=1e-4, atol=1e-5)
    learned = [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    assert learned == (["weight", "norm.weight"] if neck else ["weight"])


def test_per_part_takes_what_the_pools_of_parts_give() -> None:
    maps = torch.rand(2, 8, 6, 6)
    for pool, parts in ((pools.stripes(8, count=6, reduce=5), 6), (pools.granularities(8, reduce=5), 8)):
        assert heads.per_part(pool.features, 4, parts=parts)(pool(maps)).shape == (2, 4)
    with pytest.raises(UserError, match="40 features are no 7 parts"):
        heads.per_part(40, 4, parts=7)


def test_multi_sample_dropout_is_the_mean_output_of_its_samples(vectors: torch.Tensor) -> None:
    head = heads.multi_sample_dropout(6, 4, samples=3, dropout=0.4)
    torch.manual_seed(5)
    found = head(vectors)
    torch.manual_seed(5)
    masked = nn.functional.dropout(torch.stack([vectors] * 3), 0.4)
    expected = sum(head.classifier(one) for one in masked) / 3
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(head.eval()(vectors), head.classifier(vectors))
    assert not torch.allclose(found, head(vectors))


def test_more_samples_of_dropout_scatter_less(vectors: torch.Tensor) -> None:
    torch.manual_seed(0)
    one, many = (heads.multi_sample_dropout(6, 4, samples=samples) for samples in (1, 16))
    many.load_state_dict(one.state_dict())
    scatter = [torch.stack([head(vectors).detach() for _ in range(200)]).std(dim=0).mean() for head in (one, many)]
    assert float(scatter[1] / scatter[0]) == pytest.approx(1 / 4, rel=0.1)


def test_drop_connect_drops_weights_and_keeps_the_mean(vectors: torch.Tensor) -> None:
    torch.manual_seed(0)
    head = heads.drop_connect(6, 4, dropout=0.3)
    assert list(head.state_dict()) == ["weight", "bias"]
    torch.manual_seed(7)
    found = head(vectors)
    torch.manual_seed(7)
    kept = nn.functional.dropout(torch.ones(4, 6), 0.3)
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    expected = [
        [dot(vector, (kept[k] * head.weight[k]).tolist()) + head.bias[k].item() for k in range(4)]
        for vector in vectors.tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    mean = torch.stack([head(vectors) for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(mean, head.eval()(vectors), rtol=0, atol=0.05)
