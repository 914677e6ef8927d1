"""Convolutions as a CPU computes them best; the same weights, and the same results but for rounding.

- Over maps that are smaller than the kernel, as the last ones of a net see them in small images, most weights meet
  nothing but padding: of 3 × 3 over a map of one pixel the middle one alone counts, and gets a gradient. The others are
  left out.
- Where weights stay, a convolution over very few pixels is one product with a matrix.
- The gradients of depthwise ones in bf16 are computed in fp32, for which oneDNN has far better code.

Measured by ``benchmarks/convolutions.py``: docs/performance.md. On a GPU they are nn.Conv2d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

DENSE = 0.5  # a matrix of all pixels by all is taken if it has at most this share of the kernel's products
WIDE = 7  # from this side on 3 × 3 weights of stride 1 have fast gradients in bf16


class CpuConv2d(nn.Conv2d):
    """An nn.Conv2d that looks at how large its maps are."""

    matrices: dict[Any, torch.Tensor] | None = None  # by sides and dtype; only of weights that stay

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, O, h, w)."""
        if images.device.type != "cpu":
            return super().forward(images)
        sides = (images.shape[2], images.shape[3])
        kept = [self._met(axis, side) for axis, side in enumerate(sides)]
        count = (kept[0][1] - kept[0][0]) * (kept[1][1] - kept[1][0])
        if self.matrices is not None and self.groups == 1 and sides[0] * sides[1] <= DENSE * count:
            return self._product(images, sides)
        weight, padding = self.weight, list(self.padding)
        if count < self.kernel_size[0] * self.kernel_size[1]:
            weight = _Cut.apply(weight, *kept[0], *kept[1])
            padding = [self._padding(axis) - self.dilation[axis] * kept[axis][0] for axis in (0, 1)]
        if self._is_depthwise() and self._is_slow_backwards(sides):
            images = images.to(torch.get_autocast_dtype("cpu"))
            return _Depthwise.apply(images, weight, self.bias, self.stride, padding, self.dilation)
        return functional.conv2d(images, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    def _is_slow_backwards(self, sides: tuple[int, int]) -> bool:
        """Whether gradients are asked for, in bf16, that are faster in fp32."""
        if not torch.is_grad_enabled() or not torch.is_autocast_enabled("cpu"):
            return False
        return max(self.stride) > 1 or max(self.kernel_size) > 3 or min(sides) < WIDE

    def _padding(self, axis: int) -> int:
        return int(self.padding[axis])

    def _outputs(self, axis: int, side: int, kernel: int, padding: int) -> int:
        """How many pixels a side of the result has."""
        return (side + 2 * padding - self.dilation[axis] * (kernel - 1) - 1) // self.stride[axis] + 1

    def _met(self, axis: int, side: int) -> tuple[int, int]:
        """First of the weights along an axis that ever meet a pixel, and behind the last; all if it can't be less."""
        kernel, padding, dilation = self.kernel_size[axis], self._padding(axis), self.dilation[axis]
        if side > dilation * (kernel - 1):
            return 0, kernel
        count = self._outputs(axis, side, kernel, padding)
        starts = [place * self.stride[axis] - padding for place in range(count)]
        met = [one for one in range(kernel) if any(0 <= start + one * dilation < side for start in starts)]
        if not met:
            return 0, kernel
        first, end = met[0], met[-1] + 1
        less = padding - dilation * first
        fits = less >= 0 and self._outputs(axis, side, end - first, less) == count
        return (first, end) if fits else (0, kernel)

    def _product(self, images: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
        """The convolution as one product with a matrix."""
        height, width = (
            self._outputs(axis, side, self.kernel_size[axis], self._padding(axis)) for axis, side in enumerate(sides)
        )
        matrix = self._matrix(sides, (height, width))
        bias = None if self.bias is None else self.bias.repeat(height * width)
        found = functional.linear(images.permute(0, 2, 3, 1).flatten(1), matrix, bias)
        return found.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)

    def _matrix(self, sides: tuple[int, int], given: tuple[int, int]) -> torch.Tensor:
        """(h·w·O, H·W·C); kept, but where a compiler looks on, which keeps it itself."""
        if torch.compiler.is_compiling():
            return self._made_matrix(sides, given)
        assert self.matrices is not None
        key = (sides, self.weight.dtype)
        if key not in self.matrices:
            with torch.inference_mode(False), torch.no_grad():
                self.matrices[key] = self._made_matrix(sides, given)
        return self.matrices[key]

    def _made_matrix(self, sides: tuple[int, int], given: tuple[int, int]) -> torch.Tensor:
        """The weight between each pixel of the result and each of the map, 0 where the kernel does not reach."""
        none = self.kernel_size[0] * self.kernel_size[1]

        def weight_of(*pair: int) -> int:
            down, right = (
                (pair[2 + axis] - pair[axis] * self.stride[axis] + self._padding(axis)) / self.dilation[axis]
                for axis in (0, 1)
            )
            ends = zip((down, right), self.kernel_size, strict=True)
            if any(place % 1 or not 0 <= place < size for place, size in ends):
                return none
            return int(down) * self.kernel_size[1] + int(right)

        (height, width), (rows, columns) = given, sides
        places = [
            weight_of(i, j, y, x)
            for i in range(height)
            for j in range(width)
            for y in range(rows)
            for x in range(columns)
        ]
        weights = functional.pad(self.weight.flatten(2), (0, 1))[:, :, torch.tensor(places)]
        weights = weights.unflatten(2, (height, width, rows, columns)).permute(2, 3, 0, 4, 5, 1)
        return weights.reshape(height * width * self.out_channels, -1)


class _Cut(torch.autograd.Function):
    """The inner part of a kernel; its gradient comes in the kernel's own layout, so that no optimizer copies it."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.part = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        return weight[ctx.part]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        whole = torch.zeros_like(weight)
        whole[ctx.part] = gradient
        return whole, None, None, None, None


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in the format of its images (B, C, H, W), with gradients that are computed in fp32."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any
    ) -> torch.Tensor:
        """options: stride, padding and dilation, of rows and columns each."""
        ctx.save_for_backward(images, weight)
        ctx.options, ctx.biased = options, None if bias is None else list(bias.shape)
        return functional.conv2d(images, weight, bias, *options, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        found = torch.ops.aten.convolution_backward(
            gradient.float(), images.float(), weight.float(), ctx.biased, *ctx.options, False, [0, 0], len(weight),
            list(ctx.needs_input_grad[:3]),
        )  # fmt: skip
        first = None if found[0] is None else found[0].to(images.dtype)
        return first, found[1], found[2], None, None, None


def watch(module: nn.Module) -> None:
    """Make each plain convolution of a module one of these, in place; its name, weights and state stay."""
    for layer in module.modules():
        if _is_plain(layer):
            layer.__class__ = CpuConv2d


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is an nn.Conv2d and no kin of it, of more than a pixel, padded with zeros."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    return max(layer.kernel_size) > 1


def settle(module: nn.Module) -> None:
    """Tell the convolutions of a module that their weights stay."""
    for layer in module.modules():
        if isinstance(layer, CpuConv2d):
            layer.matrices = {}
