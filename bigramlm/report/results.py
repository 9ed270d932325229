"""Tables of runs: of a sweep's jobs, or of any runs.

How a run stands is told by the summary in its own folder, so the table of a sweep that was killed can be made too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bigramlm.report.statistics import Group, verdict
from bigramlm.runs.summary import RunSummary
from bigramlm.utils.console import table

# Of a long table the terminal shows the best; results.md has it whole.
SHOWN = 40

# How long a line of a sample in a table is.
SAMPLE_AT_LEAST, _SAMPLE_AT_MOST = 24, 60


class RunTable:
    """Runs with what came of them, the best first."""

    kind = "run"
    """The word for one of them."""
    planned = 0
    """The number of runs that there will be at least, if a search adds them as it goes."""

    def __init__(self, runs: Sequence[RunSummary], swept: Sequence[str] = ()) -> None:
        """swept: the fields to show in any case; those that were typed for any run and differ are added."""
        typed = (name for run in runs for name in run.typed if not name.startswith("logger"))
        names = list(dict.fromkeys([*swept, *typed]))
        values = [run.values_of(names) for run in runs]
        varying = [name for name in names if len({found[name] for found in values}) > 1]
        self.fields = [name for name in names if name in swept or name in varying]
        compared = compares_tokenizers(self.fields)
        self.in_bits = compared if self.planned else compared or len({r.tokenizer for r in runs if r.tokenizer}) > 1
        """True if they are compared in bits a character, since their tokenizers differ. A search has one measure from
        its first trial to its last."""
        rows = [
            run.compared(number, {name: values[number][name] for name in self.fields}, in_bits=self.in_bits)
            for number, run in enumerate(runs)
        ]
        self.rows = sorted(rows, key=_rank)

    @property
    def measure(self) -> str:
        """The measure that they are compared by."""
        return "val bpc" if self.in_bits else "val loss"

    @property
    def short(self) -> str:
        """The same for a narrow place."""
        return "bpc" if self.in_bits else "val"

    @property
    def best(self) -> RunSummary | None:
        """The completed run with the lowest final val loss; None where there is none, or they cannot be compared."""
        first = self.rows[0] if self.rows else None
        comparable = self.n_texts == 1 and (self.in_bits or self.n_tokenizers == 1)
        return first if first and _rank(first)[0] == 0 and comparable else None

    @property
    def n_tokenizers(self) -> int:
        """The number of different tokenizers: only bits per character compare those."""
        return max(1, len({row.tokenizer for row in self.rows if row.tokenizer}))

    @property
    def n_texts(self) -> int:
        """The number of different texts that they were trained on: losses on different ones are not compared."""
        return max(1, len({row.text for row in self.rows if row.text}))

    def count(self) -> str:
        """Count the runs by status: `40 jobs: 30 completed, 10 failed`."""
        counts = [(state, sum(row.status == state for row in self.rows)) for state in _STATES]
        known = ", ".join(f"{n} {state}" for state, n in counts if n)
        return f"{len(self.rows)} {self.kind}{'' if len(self.rows) == 1 else 's'}: {known or 'none'}"

    def columns(self, rows: list[RunSummary], *, samples: bool = True) -> dict[str, list[str]]:
        """Return a table's cells by column. If the models differ, columns that distinguish them are added."""
        sizes = {row.n_params for row in self.rows if row.n_params is not None}
        models_differ = len(sizes) > 1 or any(re.match(r"model(\.|$)", field) for field in self.fields)
        columns = {"": ["*" if row is self.best else "" for row in rows], self.kind: [row.name for row in rows]}
        columns |= {field: [short(row.values[field]) for row in rows] for field in self.fields}
        columns["status"] = [row.status for row in rows]
        if models_differ:
            columns["params"] = [_figure(row.n_params, ",d") for row in rows]
        columns[self.short] = [_figure(row.final, ".4f") for row in rows]
        if models_differ and not self.in_bits:
            columns["bpc"] = [_figure(row.bpc, ".3f") for row in rows]
        columns["best"] = [_figure(row.best, ".4f") for row in rows]
        columns["step"] = [_figure(row.step, "d") for row in rows]
        columns["tok/s"] = [_figure(row.tokens_per_second, ",.0f") for row in rows]
        columns["s"] = [_figure(row.seconds, ".1f") for row in rows]
        if models_differ and samples:
            columns["sample"] = [_line_of_sample(row) for row in rows]
        return columns

    def groups(self) -> list[Group]:
        """Those that differ in the seed alone, the best mean first; none where no seed was swept.

        A seed counts once, by its newest run: the same run made three times says nothing of chance.
        """
        return self._groups() if "seed" in self.fields else []

    def _groups(self) -> list[Group]:
        groups: dict[tuple[str, ...], list[RunSummary]] = {}
        for row in self.rows:
            if _rank(row)[0] == 0:
                values = tuple(value for field, value in row.values.items() if field != "seed")
                groups.setdefault(values, []).append(row)
        others = [field for field in self.fields if field != "seed"]
        made = []
        for values, rows in groups.items():
            # Where no seed is among the fields, all runs have the same one.
            newest = {row.values.get("seed"): row for row in sorted(rows, key=_by_age)}
            counted = tuple(row for row in rows if row is newest[row.values.get("seed")])
            losses = [row.final for row in counted if row.final is not None]
            name = " ".join(f"{f}={short(v)}" for f, v in zip(others, values, strict=True))
            made.append(Group(name, losses, counted, n_runs=len(rows)))
        if len({group.name for group in made}) < len(made):  # what tells them apart was cut off
            long = [" ".join(f"{f}={v}" for f, v in zip(others, values, strict=True)) for values in groups]
            made = [replace(group, name=name) for name, group in zip(long, made, strict=True)]
        return sorted(made, key=lambda group: group.mean)

    def notes(self) -> list[str]:
        """List what the figures say, and what is wrong with them: a sentence or two each."""
        notes = [verdict(groups)] if len(groups := self.groups()) > 1 else []
        notes += [f"{group.name or 'all'}: {group.repeated}." for group in self._groups() if group.repeated]
        completed = [row for row in self.rows if row.status == "completed"]
        if "seed" not in self.fields and len(completed) > 1:
            how = "a sweep of the best values with seed=1,2,3" if self.planned else "adding seed=1,2,3"
            notes.append(f"Each has one seed: how much of the differences is chance, {how} would tell.")
        if self.in_bits:
            notes.append("In bits a character (bpc): a loss is of a token, and their tokenizers differ.")
        elif self.n_tokenizers > 1:
            notes.append(f"Not comparable: these {self.kind}s have {self.n_tokenizers} different tokenizers.")
        if lossy := [row.name for row in completed if not row.counts]:
            whose = f"{self.kind} {lossy[0]}" if len(lossy) == 1 else f"{self.kind}s {', '.join(lossy[:8])}"
            notes.append(f"Not comparable: {whose}, whose tokenizer loses part of the text: its bpc is too low.")
        if self.n_texts > 1:
            notes.append(f"Not comparable: these {self.kind}s were trained on {self.n_texts} different texts.")
        failed = sorted((row for row in self.rows if row.status == "failed"), key=lambda row: row.number)
        return notes + [f"{self.kind} {row.name} failed: {one_line(row.error)}" for row in failed]


