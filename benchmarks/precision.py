"""What a number format, a compiler, a thread or a second process changes of a score: digits and cifar10, three seeds.

    .venv/bin/python benchmarks/precision.py --data DIR --out DIR [--seeds 3] [--device cuda]     goes on

DIR of --data holds the unzipped cifar10; digits come with the project. Fold 0 of each is predicted by a small_image
that is trained on the others, in each of WAYS; the difference of accuracy is paired with fp32 by seed and by row, its
standard error is the larger of those over rows and over seeds. "again" is the same command a second time, and "another
seed" tells what chance alone does. Then the weights of the fp32 training predict in each of FORMATS: how far
probabilities move, how many rows change their class, and the score. Kill it at any time: finished rows are files.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from techniques import Row, compare

from pipeline import artefacts, config

SOURCE = Path(__file__).resolve().parent.parent
NET = ("model=small_image", "backbone=small_image(width=16)", "optim=muon()", "lr=0.02", "schedule=one_cycle()")
SETS = {
    "digits": ("epochs=6", "augment=light()"),
    "cifar10": ("epochs=4", "augment=pad_crop_flips()", "symmetry=hflip", "image_size=32"),
}
BASE = "fp32"
WAYS = {  # a way to train → what it sets; seed+N is added to the seed
    BASE: (), "again": (), "another seed": ("seed+1000",), "two threads": ("train.threads=2",),
    "two processes": ("devices=2", "train.threads=2"), "compiled": ("train.compile=true",),
    "bf16": ("precision=bf16",), "bf16, compiled": ("precision=bf16", "train.compile=true"),
    "fp16": ("precision=fp16",),
}  # fmt: skip
FORMATS = ("fp32", "bf16", "fp16")
GPU = ("fp16",)  # a CPU neither trains nor predicts in it


class Bench:
    """The folder of --out: a project, and the finished rows."""

    def __init__(self, data: Path, out: Path, device: str) -> None:
        self.data, self.out, self.device = data, out, device
        self.project = out / "project"
        os.environ["PIPELINE_ROOT"] = str(self.project)

    def prepare(self) -> None:
        """The project's configs and folds."""
        if (self.project / "folds/cifar10.csv").is_file():
            return
        shutil.copytree(SOURCE / "configs", self.project / "configs", dirs_exist_ok=True)
        new = ("stage=new", "name=cifar10", f"data={self.data / 'cifar10'}", "overwrite=true")
        for words in (new, *(("stage=split", f"competition={name}") for name in SETS)):
            self.command(*words)

    def command(self, *words: str) -> None:
        """One command of the project, in a process of its own; its last lines where it fails."""
        run = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(run, cwd=SOURCE, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout[-500:]}{done.stderr[-1500:]}")

    def words(self, name: str, way: str, seed: int) -> list[str]:
        """The command line of a training."""
        own = [word for word in WAYS[way] if not word.startswith("seed+")]
        number = seed + sum(int(word[5:]) for word in WAYS[way] if word.startswith("seed+"))
        common = [f"competition={name}", "fold=0", f"seed={number}", f"device={self.device}", "precision=fp32"]
        settings = config.parse_arguments([*common, "train.threads=1", *NET, *SETS[name], *own])
        return [f"{key}={value}" for key, value in settings.items()]

    def train(self, name: str, way: str, seed: int) -> dict[str, object]:
        """The facts of one training, from its file if it is finished."""
        words = self.words(name, way, seed)
        path = self.out / "rows" / f"{artefacts.fingerprint(words, way)}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        run = f"{way.replace(' ', '-').replace(',', '')}-{seed}"
        self.command("stage=train", f"run={run}", "overwrite=true", *words)
        self.command("stage=predict", f"run={run}", *words)
        folder = self.project / "runs" / name / run / "fold0"
        found = artefacts.Predictions.load(folder / "oof.npz")
        facts: dict[str, object] = {"words": words, "hits": self.hits(name, found.ids.tolist(), found.values)}
        facts["weights"] = artefacts.file_digest(artefacts.weights_file(folder))
        if way == BASE:
            facts["formats"] = {one: self.format(name, folder, one) for one in self.formats()}
        artefacts.write_json(path, facts)
        shutil.rmtree(folder.parent)
        print(f"{name}, seed {seed}, {way}: {str(facts['hits']).count('1') / len(str(facts['hits'])):.4f}", flush=True)
        return facts

    def formats(self) -> list[str]:
        """The formats that the device predicts in."""
        return [one for one in FORMATS if one not in GPU or self.device != "cpu"]

    def ways(self) -> list[str]:
        """The ways to train that the device has."""
        return [one for one in WAYS if one not in GPU or self.device != "cpu"]

    def hits(self, name: str, ids: list[str], values: np.ndarray) -> str:
        """Whether each row's most probable class is right, ids in order."""
        with (self.project / "folds" / f"{name}.csv").open(encoding="utf-8") as handle:
            labels = {row["id"]: row["label"] for row in csv.DictReader(handle)}
        classes = sorted(set(labels.values()))
        chosen = dict(zip(ids, values.argmax(axis=1).tolist(), strict=True))
        return "".join(str(int(classes[chosen[one]] == labels[one])) for one in sorted(ids))

    def format(self, name: str, folder: Path, precision: str) -> dict[str, object]:
        """Fold 0 by the member in a folder, its weights in another format."""
        from pipeline.hardware import Hardware
        from pipeline.prediction import open_member
        from pipeline.runs import Run
        from pipeline.tasks import task_for

        given = [f"competition={name}", f"run={folder.parent.name}", *SETS[name]]  # among them what may be mirrored
        run = Run(config.compose(config.parse_arguments(given)), folder.parent.name)
        run = Run(run.as_trained(), run.name)
        machine = replace(Hardware(**run.stored()["hardware"]), predict=precision)
        member = open_member(folder, run.config, run.competition, task_for(run.config, run.competition), machine)
        rows = np.flatnonzero(run.folds == 0)
        ids = run.competition.train["id"].to_numpy()[rows].tolist()
        values = member.own(rows)
        return {"values": values.tolist(), "hits": self.hits(name, ids, values)}


