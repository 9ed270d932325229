"""Two things measured in alternating pairs, and the ratio within the pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable

Figures = dict[str, float]


class Comparison:
    """Two things measured in pairs, and the ratio of one figure of theirs, pair by pair."""

    def __init__(self, title: str, a: list[Figures], b: list[Figures], figure: str, each: int | None = None) -> None:
        """each: what the difference is shared among, where it is to be told too."""
        self.title = title
        self.each = each
        self.a = [figures[figure] for figures in a]
        self.b = [figures.get(figure, figures.get("steps", 0.0)) for figures in b]
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


def alternate(pairs: int, a: Callable[[], Figures], b: Callable[[], Figures]) -> tuple[list[Figures], list[Figures]]:
    # A B, B A, A B, ...: what drifts hits both alike. The first of each warms the caches and is not counted.
    a(), b()
    measured: tuple[list[Figures], list[Figures]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[which].append((a, b)[which]())
    return measured
