"""One member's predictions of training and test rows, under views and scales, rebuilt from what its checkpoint says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import checkpoint, hardware, infer, network, registry, stores
from pipeline.artefacts import shown
from pipeline.competition import Competition
from pipeline.config import Config
from pipeline.errors import UserError, some
from pipeline.hardware import Hardware
from pipeline.images import Images
from pipeline.parts import views
from pipeline.tasks import Task


class Member:
    """A trained member, ready to predict: one network, or several whose predictions are averaged.

    config: views, scales and merge are read from it; size, channels, preprocessing and normalisation come from the
    checkpoint (law 4).
    """

    def __init__(self, folder: Path, config: Config, competition: Competition, task: Task, machine: Hardware) -> None:
        content = checkpoint.load_checkpoint(folder / "best.ckpt")
        if content["blueprint"]["columns"] != task.columns:
            raise UserError(
                f"{shown(folder / 'best.ckpt')} predicts {some(content['blueprint']['columns'])}, but the competition "
                f"has {some(task.columns)}; train again"
            )
        hardware.start(machine)
        plan = network.Blueprint(**content["blueprint"])
        states = checkpoint.networks(content)
        self.networks = [infer.ready(network.from_checkpoint({**content, "network": s}), machine) for s in states]
        read = replace(config.data, channels=plan.channels, resize=plan.resize, preprocess=plan.preprocess)
        self.config = replace(config, image_size=plan.image_size, data=read)
        self.competition, self.task = competition, task
        self.views = views.expand(config.views)
        self.epoch, self.state = content["epoch"], plan.state

    def train_rows(self, rows: np.ndarray) -> np.ndarray:
        """(V, N, C) predictions of training rows under each scale and view; see ``labels``."""
        return self._all(stores.train_store, rows)

    def test_rows(self) -> np.ndarray:
        """(V, N, C) predictions of all test rows."""
        return self._all(stores.test_store, np.arange(len(self.competition.test)))

    def merge(self, values: np.ndarray) -> np.ndarray:
        """(V, N, C) → (N, C) by the config's merge."""
        return registry.build("merges", self.config.merge)(values, self.task.form).astype(np.float32)

    def labels(self) -> list[str]:
        """What each of the V predictions is of: its view and scale."""
        return [f"{view.name} × {scale:g}" for scale in self.config.scales for view in self.views]

    def _all(self, store: Callable[[Config, Competition, int], Images], rows: np.ndarray) -> np.ndarray:
        found: list[Any] = []
        for scale in self.config.scales:
            size = max(4, round(self.config.image_size * scale))
            batch = infer.batch_size(self.config.predict_batch, size)
            images = store(self.config, self.competition, size)
            try:
                alone = (infer.predict(one, self.task, images, rows, self.views, batch) for one in self.networks)
                found.append(infer.mean(alone))
            except (AssertionError, RuntimeError) as fault:
                if scale == 1.0:
                    raise
                backbone = self.networks[0].blueprint.backbone
                raise UserError(f"scales={scale:g}: {backbone} takes no {size} px ({fault}); use scales=1") from fault
        return np.concatenate(found)
