"""Masks: the whole recipe for each kind, maps through views, scales and tiles, and the files between stages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import small_masks
import small_tasks
import torch
from torch import nn

from pipeline import config as settings
from pipeline import images, infer, masked, ragged, training
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.config import Config, compose
from pipeline.data import Loader
from pipeline.errors import UserError
from pipeline.forms import CLASS_MASKS, LEVELS, MASKS, OBJECTS, VOID
from pipeline.learner import Learner
from pipeline.maps import Geometry, Maps, Ragged
from pipeline.network import Normalise
from pipeline.parts import views
from pipeline.parts.losses import label_distillation
from pipeline.runs import Run
from pipeline.stages import score
from pipeline.tasks import task_for
from pipeline.tasks.segmentation import Segmentation

KINDS = ("masks", "class_masks", "objects")
QUICK = ("epochs=2", "pseudo.threshold=0.3", "distill.unlabelled=true", "stack.methods=single,mean,greedy")


def drawn(**changes: object) -> Config:
    return settings.replace(compose({"competition": "drawn"}), **changes)


class Arrays(Maps):
    """Maps in memory."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays, self.columns = arrays, len(arrays[0])

    def __len__(self) -> int:
        return len(self.arrays)

    def one(self, row: int) -> np.ndarray:
        return self.arrays[row]


def random_maps(count: int, planes: int = 1, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(5, 12, (count, 2))
    return Arrays([np.rint(generator.random((planes, *size)) * 255).astype(np.float32) / 255 for size in sizes])


# --- the recipe ---------------------------------------------------------------------------------------------------


def pixels(text: str) -> set[int]:
    """The pixels of a run-length text."""
    words = [int(word) for word in text.split()]
    return {start + step for start, length in zip(words[::2], words[1::2], strict=True) for step in range(length)}


def dice_by_hand(solution: pd.DataFrame, frame: pd.DataFrame, folder: Path) -> float:
    answers, scores = dict(zip(frame["id"], frame["rle"], strict=True)), []
    for name, text in zip(solution["id"], solution["rle"], strict=True):
        true, said = pixels(text), pixels(answers[name])
        scores.append(2 * len(true & said) / (len(true) + len(said)) if true or said else 1.0)
    return float(np.mean(scores))


def iou_by_hand(solution: pd.DataFrame, frame: pd.DataFrame, folder: Path) -> float:
    """The mean over ground, dim and bright of intersection over union of all pixels of all images."""
    answers, inter, union = dict(zip(frame["id"], frame["rle"], strict=True)), np.zeros(3), np.zeros(3)
    told = dict(zip(solution["id"], solution["rle"], strict=True))
    for name in sorted({one.rsplit("_", 1)[0] for one in told}):
        everything = set(range(1, cv2.imread(str(folder / f"test_images/{name}.png"), 0).size + 1))
        true = [pixels(told[f"{name}_{word}"]) for word in ("dim", "bright")]
        said = [pixels(answers[f"{name}_{word}"]) for word in ("dim", "bright")]
        true, said = ([everything - one[0] - one[1], *one] for one in (true, said))
        inter += [len(a & b) for a, b in zip(true, said, strict=True)]
        union += [len(a | b) for a, b in zip(true, said, strict=True)]
    return float((inter / union).mean())


BY_HAND = {"masks": dice_by_hand, "class_masks": iou_by_hand}


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_recipe_submits_and_is_not_done_twice(project, kind: str) -> None:
    small_tasks.write_masks(project.root, kind)
    ended = project.run("stage=all", *QUICK)
    assert ended.code == 0, ended.err
    assert "public" in ended.out, "the solution has a Usage"
    for name in ("tiny", "tiny-r1", "tiny-distilled"):
        run = Run(drawn(), name)
        oof = run.oof()
        assert oof.ids.tolist() == run.competition.train["id"].to_numpy()[run.scored].tolist()
        told = task_for(drawn(), run.competition).targets(run.competition.targets)
        for row in range(len(oof.ids)):
            assert oof.values.one(row).shape[1:] == told.one(row).shape[-2:], "maps have their images' own sizes"
    frame = pd.read_csv(project.root / "submissions/drawn/stack.csv", dtype=str, keep_default_na=False)
    sample = pd.read_csv(project.root / "data/drawn/sample_submission.csv", dtype=str)
    assert list(dict.fromkeys(frame["id"])) == sample["id"].tolist()
    [scored] = score.run(drawn())
    if kind in BY_HAND:
        solution = pd.read_csv(project.root / "data/drawn/solution.csv", dtype=str, keep_default_na=False)
        for part in ("public", "private"):
            rows = solution[solution["Usage"] == part.capitalize()]
            assert scored.facts[part] == pytest.approx(BY_HAND[kind](rows, frame, project.root / "data/drawn"))
    again = project.run("stage=all", *QUICK)
    assert again.code == 0, again.err
    assert "train tiny fold0" not in again.out
    assert "predict tiny fold0" not in again.out


def test_what_is_missing_is_made_again_and_nothing_else(project) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10)
    words = ("epochs=2", "pseudo.threshold=0.5", "stage=pseudo")
    for stage in ("train", "predict", "pseudo"):
        assert project.run(*words[:2], f"stage={stage}").code == 0
    folder = project.root / "runs/drawn/tiny-r1"
    before = {path: path.read_bytes() for path in [*folder.glob("*/test.maps"), *folder.glob("labels*")]}
    assert {path.name for path in before} >= {"labels-r1.csv", "labels-r1-fold0.npz", "labels-r1-fold1.maps"}
    shutil.rmtree(folder / "fold1")  # as if it was killed there
    ended = project.run(*words)
    assert ended.code == 0, ended.err
    assert "train tiny-r1 fold1" in ended.out
    assert "train tiny-r1 fold0" not in ended.out
    assert {path: path.read_bytes() for path in before} == before
    refused = project.run(*words, "pseudo.soft=true")
    assert refused.code == 2
    assert "came out differently" in refused.err


