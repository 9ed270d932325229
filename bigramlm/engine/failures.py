"""One-line messages for failures that the user can fix: full disk, no memory."""

from __future__ import annotations

import errno
from pathlib import Path

from bigramlm.config.run_config import RunConfig
from bigramlm.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_ERRORS = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}

# Parts of PyTorch's out-of-memory messages on CPU, CUDA and MPS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def as_user_error(error: BaseException, folder: Path | None = None) -> BaseException:
    """Return the error as a UserError if the user can fix it, e.g. a full disk.

    folder: the folder that was written to, named if the error names no file. Other errors are returned unchanged.
    """
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        path = Path(error.filename or folder or "")
        while path.name.startswith("."):  # the hidden temporary file or folder of a write
            path = path.parent
        fix = "free some space" if error.errno in _FULL else "change its permissions"
        return UserError(f"{path}: cannot be written: {error.strerror}; {fix} or choose another folder")
    if is_out_of_memory(error):
        return UserError(f"out of memory: {(str(error) or 'no memory is left').splitlines()[0]}")
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that host or device memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def out_of_memory(cfg: RunConfig, *, vocab_size: int) -> str:
    """Return a message that estimates the memory use and names what to lower.

    The estimate counts fp32 values (4 bytes each) of activations, weights, gradients and optimizer state.
    """
    if not cfg.model.trains:
        return f"out of memory: the n-gram counts do not fit; choose {cfg.model.how_to_shrink()}"
    batch, block, parts = cfg.data.batch_size, cfg.data.block_size, cfg.trainer.grad_accumulation
    n_params, in_blocks, outside = cfg.model.estimate_size(vocab_size=vocab_size, block_size=block)
    recomputes = cfg.trainer.activation_checkpointing
    activations = batch * block * ((in_blocks / 4 if recomputes else in_blocks) + outside)
    training_state = "" if cfg.adapter.adapts else ", their gradients and the optimizer"
    model = (4 if training_state else 1) * n_params  # weights, gradients, and the optimizer's two means
    is_pretrained = cfg.init_from is not None
    if is_pretrained:
        smaller = "other weights" + (", or adapter=lora" if training_state else "")
    else:
        smaller = cfg.model.how_to_shrink()
    needs = (
        f"out of memory: a step takes about {_size(activations)} for its data.batch_size={batch} x data.block_size="
        f"{block} tokens, and {_size(model)} for the weights{training_state}"
    )
    if model > activations:
        return f"{needs}; make the model smaller: use {smaller}"
    nearly = "nearly " if batch % 2 else ""
    options = [f"data.batch_size={batch // 2} with trainer.grad_accumulation={2 * parts} for {nearly}the same update"]
    if batch == 1:
        options = [f"data.block_size={max(1, block // 2)}"]
    if cfg.model.has_blocks and not recomputes:
        options.append("trainer.activation_checkpointing=true")
    return f"{needs}; use {', or '.join(options)}"


def _size(n: float) -> str:
    # The size of n values in fp32.
    return f"{4 * n / 1e9:,.1f} GB" if n >= 2.5e7 else f"{4 * n / 1e6:,.1f} MB"
