"""The truth of a segmentation competition, as ``mask.*`` tells it: one image's masks at a time, and what they cover."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import files, mask_tables, masks
from pipeline.artefacts import atomic
from pipeline.config import Data, Mask, root
from pipeline.console import progress
from pipeline.errors import UserError, some
from pipeline.mask_tables import MaskTable, RleForm
from pipeline.masks import MaskFiles, PixelForm, Sizes
from pipeline.patterns import checked, without_suffix

GROUND = "ground"  # the name of class 0 where texts tell the others
ONE = "mask"  # the name of the one class where it has none


@dataclass(frozen=True)
class Truth:
    """The truth of some images by row, in the shape that the task's form says; nothing is read before ``one``.

    source: ``MaskTable`` or ``MaskFiles``. rows: (n,) int64, of the source. form: "masks", "class_masks" or "objects".
    """

    source: Any
    rows: np.ndarray
    form: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> Truth:
        """The truth of these rows, or of those marked True."""
        return replace(self, rows=self.rows[rows])

    def one(self, row: int) -> np.ndarray:
        """Bits (C, H, W) uint8, indices (H, W) uint8 or labels (H, W) int32 of an image."""
        image = int(self.rows[row])
        if isinstance(self.source, MaskTable):
            return getattr(self.source, _READ[self.form])(image)
        return _of_file(self.source.take(image), self.form)


_READ = {"masks": "bits", "class_masks": "indices", "objects": "labels"}


def _of_file(found: np.ndarray, form: str) -> np.ndarray:
    """What a mask's file gave, as the form has it."""
    if form == "masks" and found.dtype == np.int32:  # objects, as their union
        return np.where(found < 0, masks.VOID, found > 0).astype(np.uint8)[None]
    if form == "masks":
        return found[None] if found.ndim == 2 else found
    if form == "objects" and found.dtype != np.int32:
        raise UserError("kind=objects needs mask files with mask.pixels=labels; or take kind=masks")
    return found


@dataclass(frozen=True)
class Told:
    """All that a competition's masks are: the truth of its training rows, and how csvs of answers tell masks.

    form: "masks", "class_masks" or "objects". columns: names of the classes, in the order of the planes. source: the
    masks of the training rows, ``MaskTable`` or ``MaskFiles``; None in a package. answer: how the sample submission
    wants masks. test: id → row, and sizes of test images.
    """

    form: str
    columns: list[str]
    source: Any
    answer: RleForm
    test: dict[str, int]
    sizes: Sizes

    def truth(self, rows: np.ndarray) -> Truth:
        """The truth of these training rows."""
        return Truth(self.source, rows, self.form)

    def ids(self, frame: pd.DataFrame) -> list[str]:
        """The images that a sample, submission or solution speaks of, each once, in its order."""
        if self.answer.joined:
            return mask_tables.image_ids(frame, replace(self.answer, id=str(frame.columns[0])), "the csv")
        return frame.iloc[:, 0].astype(str).unique().tolist()

    def read(self, frame: pd.DataFrame, name: str) -> Truth:
        """The masks that a csv of test images tells, in the order of ``ids``."""
        ids = self.ids(frame)
        strange = [one for one in ids if one not in self.test]
        if strange:
            raise UserError(f"{name} speaks of {len(strange)} images that are no test images: {some(strange)}")
        text = self.answer.rle if self.answer.rle in frame.columns else str(frame.columns[-1])
        form = replace(self.answer, id=str(frame.columns[0]), rle=text)
        table = mask_tables.mask_table(frame, form, ids, [self.sizes[self.test[one]] for one in ids], name)
        return Truth(table, np.arange(len(ids)), self.form)


# --- how it is told -----------------------------------------------------------------------------------------------


def is_told(mask: Mask) -> bool:
    """Whether a competition has masks at all."""
    return bool(mask.rle or mask.folder)


def rle_form(data: Data, mask: Mask) -> RleForm:
    """How the training table tells masks."""
    return RleForm(
        id=data.id, rle=mask.rle, rows=mask.rows, classes=tuple(mask.classes), class_column=mask.class_column,
        separator=mask.separator, exclusive=mask.exclusive, order=mask.order, base=mask.base, starts=mask.starts,
        overlap=mask.overlap, void=mask.void, missing=mask.missing,
    )  # fmt: skip


