"""What the doctor says: findings with examples and what to do, and plain tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("fault", "warning", "note")  # stops training or spoils results · look at it · good to know
EXAMPLES = 12  # a finding; the page stays small whatever the folder's size


@dataclass(frozen=True)
class Example:
    """One image, or two side by side: rows of the survey, a caption each, and what is said of them together."""

    rows: list[int]
    captions: list[str]
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing: kind (for programs), severity, how many, what was seen, what to do."""

    kind: str
    severity: str
    count: int
    title: str
    advice: str
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Sheet:
    """A table of texts with its title; shown always, whether or not something is wrong."""

    title: str
    head: list[str]
    rows: list[list[str]]
    remark: str = ""


def plain(items: Sequence[Finding | Sheet]) -> list[dict[str, Any]]:
    """Findings or sheets as plain values for JSON."""
    return [dataclasses.asdict(item) for item in items]


def finding(content: dict[str, Any]) -> Finding:
    """A finding back from JSON."""
    return Finding(**{**content, "examples": [Example(**example) for example in content["examples"]]})


def counted(number: int, one: str, many: str = "") -> str:
    """``1 image``, ``3 images``: the number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def joined(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
