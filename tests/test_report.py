"""stage=report: what it draws against slow references, every form, escapes, and the page in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import small_competition as drawn
import small_tasks

from pipeline import config as configs
from pipeline import lists
from pipeline.artefacts import Predictions
from pipeline.forms import unit
from pipeline.maps import Maps
from pipeline.report import answers, attention, charts, labels
from pipeline.report.facts import Facts, opened, scores_of
from pipeline.report.markup import Markup, tag, text
from pipeline.report.page import image
from pipeline.runs import HEADER, Run
from pipeline.tasks import task_for

VOID = {"br", "img", "input", "meta", "!doctype"}
LINKS = {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}


class Page(HTMLParser):
    """A page taken apart: every element with its attributes, its text, and whether all that is opened is closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == [], "these are never closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for name, attributes in self.elements if name == "section"]


def page(project, *words: str) -> Page:
    ended = project.run("stage=report", *words)
    assert ended.code == 0, ended.err
    [path] = project.root.glob("runs/*/report.html")
    source = path.read_text(encoding="utf-8")
    found = Page(source)
    for name, attributes in found.elements:
        for key in LINKS & attributes.keys():
            assert str(attributes[key]).startswith(("#", "data:")), f"{name} asks for {attributes[key]}"
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://", source)
    return found


# --- parts against slow references --------------------------------------------------------------------------------


def test_what_is_no_markup_is_escaped():
    evil = "<b onclick='x(\"&\")'>"
    assert tag("p", evil) == f"<p>{text(evil)}</p>"
    assert not {"<", ">", '"', "'"} & set(text(evil))
    assert (
        tag("td", [1, None, Markup("<i>x</i>")], data_v='"', class_="n")
        == '<td data-v="&quot;" class="n">1<i>x</i></td>'
    )
    assert tag("input", hidden=True, value=None) == "<input hidden>"


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_are_scikit_learn_s(seed):
    from sklearn.metrics import average_precision_score, precision_recall_curve

    generator = np.random.default_rng(seed)
    truth, score = generator.random(80) < 0.3, generator.integers(0, 12, 80) / 12
    cut, precision, recall = answers.precision_recall(truth, score)
    theirs = precision_recall_curve(truth, score)
    np.testing.assert_allclose(cut, theirs[2][::-1])
    np.testing.assert_allclose(precision, theirs[0][::-1][1:])
    np.testing.assert_allclose(recall, theirs[1][::-1][1:])
    assert answers.average_precision(precision, recall) == pytest.approx(average_precision_score(truth, score))
    assert np.isnan(answers.average_precision(*answers.precision_recall(truth & False, score)[1:]))


def slow_calibration_error(sure, right):
    total = 0.0
    for part in range(15):
        rows = [n for n, p in enumerate(sure) if part / 15 < p <= (part + 1) / 15 or (part == 0 and p == 0)]
        if rows:
            said, true = sum(sure[n] for n in rows) / len(rows), sum(right[n] for n in rows) / len(rows)
            total += abs(said - true) * len(rows) / len(sure)
    return total


def test_the_calibration_error_is_the_slow_one():
    generator = np.random.default_rng(0)
    sure = np.append(generator.random(300), [0, 1, 0.2, 1 / 3])
    right = generator.random(len(sure)) < sure**2
    assert answers.calibration_error(sure, right) == pytest.approx(
        slow_calibration_error(sure.tolist(), right.tolist())
    )
    assert answers.calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0)


@pytest.mark.parametrize("seed", range(4))
def test_the_own_rule_finds_what_cleanlab_finds(seed):
    pytest.importorskip("cleanlab")
    generator = np.random.default_rng(seed)
    clean = generator.integers(4, size=200)
    values = np.eye(4)[clean] * 1.5 + generator.random((200, 4))
    values /= values.sum(axis=1, keepdims=True)
    noisy = np.where(generator.random(200) < 0.1, generator.integers(4, size=200), clean)
    own = labels.confident(noisy, values)
    assert own.tolist() == labels.by_cleanlab(noisy, values).tolist()
    assert {int(row) for row in own} <= {int(row) for row in np.flatnonzero(noisy != clean)}
    assert len(own)


@pytest.mark.parametrize("values", [[0.1, 0.93], [3, 3], [-7, 12], [1e-7, 3e-7], [0, 123456], [np.nan, 1, 2], []])
def test_an_axis_holds_its_values_at_round_numbers(values):
    axis = charts.axis(np.array(values, dtype=np.float64), 0, 100)
    known = [value for value in values if np.isfinite(value)]
    assert all(-1e-6 <= axis.place(value) <= 100 + 1e-6 for value in known)
    assert 2 <= len(axis.ticks) <= 8
    assert np.diff(axis.ticks) == pytest.approx(axis.ticks[1] - axis.ticks[0])
    for tick in axis.ticks:
        assert len(charts.written(tick)) <= 7


