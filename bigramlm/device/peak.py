"""The peak FLOP/s of a device, used for the model FLOPs utilisation (MFU)."""

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bigramlm.device.device import DTYPES, Device

# The peak throughput of dense matrix products on tensor cores, in TFLOP/s, by a part of the CUDA device name. It is for
# bf16 and fp16 without sparsity, from NVIDIA's data sheets. fp32, which does not use tensor cores, and tf32 are
# measured.
TENSOR_CORE_TFLOPS = {
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

# The size of the square matrices, by device: large enough to occupy all cores of a CPU or a GPU, in a few milliseconds
# at most. The fastest of _TIMES products counts, because most are slow on a busy machine.
_SIZE = {"cpu": 512, "cuda": 4096, "mps": 2048}
_TIMES = 30


@dataclass(frozen=True)
class Peak:
    """A device's peak throughput, in FLOP/s."""

    flops: float
    how: str
    """The source of the figure: a data sheet or a measurement."""


def peak(device: Device) -> Peak:
    """Return the peak FLOP/s of a device in the precision of the run.

    The peak is the manufacturer's figure if `TENSOR_CORE_TFLOPS` lists the GPU and the precision is bf16 or fp16.
    Otherwise the peak is measured.
    """
    if device.torch.type == "cuda" and DTYPES[device.precision] != torch.float32:
        name = torch.cuda.get_device_name(device.torch)
        for part, tflops in TENSOR_CORE_TFLOPS.items():
            if re.search(rf"\b{part}\b", name) and "MIG" not in name:  # a MIG device is a slice of a GPU
                return Peak(tflops * 1e12, f"data sheet of {part}")
    return _measure_once(device, torch.get_num_threads())


@functools.cache
def _measure_once(device: Device, threads: int) -> Peak:  # noqa: ARG001 - the peak depends on the threads
    return measure_peak(device)


def measure_peak(device: Device, clock: Callable[[], float] = time.perf_counter) -> Peak:
    """Measure the device's peak FLOP/s as the fastest of several matrix products.

    clock: a function that returns the current time in seconds.
    """
    n = _SIZE[device.torch.type]
    a = torch.ones(n, n, dtype=DTYPES[device.precision], device=device.torch)
    seconds = []
    for _ in range(_TIMES):
        device.synchronize()
        start = clock()
        torch.mm(a, a)
        device.synchronize()
        seconds.append(clock() - start)
    return Peak(2 * n**3 / min(seconds), f"measured: a matrix product in {device.precision}")
