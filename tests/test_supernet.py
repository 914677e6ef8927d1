"""The network of all blocks: its gradients, its limits, and that its choice is the network that is built of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import torch
from torch import nn

from pipeline import artefacts, genotypes, registry, searching, supernet
from pipeline.searched import Inner
from pipeline.supernet import Supernet, straight_through

SPACE = (
    "small(stages=2,kinds=['plain','dense','inverted'],kernels=[3,5],widths=[8],depths=[1,3],expansions=[2],groups=[1],"
    "pools=['conv'])"
)


def plan(**more: object):
    space = registry.build("architectures", SPACE)(16)
    return registry.build("searchers", str(registry.Call("gumbel", more)))(space)


def weights(piece: genotypes.Piece) -> float:
    with torch.device("meta"):
        return float(sum(one.numel() for one in searching.blocks.whole(piece).parameters()))


def build(**more: float) -> Supernet:
    torch.manual_seed(0)
    own = plan()
    how = {"speed": 2.0, "start": 4.0, "end": 0.25, "soft": 0.0, "steps": 4, "limit": 0.0, "weight": 1.0, **more}
    return Supernet(3, own.options, own.depths, "batch", "conv", weights, **how)


# --- the choice -----------------------------------------------------------------------------------------------------


def test_a_choice_is_hard_and_its_gradient_is_the_softmaxs() -> None:
    torch.manual_seed(1)
    logits, noise, values = torch.randn(5), supernet.gumbel_noise(torch.zeros(5)), torch.randn(5)
    for temperature in (0.3, 1.0, 4.0):
        leaf = logits.clone().requires_grad_()
        choice = straight_through(leaf, temperature, noise)
        assert sorted(choice.detach().tolist()) == pytest.approx([0, 0, 0, 0, 1], abs=1e-6)
        assert int(choice.argmax()) == int((logits + noise).argmax())
        (choice * values).sum().backward()
        soft = torch.softmax((logits + noise) / temperature, 0).double()
        slow = [
            sum(float(values[j]) * float(soft[j]) * ((i == j) - float(soft[i])) / temperature for j in range(5))
            for i in range(5)
        ]
        np.testing.assert_allclose(leaf.grad.numpy(), slow, rtol=1e-4, atol=1e-6)


def test_the_temperature_has_its_limits() -> None:
    logits, noise = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.1, 0.0, -0.2])
    for temperature, expected in ((1e-3, [0, 1, 0]), (1e4, [1 / 3] * 3)):
        torch.testing.assert_close(
            torch.softmax((logits + noise) / temperature, 0),
            torch.tensor(expected, dtype=torch.float32),
            atol=1e-3,
            rtol=0,
        )
    cold, warm = (logits.clone().requires_grad_() for _ in range(2))
    straight_through(cold, 1e-3, noise)[0].backward()
    straight_through(warm, 1e4, noise)[0].backward()
    assert float(cold.grad.abs().max()) < 1e-6, "a cold softmax is flat away from its edges"
    assert 0 < float(warm.grad.abs().max()) < 1e-4, "a hot one is flat everywhere"


def test_the_noise_draws_by_the_odds() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, math.log(2.0), math.log(5.0)])
    picks = (logits + supernet.gumbel_noise(torch.zeros(20000, 3))).argmax(1)
    shares = torch.bincount(picks, minlength=3) / 20000
    torch.testing.assert_close(shares, torch.tensor([1, 2, 5]) / 8, atol=0.015, rtol=0)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [[("p3", 1), ("d5", 3)], [("i5e2", 3), ("i3e2", 1)], [("d3", 1), ("p5", 3)]])
def test_the_likeliest_path_is_the_network_that_is_built_of_it(choice: list) -> None:
    made = build()
    images = torch.randn(4, 3, 16, 16)
    for _ in range(3):
        made(images)  # statistics
    for stage, (name, depth) in zip(made.stages, choice, strict=True):
        stage.block.data[stage.names.index(name)] = 1.0
        stage.depth.data[stage.depths.index(depth)] = 1.0
    backbone = registry.build("backbones", str(plan().genotype(choice)))(3)
    backbone.load_state_dict(made.weights_of(choice))
    torch.testing.assert_close(backbone.eval()(images), made.eval()(images))

    made.train(), backbone.train()
    hot = [(torch.eye(6)[stage.names.index(name)], torch.eye(2)[stage.depths.index(depth)])
           for stage, (name, depth) in zip(made.stages, choice, strict=True)]  # fmt: skip
    maps = images
    for stage, (block, depth) in zip(made.stages, hot, strict=True):
        maps = stage.mixed(stage.enter(maps), block, depth)
    torch.testing.assert_close(backbone(images), maps)


def test_every_choice_and_weight_gets_a_gradient_and_the_temperature_falls() -> None:
    made, images = build(limit=100.0), torch.randn(4, 3, 8, 8)
    seen = []
    for _ in range(6):
        seen.append(made.temperature)
        (made(images).square().mean() + made.penalty()).backward()
    assert seen == pytest.approx([4, 2, 1, 0.5, 0.25, 0.25])
    assert all(one.grad is not None and one.grad.isfinite().all() for one in made.parameters())
    assert all(float(stage.block.grad.abs().max()) > 0 for stage in made.stages)
    made.eval()(images)
    assert float(made.step) == 6, "prediction does not cool"


def test_all_blocks_learn_while_choices_are_soft_and_those_drawn_alone_once_they_are_hard() -> None:
    def learning(made: Supernet) -> list[int]:
        made(torch.randn(4, 3, 8, 8)).square().mean().backward()
        return [sum(bool(next(one.parameters()).grad.abs().max() > 0) for one in stage.options.values())
                for stage in made.stages]  # fmt: skip

    assert learning(build(soft=0.5)) == [6, 6]
    assert learning(build()) == [1, 1]


def test_the_expected_cost_is_the_mean_over_all_networks() -> None:
    made, own = build(limit=1000.0, weight=0.5), plan()
    for stage in made.stages:
        nn.init.normal_(stage.block)
        nn.init.normal_(stage.depth)
    (first, first_depth), (second, second_depth) = made.odds()
    total = mass = 0.0
    for a, p in first.items():
        for b, q in first_depth.items():
            for c, r in second.items():
                for d, s in second_depth.items():
                    net = registry.build("backbones", str(own.genotype([(a, b), (c, d)])))
                    with torch.device("meta"):
                        cost = sum(one.numel() for one in net(3).parameters())
                    total, mass = total + p * q * r * s * cost, mass + p * q * r * s
    assert mass == pytest.approx(1, abs=1e-5)
    assert made.cost().item() == pytest.approx(total, rel=1e-4)
    assert made.penalty().item() == pytest.approx(0.5 * math.log(total / 1000), rel=1e-4)
    made.limit = 1e9
    assert made.penalty().item() == 0


def test_the_cost_alone_leads_to_the_cheapest() -> None:
    made = build(limit=1.0)
    optimizer = torch.optim.Adam([one for stage in made.stages for one in (stage.block, stage.depth)], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        made.penalty().backward()
        optimizer.step()
    for stage in made.stages:
        cheapest = int(stage.costs.min(dim=1).values.argmin())
        assert stage.likeliest() == (stage.names[cheapest], 1)


# --- the strategy ---------------------------------------------------------------------------------------------------


def test_networks_come_by_falling_odds_and_then_as_they_are_drawn() -> None:
    own = plan()
    own.odds = [({"p3": 0.5, "p5": 0.2, "d3": 0.1, "d5": 0.1, "i3e2": 0.05, "i5e2": 0.05}, {1: 0.7, 3: 0.3})] * 2
    every = list(own.likeliest())
    assert len(every) == len(set(every)) == (6 * 2) ** 2

    def chance(text: str) -> float:
        made = genotypes.read(text)
        return math.prod(own.odds[0][0][one.block] * own.odds[0][1][one.depth] for one in made.stages)

    chances = [chance(text) for text in every]
    assert chances == sorted(chances, reverse=True)
    assert next(own.proposals([], np.random.default_rng(0))) == every[0]
    rows = own.proposals([(every[0], 0.5)], np.random.default_rng(0))
    drawn = [genotypes.read(next(rows)) for _ in range(2000)]
    assert np.mean([made.stages[1].block == "p3" for made in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([made.stages[0].depth == 3 for made in drawn]) == pytest.approx(0.3, abs=0.05)


def test_a_search_by_gradients_goes_on_in_the_middle(project) -> None:
    """Killed after an epoch of the network of all blocks: the odds come out the same to the last bit."""
    root: Path = project.root
    small.write(root, rows=36, folds=3)
    words = ["stage=search", f"search.space={SPACE}", "search.strategy=gumbel(epochs=3)", "search.trials=2",
             "search.epochs=1", "train.checkpoint_seconds=0", "search.limit=20000"]  # fmt: skip
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    folder = root / "runs/noise/search/tiny-searched"
    first = artefacts.read_json(folder / "supernet.json")["odds"]
    assert not [*folder.rglob("*.ckpt")]
    assert abs(sum(first[0][0].values()) - 1) < 1e-5
    assert len(set(first[0][0].values())) > 1, "it has learned something"
    model = (root / "configs/model/tiny-searched.yaml").read_text()

    class Killed(searching.Frugal):
        def forward(self, batch, generator):
            if float(self.network.backbone.step) == 2:
                raise KeyboardInterrupt
            return super().forward(batch, generator)

    whole, searching.Frugal = searching.Frugal, Killed
    try:
        assert project.run(*words, "overwrite=true").code == 130
    finally:
        searching.Frugal = whole
    assert (folder / "supernet/last.ckpt").exists()
    assert project.run(*words).code == 0
    assert artefacts.read_json(folder / "supernet.json")["odds"] == first
    assert (root / "configs/model/tiny-searched.yaml").read_text().splitlines()[-20:] == model.splitlines()[-20:]
    assert Inner(small.config(), "tiny").held_out == (1,)
