"""fit(): steps, groups, schedules, selection and what it leaves on disk, on nets small enough to follow by hand."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from pipeline import engine, infer, registry, training
from pipeline.artefacts import Predictions, read_json
from pipeline.checkpoint import Progress, load_checkpoint
from pipeline.data import Joined, Loader, Table
from pipeline.errors import UserError
from pipeline.learner import Learner
from pipeline.network import Blueprint

PLAIN = {
    "optim": "sgd(momentum=0.0)",
    "schedule": "constant()",
    "lr": 0.1,
    "batch_size": 4,
    "epochs": 2,
    "image_size": 4,
}


class Pixels:
    """Images in memory: (N, 4, 4, 1) uint8."""

    def __init__(self, count: int) -> None:
        self.images = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


class Linear(nn.Module):
    """A net of one layer, without BatchNorm: the mean over a batch is all that its gradient sees of it."""

    blueprint = Blueprint("none", "avg()", "linear()", 1, 4, "stretch", [0.5], [0.25], ["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 - 0.5

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.reshape(len(images), -1)).float()


@dataclass
class Bench:
    """One training in memory: what fit needs, the same each time."""

    folder: Path
    rows: int = 20

    def __post_init__(self) -> None:
        small.write(self.folder)
        self.pixels = Pixels(self.rows)
        self.targets = np.arange(self.rows) % 2

    def loader(self, config) -> Loader:
        table = Table(np.arange(self.rows), self.targets, np.ones(self.rows, dtype=np.float32))
        return Loader(Joined([self.pixels]), table, config)

    def network(self) -> Linear:
        torch.manual_seed(0)
        return Linear()

    def fit(self, run: str = "run", validate=None, fabric: Fabric | None = None, **changes) -> tuple[Linear, Progress]:
        config = small.config(**{**PLAIN, **changes})
        network = self.network()
        fabric = fabric or Fabric(accelerator="cpu", devices=1)
        progress = engine.fit(
            fabric, Learner(network, config), self.loader(config), config, self.folder / run, validate
        )
        return network, progress


@pytest.fixture
def bench(project) -> Bench:
    return Bench(project.root)


def by_hand(bench: Bench, accumulate: int = 1, clip_norm: float = math.inf, **changes) -> Linear:
    """Plain gradient descent on each epoch's order, cut into groups: what fit must come to."""
    config = small.config(**{**PLAIN, **changes})
    network, order_of = bench.network(), bench.loader(config).order
    starts = range(0, bench.rows, config.batch_size * accumulate)
    schedule, total, step = registry.build("schedules", config.schedule), config.epochs * len(starts), 0
    for epoch in range(config.epochs):
        for start in starts:
            rows = order_of(epoch)[start : start + config.batch_size * accumulate]
            images = torch.from_numpy(bench.pixels.images[rows]).permute(0, 3, 1, 2)
            outputs = network.outputs(network.prepare(images))
            gradients = torch.autograd.grad(
                nn.functional.cross_entropy(outputs, torch.from_numpy(bench.targets[rows])), list(network.parameters())
            )
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
            factor = config.lr * schedule(step, total) * min(1, clip_norm / norm)
            with torch.no_grad():
                for weight, gradient in zip(network.parameters(), gradients, strict=True):
                    weight -= factor * gradient
            step += 1
    return network


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant()", "cosine(warmup=0.2)", "steps(at=(0.5,))", "one_cycle()"])
def test_fit_is_gradient_descent_on_the_schedule(bench, schedule):
    network, progress = bench.fit(schedule=schedule)
    assert distance(network, by_hand(bench, schedule=schedule)) < 1e-6
    assert distance(network, bench.network()) > 1e-3
    assert (progress.epoch, progress.updates) == (2, 10)


@pytest.mark.parametrize("accumulate", [2, 3, 5, 8])  # 5 batches: groups of 2, 2, 1 · 3, 2 · 5 · 5, fewer than asked
def test_accumulated_gradients_equal_the_larger_batch(bench, accumulate):
    network, progress = bench.fit(train__accumulate=accumulate, schedule="cosine()")
    assert distance(network, by_hand(bench, accumulate, schedule="cosine()")) < 1e-6
    assert progress.updates == 2 * math.ceil(5 / accumulate)


