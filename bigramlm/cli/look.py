"""The command `look`: writes a page that shows what a model has learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from bigramlm.cli.common import command, parse_fields
from bigramlm.config.extensions import import_extensions, names_in
from bigramlm.config.run_config import prefer_our_presets
from bigramlm.device.config import DeviceConfig
from bigramlm.errors import require
from bigramlm.utils import paths
from bigramlm.utils.console import note, relative, show

FREE_TEXT = ("run", "checkpoint", "base", "prompt", "text", "compare", "output", "extensions")

_HELP = """\
Writes a page that shows what a model has learned: its surprise at each token,
its table of pairs, what its heads attend to, what each layer would write, its
embeddings, and how all this came about. The page is one file that opens
without a network.

Usage: python scripts/look.py [FIELD=VALUE] ...

Fields and their current values (docs/config.md describes each):

{fields}
Examples:
  python scripts/look.py                               the newest run
  python scripts/look.py run=FOLDER prompt="To be, or not to be"
  python scripts/look.py text=my.txt output=page.html
  python scripts/look.py run=FOLDER compare=OTHER_FOLDER"""


@dataclass
class LookCommand:
    """The fields of `python scripts/look.py`."""

    run: str = "latest"
    """A run folder or a checkpoint folder; `latest` is the most recently started run."""
    checkpoint: str = "last"
    """The checkpoint of the run: `last` (the newest intact checkpoint), `best` (the lowest val loss) or a step."""
    prompt: str = ""
    """The passage to look at. If it is empty, and `text` too, a passage of the val split is taken."""
    text: str | None = None
    """A text file with the passage to look at."""
    compare: str | None = None
    """A second run or checkpoint: the page shows at which tokens which of the two is better."""
    output: str | None = None
    """The file to write, by default `look.html` in the run folder. Only such a page is overwritten."""
    extensions: Any = None
    """Python files with the model or tokenizer of the run, as for training: `extensions=my_models.py`."""
    base: str | None = None
    """The current location of an adapter's base weights, if they have moved since training."""
    device: DeviceConfig = field(default_factory=DeviceConfig)

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require(
            not (self.prompt and self.text is not None),
            f"prompt={self.prompt} text={self.text}: cannot be combined; omit prompt= or text=",
        )
        require(
            not self.device.compile,
            "device.compile=true: only training steps can be compiled; omit device.compile",
        )


@command
def main() -> None:
    """Run the command line: python scripts/look.py [FIELD=VALUE] ..."""
    register()
    command = parse_fields("look", LookCommand, _HELP, FREE_TEXT)
    if command is not None:
        write_page(command)


def register() -> None:
    """Register the fields with Hydra."""
    ConfigStore.instance().store("look_schema", LookCommand)
    prefer_our_presets()


def write_page(cfg: LookCommand) -> None:
    """Write the page, and print where it is and what is not on it.

    Raises UserError if the run, the passage or the file cannot be used.
    """
    from bigramlm.engine.load import open_checkpoint
    from bigramlm.look.inside import look
    from bigramlm.look.subject import open_subject

    import_extensions(names_in(cfg.extensions))
    subject = open_subject(open_checkpoint(cfg.run, cfg.checkpoint), cfg.device, base=cfg.base)
    other = None if cfg.compare is None else open_subject(open_checkpoint(cfg.compare), cfg.device)
    output = None if cfg.output is None else paths.typed(cfg.output, "output")
    path, content = look(subject, prompt=cfg.prompt, file=cfg.text, output=output, other=other)
    for sentence in content.notes:
        note(sentence)
    show(f"Page: {relative(path)}")


if __name__ == "__main__":
    main()
