"""stage=find_batch: real training steps are timed by a clock that the test sets, and the smallest fast batch wins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import small_training as small
import test_house
import torch

from pipeline import ranges
from pipeline.config import compose
from pipeline.ranges import Speed
from pipeline.runs import Run
from pipeline.stages import find_batch


@pytest.fixture
def root(project) -> Path:
    """128 rows, of which 64 are in the table of fold 0."""
    small.write(project.root, rows=128)
    return project.root


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Set what each batch of a size takes, in seconds; returns the list to which each batch adds its size."""

    def settle(cost: Callable[[int], float]) -> list[int]:
        now, seen, step = [0.0], [], ranges.Trial.step

        def counted(batches):
            for batch, generator in batches:
                seen.append(len(batch.images))
                now[0] += cost(seen[-1])
                yield batch, generator

        monkeypatch.setattr(ranges.Trial, "step", lambda self, batches: step(self, counted(batches)))
        monkeypatch.setattr(ranges, "clock", lambda: now[0])
        return seen

    return settle


def facts(root: Path) -> dict:
    return json.loads((root / "runs/noise/tiny/find_batch.json").read_text())


def overhead(size: int) -> float:
    """A step of 10 ms and 1 ms an image: 444, 615, 762 and 865 images/s at 8, 16, 32 and 64."""
    return 0.010 + 0.001 * size


# --- choosing -------------------------------------------------------------------------------------------------------


def speeds(*values: float) -> list[Speed]:
    return [Speed(8 * 2**place, value, 1.0) for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "batch"),
    [([100, 200, 390, 400, 405], 32), ([100], 8), ([100, 99, 98], 8), ([100, 50, 112], 32), ([90, 100], 8)],
)
def test_the_knee_is_the_smallest_within_a_tenth_of_the_best(values, batch):
    assert ranges.knee(speeds(*values)).batch == batch


@pytest.mark.parametrize(
    ("values", "ends"),
    [([100, 90, 90], True), ([100, 90, 96], False), ([100, 90], False), ([90, 100, 90], False), ([1, 2, 3], False)],
)
def test_two_slower_sizes_end_it(values, ends):
    assert ranges.fading(speeds(*values)) == ends


@pytest.mark.parametrize(
    ("rows", "kind", "expected"),
    [
        (64, "cpu", [8, 16, 32, 64]),
        (100, "cpu", [8, 16, 32, 64]),
        (5, "cpu", [5]),
        (5000, "cpu", [8, 16, 32, 64, 128, 256, 512]),
        (5000, "cuda", [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]),
    ],
)
def test_sizes_are_powers_of_two_up_to_the_table(rows, kind, expected):
    assert ranges.sizes(rows, kind) == expected


# --- measuring ------------------------------------------------------------------------------------------------------


def test_the_speed_is_that_of_the_timed_steps_after_warm_ones(root, project, timed):
    steps = timed(overhead)
    ended = project.run("stage=find_batch")
    assert ended.code == 0, ended.err
    found = facts(root)["speeds"]
    assert [one["batch"] for one in found] == [8, 16, 32, 64]
    for one in found:
        assert one["images_per_second"] == pytest.approx(one["batch"] / overhead(one["batch"]))
        assert one["milliseconds"] == pytest.approx(1000 * overhead(one["batch"]))
        assert steps.count(one["batch"]) == ranges.WARM + ranges.TIMED
    assert facts(root)["chosen"] == 64


def test_the_table_scales_the_lr_by_both_rules_and_warns_of_few_steps(root, project, timed):
    timed(overhead)
    ended = project.run("stage=find_batch", "lr=0.01", "batch_size=16")
    line = next(line.split() for line in ended.out.splitlines() if line.split()[:1] == ["64"])
    assert line[:5] == ["64", "865", "74.0", "4.0e-02", "2.0e-02"]
    assert "smallest within a tenth" in " ".join(line)
    assert "batch 64 leaves 3 steps in 3 epochs of 64 rows: fast is not good, and no batch leaves 500" in ended.out
    assert "to use it: ./run.sh stage=train lr=0.01 batch_size=16" in ended.out
    assert "take 32, or" in project.run("stage=find_batch", "batch_size=16", "epochs=250").out
    assert "take 16, or" in project.run("stage=find_batch", "batch_size=16", "epochs=250", "train.accumulate=2").out
    clock = project.run("stage=find_batch", "batch_size=16", "epochs=1", "train.seconds=60").out
    assert "leaves" not in clock
    assert "batch_size=64" in clock
    long = project.run("stage=find_batch", "lr=0.01", "batch_size=16", "epochs=500").out
    assert "leaves" not in long
    assert "to use it: ./run.sh stage=train lr=0.01 epochs=500 batch_size=64" in long


