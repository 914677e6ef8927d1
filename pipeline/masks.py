"""Masks: how a segmentation competition tells its truth as files, and its shapes as arrays.

Truth comes in three shapes: *indices* (H, W) uint8, the class of each pixel, ``VOID`` where it counts nowhere; *bits*
(C, H, W) uint8, 1 where class c is, ``VOID`` likewise; *labels* (H, W) int32, object 1, 2, …, 0 the ground,
``VOID_LABEL`` likewise. ``MaskFiles``, and ``MaskTable`` of ``mask_tables``, read one image's truth at a time, when
``take`` is called.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline import images, pictures
from pipeline.artefacts import shown
from pipeline.errors import UserError, nearest, some
from pipeline.files import BOX, label, parts, read_bytes
from pipeline.images import LIMIT_PIXELS, BrokenImage
from pipeline.parts.readers import TIFF

VOID = 255  # in indices and bits: the pixel counts nowhere
VOID_LABEL = -1  # the same in labels
MOST_CLASSES = VOID
MISSING = ("error", "empty")
SAMPLE = 50  # files that a kind is recognised from
COLOURS = 256  # a file with more colours is a photograph
TWO_TONE, DARK, BRIGHT = 0.95, 16, 239  # blurred black and white: so many pixels are nearly one or the other …
GREYS = 8  # … and so many values lie in the middle, where indices with a void seldom reach
GREY_GAP = 10  # greys that lie so far apart are a colour table, not indices
NPY = b"\x93NUMPY"
ORIENTATION = 0x0112  # a tag of EXIF
PNG_HEADER = 33  # bytes up to the end of the first chunk

Colour = tuple[int, int, int]


class Sizes(Protocol):
    """The (height, width) of the image of each row: ``HeaderSizes``, a list, or an (N, 2) array."""

    def __getitem__(self, row: int, /) -> Any:
        """(height, width) of a row's image."""


# --- how large an image is ----------------------------------------------------------------------------------------


def size_of(
    spec: str, folder: str | Path = "", *, reader: str = images.READER, limit_pixels: int = LIMIT_PIXELS
) -> tuple[int, int]:
    """(height, width) of a spec's image as it is shown (its box, its orientation), from the header where that tells.

    Raises BrokenImage, and UserError where the disk refuses.
    """
    if BOX not in spec:
        first = f"{folder}/{parts(spec)[0][0]}" if folder else parts(spec)[0][0]
        with contextlib.suppress(OSError, ValueError):  # the whole reading below says what is wrong
            if found := _header(read_bytes(first)):
                return found
    pixels = images.look(spec, folder, reader=reader, limit_pixels=limit_pixels).pixels
    return pixels.shape[0], pixels.shape[1]


def _header(data: bytes) -> tuple[int, int] | None:
    """(height, width) from a picture's header, turned as EXIF says; None where it takes more to know."""
    if data.startswith(pictures.PNG) and len(data) >= PNG_HEADER:
        width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
        return None if b"eXIf" in data else (height, width)
    if not data.startswith((pictures.JPEG, *TIFF)):
        return None
    try:
        with pictures.pillow().open(io.BytesIO(data)) as opened:
            width, height = opened.size
            orientation = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return None
    if data.startswith(TIFF) and orientation != 1:  # readers differ
        return None
    return (width, height) if orientation >= 5 else (height, width)  # those swap the sides


@dataclass
class HeaderSizes:
    """The (height, width) of each spec's image, read from its file at the first call.

    folder, specs: where the images lie, as ``images.read`` takes them. UserError for a broken image.
    """

    folder: Path
    specs: Sequence[str]
    reader: str = images.READER
    limit_pixels: int = LIMIT_PIXELS
    known: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)

    def fault(self, row: int) -> str:
        """Why an image's size cannot be read; empty if it can."""
        try:
            self._read(row)
        except BrokenImage as broken:
            return broken.reason
        return ""

    def _read(self, row: int) -> None:
        spec, limit = self.specs[row], self.limit_pixels
        self.known[row] = size_of(spec, self.folder, reader=self.reader, limit_pixels=limit)

    def __getitem__(self, row: int) -> tuple[int, int]:
        if row not in self.known:
            try:
                self._read(row)
            except BrokenImage as fault:
                raise UserError(
                    f"the size of a mask is its image's, but {fault}; mend or leave out the image"
                ) from fault
        return self.known[row]


