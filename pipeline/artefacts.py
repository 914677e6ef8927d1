"""The files between stages: where they lie, how they are written (whole or not at all) and checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.config import Config, root
from pipeline.console import say
from pipeline.errors import UserError, some
from pipeline.forms import EMBEDDING, unit
from pipeline.lists import LISTS, SIMILARITY
from pipeline.maps import SUFFIX, Chained, Geometry, Maps, Mean, Ragged, Stored

FORMAT = 1  # raise it when a finished stage of an older version must not count as finished


# --- where things lie ---------------------------------------------------------------------------------------------


def safe_name(name: str, what: str) -> str:
    """The name itself, if it can be a file's name inside its folder; else a UserError."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{what}={name!r} must be a plain name, without / and not starting with a dot")
    return name


def runs_folder(config: Config) -> Path:
    """``runs/<competition>``."""
    return root() / "runs" / safe_name(config.competition, "competition")


def run_name(config: Config) -> str:
    """The run's name: ``run=`` or the model's name."""
    return safe_name(config.run or config.model, "run")


def run_folder(config: Config, run: str = "") -> Path:
    """``runs/<competition>/<run>``."""
    return runs_folder(config) / (safe_name(run, "run") if run else run_name(config))


def member_folder(run: Path, held_out: Sequence[int]) -> Path:
    """Where the member that did not see these folds lies: ``fold2``, ``fold0_3`` for a pair, ``full`` for none."""
    return run / ("fold" + "_".join(str(fold) for fold in held_out) if held_out else "full")


def weights_file(member: Path) -> Path:
    """What a member predicts with: ``best.ckpt``, or ``best.safetensors`` in a package."""
    packed = member / "best.safetensors"
    return packed if packed.is_file() else member / "best.ckpt"


def folds_file(config: Config) -> Path:
    """``folds/<competition>.csv``."""
    return root() / "folds" / f"{safe_name(config.competition, 'competition')}.csv"


def packages_folder(config: Config) -> Path:
    """``packages/<competition>``."""
    return root() / "packages" / safe_name(config.competition, "competition")


def submissions_folder(config: Config) -> Path:
    """``submissions/<competition>``."""
    return root() / "submissions" / safe_name(config.competition, "competition")


def shown(path: Path) -> str:
    """A path as messages print it: relative to the project where it lies inside."""
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)


