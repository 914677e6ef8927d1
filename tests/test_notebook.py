"""docs/notebook.ipynb runs from its first cell to its last in a project of its own."""

from __future__ import annotations

import pytest
from conftest import SOURCE, Project


@pytest.mark.slow
def test_the_notebook_runs(project: Project) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(SOURCE / "docs/notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(SOURCE / "docs")}}
    )
    client.execute()  # raises where a cell does
    texts = ["".join(str(output) for output in cell.get("outputs", [])) for cell in notebook.cells]
    assert any("did you mean gamma" in text for text in texts)
    assert (project.root / "submissions/digits/stack.csv").is_file()
