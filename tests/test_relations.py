"""Distillation of embeddings: relations against a slow reference, what a learner makes of them, and the stage."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import small_tasks
import torch
from torch.nn import functional

from pipeline import training
from pipeline.__main__ import main
from pipeline.artefacts import Predictions
from pipeline.competition import load
from pipeline.config import compose, replace, root
from pipeline.data import Batch
from pipeline.forms import CLASSES, EMBEDDINGS, UNKNOWN
from pipeline.learner import Learner
from pipeline.network import Blueprint, build
from pipeline.parts import losses
from pipeline.runs import Run


def huber(one: float, other: float) -> float:
    apart = abs(one - other)
    return apart**2 / 2 if apart < 1 else apart - 0.5


def angle(at: list[float], one: list[float], other: list[float]) -> float:
    """The cosine of the angle at a point between two others; 0 where one of them lies on it."""
    ways = [[b - a for a, b in zip(at, to, strict=True)] for to in (one, other)]
    lengths = [math.hypot(*way) for way in ways]
    along = sum(a * b for a, b in zip(*ways, strict=True))
    return along / (lengths[0] * lengths[1]) if all(lengths) else 0.0


def slow_relations(student: list[list[float]], teacher: list[list[float]]) -> list[float]:
    """Park et al. 2019, row by row: distances over their mean, angles, both between rows that have a teacher."""
    known = [row for row, values in enumerate(teacher) if any(values)]
    sides = [[[x / (math.hypot(*row) or 1) for x in row] for row in side] for side in (student, teacher)]
    means = []
    for side in sides:
        apart = [math.dist(side[a], side[b]) for a in known for b in known if a != b]
        means.append(sum(apart) / len(apart))
    found = [0.0] * len(student)
    for a in known:
        others = [b for b in known if b != a]
        far = [[math.dist(side[a], side[b]) / mean for side, mean in zip(sides, means, strict=True)] for b in others]
        turns = [[angle(side[a], side[b], side[c]) for side in sides] for b in others for c in others if b != c]
        found[a] = 25 * sum(huber(*pair) for pair in far) / len(far)
        found[a] += 50 * sum(huber(*pair) for pair in turns) / len(turns)
    return found


def drawn_sides(rows: int, width: int = 5, wide: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(rows, size, generator=generator) for size in (width, wide))  # type: ignore[return-value]


@pytest.mark.parametrize("untaught", [[], [0], [1, 4, 5]])
def test_relations_are_the_slow_ones(untaught):
    student, teacher = drawn_sides(8)
    teacher = functional.normalize(teacher, dim=1)
    teacher[untaught] = 0
    teacher[7] = teacher[6]  # a sampler shows rows twice: an angle at a copy is none
    found = losses.relational_distillation(student, teacher, temperature=1.0)
    torch.testing.assert_close(found, torch.tensor(slow_relations(student.tolist(), teacher.tolist())))


def test_a_student_like_its_teacher_has_nothing_to_learn():
    """In any size, turned, and of any length, since cosines alone are compared."""
    _, teacher = drawn_sides(6)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    student = 3 * functional.pad(functional.normalize(teacher, dim=1), (0, 3)) @ turn
    found = losses.relational_distillation(student, teacher, temperature=2.0)
    torch.testing.assert_close(found, torch.zeros(6), atol=1e-5, rtol=0)


def test_relations_of_few_rows_and_of_copies_are_finite():
    for rows in (1, 2, 65):
        student, teacher = drawn_sides(rows)
        student[rows // 2 :] = student[0]
        student.requires_grad_()
        found = losses.relational_distillation(student, teacher, temperature=1.0)
        found.sum().backward()
        assert found.shape == (rows,)
        assert torch.isfinite(student.grad).all()
    assert losses.relational_distillation(*drawn_sides(1), temperature=1.0).tolist() == [0.0]


def test_cosines_are_the_slow_ones_and_rows_without_a_teacher_count_nothing():
    student, teacher = drawn_sides(6)
    teacher[2] = 0
    distil = losses.CosineDistillation(5, 9)
    found = distil(student, teacher, temperature=3.0)
    for row in range(6):
        told = student[row].tolist()
        seen = [sum(w * x for w, x in zip(line, told, strict=True)) for line in distil.map.weight.tolist()]
        along = sum(a * b for a, b in zip(seen, teacher[row].tolist(), strict=True))
        lengths = math.hypot(*seen) * math.hypot(*teacher[row].tolist())
        assert found[row].item() == pytest.approx(0 if row == 2 else 1 - along / lengths, abs=1e-5)
    assert 0 <= found.min() <= found.max() <= 2


def test_a_student_of_cosines_finds_its_teachers_directions(drawn):
    """Over-fit: in another width and a turned space, all there is to learn is a linear map."""
    _, teacher = drawn_sides(12)
    torch.manual_seed(0)
    student, distil = torch.randn(12, 16), losses.CosineDistillation(16, 9)
    optimizer = torch.optim.Adam(distil.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = distil(student, teacher, temperature=1.0).mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


# --- the learner --------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The config of a drawn competition, a gallery with queries."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    shutil.copytree(small_tasks.SOURCE / "configs", tmp_path / "configs")
    small_tasks.write_retrieval(tmp_path, epochs="1")
    return compose({"competition": "drawn"})


def learner_of(drawn, taught_width: int = 0, **changes) -> Learner:
    torch.manual_seed(0)
    plan = Blueprint(
        "small_image(width=4)", "avg()", "bnneck()", 1, 8, "stretch", [0.5], [0.5], ["a", "b", "c"], embeds=True
    )
    config = replace(drawn, **changes)
    return Learner(build(plan), config, CLASSES, taught_by=EMBEDDINGS, taught_width=taught_width)


def batch_of(targets: list[int], share: list[float]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(targets), 1, 8, 8), dtype=torch.uint8, generator=generator)
    soft = functional.normalize(torch.randn(len(targets), 7, generator=generator), dim=1)
    return Batch(images, torch.tensor(targets), torch.ones(len(targets)), soft, torch.tensor(share))


def test_relations_of_embeddings_have_their_share_beside_truth_and_pairs(drawn):
    given = batch_of([0, 0, 1, 1, 2, 2], [0.3] * 6)
    draw = np.random.default_rng(0)
    learner = learner_of(drawn)
    network = learner.network.train()
    vectors = network.vectors(network.prepare(given.images))
    taught = losses.relational_distillation(network.head[0](vectors), given.soft, temperature=1.0).mean()
    plain = learner_of(drawn)(Batch(given.images, given.targets, given.weights), draw)
    torch.testing.assert_close(learner_of(drawn)(given, draw), 0.7 * plain + 0.3 * taught)


def test_cosines_of_embeddings_have_their_share_and_their_map_learns(drawn):
    given, draw = batch_of([0, 0, 1, 1, 2, 2], [0.3] * 6), np.random.default_rng(0)
    learner = learner_of(drawn, train__embeddings="cosine", taught_width=7)
    network = learner.network.train()
    vectors = network.vectors(network.prepare(given.images))
    taught = learner.distil(network.embeddings(vectors), given.soft, temperature=1.0).mean()
    plain = learner_of(drawn)(Batch(given.images, given.targets, given.weights), draw)
    again = learner_of(drawn, train__embeddings="cosine", taught_width=7)
    loss = again(given, draw)
    torch.testing.assert_close(loss, 0.7 * plain + 0.3 * taught)
    loss.backward()
    assert again.distil.map.weight.grad.abs().sum() > 0


def test_rows_of_no_known_class_learn_relations_alone(drawn):
    known, draw = [0, 0, 1, 1, 2, 2], np.random.default_rng(0)
    given = batch_of([*known, UNKNOWN, UNKNOWN], [0.0] * 6 + [1.0] * 2)
    learner = learner_of(drawn, pairs=["triplet()", "center()"], pair_weights=[1.0, 1.0])
    network = learner.network.train()
    vectors = network.vectors(network.prepare(given.images))
    answers = functional.cross_entropy(network.answers(vectors)[:6], given.targets[:6], reduction="none")
    alone = Batch(given.images[:6], given.targets[:6], given.weights[:6])
    pairs = learner._compared(vectors[:6], alone).sum(dim=0)  # as if the others were not there
    taught = losses.relational_distillation(network.embeddings(vectors), given.soft, temperature=1.0)[6:]
    again = learner_of(drawn, pairs=["triplet()", "center()"], pair_weights=[1.0, 1.0])
    found = again(given, draw)
    torch.testing.assert_close(found, torch.cat([answers + pairs, taught]).mean())


def test_a_batch_without_any_known_class_is_no_fault(drawn):
    given = batch_of([UNKNOWN] * 4, [1.0] * 4)
    loss = learner_of(drawn, pairs=["triplet()"])(given, np.random.default_rng(0))
    assert torch.isfinite(loss)


def test_an_auxiliary_classifier_learns_where_no_teacher_is(drawn):
    given = batch_of([0, 0, 1, 1, 2, 2], [0.5] * 6)
    alone = Batch(given.images, given.targets, given.weights)
    without, with_ = (learner_of(drawn, pairs=[], auxiliary=call) for call in ("none()", "middle()"))
    draw = np.random.default_rng(0)
    assert with_(alone, draw).detach() > without(alone, draw).detach()


def test_the_neck_counts_a_batch_once(drawn):
    given = batch_of([0, 0, 1, 1, 2, 2], [0.5] * 6)
    taught, plain = learner_of(drawn), learner_of(drawn)
    taught.train()(given, np.random.default_rng(0))
    plain.train()(Batch(given.images, given.targets, given.weights), np.random.default_rng(0))
    for name, value in plain.network.head[0].state_dict().items():
        torch.testing.assert_close(taught.network.head[0].state_dict()[name], value)
    assert taught.network.head[0].track_running_stats


# --- the stage ----------------------------------------------------------------------------------------------------


def test_a_student_is_taught_by_the_same_folds_members_side_by_side(drawn, monkeypatch, capsys):
    seen, made = {}, training.member_table

    def spy(run, task, held_out, broken):
        table = seen[run.name, held_out] = made(run, task, held_out, broken)
        return table

    for words in (["stage=split"], *(["stage=train", f"run={name}"] for name in ("one", "two"))):
        assert main([*words, *(["seed=5"] if "run=two" in words else [])]) == 0
    for name in ("one", "two"):
        assert main(["stage=predict", f"run={name}"]) == 0
    monkeypatch.setattr(training, "member_table", spy)
    words = ["stage=distill", "distill.teacher=one,two", "distill.unlabelled=true", "distill.alpha=0.4"]
    assert main([*words, "backbone=small_image(width=6)"]) == 0
    assert "leak" not in capsys.readouterr().out
    assert main(["stage=distill", "distill.teacher=one", "distill.embeddings=cosine", "run=cosine"]) == 0
    content = torch.load(root() / "runs/drawn/cosine/fold0/last.ckpt", weights_only=True)
    assert any("distil.map" in name for name in content["learner"]), "a resume needs the map"
    folds = Run(drawn, "one").folds
    for fold in (0, 1):
        table, own = seen["tiny-distilled", (fold,)], np.flatnonzero(folds != fold)
        given = [
            Predictions.load(root() / f"runs/drawn/tiny-distilled/soft/fold{fold}{end}.npz") for end in ("", "-test")
        ]
        assert table.rows.tolist() == [*own, *range(36, 54)]
        np.testing.assert_array_equal(table.soft, np.concatenate([one.values for one in given]))
        np.testing.assert_allclose(np.linalg.norm(table.soft, axis=1), 1, atol=1e-5)
        tests = [Run(drawn, name).tests()[fold] for name in ("one", "two")]
        np.testing.assert_array_equal(given[1].values, Predictions.mean(tests).values)
        assert table.targets[len(own) :].tolist() == [UNKNOWN] * 18
        assert table.share.tolist() == [np.float32(0.4)] * len(own) + [1] * 18
        counts = training.counts_of(table, training.task_for(drawn, load(drawn)))
        assert counts.sum() == len(own), "whom a test row shows is unknown"
