"""Every command of the README and the pages, one after the other, in a project of its own: none may rot.

Trainings are cut to an epoch by the project's YAML, never on the command line, so that each line runs as it stands.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Project
from small_competition import table
from test_docs import PAGES, SHOWN_AS_WRONG, TOOLS, blocks, command_lines, own_part

ELSEWHERE = {  # needs what a test has not; where it is run instead
    "upload=true": "tests/test_kaggle.py",
    "tracker=": "tests/test_trackers.py",
    "stage=leaderboard": "tests/test_kaggle.py",
    "stage=absorb": "tests/test_absorb.py",
    "stage=download": "tests/test_kaggle.py",
    "package.wheels=true": "tests/test_package.py",
    "launcher=ray": "tests/test_launch.py",
    "launcher=slurm": "tests/test_launch.py",
}
SHORTER = {
    "stage=search": ["search.trials=2", "search.epochs=1"],
    "tune.trials=60": ["tune.trials=2"],
    "tune.trials=8": ["tune.trials=3"],
    "budget=": [],
}
CLASSES = ("cat", "dog", "owl")


def lines() -> list[str]:
    """The commands in the order of the pages; without tools, and what needs a part that a reader adds."""
    kept = [line for line in command_lines() if not {*shlex.split(line)[1:2]} & {*TOOLS}]
    return [line for line in kept if own_part() not in line and not any(word in line for word in ELSEWHERE)]


def draw_whales(folder: Path) -> None:
    """What the README's stage=new was shown: names with leading zeros, in folders, and a column of species."""
    rng = np.random.default_rng(0)
    rows = [(row, CLASSES[row % 3]) for row in range(24)]
    for row, species in rows:
        image = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        image[:, :, CLASSES.index(species)] += 120
        write(folder / f"train/site{row % 2}/img_{row:05d}.png", image)
    for row in range(24, 30):
        write(folder / f"test/img_{row:05d}.png", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    table(folder / "train_labels.csv", "image,species", rows)
    table(folder / "sample_sub.csv", "image,species", [(row, "cat") for row in range(24, 30)])


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def shorten(project: Project) -> None:
    """One epoch, of everything that the project's configs train."""
    for path in (project.root / "configs").glob("*/*.yaml"):
        path.write_text(re.sub(r"^epochs: \d+", "epochs: 1", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


def yaml_files(project: Project) -> None:
    """The files that the pages write out."""
    for body in (body for page in PAGES for body in blocks(page.read_text(encoding="utf-8"), "yaml")):
        (project.root / body.splitlines()[0].removeprefix("# ")).write_text(body, encoding="utf-8")


@pytest.mark.slow
def test_every_command_runs(project: Project) -> None:
    from pipeline.torchvision_fix import fix_torchvision

    fix_torchvision()
    import timm
    from safetensors.torch import save_file

    draw_whales(project.root / "data/whales")
    save_file(timm.create_model("resnet18").state_dict(), project.root / "resnet18.safetensors")
    shorten(project)
    wrong, new = {}, 0
    for line in lines():
        new += "stage=new" in line
        again = ["overwrite=true"] if "stage=new" in line and new > 1 else []  # the page before answered a question
        words = shlex.split(line)[1:] + again + next((more for word, more in SHORTER.items() if word in line), [])
        answer = project.run(*words)
        with project.capsys.disabled():
            print(f"{answer.code}  {line}", flush=True)
        if answer.code != (2 if line in SHOWN_AS_WRONG else 0):
            wrong[line] = answer.err.strip().splitlines()[-1:]
        if "stage=new" in line:  # from here on as the README has it: a question is answered by hand
            yaml_files(project)
            shorten(project)
    assert wrong == {}


def test_what_runs_elsewhere_has_a_test() -> None:
    there = Path(__file__).resolve().parent.parent
    assert all((there / path).exists() for path in ELSEWHERE.values())
    assert len(lines()) > 25
