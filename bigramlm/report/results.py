"""What came of runs, as tables: of a sweep's jobs, or of any runs.

How a run stands is told by the summary in its own folder, so the table of a sweep that was killed can be made too.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps.plan import Sweep, compares_tokenizers
from bigramlm.utils import files
from bigramlm.utils.console import relative, table

# Of a long table the terminal shows the best; results.md has it whole.
_SHOWN = 40

# How long a line of a sample in a table is.
_SAMPLE_AT_LEAST, _SAMPLE_AT_MOST = 24, 60


class Outcomes:
    """Runs with what came of them, the best first."""

    kind = "run"
    """What one of them is called."""
    planned = 0
    """How many there will be at least, where a search makes them as it goes."""

    def __init__(self, runs: Sequence[RunSummary], swept: Sequence[str] = ()) -> None:
        """swept: the fields that are shown of each, besides those that were typed for any of them and differ."""
        typed = (name for run in runs for name in run.typed if not name.startswith("logger"))
        names = list(dict.fromkeys([*swept, *typed]))
        values = [run.values_of(names) for run in runs]
        varying = [name for name in names if len({found[name] for found in values}) > 1]
        self.fields = [name for name in names if name in swept or name in varying]
        compared = compares_tokenizers(self.fields)
        self.in_bits = compared if self.planned else compared or len({r.tokenizer for r in runs if r.tokenizer}) > 1
        """Whether they are compared in bits a character, since their tokenizers differ. A search has one measure from
        its first trial to its last."""
        rows = [
            run.compared(number, {name: values[number][name] for name in self.fields}, in_bits=self.in_bits)
            for number, run in enumerate(runs)
        ]
        self.rows = sorted(rows, key=_rank)

    @property
    def measure(self) -> str:
        """What they are compared by."""
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
        """How many different tokenizers they have: only bits a character compare those."""
        return max(1, len({row.tokenizer for row in self.rows if row.tokenizer}))

    @property
    def n_texts(self) -> int:
        """How many different texts they were trained on: losses on different ones are not compared."""
        return max(1, len({row.text for row in self.rows if row.text}))

    def count(self) -> str:
        """How many there are, and how they stand: `40 jobs: 30 completed, 10 failed`."""
        counts = [(state, sum(row.status == state for row in self.rows)) for state in _STATES]
        known = ", ".join(f"{n} {state}" for state, n in counts if n)
        return f"{len(self.rows)} {self.kind}{'' if len(self.rows) == 1 else 's'}: {known or 'none'}"

    def columns(self, rows: list[RunSummary], *, samples: bool = True) -> dict[str, list[str]]:
        """A table's cells by its heads. Where the models differ, what tells them apart is shown too."""
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
        """What the figures say, and what is wrong with them: a sentence or two each."""
        notes = [verdict(groups)] if len(groups := self.groups()) > 1 else []
        notes += [f"{group.name or 'all'}: {group.repeated}." for group in self._groups() if group.repeated]
        completed = [row for row in self.rows if row.status == "completed"]
        if "seed" not in self.fields and len(completed) > 1:
            how = "a sweep of the best values with seed=1,2,3" if self.planned else "seed=1,2,3 besides"
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