# --- a mask file's values -----------------------------------------------------------------------------------------


class Raw(NamedTuple):
    """What a mask's file holds, untouched.

    values: (H, W) whole numbers, or (H, W, C) uint8 or uint16, red first. palette: (K, 3) uint8, the colours of values
    0, 1, … where the file has such a table, else None. lossy: from a JPEG, whose values are not exact.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    lossy: bool = False


def read_raw(path: str | Path, *, limit_pixels: int = LIMIT_PIXELS) -> Raw:
    """What a mask's file holds; a path may run through a zip. Raises BrokenImage, and UserError if the disk refuses."""
    try:
        return decode_raw(read_bytes(path), limit_pixels)
    except FileNotFoundError as fault:
        raise BrokenImage(path, "missing") from fault
    except OSError as fault:
        raise UserError(f"{shown(Path(path))} cannot be read: {fault.strerror}; mend that and run again") from fault
    except ValueError as fault:
        raise BrokenImage(path, str(fault)) from fault


def decode_raw(data: bytes, limit: int = LIMIT_PIXELS) -> Raw:
    """What the bytes of a mask's file hold; transparency is dropped. ValueError if damaged, or above limit pixels."""
    if not data:
        raise ValueError("empty file")
    if data.startswith(NPY):
        return Raw(_grey_or_colours(_array(data, limit)))
    if data.startswith(pictures.PNG):
        return _png(data, limit)
    if data.startswith(pictures.JPEG):
        return Raw(_grey_or_colours(pictures.read(data, limit)), lossy=True)
    return _indexed(data, limit) or Raw(_grey_or_colours(_whole(pictures.with_pillow(data, limit))))


def _png(data: bytes, limit: int) -> Raw:
    if len(data) < PNG_HEADER:
        raise ValueError("cut short")
    depth, kind = data[24], data[25]
    if kind == 3:
        pictures.check_size(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), limit)
        found = _indexed(data, limit)
        if found is None:
            raise ValueError("damaged (its palette is missing)")
        return found
    values = _grey_or_colours(pictures.read(data, limit))
    if kind or depth > 4:
        return Raw(values)
    step = 255 // (2**depth - 1)  # decoders stretch the values of 1, 2 or 4 bits to 0…255
    ramp = np.arange(2**depth, dtype=np.uint8) * np.uint8(step)
    return Raw(values // np.uint8(step), np.stack([ramp] * 3, axis=1))


def _indexed(data: bytes, limit: int) -> Raw | None:
    """A picture with a palette: its places and its colours; None if it has none."""
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with pictures.pillow().open(io.BytesIO(data)) as opened:
            if opened.mode != "P":
                return None
            pictures.check_size(opened.width, opened.height, limit)
            image = ImageOps.exif_transpose(opened)
            palette = np.zeros((256, 3), dtype=np.uint8)
            given = image.getpalette("RGB") or []
            palette.reshape(-1)[: len(given)] = given
            values = np.asarray(image)
    except UnidentifiedImageError:
        return None
    except ValueError:
        raise
    except Exception as fault:  # Pillow's readers raise nearly anything on damaged files
        raise ValueError(f"damaged ({fault})") from fault
    used = np.flatnonzero(np.bincount(values.reshape(-1), minlength=256))
    tells = len(np.unique(palette[used], axis=0)) == len(used)  # some files have values beyond their colours
    grey = (palette[used] == used[:, None]).all()  # as good as no palette
    return Raw(values, palette if tells and not grey else None)


def _array(data: bytes, limit: int) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as fault:  # damaged headers raise nearly anything
        raise ValueError(f"damaged ({fault})") from fault
    if array.ndim < 2 or not array.size:
        raise ValueError(f"an array of shape {array.shape} is no mask")
    pictures.check_size(array.shape[1], array.shape[0], limit)
    return _whole(array)


def _whole(values: np.ndarray) -> np.ndarray:
    """Whole numbers as they are, those of other types as int64; ValueError for fractions and what is no number."""
    if values.dtype.kind in "iu":
        return values
    with np.errstate(invalid="ignore"):  # NaN and infinity leave NaN, which counts as any
        if values.dtype.kind == "b" or (values.dtype.kind == "f" and not np.mod(values, 1).any()):
            return values.astype(np.int64)
    raise ValueError(f"its {values.dtype} values are no whole numbers")


def _grey_or_colours(values: np.ndarray) -> np.ndarray:
    """(H, W), or (H, W, C) where the channels differ; without transparency."""
    if values.ndim == 2:
        return values
    if values.ndim != 3:
        raise ValueError(f"an array of shape {values.shape} is no mask")
    if values.shape[2] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1]
        if alpha.min() != alpha.max() and (values == values[0, 0]).all():
            raise ValueError("its mask stands in the transparency alone; save it as grey")
    same = all(np.array_equal(values[..., 0], values[..., channel]) for channel in range(1, values.shape[2]))
    return np.ascontiguousarray(values[..., 0] if same else values)