def test_clip_norm_bounds_the_gradient_of_a_group(bench):
    clipped = bench.fit("clipped", train__clip_norm=0.05, train__accumulate=2)[0]
    assert distance(clipped, by_hand(bench, 2, clip_norm=0.05)) < 1e-6
    assert distance(clipped, bench.fit("free", train__accumulate=2)[0]) > 1e-3
    loose = bench.fit("loose", train__clip_norm=1e6, train__accumulate=2)[0]
    assert distance(loose, by_hand(bench, 2)) < 1e-6


@pytest.mark.parametrize("clip_norm", [0.0, 1e6])
def test_a_step_that_amp_skips_moves_neither_schedule_nor_average(bench, monkeypatch, clip_norm):
    """A real gradient scaler, on fp16, whose first scale is far too large: it skips until it has come down."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    seen, averaged = [], []
    step = engine._optimizer_step

    def spy(optimizer, scaler):
        taken = step(optimizer, scaler)
        seen.append((taken, optimizer.param_groups[0]["lr"]))
        return taken

    monkeypatch.setattr(engine, "_optimizer_step", spy)
    update = registry.find("averages", "ema").load().update
    monkeypatch.setattr(
        registry.find("averages", "ema").load(), "update", lambda *args: (averaged.append(args[2]), update(*args))
    )
    _, progress = bench.fit(
        fabric=fabric, schedule="cosine(warmup=0.0)", average="ema()", epochs=6, train__clip_norm=clip_norm
    )
    taken = [done for done, _ in seen]
    assert not taken[0], "the first step must be skipped, or this test shows nothing"
    assert taken[-1]
    assert progress.updates == sum(taken) < len(taken) == 30
    assert averaged == list(range(sum(taken)))
    before = np.cumsum([0, *taken[:-1]])
    assert [lr for _, lr in seen] == [pytest.approx(0.1 * (1 + math.cos(math.pi * k / 30)) / 2) for k in before]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sam_with_both_kinds_of_clipping_is_the_same_under_a_gradient_scaler(bench, accumulate):
    """fp16 with a scale that fits: unscaled once, and clipped at the size that fp32 is."""
    words = {
        "optim": "sam(inner='sgd(momentum=0.0)', rho=0.3)", "train__clip_value": 0.02, "train__clip_norm": 0.03,
        "train__accumulate": accumulate,
    }  # fmt: skip
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    half, progress = bench.fit("half", fabric=fabric, **words)
    whole, expected = bench.fit("whole", **words)
    assert progress.updates == expected.updates
    assert distance(half, whole) < 5e-4
    for other in ({"train__clip_value": 0.0}, {"train__clip_norm": 0.0}):
        assert distance(bench.fit(str(other), **{**words, **other})[0], whole) > 1e-3


def test_a_fresh_optimizer_and_schedule_for_every_fold(project, monkeypatch):
    small.write(project.root)
    firsts = []
    build = registry.build

    def spy(kind, text):
        if kind != "optims":
            return build(kind, text)

        def made(parameters, lr):
            optimizer = build(kind, text)(parameters, lr)
            firsts.append((len(optimizer.state), lr))
            return optimizer

        return made

    monkeypatch.setattr(registry, "build", spy)
    assert project.run("stage=train", "fold=all", "schedule=cosine(warmup=0.5)").code == 0
    assert firsts == [(0, 3e-3)] * 2
    logs = [(project.root / f"runs/noise/tiny/fold{fold}/log.csv").read_text().splitlines() for fold in (0, 1)]
    rates = [[dict(zip(log[0].split(","), row.split(","), strict=True))["lr"] for row in log[1:]] for log in logs]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


# --- a loss that is not finite ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(bench, monkeypatch):
    forward, left = Learner.forward, [7]

    def spoiled(self, batch, generator):
        left[0] -= 1
        return forward(self, batch, generator) * (math.nan if left[0] < 0 else 1)

    monkeypatch.setattr(Learner, "forward", spoiled)
    with pytest.raises(UserError, match=r"the loss of run is nan in epoch 2, step 3; .*lr=0\.01"):
        bench.fit(train__checkpoint_seconds=0)
    left_behind = load_checkpoint(bench.folder / "run/last.ckpt")
    assert (left_behind["progress"]["epoch"], left_behind["progress"]["step"]) == (1, 2)
    assert all(torch.isfinite(tensor).all() for tensor in left_behind["learner"].values())
    assert not (bench.folder / "run/best.ckpt").exists()


def test_nan_ends_a_stage_with_one_message(project):
    small.write(project.root)
    assert project.run("stage=train", "fold=0").code == 0
    kept = {path: path.read_bytes() for path in (project.root / "runs").rglob("*.ckpt")}
    stopped = project.run("stage=train", "run=wild", "optim=sgd()", "lr=1e30")
    assert stopped.code == 2
    assert stopped.err.startswith("error: the loss of runs/noise/wild/fold0 is ")
    assert stopped.err.count("\n") == 1
    assert kept == {path: path.read_bytes() for path in kept}
    assert not (project.root / "runs/noise/wild/fold0/best.ckpt").exists()
    assert not (project.root / "runs/noise/wild/fold1").exists()


# --- which epoch predicts -----------------------------------------------------------------------------------------


class Judge:
    """A validation that gives prepared scores and remembers the weights it saw."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), []

    def __call__(self, networks: Iterable[nn.Module]) -> tuple[float, dict[str, float]]:
        for network in networks:
            assert not network.training
            self.seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        score = self.scores[len(self.seen) - 1]
        return score, {"score": score}


