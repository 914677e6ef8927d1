"""Views → predictions: inference mode, a fast format, large batches; each image is loaded once for all views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pipeline import console
from pipeline.data import channels_first, prefetch
from pipeline.hardware import Hardware
from pipeline.network import Network, for_prediction
from pipeline.parts.views import View

if TYPE_CHECKING:
    from pipeline.tasks import Task

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Store(Protocol):
    """Images by row number."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, H, W, C) uint8."""


def ready(network: Network, hardware: Hardware) -> Network:
    """The network in the prediction format, on its device."""
    return for_prediction(network, FORMATS[hardware.predict]).to(hardware.device)


def batch_size(asked: int, image_size: int) -> int:
    """Images a step: what was asked for up to 128 px, then less, so that the memory of a step stays level."""
    return max(8, int(asked * min(1.0, (128 / image_size) ** 2)))


@torch.inference_mode()
def predict(
    network: Network, task: Task, store: Store, rows: np.ndarray, views: Sequence[View], batch: int, label: str = ""
) -> np.ndarray:
    """Predictions of some rows under every view: (V, N, C) float32 in the task's space.

    network: in eval mode, on its device. store: images by row number. batch: images a step.
    """
    device = network.normalise.scale.device
    found: list[torch.Tensor] = []
    with console.progress(label or "predict", len(rows)) as advance:
        for images, _ in prefetch(_batches(store, rows, batch)):
            prepared = network.prepare(images.to(device, non_blocking=True))
            outputs = [task.activate(network.outputs(view.apply(prepared)), network.blueprint.state) for view in views]
            found.append(torch.stack(outputs))
            advance(len(images))
    if not found:
        return np.zeros((len(views), 0, len(task.columns)), dtype=np.float32)
    return torch.cat(found, dim=1).float().cpu().numpy()


def mean(predictions: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of several networks' predictions of the same rows; one comes back untouched."""
    total, count = None, 0
    for values in predictions:
        total, count = values if total is None else total + values, count + 1
    if total is None:
        raise ValueError("there are no predictions to average")
    return total if count == 1 else (total / count).astype(total.dtype)


def _batches(store: Store, rows: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), batch):
        yield channels_first(store.take(rows[start : start + batch]))
