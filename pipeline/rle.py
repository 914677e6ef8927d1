"""Run-length encoded masks: masks ↔ texts ↔ runs, and areas and overlaps that need no pixels.

A text is ``start length start length …``. Runs are (R, 2) int64, start and length; starts count from 0 through the
mask in its order, ascend, and no two runs share a pixel. Orders: "column" goes down the columns, left to right, as
Kaggle and COCO do; "row" goes along the rows. base: the number of the first pixel in a text, 1 at Kaggle. starts:
"absolute", or "relative", where each counts from the end of the run before it, as in SIIM-ACR Pneumothorax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ORDERS = ("column", "row")
STARTS = ("absolute", "relative")
OVERLAPS = ("error", "first", "last")
EMPTY = ("", "-1", "nan")  # texts that mean a mask without a pixel
STRIP = 32  # rows that are turned at once: a strip and its columns fit the first-level cache together
MOST_PIXELS = 2**48  # numbers above it are damage, and would overflow when they are added

Mask = str | np.ndarray  # a text, or runs


# --- masks ↔ texts ------------------------------------------------------------------------------------------------


def encode(mask: np.ndarray, *, order: str = "column", base: int = 1, starts: str = "absolute", empty: str = "") -> str:
    """The text of a mask (H, W), bool or whole numbers, where all but 0 is inside.

    order, base, starts: see the head of this file. empty: the text of a mask without a pixel. ValueError for other
    masks.
    """
    return write(runs(mask, order), base=base, starts=starts, empty=empty)


def decode(
    text: str, height: int, width: int, *, order: str = "column", base: int = 1, starts: str = "absolute",
    empty: Sequence[str] = EMPTY,
) -> np.ndarray:  # fmt: skip
    """The mask (height, width) of a text, uint8: 0 and 1.

    empty: texts that mean a mask without a pixel; case and spaces around them do not count. ValueError, with the run
    and what is wrong with it, for damaged texts: see ``parse``.
    """
    found = parse(text, pixels=_pixels(height, width), base=base, starts=starts, empty=empty)
    return fill(found, height, width, order=order)


def runs(mask: np.ndarray, order: str = "column") -> np.ndarray:
    """The runs of a mask (H, W), bool or whole numbers, where all but 0 is inside."""
    inside = _flat(_checked(mask) != 0, order).view(np.uint8)
    borders = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        borders = np.concatenate([[0], borders])
    if inside[-1]:
        borders = np.concatenate([borders, [inside.size]])
    found = borders.astype(np.int64).reshape(-1, 2)
    found[:, 1] -= found[:, 0]
    return found


def fill(runs: np.ndarray, height: int, width: int, *, order: str = "column") -> np.ndarray:
    """The mask (height, width) of runs, uint8: 0 and 1; ValueError for runs that leave it."""
    pixels = _pixels(height, width)
    if len(runs) and (runs[0, 0] < 0 or runs[-1].sum() > pixels):
        raise ValueError(f"runs from {runs[0, 0]} to {runs[-1].sum()} leave the image's {_size(height, width)}")
    return _painted(runs, np.ones(1, np.uint8), height, width, order)


# --- texts ↔ runs -------------------------------------------------------------------------------------------------


def parse(
    text: str, *, pixels: int | None = None, base: int = 1, starts: str = "absolute", empty: Sequence[str] = EMPTY
) -> np.ndarray:
    """The runs of a text; pixels: how many the image has, None: not known, so that its end is not checked.

    ValueError for what is no whole number, an odd count of numbers, a run of no length, one that begins before the
    image or ends after it, one that begins before the end of the run before it. Runs may touch.
    """
    _check_form(base, starts)
    plain = text.strip()
    if plain in empty or plain.lower() in empty:
        return np.zeros((0, 2), dtype=np.int64)
    if not plain:
        raise ValueError(f"an empty text, but a mask without a pixel is written as {' or '.join(map(repr, empty))}")
    words = plain.split()
    numbers = _numbers(words, plain)
    if len(words) % 2:
        raise ValueError(f"{len(words)} numbers, but each run has two, start and length; the last is {words[-1]}")
    found = numbers.reshape(-1, 2)
    found[:, 0] -= base
    if starts == "relative" and (found < MOST_PIXELS).all():  # larger ones are damage, and their sums overflow
        found[:, 0] = np.cumsum(found[:, 0]) + np.cumsum(found[:, 1]) - found[:, 1]
    _check(found, pixels, base)
    return found


def write(runs: np.ndarray, *, base: int = 1, starts: str = "absolute", empty: str = "") -> str:
    """The text of runs; empty: the text where there are none."""
    _check_form(base, starts)
    if not len(runs):
        return empty
    told = runs + np.array([base, 0])
    if starts == "relative":
        told[1:, 0] = runs[1:, 0] - runs[:-1].sum(axis=1)
    return " ".join(map(str, told.ravel().tolist()))


def _numbers(words: list[str], text: str) -> np.ndarray:
    """Words as (n,) int64; ValueError with the first that is no whole number."""
    if text.isascii() and "_" not in text:  # int() also takes 1_000 and the digits of other scripts
        try:
            return np.array(list(map(int, words)), dtype=np.int64)
        except (ValueError, OverflowError):
            pass
    for place, word in enumerate(words, 1):
        if not (word.isascii() and word.lstrip("+-").isdigit() and len(word) < 19):
            raise ValueError(f"number {place} of {len(words)} is {_short(word)!r}, no whole number of this range")
    raise ValueError(f"{_short(text)!r} is no list of whole numbers")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _check(found: np.ndarray, pixels: int | None, base: int) -> None:
    """ValueError with the first run that cannot be."""
    starts, lengths = found[:, 0], found[:, 1]
    ends = starts + lengths
    limit = MOST_PIXELS if pixels is None else pixels
    good = (starts >= 0) & (lengths >= 1) & (starts <= limit) & (lengths <= limit) & (ends <= limit)
    good[1:] &= starts[1:] >= ends[:-1]
    if good.all():
        return
    row = int(np.argmin(good))
    start, length = int(starts[row]), int(lengths[row])
    run = f"run {row + 1} of {len(found)} (start {start + base}, length {length})"
    if start < 0:
        raise ValueError(f"{run} begins before the image, whose first pixel is {base}; see the base")
    if length < 1:
        raise ValueError(f"{run} has no pixel")
    if start + length > limit:
        raise ValueError(f"{run} ends {start + length - limit} pixels after the image's {limit}")
    raise ValueError(f"{run} begins before the run before it ends, at {int(ends[row - 1]) + base}")


def _check_form(base: int, starts: str) -> None:
    if base not in (0, 1):
        raise ValueError(f"base={base}, but the first pixel is 0 or 1")
    if starts not in STARTS:
        raise ValueError(f"starts={starts}; allowed: {', '.join(STARTS)}")


# --- instances ----------------------------------------------------------------------------------------------------


def encode_instances(
    labels: np.ndarray, *, order: str = "column", base: int = 1, starts: str = "absolute"
) -> list[str]:
    """One text an object of a label map (H, W), whole numbers, by ascending label; 0 and below are no objects."""
    flat = _flat(_checked(labels), order)
    begins = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    values = flat[begins]
    pieces = np.stack([begins, np.diff(begins, append=flat.size)], axis=1)[values > 0]
    values = values[values > 0]
    by_label = np.argsort(values, kind="stable")
    borders = np.flatnonzero(np.diff(values[by_label])) + 1
    return [write(piece, base=base, starts=starts) for piece in np.split(pieces[by_label], borders) if len(piece)]


def decode_instances(
    texts: Sequence[str], height: int, width: int, *, order: str = "column", base: int = 1,
    starts: str = "absolute", empty: Sequence[str] = EMPTY, overlap: str = "error",
) -> np.ndarray:  # fmt: skip
    """The label map (height, width) of one text an object, int32: object k of the texts is k + 1, the ground 0.

    overlap: whose a pixel of two objects is: "first", "last", or "error", a ValueError with both. Empty texts keep
    their number. ValueError, with the object, for damaged texts: see ``parse``.
    """
    pixels, each = _pixels(height, width), []
    for number, text in enumerate(texts):
        try:
            each.append(parse(text, pixels=pixels, base=base, starts=starts, empty=empty))
        except ValueError as fault:
            raise ValueError(f"object {number + 1} of {len(texts)}: {fault}") from fault
    return label(each, height, width, order=order, overlap=overlap)


def label(
    objects: Sequence[np.ndarray], height: int, width: int, *, order: str = "column", overlap: str = "error"
) -> np.ndarray:
    """The label map (height, width) of the runs of objects, int32; overlap: as in ``decode_instances``."""
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap={overlap}; allowed: {', '.join(OVERLAPS)}")
    pieces, owners = _together(objects)
    by_start = np.argsort(pieces[:, 0], kind="stable")
    pieces, owners = pieces[by_start], owners[by_start]
    clash = np.flatnonzero(pieces[1:, 0] < pieces[:-1].sum(axis=1))
    if not len(clash):
        return _painted(pieces, owners + 1, height, width, order)
    if overlap == "error":
        one, other = sorted(owners[clash[0] : clash[0] + 2].tolist())
        row, column = _place(int(pieces[clash[0] + 1, 0]), height, width, order)
        raise ValueError(f"objects {one + 1} and {other + 1} of {len(objects)} overlap at row {row}, column {column}")
    flat = np.zeros(_pixels(height, width), dtype=np.int32)
    numbers = range(len(objects)) if overlap == "last" else range(len(objects) - 1, -1, -1)
    for number in numbers:
        for start, length in objects[number].tolist():
            flat[start : start + length] = number + 1
    return _unflat(flat, height, width, order)


def _together(objects: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All runs, and the number of each run's object, int32."""
    pieces = np.concatenate([np.zeros((0, 2), dtype=np.int64), *objects])
    return pieces, np.repeat(np.arange(len(objects), dtype=np.int32), [len(runs) for runs in objects])


