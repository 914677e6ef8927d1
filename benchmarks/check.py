"""Images per second of stage=check: 8,000 training and 2,000 test PNGs of 32×32, drawn here.

    .venv/bin/python benchmarks/check.py             half a minute
    .venv/bin/python benchmarks/check.py --rows 100000

Prints the reading alone (one pass, threads), then the whole stage in a process of its own with imports and the page,
and its peak memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline import images
from pipeline.doctor import survey
from pipeline.hardware import physical_cores

SIDE, TEST_SHARE, CLASSES = 32, 0.2, 10
SOURCE = Path(__file__).resolve().parent.parent


def draw(root: Path, rows: int) -> tuple[list[str], list[str]]:
    """A project with the competition ``drawn``; the specs of its training and test images."""
    generator = np.random.default_rng(0)
    waves = np.fft.fftfreq(SIDE)
    falling = 1 / np.maximum(np.hypot(waves[:, None], waves), 1 / SIDE) ** 1.5  # as the spectrum of photographs does
    folder = root / "data" / "drawn"
    test = round(rows * TEST_SHARE)
    names = [f"{number:08x}" for number in generator.choice(2**32, rows, replace=False).tolist()]
    specs = [f"{'test' if place >= rows - test else 'train'}_images/{name}.png" for place, name in enumerate(names)]
    for part in ("train_images", "test_images"):
        (folder / part).mkdir(parents=True)
    for spec in specs:
        noise = generator.normal(size=(3, SIDE, SIDE))
        smooth = np.fft.ifft2(falling * np.fft.fft2(noise)).real.transpose(1, 2, 0)
        image = np.clip(smooth / smooth.std() * 45 + 120, 0, 255).astype(np.uint8)
        (folder / spec).write_bytes(images.opencv().imencode(".png", image)[1].tobytes())
    labels = generator.integers(0, CLASSES, rows).tolist()
    rows_of = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    (folder / "train.csv").write_text("\n".join(["id,label", *rows_of[: rows - test]]) + "\n")
    (folder / "sample_submission.csv").write_text("\n".join(["id,label", *rows_of[rows - test :]]) + "\n")
    for name in ("competition", "model", "recipe"):
        (root / "configs" / name).mkdir(parents=True)
    (root / "configs/default.yaml").write_text("competition: drawn\nmodel: small\n")
    (root / "configs/competition/drawn.yaml").write_text("data:\n  folder: data/drawn\n")
    (root / "configs/model/small.yaml").write_text("backbone: resnet18\n")
    return specs[: rows - test], specs[rows - test :]


def reading(root: Path, train: list[str], test: list[str]) -> float:
    """Seconds of the pass over all images."""
    folder = root / "data" / "drawn"
    began = time.perf_counter()
    seen = survey.read(
        lambda spec: images.look(spec, folder, at_least=survey.LOOK_SIDE),
        [(spec, spec) for spec in train], [(spec, spec) for spec in test],
    )  # fmt: skip
    assert not seen.broken
    return time.perf_counter() - began


def stage(root: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of ``stage=check`` as a process of its own."""
    environment = {**os.environ, "PIPELINE_ROOT": str(root)}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pipeline", "stage=check"],
        cwd=SOURCE,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Draw, read, check, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=10_000, help="images in all, a fifth of them test")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        train, test = draw(root, rows)
        alone = reading(root, train, test)
        whole, memory = stage(root)
    load = os.getloadavg()[0]
    print(f"{rows:,} PNGs of {SIDE}×{SIDE}, {physical_cores()} cores ({platform.machine()}, load {load:.1f})")
    print(f"reading      {alone:6.1f} s  {rows / alone:8,.0f} images/s")
    print(f"stage=check  {whole:6.1f} s  {rows / whole:8,.0f} images/s  peak {memory:,.0f} MB")


if __name__ == "__main__":
    main()
