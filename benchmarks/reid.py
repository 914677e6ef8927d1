"""The strong baseline of re-identification, step by step (Luo et al. 2019, table 2), on characters never trained on.

    .venv/bin/python benchmarks/reid.py --data DIR --out DIR [--seeds 2] [key=value …]     under an hour; goes on
    .venv/bin/python benchmarks/reid.py --data DIR --out DIR --final     the holdout of the first and the last step
    .venv/bin/python benchmarks/reid.py --data DIR --out DIR --page docs/reid.md       writes the page
    .venv/bin/python benchmarks/reid.py --out DIR --digits               digits_retrieval beside raw pixels

DIR of --data holds the unzipped omniglot_retrieval: 2,720 training images of five alphabets. Each lies in one fold, so
that a member is asked about alphabets that it has never seen. The last step is configs/model/reid_small.yaml as it
stands; each step before switches one thing more off. Each (step, seed) is a process and a file in --out/rows:
kill it at any time (a row's seconds then lack what came before). Seeds go in rounds. Settings behind the options change
all steps alike; rows of other settings do not count. --share 1/2 and --share 2/2 are two processes that halve the work,
each with one thread.

Each fold is a pool that searches itself. Differences are between a step and the one before, over the same queries and
seeds. Queries of one character stand and fall together, and so do those of a training: standard errors are taken over
characters, over folds and over seeds, and the largest counts. Seconds are the processor's, not the clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline import artefacts, config, registry
from pipeline.config import Config
from pipeline.errors import UserError

SOURCE = Path(__file__).resolve().parent.parent
NAME, MODEL, DIGITS = "omniglot_retrieval", "reid_small", "digits_retrieval"
COMPETITION = """\
task: retrieval()
metric: mean_average_precision(k=20)
symmetry: none # a mirrored character is another sign
data:
  folder: {folder}
  target: label
  group: alphabet # the test's alphabets are new, so those of a fold are too
  test_csv: test.csv
  role: role
  channels: 1
folds:
  count: {folds}
models: [reid_small]
image_size: 32
"""
THREAD = ("train.threads=1",)
WIDTH = 16  # of the net in configs/model/reid_small.yaml
SHIFTS = "identity(),shift(x=1,y=0),shift(x=-1,y=0),shift(x=0,y=1),shift(x=0,y=-1)"
RERANKING = "k_reciprocal()"
SEARCHES: dict[str, list[str]] = {"": [], RERANKING: [RERANKING], "query_expansion(k=5)": ["query_expansion(k=5)"]}
VIEWS = "views"  # the same training, predicted under SHIFTS
FLOORS = {"raw pixels, 32 px": ("raw_pixels(size=32)",), "HOG, 64 px": ("hog(size=64)",)}
TOLD_FLOOR = 0.158  # mAP@20 of HOG on the test, DATA.md


@dataclass(frozen=True)
class Step:
    """A training: what it is called, and the settings in which it differs from the model's file."""

    name: str
    settings: tuple[str, ...] = ()


OFF = {
    "warm-up": "schedule=cosine(warmup=0.0)",
    "random erasing": "augment=light()",
    "label smoothing": "loss=cross_entropy()",
    "last stride 1": "backbone=small_image(width={width})",
    "BNNeck": "head=linear()",
    "center loss": "pairs=triplet()",
}
BASELINE = Step("baseline", tuple(OFF.values()))
STEPS = [BASELINE, *(Step(f"+ {name}", tuple(OFF.values())[place:]) for place, name in enumerate(OFF, 1))]
FULL = STEPS[-1]
BESIDE = [
    Step("pool=gem()", ("pool=gem()",)),
    Step("without erasing", (OFF["random erasing"],)),
    Step("without the triplet loss", ("pairs=center()",)),
    Step("arcface", ("loss=arcface()", "head=cosine(neck=True)")),
]


@dataclass(frozen=True)
class Row:
    """A finished training: of each search (n,) average precision at 20 and (n,) hits at rank 1; or why it failed."""

    precision: dict[str, np.ndarray]
    first: dict[str, np.ndarray]
    seconds: dict[str, float]
    failed: str = ""


