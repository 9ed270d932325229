"""A check of tensors that were read from a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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
