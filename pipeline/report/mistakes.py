"""The worst mistakes as pictures: one function a form, which gives a card a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline import images, mining
from pipeline.errors import UserError
from pipeline.lists import LISTS, NOBODY, best_first
from pipeline.mining import NONE
from pipeline.report import attention
from pipeline.report.answers import covered_of
from pipeline.report.facts import Entry, Facts
from pipeline.report.markup import Markup, tag
from pipeline.report.page import TINY, Section, chances, note, picture
from pipeline.sheets import drawn

LOOKED = 12  # of the worst rows, those with maps of where their member looked
LIKELY = 3  # classes of which the probability is shown
SIDE = 160  # of a drawn mask


def mistakes(facts: Facts) -> Section | None:
    """The rows that the best run gets most wrong."""
    entry = facts.best
    count = facts.config.report.pictures
    if entry is None or entry.task.form.name not in CARDS or not count:
        return None
    cards, remark = CARDS[entry.task.form.name](entry, count)
    if not cards:
        return None
    said = [note(remark)] if remark else []
    return Section(
        "mistakes", "Worst mistakes", [*said, tag("div", cards, class_="cards")], [entry.made_by], entry.name
    )


def card(entry: Entry, row: int, pictures: list[Markup], *words: Any, large: bool = False) -> Markup:
    """One row: its id, its pictures, and what is said of it."""
    title = tag("b", entry.ids[row])
    fold = tag("span", f" fold {entry.folds[row]}", class_="faint")
    found = None if large else pixels(entry, row)
    size = " large" if large else " photo" if found is not None and max(found.shape[:2]) > TINY else ""
    return tag("article", title, fold, tag("div", pictures, class_=f"thumbs{size}"), words, class_="card")


def pixels(entry: Entry, row: int) -> np.ndarray | None:
    """(H, W, C) uint8, a row's image as its file has it; None where it cannot be read."""
    config, competition = entry.settings, entry.competition
    try:
        return images.read(
            competition.train["file"].iloc[int(entry.rows[row])], competition.folder, reader=config.data.reader,
            limit_pixels=round(config.data.megapixels * 1e6), channels=config.data.channels,
        )  # fmt: skip
    except (UserError, OSError, ValueError):
        return None


def shown(entry: Entry, row: int, caption: Any) -> Markup:
    """The picture of a row."""
    found = pixels(entry, row)
    if found is None:
        return tag("figure", tag("figcaption", "its image cannot be read"))
    return picture(found, caption, f"image {entry.ids[row]}")


# --- classes, labels, numbers -------------------------------------------------------------------------------------


def of_chances(entry: Entry, count: int) -> tuple[list[Markup], str]:
    """Image, where its member looked, a sure row of what it was taken for; the likeliest classes with the truth."""
    mined = mined_of(entry)
    hardest = worst_of(mined, count)
    there = entry.task.form.dense(entry.truth, entry.values.shape[1]) > 0.5
    own = np.where(there.any(axis=1), np.where(there, entry.values, np.inf).argmin(axis=1), 0)
    rival = np.where(there, -np.inf, entry.values).argmax(axis=1)
    seen = _looked(entry, hardest, np.stack([rival, own], axis=1))
    names = entry.task.columns
    cards = []
    for row in hardest.tolist():
        maps = _maps(entry, row, seen, [f"why {names[rival[row]]}", f"why {names[own[row]]}"] if there[row].any() else
                     [f"why {names[rival[row]]}"])  # fmt: skip
        label, taken = (mined.rows[key].iloc[row] or "nothing" for key in mining.PAIR)
        seen_as = ", right but unsure" if label == taken else [", seen as ", tag("b", taken)]
        loss = tag("span", f" · loss {mined.losses[row]:.2f}", class_="faint")
        pictures = [shown(entry, row, "image"), *maps, *_beside(entry, mined, row, 1)]
        words = tag("p", "is ", tag("b", label), seen_as, loss)
        cards.append(card(entry, row, pictures, words, _likely(entry, row, there)))
    return cards, _remark(entry, mined, seen)


def worst_of(mined: mining.Mined, count: int) -> np.ndarray:
    """So many rows that are wrong, the worst first; of fewer than LOOKED, also those that came near."""
    rows = mined.hardest[:count]
    wrong = int(mined.wrong[rows].sum()) if mined.wrong is not None else count
    return rows[: max(wrong, LOOKED)]


def mined_of(entry: Entry) -> mining.Mined:
    """What stage=mine would find."""
    assert entry.mined is not None
    return entry.mined


def _remark(entry: Entry, mined: mining.Mined, seen: dict[int, Any]) -> str:
    wrong = f"{int(mined.wrong.sum()):,} of {len(mined.losses):,} rows are wrong. " if mined.wrong is not None else ""
    maps = (
        f"The {LOOKED} worst with Grad-CAM of the member that did not learn the row: yellow speaks for what its "
        "caption says. " if seen else ""
    )  # fmt: skip
    return f"{wrong}{maps}What is hard and what is only labelled wrongly looks alike in numbers: look."


def _likely(entry: Entry, row: int, there: np.ndarray) -> Markup:
    """The likeliest classes, and the truth."""
    values = np.asarray(entry.values[row], dtype=np.float64)
    order = np.argsort(-values, kind="stable")[:LIKELY].tolist()
    places = order + [place for place in np.flatnonzero(there[row]).tolist() if place not in order][:LIKELY]
    return chances([(entry.task.columns[place], float(values[place]), bool(there[row, place])) for place in places])


