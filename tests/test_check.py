"""stage=check: planted faults are found, and nothing is found where nothing is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from small_competition import table

from pipeline.doctor import alike, drift, duplicates, leaks, orientation, survey
from pipeline.images import BrokenImage, look

SHAPES = 300


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(rng: np.random.Generator, side: int = 48) -> np.ndarray:
    """Shapes on a coloured ground: (side, side, 3) uint8."""
    image = np.full((side, side, 3), rng.integers(40, 216, 3), np.uint8)
    for _ in range(rng.integers(3, 7)):
        colour, centre = rng.integers(0, 256, 3).tolist(), rng.integers(0, side, 2).tolist()
        if rng.random() < 0.5:
            cv2.circle(image, centre, int(rng.integers(3, side // 3)), colour, -1)
        else:
            cv2.rectangle(image, centre, rng.integers(0, side, 2).tolist(), colour, -1)
    return image


def natural(rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """Smooth noise whose spectrum falls as that of photographs does."""
    waves = np.fft.fftfreq(side)
    falling = 1 / np.maximum(np.hypot(waves[:, None], waves), 1 / side) ** 1.5
    planes = [np.fft.ifft2(falling * np.fft.fft2(rng.normal(size=(side, side)))).real for _ in range(3)]
    image = np.stack([(plane - plane.mean()) / plane.std() for plane in planes], axis=2) * 45 + 120
    return np.clip(image, 0, 255).astype(np.uint8)


def shirt(rng: np.random.Generator, side: int = 28) -> np.ndarray:
    """One of many that look alike: a bright trunk with two sleeves on black, in its own proportions, with a print."""
    image = np.zeros((side, side), np.uint8)
    left, right, top = rng.integers(6, 10), rng.integers(18, 22), rng.integers(1, 5)
    cv2.rectangle(image, (int(left), int(top)), (int(right), 27), int(rng.integers(120, 250)), -1)
    sleeve = int(rng.integers(9, 20))
    for x in (left, right):
        cv2.line(image, (int(x), int(top) + 2), (2 if x == left else 25, sleeve), int(rng.integers(100, 230)), 4)
    cloth = cv2.GaussianBlur(rng.normal(0, 60, (side, side)), (0, 0), 1.2)
    cloth += rng.uniform(0, 30) * np.sin(np.arange(side) * rng.uniform(0.3, 2.5))[:, None]
    woven = np.clip(image + cloth * (image > 0), 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.GaussianBlur(woven, (3, 3), 0), cv2.COLOR_GRAY2BGR)


def copied(image: np.ndarray, way: str, number: int) -> tuple[np.ndarray, str]:
    """A copy of an image, and the suffix of its file."""
    if way == "exact":
        return image, ".png"
    if way == "jpeg":
        return image, ".jpg"
    if way == "resized":
        factor = (0.5, 0.6, 0.75, 1.5, 2.0)[number % 5]
        kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        return cv2.resize(image, None, fx=factor, fy=factor, interpolation=kind), ".png"
    turned = (image[:, ::-1], image[::-1], np.rot90(image), np.rot90(image, 2), image.transpose(1, 0, 2))
    return np.ascontiguousarray(turned[number % 5]), ".png"


def write(path: Path, image: np.ndarray) -> None:
    """Write a picture as its suffix says, JPEG at quality 70."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 70] if path.suffix == ".jpg" else []
    path.write_bytes(cv2.imencode(path.suffix, image, quality)[1].tobytes())


def read(folder: Path, train: Sequence[str], test: Sequence[str] = (), channels: int = 3) -> survey.Survey:
    """Survey files of a folder, whose names are their ids."""
    pairs = [[(name, name) for name in names] for names in (train, test)]
    return survey.read(lambda spec: look(spec, folder, at_least=survey.LOOK_SIDE), *pairs, channels)


def pairs_of(seen: survey.Survey) -> set[tuple[int, int]]:
    """All pairs of rows that are found to be copies."""
    first = duplicates.exact(seen)
    found = alike.all_pairs(first, duplicates.near(seen, first))
    return set(zip(found.a.tolist(), found.b.tolist(), strict=True))


