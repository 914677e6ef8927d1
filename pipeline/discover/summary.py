"""What stage=new says: the header of the config, and the summary: what was seen, what is open, what comes next."""

from __future__ import annotations

import textwrap

from pipeline import advice
from pipeline.config import Config
from pipeline.discover import Discovery, writing
from pipeline.discover.draft import GIVEN

WIDTH = 116


def _counts(found: Discovery) -> str:
    rows, tests = len(found.rows.matched.files), len(found.rows.tested.files)
    more = f", {found.search.beside} images in {found.search.gallery}" if found.search and found.search.gallery else ""
    return f"{rows} training rows, {tests} test images{more}"


def _kind(found: Discovery) -> str:
    colour = "colour" if found.looks.coloured else "grey"
    several = len(found.rows.matched.patterns)
    return f"{found.looks.text()}, {f'{several} files an image' if several > 1 else colour}"


def header(name: str, found: Discovery) -> list[str]:
    """The comment that opens the config."""
    folder = found.draft.value("data.folder")
    said = (
        f"{name}: {_counts(found)}; {_kind(found)}. Written by stage=new from {folder}: each line says what was seen "
        "there. The file is yours: correct what is wrong, see ./run.sh help config."
    )
    first = f"./run.sh competition={name} recipe=quick   a first honest submission"
    return [*textwrap.wrap(said, WIDTH, break_on_hyphens=False, break_long_words=False), first]


def title(name: str, found: Discovery) -> str:
    """The line above the picture grid."""
    return f"{name}   {found.target.task}   {', '.join(found.target.columns[:4])}   {_counts(found)}"


def text(name: str, found: Discovery, reused: bool, changed: bool) -> str:
    """The summary that is printed."""
    draft, hidden = found.draft, bool(found.draft.value("data.hidden"))
    lines = [f"{draft.value('data.folder')}: {_counts(found)}; {_kind(found)}", ""]
    lines += _table([entry for entry in _entries(found) if entry[1]])
    lines += _block("left open", [f"{key}: {why}" for key, why in draft.open.items()])
    lines += _block("noticed", [*draft.notes, *_finetuning(found)])
    state = "unchanged" if reused else "written"
    current = "now the current competition" if changed else "the current competition"
    lines += ["", f"{writing.path_of(name)}: {state}, each line with its reason; {name} is {current}"]
    lines += [f"runs/{name}/preview.png: images with their labels; look whether they belong together", "", "next"]
    lines += _table([
        ("./run.sh stage=check", "# reads every image: broken ones, duplicates, drift, leaks"),
        ("./run.sh recipe=quick", f"# a first honest {'score' if hidden else 'submission'}{_offline(found)}"),
        ("./run.sh stage=train fold=0", "# one fold of the first model"),
        *[("./run.sh stage=package", "# then: what answers hidden images on Kaggle")] * hidden,
    ])  # fmt: skip
    return "\n".join(lines)


def _finetuning(found: Discovery) -> list[str]:
    """What the number of rows and the looks of the images speak for; nothing is set by it."""
    draft, seen = found.draft, found.looks
    pictures = advice.Pictures(draft.value("data.channels"), seen.side, seen.coloured / max(1, seen.count))
    finetune = str(draft.value("finetune") or Config().finetune)
    said = advice.finetuning(len(found.rows.table), pictures, finetune, bool(draft.value("pretrained")))
    return [said] if said else []


def _offline(found: Discovery) -> str:
    return "; without a network add pretrained=false" if found.draft.value("pretrained") else ""


def _entries(found: Discovery) -> list[tuple[str, ...]]:
    """Key, value and reason of what matters most."""
    draft, rows = found.draft, found.rows
    place = rows.matched.folder or "."
    patterns = ", ".join(rows.matched.patterns)
    ids = f"{len(rows.table)} of {len(rows.table)} found in {place}" + (f", as {patterns}" if patterns else "")
    folds = f"{draft.value('folds.count')}" + (f", by {draft.value('data.group')}" if draft.value("data.group") else "")
    sizes = " ".join(f"{key.replace('_size', '')} {writing.value(draft.value(key))}" for key in
                     ("image_size", "batch_size", "epochs"))  # fmt: skip
    features = ", ".join([*(draft.value("data.features") or []), *(draft.value("data.tables") or [])])
    return [
        ("task", found.target.task, _why(found, "task")),
        ("metric", str(draft.value("metric")), _why(found, "metric")),
        ("target", _short(found.target.columns), ""),
        (
            "ids",
            "the paths" if rows.by_folder else f"{rows.id}, images by {rows.image}" if rows.image else rows.id,
            ids,
        ),
        ("answer", found.answer, rows.sample),
        ("folds", folds, _why(found, "data.group") or _why(found, "folds.count")),
        ("box", ", ".join(draft.value("data.box") or []), _why(found, "data.box")),
        ("side features", features, "for level 2" if features else ""),
        ("training", ", ".join(draft.value("models") or []), sizes),
    ]


def _short(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" … ({len(names)})" if len(names) > 4 else "")


def _why(found: Discovery, key: str) -> str:
    line = found.draft.lines.get(key)
    return GIVEN if key in found.draft.given else line.why if line and line.active else ""


def _table(entries: list[tuple[str, ...]]) -> list[str]:
    """Cells in columns, the last one wrapped within its own."""
    wide = [min(34, max(len(entry[place]) for entry in entries)) for place in range(len(entries[0]) - 1)]
    lines = []
    for *first, last in entries:
        start = "  " + "  ".join(cell.ljust(width) for cell, width in zip(first, wide, strict=True))
        wrapped = textwrap.wrap(last, max(30, WIDTH - len(start) - 2), break_on_hyphens=False) or [""]
        lines.append(f"{start}  {wrapped[0]}".rstrip())
        lines += [" " * (len(start) + 2) + piece for piece in wrapped[1:]]
    return lines


def _block(head: str, items: list[str]) -> list[str]:
    if not items:
        return []
    lines = ["", head]
    for item in items:
        lines += textwrap.wrap(item, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return lines
