"""The benchmark of a step of GPT-2's shape."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from bigramlm.dev.bench.measure import Comparison, Figures, alternate
from bigramlm.dev.bench.steps import composed_config
from bigramlm.errors import require

if TYPE_CHECKING:
    from bigramlm.trainer.step import TrainStep

# Seconds for which a step is repeated.
MIN_SECONDS = 2.0


def gpt2(pairs: int) -> Iterator[Comparison]:
    """Compare the compiled with the uncompiled step of GPT-2 (124M parameters).

    The block size is 1,024 and tokens are random. The figures are tokens per second and the model FLOPs utilisation.
    """
    from bigramlm.trainer.compiled import CompiledStep
    from bigramlm.trainer.step import TrainStep

    work = Workload()
    compiled, uncompiled = alternate(pairs, work.prepare(CompiledStep), work.prepare(TrainStep))
    yield Comparison("tokens per second: compiled / uncompiled", compiled, uncompiled, "rate")
    yield Comparison(f"MFU, of {work.peak:.3g} FLOP/s: compiled / uncompiled", compiled, uncompiled, "mfu")


class Workload:
    """A model of GPT-2's shape, and a batch of random tokens, on the device."""

    def __init__(
        self,
        *,
        n_layer: int = 12,
        n_head: int = 12,
        n_embd: int = 768,
        block_size: int = 1024,
        batch_size: int = 0,
        device: str = "auto",
    ) -> None:
        """Build the model and the batch.

        batch_size: the number of rows; 0 chooses it by the memory of the device.
        """
        import torch

        from bigramlm.device.config import DeviceConfig
        from bigramlm.device.device import decide, set_up
        from bigramlm.device.peak import peak

        torch.manual_seed(0)
        shape = (f"model.n_layer={n_layer}", f"model.n_head={n_head}", f"model.n_embd={n_embd}", "model.dropout=0")
        self.cfg = composed_config("model=gpt2", *shape)
        # GPT-2's vocabulary size, rounded up to a multiple of 64.
        self.model = self.cfg.model.build(vocab_size=50304, block_size=block_size)
        self.batch_size = batch_size or _batch_size()
        self.tokens = self.batch_size * block_size
        self.device = set_up(decide(DeviceConfig(device), n_params=self.model.n_params(), tokens=self.tokens))
        self.peak = peak(self.device).flops
        ids = torch.randint(50257, (self.batch_size, block_size + 1), device=self.device.torch)
        self.batch = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def prepare(self, kind: type[TrainStep]) -> Callable[[], Figures]:
        """Build a step, and compile it; return a function that measures it.

        kind: TrainStep or CompiledStep. Raises UserError if the step cannot be compiled.
        """
        from bigramlm.trainer.compiled import CompiledStep

        model = copy.deepcopy(self.model).to(self.device.torch)
        optimizer = self.cfg.optim.build(model, compiled=kind is CompiledStep)
        step = kind(model, optimizer, self.device, grad_clip=1.0)
        if isinstance(step, CompiledStep):
            step(self.batch, 1e-4)
            require(
                step.is_compiled,
                "bench gpt2: the step cannot be compiled on this machine, so nothing can be compared",
            )
        return partial(self._measure, step)

    def _measure(self, step: TrainStep) -> Figures:
        self.device.synchronize()
        started, n = time.perf_counter(), 0
        while n < 3 or time.perf_counter() - started < MIN_SECONDS:
            step(self.batch, 1e-4)
            n += 1
            if self.device.torch.type == "cpu" or n % 10 == 0:  # on a GPU, steps are queued ahead
                self.device.synchronize()
        self.device.synchronize()
        rate = n * self.tokens / (time.perf_counter() - started)
        return {"rate": rate, "mfu": rate * step.model.flops_per_token() / self.peak}


def _batch_size() -> int:
    # 124M parameters in bf16 take some 1.5 GB for each row of 1,024 tokens, most of it for the logits.
    import torch

    if torch.cuda.is_available():
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
        return 16 if gigabytes > 36 else 4 if gigabytes > 11 else 1
    return 4 if torch.backends.mps.is_available() else 1
