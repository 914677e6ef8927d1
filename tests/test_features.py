"""Side features: columns, joined tables and image facts as numbers; what repeats the target or the id is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import small_competition as small

from pipeline import features
from pipeline.competition import load
from pipeline.errors import UserError

ROWS, TESTS = 12, len(small.TEST_IDS)
IDS = [f"{row:03d}a" for row in range(ROWS)]


@pytest.fixture
def folder(project) -> Path:
    return small.write(project.root)


def tables(folder: Path, **columns: list[object]) -> None:
    """train.csv and test.csv with more columns of 16 cells each: 12 training rows, then the test rows."""
    header = ",".join(["id", "label", *columns])
    rows = zip(IDS, [small.CLASSES[row % 3] for row in range(ROWS)], *(c[:ROWS] for c in columns.values()), strict=True)
    small.table(folder / "train.csv", header, rows)
    rows = zip(small.TEST_IDS, *(cells[ROWS:] for cells in columns.values()), strict=True)
    small.table(folder / "test.csv", ",".join(["id", *columns]), rows)


def config(**changes):
    return small.config(data__test_csv="test.csv", **changes)


def found(asked) -> dict[str, np.ndarray]:
    """All 16 rows of each feature, by name."""
    made = features.table(asked, load(asked))
    every = np.concatenate([made.train, made.test])
    assert made.train.shape == (ROWS, len(made.names))
    assert made.test.shape == (TESTS, len(made.names))
    assert made.categorical.shape == (len(made.names),)
    return {name: every[:, place] for place, name in enumerate(made.names)}


def test_numbers_blanks_and_categories(folder):
    ages = [*range(20, 30), "", "NA", 7, "nan", "1e3", -2.5]
    sites = ["north"] * 8 + ["south", "east"] * 3 + ["south", ""]
    tables(folder, age=ages, site=sites, unasked=list(range(16)))
    asked = config(data__features=["age", "site"])
    made = found(asked)
    np.testing.assert_equal(made["age"], [*range(20, 30), np.nan, np.nan, 7, np.nan, 1000, -2.5])
    codes = {"north": 0.0, "south": 1.0, "east": 2.0, "": np.nan}  # by frequency
    np.testing.assert_equal(made["site"], [codes[site] for site in sites])
    assert "unasked" not in made
    whole = features.table(asked, load(asked))
    assert dict(zip(whole.names, whole.categorical.tolist(), strict=True))["site"]
    assert not whole.categorical[whole.names.index("age")]


def test_equally_frequent_categories_are_in_alphabetical_order():
    _, train, test, categorical = features.encode("x", np.array(["b", "a", "b", "a"]), np.array(["c", "b", "a", "c"]))
    assert categorical
    assert [*train, *test] == [1, 0, 1, 0, 2, 1, 0, 2]


def test_what_says_nothing_is_left_out(folder, capsys):
    tables(folder, same=["x"] * 16, text=[f"scan {n}" for n in range(16)], only_test=[3] * 12 + [1, 2, 3, 4])
    made = found(config(data__features=["same", "text", "only_test"]))
    assert not {"same", "text", "only_test"} & set(made)
    assert "text is left out: nearly every row has its own text" in capsys.readouterr().out


def test_blanks_alone_can_tell(folder):
    tables(folder, scar=[1, "", 1, ""] * 4)
    assert np.isnan(found(config(data__features=["scar"]))["scar"]).tolist() == [False, True] * 8


def test_columns_that_are_not_there_or_repeat_the_target(folder):
    cells = [small.CLASSES[row % 3] for row in range(16)]
    other = {"cat": "A", "dog": "B", "owl": "C"}
    tables(folder, breed=cells, code=[other[cell] for cell in cells], name=[*IDS, "w", "x", "y", "z"])
    for name, what in (
        ("label", "the test table has no such column"),
        ("bread", "the training table has no such column.*did you mean breed"),
        ("breed", "repeats the target label"),
        ("code", "repeats the target label"),
        ("name", "repeats the id"),
        ("id", "is the id"),
    ):
        with pytest.raises(UserError, match=f"data.features={name}, but .*{what}"):
            found(config(data__features=[name]))


def test_unique_numbers_are_no_ids(folder):
    tables(folder, depth=[0.5 * n for n in range(16)])
    assert found(config(data__features=["depth"]))["depth"].tolist() == [0.5 * n for n in range(16)]


def test_joined_tables(folder, capsys):
    tables(folder)
    ids = [*small.TEST_IDS[::-1], *IDS[::-1]]
    rows = [(name, n, small.CLASSES[int(name[:3]) % 3] if name in IDS else "cat") for n, name in enumerate(ids)]
    small.table(folder / "meta.csv", "id,order,label", [*rows[:-1], ("unknown", 99, "cat"), rows[3], rows[0]])
    asked = config(data__tables=["meta.csv"])
    made = found(asked)
    wanted = {name: float(n) for n, name in enumerate(ids)} | {ids[-1]: np.nan}
    np.testing.assert_equal(made["order"], [wanted[name] for name in [*IDS, *small.TEST_IDS]])
    assert "label" not in made
    printed = capsys.readouterr().out
    assert "label of meta.csv is left out: it is the target" in printed
    assert "2 ids stand more than once" in printed


def test_joined_tables_with_other_ids(folder, capsys):
    tables(folder)
    ids = [*IDS, *small.TEST_IDS]
    small.table(folder / "named.csv", "id,lens", [(f"{name}.png", n % 2) for n, name in enumerate(ids)])
    small.table(folder / "half.csv", "id,only", [(name, n) for n, name in enumerate(IDS)])
    small.table(folder / "more.csv", "id,lens", [(name, n // 8) for n, name in enumerate(ids)])
    made = found(config(data__tables=["named.csv", "half.csv", "more.csv"]))
    assert made["lens"].tolist() == [0, 1] * 8
    assert made["lens (2)"].tolist() == [0] * 8 + [1] * 8
    assert "only" not in made
    assert "half.csv is left out: it has none of the test ids" in capsys.readouterr().out


def test_tables_that_are_not_there(folder):
    tables(folder)
    with pytest.raises(UserError, match="meta.csv does not exist .set by data.tables."):
        found(config(data__tables=["meta.csv"]))
    with pytest.raises(UserError, match=r"data.tables=../other.csv, but a table lies in data.folder"):
        found(config(data__tables=["../other.csv"]))
    small.table(folder / "meta.csv", "key,x", [(1, 2)])
    with pytest.raises(UserError, match="no column 'id'"):
        found(config(data__tables=["meta.csv"]))


def test_image_facts_against_the_files(folder):
    tables(folder)
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = folder / "train_images" / "003a.png"
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    (folder / "train_images" / "005a.png").write_bytes(b"no picture")
    made = found(config())
    assert set(made) == {"width", "height", "aspect", "bytes", "mean red", "mean green", "mean blue", "spread"}
    row = {name: cells[3] for name, cells in made.items()}
    blue, green, red = picture.reshape(-1, 3).mean(axis=0)
    wanted = {
        "width": 9, "height": 6, "aspect": 1.5, "bytes": path.stat().st_size, "mean red": red, "mean green": green,
        "mean blue": blue, "spread": picture.std(),
    }  # fmt: skip
    assert row == pytest.approx(wanted, rel=1e-5)
    broken = {name: cells[5] for name, cells in made.items()}
    assert broken.pop("bytes") == 10
    assert all(np.isnan(value) for value in broken.values())
    assert made["mean red"][:3].tolist() == [10, 30, 50]


def test_grey_and_one_size(folder):
    tables(folder)
    made = found(config(data__channels=1))
    assert set(made) <= {"bytes", "mean grey"}, "all are 8×8 and plain"
    assert made["mean grey"][0] == pytest.approx(10, abs=1)


def test_kept_until_something_changes(folder, monkeypatch):
    tables(folder, depth=[n % 4 for n in range(16)])
    asked = config(data__features=["depth"])
    first = features.table(asked, load(asked))
    path = small.asked_folder(asked, "features.npz")
    assert path.is_file()

    def look(*_, **__):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(features.images, "look", look)
        again = features.table(asked, load(asked))
        assert again.names == first.names
        assert again.fingerprint == first.fingerprint
        np.testing.assert_equal(again.train, first.train)
        with pytest.raises(AssertionError, match="read again"):
            features.table(config(), load(config()))
    path.write_bytes(path.read_bytes()[:50])
    assert features.table(asked, load(asked)).fingerprint == first.fingerprint
    tables(folder, depth=[n % 5 for n in range(16)])
    assert features.table(asked, load(asked)).fingerprint != first.fingerprint


# --- in a package -------------------------------------------------------------------------------------------------


def test_features_of_other_rows_are_coded_as_these(folder):
    """Numbers, categories by the order they had, facts of images; a category that nobody knew is blank."""
    tables(folder, age=[*range(15), ""], site=["north"] * 8 + ["south", "east"] * 4)
    meta = ((name, 3.5 * row, ("red", "blue")[row % 2]) for row, name in enumerate([*IDS, *small.TEST_IDS]))
    small.table(folder / "meta.csv", "id,weight,site", meta)
    asked = config(data__features=["age", "site"], data__tables=["meta.csv"])
    made, coded = features.table(asked, load(asked)), features.coding(asked, load(asked))
    assert [one["name"] for one in coded] == made.names
    assert "site (2)" in made.names
    np.testing.assert_equal(features.of_tests(asked, load(asked), coded), made.test)
    rows = ((name, 1, site) for name, site in zip(small.TEST_IDS, ["west", "east", "", "north"], strict=True))
    small.table(folder / "test.csv", "id,age,site", rows)
    fresh = features.of_tests(asked, load(asked), coded)[:, made.names.index("site")]
    north, east = 0.0, 1.0  # four of each of the others, in the order of their names
    np.testing.assert_equal(fresh, [np.nan, east, np.nan, north])
