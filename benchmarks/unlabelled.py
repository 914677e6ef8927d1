"""What images without labels are worth: few labels of fashion_mnist, the rest of its training images without theirs.

    .venv/bin/python benchmarks/unlabelled.py --data DIR --out DIR [--labels 20] [--steps 600] [key=value …]
    .venv/bin/python benchmarks/unlabelled.py --data DIR --out DIR --page docs/unlabelled.md …

The first trains, an hour or two for each number of labels, and goes on where it was; the second writes these numbers'
sections of the page and leaves the others, which may be of other settings and say so.

DIR of --data holds the unzipped fashion_mnist. For each number of labels a class and each seed a competition of its own
is made: the seed draws the labelled rows, and data.unlabelled names the other training images. Every method then trains
all folds, the members' answers to the test images are averaged, and stage=score looks at the solution, once, for the
table alone. METHODS is the list; a method builds on the runs of the one that it names, and one whose stage this version
lacks is left out and said so. Each method is a file in --out/rows: kill it at any time; what was under way begins anew.

All trainings take as many optimizer steps (--steps); a round of pseudo-labels fewer, where not every test image is
sure enough. Seconds are the processor's, of all that a method needs, what
it builds on too, imports left out. --share 1/2 and --share 2/2 are two processes that halve the work, each with one
thread.
Settings behind the options change all methods alike (backbone, folds); rows of other settings do not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline import artefacts, config, stages
from pipeline.__main__ import main as pipeline

SOURCE = Path(__file__).resolve().parent.parent
DATA, CLASSES, IMAGES, TESTED = "fashion_mnist", 10, 8000, 2000  # IMAGES: of train and test together
LABELS = (20, 100, 500)  # a class
BATCH, WIDE = 32, 128  # images a step: of trainings, and of pretraining
BASE = (
    "backbone=small_image(width=8)", "pretrained=false", "optim=muon()", "schedule=one_cycle()", "lr=0.02",
    "image_size=28", f"batch_size={BATCH}", "augment=pad_crop_flips(pad=2)", "train.threads=1", "precision=fp32",
    "folds.count=5",
)  # fmt: skip
TEACHER = "consistency=mean_teacher(ratio=3.0,weight=30.0,decay=0.97)"
MATCH = "consistency=fixmatch(ratio=3.0,threshold=0.85)"
SOFT = "consistency=softmatch(ratio=7.0)"
GENTLE = "lr=0.005"  # which leaves more of pretrained weights as they were
LONG = 4  # steps of pretraining for each of a training: it has more to learn from
PRETRAINED = "weights=runs/{competition}/images/weights.safetensors"
FULL = "fold=full epochs={full}"
PRELOAD = ["pandas", "albumentations", "pipeline.parts.optims", "pipeline.training"]  # once, for all trainings


@dataclass(frozen=True)
class Method:
    """What is done beyond another method's runs: commands, and the run whose answers count."""

    name: str
    after: str
    run: str
    commands: tuple[str, ...]
    makes: tuple[str, ...]  # the runs that are thrown away where it was interrupted


def trained(name: str, run: str, *words: str, after: str = "") -> Method:
    """A method that is one training."""
    line = " ".join((f"stage=train run={run}", *words))
    return Method(name, after, run, (line, f"stage=predict run={run}"), (run,))


def labelled(name: str, teacher: str, after: str) -> Method:
    """A round of pseudo-labels, whether it gains or not."""
    line = f"stage=pseudo run={teacher} pseudo.rounds=1 pseudo.threshold=0.95 epochs={{with_test}}"
    return Method(name, after, f"{teacher}-r1", (line,), (f"{teacher}-r1",))


METHODS = [
    trained("labels alone", "supervised"),
    trained("labels alone, lr=0.005", "gentle", GENTLE),
    labelled("pseudo-labels, round 1", "supervised", "labels alone"),
    labelled("pseudo-labels, round 2", "supervised-r1", "pseudo-labels, round 1"),
    labelled("pseudo-labels, round 3", "supervised-r1-r1", "pseudo-labels, round 2"),
    trained("mean teacher", "teacher", TEACHER),
    trained("FixMatch", "match", MATCH),
    trained("SoftMatch", "soft", SOFT),
    Method(
        "pretraining", "", "pretrained",
        (
            "stage=pretrain run=images pretrain.method=simclr() batch_size=128 pretrain.epochs={long_passes}",
            f"stage=train run=pretrained {PRETRAINED}", "stage=predict run=pretrained",
        ),
        ("images", "pretrained"),
    ),
    trained("pretraining, lr=0.005", "gently", GENTLE, PRETRAINED, after="pretraining"),
    trained("pretraining and SoftMatch, lr=0.005", "both", SOFT, GENTLE, PRETRAINED, after="pretraining"),
    labelled("all: that and a round of pseudo-labels", "both", "pretraining and SoftMatch, lr=0.005"),
]  # fmt: skip
NAMED = {method.name: method for method in METHODS}
HOPED = 0.05  # of accuracy, at the fewest labels


