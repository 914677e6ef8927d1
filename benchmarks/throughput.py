"""Images per second of this pipeline beside a plain PyTorch loop and beside the model alone, in one run.

    .venv/bin/python benchmarks/throughput.py            on an idle machine
    .venv/bin/python benchmarks/throughput.py --quick    7 minutes on 2 cores, and noisier
    .venv/bin/python benchmarks/throughput.py --only 224

The sides have the same resnet18 (masks: smp's U-Net over it), batch and Adam, and the same augmentations:

- plain: torch's DataLoader with 2 workers that stay alive, cv2 reading each file anew, albumentations, fp32.
- plain bf16: the same loop by an author who knows bf16, channels_last and the fused Adam.
- pipeline: what stage=train and stage=predict run: Images (cache warm), Loader, engine.fit, infer.predict.
- pure: the model on batches that lie in memory, in several formats; the fastest of them is the limit.

On a GPU all sides use it, with larger batches, more images a round and a worker a core; the half format is what it has
(fp16 before Ampere). ``gpu.sh`` runs this and the other benchmarks there. What needs a library that is missing is left
out, and said so.

Where views, scales and members look at an image, each look counts. Machines drift and are shared, so the sides take
turns, round after round: a figure is the median over the rounds, and a ratio the median of the ratios within a round.
Each side has a process of its own, so that none runs with another's settings, and a first round that does not count:
with it go the start of the workers, compilation and the build of the cache. ``startup.py`` measures what that leaves
out.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import logging
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sides import GPU, MAKERS, MISSING, OURS, PLAIN, SHORT, TUNED, Case, Config, Sides, draw, hardware, torch

BATCH = 64
MORE = 16 if GPU else 1  # times the images of a round


class Player:
    """One side in a process of its own, which does rounds when it is asked to."""

    def __init__(self, side: str) -> None:
        if side != OURS:  # libgomp's own default, which importing this project's code would change
            os.environ["GOMP_SPINCOUNT"] = "300000"
        else:
            os.environ.pop("GOMP_SPINCOUNT", None)
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=play, args=(side, end))
        self.process.start()
        end.close()

    def ask(self, *question: Any) -> Any:
        """Send a question and wait for its answer."""
        self.pipe.send(question)
        return self.pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


def play(side: str, pipe: Any) -> None:
    """Answer ("make", work, case) with the names of the variants, and ("round", variant) with images per second."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    made: Sides = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(EOFError):  # the pipeline's own lines
        while True:
            match pipe.recv():
                case ("make", work, case):
                    made.clear()  # ends the workers of the loader before
                    made |= MAKERS[work][side](case)
                    pipe.send(list(made))
                case ("round", variant):
                    pipe.send(made[variant]())


@dataclass
class Row:
    """One line of the table: images per second of each round, and the aims of the two ratios.

    plain and tuned are empty where they cannot run. others: variants of the pipeline.
    """

    name: str
    plain: list[float]
    tuned: list[float]
    pipeline: list[float]
    others: dict[str, list[float]]
    pure: dict[str, list[float]]
    aims: tuple[float, float]

    @property
    def best(self) -> str:
        """The fastest variant of the model alone."""
        return max(self.pure, key=lambda name: statistics.median(self.pure[name]))

    def ratios(self) -> list[float]:
        """pipeline / plain, / plain bf16 and / pure: medians of the ratios within a round."""
        return [ratio(self.pipeline, other) for other in (self.plain, self.tuned, self.pure[self.best])]


