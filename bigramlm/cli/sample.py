"""The command `sample`: generates text with the model of a run or a checkpoint."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_store import ConfigStore

from bigramlm.cli.common import command, parse_fields
from bigramlm.config.extensions import import_extensions, names_in
from bigramlm.config.run_config import SampleConfig, prefer_our_presets
from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require
from bigramlm.utils import paths
from bigramlm.utils.console import is_terminal, note, relative, show
from bigramlm.utils.files import refuse_dangling

if TYPE_CHECKING:
    from torch import Tensor

    from bigramlm.tokenizer.base import Tokenizer

# Preceding tokens that can affect how a new token is decoded.
_CONTEXT = 4

FREE_TEXT = ("run", "checkpoint", "base", "prompt", "prompts_file", "extensions")

_HELP = """\
Writes text with a trained model. A run folder, or a checkpoint alone, contains
everything that is needed: weights, config and tokenizer.

Usage: python scripts/sample.py [FIELD=VALUE] ...

Fields and their current values (docs/config.md describes each):

{fields}
Examples:
  python scripts/sample.py                             the newest run
  python scripts/sample.py prompt="ROMEO:" temperature=0.8 top_k=20
  python scripts/sample.py run=FOLDER checkpoint=best num_samples=5
  python scripts/sample.py prompts_file=prompts.txt > completions.jsonl"""


@dataclass
class SampleCommand(SampleConfig):
    """The fields of `python scripts/sample.py`."""

    run: str = "latest"
    """A run folder or a checkpoint folder; `latest` is the most recently started run."""
    checkpoint: str = "last"
    """The checkpoint of the run: `last` (the newest intact checkpoint), `best` (the lowest val loss) or a step."""
    extensions: Any = None
    """Python files with the model or tokenizer of the run, as for training: `extensions=my_models.py`."""
    base: str | None = None
    """The current location of an adapter's base weights, if they have moved since training."""
    num_samples: int = 1
    """The number of texts per prompt."""
    prompts_file: str | None = None
    """A file with prompts to continue: one per line, or JSON Lines or a JSON array (`*.json`) of strings or of objects
    with a `prompt`. For standard input, give -. The output has one JSON object with `prompt` and `completion` per
    line."""
    seed: int = 1337
    """The random seed for sampling."""
    device: DeviceConfig = field(default_factory=DeviceConfig)

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_samples >= 1, f"num_samples={self.num_samples}: must be 1 or more")
        require(0 <= self.seed < 2**62, f"seed={self.seed}: must be 0 or more and below 2**62")
        require(
            self.prompts_file is None or self.prompt == "",
            f"prompt={self.prompt} prompts_file={self.prompts_file}: cannot be combined; omit prompt= or prompts_file=",
        )
        require(
            not self.device.compile,
            "device.compile=true: only training steps can be compiled; omit device.compile",
        )


@command
def main() -> None:
    """Run the command line: python scripts/sample.py [FIELD=VALUE] ..."""
    register()
    command = parse_fields("sample", SampleCommand, _HELP, FREE_TEXT)
    if command is not None:
        sample(command)


def register() -> None:
    """Register the fields with Hydra."""
    ConfigStore.instance().store("sample_schema", SampleCommand)
    prefer_our_presets()


def sample(cfg: SampleCommand) -> None:
    """Print text sampled from the model.

    Raises UserError, before any text is printed, if the checkpoint, a prompt or the device cannot be used.
    """
    from_file = cfg.prompts_file is not None
    prompts = [(f"prompt={cfg.prompt!r}", cfg.prompt)] if cfg.prompts_file is None else _read_prompts(cfg.prompts_file)

    from bigramlm.engine.load import load_model, open_checkpoint
    from bigramlm.engine.sampling import completions, count_params, end_token, place, stream_tokens

    import_extensions(names_in(cfg.extensions))
    checkpoint = open_checkpoint(cfg.run, cfg.checkpoint)
    model, tokenizer, _ = load_model(checkpoint, cfg.base)
    encoded = [_encode(tokenizer, prompt, where) for where, prompt in prompts]
    device = place(model, cfg.device)
    note(f"{relative(checkpoint.path)}, {count_params(model):,} parameters")

    texts = completions(cfg, model, tokenizer, encoded, device, num_samples=cfg.num_samples, seed=cfg.seed)
    if from_file:
        for prompt, text in texts:
            if not show(json.dumps({"prompt": prompts[prompt][1], "completion": text}, ensure_ascii=False)):
                return
    elif cfg.num_samples > 1:
        prompt_text = tokenizer.decode(encoded[0])
        for number, (_, text) in enumerate(texts, start=1):
            if not show(f"---- {number} of {cfg.num_samples}\n{prompt_text}{text}"):
                return
    else:
        end = end_token(cfg, tokenizer)
        print_stream(tokenizer, encoded[0], stream_tokens(cfg, model, [encoded[0]], device, cfg.seed, end), end)