@pytest.mark.parametrize("average", ["none()", "ema(decay=0.5)"])
@pytest.mark.parametrize(("select", "epoch"), [("last", 4), ("best", 2)])
def test_best_ckpt_holds_the_selected_epoch(bench, average, select, epoch):
    judge = Judge(0.1, 0.8, 0.3, 0.8)  # of equals the first
    network, progress = bench.fit(validate=judge, epochs=4, select=select, average=average)
    content = load_checkpoint(bench.folder / "run/best.ckpt")
    assert small.same(content["network"], judge.seen[epoch - 1])
    assert not small.same(content["network"], judge.seen[0])
    assert progress.best_epoch + 1 == 2
    assert small.same(network.state_dict(), judge.seen[3]) == (average == "none()"), "training goes on unaveraged"


def test_snapshots_judge_predict_and_are_kept_together(bench):
    """Five steps an epoch, two cycles of five: one snapshot an epoch."""
    judge = Judge(0.1, 0.2, 0.3)  # of one network, then of two
    bench.fit(validate=judge, schedule="multicycle_cosine(cycles=2)", average="snapshots()", lr=0.5)
    content = load_checkpoint(bench.folder / "run/best.ckpt")
    kept = [content["network"], *content["others"]]
    assert all(small.same(one, seen) for one, seen in zip(kept, judge.seen[1:], strict=True))
    assert small.same(kept[1], judge.seen[0])


def test_the_learning_rate_follows_the_scores(bench):
    judge = Judge(0.5, 0.4, 0.6, 0.6)
    given = {"schedule": "reduce_on_plateau(patience=0, factor=0.5)", "epochs": 4, "train__accumulate": 2}
    _, progress = bench.fit(validate=judge, **given)
    assert [row["lr"] for row in progress.history] == [0.1, 0.1, 0.05, 0.05]


def test_a_soup_is_made_at_the_end_and_predicts(bench):
    """Of four epochs the greedy one tries the best three: scored 0.6, 0.7, 0.5 in the order 2, 4, 1."""
    judge = Judge(0.3, 0.6, 0.1, 0.5, *(0.6, 0.7, 0.5), 0.7)
    network, progress = bench.fit(validate=judge, epochs=4, lr=0.5, average="greedy_soup(candidates=3)")
    assert progress.averaged == [2, 4]
    assert progress.final == 0.7
    content = load_checkpoint(bench.folder / "run/best.ckpt")["network"]
    assert small.same(content, judge.seen[5])
    assert small.same(content, judge.seen[7]), "what is scored is what predicts"
    mean = (judge.seen[1]["layer.weight"] + judge.seen[3]["layer.weight"]) / 2
    assert torch.allclose(content["layer.weight"], mean)
    assert small.same(network.state_dict(), judge.seen[3]), "the training's own weights come back"
    assert [row["score"] for row in progress.history] == [0.3, 0.6, 0.1, 0.5]


