"""Images: how files become square pixels, and the cache that decodes each file once.

Every image is read here and nowhere else, so training and prediction see the same pixels. The cache lies in
``<cache>/<key>/``: ``pixels.bin`` (N, H, W, C) uint8, and ``pixels.json``, which is written last and so says that the
pixels are complete. A set too large to keep has only ``checked.json``, the list of its broken files.

Images are named by specs, see ``pipeline/files.py``: a file, several files as channels, a file and a box.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import pictures, registry
from pipeline.artefacts import locked, read_json, shown, write_json
from pipeline.console import progress, say, warn
from pipeline.errors import UserError, some
from pipeline.files import BOX, JOIN, MISSING, Boxed, label, parts, read_bytes, stats
from pipeline.hardware import physical_cores
from pipeline.pictures import Picture, opencv

__all__ = [
    "BOX", "JOIN", "BrokenImage", "Images", "Look", "decode", "label", "look", "mean_std", "open_cache", "opencv",
    "read", "stats",
]  # fmt: skip

FORMAT = 1  # raise it when the same file must become other pixels; old caches are then no longer used
LIMIT_PIXELS = 268_000_000  # data.megapixels: a larger image is refused before it is decoded
MOST_CHANNELS = 64
READER = "auto()"
FILL = 128  # grey level of the rows of broken images
BLOCK_BYTES = 2**20  # decoded bytes that one thread makes before they are written
SAVE_SECONDS = (
    2.0  # how often a build notes what is safely on the disk; only the work redone after a kill depends on it
)
FREE_BYTES = 2**30  # disk space that a cache leaves for checkpoints and predictions


class BrokenImage(Exception):
    """A file that does not give pixels: path and reason, such as "empty file" or "cut short"."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives the way back from a worker process
        return type(self), (self.path, self.reason)


# --- one spec → pixels --------------------------------------------------------------------------------------------


def decode(
    spec: str | Path, channels: int, size: int, resize: str, limit_pixels: int = LIMIT_PIXELS, reader: str = READER,
    folder: str | Path = "", preprocess: tuple[str, ...] = (),
) -> np.ndarray:  # fmt: skip
    """Read a spec (relative to folder) as (size, size, channels) uint8; channels: 1 grey, 3 RGB, others as they are.

    resize: "stretch", "pad" (whole image, centred, black border) or "crop" (centre). Orientation from EXIF is applied,
    16 bits become 8, transparency shows white unless it is the same everywhere. preprocess: call-strings of parts that
    act in turn on the image at its own size, before it becomes square. Raises BrokenImage, and UserError where the disk
    refuses.
    """
    try:
        least = 0 if preprocess else size  # borders are measured, and discs, on the whole image
        picture, joined = _open_spec(spec, folder, reader, limit_pixels, channels == 1, least, resize)
        image = _fitting(_eight_bits(picture.pixels), channels, joined)
    except ValueError as fault:
        raise BrokenImage(_named(spec), str(fault)) from fault
    if not preprocess:
        return _colours(_square(image, size, resize), channels, picture.blue_first)
    image = _colours(image, channels, picture.blue_first)
    for step in preprocesses(preprocess):
        image = step(image, size)
    return _colours(_square(image[..., 0] if channels == 1 else image, size, resize), channels, False)


class Look(NamedTuple):
    """An image, and what its file says of itself.

    width, height, channels: of the file as it is shown, before a box; 4 channels are RGBA, or several files. bits: 8 or
    16 a channel. pixels: (H, W, C) uint8, RGB or grey, smaller than the file where a reduced size was asked for.
    """

    width: int
    height: int
    channels: int
    bits: int
    pixels: np.ndarray


