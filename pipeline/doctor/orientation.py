"""Evidence for symmetries: do mirrored and turned pictures still look like pictures of this set, and keep their label?

Printed as evidence, never as a decision: what a flip does to the label only the user knows.
"""

from __future__ import annotations

import numpy as np

from pipeline.doctor.drift import auc, out_of_fold, standard_error
from pipeline.doctor.duplicates import standard
from pipeline.doctor.findings import Sheet
from pipeline.doctor.leaks import dense
from pipeline.doctor.survey import Survey

SIDE = 16
MOST_ROWS, ASKED = 3000, 1000  # images that are compared with, and for how many neighbours are looked up
LEAST_ROWS = 40
TURNS = {
    "left–right mirror (hflip)": lambda image: image[:, :, ::-1],
    "up–down mirror (d4)": lambda image: image[:, ::-1],
    "quarter turn (d4)": lambda image: np.rot90(image, axes=(1, 2)),
}


def evidence(survey: Survey, strata: np.ndarray | None) -> Sheet | None:
    """For each symmetry: the AUC of telling changed pictures from originals, and the target of the nearest original."""
    rows = np.flatnonzero(survey.is_train & survey.good & ~survey.constant)
    rows = np.sort(np.random.default_rng(5).permutation(rows)[:MOST_ROWS])
    if len(rows) < LEAST_ROWS:
        return None
    images = _small(survey.grey[rows])
    changed = np.random.default_rng(6).permutation(len(rows)) % 2
    error = standard_error(changed)
    target = None if strata is None else dense(strata[rows])
    plain = None if target is None else _same_target(images, images, target)
    lines = []
    for name, turn in TURNS.items():
        mixed = np.where(changed[:, None, None] == 1, turn(images), images)
        score = auc(changed, out_of_fold(mixed.reshape(len(mixed), -1), changed))
        kept = "–" if target is None else f"{_same_target(images, turn(images), target):.2f} ({plain:.2f})"
        lines.append([name, f"{score:.2f} ± {error:.2f}", kept, _reading(score, error)])
    head = ["change", "AUC changed or not", "target of the nearest (unchanged)", "reading"]
    remark = (
        "evidence, not a decision: symmetry stays yours to set. AUC 0.5: changed pictures look like the others; 1: "
        "they do not. Third column: how well the nearest other picture's target fits, 1 always, 0 as chance"
    )
    return Sheet("Symmetry: what flips and turns do to these pictures", head, lines, remark)


def _reading(score: float, error: float) -> str:
    if score < max(0.55, 0.5 + 3 * error):
        return "looks alike: plausible, if the label stays true"
    return "shows: only if the label surely stays true" if score < 0.8 else "no such pictures here: little to gain"


def _small(grey: np.ndarray) -> np.ndarray:
    """(n, 2s, 2s) → (n, s, s) float32, standardised, so that brightness does not count."""
    halves = grey.reshape(len(grey), SIDE, 2, SIDE, 2).mean(axis=(2, 4), dtype=np.float32)
    return standard(halves)


def _same_target(images: np.ndarray, asked: np.ndarray, target: np.ndarray) -> float:
    """Correlation of each asked picture's target with that of the nearest of the other images, over rows and columns.

    images, asked: (n, s, s), row by row the same picture, changed or not; target (n, K).
    """
    count = min(ASKED, len(images))
    likeness = asked[:count].reshape(count, -1) @ images.reshape(len(images), -1).T
    likeness[np.arange(count), np.arange(count)] = -np.inf
    nearest = target[likeness.argmax(axis=1)]
    own, centre = target[:count] - target.mean(axis=0), nearest - target.mean(axis=0)
    scale = np.sqrt((own**2).sum() * (centre**2).sum())
    return float((own * centre).sum() / max(scale, 1e-12))
