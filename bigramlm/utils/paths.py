"""Paths of configs, texts and runs, in a checkout and in an installed package."""

import contextlib
import errno
import glob
import os
import re
import sys
import unicodedata
from pathlib import Path

from bigramlm.errors import UserError, require

_PACKAGE = Path(__file__).parent.parent
_PARENT = _PACKAGE.parent
IN_CHECKOUT = (_PARENT / "conf" / "train.yaml").is_file()
"""True if the package runs from a checkout of its repository instead of an installation."""


def home() -> Path:
    """Return the folder that contains sources/ and outputs/.

    In a checkout this folder is the repository, otherwise the working directory.
    """
    return _PARENT if IN_CHECKOUT else working_folder()


def working_folder() -> Path:
    """Return the folder in which the command was typed.

    With hydra.job.chdir=true, Hydra changes the current folder for the duration of a job.
    """
    hydra_config = sys.modules.get("hydra.core.hydra_config")
    config = hydra_config.HydraConfig.instance().cfg if hydra_config else None
    return Path.cwd() if config is None else Path(config.hydra.runtime.cwd)


def typed(path: str, field: str = "") -> Path:
    """Return the absolute path that a user typed.

    field: the field, for messages. A leading `~` means a home folder only if there is such a user, and no file of this
    name. A name with accents is found in the form in which the disk stores it. Raises UserError for a path that no file
    can have, or that no config can store.
    """
    require(path != "" or not field, f"{field}=: the path is empty; give a path")
    literal, named = working_folder() / path, f"{field}=" if field else ""
    try:
        path.encode()
        os.lstat(literal)
    except UnicodeEncodeError:
        raise UserError(f"{named}{path!r}: the name is not UTF-8, so a config cannot store it; rename it") from None
    except ValueError as error:  # a NUL character
        raise UserError(f"{named}{path!r}: not a path: {error}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{named}{path[:40]}...: the path is too long for a file; give a shorter path") from None
        if path.startswith("~"):
            with contextlib.suppress(RuntimeError):  # there is no such user
                return Path(path).expanduser()
        return literal if path.isascii() else _as_stored(literal)
    return literal


def _as_stored(path: Path) -> Path:
    # A letter with an accent is one character or two: macOS stores two, and keyboards type one.
    found = Path(path.anchor)
    for part in path.parts[1:]:
        if not os.path.lexists(found / part):
            with contextlib.suppress(OSError):
                same = [name for name in os.listdir(found) if _composed(name) == _composed(part)]  # noqa: PTH208
                part = same[0] if len(same) == 1 else part
        found /= part
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def typed_pattern(pattern: str, field: str) -> Path:
    """Return the absolute path of a file, or the pattern that a user typed.

    In a pattern, the leading folders that exist are taken literally, also if their names contain brackets. The
    errors are those of `typed`.
    """
    path = typed(pattern, field)
    if not glob.has_magic(pattern) or os.path.lexists(path):
        return path
    folder, rest = Path(path.anchor), list(path.parts[1:])
    while rest and (folder / rest[0]).is_dir():
        folder /= rest.pop(0)
    return Path(glob.escape(str(folder)), *rest)


def conf_dir() -> Path:
    """Return the folder of the YAML presets.

    This is conf/ in the repository for a checkout, and bigramlm/conf/ for an installed package.
    """
    return _PARENT / "conf" if IN_CHECKOUT else _PACKAGE / "conf"


def program(name: str) -> str:
    """Return how the command is typed here.

    This is `python scripts/NAME.py` in a checkout, and `bigramlm-NAME` for an installed package.
    """
    return f"python scripts/{name}.py" if IN_CHECKOUT else f"bigramlm-{name}"


def bundled_text() -> Path:
    """Return the path of the bundled text.

    The text is in sources/ of the repository for a checkout, and in bigramlm/sources/ for an installed package.
    """
    return (_PARENT if IN_CHECKOUT else _PACKAGE) / "sources" / "bundled.txt"


def step_of(name: str) -> int | None:
    """Return the step n in the name of a checkpoint folder, step_<n>.

    Returns None for any other name, including names with leading zeros such as step_07, and those with more digits than
    any step.
    """
    found = re.fullmatch(r"step_(0|[1-9][0-9]{0,17})", name)
    return int(found[1]) if found else None
