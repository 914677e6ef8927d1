"""Preprocesses: what each does to pixels, and that training and prediction cannot see different ones."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_training as small

from pipeline import images, registry
from pipeline.checkpoint import load_checkpoint
from pipeline.errors import UserError
from pipeline.images import decode, open_cache

NAMES = list(registry.parts("preprocesses"))
SHAPES = [(1, 1), (5, 90), (61, 40), (64, 64)]


def step(call: str, image: np.ndarray, size: int = 32) -> np.ndarray:
    return registry.build("preprocesses", call)(image, size)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = image[..., ::-1] if image.shape[2] == 3 else image
    path.write_bytes(cv2.imencode(".png", bgr)[1].tobytes())


# --- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_part_keeps_type_and_channels_and_leaves_its_input_alone(name: str, shape: tuple[int, int]) -> None:
    for channels in registry.parts("preprocesses")[name].facts.get("channels", (1, 2, 3, 4, 5)):
        image = noise(*shape, channels)
        before = image.copy()
        made = step(f"{name}()", image)
        assert (made.dtype, made.ndim, made.shape[2]) == (np.uint8, 3, channels)
        assert made.size
        assert np.array_equal(image, before)
        assert np.array_equal(made, step(f"{name}()", image)), "it draws nothing"
        flat = np.zeros_like(image)
        assert step(f"{name}()", flat).shape[2] == channels


# --- each part ------------------------------------------------------------------------------------------------------


def slow_clahe(image: np.ndarray, clip: float, tiles: int) -> np.ndarray:
    """Zuiderveld 1994 in plain loops; the clipped counts are dealt out as OpenCV does."""
    high, wide = image.shape[0] // tiles, image.shape[1] // tiles
    area, limit = high * wide, max(1, int(clip * high * wide / 256))
    maps = np.zeros((tiles, tiles, 256))
    for row in range(tiles):
        for column in range(tiles):
            tile = image[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            counts = np.bincount(tile.ravel(), minlength=256)
            excess = int(np.maximum(counts - limit, 0).sum())
            counts = np.minimum(counts, limit) + excess // 256
            rest = excess % 256
            for place in range(0, 256, max(256 // rest, 1) if rest else 257):
                if rest:
                    counts[place], rest = counts[place] + 1, rest - 1
            maps[row, column] = np.clip(np.rint(np.cumsum(counts) * 255 / area), 0, 255)
    made = np.zeros(image.shape)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            down, right = y / high - 0.5, x / wide - 0.5
            rows = [min(max(math.floor(down) + k, 0), tiles - 1) for k in (0, 1)]
            columns = [min(max(math.floor(right) + k, 0), tiles - 1) for k in (0, 1)]
            a, b = down - math.floor(down), right - math.floor(right)
            (p, q), (r, s) = ([maps[i, j, image[y, x]] for j in columns] for i in rows)
            made[y, x] = (1 - a) * ((1 - b) * p + b * q) + a * ((1 - b) * r + b * s)
    return made


def test_clahe_is_the_slow_one_on_grey() -> None:
    image = (noise(32, 48, 1) // 4 + np.arange(48, dtype=np.uint8)[None, :, None]).astype(np.uint8)
    made = step("clahe(clip=3.0,tiles=4)", image)
    assert np.abs(made[..., 0].astype(int) - np.rint(slow_clahe(image[..., 0], 3.0, 4))).max() <= 1
    assert made.std() > 1.2 * image.std()


def test_clahe_makes_no_tiles_too_small_for_a_histogram() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 8, 1), dtype=np.uint8)
    slow = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(1, 4)).apply(image[..., 0])
    np.testing.assert_array_equal(step("clahe()", image)[..., 0], slow)
    whole = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(image[..., 0])
    np.testing.assert_array_equal(step("clahe(least=1)", image)[..., 0], whole)


def test_clahe_changes_the_lightness_and_not_the_colour() -> None:
    image = np.full((64, 64, 3), (120, 100, 90), dtype=np.uint8) + noise(64, 64, 1) // 16
    lab, made = (cv2.cvtColor(one, cv2.COLOR_RGB2LAB).astype(int) for one in (image, step("clahe()", image)))
    assert made[..., 0].std() > 1.5 * lab[..., 0].std()
    assert np.abs(made[..., 1:] - lab[..., 1:]).max() <= 3


@pytest.mark.parametrize("level", [0, 255])
def test_trim_borders_finds_what_is_inside(level: int) -> None:
    inside = noise(20, 30).clip(60, 190)
    image = np.full((50, 70, 3), level, dtype=np.uint8)
    image[8:28, 25:55] = inside
    image[3, 4] = 128  # a grain of dust
    assert np.array_equal(step("trim_borders(stray=0.02)", image), inside)
    shaken = np.clip(image.astype(int) + np.random.default_rng(0).integers(-9, 10, image.shape), 0, 255)
    assert step("trim_borders(stray=0.02)", shaken.astype(np.uint8)).shape == inside.shape
    assert step("trim_borders(stray=0.0)", image).shape[0] == 25, "without stray pixels the dust counts"


def test_trim_borders_leaves_what_has_none_or_nothing_else() -> None:
    image = noise(40, 30).clip(60, 190)
    assert np.array_equal(step("trim_borders()", image), image)
    night = np.zeros((40, 40, 3), dtype=np.uint8)
    assert np.array_equal(step("trim_borders()", night), night)
    night[20:22, 20:22] = 200
    assert step("trim_borders()", night).shape == night.shape, "less than a tenth would be left"
    assert step("trim_borders(least=0.05)", night).shape == (2, 2, 3)


def fundus(side: int, radius: int, level: int) -> np.ndarray:
    """A disc with vessels on black, brighter at one side."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    disc = (x**2 + y**2) <= radius**2
    tone = level + 40 * x / radius + 20 * (np.sin(24 * x / radius) > 0.9)
    return (disc * tone)[..., None].repeat(3, axis=2).clip(0, 255).astype(np.uint8)


