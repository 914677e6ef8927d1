"""Queries and what they search: a role column, a folder or csv of a gallery, and one message for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_competition
from small_competition import table

from pipeline.competition import load
from pipeline.errors import UserError

QUERIES = small_competition.TEST_IDS  # 007, 010, 003, 001


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four queries, which the sample asks for, and a gallery of five images in two folders."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    folder = small_competition.write(tmp_path)
    image = (folder / "test_images" / "007.png").read_bytes()
    for row in range(5):
        path = folder / "gallery" / f"site{row % 2}" / f"g{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return folder


SEARCH = {"task": "retrieval()", "metric": "mean_average_precision(k=20)", "folds__method": "identity_kfold()"}


def loaded(**data: object):
    return load(small_competition.config(**SEARCH, **{f"data__{key}": value for key, value in data.items()}))


def fails(*words: str, **data: object) -> None:
    with pytest.raises(UserError) as caught:
        loaded(**data)
    for word in words:
        assert word in str(caught.value)


def roles(folder: Path, words: list[str]) -> dict[str, str]:
    """test.csv of the sample's ids and more, with a role each; the settings that read it."""
    ids = [*QUERIES, "g0", "g1"]
    for name in ids[4:]:
        (folder / "test_images" / f"{name}.png").write_bytes((folder / "test_images" / "007.png").read_bytes())
    table(folder / "test.csv", "id,role", zip(ids, words, strict=True))
    return {"test_csv": "test.csv", "role": "role"}


# --- what loads ---------------------------------------------------------------------------------------------------


def test_a_folder_of_a_gallery_follows_the_queries(whales):
    found = loaded(gallery="gallery")
    assert found.test["id"].tolist() == [*QUERIES, "g0", "g2", "g4", "g1", "g3"]
    assert found.test["file"].tolist()[3:6] == ["test_images/001.png", "gallery/site0/g0.png", "gallery/site0/g2.png"]
    assert found.sample.iloc[:, 0].tolist() == list(QUERIES)
    assert found.test_table["id"].tolist() == found.test["id"].tolist()


def test_ids_of_the_gallery_have_a_suffix_where_the_test_ids_have_one(whales):
    table(whales / "sample_submission.csv", "id,label", ((f"{name}.png", "") for name in QUERIES))
    assert loaded(gallery="gallery").test["id"].tolist()[4:6] == ["g0.png", "g2.png"]


def test_a_csv_names_the_gallery_and_its_images_lie_in_the_folder_of_its_name(whales):
    table(whales / "gallery.csv", "id,site", [("g3", "1"), ("g0", "0")])
    found = loaded(gallery="gallery.csv")
    assert found.test["id"].tolist()[4:] == ["g3", "g0"]
    assert found.test["file"].tolist()[4:] == ["gallery/site1/g3.png", "gallery/site0/g0.png"]
    assert found.test_table["site"].tolist() == ["", "", "", "", "1", "0"]


def test_a_csv_without_a_folder_of_its_name_means_the_test_images(whales):
    table(whales / "index.csv", "id", [("001",), ("003",)])
    table(whales / "sample_submission.csv", "id,label", [("007", ""), ("010", "")])
    found = loaded(gallery="index.csv")
    assert found.test["file"].tolist()[2:] == ["test_images/001.png", "test_images/003.png"]


def test_the_fingerprint_covers_the_gallery(whales):
    table(whales / "gallery.csv", "id", [("g3",), ("g0",)])
    prints = [loaded().fingerprint, loaded(gallery="gallery").fingerprint, loaded(gallery="gallery.csv").fingerprint]
    table(whales / "gallery.csv", "id", [("g0",), ("g3",)])
    prints.append(loaded(gallery="gallery.csv").fingerprint)
    (whales / "gallery" / "site0" / "g0.png").write_bytes(b"other size")
    load.__globals__["_load"].cache_clear()
    prints.append(loaded(gallery="gallery").fingerprint)
    assert len(set(prints)) == 5


def test_roles_are_checked_and_make_the_sample_where_there_is_none(whales):
    data = roles(whales, ["query", " Query", "PROBE", "query", "gallery", "index"])
    assert loaded(**data).test["id"].tolist() == [*QUERIES, "g0", "g1"]
    assert loaded(**data, sample="").sample["id"].tolist() == list(QUERIES)


