"""What a search of ``stage=tune`` found: its table, whether it gained anything, and the model YAML. No torch."""

from __future__ import annotations

import csv
import io
import math
import shlex
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import evaluate, plots
from pipeline.artefacts import Predictions
from pipeline.config import Config, flatten, keys, read_named
from pipeline.runs import Run, chosen_on, listed_folds
from pipeline.spaces import Dimension, Range
from pipeline.study import Slot, Study
from pipeline.tasks import task_for

PICTURES = ("parallel.png", "importance.png")
SHOWN = 12  # trials in the printed table; trials.csv holds all


def ranked(slots: list[Slot], sign: int) -> list[Slot]:
    """The trials that were trained to their end, the best first; of those with the same settings the first alone."""
    done = [slot for slot in slots if slot.ended == "done" and math.isfinite(slot.score)]
    done = [slot for place, slot in enumerate(done) if slot.settings not in [one.settings for one in done[:place]]]
    return sorted(done, key=lambda slot: (-sign * slot.score, slot.number))


@dataclass(frozen=True)
class Found:
    """A finished search. fine: the longer trainings, the first of which is the config as it stands; or None."""

    run: Run
    coarse: Study
    fine: Study | None

    @property
    def config(self) -> Config:
        """The config that the search began with."""
        return self.run.config

    @cached_property
    def slots(self) -> list[Slot]:
        """The short trainings."""
        return self.coarse.finished()[: self.coarse.slots]

    @cached_property
    def longer(self) -> list[Slot]:
        """The longer trainings."""
        return self.fine.finished() if self.fine else []

    @property
    def ranked(self) -> list[Slot]:
        """The short trainings that were not ended early, the best first."""
        return ranked(self.slots, self.coarse.sign)

    @property
    def winner(self) -> Slot:
        """The best of the longer trainings with tuned settings, else of the short ones."""
        return (ranked(self.longer[1:], self.coarse.sign) or self.ranked)[0]

    @property
    def mark(self) -> str:
        """What every table says of a run with the settings found."""
        return chosen_on([*self.config.tuned, *self.config.tune.folds])

    @property
    def title(self) -> str:
        """What was tried."""
        tune = self.config.tune
        return f"{self.config.backbone} · {len(self.slots)} trials of {epochs(tune.coarse_epochs)} · " + self.scored

    @property
    def scored(self) -> str:
        """The metric and the rows it is of."""
        return f"{self.config.metric} on the own rows of {listed_folds(self.config.tune.folds)}"

    # --- what is printed ---

    def table(self) -> list[str]:
        """The best of the short trials, then the longer ones."""
        tune, best = self.config.tune, self.ranked
        ended = {word: sum(slot.ended == word for slot in self.slots) for word in ("pruned", "diverged")}
        counts = "".join(f", {count} {word}" for word, count in ended.items() if count)
        lines = [f"tune: {self.title}{counts}"]
        lines += [line(slot, str(slot.number + 1)) for slot in best[:SHOWN]]
        if len(self.slots) > len(best[:SHOWN]):
            lines.append(f"  {'':>5}  {len(self.slots) - len(best[:SHOWN])} more in trials.csv")
        if self.fine:
            lines.append(f"  the best of them again, {epochs(tune.fine_epochs)} each")
            names = {tuple(slot.picked.items()): str(slot.number + 1) for slot in reversed(best)}
            lines += [line(slot, names.get(tuple(slot.picked.items()), "–")) for slot in self.longer]
        return lines

    def verdict(self) -> list[str]:
        """Whether the winner beats the config as it stands on the same rows by more than a paired standard error."""
        if not self.longer or self.longer[0].ended != "done" or self.winner not in self.longer:
            return []
        optimistic = (
            f"  the best of {len(self.slots)} on these rows: optimistic; only other folds tell what it is worth"
        )
        if not all(self._files(slot)[0].exists() for slot in (self.longer[0], self.winner)):  # predictions too large
            gain = self.coarse.sign * (self.winner.score - self.longer[0].score)
            return [f"  gain over the config as it stands: {gain:+.4f} (without an error)", optimistic]
        task = task_for(self.config, self.run.competition)
        metric = evaluate.metric(self.config.metric, task)
        rows = np.concatenate([np.flatnonzero(self.run.folds == fold) for fold in self.config.tune.folds])
        truth = self.run.truth_of(task, rows)
        gain, error = evaluate.paired_gain(metric, truth, self._values(self.longer[0]), self._values(self.winner))
        beyond = "" if gain > error else ": no gain beyond noise, the config as it stands is as good"
        return [
            f"  gain over the config as it stands: {gain:+.4f} ± {error:.4f} (paired){beyond}",
            optimistic,
        ]

    def _values(self, slot: Slot) -> np.ndarray:
        return np.concatenate([Predictions.load(path).values for path in self._files(slot)])

    def _files(self, slot: Slot) -> list[Path]:
        """Where a longer training's predictions of its held-out rows lie, a file a fold."""
        assert self.fine is not None
        return [self.fine.place(slot.number) / f"fold{fold}" / "values.npz" for fold in self.config.tune.folds]

    # --- what is written ---

    def draw(self, folder: Path) -> None:
        """The pictures: trials with a score across the settings that most of them have, and which settings mattered."""
        pruned = [slot for slot in self.slots if slot.ended != "done" and math.isfinite(slot.score)]
        common = [one for one in self.coarse.space.dimensions().values()
                  if 2 * sum(one.name in slot.picked for slot in self.slots) >= len(self.slots)]  # fmt: skip
        trials = [([slot.picked.get(one.name) for one in common], slot.score)
                  for slot in [*pruned, *reversed(self.ranked)]]  # fmt: skip
        plots.parallel(self.title, [axis(one) for one in common], trials, self.coarse.sign > 0, folder / PICTURES[0])
        shares = {short_name(name): share for name, share in self.coarse.importance().items()}
        plots.importance(self.title, shares, len(self.ranked), folder / PICTURES[1])

    def csv(self) -> str:
        """Every trial: how it ended, its score after its last epoch, and its settings."""
        names = list(self.coarse.space.nodes)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["trainings", "trial", "ended", "epochs", "score", *names])
        for kind, slots in (("coarse", self.slots), ("fine", self.longer)):
            for slot in slots:
                cells = [slot.settings.get(name, "") for name in names]
                score = slot.score if math.isfinite(slot.score) else ""
                writer.writerow([kind, slot.number + 1, slot.ended, slot.epochs, score, *cells])
        return buffer.getvalue()

    def yaml(self) -> str:
        """The config as a model file with the winner's settings, under a header that says where they come from."""
        import yaml

        layer = {
            **read_named("model", self.config.model), **typed(self.config), **self.winner.settings,
            "tuned": sorted({*self.config.tuned, *self.config.tune.folds}),
        }  # fmt: skip
        layer.pop("run", None)
        body = yaml.safe_dump(layer, sort_keys=False, allow_unicode=True, width=1000)
        return "".join(f"# {text}\n" for text in self.header()) + body

    def header(self) -> list[str]:
        """The header comment: what was searched and how, the score, the warning, the command."""
        tune = self.config.tune
        given = {"competition": self.config.competition, "model": self.config.model, **self.config.arguments}
        given = {key: text for key, text in given.items() if key not in ("stage", "overwrite", "debug")}
        how = tune.method + ("" if tune.prune == "none" else f", {tune.prune} pruning")
        told = [f"{self.config.model}, tuned by {len(self.slots)} trials of {epochs(tune.coarse_epochs)} ({how})"]
        if self.longer:
            told[0] += f", the best {len(self.longer) - 1} again for {epochs(tune.fine_epochs)}"
        told += [
            f"{self.winner.score:.4f} {self.scored}; {self.mark}",
            *(text.strip() for text in self.verdict()[:1]),
            shlex.join(["./run.sh", "stage=tune", *(f"{key}={text}" for key, text in given.items())]),
        ]
        return [part for text in told[:-1] for part in textwrap.wrap(text, 116)] + told[-1:]


