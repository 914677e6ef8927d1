"""Every key that can be set, its type, range and meaning; and how the layers merge.

Order: the defaults below < ``configs/default.yaml`` < ``configs/competition/NAME.yaml`` < ``configs/model/NAME.yaml``
< a recipe step < the command line. Raw text from the command line is converted by the field's type, never guessed.
Unknown keys, wrong types, values out of range and unknown parts fail here, before any work starts.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import io
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import registry, rules, tasks
from pipeline.errors import UserError, nearest

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def root() -> Path:
    """The project folder: PIPELINE_ROOT if set (the tests do), else where this package lies."""
    return Path(os.environ.get("PIPELINE_ROOT") or PACKAGE_ROOT)


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] = (),
    part: str = "",
    scope: str = "",
) -> Any:
    """A dataclass field with its meaning and what it allows.

    low and high are inclusive bounds, above an exclusive one; part names the kind of a call-string. scope says what a
    change of the key means: "run" another experiment, "predict" other predictions of the same run, "" neither.
    """
    metadata = {
        "help": help, "low": low, "high": high, "above": above, "choices": choices, "part": part, "scope": scope,
    }  # fmt: skip
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Data:
    """Where the competition's files lie and how images are read."""

    folder: str = option("", "unzipped Kaggle folder, relative to the project", scope="")
    make: str = option("", "part that writes the folder when it is not there; empty: none", part="makers", scope="")
    train_csv: str = option(
        "train.csv", "table of the training rows, in data.folder; empty: a folder for each class in data.train_images",
        scope="run",
    )  # fmt: skip
    named: str = option(
        "", "how the training images are called, where no table but the names tell the class: {label}_{number}; empty: "
        "folders do", scope="run",
    )  # fmt: skip
    rows: str = option(
        "", "rows of data.train_csv to train on, COLUMN=VALUE or COLUMN=VALUE|VALUE; empty: all", scope="run"
    )
    test_csv: str = option("", "table of the test rows; empty: the rows of the sample submission", scope="run")
    test_rows: str = option("", "the same of data.test_csv, which may be the same table; empty: all", scope="run")
    sample: str = option("sample_submission.csv", "sample submission, in data.folder; empty: ids and target columns")
    train_images: str = option("train_images", "folder (or zip) of the training images, in data.folder", scope="run")
    test_images: str = option("test_images", "folder (or zip) of the test images, in data.folder", scope="run")
    hidden: bool = option(
        False, "no test images are here, as in a code competition or where none are asked for: none is predicted"
    )
    id: str = option("id", "column of the image ids, in train and test tables", scope="run")
    image: str = option(
        "", "column of the images' names, in train and test tables, where ids are none; empty: data.id", scope="run"
    )
    files: list[str] = option(
        [], "an image's files, such as {id}.png; several are the channels of one image; empty: found by id", scope="run"
    )
    target: list[str] = option(["label"], "column of the target, or several", scope="run")
    separator: str = option(
        " ", "what stands between the labels of one cell, or a and b as a cell has them: ['a', 'b'] (multilabel)",
        scope="run",
    )  # fmt: skip
    long: str = option(
        "", "how rows are called where there is one for each column of an image, such as {id}_{column}; empty: one row "
        "an image", scope="run",
    )  # fmt: skip
    answers: str = option(
        "auto", "what a cell of the submission holds; auto: by the sample and the metric",
        choices=("auto", "names", "indices", "probabilities", "ranked"),
    )  # fmt: skip
    gallery: str = option(
        "", "folder or csv of images beside the test rows, which the sample's ids search; empty: none", scope="run"
    )
    role: str = option(
        "", "column of data.test_csv that tells queries from gallery; empty: the sample's ids ask", scope="run"
    )
    group: str = option("", "column whose equal values share a fold; empty: none", scope="run")
    camera: str = option(
        "", "column whose equal value makes another image of an identity no find (junk); empty: none", scope="run"
    )
    order: str = option("", "column of the time, for folds.method=time_ordered()", scope="run")
    holdout: str = option("", "column that marks validation rows with 1, for folds.method=holdout()", scope="run")
    reader: str = option("auto()", "how a file becomes pixels", part="readers", scope="run")
    channels: int = option(3, "image channels: 1 grey, 3 RGB, n as the files have them", low=1, high=64, scope="run")
    box: list[str] = option([], "four columns of a box to which each image is cropped; empty: none", scope="run")
    box_form: str = option(
        "xywh", "what the box's columns are: left, top and sizes, or two corners", choices=("xywh", "xyxy"), scope="run"
    )
    margin: float = option(0.1, "rim around the box, as a share of its longer side", low=0, high=4, scope="run")
    preprocess: list[str] = option(
        [], "changes of every image before it becomes square, in turn; cached", part="preprocesses", scope="run"
    )
    resize: str = option(
        "stretch", "how an image becomes square; tiles: it stays, and is learned and predicted in squares (masks only)",
        choices=("stretch", "pad", "crop", "tiles"), scope="run",
    )  # fmt: skip
    normalise: str = option("backbone", "pixels → what the backbone sees", part="normalises", scope="run")
    megapixels: float = option(268.0, "largest image; a larger one is refused, it may be a decompression bomb", above=0)
    skip_broken: bool = option(False, "leave out training images that do not decode instead of stopping", scope="run")
    extra: str = option(
        "", "csv of outside images beside it, with the columns of train.csv; they join the training rows alone",
        scope="run",
    )  # fmt: skip
    unlabelled: str = option(
        "", "folder (or zip) in data.folder, or pattern of paths in it, of more images that nobody labelled; those of "
        "the tables are left out"
    )  # fmt: skip
    absorbed: bool = option(True, "rows of labels/<competition>.csv, which stage=absorb writes, join the training rows")
    features: list[str] = option([], "columns of both tables that level 2 may use beside the predictions")
    tables: list[str] = option([], "more csv files whose columns level 2 may use, joined by the id")
    packed: str = option(
        "", "csv that stands for training table and images where there are none: in a package (stage=package writes it)"
    )
    cache_gb: float = option(20.0, "largest decoded cache in GB; above it images are decoded as they come", low=0)