class Bench:
    """The folder of --out: a project, and the finished rows."""

    def __init__(self, options: argparse.Namespace, settings: Sequence[str]) -> None:
        self.data, self.out = options.data.resolve(), options.out.resolve()
        self.prefix, self.share, self.folds = shlex.split(options.prefix), options.share, options.folds
        self.base = [*THREAD, *settings]
        self.width = options.width
        os.environ["PIPELINE_ROOT"] = str(self.project)

    @property
    def project(self) -> Path:
        """The folder of configs, folds, runs and submissions."""
        return self.out / f"project-{self.folds}-folds"

    def prepare(self) -> None:
        """The project's configs and folds, made by the first process that comes."""
        self.project.mkdir(parents=True, exist_ok=True)
        with artefacts.locked(self.out):
            copy_configs(self.project)
            place = self.project / f"configs/competition/{NAME}.yaml"
            artefacts.write_text(place, COMPETITION.format(folder=self.data / NAME, folds=self.folds))
            if not (self.project / f"folds/{NAME}.csv").is_file():
                pipeline(self.project, "stage=split", f"competition={NAME}")

    def words(self, step: Step, seed: int) -> list[str]:
        """The command line of a training, each key once: the step's settings go over the others."""
        words = [f"competition={NAME}", f"model={MODEL}", f"seed={seed}", *self.base]
        words += [f"backbone=small_image(width={self.width},last_stride=1)"]
        words += [setting.format(width=self.width) for setting in step.settings]
        words = [f"{key}={value}" for key, value in config.parse_arguments(words).items()]
        return [*words, f"run=s{seed}-{self.key(words)}"]

    def key(self, words: Sequence[str]) -> str:
        """A name for what the words come to, whatever the model's file says today, and whatever keys come later."""
        resolved = config.compose(config.parse_arguments(list(words)))
        set_ = [
            (key, value) for key, value in config.scoped(resolved, "run").items() if value != config.keys()[key].default
        ]
        return artefacts.fingerprint(sorted(set_), self.folds)[:12]

    def absent(self, step: Step) -> str:
        """Why the settings do not fit this version; empty if they do."""
        try:
            self.words(step, 0)
        except UserError as fault:
            return str(fault)
        return ""

    def path(self, step: Step, seed: int) -> Path:
        """Where the row of these settings lies."""
        return self.out / f"rows/{config.parse_arguments(self.words(step, seed))['run']}.json"

    def row(self, step: Step, seed: int) -> Row | None:
        """The finished row, if there is one."""
        path = self.path(step, seed)
        if not path.is_file():
            return None
        facts = json.loads(path.read_text(encoding="utf-8"))
        both = ({name: np.array(rows) for name, rows in facts[key].items()} for key in ("precision", "first"))
        return Row(*both, facts["seconds"], facts["failed"])

    def train(self, step: Step, seed: int) -> Row:
        """A process that trains, predicts and searches; its row."""
        words, log = self.words(step, seed), self.out / f"share-{self.share.replace('/', '-of-')}.log"
        command = [*self.prefix, sys.executable, __file__, f"--data={self.data}", f"--out={self.out}"]
        command += [f"--folds={self.folds}", f"--width={self.width}", "--child", *words, *["--views"] * (step == FULL)]
        with log.open("w", encoding="utf-8") as handle:
            code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT).returncode
        if code == 130 or code < 0:  # killed: no verdict on the step
            raise KeyboardInterrupt
        path = self.path(step, seed)
        facts = {"seed": seed, "settings": words, "precision": {}, "first": {}, "seconds": {}, "failed": ""}
        if code:
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            facts["failed"] = lines[-1] if lines else f"exit code {code}"
            artefacts.write_json(path, facts)
        else:
            found = json.loads((self.project / "runs" / NAME / run_of(words) / "row.json").read_text(encoding="utf-8"))
            artefacts.write_json(path, {**facts, **found, "commit": artefacts.commit()})
            for weights in (self.project / "runs" / NAME / run_of(words)).rglob("*.ckpt"):
                weights.unlink()
        row = self.row(step, seed)
        assert row is not None
        return row