def test_a_round_at_another_size_learns_planes_of_that_size(project) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10)
    for words in (
        ("stage=train",),
        ("stage=predict",),
        ("stage=pseudo", "image_size=8"),
        ("stage=pseudo", "image_size=8"),
    ):
        ended = project.run("epochs=1", "pseudo.threshold=0.5", *words)
        assert ended.code == 0, ended.err
    assert "train tiny-r1" not in ended.out, "the second time all is there"
    found = Predictions.load(project.root / "runs/drawn/tiny-r1/labels-r1-fold0.npz")
    assert found.made_by["size"] == ["stretch", 8]


def test_labels_whose_planes_were_changed_are_refused(project) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10)
    for stage in ("train", "predict", "pseudo"):
        assert project.run("epochs=1", "pseudo.threshold=0.5", f"stage={stage}").code == 0
    labels = "train.labels=runs/drawn/tiny-r1/labels-r1.csv"
    other = project.run("epochs=1", "stage=train", "run=small", "image_size=8", labels)
    assert other.code == 2
    assert "planes made for stretch, 16, but this run works at stretch, 8" in other.err
    folder = project.root / "runs/drawn/tiny-r1"
    shutil.copy(folder / "labels-r1-fold1.npz", folder / "labels-r1-fold0.npz")
    changed = project.run("epochs=1", "stage=train", "run=again", labels)
    assert changed.code == 2
    assert "labels-r1-fold0.npz is not what" in changed.err


@pytest.mark.parametrize("resize", ["pad", "tiles"])
def test_other_sizes_take_labels_and_teachers_too(project, resize: str) -> None:
    small_tasks.write_masks(project.root, "masks", rows=10, tests=4)
    words = ("epochs=2", f"data.resize={resize}", "image_size=8", "tiles.repeat=2", *QUICK[1:])
    for stage in ("train", "predict", "pseudo", "distill"):
        ended = project.run(*words, f"stage={stage}")
        assert ended.code == 0, ended.err
    for name in ("tiny-r1", "tiny-distilled"):
        assert len(Run(drawn(), name).oof().ids) == 10


