"""Masks: every form of mask files and of run-length rows, as classes, bits and labels; and what of them is damaged."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline import rle
from pipeline.errors import UserError
from pipeline.files import BOX, JOIN
from pipeline.images import BrokenImage
from pipeline.mask_tables import MaskTable, RleForm, image_ids, mask_table, rle_form_of
from pipeline.masks import (
    VOID,
    VOID_LABEL,
    HeaderSizes,
    MaskFiles,
    PixelForm,
    Raw,
    decode_raw,
    form_of,
    kind_of,
    read_raw,
    size_of,
    to_classes,
)
from pipeline.tables import read_table

TRUTH = np.array([[0, 1, 2, 2], [1, 1, 0, 2], [0, 0, 0, 1]], dtype=np.uint8)
TABLE = ((0, 0, 0), (128, 0, 0), (0, 128, 64))
RNG = np.random.default_rng(0)


def png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_palette(array: np.ndarray, colours: Any = TABLE, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(array)
    image.putpalette(np.array(colours, dtype=np.uint8).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def other(array: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def coloured(truth: np.ndarray = TRUTH, table: Any = TABLE) -> np.ndarray:
    return np.array(table, dtype=np.uint8)[truth]


def classes(data: bytes, form: PixelForm) -> np.ndarray:
    return to_classes(decode_raw(data), form)


# --- mask files: every form ---------------------------------------------------------------------------------------

INSIDE = (TRUTH == 1).astype(np.uint8)
BINARY = {
    "0 and 255": png(INSIDE * np.uint8(255)),
    "0 and 1": png(INSIDE),
    "0 and 7": png(INSIDE * np.uint8(7)),
    "1 bit": png(INSIDE.astype(bool)),
    "16 bits": png(INSIDE.astype(np.uint16) * np.uint16(65535)),
    "rgb": png(np.repeat(INSIDE[..., None] * np.uint8(255), 3, axis=2)),
    "rgba": png(np.dstack([INSIDE * np.uint8(255)] * 3 + [np.full_like(INSIDE, 255)])),
    "one colour": png(INSIDE[..., None] * np.array([255, 0, 0], dtype=np.uint8)),
    "palette": with_palette(INSIDE, [(0, 0, 0), (200, 0, 0)]),
    "inverse palette": with_palette(1 - INSIDE, [(255, 255, 255), (0, 0, 0)]),
    "palette without colours": with_palette(INSIDE, [(0, 0, 0), (0, 0, 0)]),
    "gif": with_palette(INSIDE, [(0, 0, 0), (255, 255, 255)], "GIF"),
    "bmp": other(INSIDE * np.uint8(255), "BMP"),
    "tiff": other(INSIDE * np.uint8(255), "TIFF"),
    "tiff of 1 bit": other(INSIDE.astype(bool), "TIFF"),
    "array of bool": npy(INSIDE.astype(bool)),
    "array of floats": npy(INSIDE.astype(np.float32)),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_masks_in_every_dress(name: str) -> None:
    found = classes(BINARY[name], PixelForm("binary"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, INSIDE)
    assert kind_of([decode_raw(BINARY[name])]) == "binary"


INDICES = {
    "8 bits": png(TRUTH),
    "16 bits": png(TRUTH.astype(np.uint16)),
    "rgb": png(np.repeat(TRUTH[..., None], 3, axis=2)),
    "palette": with_palette(TRUTH),
    "palette of 2 bits": with_palette(TRUTH, bits=2),
    "tiff": other(TRUTH, "TIFF"),
    "tiff of 32 bits": other(TRUTH.astype(np.int32), "TIFF"),
    "tiff of floats": other(TRUTH.astype(np.float32), "TIFF"),
    "array": npy(TRUTH.astype(np.int64)),
}


@pytest.mark.parametrize("name", INDICES)
def test_class_indices_in_every_dress(name: str) -> None:
    found = classes(INDICES[name], PixelForm("indices", 3))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, TRUTH)
    assert form_of([decode_raw(INDICES[name])]) == PixelForm("indices", 3)


def grey_of_few_bits(array: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 2 or 4 bits a pixel, which Pillow does not write: a palette's file with another header."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = array.shape
    wide = np.zeros((height, -(-width * bits // 8) * 8 // bits), dtype=np.uint8)
    wide[:, :width] = array
    each = np.unpackbits(wide[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in each)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("bits", [2, 4])
def test_greys_of_few_bits_are_not_stretched(bits: int) -> None:
    data = grey_of_few_bits(TRUTH, bits)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), TRUTH * (85 if bits == 2 else 17))
    np.testing.assert_array_equal(classes(data, PixelForm("indices", 3)), TRUTH)
    greys = (0, 85, 170) if bits == 2 else (0, 17, 34)
    np.testing.assert_array_equal(classes(data, PixelForm("colours", 3, greys)), TRUTH)


COLOURED = {
    "rgb": png(coloured()),
    "rgba": png(np.dstack([coloured(), np.full_like(TRUTH, 255)])),
    "palette": with_palette(TRUTH),
    "palette in another order": with_palette(2 - TRUTH, TABLE[::-1]),
    "array": npy(coloured()),
}


@pytest.mark.parametrize("name", COLOURED)
def test_colour_tables_in_every_dress(name: str) -> None:
    form = PixelForm("colours", 3, TABLE)
    np.testing.assert_array_equal(classes(COLOURED[name], form), TRUTH)
    turned = PixelForm("colours", 3, TABLE[::-1])
    np.testing.assert_array_equal(classes(COLOURED[name], turned), 2 - TRUTH)


def test_colours_of_16_bits_and_greys_as_colours() -> None:
    wide = Raw(coloured().astype(np.uint16) * 257)
    np.testing.assert_array_equal(to_classes(wide, PixelForm("colours", 3, TABLE)), TRUTH)
    greys = png(np.array([0, 128, 255], dtype=np.uint8)[TRUTH])
    assert form_of([decode_raw(greys)]) == PixelForm("colours", 3, (0, 128, 255))
    for table in ((0, 128, 255), ((0, 0, 0), (128, 128, 128), (255, 255, 255))):
        np.testing.assert_array_equal(classes(greys, PixelForm("colours", 3, table)), TRUTH)
    far = png(np.array([0, 1000, 40000], dtype=np.uint16)[TRUTH])
    form = form_of([decode_raw(far)])
    assert form == PixelForm("indices", 3, (0, 1000, 40000))
    np.testing.assert_array_equal(classes(far, form), TRUTH)


@settings(max_examples=40, deadline=None)
@given(truth=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 5)))
def test_any_truth_comes_back_from_each_form(truth: np.ndarray) -> None:
    table = ((9, 9, 9), (0, 0, 0), (255, 1, 0), (0, 1, 255), (1, 0, 0), (0, 0, 1))
    for data in (png(truth), with_palette(truth, table), png(truth.astype(np.uint16)), npy(truth)):
        np.testing.assert_array_equal(classes(data, PixelForm("indices", 6)), truth)
    for data in (png(coloured(truth, table)), with_palette(truth, table)):
        np.testing.assert_array_equal(classes(data, PixelForm("colours", 6, table)), truth)


def test_object_labels_of_values_and_colours() -> None:
    labels = np.array([[0, 300, 300], [7, 0, 65535]], dtype=np.uint16)
    found = classes(png(labels), PixelForm("labels"))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(classes(png(coloured()), PixelForm("labels")), np.array([0, 2, 1])[TRUTH])
    void = classes(png(labels), PixelForm("labels", void=65535))
    np.testing.assert_array_equal(void, np.where(labels == 65535, VOID_LABEL, labels.astype(int)))


# --- void, and what is refused ------------------------------------------------------------------------------------


def test_void_counts_nowhere_in_each_form() -> None:
    hole = TRUTH.copy()
    hole[2, 3] = 9
    expected = np.where(hole == 9, VOID, TRUTH)
    np.testing.assert_array_equal(classes(png(hole), PixelForm("indices", 3, void=9)), expected)
    np.testing.assert_array_equal(classes(png(hole), PixelForm("indices", 3, (0, 1, 2), void=9)), expected)
    inner = PixelForm("indices", 3, void=2)  # a class of its own
    np.testing.assert_array_equal(classes(png(TRUTH), inner), np.where(TRUTH == 2, VOID, TRUTH))
    wide = np.where(hole == 9, np.uint16(65535), TRUTH)
    np.testing.assert_array_equal(classes(png(wide), PixelForm("indices", 3, void=65535)), expected)
    colours = png(coloured(np.minimum(hole, 3), (*TABLE, (224, 224, 192))))
    np.testing.assert_array_equal(classes(colours, PixelForm("colours", 3, TABLE, void=(224, 224, 192))), expected)
    two = png(np.where(hole == 9, 128, INSIDE * 255).astype(np.uint8))
    np.testing.assert_array_equal(classes(two, PixelForm("binary", void=128)), np.where(hole == 9, VOID, INSIDE))
    voc = with_palette(np.where(hole == 9, 255, TRUTH).astype(np.uint8), (*TABLE, *[(9, 9, n) for n in range(18)]))
    assert decode_raw(voc).values.max() == 255  # beyond its 21 colours
    np.testing.assert_array_equal(classes(voc, PixelForm("indices", 3, void=255)), expected)


def test_the_least_value_inside_is_a_key_and_128_in_a_jpeg() -> None:
    blurred = np.array([[0, 3, 200], [255, 100, 128]], dtype=np.uint8)
    np.testing.assert_array_equal(classes(png(blurred), PixelForm("binary", on=128)), [[0, 0, 1], [1, 0, 1]])
    np.testing.assert_array_equal(classes(png(blurred), PixelForm("binary")), [[0, 1, 1], [1, 1, 1]])
    block = np.zeros((32, 32), dtype=np.uint8)
    block[8:24, 8:24] = 255
    for array in (block, np.dstack([block] * 3)):
        jpeg = other(array, "JPEG", quality=60)
        np.testing.assert_array_equal(classes(jpeg, PixelForm("binary")), block // 255)
        assert kind_of([decode_raw(jpeg)]) == "binary"
    for form in (PixelForm("indices", 3), PixelForm("colours", 3, TABLE), PixelForm("labels")):
        with pytest.raises(ValueError, match="a JPEG's"):
            classes(jpeg, form)


REFUSED = [
    (png(TRUTH), PixelForm("indices", 2), "3 pixels, the first at row 0, column 2, have the values 2, but"),
    (png(TRUTH), PixelForm("indices", 2, void=7), "have the values 2, but mask.classes=2, so that a class is 0 to 1"),
    (png(TRUTH), PixelForm("indices", 2, (0, 1)), "have the values 2, but mask.table"),
    (png(coloured()), PixelForm("indices", 3), "coloured, but mask.kind=indices; see mask.kind=colours"),
    (png(coloured()), PixelForm("colours", 2, TABLE[:2]), r"3 pixels, .* row 0, column 2, .* \(0,128,64\), but"),
    (png(TRUTH.astype(np.uint16) * 300), PixelForm("colours", 3, TABLE), "no colours of 8 bits"),
    (npy(TRUTH.astype(np.int64) - 1), PixelForm("indices", 3), "have the values -1"),
    (npy(TRUTH.astype(np.int64) - 1), PixelForm("labels"), "labels of -1 to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "form", "message"), REFUSED)
def test_values_outside_of_the_form_say_which_and_where(data: bytes, form: PixelForm, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classes(data, form)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (png(TRUTH)[:-9], "cut short"),
        (png(TRUTH)[:8], "cut short"),
        (with_palette(TRUTH)[:-30], r"\w"),
        (b"id,mask\n1,2\n", "not a known image format"),
        (b"\x93NUMPY\1\0", "damaged"),
        (npy(TRUTH / 2), "no whole numbers"),
        (npy(np.array([[np.nan, 1.0]])), "no whole numbers"),
        (npy(np.array([[np.inf, 1.0]])), "no whole numbers"),
        (npy(np.array([["a"]])), "no whole numbers"),
        (npy(np.array([[None]], dtype=object)), "damaged"),
        (npy(np.zeros((2, 2, 2, 2))), "is no mask"),
        (npy(np.zeros(4)), "is no mask"),
        (png(np.dstack([np.full_like(TRUTH, 255)] * 3 + [TRUTH])), "transparency alone"),
    ],
)
def test_damaged_files(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_raw(data)


@pytest.mark.parametrize("data", [png(TRUTH), with_palette(TRUTH), npy(TRUTH), other(TRUTH, "TIFF")])
def test_files_above_the_limit_are_not_decoded(data: bytes) -> None:
    assert decode_raw(data, 12).values.shape == (3, 4)
    with pytest.raises(ValueError, match=r"data\.megapixels"):
        decode_raw(data, 11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelForm("indexes"), "mask.kind=indexes; allowed: .*; did you mean indices"),
        (lambda: PixelForm("binary", missing="void"), "mask.missing=void"),
        (lambda: PixelForm("indices", 300), "mask.classes=300; allowed: 2 to 255"),
        (lambda: PixelForm("colours", 3), "needs mask.table"),
        (lambda: PixelForm("colours", 2, TABLE), "3 entries, but mask.classes=2"),
        (lambda: PixelForm("indices", 2, (0, 5), void=5), "name a value twice"),
        (lambda: RleForm(rows="images"), "mask.rows=images; .*; did you mean image"),
        (lambda: RleForm(order="colum"), "mask.order=colum; .*; did you mean column"),
        (lambda: RleForm(overlap="none"), "mask.overlap=none"),
        (lambda: RleForm(missing="zero"), "mask.missing=zero"),
        (lambda: RleForm(base=2), "mask.base=2"),
        (lambda: RleForm(starts="relativ"), "mask.starts=relativ; .*; did you mean relative"),
        (lambda: RleForm(rows="class"), "needs mask.classes"),
        (lambda: RleForm(classes=("a",)), "mask.rows=image has one class"),
        (lambda: RleForm(rows="class", classes=("a", "b"), void="b"), "name a class twice: b"),
        (lambda: RleForm(rows="class", classes=tuple(map(str, range(255)))), "254 at most"),
    ],
)
def test_forms_are_checked_when_they_are_made(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# --- which kind a sample is ---------------------------------------------------------------------------------------


def raws(*arrays: Any) -> list[Raw]:
    return [Raw(np.array(array, dtype=np.uint8).reshape(1, -1)) for array in arrays]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (raws([0, 0], [0, 0]), PixelForm("binary")),
        (raws([0, 255], [0, 1], [0, 0], [255, 255]), PixelForm("binary")),
        (raws([0, 128], [128, 128]), PixelForm("binary")),
        (raws([0, 1, 255]), PixelForm("indices", 2, void=255)),
        (raws([0, 1], [0, 2]), PixelForm("indices", 3)),
        (raws([1, 2, 3]), PixelForm("indices", 4)),
        (raws([1, 2]), PixelForm("indices", 3)),
        (raws([0, 7, 21], [0, 255], [3, 8]), PixelForm("indices", 22, void=255)),
        (raws([0, 50, 100, 150]), PixelForm("colours", 4, (0, 50, 100, 150))),
        (raws([0, 128, 255]), PixelForm("colours", 3, (0, 128, 255))),
        (raws(list(range(151)), [0, 5]), PixelForm("indices", 151)),
        ([Raw(coloured())], PixelForm("colours", 3, TABLE)),
        ([Raw(coloured()), Raw(np.zeros((3, 4), dtype=np.uint8))], PixelForm("colours", 3, TABLE)),
        (
            [decode_raw(with_palette(TRUTH)), decode_raw(with_palette(2 - TRUTH, TABLE[::-1]))],
            PixelForm("colours", 3, TABLE),
        ),
        ([decode_raw(with_palette(TRUTH * 40, RNG.integers(0, 256, (256, 3))))], PixelForm("indices", 81)),
    ],
)
def test_kinds_are_recognised(sample: list[Raw], expected: PixelForm) -> None:
    assert form_of(sample) == expected
    assert kind_of(sample) == expected.kind
    for raw in sample:
        assert to_classes(raw, expected).shape == raw.values.shape[:2]


def test_blurred_black_and_white_is_binary_and_photographs_are_refused() -> None:
    soft = np.zeros((64, 64), dtype=np.uint8)
    soft[20:40, 20:40], soft[19, 20:40] = 255, np.linspace(1, 250, 20)
    assert form_of([Raw(soft)]) == PixelForm("binary", on=128)
    with pytest.raises(UserError, match="photographs"):
        form_of([Raw(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))])
    with pytest.raises(UserError, match="photographs"):
        form_of([Raw(RNG.integers(0, 256, (64, 64), dtype=np.uint8), lossy=True)])
    with pytest.raises(UserError, match=r"300 values, .* see mask.kind=labels"):
        form_of([Raw(np.arange(300, dtype=np.uint16).reshape(10, 30))])
    with pytest.raises(UserError, match="no masks to look at"):
        kind_of([])


def test_many_classes_and_void_are_not_taken_for_blurred_black_and_white() -> None:
    streets = np.zeros((64, 64), dtype=np.uint8)
    streets[0, :34], streets[1:20] = np.arange(34), 255
    assert form_of([Raw(streets)]) == PixelForm("indices", 34, void=255)
    rooms = np.zeros((64, 64), dtype=np.uint8)
    rooms[0, :40], rooms[1] = np.arange(40) * 3, 255
    busy = RNG.integers(0, 120, (64, 64), dtype=np.uint8)
    assert form_of([Raw(rooms), Raw(busy)]) == PixelForm("indices", 120, void=255)
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    black[0, :30] = RNG.integers(1, 255, (30, 3))
    assert form_of([Raw(black)]).kind == "colours"
    assert form_of([Raw(black)]).classes == 31


def test_a_palette_of_greys_is_none() -> None:
    ramp = np.repeat(np.arange(256)[:, None], 3, axis=1)
    data = with_palette(np.array([0, 128, 255], dtype=np.uint8)[TRUTH], ramp)
    assert form_of([decode_raw(data)]) == PixelForm("colours", 3, (0, 128, 255))


def test_only_the_first_files_are_looked_at() -> None:
    def sample() -> Any:
        yield from raws(*[[0, 1]] * 50)
        raise AssertionError("a file too many")

    assert kind_of(sample()) == "binary"
    assert kind_of([*raws(*[[0, 1]] * 49), Raw(coloured())]) == "colours"


# --- masks of images, from files ----------------------------------------------------------------------------------


def test_files_and_zips_give_classes_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(TRUTH))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("masks/b.png", with_palette(TRUTH[::-1]))
    found = MaskFiles(
        tmp_path, ["a.png", "b.zip/masks/b.png", ""], PixelForm("indices", 3, missing="empty"), [(3, 4)] * 3
    )
    assert len(found) == 3
    for row, expected in enumerate((TRUTH, TRUTH[::-1], np.zeros((3, 4)))):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).take(row), expected)


def test_one_file_a_class_gives_bits(tmp_path: Path) -> None:
    for place in (1, 2):
        (tmp_path / f"{place}.png").write_bytes(png((place == TRUTH).astype(np.uint8) * np.uint8(255)))
    form = PixelForm("binary", missing="empty")
    found = MaskFiles(tmp_path, ["", JOIN.join(["1.png", "2.png"])], form, [(5, 6), (3, 4)])
    np.testing.assert_array_equal(found.take(1), [TRUTH == 1, TRUTH == 2])
    assert found.take(0).shape == (2, 5, 6)
    assert not found.take(0).any()
    with pytest.raises(UserError, match="one mask file a class needs mask.kind=binary"):
        MaskFiles(tmp_path, [JOIN.join(["1.png", "2.png"])], PixelForm("indices", 3))
    with pytest.raises(UserError, match="images have 1, 2 mask files"):
        MaskFiles(tmp_path, ["1.png", JOIN.join(["1.png", "2.png"])], PixelForm("binary"))
    with pytest.raises(UserError, match=r"data\.box"):
        MaskFiles(tmp_path, [f"1.png{BOX}0,0,2,2"], PixelForm("binary"))
    (tmp_path / "2.png").write_bytes(png(TRUTH[:2]))
    with pytest.raises(UserError, match=r"1.png \+ 2.png: masks of one image differ in size: 4×3, 4×2"):
        MaskFiles(tmp_path, [JOIN.join(["1.png", "2.png"])], PixelForm("binary")).take(0)


def test_what_is_wrong_with_a_mask_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(TRUTH))
    (tmp_path / "cut.png").write_bytes(png(TRUTH)[:-5])
    form = PixelForm("indices", 3)
    with pytest.raises(UserError, match=r"a\.png: a mask of 4×3, but its image is 4×5; correct one"):
        MaskFiles(tmp_path, ["a.png"], form, [(5, 4)]).take(0)
    with pytest.raises(UserError, match=r"a\.png: 3 pixels, .* values 2, but mask.*; correct the mask, or mask.kind"):
        MaskFiles(tmp_path, ["a.png"], PixelForm("indices", 2)).take(0)
    with pytest.raises(UserError, match=r"cut\.png: cut short; mend the mask"):
        MaskFiles(tmp_path, ["cut.png"], form).take(0)
    with pytest.raises(UserError, match=r"b\.png: missing; mend the mask"):
        MaskFiles(tmp_path, ["b.png"], form).take(0)
    with pytest.raises(BrokenImage, match="missing"):
        read_raw(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"2 of 3 images have no mask file, in rows 0, 2; give mask.missing=empty"):
        MaskFiles(tmp_path, ["", "a.png", ""], form, [(3, 4)] * 3)


# --- sizes --------------------------------------------------------------------------------------------------------


def test_sizes_come_from_headers(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "b.jpg")
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(image).save(tmp_path / "c.tif")
    np.save(tmp_path / "d.npy", image)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    (tmp_path / "head.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    Image.fromarray(image).save(tmp_path / "turned.tif", exif=turned)
    expected = {
        "a.png": (12, 20), "b.jpg": (12, 20), "turned.jpg": (20, 12), "c.tif": (12, 20), "d.npy": (12, 20),
        "turned.tif": (20, 12),
        "z.zip/a.png": (12, 20), f"a.png{JOIN}b.jpg": (12, 20), f"a.png{BOX}2,1,9,5": (4, 7), "head.png": (12, 20),
    }  # fmt: skip
    for spec, size in expected.items():
        assert size_of(spec, tmp_path) == size, spec
    sizes = HeaderSizes(tmp_path, list(expected))
    assert [sizes[row] for row in range(len(expected))] == list(expected.values())
    (tmp_path / "stub.png").write_bytes((tmp_path / "a.png").read_bytes()[:12])
    with pytest.raises(BrokenImage, match="cut short"):
        size_of("stub.png", tmp_path)
    (tmp_path / "a.png").unlink()
    assert sizes[0] == (12, 20)
    with pytest.raises(UserError, match="the size of a mask is its image's, but .*a.png: missing; mend"):
        HeaderSizes(tmp_path, ["a.png"])[0]


# --- masks of images, from a csv ----------------------------------------------------------------------------------

A = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=np.uint8)
B = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=np.uint8)
AB = np.stack([A, B])
SIZE = [(3, 4)] * 9


def csv(header: str, *rows: str) -> pd.DataFrame:
    names = header.split(",")
    return pd.DataFrame([row.split(",") for row in rows], columns=names, dtype=str)


@pytest.mark.parametrize(("order", "base"), [("column", 1), ("row", 1), ("column", 0), ("row", 0)])
def test_one_row_an_image(order: str, base: int) -> None:
    texts = [rle.encode(mask, order=order, base=base) for mask in (A, B)]
    table = csv("ImageId,EncodedPixels", f"b,{texts[1]}", f"a,{texts[0]}", "c,-1")
    form = RleForm(order=order, base=base)
    found = mask_table(table, form, ["a", "b", "c"], SIZE)
    for row, mask in enumerate((A, B, A * 0)):
        np.testing.assert_array_equal(found.take(row), mask)
        assert found.take(row).dtype == np.uint8
        np.testing.assert_array_equal(found.bits(row), mask[None])
        assert found.areas(row).tolist() == [mask.sum()]
    assert found.counts().tolist() == [[1], [1], [0]]
    assert image_ids(table, form) == ["b", "a", "c"]
    assert isinstance(pickle.loads(pickle.dumps(found)), MaskTable)


def test_one_row_a_class_with_joined_ids_and_with_two_columns() -> None:
    texts = [rle.encode(A), "", "", rle.encode(B)]
    names = ("large_bowel", "bowel")
    joined = csv(
        "id,rle",
        f"x_1.jpg_large_bowel,{texts[0]}", f"x_1.jpg_bowel,{texts[1]}",
        f"y.jpg_large_bowel,{texts[2]}", f"y.jpg_bowel,{texts[3]}",
    )  # fmt: skip
    two = csv(
        "id,class,rle",
        f"x_1.jpg,large_bowel,{texts[0]}", f"x_1.jpg,bowel,{texts[1]}",
        f"y.jpg,large_bowel,{texts[2]}", f"y.jpg,bowel,{texts[3]}",
    )  # fmt: skip
    for table, column in ((joined, ""), (two, "class")):
        form = RleForm("id", "rle", "class", names, column)
        assert image_ids(table, form) == ["x_1.jpg", "y.jpg"]
        found = mask_table(table, form, ["y.jpg", "x_1.jpg"], SIZE)
        np.testing.assert_array_equal(found.take(1), np.stack([A, A * 0]))
        np.testing.assert_array_equal(found.take(0), np.stack([A * 0, B]))
        assert found.counts().tolist() == [[0, 1], [1, 0]]


def test_exclusive_classes_are_indices() -> None:
    rows = [f"x,1,{rle.encode(A)}", f"x,2,{rle.encode(B)}", "y,1,", "y,2,nan"]
    form = RleForm("id", "rle", "class", ("1", "2"), "class", exclusive=True)
    found = mask_table(csv("id,class,rle", *rows), form, ["x", "y"], SIZE)
    np.testing.assert_array_equal(found.take(0), A + 2 * B)
    assert not found.take(1).any()
    clash = csv("id,class,rle", f"x,1,{rle.encode(A)}", "x,2,1 2")
    message = (
        "the training table, image x .classes 1, 2.: objects 1 and 2 of 2 overlap at row 0, column 0; .* mask.overlap"
    )
    with pytest.raises(UserError, match=message):
        mask_table(clash, form, ["x"], SIZE).take(0)
    first = RleForm("id", "rle", "class", ("1", "2"), "class", exclusive=True, overlap="first")
    expected = A.copy()
    expected[1, 0] = 2
    np.testing.assert_array_equal(mask_table(clash, first, ["x"], SIZE).take(0), expected)
    bits = RleForm("id", "rle", "class", ("1", "2"), "class")
    np.testing.assert_array_equal(mask_table(clash, bits, ["x"], SIZE).take(0).sum(axis=(1, 2)), [3, 2])


def test_one_row_an_object_with_and_without_classes() -> None:
    rows = [f"x,cell,{rle.encode(A)}", "y,cell,", f"x,dot,{rle.encode(B)}", "x,cell,5 1"]
    table = csv("id,kind,rle", *rows)
    labels = A.astype(np.int32) + 2 * B
    labels[1, 1] = 3
    plain = mask_table(table, RleForm("id", "rle", "object"), ["x", "y"], SIZE)
    np.testing.assert_array_equal(plain.take(0), labels)
    assert plain.take(0).dtype == np.int32
    assert plain.rows_of(0).tolist() == [0, 2, 3]
    np.testing.assert_array_equal(plain.bits(0), (labels > 0)[None])
    np.testing.assert_array_equal(plain.indices(0), labels > 0)
    assert not plain.take(1).any()
    assert plain.object_classes(1).tolist() == []
    kinds = mask_table(table, RleForm("id", "rle", "object", ("dot", "cell"), "kind"), ["x", "y"], SIZE)
    assert kinds.object_classes(0).tolist() == [1, 0, 1]
    np.testing.assert_array_equal(kinds.take(0), labels)
    np.testing.assert_array_equal(kinds.bits(0), [labels == 2, (labels == 1) | (labels == 3)])
    np.testing.assert_array_equal(kinds.indices(0), np.array([0, 2, 1, 2])[labels])
    assert kinds.counts().tolist() == [[1, 2], [0, 0]]
    assert kinds.areas(0).tolist() == [3, 4]


def test_a_void_class_counts_nowhere() -> None:
    rows = [f"x,cell,{rle.encode(A)}", "x,ignore,1 2", f"x,cell,{rle.encode(B)}"]
    hole = rle.decode("1 2", 3, 4).astype(bool)
    table = csv("id,kind,rle", *rows)
    objects = RleForm("id", "rle", "object", ("cell",), "kind", void="ignore")
    found = mask_table(table, objects, ["x"], SIZE)
    np.testing.assert_array_equal(found.take(0), np.where(hole, VOID_LABEL, A.astype(int) + 2 * B))
    np.testing.assert_array_equal(found.bits(0)[0], np.where(hole, VOID, A | B))
    np.testing.assert_array_equal(found.indices(0), np.where(hole, VOID, A | B))
    assert found.object_classes(0).tolist() == [0, 0]
    assert found.counts().tolist() == [[2]]
    nameless = RleForm("id", "rle", "object", (), "kind", void="ignore")
    np.testing.assert_array_equal(mask_table(table, nameless, ["x"], SIZE).take(0), found.take(0))


def test_an_image_without_a_row_is_empty_or_missing_by_key() -> None:
    table = csv("ImageId,EncodedPixels", f"a,{rle.encode(A)}", "other,1 1")
    with pytest.raises(UserError, match=r"has no row for 1 of 2 images: b; give mask.missing=empty if that"):
        mask_table(table, RleForm(), ["a", "b"], SIZE)
    for form in (RleForm(missing="empty"), RleForm(rows="object", missing="empty")):
        found = mask_table(table, form, ["a", "b"], SIZE)
        np.testing.assert_array_equal(found.take(0), A)
        assert not found.take(1).any()


def test_ids_with_and_without_suffix() -> None:
    table = csv("ImageId,EncodedPixels", f"a.png,{rle.encode(A)}", f"b,{rle.encode(B)}")
    found = mask_table(table, RleForm(), ["a", "b.jpg"], SIZE)
    np.testing.assert_array_equal(found.take(0), A)
    np.testing.assert_array_equal(found.take(1), B)
    both = csv("ImageId,EncodedPixels", f"a.png,{rle.encode(A)}", f"a.jpg,{rle.encode(B)}")
    with pytest.raises(UserError, match="no row for 1 of 1 images: a"):
        mask_table(both, RleForm(), ["a"], SIZE)
    with pytest.raises(UserError, match="1 images are asked for twice: a"):
        mask_table(table, RleForm(), ["a", "a"], SIZE)


def test_an_rle_of_a_damaged_row_is_named_when_it_is_taken() -> None:
    table = csv("ImageId,EncodedPixels", f"a,{rle.encode(A)}", "b,1 2 3", "c,12 9", "d,0 3")
    found = mask_table(table, RleForm(), ["a", "b", "c", "d"], SIZE, "train.csv")
    np.testing.assert_array_equal(found.take(0), A)
    with pytest.raises(UserError, match=r"train.csv, line 3, image b .4×3 pixels.: 3 numbers, .*; correct the row"):
        found.take(1)
    with pytest.raises(UserError, match=r"train.csv, line 4, image c .4×3 pixels.: run 1 of 1 .* ends 8 pixels after"):
        found.take(2)
    with pytest.raises(UserError, match=r"line 5, image d .* begins before the image, .*mask.base"):
        found.take(3)
    clash = csv("ImageId,EncodedPixels", "a,1 4", "a,2 1")
    with pytest.raises(UserError, match="train.csv, image a: objects 1 and 2 of 2 overlap at row 1, column 0"):
        mask_table(clash, RleForm(rows="object"), ["a"], SIZE, "train.csv").take(0)


def test_wrong_tables_are_refused_at_once() -> None:
    table = csv("id,kind,rle", "x,a,1 1", "x,a,2 1", "x,c,3 1")
    with pytest.raises(UserError, match=r"has no column 'ImageId' .mask.id."):
        mask_table(table, RleForm(), ["x"], SIZE)
    with pytest.raises(UserError, match=r"no column 'rel' .mask.rle.; .* did you mean rle"):
        mask_table(table, RleForm("id", "rel"), ["x"], SIZE)
    with pytest.raises(UserError, match=r"1 classes that mask.classes lacks: 'c'; it has a, b"):
        image_ids(table, RleForm("id", "rle", "class", ("a", "b"), "kind"))
    with pytest.raises(UserError, match=r"1 rows repeat an image and class: x; .* mask.rows=object"):
        mask_table(table, RleForm("id", "rle", "class", ("a", "c"), "kind"), ["x"], SIZE)
    with pytest.raises(UserError, match=r"2 rows repeat an image: x, x; leave one row"):
        mask_table(table, RleForm("id", "rle"), ["x"], SIZE)
    with pytest.raises(UserError, match=r"1 classes that mask.classes lacks: 'x'"):
        image_ids(csv("id,rle", "x,1 1"), RleForm("id", "rle", "class", ("a",)))


# --- which form a csv has -----------------------------------------------------------------------------------------


def test_the_form_of_a_csv_is_recognised() -> None:
    images = [f"i_{number}.jpg" for number in range(6)]
    assert rle_form_of(csv("img,rle_mask", *(f"{one},1 2" for one in images))) == RleForm("img", "rle_mask")
    joined = csv("Image_Label,EncodedPixels", *(f"{one}_{name},{'3 4 9 1' if name == 'Fish' else ''}"
                 for one in images for name in ("Fish", "Sugar")))  # fmt: skip
    form = rle_form_of(joined)
    assert form == RleForm("Image_Label", "EncodedPixels", "class", ("Fish", "Sugar"))
    assert image_ids(joined, form) == images
    assert rle_form_of(joined, joined["Image_Label"]) == RleForm("Image_Label", "EncodedPixels")
    two = csv("id,ClassId,rle", *(f"{one},{name},1 1" for one in images for name in (10, 2)))
    assert rle_form_of(two) == RleForm("id", "rle", "class", ("2", "10"), "ClassId")
    objects = csv("ImageId,width,EncodedPixels", *(f"{one},4,{k} 1" for one in images for k in (1, 2, 3)))
    assert rle_form_of(objects) == RleForm(rows="object")
    assert rle_form_of(csv("id,label", "a,1", "b,2")) is None
    assert rle_form_of(csv("id,label", "a,cat dog", "b,dog")) is None
    assert rle_form_of(csv("id,rle", "a,", "b,-1")) is None
    assert rle_form_of(csv("rle", "1 2", "3 4")) is None


# --- a real competition -------------------------------------------------------------------------------------------


@pytest.fixture
def nuclei() -> Path:
    folder = Path(os.environ.get("KAGGLE_DATA", "absent")) / "dsb2018_nuclei"
    if not (folder / "train.csv").is_file():
        pytest.skip("KAGGLE_DATA names no folder with dsb2018_nuclei in it")
    return folder


def test_the_nuclei_of_dsb2018(nuclei: Path) -> None:
    table = read_table(nuclei / "train.csv")
    form = rle_form_of(table)
    assert form == RleForm(rows="object")
    ids = image_ids(table, form)
    assert len(ids) == 97
    sizes = HeaderSizes(nuclei, [f"train_images/{one}.png" for one in ids])
    found = mask_table(table, form, ids, sizes, "train.csv")
    assert found.counts().sum() == len(table)
    for row in range(len(ids)):
        labels = found.take(row)  # no two nuclei overlap
        assert labels.shape == sizes[row] == size_of(f"train_images/{ids[row]}.png", nuclei)
        own = found.rows_of(row)
        assert rle.encode_instances(labels) == table["EncodedPixels"].iloc[own].tolist()
        assert found.areas(row)[0] == (labels > 0).sum() == rle.areas(table["EncodedPixels"].iloc[own].tolist()).sum()


def test_a_nucleus_lies_where_its_image_is_unlike_the_ground(nuclei: Path) -> None:
    """The order and the base are right: shifted or turned masks fit the pictures worse."""
    from pipeline import images

    table = read_table(nuclei / "train.csv")
    right, wrong = [], []
    for row, one in enumerate(image_ids(table, RleForm(rows="object"))[:20]):
        grey = images.read(f"train_images/{one}.png", nuclei, channels=1)[..., 0].astype(float)
        for order, scores in (("column", right), ("row", wrong)):
            form = RleForm(rows="object", order=order)
            inside = mask_table(table, form, [one], [grey.shape]).take(0) > 0
            scores.append(abs(grey[inside].mean() - grey[~inside].mean()) / (grey.std() + 1))
        assert right[row] > wrong[row]
