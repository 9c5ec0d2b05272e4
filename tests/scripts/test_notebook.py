"""The Colab notebook runs from top to bottom on a CPU, with the embedded model and two training steps."""

import subprocess
import venv

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.records import ROOT

NOTEBOOK = ROOT / "notebooks" / "boxtune_colab.ipynb"


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_the_notebook_installs_missing_dependencies(tmp_path):
    """Inside a clone, `import boxtune` works without its dependencies. The notebook must not mistake that for an installation."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell.source for cell in notebook.cells if "git" in cell.source and "pip" in cell.source)
    venv.create(tmp_path / "bare")  # without pip, so that the command is printed and then fails
    run = [str(tmp_path / "bare" / "bin" / "python"), "-c", f"DATA = IMAGES = REPOSITORY = ''\n{cell}"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "-m pip install --quiet --constraint constraints.txt --editable .[serve]" in done.stdout
    assert done.returncode


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Runs in a folder of links to the project, so that its data and runs do not mix with the user's."""
    for path in ROOT.iterdir():
        if path.name not in {"data", "runs", ".git", "notebooks"}:
            (tmp_path / path.name).symlink_to(path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if cell.source.startswith("REPOSITORY"))
    for old, new in (("STEPS = 0 ", "STEPS = 2 "), ("NUM_IMAGES = 1000 ", "NUM_IMAGES = 40 ")):
        assert old in parameters.source
        parameters.source = parameters.source.replace(old, new)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "mine" / "final_merged" / "model.safetensors").is_file()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "mean IoU (all ground truth)" in printed and "model saved in" in printed
    assert '"predictions": [' in printed and "open http://127.0.0.1:" in printed  # of the API
