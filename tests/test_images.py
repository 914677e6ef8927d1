"""Images: every usual format, broken files, square pixels against slow references, the cache under kills and faults."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline import images, pictures
from pipeline.errors import UserError
from pipeline.files import BOX, JOIN, listing, with_boxes
from pipeline.images import BrokenImage, decode, look, mean_std, open_cache, read

CODE = Path(images.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and a busy disk would make them slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """A coloured slope without symmetry, (height, width, 3) uint8."""
    down, right = np.mgrid[0:height, 0:width]
    return np.stack([right * 255 / width, down * 255 / height, (down + right) * 99 / height], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def full_size(path: Path, channels: int = 3) -> np.ndarray:
    """What decode makes of a file before it is resized, by padding a square of its long side and cutting it back."""
    with Image.open(path) as opened:
        width, height = ImageOps.exif_transpose(opened).size
    side = max(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    return decode(path, channels, side, "pad")[top : top + height, left : left + width]


# --- formats ------------------------------------------------------------------------------------------------------

PICTURE = Image.fromarray(smooth())
FORMATS = {
    "png": encoded(PICTURE, "PNG"),
    "grey png": encoded(PICTURE.convert("L"), "PNG"),
    "1-bit png": encoded(PICTURE.convert("1"), "PNG"),
    "palette png": encoded(PICTURE.quantize(32), "PNG"),
    "rgba png": encoded(PICTURE.convert("RGBA"), "PNG"),
    "grey-alpha png": encoded(PICTURE.convert("LA"), "PNG"),
    "jpeg": encoded(PICTURE, "JPEG", quality=95),
    "progressive jpeg": encoded(PICTURE, "JPEG", quality=95, progressive=True),
    "grey jpeg": encoded(PICTURE.convert("L"), "JPEG", quality=95),
    "cmyk jpeg": encoded(PICTURE.convert("CMYK"), "JPEG", quality=95),
    "bmp": encoded(PICTURE, "BMP"),
    "1-bit bmp": encoded(PICTURE.convert("1"), "BMP"),
    "gif": encoded(PICTURE.quantize(64), "GIF"),
    "webp": encoded(PICTURE, "WEBP", lossless=True),
    "tiff": encoded(PICTURE, "TIFF"),
    "lzw tiff": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encoded(PICTURE.convert("CMYK"), "TIFF"),
    "ppm": encoded(PICTURE, "PPM"),
    "tga": encoded(PICTURE, "TGA"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_are_read_by_content_like_pillow_reads_them(tmp_path: Path, name: str, channels: int) -> None:
    path = tmp_path / "wrong_suffix.txt"
    path.write_bytes(FORMATS[name])
    wanted = np.asarray(Image.open(path).convert("RGB" if channels == 3 else "L")).reshape(48, 64, channels)
    found = full_size(path, channels)
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    # rounding of grey and of JPEG's colours may differ by a little; a swapped channel would differ by far more
    assert np.abs(found.astype(int) - wanted).max() <= (4 if "jpeg" in name else 1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str, colour: bool) -> None:
    deep = smooth().astype(np.uint16) * 257 if colour else smooth()[..., 0].astype(np.uint16) * 257
    path = tmp_path / f"deep{suffix}"
    assert cv2.imwrite(str(path), deep[..., ::-1] if colour else deep)
    wanted = smooth() if colour else np.repeat(smooth()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(full_size(path), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(encoded(PICTURE, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 95})))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.abs(full_size(path).astype(int) - wanted).max() <= (4 if kind == "JPEG" else 0)


def test_exif_orientation_is_applied_to_a_reduced_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(Image.fromarray(smooth(480, 640)), "JPEG", exif=exif, quality=95))
    wanted = cv2.resize(np.asarray(ImageOps.exif_transpose(Image.open(path))), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(decode(path, 3, 32, "stretch").astype(int) - wanted).mean() < 2


def test_transparency_shows_white(tmp_path: Path) -> None:
    pixels = np.dstack([smooth(), np.full((48, 64), 255, np.uint8)])
    pixels[:, :32, 3] = 0
    pixels[:, 32:48, 3] = 100
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    (tmp_path / "a.webp").write_bytes(encoded(Image.fromarray(pixels), "WEBP", lossless=True, exact=True))
    alpha = pixels[..., 3:] / 255
    wanted = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for name in ("a.png", "a.webp"):
        assert np.abs(full_size(tmp_path / name) - wanted).max() <= 1


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_alpha_that_is_the_same_everywhere_is_ignored(tmp_path: Path, level: int) -> None:
    pixels = np.dstack([smooth(), np.full((48, 64), level, np.uint8)])
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(full_size(tmp_path / "a.png"), smooth())


def test_palette_with_transparency(tmp_path: Path) -> None:
    palette = PICTURE.quantize(16)
    (tmp_path / "a.png").write_bytes(encoded(palette, "PNG", transparency=3))
    found = full_size(tmp_path / "a.png")
    clear = np.asarray(palette) == 3
    assert clear.any()
    assert (found[clear] == 255).all()
    np.testing.assert_array_equal(found[~clear], np.asarray(palette.convert("RGB"))[~clear])


# --- broken files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "cmyk jpeg", "png", "bmp", "gif", "webp", "tiff"])
def test_files_that_are_cut_short_are_broken(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / "cut"
    path.write_bytes(FORMATS[name][: int(len(FORMATS[name]) * share)])
    with pytest.raises(BrokenImage) as caught:
        decode(path, 3, 32, "stretch")
    assert caught.value.path == path
    assert caught.value.reason


@pytest.mark.parametrize("lost", [1, 2, 40])
@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_a_missing_end_is_found(tmp_path: Path, name: str, lost: int) -> None:
    (tmp_path / "cut").write_bytes(FORMATS[name][:-lost])
    with pytest.raises(BrokenImage, match="cut short"):
        decode(tmp_path / "cut", 3, 32, "stretch")


def test_the_end_of_a_thumbnail_does_not_hide_a_missing_end(tmp_path: Path) -> None:
    thumbnail = encoded(PICTURE.resize((16, 16)), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail
    whole = FORMATS["jpeg"][:2] + segment + FORMATS["jpeg"][2:]
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[:-300])
    np.testing.assert_array_equal(full_size(tmp_path / "whole.jpg").shape, (48, 64, 3))
    with pytest.raises(BrokenImage, match="cut short"):
        decode(tmp_path / "cut.jpg", 3, 32, "stretch")


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_bytes_after_the_end_do_no_harm(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").write_bytes(FORMATS[name])
    (tmp_path / "more").write_bytes(FORMATS[name] + b"more bytes" * 20)
    same = [decode(tmp_path / file, 3, 32, "stretch") for file in ("whole", "more")]
    np.testing.assert_array_equal(*same)


def test_damage_inside_a_png_is_found(tmp_path: Path) -> None:
    content = bytearray(FORMATS["png"])
    content[len(content) // 2] ^= 0x5A
    (tmp_path / "damaged.png").write_bytes(content)
    with pytest.raises(BrokenImage):
        decode(tmp_path / "damaged.png", 3, 32, "stretch")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty file"), (b"id,label\n1,2\n", "not a known"), (None, "missing")]
)
def test_files_without_a_picture(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BrokenImage, match=reason) as caught:
        decode(path, 3, 32, "stretch")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["jpeg", "png", "bmp", "webp"])
def test_a_limit_stops_decompression_bombs(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(FORMATS[name])
    with pytest.raises(BrokenImage, match="64×48 pixels.*data\\.megapixels=0.003"):
        decode(tmp_path / "a", 3, 64, "stretch", limit_pixels=64 * 48 - 1)
    assert decode(tmp_path / "a", 3, 64, "stretch", limit_pixels=64 * 48).shape == (64, 64, 3)


# --- square pixels ------------------------------------------------------------------------------------------------


def area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Slow shrinking: each new pixel is the mean of the old ones under it, weighted by the covered share."""

    def weights(old: int, new: int) -> np.ndarray:
        edges, left = np.arange(new + 1) * old / new, np.arange(old)
        covered = np.minimum(edges[1:, None], left + 1) - np.maximum(edges[:-1, None], left)
        return np.maximum(covered, 0) * new / old

    down, right = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ih,hwc,jw->ijc", down, image.astype(float), right)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Slow enlarging: each new pixel's centre between the four old ones around it; edges repeat."""
    result = np.empty((height, width, image.shape[2]))
    for row in range(height):
        for column in range(width):
            y = np.clip((row + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
            x = np.clip((column + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


def slow_square(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    height, width = image.shape[:2]
    if resize == "crop":
        side = min(height, width)
        image = image[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
        height = width = side
    new_height, new_width = size, size
    if resize == "pad":
        new_height, new_width = (round(side * size / max(height, width)) for side in (height, width))
    scaled = (area if new_height <= height and new_width <= width else bilinear)(image, new_height, new_width)
    result = np.zeros((size, size, 3))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    result[top : top + new_height, left : left + new_width] = scaled
    return result


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (31, 31), (20, 70), (9, 5)])
@pytest.mark.parametrize("size", [16, 33, 80])
def test_resize_against_a_slow_reference(tmp_path: Path, resize: str, height: int, width: int, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    found = decode(tmp_path / "a.png", 3, size, resize)
    assert found.flags.c_contiguous
    assert found.shape == (size, size, 3)
    assert np.abs(found - slow_square(pixels, size, resize)).max() <= 1.01


def test_a_line_of_pixels_survives_padding(tmp_path: Path) -> None:
    Image.new("RGB", (500, 1), "white").save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", 1, 16, "pad")
    assert found.sum() == 16 * 255


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600), st.sampled_from(["stretch", "pad", "crop"])
)  # fmt: skip
def test_a_reduced_jpeg_is_never_smaller_than_needed(width: int, height: int, size: int, resize: str) -> None:
    factor = pictures.reduction(width, height, size, resize)
    reduced = [-(-side // factor) for side in (width, height)]
    needed = max if resize == "pad" else min
    assert factor == 1 or needed(reduced) >= size
    assert factor == 8 or needed(width, height) < 2 * factor * size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_a_reduced_jpeg_looks_like_the_whole_one(tmp_path: Path, resize: str, channels: int) -> None:
    content = encoded(Image.fromarray(smooth(450, 700)), "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "a.png").write_bytes(encoded(Image.open(io.BytesIO(content)), "PNG"))
    reduced, whole = (decode(tmp_path / name, channels, 50, resize) for name in ("a.jpg", "a.png"))
    difference = np.abs(reduced.astype(int) - whole)
    assert difference.mean() < 2
    assert difference.max() < 30  # by less than a pixel at the border of a padded image


# --- the cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 small images of mixed formats and sizes, some in a subfolder."""
    rng = np.random.default_rng(1)
    for number, (name, (kind, suffix)) in enumerate(
        (f"{n:02}", [("PNG", ".png"), ("JPEG", ".jpg"), ("BMP", ".bmp")][n % 3]) for n in range(60)
    ):
        path = tmp_path / "pictures" / ("deep" if number % 2 else "") / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*rng.integers(8, 40, 2), 3)
        path.write_bytes(encoded(Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)), kind))
    return tmp_path / "pictures"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def open_(folder: Path, **changes: object) -> images.Images:
    options = {"channels": 3, "size": 16, "resize": "stretch", "cache_root": folder.parent / "cache", "limit_gb": 1.0}
    return open_cache(folder, **{"files": names(folder), **options, **changes})


def direct(folder: Path) -> np.ndarray:
    return np.stack([decode(folder / name, 3, 16, "stretch") for name in names(folder)])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BLOCK_BYTES", 4 * 16 * 16 * 3)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "decode", fail)


def test_the_cache_holds_what_decode_gives(folder: Path, small_blocks: None) -> None:
    store = open_(folder)
    assert store.cached
    assert len(store) == 60
    assert store.shape == (60, 16, 16, 3)
    assert store.broken.tolist() == []
    rows = np.array([5, 59, 0, 5])
    taken = store.take(rows)
    np.testing.assert_array_equal(taken, direct(folder)[rows])
    taken[:] = 0  # a copy: the cache does not change
    np.testing.assert_array_equal(store.take(rows), direct(folder)[rows])


def test_no_rows_and_no_files(folder: Path) -> None:
    assert open_(folder).take(np.array([], dtype=np.int64)).shape == (0, 16, 16, 3)
    assert open_(folder, files=[]).take(np.array([], dtype=np.int64)).shape == (0, 16, 16, 3)


def test_a_finished_cache_is_used_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = direct(folder)
    open_(folder)
    assert "60 images of 16×16×3" in capsys.readouterr().out
    forbid_decoding(monkeypatch)
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), wanted)
    assert capsys.readouterr().out == ""


def test_images_travel_as_a_reference(folder: Path) -> None:
    store = open_(folder)
    wanted = store.take(np.arange(60))
    content = pickle.dumps(store)
    assert len(content) < wanted.nbytes / 4
    np.testing.assert_array_equal(pickle.loads(content).take(np.arange(60)), wanted)


def test_a_changed_file_is_decoded_anew(folder: Path) -> None:
    before = open_(folder).take(np.arange(60))
    name = names(folder)[0]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes((folder / names(folder)[2]).read_bytes())
    assert not np.array_equal(open_(folder).take(np.array([0])), before[:1])
    (folder / name).write_bytes(content)
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), before)


