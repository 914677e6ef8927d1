"""Peak memory of masks for a large image among small ones: 20,000 × 20,000 pixels in RGB, and 1,000 of mixed sizes.

    .venv/bin/python benchmarks/memory.py                              a quarter of an hour; 4 GB of disk
    .venv/bin/python benchmarks/memory.py --side 6000 --count 200      a minute
    .venv/bin/python benchmarks/memory.py --kind class_masks --format tiff

The images are the test images of a competition that is made here, a U-Net over a small net learns a moment on eight
others, and the whole way follows, each stage in a process of its own: what is printed is the peak of each process's
resident memory, pages of its memory maps among it. The members of two folds predict every image in tiles of its own
size, their maps are scored for how sure they are, cut, joined by vote and written as run lengths.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peaks import taken

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
LIMIT_GB = 3.0
TRAIN, PATTERN, SMALL = 8, 1000, (64, 512)
STAGES = ("split", "train", "predict", "stack")
MODEL = """\
backbone: small_image(width=4)
decoder: unet(widths=(8, 8, 8, 8))
pretrained: false
image_size: 512
epochs: 1
batch_size: 4
lr: 3e-3
predict_batch: 64
"""
COMPETITION = """\
data: {{folder: data/drawn, resize: tiles, megapixels: 1000}}
mask: {{rle: rle, rows: {rows}, classes: {classes}, exclusive: {exclusive}}}
task: segmentation(kind='{kind}')
folds: {{count: 2}}
tiles: {{overlap: 0.125}}
models: [tiny]
"""
FORMS = {"masks": ("image", "[]", "false"), "class_masks": ("class", "[disc, ring]", "true")}


def main() -> None:
    """Draw, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="of the large image")
    parser.add_argument("--count", type=int, default=1000, help="of small images")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="of the large image's file")
    parser.add_argument("--format", default="png", choices=("png", "tiff"), help="of the large image's file")
    parser.add_argument("--kind", default="masks", choices=tuple(FORMS), help="of masks")
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    parser.add_argument("--draw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw(options)
        return
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="memory-"))
    try:
        words = [f"--{key}={value}" for key, value in vars(options).items() if key != "draw"]
        subprocess.run([sys.executable, __file__, *words, "--draw"], check=True)  # its memory is not counted
        report(options)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def report(options: argparse.Namespace) -> None:
    """Run the stages and print the table."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}")
    large = f"{options.side:,} × {options.side:,} × {options.channels} ({options.format})"
    print(f"{large} and {options.count:,} small images, {options.kind}")
    print("stage      peak GB  seconds")
    highest = 0.0
    for stage in STAGES:
        began = time.perf_counter()
        peak, _ = taken(options.folder, f"stage={stage}")
        highest = max(highest, peak)
        print(f"{stage:<9}  {peak:7.2f}  {time.perf_counter() - began:7.0f}", flush=True)
    text = next((options.folder / "submissions/drawn").glob("*.csv"))
    print(f"the submission has {text.stat().st_size / 1e6:,.1f} MB; the highest peak is {highest:.2f} GB ", end="")
    print(f"(≤ {LIMIT_GB:g}) {'pass' if highest <= LIMIT_GB else 'FAIL'}")


# --- what is drawn ------------------------------------------------------------------------------------------------


def draw(options: argparse.Namespace) -> None:
    """A project with the competition ``drawn``: discs on soft ground, the large image made of one pattern."""
    folder, generator = options.folder / "data/drawn", np.random.default_rng(0)
    for part in ("train_images", "test_images"):
        (folder / part).mkdir(parents=True)
    classes = options.kind == "class_masks"
    ids = ["large", *(f"b{place:04d}" for place in range(options.count))]
    write(folder / f"test_images/large.{options.format}", large(generator, options.side, options.channels))
    for name in ids[1:]:
        height, width = (int(side) for side in generator.integers(*SMALL, 2))
        write(folder / f"test_images/{name}.png", picture(generator, height, width)[0])
    lines = ["id,rle"]
    from pipeline import rle

    for place in range(TRAIN):
        image, mask = picture(generator, 256, 320)
        write(folder / f"train_images/a{place}.png", image)
        texts = {"disc": mask == 1, "ring": mask == 2} if classes else {"": mask > 0}
        lines += [f"{'_'.join(filter(None, [f'a{place}', key]))},{rle.encode(bits)}" for key, bits in texts.items()]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{name}_{key}," for name in ids for key in ("disc", "ring")] if classes else [f"{name}," for name in ids]
    (folder / "sample_submission.csv").write_text("\n".join(["id,rle", *rows]) + "\n")
    for kind in ("competition", "model", "recipe"):
        (options.folder / "configs" / kind).mkdir(parents=True)
    (options.folder / "configs/default.yaml").write_text("competition: drawn\n")
    (options.folder / "configs/model/tiny.yaml").write_text(MODEL)
    told = dict(zip(("rows", "classes", "exclusive"), FORMS[options.kind], strict=True))
    (options.folder / "configs/competition/drawn.yaml").write_text(COMPETITION.format(kind=options.kind, **told))


def picture(generator: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8, and its mask: 1 discs, 2 the rings around them."""
    from pipeline.images import opencv

    soft = opencv().resize(generator.integers(60, 120, (5, 5), dtype=np.uint8), (width, height))
    image, mask = np.repeat(soft[..., None], 3, axis=2), np.zeros((height, width), dtype=np.uint8)
    for _ in range(height * width // 20_000 + 1):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        radius = int(generator.integers(8, 40))
        for value, colour, size in ((2, (200, 180, 160), radius + 5), (1, (240, 90, 60), radius)):
            opencv().circle(image, centre, size, colour, -1)
            opencv().circle(mask, centre, size, value, -1)
    return image, mask


def large(generator: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """(side, side, channels) uint8: one pattern again and again, brighter from place to place."""
    pattern = picture(generator, PATTERN, PATTERN)[0][..., :channels]
    count = -(-side // PATTERN)
    image = np.tile(pattern, (count, count, 1))[:side, :side]
    for top in range(0, side, PATTERN):
        image[top : top + PATTERN] -= np.uint8(generator.integers(0, 40))
    return image


def write(path: Path, image: np.ndarray) -> None:
    """A picture, or a tiff without compression."""
    if path.suffix == ".png":
        from pipeline.images import opencv

        path.write_bytes(opencv().imencode(".png", image[..., ::-1], [opencv().IMWRITE_PNG_COMPRESSION, 1])[1].data)
        return
    import tifffile

    tifffile.imwrite(path, image, photometric="rgb" if image.shape[2] == 3 else "minisblack")


if __name__ == "__main__":
    main()
