"""The house's rules: imports point down, what needs no torch loads none, and no floor but tasks/ knows a task."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_competition
import small_training

from pipeline import tasks

SOURCE = small_training.SOURCE / "pipeline"
FLOORS = [  # a module imports from floors above it in this list alone, at the top or within a function
    ["errors", "events", "environment", "startup", "torchvision_fix", "forms", "rle", "orders", "notebook"],
    ["console"],
    ["budget", "registry", "archives", "patterns", "pictures", "windows", "json_tables"],
    ["genotypes", "texts", "label_lists"],
    ["pixel_tables"],
    ["stacking", "policies", "batched", "surgery", "cpu_convolutions", "segmenters", "maps", "sheets", "ranking"],
    ["fitting", "linear", "convolution", "gallery", "mining", "active", "clusters", "lists"],
    ["blocks", "backbone_names", "ranks"],
    ["symmetry", "tasks", "tasks.*", "evaluate", "parts.*"],
    ["recommended", "rules"],
    ["config", "nested"],
    ["wheels", "artefacts", "cutting", "reranking", "hardware", "spaces"],
    ["files", "plots", "advice", "course", "study", "ragged", "kaggle_client"],
    ["images", "tables"],
    ["masks", "whitening", "longform"],
    ["mask_tables"],
    ["mask_truth", "queries", "unlabelled", "absorbed"],
    ["competition", "submission"],
    ["folds", "blending", "fusing", "features", "uploads", "doctor", "doctor.*", "discover", "discover.*"],
    ["extra", "leaderboard"],
    ["encoders", "tracking"],
    ["runs", "stores", "data", "network", "journal"],
    ["members", "launch", "gains", "contrast"],
    ["learner", "infer", "compiling", "limited", "planning", "masked", "resident", "tuned", "blended", "fused"],
    ["searched", "supernet"],
    ["checkpoint", "embed", "objective"],
    ["engine", "prediction"],
    ["processes"],
    ["training", "levels"],
    ["checks", "description", "pretraining", "tuning", "report", "report.*"],
    ["searching"],
    ["ranges", "labelling"],
    ["pace", "packing"],
    ["stages", "stages.*"],
    ["__main__", "member", "api"],
]
SIDEWAYS = ("stages", "parts", "tasks", "doctor", "discover", "report")  # within these, one module may use another
HEAVY = (
    "batched",
    "surgery",
    "cpu_convolutions",
    "segmenters",
    "convolution",
    "blocks",
    "ranks",
)  # made of torch; what uses them imports them when it is called
LIGHT = [floor for names in FLOORS[:20] for floor in names if not floor.endswith("*") and floor not in HEAVY]
LIGHT += ["runs", "members", "launch", "limited", "stages", "tuned", "searched", "blended", "fused"]
TASK_NAMES = {*tasks.names(), "segmentation", "retrieval"}


def modules() -> dict[str, Path]:
    """Every module by its name below pipeline, packages by their own."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


def floor_of(name: str) -> int:
    """The floor a module stands on, by its own name or its package's."""
    for number, names in enumerate(FLOORS):
        if name in names or f"{name.partition('.')[0]}.*" in names:
            return number
    pytest.fail(f"{name} stands on no floor: add it to FLOORS in tests/test_house.py, as low as its imports allow")