def test_the_key_knows_settings_order_and_times(folder: Path) -> None:
    files = names(folder)
    keys = [images._key(folder, files, (60, 16, 16, 3), "stretch")]
    keys.append(images._key(folder, files, (60, 17, 17, 3), "stretch"))
    keys.append(images._key(folder, files, (60, 16, 16, 1), "stretch"))
    keys.append(images._key(folder, files, (60, 16, 16, 3), "pad"))
    keys.append(images._key(folder, files[::-1], (60, 16, 16, 3), "stretch"))
    keys.append(images._key(folder, files, (60, 16, 16, 3), "stretch", "picture()"))
    keys.append(images._key(folder, files, (60, 16, 16, 3), "stretch", "auto()", 10**6))
    os.utime(folder / files[7], ns=(0, 0))  # same size, other time
    keys.append(images._key(folder, files, (60, 16, 16, 3), "stretch"))
    assert len(set(keys)) == len(keys)
    assert images._key(folder, files, (60, 16, 16, 3), "stretch") == keys[-1]


def test_a_damaged_cache_is_built_anew(folder: Path) -> None:
    store = open_(folder)
    wanted = store.take(np.arange(60))
    assert store.pixels is not None
    os.truncate(store.pixels, 100)
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), wanted)
    store.pixels.with_suffix(".json").write_text("{")
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), wanted)
    store.pixels.unlink()
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), wanted)


