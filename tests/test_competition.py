"""The competition as its folder holds it: what loads, and one clear message for each thing that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_competition

from pipeline import config as settings
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.folds import asked_folds
from pipeline.tasks import task_for
from pipeline.tasks.multiclass import Multiclass


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    return small_competition.write(tmp_path)


def fails(*words: str, **changes: object) -> str:
    """The message of loading and asking for the task, which must fail and hold the words."""
    config = small_competition.config(**changes)
    with pytest.raises(UserError) as caught:
        task_for(config, load(config))
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


# --- what loads ---------------------------------------------------------------------------------------------------


def test_ids_stay_as_they_stand_and_test_rows_come_from_the_sample(whales: Path) -> None:
    found = load(small_competition.config())
    assert found.test["id"].tolist() == list(small_competition.TEST_IDS)
    assert found.test["file"].tolist()[0] == "test_images/007.png"
    assert found.train["id"].tolist()[:2] == ["000a", "001a"]
    assert found.targets["label"].tolist()[:4] == ["cat", "dog", "owl", "cat"]
    assert list(found.train.columns) == ["id", "file"]
    assert (whales / found.train["file"][11]).is_file()


def test_test_csv_names_the_test_rows(whales: Path) -> None:
    small_competition.table(whales / "test.csv", "id", [("003",), ("001",)])
    assert load(small_competition.config(data__test_csv="test.csv")).test["id"].tolist() == ["003", "001"]


def test_a_byte_order_mark_and_words_that_look_like_nothing_are_text(whales: Path) -> None:
    path = whales / "train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"cat", b"NA"))
    assert load(small_competition.config()).targets["label"].tolist()[:3] == ["NA", "dog", "owl"]


def test_a_second_load_is_the_same_object_until_a_file_changes(whales: Path) -> None:
    first = load(small_competition.config())
    assert load(small_competition.config(lr=0.1)) is first
    edit(whales / "train.csv", "000a,cat", "000a,dog")
    again = load(small_competition.config())
    assert again.targets["label"][0] == "dog"
    assert again.fingerprint != first.fingerprint


def test_the_fingerprint_covers_images_and_sample_but_not_the_solution(whales: Path) -> None:
    config = small_competition.config()
    before = load(config).fingerprint
    (whales / "solution.csv").unlink()
    (whales / "more.txt").write_text("x")
    assert load(config).fingerprint == before
    sample = whales / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("010,cat", "010,dog"))
    changed = load(config).fingerprint
    assert changed != before
    (whales / "train_images" / "000a.png").write_bytes(b"other size")
    load.__globals__["_load"].cache_clear()  # as in a new process: a folder's time does not tell of a changed file
    assert load(config).fingerprint != changed


def test_groups_are_read(whales: Path) -> None:
    small_competition.table(whales / "train.csv", "id,label,pod", [("000a", "cat", "p1"), ("001a", "dog", "p2")])
    assert load(small_competition.config(data__group="pod")).column("pod", "data.group").tolist() == ["p1", "p2"]


def test_nothing_here_imports_torch() -> None:
    modules = ["competition", "submission", "tasks.multiclass", "parts.splits", "parts.makers"]
    modules += ["stages.split", "stages.submit", "stages.score"]
    lines = [f"import pipeline.{name}" for name in modules] + ["import sys", "assert 'sklearn' not in sys.modules"]
    lines += ["assert 'torch' not in sys.modules", "print('light')"]
    answer = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert answer.stdout == "light\n", answer.stderr


def test_a_column_may_name_the_images(whales: Path) -> None:
    small_competition.table(whales / "train.csv", "id,label,file", [("x", "cat", "000a"), ("y", "dog", "000a.png")])
    small_competition.table(whales / "test.csv", "id,file", [("z", "003.png")])
    found = load(small_competition.config(data__image="file", data__test_csv="test.csv"))
    assert found.train.to_numpy().tolist() == [["x", "train_images/000a.png"], ["y", "train_images/000a.png"]]
    assert found.test.to_numpy().tolist() == [["z", "test_images/003.png"]]


# --- what does not ------------------------------------------------------------------------------------------------


def test_a_missing_folder_says_how_to_give_one(whales: Path) -> None:
    fails("data.folder=data/wales", "data=DIR", data__folder="data/wales")
    fails("data.folder", "data=DIR", data__folder="")


def test_a_missing_csv_names_those_there(whales: Path) -> None:
    fails("train_rows.csv does not exist", "data.train_csv", "did you mean train.csv", data__train_csv="train_rows.csv")
    fails("data.sample", "sample_submission.csv", data__sample="sample.csv")
    fails("data.test_csv", "test.csv does not exist", data__test_csv="test.csv")


def test_an_empty_or_damaged_csv_is_named(whales: Path) -> None:
    path = whales / "train.csv"
    path.write_bytes(b"")
    fails("data/whales/train.csv is empty")
    path.write_text("id,label\n")
    fails("no rows")
    path.write_text("id,label\n000a,cat,7\n001a,dog\n")
    fails("train.csv cannot be read")
    path.write_text("id,label\n000a,cat\n001a,dog,1,2,3\n")
    fails("train.csv cannot be read")
    path.write_text("id,label\n000a,cat\n001a\n")
    fails("no label for ids 001a")


def test_a_missing_column_names_those_there_and_the_nearest(whales: Path) -> None:
    fails("'labels'", "data.target=labels", "id, label", "did you mean label", data__target=["labels"])
    fails("'image_id'", "data.id=image_id", data__id="image_id")
    fails("'pod'", "data.group=pod", data__group="pod")


def test_a_column_of_images_must_be_in_both_tables(whales: Path) -> None:
    fails("train.csv has no column 'file' (data.image); correct it", data__image="file")
    small_competition.table(whales / "train.csv", "id,label,file", [("x", "cat", "000a"), ("y", "dog", "001a")])
    fails("sample submission has no column 'file' (data.image); give data.test_csv", data__image="file")


def test_duplicate_ids_are_named_five_at_most(whales: Path) -> None:
    path = whales / "train.csv"
    path.write_text(path.read_text() + "".join(f"{row:03d}a,bat\n" for row in range(7)))
    assert "005a" not in fails("7 duplicate ids: 000a, 001a, 002a, 003a, 004a …")


def test_empty_cells_are_named(whales: Path) -> None:
    edit(whales / "train.csv", "004a,dog", "004a, ")
    fails("no label for ids 004a")
    edit(whales / "train.csv", "003a,cat", ",cat")
    fails("without an id, in lines 5")


def test_an_empty_group_is_named(whales: Path) -> None:
    small_competition.table(whales / "train.csv", "id,label,pod", [("000a", "cat", "p1"), ("001a", "dog", "")])
    found = load(small_competition.config(data__group="pod"))
    with pytest.raises(UserError, match=r"no pod \(data.group\) for ids 001a"):
        found.column("pod", "data.group")


def test_one_class_is_too_few(whales: Path) -> None:
    edit(whales / "train.csv", "dog", "cat")
    edit(whales / "train.csv", "owl", "cat")
    fails("one class, 'cat'", "data.target")


def test_an_image_cannot_be_a_training_and_a_test_row(whales: Path) -> None:
    fails("000a", "at once", data__test_csv="train.csv", data__test_images="train_images")


def test_a_missing_image_is_named(whales: Path) -> None:
    (whales / "train_images" / "002a.png").unlink()
    fails("002a")


def test_an_unknown_task_names_the_nearest(whales: Path) -> None:
    with pytest.raises(UserError, match=r"task=multiclas:.* did you mean multiclass"):
        small_competition.config(task="multiclas")


def test_rows_that_repeat_another_count_once(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(whales / "train.csv", "000a,cat\n", "000a,cat\n000a,cat\n")
    assert len(load(small_competition.config()).train) == 12
    assert "1 rows repeat another word for word" in capsys.readouterr().err
    edit(whales / "train.csv", "000a,cat\n000a,cat\n", "000a,cat\n000a,dog\n")
    fails("1 duplicate ids: 000a")


def test_blanks_around_a_label_make_no_other_class(whales: Path) -> None:
    edit(whales / "train.csv", "000a,cat", "000a,cat ")
    found = load(small_competition.config())
    assert found.targets["label"][0] == "cat"
    assert task_for(small_competition.config(), found).columns == ["cat", "dog", "owl"]


def test_a_test_folder_beside_the_class_folders_is_no_class(whales: Path) -> None:
    for row, name in enumerate(["cat", "dog", "cat", "dog"]):
        (whales / "all" / name).mkdir(parents=True, exist_ok=True)
        (whales / "train_images" / f"{row:03d}a.png").rename(whales / "all" / name / f"{row}.png")
    (whales / "test_images").rename(whales / "all" / "test")
    places = {"data__train_images": "all", "data__test_images": "all/test"}
    found = load(small_competition.config(data__train_csv="", **places))
    assert found.train["id"].tolist() == ["cat/0.png", "cat/2.png", "dog/1.png", "dog/3.png"]
    assert found.targets["label"].tolist() == ["cat", "cat", "dog", "dog"]


# --- fold= --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "folds"),
    [(["0"], [0]), (["2", "0", "2"], [0, 2]), (["all"], [0, 1, 2, 3, 4]), (["full"], "full")],
)
def test_folds_asked_for(whales: Path, asked: list[str], folds: object) -> None:
    assert asked_folds(small_competition.config(fold=asked), 5) == folds


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["7"], "fold=7, but folds/whales.csv has 0–4; rerun stage=split folds.count=8"),
        (["-1"], "fold=-1, but folds/whales.csv has 0–4; choose one of these"),
        (["0", "full"], "fold=0,full, but fold is a number"),
        (["one"], "fold=one, but fold is a number"),
        (["0", "--1"], "fold=0,--1, but fold is a number"),
    ],
)
def test_folds_that_are_not_there(whales: Path, asked: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        asked_folds(small_competition.config(fold=asked), 5)


# --- multi-class --------------------------------------------------------------------------------------------------


def test_classes_are_sorted_as_text() -> None:
    task = Multiclass(["9", "10", "a"])
    assert task.columns == ["10", "9", "a"]
    assert task.targets(pd.DataFrame({"label": ["9", "10", "a", "9"]})).tolist() == [1, 0, 2, 1]
    assert task.outputs == 3


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(UserError, match="unknown classes 'cot'.*did you mean cat"):
        Multiclass(["cat", "dog"]).targets(pd.DataFrame({"label": ["dog", "cot"]}))


def test_soft_targets() -> None:
    task = Multiclass(["a", "b"])
    one_hot = task.soft(np.array([1, 0]))
    assert one_hot.dtype == np.float32
    assert one_hot.tolist() == [[0, 1], [1, 0]]
    assert task.soft(np.array([[0.25, 0.75]])).tolist() == [[0.25, 0.75]]


def test_activation_is_the_softmax_in_float32() -> None:
    torch = pytest.importorskip("torch")
    found = Multiclass(["a", "b"]).activate(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), {})
    assert found.dtype == torch.float32
    assert found[0, 1].item() == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)


def test_confident_rows_reach_the_threshold_and_keep_to_the_cap() -> None:
    task = Multiclass(["a", "b"])
    values = np.array([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [0.95, 0.05], [0.1, 0.9], [0.9, 0.1]], dtype=np.float32)
    rows, confidence = task.confident(values, 0.9, 0)
    assert rows.tolist() == [0, 2, 3, 4, 5]
    assert confidence.tolist() == pytest.approx([0.9, 0.95, 0.95, 0.9, 0.9])
    assert rows.dtype == np.int64
    assert task.confident(values, 0.9, 1)[0].tolist() == [2, 3]
    assert task.confident(values, 0.9, 2)[0].tolist() == [0, 2, 3, 4]  # of rows 0 and 5, the earlier
    assert task.confident(values, 0.99)[0].tolist() == []


def test_submissions_follow_the_sample() -> None:
    task = Multiclass(["cat", "dog"])
    ids, values = np.array(["2", "1"]), np.array([[0.25, 0.75], [1, 0]], dtype=np.float32)
    names = pd.DataFrame({"Image": ["1", "2"], "Label": ["cat", "cat"]})
    made = task.submission(ids, values, names)
    assert made.to_dict("list") == {"Image": ["1", "2"], "Label": ["cat", "dog"]}
    assert task.values(made, names).tolist() == [[1, 0], [0, 1]]
    columns = pd.DataFrame({"id": ["1", "2"], "dog": ["0.5", "0.5"], "cat": ["0.5", "0.5"]})
    made = task.submission(ids, values, columns)
    assert made.to_dict("list") == {"id": ["1", "2"], "dog": [0, 0.75], "cat": [1, 0.25]}
    assert task.values(made, columns).tolist() == [[1, 0], [0.25, 0.75]]


def test_a_sample_of_another_task_and_ids_without_prediction_are_named() -> None:
    task = Multiclass(["cat", "dog"])
    with pytest.raises(UserError, match="at odds: cow, dog"):
        task.allowed(pd.DataFrame({"id": ["1"], "cat": ["0"], "cow": ["1"]}))
    with pytest.raises(UserError, match="no prediction for 1 ids of the sample: 2"):
        task.submission(np.array(["1"]), np.ones((1, 2)), pd.DataFrame({"id": ["1", "2"], "label": ["", ""]}))


@pytest.mark.parametrize("soft", [True, False])
def test_pseudo_labels_read_back(soft: bool) -> None:
    task = Multiclass(["cat", "dog"], ["kind"])
    values = np.array([[0.1, 0.9], [0.7, 0.3]], dtype=np.float32)
    rows, columns = task.pseudo_labels(values, 0.5, soft=soft)
    written = pd.DataFrame(columns).astype(str)
    assert rows.tolist() == [0, 1]
    assert task.pseudo_labels(values, 0.8)[0].tolist() == [0]
    assert written["kind"].tolist() == ["dog", "cat"]
    expected = values if soft else np.array([[0, 1], [1, 0]])
    assert np.array_equal(task.read_labels(written), expected)


# --- the embedded competition -------------------------------------------------------------------------------------


def digits_config(root: Path) -> settings.Config:
    path = root / "configs/competition/digits.yaml"
    path.write_text("data:\n  folder: data/digits\n  make: digits()\n  channels: 1\n")
    return settings.compose({"competition": "digits", "model": "tiny"})


def test_digits_are_written_once_as_kaggle_would_ship_them(whales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2
    from sklearn.datasets import load_digits

    root = whales.parent.parent
    found = load(digits_config(root))
    assert "data/digits: written by digits()" in capsys.readouterr().out
    folder = root / "data/digits"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sample_submission.csv", "solution.csv", "test_images", "train.csv", "train_images",
    ]  # fmt: skip
    assert [path.name for path in (root / "data").iterdir() if path.name.startswith(".")] == []
    assert (len(found.train), len(found.test)) == (1437, 360)
    assert list(found.sample.columns) == ["id", "label"]
    assert found.sample["label"].unique().tolist() == ["0"]
    solution = pd.read_csv(folder / "solution.csv", dtype=str)
    assert list(solution.columns) == ["id", "label", "Usage"]
    assert solution["Usage"].value_counts().to_dict() == {"Public": 180, "Private": 180}
    assert solution["id"].tolist() == found.sample["id"].tolist()
    assert set(solution["label"].value_counts()) <= {35, 36, 37}
    labels = dict(zip(found.train["id"], found.targets["label"], strict=True)) | dict(
        zip(solution["id"], solution["label"], strict=True)
    )
    scans, truth = load_digits(return_X_y=True)
    known = {
        np.rint(scan * (255 / 16)).astype(np.uint8).tobytes(): str(label)
        for scan, label in zip(scans, truth, strict=True)
    }
    for table in (found.train, found.test):
        for image_id, file in zip(table["id"], table["file"], strict=True):
            image = cv2.imread(str(folder / file), cv2.IMREAD_UNCHANGED)
            assert image.shape == (8, 8)
            assert known[image.tobytes()] == labels[image_id]


def test_digits_are_the_same_bytes_each_time(whales: Path) -> None:
    from pipeline.parts.makers import digits

    contents = []
    for name in ("one", "two"):
        folder = whales.parent / name
        folder.mkdir()
        digits(folder)
        contents.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 1797 + 3


def test_a_maker_that_is_killed_leaves_no_folder(whales: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.parts import makers

    def breaks(folder: Path) -> None:
        (folder / "train.csv").write_text("id,label\n")
        raise KeyboardInterrupt

    root = whales.parent.parent
    config = digits_config(root)
    monkeypatch.setattr(makers, "digits", breaks)
    with pytest.raises(KeyboardInterrupt):
        load(config)
    assert not (root / "data/digits").exists()


# --- classes in the names of files --------------------------------------------------------------------------------


def test_the_names_of_files_may_tell_the_class(whales: Path) -> None:
    for row, path in enumerate(sorted((whales / "train_images").iterdir())):
        path.rename(path.with_name(f"{'great_white' if row % 2 else 'orca'}_{row}.png"))
    found = load(small_competition.config(data__train_csv="", data__named="{label}_{number}"))
    assert found.train["id"].tolist() == [f"great_white_{row}.png" for row in (1, 11, 3, 5, 7, 9)] + [
        f"orca_{row}.png" for row in (0, 10, 2, 4, 6, 8)
    ]
    assert found.targets["label"].tolist() == ["great_white"] * 6 + ["orca"] * 6


def test_names_that_tell_no_class_are_named(whales: Path) -> None:
    fails("12 of 12 names do not fit: 000a.png", data__train_csv="", data__named="{label}_{number}")
    fails("it needs {label} and {number}", data__train_csv="", data__named="{label}_*")
