"""Which files an image's id means, in which folder: by name, by a pattern, or as several files of one image."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.artefacts import shown
from pipeline.discover.columns import words
from pipeline.discover.folder import listed, top
from pipeline.errors import UserError, nearest, some
from pipeline.patterns import COVERED, guess_channels, guess_pattern, without_suffix
from pipeline.queries import QUERIES

ROLES = {"train": {"train", "training"}, "test": {"test", "testing", *QUERIES}}
ELSE = {
    "train": {"test", "testing", "valid", "val", "validation", "gallery", *QUERIES},
    "test": {"train", "training", "valid", "val"},
}
MASKS = {"mask", "masks", "annotation", "annotations", "segmentation", "segmentations"}
MASKED = -2  # what hint says of folders of masks
SHOWN_IDS = 300  # cells that a column is tried with
TRIED_FOLDERS = 8


@dataclass(frozen=True)
class Match:
    """Where ids lie. folder: of their images. patterns: how the files are called, [] where an id is a name or stem.

    files: the file of each id, the first of several channels; a blank where there is none.
    """

    folder: str
    patterns: list[str]
    files: list[str]

    @property
    def found(self) -> int:
        """How many ids have a file."""
        return sum(map(bool, self.files))


class Files:
    """The images of a folder by what an id may mean: path, name, or either without its suffix."""

    def __init__(self, images: Sequence[str]) -> None:
        self.images = list(images)
        self.by: dict[str, list[str]] = defaultdict(list)
        for image in self.images:
            name = image.rpartition("/")[2]
            for key in {image, without_suffix(image), name, without_suffix(name)}:
                self.by[key].append(image)

    def of(self, name: str) -> list[str]:
        """The images that an id may mean, whatever folder they lie in: as files.resolve reads ids."""
        found = self.by.get(name, [])
        if not found and "/" in name:
            ends = ("/" + name, "/" + without_suffix(name))
            tail = self.by.get(without_suffix(name.rpartition("/")[2]), [])
            found = [image for image in tail if image.endswith(ends) or without_suffix(image).endswith(ends)]
        found = found or self.loose.get(without_suffix(name).casefold(), []) or self.numbers.get(_number(name), [])
        return found or self._below(name)

    def _below(self, name: str) -> list[str]:
        """The one image at the end of a path that begins with folders which are not here, of ``\\`` as of ``/``."""
        parts = name.replace("\\", "/").split("/")
        if len(parts) < 2 or ("\\" not in name and parts[0] in self.heads):
            return []
        for depth in range(len(parts)):
            tail = "/" + "/".join(parts[depth:])
            fits = self.by.get(without_suffix(parts[-1]), [])
            fits = [image for image in fits if f"/{image}".endswith(tail) or without_suffix(f"/{image}").endswith(tail)]
            if len(fits) == 1:
                return fits
        return []

    @functools.cached_property
    def heads(self) -> set[str]:
        """The names of all folders."""
        return {part for image in self.images for part in image.split("/")[:-1]}

    @functools.cached_property
    def loose(self) -> dict[str, list[str]]:
        """Images by stem, whatever their suffix and case."""
        found: dict[str, list[str]] = defaultdict(list)
        for image in self.images:
            for key in {without_suffix(image).casefold(), without_suffix(image.rpartition("/")[2]).casefold()}:
                found[key].append(image)
        return found

    @functools.cached_property
    def numbers(self) -> dict[str, list[str]]:
        """Images whose stem is a number, without its leading zeros."""
        found: dict[str, list[str]] = defaultdict(list)
        for image in self.images:
            number = _number(image.rpartition("/")[2])
            if number:
                found[number].append(image)
        return found

    def share(self, ids: Sequence[str]) -> float:
        """The share of a few ids, spread over all, that mean an image."""
        few = list(dict.fromkeys(ids))
        few = few[:: max(1, len(few) // SHOWN_IDS)]
        return sum(bool(self.of(name)) for name in few) / max(1, len(few))

    def folders(self, role: str) -> list[str]:
        """The folders of images, those that the role names first, then by their number of images."""
        count: Counter[str] = Counter()
        for image in self.images:
            folder = top(image)
            while folder:
                count[folder] += 1
                folder = top(folder)
        return sorted(count, key=lambda name: (-hint(name, role), -count[name], name))

    def inside(self, folder: str) -> list[str]:
        """The images of a folder, relative to it."""
        if folder in ("", "."):
            return self.images
        return [image[len(folder) + 1 :] for image in self.images if image.startswith(folder + "/")]


def _number(name: str) -> str:
    stem = without_suffix(name).removesuffix(".0")
    return (stem.lstrip("0") or "0") if stem.isascii() and stem.isdigit() else ""


def hint(folder: str, role: str) -> int:
    """1 if the folder's name says train (or test), -1 if it says the other or masks, 0 if it says neither."""
    said = {word for part in folder.split("/") for word in words(part)}
    said |= {word.rstrip("0123456789") for word in said}
    if said & MASKS:
        return MASKED
    return int(bool(said & ROLES[role])) or -int(bool(said & ELSE[role]))


def match(ids: Sequence[str], files: Files, role: str, folder: str | None = None, known: Sequence[str] = ()) -> Match:
    """Find the images of ids. folder: where the user says they lie. known: patterns that hold for others already."""
    direct = [files.of(name) for name in ids]
    if folder is not None and folder not in ("", "."):
        direct = [[image for image in fits if image.startswith(folder.rstrip("/") + "/")] for fits in direct]
    count = sum(map(bool, direct))
    if count < COVERED * len(ids) or known:
        by_pattern = _by_pattern(ids, files, role, folder, known)
        if by_pattern and by_pattern.found >= count + (not known):
            return by_pattern
    lifted = [[_lifted(image, name) for image in fits] for name, fits in zip(ids, direct, strict=True) if fits]
    place = folder if folder is not None else _place(lifted, role)
    return Match(place, [], [_inside(fits, place) for fits in direct])


