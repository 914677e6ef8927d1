"""Augmentations: what they do to pixels, and that a seed alone decides it."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from pipeline import policies, registry
from pipeline.errors import UserError
from pipeline.parts import augments
from pipeline.parts.augments import augmenter

MANY = ["d4()", "light()", "medium()", "pad_crop()", "heavy()", "rand_augment()", "aug_mix()"]


NAMES = list(policies.OPERATIONS)


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


# --- presets ------------------------------------------------------------------------------------------------------


def ramp(size: int = 32, channels: int = 3) -> np.ndarray:
    """A smooth image, so that interpolations agree to a few levels."""
    rows, columns = np.indices((size, size)) / size
    layers = [np.sin(2 * rows + k) + np.cos(3 * columns - k) for k in range(channels)]
    return (127 + 60 * np.stack(layers, axis=2)).astype(np.uint8)


def test_colour_of_grey_images_keeps_the_order_of_levels_and_hue_moves_the_colours_of_others() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    one = augmenter(registry.build("augments", "colour(strength=0.4,chance=1.0)")(16))
    for seed in range(20):
        assert (np.diff(one(levels, seed).ravel().astype(int)) >= 0).all()
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[..., 0] = 200
    assert max(one(red, seed)[0, 0, 1:].max() for seed in range(20)) > 20
    still = augmenter(registry.build("augments", "colour(strength=0.0,chance=1.0)")(16))
    assert np.abs(still(image(), 0).astype(int) - image()).max() <= 4, "a round through HSV"


def test_blur_takes_detail_away_and_keeps_the_mean() -> None:
    for result in run("blur(sigma=2.0,chance=1.0)"):
        assert result.mean() == pytest.approx(image().mean(), abs=6)
        assert result.std() <= image().std()
    assert min(result.std() for result in run("blur(sigma=2.0,chance=1.0)")) < 0.4 * image().std()


def test_noise_has_at_most_its_deviation() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    one = augmenter(registry.build("augments", "noise(deviation=0.1,chance=1.0)")(64))
    spreads = [one(grey, seed).std() for seed in range(40)]
    assert max(spreads) < 26
    assert max(spreads) > 20
    assert min(spreads) < 5
    pixels = one(grey, 0).astype(float)
    assert abs(np.corrcoef(pixels[..., 0].ravel(), pixels[..., 1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_erasing_fills_one_rectangle_of_the_asked_size(channels: int) -> None:
    black = np.zeros((40, 40, channels), dtype=np.uint8)
    one = augmenter(registry.build("augments", "erasing(area=(0.1,0.2),ratio=(0.5,2.0),chance=1.0)")(40))
    for seed in range(40):
        filled = one(black, seed).any(axis=2)
        rows, columns = np.nonzero(filled)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.1 * 1600 - 40 <= height * width <= 0.2 * 1600 + 40
        assert 0.4 < height / width < 2.5
        assert filled.sum() > 0.9 * height * width, "random values, of which few are black"
        assert len(np.unique(one(black, seed))) > 50


def test_centre_crop_enlarges_the_middle() -> None:
    import cv2

    result = augmenter(registry.build("augments", "centre_crop(share=0.5,chance=1.0)")(32))(ramp(), 0)
    expected = cv2.resize(np.ascontiguousarray(ramp()[8:24, 8:24]), (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.abs(result.astype(int) - expected)[2:-2, 2:-2].max() <= 6
    assert np.abs(result.astype(int) - ramp()).max() > 40


def test_heavy_mirrors_half_of_the_images() -> None:
    lit = np.zeros((32, 32, 3), dtype=np.uint8)
    lit[:, :16] = 255
    one = augmenter(registry.build("augments", "heavy(scale=0.9)")(32))
    right = [one(lit, seed) for seed in range(200)]
    assert 0.35 < np.mean([result[:, 16:].mean() > result[:, :16].mean() for result in right]) < 0.65


def test_compose_is_its_parts_in_turn() -> None:
    parts = ["flips()", "colour(strength=0.3)", "rand_augment(number=1)"]
    one = augmenter(registry.build("augments", f"compose(parts={parts})")(16))
    other = augmenter([transform for text in parts for transform in registry.build("augments", text)(16)])
    assert all(np.array_equal(one(image(), seed), other(image(), seed)) for seed in range(20))
    nested = augmenter(registry.build("augments", f"compose(parts={[f'compose(parts={parts})']!r})")(16))
    assert np.array_equal(nested(image(), 3), one(image(), 3))
    assert registry.facts("augments", "compose(parts=['none()'])")["calls"] == {"parts": "augments"}
    with pytest.raises(UserError, match="did you mean flips"):
        registry.build("augments", "compose(parts=['flip()'])")(16)


# --- automatic policies, against Pillow's operations and torchvision's tables ---------------------------------------


def of_pillow(name: str, picture: Image.Image, magnitude: float) -> Image.Image:
    """The operation as the papers' code does it, fill 128, bilinear."""
    enhancers = {"Brightness", "Color", "Contrast", "Sharpness"}
    if name in enhancers:
        return getattr(ImageEnhance, name)(picture).enhance(1 + magnitude)
    if name == "Posterize":
        return ImageOps.posterize(picture, int(magnitude))
    if name == "Solarize":
        return ImageOps.solarize(picture, magnitude)
    if name in ("AutoContrast", "Equalize", "Invert"):
        return getattr(ImageOps, name.lower())(picture)
    fill = 128 if picture.mode == "L" else (128,) * 3
    bilinear = Image.Resampling.BILINEAR
    if name == "Rotate":
        return picture.rotate(magnitude, resample=bilinear, fillcolor=fill)
    matrix = {
        "ShearX": (1, magnitude, 0, 0, 1, 0), "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, -int(magnitude), 0, 1, 0), "TranslateY": (1, 0, 0, 0, 1, -int(magnitude)),
    }[name]  # fmt: skip
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=bilinear, fillcolor=fill)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_operation_is_that_of_pillow(name: str, channels: int) -> None:
    moves = name.startswith(("Shear", "Rotate"))
    levels = policies.magnitudes(10, shift=9, bits=(8, 1))[name]
    dark = (image(32, channels) // 3 + 20).astype(np.uint8)
    for given in (ramp(32, channels), *(() if moves else (image(32, channels), dark, np.full_like(dark, 7)))):
        picture = Image.fromarray(given[..., 0] if channels == 1 else given)
        for magnitude in sorted({*levels, *(-levels if name in policies.SIGNED else ())}):
            result = policies.OPERATIONS[name](given, magnitude, 128)
            assert (result.shape, result.dtype) == (given.shape, np.uint8)
            wanted = np.asarray(of_pillow(name, picture, magnitude)).reshape(given.shape)
            gap = np.abs(result.astype(int) - wanted)
            if moves:  # Pillow cuts the free corners off sharply, OpenCV smooths their edge
                assert (gap.max(axis=2) > 4).mean() < 0.1, magnitude
            else:
                assert gap.max() <= (name in ("Color", "Contrast", "Sharpness", "Brightness")), magnitude


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [2, 5])
def test_operation_treats_other_channels_alike(name: str, channels: int) -> None:
    given = np.repeat(image(24, 1), channels, axis=2)
    for magnitude in policies.magnitudes(10, shift=9)[name][[2, 7]]:
        result = policies.OPERATIONS[name](given, magnitude, 128)
        grey = policies.OPERATIONS[name](given[..., :1], magnitude, 128)
        gap = np.abs(result.astype(int) - grey)  # OpenCV interpolates finer with one channel than with two
        assert gap.max() <= (4 if name.startswith(("Shear", "Rotate")) else 0)


