"""What masks mean: the keys mask.* that tell them, found out by reading some, and the task that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import mask_tables, mask_truth, masks, rle
from pipeline.config import Mask
from pipeline.discover.columns import words
from pipeline.discover.draft import Draft
from pipeline.discover.mask_forms import Told, around
from pipeline.discover.rows import Rows
from pipeline.discover.targets import Target
from pipeline.errors import UserError, some
from pipeline.images import BrokenImage
from pipeline.mask_tables import MaskTable, RleForm
from pipeline.masks import HeaderSizes, PixelForm, Raw
from pipeline.patterns import COVERED, without_suffix
from pipeline.rle import EMPTY

READ_IMAGES = 500  # whose texts are read
READ_FILES = 50
PLAINER = 1.5  # times as many neighbours along rows as along columns: the texts go by rows
PIECES = 1.1  # connected pieces a label of instances, at most
COUNTS = 4  # different numbers of objects that instances show at least
GROUND = "ground"
BINARY, INDICES, COLOURS, LABELS = masks.KINDS
KINDS = {"masks": "segmentation()", "class_masks": "segmentation(kind='class_masks')",
         "objects": "segmentation(kind='objects')"}  # fmt: skip


def settle_masks(told: Told, rows: Rows, draft: Draft) -> Target:
    """The keys of mask.*, and the task; what only the user can know is asked for."""
    kind, why = _of_texts(told, rows, draft) if told.form else _of_files(told, rows, draft)
    return Target([], str(draft.given.get("task", KINDS[kind])), why)


# --- texts --------------------------------------------------------------------------------------------------------


def _of_texts(told: Told, rows: Rows, draft: Draft) -> tuple[str, str]:
    form = told.form
    assert form is not None
    assert told.texts is not None
    ids = rows.table[rows.id].astype(str).tolist()
    table = mask_tables.mask_table(
        told.texts, replace(form, missing="empty"), ids, HeaderSizes(rows.folder.path, rows.specs), rows.train
    )
    sample = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), READ_IMAGES)).round().astype(int)).tolist()
    columns = some(told.texts.columns, 8)
    draft.set("data.train_csv", rows.train, f"{len(told.texts)} rows of {len(ids)} images, and the columns {columns}")
    if told.sample is not None:
        draft.set("data.sample", rows.sample, f"{len(told.sample)} rows: {some(told.sample.columns, 6)}")
    draft.set("mask.rle", form.rle, f"run-length texts of {rows.train}: {_shown(table)}")
    _settle_rows(form, table, told, draft)
    relative = _are_relative(table, sample)
    starts = str(draft.given.get("mask.starts", "relative" if relative else "absolute"))
    if relative or "mask.starts" in draft.given:
        draft.set("mask.starts", starts, "read as pixels some runs begin within the run before them")
    base = 0 if starts == "relative" else _base(table, sample, _answers(told))
    if base != 1 or "mask.base" in draft.given:
        draft.set("mask.base", base, "the first counts from 0" if relative else "some texts begin with pixel 0")
    form = replace(form, base=base, starts=starts)
    order = _order(table, sample, form)
    if order or "mask.order" in draft.given:
        draft.set("mask.order", order, "read by rows masks hang together, by columns they do not")
    empty = _empty(told, table)
    if empty or "mask.empty" in draft.given:
        draft.set("mask.empty", empty, "so the tables tell a mask without a pixel")
    if form.rows == "object":
        _settle_overlap(table, sample, form, draft)
        if "task" not in draft.given:
            draft.open["task"] = (
                "an image has several rows: objects that are told apart, or pieces of one mask? for pieces, as where "
                "the metric is Dice, say task=segmentation()"
            )
    _note_left_out(rows, draft)
    return _kind_of_texts(table, form)


def _kind_of_texts(table: MaskTable, form: RleForm) -> tuple[str, str]:
    filled = sum(text.strip().lower() not in EMPTY for text in map(str, table.texts))
    if form.rows == "object":
        return "objects", f"{filled} masks of {len(table)} images, one row an object"
    what = f"of {len(form.classes)} classes " if form.classes else ""
    return "masks", f"{filled} masks {what}of {len(table)} images, one row {_an(form.rows)} {form.rows}"


def _an(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _shown(table: MaskTable) -> str:
    filled = [text for text in map(str, table.texts) if text.strip().lower() not in EMPTY]
    return " ".join(filled[0].split()[:4]) + " …" if filled else "all empty"


def _settle_rows(form: RleForm, table: MaskTable, told: Told, draft: Draft) -> None:
    """What a row is, and its class."""
    if form.rows == "image" and "mask.rows" not in draft.given:
        return
    mean = (np.diff(table.borders)).mean() if len(table) else 0.0
    draft.set("mask.rows", form.rows, f"{len(table.texts)} rows of {len(table)} images, {mean:.1f} an image")
    if form.class_column:
        draft.set("mask.class_column", form.class_column, "tells the rows of an image apart")
    if form.classes:
        where = form.class_column or f"the end of {form.id}, behind {form.separator}"
        draft.set("mask.classes", list(form.classes), f"{where}: {_class_counts(form, table)}")
    if form.joined and form.separator != "_":
        draft.set("mask.separator", form.separator, "")
    if form.void:
        draft.set("mask.void", form.void, "a class of that name: its pixels count nowhere")


def _class_counts(form: RleForm, table: MaskTable) -> str:
    filled = np.array([str(text).strip().lower() not in EMPTY for text in table.texts], dtype=bool)
    counts = [int((filled & (table.classes == place)).sum()) for place in range(len(form.classes))]
    told = [f"{name} ({count} masks)" for name, count in zip(form.classes, counts, strict=True)]
    return some(told, 6)


def _runs(table: MaskTable, image: int, form: RleForm, pixels: int | None = None) -> list[np.ndarray]:
    """The runs of an image's rows; those of damaged texts are left to the loader, which says where they are."""
    found = []
    for row in table.rows_of(image).tolist():
        try:
            found.append(rle.parse(str(table.texts[row]), pixels=pixels, base=form.base, starts=form.starts))
        except ValueError:
            continue
    return [runs for runs in found if len(runs)]


