"""The auxiliary classifier: its arithmetic, the stages it looks at, and that prediction knows nothing of it."""

from __future__ import annotations

import copy
import functools

import pytest
import small_tasks
import small_training as small
import torch
from test_objective import colours, passed, timm_network
from torch import nn

from pipeline import learner, objective, registry
from pipeline.data import draw
from pipeline.errors import UserError
from pipeline.learner import Learner
from pipeline.parts import auxiliaries

NETS = [
    ("resnet18", "layer3", 256), ("vit_tiny_patch16_224", "blocks.8", 192), ("convnext_atto", "stages.2", 160),
    ("small_image(width=4,depth=2)", "layers.4", 16), ("small_image(width=4,depth=0)", "layers.2", 16),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "stage", "features"), NETS)
def test_a_second_head_stands_on_the_stage_at_three_quarters(backbone: str, stage: str, features: int) -> None:
    network = timm_network(backbone)
    second = auxiliaries.middle(network.backbone, 3, "linear()", hidden=8)
    assert (second.stage, second.features) == (stage, features)
    with second.watching(network.backbone) as seen:
        network(colours().images)
    outputs = second(seen[0])
    assert (outputs.shape, outputs.dtype, len(seen)) == ((4, 3), torch.float32, 1)
    outputs.sum().backward()
    assert all(weight.grad is not None for weight in second.parameters())
    reached = [weight.grad is not None for weight in network.backbone.parameters()]
    assert 0 < sum(reached) < len(reached), "the stages above are not of it"
    network(colours().images)
    assert len(seen) == 1, "looked at within a training pass alone"


def test_it_is_a_convolution_the_mean_over_places_and_a_layer() -> None:
    torch.manual_seed(0)
    second = auxiliaries.Auxiliary("x", 5, 4, 0.0, nn.Linear(4, 3), 0.4)
    places = torch.randn(2, 5, 3, 6)
    reduce, last = second.reduce[0], second.head[1]
    expected = last(nn.functional.conv2d(places, reduce.weight[:, :, None, None], reduce.bias).relu().mean(dim=(2, 3)))
    for given in (places, places.permute(0, 2, 3, 1), places.flatten(2).transpose(1, 2)):
        torch.testing.assert_close(second(given), expected)
    with pytest.raises(UserError, match="no map of 5 features"):
        second(torch.zeros(2, 7, 3, 3))


def test_its_loss_is_added_by_its_share(project) -> None:
    small.write(project.root)
    config = small.config(auxiliary="middle(share=0.3,dropout=0.0,hidden=8)")
    student = Learner(timm_network("small_image(width=4)"), config)
    batch = colours()
    found = student(batch, draw(0))
    with student.auxiliary.watching(student.network.backbone) as seen:
        outputs = student.network(batch.images)
    first, second = (nn.functional.cross_entropy(one, batch.targets) for one in (outputs, student.auxiliary(seen[0])))
    torch.testing.assert_close(found, first + 0.3 * second, rtol=1e-4, atol=1e-4)
    assert learner.initial_loss(config, 3) == pytest.approx(1.3 * 1.0986, rel=1e-4)


def test_it_goes_with_compile_and_sam(project, monkeypatch) -> None:
    small.write(project.root)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = Learner(timm_network("small_image(width=4)"), small.config(auxiliary="middle(hidden=8)"))
    for optim in ("sgd()", "sam(inner='sgd()',rho=0.5)"):
        one, other = copy.deepcopy(plain), copy.deepcopy(plain)
        passed(objective.prepare(one, small.config(optim=optim)), colours())
        passed(objective.prepare(other, small.config(optim=optim, train__compile=True)), colours())
        for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(same.grad, weight.grad, rtol=1e-4, atol=1e-5, msg=f"{optim}: {name}")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("multiclass()", ("mix=mixup()", "loss=arcface()", "head=cosine()")),
        ("multilabel()", ("mix=cutmix()", "head=multi_sample_dropout()")),
        ("regression()", ("augment=several(change='light()',count=2)",)),
    ],
)
def test_every_form_learns_with_it_and_predicts_without(project, task: str, words: tuple[str, ...]) -> None:
    small_tasks.write(project.root, task, rows=24)
    size = ("image_size=16", "batch_size=6", "epochs=1", "auxiliary=middle(hidden=8)", "fold=0")
    ended = project.run("stage=train", *size, *words)
    assert ended.code == 0, ended.err
    place = project.root / "runs/drawn/tiny/fold0"
    assert not [name for name in small.weights(place / "best.ckpt") if "auxiliary" in name]
    state = torch.load(place / "last.ckpt", weights_only=True)["learner"]
    assert {"auxiliary.reduce.0.weight"} <= state.keys()
    assert project.run("stage=predict", *size, *words).code == 0


def test_a_student_learns_with_it_from_its_teacher(project) -> None:
    small.write(project.root)
    for word in ("stage=train", "stage=predict", "stage=distill"):
        ended = project.run(word, "auxiliary=middle(hidden=8)", "epochs=1", "distill.teacher=tiny")
        assert ended.code == 0, ended.err


def test_what_it_does_not_go_with_is_one_message(project) -> None:
    with pytest.raises(UserError, match="names no stages"):
        registry.build("auxiliaries", "middle()")(nn.Linear(2, 2), 3, "linear()")
    small.write(project.root)
    with pytest.raises(UserError, match="does not go with auxiliary"):
        small.config(auxiliary="middle()", train__checkpointing=True)
    with pytest.raises(UserError, match="at=2, but at must be"):
        small.config(auxiliary="middle(at=2)")