@dataclass(frozen=True)
class Row:
    """What a method came to: accuracy on the test images and of OOF, and the processor's seconds of all it needed.

    accuracy: of all members' mean answer. single: of one network that learned from all labels; None for pseudo-labels.
    """

    accuracy: float
    single: float | None
    oof: float
    seconds: float


class Bench:
    """The folder of --out: a project, and the finished rows."""

    def __init__(self, data: Path, out: Path, steps: int, settings: list[str], share: str) -> None:
        self.data, self.out, self.steps, self.share = data / DATA, out, steps, share
        self.base = [f"{key}={value}" for key, value in config.parse_arguments([*BASE, *settings]).items()]
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(PRELOAD)
        self.project = out / "project"
        os.environ["PIPELINE_ROOT"] = str(self.project)

    def competition(self, labels: int, seed: int) -> str:
        """The name of the competition with so many labels a class, written if it is not there."""
        name = f"labels{labels}-{seed}"
        yaml, table = self.project / f"configs/competition/{name}.yaml", self.project / f"tables/{name}.csv"
        if not yaml.is_file():
            rows = read(self.data / "train.csv")
            chosen, generator = [], np.random.default_rng([seed, labels])
            for label in sorted({row["label"] for row in rows}):
                own = [row for row in rows if row["label"] == label]
                chosen += [own[place] for place in sorted(generator.permutation(len(own))[:labels])]
            lines = ["id,label", *(f"{row['id']},{row['label']}" for row in chosen)]
            artefacts.write_text(table, "\n".join(lines) + "\n")
            told = f"{{folder: {self.data}, train_csv: {table}, channels: 1, unlabelled: train_images}}"
            artefacts.write_text(self.project / "configs/default.yaml", f"competition: {name}\nmodel: net\n")
            artefacts.write_text(self.project / "configs/model/net.yaml", "pretrained: false\n")
            artefacts.write_text(yaml, f"symmetry: hflip\nmodels: [net]\ndata: {told}\n")
        return name

    def words(self, labels: int, seed: int, line: str) -> list[str]:
        """A command line, each key once: its own settings go over those of all."""
        folds = int(config.parse_arguments(self.base)["folds.count"])
        every = labels * CLASSES
        learned = every * (folds - 1) / folds
        counts = (learned, learned + TESTED, every)
        epochs, with_test, full = (max(1, round(self.steps * BATCH / rows)) for rows in counts)
        name, long_passes = self.competition(labels, seed), max(1, round(LONG * self.steps * WIDE / IMAGES))
        answers = f"submissions/{name}/answers.csv"
        places = {"answers": answers, "long_passes": long_passes, "with_test": with_test, "full": full}
        own = line.format(competition=name, **places).split()
        return list_of([f"competition={name}", f"seed={seed}", f"epochs={epochs}", *self.base, *own])

    def path(self, method: Method, labels: int, seed: int) -> Path:
        """Where the row of these settings lies."""
        told, line = list[list[str]](), method
        while line:
            told += [list(line.commands)]
            line = NAMED.get(line.after)
        print_ = artefacts.fingerprint(sorted(self.base), self.steps, labels, seed, told)
        return self.out / "rows" / f"{print_}.json"

    def row(self, method: Method, labels: int, seed: int) -> Row | None:
        """The finished row, if there is one."""
        path = self.path(method, labels, seed)
        if not path.is_file():
            return None
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Row(facts["accuracy"], facts["single"], facts["oof"], facts["seconds"])

    def measure(self, method: Method, labels: int, seed: int) -> Row:
        """Run a method's commands, each in a process of its own, score its answers, and write the row."""
        name = self.competition(labels, seed)
        for made in method.makes:
            shutil.rmtree(self.project / f"runs/{name}/{made}", ignore_errors=True)
        before = self.row(NAMED[method.after], labels, seed) if method.after else None
        seconds = before.seconds if before else 0.0
        for line in method.commands if self.can(method, name) else ():
            seconds += self.command(self.words(labels, seed, line), name)
        answers = self.answering(method, name)
        accuracy, single = self.look(labels, seed, f"source={answers}"), self.single(method, labels, seed)
        facts = {
            "labels": labels, "seed": seed, "method": method.name, "answers": answers,
            "accuracy": accuracy, "single": single, "oof": self.oof(name, answers), "seconds": seconds,
            "settings": self.base, "commit": artefacts.commit(),
        }  # fmt: skip
        artefacts.write_json(self.path(method, labels, seed), facts)
        return Row(accuracy, single, facts["oof"], seconds)

    def look(self, labels: int, seed: int, words: str) -> float:
        """The accuracy of a run's answers, as stage=score tells."""
        name = self.competition(labels, seed)
        self.command(self.words(labels, seed, f"stage=submit submission={{answers}} {words}"), name)
        self.command(self.words(labels, seed, "stage=score submission={answers}"), name)
        return float(read(self.project / f"submissions/{name}/looks.csv")[-1]["all"])

    def single(self, method: Method, labels: int, seed: int) -> float | None:
        """The accuracy of one network of all labels, in as many steps; pseudo-labels come from members alone."""
        trainings = [line for line in method.commands if not line.startswith("stage=pretrain")]
        if not trainings[0].startswith("stage=train"):
            return None
        name, run = self.competition(labels, seed), f"{method.run}-alone"  # other epochs make another run
        shutil.rmtree(self.project / f"runs/{name}/{run}", ignore_errors=True)
        for line in trainings:
            self.command(self.words(labels, seed, f"{line} {FULL} run={run}"), name)
        return self.look(labels, seed, f"source={run} fold=full")

    def can(self, method: Method, name: str) -> bool:
        """Whether the run that a method builds on is there: a round of pseudo-labels of which none was sure is none."""
        return not method.after or (self.project / f"runs/{name}/{NAMED[method.after].run}").is_dir()

    def answering(self, method: Method, name: str) -> str:
        """The run whose answers count: the method's, or that before it where no test row was sure."""
        there = (self.project / f"runs/{name}/{method.run}/config.yaml").is_file()
        return method.run if there else self.answering(NAMED[method.after], name)

    def oof(self, name: str, run: str) -> float:
        """The accuracy of a run's OOF."""
        truth = {row["id"]: row["label"] for row in read(self.project / f"tables/{name}.csv")}
        classes, hits = sorted(set(truth.values())), []
        for path in sorted((self.project / f"runs/{name}/{run}").glob("fold*/oof.npz")):
            found = artefacts.Predictions.load(path)
            best = found.values.argmax(axis=1).tolist()
            hits += [truth[one] == classes[place] for one, place in zip(found.ids.tolist(), best, strict=True)]
        return float(np.mean(hits))

    def command(self, words: list[str], name: str) -> float:
        """One command in a process of its own; returns the processor's seconds. Stops where it fails."""
        log = self.out / f"{name}.log"
        process = self.server.Process(target=child, args=(words, log, self.out / f"{name}.seconds"))
        process.start()
        process.join()
        if process.exitcode in (130, -2, -9, -15):
            raise KeyboardInterrupt
        if process.exitcode:
            said = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise SystemExit(f"{shlex.join(words)}\nended with {process.exitcode}: {''.join(said)}")
        return float((self.out / f"{name}.seconds").read_text(encoding="utf-8"))


