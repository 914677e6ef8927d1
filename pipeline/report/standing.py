"""How the runs stand: the leaderboard, learning curves, the balance of the folds, gains of views, level 2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from pipeline import artefacts, gains
from pipeline.artefacts import Predictions
from pipeline.report import charts
from pipeline.report.charts import Series, Whisker
from pipeline.report.facts import Entry, Facts, differences, log, plain, seconds
from pipeline.report.markup import Markup, tag
from pipeline.report.page import Cell, Section, badge, chips, gained, joined, measured, note, number, table, tile
from pipeline.runs import Run

CURVES = 16  # runs whose learning curves are drawn, the best first
CLASSES, UNEVEN = 30, 12  # classes of a matrix; of more, the least even
SPEED = ("epoch", "seconds", "images_per_second", "waiting", "memory_gb")  # of log.csv: no curves
NAMED = {"loss": "training loss", "score": "score on its own fold", "lr": "learning rate of the last step"}
RUN, STACK = 0, 2  # colours
MOST = 2_000_000  # values of a run whose errors are compared


# --- the top ------------------------------------------------------------------------------------------------------


def tiles(facts: Facts) -> list[Markup]:
    """The figures at the top: the best run, the level 2, how many runs, submissions and looks."""
    found = [
        _score_tile(title, entry) for title, entry in (("Best run", facts.best), ("Level 2", facts.stack)) if entry
    ]
    scored = [one for one in facts.submissions if not math.isnan(one["public"]) or not math.isnan(one["private"])]
    rejected = sum(bool(run.rejected) for run in facts.runs)
    found.append(tile("Runs", str(len(facts.runs)), more=f"{rejected} not used further" if rejected else ""))
    more = f"{len(scored)} with a leaderboard score" if facts.submissions else ""
    found.append(tile("Submissions", str(len(facts.submissions)), more=more))
    if facts.looks:
        found.append(tile("Looks at a solution", str(len(facts.looks)), more="each of them logged"))
    return found


def _score_tile(title: str, entry: Entry) -> Markup:
    error = "" if math.isnan(entry.score.se) else f"± {entry.score.se:.4f}"
    return tile(title, f"{entry.score.value:.4f}", error, [badge(entry.made_by), " ", entry.name])


# --- the leaderboard ----------------------------------------------------------------------------------------------


def leaderboard(facts: Facts) -> Section:
    """Runs and level 2, the best first; what each gains over its parent, and in which settings it differs."""
    entries = sorted([*facts.entries, *facts.stacks], key=lambda one: -one.metric.sign * one.score.value)
    words = "more is better" if facts.task and entries and entries[0].metric.greater else "less is better"
    picture = ""
    if entries:
        picture = charts.forest(
            f"{facts.config.metric} of each run", [_whisker(entry) for entry in entries],
            f"{facts.config.metric}, {words}", "large dot ± standard error over folds; small dots are the folds",
            [("run, OOF", RUN), ("level 2, nested CV", STACK)] if facts.stacks else (),
        )  # fmt: skip
    head = ["run", "score ± se", "made by", *[f"fold {fold}" for fold in range(facts.count)], "gain ± se",
            *told(facts), "seconds"]  # fmt: skip
    scored = {entry.name for entry in facts.entries}
    rows = [_standing(facts, entry) for entry in entries]
    rows += [_unscored(facts, run) for run in facts.runs if run.name not in scored]
    there = {run.name for run in facts.runs}
    rows += [_gaps(facts, name, why, math.nan) for name, why in facts.problems.items() if name not in there]
    said = note(
        "Score: of all rows together. se: standard error over folds; it is rough with few folds, whose training sets "
        "overlap. Gain: over the run that it came from, on the same rows, paired, ± its row-bootstrap standard error; "
        "within it is no gain. Level 2 is fitted on OOF, whose members saw the held-out fold's labels: a second-order "
        "leak."
    )
    body = [picture, table(head, rows, 0 if entries else -1), said, tag("h3", "What they are made of"), _origins(facts)]
    return Section("leaderboard", "Leaderboard", body, ["OOF", *(["nested"] if facts.stacks else [])])


def _whisker(entry: Entry) -> Whisker:
    return Whisker(entry.name, entry.score.value, entry.score.se, entry.score.folds, RUN if entry.run else STACK)


def _standing(facts: Facts, entry: Entry) -> list[Any]:
    """The cells of a scored run or level 2."""
    score = entry.score
    folds = np.unique(entry.folds).tolist()
    each = dict(zip(folds, score.folds, strict=True)) if len(folds) == len(score.folds) else {}
    spent = seconds(entry.run) if entry.run else stack_seconds(facts, entry.name)
    front = [
        _name(entry.name, _remarks(entry)),
        measured(score.value, score.se),
        Cell(badge(entry.made_by), entry.made_by),
    ]
    cells = [number(each.get(fold, math.nan)) for fold in range(facts.count)]
    return [*front, *cells, _over_parent(facts, entry), *_public(facts, entry.name), number(spent, ",.0f")]


def _name(name: str, remarks: str) -> Cell:
    """A run's name, with what is to be said of its score below."""
    return Cell([tag("b", name), tag("span", remarks, class_="under") if remarks else ""], name)


