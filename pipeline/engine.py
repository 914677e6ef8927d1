"""fit(): the training loop on Lightning Fabric. It knows no task, no teacher and no pseudo-label.

Its whole state lies in ``last.ckpt``: a run that is killed goes on in mid-epoch and ends with the very same weights.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from pipeline import budget, console, objective, ranks, registry, startup
from pipeline.artefacts import shown
from pipeline.checkpoint import Progress, State, averaged, epoch_weights, predicting
from pipeline.config import Config, Train
from pipeline.course import Course
from pipeline.data import Loader, draw
from pipeline.errors import Diverged, OutOfTime
from pipeline.hardware import Hardware
from pipeline.journal import Journal
from pipeline.learner import Learning
from pipeline.parts import schedules
from pipeline.rules import averaging

STATISTICS_BATCHES = 64  # from so many batches BatchNorm's statistics are recomputed, where an average asks for it
CHECK_STEPS = 50  # steps between two looks at the loss for NaN; a look waits for the device
RANK = 2  # tells the draws of the processes that train together from the other draws of a step


Validate = Callable[[Iterable[nn.Module]], tuple[float, dict[str, float]]]
"""The networks that predict together, each in eval mode → (score, higher is better; what the log shows)."""


def make_fabric(hardware: Hardware) -> Fabric:
    """Fabric in the run's training format: for one device, or for this process's among those that train together.

    Which weights get a gradient changes with finetune, with pairs and with heads that timm's nets keep unused, so it is
    found out at each step. Gradients are then added up in an order that stays, and a resume is exact.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it would say stands in config.yaml
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[hardware.precision]
    number = hardware.device.partition(":")[2]
    devices: Any = [int(number)] if number else 1
    if ranks.size() == 1:
        return Fabric(accelerator=hardware.kind, devices=devices, precision=precision)  # type: ignore[arg-type]
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of one channel, which has no strides
    together = DDPStrategy(cluster_environment=TorchElasticEnvironment(), find_unused_parameters=True)
    fabric = Fabric(accelerator=hardware.kind, devices=ranks.size(), strategy=together, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def make_optimizer(learner: Learning, config: Config) -> torch.optim.Optimizer:
    """The optimizer over what learns: the network as finetune says, and what the loss itself may learn."""
    lr = peak(config)
    groups = registry.build("finetunes", config.finetune)(learner.network, lr)
    own = {id(parameter) for parameter in learner.network.parameters()}
    if rest := [parameter for parameter in learner.parameters() if id(parameter) not in own]:
        groups.append({"params": rest, "lr": lr})
    single = len(groups) == 1  # plain tensors, as ever: the state of older checkpoints fits
    return registry.build("optims", config.optim)(groups[0]["params"] if single else groups, lr)


def peak(config: Config) -> float:
    """The peak learning rate: lr, scaled to the images of an optimizer step as train.scale_lr says.

    Linear: Goyal et al. 2017, sec. 2.1, for SGD; sqrt: Krizhevsky 2014, sec. 2, for Adam and its kin.
    """
    ratio = config.batch_size * config.train.accumulate / config.train.base_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.train.scale_lr]


def clip(fabric: Fabric, module: Any, optimizer: Any, train: Train) -> None:
    """Bound each gradient by clip_value, then their norm by clip_norm, each if it is set."""
    if train.clip_value:
        fabric.clip_gradients(module, optimizer, clip_val=train.clip_value)
    if train.clip_norm and train.clip_value:  # a second call of Fabric's would unscale once more
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        nn.utils.clip_grad_norm_(weights, train.clip_norm)
    elif train.clip_norm:
        fabric.clip_gradients(module, optimizer, max_norm=train.clip_norm, error_if_nonfinite=False)


def make_average(learner: Learning, config: Config, total: int) -> Any:
    """The average over so many optimizer steps, told where the schedule's cycles end if it asks for that.

    Where a teacher follows the student, the average is that teacher.
    """
    chosen = averaging(config)
    asks = registry.facts("averages", chosen).get("cycles")
    ends = [schedules.cycle_ends(config.schedule, total)] if asks else []
    average = registry.build("averages", chosen)(learner.network, total, *ends)
    learner.follow(average)
    return average


