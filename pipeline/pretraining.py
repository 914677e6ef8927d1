"""Learning from images alone, put together: images, backbone and pretrainer around ``engine.fit``.

No label is read to learn anything: the table holds rows, and zeros for targets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline import (
    console,
    engine,
    files,
    hardware,
    images,
    infer,
    masked,
    network,
    processes,
    ranks,
    registry,
    resident,
    stores,
    training,
)
from pipeline.checkpoint import load_checkpoint
from pipeline.competition import Competition
from pipeline.config import Config, changed, root
from pipeline.data import Batch, Joined, Source, Table, draw
from pipeline.embed import embed, nearest
from pipeline.errors import UserError
from pipeline.hardware import Hardware
from pipeline.learner import Learning
from pipeline.network import Blueprint
from pipeline.parts.pretrainers import Plan, Reconstruction, grey
from pipeline.runs import Run

HELD = 1  # keeps the draw of the images that are held out apart from the other draws of a seed
NOTHING_SEEN = np.zeros(0, dtype=np.int64)


class SelfTaught(nn.Module):
    """Normalise → backbone, and the pretrainer that it learns by: what an average and a checkpoint hold."""

    def __init__(self, blueprint: Blueprint, backbone: nn.Module, method: str) -> None:
        super().__init__()
        self.blueprint, self.backbone = blueprint, backbone
        self.normalise = network.normaliser(blueprint)
        channels, size = blueprint.channels, blueprint.image_size
        with torch.no_grad():
            state = backbone.training
            found = self.eval().maps(torch.zeros(2, channels, size, size))
            backbone.train(state)
        plan = Plan(channels, size, *found.shape[1:], tokens=bool(getattr(backbone, "pooled", False)))
        self.pretrainer = registry.build("pretrainers", method)(plan)
        self.train()

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in 0…255 → the backbone's input."""
        prepared: torch.Tensor = self.normalise(pixels)
        return prepared

    def maps(self, prepared: torch.Tensor) -> torch.Tensor:
        """Input → (B, F, h, w), the coarsest map, of a transformer its patches in their places."""
        if isinstance(self.backbone, network.TimmBackbone):
            return self.backbone.places(prepared)
        found = self.backbone(prepared)
        coarsest: torch.Tensor = found[-1] if isinstance(found, list) else found
        return coarsest

    def vectors(self, prepared: torch.Tensor) -> torch.Tensor:
        """Input → (B, F), the mean over the map that the backbone gives, or what it pools itself."""
        found = self.backbone(prepared)
        coarsest: torch.Tensor = found[-1] if isinstance(found, list) else found
        return coarsest.mean(dim=(2, 3))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(V·B, C, S, S) uint8 → (B,) float32, the loss of each image."""
        losses: torch.Tensor = self.pretrainer(self, pixels).float()
        return losses


class Pretraining(Learning):
    """What ``fit`` trains: the network, whose own loss is all there is."""

    def __init__(self, taught: SelfTaught) -> None:
        super().__init__()
        self.network = taught

    def forward(self, batch: Batch, generator: np.random.Generator) -> torch.Tensor:
        """The mean loss of a batch; of a share of it, so that the mean over the processes is that of the whole."""
        losses = self.network(batch.images)
        return (losses * batch.weights).sum() / (batch.total or batch.weights.sum())


def fresh(run: Run) -> SelfTaught:
    """The network before it learns: pretrained, from a file, or random from the seed."""
    config = run.config
    torch.manual_seed(int(draw(config.seed, HELD).integers(2**63)))
    plan = blueprint(run)
    weights = str(root() / config.weights) if config.weights else ""
    return SelfTaught(plan, network.new(plan, config.pretrained, weights).backbone, config.pretrain.method)


def blueprint(run: Run) -> Blueprint:
    """What the backbone is built from: as a member's, with a head that nobody uses. Its decoder says how deep it is."""
    config = run.config
    mean, std, whitening = training.measured(run)
    return Blueprint(
        backbone=config.backbone, pool="avg()", head="linear()", channels=config.data.channels,
        image_size=config.image_size, resize=config.data.resize, mean=mean, std=std, columns=[], outputs=1,
        norm=config.norm, activation=config.activation, stem=config.stem, decoder=config.decoder,
        normalise=registry.complete("normalises", config.data.normalise), whitening=whitening,
        tile_scale=config.tiles.scale,
        preprocess=[registry.complete("preprocesses", call) for call in config.data.preprocess],
    )  # fmt: skip


