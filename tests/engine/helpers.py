"""Helpers for the tests of runs: reading the weights and records of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bigramlm.checkpoint.manager import Checkpoints


def weights(folder: Path, step: str = "last") -> torch.Tensor:
    """Read the weights (V, V) of a bigram from a checkpoint of its run."""
    path = Checkpoints(folder / "checkpoints").path("last") if step == "last" else folder / "checkpoints" / step
    (table,) = load_file(path / "model.safetensors").values()
    return table


def records(folder: Path) -> list[dict[str, Any]]:
    """Read the metric records of a run without the fields that depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "mfu")} for line in lines]
