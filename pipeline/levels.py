"""Which level of a decoder with deep supervision predicts: the smallest that is as good as the best, by OOF scores.

The choice has seen all OOF rows, so that their score at it flatters a little; said beside it is the nested score, of
each fold at the level that the other folds choose (law 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline import artefacts, checkpoint, evaluate, masked, network, prediction
from pipeline.artefacts import shown
from pipeline.config import replace
from pipeline.console import say
from pipeline.evaluate import Metric, Score
from pipeline.hardware import Hardware
from pipeline.maps import Geometry, Stored
from pipeline.prediction import LEVELS
from pipeline.runs import Run
from pipeline.tasks import Task


@dataclass(frozen=True)
class Level:
    """A level: what its network costs, and its OOF score. below: how far under the best, with the paired error."""

    number: int
    parameters: int
    operations: int
    score: float
    below: float
    se: float


def choose(run: Run, task: Task) -> tuple[int, str]:
    """The level for all members of a run, and the nested score of such choices, kept in its ``levels.json``.

    Each member is scored on its own fold alone, at each level, under the config's views and scales. Needs all folds.
    Says the table that it is chosen from.
    """
    members = [(fold,) for fold in range(run.count)]
    config = run.config
    print_ = artefacts.fingerprint(
        [run.trained(held_out) for held_out in members], config.views, config.scales, config.tiles.overlap,
        config.metric, config.cut, "nested",
    )  # fmt: skip
    record = run.folder / LEVELS
    if found := artefacts.finished(record, print_):
        return int(found["chosen"]), str(found["nested"])
    say(f"levels {run.name}")
    contents = [checkpoint.load_checkpoint(run.member(held_out) / "best.ckpt") for held_out in members]
    metric = evaluate.metric(config.metric, task)
    numbers = network.from_checkpoint(contents[0]).levels
    each = {number: [_added(run, task, metric, held_out, number) for held_out in members] for number in numbers}
    added = {number: np.concatenate(own) for number, own in each.items()}
    folds = np.repeat(np.arange(run.count), [len(own) for own in each[numbers[0]]])
    table = compare(metric, added, costs := {number: cost(contents[0], number) for number in numbers})
    chosen, honest = smallest(table), str(nested(metric, added, costs, folds))
    _say_table(table, chosen, config.metric)
    artefacts.finish(record, print_, chosen=chosen, nested=honest, levels=[vars(level) for level in table])
    say(f"{shown(record)}: level {chosen}")
    return chosen, honest


def compare(metric: Metric, added: dict[int, np.ndarray], costs: dict[int, tuple[int, int]]) -> list[Level]:
    """The levels in order. added: by level, what each image adds to the metric. costs: parameters and operations."""
    rows = np.arange(len(next(iter(added.values()))))
    scores = {number: metric.of(rows, own) for number, own in added.items()}
    best = max(scores, key=lambda number: metric.sign * scores[number])
    table = []
    for number, own in added.items():
        gain, se = evaluate.paired(metric, own, added[best])
        table.append(Level(number, *costs[number], scores[number], gain, se))
    return table


def nested(metric: Metric, added: dict[int, np.ndarray], costs: dict[int, tuple[int, int]], folds: np.ndarray) -> Score:
    """The score of each fold's images at the level that the other folds choose. folds: (N,) int64."""
    answered = next(iter(added.values())).copy()
    for fold in np.unique(folds):
        known = {number: own[folds != fold] for number, own in added.items()}
        answered[folds == fold] = added[smallest(compare(metric, known, costs))][folds == fold]
    return evaluate.score_seen(metric, np.arange(len(folds)), answered, folds, "nested")


def smallest(table: list[Level]) -> int:
    """The smallest level that lies no more than one paired standard error below the best (law 2)."""
    return next(level.number for level in table if level.below == 0 or level.below <= level.se)


def cost(content: dict[str, Any], level: int) -> tuple[int, int]:
    """Parameters of a checkpoint's network at a level, and the operations (multiplications and additions) an image."""
    from torch.utils.flop_counter import FlopCounterMode

    pruned = network.from_checkpoint(content, level).to("meta")
    plan = pruned.blueprint
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pruned(torch.zeros(1, plan.channels, plan.image_size, plan.image_size, dtype=torch.uint8, device="meta"))
    return sum(weights.numel() for weights in pruned.parameters()), int(counter.get_total_flops())


def _added(run: Run, task: Task, metric: Metric, held_out: tuple[int, ...], level: int) -> np.ndarray:
    """What each image of a member's own fold adds to the metric at a level; one map is in memory at a time."""
    config = replace(run.config, level=str(level))
    machine = Hardware(**run.stored()["hardware"])
    member = prediction.open_member(run.member(held_out), config, run.competition, task, machine)
    rows = np.flatnonzero(np.isin(run.folds, held_out))
    files = run.competition.train["file"].tolist()
    source = masked.Source(member.config, run.competition, files, masked.TRAIN)
    truth: Any = task.targets(run.competition.targets)[rows]
    geometry = Geometry("" if member.config.data.resize == masked.TILES else member.config.data.resize)
    strips = prediction.map_strips(
        member.networks, task, source, rows, member.views, member.config, f"level {level} {run.member(held_out).name}"
    )
    found = []
    for place, pixels in enumerate(prediction.whole(strips)):
        one = Stored([pixels], source.sizes[rows[place : place + 1]], geometry, task.outputs)
        found.append(metric.seen(truth[np.array([place])], one)[1])
    return np.concatenate(found)


def _say_table(table: list[Level], chosen: int, metric: str) -> None:
    most = table[-1].operations
    say(f"  level  parameters  operations  OOF {metric}, below the best (paired, ± 1 se)")
    for level in table:
        mark = "  chosen" if level.number == chosen else ""
        say(
            f"  {level.number:>5}  {level.parameters:>10,}  {level.operations / most:>10.0%}  "
            f"{level.score:.4f}  {level.below:.4f} ± {level.se:.4f}{mark}"
        )
