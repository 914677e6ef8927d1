"""What the user can mend, as one message; and the help that makes such a message short to act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: says what, the value, what is allowed and the next move. Exit code 2."""


class Diverged(UserError):
    """A training whose loss is no number any more: other settings may do better."""


class Elsewhere(Exception):
    """A fault of ours in another process, which has told where. Exit code 1."""


class NobodyReads(BaseException):
    """The reader of stdout has gone, as behind ``| head``: the command ends without a word."""


class OutOfTime(Exception):
    """The budget of the command is used up: a training stopped with its state saved. Exit code 0."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint such as ``; did you mean focal?`` for the closest allowed word, or an empty text."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text, with a count of what was left off."""
    listed = [str(item) for item in items]
    more = f" … ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
