"""Small images from random weights: the whole recipe, and one fold against a plain resnet18 loop of the same seconds.

    .venv/bin/python benchmarks/small_images.py --recipe --data DIR --out DIR [--sets cifar10] [key=value …]
    .venv/bin/python benchmarks/small_images.py --fold0 --data DIR --out DIR [--quick]

DIR of --data holds the unzipped competitions fashion_mnist and cifar10, 6,000 and 8,000 training images of 10 classes,
each with a solution.csv. --out is kept: start the same command again and finished work is reused.

--recipe runs recipe=small_images on five folds by the command line, and prints each run's OOF, the nested score with
its standard error, the minutes, and beside them the holdout that stage=score reads once.

--fold0 times the usual loop first (timm's resnet18, Adam 3e-4, 10 epochs, fp32, a DataLoader that reads the files,
mirrored images where the data allow), as a process of its own from its start to its score. Then model=small_image gets
the seconds that took, less what a process needs to start, as train.seconds; its process is timed in the same way. Run
it on an idle machine: other busy processes cost each side differently.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
SHIFTS = "shift(x=1,y=0),shift(x=-1,y=0),shift(x=0,y=1),shift(x=0,y=-1)"
START_SECONDS = 12.0  # of a process of ours that train.seconds does not count: imports, tables, decoding, last files


@dataclass(frozen=True)
class Case:
    """A competition, what is known of it beyond its folder, and the least scores aimed at."""

    name: str
    channels: int
    settings: tuple[str, ...]
    fold0: float
    nested: float

    @property
    def mirrored(self) -> bool:
        """Whether a mirrored image keeps its label."""
        return "symmetry=hflip" in self.settings


CASES = (
    Case("fashion_mnist", 1, ("augment=pad_crop(pad=2)", f"views=identity(),{SHIFTS}"), 0.895, 0.91),
    Case(
        "cifar10",
        3,
        ("symmetry=hflip", "augment=pad_crop_flips()", f"views=identity(),hflip(),{SHIFTS}"),
        0.79,
        0.84,
    ),
)


def main() -> None:
    """Do what was asked for, a competition after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", action="store_true", help="five folds, views, distillation and level 2")
    what.add_argument("--fold0", action="store_true", help="one fold in the seconds of a plain loop")
    what.add_argument("--plain", choices=[case.name for case in CASES], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the unzipped competitions")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--sets", default=",".join(case.name for case in CASES), help="which of them, with commas")
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that it works; the scores mean nothing")
    parser.add_argument("settings", nargs="*", help="key=value for every command, such as train.threads=1")
    options = parser.parse_intermixed_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    if options.plain:
        plain(next(case for case in CASES if case.name == options.plain), options)
        return
    side = recipe if options.recipe else fold0
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", flush=True)
    cases = {case.name: case for case in CASES}
    for name in options.sets.split(","):
        side(cases[name], options)


def project(case: Case, options: argparse.Namespace, *settings: str) -> Path:
    """A project folder with this tree's configs, and the competition's written by stage=new; kept if it is there."""
    folder = options.out / case.name
    for kind in ("model", "recipe"):
        shutil.copytree(SOURCE / "configs" / kind, folder / "configs" / kind, dirs_exist_ok=True)
    if not (folder / f"configs/competition/{case.name}.yaml").is_file():
        (folder / "configs/competition").mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / "configs/default.yaml", folder / "configs")
        pipeline(folder, "stage=new", f"name={case.name}", f"data={options.data / case.name}", *settings)
    return folder


def pipeline(folder: Path, *arguments: str) -> float:
    """Run the command line in a project folder; returns the seconds of the process."""
    began = time.perf_counter()
    environment = os.environ | {"PIPELINE_ROOT": str(folder)}
    answer = subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=SOURCE, env=environment)
    if answer.returncode:
        raise SystemExit(answer.returncode)
    return time.perf_counter() - began


# --- the whole recipe ---------------------------------------------------------------------------------------------


