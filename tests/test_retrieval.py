"""Retrieval: pools and junk against a slow search, lists that fit, and a drawn competition through the stages."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import small_tasks
import torch

from pipeline import artefacts, evaluate, registry, submission
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import compose, replace, root
from pipeline.data import Batch
from pipeline.errors import UserError
from pipeline.folds import ensure_folds, read_folds
from pipeline.forms import EMBEDDING, EMBEDDINGS, unit
from pipeline.learner import Learner
from pipeline.network import Blueprint, build
from pipeline.runs import Run
from pipeline.stages.train import unpaired, warn_of_batches
from pipeline.tasks import task_for

DRAWN = {"competition": "drawn", "model": "tiny"}


@pytest.fixture(params=small_tasks.ROLES)
def drawn(request, tmp_path, monkeypatch):
    """The config of a drawn competition of each role."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    shutil.copytree(small_tasks.SOURCE / "configs", tmp_path / "configs")
    small_tasks.write_retrieval(tmp_path, request.param, epochs="2")
    return compose(DRAWN)


def slow_lists(truth: np.ndarray, points: np.ndarray, k: int) -> tuple[list[int], list[list[int]]]:
    """Row by row in plain Python: how many others of its pool match, and whether its k nearest that are no junk do."""
    relevant, answers = [], []
    for row, (identity, pool, camera) in enumerate(truth.tolist()):
        others = [other for other in range(len(truth)) if other != row and truth[other, 1] == pool]
        same = [other for other in others if truth[other, 0] == identity]
        junk = {other for other in same if camera >= 0 and truth[other, 2] == camera}
        relevant.append(len(same) - len(junk))
        near = sorted((o for o in others if o not in junk), key=lambda o: -float(points[row] @ points[o]))
        answers.append([int(other in same) for other in near[:k]])
    return relevant, answers


@pytest.mark.parametrize("cameras", [False, True])
def test_each_row_searches_the_others_of_its_pool(cameras, drawn):
    task = task_for(replace(drawn, metric="mean_average_precision(k=4)"), load(drawn))
    generator = np.random.default_rng(0)
    truth = np.stack([generator.integers(3, size=30), generator.integers(2, size=30), np.full(30, -1)], axis=1)
    truth[:, 2] = generator.integers(2, size=30) if cameras else -1
    points = unit(generator.normal(size=(30, 5)))
    relevant, answers = task.judged(truth, points)
    slow_relevant, slow_answers = slow_lists(truth, points, 4)
    assert relevant.tolist() == slow_relevant
    for row, expected in zip(answers.tolist(), slow_answers, strict=True):
        assert [answer for answer in row if answer >= 0][: len(expected)] == expected
    metric = evaluate.metric("mean_average_precision(k=4)", task)
    slow = [
        sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit) / min(4, count)
        for count, hits in zip(slow_relevant, slow_answers, strict=True)
        if count
    ]
    assert metric(truth, points) == pytest.approx(np.mean(slow))


def test_a_score_of_folds_leaves_out_rows_with_nothing_to_find(drawn):
    task = task_for(drawn, load(drawn))
    truth = np.array([[0, 0, -1], [0, 0, -1], [1, 0, -1], [2, 1, -1], [2, 1, -1]])
    points = unit(np.array([[1, 0], [1, 0.1], [0, 1], [1, 0], [1, 0]]))
    score = evaluate.score_folds(evaluate.metric("precision_at_k(k=1)", task), truth, points, truth[:, 1])
    assert score.value == 1
    assert score.folds == [1, 1]


def test_the_truth_of_a_run_has_its_folds_as_pools(drawn):
    competition = load(drawn)
    folds = ensure_folds(drawn, competition)
    identities = competition.targets.iloc[:, 0]
    assert identities.groupby(identities).apply(lambda rows: len(set(folds[rows.index]))).eq(1).all()
    truth = Run(drawn, "tiny").truth(task_for(drawn, competition))
    assert truth[:, 1].tolist() == folds.tolist()


def test_members_lie_side_by_side_and_their_cosine_is_the_mean():
    generator, ids = np.random.default_rng(0), np.array(["a", "b", "c"])
    one, other = (unit(generator.normal(size=(3, width))) for width in (4, 7))
    both = Predictions.mean([Predictions(ids, values, EMBEDDING) for values in (one, other)])
    np.testing.assert_allclose(both.values @ both.values.T, (one @ one.T + other @ other.T) / 2, atol=1e-6)


def test_views_are_averaged_to_length_one():
    values = np.stack([unit(np.random.default_rng(seed).normal(size=(5, 3))) for seed in (0, 1)])
    merged = registry.build("merges", "mean()")(values, EMBEDDINGS)
    np.testing.assert_allclose(merged, unit(values.mean(axis=0)), atol=1e-6)


