"""Pretrain a backbone on images alone, without a label: the result is a file for ``weights=`` of a training.

Train, test and unlabelled images, or those of any folder. Fold safety: no label is read to learn anything, so that one
file serves all folds. The accuracy of nearest neighbours is a look at labels, for information: nothing is chosen by it.
"""

from __future__ import annotations

import math
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artefacts, evaluate, files, hardware, limited, registry
from pipeline.artefacts import shown
from pipeline.config import Config, changed, scoped
from pipeline.console import Outcome, say, warn
from pipeline.doctor.anomalies import CODES, COLUMN, ERRORS, RECORD
from pipeline.errors import OutOfTime, UserError
from pipeline.parts.schedules import in_shares
from pipeline.rules import unbatched
from pipeline.runs import Run
from pipeline.stages.knn import shares
from pipeline.tasks import Task, facts, task_for

if TYPE_CHECKING:
    from pipeline.pretraining import Material, SelfTaught

WEIGHTS, PICTURE = "weights.safetensors", "reconstructions.png"
KEPT = (  # what defines a pretraining beside its own keys
    "backbone", "norm", "activation", "stem", "pretrained", "weights", "image_size", "batch_size", "epochs", "lr",
    "optim", "schedule", "augment", "average", "seed", "precision", "devices", "loader", "data.reader", "data.channels",
    "data.preprocess", "data.resize", "data.normalise", "data.skip_broken", "train.accumulate", "train.clip_norm",
    "train.clip_value", "train.l1", "train.l2", "train.scale_lr", "train.base_batch", "train.compile", "train.threads",
)  # fmt: skip
TIMES = 4  # passes for each that a training makes
NEGATIVES = 128  # images of a batch and device, at least, where they are each other's negatives
QUERIES, POINTS = 1000, 10_000  # most images whose neighbours are looked for, and among which
DRAWN, WORST = 8, 8  # images on the sheet
NEIGHBOURS = 2  # tells the draw of those images from others of the seed
LOOK = "labels are looked at here, and nothing is chosen by it"


class Pretrained(Run):
    """A run that this stage makes: one training on all images, in ``full``."""

    maker = "pretrain"
    count = 1  # type: ignore[assignment]

    @cached_property
    def listed(self) -> dict[str, tuple[Any, list[str]]]:
        """Folder and files of each of pretrain.images that has some."""
        from pipeline.pretraining import specs

        found = {name: specs(self.competition, name) for name in self.config.pretrain.images}
        return {name: (folder, images) for name, (folder, images) in found.items() if images}

    @property
    def scored(self) -> np.ndarray:
        """(n,) places for the images that are held out."""
        return np.arange(round(self.config.pretrain.holdout * sum(len(images) for _, images in self.listed.values())))

    def asked(self) -> list[tuple[int, ...]]:
        """The one member, which no fold is held from."""
        return [()]

    def settings(self) -> dict[str, Any]:
        """How images are read and changed, the backbone, and how it learns."""
        every = scoped(self.config, "run")
        more = ["decoder"] if self.config.decoder else []
        more += ["tiles.scale"] if self.config.data.resize == "tiles" else []
        own = {"pretrain.images": self.config.pretrain.images, "pretrain.holdout": self.config.pretrain.holdout}
        method = registry.complete("pretrainers", self.config.pretrain.method)
        return {**{key: every[key] for key in (*KEPT, *more)}, "pretrain.method": method, **own}

    def inputs(self) -> dict[str, str]:
        """Fingerprints of the images, by names and sizes, and of the weights that it begins with."""
        found = {name: files.listing(folder, images) for name, (folder, images) in self.listed.items()}
        weights = self.inputs_of("weights")
        return {"images": artefacts.fingerprint(found), **weights}

    def pixels(self) -> int:
        """Bytes of all images, at the training size."""
        count = sum(len(images) for _, images in self.listed.values())
        return int(count * self.config.image_size**2 * self.config.data.channels)


def run(config: Config) -> list[Outcome]:
    """Write weights.safetensors, of auto-encoders a sheet and side features, and say how to go on."""
    began = time.perf_counter()
    run = Pretrained(plain(config), artefacts.safe_name(config.run or name_of(config), "run"))
    warn_of_batches(run.config)
    run.settle()
    try:
        reused = teach(run)
    except OutOfTime as end:
        raise OutOfTime(f"{run.name}: stopped for the budget; the same command goes on") from end
    except UserError:
        if not any(run.folder.rglob("*.ckpt")):
            run.file.unlink(missing_ok=True)  # nothing was learned, so that the mended settings are welcome
        raise
    content = derive(run)
    for line in report(run, content):
        say(line)
    note = f"{content['method']} on {content['images']} images, no labels"
    seconds = time.perf_counter() - began
    return [Outcome("pretrain", run.name, seconds=seconds, reused=reused, note=note, facts=content)]


def name_of(config: Config) -> str:
    """The run's name unless run= says otherwise: ``pretrain-<method>``."""
    return f"pretrain-{registry.parse(config.pretrain.method).name}"


# --- settings -----------------------------------------------------------------------------------------------------


