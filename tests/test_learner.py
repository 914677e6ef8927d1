"""The loss of a batch: weights, soft labels and their share, mixed or not, against the formulas by hand."""

from __future__ import annotations

import pytest
import small_training as small
import torch
from torch import nn
from torch.nn import functional

from pipeline.data import Batch, draw
from pipeline.learner import Learner

ROWS = 6


class Plain(nn.Module):
    """The logits of a row are its first three pixels."""

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 100

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3]


@pytest.fixture
def batch() -> Batch:
    """Six rows with soft targets, weights, soft labels of a teacher and shares."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (ROWS, 1, 2, 2), dtype=torch.uint8, generator=generator)
    targets, soft = (torch.rand(ROWS, 3, generator=generator).softmax(dim=1) for _ in range(2))
    weights, share = torch.rand(ROWS, generator=generator), torch.rand(ROWS, generator=generator)
    return Batch(images, targets, weights, soft, share)


def learner(project, **changes: object) -> Learner:
    small.write(project.root)
    return Learner(Plain(), small.config(**changes))


def truth_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


def taught_loss(logits: torch.Tensor, soft: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL, row by row, as Hinton et al. write it: the teacher's softmax over T."""
    teacher = (soft.log() / temperature).softmax(dim=1)
    student = (logits / temperature).softmax(dim=1)
    return temperature**2 * (teacher * (teacher / student).log()).sum(dim=1)


def test_a_loss_is_the_weighted_mean_of_its_rows(project, batch):
    plain = Batch(batch.images, batch.targets, batch.weights)
    logits = Plain().outputs(Plain().prepare(batch.images))
    expected = (truth_loss(logits, batch.targets) * batch.weights).sum() / batch.weights.sum()
    torch.testing.assert_close(learner(project)(plain, draw(0)), expected)


def test_hard_targets_need_no_probabilities(project, batch):
    hard = torch.tensor([0, 2, 1, 1, 0, 2])
    logits = Plain().outputs(Plain().prepare(batch.images))
    found = learner(project)(Batch(batch.images, hard, torch.ones(ROWS)), draw(0))
    torch.testing.assert_close(found, functional.cross_entropy(logits, hard))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_each_row_has_its_share_of_the_teacher(project, batch, temperature):
    logits = Plain().outputs(Plain().prepare(batch.images))
    rows = (1 - batch.share) * truth_loss(logits, batch.targets)
    rows = rows + batch.share * taught_loss(logits, batch.soft, temperature)
    expected = (rows * batch.weights).sum() / batch.weights.sum()
    found = learner(project, train__temperature=temperature)(batch, draw(0))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mix_takes_all_that_belongs_to_a_row(project, batch):
    """mixup, whose draws are made again here: one share for the batch, one partner for each row."""
    generator = draw(7)
    kept = float(generator.beta(1.0, 1.0))
    other = torch.from_numpy(generator.permutation(ROWS))
    assert not torch.equal(other, torch.arange(ROWS))

    def mixed(part: torch.Tensor) -> torch.Tensor:
        return kept * part + (1 - kept) * part[other]

    logits = Plain().outputs(mixed(Plain().prepare(batch.images)))
    share, weights = mixed(batch.share), mixed(batch.weights)
    rows = (1 - share) * truth_loss(logits, mixed(batch.targets)) + share * taught_loss(logits, mixed(batch.soft), 2.0)
    found = learner(project, mix="mixup(alpha=1.0)", train__temperature=2.0)(batch, draw(7))
    torch.testing.assert_close(found, (rows * weights).sum() / weights.sum(), rtol=1e-5, atol=1e-5)


def test_mixed_training_gives_the_table_soft_targets(project):
    small.write(project.root)
    ended = project.run("stage=train", "fold=0", "mix=cutmix()", "loss=focal()", "epochs=1")
    assert ended.code == 0, ended.err
    head = small.weights(project.root / "runs/noise/tiny/fold0/best.ckpt")["head.1.weight"]
    assert torch.isfinite(head).all()
