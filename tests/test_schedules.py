"""Schedules against torch's schedulers, and their warm-up step by step."""

from __future__ import annotations

import math
import random
import re
import statistics
import subprocess
import sys

import pytest
import small_training as small
import torch
from PIL import Image
from torch.optim import lr_scheduler

from pipeline import plots, registry
from pipeline.errors import UserError
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


def behind(schedule, total: int, warmup: int, hold: int, **keywords) -> list[float]:
    """The factors behind a warm-up and a hold of so many steps, after a look at those two."""
    factors = ours(schedule, total, warmup=warmup / total, hold=hold / total, **keywords)
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert factors[warmup : warmup + hold] == [1.0] * hold
    return factors[warmup + hold :]


BEHIND = [(60, 0, 0), (60, 6, 0), (60, 0, 12), (60, 6, 9), (7, 1, 2), (1, 0, 0)]


@pytest.mark.parametrize(("total", "warmup", "hold"), BEHIND)
def test_hold_comes_behind_the_warmup_and_leaves_the_rest_to_the_schedule(total: int, warmup: int, hold: int) -> None:
    left = total - warmup - hold
    for schedule in (schedules.cosine, schedules.linear, schedules.exponential, schedules.multicycle_cosine):
        assert behind(schedule, total, warmup, hold) == ours(schedule, left, warmup=0.0)


def test_steps_and_ladder_change_behind_the_given_epochs() -> None:
    """torch's MultiStepLR, whose step is an epoch of four of ours."""
    found = [schedules.steps(step, 40, 10, at=(3, 5), factor=0.5) for step in range(40)]
    expected = torch_factors(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 5], 0.5), 10)
    assert found == pytest.approx([factor for factor in expected for _ in range(4)])
    rungs = [schedules.ladder(step, 40, 40, at=(10, 20, 30)) for step in range(40)]
    assert rungs == pytest.approx([rate / 3e-4 for rate in (3e-4, 1e-4, 1e-5, 1e-6) for _ in range(10)])
    mixed = [schedules.steps(step, 20, 10, at=(1, 0.5)) for step in range(20)]
    assert mixed == pytest.approx([1.0] * 2 + [0.1] * 8 + [0.01] * 10)
    assert [schedules.steps(step, 20, 10, at=(0.5, 1.0)) for step in (2, 10, 19)] == pytest.approx([1, 0.1, 0.1])
    with pytest.raises(UserError, match="behind epoch 10, but there are 10"):
        schedules.steps(0, 40, 10, at=(0.5, 10))
    with pytest.raises(UserError, match="1.5 is neither a share of the training"):
        schedules.steps(0, 40, 10, at=(0.5, 1.5))


def test_epochs_become_shares_for_a_training_of_another_length() -> None:
    short = registry.build("schedules", schedules.in_shares("steps(at=(3, 0.5), factor=0.5)", 10))
    assert [short(step, 20, 2) for step in (5, 6, 9, 10)] == [1.0, 0.5, 0.5, 0.25]
    for same in ("cosine(floor=0.1)", "ladder()", "steps(at=(0.2,))"):
        assert registry.parse(schedules.in_shares(same, 10)).arguments.get("at", ()) in ((), [0.2])


def test_epochs_of_a_schedule_are_checked_before_any_work(project) -> None:
    small.write(project.root)
    assert small.config(schedule="steps(at=(3,5))", epochs=6).schedule
    with pytest.raises(UserError, match=r"schedule=steps\(at=\(3,5\)\): .*there are 5; give earlier ones"):
        small.config(schedule="steps(at=(3,5))", epochs=5)
    with pytest.raises(UserError, match="how many there are is up to train.seconds"):
        small.config(schedule="ladder(at=(1,2,3))", train__seconds=60.0)


def test_training_counts_its_epochs(project) -> None:
    small.write(project.root)
    assert project.run("stage=train", "fold=0", "epochs=3", "lr=0.5", "schedule=steps(at=(1,2))").code == 0
    log = (project.root / "runs/noise/tiny/fold0/log.csv").read_text().splitlines()
    rates = [float(dict(zip(log[0].split(","), row.split(","), strict=True))["lr"]) for row in log[1:]]
    assert rates == pytest.approx([0.5, 0.05, 0.005])


def test_ladder_has_the_given_rates() -> None:
    factors = ours(schedules.ladder, 20, at=[0.5, 0.75, 0.9])
    assert [3e-4 * factor for factor in factors] == pytest.approx([3e-4] * 10 + [1e-4] * 5 + [1e-5] * 3 + [1e-6] * 2)
    rising = ours(schedules.ladder, 10, rates=[1e-4, 4e-4, 1e-5], at=[0.2, 0.8], warmup=0.1)
    assert rising == pytest.approx([1.0, 0.25, *[1.0] * 6, 0.025, 0.025])
    assert ours(schedules.ladder, 10, rates=[2, 1], at=[0.2], hold=0.4) == [1.0] * 4 + [0.5] * 6
    for wrong in ({"at": [0.5]}, {"rates": [1.0, 0.5]}, {"rates": [0.0], "at": []}):
        with pytest.raises(UserError, match="at="):
            schedules.ladder(0, 10, **wrong)