def test_the_score_of_a_soup_stands_in_the_table(project, monkeypatch):
    small.write(project.root)
    judged(monkeypatch, {0: (0.1, 0.2, 0.3, 0.9, 0.4, 0.8), 1: (0.1, 0.2, 0.3, 0.9, 0.4, 0.6)})
    out = project.run("stage=train", "average=uniform_soup(candidates=2)", "train.patience=0").out
    assert "fold0 averages the epochs 3, 2: score 0.9000" in out
    assert "accuracy() 0.9000 ± 0.0000 on all folds (selected on its own fold: average=uniform_soup(" in out
    stopped = project.run("stage=train", "average=greedy_soup()", "select=best", "run=twice")
    assert "chooses among the epochs itself" in stopped.err


def test_predictions_of_snapshots_are_their_mean(project):
    small.write(project.root)
    words = ("epochs=2", "schedule=multicycle_cosine(cycles=2)", "average=snapshots()", "lr=0.05")
    assert project.run("stage=train", "fold=0", *words).code == project.run("stage=predict", "fold=0").code == 0
    together = oof(project.root, "tiny", 0)
    path = project.root / "runs/noise/tiny/fold0/best.ckpt"
    content, alone = load_checkpoint(path), []
    for one in (content["network"], *content.pop("others")):
        torch.save({**content, "network": one}, path)
        (path.parent / "predict.json").unlink()
        assert project.run("stage=predict", "fold=0").code == 0
        alone.append(oof(project.root, "tiny", 0))
    assert len(alone) == 2
    assert not np.allclose(*alone, atol=1e-4)
    assert np.allclose(together, np.mean(alone, axis=0), atol=1e-6)


FOLLOWING = (
    "schedule=reduce_on_plateau()",
    "finetune=head_until_still()",
    "schedule=halve_at(levels=[0.5])",
    "average=greedy_soup()",
)


@pytest.mark.parametrize("setting", FOLLOWING)
def test_what_follows_the_own_fold_is_marked_and_has_none_in_fold_full(project, setting):
    small.write(project.root)
    stopped = project.run("stage=train", "fold=full", setting)
    assert stopped.code == 2
    assert f"{setting} follows the scores of the member's own fold, of which there is none" in stopped.err
    assert not (project.root / "runs/noise").exists()
    assert f"(selected on its own fold: {setting})" in project.run("stage=train", "epochs=1", setting).out
    assert f"selected on its own fold: {setting}" in project.run("stage=predict").out
    other = project.run("stage=train", setting, "epochs=1", "metric=log_loss()")
    assert other.code == 2, "the metric defines a run that follows it"
    assert "metric" in other.err


def test_snapshots_need_cycles(project):
    small.write(project.root)
    for schedule in ("cosine()", "reduce_on_plateau()", "multicycle_cosine(cycles=1)"):
        stopped = project.run("stage=train", "average=snapshots()", f"schedule={schedule}")
        assert stopped.code == 2
        assert "needs several cycles of the learning rate" in stopped.err
    assert small.config(average="snapshots()", schedule="cosine_restarts()")


def test_scores_of_an_error_are_turned_by_the_caller(bench):
    judge = Judge(-3.0, -1.0, -2.0)
    bench.fit(validate=judge, epochs=3, select="best")
    assert small.same(load_checkpoint(bench.folder / "run/best.ckpt")["network"], judge.seen[1])


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (3, 6)])
def test_patience_counts_epochs_without_gain(bench, patience, epochs):
    judge = Judge(0.1, 0.5, 0.2, 0.5, 0.6, 0.1)
    _, progress = bench.fit(validate=judge, epochs=6, train__patience=patience)
    assert progress.epoch == len(judge.seen) == epochs


