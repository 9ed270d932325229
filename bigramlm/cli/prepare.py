"""The command `prepare`: encodes a text of any length into token files."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from bigramlm.cli.common import command, parse_fields
from bigramlm.config.run_config import prefer_our_presets, register_schemas
from bigramlm.data.config import DataConfig, PairsConfig, TokensConfig
from bigramlm.data.piped import keep_piped_text
from bigramlm.engine.command_line import refuse_ranks, set_up_hydra
from bigramlm.errors import require
from bigramlm.tokenizer.config import TokenizerConfig
from bigramlm.utils import paths
from bigramlm.utils.console import PlainFormatter, note, relative, show
from bigramlm.utils.files import refuse_dangling
from bigramlm.utils.stop import Stopped, stop_signals

log = logging.getLogger(__name__)

FREE_TEXT = ("data.path", "tokenizer.path", "output", "extensions")

_HELP = """\
Encodes a text of any length into token files, in constant memory and on all
cores. After an interruption the same command continues. Training encodes texts
that are too long for memory automatically, and reuses the files written here.

Usage: python scripts/prepare.py [FIELD=VALUE] ...

Fields and their current values (docs/config.md describes each):

{fields}
Examples:
  python scripts/prepare.py data.path=big.txt tokenizer=bpe
  python scripts/prepare.py data.path='crawl/*.jsonl.zst' data.text_field=content
  python scripts/prepare.py data=shakespeare tokenizer=bpe output=shakespeare-bpe"""


@dataclass
class PrepareCommand:
    """The fields of `python scripts/prepare.py`."""

    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    output: str | None = None
    """The folder for the token files. If null, a folder in outputs/prepared is used, where training finds the files."""
    extensions: Any = None
    """Python files with the tokenizer or dataset, as for training: `extensions=my_models.py`."""


@command
def main() -> None:
    """Run the command line: python scripts/prepare.py [FIELD=VALUE] ..."""
    refuse_ranks("prepare the whole text")
    set_up_hydra([argument for argument in sys.argv[1:] if not argument.startswith("-")])
    register()
    sys.argv[1:] = keep_piped_text(sys.argv[1:])
    console = logging.StreamHandler()
    console.setFormatter(PlainFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[console])
    for library in ("httpx", "huggingface_hub", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    command = parse_fields("prepare", PrepareCommand, _HELP, FREE_TEXT)
    if command is None:
        return
    try:
        with stop_signals():
            prepare(command)
    except Stopped as stopped:
        note(f"{stopped}; finished work is kept: run the same command again to continue")
        sys.exit(128 + stopped.signal)


def register() -> None:
    """Register the fields with Hydra."""
    register_schemas()
    ConfigStore.instance().store("prepare_schema", PrepareCommand)
    prefer_our_presets()


def prepare(cfg: PrepareCommand) -> None:
    """Write the token files of a text, unless they exist, and print their statistics.

    Raises UserError for data=tokens and data=pairs, if the output folder cannot be used, or if a token file is damaged.
    """
    require(
        not isinstance(cfg.data, TokensConfig),
        "data=tokens: this data is already encoded; choose a text to encode with data=text data.path=FILE",
    )
    require(
        not isinstance(cfg.data, PairsConfig),
        "data=pairs: token files cannot store which tokens belong to a prompt and which to a completion; train on the "
        "pairs directly, because training encodes them in memory",
    )
    from bigramlm.data import corpus
    from bigramlm.data.text import Text

    data = cfg.data.prepare()
    text = data.read()
    assert isinstance(text, Text)
    if cfg.output is None:
        token_files = corpus.prepare_cached(text, cfg.tokenizer, None, data.kept_in())
    else:
        folder = paths.typed(cfg.output, "output")
        refuse_dangling(folder)
        require(
            not folder.exists() or folder.is_dir(),
            f"output={cfg.output}: this is a file; choose a folder for the token files",
        )
        token_files = corpus.prepare(text, cfg.tokenizer, None, folder)
    token_files.verify()
    log.info("verified: both token files match their checksums")
    about = token_files.about
    lines = [
        f"Text: {about.name}, {about.n_characters:,} characters, {about.documents:,} "
        f"{'document' if about.documents == 1 else 'documents'}, {len(text.files):,} "
        f"{'file' if len(text.files) == 1 else 'files'}"
    ]
    lines.append(f"Tokenizer: {about.tokenizer['name']}, {about.vocab_size:,} tokens")
    for split, counts in token_files.splits.items():
        size = (token_files.folder / f"{split}.bin").stat().st_size
        each = counts.characters / max(1, counts.tokens)
        lines.append(
            f"{split.capitalize()}: {counts.tokens:,} tokens, {each:.2f} characters per token, {size / 1e6:,.1f} MB"
        )
    where = str(relative(token_files.folder))
    lines += [
        f"Files: {where}",
        f"Train on these files: {paths.program('train')} data=tokens {shlex.quote(f'data.path={where}')}",
    ]
    show("\n".join(lines))


if __name__ == "__main__":
    main()