@pytest.mark.parametrize(("total", "warmup", "hold"), BEHIND)
def test_the_falling_ones_are_tensorflows_formulas(total: int, warmup: int, hold: int) -> None:
    """decayed_learning_rate of tf.keras.optimizers.schedules, with initial_learning_rate=1, decay_steps=left."""
    left = total - warmup - hold
    shares = [step / left for step in range(left)]
    found = behind(schedules.exponential, total, warmup, hold, floor=0.02)
    assert found == pytest.approx([1.0 * 0.02**share for share in shares])
    found = behind(schedules.polynomial, total, warmup, hold, power=2.0, floor=0.1)
    assert found == pytest.approx([(1.0 - 0.1) * (1 - share) ** 2 + 0.1 for share in shares])
    found = behind(schedules.linear, total, warmup, hold, floor=0.1)
    assert found == pytest.approx([(1.0 - 0.1) * (1 - share) ** 1 + 0.1 for share in shares])
    found = behind(schedules.inverse_time, total, warmup, hold, rate=4.0)
    assert found == pytest.approx([1.0 / (1 + 4.0 * share) for share in shares])


def test_linear_and_polynomial_are_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=40), 40)
    assert ours(schedules.linear, 40, floor=0.2, warmup=0.0) == pytest.approx(expected)
    expected = torch_factors(lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=0.9), 40)
    assert ours(schedules.polynomial, 40, warmup=0.0) == pytest.approx(expected)


def test_inverse_sqrt_is_the_transformers_where_its_timescale_is_the_warmup() -> None:
    factors = ours(schedules.inverse_sqrt, 200, timescale=0.1, warmup=0.1)
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20:] == pytest.approx([step**-0.5 / 20**-0.5 for step in range(20, 200)])
    later = ours(schedules.inverse_sqrt, 100, timescale=0.2, warmup=0.0, hold=0.1)
    assert later[10 + 20] == pytest.approx(math.sqrt(0.5))


def slow_restarts(step: int, first: float, growth: float, decay: float, floor: float) -> float:
    """decayed_learning_rate of tf.keras.optimizers.schedules.CosineDecayRestarts."""
    done = step / first
    if growth == 1.0:
        restarts = math.floor(done)
        done -= restarts
    else:
        restarts = math.floor(math.log(1.0 - done * (1.0 - growth)) / math.log(growth) + 1e-9)
        done = (done - (1.0 - growth**restarts) / (1.0 - growth)) / growth**restarts
    wave = 0.5 * decay**restarts * (1.0 + math.cos(math.pi * done))
    return (1 - floor) * wave + floor


@pytest.mark.parametrize(("growth", "first"), [(2.0, 10), (1.0, 20), (3.0, 5), (0.5, 40)])
@pytest.mark.parametrize(("decay", "floor"), [(1.0, 0.0), (0.7, 0.1)])
def test_cosine_restarts_are_tensorflows(growth: float, first: int, decay: float, floor: float) -> None:
    cycles = {2.0: 3, 1.0: 4, 3.0: 3, 0.5: 3}[growth]
    total = round(sum(first * growth**cycle for cycle in range(cycles)))
    expected = [slow_restarts(step, first, growth, decay, floor) for step in range(total)]
    given = {"cycles": cycles, "growth": growth, "decay": decay, "floor": floor}
    assert ours(schedules.cosine_restarts, total, warmup=0.0, **given) == pytest.approx(expected, abs=1e-9)