def judged(monkeypatch: pytest.MonkeyPatch, scores: dict[int, tuple[float, ...]]) -> None:
    """Let the folds of a run score as prepared, so that no machine's rounding decides what a test sees."""
    monkeypatch.setitem(training.VALIDATIONS, False, lambda run, task, held_out, images: Judge(*scores[held_out[0]]))


def test_select_common_is_one_epoch_for_all_folds(project, monkeypatch):
    """With a constant schedule, the weights of epoch e are those of a training of e epochs."""
    small.write(project.root)
    judged(monkeypatch, {0: (0.1, 0.9, 0.3, 0.2), 1: (0.2, 0.3, 0.7, 0.1)})  # the mean is best in epoch 2
    words = ("stage=train", "schedule=constant()", "select=common", "epochs=4")
    first = project.run(*words, "fold=0")
    assert "until then the last one predicts" in first.out
    assert project.run("stage=predict", "fold=0").code == 0
    early = oof(project.root, "tiny", 0)
    out = project.run(*words).out
    assert "epoch 2 predicts in all folds" in out
    assert "accuracy() 0.6000 ± 0.3000 on all folds (one epoch for all folds)" in out
    assert project.run(*words, "run=short", "epochs=2", "select=last").code == 0
    for fold in (0, 1):
        one, other = (project.root / f"runs/noise/{run}/fold{fold}" for run in ("tiny", "short"))
        assert small.same(small.weights(one / "best.ckpt"), small.weights(other / "best.ckpt"))
        assert not list(one.glob("epoch*.ckpt"))
    assert project.run("stage=predict").code == project.run("stage=predict", "run=short").code == 0
    assert not np.array_equal(early, oof(project.root, "tiny", 0)), "predictions of the last epoch must not stand"
    assert np.array_equal(oof(project.root, "short", 0), oof(project.root, "tiny", 0))


def test_a_lost_best_ckpt_of_the_common_epoch_is_trained_anew(project, monkeypatch):
    small.write(project.root)
    judged(monkeypatch, {0: (0.1, 0.9, 0.3), 1: (0.2, 0.3, 0.2)})
    words = ("stage=train", "select=common")
    assert project.run(*words).code == 0
    path = project.root / "runs/noise/tiny/fold1/best.ckpt"
    before = small.weights(path)
    path.unlink()
    assert project.run(*words).code == 0
    assert small.same(before, small.weights(path))


def test_select_common_with_patience_looks_at_the_epochs_that_all_folds_have(project, monkeypatch):
    small.write(project.root)
    judged(monkeypatch, {0: (0.5, 0.3), 1: (0.1, 0.2, 0.9, 0.8)})
    ended = project.run("stage=train", "select=common", "epochs=4", "train.patience=1")
    assert ended.code == 0, ended.err
    assert [len(record(project.root, "tiny", fold)["scores"]) for fold in (0, 1)] == [2, 4]
    assert record(project.root, "tiny", 0)["common_epoch"] == 1


def oof(root: Path, run: str, fold: int) -> np.ndarray:
    return Predictions.load(root / f"runs/noise/{run}/fold{fold}/oof.npz").values


def record(root: Path, run: str, fold: int) -> dict:
    return read_json(root / f"runs/noise/{run}/fold{fold}/train.json")


def test_validation_computes_in_the_training_format(project, monkeypatch):
    small.write(project.root)
    predict, seen = infer.predict, []

    def spy(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return predict(*arguments)

    monkeypatch.setattr(infer, "predict", spy)
    for precision in ("bf16", "fp32"):
        words = ["stage=train", "fold=0", f"precision={precision}", f"run={precision}"]
        assert project.run(*words).code == 0
    half = len(seen) // 2
    assert seen == [True] * half + [False] * half
    assert half


# --- what is left on disk -----------------------------------------------------------------------------------------


def test_a_trained_run_is_on_disk(project):
    small.write(project.root)
    ended = project.run("stage=train", "fold=all", "data.normalise=dataset")
    assert ended.code == 0
    for fold in (0, 1):
        folder = project.root / f"runs/noise/tiny/fold{fold}"
        lines = (folder / "log.csv").read_text().splitlines()
        assert [float(line.split(",")[0]) for line in lines[1:]] == [1, 2, 3]
        assert {"loss", "score", "lr", "seconds"} <= set(lines[0].split(","))
        peak = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))["memory_gb"]
        assert 0.05 < float(peak) < 100, "torch alone holds more than 50 MB"
        assert list((folder / "tensorboard").iterdir())
    content = torch.load(project.root / "runs/noise/tiny/fold0/best.ckpt", weights_only=True)
    plan = Blueprint(**content["blueprint"])
    assert (plan.image_size, plan.channels, plan.resize, plan.columns) == (8, 1, "stretch", ["a", "b", "c"])
    assert 0.05 < plan.mean[0] < 0.95
    assert plan.mean[0] != pytest.approx(0.449, abs=0.01), "the data set's, not ImageNet's"
    torch.load(project.root / "runs/noise/tiny/fold0/last.ckpt", weights_only=True)


