"""The data of a report page, read from the run folders."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigramlm.config.run_config import GROUPS
from bigramlm.report.results import RunTable, typed
from bigramlm.report.vitals import VitalsTable
from bigramlm.runs.summary import RunSummary

# The losses in the charts: their names on the page and in the records.
LOSSES = {"val": "val/loss", "train": "train/loss", "batch": "train/batch_loss"}

# The other measures in the charts: the same.
MEASURES = {"grad_norm": "grad_norm", "lr": "lr", "speed": "tokens_per_second", "mfu": "mfu"}

# The maximum number of points of a series, and of all series of a page. A longer series is reduced to its local minima
# and maxima, so that outliers stay visible.
MAX_POINTS = 1000
_POINTS_OF_PAGE = 400_000
# The maximum number of points of a series in memory while the records are read, and the number that one thinning of new
# points leaves.
_POINTS_READ = 100_000
_CHUNK = 100
_MIN_POINTS = 20

# The maximum length of a sample on the page, and of all samples, in characters.
MAX_SAMPLE_LENGTH = 4000
_SAMPLES_OF_PAGE = 3_000_000
_MIN_SAMPLE_LENGTH = 300
# The maximum number of steps of a run with a sample on the page.
MAX_SAMPLES = 40

# The largest number of values of a field that is not numeric and has a chart, and the last parts of the names of
# fields that contain free text, which never have one.
MAX_CATEGORIES = 8
_FREE_TEXTS = {"name", "note", "prompt", "path", "url", "source", "init_from", "extensions", "resume", "base", "sweep"}
# Fields without an influence on the losses have no chart either.
_WITHOUT_INFLUENCE = {"sample_every", "vitals_every", "log_every", "checkpoint_every", "keep_checkpoints", "preflight"}

Series = dict[str, list[float]]


@dataclass(frozen=True)
class Curves:
    """The curves and the horizontal lines that the charts show for a run."""

    series: dict[str, Series]
    """The steps, seconds and values of the points, for each key of `LOSSES` and `MEASURES`."""
    references: dict[str, float]
    """The losses of the counting baselines (best bigram, n-grams), by metric name."""
    vitals: dict[str, Any] = field(default_factory=dict)
    """The tables of `VitalsTable.data`; empty if there are none."""


def read_curves(run: RunSummary, max_points: int = MAX_POINTS, n_runs: int = 1) -> Curves:
    """Read the curves of a run from its records, skipping missing values.

    n_runs: the number of runs on the page, which limits the tables of vital signs.
    """
    series = {name: GrowingSeries() for name in {**LOSSES, **MEASURES}}
    references: dict[str, float] = {}
    vitals = VitalsTable()
    for record in run.records:
        vitals.add(record)
        seconds = record.get("seconds")
        point = {"step": record["step"], "seconds": seconds if _is_finite(seconds) else 0.0}
        for name, metric in {**LOSSES, **MEASURES}.items():
            value: Any = record.get(metric)
            if name in LOSSES and _is_finite(value):
                value = run.convert_loss(value, _split(metric))
            if _is_finite(value):
                series[name].add({**point, "value": value})
        baselines = {
            name: run.convert_loss(loss, _split(name))
            for name, loss in record.items()
            if _is_reference(name) and _is_finite(loss)
        }
        references |= {name: loss for name, loss in baselines.items() if loss is not None}
    thin = {name: thinned(points.all(), max_points) for name, points in series.items()}
    return Curves(thin, references, vitals.data(n_runs))


class GrowingSeries:
    """A series of bounded size: it is thinned while it grows."""

    def __init__(self, limit: int = _POINTS_READ) -> None:
        """Make an empty series.

        limit: the maximum number of points that are kept; a shorter series keeps all.
        """
        self._limit = limit
        self._kept, self._new = _no_points(), _no_points()
        self._share = 1  # the number of points of which one is kept

    def add(self, point: dict[str, float]) -> None:
        """Append a point."""
        for part, number in point.items():
            self._new[part].append(number)
        if len(self._new["value"]) == _CHUNK * self._share:
            for part, numbers in thinned(self._new, _CHUNK).items():
                self._kept[part] += numbers
            self._new = _no_points()
            if len(self._kept["value"]) > self._limit - _CHUNK:
                self._kept = thinned(self._kept, self._limit // 2)
                self._share *= 2

    def all(self) -> Series:
        """Return the points that are kept."""
        return {part: numbers + self._new[part] for part, numbers in self._kept.items()}


def _no_points() -> Series:
    return {"step": [], "seconds": [], "value": []}


def points_per_series(n_runs: int) -> int:
    """Return the maximum number of points of a series on a page of so many runs."""
    n_series = max(1, n_runs * len({**LOSSES, **MEASURES}))
    return max(_MIN_POINTS, min(MAX_POINTS, _POINTS_OF_PAGE // n_series))


def tokens_per_step(run: RunSummary) -> int | None:
    """Return the tokens per step, or None if they cannot be read from the config."""
    fields = ("data.batch_size", "data.block_size", "trainer.grad_accumulation")
    try:
        return math.prod(int(run.get(name)) for name in fields)
    except (TypeError, ValueError):
        return None


def _split(metric: str) -> str:
    return metric.partition("/")[0]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_reference(name: str) -> bool:
    return name.partition("/")[2].startswith(("best_", "ngram_"))


def thinned(series: Series, max_points: int = MAX_POINTS) -> Series:
    """Reduce a series to at most max_points points that include its outliers.

    Keeps both ends of the series. Divides the series into intervals of equal length, and keeps the points with the
    lowest and the highest value of each interval.
    """
    n = len(series["value"])
    if n <= max_points:
        return series
    n_intervals = max(1, (max_points - 2) // 2)
    kept = {0, n - 1}
    for number in range(n_intervals):
        interval = range(number * n // n_intervals, (number + 1) * n // n_intervals)
        kept |= {min(interval, key=series["value"].__getitem__), max(interval, key=series["value"].__getitem__)}
    return {part: [values[at] for at in sorted(kept)] for part, values in series.items()}


def data(
    table: RunTable,
    curves: Sequence[Curves],
    log_fields: Sequence[str],
    labels: Sequence[str] | None = None,
    samples: Sequence[list[tuple[int, str]]] | None = None,
    fields: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the data of the charts of a table, as values that JSON can represent.

    curves: the curves of each run, in the order of the table rows; also labels, the names on the page, and samples, the
    steps and texts of the samples. log_fields: the fields that a search varied on a logarithmic scale. fields: the
    fields by which the page can colour runs, beside those of the table.
    """
    runs = table.rows
    at = {run.number: index for index, run in enumerate(runs)}
    return {
        "kind": table.kind,
        "measure": table.measure,
        "short": table.short,
        "unit": "bits per character" if table.in_bits else "loss, nats per token",
        "runs": [
            {
                "name": run.name,
                "label": labels[index] if labels else run.name,
                "typed": typed(run),
                "status": run.status,
                "values": {**run.values_of(fields), **run.values},
                "final": _rounded(run.final),
                "tokensPerStep": tokens_per_step(run),
                "series": {
                    name: {part: [_rounded(value) for value in values] for part, values in series.items()}
                    for name, series in run_curves.series.items()
                    if series["value"]
                },
                **({"vitals": run_curves.vitals} if run_curves.vitals else {}),
                **({"samples": samples[index]} if samples and len(samples[index]) > 1 else {}),
            }
            for index, (run, run_curves) in enumerate(zip(runs, curves, strict=True))
        ],
        "fields": chart_fields(table, log_fields),
        "groups": [
            {
                "runs": [at[row.number] for row in group.rows],
                "mean": group.mean,
                "std": None if math.isnan(group.std) else group.std,
            }
            for group in table.groups()
        ],
        "references": references(curves),
    }


