"""The facts about a run, as read from its folder."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import KINDS, LABELS, flat
from bigramlm.logger.metrics import read_records
from bigramlm.runs.folder import read_config, read_summary, start_order, status
from bigramlm.runs.naming import default_name, normalised
from bigramlm.runs.samples import read_samples

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """The facts about a run that its folder contains.

    Every fact may be missing, because the run may have failed early or been killed, and a person may have edited its
    files.
    """

    folder: Path
    name: str = ""
    """The name of the run in tables; by default the name of its folder."""
    typed: dict[str, str] = field(default_factory=dict)
    """The values of the run's overrides, by field. Overrides that were given on resuming are included."""
    reason: str | None = None
    """The reason why there is no summary, if known."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The contents of summary.json; empty if the file cannot be read."""
    has_summary: bool = False
    """True if summary.json exists and can be read."""
    number: int = 0
    """The number of the run in a comparison, in the order in which the runs were given."""
    values: dict[str, str] = field(default_factory=dict)
    """The values that distinguish the run from the other runs in a comparison, by field."""
    in_bits: bool = False
    """The unit of losses in a comparison. True means bits per character, which are used for runs with different
    tokenizers. False means nats per token."""

    @classmethod
    def read(
        cls, folder: Path, name: str = "", typed: dict[str, str] | None = None, reason: str | None = None
    ) -> RunSummary:
        """Read a run from its folder.

        typed: the override values as given on the command line, by field; if None, they are read from the summary.
        """
        found = read_summary(folder)
        path = folder / "summary.json"
        if found is None and os.path.lexists(path) and not path.is_symlink():  # a link has its own warning
            _warn(folder)
        summary = found or {}
        typed = _typed(summary.get("overrides")) if typed is None else dict(typed)
        resumed = summary.get("resumed")
        for entry in resumed if isinstance(resumed, list) else ():
            later = _typed(entry.get("overrides")) if isinstance(entry, dict) else {}
            typed |= {name: value for name, value in later.items() if name != "resume"}
        return cls(folder, name or folder.name, typed, reason, summary, has_summary=found is not None)

    def compared(self, number: int, values: dict[str, str], *, in_bits: bool) -> RunSummary:
        """Return a copy of the run with its number, values and unit in a comparison."""
        copy = replace(self, number=number, values=values, in_bits=in_bits)
        for name in ("status", "config", "samples"):  # the files of thousands of runs are read once
            if name in self.__dict__:
                copy.__dict__[name] = self.__dict__[name]
        return copy

    @functools.cached_property
    def status(self) -> str:
        """The status of the run.

        With a summary, it is the recorded status, or `killed` if `running` is recorded but no process has locked the
        folder. Without a summary, it is `failed` if `reason` is known, else `pending`.
        """
        if not self.has_summary:
            return "failed" if self.reason else "pending"
        return status(self.folder, self.summary)

    @property
    def label(self) -> str:
        """The name of the run, which is by default what was typed, shortened."""
        found = self.summary.get("name")
        if isinstance(found, str) and found.strip():
            return found
        number = self.folder.name if self.folder.name.isdecimal() else ""  # a job that an earlier version started
        typed = f"{number} {default_name(_typed(self.summary.get('overrides')))}".strip()
        return typed or str(self.get("model.name") or "")

    @property
    def note(self) -> str:
        """The note that the user wrote about the run; empty if there is none."""
        found = self.summary.get("note")
        return found if isinstance(found, str) else ""

    @property
    def error(self) -> str | None:
        """The error message of a failed run; None for all other runs."""
        return (self.summary.get("error") or self.reason) if self.status == "failed" else None

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The saved config as plain dictionaries, without name and note.

        It is empty if it cannot be read.
        """
        return {name: value for name, value in read_config(self.folder).items() if name not in LABELS}

    def get(self, name: str) -> Any:
        """Return a config field by its full name, or None if there is no such field."""
        value: Any = self.config
        for part_name in name.split("."):
            value = value.get(part_name) if isinstance(value, dict) else None
        return value

    def values_of(self, names: Sequence[str]) -> dict[str, str]:
        """Return the values of these fields, written as in overrides.

        The value of a field that is not overridden is taken from the config.
        """
        saved = self._config_as_overrides() if set(names) - set(self.typed) else {}
        return {name: normalised(self.typed.get(name, saved.get(name, ""))) for name in names}

    def _config_as_overrides(self) -> dict[str, str]:
        # The value of a group, e.g. `data`, is the field `name` of that group.
        config = flat(self.config)
        named = {group: config[f"{group}.name"] for group in (*KINDS, "device") if f"{group}.name" in config}
        return {name: as_override(value) for name, value in {**named, **config}.items()}

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        """The records in metrics.jsonl; empty if the file cannot be read."""
        path = self.folder / "metrics.jsonl"
        with contextlib.suppress(OSError, ValueError):
            yield from read_records(path) if path.is_file() else ()

    @functools.cached_property
    def samples(self) -> list[tuple[int, str]]:
        """The samples of the run, each with its step, in the order of the file."""
        return read_samples(self.folder)

    @property
    def sample(self) -> str | None:
        """The last sample of the run; None if there are no samples."""
        return self.samples[-1][1] if self.samples else None

    @property
    def final(self) -> float | None:
        """The final val loss in the unit of the comparison (see `in_bits`)."""
        return self.bpc if self.in_bits else self.final_loss

    @property
    def best(self) -> float | None:
        """The lowest val loss so far in the unit of the comparison (see `in_bits`)."""
        return self.convert_loss(self.best_loss)

    @property
    def final_loss(self) -> float | None:
        """The final val loss in nats per token."""
        return _number(self.summary.get("final"), "val/loss", float)

    @property
    def best_loss(self) -> float | None:
        """The lowest val loss so far in nats per token."""
        return _number(self.summary.get("best"), "val/loss", float)

    @property
    def val_loss(self) -> float | None:
        """The final val loss, or else the lowest val loss so far, in nats per token."""
        return self.best_loss if self.final_loss is None else self.final_loss

    def convert_loss(self, loss: float | None, split: str = "val") -> float | None:
        """Convert a loss from nats per token to the unit of the comparison.

        split: the split on which the loss was measured. Returns None if the loss is None, or if the number of
        characters per token in this split is unknown.
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
        """The number of trained parameters; for a count-based model, the number of counts."""
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
    def start_order(self) -> tuple[datetime, int, str]:
        """The key that sorts runs by the moment at which they began."""
        return start_order(self.folder, self.summary)

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
        """True if the loss can be compared with the losses of other runs.

        Bits per character are too low if the tokenizer loses a part of the text.
        """
        return not self.in_bits or bool(self.part("tokenizer").get("lossless", True))

    @property
    def overrides(self) -> list[str]:
        """The overrides with which the run was started."""
        found = self.summary.get("overrides")
        return [str(word) for word in found] if isinstance(found, list) else []

    def part(self, name: str) -> dict[str, Any]:
        """Return a dictionary in the summary; it is empty if missing or damaged."""
        found = self.summary.get(name)
        return found if isinstance(found, dict) else {}


def as_override(value: Any) -> str:
    """Write a config value as in an override, e.g. null for None."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache  # once for each folder
def _warn(folder: Path) -> None:
    log.warning("%s: summary.json cannot be read, so this run is left out, or shown without its results", folder)


def _typed(overrides: Any) -> dict[str, str]:
    # Return the values of the overrides in a summary, by field; empty if the summary is damaged.
    return Overrides(map(str, overrides)).values() if isinstance(overrides, list) else {}


def _number(figures: Any, name: str, kind: Callable[[Any], T]) -> T | None:
    # Return None if the entry is not a number, because a person may have edited the summary.
    found = figures.get(name) if isinstance(figures, dict) else None
    try:
        return kind(found) if isinstance(found, (int, float)) else None
    except (ValueError, OverflowError):  # an int of NaN or infinity
        return None
