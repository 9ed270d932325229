"""Two things measured in alternating pairs, and the ratio within the pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Protocol

Figures = dict[str, float]


class Report(Protocol):
    """The findings of a benchmark, as text and for JSON."""

    def to_dict(self) -> dict[str, object]: ...


class Comparison:
    """Two things measured in pairs, and the ratio of one figure of theirs, pair by pair."""

    def __init__(
        self, title: str, a: list[Figures], b: list[Figures], figure: str, of_b: str = "", each: int | None = None
    ) -> None:
        """Compare a figure of two things, pair by pair.

        of_b: the other one's figure, where it has another name; each: what the difference is shared among, where it is
        to be told too.
        """
        self.title = title
        self.each = each
        self.a = [figures[figure] for figures in a]
        self.b = [figures[of_b or figure] for figures in b]
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
        if self.each:
            lines.append(f"difference, for each of {self.each}: {spread(self.differences)}")
        return "\n  ".join(lines)

    @property
    def differences(self) -> list[float]:
        return [(a - b) / (self.each or 1) for a, b in zip(self.a, self.b, strict=True)]


class Profile:
    """The phases of a step, and the least time that it could take."""

    def __init__(self, title: str, *, phases: dict[str, list[float]], floors: dict[str, float]) -> None:
        """phases: the seconds of each, step by step; floors: the least seconds, by what they are for."""
        self.title = title
        self.phases = phases
        self.floors = floors

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "phases": self.phases, "floors": self.floors}

    def __str__(self) -> str:
        medians = {name: statistics.median(seconds) for name, seconds in self.phases.items()}
        total = sum(medians.values())
        lines = [f"{self.title}: {1e3 * total:.3g} ms, medians of {len(next(iter(self.phases.values())))}"]
        lines += [f"{name:<10} {1e3 * median:7.3f} ms  {median / total:4.0%}" for name, median in medians.items()]
        lines += [f"at least {1e3 * seconds:.3g} ms for {what}" for what, seconds in self.floors.items()]
        return "\n  ".join(lines)


def alternate(
    pairs: int, a: Callable[[], Figures], b: Callable[[], Figures], *, warm: bool = True
) -> tuple[list[Figures], list[Figures]]:
    """Measure A B, B A, A B, ...: what drifts hits both alike. warm: the first of each is not counted."""
    if warm:
        a(), b()
    measured: tuple[list[Figures], list[Figures]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[which].append((a, b)[which]())
    return measured
