"""Failures that the user can mend, in one line: a full disk, too little memory."""

from __future__ import annotations

import errno
from pathlib import Path

from bigramlm.config.run_config import RunConfig
from bigramlm.errors import UserError

# Failures of the disk and its permissions that are the user's to mend.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_ERRORS = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}

# What PyTorch says on a CPU, on CUDA and on MPS.
_SAID = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def as_user_error(error: BaseException, folder: Path | None = None) -> BaseException:
    """Return the error as a UserError if it is one that the user can mend, such as a full disk; folder: written to."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        path = Path(error.filename or folder or "")
        while path.name.startswith("."):  # what is written aside first
            path = path.parent
        mend = "make room there" if error.errno in _FULL else "change its permissions"
        return UserError(f"{path}: cannot be written: {error.strerror}; {mend} or choose another folder")
    if is_out_of_memory(error):
        return UserError(f"out of memory: {(str(error) or 'there was none left').splitlines()[0]}")
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there was no memory left, on whatever device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)
    )


def out_of_memory(cfg: RunConfig, *, vocab_size: int) -> str:
    """Say what takes most of the memory, by a rough count, and what to lower."""
    if not cfg.model.trains:
        return f"out of memory: what is counted does not fit; take {cfg.model.how_to_shrink()}"
    batch, block, parts = cfg.data.batch_size, cfg.data.block_size, cfg.trainer.grad_accumulation
    n_params, in_blocks, around = cfg.model.estimate_size(vocab_size=vocab_size, block_size=block)
    again = cfg.trainer.activation_checkpointing
    activations = batch * block * ((in_blocks / 4 if again else in_blocks) + around)
    trained = "" if cfg.adapter.adapts else ", their gradients and the optimizer"
    model = (4 if trained else 1) * n_params  # weights, gradients, and the optimizer's two means
    given = cfg.init_from is not None
    smaller = cfg.model.how_to_shrink() if not given else "other weights" + (", or adapter=lora" if trained else "")
    needs = (
        f"out of memory: a step takes some {_size(activations)} for its data.batch_size={batch} x data.block_size="
        f"{block} tokens, and {_size(model)} for the weights{trained}"
    )
    if model > activations:
        return f"{needs}; make the model smaller: {smaller}"
    nearly = "nearly " if batch % 2 else ""
    less = [f"data.batch_size={batch // 2} with trainer.grad_accumulation={2 * parts} for {nearly}the same update"]
    if batch == 1:
        less = [f"data.block_size={max(1, block // 2)}"]
    if cfg.model.has_blocks and not again:
        less.append("trainer.activation_checkpointing=true")
    return f"{needs}; take {', or '.join(less)}"


def _size(n: float) -> str:
    # Of numbers in fp32.
    return f"{4 * n / 1e9:,.1f} GB" if n >= 2.5e7 else f"{4 * n / 1e6:,.1f} MB"
