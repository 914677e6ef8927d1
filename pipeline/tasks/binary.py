"""Binary: two classes, of which the second is the one asked for; a softmax over both, so that all parts serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pipeline.errors import UserError, nearest, some
from pipeline.registry import part
from pipeline.tasks.multiclass import Multiclass, classes_of, style

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config


@part(
    source="logistic regression as a softmax over two classes, Bridle 1990",
    form="classes",
    learns="classes",
    loss="cross_entropy()",
    metric="roc_auc()",
    split="stratified_kfold()",
    group_split="stratified_group_kfold()",
)
def binary(config: Config, competition: Competition, *, positive: str = "") -> Binary:
    """One of two classes an image; a probability in the submission is that of the second, such as 1, True or yes.

    positive: the class asked for, where it is not the second in sorted order.
    """
    classes = classes_of(config, competition)
    if len(classes) != 2:
        raise UserError(
            f"task=binary, but {some(config.data.target)} has {len(classes)} classes: {some(sorted(classes))}; "
            "set task=multiclass, or data.target"
        )
    if positive and positive not in classes:
        raise UserError(
            f"task=binary(positive={positive!r}), but the classes are {some(classes)}{nearest(positive, classes)}"
        )
    task = Binary(classes, *style(config))
    return task.asked_for(positive) if positive else task


class Binary(Multiclass):
    """Two classes; values (N, 2) are the probabilities of either, the one asked for last."""

    def asked_for(self, positive: str) -> Binary:
        """The same task with this class last."""
        self.columns = sorted(self.columns, key=lambda name: name == positive)
        self._place = {name: place for place, name in enumerate(self.columns)}
        return self

    def cells(self, sample: pd.DataFrame) -> str:
        """A probability where the metric wants one or the sample shows one, else the class's name."""
        if self.style == "auto" and sample.shape[1] == 2:
            shown = pd.to_numeric(sample.iloc[:, 1], errors="coerce")
            between = bool(((shown > 0) & (shown < 1)).any())
            if between or (self.wants == "probability" and (shown.notna().all() or not sample.iloc[:, 1].any())):
                return "probabilities"
        return super().cells(sample)
