"""HTML as values: what is no ``Markup`` is text, and escaped; so no name of a class or file can become a tag."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = ("br", "img", "input", "meta")  # elements without an end


class Markup(str):
    """Text that is HTML already. Only this module and what calls ``tag`` make it."""


def text(content: Any) -> Markup:
    """Anything as HTML: markup as it is, iterables of it joined, nothing for None, the rest escaped."""
    if isinstance(content, Markup):
        return content
    if content is None:
        return Markup()
    if isinstance(content, Iterable) and not isinstance(content, str):
        return Markup("".join(text(item) for item in content))
    return Markup(escape(str(content), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element: children as ``text`` takes them; of attributes ``class_`` is class and ``data_v`` is data-v.

    An attribute that is True stands without a value; False and None leave it out.
    """
    inner = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{inner}>")
    return Markup(f"<{name}{inner}>{text(children)}</{name}>")