def typed(config: Config) -> dict[str, Any]:
    """What the command line said of how a model learns; the competition's own keys stay with the competition."""
    values = flatten(config)
    return {
        key: values[key] for key in config.arguments
        if keys()[key].rules["scope"] and not key.startswith("data.") and key not in ("task", "metric")
    }  # fmt: skip


def axis(dimension: Dimension) -> plots.Axis:
    """How a picture shows a dimension."""
    label = short_name(dimension.name)
    if isinstance(dimension, Range):
        return plots.Axis(label, dimension.low, dimension.high, dimension.log)
    return plots.Axis(label, options=tuple(dimension.options))


def short_name(name: str) -> str:
    """``augment.compose.parts.2.light.scale`` → ``light.scale``; a choice keeps its place, ``parts.2``."""
    return ".".join(name.split(".")[-2:])


def line(slot: Slot, number: str) -> str:
    """A trial's line of the table."""
    score = f"{slot.score:.4f}" if slot.ended == "done" else slot.ended
    return f"  {number:>5}  {score:<8}  {shown_settings(slot.settings)}"


def shown_settings(settings: dict[str, Any]) -> str:
    """Settings on one line."""
    texts = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in settings.items()}
    return "  ".join(f"{key}={text}" for key, text in texts.items()) or "the config as it stands"


def epochs(count: int) -> str:
    """So many epochs, in words."""
    return "1 epoch" if count == 1 else f"{count} epochs"
