"""The doctor's answer on a terminal: findings, worst first, then the tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.doctor.findings import SEVERITIES, Finding, Sheet, counted

WIDTH = 110


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first; within a severity in the order they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def summary(findings: Sequence[Finding]) -> str:
    """``5 findings: 1 fault, 2 warnings, 2 notes``."""
    if not findings:
        return "nothing to report"
    counts = [(name, sum(finding.severity == name for finding in findings)) for name in SEVERITIES]
    return f"{counted(len(findings), 'finding')}: {', '.join(counted(n, name) for name, n in counts if n)}"


def text(findings: Sequence[Finding], sheets: Sequence[Sheet]) -> str:
    """Everything as lines."""
    lines = []
    for sheet in sheets:
        lines += ["", sheet.title, *_table(sheet)]
    lines += ["", "Findings"]
    for finding in findings:
        lines += _wrapped(f"  {finding.severity:<8} ", finding.title)
        lines += _wrapped("           → ", finding.advice)
    return "\n".join(lines if findings else [*lines, "  none"])[1:]


def _wrapped(start: str, words: str) -> list[str]:
    return textwrap.wrap(
        words, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _table(sheet: Sheet) -> list[str]:
    rows = [sheet.head, *sheet.rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(sheet.head))]
    right = [
        all(not row[place] or row[place][0] in "0123456789+-–" for row in sheet.rows)
        for place in range(len(sheet.head))
    ]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return [*lines, *_wrapped("  ", sheet.remark)]