# --- writing: whole or not at all ---------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when it is complete: temporary file, fsync, rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False)
    except OSError as fault:
        raise UserError(
            f"{shown(path)} cannot be written: {fault.strerror}; free space or choose another place"
        ) from fault
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(handle.name, 0o644)
        os.replace(handle.name, path)
    except BaseException as fault:
        with contextlib.suppress(OSError):
            os.unlink(handle.name)
        refused = fault.__context__ if isinstance(fault, RuntimeError) else fault  # torch.save hides the disk's own
        if isinstance(refused, OSError):
            raise UserError(
                f"{shown(path)} cannot be written: {refused.strerror or refused}; all finished work is kept: "
                "free space, then run the same command again"
            ) from fault
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8 with ``\\n`` line ends."""
    with atomic(path) as handle:
        handle.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, readable and with a stable order."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is cut short is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise UserError(f"{shown(path)} does not exist") from fault
    except (OSError, ValueError) as fault:
        raise UserError(
            f"{shown(path)} is damaged ({fault}); delete it and run the stage that makes it again"
        ) from fault


@contextlib.contextmanager
def locked(folder: Path, step: bool = False) -> Iterator[None]:
    """Hold a folder for this process; a second process says that it waits, and goes on when the first is done.

    step: a whole step works on the folder, and may take the locks in and below it; its own lies beside the folder,
    which is not made, since the step may come to nothing.
    """
    import fcntl

    place = folder.parent / f".{folder.name}.step.lock" if step else folder / ".lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = place.open("w")
    except OSError as fault:
        raise UserError(f"{shown(folder)} cannot be written: {fault.strerror}; free space there, then go on") from fault
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{shown(folder)} is being worked on by another process; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- predictions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """What a member, or a level 2, says of some rows.

    ids: (N,) unicode, unique. values: (N, C) float32, finite, or ``Maps`` of N images; for classes the columns are in
    the sorted order of the class names as text. space: what the values are, such as "probability". made_by: plain facts
    (views, scales, commit) for the record.
    """

    ids: np.ndarray
    values: Any
    space: str
    made_by: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids, dtype=np.str_)
        values = self.values if isinstance(self.values, Maps) else np.asarray(self.values, dtype=np.float32)
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "values", values)
        if len(values.shape) != 2 or len(ids) != len(values):
            raise UserError(f"predictions need (N,) ids and (N, C) values, but have {ids.shape} and {values.shape}")
        if len(np.unique(ids)) != len(ids):
            names, counts = np.unique(ids, return_counts=True)
            raise UserError(f"predictions have duplicate ids: {some(names[counts > 1])}")
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise UserError(f"predictions are not finite for ids {some(ids[~np.isfinite(values).all(axis=1)])}")

    def save(self, path: Path) -> None:
        """Write an npz atomically; the same predictions give the same bytes. Maps get a file of pixels beside it."""
        if isinstance(self.values, Maps):
            write_maps(path, self.ids, self.values, self.space, {**self.made_by, "cut": self.values.cut})
            return
        with atomic(path) as handle:
            np.savez(handle, ids=self.ids, values=self.values, space=self.space, made_by=json.dumps(self.made_by))

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read an npz; missing, cut short or foreign files are a UserError that names the next move."""
        try:
            with np.load(path, allow_pickle=False) as content:
                made_by = json.loads(str(content["made_by"])) if "made_by" in content else {}
                values = _stored_maps(path, content, made_by) if "shapes" in content else content["values"]
                return cls(content["ids"], values, str(content["space"]), made_by)
        except FileNotFoundError as fault:
            raise UserError(f"{shown(path)} does not exist; run stage=predict for that run first") from fault
        except UserError as fault:
            raise UserError(f"{shown(path)}: {fault}") from fault
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
            raise UserError(
                f"{shown(path)} is damaged or no predictions file ({fault}); delete it and run "
                f"stage={_maker(path)} again"
            ) from fault

    def align(self, ids: Sequence[str] | np.ndarray, what: str = "predictions") -> Predictions:
        """The rows in the order of ids; names five ids that are missing."""
        wanted = np.asarray(ids, dtype=np.str_)
        place = {name: row for row, name in enumerate(self.ids.tolist())}
        missing = [name for name in wanted.tolist() if name not in place]
        if missing:
            raise UserError(f"{what}: {len(missing)} ids have no prediction: {some(missing)}")
        rows = np.array([place[name] for name in wanted.tolist()], dtype=np.int64)
        return Predictions(wanted, self.values[rows], self.space, self.made_by)

    @classmethod
    def concat(cls, members: Sequence[Predictions]) -> Predictions:
        """Rows of several members below each other; their ids must not overlap."""
        first, values = members[0], [m.values for m in members]
        joined = Chained(values) if isinstance(first.values, Maps) else np.concatenate(values)
        return cls(np.concatenate([m.ids for m in members]), joined, first.space, first.made_by)

    @classmethod
    def mean(cls, members: Sequence[Predictions]) -> Predictions:
        """The mean over members that speak of the same rows in the same order.

        Embeddings, of which each member has its own space, lie side by side, so that their cosine is the members' mean.
        Lists are averaged label by label.
        """
        first = members[0]
        values: list[Any] = [m.values for m in members]
        if first.space == EMBEDDING:
            return cls(first.ids, unit(np.concatenate(values, axis=1)), first.space)
        if first.space == SIMILARITY:
            values = LISTS.aligned(values)
        mixed = Mean(values) if isinstance(first.values, Maps) else np.stack(values).mean(axis=0, dtype=np.float64)
        return cls(first.ids, mixed, first.space)


