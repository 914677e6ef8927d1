"""Answer each image by a model of its descriptors (HOG, colours, visual words, a frozen backbone), as a run of its own.

The fastest honest baseline for small data, and other company for the stack than networks. Member k fits all that it
fits, scales, codebook, penalty and model, on the rows that it may learn from. The run is called ``features`` unless
``run=`` says otherwise; hand-made descriptors need no torch.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipeline import artefacts, evaluate, hardware, registry
from pipeline.artefacts import Predictions, shown
from pipeline.competition import load
from pipeline.config import Config, scoped
from pipeline.console import Outcome, each, say, warn
from pipeline.description import Description
from pipeline.errors import UserError
from pipeline.folds import ensure_folds
from pipeline.parts.classifiers import BY_FORM
from pipeline.runs import Run
from pipeline.stacking import unlink
from pipeline.tasks import Task, facts, refuse_spatial, task_for

NAME = "features"
RECORD = "features.json"
NETWORK = ("backbone", "norm", "activation", "stem", "pool", "pretrained", "weights")


class Described(Run):
    """A run that this stage makes."""

    maker = "features"

    def settings(self) -> dict[str, Any]:
        """How images are read, what describes them, and what learns from that."""
        own, learned = self.config.features, scoped(self.config, "run")
        network = {"image_size", *NETWORK} if self.needs_network else set()
        kept = {
            key: value for key, value in learned.items() if key.startswith("data.") or key in {"task", "seed", *network}
        }
        del kept["data.extra"]  # it is not read
        return {
            **kept, "features.descriptors": own.descriptors, "features.classifier": classifier(self.config),
            "features.components": components(self.config),
        }  # fmt: skip

    @property
    def needs_network(self) -> bool:
        """Whether a backbone is among the descriptors."""
        return any(registry.parse(call).name == "backbone" for call in self.config.features.descriptors)

    def machine(self) -> dict[str, Any]:
        """The number format, where there is a network."""
        return hardware.choose(self.config).facts() if self.needs_network else {}

    def begun(self) -> bool:
        """Whether a member is there."""
        return any(self.folder.glob(f"*/{RECORD}"))


def run(config: Config) -> list[Outcome]:
    """Write oof.npz and test.npz of the members that ``fold=`` asks for, and score them."""
    refuse_spatial(config)
    began = time.perf_counter()
    run = Described(config, artefacts.safe_name(config.run or NAME, "run"))
    note = f"{classifier(config)} on {' '.join(config.features.descriptors)}"
    description = Description(run, components(config))
    ensure_folds(config, load(config))
    task = task_for(config, run.competition)
    if config.data.extra:
        warn("stage=features does not read the outside images of data.extra: they join the training of networks alone")
    run.settle()
    reused = [answer(run, task, description, held_out) for held_out in each(run.name, run.asked())]
    seconds = time.perf_counter() - began
    if not run.predicted():
        unscored = "no CV" if run.asked() == [()] else "OOF is scored once all folds are answered"
        return [Outcome("features", run.name, seconds=seconds, reused=all(reused), note=f"{note}; {unscored}")]
    metric = evaluate.metric(config.metric, task)
    score = evaluate.score_folds(metric, run.truth(task), run.oof().values, run.scored_folds)
    say(f"{shown(run.folder)}: {metric.name} {score}")
    return [Outcome("features", run.name, str(score), seconds=seconds, reused=all(reused), note=note)]


def classifier(config: Config) -> str:
    """The classifier of the config, or the one that suits what the task learns."""
    learns = facts(config.task)["learns"]
    if not config.features.classifier and learns not in BY_FORM:
        raise UserError(f"task={config.task} learns {learns}, which stage=features has no model for; train a network")
    return config.features.classifier or BY_FORM[learns]


def components(config: Config) -> int:
    """The principal components that the classifier is given; 0 for one that reads columns singly."""
    return 0 if registry.facts("classifiers", classifier(config)).get("singly") else config.features.components


def answer(run: Described, task: Task, description: Description, held_out: tuple[int, ...]) -> bool:
    """Fit one member and let it predict unless that is done; returns whether it was."""
    folder, print_ = run.member(held_out), artefacts.fingerprint("features", run.fingerprint(), held_out)
    outputs = [folder / "test.npz", *([folder / "oof.npz"] if held_out else [])]
    if artefacts.finished(folder / RECORD, print_, *outputs):
        return True
    say(f"features {run.name} {folder.name}")
    with artefacts.locked(folder):
        (folder / RECORD).unlink(missing_ok=True)
        rows = np.flatnonzero(np.isin(run.folds, held_out))
        oof, test, chosen = answers(run, task, description, held_out, rows)
        made_by = {
            "run": run.name, "member": folder.name, "descriptors": run.config.features.descriptors,
            "classifier": classifier(run.config), "commit": artefacts.commit(), **chosen,
        }  # fmt: skip
        if held_out:
            ids = run.competition.train["id"].to_numpy()[rows]
            Predictions(ids, oof, task.space, made_by).save(folder / "oof.npz")
        Predictions(run.competition.test["id"].to_numpy(), test, task.space, made_by).save(folder / "test.npz")
        artefacts.finish(folder / RECORD, print_, **chosen)
    return False


def answers(
    run: Described, task: Task, description: Description, held_out: tuple[int, ...], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:  # fmt: skip
    """Values of the training rows held out and of all test rows, by a model of the rows that the member learns from.

    Also what the model chose. Fold safety: ``known`` is all that reaches a fit, of images and of labels.
    """
    learned = run.learned(held_out)
    learned[description.broken] = False
    known = np.flatnonzero(learned)
    if not len(known):
        raise UserError(f"no training rows are left for {run.name} without folds {held_out}; lower folds.count")
    taught = task.taught(run.competition.targets)[known]
    state = task.fit(taught)
    targets = task.learns.dense(task.encode(taught, state), task.outputs)
    own, wanted, test = description.member(held_out, known, rows)
    model = registry.build("classifiers", classifier(run.config))(task.learns, task.outputs)
    model.fit(own, targets, run.folds[known])
    oof, tests = (values(task, state, model.outputs(table)) for table in (wanted, test))
    return oof, tests, model.chosen()


def values(task: Task, state: dict[str, Any], outputs: np.ndarray) -> np.ndarray:
    """Raw outputs (N, outputs) → values (N, C) float32, as a network's would become them."""
    if task.learns == task.form and task.form.bounded:
        return task.form.finish(unlink(task.form, outputs))
    import torch  # scales of numbers and steps of grades are the task's own, and its activation is torch's

    return task.form.finish(task.activate(torch.from_numpy(outputs), state).numpy())