# --- values → classes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelForm:
    """What the pixels of mask files mean.

    kind: "binary", all but black is class 1; "indices", the value is the class, or its place in table; "colours", the
    colour's place in table is the class; "labels", the value or colour is the object's. classes: how many, with the
    ground; for labels it says nothing. table: values, or colours (r, g, b) of 8 bits, of class 0, 1, …; greys stand for
    colours with three equal parts. void: the value or colour that counts nowhere. on: the least value that is no longer
    black, in binary masks. missing: what an image without a mask means, "error" or "empty".
    """

    kind: str
    classes: int = 2
    table: tuple[int | Colour, ...] = ()
    void: int | Colour | None = None
    on: int = 1
    missing: str = "error"

    def __post_init__(self) -> None:
        one_of("mask.kind", self.kind, KINDS)
        one_of("mask.missing", self.missing, MISSING)
        if not 2 <= self.classes <= MOST_CLASSES:
            raise UserError(f"mask.classes={self.classes}; allowed: 2 to {MOST_CLASSES}, the ground included")
        if self.table and len(self.table) != self.classes:
            raise UserError(f"mask.table has {len(self.table)} entries, but mask.classes={self.classes}")
        if len(set(self.table)) < len(self.table) or self.void in self.table:
            raise UserError(f"mask.table and mask.void name a value twice: {some([*self.table, self.void], 20)}")
        if self.kind == "colours" and not self.table:
            raise UserError("mask.kind=colours needs mask.table, the colour of each class")


def to_classes(raw: Raw, form: PixelForm) -> np.ndarray:
    """Indices (H, W) uint8, or labels (H, W) int32, of a file's values; ValueError for a value that the form lacks."""
    return _READ[form.kind](raw, form)


def _black_and_other(raw: Raw, form: PixelForm) -> np.ndarray:
    values = _shades(raw)
    least = max(form.on, 128) if raw.lossy else form.on
    inside: np.ndarray = (values >= least) if values.ndim == 2 else np.any(values >= least, axis=2)
    return _with_void(inside.astype(np.uint8), raw, form, VOID)


def _places(raw: Raw, form: PixelForm) -> np.ndarray:
    values = raw.values
    if raw.lossy:
        raise ValueError("a JPEG's values are not exact, so that they are no classes; mask.kind=binary reads it")
    if values.ndim == 3:
        raise ValueError("its pixels are coloured, but mask.kind=indices; see mask.kind=colours")
    if form.table:
        return _looked_up(values.astype(np.int64), form)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= form.classes:
        outside = (values < 0) | (values >= form.classes)
        if isinstance(form.void, int):
            outside &= values != form.void
        _refuse(values, outside, f"mask.classes={form.classes}, so that a class is 0 to {form.classes - 1}", str)
    return _with_void(values.astype(np.uint8), raw, form, VOID)


