"""Checks of tensors that were read from a file, and the writing of such files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.errors import UserError, require

if TYPE_CHECKING:
    from torch import Tensor, dtype


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let safetensors write a file in the block, in the way of other files.

    The umask decides who may read the file, which otherwise only its owner could. Raises OSError if the file cannot be
    written.
    """
    from safetensors import SafetensorError

    path.touch()
    mode = path.stat().st_mode
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error)) if os.name == "posix" else None
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from error
    path.chmod(stat.S_IMODE(mode))


def require_finite(file: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise UserError if a tensor of a file holds NaN or infinity.

    A single such value makes every loss NaN, which looks like a mistake in the model or in its settings. tensors: the
    tensors with their names in the file. Integers are not checked.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            value = "NaN" if bool(tensor.isnan().any()) else "infinity"
            raise UserError(
                f"{file}: {name} holds {value}: the file is damaged; use a different copy of the file, or other weights"
            )


def require_same_kind(file: Path, name: str, tensor: Tensor, to: dtype) -> None:
    """Raise UserError unless a tensor of a file has a type, or a similar one.

    Similar are floating-point numbers of at least 16 bits. Integers or 8-bit numbers in the place of weights mean
    something only together with their scales. name: the name of the tensor in the file.
    """
    require(
        tensor.dtype == to or (_is_wide_float(tensor.dtype) and _is_wide_float(to)),
        f"{file}: {name} is of type {_name(tensor.dtype)} instead of {_name(to)}; use an unchanged copy of the file",
    )


def _is_wide_float(kind: dtype) -> bool:
    return kind.is_floating_point and kind.itemsize > 1


def _name(kind: dtype) -> str:
    return str(kind).removeprefix("torch.")


def require_trainable(file: Path, name: str, tensor: Tensor, to: dtype) -> Tensor:
    """Convert a tensor of a file to the type of a model's parameter.

    name: the name of the tensor in the file. Raises UserError for weights that are quantised, i.e. not floating-point
    numbers of at least 16 bits, because they mean something only together with their scales; and for weights that are
    not finite in the new type.
    """
    require(
        _is_wide_float(tensor.dtype),
        f"{file}: {name} is of type {_name(tensor.dtype)}: quantised weights cannot be trained; "
        "use a copy of the model in fp32, fp16 or bf16",
    )
    converted = tensor.to(to)
    require_finite(file, [(name, converted)])
    return converted
