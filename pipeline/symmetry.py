"""Symmetry is declared (law 5): flips and rotations are refused unless the competition says they leave labels true."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline import registry
from pipeline.errors import UserError

KEYS = {"views": "views", "augments": "augment"}  # the config's key of each kind
SYMMETRIES = ("none", "hflip", "d4")  # each allows what stands before it


def check_symmetry(
    call_strings: Iterable[str], declared: str, kind: str = "views", competition: str = "NAME", key: str = ""
) -> None:
    """Refuse views (or kind="augments") that need more symmetry than the competition declares.

    declared: one of SYMMETRIES. key: the config's, where it is not the kind's own. Raises UserError at the first that
    does not fit.
    """
    for text in (inner for call in call_strings for inner in registry.unfold(kind, call)):
        needed = registry.facts(kind, text).get("symmetry", "none")
        if SYMMETRIES.index(needed) > SYMMETRIES.index(declared):
            raise UserError(
                f"{key or KEYS[kind]}: {text} needs symmetry={needed}, but the competition declares symmetry="
                f"{declared} ({' < '.join(SYMMETRIES)}); if such flips and rotations leave the label true, "
                f"set symmetry: {needed} in configs/competition/{competition}.yaml, else leave {text} out"
            )