def run_of(words: Sequence[str]) -> str:
    """The run that a command line names."""
    return config.parse_arguments(list(words))["run"]


def copy_configs(project: Path) -> None:
    """This tree's models, recipes and defaults, into a project."""
    for kind in ("model", "recipe", "competition"):
        shutil.copytree(SOURCE / "configs" / kind, project / "configs" / kind, dirs_exist_ok=True)
    shutil.copy(SOURCE / "configs/default.yaml", project / "configs")


def pipeline(project: Path, *arguments: str) -> None:
    """The command line in a project, as a process."""
    environment = os.environ | {"PIPELINE_ROOT": str(project)}
    if code := subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=SOURCE, env=environment).returncode:
        raise SystemExit(code)


# --- one training -------------------------------------------------------------------------------------------------


def child(bench: Bench, words: list[str], views: bool) -> int:
    """Train the folds, predict and search them, in this process; writes row.json into the run's folder."""
    from pipeline.__main__ import main

    settings = config.compose(config.parse_arguments(words))
    if code := main(["stage=train", *words]):
        return code
    seconds = {"": time.process_time()}
    found: dict[str, Any] = {"precision": {}, "first": {}}
    asked = [("identity()", SEARCHES)]
    if views:  # before the plain ones, which stay for a submission
        asked.insert(0, (SHIFTS, {VIEWS: []}))
    for view, searches in asked:
        began = time.process_time()
        if code := main(["stage=predict", *words, f"views={view}"]):
            return code
        for name, calls in searches.items():
            rows = searched(settings, calls)
            found["precision"][name], found["first"][name] = (np.round(one, 6).tolist() for one in rows)
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
            began = time.process_time()
    artefacts.write_json(artefacts.run_folder(settings, settings.run) / "row.json", {**found, "seconds": seconds})
    return 0