# --- the network --------------------------------------------------------------------------------------------------


def blueprint(head: str, embeds: bool = True) -> Blueprint:
    return Blueprint(
        "small_image(width=4)", "avg()", head, 1, 8, "stretch", [0.5], [0.5], ["a", "b", "c"], embeds=embeds
    )


@pytest.mark.parametrize(
    ("head", "width"),
    [("linear()", None), ("bnneck()", None), ("cosine(size=5,neck=True)", 5), ("cosine()", None), ("per_part()", None)],
)
def test_embeddings_come_from_behind_the_neck_and_never_from_the_classifier(head, width):
    torch.manual_seed(0)
    network = build(blueprint(head)).eval()
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        prepared = network.prepare(images)
        found, vectors = network.predicted(prepared), network.vectors(prepared)
        assert found.shape == (6, width or network.pool.features) == (6, network.embedding_width)
        assert network.compared(vectors).shape == (6, network.compared_width)
        if head == "bnneck()":
            torch.testing.assert_close(found, network.head[0](vectors))
            torch.testing.assert_close(network.compared(vectors), vectors)
        assert network.outputs(prepared).shape == (6, 3)
        plain = build(blueprint(head, embeds=False)).eval()
        plain.load_state_dict(network.state_dict())
        torch.testing.assert_close(plain.predicted(prepared), network.outputs(prepared))


def learner_of(drawn, **changes) -> Learner:
    torch.manual_seed(0)
    return Learner(build(blueprint("bnneck()")), replace(drawn, **changes))


def test_pairs_are_added_by_their_weights(drawn):
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 0, 1, 1, 2, 2]), torch.ones(6))
    alone = {name: {"pairs": [name], "loss_weight": 0.0, "pair_weights": [1.0]} for name in ("triplet()", "center()")}
    generator = np.random.default_rng(0)
    plain = learner_of(drawn, pairs=[])(batch, generator)
    triplet, center = (learner_of(drawn, **changes)(batch, generator) for changes in alone.values())
    both = learner_of(drawn, pairs=["triplet()", "center()"], loss_weight=2.0)(batch, generator)
    torch.testing.assert_close(both, 2 * plain + triplet + 0.0005 * center)  # the share that center declares
    chosen = learner_of(drawn, pairs=["triplet()", "center()"], pair_weights=[0.5, 0.1])(batch, generator)
    torch.testing.assert_close(chosen, plain + 0.5 * triplet + 0.1 * center)


def test_a_pair_loss_of_another_size_is_told_once(drawn, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.parts.losses._compared", set())
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 0, 1, 1, 2, 2]), torch.ones(6))
    for weights, told in (([1.0], 0), ([1e5], 1), ([], 0)):
        for _ in range(2):
            learner = learner_of(drawn, pairs=["triplet(soft=true)"], pair_weights=weights)
            learner(batch, np.random.default_rng(0))
        printed = capsys.readouterr()
        assert (printed.out + printed.err).count("which will hardly matter; set pair_weights") == told
    learner_of(drawn, pairs=["triplet()", "center()"], pair_weights=[2.0, 0.0])(batch, np.random.default_rng(0))
    assert "hardly matter" not in "".join(capsys.readouterr())
    nothing = Batch(images[:1], torch.tensor([0]), torch.ones(1))  # no pair: a loss of 0
    alone = learner_of(drawn, pairs=["triplet()"], pair_weights=[2.0], loss_weight=0.0, head="linear()")
    assert float(alone.eval()(nothing, np.random.default_rng(0)).detach()) == 0


def test_every_part_of_the_features_has_a_loss_of_its_own(drawn):
    changed = blueprint("per_part(parts=2,neck=False)")
    torch.manual_seed(0)
    network = build(changed)
    learner = Learner(network, replace(drawn, pairs=[], head="per_part(parts=2,neck=False)"))
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1, 2, 0]), torch.ones(4))
    with torch.no_grad():
        loss = learner.train()(batch, np.random.default_rng(0))
        levels = network.head.levels(network.vectors(network.prepare(images)))
    each = [torch.nn.functional.cross_entropy(level, batch.targets) for level in levels]
    assert len(each) == 2
    assert float(loss) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)


# --- the stages ---------------------------------------------------------------------------------------------------


def run(*words: str) -> None:
    assert main(list(words)) == 0


