"""Sizes of training batches: drawn from (seed, epoch, step), resized in the learner, refused by nets of one size."""

from __future__ import annotations

import numpy as np
import pytest
import small_training as small
import torch
from test_learner import Plain

from pipeline import network, registry
from pipeline.checkpoint import load_checkpoint
from pipeline.data import Batch, Joined, Loader, Table, draw
from pipeline.errors import UserError
from pipeline.learner import Learner, at_size

NAMES = list(registry.parts("sizes"))


def planned(call: str, image_size: int = 100, epochs: int = 8) -> list[list[int]]:
    return registry.build("sizes", call)(image_size, epochs)


@pytest.mark.parametrize("epochs", [1, 2, 9])
@pytest.mark.parametrize("image_size", [4, 8, 224])
@pytest.mark.parametrize("name", NAMES)
def test_every_part_plans_each_epoch_and_ends_with_image_size(name: str, image_size: int, epochs: int) -> None:
    plan = planned(f"{name}()", image_size, epochs)
    assert len(plan) == epochs
    assert all(side >= 4 and isinstance(side, int) for epoch in plan for side in epoch)
    assert image_size in plan[-1]


def test_each_part_says_what_it_is_called() -> None:
    assert planned("fixed()", epochs=2) == [[100], [100]]
    assert planned("multi_scale(scales=[1.0, 0.5, 1.25])", epochs=2) == [[50, 100, 125]] * 2
    assert planned("progressive(start=0.5, until=0.5)") == [[50], [62], [75], [88], [100], [100], [100], [100]]
    assert planned("progressive(until=0.0)", epochs=3) == [[100]] * 3
    assert planned("progressive(until=1.0)", epochs=3) == [[50], [75], [100]]


# --- in the loader --------------------------------------------------------------------------------------------------


class Grey:
    """Images of one shape, all grey."""

    def __len__(self) -> int:
        return 24

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 8, 8, 1), 128, dtype=np.uint8)


def loader(project, **changes: object) -> Loader:
    small.write(project.root)
    table = Table(np.arange(24), np.zeros(24, dtype=np.int64), np.ones(24, dtype=np.float32))
    return Loader(Joined([Grey()]), table, small.config(batch_size=2, **changes))


def test_a_size_depends_on_seed_epoch_and_step_alone(project) -> None:
    call = "multi_scale(scales=[0.5, 0.75, 1.0])"
    batches = loader(project, sizes=call)
    seen = [[batch.size for batch in batches.epoch(epoch)] for epoch in range(3)]
    assert {size for epoch in seen for size in epoch} == {4, 6, 8}
    assert seen[0] != seen[1]
    assert [batch.size for batch in batches.epoch(1, start=5)] == seen[1][5:], "as after a kill in mid-epoch"
    assert [batch.size for batch in loader(project, sizes=call, seed=1).epoch(0)] != seen[0]
    assert next(iter(batches.epoch(0))).to(torch.device("cpu")).size == seen[0][0]
    counts = np.bincount([batches.size(epoch, step) for epoch in range(30) for step in range(20)])[[4, 6, 8]]
    assert counts.min() > 150, "equally likely: 200 of 600 each, ± 12"


def test_images_are_not_touched_and_sizes_grow_by_epoch(project) -> None:
    batches = loader(project, sizes="progressive(start=0.5, until=1.0)", epochs=3)
    seen = [{(batch.size, *batch.images.shape[2:]) for batch in batches.epoch(epoch)} for epoch in range(4)]
    assert seen == [{(4, 8, 8)}, {(6, 8, 8)}, {(8, 8, 8)}, {(8, 8, 8)}]


# --- in the learner -------------------------------------------------------------------------------------------------


def batch_of(images: torch.Tensor, size: int, targets: torch.Tensor | None = None) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64) if targets is None else targets,
                 torch.ones(len(images)), size=size)  # fmt: skip


def triangle(length: int, size: int) -> np.ndarray:
    """(size, length) weights of the bilinear filter, as wide as the step where it shrinks."""
    step = length / size
    wide = max(step, 1.0)
    centres = (np.arange(size) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(length) - centres[:, None]) / wide)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [4, 6, 8, 11])
def test_resizing_is_the_slow_one(size: int) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found, _ = at_size(images, batch_of(images, size))
    weights = triangle(8, size)
    wanted = np.einsum("yh,nchw,xw->ncyx", weights, images.numpy().astype(float), weights)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    if size != 8:
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_planes_follow_their_images_and_classes_stay(project) -> None:
    images = torch.rand(2, 1, 8, 8)
    planes = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    _, resized = at_size(images, batch_of(images, 4, planes))
    assert torch.equal(resized.targets, planes[..., 1::2, 1::2]), "the nearest, so that levels stay levels"
    classes = batch_of(images, 4)
    assert at_size(images, classes)[1] is classes
    assert at_size(images, batch_of(images, 0))[0] is images


def test_the_network_sees_the_size_and_the_mix_too(project) -> None:
    small.write(project.root)

    class Watching(Plain):
        def outputs(self, images: torch.Tensor) -> torch.Tensor:
            self.seen = images.shape
            return super().outputs(images)

    student = Learner(Watching(), small.config(mix="cutmix()", sizes="multi_scale()"))
    batch = batch_of(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 6, torch.eye(4)[:, :3])
    assert torch.isfinite(student(batch, draw(0)))
    assert student.network.seen == (4, 1, 6, 6)


# --- in a training --------------------------------------------------------------------------------------------------


def test_training_grows_and_prediction_is_at_image_size(project) -> None:
    small.write(project.root)
    words = ("fold=0", "epochs=2", "image_size=16", "sizes=progressive(start=0.5)")
    assert project.run("stage=train", *words).code == 0
    content = load_checkpoint(project.root / "runs/noise/tiny/fold0/best.ckpt")
    assert content["blueprint"]["image_size"] == 16
    assert project.run("stage=train", *words[:3], "run=plain").code == 0
    paths = [project.root / f"runs/noise/{run}/fold0/best.ckpt" for run in ("tiny", "plain")]
    assert not small.same(*map(small.weights, paths))
    assert project.run("stage=predict", *words).code == 0


@pytest.mark.parametrize(("backbone", "sizes", "text"), [
    ("vit_tiny_patch16_224(depth=1)", "multi_scale(scales=[0.5,1.0])", "takes no 16 px"),
    ("small_image(width=4)", "progressive(start=0.125)", "takes no 4 px"),
])  # fmt: skip
def test_a_network_of_one_size_is_refused_before_it_trains(project, backbone: str, sizes: str, text: str) -> None:
    small.write(project.root)
    words = (f"backbone={backbone}", f"sizes={sizes}", "image_size=32", "run=vit", "epochs=2")
    ended = project.run("stage=train", "fold=0", *words)
    assert ended.code == 2, ended.out
    assert text in ended.err
    assert "use sizes=fixed()" in ended.err
    assert "epoch" not in ended.out


def test_the_check_leaves_the_network_as_it_was(project) -> None:
    small.write(project.root)
    plan = network.Blueprint(
        backbone="small_image(width=4)", pool="avg()", head="linear()", channels=1, image_size=16, resize="stretch",
        mean=[0.5], std=[0.5], columns=["a", "b"],
    )  # fmt: skip
    net = network.build(plan).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    network.check_sizes(net, [8, 16, 24], "multi_scale()")
    assert net.training
    assert small.same(before, net.state_dict())
    with pytest.raises(UserError, match=r"sizes=x, but small_image\(width=4\) takes no 1 px"):
        network.check_sizes(net, [1], "x")
