"""The choice of the device, its precision and the number of CPU threads."""

import contextlib
import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require

log = logging.getLogger(__name__)

# The default of torch: the number of physical cores, or OMP_NUM_THREADS. Read before anything changes it.
ALL_THREADS = torch.get_num_threads()

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Below this number of floating-point operations per step, the overhead of calls exceeds the time of the computation, so
# more threads gain little. If another process uses a core, several threads lose much more, because they wait for each
# other at every operation. `python scripts/bench.py threads` measures both cases.
SMALL_STEP_FLOPS = 2e8

# The number of parameters from which bf16 is used. Smaller models do not keep the hardware for bf16 matrix products
# busy: the tensor cores of a GPU or the AMX unit of a CPU. On a CPU with AMX, a model with 3 million parameters was 4.7
# times as fast in bf16 as in fp32, and small models were half as fast.
BF16_MIN_PARAMS = {"cuda": 1_000_000, "cpu": 3_000_000}


@dataclass(frozen=True)
class Device:
    """The device that a run computes on, built from a resolved DeviceConfig."""

    torch: torch.device
    precision: str
    compile: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context manager that applies the precision to forward passes."""
        if DTYPES[self.precision] == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch.type, dtype=DTYPES[self.precision])

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work, e.g. to measure time."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)
        elif self.torch.type == "mps":
            torch.mps.synchronize()


def is_small(*, n_params: int, tokens: int) -> bool:
    """Check whether a step is too small to benefit from several threads.

    tokens: the number of tokens in the step. A parameter takes about 6 operations per token: a multiplication and an
    addition in the forward pass, and twice as many in the backward pass (Kaplan et al. 2020, "Scaling Laws for Neural
    Language Models", section 2.1).
    """
    return 6 * n_params * tokens < SMALL_STEP_FLOPS


def decide(cfg: DeviceConfig, *, n_params: int, tokens: int) -> DeviceConfig:
    """Return the config with every `auto` resolved and log the reasons.

    n_params: the number of parameters. tokens: the number of tokens in a step. The choice depends only on the machine
    and these two numbers, never on the current load, so that the same config gives bit-equal results. If the load makes
    a choice slow, a hint is logged. Raises UserError if the machine does not support the device or the precision in the
    config.
    """
    name, reason = _decide_name(cfg.name)
    precision, precision_reason = _decide_precision(cfg.precision, name, n_params)
    threads, threads_reason = _decide_threads(cfg.threads, small=is_small(n_params=n_params, tokens=tokens))
    log.info("device: %s (%s)", name, reason)
    log.info("precision: %s (%s)", precision, precision_reason)
    log.info("CPU threads: %d (%s)", threads, threads_reason)
    if name == "cpu" and threads > 1:
        _hint_if_busy(threads)
    return replace(cfg, name=name, precision=precision, threads=str(threads))


def _hint_if_busy(threads: int) -> None:
    # The threads of an operation wait for the slowest of them, and do not yield their cores meanwhile.
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # in processes, over the last minute
    if load > cores:
        log.info(
            "this machine is busy (load %.1f on %d cores): device.threads=%d may be faster",
            *(load, cores, threads // 2),
        )


def set_up(cfg: DeviceConfig) -> Device:
    """Apply a resolved config to the process and return its device.

    The number of threads, determinism and TF32 are process-wide settings.
    """
    torch.set_num_threads(int(cfg.threads))
    if cfg.name.startswith("cuda"):
        torch.set_float32_matmul_precision("high" if cfg.precision == "tf32" else "highest")
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires this to be deterministic
    # Called only for a change, because the call imports the compiler, which is slow.
    if torch.are_deterministic_algorithms_enabled() != cfg.deterministic:
        torch.use_deterministic_algorithms(cfg.deterministic)
    return Device(torch.device(cfg.name), cfg.precision, cfg.compile)


def _decide_name(name: str) -> tuple[str, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        chosen = next(kind for kind, is_available in available.items() if is_available)
        why = {
            "cuda": "auto: the first GPU",
            "mps": "auto: the GPU of this Mac",
            "cpu": "auto: PyTorch finds no GPU, neither cuda nor mps",
        }
        return chosen, why[chosen]
    names = ", ".join(kind for kind, is_available in available.items() if is_available)
    kind, _, index = name.partition(":")
    require(available[kind], f"device.name={name}: PyTorch does not find this device; choose one of: {names}")
    if index:
        count = torch.cuda.device_count()
        require(
            int(index) < count,
            f"device.name={name}: no such GPU; CUDA GPUs on this machine: {count} (numbered from 0)",
        )
    return name, "from the config"


def _decide_precision(precision: str, name: str, n_params: int) -> tuple[str, str]:
    kind = name.partition(":")[0]
    if precision == "auto":
        if kind == "mps":
            return "fp32", "auto: the gain of bf16 on MPS has not been measured"
        reason = {"cuda": "this GPU does not support bf16", "cpu": "this CPU has no AMX unit to compute in bf16"}[kind]
        plain = "tf32" if kind == "cuda" and has_tf32() else "fp32"
        if not has_fast_bf16(kind):
            return plain, f"auto: {reason}"
        enough = n_params >= BF16_MIN_PARAMS[kind]
        size = f"{n_params:,} parameters are {'enough' if enough else 'too few'} to gain from bf16"
        return ("bf16" if enough else plain), f"auto: {size}"
    if precision == "fp16" and kind == "cpu":
        raise UserError("device.precision=fp16: on a CPU, fp16 is not faster and has a smaller range; use fp32 or bf16")
    require(
        precision != "tf32" or (kind == "cuda" and has_tf32()),
        "device.precision=tf32: only NVIDIA GPUs since Ampere compute in TF32; use fp32",
    )
    if precision == "bf16" and kind == "cuda" and not has_fast_bf16(kind):
        raise UserError("device.precision=bf16: this GPU does not support bf16; use fp32 or fp16")
    if precision == "bf16" and kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UserError("device.precision=bf16: bf16 on MPS requires macOS 14 or later; use fp32 or fp16")
    slow = precision == "bf16" and kind == "cpu" and not has_fast_bf16(kind)
    return precision, "from the config" + "; bf16 may be slower than fp32 without AMX" * slow


def has_fast_bf16(kind: str) -> bool:
    """Return True if the GPU or CPU supports bf16 in hardware.

    kind: cuda or cpu. Other hardware emulates bf16 by conversion to fp32, so bf16 is slow there.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())


def has_tf32() -> bool:
    """Return True if the GPU computes in TF32, as NVIDIA GPUs do since Ampere."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)


def _decide_threads(threads: str, *, small: bool) -> tuple[int, str]:
    if threads != "auto":
        return int(threads), "from the config"
    return (1, "auto: the step is small") if small else (ALL_THREADS, "auto: all cores")
