"""Mean, spread and significance over runs that differ only in the seed."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from bigramlm.runs.summary import RunSummary


@dataclass(frozen=True)
class Group:
    """The final val losses of runs that differ only in the seed."""

    name: str
    """The values that distinguish the group from the others, as overrides; empty if there is only one group."""
    losses: list[float]
    """One loss per seed."""
    rows: tuple[RunSummary, ...] = ()
    """The runs that the losses belong to."""
    n_runs: int = 0
    """The number of runs, including older runs with the same seed; 0 if unknown."""

    @property
    def repeated(self) -> str:
        """A note on seeds that were run more than once, or an empty string.

        Example: `1 seed, run 3 times; the newest run counts`.
        """
        seeds = len(self.losses)
        if self.n_runs <= seeds:
            return ""
        if seeds == 1:
            return f"1 seed, run {self.n_runs} times; the newest run counts"
        return f"{seeds} seeds, {self.n_runs} runs; the newest run of each seed counts"

    @property
    def mean(self) -> float:
        """The mean of the losses."""
        return statistics.fmean(self.losses)

    @property
    def std(self) -> float:
        """The sample standard deviation (n - 1) of the losses; nan for one loss."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else math.nan


def verdict(groups: list[Group]) -> str:
    """Describe whether the best group is significantly better than the second.

    The test is Welch's t-test at 95% (Welch 1947, "The generalization of 'Student's' problem when several different
    population variances are involved"). groups: at least two groups, sorted by mean loss, lowest first.
    """
    a, b = groups[:2]
    lead = f"{a.name or 'the first'} is ahead of {b.name or 'the second'} by {b.mean - a.mean:.4f}"
    if min(len(a.losses), len(b.losses)) < 2:
        return f"{lead}: no winner, because at least one of them has only one seed."
    errors = [group.std**2 / len(group.losses) for group in (a, b)]
    spread = math.sqrt((a.std**2 + b.std**2) / 2)
    if spread == 0:
        return f"{lead}, and the seed makes no difference."
    freedom = sum(errors) ** 2 / sum(e**2 / (len(g.losses) - 1) for e, g in zip(errors, (a, b), strict=True))
    distance, needed = (b.mean - a.mean) / spread, t_95(freedom) * math.sqrt(sum(errors)) / spread
    result = "a winner" if distance > needed else "inside the noise, no winner; more seeds may decide"
    chance = f"chance alone stays below {needed:.1f} in 95% of cases"
    return f"{lead} ({distance:.1f} standard deviations over seeds; {chance}): {result}."


# The 97.5th percentile of Student's t distribution, for 1 to 30 degrees of freedom.
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_95(freedom: float) -> float:
    """Return the smallest difference, in standard errors, that is significant at 95%.

    This is the two-sided critical value of Student's t. freedom: the degrees of freedom.
    """
    known = [*_T_95, 1.960]  # for 1, 2, ... 30 and infinitely many degrees of freedom
    below = max(1, min(int(freedom), len(_T_95)))
    far, near = 1 / below, 1 / (below + 1) if below < len(_T_95) else 0.0
    # The percentile is nearly linear in the reciprocal of the degrees of freedom.
    part = min(1.0, max(0.0, (far - 1 / freedom) / (far - near)))
    return known[below - 1] + part * (known[below] - known[below - 1])
