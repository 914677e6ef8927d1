"""Spaces of networks for ``stage=search``: which there are, and how one becomes another.

Form: ``f(image_size, *, …)`` gives an object with ``draw(generator)``, a backbone's call-string drawn at random,
``mutate(text, generator)``, one that differs from it in one choice, and ``fits(weights)``, whether a network of so many
weights belongs to the space. No torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import backbone_names, genotypes
from pipeline.errors import UserError, nearest
from pipeline.genotypes import EXPANDED, GROUPED, KERNELS, KINDS, Genotype, Stage
from pipeline.registry import part


@part(
    source="stages after He et al. 2016; choices after MnasNet (Tan et al. 2019, sec. 4.1)",
    blocks=True,
    allowed={
        "stages": (1, 8), "kinds": ("plain", "residual", "dense", "inverted", "separable"), "kernels": (3, 7),
        "widths": (1, None), "depths": (1, None), "expansions": (1, None), "groups": (1, None),
        "norms": ("batch", "group", "layer"), "pools": ("max", "avg", "conv"),
    },
)  # fmt: skip
class small:
    """Small networks for small images: for each stage a block, its kernel, its width and how many; a norm, a pool.

    stages: how many; each halves the size but the first. kinds: of blocks. kernels: 3, 5 or 7. widths: of the first
    stage; each later one takes twice as much, from the same list. depths: blocks of a stage. expansions: of inverted
    bottlenecks. groups: of plain and residual blocks; 1 is none. norms, pools: of the whole network. What it builds:
    ./run.sh help searched.
    """

    def __init__(
        self,
        image_size: int,
        *,
        stages: int = 4,
        kinds: tuple[str, ...] = ("plain", "residual", "dense", "inverted", "separable"),
        kernels: tuple[int, ...] = (3, 5, 7),
        widths: tuple[int, ...] = (8, 16, 24, 32),
        depths: tuple[int, ...] = (1, 2, 3),
        expansions: tuple[int, ...] = (2, 4),
        groups: tuple[int, ...] = (1, 4),
        norms: tuple[str, ...] = ("batch",),
        pools: tuple[str, ...] = ("max", "conv"),
    ) -> None:
        self.lists: dict[str, Sequence[Any]] = {
            "kinds": kinds, "kernels": kernels, "widths": widths, "depths": depths, "expansions": expansions,
            "groups": groups, "norms": norms, "pools": pools,
        }  # fmt: skip
        for name, values in self.lists.items():
            if not values or len(set(values)) < len(values):
                raise UserError(f"small({name}={list(values)}): give each choice once, and at least one")
        if wrong := set(kernels) - set(KERNELS):
            raise UserError(f"small(kernels={list(kernels)}): {min(wrong)} is none of {', '.join(map(str, KERNELS))}")
        if image_size < 2 ** (stages - 1):
            raise UserError(
                f"small(stages={stages}) halves images of {image_size} px {stages - 1} times, which leaves nothing; "
                "take fewer stages"
            )
        self.stages = stages

    def draw(self, generator: np.random.Generator) -> str:
        """Every choice at random."""
        stages = tuple(self._stage(place, generator) for place in range(self.stages))
        return str(Genotype(stages, self._one("norms", generator), self._one("pools", generator)))

    def mutate(self, text: str, generator: np.random.Generator) -> str:
        """Another value of one choice: first which choice, then its value, each at random."""
        moves = [list(dict.fromkeys(move)) for move in self._moves(genotypes.read(text), generator)]
        moves = [others for move in moves if (others := [one for one in move if one != text])]
        if not moves:
            return text
        move = moves[int(generator.integers(len(moves)))]
        return move[int(generator.integers(len(move)))]

    def fits(self, weights: int) -> bool:
        """Always: search.limit bounds these."""
        return True

    def block_choices(self, place: int, width: int) -> list[Stage]:
        """Every kind of block that a stage of this width may be made of, one of it."""
        found = []
        for kind in map(KINDS.__getitem__, self.lists["kinds"]):
            for kernel in self.lists["kernels"]:
                plain = Stage(kind, kernel, width, 1)
                found += [replace(plain, **more) for more in self._extras(kind)]
        return found

    def _extras(self, letter: str) -> list[dict[str, int]]:
        if letter in EXPANDED:
            return [{"expansion": one} for one in self.lists["expansions"]]
        return [{"groups": one} for one in self.lists["groups"]] if letter in GROUPED else [{}]

    def _stage(self, place: int, generator: np.random.Generator) -> Stage:
        letter = KINDS[self._one("kinds", generator)]
        kernel, depth = self._one("kernels", generator), self._one("depths", generator)
        width = self._one("widths", generator) * 2**place
        extras = self._extras(letter)
        return Stage(letter, kernel, width, depth, **extras[int(generator.integers(len(extras)))])

    def _one(self, name: str, generator: np.random.Generator) -> Any:
        values = self.lists[name]
        return values[int(generator.integers(len(values)))]

    def _moves(self, made: Genotype, generator: np.random.Generator) -> Iterator[list[str]]:
        """For each choice of the genotype what it may become; a new kind of block draws what only it has."""
        for place, stage in enumerate(made.stages):
            kinds = [KINDS[name] for name in self.lists["kinds"]]
            fresh = [(kind, self._extras(kind)) for kind in kinds]
            others = [
                Stage(kind, stage.kernel, stage.width, stage.depth, **extras[int(generator.integers(len(extras)))])
                for kind, extras in fresh if kind != stage.kind
            ]  # fmt: skip
            for variants in (
                others,
                [replace(stage, kernel=one) for one in self.lists["kernels"]],
                [replace(stage, width=one * 2**place) for one in self.lists["widths"]],
                [replace(stage, depth=one) for one in self.lists["depths"]],
                [replace(stage, **extra) for extra in self._extras(stage.kind)],
            ):
                yield [str(replace(made, stages=(*made.stages[:place], one, *made.stages[place + 1 :])))
                       for one in variants]  # fmt: skip
        yield [str(replace(made, norm=one)) for one in self.lists["norms"]]
        yield [str(replace(made, pool=one)) for one in self.lists["pools"]]


@part(
    source="timm (Wightman 2019), by the names it registers",
    allowed={"least": (0, None), "most": (0, None)},
)
class timm:
    """Backbones of timm by their names or patterns, and by their size.

    names: such as resnet18, or with * and ?: 'convnext_*'. least, most: millions of weights; most=0: no bound. A
    pattern takes in hundreds of nets, many too large for small images: bound it.
    """

    def __init__(
        self,
        image_size: int,
        *,
        names: tuple[str, ...] = ("resnet10t", "resnet18", "resnet26", "mobilenetv3_small_*", "efficientnet_b0"),
        least: float = 0.0,
        most: float = 0.0,
    ) -> None:
        known = sorted(backbone_names.timm_names())
        self.names: list[str] = []
        for name in names:
            found = fnmatch.filter(known, name) if set(name) & {*"*?["} else [name]
            if not found:
                raise UserError(f"timm(names=…): no name in timm is like {name!r}")
            if not set(found) <= {*known}:
                raise UserError(f"timm(names=…): there is no {name!r} in timm{nearest(name, known)}")
            self.names += [one for one in found if one not in self.names]
        if most and least > most:
            raise UserError(f"timm(least={least:g}, most={most:g}): least is above most")
        self.least, self.most = least, most

    def draw(self, generator: np.random.Generator) -> str:
        """One of the names."""
        return self.names[int(generator.integers(len(self.names)))]

    def mutate(self, text: str, generator: np.random.Generator) -> str:
        """A neighbour in the alphabet, where kin stand together."""
        if len(self.names) < 2:
            return text
        there = sorted(self.names)
        place = there.index(text)
        step = 1 if place == 0 else -1 if place == len(there) - 1 else int(generator.choice([-1, 1]))
        return there[place + step]

    def fits(self, weights: int) -> bool:
        """Whether it is of the size asked for."""
        return self.least <= weights / 1e6 and (not self.most or weights / 1e6 <= self.most)
