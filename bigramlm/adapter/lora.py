"""LoRA with Hugging Face's peft: attach, save, load and merge an adapter."""

from __future__ import annotations

import copy
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bigramlm.adapter.config import ALL_LINEAR, LoRAConfig
from bigramlm.errors import require
from bigramlm.utils.tensors import require_finite, require_same_kind, writing

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Adaptable(Protocol):
    """The interface of a model to which an adapter can be attached."""

    def hidden_matrices(self) -> dict[nn.Parameter, int]: ...


class LoRA:
    """A LoRA adapter that is attached to a model with frozen weights."""

    def __init__(self, cfg: LoRAConfig, model: Any) -> None:
        """Freeze the model's weights and insert the adapter's layers in place.

        The model's output does not change before training, because one of the two low-rank matrices is zero at first.
        model: an Adaptable. Raises UserError if the adapter cannot be attached.
        """
        import peft  # imported here because it takes seconds

        self.cfg = cfg
        self.model: nn.Module = model
        self._layers = _named_layers(model)
        self._tied = _find_tied(self._layers)
        self.targets = _match_targets(cfg.targets, self._layers, model)
        self._check_targets()
        alpha: Any = int(cfg.alpha) if cfg.alpha.is_integer() else cfg.alpha  # peft's files usually contain an integer
        config = peft.LoraConfig(
            r=cfg.r,
            lora_alpha=alpha,
            lora_dropout=cfg.dropout,
            target_modules=self.targets,
            use_dora=cfg.use_dora,
            use_rslora=cfg.use_rslora,
        )
        self.n_total = sum(p.numel() for p in model.parameters())
        self._peft_model = peft.get_peft_model(model, config)

    @property
    def n_trained(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def audit(self) -> list[str]:
        """List the adapted, frozen and tied layers and the share of trained parameters.

        Returns the lines to log.
        """
        holders = {name.rpartition(".")[0] for name, _ in self.model.named_parameters(remove_duplicate=False)}
        # The parameters of an adapted layer are in its submodules.
        frozen = {name for name in holders if not any(f"{name}.".startswith(f"{target}.") for target in self.targets)}
        order = [name for name, _ in self.model.named_modules()]
        cfg = self.cfg
        entries = [
            f"adapter: {cfg.name}, rank {cfg.r}, scale {cfg.scale:.4g}{', DoRA' if cfg.use_dora else ''}",
            f"adapted: {_summarise_names(self.targets)}",
            f"frozen: {_summarise_names(sorted(frozen, key=order.index))}",
            *(f"tied: {one} and {other} are one matrix" for one, other in self._tied.items()),
            f"trained: {self.n_trained:,} of {self.n_total:,} parameters ({self.n_trained / self.n_total:.2%})",
        ]
        return [line for text in entries for line in textwrap.wrap(text, 90, subsequent_indent="  ")]

    def save(self, folder: Path, *, base: str) -> None:
        """Write the adapter to a folder in peft's format.

        base: the location of the base weights, which is saved in adapter_config.json.
        """
        self._write(folder, self._tensors(), base=base, fan_in_fan_out=False)

    def export(self, folder: Path, *, base: str) -> None:
        """Write the adapter to a folder for use with transformers' GPT-2.

        The tensors get the names of transformers' layers. adapter_config.json sets fan_in_fan_out, because
        transformers stores the weight matrices of GPT-2 transposed. Only adapters of layers inside blocks can be
        exported: in transformers, the embedding and the head may have rows for more tokens. base: the location of the
        base weights.
        """
        tensors = {
            name.replace("base_model.model.h.", "base_model.model.transformer.h.", 1): tensor
            for name, tensor in self._tensors().items()
        }
        self._write(folder, tensors, base=base, fan_in_fan_out=True)

    def load(self, folder: Path) -> None:
        """Load the adapter's tensors from a folder.

        Raises ValueError if the names or shapes of the saved tensors differ from those of this adapter, and UserError
        if the tensors are not finite.
        """
        from peft import set_peft_model_state_dict

        tensors, expected = load_file(folder / ADAPTER), self._tensors()
        differing = sorted(tensors.keys() ^ expected.keys())
        if differing:
            is_missing = differing[0] in expected
            raise ValueError(f"{differing[0]} {'is missing' if is_missing else 'belongs to no adapted layer'}")
        for name, tensor in tensors.items():
            shape, expected_shape = tuple(tensor.shape), tuple(expected[name].shape)
            if shape != expected_shape:
                raise ValueError(f"{name} has shape {shape}, but the adapter config requires {expected_shape}")
            require_same_kind(folder / ADAPTER, name, tensor, expected[name].dtype)
        require_finite(folder / ADAPTER, tensors.items())
        set_peft_model_state_dict(self._peft_model, tensors)

    def merge(self) -> None:
        """Merge the adapter into the model's weights and remove the adapter's layers.

        Afterwards, all weights of the model are trainable again.
        """
        merged = self._peft_model.merge_and_unload(safe_merge=True)
        assert merged is self.model
        self.model.requires_grad_(True)

    def _check_targets(self) -> None:
        for name in self.targets:
            other = self._tied.get(name) or next((tied for tied, first in self._tied.items() if first == name), None)
            require(
                other is None,
                f"adapter.targets: {name} and {other} share one matrix (model.tie_weights=true), so merging an adapter "
                f"into {name} would also change {other}; remove {name} from the targets, for example with "
                f"adapter.targets=[{ALL_LINEAR}]",
            )
            rows, columns = _weight_of(self._layers[name]).shape
            require(
                self.cfg.r <= min(rows, columns),
                f"adapter.r={self.cfg.r} exceeds the maximum rank of {name}, a matrix of {rows} x {columns}; "
                f"choose at most {min(rows, columns)}, or much less for a small adapter",
            )

    def _tensors(self) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        tensors: dict[str, Tensor] = get_peft_model_state_dict(self._peft_model, save_embedding_layers=False)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def _write(self, folder: Path, tensors: dict[str, Tensor], *, base: str, fan_in_fan_out: bool) -> None:
        with writing(folder / ADAPTER):
            save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
        config: Any = copy.copy(self._peft_model.peft_config["default"])
        config.base_model_name_or_path = base
        config.fan_in_fan_out = fan_in_fan_out
        config.inference_mode = True
        config.auto_mapping = None
        config.target_modules = list(self.targets)  # in the model's order, because peft stores an unordered set
        if fan_in_fan_out:
            config.task_type = "CAUSAL_LM"
        config.save_pretrained(str(folder))


def saved_ranks(folder: Path) -> set[int]:
    """Return the ranks of the adapter in a folder; only one, unless it is damaged."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER, "pt") as file:
        names = [name for name in file.keys() if re.search(r"lora_(embedding_)?A\b", name)]  # noqa: SIM118
        return {int(file.get_slice(name).get_shape()[0]) for name in names}


def _named_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Embedding))}


def _weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _find_tied(layers: dict[str, nn.Module]) -> dict[str, str]:
    # Maps each layer that shares the matrix of an earlier layer to the earlier layer.
    first_with: dict[int, str] = {}
    first = {name: first_with.setdefault(id(layer.weight), name) for name, layer in layers.items()}
    return {name: other for name, other in first.items() if other != name}


def _match_targets(targets: list[str], layers: dict[str, nn.Module], model: Any) -> list[str]:
    """Return the names of the layers that match the targets, in the model's order.

    Raises UserError if a target matches no layer.
    """
    adaptable: Adaptable = model
    hidden = {id(p) for p in adaptable.hidden_matrices()}
    matched: set[str] = set()
    for target in targets:
        if target == ALL_LINEAR:
            matches = {n for n, layer in layers.items() if isinstance(layer, nn.Linear) and id(layer.weight) in hidden}
        else:
            matches = {name for name in layers if name == target or name.endswith(f".{target}")}
        ends = [re.sub(r"^.*\.\d+\.", "", name) for name in layers]
        possible = list(dict.fromkeys([*([ALL_LINEAR] if hidden else []), *ends]))
        require(
            bool(matches),
            f"adapter.targets: {target} matches no layer of this model; choose from {', '.join(possible) or 'none'}",
        )
        matched |= matches
    return [name for name in layers if name in matched]


def _summarise_names(names: Iterable[str]) -> str:
    # Abbreviates layers that occur in every block: "h.*.attn.c_attn (4)" stands for four layers.
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return ", ".join(name if n == 1 and "*" not in name else f"{name} ({n})" for name, n in counts.items()) or "none"
