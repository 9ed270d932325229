"""Comparison of two runs."""

from __future__ import annotations

from bigramlm.runs.summary import RunSummary


def compare_losses(a: RunSummary, b: RunSummary) -> str:
    """Return a line with the first step at which the losses of two runs differ."""
    records = [{record["step"]: record for record in run.records} for run in (a, b)]
    common = sorted(set(records[0]) & set(records[1]))
    last_equal = None
    for step in common:
        for name in ("train/batch_loss", "train/loss", "val/loss"):
            loss_a, loss_b = records[0][step].get(name), records[1][step].get(name)
            if isinstance(loss_a, float) and isinstance(loss_b, float) and loss_a != loss_b:
                before = "no earlier common step" if last_equal is None else f"equal up to step {last_equal}"
                return f"losses: first difference at step {step}, {name} {loss_a:.6g} and {loss_b:.6g}; {before}"
        last_equal = step
    return (
        f"losses: equal at all {len(common)} steps that both runs recorded" if common else "losses: no step in common"
    )
