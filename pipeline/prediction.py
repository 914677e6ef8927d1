"""One member's predictions of training and test rows, under views and scales, rebuilt from what its checkpoint says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, checkpoint, compiling, hardware, infer, masked, network, ragged, registry, stores
from pipeline.artefacts import Predictions, atomic, read_json, save_maps, shown
from pipeline.competition import Competition
from pipeline.config import Config
from pipeline.console import say, warn
from pipeline.errors import UserError, some
from pipeline.folds import learns_from, read_folds
from pipeline.forms import EMBEDDINGS
from pipeline.hardware import Hardware
from pipeline.images import Images
from pipeline.lists import Shelf
from pipeline.maps import SUFFIX
from pipeline.parts import views
from pipeline.rules import has_levels
from pipeline.tasks import Task

POINTS = "points.npz"  # beside a packaged member that searches training images: their embeddings
LEVELS = "levels.json"  # of a run: which level of the decoder predicts
TEST, UNLABELLED = "test", "unlabelled"
POOL = {TEST: stores.test_store, UNLABELLED: stores.unlabelled_store}  # images without labels, each kind's store


class Member:
    """A trained member, ready to predict: one network, or several whose predictions are averaged.

    config: views, scales and merge are read from it; size, channels, preprocessing and normalisation come from the
    checkpoint (law 4).
    """

    def __init__(self, folder: Path, config: Config, competition: Competition, task: Task, machine: Hardware) -> None:
        weights = artefacts.weights_file(folder)
        content = checkpoint.load_weights(weights)
        if content["blueprint"]["columns"] != task.columns:
            raise UserError(
                f"{shown(weights)} predicts {some(content['blueprint']['columns'])}, but the competition "
                f"has {some(task.columns)}; train again"
            )
        hardware.start(machine)
        plan = network.Blueprint(**content["blueprint"])
        states = checkpoint.networks(content)
        level = level_of(config, folder, plan.decoder)
        each = (network.from_checkpoint({**content, "network": state}, level) for state in states)
        self.networks, self.threads = [infer.ready(one, machine) for one in each], machine.threads
        read = replace(config.data, channels=plan.channels, resize=plan.resize, preprocess=plan.preprocess)
        tiles = replace(config.tiles, scale=plan.tile_scale)
        self.config = replace(config, image_size=plan.image_size, data=read, tiles=tiles)
        self.competition, self.task = competition, task
        self.views = views.expand(config.views)
        self.folder, self.epoch, self.state = folder, content["epoch"], plan.state
        self.broken = np.zeros(0, dtype=np.int64)  # of the rows that were last asked for

    def write_own(self, rows: np.ndarray, folder: Path, made_by: dict[str, Any]) -> None:
        """Write ``oof.npz``, and what each view and scale says alone where there are several."""
        ids = self.competition.train["id"].to_numpy()[rows]
        values = self.train_rows(rows)
        Predictions(ids, self.merge(values), self.task.space, made_by).save(folder / "oof.npz")
        if len(values) > 1:  # for the table of gains
            with atomic(folder / "oof_views.npz") as handle:
                np.savez(handle, values=values, ids=np.asarray(ids, dtype=np.str_), labels=np.array(self.labels()))

    def write_test(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Write ``test.npz``."""
        ids = self.competition.test["id"].to_numpy()
        Predictions(ids, self.tests(), self.task.space, made_by).save(folder / "test.npz")

    def tests(self) -> np.ndarray:
        """(N, C) float32 of all test rows; an image that does not decode gets the mean of the others."""
        values, broken = self.merge(self.test_rows()), self.broken
        if 0 < len(broken) < len(values):
            values[broken] = np.delete(values, broken, axis=0).mean(axis=0, dtype=np.float64)
            warn(f"{len(broken)} test images that do not decode are predicted as the mean of the others")
        return values

    def write_pool(self, path: Path, ids: np.ndarray, places: dict[str, np.ndarray], apart: bool) -> None:
        """Write what it says of images without labels, of rows of the ``POOL`` tables, behind each other, under ids.

        apart: what each view and scale says stands side by side, (N, V·C), instead of what they say together.
        """
        parts = [self._all(POOL[kind], rows) for kind, rows in places.items() if len(rows)]
        values = np.concatenate(parts, axis=1)
        table = values.swapaxes(0, 1).reshape(values.shape[1], -1) if apart else self.merge(values)
        Predictions(ids, table, self.task.space).save(path)

    def label(self, rows: np.ndarray, path: Path) -> Predictions:
        """What it says of training rows, to teach others; path: a file for what memory should not hold."""
        ids = self.competition.train["id"].to_numpy()[rows]
        return Predictions(ids, self.own(rows), self.task.space)

    def own(self, rows: np.ndarray) -> np.ndarray:
        """(n, C) float32, what it says of training rows."""
        return self.merge(self.train_rows(rows))

    def train_rows(self, rows: np.ndarray) -> np.ndarray:
        """(V, N, C) predictions of training rows under each scale and view; see ``labels``."""
        return self._all(stores.train_store, rows)

    def test_rows(self) -> np.ndarray:
        """(V, N, C) predictions of all test rows."""
        return self._all(stores.test_store, np.arange(len(self.competition.test)))

    def some(self, rows: np.ndarray) -> np.ndarray:
        """What it says of these test rows, to be compared with what another member says."""
        return self.merge(self._all(stores.test_store, rows))

    def merge(self, values: np.ndarray) -> np.ndarray:
        """(V, N, C) → (N, C) by the config's merge."""
        return registry.build("merges", self.config.merge)(values, self.task.form).astype(np.float32)

    def labels(self) -> list[str]:
        """What each of the V predictions is of: its view and scale."""
        return [f"{view.name} × {scale:g}" for scale in self.config.scales for view in self.views]

    def _all(self, store: Callable[[Config, Competition, int], Images], rows: np.ndarray) -> np.ndarray:
        found: list[Any] = []
        sizes = [max(4, round(self.config.image_size * scale)) for scale in self.config.scales]
        self._compile(sizes, len(rows) * len(self.views))
        for scale, size in zip(self.config.scales, sizes, strict=True):
            batch = infer.batch_size(self.config.predict_batch, size)
            images = store(self.config, self.competition, size)
            self.broken = images.broken
            try:
                alone = (infer.predict(one, self.task, images, rows, self.views, batch) for one in self.networks)
                found.append(infer.together(alone, self.task.form))
            except (AssertionError, RuntimeError) as fault:
                if scale == 1.0:
                    raise
                backbone = self.networks[0].blueprint.backbone
                raise UserError(f"scales={scale:g}: {backbone} takes no {size} px ({fault}); use scales=1") from fault
        return np.concatenate(found)

    def _compile(self, sizes: list[int], looks: int) -> None:
        """Compile the networks where so many looks at each size ask for it; what is compiled stays so."""
        asked = self.config.predict_compile
        for one in self.networks:
            if one.compiled or not compiling.wanted(asked, one, sizes, looks, self.threads):
                continue
            say(f"  {self.folder.name}: {looks} looks at {some(sizes)} px by compiled code, predict_compile={asked}")
            compiling.make(one)


