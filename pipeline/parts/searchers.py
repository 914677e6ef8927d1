"""How ``stage=search`` chooses the networks it tries.

Form: ``f(space, *, …)`` gives an object with ``prepare(bench)``, what it must learn before the first trial, and
``proposals(history, generator)``, an endless row of backbones, the most wanted first. space: see architectures.py.
history: what is finished, in order, as (backbone, score), a higher score is better, −inf where a trial failed; two
rows of the same history and generator are the same. The stage takes the first that is new and within its limit. No
torch.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.genotypes import Genotype, Stage
from pipeline.registry import part

History = Sequence[tuple[str, float]]
Odds = list[tuple[dict[str, float], dict[int, float]]]  # of each stage: of its blocks, and of how many of them


@part(source="Li & Talwalkar 2020, sec. 4: the baseline that searches must beat")
class random_search:
    """Networks at random, whatever came of the ones before."""

    def __init__(self, space: Any) -> None:
        self.space = space

    def prepare(self, bench: Any) -> None:
        """Nothing to learn."""

    def proposals(self, history: History, generator: np.random.Generator) -> Iterator[str]:
        """See the module."""
        while True:
            yield self.space.draw(generator)


@part(
    source="Real et al. 2019, algorithm 1 (regularised evolution)",
    allowed={"population": (1, None), "sample": (1, None)},
)
class evolution:
    """Regularised evolution: the best of a few changes in one choice, and the oldest dies, however good it is.

    population: networks alive; so many begin at random. sample: drawn of them, with replacement, for the tournament
    that the best wins.
    """

    def __init__(self, space: Any, *, population: int = 12, sample: int = 4) -> None:
        self.space, self.population, self.sample = space, population, sample

    def prepare(self, bench: Any) -> None:
        """Nothing to learn."""

    def proposals(self, history: History, generator: np.random.Generator) -> Iterator[str]:
        """See the module."""
        alive = history[-self.population :]
        while len(alive) < self.population:
            yield self.space.draw(generator)
        while True:
            picks = [alive[place] for place in generator.integers(len(alive), size=self.sample)]
            yield self.space.mutate(max(picks, key=lambda one: one[1])[0], generator)


@part(
    source="Jang et al. 2017, straight-through; Xie et al. 2019 (SNAS); cost: Wu et al. 2019 (FBNet), sec. 3.2",
    blocks=True,
    allowed={
        "epochs": (1, None), "start": (1e-3, None), "end": (1e-3, None), "soft": (0, 1), "weight": (0, None),
        "lr": (1e-9, None), "speed": (1e-3, None), "width": (0, None),
    },
)  # fmt: skip
class gumbel:
    """One network of all blocks side by side learns which to use, by gradients; then its choices are tried.

    Each stage draws a block and a number of blocks by Gumbel's noise, uses these alone, and learns through the softmax
    at a temperature that falls from start to end. All weights and choices learn together, from the training rows, by
    Adam: an optimizer that scales each step would move blocks that were not drawn. epochs: of this training. soft:
    share of it in which the softmax mixes all blocks, so that all learn. weight: of the cost in its loss, log(expected
    cost / search.limit) where that is above 0; without a limit there is no such term. lr: peak learning rate of this
    training. speed: factor on the choices, and so on their learning rate. width: of the
    first stage, each later one twice as wide; 0: the middle of the space's. Widths, norm and pool are no choice here,
    as in FBNet: the first norm and pool of the space. The first trial is the likeliest network, the others are drawn.
    """

    def __init__(
        self,
        space: Any,
        *,
        epochs: int = 6,
        start: float = 5.0,
        end: float = 0.5,
        soft: float = 0.5,
        weight: float = 1.0,
        lr: float = 3e-3,
        speed: float = 20.0,
        width: int = 0,
    ) -> None:
        if end > start:
            raise UserError(f"gumbel(start={start:g}, end={end:g}): the temperature falls, so end is at most start")
        widths = sorted(space.lists["widths"])
        if width and width not in widths:
            raise UserError(f"gumbel(width={width}), but the space's widths are {', '.join(map(str, widths))}")
        self.space, self.epochs, self.start, self.end = space, epochs, start, end
        self.soft, self.weight, self.lr, self.speed = soft, weight, lr, speed
        self.width = width or widths[len(widths) // 2]
        self.odds: Odds = []

    @property
    def options(self) -> list[list[Stage]]:
        """The blocks to choose from, stage by stage, one of each."""
        return [self.space.block_choices(place, self.width * 2**place) for place in range(self.space.stages)]

    @property
    def depths(self) -> list[int]:
        """The numbers of blocks to choose from."""
        return sorted(self.space.lists["depths"])

    def genotype(self, choice: Sequence[tuple[str, int]]) -> Genotype:
        """The network of a block and a number of blocks for each stage."""
        known = [{one.block: one for one in stage} for stage in self.options]
        stages = [
            Stage(of[name].kind, of[name].kernel, of[name].width, depth, of[name].expansion, of[name].groups)
            for of, (name, depth) in zip(known, choice, strict=True)
        ]
        return Genotype(tuple(stages), self.space.lists["norms"][0], self.space.lists["pools"][0])

    def prepare(self, bench: Any) -> None:
        """Train the network of all blocks, or read what came of it."""
        self.odds = bench.odds(self)

    def proposals(self, history: History, generator: np.random.Generator) -> Iterator[str]:
        """The networks by falling odds for the first trial; then as they are drawn."""
        if not history:
            yield from itertools.islice(self.likeliest(), 1000)
        while True:
            yield str(self.genotype([(_drawn(blocks, generator), _drawn(depths, generator))
                                     for blocks, depths in self.odds]))  # fmt: skip

    def likeliest(self) -> Iterator[str]:
        """All networks by falling odds, ties in the order of the space."""
        columns = [sorted(part.items(), key=lambda one: -one[1]) for stage in self.odds for part in stage]
        first = (0,) * len(columns)

        def loss(places: tuple[int, ...]) -> float:
            return -sum(math.log(max(column[at][1], 1e-300)) for column, at in zip(columns, places, strict=True))

        heap, seen = [(loss(first), first)], {first}
        while heap:
            _, places = heapq.heappop(heap)
            names = [column[at][0] for column, at in zip(columns, places, strict=True)]
            yield str(self.genotype(list(zip(names[::2], names[1::2], strict=True))))
            for number, column in enumerate(columns):
                more = (*places[:number], places[number] + 1, *places[number + 1 :])
                if more[number] < len(column) and more not in seen:
                    seen.add(more)
                    heapq.heappush(heap, (loss(more), more))


def _drawn(odds: dict[Any, float], generator: np.random.Generator) -> Any:
    """One of the keys by its odds."""
    shares = np.array(list(odds.values()))
    return list(odds)[int(generator.choice(len(odds), p=shares / shares.sum()))]
