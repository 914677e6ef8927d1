"""Learning from images that nobody labelled: losses against slow references, the pool, the teacher, what is refused."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import small_tasks
import small_training as small
import torch
from test_resume import Killed, kill_after
from torch import nn

from pipeline import batched, training
from pipeline.data import Batch, Joined, Loader, Table, draw, row_seeds
from pipeline.errors import UserError
from pipeline.forms import CLASS_MASKS, CLASSES, LABELS, MASKS, NUMBERS
from pipeline.learner import Learner
from pipeline.parts import augments, averages, consistencies
from pipeline.resident import DeviceLoader
from pipeline.rules import averaging
from pipeline.runs import Run
from pipeline.tasks import task_for

# --- slow references, of one row or pixel -----------------------------------------------------------------------------


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def two(score: float) -> list[float]:
    """A label as a choice of two: yes and no."""
    return [sigmoid(score), 1 - sigmoid(score)]


def square(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def kl(taught: list[float], said: list[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(taught, said, strict=True))


def each(function, said: list[float], taught: list[float]) -> float:
    pairs = list(zip(said, taught, strict=True))
    return sum(function(two(s), two(t)) for s, t in pairs) / len(pairs)


SLOW = {
    ("squared", "classes"): lambda said, taught: square(softmax(said), softmax(taught)),
    ("squared", "labels"): lambda said, taught: each(square, said, taught),
    ("squared", "numbers"): lambda said, taught: square(said, taught) / len(said),
    ("divergence", "classes"): lambda said, taught: kl(softmax(taught), softmax(said)),
    ("divergence", "labels"): lambda said, taught: each(lambda s, t: kl(t, s), said, taught),
}


def slow_class(weak: list[float], strong: list[float], threshold: float) -> float:
    chances = softmax(weak)
    return -math.log(softmax(strong)[chances.index(max(chances))]) if max(chances) >= threshold else 0.0


def slow_labels(weak: list[float], strong: list[float], threshold: float) -> float:
    losses = []
    for before, after in zip(weak, strong, strict=True):
        yes = sigmoid(before) > 0.5
        sure = max(two(before)) >= threshold
        losses.append(-math.log(sigmoid(after) if yes else 1 - sigmoid(after)) if sure else 0.0)
    return sum(losses) / len(losses)


def raw(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def by_place(function, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """What a reference of one row says of each row, or of each pixel of it."""
    flat = [part.flatten(2).transpose(1, 2).flatten(0, 1).tolist() for part in (one, other)]
    return torch.tensor([function(a, b) for a, b in zip(*flat, strict=True)], dtype=one.dtype)


@pytest.mark.parametrize("pixels", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("distance", "form"), SLOW)
def test_a_distance_is_the_slow_one(distance: str, form: str, pixels: tuple[int, int]) -> None:
    learns = {"classes": CLASSES, "labels": LABELS, "numbers": NUMBERS}[form]
    said, taught = raw(5, 4, *pixels), raw(6, 4, *pixels)[:5]
    found = getattr(consistencies, distance)(learns, said, taught)
    assert found.shape == (5, *pixels)
    torch.testing.assert_close(found.flatten(), by_place(SLOW[distance, form], said, taught))
    assert float(getattr(consistencies, distance)(learns, said, said).abs().max()) < 1e-12


@pytest.mark.parametrize("pixels", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("function", "slow"), [("sure_class", slow_class), ("sure_labels", slow_labels)])
def test_what_is_sure_is_learned_as_slowly(function: str, slow, pixels: tuple[int, int]) -> None:
    weak, strong = raw(30, 3, *pixels), raw(31, 3, *pixels)[:30]
    found = getattr(consistencies, function)(weak, strong, 0.9)
    torch.testing.assert_close(found.flatten(), by_place(lambda a, b: slow(a, b, 0.9), weak, strong))
    assert 0 < int((found == 0).sum()) < found.numel() or function == "sure_labels", "else the threshold is no test"


class SlowSoftmatch:
    """SoftMatch of one number after the other: moving averages in plain Python, a row or a label at a time."""

    def __init__(self, columns: int, simplex: bool, align: bool = True) -> None:
        self.simplex, self.align, self.steps = simplex, align, 0
        kinds, least = (1, 1 / columns) if simplex else (columns, 0.5)
        self.mean, self.variance, self.said = [least] * kinds, [1.0] * kinds, [1 / columns] * columns

    def confidences(self, rows: list[list[float]]) -> list[list[float]]:
        if not self.simplex:
            return [[max(two(score)) for score in row] for row in rows]
        chances = [softmax(row) for row in rows]
        for place, old in enumerate(self.said):
            self.said[place] = self.keep * old + (1 - self.keep) * sum(row[place] for row in chances) / len(rows)
        if self.align:
            chances = [[chance / said for chance, said in zip(row, self.said, strict=True)] for row in chances]
            chances = [[chance / sum(row) for chance in row] for row in chances]
        return [[max(row)] for row in chances]

    def loss(self, weak: list[list[float]], strong: list[list[float]]) -> float:
        self.keep, self.steps = min(0.999, (1 + self.steps) / (10 + self.steps)), self.steps + 1
        sure = self.confidences(weak)
        for place in range(len(self.mean)):
            column = [row[place] for row in sure]
            self.mean[place] = self.keep * self.mean[place] + (1 - self.keep) * statistics.mean(column)
            self.variance[place] = self.keep * self.variance[place] + (1 - self.keep) * statistics.variance(column)
        total = 0.0
        for one, other, confidences in zip(weak, strong, sure, strict=True):
            for place, chance in enumerate(confidences):
                off = min(chance - self.mean[place], 0)
                weight = math.exp(-(off**2) / (2 * self.variance[place] / 4))
                if self.simplex:
                    total -= weight * math.log(softmax(other)[one.index(max(one))])
                else:
                    total -= weight * math.log(two(other[place])[0 if one[place] > 0 else 1]) / len(one)
        return total / len(weak)


@pytest.mark.parametrize(("form", "align"), [(CLASSES, True), (CLASSES, False), (LABELS, True)])
def test_softmatch_is_the_slow_one_over_batches(form, align: bool) -> None:
    quick = consistencies.softmatch(form, 4, align=align, weight=0.5).double()
    slow = SlowSoftmatch(4, form is CLASSES, align)
    for step in range(5):
        outputs = raw(20 + 2 * step, 4)
        weak, strong = outputs.chunk(2)
        found = quick.loss(nn.Identity(), outputs, outputs, 0.0)
        assert float(found) == pytest.approx(0.5 * slow.loss(weak.tolist(), strong.tolist())), step
    assert quick.mean.tolist() == pytest.approx(slow.mean)
    assert quick.variance.tolist() == pytest.approx(slow.variance)


def test_softmatch_teaches_the_strong_view_alone_and_trusts_the_surer_more() -> None:
    outputs = torch.cat([torch.tensor([[9.0, 0, 0], [0.2, 0.1, 0]]), torch.zeros(2, 3)]).requires_grad_()
    consistencies.softmatch(CLASSES, 3, align=False).loss(nn.Identity(), outputs, outputs, 0.0).backward()
    weak, strong = outputs.grad.abs().sum(dim=1).chunk(2)
    assert weak.tolist() == [0, 0]
    assert strong[0] > strong[1] > 0


@pytest.mark.parametrize("form", [CLASSES, LABELS])
def test_softmatch_stays_finite_where_all_is_sure_for_long(form) -> None:
    """After a hundred thousand such batches a variance, and the share of a class that nobody says, are 0 in float32."""
    part, outputs = consistencies.softmatch(form, 3), torch.tensor([[200.0, -200, -200]] * 4)
    part.steps.fill_(10**5)
    for buffer in (part.variance, part.said):
        buffer.zero_()
    part.mean.fill_(1)
    assert part._weights(outputs[:2]).tolist() == [[1.0] * len(part.mean)] * 2
    assert math.isfinite(part.loss(nn.Identity(), outputs, outputs, 0.0))


def test_what_is_said_too_often_weighs_less() -> None:
    """Nine rows of class 0 and one of class 1, all as sure: aligned, the one is the surest."""
    scores = torch.eye(2)[[0] * 9 + [1]] * 2
    weights = {
        align: consistencies.softmatch(CLASSES, 2, align=align)._weights(scores)[:, 0] for align in (True, False)
    }
    assert weights[True][9] == 1 > weights[True][0]
    assert weights[False].tolist() == [weights[False][0]] * 10


def test_the_weight_rises_as_in_the_paper() -> None:
    expected = [math.exp(-5 * (1 - t) ** 2) for t in (0.0, 0.25, 0.5, 0.75)] + [1.0, 1.0]
    assert [consistencies.ramped(done, 0.4) for done in (0.0, 0.1, 0.2, 0.3, 0.4, 0.9)] == pytest.approx(expected)
    assert consistencies.ramped(0.0, 0.0) == 1.0


# --- the loss of a batch ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """(B, 1, 2, 2) pixels → three logits, through a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(4, 3)
        self.blueprint = SimpleNamespace(outputs=3)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 100

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(images).flatten(1))


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pooled(done: float = 0.1) -> Batch:
    """Four labelled rows, and two views of three others."""
    return Batch(pictures(4, 0), torch.tensor([0, 1, 2, 0]), torch.ones(4), pool=pictures(6, 1), done=done)


