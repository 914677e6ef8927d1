"""Small drawn competition folders, one for each form in which Kaggle ships them: ``FORMS[name](root) -> folder``.

Images are 12–40 px and can be learned: a class is a colour and a place of a bright square.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import rle

NAMES = ("cat", "dog", "owl")


def picture(number: float, seed: int, side: int = 16, channels: int = 3) -> np.ndarray:
    """A noisy image with a bright square whose place, and whose colour, tell a number in 0…8."""
    generator = np.random.default_rng(seed)
    image = generator.integers(20, 70, (side, side, channels), dtype=np.uint8)
    third, place = side // 3, int(number) % 9
    top, left = place // 3 * third, place % 3 * third
    image[top : top + third, left : left + third] = 200
    image[..., place % channels] = np.minimum(255, image[..., place % channels].astype(int) + int(12 * number)).astype(
        np.uint8
    )
    return image


def save(path: Path, image: np.ndarray) -> None:
    """Write an image under its suffix; npy as an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, image)
        return
    grey = image.shape[2] == 1
    picture_ = Image.fromarray(image[..., 0] if grey else image)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), "PNG")
    picture_.save(path, kind)


def table(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    """Write a csv with ``\\n`` line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def _images(folder: Path, names: Iterable[str], numbers: Iterable[float], suffix: str = ".png", **looks: int) -> None:
    for seed, (name, number) in enumerate(zip(names, numbers, strict=True)):
        save(folder / f"{name}{suffix}", picture(number, seed, **looks))


def _ids(count: int, first: int = 0) -> list[str]:
    return [f"{(first + row) * 7919 % 99991:05d}x" for row in range(count)]


def plain(root: Path) -> Path:
    """train.csv, train_images, test_images, sample_submission.csv: one class of names, ids without suffix."""
    train, test = _ids(24), _ids(6, 100)
    numbers = [row % 3 for row in range(24)]
    _images(root / "train_images", train, numbers)
    _images(root / "test_images", test, [row % 3 for row in range(6)])
    table(root / "train.csv", "id,label", zip(train, [NAMES[n] for n in numbers], strict=True))
    table(root / "sample_submission.csv", "id,label", ((name, "cat") for name in test))
    return root


def suffixes(root: Path) -> Path:
    """Ids with suffix under another column name, integer classes, one folder of images for train and test, JPEG."""
    train, test = [f"{row}.jpg" for row in range(24)], [f"{row}.jpg" for row in range(24, 30)]
    _images(root / "images", train, [row % 4 for row in range(24)], "")
    _images(root / "images", test, [row % 4 for row in range(6)], "")
    table(root / "Train.csv", "Image_ID,Category", ((name, row % 4) for row, name in enumerate(train)))
    table(root / "Test.csv", "Image_ID", ((name,) for name in test))
    table(root / "SampleSubmission.csv", "Image_ID,Category", ((name, 0) for name in test))
    return root


def nested(root: Path) -> Path:
    """Everything one folder deeper, images in folders of sites, integer ids padded with zeros in the files."""
    folder = root / "whales"
    for row in range(24):
        save(folder / "train" / f"site{row % 2}" / f"img_{row:05d}.png", picture(row % 3, row))
    for row in range(24, 30):
        save(folder / "test" / f"img_{row:05d}.png", picture(row % 3, row))
    table(folder / "train_labels.csv", "image,species", ((row, NAMES[row % 3]) for row in range(24)))
    table(folder / "sample_sub.csv", "image,species", ((row, "cat") for row in range(24, 30)))
    return root


def wrong_suffixes(root: Path) -> Path:
    """Mixed and wrong suffixes (.Bmp that holds PNG), classes that differ only in case."""
    classes, suffix = ("A", "a", "b"), (".Bmp", ".jpg", ".PNG")
    for row in range(24):
        save(root / "trainResized" / f"{row + 1}{suffix[row % 3]}", picture(row % 3, row, side=20))
    for row in range(24, 30):
        save(root / "testResized" / f"{row + 1}.Bmp", picture(row % 3, row, side=20))
    table(root / "trainLabels.csv", "ID,Class", ((row + 1, classes[row % 3]) for row in range(24)))
    table(root / "sampleSubmission.csv", "ID,Class", ((row + 1, "A") for row in range(24, 30)))
    return root


def class_folders(root: Path) -> Path:
    """One folder a class, no csv at all; the test images lie flat."""
    for row in range(24):
        save(root / "train" / NAMES[row % 3] / f"{row}.jpg", picture(row % 3, row))
    for row in range(6):
        save(root / "test" / f"{row}.jpg", picture(row % 3, 50 + row))
    return root


def named_files(root: Path) -> Path:
    """No table of training rows: the names of the files tell the class, as at Dogs vs. Cats; a chance is asked for."""
    for row in range(24):
        save(root / "train" / f"{NAMES[row % 2]}.{row // 2}.jpg", picture(row % 2, row))
    for row in range(1, 7):
        save(root / "test1" / f"{row}.jpg", picture(row % 2, row))
    table(root / "sampleSubmission.csv", "id,label", ((row, 0.5) for row in range(1, 7)))
    return root


def zipped(root: Path) -> Path:
    """Images in zips that were not unpacked, and train.csv in one too."""
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", range(24)), ("test", range(24, 30))):
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for row in rows:
                content = io.BytesIO()
                Image.fromarray(picture(row % 3, row)).save(content, "PNG")
                archive.writestr(f"{name}/{row}.png", content.getvalue())
    rows_ = "".join(f"{row}.png,{NAMES[row % 3]}\n" for row in range(24))
    with zipfile.ZipFile(root / "train.csv.zip", "w") as archive:
        archive.writestr("train.csv", "filename,label\n" + rows_)
    table(root / "sample_submission.csv", "filename,label", ((f"{row}.png", "cat") for row in range(24, 30)))
    return root


def one_hot(root: Path) -> Path:
    """One 0/1 column a class of which one is 1; the sample's columns are spelt otherwise."""
    train, test = _ids(24), _ids(6, 100)
    _images(root / "images", [*train, *test], [row % 3 for row in range(30)], ".jpg")
    table(root / "train.csv", "image_id,Healthy,Rust,Scab",
          ((name, *(int(row % 3 == place) for place in range(3))) for row, name in enumerate(train)))  # fmt: skip
    table(root / "test.csv", "image_id", ((name,) for name in test))
    table(root / "sample_submission.csv", "image_id,healthy,rust,scab", ((name, 0.33, 0.33, 0.34) for name in test))
    return root


def class_columns(root: Path) -> Path:
    """One column of names in training, one column of probabilities a class in the submission."""
    train, test = _ids(24), _ids(6, 100)
    _images(root / "train", train, [row % 3 for row in range(24)], ".jpg", side=40)
    _images(root / "test", test, [row % 3 for row in range(6)], ".jpg", side=40)
    table(root / "labels.csv", "id,breed", ((name, NAMES[row % 3]) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "id,cat,dog,owl", ((name, 0.3333, 0.3333, 0.3334) for name in test))
    return root


def votes(root: Path) -> Path:
    """Columns of votes in training, shares in the submission."""
    train, test = _ids(24), _ids(6, 100)
    _images(root / "train_images", train, [row % 3 for row in range(24)])
    _images(root / "test_images", test, [row % 3 for row in range(6)])
    shares = [(0.8, 0.1, 0.1), (0.1, 0.7, 0.2), (0.0, 0.25, 0.75)]
    table(root / "train.csv", "id,a_share,b_share,c_share", ((name, *shares[r % 3]) for r, name in enumerate(train)))
    table(root / "sample_submission.csv", "id,a_share,b_share,c_share", ((name, 0.4, 0.3, 0.3) for name in test))
    return root


def labels_in_a_cell(root: Path) -> Path:
    """Several labels in one cell, blanks between them."""
    cells = ("healthy", "rust", "scab", "rust scab", "healthy", "rust frog scab", "frog", "frog rust")
    train, test = _ids(32), _ids(6, 100)
    _images(root / "train_images", train, [row % 8 for row in range(32)], ".jpg", side=24)
    _images(root / "test_images", test, [row % 8 for row in range(6)], ".jpg", side=24)
    table(root / "train.csv", "image,labels", ((f"{name}.jpg", cells[row % 8]) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "image,labels", ((f"{name}.jpg", "healthy") for name in test))
    return root


def labels_in_columns(root: Path) -> Path:
    """Several 0/1 columns that do not sum to one."""
    train, test = _ids(32), _ids(6, 100)
    _images(root / "train", train, [row % 8 for row in range(32)], channels=1)
    _images(root / "test", test, [row % 8 for row in range(6)], channels=1)
    table(root / "train.csv", "StudyID,edema,mass,nodule",
          ((name, row % 8 & 1, row % 8 >> 1 & 1, row % 8 >> 2 & 1) for row, name in enumerate(train)))  # fmt: skip
    table(root / "sample_submission.csv", "StudyID,edema,mass,nodule", ((name, 0.5, 0.5, 0.5) for name in test))
    return root


def number(root: Path) -> Path:
    """A float to regress, with metadata in both tables."""
    train, test = _ids(32), _ids(8, 100)
    _images(root / "train", train, [row % 9 for row in range(32)], ".jpg")
    _images(root / "test", test, [row % 9 for row in range(8)], ".jpg")
    rows = ((name, row % 2, 1 + row % 5, f"{10 + row % 9 * 2.5:.2f}") for row, name in enumerate(train))
    table(root / "train.csv", "Id,Eyes,Legs,Charm", rows)
    table(root / "test.csv", "Id,Eyes,Legs", ((name, row % 2, 1 + row % 5) for row, name in enumerate(test)))
    table(root / "sample_submission.csv", "Id,Charm", ((name, "43.51") for name in test))
    return root


def grades(root: Path) -> Path:
    """An ordered grade, and the patient of each image."""
    train, test = _ids(40), _ids(6, 100)
    _images(root / "train_images", train, [row % 5 for row in range(40)])
    _images(root / "test_images", test, [row % 5 for row in range(6)])
    rows = ((name, f"P{row // 4:03d}", row % 5) for row, name in enumerate(train))
    table(root / "train.csv", "id_code,patient_id,diagnosis", rows)
    table(root / "sample_submission.csv", "id_code,diagnosis", ((name, 0) for name in test))
    return root


def chance(root: Path) -> Path:
    """0 or 1 in training, a probability in the submission; numbered files."""
    train, test = [str(row) for row in range(1, 33)], [str(row) for row in range(1, 9)]
    _images(root / "train", train, [row % 2 for row in range(32)], ".tif")
    _images(root / "test", test, [row % 2 for row in range(8)], ".tif")
    table(root / "train_labels.csv", "name,invasive", ((name, row % 2) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "name,invasive", ((name, 0.5) for name in test))
    return root


def ranks(root: Path) -> Path:
    """Three names a cell in the submission, the likeliest first."""
    names = ("ant", "bee", "cow", "dog", "elk")
    train, test = [f"{name}.png" for name in _ids(30)], [f"{name}.png" for name in _ids(6, 100)]
    _images(root / "train", train, [row % 5 for row in range(30)], "")
    _images(root / "test", test, [row % 5 for row in range(6)], "")
    table(root / "train.csv", "Image,Id", ((name, names[row % 5]) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "Image,Id", ((name, "ant bee cow") for name in test))
    return root


def places_of_classes(root: Path) -> Path:
    """Names in training, a class's place in the submission; a second csv and boxes in both tables."""
    train, test = _ids(24), _ids(6, 100)
    _images(root / "train", train, [row % 3 for row in range(24)], side=32)
    _images(root / "test", test, [row % 3 for row in range(6)], side=32)
    table(
        root / "train.csv", "id,x,y,w,h,label", ((name, 2, 3, 20, 20, NAMES[row % 3]) for row, name in enumerate(train))
    )
    table(root / "test.csv", "id,x,y,w,h", ((name, 2, 3, 20, 20) for name in test))
    table(root / "weather.csv", "id,rain", ((name, row % 4) for row, name in enumerate([*train, *test])))
    table(root / "sample_submission.csv", "id,label", ((name, 0) for name in test))
    return root


def channels(root: Path) -> Path:
    """Four files an image, as in cellular images."""
    for part, rows in (("train", range(24)), ("test", range(24, 30))):
        for row in rows:
            image = picture(row % 3, row)
            for place, stain in enumerate(("red", "green", "blue", "yellow")):
                save(root / part / f"cell{row:02d}_{stain}.png", image[..., place % 3 : place % 3 + 1])
    table(root / "train.csv", "Id,Target", ((f"cell{row:02d}", row % 3) for row in range(24)))
    table(root / "sample_submission.csv", "Id,Target", ((f"cell{row:02d}", 0) for row in range(24, 30)))
    return root


def arrays(root: Path) -> Path:
    """npy files, two classes by name, the probability of one asked for; Windows' semicolon csv with decimal commas."""
    for part, rows in (("train", range(24)), ("test", range(24, 30))):
        for row in rows:
            save(root / part / f"a{row}.npy", picture(row % 2, row))
    lines = ["id;size;signal", *(f"a{row};{row % 5},5;{('no', 'yes')[row % 2]}" for row in range(24))]
    (root / "train.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))
    (root / "test.csv").write_bytes("\r\n".join(["id;size", *(f"a{r};{r % 5},5" for r in range(24, 30))]).encode())
    table(root / "sample_submission.csv", "id,signal", ((f"a{row}", 0.5) for row in range(24, 30)))
    return root


def kinds(root: Path) -> Path:
    """Pictures of every kind: 1-bit, palette, grey, 16-bit, RGBA, CMYK, turned by EXIF; of 4 to 40 px, all grey."""
    modes = ("1", "P", "L", "I;16", "RGBA", "CMYK", "EXIF", "LA")
    for part, rows in (("train", range(32)), ("test", range(32, 40))):
        (root / part).mkdir(parents=True)
        for row in rows:
            mode, side = modes[row % 8], (12, 4, 40, 20)[row // 8 % 4]
            image = Image.fromarray(picture(row % 2 * 8, row, side, 1)[..., 0])
            _save_as(image, mode, root / part / f"{row}.{'jpg' if mode in ('CMYK', 'EXIF') else 'png'}")
    table(root / "train.csv", "id,damaged", ((row, ("no", "yes")[row % 2]) for row in range(32)))
    table(root / "sample_submission.csv", "id,damaged", ((row, "no") for row in range(32, 40)))
    return root


def _save_as(image: Image.Image, mode: str, path: Path) -> None:
    if mode == "I;16":
        Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path)
    elif mode == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    else:
        (image.quantize(32) if mode == "P" else image.convert("RGB").convert(mode)).save(path)


def angle(root: Path) -> Path:
    """A direction in degrees."""
    train, test = _ids(32), _ids(6, 100)
    _images(root / "train", train, [row % 9 for row in range(32)])
    _images(root / "test", test, [row % 9 for row in range(6)])
    table(root / "train.csv", "id,angle", ((name, 40 * (row % 9) + 0.5) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "id,angle", ((name, 0.0) for name in test))
    return root


def row_a_label(root: Path) -> Path:
    """A row for each label of an image, in training and in the sample; some rows twice, as at RSNA's hemorrhages."""
    names, train, test = ("bleed", "in_ventricle", "any"), [f"ID_{row}" for row in _ids(32)], ["ID_7", "ID_12"]
    test += [f"ID_{row}" for row in _ids(4, 100)]
    _images(root / "stage_2_train", train, [row % 4 for row in range(32)])
    _images(root / "stage_2_test", test, [row % 4 for row in range(6)])
    marks = [(row % 2, row % 4 // 2, int(row % 4 > 0)) for row in range(32)]
    rows = [
        (f"{one}_{name}", mark)
        for one, each in zip(train, marks, strict=True)
        for name, mark in zip(names, each, strict=True)
    ]
    table(root / "stage_2_train.csv", "ID,Label", rows + rows[:5])
    table(root / "stage_2_sample_submission.csv", "ID,Label", ((f"{o}_{name}", 0.5) for o in test for name in names))
    return root


def row_a_number(root: Path) -> Path:
    """A row for each number of an image, which another column names; the test table has no numbers."""
    names, train, test = ("Dry_Clover_g", "Dry_g", "Green_g"), _ids(30), _ids(6, 100)
    _images(root / "train", [f"a{row}" for row in range(30)], [row % 9 for row in range(30)])
    _images(root / "test", [f"b{row}" for row in range(6)], [row % 9 for row in range(6)])
    rows = (
        (f"{one}__{name}", f"train/a{row}.png", f"site{row // 5}", name, row % 9 + place + 0.25)
        for row, one in enumerate(train) for place, name in enumerate(names)
    )  # fmt: skip
    table(root / "train.csv", "sample_id,image_path,site,target_name,target", rows)
    rows = ((f"{one}__{name}", f"test/b{row}.png", name) for name in names for row, one in enumerate(test))
    table(root / "test.csv", "sample_id,image_path,target_name", rows)
    table(root / "sample_submission.csv", "sample_id,target", ((f"{o}__{n}", 0.0) for n in names for o in test))
    return root


def no_sample(root: Path) -> Path:
    """train.csv and test.csv with a group, and no sample submission."""
    train, test = _ids(30), _ids(6, 100)
    _images(root / "train", train, [row % 3 for row in range(30)])
    _images(root / "test", test, [row % 3 for row in range(6)])
    rows = ((name, f"scene{row // 5}", NAMES[row % 3]) for row, name in enumerate(train))
    table(root / "train.csv", "id,scene,animal", rows)
    table(root / "test.csv", "id", ((name,) for name in test))
    return root


# --- masks --------------------------------------------------------------------------------------------------------


def discs(seed: int, height: int = 32, width: int = 40, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image (H, W, 3) uint8 with bright discs, and their labels (H, W) int32; every sixth has none."""
    generator = np.random.default_rng(seed)
    image = generator.integers(20, 70, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.int32)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(0 if seed % 6 == 5 else count):
        row, column = generator.integers(5, height - 5), generator.integers(5, width - 5)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= 16
        if not (labels[np.hypot(rows - row, columns - column) <= 6] > 0).any():
            labels[disc] = labels.max() + 1
    image[labels > 0] += np.uint8(150)
    return image, labels


def _discs(root: Path, parts: Iterable[tuple[str, Iterable[str]]], **shape: int) -> dict[str, np.ndarray]:
    """Images in folders, and the labels of each by its name."""
    found = {}
    for folder, names in parts:
        for name in names:
            image, found[name] = discs(len(found), **shape)
            save(root / folder / f"{name}.png", image)
    return found


def grey(path: Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    """Write whole numbers (H, W) as a png of 8 bits, or 16 where they are uint16, or with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def mask_rows(root: Path) -> Path:
    """Run-length texts, one row an image, blank where there is nothing; images of one size."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train_images", train), ("test_images", test)))
    table(root / "train.csv", "id,rle_mask", ((name, rle.encode(found[name] > 0)) for name in train))
    table(root / "sample_submission.csv", "id,rle_mask", ((name, "1 1") for name in test))
    return root


def mask_classes(root: Path) -> Path:
    """One row a class, the class behind the image's name, as at Severstal; the sample has -1 for nothing."""
    train, test = [f"{name}.jpg" for name in _ids(18)], [f"{name}.jpg" for name in _ids(4, 100)]
    found = _discs(root, (("train", [name[:-4] for name in train]), ("test", [name[:-4] for name in test])), width=64)
    rows = [(f"{name}_{k}", rle.encode(found[name[:-4]] == k, empty="-1")) for name in train for k in (1, 2, 3)]
    table(root / "train.csv", "Image_Class,EncodedPixels", rows)
    asked = [(f"{name}_{k}", "-1") for name in test for k in (1, 2, 3)]
    table(root / "sample_submission.csv", "Image_Class,EncodedPixels", asked)
    return root


def mask_relative(root: Path) -> Path:
    """Runs that count from the end of the one before, as at SIIM-ACR Pneumothorax, with its blanks behind commas."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train", train), ("test", test)))
    texts = [rle.encode(found[name] > 0, base=0, starts="relative", empty="-1") for name in train]
    table(root / "train-rle.csv", "ImageId, EncodedPixels", zip(train, (f" {text}" for text in texts), strict=True))
    table(root / "sample_submission.csv", "ImageId,EncodedPixels", ((name, "-1") for name in test))
    return root


def mask_class_column(root: Path) -> Path:
    """One row a class that is there, the class in a column of its own, which the sample has last; 0-indexed rows."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train", train), ("test", test)))
    names = ("crack", "rust", "void")
    rows = [
        (name, rle.encode(found[name] == k + 1, order="row", base=0), names[k])
        for name in train for k in range(3) if (found[name] == k + 1).any()
    ]  # fmt: skip
    table(root / "train.csv", "image_id,encoded_pixels,label", rows)
    asked = [(name, "0 1", kind) for name in test for kind in names[:2]]
    table(root / "sample_submission.csv", "image_id,encoded_pixels,label", asked)
    return root


def mask_objects(root: Path) -> Path:
    """One row an object, which share pixels; images of many sizes; one row an image in the sample, no empty images."""
    rows = []
    for place in range(18):
        image, labels = discs(6 * place, 40 + 8 * (place % 4), 200 + 16 * (place % 5), count=2 + place % 6)
        save(root / "stage1_train" / f"n{place}" / "images" / f"n{place}.png", image)
        for k in range(1, labels.max() + 1):
            whole = labels == k
            grey(root / "stage1_train" / f"n{place}" / "masks" / f"{place}_{k}.png", np.uint8(255) * whole)
            whole |= np.roll(labels == 1, 1, axis=1) & (place == 2)
            rows.append((f"n{place}", rle.encode(whole)))
    for place in range(4):
        save(root / "stage1_test" / f"t{place}" / "images" / f"t{place}.png", discs(6 * place + 1)[0])
    table(root / "stage1_train_labels.csv", "ImageId,EncodedPixels", rows)
    table(root / "stage1_sample_submission.csv", "ImageId,EncodedPixels", ((f"t{place}", "1 1") for place in range(4)))
    return root


def mask_files(root: Path) -> Path:
    """Masks of 0 and 255 in train_masks, called like the images with _mask behind; no csv at all."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train", train), ("test", test)))
    for name in train:
        grey(root / "train_masks" / f"{name}_mask.png", np.uint8(255) * (found[name] > 0))
    return root


def masks_beside(root: Path) -> Path:
    """Masks of 0 and 1 in the images' own folder, with _mask behind, and a sample of run-length texts."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train", train), ("test", test)))
    for name in train:
        grey(root / "train" / f"{name}_mask.png", (found[name] > 0).astype(np.uint8))
    table(root / "sample_submission.csv", "img,pixels", ((name, "") for name in test))
    return root


def mask_indices(root: Path) -> Path:
    """A class's index in each pixel, 255 for void, in train/masks beside train/images, and a table of the images."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train/images", train), ("test/images", test)))
    for name in train:
        values = np.minimum(found[name], 2).astype(np.uint8)
        values[0, :4] = 255
        grey(root / "train/masks" / f"{name}.png", values)
    table(root / "train.csv", "id,depth", ((name, row * 7) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "id,rle", ((f"{name}_{kind}", "") for name in test for kind in ("a", "b")))
    return root


def mask_colours(root: Path) -> Path:
    """A colour for each class, with a table of the classes' names and colours, and no sample."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train", train), ("test", test)))
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 64)], dtype=np.uint8)
    for name in train:
        save(root / "train_labels_masks" / f"{name}.png", colours[np.minimum(found[name], 2)])
    names = ("sky", "tree", "road")
    table(root / "class_dict.csv", "name,r,g,b", ((names[k], *colours[k]) for k in range(3)))
    return root


def mask_palette(root: Path) -> Path:
    """Indices with a palette, as VOC has them."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("images/training", train), ("images/testing", test)))
    for name in train:
        grey(root / "annotations/training" / f"{name}.png", np.minimum(found[name], 2).astype(np.uint8),
             [0, 0, 0, 128, 0, 0, 0, 128, 0])  # fmt: skip
    return root


def mask_labels(root: Path) -> Path:
    """Objects numbered in files of 16 bits."""
    for place in range(18):
        image, labels = discs(6 * place, 48, 64, count=1 + place % 7)
        save(root / "train" / f"{place:03d}.png", image)
        grey(root / "masks" / f"{place:03d}.tif", labels.astype(np.uint16))
    for place in range(4):
        save(root / "test" / f"{place:03d}.png", discs(place)[0])
    table(root / "sample_submission.csv", "image,rle", ((f"{place:03d}", "") for place in range(4)))
    return root


def mask_file_a_class(root: Path) -> Path:
    """A file for each of two classes, which may overlap."""
    train, test = _ids(18), _ids(4, 100)
    found = _discs(root, (("train", train), ("test", test)))
    for name in train:
        grey(root / "masks" / f"{name}_water.png", np.uint8(255) * (found[name] > 0))
        grey(root / "masks" / f"{name}_road.png", np.uint8(255) * (found[name] == 1))
    return root


# --- the same thing again -----------------------------------------------------------------------------------------


def _shown(root: Path, folders: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Images of 12 px in folders, each folder's of eight identities in turn."""
    for folder, names in folders:
        _images(root / folder, names, [row % 8 for row, _ in enumerate(names)], side=12)


def matches(root: Path) -> Path:
    """Queries and a gallery by a role; ten identities in five families."""
    train, test = _ids(40), _ids(8, 100)
    _shown(root, (("train_images", train), ("test_images", test)))
    rows = ((name, f"c{row % 10:02d}", f"f{row % 10 // 2}", f"d{row // 10}") for row, name in enumerate(train))
    table(root / "train.csv", "id,label,family,drawer", rows)
    table(root / "test.csv", "id,role", ((name, "query" if row < 3 else "gallery") for row, name in enumerate(test)))
    table(root / "sample_submission.csv", "id,matches", ((name, " ".join(test[3:])) for name in test[:3]))
    return root


def pool(root: Path) -> Path:
    """Test images that search each other; each stands first in its own answer."""
    train, test = _ids(32), _ids(6, 100)
    _shown(root, (("train_images", train), ("test_images", test)))
    table(root / "train.csv", "id,title,label_group", ((name, f"t{name}", 7 * (r % 8)) for r, name in enumerate(train)))
    table(root / "test.csv", "id,title", ((name, f"t{name}") for name in test))
    table(root / "sample_submission.csv", "id,matches", ((name, name) for name in test))
    return root


def postings(root: Path) -> Path:
    """A pool whose ids are no images: a column of both tables names these, some of them twice."""
    train, test = [f"train_{name}" for name in _ids(32)], [f"test_{name}" for name in _ids(6, 100)]
    names = [f"{row // 9 + row:032x}" for row in range(38)]
    _shown(root, (("train_images", names[:32]), ("test_images", names[32:])))
    head = "posting_id,image,title,label_group"
    rows = [(one, f"{names[r - (r == 8)]}.png", f"t{r % 5}", 7 * (r % 8)) for r, one in enumerate(train)]
    table(root / "train.csv", head, [*rows[:-1], (train[-1], rows[23][1], "t1", rows[23][3])])
    table(root / "test.csv", head[:22], ((one, f"{name}.png", "t") for one, name in zip(test, names[32:], strict=True)))
    table(root / "sample_submission.csv", "posting_id,matches", ((name, name) for name in test))
    return root


def index(root: Path) -> Path:
    """Test images that search a folder of others, deep in it, which the sample alone tells."""
    train, test, searched = _ids(32), _ids(4, 100), _ids(9, 200)
    _shown(root, [(f"train/{place}", train[place::2]) for place in (0, 1)])
    _shown(root, [("test", test), ("index/0/a", searched[:5]), ("index/0/b", searched[5:])])
    table(root / "train.csv", "id,landmark_id", ((name, 100 + row % 8) for row, name in enumerate(train)))
    table(root / "sample_submission.csv", "id,images", ((name, " ".join(searched[:3])) for name in test))
    return root


def searched_folders(root: Path) -> Path:
    """A folder for each identity, one of queries and one of a gallery, and no csv."""
    for row in range(32):
        save(root / "train" / f"p{row % 8}" / f"{row:04d}.png", picture(row % 8, row, side=12))
    _shown(root, (("query", [f"q{row}" for row in range(3)]), ("gallery", [f"g{row}" for row in range(7)])))
    return root


def searched_tables(root: Path) -> Path:
    """query.csv and gallery.csv beside train.csv, cameras among the columns, and one folder of images."""
    train, asking, searched = _ids(32), _ids(3, 100), _ids(7, 200)
    _shown(root, (("images", [*train, *asking, *searched]),))
    rows = ((f"{name}.png", f"p{row % 8}", row // 8) for row, name in enumerate(train))
    table(root / "train.csv", "image,person,camera", rows)
    for name, ids in (("query", asking), ("gallery", searched)):
        table(root / f"{name}.csv", "image,camera", ((f"{one}.png", row % 2) for row, one in enumerate(ids)))
    table(root / "sample_submission.csv", "image,result", ((f"{name}.png", "") for name in asking))
    return root


def new_whale(root: Path) -> Path:
    """Five labels a cell, one of them for whales that training does not know, where it is a label as well."""
    train, test = [f"{name}.jpg" for name in _ids(40)], [f"{name}.jpg" for name in _ids(6, 100)]
    for folder, names in (("train", train), ("test", test)):
        _images(root / folder, names, [row % 8 for row, _ in enumerate(names)], "", side=12)
    rows = ((name, "new_whale" if row % 4 == 0 else f"w_{row % 5}") for row, name in enumerate(train))
    table(root / "train.csv", "Image,Id", rows)
    table(root / "sample_submission.csv", "Image,Id", ((name, "new_whale w_0 w_1 w_2 w_3") for name in test))
    return root


def new_individual(root: Path) -> Path:
    """Three labels a cell, one of which no training row has; a species that several individuals share."""
    train, test = _ids(40), _ids(6, 100)
    _shown(root, (("train_images", train), ("test_images", test)))
    rows = ((name, ("orca", "fin")[row % 10 % 2], f"{row % 10:012x}") for row, name in enumerate(train))
    table(root / "train.csv", "image,species,individual_id", rows)
    cell = "000000000003 000000000001 new_individual"
    table(root / "sample_submission.csv", "image,predictions", ((name, cell) for name in test))
    return root


FORMS: dict[str, Callable[[Path], Path]] = {
    form.__name__: form
    for form in (
        plain, suffixes, nested, wrong_suffixes, class_folders, zipped, one_hot, class_columns, votes, labels_in_a_cell,
        labels_in_columns, number, grades, chance, ranks, places_of_classes, channels, arrays, no_sample, kinds,
        row_a_label, row_a_number, named_files,
    )
}  # fmt: skip


MASKS: dict[str, Callable[[Path], Path]] = {
    form.__name__: form
    for form in (
        mask_rows, mask_classes, mask_relative, mask_class_column, mask_objects, mask_files, masks_beside,
        mask_indices, mask_colours,
        mask_palette, mask_labels, mask_file_a_class,
    )
}  # fmt: skip


SEARCHES: dict[str, Callable[[Path], Path]] = {
    form.__name__: form
    for form in (matches, pool, postings, index, searched_folders, searched_tables, new_whale, new_individual)
}


def write(name: str, root: Path) -> Path:
    """Draw a form into a folder of its own below root."""
    return {**FORMS, **MASKS, **SEARCHES}[name](root / name)
