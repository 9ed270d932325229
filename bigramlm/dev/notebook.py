"""Execution of the example notebook, whose outputs are saved in the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bigramlm.utils import paths

NOTEBOOK = paths.home() / "examples" / "ladder.ipynb"
STEPS = "BIGRAMLM_NOTEBOOK_STEPS"
"""The environment variable that sets the number of training steps."""


def executed(path: Path = NOTEBOOK, *, steps: int | None = None, cwd: Path | None = None) -> Any:
    """Execute a notebook in a new kernel, and return it with its outputs.

    steps: the number of steps of each run; the notebook's own by default. cwd: the folder in which the kernel runs.
    Raises nbclient's CellExecutionError if a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # A progress bar would be saved as text.
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(paths.home())}
    if steps is not None:
        environment[STEPS] = str(steps)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(cwd or paths.home())}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of the execution
    notebook.metadata.pop("language_info", None)
    return notebook


def local_paths(notebook: Any) -> list[str]:
    """Return the absolute paths in the outputs of a notebook."""
    texts = [str(cell.get("outputs", "")) for cell in notebook.cells]
    images = re.compile(r"'image/png': '[^']*'")
    return [found for text in texts for found in re.findall(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]*", images.sub("", text))]


def main() -> None:
    """Execute examples/ladder.ipynb, and save it with its outputs."""
    import nbformat

    notebook = executed()
    found = local_paths(notebook)
    assert not found, f"the outputs contain paths of this machine: {found}"
    nbformat.write(notebook, NOTEBOOK)
    print(f"wrote {NOTEBOOK}")


if __name__ == "__main__":
    main()