@pytest.fixture(scope="module")
def torchvision_policies():
    from pipeline.torchvision_fix import fix_torchvision

    fix_torchvision()
    from torchvision.transforms import autoaugment

    return autoaugment


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_searched_policies_are_those_of_torchvision(policy: str, torchvision_policies) -> None:
    own = policies.auto_augment(policy, 32, 128).table
    theirs = torchvision_policies.AutoAugment(torchvision_policies.AutoAugmentPolicy(policy)).policies
    assert own == [[(name, chance, level or 0) for name, chance, level in pair] for pair in theirs]


def test_strengths_are_those_of_torchvision(torchvision_policies) -> None:
    vision = torchvision_policies
    pairs = [
        (policies.auto_augment("cifar10", 64, 0), vision.AutoAugment()._augmentation_space(10, (64, 64))),
        (policies.rand_augment(2, 9, 64, 0), vision.RandAugment()._augmentation_space(31, (64, 64))),
        (policies.trivial_augment(135, 64, 0), vision.TrivialAugmentWide()._augmentation_space(31)),
        (
            policies.aug_mix(3, 3, 0, 64, 0),
            torchvision_policies.AugMix(all_ops=False)._augmentation_space(10, (64, 64)),
        ),
    ]
    for own, theirs in pairs:
        assert set(own.names) == set(theirs)
        for name in set(theirs) - {"Identity"}:
            levels, signed = theirs[name]
            assert signed == (name in policies.SIGNED)
            np.testing.assert_allclose(
                own.space[name], np.broadcast_to(levels.numpy(), len(own.space[name])), rtol=1e-5
            )