def slow_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    reach = math.ceil(4 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(image.astype(float), reach, mode="reflect")
    rows = np.stack([np.convolve(row, weights, "valid") for row in padded])
    return np.stack([np.convolve(column, weights, "valid") for column in rows.T]).T


def test_ben_graham_is_grahams_formula_at_its_own_scale() -> None:
    image = fundus(100, 40, 120)  # 64 = 2 · 0.8 · 40: nothing is resized
    made = step("ben_graham(share=0.8,blur=0.1)", image, 64)
    level = 4.0 * (image[..., 0] - slow_blur(image[..., 0], 4.0)) + 128
    y, x = np.mgrid[:64, :64] - 32
    disc = np.hypot(x, y) < 31
    wanted = np.clip(level[18:82, 18:82], 0, 255)
    assert np.abs(made[..., 0] - wanted)[disc].max() <= 4 * 1.5, "4 times the rounding of the 8-bit blur"
    assert (made[np.hypot(x, y) > 33] == 128).all()


def test_ben_graham_makes_radius_and_brightness_alike() -> None:
    small_, large = (step("ben_graham()", fundus(*form), 96).astype(int) for form in ((120, 50, 90), (400, 120, 150)))
    assert small_.shape == large.shape == (96, 96, 3)
    assert np.abs(small_ - large).mean() < 6
    corners = step("ben_graham(disc=false)", fundus(400, 190, 150), 96)
    assert not np.array_equal(corners, step("ben_graham()", fundus(400, 190, 150), 96))


def test_grey_is_the_brightness_in_three_channels() -> None:
    image = noise(9, 7)
    wanted = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(step("grey()", image) - wanted[..., None]).max() <= 1
    assert np.array_equal(step("grey()", image[..., :1]), image[..., :1])


# --- in the cache and in the checkpoint -----------------------------------------------------------------------------


def framed(folder: Path, count: int = 3) -> list[str]:
    for number in range(count):
        image = np.zeros((30, 40, 3), dtype=np.uint8)
        image[6:22, 10:26] = noise(16, 16, seed=number).clip(60, 190)
        save(folder / f"{number}.png", image)
    return [f"{number}.png" for number in range(count)]


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_acts_at_full_size_before_the_image_becomes_square(tmp_path: Path, channels: int, resize: str) -> None:
    framed(tmp_path)
    made = decode("0.png", channels, 16, resize, folder=tmp_path, preprocess=("trim_borders()",))
    whole = images.read("0.png", tmp_path, channels=channels)
    assert np.array_equal(made, whole[6:22, 10:26])
    twice = decode("0.png", channels, 8, resize, folder=tmp_path, preprocess=("trim_borders()", "clahe(tiles=2)"))
    inner = step("clahe(tiles=2)", np.ascontiguousarray(whole[6:22, 10:26]))
    assert np.array_equal(twice, cv2.resize(inner, (8, 8), interpolation=cv2.INTER_AREA).reshape(8, 8, channels))


def test_the_cache_knows_what_made_it(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    files = framed(folder)
    options = {"channels": 3, "size": 16, "resize": "stretch", "cache_root": tmp_path / "cache", "limit_gb": 1.0}
    stores = [open_cache(folder, files, preprocess=calls, **options) for calls in ((), ("trim_borders",), ("grey()",))]
    assert len({store.pixels for store in stores}) == 3
    same = open_cache(folder, files, preprocess=["trim_borders(tolerance=12)"], **options)
    assert same.pixels == stores[1].pixels, "a default that is written out makes no other cache"
    rows = np.arange(3)
    direct = open_cache(folder, files, preprocess=["trim_borders()"], **{**options, "limit_gb": 0.0})
    assert np.array_equal(direct.take(rows), stores[1].take(rows))
    assert np.array_equal(stores[1].unprocessed().take(rows), stores[0].take(rows))
    assert not np.array_equal(stores[1].take(rows), stores[0].take(rows))


def test_a_part_that_cannot_read_the_channels_is_refused_before_any_data() -> None:
    with pytest.raises(UserError, match=r"data.preprocess=grey\(\) reads images of 1 or 3 channels, but .*channels=4"):
        from pipeline.config import Config, replace

        replace(Config(), data__channels=4, data__preprocess=["clahe()", "grey()"])


def test_prediction_rebuilds_it_from_the_checkpoint(project) -> None:
    small.write(project.root)
    words = ("run=clear", "epochs=1", "data.preprocess=trim_borders,clahe(tiles=2)")
    assert project.run("stage=train", *words).code == 0
    kept = load_checkpoint(project.root / "runs/noise/clear/fold0/best.ckpt")["blueprint"]["preprocess"]
    assert kept == ["trim_borders(tolerance=12, stray=0.01, least=0.1)", "clahe(clip=2.0, tiles=2, least=8)"]
    ended = project.run("stage=predict", "run=clear", "data.preprocess=")  # not what predicts
    assert ended.code == 0, ended.err
    assert "its gain over none shows beside a run that differs in data.preprocess= alone" in ended.out
    first = (project.root / "runs/noise/clear/fold0/oof.npz").read_bytes()
    ended = project.run("stage=train", *words[:2], "data.preprocess=grey()")
    assert ended.code == 2
    assert "data.preprocess" in ended.err
    assert project.run("stage=train", "run=plain", "epochs=1").code == 0
    ended = project.run("stage=predict", "run=plain")
    assert "data.preprocess=trim_borders,clahe(tiles=2) over none, clear over plain: " in ended.out, ended.out
    (project.root / "runs/noise/clear/fold0/predict.json").unlink()
    ended = project.run("stage=predict", "run=clear")
    assert "over none, clear over plain: " in ended.out
    assert (project.root / "runs/noise/clear/fold0/oof.npz").read_bytes() == first
    assert project.run("stage=train", "run=other", "epochs=2").code == 0
    assert "over none" not in project.run("stage=predict", "run=other").out, "it differs in epochs too"
