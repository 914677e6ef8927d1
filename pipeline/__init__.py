"""From an unzipped Kaggle image competition to a validated submission."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import Competition

__all__ = ["Competition"]
__version__ = "0.1.0"

# Set before the libraries that read them are loaded; what the user has set stays.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing albumentations asks the network for its version
if "OMP_WAIT_POLICY" not in os.environ:
    # Threads that spin while they wait for each other starve on a machine that does other work too; a short spin
    # before they sleep costs nothing that was seen where it is idle.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def __getattr__(name: str) -> Any:
    """``from pipeline import Competition``: loaded when it is asked for, since most modules need nothing of it."""
    if name != "Competition":
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    from pipeline.api import Competition

    return Competition
