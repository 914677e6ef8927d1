"""Curves as PNG files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.artefacts import atomic

PAGE, TEXT, FAINT, LINE, MARK = "#ffffff", "#1f2328", "#d0d7de", "#2a7de1", "#c2410c"
EXAMPLE = [round(0.97 - 0.5 * math.exp(-epoch / 4), 2) for epoch in range(40)]  # scores that rise and level out
EPOCHS = 100  # of the training that a schedule is drawn for, where their number matters


def schedule(call: str, path: Path, steps: int = 1000) -> Path:
    """Draw a schedule's factor over a training of so many steps to a PNG, 800 × 400 pixels; returns its path.

    call: a call-string, such as 'cosine(warmup=0.1)'. Raises UserError for a wrong one. A schedule that follows scores
    is drawn for those of an example, which stand beside it.
    """
    from matplotlib.ticker import PercentFormatter

    factor = registry.build("schedules", call)
    facts = registry.facts("schedules", call)
    given = registry.complete_arguments("schedules", call).get("at", ())
    count = max([EPOCHS, *(math.ceil(1.25 * point) for point in given)])
    whole = f"{count} epochs" if any(point > 1 for point in given) else "the training"
    figure, axes = _sheet(call, f"share of {whole}", "factor on the learning rate")
    if facts.get("own_fold"):
        ended = [step * len(EXAMPLE) // steps for step in range(steps)]
        factors = [factor(step, steps, EXAMPLE[:epochs]) for step, epochs in enumerate(ended)]
        places = [(epoch + 1) / len(EXAMPLE) for epoch in range(len(EXAMPLE))]
        axes.plot(places, EXAMPLE, color=MARK, lw=0, marker=".", label="the scores of an example, an epoch a point")
        axes.legend(loc="lower left", frameon=False, labelcolor=TEXT)
    else:
        counts = (count,) if facts.get("epochs") else ()
        factors = [factor(step, steps, *counts) for step in range(steps)]
    axes.plot([step / steps for step in range(steps)], factors, color=LINE, lw=1.8, solid_joinstyle="round")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return _write(figure, path)


def range_test(
    title: str,
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: Sequence[float],
    marks: Mapping[str, float],
    path: Path,
) -> Path:
    """Draw a learning-rate range test to a PNG, 800 × 400 pixels; returns its path.

    rates, losses and smooth are of one length, a value a step; marks: learning rates to point at, by what they are.
    The rates' axis is logarithmic. What lies far above the start of the curve is cut off, since it hides the fall.
    """
    figure, axes = _sheet(title, "learning rate", "training loss of a step")
    axes.plot(rates, losses, color=FAINT, lw=1.2)
    axes.plot(rates, smooth, color=LINE, lw=1.8, solid_joinstyle="round")
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1])
    low, start = min(smooth), smooth[0]
    room = max(start - low, 0.05 * abs(start), 1e-6)
    axes.set_ylim(low - 0.15 * room, start + 0.6 * room)
    for place, (name, rate) in enumerate(marks.items()):
        axes.axvline(rate, color=MARK, lw=1, ls="--")
        side = "right" if rate**2 > rates[0] * rates[-1] else "left"  # of its line, away from the nearer edge
        where = {"ha": side, "va": "top", "transform": axes.get_xaxis_transform()}
        axes.text(rate, 0.96 - 0.07 * place, f" {name}: {rate:.1e} ", color=MARK, fontsize=9, **where)
    return _write(figure, path)


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: texts of options, or numbers from low to high."""

    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    options: tuple[str, ...] = ()
    digits: int = 2

    def place(self, value: Any) -> float:
        """Where a value stands, 0 at the bottom to 1 at the top."""
        if self.options:
            return (self.options.index(value) + 0.5) / len(self.options)
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return ((math.log(value) if self.log else value) - ends[0]) / (ends[1] - ends[0])

    def ticks(self) -> dict[str, float]:
        """Texts beside the axis by their place: the options, or five numbers."""
        if self.options:
            return {_short(option, self.options): self.place(option) for option in self.options}
        shares = [place / 4 for place in range(5)]
        values = [self.low * (self.high / self.low) ** x if self.log else self.low + (self.high - self.low) * x
                  for x in shares]  # fmt: skip
        return {f"{value:.{self.digits}g}": place for value, place in zip(values, shares, strict=True)}


