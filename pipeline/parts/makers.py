"""Makers write a competition's folder where it is not there: an embedded competition, or images that stand in tables.

A maker is called once with a new empty folder, ``f(folder: Path, *, …)``; the pipeline renames the folder to its
place when the maker is done. From then on nothing knows that the competition was made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import rle
from pipeline.registry import part

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TEST_ROWS = 360  # 20 % of 1,797
SIDES = (64, 75, 90, 101, 128)  # of an image with digits, each side for itself: few are multiples of 32
TRAIN_IMAGES, TEST_IMAGES = 400, 150
DIGITS, CHANCES = (0, 1, 2, 3), (0.2, 0.35, 0.3, 0.15)  # how many an image has, and how often
SMALLEST, LARGEST = 22, 58  # px, the height of a digit
TRIES = 20  # to find a place where a digit covers no other
SHARPNESS = 4  # of a stroke's edge: the larger, the less a digit looks enlarged from 8×8
CONTRAST = (45, 100)  # grey levels between a stroke and the ground under it
KNOWN = 7  # the digits below are the identities to train on, the others those to find
QUERIES = 40  # of each identity to find
ANSWERS = 20  # a query may have
SIDE, HEIGHTS, TURN = 24, (12, 20), 15  # px of an image; px of the digit in it; degrees to either side


@part(source="scikit-learn load_digits; Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits")
def digits(folder: Path) -> None:
    """1,797 real scans of handwritten digits, 8×8 grey PNG: 1,437 to train on, a stratified random 360 to test on.

    Writes train.csv, train_images, test_images, sample_submission.csv and solution.csv (Usage: a random half Public,
    the other Private). The same bytes every time (seed 0); ids say nothing of labels or order.
    """
    import cv2
    import numpy as np
    import pandas as pd
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    images = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    generator = np.random.default_rng(0)
    ids = [f"{number:04x}" for number in generator.choice(16**4, len(labels), replace=False)]
    rows = pd.DataFrame({"id": ids, "label": labels})
    train, test = train_test_split(rows, test_size=TEST_ROWS, stratify=labels, random_state=0)
    train, test = train.sort_values("id"), test.sort_values("id")
    for name, part_of in (("train_images", train), ("test_images", test)):
        (folder / name).mkdir()
        for row, image_id in part_of["id"].items():
            (folder / name / f"{image_id}.png").write_bytes(cv2.imencode(".png", images[row])[1].tobytes())
    _write_tables(folder, train, test, {"label": 0}, generator)


@part(
    source="Kaggle's Digit Recognizer, Kannada MNIST and the Facial Expression challenge ship their images so",
    allowed={"shape": (1, None), "white": (1, None)},
)
def from_tables(
    folder: Path, *, source: str, shape: tuple[int, ...], planes: bool = False, white: float = 255.0
) -> None:
    """Images that stand in tables, a row of pixels each, as files: ``train_images.zip`` and a train.csv without pixels.

    source: the folder of the tables, an absolute path or one from where ``folder`` lies. shape: (height, width) of an
    image, or (height, width, 3). planes: red, green and blue stand one plane behind the other, not pixel by pixel.
    white: the number that is white; 0 is black. Without ids, test rows get those of the sample submission, others
    ``NAME_000001``. Raises UserError for tables that do not hold that.
    """
    from pipeline import pixel_tables
    from pipeline.errors import UserError

    if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or (planes and len(shape) == 2):
        raise UserError(f"shape={shape}, planes={planes}, but an image is (height, width), or (height, width, 3)")
    place = folder.parent / Path(source).expanduser()
    if not place.is_dir():
        raise UserError(
            f"from_tables(source={source!r}): there is no such folder; unzip the competition's download there"
        )
    pixel_tables.write(place, folder, pixel_tables.Layout(tuple(shape), planes, white))
    call = f"from_tables(source={source!r}, shape={shape!r}, planes={planes!r}, white={white!r})"
    record = json.dumps({"make": call, "tables": pixel_tables.state(place)}, indent=1) + "\n"
    (folder / pixel_tables.RECORD).write_text(record, encoding="utf-8")


@part(source="scikit-learn load_digits on load_sample_images (china.jpg, flower.jpg)")
def digits_segmentation(folder: Path, *, seed: int = 0) -> None:
    """Real handwritten digits on pieces of two real photographs: 400 images to train on, 150 to test on.

    Colour PNG of 64 to 128 px a side, 0 to 3 digits in each, strokes lighter or darker than what lies under them, so
    that brightness alone does not find them. The masks as Kaggle tells them: train.csv with ImageId and EncodedPixels,
    down the columns, the first pixel 1, an empty cell where there is no digit. No scan is in both sets, while both
    sets show the same two photographs. seed: of all that is drawn; the same bytes every time.
    """
    import numpy as np
    import pandas as pd
    from sklearn.datasets import load_digits, load_sample_images

    scans = load_digits().images.astype(np.float32) / 16
    photographs = [np.asarray(photograph) for photograph in load_sample_images().images]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(scans))
    count = TRAIN_IMAGES + TEST_IMAGES
    border = len(scans) * TRAIN_IMAGES // count
    ids = np.array([f"{number:04x}" for number in generator.choice(16**4, count, replace=False)])
    tables = []
    for name, rows, own in (
        ("train_images", np.sort(ids[:TRAIN_IMAGES]), scans[order[:border]]),
        ("test_images", np.sort(ids[TRAIN_IMAGES:]), scans[order[border:]]),
    ):
        (folder / name).mkdir()
        texts = [_draw(folder / name / f"{one}.png", photographs, own, generator) for one in rows]
        tables.append(pd.DataFrame({"ImageId": rows, "EncodedPixels": texts}))
    _write_tables(folder, *tables, {"EncodedPixels": "1 1"}, generator)


@part(source="scikit-learn load_digits; Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits")
def digits_retrieval(folder: Path, *, seed: int = 0) -> None:
    """Open-set retrieval: 1,264 real handwritten digits 0 to 6 to train on; 7, 8 and 9 to find, 120 queries among 413.

    Grey PNG of 24×24. Each scan is enlarged, slightly turned and put somewhere: as they are scanned, pixels alone would
    find their like. Writes train.csv (id, identity), test.csv (id, role: query or gallery), sample_submission.csv (id
    of each query, matches: up to 20 ids of the gallery, best first, between spaces) and solution.csv (all that match).
    Public are half of the queries of each digit. seed: of all that is drawn; the same bytes every time.
    """
    import cv2
    import numpy as np
    import pandas as pd
    from sklearn.datasets import load_digits

    scans = load_digits()
    generator = np.random.default_rng(seed)
    ids = [f"{number:04x}" for number in generator.choice(16**4, len(scans.target), replace=False)]
    rows = pd.DataFrame({"id": ids, "identity": [f"d{digit}" for digit in scans.target]})
    images = [_placed(scan.astype(np.float32) / 16, generator) for scan in scans.images]
    rows = rows.sort_values("id")
    train, test = rows[scans.target[rows.index] < KNOWN], rows[scans.target[rows.index] >= KNOWN]
    for name, part_of in (("train_images", train), ("test_images", test)):
        (folder / name).mkdir()
        for row, image_id in part_of["id"].items():
            (folder / name / f"{image_id}.png").write_bytes(cv2.imencode(".png", images[row])[1].tobytes())
    drawn = test.groupby("identity").sample(QUERIES, random_state=seed)
    usage = pd.Series(["Public", "Private"] * (len(drawn) // 2), index=drawn.index)
    asked = test.index.isin(drawn.index)
    queries, gallery = test[asked], test[~asked]
    matches = {identity: " ".join(own) for identity, own in gallery.groupby("identity")["id"]}
    _write(
        folder,
        train=train,
        test=test[["id"]].assign(role=np.where(asked, "query", "gallery")),
        sample_submission=queries[["id"]].assign(matches=" ".join(gallery["id"][:ANSWERS])),
        solution=queries[["id"]].assign(matches=queries["identity"].map(matches), Usage=usage),
    )


def _placed(scan: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A scan (8, 8) in 0…1 of another height, turned, somewhere in a dark image, (SIDE, SIDE) uint8."""
    import cv2
    import numpy as np

    height = int(generator.integers(HEIGHTS[0], HEIGHTS[1] + 1))
    large = cv2.resize(scan, (height, height), interpolation=cv2.INTER_LINEAR)
    middle = (height - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), generator.uniform(-TURN, TURN), 1)
    top, left = (int(place) for place in generator.integers(0, SIDE - height + 1, 2))
    image = np.zeros((SIDE, SIDE), dtype=np.float32)
    image[top : top + height, left : left + height] = cv2.warpAffine(large, turn, (height, height))
    return np.rint(image * 255).astype(np.uint8)


