"""Masks that a csv tells as run-length texts: which form it has, and an image's truth when it is asked for.

The shapes of truth are those of ``masks``. A row is an image's mask, that of a class in an image, or an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline import rle
from pipeline.errors import UserError, nearest, some
from pipeline.masks import MISSING, MOST_CLASSES, VOID, VOID_LABEL, Sizes, one_of
from pipeline.patterns import without_suffix
from pipeline.rle import EMPTY
from pipeline.tables import duplicates

LOOKED_AT = 2000  # texts of a csv that are looked at to recognise it
ROWS = ("image", "class", "object")
TEXT = re.compile(r"\d+ \d+(?: \d+ \d+)*")


@dataclass(frozen=True)
class RleForm:
    """How a csv tells masks as run-length texts.

    id, rle: its columns. rows: what a row is: an "image"; a "class" of an image; an "object", so that ids repeat.
    classes: the names, in order; none: there is one. class_column: which class a row is; empty with rows=class: the end
    of the id, after separator. exclusive: with rows=class, that each pixel has one class at most, so that the truth is
    indices, 0 the ground, and not bits. order, base, starts, empty: of the texts, see ``rle``. overlap: whose a pixel
    of two rows is, where it can have one only: "error", "first", "last". void: the class whose pixels count nowhere;
    none of classes. missing: what an image without a row means: "error", or "empty". A class without a row, in an
    image that has some, is empty.
    """

    id: str = "ImageId"
    rle: str = "EncodedPixels"
    rows: str = "image"
    classes: tuple[str, ...] = ()
    class_column: str = ""
    separator: str = "_"
    exclusive: bool = False
    order: str = "column"
    base: int = 1
    starts: str = "absolute"
    empty: tuple[str, ...] = EMPTY
    overlap: str = "error"
    void: str = ""
    missing: str = "error"

    def __post_init__(self) -> None:
        one_of("mask.rows", self.rows, ROWS)
        one_of("mask.order", self.order, rle.ORDERS)
        one_of("mask.starts", self.starts, rle.STARTS)
        one_of("mask.overlap", self.overlap, rle.OVERLAPS)
        one_of("mask.missing", self.missing, MISSING)
        if self.base not in (0, 1):
            raise UserError(f"mask.base={self.base}; allowed: 1 as at Kaggle, or 0")
        if self.rows == "class" and not self.classes:
            raise UserError("mask.rows=class needs mask.classes, their names in order")
        if self.rows == "image" and (self.classes or self.class_column):
            raise UserError("mask.rows=image has one class; give mask.rows=class or mask.rows=object")
        if twice := duplicates([*self.classes, self.void]):
            raise UserError(f"mask.classes and mask.void name a class twice: {some(twice)}")
        if len(self.classes) >= MOST_CLASSES:
            raise UserError(f"mask.classes has {len(self.classes)} names; {MOST_CLASSES - 1} at most")

    @property
    def joined(self) -> bool:
        """Whether an id holds the class too."""
        return self.rows == "class" and not self.class_column


@dataclass(frozen=True)
class MaskTable:
    """The masks of images that a csv tells as texts; an image's are decoded when they are asked for.

    ids: the images, in their order. form: how the csv tells masks. texts, classes: of each row of the csv its text and
    its class, the place in form.classes, −1 for void. rows, borders: the csv's rows by image; those of image k are
    rows[borders[k]:borders[k + 1]]. sizes: (height, width) of each image. name: of the csv, for messages. To be made by
    ``mask_table``.
    """

    ids: Sequence[str]
    form: RleForm
    texts: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    borders: np.ndarray
    sizes: Sizes
    name: str

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, image: int) -> np.ndarray:
        """The rows of the csv, counted from 0, that tell an image's masks, int64."""
        return self.rows[self.borders[image] : self.borders[image + 1]]

    def counts(self) -> np.ndarray:
        """(N, C) int64, how many rows with pixels each image has of each class; void is none of them."""
        found = np.zeros((len(self), self.count), dtype=np.int64)
        images_ = np.repeat(np.arange(len(self)), np.diff(self.borders))
        told = np.array([not self.is_empty(row) for row in self.rows.tolist()], dtype=bool)
        told &= self.classes[self.rows] >= 0
        np.add.at(found, (images_[told], self.classes[self.rows[told]]), 1)
        return found

    def counts_of(self, image: int) -> int:
        """How many rows with pixels an image has; void is none of them."""
        return sum(not self.is_empty(row) and self.classes[row] >= 0 for row in self.rows_of(image).tolist())

    @property
    def count(self) -> int:
        """How many classes there are, the ground not among them."""
        return max(1, len(self.form.classes))

    def take(self, image: int) -> np.ndarray:
        """The truth of an image: of rows=image and exclusive classes indices, of rows=class bits, of objects labels."""
        if self.form.rows == "object":
            return self.labels(image)
        return self.indices(image) if self.form.rows == "image" or self.form.exclusive else self.bits(image)

    def bits(self, image: int) -> np.ndarray:
        """(C, H, W) uint8: where class c is, whatever a row of the csv is; ``VOID`` where it counts nowhere."""
        height, width = self._size(image)
        pieces, found = self._told(image), np.zeros((self.count, height, width), dtype=np.uint8)
        for place in range(self.count):
            whole = rle.union([runs for runs, kind in pieces if kind == place])
            found[place] = rle.fill(whole, height, width, order=self.form.order)
        found[:, self._void(pieces, height, width)] = VOID
        return found

    def indices(self, image: int) -> np.ndarray:
        """(H, W) uint8: 1 + the place of each pixel's class, 0 the ground, ``VOID`` where it counts nowhere.

        UserError where two classes meet, unless form.overlap says whose a pixel is.
        """
        height, width = self._size(image)
        pieces = self._told(image)
        kinds = list(dict.fromkeys(kind for _, kind in pieces if kind >= 0))  # in the order of the csv
        whole = [rle.union([runs for runs, other in pieces if other == kind]) for kind in kinds]
        labels = self._labelled(whole, image, [self.form.classes[kind] for kind in kinds if self.form.classes])
        found = np.array([0, *(kind + 1 for kind in kinds)], dtype=np.uint8)[labels]
        found[self._void(pieces, height, width)] = VOID
        return found

    def labels(self, image: int) -> np.ndarray:
        """(H, W) int32: 1, 2, … the rows of the image with pixels, 0 the ground, ``VOID_LABEL`` what counts nowhere.

        UserError where two objects meet, unless form.overlap says whose a pixel is.
        """
        height, width = self._size(image)
        pieces = self._told(image)
        found = self._labelled([runs for runs, kind in pieces if kind >= 0], image, [])
        found[self._void(pieces, height, width)] = VOID_LABEL
        return found

    def object_classes(self, image: int) -> np.ndarray:
        """(K,) int64: the place in form.classes of object k + 1 of ``labels``; 0 where there are none."""
        return np.array([kind for _, kind in self._told(image) if kind >= 0], dtype=np.int64)

    def areas(self, image: int) -> np.ndarray:
        """(C,) int64: pixels of each class, counted without decoding; what void covers is not taken off."""
        pieces = self._told(image)
        each = [rle.union([runs for runs, kind in pieces if kind == place]) for place in range(self.count)]
        return rle.areas(each)

    def _size(self, image: int) -> tuple[int, int]:
        height, width = self.sizes[image]
        return int(height), int(width)

    def is_empty(self, row: int) -> bool:
        text = self.texts[row].strip()
        return text in self.form.empty or text.lower() in self.form.empty

    def _told(self, image: int) -> list[tuple[np.ndarray, int]]:
        """The runs and the class of each row of an image that has pixels."""
        height, width = self._size(image)
        found = []
        for row in self.rows_of(image).tolist():
            try:
                runs = rle.parse(
                    self.texts[row], pixels=height * width, base=self.form.base, starts=self.form.starts,
                    empty=self.form.empty,
                )  # fmt: skip
            except ValueError as fault:
                raise UserError(
                    f"{self.name}, line {row + 2}, image {self.ids[image]} ({width}×{height} pixels): {fault}; correct "
                    "the row, or mask.base, mask.starts or mask.empty"
                ) from fault
            if len(runs):
                found.append((runs, int(self.classes[row])))
        return found

    def _labelled(self, objects: list[np.ndarray], image: int, names: list[str]) -> np.ndarray:
        height, width = self._size(image)
        form = self.form
        try:
            return rle.label(objects, height, width, order=form.order, overlap=form.overlap)
        except ValueError as fault:
            called = f" (classes {some(names)})" if names else ""
            raise UserError(
                f"{self.name}, image {self.ids[image]}{called}: {fault}; correct the rows, or say whose the pixel is "
                "with mask.overlap=first or last"
            ) from fault

    def _void(self, pieces: list[tuple[np.ndarray, int]], height: int, width: int) -> np.ndarray:
        """(H, W) bool: where void is."""
        whole = rle.union([runs for runs, kind in pieces if kind < 0])
        return rle.fill(whole, height, width, order=self.form.order).view(np.bool_)


