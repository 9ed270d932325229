"""The names and addresses that may be requested from the network.

A file of somebody else, such as the config of a run, may name an address or a model. Such a name is requested only if
the user has typed it too, or if it is a default of this package.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

# The fields that request a download, and the parameters of a sweep over them.
_FIELDS = ("init_from", "base", "path", "url", "params")

_typed: list[Sequence[str]] = []


@contextlib.contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """Allow requests for the names in words that the user typed, in the block."""
    _typed.append(words)
    try:
        yield
    finally:
        _typed.remove(words)


def is_typed(name: str) -> bool:
    """Check whether the user typed an address or the name of a model."""
    whole = re.compile(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])")
    return any(whole.search(_requested(word)) for words in _typed for word in words)


def _requested(word: str) -> str:
    # The part of a word that can request a download. The name of a recipe or a folder may be that of a model by chance.
    field, equals, value = word.partition("=")
    is_request = not equals or field.startswith("--") or re.split(r"[.+]", field)[-1] in _FIELDS
    return (value or word) if is_request else ""
