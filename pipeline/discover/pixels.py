"""A folder whose images stand in tables: they are made files first, once, and the rest reads these."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline import pixel_tables
from pipeline.artefacts import shown
from pipeline.config import root
from pipeline.discover.folder import descend
from pipeline.errors import UserError
from pipeline.files import find
from pipeline.patterns import is_image

MAKER = "from_tables"


@dataclass(frozen=True)
class Made:
    """Where the tables lie, the folder of the files, and the call that makes it: ``data.make``. told: what was seen."""

    source: Path
    folder: Path
    maker: str
    told: str


def images_in_tables(folder: Path, name: str, given: str) -> Made | None:
    """How the images of a folder become files, ``data/NAME-images``; None if it holds images, or no table of pixels.

    given: ``data.make`` of the command line, which wins. UserError where the shape of the images is not to be seen.
    """
    source = descend(folder)
    place = find(source, "")
    files = [*place.files, *place.members]
    made = {path.parent.name for path in source.glob(f"*/{pixel_tables.RECORD}")}  # which lie beside their tables
    if any(is_image(file) and file.partition("/")[0] not in made for file in files) or any(map(_is_archive, files)):
        return None
    tables = pixel_tables.find(source)
    if not tables:
        return None
    target = root() / "data" / f"{name}-images"
    counts = {file: pixels.count for file, pixels in tables.items()}
    told = "; ".join(f"{file}: {count} pixels a row" for file, count in counts.items())
    if given:
        return Made(source, target, given, told)
    called = _relative(source, target.parent)
    layout = pixel_tables.layout(list(tables.values())) if len(set(counts.values())) == 1 else None
    if layout is None:
        high = max(float(pixels.head.max()) for pixels in tables.values())
        raise UserError(
            f"{shown(source)} holds its images in tables, but their shape is not to be seen ({told}; numbers up to "
            f'{high:g}); say it: "data.make={MAKER}(source={called!r}, shape=(HEIGHT, WIDTH), white={max(high, 1):g})"'
        )
    more = ", planes=True" if layout.planes else ""
    call = f"{MAKER}(source={called!r}, shape={layout.shape}{more}, white={layout.white:g})"
    return Made(source, target, call, told)


def _is_archive(file: str) -> bool:
    """Whether a file may hold the images: then it is to be unpacked."""
    return file.lower().endswith((".tar", ".tgz", ".tar.gz", ".7z", ".rar"))


def _relative(source: Path, home: Path) -> str:
    """The folder of the tables from where the made one will lie, if it is in the project too; else its whole path."""
    real, inside = source.resolve(), (root().resolve(), home.resolve())
    if any(real.is_relative_to(place) for place in inside):
        return Path(os.path.relpath(real, home.resolve())).as_posix()
    return str(source)
