"""Draw docs/stages-light.svg and docs/stages-dark.svg: the stages, the files between them, and the lanes of the folds.

Run from the project: .venv/bin/python docs/draw_stages.py [FOLDER]. The same code gives the same bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).resolve().parent
WIDTH, BOTTOM, TOP = 12.0, 0.3, 6.85  # inches
FOLDS = 5
LANE_TOP, LANE = 5.15, 0.56  # the middle of fold 0's lane, and the distance to the next
LOW = LANE_TOP - (FOLDS - 1) * LANE - 0.24  # lower edge of the tall stages
TRAIN, DISTILL, PSEUDO = 3.03, 1.72, 0.78  # where the bundle enters train; the heights of the two rows below
BUNDLE = 0.08  # distance of the five lines of a bundle


@dataclass(frozen=True)
class Theme:
    """Colours: of the page, of text, of what is secondary, of stages, of files, and one a fold."""

    page: str
    text: str
    faint: str
    stage: str
    on_stage: str
    card: str
    edge: str
    folds: tuple[str, ...]


THEMES = {
    "light": Theme(
        "#ffffff", "#1f2328", "#59636e", "#24507f", "#ffffff", "#f6f8fa", "#b6bfc9",
        ("#2a7de1", "#12856f", "#b7791f", "#c2410c", "#8b4fc4"),
    ),
    "dark": Theme(
        "#0d1117", "#e6edf3", "#9198a1", "#2d5f9b", "#ffffff", "#161b22", "#4a525c",
        ("#58a6ff", "#3fc1a5", "#e3b341", "#f0883e", "#bc8cff"),
    ),
}  # fmt: skip


class Picture:
    """Boxes, texts and arrows in one theme, in inches from the lower left corner."""

    def __init__(self, theme: Theme) -> None:
        self.theme = theme
        self.figure = Figure(figsize=(WIDTH, TOP - BOTTOM), facecolor=theme.page)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(BOTTOM, TOP))
        self.axes.axis("off")

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str) -> None:
        """A rounded box with its lower left corner at (x, y)."""
        shape = "round,pad=0,rounding_size=0.09"
        colors = {"facecolor": fill, "edgecolor": edge}
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, shape, lw=1.2, zorder=3, **colors))

    def text(self, x: float, y: float, words: str, color: str = "", size: float = 11.0, **more: object) -> None:
        """Words, centred on (x, y) unless said otherwise."""
        more = {"ha": "center", "va": "center", "zorder": 4, **more}
        self.axes.text(x, y, words, color=color or self.theme.text, fontsize=size, **more)

    def stage(self, x: float, y: float, width: float, height: float, name: str) -> None:
        """A stage: a filled box with its verb."""
        self.box(x, y, width, height, self.theme.stage, self.theme.stage)
        self.text(x + width / 2, y + height / 2, name, self.theme.on_stage, 13, weight="bold")

    def file(
        self, x: float, y: float, width: float, height: float, *lines: str, edge: str = "", size: float = 10.5
    ) -> None:
        """Files: an outlined box with their names, one a line."""
        self.box(x, y, width, height, self.theme.card, edge or self.theme.edge)
        gap = 0.235
        for row, line in enumerate(lines):
            middle = y + height / 2 + ((len(lines) - 1) / 2 - row) * gap
            self.text(x + width / 2, middle, line, size=size, family="DejaVu Sans Mono")

    def path(self, *points: tuple[float, float], color: str = "", head: bool = True, line: float = 1.6) -> None:
        """A line through the points, with an arrow head at its end."""
        color = color or self.theme.faint
        xs, ys = zip(*points, strict=True)
        if len(points) > 2 or not head:
            self.axes.plot(xs, ys, color=color, lw=line, solid_joinstyle="round", solid_capstyle="round")
        if head:
            style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "color": color, "lw": line, "shrinkA": 0}
            self.axes.annotate("", points[-1], points[-2], arrowprops={**style, "shrinkB": 0})


def draw(theme: Theme) -> Figure:
    """The whole picture."""
    picture = Picture(theme)
    competition(picture)
    lanes(picture)
    level_two(picture)
    returning(picture)
    captions(picture)
    return picture.figure


def competition(p: Picture) -> None:
    """Left: what Kaggle ships, and the folds."""
    p.file(0.15, 4.4, 2.2, 1.2, "data/NAME/ train.csv", "train_images/", "test_images/", "sample_submission.csv")
    for left, name in ((0.15, "new"), (1.35, "check")):
        p.path((left + 0.5, 5.6), (left + 0.5, 5.75))
        p.stage(left, 5.77, 1.0, 0.4, name)
    p.stage(0.7, 6.35, 1.1, 0.4, "download")
    p.path((1.25, 6.35), (1.25, 5.62))
    p.path((1.25, 4.4), (1.25, 4.22))
    p.stage(0.7, 3.78, 1.1, 0.42, "split")
    p.path((1.25, 3.78), (1.25, 3.38))
    p.file(0.15, 2.92, 2.2, 0.44, "folds/NAME.csv")
    p.stage(0.15, 2.2, 0.92, 0.4, "select")
    p.path((1.07, 2.4), (1.3, 2.4))
    p.stage(1.32, 2.2, 1.03, 0.4, "absorb")
    p.path((1.835, 2.6), (1.835, 2.9))
    p.path((2.35, 3.14), (2.68, 3.14))
    p.path((2.35, 5.15), (2.68, 5.15))


def lane(fold: int) -> float:
    """The height of the middle of a fold's lane."""
    return LANE_TOP - fold * LANE


