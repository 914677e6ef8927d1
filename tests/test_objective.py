"""What is wrapped around a learner: each against what it replaces, computed slowly and by hand."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import small_training as small
import torch
from lightning_fabric import Fabric
from test_resume import Killed, kill_after
from torch import nn

from pipeline import engine, network, objective
from pipeline.data import Batch, draw
from pipeline.errors import UserError
from pipeline.learner import Learner
from pipeline.parts import norms

ROWS = 6


class Net(nn.Module):
    """A convolution, BatchNorm, dropout and a layer: all that a second pass could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(4, 3)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 100

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images).mean(dim=(2, 3))).float()


@pytest.fixture
def batch() -> Batch:
    """Six images with soft targets, which a mix may mix."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (ROWS, 1, 4, 4), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.rand(ROWS, 3, generator=generator).softmax(dim=1), torch.ones(ROWS))


def learner(project, **changes: object) -> Learner:
    small.write(project.root)
    torch.manual_seed(0)
    return Learner(Net(), small.config(**changes))


def passed(module: nn.Module, batch: Batch, **autocast) -> torch.Tensor:
    """One training pass and its backward, from the same seed each time."""
    module.train()
    torch.manual_seed(5)
    with torch.autocast("cpu", **(autocast or {"enabled": False})):
        loss = module(batch, draw(3))
    loss.backward()
    return loss.detach()


# --- sharpness-aware minimisation -----------------------------------------------------------------------------------


def slow_sam(student: Learner, batch: Batch, rho: float, adaptive: bool) -> list[torch.Tensor]:
    """Foret et al., algorithm 1, with the weights really moved and moved back; T of Kwon et al. is |w| + 0.01."""
    other = copy.deepcopy(student)
    passed(other, batch)
    named = list(other.named_parameters())
    size = {n: w.detach().abs() + 0.01 if adaptive and "weight" in n else torch.ones_like(w) for n, w in named}
    norm = math.sqrt(sum(float(((size[n] * w.grad) ** 2).sum()) for n, w in named))
    with torch.no_grad():
        for n, w in named:
            w += rho * size[n] ** 2 * w.grad / norm
            w.grad = None
    passed(other, batch)
    return [w.grad for _, w in named]


@pytest.mark.parametrize("words", [{}, {"mix": "mixup(alpha=1.0)", "loss": "focal()"}])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (0.5, True), (0.0, False)])
def test_sam_is_the_gradient_at_the_moved_weights(project, batch, rho, adaptive, words) -> None:
    config = {"optim": f"sam(inner='sgd()', rho={rho}, adaptive={adaptive})", **words}
    student = learner(project, **config)
    expected = slow_sam(student, batch, rho, adaptive)
    plain = copy.deepcopy(student)
    value = passed(plain, batch)
    module = objective.prepare(student, small.config(**config))
    assert torch.equal(passed(module, batch), value), "the loss at the weights themselves"
    for (name, weight), wanted in zip(student.named_parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)
    moved = max(
        float((w.grad - p.grad).abs().max()) for w, p in zip(student.parameters(), plain.parameters(), strict=True)
    )
    assert (moved > 1e-3) == (rho > 0)
    for (name, buffer), wanted in zip(student.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, wanted), f"{name} moves once, as in a plain step"


def test_sam_in_bf16_comes_near(project, batch) -> None:
    student = learner(project)
    expected = slow_sam(student, batch, 0.05, False)
    passed(objective.prepare(student, small.config(optim="sam()")), batch, dtype=torch.bfloat16)
    for weight, wanted in zip(student.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, wanted, rtol=0.1, atol=0.02)


def test_sam_stays_where_the_first_gradient_is_not_finite(project) -> None:
    wrapped = objective.SharpnessAware(learner(project), 0.1, False)
    weights = {"weight": torch.ones(2)}
    assert torch.equal(wrapped.climb(weights, [torch.tensor([math.inf, 1.0])])["weight"], torch.zeros(2))
    torch.testing.assert_close(wrapped.climb(weights, [torch.tensor([3.0, 4.0])])["weight"], torch.tensor([0.06, 0.08]))


def test_sam_leaves_frozen_weights_out(project, batch) -> None:
    student = learner(project, optim="sam()")
    student.network.backbone.requires_grad_(False)
    passed(objective.prepare(student, small.config(optim="sam()")), batch)
    assert student.network.head.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in student.network.backbone.parameters())


def test_a_killed_training_with_everything_wrapped_ends_with_the_same_weights(project) -> None:
    small.write(project.root, rows=41)
    words = (
        "stage=train", "fold=0", "optim=sam(inner='adamw()',adaptive=true)", "train.accumulate=2", "epochs=2",
        "batch_size=4", "head=linear(dropout=0.3)", "mix=mixup()", "train.l1=1e-4", "train.l2=1e-3",
        "train.clip_value=0.1", "train.clip_norm=1", "train.scale_lr=sqrt", "train.checkpoint_seconds=0",
    )  # fmt: skip
    assert project.run(*words, "run=whole").code == 0
    for passes in (9, 3):  # two passes a batch
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, passes)
            project.run(*words, "run=killed")
    ended = project.run(*words, "run=killed")
    assert "lr=0.003 becomes 0.00053 for steps of 8 images" in ended.out
    place = project.root / "runs/noise"
    assert small.same(*(small.weights(place / run / "fold0/best.ckpt") for run in ("whole", "killed")))


# --- penalties ------------------------------------------------------------------------------------------------------


def test_penalties_add_their_gradients_to_the_weights_alone(project, batch) -> None:
    student = learner(project)
    plain = copy.deepcopy(student)
    value = passed(plain, batch)
    config = small.config(train__l1=0.03, train__l2=0.2)
    assert torch.equal(passed(objective.prepare(student, config), batch), value)
    for (name, weight), other in zip(student.named_parameters(), plain.parameters(), strict=True):
        added = 0.03 * weight.detach().sign() + 0.2 * weight.detach() if weight.ndim > 1 else torch.zeros(())
        torch.testing.assert_close(weight.grad, other.grad + added, msg=name)


def test_l2_with_plain_descent_is_its_weight_decay(project, batch) -> None:
    ends = []
    for words in ({"train__l2": 0.1}, {"optim": "sgd(weight_decay=0.1, spare=true)"}):
        config = {"optim": "sgd()", **words}
        student = learner(project, **config)
        optimizer = engine.make_optimizer(student, small.config(**config))
        module = objective.prepare(student, small.config(**config))
        for _ in range(3):
            optimizer.zero_grad()
            passed(module, batch)
            optimizer.step()
        ends.append(student.state_dict())
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-6) for key in ends[0])


# --- gradients and rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "norm", "expected"),
    [(0.0, 0.0, [3.0, -4.0]), (3.5, 0.0, [3.0, -3.5]), (0.0, 1.0, [0.6, -0.8]), (3.0, 1.0, [0.5**0.5, -(0.5**0.5)])],
)
def test_gradients_are_clipped_by_value_then_by_norm(project, value, norm, expected) -> None:
    small.write(project.root)
    weight = nn.Parameter(torch.zeros(2))
    module = nn.ParameterList([weight])
    weight.grad = torch.tensor([3.0, -4.0])
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    train = small.config(train__clip_value=value, train__clip_norm=norm).train
    engine.clip(Fabric(accelerator="cpu", devices=1), module, optimizer, train)
    torch.testing.assert_close(weight.grad, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("how", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_grows_with_the_images_of_a_step(project, how, factor) -> None:
    small.write(project.root)
    config = small.config(lr=0.01, batch_size=64, train__accumulate=2, train__base_batch=32, train__scale_lr=how)
    assert engine.peak(config) == pytest.approx(0.01 * factor)
    optimizer = engine.make_optimizer(Learner(Net(), config), config)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * factor)


# --- how the backbone computes --------------------------------------------------------------------------------------


def timm_network(name: str) -> network.Network:
    plan = network.Blueprint(name, "avg()", "linear()", 3, 32, "stretch", [0.5] * 3, [0.25] * 3, ["a", "b", "c"])
    torch.manual_seed(0)
    return network.new(plan, False, "")


def colours() -> Batch:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    return Batch(images, torch.tensor([0, 1, 2, 1]), torch.ones(4))


def test_checkpointing_changes_no_gradient_and_no_statistic(project) -> None:
    small.write(project.root)
    plain = Learner(timm_network("resnet10t(drop_path_rate=0.3)"), small.config())
    other = copy.deepcopy(plain)
    passed(plain, colours())
    passed(objective.prepare(other, small.config(backbone="resnet10t", train__checkpointing=True)), colours())
    assert other.network.backbone.model.grad_checkpointing
    assert small.same(plain.state_dict(), other.state_dict())
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7, msg=name)


class Refusing(nn.Module):
    """As timm's models that cannot."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        assert not enable, "gradient checkpointing not supported"


