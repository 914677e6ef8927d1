"""Seconds from the start of a process to the end of its first training step: this pipeline beside a plain loop.

    .venv/bin/python benchmarks/startup.py [--rounds 5]      under 2 minutes on 2 idle cores

Both train a resnet18 on 256 drawn PNGs of 32 × 32, from random weights. The plain script imports torch, timm and
albumentations, opens a DataLoader with 2 workers and steps once; ours is ``stage=train fold=0`` with its tables, folds,
cache, config and checkpoint folder, stopped after the first optimizer step. The sides take turns; one round to warm up
does not count (it builds our decoded cache and the folds). The ratio is the median over the rounds. Both use the GPU if
there is one; without albumentations the plain script is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPETITION = """\
task: multiclass
data:
  folder: data
  train_csv: train.csv
  sample: sample_submission.csv
models: [resnet18]
pretrained: false
image_size: 32
batch_size: 64
folds:
  count: 2
"""


def plain(folder: Path) -> None:
    """The usual script, up to its first step."""
    sys.path.insert(0, str(HERE.parent))
    from pipeline.torchvision_fix import fix_torchvision

    fix_torchvision()  # without it, timm does not import beside a CPU build of torch
    import albumentations as A
    import cv2
    import timm
    import torch
    from albumentations.pytorch import ToTensorV2

    class Files(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.paths = sorted((folder / "data/train_images").iterdir())
            self.transform = A.Compose([A.HorizontalFlip(p=0.5), A.Normalize(), ToTensorV2()])

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
            image = cv2.cvtColor(cv2.imread(str(self.paths[item])), cv2.COLOR_BGR2RGB)
            return self.transform(image=image)["image"], item % 2

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = torch.utils.data.DataLoader(Files(), 64, shuffle=True, num_workers=2, pin_memory=device == "cuda")
    model = timm.create_model("resnet18", num_classes=2).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    batch, targets = next(iter(loader))
    torch.nn.functional.cross_entropy(model(batch.to(device)), targets.to(device)).backward()
    optimizer.step()
    told()


def ours(folder: Path) -> None:
    """stage=train, stopped after its first optimizer step."""
    sys.path.insert(0, str(HERE.parent))
    os.environ["PIPELINE_ROOT"] = str(folder)
    import runpy

    class Stop:
        """Looks for the engine when the trainer imports it, and has its first step told."""

        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "pipeline.training":  # the engine itself is then there, or about to be
                sys.meta_path.remove(self)  # type: ignore[arg-type]
                from pipeline import engine

                step = engine._optimizer_step

                def first(*arguments: object) -> None:
                    step(*arguments)
                    told()

                engine._optimizer_step = first  # type: ignore[assignment]

    sys.meta_path.insert(0, Stop())  # type: ignore[arg-type]
    sys.argv = ["pipeline", "stage=train", "competition=start", "fold=0", "run=again", "overwrite=true"]
    runpy.run_module("pipeline", run_name="__main__")


def told() -> None:
    """Say that the step is done, and end at once."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print("first step", flush=True)
    os._exit(0)


def draw(folder: Path) -> None:
    """The competition in Kaggle's form."""
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    for name, count in (("train", 256), ("test", 8)):
        (folder / f"data/{name}_images").mkdir(parents=True)
        for row in range(count):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"data/{name}_images/{name}{row:04d}.png"), pixels)
    train = "".join(f"train{row:04d},{'ab'[row % 2]}\n" for row in range(256))
    (folder / "data/train.csv").write_text("id,label\n" + train)
    (folder / "data/sample_submission.csv").write_text("id,label\n" + "".join(f"test{r:04d},a\n" for r in range(8)))
    (folder / "configs/competition").mkdir(parents=True)
    for name in ("default.yaml", "model/resnet18.yaml"):
        (folder / "configs" / name).parent.mkdir(exist_ok=True)
        (folder / "configs" / name).write_text((HERE.parent / "configs" / name).read_text())
    (folder / "configs/competition/start.yaml").write_text(COMPETITION)


def seconds(side: str, folder: Path) -> float:
    """From the start of a process of that side to the line that tells its first step."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--child", side, "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.strip() == "first step":
                return time.perf_counter() - began
    raise SystemExit(f"{side} made no step:\n{''.join(said)}")


def header() -> str:
    """What the figures depend on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU was seen"
    chip = platform.processor() or platform.machine()
    return f"{datetime.date.today()}  {gpu}; {chip}, {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--child", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        {"plain": plain, "ours": ours}[asked.child](asked.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder)
        sides = ("plain", "ours") if importlib.util.find_spec("albumentations") else ("ours",)
        rounds = [[seconds(side, folder) for side in sides] for _ in range(asked.rounds + 1)][1:]
    print(header())
    for side, found in zip(sides, zip(*rounds, strict=True), strict=True):
        name = {"ours": "pipeline"}.get(side, side)
        print(f"{name:<10}{statistics.median(found):6.2f} s  ({min(found):.2f}–{max(found):.2f})")
    if len(sides) == 1:
        print("albumentations is not installed: the plain script is left out")
        return
    print(f"plain / pipeline {statistics.median(a / b for a, b in rounds):.2f} (≥ 1)")


if __name__ == "__main__":
    main()