def look(
    spec: str | Path, folder: str | Path = "", *, reader: str = READER, limit_pixels: int = LIMIT_PIXELS,
    channels: int | None = None, at_least: int = 0,
) -> Look:  # fmt: skip
    """Read a spec (relative to folder) at its own size and, unless channels is given, with its own channels.

    at_least: a JPEG may be shrunk while it is decoded, to a shorter side of no less than this; 0: not at all.
    Transparency shows white. Raises BrokenImage, and UserError where the disk refuses.
    """
    try:
        picture, joined = _open_spec(spec, folder, reader, limit_pixels, False, at_least, "stretch")
        image = _fitting(_eight_bits(picture.pixels), channels, joined)
    except ValueError as fault:
        raise BrokenImage(_named(spec), str(fault)) from fault
    bits = 16 if picture.pixels.dtype == np.uint16 else 8
    shown_as = _colours(image, channels or _count(image), picture.blue_first)
    return Look(picture.width, picture.height, _count(picture.pixels), bits, shown_as)


def read(
    spec: str | Path, folder: str | Path = "", *, reader: str = READER, limit_pixels: int = LIMIT_PIXELS,
    channels: int | None = None,
) -> np.ndarray:  # fmt: skip
    """The pixels of a spec at full size, (H, W, C) uint8 in RGB order; as ``look``."""
    return look(spec, folder, reader=reader, limit_pixels=limit_pixels, channels=channels).pixels


def _named(spec: str | Path) -> str | Path:
    return label(spec) if isinstance(spec, str) else spec


@functools.cache
def _reader(call: str) -> tuple[Callable[[bytes, str, int], np.ndarray], bool]:
    """The reader, and whether it reads PNG and JPEG as pictures.decode does."""
    return registry.build("readers", call), bool(registry.facts("readers", call).get("pictures"))


@functools.cache
def preprocesses(calls: tuple[str, ...]) -> list[Callable[[np.ndarray, int], np.ndarray]]:
    """Changes of an image, in turn, see ``parts/preprocesses.py``."""
    return [registry.build("preprocesses", call) for call in calls]


def _open_spec(
    spec: str | Path, folder: str | Path, reader: str, limit: int, grey: bool, size: int, resize: str
) -> tuple[Picture, bool]:
    """The picture that a spec names, cut to its box, and whether several files made it; ValueError if broken."""
    if isinstance(spec, Path) or (JOIN not in spec and BOX not in spec):
        return _load(f"{folder}/{spec}" if folder else spec, reader, limit, grey, size, resize), False
    files, box = parts(spec)
    places = [f"{folder}/{file}" if folder else file for file in files]
    size = 0 if box else size  # the box is in pixels of the whole image
    if len(files) > 1:
        each = zip(files, places, strict=True)
        picture = _joined(files, [_load(place, reader, limit, True, size, resize, file) for file, place in each])
    else:
        picture = _load(places[0], reader, limit, grey, size, resize)
    return (picture._replace(pixels=_cut(picture.pixels, box)) if box else picture), len(files) > 1


def _load(path: str | Path, reader: str, limit: int, grey: bool, size: int, resize: str, prefix: str = "") -> Picture:
    """The picture in a file, of 8 or 16 bits; ValueError if it is broken, which begins with the prefix if any."""
    function, quick = _reader(reader)
    try:
        data = read_bytes(path)
        if not data:
            raise ValueError("empty file")
        if quick and pictures.is_quick(data):
            return pictures.decode(data, limit, grey, size, resize, str(path))
        pixels = function(data, str(path), limit)
    except FileNotFoundError as fault:
        raise ValueError(f"{prefix}: missing" if prefix else "missing") from fault
    except OSError as fault:  # of the disk or its rights, not of the image
        raise UserError(f"{shown(Path(path))} cannot be read: {fault.strerror}; mend that and run again") from fault
    except ValueError as fault:
        raise ValueError(f"{prefix}: {fault}" if prefix else str(fault)) from fault
    if pixels.ndim not in (2, 3) or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"data.reader={reader} gave {pixels.dtype} of shape {pixels.shape}, not 8 or 16 bits (H, W, C)"
        )
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Picture(pixels, False, pixels.shape[1], pixels.shape[0])


