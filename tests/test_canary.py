"""Law 1 as a whole: labels are drawn at random and the test images are the training images, so that whatever of a
row's label reaches the member that predicts the row shows as a score above chance.

Members know their own rows by heart, and their labels of the duplicates with them. The naive variant, labels from the
average of all members, shows what a leak looks like here.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_tasks
import small_training as small

from pipeline import evaluate, masked, runs
from pipeline.__main__ import main
from pipeline.artefacts import Predictions, file_digest
from pipeline.competition import load
from pipeline.config import compose
from pipeline.forms import unit
from pipeline.runs import Run
from pipeline.tasks import task_for
from pipeline.tasks.multiclass import Multiclass

ROWS, FOLDS, CLASSES = 240, 4, "abcd"
CHANCE = 1 / len(CLASSES)
LIMIT = CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / ROWS)  # 3 bootstrapped standard errors of a score at chance
CONFIG = {"epochs": 40, "batch_size": 60, "lr": "1e-2"}


@dataclass(frozen=True)
class Canary:
    """The competition with its baseline run ``tiny`` trained and predicted."""

    root: Path

    def run(self, *words: str) -> str:
        """What a command prints; it must succeed."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(list(words))
        assert code == 0, err.getvalue()
        return out.getvalue()

    def oof(self, run: str) -> float:
        """The accuracy of a run's OOF predictions, from its files."""
        return accuracy(Run(small.config(), run).oof().values, truth())

    def labels(self, run: str) -> pd.DataFrame:
        return pd.read_csv(self.root / f"runs/noise/{run}/labels-r1.csv")


def truth() -> np.ndarray:
    """(240,) class of each training row, and of the test row that is its duplicate."""
    return Multiclass(CLASSES).targets(load(small.config()).targets)