def child(words: list[str], log: Path, seconds: Path) -> None:
    """A process that runs one command; what it says goes to its log."""
    with log.open("w", encoding="utf-8") as handle:
        os.dup2(handle.fileno(), sys.stdout.fileno())
        os.dup2(handle.fileno(), sys.stderr.fileno())
    code = pipeline(words)
    artefacts.write_text(seconds, str(time.process_time()))
    sys.exit(code)


def list_of(words: list[str]) -> list[str]:
    """key=value, each key once, the last one's value."""
    return [f"{key}={value}" for key, value in config.parse_arguments(words).items()]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a csv."""
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def there() -> list[Method]:
    """The methods whose stages this version has."""
    known = {"", *(method.name for method in METHODS if stages_of(method) <= set(stages.names()))}
    known = {name for name in known if not name or NAMED[name].after in known}
    return [method for method in METHODS if {method.name, method.after} <= known]


def stages_of(method: Method) -> set[str]:
    """The stages that a method's commands name."""
    return {config.parse_arguments(line.split())["stage"] for line in method.commands}


def run(bench: Bench, labels: list[int], seeds: int, only: Sequence[str]) -> None:
    """Seed after seed, number of labels after number of labels, what is not finished yet."""
    os.environ["PIPELINE_ROOT"] = str(bench.project)
    mine, shares = (int(part) for part in bench.share.split("/"))
    cells = [(seed, count) for seed in range(seeds) for count in labels]
    for place, (seed, count) in enumerate(cells, 1):
        for method in there() if place % shares == mine % shares else ():
            if (only and method.name not in only) or bench.row(method, count, seed):
                continue
            row = bench.measure(method, count, seed)
            print(
                f"{count} labels a class, seed {seed}, {bench.steps} steps  {method.name}: {row.accuracy:.4f}, OOF "
                f"{row.oof:.4f}, {row.seconds:.0f} CPU s", flush=True,
            )  # fmt: skip


# --- the page ---------------------------------------------------------------------------------------------------------


