"""Benchmarks of single steps, in this process."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from functools import partial

from bigramlm.bench.measure import Comparison, Figures, alternate
from bigramlm.errors import require


def generate(pairs: int) -> Iterator[Comparison]:
    """1,000 characters from a fresh GPT of 6 layers, 384 wide, block 256: with the key/value cache against without"""
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
    """one thread against all cores, for steps of several sizes, on a quiet and on a busy machine: steps a second"""
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
