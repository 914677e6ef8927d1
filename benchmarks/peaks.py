"""What a command of the pipeline takes in a process of its own, for ``memory.py`` and ``scale.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
ASK = (
    "import resource, sys; from pipeline.__main__ import main; code = main(sys.argv[1:]); "
    "used = resource.getrusage(resource.RUSAGE_SELF); "
    "print('USED', used.ru_maxrss, used.ru_utime + used.ru_stime); sys.exit(code)"
)


def taken(project: Path, *words: str) -> tuple[float, float]:
    """Peak resident memory in GB, pages of memory maps among it, and processor seconds; ends all if it fails."""
    ended = subprocess.run(
        [sys.executable, "-c", ASK, *words], cwd=SOURCE, env={**os.environ, "PIPELINE_ROOT": str(project)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        sys.exit(f"{' '.join(words)}: {ended.stderr or ended.stdout}")
    peak, seconds = ended.stdout.rpartition("USED ")[2].split()
    return int(peak) * (1 if sys.platform == "darwin" else 1024) / 1e9, float(seconds)  # macOS counts bytes
