"""Metrics: how good answers are; ``metric: rmsle()`` in a competition's config.

Form: ``f(truth, answer, *, …) -> float``, or (N,) row values. Facts, all plain literals:

- ``greater``: is more better?
- ``wants``: "probability" for the values themselves, "decision" for what was decided from them.
- ``takes``: the forms that the function understands.
- ``rowwise=True``: it is a mean over rows and returns their (N,) values, so that its standard errors cost nothing.

======= ================== ================== ==================
form    truth              probability        decision
======= ================== ================== ==================
classes (N,) class indices (N, C), rows sum 1 (N,) class indices
labels  (N, C) of 0 and 1  (N, C) in 0…1      (N, C) of 0 and 1
numbers (N, T) floats      never asked for    (N, T) floats
======= ================== ================== ==================

Your own metric is one function in this file. Its name is then its name in YAML, its keyword arguments are yours::

    @part(source="the competition's evaluation page", greater=False, wants="decision", takes=("numbers",))
    def quantile_error(truth: np.ndarray, answer: np.ndarray, *, share: float = 0.9) -> float:
        '''The share quantile of the absolute errors, in the target's unit.'''
        return float(np.quantile(np.abs(answer - truth), share))

Truth may lack classes, since a fold or a draw of rows may. A class or column that this leaves without a value is left
out of means: no metric fails or is NaN for it. ``pipeline/evaluate.py`` makes a metric whole. Masks and objects, whose
metrics see one image at a time, have theirs in ``parts/metrics_masks.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.errors import UserError
from pipeline.registry import part

# --- classes and labels: decisions --------------------------------------------------------------------------------


@part(
    source="share of right decisions; of labels the subset accuracy",
    greater=True, wants="decision", takes=("classes", "labels"), rowwise=True,
)  # fmt: skip
def accuracy(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Share of rows answered rightly, 0 to 1; of several labels, all must be right."""
    if truth.ndim == 1:
        return (answer == truth).astype(np.float64)
    return ((answer > 0.5) == (truth > 0.5)).all(axis=1).astype(np.float64)


@part(
    source="Brodersen et al. 2010, eq. 3, for many classes: mean recall",
    greater=True, wants="decision", takes=("classes",),
)  # fmt: skip
def balanced_accuracy(truth: np.ndarray, answer: np.ndarray) -> float:
    """Mean over the classes in truth of the share of their rows that is found, 0 to 1."""
    rows = np.bincount(truth)
    hits = np.bincount(truth, weights=answer == truth)
    return float((hits[rows > 0] / rows[rows > 0]).mean())


@part(
    source="van Rijsbergen 1979, from the counts of all classes together",
    greater=True, wants="decision", takes=("classes", "labels"),
)  # fmt: skip
def f1_micro(truth: np.ndarray, answer: np.ndarray) -> float:
    """F1 of all cells together, 0 to 1; of classes it is the accuracy."""
    return _f_micro(truth, answer, 1.0)


@part(
    source="van Rijsbergen 1979, harmonic mean of precision and recall",
    greater=True, wants="decision", takes=("classes", "labels"),
)  # fmt: skip
def f1_macro(truth: np.ndarray, answer: np.ndarray) -> float:
    """Mean of F1 over the classes or columns that stand in truth or among the decisions, 0 to 1."""
    return _f_macro(truth, answer, 1.0)


