"""Seconds of k-reciprocal re-ranking, 5,000 queries × 15,000 images × 256, beside a straightforward NumPy loop.

    .venv/bin/python benchmarks/reranking.py           minutes; 1 GB
    .venv/bin/python benchmarks/reranking.py --smoke   seconds, small

The loop is the usual implementation of Zhong et al. 2017: whole distance matrices, a sort of each row, an image at a
time. It runs on a fifth of queries and gallery, where the ranks of both are compared. Its time for all is NOT measured:
it is extrapolated by the square of the ratio of sizes, as its matrices grow (its sorts grow by somewhat more). Random
unit vectors, and vectors around identities of ten images, whose neighbours are more often mutual.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline.forms import unit
from pipeline.hardware import physical_cores
from pipeline.parts.rerankings import k_reciprocal
from pipeline.ranking import Search

K1, K2, WEIGHT, TOP = 20, 6, 0.3, 100
EACH = 10  # images of an identity


def draw(queries: int, rows: int, width: int, identities: bool) -> Search:
    """Random directions, or such around random centres."""
    generator = np.random.default_rng(0)
    points = generator.standard_normal((queries + rows, width), dtype=np.float32)
    if identities:
        centres = generator.standard_normal(((queries + rows) // EACH + 1, width), dtype=np.float32)
        points += centres[generator.integers(len(centres), size=len(points))]
    points = unit(points)
    return Search(points[:queries], points[queries:])


def fast(search: Search) -> np.ndarray:
    """(Q, TOP) places of the nearest, by the pipeline."""
    return k_reciprocal(search, k1=K1, k2=K2, weight=WEIGHT).nearest(TOP)[1]


def loop(search: Search) -> np.ndarray:
    """(Q, G) distances, by dense matrices and loops over images."""
    points, queries = search.points, len(search.queries)
    distance = 1 - points @ points.T
    np.fill_diagonal(distance, 0)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1)
    codes = np.zeros_like(distance)
    for place in range(len(points)):
        members = mutual(order, place, K1)
        expanded = members
        for other in members:
            own = mutual(order, other, round(K1 / 2))
            if len(np.intersect1d(own, members)) > 2 / 3 * len(own):
                expanded = np.append(expanded, own)
        expanded = np.unique(expanded)
        weight = np.exp(-distance[place, expanded])
        codes[place, expanded] = weight / weight.sum()
    codes = np.stack([codes[order[place, :K2]].mean(axis=0) for place in range(len(points))])
    holders = [np.flatnonzero(column) for column in codes.T]
    found = np.empty((queries, len(points) - queries), dtype=np.float32)
    for query in range(queries):
        shared = np.zeros(len(points), dtype=np.float32)
        for member in np.flatnonzero(codes[query]):
            held = holders[member]
            shared[held] += np.minimum(codes[query, member], codes[held, member])
        final = (1 - WEIGHT) * (1 - shared / (2 - shared)) + WEIGHT * distance[query]
        found[query] = final[queries:]
    return found


def mutual(order: np.ndarray, place: int, k: int) -> np.ndarray:
    """Which of the k nearest (and itself) hold it among theirs."""
    near = order[place, : k + 1]
    return near[(order[near, : k + 1] == place).any(axis=1)]


def timed(rank: Callable[[Search], np.ndarray], search: Search) -> tuple[np.ndarray, float]:
    """What a function gives, and its seconds."""
    began = time.perf_counter()
    return rank(search), time.perf_counter() - began


def main() -> None:
    """Draw, re-rank, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="200 × 600 × 32, the loop on half of it")
    queries, rows, width, share = (200, 600, 32, 2) if parser.parse_args().smoke else (5000, 15_000, 256, 5)
    machine = f"{physical_cores()} cores ({platform.machine()}, load {os.getloadavg()[0]:.1f})"
    print(f"{queries:,} × {rows:,} × {width}, {machine}")
    for name, identities in (("random", False), (f"identities of {EACH}", True)):
        seconds = timed(fast, draw(queries, rows, width, identities))[1]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # so far, and before the loop's first round
        small = draw(queries // share, rows // share, width, identities)
        (ours, own), (final, plain) = timed(fast, small), timed(loop, small)
        theirs = np.argsort(final, axis=1, kind="stable")[:, : ours.shape[1]]
        apart = np.abs(np.take_along_axis(final, ours, axis=1) - np.take_along_axis(final, theirs, axis=1)).max()
        print(f"{name}\n  all             {seconds:7.2f} s" + ("" if identities else f", peak {memory:,.0f} MB"))
        print(
            f"  1/{share} of it       {own:7.2f} s, the loop {plain:.2f} s: × {plain / own:.1f} at that size, measured"
        )
        print(
            f"  the loop on all {plain * share**2:7.0f} s, extrapolated by {share}²: × {plain * share**2 / seconds:.0f}"
        )
        print(f"  the same image at {(ours == theirs).mean():.2%} of the ranks; the others differ by {apart:.0e}")


if __name__ == "__main__":
    main()
