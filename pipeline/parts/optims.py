"""Optimizers, from torch, timm and papers.

Form: ``f(parameters, lr, *, …) -> torch.optim.Optimizer``. parameters: tensors or groups (dicts with "params"), as
torch takes them. lr: per optimizer step, before the schedule. ``step()`` gets no closure; ``state_dict`` holds tensors
and plain Python only, and the rates in ``param_groups`` are the ones that the steps use. The fused kernels are used
where torch has them (on a CPU a step of Adam on 11 M parameters takes 2.8 ms instead of 11).

``spare``: give biases and norms (all that has fewer than two dimensions) no weight decay; each group is then two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline import registry
from pipeline.registry import part
from pipeline.torchvision_fix import fix_torchvision

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


@part(source="Kingma & Ba 2015, algorithm 1 (torch)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def adam(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    spare: bool = False,
) -> Optimizer:
    """Adam.

    weight_decay: added to the gradient (L2), so that Adam divides it too; see adamw. betas: memory of the gradient's
    mean and of its square. eps: keeps the division finite. spare: no weight decay of biases and norms.
    """
    given = _spared(parameters, spare)
    return _fused(torch.optim.Adam, given, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@part(source="Loshchilov & Hutter 2019 (torch)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def adamw(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    spare: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay.

    weight_decay: each step shrinks every weight by lr · weight_decay, biases and norms too. betas and eps as in adam.
    spare: no weight decay of biases and norms.
    """
    given = _spared(parameters, spare)
    return _fused(torch.optim.AdamW, given, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@part(
    source="Sutskever et al. 2013 (torch)",
    allowed={"momentum": (0, 0.999999), "weight_decay": (0, None)},
)
def sgd(
    parameters: Parameters,
    lr: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    spare: bool = False,
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    momentum: share of the last step kept; 0 is plain descent. nesterov: look ahead along the momentum; without
    momentum it says nothing. weight_decay: added to the gradient (L2). spare: no weight decay of biases and norms.
    """
    looks_ahead = nesterov and momentum > 0
    given = _spared(parameters, spare)
    return _fused(torch.optim.SGD, given, lr=lr, momentum=momentum, nesterov=looks_ahead, weight_decay=weight_decay)


@part(source="Duchi et al. 2011 (torch)", allowed={"weight_decay": (0, None), "initial": (0, None)})
def adagrad(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.0,
    initial: float = 0.0,
    eps: float = 1e-10,
    spare: bool = False,
) -> Optimizer:
    """Each weight's gradient over the root of the sum of all its squares so far; lr about 10 times Adam's.

    weight_decay: added to the gradient (L2). initial: what the sums begin with; higher calms the first steps. eps:
    keeps the division finite. spare: no weight decay of biases and norms.
    """
    given = _spared(parameters, spare)
    options = {"initial_accumulator_value": initial, "eps": eps, "weight_decay": weight_decay}
    optimizer = _fused(torch.optim.Adagrad, given, lr=lr, **options)
    optimizer.state.clear()  # the first step makes it anew, where the weights then are: a GPU perhaps
    return optimizer


@part(source="Zeiler 2012, algorithm 1 (torch)", allowed={"rho": (0, 0.999999), "weight_decay": (0, None)})
def adadelta(
    parameters: Parameters,
    lr: float,
    *,
    rho: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    spare: bool = False,
) -> Optimizer:
    """Steps in the proportion of the last steps' size to the gradients'; the paper has lr=1.

    rho: memory of both squares. weight_decay: added to the gradient (L2). eps: keeps the division finite, and sets the
    first steps' size. spare: no weight decay of biases and norms.
    """
    return torch.optim.Adadelta(_spared(parameters, spare), lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)


@part(
    source="Hinton 2012, lecture 6e; centred: Graves 2013, eq. 38–45 (torch)",
    allowed={"alpha": (0, 0.999999), "momentum": (0, 0.999999), "weight_decay": (0, None)},
)
def rmsprop(
    parameters: Parameters,
    lr: float,
    *,
    alpha: float = 0.99,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    spare: bool = False,
) -> Optimizer:
    """The gradient over the root of its mean square.

    alpha: memory of the square. momentum: share of the last step kept. centered: divide by the standard deviation
    instead. weight_decay: added to the gradient (L2). eps: keeps the division finite. spare: no weight decay of biases
    and norms.
    """
    options = {"alpha": alpha, "momentum": momentum, "centered": centered, "eps": eps, "weight_decay": weight_decay}
    return torch.optim.RMSprop(_spared(parameters, spare), lr=lr, **options)


@part(source="Dozat 2016 (torch)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def nadam(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    spare: bool = False,
) -> Optimizer:
    """Adam with Nesterov's look ahead.

    weight_decay: added to the gradient (L2); decoupled: shrink the weights by lr · weight_decay instead, as adamw
    does. betas and eps as in adam. spare: no weight decay of biases and norms.
    """
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled}
    return torch.optim.NAdam(_spared(parameters, spare), lr=lr, **options)


@part(source="Liu et al. 2020, algorithm 2 (torch)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def radam(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    spare: bool = False,
) -> Optimizer:
    """Adam that divides by the root of the square only as far as its estimate can be trusted: a warm-up of its own.

    weight_decay: added to the gradient (L2); decoupled: shrink the weights by lr · weight_decay instead, as adamw
    does. betas and eps as in adam. spare: no weight decay of biases and norms.
    """
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled}
    return torch.optim.RAdam(_spared(parameters, spare), lr=lr, **options)


@part(source="You et al. 2020, algorithm 2 (timm)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def lamb(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    spare: bool = True,
) -> Optimizer:
    """Adam whose step is scaled, in each layer, to the size of the layer's weights; for batches of thousands.

    lr: about 5 times Adam's. weight_decay: added to Adam's step before it is scaled. betas and eps as in adam. spare:
    biases and norms are neither decayed nor scaled.
    """
    given = _spared(parameters, spare, always_adapt=False)
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": None}  # fit clips if asked
    return _timm().Lamb(given, lr=lr, always_adapt=True, **options)


@part(
    source="You et al. 2017, algorithm 1 (timm)",
    allowed={"momentum": (0, 0.999999), "weight_decay": (0, None), "trust": (0, None)},
)
def lars(
    parameters: Parameters,
    lr: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    trust: float = 0.001,
    spare: bool = True,
) -> Optimizer:
    """Descent with momentum whose step is scaled, in each layer, to the size of the layer's weights.

    For batches of thousands; lr is 1 to 30. momentum and nesterov as in sgd. weight_decay: added to the gradient (L2).
    trust: the size of a layer's step over that of its weights, at lr=1. spare: biases and norms are neither decayed
    nor scaled.
    """
    given = _spared(parameters, spare, always_adapt=False)
    options = {"momentum": momentum, "nesterov": nesterov and momentum > 0, "weight_decay": weight_decay}
    return _timm().Lars(given, lr=lr, trust_coeff=trust, always_adapt=True, **options)


@part(source="Chen et al. 2023, algorithm 2 (timm)", allowed={"weight_decay": (0, None), "betas": (0, 0.999999)})
def lion(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    spare: bool = False,
) -> Optimizer:
    """Steps of the sign of a momentum, the same size in every weight; lr 3 to 10 times smaller than Adam's.

    weight_decay: each step shrinks the weights by lr · weight_decay, so 3 to 10 times adamw's. betas: shares of the
    momentum in the step, and kept from step to step. spare: no weight decay of biases and norms.
    """
    return _timm().Lion(_spared(parameters, spare), lr=lr, betas=betas, weight_decay=weight_decay)


@part(
    source="Jordan et al. 2024; step size: Liu et al. 2025, sec. 2.2 (timm)",
    allowed={"weight_decay": (0, None), "momentum": (0, 0.999999), "betas": (0, 0.999999), "steps": (1, 20)},
)
def muon(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.01,
    momentum: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    betas: tuple[float, float] = (0.9, 0.95),
    spare: bool = False,
) -> Optimizer:
    """Momentum made orthogonal for matrices and convolutions, AdamW for all else; lr as for adamw.

    A convolution counts as the matrix (outputs, inputs · height · width); thin, depthwise and one-dimensional weights
    go to AdamW. weight_decay: decoupled, for both. momentum and nesterov as in sgd; AdamW looks ahead too. steps: of
    the Newton-Schulz iteration, in bfloat16. betas: AdamW's. spare: no weight decay of biases and norms.
    """
    options = {"momentum": momentum, "nesterov": nesterov, "ns_steps": steps, "betas": betas}
    return _timm().Muon(_spared(parameters, spare), lr=lr, weight_decay=weight_decay, **options)


@part(
    source="Defazio et al. 2024, algorithm 1, for AdamW",
    allowed={"weight_decay": (0, None), "betas": (0, 0.999999)},
    average="schedule_free",
)
def schedule_free(
    parameters: Parameters,
    lr: float,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    spare: bool = False,
) -> Optimizer:
    """AdamW that needs no falling schedule, since its average takes the place; for average=schedule_free.

    Gradients are taken at y = (1 - b) · z + b · x: z are AdamW's weights, x their plain mean, b the first of betas. The
    model holds y while it learns; average=schedule_free(beta=b) restores x, which predicts. Use
    schedule=constant(warmup=0.05), and an lr of 1 to 10 times adamw's. weight_decay: decoupled. betas: the place
    between z and x, and the memory of the gradient's square. eps as in adam. spare: no weight decay of biases and
    norms.
    """
    return ScheduleFree(_spared(parameters, spare), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@part(source="Zhang et al. 2019, algorithm 1", allowed={"k": (1, None), "alpha": (0, 1)}, calls={"inner": "optims"})
def lookahead(parameters: Parameters, lr: float, *, inner: str = "adam()", k: int = 5, alpha: float = 0.5) -> Optimizer:
    """Slow weights that, every few steps, go a part of the way to the fast ones, which start again from there.

    inner: the call-string of the optimizer that moves the fast weights, such as 'adamw(weight_decay=0.1)'. k: fast
    steps to one slow step. alpha: share of the way.
    """
    return Lookahead(registry.build("optims", inner)(parameters, lr), k, alpha)


@part(
    source="Foret et al. 2021, eq. 2–4; adaptive: Kwon et al. 2021 (ASAM), eq. 7–8",
    allowed={"rho": (0, None)},
    calls={"inner": "optims"},
    sharpness=True,
)
def sam(
    parameters: Parameters, lr: float, *, inner: str = "adam()", rho: float = 0.05, adaptive: bool = False
) -> Optimizer:
    """Sharpness-aware minimisation: each gradient is taken where the loss near the weights is highest; twice the time.

    inner: the call-string of the optimizer that makes the steps, such as 'sgd(weight_decay=5e-4)'. rho: how far the
    place is. adaptive: measured by the weights' own sizes (ASAM), whose rho is about ten times larger. What the fact
    ``sharpness`` asks for, two passes a batch, ``objective.SharpnessAware`` does.
    """
    return registry.build("optims", inner)(parameters, lr)


class ScheduleFree(Optimizer):
    """AdamW at the point between its weights z and their mean x; see schedule_free."""

    def __init__(self, parameters: Parameters, **options: Any) -> None:
        super().__init__(parameters, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move y and z by one gradient; x is implied by the two."""
        for group in self.param_groups:
            for y in group["params"]:
                if y.grad is not None:
                    self._move(y, y.grad, group)

    def _move(self, y: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[y]
        if not state:
            state.update(step=0, z=y.detach().clone(), square=torch.zeros_like(y))
        state["step"] += 1
        place, memory = group["betas"]
        square = state["square"].mul_(memory).addcmul_(gradient, gradient, value=1 - memory)
        root = (square / (1 - memory ** state["step"])).sqrt_().add_(group["eps"])
        move = torch.div(gradient, root).add_(y, alpha=group["weight_decay"])
        newest = 1 / state["step"]  # share of the newest z in x
        y.lerp_(state["z"], newest).add_(move, alpha=-group["lr"] * (1 - place * (1 - newest)))
        state["z"].add_(move, alpha=-group["lr"])


class Lookahead(Optimizer):
    """An optimizer with slow weights behind its own; see lookahead. The groups are the inner optimizer's.

    The slow weights begin where the first step begins, as in the paper; timm's begin k steps later.
    """

    def __init__(self, inner: Optimizer, k: int, alpha: float) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.k, self.alpha = inner, k, alpha
        self.param_groups = inner.param_groups
        self.slow: list[Tensor] = []
        self.steps = 0

    def _fast(self) -> list[Tensor]:
        return [tensor for group in self.param_groups for tensor in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A fast step, and after each k of them a slow one."""
        if not self.slow:
            self.slow = [tensor.detach().clone() for tensor in self._fast()]
        self.inner.step()
        self.steps += 1
        if self.steps % self.k == 0:
            torch._foreach_lerp_(self.slow, self._fast(), self.alpha)
            torch._foreach_copy_(self._fast(), self.slow)

    def state_dict(self) -> dict[str, Any]:
        """The inner state, the slow weights and the count of steps."""
        return {**self.inner.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; the groups are the inner optimizer's anew."""
        self.inner.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.param_groups = self.inner.param_groups
        slow = zip(state_dict["slow"], self._fast(), strict=False)
        self.slow = [saved.detach().clone().to(fast) for saved, fast in slow]
        self.steps = state_dict["steps"]


def _groups(parameters: Parameters) -> list[Any]:
    """Tensors or groups as a list, what is lazy in it run through."""
    return [{**item, "params": list(item["params"])} if isinstance(item, dict) else item for item in parameters]


def _spared(parameters: Parameters, spare: bool, **options: Any) -> list[Any]:
    """The parameters as given, or in groups of which those with biases and norms have no weight decay, but options."""
    given = _groups(parameters)
    if not spare:
        return given
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    split = []
    for group in groups:
        decayed = [tensor for tensor in group["params"] if tensor.ndim > 1]
        others = [tensor for tensor in group["params"] if tensor.ndim < 2]
        split += [{**group, "params": decayed}] if decayed else []
        split += [{**group, "params": others, "weight_decay": 0.0, **options}] if others else []
    return split


def _fused(kind: Callable[..., Optimizer], given: list[Any], **options: Any) -> Optimizer:
    """The optimizer with torch's fused kernel where there is one for all of these parameters."""
    tensors = [tensor for item in given for tensor in (item["params"] if isinstance(item, dict) else [item])]
    kinds = ("cpu", "cuda", "mps")
    fused = all(tensor.device.type in kinds and tensor.is_floating_point() for tensor in tensors)
    optimizer = kind(given, **options, fused=fused)
    # fp16: unscaling is left to the gradient scaler, since Fabric refuses to clip what the kernel itself unscales
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


@functools.cache
def _timm() -> Any:
    fix_torchvision()
    import timm.optim

    return timm.optim