@dataclass
class Mask:
    """How the truth of a segmentation competition is told, and how tiles are laid."""

    rle: str = option("", "column of run-length texts; empty: masks are files", scope="run")
    rows: str = option("image", "what a row of the csv is", choices=("image", "class", "object"), scope="run")
    classes: list[str] = option(
        [], "names of the classes; of files in the order of their values, with the ground; of texts without it",
        scope="run",
    )  # fmt: skip
    class_column: str = option("", "column of a row's class; empty with rows=class: the end of its id", scope="run")
    separator: str = option("_", "what stands between image and class in an id", scope="run")
    exclusive: bool = option(False, "with rows=class: each pixel has one class at most", scope="run")
    order: str = option("column", "how a text counts pixels", choices=("column", "row"), scope="run")
    base: int = option(1, "the number of the first pixel, 1 as at Kaggle, or 0", low=0, high=1, scope="run")
    starts: str = option(
        "absolute", "what a run's start counts from; relative: the end of the run before it",
        choices=("absolute", "relative"), scope="run",
    )  # fmt: skip
    empty: str = option("", "what a submission says where there is nothing", scope="")
    overlap: str = option(
        "error", "whose a pixel of two rows is, where it can have one", choices=("error", "first", "last"), scope="run"
    )
    missing: str = option("error", "an image without a row or file", choices=("error", "empty"), scope="run")
    void: str = option("", "class, value or colour whose pixels count nowhere", scope="run")
    folder: str = option("", "folder (or zip) of the mask files, in data.folder", scope="run")
    files: list[str] = option(
        [], "an image's mask file, such as {id}_mask.png; several: one a class; empty: found by id", scope="run"
    )
    pixels: str = option(
        "binary", "what the pixels of mask files mean", choices=("binary", "indices", "colours", "labels"), scope="run"
    )
    table: list[str] = option([], "value, or colour as r-g-b, of each class of files; empty: 0, 1, …", scope="run")
    least: int = option(1, "least value of binary files that is no longer black", low=1, high=65535, scope="run")


@dataclass
class Lists:
    """Lists of labels that are found among the training images, with task=retrieval(kind='labels')."""

    nearest: int = option(1, "nearest images of a label whose mean cosine is its similarity", low=1, scope="predict")
    length: int = option(50, "labels that are kept of an image, the best of them are answered", low=1, scope="predict")
    new_at: float = option(
        0.5, "cosine at which the answer for new identities stands, until level 2 fits it", low=-1, high=1,
        scope="predict",
    )  # fmt: skip


@dataclass
class Tiles:
    """Squares of image_size, with data.resize=tiles."""

    scale: float = option(
        1.0, "size at which images are learned, as a share of their own", above=0, high=8, scope="run"
    )
    foreground: float = option(
        0.5,
        "share of training squares that lie around a pixel of some class, drawn at random",
        low=0,
        high=1,
        scope="run",
    )
    overlap: float = option(0.25, "overlap of neighbours at prediction, as a share of the side", low=0, high=0.9,
        scope="predict")  # fmt: skip
    repeat: int = option(1, "squares that an epoch takes from each image", low=1, scope="run")


@dataclass
class Folds:
    """How the training rows are split."""

    count: int = option(5, "number of folds", low=2)
    method: str = option(
        "", "how rows are dealt to folds; empty: the task's way, by group if there are any", part="splits"
    )
    groups: str = option(
        "", "near_duplicates: images that stage=check found alike share a fold", choices=("", "near_duplicates")
    )
    file: str = option("", "csv of folds to take over, a team mate's: the id column and fold")
    seed: int = option(0, "seed of the split; not the training seed, so that reruns share folds", low=0)
    strict: bool = option(False, "stop when a class has fewer rows than there are folds, instead of warning")


