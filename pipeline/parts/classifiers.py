"""Models of described images for ``stage=features``: rows of numbers in, what a network's head would say out.

Form: a class with ``__init__(form, columns, *, …)``, ``fit(rows, targets, groups)``, ``outputs(rows)`` → (N, columns)
float64 (logits of classes and labels, numbers as they are), and ``chosen()``, for the record. rows (N, F) float32, of
mean 0 and comparable spread, whose squared length is about one; targets (N, columns) float32, dense, soft ones allowed;
groups (N,), the folds that the rows lie in. All of them are rows that the member may learn from: what a model chooses,
it chooses among them (law 1). The fact ``takes`` names the forms of target; ``singly`` marks a model that
reads columns one by one, and so is not given principal components.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from pipeline import linear
from pipeline.forms import Form
from pipeline.registry import part

PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # tried from the strongest on, until none gains
SURE = 15.0  # the log-odds beyond which nothing is said
BY_FORM = {"classes": "logistic()", "labels": "logistic()", "numbers": "ridge()"}  # where the config names none


class Linear:
    """A linear model whose penalty is chosen on folds that are held out of the member's own rows."""

    losses: dict[str, linear.Loss]

    def __init__(self, form: Form, columns: int, penalty: float) -> None:
        self.form, self.columns, self.penalty = form, columns, penalty
        self.weights = np.zeros((1, columns))

    def fit(self, rows: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> Self:
        """rows (N, F), targets (N, columns), groups (N,); see the head of this file."""
        loss, splits = self.losses[self.form.name], linear.inner_splits(groups)
        strengths = (self.penalty,) if self.penalty else PENALTIES
        self.penalty, held = linear.choose(rows, targets, loss, strengths, splits)
        self.weights = linear.fit(rows, targets, loss, self.penalty)
        self.settle(held, np.concatenate([targets[out] for out in splits]))
        return self

    def settle(self, held: np.ndarray, targets: np.ndarray) -> None:
        """Take what there is to learn from outputs (n, columns) on held-out rows and their targets."""

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """(N, F) → (N, columns) float64."""
        return linear.outputs(rows, self.weights)

    def chosen(self) -> dict[str, Any]:
        """What was chosen, for the record."""
        return {"penalty": self.penalty}


@part(
    source="multinomial logistic regression: Hastie et al. 2009, sec. 4.4; L-BFGS: Liu & Nocedal 1989",
    takes=("classes", "labels"),
    allowed={"penalty": (0, None)},
)
class logistic(Linear):
    """Logistic regression: a softmax over classes, or one for each label.

    penalty: strength of L2, 1 / C in scikit-learn's words; 0: the one with the least log loss on inner folds.
    """

    losses = {"classes": linear.classes, "labels": linear.labels}

    def __init__(self, form: Form, columns: int, *, penalty: float = 0.0):
        super().__init__(form, columns, penalty)


@part(
    source="Cortes & Vapnik 1995, one class against the rest; squared hinge in the primal: Chapelle 2007; Platt 1999",
    takes=("classes", "labels"),
    allowed={"penalty": (0, None)},
)
class svm(Linear):
    """A linear support vector machine, its scores made log-odds by a sigmoid a column, fitted on inner folds.

    penalty: strength of L2, 1 / C in scikit-learn's words; 0: the one with the least squared hinge on inner folds.
    """

    losses = {"classes": linear.hinge, "labels": linear.hinge}

    def __init__(self, form: Form, columns: int, *, penalty: float = 0.0):
        super().__init__(form, columns, penalty)
        self.sigmoids = np.ones((2, columns))

    def settle(self, held: np.ndarray, targets: np.ndarray) -> None:
        self.sigmoids = linear.calibrate(held, targets)

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        odds = super().outputs(rows) * self.sigmoids[0] + self.sigmoids[1]
        # a softmax of log-probabilities scales them to sum one, which is how one-against-the-rest becomes classes
        return -np.logaddexp(0, -odds) if self.form.simplex else odds


@part(source="Hoerl & Kennard 1970", takes=("numbers",), allowed={"penalty": (0, None)})
class ridge(Linear):
    """Linear least squares with an L2 penalty.

    penalty: its strength; 0: the one with the least squared error on inner folds.
    """

    losses = {"numbers": linear.squares}

    def __init__(self, form: Form, columns: int, *, penalty: float = 0.0):
        super().__init__(form, columns, penalty)


@part(
    source="Ke et al. 2017, LightGBM",
    takes=("classes", "labels", "numbers"),
    singly=True,
    allowed={
        "rounds": (1, None), "lr": (1e-4, 1), "leaves": (2, None), "leaf_rows": (1, None), "share": (0.001, 1),
        "patience": (1, None), "seed": (0, None),
    },
)  # fmt: skip
class lightgbm:
    """Boosted trees: all classes together, or one model a label or number; soft targets count as the likeliest.

    rounds: the most trees a class or column; how many are grown is chosen on an inner fold. lr: per round. leaves: of
    a tree. leaf_rows: least rows of a leaf. share: of the columns that a tree may read. patience: rounds without gain
    on the inner fold that end the search. seed: of LightGBM.
    """

    def __init__(
        self,
        form: Form,
        columns: int,
        *,
        rounds: int = 200,
        lr: float = 0.1,
        leaves: int = 15,
        leaf_rows: int = 20,
        share: float = 0.03,
        patience: int = 10,
        seed: int = 0,
    ) -> None:
        self.form, self.columns = form, columns
        self.rounds, self.lr, self.leaves, self.leaf_rows = rounds, lr, leaves, leaf_rows
        self.share, self.patience, self.seed = share, patience, seed
        self.present = np.arange(columns)
        self.models: list[Any] = []

    def fit(self, rows: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> Self:
        """rows (N, F), targets (N, columns), groups (N,); see the head of this file."""
        held = linear.inner_splits(groups)[0]
        if self.form.simplex:
            self.present, index = np.unique(targets.argmax(axis=1), return_inverse=True)
            lone = len(self.present) == 1
            self.models = [] if lone else [self.grow(rows, index, held, "multiclass", len(self.present))]
            return self
        objective = "binary" if self.form.bounded else "regression"
        wanted = (targets > 0.5).astype(np.float32) if self.form.bounded else targets
        varying = np.ptp(wanted, axis=0) > 0
        self.means = wanted.mean(axis=0)
        self.models = [
            self.grow(rows, wanted[:, column].copy(), held, objective, 1) if varies else None
            for column, varies in enumerate(varying.tolist())
        ]
        return self

    def grow(self, rows: np.ndarray, target: np.ndarray, held: np.ndarray, objective: str, classes: int) -> Any:
        """As many trees on all rows as were best for the rows held out, learned from the others."""
        import lightgbm as library

        settings = {
            "objective": objective, "num_class": classes, "learning_rate": self.lr, "num_leaves": self.leaves,
            "min_data_in_leaf": self.leaf_rows, "feature_fraction": self.share, "deterministic": True,
            "force_row_wise": True, "num_threads": 1, "seed": self.seed, "verbosity": -1,
        }  # fmt: skip
        others = np.setdiff1d(np.arange(len(rows)), held)
        learned = library.Dataset(rows[others], target[others], params=settings)
        watched = library.Dataset(rows[held], target[held], reference=learned)
        stop = library.early_stopping(self.patience, verbose=False)
        tried = library.train(settings, learned, self.rounds, valid_sets=[watched], callbacks=[stop])
        return library.train(settings, library.Dataset(rows, target, params=settings), max(1, tried.best_iteration))

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """(N, F) → (N, columns) float64."""
        if self.form.simplex:
            found = np.full((len(rows), self.columns), -SURE)
            found[:, self.present] = self.raw(self.models[0], rows) if self.models else SURE
            return found
        columns = [
            self.raw(model, rows) if model is not None else self.constant(place, len(rows))
            for place, model in enumerate(self.models)
        ]
        return np.stack(columns, axis=1)

    @staticmethod
    def raw(model: Any, rows: np.ndarray) -> np.ndarray:
        """(N,) or (N, P) raw scores of the trees."""
        return np.asarray(model.predict(rows, raw_score=True, num_threads=1), dtype=np.float64)

    def constant(self, place: int, count: int) -> np.ndarray:
        """(count,) what a column that is the same in every row says."""
        value = float(self.means[place])
        return np.full(count, SURE * (2 * value - 1) if self.form.bounded else value)

    def chosen(self) -> dict[str, Any]:
        """What was chosen, for the record."""
        return {"trees": [model.num_trees() for model in self.models if model is not None]}
