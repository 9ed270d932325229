"""The peak of a device, to which the model FLOPs utilisation (MFU) is relative."""

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bigramlm.device.device import DTYPES, Device

# Dense matrix products on tensor cores, in TFLOP/s, by a part of the name that CUDA gives the GPU: bf16 and fp16 as in
# NVIDIA's data sheets, without sparsity. fp32 is not in the table: PyTorch computes it without tensor cores.
TENSOR_CORES = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}

# A product of square matrices of this size keeps a CPU's cores, or a GPU, busy, and takes some milliseconds at most. Of
# so many the best counts: on a busy machine most are slow.
_SIZE = {"cpu": 512, "cuda": 4096, "mps": 2048}
_TIMES = 30


@dataclass(frozen=True)
class Peak:
    """Floating point operations a second, and how that is known."""

    flops: float
    how: str


def peak(device: Device) -> Peak:
    """Return the device's peak in its precision: as its maker says for a GPU in the table, else as measured."""
    if device.torch.type == "cuda" and device.precision != "fp32":
        name = torch.cuda.get_device_name(device.torch)
        for part, tera in TENSOR_CORES.items():
            if re.search(rf"\b{part}\b", name) and "MIG" not in name:  # which is a slice of one
                return Peak(tera * 1e12, f"the data sheet of {part}")
    return _measured_once(device, torch.get_num_threads())


@functools.cache
def _measured_once(device: Device, threads: int) -> Peak:  # noqa: ARG001 - what is measured depends on the threads
    return measured(device)


def measured(device: Device, clock: Callable[[], float] = time.perf_counter) -> Peak:
    """Measure the device's peak by the best of several matrix products; clock: in seconds."""
    n = _SIZE[device.torch.type]
    a = torch.ones(n, n, dtype=DTYPES[device.precision], device=device.torch)
    seconds = []
    for _ in range(_TIMES):
        device.synchronize()
        started = clock()
        torch.mm(a, a)
        device.synchronize()
        seconds.append(clock() - started)
    return Peak(2 * n**3 / min(seconds), f"measured: a matrix product in {device.precision}")
