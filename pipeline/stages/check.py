"""Check: a data doctor that reads everything once and says what is wrong, what leaks, and what to do about it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from typing import Any

import numpy as np

from pipeline import advice, artefacts, images, tasks
from pipeline.artefacts import shown
from pipeline.competition import Competition, load
from pipeline.config import Config
from pipeline.console import Outcome, say
from pipeline.doctor import (
    alike,
    anomalies,
    balance,
    drift,
    duplicates,
    leaks,
    mask_survey,
    orientation,
    page,
    report,
    survey,
)
from pipeline.doctor.findings import Finding, Sheet, counted, finding, plain
from pipeline.errors import UserError
from pipeline.folds import read_folds
from pipeline.tasks import task_for

VERSION = 2  # raise it when the same data must give another answer
COLOUR = 3.0  # grey levels between the channels above which an image has colour


def run(config: Config) -> list[Outcome]:
    """Write check.json, check.html and near_duplicates.csv to runs/NAME, and print them; findings are no error."""
    began = time.perf_counter()
    competition = apart(load(config, forgiving=True))
    folder = artefacts.runs_folder(config)
    record, html, groups = (folder / name for name in ("check.json", "check.html", "near_duplicates.csv"))
    print_ = _fingerprint(config, competition)
    before = None if config.overwrite else artefacts.finished(record, print_, html, groups)
    content = before or _examine(config, competition)
    if before is None:
        artefacts.write_text(html, content.pop("html"))
        artefacts.write_text(groups, content.pop("groups"))
        artefacts.finish(record, print_, **content)
    findings = [finding(item) for item in content["findings"]]
    say(report.text(findings, [Sheet(**item) for item in content["sheets"]]))
    note = report.summary(findings)
    pictures = content["pictures"] and advice.Pictures(**content["pictures"])
    pretrained = config.pretrained or bool(config.weights)
    if pictures and (hint := advice.finetuning(len(competition.train), pictures, config.finetune, pretrained)):
        say(f"\n{hint}")
    say(f"\n{competition.name}: {note}; with pictures: {shown(html)}")
    facts = {kind: sum(item.count for item in findings if item.kind == kind) for kind in {f.kind for f in findings}}
    seconds = time.perf_counter() - began
    return [Outcome("check", seconds=seconds, note=note, reused=before is not None, facts=dict(sorted(facts.items())))]


def apart(competition: Competition) -> Competition:
    """The competition whose test has no image of an absorbed row: it is no copy that somebody ought to know of."""
    if not competition.absorbed:
        return competition
    kept = ~competition.test["file"].isin(competition.train["file"].tail(competition.absorbed))
    tables = {name: getattr(competition, name)[kept].reset_index(drop=True) for name in ("test", "test_table")}
    return dataclasses.replace(competition, **tables)


def _fingerprint(config: Config, competition: Competition) -> str:
    data, folds = config.data, artefacts.folds_file(config)
    reading = (data.reader, data.channels, data.megapixels, data.target, data.separator, data.train_csv)
    dealt = artefacts.file_digest(folds) if folds.is_file() else ""
    files = hashlib.blake2b(np.stack(_bytes(competition)).tobytes(), digest_size=8).hexdigest()
    odd = anomalies.digest(config)
    return artefacts.fingerprint(VERSION, competition.fingerprint, config.task, reading, dealt, files, *odd)


def _examine(config: Config, competition: Competition) -> dict[str, Any]:
    """Read all images, ask all questions; plain values for the record, and the texts of the other files."""
    look = _look(config, competition)
    train, test = (_pairs(table) for table in (competition.train, competition.test))
    seen = survey.read(functools.partial(look, at_least=survey.LOOK_SIDE), train, test, config.data.channels)
    strata, columns, findings = _targets(config, competition)
    open_set = bool(tasks.facts(config.task).get("open_set"))
    findings += balance.lacking(seen)
    sheets: list[Sheet | None] = [balance.sizes(seen), balance.colours(seen)]
    if strata is not None and competition.masks:
        seen_masks = mask_survey.read(competition, competition.masks)
        task: Any = task_for(config, competition)
        covered = task.covered(competition.targets)
        strata = seen_masks.shares  # for the questions below, what is covered is a number
        more, rare = balance.targets((strata > 0).astype(np.int64), columns, _folds(config, competition))
        sheets, findings = (
            [*sheets, *mask_survey.sheets(seen_masks, competition.masks, covered), *more],
            findings + rare,
        )
        findings += mask_survey.findings(
            seen_masks, config, competition, functools.partial(_caption, seen, competition)
        )
    elif strata is not None:
        folds = _folds(config, competition)
        known = strata != "" if open_set else np.ones(len(strata), dtype=bool)  # rows of new ones have no identity
        own = None if folds is None else folds[known]
        more, rare = balance.identities(strata[known], own) if open_set else balance.targets(strata, columns, folds)
        sheets, findings = [*sheets, *more], findings + rare
    first = duplicates.exact(seen)
    caption = functools.partial(_caption, seen, competition)
    found, groups = alike.report(seen, first, duplicates.near(seen, first), strata, caption, open_set)
    sheet, drifts = drift.adversarial(seen, _bytes(competition)[0])
    leak_sheet, leaking = _leaks(config, competition, seen, strata)
    odd = anomalies.anomalies(config, seen.ids, caption)
    sheets += [sheet, leak_sheet, orientation.evidence(seen, strata)]
    findings = report.ordered(findings + found + drifts + leaking + odd)
    kept = [sheet for sheet in sheets if sheet is not None]
    images_read = f"{counted(seen.train, 'training image')}, {counted(len(seen) - seen.train, 'test image')}"
    summary = f"{report.summary(findings)} · {images_read}"
    picture = functools.partial(_picture, look, seen)
    html = page.page(f"{competition.name}: stage=check", summary, findings, kept, picture)
    text = alike.groups_csv(competition.train["id"].tolist(), groups)
    return {"findings": plain(findings), "sheets": plain(kept), "html": html, "groups": text, "pictures": looks(seen)}


def looks(seen: survey.Survey) -> dict[str, Any]:
    """The facts of advice.Pictures on the training images; empty where none decodes."""
    good = seen.good & seen.is_train
    if not good.any():
        return {}
    count, mean, square = seen.moments
    measured = bool((count > 0).all())
    mean = mean / np.maximum(count, 1)
    std = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    saturation = seen.statistics[good, survey.STATISTICS.index("saturation")]
    return {
        "channels": int(np.median(seen.channels[good])),
        "side": float(np.median(np.sqrt(seen.size[good].prod(axis=1)))),
        "coloured": float((saturation > COLOUR).mean()),
        "mean": mean.tolist() if measured else [],
        "std": std.tolist() if measured else [],
    }


# --- what the questions are put to --------------------------------------------------------------------------------


def _pairs(table: Any) -> list[tuple[str, str]]:
    return list(zip(table["id"].tolist(), table["file"].tolist(), strict=True))


def _look(config: Config, competition: Competition) -> Any:
    """images.look with the config's way of reading."""
    data = config.data
    channels = data.channels if data.channels not in (1, 3) else None  # colours are shown even where grey is read
    limit = round(data.megapixels * 1e6)
    return functools.partial(
        images.look, folder=competition.folder, reader=data.reader, limit_pixels=limit, channels=channels
    )


