"""Compare two runs, or level-2 names, row by row: is one better by more than noise, and on which images?

``runs=a,b``: the gain of b over a with its paired standard error, fold by fold, a permutation test and a bootstrap
interval (by whole groups where the folds have such), of classes McNemar's test; what differs in their settings; and the
rows on which they differ most, as a csv and a picture sheet. Only rows that both have count.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, contrast, evaluate, mining, sheets
from pipeline.artefacts import shown
from pipeline.config import Config
from pipeline.console import Outcome, say
from pipeline.contrast import Both
from pipeline.errors import UserError, nearest
from pipeline.report.facts import Entry, Facts, differences, of_level2, of_run, run_names
from pipeline.report.mistakes import pixels
from pipeline.tables import read_table

VERSION = 1  # raise it when the same files must give another answer
SIDE = 128  # of a picture
MOST = 2e8  # values that tests and intervals may look at; with fewer draws they are a little less exact


def run(config: Config) -> list[Outcome]:
    """Write compare-<a>-<b>.csv, .png and .json into runs/<competition>, and say what they tell."""
    began = time.perf_counter()
    first, second = names(config)
    facts = Facts(config)
    pair = common(entry(facts, first), entry(facts, second))
    stem = artefacts.runs_folder(config) / f"compare-{first}-{second}"
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("csv", "png", "json")]
    print_ = fingerprint(facts, pair)
    known = None if config.overwrite else artefacts.finished(files[2], print_, *files[:2])
    made = known or make(facts, pair, files, print_)
    for line in made["told"]:
        say(line)
    seconds = time.perf_counter() - began
    return [Outcome("compare", f"{first}, {second}", seconds=seconds, note=made["said"], reused=known is not None,
                    facts=made["facts"])]  # fmt: skip


def names(config: Config) -> tuple[str, str]:
    """The two names of runs=; UserError unless there are two different ones."""
    if len(config.runs) != 2 or config.runs[0] == config.runs[1]:
        raise UserError(f"runs={','.join(config.runs)}, but two are compared: runs=a,b, of which b is judged against a")
    first, second = (artefacts.safe_name(name, "runs") for name in config.runs)
    return first, second


def entry(facts: Facts, name: str) -> Entry:
    """The predictions of a run, or of a level 2 by that name; UserError with the command that makes them."""
    runs = run_names(facts.config)
    if name in runs:
        found = of_run(facts, name)
        if found is None:
            raise UserError(f"runs={name} has no OOF predictions yet; make them: ./run.sh stage=predict "
                            f"competition={facts.config.competition} run={name}")  # fmt: skip
        return found
    if (facts.level2 / name / "nested.npz").is_file():
        return of_level2(facts, name)
    there = [*runs, *sorted(path.parent.name for path in facts.level2.glob("*/nested.npz"))]
    listed = f"; there are: {', '.join(there)}{nearest(name, there)}" if there else ""
    raise UserError(f"runs={name}, but no run or level 2 has that name{listed}")


def common(first: Entry, second: Entry) -> tuple[Entry, Entry]:
    """Both on the rows of those folds that both have."""
    folds = np.intersect1d(first.folds, second.folds)
    if not len(folds):
        raise UserError(f"{first.name} and {second.name} have no fold in common; predict more folds of either")

    def part(one: Entry) -> Entry:
        kept = np.flatnonzero(np.isin(one.folds, folds))
        if len(kept) == len(one.rows):
            return one
        return dataclasses.replace(one, rows=one.rows[kept], folds=one.folds[kept], truth=one.truth[kept],
                                   values=one.values[kept], ids=one.ids[kept])  # fmt: skip

    return part(first), part(second)


def fingerprint(facts: Facts, pair: tuple[Entry, Entry]) -> str:
    """What the answer depends on."""
    files = [
        sorted(one.run.folder.glob("fold*/oof.npz"))
        if one.run
        else [facts.level2 / one.name / name for name in ("level2.json", "nested.npz")]
        for one in pair
    ]
    digests = [[artefacts.file_digest(file) for file in each] for each in files]
    config, compare = facts.config, dataclasses.asdict(facts.config.compare)
    data = (facts.competition.fingerprint, facts.folds.tolist(), config.task, config.metric, config.rerankings)
    return artefacts.fingerprint("compare", VERSION, [one.name for one in pair], digests, compare, data)


# --- what is found ------------------------------------------------------------------------------------------------


def make(facts: Facts, pair: tuple[Entry, Entry], files: list[Path], print_: str) -> dict[str, Any]:
    """Compare, write the csv and the sheet, and record what is said."""
    rows = apart(*pair)
    found, told = judged(facts, *pair)
    told += [f"  {words}" for words in differ(*pair)]
    files[2].unlink(missing_ok=True)
    artefacts.write_text(files[0], rows.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    with artefacts.atomic(files[1]) as handle:
        handle.write(sheets.png(sheet(pair, rows, facts.config.compare.pictures)))
    told.append(f"{shown(files[0])}: rows by how much they differ; look at {shown(files[1])}")
    return artefacts.finish(files[2], print_, said=found.pop("said"), told=told, facts=found)


def judged(facts: Facts, first: Entry, second: Entry) -> tuple[dict[str, Any], list[str]]:
    """The figures for programs, and the lines that are said."""
    units, kind = witnesses(facts, first)
    both = Both(first.metric, first.seen[0], first.seen[1], second.seen[1], units)
    draws = facts.config.compare.draws if both.metric.rowwise else slower(facts.config.compare.draws, both)
    gain, error = evaluate.paired(both.metric, both.first, both.second, both.seen, samples=min(draws, 1000))
    p, (low, high) = contrast.permutation(both, draws), contrast.interval(both, min(draws, 2000))
    said = contrast.verdict(p, low, high)
    told = [
        f"{facts.config.metric} on {len(first.rows)} rows that both have",
        f"  {first.name:<24} {scored(first)}",
        f"  {second.name:<24} {scored(second)}",
        f"  {second.name} over {first.name}: {gain:+.4f} ± {error:.4f} (paired, rows), 95 % {low:+.4f} … {high:+.4f} "
        f"(bootstrap of {both.count} {kind})",
        f"  {said} (permutation of answers within {kind}, Noreen 1989, two-sided, {draws} draws)",
    ]
    told += [f"  {line}" for line in [*by_fold(first, second), *rights(first, second)]]
    told.append(
        "  not in this: another seed moves scores, too; compare two seeds of each before you trust a small gain"
    )
    facts_ = {"gain": gain, "se": error, "low": low, "high": high, "p": p, "rows": len(first.rows)}
    return {**facts_, "said": f"{second.name} over {first.name}: {gain:+.4f} ± {error:.4f}; {said}"}, told


def scored(one: Entry) -> str:
    """The score of the rows that are compared, and what made it."""
    if one.exact:
        return str(one.scored)
    return (
        f"{one.scored.value:.4f} ± {one.scored.se:.4f} {one.rows_by}, chosen on all rows; its nested score: {one.score}"
    )


def slower(draws: int, both: Both) -> int:
    """How many draws a metric can afford that is no mean over rows."""
    return int(np.clip(MOST / max(1, 4 * np.size(both.first)), 200, draws))


def witnesses(facts: Facts, one: Entry) -> tuple[np.ndarray, str]:
    """(n,) int64, the unit of each row, and what units are: rows, or the groups that the folds kept together."""
    table = read_table(artefacts.folds_file(facts.config), {"id": ""})
    names = dict(zip(table["id"], table.get("group", ""), strict=False)) if "group" in table else {}
    own = [names.get(name) or f"\0{name}" for name in one.ids.tolist()]
    units = np.unique(own, return_inverse=True)[1]
    return units, "groups" if int(units.max()) + 1 < len(units) else "rows"


def by_fold(first: Entry, second: Entry) -> list[str]:
    """The difference of each fold's scores."""
    gains = first.metric.sign * (np.array(second.scored.folds) - np.array(first.scored.folds))
    each = "  ".join(f"{fold}: {gain:+.4f}" for fold, gain in zip(np.unique(first.folds), gains, strict=True))
    better = int((gains > 0).sum())
    return [f"fold by fold  {each}  ({second.name} is better in {better} of {len(gains)})"]


