"""Readers make pixels of a file's bytes: ``f(data: bytes, name: str, limit: int, *, …) -> np.ndarray``.

The result is (H, W) grey, (H, W, 3) RGB, (H, W, 4) RGBA or (H, W, C) of any other channels, uint8 or uint16; 16 bits
later become 8. name: the file's path, for readers that go by it. limit: most pixels, to be checked before they are
decoded (``pictures.check_size``). ValueError says why a file does not decode: "cut short". The fact ``pictures`` means
that PNG and JPEG are read as ``pictures.decode`` does, so that it may be called instead and decode at reduced size.
To add a reader, write one function here and name it in ``data.reader``.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import pictures
from pipeline.errors import UserError
from pipeline.registry import part

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_CHANNELS = 64
SAMPLES_PER_PIXEL, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 277, 258, 259, 262, 274  # tags of TIFF
PLAIN = {COMPRESSION: (1, 8, 32946), PHOTOMETRIC: (1, 2), ORIENTATION: (1,)}  # none or deflate; grey or RGB; upright


@part(source="by the first bytes of the file, as file(1) does", pictures=True)
def auto(data: bytes, name: str, limit: int) -> np.ndarray:
    """Whatever the file holds: a picture, a numpy array, a tiff of any kind, a DICOM; the name does not count."""
    if data.startswith(NPY):
        return npy(data, name, limit)
    if data.startswith(TIFF):
        return tiff(data, name, limit)
    if data[128:132] == b"DICM":
        return dicom(data, name, limit)
    return picture(data, name, limit)


@part(source="OpenCV and Pillow", pictures=True)
def picture(data: bytes, name: str, limit: int) -> np.ndarray:
    """A picture of any usual format, its first frame; turned as EXIF says, palettes resolved, CMYK as RGB."""
    return pictures.read(data, limit)


@part(source="numpy.lib.format, versions 1.0 and 2.0", allowed={"layout": ("auto", "hwc", "chw")})
def npy(
    data: bytes, name: str, limit: int, *, low: float | None = None, high: float | None = None, layout: str = "auto"
) -> np.ndarray:
    """An array that numpy.save wrote, (H, W) or with a channel axis; arrays of Python objects are refused.

    low, high: the values that become black and white; else 0…1 for fractions within it, uint8 and uint16 as they are,
    and the array's own least and greatest value for all others. layout: hwc or chw, where the channels stand; auto
    takes the shorter of the first and the last axis.
    """
    return pictures.ranged(_laid_out(data, limit, layout), low, high)


def _laid_out(data: bytes, limit: int, layout: str) -> np.ndarray:
    """The array as (H, W) or (H, W, C), of its own type."""
    array = _array(data)
    while array.ndim > 3 and 1 in array.shape:
        array = np.squeeze(array, axis=array.shape.index(1))
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"an array of shape {array.shape} is no image")
    if array.ndim == 3:
        if layout == "chw" or (layout == "auto" and array.shape[0] < array.shape[2]):
            array = np.moveaxis(array, 0, 2)
        if array.shape[2] > MOST_CHANNELS:
            raise ValueError(f"an array of shape {array.shape} has more than {MOST_CHANNELS} channels; see layout")
    pictures.check_size(array.shape[1], array.shape[0], limit)
    return np.ascontiguousarray(array)


def _array(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of the npy format is not read here; save the array again")
        shape, fortran, dtype = readers[version](stream)
    except (SyntaxError, TypeError, UnicodeError, EOFError) as fault:
        raise ValueError(f"damaged ({fault})") from fault
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are never loaded; save it as numbers")
    count = math.prod(shape)
    if len(data) - stream.tell() < count * dtype.itemsize:
        raise ValueError("cut short")
    flat = np.frombuffer(data, dtype, count, stream.tell())
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


@part(source="TIFF 6.0; Pillow, and tifffile for other channels than 1, 3 and 4", allowed={"pages": ("all", "first")})
def tiff(
    data: bytes, name: str, limit: int, *, pages: str = "all", low: float | None = None, high: float | None = None
) -> np.ndarray:
    """A tiff of any depth and number of channels.

    pages: all makes grey pages of one size the channels of one image, and takes the first page of any others; first
    takes it always. low, high: the values that become black and white; else as in npy.
    """
    return pictures.ranged(_tiff_values(data, limit, pages), low, high)


def _tiff_values(data: bytes, limit: int, pages: str) -> np.ndarray:
    """The values of a tiff, of their own type."""
    try:
        frames = _grey_frames(data)
        if pages == "first":
            frames = 1
        if frames > MOST_CHANNELS:
            raise ValueError(f"{frames} pages, but {MOST_CHANNELS} at most become channels; see data.reader=tiff")
        if frames == 1 and _is_large(data):
            return _with_tifffile(data, limit, "first")
        return pictures.with_pillow(data, limit, frames)
    except pictures.UnknownFormat:
        return _with_tifffile(data, limit, pages)


def _grey_frames(data: bytes) -> int:
    """How many frames there are if all are grey and of one size, else 1."""
    from PIL import UnidentifiedImageError

    try:
        with pictures.pillow().open(io.BytesIO(data)) as opened:
            samples = getattr(opened, "tag_v2", {}).get(SAMPLES_PER_PIXEL, 1)
            if samples > len(opened.getbands()) and samples not in (3, 4):  # Pillow would drop some
                raise UnidentifiedImageError
            count = getattr(opened, "n_frames", 1)
            kinds = set()
            for number in range(count if count <= MOST_CHANNELS else 2):
                opened.seek(number)
                kinds.add((opened.mode, opened.size))
            grey = len(kinds) == 1 and next(iter(kinds))[0] in ("1", "L", "F", "I", "I;16", "I;16B")
            return count if grey else 1
    except UnidentifiedImageError as fault:
        raise pictures.UnknownFormat("not a known image format") from fault
    except Exception as fault:  # Pillow's readers raise nearly anything on damaged files
        raise ValueError(f"damaged ({fault})") from fault


def _is_large(data: bytes) -> bool:
    """Whether a tiff is large, and so plain that tifffile sees it as Pillow does, which needs thrice the memory."""
    with pictures.pillow().open(io.BytesIO(data)) as opened:
        tags = getattr(opened, "tag_v2", {})
        plain = all(tags.get(tag, 1) in known for tag, known in PLAIN.items()) and set(tags.get(BITS, ())) == {8}
        return opened.width * opened.height > pictures.LARGE and opened.mode in ("L", "RGB") and plain


def _with_tifffile(data: bytes, limit: int, pages: str) -> np.ndarray:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # faults are reported once, by name
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as opened:
            first: Any = opened.pages[0]
            pictures.check_size(first.imagewidth, first.imagelength, limit)
            same = [page for page in opened.pages if page.shape == first.shape]
            grey = first.samplesperpixel == 1 and len(same) == len(opened.pages) <= MOST_CHANNELS
            taken = same if pages == "all" and grey else [first]
            ends = (sum(piece) for page in taken for piece in zip(page.dataoffsets, page.databytecounts, strict=True))
            if max(ends, default=0) > len(data):
                raise ValueError("cut short")
            return _pages(taken, data)
    except tifffile.TiffFileError as fault:
        raise ValueError(f"no whole tiff ({fault})") from fault
    except ValueError:
        raise
    except Exception as fault:  # as Pillow's
        raise ValueError(f"damaged ({fault})") from fault


def _pages(pages: Sequence[Any], data: bytes) -> np.ndarray:
    try:
        return np.dstack([_page(page) for page in pages]) if len(pages) > 1 else np.atleast_3d(_page(pages[0]))
    except ValueError:  # a compression that tifffile leaves to another package
        if len(pages) > 1 or pages[0].samplesperpixel not in (1, 3, 4):  # OpenCV would drop some
            raise
        image = pictures.with_opencv(data)
        if image is None:
            raise
        return image


def _page(page: Any) -> np.ndarray:
    array = page.asarray()
    if array.ndim == 3 and page.axes.startswith("S"):  # each channel on its own
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3):
        raise ValueError(f"a page of shape {array.shape} is no image")
    return array


@part(source="tanh(x / C), the usual map of unbounded values to a bounded range", allowed={"c": (1e-9, None)})
def tanh(data: bytes, name: str, limit: int, *, c: float = 1000.0, low: float | None = None) -> np.ndarray:
    """An array, a tiff or a picture of raw values x that know no bound, such as counts of 16 bits: tanh(x / C).

    c: where the curve bends; values of 3 · C and more are nearly white. low: what becomes black, tanh((x − low) / C);
    else 0 for types without negative numbers, and of all others −1 becomes black, 1 white. The same for every image.
    """
    if data.startswith(NPY):
        values = _laid_out(data, limit, "auto")
    elif data.startswith(TIFF):
        values = _tiff_values(data, limit, "all")
    elif data[128:132] == b"DICM":
        raise ValueError("a DICOM image is seen through a window: data.reader=dicom(centre=…, width=…)")
    else:
        values = pictures.read(data, limit)
    return pictures.squashed(values, c, low)


@part(source="DICOM PS3.3 C.7.6.3, C.11.1 and C.11.2; pydicom", allowed={"width": (1, None)})
def dicom(data: bytes, name: str, limit: int, *, centre: float | None = None, width: float | None = None) -> np.ndarray:
    """A DICOM image in its own units (slope and intercept applied), seen through a window; bright is always high.

    centre, width: the window, such as 40 and 400 Hounsfield units for soft tissue; else the file's own first window,
    else its least and greatest value. Frames become channels.
    """
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError as fault:
        raise UserError(
            f"{name} is a DICOM file, which needs pydicom; run .venv/bin/pip install -c constraints.txt pydicom"
        ) from fault
    try:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")  # as pictures.pillow does
        content = pydicom.dcmread(io.BytesIO(data), force=True)
        if not {"Rows", "Columns", "PixelData"} <= set(content.dir()):
            raise ValueError("no DICOM image")
        pictures.check_size(int(content.Columns), int(content.Rows), limit)
        pixels = content.pixel_array
    except ValueError:
        raise
    except Exception as fault:  # of its many handlers
        raise ValueError(f"damaged, or packed in a way that needs another package ({fault})") from fault
    if int(content.get("SamplesPerPixel", 1)) > 1:
        return pictures.ranged(pixels)
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, 2)
    return _window(content, pixels, centre, width)


def _window(content: Any, pixels: np.ndarray, centre: float | None, width: float | None) -> np.ndarray:
    values = pixels * float(content.get("RescaleSlope", 1) or 1) + float(content.get("RescaleIntercept", 0) or 0)
    middle = _first(content.get("WindowCenter")) if centre is None else centre
    span = _first(content.get("WindowWidth")) if width is None else width
    if middle is None or span is None or span < 1:
        grey = pictures.ranged(values, float(values.min()), float(values.max()))
    else:
        span = max(span - 1, 1e-6)
        grey = pictures.ranged(values, middle - 0.5 - span / 2, middle - 0.5 + span / 2)
    return 255 - grey if content.get("PhotometricInterpretation") == "MONOCHROME1" else grey


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, (int, float, str)) or not hasattr(value, "__len__") else float(value[0])
