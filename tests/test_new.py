"""stage=new: what each form of folder is taken for, what is asked, and that nothing is written where it fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import drawn
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline import config as settings
from pipeline import submission
from pipeline.competition import load
from pipeline.discover import columns, draft, mask_settings, preview, writing
from pipeline.discover import settings as sizes
from pipeline.discover.looks import Looks
from pipeline.forms import VOID
from pipeline.maps import Maps
from pipeline.tasks import task_for


def new(project, name, *words, folder=""):
    """stage=new on data/NAME of the project."""
    return project.run("stage=new", f"name={name}", f"data={folder or f'data/{name}'}", *words)


def inferred(project, name, *words):
    """The config that stage=new wrote for a drawn form, composed as later stages do."""
    drawn.write(name, project.root / "data")
    return inferred_from(project, name, *words)


def inferred_from(project, name, *words):
    """The config that stage=new wrote for the folder data/NAME."""
    ended = new(project, name, *words)
    assert ended.code == 0, ended.err
    return settings.compose({"competition": name})


def refused(project, name, *words, folder=""):
    """The message of a run that must fail and write nothing; blanks and line ends made one."""
    before = sorted(path for path in project.root.rglob("*") if "data" not in path.relative_to(project.root).parts)
    default = (project.root / "configs/default.yaml").read_bytes()
    ended = new(project, name, *words, folder=folder)
    assert ended.code == 2, ended.out + ended.err
    after = sorted(path for path in project.root.rglob("*") if "data" not in path.relative_to(project.root).parts)
    assert after == before
    assert (project.root / "configs/default.yaml").read_bytes() == default
    assert "Traceback" not in ended.err
    return ended.err


# --- each form ----------------------------------------------------------------------------------------------------

SOURCE = Path(__file__).resolve().parent.parent
EXPECTED = {
    "plain": {"task": "multiclass", "metric": "accuracy()", "data.id": "id", "data.target": ["label"]},
    "suffixes": {
        "task": "multiclass", "data.id": "Image_ID", "data.target": ["Category"], "data.train_csv": "Train.csv",
        "data.test_csv": "Test.csv", "data.sample": "SampleSubmission.csv", "data.train_images": "images",
        "data.test_images": "images",
    },
    "nested": {
        "task": "multiclass", "data.folder": "data/nested/whales", "data.train_csv": "train_labels.csv",
        "data.id": "image", "data.target": ["species"], "data.files": ["img_{id:0>5}.png"],
        "data.train_images": "train", "data.test_images": "test", "data.sample": "sample_sub.csv",
    },
    "wrong_suffixes": {
        "task": "multiclass", "data.id": "ID", "data.target": ["Class"], "data.train_images": "trainResized",
        "image_size": 24,
    },
    "class_folders": {
        "task": "multiclass", "data.train_csv": "", "data.sample": "", "data.train_images": "train",
        "data.test_images": "test",
    },
    "zipped": {
        "task": "multiclass", "data.train_csv": "train.csv.zip", "data.id": "filename", "data.target": ["label"],
    },
    "one_hot": {"task": "multiclass", "metric": "log_loss()", "data.target": ["Healthy", "Rust", "Scab"]},
    "class_columns": {
        "task": "multiclass", "metric": "log_loss()", "data.target": ["breed"], "data.train_csv": "labels.csv",
        "image_size": 40,
    },
    "votes": {"task": "multiclass", "data.target": ["a_share", "b_share", "c_share"]},
    "labels_in_a_cell": {
        "task": "multilabel", "metric": "f1_samples()", "data.target": ["labels"], "data.separator": " ",
    },
    "labels_in_columns": {
        "task": "multilabel", "metric": "roc_auc()", "data.target": ["edema", "mass", "nodule"], "data.channels": 1,
    },
    "number": {
        "task": "regression", "metric": "rmse()", "data.target": ["Charm"], "data.features": ["Eyes", "Legs"],
    },
    "grades": {
        "task": "ordinal", "metric": "quadratic_kappa()", "data.target": ["diagnosis"], "data.group": "patient_id",
    },
    "chance": {"task": "binary", "metric": "roc_auc()", "data.target": ["invasive"], "data.id": "name"},
    "ranks": {"task": "multiclass", "metric": "map_at_k(k=3)", "data.id": "Image", "data.target": ["Id"]},
    "places_of_classes": {
        "task": "multiclass", "data.box": ["x", "y", "w", "h"], "data.box_form": "xywh",
        "data.tables": ["weather.csv"], "data.target": ["label"],
    },
    "channels": {
        "task": "multiclass", "data.channels": 4,
        "data.files": ["{id}_red.png", "{id}_green.png", "{id}_blue.png", "{id}_yellow.png"],
    },
    "arrays": {"task": "binary", "metric": "roc_auc()", "data.target": ["signal"], "data.features": ["size"]},
    "kinds": {"task": "multiclass", "data.channels": 1, "data.target": ["damaged"]},
    "no_sample": {"task": "multiclass", "data.sample": "", "data.target": ["animal"], "data.group": "scene"},
    "named_files": {
        "task": "binary", "metric": "roc_auc()", "data.train_csv": "", "data.named": "{label}.{number}",
        "data.train_images": "train", "data.target": ["label"],
    },
    "row_a_label": {
        "task": "multilabel", "metric": "roc_auc()", "data.long": "{id}_{column}", "data.id": "ID",
        "data.target": ["bleed", "in_ventricle", "any"],
    },
    "row_a_number": {
        "task": "regression", "data.long": "{id}__{column}", "data.id": "sample_id", "data.image": "image_path",
        "data.target": ["Dry_Clover_g", "Dry_g", "Green_g"], "data.group": "site",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", drawn.FORMS)
def test_each_form_is_taken_for_what_it_is(project, name):
    config = inferred(project, name)
    values = settings.flatten(config)
    assert {key: values[key] for key in EXPECTED[name]} == EXPECTED[name]
    competition = load(config)
    assert len(competition.train) == len(competition.targets) >= 24
    assert len(competition.test) in (6, 8)
    task = task_for(config, competition)
    assert len(task.targets(competition.targets)) == len(competition.train)
    assert (project.root / "runs" / name / "preview.png").is_file()


@pytest.mark.parametrize("name", drawn.FORMS)
def test_every_line_of_the_config_says_why(project, name):
    inferred(project, name)
    lines = (project.root / f"configs/competition/{name}.yaml").read_text().splitlines()
    assert all(len(line) <= 120 for line in lines)
    for before, line in zip(["", *lines], lines, strict=False):
        settles = not line.lstrip().startswith("#") and not line.endswith(":")
        assert not settles or "  # " in line or before.lstrip().startswith("# "), line
    assert any(line.startswith("symmetry: none  # hflip | d4") for line in lines)


def test_the_summary_says_what_is_open_and_what_comes_next(project):
    drawn.write("plain", project.root / "data")
    ended = new(project, "plain")
    for words in (
        "24 training rows, 6 test images; 16×16 px, colour", "is one of 3 names: cat, dog, owl (8 rows each)",
        "accuracy() is only the task's default", "does a mirrored image keep its label", "./run.sh stage=check",
        "./run.sh recipe=quick", "configs/competition/plain.yaml: written", "plain is now the current competition",
    ):  # fmt: skip
        assert words in " ".join(ended.out.split())
    assert ended.err == ""
    assert max(map(len, ended.out.splitlines())) <= 120


def test_the_current_competition_changes_and_nothing_else_of_the_default(project):
    drawn.write("plain", project.root / "data")
    path = project.root / "configs/default.yaml"
    path.write_text("# mine\ncompetition: digits # for now\nrecipe: default\nseed: 3 # competition: no\n")
    assert new(project, "plain").code == 0
    assert path.read_text() == "# mine\ncompetition: plain # for now\nrecipe: default\nseed: 3 # competition: no\n"
    path.write_text("recipe: default\n")
    assert new(project, "plain").code == 0
    assert path.read_text() == "competition: plain\nrecipe: default\n"


def test_keys_on_the_command_line_win_and_are_written(project):
    words = ("metric=f1_macro()", "symmetry=hflip", "image_size=24", "data.target=label", "train.threads=1", "lr=1e-4")
    config = inferred(project, "plain", *words)
    assert (config.metric, config.symmetry, config.image_size) == ("f1_macro()", "hflip", 24)
    assert config.train.threads == 1
    assert settings.compose({"competition": "plain", "model": "resnet18"}).lr == 1e-4
    text = (project.root / "configs/competition/plain.yaml").read_text()
    assert "metric: f1_macro()  # given on the command line" in text
    assert "threads: 1  # given on the command line" in text


def test_small_images_without_a_model_made_for_them_are_pointed_to_it(project):
    drawn.write("plain", project.root / "data")
    assert "is made for images of at most 64 px" not in new(project, "plain").out
    ended = new(project, "plain", "models=resnet18,effnet_b0", "overwrite=true")
    assert "resnet18 shrinks 16 px at once" in ended.out
    assert "model=small_image is made for images of at most 64 px" in ended.out
    for words in (["models=resnet18", "pretrained=true"], ["models=resnet18", "image_size=96"]):
        ended = new(project, "plain", *words, "overwrite=true")
        assert ended.code == 0, ended.err
        assert "is made for images of at most 64 px" not in ended.out


def test_a_task_on_the_command_line_wins(project):
    assert inferred(project, "grades", "task=multiclass", "metric=accuracy()").task == "multiclass"


def test_the_folder_is_relative_inside_the_project_and_absolute_outside(project, tmp_path, monkeypatch):
    drawn.plain(tmp_path / "elsewhere")
    assert new(project, "far", folder=str(tmp_path / "elsewhere")).code == 0
    assert settings.compose({"competition": "far"}).data.folder == str(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert new(project, "near", folder="elsewhere").code == 0
    assert settings.compose({"competition": "near"}).data.folder == str(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new(project, "home", folder="~/elsewhere").code == 0
    (project.root / "data").mkdir()
    (project.root / "data/link").symlink_to(tmp_path / "elsewhere")
    assert new(project, "link").code == 0
    assert settings.compose({"competition": "link"}).data.folder == "data/link"


def test_the_competition_before_does_not_matter(project):
    inferred(project, "number")
    assert inferred(project, "plain", "metric=log_loss()").metric == "log_loss()"
    (project.root / "configs/default.yaml").write_text("competition: gone\n")
    assert inferred(project, "labels_in_a_cell", "loss=bce()").task == "multilabel"


def test_it_needs_no_torch(project):
    drawn.write("plain", project.root / "data")
    ask = (
        "import sys; from pipeline.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    words = ["stage=new", "name=plain", "data=data/plain"]
    ended = subprocess.run(
        [sys.executable, "-c", ask, *words], cwd=SOURCE, capture_output=True, text=True, check=False,
        env={**os.environ, "PIPELINE_ROOT": str(project.root)},
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "0 []", ended.stderr


# --- an existing name ---------------------------------------------------------------------------------------------


def test_the_same_inference_changes_nothing_and_another_shows_the_difference(project):
    drawn.write("plain", project.root / "data")
    assert new(project, "plain").code == 0
    path = project.root / "configs/competition/plain.yaml"
    path.write_text("# a note of mine\n" + path.read_text())
    noted = path.read_text()
    again = new(project, "plain")
    assert (again.code, path.read_text()) == (0, noted)
    assert "unchanged" in again.out
    other = new(project, "plain", "image_size=32")
    assert other.code == 2
    assert "-image_size: 16" in other.err
    assert "+image_size: 32  # given on the command line" in other.err
    assert "overwrite=true" in other.err
    assert path.read_text() == noted
    assert new(project, "plain", "image_size=32", "overwrite=true").code == 0
    assert "image_size: 32" in path.read_text()


def test_names_that_are_no_names_are_refused(project):
    drawn.write("plain", project.root / "data")
    assert "name=NAME" in project.run("stage=new", "data=data/plain").err
    assert "data=DIR" in project.run("stage=new", "name=plain").err
    assert "plain name" in new(project, "../plain", folder="data/plain").err
    assert "no such folder" in new(project, "plain", folder="data/plan").err


# --- what must be asked -------------------------------------------------------------------------------------------


def test_two_candidates_for_the_target_are_asked_for_in_one_message(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["breed"] = [f"b{row % 5}" for row in range(len(rows))]
    rows.rename(columns={"label": "animal"}).to_csv(folder / "train.csv", index=False)
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    sample.rename(columns={"label": "answer"}).to_csv(folder / "sample_submission.csv", index=False)
    message = refused(project, "plain")
    assert "animal (cat, dog, owl)" in message
    assert "breed (5 values)" in message
    assert "./run.sh stage=new name=plain data=data/plain data.target=animal" in message
    assert new(project, "plain", "data.target=breed").code == 0
    assert settings.compose({"competition": "plain"}).data.target == ["breed"]


def test_two_columns_that_say_the_same_are_one_candidate(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["number"] = rows["label"].map({"cat": "0", "dog": "1", "owl": "2"})
    rows.rename(columns={"label": "animal"}).to_csv(folder / "train.csv", index=False)
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    sample.rename(columns={"label": "answer"}).to_csv(folder / "sample_submission.csv", index=False)
    assert new(project, "plain").code == 0
    assert settings.compose({"competition": "plain"}).data.target == ["animal"]


def test_an_angle_is_asked_for(project):
    drawn.angle(project.root / "data/angle")
    assert "task='circular(period=360)'" in refused(project, "angle").replace("'task=", "task='")
    ended = new(project, "angle", "metric=circular_mae(period=360.0)")
    assert ended.code == 0, ended.err
    config = settings.compose({"competition": "angle"})
    assert (config.task, config.augment) == ("circular(period=360)", "none()")


def test_all_questions_come_in_one_message(project):
    folder = drawn.angle(project.root / "data/angle")
    (folder / "sample_submission.csv").unlink()
    (folder / "test").rename(folder / "more")
    message = refused(project, "angle")
    assert "2 things" in message
    assert "data.test_images" in message
    assert "task=circular(period=360)" in message


MASKED = {
    "mask_rows": {
        "task": "segmentation()", "metric": "dice()", "mask.rle": "rle_mask", "mask.rows": "image", "mask.empty": "",
        "data.resize": "stretch", "image_size": 64, "models": ["unet_small", "unet_resnet34"],
    },
    "mask_classes": {
        "task": "segmentation()", "data.id": "Image_Class", "mask.rle": "EncodedPixels", "mask.rows": "class",
        "mask.classes": ["1", "2", "3"], "mask.class_column": "", "mask.empty": "-1", "data.resize": "pad",
    },
    "mask_relative": {
        "task": "segmentation()", "mask.rows": "image", "mask.starts": "relative", "mask.base": 0, "mask.empty": "-1",
        "data.train_csv": "train-rle.csv",
    },
    "mask_class_column": {
        "task": "segmentation()", "data.id": "image_id", "mask.rle": "encoded_pixels", "mask.rows": "class",
        "mask.classes": ["crack", "rust"], "mask.class_column": "label", "mask.void": "void", "mask.order": "row",
        "mask.base": 0,
    },
    "mask_objects": {
        "task": "segmentation(kind='objects')", "metric": "object_precision_over_iou()", "mask.rows": "object",
        "mask.overlap": "first", "data.train_csv": "stage1_train_labels.csv", "data.train_images": "stage1_train",
        "data.resize": "tiles", "image_size": 256,
    },
    "mask_files": {
        "task": "segmentation()", "data.train_csv": "", "data.train_images": "train", "mask.folder": "train_masks",
        "mask.files": ["{id}_mask.png"], "mask.pixels": "binary", "mask.rows": "image",
    },
    "masks_beside": {
        "task": "segmentation()", "data.train_csv": "", "data.train_images": "train", "mask.folder": "train",
        "mask.files": ["{id}_mask.png"], "mask.pixels": "binary", "data.sample": "sample_submission.csv",
    },
    "mask_indices": {
        "task": "segmentation(kind='class_masks')", "metric": "iou_mean()", "data.train_csv": "train.csv",
        "data.train_images": "train/images", "mask.folder": "train/masks", "mask.files": [], "mask.void": "255",
        "mask.pixels": "indices", "mask.classes": ["ground", "a", "b"], "mask.rows": "class",
    },
    "mask_colours": {
        "task": "segmentation(kind='class_masks')", "mask.pixels": "colours", "mask.classes": ["sky", "tree", "road"],
        "mask.table": ["0-0-0", "128-0-0", "0-128-64"], "mask.folder": "train_labels_masks", "data.sample": "",
    },
    "mask_palette": {
        "task": "segmentation(kind='class_masks')", "mask.pixels": "indices", "mask.classes": ["ground", "1", "2"],
        "data.train_images": "images/training", "data.test_images": "images/testing", "mask.folder": "annotations",
    },
    "mask_labels": {
        "task": "segmentation(kind='objects')", "mask.pixels": "labels", "mask.rows": "object", "mask.folder": "masks",
    },
    "mask_file_a_class": {
        "task": "segmentation()", "mask.pixels": "binary", "mask.files": ["{id}_road.png", "{id}_water.png"],
        "mask.classes": ["road", "water"], "mask.rows": "class",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", drawn.MASKS)
def test_each_form_of_masks_is_taken_for_what_it_is(project, name):
    config = inferred(project, name)
    values = settings.flatten(config)
    assert {key: values[key] for key in MASKED[name]} == MASKED[name]
    competition = load(config)
    task = task_for(config, competition)
    truth = task.targets(competition.targets)
    assert len(truth) == len(competition.train) == (15 if name == "mask_class_column" else 18)
    for row in range(len(truth)):
        cut = truth.one(row)
        assert cut.shape[-2:] == Image.open(competition.folder / competition.train["file"].iloc[row]).size[::-1]
        shares = competition.targets.iloc[row, int(task.form.name == "class_masks") :].astype(float)
        assert (shares.max() > 0) == bool(((cut > 0) & (cut != VOID)).any())
    assert len(task.answered(competition.sample)) == len(competition.test) == 4
    tests = {size: np.zeros((len(task.columns), *size), dtype=np.float32) for size in [(32, 40), (32, 64)]}
    size = next(size for size in tests if competition.masks.sizes[0] == size)
    written_ = task.submission(competition.test["id"].to_numpy(), Blank(4, tests[size]), competition.sample)
    submission.validate(written_, competition.sample, "made", task.allowed(competition.sample))


class Blank(Maps):
    """Maps of nothing."""

    def __init__(self, count, one):
        self.count, self.map, self.columns = count, one, len(one)

    def __len__(self):
        return self.count

    def one(self, row):
        return self.map


@pytest.mark.parametrize("name", ["mask_classes", "mask_files"])
def test_every_line_about_masks_says_why(project, name):
    inferred(project, name)
    lines = (project.root / f"configs/competition/{name}.yaml").read_text().splitlines()
    assert all(len(line) <= 120 for line in lines)
    for before, line in zip(["", *lines], lines, strict=False):
        settles = not line.lstrip().startswith("#") and not line.endswith(":")
        assert not settles or "  # " in line or before.lstrip().startswith("# "), line


def test_an_image_without_a_mask_file_is_asked_about(project):
    folder = drawn.write("mask_files", project.root / "data")
    for path in sorted((folder / "train_masks").iterdir())[:2]:
        path.unlink()
    message = refused(project, "mask_files")
    assert "2 of 18 training images have no mask in train_masks: 00000x.png, 02956x.png" in message
    assert "mask.missing=empty" in message
    assert new(project, "mask_files", "mask.missing=empty").code == 0
    config = settings.compose({"competition": "mask_files"})
    assert config.mask.missing == "empty"
    shares = load(config).targets["mask"].astype(float)
    assert (shares == 0).sum() == 5  # of these three are drawn empty


def test_images_without_a_row_are_noticed(project):
    drawn.write("mask_class_column", project.root / "data")
    assert "3 images of train have no row in train.csv and are left out" in " ".join(
        new(project, "mask_class_column").out.split()
    )


def test_objects_that_do_not_meet_leave_overlaps_an_error(project):
    folder = drawn.write("mask_objects", project.root / "data")
    rows = pd.read_csv(folder / "stage1_train_labels.csv")
    rows[rows["ImageId"] != "n2"].to_csv(folder / "stage1_train_labels.csv", index=False)
    assert new(project, "mask_objects").code == 0
    assert settings.compose({"competition": "mask_objects"}).mask.overlap == "error"


def test_keys_of_masks_on_the_command_line_win(project):
    config = inferred(project, "mask_objects", "task=segmentation()", "mask.overlap=last", "image_size=64")
    assert (config.task, config.mask.overlap, config.image_size) == ("segmentation()", "last", 64)
    config = inferred(project, "mask_labels", "mask.pixels=binary")
    assert (config.task, config.mask.pixels) == ("segmentation()", "binary")


def test_masks_that_are_not_there_are_said_to_be_missing(project):
    drawn.write("plain", project.root / "data")
    assert "name them with mask.rle=COLUMN or mask.folder=FOLDER" in refused(project, "plain", "task=segmentation()")
    folder = drawn.write("mask_rows", project.root / "data")
    drawn.table(folder / "train.csv", "id,depth", ((f"{name}", 3) for name in pd.read_csv(folder / "train.csv")["id"]))
    assert "sample_submission.csv asks for masks" in refused(project, "mask_rows")


def test_masks_of_jpegs_and_out_of_zips_are_read(project):
    folder = drawn.write("mask_files", project.root / "data")
    for path in sorted((folder / "train_masks").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    for part in ("train", "train_masks"):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for path in sorted((folder / part).iterdir()):
                archive.write(path, f"{part}/{path.name}")
                path.unlink()
        (folder / part).rmdir()
    assert new(project, "mask_files").code == 0
    config = settings.compose({"competition": "mask_files"})
    assert (config.mask.folder, config.mask.files) == ("train_masks.zip/train_masks", ["{id}_mask.jpg"])
    assert (config.mask.pixels, config.mask.least) == ("binary", 128)
    assert (load(config).targets["mask"].astype(float) == 0).sum() == 3


def test_a_sample_with_a_column_of_classes_behind_the_texts_is_answered_row_by_row(project):
    folder = drawn.write("mask_classes", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows[["ImageId", "ClassId"]] = rows["Image_Class"].str.rsplit("_", n=1, expand=True)
    rows = rows[rows["EncodedPixels"] != "-1"]
    rows[["ImageId", "ClassId", "EncodedPixels"]].to_csv(folder / "train.csv", index=False)
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)["Image_Class"].str.rpartition("_")[0].unique()
    drawn.table(folder / "sample_submission.csv", "ImageId,EncodedPixels,ClassId", ((n, "1 5", 1) for n in sample))
    assert new(project, "mask_classes").code == 0
    config = settings.compose({"competition": "mask_classes"})
    assert (config.mask.class_column, config.mask.classes) == ("ClassId", ["1", "2", "3"])
    competition = load(config)
    task = task_for(config, competition)
    blank = Blank(4, np.ones((3, 32, 64), dtype=np.float32))
    made_ = task.submission(competition.test["id"].to_numpy(), blank, competition.sample)
    submission.validate(made_, competition.sample, "made", task.allowed(competition.sample))
    assert made_.iloc[:4].to_numpy().tolist() == [
        [sample[0], "1 2048", "1"], [sample[0], "1 2048", "2"], [sample[0], "1 2048", "3"], [sample[1], "1 2048", "1"],
    ]  # fmt: skip


def test_a_file_for_each_object_is_explained(project):
    folder = drawn.write("mask_objects", project.root / "data")
    (folder / "stage1_train_labels.csv").unlink()
    assert "masks lie in 18 folders" in refused(project, "mask_objects")


def test_several_rows_an_image_may_be_pieces_of_one_mask(project):
    drawn.write("mask_objects", project.root / "data")
    ended = new(project, "mask_objects")
    assert "objects that are told apart, or pieces of one mask?" in " ".join(ended.out.split())
    assert "pieces of one mask?" not in new(project, "mask_objects", "task=segmentation()", "overwrite=true").out


@pytest.mark.parametrize("sample", [True, False])
def test_masks_beside_the_images_of_another_task_change_nothing(project, sample):
    folder = drawn.write("plain", project.root / "data")
    for row, path in enumerate(sorted((folder / "train_images").iterdir())):
        drawn.grey(folder / f"masks/{row}/0.png", np.zeros((16, 16), dtype=np.uint8))
        drawn.grey(folder / "train_masks" / path.name, np.zeros((16, 16), dtype=np.uint8))
    if not sample:
        (folder / "sample_submission.csv").unlink()
    ended = new(project, "plain")
    assert ended.code == 0, ended.err
    config = settings.compose({"competition": "plain"})
    assert (config.task, config.data.train_images) == ("multiclass", "train_images")
    ended = new(project, "plain", "task=segmentation()", "mask.folder=train_masks", "overwrite=true")
    assert ended.code == 0, ended.err
    assert settings.compose({"competition": "plain"}).mask.pixels == "binary"


def test_run_lengths_of_another_use_are_no_masks(project):
    made(project, "id,tags", ["0 16", "25 3", "16 25", "0 25 16 3"], "id,tags", ("0 16",))
    assert new(project, "made").code == 0
    assert settings.compose({"competition": "made"}).task == "multilabel"


@pytest.mark.parametrize(
    ("sizes_", "expected"),
    [
        ([(101, 101)] * 3, ("stretch", 128)),
        ([(64, 96), (128, 128), (100, 70)], ("stretch", 128)),
        ([(480, 500), (512, 490)], ("stretch", 512)),
        ([(256, 256), (640, 512), (360, 360)], ("tiles", 256)),
        ([(1600, 256)] * 3, ("tiles", 256)),
        ([(5000, 4000), (3000, 3000)], ("tiles", 512)),
        ([(120, 40)] * 3, ("pad", 128)),
    ],
)
def test_sizes_of_images_with_masks_decide_between_whole_ones_and_squares(sizes_, expected):
    made_ = draft.Draft({})
    mask_settings.settle_sizes(Looks(np.array(sizes_), 3, 3, 8, len(sizes_)), made_)
    assert (made_.value("data.resize"), made_.value("image_size")) == expected


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_folder_without_images_says_what_it_holds(project):
    folder = project.root / "data/none"
    drawn.table(folder / "train.csv", "id,label", [("a", "cat")])
    assert "holds no images, but 1 files (1 .csv)" in refused(project, "none")
    (folder / "train.csv").unlink()
    assert "nothing" in refused(project, "none")


def test_a_csv_that_matches_no_image_shows_five_of_each(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["id"] = [f"scan-{row}" for row in range(len(rows))]
    rows.to_csv(folder / "train.csv", index=False)
    message = refused(project, "plain")
    assert len(re.findall(r"scan-\d+", message)) >= 5
    assert len(re.findall(r"\w+\.png", message)) >= 5
    assert "ids look like scan-#, files like #x.png" in message
    assert "data.files=" in message


def test_missing_images_are_named(project):
    folder = drawn.write("plain", project.root / "data")
    for path in sorted((folder / "train_images").iterdir())[::2]:
        path.unlink()
    message = refused(project, "plain")
    assert "12 of 24 rows have no image in train_images" in message
    assert "00000x" in message


def test_ids_that_leave_the_folder_are_refused(project):
    folder = drawn.write("plain", project.root / "data")
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("00000x", "../00000x"))
    assert "'../00000x'" in refused(project, "plain")


@pytest.mark.parametrize("name", ["train.csv", "sample_submission.csv"])
def test_an_empty_table_is_named(project, name):
    folder = drawn.write("plain", project.root / "data")
    (folder / name).write_bytes(b"")
    assert f"{name} is empty (0 bytes" in refused(project, "plain")


def test_rows_that_repeat_an_image_are_reported(project):
    folder = drawn.write("plain", project.root / "data")
    with (folder / "train.csv").open("a") as handle:
        handle.write("00000x,dog\n07919x,owl\n")
    message = refused(project, "plain")
    assert "several rows for 2 images, with different targets: 00000x, 07919x" in message


def test_a_sample_with_rows_for_each_class_of_an_image_is_reported(project):
    folder = drawn.write("plain", project.root / "data")
    ids = pd.read_csv(folder / "sample_submission.csv", dtype=str)["id"]
    drawn.table(folder / "sample_submission.csv", "id,chance", [(f"{i}_{c}", 0.5) for i in ids for c in drawn.NAMES])
    assert "several rows an image" in refused(project, "plain", "data.target=label")


def test_a_sample_that_asks_once_for_several_images_is_told_what_to_do(project):
    folder = drawn.write("plain", project.root / "data")
    ids = pd.read_csv(folder / "sample_submission.csv", dtype=str)["id"]
    drawn.table(folder / "test.csv", "id,patient", [(one, f"p{row // 2}") for row, one in enumerate(ids)])
    drawn.table(folder / "sample_submission.csv", "patient,label", [(f"p{row}", "cat") for row in range(len(ids) // 2)])
    message = refused(project, "plain")
    assert "asks once for several images: p0, p1 … (3 in all) stand for 6 images in test.csv (patient)" in message
    assert new(project, "plain", "data.sample=").code == 0


def test_a_column_of_yes_and_no_is_no_group(project):
    folder = drawn.write("number", project.root / "data")
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(folder / name, dtype=str)
        table.assign(**{"Subject Focus": ["0", "1"] * (len(table) // 2)}).to_csv(folder / name, index=False)
    config = inferred_from(project, "number")
    assert (config.data.group, config.folds.count) == ("", 5)
    assert "Subject Focus" in config.data.features


def test_a_sample_that_repeats_images_is_noticed(project):
    folder = drawn.write("plain", project.root / "data")
    with (folder / "sample_submission.csv").open("a") as handle:
        handle.write((folder / "sample_submission.csv").read_text().splitlines()[1] + "\n")
    assert "1 rows repeat an image" in new(project, "plain").out


@pytest.mark.parametrize("ends", ["latin-1", "utf-8-sig", "utf-16", "semicolon", "windows", "tab"])
def test_tables_of_other_encodings_and_marks_are_read(project, ends):
    folder = drawn.write("plain", project.root / "data")
    text = (folder / "train.csv").read_text().replace("cat", "kätzchen")
    made = {
        "semicolon": text.replace(",", ";").encode(), "windows": text.replace("\n", "\r\n").encode(),
        "tab": text.replace(",", "\t").encode(),
    }  # fmt: skip
    (folder / "train.csv").write_bytes(made.get(ends) or text.encode(ends))
    (folder / "sample_submission.csv").write_text(
        (folder / "sample_submission.csv").read_text().replace("cat", "kätzchen")
    )
    assert new(project, "plain").code == 0
    assert sorted(load(settings.compose({"competition": "plain"})).targets["label"].unique()) == [
        "dog", "kätzchen", "owl",
    ]  # fmt: skip


def test_images_that_do_not_decode_are_noticed(project):
    folder = drawn.write("plain", project.root / "data")
    (folder / "train_images/00000x.png").write_bytes(b"no image")
    ended = new(project, "plain")
    assert ended.code == 0
    assert "1 of 24 images looked at do not decode" in ended.out
    for path in (folder / "train_images").iterdir():
        path.write_bytes(b"no image")
    assert "none of 24 images decodes" in new(project, "plain").err


def test_a_key_that_names_what_is_not_there_says_what_is(project):
    drawn.write("plain", project.root / "data")
    assert "data.target=lable, but train.csv has" in refused(project, "plain", "data.target=lable")
    assert "data.id=name" in refused(project, "plain", "data.id=name")
    assert "data.train_csv=rows.csv" in refused(project, "plain", "data.train_csv=rows.csv")


# --- side columns -------------------------------------------------------------------------------------------------


def test_a_place_of_few_values_is_only_proposed_as_a_group(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["camera"] = [f"c{row % 2}" for row in range(len(rows))]
    rows.to_csv(folder / "train.csv", index=False)
    ended = new(project, "plain")
    assert settings.compose({"competition": "plain"}).data.group == ""
    assert "# group: camera" in (project.root / "configs/competition/plain.yaml").read_text()
    assert "data.group: camera has 2 values" in ended.out


def test_ids_with_prefixes_that_come_back_are_said_to_look_like_groups(project):
    folder = project.root / "data/scans"
    names = [f"P{row // 4:03d}_{row:02d}" for row in range(40)]
    for row, name in enumerate(names):
        drawn.save(folder / "train" / f"{name}.png", drawn.picture(row % 3, row))
        drawn.save(folder / "test" / f"Q{name}.png", drawn.picture(row % 3, row))
    drawn.table(folder / "train.csv", "id,label", ((name, row % 3) for row, name in enumerate(names)))
    drawn.table(folder / "sample_submission.csv", "id,label", ((f"Q{name}", 0) for name in names))
    assert "the ids begin with 10 names that come back, such as P000, P001, P002" in " ".join(
        new(project, "scans").out.split()
    )


def test_folds_are_fewer_where_the_groups_or_rows_of_one_of_two_classes_are(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["patient"] = [f"p{row // 8}" for row in range(len(rows))]
    rows.to_csv(folder / "train.csv", index=False)
    assert inferred_from(project, "plain").folds.count == 3
    two = rows.drop(columns="patient").assign(label=["owl"] * 2 + ["cat"] * 22)
    two.to_csv(folder / "train.csv", index=False)
    assert inferred_from(project, "plain", "overwrite=true").folds.count == 2


def test_a_rare_class_of_many_takes_no_folds_away(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows.assign(label=["owl", *["cat", "dog"] * 11, "cat"]).to_csv(folder / "train.csv", index=False)
    ended = new(project, "plain")
    assert "1 classes have fewer rows than there are folds" in " ".join(ended.out.split())
    assert settings.compose({"competition": "plain"}).folds.count == 5


def test_a_sample_that_lists_values_of_a_column_names_the_target(project):
    folder = drawn.write("plain", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    whales = [f"w{row % 8}" for row in range(len(rows))]
    rows.assign(label=["orca", "fin"] * 12, whale=whales).to_csv(folder / "train.csv", index=False)
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    drawn.table(folder / "sample_submission.csv", "id,predictions", ((one, "w1 w5 w2") for one in sample["id"]))
    config = inferred_from(project, "plain")
    assert (config.data.target, config.metric, config.task) == (["whale"], "map_at_k(k=3)", "multiclass")


def test_labels_of_a_cell_are_no_ranked_answers(project):
    folder = drawn.write("labels_in_a_cell", project.root / "data")
    table = pd.read_csv(folder / "train.csv", dtype=str)
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    table.iloc[:, 1] = ["healthy", "rust", "rust scab", "healthy scab"] * 8  # scab never stands alone
    table.to_csv(folder / "train.csv", index=False)
    sample.assign(**{sample.columns[1]: "healthy rust scab"}).to_csv(folder / "sample_submission.csv", index=False)
    assert inferred_from(project, "labels_in_a_cell").task == "multilabel"


def test_side_features_repeat_neither_the_id_nor_the_target(project):
    folder = made(project, "id,label,again,same,size", [f"{n},g{n % 3},{n // 9},{n % 7}" for n in range(3)], "id,label")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows["label"] = [drawn.NAMES[row % 3] for row in range(30)]
    rows["again"] = [f"g{row % 3}" for row in range(30)]
    rows["same"] = rows["id"]
    rows["size"] = [str(row % 7) for row in range(30)]
    rows.to_csv(folder / "train.csv", index=False)
    test = pd.DataFrame({"id": [f"s{row}" for row in range(30, 36)], "again": "g1", "size": "3"})
    test.assign(same=test["id"]).to_csv(folder / "test.csv", index=False)
    assert new(project, "made").code == 0
    assert settings.compose({"competition": "made"}).data.features == ["size"]


def test_tables_that_know_both_parts_are_joined_and_others_are_noticed(project):
    folder = made(project, "id,label", ["cat", "dog", "owl"])
    drawn.table(folder / "weather.csv", "id,rain", ((f"s{row}", row % 5) for row in range(36)))
    drawn.table(folder / "stations.csv", "station,height", [("a", 3)])
    (folder / "notes.csv").write_bytes(b"")
    ended = new(project, "made")
    assert settings.compose({"competition": "made"}).data.tables == ["weather.csv"]
    assert "tables not used: stations.csv" in ended.out
    assert "notes.csv is empty" in " ".join(ended.out.split())


@pytest.mark.parametrize("key", ["group", "features", "order", "holdout"])
def test_columns_given_must_be_there(project, key):
    drawn.write("plain", project.root / "data")
    assert f"data.{key}=scene, but train.csv has the columns id, label" in refused(
        project, "plain", f"data.{key}=scene"
    )


# --- pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch"), [(20, 8), (159, 8), (320, 16), (700, 32), (6000, 64), (10**6, 64)])
def test_an_epoch_has_twenty_steps_where_possible(rows, batch):
    assert sizes.batch_size(rows, 64) == batch
    assert batch == 8 or rows // batch >= 20


@pytest.mark.parametrize(
    ("names", "form"),
    [
        ("x,y,w,h", "xywh"), ("xmin,ymin,xmax,ymax", "xyxy"), ("x_min,y_min,x_max,y_max", "xyxy"),
        ("bbox_x1,bbox_y1,bbox_x2,bbox_y2", "xyxy"), ("X,Y,Width,Height", "xywh"), ("width,height,a,b", ""),
    ],
)  # fmt: skip
def test_boxes_are_known_by_their_columns(names, form):
    table = pd.DataFrame([["1", "2", "3", "4"]] * 3, columns=names.split(","))
    assert columns.find_box(table) == (form, names.split(",") if form else [])


def test_values_are_written_as_yaml_reads_them():
    import yaml

    for value in (
        "",
        " ",
        "a: b",
        "# x",
        "yes",
        "007",
        "[a",
        "{id}.png",
        "naïve",
        True,
        3,
        0.5,
        2e-3,
        ["a", "b, c", "1"],
    ):
        got = yaml.safe_load(f"key: {writing.value(value)}")["key"]
        assert (float(got) if isinstance(value, float) else got) == value


def test_long_lists_are_folded():
    names = [f"column {number}" for number in range(60)]
    proposal = draft.Draft({})
    proposal.set("data.features", names, "many")
    text = writing.render(proposal, ["head"])
    assert all(len(line) <= 120 for line in text.splitlines())
    assert writing.parsed(text, "here") == {"data.features": names}


def test_the_preview_balances_labels_and_spreads_numbers():
    labels = pd.DataFrame({"label": ["a"] * 90 + ["b"] * 5 + ["c"] * 5})
    shown = labels["label"].iloc[preview.balanced(labels, 24)].value_counts()
    assert shown.to_dict() == {"a": 14, "b": 5, "c": 5}
    numbers = pd.DataFrame({"y": [f"{value:.3f}" for value in np.linspace(5, 1, 101)]})
    assert preview.balanced(numbers, 5) == [100, 75, 50, 25, 0]
    many = pd.DataFrame({"label": [f"c{row:03d}" for row in range(500)]})
    assert len(set(preview.balanced(many, 24))) == 24


def test_the_preview_is_a_picture_of_all_labels(project):
    inferred(project, "labels_in_columns")
    with Image.open(project.root / "runs/labels_in_columns/preview.png") as sheet:
        assert sheet.width > 1000
        assert len(set(sheet.convert("L").tobytes())) > 50


# --- to a submission ----------------------------------------------------------------------------------------------

TINY = (
    "recipe=quick", "epochs=1", "pretrained=false", "model=small_image", "image_size=16", "folds.count=2",
    "train.threads=1", "precision=fp32",
)  # fmt: skip


SAMPLED = list(drawn.FORMS)[::2]  # the others take as long, and are read back above


@pytest.mark.parametrize("name", [n if n in SAMPLED else pytest.param(n, marks=pytest.mark.slow) for n in drawn.FORMS])
def test_a_drawn_folder_becomes_a_submission_without_an_edit(project, name):
    drawn.write(name, project.root / "data")
    assert new(project, name).code == 0
    ended = project.run("stage=all", *TINY)
    assert ended.code == 0, ended.err
    config = settings.compose({"competition": name})
    competition, written = load(config), project.root / f"submissions/{name}/stack.csv"
    allowed = task_for(config, competition).allowed(competition.sample)
    assert len(submission.read(written, competition.sample, allowed, competition.long)) == len(competition.sample)
    if config.data.sample:
        sample, rows = (pd.read_csv(path, dtype=str) for path in (competition.folder / config.data.sample, written))
        assert list(rows.columns) == list(sample.columns)
        assert rows.iloc[:, 0].equals(sample.iloc[:, 0])


# --- columns and what they mean -----------------------------------------------------------------------------------


def made(project, header, cells, sample_header="id,label", sample_cells=("cat",), rows=30):
    """A folder of plain images whose train.csv has the header and, row by row, the cells in turn."""
    folder = project.root / "data/made"
    for row in range(rows + 6):
        part = "train" if row < rows else "test"
        drawn.save(folder / part / f"s{row}.png", drawn.picture(row % 3, row, side=12))
    drawn.table(folder / "train.csv", header, ((f"s{row}", cells[row % len(cells)]) for row in range(rows)))
    if sample_header:
        sample = ((f"s{row}", *sample_cells) for row in range(rows, rows + 6))
        drawn.table(folder / "sample_submission.csv", sample_header, sample)
    return folder


@pytest.mark.parametrize(
    ("header", "cells", "sample", "expected"),
    [
        ("id,label", ["cat", "dog", "owl"], ("id,label", "cat"), ("multiclass", "accuracy()", " ")),
        ("id,label", ["golden retriever", "black lab", "pug"], ("id,label", "pug"), ("multiclass", "accuracy()", " ")),
        ("id,label", ["type a", "type b", "type c"], ("id,label", "type a"), ("multiclass", "accuracy()", " ")),
        ("id,label", ["3", "14", "15"], ("id,label", "3"), ("multiclass", "accuracy()", " ")),
        ("id,land_id", [str(137 * n) for n in range(15)], ("id,land_id", "0"), ("multiclass", "accuracy()", " ")),
        ("id,label", ["cat", "dog"], ("id,label", "cat"), ("multiclass", "accuracy()", " ")),
        ("id,label", ["cat", "dog"], ("id,label", "0.5"), ("binary", "roc_auc()", " ")),
        ("id,label", ["0", "1"], ("id,label", "0"), ("binary", "roc_auc()", " ")),
        ("id,label", ["0.0", "1.0"], ("id,label", "0"), ("binary", "roc_auc()", " ")),
        ("id,tags", ["a|b c", "b c", "a", "d|a"], ("id,tags", "a"), ("multilabel", "f1_samples()", "|")),
        ("id,tags", ["a;b", "b", "a", "c;a"], ("id,tags", "a"), ("multilabel", "f1_samples()", ";")),
        ("id,tags", ["0 16", "25", "16", "0 25 16"], ("id,0,16,25", 0.5, 0.5, 0), ("multilabel", "roc_auc()", " ")),
        ("id,tags", ["wet sea", "wet", "sea", "dry sea"], ("id,tags", "wet"), ("multilabel", "f1_samples()", " ")),
        (
            "id,tags", ["\"['a', 'b c']\"", "['b c']", "[]", "\"['d', 'a']\"", "['a']"], ("id,tags", "['a']"),
            ("multilabel", "f1_samples()", "['a', 'b']"),
        ),
        (
            "id,tags", ['"[""a"",""b""]"', '"[""b""]"', '"[""a""]"', '"[""c"",""a""]"'], ("id,tags", '"[""a""]"'),
            ("multilabel", "f1_samples()", '["a","b"]'),
        ),
        (
            "id,tags", ['"{a, b}"', "{b}", "{a}", '"{c, a}"'], ("id,tags", "{a}"),
            ("multilabel", "f1_samples()", "{a, b}"),
        ),
        ("id,severity", ["0", "1", "2", "3"], ("id,severity", "0"), ("ordinal", "quadratic_kappa()", " ")),
        ("id,label", ["0", "1", "2", "3"], ("id,label", "0"), ("multiclass", "accuracy()", " ")),
        ("id,age", ["20", "35", "31", "80"], ("id,age", "40"), ("regression", "rmse()", " ")),
        ("id,y", ["1", "5", "31", "80"], ("id,y", "40.5"), ("regression", "rmse()", " ")),
        ("id,y", ["0.1", "5", "31", "80"], ("id,y", "0"), ("regression", "rmse()", " ")),
        ("id,Label", ["Cat", "Dog"], ("id,cat,dog", "0", "1"), ("multiclass", "log_loss()", " ")),
        ("id,Label", ["Cat", "Dog"], ("id,LABEL", "Cat"), ("multiclass", "accuracy()", " ")),
    ],
)  # fmt: skip
def test_what_the_cells_of_one_column_mean(project, header, cells, sample, expected):
    made(project, header, cells, sample[0], sample[1:])
    ended = new(project, "made")
    assert ended.code == 0, ended.err
    config = settings.compose({"competition": "made"})
    assert (config.task, config.metric, config.data.separator) == expected
    assert config.data.target == [header.partition(",")[2]]


@pytest.mark.parametrize(
    ("header", "cells", "task"),
    [
        ("id,a,b,c", ["1,0,0", "0,1,0", "0,0,1"], "multiclass"),
        ("id,a,b,c", ["0.2,0.3,0.5", "0.9,0.1,0", "0,0,1"], "multiclass"),
        ("id,a_vote,b_vote,c_vote", ["3,0,0", "1,7,0", "0,4,12"], "multiclass"),
        ("id,a,b,c", ["1,1,0", "0,1,0", "0,0,0"], "multilabel"),
        ("id,a,b,c", ["1.5,0,2", "0.5,1,0", "0,0,9"], "regression"),
    ],
)
def test_what_several_columns_mean(project, header, cells, task):
    made(project, header, cells, header, ("0.5", "0.3", "0.2"))
    assert new(project, "made").code == 0
    config = settings.compose({"competition": "made"})
    assert (config.task, config.data.target) == (task, header.split(",")[1:])


def test_several_columns_of_classes_are_asked_for(project):
    made(project, "id,root,vowel", ["0,3", "1,2", "2,2"], "id,root,vowel", (0, 0))
    message = refused(project, "made")
    assert "root, vowel hold a few whole numbers each" in message
    assert new(project, "made", "data.target=root", "data.sample=").code == 0


@pytest.mark.parametrize("target", ["label", "breed"])
def test_a_telling_name_decides_only_where_no_other_has_one(project, target):
    made(project, f"id,{target},age", ["cat,3", "dog,4", "owl,5", "owl,3"], "id,prediction")
    ended = new(project, "made")
    assert (ended.code == 0) == (target == "label")
    assert ("its name says so (not age)" in ended.out) == (target == "label")
    assert ("2 columns that could be it" in ended.err) == (target == "breed")


@pytest.mark.parametrize(
    ("name", "cells", "proposed"),
    [
        ("fold", ["0,cat", "1,dog", "2,owl", "3,owl"], ""),
        ("is_valid", ["0,cat", "1,dog", "1,owl"], "# holdout: is_valid"),
        ("date", ["2020-01-02,cat", "2021-03-04,dog", "2020-01-02,owl"], "# order: date"),
    ],
)
def test_columns_about_the_rows_are_no_target(project, name, cells, proposed):
    made(project, f"id,{name},kind", cells, "id,answer")
    ended = new(project, "made")
    assert ended.code == 0, ended.err
    assert settings.compose({"competition": "made"}).data.target == ["kind"]
    assert proposed in (project.root / "configs/competition/made.yaml").read_text()


def test_a_metric_of_numbers_on_names_asks_for_their_order(project):
    made(project, "id,label", ["low", "mid", "top"], "id,label", ("low",))
    message = refused(project, "made", "metric=quadratic_kappa()")
    assert """'task=ordinal(order=["low","mid","top"])'""" in message
    assert new(project, "made", "metric=quadratic_kappa()", 'task=ordinal(order=["low","mid","top"])').code == 0


def test_a_target_that_is_empty_is_refused(project):
    made(project, "id,label", [""], "id,label")
    assert "label is empty in every row" in refused(project, "made")


def test_answers_that_are_neither_classes_nor_places_are_refused(project):
    made(project, "id,label", ["cat", "dog", "owl"], "id,label", ("7",))
    assert "neither classes (cat, dog, owl) nor their places" in refused(project, "made")


def test_columns_of_the_sample_that_are_no_classes_are_refused(project):
    made(project, "id,label", ["cat", "dog", "owl"], "id,cat,dog,emu", (0, 0, 1))
    assert "emu" in refused(project, "made")


# --- where images lie ---------------------------------------------------------------------------------------------


def placed(project, train, test, ids=str, sample_ids=str):
    """Images under the names that train and test give to row numbers, and tables with the ids of these rows."""
    folder = project.root / "data/placed"
    for row in range(24):
        drawn.save(folder / train(row), drawn.picture(row % 3, row, side=12))
    for row in range(24, 30):
        drawn.save(folder / test(row), drawn.picture(row % 3, row, side=12))
    drawn.table(folder / "train.csv", "id,label", ((ids(row), drawn.NAMES[row % 3]) for row in range(24)))
    drawn.table(folder / "sample_submission.csv", "id,label", ((sample_ids(row), "cat") for row in range(24, 30)))
    return folder


@pytest.mark.parametrize(
    ("train", "test", "ids", "expected"),
    [
        ("train/{}.png", "test/{}.png", "{}", ("train", "test", [])),
        ("train/{}.png", "test/{}.png", "{}.jpg", ("train", "test", [])),
        ("train/{:04d}.png", "test/{:04d}.png", "{}", ("train", "test", [])),
        ("train/IMG_{}.PNG", "test/IMG_{}.PNG", "img_{}", ("train", "test", [])),
        ("a/train/{}.png", "a/test/{}.png", "{}.png", ("a/train", "a/test", [])),
        ("train/x_{}.png", "test/x_{}.png", "{}", ("train", "test", ["x_{id}.png"])),
        ("train/x{:03d}.png", "test/x{:03d}.png", "{}", ("train", "test", ["x{id:0>3}.png"])),
        ("train/{}/image.png", "test/{}/image.png", "s{}", None),
        ("images/{}.png", "images/{}.png", "images/{}.png", ("images", "images", [])),
        ("{}.png", "{}.png", "{}", (".", ".", [])),
    ],
)
def test_where_images_lie(project, train, test, ids, expected):
    placed(project, train.format, test.format, ids.format, ids.format)
    if expected is None:
        assert "names none of the 30 images" in refused(project, "placed")
        return
    ended = new(project, "placed")
    assert ended.code == 0, ended.err
    data = settings.compose({"competition": "placed"}).data
    assert (data.train_images, data.test_images, data.files) == expected


def test_the_same_names_in_train_and_test_are_told_apart_by_the_folder(project):
    folder = placed(project, "train/{}.png".format, lambda row: f"test/{row - 24}.png", str, lambda row: str(row - 24))
    (folder / "train_masks").mkdir()
    for row in range(24):
        drawn.save(folder / f"thumbnails/{row}.png", drawn.picture(0, row, side=12))
    assert new(project, "placed").code == 0
    data = settings.compose({"competition": "placed"}).data
    assert (data.train_images, data.test_images) == ("train", "test")


def named_apart(project):
    """A folder whose ids are numbers and whose images are named by a column of both tables."""
    folder = drawn.write("plain", project.root / "data")
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    for name, rows in (("train", pd.read_csv(folder / "train.csv", dtype=str)), ("test", sample[["id"]])):
        rows = rows.rename(columns={"id": "file"})
        rows.insert(0, "id", [f"{name}-{row}" for row in range(len(rows))])
        rows.to_csv(folder / f"{name}.csv", index=False)
        ids = rows["id"]
    sample.assign(id=ids).to_csv(folder / "sample_submission.csv", index=False)
    return folder


def test_a_column_may_name_the_images_where_ids_do_not(project):
    named_apart(project)
    ended = new(project, "plain")
    assert ended.code == 0, ended.err
    config = settings.compose({"competition": "plain"})
    assert (config.data.id, config.data.image, config.data.test_csv) == ("id", "file", "test.csv")
    assert load(config).test.iloc[0].tolist() == ["test-0", "test_images/91963x.png"]
    assert "id, images by file" in ended.out
    assert new(project, "plain", "data.image=file", "overwrite=true").code == 0
    assert "data.image=files" in refused(project, "plain", "data.image=files")


def test_without_a_table_that_says_which_images_ids_are_it_is_asked_for(project):
    (named_apart(project) / "test.csv").unlink()
    assert "names none of the 30 images" in refused(project, "plain")


def test_names_that_differ_between_train_and_test_are_refused(project):
    placed(project, "train/train_{}.png".format, "test/test_{}.png".format)
    assert "train_{id}.png, those of sample_submission.csv test_{id}.png" in refused(project, "placed")


def test_folders_of_classes_beside_the_test_folder_are_explained(project):
    for row in range(24):
        drawn.save(project.root / f"data/beside/{drawn.NAMES[row % 3]}/{row}.png", drawn.picture(row % 3, row))
    for row in range(3):
        drawn.save(project.root / f"data/beside/test/{row}.png", drawn.picture(row % 3, row))
    assert "if the folders cat, dog, owl are the classes, move them into a folder train/" in refused(project, "beside")


def test_classes_in_the_names_of_files_are_explained(project):
    for row in range(24):
        drawn.save(
            project.root / f"data/named/train/{drawn.NAMES[row % 2]}.{row}.left.jpg", drawn.picture(row % 3, row)
        )
    assert "if the files' names tell the class (cat, dog), give data.named={label}_{number}" in refused(
        project, "named"
    )
    assert "data.named=abc, but it needs {label} and {number}" in refused(project, "named", "data.named=abc")
    assert new(project, "named", "data.named={label}.{number}.left", "data.hidden=true").code == 0


def test_folders_of_masks_are_segmentation_and_no_classes(project):
    for row in range(8):
        for part in ("train/images", "test/images"):
            drawn.save(project.root / f"data/parts/{part}/{row}.png", drawn.picture(row % 3, row))
        drawn.grey(project.root / f"data/parts/train/masks/{row}.png", np.eye(16, dtype=np.uint8) * 255)
    ended = new(project, "parts")
    assert ended.code == 0, ended.err
    layer = settings.read_layer(Path("configs/competition/parts.yaml"))
    assert (layer["task"], layer["data.train_images"]) == ("segmentation()", "train/images")


def test_a_zip_with_everything_in_it_is_to_be_unpacked(project):
    folder = drawn.write("plain", project.root / "data")
    with zipfile.ZipFile(project.root / "data/whole.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    assert "unzip -d data/whole" in refused(project, "whole", folder="data/whole.zip")
    (project.root / "data/whole").mkdir()
    (project.root / "data/whole.zip").rename(project.root / "data/whole/all.zip")
    assert "there is a csv in all.zip: unpack it" in refused(project, "whole")


def test_the_solution_is_never_read(project):
    folder = drawn.write("plain", project.root / "data")
    (folder / "solution.csv").write_bytes(b"")  # reading it would fail
    assert new(project, "plain").code == 0
    assert "solution" not in (project.root / "configs/competition/plain.yaml").read_text()