def _joined(files: Sequence[str], found: Sequence[Picture]) -> Picture:
    """Several files as the channels of one image, each as grey."""
    sizes = list(dict.fromkeys(f"{picture.width}×{picture.height}" for picture in found))
    if len(sizes) > 1:
        raise ValueError(f"its files differ in size: {some(sizes)}")
    height, width = min(picture.pixels.shape[:2] for picture in found)  # some may be shrunk: JPEGs beside PNGs
    channels = []
    for file, picture in zip(files, found, strict=True):
        count = _count(picture.pixels)
        if count not in (1, 3, 4):
            raise ValueError(f"{file}: {count} channels, but as one of several files it is read as grey")
        image = _fitting(_eight_bits(picture.pixels), 1, False)
        channels.append(_colours(_scaled(image, width, height), 1, picture.blue_first))
    return Picture(np.concatenate(channels, axis=2), False, found[0].width, found[0].height)


def _cut(image: np.ndarray, box: Boxed) -> np.ndarray:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    text = ",".join(f"{value:g}" for value in box)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the box {text} is empty")
    left, top, right, bottom = max(0, floor(x0)), max(0, floor(y0)), min(width, ceil(x1)), min(height, ceil(y1))
    if right <= left or bottom <= top:
        raise ValueError(f"the box {text} lies outside of the image's {width}×{height} pixels")
    return image[top:bottom, left:right]


def _count(image: np.ndarray) -> int:
    return 1 if image.ndim == 2 else image.shape[2]


def _fitting(image: np.ndarray, channels: int | None, joined: bool) -> np.ndarray:
    """The image without transparency where that is not asked for; ValueError if it has other channels than asked."""
    if joined or channels not in (None, 1, 3):
        if channels not in (None, _count(image)):
            raise ValueError(f"{_count(image)} channels, but data.channels={channels}")
        return image
    if _count(image) == 4:
        return _without_alpha(image)
    if channels and _count(image) not in (1, 3):
        raise ValueError(f"{_count(image)} channels, but data.channels={channels}")
    return image


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else opencv().convertScaleAbs(image, alpha=1 / 257)


