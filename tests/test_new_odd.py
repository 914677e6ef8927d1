"""stage=new on tables and folders as people ship them oddly: each was once taken for something else."""

from __future__ import annotations

from pathlib import Path

import drawn
import pandas as pd
import pytest

from pipeline import config as settings
from pipeline.competition import load
from pipeline.config import Config

NAMES = ("cat", "dog", "owl")


def make(project, train: list[str], test: list[str], rows: list[tuple], sample: list[tuple], head="id,label") -> Path:
    """data/odd with these images, below it, and tables."""
    folder = project.root / "data/odd"
    for number, name in enumerate((*train, *test)):
        drawn.save(folder / name, drawn.picture(number % 3, number))
    drawn.table(folder / "train.csv", head, rows)
    if sample:
        drawn.table(folder / "sample_submission.csv", "id,label", sample)
    return folder


def new(project, *words: str) -> Config:
    ended = project.run("stage=new", "name=odd", "data=data/odd", *words)
    assert ended.code == 0, ended.err
    return settings.compose({"competition": "odd"})


def refused(project, *words: str) -> str:
    ended = project.run("stage=new", "name=odd", "data=data/odd", *words)
    assert ended.code == 2
    assert not (project.root / "configs/competition/odd.yaml").exists()
    return " ".join(ended.err.split())


TRAIN, TEST = [f"train/{k}.png" for k in range(30)], [f"test/t{k}.png" for k in range(6)]


def test_classes_of_numbers_beside_a_sample_of_zeros_with_points(project):
    make(project, TRAIN, TEST, [(k, k % 5) for k in range(30)], [(f"t{k}", "0.0") for k in range(6)])
    assert new(project).task == "multiclass"


def test_a_sample_of_fractions_makes_numbers_an_amount(project):
    make(project, TRAIN, TEST, [(k, k % 5) for k in range(30)], [(f"t{k}", "0.5") for k in range(6)])
    assert new(project).task == "regression"


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (('"tench, Tinca tinca"', "hen", '"crane, a bird"'), "multiclass"),
        (('"rust,scab"', "rust", '"scab,healthy"', "healthy"), "multilabel"),
        (('"rust,scab"', '"scab,healthy"', '"rust,healthy"'), "multilabel"),
    ],
)
def test_commas_part_labels_only_where_these_come_back(project, cells, task):
    rows = [(k, cells[k % len(cells)]) for k in range(30)]
    make(project, TRAIN, TEST, rows, [(f"t{k}", cells[0]) for k in range(6)])
    assert new(project).task == task


def test_a_table_without_a_header_is_told(project):
    make(project, TRAIN, TEST, [(f"{k}.png", NAMES[k % 3]) for k in range(1, 30)], [], head="0.png,cat")
    assert "train.csv has no header: its first line, 0.png,cat, is a row" in refused(project, "data.test_images=test")


def test_paths_that_begin_with_folders_which_are_not_here(project):
    """As CheXpert's: folders of patients are no classes then."""
    train = [f"train/patient{k:03d}/view.jpg" for k in range(30)]
    rows = [(f"Set-v1/{name}", NAMES[k % 3]) for k, name in enumerate(train)]
    make(project, train, TEST, rows, [(f"Set-v1/test/t{k}.png", "cat") for k in range(6)])
    config = new(project)
    assert (config.data.train_csv, config.data.train_images) == ("train.csv", "train")
    assert load(config).train["file"].tolist() == train


def test_a_table_of_files_that_are_not_here_is_no_reason_to_take_folders_for_classes(project):
    train = [f"train/{NAMES[k % 3]}/{k}.jpg" for k in range(30)]
    make(project, train, TEST, [(f"lost{k}.jpg", NAMES[k % 3]) for k in range(30)], [])
    assert "train.csv names none of the 36 images" in refused(project, "data.test_images=test")
    assert new(project, "data.train_csv=", "data.test_images=test").data.train_csv == ""


def test_one_image_under_two_ids_is_no_training_and_test_row_at_once(project):
    rows = [(name, NAMES[k % 3]) for k, name in enumerate([*TRAIN, *TEST])]
    make(project, TRAIN, TEST, rows, [(f"t{k}", "cat") for k in range(6)])
    assert "6 images are training and test rows at once: test/t0.png" in refused(project)


def test_a_sample_that_is_a_header_alone_gives_the_folder_s_images(project):
    folder = make(project, TRAIN, TEST, [(k, NAMES[k % 3]) for k in range(30)], [])
    (folder / "sample_submission.csv").write_text("id,label\n")
    config = new(project)
    assert load(config).test["id"].tolist() == [f"t{k}.png" for k in range(6)]


def test_lesions_and_eyes_are_groups(project):
    train = [f"train/{k}_{side}.png" for k in range(15) for side in ("left", "right")]
    rows = [(Path(name).stem, NAMES[k % 3]) for k, name in enumerate(train)]
    make(project, train, TEST, rows, [(f"t{k}", "cat") for k in range(6)])
    ended = project.run("stage=new", "name=odd", "data=data/odd")
    assert "the ids begin with 15 names that come back, such as 0, 1, 2" in " ".join(ended.out.split())
    drawn.table(
        project.root / "data/odd/train.csv", "id,label,lesion_id", [(*row, f"L{k // 2}") for k, row in enumerate(rows)]
    )
    assert new(project, "overwrite=true").data.group == "lesion_id"


