"""The configs of the adapters."""

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
    """The fields that all adapters have."""

    name: str = MISSING
    """The name of the adapter, set by `adapter=NAME`."""

    adapts: ClassVar[bool] = True  # False if the model's own weights are trained instead

    def require_installed(self) -> None:
        """Raise UserError if the adapter requires an extra that is not installed."""

    def attach(self, model: Adaptable) -> LoRA | None:
        """Attach the adapter to the model's layers, and freeze the layers.

        Returns None if there is no adapter. Raises UserError if it cannot be attached.
        """
        raise NotImplementedError


@dataclass
class NoAdapterConfig(AdapterConfig):
    """No adapter: all of the model's own weights are trained."""

    name: str = "none"

    adapts: ClassVar[bool] = False

    def attach(self, model: Adaptable) -> LoRA | None:  # noqa: ARG002
        return None


@dataclass
class LoRAConfig(AdapterConfig):
    """LoRA, with Hugging Face's peft: low-rank matrices beside frozen weights.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Each frozen matrix gets the product of two
    narrow matrices, and only these are trained. LoRA requires trained weights, loaded with `init_from=`.
    """

    name: str = "lora"
    r: int = 8
    """The rank: the width of the two narrow matrices."""
    alpha: float = 16.0
    """The scale of the product of the two matrices is alpha divided by the rank."""
    dropout: float = 0.0
    """The fraction of a layer's inputs that is set to zero for the adapter in training, drawn anew at every step."""
    targets: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    """The layers to adapt, by their names or the ends of names, such as [c_attn], [attn.c_proj,c_fc] or
    [h.0.mlp.c_fc]; all-linear is every linear layer between the embedding and the head."""
    use_dora: bool = False
    """DoRA (Liu et al. 2024): the direction and the length of each matrix's rows are adapted separately."""
    use_rslora: bool = False
    """rsLoRA (Kalajdzievski 2023): alpha is divided by the square root of the rank, so that large ranks learn as fast
    as small ones."""

    def __post_init__(self) -> None:
        require(self.r >= 1, f"adapter.r={self.r}: must be at least 1")
        require(
            math.isfinite(self.alpha) and self.alpha > 0, f"adapter.alpha={self.alpha}: must be a finite number above 0"
        )
        require(0 <= self.dropout < 1, f"adapter.dropout={self.dropout}: must be at least 0 and below 1")
        require(
            bool(self.targets),
            f"adapter.targets=[]: must name at least one layer; [{ALL_LINEAR}] selects all linear layers",
        )

    @property
    def scale(self) -> float:
        """The factor by which the product of the two matrices is scaled."""
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
