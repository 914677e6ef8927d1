"""Files: which file an image id means, in folders and in zips, and the specs that name an image's pixels.

A *spec* is a text: a path relative to the competition's folder, or several of them joined by ``JOIN`` (the channels of
one image), and a crop box after ``BOX``. A path may run through a zip: ``train.zip/a.png``.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import archives
from pipeline.artefacts import shown
from pipeline.errors import UserError, some
from pipeline.patterns import IMAGE_SUFFIXES, checked, guess_channels, guess_pattern, is_image, without_suffix

JOIN = "\x1f"  # between the files of one image, each a channel
BOX = "\x1e"  # before the crop box, x0,y0,x1,y1 in pixels
MISSING = -1  # stands for the size of a file that does not exist
Boxed = tuple[float, float, float, float]


# --- specs --------------------------------------------------------------------------------------------------------


def parts(spec: str) -> tuple[list[str], Boxed | None]:
    """The files of a spec, and its box as (x0, y0, x1, y1) in pixels of the image as it is shown."""
    files, _, box = spec.partition(BOX)
    if not box:
        return files.split(JOIN), None
    x0, y0, x1, y1 = map(float, box.split(","))
    return files.split(JOIN), (x0, y0, x1, y1)


def label(spec: str) -> str:
    """A spec as messages print it: ``a_red.png + a_green.png [10,20,30,40]``."""
    files, _, box = str(spec).partition(BOX)
    return files.replace(JOIN, " + ") + (f" [{box}]" if box else "")


def with_boxes(specs: Sequence[str], boxes: np.ndarray, margin: float = 0.0) -> list[str]:
    """Specs cropped to boxes (N, 4), x0, y0, x1, y1 in pixels, float64; x1 and y1 lie outside.

    margin: share of a box's longer side that is added on each side. What lies outside of the image is cut off when it
    is read. Boxes without an area stay as they are, and show as broken images. UserError for a box that is no number.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    bad = [label(specs[row]) for row in np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist()]
    if bad:
        raise UserError(f"{len(bad)} boxes (data.box) are empty or no numbers, of {some(bad)}; fill them in")
    sides = boxes[:, 2:] - boxes[:, :2]
    added = np.where((sides > 0).all(axis=1), margin * sides.max(axis=1, initial=0), 0)[:, None]
    wide = np.concatenate([boxes[:, :2] - added, boxes[:, 2:] + added], axis=1).tolist()
    texts = (",".join(f"{value:.8g}" for value in box) for box in wide)
    return [f"{spec}{BOX}{text}" for spec, text in zip(specs, texts, strict=True)]


