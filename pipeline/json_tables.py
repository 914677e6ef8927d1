"""JSON that is a table: COCO's images and their classes, lists of records, or labels by name."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

SUFFIXES = (".json", ".jsonl")
IMAGE = "image_id"  # what an image's id is called in both parts of COCO's form
SAME = ("id", "image_id", "imageId")  # of one image; imageId: iMaterialist
REGIONS = ("segmentation", "bbox", "keypoints")  # of annotations that say where, not what


COLUMNS = {"id", "image", "image_id", "file", "file_name", "filename", "name"}  # of {column: [cells]}


def parse(text: str, lines: bool = False) -> pd.DataFrame:
    """Read JSON as a table of texts; ValueError where it holds none.

    Known are {"images": […], "annotations": […]}, a row for each annotation with what is said of its image, or for each
    image; lists of records; {name: label}, as columns ``id`` and ``label``; {column: […]}, where one says that it holds
    ids. Lists of plain values become one cell with blanks between; null and NaN are empty. lines: a record a line.
    """
    read = functools.partial(json.loads, parse_constant=lambda _: None)
    content = [read(line) for line in text.splitlines() if line.strip()] if lines else read(text)
    if isinstance(content, dict) and {"annotations", "images"} & content.keys():
        rows = _coco(content)
    elif isinstance(content, dict) and _is_columns(content):
        rows = [dict(zip(content, cells, strict=True)) for cells in zip(*content.values(), strict=True)]
    elif isinstance(content, dict):
        rows = [{"id": name, "label": label} for name, label in content.items()]
    else:
        rows = content
    rows = _records(rows, "it is no list of records, no labels by name, and has no images and annotations")
    cells = [{str(name): _cell(value) for name, value in row.items()} for row in rows]
    return pd.DataFrame(cells, dtype=str).fillna("")


def _is_columns(content: dict[str, Any]) -> bool:
    lists = all(isinstance(value, list) for value in content.values())
    return lists and len({len(value) for value in content.values()}) == 1 and bool(COLUMNS & {*map(str.lower, content)})


def _records(rows: Any, otherwise: str) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(otherwise)
    return rows


def _coco(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each annotation, or for each image where there are no annotations."""
    images, annotations = (
        _records(content.get(name) or [], f"its {name} are no records") for name in ("images", "annotations")
    )
    if any(row.get(key) for row in annotations for key in REGIONS):
        raise ValueError("its annotations are regions of images; tasks here want labels of whole images, or masks")
    known = {_image_of(row, SAME): _named(row, SAME) for row in images}
    if len(known) < len(images):
        raise ValueError(f"{len(images) - len(known)} of its images repeat the id of another")
    if not annotations:
        return list(known.values())
    own = SAME[1:]  # "id" is the annotation's
    return [{**known.get(_image_of(row, own), {}), **_without(_named(row, own), ("id",))} for row in annotations]


def _image_of(row: dict[str, Any], keys: Iterable[str]) -> str:
    """The id of a record's image, as a text: some files have numbers in one part and texts in the other."""
    given = [row[key] for key in keys if isinstance(row.get(key), (str, int))]
    if not given:
        raise ValueError("one of its images or annotations has no image's id")
    return str(given[0])


def _named(row: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A record whose image's id stands under one name, and which comes first."""
    given = next((key for key in keys if key in row), None)
    return row if given is None else {IMAGE: row[given], **_without(row, (*keys, *REGIONS, "iscrowd"))}


def _without(row: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _cell(value: Any) -> str:
    """A value as a csv would have it; ValueError for what is no plain value and no list of such."""
    if isinstance(value, list) and not any(isinstance(one, (list, dict)) for one in value):
        return " ".join(map(_cell, value))
    if isinstance(value, (list, dict)):
        raise ValueError("its records hold records or lists of lists")
    return "" if value is None else str(value)