class Results(Outcomes):
    """The jobs of a sweep with what came of them, the best first."""

    kind = "job"

    def __init__(self, sweep: Sweep) -> None:
        self.folder = sweep.folder
        self.planned = sweep.planned
        super().__init__(runs_of(sweep), sweep.fields)

    @property
    def n_texts(self) -> int:
        """As of any runs; but who sweeps the text means to compare, and it counts as one."""
        is_swept = any(re.match(r"data(\.path)?$|experiment$", field) for field in self.fields)
        return 1 if is_swept else super().n_texts

    def row(self, name: str) -> RunSummary | None:
        """The job of this name, which is its folder's; None where it is none of ours."""
        return next((row for row in self.rows if row.name == name), None)

    def line(self, row: RunSummary, error: BaseException | None) -> str:
        """What is said when a job ends: `job 3: completed, val 2.4858, 1.2 s (4 of 9): optim.lr=0.01 seed=2`."""
        figure, what = (row.final, self.short) if row.final is not None else (row.best, f"best {self.short}")
        parts = [row.status]
        if figure is not None:
            parts.append(f"{what} {figure:.4f}")
        if row.seconds is not None:
            parts.append(f"{row.seconds:.1f} s")
        ended = sum(row.status not in ("pending", "running") for row in self.rows)
        told = f"job {row.name}: {', '.join(parts)} ({ended} of {max(self.planned, len(self.rows))})"
        told += f": {typed(row)}" if row.values else ""
        return told if row.status != "failed" else f"{told}\n  {one_line(str(error) or repr(error))}"

    def write(self) -> None:
        """Write results.csv and results.md into the sweep's folder."""
        files.write(self.folder / "results.csv", [self.csv().encode()], durable=False)
        files.write(self.folder / "results.md", [self.markdown().encode()], durable=False)

    def csv(self) -> str:
        """A line a job, every digit, for programs."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            [
                *("job", *self.fields, "status", "val/loss", "best val/loss", "val/bpc", "n_params"),
                *("step", "tokens_per_second", "seconds", "folder", "error"),
            ]
        )
        for row in self.rows:
            figures = (
                row.final_loss,
                row.best_loss,
                row.bpc,
                row.n_params,
                row.step,
                row.tokens_per_second,
                row.seconds,
            )
            writer.writerow([row.name, *row.values.values(), row.status, *figures, row.folder, row.error])
        return out.getvalue()

    def text(self) -> str:
        """The tables for a terminal, with what they say."""
        shown, hidden = self.rows[:_SHOWN], self.rows[_SHOWN:]
        parts = [self._fitting(shown)]
        if hidden:
            parts[0] += f"\n... and {len(hidden)} more, in {relative(self.folder / 'results.md')}"
        if self.best and len(self.rows) > 10:  # the first row may have left the screen
            parts.append(f"Best: job {self.best.name}, {self.measure} {self.best.final:.4f}: {typed(self.best)}")
        if groups := self.groups():
            parts.append(f"Over seeds, final {self.measure}:\n" + table(*seed_table(groups)))
        return "\n\n".join(
            [
                *parts,
                *(
                    textwrap.fill(note, 80, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
                    for note in self.notes()
                ),
            ]
        )

    def _fitting(self, rows: list[RunSummary], width: int = 80) -> str:
        # What is least needed is left to the page, where the table would not fit.
        columns = self.columns(rows)
        samples = columns.pop("sample", None)
        least = ["tok/s", "best", "s", "step"]
        if samples:  # and what models are compared by
            least = ["tok/s", "best", "step", *(["status"] if len(set(columns["status"])) == 1 else [])]
        for name in least:
            if _width(columns) + (_SAMPLE_AT_LEAST if samples else 0) <= width:
                break
            del columns[name]
        room = width - _width(columns) - 2
        if samples and room >= _SAMPLE_AT_LEAST // 2:
            columns["sample"] = [sample[:room].rstrip() for sample in samples]
        return table(*_transposed(columns))

    def markdown(self) -> str:
        """The same for a page."""
        parts = [
            f"# Sweep {self.folder.name}",
            self.count(),
            _markdown(*_transposed(self.columns(self.rows))),
        ]
        if groups := self.groups():
            parts.append(f"## Over seeds, final {self.measure}\n\n" + _markdown(*seed_table(groups)))
        return "\n\n".join([*parts, *self.notes()]) + "\n"


_STATES = ("completed", "pruned", "stopped", "failed", "killed", "running", "pending", "unknown")


@dataclass(frozen=True)
class Group:
    """Final val losses of runs that differ in the seed alone."""

    name: str
    losses: list[float]
    """One for each seed."""
    rows: tuple[RunSummary, ...] = ()
    """The runs that the losses are of."""
    n_runs: int = 0
    """The number of runs, older ones of the same seed included; 0 if unknown."""

    @property
    def repeated(self) -> str:
        """The seeds and runs, where a seed was run more than once: `1 seed, run 3 times`; empty otherwise."""
        seeds = len(self.losses)
        if self.n_runs <= seeds:
            return ""
        if seeds == 1:
            return f"1 seed, run {self.n_runs} times; the newest run counts"
        return f"{seeds} seeds, {self.n_runs} runs; of each seed the newest run counts"

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)

    @property
    def std(self) -> float:
        """The standard deviation that the losses estimate (n - 1); nan of a single one."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else math.nan


