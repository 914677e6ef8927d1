"""level=: a decoder with deep supervision predicts from the smallest of its levels that is as good as the best."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import small_masks

from pipeline import artefacts, checkpoint, levels, network, prediction
from pipeline.config import compose
from pipeline.errors import UserError
from pipeline.evaluate import MapMetric
from pipeline.levels import Level

DEEP = "decoder=unet_plus_plus(widths=[8,8,8,8],deep=true)"


@pytest.fixture
def trained(project):
    small_masks.write(project.root, rows=8)
    ended = project.run("stage=train", DEEP)
    assert ended.code == 0, ended.err
    return project.root / "runs/squares/tiny"


def test_the_level_is_chosen_once_recorded_and_used_for_all_members(trained, project):
    ended = project.run("stage=predict", DEEP, "level=auto")
    assert ended.code == 0, ended.err
    record = json.loads((trained / "levels.json").read_text())
    table = record["levels"]
    assert record["nested"].endswith(" nested")
    honest = f"chosen by OOF score against operations; {record['nested']}, each fold at the others' choice"
    assert honest in ended.out
    assert [level["number"] for level in table] == list(range(1, len(table) + 1))
    for less, more in itertools.pairwise(table):
        assert less["parameters"] < more["parameters"]
        assert 0 < less["operations"] < more["operations"]
    best = max(level["score"] for level in table)
    assert all(level["below"] == pytest.approx(best - level["score"], abs=1e-9) for level in table)
    assert (trained / "oof_masks.png").read_bytes().startswith(b"\x89PNG")
    for fold in range(2):
        for name in ("oof.npz", "test.npz"):
            made_by = artefacts.Predictions.load(trained / f"fold{fold}" / name).made_by
            assert made_by["level"] == str(record["chosen"])

    by_number = {}
    for level in table:
        ended = project.run("stage=predict", DEEP, f"level={level['number']}")
        assert ended.code == 0, ended.err
        by_number[level["number"]] = (trained / "fold0/oof.maps").read_bytes()
        assert f"dice() {level['score']:.4f}" in ended.out, "the table's scores are those of the predictions"
    assert len(set(by_number.values())) == len(table)
    assert project.run("stage=predict", DEEP).code == 0
    assert (trained / "fold0/oof.maps").read_bytes() == by_number[len(table)], "the last level predicts by default"

    again = project.run("stage=predict", DEEP, "level=auto")
    assert again.code == 0
    assert "  level  parameters" not in again.out, "what was chosen stays chosen"
    assert honest in again.out
    assert (trained / "fold0/oof.maps").read_bytes() == by_number[record["chosen"]]
    assert "the decoder has 1, 2" in project.run("stage=predict", DEEP, "level=9").err


def test_a_pruned_network_gives_what_its_level_gave(trained):
    import torch

    content = checkpoint.load_checkpoint(trained / "fold0/best.ckpt")
    whole = network.from_checkpoint(content)
    images = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8)
    with torch.no_grad():
        planes = whole.segmenter.answers(whole.prepare(images)).planes
        for level, wanted in zip(whole.levels, planes, strict=True):
            pruned = network.from_checkpoint(content, level)
            assert pruned.levels == [level]
            torch.testing.assert_close(pruned(images), wanted)


def test_a_choice_needs_all_folds(project):
    small_masks.write(project.root, rows=8)
    assert project.run("stage=train", DEEP, "fold=0").code == 0
    ended = project.run("stage=predict", DEEP, "fold=0", "level=auto")
    assert ended.code == 2
    assert "fold1 is not trained to the end" in ended.err
    assert not (project.root / "runs/squares/tiny/fold0/test.npz").exists()
    trained = project.root / "runs/squares/tiny/fold0"
    with pytest.raises(UserError, match="stage=predict fold=all"):
        prediction.level_of(compose({"level": "auto", "decoder": DEEP[8:]}), trained, DEEP[8:])
    assert prediction.level_of(compose({"level": "auto", "decoder": DEEP[8:]}), trained, "unet()") == 0


def test_a_run_knows_its_decoder(project):
    small_masks.write(project.root, rows=4)
    assert project.run("stage=train", "run=plain").code == 0
    ended = project.run("stage=predict", "run=plain", "level=auto")
    assert ended.code == 2
    assert "deep=true" in ended.err


def row(number: int, below: float, se: float) -> Level:
    return Level(number, number, number, 1 - below, below, se)


@pytest.mark.parametrize(("below", "chosen"), [
    ([0.3, 0.05, 0.0], 2), ([0.0, 0.0, 0.0], 1), ([0.09, 0.2, 0.0], 1), ([0.3, 0.2, 0.0], 3), ([0.3, 0.0, 0.05], 2),
])  # fmt: skip
def test_the_smallest_level_within_an_error_of_the_best_is_taken(below: list[float], chosen: int) -> None:
    table = [row(number, one, 0.1 if one else 0.0) for number, one in enumerate(below, 1)]
    assert levels.smallest(table) == chosen


def test_errors_are_paired() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(200)[:, None]  # images differ far more than levels do
    added = {1: base - 0.01 + generator.normal(0, 0.001, base.shape), 2: base}
    metric = MapMetric("dice()", lambda: None, True, "decision", None, True)  # type: ignore[arg-type]
    first, second = levels.compare(metric, added, {1: (1, 1), 2: (2, 2)})
    assert first.below == pytest.approx(0.01, abs=0.001)
    assert first.se < 0.001
    assert (second.below, levels.smallest([first, second])) == (0.0, 2)


def test_the_nested_score_takes_each_fold_at_the_level_of_the_others() -> None:
    folds = np.repeat([0, 1, 2], 40)
    generator = np.random.default_rng(0)
    base = generator.random((120, 1))
    added = {1: base - 0.2 + generator.normal(0, 0.01, base.shape), 2: base}
    added[1][folds == 0] += 0.5  # fold 0 likes the small level, the others do not
    metric = MapMetric("dice()", lambda: None, True, "decision", None, True)  # type: ignore[arg-type]
    costs = {1: (1, 1), 2: (2, 2)}
    whole = levels.smallest(levels.compare(metric, added, costs))
    chosen = {}
    for fold in range(3):
        known = {number: own[folds != fold] for number, own in added.items()}
        chosen[fold] = levels.smallest(levels.compare(metric, known, costs))
    assert chosen[0] == 2, "without fold 0 the large one"
    found = levels.nested(metric, added, costs, folds)
    assert found.kind == "nested"
    wanted = np.concatenate([added[chosen[fold]][folds == fold] for fold in range(3)])
    assert found.value == pytest.approx(wanted.mean())
    assert found.value < added[whole].mean() or whole == 2


def test_an_error_that_nobody_knows_is_no_reason_to_prune() -> None:
    assert levels.smallest([row(1, 0.2, float("nan")), row(2, 0.0, 0.0)]) == 2


@pytest.mark.parametrize(("words", "told"), [
    ({"level": "auto"}, "deep=true"), ({"level": "2", "decoder": "unet_plus_plus()"}, "deep=true"),
    ({"level": "first", "decoder": DEEP[8:]}, "last, auto or a number"), ({"level": "0"}, "last, auto or a number"),
])  # fmt: skip
def test_a_level_of_a_decoder_without_levels_is_refused(project, words: dict[str, str], told: str) -> None:
    small_masks.write(project.root, rows=4)
    with pytest.raises(UserError, match=told):
        compose(words)
