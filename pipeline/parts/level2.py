"""Level 2: how the predictions of several runs become one.

Form: a class with ``__init__(form, *, …)``, ``fit(values (N, M, C) float32, truth, metric, features=None)``,
``predict(values, features=None)`` → (N, C) float32 of the form, ``state()`` and ``load_state(state)``; M runs, C
columns, truth and values as ``pipeline/forms.py`` says. The rows of a fit may lack classes. Facts: ``takes``, the forms
that a method understands, all unless it says; ``also``, others, which it blends by one weight a run; ``order`` of
simplicity (lower is simpler); ``most_work``, the largest N·M·C² at which ``stack.methods=all`` tries the method;
``needs``, a package beyond the project's own. A method with an argument ``features`` reads side features (N, F)
float64, NaN where one is missing.

What fit learns is kept as plain arrays and texts in ``fitted``, and predict reads nothing else: the same state gives
the same bytes, and no pickle is ever needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.errors import UserError
from pipeline.forms import Form
from pipeline.registry import part
from pipeline.stacking import Network, Stored, Varying, link, logs, sigmoid, softmax, standard

if TYPE_CHECKING:
    from pipeline.evaluate import Metric

Side = np.ndarray | None  # features (N, F) float64, or none

# --- weights over runs --------------------------------------------------------------------------------------------


class Weighted(Stored):
    """A method that is one weight a run; the weights sum to one."""

    def predict(self, values: np.ndarray, features: Side = None) -> np.ndarray:
        """(N, M, C) values → (N, C) float32 of the form."""
        return self.form.finish(np.einsum("nmc,m->nc", values.astype(np.float64), self.fitted["weights"]))


@part(source="the best run by the metric", order=0, also=("lists",))
class single(Weighted):
    """The run with the best metric on the rows of the fit; a tie goes to the least distance, then to the first."""

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: Side = None) -> Self:
        """values (N, M, C) float32, truth of the form."""
        runs = [values[:, m] for m in range(values.shape[1])]
        self.fitted = {"weights": np.eye(len(runs))[best_of(self.form, runs, truth, metric)]}
        return self


@part(source="plain average of the runs' values", order=1, also=("lists",))
class mean(Weighted):
    """The plain mean over the runs."""

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: Side = None) -> Self:
        """values (N, M, C) float32; nothing is learned."""
        self.fitted = {"weights": np.full(values.shape[1], 1 / values.shape[1])}
        return self


@part(source="Caruana et al. 2004, section 2: forward selection with replacement", order=3, also=("lists",))
class hill_climb(Weighted):
    """Greedy forward selection with replacement from the best run on; the best bag on the way stays.

    rounds: how often a run joins the bag. Ties go to the least distance (log loss, or squared error), then to the first
    run.
    """

    def __init__(self, form: Form, *, rounds: int = 50) -> None:
        super().__init__(form)
        self.rounds = rounds

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: Side = None) -> Self:
        """values (N, M, C) float32, truth of the form."""
        runs = [values[:, m].astype(np.float64) for m in range(values.shape[1])]
        bag = [best_of(self.form, runs, truth, metric)]
        total = runs[bag[0]].copy()
        best, size = rank(self.form, total, truth, metric), 1
        for _ in range(self.rounds):
            bag.append(best_of(self.form, [self.average(total + run, len(bag) + 1) for run in runs], truth, metric))
            total += runs[bag[-1]]
            reached = rank(self.form, self.average(total, len(bag)), truth, metric)
            if reached > best:
                best, size = reached, len(bag)
        self.fitted = {"weights": np.bincount(bag[:size], minlength=len(runs)) / size}
        return self

    def average(self, total: np.ndarray, size: int) -> np.ndarray:
        """The bag's mean; of classes the sum will do, since rows are scaled anyway."""
        return total if self.form.simplex else total / size


def rank(form: Form, values: np.ndarray, truth: np.ndarray, metric: Metric) -> tuple[float, float]:
    """What candidates (N, C) are compared by: the metric, then the distance to truth; more is better."""
    return metric.gain(truth, form.finish(values)), -float(form.distance(truth, values).mean())


def best_of(form: Form, candidates: list[np.ndarray], truth: np.ndarray, metric: Metric) -> int:
    """The index of the best (N, C) candidate by ``rank``; the first of equals."""
    gains = [metric.gain(truth, form.finish(values)) for values in candidates]
    tied = [index for index, gain in enumerate(gains) if gain == max(gains)]
    if len(tied) == 1:
        return tied[0]
    return min(tied, key=lambda index: float(form.distance(truth, candidates[index]).mean()))


# --- ranks --------------------------------------------------------------------------------------------------------


