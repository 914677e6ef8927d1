"""Stems: how a built backbone begins.

Form: ``f(backbone: nn.Module, *, …) -> nn.Module``, the same module, changed. It is done after weights are loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.registry import part

if TYPE_CHECKING:
    from torch import nn


@part(source="the baseline")
def own(backbone: nn.Module) -> nn.Module:
    """The backbone's own stem."""
    return backbone


@part(source="He et al. 2016, sec. 4.2", resnets=True)
def small(backbone: nn.Module) -> nn.Module:
    """A timm ResNet that begins with a 3×3 convolution at full resolution and no pooling, for at most 64 px."""
    from pipeline.surgery import small_stem

    return small_stem(backbone)