def learner(project, net: nn.Module, **changes: object) -> Learner:
    small.write(project.root)
    return Learner(net, small.config(**changes))


def test_the_teacher_is_the_average_and_its_batches_move_no_statistics(project) -> None:
    torch.manual_seed(0)
    net, other, twin = Net(), Net(), Net()
    twin.load_state_dict(net.state_dict())
    student = learner(project, net, consistency="mean_teacher(ramp=0.5)")
    student.consistency.follow(averages.ema(other))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    batch = pooled()
    loss = student(batch, draw(0))
    both = torch.cat([batch.images, batch.pool[3:]])
    outputs = twin.outputs(twin.prepare(both))
    labelled = nn.functional.cross_entropy(outputs[:4], batch.targets)
    taught = other.outputs(other.prepare(batch.pool[:3])).detach()
    apart = (outputs[4:].softmax(1) - taught.softmax(1)).square().sum(1).mean()
    torch.testing.assert_close(loss, labelled + 10 * math.exp(-5 * (1 - 0.2) ** 2) * apart)
    loss.backward()
    labelled.add(10 * math.exp(-5 * 0.64) * apart).backward()
    torch.testing.assert_close(net.head.weight.grad, twin.head.weight.grad)
    assert small.same(net.norm.state_dict(), twin.norm.state_dict()), "the student's one batch alone is counted"
    kept = student.consistency.average.weights
    assert all(torch.equal(kept[name], before[name]) for name in kept), "the teacher's own passes leave no trace"


