"""Augmentations: what they do to pixels, and that a seed alone decides it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline import registry
from pipeline.errors import UserError
from pipeline.parts import augments
from pipeline.parts.augments import augmenter

MANY = ["d4()", "light()", "medium()", "pad_crop()"]


def image(size: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)


def run(text: str, seeds: range = range(40), channels: int = 3) -> list[np.ndarray]:
    one = augmenter(registry.build("augments", text)(16))
    return [one(image(channels=channels), seed) for seed in seeds]


def digest() -> str:
    return hashlib.sha256(b"".join(result.tobytes() for text in MANY for result in run(text))).hexdigest()


def test_another_process_and_other_threads_give_the_same_pixels() -> None:
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path[:0] = {[str(here.parent), str(here)]}; import test_augments as t; print(t.digest())"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == digest()
    transforms = registry.build("augments", "medium()")(16)
    expected = run("medium()")

    def quarter(first: int) -> list[np.ndarray]:
        own = augmenter(transforms)  # a thread has its own, made from shared transforms
        return [own(image(), seed) for seed in range(first, 40, 4)]

    with ThreadPoolExecutor(4) as pool:
        for first, results in enumerate(pool.map(quarter, range(4))):
            assert all(np.array_equal(a, b) for a, b in zip(results, expected[first::4], strict=True))


def test_large_and_neighbouring_seeds_differ() -> None:
    one = augmenter(registry.build("augments", "light()")(16))
    seeds = [0, 1, 2, 3, 2**32, 2**63 - 1, 2**64 - 1]
    assert len({one(image(), seed).tobytes() for seed in seeds}) == len(seeds)


def test_numpy_generator_is_seeded_too() -> None:
    import albumentations as A

    noisy = augmenter([A.GaussNoise(p=1), A.OneOf([A.CoarseDropout(p=1), A.Solarize(p=1)], p=1)])
    first = [noisy(image(), seed) for seed in range(8)]
    assert all(np.array_equal(noisy(image(), seed), first[seed]) for seed in reversed(range(8)))
    assert not np.array_equal(first[0], first[1])


def test_augmenter_of_nothing_returns_the_image() -> None:
    given = image()
    assert augmenter([])(given, 5) is given


def test_flips_and_d4_only_move_pixels() -> None:
    flipped = {result.tobytes() for result in run("flips()")}
    assert flipped == {image().tobytes(), image()[:, ::-1].tobytes()}
    symmetries = [np.rot90(turned, k) for turned in (image(), image()[:, ::-1]) for k in range(4)]
    assert {result.tobytes() for result in run("d4()", range(200))} == {s.tobytes() for s in symmetries}
    assert {result.tobytes() for result in run("flips(chance=1.0)", range(5))} == {image()[:, ::-1].tobytes()}


def test_pad_crop_is_a_shift_by_whole_pixels() -> None:
    padded = np.pad(image(), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    assert {result.tobytes() for result in run("pad_crop(pad=2)", range(400))} == windows


@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_blacks_out_one_square(channels: int) -> None:
    changed = [result != image(channels=channels) for result in run("cutout(size=0.25,chance=1.0)", channels=channels)]
    for mask in changed:
        rows, columns = np.nonzero(mask.any(axis=2))
        assert np.ptp(rows) <= 3
        assert np.ptp(columns) <= 3
    assert np.mean([mask.any(axis=2).sum() for mask in changed]) == pytest.approx(16, abs=0.5)


def test_light_moves_a_point_within_its_limits() -> None:
    dot = np.zeros((33, 33, 1), dtype=np.uint8)
    dot[16, 16] = 255
    one = augmenter(registry.build("augments", "light(shift=0.1,rotate=0,scale=0.0)")(33))
    places = []
    for seed in range(100):
        weights = one(dot, seed)[..., 0].astype(float)
        rows, columns = np.indices(weights.shape)
        places.append([(weights * rows).sum() / weights.sum() - 16, (weights * columns).sum() / weights.sum() - 16])
    assert np.abs(places).max() <= 3.3 + 0.51  # half a pixel of interpolation
    assert np.std(places, axis=0).min() > 1


def test_what_albumentations_only_warns_of_is_an_error() -> None:
    with pytest.raises(UserError, match="hole_height"), augments._albumentations() as A:
        A.CoarseDropout(max_holes=3, hole_height=2)
    with pytest.raises(UserError, match="ratio"):
        registry.build("augments", "crop(ratio=(2.0,1.0))")(16)
