"""Benchmarks of single steps, in this process."""

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

# Steps between two records, as the default run has it, and so in a slice.
_SLICE = 100
# Seconds that a step of GPT-2's shape is repeated for.
REPEAT_FOR = 2.0

Step = Callable[[int], None]


def step(pairs: int, *overrides: str) -> Iterator[Comparison]:
    """Compare the Trainer's step, records included, with a bare loop over the same model and batches: seconds.

    In slices of 100 steps, in one process. Of the bigram, nanogpt_cpu and gpt_cpu, or as the overrides say.
    """
    chosen = [overrides] if overrides else [(), ("experiment=nanogpt_cpu",), ("experiment=gpt_cpu",)]
    for one in chosen:
        n = pairs if one else 20 * pairs  # a slice of the bigram takes milliseconds
        ours, bare = _slices(n, one, _bare_loop)
        what = " ".join(one) or "the default run"
        yield Comparison(f"seconds for {_SLICE} steps, {what}: the Trainer / a bare loop", ours, bare, "seconds")


def nanogpt(pairs: int) -> Iterator[Comparison]:
    """Compare the Trainer's step of experiment=nanogpt_cpu with nanoGPT's loop, rewritten here: seconds."""
    from bigramlm.dev.bench.nanogpt import loop

    ours, theirs = _slices(pairs, ("experiment=nanogpt_cpu", "device.name=cpu"), loop)
    yield Comparison(
        f"seconds for {_SLICE} steps: experiment=nanogpt_cpu / nanoGPT's loop, rewritten", ours, theirs, "seconds"
    )


def profile(pairs: int, *overrides: str) -> Iterator[Profile]:
    """Profile a step of gpt_cpu, or as the overrides say: its phases, and the least time the machine could take."""
    chosen = overrides or ("experiment=gpt_cpu",)
    yield Profile(f"a step of {' '.join(chosen)}", **_profiled(pairs * 20, chosen))


def gpt2(
    pairs: int, *, n_layer: int = 12, n_head: int = 12, n_embd: int = 768, block_size: int = 1024, batch_size: int = 0
) -> Iterator[Comparison]:
    """GPT-2's shape (124M) at block 1,024 on random tokens: the compiled step against the plain one, and MFU."""
    import torch

    from bigramlm.device.config import DeviceConfig
    from bigramlm.device.device import decide, set_up
    from bigramlm.device.peak import peak
    from bigramlm.trainer.step import CompiledStep, TrainStep

    cuda = torch.cuda.is_available()
    batch_size = batch_size or (16 if cuda else 1)
    shape = (f"model.n_layer={n_layer}", f"model.n_head={n_head}", f"model.n_embd={n_embd}", "model.dropout=0")
    cfg = composed_config("model=gpt2", *shape)
    torch.manual_seed(0)
    model = cfg.model.build(vocab_size=50304, block_size=block_size)  # GPT-2's, rounded up to a multiple of 64
    tokens = batch_size * block_size
    device = set_up(decide(DeviceConfig(), n_params=model.n_params(), tokens=tokens))
    most = peak(device).flops
    ids = torch.randint(50257, (batch_size, block_size + 1), device=device.torch)
    batch = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def ready(kind: type[TrainStep]) -> Callable[[], Figures]:
        of = copy.deepcopy(model).to(device.torch)
        optimizer = cfg.optim.build(of, compiled=kind is CompiledStep)
        take = kind(of, optimizer, device, grad_clip=1.0)
        if isinstance(take, CompiledStep):
            take(batch, 1e-4)
            require(take.is_compiled, "bench gpt2: the step does not compile here, and there is nothing to compare")
        return partial(measure, take, of.flops_per_token())

    def measure(take: TrainStep, flops_per_token: int) -> Figures:
        device.synchronize()
        started, n = time.perf_counter(), 0
        while n < 3 or time.perf_counter() - started < REPEAT_FOR:
            take(batch, 1e-4)
            n += 1
            if not cuda or n % 10 == 0:  # a GPU is given work ahead
                device.synchronize()
        device.synchronize()
        rate = n * tokens / (time.perf_counter() - started)
        return {"rate": rate, "mfu": rate * flops_per_token / most}

    compiled, plain = alternate(pairs, ready(CompiledStep), ready(TrainStep))
    yield Comparison("tokens a second: compiled / as it stands", compiled, plain, "rate")
    yield Comparison(f"MFU of {most:.3g} FLOP/s: compiled / as it stands", compiled, plain, "mfu")


