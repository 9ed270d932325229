"""Benchmarks of single steps, in the current process."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from hydra import compose, initialize_config_dir

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, to_run_config
from bigramlm.dev.bench.measure import Comparison, Figures, Profile, alternate
from bigramlm.errors import require
from bigramlm.utils import paths

if TYPE_CHECKING:
    from bigramlm.trainer.trainer import Trainer

# Steps between two records, as in the default run, and thus in a slice.
_SLICE = 100

Step = Callable[[int], None]


def step(pairs: int, *overrides: str) -> Iterator[Comparison]:
    """Compare the Trainer's step with a bare loop for the same model and text.

    The figure is seconds per 100 steps, including the Trainer's records. Both loops alternate in one process. The
    overrides choose the run. By default, the bigram, nanogpt_cpu and gpt_cpu are measured.
    """
    recipes = [overrides] if overrides else [(), ("experiment=nanogpt_cpu",), ("experiment=gpt_cpu",)]
    for recipe in recipes:
        n = pairs if recipe else 20 * pairs  # a slice of the bigram takes milliseconds
        ours, bare = _slices(n, recipe, _bare_loop)
        name = " ".join(recipe) or "the default run"
        yield Comparison(f"seconds per {_SLICE} steps, {name}: the Trainer / a bare loop", ours, bare, "seconds")


def nanogpt(pairs: int) -> Iterator[Comparison]:
    """Compare experiment=nanogpt_cpu with a reimplementation of nanoGPT's loop.

    The figure is seconds per 100 steps.
    """
    from bigramlm.dev.bench.nanogpt import loop

    ours, theirs = _slices(pairs, ("experiment=nanogpt_cpu", "device.name=cpu"), loop)
    yield Comparison(
        f"seconds per {_SLICE} steps: experiment=nanogpt_cpu / nanoGPT's loop, reimplemented", ours, theirs, "seconds"
    )


def profile(pairs: int, *overrides: str) -> Iterator[Profile]:
    """Measure the phases of a step, and compute lower bounds for this machine.

    The overrides choose the run. The default is experiment=gpt_cpu.
    """
    recipe = overrides or ("experiment=gpt_cpu",)
    yield Profile(f"a step of {' '.join(recipe)}", **_profile(pairs * 20, recipe))


def composed_config(*overrides: str) -> RunConfig:
    """Compose the run config that `train.py` builds from these overrides."""
    from bigramlm.engine.command_line import set_up_hydra

    set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return to_run_config(compose("train", list(overrides)))


def generate(pairs: int, *, n_layer: int = 6, n_embd: int = 384, length: int = 1000) -> Iterator[Comparison]:
    """Compare generation with and without the key/value cache.

    An untrained GPT with 6 layers, width 384 and block size 256 generates 1,000 characters. The figure is characters
    per second.
    """
    import torch

    from bigramlm.device.config import DeviceConfig
    from bigramlm.device.device import decide, set_up
    from bigramlm.generate import generate as generate_tokens
    from bigramlm.model.config import GPTConfig

    cfg = GPTConfig(n_layer=n_layer, n_head=6, n_embd=n_embd)
    model = cfg.build(vocab_size=65, block_size=256)
    device = set_up(decide(DeviceConfig(), n_params=model.n_params(), tokens=model.block_size))
    model.to(device.torch)
    start = torch.zeros((1, 1), dtype=torch.long, device=device.torch)

    def rate(*, cached: bool) -> Figures:
        started = time.perf_counter()
        generate_tokens(model, start, length, temperature=1.0, seed=0, device=device, cached=cached)
        device.synchronize()
        return {"rate": length / (time.perf_counter() - started)}

    cached, uncached = alternate(pairs, lambda: rate(cached=True), lambda: rate(cached=False))
    yield Comparison("characters per second: with the cache / without", cached, uncached, "rate")


def threads(pairs: int) -> Iterator[Comparison]:
    """Compare one thread with all cores, for steps of several sizes.

    Measures steps per second on an idle machine and with one other busy process.
    """
    import torch

    from bigramlm.device.device import is_small

    cores = torch.get_num_threads()
    require(cores > 1, "bench threads: requires at least 2 CPU cores, but PyTorch uses only 1")
    for busy in (False, True):
        with _busy(1 if busy else 0):
            for width in (16, 32, 64, 128, 256):
                step, n_params, tokens = _sized_step(width)
                single, multi = alternate(pairs, partial(_rate, step, 1), partial(_rate, step, cores))
                auto = "1" if is_small(n_params=n_params, tokens=tokens) else "all"
                yield Comparison(
                    f"steps per second: 1 thread / {cores} threads; {6 * n_params * tokens:.1e} operations per step, "
                    f"{'one other busy process' if busy else 'idle machine'}; auto chooses {auto}",
                    *(single, multi, "steps"),
                )


def _sized_step(width: int) -> tuple[Callable[[], None], int, int]:
    # Returns an update of two transformer layers on a batch of 12 sequences of 64 tokens, its number of parameters and
    # its number of tokens. The layers stand in for models of any kind.
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(12, 64, width)

    def step() -> None:
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters()), x.shape[0] * x.shape[1]


def _rate(step: Callable[[], None], n_threads: int) -> Figures:
    import torch

    torch.set_num_threads(n_threads)
    step()
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        step()
        n += 1
    return {"steps": n / (time.perf_counter() - started)}


def _spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def _busy(n: int) -> Iterator[None]:
    processes = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(n)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _slices(
    n: int, overrides: tuple[str, ...], other: Callable[[Trainer], Step]
) -> tuple[list[Figures], list[Figures]]:
    """Measure n slices of the Trainer's steps in a run, alternating with another loop.

    Returns the seconds of each slice, first for the Trainer and then for the other loop.
    """
    ours: list[Figures] = []
    others: list[Figures] = []
    take_step: Step | None = None
    began = 0.0

    def on_record(trainer: Trainer) -> None:
        nonlocal take_step, began
        now = time.perf_counter()
        take_step = take_step or other(trainer)
        for number in range(_SLICE):
            take_step(trainer.progress.step + number)
        trainer.train_step.device.synchronize()
        # The first slices warm up, and the last record includes the final evaluation.
        if 2 * _SLICE < trainer.progress.step < (n + 2) * _SLICE:
            ours.append({"seconds": now - began})
            others.append({"seconds": time.perf_counter() - now})
        began = time.perf_counter()

    _run_with_callback(on_record, (*overrides, f"trainer.steps={_SLICE * (n + 2)}", f"trainer.log_every={_SLICE}"))
    return ours, others


def _run_with_callback(on_record: Callable[[Trainer], None], overrides: tuple[str, ...]) -> None:
    """Train with a callback after each record.

    There are no evaluations or checkpoints between the first and the last step.
    """
    from bigramlm.engine import run as engine
    from bigramlm.logger import metrics
    from bigramlm.runs.folder import RunFolder
    from bigramlm.trainer import trainer

    trainers: list[Trainer] = []

    class CapturedTrainer(trainer.Trainer):
        def fit(self, metrics: Any) -> trainer.TrainResult:
            trainers.append(self)
            return super().fit(metrics)

    class ObservedMetrics(metrics.Metrics):
        def log(self, step: int, seconds: float, record: dict[str, float]) -> None:
            super().log(step, seconds, record)
            on_record(trainers[0])

    never = ("trainer.eval_every=1000000", "trainer.checkpoint_every=1000000", "trainer.eval_batches=1")
    cfg = composed_config(*overrides, *never, "optim.warmup_steps=0")
    with (
        tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as temporary,
        mock.patch("bigramlm.engine.build.Trainer", CapturedTrainer),
        mock.patch("bigramlm.engine.run.Metrics", ObservedMetrics),
    ):
        folder = RunFolder(Path(temporary))
        folder.claim()
        engine.run(cfg, Overrides(), folder, engine.RunContext())


def _profile(n: int, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of `Profile` for n steps of a run with these overrides."""
    result: dict[str, Any] = {}

    def on_record(trainer: Trainer) -> None:
        result["phases"], result["floors"] = _phases(trainer, n), _lower_bounds(trainer)

    _run_with_callback(on_record, (*overrides, "trainer.steps=0"))
    return result


