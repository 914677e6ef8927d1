"""What ``stage=search`` found: its trials, the winner, the front of cost and score, and the model YAML. No torch."""

from __future__ import annotations

import csv
import io
import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import evaluate, plots
from pipeline.artefacts import Predictions
from pipeline.config import Config, read_named
from pipeline.errors import UserError
from pipeline.runs import Run, chosen_on, listed_folds
from pipeline.tasks import task_for
from pipeline.tuned import epochs, typed

REFERENCE = "reference"  # the trial of the config's own backbone
PICTURE = "pareto.png"
SHOWN = 12  # trials in the printed table; trials.csv holds all
UNITS = {"parameters": "weights", "milliseconds": "ms"}
UNREAD = ("train.labels", "train.soft", "train.hard")  # made by members that learned the fold which stays unread


@dataclass(frozen=True)
class Inner(Run):
    """A run whose members never read the fold ``search.fold``, and are scored on ``search.inner``: for trials."""

    def learned(self, held_out: tuple[int, ...]) -> np.ndarray:
        """As ``Run.learned``, without the rows that stay unread."""
        return super().learned(held_out) & (self.folds != self.config.search.fold)

    @property
    def held_out(self) -> tuple[int, ...]:
        """The inner fold."""
        return (self.config.search.inner,)

    @property
    def rows(self) -> np.ndarray:
        """The rows that score a trial."""
        return np.flatnonzero(self.folds == self.config.search.inner)

    def check(self) -> None:
        """UserError unless there is a fold to leave unread, one to score by, and rows to learn from."""
        search, folds = self.config.search, f"0–{self.count - 1}"
        wrong = [f"search.{key}={fold}" for key, fold in (("fold", search.fold), ("inner", search.inner))
                 if fold >= self.count]  # fmt: skip
        if wrong:
            raise UserError(f"{', '.join(wrong)}, but the folds are {folds}")
        if not self.learned(self.held_out).any():
            raise UserError(
                f"no row is left to learn from without search.fold={search.fold} and search.inner={search.inner} of "
                f"the folds {folds}; deal at least three, folds.count=5, and of folds in time leave the last unread "
                f"and score by the one before: search.fold={self.count - 1} search.inner={max(0, self.count - 2)}"
            )


def check(config: Config) -> None:
    """What a search cannot do is refused before any data are read."""
    if config.search.fold == config.search.inner:
        raise UserError(
            f"search.fold and search.inner are both {config.search.fold}: one stays unread, the other scores the "
            "trials; choose two folds"
        )
    for key in UNREAD:
        if value := getattr(config.train, key.partition(".")[2]):
            raise UserError(
                f"{key}={value} was made by members that learned from fold {config.search.fold}, which the search "
                "leaves unread; search without it"
            )


@dataclass(frozen=True)
class Trial:
    """A finished short training. cost: in the unit of search.cost; error: the score's, over rows; NaN without one."""

    backbone: str
    cost: float
    weights: int
    score: float
    error: float
    ended: str
    seconds: float


def place(folder: Path, name: str) -> Path:
    """The folder of a trial, by its number or as REFERENCE."""
    return folder / "trials" / (f"{int(name):03d}" if name.isdecimal() else name)


def front(points: Sequence[tuple[float, float]], sign: int) -> list[int]:
    """The places of those (cost, score) to which no other is cheaper and as good, from cheap to dear.

    sign: 1 where a higher score is better, else −1. Of equal ones the first.
    """
    found: list[int] = []
    best = -math.inf
    for at in sorted(range(len(points)), key=lambda at: (points[at][0], -sign * points[at][1], at)):
        if sign * points[at][1] > best:
            best = sign * points[at][1]
            found.append(at)
    return found


