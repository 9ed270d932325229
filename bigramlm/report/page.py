"""The page of a report: one file that needs nothing else, and in which nothing of a run's own can run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from bigramlm.config.run_config import flat
from bigramlm.errors import require
from bigramlm.report.gather import data, differences, read_curves, sample_of
from bigramlm.report.results import RunTable, seed_table, typed
from bigramlm.runs.folder import versions
from bigramlm.runs.summary import RunSummary
from bigramlm.utils import files

GENERATOR = "bigramlm report"
"""The generator that a page names: a file without it is somebody else's, and is not overwritten."""


def write(outcomes: RunTable, path: Path, *, title: str, log_fields: Sequence[str] = ()) -> None:
    """Write a report of these runs. UserError where the file is there and is no report.

    log_fields: what was searched on a logarithmic scale; of other fields their values tell.
    """
    require(not path.is_dir(), f"{path}: is a folder; name a file, such as {path / 'report.html'}")
    require(path.parent.is_dir(), f"{path.parent}: there is no such folder to write to; make it, or name another")
    if path.exists():
        with path.open("rb") as file:
            is_ours = f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(4096)
        require(is_ours, f"{path}: is no report, and is not written over; name another file")
    files.write(path, [page(outcomes, title=title, log_fields=log_fields).encode(errors="replace")])


def page(outcomes: RunTable, *, title: str, log_fields: Sequence[str] = ()) -> str:
    """Return the page as HTML."""
    # Read here alone, for the other commands answer faster without.
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    runs = outcomes.rows
    columns = outcomes.columns(outcomes.rows, samples=False)
    del columns[""]
    # A parser of HTML would make one of other ends of lines, and the scripts' hashes would not fit.
    scripts = [_normal(text) for text in (get_plotlyjs(), _asset("page.js"))]
    plotly, script = (Markup(text) for text in scripts)
    return (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(_asset("page.html"))
        .render(
            title=title,
            generator=GENERATOR,
            outcomes=outcomes,
            best_values=typed(outcomes.best) if outcomes.best else "",
            runs=[_facts(run, at) for at, run in enumerate(runs)],
            columns=columns,
            numeric={head for head, cells in columns.items() if all(_is_number(cell) for cell in cells)},
            titles={field: [row.values[field] for row in outcomes.rows] for field in outcomes.fields},
            seeds=seed_table(groups) if (groups := outcomes.groups()) else None,
            differences=differences(runs),
            dirty=any(run.part("git").get("dirty") for run in runs),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
            version=versions()["bigramlm"],
            plotly_version=get_plotlyjs_version(),
            policy=Markup(" ".join(_hash(text) for text in scripts)),
            css=Markup(_asset("page.css")),
            data=_json(data(outcomes, [read_curves(run) for run in runs], log_fields)),
            plotly=plotly,
            script=script,
        )
    )


def _facts(run: RunSummary, at: int) -> dict[str, Any]:
    return {
        "at": at,
        "row": run,
        "compared": typed(run),
        "sample": sample_of(run),
        "prompt": run.get("sample.prompt"),
        "config": flat(run.config),
        "folder": run.folder.absolute(),
        "typed": " ".join(run.overrides),
    }


def _asset(name: str) -> str:
    return (resources("bigramlm.report") / name).read_text("utf-8")


def _normal(script: str) -> str:
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(values: Any) -> Any:
    from markupsafe import Markup

    # With no < in it nothing ends the element that holds it, or begins another.
    return Markup(
        json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    )


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.lstrip("-").replace(",", "").replace(".", "").replace("e-", "").isdecimal()
