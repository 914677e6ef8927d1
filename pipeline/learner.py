"""Model and loss as one module: a batch in, one loss out.

Mixing, distillation and consistency live here; the loop knows none of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline import registry
from pipeline.config import Config
from pipeline.data import Batch
from pipeline.forms import CLASSES, LEVELS, UNKNOWN, VOID, Form
from pipeline.network import Network
from pipeline.parts.consistencies import uncounted
from pipeline.parts.losses import DISTILLATIONS, CosineDistillation, warn_of_sizes
from pipeline.rules import consistent
from pipeline.segmenters import Answers


class Learning(nn.Module):
    """What ``fit`` trains: a network that predicts or is kept, and what it learns by.

    ``forward(batch, generator)`` gives the loss of a batch; generator draws what numpy draws.
    """

    network: Any

    def follow(self, average: Any) -> None:
        """Take up the average of the network that ``fit`` keeps; whoever needs a teacher has one in it."""


class Learner(Learning):
    """network + loss (+ soft labels of a teacher): ``forward`` gives the weighted mean loss of a batch."""

    def __init__(
        self, network: Network, config: Config, learns: Form = CLASSES, counts: np.ndarray | None = None,
        taught_by: Form | None = None, taught_width: int = 0,
    ) -> None:  # fmt: skip
        """counts: (C,) the rows of each class among those that the member learns from; some losses weigh by them.

        taught_by: the form of a teacher's soft labels, if it is not that of targets; taught_width: their columns.
        """
        super().__init__()
        self.network = network
        self.register_buffer("counts", None if counts is None else torch.from_numpy(counts).float(), persistent=False)
        facts = registry.facts("losses", config.loss)
        self.register_buffer("memory", torch.zeros(()) if facts.get("memory") else None)
        self.counted, self.compares = bool(facts.get("counts")), bool(facts.get("views"))
        self.measures = bool(facts.get("lengths"))
        self.distil, self.relates = DISTILLATIONS[(taught_by or learns).name], (taught_by or learns).directions
        if self.relates and taught_width and config.train.embeddings == "cosine":
            self.distil = CosineDistillation(network.embedding_width, taught_width)
        self.loss, self.share = registry.build("losses", config.loss), config.loss_weight
        self.pairs, weights = pair_losses(network, config)
        self.register_buffer("pair_weights", torch.tensor(weights), persistent=False)  # made in a step, it would wait
        self.given = (config.loss, *config.pairs) if config.pair_weights else ()  # else the parts' own weights hold
        self.mix = registry.build("mixes", config.mix) if mixes(config) else None
        self.auxiliary = self.consistency = None
        if auxiliary(config):
            build = registry.build("auxiliaries", config.auxiliary)
            self.auxiliary = build(network.backbone, outputs_of(network), network.blueprint.head)
        if consistent(config):
            self.consistency = registry.build("consistencies", config.consistency)(learns, outputs_of(network))
        self.temperature = config.train.temperature
        self.presence = config.train.presence

    def follow(self, average: Any) -> None:
        """See ``Learning``."""
        if self.consistency is not None:
            self.consistency.follow(average)

    def forward(self, batch: Batch, generator: np.random.Generator) -> torch.Tensor:
        """The mean loss of a batch, each row by its weight; generator draws what a mix draws.

        Of a share of a batch: so that the mean over the processes is the mean loss of the whole.
        """
        pool, done = self._pool(batch), batch.done
        images, batch = at_size(self.network.prepare(batch.images), batch)
        if self.mix is not None:
            images, batch = self._mixed(images, batch, generator)
        if pool is not None:  # in one batch with the labelled rows, so that all are normalised alike
            images = torch.cat([images, self.consistency.shown(pool)])
        related = self.relates and batch.soft is not None
        if self.pairs or self.measures or related:
            vectors = self.network.vectors(images)
            lengths = self.network.head.lengths(vectors) if self.measures else None
            rows = self.share * self._answers(self.network.answers(vectors), batch, lengths)
            rows = self._with_pairs(rows, vectors, batch) if self.pairs else rows
            rows = self._related(rows, vectors, batch) if related else rows
        elif self.auxiliary is None:
            outputs, others = parted(self.network.outputs(images), pool, batch)
            rows = self._answers(outputs, batch)
        else:
            with self.auxiliary.watching(self.network.backbone) as seen:
                outputs, others = parted(self.network.outputs(images), pool, batch)
            beside = None if self.memory is None else self.memory.clone()
            rows = self.auxiliary.share * self._rows(parted(self.auxiliary(seen.pop()), pool, batch)[0], batch, beside)
            rows = rows + self._rows(outputs, batch, self.memory)
        loss = (rows * batch.weights).sum() / (batch.total or batch.weights.sum())
        return loss if pool is None else loss + self.consistency.loss(Said(self.network), pool, others, done)

    def _pool(self, batch: Batch) -> torch.Tensor | None:
        """The prepared views of a batch's pool, if it has one, at the batch's size."""
        if batch.pool is None or self.consistency is None:
            return None
        return sized(self.network.prepare(batch.pool), batch.size)

    def _with_pairs(self, rows: torch.Tensor, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The losses of B rows and, by their weights, those of pairs; warns where a given weight is far off."""
        each = self._compared(vectors, batch) * self.pair_weights[:, None]
        if self.given:
            terms = [rows, *each] if self.share else list(each)
            warn_of_sizes(self.given[-len(terms) :], self.pair_weights.tolist(), terms, "pair_weights")
        return rows + each.sum(dim=0)

    def _compared(self, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Vectors (V·B, F) → (P, B), the losses of B rows by the other rows of their batch."""
        points, labels = self.network.compared(vectors), batch.targets
        labels = labels.argmax(dim=1) if labels.is_floating_point() else labels
        views = len(points) // len(labels)
        labels = labels.repeat(views)
        if batch.soft is None:
            each = torch.stack([loss(points, labels) for loss in self.pairs])
        else:
            each = self._compared_known(points, labels)
        return each.view(len(each), views, -1).mean(dim=1)

    def _compared_known(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(P, V·B) the losses of pairs among the rows whose class is known; 0 of the others, which are no negatives."""
        known = labels != UNKNOWN
        each = torch.zeros(len(self.pairs), len(labels), device=points.device)
        if known.any():
            each[:, known] = torch.stack([loss(points[known], labels[known]) for loss in self.pairs])
        return each

    def _related(self, rows: torch.Tensor, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The losses of B rows and, by their shares, how far their embeddings are from a teacher's."""
        assert batch.soft is not None
        assert batch.share is not None
        with uncounted(self.network.head):
            views = self.network.embeddings(vectors).split(len(rows))
        each = [self.distil(one, batch.soft, temperature=self.temperature) for one in views]
        return (1 - batch.share) * rows + batch.share * torch.stack(each).mean(dim=0)

    def _answers(
        self, outputs: torch.Tensor | Answers, batch: Batch, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The losses of B rows: the mean over levels, and that of a head of labels by its share."""
        if not isinstance(outputs, Answers):
            return self._rows(outputs, batch, self.memory, lengths)
        rows = torch.stack([self._rows(level, batch, self.memory) for level in outputs.planes]).mean(dim=0)
        return rows if outputs.labels is None else rows + self.presence * presence_loss(outputs.labels, batch.targets)

    def _rows(
        self, outputs: torch.Tensor, batch: Batch, memory: torch.Tensor | None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Outputs of V·B images → the losses of B rows: the mean over views, unless the loss compares them."""
        views = outputs.split(len(batch.targets))
        more = [*([self.counts] if self.counted else []), *([] if memory is None else [memory])]
        given = [outputs] if self.compares else views
        targets = _learnable(batch.targets)
        beside = [()] * len(given) if lengths is None else [(one,) for one in lengths.split(len(batch.targets))]
        pairs = zip(given, beside, strict=True)
        rows = torch.stack([self.loss(one, targets, *own, *more) for one, own in pairs]).mean(dim=0)
        if batch.soft is None or batch.share is None or self.relates:
            return rows
        soft = _learnable(batch.soft)
        taught = torch.stack([self.distil(one, soft, temperature=self.temperature) for one in views]).mean(dim=0)
        return (1 - batch.share) * rows + batch.share * taught

    def _mixed(self, images: torch.Tensor, batch: Batch, generator: np.random.Generator) -> tuple[torch.Tensor, Batch]:
        """Mix all that belongs to a row in the same way: its image, target, weight, soft label and share."""
        assert self.mix is not None
        parts = [batch.targets, batch.weights[:, None]]
        if batch.soft is not None and batch.share is not None:
            parts += [batch.soft, batch.share[:, None]]
        images, mixed = self.mix(images, torch.cat(parts, dim=1), generator)
        targets, weights, *taught = mixed.split([part.shape[1] for part in parts], dim=1)
        soft, share = (taught[0], taught[1][:, 0]) if taught else (None, None)
        return images, Batch(batch.images, targets, weights[:, 0], soft, share, total=batch.total)


def pair_losses(network: Network, config: Config) -> tuple[nn.ModuleList, list[float]]:
    """The losses of ``pairs``, those that learn as modules, and their weights."""
    losses, weights = nn.ModuleList(), []
    for call in config.pairs:
        facts, made = registry.facts("pairs", call), registry.build("pairs", call)
        losses.append(made(network.compared_width, outputs_of(network)) if facts.get("learned") else Function(made))
        weights.append(float(facts.get("weight", 1.0)))
    return losses, config.pair_weights or weights


def outputs_of(network: Network) -> int:
    """How many numbers a network says of an image, or of a pixel."""
    return network.blueprint.outputs or len(network.blueprint.columns)


class Function(nn.Module):
    """A function of embeddings and labels as a module without weights."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, F), (B,) → (B,)."""
        found: torch.Tensor = self.function(embeddings, labels)
        return found


class Said(nn.Module):
    """A network as a module whose call gives its raw outputs of prepared images, those of the last level."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, C) or (B, C, H, W) float32."""
        return last(self.network.outputs(images))  # type: ignore[operator]


def parted(outputs: Any, pool: torch.Tensor | None, batch: Batch) -> tuple[Any, Any]:
    """Outputs of a batch's rows, and of the images of a pool behind them, if there is one, those of the last level."""
    if pool is None:
        return outputs, None
    rows, others = len(batch.weights), last(outputs)[len(batch.weights) :].float()
    if not isinstance(outputs, Answers):
        return outputs[:rows], others
    labels = None if outputs.labels is None else outputs.labels[:rows]
    return Answers([level[:rows] for level in outputs.planes], labels), others


def sized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images at this size, 0: as they are; bilinear, smoothed where they shrink."""
    if not size or images.shape[-2:] == (size, size):
        return images
    images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return images.contiguous(memory_format=torch.channels_last)


def at_size(images: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
    """Images, and targets that are planes of pixels, at the batch's size."""
    side = (batch.size, batch.size)
    if not batch.size or images.shape[-2:] == side:
        return images, batch
    images = sized(images, batch.size)
    if batch.targets.ndim == images.ndim:
        planes = {"targets": batch.targets, **({} if batch.soft is None else {"soft": batch.soft})}
        smaller = {name: functional.interpolate(one, size=side, mode="nearest-exact") for name, one in planes.items()}
        batch = replace(batch, **smaller)  # type: ignore[arg-type]
    return images, batch


def last(outputs: torch.Tensor | Answers) -> torch.Tensor:
    """What counts of a network's outputs in training."""
    return outputs.planes[-1] if isinstance(outputs, Answers) else outputs


def presence_loss(labels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """labels (B, P) raw outputs, targets (B, P, H, W) uint8 planes → (B,) binary cross-entropy of a plane's presence.

    A plane is present where a pixel is more likely than not; one that is void everywhere counts as neither.
    """
    known = (targets != VOID).flatten(2)
    present = ((targets > LEVELS // 2).flatten(2) & known).any(dim=2).float()
    counts = known.any(dim=2).float()
    losses = functional.binary_cross_entropy_with_logits(labels, present, reduction="none") * counts
    return losses.sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def _learnable(targets: torch.Tensor) -> torch.Tensor:
    """Planes of uint8 → float32 in 0…1, −1 where void; an unknown class → the first, since its row has no share."""
    if targets.dtype == torch.uint8:
        return torch.where(targets == VOID, -1.0, targets.float() / LEVELS)
    return targets if targets.is_floating_point() else targets.clamp(min=0)


def mixes(config: Config) -> bool:
    """Whether the config mixes images, and so needs targets as probabilities."""
    return registry.parse(config.mix).name != "none"


def auxiliary(config: Config) -> bool:
    """Whether the config has an auxiliary classifier, whose loss comes on top."""
    return registry.parse(config.auxiliary).name != "none"


def initial_loss(config: Config, outputs: int) -> float | None:
    """What the loss declares for a new model that knows nothing, an auxiliary classifier included, or None."""
    part, call = registry.bind("losses", config.loss)
    declared: Any = None if config.pairs else part.load().facts.get("initial")
    second, asked = registry.bind("auxiliaries", config.auxiliary)
    times = 1 + {**second.arguments, **asked.arguments}.get("share", 0.0)
    return None if declared is None else times * float(declared(outputs, **call.arguments))
