"""Runs that differ in the seed alone: their mean and spread, and whether a difference is more than chance."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from bigramlm.runs.summary import RunSummary


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
    """Say whether the best group is better than the next, or inside the noise of the seeds.

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
    """Return how many standard errors a difference must have to count at 95%, two-sided."""
    known = [*_T_95, 1.960]  # for 1, 2, ... 30 and infinitely many
    below = max(1, min(int(freedom), len(_T_95)))
    far, near = 1 / below, 1 / (below + 1) if below < len(_T_95) else 0.0
    # Nearly linear in one over the degrees of freedom.
    part = min(1.0, max(0.0, (far - 1 / freedom) / (far - near)))
    return known[below - 1] + part * (known[below] - known[below - 1])
