"""The config fields of the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bigramlm.errors import require, require_choice

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass
class DeviceConfig:
    """The device, its precision, its CPU threads and its compilation.

    Fields with the value `auto` are resolved once, from the device and the size of the work.
    """

    name: str = "auto"
    """The device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps."""
    precision: str = "auto"
    """The precision of matrix products: auto, fp32, bf16 or fp16. Weights are always stored in fp32."""
    threads: str = "auto"
    """The number of CPU threads for one operation, or auto."""
    compile: bool = False
    """If true, torch.compile compiles the whole training step, which starts slowly but runs fast."""
    deterministic: bool = False
    """If true, nondeterministic operations are refused. On a CPU, the models of bigramlm use no such operations."""

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
            "device.compile=true with device.precision=fp16: the loss scaling of fp16 cannot be compiled; use bf16",
        )
