"""Masks: the whole recipe for each kind, maps through views, scales and tiles, and the files between stages."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import small_tasks

from pipeline import config as settings
from pipeline.config import Config, compose
from pipeline.maps import Maps
from pipeline.runs import Run
from pipeline.tasks import task_for

KINDS = ("masks", "class_masks", "objects")
QUICK = ("epochs=4", "pseudo.threshold=0.3", "distill.unlabelled=true")


def drawn(**changes: object) -> Config:
    return settings.replace(compose({"competition": "drawn"}), **changes)


class Arrays(Maps):
    """Maps in memory."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays, self.columns = arrays, len(arrays[0])

    def __len__(self) -> int:
        return len(self.arrays)

    def one(self, row: int) -> np.ndarray:
        return self.arrays[row]


def random_maps(count: int, planes: int = 1, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(5, 12, (count, 2))
    return Arrays([np.rint(generator.random((planes, *size)) * 255).astype(np.float32) / 255 for size in sizes])


# --- the recipe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_recipe_submits_and_is_not_done_twice(project, kind: str) -> None:
    small_tasks.write_masks(project.root, kind)
    ended = project.run("stage=all", *QUICK)
    assert ended.code == 0, ended.err
    assert "public" in ended.out, "the solution has a Usage"
    for name in ("tiny", "tiny-r1", "tiny-distilled"):
        run = Run(drawn(), name)
        oof = run.oof()
        assert oof.ids.tolist() == run.competition.train["id"].to_numpy()[run.scored].tolist()
        told = task_for(drawn(), run.competition).targets(run.competition.targets)
        for row in range(len(oof.ids)):
            assert oof.values.one(row).shape[1:] == told.one(row).shape[-2:], "maps have their images' own sizes"
    frame = pd.read_csv(project.root / "submissions/drawn/stack.csv", dtype=str, keep_default_na=False)
    sample = pd.read_csv(project.root / "data/drawn/sample_submission.csv", dtype=str)
    assert list(dict.fromkeys(frame["id"])) == sample["id"].tolist()
    again = project.run("stage=all", *QUICK)
    assert again.code == 0, again.err
    assert "train tiny fold0" not in again.out
    assert "predict tiny fold0" not in again.out


def test_what_is_missing_is_made_again_and_nothing_else(project) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10)
    words = ("epochs=2", "pseudo.threshold=0.5", "stage=pseudo")
    for stage in ("train", "predict", "pseudo"):
        assert project.run(*words[:2], f"stage={stage}").code == 0
    folder = project.root / "runs/drawn/tiny-r1"
    before = {path: path.read_bytes() for path in [*folder.glob("*/test.maps"), *folder.glob("labels*")]}
    assert {path.name for path in before} >= {"labels-r1.csv", "labels-r1-fold0.npz", "labels-r1-fold1.maps"}
    shutil.rmtree(folder / "fold1")  # as if it was killed there
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert "train tiny-r1 fold1" in ended.out
    assert "train tiny-r1 fold0" not in ended.out
    assert {path: path.read_bytes() for path in before} == before
    refused = project.run(*words, "pseudo.soft=true")
    assert refused.code == 2
    assert "came out differently" in refused.err


def test_labels_whose_planes_were_changed_are_refused(project) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10)
    for stage in ("train", "predict", "pseudo"):
        assert project.run("epochs=1", "pseudo.threshold=0.5", f"stage={stage}").code == 0
    labels = "train.labels=runs/drawn/tiny-r1/labels-r1.csv"
    other = project.run("epochs=1", "stage=train", "run=small", "image_size=8", labels)
    assert other.code == 2
    assert "planes made for stretch, 16, but this run works at stretch, 8" in other.err
    folder = project.root / "runs/drawn/tiny-r1"
    shutil.copy(folder / "labels-r1-fold1.npz", folder / "labels-r1-fold0.npz")
    changed = project.run("epochs=1", "stage=train", "run=again", labels)
    assert changed.code == 2
    assert "labels-r1-fold0.npz is not what" in changed.err


@pytest.mark.parametrize("resize", ["pad", "crop", "tiles"])
def test_other_sizes_take_labels_and_teachers_too(project, resize: str) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10, tests=4)
    words = ("epochs=2", f"data.resize={resize}", "image_size=8", "tiles.repeat=2", *QUICK[1:])
    for stage in ("train", "predict", "pseudo", "distill"):
        ended = project.run(*words, f"stage={stage}")
        assert ended.code == 0, ended.err
    for name in ("tiny-r1", "tiny-distilled"):
        assert len(Run(drawn(), name).oof().ids) == 10


@pytest.mark.parametrize("stage", ["knn", "features", "adopt"])
def test_stages_without_a_use_for_masks_say_so(project, stage: str) -> None:
    small_tasks.write_masks(project.root, "masks", rows=4, tests=2)
    ended = project.run(f"stage={stage}")
    assert ended.code == 2
    assert f"stage={stage} is not made for task=segmentation" in ended.err
