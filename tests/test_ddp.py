"""devices=N: processes that train one network together come to what one process comes to with the same batches."""

from __future__ import annotations

import copy
import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import small_tasks
import small_training as small
import torch
from torch import nn

from pipeline import config, engine, hardware, objective, processes, ranks, resident, training
from pipeline.artefacts import Predictions
from pipeline.data import Joined, Loader, Table
from pipeline.errors import Diverged, UserError
from pipeline.forms import LABELS
from pipeline.hardware import Hardware
from pipeline.learner import Learner
from pipeline.network import Blueprint
from pipeline.runs import Run

TWO = ("devices=2", "device=cpu")


@pytest.fixture
def root(project) -> Path:
    small.write(project.root)
    return project.root


class Pixels:
    """Images in memory: (N, 4, 4, 1) uint8."""

    def __len__(self) -> int:
        return 24

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.repeat(rows, 16).reshape(-1, 4, 4, 1).astype(np.uint8)


def loader(rank: int = 0, count: int = 1, rows: int = 24, kind: str = "threads", **changes: object) -> Loader:
    """The batches of a process of so many, over rows of six classes and unequal weights."""
    table = Table(np.arange(rows), np.arange(rows) % 6, 1 + np.arange(rows, dtype=np.float32))
    source, settings = Joined([Pixels()]), small.config(image_size=4, **changes)
    machine = Hardware("cpu", "fp32", "fp32", 1, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "rank", lambda: rank)
        patch.setattr(ranks, "size", lambda: count)
        return resident.loader(source, table, settings, machine, torch.device("cpu"))


# --- shares of a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["threads", "device"])
def test_shares_make_the_batch_of_one_process(root, kind):
    given = {"kind": kind, "batch_size": 12, "augment": "light()"}
    each = [list(loader(rank, 3, **given).epoch(1)) for rank in range(3)]
    for whole, *shares in zip(loader(**given).epoch(1), *each, strict=True):
        assert [len(share.targets) for share in shares] == [4, 4, 4]
        for part in ("images", "targets", "weights"):
            assert torch.equal(torch.cat([getattr(share, part) for share in shares]), getattr(whole, part))
        assert [share.total for share in shares] == pytest.approx([float(whole.weights.sum()) / 3] * 3)


class Linear(nn.Module):
    """A net of one layer."""

    blueprint = Blueprint("none", "avg()", "linear()", 1, 4, "stretch", [0.5], [0.25], list("abcdef"))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 6)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 24

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def test_the_mean_of_the_losses_of_shares_is_that_of_the_batch(root):
    student = Learner(Linear(), small.config())
    whole = student(next(loader(batch_size=12).epoch(0)), None)
    shares = [next(loader(rank, 3, batch_size=12).epoch(0)) for rank in range(3)]
    each = torch.stack([student(share, None) for share in shares])
    torch.testing.assert_close(each.mean(), whole)
    assert len({float(share.weights.sum()) for share in shares}) > 1


def test_a_mixed_share_is_still_one(root):
    student = Learner(Linear(), small.config(mix="mixup(alpha=0.4)"), LABELS)
    share = next(loader(1, 2, batch_size=12).epoch(0))
    share.targets = nn.functional.one_hot(share.targets, 6).float()
    _, mixed = student._mixed(share.images.float(), share, np.random.default_rng(0))
    assert mixed.total == share.total
    assert float(mixed.weights.sum()) == pytest.approx(float(share.weights.sum()))


def test_each_device_gets_whole_classes_of_identities(root):
    sampler = "identities(p=4,k=3)"
    for rank in range(2):
        for batch in loader(rank, 2, batch_size=12, sampler=sampler).epoch(0):
            assert [len(set(batch.targets[place : place + 3].tolist())) for place in (0, 3)] == [1, 1]
            assert len(set(batch.targets.tolist())) == 2