def _remarks(entry: Entry) -> str:
    run = entry.run
    if run is None:
        return ""
    return "; ".join(filter(None, [run.selected, f"left out: {run.rejected}" if run.rejected else ""]))


def _over_parent(facts: Facts, entry: Entry) -> Cell:
    """The paired gain over its parent, and which that is; of a level 2 over the best run."""
    base = facts.parent(entry.run) if entry.run else facts.best and facts.best.run
    other = next((one for one in facts.entries if base and one.name == base.name), None)
    found = entry.over(other) if other else (math.nan, math.nan)
    cell = gained(*found)
    if other is None or math.isnan(found[0]):
        return cell
    shown = tag("span", cell.shown, class_=cell.kind or None)
    return Cell([shown, tag("span", f"over {other.name}", class_="under")], cell.by)


def told(facts: Facts) -> list[str]:
    """Those of public and private of which any submission knows a score."""
    return [part for part in ("public", "private") if any(not math.isnan(one[part]) for one in facts.submissions)]


def _public(facts: Facts, name: str) -> list[Cell]:
    """Leaderboard scores of what was submitted of it."""
    own: dict[str, Any] = next((one for one in facts.submissions if _source(one) == name), {})
    return [number(own.get(part, math.nan), ".5f") for part in told(facts)]


def _source(submission: dict[str, Any]) -> str:
    return str(submission.get("source", "")).removeprefix("level2/")


def _unscored(facts: Facts, run: Run) -> list[Any]:
    """The cells of a run without OOF predictions."""
    why = facts.problems.get(run.name, "")
    if not why:
        full = run.member(()).exists() and not any(run.folder.glob("fold*/log.csv"))
        why = "trained on everything: no CV" if full else f"not predicted yet: {run.command('predict')}"
        why = "made by stage=pretrain, for others to begin with" if run.made_by == "pretrain" else why
    return _gaps(facts, run.name, why, seconds(run))


def _gaps(facts: Facts, name: str, why: str, spent: float) -> list[Any]:
    """The cells of what has no score."""
    gaps = [number(math.nan) for _ in range(facts.count + 1)]
    return [_name(name, why), number(math.nan), Cell(""), *gaps, *_public(facts, name), number(spent, ",.0f")]


def _origins(facts: Facts) -> Markup:
    """In which settings each run differs from the one that it came from; which runs a level 2 is made of."""
    rows = []
    for run in facts.runs:
        parent = facts.parent(run)
        rows.append([tag("b", run.name), parent.name if parent else "the baseline", _differs(facts, run, parent)])
    for entry in facts.stacks:
        made = facts.described(entry.name)
        call = " + ".join(filter(None, [made.get("method"), made.get("decision")]))
        rows.append([tag("b", entry.name), ", ".join(made.get("members", [])), Cell(tag("code", call), call)])
    return table(["run", "compared with", "differs in"], rows)


def _differs(facts: Facts, run: Run, parent: Run | None) -> Cell:
    if parent is None:
        return Cell("")
    if damaged := [one.name for one in (run, parent) if one.name in facts.problems]:
        return Cell(f"not known: see {damaged[0]}", wide=True)
    if not run.stored():
        return Cell(tag("span", "adopted: its settings are not known", class_="faint"))
    return chips(differences(run, parent) or ["nothing: another training of the same settings"])


# --- learning curves ----------------------------------------------------------------------------------------------


def curves(facts: Facts) -> Section | None:
    """Loss, score and learning rate over epochs, a line a fold."""
    value = {entry.name: entry.metric.sign * entry.score.value for entry in facts.entries}
    order = sorted(facts.runs, key=lambda run: (-value.get(run.name, -math.inf), run.name))
    drawn = [(run, found) for run in order if (found := _logs(run))]
    if not drawn:
        return None
    names = list(dict.fromkeys(name for _, logs in drawn for name in logs))
    body: list[Any] = [charts.named([(name, place) for place, name in enumerate(names)])]
    body += [block for run, logs in drawn[:CURVES] for block in _curves(run, logs, names)]
    if len(drawn) > CURVES:
        body.append(note(f"The best {CURVES} of {len(drawn)} runs."))
    body.append(
        note("The score is the epoch's on the fold's own rows, in the metric's unit: to choose an epoch by it flatters "
             "OOF, so the last epoch predicts unless a remark says otherwise.")
    )  # fmt: skip
    return Section("curves", "Learning curves", body, ["each member on its own fold"])


