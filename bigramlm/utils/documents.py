"""Reading of files that anyone may have made, e.g. those of a run from elsewhere.

A file is read only if it is a regular file of a bounded size: opening a pipe would wait, and a device or a sparse file
may have no end.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import stat
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 24
"""The maximum size of a JSON file."""
_MAX_YAML = 1 << 21
_MAX_DEPTH = 50
# The maximum number of characters of an integer, so that it can be a float, and a text, in which Python allows 4300
# digits.
_MAX_DIGITS = 100


def read(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises OSError if it cannot be read, and ValueError for anything else than such a file.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1) or b""
        while len(content) <= limit and (block := file.read(limit + 1 - len(content))):
            content += block
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    return content


def no_link(path: Path) -> Path:
    """Return the path of a file in a run or sweep folder, if it is not a link.

    A folder of someone else could otherwise put a private file of this machine into a report. A link is warned of once.
    Raises ValueError if it is one.
    """
    if path.is_symlink():
        _warn_of_link(path)
        raise ValueError("it is a link")
    return path


@functools.cache
def _warn_of_link(path: Path) -> None:
    log.warning(
        "%s is a link, so it is not read: the folder may come from someone else; replace it by what it leads to", path
    )


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes.

    Raises OSError if it cannot be opened, and ValueError for anything else than such a file.
    """
    # Without waiting: a pipe may be put in the place of a file at any moment.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = open(descriptor, "rb")  # noqa: PTH123, SIM115 - it is open already, and returned
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_json(path: Path, *, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file. Raises OSError or ValueError if it cannot be read."""
    return parse_json(read(path, limit=limit).decode())


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises ValueError if it is invalid, nested too deeply, or contains an integer of too many digits.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it contains an integer of {len(digits):,} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def read_yaml_text(path: Path) -> str:
    """Read a YAML file that is small, not deep, and free of aliases and tags.

    A few aliases of aliases could stand for millions of values, and a tag for a value of any type, e.g. a date. Raises
    OSError or ValueError if it cannot be read.
    """
    import yaml

    text, depth = read(path, limit=_MAX_YAML).decode(), 0
    try:
        for event in yaml.parse(text, _loader()):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ValueError("it contains an anchor or an alias of YAML")
            if getattr(event, "tag", None) is not None:
                raise ValueError(f"it contains a tag of YAML, {event.tag!r:.60}")
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > _MAX_DIGITS:
                _refuse_integer(event.value)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError("it is nested too deeply")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no valid YAML: {(str(error) or 'nested too deeply').splitlines()[0]}") from None
    return text


def _refuse_integer(text: str) -> None:
    # It may be hexadecimal, or have colons between its digits.
    kinds = _loader().yaml_implicit_resolvers.get(text[0], [])
    if any(tag.endswith(":int") and pattern.match(text) for tag, pattern in kinds):
        _integer(text)


def read_yaml(path: Path) -> Any:
    """Read a YAML file as OmegaConf does, e.g. 1e-3 as a number.

    Raises OSError or ValueError if it cannot be read.
    """
    import yaml

    text = read_yaml_text(path)
    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no valid YAML: {str(error).splitlines()[0]}") from None


def open_own(path: Path, mode: str) -> TextIOWrapper:
    """Open a text file of ours to append to it, but never through a link."""
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    return open(  # type: ignore[return-value]
        path,
        mode,
        buffering=1,
        encoding="utf-8",
        newline="",
        opener=lambda at, flags: os.open(at, flags | no_follow, 0o666),
    )


@functools.cache
def _loader() -> Any:
    # The parser in C takes a tenth of the time.
    import yaml
    from omegaconf._utils import get_yaml_loader

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    Loader.yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers
    return Loader
