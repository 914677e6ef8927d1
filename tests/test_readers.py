"""Readers: numpy arrays, tiffs of any kind, DICOM, and what of them is broken; each is chosen by content."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline import pictures, registry
from pipeline.errors import UserError
from pipeline.images import BrokenImage, decode, look, read

LIMIT = 10**6
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as pictures.pillow does outside of tests


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def reader(call: str = "auto") -> Any:
    return lambda data, limit=LIMIT: registry.build("readers", call)(data, "a/file", limit)


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


# --- all readers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(registry.parts("readers")))
@pytest.mark.parametrize(
    "data", [b"", b"id,label\n1,2\n", b"\x93NUMPY", b"II*\0", b"MM\0*\0\0\0\x08", b"\0" * 200, b"PK\3\4"]
)
def test_bytes_that_are_no_image_are_a_value_error(name: str, data: bytes) -> None:
    if name == "dicom":
        pytest.importorskip("pydicom")
    with pytest.raises(ValueError, match=r"\w"):
        reader(name)(data)


@pytest.mark.parametrize("name", ["auto", "picture"])
@pytest.mark.parametrize("pixels", [noise(9, 7), noise(9, 7, 3)])
def test_pictures_are_red_first(name: str, pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(reader(name)(png(pixels)), pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    np.testing.assert_array_equal(reader(name)(buffer.getvalue()), pixels)


@pytest.mark.parametrize(
    "data", [npy(noise(9, 7)), tiff(noise(9, 7)), tiff(noise(9, 7, 6), planarconfig="contig"), png(noise(9, 7))]
)
def test_every_reader_refuses_more_pixels_than_the_limit(data: bytes) -> None:
    assert reader()(data, 63).shape[:2] == (9, 7)
    with pytest.raises(ValueError, match=r"7×9 pixels.*data\.megapixels"):
        reader()(data, 62)


# --- numpy arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        ((9, 7), "auto", (9, 7)),
        ((9, 7, 3), "auto", (9, 7, 3)),
        ((3, 9, 7), "auto", (9, 7, 3)),
        ((6, 6, 6), "auto", (6, 6, 6)),
        ((1, 9, 7), "auto", (9, 7, 1)),
        ((1, 3, 9, 7), "auto", (9, 7, 3)),
        ((9, 7, 12), "hwc", (9, 7, 12)),
        ((9, 7, 12), "chw", (7, 12, 9)),
    ],
)
def test_arrays_of_every_layout(shape: tuple[int, ...], layout: str, wanted: tuple[int, ...]) -> None:
    array = noise(*shape)
    found = reader(f"npy(layout={layout!r})")(npy(array))
    assert found.shape == wanted
    assert sorted(found.ravel().tolist()) == sorted(array.ravel().tolist())
    np.testing.assert_array_equal(reader(f"npy(layout={layout!r})")(npy(np.asfortranarray(array))), found)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([[0, 1, 2, 255]], np.uint8), [0, 1, 2, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 100, 255]], np.int64), [0, 100, 255]),
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 0.25]], np.float16), [0, 64]),  # not stretched: 0…1 is a usual range
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-1000, 0, 1000]], np.int16), [0, 128, 255]),
        (np.array([[np.nan, 10.0, np.inf, 30.0]]), [0, 0, 255, 255]),
        (np.array([[7.5, 7.5]]), [0, 0]),
    ],
)
def test_values_of_other_ranges_become_eight_bits(array: np.ndarray, wanted: list[int]) -> None:
    found = reader("npy")(npy(array))
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == wanted


def test_a_given_range_holds_for_every_image() -> None:
    found = reader("npy(low=-10, high=10.0)")(npy(np.array([[-20, -10, 0, 10, 99]], np.int32)))
    assert found.ravel().tolist() == [0, 0, 128, 255, 255]
    assert reader("npy(high=4095)")(npy(np.array([[0, 4095]], np.uint16))).ravel().tolist() == [0, 255]
    deep = reader("npy")(npy(np.array([[0, 4095]], np.uint16)))
    assert (deep.dtype, deep.ravel().tolist()) == (np.uint16, [0, 4095])


@pytest.mark.parametrize("form", [npy, tiff, png])
def test_tanh_squashes_raw_values_alike_in_every_file(form: Any) -> None:
    counts = np.array([[0, 500, 1000, 3000, 65535]], np.uint16)
    found = reader("tanh(c=1000)")(form(counts))
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [0, 118, 194, 254, 255]


def test_tanh_of_values_with_a_sign_has_zero_in_the_middle() -> None:
    values = np.array([[-np.inf, -2.0, 0.0, 2.0, 1e9, np.nan]], np.float32)
    assert reader("tanh(c=2)")(npy(values)).ravel().tolist() == [0, 30, 128, 225, 255, 0]
    assert reader("tanh(c=2, low=0.0)")(npy(values)).ravel().tolist() == [0, 0, 0, 194, 255, 0]
    assert reader("tanh(c=2, low=-2)")(npy(values)).ravel().tolist() == [0, 0, 194, 246, 255, 0]
    with pytest.raises(ValueError, match="no pixel is a number"):
        reader("tanh")(npy(np.full((2, 2), np.nan)))
    with pytest.raises(ValueError, match=r"data.reader=dicom"):
        reader("tanh")(b"\0" * 128 + b"DICM" + b"\0" * 50)


def test_tanh_reads_raw_pictures_of_sixteen_bits_into_the_cache(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.full((9, 9), 1000, np.uint16)))
    assert decode("a.png", 1, 9, "stretch", folder=tmp_path).max() == 4
    assert decode("a.png", 1, 9, "stretch", folder=tmp_path, reader="tanh(c=1000.0)").min() == 194


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([[Trap()]], dtype=object), allow_pickle=True), "Python objects"),
        (npy(noise(30, 30))[:-1], "cut short"),
        (npy(noise(30, 30))[:40], "damaged|not enough|EOF"),
        (npy(noise(30)), r"shape \(30,\) is no image"),
        (npy(noise(2, 3, 4, 5)), "is no image"),
        (npy(noise(0, 30)), "is no image"),
        (npy(noise(70, 71, 72)), "more than 64 channels"),
        (npy(np.full((3, 3), np.nan)), "no pixel is a number"),
        (npy(np.array([["a", "b"]])), "<U1 values are no pixels"),
        (npy(np.ones((2, 2), complex)), "complex128 values are no pixels"),
    ],
)
def test_arrays_that_are_no_image(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(BrokenImage, match=reason):
        decode(tmp_path / "a.npy", 1, 8, "stretch")


def test_an_array_that_claims_to_be_huge_costs_nothing() -> None:
    header = npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1), }        ", b"(9999999, 99999)}")
    with pytest.raises(ValueError, match="cut short"):
        reader()(header)


def test_an_array_in_the_cache(tmp_path: Path) -> None:
    array = noise(24, 24, 5)
    np.save(tmp_path / "a.npy", array)
    assert decode(tmp_path / "a.npy", 5, 12, "stretch").shape == (12, 12, 5)
    np.testing.assert_array_equal(read("a.npy", tmp_path, channels=5), array)
    np.testing.assert_array_equal(read("a.npy", tmp_path, reader="npy(layout='hwc')"), array)


# --- tiff ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_grey_pages_become_channels(dtype: type, count: int) -> None:
    pages = noise(count, 9, 7).astype(dtype) * (dtype(1) if dtype != np.float32 else np.float32(1 / 255))
    found = reader()(tiff(pages))
    wanted = np.rint(pages * 255) if dtype == np.float32 else pages
    np.testing.assert_array_equal(found, np.moveaxis(wanted, 0, 2))
    np.testing.assert_array_equal(reader("tiff(pages='first')")(tiff(pages)), wanted[0])


@pytest.mark.parametrize("count", [2, 4, 6, 13])
@pytest.mark.parametrize("config", ["contig", "separate"])
def test_samples_become_channels(count: int, config: str) -> None:
    array = noise(9, 7, count)
    data = tiff(array if config == "contig" else np.moveaxis(array, 2, 0).copy(), planarconfig=config)
    np.testing.assert_array_equal(reader()(data), array)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_of_any_depth(compression: str | None) -> None:
    array = noise(9, 7, 3)
    found = reader()(tiff(array.astype(np.float32) / 255, photometric="rgb", compression=compression))
    np.testing.assert_array_equal(found, array)
    found = reader()(tiff(array.astype(np.uint16) * 257, photometric="rgb", compression=compression))
    np.testing.assert_array_equal(found, array)


def test_coloured_pages_and_pages_of_other_sizes_leave_the_first() -> None:
    colours = noise(2, 9, 7, 3)
    np.testing.assert_array_equal(reader()(tiff(colours, photometric="rgb")), colours[0])
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as out:
        out.write(noise(9, 7))
        out.write(noise(4, 3))
    np.testing.assert_array_equal(reader()(buffer.getvalue()), noise(9, 7))


def test_too_many_pages_name_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"65 pages, but 64.*data\.reader=tiff"):
        reader()(tiff(noise(65, 4, 4)))
    assert reader("tiff(pages='first')")(tiff(noise(65, 4, 4))).shape == (4, 4)


@pytest.mark.parametrize("call", ["auto()", "tiff()"])
def test_compressed_tiffs(tmp_path: Path, call: str) -> None:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        Image.fromarray(noise(9, 7, 3)).save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(read("a.tif", tmp_path, reader=call), noise(9, 7, 3))
    pages = [Image.fromarray(noise(9, 7, seed=seed)) for seed in range(4)]
    pages[0].save(tmp_path / "a.tif", compression="tiff_lzw", save_all=True, append_images=pages[1:])
    assert look("a.tif", tmp_path, reader=call).channels == 4


def test_a_tiff_with_many_channels_that_is_cut_short() -> None:
    data = tiff(noise(60, 70, 6), planarconfig="contig")
    for length in (20, 200, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="cut short|no whole tiff|damaged"):
            reader()(data[:length])


def test_a_tiff_range_is_given_by_hand() -> None:
    found = reader("tiff(low=100, high=300)")(tiff(np.array([[50, 100, 200, 300]], np.uint16)))
    assert found.ravel().tolist() == [0, 0, 128, 255]


# --- DICOM --------------------------------------------------------------------------------------------------------


def dicom(pixels: np.ndarray, **facts: Any) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    content = pydicom.Dataset()
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    content.file_meta.MediaStorageSOPClassUID = content.SOPClassUID = pydicom.uid.CTImageStorage
    content.file_meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID = "1.2.3"
    content.Rows, content.Columns = pixels.shape[-2:] if pixels.shape[-1] != 3 else pixels.shape[:2]
    content.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    if pixels.shape[-1] == 3:
        content.PlanarConfiguration = 0
    content.PhotometricInterpretation = "RGB" if pixels.shape[-1] == 3 else "MONOCHROME2"
    content.BitsAllocated = content.BitsStored = 8 * pixels.dtype.itemsize
    content.HighBit = content.BitsStored - 1
    content.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3 and pixels.shape[-1] != 3:
        content.NumberOfFrames = len(pixels)
    content.PixelData = pixels.tobytes()
    for key, value in facts.items():
        setattr(content, key, value)
    buffer = io.BytesIO()
    content.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def slow_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2, word by word, for an output of 0 to 255."""
    result = np.empty(values.shape)
    for place, x in np.ndenumerate(values.astype(float)):
        if x <= centre - 0.5 - (width - 1) / 2:
            result[place] = 0
        elif x > centre - 0.5 + (width - 1) / 2:
            result[place] = 255
        else:
            result[place] = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return result


