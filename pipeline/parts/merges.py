"""Merges: the predictions of several views and scales → one.

Form: ``f(values (V, N, C) float32, form) -> (N, C) float32`` of the same form, see ``pipeline/forms.py``. Logs see
values of at least 1e-7; the merges that need them take no numbers.
"""

from __future__ import annotations

import numpy as np

from pipeline.forms import Form
from pipeline.registry import part

SMALLEST = 1e-7


@part(source="Krizhevsky et al. 2012, sec. 4.1")
def mean(values: np.ndarray, form: Form) -> np.ndarray:
    """The mean of the probabilities, or of the embeddings."""
    return form.finish(values.mean(axis=0, dtype=np.float64))


@part(source="Hinton 2002 (products of experts), eq. 1", takes=("classes", "labels"))
def geometric_mean(values: np.ndarray, form: Form) -> np.ndarray:
    """The geometric mean; for exclusive classes the same as the softmax of the mean logits."""
    logs = np.log(np.clip(values.astype(np.float64), SMALLEST, 1))
    return form.finish(np.exp(logs.mean(axis=0)))


@part(source="Satopää et al. 2014 (Combining multiple probability predictions)", takes=("classes", "labels"))
def logit_mean(values: np.ndarray, form: Form) -> np.ndarray:
    """The mean of each class's log-odds against all others."""
    chance = np.clip(values.astype(np.float64), SMALLEST, 1 - SMALLEST)
    odds = np.log(chance / (1 - chance)).mean(axis=0)
    return form.finish(1 / (1 + np.exp(-odds)))
