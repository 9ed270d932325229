"""Downloads from the Hugging Face Hub, and the cache of its library.

The environment variables of the library are obeyed: HF_HOME and HF_HUB_CACHE move the cache, and HF_HUB_OFFLINE=1
and TRANSFORMERS_OFFLINE=1 forbid any use of the network.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bigramlm.utils import network

DEFAULT = "openai-community/gpt2"
"""The model whose name is a default of fields and recipes."""

# The timeout for a response of the Hub, in seconds.
_TIMEOUT = 10


class FetchError(Exception):
    """An error raised when a file cannot be fetched from the Hub.

    The message gives the reason in one line.
    """


class NotTypedError(FetchError):
    """An error raised for a model that only a file names, and not the user."""


class MissingFileError(FetchError):
    """An error raised when a model on the Hub does not contain the requested file."""


def is_name(text: str) -> bool:
    """Check whether a string is a valid model name, `owner/name` or `name`."""
    is_valid = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text, re.ASCII) is not None and len(text) <= 96
    return is_valid and not re.search(r"--|\.\.|[-.](/|$)|\.git$", text) and not re.match(_SITE, text)


# The ways in which an address of the hub begins. (`[:/]` ends the name of the site.)
_SITE = r"(https?://|git@|hf://)?(www\.)?(huggingface\.co|hf\.co)[:/]|hf://"


def name_in(text: str) -> str | None:
    """Return the model name that an address or a folder name of the Hub contains.

    Examples are https://huggingface.co/owner/name/tree/main, models--owner--name and owner/name/. Returns None for
    any other string.
    """
    rest = re.sub(_SITE, "", text, count=1)
    if text.startswith("models--"):
        name = text.removeprefix("models--").replace("--", "/")
    elif rest == text:
        name = text.rstrip("/") if text.endswith("/") else ""
    else:
        name = re.split(r"/(?:tree|blob|resolve|raw|discussions)\b|[?#]|@", rest)[0].rstrip("/").removesuffix(".git")
    return name if is_name(name) else None


def has(name: str, file: str) -> bool:
    """Check whether a model on the Hub contains a file.

    Returns False if the Hub cannot be reached, or must not be asked for this model, and the file is not cached.
    """
    from huggingface_hub import file_exists

    try:
        return cached(name, file) is not None or (_is_allowed(name) and bool(file_exists(name, file)))
    except Exception:
        return False


def cached(name: str, file: str) -> Path | None:
    """Return the path of a model's file in the cache, or None if it is not cached.

    Raises MissingFileError if the cache records that the model does not contain the file.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    if found is None or isinstance(found, str):
        return None if found is None else Path(found)
    raise MissingFileError(f"{name} contains no {file}, as the cache records")


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model or an adapter in the cache.

    The network is not used. Returns None if the model is not cached.
    """
    for file in ("config.json", "adapter_config.json"):
        with contextlib.suppress(Exception):
            if (found := cached(name, file)) is not None:
                return found.parent
    return None


def fetch(name: str, file: str) -> Path:
    """Return the local path of a model's file, downloading it if it is not cached.

    Raises MissingFileError if the model does not contain the file, NotTypedError if it would have to be downloaded and
    only a file names the model, and FetchError if the file cannot be fetched for another reason.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        found = cached(name, file)
        if found is not None:
            return found
        if constants.HF_HUB_OFFLINE:
            variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
            raise FetchError(f"{variable} is set, and {file} is not in the cache, {constants.HF_HUB_CACHE}")
        if not _is_allowed(name):
            raise NotTypedError(f"{name} is named by a file, and is downloaded only if you type the name yourself")
        # Checks the connection once, because without a network the Hub's library would retry five times.
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(constants.ENDPOINT, timeout=_TIMEOUT).close()
        return Path(hf_hub_download(name, file))
    except FetchError:
        raise
    except Exception as error:  # the network and the Hub raise many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        missing = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)
        raise (MissingFileError if missing else FetchError)(reason[:200]) from None


def _is_allowed(name: str) -> bool:
    return name == DEFAULT or network.is_typed(name)


def fetch_first(name: str, *alternatives: Sequence[str]) -> list[Path]:
    """Return the local paths of the first of several groups of files.

    A later group is used if the model does not contain the earlier ones, or if only the later group is cached and the
    Hub cannot be reached. Raises MissingFileError if the model contains no group, and FetchError if a group cannot be
    fetched for another reason.
    """
    missing: MissingFileError | None = None
    failed: FetchError | None = None
    for group in alternatives:
        try:
            if failed is None:
                return [fetch(name, file) for file in group]
            paths = [path for file in group if (path := cached(name, file)) is not None]
            if len(paths) == len(group):
                return paths
        except MissingFileError as error:
            missing = error
        except FetchError as error:
            failed = error
    raise failed or missing or FetchError("no file was asked for")
