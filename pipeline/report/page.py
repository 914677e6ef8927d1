"""The parts of which report.html is made: sections, tables that sort and filter, pictures, and the page around them."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.pictures import opencv
from pipeline.report.look import SCRIPT, STYLE
from pipeline.report.markup import Markup, tag, text

FILTERED = 6  # rows from which a table has a text box
TINY, LONGEST, QUALITY = 96, 176, 82  # pixels: shown in squares up to this side; longer side of a picture; of JPEG
NONE = "–"


@dataclass(frozen=True)
class Section:
    """One part of the page. name: of its anchor. made_by: what made its numbers, a badge each. of: whose they are."""

    name: str
    title: str
    body: Any
    made_by: Sequence[str] = ()
    of: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and the number or text that it sorts by."""

    shown: Any
    by: float | str = ""
    wide: bool = False
    kind: str = ""


# --- the page -----------------------------------------------------------------------------------------------------


def page(title: str, lead: str, tiles: Sequence[Markup], sections: Sequence[Section], footer: str) -> str:
    """The whole file."""
    links = [tag("a", section.title, href=f"#{section.name}") for section in sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="kaggle-image-pipeline stage=report"),
        tag("title", f"{title} · report"),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", lead, class_="lead"), tag("dl", tiles, class_="tiles")),
        tag("nav", tag("div", links), aria_label="sections"),
        tag("main", [_section(section) for section in sections]),
        tag("footer", tag("p", footer)),
        tag("script", Markup(SCRIPT)),
    )
    return f'<!doctype html>\n<html lang="en">{head}\n{body}</html>\n'


def _section(section: Section) -> Markup:
    of = tag("span", section.of, class_="faint") if section.of else ""
    head = tag("div", tag("h2", section.title), of, [badge(made) for made in section.made_by], class_="head")
    return Markup(tag("section", head, section.body, id=section.name) + "\n")


def tile(name: str, value: str, small: str = "", more: Any = "") -> Markup:
    """A figure at the top of the page."""
    shown = tag("dd", value, [" ", tag("small", small)] if small else "", class_="value")
    return tag("div", tag("dt", name), shown, tag("dd", more, class_="more"), class_="tile")


def badge(made_by: str) -> Markup:
    """What made a number, in a pill: nested and OOF have their colours, what flatters a number a warning's."""
    plain = made_by.startswith(("OOF", "nested"))
    kind = made_by.partition(",")[0].partition(" ")[0].lower() if plain else ""
    flatters = any(
        word in made_by for word in ("own fold", "leak", "not nested", "not CV", "no CV", "optimistic", "partial")
    )
    return tag("span", made_by, class_=f"badge {'warn' if flatters else kind}".strip())


def note(*content: Any) -> Markup:
    """A remark in small letters."""
    return tag("p", content, class_="note")


# --- tables -------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], best: int = -1) -> Markup:
    """A table that sorts by a click on its head, with a text box where it is long; best: a row that stands out.

    Cells: numbers, texts, markup or ``Cell``.
    """
    cells = [[_cell(one) for one in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[place]) for row in cells) for place in range(len(head))]
    heads = [
        tag("th", tag("button", name, type="button"), scope="col", class_="n" if right else None)
        for name, right in zip(head, numeric, strict=True)
    ]
    lines = [
        tag("tr", [_td(cell, right) for cell, right in zip(row, numeric, strict=True)],
            class_="best" if place == best else None)
        for place, row in enumerate(cells)
    ]  # fmt: skip
    body = tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines), class_="sortable")
    box = tag("input", type="search", placeholder="filter", aria_label="show only rows with this text")
    label = tag("label", box, tag("output"), class_="filter", hidden=True) if len(rows) >= FILTERED else ""
    return tag(
        "div", label, tag("div", body, class_="scroll", tabindex="0", role="region", aria_label="table"), class_="table"
    )


def _cell(content: Any) -> Cell:
    if isinstance(content, Cell):
        return content
    if isinstance(content, (int, np.integer)) and not isinstance(content, bool):
        return Cell(f"{content:,}", int(content))
    return number(float(content)) if isinstance(content, (float, np.floating)) else Cell(content)


