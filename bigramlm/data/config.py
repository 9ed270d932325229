"""The config of the training text: the classes that `data=NAME` selects."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from bigramlm.errors import require, require_choice
from bigramlm.utils import paths
from bigramlm.utils.files import refuse_dangling
from bigramlm.utils.globs import matching_files

if TYPE_CHECKING:
    from bigramlm.data.pairs import Pairs
    from bigramlm.data.text import Text
    from bigramlm.data.tokens import TokenFiles


FORMATS = ("auto", "text", "jsonl", "json", "suffix")
"""The values of `data.format`."""


@dataclass
class DataConfig:
    """The fields common to all texts: batch shape and train/val split."""

    name: str = MISSING
    """The name of the text, set by `data=NAME`."""
    block_size: int = 8
    """The number of tokens per sequence (T): the maximum context length of a prediction."""
    batch_size: int = 32
    """The number of sequences per batch (B)."""
    train_fraction: float = 0.9
    """The fraction of the text used for training, from its start; the rest is used for validation. If a document ends
    shortly after this split point (at most a hundredth of the text later), the split point moves to this end."""

    def __post_init__(self) -> None:
        for name in ("block_size", "batch_size"):
            require(getattr(self, name) >= 1, f"data.{name}={getattr(self, name)}: must be 1 or more")
        require(
            0 < self.train_fraction < 1,
            f"data.train_fraction={self.train_fraction}: must be above 0 and below 1, so that neither split is empty",
        )

    def prepare(self, *, require_same: bool = False) -> DataConfig:  # noqa: ARG002
        """Ensure that the text is on disk, and return the config of the text to use.

        require_same: if True, the bundled text must not replace a text that cannot be downloaded, because a resumed run
        needs the same text. Raises UserError if the text cannot be obtained.
        """
        return self

    def read(self) -> Text | TokenFiles | Pairs:
        """Read the text from disk.

        A long text is not kept in memory. Raises UserError if the files cannot be used.
        """
        from bigramlm.data.text import read_text

        return read_text(
            self.files(),
            name=self.name,
            field=self.field(),
            format=self.file_format(),
            train_fraction=self.train_fraction,
            kept_at=self.kept_in() / "text.json",
        )

    def file(self) -> Path:
        """Return the path of the text: a file, a folder, or a glob that matches files."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """Return the files of the text, in order."""
        return [self.file()]

    def field(self) -> str:
        """Return the name of the JSONL field that contains the text."""
        return "text"

    def file_format(self) -> str:
        """Return the format of the files, a value of `data.format`."""
        return "auto"

    def kept_in(self) -> Path:
        """Return the cache folder for the description and token files of a long text."""
        about = [str(self.file()), self.field(), self.train_fraction]
        if self.file_format() not in ("auto", "suffix"):
            about.append(self.file_format())
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]+", "_", self.file().name)[:60].strip("._") or "text"
        return paths.home() / "outputs" / "prepared" / f"{name}-{key}"


@dataclass
class FilesConfig(DataConfig):
    """The fields common to texts in the user's files."""

    path: str = MISSING
    """The text file, or a glob such as `texts/**/*.txt` that matches several files, relative to the working folder or
    absolute. Files may be compressed (gzip, zstd, bzip2 or xz)."""
    format: str = "auto"
    """The format of the files: `text`, `jsonl` (one JSON object per line), `json` (an array of objects, or objects one
    after the other), or `auto`, which recognises it from the content. The saved config has the recognised format;
    `auto` remains if the files differ. `suffix` reads files as version 0.1 did, by their names."""

    takes_text: ClassVar[bool] = True  # False if the files must be JSON

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("data.format", self.format, FORMATS)

    def prepare(self, *, require_same: bool = False) -> DataConfig:  # noqa: ARG002
        from bigramlm.data.formats import resolve_format
        from bigramlm.data.text import file_size

        files = self.files()
        for path in files:
            file_size(path)  # raises UserError if the file cannot be read
        format = resolve_format(files, self.field(), warn=self.takes_text) if self.format == "auto" else self.format
        if format == "text" and not self.takes_text:
            format = "auto"  # reading the file says what it must contain
        return replace(self, path=str(self.file()), format=format)  # the saved config works from any folder

    def file_format(self) -> str:
        return self.format

    def file(self) -> Path:
        return paths.typed_pattern(self.path, "data.path")

    def files(self) -> list[Path]:
        pattern = self.file()
        if os.path.lexists(pattern):
            return [pattern]
        is_pattern = glob.has_magic(str(pattern))
        found = matching_files(pattern) if is_pattern else []
        refuse_dangling(pattern)
        advice = None if found else _advice(self.path)
        require(advice is None, f"data.path={self.path}: there is no such file; {advice}")
        require(
            bool(found) or not is_pattern,
            f"data.path={self.path} matches no file; give an existing file or a different glob",
        )
        return found or [pattern]  # reading the file says that it does not exist