def plain(config: Config) -> Config:
    """The config with what a training without labels has: its epochs, its views, and nothing that asks for a fold."""
    method = registry.facts("pretrainers", config.pretrain.method)
    if registry.facts("schedules", config.schedule).get("own_fold"):
        raise UserError(
            f"schedule={config.schedule} follows the scores of a fold, and stage=pretrain has none; set "
            "schedule=cosine()"
        )
    negatives = bool(method.get("negatives"))
    own, views = config.pretrain.augment or augmentation(config, method), method.get("views", 1)
    augment = f"several(change={own!r}, count={views}, alike=True)" if views > 1 else own
    needed = [registry.facts("optims", text).get("average") for text in registry.unfold("optims", config.optim)]
    size = config.pretrain.batch_size or max(config.batch_size, NEGATIVES * config.devices * negatives)
    made = changed(
        config, batch_size=size, epochs=config.pretrain.epochs or TIMES * config.epochs,
        schedule=in_shares(config.schedule, config.epochs),
        augment=registry.complete("augments", augment),
        average=config.average if any(needed) else "none()", finetune="all_alike()", mix="none()", consistency="none()",
        sampler="shuffle()", sizes="fixed()", auxiliary="none()", select="last", fold=["full"], pairs=[],
        train__seconds=0.0, train__seeds=1, train__patience=0, train__labels="", train__soft="", train__hard="",
    )  # fmt: skip
    return changed(made, loader="threads") if unbatched(made) else made


def augmentation(config: Config, method: dict[str, Any]) -> str:
    """What changes a view where pretrain.augment is empty; flips and rotations only as declared (law 5)."""
    mirrors = {"none": [], "hflip": ["flips()"], "d4": ["d4()"]}[config.symmetry]
    if method.get("views", 1) > 1:
        parts = ["crop(scale=(0.3,1.0))", *mirrors, "colour()", *(["blur()"] if config.image_size >= 64 else [])]
    elif method.get("crops"):
        parts = ["crop(scale=(0.6,1.0))", *mirrors]
    else:
        parts = mirrors
    return f"compose(parts={parts!r})" if parts else "none()"


def warn_of_batches(config: Config) -> None:
    """Warn where a batch has few negatives."""
    method = config.pretrain.method
    if registry.facts("pretrainers", method).get("negatives") and config.batch_size // config.devices < NEGATIVES:
        warn(
            f"pretrain.method={method} tells an image from the others of its batch, and pretrain.batch_size="
            f"{config.batch_size} has few; set {NEGATIVES * config.devices} or more, or pretrain.method=simsiam()"
        )


# --- learning -----------------------------------------------------------------------------------------------------


def teach(run: Pretrained) -> bool:
    """Learn unless that is done; returns whether it was."""
    if run.is_trained(()):
        return True
    folder = run.member(())
    with artefacts.locked(folder):
        if run.is_trained(()):  # while this process waited
            return True
        limited.begin_member(run)
        from pipeline import pretraining

        counts = ", ".join(f"{len(images)} {name}" for name, (_, images) in run.listed.items())
        say(f"pretrain {run.name}: {run.config.pretrain.method} on {counts} images")
        artefacts.finish(folder / "train.json", run.fingerprint_of(()), **pretraining.train(run))
    return False


def derive(run: Pretrained) -> dict[str, Any]:
    """Write what others use of it, unless that is there; returns what is recorded."""
    record, folder = run.folder / RECORD, run.folder
    method = registry.facts("pretrainers", run.config.pretrain.method)
    outputs = [folder / WEIGHTS, *([folder / ERRORS, folder / PICTURE] if method.get("reconstructs") else [])]
    print_ = artefacts.fingerprint("pretrain", run.trained(()), run.competition.fingerprint, run.config.data.id)
    content = artefacts.finished(record, print_, *outputs)
    return content or artefacts.finish(record, print_, **_derived(run, bool(method.get("reconstructs"))))


def _derived(run: Pretrained, reconstructs: bool) -> dict[str, Any]:
    from pipeline import network, pretraining
    from pipeline.hardware import Hardware

    hardware.start(Hardware(**run.stored()["hardware"]))
    trained, config = artefacts.recorded(run.member(()) / "train.json") or {}, run.config
    content = {
        "method": registry.complete("pretrainers", config.pretrain.method), "backbone": config.backbone,
        "images": trained["rows"] + trained["held_out"], **{
            key: trained[key] for key in ("epochs", "loss", "held_loss", "spread") if key in trained
        },
    }  # fmt: skip
    taught = pretraining.taught(run)
    told = {key: content[key] for key in ("method", "images", "epochs")}
    network.save_learned(
        run.folder / WEIGHTS, taught.backbone, taught.blueprint, **told, competition=config.competition
    )
    content |= look_at_labels(run, taught)
    if reconstructs:
        own = pretraining.material(config, run.competition, list(dict.fromkeys(["train", "test", *run.listed])))
        errors = write_features(run, taught, own)
        draw_sheet(run, taught, own, errors)
    return content


