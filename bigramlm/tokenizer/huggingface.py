"""Tokenizer files that Hugging Face's transformers can load."""

from __future__ import annotations

import json
from pathlib import Path

from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.char import CharTokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, longest: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder.

    longest: the maximum number of tokens in a sequence, which is the model's block size.
    """
    saved = _char_to_json(tokenizer) if isinstance(tokenizer, CharTokenizer) else tokenizer.to_json()
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


def _char_to_json(tokenizer: CharTokenizer) -> str:
    # A word-level tokenizer with words of one character. Like CharTokenizer it raises at an unknown character.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({char: id_ for id_, char in enumerate(tokenizer.chars)}, unk_token=""))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if tokenizer.end_of_text is not None:
        end = tokenizer.decode([tokenizer.end_of_text])
        backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return str(backend.to_str())
