"""Level 2: how the predictions of several runs become one.

Form: a class with ``__init__(*, …)``, ``fit(values (N, M, C) float32, truth (N,) int64, metric)``,
``predict(values)`` → (N, C) float32 whose rows sum to one, ``state()`` and ``load_state(state)``; M runs, C classes.
Values are probabilities. The rows of a fit may lack classes. Facts: ``order`` of simplicity (lower is simpler);
``most_work``, the largest N·M·C² at which ``stack.methods=all`` tries the method; ``needs``, a package beyond the
project's own.

What fit learns is kept as plain arrays and texts in ``fitted``, and predict reads nothing else: the same state gives
the same bytes, and no pickle is ever needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.errors import UserError
from pipeline.parts.metrics import log_loss
from pipeline.registry import part

if TYPE_CHECKING:
    from pipeline.evaluate import Metric

FLOOR = 0.01  # as a share of 1 / C: smaller probabilities say no more, and their logs would drown the rest


class Stored:
    """What all methods share: ``fitted`` holds named arrays and texts."""

    fitted: dict[str, Any]

    def state(self) -> dict[str, np.ndarray | str]:
        """Everything that predict needs, as plain arrays and texts."""
        return dict(self.fitted)

    def load_state(self, state: dict[str, Any]) -> Self:
        """Take up what ``state`` gave; predictions are the same bit for bit."""
        self.fitted = dict(state)
        return self


# --- weights over runs --------------------------------------------------------------------------------------------


class Weighted(Stored):
    """A method that is one weight a run; the weights sum to one."""

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, M, C) probabilities → (N, C) float32, rows summing to one."""
        return normalised(np.einsum("nmc,m->nc", values.astype(np.float64), self.fitted["weights"]))


@part(source="the best run by the metric", order=0)
class single(Weighted):
    """The run with the best metric on the rows of the fit; a tie goes to the lower log loss, then to the first."""

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32, truth (N,) int64."""
        members = values.shape[1]
        self.fitted = {"weights": np.eye(members)[best_of([values[:, m] for m in range(members)], truth, metric)]}
        return self


@part(source="plain average of probabilities", order=1)
class mean(Weighted):
    """The plain mean over the runs."""

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32; nothing is learned."""
        self.fitted = {"weights": np.full(values.shape[1], 1 / values.shape[1])}
        return self