def listing(folder: Path, specs: Sequence[str]) -> str:
    """A fingerprint of names and byte sizes; the same after a copy to another machine."""
    digest = hashlib.blake2b(digest_size=8)
    for spec, facts in zip(specs, stats(folder, specs), strict=True):
        digest.update(f"{spec}\0{MISSING if facts is None else facts[0]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def stats(folder: Path, specs: Sequence[str]) -> Iterator[tuple[int, ...] | None]:
    """Of each spec its bytes, then what changes with its files: their times, or their CRCs in a zip; None: missing."""
    for spec in specs:
        if JOIN not in spec and BOX not in spec:
            yield _stat(f"{folder}/{spec}")
            continue
        each = [_stat(f"{folder}/{file}") for file in parts(spec)[0]]
        there = [facts for facts in each if facts is not None]
        whole = len(there) == len(each)
        yield (sum(facts[0] for facts in there), *(n for facts in there for n in facts)) if whole else None


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except NotADirectoryError:
        return archives.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes, out of a zip too; FileNotFoundError or another OSError, ValueError if damaged in its zip."""
    try:
        with open(path, "rb", buffering=0) as handle:
            return handle.readall()
    except NotADirectoryError:
        return archives.read(os.fspath(path))


# --- what a folder holds ------------------------------------------------------------------------------------------


@dataclass
class Place:
    """What an image folder holds. files: paths below it; a spec is prefix + file.

    members: the same of zips that lie in it and were not unpacked, which count where no loose file does. notes: what
    was left out: links that are not followed, damaged zips.
    """

    path: Path
    prefix: str
    files: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(folder: Path, subfolder: str) -> Place:
    """The files of folder/subfolder, sorted. It may be a folder, a zip, a folder in a zip, or a folder whose zip lies
    there instead. Hidden files, links that leave it, links to folders and zips beside their unpacked folder are left
    out. UserError if there is nothing of that name, or the zip is damaged or encrypted.
    """
    path = folder / subfolder
    place = Place(path, "" if subfolder in ("", ".") else subfolder.rstrip("/") + "/")
    if path.is_dir():
        _walk(place)
        if place.files or place.members or place.notes:
            return place
    words = [] if subfolder in ("", ".") else subfolder.strip("/").split("/")
    for number in range(1, len(words) + 1):
        head, rest = "/".join(words[:number]), "/".join(words[number:])
        for name in (head, head + ".zip", head + ".ZIP"):
            if name.lower().endswith(".zip") and (folder / name).is_file():
                return _in_zip(folder, name, rest, path)
    if path.is_dir():  # but empty
        return place
    raise UserError(
        f"{shown(path)} is no folder, nor is there a zip of that name; data.train_images and data.test_images name "
        "the image folders"
    )


def _in_zip(folder: Path, name: str, rest: str, path: Path) -> Place:
    members = _members(folder / name)
    top = name.rpartition("/")[2][: -len(".zip")]
    if members and all(member.startswith(top + "/") for member in members) and rest.partition("/")[0] != top:
        rest = f"{top}/{rest}".rstrip("/")  # the zip's only folder repeats its name
    inner = rest + "/" if rest else ""
    files = [member[len(inner) :] for member in members if member.startswith(inner)]
    if not files:
        raise UserError(f"{shown(folder / name)} holds no files in {rest or 'it'}; it holds {some(members)}")
    return Place(path, f"{name}/{inner}", files)


def _members(path: Path) -> list[str]:
    try:
        names = archives.open_archive(path).members
    except OSError as fault:
        raise UserError(f"{shown(path)} cannot be read: {fault.strerror}; mend that and run again") from fault
    return sorted(name for name in names if not any(_hidden(word) for word in name.split("/")))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX" or JOIN in name or BOX in name


def _walk(place: Place) -> None:
    inside = os.path.realpath(place.path) + "/"
    links: list[str] = []
    zips: list[str] = []
    pending = [""]
    while pending:
        here, folders, left = _scan(place.path, pending.pop(), inside)
        packed = {name for name in here if name[-4:].lower() == ".zip"}
        zips += [name for name in packed if name[:-4] not in folders]
        place.files += [name for name in here if name not in packed] if packed else here
        pending += [name + "/" for name in folders]
        links += left
    place.files.sort()
    if links:
        place.notes.append(f"links that leave it or lead to folders are not followed: {some(sorted(links), 2)}")
    if zips:
        _walk_zips(place, sorted(zips))


def _scan(folder: Path, prefix: str, inside: str) -> tuple[list[str], set[str], list[str]]:
    """Files, folders and links that are not followed, of one folder; inside: what links may not leave."""
    files: list[str] = []
    folders: set[str] = set()
    links: list[str] = []
    try:
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                name = prefix + entry.name
                if entry.is_symlink():
                    follow = entry.is_file() and os.path.realpath(entry.path).startswith(inside)
                    (files if follow else links).append(name)
                elif entry.is_dir():
                    folders.add(name)
                elif entry.is_file():
                    files.append(name)
    except OSError as fault:
        raise UserError(
            f"{shown(folder / prefix)} cannot be read: {fault.strerror}; mend that and run again"
        ) from fault
    return files, folders, links


def _walk_zips(place: Place, zips: list[str]) -> None:
    loose = {_name(file) for file in place.files}
    for name in zips:
        try:
            members = _members(place.path / name)
        except UserError as fault:  # it may have nothing to do with the images
            place.notes.append(str(fault))
            continue
        if not all(_name(member) in loose for member in members):  # else it was unpacked
            place.members += [f"{name}/{member}" for member in members]


def find_files(folder: Path, subfolder: str = "") -> list[str]:
    """All files of folder/subfolder as paths relative to folder, sorted: loose ones, then those in zips."""
    place = find(folder, subfolder)
    return [place.prefix + file for file in [*place.files, *place.members]]


def find_images(folder: Path, subfolder: str = "") -> list[str]:
    """Those of find_files whose name ends like an image's."""
    return [file for file in find_files(folder, subfolder) if is_image(file)]


# --- which file an id means ---------------------------------------------------------------------------------------


def resolve(
    folder: Path, subfolder: str, ids: Sequence[str], patterns: Sequence[str] = (), forgiving: bool = False
) -> list[str]:
    """The spec of each id, relative to folder, in the order of ids; files are looked for in folder/subfolder.

    An id is a file's name or its path below the subfolder, with or without suffix. Where an id fits no file like that,
    these count too if each leads to a file that no other id means: another image suffix, other upper and lower case,
    leading zeros of a number, first folders that are not here. patterns (data.files) say instead what an id's files are
    called; several are the channels of one image. UserError for ids that would leave the folder, that fit several
    files, or that fit none; forgiving: the first of several counts, and an id without a file gets a spec that leads to
    none.
    """
    outside = [repr(name) for name in ids if _leaves(name)]
    if outside:
        raise UserError(
            f"{len(outside)} image ids would leave {shown(folder / subfolder)}: {some(outside)}; correct the table"
        )
    patterns = checked(patterns)
    place = find(folder, subfolder)
    names = _Names(place)
    if not patterns:
        found = names.look_up(ids)
        found = _lenient(ids, found) if forgiving else found
        _check_found(place, ids, found, [])
        return [place.prefix + fits[0] for fits in found]
    columns = []
    for pattern in patterns:
        called = [pattern.format(id=name) for name in ids]
        found = _lenient(called, names.exact(called)) if forgiving else names.exact(called)
        _check_found(place, ids, found, [pattern])
        columns.append([place.prefix + fits[0] for fits in found])
    return [JOIN.join(files) for files in zip(*columns, strict=True)]


def _lenient(names: Sequence[str], found: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """One file for each name: the first that fits, or what would be called so."""
    return [fits[:1] or (f"{name} (missing)",) for name, fits in zip(names, found, strict=True)]


def _leaves(name: str) -> bool:
    if not name or name[0] == "/" or "\0" in name or JOIN in name or BOX in name:
        return True
    return ".." in name and ".." in name.split("/")


def _check_found(place: Place, ids: Sequence[str], found: Sequence[Sequence[str]], patterns: list[str]) -> None:
    several = [f"{name!r}: {' and '.join(fits[:2])}" for name, fits in zip(ids, found, strict=True) if len(fits) > 1]
    if several:
        raise UserError(
            f"{shown(place.path)}: {len(several)} ids fit several files: {some(several, 3)}; give the suffix or the "
            "path in the table, or move one of the files away"
        )
    missing = [name for name, fits in zip(ids, found, strict=True) if not fits]
    if missing:
        raise UserError(_why_missing(place, ids, missing, patterns))


def _why_missing(place: Place, ids: Sequence[str], missing: list[str], patterns: list[str]) -> str:
    files = [*place.files, *place.members]
    by = f" called {patterns[0]} (data.files)" if patterns else ""
    notes = "".join(f"; {note}" for note in place.notes)
    hint = ""
    if len(missing) > len(ids) // 2 and files:
        channels = guess_channels(ids, files)
        guess = channels or [text for text in [guess_pattern(ids, files)] if text]
        hint = f"; the files look like 'data.files={','.join(guess)}': set that, or" if guess else ""
    move = "correct the table, data.id, data.train_images or data.test_images"
    return (
        f"{len(missing)} of {len(ids)} ids have no image{by} in {shown(place.path)}: {some(missing)}; the folder holds "
        f"{len(files):,} files{': ' + some(files) if files else ''}{notes}{hint or ';'} {move}"
    )


class _Names:
    """What an id may mean: a file's path, its name, or either without its suffix."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.single, self.several = _index(place.files)
        self.packed: Index | None = None
        ends = place.prefix.split("/")
        self.prefixes = ["/".join(ends[number:]) for number in range(len(ends) - 1)]

    def exact(self, names: Sequence[str]) -> list[Sequence[str]]:
        """The files of each name, none or several too; members of zips where there is no loose file."""
        single, several = self.single, self.several  # local names: there may be a million ids
        found: list[Sequence[str]] = [
            (single[name],) if name in single and name not in several else () for name in names
        ]
        for row in [row for row, fits in enumerate(found) if not fits]:
            found[row] = self._one(names[row])
        return found

    def _one(self, name: str) -> Sequence[str]:
        keys = [name, *(name[len(prefix) :] for prefix in self.prefixes if name.startswith(prefix))]
        for key in keys:
            if fits := _fits(key, self.single, self.several):
                return fits
        if self.place.members:
            self.packed = self.packed or _index_of_zips(self.place.members)
            for key in keys:
                if fits := _fits(key, *self.packed):
                    return fits
        return ()

    def look_up(self, ids: Sequence[str]) -> list[Sequence[str]]:
        """As exact, and by another suffix, case or zeros where that fits nothing."""
        found = self.exact(ids)
        for other in (self._by_stem, self._by_case, self._by_number):
            missing = list(dict.fromkeys(name for name, fits in zip(ids, found, strict=True) if not fits))
            if not missing:
                break
            fresh = other(missing)
            counts = Counter(fits[0] for fits in fresh.values() if fits)
            counts.update({fits[0] for fits in found if fits})
            sure = {name: fits for name, fits in fresh.items() if len(fits) > 1 or (fits and counts[fits[0]] == 1)}
            found = [fits or sure.get(name, ()) for name, fits in zip(ids, found, strict=True)]
        return found if any(found) else self._below(ids) or found

    @functools.cached_property
    def _images(self) -> list[str]:
        files = [*self.place.files, *self.place.members]
        return [file for file in files if is_image(file)] or files

    def _by_stem(self, ids: Sequence[str]) -> dict[str, Sequence[str]]:
        stems = {name: without_suffix(name) for name in ids}
        fits = {name: self._one(stem) if stem not in (name, "") else () for name, stem in stems.items()}
        return {
            name: [file for file in files if is_image(file) or "." not in _name(file)] for name, files in fits.items()
        }

    def _by_case(self, ids: Sequence[str]) -> dict[str, Sequence[str]]:
        keys = ((key.casefold(), file) for file in self._images for key in _keys(file))
        known = _unambiguous(keys)
        folded = {name: (name.casefold(), without_suffix(name).casefold()) for name in ids}
        return {name: [known[key] for key in keys if key in known][:1] for name, keys in folded.items()}

    def _by_number(self, ids: Sequence[str]) -> dict[str, Sequence[str]]:
        known = _unambiguous((_number(_name(file)), file) for file in self._images)
        numbers = {name: _number(name) for name in ids}
        return {name: [known[number]] if number and number in known else [] for name, number in numbers.items()}

    def _below(self, ids: Sequence[str]) -> list[Sequence[str]]:
        """The files of paths that all begin with folders which are not here, of ``\\`` as of ``/``; else none.

        For all or none, so that an image that is missing never becomes another one of its name.
        """
        paths = [name.replace("\\", "/").split("/") for name in ids]
        levels = zip(*(path[:-1] for path in paths), strict=False)
        shared = [*itertools.takewhile(lambda names: len({*names}) == 1, levels)] if len({*ids}) > 1 else []
        for depth in range(len(shared) + 1):
            found = self.exact(["/".join(path[depth:]) for path in paths])
            if 2 * sum(len(fits) == 1 for fits in found) > len(found):
                return found
        return []


def _name(file: str) -> str:
    return file.rpartition("/")[2]


def _number(name: str) -> str:
    """The number that a name is, without leading zeros; empty if it is none. Tables write 7 as 7.0 at times."""
    stem = without_suffix(name).removesuffix(".0")
    return (stem.lstrip("0") or "0") if stem.isascii() and stem.isdigit() else ""


def _keys(file: str) -> set[str]:
    return {file, _name(file), without_suffix(file), without_suffix(_name(file))}


def _unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keys that lead to one file."""
    found: dict[str, str] = {}
    several = {key for key, file in pairs if found.setdefault(key, file) != file}
    return {key: file for key, file in found.items() if key not in several}


Index = tuple[dict[str, str], dict[str, list[str]]]  # the file of a key, and all its files where it has several


def _index(files: Sequence[str]) -> Index:
    index: Index = {}, {}
    others: Index = {}, {}
    stems: list[tuple[str, str, Index]] = []
    for file in files:
        folder, slash, name = file.rpartition("/")
        _add(index, file, file)
        if slash:
            _add(index, name, file)
        stem, dot, suffix = name.rpartition(".")
        if dot and stem:
            known = index if "." + suffix.lower() in IMAGE_SUFFIXES else others
            stems.append((stem, file, known))
            if slash:
                stems.append((f"{folder}/{stem}", file, known))
    for key, file, known in stems:
        _add(known, key, file)
    for key, file in others[0].items():  # 7.png is meant by "7", not the 7.xml beside it
        if key not in index[0]:
            index[0][key] = file
            if key in others[1]:
                index[1][key] = others[1][key]
    return index


def _index_of_zips(members: Sequence[str]) -> Index:
    index = _index(members)
    for member in members:
        border = archives.BORDER.search(member)
        assert border is not None
        inner = member[border.end() + 1 :]  # as unpacked here, or into a folder of the zip's name
        for path in (inner, f"{member[: border.start()]}/{inner}"):
            for key in {path, without_suffix(path)}:
                _add(index, key, member)
    return index


def _add(index: Index, key: str, file: str) -> None:
    first = index[0].setdefault(key, file)
    if first is not file and (key not in index[1] or index[1][key][-1] is not file):
        index[1].setdefault(key, [first]).append(file)


def _fits(key: str, single: dict[str, str], several: dict[str, list[str]]) -> Sequence[str]:
    if key in several:
        return [key] if key in several[key] else several[key]
    return (single[key],) if key in single else ()
