"""A competition as its folder holds it: the rows to train on, the rows to predict, the sample submission.

Nothing here reads the solution file; only ``stage=score`` may.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import absorbed, artefacts, files, longform, mask_truth, queries, registry, tasks, unlabelled
from pipeline.artefacts import shown
from pipeline.config import Config, Data, Mask, root
from pipeline.console import say, warn
from pipeline.errors import UserError, nearest, some
from pipeline.longform import Long
from pipeline.mask_truth import Told
from pipeline.masks import HeaderSizes
from pipeline.patterns import classes_of, is_image
from pipeline.tables import check_ids, chosen, read_table


@dataclass(frozen=True)
class Competition:
    """The tables of one competition; every cell is text as it stands in the csv. Shared: do not change in place.

    train, test: columns id, file; file is what ``files.resolve`` gave. targets: the target columns of the training
    rows under their own names; of masks the share of the image that each class covers. table, test_table: all columns
    of the train and test csv, row by row. sample: the sample submission, its first column the ids. fingerprint: changes
    when a table or an image (its name or size) does. masks: of the training rows, where the competition has such. With
    data.gallery its rows follow those of the test in test and test_table. unlabelled: columns id, file of the images of
    data.unlabelled, no rows where there are none; they are no part of the fingerprint, see ``unlabelled.digest``.
    absorbed: so many of the training rows, the last ones, are of labels/<name>.csv; their images may be test images.
    long: where the sample has a row for each column of an image; the tables here have one row an image all the same.
    """

    name: str
    folder: Path
    train: pd.DataFrame
    targets: pd.DataFrame
    test: pd.DataFrame
    sample: pd.DataFrame
    table: pd.DataFrame
    test_table: pd.DataFrame
    fingerprint: str
    masks: Told | None = None
    unlabelled: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"id": [], "file": []}, dtype=str))
    absorbed: int = 0
    long: Long | None = None

    def asked(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a submission as the sample has them."""
        return self.long.answers(frame) if self.long else frame

    def column(self, name: str, key: str) -> np.ndarray:
        """(N,) text: a column of the training table; UserError, naming the key, where it is absent or has gaps."""
        if name not in self.table.columns:
            raise UserError(
                f"{key}={name}, but the training table has no such column; its columns: {some(self.table.columns, 20)}"
                f"{nearest(name, map(str, self.table.columns))}"
            )
        cells = self.table[name]
        empty = self.train["id"][(cells.str.strip() == "").to_numpy()]
        if len(empty):
            raise UserError(f"the training table has no {name} ({key}) for ids {some(empty)}; fill them in")
        return cells.to_numpy(dtype=np.str_)

    def labelled(self, labels: str) -> list[str]:
        """The names under the target's column of a labels file, sorted; none where the path (train.labels) is empty."""
        if not labels:
            return []
        target = str(self.targets.columns[0])
        content = read_table(root() / labels, {target: "data.target"}, key="train.labels")
        return sorted(content[target].str.strip().unique())


# --- tables and images --------------------------------------------------------------------------------------------


def load(config: Config, forgiving: bool = False) -> Competition:
    """Read and check the competition that the config names; made first where data.make says how.

    forgiving: masks that are missing or damaged count as empty, so that stage=check can name all of them.

    Raises UserError for a missing folder, csv, column or image, an empty csv and duplicate ids.
    """
    folder = _folder(config)
    data = config.data
    names = [data.train_csv, data.test_csv, data.sample, data.train_images, data.test_images, data.gallery]
    names += [config.mask.folder, *([unlabelled.base(data)] if data.unlabelled else [])]
    names.append(str(absorbed.path_of(config.competition)))
    changed = tuple(os.stat(folder / name).st_mtime_ns if (folder / name).exists() else 0 for name in names)
    known = tasks.facts(config.task)
    form = str(known["form"]) if known.get("spatial") else ""
    if form and not mask_truth.is_told(config.mask):
        raise UserError(f"task={config.task}, but there are no masks; set mask.rle=COLUMN or mask.folder=FOLDER")
    return _load(config.competition, folder, _plain(data), changed, _plain(config.mask), form, forgiving and bool(form))


