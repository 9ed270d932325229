"""RunSummary: a run as its folder describes it."""

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
    """A run as its folder describes it, however it stands: as it was refused, killed, or edited by a person."""

    folder: Path
    name: str = ""
    """Its name among others."""
    typed: dict[str, str] = field(default_factory=dict)
    """The values that were typed for it, by field, also on resuming."""
    reason: str | None = None
    """Why it could not even leave a summary, where it could not."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The contents of summary.json; empty if there is none."""
    has_summary: bool = False
    """True if there is one that can be read."""
    number: int = 0
    """Its position among others, as they were given."""
    values: dict[str, str] = field(default_factory=dict)
    """The values that it is compared with others by, by field."""
    in_bits: bool = False
    """True if its losses are compared in bits a character, as with different tokenizers, and not in nats a token."""

    @classmethod
    def read(
        cls, folder: Path, name: str = "", typed: dict[str, str] | None = None, reason: str | None = None
    ) -> RunSummary:
        """Read what a folder says of its run; typed: what was, if not what the summary says."""
        found = read_summary(folder)
        summary = found or {}
        typed = _typed(summary.get("overrides")) if typed is None else dict(typed)
        resumed = summary.get("resumed")
        for time in resumed if isinstance(resumed, list) else ():
            later = _typed(time.get("overrides")) if isinstance(time, dict) else {}
            typed |= {name: value for name, value in later.items() if name != "resume"}
        return cls(folder, name or folder.name, typed, reason, summary, has_summary=found is not None)

    def compared(self, number: int, values: dict[str, str], *, in_bits: bool) -> RunSummary:
        """Return the same run as one of several, which are compared by these values."""
        return replace(self, number=number, values=values, in_bits=in_bits)

    @functools.cached_property
    def status(self) -> str:
        """As in the summary; `killed` where that says running and nobody holds the folder, `pending` without one."""
        if not self.has_summary:
            return "failed" if self.reason else "pending"
        return status(self.folder, self.summary)

    @property
    def error(self) -> str | None:
        """Why it failed; None where it did not."""
        return (self.summary.get("error") or self.reason) if self.status == "failed" else None

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The config that it saved, as plain dictionaries; empty where there is none."""
        return read_config(self.folder)

    def get(self, name: str) -> Any:
        """Return a field of the config by its full name, None where there is none."""
        value: Any = self.config
        for part_name in name.split("."):
            value = value.get(part_name) if isinstance(value, dict) else None
        return value

    def values_of(self, names: Sequence[str]) -> dict[str, str]:
        """Return the run's values of these fields, as they are typed; where one was not typed, the config tells."""
        saved = self._shown_config() if set(names) - set(self.typed) else {}
        return {name: normal(self.typed.get(name, saved.get(name, ""))) for name in names}

    def _shown_config(self) -> dict[str, str]:
        # A group's choice, such as `data`, is known by its name.
        config = flat(self.config)
        named = {group: config[f"{group}.name"] for group in (*KINDS, "device") if f"{group}.name" in config}
        return {name: shown(value) for name, value in {**named, **config}.items()}

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        """The records of its metrics.jsonl; none where there is none, or it may not be read."""
        try:
            yield from read_records(self.folder / "metrics.jsonl")
        except OSError:
            return

    @functools.cached_property
    def sample(self) -> str | None:
        """The last text that it wrote."""
        return last_sample(self.folder)

    @property
    def final(self) -> float | None:
        """The final val loss, as it is compared."""
        return self.bpc if self.in_bits else self.final_loss

    @property
    def best(self) -> float | None:
        """The lowest val loss of an evaluation, as it is compared."""
        return self.measured(self.best_loss)

    @property
    def final_loss(self) -> float | None:
        """The final val loss in nats a token."""
        return _number(self.summary.get("final"), "val/loss", float)

    @property
    def best_loss(self) -> float | None:
        """The lowest val loss of an evaluation in nats a token."""
        return _number(self.summary.get("best"), "val/loss", float)

    @property
    def val_loss(self) -> float | None:
        """The final val loss in nats a token, before the end the best one so far."""
        return self.best_loss if self.final_loss is None else self.final_loss

    def measured(self, loss: float | None, split: str = "val") -> float | None:
        """Return a loss of a split in nats a token as it is compared; None where what that takes is not known."""
        if loss is None or not self.in_bits:
            return loss
        each = _number(self.part("tokenizer").get("characters_per_token"), split, float)
        return loss / math.log(2) / each if each else None

    @property
    def bpc(self) -> float | None:
        """The final val loss in bits a character."""
        return _number(self.summary.get("final"), "val/bpc", float)

    @property
    def n_params(self) -> int | None:
        """Parameters that are trained, or were counted."""
        return _number(self.summary, "n_params", int)

    @property
    def step(self) -> int | None:
        """The last step that it reached."""
        return _number(self.summary, "step", int)

    @property
    def tokens_per_second(self) -> float | None:
        return _number(self.summary, "tokens_per_second", float)

    @property
    def seconds(self) -> float | None:
        return _number(self.summary, "seconds", float)

    @property
    def started(self) -> str:
        """When it was started, as ISO 8601; empty if unknown."""
        return str(self.summary.get("started", ""))

    @property
    def text(self) -> str | None:
        """The SHA-256 of the text it was trained on."""
        found = self.part("data").get("sha256")
        return None if found is None else str(found)

    @property
    def tokenizer(self) -> str | None:
        """The SHA-256 of its tokenizer."""
        found = self.part("tokenizer").get("sha256")
        return None if found is None else str(found)

    @property
    def counts(self) -> bool:
        """True if its figure can be compared: one in bits of a tokenizer that loses text is too low."""
        return not self.in_bits or bool(self.part("tokenizer").get("lossless", True))

    @property
    def overrides(self) -> list[str]:
        """The words that were typed when it was started."""
        found = self.summary.get("overrides")
        return [str(word) for word in found] if isinstance(found, list) else []

    def part(self, name: str) -> dict[str, Any]:
        """Return a part of the summary, empty where there is none, or something else in its place."""
        found = self.summary.get(name)
        return found if isinstance(found, dict) else {}


def shown(value: Any) -> str:
    """Return a value of a config as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def normal(value: str) -> str:
    """Return a value in the form that it is compared in: 1e-2 and 0.01 are one, and so are 0 and 0.0."""
    try:
        number = float(value)
    except ValueError:
        return value.lower() if value.lower() in ("true", "false") else value
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _typed(overrides: Any) -> dict[str, str]:
    # What a summary says was typed, by field; nothing where it is damaged.
    return Overrides(map(str, overrides)).values() if isinstance(overrides, list) else {}


def _number(figures: Any, name: str, kind: Callable[[Any], T]) -> T | None:
    # Of a summary, that a person may have edited.
    found = figures.get(name) if isinstance(figures, dict) else None
    return kind(found) if isinstance(found, (int, float)) else None
