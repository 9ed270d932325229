"""Functions that write a GPT in Hugging Face's layout, which huggingface.py reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.model.config import GPTConfig
from bigramlm.model.huggingface import ACTIVATIONS, FIXED_FIELDS, HEAD, TRANSPOSED, as_typed, is_tied
from bigramlm.utils.foreign import CONFIG, WEIGHTS
from bigramlm.utils.tensors import writing

if TYPE_CHECKING:
    from torch import Tensor, nn


def not_exportable(cfg: GPTConfig) -> list[str]:
    """List the config fields of a GPT that GPT-2's layout does not support.

    Each field is returned as an override, such as "model.norm=rms".
    """
    fixed = {"position": "learned", "norm": "layer", "qk_norm": False, "feed_forward": True, "residual": True}
    fixed["ngram_order"] = 0
    return [
        f"model.{name}={as_typed(getattr(cfg, name))}" for name, value in fixed.items() if getattr(cfg, name) != value
    ]


def to_pretrained(model: nn.Module, cfg: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a GPT by their names in transformers.

    If the GPT has no biases, biases of zero are added.
    """
    tensors = {}
    state = model.state_dict()
    tied = is_tied(state)
    for name, tensor in state.items():
        if name == HEAD and tied:
            continue
        exported = name if name == HEAD else f"transformer.{name}"
        tensors[exported] = (tensor.T if TRANSPOSED.fullmatch(name) else tensor).contiguous()
        if not cfg.bias and name.startswith(("h.", "ln_f.")):
            tensors[exported.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    return tensors


def write_pretrained(
    folder: Path, model: nn.Module, cfg: GPTConfig, *, vocab_size: int, block_size: int, end_of_text: int | None
) -> None:
    """Write config.json and the weights of an exportable GPT into a folder.

    end_of_text: the id of the token between documents, at which transformers stops generating; None if the tokenizer
    has no such token.
    """
    from safetensors.torch import save_file

    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": block_size,
        "n_layer": cfg.n_layer,
        "n_head": cfg.n_head,
        "n_embd": cfg.n_embd,
        "n_inner": None,
        "activation_function": next(name for name, activation in ACTIVATIONS.items() if activation == cfg.activation),
        **{f"{part}_pdrop": cfg.dropout for part in ("attn", "embd", "resid")},
        **FIXED_FIELDS,
        "tie_word_embeddings": cfg.tie_weights,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    with writing(folder / WEIGHTS):
        save_file(to_pretrained(model, cfg), folder / WEIGHTS, metadata={"format": "pt"})
