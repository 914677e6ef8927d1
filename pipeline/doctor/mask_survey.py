"""What masks cover, and which of them cannot be used: texts that leave their image, sizes, values, overlaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline import files, masks
from pipeline.competition import Competition
from pipeline.config import Config
from pipeline.console import progress
from pipeline.doctor.findings import EXAMPLES, Example, Finding, Sheet, counted
from pipeline.errors import UserError, some
from pipeline.images import BrokenImage
from pipeline.mask_tables import MaskTable
from pipeline.mask_truth import Told, without_masks
from pipeline.masks import MaskFiles
from pipeline.patterns import is_image

MISSING, DAMAGED, SIZE, VALUES, OVERLAP = "missing", "damaged", "size", "values", "overlap"
TITLES = {
    MISSING: ("masks missing", "training image has no mask", "training images have no mask"),
    DAMAGED: ("damaged masks", "image has a mask that cannot be read", "images have a mask that cannot be read"),
    SIZE: ("mask sizes", "mask differs from its image in size", "masks differ from their images in size"),
    VALUES: ("mask values", "mask has values that no class has", "masks have values that no class has"),
    OVERLAP: ("overlapping masks", "image has masks that share pixels", "images have masks that share pixels"),
}
ADVICE = {
    MISSING: "if nothing is to be found in them, say mask.missing=empty; else leave their rows out",
    DAMAGED: "correct the rows or files, or mask.base, mask.order and mask.empty; training stops at the first of them",
    SIZE: "correct the masks, or leave their images out; a mask is never resized to fit",
    VALUES: "correct mask.classes, mask.table, mask.void or mask.pixels, or the masks",
    OVERLAP: "say whose a shared pixel is: mask.overlap=first or mask.overlap=last",
}
Caption = Callable[[int], str]


@dataclass
class MaskSurvey:
    """What was seen of the masks of the training rows. faults: kind → row → what is wrong with it.

    shares: (N, C) float64, the share of each image that each class covers. objects: (N,) how many there are.
    """

    shares: np.ndarray
    columns: list[str]
    objects: np.ndarray
    faults: dict[str, dict[int, str]] = field(default_factory=dict)


def read(competition: Competition, told: Told) -> MaskSurvey:
    """Read every mask once, and go on where one is wrong."""
    count = len(competition.train)
    seen = MaskSurvey(competition.targets.to_numpy(dtype=np.float64), told.columns, np.zeros(count, dtype=np.int64))
    faults_of = _of_table if isinstance(told.source, MaskTable) else _of_file
    with progress("masks", count) as advance:
        for row in range(count):
            for kind, text in faults_of(told, row, seen):
                seen.faults.setdefault(kind, {})[row] = text
            advance(1)
    return seen


def _of_table(told: Told, row: int, seen: MaskSurvey) -> Iterator[tuple[str, str]]:
    source: MaskTable = told.source
    if not len(source.rows_of(row)):
        yield MISSING, source.ids[row]
        return
    try:
        source.areas(row)
    except UserError as fault:
        yield DAMAGED, str(fault)
        return
    seen.objects[row] = source.counts_of(row)
    if told.form == "masks":
        return  # planes of their own may share pixels
    strict = dataclasses.replace(source, form=dataclasses.replace(source.form, overlap="error"))
    try:
        strict.labels(row) if told.form == "objects" else strict.indices(row)
    except UserError as fault:
        yield OVERLAP, str(fault)


def _of_file(told: Told, row: int, seen: MaskSurvey) -> Iterator[tuple[str, str]]:
    source: MaskFiles = told.source
    if not source.specs[row]:
        yield MISSING, files.label(source.specs[row])
        return
    for name in files.parts(source.specs[row])[0]:
        try:
            raw = masks.read_raw(source.folder / name, limit_pixels=source.limit_pixels)
            size = tuple(map(int, source.sizes[row])) if source.sizes is not None else raw.values.shape[:2]
        except (BrokenImage, UserError) as fault:
            yield DAMAGED, str(fault)
            continue
        if raw.values.shape[:2] != size:
            own = f"{raw.values.shape[1]}×{raw.values.shape[0]}"
            yield SIZE, f"{name} of {own}, its image {size[1]}×{size[0]}"
            continue
        try:
            truth = masks.to_classes(raw, source.form)
        except ValueError as fault:
            yield VALUES, f"{name}: {fault}"
            continue
        if truth.dtype == np.int32:
            seen.objects[row] = len(np.unique(truth[truth > 0]))


# --- what is said -------------------------------------------------------------------------------------------------


def sheets(seen: MaskSurvey, told: Told, total: np.ndarray) -> list[Sheet]:
    """What each class covers, and how many images are empty. total: (N,) the share that anything covers."""
    rows = [_line(name, seen.shares[:, place]) for place, name in enumerate(seen.columns)]
    if len(rows) > 1:
        rows.append(_line("anything", total))
    empty = int((total == 0).sum())
    remark = f"{counted(empty, 'image is', 'images are')} empty, {empty / max(1, len(total)):.1%}"
    if told.form == "objects" and seen.objects.any():
        there = seen.objects[seen.objects > 0]
        remark += f"; {seen.objects.sum():,} objects, {np.median(there):.0f} in the median image, {there.max()} at most"
    head = ["class", "images", "share", "covers (median)", "5 %", "95 %", "of all images"]
    return [Sheet("Masks of the training images", head, rows, remark)]


def _line(name: str, shares: np.ndarray) -> list[str]:
    there = shares[shares > 0]
    low, middle, high = np.quantile(there, [0.05, 0.5, 0.95]) if len(there) else (0.0, 0.0, 0.0)
    line = [name, f"{len(there):,}", f"{len(there) / max(1, len(shares)):.1%}"]
    return [*line, *(f"{share:.2%}" for share in (middle, low, high, shares.mean() if len(shares) else 0.0))]


def findings(seen: MaskSurvey, config: Config, competition: Competition, caption: Caption) -> list[Finding]:
    """A finding for each kind of fault, and for images without a row."""
    settled = {MISSING: config.mask.missing == "empty", OVERLAP: config.mask.overlap != "error"}
    found = []
    for kind, rows in seen.faults.items():
        name, one, many = TITLES[kind]
        shown = list(rows)[:EXAMPLES]
        said = (
            some([competition.train["id"].iloc[row] for row in rows]) if kind == MISSING else next(iter(rows.values()))
        )
        asks = ADVICE[kind]
        if settled.get(kind):
            asks = f"as the config says: mask.{kind}={getattr(config.mask, kind)}"
        found.append(Finding(
            name, "note" if settled.get(kind) else "fault", len(rows), f"{counted(len(rows), one, many)}: {said}", asks,
            [Example([row], [caption(row)], "" if kind == MISSING else rows[row]) for row in shown],
        ))  # fmt: skip
    return [*found, *_left_out(config, competition)]


def _left_out(config: Config, competition: Competition) -> list[Finding]:
    """Images in the folder of the training images that no row names."""
    data = config.data
    if not data.train_csv:
        return []
    place = files.find(competition.folder, data.train_images)
    inside = [name for name in [*place.files, *place.members] if is_image(name)]
    inside = without_masks(competition.folder, inside, data.train_images, config.mask)
    named = {part for table in (competition.train, competition.test) for spec in table["file"] for part in
             files.parts(spec)[0]}  # fmt: skip
    left = [name for name in inside if place.prefix + name not in named]
    left = [name for name in left if not _is_mask(name)]
    if not left:
        return []
    return [Finding(
        "images without a row", "note", len(left),
        f"{counted(len(left), 'image')} of {data.train_images} {'has' if len(left) == 1 else 'have'} no row in "
        f"{data.train_csv}: {some(left)}",
        f"they are left out; if nothing is to be found in them, add rows with an empty text to {data.train_csv}",
    )]  # fmt: skip


def _is_mask(name: str) -> bool:
    return "mask" in name.rpartition("/")[0].lower()
