"""The texts to train on, and the fields of the data."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm.errors import require
from bigramlm.utils import paths

if TYPE_CHECKING:
    from bigramlm.data.pairs import Pairs
    from bigramlm.data.text import Text
    from bigramlm.data.tokens import TokenFiles


@dataclass
class DataConfig:
    """The fields of every text: how it is split, and the shape of a batch."""

    name: str = MISSING
    """The name of the text; set by `data=NAME`."""
    block_size: int = 8
    """Tokens in a sequence (T): the longest context that a prediction sees."""
    batch_size: int = 32
    """Sequences in a batch (B)."""
    train_fraction: float = 0.9
    """The first this much of the text trains, the rest validates. Where a document ends within a hundredth of the text
    behind that, the split is there."""

    def __post_init__(self) -> None:
        for name in ("block_size", "batch_size"):
            require(getattr(self, name) >= 1, f"data.{name}={getattr(self, name)}: must be 1 or more")
        require(
            0 < self.train_fraction < 1,
            f"data.train_fraction={self.train_fraction}: must be above 0 and below 1, so that both splits have text",
        )

    def prepare(self, *, the_same: bool = False) -> DataConfig:  # noqa: ARG002
        """See to it that the text is on this disk, and return the config of the text that is really used.

        the_same: no other text may take its place, since a run goes on with it.
        """
        return self

    def read(self) -> Text | TokenFiles | Pairs:
        """Read the text, once it is on the disk; a long one is not kept in memory. UserError says what is wrong."""
        from bigramlm.data.text import read_text

        return read_text(
            self.files(),
            name=self.name,
            field=self.field(),
            train_fraction=self.train_fraction,
            kept_at=self.kept_in() / "text.json",
        )

    def file(self) -> Path:
        """Return the text's file, or the glob of its files."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """Its files, in order."""
        return [self.file()]

    def field(self) -> str:
        """Return the field that a line of JSONL has its text in."""
        return "text"

    def kept_in(self) -> Path:
        """Return the folder for what is made of a long text once, and used again."""
        about = [str(self.file()), self.field(), self.train_fraction]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]+", "_", self.file().name)[:60].strip("._") or "text"
        return paths.home() / "outputs" / "prepared" / f"{name}-{key}"


@dataclass
class FilesConfig(DataConfig):
    """The fields of texts in files of the user's own."""

    path: str = MISSING
    """The file, or a glob such as `texts/**/*.txt`, from the working folder or absolute. Also *.jsonl, and either
    compressed, as *.gz or *.zst."""

    def prepare(self, *, the_same: bool = False) -> DataConfig:  # noqa: ARG002
        return replace(self, path=str(self.file()))  # the saved config works from any folder

    def file(self) -> Path:
        return Path(self.path).expanduser().absolute()

    def files(self) -> list[Path]:
        pattern = str(self.file())
        if not glob.has_magic(pattern) or self.file().exists():
            return [self.file()]
        matches = map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207 - Path's own takes no absolute one
        found = sorted(path for path in matches if path.is_file())
        require(bool(found), f"data.path={self.path}: matches no file; give a file that exists, or a glob of several")
        return found


@dataclass
class TextConfig(FilesConfig):
    """Any UTF-8 text, in a file or many: `data=text data.path=FILE`. A file is a document; a line of JSONL is one."""

    name: str = "text"
    text_field: str = "text"
    """The field that a line of JSONL has its text in."""

    def field(self) -> str:
        return self.text_field


@dataclass
class PairsConfig(FilesConfig):
    """Examples of prompt and completion, with a loss on completions alone: `data=pairs data.path=FILE.jsonl`.

    A line of JSONL is an example; `data.train_fraction` is of the examples.
    """

    name: str = "pairs"
    path: str = MISSING
    """The file, or a glob such as `pairs/**/*.jsonl`, from the working folder or absolute. Also compressed, as *.gz or
    *.zst."""
    prompt_field: str = "prompt"
    """The field that a line has its prompt in; it may be empty."""
    completion_field: str = "completion"
    """The field that a line has in it what is to follow the prompt."""
    block_size: int = 256
    """Tokens in a row (T) at the most: rows are as long as the longest example, if that is shorter. A longer example
    loses the beginning of its prompt."""

    def read(self) -> Pairs:
        from bigramlm.data.pairs import read_pairs

        return read_pairs(
            self.files(),
            name=self.name,
            prompt_field=self.prompt_field,
            completion_field=self.completion_field,
            train_fraction=self.train_fraction,
        )


@dataclass
class TokensConfig(DataConfig):
    """Token files that `prepare.py` made, and their tokenizer: `data=tokens data.path=FOLDER`.

    The text itself need not be there. `data.train_fraction` is theirs.
    """

    name: str = "tokens"
    path: str = MISSING
    """The folder, from the working folder or absolute."""

    def prepare(self, *, the_same: bool = False) -> DataConfig:  # noqa: ARG002
        return replace(self, path=str(self.file()))

    def read(self) -> TokenFiles:
        from bigramlm.data.tokens import open_tokens

        return open_tokens(self.file())

    def file(self) -> Path:
        return Path(self.path).expanduser().absolute()


@dataclass
class BundledConfig(DataConfig):
    """The play in verse that comes with bigramlm: needs no network."""

    name: str = "bundled"

    def file(self) -> Path:
        return paths.bundled_text()


@dataclass
class ShakespeareConfig(DataConfig):
    """The tutorial's text: sources/shakespeare.txt, downloaded where it is not there yet."""

    name: str = "shakespeare"
    url: str = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    """The address to download it from; the file must be the tutorial's text to the byte."""
    timeout: float = 5.0
    """Seconds without an answer after which the download is given up."""
    fallback: bool = True
    """If the download fails: true uses the bundled text instead, false is an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.timeout <= 3600, f"data.timeout={self.timeout}: must be above 0 seconds, and an hour at the most"
        )

    def prepare(self, *, the_same: bool = False) -> DataConfig:
        from bigramlm.data.shakespeare import fetch

        if fetch(self, fallback=self.fallback and not the_same):
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