@dataclass
class Train:
    """Details of the training loop."""

    seconds: float = option(
        0.0, "train for about so long a member instead of epochs; measured once, then recorded; 0: off", low=0,
        scope="run",
    )  # fmt: skip
    seeds: int = option(
        1, "networks a member, trained from seed, seed + 1, …; their predictions are averaged", low=1, scope="run"
    )  # fmt: skip
    accumulate: int = option(1, "batches whose gradients are added before one optimizer step", low=1, scope="run")
    clip_norm: float = option(0.0, "largest gradient norm; 0: off", low=0, scope="run")
    clip_value: float = option(0.0, "largest gradient of a single weight; 0: off; before clip_norm", low=0, scope="run")
    l1: float = option(0.0, "L1 penalty: weight of Σ|w|, biases and norms spared", low=0, scope="run")
    l2: float = option(
        0.0, "L2 penalty: weight of ½ Σw², biases and norms spared; Adam rescales it", low=0, scope="run"
    )
    scale_lr: str = option(
        "none", "lr times the ratio of the optimizer step's images to base_batch, or its root",
        choices=("none", "linear", "sqrt"), scope="run",
    )  # fmt: skip
    base_batch: int = option(256, "images an optimizer step that lr is for, where scale_lr is on", low=1, scope="run")
    presence: float = option(
        0.2, "weight of the loss of a decoder's head of labels (aux=true): is a plane anywhere in the image?", low=0,
        scope="run",
    )  # fmt: skip
    checkpointing: bool = option(False, "compute activations again in the backward pass: less memory, the same result")
    compile: bool = option(False, "torch.compile the backbone for training; minutes at the start", scope="run")
    patience: int = option(0, "epochs without gain before training stops early; 0: off", low=0, scope="run")
    threads: int = option(0, "CPU threads; 0: all cores; part of the result on a CPU", low=0, scope="run")
    labels: str = option("", "csv of pseudo-labels that join the training table (stage=pseudo writes it)", scope="run")
    soft: str = option("", "folder of soft labels, one npz a fold (stage=distill writes it)", scope="run")
    hard: str = option(
        "", "csv of ids and weights (stage=mine writes it) by which training rows count, or come with "
        "sampler=weighted()",
        scope="run",
    )  # fmt: skip
    temperature: float = option(1.0, "softens teacher and student in the distillation loss", above=0, scope="run")
    alpha: float = option(0.5, "share of the distillation loss beside the true labels'", low=0, high=1, scope="run")
    embeddings: str = option(
        "relations", "what a student of embeddings learns of its teacher's; see distill.embeddings",
        choices=("relations", "cosine"), scope="run",
    )  # fmt: skip
    checkpoint_seconds: float = option(15.0, "least seconds between two saves of last.ckpt; changes no result", low=0)


@dataclass
class Pseudo:
    """Recursive pseudo-labels."""

    rounds: int = option(1, "how often to label the test rows and train again", low=1)
    threshold: list[float] = option(
        [], "least confidence of a label: of masks of each pixel too, of retrieval the score of a neighbour; a list "
        "gives one a round; empty: 0.9, of retrieval 0.5", low=0, high=1,
    )  # fmt: skip
    cap: int = option(0, "most pseudo-labels a class and member; 0: no cap", low=0)
    core: int = option(
        2, "in retrieval: neighbours, itself counted, that make an image the core of a cluster; 2 joins what touches",
        low=2,
    )  # fmt: skip
    soft: bool = option(False, "train on the predicted probabilities instead of the most likely class")
    weight: float = option(1.0, "weight of a pseudo-labelled row beside a true one", above=0)
    crossfit: bool = option(False, "part k of the test rows stays out of member k's table, and member k predicts it")


@dataclass
class Distill:
    """Knowledge distillation."""

    teacher: list[str] = option([], "runs whose predictions are averaged into the soft labels; empty: the best run")
    source: str = option(
        "member", "who labels the training rows: the same fold's teacher, the OOF predictions, or pair teachers",
        choices=("member", "oof", "pair"),
    )  # fmt: skip
    temperature: float = option(2.0, "softens teacher and student", above=0)
    alpha: float = option(0.5, "share of the distillation loss beside the true labels'", low=0, high=1)
    unlabelled: bool = option(False, "learn from the teacher's labels of the test images too")
    embeddings: str = option(
        "relations", "what a student of retrieval learns: how its teacher's embeddings lie to each other, or, through "
        "a linear map, where each points",
        choices=("relations", "cosine"),
    )  # fmt: skip


@dataclass
class Stack:
    """Level 2."""

    name: str = option("stack", "name of the level-2 folder")
    members: list[str] = option(["all"], "runs to stack, or all that are finished and not rejected")
    methods: list[str] = option(["all"], "level-2 methods to try, ways to blend maps or to fuse searches, or all")
    choose: str = option("auto", "auto: the simplest within one paired standard error of the best; or a method's name")
    decisions: list[str] = option(
        ["all"], "thresholds, class weights, temperature, re-rankings to try: call-strings, all that fit, or none"
    )
    features: bool = option(True, "try methods that read side features: data.features, data.tables, image facts")


@dataclass
class Pretrain:
    """Learning from images alone."""

    method: str = option("simclr()", "what is learned without labels", part="pretrainers")
    images: list[str] = option(
        ["train", "test", "unlabelled"],
        "what it is learned from: images of the competition, or of folders that are named here",
    )
    epochs: int = option(0, "passes over these images; 0: four times epochs", low=0)
    batch_size: int = option(
        0, "images a step; 0: batch_size, and 128 at least where a batch is what an image is told from", low=0
    )
    augment: str = option(
        "", "augmentation, of each view by itself; empty: by method, image_size and symmetry", part="augments"
    )
    holdout: float = option(0.05, "share of the images that are not learned from, for the loss", low=0, high=0.5)


