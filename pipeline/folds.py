"""Who is in which fold: ``folds/<competition>.csv``, dealt once, shared by a team, never silently rewritten.

A fold of −1 marks a row that every member may learn from and none predicts: outside a fixed holdout, or before the
first block of time.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline import absorbed, artefacts, files, registry, tasks
from pipeline.artefacts import shown
from pipeline.competition import Competition
from pipeline.config import Config, root
from pipeline.console import say, warn
from pipeline.errors import UserError, some
from pipeline.tables import check_ids, read_table
from pipeline.tasks import task_for

NEVER = -1  # the fold of rows that are always learned from


def read_folds(config: Config, competition: Competition) -> np.ndarray:
    """The fold of each training row, (N,) int64 in the order of competition.train, from folds/<competition>.csv.

    Raises UserError if the file is missing, damaged or belongs to other training rows.
    """
    return _read(config, competition)


def _read(config: Config, competition: Competition, told: Sequence[str] = ()) -> np.ndarray:
    """The same; told: ids of absorbed rows that the file may hold beside those of the competition."""
    path = artefacts.folds_file(config)
    if not path.is_file():
        command = f"./run.sh stage=split competition={config.competition}"
        raise UserError(f"{shown(path)} does not exist; run {command} first")
    try:
        table = read_table(path, {"id": "", "fold": ""})
    except UserError as fault:
        raise UserError(f"{str(fault).partition(';')[0]}; restore it, or {_anew(config)}") from fault
    if not config.data.absorbed or told:
        others = table["id"].isin({*told} or absorbed.known(config)) & ~table["id"].isin(competition.train["id"])
        table = table[~others]
    there = set(table["id"])
    late = [name for name in competition.train["id"].tail(competition.absorbed) if name not in there]
    if late:
        command = f"./run.sh stage=split competition={config.competition}"
        raise UserError(f"{shown(path)} lacks {len(late)} absorbed ids: {some(late)}; {command} deals their folds")
    return _folds_of(competition, table["id"], table["fold"], path, config.data.train_csv, _anew(config))


def _folds_of(
    competition: Competition, names: pd.Series, cells: pd.Series, path: Any, csv: str, advice: str
) -> np.ndarray:
    """The folds of a table, in the order of the training rows."""
    check_ids(names, shown(path))
    fold_of = dict(zip(names, cells, strict=True))
    ids = competition.train["id"].tolist()
    missing = [name for name in ids if name not in fold_of]
    extra = sorted(fold_of.keys() - set(ids))
    if missing or extra:
        lacks = f" lacks {len(missing)} ids of {csv}: {some(missing)}" if missing else ""
        holds = f" holds {len(extra)} ids that {csv} has not: {some(extra)}" if extra else ""
        raise UserError(f"{shown(path)}{' and'.join(filter(None, [lacks, holds]))}; {advice}")
    try:
        folds = np.array([int(fold_of[name]) for name in ids], dtype=np.int64)
    except ValueError as fault:
        raise UserError(f"{shown(path)}: folds must be whole numbers ({fault}); {advice}") from fault
    there = np.unique(folds[folds != NEVER]).tolist()
    if there != list(range(len(there))) or not there or (len(there) == 1 and NEVER not in folds):
        raise UserError(f"{shown(path)} has the folds {some(there, 20)}, not 0, 1, … without a gap; {advice}")
    return folds


def ensure_folds(config: Config, competition: Competition, overwrite: bool = False) -> np.ndarray:
    """The folds as ``read_folds``, dealt and written first if there are none; never silently rewritten.

    overwrite: write them anew if they differ from what the config asks for, which is else a UserError. Rows that were
    absorbed are dealt behind the others, whose folds do not move, and stay where they are once the file has them.
    """
    if not competition.absorbed:
        return _ensured(config, competition, overwrite)
    late = competition.train["id"].tail(competition.absorbed).tolist()
    _check_method(config)
    folds = _ensured(config, _before(competition), overwrite, late)
    return _extended(config, competition, folds)


def _ensured(
    config: Config, competition: Competition, overwrite: bool = False, told: Sequence[str] = ()
) -> np.ndarray:  # fmt: skip
    path = artefacts.folds_file(config)
    if path.is_file() and not config.folds.file and registry.facts("splits", config.folds.method).get("given"):
        return _read(config, competition, told)
    group = _groups(config, competition)
    fresh = _imported(config, competition) if config.folds.file else _deal(config, competition, group)
    if path.is_file():
        difference = _difference(config, competition, fresh, told)
        if not difference:
            return fresh
        if not overwrite:
            raise UserError(difference)
        _warn_of_runs(config)
    if tasks.facts(config.task).get("whole"):
        _warn_of_known(config, competition.targets.iloc[:, 0].to_numpy(dtype=np.str_), fresh)
    columns = {"id": competition.train["id"], "fold": fresh, "group": "" if group is None else group}
    table = pd.concat([pd.DataFrame(columns), competition.targets], axis=1)
    artefacts.write_text(path, table.to_csv(index=False, lineterminator="\n"))
    how = config.folds.file or config.folds.method
    never = int((fresh == NEVER).sum())
    more = f"; {never} rows are always learned from, never predicted" if never else ""
    say(f"{shown(path)}: written, {fresh.max() + 1} folds of {len(fresh)} rows, {how}{more}")
    return fresh


def asked_folds(config: Config, count: int) -> list[int] | Literal["full"]:
    """The folds that ``fold=`` asks for, of the count there are, ascending; or "full" for training on everything."""
    asked = config.fold
    if asked in (["all"], ["full"]):
        return list(range(count)) if asked == ["all"] else "full"
    if not all(re.fullmatch(r"-?\d+", name) for name in asked):
        raise UserError(f"fold={','.join(asked)}, but fold is a number, several such as 0,2, or all or full alone")
    numbers = sorted({int(name) for name in asked})
    outside = [number for number in numbers if not 0 <= number < count]
    if outside:
        where = f"fold={outside[-1]}, but {shown(artefacts.folds_file(config))} has 0–{count - 1}"
        more = f"rerun stage=split folds.count={outside[-1] + 1} overwrite=true, or " if outside[-1] > 0 else ""
        raise UserError(f"{where}; {more}choose one of these")
    return numbers


def learns_from(config: Config, folds: np.ndarray, held_out: tuple[int, ...]) -> np.ndarray:
    """(N,) bool: the rows that the member without these folds may learn from; of time, only what came before."""
    kept = ~np.isin(folds, held_out)
    if held_out and registry.facts("splits", config.folds.method).get("past_only"):
        kept &= folds < min(held_out)
    return kept


# --- dealing ------------------------------------------------------------------------------------------------------


def _groups(config: Config, competition: Competition) -> np.ndarray | None:
    """(N,) text, the group of each row; near duplicates join those of data.group, identities of an open set too."""
    named = competition.column(config.data.group, "data.group") if config.data.group else None
    found = _with_duplicates(config, competition, named) if config.folds.groups else named
    if found is None or not tasks.facts(config.task).get("whole"):
        return found
    return _with_identities(config, found, competition.targets.iloc[:, 0].to_numpy(dtype=np.str_))


def _with_duplicates(config: Config, competition: Competition, named: np.ndarray | None) -> np.ndarray:
    """Near duplicates as groups, joined with those that there are."""
    path = artefacts.runs_folder(config) / "near_duplicates.csv"
    if not path.is_file():
        command = f"./run.sh stage=check competition={config.competition}"
        raise UserError(f"folds.groups={config.folds.groups}, but {shown(path)} does not exist; make it: {command}")
    table = read_table(path, {"id": "", "group": ""})
    alike = dict(zip(table["id"], table["group"], strict=True))
    unknown = [name for name in competition.train["id"] if name not in alike]
    if unknown:
        raise UserError(f"{shown(path)} lacks the ids {some(unknown)}; run stage=check again with overwrite=true")
    found = competition.train["id"].map(alike).to_numpy(dtype=np.str_)
    return found if named is None else _joined(named, found)


def _with_identities(config: Config, groups: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """Groups (N,) that part no identity (N,): those that share one are joined, which is said."""
    parted = _parted(identities, groups)
    if not parted:
        return groups
    joined = _joined(groups, identities)
    left, key = len(np.unique(joined)), f"data.group={config.data.group or config.folds.groups}"
    if left < config.folds.count:
        raise UserError(
            f"{key}: {len(parted)} identities lie in several groups, such as {some(parted)}; with identities whole, "
            f"which the test asks for, {left} groups are left of {len(np.unique(groups))}, for folds.count="
            f"{config.folds.count}; leave the groups out"
        )
    warn(f"{key}: {len(parted)} identities lie in several groups, which are joined: {left} are left")
    return joined


def _parted(identities: np.ndarray, parts: np.ndarray) -> list[str]:
    """The identities, by name, whose rows are of several parts."""
    pairs = pd.DataFrame({"identity": identities, "part": parts}).drop_duplicates()["identity"]
    return sorted(map(str, pairs[pairs.duplicated()].unique()))


def _joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The finest groups that part neither of two: connected components."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, first = np.unique(one, return_inverse=True)
    columns, second = np.unique(other, return_inverse=True)
    size = len(rows) + len(columns)
    edges = coo_matrix((np.ones(len(one)), (first, len(rows) + second)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1][first]).astype(np.str_)


def _imported(config: Config, competition: Competition) -> np.ndarray:
    """A team mate's folds, numbered 0, 1, … in the order of their numbers; −1 stays."""
    path = root() / config.folds.file
    table = read_table(path, {"fold": ""}, key="folds.file")
    key = next((name for name in (config.data.id, "id") if name in table.columns), str(table.columns[0]))
    numbers = pd.to_numeric(table["fold"], errors="coerce")
    if numbers.isna().any() or (numbers % 1 != 0).any():
        odd = some(table["fold"][numbers.isna() | (numbers % 1 != 0)].unique())
        raise UserError(f"folds.file={config.folds.file}: folds must be whole numbers, not {odd}; correct them")
    order = sorted(set(numbers.astype(int)) - {NEVER})
    cells = numbers.astype(int).map({NEVER: NEVER, **{name: place for place, name in enumerate(order)}})
    return _folds_of(competition, table[key], cells.astype(str), path, config.data.train_csv, "correct folds.file")