@pytest.mark.parametrize("changes", [{"limit_gb": 0.0}, {"limit_gb": 60 * 16 * 16 * 3 / 1e9 - 1e-9}])
def test_above_the_limit_the_same_pixels_are_decoded_on_demand(folder: Path, changes: dict[str, float]) -> None:
    store = open_(folder, **changes)
    assert not store.cached
    rows = np.array([5, 59, 0, 5])
    np.testing.assert_array_equal(store.take(rows), direct(folder)[rows])
    assert not list((folder.parent / "cache").rglob("pixels*"))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).take(rows), direct(folder)[rows])


def test_without_free_space_images_are_decoded_on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FREE_BYTES", 2**80)
    store = open_(folder)
    assert not store.cached
    np.testing.assert_array_equal(store.take(np.arange(60)), direct(folder))


def test_a_file_that_vanishes_later_is_named(folder: Path) -> None:
    store = open_(folder, limit_gb=0.0)
    (folder / store.files[3]).unlink()
    with pytest.raises(UserError, match=f"{store.files[3]}.*missing"):
        store.take(np.arange(10))


@pytest.mark.parametrize("channels", [0, 65])
def test_other_channels_are_refused(folder: Path, channels: int) -> None:
    with pytest.raises(UserError, match=f"channels={channels}"):
        open_(folder, channels=channels)