def fit(
    fabric: Fabric, learner: Learning, train: Loader, config: Config, folder: Path, validate: Validate | None
) -> Progress:
    """Train, and leave ``best.ckpt`` (weights for prediction), ``last.ckpt`` (full state) and ``log.csv`` in folder.

    validate: scores the network after each epoch; None for a training on everything. Raises Diverged when the loss
    is not finite; after saving, KeyboardInterrupt when asked to stop and OutOfTime when the budget is used up.

    Of several processes each calls this with its share of the same batches; all take the same decisions, and the first
    one writes.
    """
    startup.imported()
    optimizer = make_optimizer(learner, config)
    module = objective.prepare(learner.to(memory_format=torch.channels_last), config, fabric.world_size)
    module, optimizer = fabric.setup(module, optimizer)
    groups = math.ceil(train.steps / config.train.accumulate)  # the last one of an epoch may be smaller
    total = config.epochs * groups
    course = Course(config, learner.network, total)
    average = make_average(learner, config, total)
    for options in optimizer.param_groups:
        options["initial_lr"] = options["lr"]
    state = State(learner, optimizer, average, getattr(fabric.strategy.precision, "scaler", None), folder)
    progress = state.load() or Progress()
    journal = Journal(folder, progress.history, config)
    clock, agreed = Clock(config.train.checkpoint_seconds), ranks.Agreement()

    bar = console.progress(folder.name, config.epochs * train.steps)
    with contextlib.closing(journal), stop_signals() as stopping, bar as advance:
        advance(progress.epoch * train.steps + progress.step)
        while progress.epoch < config.epochs and not _out_of_patience(progress, config):
            began, first = time.perf_counter(), progress.step
            course.begin(progress.history)
            module.train()
            running = torch.tensor(progress.loss, device=fabric.device)
            for batch in train.epoch(progress.epoch, progress.step):
                group, place = divmod(progress.step, config.train.accumulate)
                size = min(config.train.accumulate, train.steps - group * config.train.accumulate)
                if place == 0:
                    factor = course.factor(progress.updates, progress.history)
                    for options in optimizer.param_groups:
                        options["lr"] = options["initial_lr"] * factor
                    optimizer.zero_grad(set_to_none=True)
                generator = _seed(config.seed, progress.epoch, progress.step)
                with fabric.no_backward_sync(module, enabled=place + 1 < size):
                    loss = module(batch.to(fabric.device), generator)
                    fabric.backward(loss / size)
                running += ranks.mean(loss.detach())
                if place + 1 == size:
                    clip(fabric, module, optimizer, config.train)
                    if _optimizer_step(optimizer, state.scaler):
                        average.update(learner.network, progress.updates)
                        progress.updates += 1  # a step that AMP skipped does not move the schedule
                progress.step += 1
                advance(1, f"loss {float(running) / progress.step:.4f}" if progress.step % CHECK_STEPS == 0 else "")
                whole = place + 1 == size  # half a group's gradients are in no checkpoint
                stop, due = agreed(stopping() is not None, clock.due()) if whole else (False, False)
                if stop or due or progress.step % CHECK_STEPS == 0:
                    progress.loss = _finite(float(running), progress, config, folder)
                if stop or due:
                    _numbers(learner, progress, config, folder)
                    clock.save(state, progress)
                if stop:
                    raise stopping() or KeyboardInterrupt
            progress.loss = _finite(float(running), progress, config, folder)
            _numbers(learner, progress, config, folder)
            waited, images = train.waited, (train.steps - first) * train.batch_size
            with averaged(learner.network, average) as network, fabric.autocast(), torch.no_grad():
                average.finish(network, _images(train, progress.epoch, fabric.device))
            row = _end_epoch(progress, state, config, validate)
            lr = optimizer.param_groups[0]["lr"]
            journal.add(row, lr, images, time.perf_counter() - began, waited)
            late = progress.epoch == config.epochs  # what is left to do takes no longer than a validation
            why = stopping()  # it may have come during validation: the next fold must not start
            if agreed(why is not None and not (late and why is OutOfTime), False)[0]:
                state.save(progress)
                raise why or KeyboardInterrupt
    if validate is not None:
        _conclude(progress, state, validate, lambda: _images(train, progress.epoch, fabric.device))
    if config.select != "best" or progress.best_epoch < 0:
        state.save_weights(folder / "best.ckpt", progress)
    state.save(progress)
    return progress


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], type[BaseException] | None]]:
    """Let Ctrl-C, SIGTERM and the end of the budget end the current step first; yields what to raise by now.

    A second signal stops at once.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller handles signals
        before = {}
    try:
        yield lambda: KeyboardInterrupt if came else OutOfTime if budget.over() else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Clock:
    """When the next checkpoint is due. The clock decides only when the state is saved, never what it is."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.cost = seconds, 0.0
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed since the last save; a save that takes long is due more rarely."""
        return time.monotonic() - self.last >= max(self.seconds, 20 * self.cost if self.seconds else 0)

    def save(self, state: State, progress: Progress) -> None:
        """Save, and count from now."""
        began = time.monotonic()
        state.save(progress)
        self.last = time.monotonic()
        self.cost = self.last - began


def _images(train: Loader, epoch: int, device: torch.device) -> Iterator[torch.Tensor]:
    """A few batches of an epoch's images, made only if somebody asks for them."""
    for batch in itertools.islice(train.epoch(epoch), STATISTICS_BATCHES):
        yield batch.images.to(device)


