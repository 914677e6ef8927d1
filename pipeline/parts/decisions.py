"""Decisions: level-2 values changed so that what the task decides from them, or their log loss, is better.

Form: a class with ``__init__(form, *, …)``, ``fit(values (N, C) float32, truth, metric)``, ``apply(values)`` → (N, C)
float32 of the same form, ``readable(columns)`` → its parameters in plain words, ``state()`` and ``load_state(state)``.
Thresholds and cuts are built into the values: a label above its threshold comes out above ½, so that the task's own
rule gives the fitted decision, and values of several members can still be averaged. Each parameter is shrunk toward the
default, n / (n + shrink) of the way from it, n the rows that speak for it.

Facts: ``takes``, the forms; ``wants``, the metrics that it serves: of a "decision", of a "probability" (a loss) or
"either"; ``ordered``, whether classes must be grades; ``classes``, how many there may be, (least, most); ``rounds``,
whether numbers must go to a metric that rounds them; ``order`` of simplicity, above 0, the default's; ``most_work``,
the largest N·C² at which ``all`` tries it; ``named``, whether it is tried only where it is named.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline import lists
from pipeline.fitting import (
    LEAST,
    affordable,
    between,
    by_name,
    chance_of,
    climb,
    cuts,
    least,
    odds,
    rising,
    shrunk,
    spread,
    straddled,
)
from pipeline.forms import Form
from pipeline.registry import part
from pipeline.stacking import Stored, sigmoid, softmax

if TYPE_CHECKING:
    from pipeline.evaluate import Metric

SMALLEST = 1e-15
CANDIDATE = 10  # looks at a list that sorting it costs


# --- thresholds ---------------------------------------------------------------------------------------------------


@part(
    source="Yang 2001, thresholding strategies: SCut with one threshold",
    order=1,
    takes=("labels", "classes"),
    wants="decision",
    classes=(2, 2),
    allowed={"shrink": (0, None)},
)
class threshold(Stored):
    """One threshold for all labels, or for the second of two classes.

    shrink: rows that the default ½ weighs as much as; the way is measured in log-odds.
    """

    def __init__(self, form: Form, *, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.shrink = shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth of the form."""
        chance, true = self.chances(values), self.chances(self.form.dense(truth, values.shape[1]))
        count = affordable(values.size, 10, 50)
        found = odds(np.concatenate([cuts(chance, count), cuts(chance[true > 0.5], count)]))
        best = climb(np.zeros(1), lambda *_: found, lambda cut: metric.gain(truth, self.moved(values, chance_of(cut))))
        self.fitted = {"cut": chance_of(shrunk(0.0, best[0], len(values), self.shrink))}
        return self

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) values → the same form, above ½ where they were above the threshold."""
        return self.moved(values, self.fitted["cut"])

    def chances(self, values: np.ndarray) -> np.ndarray:
        """What is held against the threshold: all labels, or the second class."""
        return values[:, 1:] if self.form.simplex else values

    def moved(self, values: np.ndarray, cut: np.ndarray) -> np.ndarray:
        """Values whose default decision is that of the cut."""
        moved = straddled(self.chances(values), cut)
        return np.hstack([1 - moved, moved]) if self.form.simplex else moved

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": round(float(self.fitted["cut"]), 6)}


@part(
    source="Yang 2001, SCut; Lipton et al. 2014 for F1",
    order=2,
    takes=("labels",),
    wants="decision",
    allowed={"shrink": (0, None)},
)
class thresholds(Stored):
    """A threshold for each label: each alone first, then all in turn by the metric of all.

    shrink: positive rows that the common threshold weighs as much as, and the common one's own toward ½.
    """

    def __init__(self, form: Form, *, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.shrink = shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth (N, C) of 0 and 1."""
        common = threshold(self.form, shrink=self.shrink).fit(values, truth, metric).fitted["cut"]
        start, count = np.full(values.shape[1], odds(common)), affordable(values.size, 8, 20)
        found = [
            odds(np.concatenate([cuts(values[:, c], count), cuts(values[truth[:, c] > 0.5, c], count)]))
            for c in range(values.shape[1])
        ]
        gain = functools.partial(self.score, values, truth, metric)
        alone = self.alone(values, truth, metric, start, found)
        best = alone if gain(alone) > gain(start) else start
        if affordable(values.size, 0, len(start) * count) == len(start) * count:
            best = climb(best, functools.partial(self.listed, found), gain, default=start)
        self.fitted = {"cuts": chance_of(shrunk(start, best, (truth > 0.5).sum(axis=0), self.shrink))}
        return self

    def alone(
        self, values: np.ndarray, truth: np.ndarray, metric: Metric, start: np.ndarray, found: list[np.ndarray]
    ) -> np.ndarray:
        """The log-odds of the best threshold of each column by its own score; where it has no 1 or no 0, the start."""
        best = start.copy()
        for c in np.flatnonzero(np.ptp(truth, axis=0) > 0).tolist():
            own = slice(c, c + 1)
            judged = functools.partial(self.score, values[:, own], truth[:, own], metric)
            best[own] = climb(start[own], functools.partial(self.listed, found[own]), judged)
        return best

    @staticmethod
    def score(values: np.ndarray, truth: np.ndarray, metric: Metric, cut: np.ndarray) -> float:
        """The metric's gain with these log-odds as thresholds."""
        return metric.gain(truth, straddled(values, chance_of(cut)))

    @staticmethod
    def listed(found: list[np.ndarray], place: int, cut: np.ndarray) -> np.ndarray:
        """The candidates of a column."""
        return found[place]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) values → the same, above ½ where they were above their column's threshold."""
        return straddled(values, self.fitted["cuts"])

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The threshold of each column."""
        return {"thresholds": by_name(columns, self.fitted["cuts"])}


@part(
    source="Yang 2001, RCut: the k likeliest labels of each row",
    order=1,
    takes=("labels",),
    wants="decision",
    allowed={"k": (1, None)},
)
class top_k(Stored):
    """The k likeliest labels of each row, whatever their values; of equal ones the first.

    k: how many; null: the number with the best metric.
    """

    def __init__(self, form: Form, *, k: int | None = None) -> None:
        super().__init__(form)
        self.k = k

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth (N, C) of 0 and 1."""
        most = min(values.shape[1], int(truth.sum(axis=1).max(initial=1)) + 1, affordable(values.size, 10, 100))
        asked = range(1, most + 1) if self.k is None else [min(self.k, values.shape[1])]
        best = max(asked, key=lambda k: (metric.gain(truth, self.likeliest(values, k)), -k))
        self.fitted = {"k": np.array(best)}
        return self

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) values → the same order within each row, k of them above ½."""
        return self.likeliest(values, int(self.fitted["k"]))

    @staticmethod
    def likeliest(values: np.ndarray, k: int) -> np.ndarray:
        """Rows moved so that the middle between their k-th and the next value lies at ½."""
        order = np.argsort(-values, axis=1, kind="stable")
        ranked = np.take_along_axis(values.astype(np.float64), order, axis=1)
        after = ranked[:, k : k + 1] if k < values.shape[1] else 0 * ranked[:, :1]
        middle = np.clip((ranked[:, k - 1 : k] + after) / 2, LEAST, 1 - LEAST)
        chosen = np.zeros(values.shape, dtype=bool)
        np.put_along_axis(chosen, order[:, :k], True, axis=1)
        return straddled(values, middle, chosen)

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The number of labels."""
        return {"k": int(self.fitted["k"])}