def composed_config(*overrides: str) -> RunConfig:
    """Compose the config of the run that `train.py` makes of these overrides."""
    from bigramlm.cli.train import set_up_hydra

    set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return to_run_config(compose("train", list(overrides)))


def generate(pairs: int) -> Iterator[Comparison]:
    """1,000 characters from a fresh GPT of 6 layers, 384 wide, block 256: with the key/value cache against without."""
    import torch

    from bigramlm.device.config import DeviceConfig
    from bigramlm.device.device import decide, set_up
    from bigramlm.generate import generate as write
    from bigramlm.model.config import GPTConfig

    cfg = GPTConfig(n_layer=6, n_head=6, n_embd=384)
    model = cfg.build(vocab_size=65, block_size=256)
    device = set_up(decide(DeviceConfig(), n_params=model.n_params(), tokens=model.block_size))
    model.to(device.torch)
    start = torch.zeros((1, 1), dtype=torch.long, device=device.torch)

    def rate(*, cached: bool) -> Figures:
        started = time.perf_counter()
        write(model, start, 1000, temperature=1.0, seed=0, device=device, cached=cached)
        device.synchronize()
        return {"rate": 1000 / (time.perf_counter() - started)}

    with_, without = alternate(pairs, lambda: rate(cached=True), lambda: rate(cached=False))
    yield Comparison("characters a second: with the cache / without", with_, without, "rate")


def threads(pairs: int) -> Iterator[Comparison]:
    """One thread against all cores, for steps of several sizes, on a quiet and on a busy machine: steps a second."""
    import torch

    from bigramlm.device.device import is_small

    cores = torch.get_num_threads()
    require(cores > 1, "bench threads: this machine has one core, and nothing to compare")
    for busy in (False, True):
        with _busy(1 if busy else 0):
            for width in (16, 32, 64, 128, 256):
                step, n_params, tokens = _sized_step(width)
                one, all_ = alternate(pairs, partial(_rate, step, 1), partial(_rate, step, cores))
                auto = "1" if is_small(n_params=n_params, tokens=tokens) else "all"
                yield Comparison(
                    f"steps a second: 1 thread / {cores} threads; {6 * n_params * tokens:.1e} operations a step, "
                    f"{'one other process busy' if busy else 'nothing else running'}; auto takes {auto}",
                    *(one, all_, "steps"),
                )


def _sized_step(width: int) -> tuple[Callable[[], None], int, int]:
    # An update of two transformer layers of this width, 12 sequences of 64, standing in for models to come.
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
    spinning = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(n)]
    for process in spinning:
        process.start()
    try:
        yield
    finally:
        for process in spinning:
            process.terminate()
            process.join()


def _slices(
    n: int, overrides: tuple[str, ...], other: Callable[[Trainer], Step]
) -> tuple[list[Figures], list[Figures]]:
    """Seconds that n slices of steps take the Trainer, in a whole run, and in between as many those of another loop."""
    ours: list[Figures] = []
    others: list[Figures] = []
    take: Step | None = None
    began = 0.0

    def at_a_record(trainer: Trainer) -> None:
        nonlocal take, began
        now = time.perf_counter()
        take = take or other(trainer)
        for number in range(_SLICE):
            take(trainer.progress.step + number)
        trainer.train_step.device.synchronize()
        if (
            2 * _SLICE < trainer.progress.step < (n + 2) * _SLICE
        ):  # the first slices warm up; the last record has final losses
            ours.append({"seconds": now - began})
            others.append({"seconds": time.perf_counter() - now})
        began = time.perf_counter()

    _run_watched(at_a_record, (*overrides, f"trainer.steps={_SLICE * (n + 2)}", f"trainer.log_every={_SLICE}"))
    return ours, others