def mask_table(
    table: pd.DataFrame, form: RleForm, ids: Sequence[str], sizes: Sizes, name: str = "the training table"
) -> MaskTable:
    """The masks of images by a csv as ``tables.read_table`` gives it.

    ids: the images, in the order wanted, as ``image_ids`` gives them or without their suffix. sizes: of the same
    images. Rows of other images are left out. No text is read before it is asked for. UserError for absent columns,
    classes that form lacks, images without a row (form.missing), several rows where one is allowed.
    """
    told, classes = told_by(table, form, name)
    places = _by_id(told, ids, name)
    found = np.array([places.get(one, -1) for one in told], dtype=np.int64)
    rows = np.argsort(found, kind="stable")
    rows = rows[np.searchsorted(found[rows], 0) :]
    borders = np.searchsorted(found[rows], np.arange(len(ids) + 1))
    absent = [ids[k] for k in np.flatnonzero(np.diff(borders) == 0).tolist()]
    if absent and form.missing == "error":
        raise UserError(
            f"{name} has no row for {len(absent)} of {len(ids)} images: {some(absent)}; give mask.missing=empty "
            "if that means nothing to find, or leave the images out"
        )
    if form.rows != "object":
        keys = pd.DataFrame({"image": found[rows], "class": classes[rows]})
        twice = rows[keys.duplicated().to_numpy()]
        if len(twice):
            what = "an image" if form.rows == "image" else "an image and class"
            raise UserError(
                f"{name}: {len(twice)} rows repeat {what}: {some(table[form.id].iloc[twice])}; leave one row for each, "
                "or give mask.rows=object"
            )
    texts = table[form.rle].to_numpy(dtype=object, na_value="")
    return MaskTable(list(ids), form, texts, classes, rows, borders, sizes, name)