@part(
    source="the distance at which kernels of Humpback Whale Identification 2018 put new_whale, found on the metric",
    order=1,
    takes=("lists",),
    wants="decision",
    allowed={"shrink": (0, None)},
)
class new_threshold(Stored):
    """The similarity at which the answer for new identities stands: whoever is farther is more likely new.

    shrink: rows that the similarity where it stood weighs as much as; the way is measured in the share of rows that it
    calls new, since cosines crowd.
    """

    def __init__(self, form: Form, *, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.shrink = shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, 2n) float32 lists, truth (N,) int64."""
        default = float(lists.thresholds(values).mean()) if len(values) else lists.NOWHERE
        self.fitted = {"threshold": np.array(default)}
        if default <= lists.NOWHERE:  # there is no such answer
            return self
        nearest = np.where(lists.unpacked(values)[0] >= 0, lists.unpacked(values)[1], lists.NOWHERE).max(axis=1)
        found = cuts(nearest, affordable(CANDIDATE * values.size, 10, 100))
        best = climb(
            np.array([default]), lambda *_: found, lambda cut: metric.gain(truth, lists.with_threshold(values, cut[0]))
        )
        if best[0] != default:
            edges = between(nearest)
            shares = np.searchsorted(edges, [default, best[0]]).clip(0, len(nearest))
            share = shrunk(*shares, len(values), self.shrink)
            self.fitted = {"threshold": np.array(np.interp(share, np.arange(len(edges)), edges))}
        return self

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, 2n) lists → the same, the answer for new identities at the threshold."""
        return lists.with_threshold(values, float(self.fitted["threshold"]))

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The similarity."""
        return {"new": round(float(self.fitted["threshold"]), 6)}


# --- classes ------------------------------------------------------------------------------------------------------


@part(
    source="argmax of weighted probabilities, Elkan 2001, section 3, with weights found on the metric",
    order=2,
    takes=("classes",),
    wants="decision",
    classes=(3, None),
    ordered=False,
    most_work=2e7,
    allowed={"shrink": (0, None)},
)
class class_weights(Stored):
    """A weight a class: probabilities times weights, scaled to sum one.

    shrink: rows of a class that the default weight 1 weighs as much as; the way is measured in logs.
    """

    def __init__(self, form: Form, *, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.shrink = shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth (N,) int64."""
        classes = values.shape[1]
        count = affordable(2 * values.size * classes, 4, 16)
        wide = np.log(np.maximum(values.astype(np.float64), SMALLEST))

        def switches(place: int, weight: np.ndarray) -> np.ndarray:
            scores = wide + weight  # the weights at which a row would begin to be of this class
            others = np.delete(scores, place, axis=1).max(axis=1)
            switch = others - wide[:, place]
            return np.concatenate([cuts(switch, count), cuts(switch[truth == place], count)])

        def gain(weight: np.ndarray) -> float:
            return metric.gain(truth, values * np.exp(weight).astype(np.float32))  # an argmax minds no row's scale

        best = climb(np.zeros(classes), switches, gain)
        own = np.bincount(truth, minlength=classes)
        self.fitted = {"weights": np.exp(shrunk(0.0, best, own, self.shrink))}
        return self

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) probabilities → weighted ones, rows summing to one."""
        return self.form.finish(values * self.fitted["weights"])

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The weight of each class."""
        return {"weights": by_name(columns, self.fitted["weights"])}


