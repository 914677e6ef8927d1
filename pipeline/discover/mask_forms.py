"""How a folder tells masks: as run-length texts in a table, or as files beside the images."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from pipeline import mask_tables, mask_truth
from pipeline.config import Data, Mask
from pipeline.discover.columns import words
from pipeline.discover.draft import Draft
from pipeline.discover.folder import Folder, top
from pipeline.discover.matching import MASKED, MASKS, ROLES, Files, hint
from pipeline.discover.roles import FEW, LABELS, SAMPLES, find_sample, find_train, holds, said
from pipeline.errors import UserError, some
from pipeline.mask_tables import RleForm
from pipeline.patterns import COVERED, without_suffix
from pipeline.rle import EMPTY
from pipeline.tasks import facts

CODED = {"rle", "rles", "encodedpixels", "encoded", *MASKS}  # words of a column that holds masks
LONG = 8  # numbers of a text that is more than a box
VOIDS = {"void", "ignore", "ignored", "unlabelled", "unlabeled", "unknown"}  # classes whose pixels count nowhere
ENDS = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_gt", "_groundtruth")  # of masks beside their images
MOST_PLACES = 8  # folders of masks that are more than sites and parts
TRIED = 50  # mask files whose image is looked for
GIVEN = ("rle", "rows", "classes", "class_column", "separator", "void")  # of mask.*, what else follows from


@dataclass(frozen=True)
class Told:
    """Where the masks are. folder: the competition's, with one row an image and without the files of masks.

    form, texts: of run-length texts, and the table that holds them. place, specs: the folder of mask files and the
    files below it. listed: the folder whose images are the training rows, where no table lists them. sample: the
    sample submission as it stands. answer: what a row of it is, and the classes that it names.
    """

    folder: Folder
    form: RleForm | None = None
    texts: pd.DataFrame | None = None
    place: str = ""
    specs: list[str] = field(default_factory=list)
    listed: str | None = None
    sample: pd.DataFrame | None = None
    answer: RleForm | None = None


def find_masks(folder: Folder, draft: Draft) -> Told | None:
    """How masks are told; None where there are none, or the task on the command line has no use for them."""
    task = draft.given.get("task")
    if task and not facts(task).get("spatial"):
        return None
    images = [name for name in folder.images if not _is_mask(name)]
    beside = _beside(images)
    plain = [name for name in images if name not in beside]
    files = Files(plain)
    sample = draft.given.get("data.sample", find_sample(folder.tables, files))
    found = _by_texts(folder, files, sample, draft) or _by_files(folder, files, sample, beside, draft)
    if found is None and (task or _asks_masks(folder.tables.get(sample))):
        raise UserError(
            f"{f'task={task}' if task else f'{sample} asks for masks'}, but no table has a column of run-length texts "
            "of the training images, and no folder beside them is called masks; name them with mask.rle=COLUMN or "
            "mask.folder=FOLDER"
        )
    return found


def _is_mask(name: str) -> bool:
    return hint(top(name), "train") == MASKED


def _beside(images: Sequence[str]) -> set[str]:
    """Images called like another one in their folder, with such as ``_mask`` behind."""
    stems = {without_suffix(name) for name in images}
    ends = {name: end for name in images for end in ENDS if without_suffix(name).lower().endswith(end)}
    return {name for name, end in ends.items() if without_suffix(name)[: -len(end)] in stems}


def _asks_masks(sample: pd.DataFrame | None) -> bool:
    return sample is not None and any(_speaks(str(name)) for name in sample.columns[1:])


def _speaks(column: str) -> bool:
    return bool({*words(column), "".join(words(column))} & CODED)


# --- texts --------------------------------------------------------------------------------------------------------


def _by_texts(folder: Folder, files: Files, sample: str, draft: Draft) -> Told | None:
    """The table of run-length texts; of several the one that is called train, then the longest."""
    tables = {name: table for name, table in folder.tables.items() if name != sample and not said(name) & SAMPLES}
    if given := draft.given.get("data.train_csv"):
        tables = {given: tables[given]} if given in tables else {}
    forms = {name: _form(table, files, draft) for name, table in tables.items() if not said(name) & ROLES["test"]}
    named, asked = (
        draft.given.get("mask.rle"),
        [] if sample not in folder.tables else list(folder.tables[sample].columns[1:]),
    )
    fits = [
        (form.rle in asked, bool(said(name) & ROLES["train"]), len(tables[name]), name)
        for name, form in forms.items()
        if form is not None and (_speaks(form.rle) or form.rle == named or _is_long(tables[name][form.rle]))
    ]
    if not fits:
        return None
    name = max(fits)[-1]
    form, table = forms[name], tables[name]
    assert form is not None
    data, mask = Data(id=form.id, train_csv=name), _settings(form)
    rows = mask_truth.image_rows(data, mask, table)
    kept = {**folder.tables, name: rows}
    given_sample = folder.tables.get(sample)
    answer = None
    if given_sample is not None:
        answer = mask_truth.answer_form(mask, given_sample)
        kept[sample] = _one_row_an_image(given_sample, mask_truth.answer_ids(mask, given_sample))
    plain = replace(folder, images=files.images, tables=kept)
    return Told(plain, form, table, sample=given_sample, answer=answer)


def _settings(form: RleForm) -> Mask:
    return Mask(
        rle=form.rle, rows=form.rows, classes=list(form.classes), class_column=form.class_column,
        separator=form.separator, void=form.void,
    )  # fmt: skip


def _form(table: pd.DataFrame, files: Files, draft: Draft) -> RleForm | None:
    """How a table tells masks of the images there are; None if it does not."""
    given = draft.given.get("data.id")
    shares = {str(name): _share(table[name], files) for name in table.columns}
    if given not in shares:
        given = max(shares, key=lambda name: shares[name])
        if shares[given] <= FEW:
            return None
    others = [str(name) for name in table.columns if name != given]
    known = [image.rpartition("/")[2] for image in files.images]
    form = mask_tables.rle_form_of(table[[given, *others]], known)
    own = {key: draft.given[f"mask.{key}"] for key in GIVEN if f"mask.{key}" in draft.given}
    if own.get("rle") in others:
        form = form or RleForm(given, own["rle"])
    if form is None:
        return None
    if "classes" in own:
        own["classes"] = tuple(own["classes"])
    form = replace(form, **own)
    void = [name for name in form.classes if name.lower() in VOIDS]
    if void and not form.void and len(form.classes) > 1:
        form = replace(form, void=void[0], classes=tuple(name for name in form.classes if name != void[0]))
    return form


def _share(cells: pd.Series, files: Files) -> float:
    """The share of cells that are images, or images with a class behind."""
    ids = cells.astype(str).drop_duplicates().tolist()
    return max(files.share(ids), files.share([name.rpartition("_")[0] or name for name in ids]))


def _is_long(cells: pd.Series) -> bool:
    return bool(cells.astype(str).str.count(" ").max() >= LONG)


def _one_row_an_image(sample: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    first = str(sample.columns[0])
    rows = sample.iloc[: len(ids)].copy() if len(sample) >= len(ids) else sample.reindex(range(len(ids)))
    return rows.assign(**{first: list(ids)}).reset_index(drop=True)


# --- files --------------------------------------------------------------------------------------------------------


def _by_files(folder: Folder, files: Files, sample: str, beside: set[str], draft: Draft) -> Told | None:
    """The folder of mask files: one that is called so, the command line's, or the images' own."""
    asked = "mask.folder" in draft.given or "task" in draft.given
    if not asked and _labelled(folder, sample):  # masks beside the images of another task
        return None
    place = draft.given.get("mask.folder") or _mask_folder(folder, beside)
    if not place:
        return None
    prefix = place.rstrip("/") + "/"
    specs = [name[len(prefix) :] for name in folder.images if name.startswith(prefix)]
    if beside and not any(_is_mask(name) for name in folder.images):
        specs = [name[len(prefix) :] for name in sorted(beside) if name.startswith(prefix)]
    if not specs:
        raise UserError(f"mask.folder={place}, but there are no pictures in it; name the folder of the masks")
    masked = {prefix + spec for spec in specs}
    kept = [name for name in files.images if name not in masked]
    if not kept:
        raise UserError(f"mask.folder={place} holds all images there are; the folder of the masks is another")
    tables, answer = dict(folder.tables), None
    given_sample = tables.get(sample)
    if given_sample is not None:
        answer, ids = _answer(given_sample, Files(kept), draft)
        tables[sample] = _one_row_an_image(given_sample, ids)
    plain = replace(folder, images=kept, tables=tables)
    train = draft.given.get("data.train_csv", "")
    if not train and "data.train_csv" not in draft.given:
        with contextlib.suppress(UserError):  # which says that no table lists training rows: then the masks do
            train = find_train(plain, Files(kept), sample, draft)
    listed = None if train else draft.given.get("data.train_images") or _images_of(kept, specs)
    return Told(plain, place=place.rstrip("/"), specs=specs, listed=listed, sample=given_sample, answer=answer)


def _labelled(folder: Folder, sample: str) -> bool:
    """Whether a table has the columns that the sample asks for, or, without a sample, one that is called a label."""
    tables = {name: table for name, table in folder.tables.items() if name != sample}
    rows = [table for name, table in tables.items() if not said(name) & (ROLES["test"] | SAMPLES)]
    if sample in folder.tables:
        asked = folder.tables[sample]
        return not _asks_masks(asked) and any(holds(table, asked) for table in rows)
    return any(set(words(str(name))) & LABELS for table in rows for name in table.columns)


def _mask_folder(folder: Folder, beside: set[str]) -> str:
    """The folder that most mask files of training images lie in, "" for none."""
    found = [top(name) for name in folder.images if _is_mask(name)]
    found = [place for place in found if not _said(place) & ROLES["test"]] or ([] if found else list(map(top, beside)))
    count = Counter(_outermost(place) for place in found)
    heads = {place.rpartition("/")[0].rpartition("/")[0] for place in count}
    if len(count) > MOST_PLACES and len(heads) < len(count) / 2:
        raise UserError(
            f"masks lie in {len(count)} folders, such as {some(sorted(count))}, one for each image: several files an "
            "image are read only where each is a class; write them to a csv of run-length texts, one row an object, or "
            "number the objects of an image in one file"
        )
    return max(count, key=lambda place: (bool(_said(place) & ROLES["train"]), count[place]), default="")


def _outermost(place: str) -> str:
    """The folder called masks of those that a file lies in: ``masks`` of ``masks/site1``; the whole if none is."""
    pieces = place.split("/")
    named = [number for number, piece in enumerate(pieces) if set(words(piece)) & MASKS]
    return "/".join(pieces[: named[-1] + 1]) if named else place


def _said(place: str) -> set[str]:
    return {word.rstrip("0123456789") for piece in place.split("/") for word in words(piece)}


def _images_of(images: Sequence[str], specs: Sequence[str]) -> str:
    """The folder whose images the masks are of, as "." for the competition's own."""
    files = Files(images)
    sample = [without_suffix(spec) for spec in specs[:: max(1, len(specs) // TRIED)]]
    best, most = ".", (0, 0, 0)
    for place in files.folders("train"):
        stems = {without_suffix(name) for name in files.inside(place)} | set(map(_stem, files.inside(place)))
        found = sum(around(stem, stems) is not None for stem in sample)
        order = (found, hint(place, "train"), place.count("/"))
        if hint(place, "train") >= 0 and found and order > most:
            best, most = place, order
    return best


def around(stem: str, stems: set[str]) -> tuple[str, str] | None:
    """What stands before and behind the longest image's name in a mask's; None where there is no image's."""
    for length in range(len(stem), 0, -1):
        for start in range(len(stem) - length + 1):
            if stem[start : start + length] in stems:
                return stem[:start], stem[start + length :]
    return None


def _stem(name: str) -> str:
    return without_suffix(name.rpartition("/")[2])


def _answer(sample: pd.DataFrame, files: Files, draft: Draft) -> tuple[RleForm, list[str]]:
    """What a row of a sample submission is, and the images that it asks for, each once."""
    columns = [str(name) for name in sample.columns]
    ids = sample.iloc[:, 0].astype(str)
    text = next((name for name in columns[1:] if _speaks(name) or _holds_texts(sample[name])), columns[-1])
    form = RleForm(columns[0], text, separator=draft.given.get("mask.separator", "_"))
    heads = ids.str.rpartition(form.separator)
    if files.share(ids.tolist()) < COVERED <= files.share(heads[0].tolist()):
        classes = tuple(dict.fromkeys(heads[2]))
        return replace(form, rows="class", classes=classes), heads[0].drop_duplicates().tolist()
    named = [name for name in columns[1:] if name != text]
    if named:
        classes = tuple(dict.fromkeys(sample[named[0]].astype(str)))
        return replace(form, rows="class", classes=classes, class_column=named[0]), ids.drop_duplicates().tolist()
    rows = "image" if ids.is_unique else "object"
    return replace(form, rows=rows), ids.drop_duplicates().tolist()


def _holds_texts(cells: pd.Series) -> bool:
    filled = [text for text in cells.astype(str).str.strip() if text.lower() not in EMPTY]
    return bool(filled) and all(map(mask_tables.TEXT.fullmatch, filled[:50]))
