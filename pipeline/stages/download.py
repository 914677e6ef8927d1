"""Fetch a competition's data from Kaggle and unpack it into data/NAME.

``competition=SLUG`` is its name in Kaggle's addresses, or ``competition=NAME kaggle.slug=SLUG``; ``data=DIR`` another
place. The folder appears when it is whole; a download that was cut short goes on.
"""

from __future__ import annotations

import shutil
import stat
import time
import zipfile
from pathlib import Path

from pipeline import archives, artefacts, console, kaggle_client
from pipeline.artefacts import shown
from pipeline.config import Config, root
from pipeline.console import Outcome, say
from pipeline.errors import UserError, some

PIECE = 1 << 20


def run(config: Config) -> list[Outcome]:
    """Write data/NAME; reused if it was downloaded before."""
    began = time.perf_counter()
    if "competition" not in config.arguments:
        raise UserError("stage=download needs the competition: ./run.sh stage=download competition=SLUG")
    name, slug = artefacts.safe_name(config.competition, "competition"), kaggle_client.slug_of(config)
    folder = root() / Path(config.data.folder or f"data/{name}").expanduser()
    record = folder.parent / f".{folder.name}.download.json"
    reused = _there(config, folder, record, slug)
    if not reused:
        kaggle_client.check_installed()
        with artefacts.locked(folder, step=True):
            reused = _there(config, folder, record, slug)  # another process may have been faster
            if not reused:
                _fetch(folder, slug)
                artefacts.write_json(record, {"slug": slug})
    there = (root() / f"configs/competition/{name}.yaml").is_file()
    again = "" if slug == name else f" (then set kaggle.slug: {slug} in configs/competition/{name}.yaml)"
    new = f"./run.sh stage=new name={name} data={shown(folder)}{again}"
    say(f"{shown(folder)}: {slug}{', unpacked before' if reused else ''}; next: "
        + (f"./run.sh stage=check competition={name}" if there else new))  # fmt: skip
    return [Outcome("download", slug, seconds=time.perf_counter() - began, note=shown(folder), reused=reused)]


def _there(config: Config, folder: Path, record: Path, slug: str) -> bool:
    """Whether the folder is there from an earlier download; UserError where it is, but of another origin."""
    if not folder.exists():
        return False
    mine = (artefacts.recorded(record) or {}).get("slug")
    if mine is None:
        raise UserError(
            f"{shown(folder)} is there, and stage=download did not make it; move it away, or choose another place with "
            "data=DIR"
        )
    if config.overwrite:
        return False
    if mine != slug:
        raise UserError(f"{shown(folder)} holds {mine}, not {slug}; set overwrite=true or choose data=DIR")
    return True


def _fetch(folder: Path, slug: str) -> None:
    draft = folder.parent / f".{folder.name}.download"
    try:
        (draft / "packed").mkdir(parents=True, exist_ok=True)
        kaggle_client.connect().download(slug, draft / "packed")
        packed = [path for path in (draft / "packed").rglob("*") if path.is_file() and path.suffix != ".kaggle-partial"]
        if not packed:
            raise UserError(f"Kaggle sent no file of {slug}; see {kaggle_client.SITE}/competitions/{slug}/data")
        shutil.rmtree(draft / "files", ignore_errors=True)
        unpack(max(packed, key=lambda path: path.stat().st_mtime_ns), draft / "files")
        if folder.exists():
            folder.rename(draft / "old")
        (draft / "files").rename(folder)
        shutil.rmtree(draft)
    except OSError as fault:
        raise UserError(
            f"{shown(folder)} cannot be written: {fault.strerror or fault}; mend that, then run the same command again"
        ) from fault


def unpack(packed: Path, folder: Path) -> None:
    """The files of a zip, below folder; UserError where a name would leave it, or where the zip is damaged."""
    try:
        with zipfile.ZipFile(packed) as content:
            members = _members(content)
            total = sum(entry.file_size for entry in members.values())
            free = shutil.disk_usage(packed.parent).free
            if total > free:
                raise UserError(f"unpacking needs {total / 1e9:.1f} GB, but there are {free / 1e9:.1f} GB; free space")
            folder.mkdir()
            with console.progress("unpacking", len(members)) as advance:
                for name, entry in members.items():
                    place = folder / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(entry) as source, place.open("xb") as target:
                        shutil.copyfileobj(source, target, PIECE)
                    advance()
    except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, NotImplementedError) as fault:  # type: ignore[attr-defined]
        packed.unlink()
        raise UserError(f"what came is no whole zip ({fault}) and was deleted; run the same command again") from fault


def _members(content: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip by their path below the folder that they are unpacked into."""
    files = [entry for entry in content.infolist() if not entry.is_dir()]
    named = {entry.filename.replace("\\", "/").removeprefix("./"): entry for entry in files}
    outside = [
        name for name, entry in named.items() if not archives.stays(name) or stat.S_ISLNK(entry.external_attr >> 16)
    ]
    if outside:
        raise UserError(
            f"the zip holds names that lead out of their folder: {some(outside)}; nothing was unpacked: look into "
            f"{shown(Path(str(content.filename)))} yourself"
        )
    if secret := [entry.filename for entry in files if entry.flag_bits & 1]:
        raise UserError(f"the zip is encrypted: {some(secret)}; unpack it by hand with its password")
    return named
