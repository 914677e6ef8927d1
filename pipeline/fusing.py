"""Level 2 of retrieval: runs fused into one search, and re-rankings of it, both scored by nested cross-validation.

Embeddings of runs have nothing in common but their cosines. Side by side, each times the root of its weight, their
cosine is the weighted mean of the runs' own: distance fusion, which any re-ranking may follow. Weights are found on the
queries of all folds but one, by greedy selection (Caruana et al. 2004), and score that one's. Reciprocal rank fusion
(Cormack et al. 2009) adds up ranks instead of cosines, so it stands last. Single runs, their plain mean, the weighted
one and the fused ranks compete: the simplest within one paired standard error of the best is taken. Then
``pipeline/reranking.py`` chooses what follows in the same way.

Answers of OOF are of one member's embeddings, those of the test of all members' side by side.

A second-order leak stays: the OOF embeddings of other folds come from members that trained on the held-out fold.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline import nested, ranking, registry, reranking
from pipeline.errors import UserError
from pipeline.evaluate import Metric
from pipeline.forms import POOL, unit
from pipeline.ranking import Search
from pipeline.registry import Call
from pipeline.reranking import Candidate, Pools, Reranked

WAYS = ("single", "mean", "weights", "ranks")  # the simplest first
ROUNDS = 10  # of the greedy selection; a weight is a multiple of one over at most this
HELD = 1 << 23  # cosines of a run that the search for weights holds of one pool: 32 MB


def fused(values: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n, ΣD) float32 rows of length 1, of M runs' embeddings (n, D_m) of length 1: their cosine is the weighted mean.

    weights: (M,) ≥ 0, in any scale. Serves OOF, and test embeddings whose members lie side by side, alike.
    """
    shares = np.sqrt(np.asarray(weights, dtype=np.float64) / np.sum(weights)).astype(np.float32)
    return unit(np.concatenate([share * own for share, own in zip(shares, values, strict=True)], axis=1))


@dataclass(frozen=True)
class Way(Candidate):
    """One way to make one search of several runs'.

    nested: (N, D) embeddings, each part's without its own labels. runs: places of those whose columns these are.
    weights: (M,), fitted on all rows. last: call-strings of re-rankings that belong to the way.
    """

    nested: np.ndarray = field(repr=False)
    runs: tuple[int, ...]
    weights: np.ndarray
    last: tuple[str, ...] = ()


@dataclass(frozen=True)
class Level2:
    """A chosen way with chosen re-rankings. looked_at: how many weights and settings were compared in all."""

    members: list[str]
    candidates: list[Way]
    chosen: Way
    reason: str
    tried: list[Reranked]
    decided: Reranked
    looked_at: int
    notes: list[str]

    @property
    def name(self) -> str:
        """The way and its re-rankings, as the tables show them."""
        return f"{self.chosen.call} + {self.decided.call}" if self.decided.calls else self.chosen.call

    def test(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) float32 of all runs' test embeddings (n, D_m), each with its members side by side."""
        runs = list(self.chosen.runs)
        return fused([values[place] for place in runs], self.chosen.weights[runs])

    def facts(self) -> dict[str, Any]:
        """What ``level2.json`` holds; settings: with which a submission is made of the test embeddings."""
        decided = self.decided
        return {
            "method": self.chosen.call,
            "reason": self.reason,
            "decision": decided.call if decided.calls else None,
            "parameters": {str(part): list(calls) for part, calls in decided.of_parts.items()},
            "settings": {"rerankings": list(decided.calls)},
            "score": decided.facts(),
            "members": self.members,
            "weights": dict(zip(self.members, self.chosen.weights.tolist(), strict=True)),
            "nested": [{"method": way.call, **way.facts()} for way in self.candidates],
            "decisions": [{"decision": one.call, **one.facts()} for one in self.tried],
            "looked_at": self.looked_at,
            "leak": "second order: level 2 is fitted on OOF predictions",
        }


@dataclass(frozen=True)
class Oof:
    """What level 2 learns from: names and OOF embeddings (N, D_m) of the runs, and the truth of the same rows.

    truth: (N, 3) int64, identity, pool and camera (-1: none). parts: (N,) int64 of nested cross-validation.
    """

    names: list[str]
    members: Sequence[np.ndarray]
    truth: np.ndarray
    metric: Metric
    parts: np.ndarray
    seed: int

    @cached_property
    def pools(self) -> Pools:
        """The rows by pool."""
        return Pools(self.truth, self.metric, self.seed)

    @property
    def apart(self) -> bool:
        """Whether each pool is a part, so that its rows can be embedded without its labels."""
        pool = self.truth[:, POOL]
        return all(len(np.unique(self.parts[pool == number])) == 1 for number in np.unique(pool))