def test_processes_draw_apart(monkeypatch):
    drawn = []
    for rank in (0, 1, 2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        drawn.append((float(engine._seed(3, 1, 2).random()), float(torch.rand(()))))
    assert len(set(drawn)) == 3
    monkeypatch.undo()
    assert (float(engine._seed(3, 1, 2).random()), float(torch.rand(()))) == drawn[0]


# --- what cannot be shared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("batch_size=9",), "batch_size=9 is no multiple of it: a batch is that of all devices together; take .*=8"),
        (("sampler=identities(p=3,k=4)", "batch_size=12"), r"takes 6 rows each .* cuts the 4 rows of a class apart"),
        (("train.seconds=9",), "train.seconds=9 is measured on one device"),
        (("stage=tune",), "each trial of stage=tune has one"),
        (("devices=0",), "devices must be ≥ 1"),
    ],
)
def test_settings_that_devices_cannot_share(root, words, said):
    with pytest.raises(UserError, match=said):
        config.compose(config.parse_arguments(["stage=train", *TWO, *words]))


def test_a_few_rows_that_make_one_uneven_batch(root):
    with pytest.raises(UserError, match="there are 5 rows .* devices=2 cannot share .* batch_size=4"):
        loader(0, 2, rows=5, batch_size=8)


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    hardware.check_devices("cuda", 2)
    hardware.check_devices("cpu", 4)
    for device, count, said in (
        ("cuda", 4, "devices=4, but this machine has 2 of device=cuda; set devices=2"),
        ("cuda:1", 2, "device=cuda:1 is one device, but devices=2; device=cuda takes the first 2"),
        ("mps", 2, "this machine has 1 of device=mps"),
    ):
        with pytest.raises(UserError, match=said):
            hardware.check_devices(device, count)


# --- alone --------------------------------------------------------------------------------------------------------


def test_alone_a_process_hears_itself():
    value = torch.ones(2)
    assert (ranks.size(), ranks.rank(), ranks.on_cpus()) == (1, 0, False)
    assert ranks.mean(value) is value
    assert ranks.part(np.arange(3)).tolist() == [0, 1, 2]
    assert ranks.gathered("own") == ["own"]
    assert ranks.told(lambda: 5) == 5
    agreed = ranks.Agreement()
    assert [agreed(stop, save) for stop, save in ((False, True), (True, False))] == [(False, True), (True, False)]


# --- two processes ------------------------------------------------------------------------------------------------


def test_two_devices_train_like_one(root, project):
    """BatchNorm, shared statistics and all: the same loss curve and weights, and the OOF of the same rows."""
    words = ("stage=train", "fold=0", "augment=light()", "average=ema()", "train.accumulate=2", "batch_size=4")
    assert project.run(*words, "run=one").code == 0
    assert project.run(*words, "run=two", *TWO).code == 0
    alike(root / "runs/noise", "one", "two")
    for run in ("one", "two"):
        assert project.run("stage=predict", "fold=0", f"run={run}").code == 0
    first, second = (Predictions.load(root / f"runs/noise/{run}/fold0/oof.npz") for run in ("one", "two"))
    assert first.ids.tolist() == second.ids.tolist()
    np.testing.assert_allclose(second.values, first.values, atol=1e-3)
    other = project.run(*words, "run=two", "device=cpu")
    assert other.code == 2
    assert "devices: 2 → 1" in other.err


def alike(runs: Path, one: str, two: str, score: float = 1e-4) -> None:
    """Two runs of fold 0 have the same curve and the same weights, but for the order of sums.

    score: how far their scores may be apart; ranks may change places where similarities are equal but for rounding.
    """
    for column, apart in (("loss", 1e-4), ("score", score), ("lr", 1e-4)):
        first, second = (log(runs / run, column) for run in (one, two))
        assert second == pytest.approx(first, abs=apart), (two, column)
    first, second = (small.weights(runs / run / "fold0/best.ckpt") for run in (one, two))
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-3, two


def log(run: Path, column: str) -> list[float]:
    with (run / "fold0/log.csv").open() as lines:
        return [float(row[column]) for row in csv.DictReader(lines)]


def train_each(words: list[list[str]]) -> list[float]:
    """Train fold 0 of several runs, one after the other, in a process that may have company; their last losses."""
    found = []
    for line in words:
        run = Run(config.compose(config.parse_arguments([*line, *TWO])), line[0].partition("=")[2])
        if not ranks.rank():
            run.settle()
        ranks.told(lambda: None)  # the first one has written it
        found.append(training.train_here(run, (0,), run.member((0,))))
    return [record["scores"][-1] for record in found]


