"""Averages against their formulas, and what they do to BatchNorm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.checkpoint import averaged, predicting
from pipeline.errors import UserError
from pipeline.parts.averages import ema, greedy_soup, none, polyak, recompute_statistics, snapshots, swa, uniform_soup


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def wander(network: nn.Module, step: int) -> None:
    """Other weights and other statistics, as after an optimizer step."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network.train()(torch.randn(8, 3) * (step + 1))


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_formula_and_copies_buffers(warmup: bool) -> None:
    network = model()
    average = ema(network, decay=0.6, warmup=warmup)
    slow = {name: parameter.detach().double().clone() for name, parameter in network.named_parameters()}
    for step in range(12):
        wander(network, step)
        average.update(network, step)
        decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
        for name, parameter in network.named_parameters():
            slow[name] = decay * slow[name] + (1 - decay) * parameter.detach().double()
    target = model()
    average.apply_to(target)
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), slow[name], rtol=1e-5, atol=1e-5)
    for name, buffer in network.named_buffers():
        assert torch.equal(dict(target.named_buffers())[name], buffer)


def test_ema_leaves_the_model_alone_and_its_own_weights_apart() -> None:
    network = model()
    average = ema(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    average.update(network, 0)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    kept = {name: value.clone() for name, value in average.weights.items()}
    target = model()
    average.apply_to(target)
    wander(target, 1)
    wander(network, 2)
    assert all(torch.equal(average.weights[name], value) for name, value in kept.items())


def test_ema_forgets_the_random_start() -> None:
    network = model()
    average = ema(network, decay=0.999)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    for step in range(20):
        average.update(network, step)
    assert (average.weights["0.weight"] - 1).abs().max() < 1e-3


def test_ema_refuses_another_models_state() -> None:
    average = ema(model())
    with pytest.raises(ValueError, match=r"other weights.*0\.bias"):
        average.load_state_dict({"weights": {"0.weight": torch.zeros(4, 3)}})


def test_none_keeps_nothing() -> None:
    network = model()
    average = none(network)
    wander(network, 0)
    before = network[0].weight.clone()
    average.update(network, 0)
    average.apply_to(network)
    assert average.state_dict() == {}
    assert torch.equal(network[0].weight, before)


def drift(network: nn.Module, average, total: int) -> list[dict[str, torch.Tensor]]:
    """Wander for so many steps; returns the parameters after each, in double precision."""
    visited = []
    for step in range(total):
        wander(network, step)
        average.update(network, step)
        visited.append({name: tensor.detach().double().clone() for name, tensor in network.named_parameters()})
    return visited


def expect_mean(average, network: nn.Module, visited: list[dict[str, torch.Tensor]], weights: list[float]) -> None:
    """The average applied is this weighted mean of the parameters, and has the network's buffers."""
    target = model()
    average.apply_to(target)
    for name, parameter in target.named_parameters():
        stacked = torch.stack([place[name] for place in visited])
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        expected = (shares.reshape(-1, *[1] * parameter.ndim) * stacked).sum(dim=0)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-5)
    for name, buffer in network.named_buffers():
        assert torch.equal(dict(target.named_buffers())[name], buffer)


@pytest.mark.parametrize("power", [0, 1, 3])
def test_polyak_is_the_mean_weighted_by_the_step(power: int) -> None:
    network = model()
    average = polyak(network, power=power)
    visited = drift(network, average, 9)
    rising = [math.comb(step + power, power) for step in range(9)]  # Shamir & Zhang: near step ** power
    expect_mean(average, network, visited, rising)


