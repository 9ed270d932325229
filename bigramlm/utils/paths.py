"""Paths of configs, texts and runs, in a checkout and in an installed package."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_PARENT = _PACKAGE.parent
IN_CHECKOUT = (_PARENT / "conf" / "train.yaml").is_file()
"""True if the package runs from a checkout of its repository instead of an installation."""


def home() -> Path:
    """Return the folder that contains sources/ and outputs/.

    In a checkout this folder is the repository, otherwise the working directory.
    """
    return _PARENT if IN_CHECKOUT else Path.cwd()


def conf_dir() -> Path:
    """Return the folder of the YAML presets.

    This is conf/ in the repository for a checkout, and bigramlm/conf/ for an installed package.
    """
    return _PARENT / "conf" if IN_CHECKOUT else _PACKAGE / "conf"


def program(name: str) -> str:
    """Return the start of a command line: `python scripts/NAME.py`, or `bigramlm-NAME` if installed."""
    return f"python scripts/{name}.py" if IN_CHECKOUT else f"bigramlm-{name}"


def bundled_text() -> Path:
    """Return the path of the bundled text.

    The text is in sources/ of the repository for a checkout, and in bigramlm/sources/ for an installed package.
    """
    return (_PARENT if IN_CHECKOUT else _PACKAGE) / "sources" / "bundled.txt"


def step_of(name: str) -> int | None:
    """Return the step n in the name of a checkpoint folder, step_<n>.

    Returns None for any other name, including names with leading zeros such as step_07.
    """
    found = re.fullmatch(r"step_(0|[1-9][0-9]*)", name)
    return int(found[1]) if found else None
