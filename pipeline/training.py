"""One member's training, put together: its rows, images, network and validation, around ``engine.fit``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import (
    artefacts,
    checkpoint,
    console,
    engine,
    evaluate,
    extra,
    hardware,
    infer,
    learner,
    masked,
    network,
    prediction,
    processes,
    ranks,
    registry,
    resident,
    stores,
    tracking,
)
from pipeline.artefacts import Predictions, shown
from pipeline.checkpoint import Progress
from pipeline.config import Config, replace, root
from pipeline.data import Joined, Source, Table, draw
from pipeline.errors import UserError, some
from pipeline.forms import UNKNOWN
from pipeline.hardware import Hardware
from pipeline.images import Images
from pipeline.maps import Geometry, Mean, Stored
from pipeline.parts import views
from pipeline.rules import consistent
from pipeline.runs import Run
from pipeline.tables import check_ids, read_table
from pipeline.tasks import Task, task_for


def train_member(run: Run, held_out: tuple[int, ...], print_: str) -> dict[str, Any]:
    """Train the member that does not learn from the folds held_out: one network, or train.seeds of them.

    Each of several trains in a folder of its own, is skipped when it is finished, and enters the member's best.ckpt,
    so that whatever asks the member asks all of them. print_: the member's fingerprint. Returns what the stage records:
    scores, epochs, optimizer steps, seconds.
    """
    folder, count = run.member(held_out), run.config.train.seeds
    if count == 1:
        return _tracked(run.config, folder, train_network(run, held_out, folder))
    places, records = [], []
    for seed in range(run.config.seed, run.config.seed + count):
        places.append(folder / f"seed{seed}")
        own, record = artefacts.fingerprint(print_, seed), places[-1] / "train.json"
        found = artefacts.finished(record, own, places[-1] / "best.ckpt")
        if found is None:
            console.say(f"  seed {seed}")
            alone = Run(replace(run.config, seed=seed), run.name)
            trained = _tracked(alone.config, places[-1], train_network(alone, held_out, places[-1]))
            found = artefacts.finish(record, own, **trained)
        records.append(found)
    return join(run, held_out, places, records)


def _tracked(config: Config, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record of a trained network, told to the tracker."""
    facts = {key: record[key] for key in ("epochs", "updates", "best_epoch", "seconds")}
    if (score := final(config, record)) is not None:
        facts["final"] = score
    tracking.Tracking(config, folder).conclude(facts)
    return record


def final(config: Config, record: dict[str, Any]) -> float | None:
    """The score, on its own fold, of the network that a member's training ended with; None where it has no fold."""
    last = -1 if config.select == "last" else record["best_epoch"] - 1
    return record.get("final", record["scores"][last] if record["scores"] else None)