def test_large_pictures_are_shrunk_and_tiny_ones_keep_their_pixels():
    import cv2

    for shape, kind, size in (((300, 200, 3), "jpeg", (176, 117, 3)), ((8, 6, 1), "png", (8, 6, 3))):
        found = image(np.full(shape, 200, dtype=np.uint8))
        [data] = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', found)
        assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).shape == size


def test_leaderboard_scores_are_found_in_their_places():
    assert scores_of({"public": 0.5, "private": "0.25"}) == {"public": 0.5, "private": 0.25}
    uploads = [
        {"csv": "a", "public": 0.3, "private": None}, {"csv": "b", "public": 0.9}, {"csv": "a", "public": None},
    ]  # fmt: skip
    assert scores_of({"csv": "a", "uploads": uploads})["public"] == 0.3, "the last that was scored, of the same csv"
    assert np.isnan(scores_of({"csv": "a", "uploads": uploads})["private"])
    assert np.isnan(scores_of({})["public"])


# --- the page -----------------------------------------------------------------------------------------------------


def logged(run: Run, epochs: int = 3) -> None:
    """log.csv and train.json of every member, as a training leaves them."""
    for fold in range(run.count):
        folder = run.member((fold,))
        folder.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{n},{1 / n},{n / 4},{0.01 / n},2.0,50,0.01,0.5\n" for n in range(1, epochs + 1))
        head = "epoch,loss,score,lr,seconds,images_per_second,waiting,memory_gb\n"
        (folder / "log.csv").write_text(head + rows)
        (folder / "train.json").write_text(json.dumps({"fingerprint": "x", "seconds": 60.0}))


@pytest.fixture
def whales(project):
    """Two runs, a round of pseudo-labels that was rejected, a level 2, three scored submissions and a look."""
    drawn.write(project.root)
    assert project.run("stage=split").code == 0
    asked = drawn.config()
    test = np.full((4, 3), 1 / 3, dtype=np.float32)
    for name, right in (("mate", 0.67), ("other", 0.9), ("mate-r1", 0.5)):
        drawn.predict(asked, name, test, right)
        logged(Run(asked, name))
    (project.root / "runs/whales/mate-r1/status.json").write_text('{"rejected": "no gain"}')
    (project.root / "runs/whales/mate-r1/labels-r1.csv").write_text(
        "id,label,weight,for_fold\n007,cat,1.0,0\n010,cat,1.0,0\n003,owl,1.0,1\n"
    )
    assert project.run("stage=stack", "stack.methods=single,mean", "stack.decisions=none").code == 0
    folder = project.root / "submissions/whales"
    for place, name in enumerate(("mate", "other")):
        assert project.run("stage=submit", f"source={name}").code == 0
        told(folder / f"{name}.json", 0.5 + place / 10, 0.4 + place / 10)
    told(folder / "stack.json", 0.7, 0.65)
    assert project.run("stage=score", "submission=submissions/whales/mate.csv").code == 0
    return project


