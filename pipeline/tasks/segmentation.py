"""Segmentation: which pixels of an image are what; truth and values are read one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import registry, rle
from pipeline.errors import UserError, some
from pipeline.forms import CLASS_MASKS, LEVELS, MAPS, MASKS, OBJECTS, VOID, Form, levels
from pipeline.maps import Maps, Mean, Voted
from pipeline.registry import part
from pipeline.tasks.answers import Cells, Names

if TYPE_CHECKING:
    from pipeline.competition import Competition
    from pipeline.config import Config
    from pipeline.mask_truth import Told

QUARTERS = 4  # of coverage, that a split balances
POSSIBLE = 0.05  # least chance at which a pixel of a predicted map tells how sure its image is


@part(
    source="Long et al. 2015 (fully convolutional networks); objects: Caicedo et al. 2019 (Data Science Bowl 2018)",
    by="kind",
    form={"masks": "masks", "class_masks": "class_masks", "objects": "objects"},
    learns={"masks": "masks", "class_masks": "class_masks", "objects": "masks"},
    loss={
        "masks": "total(losses=('bce()','dice()'))",
        "class_masks": "total(losses=('cross_entropy()','dice_softmax()'))",
        "objects": "total(losses=('bce()','dice()'))",
    },
    metric={"masks": "dice()", "class_masks": "iou_mean()", "objects": "object_precision_over_iou()"},
    cut={"masks": "threshold()", "class_masks": "argmax()", "objects": "watershed()"},
    decoder="unet()",
    strata="labels",
    spatial=True,
    split="multilabel_stratified_kfold()",
    group_split="multilabel_stratified_group_kfold()",
    allowed={"kind": ("masks", "class_masks", "objects")},
)
def segmentation(config: Config, competition: Competition, *, kind: str = "masks") -> Segmentation:
    """A mask for each image: mask.* says how the truth is told.

    kind: masks are planes of their own, one or several; class_masks give each pixel one class; objects are told apart.
    """
    if competition.masks is None:
        raise UserError(f"task={config.task}, but there are no masks; set mask.rle=COLUMN or mask.folder=FOLDER")
    return Segmentation(kind, competition.masks, config.mask.empty, config.cut)


@dataclass(frozen=True)
class Answers:
    """Answers of N images in the shape of the truth, made when they are asked for."""

    count: int
    make: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.count

    def one(self, row: int) -> np.ndarray:
        """Bits, indices or labels of an image, without void."""
        return self.make(row)

    def __getitem__(self, rows: np.ndarray) -> Answers:
        rows = np.asarray(rows)
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Answers(len(places), lambda row: self.make(int(places[row])))


class Segmentation:
    """Masks of images; values are maps of probabilities (``pipeline/maps.py``), a plane for each output."""

    space = "probability"
    agreement = False
    grades = None

    def __init__(self, kind: str, told: Told, empty: str, cut: str) -> None:
        """told: the masks of the training rows, and how a submission tells them. empty: the text of no mask."""
        self.form: Form = MAPS[kind]
        self.learns: Form = MASKS if self.form is OBJECTS else self.form
        self.columns = ["inside", "border"] if self.form is OBJECTS else list(told.columns)
        self.outputs = len(self.columns)
        self.told, self.answer, self.empty, self.cut = told, told.answer, empty, cut

    @property
    def named(self) -> list[str]:
        """The names of an answer's numbers from 1 on, where they are classes."""
        if self.form is OBJECTS:
            return []
        return self.columns[1:] if self.form is CLASS_MASKS else self.columns

    # --- truth ---

    def strata(self, raw: pd.DataFrame) -> np.ndarray:
        """(N, C + 4) int64: which classes an image has, and in which quarter of the images its covered share lies."""
        found = (raw.to_numpy(dtype=np.float64) > 0).astype(np.int64)
        total = self.covered(raw)
        filled = total > 0
        ranks = np.zeros(len(total), dtype=np.int64)
        order = np.argsort(total[filled], kind="stable")
        ranks[np.flatnonzero(filled)[order]] = np.arange(len(order)) * QUARTERS // max(1, len(order)) + 1
        return np.hstack([found, ranks[:, None] == np.arange(1, QUARTERS + 1)]).astype(np.int64)

    def covered(self, raw: pd.DataFrame) -> np.ndarray:
        """(N,) float64: the share of an image that is no ground; of planes that overlap their sum."""
        shares = raw.to_numpy(dtype=np.float64)
        first = int(self.form is CLASS_MASKS and shares.shape[1] > 1)
        return np.asarray(shares[:, first:].sum(axis=1))

    def targets(self, raw: pd.DataFrame) -> Any:
        """The truth of these rows of the training table, read one image at a time."""
        return self.told.truth(raw.index.to_numpy(dtype=np.int64))

    def taught(self, raw: pd.DataFrame) -> Any:
        """The truth."""
        return self.targets(raw)

    def soft(self, targets: Any) -> Any:
        """Truth stays: what a network learns are planes, see ``planes``."""
        return targets

    def fit(self, taught: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def encode(self, taught: Any, state: dict[str, Any]) -> np.ndarray:
        """(N,) int64, the rows themselves: their planes are read with the images."""
        return np.asarray(taught.rows, dtype=np.int64)

    def planes(self, truth: np.ndarray) -> np.ndarray:
        """The truth of one image → (P, H, W) uint8 that a network learns: 0…254 are probabilities, 255 is void."""
        if self.form is OBJECTS:
            return _object_planes(truth)
        if self.form is CLASS_MASKS:
            found = (truth[None] == np.arange(self.outputs, dtype=np.uint8)[:, None, None]).astype(np.uint8) * LEVELS
            found[:, truth == VOID] = VOID
            return found
        return np.where(truth == VOID, VOID, truth * LEVELS).astype(np.uint8)

    # --- values ---

    def activate(self, outputs: Any, state: dict[str, Any]) -> Any:
        """Logits (B, P, H, W) tensor → probabilities (B, P, H, W) float32."""
        return outputs.float().softmax(dim=1) if self.learns.simplex else outputs.float().sigmoid()

    def confident(
        self, values: Maps, threshold: float, cap: int = 0, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images that are sure as a whole; at most cap of those that show the same classes (0: no cap), surest first.

        An image's confidence is the mean sureness of the pixels that some plane beside the ground's thinks possible,
        and 1 where there is none. Of objects the inside counts alone: a border is never sure.
        """
        seen = [self._looked_at(values.bands(row)) for row in range(len(values))]
        confidence = np.array([sure for sure, _ in seen], dtype=np.float32)
        surest_first = np.argsort(-confidence, kind="stable")
        kept = surest_first[confidence[surest_first] >= np.float32(threshold)]
        if cap:
            shown = pd.Series([seen[row][1] for row in kept.tolist()], dtype=object)
            kept = kept[shown.groupby(shown).cumcount().to_numpy() < cap]
        rows = np.sort(kept).astype(np.int64)
        return rows, confidence[rows]

    def _looked_at(self, bands: Iterable[np.ndarray]) -> tuple[float, str]:
        """(P, h, W) of one map → the confidence of an image, and the classes that it shows."""
        total, count, shown = 0.0, 0, np.zeros(self.outputs, dtype=bool)
        for band in bands:
            counted = band[:1] if self.form is OBJECTS else band
            beside = counted[1:] if self.learns.simplex else counted
            sureness = self._sureness(counted)[(beside > POSSIBLE).any(axis=0)]
            total, count = total + float(sureness.sum(dtype=np.float64)), count + len(sureness)
            shown[: len(beside)] |= (beside > 0.5).any(axis=(1, 2))
        return total / count if count else 1.0, str(np.flatnonzero(shown).tolist())

    def _sureness(self, map_: np.ndarray) -> np.ndarray:
        """(H, W): how sure each pixel is of what it is: of the likeliest class, or of the least sure plane."""
        return map_.max(axis=0) if self.learns.simplex else np.maximum(map_, 1 - map_).min(axis=0)

    def pseudo_labels(
        self, values: Maps, threshold: float, cap: int = 0, soft: bool = False, agreement: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Nothing beside the rows: ``pseudo_planes`` lie in files of their own."""
        return self.confident(values, threshold, cap, agreement)[0], {}

    def read_labels(self, frame: pd.DataFrame) -> Any:
        """Masks are in no csv."""
        raise UserError("pseudo-labels of masks are read as planes, not from a csv")

    def pseudo_planes(self, map_: np.ndarray, threshold: float, soft: bool) -> np.ndarray:
        """A predicted map (P, H, W) → planes to learn, as ``planes`` has them: void where a pixel is less sure."""
        if soft:
            found = levels(map_)
        elif self.learns.simplex:
            found = (map_ == map_.max(axis=0)).astype(np.uint8) * LEVELS
        else:
            found = (map_ > 0.5).astype(np.uint8) * LEVELS
        found[:, self._sureness(map_) < np.float32(threshold)] = VOID
        return found

    def decide(self, values: Any) -> Any:
        """Maps → answers by their own cut, else the config's; masks of a csv are answers already."""
        if not isinstance(values, Maps):
            return values
        cut = registry.build("cuts", values.cut or self.cut)()
        return Answers(len(values), lambda row: _cut(cut, values, row))

    def together(self, maps: Sequence[Maps], cut: str) -> Maps:
        """Members' maps of the same images → what is submitted: each cut alone, then their vote (law 2).

        A cut's numbers were chosen on maps of one member, and an average's are flatter. Objects have no vote: their
        maps are averaged before they are cut.
        """
        if self.form is OBJECTS:
            return Mean(maps, cut=cut)
        alone = registry.build("cuts", cut)()
        plain = "argmax()" if self.form is CLASS_MASKS else "threshold()"
        return Voted(maps, lambda values, row: self._marked(_cut(alone, values, row)), plain)

    def _marked(self, answer: np.ndarray) -> np.ndarray:
        """An answer as planes of 0 and 1."""
        if self.form is CLASS_MASKS:
            return answer[None] == np.arange(self.outputs, dtype=np.uint8)[:, None, None]
        return answer

    # --- submissions ---

    def submission(self, ids: np.ndarray, values: Any, sample: pd.DataFrame) -> pd.DataFrame:
        """One row an image, an image and class, or an object, as the competition tells masks."""
        answers, row_of = self.decide(values), {str(name): row for row, name in enumerate(ids)}
        wanted = self.told.ids(sample)
        missing = [name for name in wanted if name not in row_of]
        if missing:
            raise UserError(f"no prediction for {len(missing)} ids of the sample: {some(missing)}; predict again")
        rows = [row for name in wanted for row in self._rows(name, answers.one(row_of[name]))]
        form = self.answer
        of_class = [form.class_column] if form.rows == "class" and form.class_column else []
        return pd.DataFrame(rows, columns=[form.id, *of_class, form.rle]).astype(str)[list(map(str, sample.columns))]

    def parted(self, sample: pd.DataFrame, known: Iterable[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The sample's rows of known images, and those of the others, each answered with no mask."""
        form, there = self.answer, {*known}
        images = sample.iloc[:, 0].astype(str)
        images = images.map(lambda cell: cell.rpartition(form.separator)[0]) if form.joined else images
        found = images.isin(there).to_numpy()
        blank = sample[~found].drop_duplicates([name for name in sample.columns if name != form.rle])
        return sample[found], blank.assign(**{form.rle: self.empty})

    def _rows(self, name: str, answer: np.ndarray) -> Iterator[tuple[str, ...]]:
        """The rows of one image: its id, its class where there is a column of it, the text."""
        form = self.answer
        if form.rows == "object":
            found = rle.encode_instances(
                answer if self.form is OBJECTS else _pieces(answer), order=form.order, base=form.base,
                starts=form.starts,
            )  # fmt: skip
            yield from ((name, text) for text in found or [self.empty])
            return
        for place, plane in enumerate(self._bits(answer)):
            text = rle.encode(plane, empty=self.empty, order=form.order, base=form.base, starts=form.starts)
            if form.rows == "image":
                yield (name, text)
            elif form.class_column:
                yield (name, form.classes[place], text)
            else:
                yield (f"{name}{form.separator}{form.classes[place]}", text)

    def _bits(self, answer: np.ndarray) -> Iterable[np.ndarray]:
        """(H, W) of each plane that is submitted, where all but 0 is inside: the ground is no class of an answer."""
        if self.form is OBJECTS or (self.form is CLASS_MASKS and self.answer.rows == "image"):
            return [answer > 0]
        if self.form is CLASS_MASKS:
            first = len(self.columns) - max(1, len(self.answer.classes))
            return (answer == value for value in range(first, len(self.columns)))
        return answer

    def allowed(self, sample: pd.DataFrame) -> dict[str, Cells]:
        """Run-length texts in their column; known classes in the column of classes."""
        repeats = self.answer.rows == "object" or bool(self.answer.class_column)
        runs = Runs(self.answer.base, self.answer.starts, (*self.answer.empty, self.empty), repeats)
        found: dict[str, Cells] = {self.answer.rle: runs}
        if self.answer.class_column:
            found[self.answer.class_column] = Names(frozenset(self.answer.classes))
        return found

    def answered(self, frame: pd.DataFrame) -> list[str]:
        """The images that a csv speaks of, each once."""
        return self.told.ids(frame)

    def values(self, frame: pd.DataFrame, sample: pd.DataFrame) -> Any:
        """The masks of a submission, image by image in the order of ``told.ids``."""
        return self.told.read(frame, "the submission")

    def truth(self, solution: pd.DataFrame, sample: pd.DataFrame) -> Any:
        """The masks of a solution, image by image in the order of ``told.ids``."""
        return self.told.read(solution, "the solution")


@dataclass(frozen=True)
class Runs:
    """Run-length texts: pairs of a start and a length, ascending if absolute, or what stands for nothing.

    repeats: there is a row for each object, or for each class with a column of it, so that ids repeat.
    """

    base: int = 1
    starts: str = "absolute"
    empty: tuple[str, ...] = ("",)
    repeats: bool = False
    what: str = "holds no run-length text"
    text: bool = True

    def wrong(self, cells: pd.Series) -> pd.Series:
        """True where a cell is no text of runs, or runs overlap."""
        return cells.fillna("").astype(str).map(self._is_wrong).astype(bool)

    def _is_wrong(self, cell: str) -> bool:
        try:
            rle.parse(cell, base=self.base, starts=self.starts, empty=self.empty)
        except ValueError:
            return True
        return False


def _cut(cut: Any, values: Maps, row: int) -> np.ndarray:
    """The answer of one image, cut band by band where the cut can do that."""
    banded = getattr(cut, "banded", None)
    return cut(values.one(row)) if banded is None else banded(lambda: values.bands(row))


def _object_planes(labels: np.ndarray) -> np.ndarray:
    """(2, H, W) uint8 of (H, W) labels: the inside of objects, and the border between and around them."""
    from skimage.segmentation import find_boundaries

    void, whole = labels < 0, np.maximum(labels, 0)
    border = find_boundaries(whole, mode="thick")
    planes = np.stack([whole > 0, border]).astype(np.uint8) * LEVELS
    planes[:, void] = VOID
    return planes


def _pieces(answer: np.ndarray) -> np.ndarray:
    """(C, H, W) bits or (H, W) indices → labels of their connected pieces."""
    from skimage.measure import label

    planes = answer if answer.ndim == 3 else (answer > 0)[None]
    found, last = np.zeros(planes.shape[1:], dtype=np.int32), 0
    for plane in planes:
        own = label(plane, connectivity=1)
        found[(own > 0) & (found == 0)] = own[(own > 0) & (found == 0)] + last
        last += int(own.max())
    return found