def test_fixmatch_learns_strong_views_from_sure_weak_ones(project) -> None:
    torch.manual_seed(0)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    batch = pooled()
    outputs = twin.outputs(twin.prepare(torch.cat([batch.images, batch.pool])))
    weak, strong = outputs[4:7].detach(), outputs[7:]
    threshold = float(weak.softmax(1).amax(1).median())
    sure = weak.softmax(1).amax(1) >= threshold
    rows = nn.functional.cross_entropy(strong, weak.argmax(1), reduction="none") * sure
    expected = nn.functional.cross_entropy(outputs[:4], batch.targets) + 2 * rows.mean()
    student = learner(project, net, consistency="fixmatch(weight=2.0)")
    student.consistency.threshold = threshold
    found = student(batch, draw(0))
    assert sure.tolist().count(True) == 2
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(net.head.weight.grad, twin.head.weight.grad)


def test_without_a_pool_or_without_a_consistency_nothing_is_added(project) -> None:
    torch.manual_seed(0)
    net, batch = Net().eval(), pooled()
    alone = Batch(batch.images, batch.targets, batch.weights)
    plain = learner(project, net)(alone, draw(0))
    assert torch.equal(plain, Learner(net, small.config())(batch, draw(0)))
    for call in ("mean_teacher()", "fixmatch()", "softmatch()"):
        assert torch.equal(plain, Learner(net, small.config(consistency=call))(alone, draw(0)))


