"""Tables of runs: the jobs of a sweep, or any runs.

Each run saves its status in the summary in the run folder, so that a table can be made even for a killed sweep.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bigramlm.config.run_config import LABELS
from bigramlm.errors import printable
from bigramlm.report.statistics import Group, verdict
from bigramlm.runs.summary import RunSummary
from bigramlm.utils.console import table

# The first characters of a formula in a spreadsheet; the last four are those of East Asian keyboards.
_FORMULA_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

# The maximum number of rows on the terminal, which shows only the best runs. results.md contains all rows.
SHOWN = 40

# The width of the column `sample` in characters.
MIN_SAMPLE_WIDTH, _MAX_SAMPLE_WIDTH = 24, 60


class RunTable:
    """A table of runs with their results, the best run first."""

    kind = "run"
    """The noun for a row of the table: run or job."""
    planned = 0
    """The minimum number of runs of a search, which adds runs one by one; 0 without a search."""

    def __init__(self, runs: Sequence[RunSummary], swept: Sequence[str] = ()) -> None:
        """Sort the runs, and choose the fields that the table shows.

        swept: the names of the fields that are always shown. Any other field is shown if at least one run overrides the
        field and its values differ between runs.
        """
        typed = (name for run in runs for name in run.typed if name not in LABELS and not name.startswith("logger"))
        names = list(dict.fromkeys([*swept, *typed]))
        values = [run.values_of(names) for run in runs]
        varying = [name for name in names if len({found[name] for found in values}) > 1]
        self.fields = [name for name in names if name in swept or name in varying]
        compared = compares_tokenizers(self.fields)
        self.in_bits = compared if self.planned else compared or len({r.tokenizer for r in runs if r.tokenizer}) > 1
        """True if the runs are compared in bits per character, because their tokenizers differ. In a search, only the
        fields decide, so that the measure stays the same from the first trial to the last."""
        rows = [
            run.compared(number, {name: values[number][name] for name in self.fields}, in_bits=self.in_bits)
            for number, run in enumerate(runs)
        ]
        self.rows = sorted(rows, key=_rank)

    @property
    def measure(self) -> str:
        """The name of the measure by which runs are compared."""
        return "val bpc" if self.in_bits else "val loss"

    @property
    def short(self) -> str:
        """The short name of the measure, used as a column name."""
        return "bpc" if self.in_bits else "val"

    @functools.cached_property  # it looks at all rows, and a table asks it for each
    def best(self) -> RunSummary | None:
        """The completed run with the lowest final val loss.

        None if no run has completed, or if the losses cannot be compared.
        """
        first = self.rows[0] if self.rows else None
        comparable = self.n_texts == 1 and (self.in_bits or self.n_tokenizers == 1)
        return first if first and _rank(first)[0] == 0 and comparable else None

    @property
    def n_tokenizers(self) -> int:
        """The number of different tokenizers.

        Runs with different tokenizers can be compared only in bits per character.
        """
        return max(1, len({row.tokenizer for row in self.rows if row.tokenizer}))

    @property
    def n_texts(self) -> int:
        """The number of different training texts.

        Losses on different texts cannot be compared.
        """
        return max(1, len({row.text for row in self.rows if row.text}))

    def count(self) -> str:
        """Describe the number of runs by status: `40 jobs: 30 completed, 10 failed`."""
        counts = [(state, sum(row.status == state for row in self.rows)) for state in _STATES]
        known = ", ".join(f"{n} {state}" for state, n in counts if n)
        return f"{len(self.rows)} {self.kind}{'' if len(self.rows) == 1 else 's'}: {known or 'none'}"

    def columns(self, rows: list[RunSummary], *, samples: bool = True) -> dict[str, list[str]]:
        """Return the cells of these rows by column.

        If the models differ, the table has additional columns: the number of parameters, bits per character and, if
        samples is True, a line of the sample.
        """
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
        """Return the groups of runs that differ only in the seed, the best mean first.

        The list is empty if the seed was not varied. If a seed was run more than once, only its newest run counts,
        because repeating the same run does not measure the variation between seeds.
        """
        return self._groups() if "seed" in self.fields else []

    def _groups(self) -> list[Group]:
        groups: dict[tuple[str, ...], list[RunSummary]] = {}
        for row in self.rows:
            if _rank(row)[0] == 0:
                values = tuple(value for field, value in row.values.items() if field != "seed")
                groups.setdefault(values, []).append(row)
        others = [field for field in self.fields if field != "seed"]
        found = []
        for values, rows in groups.items():
            # If the seed is not among the fields, all runs have the same seed.
            newest = {row.values.get("seed"): row for row in sorted(rows, key=lambda row: row.start_order)}
            counted = tuple(row for row in rows if row is newest[row.values.get("seed")])
            losses = [row.final for row in counted if row.final is not None]
            name = " ".join(f"{f}={short(v)}" for f, v in zip(others, values, strict=True) if v)
            found.append(Group(name, losses, counted, n_runs=len(rows)))
        if len({group.name for group in found}) < len(found):  # their shortened names are the same
            long = [" ".join(f"{f}={printable(v)}" for f, v in zip(others, values, strict=True)) for values in groups]
            found = [replace(group, name=name) for name, group in zip(long, found, strict=True)]
        return sorted(found, key=lambda group: group.mean)

    def notes(self, *, failures: bool = True) -> list[str]:
        """Return notes on the results: significance, comparability and failed runs.

        failures: if False, failed runs are left out.
        """
        notes = [verdict(groups)] if len(groups := self.groups()) > 1 else []
        notes += [f"{group.name or 'all'}: {group.repeated}." for group in self._groups() if group.repeated]
        completed = [row for row in self.rows if row.status == "completed"]
        if "seed" not in self.fields and len(completed) > 1:
            advice = "sweep the best values with seed=1,2,3" if self.planned else "add seed=1,2,3"
            notes.append(f"Each setting was run with one seed: {advice} to see which differences are due to chance.")
        if self.in_bits:
            notes.append(
                "In bits per character (bpc), because losses per token of different tokenizers are not comparable."
            )
        elif self.n_tokenizers > 1:
            notes.append(f"Not comparable: these {self.kind}s have {self.n_tokenizers} different tokenizers.")
        if lossy := [row.name for row in completed if not row.is_comparable]:
            names = f"{self.kind} {lossy[0]}" if len(lossy) == 1 else f"{self.kind}s {', '.join(lossy[:8])}"
            notes.append(f"Not comparable: {names}, because bpc is too low if the tokenizer loses part of the text.")
        if self.n_texts > 1:
            notes.append(f"Not comparable: these {self.kind}s were trained on {self.n_texts} different texts.")
        failed = sorted((row for row in self.rows if failures and row.status == "failed"), key=lambda row: row.number)
        return notes + [f"{self.kind} {row.name} failed: {one_line(row.error)}" for row in failed]


_STATES = ("completed", "pruned", "stopped", "failed", "killed", "running", "pending", "unknown")


def short(value: str) -> str:
    """Shorten a value for a table.

    A long number is rounded to four significant digits. Only the end of a long text is kept.
    """
    if re.fullmatch(r"-?\d+\.\d{4,}(e[-+]?\d+)?|-?\d+\.\d+e[-+]?\d+|-?\d{7,}\.\d+", value):
        return f"{float(value):.4g}"
    text = printable(value)
    return text if len(text) <= 30 else f"…{text[-29:]}"


def one_line(text: str | None) -> str:
    """Return the first non-empty line of a text, or an empty string."""
    return printable(next((line.strip() for line in (text or "").splitlines() if line.strip()), ""))


def typed(run: RunSummary) -> str:
    """Return the values that distinguish a run from the others, as overrides."""
    return " ".join(f"{field}={short(value)}" for field, value in run.values.items() if value)


def _rank(row: RunSummary) -> tuple[int, float]:
    # Completed runs by final loss, lossy tokenizers last; then runs with an evaluation; then all others.
    if row.status == "completed" and row.final is not None and math.isfinite(row.final):
        return 0 if row.is_comparable else 1, row.final
    return (3, 0.0) if row.best is None else (2, row.best)


def seed_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of statistics over seeds."""
    rows = []
    for group in groups:
        std = "-" if math.isnan(group.std) else f"{group.std:.4f}"
        rows.append([group.name or "all", f"{group.mean:.4f}", std, str(len(group.losses))])
    return ["", "mean", "std", "seeds"], rows