def number(value: float, form: str = ".4f", more: Any = "", kind: str = "") -> Cell:
    """A cell of a number, a dash where there is none; more: what stands behind it."""
    if math.isnan(value):
        return Cell(NONE, math.nan)
    return Cell([format(value, form), more], value, kind=kind)


def measured(value: float, error: float, form: str = ".4f") -> Cell:
    """A number ± its standard error."""
    return number(value, form, "" if math.isnan(error) else tag("span", f" ± {error:{form}}", class_="faint"))


def gained(gain: float, error: float) -> Cell:
    """A paired gain ± its standard error, coloured where it is beyond it."""
    beyond = "" if math.isnan(error) or abs(gain) <= error else "better" if gain > 0 else "worse"
    return number(gain, "+.4f", "" if math.isnan(error) else tag("span", f" ± {error:.4f}", class_="faint"), beyond)


def _is_number(cell: Cell) -> bool:
    return isinstance(cell.by, (int, float)) and not isinstance(cell.by, bool)


def _td(cell: Cell, right: bool) -> Markup:
    plain = "" if isinstance(cell.by, float) and math.isnan(cell.by) else cell.by
    by = plain if plain != "" or _is_number(cell) else None
    kinds = " ".join(filter(None, ["n" if right else "", "wide" if cell.wide else ""]))
    shown = tag("span", cell.shown, class_=cell.kind) if cell.kind else cell.shown
    return tag("td", shown, class_=kinds or None, data_v=by)


def chips(words: Sequence[str]) -> Cell:
    """Short texts behind each other, such as settings that differ."""
    return Cell(tag("span", [tag("code", word) for word in words], class_="chips") if words else NONE, wide=bool(words))


# --- pictures -----------------------------------------------------------------------------------------------------


def picture(pixels: np.ndarray, caption: Any = "", alt: str = "") -> Markup:
    """(H, W, C) uint8 → a figure with its data inside; of other channels than RGB the first three, or the first."""
    return tag("figure", image(pixels, alt), tag("figcaption", caption) if caption != "" else "")


def image(pixels: np.ndarray, alt: str = "") -> Markup:
    """(H, W, C) uint8 → an img element, see ``encoded``."""
    src, tiny = encoded(pixels, LONGEST)
    height, width = pixels.shape[:2]
    return tag("img", alt=alt, class_="tiny" if tiny else None, width=width, height=height, src=src)


def encoded(pixels: np.ndarray, most: int) -> tuple[str, bool]:
    """(H, W, C) uint8 → a data URI, and whether it is tiny: then a PNG, so that each pixel shows, else a JPEG.

    most: pixels of the longer side.
    """
    cv2, longest = opencv(), max(pixels.shape[:2])
    colour = np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0])
    if longest > most:
        height, width = (max(1, round(side * most / longest)) for side in pixels.shape[:2])
        colour = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
    colour = cv2.cvtColor(colour, cv2.COLOR_RGB2BGR) if colour.ndim == 3 else colour
    kind, settings = ("png", []) if longest <= TINY else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    data = base64.b64encode(cv2.imencode(f".{kind}", colour, settings)[1].tobytes()).decode()
    return f"data:image/{kind};base64,{data}", longest <= TINY


def chances(named: Sequence[tuple[str, float, bool]]) -> Markup:
    """Probabilities as bars; of each its name, its value 0…1, and whether it is the truth."""
    return tag(
        "div",
        [
            [
                tag("b" if true else "span", name),
                tag("span", tag("i", style=f"width:{100 * value:.1f}%"), class_=f"meter{' true' if true else ''}"),
                tag("span", f"{value:.3f}"),
            ]
            for name, value, true in named
        ],
        class_="chances",
    )


def folded(summary: str, *content: Any) -> Markup:
    """What is shown at a click."""
    return tag("details", tag("summary", summary), content)


def joined(*parts: Any) -> Markup:
    """Parts behind each other."""
    return text(parts)
