"""Code that all commands share: field parsing, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bigramlm.config.mistakes import CONFIG_ERRORS, check_flag, check_words, explained
from bigramlm.config.names import names_of
from bigramlm.config.overrides import Overrides
from bigramlm.engine.failures import CommandExit, errors_as_exits, normalise_full_error
from bigramlm.errors import UserError, require
from bigramlm.runs.folder import versions
from bigramlm.utils import network, paths
from bigramlm.utils.console import PlainFormatter, note, open_streams, show

T = TypeVar("T")


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one-line UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help shows the usage")

    def print_help(self, file: Any = None) -> None:  # noqa: ARG002
        show(self.format_help(), end="")


def output_path(text: str) -> Path:
    """Return the path of an output that a user typed.

    Raises UserError for a path that no file can have.
    """
    require(text not in ("", "-"), f"{text!r}: an output needs the path of a file or folder")
    return paths.typed(text)


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


# How often a thread of PyTorch on Linux checks for work before it sleeps. By default it does so for milliseconds, in
# which it keeps other processes from the core that the other threads wait for (docs/log.md has the figures).
_SPINS = "1000"


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a function into a command that maps its errors to exit codes.

    If --version is given, the command prints the version of bigramlm and does not call the function. Nor is the
    function called if the working folder no longer exists. Arguments from a lone # on are ignored: zsh passes on the
    comments behind pasted commands.
    """

    @functools.wraps(main)
    def run() -> None:
        if "#" in sys.argv:
            del sys.argv[sys.argv.index("#") :]
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
        with exit_codes(), network.typed(sys.argv[1:]):
            if "--version" in sys.argv[1:]:
                show(f"bigramlm {versions()['bigramlm']}")
            else:
                _require_working_folder()
                main()

    return run


def _require_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder was deleted or moved; change to a folder that exists, e.g. cd ~") from None


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Convert an error in the block to a message on standard error and an exit code.

    The exit codes are those of `errors_as_exits`. The message is one line; if HYDRA_FULL_ERROR is set, the traceback
    precedes it. Standard streams that are closed are replaced with the null device.
    """
    with open_streams():
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # for terminals that cannot encode every character
        if logging.lastResort is not None:  # shows the warnings of commands that configure no logging
            logging.lastResort.setFormatter(PlainFormatter())
        normalise_full_error()
        try:
            with errors_as_exits():
                yield
        except CommandExit as ended:
            if ended.error is not None:
                if os.environ.get("HYDRA_FULL_ERROR"):
                    note("".join(traceback.format_exception(ended.__cause__ or ended.error)).rstrip())
                note(f"error: {ended.error}")
            sys.exit(ended.code)