def _line_of_sample(run: RunSummary) -> str:
    # The first line of the last sample that is long enough to be informative, else the longest line.
    lines = [line.strip() for line in (run.sample or "").splitlines()]
    line = next((line for line in lines if len(line) >= MIN_SAMPLE_WIDTH), max(lines, key=len, default=""))
    return "".join(c if c.isprintable() else " " for c in line[:_MAX_SAMPLE_WIDTH])


def width_of(columns: dict[str, list[str]]) -> int:
    """Return the width of a table on the terminal, in characters."""
    return max(map(len, table(*transposed(columns)).splitlines()))


def transposed(columns: dict[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    """Convert a table from columns to its header and its rows."""
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def _figure(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file in which no text is a formula of a spreadsheet."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = printable(str(value))
    if not text.startswith(_FORMULA_SIGNS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table as Markdown, in which no cell is HTML."""
    lines = [list(map(markdown_text, line)) for line in (head, ["---"] * len(head), *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """Return a text as one line of Markdown that contains no HTML, code, link or cell."""
    # The colon and the dot are those of an address, which some programs turn into a link.
    signs = re.compile(r"[\\`\[\]<&|]|:(?=//)|(?<=www)\.", re.IGNORECASE)
    return signs.sub(lambda match: f"&#{ord(match[0])};", printable(text))


def compares_tokenizers(fields: Iterable[str]) -> bool:
    """Check whether any of these fields is the tokenizer or one of its fields.

    If so, runs that differ in these fields have different tokenizers, and their losses can be compared only in bits per
    character.
    """
    return any(re.match(r"tokenizer(\.|$)", name) for name in fields)