def _without_alpha(image: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    colours, alpha = np.ascontiguousarray(image[..., :3]), image[..., 3]
    if alpha.min() == alpha.max():  # an unused channel, whatever it holds
        return colours
    darkness = cv2.multiply(cv2.bitwise_not(colours), cv2.merge([alpha] * 3), scale=1 / 255)
    return cv2.bitwise_not(darkness)


def _square(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    height, width = image.shape[:2]
    if resize == "stretch":
        return _scaled(image, size, size)
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _scaled(image[top : top + side, left : left + side], size, size)
    long = max(height, width)
    inner = _scaled(image, max(1, round(width * size / long)), max(1, round(height * size / long)))
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    square = np.zeros((size, size, *image.shape[2:]), dtype=np.uint8)
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return square


def _scaled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    cv2 = opencv()
    if image.shape[:2] == (height, width):
        return image
    if _count(image) > 4:  # more at a time OpenCV does not average
        fours = np.split(image, range(4, _count(image), 4), axis=2)
        return np.concatenate([np.atleast_3d(_scaled(four, width, height)) for four in fours], axis=2)
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _colours(image: np.ndarray, channels: int, blue_first: bool) -> np.ndarray:
    """(H, W) or (H, W, C) of either order → (H, W, channels), red first, contiguous."""
    cv2, count = opencv(), _count(image)
    if count == 3 and channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if blue_first else cv2.COLOR_RGB2GRAY)
    elif count == 1 and channels == 3:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    elif blue_first and count in (3, 4):
        code = cv2.COLOR_BGR2RGB if count == 3 else cv2.COLOR_BGRA2RGBA
        if image.size < BLOCK_BYTES or not (image.flags.owndata and image.flags.writeable):
            return cv2.cvtColor(image, code)
        rows = max(1, BLOCK_BYTES // image[0].size)
        for top in range(0, len(image), rows):  # in place: it may be a gigabyte
            image[top : top + rows] = cv2.cvtColor(image[top : top + rows], code)
        return image
    return np.ascontiguousarray(image).reshape(*image.shape[:2], channels)


# --- many files ---------------------------------------------------------------------------------------------------


class Images:
    """Decoded images by row number: from the cache, or decoded at each call; the pixels are the same.

    shape: (N, H, W, C). cached: whether a memory map holds them. broken: int64 rows whose files do not decode, sorted;
    they are grey. Pickles as a reference to the files, not as pixels.
    """

    def __init__(
        self, folder: Path, files: Sequence[str], shape: tuple[int, int, int, int], resize: str,
        broken: Sequence[int], pixels: Path | None, reader: str = READER, limit_pixels: int = LIMIT_PIXELS,
        preprocess: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.folder, self.files, self.shape, self.resize = folder, files, shape, resize
        self.broken = np.array(sorted(broken), dtype=np.int64)
        self.pixels, self.reader, self.limit_pixels = pixels, reader, limit_pixels
        self.preprocess = preprocess

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def cached(self) -> bool:
        """Whether the pixels come from the cache."""
        return self.pixels is not None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 rows in 0…N−1 → (n, H, W, C) uint8, a fresh array."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._map.take(rows, axis=0) if self.cached else self._decode(rows)

    def unprocessed(self) -> Images:
        """The same images without data.preprocess, decoded at each call."""
        where = self.folder, self.files, self.shape, self.resize, self.broken.tolist()
        return Images(*where, None, self.reader, self.limit_pixels)

    @functools.cached_property
    def _map(self) -> np.ndarray:
        assert self.pixels is not None
        return np.memmap(self.pixels, np.uint8, "r", shape=self.shape).view(np.ndarray)

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        _, size, _, channels = self.shape
        images = np.full((len(rows), *self.shape[1:]), FILL, dtype=np.uint8)
        good = np.flatnonzero(~np.isin(rows, self.broken))

        def one(place: int) -> None:
            spec = self.files[rows[place]]
            reading = self.limit_pixels, self.reader, self.folder, self.preprocess
            images[place] = decode(spec, channels, size, self.resize, *reading)

        try:
            with ThreadPoolExecutor(physical_cores()) as pool:  # a lasting pool would not survive a fork
                list(pool.map(one, good.tolist()))
        except BrokenImage as fault:
            raise UserError(f"{fault.path} could be read before but no longer: {fault.reason}; run again") from fault
        return images

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_map"}


def mean_std(images: Images, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, (C,) float64 in 0…1, over rows (default: all but the broken).

    Counted in whole numbers, so neither blocks nor threads change a bit of the result.
    """
    if rows is None:
        rows = np.setdiff1d(np.arange(len(images)), images.broken)
    if not len(rows):
        raise UserError("mean and standard deviation need at least one image that decodes")
    cv2 = opencv()
    _, height, width, channels = images.shape
    counts = np.zeros((channels, 256), dtype=np.int64)
    step = max(1, 2**23 // (height * width))  # OpenCV counts in float32: exact up to 2**24
    for start in range(0, len(rows), step):
        block = images.take(rows[start : start + step]).reshape(-1, width, channels)
        for channel in range(channels):
            counts[channel] += cv2.calcHist([block], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    levels = np.arange(256, dtype=np.int64)
    total, first, second = len(rows) * height * width, counts @ levels, counts @ levels**2
    mean = first / total
    return mean / 255, np.sqrt(np.maximum(second / total - mean**2, 0)) / 255


def open_cache(
    folder: Path, files: Sequence[str], *, channels: int, size: int, resize: str, cache_root: Path, limit_gb: float,
    broken: str = "stop", label: str = "decoding", reader: str = READER, limit_pixels: int = LIMIT_PIXELS,
    preprocess: Sequence[str] = (),
) -> Images:  # fmt: skip
    """The decoded images of files (relative to folder), from the cache if they fit there; builds it where needed.

    The key is made of names, byte sizes and times of the files and of what becomes of them. A set above limit_gb (GB)
    or above the free disk space is decoded at each call. broken says what happens to files that do not decode: "stop"
    (UserError that names five), "skip" (a warning; leave out the rows in Images.broken) or "fill" (a warning).
    reader: data.reader. limit_pixels: a larger image is broken. preprocess: data.preprocess, see ``decode``.
    """
    if not 1 <= channels <= MOST_CHANNELS:
        raise UserError(
            f"data.channels={channels}, but images have 1 (grey), 3 (RGB) or another number of channels up to "
            f"{MOST_CHANNELS}"
        )
    files, preprocess = list(files), tuple(registry.complete("preprocesses", call) for call in preprocess)
    shape = (len(files), size, size, channels)
    reading = reader, limit_pixels, preprocess
    if not files:
        return Images(folder, files, shape, resize, [], None, *reading)
    place = cache_root / _key(folder, files, shape, resize, *reading)
    keep = _fits(place, int(np.prod(shape)), limit_gb)
    cache = _Cache(folder, files, shape, resize, place, keep, *reading)
    faults = cache.finished()
    if faults is None:
        faults = cache.build(label)
    _report(folder, files, faults, broken)
    return Images(folder, files, shape, resize, list(faults), cache.pixels if keep else None, *reading)


def _key(
    folder: Path, files: Sequence[str], shape: tuple[int, ...], resize: str, reader: str = READER,
    limit_pixels: int = LIMIT_PIXELS, preprocess: tuple[str, ...] = (),
) -> str:  # fmt: skip
    import PIL

    decoders = opencv().__version__, PIL.__version__  # other versions may round otherwise
    unusual: tuple[Any, ...] = () if (reader, limit_pixels) == (READER, LIMIT_PIXELS) else (reader, limit_pixels)
    unusual += (preprocess,) if preprocess else ()
    digest = hashlib.blake2b(repr((FORMAT, decoders, shape[1:], resize, *unusual)).encode(), digest_size=12)
    for file, found in zip(files, stats(folder, files), strict=True):
        facts = MISSING if found is None else found
        digest.update(f"{file}\0{facts}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _fits(place: Path, needed: int, limit_gb: float) -> bool:
    if not 0 < needed <= limit_gb * 1e9:
        return False
    existing = next(parent for parent in (place, *place.parents) if parent.is_dir())
    pixels = place / "pixels.bin"
    reserved = pixels.stat().st_size if pixels.is_file() else 0
    return needed <= reserved or needed + FREE_BYTES <= shutil.disk_usage(existing).free + reserved


def _report(folder: Path, files: Sequence[str], faults: Mapping[int, str], broken: str) -> None:
    if not faults:
        return
    named = some(f"{label(files[row])} ({faults[row]})" for row in faults)
    text = f"{len(faults)} of {len(files)} images in {shown(folder)} do not decode: {named}"
    if broken == "stop":
        raise UserError(f"{text}; replace them, or leave them out with data.skip_broken=true")
    warn(f"{text}; they are {'left out' if broken == 'skip' else 'taken as grey images'}")


# --- building the cache -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cache:
    """One folder of the cache; keep: whether pixels are stored, or files only checked."""

    folder: Path
    files: Sequence[str]
    shape: tuple[int, int, int, int]
    resize: str
    place: Path
    keep: bool
    reader: str
    limit_pixels: int
    preprocess: tuple[str, ...] = ()

    @property
    def pixels(self) -> Path:
        return self.place / "pixels.bin"

    @property
    def record(self) -> Path:
        return self.place / ("pixels.json" if self.keep else "checked.json")

    @property
    def flags(self) -> Path:
        """One byte a block: 1 when its pixels are on the disk and none of its files is broken."""
        return self.record.with_suffix(".done")

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape))

    @functools.cached_property
    def blocks(self) -> list[range]:
        """The rows that one thread decodes at a time."""
        step = min(256, max(1, BLOCK_BYTES // int(np.prod(self.shape[1:]))))
        return [range(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]

    def finished(self) -> dict[int, str] | None:
        """The broken rows with reasons, if the folder is complete."""
        if not self.record.is_file():
            return None
        if self.keep and not (self.pixels.is_file() and self.pixels.stat().st_size == self.bytes):
            return None
        with contextlib.suppress(UserError, AttributeError, KeyError, ValueError):  # damaged: build anew
            return {int(row): str(reason) for row, reason in read_json(self.record)["broken"].items()}
        return None

    def build(self, label: str) -> dict[int, str]:
        """Decode all files, going on where a killed build stopped; one process at a time."""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with locked(self.place):
                faults = self.finished()  # another process may have done it meanwhile
                return self._build(label) if faults is None else faults
        except OSError as fault:
            for left in (self.flags, self.pixels):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
            raise UserError(
                f"{shown(self.place)} cannot be written: {fault.strerror}; {self._what()} need {_size(self.bytes)}: "
                "free space and run the same command again, or set data.cache_gb=0 to decode without a cache"
            ) from fault

    def _what(self) -> str:
        count, height, width, channels = self.shape
        return f"{count:,} images of {width}×{height}×{channels}"

    def _build(self, label: str) -> dict[int, str]:
        size = _size(self.bytes)
        fate = (
            f"into {shown(self.place)} ({size})"
            if self.keep
            else f"without keeping their {size}: no room, or above data.cache_gb"
        )
        say(f"{label}: {self._what()} {fate}")
        self.record.unlink(missing_ok=True)
        if self.keep and not self.pixels.is_file():
            self.flags.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            pixels = _open(stack, self.pixels, self.bytes) if self.keep else None
            flags = _open(stack, self.flags, len(self.blocks))
            faults = self._decode(pixels, flags, label)
        content = {"folder": str(self.folder), "shape": self.shape, "resize": self.resize, "broken": faults}
        write_json(self.record, content)
        self.flags.unlink()
        return faults

    def _decode(self, pixels: int | None, flags: int, label: str) -> dict[int, str]:
        done = np.frombuffer(os.pread(flags, len(self.blocks), 0), np.uint8)
        todo = [number for number, flag in enumerate(done) if not flag]
        faults: dict[int, str] = {}
        good: list[int] = []
        saved = time.monotonic()
        with progress(label, self.shape[0]) as advance, ThreadPoolExecutor(physical_cores()) as pool:
            advance(self.shape[0] - sum(len(self.blocks[number]) for number in todo))
            try:
                running = {pool.submit(self._block, pixels, self.blocks[number]): number for number in todo}
                for future in as_completed(running):
                    found, number = future.result(), running[future]
                    faults |= found
                    good += [] if found else [number]
                    advance(len(self.blocks[number]))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        good, saved = _save(pixels, flags, good), time.monotonic()
                _save(pixels, flags, good)
            finally:
                pool.shutdown(cancel_futures=True)
        return dict(sorted(faults.items()))

    def _block(self, pixels: int | None, rows: range) -> dict[int, str]:
        _, size, _, channels = self.shape
        images = np.full((len(rows), *self.shape[1:]), FILL, dtype=np.uint8)
        faults = {}
        for place, row in enumerate(rows):
            try:
                reading = self.limit_pixels, self.reader, self.folder, self.preprocess
                images[place] = decode(self.files[row], channels, size, self.resize, *reading)
            except BrokenImage as fault:
                faults[row] = fault.reason
        if pixels is not None and os.pwrite(pixels, images.data, rows.start * images[0].size) < images.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return faults


def _open(stack: contextlib.ExitStack, path: Path, size: int) -> int:
    """Open a file for writing with all its space reserved, so that a full disk shows now and not half-way."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    stack.callback(os.close, handle)
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate") and size:  # not on macOS
        os.posix_fallocate(handle, 0, size)
    return handle


def _save(pixels: int | None, flags: int, blocks: list[int]) -> list[int]:
    """Note blocks as done, after their pixels have reached the disk; returns the blocks still to be noted: none."""
    if pixels is not None:
        os.fsync(pixels)
    for number in blocks:
        os.pwrite(flags, b"\1", number)
    return []


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
