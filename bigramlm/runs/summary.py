"""The summary of a run, as read from its folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import KINDS, flat
from bigramlm.logger.metrics import read_records
from bigramlm.runs.folder import last_sample, read_config, read_summary, status

T = TypeVar("T")


@dataclass(frozen=True)
class RunSummary:
    """The facts about a run in its folder.

    All of them are optional: the run may have been refused or killed, and its files edited by a person.
    """

    folder: Path
    name: str = ""
    """The name of the run among others."""
    typed: dict[str, str] = field(default_factory=dict)
    """The overrides of the run, including those on resuming, as values by field."""
    reason: str | None = None
    """The reason why the run left no summary, if it is known."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The contents of summary.json; empty if there is none."""
    has_summary: bool = False
    """True if summary.json exists and can be read."""
    number: int = 0
    """The position of the run among others, in the order in which they were given."""
    values: dict[str, str] = field(default_factory=dict)
    """The values that distinguish the run from others, by field."""
    in_bits: bool = False
    """True if losses are compared in bits per character (for different tokenizers) and not in nats per token."""

    @classmethod
    def read(
        cls, folder: Path, name: str = "", typed: dict[str, str] | None = None, reason: str | None = None
    ) -> RunSummary:
        """Read a run from its folder; typed: the overrides, if not those in the summary."""
        found = read_summary(folder)
        summary = found or {}
        typed = _typed(summary.get("overrides")) if typed is None else dict(typed)
        resumed = summary.get("resumed")
        for entry in resumed if isinstance(resumed, list) else ():
            later = _typed(entry.get("overrides")) if isinstance(entry, dict) else {}
            typed |= {name: value for name, value in later.items() if name != "resume"}
        return cls(folder, name or folder.name, typed, reason, summary, has_summary=found is not None)

    def compared(self, number: int, values: dict[str, str], *, in_bits: bool) -> RunSummary:
        """Return a copy of the run with its position and values in a comparison."""
        return replace(self, number=number, values=values, in_bits=in_bits)

    @functools.cached_property
    def status(self) -> str:
        """The status of the run.

        The status in the summary, but `killed` if that is `running` and the folder is not locked. Without a summary, it
        is `failed` if there is a reason, else `pending`.
        """
        if not self.has_summary:
            return "failed" if self.reason else "pending"
        return status(self.folder, self.summary)

    @property
    def error(self) -> str | None:
        """The error of a failed run; None for other runs."""
        return (self.summary.get("error") or self.reason) if self.status == "failed" else None

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The saved config as plain dictionaries; empty if there is none."""
        return read_config(self.folder)

    def get(self, name: str) -> Any:
        """Return a field of the config by its full name, None if there is none."""
        value: Any = self.config
        for part_name in name.split("."):
            value = value.get(part_name) if isinstance(value, dict) else None
        return value

    def values_of(self, names: Sequence[str]) -> dict[str, str]:
        """Return the values of these fields as in overrides.

        A field that is not overridden gets its value from the config.
        """
        saved = self._config_as_overrides() if set(names) - set(self.typed) else {}
        return {name: normalised(self.typed.get(name, saved.get(name, ""))) for name in names}

    def _config_as_overrides(self) -> dict[str, str]:
        # The choice of a group, such as `data`, is the `name` in that group.
        config = flat(self.config)
        named = {group: config[f"{group}.name"] for group in (*KINDS, "device") if f"{group}.name" in config}
        return {name: as_override(value) for name, value in {**named, **config}.items()}

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        """The records in metrics.jsonl; empty if the file cannot be read."""
        try:
            yield from read_records(self.folder / "metrics.jsonl")
        except OSError:
            return

    @functools.cached_property
    def sample(self) -> str | None:
        """The last sample of the run."""
        return last_sample(self.folder)

    @property
    def final(self) -> float | None:
        """The final val loss, in the unit of the comparison."""
        return self.bpc if self.in_bits else self.final_loss

    @property
    def best(self) -> float | None:
        """The lowest val loss of an evaluation, in the unit of the comparison."""
        return self.convert_loss(self.best_loss)

    @property
    def final_loss(self) -> float | None:
        """The final val loss in nats per token."""
        return _number(self.summary.get("final"), "val/loss", float)

    @property
    def best_loss(self) -> float | None:
        """The lowest val loss of an evaluation in nats per token."""
        return _number(self.summary.get("best"), "val/loss", float)

    @property
    def val_loss(self) -> float | None:
        """The final val loss in nats per token; before the end, the lowest so far."""
        return self.best_loss if self.final_loss is None else self.final_loss

    def convert_loss(self, loss: float | None, split: str = "val") -> float | None:
        """Convert a loss of a split from nats per token to the unit of the comparison.

        Returns None if the loss or the characters per token are unknown.
        """
        if loss is None or not self.in_bits:
            return loss
        ratio = _number(self.part("tokenizer").get("characters_per_token"), split, float)
        return loss / math.log(2) / ratio if ratio else None

    @property
    def bpc(self) -> float | None:
        """The final val loss in bits per character."""
        return _number(self.summary.get("final"), "val/bpc", float)

    @property
    def n_params(self) -> int | None:
        """The number of trained parameters, or of counts for a count-based model."""
        return _number(self.summary, "n_params", int)

    @property
    def step(self) -> int | None:
        """The last step that the run reached."""
        return _number(self.summary, "step", int)

    @property
    def tokens_per_second(self) -> float | None:
        return _number(self.summary, "tokens_per_second", float)

    @property
    def seconds(self) -> float | None:
        return _number(self.summary, "seconds", float)

    @property
    def started(self) -> str:
        """The start time as ISO 8601; empty if unknown."""
        return str(self.summary.get("started", ""))

    @property
    def text(self) -> str | None:
        """The SHA-256 of the training text."""
        found = self.part("data").get("sha256")
        return None if found is None else str(found)

    @property
    def tokenizer(self) -> str | None:
        """The SHA-256 of the tokenizer."""
        found = self.part("tokenizer").get("sha256")
        return None if found is None else str(found)

    @property
    def is_comparable(self) -> bool:
        """True if the loss can be compared.

        The bits per character of a tokenizer that loses text are too low.
        """
        return not self.in_bits or bool(self.part("tokenizer").get("lossless", True))

    @property
    def overrides(self) -> list[str]:
        """The overrides that the run was started with."""
        found = self.summary.get("overrides")
        return [str(word) for word in found] if isinstance(found, list) else []

    def part(self, name: str) -> dict[str, Any]:
        """Return a dictionary in the summary, empty if it is missing or damaged."""
        found = self.summary.get(name)
        return found if isinstance(found, dict) else {}


def as_override(value: Any) -> str:
    """Return a config value as it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def normalised(value: str) -> str:
    """Return a value in a normal form, e.g. 0.01 for 1e-2 and 0 for 0.0."""
    try:
        number = float(value)
    except ValueError:
        return value.lower() if value.lower() in ("true", "false") else value
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _typed(overrides: Any) -> dict[str, str]:
    # The overrides in a summary as values by field; empty if they are damaged.
    return Overrides(map(str, overrides)).values() if isinstance(overrides, list) else {}


def _number(figures: Any, name: str, kind: Callable[[Any], T]) -> T | None:
    # A person may have edited the summary.
    found = figures.get(name) if isinstance(figures, dict) else None
    return kind(found) if isinstance(found, (int, float)) else None
