"""Whether a folder asks to find the same thing again, and how: what asks, what is searched, what an answer is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pandas as pd

from pipeline import queries
from pipeline.discover.columns import Column, column, words
from pipeline.discover.draft import Draft
from pipeline.discover.folder import top
from pipeline.discover.matching import Files, match
from pipeline.discover.roles import said
from pipeline.discover.rows import Rows
from pipeline.errors import UserError, some
from pipeline.patterns import COVERED
from pipeline.tasks import facts

TASK = "retrieval"
MATCHES = {"matches", "match", "neighbours", "neighbors", "retrieved"}
NEW = {"new_whale", "new_individual", "new_class", "new_identity", "unknown_individual"}  # answers for what is new
LIKE_NEW = re.compile(r"(new|unknown|unseen)[ _-]\w+", re.IGNORECASE)
NUMBER = re.compile(r"[-+.\de]+", re.IGNORECASE)
OFTEN = 2  # times as many rows as any identity has those of a label for what is new, whose name is less sure
SHOWN = 500  # cells of the sample that are read


@dataclass(frozen=True)
class Search:
    """What a competition of finding the same thing again asks for.

    kind: "ids" of images or "labels" of identities are answered. new: the label for an identity that training lacks.
    itself: a query stands first in its own answer. depth: the most answers that a cell of the sample shows. role: the
    column of the test table that tells queries from gallery. gallery: the folder or csv of images beside the test rows.
    beside: how many these are. column: of the identities, where the answers tell.
    """

    why: str
    kind: str = "ids"
    new: str = ""
    itself: bool = False
    depth: int = 0
    role: str = ""
    gallery: str = ""
    beside: int = 0
    column: str = ""

    @property
    def answer(self) -> str:
        """What a cell of the submission will hold, in words."""
        what = f"identities, or {self.new}" if self.kind != "ids" else "ids"
        first = "its own first, then the likeliest" if self.itself else "the likeliest first"
        return f"{f'up to {self.depth} ' if self.depth > 1 else ''}{what}, {first}"

    @property
    def task(self) -> str:
        """The call-string."""
        given = [f"kind={self.kind!r}, new={self.new!r}"] if self.kind != "ids" else ["itself=True"] * self.itself
        return f"{TASK}({', '.join(given)})"


def find_search(rows: Rows, draft: Draft) -> Search | None:
    """How a folder asks to find the same thing again; None if it does not, or another task is given."""
    given = draft.given.get("task")
    if given and not facts(given).get("open_set"):
        return None
    lists = _lists(rows)
    found = _by_labels(rows, lists) or _by_images(rows, lists, draft)
    if found is None and given:
        found = Search("")
    if found is None or found.kind != "ids":
        return found
    role = draft.given.get("data.role", _role(rows))
    gallery = draft.given.get("data.gallery", _gallery(rows, lists, role))
    tables = rows.folder.tables
    beside = (len(tables[gallery]) if gallery in tables else len(rows.files.inside(gallery))) if gallery else 0
    return replace(found, role=role, gallery=gallery, beside=beside)


def _lists(rows: Rows) -> pd.Series:
    """What stands in the cells of the sample, between blanks; by the query's id."""
    if rows.sample_table is None or len(rows.answers) != 1:
        return pd.Series([], dtype=object)
    shown = rows.sample_table.head(SHOWN)
    return pd.Series(shown.iloc[:, 1].str.split().tolist(), index=shown.iloc[:, 0], dtype=object)


def _tokens(lists: pd.Series) -> list[str]:
    return list(dict.fromkeys(token for cell in lists for token in cell))


def _depth(lists: pd.Series) -> int:
    return max(map(len, lists), default=0)


# --- labels are answered ------------------------------------------------------------------------------------------


def _by_labels(rows: Rows, lists: pd.Series) -> Search | None:
    """Labels of which one stands for what is new: by its name, or because training has no such label."""
    asked, depth = _tokens(lists), _depth(lists)
    for name in map(str, rows.table.columns):
        seen = column(rows.table, name)
        known = set(seen.distinct)
        outside = [token for token in asked if token not in known]
        if name == rows.id or len(outside) == len(asked) or _lists_labels(known, asked):
            continue
        new = _lone(outside, asked, depth) if outside else _own_label(seen, asked, depth)
        if new:
            where = "which is no label of training" if outside else "which has a label of its own in training"
            return Search(f"the sample answers {new}, {where}", "labels", new, depth=depth, column=name)
    if len(asked) == 1 and asked[0] in NEW:
        return Search(f"the sample answers {asked[0]}", "labels", asked[0], depth=depth)
    return None


def _lists_labels(cells: set[str], asked: list[str]) -> bool:
    """Whether cells of training hold several labels, as those of the sample do, and all of these."""
    several = [cell.split() for cell in cells if " " in cell]
    return bool(several) and set(asked) <= {*cells, *(label for cell in several for label in cell)}


def _lone(outside: list[str], asked: list[str], depth: int) -> str:
    """The only answer that is no label of training: by its name, or beside others of a list."""
    alone = outside[0] if len(outside) == 1 and not NUMBER.fullmatch(outside[0]) else ""
    return alone if alone in NEW or (depth > 1 and len(asked) > 2) else ""


