"""Run-length texts: exact round trips, orders beside pycocotools, damaged texts, instances, overlaps without pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import rle

SIDES = st.integers(1, 40)
FORMS = [(order, base) for order in rle.ORDERS for base in (0, 1)]
shapes = st.tuples(SIDES, SIDES)
masks = hnp.arrays(np.uint8, shapes, elements=st.integers(0, 1))
labels = hnp.arrays(np.int32, shapes, elements=st.integers(0, 4))


def pair(data: Any) -> tuple[np.ndarray, np.ndarray]:
    shape = data.draw(shapes)
    two = [data.draw(hnp.arrays(np.bool_, shape)) for _ in range(2)]
    return two[0], two[1]


def slow_encode(mask: np.ndarray, order: str, base: int) -> str:
    """Pixel by pixel, in plain Python."""
    height, width = mask.shape
    if order == "column":
        pixels = [bool(mask[row, column]) for column in range(width) for row in range(height)]
    else:
        pixels = [bool(mask[row, column]) for row in range(height) for column in range(width)]
    numbers: list[int] = []
    for place, inside in enumerate(pixels):
        if inside and (place == 0 or not pixels[place - 1]):
            numbers += [place + base, 0]
        if inside:
            numbers[-1] += 1
    return " ".join(map(str, numbers))


# --- masks ↔ texts ------------------------------------------------------------------------------------------------


def test_a_text_as_kaggle_explains_it() -> None:
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    assert rle.encode(mask) == "2 4"
    assert rle.encode(mask, base=0) == "1 4"
    assert rle.encode(mask, order="row") == "2 4"
    assert rle.encode(np.array([[1, 0, 0], [0, 0, 1]])) == "1 1 6 1"
    np.testing.assert_array_equal(rle.decode("1 1 6 1", 2, 3), [[1, 0, 0], [0, 0, 1]])
    assert rle.decode("2 4", 2, 3).dtype == np.uint8


@pytest.mark.parametrize(("order", "base"), FORMS)
@settings(max_examples=60, deadline=None)
@given(mask=masks)
@example(mask=np.ones((33, 65), dtype=np.uint8))
@example(mask=np.zeros((1, 1), dtype=np.uint8))
@example(mask=np.indices((64, 33)).sum(axis=0).astype(np.uint8) % 2)
def test_the_round_trip_is_exact_and_the_text_is_the_slow_one(order: str, base: int, mask: np.ndarray) -> None:
    text = rle.encode(mask, order=order, base=base)
    assert text == slow_encode(mask, order, base)
    back = rle.decode(text, *mask.shape, order=order, base=base)
    np.testing.assert_array_equal(back, mask)
    assert back.flags.c_contiguous
    assert back.flags.writeable
    assert rle.encode(back, order=order, base=base) == text


@settings(max_examples=60, deadline=None)
@given(mask=masks)
@example(mask=np.ones((33, 65), dtype=np.uint8))
@example(mask=np.eye(7, dtype=np.uint8))
def test_relative_starts_are_read_as_the_competition_reads_them(mask: np.ndarray) -> None:
    text = rle.encode(mask, base=0, starts="relative")
    flat, place = np.zeros(mask.size, dtype=np.uint8), 0
    numbers = list(map(int, text.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        place += start
        flat[place : place + length] = 1
        place += length
    np.testing.assert_array_equal(flat.reshape(mask.shape[::-1]).T, mask != 0)
    np.testing.assert_array_equal(rle.decode(text, *mask.shape, base=0, starts="relative"), mask != 0)
    assert rle.encode_instances(mask, base=0, starts="relative") == ([text] if text and mask.max() == 1 else [])


RELATIVE = [
    ("3 2 -1 2", "run 2 of 2 .start 4, length 2. begins before the run before it ends, at 5"),
    ("3 2 7 1", "run 2 of 2 .start 12, length 1. ends 1 pixels after the image's 12"),
    ("1 999999999999999999 1 1", "ends"),
    ("1 1 999999999999999999 999999999999999999 5 5", "ends"),
]


@pytest.mark.parametrize(("text", "message"), RELATIVE)
def test_damaged_relative_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode(text, 3, 4, base=0, starts="relative")


@pytest.mark.parametrize("order", rle.ORDERS)
@pytest.mark.parametrize("side", [1, 31, 32, 33, 1000])
def test_sizes_around_a_strip(order: str, side: int) -> None:
    mask = np.random.default_rng(side).random((side, side + 7)) < 0.3
    for one in (mask, mask.T, mask[::2], mask[:, ::-3]):
        text = rle.encode(one, order=order)
        np.testing.assert_array_equal(rle.decode(text, *one.shape, order=order), one)
        assert rle.encode(np.ascontiguousarray(one), order=order) == text


def test_all_but_0_is_inside() -> None:
    values = np.array([[0, 255, 7], [-1, 1, 0]], dtype=np.int16)
    assert rle.encode(values) == rle.encode(values != 0) == "2 4"


@pytest.mark.parametrize("text", ["", "  ", "-1", "nan", "NaN", " -1\n"])
def test_texts_of_empty_masks(text: str) -> None:
    assert not rle.decode(text, 4, 5).any()
    assert rle.decode(text, 4, 5).shape == (4, 5)
    assert len(rle.parse(text)) == 0


def test_what_empty_means_is_an_argument() -> None:
    nothing = np.zeros((3, 3), dtype=bool)
    assert [rle.encode(nothing, empty=text) for text in ("", "-1", "1 0")] == ["", "-1", "1 0"]
    assert not rle.decode("1 0", 3, 3, empty=("1 0",)).any()
    with pytest.raises(ValueError, match=r"1 numbers, but each run has two"):
        rle.decode("-1", 3, 3, empty=("",))
    with pytest.raises(ValueError, match="an empty text, but a mask without a pixel is written as '-1'"):
        rle.decode("", 3, 3, empty=("-1",))


@settings(max_examples=60, deadline=None)
@given(mask=masks)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_pycocotools_agrees_on_the_orders(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    height, width = mask.shape
    for order, shown in (("column", mask), ("row", np.ascontiguousarray(mask.T))):
        theirs = coco.encode(np.asfortranarray(shown))  # always down the columns
        runs = rle.parse(rle.encode(mask, order=order))
        counts = np.diff(np.concatenate([[0], np.stack([runs[:, 0], runs.sum(axis=1)], axis=1).ravel()])).tolist()
        size = list(shown.shape)
        ours = coco.frPyObjects({"counts": [*counts, height * width - sum(counts)], "size": size}, *size)
        np.testing.assert_array_equal(coco.decode(ours), shown)
        assert int(coco.area(theirs)) == rle.areas([runs])[0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pycocotools_agrees_on_overlaps(data: Any) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    one, other = pair(data)
    theirs = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (one, other)]
    if one.any() or other.any():
        found = rle.iou(rle.encode(one), rle.encode(other))
        assert found == pytest.approx(coco.iou(theirs[:1], theirs[1:], [0])[0, 0])


# --- damage -------------------------------------------------------------------------------------------------------

DAMAGED = [
    ("1 2 3", "3 numbers, but each run has two, start and length; the last is 3"),
    ("5", "1 numbers"),
    ("1 2 x 1", "number 3 of 4 is 'x', no whole number"),
    ("1.0 2", "number 1 of 2 is '1.0'"),
    ("1,2 3,4", "number 1 of 2 is '1,2'"),
    ("[1 2]", r"number 1 of 2 is '\[1'"),
    ("1_0 2", "number 1 of 2 is '1_0'"),
    ("１ 2", "number 1 of 2 is '１'"),
    ("1 99999999999999999999", "number 2 of 2 is '99999999999999999999'"),
    ("1 9223372036854775807", "no whole number of this range|after the image's 12"),
    ("0 2", "run 1 of 1 .start 0, length 2. begins before the image, whose first pixel is 1"),
    ("-3 2", "run 1 of 1 .start -3, length 2. begins before the image"),
    ("1 2 5 0", "run 2 of 2 .start 5, length 0. has no pixel"),
    ("1 2 5 -1", "run 2 of 2 .start 5, length -1. has no pixel"),
    ("1 2 12 2", "run 2 of 2 .start 12, length 2. ends 1 pixels after the image's 12"),
    ("13 1", "ends 1 pixels after the image's 12"),
    ("1 3 3 2", "run 2 of 2 .start 3, length 2. begins before the run before it ends, at 4"),
    ("5 2 1 2", "run 2 of 2 .start 1, length 2. begins before the run before it ends, at 7"),
    ("5 2 5 2", "run 2 of 2"),
]


@pytest.mark.parametrize(("text", "message"), DAMAGED)
def test_damaged_texts_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode(text, 3, 4)


def test_a_base_of_0_shifts_the_borders() -> None:
    assert rle.decode("0 12", 3, 4, base=0).all()
    with pytest.raises(ValueError, match="ends 1 pixels after"):
        rle.decode("1 12", 3, 4, base=0)
    with pytest.raises(ValueError, match=r"start -1, length 2. begins before .* first pixel is 0"):
        rle.decode("-1 2", 3, 4, base=0)


def test_runs_may_touch() -> None:
    np.testing.assert_array_equal(rle.decode("2 2 4 3", 3, 3), rle.decode("2 5", 3, 3))
    assert rle.areas(["2 2 4 3"])[0] == 5


@settings(max_examples=300, deadline=None)
@given(text=st.text("0123456789 -.x\n", max_size=30))
def test_any_text_is_a_mask_or_a_value_error(text: str) -> None:
    try:
        mask = rle.decode(text, 5, 6)
    except ValueError:
        return
    assert mask.shape == (5, 6)
    numbers = [int(word) for word in text.split()] if text.strip() not in ("", "-1") else []
    assert mask.sum() == sum(numbers[1::2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: rle.encode(np.zeros((2, 2), dtype=np.float32)),
        lambda: rle.encode(np.zeros((2, 2, 1), dtype=np.uint8)),
        lambda: rle.encode(np.zeros((0, 2), dtype=np.uint8)),
        lambda: rle.encode(np.zeros((2, 2), dtype=np.uint8), order="columns"),
        lambda: rle.encode(np.zeros((2, 2), dtype=np.uint8), base=2),
        lambda: rle.decode("1 1", 0, 2),
        lambda: rle.decode("1 1", 2, 2, order="C"),
        lambda: rle.decode("1 1", 2, 2, base=-1),
        lambda: rle.decode("1 1", 2, 2, starts="behind"),
        lambda: rle.fill(np.array([[3, 2]]), 2, 2),
        lambda: rle.decode_instances(["1 1"], 2, 2, overlap="never"),
    ],
)
def test_wrong_arguments(call: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call()


# --- instances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "base"), FORMS)
@settings(max_examples=60, deadline=None)
@given(truth=labels)
def test_instances_are_their_masks_one_by_one(order: str, base: int, truth: np.ndarray) -> None:
    values = np.unique(truth[truth > 0])
    texts = rle.encode_instances(truth, order=order, base=base)
    assert texts == [slow_encode(truth == value, order, base) for value in values]
    back = rle.decode_instances(texts, *truth.shape, order=order, base=base)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, np.searchsorted(values, truth, side="right") * (truth > 0))


def test_empty_texts_keep_their_number_and_void_is_no_object() -> None:
    found = rle.decode_instances(["1 2", "", "-1", "4 1"], 2, 2)
    np.testing.assert_array_equal(found, [[1, 0], [1, 4]])
    assert rle.encode_instances(np.array([[-1, 3], [0, 3]])) == ["3 2"]
    assert rle.encode_instances(np.zeros((2, 2), dtype=np.int32)) == []
    assert not rle.decode_instances([], 2, 2).any()


def test_overlaps_are_found_and_settled() -> None:
    texts = ["1 4", "9 2", "3 3"]
    with pytest.raises(ValueError, match="objects 1 and 3 of 3 overlap at row 2, column 0"):
        rle.decode_instances(texts, 4, 3)
    with pytest.raises(ValueError, match="objects 1 and 3 of 3 overlap at row 0, column 2"):
        rle.decode_instances(texts, 4, 3, order="row")
    first = rle.decode_instances(texts, 4, 3, overlap="first")
    last = rle.decode_instances(texts, 4, 3, overlap="last")
    np.testing.assert_array_equal(first.T.ravel(), [1, 1, 1, 1, 3, 0, 0, 0, 2, 2, 0, 0])
    np.testing.assert_array_equal(last.T.ravel(), [1, 1, 3, 3, 3, 0, 0, 0, 2, 2, 0, 0])
    with pytest.raises(ValueError, match="objects 1 and 2 of 2 overlap"):
        rle.decode_instances(["1 12", "5 1"], 4, 3)


def test_a_damaged_object_is_named() -> None:
    with pytest.raises(ValueError, match="object 2 of 3: run 1 of 1 .start 12, length 9. ends 8 pixels after"):
        rle.decode_instances(["1 2", "12 9", "5 1"], 4, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), overlap=st.sampled_from(["first", "last"]))
def test_settled_overlaps_are_the_slow_ones(data: Any, overlap: str) -> None:
    shape = data.draw(shapes)
    each = [data.draw(hnp.arrays(np.bool_, shape)) for _ in range(data.draw(st.integers(0, 4)))]
    slow = np.zeros(shape, dtype=np.int32)
    for number, mask in enumerate(each, 1):
        slow[mask & (slow == 0) if overlap == "first" else mask] = number
    found = rle.decode_instances([rle.encode(mask) for mask in each], *shape, overlap=overlap)
    np.testing.assert_array_equal(found, slow)


# --- areas and overlaps, without pixels ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data(), order=st.sampled_from(rle.ORDERS))
def test_runs_count_as_pixels_do(data: Any, order: str) -> None:
    one, other = pair(data)
    ours, theirs = rle.runs(one, order), rle.runs(other, order)
    shape = one.shape
    np.testing.assert_array_equal(rle.fill(rle.union([ours, theirs]), *shape, order=order), one | other)
    np.testing.assert_array_equal(rle.union([ours, theirs]), rle.runs(one | other, order))
    np.testing.assert_array_equal(rle.intersection(ours, theirs), rle.runs(one & other, order))
    texts = [rle.write(ours), rle.write(theirs)]
    assert rle.areas(texts).tolist() == [one.sum(), other.sum()]
    shared = (one & other).sum()
    np.testing.assert_array_equal(rle.intersections(texts, texts), [[one.sum(), shared], [shared, other.sum()]])
    either = (one | other).sum()
    assert rle.iou(*texts) == pytest.approx(shared / either if either else 1.0)


def test_the_iou_of_empty_masks() -> None:
    assert rle.iou("", "-1") == 1
    assert rle.iou("", "1 1") == 0
    assert rle.ious([], ["1 1"]).shape == (0, 1)
    assert rle.ious(["1 2"], []).shape == (1, 0)
    assert rle.union([]).shape == (0, 2)
    np.testing.assert_allclose(rle.ious(["1 4", "9 2"], ["3 4", "9 2", ""]), [[1 / 3, 0, 0], [0, 1, 0]])


def test_runs_and_texts_mix() -> None:
    assert rle.iou(np.array([[0, 4]]), "3 4") == pytest.approx(1 / 3)
    assert rle.areas([np.array([[0, 4]]), "0 3"], base=0).tolist() == [4, 3]