def join(run: Run, held_out: tuple[int, ...], places: list[Path], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the networks of several seeds into the member's best.ckpt, and score them together on its own fold."""
    contents = [checkpoint.load_checkpoint(place / "best.ckpt") for place in places]
    states = [state for content in contents for state in checkpoint.networks(content)]
    checkpoint.write_weights(run.member(held_out) / "best.ckpt", {**contents[0], "network": states[0]}, states[1:])
    record = {**records[0], "seconds": sum(one["seconds"] for one in records)}
    del record["fingerprint"]
    if len(held_out) != 1:
        return record
    machine, task = Hardware(**run.stored()["hardware"]), task_for(run.config, run.competition)
    hardware.start(machine)
    fabric = engine.make_fabric(machine)
    whole = ({**contents[0], "network": state} for state in states)
    built = (network.from_checkpoint(content).to(fabric.device) for content in whole)
    own = materials(run, task, held_out)[2]
    record["final"] = VALIDATIONS[task.form.spatial](run, task, held_out, own)(built)[1]["score"]
    record["seeds"] = [final(run.config, one) for one in records]
    said = " ".join(f"{score:.4f}" for score in record["seeds"])
    console.say(f"  {run.member(held_out).name}: score {said} of single seeds, {record['final']:.4f} together")
    return record


def train_network(run: Run, held_out: tuple[int, ...], folder: Path) -> dict[str, Any]:
    """Train one network in a folder, by a process on each device if there are several; goes on from its last.ckpt."""
    count, device = run.config.devices, run.stored()["hardware"]["device"]
    if count == 1:
        return train_here(run, held_out, folder)
    hardware.check_devices(device, count)
    kind = device.partition(":")[0]
    found: dict[str, Any] = processes.together(count, kind, train_here, Run(run.config, run.name), held_out, folder)
    return found


def train_here(run: Run, held_out: tuple[int, ...], folder: Path) -> dict[str, Any]:
    """Train one network in this process, which may be one of several that train it together."""
    began = time.perf_counter()
    config, most = run.paced()
    machine = Hardware(**run.stored()["hardware"])
    progress, rows, initial = fit_member(Run(config, run.name), held_out, machine, folder, most=most)
    return {
        "rows": rows,
        "epochs": progress.epoch,
        "updates": progress.updates,
        "scores": [row["score"] for row in progress.history if "score" in row],
        "best_epoch": progress.best_epoch + 1,
        "initial": initial,
        "seconds": time.perf_counter() - began,
        **({"averaged": progress.averaged, "final": progress.final} if progress.averaged else {}),
    }


def fit_member(
    run: Run,
    held_out: tuple[int, ...],
    machine: Hardware,
    folder: Path,
    watch: Callable[[float], None] = lambda score: None,
    most: int = 0,
    make: Callable[[Run, Task, tuple[int, ...]], network.Network] | None = None,
    learns: type[learner.Learner] = learner.Learner,
) -> tuple[Progress, int, float | None]:
    """Train a member in any folder; returns its progress, its rows, and the loss declared of a new model.

    watch: called with the score after each epoch; it may raise, to end a training that is not worth more. most: batches
    of an epoch; 0: all rows'. make: another network than the config's; learns: what turns it and a batch into a loss.
    """
    config = run.config
    hardware.start(machine, ranks.size())
    task = task_for(config, run.competition)
    table, joined, own = materials(run, task, held_out)
    fabric = engine.make_fabric(machine)
    taught_by = task.form if task.form.directions else task.learns
    student = learns(
        (make or fresh_network)(run, task, held_out), config, task.learns, counts_of(table, task), taught_by,
        0 if table.soft is None or task.form.spatial else table.soft.shape[1],
    )  # fmt: skip
    loader = resident.loader(joined, table, config, machine, fabric.device, most)
    score = VALIDATIONS[task.form.spatial](run, task, held_out, own) if len(held_out) == 1 else None

    def validate(model: Any) -> tuple[float, dict[str, float]]:
        with fabric.autocast():  # the training format
            found = score(model)  # type: ignore[misc]
        watch(found[1]["score"])
        return found

    if config.train.scale_lr != "none":
        images = config.batch_size * config.train.accumulate
        console.say(f"  lr={config.lr:g} becomes {engine.peak(config):.3g} for steps of {images} images")
    progress = engine.fit(fabric, student, loader, config, folder, validate if score else None)
    return progress, len(table), learner.initial_loss(config, task.outputs)


def materials(run: Run, task: Task, held_out: tuple[int, ...]) -> tuple[Table, Source, Any]:
    """What a member learns from: its table, the images that the table's rows mean, and the training images alone."""
    return MATERIALS[task.form.spatial](run, task, held_out)


def _pictures(run: Run, task: Task, held_out: tuple[int, ...]) -> tuple[Table, Source, Any]:
    images = stores.training_images(run.config, run.competition)
    table = member_table(run, task, held_out, images.broken)
    pictures = [images.train, images.test]
    if outside := extra.load(run.config, run.competition):
        table = _join_extra(table, run, task, held_out, outside)
        pictures.append(stores.extra_store(run.config, outside))
    if run.config.train.hard:
        table.weights = table.weights * _hardness(run)[np.minimum(table.rows, len(run.folds))]
    if consistent(run.config):
        _add_pool(table, run, pictures)
    return table, Joined(pictures), images.train


def _add_pool(table: Table, run: Run, pictures: list[Images]) -> None:
    """Give a table its pool: the member's own rows, the test images, and those of data.unlabelled, behind the others.

    Fold safety: of no row in it is a label looked at, and no row of the folds held out is in it.
    """
    pool = [table.rows, len(pictures[0]) + whole(pictures[1])]
    if len(run.competition.unlabelled):
        more = stores.unlabelled_store(run.config, run.competition, run.config.image_size)
        pool.append(sum(map(len, pictures)) + whole(more))
        pictures.append(more)
    table.pool = np.unique(np.concatenate(pool))


def whole(images: Images) -> np.ndarray:
    """The rows of images that decode."""
    return np.setdiff1d(np.arange(len(images)), images.broken)


def _pairs(run: Run, task: Task, held_out: tuple[int, ...]) -> tuple[Table, Source, Any]:
    config, competition = run.config, run.competition
    train = masked.Source(config, competition, competition.train["file"].tolist(), masked.TRAIN)
    table, planes = member_table(run, task, held_out, np.zeros(0, dtype=np.int64)), _planes(run, task, held_out)
    if config.data.resize == masked.TILES:
        table = table.take(np.repeat(np.arange(len(table)), config.tiles.repeat))
    source = masked.learned_from(config, competition, task, planes)
    if consistent(config):
        source, more = masked.with_pool(config, competition, task, source)
        table.pool = np.concatenate([np.unique(table.rows), more])
    return table, source, train


def _planes(run: Run, task: Task, held_out: tuple[int, ...]) -> list[Any]:
    """The planes of the training images, then of the test images where some are learned from, made for this member."""
    config, competition = run.config, run.competition
    found = [masked.planes_of(config, competition, task)]
    test_ids = competition.test["id"].to_numpy()
    if config.train.labels and (path := _given_file(root() / config.train.labels, held_out)):
        found.append(masked.read_given(config, path, test_ids))
    if config.train.soft:
        folder, key = root() / config.train.soft, _member_key(held_out)
        own = _taught(run, task, folder / f"fold{key}.npz", competition.train["id"].to_numpy())
        found[0] = masked.Taught(found[0], own)
        path = folder / f"fold{key}-test.npz"
        found += [masked.Taught(None, _taught(run, task, path, test_ids))] if path.exists() else []
    return found


def _given_file(labels: Path, held_out: tuple[int, ...]) -> Path | None:
    """Where the planes lie that were made for this member with a labels file, if there are any, and unchanged."""
    content = _labels(labels, held_out, "planes")
    if content.empty:
        return None
    path = masked.given_file(labels, _member_key(held_out))
    if artefacts.file_digest(path) != content["planes"].iloc[0]:
        raise UserError(f"{shown(path)} is not what {shown(labels)} speaks of; delete both and make them again")
    return path


def _taught(run: Run, task: Task, path: Path, ids: np.ndarray) -> masked.Given:
    """A teacher's planes of the rows that have these ids."""
    stored = Predictions.load(path)
    return masked.Given(
        masked.taught_by(run.config, run.competition, task, path, stored.values.sizes),
        masked.places_of(ids, stored.ids),
    )


def counts_of(table: Table, task: Task) -> np.ndarray | None:
    """(C,) how many of the member's own rows are of each class or label, soft ones by their share; None of numbers."""
    if not task.learns.bounded or task.learns.spatial:
        return None
    if table.targets.ndim == 1:
        return np.bincount(table.targets[table.targets != UNKNOWN], minlength=task.outputs).astype(np.float64)
    return task.learns.dense(table.targets, task.outputs).sum(axis=0, dtype=np.float64)


def fresh_network(run: Run, task: Task, held_out: tuple[int, ...]) -> network.Network:
    """The untrained network of a member: pretrained, from a file, or random from (seed, folds held out)."""
    config = run.config
    torch.manual_seed(int(draw(config.seed, *held_out, len(held_out)).integers(2**63)))
    weights = str(root() / config.weights) if config.weights else ""
    fresh = network.new(blueprint(run, task, held_out), config.pretrained, weights)
    planned = registry.build("sizes", config.sizes)(config.image_size, config.epochs)
    network.check_sizes(fresh, sorted({size for epoch in planned for size in epoch}), config.sizes)
    return fresh


def blueprint(run: Run, task: Task, held_out: tuple[int, ...]) -> network.Blueprint:
    """What the network of this member is built from."""
    config = run.config
    mean, std, whitening = measured(run)
    return network.Blueprint(
        backbone=config.backbone,
        pool=config.pool,
        head=config.head,
        channels=config.data.channels,
        image_size=config.image_size,
        resize=config.data.resize,
        mean=mean,
        std=std,
        columns=task.columns,
        outputs=task.outputs,
        embeds=task.form.searched,
        state=member_state(run, task, held_out),
        norm=config.norm,
        activation=config.activation,
        stem=config.stem,
        normalise=registry.complete("normalises", config.data.normalise),
        whitening=whitening,
        decoder=config.decoder,
        tile_scale=config.tiles.scale,
        preprocess=[registry.complete("preprocesses", call) for call in config.data.preprocess],
    )


def measured(run: Run) -> tuple[list[float], list[float], list[Any]]:
    """Mean, std and whitening kernel for data.normalise: the backbone's, or of all training images, never of labels."""
    config, ones = run.config, [1.0] * run.config.data.channels
    chosen, call = registry.bind("normalises", config.data.normalise)
    given, measures = {"patch": 1, **chosen.arguments, **call.arguments}, chosen.facts["measures"]
    if measures == "backbone":
        return *network.normalisation(config.backbone, config.data.channels), []
    if measures == "moments":
        return *stores.statistics(config, run.competition), []
    if measures == "nothing":
        return [0.0] * len(ones), ones, []
    how = {"patch": given["patch"], "epsilon": given["epsilon"], "turned_back": measures == "patches"}
    mean, kernel = stores.whitening(config, run.competition, **how)
    return mean, ones, kernel


def member_state(run: Run, task: Task, held_out: tuple[int, ...]) -> dict[str, Any]:
    """What the task takes from the rows that the member may learn from, and from no other (law 1)."""
    return task.fit(task.taught(run.competition.targets)[run.learned(held_out)])


# --- the table ----------------------------------------------------------------------------------------------------


def member_table(run: Run, task: Task, held_out: tuple[int, ...], broken: np.ndarray) -> Table:
    """The rows that a member learns from: the training rows of the other folds, and what joined the table.

    broken: training rows whose image does not decode. Fold safety: pseudo-labels and soft labels are taken only where
    they were made for this very member.
    """
    taught, state = task.taught(run.competition.targets), member_state(run, task, held_out)
    kept = run.learned(held_out) & task.form.taught(taught)
    kept[broken] = False
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise UserError(f"no training rows are left for {run.name} without folds {held_out}; lower folds.count")
    dense = learner.mixes(run.config) or (bool(run.config.train.labels) and not task.form.directions)  # soft labels
    own = task.soft(taught[rows]) if dense else taught[rows]
    table = Table(rows, task.encode(own, state), np.ones(len(rows), dtype=np.float32))
    for key, joins in joins_of(task).items():
        if getattr(run.config.train, key):
            table = joins(table, run, task, held_out)
    return table


def _labels(path: Path, held_out: tuple[int, ...], *columns: str) -> pd.DataFrame:
    """The rows of a labels file that were made for this member."""
    content = read_table(path, dict.fromkeys(["id", "weight", "for_fold", *columns], ""), key="train.labels")
    return content[content["for_fold"] == _member_key(held_out)]


def _join_pseudo_labels(table: Table, run: Run, task: Task, held_out: tuple[int, ...]) -> Table:
    """The pseudo-labelled test rows of ``train.labels`` that were made for this member."""
    path = root() / run.config.train.labels
    content = _labels(path, held_out)
    read = task.read_labels(content)
    values = task.encode(task.soft(read) if table.targets.ndim > read.ndim else read, member_state(run, task, held_out))
    rows = _test_rows(run, content["id"].to_numpy(), path)
    return table.join(Table(rows, values, content["weight"].to_numpy(dtype=np.float32)))


def _join_pseudo_maps(table: Table, run: Run, task: Task, held_out: tuple[int, ...]) -> Table:
    """The same of masks: targets are rows, whose planes ``_planes`` has."""
    labels, soft = run.config.train.labels, run.config.train.soft
    if soft:
        raise UserError(f"train.labels={labels} and train.soft={soft} do not go together for masks; leave one out")
    path = root() / labels
    content = _labels(path, held_out)
    rows = _test_rows(run, content["id"].to_numpy(), path)
    return table.join(Table(rows, rows, content["weight"].to_numpy(dtype=np.float32)))


def _join_soft_maps(table: Table, run: Run, task: Task, held_out: tuple[int, ...]) -> Table:
    """A teacher's maps of ``train.soft``: targets and soft labels are rows, whose planes ``_planes`` has."""
    folder, key = root() / run.config.train.soft, _member_key(held_out)
    known = np.isin(run.competition.train["id"].to_numpy()[table.rows], Predictions.load(folder / f"fold{key}.npz").ids)
    table.soft = table.rows
    table.share = np.where(known, run.config.train.alpha, 0).astype(np.float32)  # no teacher, no share
    path = folder / f"fold{key}-test.npz"
    if not path.exists():
        return table
    rows = _test_rows(run, Predictions.load(path).ids, path)
    ones = np.ones(len(rows), dtype=np.float32)
    return table.join(Table(rows, rows, ones, rows, ones))


def _join_soft_labels(table: Table, run: Run, task: Task, held_out: tuple[int, ...]) -> Table:
    """Soft labels of ``train.soft`` for the training rows, and for test rows where distill.unlabelled made some."""
    folder, key = root() / run.config.train.soft, _member_key(held_out)
    state = member_state(run, task, held_out)
    taught = Predictions.load(folder / f"fold{key}.npz")
    ids = run.competition.train["id"].to_numpy()[table.rows]
    known = np.isin(ids, taught.ids)
    table.soft = task.encode(task.soft(task.taught(run.competition.targets)[table.rows]), state)
    table.soft[known] = task.encode(taught.align(ids[known]).values, state)
    table.share = np.where(known, run.config.train.alpha, 0).astype(np.float32)  # no teacher, no share
    path = folder / f"fold{key}-test.npz"
    if not path.exists():
        return table
    unlabelled = Predictions.load(path)
    values = task.encode(unlabelled.values, state)
    targets = values if table.targets.ndim == values.ndim else task.decide(unlabelled.values)  # their share is 1
    ones = np.ones(len(values), dtype=np.float32)
    rows = _test_rows(run, unlabelled.ids, path)
    return table.join(Table(rows, targets, ones, values, ones))


def _join_embeddings(table: Table, run: Run, task: Task, held_out: tuple[int, ...]) -> Table:
    """A teacher's embeddings of ``train.soft``, zeros where it has none. Whom a test row shows is unknown."""
    folder, key = root() / run.config.train.soft, _member_key(held_out)
    taught = Predictions.load(folder / f"fold{key}.npz")
    ids = run.competition.train["id"].to_numpy()[table.rows]
    known = np.isin(ids, taught.ids)
    table.soft = np.zeros((len(table), taught.values.shape[1]), dtype=np.float32)
    table.soft[known] = taught.align(ids[known]).values
    table.share = np.where(known, run.config.train.alpha, 0).astype(np.float32)
    path = folder / f"fold{key}-test.npz"
    if not path.exists():
        return table
    unlabelled = Predictions.load(path)
    rows, ones = _test_rows(run, unlabelled.ids, path), np.ones(len(unlabelled.ids), dtype=np.float32)
    unknown = np.full_like(
        table.targets, UNKNOWN if table.targets.ndim == 1 else 0, shape=(len(rows), *table.targets.shape[1:])
    )
    return table.join(Table(rows, unknown, ones, unlabelled.values, ones))


def _join_extra(table: Table, run: Run, task: Task, held_out: tuple[int, ...], outside: extra.Extra) -> Table:
    """The rows of data.extra, behind the training and the test images; no teacher speaks of them."""
    taught, state = task.taught(outside.targets), member_state(run, task, held_out)
    places = np.flatnonzero(task.form.taught(taught))
    taught, start = taught[places], len(run.competition.train) + len(run.competition.test)
    rows, ones = start + places, np.ones(len(taught), dtype=np.float32)
    dense = table.targets.ndim > 1
    joined = Table(rows, task.encode(task.soft(taught) if dense else taught, state), ones)
    if table.soft is not None:
        none = np.zeros((len(taught), table.soft.shape[1]), dtype=np.float32)
        joined.soft, joined.share = none if task.form.directions else task.encode(task.soft(taught), state), 0 * ones
    return table.join(joined)


def _hardness(run: Run) -> np.ndarray:
    """(N + 1,) float32, the weight of each training row by ``train.hard``; 1 of rows it does not name, and of others.

    Fold safety: a member is given the weights of its own rows alone, each by the OOF of that row and its fold. Their
    members had learned the other folds, so this leaks at second order, which ``Run.mark`` says.
    """
    path = root() / run.config.train.hard
    content = read_table(path, dict.fromkeys(["id", "weight"], ""), key="train.hard")
    check_ids(content["id"], shown(path))
    weights = pd.to_numeric(content["weight"], errors="coerce").to_numpy(dtype=np.float32)
    if len(wrong := content["id"][~((weights > 0) & np.isfinite(weights))]):
        raise UserError(f"{shown(path)}: the weights of ids {some(wrong)} are no numbers > 0; make it anew, stage=mine")
    place = {name: row for row, name in enumerate(run.competition.train["id"])}
    if unknown := [name for name in content["id"] if name not in place]:
        raise UserError(f"{shown(path)} has ids that are no training rows: {some(unknown)}; make it anew, stage=mine")
    found = np.ones(len(place) + 1, dtype=np.float32)
    found[[place[name] for name in content["id"]]] = weights
    return found


def _test_rows(run: Run, ids: np.ndarray, path: Path) -> np.ndarray:
    place = {name: row for row, name in enumerate(run.competition.test["id"])}
    unknown = [name for name in ids if name not in place]
    if unknown:
        raise UserError(f"{shown(path)} has ids that are no test rows: {some(unknown)}; make it anew")
    return np.array([place[name] for name in ids], dtype=np.int64) + len(run.competition.train)


def _member_key(held_out: tuple[int, ...]) -> str:
    return "_".join(map(str, held_out))


def joins_of(task: Task) -> dict[str, Callable[..., Table]]:
    """What joins a table, for train.* in turn."""
    if task.form.spatial:
        return {"soft": _join_soft_maps, "labels": _join_pseudo_maps}
    return {"soft": _join_embeddings if task.form.directions else _join_soft_labels, "labels": _join_pseudo_labels}


# --- validation ---------------------------------------------------------------------------------------------------


def _validation(run: Run, task: Task, held_out: tuple[int, ...], images: Any) -> engine.Validate:
    """Scores the networks that predict together on the member's own fold, in the training format.

    Where rows search the training images, those that the member learns from are embedded beside them: the score of
    the log is that of OOF, without views and in the training format. Processes that train together share the rows.
    """
    config = run.config
    rows = np.flatnonzero(np.isin(run.folds, held_out))
    shelf = prediction.shelf(run.competition, task, run.learned(held_out), images.broken)
    truth = run.truth_of(task, rows)
    metric = evaluate.metric(config.metric, task)
    view = views.expand(["identity()"])
    batch = infer.batch_size(config.predict_batch, config.image_size)
    seen = ranks.part(rows if shelf is None else np.concatenate([rows, shelf.rows]))

    def scored(parts: Sequence[np.ndarray]) -> float:
        values = np.concatenate(parts)
        return metric(truth, values if shelf is None else shelf.found(*np.split(values, [len(rows)])))

    def validate(models: Iterable[Any]) -> tuple[float, dict[str, float]]:
        same = (ranks.aligned(model) for model in models)
        each = (infer.predict(model, task, images, seen, view, batch, "validate") for model in same)
        parts = ranks.gathered(infer.together(each, task.form)[0])
        score = ranks.told(lambda: scored(parts))
        return (score if metric.greater else -score), {"score": score}

    return validate


def _map_validation(run: Run, task: Task, held_out: tuple[int, ...], source: masked.Source) -> engine.Validate:
    """Scores the maps of the member's own fold, cut as the config says, in the training format."""
    config = replace(run.config, scales=[1.0])
    rows = np.flatnonzero(np.isin(run.folds, held_out))
    truth = task.targets(run.competition.targets)[rows]
    metric = evaluate.metric(config.metric, task)
    view = views.expand(["identity()"])
    geometry = Geometry("" if config.data.resize == masked.TILES else config.data.resize)

    def maps(model: Any) -> list[np.ndarray]:
        found: list[list[np.ndarray]] = []
        for new, strip in prediction.map_strips([model], task, source, ranks.part(rows), view, config, "validate"):
            found += [[]] if new else []
            found[-1].append(strip)
        return [np.concatenate(strips) for strips in found]

    def scored(each: Sequence[Sequence[list[np.ndarray]]]) -> float:
        pixels = (list(itertools.chain.from_iterable(parts)) for parts in each)
        return metric(truth, Mean([Stored(one, source.sizes[rows], geometry, task.outputs) for one in pixels]))

    def validate(models: Iterable[Any]) -> tuple[float, dict[str, float]]:
        each = [ranks.gathered(maps(ranks.aligned(model))) for model in models]
        score = ranks.told(lambda: scored(each))
        return (score if metric.greater else -score), {"score": score}

    return validate


MATERIALS = {False: _pictures, True: _pairs}  # by whether the task's form is spatial
VALIDATIONS = {False: _validation, True: _map_validation}
