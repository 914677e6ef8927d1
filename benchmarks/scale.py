"""Memory and time of each stage as a competition grows: 10³, 10⁴ and 10⁵ images, and 10⁶ from the slope.

    .venv/bin/python benchmarks/scale.py
    .venv/bin/python benchmarks/scale.py --rows 1000 10000   a tenth of the work

Half of the images are training rows, half are test rows: PNGs of 16 × 16 in 10 classes, drawn here. A tiny net trains
one epoch on one of two folds; then both folds are trained, and all is predicted, stacked and submitted, each stage in a
process of its own. Printed are the peak of that process's resident memory, pages of its memory maps among it, and its
processor time, which other work on the machine changes little. ``cache`` is what stage=train spends before its first
step on images that were never decoded. A line's slope is that of its last two sizes; the column of 10⁶ continues it,
and is an estimate.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from peaks import taken

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
CLASSES, SIDE, FAR = 10, 16, 1_000_000
MODEL = """\
backbone: small_image(width=4)
pretrained: false
image_size: 16
epochs: 1
batch_size: 256
lr: 3e-3
"""
COMPETITION = """\
task: multiclass
data: {folder: data/drawn}
folds: {count: 2}
models: [tiny]
"""
DECODE = "decode and first epoch, fold 0"
STAGES = {
    "split": ("stage=split",),
    DECODE: ("stage=train", "fold=0"),
    "epoch, fold 1": ("stage=train", "fold=1"),
    "predict, both members": ("stage=predict",),
    "stack": ("stage=stack", "stack.methods=mean,logistic", "stack.decisions=none"),
    "submit": ("stage=submit",),
    "all of it again": (),
}


def main() -> None:
    """A size after the other, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="images, rising")
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    options = parser.parse_args()
    place = options.folder or Path(tempfile.mkdtemp(prefix="scale-"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}")
    try:
        found = [measure(place / str(rows), rows) for rows in options.rows]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    show(options.rows, found)


def measure(root: Path, rows: int) -> dict[str, tuple[float, float]]:
    """(peak GB, processor seconds) of each stage."""
    draw(root, rows)
    found = {}
    for name, words in STAGES.items():
        found[name] = taken(root, *words)
        print(f"  {rows:>9,}  {name:<32}{found[name][0]:6.2f} GB {found[name][1]:8.1f} s", file=sys.stderr, flush=True)
    shutil.rmtree(root)
    return found


def show(sizes: list[int], found: list[dict[str, tuple[float, float]]]) -> None:
    """Two tables: memory, and processor time."""
    far = f"{FAR:,} (estimate)" if len(sizes) > 1 else ""
    for number, title in enumerate(("peak GB", "processor seconds")):
        print(f"\n{title:<34}" + "".join(f"{size:>12,}" for size in sizes) + f"{far:>22}".rstrip())
        for name in STAGES:
            values = [one[name][number] for one in found]
            line = "".join(f"{value:>12.2f}" for value in values)
            print(f"{name:<34}{line}" + (f"{continued(sizes, values):>22.1f}" if len(sizes) > 1 else ""))


def continued(sizes: list[int], values: list[float]) -> float:
    """The line through the last two sizes, at FAR; a falling one stays where it is."""
    slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    return values[-1] + max(0.0, slope) * (FAR - sizes[-1])


# --- what is drawn ------------------------------------------------------------------------------------------------


def draw(root: Path, rows: int) -> None:
    """A project with the competition ``drawn``, in Kaggle's form."""
    folder, labels = root / "data/drawn", np.arange(rows // 2) % CLASSES
    ids = [f"img{number:07d}" for number in range(2 * len(labels))]
    train, test = ids[: len(labels)], ids[len(labels) :]
    for part in ("train_images", "test_images"):
        (folder / part).mkdir(parents=True)
    pictures(folder / "train_images", train, labels)
    pictures(folder / "test_images", test, labels)
    lines = [f"{name},class{label}" for name, label in zip(train, labels.tolist(), strict=True)]
    (folder / "train.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    (folder / "sample_submission.csv").write_text("\n".join(["id,label", *(f"{name},class0" for name in test)]) + "\n")
    for kind in ("competition", "model", "recipe"):
        (root / "configs" / kind).mkdir(parents=True)
    (root / "configs/default.yaml").write_text("competition: drawn\nrecipe: short\n")
    (root / "configs/model/tiny.yaml").write_text(MODEL)
    (root / "configs/competition/drawn.yaml").write_text(COMPETITION)
    steps = ("split", "{stage: train, model: all}", "{stage: predict, model: all}")
    listed = "".join(f"  - {step if step[0] == '{' else f'stage: {step}'}\n" for step in steps)
    (root / "configs/recipe/short.yaml").write_text(f"steps:\n{listed}")


def pictures(folder: Path, names: list[str], labels: np.ndarray) -> None:
    """A noisy bar a picture, whose place tells the class."""
    from pipeline.images import opencv

    def one(place: int) -> None:
        pixels = np.random.default_rng(place).integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[labels[place] + 3, :, :] = 250
        (folder / f"{names[place]}.png").write_bytes(opencv().imencode(".png", pixels)[1].tobytes())

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(len(names))))


if __name__ == "__main__":
    main()