# --- images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """Images behind each other: of the tables first, as they were named. good: (n,) int64, those that decode."""

    source: Source
    good: np.ndarray
    counts: dict[str, int]

    def rows(self, name: str) -> np.ndarray:
        """The places of the images of this name, train, test, …"""
        names = list(self.counts)
        start = sum(self.counts[one] for one in names[: names.index(name)])
        return np.arange(start, start + self.counts[name])

    def parted(self, config: Config) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows to learn from, and those that are held out, by the seed."""
        order = draw(config.seed, HELD).permutation(self.good)
        count = min(round(config.pretrain.holdout * len(order)), len(order) - 1)
        return np.sort(order[count:]), np.sort(order[:count])


def material(config: Config, competition: Competition, names: Sequence[str]) -> Material:
    """The images that are named: train, test, unlabelled, or folders. UserError where there are none."""
    opened = {name: _squares(config, competition, name) for name in names}
    opened = {name: store for name, store in opened.items() if len(store)}
    if not opened:
        raise UserError(f"pretrain.images={','.join(names)}, but there are no such images; name a folder that has some")
    each, start, good = list(opened.values()), 0, []
    for store in each:
        good.append(start + np.setdiff1d(np.arange(len(store)), getattr(store, "broken", NOTHING_SEEN)))
        start += len(store)
    made: Source = Joined(each)
    if config.data.resize == masked.TILES:
        nothing = [masked.Nothing(store, 0) for store in each]
        made = Unlabelled(masked.Squares(each, nothing, config.image_size, 0.0))
    return Material(made, np.concatenate(good), {name: len(store) for name, store in opened.items()})


def specs(competition: Competition, name: str) -> tuple[Any, list[str]]:
    """The folder and the files, relative to it, of the images of a name."""
    if name in ("train", "test", "unlabelled"):
        table = getattr(competition, name, None)
        return competition.folder, [] if table is None else table["file"].tolist()
    folder = root() / name
    if not folder.is_dir():
        raise UserError(
            f"pretrain.images={name}, but there is no folder {name}; name train, test, unlabelled, or a folder of "
            "images, from the project's"
        )
    return folder, files.find_images(folder)


def _squares(config: Config, competition: Competition, name: str) -> Any:
    """The images of a name at the training size; with tiles at their own."""
    folder, found = specs(competition, name)
    label, own = f"{competition.name} {name} images", folder == competition.folder
    broken = {"test": "fill", "train": "skip" if config.data.skip_broken else "stop"}.get(name, "skip")
    if not found:
        return []
    if config.data.resize != masked.TILES:
        return stores.open_files(config, folder, found, config.image_size, broken, label)
    if not own:
        raise UserError(
            f"pretrain.images={name}: with data.resize=tiles the images are those of the competition; name train, test "
            "or unlabelled"
        )
    return masked.own_size(config, competition, found, label, "stop" if broken == "stop" else "fill")


@dataclass(frozen=True)
class Unlabelled:
    """Squares of images, without planes."""

    squares: masked.Squares

    def samples(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, None]:
        """(n,) rows, (n,) seeds of where squares lie → (n, S, S, C) uint8."""
        return self.squares.samples(rows, seeds)[0], None


def table_of(rows: np.ndarray) -> Table:
    """Rows without any target."""
    return Table(rows, np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=np.float32))


# --- training -----------------------------------------------------------------------------------------------------


def train(run: Run) -> dict[str, Any]:
    """Learn, by a process on each device if there are several; goes on from last.ckpt. Returns what is recorded."""
    count, device = run.config.devices, run.stored()["hardware"]["device"]
    if count == 1:
        return train_here(run)
    hardware.check_devices(device, count)
    found: dict[str, Any] = processes.together(
        count, device.partition(":")[0], train_here, type(run)(run.config, run.name)
    )
    return found


def train_here(run: Run) -> dict[str, Any]:
    """Learn in this process, which may be one of several that learn together."""
    began, config, machine = time.perf_counter(), run.config, Hardware(**run.stored()["hardware"])
    hardware.start(machine, ranks.size())
    fabric = engine.make_fabric(machine)
    own = material(config, run.competition, config.pretrain.images)
    rows, held = own.parted(config)
    loader = resident.loader(own.source, table_of(rows), config, machine, fabric.device)
    validate = _validation(own.source, held, config, machine, fabric) if len(held) >= ranks.size() else None
    progress = engine.fit(fabric, Pretraining(fresh(run)), loader, config, run.member(()), validate)
    last = progress.history[-1]
    return {
        "rows": len(rows),
        "held_out": len(held),
        "epochs": progress.epoch,
        "updates": progress.updates,
        "loss": last["loss"],
        **{key: last[key] for key in ("held_loss", "spread") if key in last},
        "seconds": time.perf_counter() - began,
    }


def _validation(source: Source, held: np.ndarray, config: Config, machine: Hardware, fabric: Any) -> engine.Validate:
    """The loss of the images held out, the same draws each time, and how far their vectors are spread.

    spread: the deviation of the directions, times the root of their dimension (Chen & He 2021, fig. 2): 0 where all
    images have become one.
    """
    size = min(config.batch_size, len(held) // ranks.size() * ranks.size())
    loader = resident.loader(source, table_of(held), changed(config, batch_size=size), machine, fabric.device)

    def validate(models: Iterable[Any]) -> tuple[float, dict[str, float]]:
        losses, points = [], []
        torch.manual_seed(0)  # each step of the training seeds anew
        with fabric.autocast(), torch.no_grad():
            for model in map(ranks.aligned, models):
                for batch in loader.epoch(0):
                    pixels = batch.images.to(fabric.device)
                    losses.append(model(pixels).mean())
                    vectors = model.vectors(model.prepare(pixels[: len(batch.targets)]))
                    points.append(functional.normalize(vectors.float(), dim=1))
            every = torch.cat(points)
            spread = every.std(dim=0, correction=0).mean() * every.shape[1] ** 0.5
            loss, spread = (float(ranks.mean(value)) for value in (torch.stack(losses).mean(), spread))
        return -loss, {"held_loss": loss, "spread": spread}

    return validate


# --- what comes of it ---------------------------------------------------------------------------------------------


def taught(run: Run) -> SelfTaught:
    """The network that has learned, in eval mode on the CPU."""
    content = load_checkpoint(run.member(()) / "best.ckpt")
    made = fresh(run)
    made.load_state_dict(content["network"])
    return made.eval()


def reconstructions(run: Run, network_: SelfTaught, own: Material, rows: np.ndarray) -> Iterator[Reconstruction]:
    """What the network makes of some rows, batch by batch, on the CPU; of squares, always the same ones."""
    batch = infer.batch_size(run.config.predict_batch, run.config.image_size)
    device = Hardware(**run.stored()["hardware"]).device
    network_ = network_.to(device)
    with console.progress("reconstruct", len(rows)) as advance, torch.inference_mode():
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            pixels = torch.from_numpy(own.source.samples(some, some)[0]).permute(0, 3, 1, 2).to(device)
            found = network_.pretrainer.reconstruct(network_, pixels)  # type: ignore[operator]
            yield Reconstruction(*(None if part is None else part.cpu() for part in found))
            advance(len(some))


def measured(run: Run, network_: SelfTaught, own: Material, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float32 errors of some rows and (n, L) float32 codes; L is 0 where there are none."""
    parts = list(reconstructions(run, network_, own, rows))
    codes = [torch.zeros(len(part.errors), 0) if part.codes is None else part.codes for part in parts]
    return torch.cat([part.errors for part in parts]).numpy(), torch.cat(codes).numpy()


def pictures(run: Run, network_: SelfTaught, own: Material, rows: np.ndarray) -> dict[str, np.ndarray]:
    """(n, S, S, C) uint8 each: images, what the network was shown of them if it is less, what it made of that."""
    originals = own.source.samples(rows, rows)[0]
    parts = list(reconstructions(run, network_, own, rows))
    shown, made = (torch.cat([getattr(part, name) for part in parts]) for name in ("shown", "made"))
    seen, drawn = (grey(one).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for one in (shown, made))
    less = {} if np.array_equal(seen, originals) else {"shown": seen}
    return {"image": originals, **less, "made of it": drawn}


def neighbours(
    run: Run, network_: SelfTaught, store: images.Images, points: np.ndarray, queries: np.ndarray, k: int
) -> Any:
    """The k nearest of some rows (points) to each of others: cosines and places among the points, (Q, k) each."""
    device = Hardware(**run.stored()["hardware"]).device
    batch, network_ = infer.batch_size(run.config.predict_batch, run.config.image_size), network_.to(device).eval()
    known, asked = (embed(network_, store, rows, batch) for rows in (points, queries))  # type: ignore[arg-type]
    return nearest(known, asked, k, device)
