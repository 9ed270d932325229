"""LoRA by Hugging Face's peft: beside frozen layers, and in peft's own files."""

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

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Adaptable(Protocol):
    """A model that tells which matrices stand between its embedding and its head."""

    def hidden_matrices(self) -> dict[nn.Parameter, int]: ...


class LoRA:
    """The adapter of a model: matrices beside its layers, which alone are trained."""

    def __init__(self, cfg: LoRAConfig, model: Any) -> None:
        """Put it into the model, an Adaptable, where it changes nothing yet. UserError where it cannot be."""
        import peft  # takes seconds

        self.cfg = cfg
        self.model: nn.Module = model
        self._layers = _layers(model)
        self._tied = _tied(self._layers)
        self.targets = _matched(cfg.targets, self._layers, model)
        self._check()
        alpha: Any = int(cfg.alpha) if cfg.alpha.is_integer() else cfg.alpha  # as others write it
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
        """The number of parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def audit(self) -> list[str]:
        """Describe what is adapted, what is not, what is tied and how much is trained, as lines for the log."""
        holders = {name.rpartition(".")[0] for name, _ in self.model.named_parameters(remove_duplicate=False)}
        # Of an adapted layer the parameters are in parts of it.
        frozen = {name for name in holders if not any(f"{name}.".startswith(f"{its}.") for its in self.targets)}
        order = [name for name, _ in self.model.named_modules()]
        cfg = self.cfg
        said = [
            f"adapter: {cfg.name}, rank {cfg.r}, scale {cfg.scale:.4g}{', DoRA' if cfg.use_dora else ''}",
            f"adapted: {_counted(self.targets)}",
            f"frozen: {_counted(sorted(frozen, key=order.index))}",
            *(f"tied: {one} and {other} are one matrix" for one, other in self._tied.items()),
            f"trained: {self.n_trained:,} of {self.n_total:,} parameters ({self.n_trained / self.n_total:.2%})",
        ]
        return [line for text in said for line in textwrap.wrap(text, 90, subsequent_indent="  ")]

    def save(self, folder: Path, *, base: str) -> None:
        """Write the adapter in peft's format into a folder; base: where the weights are that it stands beside."""
        self._write(folder, self._tensors(), base=base, fan_in_fan_out=False)

    def export(self, folder: Path, *, base: str) -> None:
        """Return the same for the model in transformers' layout, with its names and with matrices transposed.

        Of layers in blocks alone: those around them may have more rows there.
        """
        tensors = {
            name.replace("base_model.model.h.", "base_model.model.transformer.h.", 1): tensor
            for name, tensor in self._tensors().items()
        }
        self._write(folder, tensors, base=base, fan_in_fan_out=True)

    def load(self, folder: Path) -> None:
        """Put the adapter in that a folder holds. ValueError where it is of another shape."""
        from peft import set_peft_model_state_dict

        tensors, own = load_file(folder / ADAPTER), self._tensors()
        differing = sorted(tensors.keys() ^ own.keys())
        if differing:
            lacks = differing[0] in own
            raise ValueError(f"{differing[0]} is {'not there' if lacks else 'of no layer that is adapted'}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, and {tuple(own[name].shape)} by the config")
        set_peft_model_state_dict(self._peft_model, tensors)

    def merge(self) -> None:
        """Add the adapter to the model's own weights, which are all trained again, and take it away."""
        merged = self._peft_model.merge_and_unload(safe_merge=True)
        assert merged is self.model
        self.model.requires_grad_(True)

    def _check(self) -> None:
        for name in self.targets:
            other = self._tied.get(name) or next((one for one, its in self._tied.items() if its == name), None)
            require(
                other is None,
                f"adapter.targets: {name} and {other} are one matrix (model.tie_weights=true), and merged into one of "
                f"them an adapter would change the other; leave it out, such as with adapter.targets=[{ALL_LINEAR}]",
            )
            rows, columns = _matrix(self._layers[name]).shape
            require(
                self.cfg.r <= min(rows, columns),
                f"adapter.r={self.cfg.r}: above the rank that {name} can have, a matrix of {rows} x {columns}; take "
                f"{min(rows, columns)} at the most, and far less for an adapter to be small",
            )

    def _tensors(self) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        tensors: dict[str, Tensor] = get_peft_model_state_dict(self._peft_model, save_embedding_layers=False)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def _write(self, folder: Path, tensors: dict[str, Tensor], *, base: str, fan_in_fan_out: bool) -> None:
        save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
        config: Any = copy.copy(self._peft_model.peft_config["default"])
        config.base_model_name_or_path = base
        config.fan_in_fan_out = fan_in_fan_out
        config.inference_mode = True
        config.auto_mapping = None
        config.target_modules = list(self.targets)  # in order, where peft has a set
        if fan_in_fan_out:
            config.task_type = "CAUSAL_LM"
        config.save_pretrained(str(folder))


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Embedding))}


def _matrix(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _tied(layers: dict[str, nn.Module]) -> dict[str, str]:
    # A layer that has the matrix of one before it, and that one.
    first: dict[int, str] = {}
    found = {name: first.setdefault(id(layer.weight), name) for name, layer in layers.items()}
    return {name: other for name, other in found.items() if other != name}


def _matched(targets: list[str], layers: dict[str, nn.Module], model: Any) -> list[str]:
    """Return the layers that are meant, in order. UserError if a target matches none."""
    adaptable: Adaptable = model
    hidden = {id(p) for p in adaptable.hidden_matrices()}
    matched: set[str] = set()
    for target in targets:
        if target == ALL_LINEAR:
            meant = {n for n, layer in layers.items() if isinstance(layer, nn.Linear) and id(layer.weight) in hidden}
        else:
            meant = {name for name in layers if name == target or name.endswith(f".{target}")}
        ends = [re.sub(r"^.*\.\d+\.", "", name) for name in layers]
        possible = list(dict.fromkeys([*([ALL_LINEAR] if hidden else []), *ends]))
        require(
            bool(meant),
            f"adapter.targets: {target} matches no layer of this model; there are: {', '.join(possible) or 'none'}",
        )
        matched |= meant
    return [name for name in layers if name in matched]


def _counted(names: Iterable[str]) -> str:
    # "h.*.attn.c_attn (4)" for the layers of four blocks.
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return ", ".join(name if n == 1 and "*" not in name else f"{name} ({n})" for name, n in counts.items()) or "none"
