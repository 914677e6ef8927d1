"""A command starts sooner if nobody looks for garbage among what its imports make, of which next to nothing is garbage.

Behind torch and timm there are 650,000 objects, and Python looks through all of them each time they have grown by a
quarter: ``benchmarks/startup.py``, docs/performance.md.
"""

from __future__ import annotations

import gc

OBJECTS = 100_000  # new objects before Python looks for garbage; its own is 700

_usual: list[tuple[int, int, int]] = []  # the thresholds from before


def importing() -> None:
    """From the start of a process on: look rarely."""
    _usual.append(gc.get_threshold())
    gc.set_threshold(OBJECTS, *_usual[0][1:])


def imported() -> None:
    """Before the work begins whose garbage may be large: look as ever, but never again at what has been made so far."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
