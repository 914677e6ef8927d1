"""Charts as inline SVG: lines, dots, bars, histograms, matrices; their colours follow the page, light or dark.

A chart is drawn 340 units wide, about the width of a phone, so that its letters are never shrunk there. Equal values
give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.markup import Markup, tag

WIDTH, HEIGHT = 340.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 8.0, 34.0  # around the axes
COLOURS = 8
LETTER = 5.9  # width of a letter, on average
MOST_DOTS = 1200  # of a series; more are thinned out evenly
LONG = 24  # letters of a name beside a bar
CELL = 34.0  # side of a cell of a matrix
FAINT = 0.03  # shade of a cell that looks empty


@dataclass(frozen=True)
class Series:
    """Points of one colour. kind: line, dots or step. x, y: (n,) numbers; those that are not finite are left out."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    kind: str = "line"
    colour: int = -1  # −1: by its place


@dataclass(frozen=True)
class Axis:
    """Values → places. low, high: its ends. ticks: where it says numbers."""

    low: float
    high: float
    log: bool
    begin: float
    end: float
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = ((math.log10(v) for v in (self.low, self.high, value)) if self.log
                            else (self.low, self.high, value))  # fmt: skip
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)


def colour(place: int) -> str:
    """The CSS colour of a series."""
    return f"var(--c{place % COLOURS})"


# --- axes ---------------------------------------------------------------------------------------------------------


