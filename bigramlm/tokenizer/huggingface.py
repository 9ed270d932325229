"""Tokenizers as transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path

from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.char import CharTokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, longest: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder; longest: the tokens that a model takes at once."""
    saved = _of_characters(tokenizer) if isinstance(tokenizer, CharTokenizer) else tokenizer.to_json()
    (folder / "tokenizer.json").write_text(saved + "\n", "utf-8")
    about: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        end = tokenizer.decode([tokenizer.end_of_text])
        about |= {"bos_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def _of_characters(tokenizer: CharTokenizer) -> str:
    # Words of one character each; it raises, as ours does, where it has none for a character.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({char: id_ for id_, char in enumerate(tokenizer.chars)}, unk_token=""))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if tokenizer.end_of_text is not None:
        end = tokenizer.decode([tokenizer.end_of_text])
        backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return str(backend.to_str())
