"""Images as points: a network's pooled features, scaled to length one, and who is near whom among them."""

from __future__ import annotations

import numpy as np
import torch

from pipeline import console
from pipeline.data import channels_first, prefetch
from pipeline.infer import Store
from pipeline.network import Network

BLOCK = 1024  # queries that are compared at a time


@torch.inference_mode()
def embed(network: Network, store: Store, rows: np.ndarray, batch: int, label: str = "embed") -> np.ndarray:
    """Embeddings of some rows, (n, F) float32 of length one.

    network: in eval mode, on its device. store: images by row number. batch: images a step.
    """
    device = network.normalise.scale.device
    found: list[np.ndarray] = []
    with console.progress(label, len(rows)) as advance:
        blocks = (rows[start : start + batch] for start in range(0, len(rows), batch))
        for images, _ in prefetch(channels_first(store.take(block)) for block in blocks):
            pooled = network.vectors(network.prepare(images.to(device, non_blocking=True))).float()
            found.append(torch.nn.functional.normalize(pooled, dim=1).cpu().numpy())
            advance(len(images))
    return np.concatenate(found) if found else np.zeros((0, network.pool.features), dtype=np.float32)


def nearest(points: np.ndarray, queries: np.ndarray, k: int, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """The k points (B, F) with the largest cosine for each query (Q, F): cosines and places, (Q, k), best first."""
    known, k = torch.from_numpy(points).to(device), min(k, len(points))
    cosines, places = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        block = torch.from_numpy(queries[start : start + BLOCK]).to(device)
        best = (block @ known.T).topk(k, dim=1)
        cosines[start : start + BLOCK], places[start : start + BLOCK] = best.values.cpu(), best.indices.cpu()
    return cosines, places
