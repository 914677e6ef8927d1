"""Images that stand in tables: what stage=new takes them for, and that the files hold each number."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline import config as settings
from pipeline import pixel_tables
from pipeline.competition import load
from pipeline.pixel_tables import Layout

ROWS, TESTS, SIDE = 24, 10, 8


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """(count, *shape) uint8: smooth, so that neighbours are alike, each another."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 3, 3, *shape[2:]), dtype=np.uint8)
    return np.stack([cv2.resize(image, shape[1::-1], interpolation=cv2.INTER_LINEAR) for image in coarse])


def columns(images: np.ndarray, form: str = "pixel{0}") -> dict[str, np.ndarray]:
    """A column for each pixel."""
    flat = images.reshape(len(images), -1)
    return {form.format(place): flat[:, place] for place in range(flat.shape[1])}


def written_out(images: np.ndarray) -> list[str]:
    return [" ".join(map(str, image.ravel())) for image in images]


def answers(ids: list[object], **more: object) -> pd.DataFrame:
    return pd.DataFrame({"ImageId": ids, "Label": 0, **more})


@pytest.fixture
def folder(project) -> Path:
    """Like the Digit Recognizer: a label and pixels, no ids; the sample's ids are the test rows in their order."""
    place = project.root / "data/numbers"
    place.mkdir(parents=True)
    train, test = pictures(ROWS, SIDE, SIDE), pictures(TESTS, SIDE, SIDE, seed=1)
    pd.DataFrame({"label": np.arange(ROWS) % 3, **columns(train)}).to_csv(place / "train.csv", index=False)
    pd.DataFrame(columns(test)).to_csv(place / "test.csv", index=False)
    answers(list(range(1, TESTS + 1))).to_csv(place / "sample_submission.csv", index=False)
    return place


def new(project, *words: str, name: str = "numbers"):
    return project.run("stage=new", f"name={name}", "data=data/numbers", *words)


def images(project, file: str) -> dict[str, np.ndarray]:
    """The images of a made zip by name, red first."""
    with zipfile.ZipFile(project.root / "data/numbers-images" / file) as archive:
        found = {name: np.frombuffer(archive.read(name), np.uint8) for name in archive.namelist()}
    read = {name.removesuffix(".png"): cv2.imdecode(data, cv2.IMREAD_UNCHANGED) for name, data in found.items()}
    return {name: image[..., ::-1] if image.ndim == 3 else image for name, image in read.items()}


def equal(found: dict[str, np.ndarray], ids: list[str], wanted: np.ndarray) -> None:
    assert list(found) == ids
    for image, one in zip(found.values(), wanted, strict=True):
        np.testing.assert_array_equal(image, one)


# --- each form ----------------------------------------------------------------------------------------------------


def test_a_column_for_each_pixel_and_no_ids(project, folder):
    ended = new(project)
    assert ended.code == 0, ended.err
    assert (
        "data/numbers holds its images in tables (test.csv: 64 pixels a row; train.csv: 64 pixels a row)" in ended.out
    )
    names = [f"train_{row:06d}" for row in range(1, ROWS + 1)]
    equal(images(project, "train_images.zip"), names, pictures(ROWS, SIDE, SIDE))
    equal(
        images(project, "test_images.zip"),
        [str(one) for one in range(1, TESTS + 1)],
        pictures(TESTS, SIDE, SIDE, seed=1),
    )
    config = settings.compose({"competition": "numbers"})
    assert config.data.make == "from_tables(source='numbers', shape=(8, 8), white=255)"
    assert (config.data.folder, config.task, config.data.target) == ("data/numbers-images", "multiclass", ["label"])
    known = load(config)
    assert known.train["id"].tolist() == names
    assert known.targets["label"].tolist() == [str(row % 3) for row in range(ROWS)]
    assert known.test["id"].tolist() == [str(one) for one in range(1, TESTS + 1)]