def _lifted(image: str, name: str) -> str:
    """The image without the folders that its id names itself: other ids of a hidden set may name others."""
    above = top(image).removesuffix(top(name)) if top(name) else ""
    return f"{above}{image.rpartition('/')[2]}" if above.endswith("/") else image


def _inside(fits: list[str], place: str) -> str:
    prefix = "" if place in ("", ".") else place.rstrip("/") + "/"
    return next((image for image in fits if image.startswith(prefix)), "")


def _place(candidates: list[list[str]], role: str) -> str:
    """The folder in which most ids mean one image; among equals the one that the role names, then the innermost."""
    if not candidates:
        return ""
    if all(len(fits) == 1 for fits in candidates):
        return _common(fits[0] for fits in candidates)
    votes: Counter[str] = Counter()
    for fits in candidates:
        inside = Counter(folder for image in fits for folder in _above(image))
        votes.update(folder for folder, count in inside.items() if count == 1)
    return max(votes, key=lambda name: (votes[name], hint(name, role), name.count("/"), name), default="")


def _above(image: str) -> list[str]:
    folders, folder = [""], top(image)
    while folder:
        folders.append(folder)
        folder = top(folder)
    return folders


def _common(images: Iterable[str]) -> str:
    folders = {top(image) for image in images}
    parts = [folder.split("/") for folder in folders]
    shared = []
    for pieces in zip(*parts, strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return "/".join(shared)


# --- patterns -----------------------------------------------------------------------------------------------------


def _by_pattern(ids: Sequence[str], files: Files, role: str, folder: str | None, known: Sequence[str]) -> Match | None:
    ids = list(ids)
    names = list(dict.fromkeys(ids))
    places = [folder] if folder is not None else [*files.folders(role)[:TRIED_FOLDERS], ""]
    for place in places:
        inside = files.inside(place)
        if 2 * len(inside) < len(names):
            continue
        for patterns in (list(known), _guess(names, inside)):
            found = _named(ids, patterns, place, inside) if patterns else []
            if sum(map(bool, found)) >= COVERED * len(ids):
                return Match(place, patterns, found)
    return None


def _guess(names: list[str], inside: list[str]) -> list[str]:
    several = guess_channels(names, inside)
    if several:
        return several
    one = guess_pattern(names, inside)
    return [one] if one else []


def _named(ids: list[str], patterns: list[str], place: str, inside: list[str]) -> list[str]:
    """The file of each id by the first pattern, a blank where one of the patterns has none."""
    known: dict[str, str] = {}
    for image in inside:
        name = image.rpartition("/")[2]
        for key in (without_suffix(name), name, image):
            known[key] = image
    prefix = "" if place in ("", ".") else place + "/"
    found = []
    for name in ids:
        fits = [known.get(pattern.format(id=name), "") for pattern in patterns]
        found.append(prefix + fits[0] if all(fits) else "")
    return found


# --- what does not match ------------------------------------------------------------------------------------------


def leaving(ids: Iterable[str], where: str) -> None:
    """Raise UserError for ids that would lead out of the folder."""
    bad = [repr(name) for name in ids if name.startswith("/") or ".." in name.split("/") or "\0" in name]
    if bad:
        raise UserError(
            f"{where}: {len(bad)} image ids would leave the folder: {some(bad)}; an id is a file's name or its path "
            "below the images' folder: correct the table"
        )


def missing(path: Path, table: str, ids: Sequence[str], found: Match) -> UserError:
    """The error for rows without an image."""
    lost = [name for name, file in zip(ids, found.files, strict=True) if not file]
    return UserError(
        f"{shown(path / table)}: {len(lost)} of {len(ids)} rows have no image in {found.folder or '.'}: {some(lost)}; "
        "unpack or download the images again, or remove these rows"
    )


def nothing_fits(path: Path, table: str, column: str, ids: Sequence[str], files: Files) -> UserError:
    """The error for a table that names no image: five of each, and how each kind of name looks."""
    names = list(dict.fromkeys(name for name in ids if name))
    images = files.images
    bare = [image.rpartition("/")[2] for image in images]
    looks = f"ids look like {_look(names)}, files like {_look(bare)}"
    hint_ = nearest(names[0], bare[:5000]).replace("did you mean", "nearest to the first id is").replace("?", "")
    return UserError(
        f"{shown(path / table)} names none of the {len(images)} images.\n"
        f"  column {column}: {listed(names)}\n  images: {listed(images)}\n  {looks}{hint_}\n"
        "say how a file is called, such as 'data.files=img_{id}.png' (or {id:0>5}), name the column with "
        "data.id=COLUMN, or another table with data.train_csv=FILE"
    )


def _look(names: Sequence[str]) -> str:
    """The most frequent shape of names: each run of digits as #, of letters beyond the common start and end as *."""
    shapes = Counter(re.sub(r"\d+", "#", name) for name in names)
    shape, count = shapes.most_common(1)[0]
    if count * 2 > len(names) or len(names) < 3:
        return shape
    lengths = Counter(len(without_suffix(name)) for name in names)
    return f"{lengths.most_common(1)[0][0]} characters{'' if '.' not in names[0] else names[0][names[0].rfind('.') :]}"


def column_share(table: pd.DataFrame, name: str, files: Files) -> float:
    """The share of a column's cells that mean an image."""
    return files.share(table[name].tolist())