def test_cosine_restarts_are_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2), 70)
    assert ours(schedules.cosine_restarts, 70, warmup=0.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("cycles", [1, 3, 6])
def test_multicycle_cosine_is_the_snapshot_papers(cycles: int) -> None:
    """Eq. 2, for t = 1 … T, above a floor."""
    total = 60
    length = math.ceil(total / cycles)
    expected = [0.5 * (math.cos(math.pi * ((t - 1) % length) / length) + 1) for t in range(1, total + 1)]
    assert ours(schedules.multicycle_cosine, total, cycles=cycles, floor=0.0) == pytest.approx(expected, abs=1e-9)
    above = [0.01 + 0.99 * factor for factor in expected]
    assert ours(schedules.multicycle_cosine, total, cycles=cycles, floor=0.01) == pytest.approx(above, abs=1e-9)


@pytest.mark.parametrize("total", [10, 97, 1000])
@pytest.mark.parametrize("cycles", [2, 3, 7])
def test_multicycle_cosine_has_its_cycles_whatever_the_total(total: int, cycles: int) -> None:
    factors = ours(schedules.multicycle_cosine, total, cycles=cycles)
    tops = [step for step in range(1, total) if factors[step] > factors[step - 1]]
    assert tops == [math.ceil(total * cycle / cycles) for cycle in range(1, cycles)]
    least = 0.003 + 0.997 * (1 + math.cos(math.pi * cycles / total)) / 2  # each begins within a step of its top
    assert all(factors[step] >= least for step in tops)


def slow_linear_cosine(step: int, steps: int, noise: float, periods: float, alpha: float, beta: float) -> float:
    """tf.compat.v1.train.noisy_linear_cosine_decay over its value at step 0 without noise."""
    linear = (steps - step) / steps + noise
    cosine = 0.5 * (1 + math.cos(math.pi * 2 * periods * step / steps))
    return ((alpha + linear) * cosine + beta) / (alpha + 1 + beta)


@pytest.mark.parametrize(("total", "warmup", "hold"), BEHIND)
@pytest.mark.parametrize(("periods", "alpha", "beta"), [(0.5, 0.0, 0.001), (2.0, 0.1, 0.05)])
def test_linear_cosine_is_tensorflows(
    total: int, warmup: int, hold: int, periods: float, alpha: float, beta: float
) -> None:
    left = total - warmup - hold
    given = {"periods": periods, "alpha": alpha, "beta": beta}
    expected = [slow_linear_cosine(step, left, 0.0, **given) for step in range(left)]
    assert behind(schedules.linear_cosine, total, warmup, hold, **given) == pytest.approx(expected)
    assert behind(schedules.noisy_linear_cosine, total, warmup, hold, variance=0.0, **given) == pytest.approx(expected)


def test_noise_on_the_line_has_tensorflows_variance_and_its_seed() -> None:
    given = {"periods": 0.5, "alpha": 1.0, "beta": 0.3}  # far from both ends, where the factor would be cut
    total, variance, fading = 1000, 0.01, 0.55
    standard = []
    for seed in range(20):
        keywords = {"variance": variance, "variance_decay": fading, "seed": seed, "warmup": 0.0, **given}
        factors = ours(schedules.noisy_linear_cosine, total, **keywords)
        assert factors == [schedules.noisy_linear_cosine(step, total, **keywords) for step in range(total)]
        for step in range(200, 600):
            plain, shifted = (slow_linear_cosine(step, total, noise, **given) for noise in (0.0, 1.0))
            noise = (factors[step] - plain) / (shifted - plain)
            standard.append(noise / math.sqrt(variance / (1 + step) ** fading))
    assert len(set(standard)) == len(standard)
    assert abs(statistics.fmean(standard)) < 0.05
    assert statistics.stdev(standard) == pytest.approx(1.0, abs=0.03)
    neighbours = statistics.correlation(standard[:-1], standard[1:])
    assert abs(neighbours) < 0.05


def test_one_cycle_can_be_held_at_its_top() -> None:
    factors = ours(schedules.one_cycle, 100, peak=0.3, hold=0.2)
    assert factors[29:50] == [1.0] * 21
    assert factors[:30] == ours(schedules.one_cycle, 100, peak=0.3)[:30]
    assert factors[49:] == pytest.approx([1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * k / 50)) / 2 for k in range(51)])


# --- schedules that follow the scores of the own fold ---------------------------------------------------------------


