"""Views → predictions: inference mode, a fast format, large batches; each image is loaded once for all views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from pipeline import console, startup, windows
from pipeline.data import channels_first, pinned, prefetch
from pipeline.forms import Form
from pipeline.hardware import Hardware
from pipeline.maps import bands_of
from pipeline.network import Network, for_prediction
from pipeline.parts.views import View

if TYPE_CHECKING:
    from pipeline.tasks import Task

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Store(Protocol):
    """Images by row number."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, H, W, C) uint8."""


class Sizes(Protocol):
    """Images of any size by row number."""

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, C) uint8."""


def ready(network: Network, hardware: Hardware) -> Network:
    """The network in the prediction format, on its device."""
    startup.imported()
    return for_prediction(network, FORMATS[hardware.predict]).to(hardware.device)


def batch_size(asked: int, image_size: int) -> int:
    """Images a step: what was asked for up to 128 px, then less, so that the memory of a step stays level."""
    return max(8, int(asked * min(1.0, (128 / image_size) ** 2)))


def predict(
    network: Network, task: Task, store: Store, rows: np.ndarray, views: Sequence[View], batch: int, label: str = ""
) -> np.ndarray:
    """Predictions of some rows under every view: (V, N, C) float32 in the task's space.

    network: in eval mode, on its device. store: images by row number. batch: images a step.
    """
    found: list[torch.Tensor] = []
    with console.progress(label or "predict", len(rows)) as advance, without_gradients(network):
        for outputs in _looks(network, task, store, rows, views, batch):
            found.append(outputs)
            advance(outputs.shape[1])
    if not found:
        width = network.embedding_width if network.blueprint.embeds else len(task.columns)
        return np.zeros((len(views), 0, width), dtype=np.float32)
    return torch.cat(found, dim=1).float().cpu().numpy()


def without_gradients(network: Network) -> Any:
    """A context for prediction; of compiled code not inference mode, in which inductor freezes no weights."""
    return torch.no_grad() if network.compiled else torch.inference_mode()


def _looks(
    network: Network, task: Task, store: Store, rows: np.ndarray, views: Sequence[View], batch: int
) -> Iterator[torch.Tensor]:
    """(V, n, C) predictions of each batch; a compiled network gets batches of one size alone."""
    device, left = network.normalise.scale.device, len(rows)
    asked = np.pad(rows, (0, -len(rows) % batch), mode="edge") if network.compiled and left else rows
    for images, _ in prefetch(pinned(one, device) for one in _batches(store, asked, batch)):
        prepared, count = network.prepare(images.to(device, non_blocking=True)), min(left, len(images))
        looks = (view.apply(prepared) for view in views)
        if network.compiled:  # for images in one layout: each other one, as a turned image has, would be compiled anew
            looks = (one.contiguous(memory_format=torch.channels_last) for one in looks)
        seen = (network.predicted(one)[:count] for one in looks)
        yield torch.stack([task.activate(one, network.blueprint.state) for one in seen])
        left -= count


def mean(predictions: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of several networks' predictions of the same rows; one comes back untouched."""
    total, count = None, 0
    for values in predictions:
        total, count = values if total is None else total + values, count + 1
    if total is None:
        raise ValueError("there are no predictions to average")
    return total if count == 1 else (total / count).astype(total.dtype)


def together(predictions: Iterable[np.ndarray], form: Form) -> np.ndarray:
    """Several networks' predictions (V, N, C) of the same rows as one: their mean, or embeddings side by side."""
    if not form.searched:
        return mean(predictions)
    each = list(predictions)
    return each[0] if len(each) == 1 else np.concatenate(each, axis=2) / np.float32(np.sqrt(len(each)))


@torch.inference_mode()
def whole_maps(
    networks: Sequence[Network], task: Task, stores: Sequence[Store], rows: np.ndarray, views: Sequence[View],
    batch: int, label: str = "",
) -> Iterator[tuple[bool, np.ndarray]]:  # fmt: skip
    """Maps of images that were made square, the mean over networks, views and scales, at the size of the first store.

    stores: of each scale, the same images. Yields for each row (True, (S, S, C) uint8): see ``ragged.Writer.strip``.
    """
    device = networks[0].normalise.scale.device
    with console.progress(label or "predict", len(rows)) as advance:
        for images, _ in prefetch([pinned(one, device) for one in each] for each in _sizes(stores, rows, batch)):
            size = images[0].shape[-2:]
            total: torch.Tensor | None = None
            for scaled in images:
                found = functional.interpolate(
                    _mean_map(networks, task, scaled.to(device, non_blocking=True), views),
                    size=size, mode="bilinear", align_corners=False,
                )  # fmt: skip
                total = found if total is None else total + found
            assert total is not None
            for planes in _levels(total / len(images)):
                yield True, planes
            advance(len(images[0]))


@torch.inference_mode()
def tile_maps(
    networks: Sequence[Network], task: Task, stores: Sequence[Sizes], rows: np.ndarray, views: Sequence[View],
    batch: int, overlap: float, label: str = "",
) -> Iterator[tuple[bool, np.ndarray]]:  # fmt: skip
    """Maps of images at their own size, from windows that overlap; the mean over networks, views and scales.

    stores: of each scale, the same images. Yields strips of rows: (whether an image begins, (h, W, C) uint8). Memory
    does not grow with an image's height where there is one scale.
    """
    with console.progress(label or "predict", len(rows)) as advance:
        strips = [_windows(networks, task, store, rows, views, batch, overlap) for store in stores]
        if len(strips) == 1:
            for new, strip in strips[0]:
                yield new, strip
                advance(int(new))
            return
        for scaled in zip(*(_images_of(one) for one in strips), strict=True):
            yield True, _mean_of(scaled)
            advance(1)


def _images_of(strips: Iterator[tuple[bool, np.ndarray]]) -> Iterator[np.ndarray]:
    """Strips → whole maps (H, W, C) uint8."""
    found: list[np.ndarray] = []
    for new, strip in strips:
        if new and found:
            yield np.concatenate(found)
            found = []
        found.append(strip)
    if found:
        yield np.concatenate(found)


def _mean_of(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Maps (h, w, C) uint8 of several scales → their mean, at the size of the first, made in bands of rows."""
    height, width, columns = maps[0].shape
    found = np.empty_like(maps[0])
    for band in bands_of(columns, height, width):
        scaled = torch.stack([_rows_at(one, height, width, band) for one in maps])
        found[band] = scaled.mean(dim=0)[0].round_().to(torch.uint8).permute(1, 2, 0).numpy()
    return found


def _rows_at(pixels: np.ndarray, height: int, width: int, band: slice) -> torch.Tensor:
    """The rows of a band of a map (h, w, C) uint8 that is made (height, width, C), (1, C, rows, width), bilinear."""
    places = ((np.arange(band.start, band.stop) + 0.5) * len(pixels) / height - 0.5).clip(0, len(pixels) - 1)
    first = places.astype(np.int64)
    second, share = np.minimum(first + 1, len(pixels) - 1), (places - first).astype(np.float32)[:, None, None]
    rows = torch.from_numpy(pixels[first] * (1 - share) + pixels[second] * share).permute(2, 0, 1)[None]
    return functional.interpolate(rows, size=(rows.shape[2], width), mode="bilinear", align_corners=False)


def _windows(
    networks: Sequence[Network], task: Task, store: Sizes, rows: np.ndarray, views: Sequence[View], batch: int,
    overlap: float,
) -> Iterator[tuple[bool, np.ndarray]]:  # fmt: skip
    """The strips of each image in turn; windows of several images of one shape go through the network together."""
    device, plan = networks[0].normalise.scale.device, networks[0].blueprint
    ready: list[tuple[bool, np.ndarray]] = []
    waiting: list[tuple[windows.Strips, np.ndarray]] = []

    def flush() -> None:
        pixels = channels_first(np.stack([window for _, window in waiting])).to(device, non_blocking=True)
        found = _mean_map(networks, task, pixels, views).cpu().numpy()
        for (strips, _), one in zip(waiting, found, strict=True):
            strips.add(one[None])
        waiting.clear()

    def keep(first: int, strip: np.ndarray) -> None:
        ready.append((first == 0, strip.transpose(1, 2, 0)))

    multiple = _multiple(networks[0], plan.image_size)
    for row in rows.tolist():
        image = store[row]
        height, width = image.shape[:2]
        shape = windows.window_shape(height, width, plan.image_size, multiple)
        strips = windows.Strips(height, width, shape, overlap, keep)
        whole = windows.pad(image, *shape)
        for corner in strips.corners:
            if len(waiting) == batch or (waiting and waiting[0][1].shape[:2] != shape):
                flush()
                yield from ready
                ready.clear()
            waiting.append((strips, windows.cut(whole, corner, shape)))
    if waiting:
        flush()
    yield from ready


def _multiple(network: Network, size: int) -> int:
    """What the sides of windows are multiples of; a size that is none is padded by the network itself."""
    multiple = int(getattr(network, "multiple", 1))
    return multiple if size % multiple == 0 else 1


def _mean_map(networks: Sequence[Network], task: Task, images: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """(B, C, H, W) uint8 → (B, P, H, W) probabilities, the mean over networks and views, which are undone."""
    total: Any = 0
    for network in networks:
        prepared, state = network.prepare(images), network.blueprint.state
        for view in views:
            assert view.undo is not None  # the config was checked
            total = total + view.undo(task.activate(network.outputs(view.apply(prepared)), state))
    return total / (len(networks) * len(views))


def _levels(maps: torch.Tensor) -> np.ndarray:
    """(B, P, H, W) probabilities → (B, H, W, P) uint8, 0…255."""
    return (maps * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _sizes(stores: Sequence[Store], rows: np.ndarray, batch: int) -> Iterator[list[torch.Tensor]]:
    for start in range(0, len(rows), batch):
        yield [channels_first(store.take(rows[start : start + batch])) for store in stores]


def _batches(store: Store, rows: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), batch):
        yield channels_first(store.take(rows[start : start + batch]))
