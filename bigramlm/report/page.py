"""The report page, a self-contained HTML file.

Text from a run is escaped, so that a browser never executes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bigramlm.config.run_config import flat
from bigramlm.report import sections
from bigramlm.report.differences import differences
from bigramlm.report.gather import MEASURES, chart_fields, data, points_per_series, read_curves, samples_of
from bigramlm.report.results import RunTable, seed_table, typed
from bigramlm.runs.folder import versions
from bigramlm.runs.summary import RunSummary
from bigramlm.utils import html

GENERATOR = "bigramlm report"
"""The generator in the metadata of a report page. A file without this generator is not a report and is not
overwritten."""


SCRIPTS = ("colours.js", "charts.js", "fields.js", "vitals.js", "page.js")
"""The files of the page's own script, in the order in which they are joined."""


def write(table: RunTable, path: Path, *, title: str = "", log_fields: Sequence[str] = ()) -> None:
    """Write a report of these runs to a file.

    title: by default, it is derived from the runs. log_fields: the fields that a search varied on a logarithmic scale;
    for other fields, the spacing of the values determines the scale. Raises UserError if the file exists and is not a
    report, or cannot be written.
    """
    html.write(
        path,
        lambda: page(table, title=title, log_fields=log_fields, folder=path.parent),
        generator=GENERATOR,
        noun="report",
    )


def page(table: RunTable, *, title: str = "", log_fields: Sequence[str] = (), folder: Path | None = None) -> str:
    """Return the report page as HTML.

    title: by default, it is derived from the runs. folder: where the page will be, for links to pages in run folders;
    None for no links.
    """
    parts = sections.sections(table)
    n_runs = len(table.rows)
    values, charts = _sections(parts, log_fields)
    failed = sections.without_results(table, parts)
    return html.render(
        "bigramlm.report",
        scripts=SCRIPTS,
        generator=GENERATOR,
        data={"sections": charts},
        title=title or sections.title(table),
        version=versions()["bigramlm"],
        table=table,
        n_runs=n_runs,
        facts=sections.facts(table),
        command=_command(table),
        sections=values,
        failed=failed,
        failed_heading=sections.heading(failed),
        runs=[run for section in values for run in section["runs"]],
        looks={} if folder is None else _links([run.folder for run in table.rows], folder),
        differences=differences(table.rows),
        dirty=any(run.part("git").get("dirty") for run in table.rows),
        max_points=points_per_series(n_runs),
    )


def _links(folders: list[Path], start: Path) -> dict[Path, str]:
    # The relative address of the page in each run folder that has one (see bigramlm.look).
    found = {folder.absolute(): folder / "look.html" for folder in folders}
    return {
        folder: quote(os.path.relpath(page, start).replace(os.sep, "/"))
        for folder, page in found.items()
        if page.is_file() and not page.is_symlink() and page.absolute().drive == start.absolute().drive
    }


def _command(table: RunTable) -> str:
    if len(table.rows) != 1:
        return sections.sweep_command(table)
    return sections.command_of(table.rows[0]) if table.rows[0].overrides else ""


def _sections(parts: Sequence[sections.Section], log_fields: Sequence[str]) -> tuple[list[Any], list[Any]]:
    # Return the values for the template and the data for the charts of each section.
    runs = [run for part in parts for run in part.table.rows]
    samples, max_points = samples_of(runs), points_per_series(len(runs))
    fields = list(dict.fromkeys(field["name"] for part in parts for field in chart_fields(part.table)))
    values: list[Any] = []
    charts: list[Any] = []
    first = 0
    for number, part in enumerate(parts, 1):
        rows = part.table.rows
        labels = sections.labels(part.table)
        own = samples[first : first + len(rows)]
        curves = [read_curves(run, max_points, len(runs)) for run in rows]
        charts.append(data(part.table, curves, log_fields, labels, own, fields))
        values.append(
            {
                "title": part.title,
                "suffix": f"-{number}" if number > 1 else "",
                "number": number,
                "table": part.table,
                "notes": part.table.notes(failures=False),
                "seeds": seed_table(groups) if (groups := part.table.groups()) else None,
                "fields": charts[-1]["fields"],
                "measures": [name for name in MEASURES if any(curve.series[name]["value"] for curve in curves)],
                "has_vitals": any(curve.vitals for curve in curves),
                "has_steps": any(len(samples) > 1 for samples in own),
                "runs": [_template_values(run, first + at, labels[at], own[at]) for at, run in enumerate(rows)],
                **_results(part.table, labels),
            }
        )
        first += len(rows)
    return values, charts


def _results(table: RunTable, labels: list[str]) -> dict[str, Any]:
    # The columns of the table, those with numbers, and the texts that appear over a cell.
    columns = table.columns(table.rows, samples=False)
    del columns[""]
    titles = {field: [row.values[field] for row in table.rows] for field in table.fields}
    if table.kind == "job":
        titles[table.kind] = labels
    else:
        titles[table.kind], columns[table.kind] = columns[table.kind], labels
    if any(row.note for row in table.rows):
        columns["note"] = [row.note for row in table.rows]
    # The loss is not behind many fields, where a reader would have to scroll to it.
    first = [head for head in (table.kind, table.short) if head in columns]
    columns = {head: columns[head] for head in [*first, *columns]}
    numeric = {head for head, cells in columns.items() if all(_is_number(cell) for cell in cells)}
    return {"columns": columns, "titles": titles, "numeric": numeric - {"note"}}


def _template_values(run: RunSummary, at: int, label: str, samples: list[tuple[int, str]]) -> dict[str, Any]:
    return {
        "at": at,
        "row": run,
        "label": label,
        "compared": typed(run),
        "sample": samples[-1][1] if samples else "",
        "step": samples[-1][0] if samples else None,
        "prompt": run.get("sample.prompt"),
        "config": flat(run.config),
        "folder": run.folder.absolute(),
        "command": sections.command_of(run) if run.overrides else "",
    }


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.lstrip("-").replace(",", "").replace(".", "").replace("e-", "").isdecimal()