def _colours(raw: Raw, form: PixelForm) -> np.ndarray:
    if raw.lossy:
        raise ValueError("a JPEG's colours are not exact, so that they are no classes; mask.kind=binary reads it")
    values = _shades(raw)
    return _looked_up(_packed(values), replace(form, table=tuple(map(_code, form.table)), void=_code(form.void)))


def _objects(raw: Raw, form: PixelForm) -> np.ndarray:
    if raw.lossy:
        raise ValueError("a JPEG's values are not exact, so that they are no labels")
    values = raw.values
    if values.ndim == 3:
        codes = _packed(values)
        objects = np.unique(codes[codes != 0])
        values = np.where(codes == 0, 0, np.searchsorted(objects, codes) + 1)
    elif values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise ValueError(f"labels of {values.min()} to {values.max()}, but they are 0 to {np.iinfo(np.int32).max}")
    return _with_void(values.astype(np.int32), raw, form, VOID_LABEL)


_READ: dict[str, Callable[[Raw, PixelForm], np.ndarray]] = {
    "binary": _black_and_other, "indices": _places, "colours": _colours, "labels": _objects,
}  # fmt: skip
KINDS = tuple(_READ)


def _shades(raw: Raw) -> np.ndarray:
    """The values as they are shown: those of a palette as its colours."""
    return raw.values if raw.palette is None else _grey_or_colours(raw.palette[raw.values])


def _packed(values: np.ndarray) -> np.ndarray:
    """Greys or colours → one int64 a pixel, r · 2^16 + g · 2^8 + b."""
    if values.ndim == 3 and values.shape[2] != 3:
        raise ValueError(f"{values.shape[2]} channels are no colours")
    if values.dtype == np.uint16 and not (values % 257).any():
        values = values // 257
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"values of {values.min()} to {values.max()} are no colours of 8 bits; see mask.kind=indices")
    wide = values.astype(np.int64)
    return wide * 0x010101 if wide.ndim == 2 else wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _code(colour: int | Colour | None) -> Any:
    if colour is None:
        return None
    red, green, blue = (colour,) * 3 if isinstance(colour, int) else colour
    return red << 16 | green << 8 | blue


def _unpacked(code: int) -> Colour:
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255


def _looked_up(codes: np.ndarray, form: PixelForm) -> np.ndarray:
    """Codes → their place in form.table, VOID for form.void."""
    known = [*form.table, *([] if form.void is None else [form.void])]
    order = np.argsort(known)
    ordered = np.array(known)[order]
    place = np.minimum(np.searchsorted(ordered, codes), len(known) - 1)
    plain = form.kind == "indices"
    _refuse(codes, ordered[place] != codes, "mask.table and mask.void name others", str if plain else _colour_text)
    classes = np.where(order < len(form.table), order, VOID).astype(np.uint8)
    return classes[place]


def _colour_text(code: int) -> str:
    return str(_unpacked(code)).replace(" ", "")


def _refuse(values: np.ndarray, outside: np.ndarray, allowed: str, text: Callable[[int], str]) -> None:
    """ValueError where values are outside: which, how many pixels, where the first is."""
    if not outside.any():
        return
    found = np.unique(values[outside])
    row, column = np.unravel_index(int(np.argmax(outside)), outside.shape)
    raise ValueError(
        f"{int(outside.sum()):,} pixels, the first at row {row}, column {column}, have the values "
        f"{some(map(text, found.tolist()))}, but {allowed}"
    )


def _with_void(classes: np.ndarray, raw: Raw, form: PixelForm, void: int) -> np.ndarray:
    """The classes with void where the file has form.void: a value, of a palette its place, or a colour."""
    if form.void is not None:
        where = raw.values if isinstance(form.void, int) else _packed(_shades(raw))
        where = where if where.ndim == 2 else _packed(where)
        code = form.void if isinstance(form.void, int) and raw.values.ndim == 2 else _code(form.void)
        classes[where == code] = void
    return classes


# --- which kind a sample of files is ------------------------------------------------------------------------------