def test_a_mix_mixes_labelled_rows_alone(project, monkeypatch) -> None:
    student = learner(project, Net().eval(), consistency="mean_teacher(ramp=0.0)", mix="mixup(alpha=1.0)")
    seen = []
    monkeypatch.setattr(student, "mix", lambda images, targets, generator: (seen.append(images), (images, targets))[1])
    batch = pooled()
    batch.targets = torch.eye(3)[batch.targets]
    student(batch, draw(0))
    assert torch.equal(seen[0], batch.images.float() / 100)


# --- the pool ---------------------------------------------------------------------------------------------------------

ROWS, OTHERS = 8, 5


class Pictures:
    """Images in memory: (N, 8, 8, 3) uint8."""

    images = np.random.default_rng(0).integers(0, 256, (ROWS + OTHERS, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


def table(pool: bool = True) -> Table:
    rows = Table(np.arange(ROWS), np.arange(ROWS) % 3, np.ones(ROWS, dtype=np.float32))
    rows.pool = np.arange(3, ROWS + OTHERS) if pool else None
    return rows


def pool_config(project, **changes: object):
    small.write(project.root)
    known = {"augment": "pad_crop(pad=2)", "batch_size": 4, "symmetry": "hflip", "epochs": 5}
    return small.config(**known, consistency="fixmatch(ratio=0.75,strong='cutout(chance=1.0)')", **changes)


def test_a_pool_is_seen_row_after_row_and_goes_on_where_it_was(project) -> None:
    loader = Loader(Joined([Pictures()]), table(), pool_config(project))
    rows = np.concatenate([loader.pool.beside(step)[0] for step in range(20)])
    assert len(rows) == 20 * 3
    assert all(sorted(rows[start : start + 10]) == list(range(3, 13)) for start in range(0, 60, 10)), "all, then anew"
    assert rows[:10].tolist() != rows[10:20].tolist()
    again = Loader(Joined([Pictures()]), table(), pool_config(project))
    assert again.pool.beside(7)[0].tolist() == rows[21:24].tolist()
    assert again.pool.beside(3)[0].tolist() == rows[9:12].tolist(), "across two rounds, backwards"


@pytest.mark.parametrize("kind", [Loader, DeviceLoader])
def test_labelled_rows_are_what_they_are_without_a_pool(project, kind) -> None:
    config, source = pool_config(project), Joined([Pictures()])
    more = {} if kind is Loader else {"most": 0, "device": torch.device("cpu")}
    pairs = zip(kind(source, table(), config, **more).epoch(1), kind(source, table(False), config, **more).epoch(1),
                strict=True)  # fmt: skip
    for step, (batch, alone) in enumerate(pairs):
        assert alone.pool is None
        assert batch.pool.shape == (6, 3, 8, 8)
        assert batch.done == (2 + step) / 10
        assert torch.equal(batch.images, alone.images)
        assert torch.equal(batch.targets, alone.targets)
    later = next(kind(source, table(), config, **more).epoch(1, start=1))
    assert torch.equal(later.pool, batch.pool)


def test_two_views_are_augmented_apart_and_one_is_strong(project) -> None:
    config, source = pool_config(project), Joined([Pictures()])
    loader = Loader(source, table(), config)
    [batch, _] = loader.epoch(1)
    rows, seeds = loader.pool.beside(2)
    weak, strong = batch.pool.permute(0, 2, 3, 1).numpy().reshape(2, 3, 8, 8, 3)
    crop, hole = augments.augmenter(augments.pad_crop(8, pad=2)), augments.augmenter(augments.cutout(8, chance=1.0))
    for place, (row, seed) in enumerate(zip(rows, seeds.tolist(), strict=True)):
        assert np.array_equal(weak[place], crop(Pictures.images[row], seed))
        moved = crop(Pictures.images[row], seed + (1 << 32))
        assert np.array_equal(strong[place], hole(moved, seed + (2 << 32)))
    resident = DeviceLoader(source, table(), config, 0, torch.device("cpu"))
    [other, _] = resident.epoch(1)
    first, *_ = batched.changed(
        resident.transforms, torch.from_numpy(Pictures.images[rows]), None, torch.from_numpy(seeds)
    )
    assert torch.equal(other.pool[:3], first.permute(0, 3, 1, 2)), "the same rows, and seeds"
    assert not (set(seeds.tolist()) & set(row_seeds(loader.seed, 1, np.arange(ROWS)).tolist()))


class Planes(Pictures):
    """The same with planes: their first channel."""

    def samples(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[rows], self.images[rows][..., :1].copy()


def test_pixels_with_planes_keep_their_place_in_both_views(project) -> None:
    config = pool_config(project)
    for kind, more in ((Loader, ()), (DeviceLoader, (0, torch.device("cpu")))):
        [batch, _] = kind(Planes(), table(), config, *more).epoch(0)
        weak, strong = batch.pool.chunk(2)
        changed = (weak != strong).float().mean()
        assert 0 < float(changed) <= 1 / 16, "a hole of a quarter of the side, and nothing else"


# --- trainings --------------------------------------------------------------------------------------------------------

CALLS = ("mean_teacher(ratio=1.5)", "softmatch(ratio=1.5)")
WORDS = ("stage=train", "fold=0", "batch_size=4", "augment=light()", "train.accumulate=2", "head=linear(dropout=0.3)")


@pytest.mark.parametrize("call", CALLS)
def test_a_killed_training_ends_with_the_same_weights(project, call: str) -> None:
    folder = small.write(project.root, rows=41)
    (folder / "more").mkdir()
    for path in sorted((folder / "test_images").iterdir())[:3]:
        (folder / "more" / path.name).write_bytes(path.read_bytes())
    words = (*WORDS, f"consistency={call}", "epochs=2", "train.checkpoint_seconds=0")
    words = (*words, "data.unlabelled=more", "mix=mixup()")
    assert project.run(*words, "run=whole").code == 0
    for passes in (3, 4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, passes)
            project.run(*words, "run=killed")
    assert project.run(*words, "run=killed").code == 0
    one, other = (project.root / "runs/noise" / run / "fold0" for run in ("whole", "killed"))
    assert small.same(small.weights(one / "best.ckpt"), small.weights(other / "best.ckpt"))
    states = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, other)]
    assert small.same(states[0]["learner"], states[1]["learner"]), "what it gathered, too"
    student = {name.removeprefix("network."): tensor for name, tensor in states[0]["learner"].items()}
    teacher = states[0]["average"].get("weights", {})
    assert bool(teacher) == call.startswith("mean_teacher")
    for name, tensor in teacher.items():
        assert torch.equal(small.weights(one / "best.ckpt")[name], tensor), "the teacher predicts"
    assert not teacher or not small.same({name: student[name] for name in teacher}, teacher)
    (folder / "more" / "x.png").write_bytes(path.read_bytes())
    stopped = project.run(*words, "run=whole", "fold=1")
    assert stopped.code == 2
    assert "data.unlabelled changed" in stopped.err


def test_no_row_of_the_held_out_fold_is_in_a_members_pool(project) -> None:
    folder = small.write(project.root)
    (folder / "more").mkdir()
    (folder / "more" / "x.png").write_bytes(next((folder / "test_images").iterdir()).read_bytes())
    assert project.run("stage=split").code == 0
    config = small.config(consistency="mean_teacher()", data__unlabelled="more")
    run = Run(config, "tiny")
    task, count = task_for(config, run.competition), len(run.competition.train)
    for fold in (0, 1):
        found, source, _ = training.materials(run, task, (fold,))
        own = np.flatnonzero(run.folds != fold).tolist()
        assert found.pool.tolist() == own + list(range(count, count + len(run.competition.test) + 1))
        assert len(source.stores[2]) == 1
    assert training.materials(Run(small.config(), "tiny"), task, (0,))[0].pool is None


TASKS = ("binary()", "multilabel()", "regression()", "circular(period=24)", "ordinal()", "ordinal_regression()")
MAPS = ("masks", "class_masks", "objects")
SLOWER = ("binary()", "ordinal()", "ordinal_regression()", "objects")  # of a form that another has, too


@pytest.mark.parametrize(
    "task", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOWER)) for one in TASKS + MAPS]
)
def test_every_task_learns_from_a_pool(project, task: str) -> None:
    if task in MAPS:
        small_tasks.write_masks(project.root, task, rows=12)
    else:
        small_tasks.write(project.root, task, rows=24)
    numbers = task in ("regression()", "circular(period=24)", "ordinal_regression()")
    calls = ["mean_teacher()", *([] if numbers else ["fixmatch(threshold=0.5)"])]
    for call in [*calls, *([] if numbers or task in MAPS else ["softmatch()"])]:
        words = ("batch_size=6", "epochs=1", f"consistency={call}", f"run={call[:4]}")
        ended = project.run("stage=train", "fold=0", *words)
        assert ended.code == 0, ended.err
        assert math.isfinite(float(ended.out.partition("loss ")[2].split()[0]))
    if numbers:
        stopped = project.run("stage=train", "consistency=fixmatch()")
        assert stopped.code == 2
        assert "those that fit: none, mean_teacher" in stopped.err
    if task in MAPS:
        assert (
            "those that fit: none, mean_teacher, fixmatch" in project.run("stage=train", "consistency=softmatch()").err
        )


