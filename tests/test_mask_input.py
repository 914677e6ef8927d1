"""Damaged masks: one message each, exit 2, before any training; and all of them at once from stage=check."""

from __future__ import annotations

import json

import drawn
import numpy as np
import pandas as pd
import pytest

from pipeline import config as settings
from pipeline import folds, registry
from pipeline.competition import load
from pipeline.tasks import task_for


def settled(project, name, *words):
    """A drawn competition with the config that stage=new writes; its folder."""
    folder = drawn.write(name, project.root / "data")
    ended = project.run("stage=new", f"name={name}", f"data=data/{name}", *words)
    assert ended.code == 0, ended.err
    return folder


def stopped(project, name, *words):
    """The message of a stage that must stop on the masks; blanks and line ends made one."""
    ended = project.run("stage=split", f"competition={name}", "folds.count=2", *words)
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err
    assert not (project.root / f"folds/{name}.csv").exists()
    return " ".join(ended.err.split())


def cell(folder, name, row, column, text):
    """Change a cell of a csv."""
    table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    table.loc[row, column] = text
    table.to_csv(folder / name, index=False)


def findings(project, name):
    """The findings of stage=check by kind; it must end well."""
    ended = project.run("stage=check", f"competition={name}", "folds.count=2")
    assert ended.code == 0, ended.err
    record = json.loads((project.root / f"runs/{name}/check.json").read_text())
    return {one["kind"]: one for one in record["findings"]}


# --- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1270 20", "run 1 of 1 (start 1270, length 20) ends 9 pixels after the image's 1280"),
        ("3 4 9", "3 numbers, but each run has two, start and length; the last is 9"),
        ("0 4", "begins before the image, whose first pixel is 1; see the base"),
        ("9 4 11 2", "run 2 of 2 (start 11, length 2) begins before the run before it ends"),
        ("9 x", "number 2 of 2 is 'x'"),
    ],
)
def test_a_damaged_text_is_named_with_its_line_and_image(project, text, said):
    folder = settled(project, "mask_rows")
    cell(folder, "train.csv", 1, "rle_mask", text)
    message = stopped(project, "mask_rows")
    assert "train.csv, line 3, image 07919x (40×32 pixels)" in message
    assert said in message
    cell(folder, "train.csv", 3, "rle_mask", "1 9999")
    found = findings(project, "mask_rows")["damaged masks"]
    assert (found["severity"], found["count"]) == ("fault", 2)
    assert said in found["title"]
    assert "line 5" in found["examples"][1]["remark"]


def test_objects_that_share_pixels_are_named_unless_a_key_says_whose_they_are(project):
    settled(project, "mask_objects")
    message = stopped(project, "mask_objects", "mask.overlap=error")
    assert "image n2: objects 1 and 2 of" in message
    assert "mask.overlap=first or mask.overlap=last" in message or "mask.overlap=first or last" in message
    assert findings(project, "mask_objects")["overlapping masks"]["severity"] == "note"
    path = project.root / "configs/competition/mask_objects.yaml"
    path.write_text(path.read_text().replace("overlap: first", "overlap: error"))
    assert findings(project, "mask_objects")["overlapping masks"]["severity"] == "fault"


def test_a_class_that_is_not_listed_is_named(project):
    folder = settled(project, "mask_classes")
    cell(folder, "train.csv", 0, "Image_Class", "00000x.jpg_7")
    assert "1 classes that mask.classes lacks: '7'" in stopped(project, "mask_classes")


def test_images_without_a_row_are_noted(project):
    settled(project, "mask_class_column")
    found = findings(project, "mask_class_column")
    assert (found["images without a row"]["count"], found["images without a row"]["severity"]) == (3, "note")
    assert "masks missing" not in found


# --- files --------------------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_than_its_image_is_named(project):
    folder = settled(project, "mask_files")
    (folder / "train_masks/00000x_mask.png").unlink()  # a folder that changed is read again
    drawn.grey(folder / "train_masks/00000x_mask.png", np.zeros((32, 41), dtype=np.uint8))
    assert "00000x_mask.png: a mask of 41×32, but its image is 40×32" in stopped(project, "mask_files")
    assert findings(project, "mask_files")["mask sizes"]["count"] == 1


def test_a_value_that_no_class_has_is_named(project):
    folder = settled(project, "mask_indices")
    (folder / "train/masks/00000x.png").unlink()
    drawn.grey(folder / "train/masks/00000x.png", np.full((32, 40), 9, dtype=np.uint8))
    message = stopped(project, "mask_indices")
    assert "1,280 pixels, the first at row 0, column 0, have the values 9" in message
    assert "mask.classes=3, so that a class is 0 to 2" in message
    assert findings(project, "mask_indices")["mask values"]["count"] == 1


def test_an_image_without_a_mask_file_is_an_error_until_a_key_says_that_it_is_empty(project):
    folder = settled(project, "mask_files")
    (folder / "train_masks/00000x_mask.png").unlink()
    message = stopped(project, "mask_files")
    assert "1 of 18 images have no mask file in train_masks: 00000x.png" in message
    assert "mask.missing=empty" in message
    found = findings(project, "mask_files")["masks missing"]
    assert (found["severity"], found["count"]) == ("fault", 1)
    ended = project.run("stage=split", "competition=mask_files", "folds.count=2", "mask.missing=empty")
    assert ended.code == 0, ended.err