def kind_of(sample: Iterable[Raw]) -> str:
    """What the pixels of mask files mean, by the first 50: "binary", "indices" or "colours"; see ``form_of``."""
    return form_of(sample).kind


def form_of(sample: Iterable[Raw]) -> PixelForm:
    """What the pixels of mask files mean, by the first 50: a guess to show, since other files may hold more classes.

    sample: may be a generator, so that one file at a time is held. Files of black and one other value, or of blurred
    black and white: binary. Colours, or greys that lie far apart: colours, with their table, darkest first. Else
    indices; 255 or 65535 above a gap is void. UserError for no files, for photographs, for more values than classes.
    """
    facts = [_facts(raw) for raw in itertools.islice(sample, SAMPLE)]
    if not facts:
        raise UserError("there are no masks to look at")
    if any(one.lossy or one.blurred for one in facts) and all(one.two_tone for one in facts):
        return PixelForm(KINDS[0], on=128)
    if any(one.lossy for one in facts):
        raise UserError("these masks are JPEGs with many greys: photographs or heat maps, no classes")
    if not all(one.values for one in facts) or _palettes_differ(facts):
        return _form_of_colours(facts)
    return _form_of_values(facts)


class _Facts(NamedTuple):
    """What counts of one file.

    values: it has, none if it is coloured. codes: its colours, None if they are too many or not of 8 bits. shown: of a
    palette, the colour of each value that it has. two_tone: nearly all pixels are nearly black or white; blurred: and
    the others are many greys between.
    """

    values: frozenset[int]
    codes: frozenset[int] | None
    shown: dict[int, int]
    lossy: bool
    two_tone: bool
    blurred: bool


def _facts(raw: Raw) -> _Facts:
    values = raw.values
    two_tone = bool(values.max() <= 255 and ((values <= DARK) | (values >= BRIGHT)).mean() >= TWO_TONE)
    if values.ndim == 3:
        try:
            found = _distinct(_packed(values))
        except ValueError:
            return _Facts(frozenset(), None, {}, raw.lossy, two_tone, False)
        codes = frozenset(found) if len(found) <= COLOURS else None
        return _Facts(frozenset(), codes, {}, raw.lossy, two_tone, False)
    found = _distinct(values)
    shown_: dict[int, int] = {} if raw.palette is None else {one: _code(raw.palette[one].tolist()) for one in found}
    between = sum(64 <= one < 192 for one in found)
    blurred = raw.palette is None and two_tone and between >= GREYS and found[-1] >= BRIGHT
    plain = found[0] >= 0 and found[-1] <= 255
    codes = frozenset(shown_.values() if shown_ else map(_code, found)) if plain else None
    return _Facts(frozenset(found), codes, shown_, raw.lossy, two_tone, blurred)


def _distinct(values: np.ndarray) -> list[int]:
    """The values that occur, sorted; neighbours are mostly alike, so that few are left to sort."""
    flat = values.reshape(-1)
    found: list[int] = np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]])).tolist()
    return found


def _form_of_values(facts: Sequence[_Facts]) -> PixelForm:
    found = sorted(frozenset().union(*(one.values for one in facts)))
    two = all(len(one.values) == 1 or (len(one.values) == 2 and 0 in one.values) for one in facts)
    if two and (len(found) == 1 or (0 in found and (len(found) == 2 or set(found) <= {0, 1, 255, 65535}))):
        return PixelForm(KINDS[0])
    far = len(found) > 2 and min(b - a for a, b in itertools.pairwise(found)) >= GREY_GAP
    if far and found[-1] <= 255 and not any(one.shown for one in facts):
        return PixelForm("colours", len(found), tuple(found))
    void = found.pop() if found[-1] in (255, 65535) and found[-2] < found[-1] - 1 else None
    if found[-1] < MOST_CLASSES:
        return PixelForm("indices", max(2, found[-1] + 1), void=void)
    return PixelForm("indices", _few(found, "values"), tuple(found), void)


