"""What the image of a code competition lacks: packages that a package must bring along, as wheels."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.config import PACKAGE_ROOT
from pipeline.environment import requirements
from pipeline.errors import UserError

# What Kaggle's Python image had when this was written, of what this project uses; package.has= overrides it.
KAGGLE = (
    "torch", "torchvision", "timm", "albumentations", "albucore", "opencv-python-headless", "pillow", "numpy", "scipy",
    "scikit-learn", "scikit-image", "pandas", "lightgbm", "xgboost", "matplotlib", "tensorboard", "rich", "safetensors",
    "tifffile", "pyyaml", "huggingface-hub", "tqdm", "packaging", "typing-extensions", "fsspec", "pytest", "setuptools",
)  # fmt: skip


def lacking(has: Sequence[str]) -> list[str]:
    """``name==version`` of each package that the project needs and an image with these has not, sorted.

    Versions are those of this environment. What a lacking package itself needs is looked at in the same way.
    """
    known, found = {plain(name) for name in has or KAGGLE}, {}
    pending = [plain(_name(line)) for line in requirements(["core"])]
    while pending:
        name = pending.pop()
        if name in known or name in found:
            continue
        try:
            there = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as fault:
            raise UserError(
                f"{name} is not installed here, so nobody knows its version; ./run.sh help installs"
            ) from fault
        found[name] = f"{there.metadata['Name']}=={there.version}"
        pending += [plain(_name(line)) for line in there.requires or () if _is_needed(line)]
    return [found[name] for name in sorted(found)]


def plain(name: str) -> str:
    """A package's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(line: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", line)
    assert found
    return found[0]


def _is_needed(line: str) -> bool:
    from packaging.requirements import Requirement

    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"extra": ""})


def fetch(wanted: Iterable[str], folder: Path) -> None:
    """Download the wheels of ``lacking`` into a folder; UserError with pip's own message where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--constraint", str(PACKAGE_ROOT / "constraints.txt"), "--dest", str(folder), *wanted,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UserError(
            f"package.wheels=true, but pip download failed: {' '.join(lines[:2]) or 'no message'}; see to the network, "
            "or leave it out and put the wheels of wheels.txt into the package's wheels/ by hand"
        )
