"""The sections of report.html in their order. A new one is a function, facts → Section or None, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import artefacts
from pipeline.errors import UserError
from pipeline.report import answers, labels, mistakes, outside, standing
from pipeline.report.facts import Facts
from pipeline.report.page import Section, note, page

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    standing.leaderboard,
    outside.scores,
    standing.curves,
    standing.balance,
    answers.answers,
    answers.calibration,
    mistakes.mistakes,
    labels.suspicious,
    standing.views,
    standing.level2,
    labels.pseudo,
    outside.looks,
)


def document(facts: Facts) -> str:
    """The whole page. A section whose files are damaged says so in its place."""
    found = [section for make in SECTIONS if (section := made(make, facts)) is not None]
    competition, config = facts.competition, facts.config
    lead = (
        f"{config.task} · {config.metric} · {len(competition.train):,} training rows in {facts.count} folds · "
        f"{len(competition.test):,} test rows"
    )
    footer = (
        f"Made by stage=report of commit {artefacts.commit()}. OOF: each row is predicted by the member that did "
        "not learn it. Nested: by a level 2 fitted without its fold. Not CV: on rows that were looked at before."
    )
    return page(competition.name, lead, standing.tiles(facts), found, footer)


def made(make: Callable[[Facts], Section | None], facts: Facts) -> Section | None:
    """A section, or the reason why it is missing."""
    try:
        return make(facts)
    except UserError as fault:
        return Section(make.__name__, make.__name__.replace("_", " "), note(f"This part is missing: {fault}"))
