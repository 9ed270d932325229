"""Exports of a checkpoint: an adapter merged into its base, and folders that transformers and peft load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bigramlm.adapter.config import NoAdapterConfig
from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.config.run_config import RunConfig, to_yaml
from bigramlm.engine.load import build, open_base, open_checkpoint, put_adapter, put_weights
from bigramlm.errors import require
from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPTConfig
from bigramlm.model.huggingface import is_pretrained, not_exportable, open_pretrained, write_pretrained
from bigramlm.tokenizer.huggingface import write_tokenizer
from bigramlm.utils.console import relative
from bigramlm.utils.files import require_new, written_aside

# The tokens that logits are compared on, and by how much of the largest they may differ, which is rounding.
_ROWS, _TOKENS = 4, 128
_ALLOWED = 1e-4


def merge(where: str, folder: Path, base: str | None) -> str:
    """Merge an adapter into its base's weights, write them once their logits are found to be the same, and say so.

    base: where the base is, if it has moved. UserError if that cannot be.
    """
    checkpoint = open_checkpoint(where)
    require(checkpoint.is_adapter, f"{where}: holds all weights, and no adapter; there is nothing to merge")
    require_new(folder)
    model, _, cfg = build(checkpoint)
    adapter = put_adapter(checkpoint, model, base=base)
    apart = logits_of(model)
    adapter.merge()
    same = _same(apart, logits_of(model), checkpoint)
    cfg = replace(cfg, adapter=NoAdapterConfig())
    checkpoint.merged(folder, model, to_yaml(cfg))
    return _done("merged", checkpoint, folder, same)


def export(where: str, folder: Path, base: str | None) -> str:
    """Write what transformers loads, once that is found to have the same logits; an adapter is merged. As `merge`."""
    checkpoint = open_checkpoint(where)
    require(
        base is None or checkpoint.is_adapter, f"--base {base}: is for an adapter, and {where} has none; leave it out"
    )
    require_new(folder)
    model, tokenizer, cfg = build(checkpoint)
    shape = _exportable(where, cfg)
    put_weights(checkpoint, model, base=base)
    sizes = {"vocab_size": model.vocab_size, "block_size": model.block_size}
    with written_aside(folder) as aside:
        write_pretrained(aside, model, shape, **sizes, end_of_text=tokenizer.end_of_text)
        write_tokenizer(aside, tokenizer, longest=model.block_size)
        again = open_pretrained(str(aside.absolute()))
        read = again.model_config().build(**sizes)
        again.load_weights(read)
        same = _same(logits_of(model), logits_of(read), checkpoint)
    return _done("exported", checkpoint, folder, same)


def export_adapter(where: str, folder: Path, base: str | None) -> str:
    """Write an adapter alone, as peft puts it beside the base in transformers. As `merge`."""
    checkpoint = open_checkpoint(where)
    require(checkpoint.is_adapter, f"--adapter: {where} holds all weights, and no adapter; leave it out")
    require_new(folder)
    model, _, cfg = build(checkpoint)
    _exportable(where, cfg)
    adapter = put_adapter(checkpoint, model, base=base)
    outside = [name for name in adapter.targets if not name.startswith("h.")]
    require(
        not outside,
        f"--adapter: {where}: adapts {', '.join(outside)} too, whose shape may be another in the base; leave --adapter "
        "out, which exports the two merged",
    )
    place = open_base(checkpoint, base)[0].location
    with written_aside(folder) as aside:
        adapter.export(aside, base=place)
    ours = Path(place).is_absolute() and not is_pretrained(Path(place))
    return _done("exported the adapter of", checkpoint, folder, f"its base is {place}{', to be exported too' * ours}")


def logits_of(model: LanguageModel) -> Tensor:
    """Return the logits of some tokens, always the same ones, for a model on the CPU."""
    rows = torch.Generator().manual_seed(0)
    idx = torch.randint(model.vocab_size, (_ROWS, min(model.block_size, _TOKENS)), generator=rows)
    with torch.inference_mode():
        logits: Tensor = model.eval()(idx)[0]
    return logits


def _exportable(where: str, cfg: RunConfig) -> GPTConfig:
    model = cfg.model
    require(isinstance(model, GPTConfig), f"{where}: cannot be exported: model={model.name} is no transformer")
    assert isinstance(model, GPTConfig)
    lacks = not_exportable(model)
    require(
        not lacks,
        f"{where}: cannot be exported: GPT-2's layout, which is what transformers knows of these models, has no place "
        f"for {' '.join(lacks)}; model=nanogpt and model=gpt2 can be",
    )
    return model


def _same(before: Tensor, after: Tensor, checkpoint: Checkpoint) -> str:
    # By the largest logit, so that it means the same for every model.
    difference = ((after - before).abs().max() / before.abs().max()).item()
    tokens = before.shape[0] * before.shape[1]
    require(
        difference <= _ALLOWED,
        f"{checkpoint.path}: the logits of what was to be written differ by {difference:.1e} of the largest, over "
        f"{tokens} tokens, where {_ALLOWED:.0e} would be rounding; nothing was written",
    )
    return f"logits the same to {difference:.1e} of the largest, over {tokens} tokens"


def _done(what: str, checkpoint: Checkpoint, folder: Path, more: str) -> str:
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{what} {relative(checkpoint.path)} into {folder}: {size:,} bytes; {more}"