def parts(folds: np.ndarray, identity: np.ndarray, seed: int) -> np.ndarray:
    """(N,) int64 the part of each row in nested cross-validation: its fold; of a single fold some identities at random.

    A query then finds nothing in another part, so that what it adds tells nothing of that part's labels.
    """
    if len(np.unique(folds)) > 1:
        return folds
    known, codes = np.unique(identity, return_inverse=True)
    dealt: np.ndarray = nested.parts(np.zeros(len(known), dtype=np.int64), seed)[codes]
    return dealt


def check(methods: Sequence[str], decisions: Sequence[str], rerankings: Sequence[str], choose: str = "auto") -> None:
    """Raise UserError unless these are ways to fuse, or all, and re-rankings, or all, or none; reads no data."""
    wrong = [name for name in methods if name not in ("all", *WAYS)]
    if wrong:
        raise UserError(f"stack.methods={wrong[0]}, but searches are fused by {', '.join(WAYS)}, or all")
    if choose not in ("auto", *WAYS):
        raise UserError(f"stack.choose={choose}, but searches are fused by {', '.join(WAYS)}; or auto")
    ranking.check_rerankings(rerankings)
    reranking.asked(decisions)


def build(
    oof: Oof, methods: Sequence[str], decisions: Sequence[str], rerankings: Sequence[str] = (), choose: str = "auto"
) -> Level2:
    """The best way and the best re-rankings.

    methods: of ``WAYS``, or all. decisions: re-rankings to try, all, or none. rerankings: what the user set, which is
    applied as it is, and nothing tried. choose: auto, or one of ``WAYS``.
    """
    wanted = {*WAYS} if "all" in methods else {*methods}
    if choose != "auto":
        wanted.add(choose)
    if rerankings and reranking.gives_scores(rerankings[-1]):
        wanted.discard("ranks")  # which could not follow
    ways, looked_at = candidates(oof, wanted)
    chosen, reason = _chosen(ways, oof, choose)
    chains, notes = _chains(oof, chosen, decisions, rerankings)
    tried, settings = reranking.candidates(oof.pools, chosen.nested, oof.parts, chains, chosen.last)
    if "weights" in wanted and not oof.apart and len(oof.names) > 1:
        notes.append("weights are left out: a single fold is a single pool, whose rows have one embedding")
    decided = reranking.choose(tried, oof.metric)[0]
    return Level2(oof.names, ways, chosen, reason, tried, decided, looked_at + settings, notes)


