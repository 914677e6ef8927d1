"""Batches made on the device: each change as albumentations makes it of single images, and the loader around them."""

from __future__ import annotations

import inspect
import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import small_masks
import small_training as small
import torch

from pipeline import batched, hardware, masked, registry, resident
from pipeline.data import Joined, Loader, Table
from pipeline.errors import UserError
from pipeline.parts import augments
from pipeline.parts.augments import augmenter
from pipeline.resident import DeviceLoader
from pipeline.runs import Run

SIDE, CPU = 12, torch.device("cpu")
CALLS = {"several": "several(base='flips()',change='cutout(chance=1.0)',count=3)"}  # its default change is not batched
NAMES = [name for name, part in registry.parts("augments").items() if part.facts.get("batched")]
HIDES = {"cutout", "erasing", "medium", "several"}  # what they change is no place


def pictures(count: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """(count, S, S, channels) uint8."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, channels), dtype=np.uint8))


def changed(text: str, images: torch.Tensor, planes: torch.Tensor | None = None, seeds: torch.Tensor | None = None):
    changes = augments.parted(augments.batched(text, SIDE))[0]
    return batched.changed(changes, images, planes, torch.arange(len(images)) if seeds is None else seeds)


def every(text: str, image: torch.Tensor, count: int) -> np.ndarray:
    """(count, S, S, C): what the batched form makes of one image."""
    return changed(text, image.expand(count, *image.shape))[0].numpy()


def singles(text: str, image: torch.Tensor, count: int) -> np.ndarray:
    """The same by albumentations."""
    one = augmenter(registry.build("augments", text)(SIDE))
    return np.stack([one(image.numpy(), seed) for seed in range(count)])


# --- the contract of every batched form ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_batched_form_takes_what_the_part_takes(name: str) -> None:
    part = registry.find("augments", name).load()
    assert inspect.signature(getattr(augments, f"{name}_batched")) == inspect.signature(part)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_depends_on_its_own_seed_alone(name: str, channels: int) -> None:
    text, images = CALLS.get(name, f"{name}()"), pictures(40, channels)
    kept, planes = images.clone(), pictures(40, 2, seed=1)
    both = changed(text, images, planes)
    assert all((made.shape, made.dtype, made.is_contiguous()) == (given.shape, torch.uint8, True)
               for made, given in zip(both, (images, planes), strict=True))  # fmt: skip
    assert torch.equal(images, kept)
    some = torch.tensor([31, 4, 17])
    for whole, alone in zip(both, changed(text, images[some], planes[some], some), strict=True):
        assert torch.equal(whole[some], alone)
    assert torch.equal(changed(text, images)[0], both[0]), "planes change nothing"
    moved = sum(not torch.equal(a, b) for a, b in zip(both[0], images, strict=True))
    assert (moved > 8) == bool(augments.batched(text, SIDE))


@pytest.mark.parametrize("name", NAMES)
def test_planes_move_as_the_image(name: str) -> None:
    images, planes = torch.zeros(20, SIDE, SIDE, 3), torch.full((20, SIDE, SIDE, 2), 255)
    images[:, 1:6, 2:6], planes[:, :, :, 1], planes[:, 1:6, 2:6] = 254, 0, 254
    made, moved = changed(CALLS.get(name, f"{name}()"), images.to(torch.uint8), planes.to(torch.uint8))
    assert set(moved.unique().tolist()) <= {0, 254, 255}
    if name not in HIDES:
        assert ((made.float().mean(dim=3) > 127) == (moved[..., 1] == 254)).float().mean() > 0.95


def test_draws_are_uniform_independent_and_the_same_everywhere() -> None:
    draws = batched.Draws(torch.arange(4000))
    found = draws.uniform(8)
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    assert found.mean(dim=0).sub(0.5).abs().max() < 0.02
    assert (torch.corrcoef(found.T) - torch.eye(8)).abs().max() < 0.06
    across = torch.corrcoef(torch.stack([found[:-1, 0], found[1:, 0]]))[0, 1]
    assert abs(across) < 0.06, "neighbouring seeds"
    assert torch.bincount(draws.bytes(5).long().flatten(), minlength=256).float().std() < 14  # of 78 each
    slow = [_splitmix(_splitmix(7 + GAMMA) + k * GAMMA) >> 40 for k in range(1, 4)]
    assert (batched.Draws(torch.tensor([7])).uniform(3)[0] * 2**24).tolist() == slow


GAMMA = 0x9E3779B97F4A7C15


def _splitmix(value: int) -> int:
    """The finaliser in whole numbers, from the paper."""
    value %= 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


# --- the same distribution as albumentations ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("none()", 1), ("flips()", 2), ("flips(chance=0.2)", 2), ("d4()", 8), ("pad_crop(pad=1)", 9),
        ("pad_crop_flips(pad=1)", 18), ("cutout(size=0.9)", 10), ("cutout(size=1)", 2),
        ("compose(parts=['flips()','pad_crop(pad=1)'])", 18),
    ],
)  # fmt: skip
def test_outcomes_and_their_frequencies_are_those_of_albumentations(text: str, outcomes: int) -> None:
    image, count = pictures(1)[0], 50 * outcomes
    ours, theirs = (Counter(map(np.ndarray.tobytes, form(text, image, count))) for form in (every, singles))
    assert ours.keys() == theirs.keys()
    assert len(ours) == outcomes
    squares = sum((ours[key] - theirs[key]) ** 2 / (ours[key] + theirs[key]) for key in ours)
    assert squares < outcomes - 1 + 4 * math.sqrt(2 * outcomes), "two-sample chi square"


def test_a_shift_beyond_the_image_is_reflected_again() -> None:
    image = pictures(1)[0]
    padded = np.pad(image.numpy(), ((30, 30), (30, 30), (0, 0)), mode="reflect")
    windows = {padded[y : y + SIDE, x : x + SIDE].tobytes() for y in range(61) for x in range(61)}
    for form in (every, singles):
        found = set(map(np.ndarray.tobytes, form("pad_crop(pad=30)", image, 200)))
        assert found <= windows
        assert len(found) > 100


class Recorded(random.Random):
    """Remembers what it drew."""

    def random(self) -> float:
        self.drawn.append(super().random())
        return self.drawn[-1]


class Fed(batched.Draws):
    """Gives what it is fed, call by call."""

    def __init__(self, *calls: list[float]) -> None:
        self.calls = list(calls)

    def uniform(self, count: int) -> torch.Tensor:
        return torch.tensor([self.calls.pop(0)], dtype=torch.float32)


def fed_crop(drawn: list[float]) -> Fed:
    """Of albumentations: area and ratio of each try, until one fits; then where it lies."""
    *tries, down, right = drawn
    areas, ratios = ((tries[first::2] + [0.0] * 10)[:10] for first in (0, 1))
    return Fed(areas, ratios, [down], [right])


FEEDS = {  # what each draws, in albumentations' order, → in ours
    "light()": lambda d: Fed([d[0], d[1], d[4], d[5], d[6]], [0.0]),  # d[2] and d[3]: a shear of nothing
    "light(shift=0.3,rotate=90,scale=0.5,border='reflect')": lambda d: Fed([d[0], d[1], d[4], d[5], d[6]], [0.0]),
    "light(shift=0.3,rotate=90,scale=0.5,border='constant')": lambda d: Fed([d[0], d[1], d[4], d[5], d[6]], [0.0]),
    "centre_crop(share=0.6,chance=1.0)": lambda d: Fed([0.5] * 5, [0.0]),
    "crop(scale=(0.1,0.6))": fed_crop,
    "crop(scale=(0.1,1.0),ratio=(0.5,2.0))": fed_crop,
}


@pytest.mark.parametrize("text", FEEDS)
def test_fed_with_the_same_draws_it_makes_the_same_image(text: str) -> None:
    rows, columns = np.indices((32, 32)) / 32
    layers = [np.sin(5 * rows + k) + np.cos(6 * columns - k) for k in range(3)]
    image = (127 + 60 * np.stack(layers, axis=2)).astype(np.uint8)  # smooth: OpenCV computes in fractions of a pixel
    planes = np.where(image[..., :1] > 127, 254, 0).astype(np.uint8)
    (single,), (change,) = registry.build("augments", text)(32), augments.batched(text, 32)
    python = Recorded(1)
    single.set_random_state(np.random.default_rng(0), python)
    for _ in range(25):
        python.drawn = []
        theirs = single(image=image, mask=planes)
        ours, moved = change(torch.from_numpy(image)[None], torch.from_numpy(planes)[None], FEEDS[text](python.drawn))
        differs = np.abs(ours[0].numpy().astype(int) - theirs["image"])
        assert differs.mean() < 1
        assert np.quantile(differs, 0.98) <= 3
        assert (moved[0].numpy() == theirs["mask"]).mean() > 0.99


def test_erased_rectangles_have_the_sizes_places_and_values_of_albumentations() -> None:
    image = torch.full((40, 40, 3), 7, dtype=torch.uint8)
    text = "erasing(area=(0.05,0.3),ratio=(0.5,3.0),chance=0.7)"
    changes = augments.batched(text, 40)
    ours = batched.changed(changes, image.expand(3000, 40, 40, 3), None, torch.arange(3000))[0].numpy()
    one = augmenter(registry.build("augments", text)(40))
    theirs = np.stack([one(image.numpy(), seed) for seed in range(3000)])
    found = [np.array([_rectangle(one) for one in made if (one != 7).any()]) for made in (ours, theirs)]
    assert abs(len(found[0]) - len(found[1])) < 4 * math.sqrt(2 * 3000 * 0.7 * 0.3)
    for column in range(4):
        pair = [part[:, column] for part in found]
        error = math.sqrt(sum(part.var() / len(part) for part in pair))
        assert abs(pair[0].mean() - pair[1].mean()) < 4 * error
        assert pair[0].std() == pytest.approx(pair[1].std(), rel=0.08)
    values = np.concatenate([one[(one != 7).any(axis=2)].ravel() for one in ours[:300]])
    assert values.mean() == pytest.approx(127.5, abs=1)
    assert len(np.unique(values)) == 256


def _rectangle(image: np.ndarray) -> tuple[int, int, int, int]:
    """Height, width, top, left of what was erased."""
    rows, columns = np.nonzero((image != 7).any(axis=2))
    return np.ptp(rows) + 1, np.ptp(columns) + 1, rows.min(), columns.min()


def test_tone_is_that_of_brightness_and_contrast() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1)
    tone = augments.batched("medium(colour=0.3)", 16)[2]
    single = registry.build("augments", "medium(colour=0.3)")(16)[2]
    assert (tone.brightness, tone.contrast, tone.chance) == (0.3, 0.3, single.p)
    python = Recorded(1)
    single.p = 1.0
    single.set_random_state(np.random.default_rng(0), python)
    for _ in range(10):
        python.drawn = []
        theirs = single(image=levels.numpy())["image"]
        ours, _ = tone(levels[None], None, Fed(python.drawn[-2:], [0.0]))
        assert np.abs(ours[0].numpy().astype(int) - theirs).max() <= 1


def test_pairs_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(UserError, match="ratio=\\(2, 1\\)"):
        augments.batched("crop(ratio=(2.0,1.0))", 16)
    with pytest.raises(UserError, match="area"):
        augments.batched("erasing(area=(0.5,0.1))", 16)


# --- the loader ---------------------------------------------------------------------------------------------------


class Pixels:
    def __init__(self, count: int, seed: int = 0) -> None:
        self.images = pictures(count, seed=seed).numpy()

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


def table(rows: int, dense: bool = False) -> Table:
    generator = np.random.default_rng(3)
    places = generator.permutation(rows)
    weights = generator.random(rows, dtype=np.float32)
    if not dense:
        return Table(places, generator.integers(0, 4, rows), weights)
    soft = generator.random((2, rows, 4), dtype=np.float32)
    return Table(places, soft[0], weights, soft[1], weights[::-1].copy())


def config(project, **changes):
    small.write(project.root)
    plain = {"batch_size": 5, "image_size": SIDE, "symmetry": "d4"}
    return small.config(**plain, **changes)


def same(one, other) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("images", "targets", "weights", "soft", "share")]
    return one.size == other.size and all(a is b if a is None else torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dense", [False, True])
def test_without_augmentation_the_batches_are_those_of_the_threads(project, dense: bool) -> None:
    source, rows, plain = (
        Joined([Pixels(13), Pixels(10, seed=1)]),
        table(23, dense),
        config(project, sizes="multi_scale()"),
    )
    pairs = zip(Loader(source, rows, plain).epoch(2), DeviceLoader(source, rows, plain, 0, CPU).epoch(2), strict=True)
    assert sum(same(*pair) for pair in pairs) == 4
    assert DeviceLoader(source, rows, plain, 3, CPU).steps == 3


def test_planes_and_those_of_a_teacher_are_batched_as_targets(project) -> None:
    rows, planes = np.arange(12), pictures(12, 4, seed=2).numpy()
    whole = masked.Whole([Pixels(12)], [planes])
    ones = np.ones(12, dtype=np.float32)
    plain = config(project)
    for taught in (Table(rows, rows, ones), Table(rows, rows, ones, rows, ones)):
        pairs = zip(
            Loader(whole, taught, plain).epoch(0), DeviceLoader(whole, taught, plain, 0, CPU).epoch(0), strict=True
        )
        assert all(same(*pair) for pair in pairs)


AUGMENT = "compose(parts=['pad_crop_flips(pad=2)','cutout()','erasing(chance=1.0)'])"


@pytest.mark.parametrize("augment", [AUGMENT, CALLS["several"], CALLS["several"].replace("count", "alike=True,count")])
def test_any_step_can_be_the_first_and_epochs_differ(project, augment: str) -> None:
    loader = DeviceLoader(Joined([Pixels(23)]), table(23), config(project, augment=augment), 0, CPU)
    whole = list(loader.epoch(1))
    assert all(same(*pair) for pair in zip(whole[2:], loader.epoch(1, 2), strict=True))
    assert not any(same(*pair) for pair in zip(whole, loader.epoch(2), strict=True))
    assert len(whole[0].images) == len(whole[0].targets) * loader.views


def test_images_are_read_once_in_chunks(project, monkeypatch) -> None:
    monkeypatch.setattr(resident, "CHUNK_BYTES", 5 * 3 * SIDE * SIDE)
    source, asked = Joined([Pixels(23)]), []
    monkeypatch.setattr(
        source, "samples", lambda rows, seeds: (asked.append(len(rows)), Joined.samples(source, rows, seeds))[1]
    )
    rows = table(23)
    rows.rows = rows.rows % 17  # some rows twice
    loader = DeviceLoader(source, rows, config(project, augment="flips()"), 0, CPU)
    assert len(loader.pixels) == 17
    assert asked == [1, 5, 5, 5, 2]
    assert list(loader.epoch(0))
    assert len(asked) == 5


# --- what chooses it ----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 10 kB of memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10_000))


def test_auto_takes_a_gpu_that_has_room_and_an_augment_that_can(project, gpu) -> None:
    plain = config(project)
    for pixels, chosen in ((0, "threads"), (2500, "device"), (2501, "threads")):
        assert hardware.choose(plain, pixels).loader == chosen
    assert hardware.choose(config(project, augment="heavy()"), 100).loader == "threads"
    assert hardware.choose(config(project, device="cpu"), 100).loader == "threads"
    assert hardware.choose(config(project, loader="threads"), 100).loader == "threads"
    assert hardware.choose(config(project, loader="device"), 7000).loader == "device"
    with pytest.raises(UserError, match="loader=threads"):
        hardware.choose(config(project, loader="device"), 8000)


def test_the_bytes_of_images_and_planes_are_counted(project) -> None:
    small.write(project.root, rows=32, tests=8)
    assert Run(small.config(), "tiny").pixels() == 32 * 8 * 8
    assert Run(small.config(train__soft="x"), "tiny").pixels() == 40 * 8 * 8
    small_masks.write(project.root, rows=12)
    assert Run(small_masks.config(), "tiny").pixels() == 12 * 16 * 16 * (3 + 1)


@pytest.mark.slow
def test_masks_learn_from_batches_on_the_device(project) -> None:
    small_masks.write(project.root)
    ended = project.run("stage=train", "fold=0", "loader=device", "augment=light()", "sizes=multi_scale()")
    assert (ended.code, "fold0 epoch  1  loss" in ended.out) == (0, True)
    tiles = project.run("stage=train", "fold=0", "loader=device", "data.resize=tiles", "run=tiles")
    assert (tiles.code, "data.resize=tiles cannot be done" in tiles.err) == (2, True)


def test_what_cannot_be_done_on_the_device_is_named(project) -> None:
    small.write(project.root)
    ended = project.run(
        "stage=train", "loader=device", "augment=compose(parts=['flips()','blur()','noise()'])", "symmetry=d4"
    )
    assert ended.code == 2
    assert "augment=blur() and augment=noise() cannot be done" in ended.err
    assert "pad_crop_flips, medium, erasing" in ended.err
    assert "augment=flips()" not in ended.err


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_batches(project, monkeypatch) -> None:
    from pipeline import learner

    small.write(project.root, rows=20)
    words = ("stage=train", "fold=0", "batch_size=2", "epochs=2", "loader=device", "augment=light()", "mix=mixup()",
             "train.checkpoint_seconds=0")  # fmt: skip
    assert project.run(*words, "run=whole").code == 0
    forward, left = learner.Learner.forward, [7]

    def mortal(self, batch, generator):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return forward(self, batch, generator)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(learner.Learner, "forward", mortal)
        project.run(*words, "run=killed")
    assert "going on from" in project.run(*words, "run=killed").out
    paths = [project.root / "runs/noise" / run for run in ("whole", "killed")]
    assert small.same(*(small.weights(path / "fold0/best.ckpt") for path in paths))
    assert "loader: device" in (paths[1] / "config.yaml").read_text().split("hardware:")[1]
    other = project.run(*words, "run=whole", "loader=threads")
    assert (other.code, "loader: device → threads" in other.err) == (2, True)
