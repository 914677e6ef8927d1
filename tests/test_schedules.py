"""Schedules against torch's schedulers, and their warm-up step by step."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.optim import lr_scheduler

from pipeline.parts import schedules


def torch_factors(make, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(total - 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*factors, optimizer.param_groups[0]["lr"]]


def ours(schedule, total: int, **keywords) -> list[float]:
    return [schedule(step, total, **keywords) for step in range(total)]


@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_is_torchs(total: int, floor: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total, eta_min=floor), total)
    assert ours(schedules.cosine, total, warmup=0.0, floor=floor) == pytest.approx(expected, abs=1e-9)


def test_warmup_rises_linearly_and_leaves_the_rest_to_the_schedule() -> None:
    factors = ours(schedules.cosine, 40, warmup=0.1)
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx(ours(schedules.cosine, 36, warmup=0.0))
    assert 0 < factors[-1] < 0.005
    assert ours(schedules.constant, 40, warmup=0.1) == [0.25, 0.5, 0.75, 1.0, *[1.0] * 36]
    assert ours(schedules.constant, 4, warmup=1.0) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("total", "peak", "start", "end"), [(100, 0.3, 0.04, 1e-4), (50, 0.5, 0.1, 0.0), (7, 1.0, 0.2, 0.1)]
)
def test_one_cycle_is_torchs(total: int, peak: float, start: float, end: float) -> None:
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=total, pct_start=peak, div_factor=1 / start,
            final_div_factor=start / end if end else float("inf"), cycle_momentum=False,
        )  # fmt: skip

    expected = torch_factors(make, total)
    assert ours(schedules.one_cycle, total, peak=peak, start=start, end=end) == pytest.approx(expected, abs=1e-9)


def test_steps_is_torchs_multi_step() -> None:
    expected = torch_factors(lambda o: lr_scheduler.MultiStepLR(o, milestones=[50, 80], gamma=0.1), 100)
    assert ours(schedules.steps, 100) == pytest.approx(expected)
    assert ours(schedules.steps, 10, at=[0.2], factor=0.5, warmup=0.1) == [1, 1, *[0.5] * 8]


def test_schedules_samplers_and_symmetries_need_no_torch() -> None:
    program = (
        "import sys\n"
        "from pipeline import symmetry\n"
        "from pipeline.parts import augments, merges, samplers, schedules, views\n"
        "symmetry.check_symmetry(['identity()', 'shift(x=2)'], 'none')\n"
        "assert augments.none(8) == []\n"
        "print(sorted({'torch', 'albumentations', 'cv2'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
