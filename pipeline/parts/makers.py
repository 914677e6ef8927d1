"""Makers write a competition's folder where it is not there: the embedded competition, as Kaggle would ship it.

A maker is called once with a new empty folder, ``f(folder: Path, *, …)``; the pipeline renames the folder to its
place when the maker is done. From then on nothing knows that the competition was made.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.registry import part

TEST_ROWS = 360  # 20 % of 1,797


@part(source="scikit-learn load_digits; Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits")
def digits(folder: Path) -> None:
    """1,797 real scans of handwritten digits, 8×8 grey PNG: 1,437 to train on, a stratified random 360 to test on.

    Writes train.csv, train_images, test_images, sample_submission.csv and solution.csv (Usage: a random half Public,
    the other Private). The same bytes every time (seed 0); ids say nothing of labels or order.
    """
    import cv2
    import numpy as np
    import pandas as pd
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    images = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    generator = np.random.default_rng(0)
    ids = [f"{number:04x}" for number in generator.choice(16**4, len(labels), replace=False)]
    rows = pd.DataFrame({"id": ids, "label": labels})
    train, test = train_test_split(rows, test_size=TEST_ROWS, stratify=labels, random_state=0)
    train, test = train.sort_values("id"), test.sort_values("id")
    for name, part_of in (("train_images", train), ("test_images", test)):
        (folder / name).mkdir()
        for row, image_id in part_of["id"].items():
            (folder / name / f"{image_id}.png").write_bytes(cv2.imencode(".png", images[row])[1].tobytes())
    usage = generator.permutation(np.repeat(["Public", "Private"], TEST_ROWS // 2))
    tables = {"train": train, "sample_submission": test.assign(label=0), "solution": test.assign(Usage=usage)}
    for name, frame in tables.items():
        (folder / f"{name}.csv").write_text(frame.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
