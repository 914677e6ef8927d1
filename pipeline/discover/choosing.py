"""Which columns of the training table are the target: by the sample submission, else by what is left."""

from __future__ import annotations

from pipeline.discover.columns import INDEX, SPLITS, Column, column, find_box, find_group, is_time, twins, words
from pipeline.discover.draft import Draft
from pipeline.discover.matching import column_share
from pipeline.discover.rows import Rows
from pipeline.discover.values import LABELS, SEPARATORS, tokens
from pipeline.errors import UserError, nearest, some

SHOWN = 500  # cells of the sample that are read


def choose(rows: Rows, draft: Draft) -> tuple[list[str], str]:
    """The target's columns and why they are; none where the user must choose."""
    given = draft.given.get("data.target")
    if given:
        for name in given:
            if name not in rows.table.columns:
                there = [str(other) for other in rows.table.columns]
                raise UserError(f"data.target={name}, but {rows.train} has {some(there, 20)}{nearest(name, there)}")
        return list(given), ""
    if rows.by_folder:
        why = "the image's name tells it" if draft.value("data.named") else "the folder that an image lies in"
        return [name for name in rows.table.columns if name != rows.id], why
    named = _named_by_sample(rows)
    if named:
        return named, f"{rows.sample} asks for {'it' if len(named) == 1 else 'them'}"
    valued = _valued_by_sample(rows)
    if valued:
        return [valued], f"{rows.sample} has a column for each of its values"
    listed = _listed_by_sample(rows)
    if listed:
        return [listed], f"the cells of {rows.sample} list its values"
    return _by_exclusion(rows, draft)


def _named_by_sample(rows: Rows) -> list[str]:
    """The columns that the sample asks for, by their exact names, else without case if that is one-to-one."""
    names = [str(name) for name in rows.table.columns if name != rows.id]
    if rows.answers and set(rows.answers) <= set(names):
        return rows.answers
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.strip().casefold(), []).append(name)
    found = [folded.get(name.strip().casefold(), []) for name in rows.answers]
    return [fits[0] for fits in found] if found and all(len(fits) == 1 for fits in found) else []


def _valued_by_sample(rows: Rows) -> str:
    """The column whose values, or labels, are the sample's columns."""
    if len(rows.answers) < 2:
        return ""
    for fold in (str, str.casefold):
        answers = {fold(name.strip()) for name in rows.answers}
        for name in map(str, rows.table.columns):
            seen = column(rows.table, name)
            if len(seen.distinct) <= 50 * len(answers) and name != rows.id:
                for values in (set(seen.distinct), *(set(tokens(seen, mark)) for mark in SEPARATORS)):
                    if {fold(value) for value in values} == answers:
                        return name
    return ""


def _listed_by_sample(rows: Rows) -> str:
    """The column whose values stand in the cells of the sample, several in each."""
    if rows.sample_table is None or len(rows.answers) != 1:
        return ""
    cells = [cell.split() for cell in rows.sample_table.iloc[:SHOWN, 1]]
    asked = {value for cell in cells for value in cell}
    names = [str(name) for name in rows.table.columns if name != rows.id]
    several = bool(cells) and min(map(len, cells)) > 1
    return next((name for name in names if several and asked <= set(column(rows.table, name).distinct)), "")


def candidates(rows: Rows) -> list[Column]:
    """The columns that could be the target, going by what else they could be.

    A column of the test table, too, is one where no other is left: some test tables are labelled.
    """
    found = [seen for seen in _plausible(rows) if not _is_told(rows, seen.name)] or _plausible(rows)
    group, _ = find_group(rows.table, [rows.id])
    plain = [seen for seen in found if seen.name != group]
    return plain or found


def _is_told(rows: Rows, name: str) -> bool:
    """Whether the test table tells a column, too."""
    test = rows.test_table
    return test is not None and name in test.columns and not column(test, name).constant


def _plausible(rows: Rows) -> list[Column]:
    _, box = find_box(rows.table)
    found = []
    for name in map(str, rows.table.columns):
        seen = column(rows.table, name)
        named = seen.numbers is None and (len(seen.distinct) == len(seen.cells) or _names_images(rows, name))
        apart = seen.about(SPLITS, INDEX) or is_time(seen) or name in (rows.id, rows.parts, *box)
        if not (named or apart or seen.constant):
            found.append(seen)
    return found


def _names_images(rows: Rows, name: str) -> bool:
    return column_share(rows.table, name, rows.files) > 0.9


def _by_exclusion(rows: Rows, draft: Draft) -> tuple[list[str], str]:
    found = _without_twins(candidates(rows), rows)
    if len(found) == 1:
        return [found[0].name], f"the only column of {rows.train} that can be it"
    named = [seen for seen in found if set(words(seen.name)) & LABELS]
    if len(named) == 1:
        others = some([seen.name for seen in found if seen is not named[0]], 3)
        return [named[0].name], f"its name says so (not {others})"
    marks = [seen.name for seen in found if set(seen.distinct) <= {"0", "1", "0.0", "1.0"}]
    if not rows.answers and len(marks) == len(found) > 1:
        return marks, f"all columns of {rows.train} that can be it"
    if not found:
        seen_ = f"{rows.train} has no column that could be it: {some(rows.table.columns, 12)}"
    else:
        seen_ = f"{rows.train} has {len(found)} columns that could be it: " + ", ".join(
            _brief(seen) for seen in found[:8]
        )
        seen_ += f"; {rows.sample} asks for {some(rows.answers)}" if rows.answers else ""
    draft.ask("data.target", seen_, f"data.target={found[0].name if found else 'COLUMN'}")
    return [], ""


def _brief(seen: Column) -> str:
    if seen.numbers is not None and len(seen.distinct) > 5:
        return f"{seen.name} ({seen.distinct[0]}…{seen.distinct[-1]})"
    return (
        f"{seen.name} ({some(seen.distinct, 3)})"
        if len(seen.distinct) <= 3
        else f"{seen.name} ({len(seen.distinct)} values)"
    )


def _without_twins(found: list[Column], rows: Rows) -> list[Column]:
    """One of columns that say the same in other words, a class's number and its name: the sample's, else the text."""
    cells = set() if rows.sample_table is None or len(rows.answers) != 1 else set(rows.sample_table.iloc[:, 1])
    kept: list[Column] = []
    for seen in found:
        twin = next((other for other in kept if twins(seen, other)), None)
        if twin is None:
            kept.append(seen)
        elif _prefer(seen, cells) > _prefer(twin, cells):
            kept[kept.index(twin)] = seen
    return kept


def _prefer(seen: Column, cells: set[str]) -> tuple[bool, bool]:
    return bool(cells) and cells <= set(seen.distinct), seen.numbers is None