def _deal(config: Config, competition: Competition, group: np.ndarray | None) -> np.ndarray:
    settings, facts = config.folds, registry.facts("splits", config.folds.method)
    if len(competition.train) < settings.count and not facts.get("own_count"):
        raise UserError(
            f"folds.count={settings.count}, but {config.data.train_csv} has {len(competition.train)} rows; "
            f"folds.count={len(competition.train)} at most"
        )
    column = _column(config, competition, group, str(facts.get("column", "")))
    task = task_for(config, competition)
    strata = task.strata(competition.targets)
    open_set = tasks.facts(config.task).get("open_set")  # classes may lie in one fold whole, as in the test
    if not facts.get("own_count") and not open_set:
        _check_rare(config, strata, list(map(str, competition.targets)) if competition.masks else task.columns)
    folds = np.asarray(registry.build("splits", settings.method)(strata, column, settings.count, settings.seed))
    if open_set:
        _check_alone(strata, folds)
    else:
        _say_absent(strata, folds)
    return folds


def _column(config: Config, competition: Competition, group: np.ndarray | None, needs: str) -> np.ndarray | None:
    """What the split deals by beside the target: the groups, the time, or the mark of a fixed holdout."""
    method = config.folds.method
    if group is not None and needs != "group":
        raise UserError(
            f"data.group={config.data.group or config.folds.groups}, but folds.method={method} parts groups; leave "
            "folds.method out, or take stratified_group_kfold()"
        )
    if needs == "group" and group is None:
        raise UserError(
            f"data.group={config.data.group}, but folds.method={method} needs a group column; set data.group"
        )
    if needs in ("", "group"):
        return group
    name = str(getattr(config.data, needs))
    if not name:
        raise UserError(f"folds.method={method} needs a column; set data.{needs}=COLUMN")
    if needs == "holdout" and name in competition.table.columns:  # an empty cell means no
        return competition.table[name].to_numpy(dtype=np.str_)
    return competition.column(name, f"data.{needs}")