def _write_tables(
    folder: Path, train: pd.DataFrame, test: pd.DataFrame, sample: dict[str, object], generator: np.random.Generator
) -> None:
    """The three tables; sample: what the sample submission answers everywhere."""
    import numpy as np

    usage = generator.permutation(np.repeat(["Public", "Private"], len(test) // 2))
    _write(folder, train=train, sample_submission=test.assign(**sample), solution=test.assign(Usage=usage))


def _write(folder: Path, **tables: pd.DataFrame) -> None:
    for name, frame in tables.items():
        (folder / f"{name}.csv").write_text(frame.to_csv(index=False, lineterminator="\n"), encoding="utf-8")


def _draw(path: Path, photographs: list[np.ndarray], scans: np.ndarray, generator: np.random.Generator) -> str:
    """Write one image; the text of its mask."""
    import cv2
    import numpy as np

    height, width = (int(side) for side in generator.choice(SIDES, 2))
    image = _piece(photographs[generator.integers(len(photographs))], height, width, generator)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(generator.choice(DIGITS, p=CHANCES)):
        stroke = _stroke(scans[generator.integers(len(scans))], min(height, width), generator)
        place = _place(mask, stroke.shape, generator)
        if place is not None:
            image[place] = _painted(image[place], stroke, generator)
            mask[place] |= stroke > 0.5
    noisy = image + generator.normal(0, 3, image.shape)
    pixels = np.rint(noisy.clip(0, 255)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes())
    return rle.encode(mask)


def _piece(photograph: np.ndarray, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """A piece of a photograph, (height, width, 3) float32 in 0…255, at a random place and scale, mirrored or not."""
    import cv2
    import numpy as np

    scale = generator.uniform(1, 2)
    rows, columns = int(height * scale), int(width * scale)
    top = int(generator.integers(photograph.shape[0] - rows + 1))
    left = int(generator.integers(photograph.shape[1] - columns + 1))
    piece = photograph[top : top + rows, left : left + columns].astype(np.float32)
    piece = cv2.resize(piece, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(piece[:, ::-1]) if generator.random() < 0.5 else piece


def _stroke(scan: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """An enlarged, slightly turned digit, (h, w) float32: 0 outside of its strokes, 1 in them, 0.5 on their edge."""
    import cv2
    import numpy as np

    height = int(generator.integers(SMALLEST, min(LARGEST, int(0.6 * side)) + 1))
    width = round(height * generator.uniform(0.75, 1.1))
    smooth = cv2.resize(np.pad(scan, 1), (width, height), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), generator.uniform(-20, 20), 1)
    turned = cv2.warpAffine(smooth, turn, (width, height))
    return ((turned - 0.5) * SHARPNESS + 0.5).clip(0, 1)


def _place(mask: np.ndarray, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[slice, slice] | None:
    """Where a digit of that shape covers no other; None if no such place was found."""
    for _ in range(TRIES):
        top, left = (int(generator.integers(full - own + 1)) for full, own in zip(mask.shape, shape, strict=True))
        place = slice(top, top + shape[0]), slice(left, left + shape[1])
        if not mask[place].any():
            return place
    return None


def _painted(ground: np.ndarray, stroke: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The ground (h, w, 3) with strokes of one colour, a little of the ground showing through."""
    import numpy as np

    level = ground[stroke > 0.5].mean(axis=0)
    lighter = level.mean() < 80 or (level.mean() < 175 and generator.random() < 0.5)
    step = generator.uniform(*CONTRAST) * (1 if lighter else -1)
    colour = (level + step + generator.uniform(-20, 20, 3)).clip(0, 255)
    opacity = (stroke * generator.uniform(0.75, 0.95))[:, :, None]
    return (ground * (1 - opacity) + colour * opacity).astype(np.float32)
