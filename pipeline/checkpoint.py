"""Checkpoints: ``last.ckpt`` holds a training's full state, ``best.ckpt`` the weights and blueprint that predict.

Both hold tensors and plain Python only, so that they load with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import console, ranks
from pipeline.artefacts import atomic, shown
from pipeline.errors import UserError
from pipeline.learner import Learning

FACTS = "pipeline"  # the entry of a safetensors file's header that holds all but the weights


@dataclass
class Progress:
    """How far a training is: plain values, part of the checkpoint."""

    epoch: int = 0
    step: int = 0  # batches done in this epoch
    updates: int = 0  # optimizer steps done; the schedule's clock
    loss: float = 0.0  # sum over the steps of this epoch
    best: float = -math.inf  # of the validation score, higher is better
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    averaged: list[int] = field(default_factory=list)  # the epochs, from 1, that an average chose at the end
    final: float | None = None  # the score of what it made of them


@dataclass
class State:
    """All that a checkpoint holds, and where it lies."""

    learner: Learning
    optimizer: Any
    average: Any
    scaler: Any
    folder: Path

    def save(self, progress: Progress) -> None:
        """Write ``last.ckpt``: the full state, tensors and plain Python only. Of several processes the first does."""
        if ranks.rank():
            return
        content = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "progress": asdict(progress),
        }
        with atomic(self.folder / "last.ckpt") as handle:
            torch.save(content, handle)

    def load(self) -> Progress | None:
        """Take up the state of ``last.ckpt``, if it is there."""
        path = self.folder / "last.ckpt"
        if not path.exists():
            return None
        content = load_checkpoint(path)
        try:
            self.learner.load_state_dict(content["learner"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.average.load_state_dict(content["average"])
            if self.scaler and content["scaler"]:
                self.scaler.load_state_dict(content["scaler"])
            progress = Progress(**content["progress"])
        except (KeyError, RuntimeError, TypeError, ValueError) as fault:
            raise UserError(
                f"{shown(path)} does not fit this run ({fault}); delete it to train this fold anew"
            ) from fault
        console.say(f"  going on from {shown(path)}: epoch {progress.epoch + 1}, step {progress.step}")
        return progress

    def save_weights(self, path: Path, progress: Progress) -> None:
        """Write the (averaged) network, or the several that predict together, with its blueprint, for prediction."""
        if ranks.rank():
            return
        first, *others = [_copied(network) for network in predicting(self.learner.network, self.average)]
        content = {
            "network": first,
            "blueprint": self.learner.network.blueprint.facts(),
            "epoch": progress.epoch,
            "updates": progress.updates,
        }
        write_weights(path, content, others)


def write_weights(path: Path, content: dict[str, Any], others: list[dict[str, torch.Tensor]]) -> None:
    """Write a ``best.ckpt``; others: the weights of the networks that predict beside the content's own."""
    with atomic(path) as handle:
        torch.save(_unshared({**content, "others": others} if others else content), handle)


def _unshared(value: Any) -> Any:
    """The same content, whose file depends on values alone: pickles tell which equal texts and lists are one object."""
    if isinstance(value, dict):
        return {_unshared(key): _unshared(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unshared(item) for item in value)
    return sys.intern(value) if type(value) is str else value


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write what a ``best.ckpt`` holds as safetensors: no pickle, and the same content gives the same bytes."""
    from safetensors.torch import save

    each = networks(content)
    tensors = {f"{place}.{name}": value.contiguous() for place, one in enumerate(each) for name, value in one.items()}
    facts = {name: value for name, value in content.items() if name not in ("network", "others")}
    with atomic(path) as handle:
        handle.write(save(tensors, {FACTS: json.dumps({**facts, "networks": len(each)}, sort_keys=True)}))


def load_weights(path: Path) -> dict[str, Any]:
    """What a ``best.ckpt`` holds, from one or from the safetensors that ``save_tensors`` wrote."""
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            facts = json.loads(handle.metadata()[FACTS])
            each: list[dict[str, torch.Tensor]] = [{} for _ in range(facts.pop("networks"))]
            for key in handle.keys():  # noqa: SIM118  (it is no dict)
                place, _, name = key.partition(".")
                each[int(place)][name] = handle.get_tensor(key)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as fault:
        raise UserError(f"{shown(path)} is damaged ({fault}); make the package again and upload it whole") from fault
    return {**facts, "network": each[0], **({"others": each[1:]} if each[1:] else {})}


def networks(content: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The weights of each network of a ``best.ckpt``, whose predictions are averaged."""
    return [content["network"], *content.get("others", [])]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain Python; a damaged one is a UserError that names the next move."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as fault:
        raise UserError(f"{shown(path)} does not exist; run stage=train for that fold first") from fault
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as fault:
        reason = str(fault).splitlines()[0][:120] if str(fault) else type(fault).__name__
        raise UserError(
            f"{shown(path)} is damaged ({reason}); delete it, then run the same command again: "
            "only what this file held is trained anew"
        ) from fault
    if not isinstance(content, dict):
        raise UserError(f"{shown(path)} is no checkpoint of this pipeline; delete it and train again")
    return content


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}


def predicting(network: nn.Module, average: Any) -> Iterator[nn.Module]:
    """The networks that predict together, one after the other in the place of the network; see ``averaged``."""
    for number in range(average.count):
        with averaged(network, average, number) as one:
            yield one


@contextlib.contextmanager
def averaged(network: nn.Module, average: Any, number: int = 0) -> Iterator[nn.Module]:
    """The network in eval mode with its averaged weights; training weights come back afterwards.

    number: which of the average's networks, where several predict together.
    """
    kept = {name: value.clone() for name, value in network.state_dict().items()} if average.state_dict() else None
    was_training = network.training
    if kept is not None:
        average.apply_to(network, number)
    network.eval()
    try:
        yield network
    finally:
        if kept is not None:
            network.load_state_dict(kept)
        network.train(was_training)


def epoch_weights(folder: Path, epoch: int) -> Path:
    """Where the weights after an epoch (1, 2, …) lie while select=common has not chosen one."""
    return folder / f"epoch{epoch:03d}.ckpt"
