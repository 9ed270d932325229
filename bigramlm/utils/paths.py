"""Paths of the config, the texts and the runs: in a checkout, and for an installed package."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_BESIDE = _PACKAGE.parent
IN_CHECKOUT = (_BESIDE / "conf" / "train.yaml").is_file()
"""True if the package is used from its repository, and not from where pip put it."""


def home() -> Path:
    """Return the folder that holds sources/ and outputs/: the repository in a checkout, else the working folder."""
    return _BESIDE if IN_CHECKOUT else Path.cwd()


def conf_dir() -> Path:
    """Return the folder of the YAML presets; a wheel carries its own copy inside the package."""
    return _BESIDE / "conf" if IN_CHECKOUT else _PACKAGE / "conf"


def bundled_text() -> Path:
    """Return the text that comes with bigramlm; a wheel carries its own copy inside the package."""
    return (_BESIDE if IN_CHECKOUT else _PACKAGE) / "sources" / "bundled.txt"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint by its folder's name, step_<n>; None for any other name, step_07 too."""
    found = re.fullmatch(r"step_(0|[1-9][0-9]*)", name)
    return int(found[1]) if found else None
