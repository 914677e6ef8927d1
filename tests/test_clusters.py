"""Clusters against a slow density clustering, and rounds of pseudo-labels for retrieval: what each member learns."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import small_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import clusters, ranking, training
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import compose, replace, root
from pipeline.forms import EMBEDDING, unit
from pipeline.ranking import Search
from pipeline.runs import Run
from pipeline.tasks import task_for
from pipeline.tasks.retrieval import Retrieval

NEAR = "k_reciprocal(k1=4,k2=2)"  # of identities with six images


def points(seed: int, rows: int, identities: int = 5, noise: float = 0.5) -> np.ndarray:
    """(rows, 8) of length 1, around so many directions, in turn."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(identities, 8))
    return unit(centres[np.arange(rows) % identities] + noise * generator.normal(size=(rows, 8)))


def slow_clusters(scores: list[list[float]], threshold: float, core: int) -> list[int]:
    """DBSCAN as Ester et al. 1996 write it, from all scores; clusters of more than half of the rows are none."""
    rows = range(len(scores))
    near = [{b for b in rows if a == b or max(scores[a][b], scores[b][a]) >= threshold} for a in rows]
    found, number = [-1] * len(scores), 0
    for seed in rows:
        if found[seed] >= 0 or len(near[seed]) < core:
            continue
        waiting = [seed]
        while waiting:
            row = waiting.pop()
            if found[row] < 0:
                found[row] = number
                waiting += [other for other in near[row] if len(near[row]) >= core]
        number += 1
    return [-1 if found.count(one) > len(scores) / 2 else one for one in found]


def together(labels: list[int]) -> set[frozenset[int]]:
    """The clusters as sets of rows."""
    named = {}
    for row, label in enumerate(labels):
        if label >= 0:
            named.setdefault(label, set()).add(row)
    return {frozenset(rows) for rows in named.values()}


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 40), threshold=st.floats(0, 1), noise=st.floats(0.1, 1))
def test_clusters_are_the_slow_ones(seed, rows, threshold, noise):
    given_ = points(seed, rows, noise=noise)
    search = ranking.reranked(Search(given_, given_, alone=True), [NEAR])
    table = search.similarities(0, rows)
    np.fill_diagonal(table, 1)
    threshold = float(np.float32(threshold))
    found, sure = clusters.clusters(given_, [NEAR], threshold, 2)
    assert together(found.tolist()) == together(slow_clusters(table.tolist(), threshold, 2))
    assert (np.flatnonzero(sure) == np.flatnonzero(found >= 0)).all()
    both = np.maximum(table, table.T)
    for row in np.flatnonzero(found >= 0):
        others = np.flatnonzero((found == found[row]) & (np.arange(rows) != row))
        assert sure[row] == pytest.approx(both[row, others].max(), abs=1e-6)


@pytest.mark.parametrize("core", [2, 3, 5])
def test_a_core_has_neighbours_enough(core):
    given_ = points(3, 40, identities=12, noise=0.4)
    table = ranking.reranked(Search(given_, given_, alone=True), [NEAR]).similarities(0, 40)
    np.fill_diagonal(table, 1)
    found, _ = clusters.clusters(given_, [NEAR], 0.5, core)
    assert together(found.tolist()) == together(slow_clusters(table.tolist(), 0.5, core))
    assert (found >= 0).any()


def test_a_core_of_more_finds_less():
    given_ = points(3, 40, identities=12, noise=0.4)
    counts = [(clusters.clusters(given_, [NEAR], 0.5, core)[0] >= 0).sum() for core in (2, 3, 5)]
    assert counts[0] > counts[-1]


def test_clusters_larger_than_the_lists_of_neighbours_hang_together():
    identities, rows = 3, 3 * (clusters.NEAREST + 20)
    found, _ = clusters.clusters(points(0, rows, identities, noise=0.1), [], 0.3, 2)
    assert together(found.tolist()) == {frozenset(range(k, rows, identities)) for k in range(identities)}
    assert found[:3].tolist() == [0, 1, 2], "numbered by their first images"