def test_other_tables_are_made_anew_and_a_folder_of_the_user_stays(project, folder):
    assert new(project).code == 0
    frame = pd.read_csv(folder / "train.csv")
    frame[:-4].to_csv(folder / "train.csv", index=False)
    ended = new(project, "overwrite=true")
    assert ended.code == 0, ended.err
    assert "of other tables, or made otherwise; it is made anew" in ended.out
    assert f"{ROWS - 4} training rows" in ended.out
    own = project.root / "data/other-images"
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    refused = new(project, name="other")
    assert refused.code == 2
    assert "data/other-images is there, and was not made by stage=new; give another name=NAME" in refused.err
    assert (own / "mine.txt").read_text() == "mine"


def test_training_rows_never_get_the_sample_s_ids(project, folder):
    """As many rows as the sample asks for, and a column of ids that is called otherwise than the labels'."""
    pd.read_csv(folder / "train.csv")[:TESTS].to_csv(folder / "train.csv", index=False)
    pd.DataFrame({"Id": range(1, TESTS + 1), "Category": 0}).to_csv(folder / "sample_submission.csv", index=False)
    pd.DataFrame({"Id": [1], "Category": 0}).to_csv(folder / "cnn_submission.csv", index=False)
    assert new(project).code == 0
    assert list(images(project, "train_images.zip"))[:2] == ["train_000001", "train_000002"]
    assert list(images(project, "test_images.zip")) == [str(one) for one in range(1, TESTS + 1)]


def test_colours_in_three_groups_of_columns(project, folder):
    train, test = pictures(ROWS, SIDE, SIDE, 3), pictures(TESTS, SIDE, SIDE, 3, seed=1)
    for name, part in (("train", train), ("test", test)):
        groups = [columns(part[..., k], f"{letter}{{0}}") for k, letter in enumerate("rgb")]
        frame = pd.DataFrame(groups[2] | groups[0] | groups[1])
        frame.assign(**({"label": np.arange(ROWS) % 3} if name == "train" else {})).to_csv(
            folder / f"{name}.csv", index=False
        )
    assert new(project).code == 0
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), train)


@pytest.mark.parametrize(("mark", "encoding"), [(";", "utf-8"), ("\t", "utf-8"), (",", "utf-16")])
def test_other_separators_and_encodings(project, folder, mark, encoding):
    for path in folder.iterdir():
        pd.read_csv(path).to_csv(path, index=False, sep=mark, encoding=encoding)
    assert new(project).code == 0
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), pictures(ROWS, SIDE, SIDE))


@pytest.mark.parametrize("form", ["[{}]", "{}"])
def test_lists_in_cells(project, folder, form):
    for name, part in (("train", pictures(ROWS, SIDE, SIDE)), ("test", pictures(TESTS, SIDE, SIDE, seed=1))):
        cells = [form.format(", ".join(f"{one:.1f}" for one in image.ravel())) for image in part]
        frame = pd.DataFrame({"pixels": cells, "label": np.arange(len(part)) % 3})
        frame[["pixels", *(["label"] if name == "train" else [])]].to_csv(folder / f"{name}.csv", index=False)
    assert new(project).code == 0
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), pictures(ROWS, SIDE, SIDE))


def test_a_link_to_the_data_outside_of_the_project(project, folder, tmp_path):
    outside = tmp_path / "downloads"
    (project.root / "data").rename(outside)
    os.symlink(outside, project.root / "data")
    assert new(project).code == 0
    assert settings.compose({"competition": "numbers"}).data.make.startswith("from_tables(source='numbers'")


def test_the_files_are_made_again_where_they_are_gone(project, folder):
    assert new(project).code == 0
    before = images(project, "train_images.zip")
    for path in (project.root / "data/numbers-images").iterdir():
        path.unlink()
    (project.root / "data/numbers-images").rmdir()
    load.__globals__["_load"].cache_clear()
    load(settings.compose({"competition": "numbers"}))
    equal(images(project, "train_images.zip"), list(before), np.stack(list(before.values())))
    again = new(project)
    assert again.code == 0, again.err
    assert "writing them as files" not in again.out