@dataclass
class Knn:
    """Nearest neighbours in a run's embedding."""

    k: int = option(20, "neighbours among the member's own training rows", low=1)
    temperature: float = option(0.1, "of the neighbours' weights, exp(cosine / temperature)", above=0)


@dataclass
class Mine:
    """What OOF confuses most."""

    power: float = option(
        1.0, "a row weighs 1 + (its loss / its fold's mean loss) to this power; 0: all alike", low=0, high=10
    )
    most: float = option(4.0, "largest weight of a row, as a multiple of the least", low=1)
    margin: float = option(
        0.1, "a row of an embedding is hard where another identity is nearer than its own, or by less than this cosine "
        "farther",
        low=0, high=2,
    )  # fmt: skip
    neighbours: int = option(3, "nearest rows of other identities that mined_pairs.csv lists of each row", low=1)
    pictures: int = option(12, "hardest rows on the sheet", low=1, high=200)


@dataclass
class Compare:
    """How two runs are compared."""

    draws: int = option(10000, "exchanges of answers in the permutation test", low=200, high=1_000_000)
    pictures: int = option(8, "rows on the sheet at most, of either side", low=1, high=100)


@dataclass
class Active:
    """What stage=select proposes to label."""

    count: int = option(100, "images that stage=select proposes to label", low=1)
    criteria: list[str] = option(
        [], "what makes an image worth a label; empty: margin, disagreement and diversity, as far as task and run have "
        "them", choices=("entropy", "margin", "disagreement", "diversity"),
    )  # fmt: skip
    weights: list[float] = option([], "weight of each of active.criteria; empty: all alike", low=0)
    pool: str = option(
        "all", "images to choose from: test images, those of data.unlabelled, or all",
        choices=("all", "test", "unlabelled"),
    )  # fmt: skip
    views: bool = option(False, "count views and scales as opinions of their own, for disagreement; predicted anew")
    page: int = option(
        200, "images of one labelling page, select.html; more make more pages; 0: none", low=0, high=2000
    )


@dataclass
class Absorb:
    """How labels that people gave join the training rows."""

    origin: str = option("", "where the labels come from, kept beside each; empty: the name of their file")
    scored: bool = option(
        True, "deal folds to the new rows, so that OOF has them; false: all members learn from them, none predicts them"
    )  # fmt: skip
    blank: bool = option(False, "a blank cell says that the image has no label (multilabel), instead of none yet")


@dataclass
class Report:
    """What report.html shows."""

    pictures: int = option(24, "worst mistakes that report.html draws", low=0, high=500)


@dataclass
class Tune:
    """The search for settings."""

    name: str = option("", "name of the search and of the model YAML it writes; empty: <run>-tuned")
    space: list[str] = option(
        ["notes"], "what is tuned: key=range texts such as lr=log(1e-5,1e-2); notes: by the number of trials; policy"
    )
    method: str = option("tpe", "how settings are suggested", choices=("tpe", "random", "grid"))
    prune: str = option("median", "what ends a weak trial after an epoch", choices=("median", "asha", "none"))
    trials: int = option(20, "short trainings", low=1)
    coarse_epochs: int = option(3, "epochs of a short training", low=1)
    fine_trials: int = option(3, "how many of the best train again, longer, beside the config as it stands", low=0)
    fine_epochs: int = option(10, "epochs of a longer training", low=1)
    folds: list[int] = option([0], "folds whose own rows score a trial; their OOF is optimistic afterwards", low=0)


@dataclass
class Search:
    """The search for a network."""

    name: str = option("", "name of the search and of the model YAML it writes; empty: <run>-searched")
    space: str = option("small()", "the networks to choose from", part="architectures")
    strategy: str = option("evolution()", "how the next network to try is chosen", part="searchers")
    trials: int = option(24, "short trainings, each of another network", low=1)
    epochs: int = option(3, "epochs of a trial", low=1)
    cost: str = option(
        "parameters", "what a network costs: weights of the backbone, or measured milliseconds an image",
        choices=("parameters", "milliseconds"),
    )  # fmt: skip
    limit: float = option(0.0, "largest cost of a network; 0: none", low=0)
    choose: str = option(
        "best", "the winner: the best score, or the cheapest within one paired standard error of it",
        choices=("best", "cheapest"),
    )  # fmt: skip
    fold: int = option(0, "fold whose rows the search never reads: its OOF stays honest", low=0)
    inner: int = option(1, "fold whose own rows score the trials; its OOF is optimistic afterwards", low=0)


@dataclass
class Auto:
    """What stage=auto chooses from."""

    backbones: list[str] = option([], "nets to measure, from cheap to dear; empty: the usual ones for such images")
    sizes: list[int] = option(
        [], "image sizes to measure; empty: half, once and one and a half times image_size", low=1
    )


@dataclass
class Features:
    """Other models than networks, on descriptors of the images."""

    descriptors: list[str] = option(
        ["hog()", "colour_histogram()", "raw_pixels()"], "what describes an image, side by side", part="descriptors"
    )
    classifier: str = option(
        "", "what learns from descriptors; empty: logistic(), or ridge() of numbers", part="classifiers"
    )
    components: int = option(
        512, "principal components of the descriptors that linear models read; 0: all columns", low=0
    )