def right_of_classes(one: Entry) -> np.ndarray:
    """(n,) bool: rows whose decided class is the truth."""
    return np.asarray(one.task.decide(one.values) == one.truth)


RIGHT: dict[str, Callable[[Entry], np.ndarray]] = {"classes": right_of_classes}  # by the form's name


def rights(first: Entry, second: Entry) -> list[str]:
    """Which of both is right where the other is not, and McNemar's test of it; of classes."""
    if first.task.form.name not in RIGHT:
        return []
    one, other = (RIGHT[entry.task.form.name](entry) for entry in (first, second))
    alone = int((one & ~other).sum()), int((other & ~one).sum())
    return [
        f"right: both {int((one & other).sum())}, {first.name} alone {alone[0]}, {second.name} alone {alone[1]}, "
        f"neither {int((~one & ~other).sum())}; McNemar's exact p = {contrast.mcnemar(one, other):.2g}"
    ]


def differ(first: Entry, second: Entry) -> list[str]:
    """What differs in their settings."""
    if first.run is None or second.run is None:
        level2 = " and ".join(one.name for one in (first, second) if one.run is None)
        return [f"settings: {level2}: nested CV of a level 2, a second-order leak beside a run's OOF"]
    if not first.run.stored() or not second.run.stored():
        return ["settings: not known of adopted predictions"]
    found = differences(second.run, first.run)
    return [f"settings: {'; '.join(found) or 'the same'}"]


