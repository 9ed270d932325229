"""Shared by the commands: fields as typed, errors in one line, exit codes, versions."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bigramlm.config.overrides import Overrides
from bigramlm.engine.failures import as_user_error
from bigramlm.errors import UserError, require
from bigramlm.runs.folder import versions
from bigramlm.utils import paths
from bigramlm.utils.console import show

T = TypeVar("T")


def composed(config_name: str, typed: Sequence[str], free_text: Sequence[str]) -> DictConfig:
    """Compose what was typed on top of conf/<config_name>.yaml; raises what Hydra raises for a wrong field or value."""
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return compose(config_name, Overrides.typed(typed, free_text).words)


def fields_command(config_name: str, schema: type[T], about: str, free_text: Sequence[str]) -> T | None:
    """Read the fields of a command that trains nothing: conf/<config_name>.yaml with what was typed.

    None where help was asked for, and printed: about, with the fields in the place of {fields}. UserError, and what
    Hydra raises, for what is wrong.
    """
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    unknown = [flag for flag in flags if flag not in ("--help", "-h")]
    require(not unknown, f"{unknown and unknown[0]}: there is no such flag; fields are NAME=VALUE, see --help")
    cfg = composed(config_name, [argument for argument in sys.argv[1:] if argument not in flags], free_text)
    if flags:
        text = about.format(fields="".join(f"  {line}\n" for line in OmegaConf.to_yaml(cfg).splitlines()))
        script = f"python scripts/{config_name}.py"
        show(text if paths.IN_CHECKOUT else text.replace(script, f"bigramlm-{config_name}"))
        return None
    missing = sorted(OmegaConf.missing_keys(cfg))
    require(not missing, f"{', '.join(missing)}: must be given a value, for instance {missing and missing[0]}=VALUE")
    command = OmegaConf.to_object(cfg)
    assert isinstance(command, schema)
    return command


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a function a command: its errors become exit codes, and --version prints the version of bigramlm."""

    @functools.wraps(main)
    def run() -> None:
        with exit_codes():
            if "--version" in sys.argv[1:]:
                show(f"bigramlm {versions()['bigramlm']}")
            else:
                main()

    return run


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """End the process as its errors ask for: 2 and one line for what the user can mend, 1 as Hydra does, 130 Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character of the text still shows the rest
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        print(error, error.__cause__ or "", sep="\n", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") or not isinstance(as_user_error(error), UserError):
            raise
        print(f"error: {as_user_error(error)}", file=sys.stderr)
        sys.exit(2)