def test_polyak_after_one_step_is_the_model() -> None:
    network = model()
    average = polyak(network)
    wander(network, 0)
    average.update(network, 0)
    assert all(torch.equal(average.weights[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("total", "start", "every", "taken"),
    [
        (12, 0.75, 1, [9, 10, 11]),
        (12, 0.5, 2, [6, 8, 10]),
        (12, 0.0, 5, [0, 5, 10]),
        (12, 1.0, 1, [11]),
        (1, 0.75, 1, [0]),
    ],
)
def test_swa_is_the_mean_of_the_last_part(total: int, start: float, every: int, taken: list[int]) -> None:
    network = model()
    average = swa(network, total, start=start, every=every)
    visited = drift(network, average, total)
    last = taken[-1]
    if last < total - 1:  # the buffers are those of the last weights taken in
        network = model()
        drift(network, swa(network, total), last + 1)
    expect_mean(average, network, visited, [float(step in taken) for step in range(total)])


def test_swa_is_the_model_until_it_begins() -> None:
    network = model()
    average = swa(network, 8, start=0.5)
    drift(network, average, 4)
    assert all(torch.equal(average.weights[name], value) for name, value in network.state_dict().items())


def test_swa_must_know_the_total() -> None:
    with pytest.raises(UserError, match="steps of the whole training"):
        swa(model())


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=0.3)
    )


def test_statistics_are_recomputed_as_torchs_update_bn_does() -> None:
    images = [torch.randn(6, 3, 8, 8) * 3 + 1 for _ in range(4)]
    network, other = deep(), deep()
    network[0](images[0])
    with torch.no_grad():
        network[0].weight.mul_(2)
        other[0].weight.mul_(2)
    network.eval()
    recompute_statistics(network, iter(images))
    torch.optim.swa_utils.update_bn(images, other)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(network.named_buffers())[name], buffer)
    assert not any(layer.training for layer in network.modules())
    assert [network[1].momentum, network[4].momentum] == [0.1, 0.3]
    assert not torch.equal(network[1].running_mean, torch.zeros(4))


def test_statistics_are_those_without_dropout_and_draw_nothing() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3, affine=False))
    images = torch.randn(8, 3)
    before = torch.get_rng_state()
    network.train()
    recompute_statistics(network, [images])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(layer.training for layer in network.modules())
    torch.testing.assert_close(network[1].running_mean, images.mean(dim=0))
    with pytest.raises(ValueError, match="no images"):
        recompute_statistics(network, [])
    recompute_statistics(nn.Linear(3, 2), [])


def test_swa_keeps_the_statistics_that_it_finished_with() -> None:
    """As fit would call it: within averaged, then the weights are saved."""
    network = model()
    average = swa(network, 6, start=0.5)
    drift(network, average, 6)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    images = [torch.randn(16, 3) * 5]
    with averaged(network, average):
        average.finish(network, images)
        finished = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(torch.equal(network.state_dict()[name], value) for name, value in own.items())
    with averaged(network, average) as predicting:
        assert all(torch.equal(predicting.state_dict()[name], value) for name, value in finished.items())
        seen = predicting[0](images[0])
        torch.testing.assert_close(predicting[1].running_mean, seen.mean(dim=0))
    assert not torch.equal(finished["1.running_mean"], own["1.running_mean"])


def test_swa_recomputes_nothing_before_it_begins() -> None:
    network = model()
    average = swa(network, 6, start=0.5)
    drift(network, average, 3)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with averaged(network, average) as predicting:
        average.finish(network, iter(()))  # which recomputing would refuse
        assert all(torch.equal(predicting.state_dict()[name], value) for name, value in own.items())
    average.update(network, 3)
    again = swa(network, 6, start=0.5)
    again.load_state_dict(average.state_dict())
    for one in (average, again):
        with averaged(network, one), pytest.raises(ValueError, match="from no images"):
            one.finish(network, iter(()))


# --- snapshots ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("newest", "places"), [(0, [8, 5, 2]), (2, [8, 5])])
def test_snapshots_are_the_networks_at_the_ends_of_cycles(newest: int, places: list[int]) -> None:
    network = model()
    ensemble = snapshots(network, 9, [2, 5, 8], newest=newest)
    counts, seen = [], []
    for step in range(9):
        wander(network, step)
        ensemble.update(network, step)
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        counts.append(ensemble.count)
    most = newest or 3
    assert counts == [min(count, most) for count in (1, 1, 1, 2, 2, 2, 3, 3, 3)], "the cycle under way counts too"
    found = [{k: v.clone() for k, v in one.state_dict().items()} for one in predicting(network, ensemble)]
    for one, place in zip(found, places, strict=True):
        assert all(torch.equal(one[name], seen[place][name]) for name in one)
    assert all(torch.equal(value, seen[8][name]) for name, value in network.state_dict().items()), "it comes back"


