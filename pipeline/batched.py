"""Augmentation of whole batches by torch, on any device: the changes that albumentations makes of single images.

Form: ``change(images, planes, draws) -> (images, planes)``. images (B, H, W, C) uint8, planes (B, H, W, P) uint8 or
None; neither is changed in place. What a row becomes depends on its seed and on the changes before alone, never on the
batch that it is in: draws are counted, and a change takes as many whether it uses them or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import UserError

GAMMA, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
FINE = 24  # bits of a uniform number: what float32 holds, and all that every device can compute with
TRIES = 10  # of albumentations, to find a crop that fits
PADDINGS = {"replicate": "border", "reflect": "reflection", "constant": "zeros"}

Both = tuple[Tensor, Tensor | None]


class Change(Protocol):
    """A random change of every row of a batch."""

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both: ...


def changed(changes: Sequence[Change], images: Tensor, planes: Tensor | None, seeds: Tensor) -> Both:
    """The changes in turn. seeds: (B,) int64, made from (seed, epoch, row), on the images' device."""
    draws = Draws(seeds)
    for change in changes:
        images, planes = change(images, planes, draws)
    return images, planes


class Draws:
    """Random numbers, of each row a stream of its own: SplitMix64 (Steele et al. 2014) in int64, which wraps."""

    def __init__(self, seeds: Tensor) -> None:
        self.starts, self.count = _mixed(seeds + GAMMA), 0

    def uniform(self, count: int) -> Tensor:
        """(B, count) float32 in [0, 1), in steps of 2^-24."""
        return _shifted(self._next(count), 64 - FINE).float() / 2**FINE

    def below(self, limit: int, count: int) -> Tensor:
        """(B, count) int64, each of 0 … limit - 1 equally likely."""
        return (self.uniform(count) * limit).long().clamp(max=limit - 1)

    def bytes(self, count: int) -> Tensor:
        """(B, count) uint8, each value equally likely."""
        return self._next(-(-count // 8)).view(torch.uint8)[:, :count]

    def chosen(self, chance: float) -> Tensor:
        """(B, 1, 1, 1) bool, true with this chance."""
        return (self.uniform(1) < chance)[:, :, None, None]

    def _next(self, count: int) -> Tensor:
        steps = torch.arange(self.count + 1, self.count + count + 1, device=self.starts.device)
        self.count += count
        return _mixed(self.starts[:, None] + steps * GAMMA)


def _mixed(values: Tensor) -> Tensor:
    """The finaliser: int64 → int64, one to one."""
    values = (values ^ _shifted(values, 30)) * FIRST
    values = (values ^ _shifted(values, 27)) * SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


# --- moved by whole pixels ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mirror:
    """Left and right swapped, with this chance."""

    chance: float

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        swapped = draws.chosen(self.chance)
        return _each(lambda one: torch.where(swapped, one.flip(2), one), images, planes)


@dataclass(frozen=True)
class Turn:
    """One of the eight flips and rotations of a square, each equally likely."""

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        across, down, right = (draws.chosen(0.5) for _ in range(3))

        def turned(one: Tensor) -> Tensor:
            one = torch.where(across, one.transpose(1, 2), one)
            one = torch.where(down, one.flip(1), one)
            return torch.where(right, one.flip(2), one).contiguous()

        return _each(turned, images, planes)


@dataclass(frozen=True)
class Shift:
    """Moved by up to so many whole pixels each way, reflected at the edge without repeating it."""

    most: int

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        height, width = images.shape[1:3]
        down, right = (draws.below(2 * self.most + 1, 2) - self.most).split(1, dim=1)
        rows = _reflected(_places(height, images) + down, height)
        columns = _reflected(_places(width, images) + right, width)
        return _each(lambda one: _picked(one, rows[:, :, None], columns[:, None]), images, planes)


# --- parts covered --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hole:
    """A square made black, anywhere inside; size: its side as a share of the image's. Planes stay."""

    size: float
    chance: float

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        sides = [int(side * self.size) for side in images.shape[1:3]]
        free = [whole - side + 1 for whole, side in zip(images.shape[1:3], sides, strict=True)]
        top, left = draws.below(free[0], 1), draws.below(free[1], 1)
        inside = _inside(images, top, left, sides[0], sides[1]) & draws.chosen(self.chance)
        return images.masked_fill(inside, 0), planes


@dataclass(frozen=True)
class Erase:
    """A rectangle filled with random values; area: its share of the image, ratio: width over height. Planes stay."""

    area: tuple[float, float]
    ratio: tuple[float, float]
    chance: float

    def __post_init__(self) -> None:
        _check_rising(area=self.area, ratio=self.ratio)

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        height, width, channels = images.shape[1:]
        low, high = self.ratio
        least = height * width * self.area[0]
        most = min(height * width * self.area[1], low * height**2, width**2 / high)
        places, flag = draws.uniform(2), draws.chosen(self.chance)
        top, left, values = draws.uniform(1), draws.uniform(1), draws.bytes(height * width * channels)
        if most < least:  # no such rectangle lies within the image
            return images, planes
        area = _between(places[:, :1], least, most)
        ratio = _between(places[:, 1:], (area / height**2).clamp(min=low), (width**2 / area).clamp(max=high))
        rows, columns = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        inside = _inside(images, _scaled(top, height - rows), _scaled(left, width - columns), rows, columns)
        return torch.where(inside & flag, values.reshape(images.shape), images), planes


# --- moved by parts of pixels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """A random part enlarged to the whole; scale: its share of the area, ratio: width over height."""

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __post_init__(self) -> None:
        _check_rising(scale=self.scale, ratio=self.ratio)

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        whole, (rows, columns) = images.shape[1:3], self.sizes(images, draws)
        found = []
        for side, part in zip(whole, (rows, columns), strict=True):
            start, place = _scaled(draws.uniform(1), side - part), _places(side, images)
            exact = (start + (place + 0.5) * (part / side) - 0.5).clamp(min=start, max=start + part - 1)
            found.append((exact, (start + torch.floor(place * part / side)).long()))
        (down, rows), (right, columns) = found
        images = _sampled(images, right[:, None], down[:, :, None], "border")
        return images, None if planes is None else _picked(planes, rows[:, :, None], columns[:, None])

    def sizes(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(B, 1) float32 whole numbers each: height and width of the part, the first of ten tries that fits."""
        height, width = images.shape[1:3]
        areas = _between(draws.uniform(TRIES), self.scale[0], self.scale[1]) * (height * width)
        ratios = _between(draws.uniform(TRIES), math.log(self.ratio[0]), math.log(self.ratio[1])).exp()
        rows, columns = (areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()
        fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
        first = fits.int().argmax(dim=1, keepdim=True)
        rows, columns, fits = (one.gather(1, first) for one in (rows, columns, fits))
        tall, wide = self._fallback(height, width)
        return torch.where(fits, rows, tall), torch.where(fits, columns, wide)

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        """The largest part that has an allowed ratio."""
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        return (height, round(height * self.ratio[1])) if width / height > self.ratio[1] else (height, width)


@dataclass(frozen=True)
class Affine:
    """Shifted by whole pixels, rotated and scaled about the middle, in one bilinear step; planes by the nearest pixel.

    shift: largest, as a share of the side. rotate: largest, in degrees. scale: least and largest, of each axis its own.
    border: as of augments.light.
    """

    shift: float
    rotate: float
    scale: tuple[float, float]
    border: str
    chance: float = 1.0

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        right, down = self.source(images, draws.uniform(5))
        flag = draws.chosen(self.chance)
        moved = torch.where(flag, _sampled(images, right, down, PADDINGS[self.border]), images)
        return moved, None if planes is None else torch.where(flag, self.nearest(planes, right, down), planes)

    def source(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) float32 each: the column and the row that every pixel comes from. places: (B, 5) in [0, 1)."""
        height, width = images.shape[1:3]
        x, y = (one[:, :, None] for one in _between(places[:, :2], -self.shift, self.shift).split(1, dim=1))
        wide, tall = (one[:, :, None] for one in _between(places[:, 2:4], *self.scale).split(1, dim=1))
        angle = torch.deg2rad(_between(places[:, 4:], -self.rotate, self.rotate))[:, :, None]
        right = _places(width, images)[:, None] - (width - 1) / 2 - (x * width).trunc()
        down = _places(height, images)[:, :, None] - (height - 1) / 2 - (y * height).trunc()
        back = angle.cos() * right - angle.sin() * down, angle.sin() * right + angle.cos() * down
        return back[0] / wide + (width - 1) / 2, back[1] / tall + (height - 1) / 2

    def nearest(self, planes: Tensor, right: Tensor, down: Tensor) -> Tensor:
        """Planes by the nearest pixel; 0 where a constant border is."""
        height, width = planes.shape[1:3]
        rows, columns = (down + 0.5).floor().long(), (right + 0.5).floor().long()
        if self.border == "reflect":
            return _picked(planes, _reflected(rows, height), _reflected(columns, width))
        found = _picked(planes, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
        if self.border == "replicate":
            return found
        outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
        return found.masked_fill(outside[..., None], 0)


# --- changed in tone ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tone:
    """Levels times 1 ± contrast, plus or minus brightness, a share of 255."""

    brightness: float
    contrast: float
    chance: float

    def __call__(self, images: Tensor, planes: Tensor | None, draws: Draws) -> Both:
        places, flag = draws.uniform(2), draws.chosen(self.chance)
        factor = 1 + _between(places[:, :1], -self.contrast, self.contrast)[:, :, None, None]
        more = 255 * _between(places[:, 1:], -self.brightness, self.brightness)[:, :, None, None]
        return torch.where(flag, (images * factor + more).clamp(0, 255).to(torch.uint8), images), planes


# --- what they share ------------------------------------------------------------------------------------------------


def _each(function: Callable[[Tensor], Tensor], images: Tensor, planes: Tensor | None) -> Both:
    return function(images), None if planes is None else function(planes)


def _between(places: Tensor, low: Any, high: Any) -> Tensor:
    """Places in [0, 1) → between low and high."""
    return low + (high - low) * places


def _scaled(place: Tensor, most: Tensor) -> Tensor:
    """A place in [0, 1) → a whole number of 0 … most, each equally likely; float32."""
    return torch.minimum((place * (most + 1)).floor(), most)


def _places(length: int, like: Tensor) -> Tensor:
    """(1, length): 0, 1, …"""
    return torch.arange(length, device=like.device)[None]


def _reflected(places: Tensor, length: int) -> Tensor:
    """Places beyond the ends, led back inside; the ends are not repeated (OpenCV's BORDER_REFLECT_101)."""
    places = places % (2 * length - 2)
    return torch.minimum(places, 2 * length - 2 - places)


def _picked(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W, C) at rows and columns, int64 that broadcast to (B, H, W)."""
    batch = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels[batch, rows, columns]


def _sampled(images: Tensor, right: Tensor, down: Tensor, padding: str) -> Tensor:
    """Images (B, H, W, C) uint8 at columns and rows, float32 that broadcast to (B, H, W), bilinear."""
    height, width = images.shape[1:3]
    right, down = torch.broadcast_tensors(right * (2 / (width - 1)) - 1, down * (2 / (height - 1)) - 1)
    pixels, grid = images.permute(0, 3, 1, 2).float(), torch.stack([right, down], dim=-1)
    found = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode=padding, align_corners=True)
    return found.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _inside(images: Tensor, top: Tensor, left: Tensor, rows: Any, columns: Any) -> Tensor:
    """(B, H, W, 1) bool: the rectangle of so many rows and columns. All are (B, 1), or numbers."""
    down, right = _places(images.shape[1], images), _places(images.shape[2], images)
    within = ((down >= top) & (down < top + rows))[:, :, None] & ((right >= left) & (right < left + columns))[:, None]
    return within[..., None]


def _check_rising(**pairs: tuple[float, float]) -> None:
    for name, (low, high) in pairs.items():
        if low > high:
            raise UserError(f"{name}=({low:g}, {high:g}), but the least comes before the largest")