@part(
    source="average of empirical quantiles; ranks of the rows of the fit, so that test rows share their scale",
    order=2,
    takes=("classes", "labels"),
)
class rank_mean(Stored):
    """The mean over the runs of each column's empirical quantile on the rows of the fit.

    points: the most quantiles kept a column; other values lie in between by linear interpolation.
    """

    def __init__(self, form: Form, *, points: int = 1000) -> None:
        super().__init__(form)
        self.points = points

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: Side = None) -> Self:
        """values (N, M, C) float32; the truth is not read."""
        kept = np.linspace(0, len(values) - 1, min(self.points, len(values))).round().astype(np.int64)
        self.fitted = {"sorted": np.sort(values, axis=0)[kept], "quantiles": (kept + 0.5) / len(values)}
        return self

    def predict(self, values: np.ndarray, features: Side = None) -> np.ndarray:
        """(N, M, C) values → (N, C) float32 of the form."""
        quantiles = np.empty(values.shape)
        for member, label in np.ndindex(values.shape[1:]):
            grid, place = np.unique(self.fitted["sorted"][:, member, label], return_inverse=True)
            middle = np.bincount(place, weights=self.fitted["quantiles"]) / np.bincount(place)
            quantiles[:, member, label] = np.interp(values[:, member, label], grid, middle)
        return self.form.finish(quantiles.mean(axis=1))


# --- linear models ------------------------------------------------------------------------------------------------


@part(source="Breiman 1996, stacked regressions; ridge in closed form", order=4, most_work=1e9)
class ridge(Stored):
    """Linear least squares from all runs' values to the truth, one-hot for classes, clipped to what the form allows.

    penalty: weight of the squared coefficients beside the summed squared errors; of numbers, for inputs of unit spread.
    floor: the least probability (and one minus the largest, for labels).
    """

    def __init__(self, form: Form, *, penalty: float = 1.0, floor: float = 1e-3) -> None:
        super().__init__(form)
        self.penalty = penalty
        self.floor = floor

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: Side = None) -> Self:
        """values (N, M, C) float32, truth of the form."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        target = self.form.dense(truth, values.shape[2]).astype(np.float64)
        centre, unit = rows.mean(axis=0), np.ones(rows.shape[1]) if self.form.bounded else standard(rows)[1]
        centred = (rows - centre) / unit
        spread = centred.T @ centred + self.penalty * np.eye(rows.shape[1])
        weight = np.linalg.solve(spread, centred.T @ target) / unit[:, None]
        bias = target.mean(axis=0) - centre @ weight
        self.fitted = {"weight": weight, "bias": bias, "floor": np.array(self.floor)}
        return self

    def predict(self, values: np.ndarray, features: Side = None) -> np.ndarray:
        """(N, M, C) values → (N, C) float32 of the form."""
        raw = values.reshape(len(values), -1).astype(np.float64) @ self.fitted["weight"] + self.fitted["bias"]
        if self.form.bounded:
            raw = np.clip(raw, self.fitted["floor"], 1.0 if self.form.simplex else 1 - self.fitted["floor"])
        return self.form.finish(raw)


@part(source="logistic regression, scikit-learn", order=4, most_work=3e8, takes=("classes", "labels"))
class logistic(Varying):
    """Logistic regression on the runs' standardised log-probabilities: multinomial, or one for each label.

    A label's regression reads its own log-odds alone. penalty: strength of L2, the inverse of scikit-learn's C.
    """

    def __init__(self, form: Form, *, penalty: float = 10.0) -> None:
        super().__init__(form)
        self.penalty = penalty

    def learn(self, values: np.ndarray, side: Side, index: np.ndarray, present: np.ndarray) -> dict[str, Any]:
        scale, weight, bias = self.regress(logs(values).reshape(len(values), -1), index)
        if len(present) == 2:  # scikit-learn keeps one column, the second class's
            weight, bias = np.hstack([0 * weight, weight]), np.append(0.0, bias)
        return {"scale": scale, "weight": weight, "bias": bias}

    def chances(self, values: np.ndarray, side: Side) -> np.ndarray:
        centre, spread = self.fitted["scale"]
        rows = (logs(values).reshape(len(values), -1) - centre) / spread
        return softmax(rows @ self.fitted["weight"] + self.fitted["bias"])

    def learn_column(self, values: np.ndarray, side: Side, target: np.ndarray, column: int) -> dict[str, Any]:
        odds = link(self.form, values[:, :, column])
        scale, weight, bias = self.regress(odds, (target > 0.5).astype(np.int64))
        return {"scale": scale, "weight": weight[:, 0], "bias": bias}

    def column(self, values: np.ndarray, side: Side, column: int, own: dict[str, Any]) -> np.ndarray:
        centre, spread = own["scale"]
        return sigmoid((link(self.form, values[:, :, column]) - centre) / spread @ own["weight"] + own["bias"])

    def regress(self, rows: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rows (N, F), index (N,) → the rows' scale (2, F), weight (F, P) and bias (P,)."""
        from sklearn.linear_model import LogisticRegression

        scale = standard(rows)
        model = LogisticRegression(C=1 / self.penalty, max_iter=1000).fit((rows - scale[0]) / scale[1], index)
        return scale, model.coef_.T, model.intercept_


