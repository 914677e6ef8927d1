"""Images: which file an id means, how a file becomes square pixels, and the cache that decodes each file once.

Every image is read here and nowhere else, so training and prediction see the same pixels. The cache lies in
``<cache>/<key>/``: ``pixels.bin`` (N, H, W, C) uint8, and ``pixels.json``, which is written last and so says that the
pixels are complete. A set too large to keep has only ``checked.json``, the list of its broken files.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts import locked, read_json, shown, write_json
from pipeline.console import progress, say, warn
from pipeline.errors import UserError, some
from pipeline.hardware import physical_cores

FORMAT = 1  # raise it when the same file must become other pixels; old caches are then no longer used
LIMIT_PIXELS = 2**28  # a larger image is refused before it is decoded: it may be a decompression bomb
FILL = 128  # grey level of the rows of broken images
BLOCK_BYTES = 2**20  # decoded bytes that one thread makes before they are written
SAVE_SECONDS = (
    2.0  # how often a build notes what is safely on the disk; only the work redone after a kill depends on it
)
FREE_BYTES = 2**30  # disk space that a cache leaves for checkpoints and predictions
MISSING = -1  # stands for the size of a file that does not exist
IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip


class BrokenImage(Exception):
    """A file that does not give pixels: path and reason, such as "empty file" or "cut short"."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives the way back from a worker process
        return type(self), (self.path, self.reason)


# --- which file an id means ---------------------------------------------------------------------------------------


def find_images(folder: Path) -> dict[str, list[str]]:
    """What an id may mean: relative name, name, or either without its suffix → files relative to folder.

    Files with the suffix of an image stand before all others of the same stem. Hidden files, links that leave the
    folder and links to folders are left out.
    """
    return _index(_walk(folder)[0])


def resolve(folder: Path, subfolder: str, ids: Sequence[str]) -> list[str]:
    """The file of each id, relative to folder, in the order of ids; files are looked for in folder/subfolder.

    An id is a file's name or its path below the subfolder, with or without suffix. UserError for ids that would leave
    the folder, that fit several files, or that fit none.
    """
    place = folder / subfolder
    outside = [repr(name) for name in ids if _leaves(name)]
    if outside:
        raise UserError(f"{len(outside)} image ids would leave {shown(place)}: {some(outside)}; correct the table")
    files, links = _walk(place)
    index = _index(files)
    prefix = "" if subfolder in ("", ".") else subfolder.rstrip("/") + "/"
    found = [_candidates(index, name, prefix) for name in ids]
    several = [f"{name!r}: {' and '.join(fits[:2])}" for name, fits in zip(ids, found, strict=True) if len(fits) > 1]
    if several:
        raise UserError(
            f"{shown(place)}: {len(several)} ids fit several files: {some(several, 3)}; give the suffix or the path in "
            "the table, or move one of the files away"
        )
    missing = [name for name, fits in zip(ids, found, strict=True) if not fits]
    if missing:
        links_left = f"; links that leave it or lead to folders are not followed: {some(links, 2)}" if links else ""
        raise UserError(
            f"{len(missing)} of {len(ids)} ids have no image in {shown(place)}: {some(missing)}; the folder holds "
            f"{len(files)} files{': ' + some(files, 2) if files else ''}{links_left}; correct the table, data.id, "
            "data.train_images or data.test_images"
        )
    return [prefix + fits[0] for fits in found]


def _leaves(name: str) -> bool:
    return not name or name.startswith("/") or "\0" in name or ".." in name.split("/")


def _candidates(index: Mapping[str, list[str]], name: str, prefix: str) -> list[str]:
    for key in (name, name.removeprefix(prefix)):
        fits = index.get(key, [])
        if fits:
            return [key] if key in fits else fits
    return []