# --- copies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [drawn, natural, shirt])
def test_finds_forty_planted_copies_and_nothing_else(tmp_path, rng, draw):
    names = [f"{row:03d}.png" for row in range(SHAPES)]
    pictures = [draw(rng) for _ in names]
    for name, picture in zip(names, pictures, strict=True):
        write(tmp_path / name, picture)
    planted = set()
    for number, source in enumerate(rng.permutation(SHAPES)[:40].tolist()):
        copy, suffix = copied(pictures[source], ("exact", "jpeg", "resized", "flipped")[number // 10], number)
        names.append(f"copy{number}{suffix}")
        write(tmp_path / names[-1], copy)
        planted.add((source, SHAPES + number))
    found = pairs_of(read(tmp_path, names))
    assert len(found & planted) / len(planted) >= 0.95, sorted(planted - found)
    assert len(found & planted) / len(found) >= 0.9, sorted(found - planted)


def test_pages_digits_and_colours_are_no_copies(tmp_path, rng):
    names = []
    for row in range(120):
        page = np.full((160, 120), 255, np.uint8)
        for line in range(12, 150, 10):
            text = "".join(chr(97 + letter) for letter in rng.integers(0, 26, rng.integers(6, 15)))
            cv2.putText(page, text, (8, line), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 0, 1)
        names.append(f"page{row}.png")
        write(tmp_path / names[-1], page)
    for row in range(40):  # the same shape in other colours of the same brightness
        shape = np.zeros((32, 32, 3), np.uint8)
        hue = np.array([[[4 * row, 200, 180]]], np.uint8)
        cv2.circle(shape, (12, 14), 8, cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist(), -1)
        names.append(f"shape{row}.png")
        write(tmp_path / names[-1], shape)
    found = pairs_of(read(tmp_path, names))
    assert not {pair for pair in found if pair[0] < 120}
    assert not {(a, b) for a, b in found if (b - a) > 3}, "hues that are far apart"


def test_many_copies_of_one_image_are_one_family(tmp_path, rng):
    names = [f"{row}.jpg" for row in range(60)]
    pictures = [natural(rng) for _ in range(31)]
    for row, name in enumerate(names):  # the last of them again and again, a little brighter each time
        write(tmp_path / name, np.clip(pictures[min(row, 30)] + max(0, row - 30) / 3, 0, 255).astype(np.uint8))
    seen = read(tmp_path, names)
    found = alike.all_pairs(first := duplicates.exact(seen), duplicates.near(seen, first))
    family = duplicates.families(60, found.a, found.b)
    assert family[:31].tolist() == list(range(31))
    assert set(family[31:]) == {30}


def test_families_are_connected_components():
    family = duplicates.families(6, np.array([4, 1]), np.array([5, 4]))
    assert family.tolist() == [0, 1, 2, 3, 1, 1]


@pytest.mark.parametrize(("rows", "size", "refused"), [(3000, 29, 0), (3000, 31, 1), (100, 20, 0), (100, 21, 1)])
def test_a_family_of_more_than_one_percent_is_no_group(rows, size, refused):
    family = np.arange(rows)
    family[:size] = 0
    family[size + 5] = size + 4
    groups, too_large = alike.grouped(family)
    assert [len(some) for some in too_large] == [size] * refused
    assert (groups[:size] == (np.arange(size) if refused else 0)).all()
    assert groups[size + 5] == size + 4


def test_targets_differ_as_their_kind_says():
    a, b = np.array([0, 0]), np.array([1, 2])
    assert alike.differ(np.array(["x", "x", "y"]), a, b).tolist() == [False, True]
    assert alike.differ(np.array([[0, 1], [0, 1], [1, 1]]), a, b).tolist() == [False, True]
    assert alike.differ(np.array([[1.0], [1.001], [3.0]]), a, b).tolist() == [False, True]


# --- drift, leaks, symmetry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("brighter", "found"), [(0, []), (25, ["drift"])])
def test_drift_is_found_where_there_is_some(tmp_path, rng, brighter, found):
    names = [f"{row}.png" for row in range(240)]
    for row, name in enumerate(names):
        write(tmp_path / name, np.clip(natural(rng, 24).astype(int) + (row >= 160) * brighter, 0, 255).astype(np.uint8))
    seen = read(tmp_path, names[:160], names[160:])
    sheet, findings = drift.adversarial(seen, np.full(240, 500.0))
    assert [finding.kind for finding in findings] == found
    assert not found or findings[0].severity == "warning"
    assert sheet is not None
    assert "file bytes" not in {row[0] for row in sheet.rows}, "it is the same everywhere"


def test_auc_counts_ties_half():
    assert drift.auc(np.array([0, 0, 1, 1]), np.array([1, 2, 2, 3])) == pytest.approx(3.5 / 4)


def asked(names: list[str], strata: np.ndarray) -> dict[str, str]:
    """The facts of names that leak, with their severity."""
    _, found = leaks.leaks(leaks.name_facts(names, ["7"]), strata, np.arange(len(names)))
    return {finding.title.partition(" alone")[0]: finding.severity for finding in found}


def test_leak_is_found_in_names_and_not_where_there_is_none(rng):
    classes = rng.choice(["cat", "dog", "owl"], 400)
    plain = [f"img_{number:05d}.png" for number in rng.permutation(400)]
    assert asked(plain, classes) == {}
    named = [f"{name[0]}_{number:05d}.png" for name, number in zip(classes, rng.permutation(400), strict=True)]
    assert asked(named, classes)["word 1 of the name"] == "warning"
    counted = [f"img_{number}.png" for number in np.argsort(np.argsort(classes, kind="stable"))]
    assert list(asked(counted, classes).values()) == ["warning"]
    digit = [f"{3 * number + (name == 'cat')}.png" for name, number in zip(classes, rng.permutation(400), strict=True)]
    assert asked(digit, classes) == {}, "a remainder is no fact that is looked at"
    last = [f"{rng.integers(100, 999)}{'cdo'.index(name[0])}" for name in classes]
    assert asked(last, classes)["last digit of number 1 of the name"] == "warning"


def test_folders_leak_only_where_test_has_them_too(rng):
    classes = rng.choice(["cat", "dog"], 200)
    names = [f"{name}/{number}" for name, number in zip(classes, rng.permutation(200), strict=True)]
    assert asked(names, classes) == {}
    _, found = leaks.leaks(leaks.name_facts(names, ["cat/7"]), classes, np.arange(200))
    assert len(found) == 1, "of several facts about names the most telling"


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_leaks_and_order_of_every_form(rng, kind):
    value = np.sort(rng.normal(size=300))
    strata = {
        "classes": np.where(value > 0, "high", "low"),
        "labels": np.stack([value > 0, value < -1, rng.random(300) > 0.5], axis=1).astype(np.int64),
        "numbers": value[:, None],
    }[kind]
    order, neighbours = leaks.row_order(strata)
    assert neighbours is not None
    _, found = leaks.leaks([order], strata, np.arange(300))
    assert [finding.severity for finding in found] == ["note"]
    mixed = strata[rng.permutation(300)]
    order, neighbours = leaks.row_order(mixed)
    assert neighbours is None
    assert leaks.leaks([order], mixed, np.arange(300))[1] == []


def test_symmetry_is_evident_from_pictures(tmp_path, rng):
    names = [f"{row}.png" for row in range(200)]
    for name in names:  # brighter below and alike to the left and right
        write(tmp_path / name, np.clip(natural(rng, 32) + 3 * np.arange(32)[:, None, None], 0, 255).astype(np.uint8))
    sheet = orientation.evidence(read(tmp_path, names), None)
    assert sheet is not None
    scores = [float(row[1].split()[0]) for row in sheet.rows]
    assert scores[0] < 0.6 < 0.8 < scores[1]


# --- the survey ---------------------------------------------------------------------------------------------------


def test_survey_measures_as_numpy_does(tmp_path, rng):
    pictures = [natural(rng, 32) for _ in range(70)]
    names = [f"{row}.png" for row in range(70)]
    for name, picture in zip(names, pictures, strict=True):
        write(tmp_path / name, picture)
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    seen = read(tmp_path, [*names[:40], "cut.png"], names[40:])
    assert seen.broken.keys() == {40}
    assert (seen.size[seen.good] == 32).all()
    count, mean, square = seen.moments
    pixels = np.stack(pictures[:40])[..., ::-1] / 255
    assert count.tolist() == [40, 40, 40]
    np.testing.assert_allclose(mean / count, pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(square / count, (pixels**2).mean(axis=(0, 1, 2)), atol=1e-6)
    assert duplicates.exact(seen)[41] == 41


def test_survey_reads_grey_and_many_channels(tmp_path, rng):
    write(tmp_path / "grey.png", rng.integers(0, 255, (300, 80), np.uint8))
    np.save(tmp_path / "six.npy", rng.integers(0, 255, (40, 40, 6), np.uint8))
    assert (read(tmp_path, ["grey.png"], channels=3).moments[0] == 1).all()
    seen = read(tmp_path, ["six.npy"], channels=6)
    assert seen.channels.tolist() == [6]
    assert (seen.moments[0] == 1).all()


def test_survey_fails_on_what_is_no_broken_image():
    def fail(spec: str) -> None:
        raise BrokenImage(spec, "empty file") if spec == "a" else RuntimeError("fault")

    assert survey.read(fail, [("a", "a")], []).broken == {0: "empty file"}
    with pytest.raises(RuntimeError, match="fault"):
        survey.read(fail, [("b", "b")], [])


# --- the stage ----------------------------------------------------------------------------------------------------


def whales(
    root: Path, targets: Sequence[str], header: str = "id,label", task: str = "multiclass", columns: str = "[label]"
) -> Path:
    """A competition with a natural picture a target and ten test rows; the folder of its files."""
    rng, folder = np.random.default_rng(7), root / "data" / "whales"
    digests = [f"{number:08x}" for number in rng.permutation(2**20)[: len(targets) + 10]]
    for place, name in enumerate(digests):
        write(folder / ("train_images" if place < len(targets) else "test_images") / f"{name}.png", natural(rng, 32))
    table(folder / "train.csv", header, zip(digests, targets, strict=False))
    table(folder / "sample_submission.csv", header, ((name, targets[0]) for name in digests[len(targets) :]))
    (root / "configs/default.yaml").write_text("competition: whales\n")
    (root / "configs/competition/whales.yaml").write_text(
        f"task: {task}\nmodel: small_image\ndata:\n  folder: data/whales\n  target: {columns}\nfolds:\n  count: 2\n"
    )
    return folder


def result(root: Path) -> dict[str, dict]:
    """The findings of runs/whales/check.json by kind."""
    content = json.loads((root / "runs/whales/check.json").read_text())
    return {finding["kind"]: finding for finding in content["findings"]}


def classes(count: int = 60) -> list[str]:
    """Three names in turn, shuffled."""
    return np.random.default_rng(8).permutation([("cat", "dog", "owl")[k % 3] for k in range(count)]).tolist()


def test_nothing_is_found_where_nothing_is(project):
    whales(project.root, classes())
    ended = project.run("stage=check")
    assert (ended.code, ended.err) == (0, "")
    assert result(project.root) == {}
    assert "nothing to report" in ended.out
    assert "commonest size" in ended.out
    groups = pd.read_csv(project.root / "runs/whales/near_duplicates.csv", dtype=str)
    assert (groups["id"] == groups["group"]).all()


def test_everything_planted_is_found(project):
    folder = whales(project.root, classes())
    files = sorted((folder / "train_images").iterdir())
    tests = sorted((folder / "test_images").iterdir())
    label = dict(line.split(",") for line in (folder / "train.csv").read_text().splitlines())
    one, other = next((a, b) for a in files for b in files[1:] if label[a.stem] != label[b.stem])
    other.write_bytes(one.read_bytes())
    left = [path for path in files if path not in (one, other)]
    left[0].write_bytes(b"")
    write(left[1], np.full((32, 32, 3), 90, np.uint8))
    write(left[3], np.ascontiguousarray(cv2.imread(str(left[2]))[:, ::-1]))
    write(tests[0], cv2.resize(cv2.imread(str(left[4])), (64, 64), interpolation=cv2.INTER_CUBIC))
    tests[1].write_bytes(b"no image")
    assert project.run("stage=check").code == 0
    found = result(project.root)
    expected = {
        "undecodable train images": "fault", "undecodable test images": "warning", "constant train images": "warning",
        "exact duplicates within train": "warning", "contradictory labels": "warning",
        "near-duplicates within train": "warning", "near-duplicates across train and test": "warning",
    }  # fmt: skip
    assert {kind: found[kind]["severity"] for kind in expected} == expected
    assert all(found[kind]["count"] == 1 for kind in expected if kind != "contradictory labels")
    assert left[0].stem in found["undecodable train images"]["title"]
    shown = " ".join(found["contradictory labels"]["examples"][0]["captions"])
    assert label[one.stem] in shown
    assert label[other.stem] in shown
    assert next(iter(found.values()))["severity"] == "fault"


def test_groups_are_what_split_takes(project):
    folder = whales(project.root, classes())
    files = sorted((folder / "train_images").iterdir())
    for copy in files[1:4]:
        copy.write_bytes(files[0].read_bytes())
    assert project.run("stage=check").code == 0
    groups = pd.read_csv(project.root / "runs/whales/near_duplicates.csv", dtype=str).set_index("id")["group"]
    assert groups[[path.stem for path in files[:4]]].nunique() == 1
    assert groups.nunique() == 57
    ended = project.run("stage=split", "folds.groups=near_duplicates")
    assert ended.code == 0, ended.err
    folds = pd.read_csv(project.root / "folds/whales.csv", dtype=str).set_index("id")["fold"]
    assert folds[[path.stem for path in files[:4]]].nunique() == 1
    assert "fold 1" in project.run("stage=check").out, "the balance is shown for each fold once there are folds"


def test_a_film_is_refused_as_a_group(project):
    folder = whales(project.root, classes())
    files = sorted((folder / "train_images").iterdir())
    frame, rng = cv2.imread(str(files[0])), np.random.default_rng(1)
    for path in files[1:25]:  # each frame a little different from the one before
        frame = np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)
        write(path, frame)
    assert project.run("stage=check").code == 0
    assert result(project.root)["group too large"]["count"] == 25
    groups = pd.read_csv(project.root / "runs/whales/near_duplicates.csv", dtype=str)
    assert (groups["id"] == groups["group"]).all()


def test_page_needs_nothing_from_outside_and_stays_small(project):
    folder = whales(project.root, classes())
    files = sorted((folder / "train_images").iterdir())
    for place in range(20):
        write(files[2 * place + 1], np.ascontiguousarray(cv2.imread(str(files[2 * place]))[:, ::-1]))
    assert project.run("stage=check").code == 0
    page = (project.root / "runs/whales/check.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert page.count("<img") <= 12 * 2 * len(result(project.root))
    assert len(page) < 300_000
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert "and 8 more" in page


def test_names_cannot_write_html(project):
    folder = whales(project.root, ["<script>alert(1)</script>", "b"] * 15)
    files = sorted((folder / "train_images").iterdir())
    files[1].write_bytes(files[0].read_bytes())
    assert project.run("stage=check").code == 0
    assert "<script" not in (project.root / "runs/whales/check.html").read_text()


def test_second_run_is_reused_until_something_changes(project):
    from pipeline.config import compose
    from pipeline.stages import check

    folder = whales(project.root, classes())
    first = project.run("stage=check")
    record = project.root / "runs/whales/check.json"
    written = record.stat().st_mtime_ns
    assert project.run("stage=check").out == first.out
    assert record.stat().st_mtime_ns == written
    assert check.run(compose({"stage": "check"}))[0].reused
    (project.root / "runs/whales/check.html").unlink()
    assert not check.run(compose({"stage": "check"}))[0].reused
    next((folder / "train_images").iterdir()).write_bytes(b"")
    project.run("stage=check")
    assert "undecodable train images" in result(project.root)
    assert not check.run(compose({"stage": "check", "overwrite": "true"}))[0].reused


@pytest.mark.parametrize(
    ("task", "header", "columns"),
    [("multilabel", "id,label", "[label]"), ("regression", "id,label", "[label]"), ("multilabel", "id,a,b", "[a,b]")],
)
def test_targets_of_every_form(project, task, header, columns):
    rng = np.random.default_rng(9)
    several = "," in columns
    cells = {
        "multilabel": [f"{a},{b}" if several else "red blue"[4 * a : 3 + 5 * b] or "green"
                       for a, b in rng.integers(0, 2, (60, 2)).tolist()],
        "regression": [f"{value:.3f}" for value in rng.normal(50, 10, 60)],
    }[task]  # fmt: skip
    cells = [cell.strip() or "green" for cell in cells]
    folder = whales(project.root, cells, header, task, columns)
    files = sorted((folder / "train_images").iterdir())
    files[1].write_bytes(files[0].read_bytes())
    ended = project.run("stage=check")
    assert ended.code == 0, ended.err
    assert "exact duplicates within train" in result(project.root)
    assert ("labels of the training rows" if task == "multilabel" else "median") in ended.out


def test_a_table_that_does_not_fit_the_task_is_a_finding(project):
    folder = whales(project.root, ["cat"] * 30)
    ended = project.run("stage=check")
    assert ended.code == 0, ended.err
    assert result(project.root)["targets"]["severity"] == "fault"
    assert (folder.parents[1] / "runs/whales/check.html").is_file()


def test_tiny_competitions_pass(project):
    whales(project.root, ["cat", "dog"])
    ended = project.run("stage=check")
    assert ended.code == 0, ended.err


def test_check_loads_no_torch(project):
    from test_house import RUN, loaded_after

    whales(project.root, classes())
    assert loaded_after(RUN.format(["stage=check", "stage=check"], [0, 0]), project.root) == "[]"
