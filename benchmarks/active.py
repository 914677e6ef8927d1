"""How many labels stage=select saves: accuracy against labels, beside images chosen at random.

    .venv/bin/python benchmarks/active.py --data DIR --out DIR [--seeds 3] [key=value …]       hours; goes on
    .venv/bin/python benchmarks/active.py --data DIR --out DIR --page docs/active.md           writes page and plot

DIR of --data holds the unzipped fashion_mnist. train.csv begins with --start labels a class, drawn by the seed; all
other training images have none (data.unlabelled). Each round trains, asks for --more labels, which the true labels
answer, and takes them in: stage=train, select, absorb, as a person would. ARMS is the list of ways to choose; they
share the first round. A member of each of three folds is trained for the same optimizer steps in every round and arm,
and their mean is scored on the test images by stage=score; no choice ever sees these images.

Each round is a row in --out/rows: kill it at any time. --share 1/2 and --share 2/2 are two processes that halve the
work. Settings behind the options change all arms alike; rows of other settings do not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline import artefacts
from pipeline.__main__ import main as pipeline
from pipeline.config import parse_arguments

SOURCE = Path(__file__).resolve().parent.parent
NAME, CLASSES, FOLDS, BATCH = "fashion", 10, 3, 32
BASE = (
    "model=small_image", "backbone=small_image(width=16)", f"batch_size={BATCH}", "lr=0.02", "optim=muon()",
    "schedule=one_cycle()", "augment=pad_crop_flips()", "train.threads=1", "train.checkpoint_seconds=1000",
)  # fmt: skip
YAML = f"""\
task: multiclass
metric: accuracy()
symmetry: hflip
data: {{folder: data, channels: 1, unlabelled: train_images}}
folds: {{count: {FOLDS}}}
models: [small_image]
image_size: 28
"""
RANDOM = "random"
ARMS = {  # the criteria that stage=select mixes; none: at random
    RANDOM: (),
    "mixed": ("margin", "disagreement", "diversity"),
    "margin": ("margin",),
    "entropy": ("entropy",),
    "disagreement": ("disagreement",),
    "diversity": ("diversity",),
}
USUAL = "random,mixed"
START = "start"
PRELOAD = ["pandas", "albumentations", "pipeline.parts.optims", "pipeline.training", "pipeline.prediction"]
COLOURS = ("#808891", "#0072b2", "#d55e00", "#009e73", "#b8578f", "#d98a00")  # Okabe & Ito 2008


@dataclass(frozen=True)
class Plan:
    """What is measured: labels a class at the start, labels a round, rounds, and optimizer steps of a member."""

    start: int
    more: int
    rounds: int
    steps: int

    def labels(self, number: int) -> int:
        """Labels that round ``number`` trains on."""
        return self.start * CLASSES + number * self.more

    def epochs(self, number: int) -> int:
        """Epochs that come to the steps, of a member that learns from all folds but one."""
        rows = self.labels(number) * (FOLDS - 1) // FOLDS
        return max(1, round(self.steps / math.ceil(rows / BATCH)))


class Bench:
    """The folder of --out: a project for each arm and seed, and the finished rows."""

    def __init__(self, data: Path, out: Path, plan: Plan, settings: list[str]) -> None:
        self.data, self.out, self.plan, self.settings = data / "fashion_mnist", out, plan, [*BASE, *settings]
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(PRELOAD)
        with (self.data / "train.csv").open(encoding="utf-8") as handle:
            self.truth = {row["id"]: row["label"] for row in csv.DictReader(handle)}

    @property
    def mark(self) -> str:
        """Changes with all that decides a row but its arm, seed and round."""
        return artefacts.fingerprint(
            self.plan.start, self.plan.more, self.plan.steps, sorted(parse_arguments(self.settings).items())
        )

    def project(self, arm: str, seed: int) -> Path:
        """The project of an arm and a seed."""
        return self.out / "projects" / self.mark / f"{arm}-{seed}"

    def path(self, arm: str, seed: int, number: int) -> Path:
        """Where the row of a round lies; the first is of all arms."""
        return self.out / "rows" / self.mark / f"{arm if number else START}-{seed}-{number}.json"

    def row(self, arm: str, seed: int, number: int) -> dict[str, float] | None:
        """The finished row, if there is one."""
        path = self.path(arm, seed, number)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    # --- rounds ---

    def begin(self, arm: str, seed: int) -> None:
        """The project of an arm, with its first round; what all arms share is done once."""
        first = self.project(START, seed)
        first.parent.mkdir(parents=True, exist_ok=True)
        with artefacts.locked(first.parent):
            if not first.is_dir():
                draft = first.with_name(f".{first.name}")
                shutil.rmtree(draft, ignore_errors=True)
                self._write(draft, seed)
                draft.rename(first)
            if self.row(START, seed, 0) is None:
                self.train(START, seed, 0)
            own = self.project(arm, seed)
            if not own.is_dir():
                draft = own.with_name(f".{own.name}")
                shutil.rmtree(draft, ignore_errors=True)
                shutil.copytree(first, draft, symlinks=True)
                draft.rename(own)

    def _write(self, folder: Path, seed: int) -> None:
        """A project whose train.csv holds the first labels alone; the images are links."""
        data = folder / "data"
        data.mkdir(parents=True)
        for name in ("train_images", "test_images", "sample_submission.csv", "solution.csv"):
            (data / name).symlink_to(self.data / name)
        generator, chosen = np.random.default_rng([seed, 0]), []
        for label in sorted(set(self.truth.values())):
            own = sorted(name for name, other in self.truth.items() if other == label)
            chosen += [own[place] for place in generator.permutation(len(own))[: self.plan.start]]
        artefacts.write_text(data / "train.csv", self._csv(chosen, lambda name: name))
        shutil.copytree(SOURCE / "configs", folder / "configs")
        artefacts.write_text(folder / f"configs/competition/{NAME}.yaml", YAML)

    def _csv(self, ids: list[str], called: object) -> str:
        lines = [f"{called(name)},{self.truth[name]}" for name in ids]  # type: ignore[operator]
        return "\n".join(["id,label", *lines]) + "\n"

    def once(self, arm: str, seed: int, number: int) -> None:
        """Choose the labels of a round, unless they are, take them in, and train."""
        labels = self.project(arm, seed) / f"round-{number}.csv"
        if not labels.is_file():
            ids = self.choose(arm, seed, number)
            artefacts.write_text(labels, self._csv(ids, lambda name: f"train_images/{name}.png"))
        self.command(arm, seed, "stage=absorb", f"labels={labels.name}")
        self.train(arm, seed, number)
        shutil.rmtree(self.project(arm, seed) / f"runs/{NAME}/r{number - 1}", ignore_errors=True)

    def choose(self, arm: str, seed: int, number: int) -> list[str]:
        """The ids of a round's images: by the members of the round before, or at random."""
        if ARMS[arm]:
            words = [f"run=r{number - 1}", f"active.count={self.plan.more}", "active.pool=unlabelled", "active.page=0"]
            self.command(arm, seed, "stage=select", f"active.criteria={','.join(ARMS[arm])}", *words)
            table = self.project(arm, seed) / f"runs/{NAME}/r{number - 1}/select.csv"
            with table.open(encoding="utf-8") as handle:
                return [Path(row["id"]).stem for row in csv.DictReader(handle)]
        known = set()
        for file in [self.project(arm, seed) / "data/train.csv", *self.project(arm, seed).glob("round-*.csv")]:
            with file.open(encoding="utf-8") as handle:
                known |= {Path(row["id"]).stem for row in csv.DictReader(handle)}
        left = sorted(set(self.truth) - known)
        return [left[place] for place in np.random.default_rng([seed, number]).permutation(len(left))[: self.plan.more]]

    def train(self, arm: str, seed: int, number: int) -> None:
        """Train the members of a round, score their mean on the test images, and write the row."""
        run, began = f"run=r{number}", time.monotonic()
        words = [*self.settings, f"seed={seed}", f"epochs={self.plan.epochs(number)}"]
        for stage in ("train", "predict"):
            self.command(arm, seed, f"stage={stage}", run, *words)
        self.command(arm, seed, "stage=submit", f"source=r{number}")
        self.command(arm, seed, "stage=score", f"submission=submissions/{NAME}/r{number}.csv")
        facts = {
            "arm": arm, "seed": seed, "round": number, "labels": self.plan.labels(number),
            "accuracy": self.accuracy(arm, seed, number), "seconds": round(time.monotonic() - began, 1),
            "commit": artefacts.commit(),
        }  # fmt: skip
        artefacts.write_json(self.path(arm, seed, number), facts)
        print(f"{arm} seed {seed}: {facts['labels']} labels, {facts['accuracy']:.4f}", flush=True)

    def accuracy(self, arm: str, seed: int, number: int) -> float:
        """What stage=score wrote last of a round's submission."""
        with (self.project(arm, seed) / f"submissions/{NAME}/looks.csv").open(encoding="utf-8") as handle:
            rows = [row for row in csv.DictReader(handle) if f"r{number}.csv" in row["submission"]]
        return float(rows[-1]["all"])

    def command(self, arm: str, seed: int, *words: str) -> None:
        """A command of the pipeline in a process of its own; what it says goes to a log."""
        log = self.project(arm, seed) / "last.log"
        process = self.server.Process(target=child, args=(self.project(arm, seed), words, log))
        process.start()
        process.join()
        if process.exitcode in (130, -2, -9, -15):
            raise KeyboardInterrupt
        if process.exitcode:
            raise SystemExit(f"{' '.join(words)}\n{log.read_text(encoding='utf-8')}")