def ratio(ours: list[float], other: list[float]) -> float:
    """The median of the ratios of figures from the same round; nan where there is nothing to compare with."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True)) if other else math.nan


def measure(players: dict[str, Player], work: str, case: Case, rounds: int, aims: tuple[float, float]) -> Row:
    """One round to warm up, then as many as asked for: plain, pipeline, pure, plain, …"""
    began, name = time.perf_counter(), f"{work:<8}{case.name}"
    speeds: dict[tuple[str, str], list[float]] = {}
    for side, player in players.items():
        speeds |= {(side, variant): [] for variant in player.ask("make", work, case)}
    for number in range(rounds + 1):
        for (side, variant), found in speeds.items():
            found.append(players[side].ask("round", variant))
        seconds = time.perf_counter() - began
        print(f"  {name}: {f'round {number}' if number else 'warm'}, {seconds:.0f} s", file=sys.stderr, flush=True)
    kept = {variant: found[1:] for (_, variant), found in speeds.items()}
    others = {variant: kept.pop(variant) for variant in list(kept) if variant.startswith(f"{OURS},")}
    return Row(name, kept.pop(PLAIN, []), kept.pop(TUNED, []), kept.pop(OURS), others, kept, aims)


# --- the table ----------------------------------------------------------------------------------------------------


def show(rows: list[Row]) -> None:
    """The table, the spread, then what each variant of the model alone reached."""
    median, tuned = statistics.median, f"plain {SHORT}"
    heads = "".join(f"{head:>11}" for head in ("plain", tuned, "pipeline", "pure"))
    print(f"\n{'images/s':<38}{heads}   {'/plain':<18}{f'/{tuned}':<18}{'/pure':<18}")
    for row in rows:
        speeds = "".join(f"{median(found):>11.0f}" if found else f"{'–':>11}" for found in _speeds(row))
        aims = (row.aims[0], 1.0, row.aims[1])
        verdicts = "".join(f"{verdict(value, aim):<18}" for value, aim in zip(row.ratios(), aims, strict=True))
        print(f"{row.name:<38}{speeds}   {verdicts}".rstrip())
    print("\nlowest–highest round")
    for row in rows:
        print(
            f"{row.name:<38}"
            + "".join(f"{f'{min(found):.0f}–{max(found):.0f}':>14}" for found in _speeds(row) if found)
        )
    if any(row.others for row in rows):
        print("\nvariants of the pipeline, and their ratio to the one above")
    for row in rows:
        for variant, found in row.others.items():
            print(f"{row.name:<38}{variant:<38}{median(found):>8.0f} {ratio(found, row.pipeline):.2f}")
    print("\nthe model alone, each variant (* the limit)")
    for row in rows:
        for variant, found in row.pure.items():
            mark = "*" if variant == row.best else ""
            print(f"{row.name:<38}{variant:<46}{median(found):>8.0f} {mark}".rstrip())


def _speeds(row: Row) -> tuple[list[float], ...]:
    return row.plain, row.tuned, row.pipeline, row.pure[row.best]


def verdict(value: float, target: float) -> str:
    """The ratio, its aim, and whether it is met."""
    if math.isnan(value):
        return "–"
    return f"{value:.2f} (≥ {target:g}) {'pass' if value >= target else 'MISS'}"


def native_bf16() -> bool:
    """Whether this GPU, or else this CPU, multiplies bf16 numbers itself."""
    return SHORT == "bf16" if GPU else bool(torch.cpu._is_avx512_bf16_supported())


def header() -> str:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    packages = ("torch", "timm", "lightning-fabric", "albumentations", "opencv-python-headless", "numpy")
    versions = [f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    if GPU:
        chip = torch.cuda.get_device_properties(0)
        model = f"{chip.name}, {chip.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, beside {model}"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.date.today()}  {model or platform.processor()}, {hardware.physical_cores()} cores, "
        f"native bf16: {'yes' if native_bf16() else 'no'}, torch threads: {torch.get_num_threads()}, "
        f"load before: {load}\n" + "  ".join(versions)
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed by that name"


Work = tuple[str, Case, tuple[float, float]]
"""train or predict, what it is done with, and the aims: pipeline / plain, pipeline / pure."""


def works(folder: Path, images_a_round: int, compiled: bool) -> list[Work]:
    """What is measured, on PNGs and camera JPEGs, a sixth as many, drawn into folder.

    The aim over the plain loop in training is what native bf16 makes possible; without it a fair share of that.
    compiled: compiled models too; on a GPU each takes a minute.
    """
    small = max(2, images_a_round // BATCH) * BATCH
    large = max(2, images_a_round // 6 // BATCH) * BATCH
    png = draw(folder / "png", small, 32, 32, ".png")
    jpeg = draw(folder / "jpeg", large, 512, 384, ".jpg")
    tiny = Case("32 px PNG", folder / "png", png, 32, small, small // 4)
    photos = Case("128 px, 512×384 JPEG", folder / "jpeg", jpeg, 128, large, large // 4)
    augmented = replace(
        photos, name="224 px JPEG, augmented", image_size=224, augment="medium()", batch=32,
        files=jpeg[: large // 2], count=large // 2,
    )  # fmt: skip
    masks = replace(photos, name="masks, 128 px JPEG", masks=True, batch=16, files=jpeg[: large // 2], count=large // 2)
    looks = replace(
        tiny, name="32 px, 8 views × 2 scales × 5", views=("d4()",), scales=(1.0, 1.25), members=5,
        count=Config().predict_batch,  # compiled code fills up smaller batches
    )  # fmt: skip
    native = native_bf16()
    found = [
        ("train", tiny, (1.9, 0.9)),
        ("predict", replace(tiny, count=2 * small), (3.0, 0.85)),
        ("predict", looks, (3.0, 0.85)),
        ("train", photos, (2.4 if native else 1.3, 0.9)),
        ("predict", replace(photos, count=2 * large), (3.0, 0.85)),
        ("train", augmented, (2.4 if native else 1.3, 0.9)),
        ("train", masks, (2.4 if native else 1.3, 0.9)),
    ]
    return [(work, on_gpu(case, compiled), (1.0, aims[1])) for work, case, aims in found] if GPU else found


def on_gpu(case: Case, compiled: bool) -> Case:
    """The case in sizes that keep a GPU at work."""
    batch = 64 if case.masks else {32: 512, 128: 256, 224: 128}[case.image_size]
    return replace(case, batch=batch, count=MORE * case.count, pure=MORE * case.pure, compiled=compiled)


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3072, help="small images a round; a sixth as many JPEGs")
    parser.add_argument("--rounds", type=int, default=4, help="rounds that count")
    parser.add_argument("--only", default="", help="the works whose line has this text, such as train or 224")
    parser.add_argument("--quick", action="store_true", help="2 rounds of half as many images; no compiling on a GPU")
    asked = parser.parse_args()
    count, rounds = (asked.images // 2, 2) if asked.quick else (asked.images, asked.rounds)
    began = time.perf_counter()
    print(header(), flush=True)
    print("" if GPU else "no GPU was seen: these are figures of the CPU\n", end="", flush=True)
    if MISSING:
        print(f"not installed, and what needs it left out: {', '.join(MISSING)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        every = works(Path(folder), count, compiled=not asked.quick)
        lacking = [work for work in every if work[1].masks and "segmentation_models_pytorch" in MISSING]
        wanted = [work for work in every if work not in lacking and asked.only in f"{work[0]} {work[1].name}"]
        players = {side: Player(side) for side in ("plain", OURS, "pure")}
        try:
            rows = [measure(players, work, case, rounds, aims) for work, case, aims in wanted]
        finally:
            for player in players.values():
                player.stop()
    show(rows)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{rounds} rounds, {time.perf_counter() - began:.0f} s; load after: {load}")


if __name__ == "__main__":
    main()
