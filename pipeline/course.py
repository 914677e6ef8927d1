"""What of a training depends on how far it is: the factor on the learning rates, and which weights learn.

Both are functions of the steps, the epochs and the scores so far, which stand in the checkpoint: there is no state of
their own, so a training that goes on after a kill takes the same course.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import evaluate, registry
from pipeline.config import Config

Rows = Sequence[Mapping[str, float]]
"""A row an epoch that has ended, with its "score" where it was validated."""


class Course:
    """The course of one training of so many optimizer steps."""

    def __init__(self, config: Config, network: Any, total: int) -> None:
        self.total = total
        self.schedule = registry.build("schedules", config.schedule)
        facts = registry.facts("schedules", config.schedule)
        self.follows, self.counts = bool(facts.get("own_fold")), (config.epochs,) if facts.get("epochs") else ()
        self.direction = evaluate.direction(config.metric)
        tuning, call = registry.bind("finetunes", config.finetune)
        thaws = tuning.load().facts.get("thaws")
        self.thaws = functools.partial(thaws, **call.arguments) if thaws else None
        learning = network.backbone.parameters() if thaws else ()
        self.held = [parameter for parameter in learning if parameter.requires_grad]

    def begin(self, history: Rows) -> None:
        """Freeze or thaw what the fine-tuning holds back, before the epoch behind these."""
        if self.thaws is None:
            return
        learns = self.thaws(len(history), _scores(history), self.direction)
        for parameter in self.held:
            parameter.requires_grad_(learns)

    def factor(self, step: int, history: Rows) -> float:
        """The factor on the learning rates at an optimizer step, behind these epochs."""
        followed = (_scores(history), self.direction) if self.follows else self.counts
        return float(self.schedule(min(step, self.total - 1), self.total, *followed))


def _scores(history: Rows) -> list[float]:
    return [row["score"] for row in history if "score" in row]