HOUNSFIELD = np.random.default_rng(0).integers(0, 2000, (8, 10)).astype(np.int16)


def test_a_dicom_is_seen_through_its_window(tmp_path: Path) -> None:
    data = dicom(HOUNSFIELD, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 99], WindowWidth=[400, 1])
    found = reader()(data)
    assert found.dtype == np.uint8
    assert np.abs(found - slow_window(HOUNSFIELD * 2.0 - 1024, 40, 400)).max() <= 0.5
    found = reader("dicom(centre=300, width=1500)")(data)
    assert np.abs(found - slow_window(HOUNSFIELD * 2.0 - 1024, 300, 1500)).max() <= 0.5
    (tmp_path / "a.dcm").write_bytes(data)
    assert decode(tmp_path / "a.dcm", 3, 8, "stretch").shape == (8, 8, 3)


def test_a_dicom_without_window_and_one_that_is_inverted() -> None:
    plain = reader()(dicom(HOUNSFIELD))
    assert (plain.min(), plain.max()) == (0, 255)
    np.testing.assert_array_equal(reader()(dicom(HOUNSFIELD, PhotometricInterpretation="MONOCHROME1")), 255 - plain)


def test_a_dicom_of_colours_frames_and_one_cut_short() -> None:
    np.testing.assert_array_equal(reader()(dicom(noise(8, 10, 3))), noise(8, 10, 3))
    assert reader()(dicom(noise(5, 8, 10))).shape == (8, 10, 5)
    with pytest.raises(ValueError, match="damaged|expected"):
        reader()(dicom(HOUNSFIELD)[:-20])
    with pytest.raises(ValueError, match=r"10×8 pixels.*data\.megapixels"):
        reader()(dicom(HOUNSFIELD), 79)


def test_without_pydicom_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)
    with pytest.raises(UserError, match=r"a\.dcm is a DICOM.*pip install -c constraints\.txt pydicom"):
        decode(tmp_path / "a.dcm", 3, 8, "stretch")


# --- ranges -------------------------------------------------------------------------------------------------------


def test_eight_and_sixteen_bits_stay_as_they_are() -> None:
    for dtype in (np.uint8, np.uint16):
        values = np.arange(9, dtype=dtype)
        assert pictures.ranged(values) is values