def searched(
    settings: Config, rerankings: Sequence[str], described: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) average precision at 20 and (N,) hits at rank 1 of the training rows, each fold a pool.

    described: (N, D) vectors of length 1; None: the run's OOF embeddings.
    """
    from pipeline.parts.metrics_retrieval import mean_average_precision, rank_k
    from pipeline.runs import Run
    from pipeline.tasks import task_for

    run = Run(settings, settings.run)
    task: Any = task_for(settings, run.competition)
    judged = task.judged(run.truth(task), run.oof().values if described is None else described, rerankings)
    return mean_average_precision(*judged, k=20), rank_k(*judged, k=1)


def parts(bench: Bench) -> list[np.ndarray]:
    """(N,) the character and (N,) the fold of each row, in the order of ``searched``, as whole numbers."""
    from pipeline.competition import load
    from pipeline.folds import read_folds

    settings = config.compose({"competition": NAME, "model": MODEL})
    competition = load(settings)
    return [np.unique(competition.targets.iloc[:, 0], return_inverse=True)[1], read_folds(settings, competition)]


# --- floors -------------------------------------------------------------------------------------------------------


def described(settings: Config, calls: Sequence[str], test: bool = False) -> np.ndarray:
    """(N, D) of length 1, whose cosines rank images as Euclidean distances of descriptors do; nothing is trained."""
    from pipeline import stores
    from pipeline.competition import load

    competition = load(settings)
    tables = []
    for call in calls:
        part = registry.build("descriptors", call)(None)
        store = (stores.test_store if test else stores.train_store)(settings, competition, part.size)
        tables.append(part.rows(store, np.arange(len(store))))
    rows = np.concatenate(tables, axis=1).astype(np.float64)
    rows -= rows.mean(axis=0)
    lengths = np.square(rows).sum(axis=1)
    rows = np.column_stack([rows, np.sqrt(lengths.max() - lengths)])  # one more number, so that all are as long
    return (rows / np.sqrt(lengths.max())).astype(np.float32)


def digits(options: argparse.Namespace) -> None:
    """The quick recipe on digits_retrieval, and the nearest neighbour of raw pixels, both on its holdout."""
    from pipeline import submission
    from pipeline.competition import load
    from pipeline.tasks import task_for

    project = options.out.resolve() / "digits"
    os.environ["PIPELINE_ROOT"] = str(project)
    copy_configs(project)
    began = time.perf_counter()
    pipeline(project, f"competition={DIGITS}", "recipe=quick", *options.settings)
    seconds = time.perf_counter() - began
    settings = config.compose({"competition": DIGITS, "recipe": "quick"})
    competition = load(settings)
    task: Any = task_for(settings, competition)
    values = described(settings, ("raw_pixels(size=24)",), test=True)
    frame = task.submission(competition.test["id"].to_numpy(), values, competition.sample)
    floor = submission.path_of(settings, "raw_pixels")
    submission.write(frame, floor, {"source": "raw pixels"})
    for what, path in (("recipe=quick", submission.path_of(settings, settings.stack.name)), ("raw pixels", floor)):
        print(f"\n{what}" + (f", {seconds:.0f} s by the clock" if path != floor else ""), flush=True)
        pipeline(project, "stage=score", f"competition={DIGITS}", f"submission={path}")


# --- the rounds ---------------------------------------------------------------------------------------------------


def run(bench: Bench, seeds: int, only: str) -> None:
    """Round after round, what is not finished yet; the steps first."""
    there = [step for step in (*STEPS, *BESIDE) if only in step.name and not bench.absent(step)]
    wanted = [(step, seed) for steps in (STEPS, BESIDE) for seed in range(seeds) for step in there if step in steps]
    mine, shares = (int(part) for part in bench.share.split("/"))
    for place, (step, seed) in enumerate(wanted, 1):
        if place % shares != mine % shares or bench.row(step, seed) is not None:
            continue
        row = bench.train(step, seed)
        said = row.failed or f"mAP@20 {row.precision[''].mean():.4f}, rank-1 {row.first[''].mean():.4f}"
        print(f"{place}/{len(wanted)}  seed {seed}  {step.name}: {said}, {row.seconds.get('', 0):.0f} s", flush=True)


def final(bench: Bench) -> None:
    """Submit and score the first and the last step, re-ranked, of seed 0; looks at the solution once."""
    place = bench.out / "final.json"
    if place.is_file():
        print(place.read_text(encoding="utf-8"))
        return
    asked = (("baseline", BASELINE, ""), ("full set, re-ranked", FULL, RERANKING))
    for name, step, _ in asked:
        row = bench.row(step, 0)
        if row is None or row.failed:
            raise SystemExit(f"{name}, seed 0, is not finished; start without --final")
    found = {}
    for name, step, rerankings in asked:
        words = [*bench.words(step, 0), f"rerankings={rerankings}"]
        source = run_of(words)
        pipeline(bench.project, "stage=submit", *words, f"source={source}")
        path = bench.project / f"submissions/{NAME}/{source}.csv"
        pipeline(bench.project, "stage=score", f"competition={NAME}", f"submission={path}")
        looks = (path.parent / "looks.csv").read_text(encoding="utf-8").splitlines()
        found[name] = float(dict(zip(looks[0].split(","), looks[-1].split(","), strict=True))["all"])
    artefacts.write_json(place, found)


# --- the page -----------------------------------------------------------------------------------------------------


Rows = dict[int, np.ndarray]  # by seed


@dataclass(frozen=True)
class Line:
    """What is compared: the rows of a search by seed, (n,) of each metric, and mean seconds."""

    name: str
    precision: Rows
    first: Rows
    seconds: float


def line_of(bench: Bench, step: Step, seeds: int, search: str = "", name: str = "") -> Line | None:
    """The finished rows of a step under a search; None where there are none."""
    rows = {seed: row for seed in range(seeds) if (row := bench.row(step, seed)) and search in row.precision}
    if not rows:
        return None
    seconds = float(np.mean([row.seconds[search] for row in rows.values()]))
    both = ({seed: getattr(row, key)[search] for seed, row in rows.items()} for key in ("precision", "first"))
    return Line(name or step.name, *both, seconds)


def difference(ours: Rows, theirs: Rows, groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean paired difference, and the largest of its standard errors over the groups of rows, and over seeds."""
    shared = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    if not len(shared):
        return float("nan"), float("nan")
    means = [np.bincount(codes, shared.mean(axis=0)) / np.bincount(codes) for codes in groups]
    errors = [one.std(ddof=1) / np.sqrt(len(one)) for one in (*means, shared.mean(axis=1)) if len(one) > 1]
    return float(shared.mean()), float(max(errors))


