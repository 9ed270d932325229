"""The command `prepare`: a text, however long, as token files that training maps into memory."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from bigramlm.cli.common import command, fields_command
from bigramlm.config.run_config import prefer_our_presets, register_schemas
from bigramlm.data.config import DataConfig, PairsConfig, TokensConfig
from bigramlm.errors import require
from bigramlm.tokenizer.config import TokenizerConfig
from bigramlm.utils.console import relative, show
from bigramlm.utils.stop import Stopped, stop_signals

log = logging.getLogger(__name__)

FREE_TEXT = ("data.path", "tokenizer.path", "output")

_HELP = """\
Makes token files of a text, however long: in constant memory, on all cores, and
going on where it was interrupted. Training does the same by itself for a text
that is too long for memory, and finds what was made here.

Usage: python scripts/prepare.py [FIELD=VALUE] ...

Fields, with the values they have now (docs/config.md says what each means):

{fields}
Examples:
  python scripts/prepare.py data.path=big.txt tokenizer=bpe
  python scripts/prepare.py data.path='crawl/*.jsonl.zst' data.text_field=content
  python scripts/prepare.py data=shakespeare tokenizer=bpe output=shakespeare-bpe"""


@dataclass
class PrepareCommand:
    """The fields of `python scripts/prepare.py`, in addition to those of `data` and `tokenizer`."""

    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    output: str | None = None
    """The folder for the token files; else one in outputs/prepared, where training on a long text finds them."""


@command
def main() -> None:
    """Run the command line: python scripts/prepare.py [FIELD=VALUE] ..."""
    register()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for library in ("httpx", "huggingface_hub", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    command = fields_command("prepare", PrepareCommand, _HELP, FREE_TEXT)
    if command is None:
        return
    try:
        with stop_signals():
            prepare(command)
    except Stopped as stopped:
        print(f"{stopped}; what is done is kept, and the same command continues", file=sys.stderr)
        sys.exit(128 + stopped.signal)


def register() -> None:
    """Make the fields known to Hydra."""
    register_schemas()
    ConfigStore.instance().store("prepare_schema", PrepareCommand)
    prefer_our_presets()


def prepare(cfg: PrepareCommand) -> None:
    """Make the token files, or find them whole, and say what is in them. UserError where that cannot be."""
    require(
        not isinstance(cfg.data, TokensConfig), "data=tokens: are token files already; give the text, with data.path="
    )
    require(
        not isinstance(cfg.data, PairsConfig),
        "data=pairs: are kept in memory, and token files have no place for what is prompt and what completion; train "
        "on them as they are",
    )
    from bigramlm.data import corpus
    from bigramlm.data.text import Text

    data = cfg.data.prepare()
    text = data.read()
    assert isinstance(text, Text)
    if cfg.output is None:
        found = corpus.prepared(text, cfg.tokenizer, None, data.kept_in())
    else:
        folder = Path(cfg.output).expanduser().absolute()
        require(
            not folder.exists() or folder.is_dir(), f"output={cfg.output}: is a file; name a folder for the token files"
        )
        found = corpus.prepare(text, cfg.tokenizer, None, folder)
    found.verify()
    log.info("verified: both files are as they were written")
    about = found.about
    lines = [
        f"Text: {about.name}, {about.n_characters:,} characters, {about.documents:,} "
        f"{'document' if about.documents == 1 else 'documents'}, {len(text.files):,} "
        f"{'file' if len(text.files) == 1 else 'files'}"
    ]
    lines.append(f"Tokenizer: {about.tokenizer['name']}, {about.vocab_size:,} tokens")
    for split, counts in found.splits.items():
        size = (found.folder / f"{split}.bin").stat().st_size
        each = counts.characters / max(1, counts.tokens)
        lines.append(
            f"{split.capitalize()}: {counts.tokens:,} tokens, {each:.2f} characters each, {size / 1e6:,.1f} MB"
        )
    where = str(relative(found.folder))
    lines += [
        f"Files: {where}",
        f"Train on them: python scripts/train.py data=tokens {shlex.quote(f'data.path={where}')}",
    ]
    show("\n".join(lines))
