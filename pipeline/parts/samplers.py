"""Samplers: which training rows an epoch shows, and in which order.

Form: ``f(targets, generator, *, …) -> (n,) int64`` rows. targets: (N,) int64 classes or (N, C) probabilities, of which
the likeliest class counts. generator: ``np.random.Generator`` of (seed, epoch).
"""

from __future__ import annotations

import numpy as np

from pipeline.registry import part


@part(source="Bottou 2012 (Stochastic gradient descent tricks)")
def shuffle(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every row once, in random order."""
    return generator.permutation(len(targets))


@part(source="Kang et al. 2020 (Decoupling representation and classifier), class-balanced", takes=("classes",))
def balanced(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many rows as there are, drawn with replacement so that each class is equally likely."""
    classes = targets.argmax(axis=1) if targets.ndim == 2 else targets
    _, member_of, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    chance = 1 / (len(sizes) * sizes[member_of])
    return generator.choice(len(targets), size=len(targets), p=chance)