def _plain(settings: Any) -> tuple[Any, ...]:
    values = dataclasses.astuple(settings)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _settings(kind: type[Any], fields: tuple[Any, ...]) -> Any:
    """The inverse of ``_plain``."""
    values = (list(value) if isinstance(value, tuple) else value for value in fields)
    return kind(**dict(zip(kind.__dataclass_fields__, values, strict=True)))


@functools.lru_cache(maxsize=4)  # stage=all asks for it in every step
def _load(
    name: str, folder: Path, fields: tuple[Any, ...], changed: tuple[int, ...], mask_fields: tuple[Any, ...], form: str,
    forgiving: bool,
) -> Competition:  # fmt: skip
    """form: of the truth, if it is spatial; else empty."""
    data, mask = _settings(Data, fields), _settings(Mask, mask_fields)
    if data.packed:
        return _packed(name, folder, data, mask, form)
    long = None if form else longform.form(folder, data)
    whole = table = _mask_rows(folder, data, mask) if form else _train_table(folder, data, long)
    if form and mask.rle:
        table = mask_truth.image_rows(data, mask, whole)
    check_ids(table[data.id], shown(folder / data.train_csv))
    found = _images(folder, data, data.train_images, table, data.train_csv)
    train = pd.DataFrame({"id": table[data.id], "file": found}, dtype=str)
    sample, test_table, test = _tests(folder, data, mask if form else None, long)
    both = train["file"][train["file"].isin(test["file"])]
    if len(both):
        raise UserError(
            f"{name}: {len(both)} images are training and test rows at once: {some(map(files.label, both))}; "
            "remove them from one table, or correct data.test_csv, data.sample or data.test_images"
        )
    print_, more = _print(folder, data, [*train["file"], *test["file"]]), unlabelled.rows(folder, data, train, test)
    if form:
        told, targets = _masks(folder, data, mask, form, (train, whole, test, sample), forgiving)
        print_ = artefacts.fingerprint(print_, mask_truth.digest(told.source, mask))
        return Competition(name, folder, train, targets, test, sample, table, test_table, print_, told, more)
    targets = table[data.target].apply(lambda cells: cells.str.strip())  # "cat " is no other class than "cat"
    made = Competition(
        name, folder, train, targets, test, sample, table, test_table, print_, unlabelled=more, long=long
    )
    labels = absorbed.path_of(name)
    return _with_absorbed(made, data, labels) if data.absorbed and labels.is_file() else made