def _check_rare(config: Config, strata: np.ndarray, columns: list[str]) -> None:
    if strata.dtype.kind == "f":
        return
    if strata.ndim == 2:
        counts = [(name, int(rows)) for name, rows in zip(columns, strata.sum(axis=0), strict=False)]
    else:
        counts = [(str(name), int(rows)) for name, rows in zip(*np.unique(strata, return_counts=True), strict=True)]
    rare = [f"{name} ({rows})" for name, rows in counts if rows < config.folds.count]
    text = f"classes with fewer rows than the {config.folds.count} folds, so that some folds hold none: {some(rare)}"
    if rare and config.folds.strict:
        raise UserError(f"{text}; lower folds.count, or folds.strict=false to spread them over distinct folds")
    if rare:
        _warn_once(f"{text}; each is spread over distinct folds as far as it goes")


def _say_absent(strata: np.ndarray, folds: np.ndarray) -> None:
    """Warn where no member may learn a class that its fold holds: all rows of the class lie in one fold."""
    if strata.ndim != 1:
        return
    table = pd.crosstab(strata, folds)
    alone = [str(name) for name, row in table.iterrows() if (row > 0).sum() == 1 and row.sum() > 1 and len(row) > 1]
    if alone:
        _warn_once(
            "classes that lie in one fold whole, so that the member which predicts them never saw them: "
            f"{some(alone)}; their groups are too large to part"
        )