def test_a_cycle_under_way_speaks_through_the_network_itself() -> None:
    """So too at the end, where steps that AMP skipped keep the last cycle from its end."""
    network = model()
    ensemble = snapshots(network, 6, [2, 5])
    for step in range(5):
        wander(network, step)
        ensemble.update(network, step)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    now, before = ({k: v.clone() for k, v in one.state_dict().items()} for one in predicting(network, ensemble))
    assert all(torch.equal(now[name], own[name]) for name in own)
    assert not torch.equal(before["0.weight"], own["0.weight"])


def test_frozen_batchnorms_are_not_recomputed() -> None:
    network = model()
    network[1].weight.requires_grad_(False)
    before = network[1].running_mean.clone()
    recompute_statistics(network, [torch.randn(8, 3)])
    assert torch.equal(network[1].running_mean, before)


# --- soups --------------------------------------------------------------------------------------------------------


def flat() -> nn.Module:
    """A model whose only weight is its answer, without BatchNorm."""
    line = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        line.weight.zero_()
    return line


def slow_greedy(weights: list[float], scores: list[float], candidates: int, target: float) -> tuple[float, list[int]]:
    """Recipe 1 of Wortsman et al. on numbers, whose score is minus their distance from the target."""
    ranked = sorted(range(len(weights)), key=lambda place: (-scores[place], place))[:candidates]
    soup: list[int] = []
    for place in ranked:
        trial = [weights[one] for one in [*soup, place]]
        now = [weights[one] for one in soup]
        if not soup or abs(sum(trial) / len(trial) - target) <= abs(sum(now) / len(now) - target):
            soup.append(place)
    return sum(weights[place] for place in soup) / len(soup), [place + 1 for place in soup]


@pytest.mark.parametrize("candidates", [1, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_soup_is_the_papers_recipe(candidates: int, seed: int) -> None:
    values = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    scores, network = [-abs(value - 0.2) for value in values], flat().double()
    soup = greedy_soup(network, candidates=candidates)
    for value, score in zip(values, scores, strict=True):
        network.weight.data.fill_(value)
        soup.observe(network, score)
    chosen = soup.conclude(network, lambda: iter(()), lambda: -abs(network.weight.item() - 0.2))
    expected, epochs = slow_greedy(values, scores, candidates, 0.2)
    soup.apply_to(network)
    assert network.weight.item() == pytest.approx(expected)
    assert chosen == epochs


def test_uniform_soup_is_the_mean_of_the_best_epochs() -> None:
    network = flat()
    soup = uniform_soup(network, candidates=2)
    for value, score in ((1.0, 0.5), (4.0, 0.9), (8.0, 0.1), (2.0, 0.9)):
        network.weight.data.fill_(value)
        soup.observe(network, score)
    soup.apply_to(network)
    assert network.weight.item() == 2.0, "until the end, the model itself"
    assert soup.conclude(network, lambda: iter(()), lambda: 0.0) == [2, 4]
    soup.apply_to(network)
    assert network.weight.item() == 3.0


@pytest.mark.parametrize("recompute", [True, False])
def test_a_soup_has_statistics_of_its_own_or_the_best_epochs(recompute: bool) -> None:
    network = model()
    soup = uniform_soup(network, candidates=3, recompute=recompute)
    for step in range(3):
        wander(network, step)
        soup.observe(network, -step)
        if step == 0:
            best = network[1].running_mean.clone()
    images = [torch.randn(8, 3), torch.randn(8, 3)]
    soup.conclude(network, lambda: images, lambda: 0.0)
    soup.apply_to(network)
    slow = torch.stack([network[0](batch).mean(dim=0) for batch in images]).mean(dim=0)
    torch.testing.assert_close(network[1].running_mean, slow if recompute else best)
