"""A decoder's head of labels: it learns which planes are anywhere in an image, and empties those that are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_masks
import torch

from pipeline import network
from pipeline.config import compose
from pipeline.data import Batch
from pipeline.errors import UserError
from pipeline.forms import MASKS
from pipeline.learner import Learner, last, presence_loss
from pipeline.segmenters import Answers

AUX = "unet(widths=[8,8,8,8],aux=true)"


def made(project, decoder: str, **words: str) -> Learner:
    small_masks.write(project.root, rows=4)
    config = compose({"decoder": decoder, **words})
    torch.manual_seed(0)
    plan = network.Blueprint(
        config.backbone, config.pool, config.head, 3, 16, "stretch", [0.5] * 3, [0.2] * 3, ["a", "b"], outputs=2,
        decoder=config.decoder,
    )  # fmt: skip
    return Learner(network.build(plan), config, MASKS)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    targets = torch.zeros(3, 2, 16, 16, dtype=torch.uint8)
    targets[0, 0, 2:5] = 254
    targets[1, :, 8:] = 255
    targets[2, 1] = 255
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(images, targets, torch.ones(3))


def slow_presence(label: float, present: bool) -> float:
    return -math.log(1 / (1 + math.exp(-label if present else label)))


def test_the_loss_is_the_slow_one_and_void_planes_count_nowhere() -> None:
    labels = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 9.0]])
    found = presence_loss(labels, batch().targets)
    wanted = [
        (slow_presence(0.3, True) + slow_presence(-1.0, False)) / 2,
        (slow_presence(2.0, False) + slow_presence(0.5, False)) / 2,
        slow_presence(-0.7, False),
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))
    assert presence_loss(labels[:1], torch.full((1, 2, 4, 4), 255, dtype=torch.uint8)).item() == 0


@pytest.mark.parametrize("decoder", [AUX, "unet_plus_plus(widths=[8,8,8,8],deep=true,aux=true)"])
def test_its_share_of_the_loss_reaches_every_weight(project, decoder: str) -> None:
    learner, given = made(project, decoder, **{"train.presence": "0.5"}).train(), batch()
    for layer in learner.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    outputs = learner.network(given.images)
    assert isinstance(outputs, Answers)
    assert last(outputs).shape == (3, 2, 16, 16)
    loss = learner(given, np.random.default_rng(0))
    loss.backward()
    idle = [name for name, weights in learner.named_parameters() if weights.grad is None or not weights.grad.any()]
    assert [name for name in idle if "labels" in name] == []
    learner.presence = 0.0
    with torch.no_grad():
        plain = learner(given, np.random.default_rng(0))
    assert loss.item() == pytest.approx(plain.item() + 0.5 * presence_loss(outputs.labels, given.targets).mean().item())


def test_a_plane_is_no_likelier_than_that_it_is_there(project) -> None:
    net = made(project, AUX).network.eval()
    images = batch().images
    with torch.no_grad():
        planes, labels = net.segmenter.with_labels(net.prepare(images))
        wanted = planes.sigmoid() * labels.sigmoid()[..., None, None]
        torch.testing.assert_close(net(images).sigmoid(), wanted)
        net.segmenter.labels[-2].bias.fill_(-200.0)
        assert net(images).sigmoid().max() < 1e-6
        net.segmenter.labels[-2].bias.fill_(200.0)
        torch.testing.assert_close(net(images), planes, atol=1e-4, rtol=1e-4)


def test_it_trains_and_predicts_and_a_gate_is_refused_where_pixels_have_one_class(project) -> None:
    small_masks.write(project.root, rows=8)
    for stage in ("sanity", "train", "predict"):
        ended = project.run(f"stage={stage}", f"decoder={AUX}")
        assert ended.code in ((0, 2) if stage == "sanity" else (0,)), ended.err
        assert "Traceback" not in ended.err
    with pytest.raises(UserError, match="leave aux out"):
        compose({"decoder": AUX, "task": "segmentation(kind='class_masks')"})


def test_the_six_checks_know_levels(project) -> None:
    small_masks.write(project.root, rows=8)
    ended = project.run("stage=sanity", "decoder=unet_plus_plus(widths=[8,8,8,8],deep=true)")
    assert ended.code in (0, 2), ended.err  # so few pixels may not be known by heart
    assert (project.root / "runs/squares/tiny/sanity.json").is_file()
