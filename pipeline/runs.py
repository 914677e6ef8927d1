"""Runs on disk: what defines one, what it was trained on, and its predictions. No torch."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline import artefacts, unlabelled
from pipeline.artefacts import Predictions, shown
from pipeline.competition import Competition, load
from pipeline.config import Config, keys, replace, root, same, scoped
from pipeline.errors import UserError, some
from pipeline.folds import asked_folds, learns_from, read_folds
from pipeline.rules import consistent, own_fold
from pipeline.tasks import Task, task_for

LIBRARIES = ("torch", "timm", "albumentations", "numpy", "opencv-python-headless")
HEADER = (
    "# Written by the stage that made it: what defines this run and what it learned. Edit configs/, not this file.\n"
    "# It ends with three dots.\n"
)
END = "...\n"  # YAML's own end of a document: a file that is cut short has none


@dataclass(frozen=True)
class Run:
    """One experiment over all folds, and the competition it belongs to."""

    config: Config
    name: str
    maker: ClassVar[str] = "train"  # the stage that makes such a run

    @property
    def folder(self) -> Path:
        """``runs/<competition>/<run>``."""
        return artefacts.run_folder(self.config, self.name)

    @cached_property
    def competition(self) -> Competition:
        """The competition's tables."""
        return load(self.config)

    @cached_property
    def folds(self) -> np.ndarray:
        """(N,) fold of each training row; −1: always learned from, never predicted."""
        return read_folds(self.config, self.competition)

    @property
    def scored(self) -> np.ndarray:
        """(n,) int64, the training rows that have a fold, and so OOF predictions."""
        return np.flatnonzero(self.folds >= 0)

    @property
    def scored_folds(self) -> np.ndarray:
        """(n,) int64, the folds of the scored rows."""
        return self.folds[self.scored]

    def truth(self, task: Task) -> np.ndarray:
        """The truth of the scored rows."""
        return self.truth_of(task, self.scored)

    def truth_of(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """The truth of some training rows, as the members that did not learn from them answer them."""
        return task.form.apart(task.targets(self.competition.targets), self.folds, self.learned)[rows]

    def learned(self, held_out: tuple[int, ...]) -> np.ndarray:
        """(N,) bool, the training rows that the member without these folds may learn from."""
        return learns_from(self.config, self.folds, held_out)

    @property
    def count(self) -> int:
        """The number of folds."""
        return int(self.folds.max()) + 1

    @property
    def file(self) -> Path:
        """The run's ``config.yaml``."""
        return self.folder / "config.yaml"

    def member(self, held_out: tuple[int, ...]) -> Path:
        """The folder of the member that did not learn from these folds."""
        return artefacts.member_folder(self.folder, held_out)

    def asked(self) -> list[tuple[int, ...]]:
        """The members that ``fold=`` asks for, each by the folds it does not learn from."""
        folds = asked_folds(self.config, self.count)
        return [()] if folds == "full" else [(fold,) for fold in folds]

    def stored(self) -> dict[str, Any]:
        """What config.yaml says: settings, hardware, inputs, versions, commit; empty before the first training."""
        from pipeline.config import read_yaml

        if not self.file.is_file():
            return {}
        self._check_whole()
        return dict(read_yaml(self.file.relative_to(root())))

    def _check_whole(self) -> None:
        """UserError unless config.yaml is whole; those that older versions wrote have other headers and no dots."""
        text = self.file.read_bytes()
        first = HEADER.encode()
        if not text.endswith(END.encode()) and (text.startswith(first) or len(text) < len(first)):
            raise UserError(
                f"{shown(self.file)} is damaged: its end is missing; delete it, then run the same command again: "
                "members that were trained with these settings are kept"
            )

    @property
    def made_by(self) -> str:
        """The stage that made the run; empty where there is none, or only foreign predictions."""
        return str(self.stored().get("stage", "train")) if self.stored() else ""

    @property
    def has_networks(self) -> bool:
        """Whether its members can answer other images than those they were asked about."""
        return self.made_by == "train"

    def machine(self) -> dict[str, Any]:
        """Device, number format and threads for a new run."""
        from pipeline import hardware

        return hardware.choose(self.config, self.pixels()).facts()

    def pixels(self) -> int:
        """Bytes of all images that a member may learn from, at the training size, and of their planes."""
        config, competition, count = self.config, self.competition, len(self.competition.train)
        if config.train.labels or config.train.soft:
            count += len(competition.test)
        if consistent(config):
            count = len(competition.train) + len(competition.test) + len(competition.unlabelled)
        if config.data.extra:
            from pipeline import extra

            outside = extra.load(config, competition)
            count += len(outside.files) if outside else 0
        task = task_for(config, competition)
        planes = task.outputs * (1 + bool(config.train.soft)) if task.learns.spatial else 0
        return count * config.image_size**2 * (config.data.channels + planes)

    def begun(self) -> bool:
        """Whether there is work that other settings would be at odds with."""
        return any(self.folder.rglob("*.ckpt"))

    def settings(self) -> dict[str, Any]:
        """What defines the run; the metric only where it chooses something."""
        settings = scoped(self.config, "run")
        if self.config.select == "last" and not own_fold(self.config):
            del settings["metric"]
        return settings

    def inputs(self) -> dict[str, str]:
        """Fingerprints of all that the run learns from besides its settings."""
        found = {"competition": self.competition.fingerprint, "folds": artefacts.fingerprint(self.folds.tolist())}
        if self.config.data.extra:
            from pipeline import extra

            found["data.extra"] = extra.digest(self.config, self.competition)
        if consistent(self.config) and self.config.data.unlabelled:
            found["data.unlabelled"] = unlabelled.digest(self.competition.folder, self.competition.unlabelled)
        return found | self.inputs_of("train.labels", "train.soft", "train.hard", "weights")

    def inputs_of(self, *names: str) -> dict[str, str]:
        """Fingerprints of the files that these keys name, of those that are set."""
        texts = {name: scoped(self.config, "run")[name] for name in names}
        return {name: _digest(root() / text, name) for name, text in texts.items() if text}

    def settle(self, joining: bool = False) -> dict[str, Any]:
        """Write config.yaml for a new run; for an old one make sure that nothing that defines it has changed.

        joining: another process may have settled it meanwhile, and its machine's number format and threads stand.
        Returns the stored content. Raises UserError that shows the difference and offers run=NAME.
        """
        stored, settings, inputs = self._checked()
        if stored and self.begun():
            return stored
        content = {
            "stage": self.maker,
            "settings": settings,
            "hardware": self.machine(),
            "inputs": inputs,
            "versions": versions(),
            "commit": artefacts.commit(),
        }
        fixed = ("settings", "inputs") if joining else ("settings", "inputs", "hardware")
        with artefacts.locked(self.folder):  # the length that another process is measuring must not be lost
            stored = self.stored()
            if all(stored.get(part) == content[part] for part in fixed):
                content = content | stored if joining else stored | content
            write_yaml(self.file, content)
            if not stored:
                self._take_up()
        return content

    def _take_up(self) -> None:
        """Keep members that lie there without a config.yaml if they were trained as the new one says, else refuse.

        What is not trained to the end may be of other settings, which nothing tells: it begins anew.
        """
        finished = []
        for record in filter(artefacts.recorded, self.folder.glob("f*/train.json")):
            held_out = tuple(int(fold) for fold in record.parent.name[4:].split("_") if fold)
            finished.append(self.member(held_out))
            if finished[-1] == record.parent and not artefacts.finished(record, self.fingerprint_of(held_out)):
                self.file.unlink()
                raise UserError(
                    f"{shown(record.parent)} was trained with other settings than these, and there is no "
                    f"{self.file.name} that tells them; {self._way()}"
                )
        for state in self.folder.rglob("last.ckpt"):
            if not any(member in state.parents for member in finished):
                state.unlink()

    def expect(self) -> None:
        """Make sure of an old run as ``settle`` does; a new one is left to the machine that begins it."""
        stored, settings, inputs = self._checked()
        if not self.begun() and (stored.get("settings"), stored.get("inputs")) != (settings, inputs):
            self.file.unlink(missing_ok=True)

    def _checked(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        """What is stored of the run, and what defines it now; overwrite=true removes what is in the way."""
        settings, inputs, stored = self.settings(), self.inputs(), self.stored()
        if self.made_by not in ("", self.maker) and not self.config.overwrite:
            raise UserError(f"the run {self.name} was made by stage={self.made_by}; {self._way()}")
        if self.config.overwrite:
            same = (self.made_by, stored.get("settings"), stored.get("inputs")) == (self.maker, settings, inputs)
            self.clear([self.member(held_out) for held_out in self.asked()] if same else None)
            stored = self.stored()
        if stored and self.begun():
            self._compare(settings, inputs, stored)
        return stored, settings, inputs

    def clear(self, members: list[Path] | None = None) -> None:
        """Remove the run's folder, or only these members of it, if the user asked for it with overwrite=true."""
        for folder in [self.folder] if members is None else members:
            if self.config.overwrite and folder.exists():
                shutil.rmtree(folder)

    def keep(self, what: str, key: str = "", digest: str = "") -> None:
        """Refuse to change what an existing run was trained on; what: the thing that came out differently.

        key, digest: the input that it is, and what it would become: the very same may be written again.
        """
        stored = self.stored()
        if stored and (not key or stored["inputs"].get(key) != digest):
            raise UserError(f"{what} came out differently than when the run {self.name} was trained; {self._way()}")

    def _way(self) -> str:
        return f"name a new run, run={self.name}-2, or replace this one, overwrite=true"

    def _compare(self, settings: dict[str, Any], inputs: dict[str, str], stored: dict[str, Any]) -> None:
        default = {key: keys()[key].default for key in settings}  # of a key that an older version did not know
        before = default | stored.get("settings", {})
        different = {key: value for key, value in settings.items() if not same(key, before[key], value)}
        changed = [f"{key}: {before[key]} → {value}" for key, value in different.items()]
        if changed:
            raise UserError(f"the run {self.name} was made with other settings ({some(changed, 8)}); {self._way()}")
        moved = [key for key, value in inputs.items() if stored.get("inputs", {}).get(key) != value]
        if moved:
            raise UserError(f"the run {self.name} was made from other data ({', '.join(moved)} changed); {self._way()}")

    def paced(self) -> tuple[Config, int]:
        """The config with the epochs that train.seconds came to, and the most batches of one; 0: all rows'."""
        length = self.stored().get("length")
        return (replace(self.config, epochs=length["epochs"]), length["batches"]) if length else (self.config, 0)

    def fingerprint(self) -> str:
        """What every result of this run depends on; see ``print_of``."""
        return print_of(self.stored())

    def fingerprint_of(self, held_out: tuple[int, ...]) -> str:
        """What a trained member depends on."""
        return artefacts.fingerprint(self.fingerprint(), held_out)

    def is_trained(self, held_out: tuple[int, ...]) -> bool:
        """Whether the member without these folds is trained to the end."""
        folder = self.member(held_out)
        print_, weights = self.fingerprint_of(held_out), artefacts.weights_file(folder)
        return artefacts.finished(folder / "train.json", print_, weights) is not None

    def as_trained(self) -> Config:
        """The config with the settings that the run was made with, whatever the command line says."""
        stored = self.stored()
        if not stored:
            raise UserError(f"the run {self.name} does not exist; train it first: {self.command('train')}")
        if not self.has_networks:
            raise UserError(
                f"run={self.name}, but stage={self.made_by} made it, and it has no networks; name a run of stage=train"
            )
        known = {key.replace(".", "__"): value for key, value in stored["settings"].items() if key in keys()}
        return replace(self.config, run=self.name, **known)

    @property
    def selected(self) -> str:
        """What was selected on each member's own fold, whose OOF that flatters, or an empty text (law 2)."""
        found = own_fold(self.as_trained()) if self.has_networks else []
        return "; ".join(filter(None, [f"selected on its own fold: {' '.join(found)}" if found else "", self.mark]))

    def command(self, stage: str) -> str:
        """What a message says to run a stage on this run."""
        return f"./run.sh stage={stage} competition={self.config.competition} run={self.name}"

    def fits_folds(self) -> bool:
        """Whether the OOF files there are hold the rows of today's folds."""
        ids = self.competition.train["id"].to_numpy()
        files = [self.member((fold,)) / "oof.npz" for fold in range(self.count)]
        pairs = [(Predictions.load(file).ids.tolist(), fold) for fold, file in enumerate(files) if file.exists()]
        return all(set(known) == set(ids[self.folds == fold].tolist()) for known, fold in pairs)

    def joined(self, held_out: tuple[int, ...]) -> list[list[str]]:
        """The absorbed rows of these folds, which a member that was trained before may predict now; none: no list."""
        late = np.arange(len(self.folds)) >= len(self.folds) - self.competition.absorbed
        found: list[str] = self.competition.train["id"][late & np.isin(self.folds, held_out)].tolist()
        return [found] if found else []

    def trained(self, held_out: tuple[int, ...]) -> str:
        """The fingerprint of a trained member; UserError with the command that trains it."""
        folder, print_ = self.member(held_out), self.fingerprint_of(held_out)
        if not self.is_trained(held_out):
            fold = ",".join(map(str, held_out)) or "full"
            raise UserError(f"{shown(folder)} is not trained to the end; run {self.command('train')} fold={fold} first")
        return artefacts.file_digest(folder / "train.json") + print_

    # --- predictions ---

    def oof(self, folds: Sequence[int] = ()) -> Predictions:
        """Predictions of the scored rows by the member that did not learn from them, in the table's order.

        folds: the rows of these alone; of all where none are given.
        """
        asked = folds or range(self.count)
        members = [Predictions.load(self.need((fold,), "oof.npz")) for fold in asked]
        ids = self.competition.train["id"].to_numpy()
        for fold, member in zip(asked, members, strict=True):
            if set(member.ids.tolist()) != set(ids[self.folds == fold].tolist()):
                path = shown(self.member((fold,)) / "oof.npz")
                if self.lacks_absorbed(fold, member.ids):
                    raise UserError(
                        f"{path} lacks rows that stage=absorb joined since; predict them, {self.command('predict')}: "
                        "its members never saw their labels"
                    )
                raise UserError(
                    f"{path} holds other rows than fold {fold}: the run was made on other folds; train and predict it "
                    f"again, {self.command('train')} overwrite=true, or delete it"
                )
        return Predictions.concat(members).align(ids[np.isin(self.folds, asked)], f"OOF of {self.name}")

    def lacks_absorbed(self, fold: int, ids: np.ndarray) -> bool:
        """Whether these ids are those of a fold but for rows that were absorbed since."""
        train = self.competition.train["id"].to_numpy()
        whole, late = set(train[self.folds == fold].tolist()), train[len(train) - self.competition.absorbed :]
        return self.has_networks and whole > set(ids.tolist()) >= whole - set(late.tolist())

    def tests(self) -> list[Predictions]:
        """Test predictions of each fold's member, in the table's order.

        A member that learned pseudo-labels of test rows with ``pseudo.crossfit`` speaks only for its own part of them:
        then all entries are the same, put together from the parts.
        """
        ids = self.competition.test["id"].to_numpy()
        members = [
            Predictions.load(self.need((fold,), "test.npz")).align(ids, f"test predictions of {self.name}")
            for fold in range(self.count)
        ]
        if not members[0].made_by.get("crossfit"):
            return members
        part = test_parts(len(ids), self.count, self.config.folds.seed)
        values = np.stack([m.values for m in members])[part, np.arange(len(ids))]
        return [Predictions(ids, values, members[0].space, members[0].made_by)] * self.count

    def full_test(self) -> Predictions | None:
        """Test predictions of the member that was trained on everything, if there is one; it has no CV."""
        path = self.member(()) / "test.npz"
        return Predictions.load(path).align(self.competition.test["id"].to_numpy()) if path.exists() else None

    def predicted(self) -> bool:
        """Whether OOF and test predictions of every fold are there."""
        members = [self.member((fold,)) for fold in range(self.count)]
        return all((m / name).exists() for m in members for name in ("oof.npz", "test.npz"))

    def need(self, held_out: tuple[int, ...], name: str) -> Path:
        """The path of a member's predictions; UserError with the command that makes them if they are missing."""
        path = self.member(held_out) / name
        if not path.exists():
            fold = held_out[0]
            raise UserError(
                f"{shown(path)} is missing: run {self.name} has no predictions of fold {fold}; make them with "
                f"{self.command(self.made_by or 'train')} fold={fold}"
                + (f", then {self.command('predict')}" if self.made_by in ("", "train") else "")
            )
        return path

    # --- status ---

    @property
    def mark(self) -> str:
        """What the tables say beside this run's scores: whose rows chose its settings or weights; or an empty text."""
        settings = self.stored().get("settings", {})
        leak = "second-order leak: rows weighed by OOF" if settings.get("train.hard") else ""
        return "; ".join(filter(None, [chosen_on(settings.get("tuned", [])), leak]))

    @property
    def rejected(self) -> str:
        """Why later steps leave this run out, or an empty text."""
        path = self.folder / "status.json"
        return str(artefacts.read_json(path).get("rejected", "")) if path.exists() else ""

    def reject(self, why: str) -> None:
        """Keep the run on disk, but out of later steps."""
        artefacts.write_json(self.folder / "status.json", {"rejected": why})


def chosen_on(folds: Sequence[int]) -> str:
    """The mark of settings that stage=tune chose by the own rows of these folds; empty without any (law 2)."""
    its = "its OOF there is optimistic"
    return f"tuned on {listed_folds(sorted(set(folds)))}: {its}" if folds else ""


def print_of(stored: dict[str, Any]) -> str:
    """The fingerprint of a config.yaml's content: settings, inputs, number format, and a measured length."""
    parts = ("settings", "inputs", "hardware", *(["length"] if "length" in stored else []))
    return artefacts.fingerprint(*(stored.get(part) for part in parts))


def listed_folds(folds: Sequence[int]) -> str:
    """``fold 0``, ``folds 0, 2``."""
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def test_parts(rows: int, count: int, seed: int) -> np.ndarray:
    """(rows,) the part of the test set, 0…count−1, of each test row: equal parts, at random."""
    return np.random.default_rng([seed, rows, count]).permutation(rows) % count


def predicted_runs(config: Config) -> list[Run]:
    """The runs of the competition with predictions of every fold, by name; rejected ones are left out."""
    folder = artefacts.runs_folder(config)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name != "level2") if folder.is_dir() else []
    runs = [Run(config, name) for name in names if not name.startswith(".")]
    return [run for run in runs if run.predicted() and not run.rejected and run.fits_folds()]


def beside(run: Run, key: str) -> list[Run]:
    """The predicted runs that differ from this one in one key alone, and were predicted in the same way."""

    def rest(other: Run) -> tuple[Any, ...]:
        stored = other.stored()
        settings = {name: keys()[name].default for name in keys() if keys()[name].rules["scope"] == "run"}
        settings |= stored.get("settings", {})
        made_by = Predictions.load(other.member((0,)) / "oof.npz").made_by
        views = [made_by.get(name) for name in ("views", "scales", "merge")]
        return {**settings, key: None}, stored.get("inputs"), views

    others = [other for other in predicted_runs(run.config) if other.name != run.name and other.has_networks]
    return [other for other in others if rest(other) == rest(run)]


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write plain values as YAML, atomically, keys in their given order."""
    import yaml

    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    artefacts.write_text(path, HEADER + text + END)


def versions() -> dict[str, str]:
    """The versions of the libraries that predictions come of."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def folder_digest(path: Path) -> str:
    """A short hash of the names and bytes of a folder's files."""
    return artefacts.fingerprint({p.name: artefacts.file_digest(p) for p in sorted(path.iterdir())})


def _digest(path: Path, name: str) -> str:
    if path.is_dir():
        return folder_digest(path)
    if not path.is_file():
        raise UserError(f"{name}={shown(path)} does not exist")
    return artefacts.file_digest(path)