def test_finished_folds_are_left_as_they_are(project):
    small.write(project.root)
    assert project.run("stage=train", "fold=0").code == 0
    first = files(project.root, "fold0")
    assert project.run("stage=train", "fold=all").code == 0
    assert files(project.root, "fold0") == first
    again = project.run("stage=train", "fold=all")
    assert again.code == 0
    assert "train tiny fold" not in again.out
    assert files(project.root, "fold0") == first


def files(root: Path, member: str) -> dict[str, tuple[bytes, int]]:
    folder = root / "runs/noise/tiny" / member
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in paths}


def test_fold_full_trains_on_everything_without_a_score(project):
    small.write(project.root)
    ended = project.run("stage=train", "fold=full")
    assert ended.code == 0
    assert "accuracy" not in ended.out
    facts = project.root / "runs/noise/tiny/full/train.json"
    assert '"scores": []' in facts.read_text()
    assert '"rows": 32' in facts.read_text()
    assert project.run("stage=predict", "fold=full").code == 0
    assert (project.root / "runs/noise/tiny/full/test.npz").exists()
    assert not (project.root / "runs/noise/tiny/full/oof.npz").exists()
    assert [path.name for path in (project.root / "runs/noise/tiny").glob("fold*")] == []


def test_other_settings_are_refused_with_the_difference(project):
    small.write(project.root)
    assert project.run("stage=train", "fold=0").code == 0
    first = files(project.root, "fold0")
    refused = project.run("stage=train", "fold=0", "lr=1e-4", "epochs=5")
    assert refused.code == 2
    assert all(text in refused.err for text in ("lr: 0.003 → 0.0001", "epochs: 3 → 5", "run=tiny-2", "overwrite=true"))
    assert refused.err.count("\n") == 1
    assert files(project.root, "fold0") == first
    assert project.run("stage=train", "fold=0", "lr=1e-4", "epochs=5", "run=tiny-2").code == 0
    assert files(project.root, "fold0") == first
    assert project.run("stage=train", "fold=0", "epochs=5", "overwrite=true").code == 0
    assert record(project.root, "tiny", 0)["epochs"] == 5


def test_other_images_are_refused(project):
    folder = small.write(project.root)
    assert project.run("stage=train", "fold=0").code == 0
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace(",a\n", ",c\n", 1).replace(",c\n", ",a\n", 1))
    os.utime(folder / "train.csv", ns=(1, 1))
    if (folder / "train.csv").read_text() == text:
        pytest.fail("the table must change, or this test shows nothing")
    refused = project.run("stage=train", "fold=0", "folds.method=given()")
    assert refused.code == 2
    assert "made from other data" in refused.err


def test_a_damaged_oof_is_one_message(project):
    small.write(project.root)
    assert project.run("stage=train").code == project.run("stage=predict").code == 0
    path = project.root / "runs/noise/tiny/fold0/oof.npz"
    path.write_bytes(path.read_bytes()[:200])
    for stage in ("predict", "stack", "pseudo", "distill"):
        stopped = project.run(f"stage={stage}", "pseudo.threshold=0.1")
        assert stopped.code == 2, stage
        assert stopped.err.startswith("error: runs/noise/tiny/fold0/oof.npz is damaged")
        assert stopped.err.count("\n") == 1
    path.unlink()
    assert project.run("stage=predict").code == 0
    assert path.exists()
