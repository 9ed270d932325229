"""Alternating measurements of two variants, and the ratio of each pair."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Protocol

Figures = dict[str, float]


class Report(Protocol):
    """The result of a benchmark, printable as text or JSON."""

    def to_dict(self) -> dict[str, object]: ...


class Comparison:
    """The values of one figure for two variants, measured in pairs, and their ratios."""

    def __init__(
        self,
        title: str,
        a: list[Figures],
        b: list[Figures],
        figure: str,
        figure_b: str = "",
        n_items: int | None = None,
    ) -> None:
        """Compare a figure of the variants A and B, pair by pair.

        a, b: the measurements of A and B, one per pair. figure: the name of the figure. figure_b: the name of the
        figure for B, if it differs. n_items: the number of items in a measurement, e.g. jobs; if given, the difference
        per item is also printed.
        """
        self.title = title
        self.n_items = n_items
        self.a = [figures[figure] for figures in a]
        self.b = [figures[figure_b or figure] for figures in b]
        self.ratios = [a / b for a, b in zip(self.a, self.b, strict=True)]

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "a": self.a, "b": self.b, "ratios": self.ratios}

    def __str__(self) -> str:
        def spread(values: list[float]) -> str:
            return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"

        lines = [
            self.title,
            f"{spread(self.a)} / {spread(self.b)}",
            f"ratio {spread(self.ratios)}, {len(self.a)} pairs",
        ]
        if self.n_items:
            lines.append(f"difference per item ({self.n_items} items): {spread(self.differences)}")
        return "\n  ".join(lines)

    @property
    def differences(self) -> list[float]:
        return [(a - b) / (self.n_items or 1) for a, b in zip(self.a, self.b, strict=True)]


class Profile:
    """The time of each phase of a step, and lower bounds on the time of the step."""

    def __init__(self, title: str, *, phases: dict[str, list[float]], floors: dict[str, float]) -> None:
        """Store the timings of a step.

        phases: the seconds per step, by phase. floors: lower bounds on the seconds of a step, by the work that requires
        this time.
        """
        self.title = title
        self.phases = phases
        self.floors = floors

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "phases": self.phases, "floors": self.floors}

    def __str__(self) -> str:
        medians = {name: statistics.median(seconds) for name, seconds in self.phases.items()}
        total = sum(medians.values())
        lines = [f"{self.title}: {1e3 * total:.3g} ms, medians of {len(next(iter(self.phases.values())))} steps"]
        lines += [f"{name:<10} {1e3 * median:7.3f} ms  {median / total:4.0%}" for name, median in medians.items()]
        lines += [f"at least {1e3 * seconds:.3g} ms for {work}" for work, seconds in self.floors.items()]
        return "\n  ".join(lines)


def alternate(
    pairs: int, a: Callable[[], Figures], b: Callable[[], Figures], *, warm_up: bool = True
) -> tuple[list[Figures], list[Figures]]:
    """Measure A and B in alternating order (A B, B A, A B, …).

    a, b: functions that measure a variant once. Because of the alternation, slow changes of the machine affect A and B
    equally. warm_up: if True, run each function once before the measurements.
    """
    if warm_up:
        a(), b()
    measured: tuple[list[Figures], list[Figures]] = ([], [])
    for pair in range(pairs):
        for variant in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[variant].append((a, b)[variant]())
    return measured