def recorded(policy: policies.Policy, monkeypatch: pytest.MonkeyPatch, images: int) -> list[list[tuple[str, int]]]:
    """What the policy applies to each of so many images."""
    calls: list[list[tuple[str, int]]] = []
    monkeypatch.setattr(policy, "apply", lambda given, name, level: calls[-1].append((name, level)) or given)
    policy.set_random_state(np.random.default_rng(0), random.Random(0))
    for _ in range(images):
        calls.append([])
        policy.change(image())
    return calls


def test_auto_augment_draws_its_pairs_by_their_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policies.auto_augment("cifar10", 32, 128)
    calls = recorded(policy, monkeypatch, 20_000)
    expected = {}
    for name, chance, level in (step for pair in policy.table for step in pair):
        expected[name, level] = expected.get((name, level), 0) + chance / 25
    for step, share in expected.items():
        assert sum(steps.count(step) for steps in calls) / len(calls) == pytest.approx(share, abs=0.01), step


def test_rand_and_trivial_augment_draw_all_operations_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded(policies.rand_augment(3, 12, 32, 128), monkeypatch, 5000)
    assert {len(one) for one in steps} == {3}
    assert {level for one in steps for _, level in one} == {12}
    names = [name for one in steps for name, _ in one]
    assert [names.count(name) / len(names) for name in set(names)] == pytest.approx([1 / 14] * 14, abs=0.01)
    steps = recorded(policies.trivial_augment(30, 32, 128), monkeypatch, 5000)
    assert {len(one) for one in steps} == {1}
    assert {one[0][1] for one in steps} == set(range(31))


def test_signs_are_drawn_for_what_has_two_directions() -> None:
    policy = policies.rand_augment(1, 30, 32, 0)
    policy.set_random_state(np.random.default_rng(0), random.Random(0))
    given = ramp()
    assert len({policy.apply(given, "TranslateX", 30).tobytes() for _ in range(20)}) == 2
    assert len({policy.apply(given, "Solarize", 10).tobytes() for _ in range(20)}) == 1


def test_aug_mix_averages_its_chains_by_its_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policies.aug_mix(3, 3, 0, 16, 128)
    chains = iter([10, 90, 250])
    monkeypatch.setattr(policy, "chain", lambda given: np.full_like(given, next(chains)))
    policy.set_random_state(np.random.default_rng(7), random.Random(0))
    result = policy.change(image())
    generator = np.random.default_rng(7)
    share, weights = generator.beta(1, 1), generator.dirichlet([1, 1, 1])
    wanted = (1 - share) * image() + share * (weights @ [10, 90, 250])
    assert np.abs(result - wanted).max() <= 0.51


def test_aug_mix_chains_have_their_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = recorded(policies.aug_mix(3, 2, 4, 16, 128), monkeypatch, 50)
    assert {len(steps) for steps in fixed} == {8}
    free = recorded(policies.aug_mix(5, 1, 0, 16, 128), monkeypatch, 300)
    assert {len(steps) for steps in free} == {1, 2, 3}
    assert {level for steps in free for _, level in steps} == set(range(5))


def test_policies_load_neither_torch_nor_albumentations() -> None:
    program = (
        "import sys; from pipeline.parts import augments; augments.rand_augment(8); augments.aug_mix(8);"
        "print('torch' in sys.modules or 'albumentations' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
