"""The trials of ``stage=tune`` on disk: Optuna's journal, shared by processes on one folder, and who works on what.

A search is a row of numbered slots. Whoever holds a slot's lock file trains its trial; the system lets go of the lock
when the process ends, however it ends, so that an open trial without a holder is one that was killed: the next process
goes on with it. No clock and no heartbeat is asked. No torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artefacts
from pipeline.errors import UserError
from pipeline.spaces import Dimension, Range, Space

STARTUP = 10  # random trials before the first that is suggested from results (Optuna's own default)
MISSING = "stage=tune needs optuna; install it: .venv/bin/pip install -c constraints.txt optuna"


def optuna() -> Any:
    """The library, quiet; UserError where it is not installed."""
    try:
        import optuna as library
    except ImportError as fault:
        raise UserError(MISSING) from fault
    library.logging.set_verbosity(library.logging.ERROR)
    warnings.filterwarnings("ignore", category=library.exceptions.ExperimentalWarning)
    return library


@dataclass(frozen=True)
class Slot:
    """One finished trial.

    score: as the metric has it, of the last epoch that was trained; NaN where there is none. ended: done, pruned or
    diverged. picked: the value of each dimension; settings: of each key.
    """

    number: int
    score: float
    ended: str
    epochs: int
    picked: dict[str, Any]
    settings: dict[str, Any]


class Study:
    """One row of slots: the short trainings of a search, or the longer ones after them.

    sign: 1 where more of the metric is better, else −1; the journal holds scores times it. fixed: what each slot picks,
    if that is settled beforehand: as many slots as entries. method: tpe or random for what is not.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        sign: int,
        slots: int,
        seed: int = 0,
        method: str = "random",
        prune: str = "none",
        fixed: Sequence[dict[str, Any] | None] = (),
    ) -> None:
        self.folder, self.name, self.space, self.sign, self.slots = folder, name, space, sign, slots
        self.seed, self.method, self.fixed = seed, method, list(fixed)
        library = optuna()
        journal = library.storages.journal
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trials.log"
        storage = library.storages.JournalStorage(journal.JournalFileBackend(str(path), Lock(path)))
        with artefacts.locked(folder):
            self.study = library.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=_pruner(prune)
            )

    # --- slots ---

    @contextlib.contextmanager
    def claimed(self, number: int, wait: bool = False) -> Iterator[bool]:
        """Hold a slot; yields whether it is this process's now. wait: until its holder has let go."""
        self.place(number).parent.mkdir(parents=True, exist_ok=True)
        with self.place(number).with_suffix(".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def place(self, number: int) -> Path:
        """The folder of a slot's training."""
        return self.folder / "trials" / f"{self.name}-{number:03d}"

    def finished(self) -> list[Slot]:
        """The finished trials, by slot."""
        found = {trial.user_attrs["slot"]: trial for trial in self._trials() if trial.state.is_finished()}
        return [self._slot(number, trial) for number, trial in sorted(found.items())]

    def begin(self, number: int) -> Any:
        """The slot's trial: the one that a killed process left open, else a new one that picks its values.

        The same slot picks the same values: fixed ones, random ones by (seed, slot), and TPE's by these and the trials
        finished so far.
        """
        library = optuna()
        for trial in self._trials():
            if trial.user_attrs["slot"] == number and not trial.state.is_finished():
                return library.trial.Trial(self.study, trial._trial_id)
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        trial.set_user_attr("slot", number)
        return trial

    def settings(self, number: int, trial: Any) -> dict[str, Any]:
        """The keys' values that a trial picks; none where its slot is the config as it stands."""
        if self.fixed and self.fixed[number] is None:
            return {}
        return self.space.settings(lambda dimension: _suggest(trial, dimension))

    def report(self, trial: Any, step: int, score: float) -> None:
        """Note a score after an epoch; raises optuna.TrialPruned where the trial is too weak to go on.

        step: 0, 1, …, over the epochs of all folds.
        """
        library = optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a killed process may have reported this epoch, with the same score
            trial.report(self.sign * score, step + 1)  # Optuna's rungs count from 1
        if trial.should_prune():
            raise library.TrialPruned

    def end(self, trial: Any, score: float, epochs: int, settings: dict[str, Any], ended: str = "done") -> None:
        """Finish a trial. One that was pruned or diverged counts against its values, too."""
        library = optuna()
        for name, value in (("epochs", epochs), ("settings", settings), ("ended", ended)):
            trial.set_user_attr(name, value)
        state = library.trial.TrialState.COMPLETE if ended == "done" else library.trial.TrialState.PRUNED
        self.study.tell(trial, self.sign * score if ended == "done" else None, state=state)

    def importance(self) -> dict[str, float]:
        """The share of each dimension in the differences of scores (fANOVA); of those that every finished trial has."""
        library = optuna()
        done = [trial for trial in self._trials() if trial.state == library.trial.TrialState.COMPLETE]
        common = set.intersection(*(set(trial.params) for trial in done)) if done else set()
        varied = [name for name in self.space.dimensions() if name in common
                  and len({trial.params[name] for trial in done}) > 1]  # fmt: skip
        if len(done) < 4 or not varied or len({trial.value for trial in done}) < 2:
            return {}
        evaluator = library.importance.FanovaImportanceEvaluator(seed=self.seed)
        return dict(library.importance.get_param_importances(self.study, evaluator=evaluator, params=varied))

    def _trials(self) -> list[Any]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if "slot" in trial.user_attrs]

    def _slot(self, number: int, trial: Any) -> Slot:
        known = trial.user_attrs
        last = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else math.nan
        value = trial.value if known["ended"] == "done" else last
        return Slot(number, self.sign * value, known["ended"], known["epochs"], trial.params, known["settings"])

    def _sampler(self, number: int) -> Any:
        samplers = optuna().samplers
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.fixed:
            return samplers.PartialFixedSampler(self.fixed[number] or {}, samplers.RandomSampler(seed))
        if self.method == "random" or number < STARTUP:
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=True)


def _suggest(trial: Any, dimension: Dimension) -> Any:
    if not isinstance(dimension, Range):
        return trial.suggest_categorical(dimension.name, list(dimension.options))
    suggest = trial.suggest_int if dimension.whole else trial.suggest_float
    return suggest(dimension.name, dimension.low, dimension.high, log=dimension.log)


def _pruner(name: str) -> Any:
    """median: Golovin et al. 2017 (Vizier), sec. 3.2.2; asha: Li et al. 2020, algorithm 2."""
    pruners = optuna().pruners
    match name:
        case "median":
            return pruners.MedianPruner(n_startup_trials=5)
        case "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return pruners.NopPruner()


class Lock:
    """Optuna's lock around a write, held by the system, so that a killed process leaves none behind.

    The journal is mended first: a line that a kill or a full disk cut short would make all of it unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        """Wait for the lock, and mend the journal."""
        self.handle = self.path.with_suffix(".lock").open("w")
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        mend(self.path)
        return True

    def release(self) -> None:
        """Let go."""
        self.handle.close()


def mend(path: Path) -> None:
    """Cut off a last line without its end."""
    if not path.exists():
        return
    with path.open("rb+") as handle:
        size = handle.seek(0, os.SEEK_END)
        if not size:
            return
        handle.seek(size - 1)
        if handle.read(1) != b"\n":
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)
