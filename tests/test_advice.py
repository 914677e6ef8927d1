"""The readings of a curve: each rule speaks on its clear case and names its key, and is silent on a sound one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import small_training as small

from pipeline import advice, registry
from pipeline.advice import Facts, read
from pipeline.config import convert, keys
from pipeline.errors import UserError

FACTS = Facts(lr=1e-3, epochs=20, initial=math.log(10))


def cosine(epochs: int) -> list[float]:
    return [0.5 + 0.5 * math.cos(math.pi * epoch / epochs) for epoch in range(epochs)]


def rows(losses: Sequence[float], scores: Sequence[float] = (), rates: Sequence[float] = ()) -> list[dict[str, float]]:
    """A log with these columns; the learning rate is constant unless given."""
    found = [{"epoch": epoch, "loss": float(loss), "lr": 1e-3} for epoch, loss in enumerate(losses, 1)]
    for name, values in (("score", scores), ("lr", rates)):
        for row, value in zip(found, values, strict=False):
            row[name] = float(value)
    return found


def wobble(values: Sequence[float], size: float, seed: int = 0) -> list[float]:
    """The values with noise of this deviation."""
    return list(np.asarray(values) + np.random.default_rng(seed).normal(0, size, len(values)))


def sound(epochs: int = 20) -> list[dict[str, float]]:
    """A loss that falls and levels out, a score that rises and levels out, under a cosine."""
    t = np.arange(epochs)
    return rows(0.3 + 1.7 * np.exp(-t / 3), wobble(0.9 - 0.5 * np.exp(-t / 2.5), 0.003), cosine(epochs))


def test_a_sound_training_gets_no_advice():
    assert read(sound(), FACTS) == []
    assert read([], FACTS) == []


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("size", [0.001, 0.01, 0.03])
def test_noise_alone_gets_no_advice(seed, size):
    t = np.arange(20)
    levelled = rows(0.3 + 1.7 * np.exp(-t / 3), wobble(0.9 - 0.5 * np.exp(-t), size, seed), cosine(20))
    assert [line for line in read(levelled, FACTS) if "still rising" not in line] == []


def test_noise_is_seldom_taken_for_a_rise():
    t = np.arange(20)
    logs = (rows(0.3 + np.exp(-t / 3), wobble(np.full(20, 0.9), 0.01, seed), cosine(20)) for seed in range(300))
    assert sum(bool(read(log, FACTS)) for log in logs) <= 6


LATE = [0.1 + 0.04 * epoch for epoch in range(20)]
PEAK = [0.5, 0.6, 0.7, 0.75, 0.78, 0.8, 0.8, 0.79, *(0.78 - 0.01 * epoch for epoch in range(12))]
FIRST = [0.8, 0.82, *(0.78 - 0.01 * epoch for epoch in range(18))]
FALLING = [2.0 * 0.8**epoch for epoch in range(20)]
CASES = [
    ("not finite", rows([2.3, 1.5, math.nan]), "lr=0.0001"),
    ("not finite", rows([2.3, math.inf]), "train.clip_norm=1"),
    ("rises again", rows([2.2, 1.0, 0.8, 1.4, 2.4, 2.5]), "lr=0.0001"),
    ("above knowing nothing", rows([9.0, 4.0, 3.1, 3.0, 3.0]), "lr=0.0001"),
    ("slow", rows([2.30 - 0.01 * epoch for epoch in range(20)], [0.1 + 0.005 * e for e in range(20)]), "lr=0.005"),
    ("slow under a cosine", rows(2.30 - 0.01 * np.cumsum(cosine(20)), rates=cosine(20)), "lr=0.005"),
    ("slow with a little noise", rows([2.65, 2.64, 2.62, 2.63, 2.61, 2.61, 2.60, 2.61, 2.60, 2.58]), "lr=0.005"),
    ("slow from a high start", rows([4.0 - 0.02 * epoch for epoch in range(10)]), "lr=0.005"),
    ("hardly moves", rows([2.31, 2.30, 2.31, 2.30, 2.30]), "stage=find_lr"),
    ("hardly moves far above", rows([4.31, 4.30, 4.31, 4.30, 4.30]), "stage=find_lr"),
    ("bad start", rows([9.0, 1.5, 1.2, 1.1]), "head='linear(init=zero)'"),
    ("rising at the end", rows(FALLING, wobble(LATE, 0.002)), "epochs=40"),
    ("best first", rows(FALLING, wobble(FIRST, 0.002)), "epochs=6"),
    ("over-fit", rows(FALLING, wobble(PEAK, 0.002)), "augment=light()"),
    ("under-fit", rows([2.1, 1.9, *[1.8] * 18], wobble([0.2, *[0.35] * 19], 0.002)), "image_size=352"),
]


@pytest.mark.parametrize(("name", "log", "key"), CASES, ids=[case[0] for case in CASES])
def test_each_fault_is_named_with_its_key_and_no_other(name, log, key):
    said = read(log, FACTS)
    assert len(said) == 1, said
    assert key in said[0]


@pytest.mark.parametrize(("name", "log", "key"), CASES, ids=[case[0] for case in CASES])
def test_the_key_of_each_advice_can_be_set(name, log, key):
    name, _, text = key.partition("=")
    assert name in keys()
    value = convert(name, text.strip("'"))
    if kind := keys()[name].rules["part"]:
        registry.bind(kind, value)


@pytest.mark.parametrize("case", ["rising at the end", "best first", "over-fit"])
def test_a_metric_of_which_less_is_better_is_read_the_other_way(case):
    log, key = next((log, key) for name, log, key in CASES if name == case)
    turned = [{**row, "score": -row["score"]} for row in log]
    assert key in read(turned, Facts(lr=1e-3, epochs=20, initial=math.log(10), greater=False))[0]


SILENT: dict[str, Callable[[], tuple[list[dict[str, float]], Facts]]] = {
    "a loss that declares no start": lambda: (rows([2.3 - 0.01 * e for e in range(20)]), Facts(1e-3, 20)),
    "mixed labels keep the loss high": lambda: (CASES[-1][1], Facts(1e-3, 20, initial=2.3, clean=False)),
    "a cycle raises the loss with the rate": lambda: (rows([2, 1, 0.5, 1.6], rates=[1, 0.5, 0.01, 1]), FACTS),
    "a fall too short to judge": lambda: (rows([2.3, 2.29, 2.28]), FACTS),
    "five epochs tell no noise": lambda: (rows(FALLING[:5], LATE[:5]), Facts(1e-3, 5, initial=2.3)),
    "patience ended it": lambda: (rows(FALLING[:12], LATE[:12]), FACTS),
    "no score": lambda: (rows(FALLING), FACTS),
    "a score that is not finite": lambda: (rows(FALLING, [*LATE[:-1], math.nan]), FACTS),
    "a score that falls with a loss that stands still": lambda: (rows([2.0, 1.0, *[0.8] * 18], PEAK), FACTS),
    "a loss that stands still where it is low": lambda: (rows([2.1, 1.2, *[0.8] * 18], [0.2, *[0.85] * 19]), FACTS),
    "a loss that goes up and down": lambda: (rows([2.3 - 0.02 * e + 0.12 * (e % 2) for e in range(20)]), FACTS),
    "a high start that lasts": lambda: (rows([9.0, 3.0, 2.0, 1.5]), FACTS),
    "a plateau": lambda: (rows(FALLING, [0.5] * 20), FACTS),
}


@pytest.mark.parametrize("case", SILENT)
def test_weak_evidence_is_no_evidence(case):
    log, facts = SILENT[case]()
    assert read(log, facts) == []


def test_the_noise_is_the_deviation_whatever_the_rise():
    scores = wobble(np.linspace(0, 5, 4000), 0.1)
    assert advice._scores(rows(scores, scores), FACTS)[1] == pytest.approx(0.1, rel=0.05)


def test_members_speak_together():
    assert advice.read_folds([CASES[0][1], CASES[1][1], sound()], FACTS)[0].endswith("(so 2 of 3 members)")
    assert advice.read_folds([CASES[0][1], sound(), sound()], FACTS) == []
    assert advice.read_folds([CASES[0][1]], FACTS) == read(CASES[0][1], FACTS)
    assert advice.read_folds([], FACTS) == []


def test_facts_are_the_configs(project):
    small.write(project.root)
    plain = advice.facts(small.config(), 1.1)
    assert plain == Facts(lr=3e-3, epochs=3, initial=1.1, image_size=8)
    other = advice.facts(small.config(mix="mixup()", augment="light()", metric="log_loss()"))
    assert (other.clean, other.augmented, other.greater, other.initial) == (False, True, False, None)


def test_the_log_of_a_training_can_be_read(project):
    small.write(project.root)
    assert project.run("stage=train", "fold=0").code == 0
    path = project.root / "runs/noise/tiny/fold0/log.csv"
    log = advice.log(path)
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert all({"loss", "score", "lr"} <= row.keys() for row in log)
    assert isinstance(read(log, advice.facts(small.config(), 1.1)), list)
    path.write_text("epoch,loss\n1,two\n")
    with pytest.raises(UserError, match=r"log.csv cannot be read"):
        advice.log(path)


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({}, True),
        ({"backbone": "efficientnet_b0"}, True),
        ({"backbone": "resnet18.a1_in1k(drop_path_rate=0.1)"}, True),
        ({"pretrained": True}, False),
        ({"weights": "own.pth"}, False),
        ({"image_size": 65}, False),
        ({"stem": "small()"}, False),
        ({"backbone": "small_image()"}, False),
        ({"backbone": "vit_tiny_patch16_224"}, True),
        ({"backbone": "mobilenetv3_small_050"}, True),
    ],
)
def test_small_images_from_scratch_are_pointed_to_their_model(project, changes, points):
    small.write(project.root)
    config = small.config(**{"backbone": "resnet18", "image_size": 64, **changes})
    told = advice.small_images(config)
    assert ("model=small_image" in told) == points
    assert ("stem=small()" in told) == (points and "resnet" in config.backbone), "which is for ResNets"


# --- fine-tuning ----------------------------------------------------------------------------------------------------

PHOTOGRAPHS = advice.Pictures(3, 400, 1.0, [0.48, 0.45, 0.4], [0.27, 0.26, 0.27])
DARK = advice.Pictures(3, 400, 1.0, [0.1, 0.1, 0.1], [0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("pictures", "why"),
    [
        (PHOTOGRAPHS, []),
        (advice.Pictures(3, 400, 0.9), []),
        (DARK, ["darker or brighter"]),
        (advice.Pictures(3, 400, 1.0, [0.48, 0.45, 0.4], [0.05, 0.2, 0.2]), ["of another contrast"]),
        (advice.Pictures(1, 28, 0.0, [0.1], [0.3]), ["grey", "28 px"]),
        (advice.Pictures(3, 400, 0.1), ["grey"]),
        (advice.Pictures(4, 400, 1.0), ["4 channels"]),
    ],
)
def test_what_is_unlike_a_photograph(pictures, why):
    assert pictures.unlike() == why


@pytest.mark.parametrize(
    ("rows", "pictures", "call"),
    [
        (800, PHOTOGRAPHS, "head_only()"),
        (800, DARK, "top(share=0.5)"),
        (90_000, PHOTOGRAPHS, "head_faster(factor=10)"),
        (90_000, DARK, "all_alike()"),
    ],
)
def test_size_and_likeness_name_a_finetune_that_can_be_set(rows, pictures, call):
    said = advice.finetuning(rows, pictures, "all_alike()", True)
    assert f"try finetune={call}" in said
    assert f"{rows} training rows are {'few' if rows == 800 else 'many'}" in said
    assert registry.bind("finetunes", call)
    assert advice.finetuning(rows, pictures, "all_alike()", False) == "", "random weights are not fine-tuned"


def test_check_and_new_recommend_a_finetune_and_set_none(project):
    folder = small.write(project.root)
    words = ("stage=check", "pretrained=true")
    first, again = (project.run(*words).out for _ in range(2))
    for out in (first, again):
        assert "fine-tuning: 32 training rows are few" in out
        assert "unlike photographs (grey, 8 px" in out
    assert "fine-tuning" not in project.run("stage=check", "pretrained=false").out
    new = project.run("stage=new", "name=other", f"data={folder}", "pretrained=true").out
    assert "try finetune=top(share=0.5)" in " ".join(new.split())
    assert "finetune" not in (project.root / "configs/competition/other.yaml").read_text()