# --- broken images ------------------------------------------------------------------------------------------------


def break_some(folder: Path) -> list[int]:
    rows = [3, 4, 17, 30, 41, 59]
    for row in rows:
        path = folder / names(folder)[row]
        path.write_bytes(path.read_bytes()[:20] if row % 2 else b"")
    return rows


@pytest.mark.parametrize("limit_gb", [0.0, 1.0])
def test_broken_images_stop_with_one_message(folder: Path, limit_gb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = break_some(folder)
    for attempt in range(2):
        with pytest.raises(UserError) as caught:
            open_(folder, limit_gb=limit_gb)
        message = str(caught.value)
        assert "6 of 60 images" in message
        assert "data.skip_broken=true" in message
        assert [name in message for name in names(folder)].count(True) == 5
        assert f"{names(folder)[rows[1]]} (empty file)" in message
        if attempt == 0:
            forbid_decoding(monkeypatch)  # the second time, the answer is known


@pytest.mark.parametrize("broken", ["skip", "fill"])
@pytest.mark.parametrize("limit_gb", [0.0, 1.0])
def test_broken_images_can_be_grey(
    folder: Path, broken: str, limit_gb: float, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = direct(folder)
    rows = break_some(folder)
    wanted[rows] = images.FILL
    for _ in range(2):
        store = open_(folder, broken=broken, limit_gb=limit_gb)
        assert "6 of 60 images" in capsys.readouterr().err
        assert store.broken.dtype == np.int64
        assert store.broken.tolist() == rows
        np.testing.assert_array_equal(store.take(np.arange(60)), wanted)


def test_a_missing_file_is_a_broken_image(folder: Path) -> None:
    store = open_(folder, files=[*names(folder), "nowhere.png"], broken="fill")
    assert store.broken.tolist() == [60]


def test_a_disk_that_refuses_is_not_a_broken_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(UserError, match="cannot be read: Input/output error"):
        decode(folder / names(folder)[0], 3, 16, "stretch")


# --- kills, company and full disks --------------------------------------------------------------------------------

BUILD = """
import hashlib, os, sys, time
from pathlib import Path
import numpy as np
from pipeline import images
os.fsync = lambda _: None
folder, stop_at, gate = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
images.BLOCK_BYTES, images.SAVE_SECONDS, images.physical_cores = 4 * 16 * 16 * 3, -1, lambda: 2
count, decode = 0, images.decode
def slow(*arguments):
    global count
    count += 1
    while count > stop_at and not gate.exists():
        time.sleep(0.01)
    return decode(*arguments)
images.decode = slow
files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
store = images.open_cache(
    folder, files, channels=3, size=16, resize="stretch", cache_root=folder.parent / "cache", limit_gb=1.0
)
print(count, hashlib.sha256(store.take(np.arange(len(files))).tobytes()).hexdigest())
"""


def start_build(folder: Path, stop_at: int, gate: Path) -> subprocess.Popen[str]:
    """A process that builds the cache, and waits before image number stop_at until the file gate exists."""
    words = [sys.executable, "-c", BUILD, str(folder), str(stop_at), str(gate)]
    return subprocess.Popen(words, cwd=CODE, stdout=subprocess.PIPE, text=True)


def wait_for(ready: object, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        assert process.poll() is None, "the build ended too early"
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_a_killed_build_goes_on_and_ends_the_same(
    folder: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_build(folder, 30, folder.parent / "never")
    flags = lambda: b"".join(path.read_bytes() for path in (folder.parent / "cache").rglob("pixels.done"))  # noqa: E731
    wait_for(lambda: flags().count(1) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((folder.parent / "cache").rglob("pixels.json"))
    wanted, decoded = direct(folder), []
    monkeypatch.setattr(images, "decode", lambda *arguments: (decoded.append(arguments[0]), decode(*arguments))[1])
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), wanted)
    assert 0 < len(decoded) <= 60 - 3 * 4
    assert not list((folder.parent / "cache").rglob("pixels.done"))


def test_lost_pixels_are_not_taken_for_done(folder: Path, small_blocks: None) -> None:
    process = start_build(folder, 30, folder.parent / "never")
    flags = lambda: b"".join(path.read_bytes() for path in (folder.parent / "cache").rglob("pixels.done"))  # noqa: E731
    wait_for(lambda: flags().count(1) >= 3, process)
    process.kill()
    process.wait()
    next((folder.parent / "cache").rglob("pixels.bin")).unlink()
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), direct(folder))


def test_a_cache_that_is_built_again_is_unfinished_meanwhile(folder: Path) -> None:
    store = open_(folder)
    assert store.pixels is not None
    store.pixels.unlink()
    process = start_build(folder, 30, folder.parent / "never")
    wait_for(store.pixels.is_file, process)
    process.kill()
    process.wait()
    assert not list((folder.parent / "cache").rglob("pixels.json"))
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), direct(folder))