def recipe(case: Case, options: argparse.Namespace) -> None:
    """Train, predict, distil, stack, submit, score; print what the recipe's closing table was made from."""
    folder = project(case, options, *case.settings)
    quick = ["epochs=1"] if options.quick else []
    timing, began = folder / "seconds.json", time.perf_counter()
    total = json.loads(timing.read_text()) if timing.is_file() else 0.0
    try:
        pipeline(folder, "stage=all", f"competition={case.name}", "recipe=small_images", *quick, *options.settings)
    finally:
        total += time.perf_counter() - began
        timing.write_text(json.dumps(total))
    rows = json.loads((folder / f"runs/{case.name}/recipe-small_images.json").read_text())
    print(f"\n{case.name}: recipe=small_images, {total / 60:.0f} minutes, all its calls together")
    for row in rows:
        for name, figure in (("OOF", row["score"]), ("nested", row["nested"]), ("holdout", row["private"])):
            if figure and row["step"] in ("predict", "distill", "stack", "score"):
                print(f"  {row['run']:<28} {figure}" + ("" if name in figure else f" {name}"))
    print(f"  aimed at: {case.nested} nested\n", flush=True)


# --- one fold -----------------------------------------------------------------------------------------------------


def fold0(case: Case, options: argparse.Namespace) -> None:
    """The plain loop, then ours in no more seconds; both accuracies are of fold 0."""
    folder = project(case, options, *case.settings)
    pipeline(folder, "stage=split", f"competition={case.name}")
    began = time.perf_counter()
    command = [sys.executable, __file__, "--plain", case.name, f"--data={options.data}", f"--out={options.out}"]
    subprocess.run([*command, *(["--quick"] if options.quick else [])], check=True)
    usual = time.perf_counter() - began
    before = json.loads((folder / "plain.json").read_text())
    budget = max(usual - START_SECONDS, 1.0)
    shutil.rmtree(folder / "cache", ignore_errors=True)  # the decoding is part of the time
    ours = pipeline(
        folder, "stage=train", f"competition={case.name}", "model=small_image", "run=fold0", "fold=0",
        f"train.seconds={budget:.0f}", "loss=cross_entropy(smoothing=0.1)", "overwrite=true", *options.settings,
    )  # fmt: skip
    found = json.loads((folder / f"runs/{case.name}/fold0/fold0/train.json").read_text())
    print(f"\n{case.name}, fold 0                accuracy  seconds  epochs")
    print(f"  plain resnet18, Adam 3e-4      {before['accuracy']:.4f}  {usual:7.0f}  {before['epochs']:6}")
    print(f"  model=small_image              {found['scores'][-1]:.4f}  {ours:7.0f}  {found['epochs']:6}")
    print(f"  aimed at: {case.fold0} in no more seconds; {'in time' if ours <= usual else 'TOO SLOW'}\n", flush=True)


def plain(case: Case, options: argparse.Namespace) -> None:
    """The loop that most notebooks hold; writes plain.json."""
    import torch

    sys.path.insert(0, str(SOURCE))
    from pipeline.torchvision_fix import fix_torchvision

    fix_torchvision()
    import timm

    folder = options.out / case.name
    rows = {name: Rows(case, options.data / case.name, folder, name == "valid") for name in ("train", "valid")}
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10, in_chans=case.channels)
    loader = torch.utils.data.DataLoader(rows["train"], 64, shuffle=True, drop_last=True, num_workers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    epochs = 1 if options.quick else 10
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        accuracy = _accuracy(model, torch.utils.data.DataLoader(rows["valid"], 256, num_workers=2))
    (folder / "plain.json").write_text(json.dumps({"accuracy": accuracy, "epochs": epochs}))


class Rows:
    """The rows of fold 0, or all others: (image (C, H, W) float32 normalised, label), read from the file each time."""

    def __init__(self, case: Case, data: Path, folder: Path, valid: bool) -> None:
        with open(folder / f"folds/{case.name}.csv", encoding="utf-8") as handle:
            table = [row for row in csv.DictReader(handle) if (row["fold"] == "0") == valid]
        classes = sorted({row["label"] for row in table})
        files = {path.stem: path for path in (data / "train_images").iterdir()}
        self.items = [(str(files[row["id"]]), classes.index(row["label"])) for row in table]
        self.channels, self.flip = case.channels, case.mirrored and not valid

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple:
        import cv2
        import torch

        path, label = self.items[place]
        image = cv2.imread(path, cv2.IMREAD_COLOR if self.channels == 3 else cv2.IMREAD_GRAYSCALE)
        if self.channels == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        tensor = torch.from_numpy(image.reshape(*image.shape[:2], self.channels)).permute(2, 0, 1).float() / 255
        if self.flip and float(torch.rand(())) < 0.5:
            tensor = tensor.flip(-1)
        return (tensor - 0.5) / 0.25, label


def _accuracy(model: object, loader: object) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        hits = [(model(images).argmax(1) == labels).float() for images, labels in loader]
    return float(torch.cat(hits).mean())


if __name__ == "__main__":
    main()
