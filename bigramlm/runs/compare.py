"""Comparison of two runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from bigramlm.runs.summary import RunSummary


def compare_losses(a: RunSummary, b: RunSummary) -> str:
    """Return a line with the first step at which the losses of two runs differ."""
    n_common, last_equal = 0, None
    for record_a, record_b in _common_steps(a, b):
        step = record_a["step"]
        for name in ("train/batch_loss", "train/loss", "val/loss"):
            loss_a, loss_b = record_a.get(name), record_b.get(name)
            if isinstance(loss_a, float) and isinstance(loss_b, float) and loss_a != loss_b:
                before = "no earlier common step" if last_equal is None else f"equal up to step {last_equal}"
                shown = [f"{loss:.6g}" for loss in (loss_a, loss_b)]
                shown = [repr(loss_a), repr(loss_b)] if shown[0] == shown[1] else shown
                return f"losses: first difference at step {step}, {name} {' and '.join(shown)}; {before}"
        n_common, last_equal = n_common + 1, step
    if n_common <= 1:
        return "losses: equal at the only step in common" if n_common else "losses: no step in common"
    return f"losses: equal at all {n_common} steps that both runs recorded"


def _common_steps(a: RunSummary, b: RunSummary) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    # Reads both files at the same time, so that their size does not matter.
    records_a, records_b = _ascending(a), _ascending(b)
    one, other = next(records_a, None), next(records_b, None)
    while one is not None and other is not None:
        step_a, step_b = one["step"], other["step"]
        if step_a == step_b:
            yield one, other
        one = next(records_a, None) if step_a <= step_b else one
        other = next(records_b, None) if step_b <= step_a else other


def _ascending(run: RunSummary) -> Iterator[dict[str, Any]]:
    # A run writes one record per step, in ascending order. Others are from an edited file.
    last = -math.inf
    for record in run.records:
        if record["step"] > last:
            last = record["step"]
            yield record