def _phases(trainer: Trainer, n: int) -> dict[str, list[float]]:
    from torch.nn.utils import clip_grad_norm_

    phases: dict[str, list[float]] = {name: [] for name in ("batch", "forward", "backward", "clip", "optimizer")}
    train_step = trainer.train_step
    trainer.model.train()
    for number in range(n // 10 + n):  # the first n // 10 steps warm up
        times = [time.perf_counter()]

        def end_phase(times: list[float] = times) -> None:
            train_step.device.synchronize()
            times.append(time.perf_counter())

        batch = trainer.batches[number]
        end_phase()
        losses = list(train_step.losses(batch))
        end_phase()
        for loss in losses:
            loss.backward()
        end_phase()
        if train_step.grad_clip:
            clip_grad_norm_(train_step.params, train_step.grad_clip)
        end_phase()
        train_step.optimizer.step()
        train_step.optimizer.zero_grad()
        end_phase()
        if number >= n // 10:
            for seconds, start, end in zip(phases.values(), times, times[1:], strict=False):
                seconds.append(end - start)
    return phases


def _lower_bounds(trainer: Trainer) -> dict[str, float]:
    import torch

    from bigramlm.device.peak import peak

    step, device = trainer.train_step, trainer.train_step.device
    flops = trainer.speed.flops_per_token * trainer.speed.tokens_per_step
    peak_flops, size = peak(device).flops, 1 << 26
    n_weights = sum(p.numel() for p in step.params)
    n_state = sum(
        value.numel() for state in step.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    # In float32: weights are read in forward, backward and update and written once; gradients and optimizer state are
    # read once and written once.
    moved = 4 * (6 * n_weights + 2 * n_state)
    a, b = (torch.ones(size, device=device.torch) for _ in range(2))
    seconds = []
    for _ in range(10):
        device.synchronize()
        started = time.perf_counter()
        b.copy_(a)
        device.synchronize()
        seconds.append(time.perf_counter() - started)
    rate = 2 * 4 * size / min(seconds)
    return {
        f"{flops:.3g} operations of the model's matrix products, at {peak_flops:.3g} per second": flops / peak_flops,
        f"{moved / 1e6:.3g} MB of weights, gradients and optimizer state, at {rate / 1e9:.3g} GB/s": moved / rate,
    }


def _bare_loop(trainer: Trainer) -> Step:
    """Return a function that runs step n of a bare loop on a copy of the model."""
    from torch.nn.utils import clip_grad_norm_

    from bigramlm.data.batches import Batches

    model = copy.deepcopy(trainer.model)
    optim, device = trainer.schedule.cfg, trainer.train_step.device
    optimizer = optim.build(model, compiled=False)
    rows = trainer.batches.tokens_per_batch // model.block_size
    batches = Batches(trainer.evaluator.splits["train"], batch_size=rows, seed=0)

    def take_step(n: int) -> None:
        x, y = batches[n]
        with device.autocast():
            _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        if optim.grad_clip:
            clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()

    return take_step