@pytest.mark.parametrize(("form", "columns"), [(CLASSES, 3), (LABELS, 3), (NUMBERS, 2), (MASKS, 2), (CLASS_MASKS, 3)])
def test_a_pool_teaches_a_student_what_its_teacher_says(form, columns: int) -> None:
    """By gradient steps on the consistency alone, the student's answers become the teacher's."""
    torch.manual_seed(0)
    pixels = (2, 2) if form.spatial else ()
    taught, said = torch.randn(6, columns, *pixels), torch.randn(6, columns, *pixels, requires_grad=True)
    part = consistencies.mean_teacher(form, columns, ramp=0.0)
    part.follow(SimpleNamespace(weights={}))
    optimizer, losses = torch.optim.Adam([said], lr=0.1), []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(part.loss(nn.Identity(), torch.cat([taught, taught]), said, 0.0))  # the teacher gives its input
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.02 * losses[0].item()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"average": "ema()"}, "does not go with average=ema.., since its teacher is an average"),
        ({"optim": "schedule_free()"}, "needs its own average"),
        ({"train__compile": True}, "does not go with train.compile=true"),
        ({"pairs": ["triplet()"]}, "does not go with pairs=triplet"),
        ({"loss": "jsd()", "augment": "several()"}, "does not go with loss=jsd"),
        ({"augment": "several()"}, "does not go with augment=several"),
        ({"consistency": "mean_teacher(strong='several()')"}, "strong makes one view"),
        ({"consistency": "mean_teacher(strong='flips()')"}, "flips.. needs symmetry=hflip"),
        ({"consistency": "mean_teacher(distance='mae')"}, "distance is one of mse, kl"),
        ({"consistency": "mean_teacher(ratio=0)"}, "ratio must be ≥ 0.01"),
        ({"consistency": "softmatch(sigmas=0)"}, "sigmas must be ≥ 0.01"),
        ({"consistency": "fixmatch(threshold=0.4)"}, "threshold must be ≥ 0.5"),
        ({"consistency": "fixmatch(strong='rand_agment()')"}, "there is no 'rand_agment'"),
        ({"loader": "device"}, "strong=rand_augment.. cannot be done"),
    ],
)
def test_what_does_not_go_together_fails_before_any_work(project, words: dict[str, object], said: str) -> None:
    small.write(project.root)
    with pytest.raises(UserError, match=said):
        small.config(**{"consistency": "mean_teacher()", **words})


def test_a_task_refuses_what_it_cannot_compare(project) -> None:
    small_tasks.write(project.root, "regression()", rows=12)
    assert "learns numbers" in project.run("stage=split", "consistency=mean_teacher(distance='kl')").err
    small_tasks.write_masks(project.root, "masks", rows=12)
    moves = project.run("stage=split", "consistency=fixmatch(strong='light()')").err
    assert "strong=light() moves pixels" in moves
    assert "for strong there are: none, cutout, colour" in moves
    small_tasks.write_retrieval(project.root)
    assert "those of the test are not" in project.run("stage=split", "consistency=fixmatch()", "pairs=[]").err


def test_an_average_goes_with_fixmatch_and_the_teacher_is_one(project) -> None:
    small.write(project.root)
    assert averaging(small.config(consistency="fixmatch()", average="swa()")) == "swa()"
    assert averaging(small.config(consistency="mean_teacher(decay=0.9)")) == "ema(decay=0.9)"
    assert averaging(small.config()) == "none()"
