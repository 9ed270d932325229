"""Operation of the report in a real browser."""

import json
from pathlib import Path
from typing import Any

from bigramlm.dev.browser import Browser
from bigramlm.report.page import page
from bigramlm.report.results import RunTable
from bigramlm.runs.summary import RunSummary
from tests.dev.helpers import eventually, settled
from tests.helpers import run_with


def traces(window: Browser, chart: str = "curves") -> list[dict[str, Any]]:
    """Return the traces of a chart."""
    script = """
        return document.getElementById(args[0]).data.map(({name, x, y, customdata, line, opacity, mode}) =>
          ({name, x: Array.from(x), y: Array.from(y), runs: [...new Set(customdata ?? [])], line, opacity, mode}));
    """
    return window.run(script, chart)  # type: ignore[no-any-return]


def show(window: Browser, folder: Path, *runs: tuple[dict[str, str], tuple[float | None, ...], dict[str, Any]]) -> None:
    """Open the page of runs that have these fields, val losses and other files."""
    entries = []
    for n, (fields, losses, files) in enumerate(runs):
        records = [{"step": step, "seconds": step / 10, "val/loss": loss} for step, loss in enumerate(losses)]
        run_with(folder / str(n), **{"metrics": "\n".join(map(json.dumps, records)), **files})
        entries.append(RunSummary.read(folder / str(n), next(iter(fields.values())), fields))
    (folder / "report.html").write_text(page(RunTable(entries), title="few runs"), "utf-8")
    window.set_viewport(width=1280, height=2400)
    window.open(folder / "report.html")
    eventually(window, "return onScreen.size > 0")
    settled(window)
    assert window.console_errors() == []


def completed(loss: float, **more: object) -> dict[str, Any]:
    """Return the files of a completed run with this final loss."""
    return {"summary": {"status": "completed", "final": {"val/loss": loss}, **more}}
