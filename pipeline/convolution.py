"""A small convolutional net over the maps of several runs: level 2 that sees a pixel's neighbours. Loads torch.

Its input are the runs' logits, its output a correction of their mean, so that at first it is that mean. It learns on
drawn crops of OOF maps; the same data and seed give the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.forms import LEVELS, VOID
from pipeline.maps import Maps, joined
from pipeline.windows import pad, random_crop

WIDTH, STEPS, BATCH, CROP, RATE = 16, 150, 6, 96, 3e-3
REACH = 3  # rows beyond a pixel's own that the net looks at, one a layer
SMALLEST = 1e-3


class Stacker(nn.Module):
    """(B, M, P, H, W) probabilities of M runs → (B, P, H, W) logits. Wolpert 1992, with a receptive field of 7 px."""

    def __init__(self, members: int, planes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(members * planes, WIDTH, 3, padding=1, padding_mode="replicate"), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="replicate"), nn.ReLU(),
            nn.Conv2d(WIDTH, planes, 3, padding=1, padding_mode="replicate"),
        )  # fmt: skip
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """See the class."""
        chance = maps.clamp(SMALLEST, 1 - SMALLEST)
        logits = chance.log() - (-chance).log1p()
        return logits.mean(dim=1) + self.layers(logits.flatten(1, 2))


def fit(members: Sequence[Maps], truth: Any, task: Any, rows: np.ndarray, seed: int) -> Stacker:
    """A stacker that learned from these rows of OOF maps.

    members: of each run the maps of N images. truth, task: as in ``pipeline/blending.py``. rows: (n,) int64.
    """
    torch.manual_seed(seed)
    net = Stacker(len(members), len(task.columns))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    generator = np.random.default_rng([seed, len(rows)])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        pairs = [_crop(members, truth, task, int(row), generator) for row in generator.choice(rows, BATCH)]
        maps, planes = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        loss = _loss(net(maps), planes, task.learns.simplex)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _loss(logits: torch.Tensor, planes: torch.Tensor, simplex: bool) -> torch.Tensor:
    known = planes != VOID
    target = planes.float() / LEVELS
    if simplex:
        each = -(functional.log_softmax(logits, dim=1) * target).sum(dim=1)
        kept = known.all(dim=1)
        return (each * kept).sum() / kept.sum().clamp(min=1)
    each = functional.binary_cross_entropy_with_logits(logits, target.clamp(0, 1), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def _crop(
    members: Sequence[Maps], truth: Any, task: Any, row: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(M, P, S, S) float32 of the runs and (P, S, S) uint8 planes, from one place of an image."""
    planes = task.planes(truth.one(row))
    top, left = random_crop(generator, *planes.shape[1:], (CROP, CROP))
    place = np.s_[..., top : top + CROP, left : left + CROP]
    maps = np.stack([member.one(row)[place] for member in members])
    short = CROP - maps.shape[-2], CROP - maps.shape[-1]
    learned = np.pad(planes[place], [(0, 0), (0, short[0]), (0, short[1])], constant_values=VOID)
    whole = np.moveaxis(pad(np.moveaxis(maps.reshape(-1, *maps.shape[2:]), 0, -1), CROP, CROP), -1, 0)
    return np.ascontiguousarray(whole).reshape(*maps.shape[:2], CROP, CROP), learned


class Convolved(Maps):
    """Maps of several runs through one of several stackers. nets: by a number; which: (N,), that of each image."""

    def __init__(self, members: Sequence[Maps], nets: Sequence[Stacker], which: np.ndarray, simplex: bool) -> None:
        self.members, self.nets, self.which, self.simplex = list(members), list(nets), which, simplex
        self.columns = members[0].columns

    def __len__(self) -> int:
        return len(self.which)

    def one(self, row: int) -> np.ndarray:
        return joined(self.bands(row))

    def bands(self, row: int) -> Iterator[np.ndarray]:
        stacked = (np.stack(parts) for parts in zip(*(member.bands(row) for member in self.members), strict=True))
        held, above = next(stacked), 0
        for band in stacked:  # the net looks at some rows above and below
            beside = np.concatenate([held, band[:, :, :REACH]], axis=2)
            yield self._answer(row, beside)[:, above : held.shape[2]]
            held, above = np.concatenate([held[:, :, -REACH:], band], axis=2), REACH
        yield self._answer(row, held)[:, above:]

    @torch.inference_mode()
    def _answer(self, row: int, maps: np.ndarray) -> np.ndarray:
        logits = self.nets[int(self.which[row])](torch.from_numpy(maps)[None])[0]
        found: np.ndarray = (logits.softmax(dim=0) if self.simplex else logits.sigmoid()).numpy()
        return found
