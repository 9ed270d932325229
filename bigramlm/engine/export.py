"""Export of checkpoints as merged weights, transformers folders or peft adapters."""

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
from bigramlm.model.exporting import not_exportable, write_pretrained
from bigramlm.model.huggingface import is_pretrained, open_pretrained
from bigramlm.tokenizer.huggingface import write_tokenizer
from bigramlm.utils.console import relative
from bigramlm.utils.files import atomic_folder, require_new

# The shape of the batch on which the logits before and after a conversion are compared.
_ROWS, _TOKENS = 4, 128
# The largest difference that rounding explains, relative to the largest logit.
_TOLERANCE = 1e-4


def merge(where: str, folder: Path, base: str | None) -> str:
    """Merge an adapter into its base weights and write the result as a checkpoint.

    The checkpoint is written only if the logits stay the same, except for rounding. where: the run or checkpoint.
    folder: the new folder for the result. base: the location of the base weights, if they have moved. Returns the
    message to print. Raises UserError if merging is impossible.
    """
    checkpoint = open_checkpoint(where)
    require(
        checkpoint.is_adapter,
        f"{where} contains the weights of a full model and no adapter, so there is nothing to merge",
    )
    require_new(folder)
    model, _, cfg = build(checkpoint, base=base)
    adapter = put_adapter(checkpoint, model, base=base)
    unmerged = logits_of(model)
    adapter.merge()
    comparison = _compare_logits(unmerged, logits_of(model), checkpoint)
    cfg = replace(cfg, adapter=NoAdapterConfig())
    checkpoint.write_merged(folder, model, to_yaml(cfg))
    return _report("merged", checkpoint, folder, comparison)


def export(where: str, folder: Path, base: str | None) -> str:
    """Write a checkpoint as a folder that transformers loads; an adapter is merged.

    The folder is written only if the exported model has the same logits, except for rounding. The arguments, the result
    and the errors are those of `merge`.
    """
    checkpoint = open_checkpoint(where)
    require(
        base is None or checkpoint.is_adapter,
        f"--base {base}: {where} contains no adapter, so it has no base weights to locate; omit --base",
    )
    require_new(folder)
    model, tokenizer, cfg = build(checkpoint, base=base)
    shape = _exportable(where, cfg)
    put_weights(checkpoint, model, base=base)
    sizes = {"vocab_size": model.vocab_size, "block_size": model.block_size}
    with atomic_folder(folder) as aside:
        write_pretrained(aside, model, shape, **sizes, end_of_text=tokenizer.end_of_text)
        write_tokenizer(aside, tokenizer, longest=model.block_size)
        exported = open_pretrained(str(aside.absolute()))
        reloaded = exported.model_config().build(**sizes)
        exported.load_weights(reloaded)
        comparison = _compare_logits(logits_of(model), logits_of(reloaded), checkpoint)
    return _report("exported", checkpoint, folder, comparison)


def export_adapter(where: str, folder: Path, base: str | None) -> str:
    """Write an adapter without its base, in the format that peft loads.

    The arguments, the result and the errors are those of `merge`.
    """
    checkpoint = open_checkpoint(where)
    require(checkpoint.is_adapter, f"--adapter: {where} contains a full model and no adapter; omit --adapter")
    require_new(folder)
    model, _, cfg = build(checkpoint, base=base)
    _exportable(where, cfg)
    adapter = put_adapter(checkpoint, model, base=base)
    outside = [name for name in adapter.targets if not name.startswith("h.")]
    require(
        not outside,
        f"--adapter: the adapter in {where} also changes {', '.join(outside)}, whose shape may be different in "
        "transformers; omit --adapter to export the adapter merged into its base",
    )
    location = open_base(checkpoint, base)[0].location
    with atomic_folder(folder) as aside:
        adapter.export(aside, base=location)
    is_run = Path(location).is_absolute() and not is_pretrained(Path(location))
    hint = "; export the base too, because transformers cannot load it from there" if is_run else ""
    return _report("exported the adapter of", checkpoint, folder, f"its base is {location}{hint}")


def logits_of(model: LanguageModel) -> Tensor:
    """Return the logits that a model on the CPU computes for fixed random tokens.

    Their shape is (4, T, V) for a vocabulary of V tokens. T is 128, or the block size if that is shorter.
    """
    rows = torch.Generator().manual_seed(0)
    idx = torch.randint(model.vocab_size, (_ROWS, min(model.block_size, _TOKENS)), generator=rows)
    with torch.inference_mode():
        logits: Tensor = model.eval()(idx)[0]
    return logits


def _exportable(where: str, cfg: RunConfig) -> GPTConfig:
    model = cfg.model
    require(isinstance(model, GPTConfig), f"{where} cannot be exported: model={model.name} is not a transformer")
    assert isinstance(model, GPTConfig)
    unsupported = not_exportable(model)
    require(
        not unsupported,
        f"{where} cannot be exported, because transformers would load the model as a GPT-2, which does not support "
        f"{' '.join(unsupported)}; model=nanogpt and model=gpt2 can be exported",
    )
    return model


def _compare_logits(before: Tensor, after: Tensor, checkpoint: Checkpoint) -> str:
    # Relative to the largest logit, so that one tolerance suits every model.
    difference = ((after - before).abs().max() / before.abs().max()).item()
    tokens = before.shape[0] * before.shape[1]
    require(
        difference <= _TOLERANCE,
        f"{checkpoint.path}: the converted model's logits differ by up to {difference:.1e} of the largest logit "
        f"(measured on {tokens} tokens), more than rounding can explain ({_TOLERANCE:.0e}); nothing was written",
    )
    return f"the logits differ by up to {difference:.1e} of the largest logit (measured on {tokens} tokens)"


def _report(action: str, checkpoint: Checkpoint, folder: Path, details: str) -> str:
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{action} {relative(checkpoint.path)} into {folder}: {size:,} bytes; {details}"