def told(path, public, private):
    """A submission's json with the leaderboard's scores."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "public": public, "private": private}))


def test_the_page_tells_all_that_is_known(whales):
    found = page(whales)
    assert found.ids() == [
        "leaderboard", "scores", "curves", "folds", "answers", "calibration", "mistakes", "labels", "level2", "pseudo",
        "looks",
    ]  # fmt: skip
    facts = Facts(drawn.config())
    for entry in [*facts.entries, *facts.stacks]:
        assert f"{entry.score.value:.4f}" in found.text
    assert [(one.name, one.made_by) for one in facts.entries] == [(n, "OOF") for n in ("mate", "mate-r1", "other")]
    assert facts.best.name == "other"
    assert "left out: no gain" in found.text
    points = [(value["nested"] if "nested" in value else value["cv"], value["public"]) for value in facts.submissions]
    own = [cv.get("score", cv.get("value")) for cv, _ in points]
    assert f"correlation {np.corrcoef(own, [public for _, public in points])[0, 1]:.2f}, of 3 submissions" in found.text
    assert "Rows a member: 2, 1, of 4 test rows." in found.text
    assert [attributes["class"] for name, attributes in found.elements if name == "article"] == ["card"] * 12
    pictures = [attributes["src"] for name, attributes in found.elements if name == "img"]
    assert len(pictures) > 12
    assert all(base64.b64decode(src.partition(",")[2])[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0") for src in pictures)


def test_it_is_reused_until_something_changes(whales):
    page(whales)
    path = whales.root / "runs/whales/report.html"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert "done before" in whales.run("stage=report").out or path.stat().st_mtime_ns == before[1]
    assert whales.run("stage=report", "overwrite=true").code == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns > before[1]) == (before[0], True), "the same bytes, made anew"
    told(whales.root / "submissions/whales/mate.json", 0.55, 0.45)
    assert whales.run("stage=report").code == 0
    assert "0.55000" in path.read_text()


def test_a_level2_is_scored_as_it_was_recorded(whales):
    """Where its numbers were chosen for each part of nested CV alone, what its rows say now is not nested."""
    path = whales.root / "runs/whales/level2/stack/level2.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "score": {"score": 0.6543, "se": 0.01, "folds": [0.6, 0.7, 0.65]}}))
    found = page(whales)
    assert "0.6543 ± 0.0100 nested" in found.text
    assert "not nested: the numbers of its submission" in found.text
    [stack] = Facts(drawn.config()).stacks
    assert (stack.score.value, stack.exact) == (0.6543, False)
    assert all(np.isnan(stack.over(entry)).all() for entry in Facts(drawn.config()).entries)
    ended = whales.run("stage=compare", "runs=mate,stack", "compare.draws=200")
    assert "not nested: the numbers of its submission, chosen on all rows; its nested score: 0.6543" in ended.out


def test_names_cannot_become_tags(project):
    evil = "<script>alert(1)</script>"
    drawn.write(project.root, classes=("cat", evil, "owl&\"'"))
    assert project.run("stage=split").code == 0
    drawn.predict(drawn.config(), "mate", np.full((4, 3), 1 / 3, dtype=np.float32), 0.5)
    found = page(project)
    assert sum(name == "script" for name, _ in found.elements) == 1, "our own"
    assert evil in found.text
    assert not any("onclick" in attributes for _, attributes in found.elements)


def test_what_is_missing_makes_a_shorter_page(project):
    drawn.write(project.root)
    ended = project.run("stage=report")
    assert (ended.code, "has no run yet; make one: ./run.sh recipe=quick competition=whales" in ended.err) == (2, True)
    assert project.run("stage=split").code == 0
    asked = drawn.config()
    logged(Run(asked, "mate"))
    assert page(project).ids() == ["leaderboard", "curves", "folds"], "trained, not yet predicted"
    drawn.predict(asked, "mate", np.full((4, 3), 1 / 3, dtype=np.float32), 0.5)
    shutil.rmtree(project.root / "runs/whales/mate/fold1")
    assert "OOF, partial: fold 0 of 2" in page(project).text
    shutil.rmtree(project.root / "data/whales/train_images")
    (project.root / "runs/whales/mate/fold0/oof.npz").write_bytes(b"cut short")
    (project.root / "runs/whales/mate/fold0/log.csv").write_text("epoch,loss\n1,x\n")
    ended = project.run("stage=report", "run=mat")
    assert (ended.code, "did you mean mate" in ended.err) == (2, True)


def test_a_damaged_run_is_named_and_the_others_stand(whales):
    (whales.root / "runs/whales/mate/fold0/oof.npz").write_bytes(b"cut short")
    (whales.root / "runs/whales/level2/stack/level2.json").write_text("{")
    (whales.root / "runs/whales/other/config.yaml").write_text(HEADER + "stage: train\n")
    (whales.root / "runs/whales/mate-r1/full").mkdir()
    found = page(whales)
    assert "other/config.yaml is damaged" in found.text
    assert "mate/fold0/oof.npz is damaged" in found.text
    assert "level2/stack/level2.json is damaged" in found.text
    assert [one.name for one in Facts(drawn.config()).entries] == ["mate-r1"]


# --- every task ---------------------------------------------------------------------------------------------------


class Known(Maps):
    """The planes that some truth would be, but for the last images, which are empty."""

    def __init__(self, task, truth) -> None:
        self.task, self.truth, self.columns = task, truth, len(task.columns)

    def __len__(self) -> int:
        return len(self.truth)

    def one(self, row: int) -> np.ndarray:
        planes = (self.task.planes(self.truth.one(row)) == 254).astype(np.float32)
        return planes * 0 if row > len(self) - 3 else planes


def give(run: Run, name: str) -> None:
    """OOF of all rows as stage=predict would leave it: the truth, but for some rows."""
    task = task_for(run.config, run.competition)
    for fold in range(run.count):
        rows = np.flatnonzero(run.folds == fold)
        ids = run.competition.train["id"].to_numpy()[rows]
        values = GIVEN.get(task.form.name, of_table)(task, run.truth_of(task, rows))
        Predictions(ids, values, task.space).save(run.member((fold,)) / "oof.npz")


def of_table(task, truth):
    values = 0.8 * task.soft(truth) + 0.1
    values[[0, 1]] = values[[-1, -2]]
    return values / values.sum(axis=1, keepdims=True) if task.form.simplex else values


def of_embeddings(task, truth):
    directions = np.random.default_rng(0).normal(size=(len(task.columns), 6))
    values = directions[truth[:, 0]] + 0.1 * np.random.default_rng(1).normal(size=(len(truth), 6))
    values[0] = values[-1]
    return unit(values)


def of_lists(task, truth):
    count = len(task.columns)
    codes = np.stack([np.roll(np.arange(count), -max(0, one)) for one in truth])
    return lists.packed(codes, np.linspace(0.9, 0.1, count)[None].repeat(len(truth), axis=0), count, 0.15)


GIVEN = {
    "masks": Known, "class_masks": Known, "objects": Known, "embeddings": of_embeddings, "lists": of_lists,
}  # fmt: skip
WRITERS = {
    "masks": lambda root: small_tasks.write_masks(root, "masks"),
    "class_masks": lambda root: small_tasks.write_masks(root, "class_masks"),
    "objects": lambda root: small_tasks.write_masks(root, "objects"),
    "retrieval": small_tasks.write_retrieval,
    "labels": small_tasks.write_labels,
}
TABLES = ["binary", "multilabel", "regression", "circular(period=24)", "ordinal"]


@pytest.mark.parametrize("name", [*TABLES, *WRITERS])
def test_every_task_has_a_report(project, name):
    WRITERS.get(name, lambda root: small_tasks.write(root, name))(project.root)
    assert project.run("stage=split").code == 0
    asked = configs.compose({"competition": "drawn", "model": "tiny"})
    give(Run(asked, "one"), name)
    give(Run(asked, "two"), name)
    found = page(project, "report.pictures=5")
    assert {"leaderboard", "folds", "answers", "mistakes"} <= set(found.ids())
    assert sum(tag == "article" for tag, _ in found.elements) >= 3
    assert sum(tag == "svg" for tag, _ in found.elements) >= 4
    assert "This part is missing" not in found.text
    assert found.ids()[-1] == "alike", "there is no level 2"
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", found.text.lower())


# --- in a browser -------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const heads = document.querySelectorAll("#leaderboard table th button");
const first = () => document.querySelector("#leaderboard tbody b").textContent;
const told = [document.documentElement.scrollWidth, innerWidth, first()];
heads[1].click(); told.push(first()); heads[1].click(); told.push(first());
const box = document.querySelector("#leaderboard input"), rows = () =>
  Array.from(box.closest(".table").querySelectorAll("tbody tr")).filter(row => !row.hidden).length;
told.push(rows()); box.value = "mate-r1"; box.dispatchEvent(new Event("input")); told.push(rows());
document.body.dataset.told = JSON.stringify(told);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser_it_fits_a_phone_sorts_and_filters(whales, tmp_path):
    for name in ("more", "and-more"):
        drawn.predict(drawn.config(), name, np.full((4, 3), 1 / 3, dtype=np.float32), 0.34)
    page(whales)
    source = (whales.root / "runs/whales/report.html").read_text()
    frame = tmp_path / "phone.html"  # a frame has any width; a window is 500 px wide at least
    (tmp_path / "probe.html").write_text(source.replace("</body>", f"{PROBE}</body>"))
    frame.write_text(
        '<iframe src="probe.html" width="390" height="800"></iframe><script>onload = () => '
        "document.body.dataset.told = frames[0].document.body.dataset.told</script>"
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    ended = subprocess.run(
        [*command, "--dump-dom", f"file://{frame}"], capture_output=True, text=True, timeout=60, check=False
    )
    [found] = re.findall(r'<body data-told="([^"]+)"', ended.stdout) or [ended.stderr]
    wide, room, first, best, worst, every, left = json.loads(found.replace("&quot;", '"'))
    assert room == 390
    assert wide <= room, "the page itself scrolls sideways"
    assert (first, best, worst) == ("other", "other", "and-more"), "sorted by score; of equals the first stays"
    assert (every, left) == (6, 1)
    shot = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", "--window-size=1280,900", f"file://{tmp_path / 'probe.html'}"],
                   capture_output=True, timeout=60, check=True)  # fmt: skip
    import cv2

    picture = cv2.imread(str(shot))
    assert picture.shape == (900, 1280, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, "it is not blank"


# --- where a member looked ----------------------------------------------------------------------------------------


def trained(project, backbone: str = "small_image(width=4)") -> tuple[Run, object]:
    """The run ``tiny`` of a binary task, of which fold 0 was trained for an epoch and predicted."""
    small_tasks.write(project.root, "binary", rows=24)
    for stage in ("split", "train", "predict"):
        ended = project.run(f"stage={stage}", "epochs=1", f"backbone={backbone}", "fold=0", "image_size=16")
        assert ended.code == 0, ended.err
    run = opened(Run(configs.compose({"competition": "drawn", "model": "tiny"}), "tiny"))
    return run, task_for(run.config, run.competition)


def test_a_map_of_where_it_looked_is_the_slow_one(project):
    """Grad-CAM by its definition, with gradients by differences."""
    import torch

    from pipeline import checkpoint, network, stores
    from pipeline.data import channels_first

    run, task = trained(project)
    rows, columns = np.flatnonzero(run.folds == 0)[:3], np.array([[0, 1], [1, 0], [1, 0]])
    found = attention.looked(run, task, rows, columns)
    net = network.from_checkpoint(checkpoint.load_checkpoint(run.member((0,)) / "best.ckpt"))
    images = stores.train_store(run.config, run.competition, 16).take(rows)
    assert set(found) == set(rows.tolist())
    with torch.no_grad():
        features = net.backbone(net.prepare(channels_first(images))).double()
        tail = torch.nn.Sequential(net.pool, net.head).double()
        for place, row in enumerate(rows):
            for k, column in enumerate(columns[place]):
                weights = []
                for channel in range(features.shape[1]):
                    moved = features[place : place + 1].clone()
                    moved[:, channel] += 1e-4  # all pixels of a channel: their gradients' sum
                    gain = tail(moved)[0, column] - tail(features[place : place + 1])[0, column]
                    weights.append(float(gain) / 1e-4 / features[0, 0].numel())
                raw = (torch.tensor(weights).double()[:, None, None] * features[place]).sum(0).clamp(min=0).numpy()
                seen, maps = found[int(row)]
                np.testing.assert_array_equal(seen, images[place])
                assert maps.shape == (2, 16, 16)
                small = attention._sized((raw / max(raw.max(), 1e-12)).astype(np.float32), 16)
                np.testing.assert_allclose(maps[k], small, atol=2e-2)
    assert attention.overlaid(*(one[0] if one.ndim == 3 and one.shape[0] == 2 else one for one in found[int(rows[0])])
                              ).shape == (16, 16, 3)  # fmt: skip


def test_the_worst_have_maps_where_weights_are_and_none_where_not(project):
    run, _ = trained(project)
    found = page(project)
    alts = [str(attributes.get("alt")) for name, attributes in found.elements if name == "img"]
    assert sum(alt.startswith("Grad-CAM of ") for alt in alts) == 24, "two a row, of the twelve worst"
    (run.member((0,)) / "best.ckpt").unlink()
    again = page(project)
    assert not any(str(attributes.get("alt")).startswith("Grad-CAM") for name, attributes in again.elements)
    assert len([name for name, _ in again.elements if name == "article"]) == 12


def test_views_are_drawn_with_what_they_gain(whales):
    """Two views by hand: the second is right where the first is wrong, and surer."""
    run = Run(drawn.config(), "mate")
    task = task_for(run.config, run.competition)
    for fold in range(run.count):
        path = run.member((fold,)) / "oof.npz"
        plain = Predictions.load(path)
        truth = run.truth_of(task, np.flatnonzero(run.folds == fold))
        values = np.stack([0.6 * plain.values + 0.4 / 3, np.eye(3)[truth]]).astype(np.float32)
        labelled = np.array(["identity() × 1", "hflip() × 1"])
        np.savez(path.with_name("oof_views.npz"), values=values, ids=plain.ids, labels=labelled)
        Predictions(plain.ids, values.mean(axis=0), plain.space).save(path)
    found = page(whales)
    assert "views" in found.ids()
    assert "+ hflip() × 1 +0.3333 ±" in found.text
    assert "all 2 together +0.3333 ±" in found.text
    assert "keep them" in found.text