def test_a_mask_that_does_not_decode_is_named(project):
    folder = settled(project, "mask_files")
    (folder / "train_masks/00000x_mask.png").unlink()
    (folder / "train_masks/00000x_mask.png").write_bytes(b"no image")
    assert "00000x_mask.png" in stopped(project, "mask_files")
    assert findings(project, "mask_files")["damaged masks"]["count"] == 1


# --- what is sound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask_classes", "mask_labels"])
def test_sound_masks_have_no_fault_and_are_summed_up(project, name):
    settled(project, name)
    found = findings(project, name)
    assert all(one["severity"] == "note" for one in found.values() if one["kind"] != "rare classes"), found
    record = json.loads((project.root / f"runs/{name}/check.json").read_text())
    sheet = next(sheet for sheet in record["sheets"] if sheet["title"].startswith("Masks"))
    if name == "mask_labels":
        assert "objects" in sheet["remark"]
    else:
        assert [row[0] for row in sheet["rows"]] == ["1", "2", "3", "anything"]
        assert sheet["remark"].startswith("3 images are empty, 16.7%")


def test_sizes_that_go_with_coverage_are_a_note_about_sources(project):
    generator = np.random.default_rng(0)
    root = project.root / "data/sources"
    for row in range(60):
        side = 16 + 8 * (row % 2)
        bits = np.zeros((side, side), dtype=np.uint8)
        bits[: 4 + 4 * (row % 2) + row % 3] = 255
        drawn.save(root / f"train/{row:03d}.png", generator.integers(0, 255, (side, side, 3), dtype=np.uint8))
        drawn.grey(root / f"masks/{row:03d}.png", bits)
    drawn.save(root / "test/0.png", generator.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    assert project.run("stage=new", "name=sources", "data=data/sources").code == 0
    found = findings(project, "sources")["leak"]
    assert found["severity"] == "note"
    assert "width × height" in found["title"]
    assert "data.group" in found["advice"]


# --- folds --------------------------------------------------------------------------------------------------------


def many(root, count=120):
    """A competition of masks of which a third is empty and the others cover very different shares; groups of three."""
    generator = np.random.default_rng(0)
    rows = []
    for row in range(count):
        bits = np.zeros((16, 16), dtype=np.uint8)
        side = 0 if row % 3 == 0 else int(generator.integers(1, 16))
        bits[:side, :side] = 255
        drawn.save(root / f"train/{row:03d}.png", generator.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        drawn.grey(root / f"masks/{row:03d}.png", bits)
        rows.append((f"{row:03d}", f"scene{row // 3}"))
    for row in range(4):
        drawn.save(root / f"test/{row}.png", generator.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    drawn.table(root / "train.csv", "id,scene", rows)


@pytest.mark.parametrize("group", ["", "scene"])
def test_folds_are_balanced_by_emptiness_and_coverage_and_part_no_group(project, group):
    many(project.root / "data/many")
    assert project.run("stage=new", "name=many", "data=data/many", f"data.group={group}").code == 0
    ended = project.run("stage=split", "competition=many", "folds.count=4")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    config = settings.compose({"competition": "many", "folds.count": "4"})
    competition = load(config)
    fold, covered = folds.read_folds(config, competition), competition.targets["mask"].to_numpy(dtype=np.float64)
    empties = [int((covered[fold == k] == 0).sum()) for k in range(4)]
    means = [covered[fold == k].mean() for k in range(4)]
    assert max(empties) - min(empties) <= 1, empties
    assert np.ptp(means) < (0.4 if group else 0.2) * covered.mean(), means  # groups cannot be parted
    if group:
        assert (competition.table.assign(fold=fold).groupby("scene")["fold"].nunique() == 1).all()
    lines = ended.out.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("fold   rows  empty  covered"))
    assert [int(line.split()[2]) for line in lines[head + 1 : head + 5]] == empties


def test_coverage_counts_nothing_of_the_ground(project):
    settled(project, "mask_indices")
    config = settings.compose({"competition": "mask_indices"})
    competition = load(config)
    shares = competition.targets.to_numpy(dtype=np.float64)
    task = task_for(config, competition)
    assert np.allclose(task.covered(competition.targets), shares[:, 1:].sum(axis=1))
    strata = task.strata(competition.targets)
    assert (strata[:, 3:].sum(axis=1) == (shares[:, 1:].sum(axis=1) > 0)).all()
    dealt = registry.build("splits", "multilabel_stratified_kfold()")(strata, None, 3, 0)
    assert np.bincount(dealt[shares[:, 1:].sum(axis=1) == 0], minlength=3).tolist() == [1, 1, 1]


# --- a whole recipe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask_class_column", "mask_labels"])
def test_the_quick_recipe_ends_in_a_submission_without_an_edit(project, name):
    folder = settled(project, name)
    tiny = ["image_size=32", "epochs=1", "folds.count=2", "train.threads=1", "backbone=small_image(width=4)"]
    tiny += ["decoder=unet(widths=(8,8,8,8))", "device=cpu"]
    ended = project.run("stage=all", "recipe=quick", f"competition={name}", *tiny)
    assert ended.code == 0, ended.out + ended.err
    written = pd.read_csv(project.root / f"submissions/{name}/stack.csv", dtype=str)
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    assert list(written.columns) == list(sample.columns)
    assert set(written.iloc[:, 0]) == set(sample.iloc[:, 0])