def _are_relative(table: MaskTable, sample: Sequence[int]) -> bool:
    """Whether fewer texts can be read with starts of pixels than with starts behind the run before, which all can."""
    filled = sum(not table.is_empty(row) for image in sample for row in table.rows_of(image).tolist())
    counts = {}
    for starts in rle.STARTS:
        form = RleForm(base=0, starts=starts)
        counts[starts] = sum(len(_runs(table, image, form, int(np.prod(table.sizes[image])))) for image in sample)
    return counts["absolute"] < counts["relative"] == filled


def _base(table: MaskTable, sample: Sequence[int], answers: Sequence[str]) -> int:
    """0 where a text of the training table or of the sample submission begins with pixel 0, else 1."""
    starts, form = [text.split()[0] for text in answers if text.strip() not in EMPTY], RleForm(base=0)
    return int("0" not in starts and all(runs[0, 0] > 0 for image in sample for runs in _runs(table, image, form)))


def _order(table: MaskTable, sample: Sequence[int], form: RleForm) -> str:
    """ "row" where masks hang together by rows and not by columns, which square images do not tell; else blank."""
    along = np.zeros(2)
    for image in sample:
        height, width = table.sizes[image]
        if height != width:
            for runs in _runs(table, image, form):
                moved = [runs + np.array([stride, 0]) for stride in (height, width)]
                along += rle.intersections([runs], moved)[0]
    return "row" if along[1] > PLAINER * along[0] else ""


def _answers(told: Told) -> list[str]:
    """The texts of the sample submission."""
    return [] if told.sample is None or told.answer is None else told.sample[told.answer.rle].astype(str).tolist()


def _empty(told: Told, table: MaskTable) -> str:
    """What stands for a mask without a pixel, in the sample or the training table; blank where nothing does."""
    for texts in (_answers(told), table.texts.tolist()):
        found = Counter(text.strip() for text in map(str, texts) if text.strip().lower() in EMPTY)
        if found:
            return found.most_common(1)[0][0]
    return ""


def _settle_overlap(table: MaskTable, sample: Sequence[int], form: RleForm, draft: Draft) -> None:
    meet = sum(_overlap(_runs(table, image, form)) for image in sample)
    if meet:
        draft.set("mask.overlap", "first", f"objects share pixels in {meet} of {len(sample)} images looked at")
    elif "mask.overlap" in draft.given:
        draft.set("mask.overlap", draft.given["mask.overlap"], "")


def _overlap(objects: Sequence[np.ndarray]) -> bool:
    whole = np.concatenate([np.zeros((0, 2), dtype=np.int64), *objects])
    whole = whole[np.argsort(whole[:, 0], kind="stable")]
    return bool((whole[1:, 0] < whole[:-1].sum(axis=1)).any())


