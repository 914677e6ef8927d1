"""Re-rankings chosen by nested cross-validation: which of them, in what order, with what numbers.

Every row of OOF embeddings searches its own pool, so that a setting is judged by what each query adds to the metric. A
coordinate search goes through the arguments that a re-ranking declares (its fact ``search``), on drawn queries whose
answers are kept by setting: choosing without a part's queries is then arithmetic. A part's queries are scored under
what the others chose, all of them, and the simplest chain within one paired standard error of the best is taken, which
is none unless one is worth it.

Pools are as large as folds. Numbers of neighbours carry over to a gallery about as large; a much larger one wants more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pipeline import evaluate, ranking, registry
from pipeline.errors import UserError
from pipeline.evaluate import Metric, Score
from pipeline.forms import CAMERA, IDENTITY, POOL
from pipeline.ranking import Search
from pipeline.registry import Call

NONE = "none"
CHAINS = (  # the simplest first
    (NONE,),
    ("whitening",),
    ("query_expansion",),
    ("database_augmentation",),
    ("database_augmentation", "query_expansion"),
    ("k_reciprocal",),
    ("query_expansion", "k_reciprocal"),
    ("diffusion",),
)
QUERIES = 1000  # that a search for settings asks at most, of all pools together
PAIRS = 250_000_000  # of rows, that one setting may compare in a search: other pools are then left out of it
LARGEST = 15_000  # rows of a pool that is re-ranked again and again
EQUAL = 1e-12  # gains that differ by less are equal

Chain = tuple[Call, ...]
Coordinate = tuple[int, str]  # a place in a chain, and an argument of what stands there


@dataclass(frozen=True)
class Candidate:
    """One way to answer, as its nested answers judge it.

    call: its name. added: (N,) float64, what each query adds to the metric, NaN where it has nothing to find. score:
    nested. gain, gain_se: paired, over the plain choice.
    """

    call: str
    added: np.ndarray = field(repr=False)
    score: Score
    gain: float
    gain_se: float

    def facts(self) -> dict[str, Any]:
        """What ``level2.json`` holds of it."""
        return {
            "score": self.score.value, "se": self.score.se, "folds": self.score.folds, "gain": self.gain,
            "gain_se": self.gain_se,
        }  # fmt: skip


@dataclass(frozen=True)
class Reranked(Candidate):
    """Re-rankings in turn. calls: chosen on all rows, to be used. of_parts: what was chosen without each part."""

    calls: tuple[str, ...]
    of_parts: dict[int, tuple[str, ...]]


Chosen = TypeVar("Chosen", bound=Candidate)


class Pools:
    """Rows that search one another, pool by pool; in each the drawn queries stand in front.

    truth: (N, 3) int64, identity, pool and camera (-1: none) of each row. rows: of each pool (n,) int64, in an order
    that no label tells. drawn: how many of them, from the first on, a search for settings asks of each pool.
    """

    def __init__(self, truth: np.ndarray, metric: Metric, seed: int) -> None:
        self.identity, pool, self.camera = truth[:, IDENTITY], truth[:, POOL], truth[:, CAMERA]
        self.metric = metric
        self.k = int(registry.complete_arguments("metrics", metric.name)["k"])
        self.rows: list[np.ndarray] = []
        for number in np.unique(pool):
            own = np.flatnonzero(pool == number)
            self.rows.append(np.random.default_rng([seed, len(self.rows), len(own)]).permutation(own))
        self.drawn = -(-QUERIES // len(self.rows))

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def largest(self) -> int:
        """The rows of the largest pool."""
        return max(map(len, self.rows))

    def searched(self) -> list[int]:
        """The pools that a search for settings looks at: the smallest, as long as ``PAIRS`` allow, and always one."""
        order = sorted(range(len(self.rows)), key=lambda place: (len(self.rows[place]), place))
        pairs = np.cumsum([len(self.rows[place]) ** 2 for place in order])
        return sorted(order[: max(1, int((pairs <= PAIRS).sum()))])

    def judged(self, search: Search, place: int, first: int | None = None) -> np.ndarray:
        """(first,) float64: what the first queries of a pool add to the metric; all of them where first is None."""
        rows = self.rows[place]
        judged = ranking.judge_pool(search, self.identity[rows], self.camera[rows], self.k, first)
        return self.metric.rows(*judged)

    def added(self, values: np.ndarray, calls: Sequence[str], places: Sequence[int], drawn: bool = False) -> np.ndarray:
        """(N,) float64: what queries of these pools add, of embeddings (N, D) under re-rankings; NaN is not asked."""

        def search(place: int) -> Search:
            points = values[self.rows[place]]
            return ranking.reranked(Search(points, points, alone=True), calls)

        return self.answered(search, places, drawn)

    def answered(self, search: Callable[[int], Search], places: Sequence[int], drawn: bool = False) -> np.ndarray:
        """The same of any searches, by the place of a pool."""
        found = np.full(len(self), np.nan)
        for place in places:
            first = self.drawn if drawn else None
            found[self.rows[place][:first]] = self.judged(search(place), place, first)
        return found


# --- numbers of what queries add ----------------------------------------------------------------------------------


def mean(added: np.ndarray) -> float:
    """The mean without NaN, NaN of nothing."""
    known = added[~np.isnan(added)]
    return float(known.mean()) if len(known) else math.nan


def paired(metric: Metric, base: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """How much more other adds (N,) than base, and the standard error of that over queries; as ``evaluate.paired``."""
    difference = metric.sign * (other - base)
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return 0.0, 0.0
    error = float(np.std(difference, ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.inf
    return float(difference.mean()), error


def score(added: np.ndarray, parts: np.ndarray) -> Score:
    """The nested score of all queries, with its standard error over parts."""
    each = [mean(added[parts == part]) for part in np.unique(parts)]
    known = [one for one in each if not math.isnan(one)]
    error = float(np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan
    return Score(mean(added), error, "nested", each)


def choose(candidates: Sequence[Chosen], metric: Metric) -> tuple[Chosen, str]:
    """The simplest within one paired standard error of the best; and why. candidates: the simplest first."""
    best = max(candidates, key=lambda one: metric.sign * one.score.value)
    return evaluate.simplest(candidates, best, lambda one, best: paired(metric, one.added, best.added))


# --- what is tried ------------------------------------------------------------------------------------------------


def asked(decisions: Sequence[str]) -> list[tuple[str, ...]]:
    """The chains of call-strings that stack.decisions asks for, the simplest first; UserError for a wrong one."""
    if list(decisions) == ["all"]:
        return [*CHAINS]
    if NONE in decisions and len(decisions) > 1:
        raise UserError(f"stack.decisions={','.join(decisions)}, but none stands alone")
    for call in decisions:
        try:
            registry.bind("rerankings", call)
        except UserError as fault:
            raise UserError(f"stack.decisions={call}: {fault}; or all, or none") from fault
    return [(NONE,), *((call,) for call in decisions if registry.parse(call).name != NONE)]


def gives_scores(call: str) -> bool:
    """Whether nothing can follow a re-ranking."""
    return bool(registry.facts("rerankings", call)["gives"] == "scores")


def candidates(
    pools: Pools, values: np.ndarray, parts: np.ndarray, chains: Sequence[tuple[str, ...]], last: Sequence[str] = ()
) -> tuple[list[Reranked], int]:
    """Each chain with its nested score, and how many settings were looked at; the first is plain.

    values: (N, D) embeddings. parts: (N,) int64. last: call-strings that stand behind every chain.
    """
    table, everywhere = Table(pools, values, last), range(len(pools.rows))
    known = np.unique(parts).tolist()
    learns = [np.ones(len(pools), dtype=bool), *(parts != part for part in known)]
    found: list[Reranked] = []
    ends: dict[str, list[Call]] = {}
    for texts in chains:
        if last and gives_scores(texts[-1]):
            continue
        whole, *chosen = _searched(table, texts, learns, ends)
        of_parts = {part: table.calls(chain) for part, chain in zip(known, chosen, strict=True)}
        added = np.full(len(pools), np.nan)
        for calls in dict.fromkeys(of_parts.values()):
            rows = np.isin(parts, [part for part in known if of_parts[part] == calls])
            places = [place for place in everywhere if rows[pools.rows[place]].any()]
            added[rows] = pools.added(values, calls, places)[rows]
        gain = paired(pools.metric, found[0].added, added) if found else (0.0, 0.0)
        name = ", ".join(str(call) for call in whole)
        found.append(Reranked(name, added, score(added, parts), *gain, table.calls(whole), of_parts))
    return found, len(table.known)


def _searched(
    table: Table, texts: tuple[str, ...], learns: Sequence[np.ndarray], ends: dict[str, list[Call]]
) -> list[Chain]:
    """The settings that a chain ends at on each set of rows; of two in turn the search begins where each ended alone.

    ends: of single re-rankings by their call-string, kept for chains to come.
    """
    bound = [registry.bind("rerankings", text) for text in texts]
    start = tuple(Call(part.name, {**part.arguments, **call.arguments}) for part, call in bound)
    free = [
        (place, key)
        for place, (part, call) in enumerate(bound)
        for key in part.facts["search"]
        if key not in call.arguments
    ]
    starts = [start] * len(learns)
    if len(texts) == 1:
        starts = climb(table, starts, learns, free)
    else:
        alone = [ends.get(text, [call] * len(learns)) for text, call in zip(texts, start, strict=True)]
        starts = list(zip(*alone, strict=True))
    found = climb(table, starts, learns, free, reach=1)
    if len(texts) == 1:
        ends[texts[0]] = [chain[0] for chain in found]
    return found


class Table:
    """What drawn queries add under each setting that was tried; values: (N, D). last: see ``candidates``."""

    def __init__(self, pools: Pools, values: np.ndarray, last: Sequence[str] = ()) -> None:
        self.pools, self.values, self.last = pools, values, tuple(last)
        self.places = pools.searched()
        self.known: dict[tuple[str, ...], np.ndarray] = {}

    def calls(self, chain: Chain) -> tuple[str, ...]:
        """A chain as call-strings, ready to be applied; without none, which does nothing."""
        return (*(str(call) for call in chain if call.name != NONE), *self.last)

    def gain(self, chain: Chain, rows: np.ndarray) -> float:
        """The score of these rows, more being better; NaN where none of them was drawn."""
        calls = self.calls(chain)
        if calls not in self.known:
            self.known[calls] = self.pools.added(self.values, calls, self.places, drawn=True)
        return self.pools.metric.sign * mean(self.known[calls][rows])


def climb(
    table: Table, starts: Sequence[Chain], learns: Sequence[np.ndarray], order: Sequence[Coordinate],
    reach: int | None = None,
) -> list[Chain]:  # fmt: skip
    """For each set of rows (N,) bool the setting that a coordinate search from its start ends at.

    reach: how many steps of an argument's candidates the search looks to either side; None: all.
    """
    return [_climbed(table, start, rows, order, reach) for start, rows in zip(starts, learns, strict=True)]


def _climbed(table: Table, chain: Chain, rows: np.ndarray, order: Sequence[Coordinate], reach: int | None) -> Chain:
    """Of equal settings the one that moves least is taken."""
    for coordinate in order:
        best, highest = chain, table.gain(chain, rows)
        for other in moves(chain, coordinate, reach):
            if (gain := table.gain(other, rows)) > highest + EQUAL:
                best, highest = other, gain
        chain = best
    return chain


def moves(chain: Chain, coordinate: Coordinate, reach: int | None) -> Iterator[Chain]:
    """The chain with another value of one argument, the nearest first."""
    place, key = coordinate
    call = chain[place]
    values = list(registry.facts("rerankings", call.name)["search"][key])
    at = values.index(call.arguments[key])
    for other in sorted(set(range(len(values))) - {at}, key=lambda other: (abs(other - at), other)):
        if reach is None or abs(other - at) <= reach:
            moved = Call(call.name, {**call.arguments, key: values[other]})
            yield (*chain[:place], moved, *chain[place + 1 :])
