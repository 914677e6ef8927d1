"""Normalisations: each against a slow reference, in every format, and carried by the checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import torch

from pipeline import network, registry, whitening
from pipeline.checkpoint import load_checkpoint
from pipeline.config import Config, replace
from pipeline.errors import UserError
from pipeline.images import Images

NAMES = list(registry.parts("normalises"))


class Memory(Images):
    """Images that lie in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(Path(), [""] * len(pixels), pixels.shape, "stretch", [], None)
        self.held = pixels

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.held[rows]


def coloured(count: int = 6, side: int = 12, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth images whose channels go together, as in photographs."""
    generator = np.random.default_rng(seed)
    light = generator.normal(120, 40, (count, side, side, 1)) + 20 * np.sin(np.arange(side) / 2)[:, None]
    return np.clip(light + generator.normal(0, 12, (count, side, side, channels)), 0, 255).astype(np.uint8)


def module(call: str, images: np.ndarray) -> torch.nn.Module:
    """A normalisation that was measured on these images."""
    chosen, bound = registry.bind("normalises", call)
    channels = images.shape[3]
    mean, std, kernel = [0.4] * channels, [0.2] * channels, []
    if chosen.facts["measures"] in ("colours", "patches"):
        given = {"patch": 1, **chosen.arguments, **bound.arguments}
        found, covariance = whitening.moments(Memory(images), np.arange(len(images)), given["patch"])
        mean = found.reshape(channels, -1).mean(axis=1).tolist()
        turned = chosen.facts["measures"] == "patches"
        kernel = whitening.kernel(covariance, channels, given["epsilon"], turned).tolist()
    return registry.build("normalises", call)(mean, std, kernel)


def first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# --- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("call", [*NAMES, "per_image(channels='each')", "zca(patch=3)"])
def test_every_part_keeps_shape_in_channels_last_and_any_format(call: str, channels: int) -> None:
    images = coloured(channels=channels)
    made = module(call, images)
    seen = made(first(images))
    assert seen.shape == (6, channels, 12, 12)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert not made.state_dict(), "what it knows stands in the blueprint"
    assert torch.equal(made(first(images).float()), seen)
    assert torch.isfinite(made(first(np.full_like(images, 7)))).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(first(images)).float(), seen, atol=0.03, rtol=0.02)
    fast = made.to(torch.bfloat16)(first(images))
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), seen, atol=0.05, rtol=0.03)


# --- each part ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["together", "each"])
def test_per_image_is_the_slow_one(channels: str) -> None:
    images = coloured()
    images[0] = 90
    seen = module(f"per_image(channels={channels!r})", images)(first(images)).numpy()
    for place, image in enumerate(images.astype(np.float64)):
        for channel in range(3):
            part = image if channels == "together" else image[..., channel]
            deviation = max(part.std(), 1 / math.sqrt(part.size))
            wanted = (image[..., channel] - part.mean()) / deviation
            np.testing.assert_allclose(seen[place, channel], wanted, atol=2e-4)


def test_per_image_takes_light_and_contrast_away() -> None:
    images = coloured() // 2
    made = module("per_image()", images)
    torch.testing.assert_close(made(first(images + 40)), made(first(images)), atol=1e-3, rtol=1e-3)


def test_tanh_is_tanh() -> None:
    images = coloured()
    wanted = torch.tanh(first(images).float() / 60)
    torch.testing.assert_close(module("tanh(c=60)", images)(first(images)), wanted)


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_whitened_colours_have_no_correlation(name: str) -> None:
    images = coloured(count=40)
    seen = module(f"{name}(epsilon=1e-9)", images)(first(images)).permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(seen), torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_pca_puts_brightness_first_and_zca_keeps_channels_themselves() -> None:
    images = coloured(count=40)
    pixels = first(images).permute(1, 0, 2, 3).flatten(1).double()
    components, turned = (
        module(f"{name}()", images)(first(images)).permute(1, 0, 2, 3).flatten(1).double() for name in ("pca", "zca")
    )

    def together(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([one, other]))[0, 1])

    assert together(components[0], pixels.mean(dim=0)) > 0.99
    for channel in range(3):
        own = together(turned[channel], pixels[channel])
        assert own > max(together(turned[channel], pixels[other]) for other in range(3) if other != channel)


def test_zca_of_patches_is_the_middle_of_each_whitened_patch() -> None:
    images = coloured(channels=2)
    seen = module("zca(patch=3,epsilon=0.05)", images)(first(images))
    places = np.ndindex(6, 10, 10)
    patches = np.array([images[n, y : y + 3, x : x + 3].transpose(2, 0, 1).ravel() for n, y, x in places]) / 255
    covariance = np.cov(patches.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    whiten = vectors @ np.diag((values + 0.05 * values.mean()) ** -0.5) @ vectors.T
    means = patches.mean(axis=0).reshape(2, 9).mean(axis=1).repeat(9)
    wanted = ((patches - means) @ whiten)[:, [4, 13]].reshape(6, 10, 10, 2)
    np.testing.assert_allclose(seen[:, :, 1:-1, 1:-1].permute(0, 2, 3, 1).numpy(), wanted, atol=2e-4)


def test_patches_at_the_edge_see_it_repeated() -> None:
    images = coloured(channels=1)
    made = module("zca(patch=3)", images)
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    torch.testing.assert_close(made(first(images)), made(first(wide))[:, :, 1:-1, 1:-1])


def test_moments_are_exact_however_they_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rows = coloured(count=30), np.arange(30)
    found = whitening.moments(Memory(images), rows, 2)
    monkeypatch.setattr(whitening, "BLOCK_PIXELS", 500)
    again = whitening.moments(Memory(images), rows, 2)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
    monkeypatch.setattr(whitening, "MOST_PATCHES", 300)
    monkeypatch.setattr(whitening, "MOST_IMAGES", 10)
    rough = whitening.moments(Memory(images), rows, 2)
    assert np.abs(rough[0] - found[0]).max() < 0.05
    assert 0 < np.abs(rough[1] - found[1]).max() < 0.02


def test_what_cannot_be_whitened_is_a_message() -> None:
    with pytest.raises(UserError, match="one and the same colour"):
        module("pca()", np.full((2, 8, 8, 3), 9, dtype=np.uint8))
    with pytest.raises(UserError, match="patch=9, but images are 8 px"):
        module("zca(patch=9)", coloured(side=8))
    with pytest.raises(UserError, match="patch is an odd number"):
        replace(Config(), data__normalise="zca(patch=2)")


# --- in the checkpoint ----------------------------------------------------------------------------------------------


def test_checkpoints_from_before_there_were_names_predict_as_they_did() -> None:
    facts = {
        "backbone": "small_image(width=4)", "pool": "avg()", "head": "linear()", "channels": 3, "image_size": 8,
        "resize": "stretch", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "columns": ["a", "b"],
    }  # fmt: skip
    old = network.build(network.Blueprint(**facts))
    images = first(coloured(side=8))
    wanted = (images / 255 - torch.tensor(facts["mean"]).view(3, 1, 1)) / torch.tensor(facts["std"]).view(3, 1, 1)
    torch.testing.assert_close(old.prepare(images), wanted)


@pytest.mark.parametrize("call", ["dataset", "zca(patch=3)"])
def test_prediction_normalises_as_training_did(project, call: str) -> None:
    small.write(project.root)
    assert project.run("stage=train", "fold=0", "epochs=1", f"data.normalise={call}").code == 0
    folder = project.root / "runs/noise/tiny/fold0"
    content = load_checkpoint(folder / "best.ckpt")
    plan = content["blueprint"]
    assert plan["normalise"] == registry.complete("normalises", call)
    assert bool(plan["whitening"]) == (call != "dataset")
    ended = project.run("stage=predict", "fold=0", "data.normalise=backbone", "precision=fp32")
    assert ended.code == 0, ended.err
    again = network.from_checkpoint(content).prepare(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    mean, std = np.array(plan["mean"]), np.array(plan["std"])
    scale = 1 if call == "dataset" else np.array(plan["whitening"]).sum()
    np.testing.assert_allclose(again.numpy(), np.full((1, 1, 8, 8), -mean / std * scale), rtol=1e-4)
