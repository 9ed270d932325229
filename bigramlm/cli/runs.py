"""The command `runs`: lists, compares and reports on runs and sweeps."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bigramlm.cli.board import run_tensorboard, split_flags
from bigramlm.cli.common import ArgumentParser, command, output_path
from bigramlm.config.run_config import differences
from bigramlm.errors import UserError, printable, require
from bigramlm.report.results import RunTable
from bigramlm.runs.compare import compare_losses
from bigramlm.runs.find import PLAN, find, find_sweep, outputs, read_run, shortest_name
from bigramlm.runs.listing import COLUMNS, DEFAULT_COLUMNS, Listing, everything, value_of
from bigramlm.runs.removal import plan_removal, remove, size_of
from bigramlm.runs.summary import RunSummary
from bigramlm.runs.walk import run_folders, walk
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results, runs_of
from bigramlm.utils import paths
from bigramlm.utils.console import fitting_table, is_terminal, note, relative, show, table

log = logging.getLogger(__name__)

_SINCE = "only those that began since then: today, yesterday, 2h, 3d, 14:30 or 2026-11-22"


def parser() -> ArgumentParser:
    """Return the parser of the arguments."""
    parser = ArgumentParser(
        "runs.py",
        description="Lists the runs below outputs/, compares two of them, shows the results of a sweep, writes an HTML "
        "report on any of them, shows them in TensorBoard, and deletes runs.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_list_and_rm(commands)
    command = commands.add_parser(
        "tensorboard",
        usage="%(prog)s [-h] [PATH ...] [-- FLAGS]",
        help="show runs in TensorBoard, by their names",
        description="Starts TensorBoard with the names of the runs, and adds runs that begin meanwhile. Flags of "
        "TensorBoard follow after --, such as -- --port 6007.",
    )
    command.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a run folder, a sweep folder, a folder with runs in it, such as that of a day, or latest (the newest "
        "run, with its whole sweep); by default the newest day or sweep",
    )
    command = commands.add_parser(
        "diff",
        help="show the differences between two runs",
        description="Compares the config, text, code, environment and losses of two runs.",
    )
    for name in ("a", "b"):
        command.add_argument(name, help="a run folder, the name of a run, or latest")
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
    return parser


def _add_list_and_rm(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    command = commands.add_parser(
        "list", help="list the runs, newest last", description="Lists the runs below outputs/, newest last."
    )
    command.add_argument(
        "filters",
        nargs="*",
        metavar="FILTER",
        help="list only runs that satisfy these conditions on a column or a config field: status=completed, "
        "'val<2.4', 'lr>=0.01', model!=gpt, name~quick (contains)",
    )
    command.add_argument(
        "--columns",
        metavar="NAMES",
        help=f"the columns, with commas between: {', '.join(COLUMNS)}, or config fields; +NAMES adds columns",
    )
    command.add_argument("--last", type=int, metavar="N", help="list only the newest N of them")
    command.add_argument("--since", metavar="WHEN", help=_SINCE)
    command.add_argument("--sort", default="when", help="the sort key: a column or a config field")
    command.add_argument("--reverse", action="store_true", help="reverse the order")
    command.add_argument("--json", action="store_true", help="print one JSON object per run, with all that is known")
    command = commands.add_parser(
        "rm",
        help="delete runs and sweeps",
        description="Deletes runs and sweeps. Without --yes it only lists what would be deleted. A run stays while a "
        "process trains in it, if it is a job of a sweep, or if an adapter or an unfinished run needs its weights.",
    )
    command.add_argument("targets", nargs="*", metavar="RUN|SWEEP|FILTER", help="folders, or filters as for list")
    command.add_argument("--since", metavar="WHEN", help=_SINCE)
    command.add_argument("--yes", action="store_true", help="delete; without it, nothing is deleted")


@command
def main() -> None:
    """Run the command line: python scripts/runs.py list|diff|report|..."""
    own, flags = split_flags(sys.argv[1:])
    arguments = parser().parse_args(own)
    if arguments.command == "tensorboard":
        run_tensorboard(arguments.paths, flags)
    elif arguments.command == "report":
        print_report(arguments.paths, arguments.output)
    elif arguments.command == "results":
        print_results(find_sweep(arguments.sweep), as_csv=arguments.csv)
    elif arguments.command == "list":
        print_list(arguments)
    elif arguments.command == "rm":
        remove_runs(arguments.targets, arguments.since, yes=arguments.yes)
    else:
        print_diff(*(_run_in(name) for name in (arguments.a, arguments.b)))


def print_list(arguments: argparse.Namespace) -> None:
    """Print the runs that the arguments select, one per line."""
    listing = Listing(_all_runs())
    require(bool(listing.runs), f"{outputs()} contains no runs yet; start one with {paths.program('train')}")
    columns = _columns(listing, arguments.columns)
    sorted_by = listing.find_field(arguments.sort, f"--sort {arguments.sort}")
    listing.select(arguments.filters, since_text=arguments.since, last=arguments.last)
    listing.sort(sorted_by, reverse=arguments.reverse)
    if arguments.json:
        for run in listing.runs:
            show(json.dumps(everything(run)))
    elif listing.runs:
        added = arguments.columns is None or arguments.columns[:1] == "+"
        if arguments.columns is None and sorted_by not in columns:
            columns.append(sorted_by)
        cells = {name: [_cell(run, name) for run in listing.runs] for name in columns}
        show(fitting_table(cells, _width(), keep={sorted_by, *columns} - (set(DEFAULT_COLUMNS) if added else set())))
    else:
        show("no run matches these filters")


def _all_runs() -> Iterator[RunSummary]:
    return (run for folder in run_folders(outputs()) if (run := read_run(folder)) is not None)


def _columns(listing: Listing, typed: str | None) -> list[str]:
    # Names after a + are added to the default columns.
    if typed is None:
        return [*DEFAULT_COLUMNS]
    kept = DEFAULT_COLUMNS if typed[:1] == "+" else ()
    named = [listing.find_field(name.strip("+ "), f"--columns {typed}") for name in typed.split(",")]
    return list(dict.fromkeys([*kept, *named]))


def _width() -> int | None:
    # The width of the terminal; None for a pipe or a file.
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def remove_runs(targets: list[str], since_text: str | None, *, yes: bool) -> None:
    """Delete the runs and sweeps that paths or filters name.

    yes: if False, nothing is deleted, but the list of what would be is printed. Raises UserError if nothing can be
    deleted.
    """
    known = list(_entries(outputs()))
    where = {target: path for target in targets if (path := _existing(target)) is not None}
    filters = [target for target in targets if target not in where]
    folders = [_require_run_or_sweep(target, path) for target, path in where.items()]
    if filters or since_text is not None:
        listing = Listing(known)
        listing.select(filters, since_text=since_text)
        jobs = [run for run in listing.runs if (run.folder.parent / PLAN).exists()]
        folders += [run.folder for run in listing.runs if run not in jobs]
        if jobs:
            sweeps = ", ".join(dict.fromkeys(shortest_name(run.folder.parent) for run in jobs))
            number = f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}"
            note(f"stays: {number} of {sweeps}, because a job is deleted only with its sweep")
    require(bool(targets) or since_text is not None, "rm: name runs or sweeps, or give filters such as status=failed")
    plan = plan_removal(list(dict.fromkeys(folders)), known)
    for folder, reason in plan.kept.items():
        note(f"stays: {shortest_name(folder)}: {reason}")
    if not plan.folders:
        raise UserError("no run or sweep can be deleted" if plan.kept else "no run matches these filters")
    sizes = [size_of(folder) for folder in plan.folders]
    rows = [
        [
            f"{size / 1e6:.1f} MB",
            shortest_name(folder),
            RunSummary.read(folder).label if (folder / "summary.json").exists() else "sweep",
        ]
        for size, folder in zip(sizes, plan.folders, strict=True)
    ]
    show(
        fitting_table(dict(zip(("size", "folder", "name"), map(list, zip(*rows, strict=True)), strict=True)), _width())
    )
    total = f"{len(rows)} {'folder' if len(rows) == 1 else 'folders'}, {sum(sizes) / 1e6:.1f} MB"
    if not yes:
        show(f"{total}: nothing is deleted yet; add --yes to delete")
        return
    for folder in plan.folders:
        remove(folder)
    show(f"{total}: deleted")


def _existing(target: str) -> Path | None:
    # Return the folder that a target names, or None if the target is a filter.
    is_filter = any(sign in target for sign in "=<>~!") and not paths.typed(target).exists()
    return None if is_filter else find(target)


def _require_run_or_sweep(target: str, folder: Path) -> Path:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    require(
        bool(names & {"summary.json", PLAN}) and "manifest.json" not in names,
        f"{target} is neither a run folder nor a sweep folder, so it is not deleted",
    )
    return folder


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
        outcomes = Results(sweeps[0])
    else:
        names = [entry.folder for entry in entries]
        short = [shortest_name(path) for path in names] if len(names) == 1 else _names_below_common_parent(names)
        named = [replace(entry, name=name) for entry, name in zip(entries, short, strict=True)]
        swept = [field for sweep in sweeps for field in sweep.fields]
        outcomes = RunTable(named, list(dict.fromkeys(swept)))
    path = output or (folders[0] if len(folders) == 1 else outputs()) / "report.html"
    page.write(outcomes, path, log_fields=[field for sweep in sweeps for field in sweep.log_fields])
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
            try:
                yield from runs_of(Sweep(folder))
            except UserError as error:  # one damaged sweep costs only its planned jobs
                log.warning("%s", error)
        if "summary.json" in names:
            yield RunSummary.read(folder)


def print_diff(a: RunSummary, b: RunSummary) -> None:
    """Print the differences between two runs and the step where their losses diverge."""
    show(
        table(
            ("", "run", "status", "step"),
            [(n, shortest_name(r.folder), r.status, str(r.summary.get("step"))) for n, r in (("A", a), ("B", b))],
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
        raise UserError(f"{where} contains no run: there is no summary.json that can be read")
    return run


def _cell(run: RunSummary, name: str) -> str:
    value = value_of(run, name)
    if value in (None, ""):
        return "-"
    if name == "when":
        return _when(value)
    if name == "folder":
        return shortest_name(Path(value))
    if name in ("val", "train", "best", "bpc") and isinstance(value, float):
        step = run.part("best").get("step") if name == "val" and run.final_loss is None else None
        at = f"@{step}" if isinstance(step, int) else ""  # the lowest so far, on some batches
        return f"{value:.4f}{at}" if abs(value) < 1e5 else f"{value:.3g}{at}"
    if name in ("params", "tok/s"):
        return f"{value:,.0f}"
    if name == "commit":
        return str(value)[:10]
    return f"{value:.1f}" if name == "s" else str(value)


def _when(started: str) -> str:
    """Format a start time as HH:MM if it is today, else as MM-DD."""
    try:
        start = datetime.fromisoformat(started).astimezone()
    except (ValueError, OverflowError, OSError):  # e.g. of the year 1
        return "-"
    return f"{start:%H:%M}" if start.date() == datetime.now().date() else f"{start:%m-%d}"


if __name__ == "__main__":
    main()
