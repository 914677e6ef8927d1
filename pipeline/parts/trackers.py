"""Trackers: where the numbers of trainings go beside log.csv and TensorBoard.

Form: ``f(name: str, project: str, folder: Path, settings: dict, id: str, *, …) -> Tracker``. name: of the member, such
as whales/resnet18/fold0; project: the competition; folder: the member's; settings: by dotted key; id: of the tracker's
run that is to go on, empty for a new one. A tracker has ``id``, ``log(row, step)`` with plain numbers of an epoch,
``conclude(facts)`` with those of the member, and ``close()``. Each may raise: the training goes on without it. Fact:
``library``, what must be installed; it is imported only when a tracker of it is named.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from pipeline.console import warn
from pipeline.registry import part

MLFLOW_VALUE = 500  # characters of a parameter


class Tracker:
    """One that tells nobody."""

    id = ""

    def log(self, row: dict[str, float], step: int) -> None:
        """The numbers of an epoch."""

    def conclude(self, facts: dict[str, float]) -> None:
        """The numbers of the trained member."""

    def close(self) -> None:
        """There is no more to tell for now."""


@part(source="pipeline/journal.py")
def none(name: str, project: str, folder: Path, settings: dict[str, Any], id: str) -> Tracker:
    """Log.csv and TensorBoard alone."""
    return Tracker()


@part(source="https://docs.wandb.ai/ref/python/init", library="wandb", allowed={"mode": ("", "online", "offline")})
def wandb(
    name: str, project: str, folder: Path, settings: dict[str, Any], id: str, *, project_name: str = "",
    entity: str = "", mode: str = "",
) -> Tracker:  # fmt: skip
    """Weights & Biases, a run for each member.

    project_name: empty: the competition. entity: a team; empty: your own. mode: online or offline (below the member's
    folder, for ``wandb sync``); empty: as WANDB_MODE says, else online, or offline where nobody is logged in.
    """
    library = importlib.import_module("wandb")
    if not mode and not os.environ.get("WANDB_MODE") and not library.login(prompt=False):
        warn(f"nobody is logged in to wandb: its run stays offline in {folder / 'wandb'}; send it with wandb sync")
        mode = "offline"
    return Wandb(library.init(
        project=project_name or project, entity=entity or None, name=name, group=name.rpartition("/")[0],
        id=id or None, resume="allow", config=settings, dir=str(folder), mode=mode or None,
        settings=library.Settings(console="off", silent=True, disable_code=True),
    ))  # fmt: skip


class Wandb(Tracker):
    """A run of wandb's."""

    def __init__(self, run: Any) -> None:
        self.run, self.id = run, str(run.id)

    def log(self, row: dict[str, float], step: int) -> None:
        """The numbers of an epoch; of one that was told before, nothing."""
        self.run.log(row, step=step)

    def conclude(self, facts: dict[str, float]) -> None:
        """Into the run's summary."""
        self.run.summary.update(facts)

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


@part(source="https://mlflow.org/docs/latest/python_api/mlflow.client.html", library="mlflow")
def mlflow(
    name: str, project: str, folder: Path, settings: dict[str, Any], id: str, *, uri: str = "", experiment: str = ""
) -> Tracker:
    """MLflow, a run for each member.

    uri: a server, a database (sqlite:///…) or a folder; empty: as MLFLOW_TRACKING_URI says, else runs/mlflow.
    experiment: empty: the competition.
    """
    place = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not place:
        place = (folder.absolute().parents[len(Path(name).parts) - 1] / "mlflow").as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else version 3.17 takes databases and servers alone
    client = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=place)
    if id:
        client.set_terminated(id, "RUNNING")
        return Mlflow(client, id)
    known = client.get_experiment_by_name(experiment or project)
    number = known.experiment_id if known else client.create_experiment(experiment or project)
    begun = Mlflow(client, client.create_run(number, run_name=name).info.run_id)
    for key, value in settings.items():
        client.log_param(begun.id, key, str(value)[:MLFLOW_VALUE])
    return begun


class Mlflow(Tracker):
    """A run of MLflow's; client: an MlflowClient."""

    def __init__(self, client: Any, id: str) -> None:
        self.client, self.id = client, id

    def log(self, row: dict[str, float], step: int) -> None:
        """The numbers of an epoch."""
        for key, value in row.items():
            self.client.log_metric(self.id, key, float(value), step=step)

    def conclude(self, facts: dict[str, float]) -> None:
        """As metrics without a step."""
        for key, value in facts.items():
            self.client.log_metric(self.id, key, float(value))

    def close(self) -> None:
        """Mark the run as ended; one that goes on is opened again."""
        self.client.set_terminated(self.id)
