"""The report page, a self-contained HTML file.

Text from a run is escaped, so that a browser never executes it.
"""

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
from bigramlm.errors import UserError, require, visible
from bigramlm.report.gather import data, differences, read_curves, sample_of
from bigramlm.report.results import RunTable, seed_table, typed
from bigramlm.runs.folder import versions
from bigramlm.runs.summary import RunSummary
from bigramlm.utils import files

GENERATOR = "bigramlm report"
"""The generator in the metadata of a report page. A file without this generator is not a report and is not
overwritten."""


def write(table: RunTable, path: Path, *, title: str, log_fields: Sequence[str] = ()) -> None:
    """Write a report of these runs to a file.

    log_fields: the fields that a search varied on a logarithmic scale. For other fields, the spacing of the values
    determines the scale. Raises UserError if the file exists and is not a report, or cannot be written.
    """
    files.refuse_dangling(path)
    require(not path.is_dir(), f"{path} is a folder: choose a file, such as {path / 'report.html'}")
    require(path.parent.is_dir(), f"{path.parent} does not exist: create this folder or choose a different one")
    is_free = not path.exists() or (path.is_file() and _is_report(path))
    require(is_free, f"{path} exists and is not a report, so it is not overwritten: choose a different file")
    content = page(table, title=title, log_fields=log_fields).encode(errors="replace")
    try:
        files.write(path.resolve(), [content])  # if it is a link, its target is replaced
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose a different file") from error


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(4096)


def page(table: RunTable, *, title: str, log_fields: Sequence[str] = ()) -> str:
    """Return the report page as HTML."""
    # These imports are slow, and the other commands do not need them.
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    runs = table.rows
    columns = table.columns(table.rows, samples=False)
    del columns[""]
    # An HTML parser normalizes line ends, which would change the hashes of the scripts.
    scripts = [_normalize_line_ends(text) for text in (get_plotlyjs(), _asset("page.js"))]
    plotly, script = (Markup(text) for text in scripts)
    return (
        Environment(autoescape=True, trim_blocks=True, finalize=_shown)
        .from_string(_asset("page.html"))
        .render(
            title=title,
            generator=GENERATOR,
            table=table,
            best_values=typed(table.best) if table.best else "",
            runs=[_template_values(run, at) for at, run in enumerate(runs)],
            columns=columns,
            numeric={head for head, cells in columns.items() if all(_is_number(cell) for cell in cells)},
            titles={field: [row.values[field] for row in table.rows] for field in table.fields},
            seeds=seed_table(groups) if (groups := table.groups()) else None,
            differences=differences(runs),
            dirty=any(run.part("git").get("dirty") for run in runs),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
            version=versions()["bigramlm"],
            plotly_version=get_plotlyjs_version(),
            policy=Markup(" ".join(_hash(text) for text in scripts)),
            css=Markup(_asset("page.css")),
            data=_json(_shown(data(table, [read_curves(run) for run in runs], log_fields))),
            plotly=plotly,
            script=script,
        )
    )


def _template_values(run: RunSummary, at: int) -> dict[str, Any]:
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


def _shown(value: Any) -> Any:
    # Escape what a browser would obey in texts, e.g. a mark that reverses the rest of a line; Markup is of this page.
    if isinstance(value, dict):
        return {_shown(name): _shown(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return visible(value) if type(value) is str else value


def _asset(name: str) -> str:
    return (resources("bigramlm.report") / name).read_text("utf-8")


def _normalize_line_ends(script: str) -> str:
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(values: Any) -> Any:
    from markupsafe import Markup

    # Without a <, the JSON can neither end the script element that contains it nor start another element.
    return Markup(
        json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    )


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.lstrip("-").replace(",", "").replace(".", "").replace("e-", "").isdecimal()
