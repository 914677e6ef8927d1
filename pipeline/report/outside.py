"""What the world said: CV against the leaderboard, and the looks at a solution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.report import charts
from pipeline.report.charts import Series
from pipeline.report.facts import Facts
from pipeline.report.markup import tag
from pipeline.report.page import Cell, Section, badge, measured, note, number, table

FEW = 3  # submissions that a correlation needs
PARTS = ("public", "private")


def scores(facts: Facts) -> Section | None:
    """Submissions with their CV and what the leaderboard gave them, and how both go together."""
    if not facts.submissions:
        return None
    rows, points = [], []
    for one in facts.submissions:
        value, error, made_by = cv_of(one)
        points.append((value, one["public"], one["private"]))
        made = badge((one.get("partial") and f"{made_by}, partial") or made_by)
        members = ", ".join(map(str, one.get("members") or []))
        rows.append([Cell(tag("b", one["name"]), one["name"]), measured(value, error), made,
                     *[number(one[part], ".5f") for part in PARTS], Cell(members, wide=True)])  # fmt: skip
    found = np.array(points, dtype=np.float64)
    drawn = [_against(found[:, 0], found[:, place], part) for place, part in enumerate(PARTS, 1)
             if np.isfinite(found[:, [0, place]]).all(axis=1).sum() >= FEW]  # fmt: skip
    scored = int(np.isfinite(found[:, 1:]).any(axis=1).sum())
    few = note(
        f"{scored} of {len(rows)} submissions have a leaderboard score here; the picture needs {FEW}. Upload one "
        "with stage=submit upload=true, or write public and private into its .json."
    )
    head = ["submission", "CV ± se", "made by", *PARTS, "members"]
    body = [tag("div", drawn, class_="grid") if drawn else few, table(head, rows)]
    return Section("scores", "CV against leaderboard", body, ["leaderboard"] if scored else [])


def cv_of(submission: dict[str, Any]) -> tuple[float, float, str]:
    """The score of a submission, its standard error, and what made it."""
    for key, made_by in (("nested", "nested"), ("cv", "OOF")):
        known = submission.get(key)
        if isinstance(known, dict):
            value = known.get("score", known.get("value"))
            return _number(value), _number(known.get("se")), str(known.get("kind", made_by))
    return math.nan, math.nan, "not CV"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _against(own: np.ndarray, board: np.ndarray, part: str) -> Any:
    known = np.isfinite(own) & np.isfinite(board)
    told = f"correlation {correlation(own[known], board[known]):.2f}, of {int(known.sum())} submissions"
    series = [Series(part, own[known], board[known], "dots", 0)]
    return charts.plot(f"CV and {part} score", series, "CV", part, small=told)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; NaN where one of them does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(one, other)[0, 1])


def looks(facts: Facts) -> Section | None:
    """Every look at a solution file, since each makes the next number less honest."""
    if not facts.looks:
        return None
    kept = ("look", "time", "submission", "solution", "metric")
    rows = [
        [Cell(one.get("look", ""), _float(one.get("look"))), *[one.get(key, "") for key in kept[1:]],
         *[number(_float(one.get(part)), ".5f") for part in ("all", *PARTS)]]
        for one in facts.looks
    ]  # fmt: skip
    said = note(
        "What is chosen after a look has seen the solution. The number of looks says how far to trust these scores."
    )
    return Section("looks", "Looks at the solution", [table([*kept, "all", *PARTS], rows), said], ["not CV"])


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
