"""What stands beside the images: groups that must share a fold, side features, times, folds that are there already."""

from __future__ import annotations

from pipeline.discover.columns import SPLITS, column, find_features, find_group, is_time, words
from pipeline.discover.draft import Draft
from pipeline.discover.rows import Rows
from pipeline.discover.search import Search
from pipeline.discover.search_keys import settle_search
from pipeline.discover.targets import Target
from pipeline.errors import UserError, nearest, some

OPEN_GROUP = "if images that share it are alike (one patient, one scene), data.group keeps them in one fold"


def settle_sides(rows: Rows, target: Target, search: Search | None, draft: Draft) -> None:
    """Groups, folds and features; UserError for a column of the command line that is not there."""
    for key in ("data.group", "data.camera", "data.order", "data.holdout", "data.features"):
        _check_given(rows, draft, key)
    taken = {rows.id, rows.named, *target.columns, *(draft.value("data.box") or [])}
    group = settle_search(search, rows, target, draft) if search else _settle_group(rows, taken, draft)
    _settle_folds_columns(rows, taken | {group}, draft)
    if not search and not target.facts.get("spatial"):  # level 2 of maps and of searches has no side features
        _settle_features(rows, target, taken | {group}, draft)


def _check_given(rows: Rows, draft: Draft, key: str) -> None:
    given = draft.given.get(key, "")
    there = [str(name) for name in rows.table.columns]
    for name in given if isinstance(given, list) else [given]:
        if name and name not in there:
            where = rows.train or rows.matched.folder
            raise UserError(f"{key}={name}, but {where} has the columns {some(there, 20)}{nearest(name, there)}")


def _settle_group(rows: Rows, taken: set[str], draft: Draft) -> str:
    given = draft.given.get("data.group")
    if given is not None:
        draft.set("data.group", given, "")
        return str(given)
    name, sure = find_group(rows.table, taken)
    if not name:
        _prefixes(rows, draft)
        return ""
    seen = column(rows.table, name)
    why = (
        f"{len(seen.distinct)} values on {len(seen.cells)} rows, such as {some(seen.distinct, 3)}: rows that share one"
    )
    if sure:
        draft.set("data.group", name, f"{why} stay in one fold, so that the score is of new ones")
        return name
    draft.propose("data.group", name, f"{why} may be too alike to part; few values, so that it is only proposed")
    draft.open["data.group"] = f"{name} has {len(seen.distinct)} values; {OPEN_GROUP}"
    return ""


def _prefixes(rows: Rows, draft: Draft) -> None:
    """Ids such as P003_17 whose beginnings come back."""
    ids = rows.table[rows.named].str.rpartition("/")[2]
    heads = ids.str.extract(r"^(.*[A-Za-z0-9])[_-][A-Za-z]*\d+(?:\.\w+)?$")[0]
    pairs = ids.str.extract(r"(?i)^(.+)[_-](?:left|right|l|r|od|os)(?:\.\w+)?$")[0]
    eyes = not pairs.isna().any()
    heads = pairs if eyes else heads
    if rows.by_folder or heads.isna().any():
        return
    count = heads.nunique()
    several = 5 <= count < len(ids) and (eyes or (2 * count <= len(ids) and not heads.str.fullmatch(r"\d{4,}").all()))
    if several and heads.str.contains(r"\d").mean() > 0.5:
        draft.open["data.group"] = (
            f"the ids begin with {count} names that come back, such as {some(heads.unique(), 3)}; if these are "
            f"patients or scenes, add them to {rows.train} as a column and set data.group"
        )


def _settle_folds_columns(rows: Rows, taken: set[str], draft: Draft) -> None:
    for name in map(str, rows.table.columns):
        if name in taken:
            continue
        seen, said = column(rows.table, name), set(words(name))
        if said & SPLITS and set(seen.distinct) <= {"0", "1", "True", "False", "true", "false"} and not seen.constant:
            draft.propose(
                "data.holdout", name, "marks rows; for one fixed validation part, with folds.method: holdout()"
            )
        elif is_time(seen):
            draft.propose("data.order", name, "a time; if the test comes later, with folds.method: time_ordered()")
    for key in ("data.holdout", "data.order"):
        if key in draft.given:
            draft.set(key, draft.given[key], "")


def _settle_features(rows: Rows, target: Target, taken: set[str], draft: Draft) -> None:
    known, taken = [rows.id, *target.columns], taken | {rows.parts}
    found = [] if rows.test_table is None else find_features(rows.table, rows.test_table, taken, known)
    if found or "data.features" in draft.given:
        draft.set("data.features", found, f"in {rows.train} and {rows.test}: level 2 may use them beside the images")
    tables = list(rows.extras)
    if tables or "data.tables" in draft.given:
        joined = ", ".join(f"{name} knows {count}" for name, count in rows.extras.items())
        draft.set("data.tables", tables, f"joined by {rows.id}: {joined}; for level 2")
    left = [name for name in map(str, rows.table.columns) if name not in taken | set(found) | set(draft.lines)]
    left = [name for name in left if not any(line.value == name for line in draft.lines.values())]
    if left and not rows.by_folder:
        where = f"{rows.test} lacks them, or they tell nothing new" if rows.test else "the test rows lack them"
        draft.notes.append(f"columns not used: {some(left, 6)}; {where}")
    apart = [name for name in rows.folder.tables if name not in (rows.train, rows.test, rows.sample, *tables)]
    apart = [name for name in apart if not any(note.startswith(f"{name} ") for note in draft.notes)]
    if apart:
        draft.notes.append(
            f"tables not used: {some(apart)}; their {rows.id}, if any, knows no training or no test image"
        )
