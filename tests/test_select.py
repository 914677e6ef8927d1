"""stage=select: criteria and k-centre against slow references, every form, what is written, reuse, refusals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import small_competition as drawn
import small_masks
import small_tasks
import small_training as small

from pipeline import active, embed
from pipeline import config as configs
from pipeline.active import Opinions, Space
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.folds import ensure_folds
from pipeline.forms import CLASS_MASKS, CLASSES, LABELS, MASKS, NUMBERS
from pipeline.runs import Run
from pipeline.stages import predict, select, train
from pipeline.tasks import task_for

# --- criteria -----------------------------------------------------------------------------------------------------


def slow_entropy(row: list[float], simplex: bool) -> float:
    if simplex:
        return -sum(p * math.log(p) for p in row if p > 0)
    each = [-(p * math.log(p) if p else 0) - ((1 - p) * math.log(1 - p) if p < 1 else 0) for p in row]
    return sum(each) / len(each)


def slow_criteria(form, opinions: list[list[float]]) -> dict[str, float]:
    """Of one image; opinions: a row of probabilities each."""
    mean = [sum(column) / len(opinions) for column in zip(*opinions, strict=True)]
    whole = slow_entropy(mean, form.simplex)
    if form.simplex:
        best, second, *_ = sorted(mean, reverse=True)
        margin = 1 - (best - second)
    else:
        margin = max(1 - abs(2 * p - 1) for p in mean)
    inner = sum(slow_entropy(one, form.simplex) for one in opinions) / len(opinions)
    return {"entropy": whole, "margin": margin, "disagreement": max(whole - inner, 0)}


def opinions_of(form, count: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).random((count, rows, columns)).astype(np.float32) ** 3
    raw[0, 0], raw[1, 0] = np.eye(columns)[0], np.eye(columns)[1]  # they could not be surer, nor farther apart
    return form.finish(raw.reshape(-1, columns)).reshape(raw.shape)


@pytest.mark.parametrize("form", [CLASSES, LABELS])
def test_criteria_of_probabilities_are_the_slow_ones(form):
    each, found = opinions_of(form, 3, 20, 4), Opinions(form)
    for one in each:
        found.add(one)
    criteria = found.criteria()
    for row in range(20):
        slow = slow_criteria(form, each[:, row].astype(float).tolist())
        for name, value in slow.items():
            assert criteria[name][row] == pytest.approx(value, abs=1e-6), name
    assert criteria["disagreement"].argmax() == 0
    np.testing.assert_allclose(found.mean, each.mean(axis=0), atol=1e-7)


def test_numbers_are_disputed_by_their_deviation_in_units_of_the_predictions():
    each = np.random.default_rng(1).normal(size=(4, 30, 2)) * [1, 1000]
    found = Opinions(NUMBERS)
    for one in each:
        found.add(one)
    spread = each.std(axis=0) / each.mean(axis=0).std(axis=0)
    np.testing.assert_allclose(found.criteria()["disagreement"], spread.mean(axis=1), rtol=1e-6)
    assert set(found.criteria()) == {"disagreement"}


def test_one_opinion_disputes_nothing():
    found = Opinions(CLASSES)
    found.add(opinions_of(CLASSES, 2, 5, 3)[0])
    assert set(found.criteria()) == {"entropy", "margin"}


class Drawn:
    """Maps of images of several sizes, in bands of three rows."""

    def __init__(self, form, seed: int) -> None:
        generator = np.random.default_rng(seed)
        shapes = [(2, 7, 5), (2, 3, 4), (2, 10, 2)]
        self.maps = [generator.random(shape) for shape in shapes]
        if form.simplex:
            self.maps = [one / one.sum(axis=0) for one in self.maps]

    def bands(self, row):
        yield from (self.maps[row][:, top : top + 3] for top in range(0, self.maps[row].shape[1], 3))


@pytest.mark.parametrize("form", [MASKS, CLASS_MASKS])
def test_maps_are_the_mean_over_their_pixels(form):
    members = [Drawn(form, seed) for seed in range(3)]
    found = active.of_maps(form, members, [2, 0])
    for place, row in enumerate([2, 0]):
        pixels = [member.maps[row].reshape(2, -1).T.tolist() for member in members]
        slow = [slow_criteria(form, list(each)) for each in zip(*pixels, strict=True)]
        for name in ("entropy", "margin", "disagreement"):
            assert found[name][place] == pytest.approx(np.mean([one[name] for one in slow]), abs=1e-6), name


# --- choosing -----------------------------------------------------------------------------------------------------


def unit(rows: int, seed: int, width: int = 5) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def slow_centres(points: list, labelled: list, count: int) -> list[int]:
    """Sener & Savarese 2018, algorithm 1, in plain Python."""
    centres, chosen = list(labelled), []
    for _ in range(count):
        far = [min(math.dist(one, other) for other in centres) for one in points]
        best = max(range(len(points)), key=lambda place: far[place])
        chosen.append(best)
        centres.append(points[best])
    return chosen


def test_diversity_alone_is_greedy_k_centre(monkeypatch):
    monkeypatch.setattr(active, "BLOCK", 7)
    points, labelled = unit(40, 0), unit(9, 1)
    near = active.nearest(points, [labelled[:4], labelled[4:]])
    slow = [min(math.dist(one, other) for other in labelled.tolist()) for one in points.tolist()]
    np.testing.assert_allclose(near, slow, atol=1e-3)
    chosen = active.choose(np.zeros(40), 12, Space(points, near), 1.0)
    assert chosen.rows.tolist() == slow_centres(points.tolist(), labelled.tolist(), 12)
    assert (np.diff(chosen.near) <= 1e-6).all(), "each is at most as far as the one before"


def test_doubt_and_distance_mix_by_their_weights():
    points = np.repeat(unit(3, 0), 2, axis=0)  # three places, two images at each
    near = np.array([1.0, 1.0, 0.5, 0.5, 0.1, 0.1], dtype=np.float32)
    doubts = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert active.choose(doubts, 6).rows.tolist() == [5, 4, 3, 2, 1, 0]
    both = active.choose(doubts, 6, Space(points, near), 1.0)
    assert both.rows[0] == 1
    assert both.scores[0] == pytest.approx(1.1)
    assert both.rows.tolist().index(0) > 2, "its twin is chosen, so that it teaches little"
    assert sorted(both.rows.tolist()) == list(range(6))
    equal = active.doubt({"margin": np.array([1.0, 9.0, 2.0]), "entropy": np.array([5.0, 5.0, 0.0])},
                         {"margin": 0.5, "entropy": 0.25, "diversity": 0.25}, 3)  # fmt: skip
    np.testing.assert_allclose(equal, [0.25 * 0.75, 0.5 + 0.25 * 0.75, 0.25])


# --- the stage ----------------------------------------------------------------------------------------------------


def trained(root, **changes):
    small.write(root)
    small._yaml(root / "configs/competition/noise.yaml", (root / "configs/competition/noise.yaml").read_text().replace(
        "channels: 1", "channels: 1, unlabelled: more"))  # fmt: skip
    generator = np.random.default_rng(5)
    for row in range(6):
        small._picture(root / f"data/noise/more/u{row}.png", generator, row % 3)
    (root / "data/noise/more/u6.png").write_bytes(b"no picture")
    asked = small.config(active__count=5, epochs=1, **changes)
    ensure_folds(asked, load(asked))
    train.run(asked)
    predict.run(asked)
    return asked


def table_of(asked, run="tiny"):
    return pd.read_csv(Run(asked, run).folder / "select.csv", dtype={"id": str})


def test_a_ranking_of_test_and_unlabelled_images(project):
    asked = trained(project.root)
    answer = project.run("stage=select", "active.count=20", "competition=noise")
    assert answer.code == 0, answer.err
    assert "14 of 8 test images and 7 unlabelled images" in answer.out
    table = table_of(asked)
    assert list(table) == ["id", "file", "rank", "pool", "score", "entropy", "margin", "disagreement", "diversity",
                           "predicted", "probability"]  # fmt: skip
    assert len(table) == 14, "one image cannot be read"
    assert table["rank"].tolist() == list(range(1, 15))
    assert "none of this is a score" in answer.out
    page = (Run(asked, "tiny").folder / "select.html").read_text()
    assert page.count("data:image/png;base64,") == 14
    assert '"columns": ["label"]' in page
    assert "8 of them are test images: many competitions forbid" in answer.err
    tests = Run(asked, "tiny").tests()
    slow = {name: slow_criteria(CLASSES, [one.values[row].astype(float).tolist() for one in tests])
            for row, name in enumerate(tests[0].ids)}  # fmt: skip
    for row in table[table["pool"] == "test"].to_dict("records"):
        assert [row[name] for name in slow[row["id"]]] == pytest.approx(list(slow[row["id"]].values()), abs=1e-5)
        mean = np.mean([one.values[list(one.ids).index(row["id"])] for one in tests], axis=0)
        assert row["predicted"] == "abc"[mean.argmax()]
        assert row["probability"] == pytest.approx(mean.max(), abs=1e-5)
    before = (Run(asked, "tiny").folder / "select.csv").read_bytes()
    [again] = select.run(small.config(active__count=20))
    assert again.reused
    select.run(small.config(active__count=9, active__page=4))
    pages = sorted(path.name for path in Run(asked, "tiny").folder.glob("*.html"))
    assert pages == ["select-2.html", "select-3.html", "select.html"]
    select.run(small.config(active__count=20, active__page=0))
    assert not list(Run(asked, "tiny").folder.glob("*.html"))
    (Run(asked, "tiny").folder / "select.json").unlink()
    assert not select.run(small.config(active__count=20))[0].reused
    assert (Run(asked, "tiny").folder / "select.csv").read_bytes() == before
    views = small.config(active__count=4, active__views=True, active__criteria=["disagreement"], fold=["0"],
                         views=["identity()", "shift(x=1,y=0)"], active__pool="unlabelled")  # fmt: skip
    select.run(views)
    assert set(table_of(asked)["pool"]) == {"unlabelled"}
    assert (table_of(asked)["disagreement"] > 0).any(), "one member, whose views differ"
    known = Run(asked, "tiny").member((0,)) / "seen.json"
    (Run(asked, "tiny").folder / "select.json").unlink()
    stamp = known.stat().st_mtime_ns
    select.run(views)
    assert known.stat().st_mtime_ns == stamp, "what a member said is kept: a killed ranking goes on"


def test_masks_and_their_encoder(project):
    small_masks.write(project.root, rows=8, tests=5)
    asked = configs.compose({"competition": "squares", "active.count": "3"})
    ensure_folds(asked, load(asked))
    train.run(asked)
    predict.run(asked)
    project.capsys.readouterr()
    select.run(asked)
    assert "no page asks for labels of task=segmentation()" in project.capsys.readouterr().out
    table = table_of(asked, artefact_name(asked))
    assert len(table) == 3
    assert {"entropy", "margin", "disagreement", "diversity"} <= set(table)
    assert "predicted" not in table


def artefact_name(asked):
    from pipeline.artefacts import run_name

    return run_name(asked)


def adopted(root, name: str, values_of) -> configs.Config:
    """A run without networks, whose two members answer test rows as values_of(fold, rows, columns) says."""
    small_tasks.write(root, name)
    asked = configs.compose({"competition": "drawn", "run": "foreign"})
    competition = load(asked)
    ensure_folds(asked, competition)
    task = task_for(asked, competition)
    for fold in range(2):
        values = values_of(fold, len(competition.test), len(task.columns))
        path = Run(asked, "foreign").member((fold,)) / "test.npz"
        Predictions(competition.test["id"].to_numpy(), values, task.space).save(path)
    return asked


@pytest.mark.parametrize("name", ["multilabel", "regression", "circular(period=24)", "ordinal", "binary"])
def test_other_tasks_without_networks(project, name):
    def values(fold: int, rows: int, columns: int) -> np.ndarray:
        raw = np.random.default_rng(fold).random((rows, columns))
        return raw if name == "multilabel" else raw / raw.sum(axis=1, keepdims=True)

    asked = adopted(project.root, name, values)
    answer = project.run("stage=select", "run=foreign", "competition=drawn", "active.count=4")
    assert answer.code == 0, answer.err
    assert "without diversity: run=foreign has no network" in answer.out
    table = table_of(asked, "foreign")
    assert len(table) == 4
    bounded = name in ("multilabel", "ordinal", "binary")
    assert ("entropy" in table, "disagreement" in table, "diversity" in table) == (bounded, True, False)
    assert table["probability"].notna().all() == bounded
    if not bounded:
        wrong = project.run("stage=select", "run=foreign", "competition=drawn", "active.criteria=entropy")
        assert wrong.code == 2
        assert "entropy means nothing for task=" in wrong.err
        assert "it has disagreement, diversity" in wrong.err


def test_embeddings_are_chosen_by_diversity_alone(project):
    small_tasks.write_retrieval(project.root, epochs="1")
    asked = configs.compose({"competition": "drawn", "active.count": "4"})
    ensure_folds(asked, load(asked))
    train.run(asked)
    select.run(asked)
    assert [name for name in active.CRITERIA if name in table_of(asked)] == ["diversity"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["active.criteria=margin,margin"], "names a criterion twice"),
        (["active.criteria=margin", "active.weights=1,2"], "give each a weight"),
        (["active.criteria=margin", "active.weights=0"], "one of them above 0"),
        (["active.criteria=magrin"], "did you mean margin"),
        (["active.criteria=diversity"], "diversity cannot be had: run=foreign has no network"),
        (["active.criteria=disagreement", "fold=0"], "disagreement cannot be had: one member"),
        (["active.pool=unlabelled"], "no image without a label is left: data.unlabelled is empty"),
        (["active.views=true"], "has no network that could predict 4 test images"),
    ],
)
def test_what_cannot_be_done(project, words, says):
    drawn.write(project.root)
    asked = drawn.config()
    ensure_folds(asked, load(asked))
    drawn.predict(asked, "foreign", np.eye(3, dtype=np.float32)[[0, 1, 2, 0]])
    answer = project.run("stage=select", "run=foreign", "competition=whales", *words)
    assert answer.code == 2, answer.out
    assert says in answer.err


def test_embed_of_planes_is_the_encoders_mean(project):
    from pipeline.hardware import Hardware
    from pipeline.prediction import open_member
    from pipeline.stores import test_store

    small_masks.write(project.root, rows=8, tests=3)
    asked = configs.compose({"competition": "squares"})
    ensure_folds(asked, load(asked))
    train.run(configs.replace(asked, fold=["0"]))
    run = Run(Run(asked, artefact_name(asked)).as_trained(), artefact_name(asked))
    machine = Hardware(**run.stored()["hardware"])
    member = open_member(run.member((0,)), run.config, run.competition, task_for(run.config, run.competition), machine)
    points = embed.embed(member.networks[0], test_store(run.config, run.competition, 16), np.arange(3), 2)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
