"""What goes into a package, file by file; ``stage=package`` chooses it, and ``stage=answer`` reads it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import artefacts, checkpoint, competition, evaluate, features, notebook, registry, runs, wheels
from pipeline.artefacts import Predictions, file_digest, shown
from pipeline.competition import Competition
from pipeline.config import PACKAGE_ROOT, Config, flatten, replace, root, scoped
from pipeline.console import say
from pipeline.errors import UserError, some
from pipeline.hardware import Hardware
from pipeline.members import FOLDER
from pipeline.pixel_tables import made_of
from pipeline.prediction import open_member
from pipeline.registry import Call
from pipeline.runs import Run
from pipeline.tasks import Task, task_for

SOURCES = ("pyproject.toml", "constraints.txt", "run.sh", "LICENSE")
TRAINING, MANIFEST, INPUT = "training.csv", "manifest.json", "input"
MADE = "input-images"  # beside INPUT, where that holds the images in tables
FEATURES = "features.json"  # beside a level 2: see features.coding
MEASURED = 64  # test rows on which rounded weights are compared
HERE = {  # what the package's config says whatever the project's does
    "stage": "answer", "data.packed": TRAINING, "data.folder": INPUT, "data.make": "", "data.extra": "",
    "data.hidden": False,
    "data.unlabelled": "", "fold": ["all"], "source": "", "submission": "", "solution": "", "blend": [], "oof": "",
    "test": "", "budget": "", "run": "", "overwrite": False, "debug": False, "device": "auto", "devices": 1,
    "parallel": "folds", "jobs": 0, "launcher": "local()", "loader": "auto", "name": "",
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """What answers: a run's members, or those that a level 2 needs.

    runs: by name, as they were predicted. held_out: of each run the members by the folds they do not learn from.
    level2: the content of its ``level2.json``, None for a run. facts: what the submission's json says of it.
    """

    name: str
    runs: dict[str, Run]
    held_out: list[tuple[int, ...]]
    level2: dict[str, Any] | None
    facts: dict[str, Any]

    def members(self) -> Iterator[tuple[Run, tuple[int, ...]]]:
        """All members, run by run."""
        for run in self.runs.values():
            for held_out in self.held_out:
                yield run, held_out


def predict_settings(run: Run) -> dict[str, Any]:
    """How a run's members predict, by key."""
    return scoped(run.config, "predict")


def as_predicted(config: Config, name: str, held_out: tuple[int, ...]) -> Run:
    """The run with the settings that its members were trained and predicted with."""
    run = Run(config, name)
    run = Run(run.as_trained(), name)
    path = run.member(held_out) / "test.npz"
    if not path.is_file():
        fold = ",".join(map(str, held_out)) or "full"
        raise UserError(f"{shown(path)} is missing; make it with {run.command('predict')} fold={fold}")
    made_by = Predictions.load(path).made_by
    known = {key: made_by[key] for key in ("views", "scales", "merge") if key in made_by}
    known |= {"level": made_by.get("level", "last"), "pseudo__crossfit": bool(made_by.get("crossfit"))}
    return Run(replace(run.config, **known), name)


# --- the files ----------------------------------------------------------------------------------------------------


def fill(folder: Path, config: Config, known: Competition, chosen: Chosen) -> dict[str, Any]:
    """Write the package into an empty folder; returns its manifest, which is written last."""
    copy_sources(folder)
    task = task_for(config, known)
    competition.packed(known, config.data).to_csv(folder / TRAINING, index=False, lineterminator="\n")
    members = [write_member(folder, run, held_out, config.package.half) for run, held_out in chosen.members()]
    if task.form.shelved:
        for run, held_out in chosen.members():
            write_shelf(folder, known, run, held_out)
    for run in chosen.runs.values():
        write_run(folder, run)
    if chosen.level2 is not None:
        write_level2(folder, config, known, chosen)
    if config.package.half:
        state_rounding(folder, known, chosen, members)
    lacking = wheels.lacking(config.package.has)
    artefacts.write_text(folder / "wheels.txt", "".join(f"{line}\n" for line in lacking))
    name, slug = package_name(config, chosen.name), config.kaggle.slug or config.competition
    title = f"# {name}\n\n{spoken(chosen)}; offline, from the dataset {name}."
    text = notebook.written(title, name, slug, inputs(config), config.package.budget)
    artefacts.write_text(folder / "notebook.ipynb", text)
    artefacts.write_json(folder / "dataset-metadata.json", metadata(config, name))
    manifest = {
        "package": name, "competition": config.competition, "source": chosen.facts["source"], "task": config.task,
        "columns": list(task.columns)[:1000], "cv": chosen.facts.get("nested") or chosen.facts.get("cv"),
        "score": chosen.facts.get("score", ""), "metric": config.metric, "commit": artefacts.commit(),
        "members": members, "wheels": lacking,
        "level2": None if chosen.level2 is None else {"name": chosen.name, "runs": list(chosen.runs)},
        "runs": {run.name: predict_settings(run) for run in chosen.runs.values()},
        "config": {**flatten(config), **HERE, **made_there(config)}, "files": listing(folder),
    }  # fmt: skip
    artefacts.write_json(folder / MANIFEST, manifest)
    return manifest