def test_a_drawn_competition_goes_through_the_stages(drawn, capsys):
    for stage in ("split", "train", "predict"):
        run(f"stage={stage}", "views=identity(),shift(x=1)")
    run("stage=submit", "source=tiny")
    run("stage=score", "submission=tiny")
    printed = capsys.readouterr()
    assert "OOF" in printed.out
    assert printed.err == ""
    competition, task = load(drawn), task_for(drawn, load(drawn))
    frame = submission.read(root() / "submissions/drawn/tiny.csv", competition.sample, task.allowed(competition.sample))
    asked = competition.sample["id"].tolist()
    pool = len(asked) == len(competition.test)
    shelf = set(competition.test["id"]) if pool else set(competition.test["id"]) - set(asked)
    for name, cell in zip(frame["id"], frame["matches"], strict=True):
        answer = cell.split()
        assert len(answer) == len(set(answer)) == 2
        assert set(answer) <= shelf - {name}
    single = Predictions.mean(Run(drawn, "tiny").tests())
    assert single.values.shape[1] == 2 * Run(drawn, "tiny").tests()[0].values.shape[1]
    again = task.submission(single.ids, single.values, competition.sample)
    pd.testing.assert_frame_equal(again, frame)


def test_a_pool_may_answer_itself_first(drawn):
    competition = load(drawn)
    points = unit(np.random.default_rng(0).normal(size=(len(competition.test), 4)))
    ids = competition.test["id"].to_numpy()
    frame = task_for(replace(drawn, task="retrieval(itself=True)"), competition).submission(
        ids, points, competition.sample
    )
    first = [cell.split()[0] for cell in frame["matches"]]
    assert (first == frame["id"].tolist()) == (len(frame) == len(competition.test))


def test_a_submission_is_judged_by_a_solution(drawn):
    competition, task = load(drawn), task_for(drawn, load(drawn))
    solution = pd.DataFrame({"id": ["q", "r", "s"], "matches": ["a b", "c", ""]})
    frame = pd.DataFrame({"id": ["q", "r", "s"], "matches": ["a x b", "x c", "a"]})
    truth = task.truth(solution, competition.sample)
    values = task.values(frame, competition.sample)
    score = evaluate.metric("mean_average_precision(k=3)", task)(truth, values)
    assert score == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)  # s has nothing to find
    assert math.isclose(evaluate.metric("rank_k(k=1)", task)(truth[:1], values[:1]), 1)


@pytest.mark.parametrize(
    ("cell", "fits"), [("{0} {1}", True), ("{0}", True), ("{0} {0}", False), ("", False), ("nobody", False)]
)
def test_lists_hold_different_ids_of_the_gallery(cell, fits, drawn):
    competition, task = load(drawn), task_for(drawn, load(drawn))
    asked = set(competition.sample["id"])
    shelf = [name for name in competition.test["id"] if name not in asked] or competition.test["id"].tolist()
    frame = competition.sample.assign(matches=cell.format(*shelf))
    wrong = task.allowed(competition.sample)["matches"].wrong(frame["matches"])
    assert wrong.any() != fits


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"batch_size": 8}, ["sampler=identities(p=4,k=4) makes batches of 16 rows, but batch_size=8"]),
        (
            {"sampler": "shuffle()", "batch_size": 2},
            ["pairs=triplet(): 100% of the rows", "sampler=identities(p=2,k=4) batch_size=8"],
        ),
        ({"sampler": "shuffle()", "batch_size": 2, "pairs": ["center()"]}, []),  # it needs no pairs
        ({"sampler": "shuffle()"}, []),  # three identities in batches of 16
        ({"sampler": "weighted()"}, []),
        ({"sampler": "weighted_identities(p=4,k=2)"}, ["makes batches of 8 rows, but batch_size=16"]),
    ],
)
def test_batches_without_pairs_are_worth_a_warning(changes, said, drawn, capsys):
    ensure_folds(drawn, load(drawn))
    capsys.readouterr()
    warn_of_batches(Run(replace(drawn, **changes), "tiny"), (0,))
    printed = capsys.readouterr().err
    assert printed.count("warning:") == bool(said)
    assert all(text in printed for text in said)


