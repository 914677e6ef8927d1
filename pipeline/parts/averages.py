"""Averages of a model's weights over the optimizer steps.

Form: a class with ``__init__(model, total, *, …)``, ``update(model, step)`` after each optimizer step (counted from 0),
``apply_to(model, number)`` that copies the averaged weights into a model, ``finish(model, images)`` that recomputes
what needs data, and ``state_dict``/``load_state_dict`` for exact resume, which hold tensors and plain Python only.
total: the optimizer steps of the whole training. ``active`` says whether the average differs from the model at all.
``count`` networks predict, and their predictions are averaged: one, but for an ensemble; number says which. The model
is the bare one, not a wrapper's.

One with the fact ``cycles`` gets a third value, the last step of each cycle of the schedule. One with the fact
``own_fold`` is selected by the scores of the member's own fold (law 2): ``observe(model, score)`` comes after each
epoch's validation, and ``conclude(model, images, score_of) -> epochs`` once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.registry import part


class Inert:
    """What an average does unless it says otherwise: nothing."""

    active = False
    count = 1

    def __init__(self, model: nn.Module, total: int | None = None) -> None:
        pass

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step ``step``."""

    def apply_to(self, model: nn.Module, number: int = 0) -> None:
        """Copy the averaged weights into the model."""

    def finish(self, model: nn.Module, images: Iterable[Tensor]) -> None:
        """Recompute what needs data, with the averaged weights in the model."""

    def observe(self, model: nn.Module, score: float) -> None:
        """Look at the weights after an epoch, whose score, higher is better, is that of the own fold."""

    def conclude(
        self, model: nn.Module, images: Callable[[], Iterable[Tensor]], score_of: Callable[[], float]
    ) -> list[int]:
        """Choose at the end among what was observed; the epochs, from 1, that were averaged, or none of them.

        The model may be used as a bench: images gives batches of its input, score_of the score of its weights.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


@part(source="the baseline")
class none(Inert):
    """No average: the model predicts with its last weights."""


class Average(Inert):
    """A running mean of the parameters; buffers, such as BatchNorm's statistics, are copied.

    What differs between the averages is how much the newest weights count, ``share(step)``. It depends on the step
    alone, so that the averaged weights are the whole state.
    """

    active = True
    recompute = False

    def __init__(self, model: nn.Module) -> None:
        self.learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def share(self, step: int) -> float:
        """The share 0–1 of the newest weights in the average after optimizer step ``step``."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step ``step``."""
        share = self.share(step)
        if share == 0:
            return
        now = model.state_dict()
        torch._foreach_lerp_(*self._pairs(now, learned=True), share)
        if len(now) > len(self.learned):
            torch._foreach_copy_(*self._pairs(now, learned=False))

    def _pairs(self, now: dict[str, Tensor], learned: bool) -> tuple[list[Tensor], list[Tensor]]:
        names = [name for name in self.weights if (name in self.learned) == learned]
        return [self.weights[name] for name in names], [now[name] for name in names]

    def apply_to(self, model: nn.Module, number: int = 0) -> None:
        """Copy the averaged parameters and the buffers into the model."""
        model.load_state_dict(self.weights)

    def finish(self, model: nn.Module, images: Iterable[Tensor]) -> None:
        """Recompute BatchNorm's statistics where asked for, with the averaged weights in the model, and keep them.

        images: batches as the model's ``forward`` takes them; not touched where there is nothing to recompute.
        """
        if not self.recompute:
            return
        recompute_statistics(model, images)
        now = model.state_dict()
        for kept, buffer in zip(*self._pairs(now, learned=False), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights by name."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average; ValueError where it belongs to another model."""
        saved = state["weights"]
        if saved.keys() != self.weights.keys():
            raise ValueError(f"the saved average has other weights: {sorted(saved.keys() ^ self.weights.keys())[:5]}")
        for name, tensor in self.weights.items():
            tensor.copy_(saved[name])


@part(source="Polyak & Juditsky 1992; warm-up: TensorFlow's ExponentialMovingAverage", allowed={"decay": (0, 1)})
class ema(Average):
    """Exponential moving average of the parameters; buffers, such as BatchNorm's statistics, are copied.

    decay: share of the average kept at each step. warmup: begin with min(decay, (1 + step) / (10 + step)), so that the
    random weights of the start are soon forgotten; 0.99 is reached at step 890, 0.999 at step 8,990.
    """

    def __init__(
        self, model: nn.Module, total: int | None = None, *, decay: float = 0.999, warmup: bool = True
    ) -> None:
        super().__init__(model)
        self.decay, self.warmup = decay, warmup

    def share(self, step: int) -> float:
        """What the average does not keep."""
        return 1 - (min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay)


@part(source="Polyak & Juditsky 1992; power: Shamir & Zhang 2013, eq. 2", allowed={"power": (0, None)})
class polyak(Average):
    """Mean of the parameters over all steps so far; buffers, such as BatchNorm's statistics, are copied.

    power: 0 is the plain mean; higher weighs step t like t to that power, which forgets the start. recompute: training
    images, 64 batches at most, give BatchNorm the averaged network's own statistics before each validation.
    """

    def __init__(
        self, model: nn.Module, total: int | None = None, *, power: float = 0.0, recompute: bool = True
    ) -> None:
        super().__init__(model)
        self.power, self.recompute = power, recompute

    def share(self, step: int) -> float:
        """One in all steps so far, or more of them by the power."""
        return (self.power + 1) / (self.power + 1 + step)


@part(source="Izmailov et al. 2018, algorithm 1", allowed={"start": (0, 1), "every": (1, None)})
class swa(Average):
    """Stochastic weight averaging: the mean of the parameters over the last part of the training.

    Until it begins, the average is the model itself. start: share of all steps that are done when it begins. every:
    steps from one weight taken in to the next; the paper takes one an epoch, or one at the end of each cycle of the
    learning rate. recompute: training images, 64 batches at most, give BatchNorm the averaged network's own statistics
    before each validation; without it, they are copied.
    """

    def __init__(
        self,
        model: nn.Module,
        total: int | None = None,
        *,
        start: float = 0.75,
        every: int = 1,
        recompute: bool = True,
    ) -> None:
        if total is None:
            raise UserError("average=swa() must be told the steps of the whole training, and was not")
        super().__init__(model)
        self.first, self.every, self.recompute = min(round(start * total), total - 1), every, recompute
        self.begun = False

    def share(self, step: int) -> float:
        """One in all taken in so far; all of it before the first."""
        since = step - self.first
        if since < 0:
            return 1.0
        return 0.0 if since % self.every else 1 / (since // self.every + 1)

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step ``step``."""
        super().update(model, step)
        self.begun = step >= self.first

    def finish(self, model: nn.Module, images: Iterable[Tensor]) -> None:
        """Recompute the statistics once there is a mean; the model itself has its own."""
        if self.begun:
            super().finish(model, images)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights by name, and whether they are a mean yet."""
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        super().load_state_dict(state)
        self.begun = state.get("begun", True)  # of an older version: recomputed, as it did


@part(source="Defazio et al. 2024, eq. 3–5, solved for x", allowed={"beta": (0, 0.999999)})
class schedule_free(Average):
    """The weights that optim=schedule_free predicts with: the plain mean of AdamW's, found from the model's alone.

    The model holds y = (1 - beta) · z + beta · x, and x is the mean of all z: so each y gives its x, from the x before
    it. Only for optim=schedule_free. beta: the first of its betas. recompute: training images, 64 batches
    at most, give BatchNorm the statistics at x before each validation; without it, those at y are copied.
    """

    def __init__(
        self, model: nn.Module, total: int | None = None, *, beta: float = 0.9, recompute: bool = True
    ) -> None:
        super().__init__(model)
        self.beta, self.recompute = beta, recompute

    def share(self, step: int) -> float:
        """How much of y makes the next x."""
        newest = 1 / (step + 1)  # share of the newest z in x
        return newest / (1 - self.beta + newest * self.beta)


@part(source="Huang et al. 2017, sec. 3", cycles=True, allowed={"newest": (0, None)})
class snapshots(Inert):
    """Snapshot ensemble: the networks at the ends of the schedule's cycles predict together.

    For a schedule of several cycles, such as multicycle_cosine(cycles=5). Within a cycle, the network as it is stands
    for the one under way. newest: so many of the last ones predict; 0: all.
    """

    active = True

    def __init__(
        self, model: nn.Module, total: int | None = None, ends: Sequence[int] = (), *, newest: int = 0
    ) -> None:
        self.ends, self.newest = set(ends) or {(total or 1) - 1}, newest
        self.taken: list[dict[str, Tensor]] = []  # the newest first
        self.under_way = True

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many networks predict."""
        there = len(self.taken) + self.under_way
        return min(there, self.newest) if self.newest else there

    def update(self, model: nn.Module, step: int) -> None:
        """Keep the network after the last step of a cycle."""
        self.under_way = step not in self.ends
        if self.under_way:
            return
        self.taken.insert(0, {name: value.detach().clone() for name, value in model.state_dict().items()})
        del self.taken[self.newest or len(self.taken) :]

    def apply_to(self, model: nn.Module, number: int = 0) -> None:
        """Copy the network of that number into the model, the newest first; one still under way is the model's own."""
        place = number - self.under_way
        if place >= 0:
            model.load_state_dict(self.taken[place])

    def state_dict(self) -> dict[str, Any]:
        """The networks' weights, the newest first, and whether a cycle is under way."""
        return {"taken": self.taken, "under_way": self.under_way}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved networks."""
        self.taken, self.under_way = list(state["taken"]), state["under_way"]


class Soup(Inert):
    """The best epochs by the score of the own fold, from which a soup is made at the end; until then, the model itself.

    Its BatchNorms' statistics are those of the best epoch, or recomputed.
    """

    active = True

    def __init__(self, model: nn.Module, candidates: int, recompute: bool) -> None:
        self.learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.most, self.recomputes = candidates, recompute
        self.seen = 0
        self.candidates: list[dict[str, Any]] = []  # epoch, score and weights, the best first
        self.soup: dict[str, Tensor] = {}

    def observe(self, model: nn.Module, score: float) -> None:
        """Keep the weights if they are among the best so far; of equals the earlier."""
        self.seen += 1
        weights = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        self.candidates.append({"epoch": self.seen, "score": score, "weights": weights})
        self.candidates.sort(key=lambda one: -one["score"])
        del self.candidates[self.most :]

    @torch.no_grad()
    def mix(
        self, model: nn.Module, chosen: list[dict[str, Any]], images: Callable[[], Iterable[Tensor]]
    ) -> dict[str, Tensor]:
        """Load the mean of the chosen ones' weights into the model; returns a copy."""
        mixed = dict(chosen[0]["weights"])
        for name in self.learned:
            mixed[name] = torch.stack([one["weights"][name] for one in chosen]).mean(dim=0)
        model.load_state_dict(mixed)
        if self.recomputes and len(chosen) > 1:
            recompute_statistics(model, images())
        return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}

    def apply_to(self, model: nn.Module, number: int = 0) -> None:
        """Copy the soup into the model, once there is one."""
        if self.soup:
            model.load_state_dict(self.soup)

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and the soup if there is one."""
        return {"seen": self.seen, "candidates": self.candidates, "soup": self.soup}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.seen, self.candidates, self.soup = state["seen"], list(state["candidates"]), state["soup"]


@part(
    source="Wortsman et al. 2022, recipe 1, over the epochs of one training",
    own_fold=True,
    allowed={"candidates": (1, None)},
)
class greedy_soup(Soup):
    """Mean of the best epochs' weights, each taken in only where the score of the own fold does not fall.

    candidates: so many of the best epochs are tried, the best first. recompute: a pass over the training images gives
    BatchNorm the statistics of each mean that is tried; without it, those of the best epoch stay.
    """

    def __init__(
        self, model: nn.Module, total: int | None = None, *, candidates: int = 5, recompute: bool = True
    ) -> None:
        super().__init__(model, candidates, recompute)

    def conclude(
        self, model: nn.Module, images: Callable[[], Iterable[Tensor]], score_of: Callable[[], float]
    ) -> list[int]:
        """Try the candidates in turn; the epochs that were taken in."""
        best, held = -math.inf, list[dict[str, Any]]()
        for one in self.candidates:
            mixed = self.mix(model, [*held, one], images)
            score = score_of()
            if not held or score >= best:
                best, held, self.soup = score, [*held, one], mixed
        return [one["epoch"] for one in held]


@part(
    source="Wortsman et al. 2022, sec. 2, over the epochs of one training",
    own_fold=True,
    allowed={"candidates": (1, None)},
)
class uniform_soup(Soup):
    """Mean of the weights of the epochs with the best scores of the own fold.

    candidates: so many of the best epochs. recompute: a pass over the training images gives BatchNorm the mean
    network's own statistics; without it, those of the best epoch stay.
    """

    def __init__(
        self, model: nn.Module, total: int | None = None, *, candidates: int = 5, recompute: bool = True
    ) -> None:
        super().__init__(model, candidates, recompute)

    def conclude(
        self, model: nn.Module, images: Callable[[], Iterable[Tensor]], score_of: Callable[[], float]
    ) -> list[int]:
        """Average all candidates; their epochs, the best first."""
        if self.candidates:
            self.soup = self.mix(model, self.candidates, images)
        return [one["epoch"] for one in self.candidates]


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Set each BatchNorm's running statistics to their mean over these batches; all else stays in eval mode.

    So dropout and the like draw nothing, and the statistics are those of the network that predicts. BatchNorms whose
    weights are frozen, or of a class of their own, as timm's, are left alone. Raises ValueError if there is no batch.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    norms = [layer for layer in norms if layer.weight is None or layer.weight.requires_grad]
    if not norms:
        return
    was_training = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in norms]
    model.eval()
    for layer in norms:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    batches = 0
    for batch in images:
        model(batch)
        batches += 1
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    for module, training in was_training.items():
        module.training = training
    if not batches:
        raise ValueError("BatchNorm's statistics cannot be recomputed from no images")