@part(
    source="cut points for a rounded grade, as in the diabetic retinopathy competitions of 2015 and 2019",
    order=2,
    takes=("classes", "numbers"),
    wants="decision",
    classes=(3, None),
    ordered=True,
    rounds=True,
    most_work=2e7,
    allowed={"shrink": (0, None), "most": (1, None)},
)
class cut_points(Stored):
    """Where one grade ends and the next begins, on the expected grade Σ p·k or on the predicted number.

    Values are bent so that each cut comes to lie half way between its two grades, where rounding cuts; probabilities
    stand for the bent grade by the two grades beside it. shrink: rows of the rarer neighbour that the default cut
    weighs as much as. most: with more grades than this, numbers stay as they are.
    """

    def __init__(self, form: Form, *, shrink: float = 20.0, most: int = 50) -> None:
        super().__init__(form)
        self.shrink, self.most = shrink, most

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth of the form, whose numbers are grades."""
        grades, true = self.grades(values), truth.reshape(len(truth), -1)
        low, high = (0, values.shape[1] - 1) if self.form.simplex else (true.min(), true.max())
        low, high = int(np.floor(low)), int(np.ceil(high))
        if not low < high <= low + self.most:
            self.fitted = {"low": np.array(low), "cuts": np.zeros((grades.shape[1], 0))}
            return self
        default = np.tile(np.arange(low, high) + 0.5, (grades.shape[1], 1))
        found = [self.column(values, truth, metric, grades, true, default, c) for c in range(len(default))]
        own = np.stack([np.bincount((t - low).round().astype(np.int64), minlength=high - low + 1) for t in true.T])
        cut = shrunk(default, np.stack(found), np.minimum(own[:, 1:], own[:, :-1]), self.shrink)
        self.fitted = {"low": np.array(low), "cuts": rising(cut)}
        return self

    def column(
        self, values: np.ndarray, truth: np.ndarray, metric: Metric, grades: np.ndarray, true: np.ndarray,
        default: np.ndarray, column: int,
    ) -> np.ndarray:  # fmt: skip
        """The best cuts (G - 1,) of one column while the others stay at the default."""
        low, own = int(np.floor(default[0, 0])), grades[:, column]
        count = affordable(3 * values.size * default.shape[1], 6, 30)

        def gain(cut: np.ndarray) -> float:
            every = default.copy()
            every[column] = cut
            return metric.gain(truth, self.bent(values, low, every))

        def between(place: int, cut: np.ndarray) -> np.ndarray:
            below = cut[place - 1] if place else -np.inf
            above = cut[place + 1] if place + 1 < len(cut) else np.inf
            return cuts(own[(own > below) & (own < above)], count)

        shares = np.array([(true[:, column] < edge).mean() for edge in default[column]])
        same_shares = rising(np.quantile(own, shares))  # grades as frequent as in truth: a good start for kappa
        start = max((default[column], same_shares), key=gain)
        return climb(start, between, gain, default=default[column], sweeps=3)

    def grades(self, values: np.ndarray) -> np.ndarray:
        """(N, 1) expected grade of probabilities, or the numbers themselves, float64."""
        wide = values.astype(np.float64)
        return wide @ np.arange(values.shape[1])[:, None] if self.form.simplex else wide

    def bent(self, values: np.ndarray, low: int, cut: np.ndarray) -> np.ndarray:
        """Values whose grade rounds as the cuts (T, G - 1) say."""
        grades, high = self.grades(values), low + cut.shape[1]
        if low == high:
            return values
        bent = np.empty_like(grades)
        for column, own in enumerate(cut):
            ends = min(low, own[0] - LEAST), max(high, own[-1] + LEAST)
            places = [low, *(np.arange(low, high) + 0.5), high]
            bent[:, column] = np.interp(grades[:, column], [ends[0], *own, ends[1]], places)
        return spread(bent[:, 0], values.shape[1]) if self.form.simplex else bent.astype(np.float32)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) values → the same form, grades bent."""
        return self.bent(values, int(self.fitted["low"]), self.fitted["cuts"])

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The cuts between the grades, of each column for numbers."""
        cut = [[round(float(edge), 6) for edge in own] for own in self.fitted["cuts"]]
        return {"cut_points": cut[0] if self.form.simplex else dict(zip(columns, cut, strict=True))}


@part(
    source="Saerens et al. 2002, eq. 2.9: priors of unlabelled rows by expectation maximisation",
    order=3,
    takes=("classes",),
    wants="either",
    named=True,
    allowed={"rounds": (1, None), "shrink": (0, None)},
)
class prior_shift(Stored):
    """Probabilities for other class shares than in training, estimated from the rows that are answered together.

    The test rows together tell their shares, without labels; a fold's rows do in nested CV. Tried only where it is
    named: where the shares are the same it only adds noise. rounds: of expectation maximisation. shrink: rows that the
    training shares weigh as much as.
    """

    def __init__(self, form: Form, *, rounds: int = 100, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.rounds, self.shrink = rounds, shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """truth (N,) int64: only its class shares are read."""
        share = np.bincount(truth, minlength=values.shape[1]) / len(truth)
        settings = {"rounds": np.array(self.rounds), "shrink": np.array(self.shrink)}
        self.fitted = {"share": np.maximum(share, LEAST), **settings}
        return self

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) probabilities → those at the shares of these rows."""
        share, own = self.fitted["share"], self.fitted["share"]
        for _ in range(int(self.fitted["rounds"])):
            rows = values * (own / share)
            own = np.maximum((rows / np.maximum(rows.sum(axis=1, keepdims=True), SMALLEST)).mean(axis=0), LEAST)
        return self.form.finish(values * (shrunk(share, own, len(values), float(self.fitted["shrink"])) / share))

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The class shares of the training rows."""
        return {"training shares": by_name(columns, self.fitted["share"])}


# --- probabilities ------------------------------------------------------------------------------------------------


@part(
    source="Guo et al. 2017, section 4.2, temperature scaling",
    order=1,
    takes=("classes", "labels"),
    wants="probability",
    allowed={"shrink": (0, None)},
)
class temperature(Stored):
    """One temperature for all logits, with the least log loss; above 1 softens.

    shrink: rows that the default 1 weighs as much as; the way is measured in logs.
    """

    def __init__(self, form: Form, *, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.shrink = shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth of the form."""
        best = least(lambda log: float(self.form.distance(truth, self.heated(values, np.exp(log))).mean()), -3.0, 3.0)
        self.fitted = {"temperature": np.exp(shrunk(0.0, best, len(values), self.shrink))}
        return self

    def heated(self, values: np.ndarray, degree: float) -> np.ndarray:
        """Values with their logits divided by the degree."""
        wide = np.clip(values.astype(np.float64), SMALLEST, 1 - SMALLEST)
        if self.form.simplex:
            return self.form.finish(softmax(np.log(wide) / degree))
        return self.form.finish(sigmoid((np.log(wide) - np.log1p(-wide)) / degree))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) values → the same form, softer or sharper."""
        return self.heated(values, float(self.fitted["temperature"]))

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The temperature."""
        return {"temperature": round(float(self.fitted["temperature"]), 6)}


