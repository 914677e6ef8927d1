"""List submissions with CV, public and private score, and propose the two for the end.

Asks Kaggle for new scores (``kaggle.refresh=auto``, ``always``, ``never``); works from what is recorded where that is
not to be.
"""

from __future__ import annotations

import math

from pipeline import kaggle_client, leaderboard, uploads
from pipeline.artefacts import shown, submissions_folder
from pipeline.config import Config
from pipeline.console import Outcome, say
from pipeline.errors import UserError
from pipeline.kaggle_client import Submitted
from pipeline.leaderboard import Entry, Finals

HEAD = ("submission", "CV", "public", "private", "public − CV", "date", "message")
LONGEST = 60  # characters of a message in the table


def run(config: Config) -> list[Outcome]:
    """Refresh, list, correlate, propose."""
    listed = None if config.kaggle.refresh == "never" else _asked(config)
    found = leaderboard.entries(config, listed)
    if not found:
        raise UserError(
            f"{shown(submissions_folder(config))} holds no submission, and Kaggle lists none that is known; make one "
            f"with ./run.sh stage=submit competition={config.competition}"
        )
    for line in _lines([HEAD, *(_cells(entry) for entry in found)]):
        say(line)
    say(_together(found))
    chosen = leaderboard.finals(config, found)
    for line in _proposal(config, chosen):
        say(line)
    finals = [entry for entry in (chosen.first, chosen.second) if entry] if chosen else []
    return [_outcome(entry, entry in finals) for entry in found]


def _asked(config: Config) -> list[Submitted] | None:
    """What Kaggle lists, with the records brought up to it; None where it cannot be asked, and need not be."""
    try:
        kaggle_client.slug_of(config)
        return uploads.refresh(config, kaggle_client.connect())
    except UserError as fault:
        if config.kaggle.refresh == "always":
            raise
        say(f"Kaggle is not asked, and scores are those recorded before: {fault}")
        return None


def _cv(entry: Entry) -> str:
    if not entry.cv:
        return "no CV"
    spread = "" if entry.cv["se"] is None else f" ± {entry.cv['se']:.4f}"
    return f"{entry.cv['value']:.4f}{spread} {entry.cv['kind']}"


def _number(value: float | None, form: str = ".5g") -> str:
    return "" if value is None else f"{value:{form}}"


def _cells(entry: Entry) -> tuple[str, ...]:
    state = {"": "not uploaded", "pending": "no score yet", "error": "not scored"}
    message = entry.message if len(entry.message) <= LONGEST else entry.message[:LONGEST] + "…"
    public = state[entry.status] if entry.public is None and entry.status in state else _number(entry.public)
    date = entry.date.replace("T", " ")[:16]
    return (entry.name, _cv(entry), public, _number(entry.private), _number(entry.gap, "+.4f"), date, message)


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows in columns; the ones that stay empty are left out."""
    kept = [place for place in range(len(HEAD)) if any(row[place] for row in rows[1:])]
    width = {place: max(len(row[place]) for row in rows) for place in kept}
    rows.insert(1, tuple("─" * width.get(place, 0) for place in range(len(HEAD))))
    return ["  ".join(row[place].ljust(width[place]) for place in kept).rstrip() for row in rows]


def _together(found: list[Entry]) -> str:
    pearson, spearman, count = leaderboard.correlation(found)
    if math.isnan(pearson):
        why = "they do not vary" if count >= leaderboard.LEAST else f"it takes {leaderboard.LEAST}"
        return f"correlation of CV and public score: none of {count} submissions with both ({why})"
    return f"correlation of CV and public score: {pearson:.2f} (of ranks {spearman:.2f}) over {count} submissions"


def _proposal(config: Config, chosen: Finals | None) -> list[str]:
    if chosen is None:
        return ["finals: none can be proposed, since no submission has a CV of this metric on all folds"]
    lines = [f"finals: 1. {_named(config, chosen.first)}: the best CV, {_cv(chosen.first)}"]
    second = chosen.second
    if second is None:
        return [*lines, "        2. there is no other submission with a CV and other rows"]
    reach = (chosen.first.cv or {}).get("se") or 0.0
    if chosen.good:
        why = f"of {chosen.good} within one standard error ({reach:.4f}) of it the one that differs most from it"
    else:
        why = f"the next by CV, though none is within one standard error ({reach:.4f}) of the best"
    return [
        *lines,
        f"        2. {_named(config, second)}: {why}, CV {_cv(second)}, difference {chosen.difference:.4f}",
        "        public scores have no say: they are of part of the test rows, and choosing by them fits these",
    ]


def _named(config: Config, entry: Entry) -> str:
    if entry.status:
        return entry.name
    command = f"./run.sh stage=submit source={entry.source} upload=true competition={config.competition}"
    return f"{entry.name} (not uploaded yet: {command})"


def _outcome(entry: Entry, final: bool) -> Outcome:
    cv, kind = _cv(entry), (entry.cv or {}).get("kind", "")
    nested = cv if kind == "nested" else ""
    note = f"public {_number(entry.public)}" if entry.public is not None else "not uploaded" if not entry.status else ""
    facts = {"cv": (entry.cv or {}).get("value"), "public": entry.public, "private": entry.private, "final": final}
    note = ", ".join(part for part in (note, "final" if final else "") if part)
    return Outcome(
        "leaderboard", entry.name, "" if nested else cv, nested, _number(entry.private), note=note, facts=facts
    )
