"""Two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigramlm.logger.metrics import read_records


def losses_part(a: Path, b: Path) -> str:
    """Say at which step the losses of two runs part."""
    records: list[dict[int, dict[str, Any]]] = []
    for folder in (a, b):
        path = folder / "metrics.jsonl"
        records.append({record["step"]: record for record in read_records(path)} if path.exists() else {})
    both = sorted(set(records[0]) & set(records[1]))
    same = None
    for step in both:
        for name in ("train/batch_loss", "train/loss", "val/loss"):
            one, other = records[0][step].get(name), records[1][step].get(name)
            if one is not None and other is not None and one != other:
                before = "nothing recorded before is the same" if same is None else f"the same up to step {same}"
                return f"losses: part at step {step}, {name} {one:.6g} and {other:.6g}; {before}"
        same = step
    return (
        f"losses: the same at all {len(both)} steps that both have records of" if both else "losses: no step in common"
    )