def test_a_cluster_of_most_of_the_pool_is_none():
    crowd, pair = points(0, 20, identities=1, noise=0.1), points(1, 6, identities=1, noise=0.01)
    found, sure = clusters.clusters(np.concatenate([crowd, pair]), [NEAR], 0.1, 2)
    assert (found[:20] == clusters.ALONE).all()
    assert not sure[:20].any()
    assert found[20:].tolist() == [0] * 6


def test_copies_are_a_cluster_and_two_points_are_not():
    one = points(0, 8, identities=8, noise=0.0)
    found, sure = clusters.clusters(np.concatenate([one, one[:1]]), ["k_reciprocal(k1=1,k2=1)"], 0.99, 2)
    assert found.tolist() == [0, *[-1] * 7, 0]
    assert sure[[0, 8]] == pytest.approx(1, abs=1e-6)
    assert clusters.clusters(one[:2], [NEAR], 0.0, 2)[0].tolist() == [-1, -1], "both together are the whole pool"


def test_distances_are_those_of_the_configs_rerankings_where_they_are_such():
    assert clusters.measured([]) == [clusters.DISTANCE]
    assert clusters.measured(["query_expansion(k=2)", "diffusion()"]) == ["query_expansion(k=2)", clusters.DISTANCE]
    assert clusters.measured(["query_expansion()", NEAR]) == ["query_expansion()", NEAR]


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The config of a drawn competition, a gallery with queries."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    shutil.copytree(small_tasks.SOURCE / "configs", tmp_path / "configs")
    small_tasks.write_retrieval(tmp_path, epochs="1")
    return compose({"competition": "drawn", "rerankings": NEAR})


def run(*words: str) -> None:
    assert main([*words, f"rerankings={NEAR}"]) == 0


def test_labels_name_the_clusters_of_the_whole_pool(drawn):
    task = task_for(drawn, load(drawn))
    values = points(0, 18, identities=3, noise=0.2)
    rows, columns = task.pseudo_labels(values, 0.3)
    assert rows.tolist() == task.confident(values, 0.3)[0].tolist() == list(range(18))
    assert columns == {"identity": [f"cluster-000{row % 3}" for row in range(18)]}
    capped, columns = task.pseudo_labels(values, 0.3, cap=2)
    sure = task.confident(values, 0.3)[1]
    assert capped.tolist() == sorted(
        row for k in range(3) for row in sorted(range(k, 18, 3), key=lambda r: -sure[r])[:2]
    )
    assert columns["identity"] == [f"cluster-000{row % 3}" for row in capped], "as if all were there"


def test_names_of_clusters_are_no_identities(drawn):
    task = Retrieval(["cluster-0000", "whale"], load(drawn), None, 2, [NEAR], False)
    _, columns = task.pseudo_labels(points(0, 18, identities=3, noise=0.2), 0.3)
    assert columns["identity"][:3] == ["test-cluster-0000", "test-cluster-0001", "test-cluster-0002"]


def test_a_labels_file_adds_classes_behind_the_identities(drawn):
    (root() / "labels.csv").write_text(
        "id,identity,weight,for_fold\ntest00,cluster-0001,1,0\ntest01,cluster-0000,1,1\ntest02,train3,1,1\n"
    )
    plain, changed = drawn, replace(drawn, train__labels="labels.csv")
    competition = load(drawn)
    before, task = task_for(plain, competition), task_for(changed, competition)
    assert task.columns == [*before.columns, "cluster-0000", "cluster-0001"]
    assert task.outputs == before.outputs + 2
    frame = pd.read_csv(root() / "labels.csv", dtype=str)
    assert task.read_labels(frame).tolist() == [before.outputs + 1, before.outputs, before.columns.index("train3")]
    assert (task.targets(competition.targets) == before.targets(competition.targets)).all()