def axis(
    values: np.ndarray, begin: float, end: float, log: bool = False, ends: tuple[float, float] | None = None
) -> Axis:
    """An axis that holds all finite values, with ticks at round numbers; ends: fixed ones."""
    known = values[np.isfinite(values)]
    known = known[known > 0] if log else known
    low, high = ends or ((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0))
    if log:
        low, high = 10 ** math.floor(math.log10(low) + 1e-9), 10 ** math.ceil(math.log10(high) - 1e-9)
        high = high if high > low else 10 * low
        powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
        return Axis(low, high, True, begin, end, [10.0**power for power in list(powers)[:: max(1, len(powers) // 5)]])
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    step = _round(high - low)
    if ends is None:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first = math.ceil(low / step - 1e-9)
    return Axis(low, high, False, begin, end, [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)])


def _round(span: float, count: int = 5) -> float:
    """A step of 1, 2 or 5 times a power of ten, so that about count of them make the span."""
    power = 10 ** math.floor(math.log10(span / count))
    return next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= count + 1e-9)


def written(value: float) -> str:
    """A number beside an axis: short."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e").replace("e-", "e−")
    return f"{value:.4g}".replace("-", "−")


def _n(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, words: Any, anchor: str = "start", **more: Any) -> Markup:
    return tag("text", words, x=_n(x), y=_n(y), text_anchor=anchor, **more)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, height: float) -> list[Markup]:
    """Grid, ticks and the axes' names."""
    bottom = height - BOTTOM
    parts = [
        tag("path", d="".join(f"M{_n(x.begin)} {_n(y.place(t))}H{_n(x.end)}" for t in y.ticks), class_="grid-line"),
        tag("path", d=f"M{_n(x.begin)} {_n(bottom)}H{_n(x.end)}", class_="axis"),
    ]
    parts += [_text(x.begin - 6, y.place(t) + 3.5, written(t), "end") for t in y.ticks]
    parts += [_text(x.place(t), bottom + 14, written(t), "middle") for t in x.ticks]
    parts += [_text((x.begin + x.end) / 2, height - 4, x_label, "middle")]
    if y_label:
        parts += [
            _text(11, (TOP + bottom) / 2, y_label, "middle", transform=f"rotate(-90 11 {_n((TOP + bottom) / 2)})")
        ]
    return parts


def drawing(parts: Any, label: str, width: float = WIDTH, height: float = HEIGHT, fixed: bool = False) -> Markup:
    """An svg element; fixed: never scaled."""
    size = {"width": _n(width), "height": _n(height)} if fixed else {}
    return tag("svg", parts, viewBox=f"0 0 {_n(width)} {_n(height)}", role="img", aria_label=label, **size)


def figure(title: Any, svg: Markup, legend: Sequence[tuple[str, int]] = (), small: str = "", box: str = "") -> Markup:
    """A chart with its title and what its colours mean. box: the class of a box of its own in which it scrolls."""
    shown = tag("div", svg, class_=f"scroll {box}", tabindex="0", role="region", aria_label=title) if box else svg
    caption = tag("figcaption", title, [" ", tag("small", small)] if small else "")
    return tag("figure", caption, shown, named(legend) if legend else "", class_="chart")


def named(legend: Sequence[tuple[str, int]]) -> Markup:
    """What colours mean."""
    return tag(
        "p",
        [tag("span", tag("i", style=f"background:{colour(place)}"), name) for name, place in legend],
        class_="legend",
    )


# --- charts -------------------------------------------------------------------------------------------------------


def plot(
    title: str, series: Sequence[Series], x_label: str = "", y_label: str = "", *, log: bool = False,
    diagonal: bool = False, ends: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None),
    small: str = "", legend: bool = True, whole: bool = False,
) -> Markup:  # fmt: skip
    """Lines, steps and dots over two numbers.

    log: the upright axis. diagonal: the line on which both are equal, dashed. ends: of both axes. whole: the level axis
    counts, so that it has ticks at whole numbers alone.
    """
    xs, ys = (np.concatenate([np.asarray(getattr(one, n), dtype=np.float64) for one in series] or [np.zeros(0)])
              for n in "xy")  # fmt: skip
    x = axis(xs, LEFT, WIDTH - RIGHT, ends=ends[0])
    if whole:
        x = Axis(x.low, x.high, False, x.begin, x.end, [tick for tick in x.ticks if tick == round(tick)])
    y = axis(ys, HEIGHT - BOTTOM, TOP, log, ends[1])
    parts: list[Any] = _frame(x, y, x_label, y_label, HEIGHT)
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        d = f"M{_n(x.place(low))} {_n(y.place(low))}L{_n(x.place(high))} {_n(y.place(high))}"
        parts.append(tag("path", d=d, class_="ideal"))
    places = [place if one.colour < 0 else one.colour for place, one in enumerate(series)]
    parts += [_drawn(one, x, y, place) for one, place in zip(series, places, strict=True)]
    told = [(one.name, place) for one, place in zip(series, places, strict=True)] if legend and len(series) > 1 else []
    return figure(title, drawing(parts, f"{title}: {y_label} over {x_label}"), told, small)


def _drawn(one: Series, x: Axis, y: Axis, place: int) -> Markup:
    """The points of a series."""
    points = np.column_stack([one.x, one.y]).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1) & ((points[:, 1] > 0) if y.log else True)]
    if one.kind == "dots":
        thinned = points[:: max(1, -(-len(points) // MOST_DOTS))]
        d = "".join(f"M{_n(x.place(a))} {_n(y.place(b))}h0" for a, b in thinned)
        style = f"stroke:{colour(place)};stroke-opacity:{0.75 if len(thinned) < 60 else 0.4}"
        wide = "7" if len(thinned) < 60 else "4"
        return tag("path", d=d, fill="none", style=style, stroke_width=wide, stroke_linecap="round")
    way = ["M" if not n else "L" for n in range(len(points))]
    d = "".join(f"{c}{_n(x.place(a))} {_n(y.place(b))}" for c, (a, b) in zip(way, points, strict=True))
    if one.kind == "step":
        d = "".join(
            f"M{_n(x.place(a))} {_n(y.place(b))}" if not n else f"H{_n(x.place(a))}V{_n(y.place(b))}"
            for n, (a, b) in enumerate(points)
        )
    line = tag("path", tag("title", one.name), d=d, class_="line", style=f"stroke:{colour(place)}")
    return line if len(points) > 1 else _drawn(Series(one.name, one.x, one.y, "dots"), x, y, place)


def histogram(
    title: str, groups: Sequence[tuple[str, np.ndarray]], x_label: str, *, ends: tuple[float, float] | None = None,
    bins: int = 20, whole: bool = False, small: str = "", log: bool = False,
) -> Markup:  # fmt: skip
    """How many rows lie where; each group in its colour, the later ones stacked upon the first.

    whole: values are whole numbers, a bar each. log: the square root of counts is drawn, so that few rows show beside
    many.
    """
    known = [(name, values[np.isfinite(values)]) for name, values in groups]
    every = np.concatenate([values for _, values in known]) if known else np.zeros(0)
    low, high = ends or ((float(every.min()), float(every.max())) if len(every) else (0.0, 1.0))
    edges = np.arange(low - 0.5, high + 1) if whole else np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = np.array([np.histogram(values, edges)[0] for _, values in known]).reshape(len(known), -1)
    x = axis(np.zeros(0), LEFT, WIDTH - RIGHT, ends=(float(edges[0]), float(edges[-1])))
    if whole:
        x = Axis(x.low, x.high, False, x.begin, x.end, [tick for tick in x.ticks if tick == round(tick)])
    height = np.sqrt if log else np.asarray
    y = axis(height(np.append(counts.sum(axis=0), 0)), HEIGHT - BOTTOM, TOP)
    shown = Axis(y.low, y.high, False, y.begin, y.end, y.ticks)
    parts: list[Any] = _frame(x, shown, x_label, "", HEIGHT)
    if log:
        parts = _frame(x, Axis(y.low, y.high, False, y.begin, y.end, []), x_label, "", HEIGHT)
        parts += [_text(x.begin - 6, y.place(t) + 3.5, written(round(t * t)), "end") for t in y.ticks]
    below = np.zeros(len(edges) - 1)
    for place, row in enumerate(counts):
        above = below + row
        for n in np.flatnonzero(row):
            top, base = y.place(float(height(above[n]))), y.place(float(height(below[n])))
            left, right = x.place(float(edges[n])), x.place(float(edges[n + 1]))
            said = tag("title", f"{groups[place][0]}: {row[n]} from {written(edges[n])} to {written(edges[n + 1])}")
            parts.append(
                tag("rect", said, x=_n(left + 0.5), y=_n(top), width=_n(max(0.5, right - left - 1)),
                    height=_n(max(1.0, base - top)), style=f"fill:{colour(place)}")
            )  # fmt: skip
        below = above
    told = [(name, place) for place, (name, _) in enumerate(groups)] if len(groups) > 1 else []
    return figure(title, drawing(parts, f"{title}: rows over {x_label}"), told, small)


def bars(title: str, rows: Sequence[tuple[str, float]], small: str = "", form: str = ".3f") -> Markup:
    """Level bars from 0, of each its name before it and its value behind; negative ones in another colour."""
    room = min(LONG, max((len(name) for name, _ in rows), default=1)) * LETTER + 10
    line, values = 19.0, np.array([value for _, value in rows] or [0.0])
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = axis(np.zeros(0), room, WIDTH - 46, ends=(low, high if high > low else low + 1))
    parts: list[Any] = []
    for place, (name, value) in enumerate(rows):
        y = line * place + 2
        begin, end = sorted((scale.place(0.0), scale.place(value)))
        parts.append(_text(room - 6, y + 11, shortened(name), "end", class_="strong"))
        fill = colour(0 if value >= 0 else 3)
        size = {"width": _n(max(1.0, end - begin)), "height": "13", "rx": "3"}
        parts.append(
            tag("rect", tag("title", f"{name}: {value:{form}}"), x=_n(begin), y=_n(y), style=f"fill:{fill}", **size)
        )
        parts.append(_text(max(end, scale.place(0.0)) + 5, y + 11, format(value, form)))
    return figure(title, drawing(parts, title, height=line * len(rows) + 4), small=small)


def shortened(name: str, most: int = LONG) -> str:
    """As much of a name as there is room for."""
    return name if len(name) <= most else name[: most - 1] + "…"


@dataclass(frozen=True)
class Whisker:
    """A line of ``forest``: a score, its standard error (NaN: none) and those of the folds."""

    name: str
    value: float
    error: float
    folds: Sequence[float]
    colour: int


def forest(
    title: str, rows: Sequence[Whisker], label: str, small: str = "", legend: Sequence[tuple[str, int]] = ()
) -> Markup:
    """A line each: small dots for folds, a large one with ± one standard error for all rows."""
    width, row = 860.0, 24.0
    room = min(34, max(len(one.name) for one in rows)) * LETTER + 14
    ends = [[one.value - np.nan_to_num(one.error), one.value + np.nan_to_num(one.error), *one.folds] for one in rows]
    x = axis(np.concatenate([np.asarray(e, dtype=np.float64) for e in ends]), room, width - 14)
    height = row * len(rows) + BOTTOM + 2
    lines = "".join(f"M{_n(x.place(t))} 2V{_n(height - BOTTOM)}" for t in x.ticks)
    parts: list[Any] = [tag("path", d=lines, class_="grid-line")]
    parts += [_text(x.place(t), height - BOTTOM + 15, written(t), "middle") for t in x.ticks]
    parts.append(_text((x.begin + x.end) / 2, height - 3, label, "middle"))
    for place, one in enumerate(rows):
        y, style = row * place + row / 2 + 2, colour(one.colour)
        parts.append(_text(room - 10, y + 4, shortened(one.name, 34), "end", class_="strong"))
        known = [fold for fold in one.folds if math.isfinite(fold)]
        parts.append(
            tag("path", d="".join(f"M{_n(x.place(v))} {_n(y)}h0" for v in known), fill="none",
                style=f"stroke:{style};stroke-opacity:.35", stroke_width="8", stroke_linecap="round")
        )  # fmt: skip
        if not math.isfinite(one.value):
            continue
        error = one.error if math.isfinite(one.error) else 0.0
        d = f"M{_n(x.place(one.value - error))} {_n(y)}H{_n(x.place(one.value + error))}"
        parts.append(tag("path", d=d, style=f"stroke:{style}", stroke_width="2.5"))
        said = tag("title", f"{one.name}: {one.value:.4f} ± {one.error:.4f}")
        parts.append(tag("circle", said, cx=_n(x.place(one.value)), cy=_n(y), r="5", style=f"fill:{style}"))
    return figure(title, drawing(parts, f"{title}: {label}", width, height), legend, small, box="spread")


def matrix(
    title: str, rows: Sequence[str], columns: Sequence[str], shades: np.ndarray, shown: Callable[[int, int], str],
    said: Callable[[int, int], str], *, wrong: Callable[[int, int], bool] = lambda row, column: False,
    axes: tuple[str, str] = ("", ""), small: str = "",
) -> Markup:  # fmt: skip
    """A table of shaded cells. shades: (R, C) in 0…1. wrong: cells in the colour of mistakes. axes: what rows and
    columns are."""
    room = min(LONG, max(map(len, rows))) * LETTER + 12 + (16 if axes[0] else 0)
    tall = max(map(len, columns)) > 4  # names that are written upright
    head = (min(LONG, max(map(len, columns))) * LETTER + 10 if tall else 18) + (16 if axes[1] else 0)
    width, height = room + CELL * len(columns) + 4, head + CELL * len(rows) + 4
    parts: list[Any] = []
    for place, name in enumerate(columns):
        x = room + CELL * place + CELL / 2
        turned = {"transform": f"rotate(-90 {_n(x + 4)} {_n(head - 6)})"} if tall else {}
        parts.append(_text(x + 4 if tall else x, head - 6, shortened(name), "start" if tall else "middle", **turned))
    for row, name in enumerate(rows):
        y = head + CELL * row
        parts.append(_text(room - 7, y + CELL / 2 + 4, shortened(name), "end"))
        for column in range(len(columns)):
            kind, shade = "wrong" if wrong(row, column) else "right", float(np.nan_to_num(shades[row, column]))
            x = room + CELL * column
            size = {"x": _n(x), "y": _n(y), "width": _n(CELL - 2), "height": _n(CELL - 2), "rx": "4"}
            fill = (
                {"style": f"fill:rgba(var(--{kind}),{min(1.0, shade):.2f})"} if shade > FAINT else {"class_": "empty"}
            )
            parts.append(tag("rect", tag("title", said(row, column)), **size, **fill))
            white = "fill:var(--card)" if shade > 0.55 else "fill:var(--text)"
            parts.append(_text(x + CELL / 2 - 1, y + CELL / 2 + 3, shown(row, column), "middle", style=white))
    if axes[0]:
        parts.append(_text(10, head + CELL * len(rows) / 2, axes[0], "middle",
                           transform=f"rotate(-90 10 {_n(head + CELL * len(rows) / 2)})"))  # fmt: skip
        parts.append(_text(room + CELL * len(columns) / 2, 10, axes[1], "middle"))
    return figure(title, drawing(parts, title, width, height, fixed=True), small=small, box="fixed")
