"""stage=auto: what fits a budget is chosen from measured speeds, written down, and run."""

from __future__ import annotations

import pytest
from conftest import Project

from pipeline import pace, planning
from pipeline.config import compose, read_named
from pipeline.planning import Candidate, Pace


def paces(*seconds: float) -> list[Pace]:
    return [Pace(Candidate(f"net{place}", 64, "resnet18"), one, one / 10) for place, one in enumerate(seconds)]


def chosen(plan: planning.Plan) -> list[tuple[str, int]]:
    return [(choice.pace.candidate.backbone, choice.epochs) for choice in plan.choices]


@pytest.mark.parametrize(
    ("seconds", "nets", "pseudo"),
    [
        (40, [("net0", 7)], False),  # 5 folds · (7 · 1 + 0.1) = 35.5: not even the ten that were asked for
        (60, [("net0", 11)], False),
        (510, [("net1", 10)], False),  # the dearest with time for ten: 5 · (10 · 10 + 1) = 505
        (1010, [("net1", 20)], False),  # twice as many, before a second net
        (1060, [("net1", 20), ("net0", 10)], False),
        (3000, [("net1", 20), ("net0", 20)], True),
    ],
)
def test_the_plan_follows_its_rules(seconds: float, nets: list[tuple[str, int]], pseudo: bool) -> None:
    plan = planning.plan(paces(1.0, 10.0), seconds, folds=5, epochs=10, test_share=0.25)
    assert chosen(plan) == nets
    assert plan.pseudo == pseudo
    assert plan.seconds <= seconds
    assert len(plan.reasons) == len(nets) + pseudo


def test_a_budget_too_small_for_an_epoch_still_has_a_plan() -> None:
    plan = planning.plan(paces(100.0, 1000.0), 1.0, folds=5, epochs=10, test_share=0.1)
    assert chosen(plan) == [("net0", 1)]


def test_candidates_suit_the_images(project: Project) -> None:
    small = planning.candidates(compose({"competition": "digits"}))
    assert [str(one) for one in small][:2] == ["small_image(width=16) at 24 px", "small_image(width=32) at 24 px"]
    large = planning.candidates(compose({"competition": "digits", "pretrained": "true", "image_size": "224"}))
    assert {one.image_size for one in large} == {128, 224, 320}
    asked = compose({"competition": "digits", "auto.backbones": "resnet10t,resnet18", "auto.sizes": "32,48"})
    assert [str(one) for one in planning.candidates(asked)] == [
        f"{net} at {size} px" for size in (32, 48) for net in ("resnet10t", "resnet18")
    ]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clock's part is a table: width 2 is quick, others are not; what was measured is listed."""
    asked: list[str] = []

    def measured(run: object) -> pace.Speed:
        asked.append(run.config.backbone)  # type: ignore[attr-defined]
        return pace.Speed(10, 700.0 if "width=2" in asked[-1] else 2e5, 0.1)

    monkeypatch.setattr(pace, "measured", measured)
    return asked


AUTO = ("stage=auto", "budget=10h", "auto.backbones=small_image(width=2),small_image(width=4)", "folds.count=2",
        "epochs=1", "train.threads=1", "stack.methods=mean")  # fmt: skip


def test_the_choice_is_written_run_and_not_made_again(project: Project, speeds: list[str]) -> None:
    answer = project.run(*AUTO)
    assert answer.code == 0, answer.err
    assert "→ small_image(width=2) at 24 px" in answer.out
    layer = read_named("model", "auto_10h")
    assert (layer["backbone"], layer["image_size"], layer["epochs"]) == ("small_image(width=2)", 24, 2)
    assert (project.root / "submissions/digits/stack.csv").is_file()
    assert (project.root / "runs/digits/auto_10h/fold1/oof.npz").is_file()
    speeds.clear()
    again = project.run(*AUTO)
    assert again.code == 0
    assert speeds == []
    assert "img/s" not in again.out


def test_what_cannot_be_is_said_before_any_work(project: Project, speeds: list[str]) -> None:
    assert "needs to know how long" in project.run("stage=auto").err
    assert "leave run out" in project.run("stage=auto", "budget=10m", "run=mine").err
    (project.root / "configs/model/auto_10h.yaml").write_text("backbone: resnet18\n")
    answer = project.run(*AUTO)
    assert answer.code == 2
    assert "stage=auto did not write it" in answer.err
    assert speeds == []
    wrong = project.run("stage=auto", "budget=5m", "auto.backbones=resnet1k", "folds.count=2")
    assert wrong.code == 2
    assert "resnet1k" in wrong.err
