"""What each technique changes, alone, on a small honest training: paired with the baseline by seed and by row.

    .venv/bin/python benchmarks/techniques.py --data DIR --out DIR [--seeds 3] [key=value …]     hours; goes on
    .venv/bin/python benchmarks/techniques.py --data DIR --out DIR --page docs/techniques.md     writes the page
    .venv/bin/python benchmarks/techniques.py --data DIR --out DIR --list                        what there is to do

DIR of --data holds the unzipped cifar10 (8,000 training images of 10 classes); fold 0, 1,600 rows, is predicted by a
small_image that is trained on the others. TECHNIQUES is the list, one change a line; a technique whose part does not
exist is left out and said so. Each (technique, seed) is a process of its own and a file in --out/rows: kill it at any
time. Seeds go in rounds, so that a part of the rounds is a comparison, too. Settings behind the options change the
baseline and all else alike (width, epochs, threads); rows of other settings do not count.

The difference is in accuracy, over the same rows and seeds. Its standard error is the larger of two: over rows (the
mean over seeds of the paired differences), and over seeds. Seconds are the processor's, not the clock's, since machines
are shared; imports are no part of them, since processes are forked from one that has made them. --share 1/2 and
--share 2/2 are two processes that halve the work, each with one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline import artefacts, config
from pipeline.__main__ import main as pipeline
from pipeline.errors import UserError

SOURCE = Path(__file__).resolve().parent.parent
BASE = (
    "model=small_image", "backbone=small_image(width=16)", "epochs=4", "lr=0.02", "optim=muon()",
    "schedule=one_cycle()", "augment=pad_crop_flips()", "train.threads=1",
)  # fmt: skip
COMPETITION = ("symmetry=hflip", "image_size=32", "batch_size=64")
LEAST_SEEDS = 3  # for a verdict
PRELOAD = ["pandas", "albumentations", "pipeline.parts.optims", "pipeline.training"]  # once, for all trainings
OWN_FOLD = ("select=best", "reduce_on_plateau", "halve_at", "greedy_soup", "head_until_still", "train.patience")

TECHNIQUES: dict[str, tuple[str, ...]] = {
    "nothing, another seed": ("seed={other}",),
    "mixes": (
        "mix=cutmix()", "mix=cutmix(chance=0.5)", "mix=mixup(alpha=0.2)", "mix=mixup(alpha=1.0)", "mix=fmix()",
        "mix=mix_of(mixes=['mixup()','cutmix()'])",
    ),
    "losses": (
        "loss=cross_entropy(smoothing=0.1)", "loss=focal(gamma=2.0)", "loss=ohem(k=0.7)", "loss=poly1(epsilon=1.0)",
        "loss=symmetric_cross_entropy()", "loss=bi_tempered()", "loss=lovasz_softmax()", "loss=hinge()",
        "loss=balanced_cross_entropy()", "loss=jsd() augment=several(base='pad_crop_flips()')",
        "loss=total(losses=['cross_entropy()','lovasz_softmax()'])",
        "loss=normface() head=cosine()", "loss=cosface() head=cosine()", "loss=arcface() head=cosine()",
        "loss=arcface() head=cosine(centres=3)", "loss=sphereface() head=cosine()", "loss=adacos() head=cosine()",
        "loss=adacos_moving() head=cosine()", "loss=l_softmax(plain=1.0) head=inner_product()",
        "loss=l_softmax(plain=10.0) head=inner_product()",
    ),
    "optimizers": (  # AdamW's rate is a tenth of Muon's, its usual 2e-3; the rest by their papers' ratio to Adam's
        "optim=adamw() lr=0.002", "optim=adam() lr=0.002", "optim=sgd() lr=0.05", "optim=sgd() lr=0.2",
        "optim=muon() lr=0.01", "optim=muon() lr=0.04", "optim=sgd(momentum=0.0) lr=0.2", "optim=nadam() lr=0.002",
        "optim=radam() lr=0.002", "optim=rmsprop() lr=0.001", "optim=adagrad() lr=0.02", "optim=adadelta() lr=1.0",
        "optim=lamb() lr=0.01", "optim=lars() lr=2.0", "optim=lion() lr=0.0004",
        "optim=schedule_free() average=schedule_free() schedule=constant(warmup=0.05) lr=0.005",
        "optim=lookahead(inner='muon()')", "optim=sam(inner='muon()')", "optim=sam(inner='muon()') epochs=2",
        "optim=muon(spare=True)", "optim=muon(weight_decay=0.1)",
    ),
    "schedules": (
        "schedule=cosine(warmup=0.05)", "schedule=linear(warmup=0.05)", "schedule=constant(warmup=0.05)",
        "schedule=steps(at=(0.5,0.8))", "schedule=ladder()", "schedule=exponential()", "schedule=polynomial()",
        "schedule=inverse_time()", "schedule=inverse_sqrt()", "schedule=multicycle_cosine(cycles=3)",
        "schedule=cosine_restarts(cycles=2)", "schedule=linear_cosine()", "schedule=noisy_linear_cosine()",
        "schedule=cosine(warmup=0.05,hold=0.3)", "schedule=reduce_on_plateau(patience=0)",
        "schedule=halve_at(levels=(0.5,0.6))",
    ),
    "averages": (
        "average=ema(decay=0.9)", "average=ema(decay=0.99)", "average=polyak(recompute=True)",
        "average=polyak(power=8,recompute=True)", "average=swa(start=0.75)",
        "average=swa(start=0.5) schedule=constant(warmup=0.05)",
        "average=snapshots() schedule=multicycle_cosine(cycles=3)",
        "average=greedy_soup()", "select=best",
    ),
    "augmentations": (
        "augment=none()", "augment=flips()", "augment=pad_crop()", "augment=light()",
        "augment=compose(parts=['flips()','light()'])",
        "augment=compose(parts=['pad_crop_flips()','cutout(size=0.5)'])",
        "augment=compose(parts=['pad_crop_flips()','erasing()'])",
        "augment=compose(parts=['pad_crop_flips()','colour()'])",
        "augment=compose(parts=['pad_crop_flips()','blur()'])", "augment=compose(parts=['pad_crop_flips()','noise()'])",
        "augment=compose(parts=['pad_crop_flips()','centre_crop()'])",
        "augment=compose(parts=['flips()','crop(scale=(0.6,1.0))'])", "augment=medium()", "augment=heavy()",
        "augment=compose(parts=['pad_crop_flips()','auto_augment(policy=\"cifar10\")'])",
        "augment=compose(parts=['pad_crop_flips()','rand_augment()'])",
        "augment=compose(parts=['pad_crop_flips()','trivial_augment()'])",
        "augment=compose(parts=['pad_crop_flips()','aug_mix()'])",
    ),
    "sizes of batches": ("sizes=multi_scale()", "sizes=progressive()"),
    "pools": (
        "pool=max()", "pool=dual()", "pool=dual(reduce=128)", "pool=gem()", "pool=attention()",
        "pool=fractional_max()",
    ),
    "heads": (
        "head=linear(dropout=0.3)", "head=mlp()", "head=bnneck()",
        "head=multi_sample_dropout()", "head=drop_connect()", "head=linear(init='xavier')", "head=linear(init='msra')",
        "head=linear(init='scaled')", "head=linear(init='zero')",
        "auxiliary=middle()",
    ),
    "norms and activations": (
        "norm=group(groups=8)", "norm=layer()", "norm=instance()", "norm=none()", "norm=ghost(size=16)",
        "activation=leaky_relu()", "activation=elu()", "activation=selu()", "activation=gelu()", "activation=silu()",
        "activation=mish()", "activation=hard_swish()", "activation=prelu()",
    ),
    "normalisation and preprocessing": (
        "data.normalise=dataset()", "data.normalise=per_image()", "data.normalise=pca()", "data.normalise=zca()",
        "data.normalise=tanh(c=128.0)", "data.preprocess=clahe()", "data.preprocess=grey()",
        "data.preprocess=trim_borders()", "data.preprocess=ben_graham()",
    ),
    "samplers": ("sampler=balanced()", "sampler=identities(p=8,k=8)"),
    "the test images, unlabelled": ("consistency=mean_teacher()", "consistency=fixmatch()"),
    "the loop": (
        "train.clip_norm=1.0", "train.clip_value=0.1", "train.accumulate=2", "train.l1=1e-6", "train.l2=1e-4",
        "batch_size=32", "batch_size=128", "precision=fp32", "train.seeds=3", "epochs=8",
        "backbone=small_image(width=32)", "backbone=small_image(width=16,depth=2)",
    ),
    "views at prediction": (
        "views=identity(),hflip()", "views=identity(),hflip(),shift(x=1),shift(x=-1)", "views=five_crop()",
    ),
    "other nets, as many epochs": (
        "backbone=resnet18 optim=adam() lr=0.0003 schedule=cosine()", "backbone=resnet18 stem=small()",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Technique:
    """One change: its group, and the settings that switch it on."""

    group: str
    text: str

    def settings(self, seed: int) -> list[str]:
        """key=value, of this seed."""
        return self.text.format(other=seed + 1000).split() if "{other}" in self.text else self.text.split()


BASELINE = Technique("baseline", "")
EVERY = [Technique(group, text) for group, texts in TECHNIQUES.items() for text in texts]


@dataclass(frozen=True)
class Row:
    """A finished training: (n,) whether each row of fold 0 is right, and the processor's seconds; or why it failed."""

    hits: np.ndarray
    seconds: float
    failed: str = ""


