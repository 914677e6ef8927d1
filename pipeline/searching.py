"""The trainings of ``stage=search``: a short one for each network, on rows that leave a whole fold unread; their costs.

A trial is a folder with what it found in ``trial.json``; which network it trains follows from the seed and the trials
before it, so that a search that was killed goes on with the same ones.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import (
    artefacts,
    backbone_names,
    blocks,
    budget,
    console,
    evaluate,
    genotypes,
    hardware,
    learner,
    network,
    registry,
    training,
)
from pipeline.artefacts import Predictions
from pipeline.config import replace
from pipeline.data import Batch, draw
from pipeline.errors import Diverged, OutOfTime, UserError
from pipeline.genotypes import Piece
from pipeline.hardware import Hardware
from pipeline.parts.schedules import in_shares
from pipeline.prediction import open_member
from pipeline.searched import REFERENCE, Inner, Trial, place
from pipeline.supernet import Supernet, usual_steps
from pipeline.tasks import Task, task_for
from pipeline.tuning import tidy

TRIES = 500  # networks that are drawn for one trial before the search gives up
TIMED, REPEATS = 32, 7  # images of a batch whose prediction is timed, and how often
SUPERNET = 1  # tells its seed from those of trials


# --- costs ----------------------------------------------------------------------------------------------------------


@dataclass
class Costs:
    """What backbones cost, part by part: counted, or measured once and from then on read from ``costs.json``."""

    run: Inner
    folder: Path
    known: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.known = artefacts.read_json(self.file)

    @property
    def file(self) -> Path:
        """Where costs are kept."""
        return self.folder / "costs.json"

    def of(self, backbone: str) -> float:
        """The cost of a backbone in the unit of search.cost: the sum over its parts."""
        return sum(self.piece(piece) for piece in self.pieces(backbone))

    def weights(self, backbone: str) -> int:
        """How many weights a backbone has."""
        return round(sum(self._get("parameters", piece) for piece in self.pieces(backbone)))

    def piece(self, piece: Piece | str) -> float:
        """The cost of a part in the unit of search.cost."""
        return self._get(self.run.config.search.cost, piece)

    def pieces(self, backbone: str) -> list[Any]:
        """The parts of a backbone that is written as a text, stage by stage; of others the whole."""
        if backbone_names.split(backbone)[0] != genotypes.PART:
            return [backbone]
        return list(genotypes.read(backbone).pieces(self.run.config.data.channels))

    def _get(self, unit: str, piece: Piece | str) -> float:
        table = self.known.setdefault(unit, {})
        name = f"{piece} at {self.run.config.image_size} px"
        if name not in table:
            table[name] = MEASURES[unit](self.run, piece)
            if unit == "milliseconds":  # a count comes out the same each time
                artefacts.write_json(self.file, {unit: table})
        return table[name]


def built(run: Inner, piece: Piece | str) -> torch.nn.Module:
    """A part of a backbone, or a whole one."""
    if isinstance(piece, Piece):
        return blocks.whole(piece)
    name, arguments = backbone_names.split(piece)
    if name in registry.parts("backbones"):
        made: torch.nn.Module = registry.build("backbones", piece)(run.config.data.channels)
        return made
    return network.TimmBackbone(name, arguments, run.config.data.channels, run.config.image_size, False)


def count(run: Inner, piece: Piece | str) -> float:
    """The number of weights; where it can be had so, without any memory for them."""
    try:
        with torch.device("meta"):
            made = built(run, piece)
    except UserError:  # a few of timm's compute while they are built
        made = built(run, piece)
    return sum(weight.numel() for weight in made.parameters())


def milliseconds(run: Inner, piece: Piece | str) -> float:
    """Milliseconds an image of prediction on this machine, the median of a few batches."""
    machine = Hardware(**run.machine())
    hardware.start(machine)
    side, channels = run.config.image_size, run.config.data.channels
    if isinstance(piece, Piece):
        side, channels = max(1, side // 2 ** max(0, piece.place - 1)), piece.inputs
    module = built(run, piece).eval().to(machine.device, memory_format=torch.channels_last)
    images = torch.zeros(TIMED, channels, side, side, device=machine.device)
    images = images.to(memory_format=torch.channels_last)
    taken = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            began = time.perf_counter()
            float(module(images).sum())  # waits for the device
            taken.append(time.perf_counter() - began)
    return float(np.median(taken[2:])) / TIMED * 1000


MEASURES = {"parameters": count, "milliseconds": milliseconds}


# --- trials ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hunt:
    """A search on disk: its rows, its folder, the space and the strategy; content defines it."""

    run: Inner
    folder: Path
    content: dict[str, Any]

    @cached_property
    def space(self) -> Any:
        """See parts/architectures.py."""
        return registry.build("architectures", self.run.config.search.space)(self.run.config.image_size)

    @cached_property
    def searcher(self) -> Any:
        """See parts/searchers.py."""
        return registry.build("searchers", self.run.config.search.strategy)(self.space)

    @cached_property
    def costs(self) -> Costs:
        """What networks cost."""
        return Costs(self.run, self.folder)

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, else −1."""
        return evaluate.direction(self.run.config.metric)

    def finished(self) -> list[Trial]:
        """The finished trials without a gap, in order."""
        found: list[Trial] = []
        while (trial := self.read(str(len(found)))) is not None:
            found.append(trial)
        return found

    def read(self, name: str) -> Trial | None:
        """A finished trial."""
        content = artefacts.finished(place(self.folder, name) / "trial.json", artefacts.fingerprint(self.content, name))
        return Trial(**{key: value for key, value in content.items() if key != "fingerprint"}) if content else None

    def work(self) -> list[Trial]:
        """Train what is not finished: the config as it stands, then one network after the other; returns all trials."""
        if self.read(REFERENCE) is None:
            self.train(REFERENCE, self.run.config.backbone)
        if len(self.finished()) < self.run.config.search.trials:
            self.searcher.prepare(self)
        while len(trials := self.finished()) < self.run.config.search.trials:
            backbone = self.next(trials)
            if backbone is None:
                console.say(f"  all {len(trials)} networks that there are within the limit are tried")
                break
            self.train(str(len(trials)), backbone)
        return trials[: self.run.config.search.trials]

    def next(self, trials: list[Trial]) -> str | None:
        """The strategy's first choice that is new and within the limit, else one at random; None where all are known.

        UserError where none is within the limit.
        """
        tried = {trial.backbone for trial in trials}
        history = [
            (trial.backbone, self.sign * trial.score if trial.ended == "done" else -math.inf) for trial in trials
        ]
        generator = draw(self.run.config.seed, len(trials))
        wanted = itertools.islice(self.searcher.proposals(history, generator), TRIES)
        costs = []
        for backbone in itertools.chain(wanted, (self.space.draw(generator) for _ in range(TRIES))):
            if backbone not in tried and self.fits(backbone):
                costs.append(self.costs.of(backbone))
                if self.within(costs[-1]):
                    return str(backbone)
        if not tried:
            raise UserError(self._none(costs))
        return None

    def fits(self, backbone: str) -> bool:
        """Whether a network takes the images and is of the size asked for."""
        if backbone in self.refused:
            return False
        try:
            return bool(self.space.fits(self.costs.weights(backbone)))
        except UserError as fault:  # a net of timm's that needs larger images
            console.say(f"  left out: {fault}".split(";")[0])
            self.refused.add(backbone)
            return False

    @cached_property
    def refused(self) -> set[str]:
        """The networks that cannot take the images."""
        return set()

    def within(self, cost: float) -> bool:
        """Whether a network of this cost may be tried."""
        limit = self.run.config.search.limit
        return not limit or cost <= limit

    def _none(self, costs: list[float]) -> str:
        search = self.run.config.search
        if not costs:
            return (
                f"search.space={search.space}: none of {2 * TRIES} networks drawn takes images of "
                f"{self.run.config.image_size} px and is of the size asked for; take other names, or widen least and "
                "most"
            )
        return (
            f"search.limit={search.limit:g}, but of {2 * TRIES} networks of {search.space} the cheapest has "
            f"{min(costs):.4g} {search.cost}; raise the limit, or give the space smaller choices, such as "
            "small(widths=[4,8],depths=[1,2])"
        )

    def train(self, name: str, backbone: str) -> None:
        """One trial, from the start or from where a killed process left it."""
        if name != REFERENCE and budget.over():
            raise OutOfTime
        folder, run = place(self.folder, name), self.trial_run(backbone)
        of = f"{int(name) + 1}/{run.config.search.trials}" if name.isdecimal() else name
        console.say(f"search {of}: {backbone}")
        began, score, error, ended = time.perf_counter(), math.nan, math.nan, "done"
        try:
            score, error = score_of(run, folder)
        except Diverged as fault:
            console.say(f"  {fault}".split(";")[0])
            ended = "diverged"
        trial = Trial(
            backbone, self.costs.of(backbone), self.costs.weights(backbone), score, error, ended,
            time.perf_counter() - began,
        )  # fmt: skip
        artefacts.finish(folder / "trial.json", artefacts.fingerprint(self.content, name), **asdict(trial))
        tidy(folder.parent)

    def trial_run(self, backbone: str) -> Inner:
        """The run that trains a network for a trial: no views, its last epoch counts."""
        own = self.run.config
        config = replace(
            own, backbone=backbone, epochs=own.search.epochs, schedule=in_shares(own.schedule, own.epochs),
            select="last", views=["identity()"], scales=[1.0],
            train__patience=0, train__seconds=0.0, train__seeds=1,
        )  # fmt: skip
        return Inner(config, self.run.name)

    # --- the network of all blocks ---

    def odds(self, plan: Any) -> list[tuple[dict[str, float], dict[int, float]]]:
        """Train the network of all blocks as ``gumbel()`` plans it; the chances that it learned, stage by stage."""
        record, print_ = self.folder / "supernet.json", artefacts.fingerprint(self.content, "supernet")
        found = artefacts.finished(record, print_)
        if found is None:
            console.say(f"search: all {sum(map(len, plan.options))} blocks side by side, {plan.epochs} epochs")
            run = Inner(replace(
                self.trial_run(self.run.config.backbone).config, epochs=plan.epochs, auxiliary="none()",
                finetune="all_alike()", consistency="none()", optim="adam()", average="none()",
                schedule="cosine(warmup=0.05)", lr=plan.lr,
            ), self.run.name)  # fmt: skip
            made: list[network.Network] = []

            def make(run: Inner, task: Task, held_out: tuple[int, ...]) -> network.Network:
                made.append(self.supernet(plan, run, task, held_out))
                return made[0]

            training.fit_member(
                run, run.held_out, Hardware(**run.machine()), self.folder / "supernet", make=make, learns=Frugal
            )
            odds = made[0].backbone.odds()
            found = artefacts.finish(record, print_, odds=[[block, [*depth.items()]] for block, depth in odds])
            tidy(self.folder)
        return [(block, {int(number): share for number, share in depths}) for block, depths in found["odds"]]

    def supernet(self, plan: Any, run: Inner, task: Task, held_out: tuple[int, ...]) -> network.Network:
        """The network of all blocks, random from the seed."""
        config = run.config
        torch.manual_seed(int(draw(config.seed, SUPERNET).integers(2**63)))
        first = plan.genotype([(stage[0].block, plan.depths[0]) for stage in plan.options])
        steps = usual_steps(int(run.learned(held_out).sum()), config.batch_size, config.epochs)
        backbone: Any = Supernet(
            config.data.channels, plan.options, plan.depths, first.norm, first.pool, self.costs.piece,
            speed=plan.speed, start=plan.start, end=plan.end, soft=plan.soft, steps=steps,
            limit=config.search.limit, weight=plan.weight,
        )  # fmt: skip
        for kind, call in (("norms", config.norm), ("activations", config.activation)):
            backbone = registry.build(kind, call)(backbone)
        return network.Network(training.blueprint(run, task, held_out), backbone, backbone.num_features)


class Frugal(learner.Learner):
    """A learner whose loss also holds what the network of all blocks costs."""

    def forward(self, batch: Batch, generator: np.random.Generator) -> torch.Tensor:
        """See ``Learner``."""
        return super().forward(batch, generator) + self.network.backbone.penalty()  # type: ignore[operator]


def score_of(run: Inner, folder: Path) -> tuple[float, float]:
    """Train in a folder; the score of the inner fold's rows and its standard error, and keep what was predicted."""
    machine, task = Hardware(**run.machine()), task_for(run.config, run.competition)
    progress, _, _ = training.fit_member(run, run.held_out, machine, folder)
    score = float(progress.history[-1]["score"] if progress.final is None else progress.final)
    if task.form.spatial:  # predictions too large to keep
        return score, math.nan
    values = open_member(folder, run.config, run.competition, task, machine).own(run.rows)
    Predictions(run.competition.train["id"].to_numpy()[run.rows], values, task.space).save(folder / "values.npz")
    return score, evaluate.row_error(evaluate.metric(run.config.metric, task), run.truth_of(task, run.rows), values)