def test_a_row_is_unpaired_without_its_like_or_without_another(drawn):
    ensure_folds(drawn, load(drawn))
    run = Run(replace(drawn, sampler="shuffle()", batch_size=3), "tiny")
    classes = task_for(drawn, load(drawn)).taught(load(drawn).targets)[run.learned((1,))]
    order = np.random.default_rng([0, 0]).permutation(len(classes))
    batches = [classes[order[start : start + 3]].tolist() for start in range(0, len(classes) - 2, 3)]
    alone = [batch.count(one) in (1, 3) for batch in batches for one in batch]
    assert 0 < sum(alone) < len(alone)
    assert unpaired(run, (1,)) == pytest.approx(sum(alone) / len(alone))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metric=accuracy()"], "task=retrieval() has ranks; those that fit:"),
        (["pairs=triplet()", "pair_weights=1,2"], "give one weight for each"),
        (["pairs=", "loss_weight=2"], "loss_weight=2.0 weighs losses of pairs, of which there are none"),
        (["loss=l_softmax()", "head=inner_product()", "pairs=", "auxiliary=middle()"], "auxiliary=middle() does not"),
        (["pairs=triplet()", "mix=mixup()"], "does not go with mix=mixup()"),
        (["rerankings=k_reciprocal(),query_expansion()"], "put it last"),
        (["rerankings=k_recip()"], "k_reciprocal"),
        (["pseudo.crossfit=true"], "mixes members"),
        (["data.camera=lens"], "has no column 'lens' (data.camera=lens)"),
        (["folds.count=6"], "holds one identity alone"),
        (["data.target=id,identity"], "identities are one column"),
    ],
)
def test_bad_input_is_one_message(words, message, drawn, capsys):
    assert main(["stage=split", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (root() / "folds/drawn.csv").exists()


@pytest.mark.parametrize("stage", ["knn", "features", "adopt"])
def test_stages_of_known_classes_refuse(stage, drawn, capsys):
    assert main([f"stage={stage}", "run=x"]) == 2
    assert "is not made for task=retrieval()" in capsys.readouterr().err


def test_pairs_and_rerankings_are_for_what_has_them(drawn):
    with pytest.raises(UserError, match="rerankings=k_reciprocal.. does not go with task=multiclass"):
        replace(drawn, task="multiclass", metric="accuracy()", rerankings=["k_reciprocal()"], folds__method="kfold()")
    masks = {**DRAWN, "competition": "digits_segmentation", "pairs": "triplet()"}
    with pytest.raises(UserError, match="compares rows by class, but task=segmentation.. learns masks"):
        compose(masks)


def test_the_folds_file_is_kept(drawn):
    ensure_folds(drawn, load(drawn))
    before = artefacts.folds_file(drawn).read_bytes()
    ensure_folds(drawn, load(drawn))
    assert artefacts.folds_file(drawn).read_bytes() == before
    assert set(read_folds(drawn, load(drawn))) == {0, 1}


# --- identities stay whole ----------------------------------------------------------------------------------------


def with_sites(sites: list[str]) -> None:
    """A column site in train.csv, of these in turn."""
    path = root() / "data/drawn/train.csv"
    rows = pd.read_csv(path, dtype=str)
    rows.assign(site=[sites[row % len(sites)] for row in range(len(rows))]).to_csv(path, index=False)


def test_groups_that_share_an_identity_are_joined(drawn, capsys):
    with_sites(["a"] * 6 + ["b"] * 3 + ["c"] * 9 + ["d"] * 18)  # six rows an identity: the second lies in b and in c
    asked = compose({**DRAWN, "data.group": "site"})
    folds = ensure_folds(asked, load(asked))
    assert len(set(folds[6:18])) == 1
    assert load(asked).targets["identity"].groupby(folds).nunique().sum() == 6
    assert "data.group=site: 1 identities lie in several groups, which are joined: 3 are" in capsys.readouterr().err


def test_groups_that_leave_nothing_to_deal_are_refused(drawn):
    with_sites(["a", "b"])
    asked = compose({**DRAWN, "data.group": "site"})
    with pytest.raises(
        UserError, match=r"6 identities lie in several groups, .*1 groups are left of 2, for folds.count"
    ):
        ensure_folds(asked, load(asked))


def test_near_duplicates_join_identities_and_do_not_part_them(drawn):
    ids = load(drawn).train["id"]
    groups = pd.DataFrame({"id": ids, "group": [ids[6] if row in (6, 13) else name for row, name in enumerate(ids)]})
    artefacts.write_text(artefacts.runs_folder(drawn) / "near_duplicates.csv", groups.to_csv(index=False))
    asked = compose({**DRAWN, "folds.groups": "near_duplicates"})
    folds = ensure_folds(asked, load(asked))
    assert load(asked).targets["identity"].groupby(folds).nunique().sum() == 6
    assert len(set(folds[6:18])) == 1, "a copy joins the second and the third identity"


def test_folds_that_part_identities_are_warned_of(drawn, capsys):
    ensure_folds(compose({**DRAWN, "folds.method": "kfold()"}), load(drawn))
    assert "folds.method=kfold() deals 6 identities to several folds" in " ".join(capsys.readouterr().err.split())