@pytest.mark.parametrize("stage", ["knn", "features", "adopt"])
def test_stages_without_a_use_for_masks_say_so(project, stage: str) -> None:
    small_tasks.write_masks(project.root, "masks", rows=4, tests=2)
    ended = project.run(f"stage={stage}")
    assert ended.code == 2
    assert f"stage={stage} is not made for task=segmentation" in ended.err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool", "gem(p=3)"), ("pool", "max"), ("head", "mlp()"), ("mix", "mixup()"),
        ("stack.choose", "mean()"), ("stack.decisions", "none"), ("data.skip_broken", "true"),
    ],
)  # fmt: skip
def test_keys_that_masks_lack_are_refused(project, key: str, value: str) -> None:
    small_masks.write(project.root, rows=4)
    wanted = f"{key}={value} does not go with task=segmentation(), which has masks; leave it out"
    with pytest.raises(UserError, match=re.escape(wanted)):
        compose({key: value})


def test_keys_at_their_defaults_are_not(project) -> None:
    small_masks.write(project.root, rows=4)
    assert compose({"pool": "avg", "head": "linear()", "stack.choose": "auto", "merge": "mean()"}).pool == "avg"
    with pytest.raises(UserError, match=r"auxiliary=.*has masks; those that fit: none"):
        compose({"auxiliary": "middle()"})


@pytest.mark.parametrize("decoder", ["deeplab_v3_plus(width=8)", "upernet(width=8)"])
def test_an_odd_row_is_left_out_where_one_image_cannot_train(project, decoder: str) -> None:
    small_masks.write(project.root, rows=5)
    words = f"decoder={decoder}", "backbone=resnet18", "image_size=32", "fold=full"
    ended = project.run("stage=train", *words)
    assert ended.code == 0, ended.err
    alone = project.run("stage=train", *words, "batch_size=1", "run=alone")
    assert alone.code == 2
    assert "batch_size=1; set batch_size=2 or more" in alone.err


@pytest.mark.parametrize("resize", ["stretch", "tiles"])
def test_a_broken_training_image_stops_whatever_the_competition_is_called(project, resize: str) -> None:
    folder = small_masks.write(project.root, rows=5)
    (project.root / "configs/competition/squares.yaml").rename(project.root / "configs/competition/latest.yaml")
    words = "competition=latest", f"data.resize={resize}", "data.cache_gb=0.1"
    assert project.run("stage=split", *words).code == 0
    image = folder / "train_images/a01.png"
    image.write_bytes(image.read_bytes()[:60])  # its size can still be read
    ended = project.run("stage=train", "fold=full", *words)
    assert ended.code == 2
    assert "a01.png" in ended.err


def test_stages_before_training_look_at_masks(project) -> None:
    small_tasks.write_masks(project.root, "objects", rows=10, tests=2)
    for stage in ("find_lr", "find_batch", "preview"):
        ended = project.run(f"stage={stage}")
        assert ended.code == 0, ended.err
    for decoder in ("unet(widths=(8,8,4,4))", "unet_plus_plus(widths=(8,8,4,4),deep=true)"):
        ended = project.run("stage=sanity", f"decoder={decoder}")
        assert ended.code == 0, ended.err
        assert "pass  over-fits one batch" in ended.out
    short = ("tune.trials=2", "tune.coarse_epochs=1", "tune.fine_trials=0")
    ended = project.run("stage=tune", "tune.space=lr=log(1e-3,1e-2)", *short)
    assert ended.code == 0, ended.err


def test_a_student_that_sees_more_than_its_teacher_is_refused(project) -> None:
    small_tasks.write_masks(project.root, "masks", rows=8, tests=2)
    for stage in ("train", "predict"):
        assert project.run("epochs=1", "data.resize=crop", f"stage={stage}").code == 0
    ended = project.run("epochs=1", "stage=distill", "data.resize=pad")
    assert ended.code == 2
    assert "tiny learned with data.resize=crop" in ended.err


