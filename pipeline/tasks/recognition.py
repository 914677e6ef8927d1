"""Retrieval of labels: test images search the training images, and answers are the identities found, best first.

Values are lists (``pipeline/lists.py``): of each row the identities nearest to it, with cosines. Where a competition
has a name for identities that training lacks, such as new_whale, that name stands in each list at a threshold, before
whatever is farther; level 2 fits it. Training rows of that name teach nothing, and nobody finds them: they are
different identities, of which one name says nothing. But they ask, in their own fold, and the right answer is that
name. So it is for a row whose identity its member learned from no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline import lists, ranking
from pipeline.errors import UserError, some
from pipeline.lists import LISTS, NEW, NOWHERE, Shelf
from pipeline.tasks.answers import Cells, rows_of
from pipeline.tasks.retrieval import Lists, Retrieval, judged_lists, objects

if TYPE_CHECKING:
    from pipeline.config import Lists as Settings


class Recognition(Retrieval):
    """Identities, best first; values are lists (N, 2n), columns are the identities that training knows."""

    space = lists.SIMILARITY
    form = LISTS

    def __init__(self, identities: Sequence[str], depth: int, new: str, settings: Settings) -> None:
        """depth: answers that the metric looks at. new: the name of identities that training lacks; "": none."""
        self.columns = [name for name in identities if name != new]
        self.outputs = len(self.columns)
        self.depth, self.new, self.settings = depth, new, settings
        self.names = np.array([*self.columns, new], dtype=np.str_)  # NEW is the last
        self._place = {**{name: place for place, name in enumerate(self.columns)}, **({new: NEW} if new else {})}
        parted = [name for name in self.names.tolist() if len(name.split()) > 1]
        if parted:
            raise UserError(
                f"task=retrieval(kind='labels') answers labels with blanks between them, but {some(map(repr, parted))} "
                "have blanks themselves; write them without"
            )
        if len(self.columns) < 2:
            raise UserError(f"training has {self.outputs} identities beside {new!r}; it needs two, set data.target")

    # --- truth ---

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """The identities, as text; "" of rows that have none."""
        names = super().strata(raw)
        return np.where(names == self.new, "", names)

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """(N,) int64, the identities' places; ``NEW`` of rows that have none."""
        return self.taught(raw)

    # --- the search ---

    def shelf(self, raw: pd.DataFrame, kept: np.ndarray) -> Shelf:
        """The kept (N,) training rows that have an identity, to be searched by others."""
        labels = self.taught(raw)
        rows = np.flatnonzero(kept & self.form.taught(labels))
        length = min(self.settings.length, len(self.columns))
        threshold = self.settings.new_at if self.new else NOWHERE
        return Shelf(rows, labels[rows], self.settings.nearest, length, threshold)

    # --- answers ---

    def judged(
        self, truth: np.ndarray, values: np.ndarray, rerankings: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One to find in each row, (N,) int64, and whether its answers are it, (N, depth) int8.

        truth (N,) codes, values (N, 2n) lists. A row of an unknown identity has none to find where no answer says so.
        Or truth (N,) of sets and values (N,) of lists, as a solution and a submission hold them.
        """
        if truth.dtype == object:
            return judged_lists(truth, values)
        relevant, answers = ranking.judge_labels(lists.best_first(values, self.depth), truth)
        return (relevant if self.new else np.where(truth == NEW, 0, relevant)), answers

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """One row a query: identities between blanks, best first, as many as the sample shows at most."""
        key, column = (str(name) for name in sample.columns[:2])
        found = lists.best_first(rows_of(ids, values, sample), self.length(sample))
        cells = [" ".join(self.names[row[row != lists.NOBODY]].tolist()) for row in found]
        return pd.DataFrame({key: sample.iloc[:, 0], column: cells})

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """Known identities between blanks, and the name of what is new."""
        known = frozenset(self.names[: None if self.new else -1].tolist())
        return {str(sample.columns[1]): Lists(known, self.length(sample), "known identities")}

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(Q,) sets of the identities of a query, mostly one; an identity that training lacks is new."""
        found = super().truth(solution, sample)
        if not self.new:
            return found
        return objects([frozenset(name if name in self._place else self.new for name in names) for names in found])
