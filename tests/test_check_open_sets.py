"""stage=check where the test asks for what training shows none of: copies and counts mean other things."""

from __future__ import annotations

import json
import shutil

import drawn
import numpy as np
import pandas as pd

from pipeline.doctor import balance


def test_copies_of_one_identity_are_normal_and_of_two_are_not(project):
    folder = drawn.write("matches", project.root / "data")
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    ids = rows["id"].tolist()  # rows 0, 10, 20 and 30 show one identity, row 1 another one
    for copy, original in ((10, 0), (21, 2)):
        shutil.copy(folder / f"train_images/{ids[original]}.png", folder / f"train_images/{ids[copy]}.png")
    rows.loc[[4, 5, 6, 14, 15, 16], "label"] = ["lone", "big", "big", "big", "big", "big"]
    rows.loc[20:, "label"] = "big"
    rows.to_csv(folder / "train.csv", index=False)
    words = ("data.group=", "data.target=label")
    assert project.run("stage=new", "name=matches", "data=data/matches", *words).code == 0
    ended = project.run("stage=check")
    assert ended.code == 0, ended.err
    found = {
        item["kind"]: item for item in json.loads((project.root / "runs/matches/check.json").read_text())["findings"]
    }
    assert "are easy finds" in found["exact duplicates within train"]["advice"]
    assert found["exact duplicates within train"]["severity"] == "note"
    assert "under two names" in found["contradictory labels"]["advice"]
    assert "1 identity has one image: lone" in found["identities of one image"]["title"]
    assert "rare classes" not in found
    assert "identities of the training rows" in ended.out


def test_identities_are_counted_by_their_images(project):
    names = np.repeat(["a", "b", "c", "d"], [1, 2, 3, 70])
    sheets, findings = balance.identities(names, np.repeat([0, 1, 0, 1], [1, 2, 3, 70]))
    assert [row[:3] for row in sheets[0].rows] == [
        ["1", "1", "1.3%"],
        ["2–3", "2", "6.6%"],
        ["64 or more", "1", "92.1%"],
    ]
    assert [row[4:] for row in sheets[0].rows] == [["1", "0"], ["1", "1"], ["0", "1"]]
    assert [item.kind for item in findings] == ["identities of one image", "imbalance"]
