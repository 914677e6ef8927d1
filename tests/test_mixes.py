"""Mixup and cutmix, checked pixel by pixel against the definition; samplers against their frequencies."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.parts import mixes, samplers

ROWS = 6


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is constant i, so that each pixel says where it comes from; each row has a class of its own."""
    images = torch.arange(ROWS).float().reshape(ROWS, 1, 1, 1).expand(ROWS, 2, 10, 8).clone()
    return images, torch.eye(ROWS)


def test_mixup_mixes_images_and_labels_alike() -> None:
    for seed in range(10):
        images, targets = mixes.mixup(*batch(), np.random.default_rng(seed), alpha=1.0)
        sources = torch.arange(ROWS).float()
        torch.testing.assert_close(images[:, 0, 0, 0], targets @ sources)
        assert (images == images[:, :1, :1, :1]).all()
        own = targets.diagonal()
        mixed = own < 1
        assert len(set(own[mixed].tolist())) <= 1  # one share for the batch


def test_mixup_shares_follow_beta() -> None:
    shares = []
    for seed in range(400):
        _, targets = mixes.mixup(*batch(), np.random.default_rng(seed), alpha=0.5)
        shares.append(targets.max(dim=1).values.min().item())
    drawn = np.random.default_rng(0).beta(0.5, 0.5, 4000)
    assert abs(np.mean(shares) - np.mean(np.maximum(drawn, 1 - drawn))) < 0.03


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels() -> None:
    areas = []
    for seed in range(50):
        images, targets = mixes.cutmix(*batch(), np.random.default_rng(seed))
        for row in range(ROWS):
            foreign = images[row, 0] != row
            assert torch.equal(images[row, 0] != row, images[row, 1] != row)
            share = foreign.float().mean()
            torch.testing.assert_close(targets[row, row], 1 - share)
            if foreign.any():
                rows, columns = torch.nonzero(foreign, as_tuple=True)
                assert foreign[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
                other = int(images[row, 0][foreign][0])
                torch.testing.assert_close(targets[row, other], share)
                areas.append(float(share))
    assert min(areas) < 0.1
    assert max(areas) > 0.5


def test_shuffle_shows_every_row_once() -> None:
    rows = samplers.shuffle(np.zeros(50, dtype=np.int64), np.random.default_rng(0))
    assert sorted(rows.tolist()) == list(range(50))


def test_balanced_shows_each_class_and_each_of_its_rows_equally_often() -> None:
    classes = np.array([0] * 900 + [2] * 90 + [5] * 10)
    counts = np.zeros(1000)
    for seed in range(60):
        rows = samplers.balanced(classes, np.random.default_rng(seed))
        assert len(rows) == 1000
        counts += np.bincount(rows, minlength=1000)
    shown = [counts[classes == k].sum() / counts.sum() for k in (0, 2, 5)]
    np.testing.assert_allclose(shown, 1 / 3, atol=0.01)
    np.testing.assert_allclose(counts[classes == 5] / counts.sum(), 1 / 30, atol=0.004)
