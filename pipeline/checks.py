"""The checks of ``stage=sanity``: cheap experiments on a fresh network that fail before a training wastes hours.

Samples are counted in steps, never in seconds, so that the same settings always give the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipeline import engine, hardware, learner, objective, registry
from pipeline.config import Config, replace
from pipeline.data import Batch, Loader, Source, draw
from pipeline.hardware import Hardware
from pipeline.learner import last
from pipeline.runs import Run
from pipeline.tasks import Task, task_for
from pipeline.training import counts_of, fresh_network, materials

OVERFIT_STEPS = 200  # most optimizer steps on one batch; ends as soon as the batch is known by heart
GRADIENT_STEPS = 3  # a zero-initialised last norm lets no gradient through in the first step
SAMPLE_ROWS = 512
SAMPLE_STEPS = 24


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, what was seen, whether it passed, and what to do if not."""

    name: str
    passed: bool
    seen: str
    advice: str


def all_checks(run: Run) -> list[Check]:
    """Every check, in the order of its cost; fold 0 is held out, as in the first training."""
    views = registry.facts("augments", run.config.augment).get("several")
    still = "several(change='none()')" if views else "none()"
    none = {"train__labels": "", "train__soft": "", "train__hard": ""}
    plain = replace(run.config, augment=still, mix="none()", **none)
    run = Run(plain, run.name)
    machine = hardware.choose(plain)
    hardware.start(machine)
    task = task_for(plain, run.competition)
    table, source, _ = materials(run, task, (0,))
    sample = table.take(np.sort(draw(plain.seed).permutation(len(table))[:SAMPLE_ROWS]))
    loader = Loader(source, sample, replace(plain, sizes="fixed()"))
    bench = Bench(run, task, machine, counts_of(table, task))
    return [
        check_labels(task, run),
        check_images(source, sample.rows),
        check_initial_loss(bench, loader),
        check_gradients(bench, loader),
        check_overfit(bench, loader),
        check_learning(bench, Loader(source, sample, plain)),
    ]


class Bench:
    """Fresh learners and their optimizer, each check with its own."""

    def __init__(self, run: Run, task: Task, machine: Hardware, counts: np.ndarray | None) -> None:
        self.run, self.task, self.machine, self.counts = run, task, machine, counts

    @property
    def config(self) -> Config:
        """The run's settings without augmentation and mixing."""
        return self.run.config

    def start(self) -> None:
        """A fresh network, as member 0 starts."""
        self.fabric = engine.make_fabric(self.machine)
        self.learner = learner.Learner(
            fresh_network(self.run, self.task, (0,)), self.config, self.task.learns, self.counts
        )
        optimizer = engine.make_optimizer(self.learner, self.config)
        module = objective.prepare(self.learner.to(memory_format=torch.channels_last), self.config)
        self.module, self.optimizer = self.fabric.setup(module, optimizer)
        self.module.train()

    def loss(self, batch: Batch) -> torch.Tensor:
        """The training loss of a batch."""
        return self.module(batch.to(self.fabric.device), draw(self.config.seed))

    def step(self, batch: Batch) -> float:
        """One optimizer step; returns the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        self.fabric.backward(loss)
        self.optimizer.step()
        return float(loss.detach())

    def right(self, batch: Batch) -> float:
        """The share of a batch that is answered right (of numbers: of its variance), in training mode."""
        with torch.no_grad(), self.fabric.autocast():
            outputs = last(self.learner.network(batch.images[: len(batch.targets)].to(self.fabric.device)))
        return self.task.learns.agreement(batch.targets.numpy(), outputs.float().cpu().numpy())


def check_labels(task: Task, run: Run) -> Check:
    """More than one answer in the training rows."""
    strata = task.strata(run.competition.targets)
    shares = np.unique(strata, axis=0, return_counts=True)[1] / len(strata)
    seen = f"{len(shares)} different, the most frequent {shares.max():.1%} of {len(strata)} rows"
    return Check("labels vary", len(shares) > 1, seen, "look at data.target: it names a column with one value")


def check_images(source: Source, rows: np.ndarray) -> Check:
    """Images that are not all one colour, and differ from each other."""
    rows = rows[:256]
    sample = source.samples(rows, np.arange(len(rows)))[0].astype(np.float32)
    flat = float(np.mean(sample.std(axis=(1, 2, 3)) < 1))
    same = float(sample.std(axis=0).mean()) < 0.5
    seen = f"{flat:.1%} of one colour" + (", all alike" if same else "")
    return Check("images vary", flat < 0.5 and not same, seen, "look at the images: wrong folder, or damaged files?")


def check_initial_loss(bench: Bench, loader: Loader) -> Check:
    """A new model should lose what knowing nothing costs."""
    expected = learner.initial_loss(bench.config, bench.task.outputs)
    bench.start()
    with torch.no_grad():
        loss = float(bench.loss(first(loader)))
    if expected is None:
        return Check(
            "initial loss", bool(np.isfinite(loss)), f"{loss:.3f} (the loss declares none)", "the loss is not finite"
        )
    near = abs(loss - expected) <= 0.5 * expected + 0.25  # sound nets of few features were seen 0.7 above log 3
    advice = "a new head should answer all classes alike: look at its initialisation, and at the normalisation"
    return Check("initial loss", near, f"{loss:.3f}, expected {expected:.3f}", advice)


def check_gradients(bench: Bench, loader: Loader) -> Check:
    """Every trainable parameter is reached by a gradient within a few steps."""
    bench.start()
    reached: set[str] = set()
    named = {name: p for name, p in bench.learner.named_parameters() if p.requires_grad}
    for batch in list(loader.epoch(0))[:GRADIENT_STEPS] or [first(loader)]:
        bench.step(batch)
        reached |= {name for name, p in named.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    missing = sorted(named.keys() - reached)
    seen = f"{len(reached)} of {len(named)} parameters" + (f", not {', '.join(missing[:3])}" if missing else "")
    return Check("gradients reach all", not missing, seen, "something detaches, freezes or never uses these parameters")


def check_overfit(bench: Bench, loader: Loader) -> Check:
    """One batch can be learned by heart."""
    bench.start()
    batch, steps, right = first(loader), 0, 0.0
    enough = 0.99 if bench.task.learns.bounded else 0.95  # numbers come close, and never quite
    if bench.task.learns.spatial:
        enough = 0.9  # the last pixels of borders take long
    while steps < OVERFIT_STEPS and right < enough:
        bench.step(batch)
        steps += 1
        if steps % 5 == 0:
            right = bench.right(batch)
    seen = f"{right:.1%} of {len(batch.images)} right after {steps} steps"
    advice = "a model that cannot learn one batch has a wrong lr, loss, labels or preprocessing"
    return Check("over-fits one batch", right >= enough, seen, advice)


def check_learning(bench: Bench, loader: Loader) -> Check:
    """A short training on a sample lowers the loss."""
    bench.start()
    losses: list[float] = []
    for epoch in range(SAMPLE_STEPS):
        losses += [bench.step(batch) for batch in loader.epoch(epoch)]
        if len(losses) >= SAMPLE_STEPS:
            break
    start, end = np.mean(losses[:3]), np.mean(losses[-3:])
    seen = f"{start:.3f} → {end:.3f} in {len(losses)} steps"
    return Check(
        "a short training learns",
        bool(end < start),
        seen,
        f"lower lr (lr={bench.config.lr / 10:g}), or look at the data",
    )


def first(loader: Loader) -> Batch:
    """The first batch."""
    batches = loader.epoch(0)
    batch = next(batches)
    batches.close()
    return batch