# --- what members learn from --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A trained and predicted run of masks, the labels of a round (some pixels void), and a teacher's soft maps."""
    root = tmp_path_factory.mktemp("taught")
    shutil.copytree(small_tasks.SOURCE / "configs", root / "configs")
    small_tasks.write_masks(root, "masks", rows=10, tests=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        for stage in ("train", "predict", "pseudo", "distill"):
            assert main(["epochs=2", "pseudo.threshold=0.51", f"stage={stage}", "distill.unlabelled=true"]) == 0
        yield Run(drawn(epochs=2), "tiny")


def test_each_member_learns_from_its_own_maps_alone(taught: Run) -> None:
    labels = "runs/drawn/tiny-r1/labels-r1.csv"
    table = pd.read_csv(settings.root() / labels)
    run = Run(settings.replace(taught.config, train__labels=labels), "tiny-r1")
    task, ids = task_for(run.config, run.competition), run.competition.test["id"].to_numpy()
    for fold, test in enumerate(taught.tests()):
        rows, source, _ = training.materials(run, task, (fold,))
        assert set(rows.rows[: -len(ids)].tolist()) <= set(np.flatnonzero(run.folds != fold).tolist())
        joined = rows.rows[rows.rows >= 10] - 10
        assert ids[joined].tolist() == table[table["for_fold"] == fold]["id"].tolist()
        for row in joined.tolist():
            _, planes = source.samples(np.array([row + 10]), np.array([0]))
            map_ = test.values.one(row)
            expected = np.where(np.maximum(map_, 1 - map_) < np.float32(0.51), VOID, (map_ > 0.5) * LEVELS)
            expected = masked.square_planes(expected.astype(np.uint8).transpose(1, 2, 0), 16, "stretch")
            np.testing.assert_array_equal(planes[0], expected)


def test_a_teachers_maps_come_behind_the_truth(taught: Run) -> None:
    run = Run(settings.replace(taught.config, train__soft="runs/drawn/tiny-distilled/soft"), "student")
    task = task_for(run.config, run.competition)
    table, source, _ = training.materials(run, task, (0,))
    tests = table.rows >= 10
    assert tests.sum() == 4
    np.testing.assert_allclose(table.share, np.where(tests, 1, 0.5))
    batch = next(Loader(source, table, settings.replace(run.config, batch_size=len(table))).epoch(0))
    order = Loader(source, table, run.config).order(0)[: len(table)]
    assert batch.targets.shape == batch.soft.shape == (len(table), 1, 16, 16)
    assert bool((batch.targets[torch.from_numpy(tests[order])] == VOID).all()), "nothing true is known of test images"
    soft = batch.soft.float().numpy() / LEVELS
    oracle = Predictions.load(settings.root() / "runs/drawn/tiny-distilled/soft/fold0.npz")
    ids = run.competition.train["id"].to_numpy()
    for place, row in enumerate(table.rows[order].tolist()):
        if row < 10:
            map_ = oracle.align(ids[[row]]).values.one(0).transpose(1, 2, 0)
            expected = cv2.resize(map_, (16, 16), interpolation=cv2.INTER_LINEAR)
            assert np.abs(soft[place, 0] - expected).max() < 2 / LEVELS


def test_the_loss_of_planes_is_truth_and_teacher_by_share(taught: Run) -> None:
    run = Run(settings.replace(taught.config, train__soft="runs/drawn/tiny-distilled/soft"), "student")
    task = task_for(run.config, run.competition)
    table, source, _ = training.materials(run, task, (0,))
    learner = Learner(training.fresh_network(run, task, (0,)), settings.replace(run.config, loss="bce()"), task.learns)
    batch = next(Loader(source, table, settings.replace(run.config, batch_size=len(table))).epoch(0))
    batch.targets[:, :, :3] = VOID
    learner.eval()
    with torch.no_grad():
        logits = learner.network(batch.images)
        found = float(learner(batch, np.random.default_rng(0)))
    known, truth = batch.targets != VOID, batch.targets.float() / LEVELS
    each = nn.functional.binary_cross_entropy_with_logits(logits, truth.clamp(max=1), reduction="none") * known
    rows = each.sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp(min=1)
    soft = torch.where(batch.soft == VOID, -1.0, batch.soft.float() / LEVELS)
    taught_rows = label_distillation(logits, soft, temperature=run.config.train.temperature)
    expected = ((1 - batch.share) * rows + batch.share * taught_rows).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_what_counts_nowhere_is_learned_from_no_teacher() -> None:
    own = np.array([[[0], [VOID]], [[LEVELS], [7]]], dtype=np.uint8)
    said = np.full((2, 2, 1), 9, dtype=np.uint8)
    both = masked.Taught([own, own], masked.Given([said], np.array([-1, 0])))
    assert both[1][..., 0].tolist() == own[..., 0].tolist()
    assert both[1][..., 1].tolist() == [[9, VOID], [9, 9]]
    assert (both[0][..., 1] == VOID).all(), "this row has no teacher"
    assert masked.Taught(None, masked.Given([said], np.array([0])))[0][..., 0].tolist() == [[VOID] * 2] * 2
    with pytest.raises(IndexError):
        masked.Given([said], np.array([-1]))[0]


# --- pseudo-labels ------------------------------------------------------------------------------------------------


def task_of(form) -> Segmentation:
    told = SimpleNamespace(columns=["a", "b"], answer=None)
    return Segmentation(form.name, told, "", "")


def test_pixels_that_are_not_sure_are_void() -> None:
    map_ = np.array([[[0.95, 0.6, 0.05]], [[0.1, 0.1, 0.45]]], dtype=np.float32)
    hard = task_of(MASKS).pseudo_planes(map_, 0.9, soft=False)
    assert hard[:, 0].tolist() == [[LEVELS, VOID, VOID], [0, VOID, VOID]]
    soft = task_of(MASKS).pseudo_planes(map_, 0.6, soft=True)
    assert soft[:, 0].tolist() == [[round(0.95 * LEVELS), round(0.6 * LEVELS), VOID], [25, 25, VOID]]
    classes = np.array([[[0.5, 0.1]], [[0.3, 0.8]], [[0.2, 0.1]]], dtype=np.float32)
    hard = task_of(CLASS_MASKS).pseudo_planes(classes, 0.6, soft=False)
    assert hard[:, 0].tolist() == [[VOID, 0], [VOID, LEVELS], [VOID, 0]]
    assert (task_of(CLASS_MASKS).pseudo_planes(classes, 0, soft=False) == LEVELS).sum(axis=0).tolist() == [[1, 1]]


def test_images_are_as_sure_as_the_pixels_that_may_be_something() -> None:
    sure, unsure, empty = (np.full((1, 2, 2), 0.01, dtype=np.float32) for _ in range(3))
    sure[0, 0], unsure[0, 0] = (0.9, 0.95), (0.6, 0.4)
    maps = Arrays([sure, unsure, empty])
    rows, confidence = task_of(MASKS).confident(maps, 0.0)
    assert rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(confidence, [0.925, 0.6, 1.0], rtol=1e-6)
    assert task_of(MASKS).confident(maps, 0.7)[0].tolist() == [0, 2]
    assert task_of(MASKS).confident(maps, 0.0, cap=1)[0].tolist() == [0, 2], "the surest with it, the surest without"
    border = np.stack([sure[0], np.full((2, 2), 0.5, dtype=np.float32)])
    np.testing.assert_allclose(task_of(OBJECTS).confident(Arrays([border]), 0.0)[1], [0.925], rtol=1e-6)
    ground = np.stack([np.full((2, 2), 0.99), np.full((2, 2), 0.005), np.full((2, 2), 0.005)]).astype(np.float32)
    assert task_of(CLASS_MASKS).confident(Arrays([ground]), 0.999)[0].tolist() == [0]


# --- maps by views, scales and tiles ------------------------------------------------------------------------------


class Ramp(nn.Module):
    """Answers each pixel with its brightness and, if it leans, with its place, which no view must carry along."""

    def __init__(self, leans: float, size: int = 8) -> None:
        super().__init__()
        self.normalise, self.leans = Normalise([0.5], [0.5]), leans
        self.blueprint = SimpleNamespace(state={}, image_size=size)

    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.normalise(pictures)

    def outputs(self, prepared: torch.Tensor) -> torch.Tensor:
        height, width = prepared.shape[-2:]
        place = torch.arange(height)[:, None] / height + 2 * torch.arange(width)[None] / width
        return prepared[:, :1] + self.leans * place


class Pictures:
    """Images in memory, in both ways that stores give them."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self.arrays[row] for row in rows])

    def __getitem__(self, row: int) -> np.ndarray:
        return self.arrays[row]


def noise(*shapes: tuple[int, int], seed: int = 0) -> Pictures:
    generator = np.random.default_rng(seed)
    return Pictures(*(generator.integers(0, 256, (*shape, 1), dtype=np.uint8) for shape in shapes))


def sigmoid(image: np.ndarray, leans: float = 0.0) -> np.ndarray:
    """What ``Ramp`` says of (H, W)."""
    height, width = image.shape
    place = np.arange(height)[:, None] / height + 2 * np.arange(width)[None] / width
    return 1 / (1 + np.exp(-(image / 127.5 - 1 + leans * place)))


def strips(found) -> list[np.ndarray]:
    """Whole maps of what ``infer`` yields."""
    whole: list[list[np.ndarray]] = []
    for new, strip in found:
        whole += [[]] if new else []
        whole[-1].append(strip)
    return [np.concatenate(one) for one in whole]


def test_views_are_undone_on_maps() -> None:
    store, rows = noise((8, 8), (8, 8), (8, 8)), np.array([2, 0, 1])
    found = strips(infer.whole_maps([Ramp(1.0)], task_of(MASKS), [store], rows, views.expand(["d4()"]), 2))
    turns = [(turn, flip) for turn in range(4) for flip in (False, True)]
    for row, map_ in zip(rows, found, strict=True):
        image, expected = store[row][..., 0].astype(float), np.zeros((8, 8))
        for turn, flip in turns:
            seen = np.rot90(image[:, ::-1] if flip else image, turn)
            back = np.rot90(sigmoid(seen, 1.0), -turn)
            expected += (back[:, ::-1] if flip else back) / 8
        assert np.abs(map_[..., 0] / 255 - expected).max() < 1 / 255
    plain = strips(infer.whole_maps([Ramp(1.0)], task_of(MASKS), [store], rows, views.expand(["identity()"]), 2))
    assert np.abs(plain[0].astype(int) - found[0]).max() > 10, "or the views would not be seen here"


def test_scales_and_networks_are_averaged_at_the_size_of_the_first() -> None:
    small, large = (Pictures(np.full((side, side, 1), grey, dtype=np.uint8)) for side, grey in ((8, 0), (12, 255)))
    view, rows = views.expand(["identity()"]), np.array([0])
    [both] = strips(infer.whole_maps([Ramp(0.0)], task_of(MASKS), [small, large], rows, view, 4))
    assert both.shape == (8, 8, 1)
    assert (both == round(255 * 0.5)).all(), "of sigmoid(−1) and sigmoid(1)"
    [two] = strips(infer.whole_maps([Ramp(0.0), Ramp(1.0)], task_of(MASKS), [large], rows, view, 4))
    expected = (sigmoid(np.full((12, 12), 255.0)) + sigmoid(np.full((12, 12), 255.0), 1.0)) / 2
    assert np.abs(two[..., 0] / 255 - expected).max() < 1 / 255
    [tiled] = strips(infer.tile_maps([Ramp(0.0, 8)], task_of(MASKS), [small, large], rows, view, 4, 0.25))
    assert (tiled == 128).all() or (tiled == 127).all()


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiles_leave_no_seams_whatever_an_images_size(overlap: float) -> None:
    shapes = [(5, 6), (8, 8), (8, 30), (21, 13), (3, 9)]
    store, rows = noise(*shapes), np.array([3, 0, 1, 2, 4])
    task, view = task_of(MASKS), views.expand(["identity()", "hflip()"])
    found = strips(infer.tile_maps([Ramp(0.0)], task, [store], rows, view, 3, overlap))
    for row, map_ in zip(rows, found, strict=True):
        assert map_.shape == (*shapes[row], 1)
        assert np.abs(map_[..., 0] / 255 - sigmoid(store[row][..., 0])).max() <= 1.5 / 255


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (31, 31)])
@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_maps_come_back_to_where_the_image_was(tmp_path: Path, resize: str, shape: tuple[int, int]) -> None:
    height, width = shape
    image = np.add.outer(np.linspace(40, 160, height), np.linspace(0, 80, width)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    square = images.decode("a.png", 1, 32, resize, folder=tmp_path)
    back = Geometry(resize).own_size(square, height, width)
    assert back.shape == (height, width, 1)
    side = min(shape)
    top, left = ((height - side) // 2, (width - side) // 2) if resize == "crop" else (0, 0)
    part = (slice(top, height - top), slice(left, width - left))
    inside = np.abs(back[part][2:-2, 2:-2, 0].astype(int) - image[part][2:-2, 2:-2])
    assert inside.max() <= 6
    outside = back.copy()
    outside[part] = 0
    assert not outside.any()
    planes = masked.square_planes(image[..., None], 32, resize)  # truth lies where its image lies
    known = planes[..., 0] != VOID
    assert np.abs(planes[known].astype(int) - square[known])[3:-3].max() <= 8
    assert (square[~known] == 0).all()


# --- files --------------------------------------------------------------------------------------------------------


def test_arrays_of_many_sizes_lie_behind_each_other(tmp_path: Path) -> None:
    arrays = [np.full((rows, 3, 2), rows, dtype=np.uint8) for rows in (1, 4, 2)]
    with ragged.writer(tmp_path / "a.bin") as out:
        out.add(arrays[0])
        for row in range(4):
            out.strip(arrays[1][row : row + 1], new=row == 0)
        out.add(arrays[2])
    read = Ragged(tmp_path / "a.bin", np.array(out.shapes))
    assert all((read[row] == array).all() for row, array in enumerate(arrays))
    assert [read[row].shape for row in range(len(read))] == [array.shape for array in arrays]
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        Ragged(tmp_path / "a.bin", np.array(out.shapes))
    with pytest.raises(RuntimeError), ragged.writer(tmp_path / "b.bin") as out:
        out.add(arrays[0])
        raise RuntimeError
    assert not (tmp_path / "b.bin").exists()


def test_a_build_that_was_killed_begins_again_and_a_finished_one_is_kept(project) -> None:
    made: list[int] = []

    def make(row: int) -> np.ndarray:
        made.append(row)
        return np.full((row + 1, 2, 1), row, dtype=np.uint8)

    def built() -> object:
        return ragged.build(project.root / "cache/x", make, np.array([2, 4, 6]), "things", 1.0)

    for _ in range(2):
        assert [built()[row].shape for row in range(3)] == [(1, 2, 1), (2, 2, 1), (3, 2, 1)]
        assert sorted(made) == [0, 1, 2]
    (project.root / "cache/x/shapes.npy").unlink()
    assert built()[2].tolist() == [[[2], [2]]] * 3
    assert len(made) == 6
    none = ragged.build(project.root / "cache/y", make, np.array([2, 4, 6]), "things", 0.0)
    assert none[1].shape == (2, 2, 1)
    assert not (project.root / "cache/y").exists(), "data.cache_gb=0 keeps nothing"


def test_predictions_of_maps_are_values_like_others(tmp_path: Path) -> None:
    maps, other = random_maps(4, 2), random_maps(4, 2, seed=1)
    other.arrays = [1 - one for one in maps.arrays]
    ids = np.array(["a", "b", "c", "d"])
    Predictions(ids, maps, "probability", {"views": ["d4()"]}).save(tmp_path / "x.npz")
    first = (tmp_path / "x.npz").read_bytes(), (tmp_path / "x.maps").read_bytes()
    read = Predictions.load(tmp_path / "x.npz")
    assert (read.ids.tolist(), read.space, read.made_by["views"]) == (ids.tolist(), "probability", ["d4()"])
    for row in range(4):
        np.testing.assert_array_equal(read.values.one(row), maps.one(row))
    read.save(tmp_path / "x.npz")
    assert ((tmp_path / "x.npz").read_bytes(), (tmp_path / "x.maps").read_bytes()) == first
    turned = read.align(["d", "a"])
    np.testing.assert_array_equal(turned.values.one(1), maps.one(0))
    np.testing.assert_array_equal(read.values[np.array([False, True, False, True])].one(1), maps.one(3))
    mean = Predictions.mean([read, Predictions(ids, other, "probability")])
    assert all(np.allclose(mean.values.one(row), 0.5, atol=1e-6) for row in range(4))
    joined = Predictions.concat([turned, read.align(["c"])])
    assert joined.ids.tolist() == ["d", "a", "c"]
    np.testing.assert_array_equal(joined.values.one(2), maps.one(2))
    with pytest.raises(UserError, match="1 ids have no prediction: 'e'|1 ids have no prediction: e"):
        read.align(["a", "e"])
    (tmp_path / "x.maps").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        Predictions.load(tmp_path / "x.npz")
