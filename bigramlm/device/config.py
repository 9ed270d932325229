"""The config fields of the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bigramlm.errors import require, require_choice

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")


@dataclass
class DeviceConfig:
    """The device, the precision, the CPU threads and compilation.

    The value `auto` is resolved when a run starts, based on the machine and on the size of the model and the batch.
    """

    name: str = "auto"
    """The device: cpu, cuda, cuda:N, mps or auto (cuda if available, else mps if available, else cpu)."""
    precision: str = "auto"
    """The precision of matrix products: auto, fp32, tf32, bf16 or fp16. Weights are always stored in fp32. tf32 is
    fp32 whose products use the tensor cores of NVIDIA GPUs, with 10 bits of the mantissa instead of 23."""
    threads: str = "auto"
    """The number of CPU threads that an operation uses, or auto."""
    compile: bool = False
    """If true, torch.compile compiles the whole training step. The first step is slow, and later steps are faster."""
    deterministic: bool = False
    """If true, PyTorch uses deterministic algorithms and raises an error for operations that have none. On a CPU, the
    models of bigramlm use no such operations."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.name) is not None,
            f"device.name={self.name}: unknown; choose one of auto, cpu, cuda, cuda:N, mps",
        )
        require_choice("device.precision", self.precision, PRECISIONS)
        require(
            self.threads == "auto" or (self.threads.isdecimal() and 1 <= int(self.threads) <= 1024),
            f"device.threads={self.threads}: must be auto or a whole number from 1 to 1024",
        )
        require(
            not (self.compile and self.precision == "fp16"),
            "device.compile=true does not work with device.precision=fp16: loss scaling cannot be compiled; use bf16",
        )
