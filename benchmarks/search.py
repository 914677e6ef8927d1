"""A network that stage=search finds, against resnet18 on fashion_mnist, each trained for as many CPU seconds.

    .venv/bin/python benchmarks/search.py --data DIR --out DIR [--seeds 3] [key=value …]     an hour or two; goes on
    .venv/bin/python benchmarks/search.py --data DIR --out DIR --page docs/search.md         writes the table there

DIR of --data holds the unzipped fashion_mnist (6,000 training images of 10 classes, with solution.csv). First the
search, on folds 1 to 4: fold 0 is what all are judged by, and the search reads nothing of it. Then each contender
trains for one epoch and for three, which tells its seconds an epoch; plan.json says how many epochs fit into
--seconds (0: what ten epochs of resnet18 take) before any score is seen. Then (contender, seed) after (contender,
seed) is a process of its own and a file in --out/rows: fold 0 is trained, its rows and the test images are predicted,
and stage=score reads the holdout. Kill it at any time.

Seconds of trainings are the processor's, not the clock's, since machines are shared; those of the search are its
trials' by the clock. key=value changes all trainings (train.threads=1; epochs are the plan's), search.* the search.
The difference from resnet18 is paired by seed and row; its standard error is the larger of two: over rows, and over
seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline import artefacts, config
from pipeline.__main__ import main as pipeline

SOURCE = Path(__file__).resolve().parent.parent
NAME = "fashion_mnist"
COMPETITION = ("image_size=28", "batch_size=64", "augment=pad_crop(pad=2)")
COMMON = ("train.threads=1", "pretrained=false")
SEARCH = (
    "model=small_image", "search.name=found", "search.trials=24", "search.epochs=3",
    "search.strategy=evolution(population=8,sample=3)", "search.cost=milliseconds", "search.choose=cheapest",
    "search.space=small(kernels=[3,5],widths=[8,16,24],depths=[1,2],groups=[1],expansions=[2,4],pools=['max'])",
)  # fmt: skip
BASE = "resnet18"
CONTENDERS = {
    "searched": ("model=found",),
    "small_image": ("model=small_image",),
    BASE: ("model=resnet18",),
    "resnet18, small_image's recipe": ("model=small_image", "backbone=resnet18"),
    "resnet18 with stem=small(), the same": ("model=small_image", "backbone=resnet18", "stem=small()"),
}
USUAL_EPOCHS = 10  # of resnet18, where --seconds does not say otherwise
SHORT, LONG = 1, 3  # epochs by whose difference an epoch is timed: what comes before the first drops out
PRELOAD = ["pandas", "albumentations", "pipeline.parts.optims", "pipeline.training"]
BEGIN, END = "<!-- written by benchmarks/search.py -->\n", "<!-- end -->\n"


class Bench:
    """The folder of --out: a project, the plan and the finished rows."""

    def __init__(self, data: Path, out: Path, settings: list[str]) -> None:
        self.data, self.out, self.project = data / NAME, out, out / "project"
        self.search = [one for one in settings if one.startswith("search.")]
        self.common = [*COMMON, *(one for one in settings if not one.startswith("search."))]
        os.environ["PIPELINE_ROOT"] = str(self.project)
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(PRELOAD)

    def prepare(self) -> None:
        """The project's configs and folds."""
        for kind in ("model", "recipe"):
            shutil.copytree(SOURCE / "configs" / kind, self.project / "configs" / kind, dirs_exist_ok=True)
        if not (self.project / f"configs/competition/{NAME}.yaml").is_file():
            (self.project / "configs/competition").mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCE / "configs/default.yaml", self.project / "configs")
            self.command("stage=new", f"name={NAME}", f"data={self.data}", *COMPETITION)
        self.command("stage=split", f"competition={NAME}")

    def command(self, *words: str) -> float:
        """One command in a process of its own, whose imports are made; returns its CPU seconds."""
        facts, log = self.out / "child.json", self.out / "last.log"
        facts.unlink(missing_ok=True)
        process = self.server.Process(target=child, args=([*words], facts, log))
        process.start()
        process.join()
        if process.exitcode in (130, -2, -9, -15):
            raise KeyboardInterrupt
        if process.exitcode:
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            raise SystemExit("\n".join([" ".join(words), *lines[-3:]]))
        return float(json.loads(facts.read_text(encoding="utf-8"))["seconds"])

    def words(self, contender: str, epochs: int, seed: int = 0) -> list[str]:
        """The settings of a training, each key once."""
        given = [f"competition={NAME}", "fold=0", f"seed={seed}", *self.common, *CONTENDERS[contender],
                 f"epochs={epochs}"]  # fmt: skip
        return [f"{key}={value}" for key, value in config.parse_arguments(given).items()]

    def find(self) -> None:
        """The search, which goes on by itself and does nothing twice."""
        asked = config.parse_arguments([*self.common, *SEARCH, *self.search])
        words = [f"{key}={value}" for key, value in asked.items()]
        print("searching …", flush=True)
        self.command("stage=search", f"competition={NAME}", *words)

    def plan(self, seconds: float) -> dict[str, Any]:
        """The epochs of each contender, measured and written once."""
        path = self.out / "plan.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        costs = {}
        for contender in CONTENDERS:
            taken = []
            for epochs in (SHORT, LONG):
                taken.append(self.command("stage=train", *self.words(contender, epochs), "run=timed", "overwrite=true"))
            costs[contender] = (taken[1] - taken[0]) / (LONG - SHORT)
            print(f"{contender}: {costs[contender]:.1f} s an epoch", flush=True)
        shutil.rmtree(self.project / f"runs/{NAME}/timed", ignore_errors=True)
        whole = seconds or USUAL_EPOCHS * costs[BASE]
        plan = {"seconds": whole, "an epoch": costs,
                "epochs": {name: max(1, int(whole / cost)) for name, cost in costs.items()}}  # fmt: skip
        artefacts.write_json(path, plan)
        return plan

    def path(self, contender: str, seed: int) -> Path:
        """Where a row lies."""
        return self.out / "rows" / f"{list(CONTENDERS).index(contender)}-{seed}.json"

    def row(self, contender: str, seed: int) -> dict[str, Any] | None:
        """A finished row."""
        path = self.path(contender, seed)
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def train(self, contender: str, seed: int, epochs: int) -> dict[str, Any]:
        """Train fold 0, predict, read the holdout, write the row, throw the weights away."""
        run = self.project / f"runs/{NAME}/bench"
        shutil.rmtree(run, ignore_errors=True)
        words = [*self.words(contender, epochs, seed), "run=bench"]
        seconds = self.command("stage=train", *words)
        self.command("stage=predict", *words)
        name = f"bench-{self.path(contender, seed).stem}"
        csv_file = f"submissions/{NAME}/{name}.csv"
        self.command("stage=submit", f"competition={NAME}", "source=bench", "fold=0", f"submission={csv_file}")
        self.command("stage=score", f"competition={NAME}", f"submission={csv_file}")
        with (self.project / f"submissions/{NAME}/looks.csv").open(encoding="utf-8") as handle:
            holdout = float([*csv.DictReader(handle)][-1]["all"])
        hits = self.hits(run)
        row = {"contender": contender, "seed": seed, "epochs": epochs, "seconds": seconds, "holdout": holdout,
               "hits": "".join(str(int(hit)) for hit in hits), "weights": self.weights(run), "settings": words,
               "commit": artefacts.commit()}  # fmt: skip
        artefacts.write_json(self.path(contender, seed), row)
        shutil.rmtree(run)
        return row

    def hits(self, run: Path) -> list[bool]:
        """Whether each row of fold 0 is right, in one order for all."""
        found = artefacts.Predictions.load(run / "fold0/oof.npz")
        with (self.data / "train.csv").open(encoding="utf-8") as handle:
            labels = {row["id"]: row["label"] for row in csv.DictReader(handle)}
        classes, ids = sorted(set(labels.values())), sorted(found.ids.tolist())
        best = found.align(ids).values.argmax(1)
        return [labels[name] == classes[at] for name, at in zip(ids, best, strict=True)]

    @staticmethod
    def weights(run: Path) -> int:
        """The weights of the trained network, head included."""
        import torch

        network = torch.load(run / "fold0/best.ckpt", weights_only=True)["network"]
        return sum(one.numel() for name, one in network.items() if "running" not in name and "tracked" not in name)