def image_ids(table: pd.DataFrame, form: RleForm, name: str = "the training table") -> list[str]:
    """The images that a csv tells masks of, each once, in its order; UserError for absent columns, unknown classes."""
    return list(dict.fromkeys(told_by(table, form, name)[0]))


def told_by(table: pd.DataFrame, form: RleForm, name: str) -> tuple[list[str], np.ndarray]:
    """Of each row of a csv its image's id and its class, the place in form.classes or −1 for void."""
    for column, key in ((form.id, "mask.id"), (form.rle, "mask.rle"), (form.class_column, "mask.class_column")):
        if column and column not in table.columns:
            there = [str(other) for other in table.columns]
            raise UserError(
                f"{name} has no column {column!r} ({key}); its columns: {some(there, 20)}{nearest(column, there)}"
            )
    told = table[form.id].astype(str).tolist()
    known = {one: place for place, one in enumerate(form.classes)} | ({form.void: -1} if form.void else {})
    if form.joined:
        pairs = [_split(one, form.separator, known) for one in told]
        told, named = [head for head, _ in pairs], [tail for _, tail in pairs]
    else:
        named = table[form.class_column].astype(str).tolist() if form.class_column else []
    if form.class_column and not form.classes:
        known |= {one: 0 for one in named if one != form.void}  # all but void is the one class
    strange = list(dict.fromkeys(one for one in named if one not in known))
    if strange:
        raise UserError(
            f"{name} has {len(strange)} classes that mask.classes lacks: {some(map(repr, strange))}; it has "
            f"{some(known, 20)}{nearest(strange[0], known)}"
        )
    return told, np.array([known[one] for one in named] or [0] * len(told), dtype=np.int64)