@dataclass
class Kaggle:
    """What Kaggle is asked, by the stages that speak to it."""

    slug: str = option("", "the competition in Kaggle's addresses, kaggle.com/competitions/SLUG; empty: its name here")
    daily_limit: int = option(0, "submissions a day (UTC) that the competition takes; 0: as Kaggle says", low=0)
    wait: float = option(600.0, "most seconds that stage=submit waits for the score of an upload; 0: none", low=0)
    refresh: str = option(
        "auto", "whether stage=leaderboard asks Kaggle for scores; auto: if it can, else it takes those recorded",
        choices=("auto", "always", "never"),
    )  # fmt: skip


@dataclass
class Package:
    """What is uploaded for a code competition."""

    name: str = option("", "name of the package, and of the Kaggle dataset; empty: <competition>-<source>")
    owner: str = option("", "Kaggle user to whom the dataset belongs; empty: to be filled in by hand")
    budget: str = option("8h30m", "time of the notebook, such as 8h30m: the members done by then are averaged")
    half: bool = option(False, "store weights in 16 bits: half the size; by how much predictions move is measured")
    wheels: bool = option(False, "fetch the wheels that the notebook installs (pip download, needs the network)")
    has: list[str] = option([], "packages that the notebook's image has; empty: pipeline/wheels.py lists Kaggle's")