class Bench:
    """The folder of --out: a project, and the finished rows."""

    def __init__(self, data: Path, out: Path, settings: list[str], share: str) -> None:
        self.data, self.out, self.share = data / "cifar10", out, share
        self.base = [*BASE, *settings]
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(PRELOAD)
        os.environ["PIPELINE_ROOT"] = str(out / "project")

    @property
    def own(self) -> Path:
        """The folder of this process's share, where a training's log and facts lie."""
        return self.out / f"share-{self.share.replace('/', '-of-')}"

    @property
    def run(self) -> Path:
        """The folder of the training that is under way."""
        return self.out / "project/runs/cifar10" / self.own.name

    def prepare(self) -> None:
        """The project's configs and folds, made by the first process that comes."""
        folder = self.out / "project"
        self.own.mkdir(parents=True, exist_ok=True)
        with artefacts.locked(self.out):
            self._prepare(folder)

    def _prepare(self, folder: Path) -> None:
        shutil.copytree(SOURCE / "configs/model", folder / "configs/model", dirs_exist_ok=True)
        shutil.copytree(SOURCE / "configs/recipe", folder / "configs/recipe", dirs_exist_ok=True)
        if not (folder / "configs/competition/cifar10.yaml").is_file():
            (folder / "configs/competition").mkdir(parents=True)
            shutil.copy(SOURCE / "configs/default.yaml", folder / "configs")
            new = ("stage=new", "name=cifar10", f"data={self.data}", *COMPETITION)
            if pipeline(list(new)) or pipeline(["stage=split", "competition=cifar10"]):
                raise SystemExit(2)

    def arguments(self, technique: Technique, seed: int) -> list[str]:
        """The command line of a training, each key once: the technique's settings go over the baseline's."""
        words = ["competition=cifar10", "fold=0", f"seed={seed}", *self.base, *technique.settings(seed)]
        return [f"{key}={value}" for key, value in config.parse_arguments(words).items()]

    def absent(self, technique: Technique) -> str:
        """Why the settings do not fit this version; empty if they do."""
        try:
            config.compose(config.parse_arguments(self.arguments(technique, 0)))
        except UserError as fault:
            return str(fault)
        return ""

    def path(self, technique: Technique, seed: int) -> Path:
        """Where the row of these settings lies."""
        return self.out / "rows" / f"{artefacts.fingerprint(sorted(self.arguments(technique, seed)))}.json"

    def row(self, technique: Technique, seed: int) -> Row | None:
        """The finished row, if there is one."""
        path = self.path(technique, seed)
        if not path.is_file():
            return None
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Row(np.array([int(hit) for hit in facts["hits"]]), facts["seconds"], facts["failed"])

    def train(self, technique: Technique, seed: int) -> Row:
        """Train, predict, write the row, and throw the weights away."""
        words = self.arguments(technique, seed)
        log = self.own / "last.log"
        process = self.server.Process(target=child, args=(self, words, log))
        process.start()
        process.join()
        code = process.exitcode
        facts = {
            "seed": seed,
            "settings": words,
            "hits": "",
            "seconds": 0.0,
            "failed": "",
            "commit": artefacts.commit(),
        }
        if code in (130, -2, -9, -15):
            raise KeyboardInterrupt
        if code:
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            facts["failed"] = lines[-1] if lines else f"exit code {code}"
        else:
            facts |= json.loads((self.own / "child.json").read_text(encoding="utf-8"))
        artefacts.write_json(self.path(technique, seed), facts)
        shutil.rmtree(self.run, ignore_errors=True)
        found = self.row(technique, seed)
        assert found is not None
        return found