def test_a_labelled_test_table_and_a_training_table_called_solutions(project):
    rows = [(k, NAMES[k % 3]) for k in range(30)]
    folder = make(project, TRAIN, TEST, rows, [])
    (folder / "train.csv").rename(folder / "training_solutions.csv")
    drawn.table(folder / "test.csv", "id,label", [(f"t{k}", NAMES[k % 3]) for k in range(6)])
    config = new(project)
    assert (config.data.train_csv, config.data.target) == ("training_solutions.csv", ["label"])


def test_images_in_containers_are_named(project):
    (project.root / "data/odd").mkdir(parents=True)
    (project.root / "data/odd/train.parquet").write_bytes(b"PAR1")
    assert "images inside of .parquet files are not read: write each as a file, such as a png" in refused(project)


# --- one table for training and test rows ------------------------------------------------------------------------


def one_table(project) -> Path:
    """As AnimalCLEF's: a table of all images, whose rows are told apart by a column; ids are no files' names."""
    folder, lines = project.root / "data/odd", []
    for k in range(36):
        part = "database" if k < 30 else "query"
        drawn.save(folder / f"images/{part}/x{k}.png", drawn.picture(k % 3, k))
        lines.append((k, f"elk_{k % 5}" if k < 30 else "", f"images/{part}/x{k}.png", part))
    drawn.table(folder / "metadata.csv", "image_id,identity,path,split", lines)
    drawn.table(folder / "sample_submission.csv", "image_id,identity", [(k, "new_individual") for k in range(30, 36)])
    return folder


def test_one_table_for_both_whose_column_tells_them_apart(project):
    one_table(project)
    config = new(project)
    data = config.data
    assert (data.train_csv, data.rows) == ("metadata.csv", "split=database")
    assert (data.test_csv, data.test_rows) == ("metadata.csv", "split=query")
    assert (data.id, data.image, data.target) == ("image_id", "path", ["identity"])
    known = load(config)
    assert known.train["id"].tolist() == [str(k) for k in range(30)]
    assert known.test["file"].tolist() == [f"images/query/x{k}.png" for k in range(30, 36)]


def test_validation_rows_are_training_rows_and_labelled_test_rows_are_none(project):
    """As tables of data sets have them."""
    parts = ["train"] * 20 + ["valid"] * 5 + ["test"] * 5
    rows = [(k, NAMES[k % 3], part) for k, part in enumerate(parts)]
    make(project, TRAIN, [], rows, [], head="id,label,data set")
    config = new(project)
    assert (config.data.rows, config.data.test_rows) == ("data set=train|valid", "data set=test")
    assert config.data.target == ["label"]
    known = load(config)
    assert config.data.features == []
    assert (len(known.train), known.test["id"].tolist()) == (25, ["25", "26", "27", "28", "29"])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("split", "data.rows=split, but it is COLUMN=VALUE"),
        ("part=database", "has no column 'part' (data.rows=part)"),
        ("split=database|train", "has no row of train; split is database, query"),
    ],
)
def test_wrong_rules_for_rows_are_told(project, rule, says):
    one_table(project)
    assert says in refused(project, f"data.rows={rule}")
    new(project)
    ended = project.run("stage=split", f"data.rows={rule}")
    assert ended.code == 2
    assert says in " ".join(ended.err.split())


# --- test images that are not here --------------------------------------------------------------------------------


def test_hidden_test_images_are_asked_for_and_then_none_is_predicted(project):
    rows = [(k, NAMES[k % 3]) for k in range(30)]
    folder = make(project, TRAIN, [], rows, [(f"h{k}", "cat") for k in range(3)])
    drawn.table(folder / "test.csv", "id,site", [(f"h{k}", "a") for k in range(3)])
    message = refused(project)
    assert "no image of the 3 ids of sample_submission.csv is here, and no folder of test images" in message
    assert "data.hidden=true" in message
    config = new(project, "data.hidden=true")
    assert (config.data.hidden, config.data.test_images, config.data.test_csv) == (True, "test", "test.csv")
    known = load(config)
    assert (len(known.train), len(known.test), list(known.sample.columns)) == (30, 0, ["id", "label"])
    words = ("folds.count=2", "epochs=1", "model=small_image", "backbone=small_image(width=8)", "device=cpu")
    for stage in ("split", "check", "train", "predict", "stack", "report"):
        ended = project.run(f"stage={stage}", "stack.methods=single,mean", *words)
        assert ended.code == 0, ended.err
        assert "Warning" not in ended.err
    assert pd.read_csv(project.root / "submissions/odd/stack.csv").empty
    assert "stage=package makes what answers hidden ones" in project.run("stage=submit", *words).out


def test_no_test_images_at_all(project):
    make(project, [f"train/{NAMES[k % 3]}/{k}.jpg" for k in range(30)], [], [], [])
    (project.root / "data/odd/train.csv").unlink()
    assert "data.hidden=true if there are none" in refused(project)
    assert len(load(new(project, "data.hidden=true")).test) == 0


def test_queries_are_not_hidden(project):
    make(project, TRAIN, [], [(k, NAMES[k % 3]) for k in range(30)], [])
    message = refused(project, "data.hidden=true", "data.gallery=train")
    assert "data.hidden=true, but queries search images that are there" in message