def _advice(path: str) -> str | None:
    # What to type instead of a path that does not exist, if it is an address or a list; otherwise None.
    if path == "-":
        return "for standard input, write data.path=/dev/stdin"
    if path.startswith("file://"):
        return f"write data.path={path.removeprefix('file://')}"
    if re.match(r"\w+://", path):
        return f"this is an address: download the text first, e.g. with curl -L -o text.txt {path}"
    return "for several files, give a pattern, e.g. 'data.path=texts/*.txt'" if "," in path else None


@dataclass
class TextConfig(FilesConfig):
    """A UTF-8 text in one or more files: `data=text data.path=FILE`.

    A plain text file is one document. In JSON Lines and in other JSON, each object is one document.
    """

    name: str = "text"
    text_field: str = "text"
    """The name of the JSON field that contains the text."""

    def field(self) -> str:
        return self.text_field


@dataclass
class PairsConfig(FilesConfig):
    """Prompt-completion pairs: `data=pairs data.path=FILE.jsonl`.

    Each line of JSON Lines, or each item of a JSON array, is one example, a prompt and its completion. The loss is
    computed on the completions only. `data.train_fraction` is the fraction of examples used for training, taken from
    the start of the data; the rest are used for validation.
    """

    name: str = "pairs"
    path: str = MISSING
    """The file of JSON Lines or with a JSON array, or a glob such as `pairs/**/*.jsonl` that matches several files,
    relative to the working folder or absolute. Files may be compressed (gzip, zstd, bzip2 or xz)."""
    prompt_field: str = "prompt"
    """The name of the JSON field that contains the prompt. A prompt may be empty."""
    completion_field: str = "completion"
    """The name of the JSON field that contains the completion. A completion must not be empty."""
    block_size: int = 256
    """The maximum number of tokens per row (T). If all examples are shorter, rows are as long as the longest example.
    If an example is longer, its prompt is truncated from the left and, if necessary, its completion from the right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.format != "text",
            "data.format=text: pairs are JSON objects with a prompt and a completion; use data.format=jsonl or json, "
            "or data=text",
        )

    takes_text: ClassVar[bool] = False

    def field(self) -> str:
        return self.prompt_field

    def read(self) -> Pairs:
        from bigramlm.data.pairs import read_pairs

        return read_pairs(
            self.files(),
            name=self.name,
            prompt_field=self.prompt_field,
            completion_field=self.completion_field,
            format=self.format,
            train_fraction=self.train_fraction,
        )


@dataclass
class TokensConfig(DataConfig):
    """Token files made by `prepare.py`: `data=tokens data.path=FOLDER`.

    The folder includes the tokenizer, and the text is not needed. The split was fixed when the files were made, so
    `data.train_fraction` cannot be changed.
    """

    name: str = "tokens"
    path: str = MISSING
    """The folder of the token files, relative to the working folder or absolute."""

    def prepare(self, *, require_same: bool = False) -> DataConfig:  # noqa: ARG002
        return replace(self, path=str(self.file()))

    def read(self) -> TokenFiles:
        from bigramlm.data.tokens import open_tokens

        return open_tokens(self.file())

    def file(self) -> Path:
        folder = paths.typed(self.path, "data.path")
        require(
            not folder.is_file(),
            f"data.path={self.path} is a file, but data=tokens needs a folder that {paths.program('prepare')} made; to "
            "train on a text, use data=text",
        )
        return folder


@dataclass
class BundledConfig(DataConfig):
    """The verse play that is included in bigramlm and needs no download."""

    name: str = "bundled"

    def file(self) -> Path:
        return paths.bundled_text()


@dataclass
class ShakespeareConfig(DataConfig):
    """The tutorial's text: sources/shakespeare.txt, downloaded if it is missing."""

    name: str = "shakespeare"
    url: str = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    """The URL of the text; the downloaded file must be byte-identical to the tutorial's text."""
    timeout: float = 5.0
    """The number of seconds without a response after which the download fails."""
    fallback: bool = True
    """If true, a run whose download fails uses the bundled text instead. If false, it stops with an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.timeout <= 3600, f"data.timeout={self.timeout}: must be above 0 and at most 3600 seconds")

    def prepare(self, *, require_same: bool = False) -> DataConfig:
        from bigramlm.data.shakespeare import fetch

        if fetch(self, fallback=self.fallback and not require_same):
            return self
        shared = {f.name: getattr(self, f.name) for f in fields(DataConfig) if f.name != "name"}
        return BundledConfig(**shared)

    def file(self) -> Path:
        return paths.home() / "sources" / "shakespeare.txt"


DATASETS: dict[str, type[DataConfig]] = {
    "shakespeare": ShakespeareConfig,
    "bundled": BundledConfig,
    "text": TextConfig,
    "pairs": PairsConfig,
    "tokens": TokensConfig,
}