def test_of_two_processes_one_builds_and_one_waits(folder: Path) -> None:
    gate = folder.parent / "gate"
    first = start_build(folder, 8, gate)
    wait_for(lambda: list((folder.parent / "cache").rglob("pixels.done")), first)
    second = start_build(folder, 0, gate)
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    gate.touch()
    built, waited = first.communicate()[0].split(), second.communicate()[0].split()
    assert (first.returncode, second.returncode) == (0, 0)
    assert built[-2:-1] == ["60"]
    assert waited == ["0", built[-1]]


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_ends_in_one_message_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match=r"No space left on device.*data\.cache_gb=0"):
            open_(folder)
    assert not list((folder.parent / "cache").rglob("pixels*"))
    np.testing.assert_array_equal(open_(folder).take(np.arange(60)), direct(folder))


def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder.parent / "cache").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot be written"):
        open_(folder)


@pytest.mark.faults
def test_a_really_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = folder.parent / "cache"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        monkeypatch.setattr(images, "FREE_BYTES", -(2**30))
        with pytest.raises(UserError, match="No space left on device"):
            open_(folder)
        assert not list(disk.rglob("pixels*"))
        monkeypatch.undo()
        assert not open_(folder).cached
    finally:
        subprocess.run(["umount", disk], check=True)