@dataclass
class Config:
    """The resolved settings of one command."""

    stage: str = option("all", "what to do: a verb")
    competition: str = option("digits", "configs/competition/NAME.yaml")
    model: str = option("", "configs/model/NAME.yaml; empty: the first of models")
    models: list[str] = option(["resnet18", "effnet_b0"], "the models of the recipe")
    recipe: str = option("default", "configs/recipe/NAME.yaml")
    run: str = option("", "name of the experiment; empty: the model's name")
    fold: list[str] = option(["all"], "0 | 0,2 | all | full (train on everything, no score)")

    task: str = option("multiclass", "what is predicted", part="tasks", scope="run")
    metric: str = option("", "the competition's metric; empty: the task's own", part="metrics", scope="run")
    symmetry: str = option("none", "flips and rotations that leave the label true", choices=("none", "hflip", "d4"))
    backbone: str = option(
        "resnet18", "a part of parts/backbones.py or any timm name, with arguments: resnet50(drop_path_rate=0.1)",
        scope="run",
    )  # fmt: skip
    norm: str = option("own()", "what stands in the place of the backbone's BatchNorm", part="norms", scope="run")
    activation: str = option("own()", "activation of the backbone", part="activations", scope="run")
    stem: str = option("own()", "how the backbone begins", part="stems", scope="run")
    pretrained: bool = option(True, "start from timm's weights", scope="run")
    weights: str = option("", "start from this state dict (.safetensors or .pth) instead", scope="run")
    image_size: int = option(224, "side of the square input in pixels", low=4, high=10000, scope="run")
    batch_size: int = option(32, "images a step, of all devices together", low=1, scope="run")
    epochs: int = option(10, "passes over the training rows", low=1, scope="run")
    lr: float = option(3e-4, "peak learning rate per optimizer step", above=0, scope="run")
    optim: str = option("adam()", "optimizer", part="optims", scope="run")
    schedule: str = option("cosine(warmup=0.05)", "learning rate over optimizer steps", part="schedules", scope="run")
    loss: str = option("", "training loss; empty: the task's own", part="losses", scope="run")
    loss_weight: float = option(1.0, "weight of the loss beside those of pairs", low=0, scope="run")
    pairs: list[str] = option(
        [], "losses of embeddings, by the other rows of a batch; sampler=identities() makes such batches",
        part="pairs", scope="run",
    )  # fmt: skip
    pair_weights: list[float] = option([], "weight of each of pairs; empty: the part's own", low=0, scope="run")
    decoder: str = option("", "backbone → maps; empty: the task's own, or none", part="decoders", scope="run")
    pool: str = option("avg()", "feature map → vector", part="pools", scope="run")
    head: str = option("linear()", "vector → outputs", part="heads", scope="run")
    auxiliary: str = option(
        "none()", "second head on a middle stage, in training alone", part="auxiliaries", scope="run"
    )
    augment: str = option("none()", "augmentation of single images", part="augments", scope="run")
    finetune: str = option("all_alike()", "which weights learn, and how fast", part="finetunes", scope="run")
    mix: str = option("none()", "mixing of a batch's images and labels", part="mixes", scope="run")
    sampler: str = option("shuffle()", "order and frequency of the training rows", part="samplers", scope="run")
    sizes: str = option("fixed()", "size of the training batches, over steps and epochs", part="sizes", scope="run")
    average: str = option("none()", "average of the weights over steps", part="averages", scope="run")
    consistency: str = option(
        "none()", "what images that nobody labelled, test images and data.unlabelled, add to the loss",
        part="consistencies", scope="run",
    )  # fmt: skip
    select: str = option(
        "last", "the epoch that predicts: the last, the best on its own fold, or one for all folds",
        choices=("last", "best", "common"), scope="run",
    )  # fmt: skip
    seed: int = option(0, "seed of training", low=0, high=2**32 - 1, scope="run")
    precision: str = option(
        "auto", "number format; auto: by hardware and size", choices=("auto", "fp32", "bf16", "fp16"), scope="run"
    )
    tuned: list[int] = option(
        [], "folds by whose own rows these settings were chosen (stage=tune and search write it); the tables say so",
        low=0, scope="run",
    )  # fmt: skip
    device: str = option("auto", "auto | cpu | cuda | cuda:1 | mps")
    devices: int = option(1, "devices that train a network together, a process on each; SyncBN", low=1, scope="run")
    loader: str = option(
        "auto", "where batches are made: by threads on the CPU, or on the device, where all images then lie; auto: by "
        "hardware, augment and the images' size",
        choices=("auto", "threads", "device"), scope="run",
    )  # fmt: skip
    parallel: str = option(
        "none", "folds: members train and predict side by side, one on each GPU", choices=("none", "folds")
    )
    jobs: int = option(0, "most members side by side; 0: one a GPU, or as many as the cores have room for", low=0)
    launcher: str = option("local()", "where members train and predict", part="launchers")
    tracker: str = option("none()", "where the numbers of trainings go beside log.csv and TensorBoard", part="trackers")

    views: list[str] = option(["identity()"], "test-time views", part="views", scope="predict")
    scales: list[float] = option([1.0], "test-time sizes, as shares of image_size", above=0, high=8, scope="predict")
    level: str = option(
        "last", "level of a decoder with deep=true that predicts: last, a number, or auto: the smallest as good by OOF",
        scope="predict",
    )  # fmt: skip
    cut: str = option("", "how maps become masks; empty: the task's own (level 2 chooses its numbers)", part="cuts")
    rerankings: list[str] = option(
        [], "what makes a better search of a search, in turn (retrieval; level 2 chooses them)", part="rerankings"
    )
    merge: str = option("mean()", "how views and scales become one prediction", part="merges", scope="predict")
    predict_batch: int = option(256, "images a prediction step", low=1)
    predict_compile: str = option(
        "auto", "whether predictions are made by compiled code; auto: long ones, on a CPU with bf16",
        choices=("auto", "true", "false"), scope="predict",
    )  # fmt: skip

    submission: str = option("", "path of a submission csv; empty: submissions/<competition>/<name>.csv")
    solution: str = option("", "path of a solution csv, for stage=score alone; empty: data.folder/solution.csv")
    source: str = option("", "what stage=submit turns into a csv: a run or a level-2 name; empty: the stack")
    runs: list[str] = option([], "stage=compare: two runs or level-2 names; the second is judged against the first")
    blend: list[str] = option([], "submission csvs that stage=submit averages, marked not CV")
    upload: bool = option(False, "stage=submit: submit the checked csv to Kaggle too, and wait for its score")
    message: str = option("", "stage=submit upload=true: what Kaggle shows beside it; empty: its runs and CV")
    oof: str = option("", "stage=adopt: npz or csv of out-of-fold predictions")
    test: str = option("", "stage=adopt: npz or csv of test predictions")
    labels: list[str] = option([], "stage=absorb: csv files of new labels, with the id and target columns of train.csv")
    budget: str = option(
        "", "time of the whole command, such as 8h30m, 90m or 30s: it stops training in time, and submits what is there"
    )
    overwrite: bool = option(False, "replace a finished run or an adopted one")
    name: str = option("", "stage=new: the name of the competition to write")
    quiet: bool = option(False, "say warnings and the closing table alone; runs/COMPETITION/log.jsonl has it all")
    debug: bool = option(False, "show tracebacks")

    data: Data = field(default_factory=Data)
    mask: Mask = field(default_factory=Mask)
    tiles: Tiles = field(default_factory=Tiles)
    lists: Lists = field(default_factory=Lists)
    folds: Folds = field(default_factory=Folds)
    train: Train = field(default_factory=Train)
    pseudo: Pseudo = field(default_factory=Pseudo)
    distill: Distill = field(default_factory=Distill)
    stack: Stack = field(default_factory=Stack)
    pretrain: Pretrain = field(default_factory=Pretrain)
    knn: Knn = field(default_factory=Knn)
    mine: Mine = field(default_factory=Mine)
    active: Active = field(default_factory=Active)
    absorb: Absorb = field(default_factory=Absorb)
    report: Report = field(default_factory=Report)
    compare: Compare = field(default_factory=Compare)
    tune: Tune = field(default_factory=Tune)
    search: Search = field(default_factory=Search)
    auto: Auto = field(default_factory=Auto)
    features: Features = field(default_factory=Features)
    kaggle: Kaggle = field(default_factory=Kaggle)
    package: Package = field(default_factory=Package)

    arguments: dict[str, str] = field(default_factory=dict)  # as typed; a recipe's steps are composed with them
    asked: dict[str, Any] = field(default_factory=dict)  # the values of the command line, over those of the step


@dataclass(frozen=True)
class Key:
    """One settable key: its dotted name, its type and what ``option`` says of it."""

    name: str
    type: Any
    default: Any
    rules: typing.Mapping[str, Any]

    @property
    def element(self) -> Any:
        """The type of a list's elements, or the type itself."""
        return typing.get_args(self.type)[0] if self.is_list else self.type

    @property
    def is_list(self) -> bool:
        """Whether the key takes a list."""
        return typing.get_origin(self.type) is list