def print_stream(tokenizer: Tokenizer, prompt: list[int], new: Iterable[Tensor | int], end: int | None) -> None:
    """Print a prompt, then its continuation as the tokens are sampled.

    new: the sampled tokens. end: the token at which printing stops; if None, all tokens are printed. On a terminal,
    each token is printed immediately. Otherwise, text is printed at most ten times per second.
    """
    interval = 0.0 if is_terminal(sys.stdout) else 0.1
    text, last_print = tokenizer.decode(prompt), 0.0
    # A token cannot be decoded alone: the preceding tokens determine whether a space comes before the token, and may
    # contain the first bytes of the token's character.
    context, pending = prompt[-_CONTEXT:], []
    for token in new:
        if token == end:
            break
        pending.append(int(token))
        decoded = tokenizer.decode(context + pending)
        # A character of several tokens (at most four, one per byte in UTF-8) is printed once it is complete.
        if not decoded.endswith("\N{REPLACEMENT CHARACTER}") or len(pending) > 4:
            text += _new_part(decoded, tokenizer.decode(context))
            context, pending = (context + pending)[-_CONTEXT:], []
        if text and time.perf_counter() - last_print >= interval:
            if not show(text, end=""):
                return
            text, last_print = "", time.perf_counter()
    show(text + _new_part(tokenizer.decode(context + pending), tokenizer.decode(context)))


def _new_part(text: str, old: str) -> str:
    """Return the text without the prefix that the text shares with the old text."""
    return text[len(os.path.commonprefix([text, old])) :]  # noqa: RUF071 - the arguments are not paths


def _encode(tokenizer: Tokenizer, prompt: str, where: str) -> list[int]:
    """Encode a prompt as token ids.

    where: the location of the prompt, for messages. Raises UserError if the tokenizer cannot encode the prompt.
    """
    from bigramlm.tokenizer.base import start_tokens

    try:
        return start_tokens(tokenizer, prompt)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _prompts_path(where: str) -> Path:
    from bigramlm.data.piped import is_inherited

    path = paths.typed(where, "prompts_file")
    refuse_dangling(path)
    require(path.exists(), f"prompts_file={where}: there is no such file; give a file with one prompt per line")
    require(  # opening a named pipe waits until something is written
        path.is_file() or path.is_dir() or is_inherited(where),
        f"prompts_file={where}: this is a named pipe or a device; give a file, or pipe the prompts with prompts_file=-",
    )
    return path


def _read_prompts(where: str) -> list[tuple[str, str]]:
    """Return the prompts in a file, each with its location for messages.

    where: the file, or - for standard input. Raises UserError if the file is empty, or cannot be read or parsed.
    """
    from bigramlm.data.reader import Reader

    is_stdin = where == "-"
    require(not is_stdin or sys.stdin is not None, "prompts_file=-: standard input is closed; give a file")
    path = Path("standard input") if is_stdin else _prompts_path(where)
    prompts = []
    try:
        for location, value in Reader(path, "prompt", "auto", file=sys.stdin.buffer if is_stdin else None).lines():
            prompt = value.get("prompt") if isinstance(value, dict) else value
            if not isinstance(prompt, str):
                raise UserError(f'{location} is not a JSON object such as {{"prompt": "To be"}}')
            prompts.append((location, prompt))
    except UserError as error:
        raise UserError(f"prompts_file={where}: {error}") from None
    require(bool(prompts), f"prompts_file={where}: the file is empty; write one prompt per line")
    return prompts


if __name__ == "__main__":
    main()
