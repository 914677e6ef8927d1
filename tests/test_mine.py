"""stage=mine: what is hard against slow references, the tables and the sheet, and trainings that learn from them."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import small_competition as drawn
import small_tasks

from pipeline import config as configs
from pipeline import mining
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.data import Loader
from pipeline.errors import UserError
from pipeline.forms import EMBEDDING, EMBEDDINGS
from pipeline.runs import Run
from pipeline.stages import mine
from pipeline.tasks import task_for
from pipeline.tasks.multiclass import Multiclass
from pipeline.tasks.multilabel import Multilabel


def slow_weights(losses: list[float], folds: list[int], power: float, most: float) -> list[float]:
    found = []
    for loss, fold in zip(losses, folds, strict=True):
        own = [x for x, other in zip(losses, folds, strict=True) if other == fold and x == x]
        mean = sum(own) / len(own) if own else 0
        if loss != loss or mean == 0:
            found.append(1.0)
            continue
        raised = [min(1 + (x / mean) ** power, most) for x in own]
        found.append(min(1 + (loss / mean) ** power, most) / (sum(raised) / len(raised)))
    return found


@pytest.mark.parametrize(("power", "most"), [(1.0, 4.0), (0.5, 2.0), (3.0, 10.0), (0.0, 4.0), (1.0, 1.0)])
def test_weights_grow_with_the_loss_within_bounds_each_fold_by_itself(power, most):
    generator = np.random.default_rng(0)
    losses, folds = generator.exponential(size=60), np.arange(60) % 4
    losses[folds == 3] = 0
    losses[[0, 9]] = np.nan
    found = mining.weights(losses, folds, power, most)
    np.testing.assert_allclose(found, slow_weights(losses.tolist(), folds.tolist(), power, most))
    for fold in range(4):
        own = np.flatnonzero((folds == fold) & ~np.isnan(losses))
        assert found[own].mean() == pytest.approx(1)
        assert found[own].max() <= most * found[own].min() * (1 + 1e-9)
        assert (np.diff(found[own[np.argsort(losses[own])]]) >= 0).all()
    other = losses.copy()
    other[folds == 1] *= generator.uniform(1, 9, 15)
    moved = mining.weights(other, folds, power, most)
    np.testing.assert_array_equal(moved[folds != 1], found[folds != 1], "law 1: no fold moves another's weights")


# --- forms --------------------------------------------------------------------------------------------------------


def mined(task, truth, values):
    ids = np.array([f"i{row}" for row in range(len(values))])
    return mining.mine(task, truth, np.asarray(values, dtype=np.float32), ids, configs.Config().mine)


def test_classes_by_hand():
    task = Multiclass("abc")
    values = [[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.2, 0.2, 0.6]]
    found = mined(task, np.array([0, 1, 1, 1, 2]), values)
    assert found.hardest.tolist() == [3, 1, 0, 4, 2]
    np.testing.assert_allclose(found.losses, -np.log([0.6, 0.2, 0.8, 0.1, 0.6]), rtol=1e-5)
    assert found.rows["taken_for"].tolist() == list("aabac")
    assert found.rows["rival"].tolist() == list("baaaa")
    np.testing.assert_allclose(found.rows["rival_score"], [0.3, 0.7, 0.1, 0.5, 0.2], rtol=1e-6)
    assert found.wrong.tolist() == [False, True, False, True, False]
    [pair] = found.pairs.to_dict("records")
    near = pytest.approx
    assert list(pair.values()) == ["b", "a", 2, near(2 / 3), near(0.6), "i3"]
    assert list(pair) == ["label", "taken_for", "count", "share", "score", "id"]
    assert found.told == ["b taken for a: 2 (66.7%), such as i3"]
    assert [place for place, _ in found.beside(3)] == [3, 0, 2]
    assert found.beside(4) == [(4, "c: 0.60, a: 0.20"), (0, "a: 0.60"), (mining.NONE, "c: no other")]


def test_labels_name_false_positives_and_negatives():
    task = Multilabel(["x", "y", "z"], ["x", "y", "z"])
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=np.float32)
    values = [[0.9, 0.2, 0.7], [0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.9, 0.4, 0.8], [0.1, 0.3, 0.9]]
    found = mined(task, truth, values)
    assert found.rows["label"].tolist() == ["x, y", "x", "", "x, y, z", "y"]
    assert found.rows["taken_for"].tolist() == ["x, z", "x", "y", "x, z", "z"]
    assert found.rows["rival"].tolist() == ["z", "y", "y", "", "z"], "the likeliest that is not there"
    assert found.rows["score"][2] != found.rows["score"][2], "nothing is there to be scored"
    assert found.wrong.tolist() == [True, False, True, True, True]
    pairs = [(*one[:3], round(one[3], 6), round(one[4], 6), one[5]) for one in found.pairs.itertuples(index=False)]
    assert pairs == [
        ("y", "z", 2, round(2 / 3, 6), 0.8, "i4"),
        ("", "y", 1, 0.5, 0.6, "i2"),
        ("y", "", 1, round(1 / 3, 6), 0.4, "i3"),
    ]
    assert found.told[1] == "nothing taken for y: 1 (50.0%), such as i2"
    assert [place for place, _ in found.beside(3)] == [3, mining.NONE, 0 if values[0][1] > values[4][1] else 4]


def slow_confusions(truth, said):
    counts: dict[tuple[str, str], int] = {}
    for has, says in zip(truth, said, strict=True):
        missed = [name for name, a, b in zip("abcd", has, says, strict=True) if a and not b]
        extra = [name for name, a, b in zip("abcd", has, says, strict=True) if b and not a]
        if missed or extra:
            for one in missed or [""]:
                for other in extra or [""]:
                    counts[one, other] = counts.get((one, other), 0) + 1
    return counts


def test_confusions_of_random_labels_are_the_slow_ones():
    generator = np.random.default_rng(1)
    truth, values = generator.integers(2, size=(80, 4)).astype(np.float32), generator.random((80, 4))
    found = mined(Multilabel(list("abcd"), list("abcd")), truth, values).pairs
    counts = {(one.label, one.taken_for): one[3] for one in found.itertuples()}
    assert counts == slow_confusions(truth, values > 0.5)
    assert (np.diff(found["count"]) <= 0).all()


def slow_near(truth, values, row):
    """Of one row: its list without junk, as (cosine, row, right); nearest first, of equals the first."""
    identity, pool, camera = truth[row]
    listed = []
    for other, (name, where, seen) in enumerate(truth.tolist()):
        if other == row or where != pool or (name == identity and seen == camera >= 0):
            continue
        listed.append((float(values[row] @ values[other]), other, name == identity))
    return sorted(listed, key=lambda one: (-one[0], one[1]))


@pytest.mark.parametrize("cameras", [False, True])
def test_embeddings_against_a_slow_search(cameras):
    generator = np.random.default_rng(3)
    truth = np.stack([generator.integers(6, size=50), np.arange(50) % 3, generator.integers(2, size=50)], axis=1)
    truth[:, 2] = truth[:, 2] if cameras else -1
    truth[truth[:, 0] == 5, 1] = np.arange((truth[:, 0] == 5).sum()) + 3  # alone in a pool of their own
    values = generator.integers(-2, 3, size=(50, 4)).astype(np.float32)  # whole: many are equally near, to the last bit
    task = SimpleNamespace(form=EMBEDDINGS, columns=list("abcdef"))
    found = mined(task, truth, values)
    listed = [slow_near(truth, values, row) for row in range(50)]
    pairs = set()
    for row, near in enumerate(listed):
        own, others = [one for one in near if one[2]], [one for one in near if not one[2]]
        told = found.rows.iloc[row]
        assert told["label"] == "abcdef"[truth[row, 0]]
        assert told["neighbour"] == (f"i{others[0][1]}" if others else "")
        assert told["taken_for"] == ("abcdef"[truth[others[0][1], 0]] if others else "")
        assert told["own"] == (f"i{own[0][1]}" if own else "")
        pairs |= {tuple(sorted((row, one[1]))) for one in others[:3]}
        if not own:
            assert np.isnan(found.losses[row])
            assert pd.isna(told["rank"])
            assert found.beside(row)[2] == (mining.NONE, "")
            continue
        assert told["rank"] == near.index(own[0]) + 1
        assert told["farthest_cosine"] == pytest.approx(own[-1][0], abs=1e-6)
        assert found.losses[row] == pytest.approx(max(0, 0.1 + others[0][0] - own[0][0]), abs=1e-6)
        assert found.wrong[row] == (told["rank"] > 1)
        assert [place for place, _ in found.beside(row)[:3]] == [row, others[0][1], own[0][1]]
    apart = found.pairs[found.pairs["kind"] == "other"]
    assert {tuple(sorted(int(name[1:]) for name in pair)) for pair in apart[["id", "neighbour"]].to_numpy()} == pairs
    assert len(apart) == len(pairs), "each once"
    assert (np.diff(apart["cosine"]) <= 0).all()
    same = found.pairs[found.pairs["kind"] == "same"]
    assert (same["label"] == same["taken_for"]).all()
    assert (np.diff(same["cosine"]) >= 0).all()
    weights = mining.weights(found.losses, truth[:, 1], 1.0, 4.0)
    assert (weights[truth[:, 0] == 5] == 1).all(), "nothing is known of them"


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def predicted(project):
    """Whales: 12 rows in 2 folds, and the run ``mate``, whose OOF is right for two of three rows."""
    drawn.write(project.root)
    assert project.run("stage=split").code == 0
    asked = drawn.config(run="mate")
    drawn.predict(asked, "mate", np.full((4, 3), 1 / 3, dtype=np.float32), right=0.67)
    return asked


def table(asked, name=mine.TABLE) -> pd.DataFrame:
    return pd.read_csv(Run(asked, "mate").folder / name, dtype={"id": str}, keep_default_na=False)


def test_tables_sheet_and_reuse(project, predicted):
    ended = project.run("stage=mine", "run=mate", "mine.pictures=3")
    assert ended.code == 0, ended.err
    assert "4 of 12 rows wrong" in ended.out
    assert "train.hard=runs/whales/mate/mined.csv" in ended.out
    assert "second-order leak" in ended.out
    found, run = table(predicted), Run(predicted, "mate")
    assert found.columns.tolist() == [
        "id", "fold", "label", "taken_for", "score", "rival", "rival_score", "wrong", "loss", "weight",
    ]  # fmt: skip
    assert found["wrong"].tolist() == [1] * 4 + [0] * 8
    ids = run.competition.train["id"].to_numpy()
    assert dict(zip(ids, run.folds, strict=True)) == dict(zip(found["id"], found["fold"], strict=True))
    assert (found["label"] != found["taken_for"]).tolist() == [True] * 4 + [False] * 8
    expected = slow_weights(found["loss"].tolist(), found["fold"].tolist(), 1.0, 4.0)
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-5)
    assert table(predicted, mine.PAIRS)["count"].sum() == 4
    picture = cv2.imread(str(run.folder / mine.SHEET))
    assert picture.shape[0] > 3 * 112
    assert picture.std() > 10
    files = [run.folder / name for name in (mine.TABLE, mine.PAIRS, mine.SHEET)]
    before = [path.stat().st_mtime_ns for path in files]
    again = predicted_again(predicted, mine__pictures=3)
    assert again.reused
    assert again.note.startswith("4 of 12 rows wrong")
    assert [path.stat().st_mtime_ns for path in files] == before
    files[1].unlink()
    assert not predicted_again(predicted, mine__pictures=3).reused
    assert not predicted_again(predicted, mine__pictures=3, mine__most=2.0).reused
    drawn.predict(predicted, "mate", np.full((4, 3), 1 / 3, dtype=np.float32), right=0.34)
    assert not predicted_again(predicted, mine__pictures=3, mine__most=2.0).reused


def predicted_again(asked, **changes):
    [outcome] = mine.run(configs.replace(asked, **changes))
    return outcome


@pytest.mark.parametrize("name", ["ordinal", "regression", "circular(period=24)"])
def test_every_task_has_hard_rows(project, name):
    """OOF by hand: the truth, but for one row that is as wrong as can be."""
    small_tasks.write(project.root, name)
    assert project.run("stage=split").code == 0
    asked = configs.compose({"competition": "drawn", "run": "mate"})
    run, task = Run(asked, "mate"), task_for(asked, load(asked))
    values = 0.9 * task.soft(run.truth(task)) + 0.05
    values[7] = values[40]
    give(run, values, task.space)
    ended = project.run("stage=mine", "run=mate")
    assert ended.code == 0, ended.err
    found = table(asked)
    assert found["id"][0] == run.competition.train["id"].iloc[7]
    assert found["label"][0] != found["taken_for"][0]
    assert found["weight"][0] == found["weight"].max() > 1
    assert (run.folder / mine.SHEET).stat().st_size > 1000


def give(run: Run, values: np.ndarray, space: str) -> None:
    """OOF of all rows, as stage=predict would leave it."""
    for fold in range(run.count):
        rows = np.flatnonzero(run.folds == fold)
        ids = run.competition.train["id"].to_numpy()[rows]
        Predictions(ids, values[rows], space).save(run.member((fold,)) / "oof.npz")


def test_an_open_set_has_pairs_that_lie_too_near(project):
    """Embeddings by hand: each identity a direction of its own, but for one row that lies where another does."""
    small_tasks.write_retrieval(project.root)
    assert project.run("stage=split").code == 0
    asked = configs.compose({"competition": "drawn", "model": "tiny", "run": "mate"})
    run = Run(asked, "mate")
    identity = task_for(asked, run.competition).taught(run.competition.targets)
    stray = 7
    [other, *_] = np.flatnonzero((run.folds == run.folds[stray]) & (identity != identity[stray]))
    values = np.eye(6, dtype=np.float32)[identity]
    values[stray] = values[other]
    give(run, values, EMBEDDING)
    ended = project.run("stage=mine", "run=mate")
    assert ended.code == 0, ended.err
    found, pairs, ids = table(asked), table(asked, mine.PAIRS), run.competition.train["id"].to_numpy()
    assert found[["id", "neighbour", "cosine", "wrong"]].iloc[0].tolist() == [ids[stray], ids[other], 1, 1]
    assert found["weight"][0] == found["weight"].max() > 1
    near = pairs[(pairs["kind"] == "other") & (pairs["cosine"] == 1)]
    assert set(near["id"]) | set(near["neighbour"]) == {ids[stray], *ids[identity == identity[other]]}
    assert (pairs[pairs["kind"] == "same"]["cosine"].iloc[:5] == 0).all()


WRONG = [
    ("stage=mine run=no", "run no has no predictions of fold 0"),
    ("stage=mine mine.most=0.5", "mine.most must be ≥ 1"),
    ("stage=mine mine.power=nan", "mine.power must be finite"),
    ("stage=mine task=segmentation()", "stage=mine is not made for task=segmentation()"),
    ("stage=train task=segmentation() train.hard=a.csv", "train.hard=a.csv does not go with"),
]


def test_what_cannot_be_done(project, predicted):
    for words, says in WRONG:
        ended = project.run(*words.split())
        assert ended.code == 2
        assert says in ended.err
        assert ended.err.count("\n") == 1


# --- trainings that learn from it ---------------------------------------------------------------------------------


def loader(project, predicted, **changes) -> Loader:
    """The loader of member 0 of a run that learns with the weights of ``mate``."""
    from pipeline import training

    changes = {"train__hard": "runs/whales/mate/mined.csv", "pretrained": False, "batch_size": 2, **changes}
    run = Run(configs.replace(predicted, **changes), "hard")
    table, source, _ = training.materials(run, task_for(run.config, run.competition), (0,))
    return Loader(source, table, run.config)


def test_a_training_weighs_or_draws_its_own_rows_by_their_weights(project, predicted):
    assert project.run("stage=mine", "run=mate", "mine.most=9", "mine.power=0.5").code == 0
    run, found = Run(predicted, "mate"), table(predicted).set_index("id")["weight"]
    own = np.flatnonzero(run.folds == 1)
    wanted = found[run.competition.train["id"].to_numpy()[own]].to_numpy()
    assert wanted.max() > 1.5
    weighing = loader(project, predicted)
    assert weighing.table.rows.tolist() == own.tolist()
    np.testing.assert_allclose(weighing.table.weights, wanted, rtol=1e-6)
    assert sorted(weighing.order(0).tolist()) == list(range(6)), "each once: it is the losses that count"
    [*batches] = weighing.epoch(0)
    order = weighing.order(0)
    np.testing.assert_allclose(np.concatenate([batch.weights for batch in batches]), wanted[order], rtol=1e-6)
    drawing = loader(project, predicted, sampler="weighted()")
    assert (drawing.table.weights == 1).all(), "never both"
    counts = sum(np.bincount(drawing.order(epoch), minlength=6) for epoch in range(200)) / 200
    np.testing.assert_allclose(counts, wanted / wanted.mean(), atol=0.1)


def test_what_a_fold_s_own_rows_are_says_nothing_to_its_member(project, predicted):
    """Law 1: other OOF of fold 0, as other labels of it would give, leaves all that member 0 learns from as it was."""
    assert project.run("stage=mine", "run=mate").code == 0
    before, path = loader(project, predicted).table.weights, Run(predicted, "mate").member((0,)) / "oof.npz"
    oof = Predictions.load(path)
    Predictions(oof.ids, oof.values[:, ::-1] * 0.5 + 1 / 6, oof.space).save(path)
    weights = table(predicted)["weight"].tolist()
    assert project.run("stage=mine", "run=mate").code == 0
    assert table(predicted)["weight"].tolist() != weights
    np.testing.assert_array_equal(loader(project, predicted).table.weights, before)


def test_rows_without_a_weight_keep_theirs_and_wrong_files_are_named(project, predicted):
    assert project.run("stage=mine", "run=mate").code == 0
    path, run = project.root / "runs/whales/mate/mined.csv", Run(predicted, "mate")
    first, second = run.competition.train["id"].to_numpy()[np.flatnonzero(run.folds == 1)[:2]]
    path.write_text(f"id,weight\n{first},2.5\n")
    assert loader(project, predicted).table.weights.tolist() == [2.5, 1, 1, 1, 1, 1]
    for text, says in [
        (f"id,weight\n{first},0\n{second},x\n", f"the weights of ids {first}, {second} are no numbers > 0"),
        (f"id,weight\n{first},inf\n", "are no numbers > 0"),
        (f"id\n{first}\n", "has no column 'weight'"),
        ("id,weight\nnone,1\n", "has ids that are no training rows: none"),
        (f"id,weight\n{first},1\n{first},2\n", "1 duplicate ids"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            loader(project, predicted)


def test_the_weights_define_the_run_and_are_marked(project, predicted):
    assert project.run("stage=mine", "run=mate").code == 0
    asked = configs.replace(predicted, run="hard", train__hard="runs/whales/mate/mined.csv")
    run = Run(asked, "hard")
    run.settle()
    assert run.mark == "second-order leak: rows weighed by OOF"
    assert not Run(predicted, "mate").mark
    (run.folder / "fold0").mkdir()
    (run.folder / "fold0/last.ckpt").touch()
    run.settle()
    with pytest.raises(UserError, match=r"train.hard: runs/whales/mate/mined.csv → \)"):
        Run(configs.replace(asked, train__hard=""), "hard").settle()
    with pytest.raises(UserError, match="train.hard=a.csv does not exist"):
        Run(configs.replace(asked, train__hard="a.csv"), "hard").settle()
    assert project.run("stage=mine", "run=mate", "mine.most=2").code == 0
    with pytest.raises(UserError, match=r"made from other data \(train.hard changed\)"):
        run.settle()
