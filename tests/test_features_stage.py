"""stage=features: a run like any other, for every task, without torch where no network is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import small_tasks
import small_training as small

from pipeline import config as configs
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.runs import Run, predicted_runs
from pipeline.stages import features
from pipeline.tasks import task_for

PIXELS = "features.descriptors=raw_pixels(size=8)"


@pytest.fixture
def root(project):
    """32 rows in 2 folds, whose classes differ in brightness."""
    small.write(project.root)
    return project.root


def files(root, name: str = "features") -> dict:
    return {path: path.read_bytes() for path in sorted((root / "runs/noise" / name).rglob("*.npz"))}


def test_a_run_like_any_other(root, project):
    ended = project.run("stage=features", PIXELS)
    assert ended.code == 0, ended.err
    assert "accuracy() 1.0000 ± 0.0000 OOF" in ended.out, "brightness tells the classes"
    run = Run(small.config(), "features")
    assert (run.made_by, run.has_networks) == ("features", False)
    stored = run.stored()
    assert stored["settings"]["features.classifier"] == "logistic()"
    assert stored["settings"]["features.descriptors"] == ["raw_pixels(size=8)"]
    assert not {"epochs", "lr", "image_size", "backbone"} & stored["settings"].keys(), "they change nothing here"
    assert stored["hardware"] == {}
    assert run.tests()[0].made_by["classifier"] == "logistic()"
    assert run.tests()[0].made_by["penalty"] > 0
    assert not (run.tests()[0].values == run.tests()[1].values).all(), "each member has a model of its own"
    assert [found.name for found in predicted_runs(small.config())] == ["features"]
    assert project.run("stage=features", "run=second", PIXELS, "features.classifier=svm()").code == 0
    stacked = project.run("stage=stack", "stack.methods=mean")
    assert stacked.code == 0, stacked.err
    assert "second" in stacked.out
    assert project.run("stage=submit", "source=features").code == 0
    assert (root / "submissions/noise/features.csv").is_file()


def test_done_work_is_left_and_other_settings_need_another_name(root, project):
    assert project.run("stage=features", PIXELS).code == 0
    before = files(root)
    [again] = features.run(configs.compose({"stage": "features", "features.descriptors": "raw_pixels(size=8)"}))
    assert again.reused
    (root / "runs/noise/features/fold1/features.json").unlink()
    assert project.run("stage=features", PIXELS, "epochs=7").code == 0, "epochs mean nothing to it"
    assert files(root) == before, "the same bytes"
    refused = project.run("stage=features")
    assert refused.code == 2
    assert "made with other settings (features.descriptors: ['raw_pixels(size=8)'] → " in refused.err
    assert "run=features-2" in refused.err
    assert files(root) == before
    assert project.run("stage=features", PIXELS, "features.classifier=svm()", "overwrite=true").code == 0
    assert files(root) != before


def test_one_fold_and_all_rows(root, project):
    assert project.run("stage=features", PIXELS, "fold=full").code == 0
    one = project.run("stage=features", PIXELS, "fold=1")
    assert one.code == 0
    assert "OOF" not in one.out
    run = Run(small.config(), "features")
    assert run.full_test().values.shape == (8, 3)
    with pytest.raises(
        UserError, match=r"fold0/oof.npz is missing: .* stage=features competition=noise run=features fold=0$"
    ):
        run.oof()
    assert project.run("stage=features", PIXELS).code == 0
    assert run.oof().values.shape == (32, 3)


def test_what_needs_networks_refuses(root, project):
    assert project.run("stage=features", "run=hog", PIXELS).code == 0
    for stage in ("predict", "knn", "pseudo"):
        ended = project.run(f"stage={stage}", "run=hog")
        assert ended.code == 2
        assert "run=hog, but stage=features made it, and it has no networks" in ended.err
    ended = project.run("stage=train", "run=hog", "epochs=1")
    assert ended.code == 2
    assert "the run hog was made by stage=features; name a new run, run=hog-2" in ended.err
    ended = project.run("stage=distill", "distill.teacher=hog", "epochs=1")
    assert ended.code == 2
    assert "stage=features keeps none; use distill.source=oof" in ended.err
    before = files(root, "hog")
    ended = project.run("stage=distill", "distill.teacher=hog", "distill.source=oof", "epochs=1")
    assert ended.code == 0, ended.err
    assert "teacher hog" in ended.out
    assert files(root, "hog") == before


def test_a_trained_run_is_not_overwritten(root, project):
    assert project.run("stage=train", "fold=0", "epochs=1").code == 0
    ended = project.run("stage=features", "run=tiny")
    assert ended.code == 2
    assert "the run tiny was made by stage=train" in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["features.descriptors=hogg()"], "did you mean hog"),
        (["features.descriptors=hog(cells=3)"], "hog has no argument 'cells'"),
        (["features.classifier=ridge()"], "task=multiclass has classes; those that fit: logistic, svm, lightgbm"),
        (["features.components=-1"], "features.components must be ≥ 0"),
        (["features.descriptors=hog(cell=40)"], "must fit into the image"),
    ],
)
def test_wrong_arguments_fail_before_any_data(root, project, words, says):
    (root / "data/noise/train.csv").unlink()
    ended = project.run("stage=features", *words)
    assert ended.code == 2
    assert says in ended.err


@pytest.mark.parametrize(
    "name", ["binary", "multilabel", "regression(log=true)", "circular(period=24)", "ordinal", "ordinal_regression"]
)
def test_other_tasks(project, name):
    small_tasks.write(project.root, name)
    ended = project.run("stage=features", "features.descriptors=raw_pixels(size=4)")
    assert ended.code == 0, ended.err
    asked = configs.compose({"competition": "drawn"})
    run, task = Run(asked, "features"), task_for(asked, load(asked))
    assert run.oof().space == task.space
    assert run.oof().values.shape == (48, len(task.columns))
    truth = task.targets(run.competition.targets)
    plain = task.soft(task.taught(run.competition.targets)).mean(axis=0)
    better = task.form.distance(task.soft(truth), run.oof().values).mean()
    assert better < 0.8 * task.form.distance(task.soft(truth), np.tile(plain, (48, 1))).mean()


def test_trees_read_the_columns_themselves(root, project):
    assert project.run("stage=features", PIXELS, "run=trees", "features.classifier=lightgbm()").code == 0
    assert Run(small.config(), "trees").stored()["settings"]["features.components"] == 0
    assert project.run("stage=features", PIXELS, "fold=0").code == 0
    assert Run(small.config(), "features").stored()["settings"]["features.components"] == 512


def test_what_it_has_no_model_for(root, project, monkeypatch):
    monkeypatch.setattr(features, "facts", lambda task: {"learns": "masks"})
    ended = project.run("stage=features")
    assert ended.code == 2
    assert "task=multiclass learns masks, which stage=features has no model for; train a network" in ended.err


def test_outside_images_are_said_not_to_count(root, project):
    assert "does not read the outside images" in project.run("stage=features", PIXELS, "data.extra=more.csv").err


def test_groups_classes_that_a_member_never_saw_and_broken_images(root, project):
    """Class c lies in one fold whole, and a training image is broken."""
    table = (root / "data/noise/train.csv").read_text().splitlines()
    lines = [f"{line},{'g' if line.endswith('c') else number}" for number, line in enumerate(table[1:])]
    (root / "data/noise/train.csv").write_text("\n".join([f"{table[0]},owner", *lines]) + "\n")
    (root / "data/noise/train_images/a003.png").write_bytes(b"no image")
    words = ("stage=features", PIXELS, "data.group=owner", "data.skip_broken=true")
    assert project.run(*words).code == 0
    values = Run(small.config(), "features").oof().values
    assert np.isfinite(values).all()
    assert (values > 0).all(), "no class is impossible"


def test_a_frozen_backbone_describes_too(root, project):
    """Random weights here, with a warning; the same features for every member."""
    ended = project.run("stage=features", "run=frozen", "features.descriptors=backbone()", "fold=0")
    assert ended.code == 0, ended.err
    assert "random weights" in ended.err
    stored = Run(small.config(), "frozen").stored()
    assert stored["settings"]["backbone"] == "small_image(width=4)"
    assert stored["settings"]["image_size"] == 8
    assert stored["hardware"]["device"] == "cpu"
    changed = project.run("stage=features", "run=frozen", "features.descriptors=backbone()", "image_size=16")
    assert changed.code == 2
    assert "image_size: 8 → 16" in changed.err
    test = Predictions.load(root / "runs/noise/frozen/fold0/test.npz")
    assert test.values.shape == (8, 3)
