"""The parts of the benchmark of a GPU, each of which runs in a process of its own.

`python -m bigramlm.dev.bench.gpu_parts PART KIND` prints a JSON line for each figure as soon as it is measured, so that
the figures of a part that is cut off remain. KIND is cuda, mps, or cpu, which runs the same code at toy size.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.cli.common import command
from bigramlm.dev.bench import gpt2, steps
from bigramlm.dev.bench.commands import SCRIPT, evaluation_overrides, temporary_folder, train
from bigramlm.errors import UserError
from bigramlm.logger.metrics import read_records

if TYPE_CHECKING:
    from bigramlm.device.device import Device
    from bigramlm.model.base import LanguageModel
    from bigramlm.trainer.step import TrainStep

TARGET = 1.47
"""The val loss to reach: that of nanoGPT's recipe for a GPU, rounded up."""
SIZES = {"0.1M": 48, "1M": 144, "3M": 256, "10M": 456}
"""The widths of GPTs with four layers, by the number of their parameters."""

# The seconds after which a run of the part `gpt` is stopped, and the seconds for which a step is repeated.
RUN_SECONDS = 170.0
STEP_SECONDS = 1.0
_TOY = ("data=bundled", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "data.block_size=16")


def emit(name: str, value: float) -> None:
    """Print a figure, unless it is not finite."""
    if math.isfinite(value):
        print(json.dumps({name: value}), flush=True)


def gpt(kind: str) -> None:
    """Train gpt_gpu and nanogpt_gpu to a val loss of 1.47 and to their ends."""
    reached = {}
    # At toy size, the recipes use the bundled text.
    temporary = tempfile.TemporaryDirectory(prefix="bigramlm-bench-") if kind == "cpu" else temporary_folder()
    with temporary as folder:
        for name in ("gpt_gpu", "nanogpt_gpu"):
            recipe = [f"experiment={name}"]
            if kind == "cpu":
                recipe += [*_TOY, "trainer.steps=40", "optim.warmup_steps=0", "device.compile=false"]
            elif kind == "mps":
                recipe += ["device.compile=false"]
            recipe += [*evaluation_overrides(*recipe, times=20), "logger=none", f"device.name={kind}"]
            run = Path(folder) / name
            completed = _train_for(RUN_SECONDS, run, recipe)
            records = [r for r in read_records(run / "metrics.jsonl") if "val/loss" in r]
            losses = [r["val/loss"] for r in records]
            reached[name] = min((r["seconds"] for r in records if r["val/loss"] <= TARGET), default=math.inf)
            emit(f"{name} to {TARGET}", reached[name])
            emit(f"{name} lowest val", min(losses, default=math.inf))
            emit(f"{name} final val", losses[-1] if completed else math.inf)
            emit(f"{name} seconds", records[-1]["seconds"] if completed else math.inf)
    emit("ratio", reached["gpt_gpu"] / reached["nanogpt_gpu"] if math.isfinite(reached["gpt_gpu"]) else math.inf)


def _train_for(seconds: float, run: Path, overrides: list[str]) -> bool:
    # Returns whether the run has completed; the records of one that is stopped remain.
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *overrides, f"hydra.run.dir={run}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return False
    if process.returncode:
        raise UserError(f"{overrides[0]}: {(errors.strip().splitlines() or ['failed'])[-1]}")
    return True


def gpt2_shape(kind: str) -> None:
    """Measure the step of GPT-2's shape, compiled and not."""
    import torch

    from bigramlm.trainer.compiled import CompiledStep
    from bigramlm.trainer.step import TrainStep

    toy = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 2} if kind == "cpu" else {}
    work = gpt2.Workload(device=kind, **toy)
    emit("batch size", work.batch_size)
    emit("peak TFLOP/s", work.peak / 1e12)
    for name, step in (("uncompiled", TrainStep), ("compiled", CompiledStep)):
        if kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        measure = work.prepare(step)
        measure()  # on CUDA, the second call captures the graph
        if name == "compiled":
            emit("seconds to compile", time.perf_counter() - started)
        figures = [measure() for _ in range(3)]
        emit(f"{name} tokens per second", statistics.median(f["rate"] for f in figures))
        emit(f"{name} MFU", statistics.median(f["mfu"] for f in figures))
        if kind == "cuda":
            emit(f"{name} peak GB", torch.cuda.max_memory_allocated() / 1e9)
        del measure


def bigram(kind: str) -> None:
    """Measure the steps per second of the default run, compiled and not."""
    n = 300 if kind == "cpu" else 30000
    options = ("data=bundled", "logger=none", f"device.name={kind}", f"trainer.steps={n}", f"trainer.eval_every={n}")
    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as folder:
        for name, is_compiled in (("uncompiled", "false"), ("compiled", "true")):
            figures = train(Path(folder), *options, f"trainer.checkpoint_every={n}", f"device.compile={is_compiled}")
            emit(f"{name} steps per second", figures["steady"])


