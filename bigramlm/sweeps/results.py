"""The results of a sweep's jobs: its table, for people and for programs."""

from __future__ import annotations

import csv
import io
import re
import textwrap

from bigramlm.report.results import (
    SAMPLE_AT_LEAST,
    SHOWN,
    RunTable,
    markdown_table,
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
        """Return the job of this name, which is its folder's; None if it is none of this sweep's."""
        return next((row for row in self.rows if row.name == name), None)

    def line(self, row: RunSummary, error: BaseException | None) -> str:
        """Say how a job ended: `job 3: completed, val 2.4858, 1.2 s (4 of 9): optim.lr=0.01 seed=2`."""
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
        """Return a line per job, with every digit, for programs."""
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
        """Return the tables for a terminal, with what they say."""
        shown, hidden = self.rows[:SHOWN], self.rows[SHOWN:]
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
            if width_of(columns) + (SAMPLE_AT_LEAST if samples else 0) <= width:
                break
            del columns[name]
        room = width - width_of(columns) - 2
        if samples and room >= SAMPLE_AT_LEAST // 2:
            columns["sample"] = [sample[:room].rstrip() for sample in samples]
        return table(*transposed(columns))

    def markdown(self) -> str:
        """Return the same for a page."""
        parts = [
            f"# Sweep {self.folder.name}",
            self.count(),
            markdown_table(*transposed(self.columns(self.rows))),
        ]
        if groups := self.groups():
            parts.append(f"## Over seeds, final {self.measure}\n\n" + markdown_table(*seed_table(groups)))
        return "\n\n".join([*parts, *self.notes()]) + "\n"


def runs_of(sweep: Sweep) -> list[RunSummary]:
    """Read the jobs of a sweep, named by their numbers."""
    return [RunSummary.read(sweep.path(job), str(job.number), job.values, job.error) for job in sweep.all_jobs()]
