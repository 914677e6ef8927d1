"""Write a competition's config from its folder: stage=new name=NAME data=DIR.

Reads an unzipped Kaggle folder and writes configs/competition/NAME.yaml, in which each key says what was seen and why
it was inferred; makes NAME the current competition; draws runs/NAME/preview.png. Any key on the command line wins over
inference and is written too (metric=…, task=…, data.target=…). What cannot be inferred safely is asked for in one
message, and then nothing is written. An existing config with the same values stays; with others the difference is
shown, and overwrite=true replaces it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from pipeline import advice, artefacts, competition, pixel_tables, registry, tasks
from pipeline import config as settings
from pipeline.artefacts import safe_name, shown
from pipeline.config import Config, root
from pipeline.console import Outcome, say
from pipeline.discover import discover, preview, summary, writing
from pipeline.discover.pixels import Made, images_in_tables
from pipeline.errors import UserError
from pipeline.pixel_tables import RECORD

OURS = ("stage", "name", "competition", "overwrite", "debug", "data.folder")  # arguments that are no setting of it


def run(config: Config) -> list[Outcome]:
    """Infer, check that the pipeline reads the folder as inferred, and only then write."""
    began = time.perf_counter()
    name, folder = _asked(config)
    given = {key: settings.convert(key, text) for key, text in config.arguments.items() if key not in OURS}
    made = _made(folder, name, given)
    found = discover(
        made.folder if made else folder, given,
        f"./run.sh stage=new name={name} data={shlex.quote(config.arguments['data.folder'])}",
    )  # fmt: skip
    found.draft.set("data.folder", _relative(found.rows.folder.path), "where the tables and images lie")
    if made:
        found.draft.set("data.make", made.maker, f"the images are rows of tables ({made.told}); made files, once")
    text = writing.render(found.draft, summary.header(name, found))
    layer = writing.parsed(text, f"configs/competition/{name}.yaml")
    read = _read(name, layer)
    reused = _write(name, text, config.overwrite)
    changed = writing.make_current(name)
    path = root() / "runs" / name / "preview.png"
    preview.draw(*read, summary.title(name, found), path)
    say(summary.text(name, found, reused, changed))
    if hint := small_images(read[0]):
        say(f"\n{hint}")
    note = f"{shown(root() / writing.path_of(name))}: {found.target.task}, {found.draft.value('metric')}"
    return [Outcome("new", seconds=time.perf_counter() - began, note=note, reused=reused)]


def _asked(config: Config) -> tuple[str, Path]:
    """The competition's name and its folder, from the project's folder or from where the command was given."""
    text = config.arguments.get("data.folder", "")
    if not config.name or not text:
        lacks = " and ".join(key for key, value in (("name=NAME", config.name), ("data=DIR", text)) if not value)
        raise UserError(f"stage=new needs {lacks}: ./run.sh stage=new name=whales data=DIR, the unzipped Kaggle folder")
    name, given = safe_name(config.name, "name"), Path(text).expanduser()
    places = [root() / given, Path.cwd() / given]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None:
        return name, Path(os.path.abspath(found))  # a link stays as it is called
    archive = next((place for place in places if place.is_file()), None)
    if archive is not None:
        raise UserError(f"data={text} is a file; unzip it first: unzip -d data/{name} {shlex.quote(str(archive))}")
    raise UserError(f"data={text}, but there is no such folder in {root()}; give the unzipped Kaggle folder")


def _made(folder: Path, name: str, given: dict[str, Any]) -> Made | None:
    """The folder of files that images in tables became; made anew unless the same tables were made it before."""
    made = images_in_tables(folder, name, str(given.get("data.make", "")))
    if made is None:
        return None
    record = made.folder / RECORD
    known = artefacts.read_json(record) if record.is_file() else {}
    if made.folder.exists() and not known:
        raise UserError(f"{shown(made.folder)} is there, and was not made by stage=new; give another name=NAME")
    call = registry.parse(registry.complete("makers", made.maker))
    if known and (registry.parse(known["make"]) != call or known["tables"] != pixel_tables.state(made.source)):
        say(f"{shown(made.folder)}: of other tables, or made otherwise; it is made anew")
        shutil.rmtree(made.folder)
    if not made.folder.exists():
        say(f"{shown(made.source)} holds its images in tables ({made.told}); writing them as files …")
        competition.make(made.folder, made.maker)
    return made


def _relative(folder: Path) -> str:
    """The folder as the config writes it: relative to the project where it lies inside."""
    for home in (Path(os.path.abspath(root())), root().resolve()):
        if folder.is_relative_to(home):
            return str(folder.relative_to(home))
    return str(folder)


def _read(name: str, layer: dict[str, Any]) -> tuple[Config, competition.Competition]:
    """The competition as every later stage will read it; UserError for what inference did not see."""
    config = settings.replace(Config(), competition=name, **_by_attribute(layer))
    tasks.settle(config)
    read = competition.load(config)
    task = tasks.task_for(config, read)
    task.targets(read.targets)
    task.allowed(read.sample)
    return config, read


def small_images(config: Config) -> str:
    """advice.small_images of the first model, unless one of config.models is made for small images."""
    layers = [settings.read_named("model", model) for model in config.models]
    hints = [advice.small_images(settings.replace(config, **_by_attribute(layer))) for layer in layers]
    return hints[0] if all(hints) else ""


def _by_attribute(layer: dict[str, Any]) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in layer.items()}


def _write(name: str, text: str, overwrite: bool) -> bool:
    """Write the config; True if it stands already, UserError with the difference if it has other values."""
    if writing.stands(name, text):
        return True
    differs = writing.difference(name, text)
    if differs and not overwrite:
        raise UserError(
            f"{writing.path_of(name)} is there with other values, and stays as it is:\n{differs}\n"
            "take the new one with overwrite=true, or another name=NAME"
        )
    artefacts.write_text(root() / writing.path_of(name), text)
    return False
