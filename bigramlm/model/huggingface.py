"""GPT-2 in Hugging Face's layout, read and written: a folder with config.json, safetensors, and a tokenizer.

Needs no transformers, and to know a model's shape no torch either.
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
from bigramlm.utils import files, hub

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

# What activations are called there; written is the first that fits.
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
# What else GPT-2 could be in transformers, and is not here: only what stands here computes the same.
_AS_IT_IS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
# Matrices that are kept the other way round, as GPT-2's own code multiplies by them.
_TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
# Causal masks, which older files have beside the weights.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_HEAD, _TOKENS, _POSITIONS = "lm_head.weight", "wte.weight", "wpe.weight"
# Embeddings are sometimes padded to a multiple of so many rows, for speed.
_PADDED_TO = 128
_NAMED = 5
_PICKLE = "pytorch_model.bin"
# Fields of ours that the weights say nothing of.
FREE = ("dropout", "rotary_base", "init", "zero_init")


@dataclass(frozen=True)
class Pretrained:
    """Weights of a GPT-2, in a folder or on the Hugging Face hub."""

    location: str
    """The folder, absolute, or the name on the hub."""
    about: dict[str, Any]
    """Its config.json."""

    @property
    def path(self) -> Path:
        """The same, for messages."""
        return Path(self.location)

    @property
    def block_size(self) -> int:
        """The number of positions."""
        return int(self.about["n_positions"])

    @property
    def vocab_size(self) -> int:
        return int(self.about["vocab_size"])

    def model_config(self) -> GPT2Config:
        """Return the config of the model that these weights are for."""
        about = self.about
        return GPT2Config(
            n_layer=about["n_layer"],
            n_head=about["n_head"],
            n_embd=about["n_embd"],
            dropout=float(about["resid_pdrop"]),
            activation=_ACTIVATIONS[about["activation_function"]],
            tie_weights=about["tie_word_embeddings"],
        )

    def tokenizer_path(self) -> str | None:
        """Return the path of its tokenizer, as `tokenizer.path` takes it; None for a folder without one."""
        folder = self.path
        if not self._is_here or (folder / "tokenizer.json").exists():
            return self.location
        return self.location if (folder / "vocab.json").exists() and (folder / "merges.txt").exists() else None

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the files of the weights."""
        hashes = [files.sha256(path) for path in self._weights()]
        return hashes[0] if len(hashes) == 1 else files.sha256_of("".join(hashes))

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:  # noqa: ARG002
        """Put the weights into the model, a GPT of `model_config()`. UserError names what does not fit.

        Of positions that the model has no room for, and of rows that only pad the vocabulary, nothing is taken.
        """
        import torch
        from safetensors import SafetensorError, safe_open

        own = model.state_dict()
        tied = _is_tied(own)
        with ExitStack() as stack, torch.no_grad():
            try:
                opened = [stack.enter_context(safe_open(path, "pt")) for path in self._weights()]
                found = self._found(opened, own, tied=tied)
                for name, (file, saved) in found.items():
                    tensor = file.get_tensor(saved)
                    tensor = tensor.T if _TRANSPOSED.fullmatch(name) else tensor
                    if tied and name == _HEAD:
                        self._check_head(tensor, found[_TOKENS])
                    else:
                        own[name].copy_(tensor[: len(own[name])])
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.location}: its weights cannot be read: {error}") from None

    def _found(self, opened: list[Any], own: dict[str, Tensor], *, tied: bool) -> dict[str, tuple[Any, str]]:
        # The file that each of the model's tensors is in, and its name there. UserError names what is not as it should.
        found: dict[str, tuple[Any, str]] = {}
        surplus, misshapen = [], []
        for file in opened:
            for saved in file.keys():  # noqa: SIM118 - not a dictionary
                name = saved.removeprefix("transformer.")
                if _MASK.fullmatch(name):
                    continue
                if name not in own or name in found:
                    surplus.append(saved)
                    continue
                found[name] = file, saved
                there, here = tuple(file.get_slice(saved).get_shape()), tuple(own[name].shape)
                if not _fits(name, there, here):
                    here = here[::-1] if _TRANSPOSED.fullmatch(name) else here
                    misshapen.append(f"{saved} is {there} there, {here} by its {CONFIG}")
        lacking = [name for name in own if name not in found and not (name == _HEAD and tied)]
        for what, names in (("lacks ", lacking), ("has, and GPT-2 has not, ", surplus), ("", misshapen)):
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            require(not names, f"{self.location}: {what}{', '.join(names[:_NAMED])}{more}")
        return found

    def _check_head(self, head: Tensor, tokens: tuple[Any, str]) -> None:
        file, saved = tokens
        require(
            head.equal(file.get_tensor(saved)),
            f"{self.location}: {_HEAD} is another matrix than {saved}, and tie_word_embeddings in {CONFIG} says that "
            "they are one; set it to false there, or take the tensor out",
        )

    @property
    def _is_here(self) -> bool:
        return self.path.is_absolute()

    def _weights(self) -> list[Path]:
        whole = self._file(WEIGHTS)
        if whole is not None:
            return [whole]
        index = self._file(INDEX)
        if index is None:
            self._refuse_pickle()
            raise UserError(f"{self.location}: holds no weights, which would be a {WEIGHTS}")
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            parts = [self._file(Path(str(name)).name) for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: says not which files the weights are in: {error}") from None
        for name, part in zip(names, parts, strict=True):
            require(part is not None, f"{self.location}: lacks {name}, which {INDEX} names")
        return [part for part in parts if part is not None]

    def _file(self, name: str) -> Path | None:
        if self._is_here:
            return self.path / name if (self.path / name).is_file() else None
        return _fetched(self.location, name)

    def _refuse_pickle(self) -> None:
        pickled = _pickle_in(self.location) if self._is_here else hub.has(self.location, _PICKLE) and _PICKLE
        if pickled:
            raise UserError(
                f"{self.location}: its weights are in {pickled}, a pickle, which can run code when it is loaded and is "
                'not read here; where you trust it, convert it once, with transformers: python -c "import '
                "transformers; transformers.AutoModelForCausalLM.from_pretrained('FOLDER').save_pretrained('NEW')\""
                f" and give NEW, with the tokenizer's files copied there, to init_from="
            )


def _pickle_in(folder: str) -> str | None:
    found = sorted(path.name for path in Path(folder).glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    return found[0] if found else None


def _is_tied(own: dict[str, Tensor]) -> bool:
    return own[_HEAD].data_ptr() == own[_TOKENS].data_ptr()


def _fits(name: str, there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    if _TRANSPOSED.fullmatch(name):
        return there == here[::-1]
    if name in (_POSITIONS, _TOKENS, _HEAD):
        return len(there) == len(here) and there[1:] == here[1:] and there[0] >= here[0]
    return there == here


def is_pretrained(folder: Path) -> bool:
    """Tell whether a folder is in Hugging Face's layout, whatever model is in it."""
    return (folder / CONFIG).is_file()


def open_pretrained(place: str) -> Pretrained:
    """Open the GPT-2 in a folder, or of a name on the hub. UserError if it is none, or computes otherwise than ours."""
    file = Path(place) / CONFIG if Path(place).is_absolute() else _fetched(place, CONFIG)
    require(file is not None, f"init_from={place}: the Hugging Face hub has no {CONFIG} in it; give a model's name")
    assert file is not None
    try:
        said = json.loads(file.read_text("utf-8"))
        kind = said["model_type"]
        require(kind == "gpt2", f"{place}: is a model of type {kind!r} by its {CONFIG}, and only gpt2 can be read here")
        positions = said.get("n_positions", said.get("n_ctx", 1024))
        about = {**_defaults(), **said, "n_positions": positions}
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            require(
                type(about[name]) is int and about[name] >= 1,
                f"{file}: {name}={about[name]!r}: must be a whole number, 1 or more",
            )
        require(
            about["n_inner"] in (None, 4 * about["n_embd"]),
            f"{file}: n_inner={about['n_inner']}: the layers here are 4 n_embd = {4 * about['n_embd']} wide inside",
        )
        activation = about["activation_function"]
        require(
            activation in _ACTIVATIONS,
            f"{file}: activation_function={activation}: is none of those here: {', '.join(_ACTIVATIONS)}",
        )
        dropout, tied = about["resid_pdrop"], about["tie_word_embeddings"]
        require(isinstance(dropout, (int, float)), f"{file}: resid_pdrop={dropout!r}: must be a number")
        require(isinstance(tied, bool), f"{file}: tie_word_embeddings={tied!r}: must be true or false")
        for name, value in _AS_IT_IS.items():
            require(about[name] == value, f"{file}: {name}={about[name]}: only {value} is computed here")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not the config of a model in Hugging Face's layout: {error!r}") from None
    found = Pretrained(place, about)
    try:
        found.model_config()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return found


def _defaults() -> dict[str, Any]:
    # What a config.json that does not say them means.
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_inner": None, "vocab_size": 50257}
    others = {"activation_function": "gelu_new", "resid_pdrop": 0.1, "tie_word_embeddings": True}
    return {**shape, **others, **_AS_IT_IS}


def _fetched(name: str, file: str) -> Path | None:
    try:
        return hub.fetch(name, file)
    except hub.NotThere:
        return None
    except hub.NotFetched as reason:
        raise UserError(
            f"init_from={name}: there is no such folder here, and the Hugging Face hub did not give {file} ({reason}); "
            f"download config.json, {WEIGHTS} and tokenizer.json of {name} where there is a network, into a folder of "
            "their own, and give that: init_from=FOLDER"
        ) from None


def check_vocabulary(pretrained: Pretrained, vocab_size: int) -> None:
    """UserError where a tokenizer of so many tokens is not that of the weights, which may be padded."""
    padding = pretrained.vocab_size - vocab_size
    require(
        0 <= padding < _PADDED_TO,
        f"{pretrained.location}: its weights are for {pretrained.vocab_size:,} tokens, and the tokenizer has "
        f"{vocab_size:,}: it is another; put the tokenizer of these weights into the folder, or give it with "
        "tokenizer=gpt2 tokenizer.path=",
    )


def not_exportable(cfg: GPTConfig) -> list[str]:
    """List the fields of a GPT that GPT-2's layout has no place for, as they would be typed."""
    has = {"position": "learned", "norm": "layer", "qk_norm": False, "feed_forward": True, "residual": True}
    has["ngram_order"] = 0
    return [
        f"model.{name}={as_typed(getattr(cfg, name))}" for name, value in has.items() if getattr(cfg, name) != value
    ]


def as_typed(value: Any) -> str:
    """Return a field's value as it would be typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_pretrained(model: nn.Module, cfg: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a GPT by their names in transformers; biases that it lacks are zero."""
    tensors = {}
    own = model.state_dict()
    tied = _is_tied(own)
    for name, tensor in own.items():
        if name == _HEAD and tied:
            continue
        said = name if name == _HEAD else f"transformer.{name}"
        tensors[said] = (tensor.T if _TRANSPOSED.fullmatch(name) else tensor).contiguous()
        if not cfg.bias and name.startswith(("h.", "ln_f.")):
            tensors[said.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    return tensors


def write_pretrained(
    folder: Path, model: nn.Module, cfg: GPTConfig, *, vocab_size: int, block_size: int, end_of_text: int | None
) -> None:
    """Write config.json and the weights of a GPT that can be had in this layout into a folder.

    end_of_text: the token between documents, which transformers stops at.
    """
    from safetensors.torch import save_file

    about = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": block_size,
        "n_layer": cfg.n_layer,
        "n_head": cfg.n_head,
        "n_embd": cfg.n_embd,
        "n_inner": None,
        "activation_function": next(name for name, ours in _ACTIVATIONS.items() if ours == cfg.activation),
        **{f"{part}_pdrop": cfg.dropout for part in ("attn", "embd", "resid")},
        **_AS_IT_IS,
        "tie_word_embeddings": cfg.tie_weights,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    save_file(to_pretrained(model, cfg), folder / WEIGHTS, metadata={"format": "pt"})