_STATES = ("completed", "pruned", "stopped", "failed", "killed", "running", "pending", "unknown")


def short(value: str) -> str:
    """Shorten a value for a table: a long number to four digits, a long text to its end."""
    if re.fullmatch(r"-?\d+\.\d{4,}(e[-+]?\d+)?|-?\d+\.\d+e[-+]?\d+|-?\d{7,}\.\d+", value):
        return f"{float(value):.4g}"
    return one_line(value) if len(value) <= 30 else f"…{one_line(value)[-29:]}"


def one_line(text: str | None) -> str:
    """Return the text's first line that is not empty."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def typed(run: RunSummary) -> str:
    """Return what a run is compared by, as it is typed."""
    return " ".join(f"{field}={short(value)}" for field, value in run.values.items())


def _by_age(run: RunSummary) -> tuple[str, int]:
    # Among those that were started at once the one that was given last is the newest.
    return run.started, run.number


def _rank(row: RunSummary) -> tuple[int, float]:
    # Completed runs by what counts, others by what they came to, and those that came to nothing.
    if row.status == "completed" and row.final is not None and math.isfinite(row.final):
        return 0 if row.counts else 1, row.final
    return (3, 0.0) if row.best is None else (2, row.best)


def seed_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for group in groups:
        std = "-" if math.isnan(group.std) else f"{group.std:.4f}"
        rows.append([group.name or "all", f"{group.mean:.4f}", std, str(len(group.losses))])
    return ["", "mean", "std", "seeds"], rows


def _line_of_sample(run: RunSummary) -> str:
    # The first line of the last sample that is long enough to tell something, else the longest.
    lines = [line.strip() for line in (run.sample or "").splitlines()]
    line = next((line for line in lines if len(line) >= SAMPLE_AT_LEAST), max(lines, key=len, default=""))
    return "".join(c if c.isprintable() else " " for c in line[:_SAMPLE_AT_MOST])


def width_of(columns: dict[str, list[str]]) -> int:
    return max(map(len, table(*transposed(columns)).splitlines()))


def transposed(columns: dict[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def _figure(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def compares_tokenizers(fields: Iterable[str]) -> bool:
    """Tell whether these fields are of tokenizers, whose losses only bits a character compare."""
    return any(re.match(r"tokenizer(\.|$)", name) for name in fields)
