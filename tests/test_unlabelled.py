"""Images nobody labelled: which ones data.unlabelled names, and one message for each fault."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import small_competition

from pipeline import config, stores, unlabelled
from pipeline.competition import Competition, load
from pipeline.errors import UserError


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small competition with four more images: two in a folder, one in a folder in it, and one in a zip."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    folder = small_competition.write(tmp_path)
    (folder / "more" / "deep").mkdir(parents=True)
    for name in ("a_left", "b_right", "deep/c_left"):
        shutil.copy(folder / "test_images" / "007.png", folder / "more" / f"{name}.png")
    (folder / "more" / "notes.txt").write_text("no image")
    shutil.make_archive(str(folder / "packed"), "zip", folder / "more", "deep")
    return folder


def loaded(named: str, **changes: object) -> Competition:
    return load(small_competition.config(data__unlabelled=named, **changes))


def ids(named: str, **changes: object) -> list[str]:
    return loaded(named, **changes).unlabelled["id"].tolist()


def test_a_folder_a_zip_and_a_pattern_name_images(whales: Path) -> None:
    assert ids("") == []
    assert ids("more") == ids("more/") == ["more/a_left.png", "more/b_right.png", "more/deep/c_left.png"]
    assert ids("more/*_left.png") == ["more/a_left.png", "more/deep/c_left.png"]
    assert ids("m[o]re/deep/*") == ["more/deep/c_left.png"]
    found = loaded("packed.zip").unlabelled
    assert found["file"].tolist() == ["packed.zip/deep/c_left.png"]
    assert list(found.columns) == ["id", "file"]


def test_rows_of_the_tables_are_left_out(whales: Path) -> None:
    shutil.copy(whales / "more" / "a_left.png", whales / "train_images" / "unknown.png")
    assert ids("train_images") == ["train_images/unknown.png"]
    assert ids("*.png") == [*ids("more"), "train_images/unknown.png"]


def test_files_that_are_channels_of_one_image_are_joined(whales: Path) -> None:
    patterns = ["{id}_left.png", "{id}_right.png"]
    for folder, names in (
        ("train_images", [f"{row:03d}a" for row in range(12)]),
        ("test_images", small_competition.TEST_IDS),
    ):
        for name in names:
            (whales / folder / f"{name}_left.png").write_bytes((whales / folder / f"{name}.png").read_bytes())
            (whales / folder / f"{name}.png").rename(whales / folder / f"{name}_right.png")
    shutil.copy(whales / "more" / "a_left.png", whales / "more" / "b_left.png")
    found = loaded("more", data__files=patterns, data__channels=2).unlabelled
    assert found["id"].tolist() == ["more/b"], "an image that lacks a channel is left out"
    assert found["file"].tolist() == ["more/b_left.png\x1fmore/b_right.png"]


def test_images_are_read_as_those_of_the_tables_and_broken_ones_are_told(whales: Path) -> None:
    (whales / "more" / "deep" / "c_left.png").write_bytes(b"no image")
    config = small_competition.config(data__unlabelled="more")
    competition = load(config)
    store = stores.unlabelled_store(config, competition, 8)
    same = stores.test_store(config, competition, 8).take(np.array([0]))
    assert store.shape == (3, 8, 8, 3)
    assert (store.take(np.array([0, 1])) == same).all()
    assert store.broken.tolist() == [2]


def test_other_images_are_another_digest_but_not_another_competition(whales: Path) -> None:
    before = loaded("more")
    assert before.fingerprint == loaded("").fingerprint
    digest = unlabelled.digest(whales, before.unlabelled)
    (whales / "more" / "a_left.png").write_bytes(b"other size")
    assert unlabelled.digest(whales, before.unlabelled) != digest
    assert dataclasses.replace(before).unlabelled is before.unlabelled


@pytest.mark.parametrize(
    ("named", "changes", "said"),
    [
        ("nowhere", {}, "nowhere is no folder"),
        ("train_images", {}, "each of its 12 images is a training or test row"),
        ("more/*.jpg", {}, "names no image in data/whales: data/whales/more holds 4 files"),
        ("/etc", {}, "would leave data.folder"),
        ("more/../../x", {}, "would leave data.folder"),
        ("more", {"data__box": ["x", "y", "w", "h"]}, "no boxes to crop to"),
        (
            "more",
            {"data__files": ["{id}.png", "{id}_b.png"]},
            "whose files are called {id}.png, {id}_b.png (data.files)",
        ),
    ],
)
def test_what_names_no_such_images_is_told(whales: Path, named: str, changes: dict[str, object], said: str) -> None:
    if changes.get("data__files"):
        for path in list(whales.glob("*_images/*.png")):
            shutil.copy(path, path.with_name(f"{path.stem}_b.png"))
    with pytest.raises(UserError) as caught:
        loaded(named, **changes)
    assert said in str(caught.value)


def test_an_image_that_is_called_like_a_row_is_refused(whales: Path) -> None:
    for name in ("train_images/more/a_left.png", "train_images/more/x.png"):
        (whales / name).parent.mkdir(exist_ok=True)
        shutil.copy(whales / "more" / "a_left.png", whales / name)
    path = whales / "train.csv"
    path.write_text(path.read_text() + "more/a_left.png,cat\n")
    with pytest.raises(UserError, match="1 images of data.unlabelled=more are called like rows of the tables"):
        loaded("more")


# --- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_draws_labels_asks_what_there_is_and_writes_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    path = Path(__file__).resolve().parent.parent / "benchmarks/unlabelled.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_unlabelled", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    data = tmp_path / "data" / module.DATA
    data.mkdir(parents=True)
    small_competition.table(data / "train.csv", "id,label", ((f"{row:03d}", row % 10) for row in range(60)))
    bench = module.Bench(tmp_path / "data", tmp_path / "out", 40, ["folds.count=2"], "1/1")
    asked = {}
    for method in module.there():
        for line in (*method.commands, f"stage=submit source={method.run}"):
            words = bench.words(2, 0, line)
            asked[line] = config.compose(config.parse_arguments(words))
            assert len({word.partition("=")[0] for word in words}) == len(words)
    assert {one.stage for one in asked.values()} == {"train", "predict", "pseudo", "pretrain", "submit"}
    full = config.compose(config.parse_arguments(bench.words(2, 0, f"stage=train {module.FULL}")))
    assert (full.fold, full.epochs) == (["full"], 64), "40 steps of 32 images, of all 20 rows"
    assert module.line("x", [(module.Row(0.8, None, 0.5, 3.0), module.Row(0.7, 0.6, 0.5, 3.0))]) == (
        "| x | 0.8000 | +0.1000 |  |  | 0.500 | 3 | 1 |"
    )
    epochs = {(one.stage == "pseudo", one.epochs) for one in asked.values()}
    assert epochs == {(False, 128), (True, 1)}, "40 steps of 32 images, of 10 rows and, with pseudo-labels, 2,000 more"
    drawn = (tmp_path / "out/project/tables/labels2-0.csv").read_text().split()[1:]
    assert sorted(line[-1] for line in drawn) == sorted("0123456789" * 2)
    for method, accuracy, less in ((module.METHODS[0], 0.7, 0.1), (module.NAMED["FixMatch"], 0.75, 0.11)):
        for seed in (0, 1):
            row = {
                "accuracy": accuracy + seed / 100,
                "single": accuracy - less + seed / 100,
                "oof": 0.5,
                "seconds": 3.0,
            }
            (tmp_path / "out/rows").mkdir(exist_ok=True)
            bench.path(method, 2, seed).write_text(json.dumps(row))
    old = "# Title\n\nBy hand.\n\n## 10 labels a class, 40 steps\n\nother\n\n## 2 labels a class, 40 steps\n\ngone\n"
    page = module.page(old, bench, [2], 2)
    titles = [line for line in page.splitlines() if line.startswith("#")]
    assert titles == ["# Title", "## 2 labels a class, 40 steps", "## 10 labels a class, 40 steps"]
    assert "gone" not in page
    assert page.startswith("# Title\n\nBy hand.\n")
    assert page.endswith("\n\nother\n")
    assert module.hoped(bench, 2, 2) == [
        "The most that is gained: of all members +0.0500 ± 0.0000, FixMatch: at least 0.05, which was hoped for; "
        "of one network +0.0400 ± 0.0000, FixMatch: less than 0.05, which was hoped for."
    ]
    nothing = "+0.0000 ± 0.0000"
    assert f"| labels alone | 0.7050 ± 0.0050 | {nothing} | 0.6050 ± 0.0050 | {nothing} | 0.500 | 3 | 2 |" in page
    assert "| 0.7550 ± 0.0050 | +0.0500 ± 0.0000 | 0.6450 ± 0.0050 | +0.0400 ± 0.0000 | 0.500 | 3 | 2 |" in page
    assert "| mean teacher | | | | | | | 0: not yet |" in page