def _place(pixel: int, height: int, width: int, order: str) -> tuple[int, int]:
    if order == "row":
        return pixel // width, pixel % width
    return pixel % height, pixel // height


# --- areas and overlaps, without pixels ---------------------------------------------------------------------------


def areas(masks: Sequence[Mask], *, base: int = 1, empty: Sequence[str] = EMPTY) -> np.ndarray:
    """The pixels of each mask, a text or runs, (N,) int64."""
    return np.array([_runs(mask, base, empty)[:, 1].sum() for mask in masks], dtype=np.int64)


def intersections(a: Sequence[Mask], b: Sequence[Mask], *, base: int = 1, empty: Sequence[str] = EMPTY) -> np.ndarray:
    """The pixels that each mask of a shares with each of b, (A, B) int64; texts or runs of one size and order."""
    pieces, owners = _together([_runs(mask, base, empty) for mask in a])
    starts, ends = pieces[:, 0], pieces.sum(axis=1)
    shared = np.zeros((len(a), len(b)), dtype=np.int64)
    for column, mask in enumerate(b):
        other = _runs(mask, base, empty)
        np.add.at(shared[:, column], owners, _covered(other, ends) - _covered(other, starts))
    return shared


def ious(a: Sequence[Mask], b: Sequence[Mask], *, base: int = 1, empty: Sequence[str] = EMPTY) -> np.ndarray:
    """Intersection over union of each mask of a with each of b, (A, B) float64 in 0…1; 1 for two empty masks."""
    shared = intersections(a, b, base=base, empty=empty)
    ones, others = (areas(masks, base=base, empty=empty) for masks in (a, b))
    either = ones[:, None] + others[None, :] - shared
    return np.divide(shared, either, out=np.ones(shared.shape), where=either > 0)


