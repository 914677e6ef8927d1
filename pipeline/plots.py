"""Curves as PNG files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.artefacts import atomic

PAGE, TEXT, FAINT, LINE, MARK = "#ffffff", "#1f2328", "#d0d7de", "#2a7de1", "#c2410c"
EXAMPLE = [round(0.97 - 0.5 * math.exp(-epoch / 4), 2) for epoch in range(40)]  # scores that rise and level out


def schedule(call: str, path: Path, steps: int = 1000) -> Path:
    """Draw a schedule's factor over a training of so many steps to a PNG, 800 × 400 pixels; returns its path.

    call: a call-string, such as 'cosine(warmup=0.1)'. Raises UserError for a wrong one. A schedule that follows scores
    is drawn for those of an example, which stand beside it.
    """
    from matplotlib.ticker import PercentFormatter

    factor = registry.build("schedules", call)
    figure, axes = _sheet(call, "share of the training", "factor on the learning rate")
    if registry.facts("schedules", call).get("own_fold"):
        ended = [step * len(EXAMPLE) // steps for step in range(steps)]
        factors = [factor(step, steps, EXAMPLE[:epochs]) for step, epochs in enumerate(ended)]
        places = [(epoch + 1) / len(EXAMPLE) for epoch in range(len(EXAMPLE))]
        axes.plot(places, EXAMPLE, color=MARK, lw=0, marker=".", label="the scores of an example, an epoch a point")
        axes.legend(loc="lower left", frameon=False, labelcolor=TEXT)
    else:
        factors = [factor(step, steps) for step in range(steps)]
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


def _sheet(title: str, across: str, up: str) -> tuple[Any, Any]:
    """An empty figure of 800 × 400 pixels and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), facecolor=PAGE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("\n".join(textwrap.wrap(title, 80)), color=TEXT, fontsize=12, loc="left", parse_math=False)
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
