"""Pools against loops over the positions of a map."""

from __future__ import annotations

import pytest
import torch

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