def page(old: str, bench: Bench, labels: list[int], seeds: int) -> str:
    """The page with the sections of these numbers of labels, and all else as it was."""
    head, *found = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    sections = {text.partition("\n")[0]: text.strip() for text in found}
    for count in labels:
        title = f"## {count} labels a class, {bench.steps} steps"
        sections[title] = "\n".join([title, "", *section(bench, count, seeds)])
    order = sorted(sections, key=lambda title: [int(number) for number in re.findall(r"\d+", title)])
    return "\n\n".join([head.strip(), *(sections[title] for title in order)]) + "\n"


def section(bench: Bench, count: int, seeds: int) -> list[str]:
    """Settings, table, and for the fewest labels what was hoped for."""
    base, own = (" ".join(map(shlex.quote, words)) for words in (bench.base, (TEACHER, MATCH, SOFT)))
    lines = [f"`{base}`", "", f"Of the methods: `{own}`; SimCLR for {LONG * bench.steps} steps of {WIDE} images.", ""]
    lost = [method.name for method in METHODS if method not in there()]
    lines += table(bench, count, seeds) + (["", f"Left out: no such stage for {', '.join(lost)}."] if lost else [])
    return lines + (["", *best] if count == LABELS[0] and (best := hoped(bench, count, seeds)) else [])


def table(bench: Bench, count: int, seeds: int) -> list[str]:
    """The rows of a number of labels a class."""
    lines = ["| method | accuracy ± se | gain ± se | of one network | gain | OOF | CPU s | seeds |", "|---" * 8 + "|"]
    bases = {seed: row for seed in range(seeds) if (row := bench.row(METHODS[0], count, seed))}
    for method in there():
        rows = {seed: row for seed in bases if (row := bench.row(method, count, seed))}
        lines.append(line(method.name, [(row, bases[seed]) for seed, row in rows.items()]))
    return lines


def hoped(bench: Bench, count: int, seeds: int) -> list[str]:
    """The best gain, of methods that have every seed, beside what was hoped for."""
    bases, said = [bench.row(METHODS[0], count, seed) for seed in range(seeds)], []
    for kind, name in (("accuracy", "of all members"), ("single", "of one network")):
        best = []
        for method in METHODS[1:]:
            rows = [bench.row(method, count, seed) for seed in range(seeds)]
            gains = gained([(row, base) for row, base in zip(rows, bases, strict=True) if row and base], kind)
            if len(gains) == seeds:
                best.append((float(gains.mean()), f"{name} {told(gains, '+')}, {method.name}"))
        if best:
            gain, text = max(best)
            said.append(f"{text}: {'at least' if gain >= HOPED else 'less than'} {HOPED}, which was hoped for")
    return [f"The most that is gained: {'; '.join(said)}."] if said else []


def line(name: str, pairs: list[tuple[Row, Row]]) -> str:
    """A row of the table: means over seeds, standard errors over them, the gains paired by seed."""
    if not pairs:
        return f"| {name} | | | | | | | 0: not yet |"
    ours = [row for row, _ in pairs]
    cells = [told([row.accuracy for row in ours], ""), told(gained(pairs, "accuracy"), "+")]
    cells += [told([row.single for row in ours if row.single is not None], ""), told(gained(pairs, "single"), "+")]
    oof, seconds = (float(np.mean([getattr(row, key) for row in ours])) for key in ("oof", "seconds"))
    return f"| {name} | {' | '.join(cells)} | {oof:.3f} | {seconds:.0f} | {len(pairs)} |"


def gained(pairs: list[tuple[Row, Row]], kind: str) -> np.ndarray:
    """(seeds,) what rows have beyond those beside them; none of what has no such number."""
    both = [(getattr(row, kind), getattr(base, kind)) for row, base in pairs]
    return np.array([own - other for own, other in both if own is not None])


def told(values: Sequence[float] | np.ndarray, sign: str) -> str:
    """mean ± standard error; without it for a single value; nothing for none."""
    if not len(values):
        return ""
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.4f}{error}"


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds fashion_mnist, unzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), help="labels a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each training")
    parser.add_argument("--only", action="append", default=[], help="the name of a method; several may be given")
    parser.add_argument("--page", type=Path, help="write its sections from what is finished, and train nothing")
    parser.add_argument("--share", default="1/1", help="2/3: the second of three processes that share the work")
    parser.add_argument("settings", nargs="*", help="key=value for all methods alike")
    options = parser.parse_intermixed_args()
    bench = Bench(options.data.resolve(), options.out.resolve(), options.steps, options.settings, options.share)
    for method in METHODS:
        if method not in there():
            print(f"left out, since this version has no such stage: {method.name}", flush=True)
    if options.page:
        old = options.page.read_text(encoding="utf-8")
        artefacts.write_text(options.page, page(old, bench, options.labels, options.seeds))
        return 0
    run(bench, options.labels, options.seeds, options.only)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