def child(bench: Bench, words: list[str], log: Path) -> None:
    """A process that trains once and writes child.json; what it says goes to its log."""
    with log.open("w", encoding="utf-8") as handle:
        os.dup2(handle.fileno(), sys.stdout.fileno())
        os.dup2(handle.fileno(), sys.stderr.fileno())
    sys.exit(once(bench, words))


def once(bench: Bench, words: list[str]) -> int:
    """One training and its predictions, in this process; returns the exit code."""
    words = [*words, f"run={bench.run.name}"]
    shutil.rmtree(bench.run, ignore_errors=True)
    code = pipeline(["stage=train", *words])
    seconds = time.process_time()
    code = code or pipeline(["stage=predict", *words])
    if code:
        return code
    found = artefacts.Predictions.load(bench.run / "fold0/oof.npz")
    with (bench.data / "train.csv").open(encoding="utf-8") as handle:
        labels = {row["id"]: row["label"] for row in csv.DictReader(handle)}
    classes = sorted(set(labels.values()))
    ids = sorted(found.ids.tolist())  # one order for all
    hits = [labels[name] == classes[best] for name, best in zip(ids, found.align(ids).values.argmax(1), strict=True)]
    text = "".join(str(int(hit)) for hit in hits)
    artefacts.write_json(bench.own / "child.json", {"hits": text, "seconds": seconds})
    return 0


