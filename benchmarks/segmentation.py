"""Masks from random weights: a plain smp loop beside this pipeline, the same seconds a fold, scored on the holdout.

    .venv/bin/python benchmarks/segmentation.py --data DIR --out DIR [--seconds 60] [--sets digits_segmentation]

DIR of --data holds the unzipped dsb2018_nuclei with its solution.csv; digits_segmentation is made by the pipeline.
--out is kept: start the same command again and finished work is reused. The plain side is smp's Unet with a resnet18
encoder, Adam 3e-4, binary cross-entropy, mirrored images, images resized to a square, in fp32; a mask is what is above
one half, and an object a connected piece of it. Ours is the competition's own model, stage=new's for dsb2018_nuclei.
Each side trains the same five folds, --seconds each (ours by train.seconds, measured and recorded once).

Printed: the mean score over the holdout's images of one fold's model and of all five, ours with level 2's nested cut,
and the paired bootstrap interval (95 %) of the difference over images; for digits_segmentation also the best threshold
on brightness, chosen on the training images. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE))
SIZES = {"dsb2018_nuclei": 256, "digits_segmentation": 128}  # of the plain loop's squares
EMBEDDED = "digits_segmentation"  # the pipeline makes it
BATCH, DRAWS = 16, 10_000


def main() -> None:
    """A competition after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the unzipped dsb2018_nuclei")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--sets", default=",".join(SIZES), help="which competitions, with commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, a fold and side")
    parser.add_argument("--plain", nargs=2, metavar=("NAME", "FOLD"), help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="key=value for every command of ours, such as train.threads=1")
    options = parser.parse_intermixed_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    if options.plain:
        plain(options, options.plain[0], int(options.plain[1]))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", flush=True)
    for name in options.sets.split(","):
        compare(options, name)


def project(options: argparse.Namespace, name: str) -> Path:
    """A project folder with this tree's configs; kept if it is there."""
    folder = options.out / name
    if not (folder / "configs").is_dir():
        shutil.copytree(SOURCE / "configs", folder / "configs")
        if name != EMBEDDED:
            pipeline(folder, "stage=new", f"name={name}", f"data={options.data / name}")
    return folder


def pipeline(folder: Path, *arguments: str) -> None:
    """The command line in a project folder."""
    environment = os.environ | {"PIPELINE_ROOT": str(folder)}
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=SOURCE, env=environment, check=True)


def compare(options: argparse.Namespace, name: str) -> None:
    """Train both sides on all folds and print both holdout scores."""
    folder = project(options, name)
    pipeline(folder, "stage=split", f"competition={name}", *options.settings)
    for fold in range(5):
        if not (folder / f"plain{fold}.npz").is_file():
            common = [f"--data={options.data}", f"--out={options.out}", f"--seconds={options.seconds}"]
            subprocess.run([sys.executable, __file__, "--plain", name, str(fold), *common], check=True)
    budget = f"train.seconds={options.seconds:g}"
    for stage in ("train", "predict", "stack"):
        keys = [] if stage == "stack" else [budget]
        pipeline(folder, f"stage={stage}", f"competition={name}", *keys, *options.settings)
    report(folder, name, options)


# --- what is compared ---------------------------------------------------------------------------------------------


def report(folder: Path, name: str, options: argparse.Namespace) -> None:
    """Print the four holdout scores and the differences' intervals."""
    os.environ["PIPELINE_ROOT"] = str(folder)
    from pipeline import config, evaluate
    from pipeline.artefacts import Predictions, run_name, runs_folder
    from pipeline.competition import load
    from pipeline.tables import read_table
    from pipeline.tasks import task_for

    settings = config.compose({"competition": name, "stage": "score"})
    competition = load(settings)
    task: Any = task_for(settings, competition)
    told: Any = competition.masks
    truth = told.read(read_table(competition.folder / "solution.csv"), "the solution")
    order = [told.test[one] for one in truth.source.ids]
    metric: Any = evaluate.metric(settings.metric, task)
    run = runs_folder(settings) / run_name(settings)
    test = competition.test["id"].to_numpy()[order]
    one_fold = Predictions.load(run / "fold0/test.npz").align(test).values
    stacked = Predictions.load(runs_folder(settings) / "level2/stack/test.npz").align(test).values
    maps = [np.load(folder / f"plain{fold}.npz") for fold in range(5)]
    sides = {
        "one fold": (rows(metric, truth, plain_answers(maps[:1], order, task)), rows(metric, truth, one_fold)),
        "five folds": (rows(metric, truth, plain_answers(maps, order, task)), rows(metric, truth, stacked)),
    }
    print(f"\n{name}, holdout of {len(truth)} images, {metric.name}, {options.seconds:g} s a fold")
    print("              plain smp     ours   difference, 95 % of the paired bootstrap")
    for what, (usual, ours) in sides.items():
        low, high = interval(ours - usual)
        gain = (ours - usual).mean()
        print(f"  {what:<11} {usual.mean():9.4f} {ours.mean():8.4f}   {gain:+.4f}  {low:+.4f} … {high:+.4f}")
    if name == EMBEDDED:
        score, level = brightness(competition, metric, truth, order)
        print(f"  best threshold on brightness of the training images ({level}): {score:.4f}")
    print(flush=True)