@functools.cache
def keys(cls: type = Config, prefix: str = "") -> dict[str, Key]:
    """All settable keys by dotted name, in the order of their definition."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Key] = {}
    for item in dataclasses.fields(cls):
        kind = hints[item.name]
        if item.name in ("arguments", "asked"):  # which are no keys
            continue
        if dataclasses.is_dataclass(kind):
            found |= keys(typing.cast(type, kind), f"{prefix}{item.name}.")
        else:
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            found[prefix + item.name] = Key(prefix + item.name, kind, default, item.metadata)
    return found


ALIASES = {"data": "data.folder"}  # data=DIR, as people write it


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets, parentheses and quotes: ``a,shift(x=1,y=2)`` gives two items."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    items, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            items.append(current.strip())
            current = ""
        else:
            current += char
    return [item for item in [*items, current.strip()] if item]


def parse_arguments(words: list[str]) -> dict[str, str]:
    """``["fold=0", "loss=focal(gamma=2)"]`` → raw texts by key, split at the first ``=``."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not key=value; write stage={word} or see ./run.sh help")
        key = ALIASES.get(key, key)
        _known(key, "the command line")
        found[key] = text
    return found


def compose(arguments: dict[str, str], step: dict[str, Any] | None = None) -> Config:
    """Merge all layers into a checked Config; step holds the keys of a recipe's step.

    Raises UserError for an unknown key, a wrong type, a value out of range or an unknown part.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    typed = {key: convert(key, text) for key, text in arguments.items()}
    step = check_layer(step or {}, f"configs/recipe/{typed.get('recipe', '')}")
    layers = _read_layers(typed, step)
    try:
        merged = OmegaConf.merge(_blank(), *(OmegaConf.create(_nest(layer)) for layer in layers))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as fault:
        reason = str(fault).splitlines()[0]
        raise UserError(f"{fault.full_key}: {reason}; ${{KEY}} in a YAML stands for another key's value") from fault
    assert isinstance(config, Config)
    config.arguments, config.asked = dict(arguments), {**step, **typed}
    tasks.settle(config)
    check(config)
    return config


@functools.cache
def _blank() -> Any:
    """The keys with their types and defaults, which merging copies: making them costs more than all the rest."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


def _read_layers(typed: dict[str, Any], step: dict[str, Any]) -> list[dict[str, Any]]:
    base = read_layer(Path("configs/default.yaml"))

    def name(key: str, *more: dict[str, Any]) -> Any:
        return next((layer[key] for layer in (typed, step, *more, base) if key in layer), keys()[key].default)

    # stage=new writes a competition, and must not depend on the one before; stage=download comes before that
    none = typed.get("stage") == "new" or (typed.get("stage") == "download" and not _has_yaml(name("competition")))
    competition = {} if none else read_named("competition", name("competition"))
    model = name("model", competition) or name("models", competition)[0]
    return [base, competition, read_named("model", model), step, _literal({**typed, "model": model})]


def _has_yaml(competition: str) -> bool:
    return (root() / "configs/competition" / f"{competition}.yaml").is_file()


def _literal(layer: dict[str, Any]) -> dict[str, Any]:
    """Texts as they stand: a ``${`` from the command line is no interpolation."""

    def escape(value: Any) -> Any:
        if isinstance(value, list):
            return [escape(item) for item in value]
        return value.replace("${", "\\${") if isinstance(value, str) else value

    return {key: escape(value) for key, value in layer.items()}


def replace(config: Config, **changes: Any) -> Config:
    """A checked copy with other values, by dotted key with ``__`` for the dot: ``replace(c, train__soft="x")``."""
    fresh = changed(config, **changes)
    check(fresh)
    return fresh


def changed(config: Config, **changes: Any) -> Config:
    """The same, not checked: for work in which not every key has its usual part."""
    fresh = dataclasses.replace(config)
    for key in keys():
        owner, _, leaf = key.rpartition(".")
        if owner and any(name.startswith(owner + "__") for name in changes):
            setattr(fresh, owner, dataclasses.replace(getattr(config, owner)))
    for name, value in changes.items():
        key = name.replace("__", ".")
        _known(key, "replace")
        owner, _, leaf = key.rpartition(".")
        setattr(getattr(fresh, owner) if owner else fresh, leaf, value)
    return fresh


def restore(values: dict[str, Any]) -> Config:
    """The checked config that ``flatten`` told, in another process."""
    return replace(Config(), **{key.replace(".", "__"): value for key, value in values.items()})


def flatten(config: Config) -> dict[str, Any]:
    """Values by dotted key."""
    return {key: functools.reduce(getattr, key.split("."), config) for key in keys()}


def scoped(config: Config, scope: str) -> dict[str, Any]:
    """The values whose change means another run ("run") or other predictions ("predict")."""
    return {key: value for key, value in flatten(config).items() if keys()[key].rules["scope"] == scope}