def verdict(groups: list[Group]) -> str:
    """Whether the best group is better than the next, or inside the noise of the seeds.

    By Welch's t-test at 95% (Welch 1947, "The generalization of Student's problem when several different population
    variances are involved"). groups: two or more, the best mean first.
    """
    a, b = groups[:2]
    names = f"{a.name or 'the first'} before {b.name or 'the second'} by {b.mean - a.mean:.4f}"
    if min(len(a.losses), len(b.losses)) < 2:
        return f"{names}: no winner can be called, for one of them has one seed only."
    errors = [group.std**2 / len(group.losses) for group in (a, b)]
    spread = math.sqrt((a.std**2 + b.std**2) / 2)
    if spread == 0:
        return f"{names}, and the seed changes nothing."
    freedom = sum(errors) ** 2 / sum(e**2 / (len(g.losses) - 1) for e, g in zip(errors, (a, b), strict=True))
    distance, needed = (b.mean - a.mean) / spread, t_95(freedom) * math.sqrt(sum(errors)) / spread
    called = "a winner" if distance > needed else "inside the noise, no winner; more seeds would tell"
    return f"{names}, {distance:.1f} standard deviations over seeds, where {needed:.1f} would tell at 95%: {called}."


# Student's t that 2.5% lie above, for 1 to 30 degrees of freedom.
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_95(freedom: float) -> float:
    """How many standard errors a difference must have to count at 95%, two-sided."""
    known = [*_T_95, 1.960]  # for 1, 2, ... 30 and infinitely many
    below = max(1, min(int(freedom), len(_T_95)))
    far, near = 1 / below, 1 / (below + 1) if below < len(_T_95) else 0.0
    # Nearly linear in one over the degrees of freedom.
    part = min(1.0, max(0.0, (far - 1 / freedom) / (far - near)))
    return known[below - 1] + part * (known[below] - known[below - 1])


def short(value: str) -> str:
    """A value for a table: a long number to four digits, of a long text the end."""
    if re.fullmatch(r"-?\d+\.\d{4,}(e[-+]?\d+)?|-?\d+\.\d+e[-+]?\d+|-?\d{7,}\.\d+", value):
        return f"{float(value):.4g}"
    return one_line(value) if len(value) <= 30 else f"…{one_line(value)[-29:]}"


def one_line(text: str | None) -> str:
    """The text's first line that says something."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def runs_of(sweep: Sweep) -> list[RunSummary]:
    """The jobs of a sweep, named by their numbers."""
    return [RunSummary.read(sweep.path(job), str(job.number), job.values, job.error) for job in sweep.all_jobs()]


def typed(run: RunSummary) -> str:
    """What a run is compared by, as it is typed."""
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
    line = next((line for line in lines if len(line) >= _SAMPLE_AT_LEAST), max(lines, key=len, default=""))
    return "".join(c if c.isprintable() else " " for c in line[:_SAMPLE_AT_MOST])


def _width(columns: dict[str, list[str]]) -> int:
    return max(map(len, table(*_transposed(columns)).splitlines()))


def _transposed(columns: dict[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def _figure(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