@part(source="Caruana et al. 2004, section 2: forward selection with replacement", order=3)
class hill_climb(Weighted):
    """Greedy forward selection with replacement from the best run on; the best bag on the way stays.

    rounds: how often a run joins the bag. Ties go to the lower log loss, then to the first run.
    """

    def __init__(self, *, rounds: int = 50) -> None:
        self.rounds = rounds

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32, truth (N,) int64."""
        members = [values[:, m].astype(np.float64) for m in range(values.shape[1])]
        bag = [best_of(members, truth, metric)]
        total = members[bag[0]].copy()
        best, size = rank(total, truth, metric), 1
        for _ in range(self.rounds):
            bag.append(best_of([total + member for member in members], truth, metric))
            total += members[bag[-1]]
            reached = rank(total, truth, metric)
            if reached > best:
                best, size = reached, len(bag)
        self.fitted = {"weights": np.bincount(bag[:size], minlength=len(members)) / size}
        return self


def rank(values: np.ndarray, truth: np.ndarray, metric: Metric) -> tuple[float, float]:
    """What candidates are compared by: the metric, then log loss; more is better. values need not be scaled."""
    return metric.gain(truth, normalised(values)), -float(log_loss(truth, values).mean())


def best_of(candidates: list[np.ndarray], truth: np.ndarray, metric: Metric) -> int:
    """The index of the best (N, C) candidate by ``rank``; the first of equals."""
    gains = [metric.gain(truth, normalised(values)) for values in candidates]
    tied = [index for index, gain in enumerate(gains) if gain == max(gains)]
    if len(tied) == 1:
        return tied[0]
    return min(tied, key=lambda index: float(log_loss(truth, candidates[index]).mean()))


# --- ranks --------------------------------------------------------------------------------------------------------


@part(
    source="average of empirical quantiles; ranks of the rows of the fit, so that test rows share their scale", order=2
)
class rank_mean(Stored):
    """The mean over the runs of each column's empirical quantile on the rows of the fit.

    points: the most quantiles kept a column; other values lie in between by linear interpolation.
    """

    def __init__(self, *, points: int = 1000) -> None:
        self.points = points

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32; the truth is not read."""
        kept = np.linspace(0, len(values) - 1, min(self.points, len(values))).round().astype(np.int64)
        self.fitted = {"sorted": np.sort(values, axis=0)[kept], "quantiles": (kept + 0.5) / len(values)}
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, M, C) probabilities → (N, C) float32, rows summing to one."""
        quantiles = np.empty(values.shape)
        for member, label in np.ndindex(values.shape[1:]):
            grid, place = np.unique(self.fitted["sorted"][:, member, label], return_inverse=True)
            middle = np.bincount(place, weights=self.fitted["quantiles"]) / np.bincount(place)
            quantiles[:, member, label] = np.interp(values[:, member, label], grid, middle)
        return normalised(quantiles.mean(axis=1))


# --- linear models ------------------------------------------------------------------------------------------------


@part(source="Breiman 1996, stacked regressions; ridge on one-hot targets in closed form", order=4, most_work=1e9)
class ridge(Stored):
    """Linear least squares from all runs' probabilities to one-hot targets, clipped and scaled to sum one.

    penalty: weight of the squared coefficients beside the summed squared errors. floor: the least probability.
    """

    def __init__(self, *, penalty: float = 1.0, floor: float = 1e-3) -> None:
        self.penalty = penalty
        self.floor = floor

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32, truth (N,) int64."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        target = np.eye(values.shape[2])[truth]
        centre = rows.mean(axis=0)
        spread = (rows - centre).T @ (rows - centre) + self.penalty * np.eye(rows.shape[1])
        weight = np.linalg.solve(spread, (rows - centre).T @ target)
        bias = target.mean(axis=0) - centre @ weight
        self.fitted = {"weight": weight, "bias": bias, "floor": np.array(self.floor)}
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, M, C) probabilities → (N, C) float32, rows summing to one."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        raw = rows @ self.fitted["weight"] + self.fitted["bias"]
        return normalised(np.clip(raw, self.fitted["floor"], 1.0))


class OnPresent(Stored):
    """A method whose library knows only the classes it saw; the others keep the runs' mean probability."""

    def learn(self, values: np.ndarray, index: np.ndarray, present: np.ndarray) -> dict[str, Any]:
        """values (N, M, C), index (N,) of the true class among present (P,) ≥ 2 → what ``chances`` needs."""
        raise NotImplementedError

    def chances(self, values: np.ndarray) -> np.ndarray:
        """(N, M, C) → (N, P) probabilities of the classes present in the fit."""
        raise NotImplementedError

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32, truth (N,) int64."""
        present, index = np.unique(truth, return_inverse=True)
        self.fitted = {"present": present}
        if len(present) > 1:
            self.fitted |= self.learn(values, index, present)
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, M, C) probabilities → (N, C) float32, rows summing to one."""
        present = self.fitted["present"]
        whole = values.mean(axis=1, dtype=np.float64)
        seen = np.isin(np.arange(whole.shape[1]), present)
        left = 1 - whole[:, ~seen].sum(axis=1, keepdims=True)
        chances = self.chances(values) if len(present) > 1 else np.ones((len(values), 1))
        whole[:, present] = chances * np.maximum(left, 0)
        return normalised(whole)


@part(source="multinomial logistic regression, scikit-learn", order=4, most_work=3e8)
class logistic(OnPresent):
    """Multinomial logistic regression on all runs' standardised log-probabilities.

    penalty: strength of L2, the inverse of scikit-learn's C.
    """

    def __init__(self, *, penalty: float = 10.0) -> None:
        self.penalty = penalty

    def learn(self, values: np.ndarray, index: np.ndarray, present: np.ndarray) -> dict[str, Any]:
        from sklearn.linear_model import LogisticRegression

        rows = logs(values).reshape(len(values), -1)
        scale = standard(rows)
        model = LogisticRegression(C=1 / self.penalty, max_iter=1000).fit((rows - scale[0]) / scale[1], index)
        weight, bias = model.coef_.T, model.intercept_
        if len(present) == 2:  # scikit-learn keeps one column, the second class's
            weight, bias = np.hstack([0 * weight, weight]), np.append(0.0, bias)
        return {"scale": scale, "weight": weight, "bias": bias}

    def chances(self, values: np.ndarray) -> np.ndarray:
        centre, spread = self.fitted["scale"]
        rows = (logs(values).reshape(len(values), -1) - centre) / spread
        return softmax(rows @ self.fitted["weight"] + self.fitted["bias"])


# --- small networks -----------------------------------------------------------------------------------------------


