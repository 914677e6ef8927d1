"""Level 2 of maps: weights against a slow search, nested honesty, the convolutional net, what is chosen."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pipeline import blending, convolution, evaluate
from pipeline.errors import UserError
from pipeline.maps import Maps
from pipeline.tasks.segmentation import Segmentation

COUNT, SIDE = 12, 24
TASK = Segmentation("masks", SimpleNamespace(columns=["mask"], answer=None), "", "threshold()")  # type: ignore[arg-type]
FOLDS = np.arange(COUNT) % 3


class Drawn:
    """Discs, one an image."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.masks = []
        for _ in range(COUNT):
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
            centre = tuple(int(place) for place in generator.integers(7, SIDE - 7, 2))
            self.masks.append(cv2.circle(mask, centre, int(generator.integers(3, 6)), 1, -1)[None])

    def __len__(self) -> int:
        return COUNT

    def one(self, row: int) -> np.ndarray:
        return self.masks[row]


TRUTH = Drawn()


class Noisy(Maps):
    """The truth under noise of its own; scale 0 knows nothing."""

    columns = 1

    def __init__(self, seed: int, scale: float = 2.0, noise: float = 1.0) -> None:
        self.seed, self.scale, self.noise = seed, scale, noise

    def __len__(self) -> int:
        return COUNT

    def one(self, row: int) -> np.ndarray:
        noise = np.random.default_rng([self.seed, row]).normal(size=(1, SIDE, SIDE)) * self.noise
        return (1 / (1 + np.exp(-(TRUTH.one(row) * 2.0 - 1) * self.scale - noise))).astype(np.float32)


def oof(*members: Maps) -> blending.Oof:
    names = [f"run{place}" for place in range(len(members))]
    return blending.Oof(names, members, TRUTH, TASK, evaluate.metric("dice()", TASK), FOLDS, 0)


def test_two_noisy_runs_are_better_together():
    made = blending.build(oof(Noisy(1), Noisy(2)), FOLDS, ["single", "mean", "greedy"])
    scores = {way.call: way.score.value for way in made.candidates}
    assert list(scores) == ["run0", "run1", "mean", "greedy"]
    assert scores["mean"] > max(scores["run0"], scores["run1"]) + 0.01
    assert made.chosen.call == "mean", made.reason
    assert made.chosen.weights is not None
    assert made.chosen.weights.tolist() == [0.5, 0.5]


def test_a_run_that_knows_nothing_gets_no_weight():
    made = blending.build(oof(Noisy(1), Noisy(2, scale=0)), FOLDS, ["single", "greedy"])
    greedy = next(way for way in made.candidates if way.call == "greedy")
    assert greedy.weights is not None
    assert greedy.weights[1] <= 0.1
    assert made.chosen.call == "run0"


def test_greedy_is_as_good_as_every_weight_of_a_grid():
    values, target, _ = blending.draw([Noisy(1), Noisy(2, noise=2.0)], TRUTH, TASK, 0)
    weights = blending.greedy(values, target)

    def loss(share: float) -> float:
        chance = (values[:, 0] * share + values[:, 1] * (1 - share)).clip(1e-4, 1 - 1e-4)
        return float(-np.log(np.where(target > 0, chance, 1 - chance)).mean())

    assert weights.sum() == pytest.approx(1)
    assert loss(weights[0]) <= min(loss(share) for share in np.linspace(0, 1, 21)) + 2e-3


def test_a_row_is_blended_without_its_own_fold(monkeypatch):
    seen = []
    monkeypatch.setattr(blending, "greedy", lambda values, target: seen.append(len(values)) or np.array([1.0, 0.0]))
    list(blending.candidates(oof(Noisy(1), Noisy(2)), ["greedy"]))
    assert sorted(seen)[-1] > max(sorted(seen)[:-1]), "one fit on all rows, one without each fold"
    assert len(seen) == 1 + len(np.unique(FOLDS))


def test_a_run_alone_is_taken_as_it_is():
    made = blending.build(oof(Noisy(1)), FOLDS, ["mean"])
    assert made.chosen.call == "run0"
    assert made.chosen.nested.one(3) == pytest.approx(Noisy(1).one(3))


def test_the_net_begins_at_the_mean_and_learns_from_neighbours(monkeypatch):
    monkeypatch.setattr(convolution, "STEPS", 40)
    monkeypatch.setattr(convolution, "CROP", SIDE)
    members = [Noisy(1, noise=3.0), Noisy(2, noise=3.0)]
    made = list(blending.candidates(oof(*members), ["mean", "convolution"]))
    assert made[1].score.value > made[0].score.value + 0.1
    again = convolution.fit(members, TRUTH, TASK, np.arange(4), 0)
    twice = convolution.fit(members, TRUTH, TASK, np.arange(4), 0)
    assert all((a == b).all() for a, b in zip(again.state_dict().values(), twice.state_dict().values(), strict=True))
    monkeypatch.setattr(convolution, "STEPS", 0)
    plain = convolution.Convolved(
        members, [convolution.fit(members, TRUTH, TASK, np.arange(4), 0)], np.zeros(1, int), False
    )
    logits = [np.log(m.one(0) / (1 - m.one(0))).clip(-6.9, 6.9) for m in members]
    assert plain.one(0) == pytest.approx(1 / (1 + np.exp(-np.mean(logits, axis=0))), abs=1e-3)


def test_unknown_ways_are_named():
    with pytest.raises(UserError, match=r"stack.methods=ridge\(\), but maps are blended by single, mean, greedy"):
        blending.check(["ridge()"])


def test_members_are_cut_alone_and_then_vote():
    level = "threshold(level=0.7)"
    members = [Noisy(1, noise=0.0, scale=3.0), Noisy(2, noise=0.0, scale=0.0), Noisy(3, noise=0.0, scale=3.0)]
    voted = TASK.together(members, level)
    answer = TASK.decide(voted).one(0)
    assert (answer == TRUTH.one(0)).all(), "two of three see it"
    averaged = np.mean([member.one(0) for member in members], axis=0)
    inside = TRUTH.one(0) > 0
    assert averaged[inside].max() < 0.85, "an average is flatter than each of the two"
    gate = "threshold(gate=0.9)"
    assert (TASK.decide(TASK.together(members, gate)).one(0) == TRUTH.one(0)).all()
    assert not (averaged >= 0.9).any(), "so that a gate chosen on single members would empty the average"


def test_objects_have_no_vote():
    task = Segmentation("objects", SimpleNamespace(columns=["mask"], answer=None), "", "watershed()")  # type: ignore[arg-type]
    assert task.together([Noisy(1), Noisy(2)], "components()").cut == "components()"