@part(
    source="Godbole and Sarawagi 2004, F1 of each row",
    greater=True, wants="decision", takes=("classes", "labels"), rowwise=True,
)  # fmt: skip
def f1_samples(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Mean over rows of the F1 of their labels, 0 to 1; a row without labels that is answered with none counts 1."""
    return _f_of_rows(truth, answer, 1.0)


@part(
    source="van Rijsbergen 1979; by default Kaggle's mean F2 of the rows",
    greater=True, wants="decision", takes=("classes", "labels"),
    allowed={"beta": (0.001, None), "average": ("samples", "micro", "macro", "weighted", "binary")},
)  # fmt: skip
def f_beta(truth: np.ndarray, answer: np.ndarray, *, beta: float = 2.0, average: str = "samples") -> float:
    """F-beta, 0 to 1: the harmonic mean of precision and recall with recall beta times as important.

    beta: 1 is F1, above it recall counts more. average: samples (mean over rows), micro (all cells together), macro
    (mean over the classes that stand in truth or answer), weighted (the same, by their rows in truth) or binary (class
    1, or the only column). Where nothing was to be found and nothing was answered, it is 1.
    """
    return F_AVERAGES[average](truth, answer, beta)


@part(
    source="Gorodkin 2004, R_K; Matthews 1975 for two classes",
    greater=True, wants="decision", takes=("classes", "labels"),
)  # fmt: skip
def mcc(truth: np.ndarray, answer: np.ndarray) -> float:
    """Matthews' correlation of truth and decisions, -1 to 1; 0 where either is constant.

    Of labels it is the mean over the columns that hold both 0 and 1 in truth.
    """
    if truth.ndim == 1:
        return _correlation(truth, answer)
    true, given = (truth > 0.5).astype(np.int64), (answer > 0.5).astype(np.int64)
    columns = [_correlation(true[:, place], given[:, place]) for place in np.flatnonzero(np.ptp(true, axis=0))]
    return float(np.mean(columns)) if columns else 0.0


# --- classes and labels: probabilities ----------------------------------------------------------------------------


@part(
    source="Kaggle's multi-class log loss; of labels the binary one",
    greater=False, wants="probability", takes=("classes", "labels"), rowwise=True, allowed={"clip": (0, 0.5)},
)  # fmt: skip
def log_loss(truth: np.ndarray, answer: np.ndarray, *, clip: float = 1e-15) -> np.ndarray:
    """Minus the log of the probability of what is true, in nats, ≥ 0; of labels the mean over the columns.

    clip: no probability counts as less than this, or as more than one minus it. Rows of classes are scaled to sum one
    before.
    """
    wide = answer.astype(np.float64)
    if truth.ndim == 2:
        return -np.log(np.clip(np.where(truth > 0.5, wide, 1 - wide), clip, 1 - clip)).mean(axis=1)
    chance = wide[np.arange(len(truth)), truth] / np.maximum(wide.sum(axis=1), 1e-300)
    return -np.log(np.clip(chance, clip, 1.0))


@part(
    source="Hanley and McNeil 1982; classes one against the rest",
    greater=True, wants="probability", takes=("classes", "labels"),
    allowed={"average": ("macro", "weighted", "micro", "samples")},
)  # fmt: skip
def roc_auc(truth: np.ndarray, answer: np.ndarray, *, average: str = "macro") -> float:
    """Area under the ROC curve, 0 to 1: how often a positive row stands above a negative one, ties counting half.

    average: macro (mean over columns), weighted (by their positive rows), micro (all cells as one column) or samples
    (mean over rows). Columns without both classes are left out; 0.5 if none is left. Of two classes it is the area of
    the second. ``roc_auc_columns`` in this file gives each column's own.
    """
    return _averaged(_area, truth, answer, average, default=0.5)


@part(
    source="scikit-learn's average_precision_score; classes one against the rest",
    greater=True, wants="probability", takes=("classes", "labels"),
    allowed={"average": ("macro", "weighted", "micro", "samples")},
)  # fmt: skip
def average_precision(truth: np.ndarray, answer: np.ndarray, *, average: str = "macro") -> float:
    """Mean over the positive rows of the precision at their rank, 0 to 1; rows of equal value share a rank.

    average: macro (mean over columns), weighted (by their positive rows), micro (all cells as one column) or samples
    (mean over rows). Columns without a positive row are left out; 0 if none is left. Of two classes it is the second's.
    """
    return _averaged(_precision, truth, answer, average, default=0.0)


@part(
    source="Russakovsky et al. 2015, section 4.1",
    greater=True, wants="probability", takes=("classes",), rowwise=True, allowed={"k": (1, None)},
)  # fmt: skip
def top_k_accuracy(truth: np.ndarray, answer: np.ndarray, *, k: int = 5) -> np.ndarray:
    """Share of rows whose true class is among the k most likely, 0 to 1; a tie goes to the first class."""
    return (_ranks(truth, answer) <= k).astype(np.float64)


@part(
    source="Kaggle's MAP@K",
    greater=True, wants="probability", takes=("classes", "labels"), rowwise=True, ranked=True,
    allowed={"k": (1, None)},
)  # fmt: skip
def map_at_k(truth: np.ndarray, answer: np.ndarray, *, k: int = 5) -> np.ndarray:
    """Mean average precision of the k most likely, 0 to 1: 1 / rank of the one true class, 0 beyond k.

    Of labels: the sum of the precisions at the ranks of true labels, over the smaller of k and their count; 0 for a row
    without labels. A tie goes to the first column.
    """
    if truth.ndim == 1:
        ranks = _ranks(truth, answer)
        return np.where(ranks <= k, 1 / ranks, 0.0)
    first = np.argsort(-answer, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(truth > 0.5, first, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, first.shape[1] + 1)
    return (precision * hits).sum(axis=1) / np.clip((truth > 0.5).sum(axis=1), 1, k)


# --- numbers ------------------------------------------------------------------------------------------------------


@part(
    source="Cohen 1968, weighted kappa with squared distances",
    greater=True, wants="decision", takes=("numbers",),
)  # fmt: skip
def quadratic_kappa(truth: np.ndarray, answer: np.ndarray) -> float:
    """Agreement of grades beyond chance, up to 1: one minus the squared distances over those of unpaired rows.

    Grades are numbers, rounded to the nearest whole one. 0 where truth is constant and the answers are not, 1 where all
    agree. Of several columns it is the mean.
    """
    true, given = (np.floor(table + 0.5) for table in _wide(truth, answer))
    apart = ((true - given) ** 2).mean(axis=0)
    by_chance = true.var(axis=0) + given.var(axis=0) + (true.mean(axis=0) - given.mean(axis=0)) ** 2
    return float((1 - apart / np.where(by_chance > 0, by_chance, 1)).mean())


@part(
    source="root mean squared error; of several columns Kaggle's MCRMSE",
    greater=False, wants="decision", takes=("numbers",),
)  # fmt: skip
def rmse(truth: np.ndarray, answer: np.ndarray) -> float:
    """Root of the mean squared error, in the target's unit; of several columns the mean of their roots (MCRMSE)."""
    true, given = _wide(truth, answer)
    return float(np.sqrt(((given - true) ** 2).mean(axis=0)).mean())


@part(source="mean absolute error", greater=False, wants="decision", takes=("numbers",), rowwise=True)
def mae(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Mean absolute error, in the target's unit; of several columns their mean."""
    true, given = _wide(truth, answer)
    return np.abs(given - true).mean(axis=1)


@part(source="Kaggle's RMSLE", greater=False, wants="decision", takes=("numbers",))
def rmsle(truth: np.ndarray, answer: np.ndarray) -> float:
    """Root mean squared error of log(1 + number); answers below 0 count as 0; of several columns the mean of roots.

    Raises UserError for a truth below 0.
    """
    true, given = _wide(truth, answer)
    if (true < 0).any():
        raise UserError(f"rmsle() is for targets ≥ 0, but one is {true.min():g}; take metric=rmse() or metric=mae()")
    return rmse(np.log1p(true), np.log1p(np.maximum(given, 0)))


@part(source="coefficient of determination", greater=True, wants="decision", takes=("numbers",))
def r2(truth: np.ndarray, answer: np.ndarray) -> float:
    """Share of the target's variance that is explained, up to 1; of several columns the mean.

    A column of constant truth counts 1 if it is met exactly, else 0.
    """
    true, given = _wide(truth, answer)
    varies = np.ptp(true, axis=0) > 0  # a sum of squares may miss 0 by rounding
    left, total = ((given - true) ** 2).sum(axis=0), ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    return float(np.where(varies, 1 - left / np.where(varies, total, 1), left == 0).mean())


@part(
    source="mean absolute error around a circle",
    greater=False, wants="decision", takes=("numbers",), rowwise=True, allowed={"period": (1e-6, None)},
)  # fmt: skip
def circular_mae(truth: np.ndarray, answer: np.ndarray, *, period: float = 360.0) -> np.ndarray:
    """Mean absolute error the shorter way round, in the target's unit, at most half a period.

    period: where the numbers begin anew, such as 360 of degrees or 24 of hours.
    """
    true, given = _wide(truth, answer)
    ahead = np.abs(given - true) % period
    return np.minimum(ahead, period - ahead).mean(axis=1)


@part(source="Spearman 1904, correlation of ranks", greater=True, wants="decision", takes=("numbers",))
def spearman(truth: np.ndarray, answer: np.ndarray) -> float:
    """Correlation of the ranks of truth and answer, -1 to 1; of several columns the mean; 0 where either is constant.

    Equal numbers share their mean rank.
    """
    pairs = zip(*(table.T for table in _wide(truth, answer)), strict=True)
    return float(np.mean([_correlation_of_ranks(_mean_ranks(true), _mean_ranks(given)) for true, given in pairs]))


# --- areas and precisions, column by column -----------------------------------------------------------------------


def roc_auc_columns(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """The area under each column's ROC curve, (C,) float64: of each class against the rest, or of each label.

    truth and answer as ``roc_auc``; NaN for a column without both classes.
    """
    return _of_columns(_area, *_columns(truth, answer))


Ranked = Callable[[np.ndarray, np.ndarray], float]  # the values of positive and of negative rows → their score


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Sorted values of both → the share of pairs in the right order; NaN without a pair."""
    if not len(positive) or not len(negative):
        return np.nan
    if len(positive) > len(negative):  # the shorter is looked up in the longer
        return 1 - _area(negative, positive)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / 2 / len(negative))


def _precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Sorted values of both → the mean over positive rows of the precision among rows as high; NaN without any."""
    if not len(positive):
        return np.nan
    right = len(positive) - np.searchsorted(positive, positive, "left")
    wrong = len(negative) - np.searchsorted(negative, positive, "left")
    return float((right / (right + wrong)).mean())


def _averaged(score: Ranked, truth: np.ndarray, answer: np.ndarray, average: str, default: float) -> float:
    true, values = _columns(truth, answer)
    if truth.ndim == 1 and values.shape[1] == 2:
        true, values = true[:, 1:], values[:, 1:]
    true, values = (LAID_OUT.get(average, np.asarray)(table) for table in (true, values))
    scores = _of_columns(score, true, values)
    weights = true.sum(axis=0) if average == "weighted" else np.ones(len(scores))
    defined = np.isfinite(scores) & (weights > 0)
    return float(np.average(scores[defined], weights=weights[defined])) if defined.any() else default


LAID_OUT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "micro": lambda table: table.reshape(-1, 1),
    "samples": np.transpose,
}


def _columns(truth: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows (N, C) are positive in each column, as bools, and the values (N, C)."""
    return truth[:, None] == np.arange(answer.shape[1]) if truth.ndim == 1 else truth > 0.5, answer


def _of_columns(score: Ranked, true: np.ndarray, values: np.ndarray) -> np.ndarray:
    # sorting the values of each side and looking one up in the other is several times faster than ranking all rows
    tables = zip(np.ascontiguousarray(true.T), np.ascontiguousarray(values.T), strict=True)
    return np.array([score(np.sort(column[rows]), np.sort(column[~rows])) for rows, column in tables])


def _ranks(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """The place (N,) of the true class among the values of its row, from 1; of equals the first class leads."""
    own = answer[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(answer.shape[1]) < truth[:, None]
    return ((answer > own) | ((answer == own) & earlier)).sum(axis=1) + 1


# --- F-beta -------------------------------------------------------------------------------------------------------


def _f_micro(truth: np.ndarray, answer: np.ndarray, beta: float) -> float:
    hits, there, given = _counts(truth, answer)
    return float(_f(hits.sum(), there.sum(), given.sum(), beta))


def _f_macro(truth: np.ndarray, answer: np.ndarray, beta: float) -> float:
    hits, there, given = _counts(truth, answer)
    seen = there + given > 0
    return float(_f(hits, there, given, beta)[seen].mean()) if seen.any() else 1.0


def _f_weighted(truth: np.ndarray, answer: np.ndarray, beta: float) -> float:
    hits, there, given = _counts(truth, answer)
    if not there.any():
        return float(not given.any())
    return float(np.average(_f(hits, there, given, beta), weights=there))


def _f_binary(truth: np.ndarray, answer: np.ndarray, beta: float) -> float:
    if truth.ndim == 2 and truth.shape[1] > 1:
        others = ", ".join(sorted(F_AVERAGES.keys() - {"binary"}))
        raise UserError(f"f_beta(average='binary') is of one label, but there are {truth.shape[1]}; take {others}")
    place = 1 if truth.ndim == 1 else 0
    return float(_f(*_counts(truth, answer), beta)[place])


def _f_samples(truth: np.ndarray, answer: np.ndarray, beta: float) -> float:
    return float(_f_of_rows(truth, answer, beta).mean())


F_AVERAGES: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "samples": _f_samples, "micro": _f_micro, "macro": _f_macro, "weighted": _f_weighted, "binary": _f_binary,
}  # fmt: skip


def _f_of_rows(truth: np.ndarray, answer: np.ndarray, beta: float) -> np.ndarray:
    if truth.ndim == 1:
        return (answer == truth).astype(np.float64)
    true, given = truth > 0.5, answer > 0.5
    return _f((true & given).sum(axis=1), true.sum(axis=1), given.sum(axis=1), beta)


def _f(hits: np.ndarray, there: np.ndarray, given: np.ndarray, beta: float) -> np.ndarray:
    """Counts of right answers, of truths and of answers → F-beta; 1 where there is neither truth nor answer."""
    total = beta**2 * there + given
    return np.where(total > 0, (1 + beta**2) * hits / np.where(total > 0, total, 1), 1.0)


def _counts(truth: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class (C,): the right answers, the rows in truth, the answers."""
    if truth.ndim == 2:
        true, given = truth > 0.5, answer > 0.5
        return (true & given).sum(axis=0), true.sum(axis=0), given.sum(axis=0)
    size = 1 + max(1, truth.max(initial=0), answer.max(initial=0))
    right = truth[answer == truth]
    return np.bincount(right, minlength=size), np.bincount(truth, minlength=size), np.bincount(answer, minlength=size)


# --- correlations -------------------------------------------------------------------------------------------------


def _correlation(truth: np.ndarray, answer: np.ndarray) -> float:
    """R_K of class indices (N,), from the counts of classes: the margins and the right answers say all."""
    hits, there, given = (count.astype(np.float64) for count in _counts(truth, answer))
    rows = float(len(truth))
    spread = (rows**2 - (there**2).sum()) * (rows**2 - (given**2).sum())
    return float((hits.sum() * rows - there @ given) / np.sqrt(spread)) if spread > 0 else 0.0


def _correlation_of_ranks(true: np.ndarray, given: np.ndarray) -> float:
    true, given = true - true.mean(), given - given.mean()
    spread = np.sqrt((true @ true) * (given @ given))
    return float(true @ given / spread) if spread > 0 else 0.0


def _mean_ranks(column: np.ndarray) -> np.ndarray:
    """The rank (N,) float64 of each number, from 0; equal numbers share the mean of theirs."""
    order = np.argsort(column, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(column[order]) != 0))
    lengths = np.diff(np.append(starts, len(column)))
    ranks = np.empty(len(column))
    ranks[order] = np.repeat(starts + (lengths - 1) / 2, lengths)
    return ranks


def _wide(truth: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (N, T) float64, so that sums of squares keep their digits."""
    rows = len(truth)
    return truth.reshape(rows, -1).astype(np.float64), answer.reshape(rows, -1).astype(np.float64)