class Network(Stored):
    """A small network that corrects the runs' mean log-probability, trained on all rows at once.

    It starts as a plain geometric mean. ``forward`` is written in operators that torch and numpy share: torch finds the
    weights, numpy predicts, and both are stored as arrays.
    """

    hidden: int
    penalty: float
    steps: int
    lr: float
    seed: int

    def weights(self, members: int, classes: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """The initial weights by name."""
        raise NotImplementedError

    @staticmethod
    def shape(rows: np.ndarray) -> np.ndarray:
        """(N, M, C) standardised log-probabilities → what ``forward`` reads."""
        raise NotImplementedError

    @staticmethod
    def forward(weights: dict[str, Any], rows: Any) -> Any:
        """→ (N, C) corrections of the logits, for arrays or tensors."""
        raise NotImplementedError

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric) -> Self:
        """values (N, M, C) float32, truth (N,) int64."""
        rows = logs(values)
        scale = standard(rows)
        start = self.weights(values.shape[1], values.shape[2], np.random.default_rng(self.seed)) | {
            "sharpness": np.ones(1)
        }
        self.fitted = {"scale": scale, **self.descend(start, self.inputs(values, scale), truth)}
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, M, C) probabilities → (N, C) float32, rows summing to one."""
        rows, middle = self.inputs(values, self.fitted["scale"])
        return normalised(softmax(self.logits(self.fitted, rows, middle).astype(np.float64)))

    def inputs(self, values: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``forward`` reads, and the (N, C) mean log-probability that it corrects; float32."""
        rows = logs(values)
        shaped = self.shape((rows - scale[0]) / scale[1])
        return np.ascontiguousarray(shaped, dtype=np.float32), rows.mean(axis=1).astype(np.float32)

    def logits(self, weights: dict[str, Any], rows: Any, middle: Any) -> Any:
        """(N, C) logits, for arrays or tensors."""
        return self.forward(weights, rows) + weights["sharpness"] * middle

    def descend(
        self, start: dict[str, np.ndarray], inputs: tuple[np.ndarray, np.ndarray], truth: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Adam with a cosine to zero on cross-entropy + penalty / N · Σ w²; the same bytes every time."""
        import torch

        weights = {name: torch.tensor(array, dtype=torch.float32, requires_grad=True) for name, array in start.items()}
        rows, middle, target = (torch.from_numpy(array) for array in (*inputs, truth.astype(np.int64)))
        optimizer = torch.optim.Adam(weights.values(), lr=self.lr)
        shrunk = [weight for name, weight in weights.items() if name != "sharpness"]
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + np.cos(np.pi * step / self.steps))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.logits(weights, rows, middle), target)
            squares = sum((weight.square().sum() for weight in shrunk), torch.zeros(()))
            (loss + self.penalty / len(truth) * squares).backward()
            optimizer.step()
        return {name: weight.detach().numpy() for name, weight in weights.items()}


@part(source="a perceptron with one hidden layer over all runs and classes", order=5, most_work=1e9)
class mlp(Network):
    """One hidden layer over the members × classes matrix.

    hidden: units. penalty: weight of the squared weights. steps: full-batch steps. lr: per step, annealed to zero.
    """

    def __init__(
        self, *, hidden: int = 32, penalty: float = 5.0, steps: int = 200, lr: float = 0.02, seed: int = 0
    ) -> None:
        self.hidden, self.penalty, self.steps, self.lr, self.seed = hidden, penalty, steps, lr, seed

    def weights(self, members: int, classes: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        width = members * classes
        return {
            "weight1": generator.standard_normal((width, self.hidden)) / np.sqrt(width),
            "bias1": np.zeros(self.hidden),
            "weight2": np.zeros((self.hidden, classes)),
            "bias2": np.zeros(classes),
        }

    @staticmethod
    def shape(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1)

    @staticmethod
    def forward(weights: dict[str, Any], rows: Any) -> Any:
        hidden = (rows @ weights["weight1"] + weights["bias1"]).clip(0)
        return hidden @ weights["weight2"] + weights["bias2"]


@part(source="1×1 convolutions over the members × classes matrix, Lin et al. 2014", order=5, most_work=1e9)
class cnn(Network):
    """Two convolutions along the classes with the runs as channels, kernel 1, and a bias a class.

    All classes share the weights, so that few rows suffice. hidden: channels. penalty: weight of the squared weights.
    steps: full-batch steps. lr: per step, annealed to zero.
    """

    def __init__(
        self, *, hidden: int = 8, penalty: float = 1.0, steps: int = 200, lr: float = 0.02, seed: int = 0
    ) -> None:
        self.hidden, self.penalty, self.steps, self.lr, self.seed = hidden, penalty, steps, lr, seed

    def weights(self, members: int, classes: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "weight1": generator.standard_normal((members, self.hidden)) / np.sqrt(members),
            "bias1": np.zeros(self.hidden),
            "weight2": np.zeros((self.hidden, 1)),
            "bias2": np.zeros(classes),
        }

    @staticmethod
    def shape(rows: np.ndarray) -> np.ndarray:
        return rows.transpose(0, 2, 1)

    @staticmethod
    def forward(weights: dict[str, Any], rows: Any) -> Any:
        hidden = (rows @ weights["weight1"] + weights["bias1"]).clip(0)
        return (hidden @ weights["weight2"])[..., 0] + weights["bias2"]


# --- boosted trees ------------------------------------------------------------------------------------------------


class Boosted(OnPresent):
    """Small trees that correct the log of the runs' mean probability."""

    @staticmethod
    def start(values: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(N, P) log of the mean probability, from which boosting goes on."""
        return logs(values.mean(axis=1))[:, present]


@part(source="Ke et al. 2017, LightGBM", order=6, most_work=1e8)
class lightgbm(Boosted):
    """LightGBM on all runs' probabilities, starting from their mean.

    rounds: trees a class. lr: per round. leaves: of a tree. leaf_rows: least rows of a leaf. seed: of LightGBM.
    """

    def __init__(
        self, *, rounds: int = 60, lr: float = 0.05, leaves: int = 4, leaf_rows: int = 20, seed: int = 0
    ) -> None:
        self.rounds, self.lr, self.leaves, self.leaf_rows, self.seed = rounds, lr, leaves, leaf_rows, seed

    def learn(self, values: np.ndarray, index: np.ndarray, present: np.ndarray) -> dict[str, Any]:
        import lightgbm

        settings = {
            "objective": "multiclass", "num_class": len(present), "learning_rate": self.lr, "num_leaves": self.leaves,
            "min_data_in_leaf": self.leaf_rows, "deterministic": True, "force_row_wise": True, "num_threads": 1,
            "seed": self.seed, "verbosity": -1,
        }  # fmt: skip
        rows = values.reshape(len(values), -1).astype(np.float64)
        table = lightgbm.Dataset(rows, index, init_score=self.start(values, present), params=settings)
        return {"model": lightgbm.train(settings, table, self.rounds).model_to_string()}

    def chances(self, values: np.ndarray) -> np.ndarray:
        import lightgbm

        model = lightgbm.Booster(model_str=self.fitted["model"])
        rows = values.reshape(len(values), -1).astype(np.float64)
        raw = np.asarray(model.predict(rows, raw_score=True, num_threads=1))
        return softmax(raw + self.start(values, self.fitted["present"]))


@part(source="Chen & Guestrin 2016, XGBoost", order=6, most_work=1e8, needs="xgboost")
class xgboost(Boosted):
    """XGBoost on all runs' probabilities, starting from their mean; needs the extra ``boosting``.

    rounds: trees a class. lr: per round. depth: of a tree. child_weight: least Hessian of a leaf. seed: of XGBoost.
    """

    def __init__(
        self, *, rounds: int = 60, lr: float = 0.1, depth: int = 2, child_weight: float = 1.0, seed: int = 0
    ) -> None:
        self.rounds, self.lr, self.depth, self.child_weight, self.seed = rounds, lr, depth, child_weight, seed

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

    def learn(self, values: np.ndarray, index: np.ndarray, present: np.ndarray) -> dict[str, Any]:
        library = self.library()
        settings = {
            "objective": "multi:softprob", "num_class": len(present), "eta": self.lr, "max_depth": self.depth,
            "min_child_weight": self.child_weight, "tree_method": "hist", "nthread": 1, "seed": self.seed,
            "verbosity": 0,
        }  # fmt: skip
        rows = values.reshape(len(values), -1)
        table = library.DMatrix(rows, index, base_margin=self.start(values, present), nthread=1)
        model = library.train(settings, table, self.rounds)
        return {"model": bytes(model.save_raw("json")).decode()}

    def chances(self, values: np.ndarray) -> np.ndarray:
        library = self.library()
        model = library.Booster({"nthread": 1}, model_file=bytearray(self.fitted["model"].encode()))
        start = self.start(values, self.fitted["present"])
        return model.predict(library.DMatrix(values.reshape(len(values), -1), base_margin=start, nthread=1))


# --- shared arithmetic --------------------------------------------------------------------------------------------


def normalised(values: np.ndarray) -> np.ndarray:
    """Rows scaled to sum one, float32; a row of zeros becomes uniform."""
    total = values.sum(axis=-1, keepdims=True)
    return np.where(total > 0, values / np.maximum(total, 1e-300), 1 / values.shape[-1]).astype(np.float32)


def logs(values: np.ndarray) -> np.ndarray:
    """Log of probabilities (…, C), float64, not below log(FLOOR / C)."""
    return np.log(np.maximum(values.astype(np.float64), FLOOR / values.shape[-1]))


def standard(rows: np.ndarray) -> np.ndarray:
    """(N, …) → (2, …): mean and standard deviation of each column; 1 where a column is constant."""
    spread = rows.std(axis=0)
    return np.stack([rows.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of logits → rows of probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
