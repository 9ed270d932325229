"""The download of the tutorial's text."""

import hashlib
import http.client
import logging
import shlex
import time
import urllib.error
import urllib.request

from bigramlm.data.config import ShakespeareConfig
from bigramlm.errors import UserError, require
from bigramlm.utils import files, network
from bigramlm.utils.progress import bar

log = logging.getLogger(__name__)

SIZE = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

_CHUNK = 1 << 16
# The whole download may take this many times `data.timeout`, so that a very slow server cannot block a run for ever.
_MAX_TIMEOUTS = 12


def fetch(cfg: ShakespeareConfig, *, fallback: bool) -> bool:
    """Download sources/shakespeare.txt unless the file exists.

    Returns True if the file exists or was downloaded. fallback: if True, a failed download returns False, so that the
    caller uses the bundled text; if False, a failed download raises UserError. An existing file is never changed. If an
    existing file is not the tutorial's text, a warning is logged. Raises UserError if only a file names the address.
    """
    path = cfg.file()
    if path.exists():
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
            log.warning(
                "%s is not the tutorial's text, because its SHA-256 differs; the run uses this file anyway. To "
                "download the tutorial's text, delete the file",
                path,
            )
        return True
    require(
        cfg.url == ShakespeareConfig.url or network.is_typed(cfg.url),
        f"data.url={cfg.url}: the address comes from a file, and is requested only if you type it yourself: add "
        f"{shlex.quote(f'data.url={cfg.url}')}, or put the text at {path}",
    )
    try:
        content = download(cfg.url, cfg.timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error  # a bare URLError wraps the reason
        if not fallback:
            raise UserError(
                f"{path} does not exist and could not be downloaded from {cfg.url}: {reason}; "
                "put the file there yourself, or use data=bundled"
            ) from None
        log.warning(_NOT_SHAKESPEARE.format(url=cfg.url, reason=reason, path=path))
        return False
    files.make_folder(path.parent)
    files.write(path, [content])
    return True


def download(url: str, timeout: float) -> bytes:
    """Download the tutorial's text, and verify its size and SHA-256.

    Raises OSError (including time-outs and urllib's errors) or http.client.HTTPException if the download fails. Raises
    ValueError if the content is not the tutorial's text.
    """
    log.info("downloading %s", url)
    deadline = time.monotonic() + _MAX_TIMEOUTS * timeout
    content = bytearray()
    request = urllib.request.Request(url, headers={"User-Agent": "bigramlm"})
    with (
        urllib.request.urlopen(request, timeout=timeout) as response,
        bar(SIZE, unit="B", unit_scale=True, desc="shakespeare.txt") as progress,
    ):
        while chunk := response.read1(_CHUNK):
            content += chunk
            progress.update(len(chunk))
            if len(content) > SIZE:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"the download took more than {_MAX_TIMEOUTS * timeout:.0f} seconds")
    if len(content) != SIZE:
        more = "more than " if len(content) > SIZE else ""
        raise ValueError(f"received {more}{min(len(content), SIZE):,} bytes instead of the {SIZE:,} bytes of the text")
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"the download is not the tutorial's text: its SHA-256 is {digest}, not {SHA256}")
    return bytes(content)


_NOT_SHAKESPEARE = """
************************************************************************
*  NOT SHAKESPEARE: this run trains on the bundled text instead.       *
************************************************************************
   The download from {url}
   failed: {reason}
   Losses on the bundled text cannot be compared with losses on
   Shakespeare.
   To train on Shakespeare, put the file at
   {path}
   or run again with a network connection. data=bundled selects the
   bundled text explicitly. With data.fallback=false, a failed download
   stops the run with an error.
************************************************************************"""