def test_ids_of_their_own_and_rows_of_no_competition_order(project, folder):
    ids = [f"t{number}" for number in range(TESTS)]
    test = pd.DataFrame({"ImageId": ids, **columns(pictures(TESTS, SIDE, SIDE, seed=1))})
    test.iloc[::-1].to_csv(folder / "test.csv", index=False)
    answers(list(ids)).to_csv(folder / "sample_submission.csv", index=False)
    assert new(project).code == 0
    equal(images(project, "test_images.zip"), ids[::-1], pictures(TESTS, SIDE, SIDE, seed=1)[::-1])


def test_pixels_in_one_column(project, folder):
    """Like the Facial Expression challenge; blanks between the numbers."""
    train, test = pictures(ROWS, SIDE, SIDE), pictures(TESTS, SIDE, SIDE, seed=1)
    pd.DataFrame({"label": np.arange(ROWS) % 3, "pixels": written_out(train)}).to_csv(folder / "train.csv", index=False)
    pd.DataFrame({"pixels": written_out(test)}).to_csv(folder / "test.csv", index=False)
    assert new(project).code == 0
    assert list(images(project, "train_images.zip").values())[3].tolist() == train[3].tolist()
    table = pd.read_csv(project.root / "data/numbers-images/train.csv")
    assert list(table.columns) == ["ImageId", "label"]


@pytest.mark.parametrize("planes", [False, True])
def test_colours_pixel_by_pixel_and_in_planes(project, folder, planes):
    train, test = pictures(ROWS, SIDE, SIDE, 3), pictures(TESTS, SIDE, SIDE, 3, seed=1)
    laid = (lambda one: one.transpose(0, 3, 1, 2)) if planes else (lambda one: one)
    pd.DataFrame({"label": np.arange(ROWS) % 3, **columns(laid(train))}).to_csv(folder / "train.csv", index=False)
    pd.DataFrame(columns(laid(test))).to_csv(folder / "test.csv", index=False)
    assert new(project).code == 0
    assert ("planes=True" in settings.compose({"competition": "numbers"}).data.make) == planes
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), train)


def test_images_that_are_no_squares_by_what_makes_neighbours_alike(project, folder):
    train, test = pictures(ROWS, 12, 20), pictures(TESTS, 12, 20, seed=1)
    pd.DataFrame({"label": np.arange(ROWS) % 3, **columns(train, "px_{0}")}).to_csv(folder / "train.csv", index=False)
    pd.DataFrame(columns(test, "px_{0}")).to_csv(folder / "test.csv", index=False)
    assert new(project).code == 0
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), train)


def test_rows_and_columns_in_the_names_count_as_numbers(project, folder):
    """1x10 comes behind 1x9, whatever the order of the columns in the file."""
    train = pictures(ROWS, 12, 12)
    cells = {f"{row + 1}x{place + 1}": train[:, row, place] for row in range(12) for place in range(12)}
    frame = pd.DataFrame(cells)[sorted(cells)].assign(label=np.arange(ROWS) % 3)
    frame.to_csv(folder / "train.csv", index=False)
    frame.drop(columns="label")[:TESTS].to_csv(folder / "test.csv", index=False)
    assert new(project).code == 0
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), train)


@pytest.mark.parametrize(("scale", "white"), [(1 / 255, 1), (16 / 255, 16)])
def test_the_number_that_is_white(project, folder, scale, white):
    train = pictures(ROWS, SIDE, SIDE)
    train[0, 0, 0] = 255
    for name, part in (("train", train), ("test", pictures(TESTS, SIDE, SIDE, seed=1))):
        frame = pd.DataFrame(columns(part * scale))
        (frame.assign(label=np.arange(ROWS) % 3) if name == "train" else frame).to_csv(
            folder / f"{name}.csv", index=False
        )
    assert new(project).code == 0
    assert f"white={white})" in settings.compose({"competition": "numbers"}).data.make
    np.testing.assert_array_equal(list(images(project, "train_images.zip").values()), train)


