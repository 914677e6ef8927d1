"""JSON that is a table: COCO's images and their classes, lists of records, or labels by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

SUFFIXES = (".json", ".jsonl")
IMAGE = "image_id"  # what an image's id is called in both parts of COCO's form
SAME = ("id", "image_id", "imageId")  # of one image; imageId: iMaterialist
REGIONS = ("segmentation", "bbox", "keypoints")  # of annotations that say where, not what


def parse(text: str, lines: bool = False) -> pd.DataFrame:
    """Read JSON as a table of texts; ValueError where it holds none.

    Known are {"images": […], "annotations": […]}, a row for each annotation with what is said of its image, or for each
    image; lists of records; {name: label}, as columns ``id`` and ``label``. Lists of plain values become one cell with
    blanks between. lines: each line is a record.
    """
    content = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
    if isinstance(content, dict) and ("annotations" in content or "images" in content):
        rows = _coco(content)
    elif isinstance(content, dict):
        rows = [{"id": name, "label": label} for name, label in content.items()]
    else:
        rows = content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of records, no labels by name, and has no images and annotations")
    cells = [{str(name): _cell(value) for name, value in row.items()} for row in rows]
    return pd.DataFrame(cells, dtype=str).fillna("")


def _coco(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each annotation, or for each image where there are no annotations."""
    images, annotations = content.get("images", []), content.get("annotations", [])
    if not all(isinstance(row, dict) for row in [*images, *annotations]):
        raise ValueError("its images or annotations are no records")
    if any(row.get(key) for row in annotations for key in REGIONS):
        raise ValueError("its annotations are regions of images; tasks here want labels of whole images, or masks")
    known = {_image_of(row): _named(row, SAME) for row in images}
    if not annotations:
        return list(known.values())
    rows = [_named(row, SAME[1:]) for row in annotations]
    return [{**known.get(row.get(IMAGE), {}), **_without(row, ("id",))} for row in rows]


def _image_of(row: dict[str, Any]) -> Any:
    return next((row[key] for key in SAME if key in row), None)


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
