"""Functions that read and write GPT-2 in Hugging Face's layout.

The layout is a folder with config.json, safetensors files and a tokenizer. This module does not use transformers.
Reading a model's shape does not import torch.
"""

from __future__ import annotations

import functools
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError, require
from bigramlm.model.config import GPT2Config, GPTConfig
from bigramlm.utils import files, foreign, hub
from bigramlm.utils.tensors import require_finite

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

# Activation functions by their names in transformers. If there are several names, the first one is written.
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
# Fields of variants of GPT-2 that only transformers implements: other values would need a different computation.
_FIXED_FIELDS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
# Matrices that are stored transposed, because GPT-2's original code multiplies from the other side.
_TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
# Causal masks, which older files contain in addition to the weights.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_HEAD, _TOKENS, _POSITIONS = "lm_head.weight", "wte.weight", "wpe.weight"
# The number of rows of an embedding is sometimes padded to a multiple of this number, for speed.
_PADDING_MULTIPLE = 128
_MAX_NAMED = 5
_PICKLE = "pytorch_model.bin"
# Fields of GPTConfig that the weights do not determine.
FREE = ("dropout", "rotary_base", "init", "zero_init")


@dataclass(frozen=True)
class Pretrained:
    """Pretrained GPT-2 weights in a folder or on the Hugging Face Hub."""

    location: str
    """The absolute path of the folder, or the model name on the Hub."""
    config: dict[str, Any]
    """The contents of config.json, with defaults for omitted fields."""

    @property
    def path(self) -> Path:
        """The location as a Path, even if it is a model name on the Hub."""
        return Path(self.location)

    @property
    def block_size(self) -> int:
        """The number of positions for which the weights contain an embedding."""
        return int(self.config["n_positions"])

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def model_config(self) -> GPT2Config:
        """Return the model config that matches these weights."""
        config = self.config
        return GPT2Config(
            n_layer=config["n_layer"],
            n_head=config["n_head"],
            n_embd=config["n_embd"],
            dropout=float(config["resid_pdrop"]),
            activation=_ACTIVATIONS[config["activation_function"]],
            tie_weights=config["tie_word_embeddings"],
        )

    def tokenizer_path(self) -> str | None:
        """Return the `tokenizer.path` of the tokenizer that belongs to these weights.

        Returns None for a folder without tokenizer files.
        """
        folder = self.path
        if not self._is_local or (folder / "tokenizer.json").exists():
            return self.location
        return self.location if (folder / "vocab.json").exists() and (folder / "merges.txt").exists() else None

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the weights file or, for several files, of their joined hashes."""
        hashes = [files.sha256(path) for path in self._weight_files()]
        return hashes[0] if len(hashes) == 1 else files.sha256_of("".join(hashes))

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:  # noqa: ARG002
        """Load the weights into a GPT that was built from `model_config()`.

        Positions beyond the model's block size and rows that only pad the vocabulary are skipped. Raises UserError with
        the names of the tensors that do not match the model, or are not finite.
        """
        import torch
        from safetensors import SafetensorError, safe_open

        state = model.state_dict()
        tied = _is_tied(state)
        with ExitStack() as stack, torch.no_grad():
            try:
                paths = self._weight_files()
                opened = [stack.enter_context(safe_open(path, "pt")) for path in paths]
                found = self._match_tensors(opened, state, tied=tied)
                for name, (file, saved) in found.items():
                    tensor = file.get_tensor(saved)
                    require_finite(paths[opened.index(file)], [(saved, tensor)])
                    tensor = tensor.T if _TRANSPOSED.fullmatch(name) else tensor
                    if tied and name == _HEAD:
                        self._check_head(tensor, found[_TOKENS])
                    else:
                        state[name].copy_(tensor[: len(state[name])])
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.location}: the weights cannot be read: {error}") from None

    def _match_tensors(self, opened: list[Any], state: dict[str, Tensor], *, tied: bool) -> dict[str, tuple[Any, str]]:
        # Returns, for each tensor of the model, the file that contains the tensor and its name in the file. Raises
        # UserError with the names of the tensors that do not match.
        found: dict[str, tuple[Any, str]] = {}
        surplus, misshapen = [], []
        for file in opened:
            for saved in file.keys():  # noqa: SIM118 - not a dictionary
                name = saved.removeprefix("transformer.")
                if _MASK.fullmatch(name):
                    continue
                if name not in state or name in found:
                    surplus.append(saved)
                    continue
                found[name] = file, saved
                shape, expected = tuple(file.get_slice(saved).get_shape()), tuple(state[name].shape)
                if not _fits(name, shape, expected):
                    expected = expected[::-1] if _TRANSPOSED.fullmatch(name) else expected
                    misshapen.append(f"{saved} has shape {shape}, but {CONFIG} implies {expected}")
        missing = [name for name in state if name not in found and not (name == _HEAD and tied)]
        for intro, names in (
            ("the weights lack ", missing),
            ("the weights contain unexpected tensors: ", surplus),
            ("", misshapen),
        ):
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            require(not names, f"{self.location}: {intro}{', '.join(names[:_MAX_NAMED])}{more}")
        return found

    def _check_head(self, head: Tensor, tokens: tuple[Any, str]) -> None:
        file, saved = tokens
        require(
            head.equal(file.get_tensor(saved)),
            f"{self.location}: {_HEAD} differs from {saved}, but they must be equal because tie_word_embeddings is "
            f"true (in {CONFIG} or by default); set tie_word_embeddings to false, or remove {_HEAD}",
        )

    @property
    def _is_local(self) -> bool:
        return self.path.is_absolute()

    def _weight_files(self) -> list[Path]:
        index = self._file(WEIGHTS, INDEX)
        if index is None:
            self._refuse_pickle()
            raise UserError(f"{self.location} contains no weights: there is no {WEIGHTS}")
        if index.name == WEIGHTS:
            return [index]
        try:
            names = sorted(set(json.loads(files.read_text(index))["weight_map"].values()))
            parts = [self._file(Path(str(name)).name) for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} does not list the files that contain the weights: {error}") from None
        for name, part in zip(names, parts, strict=True):
            require(part is not None, f"{self.location} lacks {name}, although {INDEX} lists this file")
        return [part for part in parts if part is not None]

    def _file(self, *names: str) -> Path | None:
        # Returns the first of these files that exists.
        if self._is_local:
            return next((path for name in names if (path := self.path / name).is_file()), None)
        return _fetch(self.location, *names)

    def _refuse_pickle(self) -> None:
        on_hub = not self._is_local and hub.has(self.location, _PICKLE)
        pickled = foreign.find_pickle(self.path) if self._is_local else _PICKLE if on_hub else None
        if pickled is not None:
            raise UserError(f"{self.location}: {foreign.describe_pickle(pickled, is_pretrained=True)}")


def _is_tied(state: dict[str, Tensor]) -> bool:
    return state[_HEAD].data_ptr() == state[_TOKENS].data_ptr()


def _fits(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if _TRANSPOSED.fullmatch(name):
        return shape == expected[::-1]
    if name in (_POSITIONS, _TOKENS, _HEAD):
        return len(shape) == len(expected) and shape[1:] == expected[1:] and shape[0] >= expected[0]
    return shape == expected


def is_pretrained(folder: Path) -> bool:
    """Return True if a folder contains a model in Hugging Face's layout.

    The model may be of any type, not only GPT-2.
    """
    return (folder / CONFIG).is_file()


def open_pretrained(location: str) -> Pretrained:
    """Open GPT-2 weights in a folder or on the Hugging Face Hub.

    location: the absolute path of the folder, or the model name on the Hub. Raises UserError if the model is not a
    GPT-2, or if its computation differs from that of this project's GPT.
    """
    file = Path(location) / CONFIG if Path(location).is_absolute() else _fetch(location, CONFIG)
    if file is None:
        adapter = _fetch(location, foreign.ADAPTER_CONFIG)
        require(adapter is None, f"init_from={location} {adapter and foreign.describe_adapter(adapter)}")
        raise UserError(
            f"init_from={location}: the Hugging Face Hub has no {CONFIG} under this name, so it is not the name of a "
            "model in Hugging Face's layout; choose the name of a GPT-2 model"
        )
    try:
        given = json.loads(files.read_text(file))
        kind = given.get("model_type")
        require(kind == "gpt2", f"{location}: {foreign.unsupported(kind)}")
        positions = given.get("n_positions", given.get("n_ctx", 1024))
        config = {**_defaults(), **given, "n_positions": positions}
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            require(
                type(config[name]) is int and config[name] >= 1,
                f"{file}: {name}={config[name]!r}: must be an integer of at least 1",
            )
        require(
            config["n_inner"] in (None, 4 * config["n_embd"]),
            f"{file}: n_inner={config['n_inner']}: only feed-forward layers with 4 x n_embd = {4 * config['n_embd']} "
            "hidden channels are supported",
        )
        activation = config["activation_function"]
        require(
            activation in _ACTIVATIONS,
            f"{file}: activation_function={activation} is not supported; the choices are {', '.join(_ACTIVATIONS)}",
        )
        dropout, tied = config["resid_pdrop"], config["tie_word_embeddings"]
        require(isinstance(dropout, (int, float)), f"{file}: resid_pdrop={dropout!r}: must be a number")
        require(isinstance(tied, bool), f"{file}: tie_word_embeddings={tied!r}: must be true or false")
        for name, value in _FIXED_FIELDS.items():
            require(config[name] == value, f"{file}: {name}={config[name]}: only {value} is supported")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a valid Hugging Face model config: {error!r}") from None
    pretrained = Pretrained(location, config)
    try:
        pretrained.model_config()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return pretrained


def _defaults() -> dict[str, Any]:
    # The values of the fields that config.json may omit.
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_inner": None, "vocab_size": 50257}
    others = {"activation_function": "gelu_new", "resid_pdrop": 0.1, "tie_word_embeddings": True}
    return {**shape, **others, **_FIXED_FIELDS}


def _fetch(name: str, *files: str) -> Path | None:
    # Returns the first of these files that the model contains, or None if it contains none of them.
    try:
        return hub.fetch_first(name, *((file,) for file in files))[0]
    except hub.MissingFileError:
        return None
    except hub.FetchError as reason:
        raise UserError(
            f"init_from={name}: there is no folder of this name, and {files[0]} could not be downloaded from the "
            f"Hugging Face Hub ({reason}); on a machine with network access, download config.json, {WEIGHTS} and "
            f"tokenizer.json of {name} into a new folder, and use init_from=FOLDER"
        ) from None


def check_vocabulary(pretrained: Pretrained, vocab_size: int) -> None:
    """Check that a tokenizer's vocabulary size matches the weights.

    The embedding may be padded, so it may have up to 127 rows more than the tokenizer has tokens. Raises UserError if
    the sizes do not match.
    """
    padding = pretrained.vocab_size - vocab_size
    require(
        0 <= padding < _PADDING_MULTIPLE,
        f"{pretrained.location}: the weights have a vocabulary of {pretrained.vocab_size:,} tokens, but the "
        f"tokenizer has {vocab_size:,} tokens and belongs to a different model; copy the tokenizer of these weights "
        "into the folder, or use tokenizer=gpt2 tokenizer.path=PATH",
    )


def not_exportable(cfg: GPTConfig) -> list[str]:
    """List the config fields of a GPT that GPT-2's layout does not support.

    Each field is returned as an override, such as "model.norm=rms".
    """
    fixed = {"position": "learned", "norm": "layer", "qk_norm": False, "feed_forward": True, "residual": True}
    fixed["ngram_order"] = 0
    return [
        f"model.{name}={as_typed(getattr(cfg, name))}" for name, value in fixed.items() if getattr(cfg, name) != value
    ]


def as_typed(value: Any) -> str:
    """Format a config value as in an override, such as true instead of True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_pretrained(model: nn.Module, cfg: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a GPT by their names in transformers.

    If the GPT has no biases, biases of zero are added.
    """
    tensors = {}
    state = model.state_dict()
    tied = _is_tied(state)
    for name, tensor in state.items():
        if name == _HEAD and tied:
            continue
        exported = name if name == _HEAD else f"transformer.{name}"
        tensors[exported] = (tensor.T if _TRANSPOSED.fullmatch(name) else tensor).contiguous()
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
        "activation_function": next(name for name, activation in _ACTIVATIONS.items() if activation == cfg.activation),
        **{f"{part}_pdrop": cfg.dropout for part in ("attn", "embd", "resid")},
        **_FIXED_FIELDS,
        "tie_word_embeddings": cfg.tie_weights,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(to_pretrained(model, cfg), folder / WEIGHTS, metadata={"format": "pt"})