def lanes(p: Picture) -> None:
    """Middle: one member a fold, from training to predictions; lanes do not touch."""
    for fold, color in enumerate(p.theme.folds):
        y = lane(fold)
        for begin, end in ((3.56, 3.82), (5.26, 5.5), (6.48, 6.72), (8.46, 8.72)):
            p.path((begin, y), (end, y), color=color)
        p.file(3.84, y - 0.2, 1.42, 0.4, f"fold{fold}/best.ckpt", edge=color, size=9.8)
        p.file(6.74, y - 0.2, 0.82, 0.4, "oof.npz", edge=color, size=9.8)
        p.file(7.6, y - 0.2, 0.86, 0.4, "test.npz", edge=color, size=9.8)
    height = LANE_TOP + 0.24 - LOW
    p.stage(2.7, LOW, 0.86, height, "train")
    p.stage(5.52, LOW, 0.96, height, "predict")
    p.stage(8.74, LOW, 0.86, height, "stack")
    for left, name in ((2.5, "preview"), (3.64, "sanity")):
        p.stage(left, 5.77, 1.06, 0.4, name)
        p.path((left + 0.53, 5.77), (3.0 if name == "preview" else 3.48, 5.41))
    p.stage(2.5, 6.35, 1.2, 0.4, "pretrain")
    p.path((3.6, 6.35), (3.6, 5.74), (3.26, 5.41))
    for left, width, name in ((4.78, 0.86, "find_lr"), (5.7, 1.14, "find_batch")):
        p.stage(left, 5.77, width, 0.4, name)
    p.stage(6.9, 5.77, 0.6, 0.4, "tune")
    p.stage(6.74, 6.32, 0.92, 0.4, "search")
    p.stage(7.56, 5.77, 0.6, 0.4, "knn")
    p.path((7.86, 5.77), (7.86, 5.38))
    p.stage(8.22, 5.77, 0.84, 0.4, "adopt")
    p.path((8.34, 5.77), (8.34, 5.38))
    p.stage(9.12, 5.77, 1.02, 0.4, "features")
    p.path((9.3, 5.77), (8.46, 5.36))
    middle = 7.15
    p.path((middle, lane(FOLDS - 1) - 0.2), (middle, 2.37))
    p.stage(middle - 0.5, 1.95, 1.0, 0.4, "mine")
    p.path((middle, 1.95), (middle, 1.71))
    p.file(middle - 0.6, 1.31, 1.2, 0.38, "mined.csv", size=9.8)


