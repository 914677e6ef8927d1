"""All that differs between tasks, behind one small protocol; ``task: NAME`` in a config is ``tasks/NAME.py``.

Each module has ``build(config, competition) -> Task``. Nothing outside this folder asks which task it is.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from pipeline.competition import Competition
    from pipeline.config import Config


class Task(Protocol):
    """What training, prediction and submission must know of a task.

    columns: the names of the C columns of ``values``. space: what values are, such as "probability". simplex: does a
    row of values sum to one? outputs: numbers the head gives for an image. default_metric: a call-string.
    """

    columns: list[str]
    space: str
    simplex: bool
    outputs: int
    default_metric: str

    def strata(self, raw: np.ndarray) -> np.ndarray:
        """raw (N,) text of the target column → (N,) text that a stratified split balances."""

    def targets(self, raw: np.ndarray) -> np.ndarray:
        """raw (N,) text of the target column → (N,) int64 truth; UserError names what is unknown."""

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """targets (N,) int64, or already soft (N, C) → (N, C) float32."""

    def activate(self, outputs: Any) -> Any:
        """outputs (B, outputs) tensor in any float format → (B, C) float32 tensor of values."""

    def confident(self, values: np.ndarray, threshold: float, cap: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """values (N, C) → the (n,) int64 rows, ascending, that may become pseudo-labels and their (n,) confidence."""

    def pseudo_labels(self, values: np.ndarray, target: str, soft: bool) -> dict[str, Any]:
        """values (n, C) → the columns, by name, in which a labels file holds them, hard or soft."""

    def read_labels(self, frame: pd.DataFrame, target: str) -> np.ndarray:
        """The rows of a labels file (text cells) → (n, C) float32 soft targets."""

    def decide(self, values: np.ndarray) -> np.ndarray:
        """values (N, C) → (N,) what is answered, as ``targets`` codes it."""

    def names(self, values: np.ndarray) -> np.ndarray:
        """values (N, C) → (N,) text: the decision as the target column would write it."""

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """ids (N,), values (N, C) → the rows of a submission, with the sample's columns and its order of ids."""

    def allowed(self, sample: pd.DataFrame) -> dict[str, list[str]]:
        """The columns of a submission that hold names, each with the names it may hold."""

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """A submission's rows (text cells) → (N, C) float32 values: the inverse of ``submission``."""

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """A solution's rows (text cells) → (N,) int64 truth, as ``targets`` codes it."""


def names() -> list[str]:
    """The tasks there are: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def check_name(name: str) -> None:
    """Raise UserError, with the nearest right name, unless there is such a task; reads no data."""
    if name not in names():
        raise UserError(f"task={name}, but task is one of {', '.join(names())}{nearest(name, names())}")


def task_for(config: Config, competition: Competition) -> Task:
    """The config's task, knowing the competition's classes; UserError if the training rows do not fit it."""
    check_name(config.task)
    task: Task = importlib.import_module(f"pipeline.tasks.{config.task}").build(config, competition)
    return task