def run(bench: Bench, seeds: int, only: str = "") -> None:
    """Round after round, what is not finished yet."""
    there = [BASELINE, *(one for one in EVERY if only in one.text and not bench.absent(one))]
    wanted = [(technique, seed) for seed in range(seeds) for technique in there]
    mine, shares = (int(part) for part in bench.share.split("/"))
    for place, (technique, seed) in enumerate(wanted, 1):
        if place % shares != mine % shares:
            continue
        row = bench.row(technique, seed)
        if row is None:
            row = bench.train(technique, seed)
            name = technique.text or "the baseline"
            said = row.failed or f"{row.hits.mean():.4f}, {row.seconds:.0f} s"
            print(f"{place}/{len(wanted)}  seed {seed}  {name}: {said}", flush=True)


# --- the page -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A technique beside the baseline: mean difference of accuracy, its standard error, mean seconds, seeds."""

    gain: float
    error: float
    seconds: float
    seeds: int

    @property
    def verdict(self) -> str:
        """Beyond two standard errors, and with enough seeds; else that nothing was seen, or nothing happened."""
        if self.seeds < LEAST_SEEDS:
            return "not yet"
        if self.error == 0:
            return "did nothing here: every row as without it"
        if abs(self.gain) <= 2 * self.error:
            return "no evidence at this size"
        return "better" if self.gain > 0 else "worse"


def compare(pairs: list[tuple[Row, Row]]) -> Compared:
    """(technique, baseline) of each seed → the paired difference; the error is the larger of rows' and seeds'."""
    differences = np.array([ours.hits - base.hits for ours, base in pairs], dtype=np.float64)
    by_row, by_seed = differences.mean(axis=0), differences.mean(axis=1)
    error = by_row.std(ddof=1) / np.sqrt(len(by_row))
    if len(by_seed) > 1:
        error = max(error, by_seed.std(ddof=1) / np.sqrt(len(by_seed)))
    seconds = float(np.mean([ours.seconds for ours, _ in pairs]))
    return Compared(float(by_seed.mean()), float(error), seconds, len(pairs))