def _run_watched(at_a_record: Callable[[Trainer], None], overrides: tuple[str, ...]) -> None:
    """Run without evaluations and saves on the way, and call at_a_record after each record."""
    from bigramlm.engine import run as recipe
    from bigramlm.logger import metrics
    from bigramlm.runs.folder import RunFolder
    from bigramlm.trainer import trainer
    from bigramlm.utils.stop import StopSignals

    watched: list[Trainer] = []

    class Watched(trainer.Trainer):
        def fit(self, metrics: Any) -> trainer.TrainResult:
            watched.append(self)
            return super().fit(metrics)

    class Watching(metrics.Metrics):
        def log(self, step: int, seconds: float, record: dict[str, float]) -> None:
            super().log(step, seconds, record)
            at_a_record(watched[0])

    rarely = ("trainer.eval_every=1000000", "trainer.checkpoint_every=1000000", "trainer.eval_batches=1")
    cfg = composed_config(*overrides, *rarely, "optim.warmup_steps=0")
    with (
        tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as place,
        mock.patch("bigramlm.engine.build.Trainer", Watched),
        mock.patch("bigramlm.engine.run.Metrics", Watching),
    ):
        folder = RunFolder(Path(place))
        folder.claim()
        recipe.run(cfg, Overrides(), folder, StopSignals(), recipe.JobContext())


def _profiled(n: int, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return what `Profile` takes, of n steps as a run with these overrides would take them."""
    found: dict[str, Any] = {}

    def at_a_record(trainer: Trainer) -> None:
        found["phases"], found["floors"] = _phases(trainer, n), _floors(trainer)

    _run_watched(at_a_record, (*overrides, "trainer.steps=0"))
    return found


def _phases(trainer: Trainer, n: int) -> dict[str, list[float]]:
    from torch.nn.utils import clip_grad_norm_

    phases: dict[str, list[float]] = {name: [] for name in ("batch", "forward", "backward", "clip", "optimizer")}
    take = trainer.train_step
    trainer.model.train()
    for number in range(n // 10 + n):  # the first warm up
        moments = [time.perf_counter()]

        def passed(moments: list[float] = moments) -> None:
            trainer.train_step.device.synchronize()
            moments.append(time.perf_counter())

        batch = trainer.batches[number]
        passed()
        losses = list(take.losses(batch))
        passed()
        for loss in losses:
            loss.backward()
        passed()
        if take.grad_clip:
            clip_grad_norm_(take.params, take.grad_clip)
        passed()
        take.optimizer.step()
        take.optimizer.zero_grad()
        passed()
        if number >= n // 10:
            for seconds, start, end in zip(phases.values(), moments, moments[1:], strict=False):
                seconds.append(end - start)
    return phases


def _floors(trainer: Trainer) -> dict[str, float]:
    import torch

    from bigramlm.device.peak import peak

    step, device = trainer.train_step, trainer.train_step.device
    flops = trainer.speed.flops_per_token * trainer.speed.tokens_per_step
    most, size = peak(device).flops, 1 << 26
    weights = sum(p.numel() for p in step.params)
    state = sum(
        value.numel() for of in step.optimizer.state.values() for value in of.values() if torch.is_tensor(value)
    )
    moved = 4 * (6 * weights + 2 * state)  # weights: read twice, then read and written; gradients and state: both
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
        f"{flops:.3g} operations of the model's products, at {most:.3g} a second": flops / most,
        f"{moved / 1e6:.3g} MB of weights, gradients and optimizer state, at {rate / 1e9:.3g} GB/s": moved / rate,
    }


def _bare_loop(trainer: Trainer) -> Step:
    """Build the step of a loop as one would write it down, with a copy of the Trainer's model."""
    from torch.nn.utils import clip_grad_norm_

    from bigramlm.data.batches import Batches

    model = copy.deepcopy(trainer.model)
    optim, device = trainer.schedule.optim, trainer.train_step.device
    optimizer = optim.build(model, compiled=False)
    rows = trainer.batches.tokens_per_batch // model.block_size
    batches = Batches(trainer.evaluator.splits["train"], batch_size=rows, seed=0)

    def take(n: int) -> None:
        x, y = batches[n]
        with device.autocast():
            _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        if optim.grad_clip:
            clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()

    return take
