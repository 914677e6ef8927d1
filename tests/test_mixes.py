"""Mixes, checked pixel by pixel against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import mixes

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


def slow_noise(height: int, width: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """Real noise as a plain sum of waves, each as strong as 1 / frequency^decay."""
    half = width // 2 + 1
    real, imaginary = generator.normal(size=(2, height, half))
    rows, columns = np.mgrid[:height, :width]
    total = np.zeros((height, width))
    for v in range(height):
        down = (v if v < (height + 1) // 2 else v - height) / height
        for u in range(half):
            strength = max(np.hypot(down, u / width), 1 / max(height, width)) ** -decay
            wave = np.exp(2j * np.pi * (v * rows / height + u * columns / width))
            twice = 1 if u in (0, width / 2) else 2  # a wave and its conjugate
            total += twice * ((real[v, u] + 1j * imaginary[v, u]) * strength * wave).real
    return total / (height * width)


@pytest.mark.parametrize("shape", [(10, 8), (7, 6), (6, 9)])
def test_fmix_noise_is_a_sum_of_waves(shape: tuple[int, int]) -> None:
    noise = mixes._coloured_noise(*shape, 2.0, np.random.default_rng(3))
    np.testing.assert_allclose(noise, slow_noise(*shape, 2.0, np.random.default_rng(3)), atol=1e-12)


def test_fmix_pastes_the_lowest_of_its_noise_and_counts_its_pixels() -> None:
    areas = []
    for seed in range(50):
        images, targets = mixes.fmix(*batch(), np.random.default_rng(seed))
        generator = np.random.default_rng(seed)
        noise = mixes._coloured_noise(10, 8, 3.0, generator)
        share = round(80 * (1 - generator.beta(1, 1))) / 80
        other = torch.from_numpy(generator.permutation(ROWS))
        low = torch.from_numpy(noise <= np.sort(noise, axis=None)[round(80 * share) - 1]) if share else noise < -np.inf
        for row in range(ROWS):
            assert torch.equal(images[row, 0], images[row, 1])
            assert torch.equal(images[row, 0], torch.where(torch.as_tensor(low), other[row].float(), float(row)))
            own = 1.0 if other[row] == row else 1 - share
            assert float(targets[row, row]) == pytest.approx(own, abs=1e-6)
        areas.append(share)
    assert min(areas) < 0.1
    assert max(areas) > 0.9


@pytest.mark.parametrize("name", ["mixup", "cutmix", "fmix"])
def test_chance_is_the_share_of_batches_that_are_mixed(name: str) -> None:
    mix = getattr(mixes, name)
    spared = [mix(*batch(), np.random.default_rng(seed), chance=0.3)[1].equal(torch.eye(ROWS)) for seed in range(400)]
    assert np.mean(spared) == pytest.approx(0.7, abs=0.06)
    assert torch.equal(mix(*batch(), np.random.default_rng(0), chance=0.0)[0], batch()[0])


def test_mixes_of_every_batch_draw_what_they_always_drew() -> None:
    """The stream of a run must not change with a new argument left at its default."""
    generator = np.random.default_rng(5)
    share, other = generator.beta(0.2, 0.2), generator.permutation(ROWS)
    targets = mixes.mixup(*batch(), np.random.default_rng(5))[1]
    assert torch.equal(targets, torch.lerp(torch.eye(ROWS), torch.eye(ROWS)[other], 1 - share))


def test_mix_of_chooses_one_mix_a_batch_by_its_chances() -> None:
    chosen = []
    for seed in range(600):
        generator = np.random.default_rng(seed)
        call = "mix_of(mixes=['none()','mixup(alpha=0.7)','cutmix()'],chances=[1,2,1])"
        images, targets = registry.build("mixes", call)(*batch(), generator)
        again = np.random.default_rng(seed)
        place = int(again.choice(3, p=[0.25, 0.5, 0.25]))
        wanted = registry.build("mixes", ["none()", "mixup(alpha=0.7)", "cutmix()"][place])(*batch(), again)
        assert torch.equal(images, wanted[0])
        assert torch.equal(targets, wanted[1])
        chosen.append(place)
    assert np.bincount(chosen) / 600 == pytest.approx([0.25, 0.5, 0.25], abs=0.05)
    assert registry.facts("mixes", "mix_of")["calls"] == {"mixes": "mixes"}


@pytest.mark.parametrize("chances", [(1.0,), (0.0, 0.0), (2.0, -1.0)])
def test_mix_of_refuses_chances_that_do_not_fit(chances: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="2 mixes need a number each"):
        mixes.mix_of(*batch(), np.random.default_rng(0), chances=chances)