def _with_absorbed(competition: Competition, data: Data, path: Path) -> Competition:
    """The competition with the rows of labels/<name>.csv behind its training rows, and told as labelled."""
    pools = [competition.test, competition.unlabelled]
    pool = {name: file for frame in pools for name, file in zip(frame["id"], frame["file"], strict=True)}
    new = absorbed.read(path, data, competition.train["id"], pool)
    told = competition.test_table.set_index(data.id).reindex(new[data.id]).reset_index().fillna("")
    own = new.drop(columns=[absorbed.FOLD, absorbed.ORIGIN, absorbed.DIGEST, "file"])
    shared = [name for name in competition.table.columns if name in told.columns or name in own.columns]
    both = {name: frame[name] for frame in (told, own) for name in shared if name in frame.columns}
    rows = pd.DataFrame({name: cells.where(cells != "", told.get(name, cells)) for name, cells in both.items()})
    train = pd.DataFrame({"id": new[data.id], "file": new["file"]})
    targets = new[data.target].apply(lambda cells: cells.str.strip())

    def joined(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([one, other], ignore_index=True).fillna("")

    labelled = competition.unlabelled["id"].isin(new[data.id])
    listing = files.listing(competition.folder, new["file"].tolist())
    return dataclasses.replace(
        competition, train=joined(competition.train, train), targets=joined(competition.targets, targets),
        table=joined(competition.table, rows), unlabelled=competition.unlabelled[~labelled].reset_index(drop=True),
        fingerprint=artefacts.fingerprint(competition.fingerprint, artefacts.file_digest(path), listing),
        absorbed=len(new),
    )  # fmt: skip


def _packed(name: str, folder: Path, data: Data, mask: Mask, form: str) -> Competition:
    """A competition in a package: its training rows are ids and targets, and test images may be missing or broken."""
    table = read_table(root() / data.packed, {data.id: "data.id"}, key="data.packed")
    train = pd.DataFrame({"id": table[data.id], "file": ""}, dtype=str)
    long = None if form else longform.form(folder, data)
    sample, test_table, test = _tests(folder, data, mask if form else None, long)
    names = mask_truth.columns(mask, form) if form else data.target
    told = None
    if form:
        sizes = HeaderSizes(folder, test["file"].tolist(), data.reader, round(data.megapixels * 1e6))
        faults = {row: reason for row in range(len(test)) if (reason := sizes.fault(row))}
        if faults:
            named = some(f"{test['id'][row]} ({reason})" for row, reason in faults.items())
            warn(f"{len(faults)} of {len(test)} test images cannot be read: {named}; they are answered with no mask")
            kept = ~test.index.isin(list(faults))
            test, test_table = test[kept].reset_index(drop=True), test_table[kept].reset_index(drop=True)
        answer, places = mask_truth.answer_form(mask, sample), {one: row for row, one in enumerate(test["id"])}
        sizes = HeaderSizes(folder, test["file"].tolist(), data.reader, round(data.megapixels * 1e6))
        told = Told(form, names, None, answer, places, sizes)
    print_ = artefacts.fingerprint(
        artefacts.file_digest(root() / data.packed), _print(folder, data, list(test["file"]))
    )
    return Competition(name, folder, train, table[names], test, sample, table, test_table, print_, told, long=long)


def packed(competition: Competition, data: Data) -> pd.DataFrame:
    """What ``data.packed`` holds of a competition: ids, targets, and the columns that its task reads."""
    found = pd.concat([competition.train["id"].rename(data.id), competition.targets], axis=1)
    return found.assign(**{name: competition.table[name] for name in [data.camera] if name})


def _tests(
    folder: Path, data: Data, mask: Mask | None, long: Long | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The sample submission, the test table with the rows of the gallery, and the ids and files of both."""
    if data.hidden:
        return _hidden(folder, data)
    sample, table = _test_tables(folder, data, mask, long)
    found = _images(folder, data, data.test_images, table, data.test_csv)
    if data.gallery:
        more, place, called = queries.gallery(folder, data, table[data.id].tolist())
        found += _images(folder, data, place, more.assign(**{data.image or data.id: called}), data.gallery)
        table = pd.concat([table, more], ignore_index=True).fillna("")
    return sample, table, pd.DataFrame({"id": table[data.id], "file": found}, dtype=str)


def _hidden(folder: Path, data: Data) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The same where no test images are there: no rows, under the columns that the tables have."""
    if data.gallery or data.role:
        raise UserError(
            "data.hidden=true, but queries search images that are there; leave out data.gallery and data.role"
        )
    sample = pd.DataFrame(columns=[data.id, *data.target], dtype=str)
    table = pd.DataFrame(columns=[data.id], dtype=str)
    if data.sample:
        sample = read_table(folder / data.sample, key="data.sample", empty=True).iloc[:0]
    if data.test_csv:
        table = read_table(folder / data.test_csv, {data.id: "data.id"}, key="data.test_csv", empty=True).iloc[:0]
    return sample, table, pd.DataFrame({"id": [], "file": []}, dtype=str)


def _print(folder: Path, data: Data, images: list[str]) -> str:
    """Changes when a table or an image does; in a package there is no training table."""
    tables = [table for table in ("" if data.packed else data.train_csv, data.sample, data.test_csv) if table]
    tables += [data.gallery] if queries.is_table(data.gallery) else []
    return artefacts.fingerprint(
        [artefacts.file_digest(folder / table) for table in tables], files.listing(folder, images)
    )


def _mask_rows(folder: Path, data: Data, mask: Mask) -> pd.DataFrame:
    """The training csv as it stands; without one a row for each image that has, or may lack, a mask."""
    if data.train_csv:
        needed = {data.id: "data.id", **({mask.rle: "mask.rle"} if mask.rle else {})}
        needed |= {data.group: "data.group"} if data.group else {}
        path = folder / data.train_csv
        return chosen(read_table(path, needed, key="data.train_csv"), data.rows, "data.rows", shown(path))
    if mask.rle:
        raise UserError(f"mask.rle={mask.rle} is a column of data.train_csv, which is empty; set it")
    found = mask_truth.without_masks(folder, _images_of(folder, data.train_images), data.train_images, mask)
    return pd.DataFrame({data.id: found}, dtype=str)


def _masks(
    folder: Path, data: Data, mask: Mask, form: str, tables: tuple[pd.DataFrame, ...], forgiving: bool
) -> tuple[Told, pd.DataFrame]:
    """The masks of the training rows, and the share of each image that each class covers."""
    train, whole, test, sample = tables
    limit = round(data.megapixels * 1e6)
    sizes, others = (HeaderSizes(folder, rows["file"].tolist(), data.reader, limit) for rows in (train, test))
    asked = dataclasses.replace(mask, missing="empty") if forgiving else mask
    source = mask_truth.open_truth(folder, data, asked, whole, train["id"].tolist(), sizes)
    names, answer = mask_truth.columns(mask, form), mask_truth.answer_form(mask, sample)
    shares = mask_truth.coverage(source, form, len(names), mask_truth.digest(source, mask), forgiving)
    targets = pd.DataFrame({name: [f"{share:.6g}" for share in shares[:, k]] for k, name in enumerate(names)})
    return Told(form, names, source, answer, {name: row for row, name in enumerate(test["id"])}, others), targets


def _train_table(folder: Path, data: Data, long: Long | None) -> pd.DataFrame:
    if not data.train_csv:
        return _class_folders(folder, data)
    path = folder / data.train_csv
    needed = {data.id: "data.id", **({} if long else dict.fromkeys(data.target, "data.target"))}
    needed |= dict.fromkeys(data.box, "data.box")
    needed |= {name: key for name, key in ((data.group, "data.group"), (data.camera, "data.camera")) if name}
    read = chosen(read_table(path, needed, key="data.train_csv"), data.rows, "data.rows", shown(path))
    table = longform.train_table(long, read, data.id, shown(path))
    again = table.duplicated()
    if again.any():
        warn(f"{shown(path)}: {int(again.sum())} rows repeat another word for word; each counts once")
        table = table[~again].reset_index(drop=True)
    return table


def _class_folders(folder: Path, data: Data) -> pd.DataFrame:
    """One row a file of data.train_images: its id is the path, its class the first folder on the way, or data.named."""
    if data.named:
        found = _images_of(folder, data.train_images)
        return pd.DataFrame({data.id: found, data.target[0]: classes_of(found, data.named)}, dtype=str)
    tests = os.path.relpath(data.test_images or ".", data.train_images or ".") + "/"  # they may lie beside the classes
    found = [file for file in _images_of(folder, data.train_images) if "/" in file and not file.startswith(tests)]
    if not found:
        raise UserError(
            f"data.train_csv is empty, so that {shown(folder / data.train_images)} must hold a folder of images for "
            "each class, but it holds none; set data.train_csv or data.train_images"
        )
    classes = [file.partition("/")[0].removesuffix(".zip") for file in found]  # a class may be a zip
    return pd.DataFrame({data.id: found, data.target[0]: classes}, dtype=str)


def _images_of(folder: Path, place: str) -> list[str]:
    """The images of folder/place, as paths below it."""
    found = files.find(folder, place)
    return [file for file in [*found.files, *found.members] if is_image(file)]


def _images(folder: Path, data: Data, place: str, table: pd.DataFrame, csv: str) -> list[str]:
    """The image of each row of a table, with its box where data.box names one."""
    if data.image and data.image not in table.columns:
        raise UserError(
            f"{csv or 'the sample submission'} has no column {data.image!r} (data.image); "
            + ("correct it" if csv else "give data.test_csv=FILE, which has")
        )
    found = files.resolve(folder, place, table[data.image or data.id].tolist(), data.files, bool(data.packed))
    if not data.box:
        return found
    if len(data.box) != 4:
        raise UserError(f"data.box={','.join(data.box)}, but a box has four columns, as data.box_form={data.box_form}")
    for name in data.box:
        if name not in table.columns:
            raise UserError(f"{csv or 'the sample submission'} has no column {name!r} (data.box); set data.test_csv")
    corners = table[data.box].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    bad = ~np.isfinite(corners).all(axis=1)
    if bad.any():
        raise UserError(f"{csv}: the box is no number for ids {some(table[data.id][bad])}; fill it in")
    if data.box_form == "xywh":
        corners[:, 2:] += corners[:, :2]
    return files.with_boxes(found, corners, data.margin)


def _test_tables(folder: Path, data: Data, mask: Mask | None, long: Long | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The sample submission, and the test table with the ids under data.id; each stands in for the other."""
    test = None
    if data.test_csv:
        path = folder / data.test_csv
        read = read_table(path, {data.id: "data.id"}, key="data.test_csv")
        test = longform.test_table(long, chosen(read, data.test_rows, "data.test_rows", shown(path)), data.id)
        check_ids(test[data.id], shown(path))
    if data.sample:
        sample = long.sample() if long else read_table(folder / data.sample, key="data.sample")
        if test is None:
            ids = sample.iloc[:, 0].unique().tolist()  # some tasks have several rows an image
            ids = mask_truth.answer_ids(mask, sample) if mask else ids
            test = pd.DataFrame({data.id: ids}, dtype=str)
        if data.role or data.gallery:
            queries.check_sample(data, sample, test, shown(folder / data.sample))
        return sample, test
    if test is None:
        test = pd.DataFrame({data.id: _images_of(folder, data.test_images)}, dtype=str)
    if mask:
        return mask_truth.blank_sample(mask, data.id, test[data.id].tolist()), test
    asked = queries.asked(data, test, shown(folder / data.test_csv)) if data.role else test[data.id]
    return pd.DataFrame({data.id: asked.tolist(), **dict.fromkeys(data.target, "")}, dtype=str), test


def _folder(config: Config) -> Path:
    data = config.data
    if not data.folder:
        raise UserError(
            f"configs/competition/{config.competition}.yaml names no data.folder; "
            "give data=DIR, the unzipped Kaggle folder"
        )
    folder = root() / Path(data.folder).expanduser()
    if not folder.is_dir():
        if not data.make or "data.folder" in config.arguments:  # a mistyped folder is not to be filled
            raise UserError(
                f"data.folder={data.folder}, but there is no such folder; unzip the competition there, or give data=DIR"
            )
        make(folder, data.make)
    return folder


def make(folder: Path, maker: str) -> None:
    """Write a competition's folder by a maker, whole or not at all, and say so."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        temporary.chmod(0o755)
        try:
            registry.build("makers", maker)(temporary)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as fault:
        if not folder.is_dir():  # else another process was faster, with the same files
            raise UserError(f"{shown(folder)} cannot be written: {fault.strerror}; free space there") from fault
    say(f"{shown(folder)}: written by {maker}")