def rows(metric: Any, truth: Any, values: Any) -> np.ndarray:
    """(N,) the score of each image."""
    return metric.rows(*metric.seen(truth, values))


def interval(difference: np.ndarray) -> tuple[float, float]:
    """95 % of the bootstrap means."""
    generator = np.random.default_rng(0)
    means = [difference[generator.integers(len(difference), size=len(difference))].mean() for _ in range(DRAWS)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


class Answers:
    """Answers of images by row, as a submission would give them."""

    def __init__(self, each: list[np.ndarray]) -> None:
        self.each = each

    def __len__(self) -> int:
        return len(self.each)

    def one(self, row: int) -> np.ndarray:
        """The answer of an image."""
        return self.each[row]


def plain_answers(maps: list[Any], order: list[int], task: Any) -> Answers:
    """The mean of several plain models, above one half; objects are its connected pieces."""
    from skimage.measure import label

    found = []
    for row in order:
        mask = np.mean([one[f"m{row}"].astype(np.float32) for one in maps], axis=0) > 127.5
        objects = task.form.name == "objects"
        found.append(label(mask, connectivity=1).astype(np.int32) if objects else mask[None].astype(np.uint8))
    return Answers(found)


def brightness(competition: Any, metric: Any, truth: Any, order: list[int]) -> tuple[float, str]:
    """The holdout score of the level and direction of brightness that is best on the training images."""
    from pipeline import images

    def masks(files: list[str], level: int, above: bool) -> Answers:
        grey = (images.read(file, competition.folder, channels=1)[..., 0] for file in files)
        return Answers([((one > level) == above).astype(np.uint8)[None] for one in grey])

    train = competition.train["file"].tolist()[:100]
    own = competition.masks.truth(np.arange(len(train)))
    ways = [(level, above) for level in range(16, 256, 16) for above in (True, False)]
    best = max(ways, key=lambda way: np.nanmean(rows(metric, own, masks(train, *way))))
    files = [competition.test["file"].tolist()[row] for row in order]
    return float(np.nanmean(rows(metric, truth, masks(files, *best)))), f"{'>' if best[1] else '≤'} {best[0]}"


# --- the plain loop -----------------------------------------------------------------------------------------------


def plain(options: argparse.Namespace, name: str, fold: int) -> None:
    """The loop that most notebooks hold, on the rows of all folds but one; writes the test maps as uint8."""
    folder = options.out / name
    os.environ["PIPELINE_ROOT"] = str(folder)
    from pipeline import config, images
    from pipeline.competition import load
    from pipeline.folds import read_folds
    from pipeline.pictures import opencv
    from pipeline.torchvision_fix import fix_torchvision

    fix_torchvision()
    import segmentation_models_pytorch as smp
    import torch

    settings = config.compose({"competition": name})
    competition, size = load(settings), SIZES[name]
    told: Any = competition.masks
    kept = np.flatnonzero(read_folds(settings, competition) != fold)
    files = competition.train["file"].tolist()
    truth = told.truth(kept)
    shrink = opencv().INTER_AREA
    pictures = [images.decode(files[row], 3, size, "stretch", folder=competition.folder) for row in kept]
    found = [truth.one(place) for place in range(len(kept))]
    flat = [(one > 0 if one.ndim == 2 else one[0] == 1).astype(np.float32) for one in found]
    targets = torch.tensor(np.stack([opencv().resize(one, (size, size), interpolation=shrink) for one in flat]))[
        :, None
    ]
    pixels = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(fold)
    model = smp.Unet("resnet18", encoder_weights=None, classes=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    began, epochs = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        for rows_ in torch.randperm(len(pixels)).split(BATCH):
            if len(rows_) < 2 or time.perf_counter() - began >= options.seconds:
                break
            image, target = pixels[rows_], targets[rows_]
            if torch.rand(()) < 0.5:
                image, target = image.flip(-1), target.flip(-1)
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(image), target).backward()
            optimizer.step()
        epochs += 1
    model.eval()
    answers = {}
    with torch.no_grad():
        for row, file in enumerate(competition.test["file"].tolist()):
            own = images.read(file, competition.folder, channels=3)
            small = opencv().resize(own, (size, size), interpolation=shrink)
            chance = model(torch.tensor(small).permute(2, 0, 1)[None].float() / 255).sigmoid()[0, 0].numpy()
            answers[f"m{row}"] = np.rint(255 * opencv().resize(chance, own.shape[1::-1])).astype(np.uint8)
    np.savez(folder / f"plain{fold}.npz", **answers)
    print(json.dumps({"plain": name, "fold": fold, "epochs": epochs}), flush=True)


if __name__ == "__main__":
    main()
