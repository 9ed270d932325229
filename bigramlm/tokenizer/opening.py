"""Tokenizers that other programs wrote, in files and on the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.tokenizer.subword import SubwordTokenizer, from_json, from_vocabulary
from bigramlm.utils import files, foreign, hub, paths

log = logging.getLogger(__name__)

_VALID = "a tokenizer.json, or a folder with a tokenizer.json or with both vocab.json and merges.txt"
# The files of a model that are no tokenizer, or none that can be read.
_OTHER_FILES = {
    "*.tiktoken": "a vocabulary for tiktoken, which has no merges",
    "*.gz": "a compressed file, which must be decompressed first",
    "*.safetensors": "a file of weights",
    "*config.json": "a file of settings without a vocabulary",
    "special_tokens_map.json": "a list of special tokens without a vocabulary",
    "added_tokens.json": "a list of special tokens without a vocabulary",
}
# The files of other kinds of tokenizers: SentencePiece and BERT.
_CONVERTIBLE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")


def from_path(path: str) -> tuple[SubwordTokenizer, str]:
    """Open a tokenizer in a file, in a folder or on the Hugging Face hub.

    path: a file, a folder, or the name of a model on the hub. A folder contains tokenizer.json, or vocab.json and
    merges.txt as released with GPT-2. Returns the tokenizer, and the absolute path or the name on the hub. Raises
    UserError if there is no tokenizer.
    """
    local = paths.typed(path, "tokenizer.path")
    files.refuse_dangling(local)
    if not local.exists():
        local, path = _from_hub(path), path
    else:
        path = str(local)
    try:
        tokenizer = _open(local)
    except UserError as error:
        raise UserError(f"tokenizer.path={path}: {error}") from None
    except Exception as error:  # the library raises Exception itself
        reason = str(error).partition("\n")[0]
        raise UserError(f"tokenizer.path={path}: {reason}; use a different copy of the tokenizer") from None
    if tokenizer.sampling is not None:
        log.info(
            "tokenizer: %s in %s is switched off, because a text must always have the same tokens",
            *(tokenizer.sampling, path),
        )
    return tokenizer, path


def _open(path: Path) -> SubwordTokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    vocab, merges = (file.with_name(name) for name in ("vocab.json", "merges.txt"))
    if file.name not in ("vocab.json", "merges.txt") and file.exists():
        foreign.require_content(file)
        try:
            return from_json(files.read_text(file))
        except ValueError as error:  # also of a file that is no text
            about = _about_file(file)
            raise UserError(about) if about else error from None
    if not (vocab.exists() and merges.exists()):
        raise UserError(f"contains no tokenizer; give {_advice(file.parent)}")
    for part in (vocab, merges):
        foreign.require_content(part)
    return from_vocabulary(_read_vocab(vocab), _read_merges(merges))


def _about_file(file: Path) -> str | None:
    # Says what a file is that is no tokenizer.json, as far as its name tells.
    if file.name in _CONVERTIBLE:
        return f"is a tokenizer of another kind; give {_advice(file.parent)}"
    kind = next((kind for pattern, kind in _OTHER_FILES.items() if file.match(pattern)), None)
    if kind is None:
        return None
    has_tokenizer = any((file.parent / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return f"is {kind}; give {f'its folder, tokenizer.path={file.parent}' if has_tokenizer else _VALID}"


def _advice(folder: Path) -> str:
    if inside := foreign.find_inside(folder, ("tokenizer.json", "vocab.json")):
        return f"the folder that contains one, tokenizer.path={inside}"
    other = next((name for name in _CONVERTIBLE if (folder / name).is_file()), None)
    if other is None:
        return _VALID
    convert = "transformers.AutoTokenizer.from_pretrained('FOLDER').save_pretrained('NEW')"
    return f'{_VALID}; {other} is converted by: python -c "import transformers; {convert}", then tokenizer.path=NEW'


def _read_vocab(file: Path) -> dict[str, int]:
    vocab = foreign.read_json(file)
    bad = next((token for token, id_ in vocab.items() if type(id_) is not int or not 0 <= id_ < 2**31), None)
    require(bad is None, f"{file}: the token {bad!r} has the id {vocab.get(str(bad))!r}, which is no number from 0 on")
    return vocab


def _read_merges(file: Path) -> list[tuple[str, str]]:
    # Read here and not by the library, which does not drop a byte-order mark. The first line may be "#version: 0.2".
    pairs = []
    for number, line in enumerate(files.read_text(file).split("\n"), start=1):
        parts = line.rstrip("\r").split(" ")
        if not line.strip() or line.startswith("#version"):
            continue
        require(len(parts) == 2, f"{file}: line {number} has {len(parts)} tokens, but a merge is of two")
        pairs.append((parts[0], parts[1]))
    return pairs


def _from_hub(name: str) -> Path:
    on_hub = hub.name_in(name)
    advice = f"tokenizer.path={on_hub}, " if on_hub else ""
    require(
        hub.is_name(name),
        f"tokenizer.path={name}: no such file or folder; give {advice}{_VALID}, or the name of a model on the Hugging "
        "Face hub",
    )
    try:
        return hub.fetch_first(name, ("tokenizer.json",), ("vocab.json", "merges.txt"))[0]
    except hub.NotTypedError as error:
        raise UserError(f"{error}: add tokenizer.path={name}") from None
    except hub.FetchError as reason:
        raise UserError(
            f"tokenizer.path={name}: no such file or folder, and the Hugging Face hub did not provide it ({reason}); "
            f"download the tokenizer.json of {name}, or its vocab.json and merges.txt, on a machine with network "
            "access, and set tokenizer.path to the folder of these files"
        ) from None