def page(bench: Bench, seeds: int) -> str:
    """docs/techniques.md, from what is finished."""
    bases = {seed: row for seed in range(seeds) if (row := bench.row(BASELINE, seed))}
    if not bases:
        raise SystemExit("no baseline is finished yet; start without --page")
    lines = [*head(bench, bases), "| technique | difference ± se | could be seen | CPU s | seeds | verdict |"]
    lines.append("|---|---|---|---|---|---|")
    left_out: list[str] = []
    group = ""
    for technique in EVERY:
        if why := bench.absent(technique):
            left_out.append(f"- `{technique.text}`: {textwrap.shorten(why, 90)}")
            continue
        rows = {seed: bench.row(technique, seed) for seed in bases}
        failed = next((row.failed for row in rows.values() if row and row.failed), "")
        pairs = [(row, bases[seed]) for seed, row in rows.items() if row and not row.failed]
        if technique.group != group:
            group = technique.group
            lines.append(f"| **{group}** | | | | | |")
        lines.append(line(technique, compare(pairs) if pairs else None, failed))
    if left_out:
        lines += ["", "Left out, since this version has no such part or setting:", "", *left_out]
    return "\n".join(lines) + "\n"


def head(bench: Bench, bases: dict[int, Row]) -> list[str]:
    """What was done, and how to read it."""
    scores = [row.hits.mean() for row in bases.values()]
    spread = f", std over seeds {np.std(scores, ddof=1):.4f}" if len(scores) > 1 else ""
    rows = len(next(iter(bases.values())).hits)
    settings = config.parse_arguments(bench.base)
    base = " ".join(shlex.quote(f"{key}={value}") for key, value in settings.items())
    return [
        "# What each technique changes, alone",
        "",
        "Written by `benchmarks/techniques.py`, never by hand: one change at a time against a baseline, paired by seed "
        "and by row, losses included.",
        "",
        f"- Data: cifar10 as 8,000 training images; fold 0 ({rows:,} rows) is predicted by a net trained on the rest.",
        f"- Baseline: `{base}`: accuracy {np.mean(scores):.4f} over {len(bases)} seeds{spread}, "
        f"{np.mean([row.seconds for row in bases.values()]):.0f} CPU s.",
        "- A small net and few epochs, so that the table could be made on two cores: what regularises (mixes, "
        "smoothing, strong augmentation, averages) pays in longer trainings and can look bad here.",
        "- `±` is the larger of the standard errors over rows and over seeds. *Could be seen*: two of them, the "
        "smallest difference that would have been a verdict. A verdict needs three seeds and more than two "
        "standard errors; without any effect about one row in twenty would get one by chance.",
        "- Other optimizers get one guess of a learning rate each, by their papers' ratio to Adam's (some two); a "
        "worse row may only be a worse rate.",
        "- CPU seconds are the processor's, imports left out; one thread.",
        "- †: looks at the scores of its own fold, so its difference flatters it.",
        "- Not here: fine-tuning modes, frozen norms and instance norms in ResNets, since nothing pretrained was at "
        "hand; losses of labels, numbers, masks and pairs, and samplers for them, which have other targets; class "
        "weights and over-sampling, since all classes are equally frequent.",
        "",
    ]


def line(technique: Technique, found: Compared | None, failed: str) -> str:
    """A row of the table."""
    mark = " †" if any(word in technique.text for word in OWN_FOLD) else ""
    name = f"`{technique.text}`{mark}" if "{" not in technique.text else "`seed=` another"
    if failed:
        return f"| {name} | | | | | failed: {failed} |"
    if found is None:
        return f"| {name} | | | | 0 | not yet |"
    return (
        f"| {name} | {found.gain:+.4f} ± {found.error:.4f} | {2 * found.error:.4f} | {found.seconds:.0f} "
        f"| {found.seeds} | {found.verdict} |"
    )


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10, unzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS)
    parser.add_argument("--page", type=Path, help="write the page from what is finished, and train nothing")
    parser.add_argument("--only", default="", help="train only techniques whose line holds this text")
    parser.add_argument(
        "--share", default="1/1", help="2/3: the second of three processes that share --out and the work"
    )
    parser.add_argument("--list", action="store_true", help="print the techniques, and those left out")
    parser.add_argument("settings", nargs="*", help="key=value for the baseline and all techniques alike")
    options = parser.parse_intermixed_args()
    bench = Bench(options.data.resolve(), options.out.resolve(), options.settings, options.share)
    bench.prepare()
    for technique in EVERY:
        why = bench.absent(technique)
        if why or options.list:
            print(f"{'left out' if why else '        '}  {technique.text}{': ' + why if why else ''}", flush=True)
    if options.page:
        artefacts.write_text(options.page, page(bench, options.seeds))
    elif not options.list:
        run(bench, options.seeds, options.only)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