class ListMember(Member):
    """A member that finds the labels of images among the training images; views and scales are merged before that.

    Training rows search those that the member learned from, and never their own folds (law 1). Test rows search all
    training rows, whatever the fold: so nothing that they find may teach this member.
    """

    def write_own(self, rows: np.ndarray, folder: Path, made_by: dict[str, Any]) -> None:
        """Write ``oof.npz``."""
        ids = self.competition.train["id"].to_numpy()[rows]
        Predictions(ids, self.own(rows), self.task.space, made_by).save(folder / "oof.npz")

    def write_test(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Write ``test.npz``."""
        ids = self.competition.test["id"].to_numpy()
        values = self._found(self.tests(), np.ones(len(self.points), dtype=bool))
        Predictions(ids, values, self.task.space, made_by).save(folder / "test.npz")

    def own(self, rows: np.ndarray) -> np.ndarray:
        """The lists of training rows, found among those that no member with these rows' folds leaves out."""
        folds = read_folds(self.config, self.competition)
        held_out = tuple(np.unique(folds[rows]).tolist())
        return self._found(self.points[rows], learns_from(self.config, folds, held_out))

    def merge(self, values: np.ndarray) -> np.ndarray:
        """(V, N, D) embeddings → (N, D) by the config's merge."""
        return registry.build("merges", self.config.merge)(values, EMBEDDINGS)

    @cached_property
    def points(self) -> np.ndarray:
        """(N, D) float32, the embeddings of all training rows; as stored in a package, where there are no images."""
        known = self._stored("points")
        return self.merge(self.train_rows(np.arange(len(self.competition.train)))) if known is None else known

    @cached_property
    def lost(self) -> np.ndarray:
        """The training rows whose images do not decode."""
        known = self._stored("lost")
        if known is not None:
            return known
        return stores.train_store(self.config, self.competition, self.config.image_size).broken

    def _stored(self, name: str) -> np.ndarray | None:
        path = self.folder / POINTS
        return np.load(path, allow_pickle=False)[name] if path.is_file() else None

    def save_points(self, folder: Path) -> None:
        """Store what is known of all training rows in the folder of a packaged member."""
        with atomic(folder / POINTS) as handle:
            np.savez(handle, points=self.points, lost=self.lost)

    def _found(self, points: np.ndarray, kept: np.ndarray) -> np.ndarray:
        there = shelf(self.competition, self.task, kept, self.lost)
        assert there is not None
        return there.found(points, self.points[there.rows])


def shelf(competition: Competition, task: Task, kept: np.ndarray, broken: np.ndarray) -> Shelf | None:
    """What of the kept (N,) training rows is searched by others; None where the task's values are a network's own.

    broken: rows whose image does not decode, which nobody finds.
    """
    if not task.form.shelved:
        return None
    there = kept.copy()
    there[broken] = False
    found: Shelf = task.shelf(competition.targets, there)  # type: ignore[attr-defined]
    return found


class MapMember(Member):
    """A member whose predictions are maps: they are written as they come, the mean over views and scales."""

    def write_own(self, rows: np.ndarray, folder: Path, made_by: dict[str, Any]) -> None:
        """Write ``oof.npz`` and the maps beside it."""
        self._write(folder / "oof.npz", self.competition.train, rows, masked.TRAIN, made_by)

    def write_test(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Write ``test.npz`` and the maps beside it."""
        rows = np.arange(len(self.competition.test))
        self._write(folder / "test.npz", self.competition.test, rows, masked.TEST, made_by)

    def label(self, rows: np.ndarray, path: Path) -> Predictions:
        """The maps of training rows, which are written to path."""
        self._write(path, self.competition.train, rows, masked.TRAIN, {})
        return Predictions.load(path)

    def some(self, rows: np.ndarray) -> np.ndarray:
        """(n,) float64 in 0…1: the pixels of the maps of these test rows."""
        source = masked.Source(self.config, self.competition, self.competition.test["file"].tolist(), masked.TEST)
        strips = map_strips(self.networks, self.task, source, rows, self.views, self.config)
        return np.concatenate([strip.ravel() / 255 for _, strip in strips])

    def write_pool(self, path: Path, ids: np.ndarray, places: dict[str, np.ndarray], apart: bool) -> None:
        """Write the maps of images of data.unlabelled, those of test images are in test.npz; see ``Member``."""
        self._write(path, self.competition.unlabelled, places[UNLABELLED], masked.TEST, {})

    def _write(self, path: Path, table: pd.DataFrame, rows: np.ndarray, what: str, made_by: dict[str, Any]) -> None:
        config, plan = self.config, self.networks[0].blueprint
        source = masked.Source(config, self.competition, table["file"].tolist(), what)
        with ragged.writer(path.with_suffix(SUFFIX)) as out:
            for new, strip in map_strips(self.networks, self.task, source, rows, self.views, config):
                out.strip(strip, new=new)
        resize = "" if plan.resize == masked.TILES else plan.resize
        ids = table["id"].to_numpy()[rows]
        save_maps(path, ids, out.shapes, source.sizes[rows], resize, self.task.space, made_by)


def map_strips(
    networks: Sequence[network.Network], task: Task, source: masked.Source, rows: np.ndarray, found: list[views.View],
    config: Config, label: str = "",
) -> Iterator[tuple[bool, np.ndarray]]:  # fmt: skip
    """The maps of some rows, the mean over networks, as ``infer.whole_maps`` or ``infer.tile_maps`` yields them."""
    plan = networks[0].blueprint
    size = plan.image_size
    if plan.resize == masked.TILES:
        stores_ = [source.own_size(scale) for scale in config.scales]
        batch = infer.batch_size(config.predict_batch, size)
        return infer.tile_maps(networks, task, stores_, rows, found, batch, config.tiles.overlap, label)
    sides = [max(4, round(size * scale)) for scale in config.scales]
    batch = infer.batch_size(config.predict_batch, max(sides))
    return infer.whole_maps(networks, task, [source.square(side) for side in sides], rows, found, batch, label)


def whole(strips: Iterator[tuple[bool, np.ndarray]]) -> Iterator[np.ndarray]:
    """Strips as ``map_strips`` yields them → the map (H, W, P) uint8 of each image."""
    parts: list[np.ndarray] = []
    for new, strip in strips:
        if new and parts:
            yield np.concatenate(parts)
            parts = []
        parts.append(strip)
    if parts:
        yield np.concatenate(parts)


def level_of(config: Config, folder: Path, decoder: str) -> int:
    """The level at which the member in a folder predicts; 0: the last. A decoder without levels has no auto."""
    if config.level == "auto" and not has_levels(decoder):
        return 0
    if config.level != "auto":
        return int(config.level) if config.level.isdecimal() else 0
    record = folder.parent / LEVELS
    if not record.is_file():
        raise UserError(f"level=auto, but {shown(record)} is missing: stage=predict fold=all chooses it")
    return int(read_json(record)["chosen"])


def open_member(folder: Path, config: Config, competition: Competition, task: Task, machine: Hardware) -> Member:
    """The member in a folder, of the kind that the task's form needs."""
    kind = MapMember if task.form.spatial else ListMember if task.form.shelved else Member
    return kind(folder, config, competition, task, machine)