def test_what_cannot_compute_again_is_one_message(project) -> None:
    with pytest.raises(UserError, match="choose another backbone"):
        objective.checkpoint(Refusing(), "vgg11")
    small.write(project.root)
    ended = project.run("stage=train", "fold=0", "train.checkpointing=true")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "train.checkpointing=true, but small_image(width=4) cannot compute its blocks again" in ended.err
    for word in ("norm=ibn()", "stem=small()"):
        ended = project.run("stage=train", "fold=0", word)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"{word} is for timm's ResNets, such as resnet18, not for backbone=small_image" in ended.err
    assert not (project.root / "cache").exists(), "nothing is decoded before"
    for word in ("train.compile=true", "optim=lookahead(inner='sam()')"):
        ended = project.run("stage=train", word, "train.checkpointing=true")
        assert (ended.code, "does not go with" in ended.err) == (2, True)


def test_a_compiled_backbone_keeps_its_names_and_its_gradients(project, monkeypatch) -> None:
    """By aot_eager, since inductor's own kernels take long to make; SAM's other weights must not be missed."""
    small.write(project.root)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = Learner(timm_network("small_image(width=4)"), small.config())
    for optim in ("sgd()", "sam(inner='sgd()',rho=0.5)"):
        one, other = copy.deepcopy(plain), copy.deepcopy(plain)
        passed(objective.prepare(one, small.config(optim=optim)), colours())
        passed(objective.prepare(other, small.config(optim=optim, train__compile=True)), colours())
        assert other.network.backbone._compiled_call_impl is not None
        assert one.state_dict().keys() == other.state_dict().keys()
        for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(same.grad, weight.grad, rtol=1e-4, atol=1e-5, msg=f"{optim}: {name}")
    predicts = network.for_prediction(other.network, torch.float32)
    images = colours().images
    torch.testing.assert_close(predicts(images), one.network.eval()(images), rtol=1e-4, atol=1e-5)


def test_synchronised_norms_keep_activation_statistics_and_parameters() -> None:
    module = timm_network("efficientnet_b0(drop_rate=0.0)").backbone
    before, parameters = copy.deepcopy(module.state_dict()), list(module.parameters())
    old = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    objective.synchronise(module)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in module.modules())
    made = [one for one in module.modules() if isinstance(one, nn.SyncBatchNorm)]
    assert len(made) == len(old) > 10
    assert [type(getattr(one, "act", None)) for one in made] == [type(getattr(one, "act", None)) for one in old]
    assert small.same(before, module.state_dict())
    assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))


def test_ghost_norms_stay_when_norms_are_synchronised(project) -> None:
    module = nn.Sequential(nn.BatchNorm2d(2))
    norms.ghost(module, size=2)
    objective.synchronise(module)
    assert not isinstance(module[0], nn.SyncBatchNorm)


def test_norms_of_several_devices_are_synchronised(project) -> None:
    student = learner(project)
    objective.prepare(student, small.config(), devices=2)
    assert isinstance(student.network.backbone[1], nn.SyncBatchNorm)
    with pytest.raises(UserError, match="rho=-1"):
        small.config(optim="sam(rho=-1)")