def torch_plateau(scores: list[float], direction: int, cooldown: int = 0, **keywords: float) -> list[float]:
    """The factor before the first epoch, and behind each."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max" if direction > 0 else "min", threshold_mode="abs", eps=0.0, cooldown=cooldown, **keywords
    )
    factors = [1.0]
    for score in scores:
        optimizer.step()
        scheduler.step(score)
        factors.append(optimizer.param_groups[0]["lr"])
    return factors


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    ("patience", "factor", "gain", "cooldown", "floor"),
    [(4, 0.1, 0.0, 0, 0.0), (0, 0.5, 0.05, 0, 0.01), (1, 0.3, 0.1, 2, 0.0), (2, 0.5, 0.0, 3, 0.2)],
)
def test_reduce_on_plateau_is_torchs(direction, patience, factor, gain, cooldown, floor) -> None:
    draw = random.Random(patience)
    scores = [direction * min(epoch / 10, 1.0) + draw.gauss(0, 0.2) for epoch in range(60)]
    expected = torch_plateau(
        scores, direction, cooldown, patience=patience, factor=factor, threshold=gain, min_lr=floor
    )
    given = {"patience": patience, "factor": factor, "gain": gain, "cooldown": cooldown, "floor": floor}
    found = [schedules.reduce_on_plateau(0, 100, scores[:seen], direction, **given) for seen in range(len(scores) + 1)]
    assert found == pytest.approx(expected)
    assert len(set(found)) > 2, "the series must cut, or this test shows nothing"


def test_reduce_on_plateau_by_hand() -> None:
    """Patience 4: four epochs without gain are borne, the fifth cuts."""
    scores = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7]
    assert [schedules.reduce_on_plateau(0, 9, scores[:seen]) for seen in range(9)] == [*[1.0] * 7, 0.1, 0.1]
    assert schedules.reduce_on_plateau(0, 10, scores, warmup=0.2) == 0.5
    assert [schedules.reduce_on_plateau(step, 10, scores, warmup=0.2, hold=0.1) for step in (2, 3)] == [1.0, 0.1]
    assert schedules.reduce_on_plateau(0, 9, [0.5, *[math.nan] * 5]) == 0.1


def test_halve_at_cuts_when_a_level_is_first_passed() -> None:
    found = [schedules.halve_at(0, 9, [0.5, 0.85, 0.7, 0.95][:seen], levels=[0.8, 0.9]) for seen in range(5)]
    assert found == [1.0, 1.0, 0.5, 0.5, 0.25]
    errors = [schedules.halve_at(0, 9, [0.9, 0.4, 0.6, 0.1][:seen], -1, levels=[0.5], factor=0.3) for seen in range(5)]
    assert errors == [1.0, 1.0, 0.3, 0.3, 0.3]
    assert [schedules.halve_at(step, 10, [0.95], hold=0.4) for step in (3, 4)] == [1.0, 0.5]


@pytest.mark.parametrize(("total", "warmup"), [(60, 0.0), (97, 0.1), (12, 0.25)])
def test_cycle_ends_are_the_lowest_steps(total: int, warmup: float) -> None:
    for call in ("multicycle_cosine(cycles=3", "cosine_restarts(cycles=2"):
        call = f"{call}, warmup={warmup})"
        curve = registry.build("schedules", call)
        ends = schedules.cycle_ends(call, total)
        assert len(ends) == registry.parse(call).arguments["cycles"]
        assert ends[-1] == total - 1
        for end in ends[:-1]:
            assert curve(end, total) < 0.5 < curve(end + 1, total)
    assert schedules.cycle_ends("cosine(warmup=0.1)", 50) == [49]


@pytest.mark.parametrize("name", ["constant", "cosine", "ladder", "reduce_on_plateau"])
def test_schedule_is_drawn(name: str, tmp_path) -> None:
    part = registry.parts("schedules")[name]
    path = plots.schedule(part.signature, tmp_path / "curves" / f"{name}.png")
    image = Image.open(path)
    assert (image.format, image.size) == ("PNG", (800, 400))
    assert path.read_bytes() == plots.schedule(part.signature, tmp_path / "again.png").read_bytes()
    blue = [pixel for _, pixel in image.convert("RGB").getcolors(1 << 20) if pixel[2] > 200 and pixel[0] < 80]
    assert blue, "no curve"


def test_help_draws_a_schedule_with_its_arguments(project) -> None:
    drawn = {}
    for topic in ("cosine", "cosine(floor=0.5)", "schedule=cosine(warmup=0.3)", "steps(at=(30,60))"):
        answer = project.run("help", topic)
        path = re.search(r"^curve: (.*)$", answer.out, re.MULTILINE)
        assert (answer.code, "cosine(" in answer.out or "steps(" in answer.out) == (0, True)
        drawn[topic] = (project.root / path[1]).read_bytes()
    assert len(set(drawn.values())) == 4
    assert project.run("help", "steps(at=(200,))").code == 0
    shown = project.run("help", "head=cosine(centres=3)").out
    assert "heads: cosine" in shown
    assert "schedules: cosine" not in shown
    both = project.run("help", "cosine").out
    assert "heads: cosine" in both
    assert "schedules: cosine" in both
    assert "lr=0.0003" in project.run("help", "lr=1e-4").out
    assert project.run("help", "focal(gama=2)").code == 2
    assert project.run("help", "cosine(flor=0.5)").code == 2


def test_wrong_schedule_is_not_drawn(tmp_path) -> None:
    with pytest.raises(UserError, match="floor"):
        plots.schedule("cosine(flor=0.1)", tmp_path / "no.png")
    assert list(tmp_path.iterdir()) == []


def test_schedules_samplers_and_symmetries_need_no_torch() -> None:
    program = (
        "import sys\n"
        "from pipeline import plots, symmetry\n"
        "from pipeline.parts import augments, merges, samplers, schedules, views\n"
        "symmetry.check_symmetry(['identity()', 'shift(x=2)'], 'none')\n"
        "assert augments.none(8) == []\n"
        "print(sorted({'torch', 'albumentations', 'cv2', 'matplotlib'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