def child(words: list[str], facts: Path, log: Path) -> None:
    """A process that does one command and writes what it took; what it says goes to its log."""
    with log.open("w", encoding="utf-8") as handle:
        os.dup2(handle.fileno(), sys.stdout.fileno())
        os.dup2(handle.fileno(), sys.stderr.fileno())
    began = time.process_time()
    code = pipeline(words)
    if not code:
        artefacts.write_json(facts, {"seconds": time.process_time() - began})
    sys.exit(code)


# --- the page -----------------------------------------------------------------------------------------------------


def paired(ours: list[str], base: list[str]) -> tuple[float, float]:
    """Hits of each seed → the mean difference and its error, the larger of rows' and seeds'."""
    each = [np.array([[int(hit) for hit in row] for row in side], dtype=np.float64) for side in (ours, base)]
    differences = each[0] - each[1]
    by_row, by_seed = differences.mean(axis=0), differences.mean(axis=1)
    error = by_row.std(ddof=1) / np.sqrt(len(by_row))
    if len(by_seed) > 1:
        error = max(error, by_seed.std(ddof=1) / np.sqrt(len(by_seed)))
    return float(by_seed.mean()), float(error)


def spread(values: list[float]) -> str:
    """Mean ± standard error over seeds."""
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


def report(bench: Bench, seeds: int) -> str:
    """The block of the page."""
    plan = json.loads((bench.out / "plan.json").read_text(encoding="utf-8"))
    with (bench.project / f"runs/{NAME}/search/found/trials.csv").open(encoding="utf-8") as handle:
        trials = [float(row["seconds"]) for row in csv.DictReader(handle)]
    rows = {name: [row for seed in range(seeds) if (row := bench.row(name, seed))] for name in CONTENDERS}
    there = [seed for seed in range(seeds) if all(bench.row(name, seed) for name in CONTENDERS)]
    if not there:
        raise SystemExit("no seed is finished for all contenders yet; run it without --page first")
    rows = {name: [row for row in found if row["seed"] in there] for name, found in rows.items()}
    base = [row["hits"] for row in rows[BASE]]
    lines = [
        f"`benchmarks/search.py`: fold 0 of fashion_mnist, which the search never read, {len(there)} seeds, "
        f"{plan['seconds']:.0f} CPU seconds of training each on one thread; the search's {len(trials)} short trainings "
        f"took {sum(trials):.0f} seconds by the clock. "
        "± is over seeds; the last column is paired by seed and row.",
        "",
        "| | weights | epochs | seconds | OOF of fold 0 | holdout | over resnet18 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        gain, error = paired([row["hits"] for row in found], base)
        oof = spread([row["hits"].count("1") / len(row["hits"]) for row in found])
        seconds = np.mean([row["seconds"] for row in found])
        lines.append(
            f"| {name} | {found[0]['weights']:,} | {found[0]['epochs']} | {seconds:.0f} | {oof} | "
            f"{spread([row['holdout'] for row in found])} | {'' if name == BASE else f'{gain:+.4f} ± {error:.4f}'} |"
        )
    text = (bench.project / "configs/model/found.yaml").read_text(encoding="utf-8")
    network = re.findall(r"^backbone: (.*)$", text, flags=re.MULTILINE)[0]
    return "\n".join([*lines, "", f"What was found: `{network}`.", "", verdict(rows), ""])


def verdict(rows: dict[str, list[dict[str, Any]]]) -> str:
    """In words: against resnet18 as its model file has it, the strongest one, and what the search began with."""
    hits = {name: [row["hits"] for row in found] for name, found in rows.items()}
    strongest = max((name for name in rows if name.startswith(BASE)), key=lambda name: "".join(hits[name]).count("1"))
    said = []
    for other in dict.fromkeys([BASE, strongest, "small_image"]):
        gain, error = paired(hits["searched"], hits[other])
        words = "beats" if gain > 2 * error else "loses to" if gain < -2 * error else "is within two errors of"
        said.append(f"{words} {other} ({gain:+.4f} ± {error:.4f})")
    return f"In the same training time the searched network {', '.join(said)}."


def main() -> None:
    """Search, plan, train what is open; or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the unzipped competitions")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the project and the rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="CPU seconds of a training; 0: ten epochs of resnet18"
    )
    parser.add_argument("--page", type=Path, help="write the table there, between its two comments")
    parser.add_argument("settings", nargs="*", help="key=value, for all trainings; search.* for the search")
    options = parser.parse_intermixed_args()
    bench = Bench(options.data.resolve(), options.out.resolve(), options.settings)
    if options.page:
        before, rest = options.page.read_text(encoding="utf-8").split(BEGIN)
        options.page.write_text(
            before + BEGIN + report(bench, options.seeds) + END + rest.split(END)[1], encoding="utf-8"
        )
        return
    bench.prepare()
    bench.find()
    plan = bench.plan(options.seconds)
    for seed in range(options.seeds):
        for contender in CONTENDERS:
            if bench.row(contender, seed) is None:
                row = bench.train(contender, seed, plan["epochs"][contender])
                share = row["hits"].count("1") / len(row["hits"])
                print(f"seed {seed}  {contender}: OOF {share:.4f}, {row['seconds']:.0f} s", flush=True)
    print(report(bench, options.seeds))


if __name__ == "__main__":
    main()
