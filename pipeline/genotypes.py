"""Genotypes of small networks: ``r3w16x2,i5w32e4x2,d3w64x1`` is three stages, each half the size of the one before.

A stage is a letter, a kernel and ``w``, the width; then, where the block has them, ``e``, the expansion, and ``g``, the
groups; last ``x``, the number of blocks. Letters: p plain, r residual, d dense, i inverted bottleneck, s depthwise-
separable. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import registry
from pipeline.errors import UserError

PART = "searched"  # the backbone that is built of a genotype
KINDS = {"plain": "p", "residual": "r", "dense": "d", "inverted": "i", "separable": "s"}
EXPANDED, GROUPED = "i", "pr"  # the letters that may have e and g
KERNELS = (3, 5, 7)
NORMS = ("batch", "group", "layer")
POOLS = ("max", "avg", "conv")
EXAMPLE = "r3w16x2,i5w32e4x2,d3w64x1"
FORM = re.compile(r"([a-z])(\d+)w(\d+)(?:e(\d+))?(?:g(\d+))?x(\d+)")


@dataclass(frozen=True)
class Stage:
    """One stage: depth blocks of a kind (a letter). expansion: 0 where the block has none; groups: 1 likewise."""

    kind: str
    kernel: int
    width: int
    depth: int
    expansion: int = 0
    groups: int = 1

    @property
    def block(self) -> str:
        """The choice of block alone, such as ``i5e4``."""
        expansion = f"e{self.expansion}" if self.expansion else ""
        return f"{self.kind}{self.kernel}{expansion}{f'g{self.groups}' if self.groups > 1 else ''}"

    def __str__(self) -> str:
        more = self.block[2:]
        return f"{self.kind}{self.kernel}w{self.width}{more}x{self.depth}"


@dataclass(frozen=True)
class Genotype:
    """A small network: its stages, the norm of all of them, and how a stage begins at half the size."""

    stages: tuple[Stage, ...]
    norm: str = "batch"
    pool: str = "max"

    @property
    def text(self) -> str:
        """The stages."""
        return ",".join(map(str, self.stages))

    def __str__(self) -> str:
        return str(registry.Call(PART, {"stages": self.text, "norm": self.norm, "pool": self.pool}))

    def pieces(self, channels: int) -> Iterator[Piece]:
        """The network part by part; channels: of the images."""
        inputs = channels
        for place, stage in enumerate(self.stages):
            yield Piece(inputs, stage, self.norm, self.pool, place)
            inputs = stage.width


@dataclass(frozen=True)
class Piece:
    """A stage in its place, 0 the first, which begins with the stem; what its cost depends on."""

    inputs: int
    stage: Stage
    norm: str
    pool: str
    place: int

    def __str__(self) -> str:
        begins = self.pool if self.place else "stem"
        return f"{self.place} {self.inputs}-{self.stage} {begins} {self.norm}"


def stages(text: str) -> tuple[Stage, ...]:
    """The stages of a text; UserError that names the one that cannot be read."""
    tokens = [token.strip() for token in text.split(",")]
    return tuple(_stage(token) for token in tokens)


def read(backbone: str) -> Genotype:
    """The genotype of a backbone's call-string, defaults included."""
    given = registry.complete_arguments("backbones", backbone)
    return Genotype(stages(given["stages"]), given["norm"], given["pool"])


def _stage(token: str) -> Stage:
    found = FORM.fullmatch(token)
    if found is None:
        raise UserError(
            f"stages: {token!r} is no stage; write a letter ({_letters()}), a kernel, w and the width, x and the "
            f"number of blocks, such as stages='{EXAMPLE}'"
        )
    kind, kernel, width, expansion, groups, depth = found.groups()
    made = Stage(kind, int(kernel), int(width), int(depth), int(expansion or 0), int(groups or 1))
    if wrong := _fault(made, bool(expansion), bool(groups)):
        raise UserError(f"stages: {token}: {wrong}")
    return made


def _fault(stage: Stage, expanded: bool, grouped: bool) -> str:
    """What does not fit in a stage; empty if all does."""
    if stage.kind not in KINDS.values():
        return f"there is no block {stage.kind!r}; there are {_letters()}"
    if stage.kernel not in KERNELS:
        return f"the kernel is {stage.kernel}, but it is {', '.join(map(str, KERNELS[:-1]))} or {KERNELS[-1]}"
    if min(stage.width, stage.depth) < 1:
        return "width and number of blocks are at least 1"
    if expanded != (stage.kind in EXPANDED) or (expanded and stage.expansion < 1):
        return "inverted bottlenecks, and they alone, have an expansion of at least 1, such as i5w32e4x2"
    if grouped and (stage.kind not in GROUPED or stage.groups < 2):
        return "only plain and residual blocks have groups, at least 2, such as r3w32g4x2"
    return ""


def _letters() -> str:
    return ", ".join(f"{letter} {kind}" for kind, letter in KINDS.items())