def child(project: Path, words: tuple[str, ...], log: Path) -> None:
    """A process that does one command in a project."""
    with log.open("w", encoding="utf-8") as handle:
        os.dup2(handle.fileno(), sys.stdout.fileno())
        os.dup2(handle.fileno(), sys.stderr.fileno())
    os.environ["PIPELINE_ROOT"] = str(project)
    sys.exit(pipeline([*words, f"competition={NAME}"]))


def run(bench: Bench, arms: list[str], seeds: int, share: str) -> None:
    """Every arm of every seed, round after round, what is not finished yet."""
    mine, shares = (int(part) for part in share.split("/"))
    chains = [(arm, seed) for seed in range(seeds) for arm in arms]
    for place, (arm, seed) in enumerate(chains):
        if place % shares != mine % shares:
            continue
        rounds = range(1, bench.plan.rounds + 1)
        if all(bench.row(arm, seed, number) for number in [0, *rounds]):
            continue
        bench.begin(arm, seed)
        for number in rounds:
            if bench.row(arm, seed, number) is None:
                bench.once(arm, seed, number)
        shutil.rmtree(bench.project(arm, seed), ignore_errors=True)


# --- the page -----------------------------------------------------------------------------------------------------


def curves(bench: Bench, seeds: int) -> dict[str, np.ndarray]:
    """(seeds, rounds + 1) accuracies of each arm whose rows are all there for as many seeds as random choice has."""
    found: dict[str, np.ndarray] = {}
    for arm in ARMS:
        rows = [[bench.row(arm, seed, number) for number in range(bench.plan.rounds + 1)] for seed in range(seeds)]
        if all(row for each in rows for row in each):
            found[arm] = np.array([[row["accuracy"] for row in each if row] for each in rows])
    return found


