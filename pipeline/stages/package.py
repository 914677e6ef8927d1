"""Package: a folder to upload as a Kaggle dataset, whose notebook answers a hidden test set without a network."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import artefacts, packing, tasks, wheels
from pipeline.artefacts import shown
from pipeline.competition import load
from pipeline.config import Config, replace
from pipeline.console import Outcome, say, warn
from pipeline.errors import UserError, some
from pipeline.members import FOLDER
from pipeline.packing import Chosen
from pipeline.runs import Run
from pipeline.stages import predict, submit


def run(config: Config) -> list[Outcome]:
    """Write ``packages/<competition>/<name>/``: sources, weights, level 2, notebook, manifest."""
    began = time.perf_counter()
    refuse(config)
    known = load(config)
    answer = submit.predicted(config, known, tasks.task_for(config, known))
    chosen = choose(config, answer)
    name = packing.package_name(config, chosen.name)
    place = artefacts.packages_folder(config) / name
    say(f"package {packing.spoken(chosen)}")
    with artefacts.locked(place, step=True):
        draft = fresh(place)
        try:
            manifest = packing.fill(draft, config, known, chosen)
            reused = settle(draft, place, config.overwrite)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        fetch(place, manifest["wheels"], config.package.wheels)
    show(place, manifest, reused)
    seconds = time.perf_counter() - began
    return [Outcome("package", name, answer.score, answer.nested, "", seconds, shown(place), reused)]


def refuse(config: Config) -> None:
    """Raise UserError for what cannot be packaged, before any data is read."""
    if config.blend:
        raise UserError("blend= mixes csvs, which answer no other test rows; package a run or a level 2: source=NAME")
    packing.inputs(config)


# --- what is chosen -----------------------------------------------------------------------------------------------


def choose(config: Config, answer: submit.Answer) -> Chosen:
    """The runs and members that make an answer of ``stage=submit``."""
    facts = answer.facts
    if facts["source"].startswith(f"{FOLDER}/"):
        return choose_level2(config, answer)
    names = [member.rpartition("/")[2] for member in facts["members"]]
    held_out = [() if name == "full" else (int(name.removeprefix("fold")),) for name in names]
    asked = replace(config, fold=[str(fold) for (fold,) in held_out]) if held_out != [()] else config
    return Chosen(answer.name, {answer.name: checked(asked, answer.name, held_out)}, held_out, None, facts)


def choose_level2(config: Config, answer: submit.Answer) -> Chosen:
    """The runs that a level 2 needs: those that it gives no weight say nothing."""
    content = artefacts.read_json(artefacts.runs_folder(config) / FOLDER / answer.name / "level2.json")
    refuse_level2(config, answer.name, content)
    weights = content["weights"] or {}
    needed = [name for name in content["members"] if weights.get(name) != 0.0]
    count = Run(config, needed[0]).count
    held_out = [(fold,) for fold in range(count)]
    made = {name: Run(config, name).made_by for name in needed}
    bare = {name: stage for name, stage in made.items() if stage != "train"}
    if bare:
        rest = ",".join(name for name in content["members"] if name not in bare) or "NAME"
        stages = " and ".join(f"{name} (stage={stage or 'adopt'})" for name, stage in bare.items())
        raise UserError(
            f"source={answer.name} needs {stages}, which has no networks that could answer other images; fit a level 2 "
            f"without it: ./run.sh stage=stack competition={config.competition} stack.members={rest} "
            "stack.name=offline, then package source=offline"
        )
    runs = {name: checked(config, name, held_out) for name in needed}
    return Chosen(answer.name, runs, held_out, content, answer.facts)


def refuse_level2(config: Config, name: str, content: dict[str, Any]) -> None:
    """Raise UserError for a level 2 that cannot be applied to other images than those of its competition."""
    if content["method"] == "convolution":
        raise UserError(
            f"source={name} blends maps by a net that is not stored; fit another: ./run.sh stage=stack competition="
            f"{config.competition} stack.methods=single,mean,greedy stack.name=offline, then package source=offline"
        )


def checked(config: Config, name: str, held_out: list[tuple[int, ...]]) -> Run:
    """The run as it was predicted; UserError if a member is not trained, or its predictions are of other weights."""
    run = packing.as_predicted(config, name, held_out[0])
    for member in held_out:
        if not predict.is_predicted(run, member):
            fold = ",".join(map(str, member)) or "full"
            raise UserError(
                f"{shown(run.member(member))} was predicted otherwise than its weights and settings now say; predict "
                f"it again, then stack, then package: {run.command('predict')} fold={fold}"
            )
    if run.config.train.labels and run.config.pseudo.crossfit:
        warn(f"{name} learned with pseudo.crossfit=true: hidden rows taught no member, so all answer all of them")
    return run


# --- the folder ---------------------------------------------------------------------------------------------------


def fresh(place: Path) -> Path:
    """An empty folder beside the package, which takes its name when it is whole."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f".{place.name}.*.tmp"):  # of a command that was killed
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
        draft.chmod(0o755)
    except OSError as fault:
        raise UserError(f"{shown(place)} cannot be written: {fault.strerror}; free space there") from fault
    return draft


def settle(draft: Path, place: Path, overwrite: bool) -> bool:
    """Give the draft the package's name; returns whether the same package stands there already."""
    new = packing.contents(draft)
    if place.exists():
        old = packing.contents(place)
        if old == new:
            return True
        if not overwrite:
            changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
            raise UserError(f"{shown(place)} exists and would change ({some(changed)}); replace it with overwrite=true")
        kept = place / "wheels"
        if kept.is_dir():
            kept.rename(draft / "wheels")
        shutil.rmtree(place)
    os.replace(draft, place)
    return False


def fetch(place: Path, wanted: list[str], asked: bool) -> None:
    """Put the wheels into the package where that is asked for, unless they are there."""
    if asked and not all(packing.is_there(place, line) for line in wanted):
        wheels.fetch(wanted, place / "wheels")


def show(place: Path, manifest: dict[str, Any], reused: bool) -> None:
    """What the package holds, and the commands that come next."""
    total = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    weights = sum(member["bytes"] for member in manifest["members"])
    say(
        f"{shown(place)}: {total / 1e6:.1f} MB, weights of {len(manifest['members'])} members {weights / 1e6:.1f} MB"
        f"{', unchanged' if reused else ''}"
    )
    absent = [line for line in manifest["wheels"] if not packing.is_there(place, line)]
    if absent:
        say(f"  wheels/ lacks {', '.join(absent)}: package.wheels=true fetches them")
    folder, name = shown(place), manifest["package"]
    slug = manifest["config"]["kaggle.slug"] or manifest["competition"]
    owner = manifest["config"]["package.owner"]
    say("  next:")
    if not owner:
        say(f'    write your Kaggle name into {folder}/dataset-metadata.json ("id"), or set package.owner=')
    say(f"    kaggle datasets create -p {folder} --dir-mode zip     (later: kaggle datasets version -p … -m MESSAGE)")
    say(f"    on Kaggle: New Notebook, Import {folder}/notebook.ipynb, Add Input: the competition {slug} and the")
    say(f"    dataset {name}; internet off, accelerator GPU T4 x2 or none; then Submit to Competition")
