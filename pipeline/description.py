"""Images as rows of numbers for ``stage=features``: descriptors side by side, scaled by a member's own rows.

Nothing here reads a label. What is fitted nevertheless (a codebook, means and spreads, principal components) is fitted
on the rows that the member may learn from and on no other, so that OOF rows are as new to it as test rows are.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import hardware, registry, stores
from pipeline.console import say, warn
from pipeline.images import Images
from pipeline.runs import Run
from pipeline.tasks import task_for

if TYPE_CHECKING:
    from pipeline.network import Network

LEAST_SPREAD = 0.1  # of a descriptor's median spread: a column that varies less is not blown up to the others' size


class Description:
    """The images of a run's competition, described; what needs no fit is made once and kept for all members."""

    def __init__(self, run: Run, components: int = 0) -> None:
        """components: how many principal components are kept; 0: all columns as they are."""
        self.run, self.config, self.components = run, run.config, components
        calls = self.config.features.descriptors
        self.parts = [registry.build("descriptors", call)(self.embed) for call in calls]
        self.learns = [bool(registry.facts("descriptors", call).get("learns")) for call in calls]
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @functools.cached_property
    def broken(self) -> np.ndarray:
        """Training rows whose image does not decode: no member learns from them."""
        return self.stores(self.parts[0].size)[0].broken

    def member(
        self, held_out: tuple[int, ...], known: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of the training rows known and wanted, and of all test rows, each (n, F) float32.

        Columns have mean 0 and comparable spread over the known rows; a row's squared length is about one.
        """
        generator = np.random.default_rng([self.config.seed, len(held_out), *held_out])
        blocks = [scaled(*self._described(place, known, wanted, generator)) for place in range(len(self.parts))]
        tables = [np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True)]
        if self.components:
            tables = principal(tables, self.components)
        width = np.float32(np.sqrt(max(float((tables[0] ** 2).sum(axis=1).mean()), 1e-12)))
        return tables[0] / width, tables[1] / width, tables[2] / width

    def _described(self, place: int, known: np.ndarray, wanted: np.ndarray, generator: np.random.Generator) -> Any:
        part = self.parts[place]
        if not self.learns[place]:
            train, test = self._whole(place)
            return train[known], train[wanted], test
        train, test = self.stores(part.size)
        part.fit(train, known, generator)
        return part.rows(train, known), part.rows(train, wanted), part.rows(test, np.arange(len(test)))

    def _whole(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        if place not in self.kept:
            part = self.parts[place]
            train, test = (part.rows(store, np.arange(len(store))) for store in self.stores(part.size))
            say(f"  {self.config.features.descriptors[place]}: {train.shape[1]} numbers an image")
            self.kept[place] = train, test
        return self.kept[place]

    def stores(self, size: int) -> tuple[Images, Images]:
        """Training and test images at a side; 0: image_size."""
        size, competition = size or self.config.image_size, self.run.competition
        return stores.train_store(self.config, competition, size), stores.test_store(self.config, competition, size)

    # --- the frozen backbone ---

    def embed(self, store: Images, rows: np.ndarray) -> np.ndarray:
        """(n, F) float32 of length one: the pooled features of the backbone, in the format of prediction."""
        from pipeline import embed, infer

        batch = infer.batch_size(self.config.predict_batch, self.config.image_size)
        return embed.embed(self._frozen, store, rows, batch)

    @functools.cached_property
    def _frozen(self) -> Network:
        """The backbone as ``fold=full`` would begin with it; its head, and what the task fits, are not used."""
        from pipeline import infer, training

        machine = hardware.choose(self.config)
        hardware.start(machine)
        if not (self.config.pretrained or self.config.weights):
            warn(
                f"backbone() describes images by {self.config.backbone} with random weights, since pretrained=false; "
                "give weights=FILE or pretrained=true for features that know something"
            )
        return infer.ready(
            training.fresh_network(self.run, task_for(self.config, self.run.competition), ()).eval(), machine
        )


def scaled(known: np.ndarray, wanted: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three tables (n, F), centred and scaled by the columns of the first."""
    centre, spread = known.mean(axis=0), known.std(axis=0)
    varying = spread[spread > 0]
    floor = LEAST_SPREAD * float(np.median(varying)) if len(varying) else 1.0
    unit = np.maximum(spread, floor)
    return (known - centre) / unit, (wanted - centre) / unit, (test - centre) / unit


def principal(tables: list[np.ndarray], components: int) -> list[np.ndarray]:
    """Three tables (n, F) → (n, components) float32, the directions in which the first varies most."""
    from sklearn.decomposition import PCA

    model = PCA(min(components, *tables[0].shape), svd_solver="covariance_eigh").fit(tables[0])
    return [((table - model.mean_) @ model.components_.T).astype(np.float32) for table in tables]