def level_two(p: Picture) -> None:
    """Right: level 2, the submission and its score."""
    left, middle = 9.86, 10.855
    p.path((9.6, 5.11), (left - 0.02, 5.11))
    p.path((10.68, 5.39), (10.68, 5.75))
    p.stage(10.2, 5.77, 0.98, 0.4, "package")
    p.stage(11.22, 5.77, 0.78, 0.4, "answer")
    p.file(left, 4.83, 1.99, 0.56, "level2/stack/", "nested.npz test.npz")
    p.path((middle, 4.83), (middle, 4.47))
    p.stage(middle - 0.58, 4.03, 1.16, 0.42, "submit")
    p.path((middle, 4.03), (middle, 3.67))
    p.file(left, 3.09, 1.99, 0.56, "submissions/NAME/", "stack.csv .json")
    p.path((middle, 3.09), (middle, 2.73))
    p.stage(middle - 0.42, 2.29, 0.84, 0.42, "score")
    p.stage(10.42, 1.85, 1.46, 0.34, "leaderboard")
    p.path((9.06, LOW), (8.9, 2.48))
    p.stage(8.42, 2.06, 0.84, 0.4, "report")
    p.path((9.3, LOW), (9.6, 2.48))
    p.stage(9.32, 2.06, 1.02, 0.4, "compare")


def returning(p: Picture) -> None:
    """Below: what members teach the next run, each its own fold only."""
    rows = ((DISTILL, 5.02, "distill", ("soft/", "fold0–4.npz")), (PSEUDO, 8.03, "pseudo", ("labels-r1.csv",)))
    for y, source, name, files in rows:
        for fold, color in enumerate(p.theme.folds):
            shift = (fold - (FOLDS - 1) / 2) * BUNDLE
            down, up = source + shift, TRAIN + shift
            bend = ((down, y - shift), (5.2, y - shift)) if source > 6 else ((down, y),)
            p.path((down, lane(FOLDS - 1) - 0.2), *bend, color=color, head=False)
            p.path((4.0, y - shift), (up, y - shift), (up, LOW - 0.06), color=color, head=False)
            p.axes.plot([up], [LOW - 0.06], marker="^", color=color, markersize=4.5)
        p.path((4.78, y), (4.54, y))
        p.stage(4.78, y - 0.25, 1.12, 0.5, name)
        p.file(3.32, y - 0.28, 1.2, 0.56, *files, size=9.8)


def captions(p: Picture) -> None:
    """What the colours mean."""
    p.text(8.6, 1.66, "Member k teaches member k only:", ha="left")
    p.text(8.6, 1.42, "no label of fold k reaches", ha="left")
    p.text(8.6, 1.18, "what predicts fold k.", ha="left")
    p.text(8.6, 0.82, "Lanes meet in stack, scored by nested CV,", p.theme.faint, ha="left")
    p.text(8.6, 0.58, "and at second order in mine.", p.theme.faint, ha="left")
    for y, fill, edge, word in (
        (1.36, p.theme.stage, p.theme.stage, "stage"),
        (0.98, p.theme.card, p.theme.edge, "file"),
    ):
        p.box(0.15, y, 0.36, 0.22, fill, edge)
        p.text(0.62, y + 0.11, word, p.theme.faint, ha="left")
    p.path((0.15, 0.71), (0.51, 0.71), color=p.theme.folds[0], head=False)
    p.text(0.62, 0.71, "one fold", p.theme.faint, ha="left")


def main(folder: Path) -> None:
    """Write one svg a theme."""
    matplotlib.rcParams |= {"svg.hashsalt": "stages", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    for name, theme in THEMES.items():
        draw(theme).savefig(folder / f"stages-{name}.svg", metadata={"Date": None}, facecolor=theme.page)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
