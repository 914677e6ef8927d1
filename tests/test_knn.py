"""stage=knn: the neighbours against a slow search, whose labels count, fold safety, reuse, and the run it makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_tasks
import small_training as small

from pipeline import config as configs
from pipeline import embed, stores
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.forms import CLASSES, LABELS, NUMBERS
from pipeline.hardware import Hardware
from pipeline.prediction import Member
from pipeline.runs import Run
from pipeline.stages import knn, train
from pipeline.tasks import task_for


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A learnable competition of 32 rows in 2 folds, and its trained run ``tiny``."""
    root = tmp_path_factory.mktemp("knn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        small.shutil.copytree(small.SOURCE / "configs", root / "configs")
        small.write(root)
        asked = small.config(knn__k=3)
        ensure_folds(asked, load(asked))
        train.run(asked)
        yield asked


def slow_shares(points, labels, query, k, temperature):
    """One query in plain Python: the k nearest by cosine, by exp(cosine / temperature), and one more for the mean."""
    cosines = [sum(a * b for a, b in zip(query, point, strict=True)) for point in points]
    near = sorted(range(len(points)), key=lambda place: -cosines[place])[:k]
    weights = [math.exp((cosines[place] - cosines[near[0]]) / temperature) for place in near]
    weights.append(weights[-1])
    rows = [*(labels[place] for place in near), [sum(column) / len(labels) for column in zip(*labels, strict=True)]]
    return [sum(w * row[c] for w, row in zip(weights, rows, strict=True)) / sum(weights) for c in range(len(rows[0]))]


def unit(rows: int, seed: int, width: int = 6) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_shares_against_a_slow_search():
    points, queries = unit(40, 0), unit(9, 1)
    labels = np.random.default_rng(2).integers(2, size=(40, 3)).astype(np.float32)
    near = embed.nearest(points, queries, 5)
    slow = [slow_shares(points.tolist(), labels.tolist(), query, 5, 0.2) for query in queries.tolist()]
    np.testing.assert_allclose(knn.shares(LABELS, *near, labels, 0.2), slow, atol=1e-5)
    classes = np.eye(3, dtype=np.float32)[np.arange(40) % 3]
    answer = knn.shares(CLASSES, *near, classes, 0.2)
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-6)
    assert (answer > 0).all(), "no class is impossible"
    far = 1000 + np.arange(40, dtype=np.float32)[:, None]
    means = knn.shares(NUMBERS, *near, far, 1e9)
    np.testing.assert_allclose(means, far[near[1], 0].mean(axis=1, keepdims=True), rtol=1e-5)


def test_nearest_in_blocks_and_with_few_points(monkeypatch):
    points, queries = unit(7, 0), unit(10, 1)
    whole = embed.nearest(points, queries, 20)
    assert whole[0].shape == (10, 7)
    assert (np.diff(whole[0], axis=1) <= 0).all()
    monkeypatch.setattr(embed, "BLOCK", 3)
    parts = embed.nearest(points, queries, 20)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6)
    assert (parts[1] == whole[1]).all()


def test_a_run_that_stacks_like_any_other(trained):
    [outcome] = knn.run(trained)
    run, task = Run(trained, "tiny-knn"), task_for(trained, load(trained))
    assert outcome.run == "tiny-knn"
    assert outcome.note == "3 neighbours in tiny"
    assert "OOF" in outcome.score
    oof, tests = run.oof(), run.tests()
    assert oof.values.shape == (32, 3)
    assert [part.values.shape for part in tests] == [(8, 3)] * 2
    np.testing.assert_allclose(oof.values.sum(axis=1), 1, atol=1e-5)
    assert (oof.values.argmax(axis=1) == run.truth(task)).mean() > 0.6, (
        "classes differ in brightness, and chance is a third"
    )
    assert run.predicted()
    assert not (tests[0].values == tests[1].values).all(), "each member has an embedding of its own"


