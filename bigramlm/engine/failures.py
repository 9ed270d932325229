"""One-line messages for failures that users can fix, e.g. a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from bigramlm.config.mistakes import CONFIG_ERRORS, explained
from bigramlm.config.run_config import RunConfig
from bigramlm.errors import UserError
from bigramlm.utils import files

_DISK_ERRORS = files.FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}

# Texts in PyTorch's out-of-memory messages on CPU, CUDA and MPS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class CommandExit(SystemExit):
    """The exit of a command with a code and, if any, the error that caused it.

    It is a SystemExit, because Hydra catches and prints all other exceptions.
    """

    def __init__(self, code: int, error: BaseException | None = None) -> None:
        """Exit with a code.

        error: the exception to report; None if it was reported already.
        """
        super().__init__(code)
        self.error = error


@contextlib.contextmanager
def errors_as_exits() -> Iterator[None]:
    """Convert an error in the block to CommandExit.

    The exit code is 2 for an error that the user can fix, and 130 for Ctrl-C. Any other error propagates.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise CommandExit(128 + signal.SIGINT) from None
    except Exception as raised:
        converted = as_user_error(raised)
        if not isinstance(converted, UserError):
            raise
        raise CommandExit(2, converted) from raised


def as_user_error(error: BaseException, folder: Path | None = None) -> BaseException:
    """Return the error as a UserError if the user can fix it, e.g. a full disk.

    The user can fix all errors in overrides and presets. folder: the folder that was written to. The message contains
    it if the error does not say which file failed. Other errors are returned unchanged.
    """
    if isinstance(error, CONFIG_ERRORS):
        return explained(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        if not (error.filename or folder):
            return files.unwritable("a file", error)
        path = Path(error.filename or folder or "")
        while path.name.startswith("."):  # a hidden file, such as the lock
            path = path.parent
        return files.unwritable(path, error)
    if is_out_of_memory(error):
        return UserError(f"out of memory: {(str(error) or 'no memory is left').splitlines()[0]}")
    return error


def normalise_full_error() -> None:
    """Give HYDRA_FULL_ERROR the only value that Hydra reads as yes, 1, or remove it.

    Empty, 0, false, no and off mean no; any other value means yes.
    """
    if os.environ.get("HYDRA_FULL_ERROR", "").strip().lower() in ("", "0", "false", "no", "off"):
        os.environ.pop("HYDRA_FULL_ERROR", None)
    else:
        os.environ["HYDRA_FULL_ERROR"] = "1"


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error means that host or device memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def out_of_memory(cfg: RunConfig, *, vocab_size: int, n_params: int | None = None) -> str:
    """Return a message with the estimated memory use and the settings to reduce.

    The estimate assumes that activations, weights, gradients and optimizer state are stored in fp32 (4 bytes per
    value). n_params: the number of the model's parameters, if known, for a model whose config estimates no size.
    """
    if not cfg.model.trains:
        return f"out of memory: the n-gram counts do not fit into memory; choose {cfg.model.how_to_shrink()}"
    batch, block = cfg.data.batch_size, cfg.data.block_size
    training_state = "" if cfg.adapter.adapts else ", their gradients and the optimizer"
    copies = 4 if training_state else 1  # weights, gradients, and the optimizer's two moments
    size = cfg.model.estimate_size(vocab_size=vocab_size, block_size=block)
    if size is None:
        weights = f"{_size(copies * n_params)} for its {n_params:,}" if n_params else "an unknown amount for its"
        return (
            f"out of memory: model={cfg.model.name} does not estimate its size; a step needs {weights} "
            f"weights{training_state}, and an unknown amount for the activations of data.batch_size={batch} x "
            f"data.block_size={block} tokens; use {_smaller_batch(cfg)}, or {cfg.model.how_to_shrink()}"
        )
    n_params, in_blocks, outside = size
    recomputes = cfg.trainer.activation_checkpointing
    activations = batch * block * ((in_blocks / 4 if recomputes else in_blocks) + outside)
    model = copies * n_params
    is_pretrained = cfg.init_from is not None
    if is_pretrained:
        fix = "start from the weights of a smaller model" + (", or use adapter=lora" if training_state else "")
    else:
        fix = f"make the model smaller: use {cfg.model.how_to_shrink()}"
    needs = (
        f"out of memory: a step needs about {_size(activations)} for the activations of data.batch_size={batch} x "
        f"data.block_size={block} tokens, and {_size(model)} for the weights{training_state}"
    )
    return f"{needs}; {fix}" if model > activations else f"{needs}; use {_smaller_batch(cfg)}"


def _smaller_batch(cfg: RunConfig) -> str:
    # The settings that halve the activations.
    batch, block = cfg.data.batch_size, cfg.data.block_size
    nearly = "nearly " if batch % 2 else ""
    update = f"which gives {nearly}the same update"
    accumulation = 2 * cfg.trainer.grad_accumulation
    options = [f"data.batch_size={batch // 2} with trainer.grad_accumulation={accumulation}, {update}"]
    if batch == 1:
        options = [f"data.block_size={max(1, block // 2)}"]
    if cfg.model.has_blocks and not cfg.trainer.activation_checkpointing:
        options.append("trainer.activation_checkpointing=true")
    return ", or ".join(options)


def _size(n: float) -> str:
    # The size of n values in fp32.
    return f"{4 * n / 1e9:,.1f} GB" if n >= 2.5e7 else f"{4 * n / 1e6:,.1f} MB"
