"""Maps of images of gigapixels: what is read in bands of rows is what is read at once, in a part of the memory."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from pipeline import artefacts, convolution, images, infer, maps, pictures, ragged, registry
from pipeline.artefacts import Predictions
from pipeline.blending import Weighted
from pipeline.maps import Chained, Geometry, Maps, Mean, Ragged, Stored, Taken, Voted
from pipeline.mask_tables import RleForm
from pipeline.parts import cuts, readers
from pipeline.tasks.segmentation import Segmentation

SIZES = np.array([[40, 31], [23, 57]])
SMALL = 31 * 2 * 7  # values of a band here: 7 rows of the first image


def smooth(seed: int, planes: int, size: tuple[int, int], sigma: float = 1.5) -> np.ndarray:
    """Blobs of probabilities (H, W, planes) uint8."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((*size, planes)), (sigma, sigma, 0))
    return np.rint((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)


def stored(folder: Path, seed: int, arrays: list[np.ndarray] | None = None) -> Stored:
    arrays = arrays or [smooth(10 * seed + row, 2, tuple(size)) for row, size in enumerate(SIZES.tolist())]
    with ragged.writer(folder / f"{seed}.maps") as out:
        for array in arrays:
            out.add(array)
    shapes = np.array(out.shapes)
    return Stored(Ragged(folder / f"{seed}.maps", shapes), shapes[:, :2], Geometry(), int(shapes[0, 2]))


def every_kind(folder: Path) -> dict[str, Maps]:
    own, other = stored(folder, 1), stored(folder, 2)
    square = Stored([smooth(7, 2, (16, 16)), smooth(8, 2, (16, 16))], SIZES, Geometry("pad"), 2)
    torch.manual_seed(0)
    net = convolution.Stacker(2, 2)
    torch.nn.init.normal_(net.layers[-1].weight, std=0.1)
    return {
        "own size": own, "made square": square, "taken": Taken(own, np.array([1, 0])),
        "chained": Chained([own, square]),
        "mean": Mean([own, other], [0.3, 0.7]), "weighted": Weighted([own, other], np.array([[1, 0], [0.25, 0.75]])),
        "voted": Voted([own, other], lambda one, row: one.one(row) > 0.5, "threshold()"),
        "convolved": convolution.Convolved([own, other], [net.eval()], np.zeros(2, dtype=np.int64), False),
    }  # fmt: skip


def test_bands_are_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = every_kind(tmp_path)
    whole = {name: [one.one(row) for row in range(len(one))] for name, one in kinds.items()}
    assert all(len(list(one.bands(0))) == 1 for one in kinds.values()), "a small image is one band"
    monkeypatch.setattr(maps, "BAND", SMALL)
    for name, one in kinds.items():
        for row, wanted in enumerate(whole[name]):
            parts = list(one.bands(row))
            assert [part.shape[1] for part in parts] == [
                rows.stop - rows.start for rows in maps.bands_of(*wanted.shape)
            ]
            assert len(parts) > 3, name
            # bits may differ where oneDNN sums another way
            np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=1e-6 if name == "convolved" else 0)
            np.testing.assert_array_equal(one.one(row), np.concatenate(parts, axis=1))