# --- small networks -----------------------------------------------------------------------------------------------


@part(source="a perceptron with one hidden layer over all runs and columns", order=5, most_work=1e9)
class mlp(Network):
    """One hidden layer over the members × columns matrix.

    hidden: units. penalty: weight of the squared weights. steps: full-batch steps. lr: per step, annealed to zero.
    """

    def __init__(
        self, form: Form, *, hidden: int = 32, penalty: float = 5.0, steps: int = 200, lr: float = 0.02, seed: int = 0
    ) -> None:
        super().__init__(form)
        self.hidden, self.penalty, self.steps, self.lr, self.seed = hidden, penalty, steps, lr, seed

    def weights(self, members: int, columns: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        width = members * columns
        return {
            "weight1": generator.standard_normal((width, self.hidden)) / np.sqrt(width),
            "bias1": np.zeros(self.hidden),
            "weight2": np.zeros((self.hidden, columns)),
            "bias2": np.zeros(columns),
        }

    @staticmethod
    def shape(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1)

    @staticmethod
    def forward(weights: dict[str, Any], rows: Any) -> Any:
        hidden = (rows @ weights["weight1"] + weights["bias1"]).clip(0)
        return hidden @ weights["weight2"] + weights["bias2"]


@part(
    source="1×1 convolutions over the members × classes matrix, Lin et al. 2014",
    order=5,
    most_work=1e9,
    takes=("classes", "labels"),
)
class cnn(Network):
    """Two convolutions along the classes with the runs as channels, kernel 1, and a bias a class.

    All classes share the weights, so that few rows suffice. hidden: channels. penalty: weight of the squared weights.
    steps: full-batch steps. lr: per step, annealed to zero.
    """

    def __init__(
        self, form: Form, *, hidden: int = 8, penalty: float = 1.0, steps: int = 200, lr: float = 0.02, seed: int = 0
    ) -> None:
        super().__init__(form)
        self.hidden, self.penalty, self.steps, self.lr, self.seed = hidden, penalty, steps, lr, seed

    def weights(self, members: int, columns: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "weight1": generator.standard_normal((members, self.hidden)) / np.sqrt(members),
            "bias1": np.zeros(self.hidden),
            "weight2": np.zeros((self.hidden, 1)),
            "bias2": np.zeros(columns),
        }

    @staticmethod
    def shape(rows: np.ndarray) -> np.ndarray:
        return rows.transpose(0, 2, 1)

    @staticmethod
    def forward(weights: dict[str, Any], rows: Any) -> Any:
        hidden = (rows @ weights["weight1"] + weights["bias1"]).clip(0)
        return (hidden @ weights["weight2"])[..., 0] + weights["bias2"]


# --- boosted trees ------------------------------------------------------------------------------------------------


class Boosted(Varying):
    """Small trees that correct the runs' mean: its log, its log-odds, or the number itself."""

    features: bool
    multiclass: str
    alone: dict[str, str]  # the objective of one column, by form

    def train(self, objective: str, rows: np.ndarray, target: np.ndarray, start: Side) -> str:
        """rows (N, F), target (N,), start (N, P) or (N,) on the scale of ``link``, or none → the trees as text."""
        raise NotImplementedError

    def grown(self, model: str, rows: np.ndarray, start: Side) -> np.ndarray:
        """rows (N, F), start as in ``train`` → (N, P) or (N,) probabilities, or (N,) numbers."""
        raise NotImplementedError

    def rows(self, values: np.ndarray, side: Side) -> np.ndarray:
        """(N, M·C), or (N, M·C + F) with side features, float64."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        if not self.features:
            return flat
        if side is None:
            raise UserError(f"{type(self).__name__}(features=True) needs side features, and there are none")
        return np.hstack([flat, side])

    def learn(self, values: np.ndarray, side: Side, index: np.ndarray, present: np.ndarray) -> dict[str, Any]:
        start = logs(values.mean(axis=1))[:, present]
        return {"model": self.train(self.multiclass, self.rows(values, side), index, start)}

    def chances(self, values: np.ndarray, side: Side) -> np.ndarray:
        start = logs(values.mean(axis=1))[:, self.fitted["present"]]
        return self.grown(self.fitted["model"], self.rows(values, side), start)

    def learn_column(self, values: np.ndarray, side: Side, target: np.ndarray, column: int) -> dict[str, Any]:
        start = link(self.form, values[:, :, column].mean(axis=1))
        rows, objective = self.rows(values, side), self.alone[self.form.name]
        if self.form.bounded:
            return {"model": self.train(objective, rows, target, start)}
        unit = max(float((target - start).std()), 1e-9)
        return {"model": self.train(objective, rows, (target - start) / unit, None), "unit": np.array(unit)}

    def column(self, values: np.ndarray, side: Side, column: int, own: dict[str, Any]) -> np.ndarray:
        start = link(self.form, values[:, :, column].mean(axis=1))
        if self.form.bounded:
            return self.grown(own["model"], self.rows(values, side), start)
        return start + own["unit"] * self.grown(own["model"], self.rows(values, side), None)


@part(source="Ke et al. 2017, LightGBM", order=6, most_work=1e8)
class lightgbm(Boosted):
    """LightGBM on all runs' values, starting from their mean.

    rounds: trees a class or column. lr: per round. leaves: of a tree. leaf_rows: least rows of a leaf. seed: of
    LightGBM. features: whether side features stand beside the values.
    """

    multiclass = "multiclass"
    alone = {"labels": "binary", "numbers": "regression"}

    def __init__(
        self,
        form: Form,
        *,
        rounds: int = 60,
        lr: float = 0.05,
        leaves: int = 4,
        leaf_rows: int = 20,
        seed: int = 0,
        features: bool = False,
    ) -> None:
        super().__init__(form)
        self.rounds, self.lr, self.leaves, self.leaf_rows, self.seed = rounds, lr, leaves, leaf_rows, seed
        self.features = features

    def train(self, objective: str, rows: np.ndarray, target: np.ndarray, start: Side) -> str:
        import lightgbm

        settings = {
            "objective": objective, "num_class": classes_of(start) or 1, "learning_rate": self.lr,
            "num_leaves": self.leaves, "min_data_in_leaf": self.leaf_rows, "deterministic": True,
            "force_row_wise": True, "num_threads": 1, "seed": self.seed, "verbosity": -1,
        }  # fmt: skip
        table = lightgbm.Dataset(rows, target, init_score=start, params=settings)
        return lightgbm.train(settings, table, self.rounds).model_to_string()

    def grown(self, model: str, rows: np.ndarray, start: Side) -> np.ndarray:
        import lightgbm

        raw = np.asarray(lightgbm.Booster(model_str=model).predict(rows, raw_score=True, num_threads=1))
        if start is None:
            return raw
        return softmax(raw + start) if start.ndim == 2 else sigmoid(raw + start)


@part(source="Chen & Guestrin 2016, XGBoost", order=6, most_work=1e8, needs="xgboost")
class xgboost(Boosted):
    """XGBoost on all runs' values, starting from their mean; needs the extra ``boosting``.

    rounds: trees a class or column. lr: per round. depth: of a tree. child_weight: least Hessian of a leaf. seed: of
    XGBoost. features: whether side features stand beside the values.
    """

    multiclass = "multi:softprob"
    alone = {"labels": "binary:logistic", "numbers": "reg:squarederror"}

    def __init__(
        self,
        form: Form,
        *,
        rounds: int = 60,
        lr: float = 0.1,
        depth: int = 2,
        child_weight: float = 1.0,
        seed: int = 0,
        features: bool = False,
    ) -> None:
        super().__init__(form)
        self.rounds, self.lr, self.depth, self.child_weight, self.seed = rounds, lr, depth, child_weight, seed
        self.features = features

    @staticmethod
    def library() -> Any:
        """The module; a UserError that names the extra where it is not installed."""
        try:
            import xgboost
        except ImportError as fault:
            raise UserError(
                "stack.methods has xgboost(), but xgboost (the extra boosting) is not installed; run .venv/bin/pip "
                "install -c constraints.txt xgboost, or leave it out"
            ) from fault
        return xgboost

    def train(self, objective: str, rows: np.ndarray, target: np.ndarray, start: Side) -> str:
        library = self.library()
        settings = {
            "objective": objective, "eta": self.lr, "max_depth": self.depth, "min_child_weight": self.child_weight,
            "tree_method": "hist", "nthread": 1, "seed": self.seed, "verbosity": 0,
            **({"num_class": classes_of(start)} if classes_of(start) else {}),
        }  # fmt: skip
        table = library.DMatrix(rows, target, base_margin=start, nthread=1)
        return bytes(library.train(settings, table, self.rounds).save_raw("json")).decode()

    def grown(self, model: str, rows: np.ndarray, start: Side) -> np.ndarray:
        library = self.library()
        trees = library.Booster({"nthread": 1}, model_file=bytearray(model.encode()))
        return trees.predict(library.DMatrix(rows, base_margin=start, nthread=1))


def classes_of(start: Side) -> int:
    """The number of classes that a start (N, P) is of; 0 for that of a single column, or for none."""
    return start.shape[1] if start is not None and start.ndim == 2 else 0