def test_without_a_role_a_sample_may_ask_for_some_of_the_rows(whales):
    data = roles(whales, ["a", "b", "c", "d", "e", "f"])
    assert len(loaded(**(data | {"role": ""})).test) == 6


def test_without_a_sample_all_test_images_ask(whales):
    found = loaded(gallery="gallery", sample="")
    assert found.sample["id"].tolist() == ["001.png", "003.png", "007.png", "010.png"]
    assert found.test["id"].tolist()[4] == "g0.png"


def test_a_camera_is_a_column_of_the_training_table(whales):
    table(whales / "train.csv", "id,label,camera", [("000a", "cat", "c1"), ("001a", "dog", "c2")])
    assert loaded(camera="camera").column("camera", "data.camera").tolist() == ["c1", "c2"]


# --- what does not ------------------------------------------------------------------------------------------------


def test_a_gallery_that_is_not_there_is_named(whales):
    fails("data.gallery=galery", "no such folder, zip or csv", gallery="galery")
    fails("index.csv does not exist (set by data.gallery)", gallery="index.csv")
    (whales / "empty").mkdir()
    fails("data.gallery=empty", "holds no images", gallery="empty")
    fails("give a csv of them", gallery="gallery", files=["{id}.png"])


def test_ids_of_gallery_and_queries_may_not_collide(whales):
    (whales / "gallery" / "007.png").write_bytes(b"x")
    fails("1 images of data/whales/gallery (data.gallery) are called like test rows: 007", gallery="gallery")
    (whales / "gallery" / "007.png").unlink()
    (whales / "gallery" / "site1" / "g0.png").write_bytes(b"x")
    fails("data/whales/gallery: 1 duplicate ids: g0", gallery="gallery")
    table(whales / "gallery.csv", "id", [("g1",), ("g1",)])
    fails("data/whales/gallery.csv: 1 duplicate ids: g1", gallery="gallery.csv")


def test_a_sample_without_ids_or_with_others_is_named(whales):
    sample = whales / "sample_submission.csv"
    table(sample, "id,matches", [("007", "g0"), ("", "g1")])
    fails("data/whales/sample_submission.csv: rows without an id, in lines 3", gallery="gallery")
    table(sample, "id,matches", [("007", "g0"), ("007", "g1")])
    fails("1 duplicate ids: 007", gallery="gallery")
    data = roles(whales, ["query"] * 4 + ["gallery"] * 2)
    table(sample, "id,matches", [("007", "g0"), ("017", "g1")])
    fails("1 of 2 ids are no test rows: 017", **data)


def test_a_role_that_is_unknown_is_named(whales):
    data = roles(whales, ["query", "qery", "query", "query", "gallery", "gallery"])
    fails("test.csv: role (data.role) is 'qery' for ids 010", "probe", "reference", "leave data.role out", **data)
    fails("'qery'", **data, sample="")
    fails("data.role=roles, but", "its columns: id, role", "did you mean role", **(data | {"role": "roles"}))
    fails("data.role=role, but data.test_csv is empty", role="role")


def test_queries_need_something_to_search_and_a_gallery_queries(whales):
    data = roles(whales, ["query"] * 6)
    fails("names no row to search", "data.gallery=FOLDER", **data, sample="")
    (whales / "gallery" / "site0" / "g0.png").unlink()
    (whales / "gallery" / "site1" / "g1.png").unlink()
    assert len(loaded(**data, sample="", gallery="gallery").test) == 9
    fails("names no row that asks", **roles(whales, ["gallery"] * 6), sample="")


def test_roles_and_the_sample_must_agree(whales):
    fails("asks for 001, which are searched by role", **roles(whales, ["query"] * 3 + ["gallery"] * 3))
    fails("lacks g0, which ask by role", "then the sample's ids ask", **roles(whales, ["query"] * 5 + ["gallery"]))


@pytest.mark.parametrize("key", ["gallery", "role", "camera"])
def test_another_task_searches_nothing(whales, key):
    with pytest.raises(UserError, match=f"data.{key}=x does not go with task=multiclass; leave it out"):
        small_competition.config(**{f"data__{key}": "x"})


def test_a_camera_that_is_no_column_is_named(whales):
    fails("has no column 'cam' (data.camera=cam)", camera="cam")
