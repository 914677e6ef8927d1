"""The config in the making: each key with its value and the reason for it, what is left open, what must be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError

GIVEN = "given on the command line"


@dataclass(frozen=True)
class Line:
    """One key of the config. active: a line that is not is written as a comment, a proposal."""

    key: str
    value: Any
    why: str
    active: bool = True


@dataclass(frozen=True)
class Question:
    """What cannot be told from the folder: the key that answers it, what was seen, an example of an answer."""

    key: str
    seen: str
    example: str


@dataclass
class Draft:
    """Lines by key, in the order they were settled. given: typed values of the command line, which win."""

    given: dict[str, Any]
    lines: dict[str, Line] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    open: dict[str, str] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)

    def set(self, key: str, value: Any, why: str) -> Any:
        """Settle a key; what the command line says wins. Returns the value that holds."""
        if key in self.given:
            value, why = self.given[key], GIVEN
        self.lines[key] = Line(key, value, why)
        return value

    def propose(self, key: str, value: Any, why: str) -> None:
        """Write the key as a comment, unless the command line settles it."""
        if key in self.given:
            self.set(key, value, why)
        else:
            self.lines[key] = Line(key, value, why, active=False)

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a settled key, else of the command line, else the default."""
        line = self.lines.get(key)
        return line.value if line and line.active else self.given.get(key, default)

    def ask(self, key: str, seen: str, example: str) -> None:
        """Note that the user must answer, and how."""
        self.questions.append(Question(key, seen, example))

    def asks(self, key: str) -> bool:
        """Whether the user is asked for a key."""
        return any(question.key == key for question in self.questions)

    def answered(self, command: str) -> None:
        """Raise one UserError with every open question and the command that answers them."""
        if not self.questions:
            return
        width = max(len(question.key) for question in self.questions)
        asked = "\n".join(f"  {question.key:<{width}}  {question.seen}" for question in self.questions)
        answers = " ".join(question.example for question in self.questions)
        things = "one thing" if len(self.questions) == 1 else f"{len(self.questions)} things"
        raise UserError(
            f"the folder does not tell {things}, so nothing is written:\n{asked}\nanswer on the command line, such as\n"
            f"  {command} {answers}"
        )