ALIKE = {
    "plain": (),
    "thawed": ("finetune=head_first(epochs=1)",),
    "clipped": ("train.clip_norm=0.5", "optim=sgd()", "norm=group()", "image_size=32"),
    "averaged": ("average=swa(start=0.5)", "select=best"),
    "beside": ("auxiliary=middle(dropout=0.0)", "backbone=resnet18", "image_size=32", "optim=sgd()"),
    "margins": ("loss=arcface()", "head=cosine()"),
    "penalised": ("train.l2=0.01", "train.clip_value=0.1", "sizes=multi_scale(scales=(1.0,2.0))"),
    "rarer": ("sampler=balanced()", "loss=balanced_cross_entropy()"),
    "souped": ("average=greedy_soup(candidates=2)",),
    "taught": ("consistency=mean_teacher(ramp=0.0)", "batch_size=4"),
    "matched": ("consistency=fixmatch(threshold=0.5)", "batch_size=4"),
    "weighed": ("consistency=softmatch(ratio=2.0)", "batch_size=4"),
    "again": ("train.checkpointing=true", "backbone=resnet18", "image_size=32", "optim=sgd()"),
}
LEARNS = {
    "compiled": ("train.compile=true", "norm=group()", "image_size=32"),
    "mixed": ("mix=mixup(alpha=0.4)", "head=linear(dropout=0.3)"),
    "sharp": ("optim=sam()",),
    "ghosts": ("norm=ghost(size=2)", "average=polyak(recompute=true)"),
    "pairs": ("pairs=triplet()", "sampler=identities(p=2,k=2)", "batch_size=4", "head=bnneck()"),
    "moving": ("loss=adacos_moving()", "head=cosine(s=0)"),
}


@pytest.mark.slow
def test_what_training_can_do_it_does_on_two_devices(root, project):
    lines = {name: [f"run={name}", "stage=train", "fold=0", *words] for name, words in (ALIKE | LEARNS).items()}
    assert project.run("stage=split").code == 0
    processes.together(2, "cpu", train_each, list(lines.values()))
    for name, (_, *words) in lines.items():
        if name in ALIKE:
            assert project.run(*words, f"run={name}-alone").code == 0
            alike(root / "runs/noise", f"{name}-alone", name)
        else:
            losses = log(root / "runs/noise" / name, "loss")
            assert np.isfinite(losses).all()
            assert losses[-1] < losses[0], name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identities", "labels", "masks", "tiles"])
def test_what_validation_shares_out_and_puts_together(project, kind):
    if kind == "identities":
        small_tasks.write_retrieval(project.root)
    elif kind == "labels":
        small_tasks.write_labels(project.root)
    else:
        small_tasks.write_masks(project.root, "masks", **({"data.resize": "tiles"} if kind == "tiles" else {}))
    words = [
        "stage=train",
        "fold=0",
        "epochs=2",
        "batch_size=8",
        "optim=sgd()",
        *(["pairs=[]"] if kind in ("identities", "labels") else []),
    ]
    assert project.run("stage=split").code == 0
    assert project.run(*words, "run=alone").code == 0
    processes.together(2, "cpu", train_each, [["run=both", *words]])
    runs = project.root / "runs/drawn"
    alike(runs, "alone", "both", score=0.02 if kind in ("identities", "labels") else 1e-4)  # an image's rank, or less


@pytest.mark.slow
def test_a_norm_over_two_processes_is_a_norm_over_both_batches():
    processes.together(2, "cpu", compare_norms)