@dataclass(frozen=True)
class Found:
    """A search as it stands. trials: in their order; reference: the config's own backbone in as many epochs."""

    run: Inner
    folder: Path
    trials: list[Trial]
    reference: Trial

    @property
    def config(self) -> Config:
        """The config that the search began with."""
        return self.run.config

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, else −1."""
        return evaluate.direction(self.config.metric)

    @cached_property
    def ranked(self) -> list[int]:
        """The trials that were trained to their end, the best first, of equal ones the cheaper."""
        done = [number for number, trial in enumerate(self.trials) if trial.ended == "done"]
        return sorted(done, key=lambda at: (-self.sign * self.trials[at].score, self.trials[at].cost, at))

    @cached_property
    def winner(self) -> int:
        """The trial that is chosen, as search.choose says."""
        best = self.ranked[0]
        if self.config.search.choose == "best":
            return best
        alike = [at for at in self.ranked if at == best or self._as_good(at, best)]
        return min(alike, key=lambda at: (self.trials[at].cost, self.ranked.index(at)))

    @property
    def mark(self) -> str:
        """What every table says of a run with this network."""
        return chosen_on([*self.config.tuned, self.config.search.inner])

    @property
    def scored(self) -> str:
        """The metric and the rows it is of."""
        search = self.config.search
        return (
            f"{self.config.metric} on the own rows of {listed_folds([search.inner])}; fold {search.fold} was not read"
        )

    @property
    def title(self) -> str:
        """What was tried."""
        search = self.config.search
        return f"{search.strategy} · {len(self.trials)} trials of {epochs(search.epochs)} · {self.scored}"

    # --- what is printed ---

    def table(self) -> list[str]:
        """The best trials, and the config's own backbone."""
        lines = [f"search: {self.title}"]
        best = self._front()
        for at in self.ranked[:SHOWN]:
            arrow = "→" if at == self.winner else "·" if at in best else " "
            lines.append(f"  {arrow} {at + 1:>4}  {self._line(self.trials[at])}")
        if len(self.trials) > len(self.ranked[:SHOWN]):
            lines.append(f"  {len(self.trials) - len(self.ranked[:SHOWN])} more in trials.csv; · is on the front")
        lines.append(f"  {'as is':>6}  {self._line(self.reference)}")
        return lines

    def verdict(self) -> list[str]:
        """Whether the winner beats the config's own backbone on the same rows by more than a paired standard error."""
        optimistic = f"  the best of {len(self.trials)} on these rows: optimistic; fold {self.config.search.fold} tells"
        if self.reference.ended != "done":
            return [optimistic]
        gain, error = self._gain(REFERENCE, str(self.winner))
        beyond = ": worse, so keep the model or search longer" if gain < -error else ": no gain beyond noise"
        beyond = "" if not gain <= error else beyond
        spread = f" ± {error:.4f} (paired)" if math.isfinite(error) else " (without an error)"
        name = self.reference.backbone.partition("(")[0]
        return [f"  gain over {name} as it stands, in as many epochs: {gain:+.4f}{spread}{beyond}", optimistic]

    def _line(self, trial: Trial) -> str:
        unit, spread = UNITS[self.config.search.cost], f" ± {trial.error:.4f}" if math.isfinite(trial.error) else ""
        score = f"{trial.score:.4f}{spread}" if trial.ended == "done" else trial.ended
        cost = f"{trial.cost:,.0f}" if unit == "weights" else f"{trial.cost:.3g}"
        return f"{score:<16}  {cost:>11} {unit}  {trial.backbone}"

    def _front(self) -> list[int]:
        points = [(self.trials[at].cost, self.trials[at].score) for at in self.ranked]
        return [self.ranked[at] for at in front(points, self.sign)]

    def _as_good(self, other: int, best: int) -> bool:
        gain, error = self._gain(str(other), str(best))
        return gain <= (error if math.isfinite(error) else 0.0)

    def _gain(self, base: str, other: str) -> tuple[float, float]:
        """What one trial gains over another, and the paired error; NaN where predictions were too large to keep."""
        files = [place(self.folder, name) / "values.npz" for name in (base, other)]
        if not all(file.exists() for file in files):
            first, second = (self.reference if name == REFERENCE else self.trials[int(name)] for name in (base, other))
            return self.sign * (second.score - first.score), math.nan
        task = task_for(self.config, self.run.competition)
        truth = self.run.truth_of(task, self.run.rows)
        values = [Predictions.load(file).values for file in files]
        return evaluate.paired_gain(evaluate.metric(self.config.metric, task), truth, *values)

    # --- what is written ---

    def draw(self, path: Path) -> None:
        """The picture of cost and score."""
        search, chosen = self.config.search, self.trials[self.winner]
        points = [(self.trials[at].cost, self.trials[at].score) for at in self.ranked]
        best = [(self.trials[at].cost, self.trials[at].score) for at in self._front()]
        same = self.reference
        beside = (f"{same.backbone.partition('(')[0]} as it stands", same.cost, same.score)
        across = {"parameters": "weights of the backbone", "milliseconds": "ms an image"}[search.cost]
        plots.front(
            self.title, across, self.config.metric, points, best, (chosen.cost, chosen.score, chosen.error),
            beside if same.ended == "done" else None, search.limit, path,
        )  # fmt: skip

    def csv(self) -> str:
        """Every trial: how it ended, score, error, cost, weights, seconds, on the front?, its network."""
        best, buffer = self._front(), io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["trial", "ended", "score", "error", "cost", "weights", "seconds", "front", "backbone"])
        for at, trial in [*enumerate(self.trials), (-1, self.reference)]:
            numbers = [number if math.isfinite(number) else "" for number in (trial.score, trial.error)]
            writer.writerow([
                REFERENCE if at < 0 else at + 1, trial.ended, *numbers, trial.cost, trial.weights,
                round(trial.seconds, 1), int(at in best), trial.backbone,
            ])  # fmt: skip
        return buffer.getvalue()

    def yaml(self) -> str:
        """The config as a model file with the winner's network, under a header that says where it comes from."""
        import yaml

        layer: dict[str, Any] = {
            **read_named("model", self.config.model), **typed(self.config),
            "backbone": self.trials[self.winner].backbone,
            "tuned": sorted({*self.config.tuned, self.config.search.inner}),
        }  # fmt: skip
        layer.pop("run", None)
        body = yaml.safe_dump(layer, sort_keys=False, allow_unicode=True, width=1000)
        return "".join(f"# {text}\n" for text in self.header()) + body

    def header(self) -> list[str]:
        """The header comment: the search, the score, the cost, the warning, the command."""
        search, chosen = self.config.search, self.trials[self.winner]
        given = {"competition": self.config.competition, "model": self.config.model, **self.config.arguments}
        given = {key: text for key, text in given.items() if key not in ("stage", "overwrite", "debug", "budget")}
        few = "" if len(self.trials) >= search.trials else f" of {search.trials}, unfinished,"
        told = [
            f"found by stage=search: {len(self.trials)} trials{few} of {epochs(search.epochs)}, {search.strategy}",
            f"inner score {self._line(chosen).partition('  ')[0].strip()}, {self.scored}; {self.mark}",
            f"cost: {chosen.weights:,} weights of the backbone"
            + (f", {chosen.cost:.3g} ms an image" if search.cost == "milliseconds" else ""),
            *(text.strip() for text in self.verdict()[:1]),
        ]
        command = shlex.join(["./run.sh", "stage=search", *(f"{key}={text}" for key, text in given.items())])
        return [*(part for text in told for part in textwrap.wrap(text, 116)), f"space: {search.space}", command]
