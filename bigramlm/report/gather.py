"""The contents of a report, read from the runs' folders as plain values for its page."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigramlm.config.run_config import flat
from bigramlm.report.results import RunTable, typed
from bigramlm.runs.summary import RunSummary, shown

# The losses that are drawn: what they are called on the page, and in the records.
LOSSES = {"val": "val/loss", "train": "train/loss", "batch": "train/batch_loss"}

# Of a longer series its lows and highs are drawn, so that what stands out stays.
POINTS_AT_MOST = 1000

# Of a longer sample only so much is shown.
SAMPLE_AT_MOST = 4000

Series = dict[str, list[float]]


@dataclass(frozen=True)
class Curves:
    """The curves and lines that are drawn of a run."""

    series: dict[str, Series]
    """By `LOSSES`: step, seconds and loss of each point."""
    references: dict[str, float]
    """The losses that counting gives, by the metrics' names."""


def read_curves(run: RunSummary) -> Curves:
    """Read what is drawn of a run from its records; what it lacks is left out."""
    series: dict[str, Series] = {name: {"step": [], "seconds": [], "loss": []} for name in LOSSES}
    references: dict[str, float] = {}
    for record in run.records:
        for name, metric in LOSSES.items():
            if _is_finite(record.get(metric)) and (loss := run.measured(record[metric], _split(metric))) is not None:
                seconds = record.get("seconds")
                point = {"step": record["step"], "seconds": seconds if _is_finite(seconds) else 0.0}
                for which, value in {**point, "loss": loss}.items():
                    series[name][which].append(value)
        found = {
            name: run.measured(loss, _split(name))
            for name, loss in record.items()
            if _is_reference(name) and _is_finite(loss)
        }
        references |= {name: loss for name, loss in found.items() if loss is not None}
    return Curves({name: thinned(points) for name, points in series.items()}, references)


def tokens_per_step(run: RunSummary) -> int | None:
    """Return the tokens of an update, None where the config does not tell."""
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


def thinned(series: Series, most: int = POINTS_AT_MOST) -> Series:
    """Thin a series to at most so many points: the lowest and the highest of each stretch, and both ends."""
    n = len(series["loss"])
    if n <= most:
        return series
    stretches = max(1, (most - 2) // 2)
    kept = {0, n - 1}
    for number in range(stretches):
        stretch = range(number * n // stretches, (number + 1) * n // stretches)
        kept |= {min(stretch, key=series["loss"].__getitem__), max(stretch, key=series["loss"].__getitem__)}
    return {part: [values[at] for at in sorted(kept)] for part, values in series.items()}


def data(outcomes: RunTable, curves: Sequence[Curves], log_fields: Sequence[str]) -> dict[str, Any]:
    """Return what the page's charts are drawn from, as JSON takes it. curves: of the runs, in the order of the rows."""
    runs = outcomes.rows
    at = {run.number: index for index, run in enumerate(runs)}
    return {
        "kind": outcomes.kind,
        "measure": outcomes.measure,
        "short": outcomes.short,
        "unit": "bits a character" if outcomes.in_bits else "loss, nats a token",
        "runs": [
            {
                "name": run.name,
                "typed": typed(run),
                "status": run.status,
                "values": run.values,
                "final": _digits(run.final),
                "tokensPerStep": tokens_per_step(run),
                "series": {
                    name: {**series, "loss": [_digits(loss) for loss in series["loss"]]}
                    for name, series in drawn.series.items()
                },
            }
            for run, drawn in zip(runs, curves, strict=True)
        ],
        "fields": [_field(name, [run.values[name] for run in runs], log_fields) for name in outcomes.fields],
        "groups": [
            {
                "runs": [at[row.number] for row in group.rows],
                "mean": group.mean,
                "std": None if math.isnan(group.std) else group.std,
            }
            for group in outcomes.groups()
        ],
        "references": references(curves),
    }


def _digits(value: float | None) -> float | None:
    # Six figures are more than a chart shows; all of them would double the page.
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
    """Tell whether numbers lie more evenly on a logarithmic scale than on a linear one; of two, if tenfold apart."""
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
    """Return what counting gives, as level lines: split, name, loss, and their runs; the most common first."""
    found: dict[tuple[str, str, float], list[int]] = {}
    for index, drawn in enumerate(curves):
        for metric, loss in drawn.references.items():
            split, _, name = metric.partition("/")
            found.setdefault((split, name, round(loss, 3)), []).append(index)
    lines = [
        {"split": split, "name": _spoken(name), "loss": loss, "runs": of} for (split, name, loss), of in found.items()
    ]
    return sorted(lines, key=lambda line: -len(line["runs"]))


def _spoken(name: str) -> str:
    kind, _, what = name.partition("_")
    return f"{what}-gram" if kind == "ngram" else f"best {what}"


@dataclass(frozen=True)
class Difference:
    """A field in which runs differ, and what each has: its values, by how often."""

    field: str
    values: list[str]
    """The value of each run, in the order of the rows; empty if it has none."""

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Each value with how many runs have it; numbers by size, others in the order of the rows."""
        counted = {value: self.values.count(value) for value in dict.fromkeys(self.values)}
        if all(_number(value) is not None for value in counted):
            return sorted(counted.items(), key=lambda item: float(item[0]))
        return list(counted.items())


def differences(runs: Sequence[RunSummary]) -> list[Difference]:
    """List the differences in configs, text, code and environment."""
    facts = []
    for run in runs:
        git = run.part("git")
        about = {
            "text": str(run.text or "")[:12],
            "code": str(git.get("commit", ""))[:10] + (" and changes" if git.get("dirty") else ""),
            **{f"version of {name}": version for name, version in run.part("versions").items()},
            **{name: run.summary.get(name, "") for name in ("host", "device")},
        }
        facts.append({name: shown(value) for name, value in {**flat(run.config), **about}.items()})
    names = dict.fromkeys(name for fact in facts for name in fact)
    found = [Difference(name, [fact.get(name, "") for fact in facts]) for name in names]
    return [difference for difference in found if len(set(difference.values)) > 1]


def sample_of(run: RunSummary) -> str:
    """Return the run's sample, cut if it is very long."""
    text = run.sample or ""
    return text if len(text) <= SAMPLE_AT_MOST else f"{text[:SAMPLE_AT_MOST]} …"