def _split(one: str, separator: str, known: dict[str, int]) -> tuple[str, str]:
    """The image and the class of an id; a class's name may hold the separator too."""
    place = one.find(separator)
    while place > 0:
        if one[place + len(separator) :] in known:
            return one[:place], one[place + len(separator) :]
        place = one.find(separator, place + 1)
    head, _, tail = one.rpartition(separator)
    return head, tail


def _by_id(told: list[str], ids: Sequence[str], name: str) -> dict[str, int]:
    """The place in ids of each id that the csv tells; with or without suffix, where that is clear."""
    if twice := duplicates(ids):
        raise UserError(f"{name}: {len(twice)} images are asked for twice: {some(twice)}")
    places = {one: place for place, one in enumerate(ids)}
    strange = [one for one in dict.fromkeys(told) if one not in places]
    if not strange:
        return places
    stems: dict[str, list[int]] = {}
    for one, place in places.items():
        stems.setdefault(without_suffix(one), []).append(place)
    heads: dict[str, list[str]] = {}
    for one in strange:
        heads.setdefault(without_suffix(one), []).append(one)
    fits = {group[0]: stems[stem] for stem, group in heads.items() if len(group) == 1 and stem in stems}
    taken = {places[one] for one in told if one in places}
    return places | {one: found[0] for one, found in fits.items() if len(found) == 1 and found[0] not in taken}


# --- which form a csv has -----------------------------------------------------------------------------------------


def rle_form_of(table: pd.DataFrame, known: Iterable[str] = ()) -> RleForm | None:
    """How a csv, as ``tables.read_table`` gives it, tells masks; None if no column holds run-length texts.

    A guess to show. known: the names of the images there are, if they are known. The text's column is the one whose
    cells are all texts of runs or empty; the id's the first of the others. Ids that repeat are objects, unless another
    column tells each row of an image apart; then its words are the classes. So are the ends of ids that do not repeat
    and are no images, where every image has the same.
    """
    texts = [str(column) for column in table.columns if _is_texts(table[column])]
    others = [str(column) for column in table.columns if str(column) not in texts]
    if not texts or not others:
        return None
    form = RleForm(others[0], texts[0])
    ids = table[form.id].astype(str)
    if not ids.duplicated().any():
        ends = ids.str.rpartition("_")
        heads, tails = ends[0], ends[2]
        images_ = {without_suffix(name) for name in known}
        whole = (heads != "").all() and set(heads.value_counts()) == {tails.nunique()}  # every image has each class
        if whole and not images_ & {without_suffix(name) for name in ids} and _are_classes(tails, heads):
            return replace(form, rows="class", classes=_ordered(tails))
        return form
    for column in others[1:]:
        if _are_classes(table[column].astype(str), ids):
            return replace(form, rows="class", class_column=column, classes=_ordered(table[column].astype(str)))
    return replace(form, rows="object")


def _is_texts(cells: pd.Series) -> bool:
    filled = [text for text in cells.astype(str).str.strip() if text.lower() not in EMPTY][:LOOKED_AT]
    return bool(filled) and any(" " in text for text in filled) and all(map(TEXT.fullmatch, filled))


def _are_classes(words: pd.Series, ids: pd.Series) -> bool:
    """Whether words tell the rows of an image apart, and are few."""
    count = words.nunique()
    pairs = pd.DataFrame({"id": ids, "word": words})
    return bool(1 < count < MOST_CLASSES and count <= max(2, len(words) // 4) and not pairs.duplicated().any())


def _ordered(words: pd.Series) -> tuple[str, ...]:
    """Each word once: numbers by size, others by the alphabet."""
    found = words.unique().tolist()
    return tuple(sorted(found, key=lambda word: (0, int(word), word) if word.isdecimal() else (1, 0, word)))
