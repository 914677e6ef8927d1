"""The keys of a search: the identities to train on, the groups that they come in, what is searched, cameras."""

from __future__ import annotations

import pandas as pd

from pipeline import queries
from pipeline.discover.columns import PLACES, SPLITS, Column, column, find_box, is_time, words
from pipeline.discover.draft import Draft
from pipeline.discover.matching import column_share
from pipeline.discover.rows import Rows
from pipeline.discover.search import Search
from pipeline.discover.targets import Target
from pipeline.discover.values import AMOUNTS, LABELS
from pipeline.errors import UserError, some

IDENTITIES = LABELS | {
    "animal", "building", "character", "hotel", "identity", "individual", "instance", "item", "landmark", "person",
    "pid", "product", "vehicle", "whale",
}  # fmt: skip
CAMERAS = {"cam", "camera", "camid", "cameras"}
FEWEST_GROUPS = 5  # with fewer a group is only proposed: a fold would be most of what there is to learn
OPEN_GROUP = "if the test shows others of the same values of {name}, data.group= deals by identity alone"
OPEN_GROUP_FEW = "if the test shows none of the {count} values of {name} of training, set it: a fold each, or more"
OPEN_CAMERA = "if another image by the same camera is no find, as in re-identification, set data.camera"


def search_target(search: Search, rows: Rows, draft: Draft) -> Target | None:
    """The column of identities and the task; None where the user must say which it is, which the draft then asks."""
    task = draft.given.get("task", search.task)
    given = draft.given.get("data.target", [])
    for name in given:
        if name not in rows.table.columns:
            there = some(rows.table.columns, 20)
            raise UserError(f"data.target={name}, but {rows.train or rows.matched.folder} has {there}")
    if len(given) > 1:
        raise UserError(f"data.target={','.join(given)}, but identities are one column; name it")
    name = given[0] if given else search.column or _identity(rows, draft)
    if not name:
        return None
    count = len(column(rows.table, name).distinct)
    why = f"{search.why}; {count} identities to train on" if search.why else f"{count} identities to train on"
    return Target([name], task, why)


def _identity(rows: Rows, draft: Draft) -> str:
    """The finest column that tells who or what an image shows: the sample's, by its name, or the only one."""
    found = [seen for seen in _tellings(rows) if not seen.about(CAMERAS)]
    for fits in (
        [seen for seen in found if seen.name in rows.answers],
        [seen for seen in found if set(words(seen.name)) & IDENTITIES],
        [seen for seen in found if words(seen.name)[-1:] == ["id"] and not seen.about(PLACES)],
    ):
        if fits:
            return max(fits, key=lambda seen: len(seen.distinct)).name
    finest = max(found, key=lambda seen: len(seen.distinct), default=None)
    if finest is not None and all(_inside(finest, other) for other in found):
        return finest.name
    named = ", ".join(f"{seen.name} ({len(seen.distinct)} values)" for seen in found[:8])
    told = f"{len(found)} columns may be the identities to train on: {named}" if found else "no column has values again"
    draft.ask("data.target", f"{rows.train}: {told}", f"data.target={finest.name if finest else 'COLUMN'}")
    return ""


def _tellings(rows: Rows) -> list[Column]:
    """Columns of names or whole numbers that come back, without those that tell of something else."""
    _, box = find_box(rows.table)
    found = []
    for name in map(str, rows.table.columns):
        seen = column(rows.table, name)
        apart = name in (rows.id, rows.parts, *box) or seen.about(SPLITS, AMOUNTS) or is_time(seen) or seen.constant
        plain = seen.numbers is None or seen.whole
        comes_back = len(seen.distinct) < len(seen.filled) == len(seen.cells)
        told = seen.numbers is None and column_share(rows.table, name, rows.files) > 0.9
        if not apart and plain and comes_back and not told:
            found.append(seen)
    return found


def _inside(fine: Column, coarse: Column) -> bool:
    """Whether rows that share a value of the one, as some do, share that of the other."""
    pairs = pd.DataFrame({"fine": fine.cells, "coarse": coarse.cells}).drop_duplicates()
    return len(pairs) == len(fine.distinct) and len(fine.distinct) < len(fine.cells)


# --- into the draft -----------------------------------------------------------------------------------------------


def settle_search(search: Search, rows: Rows, target: Target, draft: Draft) -> str:
    """What is searched, the groups that identities come in, and cameras; returns the column of groups."""
    if search.role or "data.role" in draft.given:
        draft.set("data.role", search.role, "tells queries from gallery; the sample asks for the queries")
    if search.gallery or "data.gallery" in draft.given:
        lie = "a csv of the images" if queries.is_table(search.gallery) else "the images"
        draft.set("data.gallery", search.gallery, f"{lie} that the sample's ids search")
    identity = column(rows.table, target.columns[0])
    alone = int((identity.filled.value_counts() == 1).sum())
    if alone:
        count = len(identity.distinct)
        what = (
            "OOF has nothing of theirs to find" if search.kind == "ids" else "they are new to the member of their fold"
        )
        draft.notes.append(f"{alone} of {count} identities have one image: {what}")
    group = _settle_groups(identity, rows, draft) if search.kind == "ids" else draft.given.get("data.group", "")
    cameras = [name for name in map(str, rows.table.columns) if set(words(name)) & CAMERAS and name != identity.name]
    if "data.camera" in draft.given:
        draft.set("data.camera", draft.given["data.camera"], "")
    elif cameras and search.kind == "ids":
        draft.propose("data.camera", cameras[0], "an image of the same identity by the same camera then counts nowhere")
        draft.open["data.camera"] = OPEN_CAMERA
    return group


def _settle_groups(identity: Column, rows: Rows, draft: Draft) -> str:
    """The coarsest column in which identities lie whole, several in a value."""
    if "data.group" in draft.given:
        return str(draft.set("data.group", draft.given["data.group"], ""))
    found = [seen for seen in _tellings(rows) if seen.name != identity.name and _groups(identity, seen)]
    found = sorted(found, key=lambda seen: len(seen.distinct))
    many = [seen for seen in found if len(seen.distinct) >= FEWEST_GROUPS and 2 * _most(seen) <= len(seen.cells)]
    for seen in many[:1] or found[:1]:
        count = len(seen.distinct)
        held = f"{len(identity.distinct)} identities lie in {count} values, such as {some(seen.distinct, 3)}"
        if many:
            draft.set("data.group", seen.name, f"{held}: each in one fold whole, as if the test showed none of them")
        else:
            draft.propose("data.group", seen.name, f"{held}; few, so that it is only proposed")
        draft.open["data.group"] = (OPEN_GROUP if many else OPEN_GROUP_FEW).format(name=seen.name, count=count)
    return many[0].name if many else ""


def _groups(identity: Column, seen: Column) -> bool:
    several = identity.filled.value_counts().ge(2).sum()
    return 2 * len(seen.distinct) <= len(identity.distinct) and several >= 2 and _inside(identity, seen)


def _most(seen: Column) -> int:
    """The rows of the most frequent value."""
    return int(seen.filled.value_counts().iloc[0])
