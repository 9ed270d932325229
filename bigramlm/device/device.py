"""Choosing the device, and what depends on it."""

import contextlib
import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require

log = logging.getLogger(__name__)

# What torch would take by itself: the physical cores, or OMP_NUM_THREADS. Read before anything changes it.
ALL_THREADS = torch.get_num_threads()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Below this many floating point operations in a step the calls cost more than what they compute. More threads gain
# little there, and where another process wants a core they wait for each other at every operation, which costs far
# more: `python scripts/bench.py threads` measures both.
SMALL_BELOW = 2e8

# Above this many parameters what multiplies matrices in bf16 is kept busy enough to gain from it: a GPU with tensor
# cores, and a CPU with AMX, where 3 million parameters were 4.7 times as fast as in fp32, and few half as fast.
BF16_FROM_PARAMS = {"cuda": 1_000_000, "cpu": 3_000_000}


@dataclass(frozen=True)
class Device:
    """The device that a run computes on: the decided form of a DeviceConfig."""

    torch: torch.device
    precision: str
    compile: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch.type, dtype=DTYPES[self.precision])

    def synchronize(self) -> None:
        """Wait until the device has done all it was given, so that a clock may be read."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)
        elif self.torch.type == "mps":
            torch.mps.synchronize()


def is_small(*, n_params: int, tokens: int) -> bool:
    """Tell whether a step over so many tokens is too short to be worth sharing among threads.

    A parameter costs some 6 operations a token: a multiplication and an addition forward, twice as many backward
    (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1).
    """
    return 6 * n_params * tokens < SMALL_BELOW


def decide(cfg: DeviceConfig, *, n_params: int, tokens: int) -> DeviceConfig:
    """Return the same config with nothing left on `auto`; logs every decision with its reason.

    Decided by the device and the size of the work alone, never by the load of the moment, so that the same config
    gives the same bits. UserError where the machine lacks what was asked for.
    """
    name, reason = _decide_name(cfg.name)
    precision, precision_reason = _decide_precision(cfg.precision, name, n_params)
    threads, threads_reason = _decide_threads(cfg.threads, small=is_small(n_params=n_params, tokens=tokens))
    log.info("device: %s (%s)", name, reason)
    log.info("precision: %s (%s), CPU threads: %d (%s)", precision, precision_reason, threads, threads_reason)
    return replace(cfg, name=name, precision=precision, threads=str(threads))


def set_up(cfg: DeviceConfig) -> Device:
    """Make the process compute as a decided config says: threads and determinism are settings of the whole process."""
    torch.set_num_threads(int(cfg.threads))
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for this
    # Only where it changes something: the call imports the compiler, which is slow.
    if torch.are_deterministic_algorithms_enabled() != cfg.deterministic:
        torch.use_deterministic_algorithms(cfg.deterministic)
    return Device(torch.device(cfg.name), cfg.precision, cfg.compile)


def _decide_name(name: str) -> tuple[str, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        chosen = next(kind for kind, there in available.items() if there)
        absent = [kind for kind in ("cuda", "mps") if not available[kind]]
        why = {"cuda": "auto: the first GPU", "mps": "auto: no CUDA GPU", "cpu": f"auto: no {' and no '.join(absent)}"}
        return chosen, why[chosen]
    there = ", ".join(kind for kind, is_there in available.items() if is_there)
    kind, _, index = name.partition(":")
    require(available[kind], f"device.name={name}: this machine has none that PyTorch can use; it has: {there}")
    if index:
        count = torch.cuda.device_count()
        require(int(index) < count, f"device.name={name}: there are {count} CUDA GPUs, numbered from 0")
    return name, "as asked"


def _decide_precision(precision: str, name: str, n_params: int) -> tuple[str, str]:
    kind = name.partition(":")[0]
    if precision == "auto":
        if kind == "mps":
            return "fp32", "auto: what bf16 gains on MPS has not been measured"
        lacks = {"cuda": "no bf16 in this GPU", "cpu": "no AMX for bf16"}[kind]
        if not has_fast_bf16(kind):
            return "fp32", f"auto: {lacks}"
        enough = n_params >= BF16_FROM_PARAMS[kind]
        size = f"{n_params:,} parameters are {'enough' if enough else 'too few'} to gain from bf16"
        return ("bf16" if enough else "fp32"), f"auto: {size}"
    if precision == "fp16" and kind == "cpu":
        raise UserError("device.precision=fp16: a CPU gains nothing by it and loses range; use fp32 or bf16")
    if precision == "bf16" and kind == "cuda" and not has_fast_bf16(kind):
        raise UserError("device.precision=bf16: this GPU has no bf16; use fp32 or fp16")
    if precision == "bf16" and kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UserError("device.precision=bf16: MPS has it from macOS 14 on; use fp32 or fp16")
    slow = precision == "bf16" and kind == "cpu" and not has_fast_bf16(kind)
    return precision, "as asked" + "; without AMX it may be slower than fp32" * slow


def has_fast_bf16(kind: str) -> bool:
    """Tell whether a kind of device computes in bf16 in hardware, and not by converting."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())


def _decide_threads(threads: str, *, small: bool) -> tuple[int, str]:
    if threads != "auto":
        return int(threads), "as asked"
    return (1, "auto: the model is small") if small else (ALL_THREADS, "auto: all cores")