# --- the rows on which they differ --------------------------------------------------------------------------------


def losses(one: Entry) -> np.ndarray:
    """(n,) float64, how wrong each row is; finer than the metric where its form tells."""
    return one.mined.losses if one.mined is not None else -one.gains


def apart(first: Entry, second: Entry) -> pd.DataFrame:
    """A row each, the largest difference first: id, fold, what it is, what either says, how wrong each is.

    ``gain``: how much less wrong the second is.
    """
    one, other = losses(first), losses(second)
    table = pd.DataFrame({"id": first.ids, "fold": first.folds})
    if first.mined is not None and second.mined is not None:
        label, taken = mining.PAIR
        table["label"] = first.mined.rows[label].to_numpy()
        table["a_says"], table["b_says"] = (one.rows[taken].to_numpy() for one in (first.mined, second.mined))
    table["a_loss"], table["b_loss"], table["gain"] = one, other, one - other
    order = np.argsort(-np.nan_to_num(np.abs(table["gain"].to_numpy()), nan=-1.0), kind="stable")
    return table.iloc[order]


def sheet(pair: tuple[Entry, Entry], rows: pd.DataFrame, count: int) -> Any:
    """A Pillow image: at the left where the second is better, at the right where the first is."""
    first, second = pair
    place = {name: row for row, name in enumerate(first.ids.tolist())}
    pages = []
    for better, sign in (("b", 1), ("a", -1)):
        chosen = rows[sign * rows["gain"] > 0].head(count)
        shown_ = [(place[name], row) for name, (_, row) in zip(chosen["id"], chosen.iterrows(), strict=True)]
        tiles = [tiles_of(pair, row) for row, _ in shown_] or [np.full((1, SIDE, SIDE, 3), 255, dtype=np.uint8)]
        labels = [words(row) for _, row in shown_] or ["no row"]
        heads = ["image", "truth", "a", "b"][: tiles[0].shape[0]]
        title = f"{better} is better · a: {first.name} · b: {second.name}"
        pages.append(sheets.page(title, heads, labels, np.stack(tiles), side=SIDE))
    return sheets.grid(pages)


def words(row: pd.Series) -> str:
    """What stands beside a row's pictures."""
    lines = [str(row["id"])]
    lines += [f"is {row['label']}", f"a: {row['a_says']}", f"b: {row['b_says']}"] if "label" in row else []
    return "\n".join(map(sheets.short, [*lines, f"loss {row['a_loss']:.2f} → {row['b_loss']:.2f}"]))


def tiles_of(pair: tuple[Entry, Entry], row: int) -> np.ndarray:
    """(m, SIDE, SIDE, 3) uint8: the image; of masks also the truth and both answers."""
    first = pair[0]
    image = pixels(first, row)
    image = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8) if image is None else image
    layers: list[Any] = [None]
    if first.task.form.spatial:
        truth: Any = first.truth
        answers: list[Any] = [one.task.decide(one.values) for one in pair]
        layers += [truth.one(row), *(answer.one(row) for answer in answers)]
    return np.stack([sheets.drawn(image, layer, SIDE) for layer in layers])
