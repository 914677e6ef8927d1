"""Uploads of submissions: what was sent to Kaggle and what came of it, in the ``uploads`` of a submission's json.

Each is a record: ``csv``, the digest of the file that was sent; ``slug``, ``message``, ``cv``; ``after``, the newest
submission before it; ``status``: sending, then pending, complete or error; ``ref``, ``date`` (Kaggle's, UTC),
``public``, ``private``, ``error``. A record stands before the file is sent, so that a try that was killed is found
again, not spent twice. The scores of the rows that stand there now are told beside ``uploads``, too.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

from pipeline import artefacts, console, submission
from pipeline.artefacts import shown
from pipeline.config import Config
from pipeline.console import say, warn
from pipeline.errors import UserError
from pipeline.kaggle_client import SITE, Client, Submitted, slug_of

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 2.0, 60.0, 1.5  # seconds between two looks for a score
LONGEST_MESSAGE = 500  # characters that Kaggle keeps

NEEDED = {"csv", "slug", "message", "status"}  # of a record, or it is none of ours

Record = dict[str, Any]


def upload(config: Config, client: Client, path: Path) -> Record:
    """Submit a checked csv, unless it was, and wait for its score; the record of it, which stands in its json too.

    Refuses a file that was submitted before (overwrite=true submits it again), and on a day whose tries are used up.
    """
    slug = slug_of(config)
    with artefacts.locked(path.parent):
        record = _standing(config, client, slug, path) or _sent(config, client, slug, path)
    return _awaited(config, client, slug, path, record)


def records(path: Path) -> list[Record]:
    """The uploads that the json beside a csv tells of, the oldest first."""
    found = (artefacts.recorded(path.with_suffix(".json")) or {}).get("uploads")
    return [one for one in found if isinstance(one, dict) and one.keys() >= NEEDED] if isinstance(found, list) else []


def cv_of(facts: dict[str, Any]) -> Record | None:
    """What a submission's facts say of its CV: value, se (None of one fold), kind, metric; None where it has none."""
    known: Record = next((facts[key] for key in ("nested", "cv") if isinstance(facts.get(key), dict)), {})
    value, se = known.get("value", known.get("score")), known.get("se")
    if not _finite(value):
        return None
    kind = str(known.get("kind", "nested"))
    return {"value": value, "se": se if _finite(se) else None, "kind": kind, "metric": facts.get("metric", "")}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def refresh(config: Config, client: Client) -> list[Submitted]:
    """Bring all records up to what Kaggle says; all submissions that it lists."""
    slug = slug_of(config)
    listed = client.submissions(slug)
    for path in submission.made(config):
        for record in records(path):
            if record.get("slug") == slug and (found := _match(record, path, listed)):
                _store(path, record, _told(record, found))
    return listed


# --- one upload ---------------------------------------------------------------------------------------------------


def _standing(config: Config, client: Client, slug: str, path: Path) -> Record | None:
    """The record of this very file, if it is on its way; UserError if it has been submitted."""
    digest = artefacts.file_digest(path)
    for place in dict.fromkeys([path, *submission.made(config)]):
        for record in records(place):
            if record.get("csv") != digest or record.get("slug") != slug or record.get("status") == "error":
                continue
            begun = record["status"] in ("sending", "pending") and place == path
            if record["status"] == "sending":  # a try that was cut short: did it arrive?
                found = _match(record, place, client.submissions(slug))
                if found is None:
                    continue
                record = _store(place, record, _told(record, found))
            if begun:
                say(f"{shown(path)} is submitted already (ref {record['ref']})")
                return record
            if not config.overwrite:
                score = f", public {record['public']:g}" if record.get("public") is not None else ""
                raise UserError(
                    f"{shown(path)} was submitted before, as {shown(place)} (ref {record['ref']}, "
                    f"{record['date'] or 'no date'}{score}); the same rows give the same score, and cost one of the "
                    "day's tries: set overwrite=true if you mean it"
                )
    return None


def _sent(config: Config, client: Client, slug: str, path: Path) -> Record:
    facts = artefacts.read_json(path.with_suffix(".json"))
    listed = client.submissions(slug)
    _check_day(config, client, slug, listed)
    known = [one.ref for one in listed] + [one.get("ref", 0) for one in records(path)]
    record: Record = {
        "csv": artefacts.file_digest(path), "slug": slug, "message": config.message or _message(path.stem, facts),
        "cv": cv_of(facts), "after": max(known, default=0), "status": "sending",
    }  # fmt: skip
    record["message"] = record["message"][:LONGEST_MESSAGE]
    kept = [one for one in records(path) if one.get("status") != "sending"]
    artefacts.write_json(path.with_suffix(".json"), {**facts, "uploads": [*kept, record]})
    ref = client.submit(slug, path, record["message"])
    say(f"{shown(path)} is submitted to {slug}{f' (ref {ref})' if ref else ''}: {record['message']}")
    return _store(path, record, {**record, "status": "pending", "ref": ref, "date": ""})


