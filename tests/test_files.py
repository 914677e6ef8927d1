"""Files: which one an id means, in folders and zips, the names of several files an image, and patterns guessed."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import archives, files
from pipeline.errors import UserError
from pipeline.files import BOX, JOIN, find_files, find_images, label, listing, parts, resolve, with_boxes
from pipeline.patterns import IMAGE_SUFFIXES, guess_channels, guess_pattern, is_image

# --- which file an id means ---------------------------------------------------------------------------------------


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def test_ids_with_and_without_suffix_and_path(tmp_path: Path) -> None:
    touch(tmp_path, "train/007.png", "train/a/x.v1.jpg", "train/a/deep/y.JPG", "train/plain", "test/007.png")
    ids = ["007", "007.png", "x.v1", "a/x.v1", "a/deep/y.JPG", "y", "plain", "train/007.png"]
    files = ["007.png", "007.png", "a/x.v1.jpg", "a/x.v1.jpg", "a/deep/y.JPG", "a/deep/y.JPG", "plain", "007.png"]
    assert resolve(tmp_path, "train", ids) == [f"train/{file}" for file in files]
    assert resolve(tmp_path, "train/", ["y"]) == ["train/a/deep/y.JPG"]
    assert resolve(tmp_path, ".", ["test/007", "y"]) == ["test/007.png", "train/a/deep/y.JPG"]
    assert resolve(tmp_path, "", []) == []


def test_notes_beside_images_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.xml", "a.txt", "._a.png", ".DS_Store", "__MACOSX/a.png", "b.dcm")
    assert resolve(tmp_path, "", ["a", "b", "a.xml"]) == ["a.png", "b.dcm", "a.xml"]


@pytest.mark.parametrize("files", [("a.png", "a.jpg"), ("x/a.png", "y/a.png"), ("a.dcm", "a.raw")])
def test_ambiguous_ids_name_both_files(tmp_path: Path, files: tuple[str, str]) -> None:
    touch(tmp_path, *files, "b.png")
    with pytest.raises(UserError, match="1 ids fit several files") as caught:
        resolve(tmp_path, "", ["b", "a"])
    assert all(file in str(caught.value) for file in files)
    assert resolve(tmp_path, "", list(files)) == list(files)


def test_missing_ids_are_named_once_and_together(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "train/b.png")
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, "train", ["a", *(f"lost{n}" for n in range(8))])
    message = str(caught.value)
    assert "8 of 9 ids" in message
    assert "lost4" in message
    assert "lost5" not in message
    assert f"{tmp_path}/train" in message
    with pytest.raises(UserError, match="is no folder"):
        resolve(tmp_path, "nowhere", ["a"])


@pytest.mark.parametrize("name", ["../secret.png", "x/../../secret.png", "/etc/passwd", "", "a\0b", ".."])
def test_ids_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "secret.png", "train/a.png")
    with pytest.raises(UserError, match="1 image ids would leave"):
        resolve(tmp_path, "train", ["a", name])


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "secret.png", "other/b.png", "train/real/a.png", "train_more/c.png")
    (tmp_path / "train/inside.png").symlink_to(tmp_path / "train/real/a.png")
    (tmp_path / "train/outside.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "train/neighbour.png").symlink_to(tmp_path / "train_more/c.png")
    (tmp_path / "train/loop").symlink_to(tmp_path / "train")
    (tmp_path / "train/far").symlink_to(tmp_path / "other")
    (tmp_path / "linked").symlink_to(tmp_path / "train")
    assert resolve(tmp_path, "train", ["inside", "a"]) == ["train/inside.png", "train/real/a.png"]
    assert resolve(tmp_path, "linked", ["a"]) == ["linked/real/a.png"]  # the image folder itself may be a link
    for name in ("outside", "neighbour", "b"):
        with pytest.raises(UserError, match="not followed"):
            resolve(tmp_path, "train", [name])


def slow_candidates(files: list[str], name: str) -> list[str]:
    """All files that an id may mean, by the words of the docstring."""
    if name in files:
        return [name]
    stems = [file for file in files if name in (str(Path(file).with_suffix("")), Path(file).stem)]
    named = [file for file in files if Path(file).name == name]
    pictures = [file for file in stems if Path(file).suffix in IMAGE_SUFFIXES]
    found = sorted({*named, *pictures}) or sorted(stems)
    if not found and Path(name).suffix in IMAGE_SUFFIXES:
        others = slow_candidates(files, str(Path(name).with_suffix("")))
        return [file for file in others if is_image(file) or not Path(file).suffix]
    return found


TREES = st.sets(
    st.tuples(
        st.sampled_from(["", "x/", "x/y/"]), st.sampled_from("ab"), st.sampled_from([".png", ".jpg", ".xml", ""])
    ).map("".join),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(TREES, st.sampled_from(["a", "b", "a.png", "b.xml", "x/a", "x/y/b", "x/a.jpg", "y/a"]))
def test_resolve_against_a_slow_reference(tree: set[str], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        touch(Path(folder), *tree)
        wanted = slow_candidates(sorted(tree), name)
        if len(wanted) == 1:
            assert resolve(Path(folder), "", [name]) == wanted
        else:
            with pytest.raises(UserError, match="fit several files" if wanted else "have no image"):
                resolve(Path(folder), "", [name])
        assert resolve(Path(folder), "", sorted(tree)) == sorted(tree)


def test_paths_that_all_begin_with_folders_which_are_not_here(tmp_path):
    touch(tmp_path, "train/p1/a.png", "train/p2/a.png", "train/p2/b.png")
    for head in ("Set-v1.0/train/", "https://x.org/data/train/", "Set\\train\\"):
        ids = [f"{head}p1/a.png", f"{head}p2/a.png"]
        assert resolve(tmp_path, "train", ids) == ["train/p1/a.png", "train/p2/a.png"]
    with pytest.raises(UserError, match="1 of 3 ids have no image"):
        resolve(tmp_path, "train", ["Set/p1/a.png", "Set/p2/a.png", "Set/p3/a.png"])


def test_a_missing_image_never_becomes_another_of_its_name(tmp_path):
    touch(tmp_path, "dog/1.png", "dog/2.png")
    with pytest.raises(UserError, match="1 of 2 ids have no image"):
        resolve(tmp_path, "", ["cat/1.png", "dog/2.png"])
    with pytest.raises(UserError, match="have no image"):
        resolve(tmp_path, "", ["cat/1.png"])


# --- an id that fits no file as it stands -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "there"),
    [
        (["7.jpg", "8.png"], ["7.png", "8.Bmp"]),  # other suffixes
        (["x/7.jpeg"], ["x/7.tif"]),
        (["7.tif", "v1.2.jpg"], ["7.npy", "v1.2.png"]),
        (["IMG_a", "b.PNG", "Ä"], ["img_A.png", "B.png", "ä.jpg"]),  # upper and lower case
        (["a.JPG"], ["A.png"]),
        (["7", "12", "0"], ["0007.png", "0012.jpg", "0000.png"]),  # leading zeros, of either
        (["007", "8.0"], ["7.png", "0008.png"]),
        (["7.png"], ["007.jpg"]),
    ],
)
def test_ids_that_nearly_fit(tmp_path: Path, ids: list[str], there: list[str]) -> None:
    touch(tmp_path, *there, "notes.txt")
    assert resolve(tmp_path, "", ids) == there


@pytest.mark.parametrize(
    ("ids", "there"),
    [
        (["7.jpg"], ["7.xml"]),
        (["a", "A"], ["a.png"]),
        (["Aa"], ["aa.png", "AA.png"]),
        (["7", "07"], ["007.png"]),
        (["7"], ["07.png", "007.png"]),
        (["7", "7.png"], ["7.png", "8.png"]),
        (["7.jpg", "7.png"], ["7.png"]),
        (["1e3"], ["1000.png"]),
    ],
)
def test_near_fits_that_are_not_one_to_one_are_missing(tmp_path: Path, ids: list[str], there: list[str]) -> None:
    touch(tmp_path, *there)
    if ids == ["7", "7.png"]:  # two ways to say the same
        assert resolve(tmp_path, "", ids) == ["7.png", "7.png"]
        return
    with pytest.raises(UserError, match=f"1 of {len(ids)} ids have no image|1 of 1 ids|2 of 2 ids"):
        resolve(tmp_path, "", ids)


def test_an_id_whose_other_suffixes_are_several_is_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "7.png", "7.bmp")
    with pytest.raises(UserError, match=r"fit several files: '7\.jpg': 7\.(png|bmp) and 7\."):
        resolve(tmp_path, "", ["7.jpg"])


def test_half_of_the_images_missing_is_one_message(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.png" for n in range(0, 40, 2)))
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, "", [str(n) for n in range(40)])
    message = str(caught.value)
    assert "20 of 40 ids have no image" in message
    assert "1, 3, 5, 7, 9 …" in message
    assert "holds 20 files: 0.png, 10.png, 12.png, 14.png, 16.png …" in message
    assert "\n" not in message


# --- patterns -----------------------------------------------------------------------------------------------------


def test_patterns_name_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "train/img_0007.png", "train/img_0012.png", "train/7/x.jpg", "train/12/x.jpg", "train/a{b}7.png")
    assert resolve(tmp_path, "train", ["12", "7"], ["img_{id:0>4}.png"]) == ["train/img_0012.png", "train/img_0007.png"]
    assert resolve(tmp_path, "train", ["7"], ["img_{id:04}.png"]) == ["train/img_0007.png"]
    assert resolve(tmp_path, "train", ["7"], ["img_{id:04d}"]) == ["train/img_0007.png"]
    assert resolve(tmp_path, "train", ["7"], ["{id}/x.jpg"]) == ["train/7/x.jpg"]
    assert resolve(tmp_path, "train", ["7"], ["train/{id}/x.jpg"]) == ["train/7/x.jpg"]
    assert resolve(tmp_path, "train", ["7"], ["a{{b}}{id}.png"]) == ["train/a{b}7.png"]
    assert resolve(tmp_path, "train", ["7"], ["{id}/x.jpg", "img_{id:0>4}.png"]) == [
        f"train/7/x.jpg{JOIN}train/img_0007.png"
    ]
    with pytest.raises(UserError, match=r"1 of 2 ids have no image called img_\{id\}\.png \(data\.files\)"):
        resolve(tmp_path, "train", ["0012", "9"], ["img_{id}.png"])


@pytest.mark.parametrize(
    "pattern",
    ["a.png", "{}.png", "{id", "{name}.png", "{id.__class__}.png", "{id[0]}.png", "{id!r}", "{id:{id}}", "{id:x}"],
)
def test_other_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "7.png")
    with pytest.raises(UserError, match=r"data\.files="):
        resolve(tmp_path, "", ["7"], [pattern])


def test_patterns_do_not_leave_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "secret.png", "train/a.png")
    for ids, pattern in ((["secret"], "../{id}.png"), (["../secret"], "{id}.png")):
        with pytest.raises(UserError):
            resolve(tmp_path, "train", ids, [pattern])


NUMBERS = [str(n) for n in range(1, 130)]
HASHES = [f"{n * 7919 % 65536:04x}-{n}" for n in range(100)]


@pytest.mark.parametrize(
    ("ids", "pattern"),
    [
        (NUMBERS, "img_{id:0>4}.png"),
        (NUMBERS, "{id:0>5}.jpg"),
        (NUMBERS, "image{id}.png"),
        (NUMBERS, "2019_{id}.png"),
        (HASHES, "train_{id}_v2.png"),
        (HASHES, "{id}/image.png"),
        (HASHES, "{id}/{id}.png"),
        (HASHES, "{id}.ome.tif"),
        (HASHES, "{{{id}}}.png"),
    ],
)
def test_a_pattern_is_guessed_from_examples(tmp_path: Path, ids: list[str], pattern: str) -> None:
    there = [pattern.format(id=name) for name in ids]
    guess = guess_pattern(ids, sorted(there))
    assert guess is not None
    touch(tmp_path, *there)
    assert resolve(tmp_path, "", ids, [guess]) == there


def test_a_pattern_is_guessed_over_folders_suffixes_and_gaps(tmp_path: Path) -> None:
    there = [f"{'ab'[n % 2]}/img_{name}.{['png', 'jpg', 'bmp'][n % 3]}" for n, name in enumerate(HASHES)]
    guess = guess_pattern(HASHES, there[:96])
    assert guess == "img_{id}"
    touch(tmp_path, *there)
    assert resolve(tmp_path, "", HASHES, [guess]) == there
    assert guess_pattern(HASHES, there[:90]) is None
    assert guess_pattern(HASHES, ["other.png", "files.png"]) is None
    assert guess_pattern(HASHES, []) is None
    assert guess_pattern([], there) is None


@pytest.mark.parametrize(
    "patterns",
    [
        ["{id}_red.png", "{id}_green.png", "{id}_blue.png", "{id}_yellow.png"],
        ["{id}_1.png", "{id}_2.png", "{id}_10.png"],
        ["R/{id}.tif", "G/{id}.tif", "B/{id}.tif"],
        ["{id}/a.png", "{id}/b.png"],
        ["{id:0>4}_x.png", "{id:0>4}_y.png"],
    ],
)
def test_channels_are_guessed_from_examples(tmp_path: Path, patterns: list[str]) -> None:
    ids = NUMBERS if "0>4" in patterns[0] else HASHES
    there = [pattern.format(id=name) for name in ids for pattern in patterns]
    found = guess_channels(ids, sorted(there))
    assert [pattern.format(id=ids[3]) for pattern in found] == [pattern.format(id=ids[3]) for pattern in patterns]
    touch(tmp_path, *there)
    assert resolve(tmp_path, "", ids, found)[5].split(JOIN) == [pattern.format(id=ids[5]) for pattern in patterns]


def test_one_file_an_id_is_no_set_of_channels() -> None:
    assert guess_channels(HASHES, [f"{name}.png" for name in HASHES]) == []
    assert guess_channels(HASHES, [f"img_{name}.png" for name in HASHES]) == []


def test_the_message_proposes_the_pattern(tmp_path: Path) -> None:
    touch(tmp_path, *(f"img_{int(name):04}.png" for name in NUMBERS))
    with pytest.raises(UserError, match=r"129 of 129 ids.*'data\.files=img_\{id:0>4\}\.png'"):
        resolve(tmp_path, "", NUMBERS)
    touch(tmp_path / "cells", *(f"{name}_{colour}.png" for name in HASHES for colour in ("green", "red")))
    with pytest.raises(UserError, match=r"data\.files=\{id\}_red\.png,\{id\}_green\.png"):
        resolve(tmp_path, "cells", HASHES)


# --- zips ---------------------------------------------------------------------------------------------------------


def zipped(path: Path, *members: str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as content:
        for member in members:
            content.writestr(member, f"content of {member} " * 9)
    return path


def content(folder: Path, file: str) -> str:
    return files.read_bytes(f"{folder}/{file}").decode()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_a_folder(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "train.zip", "a.png", "sub/b.jpg", "sub/", "__MACOSX/._a.png", ".hidden.png", method=method)
    ids, wanted = ["a", "b.jpg", "sub/b"], ["a.png", "sub/b.jpg", "sub/b.jpg"]
    for place in ("train.zip", "train", "train/"):  # the folder that it would be unpacked to
        assert resolve(tmp_path, place, ids) == [f"train.zip/{file}" for file in wanted]
    for place in ("", "."):
        assert resolve(tmp_path, place, [*ids, "train/a.png"]) == [f"train.zip/{file}" for file in [*wanted, "a.png"]]
    assert resolve(tmp_path, "train.zip/sub", ["b"]) == resolve(tmp_path, "train/sub", ["b"]) == ["train.zip/sub/b.jpg"]
    assert content(tmp_path, "train.zip/sub/b.jpg") == "content of sub/b.jpg " * 9
    assert find_files(tmp_path) == find_images(tmp_path, "train") == ["train.zip/a.png", "train.zip/sub/b.jpg"]


@pytest.mark.parametrize("place", ["train.zip", "train.zip/train", "train", ""])
def test_a_zip_whose_only_folder_repeats_its_name(tmp_path: Path, place: str) -> None:
    zipped(tmp_path / "train.zip", "train/cat/a.png", "train/dog/b.png")
    found = ["train.zip/train/cat/a.png", "train.zip/train/dog/b.png"]
    assert resolve(tmp_path, place, ["a", "dog/b.png" if place else "train/dog/b.png"]) == found
    if place:
        inside = files.find(tmp_path, place)
        assert (inside.prefix, inside.files) == ("train.zip/train/", ["cat/a.png", "dog/b.png"])


def test_a_zip_inside_the_image_folder(tmp_path: Path) -> None:
    zipped(tmp_path / "images/more.ZIP", "b.png", "c.png")
    touch(tmp_path, "images/a.png", "images/c.png")
    assert resolve(tmp_path, "images", ["a", "b", "c"]) == ["images/a.png", "images/more.ZIP/b.png", "images/c.png"]
    zipped(tmp_path / "images/done.zip", "d.png")  # unpacked beside itself
    touch(tmp_path, "images/done/d.png")
    assert resolve(tmp_path, "images", ["d"]) == ["images/done/d.png"]
    assert find_files(tmp_path, "images") == [f"images/{name}" for name in ("a.png", "c.png", "done/d.png")] + [
        "images/more.ZIP/b.png", "images/more.ZIP/c.png"
    ]  # fmt: skip


def test_a_zip_that_was_unpacked_is_no_folder(tmp_path: Path) -> None:
    zipped(tmp_path / "train.zip", "a.png", "b.png")
    touch(tmp_path, "images/a.png", "b.png")
    assert find_files(tmp_path) == ["b.png", "images/a.png"]
    assert resolve(tmp_path, "train", ["a"]) == ["train.zip/a.png"]
    (tmp_path / "train").mkdir()  # begun, and left empty
    assert resolve(tmp_path, "train", ["a"]) == ["train.zip/a.png"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        resolve(tmp_path, "", ["a"])


def test_members_that_would_leave_the_zip_are_no_files(tmp_path: Path) -> None:
    zipped(
        tmp_path / "t.zip", "../up.png", "/root.png", "x/../../up.png", "C:/drive.png", "x\\windows.png", "./dot.png"
    )
    assert find_files(tmp_path, "t.zip") == ["t.zip/dot.png", "t.zip/x/windows.png"]
    for name in ("up", "root", "drive"):
        with pytest.raises(UserError, match="1 of 1 ids have no image"):
            resolve(tmp_path, "t.zip", [name])
    with pytest.raises(UserError, match="would leave"):
        resolve(tmp_path, "t.zip", ["../secret"])
    assert content(tmp_path, "t.zip/x/windows.png").startswith("content of")


def test_a_zip_is_read_by_threads_and_after_a_fork(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(200)]
    zipped(tmp_path / "t.zip", *names)
    wanted = [f"content of {name} " * 9 for name in names]
    paths = [f"t.zip/{name}" for name in names]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda file: content(tmp_path, file), paths * 3)) == wanted * 3
    reads = os.pipe()
    child = os.fork()
    if not child:
        os.write(reads[1], pickle.dumps([content(tmp_path, file) for file in paths[::7]]))
        os._exit(0)
    assert pickle.loads(os.read(reads[0], 10**6)) == wanted[::7]
    os.waitpid(child, 0)
    for end in reads:
        os.close(end)


def test_listing_and_stats_go_through_zips(tmp_path: Path) -> None:
    zipped(tmp_path / "t.zip", "a.png", "b.png")
    specs = ["t.zip/a.png", f"t.zip/a.png{JOIN}t.zip/b.png{BOX}0,0,1,1", "t.zip/no.png", "no.zip/a.png"]
    found = list(files.stats(tmp_path, specs))
    assert [facts and facts[0] for facts in found] == [17 * 9, 2 * 17 * 9, None, None]
    before = listing(tmp_path, specs)
    stamp = (tmp_path / "t.zip").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "t.zip", ns=(stamp, stamp))
    assert list(files.stats(tmp_path, specs)) == found
    zipped(tmp_path / "t.zip", "a.png", "other.png")
    assert listing(tmp_path, specs) != before


def test_a_changed_zip_is_read_anew(tmp_path: Path) -> None:
    zipped(tmp_path / "t.zip", "a.png")
    assert find_files(tmp_path, "t.zip") == ["t.zip/a.png"]
    zipped(tmp_path / "t.zip", "a.png", "b.png")
    assert find_files(tmp_path, "t.zip") == ["t.zip/a.png", "t.zip/b.png"]


def test_damaged_and_encrypted_zips_are_named(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", "a.png").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"cut\.zip is no whole zip.*download it again"):
        resolve(tmp_path, "cut", ["a"])
    secret = bytearray(whole)
    secret[6] |= 1  # the bit of encryption, in the member's header and in the directory
    secret[whole.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(secret)
    with pytest.raises(UserError, match=r"secret\.zip is encrypted.*password"):
        find_files(tmp_path, "secret.zip")
    touch(tmp_path, "b.png")
    assert resolve(tmp_path, "", ["b", "a"]) == ["b.png", "whole.zip/a.png"]  # other zips do no harm, …
    with pytest.raises(UserError, match=r"cut\.zip is no whole zip"):  # … and are named where they may be the reason
        resolve(tmp_path, "", ["c"])


def test_a_damaged_member_is_a_value_error(tmp_path: Path) -> None:
    path = zipped(tmp_path / "t.zip", "a.png", "b.png")
    archives.open_archive(path)
    data = bytearray(path.read_bytes())
    data[45] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged in its zip"):
        files.read_bytes(f"{path}/a.png")
    assert content(tmp_path, "t.zip/b.png")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{path}/c.png")
    path = zipped(tmp_path / "b.zip", "a.png", method=zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="method 12.*unpack the zip"):
        files.read_bytes(f"{path}/a.png")


def test_an_empty_zip_and_a_wrong_folder_in_a_zip(tmp_path: Path) -> None:
    zipped(tmp_path / "empty.zip")
    zipped(tmp_path / "t.zip", "x/a.png")
    with pytest.raises(UserError, match=r"empty\.zip holds no files"):
        resolve(tmp_path, "empty", ["a"])
    with pytest.raises(UserError, match=r"t\.zip holds no files in y; it holds x/a\.png"):
        resolve(tmp_path, "t.zip/y", ["a"])


# --- specs --------------------------------------------------------------------------------------------------------


def test_specs_come_apart_and_read_well() -> None:
    [spec] = with_boxes([f"a.png{JOIN}b.png"], np.array([[1, 2.5, 30, 40]]))
    assert parts(spec) == (["a.png", "b.png"], (1.0, 2.5, 30.0, 40.0))
    assert label(spec) == "a.png + b.png [1,2.5,30,40]"
    assert (parts("a.png"), label("a.png")) == ((["a.png"], None), "a.png")
    assert with_boxes([], np.zeros((0, 4)), 0.5) == []


def test_a_margin_keeps_an_empty_box_empty() -> None:
    boxes = np.array([[10, 10, 30, 20], [5, 5, 5, 5], [9, 0, 3, 8]], dtype=float)
    found = [parts(spec)[1] for spec in with_boxes(["a"] * 3, boxes, 0.5)]
    assert found == [(0, 0, 40, 30), (5, 5, 5, 5), (9, 0, 3, 8)]
    with pytest.raises(UserError, match="1 boxes .* of b; fill"):
        with_boxes(["a", "b"], np.array([[0, 0, 1, 1], [0, np.nan, 1, 1]]))
