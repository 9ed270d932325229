"""The results of a sweep: tables of its jobs as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from typing import Any

from bigramlm.report.results import (
    MIN_SAMPLE_WIDTH,
    SHOWN,
    RunTable,
    csv_cell,
    markdown_table,
    markdown_text,
    one_line,
    seed_table,
    transposed,
    typed,
    width_of,
)
from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps.plan import Sweep
from bigramlm.utils import files
from bigramlm.utils.console import relative, table


class Results(RunTable):
    """A table of the jobs of a sweep with their results, the best job first."""

    kind = "job"

    def __init__(self, sweep: Sweep) -> None:
        self.folder = sweep.folder
        self.planned = sweep.planned
        super().__init__(runs_of(sweep), sweep.fields)

    @property
    def n_texts(self) -> int:
        """The number of different training texts; 1 if the text is swept.

        If the number is above 1, the results are marked as not comparable. This does not apply if the text is swept,
        because the purpose of such a sweep is to compare texts.
        """
        is_swept = any(re.match(r"data(\.path)?$|experiment$", field) for field in self.fields)
        return 1 if is_swept else super().n_texts

    def row(self, name: str) -> RunSummary | None:
        """Return the run of the job with this folder name, or None if there is none."""
        return next((row for row in self.rows if row.name == name), None)

    def line(self, row: RunSummary, error: BaseException | None) -> str:
        """Describe in one line how a job ended.

        An example: `job 3: completed, val 2.4858, 1.2 s (4 of 9): optim.lr=0.01 seed=2`, where 4 of 9 jobs have ended.
        If the job failed, a second line contains the error.
        """
        figure, label = (row.final, self.short) if row.final is not None else (row.best, f"best {self.short}")
        parts = [row.status]
        if figure is not None:
            parts.append(f"{label} {figure:.4f}")
        if row.seconds is not None:
            parts.append(f"{row.seconds:.1f} s")
        ended = sum(row.status not in ("pending", "running") for row in self.rows)
        line = f"job {row.name}: {', '.join(parts)} ({ended} of {max(self.planned, len(self.rows))})"
        line += f": {typed(row)}" if row.values else ""
        return line if row.status != "failed" else f"{line}\n  {one_line(str(error) or repr(error))}"

    def write(self) -> None:
        """Write results.csv and results.md to the sweep folder."""
        files.write(self.folder / "results.csv", [self.csv().encode()], durable=False)
        files.write(self.folder / "results.md", [self.markdown().encode()], durable=False)

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dictionary per job, the best job first.

        Numbers are not rounded, and missing values are None.
        """
        return [
            {
                "job": row.name,
                **row.values,
                "status": row.status,
                "val/loss": row.final_loss,
                "best val/loss": row.best_loss,
                "val/bpc": row.bpc,
                "n_params": row.n_params,
                "step": row.step,
                "tokens_per_second": row.tokens_per_second,
                "seconds": row.seconds,
                "folder": row.folder,
                "error": row.error,
            }
            for row in self.rows
        ]

    def csv(self) -> str:
        """Return the results as CSV: one line per job, with unrounded numbers.

        A text that a spreadsheet would compute as a formula begins with an apostrophe.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        records = self.to_records()
        writer.writerow(map(csv_cell, records[0] if records else ["job", *self.fields]))
        writer.writerows(map(csv_cell, record.values()) for record in records)
        return out.getvalue()

    def text(self) -> str:
        """Return the tables and the notes as text for a terminal of 80 columns."""
        shown, hidden = self.rows[:SHOWN], self.rows[SHOWN:]
        parts = [self._fitting(shown)]
        if hidden:
            parts[0] += f"\n... and {len(hidden)} more, in {relative(self.folder / 'results.md')}"
        if self.best and len(self.rows) > 10:  # the first row may have left the screen
            parts.append(f"Best: job {self.best.name}, {self.measure} {self.best.final:.4f}: {typed(self.best)}")
        if groups := self.groups():
            parts.append(f"Final {self.measure} over seeds:\n" + table(*seed_table(groups)))
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
        # The least important columns are dropped until the table fits; results.md contains all of them.
        columns = self.columns(rows)
        samples = columns.pop("sample", None)
        droppable = ["tok/s", "best", "s", "step"]
        if samples:  # the seconds help to compare models, so they stay
            droppable = ["tok/s", "best", "step", *(["status"] if len(set(columns["status"])) == 1 else [])]
        for name in droppable:
            if width_of(columns) + (MIN_SAMPLE_WIDTH if samples else 0) <= width:
                break
            del columns[name]
        room = width - width_of(columns) - 2
        if samples and room >= MIN_SAMPLE_WIDTH // 2:
            columns["sample"] = [sample[:room].rstrip() for sample in samples]
        return table(*transposed(columns))

    def markdown(self) -> str:
        """Return the tables and the notes as Markdown."""
        parts = [
            markdown_text(f"# Sweep {self.folder.name}"),
            self.count(),
            markdown_table(*transposed(self.columns(self.rows))),
        ]
        if groups := self.groups():
            parts.append(f"## Final {self.measure} over seeds\n\n" + markdown_table(*seed_table(groups)))
        return "\n\n".join([*parts, *map(markdown_text, self.notes())]) + "\n"


def runs_of(sweep: Sweep) -> list[RunSummary]:
    """Read the runs of a sweep; the name of each run is its job number."""
    return [RunSummary.read(sweep.path(job), str(job.number), job.values, job.error) for job in sweep.all_jobs()]
