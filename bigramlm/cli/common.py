"""Code that all commands share: field parsing, one-line errors and exit codes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bigramlm.config.mistakes import CONFIG_ERRORS, check_flag, check_words, explained, names_of
from bigramlm.config.overrides import Overrides
from bigramlm.engine.failures import CommandExit, errors_as_exits, normalise_full_error
from bigramlm.errors import UserError, require
from bigramlm.runs.folder import versions
from bigramlm.utils import paths
from bigramlm.utils.console import note, open_streams, show

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
    for an unknown flag, a missing value, or a wrong field or value.
    """
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    words, names = [argument for argument in sys.argv[1:] if argument not in flags], names_of(schema)
    for flag, following in itertools.pairwise([*sys.argv[1:], ""]):
        if flag in flags and flag not in ("--help", "-h"):
            check_flag(flag, following, names)
    try:
        check_words(words, names, free_text)
        for override in Overrides.typed(words, free_text).parsed():
            require(not override.is_sweep_override(), f"{override.input_line}: must be a single value")
        cfg = compose_config(config_name, words, free_text)
    except CONFIG_ERRORS as error:
        raise explained(error, names) from error
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

    The exit codes are those of `errors_as_exits`. The message is one line. Standard streams that are closed are
    replaced with the null device.
    """
    with open_streams():
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # for terminals that cannot encode every character
        normalise_full_error()
        try:
            with errors_as_exits():
                yield
        except CommandExit as ended:
            if ended.error is not None:
                note(f"error: {ended.error}")
            sys.exit(ended.code)
