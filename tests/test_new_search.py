"""stage=new on competitions of finding the same thing again: what asks, what is searched, what an answer is."""

from __future__ import annotations

import drawn
import pandas as pd
import pytest
from test_new import inferred, new, refused

from pipeline import config as settings
from pipeline.competition import load
from pipeline.tasks import task_for

EXPECTED = {
    "matches": {
        "task": "retrieval()", "metric": "mean_average_precision(k=5)", "data.target": ["label"], "data.role": "role",
        "data.group": "family", "data.test_csv": "test.csv", "data.gallery": "", "folds.count": 5,
        "folds.method": "group_kfold()", "head": "bnneck()", "pairs": ["triplet()"], "batch_size": 8,
        "sampler": "identities(p=2,k=4)", "image_size": 16, "data.features": [],
    },
    "pool": {
        "task": "retrieval(itself=True)", "metric": "mean_average_precision(k=20)", "data.target": ["label_group"],
        "data.group": "", "data.role": "", "data.gallery": "", "folds.count": 4, "folds.method": "identity_kfold()",
    },
    "postings": {
        "task": "retrieval(itself=True)", "data.id": "posting_id", "data.image": "image", "data.files": [],
        "data.target": ["label_group"], "data.test_csv": "test.csv", "data.group": "",
        "data.test_images": "test_images",
    },
    "index": {
        "task": "retrieval()", "metric": "mean_average_precision(k=3)", "data.target": ["landmark_id"],
        "data.gallery": "index", "data.test_images": "test", "data.train_images": "train", "data.test_csv": "",
    },
    "searched_folders": {
        "task": "retrieval()", "data.gallery": "gallery", "data.test_images": "query", "data.train_images": "train",
        "data.train_csv": "", "data.sample": "", "data.target": ["label"],
    },
    "searched_tables": {
        "task": "retrieval()", "data.gallery": "gallery.csv", "data.test_csv": "query.csv",
        "data.test_images": "images", "data.train_csv": "train.csv", "data.target": ["person"], "data.camera": "",
        "data.group": "",
    },
}  # fmt: skip
SEARCHED = {  # queries, and all test rows
    "matches": (3, 8), "pool": (6, 6), "postings": (6, 6), "index": (4, 13), "searched_folders": (3, 10),
    "searched_tables": (3, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_each_form_is_taken_for_what_it_is(project, name):
    config = inferred(project, name)
    values = settings.flatten(config)
    assert {key: values[key] for key in EXPECTED[name]} == EXPECTED[name]
    competition = load(config)
    assert (len(competition.sample), len(competition.test)) == SEARCHED[name]
    task = task_for(config, competition)
    assert len(task.targets(competition.targets)) == len(competition.train)
    assert task.allowed(competition.sample)
    assert (project.root / "runs" / name / "preview.png").is_file()


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_written_goes_on_to_check_and_split(project, name):
    inferred(project, name)
    for stage in ("check", "split"):
        ended = project.run(f"stage={stage}")
        assert ended.code == 0, ended.err
    folds = pd.read_csv(project.root / f"folds/{name}.csv", dtype=str)
    assert (folds.groupby(folds.columns[-1])["fold"].nunique() == 1).all(), "an identity lies in one fold whole"


LABELS = {
    "new_whale": ("Id", 5, "which has a label of its own in training"),
    "new_individual": ("individual_id", 3, "which is no label of training"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_label_for_what_is_new_is_seen_and_goes_on_to_split(project, name):
    target, depth, why = LABELS[name]
    drawn.write(name, project.root / "data")
    ended = new(project, name)
    assert ended.code == 0, ended.err
    assert f"the sample answers {name}, {why}" in " ".join(ended.out.split())
    layer = settings.read_layer(settings.Path(f"configs/competition/{name}.yaml"))
    assert layer["task"] == f"retrieval(kind='labels', new='{name}')"
    assert (layer["data.target"], layer["metric"]) == ([target], f"mean_average_precision(k={depth})")
    assert "data.group" not in layer
    ended = project.run("stage=split")
    assert ended.code == 0, ended.err
    assert "classes    new" in ended.out


def test_another_task_may_be_meant(project):
    assert inferred(project, "new_whale", "task=multiclass").task == "multiclass"
    assert inferred(project, "matches", "task=retrieval()", "metric=rank_k(k=1)").metric == "rank_k(k=1)"


def test_what_the_command_line_says_of_a_search_wins(project):
    words = ("data.group=", "data.gallery=", "sampler=shuffle()", "batch_size=16", "data.target=family")
    config = inferred(project, "matches", *words)
    assert (config.data.group, config.sampler, config.data.target) == ("", "shuffle()", ["family"])
    config = inferred(project, "searched_tables", "data.camera=camera", "batch_size=16", "data.role=")
    assert (config.data.camera, config.sampler) == ("camera", "identities(p=4,k=4)")
    assert "data.camera=cam" in refused(project, "searched_tables", "data.camera=cam")


def test_cameras_and_few_groups_are_proposed(project):
    drawn.write("searched_tables", project.root / "data")
    ended = new(project, "searched_tables")
    assert "data.camera: if another image by the same camera is no find" in ended.out
    assert "# camera: camera" in (project.root / "configs/competition/searched_tables.yaml").read_text()
    folder = drawn.write("pool", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows.assign(kind=(rows["label_group"].astype(int) % 2).astype(str)).to_csv(folder / "train.csv", index=False)
    ended = new(project, "pool")
    assert "set it: a fold each, or more" in ended.out
    assert settings.compose({"competition": "pool"}).data.group == ""


def test_identities_of_one_image_are_counted(project):
    folder = drawn.write("pool", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    rows.loc[:2, "label_group"] = ["1", "2", "3"]
    rows.to_csv(folder / "train.csv", index=False)
    assert "3 of 11 identities have one image: OOF has nothing of theirs to find" in new(project, "pool").out


def sampled(folder, cells):
    """The sample of a drawn folder with other cells in its answers."""
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str, keep_default_na=False)
    answer = sample.columns[1]
    sample.assign(**{answer: cells}).to_csv(folder / "sample_submission.csv", index=False)


def test_a_gallery_is_found_by_its_name_where_the_sample_answers_nothing(project):
    sampled(drawn.write("index", project.root / "data"), "")
    assert new(project, "index").code == 0
    config = settings.compose({"competition": "index"})
    assert (config.task, config.data.gallery, config.metric) == ("retrieval()", "index", "mean_average_precision(k=20)")


def test_answers_that_are_training_images_are_refused(project):
    folder = drawn.write("index", project.root / "data")
    ids = pd.read_csv(folder / "train.csv", dtype=str)["id"]
    sampled(folder, " ".join(ids[:3]))
    message = refused(project, "index")
    assert "which are of training" in message
    assert "data.gallery=FILE" in message


def test_identities_that_no_name_tells_are_asked_for(project):
    folder = drawn.write("matches", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str).rename(columns={"label": "tribe"})
    rows["trace"] = [f"t{row % 7}" for row in range(len(rows))]
    rows.to_csv(folder / "train.csv", index=False)
    message = refused(project, "matches")
    assert "columns may be the identities to train on: tribe (10 values), family (5 values)" in message
    assert "data.target=tribe" in message


def test_ids_that_collide_between_queries_and_gallery_are_refused(project):
    folder = drawn.write("searched_folders", project.root / "data")
    drawn.save(folder / "gallery/q1.png", drawn.picture(1, 1, side=12))
    assert "called like test rows: q1.png" in refused(project, "searched_folders")


def made(project, cells, sample):
    """A competition with these labels in turn, whose sample shows one cell."""
    folder = project.root / "data/made"
    for row in range(36):
        drawn.save(folder / ("train" if row < 30 else "test") / f"s{row}.png", drawn.picture(row % 3, row, side=12))
    drawn.table(folder / "train.csv", "id,label", ((f"s{row}", cells[row % len(cells)]) for row in range(30)))
    drawn.table(folder / "sample_submission.csv", "id,label", ((f"s{row}", sample) for row in range(30, 36)))


@pytest.mark.parametrize("sample", ["cat 0.5", "cat 0.9 0 0 5 5", "a small brown animal", "cat dog owl 0.5"])
def test_answers_that_are_no_classes_are_refused(project, sample):
    made(project, ["cat", "dog", "owl"], sample)
    ended = project.run("stage=new", "name=made", "data=data/made")
    assert ended.code == 2
    assert f"sample_submission.csv shows {sample!r}, but the classes are cat, dog, owl" in ended.err
    assert project.run("stage=new", "name=made", "data=data/made", "data.sample=").code == 0


@pytest.mark.parametrize(
    ("cells", "sample", "task"),
    [
        (["cat", "dog", "unknown"], "unknown", "multiclass"),
        (["cat", "dog", "owl"], "cat dog owl", "multiclass"),
        (["new_york", "oslo", "rome"], "new_york oslo rome", "multiclass"),
        (["cat", "dog", "owl"], "cat dog new_animal", "retrieval(kind='labels', new='new_animal')"),
        (["new_elk", "new_elk", "e1", "new_elk", "e2"], "new_elk e1 e2", "retrieval(kind='labels', new='new_elk')"),
        (["cat", "dog", "owl"], "new_individual", "retrieval(kind='labels', new='new_individual')"),
    ],
)
def test_labels_are_a_search_only_where_one_of_them_is_for_what_is_new(project, cells, sample, task):
    made(project, cells, sample)
    new(project, "made")
    assert settings.read_layer(settings.Path("configs/competition/made.yaml"))["task"] == task
