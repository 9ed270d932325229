"""The parts of a report page: sections for texts, failed runs, and facts."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bigramlm.config.overrides import Overrides
from bigramlm.report.results import RunTable, one_line, typed
from bigramlm.runs.summary import RunSummary
from bigramlm.utils import paths

# The number of different commits or machines that the top of the page names.
_NAMED = 3


@dataclass(frozen=True)
class Section:
    """The runs on one text, which are compared with each other."""

    title: str
    """The name of the text; empty if the page has a single section."""
    table: RunTable


def sections(table: RunTable) -> list[Section]:
    """Divide the runs of a table by their texts.

    Losses on different texts cannot be compared. The text with the most runs comes first. A run that has neither a text
    nor a loss belongs to no section, except for the jobs of a sweep.
    """
    groups: dict[str, list[RunSummary]] = {}
    for run in table.rows:
        if run.text or run.best is not None or run.final is not None:
            groups.setdefault(run.text or "", []).append(run)
    n_runs = sum(map(len, groups.values()))
    if not groups or (table.n_texts == 1 and (table.kind == "job" or n_runs == len(table.rows))):
        return [Section("", table)]
    found = []
    for runs in sorted(groups.values(), key=len, reverse=True):
        part = RunTable(sorted(runs, key=lambda run: run.number))
        part.kind = table.kind
        found.append(Section(_text_name(runs), part))
    return found if len(found) > 1 else [Section("", found[0].table)]


def _text_name(runs: Sequence[RunSummary]) -> str:
    # The name that most of the runs use, and the beginning of the hash, because texts may have the same name.
    sha = runs[0].text
    if not sha:
        return "unknown text"
    names = Counter(_name_of_text(run) for run in runs)
    return f"{names.most_common(1)[0][0]} ({sha[:8]})"


def _name_of_text(run: RunSummary) -> str:
    name = str(run.part("data").get("name") or run.get("data.name") or "text")
    path = run.get("data.path")
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1] if isinstance(path, str) else ""
    return f"{name} {last}".strip()


def labels(table: RunTable) -> list[str]:
    """Return the names of the runs for the page, in the order of the rows.

    All names are different.
    """
    found = [_label(run, table.kind) for run in table.rows]
    counts = Counter(found)
    return [
        label if counts[label] == 1 else f"{label} ({run.name})" for label, run in zip(found, table.rows, strict=True)
    ]


def _label(run: RunSummary, kind: str) -> str:
    if run.has_summary and run.label:
        return run.label
    return f"{kind} {run.name} {typed(run) if kind == 'job' else ''}".strip()


def title(table: RunTable) -> str:
    """Return the title of a report.

    It is the name of the run, the swept fields, or the number and the days of the runs.
    """
    if len(table.rows) == 1:
        return labels(table)[0]
    if table.kind == "job" and table.fields:
        return f"Sweep of {_enumerated(table.fields)}"
    days = sorted({start[0] for run in table.rows if (start := _start(run))})
    when = "" if not days else f" of {days[0]}" if len(days) == 1 else f", {days[0]} to {days[-1]}"
    return f"{len(table.rows)} {table.kind}s{when}"


def _enumerated(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def command_of(run: RunSummary) -> str:
    """Return the command that starts this run again, quoted for a shell."""
    return shlex.join([*paths.program("train").split(), *Overrides(run.overrides).as_typed()])


def sweep_command(table: RunTable) -> str:
    """Return the command of a sweep over all combinations of values.

    It is empty if the jobs are not all combinations, or a value would have to be quoted.
    """
    jobs = sorted(table.rows, key=lambda run: run.number)
    if table.kind != "job" or table.planned or len(jobs) < 2 or not all(run.overrides for run in jobs):
        return ""
    swept = {field: dict.fromkeys(run.typed.get(field, "") for run in jobs) for field in table.fields}
    if any("" in values for values in swept.values()):  # several commands began the jobs
        return ""
    common = Overrides(jobs[0].overrides).without(*swept).words
    n_jobs = 1
    for values in swept.values():
        n_jobs *= len(values)
    words = [word for run in jobs for word in run.overrides if word not in common]
    is_plain = all(re.fullmatch(r"[\w./+-]+=[\w./+-]*", word) for word in words)
    if not is_plain or n_jobs != len(jobs) or any(not set(common) <= set(run.overrides) for run in jobs):
        return ""
    lists = [f"{field}={','.join(values)}" for field, values in swept.items()]
    return shlex.join([*paths.program("train").split(), "-m", *Overrides(common).as_typed(), *lists])


def facts(table: RunTable) -> list[tuple[str, str]]:
    """Return the facts at the top of the page, each with its name.

    They are the note, the folder, the code, the machine, the start and the duration.
    """
    runs = table.rows
    found = [("Note", runs[0].note)] if len(runs) == 1 else []
    if len(runs) == 1:
        found.append(("Folder", str(runs[0].folder.absolute())))
    elif table.kind == "job" and runs:
        found.append(("Folder", str(runs[0].folder.absolute().parent)))
    found += [("Code", _counted(map(_commit, runs))), ("Machine", _counted(map(_machine, runs)))]
    starts = sorted(start for run in runs if (start := _start(run)))
    if starts:
        first, last = starts[0], starts[-1]
        end = "" if first == last else f" to {last[1] if first[0] == last[0] else ' '.join(last)}"
        found.append(("Started", " ".join(first) + end))
    if seconds := sum(run.seconds or 0 for run in runs):
        found.append(("Duration" if len(runs) == 1 else "Total duration", duration(seconds)))
    return [(name, value) for name, value in found if value]


def _counted(values: Iterable[str]) -> str:
    counts = Counter(value for value in values if value).most_common()
    if len(counts) == 1:
        return counts[0][0]
    named = [f"{value} ({count} runs)" for value, count in counts[:_NAMED]]
    return ", ".join([*named, *([f"and {len(counts) - _NAMED} others"] if len(counts) > _NAMED else [])])


def _commit(run: RunSummary) -> str:
    git = run.part("git")
    commit = str(git.get("commit") or "")[:10]
    return f"{commit} with uncommitted changes" if commit and git.get("dirty") else commit


def _machine(run: RunSummary) -> str:
    return ", ".join(str(run.summary[name]) for name in ("host", "device") if run.summary.get(name))


def _start(run: RunSummary) -> tuple[str, str] | None:
    # The day and the time of day here.
    try:
        start = datetime.fromisoformat(run.started).astimezone()
    except (ValueError, OverflowError, OSError):
        return None
    return f"{start:%Y-%m-%d}", f"{start:%H:%M}"


def duration(seconds: float) -> str:
    """Format a duration, e.g. `2.9 s`, `14 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def without_results(table: RunTable, shown: Sequence[Section]) -> list[dict[str, Any]]:
    """Return the failed runs and those in no section, each with name and error."""
    in_sections = {run.folder for section in shown for run in section.table.rows}
    names = dict(zip((run.number for run in table.rows), labels(table), strict=True))
    return [
        {
            "name": names[run.number],
            "folder": run.folder.name if table.kind == "job" else run.name,
            "status": run.status,
            "error": one_line(run.error),
            "command": command_of(run) if run.overrides else "",
        }
        for run in sorted(table.rows, key=lambda run: run.number)
        if run.status == "failed" or run.folder not in in_sections
    ]


def heading(runs: Sequence[dict[str, Any]]) -> str:
    """Return the heading of the list of `without_results`, e.g. `Failed (4)`."""
    counts = Counter(run["status"] for run in runs)
    parts = [f"{status} ({counts[status]})" for status in sorted(counts, key=lambda status: status != "failed")]
    return ", ".join(parts).capitalize()