def _check_day(config: Config, client: Client, slug: str, listed: list[Submitted]) -> None:
    """UserError where the day's tries are known to be used up: by kaggle.daily_limit, or as Kaggle says."""
    limit, day = config.kaggle.daily_limit, client.today
    sent = sum(one.status != "error" and one.date[:10] == day for one in listed)
    left = limit - sent if limit else client.left_today(slug)
    if left is not None and left <= 0:
        allowed = f"kaggle.daily_limit={limit}" if limit else "Kaggle takes no more"
        raise UserError(
            f"{allowed}, and {slug} has {sent} submissions of today ({day}, UTC) already; nothing was sent: run the "
            "same command after 00:00 UTC" + (", or correct the limit" if limit else "")
        )


def _message(name: str, facts: dict[str, Any]) -> str:
    """What tells submissions apart on Kaggle's page: name, CV, what makes it of which runs, commit."""
    cv, members = cv_of(facts), [str(member) for member in facts.get("members", [])]
    spread = f" ± {cv['se']:.4f}" if cv and cv["se"] is not None else ""
    score = f"{cv['value']:.4f}{spread} {cv['kind']}" if cv else str(facts.get("note", "no CV"))
    runs = " + ".join(dict.fromkeys(re.sub(r"/(fold\d+|full)$", "", member) for member in members))
    made = f"{facts['method']} of {runs}" if facts.get("method") else runs
    return f"{name}: {score}; {made}; {facts.get('commit', 'unknown')}"


def _awaited(config: Config, client: Client, slug: str, path: Path, record: Record) -> Record:
    """The record once its score is there; pending where that takes longer than kaggle.wait, or the network fails."""
    pause, waited = FIRST_PAUSE, 0.0
    with console.progress(f"waiting for the score of {path.name}, s", round(config.kaggle.wait)) as advance:
        while True:
            try:
                found = _match(record, path, client.submissions(slug))
            except UserError as fault:  # the upload has arrived
                warn(str(fault))
                break
            if found:
                record = _store(path, record, _told(record, found))
            if record["status"] != "pending" or waited >= config.kaggle.wait:
                break
            if not waited:
                say(f"waiting for its score, {config.kaggle.wait:g} s at most")
            step = min(pause, config.kaggle.wait - waited)
            time.sleep(step)
            advance(round(waited + step) - round(waited))
            waited, pause = waited + step, min(pause * GROWTH, LONGEST_PAUSE)
    return _judged(config, slug, path, record)


def _judged(config: Config, slug: str, path: Path, record: Record) -> Record:
    if record["status"] == "error":
        raise UserError(
            f"Kaggle could not score {shown(path)} (ref {record['ref']}): {record['error'] or 'it does not say why'}; "
            f"see {SITE}/competitions/{slug}/submissions"
        )
    if record["status"] == "pending":
        say(f"Kaggle has no score yet; ask later with ./run.sh stage=leaderboard competition={config.competition}")
    else:
        say(f"Kaggle scores {shown(path)}: {scores(record)}")
    return record


def scores(record: Record) -> str:
    """The scores of a record as text."""
    told = {part: record.get(part) for part in ("public", "private")}
    return ", ".join(f"{part} {value:g}" for part, value in told.items() if value is not None) or "no score yet"


# --- records and Kaggle's list ------------------------------------------------------------------------------------


def _match(record: Record, path: Path, listed: list[Submitted]) -> Submitted | None:
    """The submission that a record is of: by its number, or else by what was sent since."""
    if record.get("ref"):
        return next((one for one in listed if one.ref == record["ref"]), None)
    since = [one for one in listed if one.ref > record.get("after", 0)]
    return next((one for one in since if (one.file, one.message) == (path.name, record["message"])), None)


def _told(record: Record, found: Submitted) -> Record:
    known = {"status": found.status, "ref": found.ref, "date": found.date, "error": found.error}
    return {**record, **known, "public": found.public, "private": found.private}


def _store(path: Path, old: Record, new: Record) -> Record:
    """Put a record in the place of what it was, and return it."""
    place = path.with_suffix(".json")
    if old != new:
        facts = artefacts.read_json(place)
        facts["uploads"] = [new if one == old else one for one in facts["uploads"]]
        if new["csv"] == facts.get("csv"):  # where whoever reads the json alone looks for them
            facts |= {part: new.get(part) for part in ("public", "private")}
        artefacts.write_json(place, facts)
    return new
