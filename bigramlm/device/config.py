"""The fields of the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bigramlm.errors import require, require_choice

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass
class DeviceConfig:
    """The device, and how it computes. Fields on `auto` are decided once, by the device and the size of the work."""

    name: str = "auto"
    """auto (cuda, then mps, then cpu), cpu, cuda, cuda:N or mps."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16: what matrix products are computed in; weights are always kept in fp32."""
    threads: str = "auto"
    """auto or a number: CPU threads that share one operation."""
    compile: bool = False
    """Compile the whole training step with torch.compile: slow to start, fast to run."""
    deterministic: bool = False
    """Refuse the operations that may give other bits each time; a CPU has none that our models use."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.name) is not None,
            f"device.name={self.name}: unknown; choose one of auto, cpu, cuda, cuda:N, mps",
        )
        require_choice("device.precision", self.precision, PRECISIONS)
        require(
            self.threads == "auto" or (self.threads.isdecimal() and 1 <= int(self.threads) <= 1024),
            f"device.threads={self.threads}: must be auto or a whole number, 1 to 1024",
        )
        require(
            not (self.compile and self.precision == "fp16"),
            "device.compile=true with device.precision=fp16: the scaling of fp16's losses is not compiled; use bf16",
        )
