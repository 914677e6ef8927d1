"""Several views of an image in a batch: how they are drawn, how a loss gets them, what they do not go with."""

from __future__ import annotations

import numpy as np
import pytest
import small_training as small
import torch
from test_resume import Killed, kill_after
from torch import nn

from pipeline.data import Batch, Joined, Loader, Table, draw, row_seeds
from pipeline.errors import UserError
from pipeline.learner import Learner
from pipeline.parts import augments, losses

ROWS, VIEWS = 8, 3


class Pictures:
    """Images in memory: (N, 8, 8, 3) uint8."""

    images = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return ROWS

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


def loader(project, augment: str) -> Loader:
    small.write(project.root)
    table = Table(np.arange(ROWS), np.arange(ROWS) % 3, np.ones(ROWS, dtype=np.float32))
    config = small.config(augment=augment, batch_size=4, symmetry="hflip")
    return Loader(Joined([Pictures()]), table, config)


def test_the_base_is_alike_in_all_views_and_the_change_is_drawn_for_each(project) -> None:
    made = loader(project, "several(base='pad_crop_flips(pad=2)', change='aug_mix()')")
    again = list(made.epoch(1, start=1))
    for step, batch in enumerate(made.epoch(1)):
        places = made.order(1)[4 * step : 4 * step + 4]
        assert (len(batch.images), len(batch.targets)) == (4 * VIEWS, 4)
        views = batch.images.permute(0, 2, 3, 1).numpy().reshape(VIEWS, 4, 8, 8, 3)
        for row, place in enumerate(places):
            seed = int(row_seeds(made.seed, 1, places)[row])
            base = augments.augmenter(augments.pad_crop_flips(8, pad=2))(Pictures.images[place], seed)
            assert np.array_equal(views[0, row], base)
            for view in range(1, VIEWS):
                expected = augments.augmenter(augments.aug_mix(8))(base, seed + (view << 32))
                assert np.array_equal(views[view, row], expected)
        assert not np.array_equal(views[1], views[2])
    assert torch.equal(again[0].images, batch.images), "whatever step is the first"


@pytest.mark.parametrize("base", ["none()", "pad_crop_flips(pad=2)"])
def test_alike_changes_the_first_view_too_and_leaves_the_others(project, base: str) -> None:
    call = f"several(base='{base}', change='aug_mix()'"
    one, other = (next(iter(loader(project, text).epoch(0))).images for text in (f"{call})", f"{call}, alike=true)"))
    assert torch.equal(one[4:], other[4:])
    assert not torch.equal(one[:4], other[:4])
    for view in range(1, VIEWS):
        assert not torch.equal(other[:4], other[4 * view : 4 * view + 4])


class Plain(nn.Module):
    """The logits of a row are its first three pixels."""

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 100

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3]


@pytest.mark.parametrize("taught", [False, True])
def test_a_loss_compares_the_views_or_learns_from_their_mean(project, taught: bool) -> None:
    small.write(project.root)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4 * VIEWS, 1, 2, 2), dtype=torch.uint8)
    soft, weights = torch.rand(4, 3).softmax(dim=1), torch.rand(4)
    batch = Batch(images, torch.arange(4) % 3, weights, *((soft, torch.rand(4)) if taught else ()))
    logits = Plain().outputs(Plain().prepare(images))
    each = [losses.focal(one, batch.targets) for one in logits.chunk(VIEWS)]
    distilled = sum(losses.distillation(one, soft, temperature=1.0) for one in logits.chunk(VIEWS)) / VIEWS
    for loss, rows in (("jsd()", losses.jsd(logits, batch.targets)), ("focal()", sum(each) / VIEWS)):
        student = Learner(Plain(), small.config(loss=loss, augment="several()"))
        wanted = (1 - batch.share) * rows + batch.share * distilled if taught else rows
        torch.testing.assert_close(student(batch, draw(0)), (wanted * weights).sum() / weights.sum())


WORDS = ("stage=train", "fold=0", "batch_size=4", "augment=several(base='light()')", "train.accumulate=2")


@pytest.mark.parametrize("loss", [("loss=jsd()",), ("loss=adacos_moving()", "head=cosine()", "auxiliary=middle()")])
def test_a_killed_training_ends_with_the_same_weights(project, loss: tuple[str, ...]) -> None:
    small.write(project.root, rows=41)
    words = (*WORDS, *loss, "epochs=2", "train.checkpoint_seconds=0")
    assert project.run(*words, "run=whole").code == 0
    for passes in (3, 4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, passes)
            project.run(*words, "run=killed")
    assert project.run(*words, "run=killed").code == 0
    one, other = (project.root / "runs/noise" / run / "fold0" for run in ("whole", "killed"))
    assert small.same(small.weights(one / "best.ckpt"), small.weights(other / "best.ckpt"))
    scales = [torch.load(place / "last.ckpt", weights_only=True)["learner"].get("memory") for place in (one, other)]
    assert (scales[0] is not None) == ("adacos" in loss[0])
    assert scales[0] is None or (scales[0] == scales[1] and scales[0] >= 1)


def test_sanity_looks_at_unchanged_views(project) -> None:
    small.write(project.root)
    ended = project.run("stage=sanity", "loss=jsd()", "augment=several()", "epochs=1", "auxiliary=middle()")
    assert "initial loss" in ended.out
    assert ended.code == 0, ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"loss": "jsd()"}, "compares views of each image, but augment=none.. makes one"),
        ({"loss": "jsd()", "augment": "several()", "mix": "mixup()"}, "mix=mixup.. would blend"),
        ({"augment": "compose(parts=['several()','light()'])"}, "stands in none"),
        ({"augment": "several(base='several()')"}, "stands in none"),
        ({"loss": "total(losses=['jsd()','focal()'])", "augment": "several()"}, "cannot stand in another loss"),
        ({"loss": "ohem(loss='adacos_moving()')", "head": "cosine()"}, "cannot stand in another loss"),
        ({"augment": "several(change='flips()')"}, "needs symmetry=hflip"),
    ],
)
def test_what_does_not_go_together_fails_before_any_work(project, words: dict[str, str], said: str) -> None:
    small.write(project.root)
    with pytest.raises(UserError, match=said):
        small.config(**words)
