"""Files from the Hugging Face hub, and what to say where there is no way to it."""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from pathlib import Path

# Seconds without an answer after which the hub is given up.
_TIMEOUT = 10


class NotFetched(Exception):
    """Why the hub did not give a file, in a line."""


class NotThere(NotFetched):
    """The model is on the hub, and has no such file."""


def is_name(text: str) -> bool:
    """Tell whether this could be what a model is called on the hub: `owner/name`, or a name alone."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", text) is not None


def has(name: str, file: str) -> bool:
    """Tell whether a model on the hub has a file; False also where nobody can tell."""
    from huggingface_hub import file_exists

    try:
        return bool(file_exists(name, file))
    except Exception:
        return False


def fetch(name: str, file: str) -> Path:
    """Return a file of a model on the hub, downloaded now or before. NotFetched if it is not available."""
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached)
        # Asked once, and not to be waited for: the hub's own library tries five times to find a network.
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(constants.ENDPOINT, timeout=_TIMEOUT).close()
        return Path(hf_hub_download(name, file))
    except Exception as error:  # of the network, of the hub and of what it answers
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        missing = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)
        raise (NotThere if missing else NotFetched)(reason[:200]) from None
