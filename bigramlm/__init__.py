"""A config-driven experiment framework for small language models.

The functions `train`, `sweep`, `load` and `compose` do in Python what the commands do in a shell. `import bigramlm` is
fast, because torch and Hydra are imported by the first call.
"""

from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError

if TYPE_CHECKING:
    from bigramlm.api.calls import compose, load, sweep, train
    from bigramlm.api.run import Run, Sweep

__all__ = ["Run", "Sweep", "UserError", "compose", "load", "sweep", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bigramlm' has no attribute {name!r}")
    from bigramlm.api import calls, run

    return getattr(run if name in ("Run", "Sweep") else calls, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