def compare_norms() -> None:
    """In each of two processes: outputs, gradients and statistics of its half are those of the whole."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 5, 3, 2), (6, 5)):
        whole, slopes = (torch.randn(shape, generator=generator) for _ in range(2))
        whole.requires_grad_()
        norm = nn.BatchNorm2d(5) if len(shape) == 4 else nn.BatchNorm1d(5)
        nn.init.normal_(norm.weight, generator=generator)
        shared = objective.synchronise(nn.Sequential(copy.deepcopy(norm)))
        own = np.split(np.arange(6), 2)[ranks.rank()]
        share = whole.detach()[own].requires_grad_()
        outputs, parts = norm(whole), shared(share)
        outputs.backward(slopes)
        parts.backward(slopes[own])
        torch.testing.assert_close(parts, outputs[own])
        torch.testing.assert_close(share.grad, whole.grad[own])
        torch.testing.assert_close(2 * ranks.mean(shared[0].weight.grad), norm.weight.grad)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(shared[0].state_dict()[name], value)
        torch.testing.assert_close(shared.eval()(share), norm.eval()(whole)[own])


@pytest.mark.slow
def test_processes_agree_on_what_any_of_them_asks():
    assert processes.together(2, "cpu", agree) == [(False, False), (True, False), (False, False), (False, True)]


def agree() -> list[tuple[bool, bool]]:
    """The second process asks to stop at the first step, the first one to save from the third on."""
    agreed = ranks.Agreement()
    asked = [(ranks.rank() == 1, ranks.rank() == 1), (False, False), (False, True), (False, ranks.rank() == 0)]
    return [agreed(*one) for one in asked]


# --- ends ---------------------------------------------------------------------------------------------------------

LONG = ("stage=train", "fold=0", "epochs=40", "average=ema()", "train.checkpoint_seconds=0", *TWO)


def begun(root: Path, *words: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A training of two processes that has ended its first epoch, and the two."""
    parent = small.process(root, *words)
    for line in parent.stdout:
        if "epoch  " in line:
            break
    tasks = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    spawned = [int(one) for one in tasks if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return parent, spawned


@pytest.mark.faults
def test_killed_and_stopped_it_goes_on_to_the_same_bytes(root):
    whole = small.process(root, *LONG, "run=whole")
    assert whole.wait() == 0, whole.stderr.read()
    parent, (_, second) = begun(root, *LONG, "run=cut")
    os.kill(second, signal.SIGKILL)
    _, said = parent.communicate()
    assert parent.returncode == 2
    assert said.count("error:") == 1
    assert "process 2 of 2 that train together was ended by SIGKILL" in said
    for number, code in ((signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        parent, spawned = begun(root, *LONG, "run=cut")
        parent.send_signal(number)
        _, said = parent.communicate()
        assert parent.returncode == code, said
        assert ("Go on with" in said) == (code == 130)
        assert [one for one in spawned if is_left(one)] == []
    last = small.process(root, *LONG, "run=cut")
    out, said = last.communicate()
    assert last.returncode == 0, said
    assert "going on from runs/noise/cut/fold0/last.ckpt" in out
    one, other = (small.weights(root / f"runs/noise/{run}/fold0/best.ckpt") for run in ("whole", "cut"))
    assert small.same(one, other)
    for column in ("epoch", "loss", "score", "lr"):
        assert log(root / "runs/noise/cut", column) == log(root / "runs/noise/whole", column)


def is_left(process: int) -> bool:
    """Whether a process is still at work after a while."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":  # nobody's, but ended
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_said_once(root):
    for words, code, message in (
        (("lr=1e30", "optim=sgd()"), 2, "the loss of runs/noise/wrong/fold0 is nan"),
        (("train.compile=true",), 2, "do not go together with the BatchNorms of small_image"),
    ):
        parent = small.process(root, "stage=train", "fold=0", "run=wrong", "overwrite=true", *TWO, *words)
        _, said = parent.communicate()
        assert parent.returncode == code, said
        assert said.count("error:") == 1
        assert message in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_fault_in_one_process_ends_the_other():
    with pytest.raises(RuntimeError, match=r"(?s)a process of 2 .* failed:.*ZeroDivisionError"):
        processes.together(2, "cpu", fail, 1)
    with pytest.raises(Diverged, match="settings"):
        processes.together(2, "cpu", diverge)


def fail(number: int) -> None:
    """One divides by zero while the other waits for it."""
    if ranks.rank() == number:
        _ = 1 / 0
    ranks.told(lambda: None)
    ranks.gathered(None)
    ranks.told(lambda: None)


def diverge() -> None:
    raise Diverged("other settings")
