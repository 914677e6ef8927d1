"""The notebook of a package: it links the package into a project of its own, installs wheels, and runs stage=answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Template
from typing import Any

PARAMETERS = """\
# All that may differ: where things lie. Paths of INPUTS are in COMPETITION, or absolute.
PACKAGE = "/kaggle/input/$name"
COMPETITION = "/kaggle/input/$slug"
INPUTS = {
$inputs
}
BUDGET = "$budget"  # of this notebook; the members that are done by then are averaged
SUBMISSION = "submission.csv"
SCRATCH = ""  # for decoded images and predictions; empty: a temporary folder"""

LINK = '''\
import os, shutil, subprocess, sys, tempfile
from importlib import metadata
from pathlib import Path


def found(place):
    """The folder itself, or where else Kaggle may have mounted it."""
    name, inputs = Path(place).name, Path("/kaggle/input")
    places = [Path(place), inputs / "competitions" / name, *inputs.glob(f"datasets/*/{name}")]
    there = [one for one in places if one.is_dir()]
    assert there, f"{place} is not there: attach {name} to this notebook (Add Input), or correct the first cell"
    return there[0].resolve()


package, competition = found(PACKAGE), found(COMPETITION)
project = Path(SCRATCH or tempfile.mkdtemp()) / "project"
shutil.rmtree(project, ignore_errors=True)
for part in ["configs", "runs"]:  # folders of its own, full of links: the package itself is read-only
    shutil.copytree(package / part, project / part, copy_function=os.symlink)
for name in ["manifest.json", "training.csv"]:
    os.symlink(package / name, project / name)
for name, place in INPUTS.items():
    link, source = project / "input" / name, competition / place
    link.parent.mkdir(exist_ok=True)
    packed = source.with_name(source.name + ".zip")
    assert source.exists() or packed.exists(), f"{source} is not there: correct INPUTS in the first cell"
    os.symlink(source if source.exists() else packed, link if source.exists() else f"{link}.zip")
print(package, competition, project, sep="\\n")'''

WHEELS = """\
def lacks(line):  # name==version; another version that the image has will do
    try:
        return not metadata.version(line.split("==")[0])
    except metadata.PackageNotFoundError:
        return True


wanted = [line for line in (package / "wheels.txt").read_text().split() if lacks(line)]
if wanted:
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", str(package / "wheels")]
    subprocess.run([*pip, *wanted], check=True)"""

ANSWER = '''\
command = [sys.executable, "-m", "pipeline", "stage=answer", f"submission={Path(SUBMISSION).resolve()}"]
command += [f"budget={BUDGET}"] if BUDGET else []
variables = {**os.environ, "PIPELINE_ROOT": str(project), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
with subprocess.Popen(command, cwd=package, env=variables, text=True, stdout=-1, stderr=-2) as process:
    for line in process.stdout:
        print(line, end="")
assert process.returncode == 0, "see the last lines above"'''

LOOK = """\
import pandas

answer = pandas.read_csv(SUBMISSION)
print(len(answer), "rows")
answer.head()"""


def written(title: str, name: str, slug: str, inputs: Mapping[str, str], budget: str) -> str:
    """The notebook's JSON; the same arguments give the same bytes.

    title: Markdown. inputs: what the notebook links of the competition's folder, each with its meaning.
    """
    lines = "\n".join(f"    {json.dumps(one)}: {json.dumps(one)},  # {meaning}" for one, meaning in inputs.items())
    first = Template(PARAMETERS).substitute(name=name, slug=slug, inputs=lines, budget=budget)
    cells = [_cell("markdown", title), *(_cell("code", text) for text in (first, LINK, WHEELS, ANSWER, LOOK))]
    content = {
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, text: str) -> dict[str, Any]:
    code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, **code, "source": text.splitlines(keepends=True)}
