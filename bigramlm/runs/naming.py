"""The name of a run in lists, reports and dashboards: what was typed, shortened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import GROUPS, LABELS, RunConfig
from bigramlm.errors import printable

MAX_LENGTH = 60
"""The maximum length of a default name, in characters."""

_MAX_VALUE = 24
# Fields and groups that do not describe what is trained. `logger` stands for its fields, too.
_LEFT_OUT = {"name", "note", "resume", "sweep", "base", "extensions", "logger", "hydra", "preflight"}
_LEFT_OUT_FIELDS = {"device.threads"}  # the speed, not the result
# Groups and fields in the order in which they appear in a name, because its end may be cut off; any others follow.
_ORDER = {
    name: place
    for place, name in enumerate(
        ("experiment", "model", "adapter", "init_from", "optim", "tokenizer", "data", "trainer", "seed", "device")
    )
}
# The fields whose values are paths, of which only the last part is kept.
_PATHS = {"data.path", "tokenizer.path", "init_from"}


def labels(cfg: RunConfig, values: Mapping[str, str], *, job: str | None = None) -> dict[str, Any]:
    """Return the name and the note of a new run, for its summary.

    values: the values of the overrides by field; for a job of a sweep, those of the swept fields. job: the number of
    the job, with which its name begins; None outside a sweep.
    """
    typed = default_name(values)
    parts = [job, cfg.name, typed if job or not cfg.name else None]
    return {"name": " ".join(part for part in parts if part) or cfg.model.name, "note": cfg.note}


def retyped(overrides: list[str]) -> dict[str, str]:
    """Return the name and the note that the overrides of a resumed run set."""
    typed = Overrides(overrides).values()
    return {label: typed[label] for label in LABELS if label in typed and (label, typed[label]) != ("name", "null")}


def default_name(values: Mapping[str, str]) -> str:
    """Shorten the values of overrides to a name, e.g. `gpt lr=0.01`.

    A recipe and a model are named without their group, a field without its group unless two fields would then have the
    same name. The name has at most MAX_LENGTH characters, and is empty if nothing describes the run.
    """
    kept = {
        field: value
        for field, value in values.items()
        if value and field not in _LEFT_OUT_FIELDS and field.split(".")[0].split("/")[0] not in _LEFT_OUT
    }
    lasts = Counter(field.rpartition(".")[2] for field in kept)
    ordered = sorted(kept, key=lambda field: _ORDER.get(field.split(".")[0], len(_ORDER)))
    parts = []
    for field in ordered:
        value, last = _shortened(field, kept[field]), field.rpartition(".")[2]
        name = field if lasts[last] > 1 or field in GROUPS else last
        parts.append(value if field in ("experiment", "model") else f"{name}={value}")
    text = ""
    for part in parts:
        longer = f"{text} {part}".strip()
        if len(longer) > MAX_LENGTH - 2 and (text or len(longer) > MAX_LENGTH):
            return f"{text or part[: MAX_LENGTH - 2]} …"
        text = longer
    return text


def _shortened(field: str, value: str) -> str:
    text = printable(normalised(value))
    if field in _PATHS:
        text = text.rstrip("/" + os.sep).rpartition("/")[2].rpartition(os.sep)[2] or text
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def normalised(value: str) -> str:
    """Normalise a value, so that equal values are equal texts: 1e-2 becomes 0.01."""
    try:
        number = float(value)
    except ValueError:
        return value.lower() if value.lower() in ("true", "false") else value
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