def reached(labels: np.ndarray, scores: np.ndarray, wanted: float) -> float:
    """The labels at which a curve first comes to an accuracy, on straight lines between its rounds; NaN: never."""
    for place, score in enumerate(scores):
        if score >= wanted:
            if place == 0:
                return float(labels[0])
            part = (wanted - scores[place - 1]) / (score - scores[place - 1])
            return float(labels[place - 1] + part * (labels[place] - labels[place - 1]))
    return math.nan


def spread(values: np.ndarray) -> float:
    """The standard error of a mean over seeds; 0 of one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def page(bench: Bench, seeds: int, picture: str) -> str:
    """docs/active.md, from what is finished."""
    found = curves(bench, seeds)
    if RANDOM not in found:
        raise SystemExit("random choice is not finished yet; start without --page")
    labels = np.array([bench.plan.labels(number) for number in range(bench.plan.rounds + 1)])
    base, arms = found.pop(RANDOM), list(found)
    settings = " ".join(f"{key}={value}" for key, value in parse_arguments(bench.settings).items())
    lines = [
        "# How many labels selection saves", "",
        "Written by `benchmarks/active.py`, never by hand: [stage=select](labelling.md) against random choice.", "",
        f"- Data: fashion_mnist, {bench.plan.start} labels a class at the start and {bench.plan.more} more a round, "
        f"out of {len(bench.truth):,} training images; accuracy on test images, which no choice sees; seeds: {seeds}.",
        f"- {FOLDS} members of `{settings}`, {bench.plan.steps} optimizer steps each in every round.",
        "- `±` is the standard error over seeds; gains are paired by seed. An arm mixes these criteria alike: "
        + "; ".join(f"{arm}: {', '.join(ARMS[arm])}" for arm in arms) + ".",
        "", f"![Accuracy against labels, an arm a line]({picture})", "",
        f"| labels | random | {' | '.join(f'{arm}, its gain' for arm in arms)} |", "|---|---|" + "---|" * len(arms),
    ]  # fmt: skip
    for place, count in enumerate(labels):
        cells = [f"{base[:, place].mean():.4f} ± {spread(base[:, place]):.4f}"]
        for arm in arms:
            gain = found[arm][:, place] - base[:, place]
            cells.append(f"{found[arm][:, place].mean():.4f}, {gain.mean():+.4f} ± {spread(gain):.4f}")
        lines.append(f"| {count} | {' | '.join(cells)} |")
    lines += ["", *savings(labels, base.mean(axis=0), {arm: found[arm].mean(axis=0) for arm in arms})]
    return "\n".join(lines) + "\n"


def savings(labels: np.ndarray, base: np.ndarray, found: dict[str, np.ndarray]) -> list[str]:
    """What share of random's labels each arm needs for the accuracy of each of random's rounds."""
    told = "Labels of an arm for the mean accuracy that random choice has with so many, and their share:"
    head = [f"| random's labels | accuracy | {' | '.join(found)} |", "|---|---|" + "---|" * len(found)]
    lines = ["## The same accuracy with fewer labels", "", told, "", *head]
    for place, count in enumerate(labels[1:], 1):
        cells = []
        for scores in found.values():
            need = reached(labels, scores, base[place])
            cells.append("not reached" if math.isnan(need) else f"{need:.0f} ({need / count:.0%})")
        lines.append(f"| {count} | {base[place]:.4f} | {' | '.join(cells)} |")
    lines.append("")
    for arm, scores in found.items():
        need = reached(labels, scores, base[-1])
        share = need / labels[-1]
        said = "never reaches" if math.isnan(need) else f"needs {share:.0%} of the labels for"
        goal = (
            "" if math.isnan(need) else f": {'at most' if share <= 0.7 else 'more than'} the 70 % that were hoped for"
        )
        lines.append(f"- {arm} {said} what random choice has with {labels[-1]} labels ({base[-1]:.4f}){goal}.")
    return lines


def draw(bench: Bench, seeds: int, path: Path) -> None:
    """The curves as an svg, readable on light and dark pages; the same rows give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "active", "font.family": "DejaVu Sans"}
    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.add_subplot()
    labels = [bench.plan.labels(number) for number in range(bench.plan.rounds + 1)]
    for place, (arm, scores) in enumerate(curves(bench, seeds).items()):
        mean, error = scores.mean(axis=0), np.array([spread(column) for column in scores.T])
        style = {"color": COLOURS[place], "marker": "os^vDP"[place], "ms": 4, "lw": 1.8}
        axes.errorbar(labels, mean, yerr=error, label=arm, capsize=2, elinewidth=1, **style)
    axes.set(xlabel="labels", ylabel="accuracy on the test images")
    axes.legend(frameon=False, labelcolor="#808891")
    axes.grid(color="#808891", alpha=0.25)
    for part in (*axes.spines.values(), axes.xaxis.label, axes.yaxis.label):
        part.set_color("#808891")
    axes.tick_params(colors="#808891")
    figure.tight_layout()
    with artefacts.atomic(path) as handle:
        figure.savefig(handle, format="svg", transparent=True, metadata={"Date": None})


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds fashion_mnist, unzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=20, help="labels a class at the start")
    parser.add_argument("--more", type=int, default=100, help="labels a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of a member in every round")
    parser.add_argument("--arms", default=USUAL, help=f"of {', '.join(ARMS)}")
    parser.add_argument("--page", type=Path, help="write the page and its plot from what is finished, train nothing")
    parser.add_argument("--share", default="1/1", help="2/3: the second of three processes that share the work")
    parser.add_argument("settings", nargs="*", help="key=value for all arms alike")
    options = parser.parse_intermixed_args()
    arms = options.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms: there is no {', '.join(unknown)}; there are {', '.join(ARMS)}")
    plan = Plan(options.start, options.more, options.rounds, options.steps)
    bench = Bench(options.data.resolve(), options.out.resolve(), plan, options.settings)
    if options.page:
        picture = options.page.with_suffix(".svg")
        artefacts.write_text(options.page, page(bench, options.seeds, picture.name))
        draw(bench, options.seeds, picture)
    else:
        run(bench, arms, options.seeds, options.share)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
