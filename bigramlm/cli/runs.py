"""The command `runs`: lists, compares and reports on runs and sweeps."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bigramlm.cli.common import ArgumentParser, command, output_path
from bigramlm.config.run_config import differences, flat
from bigramlm.errors import UserError, printable, require
from bigramlm.report.results import RunTable
from bigramlm.runs.compare import compare_losses
from bigramlm.runs.find import PLAN, find, find_sweep, outputs, read_run, search_folders
from bigramlm.runs.summary import RunSummary
from bigramlm.runs.walk import run_folders, walk
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results, runs_of
from bigramlm.utils import paths
from bigramlm.utils.console import relative, show, table

log = logging.getLogger(__name__)


@command
def main() -> None:
    """Run the command line: python scripts/runs.py list|diff|results|report."""
    parser = ArgumentParser(
        "runs.py",
        description="Lists the runs below outputs/, compares two of them, shows the results of a sweep, and writes an "
        "HTML report on any of them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "list", help="list the runs, newest last", description="Lists the runs below outputs/, newest last."
    )
    command.add_argument(
        "filters",
        nargs="*",
        metavar="FIELD=VALUE",
        help="list only runs with this status or config value, such as status=completed or optim.lr=0.1",
    )
    command.add_argument("--sort", default="when", help=f"the sort key: {', '.join(_COLUMNS)}, or a config field")
    command.add_argument("--reverse", action="store_true", help="reverse the order")
    command.add_argument("--json", action="store_true", help="print one JSON object per run, with full times and paths")
    command = commands.add_parser(
        "diff",
        help="show the differences between two runs",
        description="Compares the config, text, code, environment and losses of two runs.",
    )
    for name in ("a", "b"):
        command.add_argument(name, help="a run folder, or latest")
    command = commands.add_parser(
        "results",
        help="show the results of a sweep",
        description="Lists the jobs of a sweep, best first, and writes results.csv and results.md in its folder.",
    )
    command.add_argument("sweep", help="a sweep folder, or latest")
    command.add_argument("--csv", action="store_true", help="print the content of results.csv, with unrounded numbers")
    command = commands.add_parser(
        "report",
        help="write an HTML page with curves, tables and samples",
        description="Writes an HTML page about runs, with loss curves, final losses against the swept fields, results, "
        "samples and differences. The page can be viewed without a network.",
    )
    command.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a run folder, a sweep folder, a folder with runs in it, or latest (the newest run, with its whole sweep)",
    )
    command.add_argument(
        "-o", "--output", type=output_path, help="the file (default: report.html in PATH; for several, in outputs/)"
    )
    arguments = parser.parse_args()
    if arguments.command == "report":
        print_report(arguments.paths, arguments.output)
    elif arguments.command == "results":
        print_results(find_sweep(arguments.sweep), as_csv=arguments.csv)
    elif arguments.command == "list":
        print_list(arguments.filters, arguments.sort, reverse=arguments.reverse, as_json=arguments.json)
    else:
        print_diff(*(_run_in(name) for name in (arguments.a, arguments.b)))


# The columns of the list, each with the function that returns its value for a run.
_COLUMNS: dict[str, Callable[[RunSummary], Any]] = {
    "when": lambda run: run.started,
    "model": lambda run: run.get("model.name"),
    "data": lambda run: run.get("data.name"),
    "steps": lambda run: run.summary.get("step"),
    "val": lambda run: run.val_loss,
    "status": lambda run: run.status,
    "folder": lambda run: str(run.folder),
}


def print_list(filters: list[str], sort: str, *, reverse: bool, as_json: bool) -> None:
    """Print the runs that match the filters, one per line.

    sort: a column or a config field. as_json: if True, print JSON objects instead of a table.
    """
    found = [run for folder in run_folders(outputs()) if (run := read_run(folder)) is not None]
    require(bool(found), f"{outputs()} contains no runs yet; start one with {paths.program('train')}")
    fields = {*_COLUMNS, *(name for run in found for name in flat(run.config))}
    for text in filters:
        require(
            "=" in text, f"{text or repr('')}: a filter must be FIELD=VALUE, such as status=completed or optim.lr=0.1"
        )
    named = {**{text: text.partition("=")[0] for text in filters}, f"--sort {sort}": sort}
    for text, field in named.items():
        suggestions = difflib.get_close_matches(field, fields, cutoff=0.4) or sorted(_COLUMNS)
        require(field in fields, f"{text}: no run has this field; did you mean {', '.join(suggestions)}?")
    for text in filters:
        field, _, value = text.partition("=")
        found = [run for run in found if _matches(_value(run, field), value)]
    # Sorts are stable: equal values stay in the order of starting, the newest last.
    found.sort(key=lambda run: run.start_order)
    if sort != "when":
        found.sort(key=lambda run: _order(_value(run, sort)), reverse=reverse)
    elif reverse:
        found.reverse()
    if as_json:
        for run in found:
            show(json.dumps({name: value(run) for name, value in _COLUMNS.items()}))
    elif found:
        names = [*_COLUMNS, *([] if sort in _COLUMNS else [sort])]
        show(table(names, [[_cell(name, _value(run, name)) for name in names] for run in found]))
    else:
        show("no run matches these filters")


def print_results(folder: Path, *, as_csv: bool) -> None:
    """Print the results of a sweep, and write results.csv and results.md.

    as_csv: if True, print the content of results.csv instead of a table.
    """
    sweep = Sweep(folder)
    require(bool(sweep.all_jobs()), f"{relative(folder)} contains no jobs of a sweep; give the folder of a sweep")
    results = Results(sweep)
    try:
        results.write()
    except OSError as error:  # another user's folder
        log.warning("results.csv and results.md cannot be written to %s: %s", relative(folder), error.strerror)
    if as_csv:
        show(results.csv(), end="")
    else:
        show(f"{printable(f'{results.count()}, in {relative(folder)}')}\n\n{results.text()}")


def print_report(targets: list[str], output: Path | None) -> None:
    """Write an HTML report on the runs in these folders, and print its path."""
    from bigramlm.report import page

    folders = [_run_or_sweep(target) for target in targets]
    found: dict[Path, RunSummary] = {}
    for entry in (entry for folder in folders for entry in _entries(folder)):
        found.setdefault(entry.folder.resolve(), entry)
    entries = sorted(found.values(), key=lambda entry: entry.start_order)
    require(bool(entries), f"no run was found in {' '.join(targets)}; list all runs with {paths.program('runs')} list")
    parents = sorted({entry.folder.parent for entry in entries})
    sweeps = [Sweep(folder) for folder in parents if (folder / PLAN).exists()]
    outcomes: RunTable
    if len(folders) == 1 and [sweep.folder for sweep in sweeps] == folders and parents == folders:
        outcomes, title = Results(sweeps[0]), f"Sweep {sweeps[0].folder.name}"
    else:
        names = [entry.folder for entry in entries]
        short = [_short(path) for path in names] if len(names) == 1 else _names_below_common_parent(names)
        named = [replace(entry, name=name) for entry, name in zip(entries, short, strict=True)]
        swept = [field for sweep in sweeps for field in sweep.fields]
        outcomes = RunTable(named, list(dict.fromkeys(swept)))
        title = f"Run {named[0].name}" if len(named) == 1 else f"{len(named)} runs"
    path = output or (folders[0] if len(folders) == 1 else outputs()) / "report.html"
    page.write(outcomes, path, title=title, log_fields=[field for sweep in sweeps for field in sweep.log_fields])
    size = path.stat().st_size / 1e6
    show(f"{outcomes.count()}\n{printable(f'Report: {relative(path)} ({size:.1f} MB)')}")


def _names_below_common_parent(folders: list[Path]) -> list[str]:
    try:
        common = Path(os.path.commonpath([folder.parent for folder in folders]))
    except ValueError:  # folders on different drives have no common path
        return [str(folder) for folder in folders]
    return [str(folder.relative_to(common)) for folder in folders]


def _run_or_sweep(where: str) -> Path:
    """Find a run or sweep folder.

    If where is `latest`, returns the newest run or, if that run is a job of a sweep, its sweep.
    """
    folder = find(where)
    if where == "latest" and (folder.parent / PLAN).exists():
        return folder.parent
    return folder


def _entries(below: Path) -> Iterator[RunSummary]:
    """Yield the runs below a folder, including sweep jobs without a summary."""
    for folder, names in walk(below):
        if PLAN in names:
            yield from runs_of(Sweep(folder))
        if "summary.json" in names:
            yield RunSummary.read(folder)


def print_diff(a: RunSummary, b: RunSummary) -> None:
    """Print the differences between two runs and the step where their losses diverge."""
    show(
        table(
            ("", "run", "status", "step"),
            [(n, _short(r.folder), r.status, str(r.summary.get("step"))) for n, r in (("A", a), ("B", b))],
        )
    )
    parts = {
        "config": differences(a.config, b.config),
        "data": differences(a.part("data"), b.part("data")),
        "code": differences(a.part("git"), b.part("git")),
        "environment": differences(*(_environment(run) for run in (a, b))),
    }
    for name, different in parts.items():
        if different:
            rows = [(field, *(_shortened(value) for value in values)) for field, *values in different]
            show(f"\n{name}:\n" + table(("field", "A", "B"), rows))
    identical = [name for name, different in parts.items() if not different]
    show(f"\nidentical: {', '.join(identical) or 'nothing'}")
    if any(run.part("git").get("dirty") for run in (a, b)):
        show("code: there were uncommitted changes, which are not recorded, so other differences are possible")
    show(compare_losses(a, b))


def _environment(run: RunSummary) -> dict[str, Any]:
    return {**run.part("versions"), **{name: run.summary.get(name) for name in ("host", "device")}}


def _shortened(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"…{text[-39:]}"  # the end of a path is the distinctive part


def _run_in(where: str) -> RunSummary:
    run = read_run(find(where))
    if run is None:
        raise UserError(f"{where} contains no run: there is no summary.json")
    return run


def _short(folder: Path) -> str:
    """Return the shortest name by which `find` finds the folder."""
    for parent in search_folders():
        if parent in folder.parents:
            return str(folder.relative_to(parent))
    return str(relative(folder))


def _value(run: RunSummary, name: str) -> Any:
    return _COLUMNS[name](run) if name in _COLUMNS else run.get(name)


def _matches(value: Any, filter_text: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value) == float(filter_text)
    return str(value).lower() == filter_text.lower() or (value is None and filter_text == "null")


def _order(value: Any) -> tuple[int, float, str]:
    """Return a sort key that puts numbers first, then texts, then missing values."""
    if isinstance(value, (int, float)):
        return (0, float(value), "")
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "when":
        return _when(value)
    if name == "folder":
        return _short(Path(value))
    return f"{value:.4f}" if name == "val" else str(value)


def _when(started: str) -> str:
    """Format a start time as HH:MM if it is today, else as MM-DD."""
    try:
        start = datetime.fromisoformat(started).astimezone()
    except ValueError:
        return "-"
    return f"{start:%H:%M}" if start.date() == datetime.now().date() else f"{start:%m-%d}"


if __name__ == "__main__":
    main()
