"""Functions that read GPT-2 in Hugging Face's layout; exporting.py writes it.

The layout is a folder with config.json, safetensors files and a tokenizer. This module does not use transformers.
Reading a model's shape does not import torch.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError, require
from bigramlm.model.config import GPT2Config
from bigramlm.utils import files, foreign, hub
from bigramlm.utils.foreign import CONFIG, INDEX, WEIGHTS
from bigramlm.utils.tensors import require_trainable

if TYPE_CHECKING:
    from torch import Tensor, nn

# Activation functions by their names in transformers. If there are several names, the first one is written.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
# Fields of variants of GPT-2 that only transformers implements: other values would need a different computation.
FIXED_FIELDS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
# Matrices that are stored transposed, because GPT-2's original code multiplies from the other side.
TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
# Causal masks, which older files contain in addition to the weights.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_PREFIX = re.compile(r"^((_orig_mod|module|model)\.)*(transformer\.)?")
HEAD, _TOKENS, _POSITIONS, _NORM = "lm_head.weight", "wte.weight", "wpe.weight", "ln_f.weight"
# The sizes in config.json, each with the tensor and the dimension in which the weights have it.
_SIZES = {"n_embd": (_TOKENS, 1), "vocab_size": (_TOKENS, 0), "n_positions": (_POSITIONS, 0)}
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
            activation=ACTIVATIONS[config["activation_function"]],
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

    def check_sizes(self) -> None:
        """Compare the sizes in config.json with the weights.

        This is called before a model of these sizes is built. The embeddings in the weights may have more rows. Raises
        UserError if there are no weights, or if they have other sizes.
        """
        from safetensors import safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        with self._reading():
            for path in self._weight_files():
                with safe_open(path, "np") as file:
                    shapes |= {_plain(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        found = {"n_layer": len({name.split(".")[1] for name in shapes if name.startswith("h.")})}
        for size, (name, dimension) in _SIZES.items():
            if len(shapes.get(name, ())) == 2:
                found[size] = shapes[name][dimension]
        for size, actual in found.items():
            expected = self.config[size]
            require(
                expected == actual or (expected < actual and size in ("vocab_size", "n_positions")),
                f"{self.location}: {size}={expected:,} in {CONFIG}, but the weights have {actual:,}; use the {CONFIG} "
                "and the weights of the same model",
            )

    def n_elements(self) -> int:
        """Return the number of elements of all weights."""
        from safetensors import safe_open

        total = 0
        with self._reading():
            for path in self._weight_files():
                with safe_open(path, "np") as file:
                    total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        return total

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.location}: the weights cannot be read: {error}; use a different copy of them"
            ) from None

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:  # noqa: ARG002
        """Load the weights into a GPT that was built from `model_config()`.

        Positions beyond the model's block size and rows that only pad the vocabulary are skipped. Raises UserError with
        the names of the tensors that do not match the model, or are not finite.
        """
        import torch
        from safetensors import safe_open

        state = model.state_dict()
        tied = is_tied(state)
        with ExitStack() as stack, torch.no_grad(), self._reading():
            paths = self._weight_files()
            opened = [stack.enter_context(safe_open(path, "pt")) for path in paths]
            found = self._match_tensors(opened, state, tied=tied)
            for name, (file, saved) in found.items():
                tensor = require_trainable(paths[opened.index(file)], saved, file.get_tensor(saved), state[name].dtype)
                tensor = tensor.T if TRANSPOSED.fullmatch(name) else tensor
                require(
                    name not in (_TOKENS, _NORM) or bool(tensor.any()),
                    f"{self.location}: all values of {saved} are 0, so that all tokens are the same to the model; use "
                    "a different copy of the weights",
                )
                if tied and name == HEAD:
                    self._check_head(tensor, found[_TOKENS])
                else:
                    state[name].copy_(tensor[: len(state[name])])

    def _match_tensors(self, opened: list[Any], state: dict[str, Tensor], *, tied: bool) -> dict[str, tuple[Any, str]]:
        # Returns, for each tensor of the model, the file that contains the tensor and its name in the file. Raises
        # UserError with the names of the tensors that do not match.
        found: dict[str, tuple[Any, str]] = {}
        surplus, misshapen = [], []
        for file in opened:
            for saved in file.keys():  # noqa: SIM118 - not a dictionary
                name = _plain(saved)
                if _MASK.fullmatch(name):
                    continue
                if name not in state or name in found:
                    surplus.append(saved)
                    continue
                found[name] = file, saved
                shape, expected = tuple(file.get_slice(saved).get_shape()), tuple(state[name].shape)
                if not _fits(name, shape, expected):
                    expected = expected[::-1] if TRANSPOSED.fullmatch(name) else expected
                    misshapen.append(f"{saved} has shape {shape}, but {CONFIG} implies {expected}")
        missing = [name for name in state if name not in found and not (name == HEAD and tied)]
        for intro, names in (
            ("the weights lack ", missing),
            ("the weights contain unexpected tensors: ", surplus),
            ("", misshapen),
        ):
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            advice = f"use weights and a {CONFIG} of the same model"
            require(not names, f"{self.location}: {intro}{', '.join(names[:_MAX_NAMED])}{more}; {advice}")
        return found

    def _check_head(self, head: Tensor, tokens: tuple[Any, str]) -> None:
        file, saved = tokens
        require(
            head.equal(file.get_tensor(saved).to(head.dtype)),
            f"{self.location}: {HEAD} differs from {saved}, but they must be equal because tie_word_embeddings is "
            f"true (in {CONFIG} or by default); set tie_word_embeddings to false, or remove {HEAD}",
        )

    @property
    def _is_local(self) -> bool:
        return self.path.is_absolute()

    def _weight_files(self) -> list[Path]:
        index = self._file(WEIGHTS, INDEX)
        if index is None:
            raise UserError(f"{self.location} {self._describe_missing_weights()}")
        foreign.require_content(index)
        if index.name == WEIGHTS:
            return [index]
        try:
            names = sorted(set(foreign.read_json(index)["weight_map"].values()))
            parts = [self._file(Path(str(name)).name) for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} does not list the files that contain the weights: {error}") from None
        for name, part in zip(names, parts, strict=True):
            require(part is not None, f"{self.location} lacks {name}, although {INDEX} lists this file")
        found = [part for part in parts if part is not None]
        for part in found:
            foreign.require_content(part)
        return found

    def _file(self, *names: str) -> Path | None:
        # Returns the first of these files that exists.
        if self._is_local:
            return next((path for name in names if (path := self.path / name).is_file()), None)
        return _fetch(self.location, *names)

    def _describe_missing_weights(self) -> str:
        if self._is_local:
            return foreign.describe_missing_weights(self.path)
        if hub.has(self.location, _PICKLE):
            return foreign.describe_pickle(_PICKLE, is_pretrained=True)
        return f"contains no weights: there is no {WEIGHTS}"


def _plain(name: str) -> str:
    # The name of a tensor without the prefixes that some files have: those of torch.compile and of wrappers of a model.
    return _PREFIX.sub("", name)


def is_tied(state: dict[str, Tensor]) -> bool:
    return state[HEAD].data_ptr() == state[_TOKENS].data_ptr()


def _fits(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if TRANSPOSED.fullmatch(name):
        return shape == expected[::-1]
    if name in (_POSITIONS, _TOKENS, HEAD):
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
    is_local = Path(location).is_absolute()
    file = Path(location) / CONFIG if is_local else _fetch(location, CONFIG, foreign.ADAPTER_CONFIG)
    if file is not None and file.name != CONFIG:
        raise UserError(f"init_from={location} {foreign.describe_adapter(file)}")
    if file is None:
        raise UserError(
            f"init_from={location}: the Hugging Face Hub has no {CONFIG} under this name, so it is not the name of a "
            "model in Hugging Face's layout; choose the name of a GPT-2 model"
        )
    try:
        given = foreign.read_json(file)
        kind = given.get("model_type")
        require(kind == "gpt2", f"{location}: {foreign.unsupported(str(kind))}")
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
            isinstance(activation, str) and activation in ACTIVATIONS,
            f"{file}: activation_function={activation} is not supported; the choices are {', '.join(ACTIVATIONS)}",
        )
        dropout, tied = config["resid_pdrop"], config["tie_word_embeddings"]
        require(isinstance(dropout, (int, float)), f"{file}: resid_pdrop={dropout!r}: must be a number")
        require(isinstance(tied, bool), f"{file}: tie_word_embeddings={tied!r}: must be true or false")
        for name, value in FIXED_FIELDS.items():
            require(config[name] == value, f"{file}: {name}={config[name]}: only {value} is supported")
    except (ValueError, TypeError) as error:
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
    return {**shape, **others, **FIXED_FIELDS}


def _fetch(name: str, *files: str) -> Path | None:
    # Returns the first of these files that the model contains, or None if it contains none of them.
    try:
        return hub.fetch_first(name, *((file,) for file in files))[0]
    except hub.MissingFileError:
        return None
    except hub.NotTypedError as error:
        raise UserError(f"{error}: add init_from={name}, or base={name} for an adapter") from None
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


def as_typed(value: Any) -> str:
    """Format a config value as in an override, such as true instead of True."""
    return str(value).lower() if isinstance(value, bool) else str(value)
