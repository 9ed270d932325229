"""What to lower when memory runs out."""

from __future__ import annotations

from bigramlm.config import RunConfig

# What allocators of PyTorch and NumPy say, on a CPU, on CUDA and on MPS.
_SAID = ("can't allocate memory", "out of memory", "Unable to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on whatever device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)
    )


def out_of_memory(cfg: RunConfig, *, vocab_size: int) -> str:
    """What takes most of the memory, by a rough count, and what to lower."""
    batch, block, parts = cfg.data.batch_size, cfg.data.block_size, cfg.trainer.grad_accumulation
    n_params, kept = cfg.model.numbers(vocab_size=vocab_size, block_size=block)
    again = cfg.trainer.activation_checkpointing
    activations = batch * block * (kept / 4 if again else kept)
    model = 4 * n_params  # weights, gradients, and the optimizer's two means
    needs = (
        f"out of memory: a step takes some {_size(activations)} for its data.batch_size={batch} x data.block_size="
        f"{block} tokens, and {_size(model)} for the weights, their gradients and the optimizer"
    )
    if model > activations:
        return f"{needs}; make the model smaller: {cfg.model.smaller()}"
    less = [f"data.batch_size={batch // 2} with trainer.grad_accumulation={2 * parts} for the same update"]
    if batch == 1:
        less = [f"data.block_size={max(1, block // 2)}"]
    if cfg.model.has_blocks and not again:
        less.append("trainer.activation_checkpointing=true")
    return f"{needs}; take {', or '.join(less)}"


def _size(n: float) -> str:
    # Of numbers in fp32.
    return f"{4 * n / 1e9:,.1f} GB" if n >= 2.5e7 else f"{4 * n / 1e6:,.1f} MB"