def report(run: Pretrained, content: dict[str, Any]) -> list[str]:
    """What is said at the end."""
    folder, lines = shown(run.folder), []
    if content.get("spread", 1.0) < 0.1:
        lines.append("  all images have nearly become one vector (spread below 0.1): lower lr, or take another method")
    if "neighbours" in content:
        before, after = (content["neighbours"][key] for key in ("before", "after"))
        lines.append(
            f"  {content['neighbours']['metric']} of nearest neighbours: {before:.4f} before, {after:.4f} now ({LOOK})"
        )
    if (run.folder / ERRORS).exists():
        lines.append(f"  {folder}/{PICTURE}: look at it")
        lines.append(f"  side features for level 2: data.tables={folder}/{ERRORS}; odd images: stage=check")
    model, method = run.config.model, registry.parse(run.config.pretrain.method).name
    own = f"model={model} run={model}-{method}"  # a name of its own: model's may stand for a run from random weights
    use = f"./run.sh stage=train competition={run.config.competition} {own} weights={folder}/{WEIGHTS}"
    return [*lines, f"  to use it: {use}"]


# --- what others use ----------------------------------------------------------------------------------------------


def look_at_labels(run: Pretrained, taught: SelfTaught) -> dict[str, Any]:
    """The score of nearest neighbours among the training images by the vectors, before and after; for people."""
    known = facts(run.config.task)
    if known.get("spatial") or known.get("open_set") or run.config.data.resize == "tiles":
        return {}
    from pipeline import pretraining, stores

    task = task_for(run.config, run.competition)
    store = stores.train_store(run.config, run.competition, run.config.image_size)
    rows = np.setdiff1d(np.arange(len(store)), store.broken)
    rows = np.random.default_rng([run.config.seed, NEIGHBOURS]).permutation(rows)[: QUERIES + POINTS]
    count = min(QUERIES, math.ceil(len(rows) / 5))
    metric = evaluate.metric(run.config.metric, task)
    scores = {}
    for key, network in (("before", pretraining.fresh(run)), ("after", taught)):
        near = pretraining.neighbours(run, network, store, rows[count:], rows[:count], run.config.knn.k)
        scores[key] = metric(*answered(run, task, rows[count:], rows[:count], near))
    return {"neighbours": {"metric": metric.name, **scores}}


def answered(run: Pretrained, task: Task, points: np.ndarray, queries: np.ndarray, near: Any) -> tuple[Any, np.ndarray]:
    """The truth of some training rows, and what their neighbours among others say."""
    targets = run.competition.targets
    labels = task.soft(task.taught(targets)[points])
    return task.targets(targets)[queries], shares(task.form, *near, labels, run.config.knn.temperature)


def write_features(run: Pretrained, taught: SelfTaught, own: Material) -> dict[str, np.ndarray]:
    """Write error and code of each training and test image as a csv for data.tables; returns the errors of each."""
    from pipeline import pretraining

    lines, errors = [], {}
    for name in ("train", "test"):
        table = getattr(run.competition, name)
        errors[name], codes = pretraining.measured(run, taught, own, own.rows(name))
        good = np.isin(own.rows(name), own.good)
        for ident, error, code, seen in zip(table["id"], errors[name], codes, good, strict=True):
            numbers = [f"{value:.6g}" if seen else "" for value in (error, *code)]
            lines.append(",".join([_quoted(ident), *numbers]))
        errors[name] = np.where(good, errors[name], np.nan)
    names = [f"{run.name} {COLUMN}", *(f"{run.name} {CODES} {place}" for place in range(codes.shape[1]))]
    header = ",".join(map(_quoted, [run.config.data.id, *names]))
    artefacts.write_text(run.folder / ERRORS, "\n".join([header, *lines]) + "\n")
    return errors


def _quoted(text: str) -> str:
    escaped = text.replace('"', '""')
    return f'"{escaped}"' if any(letter in text for letter in ',"\n\r') else text


def draw_sheet(run: Pretrained, taught: SelfTaught, own: Material, errors: dict[str, np.ndarray]) -> None:
    """Draw some images, what the network saw of them and what it made of that; then those it is worst at."""
    from pipeline import pretraining, sheets

    ids = np.concatenate([getattr(run.competition, name)["id"].to_numpy(str) for name in errors])
    every = np.concatenate(list(errors.values()))
    rows = np.concatenate([own.rows(name) for name in errors])
    rng = np.random.default_rng([run.config.seed, NEIGHBOURS])
    known = np.flatnonzero(~np.isnan(every))
    worst = known[np.argsort(-every[known], kind="stable")][:WORST]
    groups = {"drawn at random": rng.permutation(known)[:DRAWN], "largest error": worst}
    pages = []
    for title, places in groups.items():
        tiles = pretraining.pictures(run, taught, own, rows[places])
        labels = [f"{sheets.short(ids[place])}\nerror {every[place]:.4f}" for place in places]
        columns = np.stack(list(tiles.values()), axis=1)
        pages.append(sheets.page(f"{run.name} · {title}", list(tiles), labels, columns))
    with artefacts.atomic(run.folder / PICTURE) as handle:
        handle.write(sheets.png(sheets.grid(pages)))