def answer_form(mask: Mask, sample: pd.DataFrame) -> RleForm:
    """How the sample submission wants masks: its first column the ids, mask.rle or the last the texts."""
    columns = [str(name) for name in sample.columns]
    if len(columns) < 2:
        raise UserError(f"the sample submission has the one column {some(columns)}; masks need ids and a text")
    wanted = mask.class_column if mask.class_column in columns else ""
    text = mask.rle if mask.rle in columns[1:] else next(name for name in reversed(columns) if name != wanted)
    named = mask.classes if mask.rle or mask.pixels not in ("indices", "colours") else mask.classes[1:]
    classes = () if mask.rows == "image" else tuple(named)
    return RleForm(
        id=columns[0], rle=text, rows=mask.rows, classes=classes, class_column=wanted, separator=mask.separator,
        exclusive=mask.exclusive, order=mask.order, base=mask.base, starts=mask.starts, overlap="first",
        void="", missing="empty",
    )  # fmt: skip


def pixel_form(mask: Mask) -> PixelForm:
    """What the pixels of mask files mean."""
    table = tuple(_code(text) for text in mask.table)
    void = _code(mask.void) if mask.void else None
    count = len(mask.classes) if mask.pixels in ("indices", "colours") else 2
    if mask.pixels in ("indices", "colours") and count < 2:
        raise UserError(f"mask.pixels={mask.pixels} needs mask.classes: the names in order, with the ground")
    return PixelForm(mask.pixels, count, table, void, mask.least, mask.missing)  # type: ignore[arg-type]


def _code(text: str) -> Any:
    """A value, or a colour as r-g-b."""
    words = text.split("-")
    if len(words) not in (1, 3) or not all(word.isdecimal() for word in words):
        raise UserError(f"mask.table and mask.void hold values such as 3, or colours such as 255-0-0, not {text!r}")
    numbers = tuple(int(word) for word in words)
    return numbers[0] if len(numbers) == 1 else numbers


def columns(mask: Mask, form: str) -> list[str]:
    """The names of the classes, in the order of the planes."""
    if form == "objects":
        return [ONE]
    if form == "masks":
        return list(mask.classes) or [ONE]
    if mask.rle:
        return [GROUND, *mask.classes]
    return list(mask.classes) or [GROUND, ONE]


def image_rows(data: Data, mask: Mask, table: pd.DataFrame) -> pd.DataFrame:
    """One row an image of a table that may have several: the first, its id without the class."""
    form = rle_form(data, mask)
    ids, _ = mask_tables.told_by(table, form, data.train_csv)
    firsts = table.assign(**{data.id: ids}).drop_duplicates(data.id, ignore_index=True)
    return firsts.drop(columns=mask.rle)


def blank_sample(mask: Mask, id_: str, ids: Sequence[str]) -> pd.DataFrame:
    """A sample submission where there is none: a row for each test image, with mask.rows=class for each of its classes.

    id_: the column of the ids, which hold the class too.
    """
    text = mask.rle or "rle"
    form = answer_form(mask, pd.DataFrame(columns=[id_, text]))
    if form.joined:
        ids = [f"{name}{form.separator}{one}" for name in ids for one in form.classes]
    return pd.DataFrame({id_: ids, text: ""}, dtype=str)


def answer_ids(mask: Mask, sample: pd.DataFrame) -> list[str]:
    """The images that a sample submission asks for, each once."""
    form = answer_form(mask, sample)
    if form.joined:
        return mask_tables.image_ids(sample, form, "the sample submission")
    return sample.iloc[:, 0].astype(str).unique().tolist()


def open_truth(
    folder: Path, data: Data, mask: Mask, table: pd.DataFrame, ids: Sequence[str], sizes: Sizes
) -> MaskTable | MaskFiles:
    """The masks of these images. table: the training csv, untouched."""
    if mask.rle:
        return mask_tables.mask_table(table, rle_form(data, mask), ids, sizes, data.train_csv)
    return MaskFiles(folder, mask_files(folder, mask, ids), pixel_form(mask), sizes)