def _bytes(competition: Competition) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bytes and (N,) times of change in ns of all files; 0 where unknown, as is the time of a file in a zip."""
    specs = [*competition.train["file"], *competition.test["file"]]
    found = [facts or (0,) for facts in images.stats(competition.folder, specs)]
    times = [facts[1] if len(facts) == 3 else 0 for facts in found]
    return np.array([facts[0] for facts in found], dtype=np.float64), np.array(times, dtype=np.float64)


def _targets(config: Config, competition: Competition) -> tuple[np.ndarray | None, list[str], list[Finding]]:
    """The strata and their columns' names; where the table does not fit the task, a finding instead."""
    try:
        task = task_for(config, competition)
        strata = task.strata(competition.targets)
    except UserError as fault:
        advice = "correct task, data.target or the table; what follows looks at the pictures alone"
        return None, [], [Finding("targets", "fault", 1, f"the targets cannot be read: {fault}", advice)]
    labels = strata.ndim == 2 and np.issubdtype(strata.dtype, np.integer)
    own = labels and not competition.masks
    return strata, list(map(str, task.columns if own else competition.targets.columns)), []


def _folds(config: Config, competition: Competition) -> np.ndarray | None:
    try:
        return read_folds(config, competition)
    except UserError:  # not dealt yet, or for other rows: stage=split says more
        return None


def _leaks(
    config: Config, competition: Competition, seen: survey.Survey, strata: np.ndarray | None
) -> tuple[Sheet | None, list[Finding]]:
    if strata is None:
        return None, []
    train = slice(0, seen.train)
    sizes = np.unique(seen.size[train], axis=0, return_inverse=True)[1].astype(np.float64)
    weights, times = (values[train] for values in _bytes(competition))
    facts = [
        *leaks.name_facts(seen.ids[train], seen.ids[seen.train :]),
        leaks.Fact("width × height", sizes, False, leaks.SIZE_ADVICE),
        leaks.Fact("file bytes", weights, True, leaks.BYTES_ADVICE, "note", leaks.OF_CONTENT),
    ]
    if competition.masks:  # which level 2 predicts without such facts, and which follow from the content
        facts[-2:] = [leaks.Fact("width × height", sizes, False, leaks.SOURCE_ADVICE, "note", leaks.OF_CONTENT)]
    facts += [leaks.Fact("date of the file", times, True, leaks.DATE_ADVICE, "note")] if times.all() else []
    order, sorted_rows = leaks.row_order(strata)
    facts += [order] if config.data.train_csv else []  # else the table is in the order of the class folders by design
    sheet, found = leaks.leaks(facts, strata, np.flatnonzero(seen.good[train]))
    told = {item.title.partition(" alone")[0] for item in found}
    if sorted_rows and config.data.train_csv and order.name not in told:
        found.append(sorted_rows)
    return sheet, found


def _caption(seen: survey.Survey, competition: Competition, row: int) -> str:
    """``train 0007: cat``."""
    if row >= seen.train:
        return f"test {seen.name(row)}"
    cells = competition.targets.iloc[row]
    answer = str(cells.iloc[0]) if len(cells) == 1 else " ".join(f"{name}={cell}" for name, cell in cells.items())
    return f"train {seen.name(row)}: {answer if len(answer) <= 60 else answer[:59] + '…'}"


def _picture(look: Any, seen: survey.Survey, row: int) -> np.ndarray | None:
    try:
        pixels: np.ndarray = look(seen.files[row], at_least=page.THUMBNAIL).pixels
    except images.BrokenImage:
        return None
    return pixels