def iou(a: Mask, b: Mask, *, base: int = 1, empty: Sequence[str] = EMPTY) -> float:
    """Intersection over union of two masks, texts or runs of one size and order, in 0…1; 1 for two empty masks."""
    return float(ious([a], [b], base=base, empty=empty)[0, 0])


def union(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The runs of the pixels in any of the masks, given as runs; runs that touch become one."""
    pieces, _ = _together(masks)
    if not len(pieces):
        return pieces
    pieces = pieces[np.argsort(pieces[:, 0], kind="stable")]
    starts, ends = pieces[:, 0], np.maximum.accumulate(pieces.sum(axis=1))
    opens = np.concatenate([[True], starts[1:] > ends[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.stack([starts[opens], ends[closes] - starts[opens]], axis=1)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The runs of the pixels in both masks, given as runs."""
    ends, other_ends = a.sum(axis=1), b.sum(axis=1)
    first = np.searchsorted(other_ends, a[:, 0], side="right")  # of b, the runs that each run of a meets
    count = np.maximum(np.searchsorted(b[:, 0], ends, side="left") - first, 0)
    ours = np.repeat(np.arange(len(a)), count)
    theirs = np.arange(len(ours)) - np.repeat(np.cumsum(count) - count - first, count)
    starts = np.maximum(a[ours, 0], b[theirs, 0])
    return np.stack([starts, np.minimum(ends[ours], other_ends[theirs]) - starts], axis=1)


def _runs(mask: Mask, base: int, empty: Sequence[str]) -> np.ndarray:
    return parse(mask, base=base, empty=empty) if isinstance(mask, str) else mask


def _covered(runs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many pixels of a mask lie before each place, int64."""
    if not len(runs):
        return np.zeros(len(places), dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(runs[:, 1])])
    run = np.searchsorted(runs[:, 0], places, side="right") - 1
    inside = np.minimum(places - runs[run, 0], runs[run, 1])
    return np.where(run < 0, 0, before[run] + inside)


# --- pixels in the order of a text --------------------------------------------------------------------------------


def _checked(mask: np.ndarray) -> np.ndarray:
    if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "biu":
        raise ValueError(f"{mask.dtype} of shape {mask.shape} is no mask: it is (height, width), bool or whole numbers")
    return mask


def _pixels(height: int, width: int) -> int:
    if height < 1 or width < 1:
        raise ValueError(f"an image of height {height} and width {width} has no pixels")
    return height * width


def _size(height: int, width: int) -> str:
    return f"{height * width} pixels (height {height}, width {width})"


def _flat(mask: np.ndarray, order: str) -> np.ndarray:
    return (mask if _by_rows(order) else _turned(mask)).reshape(-1)


def _unflat(flat: np.ndarray, height: int, width: int, order: str) -> np.ndarray:
    return flat.reshape(height, width) if _by_rows(order) else _turned(flat.reshape(width, height))


def _by_rows(order: str) -> bool:
    if order not in ORDERS:
        raise ValueError(f"order={order}; allowed: {', '.join(ORDERS)}")
    return order == "row"


def _turned(image: np.ndarray) -> np.ndarray:
    """The transposed image as an array of its own: strip by strip, which is several times as fast as at once."""
    height, width = image.shape
    turned = np.empty((width, height), dtype=image.dtype)
    for top in range(0, height, STRIP):
        turned[:, top : top + STRIP] = image[top : top + STRIP].T
    return turned


def _painted(runs: np.ndarray, values: np.ndarray, height: int, width: int, order: str) -> np.ndarray:
    """(height, width) of the values' dtype: each run's value, 0 between them. The runs do not overlap."""
    ends = runs.sum(axis=1)
    counts = np.empty(2 * len(runs) + 1, dtype=np.int64)
    counts[1::2] = runs[:, 1]
    counts[0::2] = np.concatenate([runs[:, 0], [_pixels(height, width)]]) - np.concatenate([[0], ends])
    colours = np.zeros(len(counts), dtype=values.dtype)
    colours[1::2] = values
    return _unflat(np.repeat(colours, counts), height, width, order)
