"""Encoder, decoder and heads as one network of planes, and the nested decoder of U-Net++ with its levels.

A ``Segmenter`` is called with images (B, channels, H, W), sides multiples of ``multiple``, and gives raw planes (B,
outputs, H, W). For training there is ``answers(images)``: ``planes`` is a list with the planes of each level, and the
loss is the mean of their losses; it has one entry unless the decoder learns with deep supervision, and the last is
what the call gives. ``labels`` are raw outputs (B, outputs) for the image as a whole, whether plane c is anywhere in
it; None without the auxiliary head. ``with_labels(images)`` gives both for prediction, of the last level alone.
``levels`` are the numbers of the levels; ``prune(level)`` drops for good what the level's planes do not need.

To fold BatchNorm for prediction, trace ``encoder`` and ``decoder`` apart, since the whole has several methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import UserError


class Answers(NamedTuple):
    """planes: of each level (B, outputs, H, W), the last counts; labels: (B, outputs), or None. All are raw."""

    planes: list[torch.Tensor]
    labels: torch.Tensor | None


class Segmenter(nn.Module):
    """See the head of the file. encoder: of pipeline/encoders.py, or alike. decoder: from its maps to one, or a list.

    heads: from each of the decoder's maps to planes of any size, by the level's number.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, heads: nn.ModuleDict, labels: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.heads = heads
        self.labels = labels

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of; whoever calls pads."""
        return self.encoder.multiple

    @property
    def levels(self) -> list[int]:
        """The numbers of the levels, the last is what a call gives."""
        return [int(level) for level in self.heads]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images → planes of the last level."""
        return self._answers(images, self.levels[-1:]).planes[-1]

    def answers(self, images: torch.Tensor) -> Answers:
        """Images → planes of all levels, and labels."""
        return self._answers(images, self.levels)

    def with_labels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images → planes of the last level, and labels."""
        found = self._answers(images, self.levels[-1:])
        return found.planes[-1], found.labels

    def prune(self, level: int) -> None:
        """Drop what the planes of a level do not need, auxiliary labels among it where the encoder gets shorter."""
        if level not in self.levels:
            raise UserError(f"level={level}, but the decoder has {', '.join(map(str, self.levels))}")
        if level == self.levels[-1] and len(self.levels) == 1:
            return
        if level < self.levels[-1]:
            self.decoder.prune(level)
            self.encoder.prune(level + 1)
            self.labels = None
        self.heads = nn.ModuleDict({str(level): self.heads[str(level)]})

    def _answers(self, images: torch.Tensor, levels: list[int]) -> Answers:
        features = self.encoder(images)
        maps = self.decoder(features)
        maps = maps if isinstance(maps, list) else [maps]
        last = self.levels[-1]
        size = images.shape[-2:]
        planes = [_sized(self.heads[str(level)](maps[level - last - 1]), size) for level in levels]
        return Answers(planes, None if self.labels is None else self.labels(features[-1]))


def _sized(planes: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Planes as large as the image."""
    if planes.shape[-2:] == size:
        return planes
    return functional.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)


class NestedDecoder(nn.Module):
    """The dense grid of U-Net++: node (i, j) sees all nodes of its row before it, and node (i + 1, j - 1) enlarged.

    Row i has the size of map i, the finest is 0; column 0 are the maps. Zhou et al. 2018, eq. 1; the widths are smp's:
    the longest diagonal has its own, the other nodes those of their row's map. widths: of maps, finest first. diagonal:
    of the nodes (rows - 2, 1), …, (0, rows - 1), coarsest first. block: makes a node of (channels from below, channels
    of its row, channels out), called with both.
    """

    def __init__(
        self, widths: Sequence[int], diagonal: Sequence[int], block: Callable[[int, int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        own = {(row, 0): width for row, width in enumerate(widths)}
        nodes = {}
        for row, column in self._order():
            longest = row + column == self.depth
            own[row, column] = diagonal[column - 1] if longest else widths[row]
            across = sum(own[row, before] for before in range(column))
            nodes[f"{row}_{column}"] = block(own[row + 1, column - 1], across, own[row, column])
        self.nodes = nn.ModuleDict(nodes)
        self.outputs = [own[0, level] for level in range(1, self.depth + 1)]

    def _order(self) -> list[tuple[int, int]]:
        """Nodes so that what each needs comes before it: diagonal after diagonal."""
        return [(total - column, column) for total in range(1, self.depth + 1) for column in range(1, total + 1)]

    def prune(self, level: int) -> None:
        """Keep the nodes that node (0, level) needs."""
        self.depth = level
        kept = {f"{row}_{column}" for row, column in self._order()}
        self.nodes = nn.ModuleDict({name: node for name, node in self.nodes.items() if name in kept})
        self.outputs = self.outputs[:level]

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The image and maps, finest first → the nodes (0, 1), (0, 2), …."""
        found = {(row, 0): features[row + 1] for row in range(self.depth + 1)}
        for row, column in self._order():
            # smp joins the nodes of a row from the longest way to the shortest, with the map last
            across = [found[row, before] for before in reversed(range(column))]
            found[row, column] = self.nodes[f"{row}_{column}"](found[row + 1, column - 1], torch.cat(across, dim=1))
        return [found[0, level] for level in range(1, self.depth + 1)]