def imported(path: Path, known: set[str]) -> set[str]:
    """The project's modules that a module imports, wherever in it, but for those only type checkers see."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{name.name}" for name in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    inner = {name.removeprefix("pipeline.") for name in found if name.startswith("pipeline.")}
    return {name if name in known else name.rpartition(".")[0] for name in inner} - {""}


@pytest.mark.parametrize("name", modules())
def test_imports_point_down(name):
    for other in imported(modules()[name], set(modules())):
        assert other in modules(), f"{name} imports pipeline.{other}, which is no module"
        beside = name.partition(".")[0] == other.partition(".")[0] in SIDEWAYS
        assert floor_of(other) < floor_of(name) or beside, f"{name} imports {other}, which stands above or beside it"


def test_nothing_is_decided_by_the_wall_clock():
    """It may be set back, or differ between machines; what must know how long something took asks a monotonic one."""
    asks = re.compile(r"time\.time\(|\.now\(|utcnow")
    asking = {name for name, path in modules().items() if asks.search(path.read_text(encoding="utf-8"))}
    assert asking == {"events", "stages.score"}, "they log when something was said or looked at; nothing reads that"


def test_the_floors_have_no_ghosts():
    named = {name for names in FLOORS for name in names if not name.endswith(".*")}
    assert named <= set(modules())


@pytest.mark.parametrize("name", ["engine", "infer", "learner", "data", "network", "checkpoint"])
def test_the_loop_and_inference_import_no_task(name):
    assert not {other for other in imported(modules()[name], set(modules())) if other.startswith("tasks")}


@pytest.mark.parametrize("name", ["engine", "infer"])
def test_the_loop_and_inference_ask_for_no_rank(name):
    ranks = {"ndim", "dim", "shape"}
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        counted = [side for side in sides if isinstance(side, ast.Call) and ast.unparse(side.func) == "len"]
        named = {leaf.attr for part in counted for leaf in ast.walk(part) if isinstance(leaf, ast.Attribute)}
        named |= {side.attr for side in sides if isinstance(side, ast.Attribute)} & {"ndim"}
        named |= {
            side.func.attr for side in sides if isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute)
        }
        assert not named & ranks, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith("tasks")])
def test_nothing_outside_tasks_asks_which_task_it_is(name):
    asking = []
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        compared += [node.subject, *(case.pattern for case in node.cases)] if isinstance(node, ast.Match) else []
        for part in compared:
            words = {leaf.value for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)}
            if words & TASK_NAMES or (isinstance(part, ast.Attribute) and part.attr == "task"):
                asking.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert asking == []


# --- no torch where none is needed --------------------------------------------------------------------------------

ASK = "import sys; {}; print([name for name in ('torch', 'timm', 'albumentations', 'kaggle') if name in sys.modules])"
RUN = "from pipeline.__main__ import main; codes = [main(words.split()) for words in {!r}]; assert codes == {!r}, codes"


def loaded_after(statement: str, root: Path) -> str:
    """Which heavy libraries a fresh Python has loaded after a statement."""
    ended = subprocess.run(
        [sys.executable, "-c", ASK.format(statement)],
        cwd=small_training.SOURCE, env={**os.environ, "PIPELINE_ROOT": str(root)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


def test_the_ground_floors_load_no_torch(project):
    names = ", ".join(f"pipeline.{name}" for name in LIGHT)
    assert loaded_after(f"import {names}", project.root) == "[]"
    assert loaded_after("import pipeline.engine", project.root) == "['torch']", "the engine loads torch, but no timm"


def test_light_stages_load_no_torch(project):
    folder = small_competition.write(project.root)
    assert (folder / "solution.csv").is_file()
    assert project.run("stage=split").code == 0
    small_competition.predict(small_competition.config(), "mate", np.full((4, 3), 1 / 3, dtype=np.float32))
    lines = [
        "help", "help stages", "help parts", "help focal", "stage=split", "stage=split folds.count=3 overwrite=true",
        "stage=split folds.count=2 overwrite=true", "stage=submit source=mate", "stage=score", "stage=features",
        "stage=report", "stage=trian",
        "stage=train backbone=resnet81", "stage=train loss=focl", "stage=predict views=hflip run=mate",
    ]  # fmt: skip
    codes = [0] * 11 + [2] * 4
    assert loaded_after(RUN.format(lines, codes), project.root) == "[]"


def test_a_finished_recipe_loads_no_torch(project):
    """The second ./run.sh has nothing to do, and must not take seconds to find out."""
    small_training.write(project.root)
    words = "stage=all recipe=quick"
    assert project.run(*words.split()).code == 0
    assert loaded_after(RUN.format([words], [0]), project.root) == "[]"