def same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a key mean the same: they are equal, or call-strings that differ in quotes and spaces."""
    if one == other or not keys()[name].rules["part"] or type(one) is not type(other):
        return bool(one == other)
    pairs = [(one, other)] if isinstance(one, str) else list(zip(one, other, strict=False))
    if not isinstance(one, str) and len(one) != len(other):
        return False
    return all(first and second and registry.parse(first) == registry.parse(second) for first, second in pairs)


def read_named(kind: str, name: str) -> dict[str, Any]:
    """The layer ``configs/<kind>/<name>.yaml``; a missing one names the nearest that exists."""
    path = Path(f"configs/{kind}/{name}.yaml")
    if not (root() / path).is_file() or Path(name).name != name:
        there = sorted(p.stem for p in (root() / "configs" / kind).glob("*.yaml"))
        raise UserError(
            f"{kind}={name!r}, but {path} does not exist; there are: {', '.join(there)}{nearest(name, there)}"
        )
    return read_layer(path)


def read_layer(path: Path) -> dict[str, Any]:
    """One YAML file as checked values by dotted key."""
    return check_layer(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """A YAML file's plain contents; a fault in it names file and line."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        return copy.deepcopy(_parsed((root() / path).read_text(encoding="utf-8")))
    except FileNotFoundError as fault:
        raise UserError(f"{path} does not exist") from fault
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{path} cannot be read as YAML: {fault}") from fault


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """A YAML file's contents; kept, since a recipe that has nothing to do reads a run's config.yaml dozens of times."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text))) or {}


def check_layer(layer: Any, where: str) -> dict[str, Any]:
    """Flatten a nested mapping to dotted keys and check names and types; interpolations are left for later."""
    if not isinstance(layer, dict):
        raise UserError(f"{where} must hold key: value lines, but holds {layer!r}")
    found: dict[str, Any] = {}
    for key, value in layer.items():
        if key in Config.__dataclass_fields__ and isinstance(value, dict) and key not in keys():
            nested = {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            nested = {ALIASES.get(str(key), str(key)): value}
        for name, item in nested.items():
            _known(name, where)
            found[name] = item if isinstance(item, str) and "${" in item else _typed(keys()[name], item, where)
    return found


def convert(name: str, text: str) -> Any:
    """Raw text from the command line → the key's type."""
    key = keys()[name]
    if key.is_list:
        return [_from_text(key, item) for item in split_list(text)]
    return _from_text(key, text)


def _from_text(key: Key, text: str) -> Any:
    if key.element is str:
        return text
    if key.element is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UserError(f"{key.name}={text}, but {key.name} is true or false")
    try:
        return key.element(text)
    except ValueError as fault:
        raise UserError(f"{key.name}={text}, but {key.name} is {_type_name(key)}: {key.rules['help']}") from fault


def _typed(key: Key, value: Any, where: str) -> Any:
    values = value if isinstance(value, list) and key.is_list else [value]
    if not key.is_list and isinstance(value, (list, dict)):
        raise UserError(f"{where}: {key.name}={value!r}, but {key.name} is {_type_name(key)}")
    typed = [_one(key, item, where) for item in values]
    return typed if key.is_list else typed[0]


def _one(key: Key, value: Any, where: str) -> Any:
    wanted = key.element
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, str):  # YAML reads 1e-4 as a text
        try:
            return float(value)
        except ValueError:
            pass
    if wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where}: {key.name}={value!r}, but {key.name} is {_type_name(key)}")


def _type_name(key: Key) -> str:
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[key.element]
    return f"a list, each {name}" if key.is_list else name


def _known(key: str, where: str) -> None:
    if key not in keys():
        close = difflib.get_close_matches(key, list(keys()), n=1, cutoff=0.5)
        leaf = [name for name in keys() if name.rpartition(".")[2] == key]
        hint = f"; did you mean {(leaf or close)[0]}?" if leaf or close else "; see ./run.sh help config"
        raise UserError(f"{where}: there is no key {key!r}{hint}")


def _nest(layer: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in layer.items():
        owner, _, leaf = key.rpartition(".")
        (nested.setdefault(owner, {}) if owner else nested)[leaf] = value
    return nested


def check(config: Config) -> None:
    """Ranges, choices and call-strings of every key; raises UserError at the first that does not fit."""
    for name, value in flatten(config).items():
        if value == [] and keys()[name].default:
            raise UserError(f"{name} is empty, but needs at least one value: {keys()[name].rules['help']}")
        for item in value if isinstance(value, list) else [value]:
            _check_value(keys()[name], item)
    rules.check(config)


def _check_value(key: Key, value: Any) -> None:
    limits = key.rules
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(
            f"{key.name}={value}, but {key.name} is one of {', '.join(map(str, limits['choices']))}"
            f"{nearest(str(value), map(str, limits['choices']))}"
        )
    if limits["part"] and not value == key.default == "":
        try:
            registry.bind(limits["part"], value)
        except UserError as fault:
            raise UserError(f"{key.name}={value}: {str(fault).removeprefix(f'{value!r}: ')}") from fault
    bounds = [("≥", limits["low"]), ("≤", limits["high"]), (">", limits["above"])]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not _inside(value, limits):
        allowed = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None) or "finite"
        allowed = allowed if abs(value) < math.inf else "finite"
        raise UserError(f"{key.name}={value}, but {key.name} must be {allowed}: {limits['help']}")


def _inside(value: float, limits: typing.Mapping[str, Any]) -> bool:
    low, high, above = limits["low"], limits["high"], limits["above"]
    return (
        abs(value) < math.inf
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )
