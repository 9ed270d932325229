"""Downloads from the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from pathlib import Path

# The timeout for a response of the Hub, in seconds.
_TIMEOUT = 10


class FetchError(Exception):
    """An error raised when a file cannot be fetched from the Hub.

    The message gives the reason in one line.
    """


class MissingFileError(FetchError):
    """An error raised when a model on the Hub does not contain the requested file."""


def is_name(text: str) -> bool:
    """Check whether a string is a valid model name, `owner/name` or `name`."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", text) is not None


def has(name: str, file: str) -> bool:
    """Check whether a model on the Hub contains a file.

    Returns False if the Hub cannot be reached.
    """
    from huggingface_hub import file_exists

    try:
        return bool(file_exists(name, file))
    except Exception:
        return False


def fetch(name: str, file: str) -> Path:
    """Return the local path of a model's file, downloading it if it is not cached.

    Raises MissingFileError if the model does not contain the file, and FetchError if the file cannot be fetched for
    another reason.
    """
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached)
        # Checks the connection once, because without a network the Hub's library would retry five times.
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(constants.ENDPOINT, timeout=_TIMEOUT).close()
        return Path(hf_hub_download(name, file))
    except Exception as error:  # the network and the Hub raise many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        missing = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)
        raise (MissingFileError if missing else FetchError)(reason[:200]) from None