def _form_of_colours(facts: Sequence[_Facts]) -> PixelForm:
    codes: set[int] = set()
    for one in facts:
        if one.codes is None:
            raise UserError(f"these masks have more than {COLOURS} colours, or deeper ones: photographs, no classes")
        codes |= one.codes
    if len(codes) <= 2 and 0 in codes:
        return PixelForm(KINDS[0])
    table = sorted(map(_unpacked, codes), key=lambda colour: (sum(colour), colour))
    return PixelForm("colours", _few(table, "colours"), tuple(table))


def _few(found: Sequence[Any], what: str) -> int:
    if not 2 <= len(found) <= MOST_CLASSES:
        raise UserError(
            f"these masks have {len(found)} {what}, but there are 2 to {MOST_CLASSES} classes; see mask.kind=labels"
        )
    return len(found)


def _palettes_differ(facts: Sequence[_Facts]) -> bool:
    """Whether a value has another colour in another file, so that values say nothing."""
    colours: dict[int, int] = {}
    return any(colours.setdefault(value, code) != code for one in facts for value, code in one.shown.items())


# --- masks that are files -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskFiles:
    """The masks of images, a file each, or one file a class.

    folder, specs: of each image its mask's spec, relative to folder; several files joined are one class each; "" stands
    for an image without a mask. form: what the pixels mean. sizes: of the images, to be compared, and for empty masks.
    """

    folder: Path
    specs: Sequence[str]
    form: PixelForm
    sizes: Sizes | None = None
    limit_pixels: int = LIMIT_PIXELS

    def __post_init__(self) -> None:
        absent = [row for row, spec in enumerate(self.specs) if not spec]
        if absent and (self.form.missing == "error" or self.sizes is None):
            raise UserError(
                f"{len(absent)} of {len(self.specs)} images have no mask file, in rows {some(absent)}; "
                "give mask.missing=empty if that means nothing to find, or leave the images out"
            )
        if any(BOX in spec for spec in self.specs):
            raise UserError("masks of images that are cut out by data.box are not read; give rows without a box")
        counts = {len(parts(spec)[0]) for spec in self.specs if spec}
        if len(counts) > 1:
            raise UserError(f"images have {some(sorted(counts))} mask files, but each has one, or one a class")
        if counts not in (set(), {1}) and self.form.kind != KINDS[0]:
            raise UserError(f"one mask file a class needs mask.kind={KINDS[0]}, but it is {self.form.kind}")

    def __len__(self) -> int:
        return len(self.specs)

    def take(self, row: int) -> np.ndarray:
        """The truth of an image: indices, of one file a class bits, of kind labels labels; UserError for damage."""
        spec = self.specs[row]
        names = parts(spec)[0] if spec else []
        found = [self._one(name, row) for name in names] or [self._empty(row)] * len(self._first)
        if len({mask.shape for mask in found}) > 1:
            raise UserError(f"{label(spec)}: masks of one image differ in size: {some(_text(m.shape) for m in found)}")
        return np.stack(found) if len(self._first) > 1 else found[0]

    @property
    def _first(self) -> list[str]:
        return parts(next((spec for spec in self.specs if spec), ""))[0]

    def _empty(self, row: int) -> np.ndarray:
        assert self.sizes is not None
        shape = tuple(map(int, self.sizes[row]))
        return np.zeros(shape, dtype=np.int32 if self.form.kind == "labels" else np.uint8)

    def _one(self, name: str, row: int) -> np.ndarray:
        path = self.folder / name
        try:
            mask = to_classes(read_raw(path, limit_pixels=self.limit_pixels), self.form)
        except BrokenImage as fault:
            raise UserError(f"{shown(path)}: {fault.reason}; mend the mask, or leave its image out") from fault
        except ValueError as fault:
            raise UserError(
                f"{shown(path)}: {fault}; correct the mask, or mask.kind, classes, table or void"
            ) from fault
        if self.sizes is not None and mask.shape != (size := tuple(map(int, self.sizes[row]))):
            raise UserError(
                f"{shown(path)}: a mask of {_text(mask.shape)}, but its image is {_text(size)}; correct one"
            )
        return mask


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"


def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    """UserError where a setting has none of the values it may have."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{key}={value}; allowed: {', '.join(allowed)}{nearest(value, allowed)}")
