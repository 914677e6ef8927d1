"""What level-2 methods are made of: stored state, the scale on which a form is modelled, models that know only what
varied in their fit, small networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.forms import FORMS, Form

if TYPE_CHECKING:
    from pipeline.evaluate import Metric

FLOOR = 0.01  # as a share of 1 / C: smaller probabilities say no more, and their logs would drown the rest
LABEL_FLOOR = 1e-4  # the same for labels, whose columns may be rare


class Stored:
    """What all parts of level 2 share: a form, and ``fitted``, which holds named arrays and texts."""

    fitted: dict[str, Any]

    def __init__(self, form: Form) -> None:
        self.form = form

    def state(self) -> dict[str, np.ndarray | str]:
        """Everything that predict needs, as plain arrays and texts."""
        return {"form": self.form.name, **self.fitted}

    def load_state(self, state: dict[str, Any]) -> Self:
        """Take up what ``state`` gave; predictions are the same bit for bit."""
        self.form = FORMS.get(state["form"], self.form)
        self.fitted = {name: entry for name, entry in state.items() if name != "form"}
        return self


class Varying(Stored):
    """A method whose library learns only what varied in its fit; the rest keeps the runs' mean.

    Of classes, those present are learned together. Of labels and numbers, each column that is not constant alone.
    """

    def learn(self, values: np.ndarray, side: np.ndarray | None, index: np.ndarray, present: np.ndarray) -> dict:
        """values (N, M, C), index (N,) of the true class among present (P,) ≥ 2 → what ``chances`` needs."""
        raise NotImplementedError

    def chances(self, values: np.ndarray, side: np.ndarray | None) -> np.ndarray:
        """(N, M, C) → (N, P) probabilities of the classes present in the fit."""
        raise NotImplementedError

    def learn_column(self, values: np.ndarray, side: np.ndarray | None, target: np.ndarray, column: int) -> dict:
        """values (N, M, C), target (N,) float64 of this column → what ``column`` needs."""
        raise NotImplementedError

    def column(self, values: np.ndarray, side: np.ndarray | None, column: int, own: dict[str, Any]) -> np.ndarray:
        """(N, M, C) → (N,) values of this column; own: what ``learn_column`` gave."""
        raise NotImplementedError

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: np.ndarray | None = None) -> Self:
        """values (N, M, C) float32, truth of the form; features (N, F) float64 or None."""
        if self.form.simplex:
            present, index = np.unique(truth, return_inverse=True)
            self.fitted = {"present": present}
            if len(present) > 1:
                self.fitted |= self.learn(values, features, index, present)
            return self
        target = self.form.dense(truth, values.shape[2]).astype(np.float64)
        present = np.flatnonzero(np.ptp(target, axis=0) > 0)
        self.fitted = {"present": present}
        for place in present.tolist():
            own = self.learn_column(values, features, target[:, place], place)
            self.fitted |= {f"{name}{place}": entry for name, entry in own.items()}
        return self

    def predict(self, values: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """(N, M, C) values → (N, C) float32 of the form."""
        present = self.fitted["present"]
        whole = values.mean(axis=1, dtype=np.float64)
        if not self.form.simplex:
            for place in present.tolist():
                own = {name.removesuffix(str(place)): self.fitted[name] for name in self._names(place)}
                whole[:, place] = self.column(values, features, place, own)
            return self.form.finish(whole)
        seen = np.isin(np.arange(whole.shape[1]), present)
        left = 1 - whole[:, ~seen].sum(axis=1, keepdims=True)
        chances = self.chances(values, features) if len(present) > 1 else np.ones((len(values), 1))
        whole[:, present] = chances * np.maximum(left, 0)
        return self.form.finish(whole)

    def _names(self, place: int) -> list[str]:
        """The entries of ``fitted`` that belong to a column: a name without digits, then the column's number."""
        return [name for name in self.fitted if name.rstrip("0123456789") + str(place) == name]


