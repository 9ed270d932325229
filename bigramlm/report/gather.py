"""The data of a report page, read from the run folders."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigramlm.config.run_config import flat
from bigramlm.report.results import RunTable, typed
from bigramlm.runs.summary import RunSummary, as_override

# The losses in the charts: their names on the page and in the records.
LOSSES = {"val": "val/loss", "train": "train/loss", "batch": "train/batch_loss"}

# The maximum number of points of a series. A longer series is reduced to its local minima and maxima, so that outliers
# stay visible.
MAX_POINTS = 1000

# The maximum length of a sample on the page, in characters.
MAX_SAMPLE_LENGTH = 4000

Series = dict[str, list[float]]


@dataclass(frozen=True)
class Curves:
    """The curves and the horizontal lines that the charts show for a run."""

    series: dict[str, Series]
    """The steps, seconds and losses of the points, for each key of `LOSSES`."""
    references: dict[str, float]
    """The losses of the counting baselines (best bigram, n-grams), by metric name."""


def read_curves(run: RunSummary) -> Curves:
    """Read the curves of a run from its records, skipping missing values."""
    series: dict[str, Series] = {name: {"step": [], "seconds": [], "loss": []} for name in LOSSES}
    references: dict[str, float] = {}
    for record in run.records:
        for name, metric in LOSSES.items():
            if (
                _is_finite(record.get(metric))
                and (loss := run.convert_loss(record[metric], _split(metric))) is not None
            ):
                seconds = record.get("seconds")
                point = {"step": record["step"], "seconds": seconds if _is_finite(seconds) else 0.0}
                for part, value in {**point, "loss": loss}.items():
                    series[name][part].append(value)
        baselines = {
            name: run.convert_loss(loss, _split(name))
            for name, loss in record.items()
            if _is_reference(name) and _is_finite(loss)
        }
        references |= {name: loss for name, loss in baselines.items() if loss is not None}
    return Curves({name: thinned(points) for name, points in series.items()}, references)


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
    lowest and the highest loss of each interval.
    """
    n = len(series["loss"])
    if n <= max_points:
        return series
    n_intervals = max(1, (max_points - 2) // 2)
    kept = {0, n - 1}
    for number in range(n_intervals):
        interval = range(number * n // n_intervals, (number + 1) * n // n_intervals)
        kept |= {min(interval, key=series["loss"].__getitem__), max(interval, key=series["loss"].__getitem__)}
    return {part: [values[at] for at in sorted(kept)] for part, values in series.items()}


def data(table: RunTable, curves: Sequence[Curves], log_fields: Sequence[str]) -> dict[str, Any]:
    """Return the data of the page's charts, as values that JSON can represent.

    curves: the curves of each run, in the order of the table rows. log_fields: the fields that a search varied on a
    logarithmic scale.
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
                "typed": typed(run),
                "status": run.status,
                "values": run.values,
                "final": _rounded(run.final),
                "tokensPerStep": tokens_per_step(run),
                "series": {
                    name: {**series, "loss": [_rounded(loss) for loss in series["loss"]]}
                    for name, series in run_curves.series.items()
                },
            }
            for run, run_curves in zip(runs, curves, strict=True)
        ],
        "fields": [_field(name, [run.values[name] for run in runs], log_fields) for name in table.fields],
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


def _rounded(value: float | None) -> float | None:
    # Six digits are more than a chart can show; all digits would double the size of the page.
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _field(name: str, values: Sequence[str], log_fields: Sequence[str]) -> dict[str, Any]:
    numbers = [number for value in values if (number := _number(value)) is not None]
    numeric = bool(values) and len(numbers) == len(values)
    log = numeric and min(numbers) > 0 and (name in log_fields or is_geometric(numbers))
    return {"name": name, "numeric": numeric, "log": log}


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


@dataclass(frozen=True)
class Difference:
    """A field whose values differ between runs."""

    field: str
    values: list[str]
    """The value of each run, in the order of the rows; an empty string if the run has no value."""

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Each value with the number of runs that have it.

        If all values are numbers, they are sorted by size. Otherwise the values are in the order of the rows.
        """
        counted = {value: self.values.count(value) for value in dict.fromkeys(self.values)}
        if all(_number(value) is not None for value in counted):
            return sorted(counted.items(), key=lambda item: float(item[0]))
        return list(counted.items())


def differences(runs: Sequence[RunSummary]) -> list[Difference]:
    """Return the differences between runs in config, text, code and environment."""
    facts = []
    for run in runs:
        git = run.part("git")
        origin = {
            "text": str(run.text or "")[:12],
            "code": str(git.get("commit", ""))[:10] + (" with changes" if git.get("dirty") else ""),
            **{f"version of {name}": version for name, version in run.part("versions").items()},
            **{name: run.summary.get(name, "") for name in ("host", "device")},
        }
        facts.append({name: as_override(value) for name, value in {**flat(run.config), **origin}.items()})
    names = dict.fromkeys(name for fact in facts for name in fact)
    found = [Difference(name, [fact.get(name, "") for fact in facts]) for name in names]
    return [difference for difference in found if len(set(difference.values)) > 1]


def sample_of(run: RunSummary) -> str:
    """Return the run's sample, truncated to MAX_SAMPLE_LENGTH characters."""
    text = run.sample or ""
    return text if len(text) <= MAX_SAMPLE_LENGTH else f"{text[:MAX_SAMPLE_LENGTH]} …"