def test_packed_tables(project, folder):
    train, test = (folder / f"{name}.csv" for name in ("train", "test"))
    (folder / "train.csv.gz").write_bytes(gzip.compress(train.read_bytes()))
    with zipfile.ZipFile(folder / "test.csv.zip", "w") as archive:
        archive.write(test, "test.csv")
    train.unlink()
    test.unlink()
    assert new(project).code == 0
    equal(
        images(project, "test_images.zip"),
        [str(one) for one in range(1, TESTS + 1)],
        pictures(TESTS, SIDE, SIDE, seed=1),
    )


def test_more_rows_than_are_read_at_a_time(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(pixel_tables, "CELLS", 5 * SIDE * SIDE)
    pixel_tables.write(folder, tmp_path, Layout((SIDE, SIDE)))
    with zipfile.ZipFile(tmp_path / "train_images.zip") as archive:
        data = [np.frombuffer(archive.read(name), np.uint8) for name in sorted(archive.namelist())]
    found = [cv2.imdecode(one, cv2.IMREAD_UNCHANGED) for one in data]
    np.testing.assert_array_equal(found, pictures(ROWS, SIDE, SIDE))
    assert pd.read_csv(tmp_path / "train.csv")["label"].tolist() == [row % 3 for row in range(ROWS)]


def test_a_solution_is_copied_and_never_looked_into(tmp_path, folder, monkeypatch):
    (folder / "solution.csv").write_bytes((folder / "train.csv").read_bytes())
    seen, look = [], pixel_tables.look
    monkeypatch.setattr(pixel_tables, "look", lambda path: (seen.append(path.name), look(path))[1])
    pixel_tables.write(folder, tmp_path, Layout((SIDE, SIDE)))
    assert seen == ["test.csv", "train.csv"]
    assert (tmp_path / "solution.csv").read_bytes() == (folder / "solution.csv").read_bytes()
    assert not (tmp_path / "solution_images.zip").exists()


# --- what is no image, and what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(np.random.default_rng(0).normal(size=(9, 64)), columns=[f"f_{k}" for k in range(64)]),
        pd.DataFrame(np.zeros((9, 40), int), columns=[f"pixel{k}" for k in range(40)]),
        pd.DataFrame({"text": ["a word and 3 numbers"] * 9}),
        pd.DataFrame(np.full((9, 64), 0.5), columns=[f"feature_{k}" for k in range(64)]),
        pd.DataFrame(np.ones((9, 128), int), columns=[f"{one}{k}" for one in ("margin", "shape") for k in range(64)]),
    ],
    ids=["negative", "few", "words", "fractions", "groups"],
)
def test_other_numbers_are_no_images(project, folder, frame):
    for path in folder.iterdir():
        path.unlink()
    frame.assign(label=1).to_csv(folder / "train.csv", index=False)
    ended = new(project)
    assert ended.code == 2
    assert "holds no images" in ended.err
    assert not (project.root / "data/numbers-images").exists()


def test_an_archive_beside_the_tables_is_to_be_unpacked_first(project, folder):
    (folder / "images.tar").write_bytes(b"not unpacked")
    ended = new(project)
    assert ended.code == 2
    assert "unpack images.tar first" in ended.err


