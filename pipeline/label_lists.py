"""Several labels in one cell of a table: what stands between them, or the brackets and quotes of a list."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN = re.compile(r"""([^\w'"]*)(['"]?)a\2([^\w'"]+)\2b\2([^\w'"]*)""")  # the labels a and b as a cell has them
QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
LIST = re.compile(r"""(?P<open>[\[({<]\s*)(?P<quote>['"]?)(?P<inner>.*?)(?P<close>\s*[\])}>])""", flags=re.DOTALL)
MARKS = (", ", ",", "; ", ";", " | ", "|", " ")  # that may stand between the bare names of a list


@dataclass(frozen=True)
class Shape:
    """How a cell is written: opened, each name between quotes, the names with something between, closed."""

    open: str
    quote: str
    between: str
    close: str


@functools.cache
def shape(separator: str) -> Shape:
    """data.separator: what stands between two labels, or a cell that holds the labels a and b: "['a', 'b']"."""
    found = SHOWN.fullmatch(separator)
    return Shape(*found.groups()) if found else Shape("", "", separator, "")


def split(cell: str, separator: str) -> list[str]:
    """The names in a cell; blanks around them do not count, nor which quotes they stand in."""
    form, text = shape(separator), cell.strip()
    text = text.removeprefix(form.open.strip()).removesuffix(form.close.strip())
    if form.quote and QUOTED.search(text):
        names: Iterable[str] = (one or other for one, other in QUOTED.findall(text))
    else:
        mark = form.between.strip() if form.open or form.close else form.between  # of a list, blanks beside it may lack
        names = text.split(mark if mark.strip(" ") else None)
    return [name.strip() for name in names if name.strip()]


def join(names: Sequence[str], separator: str) -> str:
    """Names as a cell; one that holds the quote stands in the other one, as Python writes it."""
    form = shape(separator)
    return form.open + form.between.join(_quoted(name, form.quote) for name in names) + form.close


def listed(cells: Iterable[str]) -> str:
    """The data.separator of cells that are lists, shown on the labels a and b; "" where they are none.

    All have the same brackets, and some holds two names. Lists of bare numbers are boxes and points, no labels.
    """
    filled = [cell.strip() for cell in cells if cell.strip()]
    found = [LIST.fullmatch(cell) for cell in filled]
    if not found or not all(found) or len({one["open"].strip() + one["close"].strip() for one in found if one}) > 1:
        return ""
    return next((separator for one in found if one and (separator := _of_one(one))), "")


def _of_one(found: re.Match[str]) -> str:
    """What one list tells, if it holds two names."""
    opened, quote, inner, close = found["open"], found["quote"], found["inner"], found["close"]
    if quote:
        ends = re.search(rf"{quote}(\s*,\s*|\s+)['\"]", inner)
        return f"{opened}{quote}a{quote}{ends[1]}{quote}b{quote}{close}" if ends else ""
    mark = next((mark for mark in MARKS if mark in inner), "")
    names = split(inner, mark) if mark else []
    named = any(re.search(r"[^\W\d_]", name) for name in names)
    return f"{opened}a{mark}b{close}" if len(names) > 1 and named else ""


def _quoted(name: str, quote: str) -> str:
    other = {"'": '"', '"': "'"}.get(quote, "")
    quote = other if quote and quote in name else quote
    return f"{quote}{name}{quote}"