def chart_fields(table: RunTable, log_fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the fields of a table that have a chart, with their kind of axis.

    A field has a chart if its values vary between the completed runs and are numbers, or at most MAX_CATEGORIES
    different words or presets of a config group. Free text, such as a prompt or a path, has none.
    """
    completed = [run for run in table.rows if run.final is not None and math.isfinite(run.final)]
    return [
        field
        for name in table.fields
        if (field := _field(name, [run.values[name] for run in completed], log_fields)) is not None
    ]


def _rounded(value: float | None) -> float | None:
    # Six digits are more than a chart can show; all digits would double the size of the page.
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _field(name: str, values: Sequence[str], log_fields: Sequence[str]) -> dict[str, Any] | None:
    # A run of another model may lack a field; it is then left out of a numeric chart.
    known = [value for value in values if value != ""]
    distinct = set(values)
    numbers = [number for value in known if (number := _number(value)) is not None]
    if len(distinct) < 2 or name.startswith("sample.") or name.rpartition(".")[2] in _FREE_TEXTS | _WITHOUT_INFLUENCE:
        return None
    if len(numbers) < len(known):
        is_choice = name in GROUPS or all(re.fullmatch(r"[\w.+-]{0,30}", value) for value in distinct)
        return {"name": name, "numeric": False, "log": False} if is_choice and len(distinct) <= MAX_CATEGORIES else None
    if len(set(numbers)) < 2:
        return None
    log = min(numbers) > 0 and (name in log_fields or is_geometric(numbers))
    return {"name": name, "numeric": True, "log": log}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def is_geometric(values: Sequence[float]) -> bool:
    """Check whether values are spaced more evenly on a log scale than linearly.

    Two different values count as geometric if they differ by a factor of at least 10. Returns False if there are fewer
    than two different values, or if a value is not positive.
    """
    distinct = sorted(set(values))
    if len(distinct) < 2 or distinct[0] <= 0:
        return False
    if len(distinct) == 2:
        return distinct[1] >= 10 * distinct[0]

    def unevenness(points: Sequence[float]) -> float:
        gaps = [b - a for a, b in itertools.pairwise(points)]
        return statistics.pstdev(gaps) / statistics.fmean(gaps)

    return unevenness([math.log(value) for value in distinct]) < unevenness(distinct)


def references(curves: Sequence[Curves]) -> list[dict[str, Any]]:
    """Return the losses of the counting baselines, as horizontal lines for the charts.

    Each line is a dictionary with the split, the name, the loss and the indices of the runs that have this baseline.
    Lines are sorted by the number of runs, largest first.
    """
    found: dict[tuple[str, str, float], list[int]] = {}
    for index, run_curves in enumerate(curves):
        for metric, loss in run_curves.references.items():
            split, _, name = metric.partition("/")
            found.setdefault((split, name, round(loss, 3)), []).append(index)
    lines = [
        {"split": split, "name": _display_name(name), "loss": loss, "runs": indices}
        for (split, name, loss), indices in found.items()
    ]
    return sorted(lines, key=lambda line: -len(line["runs"]))


def _display_name(name: str) -> str:
    kind, _, model = name.partition("_")
    return f"{model}-gram" if kind == "ngram" else f"best {model}"


def samples_of(runs: Iterable[RunSummary]) -> list[list[tuple[int, str]]]:
    """Return the samples of each run with their steps, the last one at the end.

    There is one sample per step. A run has at most MAX_SAMPLES, among them the first and the last. The texts are
    truncated, to at most MAX_SAMPLE_LENGTH characters each, and less if there are many.
    """
    found = [_spread(list(dict(run.samples).items())) for run in runs]
    n_samples = max(1, sum(map(len, found)))
    length = max(_MIN_SAMPLE_LENGTH, min(MAX_SAMPLE_LENGTH, _SAMPLES_OF_PAGE // n_samples))
    return [
        [(step, text if len(text) <= length else f"{text[:length]} …") for step, text in samples] for samples in found
    ]


def _spread(samples: list[tuple[int, str]]) -> list[tuple[int, str]]:
    n = len(samples)
    if n <= MAX_SAMPLES:
        return samples
    return [samples[round(at * (n - 1) / (MAX_SAMPLES - 1))] for at in range(MAX_SAMPLES)]
