"""Curves as PNG files."""

from __future__ import annotations

import textwrap
from pathlib import Path

from pipeline import registry
from pipeline.artefacts import atomic

PAGE, TEXT, FAINT, LINE = "#ffffff", "#1f2328", "#d0d7de", "#2a7de1"


def schedule(call: str, path: Path, steps: int = 1000) -> Path:
    """Draw a schedule's factor over a training of so many steps to a PNG, 800 × 400 pixels; returns its path.

    call: a call-string, such as 'cosine(warmup=0.1)'. Raises UserError for a wrong one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    factor = registry.build("schedules", call)
    factors = [factor(step, steps) for step in range(steps)]
    figure = Figure(figsize=(8, 4), facecolor=PAGE, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([step / steps for step in range(steps)], factors, color=LINE, lw=1.8, solid_joinstyle="round")
    axes.set_title("\n".join(textwrap.wrap(call, 80)), color=TEXT, fontsize=12, loc="left", parse_math=False)
    axes.set_xlabel("share of the training", color=TEXT)
    axes.set_ylabel("factor on the learning rate", color=TEXT)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=TEXT)
    axes.spines[:].set_color(FAINT)
    with atomic(path) as handle:
        FigureCanvasAgg(figure).print_png(handle, metadata={"Software": None})
    return path
