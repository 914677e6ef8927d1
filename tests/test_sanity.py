"""stage=sanity: each check passes on a sound competition and fails on what it is there to find."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import small_masks
import small_training as small
import torch
from torch import nn

from pipeline import checks, learner

CHECKS = (
    "labels vary",
    "images vary",
    "initial loss",
    "gradients reach all",
    "over-fits one batch",
    "a short training",
)


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


def test_a_sound_competition_passes(root, project):
    ended = project.run("stage=sanity", "augment=light()", "mix=mixup()")
    assert ended.code == 0, ended.err
    for check in CHECKS:
        assert f"pass  {check}" in ended.out
    again = project.run("stage=sanity", "augment=light()", "mix=mixup()")
    assert again.out in ended.out
    assert "sanity tiny" not in again.out, "finished checks are not run again"
    assert not list(root.rglob("*.ckpt"))


@pytest.mark.parametrize("loss", ["cross_entropy(smoothing=0.1)", "focal(gamma=1.0)", "hinge()"])
def test_each_loss_starts_where_it_declares(root, project, loss):
    assert "pass  initial loss" in project.run("stage=sanity", f"loss={loss}").out


def test_a_loss_that_declares_nothing_needs_only_be_finite(root, project, monkeypatch):
    monkeypatch.setattr(learner, "initial_loss", lambda config, outputs: None)
    ended = project.run("stage=sanity")
    assert ended.code == 0, ended.err
    assert "(the loss declares none)" in ended.out


def constant_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (root / "data/noise/train_images").iterdir():
        path.write_bytes(cv2.imencode(".png", np.full((8, 8), 90, dtype=np.uint8))[1].tobytes())


def one_picture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for path in (root / "data/noise/train_images").iterdir():
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def sure_from_the_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = learner.Learner.__init__

    def init(self, network, config, *more):
        fresh(self, network, config, *more)
        nn.init.constant_(network.head[1].bias, 0)
        network.head[1].bias.data[0] = 30

    monkeypatch.setattr(learner.Learner, "__init__", init)


def a_dead_layer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = learner.Learner.__init__

    def init(self, network, config, *more):
        fresh(self, network, config, *more)
        self.spare = nn.Parameter(torch.zeros(3))

    monkeypatch.setattr(learner.Learner, "__init__", init)


def nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "words", "failed", "advice"),
    [
        (constant_images, (), "images vary", "wrong folder"),
        (one_picture, (), "images vary", "wrong folder"),
        (sure_from_the_start, (), "initial loss", "initialisation"),
        (a_dead_layer, (), "gradients reach all", "not spare"),
        (nothing, ("lr=1e-9",), "over-fits one batch", "wrong lr"),
        (nothing, ("lr=1e3", "optim=sgd()"), "a short training learns", "lr=100"),
    ],
)
def test_a_failed_check_exits_2_alone_and_warns_in_a_recipe(root, project, monkeypatch, spoil, words, failed, advice):
    spoil(root, monkeypatch)
    alone = project.run("stage=sanity", *words)
    assert alone.code == 2
    assert f"FAIL  {failed}" in alone.out
    assert alone.err.startswith("error: sanity of tiny: ")
    assert f"{failed} (" in alone.err
    assert advice in alone.err
    assert alone.err.count("\n") == 1
    (root / "configs/recipe/default.yaml").write_text("steps:\n- split\n- sanity\n")
    recipe = project.run("stage=all", *words)
    assert recipe.code == 0
    assert f"warning: sanity of tiny: {failed} (" in recipe.err or f"; {failed} (" in recipe.err
    assert "a check failed" in recipe.out


def test_one_class_alone_is_a_message(root, project):
    table = root / "data/noise/train.csv"
    table.write_text("id,label\n" + "".join(f"{line.split(',')[0]},a\n" for line in table.read_text().split()[1:]))
    stopped = project.run("stage=sanity")
    assert stopped.code == 2
    assert "one class" in stopped.err


def test_steps_are_counted_so_that_a_second_run_says_the_same(root, project):
    first, second = (project.run("stage=sanity", f"run={name}").out.splitlines() for name in ("one", "other"))
    assert [line for line in first if "pass" in line] == [line for line in second if "pass" in line]
    assert sum("pass" in line for line in first) == len(CHECKS)


def test_the_short_training_sees_the_sizes_of_the_real_one(project, monkeypatch):
    small_masks.write(project.root)
    seen = []
    plain = learner.at_size
    monkeypatch.setattr(learner, "at_size", lambda images, batch: (seen.append(batch.size), plain(images, batch))[1])
    monkeypatch.setattr(checks, "OVERFIT_STEPS", 5)
    project.run("stage=sanity", "sizes=multi_scale(scales=[0.5,1.0])")
    assert set(seen[: -checks.SAMPLE_STEPS]) == {16}
    assert set(seen[-checks.SAMPLE_STEPS :]) == {8, 16}


def test_small_images_from_scratch_are_pointed_to_their_model(root, project, monkeypatch):
    monkeypatch.setattr(checks, "all_checks", lambda run: [checks.Check("labels vary", True, "3 different", "")])
    assert "model=small_image" not in project.run("stage=sanity").out
    words = "backbone=resnet18", "image_size=32", "run=large"
    assert "model=small_image is made for images of at most 64 px" in project.run("stage=sanity", *words).out