# --- mean and standard deviation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_against_numpy(folder: Path, channels: int) -> None:
    break_some(folder)
    store = open_(folder, channels=channels, broken="skip")
    for rows in (None, np.array([0, 1, 8])):
        used = np.setdiff1d(np.arange(60), store.broken) if rows is None else rows
        pixels = store.take(used).astype(np.float64) / 255
        mean, std = mean_std(store, rows)
        assert mean.dtype == std.dtype == np.float64
        np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_mean_and_deviation_do_not_depend_on_order_or_store(folder: Path) -> None:
    first = mean_std(open_(folder))
    second = mean_std(open_(folder, limit_gb=0.0), np.arange(60)[::-1])
    assert [values.tolist() for values in first] == [values.tolist() for values in second]


def test_mean_and_deviation_need_an_image(folder: Path) -> None:
    with pytest.raises(UserError, match="at least one image"):
        mean_std(open_(folder), np.array([], dtype=np.int64))


def test_a_listing_survives_a_copy_and_sees_a_change(folder: Path) -> None:
    files = names(folder)
    before = listing(folder, files)
    copied = folder.parent / "copied"
    shutil.copytree(folder, copied, copy_function=shutil.copy)
    assert listing(copied, files) == before
    assert listing(copied, files[1:]) != before
    with (copied / files[0]).open("ab") as handle:
        handle.write(b"x")
    assert listing(copied, files) != before
    (copied / files[0]).unlink()
    assert listing(copied, files) != before


# --- channels, boxes and the cache of both ------------------------------------------------------------------------


def grey(number: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_several_files_are_the_channels_of_one_image(tmp_path: Path, count: int) -> None:
    wanted = np.stack([save(tmp_path / f"{n}.png", grey(n)) for n in range(count)], axis=2)
    spec = JOIN.join(f"{n}.png" for n in range(count))
    seen = look(spec, tmp_path)
    assert (seen.width, seen.height, seen.channels, seen.bits) == (30, 20, count, 8)
    np.testing.assert_array_equal(seen.pixels, wanted)
    found = decode(spec, count, 10, "stretch", folder=tmp_path)
    each = [decode(tmp_path / f"{n}.png", 1, 10, "stretch") for n in range(count)]
    assert np.abs(found.astype(int) - np.concatenate(each, axis=2)).max() <= 1
    padded = decode(spec, count, 40, "pad", folder=tmp_path)
    assert padded.shape == (40, 40, count)
    assert not padded[:3].any()


def test_a_coloured_file_is_a_grey_channel(tmp_path: Path) -> None:
    save(tmp_path / "a.png", smooth())
    (tmp_path / "b.jpg").write_bytes(FORMATS["jpeg"])
    found = read(f"a.png{JOIN}b.jpg", tmp_path)
    np.testing.assert_array_equal(found[..., :1], read(tmp_path / "a.png", channels=1))
    assert np.abs(found[..., 0].astype(int) - found[..., 1]).max() <= 6


def test_a_shrunk_jpeg_joins_a_png(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(smooth(482, 646)), "JPEG", quality=95))
    save(tmp_path / "b.png", smooth(482, 646))
    found = decode(f"a.jpg{JOIN}b.png", 2, 60, "pad", folder=tmp_path)
    assert np.abs(found[..., 0].astype(int) - found[..., 1]).max() <= 6
    assert look(f"a.jpg{JOIN}b.png", tmp_path, at_least=60)[:3] == (646, 482, 2)


