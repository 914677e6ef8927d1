"""From a folder as Kaggle ships it to a config: what is there, what it means, and the reason for each key.

``discover`` reads; ``writing`` makes the YAML; ``stages/new.py`` brings both together. Nothing here knows torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.discover.answers import settle_answers, settle_metric
from pipeline.discover.draft import Draft
from pipeline.discover.folder import scan
from pipeline.discover.long_form import turned
from pipeline.discover.looks import Looks, look, settle_images
from pipeline.discover.mask_forms import find_masks
from pipeline.discover.mask_keys import settle_masks
from pipeline.discover.rows import Rows, find_rows
from pipeline.discover.search import Search, find_search
from pipeline.discover.search_keys import search_target
from pipeline.discover.settings import settle_training
from pipeline.discover.sides import settle_sides
from pipeline.discover.targets import Target, find_target
from pipeline.errors import UserError, some

SYMMETRY = "hflip | d4: not known; does a mirrored image keep its label? a turned one too?"
MIRRORED = "hflip | d4: a mask is mirrored with its image; d4 if a turned one is as likely"
OPEN_TURNED = "is an image turned by 90° as likely as an upright one, as under a microscope? then symmetry=d4"
OPEN_SYMMETRY = "does a mirrored image keep its label (hflip)? turned by 90° too (d4)? then set it: flips often help"


@dataclass(frozen=True)
class Discovery:
    """What a folder holds, and the draft of its config. answer: what a cell of the submission will hold, in words."""

    rows: Rows
    target: Target
    looks: Looks
    draft: Draft
    answer: str
    search: Search | None = None


def discover(folder: Path, given: dict[str, Any], command: str) -> Discovery:
    """Read a folder and settle each key; given: typed values of the command line, which win.

    command: how the user called, for the message that asks. Raises UserError for what is missing, damaged or unclear.
    """
    content = scan(folder)
    draft = Draft(given, notes=list(content.notes))
    told = find_masks(content, draft)
    rows = find_rows(told.folder, draft, told.listed) if told else find_rows(turned(content, draft), draft)
    search = None if told else find_search(rows, draft)
    if told:
        target: Target | None = settle_masks(told, rows, draft)
    else:
        target = search_target(search, rows, draft) if search else find_target(rows, draft)
    if not rows.tested.files and not draft.value("data.hidden") and not draft.asks("data.hidden"):
        places = some([place or "." for place in rows.files.folders("test")], 6)
        seen = f"no test images were seen; folders of images: {places}; data.hidden=true if there are none"
        draft.ask("data.test_images", seen, "data.test_images=FOLDER")
    draft.answered(command)
    assert target is not None  # else it was asked
    _one_row_an_image(rows, target)
    looks = look(rows, draft)
    draft.set("task", target.task, target.why)
    settle_metric(rows, target, search, draft)
    _settle_symmetry(target, draft)
    if target.columns:
        names = "the file's name" if draft.value("data.named") else "the folder's name"
        draft.set("data.target", target.columns, f"of {rows.train}" if rows.train else names)
    settle_images(rows, looks, draft, boxes=told is None)
    answer = settle_answers(rows, target, search, draft)
    settle_sides(rows, target, search, draft)
    settle_training(rows, target, looks, draft)
    for key, value in given.items():
        if key not in draft.lines:
            draft.set(key, value, "")
    return Discovery(rows, target, looks, draft, answer, search)


def _settle_symmetry(target: Target, draft: Draft) -> None:
    """A mirrored image keeps a mask of one class true, mirrored as well; labels, and left and right, nobody knows."""
    one = bool(target.facts.get("spatial")) and len(draft.value("mask.classes", [])) <= 1
    draft.set("symmetry", "hflip" if one else "none", MIRRORED if one else SYMMETRY)
    if "symmetry" not in draft.given:
        draft.open["symmetry"] = OPEN_TURNED if one else OPEN_SYMMETRY


def _one_row_an_image(rows: Rows, target: Target) -> None:
    """Raise UserError where the training table repeats images, but for tasks that are made so."""
    ids = rows.table.drop_duplicates()[rows.id]  # a row that repeats another word for word counts once
    if ids.is_unique or target.facts.get("spatial"):
        return
    repeated = ids[ids.duplicated()].unique().tolist()
    pairs = rows.table[[rows.id, *target.columns]].drop_duplicates()
    same = "all with the same target" if len(pairs) == ids.nunique() else "with different targets"
    raise UserError(
        f"{rows.train} has several rows for {len(repeated)} images, {same}: {some(repeated)}; the tasks here want one "
        "row an image: join the labels of an image in one cell (a b c) or in one column each, or leave one row of it"
    )
