"""The command `sample`: text from a trained model, by its run's folder or a checkpoint alone."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hydra.core.config_store import ConfigStore

from bigramlm.cli.common import command, fields_command
from bigramlm.config.run_config import SampleConfig, prefer_our_presets
from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require
from bigramlm.utils.console import relative, show

if TYPE_CHECKING:
    from torch import Tensor

    from bigramlm.device.device import Device
    from bigramlm.model.base import LanguageModel
    from bigramlm.tokenizer.base import Tokenizer

# How many texts are written at once, and how many prompts are sorted by length before the first is.
_ROWS = 64
_PROMPTS = 256

# How many tokens before a new one decide what it reads as.
_TOLD_BY = 4

FREE_TEXT = ("run", "checkpoint", "base", "prompt", "prompts_file")

_HELP = """\
Writes text with a trained model, which its run's folder or a checkpoint brings
whole: weights, config and tokenizer.

Usage: python scripts/sample.py [FIELD=VALUE] ...

Fields, with the values they have now (docs/config.md says what each means):

{fields}
Examples:
  python scripts/sample.py                             the run started last
  python scripts/sample.py prompt="ROMEO:" temperature=0.8 top_k=20
  python scripts/sample.py run=FOLDER checkpoint=best num_samples=5
  python scripts/sample.py prompts_file=prompts.txt > completions.jsonl"""


@dataclass
class SampleCommand(SampleConfig):
    """The fields of `python scripts/sample.py`."""

    run: str = "latest"
    """A run's folder, or a checkpoint's; `latest` is the run that was started last."""
    checkpoint: str = "last"
    """The checkpoint of the run: last (the newest that is whole), best (by val loss) or a step."""
    base: str | None = None
    """The weights that an adapter was trained on, if they have moved since."""
    num_samples: int = 1
    """The number of texts to write for each prompt."""
    prompts_file: str | None = None
    """Prompts to go on from, a line each, or in a file named *.jsonl an object with a `prompt` each; - is standard
    input. Prints an object with `prompt` and `completion` a line."""
    seed: int = 1337
    """Decides what is drawn."""
    device: DeviceConfig = field(default_factory=DeviceConfig)

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_samples >= 1, f"num_samples={self.num_samples}: must be 1 or more")
        require(0 <= self.seed < 2**62, f"seed={self.seed}: must be 0 or more, and below 2**62")
        require(
            self.prompts_file is None or self.prompt == "",
            f"prompt={self.prompt} prompts_file={self.prompts_file}: contradict each other; leave one out",
        )
        require(
            not self.device.compile,
            "device.compile=true: compiles training steps, and there are none here; leave it out",
        )


@command
def main() -> None:
    """Run the command line: python scripts/sample.py [FIELD=VALUE] ..."""
    register()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    command = fields_command("sample", SampleCommand, _HELP, FREE_TEXT)
    if command is not None:
        sample(command)


def register() -> None:
    """Make the fields known to Hydra."""
    ConfigStore.instance().store("sample_schema", SampleCommand)
    prefer_our_presets()


def sample(cfg: SampleCommand) -> None:
    """Print what the model writes. UserError, before anything is written, for what cannot be."""
    prompts = [cfg.prompt] if cfg.prompts_file is None else _read_prompts(Path(cfg.prompts_file).expanduser())

    from bigramlm.device.device import decide, set_up
    from bigramlm.engine.load import load_model, open_checkpoint

    checkpoint = open_checkpoint(cfg.run, cfg.checkpoint)
    model, tokenizer, _ = load_model(checkpoint, cfg.base)
    encoded = [_encode(tokenizer, prompt, cfg, line) for line, prompt in enumerate(prompts, start=1)]
    n_params = sum(p.numel() for p in model.parameters()) or model.n_params()  # also of what an adapter froze
    device = set_up(decide(cfg.device, n_params=n_params, tokens=model.block_size))
    model.to(device.torch)
    print(f"{relative(checkpoint.path)}, {n_params:,} parameters", file=sys.stderr)

    if cfg.prompts_file is not None:
        for prompt, text in _written(cfg, model, tokenizer, encoded, device):
            if not show(json.dumps({"prompt": prompts[prompt], "completion": text}, ensure_ascii=False)):
                return
    elif cfg.num_samples > 1:
        start = tokenizer.decode(encoded[0])
        for number, (_, text) in enumerate(_written(cfg, model, tokenizer, encoded, device), start=1):
            if not show(f"---- {number} of {cfg.num_samples}\n{start}{text}"):
                return
    else:
        end = _end(cfg, tokenizer)
        print_as_it_comes(tokenizer, encoded[0], _stream(cfg, model, [encoded[0]], device, cfg.seed, end), end)


def print_as_it_comes(tokenizer: Tokenizer, prompt: list[int], new: Iterable[Tensor | int], end: int | None) -> None:
    """Print a prompt's ids and the new ones up to `end`: at a terminal each at once, else several times a second."""
    every = 0.0 if sys.stdout.isatty() else 0.1
    text, shown = tokenizer.decode(prompt), 0.0
    # What a token adds is told by the tokens before it too: whether a space is in between, or half of a character.
    told, pending = prompt[-_TOLD_BY:], []
    for token in new:
        if token == end:
            break
        pending.append(int(token))
        decoded = tokenizer.decode(told + pending)
        # A character of several tokens, four bytes at the most, is shown once it is whole.
        if not decoded.endswith("\N{REPLACEMENT CHARACTER}") or len(pending) > 4:
            text += _added(decoded, tokenizer.decode(told))
            told, pending = (told + pending)[-_TOLD_BY:], []
        if text and time.perf_counter() - shown >= every:
            if not show(text, end=""):
                return
            text, shown = "", time.perf_counter()
    show(text + _added(tokenizer.decode(told + pending), tokenizer.decode(told)))


