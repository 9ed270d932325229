"""Checks of the types of the public functions' arguments."""

from __future__ import annotations

import os
import reprlib

from bigramlm.config.extensions import names_in
from bigramlm.errors import UserError, require


def require_type(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    """Raise UserError unless the value of an argument has one of these types.

    expected: the types in words, for the message.
    """
    require(isinstance(value, types), f"{name}={reprlib.repr(value)}: must be {expected}")


def path_in(name: str, value: object) -> str:
    """Return the path that an argument contains, a str or a path object.

    Raises UserError for any other value, and for an empty path.
    """
    require_type(name, value, (str, os.PathLike), "a path, as a str or a pathlib.Path")
    assert isinstance(value, (str, os.PathLike))
    path = os.fspath(value)
    require(path != "", f"{name}={value!r}: is empty; give a path")
    return os.fsdecode(path)


def extensions_in(value: object) -> list[str]:
    """Return the names of the extensions in an argument.

    value: a file, `a.py,b.py`, or a list of files. Raises UserError for any other value.
    """
    if value is None or isinstance(value, str):
        return names_in(value)
    entries = [value] if isinstance(value, os.PathLike) else value
    require_type("extensions", entries, (list, tuple), "a Python file, or a list of Python files")
    assert isinstance(entries, (list, tuple))
    return [path_in("extensions", entry) for entry in entries]


def require_model(model: object) -> None:
    """Raise UserError unless `model` is None, a module or a callable that makes one."""
    if model is None or callable(model):
        return
    config = f'; for a model of the config, use the override "model={model}"' if isinstance(model, str) else ""
    raise UserError(
        f"model={reprlib.repr(model)}: must be a torch.nn.Module, or a function or class that makes one{config}"
    )
