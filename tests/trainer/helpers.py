"""Helpers for the tests of the Trainer: its weights, and the records of its run."""

import json
from pathlib import Path
from typing import Any

import torch

from bigramlm.trainer.trainer import Trainer


def weights(trainer: Trainer) -> torch.Tensor:
    return next(trainer.model.parameters()).detach().clone()


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records without the metrics that depend on a clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "mfu")} for line in lines]
