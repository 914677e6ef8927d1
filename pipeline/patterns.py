"""How the files of an image are called: patterns such as ``img_{id:0>5}.png``, and how to guess them from examples."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.errors import UserError, some

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip
OTHER_SUFFIXES = {".dcm", ".dicom", ".npy", ".tga", ".jfif", ".pbm", ".pnm"}  # images too, but after the others
SAMPLE = 24  # ids that patterns are guessed from
TRIED = 12  # guesses that are tried on all ids
COVERED = 0.95  # share of the ids that a guess must fit one to one
ORDER = {"red": 0, "r": 0, "green": 1, "g": 1, "blue": 2, "b": 2}


def is_image(file: str) -> bool:
    """Whether a file's name ends like an image's."""
    suffix = "." + file.rpartition(".")[2].lower()
    return suffix in IMAGE_SUFFIXES or suffix in OTHER_SUFFIXES


def without_suffix(name: str) -> str:
    """A name without the suffix of an image; others stay, since a dot may be part of an id."""
    return name.rpartition(".")[0] if is_image(name) else name


def classes_of(files: Sequence[str], pattern: str) -> list[str]:
    """The class that each file's name tells: pattern ``{label}_{number}`` of the names without folder and suffix.

    The number is any digits. UserError for a pattern that is none, and for names that do not fit.
    """
    parts = re.split(r"(\{label\}|\{number\})", pattern)
    if parts.count("{label}") != 1 or parts.count("{number}") != 1:
        raise UserError(f"data.named={pattern}, but it needs {{label}} and {{number}}, such as {{label}}_{{number}}")
    fields = {"{label}": "(.+?)", "{number}": r"\d+"}
    form = re.compile("".join(fields.get(part) or re.escape(part) for part in parts))
    found = [form.fullmatch(without_suffix(file.rpartition("/")[2])) for file in files]
    odd = [file for file, fits in zip(files, found, strict=True) if fits is None]
    if odd:
        raise UserError(f"data.named={pattern}: {len(odd)} of {len(files)} names do not fit: {some(odd)}; correct it")
    return [fits[1] for fits in found if fits]


def checked(patterns: Sequence[str]) -> list[str]:
    """The patterns of data.files in Python's format syntax; UserError unless each holds ``{id}`` and nothing else.

    ``{id:05}`` and ``{id:05d}`` mean ``{id:0>5}``, since ids are texts.
    """
    return [_checked(pattern) for pattern in patterns]


def _checked(pattern: str) -> str:
    problem = f"data.files={pattern!r}, but a pattern is a file's name with {{id}} in it, such as img_{{id:0>5}}.png"
    try:
        pieces = list(string.Formatter().parse(pattern))
    except ValueError as fault:
        raise UserError(f"{problem} ({fault})") from fault
    fields = [(name, conversion or "", spec or "") for _, name, spec, conversion in pieces if name is not None]
    if not fields or any(name != "id" or conversion or "{" in spec for name, conversion, spec in fields):
        raise UserError(problem)
    text = ""
    for literal, name, spec, _ in pieces:
        text += literal.replace("{", "{{").replace("}", "}}")
        if name is not None:
            text += "{id" + (":" + re.sub(r"^0(\d+)d?$", r"0>\1", spec) if spec else "") + "}"
    try:
        text.format(id="7")
    except ValueError as fault:
        raise UserError(f"{problem} ({fault})") from fault
    return text


# --- guesses ------------------------------------------------------------------------------------------------------


def guess_pattern(ids: Sequence[str], files: Iterable[str]) -> str | None:
    """The pattern that gives at least 95 % of the ids a file each, such as ``img_{id:0>4}.png``; None if there is none.

    files: paths relative to the folder of the images. A pattern without suffix means files of several suffixes.
    """
    known = _Names(files)
    shares = {guess: known.share(guess, ids) for guess in _guesses(ids, known)}
    best = max(shares, key=lambda guess: shares[guess], default="")
    return best if best and shares[best] >= COVERED else None


def guess_channels(ids: Sequence[str], files: Iterable[str]) -> list[str]:
    """The patterns of several files that stand for one id, such as ``{id}_red.png`` and ``{id}_green.png``, or none.

    red, green and blue come first in that order, then the others by name, with numbers by value.
    """
    known = _Names(files)
    fitting = [guess for guess in _guesses(ids, known, tried=64) if known.share(guess, ids) >= COVERED]
    if not fitting:
        return []
    ends = {guess.rpartition(".")[2] for guess in fitting if is_image(guess)}
    kept: dict[tuple[str | None, ...], str] = {}  # one pattern for each file: {id} and {id:0>4} may mean the same
    for guess in fitting:
        if is_image(guess) or not ends:  # those without a suffix say it again
            kept.setdefault(tuple(known.single.get(guess.format(id=name)) for name in ids[:50]), guess)
    colours = {_colour(guess) for guess in kept.values()} >= {0, 1}  # a lone b may stand for anything
    return sorted(kept.values(), key=lambda guess: _channel_order(guess, colours)) if len(kept) > 1 else []


def _colour(pattern: str) -> int:
    words = re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}", " ", pattern.lower()))
    return min((ORDER[word] for word in words if word in ORDER), default=len(ORDER))


def _channel_order(pattern: str, colours: bool) -> tuple[object, ...]:
    pieces = re.split(r"(\d+)", pattern)
    return colours and _colour(pattern), [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]


def _name(file: str) -> str:
    return file.rpartition("/")[2]


class _Names:
    """Files by their path, name and stem, each of which must mean one file."""

    def __init__(self, files: Iterable[str]) -> None:
        files = list(files)
        self.files = [file for file in files if is_image(file)] or files
        self.single: dict[str, str] = {}
        for short in (lambda file: without_suffix(_name(file)), _name):
            counts = Counter(map(short, self.files))
            self.single |= {short(file): file for file in self.files if counts[short(file)] == 1}
        self.single |= {file: file for file in self.files}

    def share(self, pattern: str, ids: Sequence[str]) -> float:
        """The share of ids that the pattern gives a file of their own; of a sample, if that is poor already."""
        if len(ids) > 1000 and self.share(pattern, ids[:: len(ids) // 200]) < COVERED - 0.05:
            return 0.0
        found = {pattern.format(id=name) for name in ids} & self.single.keys()
        return len(found) / max(1, len(ids))


def _guesses(ids: Sequence[str], known: _Names, tried: int = TRIED) -> list[str]:
    """Patterns by the number of ids that speak for them, the plainest first among equals."""
    longest = sorted(ids[:: max(1, len(ids) // 5000)], key=len, reverse=True)  # the long ones hit few files by chance
    sample = longest[: max(SAMPLE, len(longest) // 4)]
    sample = sample[:: max(1, len(sample) // SAMPLE)][:SAMPLE]
    votes: Counter[str] = Counter()
    for name in filter(None, sample):
        numeral = name.lstrip("0") or "0" if name.isdigit() else ""
        votes.update({guess for file in known.files if name in file for guess in _of_file(name, file)})
        if numeral and numeral != name:
            votes.update({guess for file in known.files if numeral in file for guess in _of_file(numeral, file)})
    ordered = sorted(votes.items(), key=lambda item: (-item[1], not is_image(item[0]), len(item[0]), item[0]))
    return [guess for guess, count in ordered[:tried] if 2 * count >= len(sample)]


def _of_file(name: str, file: str) -> set[str]:
    """The patterns that would give this file to this id."""
    found: set[str] = set()
    for text in {file, file.rpartition("/")[2]}:
        escaped = text.replace("{", "{{").replace("}", "}}")
        for place in re.finditer(f"(0*){re.escape(name)}" if name.isdigit() else f"(){re.escape(name)}", escaped):
            before, after = escaped[: place.start()], escaped[place.end() :]
            zeros = place.group(1)
            found.add(before + zeros + "{id}" + after)
            if name.isdigit() and not (before[-1:].isdigit() or after[:1].isdigit()):
                found.add(f"{before}{{id:0>{len(zeros) + len(name)}}}{after}")
        if escaped.count(name) > 1:
            found.add(escaped.replace(name, "{id}"))
    return found | {without_suffix(guess) for guess in found if "/" not in guess and is_image(guess)}
