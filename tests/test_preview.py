"""stage=preview: the picture shows the images that training sees, and nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_competition
import small_masks
import small_training as small
from PIL import Image

from pipeline import sheets
from pipeline.competition import load
from pipeline.data import row_seeds
from pipeline.parts.augments import augmenter, pad_crop
from pipeline.parts.preprocesses import clahe
from pipeline.stages import preview


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


def picture(root: Path, run: str = "tiny") -> np.ndarray:
    return np.asarray(Image.open(root / f"runs/noise/{run}/augmented.png"))


def tile(page: np.ndarray, row: int, place: int, captions: bool = False, size: int = 8) -> np.ndarray:
    """The pixels of one tile, back at the training size."""
    side = sheets.tile_side(size)
    high = side + sheets.GAP + (sheets.TEXT + sheets.GAP if captions else 0)
    y = 2 * (sheets.TEXT + 2 * sheets.GAP) + row * high
    x = sheets.LABEL + place * (side + sheets.GAP)
    return page[y : y + side : side // size, x : x + side : side // size]


def test_each_row_is_an_image_and_its_augmented_versions(root, project):
    ended = project.run("stage=preview", "augment=pad_crop(pad=2)")
    assert ended.code == 0, ended.err
    assert "runs/noise/tiny/augmented.png" in ended.out
    assert not list(root.rglob("*.ckpt"))
    config = small.config(augment="pad_crop(pad=2)")
    competition = load(config)
    rows = preview.choose(competition, np.array([], dtype=np.int64), config.seed)
    augment, page = augmenter(pad_crop(8, pad=2)), picture(root)
    for place, row in enumerate(rows):
        path = root / "data/noise" / competition.train["file"].iloc[row]
        original = np.asarray(Image.open(path))[..., None]
        assert np.array_equal(tile(page, place, 0), np.repeat(original, 3, axis=2))
        for version in range(1, preview.VERSIONS + 1):
            seed = int(row_seeds(config.seed, version, rows)[place])
            assert np.array_equal(tile(page, place, version)[..., :1], augment(original, seed))


def test_preprocessing_is_shown_between_the_original_and_its_versions(root, project):
    words = "data.preprocess=clahe(tiles=2)", "augment=pad_crop(pad=2)", "run=clear"
    assert project.run("stage=preview", *words).code == 0
    config = small.config(augment="pad_crop(pad=2)", data__preprocess=["clahe(tiles=2)"])
    competition = load(config)
    rows = preview.choose(competition, np.array([], dtype=np.int64), config.seed)
    augment, page = augmenter(pad_crop(8, pad=2)), picture(root, "clear")
    for place, row in enumerate(rows):
        original = np.asarray(Image.open(root / "data/noise" / competition.train["file"].iloc[row]))[..., None]
        made = clahe(original, 8, tiles=2)
        assert np.array_equal(tile(page, place, 0)[..., :1], original)
        assert np.array_equal(tile(page, place, 1)[..., :1], made)
        seed = int(row_seeds(config.seed, preview.VERSIONS, rows)[place])
        assert np.array_equal(tile(page, place, preview.VERSIONS + 1)[..., :1], augment(made, seed))


def test_a_mix_is_shown_with_its_shares(root, project):
    assert project.run("stage=preview", "mix=cutmix()", "run=mixed").code == 0
    config = small.config(mix="cutmix()")
    rows = preview.choose(load(config), np.array([], dtype=np.int64), config.seed)
    page = picture(root, "mixed")
    originals = [tile(page, place, 0, captions=True) for place in range(len(rows))]
    for version in range(1, preview.VERSIONS + 1):
        _, share = preview.change(config, np.stack([one[..., :1] for one in originals]), rows, version)
        for place, original in enumerate(originals):
            same = (tile(page, place, version, captions=True) == original).all(axis=2).mean()
            assert same == pytest.approx(share[place], abs=0.1), "a pixel can be alike by chance"
    assert preview.own(0.7) == "70% its own"
    assert preview.own(1.0) == ""


def test_the_same_command_draws_the_same_picture_and_another_seed_another(root, project):
    pages = []
    for words in ((), (), ("seed=1",)):
        assert project.run("stage=preview", "augment=light()", *words).code == 0
        pages.append((root / "runs/noise/tiny/augmented.png").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_nothing_to_see_is_said(root, project):
    ended = project.run("stage=preview")
    assert ended.code == 0
    assert "each version is the image itself" in ended.err
    assert "light()" not in project.run("stage=preview", "augment=light()").err


def test_a_preview_does_not_stand_in_the_way_of_the_training(root, project):
    assert project.run("stage=preview", "augment=light()").code == 0
    assert project.run("stage=train", "fold=0", "epochs=1").code == 0
    assert (root / "runs/noise/tiny/augmented.png").is_file()


def test_every_class_is_shown_before_any_comes_twice(project):
    small_competition.write(project.root, rows=12, classes=("cat", "dog", "owl", "rare"))
    config = small_competition.config()
    competition = load(config)
    rows = preview.choose(competition, np.array([0, 1]), config.seed)
    assert len(rows) == preview.ROWS
    assert not {0, 1} & set(rows.tolist()), "broken images are not shown"
    assert len(set(competition.targets.iloc[rows[:4], 0])) == 4
    assert len(preview.choose(competition, np.arange(2, 12), config.seed)) == 2


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [8, 100, 400])
def test_tiles_of_any_size_and_channels_are_drawn(size: int, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
    side = sheets.tile_side(size)
    assert sheets.TILE <= side <= 2 * sheets.TILE
    drawn = np.asarray(sheets.tile(image, side))
    assert drawn.shape == (side, side, 3)
    if side >= size:
        step = side // size
        assert np.array_equal(drawn[::step, ::step, 0], image[..., 0])


def test_long_labels_are_cut_to_the_column(project) -> None:
    small_competition.write(
        project.root, classes=("a-very-long-class-name-that-does-not-fit", "two words " * 20, "owl")
    )
    competition = load(small_competition.config())
    for text in preview.labels(competition, np.arange(6)):
        assert all(len(line) <= preview.LETTERS for line in text.split("\n"))
        assert text.count("\n") <= 4


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["stretch", "pad", "tiles"])
def test_masks_are_drawn_on_their_images_and_move_with_them(project, resize: str) -> None:
    small_masks.write(project.root)
    words = f"data.resize={resize}", "augment=light(shift=0.2)"
    assert project.run("stage=preview", *words).code == 0
    page = np.asarray(Image.open(project.root / "runs/squares/tiny/augmented.png")).astype(int)
    step, top = preview.MASKED + sheets.GAP, 2 * (sheets.TEXT + 2 * sheets.GAP)
    shares = []
    for row in range(preview.ROWS):
        for place in range(1 + preview.VERSIONS):
            y, x = top + row * step, sheets.LABEL + place * step
            square = page[y : y + preview.MASKED, x : x + preview.MASKED]
            outline = (square == sheets.colour(1)).all(axis=2)
            bright = (square.min(axis=2) > 140) & (square.min(axis=2) < 255)  # the object, even under its tint
            if outline.any() and bright.sum() > 200:
                (low, left), (high, right) = np.argwhere(outline).min(axis=0), np.argwhere(outline).max(axis=0)
                shares.append(bright[low : high + 1, left : right + 1].sum() / bright.sum())
    assert len(shares) > 4 * preview.ROWS
    assert np.mean(shares) > 0.9, "the object lies within its outline, but for what blurs"
    assert not list(project.root.rglob("*.ckpt"))