def _seed(seed: int, epoch: int, step: int) -> Any:
    """Seed torch (dropout, drop path) for this step and give numpy's generator for it (mixes).

    Processes that train together draw apart, or rows of one place in their shares would be dropped and mixed alike.
    """
    generator = draw(seed, epoch, step, RANK, ranks.rank()) if ranks.rank() else draw(seed, epoch, step)
    torch.manual_seed(int(generator.integers(2**63)))
    return generator


def _optimizer_step(optimizer: Any, scaler: Any) -> bool:
    """Step; False if the gradient scaler found infinities and left the step out."""
    before = scaler.get_scale() if scaler else 1.0
    optimizer.step()
    return not scaler or scaler.get_scale() >= before


def _finite(loss: float, progress: Progress, config: Config, folder: Path) -> float:
    if math.isfinite(loss):
        return loss
    raise _diverged(f"the loss of {shown(folder)} is {loss}", progress, config)


def _numbers(learner: Learning, progress: Progress, config: Config, folder: Path) -> None:
    """Raise Diverged unless all weights are finite: a gradient alone may have spoilt them, before any loss shows it."""
    weights = [weight.detach() for weight in learner.parameters() if weight.numel()]
    if not torch.stack([torch.linalg.vector_norm(weight, math.inf).float() for weight in weights]).isfinite().all():
        raise _diverged(f"{shown(folder)} has weights that are no finite numbers", progress, config)


def _diverged(what: str, progress: Progress, config: Config) -> Diverged:
    return Diverged(
        f"{what} in epoch {progress.epoch + 1}, step {progress.step}; the last good checkpoint is kept. Try "
        f"lr={config.lr / 10:g}, train.clip_norm=1 or precision=fp32, with overwrite=true"
    )


def _out_of_patience(progress: Progress, config: Config) -> bool:
    waited = progress.epoch - 1 - progress.best_epoch
    return bool(config.train.patience) and progress.best_epoch >= 0 and waited >= config.train.patience


def _end_epoch(progress: Progress, state: State, config: Config, validate: Validate | None) -> dict[str, float]:
    """Validate, keep the weights if they are the best so far, and move on to the next epoch."""
    row = {"epoch": progress.epoch + 1, "loss": progress.loss / max(1, progress.step)}
    if validate is not None:
        score, shown_values = validate(predicting(state.learner.network, state.average))
        row |= shown_values
        state.average.observe(state.learner.network, score)
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            if config.select == "best":
                state.save_weights(state.folder / "best.ckpt", progress)
    progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
    if config.select == "common" and validate is not None:
        state.save_weights(epoch_weights(state.folder, progress.epoch), progress)
    return row


def _conclude(
    progress: Progress, state: State, validate: Validate, images: Callable[[], Iterator[torch.Tensor]]
) -> None:
    """Let the average choose among the epochs it has observed, and score what it has made of them."""
    with averaged(state.learner.network, state.average) as bench:
        progress.averaged = state.average.conclude(bench, images, lambda: validate([bench])[0])
    if progress.averaged:
        progress.final = validate(predicting(state.learner.network, state.average))[1]["score"]
        names = ", ".join(map(str, progress.averaged))
        console.say(f"  {state.folder.name} averages the epochs {names}: score {progress.final:.4f}")