@part(
    source="clipping for log loss, as Kaggle's metric itself does at 1e-15",
    order=1,
    takes=("classes", "labels"),
    wants="probability",
    allowed={"low": (0, 0.5), "shrink": (0, None)},
)
class clip(Stored):
    """No probability below a floor, and no label above one minus it, so that a sure mistake costs less.

    low: the floor; null: the one with the least log loss. shrink: rows that the default 0 weighs as much as.
    """

    def __init__(self, form: Form, *, low: float | None = None, shrink: float = 20.0) -> None:
        super().__init__(form)
        self.low, self.shrink = low, shrink

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, C) float32, truth of the form."""
        if self.low is not None:
            self.fitted = {"low": np.array(float(self.low))}
            return self
        best = least(lambda low: float(self.form.distance(truth, self.clipped(values, np.exp(low))).mean()), -14, -1)
        self.fitted = {"low": shrunk(0.0, np.exp(best), len(values), self.shrink)}
        return self

    def clipped(self, values: np.ndarray, low: float) -> np.ndarray:
        """Values clipped and, of classes, scaled to sum one."""
        return self.form.finish(np.clip(values.astype(np.float64), low, 1.0 if self.form.simplex else 1 - low))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(N, C) values → the same form, none below the floor but by scaling."""
        return self.clipped(values, float(self.fitted["low"]))

    def readable(self, columns: Sequence[str]) -> dict[str, Any]:
        """The floor."""
        return {"low": float(f"{float(self.fitted['low']):.6g}")}