def _logs(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Each member's log by its name."""
    folders = [run.member((fold,)) for fold in range(run.count)] + [run.member(())]
    return {folder.name: found for folder in folders if (found := log(folder))}


def _curves(run: Run, logs: dict[str, dict[str, np.ndarray]], members: list[str]) -> list[Markup]:
    """A picture each for what is logged; a member has one colour in all of them."""
    kinds = list(dict.fromkeys(key for one in logs.values() for key in one if key not in SPEED))
    plots = []
    for kind in kinds:
        known = [(name, one) for name, one in logs.items() if kind in one]
        lines = [Series(name, one["epoch"], one[kind], colour=members.index(name)) for name, one in known]
        plots.append(charts.plot(NAMED.get(kind, kind), lines, "epoch", "", whole=True, legend=False))
    return [tag("h3", run.name), tag("div", plots, class_="curves")]


# --- folds --------------------------------------------------------------------------------------------------------


def balance(facts: Facts) -> Section:
    """How alike the folds are in what the split balances: classes, labels, coverage, or numbers."""
    strata, scored = facts.task.strata(facts.competition.targets), facts.folds >= 0
    folds, outside, numbers = facts.folds[scored], int((~scored).sum()), strata.dtype.kind == "f"
    rows = [(f"fold {fold}", float((folds == fold).sum())) for fold in range(facts.count)]
    sizes = charts.bars("rows a fold", rows, form=",.0f")
    alike = (
        _spread(facts, strata[scored], folds) if numbers else _counts(*_counted(facts, strata[scored], folds), folds)
    )
    said = (
        note(f"{outside:,} rows are in no fold: every member learns from them, none predicts them.") if outside else ""
    )
    return Section("folds", "Folds", [tag("div", [sizes, alike], class_="grid" if numbers else "sides"), said])


def _counted(facts: Facts, strata: np.ndarray, folds: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of what is counted, and how many rows of each are in each fold, (C, K) int64."""
    if strata.ndim == 1:
        names, codes = np.unique(strata, return_inverse=True)
        counts = np.zeros((len(names), facts.count), dtype=np.int64)
        np.add.at(counts, (codes, folds), 1)
        return [str(name) for name in names], counts
    columns = [str(name) for name in facts.task.columns][: strata.shape[1]]
    more = strata.shape[1] - len(columns)
    counts = np.stack([(strata[folds == fold] > 0).sum(axis=0) for fold in range(facts.count)], axis=1)
    return [*columns, *(f"coverage {place}/{more}" for place in range(1, more + 1))], counts


def _counts(names: list[str], counts: np.ndarray, folds: np.ndarray) -> Markup:
    """Rows of each class, fold by fold; of many classes those that are least even."""
    sizes, whole = np.bincount(folds), (counts > 0).sum(axis=1).max() == 1
    if whole and len(sizes) > 1:  # each lies in one fold: how even it is says nothing
        return charts.bars("classes a fold, each in one", [(f"fold {fold}", float(count)) for fold, count
                           in enumerate((counts > 0).sum(axis=0))], form=",.0f")  # fmt: skip
    expected = counts.sum(axis=1, keepdims=True) * (sizes / sizes.sum())[None]
    off = np.abs(counts - expected) / np.maximum(expected, 1)
    kept = np.sort(np.argsort(-off.max(axis=1), kind="stable")[: len(off) if len(off) <= CLASSES else UNEVEN])
    part = f" (the {UNEVEN} least even of {len(names)})" if len(names) > CLASSES else ""
    return charts.matrix(
        f"rows of each class, fold by fold{part}",
        [names[row] for row in kept], [str(fold) for fold in range(len(sizes))], off[kept],
        lambda r, c: str(counts[kept[r], c]),
        lambda r, c: f"{names[kept[r]]}, fold {c}: {counts[kept[r], c]}, {expected[kept[r], c]:.1f} would be even",
        small="darker is farther from even", axes=("class", "fold"),
    )  # fmt: skip


def _spread(facts: Facts, numbers: np.ndarray, folds: np.ndarray) -> Markup:
    """Where each fold's numbers lie: the share of its rows below each."""
    columns = getattr(facts.task, "target", facts.task.columns)
    drawn = []
    for place, name in enumerate(columns[:6]):
        shares = np.linspace(0, 1, 51)
        series = [Series(f"fold {fold}", np.quantile(numbers[folds == fold, place], shares), shares)
                  for fold in range(facts.count)]  # fmt: skip
        drawn.append(charts.plot(f"{name}: share of a fold's rows below", series, str(name), "", small="alike is good"))
    return joined(*drawn)


# --- views and scales ---------------------------------------------------------------------------------------------


def views(facts: Facts) -> Section | None:
    """What every view and scale gains, of each run that has several."""
    rows = []
    for entry in facts.whole:
        if entry.run is None or entry.task.form.spatial:
            continue
        oof = Predictions(entry.ids, entry.values, entry.task.space)
        found = gains.of_views(entry.run, entry.task, entry.metric, entry.truth, oof)
        if found is None:
            continue
        verdict = "keep them" if found.helps else "no gain beyond noise: the plain view is as good, and faster"
        rows += [[entry.name, f"+ {label}", gained(gain, error), ""] for label, gain, error in found.each]
        rows.append([entry.name, tag("b", f"all {len(found.each) + 1} together"), gained(*found.together), verdict])
    if not rows:
        return None
    said = note("Paired, on OOF rows, over the first view alone. To keep a view by this table is a choice made on the "
                "rows that score it; beyond one standard error it is a small one.")  # fmt: skip
    return Section(
        "views", "Views and scales", [table(["run", "view × scale", "gain ± se", "verdict"], rows), said], ["OOF"]
    )


# --- level 2 ------------------------------------------------------------------------------------------------------


def level2(facts: Facts) -> Section | None:
    """Weights, candidates and decisions of each level 2, and how alike its members err."""
    body: list[Any] = []
    for entry in facts.stacks:
        body += _stack(facts, entry)
    alike = alikeness(facts)
    if not body and alike is None:
        return None
    body += [alike] if alike is not None else []
    if not facts.stacks:
        return Section("alike", "How alike runs err", body, ["OOF"])
    return Section("level2", "Level 2", body, ["nested", "second-order leak"])


def _stack(facts: Facts, entry: Entry) -> list[Any]:
    made = facts.described(entry.name)
    decision = [" then ", tag("code", plain(made["decision"]))] if made.get("decision") else []
    said = tag("p", tag("code", made.get("method", "")), decision, f": {made.get('reason', '')}.")
    weights = [(name, float(weight)) for name, weight in (made.get("weights") or {}).items() if np.ndim(weight) == 0]
    charts_ = [charts.bars("weights of its members", weights)] if weights else []
    candidates = [one for one in made.get("nested", []) if "score" in one]
    tried = [one for one in made.get("decisions") or [] if "score" in one]
    rows = [_candidate(one, "method", made.get("method")) for one in candidates]
    rows += [_candidate(one, "decision", made.get("decision") or "default") for one in tried]
    listed = [table(["tried", "kind", "nested score ± se", "gain ± se", "chosen"], rows)] if rows else []
    optimistic = note(
        f"The best of {len(rows)} candidates on the same rows: optimistic by up to about one standard error. Methods "
        "gain over the best single run, decisions over the default."
    )
    return [tag("h3", entry.name), said, tag("div", charts_, class_="grid") if charts_ else "", *listed,
            optimistic if rows else ""]  # fmt: skip


def _candidate(one: dict[str, Any], kind: str, chosen: Any) -> list[Any]:
    known = {key: float(one[key]) if isinstance(one.get(key), (int, float)) else math.nan
             for key in ("score", "se", "gain", "gain_se")}  # fmt: skip
    taken = badge("chosen") if one.get(kind) == chosen else ""
    score, gain = measured(known["score"], known["se"]), gained(known["gain"], known["gain_se"])
    return [str(one.get(kind)), kind, score, gain, taken]


def stack_seconds(facts: Facts, name: str) -> float:
    """How long a level 2 took; NaN where nothing tells."""
    record = artefacts.recorded(facts.level2 / name / "stack.json") or {}
    return float(record.get("seconds", math.nan))


def alikeness(facts: Facts) -> Markup | None:
    """How the errors of runs go together: what errs alike adds little to a blend."""
    members = sorted(facts.whole, key=lambda one: -one.metric.sign * one.score.value)[:12]
    if len(members) < 2:
        return None
    errors = [_errors(entry) for entry in members]
    if len({error.shape for error in errors}) > 1:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        found = pd.DataFrame(np.array(errors).T).corr().to_numpy()
    names, others = [entry.name for entry in members], 1 - np.eye(len(members))
    return charts.matrix(
        "correlation of the runs' errors", names, names, np.clip(found, 0, 1) * others,
        lambda r, c: "" if r == c else f"{found[r, c]:.2f}",
        lambda r, c: f"{names[r]} and {names[c]}: {found[r, c]:.3f}", small="low is good for a blend",
    )  # fmt: skip


def _errors(entry: Entry) -> np.ndarray:
    """What a run misses, flat: values less the truth, or the scores of its rows where values do not compare.

    Of large tables every k-th row, the same of each run.
    """
    form = entry.task.form
    if form.spatial or form.searched:
        return entry.gains
    rows = slice(None, None, max(1, int(np.size(entry.values) // MOST)))
    return (np.asarray(entry.values[rows], dtype=np.float64) - entry.task.soft(entry.truth[rows])).ravel()
