"""The embedded competitions of masks and of retrieval, as their folders hold them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline import rle
from pipeline.parts import makers

Truth = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits_segmentation")
    makers.digits_segmentation(folder)
    return folder


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)


def masks(folder: Path, frame: pd.DataFrame, images: str) -> Truth:
    """Image and mask by id."""
    found = {}
    for name, text in zip(frame["ImageId"], frame["EncodedPixels"], strict=True):
        image = cv2.imread(str(folder / images / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        found[name] = image, rle.decode(text, *image.shape[:2])
    return found


@pytest.fixture(scope="module")
def train(made: Path) -> Truth:
    return masks(made, table(made, "train"), "train_images")


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makers, "TRAIN_IMAGES", 6)
    monkeypatch.setattr(makers, "TEST_IMAGES", 4)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_written_as_kaggle_would_ship_it(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == [
        "sample_submission.csv", "solution.csv", "test_images", "train.csv", "train_images",
    ]  # fmt: skip
    sample, solution = table(made, "sample_submission"), table(made, "solution")
    assert list(table(made, "train").columns) == ["ImageId", "EncodedPixels"] == list(sample.columns)
    assert list(solution.columns) == ["ImageId", "EncodedPixels", "Usage"]
    assert solution["ImageId"].tolist() == sample["ImageId"].tolist()
    assert solution["Usage"].value_counts().to_dict() == {"Public": 75, "Private": 75}
    for name, count in (("train", 400), ("test", 150)):
        ids = table(made, "train" if name == "train" else "solution")["ImageId"]
        assert sorted(path.stem for path in (made / f"{name}_images").iterdir()) == ids.tolist()
        assert ids.nunique() == count


def test_masks_fit_their_images_and_come_back_as_their_texts(made: Path, train: Truth) -> None:
    test = masks(made, table(made, "solution"), "test_images")
    texts = pd.concat([table(made, "train"), table(made, "solution")]).set_index("ImageId")["EncodedPixels"]
    for name, (image, mask) in (train | test).items():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert rle.encode(mask) == texts[name]
    for some in (train, test):
        assert 0.1 <= np.mean([not mask.any() for _, mask in some.values()]) <= 0.25
        assert 0.02 <= np.mean([mask.mean() for _, mask in some.values()]) <= 0.08


def test_images_are_of_many_sizes_and_sides_that_differ(train: Truth) -> None:
    sizes = {image.shape[:2] for image, _ in train.values()}
    assert {side for size in sizes for side in size} == {64, 75, 90, 101, 128}
    assert len(sizes) == 25


def test_brightness_alone_finds_no_digits(train: Truth) -> None:
    shades = [(image.mean(axis=2), mask > 0) for image, mask in train.values() if mask.any()]
    best = 0.0
    for level in range(5, 256, 10):
        for brighter in (True, False):
            answers = [((shade > level) == brighter, mask) for shade, mask in shades]
            dice = [2 * (answer & mask).sum() / (answer.sum() + mask.sum()) for answer, mask in answers]
            best = max(best, float(np.mean(dice)))
    assert best < 0.3


def test_strokes_stand_out_from_what_is_around_them(train: Truth) -> None:
    apart = []
    for image, mask in train.values():
        if mask.any():
            ring = cv2.dilate(mask, np.ones((7, 7))) - cv2.dilate(mask, np.ones((3, 3)))
            apart.append(image[mask > 0].mean() - image[ring > 0].mean())
    assert np.mean(np.abs(apart) > 15) > 0.75
    assert 0.2 < np.mean(np.array(apart) > 0) < 0.8, "as often lighter as darker"


def test_the_same_bytes_each_time_and_others_by_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        (tmp_path / name).mkdir()
        makers.digits_segmentation(tmp_path / name, seed=seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert len(one) == 6 + 4 + 3
    assert one != three


def test_no_scan_is_drawn_in_both_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    given: dict[str, set[bytes]] = {}

    def draw(path: Path, photographs: object, scans: np.ndarray, generator: object) -> str:
        given[path.parent.name] = {scan.tobytes() for scan in scans}
        return ""

    monkeypatch.setattr(makers, "_draw", draw)
    makers.digits_segmentation(tmp_path)
    assert not given["train_images"] & given["test_images"]
    assert len(given["train_images"] | given["test_images"]) == 1797


# --- retrieval ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits_retrieval")
    makers.digits_retrieval(folder)
    return folder


def lists(folder: Path, name: str) -> dict[str, list[str]]:
    """The ids that a table gives each query."""
    frame = table(folder, name)
    return {query: text.split() for query, text in zip(frame["id"], frame["matches"], strict=True)}


def roles(folder: Path) -> tuple[list[str], list[str]]:
    """The ids of queries and those of the gallery."""
    test = table(folder, "test")
    return (test["id"][test["role"] == "query"].tolist(), test["id"][test["role"] == "gallery"].tolist())


def pixels(folder: Path, ids: list[str]) -> np.ndarray:
    """Images as rows of length one."""
    paths = [str(folder / "test_images" / f"{name}.png") for name in ids]
    rows = np.stack([cv2.imread(path, cv2.IMREAD_UNCHANGED).ravel() for path in paths]).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_retrieval_is_written_as_a_competition_of_ranked_lists(open_set: Path) -> None:
    train, test = table(open_set, "train"), table(open_set, "test")
    assert (list(train.columns), list(test.columns)) == (["id", "identity"], ["id", "role"])
    assert sorted(set(train["identity"])) == [f"d{digit}" for digit in range(7)]
    queries, gallery = roles(open_set)
    assert (len(train), len(queries), len(gallery)) == (1264, 120, 413)
    for name, ids in (("train_images", train["id"]), ("test_images", test["id"])):
        assert sorted(path.stem for path in (open_set / name).iterdir()) == ids.tolist()
    assert not set(train["id"]) & set(test["id"])
    sample, solution = lists(open_set, "sample_submission"), lists(open_set, "solution")
    assert list(sample) == list(solution) == queries
    assert all(len(set(answer)) == len(answer) == 20 and set(answer) <= set(gallery) for answer in sample.values())


def test_retrieval_s_solution_names_all_that_match_and_parts_the_identities(open_set: Path) -> None:
    solution, gallery = lists(open_set, "solution"), roles(open_set)[1]
    groups = {tuple(matches) for matches in solution.values()}
    assert len(groups) == 3
    assert sorted(name for group in groups for name in group) == sorted(gallery)
    usage = table(open_set, "solution").assign(group=[" ".join(one) for one in solution.values()])
    assert set(usage.groupby(["group", "Usage"]).size()) == {20}


def test_retrieval_has_images_that_pixels_alone_find_badly(open_set: Path) -> None:
    """Mean average precision at 20 of the nearest by cosine; of the raw scans it would be above 0.9."""
    queries, gallery = roles(open_set)
    order = np.argsort(-pixels(open_set, queries) @ pixels(open_set, gallery).T, axis=1)[:, :20]
    scores = []
    for answer, matches in zip(order, lists(open_set, "solution").values(), strict=True):
        hits = [gallery[place] in matches for place in answer]
        scores.append(sum(sum(hits[: rank + 1]) / (rank + 1) for rank in range(20) if hits[rank]) / 20)
    assert 0.25 < np.mean(scores) < 0.6
    assert cv2.imread(str(next((open_set / "train_images").iterdir())), cv2.IMREAD_UNCHANGED).shape == (24, 24)


def test_retrieval_is_the_same_bytes_each_time_and_others_by_another_seed(open_set: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        makers.digits_retrieval(tmp_path / name, seed=seed)
    assert contents(tmp_path / "again") == contents(open_set)
    assert contents(tmp_path / "other") != contents(open_set)
