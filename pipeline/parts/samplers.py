"""Samplers: which training rows an epoch shows, and in which order.

Form: ``f(targets, generator, *, …) -> (n,) int64`` rows, at least as many as there are targets; batches are cut from
them in order, and an epoch ends after as many rows as there are targets. targets: (N,) int64 classes or (N, C)
probabilities, of which the likeliest class counts; rows that no class is known of are -1, or zeros. For labels (N, C)
and for numbers (N, T) float32. generator: ``np.random.Generator`` of (seed, epoch). The fact ``takes`` names the forms
that a sampler understands, ``batch`` the arguments whose product is the batch that it means, of which the last says how
many rows stand together. One with the fact ``weighs`` is given the rows' weights (N,) float32 between the two, and
decides by them how often a row is shown: its loss then counts like any other's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.forms import UNKNOWN
from pipeline.registry import part


@part(source="Bottou 2012 (Stochastic gradient descent tricks)")
def shuffle(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every row once, in random order."""
    return generator.permutation(len(targets))


@part(source="Kang et al. 2020 (Decoupling representation and classifier), class-balanced", takes=("classes",))
def balanced(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many rows as there are, drawn with replacement so that each class is equally likely."""
    member_of, sizes = _classes(targets)
    chance = 1 / (len(sizes) * sizes[member_of])
    return generator.choice(len(targets), size=len(targets), p=chance)


@part(source="Mahajan et al. 2018; Kang et al. 2020, eq. 1 with q = 1/2", takes=("classes",))
def square_root(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many rows as there are, drawn with replacement; a class is as likely as the square root of its rows."""
    member_of, sizes = _classes(targets)
    return _drawn(1 / np.sqrt(sizes[member_of]), generator)


@part(source="Buda et al. 2018, sec. 3.2 (random over-sampling)", takes=("classes",), allowed={"least": (0, 1)})
def over_sample(targets: np.ndarray, generator: np.random.Generator, *, least: float = 0.5) -> np.ndarray:
    """Every row at least once, those of rare classes more often, in random order.

    All rows of a class are repeated equally often, give or take one. An epoch still ends after as many rows as the
    table has: it is a random part of these.

    least: each class gets at least this share of the rows of the largest.
    """
    member_of, sizes = _classes(targets)
    wanted = np.maximum(sizes, np.ceil(least * sizes.max()).astype(np.int64))
    rows = []
    for place, (size, total) in enumerate(zip(sizes, wanted, strict=True)):
        members = np.flatnonzero(member_of == place)
        rows += [np.tile(members, total // size), generator.permutation(members)[: total % size]]
    return generator.permutation(np.concatenate(rows))


@part(
    source="Hermans et al. 2017 (In defense of the triplet loss), sec. 2",
    takes=("classes",),
    batch=("p", "k"),
    allowed={"p": (1, None), "k": (1, None)},
)
def identities(targets: np.ndarray, generator: np.random.Generator, *, p: int = 8, k: int = 4) -> np.ndarray:
    """Batches of a few classes with several rows each, as losses between rows of a batch need them.

    Each p · k rows make a batch: set batch_size to that. Classes take turns in random order, however large they are;
    so do the rows of a class, which repeat where it has fewer than k. With fewer than p classes a batch holds them more
    than once. Rows of no known class stand together as they fall, k at a time, like a class.

    p: classes in a batch. k: rows of each.
    """
    member_of, sizes = _classes(_dealt(targets, k, generator))
    order = np.argsort(member_of, kind="stable")
    decks = [_deck(rows, generator) for rows in np.split(order, np.cumsum(sizes)[:-1])]
    batches = _groups(len(sizes), p, generator)
    count = -(-len(targets) // (p * k))
    return np.array([next(decks[one]) for _ in range(count) for one in next(batches) for _ in range(k)], dtype=np.int64)


@part(
    source="Hermans et al. 2017, sec. 2 (P × K batches); rows by their loss: Loshchilov & Hutter 2016 (Online batch "
    "selection)",
    takes=("classes",),
    batch=("p", "k"),
    allowed={"p": (1, None), "k": (1, None)},
    weighs=True,
)
def weighted_identities(
    targets: np.ndarray, weights: np.ndarray, generator: np.random.Generator, *, p: int = 8, k: int = 4
) -> np.ndarray:
    """Batches as of ``identities``, in which hard classes and hard rows come more often, by their weights.

    A batch draws p classes, each as likely as the mean weight of its rows, and k rows of each by theirs; none twice
    where there are enough.

    p: classes in a batch. k: rows of each.
    """
    member_of, sizes = _classes(_dealt(targets, k, generator))
    wide = weights.astype(np.float64)
    classes = np.split(np.argsort(member_of, kind="stable"), np.cumsum(sizes)[:-1])
    mean, own = np.bincount(member_of, wide) / sizes, [wide[rows] / wide[rows].sum() for rows in classes]
    found = []
    for _ in range(-(-len(targets) // (p * k))):
        for one in generator.choice(len(sizes), p, replace=len(sizes) < p, p=mean / mean.sum()):
            found.append(generator.choice(classes[one], k, replace=sizes[one] < k, p=own[one]))
    return np.concatenate(found)


@part(
    source="Shen et al. 2016 (class-aware sampling), by the rarest label", takes=("labels",), allowed={"power": (0, 1)}
)
def rare_labels(targets: np.ndarray, generator: np.random.Generator, *, power: float = 1.0) -> np.ndarray:
    """As many rows as there are, drawn with replacement, the likelier the rarer a row's rarest label is.

    Rows without any label count as one label more. A label is on a row where its target is above 0.5.

    power: a row weighs 1 / count^power, the count of its rarest label; 0 draws evenly.
    """
    there = targets > 0.5
    there = np.column_stack([there, ~there.any(axis=1)])
    counts = np.where(there, there.sum(axis=0), len(targets) + 1).min(axis=1)
    return _drawn(counts.astype(np.float64) ** -power, generator)


@part(
    source="Yang et al. 2021 (Delving into deep imbalanced regression), its inverse-frequency baseline",
    takes=("numbers",),
    allowed={"bins": (1, 10_000), "power": (0, 1)},
)
def balanced_bins(
    targets: np.ndarray, generator: np.random.Generator, *, bins: int = 10, power: float = 1.0
) -> np.ndarray:
    """As many rows as there are, drawn with replacement so that rare values come as often as frequent ones.

    bins: of equal width between the least and the greatest value; of several targets each combination of bins that
    occurs is one. power: 1 makes all bins that have rows equally likely, lone outliers too; 0 draws evenly.
    """
    table = targets.reshape(len(targets), -1).astype(np.float64)
    low, width = table.min(axis=0), np.ptp(table, axis=0)
    places = np.minimum((table - low) / np.where(width > 0, width, 1) * bins, bins - 1).astype(np.int64)
    _, member_of, sizes = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    return _drawn(sizes[member_of.ravel()].astype(np.float64) ** -power, generator)


@part(source="Kitagawa 1996 (Monte Carlo filter and smoother), systematic resampling", weighs=True)
def weighted(targets: np.ndarray, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many rows as there are, each as often as its share of the weights says, give or take one, in random order.

    Weights come from ``train.hard``, which ``stage=mine`` writes, and of pseudo-labelled rows from ``pseudo.weight``.
    With any other sampler they weigh losses instead.
    """
    order = generator.permutation(len(weights))
    ends = weights[order].astype(np.float64).cumsum()
    steps = (np.arange(len(weights)) + generator.random()) * (ends[-1] / len(weights))
    return generator.permutation(order[np.searchsorted(ends, steps, side="right").clip(max=len(weights) - 1)])


def _classes(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the place of each row's class among those that occur, and (n,) how many rows these have."""
    _, member_of, sizes = np.unique(_known(targets), return_inverse=True, return_counts=True)
    return member_of, sizes


def _dealt(targets: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """(N,) classes, among which rows of no known class are dealt at random to new ones of k each."""
    classes = _known(targets).copy()
    unknown = np.flatnonzero(classes == UNKNOWN)
    if len(unknown):
        classes[generator.permutation(unknown)] = classes.max() + 1 + np.arange(len(unknown)) // k
    return classes


def _known(targets: np.ndarray) -> np.ndarray:
    """(N,) each row's class, or ``UNKNOWN``."""
    return np.where(targets.any(axis=1), targets.argmax(axis=1), UNKNOWN) if targets.ndim == 2 else targets


def _drawn(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many rows as there are weights, with replacement, by their weights."""
    return generator.choice(len(weights), size=len(weights), p=weights / weights.sum())


def _deck(cards: np.ndarray, generator: np.random.Generator) -> Iterator[int]:
    """Cards without end: all of them once in random order, then shuffled anew."""
    while True:
        yield from generator.permutation(cards).tolist()


def _groups(count: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Groups of ``size`` of the numbers below ``count`` without end, no number twice in a group if there are enough."""
    while True:
        order = generator.permutation(count)
        order = order if count >= size else np.resize(order, size)
        yield from order[: len(order) // size * size].reshape(-1, size)
