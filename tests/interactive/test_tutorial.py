"""examples/tutorial.ipynb runs from top to bottom, and shows tables, a picture and marked text."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"

pytestmark = [pytest.mark.slow, pytest.mark.real_model]
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


def test_the_tutorial_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    kinds = [set(output.get("data", ())) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in kind for kind in kinds) == 1
    assert sum("text/html" in kind for kind in kinds) >= 6
    text = str(notebook.cells)
    assert "held per layer and head" in text and "rare-and-uncertain" in text
