"""Several seeds a member: its networks are those of single runs, its predictions are their mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_training as small
import torch

from pipeline import engine, training
from pipeline.artefacts import Predictions, read_json
from pipeline.runs import Run
from pipeline.tasks import task_for


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


def values(root: Path, run: str, fold: int, side: str) -> np.ndarray:
    return Predictions.load(root / f"runs/noise/{run}/fold{fold}/{side}.npz").values


def test_a_run_of_seeds_is_the_mean_of_single_runs(root, project):
    assert project.run("stage=train", "seed=3", "train.seeds=2", "run=both").code == 0
    for seed in (3, 4):
        assert project.run("stage=train", f"seed={seed}", f"run=s{seed}").code == 0
    for run in ("both", "s3", "s4"):
        assert project.run("stage=predict", f"run={run}").code == 0
    for fold in (0, 1):
        for seed in (3, 4):
            one = small.weights(root / f"runs/noise/both/fold{fold}/seed{seed}/best.ckpt")
            assert small.same(one, small.weights(root / f"runs/noise/s{seed}/fold{fold}/best.ckpt"))
        for side in ("oof", "test"):
            alone = [values(root, f"s{seed}", fold, side) for seed in (3, 4)]
            assert not np.allclose(*alone, atol=1e-3)
            assert np.allclose(values(root, "both", fold, side), np.mean(alone, axis=0), atol=1e-6)


def test_the_table_shows_the_score_of_all_seeds_together(root, project):
    trained = project.run("stage=train", "train.seeds=2")
    records = [read_json(root / f"runs/noise/tiny/fold{fold}/train.json") for fold in (0, 1)]
    assert f"accuracy() {np.mean([record['final'] for record in records]):.4f}" in trained.out
    assert f"score {' '.join(f'{score:.4f}' for score in records[0]['seeds'])} of single seeds" in trained.out
    assert project.run("stage=predict").code == 0
    run = Run(small.config(), "tiny")
    truth = run.truth(task_for(run.config, run.competition))[run.scored_folds == 0]
    answer = values(root, "tiny", 0, "oof").argmax(axis=1)
    assert records[0]["final"] == pytest.approx((answer == truth).mean())


def test_a_kill_in_the_second_seed_leaves_the_first(root, project, monkeypatch):
    words = ("stage=train", "fold=0", "train.seeds=2", "train.checkpoint_seconds=0")
    assert project.run(*words, "run=whole").code == 0
    fit, started = engine.fit, []

    def mortal(fabric, learner, train, config, folder, validate):
        started.append(folder.name)
        if folder.name == "seed1" and len(started) == 2:
            raise KeyboardInterrupt
        return fit(fabric, learner, train, config, folder, validate)

    monkeypatch.setattr(engine, "fit", mortal)
    assert project.run(*words, "run=killed").code == 130
    assert project.run(*words, "run=killed", "lr=1e-4").code == 2, "what is begun keeps its settings"
    assert project.run(*words, "run=killed").code == 0
    assert started == ["seed0", "seed1", "seed1"]
    one, other = (
        torch.load(root / f"runs/noise/{run}/fold0/best.ckpt", weights_only=True) for run in ("whole", "killed")
    )
    assert small.same(one["network"], other["network"])
    assert small.same(*one["others"], *other["others"])
    again = project.run(*words, "run=killed")
    assert len(started) == 3, again.out


def test_every_seed_learns_from_its_members_rows_and_labels_alone(root, project, monkeypatch):
    """Pseudo-labels and soft labels of a run of seeds: each student's seed meets those of its own member."""
    seen, made = [], training.member_table

    def spy(run, task, held_out, broken):
        table = made(run, task, held_out, broken)
        seen.append((run.name, run.config.seed, held_out, table))
        return table

    monkeypatch.setattr(training, "member_table", spy)
    words = ("train.seeds=2", "epochs=1")
    assert project.run("stage=train", *words).code == project.run("stage=predict").code == 0
    assert project.run("stage=pseudo", "pseudo.threshold=0", *words).code == 0
    assert project.run("stage=distill", "distill.teacher=tiny", *words).code == 0
    run = Run(small.config(), "tiny")
    rows = {fold: np.flatnonzero(run.folds == fold) for fold in (0, 1)}
    for name in ("tiny", "tiny-r1", "tiny-distilled"):
        own = [entry for entry in seen if entry[0] == name]
        asked = list(dict.fromkeys((seed, held_out) for _, seed, held_out, _ in own))
        assert asked == [(s, (f,)) for f in (0, 1) for s in (0, 1)]
        for _, _, (fold,), table in own:
            assert not set(table.rows.tolist()) & set(rows[fold].tolist())
    for _, _, (fold,), table in (entry for entry in seen if entry[0] == "tiny-r1"):
        labelled = table.rows >= len(run.folds)
        expected = values(root, "tiny", fold, "test").argmax(axis=1)
        assert table.targets[labelled].argmax(axis=1).tolist() == expected.tolist()
    assert len(list((root / "runs/noise").rglob("seed*/best.ckpt"))) == 3 * 2 * 2


def test_seeds_and_a_common_epoch_do_not_go_together(root, project):
    stopped = project.run("stage=train", "train.seeds=2", "select=common")
    assert stopped.code == 2
    assert "train.seeds=2 does not go with select=common" in stopped.err