def table(bench: Bench, seeds: int) -> list[str]:
    """The lines of both tables, of the seeds that are finished."""
    lines = []
    for name in SETS:
        lines += ["", f"{name}, fold 0, {seeds} seeds", f"{'training':<16}accuracy  difference from fp32  same weights"]
        base = [bench.train(name, BASE, seed) for seed in range(seeds)]
        for way in bench.ways():
            lines.append(trained(way, base, [bench.train(name, way, seed) for seed in range(seeds)]))
        lines.append(f"{'prediction':<16}accuracy  difference from fp32  other class  furthest probability")
        lines += [predicted(one, base) for one in bench.formats()]
    return lines[1:]


def trained(way: str, base: list[dict], rows: list[dict]) -> str:
    """The line of one way to train."""
    found = compare([(as_row(row), as_row(other)) for row, other in zip(rows, base, strict=True)])
    same = sum(row["weights"] == other["weights"] for row, other in zip(rows, base, strict=True))
    score = np.mean([as_row(row).hits.mean() for row in rows])
    difference = "" if way == BASE else f"{found.gain:+.4f} ± {found.error:.4f}"
    return f"{way:<16}{score:.4f}    {difference:<21}{'' if way == BASE else f'{same} of {len(rows)}'}".rstrip()


def predicted(precision: str, base: list[dict]) -> str:
    """The line of one format to predict in."""
    pairs = [(row["formats"][precision], row["formats"][BASE]) for row in base]
    found = compare([(as_row(one), as_row(other)) for one, other in pairs])
    values = [(np.array(one["values"]), np.array(other["values"])) for one, other in pairs]
    changed = sum(int((one.argmax(1) != other.argmax(1)).sum()) for one, other in values)
    furthest = max(float(np.abs(one - other).max()) for one, other in values)
    score = np.mean([as_row(one).hits.mean() for one, _ in pairs])
    if precision == BASE:
        return f"{precision:<16}{score:.4f}"
    count = sum(len(one) for one, _ in values)
    difference = f"{found.gain:+.4f} ± {found.error:.4f}"
    return f"{precision:<16}{score:.4f}    {difference:<21}{f'{changed} of {count}':<13}{furthest:.4f}"


def as_row(facts: dict) -> Row:
    """Facts → what ``compare`` takes."""
    return Row(np.array([int(hit) for hit in facts["hits"]]), 0.0)


def main() -> None:
    """Do what was asked for."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10, unzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    bench = Bench(options.data.resolve(), options.out.resolve(), options.device)
    bench.prepare()
    print("\n".join(table(bench, options.seeds)))


if __name__ == "__main__":
    main()