def _looked(entry: Entry, rows: np.ndarray, columns: np.ndarray) -> dict[int, Any]:
    """Where the members of the worst rows looked; nothing where that cannot be told."""
    if entry.run is None or not entry.run.has_networks:
        return {}
    rows = rows[:LOOKED]
    try:
        found = attention.looked(entry.run, entry.task, entry.rows[rows], columns[rows])
    except (UserError, RuntimeError):  # a report is worth more than its maps
        return {}
    return {row: found[int(entry.rows[row])] for row in rows.tolist() if int(entry.rows[row]) in found}


def _maps(entry: Entry, row: int, seen: dict[int, Any], captions: list[str]) -> list[Markup]:
    if row not in seen:
        return []
    image, maps = seen[row]
    return [picture(attention.overlaid(image, map_), caption, f"Grad-CAM of {entry.ids[row]}: {caption}")
            for map_, caption in zip(maps, captions, strict=False)]  # fmt: skip


def _beside(entry: Entry, mined: mining.Mined, row: int, *places: int) -> list[Markup]:
    """Pictures of what a row was confused with."""
    beside = mined.beside(row)
    chosen = [(beside[place], mined.columns[place]) for place in places if place < len(beside)]
    return [
        shown(entry, other, f"{name}: {words}" if words else name) for (other, words), name in chosen if other != NONE
    ]


def of_numbers(entry: Entry, count: int) -> tuple[list[Markup], str]:
    """Image, where its member looked, a row that is like the answer, and both numbers."""
    mined = mined_of(entry)
    hardest = mined.hardest[:count]
    seen = _looked(entry, hardest, np.zeros((len(entry.rows), 1), dtype=np.int64))
    cards = []
    for row in hardest.tolist():
        label, taken = (mined.rows[key].iloc[row] for key in mining.PAIR)
        words = tag("p", "is ", tag("b", label), ", seen as ", tag("b", taken))
        maps = _maps(entry, row, seen, ["what raises the number"])
        cards.append(card(entry, row, [shown(entry, row, "image"), *maps, *_beside(entry, mined, row, 1)], words))
    return cards, _remark(entry, mined, seen)


# --- masks --------------------------------------------------------------------------------------------------------


def of_maps(entry: Entry, count: int) -> tuple[list[Markup], str]:
    """Image, truth and answer of the images with the lowest scores, those with a mask first."""
    gains, covered = entry.gains, covered_of(entry)
    worse = np.flatnonzero(gains < np.nanmax(gains, initial=-np.inf))
    hardest = worse[np.argsort(gains[worse], kind="stable")][:count].tolist()
    answers: Any = entry.task.decide(entry.values)
    cards = []
    for row in hardest:
        image = pixels(entry, row)
        if image is None:
            continue
        tiles = [("image", None), ("truth", entry.truth.one(row)), ("answer", answers.one(row))]
        pictures = [picture(drawn(image, mask, SIDE), name, f"{name} of {entry.ids[row]}") for name, mask in tiles]
        part = "" if covered is None else f", {covered[row]:.1%} covered"
        cards.append(
            card(entry, row, pictures, tag("p", f"score {entry.metric.sign * gains[row]:.4f}{part}"), large=True)
        )
    return cards, f"The images with the lowest {entry.metric.name}."


# --- searches -----------------------------------------------------------------------------------------------------


def of_embeddings(entry: Entry, count: int) -> tuple[list[Markup], str]:
    """Image, the nearest of another identity, the nearest of its own, and their cosines."""
    mined = mined_of(entry)
    cards = []
    for row in mined.hardest[:count].tolist():
        label, taken = (mined.rows[key].iloc[row] or "nobody" for key in mining.PAIR)
        words = tag("p", "is ", tag("b", label), ", nearest is ", tag("b", taken))
        cards.append(card(entry, row, [shown(entry, row, "image"), *_beside(entry, mined, row, 1, 2)], words))
    return cards, "Rows to which another identity is nearer than their own, by the member that did not learn them."


def of_lists(entry: Entry, count: int) -> tuple[list[Markup], str]:
    """Image, what it is, and the labels that were found first."""
    names = getattr(entry.task, "names", np.array(entry.task.columns))
    gains = np.nan_to_num(entry.gains, nan=np.inf)
    found = best_first(np.asarray(entry.values), LIKELY)
    cards = []
    for row in np.argsort(gains, kind="stable")[:count].tolist():
        if not np.isfinite(gains[row]):
            continue
        first = ", ".join(names[found[row][found[row] != NOBODY]].tolist())
        words = tag("p", "is ", tag("b", names[entry.truth[row]] or "new"), ", found ", tag("b", first))
        cards.append(card(entry, row, [shown(entry, row, "image")], words))
    return cards, "Rows whose own label stands lowest among those that were found."


CARDS: dict[str, Callable[[Entry, int], tuple[list[Markup], str]]] = {  # by the form's name
    "classes": of_chances, "labels": of_chances, "numbers": of_numbers, "masks": of_maps, "class_masks": of_maps,
    "objects": of_maps, "embeddings": of_embeddings, LISTS.name: of_lists,
}  # fmt: skip