def accuracy(values: np.ndarray, classes: np.ndarray) -> float:
    return float(np.mean(values.argmax(axis=1) == classes))


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory):
    """Trained once for all tests of this file."""
    root = tmp_path_factory.mktemp("canary")
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    small.write(root, rows=ROWS, folds=FOLDS, classes=CLASSES, learnable=False)
    model = root / "configs/model/tiny.yaml"
    model.write_text("".join(f"{key}: {value}\n" for key, value in {**small.MODEL, **CONFIG}.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        canary = Canary(root)
        canary.run("stage=train")
        canary.run("stage=predict")
        yield canary


@pytest.fixture(scope="module")
def pseudo(canary: Canary) -> str:
    """A round of pseudo-labels."""
    canary.run("stage=pseudo", "pseudo.threshold=0.5")
    return "tiny-r1"


@pytest.fixture(scope="module")
def student(canary: Canary) -> str:
    """A student of the same fold's teachers."""
    canary.run("stage=distill", "distill.source=member", "distill.teacher=tiny", "distill.unlabelled=true")
    return "tiny-distilled"


def test_the_competition_is_what_a_canary_needs(canary):
    competition = load(small.config())
    pictures = [
        [(competition.folder / file).read_bytes() for file in frame["file"]]
        for frame in (competition.train, competition.test)
    ]
    assert pictures[0] == pictures[1], "the test images are the training images"
    assert len(set(pictures[0])) == ROWS, "no two training images are alike"
    assert not set(competition.train["id"]) & set(competition.test["id"])
    assert np.bincount(truth()).tolist() == [ROWS // 4] * 4


def test_training_stays_at_chance(canary):
    assert canary.oof("tiny") <= LIMIT


def test_members_know_their_own_rows_and_so_the_duplicates(canary, student):
    """Without this the canary could not sing: it is what gives the other tests their power."""
    run = Run(small.config(), "tiny")
    for fold in range(FOLDS):
        own = run.folds != fold
        taught = Predictions.load(canary.root / f"runs/noise/{student}/soft/fold{fold}.npz")
        assert accuracy(taught.values, truth()[own]) >= 0.99
        assert accuracy(run.tests()[fold].values[own], truth()[own]) >= 0.99


def test_pseudo_labels_stay_at_chance(canary, pseudo):
    made = canary.labels(pseudo)
    assert made["for_fold"].value_counts().min() >= ROWS / 2, "at least half of the test rows, for each member"
    assert canary.oof(pseudo) <= LIMIT


@pytest.mark.slow
def test_absorbed_labels_of_copies_stay_at_chance(canary, tmp_path, monkeypatch):
    """Somebody labels test images that are copies of training images: each label must stay in its copy's fold."""
    root = tmp_path / "project"
    shutil.copytree(canary.root, root)
    monkeypatch.setenv("PIPELINE_ROOT", str(root))
    test, labels = load(small.config()).test["id"], load(small.config()).targets["label"]
    told = pd.DataFrame({"id": test, "label": labels}).sample(ROWS // 2, random_state=0)
    told.to_csv(root / "told.csv", index=False)
    canary.run("stage=absorb", "labels=told.csv")
    canary.run("stage=train", "run=told")
    canary.run("stage=predict", "run=told")
    run = Run(small.config(), "told")
    assert len(run.oof().ids) == ROWS * 3 // 2
    assert accuracy(run.oof().values, truth()) <= LIMIT


@pytest.mark.slow
def test_soft_crossfitted_pseudo_labels_stay_at_chance(canary):
    shutil.copytree(canary.root / "runs/noise/tiny", canary.root / "runs/noise/twin")
    canary.run("stage=pseudo", "run=twin", "pseudo.threshold=0.5", "pseudo.crossfit=true", "pseudo.soft=true")
    made, parts = canary.labels("twin-r1"), runs.test_parts(ROWS, FOLDS, 0)
    ids = load(small.config()).test["id"].to_numpy()
    assert made["for_fold"].value_counts().min() >= ROWS / 2
    for fold in range(FOLDS):
        assert not set(made[made["for_fold"] == fold]["id"]) & set(ids[parts == fold])
    assert canary.oof("twin-r1") <= LIMIT


def test_distillation_stays_at_chance(canary, student):
    assert canary.oof(student) <= LIMIT


@pytest.mark.slow
def test_distillation_from_oof_leaks_at_second_order_and_says_so(canary):
    """Its teachers saw the student's fold: over six seeds OOF came to 0.31 ± 0.01, where chance is 0.25."""
    from pipeline.stages import distill

    [outcome] = distill.run(small.config(run="leaky", distill__source="oof", distill__teacher=["tiny"]))
    assert "second-order leak" in outcome.note
    assert canary.oof("leaky") < 0.45


SLOWER = [pytest.param(call, marks=pytest.mark.slow) for call in ("fixmatch(threshold=0.6)", "softmatch(ratio=3.0)")]


@pytest.mark.parametrize("call", ["mean_teacher()", *SLOWER])
def test_consistency_on_the_copies_stays_at_chance(canary, call):
    """The pool holds a copy of each held-out row; one member will do: its own rows' labels would show as 0.99."""
    words = (f"run={call[:4]}", "fold=0", f"consistency={call}")
    canary.run("stage=train", *words)
    canary.run("stage=predict", *words)
    own, folder = Run(small.config(), "tiny").folds == 0, canary.root / f"runs/noise/{call[:4]}/fold0"
    oof, test = (Predictions.load(folder / name).values for name in ("oof.npz", "test.npz"))
    assert accuracy(oof, truth()[own]) <= CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / own.sum())
    assert accuracy(test[~own], truth()[~own]) >= 0.9, "else the canary could not sing: it knows its own rows"


def test_learning_from_hard_rows_stays_at_chance_and_names_its_leak(canary):
    """Second order: who found a row hard had learned fold 0. One member will do: its own labels would show as 0.99."""
    canary.run("stage=mine", "run=tiny")
    hard = pd.read_csv(canary.root / "runs/noise/tiny/mined.csv")
    assert hard["weight"].max() > 1.5, "else nothing is learned otherwise"
    words = ("run=hard", "fold=0")
    told = canary.run("stage=train", *words, "train.hard=runs/noise/tiny/mined.csv", "sampler=weighted()")
    assert "second-order leak: rows weighed by OOF" in told
    canary.run("stage=predict", *words)
    own = Run(small.config(), "hard").folds == 0
    oof = Predictions.load(canary.root / "runs/noise/hard/fold0/oof.npz")
    assert accuracy(oof.values, truth()[own]) <= CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / own.sum())


@pytest.mark.slow
def test_distillation_from_pairs_stays_at_chance(canary):
    canary.run("stage=distill", "run=paired", "distill.source=pair", "distill.teacher=tiny")
    assert canary.oof("paired") <= LIMIT


def test_learning_from_images_alone_tells_nothing_of_labels(canary):
    """One file for all folds, learned from all images, whose duplicates the test has. One member will do, see above."""
    canary.run("stage=pretrain", "pretrain.method=simsiam()", "pretrain.epochs=10")
    words = ("run=begun", "fold=0")
    canary.run("stage=train", *words, "weights=runs/noise/pretrain-simsiam/weights.safetensors")
    canary.run("stage=predict", *words)
    run = Run(small.config(), "begun")
    own, test = run.folds == 0, Predictions.load(canary.root / "runs/noise/begun/fold0/test.npz")
    oof = Predictions.load(canary.root / "runs/noise/begun/fold0/oof.npz")
    assert accuracy(oof.values, truth()[own]) <= CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / own.sum())
    assert accuracy(test.values[~own], truth()[~own]) >= 0.99, "else the canary could not sing: it knows its own rows"


def test_neighbours_in_the_embedding_stay_at_chance(canary):
    canary.run("stage=knn", "run=tiny")
    assert canary.oof("tiny-knn") <= LIMIT


def test_models_of_descriptors_stay_at_chance(canary):
    described = "features.descriptors=raw_pixels(size=8),visual_words(words=60,patch=3,stride=1,size=8)"
    for name in ("svm()", "lightgbm(leaf_rows=2)", "logistic(penalty=1e-4)"):
        canary.run("stage=features", "run=described", described, f"features.classifier={name}", "overwrite=true")
        assert canary.oof("described") <= LIMIT
    run = Run(small.config(), "described")
    for fold, test in enumerate(run.tests()):
        own, chance = run.folds != fold, CHANCE + 4 * math.sqrt(CHANCE * (1 - CHANCE) / (ROWS / FOLDS))
        assert accuracy(test.values[own], truth()[own]) >= 0.95, "else the canary could not sing: it knows its own rows"
        assert accuracy(test.values[~own], truth()[~own]) <= chance


def test_a_stack_stays_at_chance(canary, pseudo, student):
    canary.run("stage=knn", "run=tiny")
    canary.run("stage=stack", f"stack.members=tiny,tiny-knn,{pseudo},{student}")
    nested = Predictions.load(canary.root / "runs/noise/level2/stack/nested.npz")
    assert accuracy(nested.align(load(small.config()).train["id"].to_numpy()).values, truth()) <= LIMIT


@pytest.mark.slow
def test_the_naive_variant_leaks(canary):
    """The average of all members' test predictions, given to every member: the usual way, and a leak."""
    run, task = Run(small.config(), "tiny"), Multiclass(CLASSES)
    mean = np.mean([member.values for member in run.tests()], axis=0)
    rows, labels = task.pseudo_labels(mean, 0.5)
    ids = load(small.config()).test["id"].to_numpy()[rows]
    one = pd.DataFrame({"id": ids, **labels, "weight": 1.0})
    naive = pd.concat([one.assign(for_fold=fold) for fold in range(FOLDS)])
    naive.to_csv(canary.root / "naive.csv", index=False)
    canary.run("stage=train", "run=naive", "train.labels=naive.csv")
    canary.run("stage=predict", "run=naive")
    assert canary.oof("naive") > 0.8


# --- masks --------------------------------------------------------------------------------------------------------

IMAGES = 64
HALF = 0.5 + 3 * math.sqrt(0.25 / IMAGES)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory):
    """The same with masks: the left or the right half of noise, by chance; run ``tiny`` trained and predicted."""
    root = tmp_path_factory.mktemp("masks")
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    small_tasks.write_random_masks(root, IMAGES, 2, epochs="30", lr="1e-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        canary = Canary(root)
        canary.run("stage=train")
        canary.run("stage=predict")
        yield canary


def drawn(name: str) -> Run:
    return Run(compose({"competition": "drawn"}), name)


def told_apart(run: Run, maps, rows: np.ndarray) -> float:
    """The share of images whose true half is the likelier one; 0.5 by chance. rows: of the training table."""
    truth = task_for(run.config, run.competition).targets(run.competition.targets)[rows]
    pairs = [(truth.one(row)[0] == 1, maps.one(row)[0]) for row in range(len(rows))]
    return float(np.mean([map_[half].mean() > map_[~half].mean() for half, map_ in pairs]))


def oof_of_masks(name: str) -> float:
    run = drawn(name)
    return told_apart(run, run.oof().values, run.scored)


def test_masks_known_by_heart_stay_at_chance_out_of_fold(masks):
    run = drawn("tiny")
    assert oof_of_masks("tiny") <= HALF
    for fold, test in enumerate(run.tests()):
        own = np.flatnonzero(run.folds != fold)
        assert told_apart(run, test.values[own], own) >= 0.95, "else the canary could not sing"


def test_pseudo_labelled_masks_stay_at_chance(masks):
    masks.run("stage=pseudo", "pseudo.threshold=0.6")
    made = pd.read_csv(masks.root / "runs/drawn/tiny-r1/labels-r1.csv")
    assert made["for_fold"].value_counts().min() >= IMAGES / 2, "at least half of the test images, for each member"
    assert oof_of_masks("tiny-r1") <= HALF


def test_distilled_masks_stay_at_chance(masks):
    masks.run("stage=distill", "distill.teacher=tiny", "distill.unlabelled=true")
    assert oof_of_masks("tiny-distilled") <= HALF


@pytest.mark.slow
def test_the_naive_variant_leaks_masks(masks):
    """Each member is given the test maps of the other one, which has seen its fold."""
    run = drawn("tiny")
    task, ids, path = task_for(run.config, run.competition), run.competition.test["id"].to_numpy(), masks.root / "n.csv"
    sizes, frames = np.full((IMAGES, 2), 8), []
    for fold, other in enumerate(reversed(run.tests())):
        file = masked.given_file(path, fold)
        planes = [task.pseudo_planes(other.values.one(row), 0.6, False) for row in range(IMAGES)]
        masked.write_given(run.config, file, ids, sizes, planes)
        frames.append(pd.DataFrame({"id": ids, "weight": 1.0, "for_fold": fold, "planes": file_digest(file)}))
    pd.concat(frames).to_csv(path, index=False)
    masks.run("stage=train", "run=naive", "train.labels=n.csv")
    masks.run("stage=predict", "run=naive")
    assert oof_of_masks("naive") > 0.8


# --- identities ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory):
    """The same of an open set: noise images, six an identity by chance; run ``tiny`` trained and predicted."""
    root = tmp_path_factory.mktemp("identities")
    shutil.copytree(small.SOURCE / "configs", root / "configs")
    model = {"epochs": "40", "lr": "1e-2", "batch_size": "48", "sampler": "identities(p=8,k=6)"}
    model |= {"rerankings": "['k_reciprocal(k1=5,k2=2)']", "metric": "mean_average_precision(k=5)"}
    small_tasks.write_random_identities(root, 16, 6, **model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        canary = Canary(root)
        canary.run("stage=split")
        canary.run("stage=train")
        canary.run("stage=predict")
        yield canary


def found(values: np.ndarray, run: Run, truth: np.ndarray) -> float:
    """The mAP@5 of embeddings that search their own pools."""
    return evaluate.metric(run.config.metric, task_for(run.config, run.competition))(truth, values)


def oof_of_identities(name: str) -> float:
    run = drawn(name)
    return found(run.oof().values, run, run.truth(task_for(run.config, run.competition)))


@pytest.fixture(scope="module")
def most_by_chance(identities: Canary) -> float:
    """Four deviations above the mean of embeddings drawn at random."""
    run = drawn("tiny")
    truth = run.truth(task_for(run.config, run.competition))
    points = [unit(np.random.default_rng(seed).normal(size=(len(truth), 12))) for seed in range(20)]
    scores = [found(one, run, truth) for one in points]
    return float(np.mean(scores) + 4 * np.std(scores))


def test_identities_known_by_heart_stay_at_chance_out_of_fold(identities, most_by_chance):
    run = drawn("tiny")
    assert oof_of_identities("tiny") <= most_by_chance < 0.15
    truth = task_for(run.config, run.competition).targets(run.competition.targets)
    for fold, test in enumerate(run.tests()):
        own = run.folds != fold
        assert found(test.values[own], run, truth[own]) >= 0.9, "else the canary could not sing: it knows its own"


def test_clusters_of_a_members_own_stay_at_chance(identities, most_by_chance):
    identities.run("stage=pseudo", "pseudo.threshold=0.4")
    made = pd.read_csv(identities.root / "runs/drawn/tiny-r1/labels-r1.csv")
    assert made["for_fold"].value_counts().min() >= 48, "at least half of the test images, for each member"
    assert oof_of_identities("tiny-r1") <= most_by_chance


@pytest.mark.parametrize("learned", ["relations", pytest.param("cosine", marks=pytest.mark.slow)])
def test_a_teachers_embeddings_stay_at_chance(identities, most_by_chance, learned):
    words = ["stage=distill", "distill.teacher=tiny", "distill.unlabelled=true", f"distill.embeddings={learned}"]
    identities.run(*words, f"run=taught-{learned}")
    assert oof_of_identities(f"taught-{learned}") <= most_by_chance


@pytest.mark.slow
def test_clusters_of_all_members_leak(identities, most_by_chance):
    """All members' embeddings side by side, whose clusters are given to each: the usual way."""
    run = drawn("tiny")
    both = Predictions.mean(run.tests())
    rows, labels = task_for(run.config, run.competition).pseudo_labels(both.values, 0.4)
    one = pd.DataFrame({"id": both.ids[rows], **labels, "weight": 1.0})
    pd.concat([one.assign(for_fold=fold) for fold in (0, 1)]).to_csv(identities.root / "n.csv", index=False)
    identities.run("stage=train", "run=naive", "train.labels=n.csv")
    identities.run("stage=predict", "run=naive")
    assert oof_of_identities("naive") > 2 * most_by_chance
