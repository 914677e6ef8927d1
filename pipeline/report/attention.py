"""Where a convolutional member looked: Grad-CAM over its backbone's last map. Alone of a report it needs torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pipeline.pictures import opencv
from pipeline.runs import Run
from pipeline.tasks import Task

VEIL = 0.5  # how much of the map's colour lies on the image
WEIGHTS = "best.ckpt"


def looked(run: Run, task: Task, rows: np.ndarray, columns: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """row → what its fold's member saw of it, (S, S, C) uint8, and where that speaks for each column, (k, S, S) 0…1.

    rows: (n,) training rows. columns: (n, k) places among the task's columns. Rows are missing where the member's
    weights are, or where its backbone gives no map of convolutions. Selvaraju et al. 2017, eq. 1 and 2.
    """
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for fold in np.unique(run.folds[rows]).tolist():
        own = np.flatnonzero(run.folds[rows] == fold)
        path = run.member((fold,)) / WEIGHTS
        if fold >= 0 and path.is_file():
            found |= _of_member(run, task, path, rows[own], columns[own])
    return found


def _of_member(run: Run, task: Task, path: Any, rows: np.ndarray, columns: np.ndarray) -> dict[int, Any]:
    import torch

    from pipeline import checkpoint, network, stores
    from pipeline.data import channels_first

    content = checkpoint.load_checkpoint(path)
    plan = network.Blueprint(**content["blueprint"])
    if plan.decoder or plan.embeds:
        return {}
    net = network.from_checkpoint({**content, "network": checkpoint.networks(content)[0]}).requires_grad_(False)
    data = dataclasses.replace(run.config.data, channels=plan.channels, resize=plan.resize, preprocess=plan.preprocess)
    images = stores.train_store(dataclasses.replace(run.config, data=data), run.competition, plan.image_size).take(rows)
    with torch.enable_grad():
        features = net.backbone(net.prepare(channels_first(images))).detach().requires_grad_(True)
        if features.ndim != 4 or sum(isinstance(one, torch.nn.Conv2d) for one in net.backbone.modules()) < 2:
            return {}
        outputs = net.answers(net.pool(features))
        spoken = outputs if outputs.shape[1] == len(task.columns) else task.activate(outputs, plan.state)
        maps = [_map(features, spoken, columns[:, place]) for place in range(columns.shape[1])]
    size = plan.image_size
    each = np.stack([[_sized(one, size) for one in map_] for map_ in maps], axis=1)
    return {int(row): (images[place], each[place]) for place, row in enumerate(rows)}


def _map(features: Any, spoken: Any, columns: np.ndarray) -> np.ndarray:
    """(n, h, w) float32 in 0…1: the parts of the map whose growth would raise each row's own column."""
    import torch

    chosen = spoken[torch.arange(len(columns)), torch.from_numpy(columns)]
    (slope,) = torch.autograd.grad(chosen.sum(), features, retain_graph=True)
    raw = (slope.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).clamp(min=0).detach().numpy()
    most = raw.max(axis=(1, 2), keepdims=True)
    return np.asarray(raw / np.where(most > 0, most, 1), dtype=np.float32)


def _sized(map_: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(opencv().resize(map_, (size, size), interpolation=opencv().INTER_CUBIC)).clip(0, 1)


def overlaid(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8: an image in grey under a map in cividis, which colour-blind people read: yellow is much."""
    cv2 = opencv()
    colours = cv2.applyColorMap(np.rint(map_ * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS)[..., ::-1]
    grey = image[..., :3].mean(axis=2, keepdims=True)
    return np.rint((1 - VEIL) * grey + VEIL * colours).astype(np.uint8)