def _maker(path: Path) -> str:
    """The stage that writes predictions there."""
    return "stack" if path.parent.parent.name == "level2" else "distill" if path.parent.name == "soft" else "predict"


def write_maps(path: Path, ids: np.ndarray, maps: Maps, space: str, made_by: dict[str, Any]) -> None:
    """Write maps at their images' own sizes; ``save_maps`` last."""
    shapes: list[tuple[int, ...]] = []
    with atomic(path.with_suffix(SUFFIX)) as handle:
        for row in range(len(maps)):
            height = 0
            for band in maps.bands(row):
                pixels = np.ascontiguousarray(np.rint(band * 255).astype(np.uint8).transpose(1, 2, 0))
                handle.write(pixels.data)
                height += len(pixels)
            shapes.append((height, *pixels.shape[1:]))
    sizes = np.array([shape[:2] for shape in shapes], dtype=np.int64).reshape(-1, 2)
    save_maps(path, ids, shapes, sizes, "", space, made_by)


def save_maps(
    path: Path, ids: np.ndarray, shapes: Sequence[Sequence[int]], sizes: np.ndarray, resize: str, space: str,
    made_by: dict[str, Any],
) -> None:  # fmt: skip
    """Write ``path``, an npz that says what the pixels beside it are: they are complete from now on.

    shapes: (N, 3) of the stored arrays. sizes: (N, 2), height and width of each image. resize: of ``maps.Geometry``.
    """
    digest = file_digest(path.with_suffix(SUFFIX))  # so that this file's own digest speaks for the pixels
    with atomic(path) as handle:
        np.savez(
            handle, ids=np.asarray(ids, dtype=np.str_), shapes=np.asarray(shapes, dtype=np.int64).reshape(-1, 3),
            sizes=np.asarray(sizes, dtype=np.int64).reshape(-1, 2), resize=resize, digest=digest, space=space,
            made_by=json.dumps(made_by),
        )  # fmt: skip


def _stored_maps(path: Path, content: Any, made_by: dict[str, Any]) -> Maps:
    """The maps that ``save_maps`` speaks of: content is the opened npz of path."""
    shapes = content["shapes"]
    pixels = Ragged(path.with_suffix(SUFFIX), shapes)
    columns = int(shapes[0, 2]) if len(shapes) else 0
    return Stored(pixels, content["sizes"], Geometry(str(content["resize"])), columns, str(made_by.get("cut", "")))


# --- what is finished ---------------------------------------------------------------------------------------------


def fingerprint(*content: Any) -> str:
    """A short hash of plain values (their JSON); the same values give the same text in every process."""
    text = json.dumps([FORMAT, content], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def digest(content: bytes) -> str:
    """The same short hash of bytes in memory as ``file_digest`` gives of a file."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """A short hash of a file's bytes."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as fault:
        raise UserError(f"{shown(path)} cannot be read: {fault.strerror}") from fault


def recorded(record: Path) -> dict[str, Any] | None:
    """What a stage recorded when it finished; None if it did not, or the record is damaged."""
    try:
        content = read_json(record) if record.is_file() else None
    except UserError:
        return None
    return content if isinstance(content, dict) else None


def finished(record: Path, print_: str, *outputs: Path) -> dict[str, Any] | None:
    """The facts that a stage recorded, if it finished with this fingerprint and its outputs still stand."""
    content = recorded(record) if all(output.exists() for output in outputs) else None
    return content if content and content.get("fingerprint") == print_ else None


def finish(record: Path, print_: str, **facts: Any) -> dict[str, Any]:
    """Record that a stage finished, with what it wants to remember (score, seconds)."""
    content = {"fingerprint": print_, **facts}
    write_json(record, content)
    return content


def commit() -> str:
    """The git commit of the code, marked when the tree has changes; "unknown" outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"