def test_files_that_make_no_image_together_say_which(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey(0))
    save(tmp_path / "small.png", grey(0, 5, 5))
    (tmp_path / "cut.png").write_bytes(FORMATS["png"][:100])
    for other, reason in (
        ("small.png", "differ in size: 30×20, 5×5"),
        ("no.png", "no.png: missing"),
        ("cut.png", "cut"),
    ):
        with pytest.raises(BrokenImage, match=reason) as caught:
            decode(f"a.png{JOIN}{other}", 2, 10, "stretch", folder=tmp_path)
        assert str(caught.value.path) == f"a.png + {other}"


@pytest.mark.parametrize(("files", "channels"), [("a", 2), ("a", 4), ("c", 4), ("a\x1fb", 1), ("a\x1fb", 3), ("n", 5)])
def test_other_channels_than_asked_are_broken_images(tmp_path: Path, files: str, channels: int) -> None:
    save(tmp_path / "a.png", grey(0))
    save(tmp_path / "b.png", grey(1))
    save(tmp_path / "c.png", smooth())
    np.save(tmp_path / "n.npy", np.zeros((8, 8, 6), np.uint8))
    spec = JOIN.join(name + (".npy" if name == "n" else ".png") for name in files.split(JOIN))
    with pytest.raises(BrokenImage, match=rf"\d channels, but data\.channels={channels}"):
        decode(spec, channels, 8, "stretch", folder=tmp_path)


@pytest.mark.parametrize("channels", [5, 8, 9])
@pytest.mark.parametrize("size", [7, 50])
def test_many_channels_are_resized_each_as_it_would_be_alone(tmp_path: Path, channels: int, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 40, channels), dtype=np.uint8)
    np.save(tmp_path / "n.npy", pixels)
    found = decode("n.npy", channels, size, "stretch", folder=tmp_path)
    method = cv2.INTER_AREA if size < 31 else cv2.INTER_LINEAR
    each = [cv2.resize(pixels[..., k].copy(), (size, size), interpolation=method) for k in range(channels)]
    np.testing.assert_array_equal(found, np.dstack(each))


def test_four_channels_keep_transparency_as_it_is(tmp_path: Path) -> None:
    pixels = np.dstack([smooth(), grey(3, 48, 64)])
    save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read(tmp_path / "a.png", channels=4), pixels)
    seen = look(tmp_path / "a.png")
    assert seen.channels == 4
    assert seen.pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_a_box_cuts_the_image_before_it_is_resized(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(FORMATS[kind])
    [spec] = with_boxes(["a"], np.array([[10.2, 5, 29.5, 30]]))
    whole = read(tmp_path / "a")
    np.testing.assert_array_equal(read(spec, tmp_path), whole[5:30, 10:30])
    found = decode(spec, 3, 12, "stretch", folder=tmp_path)
    wanted = cv2.resize(whole[5:30, 10:30], (12, 12), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - wanted).max() <= 1
    seen = look(spec, tmp_path, at_least=4)
    assert (seen.width, seen.height) == (64, 48)
    assert seen.pixels.shape == (25, 20, 3)


def test_a_margin_is_a_share_of_the_longer_side_and_ends_at_the_border(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey(0, 40, 40))
    inner, border = with_boxes(["a.png"] * 2, np.array([[20, 20, 30, 24], [0, 36, 10, 40]]), 0.1)
    whole = read(tmp_path / "a.png")
    np.testing.assert_array_equal(read(inner, tmp_path), whole[19:25, 19:31])
    np.testing.assert_array_equal(read(border, tmp_path), whole[35:40, 0:11])


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (40, 5, 50, 9), (-9, -9, -1, -1)])
def test_a_box_without_pixels_is_a_broken_image(tmp_path: Path, box: tuple[float, ...]) -> None:
    save(tmp_path / "a.png", grey(0))
    [spec] = with_boxes(["a.png"], np.array([box]), 0.0)
    with pytest.raises(BrokenImage, match="is empty|lies outside") as caught:
        decode(spec, 3, 8, "stretch", folder=tmp_path)
    assert BOX not in str(caught.value)


def test_a_box_and_channels_in_one_spec(tmp_path: Path) -> None:
    wanted = np.stack([save(tmp_path / f"{n}.png", grey(n)) for n in range(2)], axis=2)
    [spec] = with_boxes([f"0.png{JOIN}1.png"], np.array([[3, 4, 20, 15]]))
    np.testing.assert_array_equal(read(spec, tmp_path), wanted[4:15, 3:20])


