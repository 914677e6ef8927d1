"""JSON that is a table: what is read, what is refused, and competitions that are shipped so."""

from __future__ import annotations

import json

import drawn
import pytest

from pipeline import config as settings
from pipeline import json_tables
from pipeline.competition import load
from pipeline.errors import UserError
from pipeline.tables import read_table

IMAGES = [{"id": 7, "file_name": "a/7.jpg", "location": None}, {"id": 8, "file_name": "b/8.jpg", "location": 3}]


def cells(content: object) -> list[dict[str, str]]:
    return json_tables.parse(json.dumps(content)).to_dict("records")


def test_annotations_with_what_is_said_of_their_images():
    found = cells({
        "images": IMAGES, "categories": [{"id": 0, "name": "cat"}],
        "annotations": [{"id": "x", "image_id": 8, "category_id": 0}, {"id": "y", "image_id": 7, "category_id": 5}],
    })  # fmt: skip
    assert found == [
        {"image_id": "8", "file_name": "b/8.jpg", "location": "3", "category_id": "0"},
        {"image_id": "7", "file_name": "a/7.jpg", "location": "", "category_id": "5"},
    ]


def test_ids_that_are_numbers_in_one_part_and_texts_in_the_other():
    found = cells({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": "1", "label": "x"}]})
    assert found == [{"image_id": "1", "file_name": "a", "label": "x"}]
    assert cells({"images": [], "annotations": None}) == []


def test_images_without_annotations_have_the_same_column_of_ids():
    assert cells({"images": IMAGES})[0] == {"image_id": "7", "file_name": "a/7.jpg", "location": ""}


def test_labels_of_an_image_in_a_list_are_one_cell():
    """iMaterialist calls it imageId, and its labels are texts."""
    found = cells({
        "images": [{"imageId": "1", "url": "u"}], "annotations": [{"imageId": "1", "labelId": ["95", "66"]}],
    })  # fmt: skip
    assert found == [{"image_id": "1", "url": "u", "labelId": "95 66"}]


def test_records_lines_and_labels_by_name():
    records = [{"file": "a.png", "label": 1.5}, {"file": "b.png", "other": True}]
    assert cells(records) == [
        {"file": "a.png", "label": "1.5", "other": ""}, {"file": "b.png", "label": "", "other": "True"},
    ]  # fmt: skip
    assert cells({"a.png": "cat", "b.png": 2}) == [{"id": "a.png", "label": "cat"}, {"id": "b.png", "label": "2"}]
    assert cells({"id": ["a", "b"], "label": [1, 2]}) == [{"id": "a", "label": "1"}, {"id": "b", "label": "2"}]
    assert cells([{"id": "a", "label": float("nan")}]) == [{"id": "a", "label": ""}]
    lines = "\n".join(map(json.dumps, records)) + "\n\n"
    assert json_tables.parse(lines, lines=True).to_dict("records") == cells(records)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}', "its annotations are regions of images"),
        ('{"annotations": [1]}', "no records"),
        ("[1, 2]", "it is no list of records"),
        ("3", "it is no list of records"),
        ('[{"a": {"b": 1}}]', "its records hold records"),
        ('{"a": [[1]]}', "its records hold records or lists of lists"),
        ('{"a": ', "Expecting value"),
        ("[]", "has a header but no rows"),
        ('{"images": 24, "labels": 3}', "its images are no records"),
        ('{"images": [{"id": [1]}], "annotations": [{"image_id": 1}]}', "has no image's id"),
        ('{"images": [{"name": "a"}]}', "has no image's id"),
        ('{"images": [{"id": 1}, {"id": 1}]}', "1 of its images repeat the id of another"),
        ("[" * 3000 + "]" * 3000, "train.json is no table"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, text, says):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"train\.json.*") as caught:
        read_table(path)
    assert says in str(caught.value)


# --- competitions -------------------------------------------------------------------------------------------------


def herbarium(project) -> None:
    """Images in folders of their classes; ids of the test rows that are no files' names; COCO's form."""
    folder, classes = project.root / "data/herb", [k % 3 for k in range(24)]
    images, annotations, tests = [], [], []
    for k, label in enumerate(classes):
        name = f"{label:03d}__{k:03d}"
        drawn.save(folder / f"train_images/{label:03d}/{name}.png", drawn.picture(label, k))
        images.append({"image_id": name, "file_name": f"{label:03d}/{name}.png", "license": 1})
        annotations.append({"category_id": label, "institution_id": k % 5, "image_id": name})
    for k in range(6):
        drawn.save(folder / f"test_images/000/test-{k:03d}.png", drawn.picture(k % 3, 100 + k))
        tests.append({"file_name": f"000/test-{k:03d}.png", "image_id": str(k), "license": 1})
    (folder / "train_metadata.json").write_text(json.dumps({"annotations": annotations, "images": images}))
    (folder / "test_metadata.json").write_text(json.dumps(tests))
    (folder / "sample_submission.csv").write_text("\n".join(["Id,Predicted", *(f"{k},0" for k in range(6))]) + "\n")


def test_a_competition_in_cocos_form(project):
    herbarium(project)
    ended = project.run("stage=new", "name=herb", "data=data/herb")
    assert ended.code == 0, ended.err
    config = settings.compose({"competition": "herb"})
    data = config.data
    assert (data.train_csv, data.test_csv) == ("train_metadata.json", "test_metadata.json")
    assert (data.id, data.image, data.target) == ("image_id", "file_name", ["category_id"])
    assert (data.train_images, data.test_images) == ("train_images", "test_images"), "not test_images/000"
    known = load(config)
    assert known.train["file"][4] == "train_images/001/001__004.png"
    assert known.test["id"].tolist() == [str(k) for k in range(6)]
    assert known.test["file"][5] == "test_images/000/test-005.png"


def test_json_that_is_no_table_is_let_be(project):
    herbarium(project)
    folder = project.root / "data/herb"
    (folder / "train_notes.json").write_text('{"a": {"deep": [1]}}')
    ended = project.run("stage=new", "name=other", f"data={folder}")
    assert ended.code == 0, ended.err
    assert "not read: " in ended.out
    assert "train_notes.json is no table" in ended.out


def test_csv_stands_before_json_and_json_of_images_is_left_out(project):
    herbarium(project)
    folder = project.root / "data/herb"
    images = json.loads((folder / "train_metadata.json").read_text())["images"]
    labels = [f"{one['image_id']},{one['file_name']},{'abc'[k % 3]}" for k, one in enumerate(images)]
    (folder / "train_metadata.csv").write_text("\n".join(["image_id,file_name,category_id", *labels]) + "\n")
    tests = [f"{k},000/test-{k:03d}.png" for k in range(6)]
    (folder / "test_metadata.csv").write_text("\n".join(["image_id,file_name", *tests]) + "\n")
    for path in folder.glob("train_images/*/*.png"):
        path.with_suffix(".json").write_text("{}")
    ended = project.run("stage=new", "name=herb", "data=data/herb")
    assert ended.code == 0, ended.err
    assert settings.compose({"competition": "herb"}).data.train_csv == "train_metadata.csv"
    assert "not read" not in ended.out