def test_reused_until_the_settings_or_the_member_change(trained):
    knn.run(trained)
    files = sorted((Run(trained, "tiny-knn").folder).glob("fold*/*.npz"))
    before = [path.read_bytes() for path in files]
    [again] = knn.run(trained)
    assert again.reused
    (files[0].parent / "knn.json").unlink()
    assert not knn.run(trained)[0].reused
    assert [path.read_bytes() for path in files] == before
    assert not knn.run(configs.replace(trained, knn__k=4))[0].reused
    assert [path.read_bytes() for path in files] != before


def test_neighbours_are_rows_that_the_member_may_learn_from(trained):
    """By hand: member 0's embedding, the rows of fold 1 as neighbours; the labels of fold 0 change nothing."""
    knn.run(trained)
    run, task = Run(Run(trained, "tiny").as_trained(), "tiny"), task_for(trained, load(trained))
    member = Member(run.member((0,)), run.config, run.competition, task, Hardware(**run.stored()["hardware"]))
    store = stores.train_store(member.config, run.competition, 8)
    points = embed.embed(member.networks[0], store, np.arange(32), 7)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    own, others = np.flatnonzero(run.folds == 0), np.flatnonzero(run.folds == 1)
    labels = np.eye(3)[run.truth(task)]
    slow = [slow_shares(points[others].tolist(), labels[others].tolist(), points[row].tolist(), 3, 0.1) for row in own]
    found = Run(trained, "tiny-knn").oof().values[own]
    np.testing.assert_allclose(found, slow, atol=1e-4)


def test_what_cannot_be_done(trained, tmp_path):
    with pytest.raises(UserError, match="run=tiny-knn has no embedding of its own; give run=tiny"):
        knn.run(configs.replace(trained, run="tiny-knn"))
    with pytest.raises(UserError, match="the run other does not exist; train it first"):
        knn.run(configs.replace(trained, run="other"))
    record = Run(trained, "tiny").member((1,)) / "train.json"
    content = record.read_bytes()
    try:
        record.unlink()
        with pytest.raises(UserError, match=r"fold1 is not trained to the end; .* run=tiny fold=1"):
            knn.run(configs.replace(trained, fold=["1"]))
    finally:
        record.write_bytes(content)


@pytest.mark.parametrize("name", ["multilabel", "ordinal", "circular(period=24)"])
def test_other_tasks(project, name):
    small_tasks.write(project.root, name)
    asked = configs.compose({"competition": "drawn", "knn.k": "5"})
    ensure_folds(asked, load(asked))
    train.run(asked)
    [outcome] = knn.run(asked)
    run, task = Run(asked, "tiny-knn"), task_for(asked, load(asked))
    assert "OOF" in outcome.score
    assert run.oof().values.shape == (48, len(task.columns))
    assert run.oof().space == task.space


def test_shuffled_labels_stay_at_chance_though_the_test_images_are_the_training_images(project):
    """Each training row is its own nearest neighbour but for the fold it lies in; so a leak would score near one."""
    small.write(project.root, rows=160, folds=4, classes="abcd", learnable=False)
    asked = small.config(knn__k=1, knn__temperature=0.01, epochs=30, batch_size=40, lr=1e-2)
    ensure_folds(asked, load(asked))
    train.run(asked)
    knn.run(asked)
    run, task = Run(asked, "tiny-knn"), task_for(asked, load(asked))
    truth = run.truth(task)
    chance = 0.25 + 3 * math.sqrt(0.25 * 0.75 / 160)
    assert (run.oof().values.argmax(axis=1) == truth).mean() <= chance
    for fold, test in enumerate(run.tests()):
        learned = run.learned((fold,))
        assert (test.values.argmax(axis=1) == truth)[learned].mean() > 0.95, "it knows its own rows by heart"
        assert (test.values.argmax(axis=1) == truth)[~learned].mean() <= 0.25 + 3 * math.sqrt(0.25 * 0.75 / 40)