def _warn_of_known(config: Config, identities: np.ndarray, folds: np.ndarray) -> None:
    parted = _parted(identities, folds)
    if parted:
        how = f"folds.file={config.folds.file}" if config.folds.file else f"folds.method={config.folds.method}"
        warn(
            f"{how} deals {len(parted)} identities to several folds, such as {some(parted)}: members saw whom they are "
            "asked to find, and OOF says nothing of new ones; identity_kfold() keeps them whole"
        )


def _check_alone(strata: np.ndarray, folds: np.ndarray) -> None:
    """UserError where all rows of a fold are alike, so that each of its lists would be right."""
    for fold in np.unique(folds[folds != NEVER]):
        inside = np.unique(strata[folds == fold])
        if len(inside) < 2:
            raise UserError(
                f"fold {fold} holds one identity alone, {str(inside[0])!r}, with nothing to tell it from; lower "
                "folds.count"
            )


@functools.cache
def _warn_once(text: str) -> None:
    warn(text)


# --- rows that were absorbed --------------------------------------------------------------------------------------


def _check_method(config: Config) -> None:
    """Rows that come later have no place in an order of time."""
    if registry.facts("splits", config.folds.method).get("past_only"):
        raise UserError(
            f"{shown(absorbed.path_of(config.competition))} has absorbed rows, which folds.method="
            f"{config.folds.method} cannot deal without moving others; put them into {config.data.train_csv}, or leave "
            "them out with data.absorbed=false"
        )


def _before(competition: Competition) -> Competition:
    """The competition without its absorbed rows."""
    rows = slice(0, len(competition.train) - competition.absorbed)
    parts = {name: getattr(competition, name).iloc[rows] for name in ("train", "targets", "table")}
    return dataclasses.replace(competition, **parts, absorbed=0)


def _extended(config: Config, competition: Competition, old: np.ndarray) -> np.ndarray:
    """The folds of all rows; those of absorbed rows that the file lacks are dealt and written behind its others."""
    path = artefacts.folds_file(config)
    table = read_table(path, {"id": "", "fold": ""})
    there = dict(zip(table["id"], table["fold"], strict=True))
    ids = competition.train["id"].tolist()
    given = [int(there[name]) if name in there else None for name in ids[len(old) :]]
    if None not in given:
        return read_folds(config, competition)
    group = _groups(config, competition)
    folds = _dealt_late(config, competition, [*old.tolist(), *given], group)
    rows = [row for row in range(len(old), len(ids)) if ids[row] not in there]
    cells = {
        "id": competition.train["id"], "fold": folds, "group": "" if group is None else group,
        **{name: competition.targets[name] for name in competition.targets},
    }  # fmt: skip
    new = pd.DataFrame(cells).iloc[rows].reindex(columns=table.columns, fill_value="")
    text = path.read_text(encoding="utf-8-sig")
    text += "" if text.endswith("\n") else "\n"
    artefacts.write_text(path, text + new.to_csv(index=False, header=False, lineterminator="\n"))
    say(f"{shown(path)}: {len(rows)} absorbed rows dealt to folds; the others stay where they were")
    return read_folds(config, competition)