def test_a_table_without_a_header_is_none(tmp_path):
    body = io.StringIO()
    np.savetxt(body, pictures(4, SIDE, SIDE).reshape(4, -1) // 200, fmt="%d", delimiter=",")
    (tmp_path / "train.csv").write_text(body.getvalue())
    assert pixel_tables.find(tmp_path) == {}


def spoil(folder: Path, file: str, change) -> None:
    frame = pd.read_csv(folder / file, dtype=str)
    change(frame).to_csv(folder / file, index=False)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("test.csv", lambda one: one[:-2], "test.csv has 8 rows without ids, the sample submission 10"),
        ("sample_submission.csv", lambda one: one[:-2], "more rows, without ids, than the 8 of the sample"),
        (
            "train.csv",
            lambda one: one.assign(pixel7=["3"] * 23 + [""]),
            "train.csv, rows 1 to 24: cells without a number",
        ),
        ("train.csv", lambda one: one.assign(ImageId="a/b"), "cannot be a file's name: a/b"),
        ("train.csv", lambda one: one.assign(ImageId="a"), "ids that stand twice: a"),
        ("train.csv", lambda one: one.assign(pixel7="4000"), "numbers up to 4000); say it"),
        ("train.csv", lambda one: one.assign(pixel64="0"), "test.csv: 64 pixels a row; train.csv: 65 pixels a row"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(project, folder, file, change, says):
    spoil(folder, file, change)
    ended = new(project)
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert not (project.root / "data/numbers-images").exists()
    assert not (project.root / "configs/competition/numbers.yaml").exists()


def test_a_layout_that_is_given_wins_and_must_fit(project, folder):
    shape = new(project, "data.make=from_tables(source='numbers', shape=(4, 16))")
    assert shape.code == 0, shape.err
    assert next(iter(images(project, "train_images.zip").values())).shape == (4, 16)
    again = new(project, "data.make=from_tables(source='numbers', shape=(4, 16), white=255.0)")
    assert "writing them as files" not in again.out, "the same, written otherwise"
    other = new(project, "overwrite=true")
    assert other.code == 0, other.err
    assert "it is made anew" in other.out
    assert next(iter(images(project, "train_images.zip").values())).shape == (8, 8)
    for words, says in (
        ("shape=(4, 4)", "64 pixels, but shape=4×4 has 16"),
        ("shape=(8, 8), white=100", "but 0 to white=100; set white=255"),
        ("shape=(8, 8, 4)", "an image is (height, width)"),
        ("shape=(8, 8), planes=True", "an image is (height, width)"),
    ):
        ended = new(project, f"data.make=from_tables(source='numbers', {words})", name="another")
        assert ended.code == 2
        assert says in ended.err, ended.err
    gone = new(project, "data.make=from_tables(source='nowhere', shape=(8, 8))", name="another")
    assert "there is no such folder" in gone.err


# --- to the end ---------------------------------------------------------------------------------------------------


def test_trained_submitted_and_answered_in_a_notebook_that_sees_the_tables_alone(
    project, folder, tmp_path, monkeypatch
):
    assert new(project).code == 0
    words = ("run=one", "model=small_image", "backbone=small_image(width=8)", "epochs=1", "device=cpu", "folds.count=2")
    for command in (["stage=train", *words], ["stage=predict", *words], ["stage=submit", "source=one"]):
        done = project.run(*command)
        assert done.code == 0, done.err
    rows = pd.read_csv(project.root / "submissions/numbers/one.csv", dtype=str)
    assert list(rows.columns) == ["ImageId", "Label"]
    assert rows["ImageId"].tolist() == [str(number) for number in range(1, TESTS + 1)]

    packed = project.run("stage=package", "source=one")
    assert packed.code == 0, packed.err
    (package,) = project.root.glob("packages/numbers/[!.]*")
    notebook = (package / "notebook.ipynb").read_text()
    assert all(f'\\"{name}\\": \\"{name}\\"' in notebook for name in ("test.csv", "sample_submission.csv"))
    work = tmp_path / "work"
    for part in ("configs", "runs"):
        shutil.copytree(package / part, work / part, copy_function=os.symlink)
    for name in ("manifest.json", "training.csv"):
        os.symlink(package / name, work / name)
    (work / "input").mkdir()
    for name in ("test.csv", "sample_submission.csv"):
        os.symlink(folder / name, work / "input" / name)
    monkeypatch.setenv("PIPELINE_ROOT", str(work))
    answered = project.run("stage=answer", f"submission={work}/submission.csv", "parallel=none")
    assert answered.code == 0, answered.err
    pd.testing.assert_frame_equal(pd.read_csv(work / "submission.csv", dtype=str), rows)
