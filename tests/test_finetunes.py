"""Which weights learn and how fast: groups against a slow count, frozen weights that stay, rates that the steps use."""

from __future__ import annotations

import pytest
import small_tasks
import torch
from torch import nn

from pipeline import network, registry
from pipeline.config import compose, replace
from pipeline.course import Course
from pipeline.errors import UserError
from pipeline.parts import finetunes


def net(backbone: str = "resnet18") -> network.Network:
    torch.manual_seed(0)
    plan = network.Blueprint(backbone, "gem()", "linear()", 3, 32, "stretch", [0.5] * 3, [0.25] * 3, ["a", "b"])
    return network.build(plan)


def groups(call: str, backbone: str = "resnet18") -> tuple[network.Network, list[dict]]:
    built = net(backbone)
    return built, registry.build("finetunes", call)(built, 1.0)


@pytest.mark.parametrize("name", registry.parts("finetunes"))
@pytest.mark.parametrize("backbone", ["resnet18", "small_image(width=4)", "vit_tiny_patch16_224"])
def test_each_weight_that_learns_stands_in_one_group(name: str, backbone: str) -> None:
    built, found = groups(name, backbone)
    listed = [id(parameter) for group in found for parameter in group["params"]]
    learning = {id(parameter) for parameter in built.parameters() if parameter.requires_grad}
    assert len(listed) == len(set(listed))
    assert set(listed) == learning
    assert all(0 < group["lr"] <= 1 for group in found)
    head = {id(parameter) for parameter in built.head.parameters()}
    assert {group["lr"] for group in found if head & {id(p) for p in group["params"]}} == {1.0}


def test_the_backbone_is_frozen_or_slower() -> None:
    built, found = groups("head_only()")
    assert not any(parameter.requires_grad for parameter in built.backbone.parameters())
    assert len(found) == 1
    _, found = groups("head_faster(factor=4)")
    assert [group["lr"] for group in found] == [0.25, 1.0]


def test_rates_fall_from_block_to_block() -> None:
    built, found = groups("layer_decay(decay=0.5)")
    blocks = finetunes.blocks_of(built.backbone)
    assert len(blocks) == 10  # stem convolution and its norm, eight residual blocks
    assert [group["lr"] for group in found] == [0.5**depth for depth in range(10, -1, -1)]
    assert found[0]["params"][0] is built.backbone.model.conv1.weight


def test_the_top_share_learns() -> None:
    built, _ = groups("top(share=0.4)")
    assert not built.backbone.model.layer2[1].conv1.weight.requires_grad
    assert built.backbone.model.layer3[0].conv1.weight.requires_grad
    assert built.head[1].weight.requires_grad


def test_nothing_left_to_learn_is_an_error() -> None:
    built = net("small_image(width=4)")
    built.head, built.pool = nn.Identity(), nn.Identity()
    with pytest.raises(UserError, match="no weight is left to learn"):
        registry.build("finetunes", "head_only()")(built, 1.0)


def test_frozen_weights_stay_and_groups_follow_the_schedule(project) -> None:
    small_tasks.write(project.root, "multiclass()")
    for call in ("head_only()", "layer_decay(decay=0.5)"):
        run = call.partition("(")[0]
        assert project.run("stage=train", "fold=0", f"finetune={call}", f"run={run}", "schedule=linear()").code == 0
    from pipeline.checkpoint import load_checkpoint
    from pipeline.runs import Run
    from pipeline.tasks import task_for
    from pipeline.training import fresh_network

    run = Run(compose({"competition": "drawn"}), "head_only")
    fresh = fresh_network(run, task_for(run.config, run.competition), (0,)).state_dict()
    trained = load_checkpoint(run.member((0,)) / "best.ckpt")["network"]
    frozen = [name for name in fresh if name.startswith("backbone.") and name.endswith("weight")]
    assert all(torch.equal(fresh[name], trained[name]) for name in frozen)
    assert not torch.equal(fresh["head.1.weight"], trained["head.1.weight"])
    last = torch.load(project.root / "runs/drawn/layer_decay/fold0/last.ckpt", weights_only=True)
    rates = [group["initial_lr"] for group in last["optimizer"]["param_groups"]]
    assert rates == sorted(rates)
    assert len(set(rates)) > 3


# --- the head first -------------------------------------------------------------------------------------------------


def begun(call: str, *histories: list[float], metric: str = "accuracy()") -> list[bool]:
    """Whether the backbone learns in the epoch behind each of these series of scores."""
    config = replace(compose({}), finetune=call, metric=metric)
    built = net()
    course = Course(config, built, 10)
    found = []
    for scores in histories:
        course.begin([{"score": score} for score in scores])
        built.train()
        learns = {parameter.requires_grad for parameter in built.backbone.parameters()}
        norms = {layer.training for layer in built.backbone.modules() if isinstance(layer, nn.BatchNorm2d)}
        assert learns == norms, "a frozen BatchNorm keeps its statistics"
        assert all(parameter.requires_grad for parameter in built.head.parameters())
        found.append(learns.pop())
    return found


def test_the_head_learns_alone_for_so_many_epochs() -> None:
    assert begun("head_first(epochs=2)", [], [0.1], [0.1, 0.2], [0.1, 0.2, 0.3]) == [False, False, True, True]


def test_the_head_learns_alone_until_it_stops_gaining() -> None:
    series = [[0.1, 0.3, 0.3, 0.9, 0.95][:seen] for seen in range(6)]
    assert begun("head_until_still()", *series) == [False, False, False, True, True, True], "once thawed, for good"
    assert begun("head_until_still(patience=2)", *series) == [False] * 5 + [True]
    assert begun("head_until_still(patience=2, most=4)", *series) == [False] * 4 + [True] * 2
    errors = [[0.9, 0.7, 0.8][:seen] for seen in range(4)]
    assert begun("head_until_still()", *errors, metric="log_loss()") == [False] * 3 + [True]


def test_the_thawed_backbone_can_be_slower() -> None:
    for call in ("head_first(factor=10)", "head_until_still(factor=10)"):
        assert [group["lr"] for group in groups(call)[1]] == [0.1, 1.0]


def test_a_frozen_backbone_stays_to_the_last_bit_and_then_learns(project) -> None:
    small_tasks.write(project.root, "multiclass()")
    for run, epochs in {"frozen": 9, "thawed": 1}.items():
        words = ("stage=train", "fold=0", f"run={run}", "epochs=2", "average=swa()")
        assert project.run(*words, f"finetune=head_first(epochs={epochs})").code == 0
    fresh, frozen, thawed = (backbone_of(project, run) for run in ("", "frozen", "thawed"))
    assert all(torch.equal(fresh[name], frozen[name]) for name in fresh), "the statistics of BatchNorm, too"
    assert not any(torch.equal(fresh[name], thawed[name]) for name in fresh if name.endswith("weight"))


def backbone_of(project, run: str) -> dict[str, torch.Tensor]:
    """The backbone's weights and statistics as they begin, or after a run."""
    from pipeline.checkpoint import load_checkpoint
    from pipeline.runs import Run
    from pipeline.tasks import task_for
    from pipeline.training import fresh_network

    trained = Run(compose({"competition": "drawn"}), run or "frozen")
    if run:
        found = load_checkpoint(trained.member((0,)) / "best.ckpt")["network"]
    else:
        found = fresh_network(trained, task_for(trained.config, trained.competition), (0,)).state_dict()
    return {name: value for name, value in found.items() if name.startswith("backbone.")}