def _note_left_out(rows: Rows, draft: Draft) -> None:
    inside = rows.files.inside(rows.matched.folder)
    tested = {name for name in rows.tested.files if name}
    prefix = "" if rows.matched.folder in ("", ".") else rows.matched.folder + "/"
    known = {*rows.matched.files, *tested, *(f"{rows.tested.folder}/{name}" for name in tested)}
    left = [name for name in inside if prefix + name not in known]
    if left:
        draft.notes.append(
            f"{len(left)} images of {rows.matched.folder or '.'} have no row in {rows.train} and are left out: "
            f"{some(left)}; if nothing is to be found in them, add rows with an empty text"
        )


# --- files --------------------------------------------------------------------------------------------------------


def _of_files(told: Told, rows: Rows, draft: Draft) -> tuple[str, str]:
    ids = rows.table[rows.id].astype(str).tolist()
    patterns = draft.given.get("mask.files", _patterns(ids, told.specs))
    found = mask_truth.mask_files(rows.folder.path, Mask(folder=told.place, files=list(patterns), missing="empty"), ids)
    there = [spec for spec in found if spec]
    if not there:
        raise UserError(
            f"no file in {told.place} is called like one of {len(ids)} training images: images {some(ids)}, masks "
            f"{some(told.specs)}; say how masks are called, such as 'mask.files={{id}}_mask.png'"
        )
    draft.set("mask.folder", told.place, f"masks of {len(there)} of {len(ids)} training images")
    if patterns or "mask.files" in draft.given:
        draft.set("mask.files", list(patterns), f"how the masks are called, such as {some(told.specs, 1)}")
    _ask_missing([one for one, spec in zip(ids, found, strict=True) if not spec], len(ids), told, draft)
    sample = [there[place] for place in range(0, len(there), max(1, -(-len(there) // READ_FILES)))]
    if len(patterns) > 1:
        draft.set("mask.pixels", BINARY, "one file a class")
        names = [_between(pattern, patterns) for pattern in patterns]
        draft.set("mask.classes", names, "of the files' names, in their order")
        _settle_answer(told, draft, names)
        return "masks", f"{len(there)} images with {len(patterns)} mask files each, in {told.place}"
    return _of_pixels(told, rows, sample, draft)


def _of_pixels(told: Told, rows: Rows, sample: Sequence[str], draft: Draft) -> tuple[str, str]:
    """What the pixels of one file an image mean."""
    form, values = _pixel_form(rows, sample, draft)
    draft.set("mask.pixels", form.kind, f"{len(sample)} files looked at: {values}")
    kind = str(draft.value("mask.pixels"))
    if form.on > 1:
        draft.set("mask.least", form.on, "black and white with greys between, as resizing or JPEG leaves them")
    if form.void is not None and kind != LABELS:
        draft.set("mask.void", _code(form.void), "stands apart from the classes: it counts nowhere")
    if kind == LABELS:
        draft.set("mask.rows", "object", "each label of a file is an object")
        return "objects", f"files in {told.place} number objects"
    if kind == BINARY:
        _settle_answer(told, draft, [])
        return "masks", f"files in {told.place} are black but for the mask"
    names, table = _class_names(told, rows, form)
    draft.set("mask.classes", names, "in the order of their values, the ground first")
    if table:
        draft.set("mask.table", [_code(one) for one in table], "of each class, in the order of mask.classes")
    _settle_answer(told, draft, names[1:])
    return "class_masks", f"files in {told.place} give each pixel one of {len(names)} classes"


def _ask_missing(absent: Sequence[str], count: int, told: Told, draft: Draft) -> None:
    if "mask.missing" in draft.given:
        draft.set("mask.missing", draft.given["mask.missing"], "")
    elif absent:
        draft.ask(
            "mask.missing",
            f"{len(absent)} of {count} training images have no mask in {told.place}: {some(absent)}; is there nothing "
            "to be found in them (empty), or are masks missing?",
            "mask.missing=empty",
        )


def _patterns(ids: Sequence[str], specs: Sequence[str]) -> list[str]:
    """How mask files are called; none where they are called as their images."""
    stems = {without_suffix(name) for name in ids}
    direct = sum(without_suffix(spec) in stems or without_suffix(spec.rpartition("/")[2]) in stems for spec in specs)
    if direct >= COVERED * min(len(specs), len(stems)):
        return []
    parts: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        found = around(without_suffix(spec), stems)
        if found:
            parts.setdefault(found, []).append(spec)
    most = max(map(len, parts.values()), default=0)
    kept = sorted(ends for ends, fits in parts.items() if 2 * len(fits) > most)
    return [f"{before}{{id}}{after}{_suffix(parts[before, after])}" for before, after in kept]


def _suffix(specs: Sequence[str]) -> str:
    suffixes = {spec[len(without_suffix(spec)) :] for spec in specs}
    return suffixes.pop() if len(suffixes) == 1 else ""


def _between(pattern: str, patterns: Sequence[str]) -> str:
    """The words of a pattern that the others lack."""
    others = [set(words(other.replace("{id}", " "))) for other in patterns if other != pattern]
    own = [word for word in words(pattern.replace("{id}", " ")) if not all(word in other for other in others)]
    return "_".join(own) or pattern.replace("{id}", "")


# --- pixels -------------------------------------------------------------------------------------------------------


def _pixel_form(rows: Rows, sample: Sequence[str], draft: Draft) -> tuple[PixelForm, str]:
    """What pixels mean, and the values that were seen, in words."""
    if draft.given.get("mask.pixels") in (BINARY, LABELS):
        return PixelForm(draft.given["mask.pixels"]), "not asked"
    try:
        form = masks.form_of(_raws(rows, sample))
    except UserError:
        if not _are_objects(_raws(rows, sample)):
            raise
        return PixelForm(LABELS), "each value is one piece, and there are many"
    if form.kind in (INDICES, COLOURS) and _are_objects(_raws(rows, sample)):
        return PixelForm(LABELS), "each value is one piece, and images have different numbers of them"
    if form.kind == BINARY:
        return form, "black, and one value more"
    listed = some([_code(one) for one in form.table], 8) if form.table else f"0 to {form.classes - 1}"
    return form, f"{form.classes} values, {listed}"


def _raws(rows: Rows, sample: Sequence[str]) -> Iterator[Raw]:
    for spec in sample:
        try:
            yield masks.read_raw(rows.folder.path / spec)
        except BrokenImage:
            continue  # the loader says which


def _are_objects(raws: Iterator[Raw]) -> bool:
    """Whether values number objects: 1, 2, … without a gap, each one piece, and not as many in every file."""
    from skimage.measure import label

    pieces, numbers = 0, []
    for raw in raws:
        values = raw.values
        if values.ndim == 3:
            values = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])[: values.shape[2]]
        found = np.unique(values[values != 0])
        if raw.values.ndim == 2 and len(found) and found[-1] != len(found):
            return False
        pieces += int(label(values, background=0, connectivity=2).max())
        numbers.append(len(found))
    return pieces <= PIECES * sum(numbers) and len(set(numbers)) >= COUNTS


def _code(one: Any) -> str:
    """A value, or a colour as r-g-b."""
    return str(one) if isinstance(one, int) else "-".join(map(str, one))


def _class_names(told: Told, rows: Rows, form: PixelForm) -> tuple[list[str], list[Any]]:
    """The names of the classes with the ground, and the values or colours that stand for them."""
    table = list(form.table)
    for frame in rows.folder.tables.values():
        columns = {str(name).strip().lower(): name for name in frame.columns}
        if form.kind == COLOURS and {"r", "g", "b"} <= columns.keys() and len(columns) == 4:
            name = next(columns[key] for key in columns if key not in "rgb")
            colours = [tuple(map(int, cells)) for cells in frame[[columns[key] for key in "rgb"]].to_numpy()]
            seen = {(one,) * 3 if isinstance(one, int) else tuple(one) for one in table}
            if seen <= set(colours):
                return frame[name].str.strip().tolist(), colours
    asked = list(told.answer.classes) if told.answer and told.answer.rows == "class" else []
    count = max(form.classes, len(asked) + 1) if not table else form.classes
    named = asked if len(asked) == count - 1 else [str(number) for number in range(1, count)]
    return [GROUND, *named], table


def _settle_answer(told: Told, draft: Draft, names: Sequence[str]) -> None:
    """What a row of the submission is: as the sample has it; without one a row for each class there is."""
    answer = told.answer or RleForm(rows="class" if names else "image", classes=tuple(names))
    if answer.rows == "image":
        if len(names) > 1:
            draft.open["mask.rows"] = (
                f"the sample has one row an image, but there are {len(names)} classes: all of them are answered as "
                "one mask; mask.rows=class tells them apart"
            )
        return
    where = "as the sample has it" if told.answer else "no sample: a row for each class, its name behind the id"
    draft.set("mask.rows", answer.rows, f"what a row of the submission is, {where}")
    if answer.class_column:
        draft.set("mask.class_column", answer.class_column, "of the sample: the class of a row")
    if not names and answer.classes:
        draft.set("mask.classes", list(answer.classes), "as the sample names them")