def _dealt_late(
    config: Config, competition: Competition, folds: list[int | None], group: np.ndarray | None
) -> list[int]:  # fmt: skip
    """Folds of all rows. A row without one joins its copy or its group, else the fold with the fewest rows like it.

    One after the other, in the order in which they were absorbed: later rows move no earlier ones.
    """
    count = 1 + max(fold for fold in folds if fold is not None)
    strata = _late_strata(task_for(config, competition).strata(competition.targets), len(folds) - competition.absorbed)
    marked = absorbed.marked(config, competition.train["id"].tail(competition.absorbed))
    holdout = registry.facts("splits", config.folds.method).get("column") == "holdout"
    rows, alike = np.zeros(count), np.zeros((count, strata.shape[1]))
    of_group: dict[str, int] = {}
    twins = _twins(competition)
    found: list[int] = []
    for row, fold in enumerate(folds):
        own = "" if group is None else str(group[row])
        if fold is None and row in twins:
            fold = found[twins[row]]
        elif fold is None and own and own in of_group:
            fold = of_group[own]
        elif fold is None:
            never = holdout or marked[row - len(folds) + competition.absorbed]
            fold = NEVER if never else int(np.lexsort((np.arange(count), rows, alike @ strata[row]))[0])
        if own:
            of_group.setdefault(own, fold)
        if fold != NEVER:
            rows[fold] += 1
            alike[fold] += strata[row]
        found.append(fold)
    return found


def _twins(competition: Competition) -> dict[int, int]:
    """Absorbed rows whose image is, byte for byte, that of a row before them, with that row.

    In another fold such a copy would tell the label of a row to the member that predicts it (law 1).
    """
    specs = competition.train["file"].tolist()
    late = len(specs) - competition.absorbed
    sizes = [facts[0] if facts else -1 for facts in files.stats(competition.folder, specs)]
    wanted, first, found = set(sizes[late:]) - {-1}, dict[str, int](), dict[int, int]()
    for row, spec in enumerate(specs):
        if sizes[row] not in wanted:
            continue
        try:
            content = b"".join(files.read_bytes(competition.folder / file) for file in files.parts(spec)[0])
        except (OSError, ValueError):
            continue
        print_ = artefacts.fingerprint(artefacts.digest(content), spec.partition(files.BOX)[2])
        if row >= late and print_ in first:
            found[row] = first[print_]
        first.setdefault(print_, row)
    return found


def _late_strata(strata: np.ndarray, old: int) -> np.ndarray:
    """(N, S) float64, what rows are alike in: their class, their labels, or their tenth of the old rows' numbers."""
    if strata.dtype.kind == "f":
        numbers = strata.reshape(len(strata), -1)[:, 0]
        edges = np.quantile(numbers[:old], np.arange(1, 10) / 10)
        return np.eye(10)[np.searchsorted(edges, numbers)]
    if strata.ndim == 2:  # rare labels weigh more
        return strata / np.maximum(strata[:old].sum(axis=0), 1)
    _, places = np.unique(strata, return_inverse=True)
    return np.eye(int(places.max()) + 1)[places]


# --- what is there already ----------------------------------------------------------------------------------------


def _difference(config: Config, competition: Competition, fresh: np.ndarray, told: Sequence[str]) -> str:
    try:
        there = _read(config, competition, told)
    except UserError as fault:
        return str(fault)
    if np.array_equal(there, fresh):
        return ""
    name, settings = shown(artefacts.folds_file(config)), config.folds
    own = registry.facts("splits", settings.method).get("own_count") or settings.file
    if there.max() != fresh.max() and not own:
        what = f"{name} has {there.max() + 1} folds, but folds.count={settings.count}"
    else:
        asked = settings.file or f"folds.method={settings.method} folds.seed={settings.seed}"
        what = f"{name} puts {int((there != fresh).sum())} of {len(fresh)} rows in other folds than {asked} does"
    return f"{what}; keep the file with folds.method=given(), or {_anew(config)}"


def _anew(config: Config) -> str:
    command = f"./run.sh stage=split competition={config.competition} folds.count={config.folds.count} overwrite=true"
    return f"deal them anew with {command} (runs on the old folds are then no longer comparable)"


def _warn_of_runs(config: Config) -> None:
    folder = artefacts.runs_folder(config)
    runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    if runs:
        warn(f"these runs were trained on the old folds and compare with no new one: {some(runs)}; train them again")
