"""Do test images look like training images? Cheap facts side by side, and a small model that tries to tell."""

from __future__ import annotations

import numpy as np

from pipeline.doctor.findings import Finding, Sheet
from pipeline.doctor.survey import STATISTICS, Survey

MOST_ROWS = 10_000  # of each part; a difference worth acting on shows in fewer
LEAST_ROWS = 20
SLIGHT, STRONG = 0.55, 0.7  # AUC from which the parts differ at all, and clearly
ERRORS = 4.0  # standard errors by which an AUC must differ from ½
TREES = {
    "objective": "binary", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 10, "feature_fraction": 0.8,
    "seed": 0, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
}  # fmt: skip


def facts(survey: Survey, file_bytes: np.ndarray) -> dict[str, np.ndarray]:
    """Cheap facts of every image, (N,) float64 each; file_bytes: (N,), 0 where unknown."""
    width, height = survey.size.T.astype(np.float64)
    suffixes = np.array([file.rpartition(".")[2].lower()[:5] if "." in file else "" for file in survey.files])
    pixels = np.maximum(width * height, 1)
    return {
        "width": width,
        "height": height,
        "aspect": width / np.maximum(height, 1),
        "channels": survey.channels.astype(np.float64),
        "file bytes": file_bytes.astype(np.float64),
        "bytes a pixel": file_bytes / pixels,
        "file name's suffix": np.unique(suffixes, return_inverse=True)[1].astype(np.float64),
        **{name: survey.statistics[:, place].astype(np.float64) for place, name in enumerate(STATISTICS)},
    }


def adversarial(survey: Survey, file_bytes: np.ndarray) -> tuple[Sheet | None, list[Finding]]:
    """AUC of telling test from train, cross-validated, with the facts that tell most."""
    rows = _sample(survey)
    truth = (rows >= survey.train).astype(np.int64)
    if min(truth.sum(), (1 - truth).sum()) < LEAST_ROWS:
        return None, []
    columns = {name: values[rows] for name, values in facts(survey, file_bytes).items()}
    columns = {name: values for name, values in columns.items() if values.min() < values.max()}
    if not columns:
        return None, []
    score = auc(truth, out_of_fold(np.stack(list(columns.values()), axis=1), truth))
    error = standard_error(truth)
    single = {name: auc(truth, values) for name, values in columns.items()}
    telling = sorted(single, key=lambda name: -abs(single[name] - 0.5))
    lines = [_line(name, single[name], columns[name], truth) for name in telling[:6]]
    head = ["fact", "AUC alone", "train median (5 %–95 %)", "test median (5 %–95 %)"]
    remark = "0.5: a small model cannot tell test from train by such facts; 1: always"
    sheet = Sheet(f"Train against test: adversarial AUC {score:.3f} ± {error:.3f}", head, lines, remark)
    if score < max(SLIGHT, 0.5 + ERRORS * error):
        return sheet, []
    told = [f"{name} {single[name]:.2f}" for name in telling[:3] if abs(single[name] - 0.5) > 2 * error]
    by = f"; most telling alone: {', '.join(told)}" if told else "; no single fact tells, only several together"
    return sheet, [Finding(
        "drift", "warning" if score >= STRONG else "note", int(truth.sum()),
        f"test images differ from training images: adversarial AUC {score:.3f} ± {error:.3f}{by}",
        _advice(telling[0]),
    )]  # fmt: skip


def _advice(fact: str) -> str:
    if fact in ("width", "height", "aspect"):
        way = "data.resize=pad keeps proportions; compare it with stretch, and predict with scales=0.8,1.0,1.25"
    elif fact in ("file bytes", "bytes a pixel", "file name's suffix", "channels"):
        way = "the test files were made in another way: augment=medium() makes a model robust to small differences"
    else:
        way = "augment=medium() varies brightness, contrast and colour"
    return f"expect the leaderboard below CV; {way}; keep data.features clear of what differs"


def _line(name: str, score: float, values: np.ndarray, truth: np.ndarray) -> list[str]:
    sides = [np.quantile(values[truth == side], [0.5, 0.05, 0.95]) for side in (0, 1)]
    return [name, f"{score:.3f}", *(f"{_short(a)} ({_short(b)}–{_short(c)})" for a, b, c in sides)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _sample(survey: Survey) -> np.ndarray:
    """Good rows, at most MOST_ROWS of each part, ascending; the same in every run."""
    generator = np.random.default_rng(0)
    kept = []
    for mask in (survey.is_train, ~survey.is_train):
        rows = np.flatnonzero(mask & survey.good)
        kept.append(generator.permutation(rows)[:MOST_ROWS])
    return np.sort(np.concatenate(kept))


# --- scores -------------------------------------------------------------------------------------------------------


def out_of_fold(values: np.ndarray, truth: np.ndarray, folds: int = 3, rounds: int = 40) -> np.ndarray:
    """values (N, F), truth (N,) of 0 and 1 → (N,) scores by small boosted trees that did not see the row."""
    import lightgbm

    fold = np.random.default_rng(1).permutation(len(truth)) % folds
    scores = np.empty(len(truth))
    for k in range(folds):
        inside, outside = fold != k, fold == k
        model = lightgbm.train(TREES, lightgbm.Dataset(values[inside], truth[inside]), rounds)
        scores[outside] = model.predict(values[outside], num_threads=1)
    return scores


def auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half: Mann and Whitney 1947."""
    from scipy.stats import rankdata

    ones = int(truth.sum())
    ranks = rankdata(scores)[truth == 1].sum() - ones * (ones + 1) / 2
    return float(ranks / (ones * (len(truth) - ones)))


def standard_error(truth: np.ndarray) -> float:
    """The standard error of an AUC where nothing can be told: sqrt((m + n + 1) / (12 m n))."""
    ones = int(truth.sum())
    return float(np.sqrt((len(truth) + 1) / (12 * ones * (len(truth) - ones))))