class Network(Stored):
    """A small network that corrects the runs' mean, on the scale of ``link``, trained on all rows at once.

    It starts as that mean. ``forward`` is written in operators that torch and numpy share: torch finds the weights,
    numpy predicts, and both are stored as arrays.
    """

    hidden: int
    penalty: float
    steps: int
    lr: float
    seed: int

    def weights(self, members: int, columns: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """The initial weights by name."""
        raise NotImplementedError

    @staticmethod
    def shape(rows: np.ndarray) -> np.ndarray:
        """(N, M, C) standardised values on the scale of ``link`` → what ``forward`` reads."""
        raise NotImplementedError

    @staticmethod
    def forward(weights: dict[str, Any], rows: Any) -> Any:
        """→ (N, C) corrections, for arrays or tensors."""
        raise NotImplementedError

    def fit(self, values: np.ndarray, truth: np.ndarray, metric: Metric, features: np.ndarray | None = None) -> Self:
        """values (N, M, C) float32, truth of the form; features are not read."""
        self.fitted = {"scale": standard(link(self.form, values))}
        target = truth.astype(np.int64) if self.form.simplex else self.form.dense(truth, values.shape[2])
        if not self.form.bounded:  # numbers of any size: one step size must do for all
            self.fitted["target"] = standard(target.astype(np.float64))
            target = ((target - self.fitted["target"][0]) / self.fitted["target"][1]).astype(np.float32)
        start = self.weights(values.shape[1], values.shape[2], np.random.default_rng(self.seed)) | {
            "sharpness": np.ones(1)
        }
        self.fitted |= self.descend(start, self.inputs(values), target)
        return self

    def predict(self, values: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """(N, M, C) values → (N, C) float32 of the form."""
        rows, middle = self.inputs(values)
        raw = self.corrected(self.fitted, rows, middle).astype(np.float64)
        if not self.form.bounded:
            raw = raw * self.fitted["target"][1] + self.fitted["target"][0]
        return self.form.finish(unlink(self.form, raw))

    def inputs(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``forward`` reads, and the (N, C) mean that it corrects; float32."""
        rows, scale = link(self.form, values), self.fitted["scale"]
        shaped, middle = self.shape((rows - scale[0]) / scale[1]), rows.mean(axis=1)
        if not self.form.bounded:
            middle = (middle - self.fitted["target"][0]) / self.fitted["target"][1]
        return np.ascontiguousarray(shaped, dtype=np.float32), middle.astype(np.float32)

    def corrected(self, weights: dict[str, Any], rows: Any, middle: Any) -> Any:
        """(N, C) values on the scale of ``link``, for arrays or tensors."""
        return self.forward(weights, rows) + weights["sharpness"] * middle

    def descend(
        self, start: dict[str, np.ndarray], inputs: tuple[np.ndarray, np.ndarray], target: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Adam with a cosine to zero on the rows' mean loss + penalty / N · Σ w²; the same bytes every time."""
        import torch

        weights = {name: torch.tensor(array, dtype=torch.float32, requires_grad=True) for name, array in start.items()}
        rows, middle, wanted = (torch.from_numpy(array) for array in (*inputs, target))
        optimizer = torch.optim.Adam(weights.values(), lr=self.lr)
        shrunk = [weight for name, weight in weights.items() if name != "sharpness"]
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + np.cos(np.pi * step / self.steps))
            optimizer.zero_grad()
            loss = self.loss(self.corrected(weights, rows, middle), wanted)
            squares = sum((weight.square().sum() for weight in shrunk), torch.zeros(()))
            (loss + self.penalty / len(target) * squares).backward()
            optimizer.step()
        return {name: weight.detach().numpy() for name, weight in weights.items()}

    def loss(self, raw: Any, target: Any) -> Any:
        """The rows' mean of minus the log likelihood: of one class, of each label, or of numbers with unit spread."""
        from torch.nn import functional

        if self.form.simplex:
            return functional.cross_entropy(raw, target)
        if self.form.bounded:
            return functional.binary_cross_entropy_with_logits(raw, target, reduction="sum") / len(target)
        return 0.5 * (raw - target).square().sum() / len(target)


# --- the scale on which a form is modelled ------------------------------------------------------------------------


def link(form: Form, values: np.ndarray) -> np.ndarray:
    """Values (…, C) → float64 without bounds: logs of classes, log-odds of labels, numbers as they are."""
    if form.simplex:
        return logs(values)
    if not form.bounded:
        return values.astype(np.float64)
    chance = np.clip(values.astype(np.float64), LABEL_FLOOR, 1 - LABEL_FLOOR)
    return np.log(chance) - np.log1p(-chance)


def unlink(form: Form, raw: np.ndarray) -> np.ndarray:
    """The inverse of ``link``, but for what scales a row: (N, C) float64 → values."""
    if form.simplex:
        return softmax(raw)
    return sigmoid(raw) if form.bounded else raw


def logs(values: np.ndarray) -> np.ndarray:
    """Log of probabilities (…, C), float64, not below log(FLOOR / C)."""
    return np.log(np.maximum(values.astype(np.float64), FLOOR / values.shape[-1]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of logits → rows of probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Log-odds → probabilities, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def standard(rows: np.ndarray) -> np.ndarray:
    """(N, …) → (2, …): mean and standard deviation of each column; 1 where a column is constant."""
    spread = rows.std(axis=0)
    return np.stack([rows.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)])
