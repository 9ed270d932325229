"""The adapter configs."""

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
    """The base class of the adapter configs, with their common fields."""

    name: str = MISSING
    """The name of the adapter, set by `adapter=NAME`."""

    adapts: ClassVar[bool] = True  # False if the model's own weights are trained instead of an adapter

    def require_installed(self) -> None:
        """Raise UserError if a package that the adapter requires is not installed."""

    def attach(self, model: Adaptable) -> LoRA | None:
        """Freeze the model's weights and attach the adapter to the model.

        Returns the adapter. `adapter=none` returns None and freezes nothing. Raises UserError if the adapter cannot be
        attached.
        """
        raise NotImplementedError


@dataclass
class NoAdapterConfig(AdapterConfig):
    """No adapter: all weights of the model are trained."""

    name: str = "none"

    adapts: ClassVar[bool] = False

    def attach(self, model: Adaptable) -> LoRA | None:  # noqa: ARG002
        return None


@dataclass
class LoRAConfig(AdapterConfig):
    """LoRA with Hugging Face's peft: low-rank matrices beside frozen weights.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". The product of two low-rank matrices is added
    to each adapted weight matrix, and only the low-rank matrices are trained. LoRA requires trained weights, loaded
    with `init_from=`.
    """

    name: str = "lora"
    r: int = 8
    """The rank: the number of columns of one low-rank matrix, and of rows of the other."""
    alpha: float = 16.0
    """The scaling constant: the product of the two low-rank matrices is multiplied by alpha / r."""
    dropout: float = 0.0
    """The dropout probability of the adapter's inputs. Dropout is applied in training only."""
    targets: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    """The layers to adapt, as layer names or their last components, such as [c_attn], [attn.c_proj,c_fc] or
    [h.0.mlp.c_fc]. all-linear selects every linear layer between the embedding and the head."""
    use_dora: bool = False
    """If true, use DoRA (Liu et al. 2024), which adapts the direction and the length of each weight matrix row
    separately."""
    use_rslora: bool = False
    """If true, use rsLoRA (Kalajdzievski 2023), which scales by alpha / sqrt(r) instead of alpha / r, so that large
    ranks learn as fast as small ones."""

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
        """The factor that multiplies the product of the two low-rank matrices."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def require_installed(self) -> None:
        how = '-c constraints.txt -e ".[lora]"' if paths.IN_CHECKOUT else '"bigramlm[lora]"'
        require(
            importlib.util.find_spec("peft") is not None,
            f"adapter={self.name} requires a package that is not installed; install it with pip install {how}",
        )

    def attach(self, model: Adaptable) -> LoRA | None:
        self.require_installed()
        from bigramlm.adapter.lora import LoRA

        return LoRA(self, model)


ADAPTERS: dict[str, type[AdapterConfig]] = {"none": NoAdapterConfig, "lora": LoRAConfig}
