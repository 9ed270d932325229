"""Reading a text from a file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bigramlm.errors import UserError, require


@dataclass(frozen=True)
class Text:
    """A text with what identifies it."""

    name: str
    text: str
    sha256: str
    """Of the file's bytes."""


def read_text(path: Path, name: str) -> Text:
    """The text in a UTF-8 file, exactly as it stands there. UserError says what is wrong with the file."""
    require(not path.is_dir(), f"{path}: is a folder; give a text file in it (data.path=FILE)")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give one that exists (data.path=FILE)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}); "
            "convert it first, for instance with iconv -f latin1 -t utf-8"
        ) from None
    require(text != "", f"{path}: is empty; there is nothing to train on")
    return Text(name, text, hashlib.sha256(raw).hexdigest())


def split(text: str, train_fraction: float) -> tuple[str, str]:
    """The first train_fraction of the characters, and the rest."""
    n = int(train_fraction * len(text))
    return text[:n], text[n:]
