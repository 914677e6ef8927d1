"""Pictures: the bytes of a PNG, JPEG or any other usual format → pixels, by OpenCV where it is quick and right."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from typing import Any, NamedTuple

import numpy as np

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
LARGE = 2**26  # pixels from which on a picture must not lie in memory twice


class UnknownFormat(ValueError):
    """Bytes that are no picture at all."""


class Picture(NamedTuple):
    """Pixels of one file.

    pixels: (H, W) or (H, W, C) uint8 or uint16. blue_first: colours stand as BGR(A), as OpenCV makes them. width,
    height: of the file itself, which are larger than the pixels' where a JPEG was shrunk.
    """

    pixels: np.ndarray
    blue_first: bool
    width: int
    height: int


@functools.cache
def pillow() -> Any:
    """Pillow's Image module, set up to leave limits and reports to this project."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # its warning would come on top of the limit that is checked here
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # faults are reported once, by name
    return Image


@functools.cache
def opencv() -> Any:
    """OpenCV, set up for images that are decoded side by side."""
    import cv2

    cv2.setNumThreads(1)  # images are decoded side by side; a resize that splits itself again only fights for the cores
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # faults are reported once, by name
    return cv2


def is_quick(data: bytes) -> bool:
    """Whether a file is a PNG or JPEG, whatever its name says."""
    return data.startswith((PNG, JPEG))


def read(data: bytes, limit: int) -> np.ndarray:
    """A picture of any usual format: (H, W) or (H, W, 3 or 4) in RGB(A) order, uint8 or uint16.

    Orientation from EXIF is applied; of several frames the first is taken. Raises ValueError for bytes that are no
    whole picture, and for more than limit pixels.
    """
    if not is_quick(data):
        return ranged(with_pillow(data, limit))
    picture = decode(data, limit)
    return _red_first(picture.pixels) if picture.blue_first else picture.pixels


def decode(
    data: bytes, limit: int, grey: bool = False, size: int = 0, resize: str = "stretch", path: str = ""
) -> Picture:
    """A PNG or JPEG. grey: of a JPEG only the brightness is needed. size: a JPEG may be shrunk while it is decoded, as
    far as size × size pixels can still be made of it by resize; 0: not at all. path: of the file that the bytes are
    from, from which a large one is read."""
    cv2 = opencv()
    quick, factor = True, 1
    if data.startswith(JPEG):
        width, height, components = _jpeg_header(data)
        factor = reduction(width, height, size, resize) if size else 1
        colour = "GRAYSCALE" if grey or components == 1 else "COLOR"
        flags = getattr(cv2, f"IMREAD_{colour}" if factor == 1 else f"IMREAD_REDUCED_{colour}_{factor}")
        quick = components != 4  # OpenCV's CMYK is off
    else:
        width, height, quick = _png_header(data)
        flags = cv2.IMREAD_UNCHANGED
    check_size(width // factor, height // factor, limit)
    large = width * height // factor**2 > LARGE
    pixels = _from_file(path, flags) if quick and large else None
    pixels = _with_opencv(data, flags) if quick and pixels is None else pixels
    if pixels is None:
        pixels = ranged(with_pillow(data, limit))
        return Picture(pixels, False, pixels.shape[1], pixels.shape[0])
    if factor == 1:
        return Picture(pixels, True, pixels.shape[1], pixels.shape[0])
    turned = pixels.shape[0] != -(-height // factor)  # by the orientation in EXIF
    return Picture(pixels, True, *((height, width) if turned else (width, height)))


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


def reduction(width: int, height: int, size: int, resize: str) -> int:
    """The largest factor by which a JPEG decoder may shrink without falling below the needed size."""
    side = max(width, height) if resize == "pad" else min(width, height)
    return next(factor for factor in (8, 4, 2, 1) if side >= factor * size or factor == 1)


def check_size(width: int, height: int, limit: int) -> None:
    """ValueError for an image above the limit, before it is decoded: it may be a decompression bomb."""
    if width * height > limit:
        raise ValueError(
            f"{width}×{height} pixels = {width * height / 1e6:,.0f} megapixels, above "
            f"data.megapixels={limit / 1e6:,.4g}; raise it if the file is sound, or cut it into tiles"
        )


def ranged(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Numbers of any kind as uint8; uint8 and uint16 stay as they are unless low or high is given.

    low and high become black and white, values beyond them too. Where they are not given: 0…255 for whole numbers
    within it, 0…1 for fractions within it, else the least and the greatest value of this image. What is not a number
    becomes black. ValueError if nothing is one.
    """
    given = low is not None or high is not None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{values.dtype} values are no pixels")
    if not given and values.dtype in (np.uint8, np.uint16):
        return values
    if not given and values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    wide = values.astype(np.float64)
    real = wide[np.isfinite(wide)]
    if not real.size:
        raise ValueError("no pixel is a number")
    least, most = float(real.min()), float(real.max())
    if not given:
        usual = 255.0 if values.dtype.kind in "iu" else 1.0
        least, most = (0.0, usual) if least >= 0 and most <= usual else (least, most)
    low, high = least if low is None else low, most if high is None else high
    scaled = (wide - low) / (high - low) * 255 if high > low else np.zeros_like(wide)
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def squashed(values: np.ndarray, c: float, low: float | None = None) -> np.ndarray:
    """tanh(values / c) as uint8: −1…1 become black and white; 0…1 do of unsigned types, and above low if it is given.

    What is not a number becomes black. ValueError if nothing is one.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{values.dtype} values are no pixels")
    wide = values.astype(np.float64)
    if np.isnan(wide).all():
        raise ValueError("no pixel is a number")
    from_zero = low is not None or values.dtype.kind in "bu"
    curve = np.tanh((wide - (low or 0.0)) / c)
    curve = np.maximum(curve, 0) if from_zero else (curve + 1) / 2
    return np.rint(255 * np.nan_to_num(curve, nan=0.0)).astype(np.uint8)


def _with_opencv(data: bytes, flags: int) -> np.ndarray | None:
    cv2 = opencv()
    with contextlib.suppress(cv2.error):
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None


def _from_file(path: str, flags: int) -> np.ndarray | None:
    """As ``_with_opencv``, without its copy of the pixels; None where OpenCV is too old, or path is in a zip."""
    cv2 = opencv()
    with contextlib.suppress(cv2.error, TypeError):
        return cv2.imread(path, None, flags)
    return None


def with_opencv(data: bytes) -> np.ndarray | None:
    """A picture as OpenCV sees it, RGB(A) or grey, of any depth; None if it does not know it."""
    image = _with_opencv(data, opencv().IMREAD_UNCHANGED)
    return None if image is None else _red_first(image)


def _red_first(image: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def with_pillow(data: bytes, limit: int, frames: int = 1) -> np.ndarray:
    """A picture as Pillow sees it, RGB(A) or grey; frames: how many grey ones of one size become channels."""
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with pillow().open(io.BytesIO(data)) as opened:
            width, height = opened.size
            check_size(width, height, limit)
            if frames > 1:
                return np.dstack([_of_frame(opened, number) for number in range(frames)])
            return _from_pillow(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as fault:
        image = with_opencv(data)
        if image is None:
            raise UnknownFormat("not a known image format") from fault
        return image
    except ValueError:
        raise
    except Exception as fault:  # Pillow's readers raise nearly anything on damaged files
        raise ValueError("cut short" if "truncated" in str(fault) else f"damaged ({fault})") from fault


def _of_frame(opened: Any, number: int) -> np.ndarray:
    opened.seek(number)
    return _from_pillow(opened)


def _from_pillow(image: Any) -> np.ndarray:
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))