def copy_sources(folder: Path) -> None:
    """The pipeline, and the project's configs."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.tmp")
    shutil.copytree(PACKAGE_ROOT / "pipeline", folder / "pipeline", ignore=ignored)
    shutil.copytree(root() / "configs", folder / "configs", ignore=ignored)
    for name in SOURCES:
        shutil.copy(PACKAGE_ROOT / name, folder / name)


def within(folder: Path, path: Path) -> Path:
    """Where a file of the project lies in the package."""
    return folder / path.relative_to(root())


def write_member(folder: Path, run: Run, held_out: tuple[int, ...], half: bool) -> dict[str, Any]:
    """A member's weights, and the record that it is trained."""
    run.trained(held_out)  # UserError with the command that trains it
    content = checkpoint.load_weights(artefacts.weights_file(run.member(held_out)))
    place = within(folder, run.member(held_out))
    checkpoint.save_tensors(place / "best.safetensors", rounded(content) if half else content)
    print_ = artefacts.fingerprint(runs.print_of(stored(run)), held_out)
    artefacts.finish(place / "train.json", print_)
    size = (place / "best.safetensors").stat().st_size
    return {"run": run.name, "member": place.name, "held_out": held_out, "epoch": content["epoch"], "bytes": size}


def write_shelf(folder: Path, known: Competition, run: Run, held_out: tuple[int, ...]) -> None:
    """The embeddings of the training images, among which a member finds the labels of others."""
    task, machine = task_for(run.config, known), Hardware(**run.stored()["hardware"])
    member: Any = open_member(run.member(held_out), run.config, known, task, machine)
    member.save_points(within(folder, run.member(held_out)))


def rounded(content: dict[str, Any]) -> dict[str, Any]:
    """The content with float32 weights in 16 bits, but for those that 16 bits do not hold."""

    def shorter(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        halves = {name: value.half() for name, value in state.items() if value.dtype == torch.float32}
        return state | {name: value for name, value in halves.items() if value.isfinite().all()}

    first, *others = [shorter(state) for state in checkpoint.networks(content)]
    return {**content, "network": first, **({"others": others} if others else {})}


def stored(run: Run) -> dict[str, Any]:
    """The run's config.yaml as a package has it: of no machine, and with a number format that each machine has."""
    content = {name: value for name, value in run.stored().items() if name != "hardware"}
    if content["settings"].get("precision") in ("bf16", "fp16"):
        content["settings"] = {**content["settings"], "precision": "auto"}
    return content


def write_run(folder: Path, run: Run) -> None:
    """The run's config, and the labels whose names its columns are."""
    runs.write_yaml(within(folder, run.file), stored(run))
    labels = run.config.train.labels
    if labels and (root() / labels).is_file():
        (folder / labels).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root() / labels, folder / labels)


def write_level2(folder: Path, config: Config, known: Competition, chosen: Chosen) -> None:
    """The fitted stacker and decision, and what tells the side features of other rows, if it reads such."""
    source = artefacts.runs_folder(config) / FOLDER / chosen.name
    place = within(folder, source)
    place.mkdir(parents=True)
    for path in (source / file for file in ("level2.json", "stacker.npz", "decision.npz")):
        if path.is_file():
            shutil.copy(path, place / path.name)
    if asked := (chosen.level2 or {}).get("features"):
        if made := [name for name in config.data.tables if features.is_made(name)]:
            raise UserError(
                f"source={chosen.name} reads side features of {some(made)}, which no other test images have; stack "
                "anew without them, or with stack.features=false, under another stack.name"
            )
        coded = features.coding(config, known)
        if [one["name"] for one in coded] != asked:
            names = [one["name"] for one in coded]
            raise UserError(
                f"source={chosen.name} was fitted on the side features {some(asked, 12)}, but tables and images now "
                f"give {some(names, 12)}; run stage=stack again"
            )
        artefacts.write_json(place / FEATURES, coded)


def made_there(config: Config) -> dict[str, Any]:
    """The keys by which the package makes files of images that its competition ships in tables; else none."""
    maker = registry.parse(config.data.make) if config.data.make else None
    if maker is None or "source" not in maker.arguments:
        return {}
    return {"data.folder": MADE, "data.make": str(Call(maker.name, {**maker.arguments, "source": INPUT}))}