def mask_files(folder: Path, mask: Mask, ids: Sequence[str]) -> list[str]:
    """The mask file of each image; "" where there is none and mask.missing=empty.

    A pattern of mask.files takes the id, or the id without an image's suffix, whichever fits more.
    """
    there = files.find(folder, mask.folder)
    names = {*there.files, *there.members}
    known = names | {without_suffix(name) for name in names} | {Path(name).name for name in names}
    known |= {without_suffix(Path(name).name) for name in names}
    patterns = checked(mask.files or ["{id}"])
    fits = [[{pattern.format(id=name) for pattern in patterns} <= known for name in calls] for calls in _calls(ids)]
    which = int(sum(fits[1]) > sum(fits[0]))
    calls = _calls(ids)[which]
    absent = [name for name, there_is in zip(ids, fits[which], strict=True) if not there_is]
    if absent and mask.missing == "error":
        raise UserError(
            f"{len(absent)} of {len(ids)} images have no mask file in {mask.folder}: {some(absent)}; give "
            "mask.missing=empty if that means nothing to find, say how masks are called with mask.files, or leave the "
            "images out"
        )
    have = [name for name, there_is in zip(calls, fits[which], strict=True) if there_is]
    found = dict(zip(have, files.resolve(folder, mask.folder, have, mask.files), strict=True))
    return [found.get(name, "") for name in calls]


def _calls(ids: Sequence[str]) -> tuple[list[str], list[str]]:
    return list(ids), [without_suffix(name) for name in ids]


def without_masks(folder: Path, images: Sequence[str], place: str, mask: Mask) -> list[str]:
    """Images of folder/place that are no masks: those outside mask.folder, or not called as mask.files has it."""
    if not mask.folder:
        return list(images)
    own, masked = (os.path.normpath(folder / name) for name in (place, mask.folder))
    if own != masked:
        within = os.path.relpath(masked, own) + "/"
        return [name for name in images if not name.startswith(within)]
    stems = [without_suffix(name) for name in images]
    called = {pattern.format(id=name) for pattern in checked(mask.files) for name in [*images, *stems]}
    return [name for name, stem in zip(images, stems, strict=True) if name not in called and stem not in called]


# --- what it covers -----------------------------------------------------------------------------------------------


def coverage(truth: MaskTable | MaskFiles, form: str, count: int, print_: str, forgiving: bool = False) -> np.ndarray:
    """(N, C) float64: the share of each image that each class covers, kept in the cache under print_.

    form: of the truth. count: C. Of mask files with several classes class 0, the ground, counts like the others.
    UserError for a mask that cannot be read, and for overlaps where they are an error; forgiving: it counts as empty.
    """
    path = root() / "cache" / f"coverage-{form}-{print_}.npy"
    if path.is_file():
        try:
            found = np.load(path, allow_pickle=False)
            if found.shape == (len(truth), count):
                return found
        except (OSError, ValueError, EOFError):
            pass
    found, faults = np.zeros((len(truth), count)), 0
    with progress("masks", len(truth)) as advance:
        for row in range(len(truth)):
            try:
                found[row] = _covered(truth, form, row, count)
            except UserError:
                if not forgiving:
                    raise
                faults += 1
            advance(1)
    if faults:
        return found
    with atomic(path) as handle:
        np.save(handle, found)
    return found


def _covered(truth: MaskTable | MaskFiles, form: str, row: int, count: int) -> np.ndarray:
    if isinstance(truth, MaskTable):
        if form != "masks" and truth.form.overlap == "error":
            getattr(truth, _READ[form])(row)  # which says where two meet
        height, width = truth.sizes[row]
        shares = truth.areas(row) / (height * width)
        return np.concatenate([[1 - shares.sum()], shares]) if len(shares) < count else shares[:count]
    found = truth.take(row)
    if found.ndim == 3:
        return (found == 1).mean(axis=(1, 2))
    if found.dtype == np.int32 or count == 1:
        return np.array([((found > 0) & (found != masks.VOID)).mean()])
    return np.bincount(found.ravel(), minlength=256)[:count] / found.size


def digest(truth: MaskTable | MaskFiles, mask: Mask) -> str:
    """Changes when a mask, or how it is read, does."""
    import dataclasses

    content = hashlib.blake2b(repr(dataclasses.astuple(mask)).encode(), digest_size=8)
    if isinstance(truth, MaskTable):
        content.update("\0".join(map(str, truth.texts)).encode())
        content.update(truth.rows.tobytes() + truth.classes.tobytes())
    else:
        content.update(repr(files.listing(truth.folder, [spec for spec in truth.specs if spec])).encode())
    content.update("\0".join(truth.ids if isinstance(truth, MaskTable) else truth.specs).encode())
    return content.hexdigest()