def parallel(
    title: str, axes: Sequence[Axis], trials: Sequence[tuple[Sequence[Any], float]], greater: bool, path: Path
) -> Path:
    """Draw trials as lines across an axis a setting, coloured by the score at the right, to a PNG; returns its path.

    trials: a value an axis, None where a trial has none, and the score; the best last, drawn on top. greater: is more
    of the score better? The worst half of the scores shares the faintest colour, lest one failure hide the rest.
    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    scores = [score for _, score in trials]
    last = Axis("score", min(scores), max(scores) if max(scores) > min(scores) else min(scores) + 1e-9, digits=4)
    columns = [*axes, last]
    partial = any(value is None for values, _ in trials for value in values)
    bottom = ABSENT - 0.05 if partial else -0.05
    figure, sheet = _sheet(title, "", "", (max(8.0, 1.45 * len(columns) + 1), 4.5))
    sheet.set(xlim=(-0.4, len(columns) - 0.55), ylim=(bottom, 1.05), yticks=[])
    sheet.grid(False)
    sheet.spines[:].set_visible(False)
    sheet.set_xticks(range(len(columns)), [_two_lines(axis.label) for axis in columns], fontsize=9)
    sheet.tick_params(length=0)
    middle, best = sorted(scores)[len(scores) // 2], scores[-1]
    shade = Normalize(*sorted((middle, best)))
    colours = LinearSegmentedColormap.from_list("score", [FAINT, LINE] if greater else [LINE, FAINT])
    for place, axis in enumerate(columns):
        sheet.plot([place, place], [0, 1], color=TEXT, lw=0.8, zorder=3)
        for text, height in axis.ticks().items():
            page = {"fc": PAGE, "ec": "none", "pad": 0.6, "alpha": 0.75}
            words = {"fontsize": 8, "color": TEXT, "va": "center", "zorder": 5, "parse_math": False, "bbox": page}
            sheet.text(place + 0.04, height, text, **words)
    for values, score in trials:
        heights = [axis.place(value) if value is not None else ABSENT
                   for axis, value in zip(columns, [*values, score], strict=True)]  # fmt: skip
        top = score == best and values is trials[-1][0]
        style = {"color": MARK if top else colours(shade(score)), "lw": 2.4 if top else 1.2, "zorder": 4 if top else 2}
        sheet.plot(range(len(columns)), heights, solid_joinstyle="round", alpha=0.95, **style)
    if partial:
        sheet.text(-0.38, ABSENT, "none", fontsize=8, color=TEXT, va="center")
    return _write(figure, path)


ABSENT = -0.1  # the height of a value that a trial does not have


def importance(title: str, shares: Mapping[str, float], trials: int, path: Path) -> Path:
    """Draw how much of the differences between so many trials each setting explains, to a PNG; returns its path."""
    from matplotlib.ticker import PercentFormatter

    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    figure, axes = _sheet(title, "", "", (8, max(2.2, 1.3 + 0.42 * len(ordered))))
    if not ordered:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"{trials} finished trials do not tell", ha="center", va="center", color=TEXT)
        return _write(figure, path)
    axes.set_xlabel(f"share of the differences between {trials} trials (fANOVA)", color=TEXT)
    names = [name for name, _ in ordered]
    axes.barh(names, [share for _, share in ordered], color=LINE, height=0.6)
    for place, (_, share) in enumerate(ordered):
        axes.text(share + 0.01, place, f"{share:.0%}", va="center", color=TEXT, fontsize=9)
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=False, axis="y")
    return _write(figure, path)


def front(
    title: str, across: str, up: str, trials: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]],
    chosen: tuple[float, float, float], reference: tuple[str, float, float] | None, limit: float, path: Path,
) -> Path:  # fmt: skip
    """Draw trials by cost and score to a PNG: the front, the chosen one and its error, the reference, the limit.

    trials, best: (cost, score), best along the front from cheap to dear. chosen: cost, score, standard error or NaN.
    reference: its name, cost and score. limit: 0 for none. Shapes differ as colours do. Returns the path.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    figure, axes = _sheet(title, across, up, (8, 4.5))
    axes.plot(*zip(*trials, strict=True), color="#8c959f", lw=0, marker="o", ms=5, label="trial", zorder=2)
    steps = {"drawstyle": "steps-post", "color": LINE, "lw": 1.8, "marker": "o", "ms": 6}
    axes.plot(*zip(*best, strict=True), label="front: nothing is cheaper and as good", zorder=3, **steps)
    cost, score, error = chosen
    spread = error if math.isfinite(error) else 0.0
    axes.errorbar(
        [cost], [score], [spread], color=MARK, marker="*", ms=16, lw=0, elinewidth=1.6, capsize=4, mec=PAGE,
        label="chosen, ± 1 standard error" if spread else "chosen", zorder=5,
    )  # fmt: skip
    if reference:
        name, *place = reference
        axes.plot(*([one] for one in place), color=TEXT, lw=0, marker="D", mfc=PAGE, ms=8, label=name, zorder=4)
    if limit:
        axes.axvline(limit, color=TEXT, lw=1, ls="--", label="limit")
    costs = [cost for cost, _ in trials] + ([reference[1]] if reference else [])
    if min(costs) > 0 and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if min(costs) >= 1:  # 20k weights, but 0.2 ms rather than 200m
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(framealpha=0.9, edgecolor=PAGE, facecolor=PAGE, labelcolor=TEXT, fontsize=9, loc="best")
    return _write(figure, path)


def _two_lines(label: str) -> str:
    """A dotted name of an argument: what it belongs to above, itself below."""
    owner, _, name = label.rpartition(".")
    return f"{owner}\n{name}" if owner else label


def _short(text: str, beside: Sequence[str], most: int = 18) -> str:
    """An option without its arguments where that still tells it from those beside it."""
    name = text.partition("(")[0]
    if sum(other.partition("(")[0] == name for other in beside) == 1:
        return name
    text = text.strip("'")
    return text if len(text) <= most else text[: most - 1] + "…"


def _even(text: str, width: int) -> list[str]:
    """As few lines as fit into this width, about equally long, so that no word stands alone on the last."""
    text = " ".join(text.split())
    count = len(textwrap.wrap(text, width))
    return next(lines for least in range(len(text) // max(count, 1), width + 1)
                if len(lines := textwrap.wrap(text, max(least, 1))) <= count)  # fmt: skip


def _sheet(
    title: str, across: str, up: str, size: tuple[float, float] = (8, 4)
) -> tuple[Any, Any]:  # fmt: skip
    """An empty figure of this size in hundreds of pixels, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor=PAGE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("\n".join(_even(title, round(10 * size[0]))), color=TEXT, fontsize=12, loc="left", parse_math=False)
    axes.set_xlabel(across, color=TEXT)
    axes.set_ylabel(up, color=TEXT)
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=TEXT)
    axes.spines[:].set_color(FAINT)
    return figure, axes


def _write(figure: Any, path: Path) -> Path:
    """The figure as a PNG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic(path) as handle:
        FigureCanvasAgg(figure).print_png(handle, metadata={"Software": None})
    return path