def inputs(config: Config) -> dict[str, str]:
    """What the notebook needs of the competition's folder: the first word of each path, with its meaning."""
    data = config.data
    tables = [name for name in data.tables if not features.is_made(name)]
    named = {data.test_images: "test images", data.sample: "sample submission", data.test_csv: "test table"}
    named |= {data.gallery: "gallery", **dict.fromkeys(tables, "table of side features")}
    if made_there(config):
        named = {made_of(path): meaning for path, meaning in named.items()}
    found: dict[str, str] = {}
    for path, meaning in named.items():
        first = path.strip("/").partition("/")[0]
        if path and first in (".", ""):
            raise UserError(f"a package needs the test images in a folder of their own, but data.test_images={path}")
        if path:
            found[first] = f"{found[first]}, {meaning}" if first in found else meaning
    return found


def metadata(config: Config, name: str) -> dict[str, Any]:
    """What ``kaggle datasets create`` reads."""
    owner = config.package.owner or "INSERT_USERNAME_HERE"
    return {"title": name, "id": f"{owner}/{name}", "licenses": [{"name": "other"}]}


def package_name(config: Config, source: str) -> str:
    """The name of package and dataset, as Kaggle allows it."""
    text = config.package.name or f"{config.competition}-{source}"
    name = "-".join("".join(char if char.isalnum() and char.isascii() else " " for char in text.lower()).split())
    if config.package.name and name != text:
        raise UserError(f"package.name={text}, but Kaggle's datasets have lower-case letters, digits and -: {name}")
    if not 6 <= len(name) <= 50:
        raise UserError(f"package.name={name}, but the names of Kaggle's datasets have 6 to 50 letters; set another")
    return name


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file below a folder, but of the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in files]
    return {n: {"bytes": p.stat().st_size, "digest": file_digest(p)} for n, p in zip(names, files, strict=True)}


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file of a package, but of wheels, which are fetched apart."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in files if "__pycache__" not in path.parts}
    return {name: file_digest(path) for name, path in named.items() if not name.startswith("wheels/")}


def wheels_there(folder: Path) -> set[str]:
    """The packages whose wheels lie in a package."""
    return {wheels.plain(path.name.partition("-")[0]) for path in (folder / "wheels").glob("*.whl")}


def is_there(folder: Path, line: str) -> bool:
    """Whether the wheel of ``name==version`` lies in a package."""
    return wheels.plain(line.partition("==")[0]) in wheels_there(folder)


def spoken(chosen: Chosen) -> str:
    """What answers, in words: ``level2/stack: hill_climb() over a, b, 10 members, 0.99 ± 0.01 nested``."""
    count = len(chosen.runs) * len(chosen.held_out)
    members = f"{count} member{'s' * (count > 1)}"
    reached = chosen.facts.get("nested")
    score = str(evaluate.Score(reached["score"], reached["se"], "nested", reached["folds"])) if reached else ""
    score = score or chosen.facts.get("score") or "no CV"
    how = f"{chosen.level2['method']} over {', '.join(chosen.runs)}, " if chosen.level2 is not None else ""
    return f"{chosen.facts['source']}: {how}{members}, {score}"


# --- 16 bits ------------------------------------------------------------------------------------------------------


def state_rounding(folder: Path, known: Competition, chosen: Chosen, members: Sequence[dict[str, Any]]) -> None:
    """Say, and note in the members' facts, how far predictions of some test rows move by weights of 16 bits."""
    rows = np.arange(min(MEASURED, len(known.test)))
    for (run, held_out), facts in zip(chosen.members(), members, strict=True):
        task: Task = task_for(run.config, known)
        machine = Hardware(**run.stored()["hardware"])
        places = (run.member(held_out), within(folder, run.member(held_out)))
        before, after = (open_member(place, run.config, known, task, machine).some(rows) for place in places)
        moved = np.abs(after - before)
        facts["moved"] = {"most": float(moved.max()), "mean": float(moved.mean()), "rows": len(rows)}
    most = max(facts["moved"]["most"] for facts in members)
    mean = sum(facts["moved"]["mean"] for facts in members) / len(members)
    say(f"  package.half=true: predictions of {len(rows)} test rows move by {mean:.2g} on average, {most:.2g} at most")


# --- read again ---------------------------------------------------------------------------------------------------


def manifest() -> dict[str, Any]:
    """The manifest of the package that this project is made of; UserError where it is none, or files are missing."""
    path = root() / MANIFEST
    if not path.is_file():
        raise UserError(f"stage=answer works in a package, but {shown(path)} does not exist; make one: stage=package")
    content: dict[str, Any] = artefacts.read_json(path)
    needed = {name: facts["bytes"] for name, facts in content["files"].items() if name.partition("/")[0] == "runs"}
    wrong = [n for n, size in needed.items() if not (root() / n).is_file() or (root() / n).stat().st_size != size]
    if wrong:
        raise UserError(f"{len(wrong)} files of the package are missing or cut short: {some(wrong)}; upload it again")
    return content
