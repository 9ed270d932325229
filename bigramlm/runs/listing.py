"""Lists of runs: columns, filters and sort keys."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bigramlm.config.run_config import GROUPS, flat
from bigramlm.errors import UserError, require, require_choice
from bigramlm.runs.summary import RunSummary

COLUMNS: dict[str, Callable[[RunSummary], Any]] = {
    "when": lambda run: run.started,
    "model": lambda run: _text(run.summary.get("model")) or run.get("model.name"),
    "data": lambda run: _text(run.summary.get("dataset")) or run.get("data.name"),
    "steps": lambda run: run.step,
    "val": lambda run: run.val_loss,
    "status": lambda run: run.status,
    "folder": lambda run: str(run.folder),
    "name": lambda run: run.label,
    "note": lambda run: run.note,
    "train": lambda run: _loss(run, "final", "train/loss"),
    "best": lambda run: run.best_loss,
    "bpc": lambda run: run.bpc,
    "params": lambda run: run.n_params,
    "tok/s": lambda run: run.tokens_per_second,
    "s": lambda run: run.seconds,
    "device": lambda run: _text(run.summary.get("device")),
    "host": lambda run: _text(run.summary.get("host")),
    "commit": lambda run: _text(run.part("git").get("commit")),
    "error": lambda run: run.error,
    "experiment": lambda run: run.typed.get("experiment"),
}
"""The function of each column that returns its value for a run. A run may lack the value, which is then None."""

STATUSES = ("completed", "pruned", "stopped", "failed", "killed", "running", "pending")
"""The statuses of a run. It is killed if its process ended without a word, and pending if it has not begun."""

DEFAULT_COLUMNS = ("when", "model", "data", "steps", "val", "status", "folder", "name")

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
    "~": operator.contains,
}
_FILTER = re.compile(r"([^<>=!~]+)(<=|>=|!=|<|>|=|~)(.*)", re.DOTALL)
_UNITS = {"m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Filter:
    """A condition on a column or a config field, such as val<2.4."""

    text: str
    field: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Parse a filter. Raises UserError if the text is none."""
        found = _FILTER.fullmatch(text)
        if found is None:
            raise UserError(
                f"{text or repr('')}: a filter must be FIELD=VALUE or have another operator: < <= > >= != or ~ "
                "(contains), such as status=completed, 'val<2.4' or name~gpt; quote < and > for the shell"
            )
        return cls(text, found[1].strip(), found[2], found[3].strip())

    def matches(self, value: Any) -> bool:
        """Check whether a value satisfies the condition.

        A missing value satisfies only = null and !=.
        """
        if self.operator == "~":
            return value is not None and self.value.lower() in str(value).lower()
        if value is None:
            return (self.value in ("null", "-")) == (self.operator == "=") and self.operator in ("=", "!=")
        wanted, compare = _number(self.value), _OPERATORS[self.operator]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if wanted is not None:
                return compare(value, wanted)
            require(self.operator in ("=", "!="), f"{self.text}: {self.field} is a number, so compare it with a number")
        if self.field == "when" and self.operator != "=":
            began = _moment(str(value))
            return began is not None and compare(began, since(self.value, self.text))
        return compare(str(value).lower(), self.value.lower())


class Listing:
    """Runs, in the order in which they began, to filter and to sort."""

    def __init__(self, runs: Iterable[RunSummary]) -> None:
        """Sort the runs by the moment at which they began."""
        self.runs = sorted(runs, key=lambda run: run.start_order)

    def find_field(self, name: str, where: str) -> str:
        """Return the column or the full config field of a name.

        The last part of a field is enough if no other field ends with it: lr for optim.lr. where: the argument with
        the name. Raises UserError if no run has the field, or several match.
        """
        if name in COLUMNS:
            return name
        fields = dict.fromkeys(field for run in self.runs for field in flat(run.config))
        if name in fields:
            return name
        if name in GROUPS and f"{name}.name" in fields:  # as typed for training: optim=muon
            return f"{name}.name"
        ending = [field for field in fields if field.endswith(f".{name}")]
        if len(ending) == 1:
            return ending[0]
        require(not ending, f"{where}: {name} may be {', '.join(ending)}; write the full name")
        close = difflib.get_close_matches(name, [*COLUMNS, *fields], cutoff=0.4) or sorted(COLUMNS)
        raise UserError(f"{where}: no run has this field; did you mean {', '.join(close)}?")

    def select(self, filters: Sequence[str], *, since_text: str | None = None, last: int | None = None) -> None:
        """Keep only the runs that satisfy all conditions.

        since_text: the moment after which the runs began, see `since`. last: the number of the newest runs to keep
        after all other conditions.
        """
        for condition in map(Filter.parse, filters):
            field = self.find_field(condition.field, condition.text)
            known = Filter(condition.text, field, condition.operator, condition.value)
            if field == "status" and condition.operator == "=":
                require_choice("status", condition.value, STATUSES)
            self.runs = [run for run in self.runs if known.matches(value_of(run, field))]
        if since_text is not None:
            moment = since(since_text, f"--since {since_text}")
            self.runs = [run for run in self.runs if (began := _moment(run.started)) is not None and began >= moment]
        if last is not None:
            require(last > 0, f"--last {last}: must be 1 or more")
            self.runs = self.runs[-last:]

    def sort(self, name: str, *, reverse: bool = False) -> str:
        """Sort by a column or field, and return its full name.

        Equal runs stay in their order.
        """
        field = self.find_field(name, f"--sort {name}")
        if field != "when":
            self.runs.sort(key=lambda run: _order(value_of(run, field)), reverse=reverse)
        elif reverse:
            self.runs.reverse()
        return field


def value_of(run: RunSummary, name: str) -> Any:
    """Return the value of a column or a config field, or None if the run lacks it."""
    return COLUMNS[name](run) if name in COLUMNS else run.get(name)


def everything(run: RunSummary) -> dict[str, Any]:
    """Return all facts about a run, as values for JSON."""
    facts = {name: value(run) for name, value in COLUMNS.items()}
    known: dict[str, Any] = _finite({**facts, "typed": run.typed, "summary": run.summary, "config": run.config})
    return known


def _finite(value: Any) -> Any:
    # JSON has neither NaN nor infinity.
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def since(text: str, where: str) -> datetime:
    """Return the moment that a text describes.

    text: today, yesterday, a duration before now (90min, 2h, 3d, 1w), a date, a time of today, or both (ISO 8601).
    where: the argument with the text. Raises UserError if it is none of these.
    """
    now = datetime.now().astimezone()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return midnight - timedelta(days=text == "yesterday")
    try:
        if ago := re.fullmatch(r"(\d+(?:\.\d+)?)(min|m|h|d|w)", text):
            return now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text):
            return datetime.fromisoformat(f"{now:%Y-%m-%d}T{text.rjust(5, '0')}").astimezone()
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"{where}: not a moment; write today, yesterday, 90min, 2h, 3d, 1w, 14:30, 2026-11-22 or 2026-11-22T14:30"
        ) from None


def _moment(started: str) -> datetime | None:
    try:
        return datetime.fromisoformat(started).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def _order(value: Any) -> tuple[int, float, str]:
    """Return a sort key that puts numbers first, then texts, then missing values."""
    if isinstance(value, (int, float)):
        return (0, math.inf if math.isnan(value) else float(value), "")
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _loss(run: RunSummary, part: str, name: str) -> float | None:
    found = run.part(part).get(name)
    return found if isinstance(found, (int, float)) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
