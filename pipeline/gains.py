"""What every view and scale gains: the plain prediction of OOF rows against the same joined with one more."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import evaluate, registry
from pipeline.artefacts import Predictions
from pipeline.console import warn
from pipeline.evaluate import Metric
from pipeline.runs import Run
from pipeline.tasks import Task

ALIKE = 1e-4  # of what stage=predict merged, and what its stored parts give


@dataclass(frozen=True)
class Gains:
    """Paired gains over the plain view alone, with their standard errors.

    plain: its label, such as "identity() × 1". each: (label, gain, error) of every other, joined to it. together: gain
    and error of all of them as the run merges them.
    """

    plain: str
    each: list[tuple[str, float, float]]
    together: tuple[float, float]

    @property
    def helps(self) -> bool:
        """Whether all together gain beyond the error."""
        return self.together[0] > self.together[1]


def of_views(run: Run, task: Task, metric: Metric, truth: np.ndarray, oof: Predictions) -> Gains | None:
    """The gains of a predicted run's views; None where it has one, or what each says alone is not stored (masks)."""
    files = [run.member((fold,)) / "oof_views.npz" for fold in range(run.count)]
    if task.form.spatial or not all(file.exists() for file in files):
        return None
    try:
        parts = [_stored(file) for file in files]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
        warn(
            f"{run.name}: what each view says alone is damaged ({fault}); delete its oof.npz files and run "
            "stage=predict again for the gains of views"
        )
        return None
    labels = parts[0]["labels"].tolist()
    order = {name: row for row, name in enumerate(np.concatenate([part["ids"] for part in parts]).tolist())}
    rows = [order[name] for name in oof.ids.tolist()]
    values = np.concatenate([part["values"] for part in parts], axis=1)[:, rows]
    merge = registry.build("merges", run.config.merge)
    if not np.allclose(merge(values, task.form), oof.values, atol=ALIKE):
        return None  # of an earlier prediction, by other views
    each = [evaluate.paired_gain(metric, truth, values[0], merge(values[[0, place]], task.form))
            for place in range(1, len(labels))]  # fmt: skip
    together = evaluate.paired_gain(metric, truth, values[0], oof.values)
    return Gains(labels[0], [(label, *one) for label, one in zip(labels[1:], each, strict=True)], together)


def _stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in ("labels", "ids", "values")}
