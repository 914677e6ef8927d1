"""The network of all blocks side by side, which learns by Gumbel's noise which of them to use: for ``gumbel()``.

Each stage holds every block of its options, as many one after the other as may be chosen, behind one stem or pool.
While it trains, a stage draws one of them and one depth (Gumbel-max), gives what these give, and passes gradients
through the softmax at the temperature (straight-through, Jang et al. 2017); at first the softmax itself mixes them all.
In eval mode it uses the likeliest of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import blocks
from pipeline.genotypes import Piece, Stage


def straight_through(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """(O,) logits and standard Gumbel noise → (O,) a one-hot choice whose gradient is the softmax's at the temperature.

    Jang et al. 2017, sec. 2.2: forward the argmax of logits + noise, backward softmax((logits + noise) / temperature).
    """
    soft = relaxed(logits, temperature, noise)
    hard = functional.one_hot(soft.argmax(), len(soft)).to(soft.dtype)
    return hard - soft.detach() + soft


def relaxed(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """The same choice before it is made hard: the softmax, Jang et al. 2017, eq. 2."""
    return torch.softmax((logits + noise) / temperature, dim=0)


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise, −log(−log(u)), of this shape."""
    return -torch.empty_like(like).exponential_().log()


class SuperStage(nn.Module):
    """One stage with all its options, (B, inputs, H, W) → (B, width, H, W), or at half the size.

    pieces: the stage with each block, all of one width; depths: the numbers of blocks to choose from. costs: (O, D)
    what each block costs at each depth.
    """

    costs: Tensor

    def __init__(self, pieces: Sequence[Piece], depths: Sequence[int], costs: Tensor, speed: float) -> None:
        super().__init__()
        self.names, self.depths, self.speed = [one.stage.block for one in pieces], list(depths), speed
        self.enter = blocks.enter(pieces[0])
        first = pieces[0].inputs if pieces[0].place else pieces[0].stage.width
        self.options = nn.ModuleDict(
            {one.stage.block: nn.ModuleList(_chain(one.stage, first, max(depths))) for one in pieces}
        )
        blocks.settled(self, pieces[0].norm)
        self.block, self.depth = nn.Parameter(torch.zeros(len(pieces))), nn.Parameter(torch.zeros(len(depths)))
        self.register_buffer("costs", costs, persistent=False)

    def forward(self, images: Tensor, temperature: float, hard: bool = True) -> Tensor:
        """See the class; not hard: the softmax itself mixes all blocks, so that all of them learn (Xie et al. 2019)."""
        images = self.enter(images)
        if not self.training:
            return self.path(images, *self.likeliest())
        logits = self.speed * self.block.float(), self.speed * self.depth.float()
        choose = straight_through if hard else relaxed
        block, depth = (choose(one, temperature, gumbel_noise(one)) for one in logits)
        return self.mixed(images, block, depth)

    def mixed(self, images: Tensor, block: Tensor, depth: Tensor) -> Tensor:
        """The sum over blocks (O,) and depths (D,) by their weights; each is computed, so that each has a gradient."""
        total: Any = 0.0
        for share, option in zip(block, self.options.values(), strict=True):
            maps = images
            for number, layer in enumerate(option, 1):  # type: ignore[arg-type]
                maps = layer(maps)
                if number in self.depths:
                    total = total + share * depth[self.depths.index(number)] * maps
        return total

    def path(self, images: Tensor, name: str, depth: int) -> Tensor:
        """What one block gives, so many of it."""
        for layer in self.options[name][:depth]:  # type: ignore[index]
            images = layer(images)
        return images

    def likeliest(self) -> tuple[str, int]:
        """The block and the depth with the largest odds."""
        return self.names[int(self.block.argmax())], self.depths[int(self.depth.argmax())]

    def odds(self) -> tuple[Tensor, Tensor]:
        """(O,), (D,): the chances of blocks and depths."""
        return torch.softmax(self.speed * self.block.float(), 0), torch.softmax(self.speed * self.depth.float(), 0)

    def cost(self) -> Tensor:
        """The expected cost, with a gradient."""
        block, depth = self.odds()
        return block @ self.costs @ depth


class Supernet(nn.Module):
    """Backbone of ``SuperStage``s, (B, channels, H, W) → (B, F, h, w).

    options: each stage's blocks. cost: of a piece. steps: optimizer steps over which the temperature falls from start
    to end; in the share ``soft`` of them choices are not yet hard. limit: of the expected cost, 0 for none; weight: of
    its share of the loss.
    """

    step: Tensor

    def __init__(
        self, channels: int, options: Sequence[Sequence[Stage]], depths: Sequence[int], norm: str, pool: str,
        cost: Callable[[Piece], float], *, speed: float, start: float, end: float, soft: float, steps: int,
        limit: float, weight: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.start, self.end, self.soft, self.steps = start, end, soft, steps
        self.limit, self.weight = limit, weight
        self.stages, inputs = nn.ModuleList(), channels
        for place, stage in enumerate(options):
            pieces = [Piece(inputs, one, norm, pool, place) for one in stage]
            deeper = [[replace(one, stage=replace(one.stage, depth=depth)) for depth in depths] for one in pieces]
            costs = torch.tensor([[cost(one) for one in row] for row in deeper], dtype=torch.float32)
            self.stages.append(SuperStage(pieces, depths, costs, speed))
            inputs = stage[0].width
        self.num_features = inputs
        self.register_buffer("step", torch.zeros(()))

    @property
    def temperature(self) -> float:
        """Falls geometrically from start to end."""
        return self.start * (self.end / self.start) ** min(1.0, float(self.step) / self.steps)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, F, h, w)."""
        for stage in self.stages:
            images = stage(images, self.temperature, float(self.step) >= self.soft * self.steps)
        if self.training:
            self.step += 1
        return images

    def penalty(self) -> Tensor:
        """What the loss adds for the cost: weight · max(0, log(expected cost / limit))."""
        if not self.limit:
            return torch.zeros((), device=self.step.device)
        return self.weight * torch.log(self.cost() / self.limit).clamp_min(0)

    def cost(self) -> Tensor:
        """The expected cost of a network drawn by the odds."""
        return torch.stack([stage.cost() for stage in self.stages]).sum()

    def odds(self) -> list[tuple[dict[str, float], dict[int, float]]]:
        """The chances of each stage's blocks and depths, as plain numbers."""
        found = []
        for stage in self.stages:
            block, depth = (one.detach().cpu().tolist() for one in stage.odds())
            found.append((dict(zip(stage.names, block, strict=True)), dict(zip(stage.depths, depth, strict=True))))
        return found

    def weights_of(self, choice: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        """The state dict of the network ``searched`` that uses one block and depth a stage, with the weights here."""
        found = {}
        for place, (stage, (name, depth)) in enumerate(zip(self.stages, choice, strict=True)):
            taken = [stage.enter, *stage.options[name][:depth]]
            for number, module in enumerate(taken):
                for key, value in module.state_dict().items():
                    found[f"layers.{place}.{number}.{key}"] = value
        return found


def _chain(stage: Stage, inputs: int, depth: int) -> list[nn.Module]:
    """As many blocks one after the other as may be chosen."""
    return [blocks.block(stage, stage.width if number else inputs) for number in range(depth)]


def usual_steps(rows: int, batch: int, epochs: int) -> int:
    """The optimizer steps of a training, near enough for a temperature."""
    return max(1, math.floor(rows / batch)) * epochs