def test_the_cache_takes_specs(tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / f"pictures/{n}.png", grey(n))
    joined = [f"{n}.png{JOIN}{(n + 1) % 6}.png" for n in range(6)]
    specs = with_boxes(joined, np.tile([2, 2, 18, 18], (6, 1)).astype(float))
    wanted = np.stack([decode(spec, 2, 16, "stretch", folder=tmp_path / "pictures") for spec in specs])
    for limit_gb in (1.0, 0.0):
        store = open_(tmp_path / "pictures", files=specs, channels=2, limit_gb=limit_gb)
        np.testing.assert_array_equal(store.take(np.arange(6)), wanted)
        assert store.shape == (6, 16, 16, 2)
    mean, std = mean_std(store)
    np.testing.assert_allclose(mean, wanted.mean(axis=(0, 1, 2)) / 255)
    np.testing.assert_allclose(std, wanted.std(axis=(0, 1, 2)) / 255)
    before = listing(tmp_path / "pictures", specs)
    (tmp_path / "pictures/3.png").unlink()
    assert listing(tmp_path / "pictures", specs) != before
    with pytest.raises(UserError, match=r"2 of 6 images.*2\.png \+ 3\.png \[2,2,18,18\] \(3\.png: missing\)"):
        open_(tmp_path / "pictures", files=specs, channels=2)


def test_the_cache_takes_files_in_a_zip(tmp_path: Path) -> None:
    files = [f"{n}.png" for n in range(12)]
    wanted = [save(tmp_path / file, np.dstack([grey(n)] * 3)) for n, file in enumerate(files)]
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as content:
        for file in files:
            content.write(tmp_path / file, file)
    specs = [f"t.zip/{file}" for file in files]
    np.testing.assert_array_equal(read(specs[3], tmp_path), wanted[3])
    loose, packed = open_(tmp_path, files=files), open_(tmp_path, files=specs, limit_gb=0.0)
    np.testing.assert_array_equal(packed.take(np.arange(12)), loose.take(np.arange(12)))
    before = images._key(tmp_path, specs, (12, 8, 8, 3), "pad")
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as content:
        content.writestr("notes.txt", "more")
    assert images._key(tmp_path, specs, (12, 8, 8, 3), "pad") == before  # the members are the same
    damaged = bytearray((tmp_path / "t.zip").read_bytes())
    damaged[200] ^= 0xFF
    (tmp_path / "t.zip").write_bytes(damaged)
    with pytest.raises(UserError, match=r"1 of 12 images.*t\.zip/0\.png \(damaged in its zip"):
        open_(tmp_path, files=specs, size=17)
    with pytest.raises(UserError, match=r"t\.zip/no\.png \(missing\)"):
        open_(tmp_path, files=["t.zip/no.png"])


def test_the_cache_knows_the_reader_and_the_limit(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.megapixels=0\.0002"):
        open_(folder, limit_pixels=200)
    assert open_(folder, reader="picture()").cached
    with pytest.raises(UserError, match="60 of 60 images"):
        open_(folder, reader="npy()")


# --- a look at a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_look_shows_the_file_at_its_own_size(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(FORMATS[name])
    seen = look("a", tmp_path)
    assert (seen.width, seen.height, seen.bits) == (64, 48, 8)
    assert seen.channels == (4 if "alpha" in name or "rgba" in name else 1 if "grey" in name or "1-bit" in name else 3)
    np.testing.assert_array_equal(read(tmp_path / "a", channels=3), full_size(tmp_path / "a"))
    assert seen.pixels.shape == (48, 64, 1 if seen.channels == 1 else 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_look_may_shrink_a_jpeg_and_still_knows_its_size(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(smooth(480, 644)), "JPEG", exif=exif))
    seen = look("a.jpg", tmp_path, at_least=64)
    assert sorted(seen.pixels.shape[:2]) == [120, 161]
    assert (seen.width, seen.height) == ((644, 480) if orientation == 1 else (480, 644))
    assert (seen.width > seen.height) == (seen.pixels.shape[1] > seen.pixels.shape[0])


def test_a_look_tells_sixteen_bits(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), grey(0).astype(np.uint16) * 257)
    seen = look("a.png", tmp_path)
    assert (seen.channels, seen.bits) == (1, 16)
    np.testing.assert_array_equal(seen.pixels[..., 0], grey(0))


def test_a_look_at_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(BrokenImage, match="empty file"):
        look("a.png", tmp_path)
    with pytest.raises(BrokenImage, match="missing"):
        look("b.png", tmp_path)
