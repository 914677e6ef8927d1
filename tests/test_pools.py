"""Pools against loops over the positions of a map."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import pools


def slow(maps: torch.Tensor, reduce) -> torch.Tensor:
    return torch.tensor([[reduce(channel.flatten().tolist()) for channel in image] for image in maps])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture
def maps() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 4, 5)


def test_avg_max_and_dual(maps: torch.Tensor) -> None:
    torch.testing.assert_close(pools.avg(3)(maps), slow(maps, mean))
    torch.testing.assert_close(pools.max(3)(maps), slow(maps, max))
    torch.testing.assert_close(pools.dual(3)(maps), torch.cat([slow(maps, mean), slow(maps, max)], dim=1))
    assert pools.dual(3).features == 6


@pytest.mark.parametrize("p", [1.0, 3.0, 6.5])
def test_gem_is_the_generalised_mean(maps: torch.Tensor, p: float) -> None:
    expected = slow(maps, lambda values: mean([value**p for value in values]) ** (1 / p))
    torch.testing.assert_close(pools.gem(3, p=p)(maps), expected)


def test_gem_learns_its_power_and_lies_between_mean_and_max(maps: torch.Tensor) -> None:
    gem = pools.gem(3)
    vectors = gem(maps)
    vectors.sum().backward()
    assert [name for name, _ in gem.named_parameters()] == ["p"]
    assert gem.p.grad > 0
    assert (vectors > pools.avg(3)(maps)).all()
    assert (vectors < pools.max(3)(maps)).all()


def test_gem_does_not_overflow_in_half_precision() -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        vectors = pools.gem(2)(torch.full((1, 2, 4, 4), 100.0, dtype=torch.float16))
    torch.testing.assert_close(vectors, torch.full((1, 2), 100.0), rtol=1e-3, atol=0)


def test_dual_reduced_is_a_linear_map_of_both(maps: torch.Tensor) -> None:
    torch.manual_seed(0)
    pool = pools.dual(3, reduce=2)
    assert pool.features == 2
    both = torch.cat([slow(maps, mean), slow(maps, max)], dim=1)[:, :, None, None]
    as_convolution = torch.nn.functional.conv2d(both, pool.reduce.weight[:, :, None, None], pool.reduce.bias)
    torch.testing.assert_close(pool(maps), as_convolution[:, :, 0, 0])
    assert not list(pools.dual(3).parameters()), "plain, it has no weights, as checkpoints know it"


def test_attention_weighs_each_place(maps: torch.Tensor) -> None:
    torch.manual_seed(0)
    pool = pools.attention(3, hidden=4)
    torch.testing.assert_close(pool(maps), slow(maps, mean), msg="it starts as the mean")
    torch.nn.init.normal_(pool.score.weight, std=3)
    hidden, offset, score = (p.detach().tolist() for p in (pool.hidden.weight, pool.hidden.bias, pool.score.weight[0]))
    expected = []
    for image in maps:
        places = image.flatten(1).T.tolist()
        powers = []
        for place in places:
            between = [
                math.tanh(sum(w * x for w, x in zip(row, place, strict=True)) + b)
                for row, b in zip(hidden, offset, strict=True)
            ]
            powers.append(math.exp(sum(w * h for w, h in zip(score, between, strict=True))))
        shares = [power / sum(powers) for power in powers]
        expected.append([sum(a * place[k] for a, place in zip(shares, places, strict=True)) for k in range(3)])
    torch.testing.assert_close(pool(maps), torch.tensor(expected))


def test_attention_learns_where_to_look() -> None:
    """One place of 16, marked in the first map, says the answer in the second; the mean alone says it dimly."""
    torch.manual_seed(0)
    maps, place = torch.randn(64, 2, 4, 4), torch.randint(16, (64,))
    maps[:, 0] = 0
    maps[:, 0].flatten(1)[torch.arange(64), place] = 1
    answers = maps[:, 1].flatten(1)[torch.arange(64), place]
    pool = pools.attention(2, hidden=8)
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (pool(maps)[:, 1] - answers).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * float((slow(maps, mean)[:, 1] - answers).square().mean())


def slow_regions(side: int, regions: int, draw: float) -> list[range]:
    """Graham 2014, sec. 2.1: starts ⌊(i + u) α⌋ - ⌊u α⌋ of regions two long; the last one ends the side."""
    alpha = (side - 2) / (regions - 1) if regions > 1 else 0
    starts = [int((place + draw) * alpha) - int(draw * alpha) for place in range(regions - 1)] + [side - 2]
    return [range(start, start + 2) for start in starts]


def test_fractional_max_predicts_the_mean_of_the_largest_values_of_even_regions() -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 7, 6)
    pool = pools.fractional_max(3, ratio=0.6).eval()
    rows, columns = slow_regions(7, 4, 0.5), slow_regions(6, 3, 0.5)
    for image, vector in zip(maps.tolist(), pool(maps).tolist(), strict=True):
        for channel, value in zip(image, vector, strict=True):
            largest = [max(channel[y][x] for y in down for x in across) for down in rows for across in columns]
            assert value == pytest.approx(mean(largest), rel=1e-5)
    assert torch.equal(pool(maps), pool(maps))


def test_fractional_max_draws_its_regions_in_training(maps: torch.Tensor) -> None:
    pool = pools.fractional_max(3)
    torch.manual_seed(1)
    drawn = [pool(maps) for _ in range(20)]
    assert len({tuple(vectors.flatten().tolist()) for vectors in drawn}) > 5
    torch.manual_seed(1)
    assert torch.equal(pool(maps), drawn[0])
    for vectors in drawn:
        assert (vectors > slow(maps, mean)).all()
        assert (vectors <= slow(maps, max)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("ratio", [0.01, 0.7, 0.99])
def test_fractional_max_takes_small_maps(size: tuple[int, int], ratio: float) -> None:
    pool, maps = pools.fractional_max(2, ratio=ratio), torch.rand(3, 2, *size)
    for mode in (True, False):
        vectors = pool.train(mode)(maps)
        assert vectors.shape == (3, 2)
        assert (vectors <= slow(maps, max) + 1e-6).all()
    torch.testing.assert_close(pools.fractional_max(2, ratio=ratio)(maps[..., :1, :1]), maps[..., 0, 0])


def slow_stripe(image: torch.Tensor, count: int, stripe: int, how: str) -> list[float]:
    """What one stripe of a map is pooled to; a row that two stripes share is in both."""
    height = image.shape[1]
    rows = range(stripe * height // count, math.ceil((stripe + 1) * height / count))
    values = [[value for row in rows for value in channel[row].tolist()] for channel in image]
    found = {"avg": lambda one: mean(one), "max": lambda one: max(one), "both": lambda one: mean(one) + max(one)}
    return [found[how](one) for one in values]


@pytest.mark.parametrize("how", ["avg", "max", "both"])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_stripes_pool_each_part_of_the_height(maps: torch.Tensor, count: int, how: str) -> None:
    expected = [[value for k in range(count) for value in slow_stripe(one, count, k, how)] for one in maps]
    pool = pools.stripes(3, count=count, reduce=0, how=how)
    torch.testing.assert_close(pool(maps), torch.tensor(expected))
    assert pool.features == 3 * count
    assert not list(pool.parameters())


def test_stripes_are_reduced_each_by_weights_of_its_own(maps: torch.Tensor) -> None:
    torch.manual_seed(0)
    pool = pools.stripes(3, count=2, reduce=4)
    whole = pools.stripes(3, count=2, reduce=0)(maps)
    expected = [torch.nn.functional.linear(whole[:, 3 * k : 3 * k + 3], pool.reduce[k]) for k in range(2)]
    torch.testing.assert_close(pool(maps), torch.cat(expected, dim=1))
    moved = maps.clone()
    moved[:, :, 2:] += 1
    same = (pool(moved) == pool(maps)).all(dim=0)
    assert same.tolist() == [True] * 4 + [False] * 4, "a stripe knows nothing of the other"


@pytest.mark.parametrize("branched", [False, True])
def test_granularities_hold_the_whole_and_its_stripes_of_each_branch(branched: bool) -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 6, 6, 5)
    expected = []
    for image in maps:
        branches = [image[:2], image[2:4], image[4:]] if branched else [image] * 3
        row = slow_stripe(branches[0], 1, 0, "max")
        for count in (2, 3):
            row += slow_stripe(branches[count - 1], 1, 0, "max")
            row += [value for k in range(count) for value in slow_stripe(branches[count - 1], count, k, "max")]
        expected.append(row)
    pool = pools.granularities(6, reduce=0, branched=branched)
    torch.testing.assert_close(pool(maps), torch.tensor(expected))
    assert (pool.parts, pool.features) == (8, 8 * (2 if branched else 6))
    assert pools.granularities(6, reduce=5, branched=branched)(maps).shape == (2, 40)


def test_granularities_refuse_channels_that_are_no_branches() -> None:
    with pytest.raises(UserError, match="8 channels are no 3 branches"):
        pools.granularities(8, branched=True)
    with pytest.raises(UserError, match="counts=0"):
        registry.bind("pools", "granularities(counts=[1,0])")