def test_what_is_written_in_bands_is_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = stored(tmp_path, 1)
    artefacts.write_maps(tmp_path / "whole.npz", np.array(["a", "b"]), own, "probability", {})
    monkeypatch.setattr(maps, "BAND", SMALL)
    artefacts.write_maps(tmp_path / "bands.npz", np.array(["a", "b"]), own, "probability", {})
    assert (tmp_path / "bands.maps").read_bytes() == (tmp_path / "whole.maps").read_bytes()
    assert Predictions.load(tmp_path / "bands.npz").values.sizes.tolist() == SIZES.tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "call",
    ["threshold(level=[0.4,0.6],min_size=20,holes=6)", "threshold(level=0.45,gate=0.99,holes=1000)",
     "argmax(bias=0.5)", "argmax(bias=-0.2,min_size=25)"],
)  # fmt: skip
def test_a_banded_cut_is_the_plain_one(call: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = smooth(seed, 2, (60, 47)).transpose(2, 0, 1).astype(np.float32) / 255
    cut = registry.build("cuts", call)()
    wanted = cut(values)
    assert 0 < wanted.mean() < 1
    monkeypatch.setattr(cuts, "BAND", 47 * 9)
    found = cut.banded(lambda: (values[:, top : top + 7] for top in range(0, 60, 7)))
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_components_hold_together_across_many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((40, 30), dtype=bool)
    mask[2:38, 3], mask[2:38, 20], mask[37, 3:21] = True, True, True  # one, joined in the last band
    mask[5, 10], mask[6, 11], mask[30:33, 25:28] = True, True, True  # two at a corner, nine
    monkeypatch.setattr(cuts, "BAND", 60)
    kept = cuts.cleaned(mask, 9, 0)
    assert (mask & ~kept).sum() == 2
    assert not kept[5:7, 10:12].any()
    ring = np.zeros((12, 12), dtype=bool)
    ring[2:9, 2:9] = True
    ring[4:7, 4:7] = False  # a hole of nine, across bands
    monkeypatch.setattr(cuts, "BAND", 24)
    assert cuts.cleaned(ring, 0, 9)[2:9, 2:9].all()
    assert not cuts.cleaned(ring, 0, 8)[4:7, 4:7].any()
    assert not cuts.cleaned(ring[:, 4:7], 0, 100)[4:7].any(), "it touches a side"


def test_scales_are_averaged_in_bands_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = [smooth(0, 2, (40, 31)), smooth(1, 2, (20, 15)), smooth(2, 2, (61, 47))]
    tensors = [torch.from_numpy(one).permute(2, 0, 1)[None].float() for one in scaled]
    each = [functional.interpolate(one, size=(40, 31), mode="bilinear", align_corners=False) for one in tensors]
    wanted = torch.stack(each).mean(dim=0)[0].permute(1, 2, 0).numpy()
    monkeypatch.setattr(infer, "bands_of", lambda *shape: [slice(0, 9), slice(9, 40)])
    found = infer._mean_of(scaled)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.5 + 1e-4


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "colour", "clear"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "deflate.tif"])
def test_a_large_picture_is_read_otherwise_and_is_the_same(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, {"grey": 1, "colour": 3, "clear": 4}[kind]), np.uint8)
    if (kind, suffix) == ("clear", "jpg"):
        pixels = pixels[..., :3]
    shown = Image.fromarray(pixels.squeeze())
    shown.save(tmp_path / f"a.{suffix}", **({"compression": "tiff_adobe_deflate"} if "deflate" in suffix else {}))
    wanted = images.read(f"a.{suffix}", tmp_path, channels=3)
    called = []
    for module, name in ((pictures, "_from_file"), (readers, "_with_tifffile")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, plain=plain: (called.append(1), plain(*given))[1])
    monkeypatch.setattr(pictures, "LARGE", 100)
    monkeypatch.setattr(images, "BLOCK_BYTES", 30 * 3 * 7)
    np.testing.assert_array_equal(images.read(f"a.{suffix}", tmp_path, channels=3), wanted)
    assert bool(called) == (kind != "clear" or "tif" not in suffix), "other tiffs are Pillow's"


def test_a_large_picture_in_a_zip_or_turned_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, turned = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)), Image.Exif()
    turned[0x0112] = 6
    for name in ("a.jpg", "a.tif"):
        shown.save(tmp_path / name, exif=turned)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.jpg", "a.jpg")
    specs = ("a.jpg", "a.tif", "z.zip/a.jpg")
    wanted = [images.read(spec, tmp_path) for spec in specs]
    monkeypatch.setattr(pictures, "LARGE", 100)
    for spec, one in zip(specs, wanted, strict=True):
        assert one.shape == (30, 40, 3)
        np.testing.assert_array_equal(images.read(spec, tmp_path), one)


# --- memory -------------------------------------------------------------------------------------------------------

SIDE = 800


def peak(make: object) -> float:
    """Bytes a pixel that numpy holds at most while something is made."""
    tracemalloc.start()
    try:
        make()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1] / SIDE**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "most"), [("masks", 6), ("class_masks", 7)])
def test_a_large_image_is_submitted_without_a_map_of_floats(
    kind: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of floats would take 4 bytes a pixel and plane, and each step on it as many again."""
    for module in (maps, cuts):
        monkeypatch.setattr(module, "BAND", 2**15)
    planes = 1 if kind == "masks" else 2
    columns = ["mask"] if kind == "masks" else ["ground", "disc"]
    answer = RleForm("id", "rle")
    told = SimpleNamespace(columns=columns, answer=answer, ids=lambda frame: frame["id"].tolist())
    task = Segmentation(kind, told, "", "threshold()" if kind == "masks" else "argmax()")  # type: ignore[arg-type]
    coarse = [smooth(seed, planes, (SIDE // 40, SIDE // 40)) for seed in (1, 2)]
    members = [stored(tmp_path, seed, [one.repeat(40, 0).repeat(40, 1)]) for seed, one in enumerate(coarse)]
    call = "threshold(level=0.55,min_size=16,holes=16)" if kind == "masks" else "argmax(min_size=16)"
    ids, sample = np.array(["a"]), pd.DataFrame({"id": ["a"], "rle": [""]})

    def submit() -> None:
        Predictions(ids, task.together(members, call), "probability").save(tmp_path / "test.npz")
        frame = task.submission(ids, Predictions.load(tmp_path / "test.npz").values, sample)
        assert len(frame["rle"][0]) > 1000

    assert peak(submit) < most
    assert peak(lambda: task.confident(members[0], 0.5)) < 1