def _chains(
    oof: Oof, chosen: Way, decisions: Sequence[str], rerankings: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """What is tried behind the chosen way, and what the user must know of it; whitening is each member's own."""
    if rerankings:
        return [tuple(registry.complete("rerankings", call) for call in rerankings)], []
    whitening = str(Call("whitening", {"widths": [oof.members[place].shape[1] for place in chosen.runs]}))
    chains = [tuple(whitening if call == "whitening" else call for call in one) for one in reranking.asked(decisions)]
    pools = oof.pools
    if len(chains) > 1 and pools.largest > reranking.LARGEST:
        return chains[:1], [
            f"re-rankings are left out: a fold has {pools.largest:,} rows, more than {reranking.LARGEST:,}; "
            "set rerankings= to apply one as it is"
        ]
    seen, among = len(pools.searched()), len(pools.rows)
    if len(chains) > 1 and seen < among:
        return chains, [f"arguments of re-rankings are sought in the {seen} smallest of {among} folds"]
    return chains, []


def _chosen(ways: list[Way], oof: Oof, choose: str) -> tuple[Way, str]:
    """The way by name, or for auto the simplest within one paired standard error of the best; and why."""
    singles = [way for way in ways if way.call in oof.names]
    if choose == "single" and singles:
        return singles[0], "the best run, as stack.choose=single asks"
    named = [way for way in ways if way.call == choose and way not in singles]
    if named:
        return named[0], f"as stack.choose={choose} asks"
    if len(ways) == 1:
        return ways[0], "the only one"
    return reranking.choose([*singles[:1], *(way for way in ways if way not in singles)], oof.metric)


# --- the ways -----------------------------------------------------------------------------------------------------


def candidates(oof: Oof, wanted: Collection[str]) -> tuple[list[Way], int]:
    """The ways that are wanted, single runs first, the best of them in front; and how many weights were looked at."""
    count = len(oof.names)
    singles = [
        _way(oof, name, oof.members[place], np.eye(count)[place])
        for place, name in enumerate(oof.names if "single" in wanted or count == 1 else [])
    ]
    singles.sort(key=lambda way: -oof.metric.sign * way.score.value)
    others: list[Way] = []
    looked_at = 0
    equal = np.full(count, 1 / count)
    if count > 1 and "mean" in wanted:
        others.append(_way(oof, "mean", fused(oof.members, equal), equal))
    if count > 1 and "weights" in wanted and oof.apart:
        way, looked_at = _weighted(oof)
        others.append(way)
    if count > 1 and "ranks" in wanted:
        widths = [own.shape[1] for own in oof.members]
        call = Call("reciprocal_ranks", {"widths": [width // math.gcd(*widths) for width in widths]})
        others.append(_way(oof, "ranks", fused(oof.members, equal), equal, (str(call),)))
    ways = [*singles, *others]
    if not ways:  # weights alone, on one fold
        ways = [_way(oof, "mean", fused(oof.members, equal), equal)]
    return [replace(way, **_gain(oof, ways[0], way)) for way in ways], looked_at


def _way(oof: Oof, call: str, values: np.ndarray, weights: np.ndarray, last: tuple[str, ...] = ()) -> Way:
    added = oof.pools.added(values, last, range(len(oof.pools.rows)))
    runs = tuple(np.flatnonzero(weights).tolist()) if call in oof.names else tuple(range(len(weights)))
    return Way(call, added, reranking.score(added, oof.parts), 0.0, 0.0, values, runs, weights, last)


def _gain(oof: Oof, plain: Way, way: Way) -> dict[str, float]:
    gain, error = reranking.paired(oof.metric, plain.added, way.added)
    return {"gain": gain, "gain_se": error}


def _weighted(oof: Oof) -> tuple[Way, int]:
    """Runs by weights that were found without a part's queries, and how many weights were looked at."""
    table = Weights(oof)
    values = np.empty((len(oof.truth), sum(own.shape[1] for own in oof.members)), dtype=np.float32)
    for part in np.unique(oof.parts):
        rows = oof.parts == part
        values[rows] = fused([own[rows] for own in oof.members], greedy(table, ~rows))
    whole = greedy(table, np.ones(len(values), dtype=bool))
    return _way(oof, "weights", values, whole), len(table.known)


class Weights:
    """What drawn queries add under each weighting of runs that was tried; the cosines of a run are computed once."""

    def __init__(self, oof: Oof) -> None:
        self.pools, self.count, self.some = oof.pools, len(oof.names), oof.members[0]
        self.known: dict[tuple[int, ...], np.ndarray] = {}
        self.cosines: list[np.ndarray] = []  # of each pool (M, q, n) float32
        for rows in self.pools.rows:
            asked = rows[: min(self.pools.drawn, max(1, HELD // len(rows)))]
            self.cosines.append(np.stack([own[asked] @ own[rows].T for own in oof.members]))

    def gain(self, counts: np.ndarray, rows: np.ndarray) -> float:
        """The score of these rows under weights as whole numbers (M,), more being better."""
        key = tuple((counts // np.gcd.reduce(counts)).tolist())
        if key not in self.known:
            self.known[key] = self._added(np.float32(key) / np.float32(sum(key)))
        return self.pools.metric.sign * reranking.mean(self.known[key][rows])

    def _added(self, weights: np.ndarray) -> np.ndarray:
        found = np.full(len(self.pools), np.nan)
        for place, cosines in enumerate(self.cosines):
            table = np.tensordot(weights, cosines, axes=1)
            points = self.some[self.pools.rows[place]]
            search = Search(points, points, True, lambda start, stop, table=table: table[start:stop])  # type: ignore[misc]
            asked = self.pools.rows[place][: len(table)]
            found[asked] = self.pools.judged(search, place, len(table))
        return found


def greedy(table: Weights, rows: np.ndarray) -> np.ndarray:
    """(M,) weights by greedy selection with replacement on the score of these rows; Caruana et al. 2004, sec. 2."""
    chosen, kept = np.zeros(table.count, dtype=np.int64), np.ones(table.count, dtype=np.int64)
    best = -math.inf
    for _ in range(ROUNDS):
        tried = chosen + np.eye(table.count, dtype=np.int64)
        gains = [table.gain(counts, rows) for counts in tried]
        place = int(np.argmax(gains))
        chosen = tried[place]
        if gains[place] > best + reranking.EQUAL:
            best, kept = gains[place], chosen
    return np.asarray(kept / kept.sum())