def _own_label(seen: Column, asked: list[str], depth: int) -> str:
    """A label for all that is new: by its name, or one like it, in lists, with more rows than any identity."""
    counts = seen.filled.value_counts()
    like = [token for token in asked if LIKE_NEW.fullmatch(token) and depth > 1]
    often = [token for token in like if counts[token] >= OFTEN * counts.drop(token).max()]
    return next((token for token in asked if token in NEW), often[0] if often else "")


# --- images are answered ------------------------------------------------------------------------------------------


def _by_images(rows: Rows, lists: pd.Series, draft: Draft) -> Search | None:
    """Why the answers are images, by words and cells; None if nothing says so."""
    firsts = [cell[0] if cell else "" for cell in lists]
    itself = bool(firsts) and firsts == list(lists.index)
    why = _why(rows, lists, itself, draft)
    return Search(why, itself=itself, depth=_depth(lists)) if why else None


def _why(rows: Rows, lists: pd.Series, itself: bool, draft: Draft) -> str:
    role = _role(rows)
    if role:
        asking = queries.asks(rows.test_table[role])  # type: ignore[index]
        return f"{role} of {rows.test} tells {asking.sum()} queries from {(~asking).sum()} images to search"
    for name in rows.answers:
        if set(words(name)) & MATCHES:
            return f"the sample asks for {name}"
    if itself:
        return f"the sample's cells in {rows.answers[0]} begin with the row's own id"
    for kind, names in (("folders", rows.files.folders("test")), ("tables", rows.folder.tables)):
        spoken = {word for name in names for word in words(name)}
        if spoken & queries.QUERIES and spoken & queries.GALLERY:
            return f"there are {kind} of queries and of a gallery"
    asked = _tokens(lists)
    known = {cell for name in rows.table.columns if name != rows.id for cell in rows.table[name].unique()[:5000]}
    if asked and not set(asked) & known and _depth(lists) > 1 and rows.files.share(asked) > 0.9:
        return f"the sample's cells in {rows.answers[0]} are images"
    unheard = len(rows.answers) == 1 and rows.answers[0] not in rows.table.columns
    place = _named(rows) if unheard else ""
    if place:
        return f"{place} is a folder of images beside training and test, and the sample asks for {rows.answers[0]}"
    return f"data.gallery={draft.given['data.gallery']}" if draft.given.get("data.gallery") else ""


def _role(rows: Rows) -> str:
    """The column of the test table that tells queries from gallery."""
    if rows.test_table is None:
        return ""
    names = [str(name) for name in rows.test_table.columns if name != rows.id]
    return next((name for name in names if queries.tells_roles(rows.test_table[name])), "")


def _gallery(rows: Rows, lists: pd.Series, role: str) -> str:
    """The csv or folder of images beside the test rows that are searched; "" where test rows search test rows."""
    tests, asked = set(rows.test_ids), _tokens(lists)
    beyond = [token for token in asked if token not in tests]
    some_ask = rows.sample_table is not None and set(rows.sample_table.iloc[:, 0]) < tests
    if role or (asked and not beyond) or (some_ask and not beyond):
        return ""
    for name, table in sorted(rows.folder.tables.items()):
        other = name not in (rows.train, rows.test, rows.sample) and rows.id in table.columns
        if (
            other
            and said(name) & queries.GALLERY
            and _lie_there(rows, name, table[rows.named if rows.named in table else rows.id].tolist())
        ):
            return name
    return _answered(rows, beyond) or _named(rows)


def _lie_there(rows: Rows, name: str, ids: list[str]) -> bool:
    """Whether the images of a csv lie in the folder of its name, or with the test images, where they are looked for."""
    own = name.partition(".")[0]
    place = own if rows.files.inside(own) else rows.tested.folder
    return Files(rows.files.inside(place)).share(ids) > COVERED


def _answered(rows: Rows, beyond: list[str]) -> str:
    """The folder of the images that the sample answers."""
    if not beyond or rows.files.share(beyond) <= 0.9:
        return ""
    files = [file for file in match(beyond, rows.files, "test").files if file]
    used = {*rows.matched.files, *rows.tested.files}
    place, outer = _common(files), ""
    while place and not _holds(rows, place, used):
        outer, place = place, top(place)
    if not outer:
        mixed = "of training" if used & set(files) else f"in {place or 'one folder'} beside those of other rows"
        raise UserError(
            f"the sample {rows.sample} answers with images such as {some(beyond)}, which are {mixed}; write the ids of "
            "all that are searched to a csv, and give it: data.gallery=FILE"
        )
    return outer


def _common(files: list[str]) -> str:
    places = [top(file).split("/") for file in files]
    shared = []
    for pieces in zip(*places, strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return "/".join(shared)


def _named(rows: Rows) -> str:
    """The outermost folder called gallery, or the like, without images of other rows."""
    used = {*rows.matched.files, *rows.tested.files}
    places = [place for place in rows.files.folders("test") if set(words(place.rpartition("/")[2])) & queries.GALLERY]
    free = [place for place in places if not _holds(rows, place, used)]
    return min(free, key=lambda place: place.count("/"), default="")


def _holds(rows: Rows, place: str, used: set[str]) -> bool:
    return any(f"{place}/{file}" in used for file in rows.files.inside(place))