def test_the_config_stays_and_nothing_is_trained(root, project, timed):
    timed(overhead)
    before = {path: path.read_bytes() for path in (root / "configs").rglob("*.yaml")}
    assert project.run("stage=find_batch").code == 0
    assert {path: path.read_bytes() for path in (root / "configs").rglob("*.yaml")} == before
    assert [path.name for path in (root / "runs/noise/tiny").iterdir()] == ["find_batch.json"]
    assert project.run("stage=train", "fold=0", "epochs=1").code == 0


def test_it_ends_where_larger_ones_are_slower(root, project, timed):
    steps = timed(lambda size: 0.001 * size**1.5)
    assert "ended: larger ones are slower" in project.run("stage=find_batch").out
    assert sorted(set(steps)) == [8, 16, 32]
    assert facts(root)["chosen"] == 8


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
]


@pytest.mark.parametrize("fault", MEMORY)
def test_a_batch_that_does_not_fit_ends_it_with_what_is_known(root, project, timed, monkeypatch, fault):
    def cost(size: int) -> float:
        if size >= 32:
            raise fault
        return overhead(size)

    timed(cost)
    ended = project.run("stage=find_batch")
    assert ended.code == 0, ended.err
    assert "ended: batch 32 does not fit into memory" in ended.out
    assert [one["batch"] for one in facts(root)["speeds"]] == [8, 16]


def test_not_even_the_smallest_fits(root, project, timed):
    def cost(size: int) -> float:
        raise MEMORY[0]

    timed(cost)
    ended = project.run("stage=find_batch")
    assert ended.code == 2
    assert "even a batch of 8 does not fit" in ended.err


def test_another_fault_is_no_lack_of_memory(root, project, timed):
    def cost(size: int) -> float:
        raise RuntimeError("shapes do not fit")

    timed(cost)
    assert project.run("stage=find_batch").code == 1


def test_a_cpu_stops_before_its_memory_is_full(root, project, timed, monkeypatch):
    """What is free falls by the images of the largest batch so far; 30 are left at the start."""
    steps = timed(overhead)
    monkeypatch.setattr(ranges, "free_memory", lambda: 30 - max([0, *steps]))
    assert "ended: batch 32 might not fit into memory" in project.run("stage=find_batch").out
    assert sorted(set(steps)) == [8, 16]


def test_without_word_of_free_memory_all_sizes_are_tried(root, project, timed, monkeypatch):
    steps = timed(overhead)
    monkeypatch.setattr(ranges, "free_memory", lambda: 0)
    assert project.run("stage=find_batch").code == 0
    assert max(steps) == 64


def test_free_memory_is_less_than_the_machine_has():
    assert 0 <= ranges.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- the record -----------------------------------------------------------------------------------------------------


def test_done_before_it_repeats_the_table_until_asked_to_measure_anew(root, project, timed):
    steps = timed(overhead)
    first = project.run("stage=find_batch", "batch_size=16")
    count = len(steps)
    again = project.run("stage=find_batch", "batch_size=16")
    assert again.out in first.out
    assert project.run("stage=find_batch", "batch_size=32", "lr=0.1", "epochs=9").code == 0
    assert len(steps) == count, "neither lr nor batch size nor epochs change a speed"
    assert project.run("stage=find_batch", "overwrite=true").code == 0
    assert len(steps) == 2 * count
    assert project.run("stage=find_batch", "augment=light()").code == 0
    assert len(steps) == 3 * count


def test_finished_work_loads_no_torch(root, project, timed):
    timed(overhead)
    assert project.run("stage=find_batch").code == 0
    assert test_house.loaded_after(test_house.RUN.format(["stage=find_batch"], [0]), root) == "[]"


def test_gradients_are_not_gathered_over_batches(root, project, timed):
    """A batch of images a step is what is measured; train.accumulate would hide its memory and speed."""
    batches = timed(overhead)
    assert project.run("stage=find_batch", "train.accumulate=4").code == 0
    assert facts(root)["speeds"][0]["images_per_second"] == pytest.approx(8 / overhead(8))
    assert batches.count(8) == ranges.WARM + ranges.TIMED


def test_the_measured_steps_learn(root, project):
    """They are training's own: the weights move, and the loss falls."""
    project.run("stage=split")
    trial = ranges.Trial(Run(compose({"competition": "noise", "lr": "0.01"}), "tiny"))
    with_batches = ranges.walk(trial.loader(16), 0)
    losses = [float(trial.step(with_batches)) for _ in range(30)]
    with_batches.close()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_small_images_from_scratch_are_pointed_to_their_model(root, project, timed, monkeypatch):
    timed(overhead)
    assert "model=small_image" not in project.run("stage=find_batch").out
    known = {"chosen": 8, "rows": 64, "ended": "", "speeds": [{"batch": 8, "images_per_second": 1, "milliseconds": 1}]}
    monkeypatch.setattr(find_batch, "search", lambda run: known)
    ended = project.run("stage=find_batch", "backbone=resnet18", "image_size=32")
    assert "model=small_image" in ended.out
