"""A config-driven experiment framework for small language models.

The functions `train`, `sweep`, `load` and `compose` do in Python what the commands do in a shell. `import bigramlm` is
fast, because torch and Hydra are imported by the first call.
"""

import sys
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


def _module_to_run() -> str:
    # The NAME of `python -m bigramlm.NAME`, while Python looks for this module.
    words = iter(sys.orig_argv[1:] if sys.argv[:1] == ["-m"] else [])
    option = next((word for word in words if word.startswith("-") and word.endswith("m")), None)
    package, _, name = (next(words, "") if option else "").partition(".")
    is_command = name == "__main__" or name.startswith(("cli.", "dev."))
    return name if package == "bigramlm" and not is_command else ""


if _module_to_run():  # no other module is a command: Python would report an error, or run nothing
    from bigramlm.__main__ import refuse_module

    refuse_module(_module_to_run())
