"""The adapters, and their fields."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from bigramlm.errors import require
from bigramlm.utils import paths

if TYPE_CHECKING:
    from bigramlm.adapter.lora import Adaptable, LoRA

ALL_LINEAR = "all-linear"


@dataclass
class AdapterConfig:
    """The fields of every adapter."""

    name: str = MISSING
    """The name of the adapter; set by `adapter=NAME`."""

    adapts: ClassVar[bool] = True  # whether it trains something else than the model's own weights

    def require_installed(self) -> None:
        """UserError where what it needs is an extra that is not installed."""

    def attach(self, model: Adaptable) -> LoRA | None:
        """Put the adapter beside the model's layers, and freeze these; None where there is none to put.

        UserError where it cannot be.
        """
        raise NotImplementedError


@dataclass
class NoAdapterConfig(AdapterConfig):
    """The model's own weights are trained, all of them."""

    name: str = "none"

    adapts: ClassVar[bool] = False

    def attach(self, model: Adaptable) -> LoRA | None:  # noqa: ARG002
        return None


@dataclass
class LoRAConfig(AdapterConfig):
    """LoRA (Hu et al.

    2021, "LoRA: Low-Rank Adaptation of Large Language Models"), by Hugging Face's peft: beside each frozen matrix a
    product of two narrow ones, which alone are trained. For trained weights, as `init_from=` brings.
    """

    name: str = "lora"
    r: int = 8
    """The rank: how narrow the two matrices are."""
    alpha: float = 16.0
    """The product of the two matrices is scaled by alpha divided by the rank."""
    dropout: float = 0.0
    """The share of a layer's inputs that the adapter does not see in training, drawn anew at every step."""
    targets: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    """The layers that get one, by their names or how these end, such as [c_attn], [attn.c_proj,c_fc], [h.0.mlp.c_fc];
    all-linear is every linear layer between embedding and head."""
    use_dora: bool = False
    """DoRA (Liu et al. 2024): direction and length of each matrix's rows are adapted apart."""
    use_rslora: bool = False
    """rsLoRA (Kalajdzievski 2023): alpha is divided by the root of the rank, so that large ranks learn as fast."""

    def __post_init__(self) -> None:
        require(self.r >= 1, f"adapter.r={self.r}: must be 1 or more")
        require(
            math.isfinite(self.alpha) and self.alpha > 0, f"adapter.alpha={self.alpha}: must be a finite number above 0"
        )
        require(0 <= self.dropout < 1, f"adapter.dropout={self.dropout}: must be 0 or more, and below 1")
        require(bool(self.targets), f"adapter.targets=[]: must name a layer; [{ALL_LINEAR}] is all of them")

    @property
    def scale(self) -> float:
        """The factor of the product of the two matrices."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def require_installed(self) -> None:
        how = '-c constraints.txt -e ".[lora]"' if paths.IN_CHECKOUT else '"bigramlm[lora]"'
        require(
            importlib.util.find_spec("peft") is not None,
            f"adapter={self.name}: needs an extra that is not installed: pip install {how}",
        )

    def attach(self, model: Adaptable) -> LoRA | None:
        self.require_installed()
        from bigramlm.adapter.lora import LoRA

        return LoRA(self, model)


ADAPTERS: dict[str, type[AdapterConfig]] = {"none": NoAdapterConfig, "lora": LoRAConfig}