def sampling(kind: str) -> None:
    """Measure the characters per second that a GPT of 10M parameters generates."""
    toy = {"n_layer": 1, "n_embd": 12, "length": 50} if kind == "cpu" else {}
    (comparison,) = steps.generate(3, **toy)
    emit("with the cache", statistics.median(comparison.a))
    emit("without", statistics.median(comparison.b))
    emit("ratio", statistics.median(comparison.ratios))


def trainer(kind: str) -> None:
    """Compare the Trainer with a bare loop for nanogpt_gpu, in seconds per 100 steps."""
    recipe = ["experiment=nanogpt_gpu", "device.compile=false", f"device.name={kind}", "logger=none"]
    (comparison,) = steps.step(3, *recipe, *(_TOY if kind == "cpu" else ()))
    emit("the Trainer", statistics.median(comparison.a))
    emit("a bare loop", statistics.median(comparison.b))
    emit("ratio", statistics.median(comparison.ratios))


def batches(kind: str) -> None:
    """Measure the milliseconds to gather a batch of 64 rows of 257 tokens.

    The tokens are on the device, or in a file of 200 MB that is memory-mapped.
    """
    import numpy as np
    import torch

    from bigramlm.data.batches import Batches, Stream, on_device
    from bigramlm.device.device import Device

    device = Device(torch.device(kind), "fp32", False)
    ids = np.random.default_rng(0).integers(0, 50257, 10**5 if kind == "cpu" else 10**8, dtype=np.uint16)
    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as folder:
        ids.tofile(Path(folder) / "train.bin")
        mapped = np.memmap(Path(folder) / "train.bin", dtype=np.uint16, mode="r")
        for name, tokens in (("on the device", ids), ("mapped", mapped)):
            found = Batches(
                Stream(on_device(tokens, device.torch), block_size=256), batch_size=64, seed=0, device=device.torch
            )
            emit(f"{name} ms", 1e3 / _rate(lambda n, found=found: found[n], device))  # type: ignore[misc]
        del mapped, found


def precision(kind: str) -> None:
    """Measure the milliseconds of a step by size and precision, compiled and not."""
    import torch

    from bigramlm.device.config import DeviceConfig
    from bigramlm.device.device import decide, has_fast_bf16, has_tf32, set_up
    from bigramlm.model.config import GPTConfig
    from bigramlm.trainer.compiled import CompiledStep
    from bigramlm.trainer.step import TrainStep

    available = {"fp32": True, "tf32": kind == "cuda" and has_tf32(), "bf16": kind != "cuda" or has_fast_bf16(kind)}
    rows, block_size = (2, 8) if kind == "cpu" else (64, 256)
    ids = torch.randint(65, (rows, block_size + 1), device=kind)
    batch = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    for size, width in SIZES.items():
        if kind == "cpu" and size != "0.1M":
            continue
        model = GPTConfig(n_layer=4, n_head=4, n_embd=width).build(vocab_size=65, block_size=block_size).to(kind)

        def prepared(name: str, step: type[TrainStep], model: LanguageModel = model) -> tuple[TrainStep, Device]:
            cfg = DeviceConfig(kind, name)
            device = set_up(decide(cfg, n_params=model.n_params(), tokens=rows * block_size))
            optim = steps.composed_config("model=gpt").optim
            return step(model, optim.build(model, compiled=step is CompiledStep), device, grad_clip=1.0), device

        for name in (name for name, is_available in available.items() if is_available):
            step, device = prepared(name, TrainStep)
            emit(f"{size} {name} ms", 1e3 / _rate(lambda _, step=step: step(batch, 1e-4), device))  # type: ignore[misc]
        if size in ("0.1M", "10M") and kind != "mps":
            step, device = prepared("auto", CompiledStep)
            started = time.perf_counter()
            for _ in range(3):
                step(batch, 1e-4)
            device.synchronize()
            if step.is_compiled:  # type: ignore[attr-defined]
                emit(f"{size} seconds to compile", time.perf_counter() - started)
                emit(f"{size} compiled ms", 1e3 / _rate(lambda _, step=step: step(batch, 1e-4), device))  # type: ignore[misc]


def _rate(call: Callable[[int], Any], device: Device) -> float:
    # The calls per second; the first calls warm up.
    for n in range(3):
        call(n)
    device.synchronize()
    started, n = time.perf_counter(), 3
    while n < 6 or time.perf_counter() - started < STEP_SECONDS:
        call(n)
        n += 1
        if n % 20 == 0:
            device.synchronize()
    device.synchronize()
    return (n - 3) / (time.perf_counter() - started)


PARTS: dict[str, Callable[[str], None]] = {
    "gpt2": gpt2_shape,
    "gpt": gpt,
    "bigram": bigram,
    "precision": precision,
    "sampling": sampling,
    "trainer": trainer,
    "batches": batches,
}


@command
def main() -> None:
    """Run one part: python -m bigramlm.dev.bench.gpu_parts PART KIND."""
    PARTS[sys.argv[1]](sys.argv[2])


if __name__ == "__main__":
    main()
