"""Retrieval: find images of the same identity, most of which training never showed; answers are ranked lists.

Each query of the sample submission searches the gallery: the test rows that the sample does not ask for, or, where it
asks for all, the other test rows. Values are embeddings. In cross-validation the rows of a fold are queries and gallery
at once, a pool that searches itself, since each member has its own space; identities (or the groups they come in) lie
in one fold whole, so that OOF imitates the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import clusters, forms, ranking, registry
from pipeline.errors import UserError, nearest, some
from pipeline.forms import CAMERA, IDENTITY, POOL
from pipeline.ranking import MISS, Search
from pipeline.registry import part
from pipeline.tasks.answers import Cells, rows_of

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config

NO_CAMERA = -1


@part(
    source="Musgrave et al. 2020 (A metric learning reality check); junk and pools as Zheng et al. 2015 (Market-1501)",
    by="kind",
    form={"ids": "embeddings", "labels": "lists"},
    seen="embeddings",
    learns="classes",
    scored="ranks",
    strata="classes",
    open_set=True,
    whole={"ids": True, "labels": False},
    loss="cross_entropy()",
    metric={"ids": "mean_average_precision(k=20)", "labels": "mean_average_precision(k=5)"},
    sure=0.5,
    split={"ids": "identity_kfold()", "labels": "new_identity_kfold()"},
    group_split={"ids": "group_kfold()", "labels": "stratified_group_kfold()"},
    without={"ids": (), "labels": ("pseudo", "distill")},
    never={
        "ids": ("new",),
        "labels": (
            "itself",
            "rerankings",
            "data.camera",
            "data.role",
            "data.gallery",
            "train.labels",
            "train.soft",
        ),
    },
    allowed={"kind": ("ids", "labels")},
)
def retrieval(
    config: Config, competition: Competition, *, kind: str = "ids", itself: bool = False, new: str = ""
) -> Retrieval:
    """Ranked ids of the images that show what a query shows, or the identities; data.target names those to train on.

    kind: what is answered, ids of a gallery, or labels: identities, found among the training images. itself: where all
    test rows search each other, a query stands first in its own answer. new: of labels, the answer for an identity that
    training lacks, such as new_whale; empty: there is none.
    """
    identities = _identities(config, competition)
    if kind == "labels":
        from pipeline.tasks.recognition import Recognition  # it stands on this module

        return Recognition(identities, _depth(config), new, config.lists)
    cameras = competition.column(config.data.camera, "data.camera") if config.data.camera else None
    found = competition.labelled(config.train.labels)
    depth, core = _depth(config), config.pseudo.core
    return Retrieval(identities, competition, cameras, depth, config.rerankings, itself, found, core)


def _depth(config: Config) -> int:
    """How many answers the metric looks at."""
    return int(registry.complete_arguments("metrics", config.metric).get("k", 1))


def _identities(config: Config, competition: Competition) -> list[str]:
    targets = competition.targets
    if targets.shape[1] > 1:
        raise UserError(f"data.target={','.join(targets.columns)}, but identities are one column; name it")
    cells = targets.iloc[:, 0]
    empty = competition.train["id"][(cells == "").to_numpy()]
    if len(empty):
        raise UserError(f"no {targets.columns[0]} for training ids {some(empty)}; fill in the identity or remove them")
    found = sorted(map(str, cells.unique()))
    if len(found) < 2:
        raise UserError(f"column {targets.columns[0]} has one identity, {found[0]!r}; set data.target")
    return found


class Retrieval:
    """Ids of a gallery, best first; values are embeddings (N, D), columns are the identities that training knows."""

    space = forms.EMBEDDING
    form = forms.EMBEDDINGS
    learns = forms.CLASSES
    agreement = False
    grades = None

    def __init__(
        self, identities: Sequence[str], competition: Competition, cameras: np.ndarray | None, depth: int,
        rerankings: Sequence[str], itself: bool, further: Sequence[str] = (), core: int = 2,
    ) -> None:  # fmt: skip
        """cameras: (N,) text of all training rows, or None. depth: answers that the metric looks at.

        further: names of a labels file; those that are no identities are classes behind them. Members number their
        clusters alike, so that a class is another cluster to each. core: of ``pseudo.core``.
        """
        self.identities = list(identities)
        self.columns = [*identities, *sorted({*further} - {*identities})]
        self.outputs = len(self.columns)
        self.target = str(competition.targets.columns[0])
        self.depth, self.rerankings, self.itself, self.core = depth, list(rerankings), itself, core
        self._place = {name: place for place, name in enumerate(self.columns)}
        self._cameras = None if cameras is None else np.unique(cameras, return_inverse=True)[1]
        self._tests = competition.test["id"].to_numpy(dtype=np.str_)

    # --- truth ---

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """The identities, as text."""
        return raw.iloc[:, 0].to_numpy(dtype=np.str_)

    def targets(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, 3) int64: identity, pool 0, camera."""
        found = np.zeros((len(raw), 3), dtype=np.int64)
        found[:, IDENTITY] = self.taught(raw)
        found[:, CAMERA] = NO_CAMERA if self._cameras is None else self._cameras[raw.index.to_numpy()]
        return found

    def taught(self, raw: pd.DataFrame) -> np.ndarray:
        """(N,) int64, the identities' places."""
        names = raw.iloc[:, 0].astype(str)
        unknown = list(dict.fromkeys(name for name in names if name not in self._place))
        if unknown:
            raise UserError(f"unknown identities {some(unknown)}{nearest(unknown[0], self.columns)}")
        return np.array([self._place[name] for name in names], dtype=np.int64)

    def soft(self, targets: np.ndarray) -> np.ndarray:
        """Places of identities → one-hot (N, C) float32; what is (N, C) stays."""
        return self.learns.dense(targets, self.outputs)

    # --- what is learned ---

    def fit(self, taught: np.ndarray) -> dict[str, Any]:
        """Nothing."""
        return {}

    def encode(self, taught: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Identities are learned as classes."""
        return taught

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Embeddings (B, D) tensor of any length → (B, D) float32 of length 1."""
        from torch.nn import functional

        return functional.normalize(outputs.float(), dim=1)

    # --- pseudo-labels ---

    def confident(
        self, values: np.ndarray, threshold: float, cap: int = 0, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images in clusters, at most cap of each (0: no cap), surest first; sure is the score of the nearest there."""
        rows, _, sure = self._clustered(values, threshold, cap)
        return rows, sure

    def _clustered(self, values: np.ndarray, threshold: float, cap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows (n,) ascending that ``confident`` names, their clusters (n,) int64, and how sure they are (n,)."""
        found, sure = clusters.clusters(values, self.rerankings, threshold, self.core)
        surest_first = np.argsort(-sure, kind="stable")
        kept = surest_first[found[surest_first] != clusters.ALONE]
        if cap:
            kept = kept[pd.Series(found[kept]).groupby(found[kept]).cumcount().to_numpy() < cap]
        rows = np.sort(kept).astype(np.int64)
        return rows, found[rows], sure[rows]

    def pseudo_labels(
        self, values: np.ndarray, threshold: float, cap: int = 0, soft: bool = False,
        agreement: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
        """Names of clusters under the target's name, as ``cluster-0017``; they are neither hard nor soft."""
        rows, found, _ = self._clustered(values, threshold, cap)
        stem = "cluster-"
        while any(name.startswith(stem) for name in self.identities):
            stem = f"test-{stem}"
        return rows, {self.target: [f"{stem}{number:04d}" for number in found.tolist()]}

    def read_labels(self, frame: pd.DataFrame) -> np.ndarray:
        """(n,) int64, the places of identities and clusters."""
        return self.taught(frame[[self.target]])

    # --- answers ---

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Embeddings stay: lists come of a search, see ``judged`` and ``submission``."""
        return values

    def judged(
        self, truth: np.ndarray, values: np.ndarray, rerankings: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many each row could find, (N,) int64, and its answers (N, n) int8, as ``ranking.judge`` says.

        truth (N, 3), values (N, D): each row searches the others of its pool, by these re-rankings, or the config's.
        Or truth (N,) of sets and values (N,) of lists, as a solution and a submission hold them.
        """
        if truth.dtype == object:
            return judged_lists(truth, values)
        calls = self.rerankings if rerankings is None else rerankings
        relevant, found = np.zeros(len(truth), dtype=np.int64), []
        for pool in np.unique(truth[:, POOL]):
            rows = np.flatnonzero(truth[:, POOL] == pool)
            search = ranking.reranked(Search(values[rows], values[rows], alone=True), calls)
            relevant[rows], own = ranking.judge_pool(search, truth[rows, IDENTITY], truth[rows, CAMERA], self.depth)
            found.append((rows, own))
        answers = np.full((len(truth), max(own.shape[1] for _, own in found)), MISS, dtype=np.int8)
        for rows, own in found:
            answers[rows, : own.shape[1]] = own
        return relevant, answers

    def submission(self, ids: np.ndarray, values: np.ndarray, sample: pd.DataFrame) -> pd.DataFrame:
        """One row a query: the ids of the gallery between blanks, best first, as many as the sample shows at most."""
        key, column = (str(name) for name in sample.columns[:2])
        asked, gallery = self._roles(sample)
        queries = rows_of(ids, values, sample)
        shelf = rows_of(ids, values, pd.DataFrame({key: gallery}))
        alone = len(asked) == len(gallery) and bool((asked == gallery).all())
        search = Search(shelf, shelf, alone=True) if alone else Search(queries, shelf)
        places = ranking.reranked(search, self.rerankings).nearest(self.length(sample))[1]
        lists = ranking.ranked_ids(places, gallery).tolist()
        if alone and self.itself:
            lists = [[own, *others][: self.length(sample)] for own, others in zip(asked.tolist(), lists, strict=True)]
        return pd.DataFrame({key: sample.iloc[:, 0], column: [" ".join(one) for one in lists]})

    def _roles(self, sample: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the queries, as the sample has them, and of the gallery; both are one where a pool searches itself."""
        asked = sample.iloc[:, 0].to_numpy(dtype=np.str_)
        gallery = self._tests[~np.isin(self._tests, asked)]
        return asked, gallery if len(gallery) else asked

    def length(self, sample: pd.DataFrame) -> int:
        """How many ids an answer has: as many as the longest of the sample, or as the metric looks at."""
        longest = max((len(cell.split()) for cell in sample.iloc[:, 1].astype(str)), default=0)
        return longest if longest > 1 else self.depth

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """Ids of the gallery between blanks."""
        gallery = frozenset(self._roles(sample)[1].tolist())
        return {str(sample.columns[1]): Lists(gallery, self.length(sample))}

    def answered(self, frame: pd.DataFrame) -> list[str]:
        """The first column."""
        return frame.iloc[:, 0].astype(str).tolist()

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(Q,) lists of ids."""
        return objects([cell.split() for cell in frame[str(sample.columns[1])].fillna("").astype(str)])

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> np.ndarray:
        """(Q,) sets of the ids that match; an empty one counts nowhere."""
        answer = str(sample.columns[1])
        cells = solution[answer if answer in solution.columns else solution.columns[1]].fillna("").astype(str)
        return objects([frozenset(cell.split()) for cell in cells])


@dataclass(frozen=True)
class Lists:
    """Different ids between blanks, at least one, at most so many. kind: of what these are, for the fault."""

    ids: frozenset[str]
    most: int
    kind: str = "ids of the gallery"
    text: bool = True

    @property
    def what(self) -> str:
        """The fault."""
        return f"holds no list of 1 to {self.most} different {self.kind}"

    def wrong(self, cells: pd.Series) -> pd.Series:
        """True where a cell is no such list."""
        return cells.fillna("").astype(str).map(lambda cell: not self._fits(cell.split())).astype(bool)

    def _fits(self, ids: list[str]) -> bool:
        return 0 < len(set(ids)) == len(ids) <= self.most and self.ids.issuperset(ids)


def judged_lists(truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sets (Q,) that match and lists (Q,) of answers → as ``ranking.judge``."""
    longest = max((len(answer) for answer in values), default=0)
    answers = np.full((len(values), max(1, longest)), MISS, dtype=np.int8)
    for row, (known, answer) in enumerate(zip(truth, values, strict=True)):
        answers[row, : len(answer)] = [name in known for name in answer]
    return np.array([len(known) for known in truth], dtype=np.int64), answers


def objects(values: list[Any]) -> np.ndarray:
    """(N,) of any objects, lists and sets among them."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