def _added(text: str, before: str) -> str:
    return text[len(os.path.commonprefix([text, before])) :]  # noqa: RUF071 - they are no paths


def _written(
    cfg: SampleCommand, model: LanguageModel, tokenizer: Tokenizer, prompts: list[list[int]], device: Device
) -> Iterator[tuple[int, str]]:
    # The number of a prompt and what was written of it, prompt by prompt, num_samples of each. Those of one length are
    # written at once.
    import torch

    from bigramlm.generate import truncate_at

    batch, end = 0, _end(cfg, tokenizer)
    for first in range(0, len(prompts), _PROMPTS):
        window = range(first, min(first + _PROMPTS, len(prompts)))
        texts: dict[int, list[str]] = {prompt: [] for prompt in window}
        for length in sorted({len(prompts[prompt]) for prompt in window}):
            rows = [prompt for prompt in window if len(prompts[prompt]) == length for _ in range(cfg.num_samples)]
            for at in range(0, len(rows), _ROWS):
                some = rows[at : at + _ROWS]
                tokens = list(_stream(cfg, model, [prompts[prompt] for prompt in some], device, cfg.seed + batch, end))
                new = torch.cat(tokens, dim=1).tolist() if tokens else [[]] * len(some)
                batch += 1
                for prompt, ids in zip(some, new, strict=True):
                    whole = tokenizer.decode(prompts[prompt] + truncate_at(ids, end))
                    texts[prompt].append(whole.removeprefix(tokenizer.decode(prompts[prompt])))
        for prompt in window:
            for text in texts[prompt]:
                yield prompt, text


def _end(cfg: SampleCommand, tokenizer: Tokenizer) -> int | None:
    # The token that ends a text.
    return tokenizer.end_of_text if cfg.stop_at_end else None


def _stream(
    cfg: SampleCommand, model: LanguageModel, prompts: list[list[int]], device: Device, seed: int, end: int | None
) -> Iterator[Tensor]:
    import torch

    from bigramlm.generate import stream

    return stream(
        model,
        torch.tensor(prompts, device=device.torch),
        cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        seed=seed,
        device=device,
        until=end,
    )


def _encode(tokenizer: Tokenizer, prompt: str, cfg: SampleCommand, line: int) -> list[int]:
    from bigramlm.tokenizer.base import start_tokens

    try:
        return start_tokens(tokenizer, prompt)
    except UserError as error:
        where = f"prompt={prompt!r}" if cfg.prompts_file is None else f"{cfg.prompts_file}, line {line}"
        raise UserError(f"{where}: {error}") from None


def _read_prompts(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts_file={path}: cannot be read as UTF-8 text: {error}") from None
    lines = text.split("\n")[: -1 if text.endswith("\n") else None]
    require(text != "", f"prompts_file={path}: is empty; a prompt a line is asked for")
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
            if not isinstance(prompt, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f'prompts_file={path}: line {number} is not an object like {{"prompt": "To be"}}') from None
        prompts.append(prompt)
    return prompts
