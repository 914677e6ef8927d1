"""Outside images: they join what members learn from, but for copies of the competition's own, and are never scored."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import small_tasks

from pipeline import extra, training
from pipeline.competition import load
from pipeline.config import compose
from pipeline.runs import Run


def picture(seed: int) -> np.ndarray:
    """A drawn scene of 48 × 48 with its own shapes."""
    generator = np.random.default_rng(seed)
    image = np.full((48, 48, 3), generator.integers(0, 256, 3), dtype=np.uint8)
    for _ in range(8):
        colour = [int(value) for value in generator.integers(0, 256, 3)]
        cv2.circle(
            image, tuple(int(v) for v in generator.integers(0, 48, 2)), int(generator.integers(3, 14)), colour, -1
        )
    return image


@pytest.fixture
def outside(project) -> Path:
    """outside/more.csv with six images: four new, a flipped copy of a training image and a re-encoded one of a test."""
    folder = small_tasks.write(project.root, "multiclass()")
    for place, image in enumerate(sorted([*folder.glob("train_images/*"), *folder.glob("test_images/*")])):
        cv2.imwrite(str(image), picture(place))
    place = project.root / "outside"
    place.mkdir()
    copies = {
        "new0": picture(1000), "new1": picture(1001), "new2": picture(1002), "new3": picture(1003),
        "flipped": cv2.flip(cv2.imread(str(folder / "train_images/train003.png")), 1),
        "again": cv2.imread(str(folder / "test_images/test005.png")),
    }  # fmt: skip
    for name, image in copies.items():
        cv2.imwrite(str(place / f"{name}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    table = pd.DataFrame({"id": list(copies), "target": ["low", "mid", "high", "low", "mid", "high"]})
    table.to_csv(place / "more.csv", index=False)
    return place


WORDS = ("data.extra=outside/more.csv", "epochs=2")


def test_copies_are_left_out(outside, project):
    asked = compose({"competition": "drawn", "data.extra": "outside/more.csv"})
    found = extra.load(asked, load(asked))
    assert found.files == ["new0.jpg", "new1.jpg", "new2.jpg", "new3.jpg"]
    assert found.targets["target"].tolist() == ["low", "mid", "high", "low"]
    assert "6 outside images, 2 left out" in project.capsys.readouterr().out
    extra.load(asked, load(asked))
    assert project.capsys.readouterr().out == "", "looked for once"


def test_outside_rows_join_every_member_and_no_fold(outside, project, monkeypatch):
    seen = {}
    made = training._join_extra

    def spy(table, run, task, held_out, found):
        joined = seen[run.name, held_out] = made(table, run, task, held_out, found)
        return joined

    monkeypatch.setattr(training, "_join_extra", spy)
    for words in (WORDS, (*WORDS, "run=mixed", "mix=mixup()")):
        ended = project.run("stage=train", *words)
        assert ended.code == 0, ended.err
    table = seen["tiny", (0,)]
    assert table.rows[-4:].tolist() == [60, 61, 62, 63]
    assert table.targets[-4:].tolist() == [1, 2, 0, 1]
    assert seen["mixed", (1,)].targets[-4:].tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert project.run("stage=predict", *WORDS).code == 0
    assert project.run("stage=distill", *WORDS).code == 0
    student = seen["tiny-distilled", (0,)]
    assert student.share[-4:].tolist() == [0, 0, 0, 0]
    assert len(Run(compose({"competition": "drawn", "data.extra": "outside/more.csv"}), "tiny").oof().ids) == 48


def test_a_changed_table_of_outside_images_is_another_run(outside, project):
    assert project.run("stage=train", "fold=0", *WORDS).code == 0
    (outside / "new3.jpg").unlink()
    rows = pd.read_csv(outside / "more.csv", dtype=str)
    rows[rows["id"] != "new3"].to_csv(outside / "more.csv", index=False)
    stopped = project.run("stage=train", "fold=1", *WORDS)
    assert stopped.code == 2
    assert "data.extra changed" in stopped.err


def test_faults_are_named(outside, project):
    for words, said in (
        ("data.extra=nothing.csv", "no such csv"),
        ("data.extra=outside/bad.csv", "no column 'target'"),
        ("data.extra=outside/odd.csv", "unknown classes 'huge'"),
    ):
        pd.DataFrame({"id": ["new0"], "label": ["low"]}).to_csv(outside / "bad.csv", index=False)
        pd.DataFrame({"id": ["new0"], "target": ["huge"]}).to_csv(outside / "odd.csv", index=False)
        stopped = project.run("stage=train", "fold=0", words)
        assert stopped.code == 2, words
        assert said in stopped.err
