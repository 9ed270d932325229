"""The vital signs of a run, as tables of layer by step for the report page."""

from __future__ import annotations

from typing import Any

SIGNS = ("update_ratio", "grad_norm", "rms", "dead", "alike", "entropy", "max")
"""The vital signs that have a chart, by the last part of their names in the records."""

# The maximum number of steps of a run in a chart, and of rows, of all signs together.
MAX_STEPS, MAX_ROWS = 100, 1000
_MAX_NAME = 80
# The maximum number of values of all runs of a page, and the smallest number of steps that is worth a chart.
_CELLS_OF_PAGE = 200_000
_MIN_STEPS = 8


class VitalsTable:
    """The vital signs of a run, of bounded size: steps are left out while it grows."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], None] = {}  # sign and layer, in the order of the records
        self._steps: list[tuple[int, dict[tuple[str, str], float]]] = []
        self._n_seen, self._share = 0, 1  # of so many steps, one is kept

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, record: dict[str, Any]) -> None:
        """Add the vital signs of a record, if it has any."""
        found: dict[tuple[str, str], float] = {}
        for name, value in record.items():
            start, _, rest = name.partition("/")
            if start == "vitals" and isinstance(value, (int, float)) and -1e300 < value < 1e300:
                layer, _, sign = rest.rpartition("/")
                row = (sign, layer)
                if sign in SIGNS and len(layer) <= _MAX_NAME and (row in self._rows or len(self._rows) < MAX_ROWS):
                    self._rows[row] = None
                    found[row] = float(value)
        if not found:
            return
        if self._n_seen % self._share == 0:
            self._steps.append((record["step"], found))
        self._n_seen += 1
        if len(self._steps) > 2 * MAX_STEPS:
            del self._steps[1::2]
            self._share *= 2

    def data(self, n_runs: int = 1) -> dict[str, Any]:
        """Return the steps, layers and values of each sign, as values for JSON.

        n_runs: the number of runs on the page, which share its space. The result is empty if there is too little of it.
        """
        space = _CELLS_OF_PAGE // max(1, n_runs) // max(1, len(self._rows))
        n, n_kept = len(self._steps), min(len(self._steps), space, MAX_STEPS)
        if n_kept < min(n, _MIN_STEPS) or n == 0:
            return {}
        kept = [self._steps[round(at * (n - 1) / max(1, n_kept - 1))] for at in range(n_kept)]
        tables: dict[str, Any] = {}
        for sign in SIGNS:
            layers = [layer for of, layer in self._rows if of == sign]
            if layers:
                values = [[_rounded(found.get((sign, layer))) for _, found in kept] for layer in layers]
                tables[sign] = {"steps": [step for step, _ in kept], "layers": layers, "values": values}
        return tables


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
