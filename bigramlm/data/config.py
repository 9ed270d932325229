"""Which texts there are to train on, and the fields of the data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm import paths
from bigramlm.errors import require

if TYPE_CHECKING:
    from bigramlm.data.text import Text


@dataclass
class DataConfig:
    """What every text has: how it is split, and the shape of a batch."""

    name: str = MISSING
    """Which text this is; set by `data=NAME`."""
    block_size: int = 8
    """Tokens in a sequence (T): the longest context that a prediction sees."""
    batch_size: int = 32
    """Sequences in a batch (B)."""
    train_fraction: float = 0.9
    """The first this much of the text trains, the rest validates."""

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

    def read(self) -> Text:
        """The text itself, once prepared."""
        from bigramlm.data.text import read_text

        return read_text(self.file(), self.name)

    def file(self) -> Path:
        """The file that the text is in."""
        raise NotImplementedError


@dataclass
class TextConfig(DataConfig):
    """Any UTF-8 file: `data=text data.path=FILE`."""

    name: str = "text"
    path: str = MISSING
    """The file, from the working folder or absolute."""

    def prepare(self, *, the_same: bool = False) -> DataConfig:  # noqa: ARG002
        self.path = str(Path(self.path).expanduser().absolute())  # the saved config works from any folder
        return self

    def file(self) -> Path:
        return Path(self.path)


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
    """Where it is downloaded from; what comes must be the tutorial's text to the byte."""
    timeout: float = 5.0
    """Seconds without an answer after which the download is given up."""
    fallback: bool = True
    """Where the download fails: true takes the bundled text in its place, false is an error."""

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
}
