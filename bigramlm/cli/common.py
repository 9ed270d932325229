"""Code that all commands share: field parsing, one-line errors and exit codes."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bigramlm.config.overrides import Overrides
from bigramlm.engine.failures import CommandExit, errors_as_exits
from bigramlm.errors import UserError
from bigramlm.runs.folder import versions
from bigramlm.utils import paths
from bigramlm.utils.console import show

T = TypeVar("T")


def compose_config(config_name: str, overrides: Sequence[str], free_text: Sequence[str]) -> DictConfig:
    """Compose conf/<config_name>.yaml with overrides.

    free_text: the fields whose values are taken literally, not parsed with Hydra's grammar. Raises Hydra's exceptions
    for a wrong field or value.
    """
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return compose(config_name, Overrides.typed(overrides, free_text).words)


def parse_fields(config_name: str, schema: type[T], help_text: str, free_text: Sequence[str]) -> T | None:
    """Parse the command line of a command that does not train.

    Returns an instance of schema, whose values come from conf/<config_name>.yaml and the overrides. If --help is given,
    prints help_text, in which {fields} is replaced by the fields and their values, and returns None. Raises UserError
    for an unknown flag or a missing value, and Hydra's exceptions for a wrong field or value.
    """
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    unknown = [flag for flag in flags if flag not in ("--help", "-h")]
    if unknown:
        raise UserError(f"{unknown[0]}: unknown flag; set fields with FIELD=VALUE (see --help)")
    cfg = compose_config(config_name, [argument for argument in sys.argv[1:] if argument not in flags], free_text)
    if flags:
        text = help_text.format(fields="".join(f"  {line}\n" for line in OmegaConf.to_yaml(cfg).splitlines()))
        show(text.replace(f"python scripts/{config_name}.py", paths.program(config_name)))
        return None
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)}: a value is required; set {missing[0]}=VALUE")
    command = OmegaConf.to_object(cfg)
    assert isinstance(command, schema)
    return command


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a function into a command that maps its errors to exit codes.

    If --version is given, the command prints the version of bigramlm and does not call the function.
    """

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
    """Convert an error in the block to a message on standard error and an exit code.

    The exit codes are those of `errors_as_exits`. The message is one line for an error that the user can fix, and
    Hydra's message for an error from Hydra or OmegaConf.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot encode every character
    try:
        with errors_as_exits():
            yield
    except CommandExit as ended:
        error = ended.error
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif error is not None:
            print(error, error.__cause__ or "", sep="\n", file=sys.stderr)
        sys.exit(ended.code)