# --- rounds -------------------------------------------------------------------------------------------------------


def give(name: str, fold: int, test: np.ndarray) -> None:
    """Test embeddings of a member on disk, as stage=predict would leave them."""
    config = compose({"competition": "drawn"})
    Predictions(load(config).test["id"].to_numpy(), test, EMBEDDING).save(
        Run(config, name).member((fold,)) / "test.npz"
    )


def test_a_members_clusters_come_from_its_own_embeddings_and_join_its_table(drawn, monkeypatch, capsys):
    seen, made = {}, training.member_table

    def spy(run, task, held_out, broken):
        table = seen[run.name, held_out] = made(run, task, held_out, broken)
        return table

    monkeypatch.setattr(training, "member_table", spy)
    for stage in ("split", "train", "predict"):
        run(f"stage={stage}")
    task, competition = task_for(drawn, load(drawn)), load(drawn)
    own_points = [points(0, 18, identities=3, noise=0.1), points(2, 18, identities=9, noise=0.1)]
    expected = [task.pseudo_labels(values, 0.6) for values in own_points]
    numbers = [len(set(columns["identity"])) for _, columns in expected]
    assert numbers[1] > numbers[0] == 3
    for fold, values in enumerate(own_points):
        give("tiny", fold, values)
    run("stage=pseudo", "pseudo.threshold=0.6", "pseudo.weight=0.5")
    labels = pd.read_csv(root() / "runs/drawn/tiny-r1/labels-r1.csv")
    ids = competition.test["id"].tolist()
    first, second = (labels[labels["for_fold"] == fold] for fold in (0, 1))
    for own, (rows, columns) in zip((first, second), expected, strict=True):
        assert own["id"].tolist() == [ids[row] for row in rows]
        assert own["identity"].tolist() == columns["identity"]
    known = load(drawn).targets["identity"].nunique()
    classes = known + labels["identity"].nunique()
    for fold, own in enumerate((first, second)):
        table = seen["tiny-r1", (fold,)]
        assert table.targets.dtype == np.int64, "one-hot rows of thousands of identities would fill the memory"
        assert table.rows[-len(own) :].tolist() == [36 + ids.index(name) for name in own["id"]]
        assert table.targets[-len(own) :].tolist() == [known + int(name[-4:]) for name in own["identity"]]
        assert table.targets[: -len(own)].max() < known
        assert table.weights.tolist() == [1] * (len(table) - len(own)) + [0.5] * len(own)
    stored = Run(drawn, "tiny-r1").as_trained()
    assert len(task_for(stored, load(drawn)).columns) == classes
    run("stage=predict", "run=tiny-r1", "views=identity(),shift(x=1)")  # by hand: the command names no labels
    assert capsys.readouterr().err == ""


def test_no_clusters_is_a_warning(drawn, capsys):
    for stage in ("split", "train", "predict"):
        run(f"stage={stage}")
    run("stage=pseudo", "pseudo.threshold=1")
    assert "no test row of tiny is as sure as pseudo.threshold=1: there is no round 1" in capsys.readouterr().err
    assert not (root() / "runs/drawn/tiny-r1").exists()


def test_the_usual_threshold_is_the_tasks(drawn):
    assert drawn.pseudo.threshold == [0.5]
    assert compose({"competition": "digits"}).pseudo.threshold == [0.9]
    assert compose({"competition": "drawn", "pseudo.threshold": "0.7,0.6"}).pseudo.threshold == [0.7, 0.6]


def test_an_auxiliary_classifier_has_no_embedding_to_teach(drawn, capsys):
    assert main(["stage=distill", "auxiliary=middle()", "pairs="]) == 2
    assert "leave it out to distil" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["oof", "pair"])
def test_teachers_of_several_spaces_are_refused(source, drawn, capsys):
    assert main(["stage=distill", f"distill.source={source}"]) == 2
    assert f"distill.source={source} has several members label" in capsys.readouterr().err
