"""Activations: the function between the layers of a built backbone; sigmoids of gates stay.

Form: ``f(backbone: nn.Module) -> nn.Module``, the same module, changed. It is done after weights are loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.registry import part

if TYPE_CHECKING:
    from torch import nn


@part(source="the baseline")
def own(backbone: nn.Module) -> nn.Module:
    """The backbone's own activation."""
    return backbone


@part(source="Nair & Hinton 2010")
def relu(backbone: nn.Module) -> nn.Module:
    """max(0, x)."""
    return _swap(backbone, "relu")


@part(source="Maas et al. 2013")
def leaky_relu(backbone: nn.Module) -> nn.Module:
    """x above 0, 0.01 x below."""
    return _swap(backbone, "leaky_relu")


@part(source="Clevert et al. 2016, eq. 15")
def elu(backbone: nn.Module) -> nn.Module:
    """x above 0, exp(x) − 1 below."""
    return _swap(backbone, "elu")


@part(source="Klambauer et al. 2017, eq. 2")
def selu(backbone: nn.Module) -> nn.Module:
    """ELU scaled so that outputs keep mean 0 and variance 1, made for networks without norms."""
    return _swap(backbone, "selu")


@part(source="Hendrycks & Gimpel 2016")
def gelu(backbone: nn.Module) -> nn.Module:
    """x times the share of the normal distribution below it."""
    return _swap(backbone, "gelu")


@part(source="Elfwing et al. 2018; Ramachandran et al. 2017 (Swish)")
def silu(backbone: nn.Module) -> nn.Module:
    """x times its sigmoid."""
    return _swap(backbone, "silu")


@part(source="Misra 2019")
def mish(backbone: nn.Module) -> nn.Module:
    """x · tanh(softplus(x))."""
    return _swap(backbone, "mish")


@part(source="Howard et al. 2019, sec. 5.2")
def hard_swish(backbone: nn.Module) -> nn.Module:
    """SiLU in straight pieces, as MobileNetV3 has it."""
    return _swap(backbone, "hard_swish")


@part(source="He et al. 2015, eq. 1")
def prelu(backbone: nn.Module) -> nn.Module:
    """x above 0, a learned share of x below, one number a layer; it begins at 0.25."""
    return _swap(backbone, "prelu")


def _swap(backbone: nn.Module, name: str) -> nn.Module:
    from pipeline.surgery import swap_activation

    return swap_activation(backbone, name)