def table(lines: Sequence[Line | None], bases: Sequence[Line | None], groups: Sequence[np.ndarray]) -> list[str]:
    """Lines of Markdown; bases: what each is compared with."""
    found = [
        "| step | mAP@20 | difference ± se | rank-1 | difference ± se | CPU s | seeds | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line, base in zip(lines, bases, strict=True):
        if line is None:
            continue
        cells = [line.name]
        gains = []
        for own, other in ((line.precision, base and base.precision), (line.first, base and base.first)):
            cells.append(f"{np.mean(list(own.values())):.4f}")
            gains.append(difference(own, other, groups) if other else (float("nan"),) * 2)
            cells.append("" if np.isnan(gains[-1][0]) else f"{gains[-1][0]:+.4f} ± {gains[-1][1]:.4f}")
        found.append(f"| {' | '.join(cells)} | {line.seconds:.0f} | {len(line.precision)} | {verdict(*gains[0])} |")
    return found


def verdict(gain: float, error: float) -> str:
    """Beyond two standard errors; else that nothing was seen."""
    if np.isnan(gain):
        return ""
    if abs(gain) <= 2 * error:
        return "no evidence at this size"
    return "better" if gain > 0 else "worse"


def page(bench: Bench, seeds: int) -> str:
    """docs/reid.md, from what is finished."""
    groups = parts(bench)
    lines = [line_of(bench, step, seeds) for step in STEPS]
    full, there = lines[-1], [line for line in lines if line]
    if not there:
        raise SystemExit("nothing is finished yet; start without --page")
    reranked = line_of(bench, FULL, seeds, RERANKING, f"+ re-ranking, `{RERANKING}`")
    steps = table([*lines, reranked], [None, *lines], groups)
    more = [line_of(bench, FULL, seeds, name, f"`{name}`") for name in SEARCHES if name not in ("", RERANKING)]
    more.append(line_of(bench, FULL, seeds, VIEWS, f"`views={SHIFTS.replace('(),', ',', 1)}`"))
    more += [line_of(bench, step, seeds, name=f"{step.name}: `{shlex.join(step.settings)}`") for step in BESIDE]
    blocks = [
        *head(bench, there), *steps, *whole(lines, reranked, groups), "",
        "## Beside the full set", "", "One change to the step *+ center loss*, and the difference to it.", "",
        *table(more, [full] * len(more), groups), "",
        "## Floors and the holdout", "", *floors(bench),
    ]  # fmt: skip
    return "\n".join(blocks) + "\n"


def whole(lines: Sequence[Line | None], reranked: Line | None, groups: Sequence[np.ndarray]) -> list[str]:
    """From the first step to the last, in one sentence."""
    first, last = lines[0], reranked or lines[-1]
    if first is None or last is None:
        return []
    gain, error = difference(last.precision, first.precision, groups)
    return ["", f"From the baseline to the last line: mAP@20 {gain:+.4f} ± {error:.4f}."]


def head(bench: Bench, lines: Sequence[Line]) -> list[str]:
    """What was done, and how to read it."""
    words = config.parse_arguments(bench.words(BASELINE, 0))
    base = shlex.join(f"{key}={value}" for key, value in words.items() if key not in ("competition", "seed", "run"))
    given = [*bench.base[len(THREAD) :], *([] if bench.width == WIDTH else [f"width={bench.width}"])]
    spent = sum(sum(line.seconds for _ in line.precision) for line in lines)
    return [
        "# The strong baseline of re-identification, step by step",
        "",
        "Written by `benchmarks/reid.py`, never by hand: the ablation of Luo et al. 2019 (Bag of tricks and a strong "
        "baseline for deep person re-identification), each step on top of those before, losses included.",
        "",
        f"- Command: `benchmarks/reid.py --data DIR --out DIR --folds {bench.folds} {shlex.join(given)}`.",
        "- Data: omniglot_retrieval, 2,720 drawings of 136 characters, each by 20 hands. Each of the five alphabets "
        f"lies in one of {bench.folds} folds: a member searches the characters of alphabets that it has never seen, "
        "each drawing among all others of the fold.",
        f"- The baseline: `{base}`. The last step is `configs/model/reid_small.yaml`"
        + (f" with `{shlex.join(given)}`." if given else " as it stands."),
        f"- The trainings of this table took {spent / 60:.0f} minutes of one core. Seconds are the processor's for all "
        "folds of a seed, start of the process included; those of re-ranking are the search's alone, and a training "
        "that was killed counts from where it went on.",
        "- Differences are to the step before, over the same queries and seeds. `±` is the largest of the standard "
        "errors over characters, over folds and over seeds; a verdict needs more than twice that in mAP@20.",
        "- A small net from random weights, few epochs, drawings of strokes: what the paper measured on photographs of "
        "people with a pretrained ResNet-50 in 120 epochs need not hold here, nor this there. The baseline already "
        "has the paper's loss: softmax and batch-hard triplets on the pooled features. All steps search by cosine.",
        "",
    ]


def floors(bench: Bench) -> list[str]:
    """Nearest neighbours without training, on the same pools; and what the holdout says."""
    settings = config.compose({"competition": NAME, "model": MODEL})
    found = ["| nearest neighbour of | OOF mAP@20 | OOF rank-1 |", "|---|---|---|"]
    for name, calls in FLOORS.items():
        precision, first = searched(settings, [], described(settings, calls))
        found.append(f"| {name} | {precision.mean():.4f} | {first.mean():.4f} |")
    place = bench.out / "final.json"
    if place.is_file():
        scores = json.loads(place.read_text(encoding="utf-8"))
        said = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        found += ["", f"Holdout, mAP@20 of seed 0 with all members side by side, looked at once: {said}. Nearest "
                  f"neighbour of HOG there, as the data's own page says: {TOLD_FLOOR}."]  # fmt: skip
    return found


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder that holds omniglot_retrieval, unzipped"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5, help="of whole alphabets, 2 to 5: so many trainings a seed")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the net; less is quicker")
    parser.add_argument("--prefix", default="", help="command that children run under, such as nice -n 19")
    parser.add_argument("--only", default="", help="train only steps whose name holds this text")
    parser.add_argument("--share", default="1/1", help="2/3: the second of three processes that share --out")
    parser.add_argument("--final", action="store_true", help="score the first and the last step on the holdout, once")
    parser.add_argument("--page", type=Path, help="write the page from what is finished, and train nothing")
    parser.add_argument("--digits", action="store_true", help="digits_retrieval, recipe=quick, beside raw pixels")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--views", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="key=value for all steps alike")
    options = parser.parse_intermixed_args()
    if options.digits:
        digits(options)
        return 0
    bench = Bench(options, [] if options.child else options.settings)
    if options.child:
        return child(bench, options.settings, options.views)
    bench.prepare()
    for step in (*STEPS, *BESIDE):
        if why := bench.absent(step):
            print(f"left out  {step.name}: {why}", flush=True)
    if options.page:
        artefacts.write_text(options.page, page(bench, options.seeds))
    elif options.final:
        final(bench)
    else:
        run(bench, options.seeds, options.only)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
