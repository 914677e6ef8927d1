"""A member's numbers, told to the tracker that the config names, from one process to the next; it stops no training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import artefacts, console, registry
from pipeline.config import Config, flatten, root

NAME = "tracker.json"  # in the member's folder: the tracker's call-string and the id of its run
LONGEST_REASON = 160


class Tracking:
    """The tracker of one member's training; it is opened when there is something to tell, and dropped if it fails."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.name = registry.parse(config.tracker).name
        self._tracker: Any = None
        self._off = not registry.facts("trackers", config.tracker).get("library")

    def add(self, history: Sequence[dict[str, float]]) -> None:
        """The last row of a history, one an epoch; all of them to a tracker's run that is new."""

        def tell() -> None:
            fresh = self._open()
            for row in history if fresh else history[-1:]:
                self._tracker.log(row, int(row["epoch"]))

        self._try(tell)

    def conclude(self, facts: dict[str, float]) -> None:
        """What is known of the trained member, to the run that its training had."""
        if self._known():
            self._try(lambda: (self._open(), self._tracker.conclude(facts)))
        self.close()

    def close(self) -> None:
        """Send what is left, and forget the tracker."""
        if self._tracker is not None:
            self._try(self._tracker.close)
        self._tracker = None

    def _known(self) -> str:
        """The id of the tracker's run that this member has, if any."""
        known = artefacts.recorded(self.folder / NAME) or {}
        return str(known.get("id", "")) if known.get("tracker") == self.config.tracker else ""

    def _open(self) -> bool:
        """Open the tracker unless it is; whether its run is new."""
        if self._tracker is not None:
            return False
        runs = root() / "runs"
        member = self.folder.relative_to(runs) if self.folder.is_relative_to(runs) else Path(self.folder.name)
        told = {key: value for key, value in flatten(self.config).items() if value not in ("", []) and key != "tracker"}
        known = self._known()
        opened = registry.build("trackers", self.config.tracker)(
            member.as_posix(), self.config.competition, self.folder, told, known
        )
        self._tracker = opened
        if opened.id != known:
            artefacts.write_json(self.folder / NAME, {"tracker": self.config.tracker, "id": opened.id})
        return opened.id != known

    def _try(self, work: Callable[[], Any]) -> None:
        if self._off:
            return
        try:
            work()
        except Exception as fault:  # a network, a server, a library: none of them is worth a training
            self._off, self._tracker = True, None
            said = str(fault).strip().splitlines()
            reason = re.sub(r"://[^/@\s]+@", "://", said[0] if said else "")[:LONGEST_REASON]
            console.warn(
                f"tracker={self.name} failed ({type(fault).__name__}{': ' if reason else ''}{reason}); "
                f"{self.folder.name} goes on without it, and log.csv has all numbers"
            )