def _index(files: list[str]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for file in files:
        path, suffix = os.path.splitext(file)
        name, stem = file.rpartition("/")[2], path.rpartition("/")[2]
        for key in {file, name}:
            index.setdefault(key, []).append(file)
        known = index if suffix.lower() in IMAGE_SUFFIXES else others
        for key in {path, stem} - {file, name}:
            known.setdefault(key, []).append(file)
    return {**others, **index}  # 7.png is meant by "7", not the 7.xml beside it


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """All files below a folder, and the links that are not followed; relative, sorted."""
    if not folder.is_dir():
        raise UserError(f"{shown(folder)} is no folder; data.train_images and data.test_images name the image folders")
    inside = os.path.realpath(folder) + "/"
    files: list[str] = []
    links: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_symlink():
                    follow = entry.is_file() and os.path.realpath(entry.path).startswith(inside)
                    (files if follow else links).append(name)
                elif entry.is_dir():
                    pending.append(name + "/")
                elif entry.is_file():
                    files.append(name)
    return sorted(files), sorted(links)


def listing(folder: Path, files: Sequence[str]) -> str:
    """A fingerprint of names and byte sizes; the same after a copy to another machine."""
    digest = hashlib.blake2b(digest_size=8)
    for file, stat in zip(files, _stats(folder, files), strict=True):
        digest.update(f"{file}\0{stat.st_size if stat else MISSING}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stats(folder: Path, files: Sequence[str]) -> Iterator[os.stat_result | None]:
    for file in files:
        try:
            yield os.stat(f"{folder}/{file}")
        except OSError:
            yield None


# --- one file → square pixels -------------------------------------------------------------------------------------


def decode(path: str | Path, channels: int, size: int, resize: str, limit_pixels: int = LIMIT_PIXELS) -> np.ndarray:
    """Read a file of any usual format as (size, size, channels) uint8; channels: 1 grey, 3 RGB.

    resize: "stretch", "pad" (whole image, centred, black border) or "crop" (centre). Orientation from EXIF is applied,
    16 bits become 8, transparency shows white unless it is the same everywhere. Raises BrokenImage, and UserError where
    the disk refuses.
    """
    try:
        with open(path, "rb", buffering=0) as handle:
            data = handle.readall()
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise BrokenImage(path, "missing") from fault
    except OSError as fault:  # of the disk or its rights, not of the image
        raise UserError(f"{shown(Path(path))} cannot be read: {fault.strerror}; mend that and run again") from fault
    try:
        if not data:
            raise ValueError("empty file")
        image = _eight_bits(_pixels(data, channels, size, resize, limit_pixels))
    except ValueError as fault:
        raise BrokenImage(path, str(fault)) from fault
    return _colours(_square(_without_alpha(image), size, resize), channels)


@functools.cache
def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(1)  # images are decoded side by side; a resize that splits itself again only fights for the cores
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # faults are reported once, by name
    return cv2


def _pixels(data: bytes, channels: int, size: int, resize: str, limit: int) -> np.ndarray:
    """(H, W), (H, W, 3) BGR or (H, W, 4) BGRA of any depth: OpenCV where it is quick and right, else Pillow."""
    cv2 = _opencv()
    if data.startswith(b"\xff\xd8\xff"):
        width, height, components = _jpeg_header(data)
        factor = _reduction(width, height, size, resize)
        _check_size(width // factor, height // factor, limit)
        colour = "GRAYSCALE" if channels == 1 or components == 1 else "COLOR"
        flags = getattr(cv2, f"IMREAD_{colour}" if factor == 1 else f"IMREAD_REDUCED_{colour}_{factor}")
        quick = components != 4  # OpenCV's CMYK is off
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height, quick = _png_header(data)
        _check_size(width, height, limit)
        flags = cv2.IMREAD_UNCHANGED
    else:
        quick = False
    image = _with_opencv(data, flags) if quick else None
    return _with_pillow(data, limit) if image is None else image


def _jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Width, height, components; ValueError if the end of the picture is not there."""
    place, found = 2, None
    while place + 9 < len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if data[place] != 0xFF or marker == 0xFF:  # fill bytes before a marker
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[place + k : place + k + 2]) for k in (5, 7))
            found = width, height, data[place + 9]
        if marker == 0xDA:  # the picture starts; a thumbnail in the header may have its own end
            if found and data.rfind(b"\xff\xd9", place) > 0:
                return found
            break
        place += 2 + length
    raise ValueError("cut short")


def _png_header(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether OpenCV reads it rightly; ValueError if the end is not there."""
    if data.rfind(b"IEND\xaeB`\x82") < 0:
        raise ValueError("cut short")
    rare = b"tRNS" in data[: data.find(b"IDAT")] or b"eXIf" in data
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), not rare


def _reduction(width: int, height: int, size: int, resize: str) -> int:
    """The largest factor by which a JPEG decoder may shrink without falling below the needed size."""
    side = max(width, height) if resize == "pad" else min(width, height)
    return next(factor for factor in (8, 4, 2, 1) if side >= factor * size or factor == 1)


def _check_size(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise ValueError(
            f"{width}×{height} pixels = {width * height / 1e6:,.0f} megapixels, above the limit of {limit / 1e6:,.0f}; "
            "cut it into tiles"
        )


def _with_opencv(data: bytes, flags: int) -> np.ndarray | None:
    cv2 = _opencv()
    with contextlib.suppress(cv2.error):
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None


def _with_pillow(data: bytes, limit: int) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # its warning would come on top of the limit that is checked here
    try:
        with Image.open(io.BytesIO(data)) as opened:
            _check_size(*opened.size, limit)
            return _from_pillow(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as fault:
        image = _with_opencv(data, _opencv().IMREAD_UNCHANGED)
        if image is None:
            raise ValueError("not a known image format") from fault
        return image
    except ValueError:
        raise
    except Exception as fault:  # Pillow's readers raise nearly anything on damaged files
        raise ValueError("cut short" if "truncated" in str(fault) else f"damaged ({fault})") from fault


def _from_pillow(image: Any) -> np.ndarray:
    cv2 = _opencv()
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.has_transparency_data:
        return cv2.cvtColor(np.asarray(image.convert("RGBA")), cv2.COLOR_RGBA2BGRA)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint16:
        return _opencv().convertScaleAbs(image, alpha=1 / 257)
    if image.dtype != np.uint8:
        raise ValueError(f"{image.dtype} pixels have no fixed range; convert them to 8 or 16 bits")
    return image


def _without_alpha(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2 or image.shape[2] == 3:
        return image
    cv2 = _opencv()
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
    right, bottom = size - inner.shape[1] - left, size - inner.shape[0] - top
    return _opencv().copyMakeBorder(inner, top, bottom, left, right, _opencv().BORDER_CONSTANT, value=0)


def _scaled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    cv2 = _opencv()
    if image.shape[:2] == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _colours(image: np.ndarray, channels: int) -> np.ndarray:
    cv2 = _opencv()
    if channels == 1:
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return np.ascontiguousarray(grey)[..., None]
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


# --- many files ---------------------------------------------------------------------------------------------------


class Images:
    """Decoded images by row number: from the cache, or decoded at each call; the pixels are the same.

    shape: (N, H, W, C). cached: whether a memory map holds them. broken: int64 rows whose files do not decode, sorted;
    they are grey. Pickles as a reference to the files, not as pixels.
    """

    def __init__(
        self, folder: Path, files: Sequence[str], shape: tuple[int, int, int, int], resize: str,
        broken: Sequence[int], pixels: Path | None,
    ) -> None:  # fmt: skip
        self.folder, self.files, self.shape, self.resize = folder, files, shape, resize
        self.broken = np.array(sorted(broken), dtype=np.int64)
        self.pixels = pixels

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

    @functools.cached_property
    def _map(self) -> np.ndarray:
        assert self.pixels is not None
        return np.memmap(self.pixels, np.uint8, "r", shape=self.shape).view(np.ndarray)

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        _, size, _, channels = self.shape
        images = np.full((len(rows), *self.shape[1:]), FILL, dtype=np.uint8)
        good = np.flatnonzero(~np.isin(rows, self.broken))

        def one(place: int) -> None:
            images[place] = decode(f"{self.folder}/{self.files[rows[place]]}", channels, size, self.resize)

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
    cv2 = _opencv()
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
    broken: str = "stop", label: str = "decoding",
) -> Images:  # fmt: skip
    """The decoded images of files (relative to folder), from the cache if they fit there; builds it where needed.

    The key is made of names, byte sizes and times of the files and of what becomes of them. A set above limit_gb (GB)
    or above the free disk space is decoded at each call. broken says what happens to files that do not decode: "stop"
    (UserError that names five), "skip" (a warning; leave out the rows in Images.broken) or "fill" (a warning).
    """
    if channels not in (1, 3):
        raise UserError(f"data.channels={channels}, but images are read with 1 (grey) or 3 (RGB) channels")
    files = list(files)
    shape = (len(files), size, size, channels)
    if not files:
        return Images(folder, files, shape, resize, [], None)
    place = cache_root / _key(folder, files, shape, resize)
    cache = _Cache(folder, files, shape, resize, place, _fits(place, int(np.prod(shape)), limit_gb))
    faults = cache.finished()
    if faults is None:
        faults = cache.build(label)
    _report(folder, files, faults, broken)
    return Images(folder, files, shape, resize, list(faults), cache.pixels if cache.keep else None)


def _key(folder: Path, files: Sequence[str], shape: tuple[int, ...], resize: str) -> str:
    import PIL

    decoders = _opencv().__version__, PIL.__version__  # other versions may round otherwise
    digest = hashlib.blake2b(repr((FORMAT, decoders, shape[1:], resize)).encode(), digest_size=12)
    for file, stat in zip(files, _stats(folder, files), strict=True):
        facts = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if stat else MISSING
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
    named = some(f"{files[row]} ({faults[row]})" for row in faults)
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
                images[place] = decode(f"{self.folder}/{self.files[row]}", channels, size, self.resize)
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
